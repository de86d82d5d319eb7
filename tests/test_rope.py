"""Lesson 07: rotary positions."""

import copy
import math

import pytest
import torch

from minipali import load
from minipali.checks import exercise
from minipali.checks.engine import CORRECT, WRONG, examine
from minipali.gqa import GroupedQueryAttention
from minipali.rope import apply_rope, rope_angles
from minipali.scenes import examples
from minipali.swap import swap

B, H, T, K = 2, 3, 5, 8
POSITIONS = torch.tensor([[0, 1, 2, 3, 4], [7, 9, 100, 1100, 8191]])


def random(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotate_exactly(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Pair (i, i + k/2) as a complex number times e^(i angle), in float64."""
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half].double(), x[..., half:].double())
    frequency = theta ** (-2 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    angle = positions[:, None, :, None].double() * frequency
    turned = numbers * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_turning_is_multiplication_by_a_complex_number(theta):
    positions = POSITIONS.clamp(max=100)
    x = random(B, H, T, K)
    found = apply_rope(x, *rope_angles(positions, K, theta))
    expected = rotate_exactly(x, positions, theta).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("head_dim", [8, 256])
@pytest.mark.parametrize("theta", [10000.0, 500.0])
def test_angles_and_turning_equal_transformers_up_to_the_longest_sequence(head_dim, theta):
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma")
    parameters = {"rope_type": "default", "rope_theta": theta}
    config = gemma.GemmaConfig(head_dim=head_dim, rope_parameters=parameters)
    embedding = gemma.GemmaRotaryEmbedding(config)
    query, key = random(B, H, T, head_dim), random(B, 1, T, head_dim, seed=1)
    cos, sin = embedding(query, POSITIONS)
    ours = rope_angles(POSITIONS, head_dim, theta)
    torch.testing.assert_close(ours[0], cos[..., : head_dim // 2], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], sin[..., : head_dim // 2], rtol=0, atol=1e-6)
    expected = gemma.apply_rotary_pos_emb(query, key, cos, sin)
    for x, other in zip((query, key), expected, strict=True):
        torch.testing.assert_close(apply_rope(x, *ours), other, rtol=0, atol=1e-5)


def test_scores_depend_on_the_distance_of_positions_alone():
    query, key = random(1, 1, 1, K), random(1, 1, 1, K, seed=1)

    def score(q, k):
        turned = [
            apply_rope(x, *rope_angles(torch.tensor([[p]]), K)) for x, p in ((query, q), (key, k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(65, 62), abs=1e-4)
    assert score(5, 2) == pytest.approx(score(3, 0), abs=1e-4)
    assert abs(score(5, 2) - score(2, 5)) > 0.05  # before and after are not the same
    assert abs(score(5, 2) - score(5, 4)) > 0.05


def test_position_zero_turns_nothing_and_lengths_never_change():
    x = random(B, H, T, K)
    still = apply_rope(x, *rope_angles(torch.zeros(B, T, dtype=torch.long), K))
    torch.testing.assert_close(still, x, rtol=0, atol=0)
    turned = apply_rope(x, *rope_angles(POSITIONS, K))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_the_halves_pair_with_each_other_not_the_neighbours():
    x = torch.zeros(1, 1, 1, K)
    x[..., 0] = 1.0
    turned = apply_rope(x, *rope_angles(torch.tensor([[1]]), K))[0, 0, 0]
    assert turned.nonzero().flatten().tolist() == [0, K // 2]


def test_each_row_of_a_batch_has_its_own_positions():
    x = random(1, H, T, K).expand(B, H, T, K)
    turned = apply_rope(x, *rope_angles(POSITIONS, K))
    alone = apply_rope(x[:1], *rope_angles(POSITIONS[1:], K))
    torch.testing.assert_close(turned[1:], alone, rtol=0, atol=0)
    assert (turned[0] - turned[1]).abs().max() > 0.1


def test_angles_stay_in_float32_when_the_model_is_bfloat16():
    cos, sin = rope_angles(POSITIONS, K)
    assert cos.dtype == sin.dtype == torch.float32
    x = random(B, H, T, K).bfloat16()
    turned = apply_rope(x, cos, sin)
    assert turned.dtype == torch.bfloat16
    exact = rotate_exactly(x, POSITIONS, 10000.0)
    assert (turned.double() - exact).abs().max() < 0.05  # angles in bfloat16: off by up to 2
    coarse = (
        POSITIONS[..., None].bfloat16() * (10000.0 ** -(torch.arange(4) / 4)).bfloat16()
    ).cos()
    assert (coarse.float() - cos).abs().max() > 0.5


# --- in the trained model, and in the checks ------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return load("small")


def neighbours(x, cos, sin):
    """The interleaved layout of the paper, written out pair by pair."""
    turned = x.clone()
    for i in range(x.shape[-1] // 2):
        c, s = cos[:, None, :, i], sin[:, None, :, i]
        turned[..., 2 * i] = x[..., 2 * i] * c - x[..., 2 * i + 1] * s
        turned[..., 2 * i + 1] = x[..., 2 * i + 1] * c + x[..., 2 * i] * s
    return turned


def test_the_trained_model_sees_distances_alone_but_not_without_positions(small, capsys):
    model, _ = small
    swap(model, rope_angles=lambda p, k, theta: rope_angles(p + 1000, k, theta))
    assert "every layer agrees" in capsys.readouterr().out
    swap(model, rope_angles=lambda p, k, theta: rope_angles(2 * p, k, theta))
    assert "no longer the same" in capsys.readouterr().out


def test_the_other_layout_needs_both_rows_of_queries_and_of_keys_reordered(small, capsys):
    model, processor = small
    batch = processor(examples()["three_apples"], "caption en")
    other = swap(model, apply_rope=neighbours)
    assert "no longer the same" in capsys.readouterr().out
    order = [head * 48 + half + i for head in range(4) for i in range(24) for half in (0, 24)]

    def reordered(*names):
        fitted = copy.deepcopy(other)
        for module in fitted.modules():
            if isinstance(module, GroupedQueryAttention):
                for weight in (getattr(module, name).weight for name in names):
                    weight.data = weight.data[order[: len(weight)]]
        with torch.inference_mode():
            return (fitted(**batch) - model(**batch)).abs().max()

    assert reordered("q_proj", "k_proj") < 1e-3
    assert reordered("q_proj") > 1
    assert reordered("q_proj", "k_proj", "v_proj") > 1


def other_signs(positions, head_dim, theta):
    """The wrong sign, computed by logarithms: large angles differ from those of other ways."""
    angles = positions[..., None] * torch.exp(
        math.log(theta) * torch.arange(0, head_dim, 2) / head_dim
    )
    return angles.cos(), angles.sin()


def one_head_for_all(query, key, value, positions, heads, kv_heads, theta):
    b, t, wide = query.shape
    k = wide // heads
    angles = rope_angles(positions, k, theta)
    split = [x.reshape(b, t, -1, k).transpose(1, 2) for x in (query, key, value)]
    return apply_rope(split[0], *angles), apply_rope(split[1][:, :1], *angles), split[2]


@pytest.mark.parametrize(
    ("name", "attempt", "said"),
    [
        ("rope_angles", other_signs, "The exponent has the wrong sign"),
        (
            "rope_angles",
            lambda p, k, theta: rope_angles(p, k, 9000.0),
            "Case 1 of 3 (positions (3, 5), head_dim = 10, theta = 100.0): cos, part 1",
        ),
        ("rope_angles", lambda p, k, theta: rope_angles(p + 2, k, theta), "of the values are not"),
        ("rope_angles", lambda p, k, theta: rope_angles(p[0], k, theta), "(b t pair)"),
        ("apply_rope", lambda x, cos, sin: x * torch.cat((cos, cos), -1)[:, None], "are not"),
        ("apply_rope", lambda x, cos, sin: apply_rope(x, cos, sin)[..., :4], "axis 3 (k) must"),
        ("rotate_heads", one_head_for_all, "key, part 2 of the result: the shape is wrong"),
        (
            "rotate_heads",
            lambda *given: exercise("rotate_heads").reference(*given[:-1], 9000.0),
            "query, part 1 of the result",
        ),
    ],
)  # fmt: skip
def test_mistakes_that_are_in_no_list_are_rejected_with_a_useful_sentence(
    monkeypatch, name, attempt, said
):
    monkeypatch.setattr("minipali.checks.engine._finished_modules", lambda exercise: set())
    outcome = examine(exercise(name), attempt)
    assert outcome.status == WRONG
    assert said in outcome.message


@pytest.mark.parametrize(
    "speeds",
    [
        lambda k, theta: torch.exp(-math.log(theta) * torch.arange(0, k, 2) / k),
        lambda k, theta: theta ** (-2 * torch.arange(k // 2) / k),
        lambda k, theta: theta ** (-2 * torch.arange(k // 2).double() / k),
    ],
)
def test_any_way_of_computing_the_angles_in_float32_or_better_is_correct(speeds):
    def angles(positions, head_dim, theta):
        found = positions[..., None] * speeds(head_dim, theta)
        return found.cos().float(), found.sin().float()

    assert examine(exercise("rope_angles"), angles).status == CORRECT


def test_stretched_angles_are_those_of_llama_without_its_soft_border():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    parameters = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 1.0 + 1e-6, "original_max_position_embeddings": 100,
    }  # fmt: skip
    config = llama.LlamaConfig(hidden_size=16, num_attention_heads=1, rope_parameters=parameters)
    cos, sin = llama.LlamaRotaryEmbedding(config)(torch.zeros(B, T, 16), POSITIONS)
    ours = exercise("stretched_angles").reference(POSITIONS, 16, 500.0, 100, 4.0)
    for mine, other in zip(ours, (cos, sin), strict=True):
        torch.testing.assert_close(mine, other[..., :8], rtol=0, atol=1e-3)


def test_turning_by_complex_numbers_is_correct():
    def turn(x, cos, sin):
        turned = torch.complex(*x.float().chunk(2, -1)) * torch.complex(cos, sin)[:, None]
        return torch.cat((turned.real, turned.imag), -1).to(x.dtype)

    assert examine(exercise("apply_rope"), turn).status == CORRECT
