"""Lesson 02: BatchNorm, LayerNorm, RMSNorm."""

import pytest
import torch
from torch import nn

from minipali.checks import exercise
from minipali.checks.engine import examine
from minipali.checks.norms import layer_norm_backward
from minipali.norms import BatchNorm, RMSNorm, layer_norm


def batch_norms(width: int, eps: float = 1e-2, momentum: float = 0.3):
    """Ours and torch's, with the same weights; large eps and momentum show their misuse."""
    torch.manual_seed(0)
    theirs = nn.BatchNorm1d(width, eps=eps, momentum=momentum)
    ours = BatchNorm(width, eps=eps, momentum=momentum)
    for p, q in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        nn.init.normal_(q)
        p.data.copy_(q.data)
    return ours, theirs


def test_batch_norm_equals_torch_over_training_steps_and_then_in_eval():
    ours, theirs = batch_norms(4)
    for step, size in enumerate((3, 2, 7, 5)):
        x = 3 * torch.randn(size, 4) + step
        x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, expected = ours(x_ours), theirs(x_theirs)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        found.cos().sum().backward()
        expected.cos().sum().backward()
        torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    for size in (6, 1):  # one example alone is fine once the statistics are remembered
        x = torch.randn(size, 4)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=2e-6)


def test_batch_norm_in_eval_remembers_instead_of_looking_at_the_batch():
    ours, _ = batch_norms(3)
    ours(torch.randn(5, 3))
    ours.eval()
    before = ours.running_mean.clone(), ours.running_var.clone()
    x = torch.randn(4, 3)
    torch.testing.assert_close(ours(x)[:1], ours(x[:1]))
    assert torch.equal(ours.running_mean, before[0])
    assert torch.equal(ours.running_var, before[1])


def test_batch_norm_in_training_refuses_a_batch_of_one_and_keeps_its_memory():
    ours, _ = batch_norms(3)
    with pytest.raises(ValueError, match="at least 2 examples, found 1"):
        ours(torch.randn(1, 3))
    assert torch.equal(ours.running_mean, torch.zeros(3))


def test_running_statistics_are_saved_with_the_weights():
    assert set(BatchNorm(2).state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_layer_norm_equals_torch(shape, eps):
    torch.manual_seed(1)
    x, weight, bias = 2 * torch.randn(shape) + 3, torch.randn(5), torch.randn(5)
    expected = nn.functional.layer_norm(x, (5,), weight, bias, eps)
    torch.testing.assert_close(layer_norm(x, weight, bias, eps), expected, rtol=0, atol=3e-6)


def test_layer_norm_defaults_to_siglips_eps_not_torchs():
    x = 1e-3 * torch.randn(4, 6)  # so small that 1e-5 and 1e-6 differ
    expected = nn.functional.layer_norm(x, (6,), eps=1e-6)
    other = nn.functional.layer_norm(x, (6,), eps=1e-5)
    found = layer_norm(x, torch.ones(6), torch.zeros(6))
    assert (other - expected).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_rms_norm_equals_gemma_bit_by_bit_in_every_dtype(dtype, weight_dtype, eps):
    gemma = pytest.importorskip("transformers.models.gemma.modeling_gemma")
    torch.manual_seed(2)
    ours, theirs = RMSNorm(7, eps).to(weight_dtype), gemma.GemmaRMSNorm(7, eps).to(weight_dtype)
    nn.init.normal_(theirs.weight, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    x = (3 * torch.randn(2, 5, 7) + 1).to(dtype)
    found, expected = ours(x), theirs(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0)


def test_rms_norm_rounds_once_at_the_end_not_before_the_product():
    torch.manual_seed(3)
    norm = RMSNorm(64).bfloat16()
    nn.init.normal_(norm.weight, std=0.5)
    x = torch.randn(8, 64).bfloat16()
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    llama = exact.bfloat16() * (1 + norm.weight)
    once = (exact * (1 + norm.weight.double())).bfloat16()
    assert (norm(x) == once).float().mean() > 0.99
    assert (llama == once).float().mean() < 0.9


def test_a_fresh_rms_norm_leaves_the_scale_alone():
    x = torch.tensor([[3.0, 4.0]])
    expected = x / (12.5**0.5)
    torch.testing.assert_close(RMSNorm(2, eps=0.0)(x), expected)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_the_exercises_way_back_is_autograds(eps):
    torch.manual_seed(4)
    x, gradient = 2 * torch.randn(2, 3, 5) + 1, torch.randn(2, 3, 5)
    leaves = [x, torch.randn(5), torch.randn(5)]
    for one in leaves:
        one.requires_grad_()
    expected = torch.autograd.grad(layer_norm(*leaves, eps), leaves, gradient)
    found = layer_norm_backward(gradient, x.detach(), leaves[1].detach(), eps)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_exercises_way_back_by_hand():
    found = layer_norm_backward(
        torch.tensor([[[1.0, 0]]]), torch.tensor([[[1.0, 3]]]), torch.ones(2), 3.0
    )
    for a, b in zip(found, ([[[0.1875, -0.1875]]], [-0.5, 0], [1, 0]), strict=True):
        torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float32))


def test_lost_digits_are_told_where_nothing_else_is_known():
    def in_16_bits(x, weight, eps):
        x = x.bfloat16()
        return (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()).float() * (1 + weight)

    def with_erf(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):  # nearly right, and has a name
        hidden = nn.functional.gelu(nn.functional.linear(x, fc1_weight, fc1_bias))
        return nn.functional.linear(hidden, fc2_weight, fc2_bias)

    assert "digits are lost on the way" in examine(exercise("rms_norm"), in_16_bits).message
    named = examine(exercise("mlp"), with_erf).message
    assert "its erf form" in named and "digits are lost" not in named


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_an_eps_that_only_guards_against_0_is_named_however_it_guards(name):
    def guarded(guard):
        def norm(x, *given):
            centred = x - x.mean(-1, keepdim=True) if name == "layer_norm" else x
            root = centred.square().mean(-1, keepdim=True).sqrt()
            weight = given[0] if name == "layer_norm" else 1 + given[0]
            return guard(centred, root) * weight + (given[1] if name == "layer_norm" else 0)

        return norm

    for guard in (
        lambda x, root: (x / root).nan_to_num(),
        lambda x, root: x / root.clamp(min=1e-6),
        lambda x, root: x / torch.where(root == 0, 1, root),
    ):
        assert "is spared 0 / 0" in examine(exercise(name), guarded(guard)).message
