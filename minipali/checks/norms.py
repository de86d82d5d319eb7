"""Lesson 02: LayerNorm and its way back, RMSNorm with (1 + w), BatchNorm with its memory."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minipali import norms
from minipali.checks.engine import Exercise, Mistake


def _layer_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(3)

    def case(b: int, n: int, d: int, eps: float) -> tuple:
        # Means far from 0, and another scale for each token, so that every statistic matters.
        scale = 1 + 2 * torch.rand(b, n, 1, generator=random)
        x = scale * torch.randn(b, n, d, generator=random) + 1.5
        return x, torch.randn(d, generator=random), torch.randn(d, generator=random), eps

    return [case(2, 3, 5, 0.5), case(3, 4, 7, 2.0)]


def _rms_cases() -> list[tuple]:
    return [(x, weight, eps) for x, weight, _bias, eps in _layer_cases()]


def _batch_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(4)

    def case(b: int, d: int, training: bool, momentum: float, eps: float) -> tuple:
        return (
            2 * torch.randn(b, d, generator=random) + 1.5,
            torch.randn(d, generator=random),
            torch.randn(d, generator=random),
            torch.randn(d, generator=random),
            0.5 + torch.rand(d, generator=random),
            training,
            momentum,
            eps,
        )

    return [
        case(3, 4, True, 0.3, 0.5),
        case(2, 5, True, 0.1, 1.0),
        case(3, 5, False, 0.3, 0.5),
        case(2, 4, False, 0.1, 1.0),
    ]


def _by_root(variance: Tensor, eps: float) -> Tensor:
    return (variance + eps).sqrt()


def _root_then_eps(variance: Tensor, eps: float) -> Tensor:
    return variance.sqrt() + eps


def _layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    axes: int | tuple = -1,
    correction: int = 0,
    centre: bool = True,
    divisor: Callable = _by_root,
    plus: float = 0.0,
) -> Tensor:
    """layer_norm with one thing changed."""
    mean = x.mean(dim=axes, keepdim=True)
    variance = x.var(dim=axes, correction=correction, keepdim=True)
    if not centre:
        mean, variance = 0.0, x.square().mean(dim=axes, keepdim=True)
    return (x - mean) / divisor(variance, eps) * (plus + weight) + bias


EPS_SENTENCE = (
    "Your eps is outside the root. It belongs inside: sqrt(variance + eps). With the usual eps of"
    " 0.000001 you would not notice, except where the variance is tiny."
)

LAYER_NORM = Exercise(
    name="layer_norm",
    reference=norms.layer_norm,
    cases=_layer_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches of 2 x 3 and 3 x 4 tokens, widths 5 and 7, eps"
        " 0.5 and 2, means far from 0; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "unbiased variance",
            partial(_layer_norm, correction=1),
            "This is the unbiased variance: it divides by d - 1, and torch's x.var() does so unless"
            " told otherwise. LayerNorm divides by d: write x.var(correction=0), or the mean of the"
            " squares.",
        ),
        Mistake("eps outside the root", partial(_layer_norm, divisor=_root_then_eps), EPS_SENTENCE),
        Mistake(
            "unbiased and eps outside",
            partial(_layer_norm, correction=1, divisor=_root_then_eps),
            "This looks like x.std() + eps, which goes wrong twice: torch's std() divides by d - 1,"
            " and eps stands outside the root. Write sqrt(variance + eps) with a variance that"
            " divides by d.",
        ),
        Mistake(
            "over the tokens",
            partial(_layer_norm, axes=-2),
            "Your averages run over the tokens of a picture. LayerNorm treats each token alone and"
            " averages over its features, the last axis: dim=-1.",
        ),
        Mistake(
            "over the batch",
            partial(_layer_norm, axes=0),
            "Your averages run over the batch, as BatchNorm's do. LayerNorm treats each token alone"
            " and averages over its features, the last axis: dim=-1.",
        ),
        Mistake(
            "over everything",
            partial(_layer_norm, axes=(0, 1, 2)),
            "You took one mean and one variance for the whole tensor: x.mean() without an axis"
            " averages over everything. Each token has its own: dim=-1, keepdim=True.",
        ),
        Mistake(
            "mean not subtracted",
            partial(_layer_norm, centre=False),
            "The mean is still there: you divide by the root mean square, as RMSNorm does."
            " LayerNorm first subtracts the mean of each token.",
        ),
        Mistake(
            "1 + weight",
            partial(_layer_norm, plus=1.0),
            "You multiply by 1 + weight. That is how Gemma stores the weights of its RMSNorm."
            " LayerNorm's weight is the factor itself.",
        ),
    ),
    hints=(
        "One token at a time: what is the mean of its d numbers, and the mean of the squared"
        " distances from that mean?",
        "keepdim=True keeps the averaged axis with length 1: x.mean(dim=-1, keepdim=True) has the"
        " shape (b, n, 1), and x minus it works for every token at once.",
        "centred = x - mean; variance = the mean of centred.square() over dim=-1; then centred /"
        " (variance + eps).sqrt() * weight + bias.",
    ),
)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    axis: int = -1,
    centre: bool = False,
    plus: float = 1.0,
    total: bool = False,
    divisor: Callable = _by_root,
    about_mean: bool = False,
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with one thing changed."""
    centred = x - x.mean(dim=axis, keepdim=True)
    squares = (centred if centre or about_mean else x).square()
    squares = (squares.sum if total else squares.mean)(dim=axis, keepdim=True)
    return (centred if centre else x) / divisor(squares, eps) * (plus + weight)


RMS_NORM = Exercise(
    name="rms_norm",
    reference=rms_norm,
    cases=_rms_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches of 2 x 3 and 3 x 4 tokens, widths 5 and 7, eps"
        " 0.5 and 2, means far from 0; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "weight without the 1",
            partial(rms_norm, plus=0.0),
            "You multiply by weight. Gemma stores the factor minus one, so that a weight of 0"
            " changes nothing: multiply by 1 + weight.",
        ),
        Mistake(
            "mean subtracted",
            partial(rms_norm, centre=True),
            "You subtract the mean, as LayerNorm does. RMSNorm leaves the mean where it is: divide"
            " x itself by the root of the mean of its squares.",
        ),
        Mistake(
            "variance for the squares",
            partial(rms_norm, about_mean=True),
            "You divide by the standard deviation, which measures distances from the mean. RMSNorm"
            " measures distances from 0: the mean of x squared.",
        ),
        Mistake("eps outside the root", partial(rms_norm, divisor=_root_then_eps), EPS_SENTENCE),
        Mistake(
            "eps missing",
            partial(rms_norm, divisor=lambda squares, _: squares.sqrt()),
            "eps is missing, or it is not the one that was given. A token of zeros would give"
            " 0 / 0, which is nan: divide by sqrt(mean of the squares + eps).",
        ),
        Mistake(
            "sum of squares",
            partial(rms_norm, total=True),
            "You divide by the length of the vector: the root of the *sum* of the squares. The M in"
            " RMS stands for mean; without it the numbers shrink as the width grows.",
        ),
        Mistake(
            "over the tokens",
            partial(rms_norm, axis=-2),
            "Your average runs over the tokens of a picture. RMSNorm treats each token alone and"
            " averages over its features, the last axis: dim=-1.",
        ),
        Mistake(
            "no root",
            partial(rms_norm, divisor=lambda squares, eps: squares + eps),
            "You divide by the mean square itself. Its root is missing, so a token that is ten"
            " times as large comes out ten times as small.",
        ),
    ),
    hints=(
        "Read the name from the right: square the numbers, take their mean, take its root. Then"
        " divide.",
        "The mean runs over the features of one token: dim=-1, keepdim=True. Nothing is"
        " subtracted. eps goes inside the root.",
        "x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt(), times (1 + weight).",
    ),
)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *,
    axes: int | tuple = 0,
    correction: int = 0,
    remembered: int = 1,
    divisor: Callable = _by_root,
    use_memory_in_training: bool = False,
    use_batch_in_eval: bool = False,
    remember_in_eval: bool = False,
    swap_momentum: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, d) and the new running mean and variance, (d,) each.

    The reference, or with one thing changed.
    """
    mean, variance = x.mean(dim=axes), x.var(dim=axes, correction=correction)
    kept = x.var(dim=axes, correction=remembered)
    of_batch = not use_memory_in_training if training else use_batch_in_eval
    if not of_batch:
        mean, variance = running_mean, running_var
    y = (x - mean) / divisor(variance, eps) * weight + bias
    if training or remember_in_eval:
        share = 1 - momentum if swap_momentum else momentum
        running_mean = (1 - share) * running_mean + share * x.mean(dim=axes)
        running_var = (1 - share) * running_var + share * kept
    return y, running_mean, running_var


BATCH_NORM = Exercise(
    name="batch_norm",
    reference=batch_norm,
    cases=_batch_cases,
    axes="b d; d; d",
    parts=("y", "running_mean", "running_var"),
    checked=(
        "output, new running mean and new running variance in two training steps (batches of 3 and"
        " 2) and twice in eval mode, momentum 0.1 and 0.3, eps 0.5 and 1; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "batch statistics in eval mode",
            partial(batch_norm, use_batch_in_eval=True, remember_in_eval=True),
            "In eval mode you still use the statistics of the batch. An answer would then depend on"
            " which other examples came with it: use running_mean and running_var when training is"
            " False.",
        ),
        Mistake(
            "memory changes in eval mode",
            partial(batch_norm, remember_in_eval=True),
            "Your output is right, but the memory changes in eval mode. When training is False,"
            " return running_mean and running_var as they came.",
        ),
        Mistake(
            "unbiased variance in the output",
            partial(batch_norm, correction=1),
            "You normalise with the unbiased variance, which divides by b - 1. The batch is"
            " normalised with the biased one, correction=0; only the memory gets the unbiased one.",
        ),
        Mistake(
            "biased variance in the memory",
            partial(batch_norm, remembered=0),
            "Your output is right, but the memory gets the biased variance. It is to be an estimate"
            " for all data, so it gets the unbiased one: x.var(dim=0, correction=1).",
        ),
        Mistake(
            "memory used in training",
            partial(batch_norm, use_memory_in_training=True),
            "In training you normalise with the running statistics. There they are only kept for"
            " later; a training step uses the mean and variance of its own batch.",
        ),
        Mistake(
            "momentum the other way round",
            partial(batch_norm, swap_momentum=True),
            "Your momentum works the other way round. In torch it is the share of the *new* batch:"
            " (1 - momentum) * old + momentum * new.",
        ),
        Mistake(
            "over everything",
            partial(batch_norm, axes=(0, 1)),
            "You took one mean and one variance for the whole batch: x.mean() without an axis"
            " averages over everything. Each feature has its own: dim=0.",
        ),
        Mistake("eps outside the root", partial(batch_norm, divisor=_root_then_eps), EPS_SENTENCE),
    ),
    hints=(
        "Two questions, and both depend on `training`: which mean and variance does this batch"
        " meet, and what is remembered afterwards?",
        "In training: x.mean(dim=0) and the variance with correction=0 for the output. The memory"
        " moves a little towards the batch, and its variance is the one with correction=1.",
        "new = (1 - momentum) * old + momentum * batch, as a new tensor. In eval mode: (x -"
        " running_mean) / (running_var + eps).sqrt() * weight + bias, and the memory as it came.",
    ),
)


def layer_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: gradients of x (b, n, d), weight (d,) and bias (d,), by autograd."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    bias = torch.zeros_like(weight, requires_grad=True)
    with torch.enable_grad():
        y = norms.layer_norm(x, weight, bias, eps)
        return torch.autograd.grad(y, (x, weight, bias), gradient)


def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    of_mean: bool = True,
    of_scale: bool = True,
    with_weight: bool = True,
    divisor: Callable[[Tensor], Tensor] = torch.sqrt,
    of_x: bool = False,
    over: Callable[[Tensor], Tensor] = lambda each: each.sum(dim=(0, 1)),
    eps_kept: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula, or with one thing changed."""
    centred = x - x.mean(dim=-1, keepdim=True)
    square = centred.square().mean(dim=-1, keepdim=True) + eps * eps_kept
    normal = centred / square.sqrt()
    back = inner = gradient * weight if with_weight else gradient
    if of_mean:
        back = back - inner.mean(dim=-1, keepdim=True)
    if of_scale:
        back = back - normal * (inner * normal).mean(dim=-1, keepdim=True)
    return back / divisor(square), over(gradient * (x if of_x else normal)), over(gradient)


def _backward_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(22)

    def case(b: int, n: int, d: int, eps: float) -> tuple:
        gradient, noise = (torch.randn(b, n, d, generator=random) for _ in range(2))
        return gradient, 2 * noise + 1, 1 + torch.randn(d, generator=random), eps

    return [case(2, 3, 5, 0.5), case(3, 4, 7, 2.0)]


LAYER_NORM_BACKWARD = Exercise(
    name="layer_norm_backward",
    transfer=True,
    reference=layer_norm_backward,
    cases=_backward_cases,
    axes="b n d; d; d",
    parts=("x_gradient", "weight_gradient", "bias_gradient"),
    checked=(
        "the gradients of x, weight and bias against torch's own, for 2 batches of 2 x 3 and 3 x 4"
        " tokens, widths 5 and 7, eps 0.5 and 2; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "the mean depends on x",
            partial(_backward, of_mean=False),
            "The way through the mean is missing: every number of a token moves the token's mean,"
            " and so moves all its outputs. Subtract the mean, over the features, of weight times"
            " gradient.",
        ),
        Mistake(
            "the scale depends on x",
            partial(_backward, of_scale=False),
            "The way through the standard deviation is missing: a number far from the mean also"
            " makes the divisor larger. Subtract the normalised x times the mean of (weight times"
            " gradient times normalised x).",
        ),
        Mistake(
            "mean and scale as constants",
            partial(_backward, of_mean=False, of_scale=False),
            "You treat the mean and the standard deviation as constants. Both are made of x, so"
            " the gradient flows through them, too: two more terms.",
        ),
        Mistake(
            "weight left out",
            partial(_backward, with_weight=False),
            "The weight is missing on the way back to x. The forward pass multiplies by it, so the"
            " gradient is multiplied by it first.",
        ),
        Mistake(
            "divided by the variance",
            partial(_backward, divisor=lambda square: square),
            "The gradient of x is divided by the variance. The forward pass divides by its root,"
            " and so does the way back.",
        ),
        Mistake(
            "weight's gradient from x itself",
            partial(_backward, of_x=True),
            "The weight multiplies the *normalised* x, so its gradient is the sum of gradient times"
            " normalised x, not of gradient times x.",
        ),
        Mistake(
            "mean over the tokens",
            partial(_backward, over=lambda each: each.mean(dim=(0, 1))),
            "The gradients of weight and bias are means over the tokens. Every token uses the same"
            " weight and adds its share: take the sum.",
        ),
        Mistake(
            "eps forgotten",
            partial(_backward, eps_kept=0.0),
            "eps is missing on the way back. The forward pass divides by sqrt(variance + eps); the"
            " same number belongs here.",
        ),
    ),
    hints=(
        "Start at the end. y = normal * weight + bias, so bias gets the gradient, weight gets"
        " gradient * normal, both summed over all tokens (axes b and n), and normal gets inner ="
        " gradient * weight.",
        "normal = (x - mean) / s. Change one x[j] a little: normal[j] changes directly, and all"
        " normal[i] change because the mean moves by 1/d of it and s moves by normal[j] / d of it.",
        "x_gradient = (inner - inner.mean(-1, keepdim=True) - normal * (inner * normal).mean(-1,"
        " keepdim=True)) / s with s = sqrt(variance + eps).",
    ),
)

EXERCISES = (LAYER_NORM, RMS_NORM, BATCH_NORM, LAYER_NORM_BACKWARD)
