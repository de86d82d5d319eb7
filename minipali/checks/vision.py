"""Lesson 04: the MLP, and the pre-norm block of the vision tower."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minipali.attention import attend
from minipali.checks.engine import Exercise, Mistake


def encoder_layer(
    x: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    """The reference: (b, n, d) -> (b, n, d)."""
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


def _mlp_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(4)

    def case(b: int, n: int, d: int, hidden: int, spread: float, shift: float) -> tuple:
        return (
            torch.randn(b, n, d, generator=random),
            torch.randn(hidden, d, generator=random) * spread / d**0.5,
            torch.randn(hidden, generator=random) + shift,
            torch.randn(d, hidden, generator=random) * 3,
            torch.randn(d, generator=random),
        )

    # The second: hidden values around -2. GELU gives nearly 0 there, so the results are small, but
    # its two forms differ most, and a large second map makes that difference larger.
    return [case(2, 3, 5, 14, 2, 0), case(3, 4, 7, 11, 0.4, -2)]


def _layer_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(5)

    def case(b: int, n: int, d: int, hidden: int) -> tuple:
        def norm() -> Callable:
            weight = 1 + 0.5 * torch.randn(d, generator=random)
            shift = torch.randn(d, generator=random)
            return lambda x: F.layer_norm(x, (d,), weight, shift, 1e-2)

        query, key, value = torch.randn(3, d, d, generator=random) / d**0.5
        weights = (
            torch.randn(hidden, d, generator=random) / d**0.5,
            torch.randn(hidden, generator=random),
            torch.randn(d, hidden, generator=random) / hidden**0.5,
            torch.randn(d, generator=random),
        )
        return (
            torch.randn(b, n, d, generator=random) * 2 + 1,
            norm(),
            lambda x: attend(x @ query, x @ key, x @ value),
            norm(),
            lambda x: mlp(x, *weights),
        )

    return [case(2, 3, 5, 14), case(3, 4, 7, 11)]


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    activation: Callable[[Tensor], Tensor] = _gelu,
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with another activation."""
    return F.linear(activation(F.linear(x, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)


def _without_biases(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    return mlp(x, fc1_weight, 0 * fc1_bias, fc2_weight, 0 * fc2_bias)


def _activation_last(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    out = F.linear(F.linear(x, fc1_weight, fc1_bias), fc2_weight, fc2_bias)
    return _gelu(out)


def _bias_after_activation(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    hidden = _gelu(x @ fc1_weight.T) + fc1_bias
    return F.linear(hidden, fc2_weight, fc2_bias)


MLP = Exercise(
    name="mlp",
    reference=mlp,
    cases=_mlp_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches, widths 5 and 7, hidden widths 14 and 11, with"
        " weights that tell the tanh form of GELU from the erf form; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "erf form",
            partial(mlp, activation=F.gelu),
            "This is GELU in its erf form, which is torch's default. SigLIP was trained with the"
            ' tanh form: F.gelu(…, approximate="tanh"). The two differ by less than 0.0005 a'
            " value, so the model would still answer, but no number would agree with the published"
            " model.",
        ),
        Mistake(
            "quick GELU",
            partial(mlp, activation=lambda hidden: hidden * torch.sigmoid(1.702 * hidden)),
            "This is x · sigmoid(1.702 x), a third form of GELU, which CLIP uses. SigLIP uses the"
            ' tanh form: F.gelu(…, approximate="tanh").',
        ),
        Mistake(
            "ReLU",
            partial(mlp, activation=F.relu),
            "This is ReLU: everything below 0 is cut off. GELU is smooth and lets a little of the"
            ' negative values through: F.gelu(…, approximate="tanh").',
        ),
        Mistake(
            "no activation",
            partial(mlp, activation=lambda hidden: hidden),
            "There is nothing between the two linear maps, so together they are one linear map, and"
            " the wide middle is for nothing. Put the GELU between fc1 and fc2.",
        ),
        Mistake(
            "activation last",
            _activation_last,
            "The GELU comes after fc2. Between fc1 and fc2 nothing bends, so they are one linear"
            " map; and the block can hardly take anything away from the residual stream, because"
            " GELU never goes below -0.17.",
        ),
        Mistake(
            "biases missing",
            _without_biases,
            "The biases are missing. In SigLIP both maps have one (Gemma's maps have none).",
        ),
        Mistake(
            "bias after the activation",
            _bias_after_activation,
            "The first bias is added after the GELU. It belongs to the linear map, before the GELU:"
            " it decides where the bend lies.",
        ),
        Mistake(
            "residual inside",
            lambda x, *weights: x + mlp(x, *weights),
            "You added x to the result. That sum is right, but its place is the block"
            " (`encoder_layer`), which adds the MLP's result to the residual stream. With both, x"
            " would be added twice.",
        ),
    ),
    hints=(
        "Three steps: a linear map from d to the hidden width, a bend, a linear map back to d.",
        "A weight of a linear layer has the shape (outputs, inputs), and the map is x W^T + b:"
        " x @ weight.T + bias, or F.linear(x, weight, bias).",
        'F.gelu has two forms. The published weights need F.gelu(…, approximate="tanh").',
    ),
)


def post_norm(x, norm1, attention, norm2, mlp):
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


def _second_norm_after_mlp(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + norm2(mlp(x))


def _mlp_without_norm(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(x)


def no_residual_at_mlp(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return mlp(norm2(x))


def _norm1_twice(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm1(x))


def _normed_stream(x, norm1, attention, norm2, mlp):
    x = norm1(x)
    x = x + attention(x)
    x = norm2(x)
    return x + mlp(x)


def old_residual(x, norm1, attention, norm2, mlp):
    return x + mlp(norm2(x + attention(norm1(x))))


def parallel(x, norm1, attention, norm2, mlp):
    return x + attention(norm1(x)) + mlp(norm2(x))


ENCODER_LAYER = Exercise(
    name="encoder_layer",
    reference=encoder_layer,
    cases=_layer_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches, widths 5 and 7, with two different norms and a"
        " stream whose values are not normed; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "post-norm",
            post_norm,
            "This is the post-norm block of the first transformer (2017): it norms each sum. SigLIP"
            " is pre-norm: norm what attention and the MLP *read*, and leave the sum as it is.",
        ),
        Mistake(
            "second norm after the MLP",
            _second_norm_after_mlp,
            "The MLP reads the stream without a norm, and layer norm 2 comes after it. It belongs"
            " before the MLP: both norms come before the part they serve.",
        ),
        Mistake(
            "MLP without norm",
            _mlp_without_norm,
            "The MLP reads the stream as it is, and norm2 is never used. The stream has no fixed"
            " size: the MLP must read it through norm2.",
        ),
        Mistake(
            "no residual at the MLP",
            no_residual_at_mlp,
            "You return what the MLP gives, without the stream. It must be added: return x +"
            " mlp(norm2(x)).",
        ),
        Mistake(
            "norm1 twice",
            _norm1_twice,
            "norm1 is used twice and norm2 never. Each has its own trained weights: norm1 serves"
            " attention, norm2 the MLP.",
        ),
        Mistake(
            "normed stream",
            _normed_stream,
            "The norm went into the residual stream: after x = norm1(x) the x that you add is no"
            " longer what came in. Norm a copy: x = x + attention(norm1(x)).",
        ),
        Mistake(
            "old residual",
            old_residual,
            "The second sum starts from the x that came in, so what attention added is lost. After"
            " attention the stream is the new sum; the MLP's result is added to that.",
        ),
        Mistake(
            "parallel",
            parallel,
            "Attention and MLP both read the x that came in, side by side. Some models do that;"
            " SigLIP's MLP reads the stream after attention has added its part.",
        ),
    ),
    hints=(
        "Two steps of the same form: norm, compute, add to the stream.",
        "The stream itself is never normed. Only what attention and the MLP read is.",
        "The first step is x = x + attention(norm1(x)). The second has the same form and starts"
        " from this new x.",
    ),
)

EXERCISES = (MLP, ENCODER_LAYER)
