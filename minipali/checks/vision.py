"""Lesson 04: the MLP, the pre-norm block of the vision tower, and SigLIP's attention pooling."""

import math
from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.attention import attend
from minipali.checks.engine import Exercise, Mistake


def _mlp_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(4)

    def case(
        b: int, n: int, d: int, hidden: int, spread: float, shift: float, last: float = 3.0
    ) -> tuple:
        return (
            torch.randn(b, n, d, generator=random),
            torch.randn(hidden, d, generator=random) * spread / d**0.5,
            torch.randn(hidden, generator=random) + shift,
            torch.randn(d, hidden, generator=random) * last,
            torch.randn(d, generator=random),
        )

    # The second: hidden values around -2. GELU gives nearly 0 there, so the results are small, but
    # its two forms differ most, and a large second map makes that difference larger. The
    # third: hidden values beyond a hundred, where exp overflows.
    return [case(2, 3, 5, 14, 2, 0), case(3, 4, 7, 11, 0.4, -2), case(1, 3, 4, 6, 120, 0, 0.015)]


@cache  # so results of known mistakes are kept: functions in the arguments remember nothing
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

    # Of the last the functions hand back their argument itself: who adds to it changes x.
    same = (lambda x: x,) * 4
    return [case(2, 3, 5, 14), case(3, 4, 7, 11), (torch.randn(1, 2, 4, generator=random), *same)]


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _nothing(x: Tensor) -> Tensor:
    return x


ROOT = (2 / math.pi) ** 0.5


def _by_exp(hidden: Tensor) -> Tensor:
    z = ROOT * (hidden + 0.044715 * hidden**3)
    return 0.5 * hidden * (1 + (z.exp() - (-z).exp()) / (z.exp() + (-z).exp()))


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    first: Callable[[Tensor], Tensor] = _nothing,
    activation: Callable[[Tensor], Tensor] | None = None,
    half: float = 0.5,
    one: float = 1.0,
    of_u: float = ROOT,
    of_cubic: float = ROOT,
    cubic: float = 0.044715,
    power: int = 3,
    u_first: bool = True,
    brackets: bool = True,
    last: Callable[[Tensor], Tensor] = _nothing,
    reshaped: str = "",
    bias1: float = 1.0,
    bias1_late: float = 0.0,
    bias2: float = 1.0,
    residual: bool = False,
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with one thing changed.

    half to brackets: of GELU's formula. reshaped: which weights, of "1" and "2", are reshaped where
    they are to be turned.
    """
    if "1" in reshaped:
        fc1_weight = fc1_weight.reshape(fc1_weight.shape[::-1]).T
    if "2" in reshaped:
        fc2_weight = fc2_weight.reshape(fc2_weight.shape[::-1]).T
    u = F.linear(first(x), fc1_weight, bias1 * fc1_bias)
    if activation:
        hidden = activation(u)
    else:
        bent = torch.tanh(of_u * u + of_cubic * cubic * u**power)
        hidden = half * (u if u_first else 1.0) * (one + bent) if brackets else half * u + bent
    out = last(F.linear(hidden + bias1_late * fc1_bias, fc2_weight, bias2 * fc2_bias))
    return x + out if residual else out


FORMULA = (
    "This is nearly the tanh form of GELU, but {}. It is 0.5 · u · (1 + tanh(sqrt(2 / π) · (u +"
    " 0.044715 · u³)))."
)
ERF = (
    "This is GELU in its erf form, which is torch's default. SigLIP was trained with the tanh form:"
    ' F.gelu(…, approximate="tanh"). The two differ by less than 0.0005 a value, so the model would'
    " still answer, but no number would agree with the published model."
)

MLP = Exercise(
    name="mlp",
    reference=mlp,
    cases=_mlp_cases,
    axes="b n d",
    gradients=("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"),
    checked=(
        "shape, dtype and every value on 3 batches, widths 4 to 7, hidden widths 6 to 14, with"
        " weights that tell the tanh form of GELU from the erf form, and hidden values around 100;"
        " gradients reach x, weights and biases; inputs unchanged"
    ),
    mistakes=(
        Mistake("erf form", partial(mlp, activation=F.gelu), ERF),
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
        *(
            Mistake(
                name,
                partial(mlp, activation=activation),
                f"The bend between the maps is {name}. SigLIP uses GELU in the tanh form:"
                ' F.gelu(…, approximate="tanh").',
            )
            for name, activation in {
                "SiLU (also called swish)": F.silu,
                "tanh": torch.tanh,
                "sigmoid": torch.sigmoid,
                "leaky ReLU": F.leaky_relu,
                "ELU": F.elu,
                "softplus": F.softplus,
                "Mish": F.mish,
                "a softmax over the hidden units": lambda hidden: hidden.softmax(-1),
                "GELU times the hidden value once more": lambda hidden: _gelu(hidden) * hidden,
                "ReLU, squared": lambda hidden: F.relu(hidden).square(),
            }.items()
        ),
        *(
            Mistake(
                f"formula: {what}",
                partial(mlp, **changes),
                FORMULA.format(what),
            )
            for what, changes in {
                "with the square in place of the cube": {"power": 2},
                "without the factor 0.5": {"half": 1.0},
                "without the 1": {"one": 0.0},
                **{
                    text: {"of_u": root, "of_cubic": root}
                    for text, root in {
                        "with sqrt(2) / π, the root over the 2 alone": 2**0.5 / math.pi,
                        "with 2 / π, without the root": 2 / math.pi,
                        "with sqrt(π / 2), upside down": (math.pi / 2) ** 0.5,
                        "without sqrt(2 / π)": 1.0,
                        "with half of what stands inside the tanh (0.5 · (1 + tanh(z)) is"
                        " sigmoid(2z), not sigmoid(z))": ROOT / 2,
                        "with twice what stands inside the tanh": 2 * ROOT,
                    }.items()
                },
                "with sqrt(2 / π) times u alone, and not times the cubic term": {"of_cubic": 1.0},
                "with sqrt(2 / π) times the cubic term alone, and not times u": {"of_u": 1.0},
                "without the first u": {"u_first": False},
                "without the brackets around 1 + tanh": {"brackets": False},
                "with the cube of 0.044715 · u in place of u³ alone": {"cubic": 0.044715**3},
                "without the cubic term": {"cubic": 0.0},
                "with the cubic term subtracted": {"cubic": -0.044715},
                "with 0.44715 in place of 0.044715": {"cubic": 0.44715},
                "with a cubic term ten times too small": {"cubic": 0.0044715},
            }.items()
        ),
        Mistake(
            "overflow",
            partial(mlp, activation=_by_exp),
            "exp of a number above 88 is infinite in 32 bits, and inf / inf is NaN. torch.tanh and"
            ' F.gelu(…, approximate="tanh") stay finite and right.',
        ),
        *(
            Mistake(
                f"limited to {most}",
                partial(mlp, activation=lambda hidden, most=most: _gelu(hidden).clamp(max=most)),
                "The values between the two maps are limited (clamp, min, ReLU6). GELU has no upper"
                " end: GELU(100) is 100.",
            )
            for most in (5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 80, 88, 100)
        ),
        *(
            Mistake(
                f"weights reshaped: {which}",
                partial(mlp, reshaped=which),
                "A weight is reshaped (reshape or view) where it is to be turned. That keeps the"
                " order of its numbers, so they meet wrong inputs: weight.T, or F.linear.",
            )
            for which in ("1", "2", "12")
        ),
        Mistake(
            "no activation",
            partial(mlp, activation=_nothing),
            "There is nothing between the two linear maps, so together they are one linear map, and"
            " the wide middle is for nothing. Put the GELU between fc1 and fc2.",
        ),
        Mistake(
            "GELU twice",
            partial(mlp, activation=lambda hidden: _gelu(_gelu(hidden))),
            "The GELU is applied twice. Once is enough, between fc1 and fc2.",
        ),
        Mistake(
            "activation last",
            partial(mlp, activation=_nothing, last=_gelu),
            "The GELU comes after fc2. Between fc1 and fc2 nothing bends, so they are one linear"
            " map; and the block can hardly take anything away from the residual stream, because"
            " GELU never goes below -0.17.",
        ),
        Mistake(
            "activation first",
            partial(mlp, activation=_nothing, first=_gelu),
            "The GELU comes before fc1. Between fc1 and fc2 nothing bends, so they are one linear"
            " map. Put it between the two.",
        ),
        Mistake(
            "activation after both maps",
            partial(mlp, last=_gelu),
            "A second GELU comes after fc2. The result of the second map is returned as it is.",
        ),
        Mistake(
            "activation before both maps",
            partial(mlp, first=_gelu),
            "A second GELU comes before fc1. The first map reads x as it is.",
        ),
        Mistake(
            "normed",
            partial(mlp, first=lambda x: F.layer_norm(x, x.shape[-1:])),
            "x is normed first. That is the block's work (`encoder_layer`); the MLP reads what it"
            " is"
            " given.",
        ),
        Mistake(
            "biases missing",
            partial(mlp, bias1=0.0, bias2=0.0),
            "The biases are missing. In SigLIP both maps have one (Gemma's maps have none).",
        ),
        Mistake(
            "first bias missing",
            partial(mlp, bias1=0.0),
            "The first bias, fc1_bias, is missing. In SigLIP both maps have one.",
        ),
        Mistake(
            "second bias missing",
            partial(mlp, bias2=0.0),
            "The second bias, fc2_bias, is missing. In SigLIP both maps have one.",
        ),
        *(
            Mistake(
                f"{which} bias twice",
                partial(mlp, **{edit: 2.0}),
                f"The {which} bias is added twice.",
            )
            for which, edit in (("first", "bias1"), ("second", "bias2"))
        ),
        Mistake(
            "bias before and after the activation",
            partial(mlp, bias1_late=1.0),
            "The first bias is added once more after the GELU. Once, before it: it decides where"
            " the bend lies.",
        ),
        Mistake(
            "negative values cut off",
            partial(mlp, activation=lambda hidden: _gelu(hidden).clamp(min=0)),
            "What GELU makes is cut off below 0. GELU lets a little of the negative values through,"
            " down to -0.17.",
        ),
        Mistake(
            "mean of the patches",
            partial(mlp, first=lambda x: x.mean(dim=1, keepdim=True).expand_as(x)),
            "The patches are averaged before the maps. The MLP works on each patch alone.",
        ),
        Mistake(
            "bias after the activation",
            partial(mlp, bias1=0.0, bias1_late=1.0),
            "The first bias is added after the GELU. It belongs to the linear map, before the GELU:"
            " it decides where the bend lies.",
        ),
        Mistake(
            "residual inside",
            partial(mlp, residual=True),
            "You added x to the result. That sum is right, but its place is the block"
            " (`encoder_layer`), which adds the MLP's result to the residual stream. With both, x"
            " would be added twice.",
        ),
    ),
    crashes=(
        Mistake(
            "first weight not transposed",
            lambda x, fc1_weight, *_: x @ fc1_weight,
            "The first weight has the shape (outputs, inputs): x @ fc1_weight.T, or F.linear(x,"
            " fc1_weight, fc1_bias).",
        ),
        Mistake(
            "second weight not transposed",
            lambda x, fc1_weight, fc1_bias, fc2_weight, _: F.linear(x, fc1_weight) @ fc2_weight,
            "The second weight has the shape (outputs, inputs): hidden @ fc2_weight.T, or"
            " F.linear(hidden, fc2_weight, fc2_bias).",
        ),
    ),
    hints=(
        "Three steps: a linear map from d to the hidden width, a bend, a linear map back to d.",
        "A weight of a linear layer has the shape (outputs, inputs), and the map is x W^T + b:"
        " x @ weight.T + bias, or F.linear(x, weight, bias).",
        'F.gelu has two forms. The published weights need F.gelu(…, approximate="tanh").',
    ),
)


def encoder_layer(
    x: Tensor,
    norm1: Callable,
    attention: Callable,
    norm2: Callable,
    mlp: Callable,
    *,
    first: str = "attention",
    before1: int = 1,
    before2: int = 2,
    after1: int = 0,
    after2: int = 0,
    sum1: int = 0,
    sum2: int = 0,
    add1: str = "stream",
    add2: str = "stream",
    read2: str = "stream",
    sign1: float = 1.0,
    sign2: float = 1.0,
    parts: str = "both",
    seen: str = "",
    cut: str = "",
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with one thing changed.

    before, after, sum: which norm (0: none) meets what a part reads, what it gives, and the sum;
    add, read: what the second sum starts from, and what the second part reads; seen: how attention
    gets b and n: "joined", "exchanged", or with each patch "alone"; cut: what is out of autograd's
    graph: what the "first" part gives, "both" parts give, what is "read" by the second, or the
    "stream" that the second is added to, the "start" that the first is, or "streams", both.
    before1, before2: 11 and 22 are a norm twice.
    """

    def attend_to(x: Tensor) -> Tensor:
        if seen == "exchanged":
            return attention(x.transpose(0, 1)).transpose(0, 1)
        as_seen = {"joined": (1, -1), "alone": (-1, 1)}.get(seen, x.shape[:2])
        return attention(x.reshape(*as_seen, x.shape[2])).reshape(x.shape)

    norms = {0: _nothing, 1: norm1, 2: norm2}
    norms |= {11: lambda x: norm1(norm1(x)), 22: lambda x: norm2(norm2(x))}
    one, other = (attend_to, mlp) if first == "attention" else (mlp, attend_to)

    def added(how: str, stream: Tensor, normed: Tensor, start: Tensor) -> Tensor | float:
        return {
            "stream": stream, "normed": normed, "start": start, "nothing": 0.0,
            "twice": 2 * stream, "stream and start": stream + start,
        }[how]  # fmt: skip

    read = norms[before1](x)
    part = sign1 * norms[after1](one(read))
    part = part.detach() if cut in ("first", "both") else part
    start = x.detach() if cut in ("start", "streams") else x
    stream = norms[sum1](added(add1, start, read, x) + part)
    if parts == "first":
        return stream
    if parts == "second":
        stream = x
    if parts == "first twice":
        stream = stream + one(norms[before1](stream))
    given = {"stream": stream, "start": x, "part": part}[read2]
    read = norms[before2](given.detach() if cut == "read" else given)
    part = sign2 * norms[after2](other(read))
    part = part.detach() if cut == "both" else part
    stream = stream.detach() if cut in ("stream", "streams") else stream
    return norms[sum2](added(add2, stream, read, x) + part)


post_norm = partial(encoder_layer, before1=0, before2=0, sum1=1, sum2=2)
no_residual_at_mlp = partial(encoder_layer, add2="nothing")
old_residual = partial(encoder_layer, add2="start")
parallel = partial(encoder_layer, read2="start")

NORM1_TWICE = (
    "norm1 is used twice and norm2 never. Each has its own trained weights: norm1 serves attention,"
    " norm2 the MLP."
)

ENCODER_LAYER = Exercise(
    name="encoder_layer",
    reference=encoder_layer,
    cases=_layer_cases,
    axes="b n d",
    gradients=("x",),
    checked=(
        "shape, dtype and every value on 2 batches, widths 5 and 7, with two different norms and a"
        " stream whose values are not normed, and with functions that hand back their argument;"
        " gradients reach x through both parts; inputs unchanged"
    ),
    mistakes=(
        *(
            Mistake(
                f"{cut} out of the graph",
                partial(encoder_layer, cut=cut),
                f"The values are right, but {what} is out of autograd's graph (detach, no_grad), so"
                " no gradient comes back that way.",
            )
            for cut, what in {
                "first": "what attention gives",
                "read": "what the MLP reads, or what it gives,",
                "stream": "the stream that the MLP adds to",
                "start": "the x that attention adds to",
                "streams": "the stream, where the two parts are added to it,",
                "both": "what attention and the MLP give, or what they read,",
            }.items()
        ),
        *(
            Mistake(
                f"norms twice {twice}",
                partial(encoder_layer, **twice),
                f"{which} norm is applied twice before its part reads. Once: mlp(norm2(x)), and the"
                " same with attention and norm1.",
            )
            for which, twice in (
                ("Each", {"before1": 11, "before2": 22}),
                ("Attention's", {"before1": 11}),
                ("The MLP's", {"before2": 22}),
            )
        ),
        *(
            Mistake(
                f"halved {shares}",
                partial(encoder_layer, **shares),
                "Only half of what a part gives is added to the stream. All of it is.",
            )
            for shares in ({"sign1": 0.5, "sign2": 0.5}, {"sign1": 0.5}, {"sign2": 0.5})
        ),
        *(
            Mistake(f"patches {seen}", partial(encoder_layer, seen=seen), says)
            for seen, says in {
                "joined": "The patches of all pictures lie in one row when attention reads them, so"
                " patches of different pictures see each other. attention takes (b, n, d): keep the"
                " batch axis.",
                "exchanged": "The axes b and n are exchanged when attention reads, so each patch"
                " sees the patches at its place in the other pictures. attention takes (b, n, d) as"
                " it is.",
                "alone": "Attention gets each patch as a picture of its own, so no patch sees"
                " another. attention takes (b, n, d) as it is.",
            }.items()
        ),
        Mistake(
            "post-norm",
            post_norm,
            "This is the post-norm block of the first transformer (2017): it norms each sum. SigLIP"
            " is pre-norm: norm what attention and the MLP *read*, and leave the sum as it is.",
        ),
        Mistake(
            "second norm after the MLP",
            partial(encoder_layer, before2=0, after2=2),
            "The MLP reads the stream without a norm, and norm2 comes after it. It belongs"
            " before the MLP: both norms come before the part they serve.",
        ),
        Mistake(
            "first norm after attention",
            partial(encoder_layer, before1=0, after1=1),
            "Attention reads the stream without a norm, and norm1 comes after it. It belongs before"
            " attention: both norms come before the part they serve.",
        ),
        Mistake(
            "both norms after",
            partial(encoder_layer, before1=0, after1=1, before2=0, after2=2),
            "Both norms come after the part that they serve. They belong before it: attention and"
            " the MLP read a normed stream, and what they give is added as it is.",
        ),
        Mistake(
            "normed before and after attention",
            partial(encoder_layer, after1=1),
            "norm1 comes twice: before attention, where it belongs, and once more after it. What"
            " attention gives is added as it is.",
        ),
        Mistake(
            "normed before and after the MLP",
            partial(encoder_layer, after2=2),
            "norm2 comes twice: before the MLP, where it belongs, and once more after it. What the"
            " MLP gives is added as it is.",
        ),
        Mistake(
            "first sum normed",
            partial(encoder_layer, sum1=1),
            "The first sum is normed once more with norm1. The stream itself is never normed.",
        ),
        Mistake(
            "last sum normed",
            partial(encoder_layer, sum2=2),
            "The result is normed once more with norm2. The stream itself is never normed.",
        ),
        Mistake(
            "MLP without norm",
            partial(encoder_layer, before2=0),
            "The MLP reads the stream as it is, and norm2 is never used. The stream has no fixed"
            " size: the MLP must read it through norm2.",
        ),
        Mistake(
            "attention without norm",
            partial(encoder_layer, before1=0),
            "Attention reads the stream as it is, and norm1 is never used. The stream has no fixed"
            " size: attention must read it through norm1.",
        ),
        Mistake(
            "no norms",
            partial(encoder_layer, before1=0, before2=0),
            "Neither norm is used. The stream has no fixed size: attention reads it through norm1,"
            " the MLP through norm2.",
        ),
        Mistake(
            "no residual at the MLP",
            no_residual_at_mlp,
            "You return what the MLP gives, without the stream. It must be added: return x +"
            " mlp(norm2(x)).",
        ),
        Mistake(
            "no residual at attention",
            partial(encoder_layer, add1="nothing"),
            "After attention the stream is lost: what attention gives must be added to it, x = x +"
            " attention(norm1(x)).",
        ),
        Mistake(
            "no residuals",
            partial(encoder_layer, add1="nothing", add2="nothing"),
            "Nothing is added to the stream: each part replaces it. Both parts add what they give:"
            " x = x + attention(norm1(x)), then the same with the MLP.",
        ),
        Mistake("norm1 twice", partial(encoder_layer, before2=1), NORM1_TWICE),
        Mistake(
            "norm2 twice",
            partial(encoder_layer, before1=2),
            "norm2 is used twice and norm1 never. Each has its own trained weights: norm1 serves"
            " attention, norm2 the MLP.",
        ),
        Mistake(
            "norms exchanged",
            partial(encoder_layer, before1=2, before2=1),
            "The two norms are exchanged. Each has its own trained weights: norm1 serves attention,"
            " norm2 the MLP.",
        ),
        Mistake(
            "normed stream",
            partial(encoder_layer, add1="normed", add2="normed"),
            "The norm went into the residual stream: after x = norm1(x) the x that you add is no"
            " longer what came in. Norm a copy: x = x + attention(norm1(x)).",
        ),
        Mistake(
            "normed stream at attention",
            partial(encoder_layer, add1="normed"),
            "At attention the norm went into the stream: after x = norm1(x) the x that you add is"
            " no longer what came in. Norm a copy: x = x + attention(norm1(x)).",
        ),
        Mistake(
            "normed stream at the MLP",
            partial(encoder_layer, add2="normed"),
            "At the MLP the norm went into the stream: after x = norm2(x) the x that you add is no"
            " longer the stream. Norm a copy: x = x + mlp(norm2(x)).",
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
        Mistake(
            "MLP reads attention's part",
            partial(encoder_layer, read2="part"),
            "The MLP reads what attention gave, without the stream. It reads the new stream, the"
            " sum"
            " of both.",
        ),
        *(
            Mistake(
                f"one chain {norm}",
                partial(encoder_layer, add1="nothing", add2="start", before2=norm),
                "Attention and the MLP form one chain, and x is added once, at the end. Each of the"
                " two adds what it gives to the stream: first x = x + attention(norm1(x)), then x +"
                " mlp(norm2(x)).",
            )
            for norm in (2, 0)
        ),
        Mistake(
            "attention twice",
            partial(encoder_layer, parts="first twice"),
            "Attention comes twice. A layer has it once, and then the MLP.",
        ),
        *(
            Mistake(
                f"subtracted {signs}",
                partial(encoder_layer, **signs),
                "What a part gives is subtracted from the stream. Both parts add to it.",
            )
            for signs in ({"sign1": -1.0}, {"sign2": -1.0}, {"sign1": -1.0, "sign2": -1.0})
        ),
        Mistake(
            "x twice at the end",
            partial(encoder_layer, add2="stream and start"),
            "The x that came in is added a second time. The stream after attention holds it"
            " already:"
            " return that stream + mlp(norm2(that stream)).",
        ),
        Mistake(
            "stream doubled at attention",
            partial(encoder_layer, add1="twice"),
            "x is added twice at attention. Once: x = x + attention(norm1(x)).",
        ),
        Mistake(
            "stream doubled at the MLP",
            partial(encoder_layer, add2="twice"),
            "The stream is added twice at the MLP. Once: return x + mlp(norm2(x)).",
        ),
        Mistake(
            "MLP first",
            partial(encoder_layer, first="mlp", before1=2, before2=1),
            "The MLP comes first. Attention comes first, through norm1; the MLP reads the stream"
            " after it, through norm2.",
        ),
        Mistake(
            "MLP first with norm1",
            partial(encoder_layer, first="mlp"),
            "The MLP comes first, through norm1. Attention comes first, through norm1; the MLP"
            " reads"
            " the stream after it, through norm2.",
        ),
        Mistake(
            "attention alone",
            partial(encoder_layer, parts="first"),
            "The MLP is missing. After attention the block does the same once more with norm2 and"
            " mlp.",
        ),
        Mistake(
            "MLP alone",
            partial(encoder_layer, parts="second"),
            "Attention is missing. The block begins with x = x + attention(norm1(x)).",
        ),
    ),
    hints=(
        "Two steps of the same form: norm, compute, add to the stream.",
        "The stream itself is never normed. Only what attention and the MLP read is.",
        "The first step is x = x + attention(norm1(x)). The second has the same form and starts"
        " from this new x.",
    ),
)


@cache  # so results of known mistakes are kept: functions in the arguments remember nothing
def _pool_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(44)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    def case(b: int, n: int, d: int, heads: int, size: float = 2.0) -> tuple:
        weight, shift = 1 + 0.5 * draw(d), draw(d)
        given = draw(2 * d, d) / d**0.5, draw(2 * d), draw(d, 2 * d) / (2 * d) ** 0.5, draw(d)
        return (
            2 * draw(b, n, d),
            size * draw(d),
            1.3 * draw(3 * d, d) / d**0.5,
            draw(3 * d),
            draw(d, d) / d**0.5,
            draw(d),
            heads,
            lambda y: F.layer_norm(y, (d,), weight, shift, 1e-2),
            lambda y: mlp(y, *given),
        )

    by_hand = (
        torch.tensor([[[0.0], [1.0]]]), torch.tensor([math.log(3)]), torch.ones(3, 1),
        torch.zeros(3), torch.ones(1, 1), torch.zeros(1), 1, lambda y: y, lambda y: y,
    )  # fmt: skip
    # In the third, scores are so large that exp overflows. By hand comes last: so small a result
    # has many explanations.
    return [case(2, 5, 12, 3), case(3, 7, 10, 2), case(1, 4, 6, 3, size=200.0), by_hand]


def attention_pool(
    x: Tensor,
    probe: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    heads: int,
    norm: Callable,
    mlp: Callable,
    *,
    pieces: tuple[int, int, int] = (0, 1, 2),
    cut: Callable[[Tensor, int], tuple] = lambda stored, heads: stored.chunk(3),
    biases: str = "qkv",
    mapped: str = "qkv",
    transposed: str = "",
    split: str = "b n (h k) -> b h n k",
    merge: str = "b h n k -> b n (h k)",
    number: Callable[[int, int], int] = lambda heads, d: heads,
    scale: Callable[[int, int], float] = lambda k, heads: k**-0.5,
    axis: int = -1,
    soft: Callable[[Tensor, int], Tensor] = torch.softmax,
    asks: str = "probe",
    read: Callable[[Tensor, Tensor, Callable], Tensor] = lambda x, probe, norm: x,
    probe_of: Callable[[Tensor, Callable], Tensor] = lambda probe, norm: probe,
    out: bool = True,
    out_last: bool = False,
    out_biases: float = 1.0,
    together: Callable[[Tensor], Tensor] = lambda y: y,
    ending: Callable = lambda y, probe, norm, mlp: y + mlp(norm(y)),
    last: Callable[[Tensor], Tensor] = lambda pooled: pooled[:, 0],
) -> Tensor:
    """(b, d). The reference, or with one thing changed.

    biases, mapped, transposed: whose, of "q", "k", "v" (and "o", the last map). out_last: that one
    comes after the MLP.
    """
    own, d = heads, len(probe)
    heads = number(heads, d)
    weights, shifts = cut(in_weight, heads), cut(in_bias, heads)

    def given(name: str, source: Tensor) -> Tensor:
        place = pieces["qkv".index(name)]
        if name not in mapped:
            return source
        weight = weights[place].T if name in transposed else weights[place]
        return F.linear(source, weight, shifts[place] if name in biases else None)

    def parts(vectors: Tensor) -> Tensor:
        if not split:
            return vectors.reshape(len(vectors), heads, -1, d // heads)
        return rearrange(vectors, split, h=heads)

    asking = probe_of(probe, norm).expand(len(x), 1, d)
    x = read(x, asking, norm)
    asked = {"probe": asking, "patches": x, "mean": x.mean(1, keepdim=True)}
    asked["all"] = torch.cat([asking, x.expand(len(asking), -1, -1)], dim=1)
    query, key, value = (
        parts(given(name, source)) for name, source in (("q", asked[asks]), ("k", x), ("v", x))
    )
    mixed = soft(query @ key.mT * scale(query.shape[-1], own), axis) @ value
    y = rearrange(mixed, merge)

    def mix(y: Tensor) -> Tensor:
        return F.linear(y, out_weight.T if "o" in transposed else out_weight, out_biases * out_bias)

    y = mix(y) if out and not out_last else y
    pooled = ending(together(y), probe, norm, mlp)
    return last(mix(pooled) if out_last else pooled)


ATTENTION_POOL = Exercise(
    name="attention_pool",
    transfer=True,
    reference=attention_pool,
    cases=_pool_cases,
    axes="b d",
    banned=("multi_head_attention_forward", "_native_multi_head_attention"),
    gradients=("x", "probe", "in_weight", "in_bias", "out_weight", "out_bias"),
    checked=(
        "shape, dtype and every value for 3 batches of 2, 3 and 1 pictures with 5, 7 and 4"
        " patches, 3, 2 and 3 heads, one with scores in the hundreds, and for the example by hand;"
        " gradients reach x, probe, weights and biases; inputs unchanged"
    ),
    mistakes=(
        *(
            Mistake(
                f"pieces {order}",
                partial(attention_pool, pieces=order),
                "The three pieces of in_weight and in_bias are taken in another order. The first"
                " belongs to the queries, the second to the keys, the third to the values.",
            )
            for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        ),
        *(
            Mistake(
                f"pieces {twice}",
                partial(attention_pool, pieces=twice),
                "One of the three pieces of in_weight and in_bias is used twice, and one never. The"
                " first belongs to the queries, the second to the keys, the third to the values.",
            )
            for twice in ((0, 1, 1), (0, 2, 2), (0, 0, 2), (1, 1, 2), (0, 1, 0), (2, 1, 2))
        ),
        Mistake(
            "cut head by head",
            partial(
                attention_pool,
                cut=lambda stored, heads: (
                    stored.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)
                ),
            ),
            "in_weight is cut head by head, as if it held the three pieces of head 0, then those of"
            " head 1. Its first d rows are the queries' map of all heads, the next d the keys', the"
            " last d the values'.",
        ),
        Mistake(
            "every third row",
            partial(attention_pool, cut=lambda stored, _: [stored[i::3] for i in range(3)]),
            "You take every third row of in_weight. The pieces lie one behind the other: the first"
            " d rows belong to the queries, the next d to the keys, the last d to the values.",
        ),
        Mistake(
            "probe not mapped",
            partial(attention_pool, mapped="kv"),
            "The probe is used as it is. It goes through the queries' map first, as every query"
            " does.",
        ),
        Mistake(
            "keys not mapped",
            partial(attention_pool, mapped="qv"),
            "The patches are used as keys as they are. They go through the keys' map first.",
        ),
        Mistake(
            "values not mapped",
            partial(attention_pool, mapped="qk"),
            "The patches are averaged as they are. They go through the values' map first.",
        ),
        Mistake(
            "bias of the queries missing",
            partial(attention_pool, biases="kv"),
            "The queries' part of in_bias is missing.",
        ),
        Mistake(
            "bias of the values missing",
            partial(attention_pool, biases="qk"),
            "The values' part of in_bias is missing.",
        ),
        Mistake(
            "in_bias missing",
            partial(attention_pool, biases=""),
            "in_bias is missing. It has three pieces of d numbers, as in_weight has three of d"
            " rows.",
        ),
        Mistake(
            "weights transposed",
            partial(attention_pool, transposed="qkv"),
            "The pieces of in_weight are used as x @ W. Each is stored as (out, in): x @ W.T, or"
            " F.linear(x, W, bias).",
        ),
        Mistake(
            "last weight transposed",
            partial(attention_pool, transposed="o"),
            "out_weight is used as y @ W. It is stored as (out, in): y @ W.T, or F.linear.",
        ),
        Mistake(
            "all weights transposed",
            partial(attention_pool, transposed="qkvo"),
            "All weights are used as x @ W. They are stored as (out, in): x @ W.T, or F.linear(x,"
            " W,"
            " bias).",
        ),
        Mistake(
            "heads split as (k h)",
            partial(attention_pool, split="b n (k h) -> b h n k", merge="b h n k -> b n (k h)"),
            "The heads are split as (k h): each head got every h-th number. The numbers of a head"
            " stand side by side: (h k).",
        ),
        Mistake(
            "heads merged as (k h)",
            partial(attention_pool, merge="b h n k -> b n (k h)"),
            "The heads are put back as (k h), in another order than they came. Write (h k).",
        ),
        Mistake(
            "split without transpose",
            partial(attention_pool, split=""),
            "The heads come from a reshape alone, (b, n, d) to (b, h, n, k). It moves no axis, so"
            " numbers of different patches end up in one head. Split d first: (b, n, h, k), then"
            " transpose n and h.",
        ),
        *(
            Mistake(
                f"one head, {name}",
                partial(attention_pool, number=lambda heads, d: 1, **given),
                "Everything is in one head, with one softmax for all numbers of a patch. Each head"
                " compares its own d / heads numbers, and has weights of its own.",
            )
            for name, given in (
                ("its own scale", {}),
                ("the heads' scale", {"scale": lambda k, heads: (k / heads) ** -0.5}),
            )
        ),
        Mistake(
            "k heads of width h",
            partial(attention_pool, number=lambda heads, d: d // heads),
            "The number of heads and their width are exchanged: there are `heads` heads, each of"
            " width d / heads.",
        ),
        Mistake(
            "scale missing",
            partial(attention_pool, scale=lambda k, heads: 1.0),
            "The scores are not scaled: 1 / sqrt(d / heads), before the softmax.",
        ),
        Mistake(
            "scale by the whole width",
            partial(attention_pool, scale=lambda k, heads: (k * heads) ** -0.5),
            "The scores are scaled by the whole width d. A head's dot product has only d / heads"
            " terms: scale by the root of that.",
        ),
        Mistake(
            "scale by the number of heads",
            partial(attention_pool, scale=lambda k, heads: heads**-0.5),
            "The scores are scaled by the number of heads. A dot product has d / heads terms: scale"
            " by the root of that.",
        ),
        Mistake(
            "scale upside down",
            partial(attention_pool, scale=lambda k, heads: k**0.5),
            "The scores are multiplied by sqrt(d / heads). Divide by it.",
        ),
        Mistake(
            "scaled twice",
            partial(attention_pool, scale=lambda k, heads: 1 / k),
            "The scores are divided by d / heads, or scaled twice. Divide once by its root.",
        ),
        Mistake(
            "softmax over the queries",
            partial(attention_pool, axis=-2),
            "The softmax runs over the queries. There is one, so every weight becomes 1, and the"
            " patches are added up. It runs over the patches: dim=-1.",
        ),
        Mistake(
            "softmax over the heads",
            partial(attention_pool, axis=1),
            "The softmax runs over the heads. In each head the query shares out one whole among the"
            " patches: dim=-1.",
        ),
        Mistake(
            "softmax over the batch",
            partial(attention_pool, axis=0),
            "The softmax runs over the batch. In each picture the query shares out one whole among"
            " the patches: dim=-1.",
        ),
        Mistake(
            "patches ask",
            partial(attention_pool, asks="patches", last=lambda pooled: pooled.mean(1)),
            "Every patch asks every patch, and the mean is taken at the end. Here one thing asks:"
            " the probe.",
        ),
        *(
            Mistake(
                f"probe and patches ask, {name}",
                partial(attention_pool, **given),
                "The probe asks, and every patch asks too; then the mean of all answers is taken."
                " Here the probe alone asks.",
            )
            for name, given in {
                "mean before the MLP": {
                    "asks": "all",
                    "together": lambda y: y.mean(1, keepdim=True),
                },
                "mean at the end": {"asks": "all", "last": lambda pooled: pooled.mean(1)},
                "the probe a key too": {
                    "asks": "patches",
                    "read": lambda x, probe, norm: torch.cat([probe, x], dim=1),
                    "together": lambda y: y.mean(1, keepdim=True),
                },
            }.items()
        ),
        Mistake(
            "all pictures in one softmax",
            partial(attention_pool, read=lambda x, probe, norm: x.reshape(1, -1, x.shape[-1])),
            "The patches of all pictures stand in one softmax, so every picture gets the same"
            " vector. Each picture has its own, of its own n patches.",
        ),
        *(
            Mistake(
                f"patches ask, {name}",
                partial(attention_pool, asks="patches", together=together, read=read),
                says,
            )
            for name, together, read, says in (
                (
                    "mean before the MLP",
                    lambda y: y.mean(1, keepdim=True),
                    lambda x, probe, norm: x,
                    "Every patch asks every patch, and the mean is taken before the MLP. Here one"
                    " thing asks: the probe.",
                ),
                (
                    "with the probe",
                    lambda y: y.mean(1, keepdim=True),
                    lambda x, probe, norm: x + probe,
                    "The probe is added to every patch, and every patch asks. Here one thing asks,"
                    " the probe alone; the patches are keys and values as they are.",
                ),
            )
        ),
        Mistake(
            "probe added to the patches",
            partial(attention_pool, read=lambda x, probe, norm: x + probe),
            "The probe is added to the patches. Here it only asks; the patches are keys and values"
            " as they are.",
        ),
        Mistake(
            "norm before attention, not before the MLP",
            partial(
                attention_pool,
                read=lambda x, probe, norm: norm(x),
                ending=lambda y, probe, norm, mlp: y + mlp(y),
            ),
            "The norm stands before attention. It belongs before the MLP: the patches are read as"
            " they are, and the result is y + mlp(norm(y)).",
        ),
        Mistake(
            "patches ask, first patch",
            partial(attention_pool, asks="patches"),
            "The patches ask, and the first one's answer is taken. The query is the probe, the same"
            " for every picture.",
        ),
        Mistake(
            "mean of the values",
            partial(attention_pool, soft=lambda scores, _: scores * 0 + 1 / scores.shape[-1]),
            "Every patch gets the same weight, so nothing asks. The probe's query and the patches'"
            " keys decide how much each patch counts.",
        ),
        Mistake(
            "mean of the patches",
            lambda x, *given: x.mean(1) + given[-1](given[-2](x.mean(1))),
            "The patches themselves are averaged, all with the same weight, so nothing asks. The"
            " probe's query and the patches' keys decide how much each patch's value counts.",
        ),
        Mistake(
            "first patch only",
            partial(
                attention_pool,
                soft=lambda scores, _: scores * 0 + (torch.arange(scores.shape[-1]) == 0),
            ),
            "Only the first patch counts. is_causal=True does so: the one query then sees the first"
            " key alone. There is no mask: the probe sees all patches.",
        ),
        Mistake(
            "overflow",
            partial(
                attention_pool,
                soft=lambda scores, axis: scores.exp() / scores.exp().sum(axis, keepdim=True),
            ),
            "exp of a score above 88 is infinite in 32 bits, and of one below -104 it is 0; inf /"
            " inf and 0 / 0 are NaN. First subtract the largest score of the same head and picture"
            " (not the largest of all), or take softmax, which does it.",
        ),
        Mistake(
            "scores out of the graph",
            partial(attention_pool, soft=lambda scores, axis: scores.detach().softmax(axis)),
            "The values are right, but the scores, or the weights made of them, are out of"
            " autograd's graph (detach, no_grad), so the probe never learns what to ask for.",
        ),
        *(
            Mistake(
                f"scores limited to {most}",
                partial(
                    attention_pool,
                    soft=lambda scores, axis, most=most: scores.clamp(max=most).softmax(axis),
                ),
                "Large scores are limited (clamp), so several patches look equally good. Subtract"
                " the largest score of the same head and picture instead, or take softmax, which"
                " does it.",
            )
            for most in (5, 10, 20, 50, 60, 70, 80)
        ),
        Mistake(
            "not divided by the sum",
            partial(attention_pool, soft=lambda scores, _: scores.exp()),
            "The exponentials of the scores are not divided by their sum, so the weights do not sum"
            " to 1. softmax(dim=-1) does both.",
        ),
        Mistake(
            "no softmax",
            partial(attention_pool, soft=lambda scores, _: scores),
            "There is no softmax: the scores themselves weigh the values. They may be negative and"
            " do not sum to 1.",
        ),
        Mistake(
            "probe among the patches",
            partial(attention_pool, read=lambda x, probe, norm: torch.cat([probe, x], dim=1)),
            "The probe is also a key and a value, as a class token is. Here it only asks: keys and"
            " values are the patches alone.",
        ),
        *(
            Mistake(
                name,
                partial(attention_pool, read=read),
                "The patches are normed before attention reads them. The tower's last norm has done"
                " that; here they are read as they are, and `norm` belongs to the MLP.",
            )
            for name, read in {
                "patches normed": lambda x, probe, norm: norm(x),
                "patches normed without weights": lambda x, probe, norm: F.layer_norm(
                    x, x.shape[-1:]
                ),
            }.items()
        ),
        *(
            Mistake(
                name,
                partial(attention_pool, probe_of=probe_of),
                "The probe is normed before it asks. It goes straight into the queries' map.",
            )
            for name, probe_of in {
                "probe normed": lambda probe, norm: norm(probe[None])[0],
                "probe of length 1": lambda probe, norm: F.normalize(probe, dim=0),
            }.items()
        ),
        Mistake(
            "cut across",
            partial(
                attention_pool,
                cut=lambda stored, _: (
                    stored.reshape(stored.shape[-1], 3, -1).unbind(1)
                    if stored.ndim == 2
                    else stored.chunk(3)
                ),
            ),
            "in_weight is cut across: its first d rows are the queries' map, the next d the keys',"
            " the last d the values'. in_weight.chunk(3) cuts so.",
        ),
        Mistake(
            "sum of the patches",
            partial(attention_pool, last=lambda pooled: pooled.sum(1), asks="patches"),
            "Every patch asks every patch, and the results are added up. Here one thing asks: the"
            " probe.",
        ),
        Mistake(
            "mean asks",
            partial(attention_pool, asks="mean"),
            "The mean of the patches asks. The query is the probe, the same for every picture.",
        ),
        Mistake(
            "last map missing",
            partial(attention_pool, out=False),
            "The last map is missing: after the heads are put side by side, out_weight and out_bias"
            " mix them.",
        ),
        Mistake(
            "last map at the end",
            partial(attention_pool, out_last=True),
            "The last map comes at the end, after the MLP. It belongs to attention: what it gives"
            " is y, and the result is y + mlp(norm(y)).",
        ),
        Mistake(
            "last bias missing",
            partial(attention_pool, out_biases=0.0),
            "out_bias is missing.",
        ),
        *(
            Mistake(name, partial(attention_pool, ending=ending), says)
            for name, ending, says in (
                (
                    "no MLP",
                    lambda y, probe, norm, mlp: y,
                    "The MLP is missing. What is returned is y + mlp(norm(y)).",
                ),
                (
                    "no residual",
                    lambda y, probe, norm, mlp: mlp(norm(y)),
                    "You return what the MLP gives. It is added to y: y + mlp(norm(y)).",
                ),
                (
                    "norm twice",
                    lambda y, probe, norm, mlp: y + mlp(norm(norm(y))),
                    "The norm is applied twice before the MLP. Once: y + mlp(norm(y)).",
                ),
                *(
                    (
                        f"{what} out of the graph",
                        ending,
                        f"The values are right, but in the last sum {what} is out of autograd's"
                        " graph (detach, no_grad), so no gradient comes back that way.",
                    )
                    for what, ending in (
                        ("y", lambda y, probe, norm, mlp: y.detach() + mlp(norm(y))),
                        (
                            "what the MLP gives",
                            lambda y, probe, norm, mlp: y + mlp(norm(y)).detach(),
                        ),
                    )
                ),
                (
                    "MLP without norm",
                    lambda y, probe, norm, mlp: y + mlp(y),
                    "The MLP reads y without the norm: y + mlp(norm(y)).",
                ),
                (
                    "normed y added",
                    lambda y, probe, norm, mlp: norm(y) + mlp(norm(y)),
                    "The normed y is added. Norm only what the MLP reads: y + mlp(norm(y)).",
                ),
                (
                    "post-norm",
                    lambda y, probe, norm, mlp: norm(y + mlp(y)),
                    "The sum is normed, at the end. Norm what the MLP reads: y + mlp(norm(y)).",
                ),
                (
                    "norm after the MLP",
                    lambda y, probe, norm, mlp: y + norm(mlp(y)),
                    "The norm comes after the MLP. It comes before: y + mlp(norm(y)).",
                ),
                (
                    "result normed once more",
                    lambda y, probe, norm, mlp: norm(y + mlp(norm(y))),
                    "The result is normed once more. It is y + mlp(norm(y)), as it is.",
                ),
                (
                    "probe added to y",
                    lambda y, probe, norm, mlp: probe + y + mlp(norm(probe + y)),
                    "The probe is added to what attention gives. Here it only asks; nothing starts"
                    " from it.",
                ),
                (
                    "probe added at the end",
                    lambda y, probe, norm, mlp: y + probe + mlp(norm(y)),
                    "The probe is added at the end. Here it only asks.",
                ),
                (
                    "probe for y",
                    lambda y, probe, norm, mlp: probe + mlp(norm(y)),
                    "The MLP's result is added to the probe. It is added to y: y + mlp(norm(y)).",
                ),
                (
                    "y twice",
                    lambda y, probe, norm, mlp: 2 * y + mlp(norm(y)),
                    "y is added twice. Once: y + mlp(norm(y)).",
                ),
            )
        ),
        Mistake(
            "axis of the query left",
            partial(attention_pool, last=lambda pooled: pooled),
            "The axis of the one query is still there: (b, 1, d). One vector for each picture is"
            " (b, d).",
        ),
        Mistake(
            "batch axis lost",
            partial(attention_pool, last=lambda pooled: pooled.squeeze()),
            "For a batch of one picture the batch axis is gone, because squeeze() removes every"
            " axis"
            " of length 1. Name the axis: [:, 0] or squeeze(1).",
        ),
        Mistake(
            "first picture only",
            partial(attention_pool, last=lambda pooled: pooled[0]),
            "Only the first picture's vector is returned. The result is (b, d).",
        ),
    ),
    crashes=(
        Mistake(
            "whole in_weight",
            lambda x, probe, in_weight, in_bias, *_: F.linear(x, in_weight, in_bias).reshape(
                x.shape
            ),
            "in_weight makes three vectors in one: queries, keys and values. Cut it into three"
            " pieces of d rows, or the result into three of d numbers.",
        ),
    ),
    hints=(
        "Four steps: cut in_weight and in_bias in three, make one query of the probe and keys and"
        " values of the patches, attend in all heads, then the last map and y + mlp(norm(y)).",
        "q_weight, k_weight, v_weight = in_weight.chunk(3), and the same with in_bias. The query is"
        " F.linear(probe, q_weight, q_bias) and has no batch: reshape it to (1, heads, 1, d //"
        " heads), and torch stretches it over all pictures.",
        "Keys and values: F.linear(x, weight, bias).reshape(b, n, heads, -1).transpose(1, 2). The"
        " weights are (query @ key.mT * (d // heads) ** -0.5).softmax(-1), (b, heads, 1, n)."
        " weights"
        " @ value is (b, heads, 1, d // heads): reshape it to (b, d), which puts the heads side by"
        " side.",
    ),
)

EXERCISES = (MLP, ENCODER_LAYER, ATTENTION_POOL)
