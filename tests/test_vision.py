"""Lesson 04: the SigLIP tower."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import make_pair, outputs_of, randomise

from minipali.checks import engine, exercise
from minipali.checks.comparing import same_gradient
from minipali.checks.engine import examine
from minipali.checks.vision import attention_pool
from minipali.vision import MLP


def pictures(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_layer_and_the_result_equal_transformers(implementation):
    ours, theirs = make_pair(2, implementation)
    mine, other = ours.vision_tower, theirs.model.vision_tower
    found = outputs_of(mine.layers, lambda: mine(pictures()))
    expected = outputs_of(other.encoder.layers, lambda: other(pictures()))
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    with torch.no_grad():
        expected = other(pictures()).last_hidden_state
        torch.testing.assert_close(mine(pictures()), expected, rtol=0, atol=1e-5)


def test_image_features_are_taken_after_the_last_norm(model):
    tower = model.vision_tower
    with torch.no_grad():
        before = outputs_of(tower.layers, lambda: tower(pictures()))[-1]
        norm = tower.post_layernorm
        expected = F.layer_norm(before, (20,), norm.weight, norm.bias, 1e-3)
        torch.testing.assert_close(tower(pictures()), expected, rtol=0, atol=1e-5)


def test_gelu_is_the_tanh_form():
    mlp = MLP(4, 4)
    x = torch.linspace(-3, 3, 40).reshape(10, 4)
    for linear in (mlp.fc1, mlp.fc2):
        linear.weight.data.copy_(torch.eye(4))
        linear.bias.data.zero_()
    inner = (2 / torch.pi) ** 0.5 * (x.double() + 0.044715 * x.double() ** 3)
    expected = (0.5 * x * (1 + inner.tanh())).float()
    assert (F.gelu(x) - expected).abs().max() > 1e-4  # the erf form would be noticed
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-6)


def test_a_picture_does_not_depend_on_the_others_in_its_batch(model):
    with torch.no_grad():
        together = model.vision_tower(pictures())
        alone = torch.cat([model.vision_tower(p[None]) for p in pictures()])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_exercises_pooling_is_siglips():
    siglip = pytest.importorskip("transformers.models.siglip.modeling_siglip")
    configuration = pytest.importorskip("transformers").SiglipVisionConfig
    config = configuration(
        hidden_size=12, intermediate_size=20, num_attention_heads=3, layer_norm_eps=1e-2
    )
    theirs = siglip.SiglipMultiheadAttentionPoolingHead(config)
    randomise(theirs)
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(6))
    inside = theirs.attention
    with torch.no_grad():
        found = attention_pool(
            x, theirs.probe[0, 0], inside.in_proj_weight, inside.in_proj_bias,
            inside.out_proj.weight, inside.out_proj.bias, 3, theirs.layernorm, theirs.mlp,
        )  # fmt: skip
        torch.testing.assert_close(found, theirs(x), rtol=0, atol=1e-5)


def test_two_mistakes_are_named_though_no_gradient_reaches_what_one_leaves_out():
    """In a known mistake it is 0 times what was left out, so there its gradient is 0, not none."""

    def keys_for_values_and_no_bias(x, probe, in_weight, in_bias, out_weight, _, heads, norm, mlp):
        weights, biases = in_weight.chunk(3), in_bias.chunk(3)
        query, both = F.linear(probe, weights[0], biases[0]), F.linear(x, weights[1], biases[1])
        query, both = (
            one.unflatten(-1, (heads, -1)).movedim(-2, -3) for one in (query[None], both)
        )
        y = F.scaled_dot_product_attention(query, both, both).movedim(-3, -2)[:, 0].flatten(1)
        y = y @ out_weight.T
        return y + mlp(norm(y))

    said = examine(exercise("attention_pool"), keys_for_values_and_no_bias).message
    assert said.startswith("Two things at once.")
    assert "is used twice" in said and "out_bias is missing" in said


def pool(x, probe, in_weight, in_bias, out_weight, out_bias, heads, norm, mlp, ending):
    """A right answer up to y + mlp(norm(y)), by torch's attention, with an axis of length 1."""
    d = x.shape[-1]
    q = F.linear(probe, in_weight[:d], in_bias[:d]).view(1, 1, d).expand(len(x), -1, -1)
    k, v = F.linear(x, in_weight[d:], in_bias[d:]).split(d, dim=-1)
    q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return ending(F.linear(y, out_weight, out_bias), norm, mlp)[:, 0]


def pooled(ending):
    def attempt(x, probe, in_weight, in_bias, out_weight, out_bias, heads, norm, mlp):
        return pool(x, probe, in_weight, in_bias, out_weight, out_bias, heads, norm, mlp, ending)

    return examine(exercise("attention_pool"), attempt)


def test_noise_of_a_gradient_that_is_0_on_paper_does_not_count():
    """That of the keys' bias: its sum cancels, and each way to attend leaves another rest."""
    assert pooled(lambda y, norm, mlp: y + mlp(norm(y))).status == engine.CORRECT
    slightly = pooled(lambda y, norm, mlp: y + (r := mlp(norm(y))) + 1e-3 * (r - r.detach()))
    assert slightly.status == engine.WRONG and "the gradient that reaches" in slightly.message


def test_noise_is_measured_by_the_largest_number_of_a_gradient():
    right = torch.tensor([20.0, 5e-6, 0.1])
    assert same_gradient(right + torch.tensor([0, 1e-5, 0]), right, 1e-5)
    assert not same_gradient(right + torch.tensor([0, 1e-2, 0]), right, 1e-5)
    assert not same_gradient(right + torch.tensor([0, torch.nan, 0]), right, 1e-5)
    assert not same_gradient(right / 1e4 + torch.tensor([0, 1e-4, 0]), right / 1e4, 1e-5)


def test_a_result_written_into_is_told_where_only_the_way_back_fails():
    def ending(y, norm, mlp):
        y += mlp(norm(y))
        return y

    assert pooled(ending).message.startswith("You write into a tensor (+=")


def test_a_gradient_of_nan_is_told_as_such():
    def by_exp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        u = F.linear(x, fc1_weight, fc1_bias)
        e = (2 * (2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)).exp()
        gelu = torch.where(u > 5, u, 0.5 * u * (1 + (e - 1) / (e + 1)))
        return F.linear(gelu, fc2_weight, fc2_bias)

    said = examine(exercise("mlp"), by_exp).message
    assert "the gradient that reaches `x` has nan" in said and "torch.where" in said


@pytest.mark.parametrize("limit", [10, 30, 100])
def test_hidden_values_that_are_limited_are_named(limit):
    def attempt(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        u = F.linear(x, fc1_weight, fc1_bias).clamp(-limit, limit)
        return F.linear(F.gelu(u, approximate="tanh"), fc2_weight, fc2_bias)

    assert "between the two maps are limited" in examine(exercise("mlp"), attempt).message


def test_what_is_wrong_with_gradients_is_told_without_torchs_bad_advice():
    def attempt(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        u = F.linear(x, fc1_weight, fc1_bias)
        u = torch.from_numpy(F.gelu(u, approximate="tanh").numpy())
        return F.linear(u, fc2_weight, fc2_bias)

    assert examine(exercise("mlp"), attempt).message.startswith("NumPy knows nothing of gradients")


def test_a_result_that_is_limited_on_both_sides_is_told():
    def attempt(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        u = F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate="tanh")
        return F.linear(u, fc2_weight, fc2_bias).clamp(-4, 4)

    assert "Where it is wrong it is 4 or -4." in examine(exercise("mlp"), attempt).message


def test_known_mistakes_are_kept_unless_a_function_among_the_arguments_remembers():
    def cases():
        calls = 0

        def counting(x):
            nonlocal calls
            calls += 1
            return x + calls

        return [(torch.ones(1, 2, 3), *(counting,) * 4)]

    one = exercise("encoder_layer")
    assert engine._lasting(one) is not None
    assert engine._lasting(dataclasses.replace(one, cases=cases)) is None
