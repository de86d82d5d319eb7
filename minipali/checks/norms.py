"""Lesson 02: LayerNorm and its way back, RMSNorm with (1 + w), BatchNorm with its memory."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minipali import norms
from minipali.checks.engine import Exercise, Mistake

NORMS = (
    "layer_norm", "native_layer_norm", "rms_norm", "batch_norm", "native_batch_norm", "group_norm",
    "native_group_norm", "instance_norm", "normalize",
)  # fmt: skip


def _layer_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(3)

    def case(b: int, n: int, d: int, eps: float, size: float = 1.0) -> tuple:
        # Means far from 0, and another scale for each token, so that every statistic matters.
        scale = 1 + 2 * torch.rand(b, n, 1, generator=random)
        x = size * (scale * torch.randn(b, n, d, generator=random) + 1.5)
        return x, torch.randn(d, generator=random), torch.randn(d, generator=random), eps

    tiny = case(2, 3, 6, 0.25, size=0.001)
    tiny[0][1, 2] = 3.0  # its variance is 0
    # Whole numbers, and as many as a power of two: sums and means are exact, in whatever order. The
    # mean of the squares minus the square of the mean is 0.
    x = 16384 + torch.tensor([[[-3.0, -1, 1, 3], [2, -2, 6, -6]], [[5, 1, -1, -5], [-4, 0, 4, 0]]])
    return [
        case(2, 3, 5, 0.5),
        case(3, 4, 7, 2.0),
        tiny,
        (x, torch.tensor([1.5, -0.5, 2, 1]), torch.tensor([0.5, 1, -1, 2]), 0.5),
    ]


def _rms_cases() -> list[tuple]:
    cases = [(x, weight, eps) for x, weight, _bias, eps in _layer_cases()[:3]]
    cases[2][0][0, 1] = 0.0  # a token of zeros
    return cases


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
        case(1, 4, False, 0.1, 1.0),
    ]


def _by_root(variance: Tensor, eps: float) -> Tensor:
    return (variance + eps).sqrt()


def _root_then_eps(variance: Tensor, eps: float) -> Tensor:
    return variance.sqrt() + eps


def _no_root(variance: Tensor, eps: float) -> Tensor:
    return variance + eps


def _root_below(variance: Tensor, eps: float) -> Tensor:
    return 1 / (variance + eps).sqrt()


def _other_eps(eps: float) -> Callable[[Tensor, float], Tensor]:
    return lambda variance, _: (variance + eps).sqrt()


LEAST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "divisor": lambda squares, eps: squares.sqrt().clamp(min=eps),
    "variance": lambda squares, eps: squares.clamp(min=eps).sqrt(),
}


def _guarded(squares: Tensor, eps: float) -> Tensor:
    return torch.where(squares == 0, 1.0, squares.sqrt())


GUARDED = (
    "eps is not used, or it is another one, next to nothing: only {} is spared 0 / 0. The eps that"
    " is given is added for every token: sqrt({} + eps)."
)
ROOT_FIRST = (
    "The root of each square is taken before the mean, so you divide by the mean of the absolute"
    " {}. First the mean, then one root: sqrt({} + eps)."
)
NORMED_TWICE = (
    "The tokens are normalised twice. With an eps that is not tiny the second time changes them"
    " again: once is what is asked for."
)

# The mean of the absolute values in place of the root of the mean of the squares.
ABSOLUTE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "plus eps": _no_root,
    "its square plus eps": lambda sizes, eps: (sizes.square() + eps).sqrt(),
    "eps as its least": lambda sizes, eps: sizes.clamp(min=eps),
    "zeros guarded": lambda sizes, eps: torch.where(sizes == 0, 1.0, sizes),
}

EPS_TWICE = "eps is added twice, inside the root and outside. Inside alone: sqrt(... + eps)."
ROOT_TWICE = "The root is taken twice. Once: sqrt(... + eps)."


def _eps_twice(variance: Tensor, eps: float) -> Tensor:
    return (variance + eps).sqrt() + eps


ROOTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "eps inside": lambda variance, eps: (variance + eps).sqrt().sqrt(),
    "eps between": lambda variance, eps: (variance.sqrt() + eps).sqrt(),
}

EPS_SENTENCE = (
    "Your eps is outside the root. It belongs inside: sqrt(variance + eps). With the usual eps of"
    " 0.000001 you would not notice, except where the variance is tiny."
)
RMS_EPS_SENTENCE = (
    "Your eps is outside the root. It belongs inside: sqrt(mean of the squares + eps). With the"
    " usual eps of 0.000001 you would not notice, except where the numbers are tiny."
)
EPS_MISSING = (
    "eps is missing, or it is not the one that was given. It is an argument: it keeps a token whose"
    " numbers are all the same from giving 0 / 0."
)
EPS_MISSING_OF_FEATURES = (
    "eps is missing, or it is not the one that was given. It is an argument: it keeps a feature"
    " whose variance is 0 from giving 0 / 0."
)
RMS_EPS_MISSING = (
    "eps is missing, or it is not the one that was given. It is an argument: it keeps a token of"
    " zeros from giving 0 / 0, which is nan."
)
NO_ROOT = (
    "You divide by the variance itself. Its root is missing, so a token that is ten times as large"
    " comes out ten times as small."
)
MULTIPLIED = "You multiply by the root. Divide by it: large tokens are to become smaller."
NO_KEEPDIM = (
    "The averaged axis is gone, so torch lays the tokens' means along the wrong axis. Keep it with"
    " length 1: x.mean(dim=-1, keepdim=True)."
)


def _layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    axes: int | tuple = -1,
    correction: int = 0,
    subtract: bool = True,
    about_mean: bool = True,
    absolute: bool = False,
    root_first: bool = False,
    counts: tuple[int, int] = (2, 2),
    total: bool = False,
    cancelling: bool = False,
    divisor: Callable = _by_root,
    factor: Callable[[Tensor], Tensor] = lambda weight: weight,
    biases: float = 1.0,
    bias_first: bool = False,
    bias_divided: bool = False,
    mean_late: str = "",
    keepdim: bool = True,
    before: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, weight, bias: x,
) -> Tensor:
    """layer_norm with one thing changed.

    counts: the axes whose lengths the sums of the mean and of the variance are divided by.
    mean_late: the mean is subtracted after the division, or at the "end".
    """
    x = before(x, weight, bias)
    mean = x.mean(dim=axes, keepdim=keepdim) * (x.shape[2] / x.shape[counts[0]])
    variance = x.var(dim=axes, correction=correction, keepdim=keepdim)
    if counts[0] != 2:
        variance = (x - mean).square().mean(dim=axes, keepdim=keepdim)
    variance = variance * (x.shape[2] / x.shape[counts[1]])
    squares = x.square().mean(dim=axes, keepdim=keepdim)
    if cancelling:
        variance = squares - mean.square()
    if not about_mean:
        variance = squares
    if absolute:
        variance = (x - mean).abs().mean(dim=axes, keepdim=keepdim)
    if total:
        variance = variance * x.shape[-1]
    by = divisor(variance, eps)
    if root_first:
        by = ((x - mean).square() + eps).sqrt().mean(dim=axes, keepdim=keepdim)
    normal = (x - mean if subtract and not mean_late else x) / by
    if mean_late == "after the division":
        normal = normal - mean
    if bias_divided:
        biases = biases / divisor(variance, eps)
    if bias_first:
        return (normal + biases * bias) * factor(weight)
    late = mean if mean_late == "end" else 0.0
    return normal * factor(weight) + biases * bias - late


LAYER_NORM = Exercise(
    name="layer_norm",
    reference=norms.layer_norm,
    cases=_layer_cases,
    axes="b n d",
    banned=NORMS,
    checked=(
        "shape, dtype and every value on 4 batches, widths 4 to 7, eps 0.25 to 2: ordinary numbers,"
        " tiny ones with a token of variance 0, and a mean that is thousands of times the spread;"
        " inputs unchanged"
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
        *(
            Mistake(f"eps {eps}", partial(_layer_norm, divisor=_other_eps(eps)), EPS_MISSING)
            for eps in (0.0, 1e-8, 1e-6, 1e-5, 1e-3)
        ),
        Mistake(
            "eps as a guard alone",
            partial(_layer_norm, divisor=_guarded),
            GUARDED.format("a token whose numbers are all the same", "variance"),
        ),
        Mistake(
            "root before the mean",
            partial(_layer_norm, root_first=True),
            ROOT_FIRST.format("distances", "variance"),
        ),
        *(
            Mistake(f"twice, {name}", wrong, NORMED_TWICE)
            for name, wrong in {
                "weight once": lambda x, weight, bias, eps: _layer_norm(
                    _layer_norm(x, torch.ones_like(weight), torch.zeros_like(bias), eps),
                    weight,
                    bias,
                    eps,
                ),
                "weight twice": lambda x, *given: _layer_norm(_layer_norm(x, *given), *given),
            }.items()
        ),
        Mistake(
            "eps squared",
            partial(_layer_norm, divisor=lambda variance, eps: (variance + eps**2).sqrt()),
            "eps is squared. Add it to the variance as it is: sqrt(variance + eps).",
        ),
        *(
            Mistake(
                f"eps as least {what}",
                partial(_layer_norm, divisor=divisor),
                "You use eps as the least divisor, with clamp or max. Here it is added to the"
                " variance, inside the root.",
            )
            for what, divisor in LEAST.items()
        ),
        Mistake(
            "sum of squares",
            partial(_layer_norm, total=True),
            "The squared distances are added up and not divided by d. The variance is their mean.",
        ),
        *(
            Mistake(
                f"{what} divided by the length of axis {counts[1]}",
                partial(_layer_norm, counts=counts),
                f"A sum over the features is divided by the number of {of}. There are d features:"
                " take .mean(dim=-1), or divide by x.shape[-1].",
            )
            for what, counts, of in (
                ("variance", (2, 1), "tokens, n"),
                ("mean and variance", (1, 1), "tokens, n"),
                ("mean", (1, 2), "tokens, n"),
                ("variance", (2, 0), "examples, b"),
            )
        ),
        *(
            Mistake(
                f"absolute distances, {name}",
                partial(_layer_norm, absolute=True, divisor=divisor),
                "You divide by the mean distance from the mean. The standard deviation squares the"
                " distances, takes their mean, and then the root.",
            )
            for name, divisor in ABSOLUTE.items()
        ),
        Mistake("no root", partial(_layer_norm, divisor=_no_root), NO_ROOT),
        Mistake("eps twice", partial(_layer_norm, divisor=_eps_twice), EPS_TWICE),
        *(
            Mistake(f"root twice, {how}", partial(_layer_norm, divisor=divisor), ROOT_TWICE)
            for how, divisor in ROOTS.items()
        ),
        Mistake("multiplied", partial(_layer_norm, divisor=_root_below), MULTIPLIED),
        Mistake(
            "not divided",
            partial(_layer_norm, divisor=lambda variance, eps: 1.0),
            "You subtract the mean and do not divide. After it each token is divided by"
            " sqrt(variance + eps).",
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
            "over batch and tokens",
            partial(_layer_norm, axes=(0, 1)),
            "Your averages run over the batch and the tokens: one mean for each feature, as"
            " BatchNorm has it. LayerNorm averages over the features of one token: dim=-1.",
        ),
        Mistake(
            "over tokens and features",
            partial(_layer_norm, axes=(1, 2)),
            "You took one mean and one variance for a whole picture, all its tokens together. Each"
            " token has its own: dim=-1 alone.",
        ),
        Mistake(
            "over everything",
            partial(_layer_norm, axes=(0, 1, 2)),
            "You took one mean and one variance for the whole tensor: x.mean() without an axis"
            " averages over everything. Each token has its own: dim=-1, keepdim=True.",
        ),
        Mistake(
            "mean not subtracted",
            partial(_layer_norm, subtract=False, about_mean=False),
            "The mean is still there: you divide by the root mean square, as RMSNorm does."
            " LayerNorm first subtracts the mean of each token.",
        ),
        Mistake(
            "divided only",
            partial(_layer_norm, subtract=False),
            "You divide by the standard deviation, but the mean is still there. Subtract it first:"
            " (x - mean) / sqrt(variance + eps).",
        ),
        *(
            Mistake(
                f"mean subtracted {when}",
                partial(_layer_norm, mean_late=when),
                "The mean is subtracted after the division, so it is not divided with the rest."
                " Subtract first: (x - mean) / sqrt(variance + eps).",
            )
            for when in ("after the division", "end")
        ),
        Mistake(
            "squares of x",
            partial(_layer_norm, about_mean=False),
            "You subtract the mean, but you divide by the root mean square of x as it came in. The"
            " variance is the mean of the squared distances from the mean.",
        ),
        Mistake(
            "cancelling",
            partial(_layer_norm, cancelling=True),
            "Your variance is the mean of the squares minus the square of the mean. On paper that"
            " is right. In 32-bit numbers two huge squares lose the small difference between them:"
            " subtract the mean first, then square.",
        ),
        Mistake(
            "1 + weight",
            partial(_layer_norm, factor=lambda weight: 1 + weight),
            "You multiply by 1 + weight. That is how Gemma stores the weights of its RMSNorm."
            " LayerNorm's weight is the factor itself.",
        ),
        Mistake(
            "weight missing",
            partial(_layer_norm, factor=torch.ones_like),
            "The weight is missing: multiply the normalised token by it.",
        ),
        Mistake(
            "bias missing",
            partial(_layer_norm, biases=0.0),
            "The bias is missing: add it at the end.",
        ),
        Mistake(
            "bias subtracted",
            partial(_layer_norm, biases=-1.0),
            "The bias is subtracted. It is to be added.",
        ),
        Mistake(
            "bias divided",
            partial(_layer_norm, bias_divided=True),
            "The bias is divided by the standard deviation, too. It comes last: divide first, then"
            " times the weight, then plus the bias.",
        ),
        Mistake(
            "weight and bias before the norm",
            partial(
                _layer_norm,
                before=lambda x, weight, bias: x * weight + bias,
                factor=torch.ones_like,
                biases=0.0,
            ),
            "You multiply by the weight and add the bias before you normalise. Normalise x itself;"
            " weight and bias come last.",
        ),
        Mistake(
            "weight before the norm",
            partial(_layer_norm, before=lambda x, weight, bias: x * weight, factor=torch.ones_like),
            "You multiply by the weight before you normalise, so mean and variance are those of the"
            " product. Normalise x itself, then multiply.",
        ),
        Mistake(
            "bias first",
            partial(_layer_norm, bias_first=True),
            "The bias is added before the weight multiplies. The weight multiplies the normalised"
            " token alone; the bias comes last.",
        ),
    ),
    crashes=(Mistake("no keepdim", partial(_layer_norm, keepdim=False), NO_KEEPDIM),),
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
    axis: int | tuple = -1,
    subtract: bool = False,
    plus: Callable[[Tensor, Tensor], Tensor] = lambda normal, weight: normal * (1 + weight),
    measure: Callable[[Tensor], Tensor] = torch.square,
    root_first: bool = False,
    total: bool = False,
    divisor: Callable = _by_root,
    squared_mean: bool = False,
    correction: int = 0,
    about_mean: bool = False,
    keepdim: bool = True,
    before: Callable[[Tensor, Tensor], Tensor] = lambda x, weight: x,
    of_eps: Callable[[float, int], float] = lambda eps, d: eps,
    over_d: bool = False,
    count: int = 2,
    raw: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with one thing changed.

    over_d: divided by d once more; count: the axis whose length the sum is divided by; raw: how
    much of the 1 and of the weight multiplies x as it came in.
    """
    x = before(x, weight)
    centred = x - x.mean(dim=axis, keepdim=True)
    squares = measure(centred if about_mean else x)
    squares = (squares.sum if total else squares.mean)(dim=axis, keepdim=keepdim)
    squares = squares * (x.shape[-1] / (x.shape[count] - correction))
    if over_d:
        squares = squares / x.shape[-1]
    if squared_mean:
        squares = x.mean(dim=axis, keepdim=True).square()
    eps = of_eps(eps, x.shape[-1])
    by = divisor(squares, eps)
    if root_first:
        by = (x.square() + eps).sqrt().mean(dim=axis, keepdim=keepdim)
    normal = (centred if subtract else x) / by
    one, other = raw
    return plus(normal, weight) + (x - normal) * (one + other * weight)


RMS_NORM = Exercise(
    name="rms_norm",
    reference=rms_norm,
    cases=_rms_cases,
    axes="b n d",
    banned=NORMS,
    checked=(
        "shape, dtype and every value on 3 batches, widths 5 to 7, eps 0.25 to 2, means far from 0,"
        " ordinary and tiny numbers, and a token of zeros; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "weight without the 1",
            partial(rms_norm, plus=torch.mul),
            "You multiply by weight. Gemma stores the factor minus one, so that a weight of 0"
            " changes nothing: multiply by 1 + weight.",
        ),
        Mistake(
            "weight missing",
            partial(rms_norm, plus=lambda normal, weight: normal),
            "The weight is missing: multiply by 1 + weight at the end.",
        ),
        Mistake(
            "1 added to the result",
            partial(rms_norm, plus=lambda normal, weight: normal * weight + 1),
            "The 1 is added to the result. It belongs to the weight: times (1 + weight).",
        ),
        *(
            Mistake(
                f"{what} times x itself",
                partial(rms_norm, raw=raw),
                f"Of the factor 1 + weight the {what} multiplies x as it came in. Both multiply the"
                " divided x: (x / root) * (1 + weight).",
            )
            for what, raw in (("weight", (0.0, 1.0)), ("1", (1.0, 0.0)))
        ),
        Mistake(
            "weight added",
            partial(rms_norm, plus=lambda normal, weight: normal + 1 + weight),
            "1 + weight is added. Multiply by it.",
        ),
        Mistake(
            "weight as bias",
            partial(rms_norm, plus=torch.add),
            "The weight is added. Multiply by 1 + weight.",
        ),
        Mistake(
            "1 - weight",
            partial(rms_norm, plus=lambda normal, weight: normal * (1 - weight)),
            "You multiply by 1 - weight. The factor is 1 + weight.",
        ),
        Mistake(
            "mean subtracted",
            partial(rms_norm, subtract=True, about_mean=True),
            "You subtract the mean, as LayerNorm does. RMSNorm leaves the mean where it is: divide"
            " x itself by the root of the mean of its squares.",
        ),
        Mistake(
            "mean subtracted above only",
            partial(rms_norm, subtract=True),
            "You divide by the root mean square, but you subtract the mean from x. RMSNorm leaves"
            " the mean where it is.",
        ),
        Mistake(
            "variance for the squares",
            partial(rms_norm, about_mean=True),
            "You divide by the standard deviation, which measures distances from the mean. RMSNorm"
            " measures distances from 0: the mean of x squared.",
        ),
        Mistake(
            "unbiased variance for the squares",
            partial(rms_norm, about_mean=True, correction=1),
            "You divide by torch's x.std() or the root of x.var(), which measure distances from the"
            " mean and divide by d - 1. RMSNorm measures distances from 0: the mean of x squared.",
        ),
        Mistake(
            "divided by d - 1",
            partial(rms_norm, correction=1),
            "The sum of the squares is divided by d - 1. Their mean divides by d.",
        ),
        Mistake(
            "eps squared",
            partial(rms_norm, divisor=lambda squares, eps: (squares + eps**2).sqrt()),
            "eps is squared. Add it to the mean of the squares as it is.",
        ),
        *(
            Mistake(
                f"eps as least {what}",
                partial(rms_norm, divisor=divisor),
                "You use eps as the least divisor, as F.normalize does. Here it is added to the"
                " mean of the squares, inside the root.",
            )
            for what, divisor in LEAST.items()
        ),
        Mistake(
            "eps divided by d",
            partial(rms_norm, of_eps=lambda eps, d: eps / d),
            "eps is added to the sum of the squares, so it is divided by d with them. Add it to"
            " their mean.",
        ),
        Mistake(
            "factor before the norm",
            partial(
                rms_norm,
                before=lambda x, weight: x * (1 + weight),
                plus=lambda normal, weight: normal,
            ),
            "You multiply by 1 + weight before you take the mean of the squares, so you divide by"
            " the root mean square of the product. Divide x by its own, then multiply.",
        ),
        Mistake(
            "weight before the norm",
            partial(
                rms_norm,
                before=lambda x, weight: x * weight,
                plus=lambda normal, weight: normal,
            ),
            "You multiply by the weight, and before you take the mean of the squares. Divide x by"
            " its own root mean square first, then multiply by 1 + weight.",
        ),
        Mistake(
            "divided by 1 + weight",
            partial(rms_norm, plus=lambda normal, weight: normal / (1 + weight)),
            "You divide by 1 + weight. Multiply by it.",
        ),
        Mistake(
            "square of the mean",
            partial(rms_norm, squared_mean=True),
            "You take the mean first and square it. Square each number first, then take the mean:"
            " x.square().mean(...).",
        ),
        *(
            Mistake(
                f"absolute values, {name}",
                partial(rms_norm, measure=torch.abs, divisor=divisor),
                "You divide by the mean of the absolute values. Square them, take the mean, take"
                " its root.",
            )
            for name, divisor in ABSOLUTE.items()
        ),
        *(
            Mistake(
                f"length divided by d, {name}",
                partial(rms_norm, divisor=divisor, of_eps=of_eps, over_d=True),
                "You divide by the length of the vector over d. The mean is taken inside the root,"
                " so the length is divided by the root of d: sqrt(sum of the squares / d + eps).",
            )
            for name, divisor, of_eps in (
                ("eps inside", _by_root, lambda eps, d: eps),
                ("eps divided too", _by_root, lambda eps, d: eps / d**2),
                ("eps outside", _root_then_eps, lambda eps, d: eps),
            )
        ),
        *(
            Mistake(
                f"mean over the length of axis {axis}",
                partial(rms_norm, count=axis),
                f"The sum of a token's squares is divided by the number of {of}. There are d"
                " features: take .mean(dim=-1), or divide by x.shape[-1].",
            )
            for axis, of in ((1, "tokens, n"), (0, "examples, b"))
        ),
        Mistake(
            "not squared",
            partial(rms_norm, measure=torch.abs),
            "The numbers are not squared before the mean is taken. Root, mean, square, read from"
            " the right: square first.",
        ),
        Mistake(
            "eps outside the root", partial(rms_norm, divisor=_root_then_eps), RMS_EPS_SENTENCE
        ),
        *(
            Mistake(f"eps {eps}", partial(rms_norm, divisor=_other_eps(eps)), RMS_EPS_MISSING)
            for eps in (0.0, 1e-8, 1e-6, 1e-5, 1e-3)
        ),
        Mistake(
            "eps as a guard alone",
            partial(rms_norm, divisor=_guarded),
            GUARDED.format("a token of zeros", "mean of the squares"),
        ),
        Mistake(
            "root before the mean",
            partial(rms_norm, root_first=True),
            ROOT_FIRST.format("values", "mean of the squares"),
        ),
        *(
            Mistake(f"twice, {name}", wrong, NORMED_TWICE)
            for name, wrong in {
                "weight once": lambda x, weight, eps: rms_norm(
                    rms_norm(x, torch.zeros_like(weight), eps), weight, eps
                ),
                "weight twice": lambda x, *given: rms_norm(rms_norm(x, *given), *given),
            }.items()
        ),
        Mistake("eps twice", partial(rms_norm, divisor=_eps_twice), EPS_TWICE),
        *(
            Mistake(f"root twice, {how}", partial(rms_norm, divisor=divisor), ROOT_TWICE)
            for how, divisor in ROOTS.items()
        ),
        Mistake("multiplied", partial(rms_norm, divisor=_root_below), MULTIPLIED),
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
            "over the batch",
            partial(rms_norm, axis=0),
            "Your average runs over the batch. RMSNorm treats each token alone and averages over"
            " its features, the last axis: dim=-1.",
        ),
        Mistake(
            "over tokens and features",
            partial(rms_norm, axis=(1, 2)),
            "You took one mean for a whole picture, all its tokens together. Each token has its"
            " own: dim=-1 alone.",
        ),
        Mistake(
            "over everything",
            partial(rms_norm, axis=(0, 1, 2)),
            "You took one mean for the whole tensor. Each token has its own: dim=-1, keepdim=True.",
        ),
        Mistake(
            "no root",
            partial(rms_norm, divisor=_no_root),
            "You divide by the mean square itself. Its root is missing, so a token that is ten"
            " times as large comes out ten times as small.",
        ),
    ),
    crashes=(Mistake("no keepdim", partial(rms_norm, keepdim=False), NO_KEEPDIM),),
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
    about: str = "",
    spread: Callable[[Tensor], Tensor] = lambda variance: variance,
    kept: Callable[[Tensor, int, float], Tensor] = lambda variance, b, eps: variance,
    mixed_as: Callable[[Tensor], Tensor] = lambda variance: variance,
    unmixed: Callable[[Tensor], Tensor] = lambda variance: variance,
    divisor: Callable = _by_root,
    divisor_in_eval: Callable | None = None,
    in_training: str = "batch",
    in_eval: str = "memory",
    remember_in_training: bool = True,
    remember_in_eval: bool = False,
    turned: bool = False,
    old_share: Callable[[float], float] = lambda momentum: 1 - momentum,
    new_share: Callable[[float], float] = lambda momentum: momentum,
    scaled_in_training: bool = True,
    scaled_in_eval: bool = True,
    factor: Callable[[Tensor], Tensor] = lambda weight: weight,
    biases: float = 1.0,
    subtract: bool = True,
    order: tuple[int, int, int] = (0, 1, 2),
    var_moves: bool = True,
    mean_moves: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (b, d) and the new running mean and variance, (d,) each.

    The reference, or with one thing changed. about: the memory's variance is taken around the
    "new" or the "old" running mean; kept: what is made of it, by b and eps; mixed_as, unmixed: what
    old and new variance are made before they are mixed, and the sum after it.
    """
    training = training != turned
    of_batch = x.mean(dim=axes), ((x - x.mean(dim=axes)).square()).mean(dim=axes)
    count = x.numel() if isinstance(axes, tuple) else len(x)

    def variance(correction: int) -> Tensor:
        # Of one example the unbiased one is 0 / 0.
        share = count / (count - correction) if count > correction else float("nan")
        return of_batch[1] * share

    old, moved = (running_mean, running_var), (running_mean, running_var)
    if remember_in_training if training else remember_in_eval:
        one, other = old_share(momentum), new_share(momentum)
        new_mean = one * running_mean + other * of_batch[0] if mean_moves else running_mean
        new_var = variance(remembered)
        if about:
            centre = new_mean if about == "new" else running_mean
            new_var = (x - centre).square().sum(dim=0) / (count - remembered)
        new_var = kept(new_var, count, eps)
        mixed = unmixed(one * mixed_as(running_var) + other * mixed_as(spread(new_var)))
        moved = new_mean, mixed if var_moves else running_var
    used = {"batch": (of_batch[0], variance(correction)), "memory": old, "new": moved}
    mean, own = used[in_training if training else in_eval]
    by = divisor if training or divisor_in_eval is None else divisor_in_eval
    y = (x - mean if subtract else x) / by(own, eps)
    if scaled_in_training if training else scaled_in_eval:
        y = y * factor(weight) + biases * bias
    result = y, *moved
    return tuple(result[place] for place in order)


def _over_the_features(x, weight, bias, running_mean, running_var, training, momentum, eps):
    given = x, weight, bias, running_mean, running_var, training, momentum, eps
    y, *memory = batch_norm(*given)
    return norms.layer_norm(x, weight, bias, eps) if training else y, *memory


BATCH_NORM = Exercise(
    name="batch_norm",
    reference=batch_norm,
    cases=_batch_cases,
    axes="b d; d; d",
    parts=("y", "running_mean", "running_var"),
    banned=NORMS,
    checked=(
        "output, new running mean and new running variance in two training steps (batches of 3 and"
        " 2) and twice in eval mode (batches of 3 and 1), momentum 0.1 and 0.3, eps 0.5 and 1;"
        " inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "batch statistics in eval mode",
            partial(batch_norm, in_eval="batch", remember_in_eval=True),
            "In eval mode you do what belongs to training: you use the statistics of the batch, and"
            " the memory moves. An answer would then depend on which other examples came with it."
            " When training is False, use running_mean and running_var, and return them as they"
            " came.",
        ),
        Mistake(
            "batch statistics in eval mode, memory left alone",
            partial(batch_norm, in_eval="batch"),
            "In eval mode the output still uses the statistics of the batch. An answer would then"
            " depend on which other examples came with it: use running_mean and running_var when"
            " training is False.",
        ),
        Mistake(
            "memory changes in eval mode",
            partial(batch_norm, remember_in_eval=True),
            "The memory changes in eval mode. When training is False, return running_mean and"
            " running_var as they came.",
        ),
        Mistake(
            "training the other way round",
            partial(batch_norm, turned=True),
            "Training and eval mode are exchanged: you use the batch and move the memory when"
            " training is False.",
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
            "The memory gets the biased variance. It is to be an estimate for all data, so it gets"
            " the unbiased one: x.var(dim=0, correction=1).",
        ),
        Mistake(
            "memory used in training",
            partial(batch_norm, in_training="memory"),
            "In training you normalise with the running statistics. There they are only kept for"
            " later; a training step uses the mean and variance of its own batch.",
        ),
        Mistake(
            "new memory used in training",
            partial(batch_norm, in_training="new"),
            "In training you normalise with the new memory, just moved. There the memory is only"
            " kept for later; a training step uses the mean and variance of its own batch.",
        ),
        Mistake(
            "momentum the other way round",
            partial(
                batch_norm,
                old_share=lambda momentum: momentum,
                new_share=lambda momentum: 1 - momentum,
            ),
            "Your momentum works the other way round. In torch it is the share of the *new* batch:"
            " (1 - momentum) * old + momentum * new.",
        ),
        Mistake(
            "old memory does not shrink",
            partial(batch_norm, old_share=lambda momentum: 1.0),
            "The batch's share is added, but the old memory keeps its full size, so the memory"
            " grows with every step: (1 - momentum) * old + momentum * new.",
        ),
        Mistake(
            "memory is the last batch",
            partial(batch_norm, old_share=lambda momentum: 0.0, new_share=lambda momentum: 1.0),
            "The new memory is the last batch alone; what was remembered is gone. Move it by the"
            " share `momentum`: (1 - momentum) * old + momentum * new.",
        ),
        Mistake(
            "half and half",
            partial(batch_norm, old_share=lambda momentum: 0.5, new_share=lambda momentum: 0.5),
            "The memory gets half of the old and half of the new. The batch's share is `momentum`.",
        ),
        Mistake(
            "momentum fixed",
            partial(batch_norm, old_share=lambda momentum: 0.9, new_share=lambda momentum: 0.1),
            "The share of the new batch is fixed at 0.1. It is an argument: `momentum`.",
        ),
        Mistake(
            "memory never moves",
            partial(batch_norm, remember_in_training=False),
            "The memory does not move in training. It goes by the share `momentum` towards the"
            " batch: (1 - momentum) * old + momentum * new.",
        ),
        Mistake(
            "variance never moves",
            partial(batch_norm, var_moves=False),
            "The running mean moves, the running variance does not. Both belong to the memory.",
        ),
        Mistake(
            "mean never moves",
            partial(batch_norm, mean_moves=False),
            "The running variance moves, the running mean does not. Both belong to the memory.",
        ),
        Mistake(
            "standard deviation in the memory",
            partial(batch_norm, spread=torch.sqrt),
            "The memory of the variance moves towards the standard deviation. It keeps the variance"
            " itself, without the root.",
        ),
        *(
            Mistake(
                f"eps in the memory {name}",
                partial(batch_norm, kept=kept),
                "eps is added to the variance that goes into the memory. It belongs only to the"
                " output, under the root.",
            )
            for name, kept in (
                ("once", lambda variance, b, eps: variance + eps),
                ("corrected too", lambda variance, b, eps: variance + eps * b / (b - 1)),
            )
        ),
        *(
            Mistake(f"memory's variance {name}", partial(batch_norm, kept=kept), says)
            for name, kept, says in (
                (
                    "corrected the wrong way",
                    lambda variance, b, eps: variance * ((b - 1) / b) ** 2,
                    "The memory's variance is multiplied by (b - 1) / b. From the one that divides"
                    " by b to the unbiased one the factor is b / (b - 1).",
                ),
                (
                    "corrected twice",
                    lambda variance, b, eps: variance * b / (b - 1),
                    "The memory's variance is corrected twice: times b / (b - 1), and torch's var()"
                    " divides by b - 1 already.",
                ),
                (
                    "a sum",
                    lambda variance, b, eps: variance * (b - 1),
                    "The squared distances are added up for the memory and not divided. Divide"
                    " their sum by b - 1.",
                ),
            )
        ),
        Mistake(
            "standard deviations mixed",
            partial(batch_norm, mixed_as=torch.sqrt, unmixed=torch.square),
            "Old and new standard deviation are mixed, and the sum is squared. Mix the variances"
            " themselves: (1 - momentum) * old + momentum * new.",
        ),
        *(
            Mistake(
                f"variance around the {which} memory",
                partial(batch_norm, about=which),
                f"The memory's variance is measured around the {which} running mean. It is the"
                " variance of the batch, around the batch's own mean.",
            )
            for which in ("new", "old")
        ),
        Mistake(
            "variance before mean",
            partial(batch_norm, order=(0, 2, 1)),
            "Running mean and running variance are exchanged in what you return: y, then the mean,"
            " then the variance.",
        ),
        Mistake(
            "output last",
            partial(batch_norm, order=(1, 2, 0)),
            "The output comes last in what you return. Return y, the running mean, the running"
            " variance.",
        ),
        Mistake(
            "no weight and bias in eval mode",
            partial(batch_norm, scaled_in_eval=False),
            "In eval mode the weight and the bias are missing. Both modes end the same way: times"
            " the weight, plus the bias.",
        ),
        Mistake(
            "no weight and bias in training",
            partial(batch_norm, scaled_in_training=False),
            "In training the weight and the bias are missing. Both modes end the same way: times"
            " the weight, plus the bias.",
        ),
        Mistake(
            "no weight and bias",
            partial(batch_norm, scaled_in_eval=False, scaled_in_training=False),
            "The weight and the bias are missing: times the weight, plus the bias.",
        ),
        Mistake(
            "weight missing",
            partial(batch_norm, factor=torch.ones_like),
            "The weight is missing: multiply the normalised features by it.",
        ),
        Mistake(
            "1 + weight",
            partial(batch_norm, factor=lambda weight: 1 + weight),
            "You multiply by 1 + weight. That is how Gemma stores the weights of its RMSNorm."
            " BatchNorm's weight is the factor itself.",
        ),
        Mistake(
            "bias missing",
            partial(batch_norm, biases=0.0),
            "The bias is missing: add it at the end.",
        ),
        Mistake(
            "mean not subtracted",
            partial(batch_norm, subtract=False),
            "The mean is still there: you only divide. Subtract it first.",
        ),
        Mistake(
            "over everything",
            partial(batch_norm, axes=(0, 1)),
            "You took one mean and one variance for the whole batch: x.mean() without an axis"
            " averages over everything. Each feature has its own: dim=0.",
        ),
        Mistake(
            "over the features",
            _over_the_features,
            "Your averages run over the features of one example, as LayerNorm's do. BatchNorm"
            " averages each feature over the batch: dim=0.",
        ),
        Mistake(
            "memory moves away",
            partial(
                batch_norm,
                old_share=lambda momentum: 1.0,
                new_share=lambda momentum: -momentum,
            ),
            "The batch's share is subtracted from the memory. The memory moves towards the batch:"
            " (1 - momentum) * old + momentum * new.",
        ),
        Mistake("eps outside the root", partial(batch_norm, divisor=_root_then_eps), EPS_SENTENCE),
        *(
            Mistake(
                f"eps {eps}", partial(batch_norm, divisor=_other_eps(eps)), EPS_MISSING_OF_FEATURES
            )
            for eps in (0.0, 1e-3)
        ),
        Mistake(
            "eps missing in training",
            partial(batch_norm, divisor=_other_eps(0.0), divisor_in_eval=_by_root),
            "eps is missing in training, or it is not the one that was given. Both modes divide by"
            " sqrt(variance + eps).",
        ),
        Mistake(
            "eps missing in eval mode",
            partial(batch_norm, divisor_in_eval=_other_eps(0.0)),
            "eps is missing in eval mode, or it is not the one that was given. Both modes divide by"
            " sqrt(variance + eps).",
        ),
        Mistake(
            "no root",
            partial(batch_norm, divisor=_no_root),
            "You divide by the variance itself. Its root is missing.",
        ),
        Mistake(
            "root missing in eval mode",
            partial(batch_norm, divisor_in_eval=_no_root),
            "In eval mode you divide by the running variance itself. Its root is missing.",
        ),
        Mistake(
            "memory's root added to eps in eval mode",
            partial(batch_norm, divisor_in_eval=_root_then_eps),
            "In eval mode your eps is outside the root. It belongs inside: sqrt(variance + eps).",
        ),
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


def _without_eps(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / centred.square().mean(dim=-1, keepdim=True).sqrt()


def layer_norm_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    mean_term: float = 1.0,
    scale_term: float = 1.0,
    of_mean: Callable[[Tensor], Tensor] = lambda each: each.mean(dim=-1, keepdim=True),
    of_scale: Callable[[Tensor], Tensor] = lambda each: each.mean(dim=-1, keepdim=True),
    unweighted: tuple[str, ...] = (),
    shape: tuple[str, str] = ("normal", "normal"),
    keepdim: bool = True,
    weighted: str = "first",
    divisor: Callable[[Tensor], Tensor] = torch.sqrt,
    correction: int = 0,
    eps_inside: Callable[[Tensor, float], Tensor] = torch.add,
    of_weight: Callable[[Tensor, Tensor], Tensor] = lambda x, normal: normal,
    weight_again: bool = False,
    bias_weighted: bool = False,
    over: Callable[[Tensor], Tensor] = lambda each: each.sum(dim=(0, 1)),
    order: tuple[int, int, int] = (0, 1, 2),
    cancelling: bool = False,
    last_eps: float = 1.0,
    uncentred: bool = False,
    forced: bool = False,
    factor: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (b, n, d), weight (d,), bias (d,). The reference, or with one thing changed.

    Not by autograd, which the exercise bans; a test holds it against autograd.
    """
    centred = x - x.mean(dim=-1, keepdim=keepdim)
    variance = x.var(dim=-1, correction=correction, keepdim=True)
    if cancelling:
        squares = x.square().mean(dim=-1, keepdim=True)
        variance = squares - x.mean(dim=-1, keepdim=True).square()
    square = eps_inside(variance, eps)
    normal = centred / square.sqrt()
    inner = gradient * factor(weight) if weighted == "first" else gradient
    exact = _without_eps(x)
    named = {"normal": normal, "centred": centred, "x": x, "1": 1.0, "exact": exact}
    named["exact, and without eps below"] = exact * (square / variance).sqrt()
    named["normal, divided again"] = normal / square.sqrt()
    outside, inside = (named[name] for name in shape)
    of_each = {name: gradient if name in unweighted else inner for name in ("mean", "scale")}
    through_scale = outside * of_scale(of_each["scale"] * inside)
    if uncentred:
        shared = of_scale(inner * x) - x.mean(dim=-1, keepdim=True) * of_scale(inner)
        through_scale = centred * shared / square
    back = inner - mean_term * of_mean(of_each["mean"]) - scale_term * through_scale
    of_x = back / divisor(square + (last_eps - 1) * eps)
    if weighted == "last":
        of_x = of_x * weight
    if forced:
        direct = (inner / square.sqrt())[..., :-1]
        of_x = torch.cat([direct, -direct.sum(dim=-1, keepdim=True)], dim=-1)
    share = gradient * of_weight(x, normal)
    result = (
        of_x,
        over(share * weight if weight_again else share),
        over(gradient * weight if bias_weighted else gradient),
    )
    return tuple(result[place] for place in order)


def _backward_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(22)

    def case(b: int, n: int, d: int, eps: float) -> tuple:
        gradient, noise = (torch.randn(b, n, d, generator=random) for _ in range(2))
        return gradient, 2 * noise + 1, 1 + torch.randn(d, generator=random), eps

    by_hand = (
        torch.tensor([[[1.0, 0]]]), torch.tensor([[[1.0, 3]]]), torch.ones(2), 3.0
    )  # fmt: skip
    x, *_ = _layer_cases()[-1]  # a mean that is thousands of times the spread
    gradient, _, weight, _ = case(*x.shape, 0.5)
    return [case(2, 3, 5, 0.5), case(3, 4, 7, 2.0), by_hand, (8 * gradient, x, weight, 0.5)]


LAYER_NORM_BACKWARD = Exercise(
    name="layer_norm_backward",
    transfer=True,
    reference=layer_norm_backward,
    cases=_backward_cases,
    axes="b n d; d; d",
    parts=("x_gradient", "weight_gradient", "bias_gradient"),
    banned=(*NORMS, "native_layer_norm_backward", "grad", "backward", "_make_dual"),
    checked=(
        "the gradients of x, weight and bias for 2 batches of 2 x 3 and 3 x 4 tokens, widths 5 and"
        " 7, eps 0.5 and 2, for the example by hand, and for a mean that is thousands of times the"
        " spread; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "the mean depends on x",
            partial(layer_norm_backward, mean_term=0.0),
            "The way through the mean is missing: every number of a token moves the token's mean,"
            " and so moves all its outputs. Subtract the mean, over the features, of weight times"
            " gradient.",
        ),
        Mistake(
            "the scale depends on x",
            partial(layer_norm_backward, scale_term=0.0),
            "The way through the standard deviation is missing, or comes out as 0: a number far"
            " from the mean also makes the divisor larger. Subtract the normalised x times the mean"
            " of (weight times gradient times normalised x).",
        ),
        Mistake(
            "mean and scale as constants",
            partial(layer_norm_backward, mean_term=0.0, scale_term=0.0),
            "You treat the mean and the standard deviation as constants. Both are made of x, so"
            " the gradient flows through them, too: two more terms.",
        ),
        Mistake(
            "sign of the mean's term",
            partial(layer_norm_backward, mean_term=-1.0),
            "The term of the mean has the wrong sign. A larger number raises the mean, and the mean"
            " is subtracted: so its term is subtracted.",
        ),
        Mistake(
            "sign of the scale's term",
            partial(layer_norm_backward, scale_term=-1.0),
            "The term of the standard deviation has the wrong sign. A larger deviation makes the"
            " outputs smaller: so its term is subtracted.",
        ),
        Mistake(
            "scale's term doubled",
            partial(layer_norm_backward, scale_term=2.0),
            "The term of the standard deviation is twice as large as it should be. The root halves"
            " what the square doubles.",
        ),
        Mistake(
            "scale's term halved",
            partial(layer_norm_backward, scale_term=0.5),
            "The term of the standard deviation is half of what it should be. The root halves, and"
            " the square doubles it again.",
        ),
        Mistake(
            "sum for the mean's term",
            partial(layer_norm_backward, of_mean=lambda each: each.sum(dim=-1, keepdim=True)),
            "The term of the mean is a sum over the features. Each number moves the mean by 1/d of"
            " its own change: take the mean.",
        ),
        Mistake(
            "sum for the scale's term",
            partial(layer_norm_backward, of_scale=lambda each: each.sum(dim=-1, keepdim=True)),
            "The term of the standard deviation is a sum over the features. Each number moves the"
            " variance by 1/d of its share: take the mean.",
        ),
        *(
            Mistake(
                f"d - 1 in the {name}'s term",
                partial(
                    layer_norm_backward,
                    **{f"of_{name}": lambda x: x.sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)},
                ),
                f"The term of the {what} is divided by d - 1. LayerNorm's mean and variance divide"
                " by d, and so does the way back.",
            )
            for name, what in (("mean", "mean"), ("scale", "standard deviation"))
        ),
        Mistake(
            "scale's term through x itself",
            partial(layer_norm_backward, uncentred=True),
            "For the term of the standard deviation you multiply the gradient with x itself and"
            " take the mean off later. On paper that is right. In 32-bit numbers two huge products"
            " lose the small difference between them: subtract the mean first, then multiply.",
        ),
        Mistake(
            "scale's term without normal",
            partial(layer_norm_backward, shape=("1", "normal")),
            "The term of the standard deviation is the same for all numbers of a token. It must be"
            " multiplied by the normalised x: numbers far from the mean move the deviation most.",
        ),
        Mistake(
            "normal missing inside the scale's term",
            partial(layer_norm_backward, shape=("normal", "1")),
            "In the term of the standard deviation the mean is that of weight times gradient alone."
            " It is the mean of weight times gradient times the normalised x.",
        ),
        *(
            Mistake(
                f"scale's term from {shape[0]} and {shape[1]}",
                partial(layer_norm_backward, shape=shape),
                "The term of the standard deviation is made of x before it was divided. Both times"
                " it needs the normalised x, (x - mean) / sqrt(variance + eps).",
            )
            for shape in (
                ("centred", "centred"),
                ("centred", "normal"),
                ("x", "x"),
                ("normal", "x"),
            )
        ),
        *(
            Mistake(
                f"scale's term from {shape[0]} and {shape[1]}",
                partial(layer_norm_backward, shape=shape),
                "In the term of the standard deviation x is normalised without eps. Both times take"
                " what the forward pass makes, (x - mean) / sqrt(variance + eps).",
            )
            for shape in (
                ("exact", "exact"),
                ("exact", "normal"),
                ("exact, and without eps below", "exact"),
            )
        ),
        Mistake(
            "scale's term divided again",
            partial(layer_norm_backward, shape=("normal, divided again", "normal")),
            "The term of the standard deviation is divided by it once too often. The whole gradient"
            " of x is divided by it once.",
        ),
        *(
            Mistake(
                f"weight missing in the {name}'s term",
                partial(layer_norm_backward, unweighted=(name,)),
                f"In the term of the {what} the weight is missing. Start with weight times"
                " gradient, and use that everywhere on the way to x.",
            )
            for name, what in (("mean", "mean"), ("scale", "standard deviation"))
        ),
        Mistake(
            "weight missing in the terms",
            partial(layer_norm_backward, unweighted=("mean", "scale")),
            "In the terms of the mean and of the standard deviation the weight is missing. Start"
            " with weight times gradient, and use that everywhere on the way to x.",
        ),
        *(
            Mistake(
                f"terms over {axes}",
                partial(
                    layer_norm_backward,
                    of_mean=lambda each, axes=axes: each.mean(dim=axes, keepdim=True),
                    of_scale=lambda each, axes=axes: each.mean(dim=axes, keepdim=True),
                ),
                f"The two means run over {what}. A token's mean and deviation are made of its own"
                " features: dim=-1.",
            )
            for axes, what in (
                (1, "the tokens"),
                ((1, 2), "a whole picture, all its tokens together"),
                ((0, 1, 2), "everything, the whole batch"),
            )
        ),
        Mistake(
            "forced to 0",
            partial(layer_norm_backward, forced=True),
            "The last feature's gradient is made of the others', so that they add up to 0. That"
            " comes by itself once the ways through the mean and through the standard deviation are"
            " there: two more terms, for every feature.",
        ),
        *(
            Mistake(f"weight {name}", partial(layer_norm_backward, factor=factor), says)
            for name, factor, says in (
                (
                    "squared",
                    torch.square,
                    "The gradient is multiplied by the weight twice on the way to x. The forward"
                    " pass multiplies by it once, and so does the way back.",
                ),
                (
                    "plus 1",
                    lambda weight: 1 + weight,
                    "The gradient is multiplied by 1 + weight. LayerNorm's weight is the factor"
                    " itself.",
                ),
                (
                    "below",
                    torch.reciprocal,
                    "The gradient is divided by the weight. The forward pass multiplies by it, and"
                    " so does the way back.",
                ),
            )
        ),
        Mistake(
            "sign",
            partial(layer_norm_backward, divisor=lambda square: -square.sqrt()),
            "The gradient of x has the wrong sign. Its direct part is weight times gradient /"
            " sqrt(variance + eps).",
        ),
        Mistake(
            "weight left out",
            partial(layer_norm_backward, weighted="never"),
            "The weight is missing on the way back to x. The forward pass multiplies by it, so the"
            " gradient is multiplied by it first.",
        ),
        Mistake(
            "weight last",
            partial(layer_norm_backward, weighted="last"),
            "The weight multiplies the gradient of x at the end. It was the last step on the way"
            " there, so it is the first on the way back: multiply before the two means are taken.",
        ),
        Mistake(
            "divided by the variance",
            partial(layer_norm_backward, divisor=lambda square: square),
            "The gradient of x is divided by the variance. The forward pass divides by its root,"
            " and so does the way back.",
        ),
        Mistake(
            "not divided",
            partial(layer_norm_backward, divisor=torch.ones_like),
            "The gradient of x is not divided by the standard deviation. The forward pass divides"
            " by sqrt(variance + eps), and so does the way back.",
        ),
        Mistake(
            "multiplied",
            partial(layer_norm_backward, divisor=torch.rsqrt),
            "The gradient of x is multiplied by the standard deviation. Divide by it, as the"
            " forward pass does.",
        ),
        Mistake(
            "unbiased variance",
            partial(layer_norm_backward, correction=1),
            "The variance divides by d - 1, torch's default. LayerNorm's divides by d, on the way"
            " back too: x.var(-1, correction=0).",
        ),
        Mistake(
            "unbiased variance and its own term",
            partial(
                layer_norm_backward,
                correction=1,
                of_scale=lambda each: each.sum(dim=-1, keepdim=True) / (each.shape[-1] - 1),
            ),
            "The variance divides by d - 1, torch's default, and so does its term on the way back."
            " LayerNorm's divides by d, in both: x.var(-1, correction=0), and means over d"
            " features.",
        ),
        Mistake(
            "cancelling",
            partial(layer_norm_backward, cancelling=True),
            "Your variance is the mean of the squares minus the square of the mean. On paper that"
            " is right. In 32-bit numbers two huge squares lose the small difference between them:"
            " subtract the mean first, then square.",
        ),
        Mistake(
            "weight's gradient without eps",
            partial(layer_norm_backward, of_weight=lambda x, normal: _without_eps(x)),
            "In the weight's gradient x is normalised without eps. Take what the forward pass"
            " makes, (x - mean) / sqrt(variance + eps).",
        ),
        Mistake(
            "normal without eps",
            partial(
                layer_norm_backward,
                shape=("exact", "exact"),
                of_weight=lambda x, normal: _without_eps(x),
            ),
            "x is normalised without eps, for x's gradient and for the weight's. Take what the"
            " forward pass makes, (x - mean) / sqrt(variance + eps).",
        ),
        Mistake(
            "last division without eps",
            partial(layer_norm_backward, last_eps=0.0),
            "At the end the gradient of x is divided by the root of the variance alone. The forward"
            " pass divides by sqrt(variance + eps), and so does the way back.",
        ),
        Mistake(
            "weight's gradient from x itself",
            partial(layer_norm_backward, of_weight=lambda x, normal: x),
            "The weight multiplies the *normalised* x, so its gradient is the sum of gradient times"
            " normalised x, not of gradient times x.",
        ),
        Mistake(
            "weight's gradient from centred x",
            partial(
                layer_norm_backward,
                of_weight=lambda x, normal: x - x.mean(dim=-1, keepdim=True),
            ),
            "The weight's gradient uses x minus its mean. The weight multiplies the normalised x,"
            " which is also divided by the standard deviation.",
        ),
        Mistake(
            "weight in its own gradient",
            partial(layer_norm_backward, weight_again=True),
            "The weight's gradient is multiplied by the weight. y = normal * weight + bias changes"
            " with the weight by `normal` alone: sum up gradient * normal.",
        ),
        Mistake(
            "weight in the bias's gradient",
            partial(layer_norm_backward, bias_weighted=True),
            "The bias's gradient is multiplied by the weight. The bias is added after the weight,"
            " so it gets the gradient itself, summed over the tokens.",
        ),
        Mistake(
            "weight in both gradients",
            partial(layer_norm_backward, weight_again=True, bias_weighted=True),
            "The gradients of weight and bias are multiplied by the weight. That product belongs to"
            " the way to x alone; these two start from the gradient itself.",
        ),
        Mistake(
            "mean over the tokens",
            partial(layer_norm_backward, over=lambda each: each.mean(dim=(0, 1))),
            "The gradients of weight and bias are means over the tokens. Every token uses the same"
            " weight and adds its share: take the sum.",
        ),
        Mistake(
            "mean over the batch",
            partial(layer_norm_backward, over=lambda each: each.sum(dim=1).mean(dim=0)),
            "The gradients of weight and bias are means over the batch. Every example adds its"
            " share: take the sum over the batch too.",
        ),
        Mistake(
            "mean over the tokens, sum over the batch",
            partial(layer_norm_backward, over=lambda each: each.mean(dim=1).sum(dim=0)),
            "The gradients of weight and bias are means over the n tokens of an example. Every"
            " token adds its share: take the sum over the tokens too.",
        ),
        Mistake(
            "sum over the batch alone",
            partial(layer_norm_backward, over=lambda each: each.sum(dim=0)),
            "The gradients of weight and bias are summed over the batch alone. All tokens use the"
            " same weight: sum over both axes, dim=(0, 1).",
        ),
        Mistake(
            "sum over the tokens alone",
            partial(layer_norm_backward, over=lambda each: each.sum(dim=1)),
            "The gradients of weight and bias are summed over the tokens alone. The whole batch"
            " uses the same weight: sum over both axes, dim=(0, 1).",
        ),
        *(
            Mistake(
                f"{what} alone",
                partial(layer_norm_backward, over=over),
                f"Only {what} counts in the gradients of weight and bias. All tokens of the batch"
                " use the same weight and add their shares; in a loop: total = total + share.",
            )
            for what, over in {
                "the last example": lambda each: each[-1].sum(dim=0),
                "the first example": lambda each: each[0].sum(dim=0),
                "the last token": lambda each: each[-1, -1],
                "the first token": lambda each: each[0, 0],
                "the last token of each example": lambda each: each[:, -1].sum(dim=0),
                "the first token of each example": lambda each: each[:, 0].sum(dim=0),
            }.items()
        ),
        *(
            Mistake(
                f"sum over {axes}",
                partial(layer_norm_backward, over=lambda each, axes=axes: each.sum(dim=axes)),
                "The gradients of weight and bias are summed over the features. Each feature has a"
                " weight of its own: sum over batch and tokens, dim=(0, 1).",
            )
            for axes in (-1, (0, 2), (1, 2), (0, 1, 2))
        ),
        Mistake(
            "not summed",
            partial(layer_norm_backward, over=lambda each: each),
            "The gradients of weight and bias are not summed. All tokens use the same weight, and"
            " their shares add up: sum over batch and tokens, dim=(0, 1).",
        ),
        Mistake(
            "bias before weight",
            partial(layer_norm_backward, order=(0, 2, 1)),
            "The gradients of weight and bias are exchanged in what you return: for x, for the"
            " weight, for the bias.",
        ),
        Mistake(
            "x last",
            partial(layer_norm_backward, order=(1, 2, 0)),
            "The gradient of x comes last in what you return: for x, for the weight, for the bias.",
        ),
        Mistake(
            "eps forgotten",
            partial(layer_norm_backward, eps_inside=lambda variance, eps: variance),
            "eps is missing on the way back. The forward pass divides by sqrt(variance + eps); the"
            " same number belongs here.",
        ),
        Mistake(
            "eps outside the root",
            partial(
                layer_norm_backward,
                eps_inside=lambda variance, eps: (variance.sqrt() + eps).square(),
            ),
            EPS_SENTENCE,
        ),
    ),
    crashes=(Mistake("no keepdim", partial(layer_norm_backward, keepdim=False), NO_KEEPDIM),),
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
