"""Lesson 07: rotary positions."""

import pytest
import torch

from minipali.rope import apply_rope, rope_angles

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
