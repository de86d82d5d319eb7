"""Lesson 03: attention as a weighted average, and in several heads."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.attention import attend
from minipali.checks.engine import Exercise, Mistake


def _attend_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(3)

    def given(b: int, h: int, t: int, s: int, k: int) -> list[Tensor]:
        shapes = (b, h, t, k), (b, h, s, k), (b, h, s, k)
        return [torch.randn(shape, generator=random) for shape in shapes]

    # Every row sees something and hides something, and no two pictures have the same mask.
    some = torch.rand(3, 1, 5, 4, generator=random) < 0.5
    some[..., 1], some[..., 2] = True, False
    none = torch.rand(2, 1, 4, 6, generator=random) < 0.5
    none[..., 0] = True
    none[1, 0, 2] = False  # this query may see nothing
    # Scores in the hundreds and thousands: exp overflows. Whole numbers and k = 4 keep them exact,
    # however they are added up; each query has one clear winner.
    query = 40 * torch.tensor([[1.0, -1, 0, 2], [0, 3, 1, 0], [-2, 0, 0, 1]])
    key = 10 * torch.tensor(
        [[1.0, 0, 0, 2], [0, 4, 1, 0], [-1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    )
    value = torch.randn(1, 2, 5, 4, generator=random)
    huge = [query.expand(1, 2, 3, 4).clone(), key.expand(1, 2, 5, 4).clone(), value]
    return [
        (*given(2, 3, 4, 5, 9), None),
        (*given(3, 2, 5, 4, 7), some),
        (*given(2, 3, 4, 6, 5), none),
        (*huge, None),
    ]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: Callable[[int], float] = lambda k: k**-0.5,
    axis: int = -1,
    hidden: Callable[[Tensor], Tensor] = lambda mask: ~mask,
    fill: float = float("-inf"),
    clean: bool = True,
) -> Tensor:
    """attend with one thing changed; clean: hidden weights are set to zero at the end."""
    scores = query @ key.transpose(-1, -2) * scale(query.shape[-1])
    if mask is None:
        return scores.softmax(axis) @ value
    weights = scores.masked_fill(hidden(mask), fill).softmax(axis)
    return (weights.masked_fill(hidden(mask), 0.0) if clean else weights) @ value


def _mask_after_softmax(query, key, value, mask):
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ value


ATTEND = Exercise(
    name="attend",
    reference=attend,
    cases=_attend_cases,
    axes="b h t k",
    checked=(
        "shape, dtype and every value on 4 batches in which all axes differ: without a mask, with a"
        " mask, with a query that may see nothing (zeros), with huge scores; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake(
            "scale missing",
            partial(_attend, scale=lambda k: 1.0),
            "The scores are not scaled. Multiply them by 1 / sqrt(k) before the softmax, where k ="
            " query.shape[-1]; else wide heads look at one key alone.",
        ),
        Mistake(
            "scale by k",
            partial(_attend, scale=lambda k: 1 / k),
            "The scores are divided by k. Divide by its square root: a sum of k products typically"
            " has the size sqrt(k), not k.",
        ),
        Mistake(
            "times minus a half",
            partial(_attend, scale=lambda k: k * -0.5),
            "The scores are multiplied by k * -0.5, one star short of k ** -0.5. The factor is"
            " negative, so the least similar key gets the largest weight.",
        ),
        Mistake(
            "softmax over the queries",
            partial(_attend, axis=-2),
            "The softmax runs over the queries. Each query shares out one whole among the keys: a"
            " row of (t, s) must sum to 1, so take dim=-1.",
        ),
        Mistake(
            "mask after the softmax",
            _mask_after_softmax,
            "The mask comes after the softmax. Hidden keys have already taken their share, so the"
            " rows sum to less than 1. Put -inf into the scores, then take the softmax.",
        ),
        Mistake(
            "mask upside down",
            partial(_attend, hidden=lambda mask: mask),
            "The mask is upside down: True means that the query may look there. Fill the others:"
            " masked_fill(~mask, ...).",
        ),
        Mistake(
            "NaN where nothing is visible",
            partial(_attend, clean=False),
            "A query that may see nothing gives NaN: its scores are all -inf, so the softmax"
            " computes 0 / 0. The contract says zeros: set the hidden weights to 0 after the"
            " softmax as well.",
        ),
        Mistake(
            "average where nothing is visible",
            partial(_attend, fill=-1e9, clean=False),
            "A query that may see nothing gets the plain average of all values, hidden ones too: if"
            " all scores are the same large negative number, the softmax finds them equal. The"
            " contract says zeros.",
        ),
    ),
    hints=(
        "Three steps: scores (t, s) from queries and keys, weights from scores, and the weighted"
        " sum of the values. The mask belongs between the first and the second.",
        "scores = query @ key.transpose(-1, -2), times k ** -0.5. The last axis counts the keys,"
        " and the softmax runs over it.",
        "masked_fill(~mask, float('-inf')) on the scores gives hidden keys the weight 0. A row of"
        " -inf alone becomes NaN: after the softmax, masked_fill(~mask, 0.0) on the weights turns"
        " it into zeros. With mask None, do neither.",
    ),
)


def _multi_head_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(4)

    def case(b: int, n: int, d: int, heads: int) -> tuple:
        x = torch.randn(b, n, d, generator=random)
        maps = []
        for _ in range(4):
            maps.append(torch.randn(d, d, generator=random) * 1.3 * d**-0.5)
            maps.append(torch.randn(d, generator=random))
        return (x, *maps, heads)

    return [case(2, 5, 12, 3), case(3, 7, 10, 2)]


def multi_head_attention(
    x: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    heads: int,
    *,
    split: str = "b n (h k) -> b h n k",
    merge: str = "b h n k -> b n (h k)",
    scale_by_width: bool = False,
    transposed: bool = False,
    out: bool = True,
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with one thing changed.

    Empty patterns stand for a plain reshape.
    """
    b, n, d = x.shape

    def linear(x, weight, bias):
        return F.linear(x, weight.T if transposed else weight, bias)

    def parts(x):
        if not split:
            return x.reshape(b, heads, n, d // heads)
        return rearrange(x, split, h=heads)

    query, key, value = (
        parts(linear(x, weight, bias))
        for weight, bias in ((q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias))
    )
    if scale_by_width:
        query = query * heads**-0.5  # k ** -0.5 * h ** -0.5 = d ** -0.5
    mixed = attend(query, key, value, None)
    mixed = rearrange(mixed, merge) if merge else mixed.reshape(b, n, d)
    return linear(mixed, out_weight, out_bias) if out else mixed


MULTI_HEAD_ATTENTION = Exercise(
    name="multi_head_attention",
    reference=multi_head_attention,
    cases=_multi_head_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches with 5 and 7 patches, 3 and 2 heads; inputs"
        " unchanged (the bias of the keys cannot be checked: it changes no result; see the lesson's"
        " self-test)"
    ),
    mistakes=(
        Mistake(
            "heads split as (k h)",
            partial(
                multi_head_attention, split="b n (k h) -> b h n k", merge="b h n k -> b n (k h)"
            ),
            "The heads are split as (k h): each head got every h-th number. The trained weights"
            " keep the numbers of a head side by side: write (h k), the head as the slow axis.",
        ),
        Mistake(
            "heads merged as (k h)",
            partial(multi_head_attention, merge="b h n k -> b n (k h)"),
            "The heads are split rightly but put back as (k h), in another order than they came."
            " Write (h k) on the way back too.",
        ),
        Mistake(
            "reshaped without transpose",
            partial(multi_head_attention, split="", merge=""),
            "The heads come from a reshape alone, (b, n, d) to (b, h, n, k). It moves no axis, so"
            " numbers of different patches end up in one head. Split d first: (b, n, h, k), then"
            " transpose n and h.",
        ),
        Mistake(
            "merged without transpose",
            partial(multi_head_attention, merge=""),
            "The result of the heads, (b, h, n, k), is reshaped to (b, n, d) without a transpose,"
            " so numbers of different patches are mixed up. Bring n before h first.",
        ),
        Mistake(
            "heads attend to heads",
            partial(
                multi_head_attention, split="b n (h k) -> b n h k", merge="b n h k -> b n (h k)"
            ),
            "The heads of one patch attend to each other, and no patch sees another. Positions are"
            " compared, inside each head: n must be the last axis but one, (b, h, n, k).",
        ),
        Mistake(
            "scale by the whole width",
            partial(multi_head_attention, scale_by_width=True),
            "The scores are scaled by the whole width d. Each head's dot product has only k = d /"
            " heads terms: scale by 1 / sqrt(k).",
        ),
        Mistake(
            "weights transposed",
            partial(multi_head_attention, transposed=True),
            "The weights are used as x @ W. torch keeps a weight as (out, in): write x @ W.T, or"
            " F.linear(x, W, bias). The matrices are square, so no shape complains.",
        ),
        Mistake(
            "last map missing",
            partial(multi_head_attention, out=False),
            "The last map is missing: after the heads are put side by side, out_weight and out_bias"
            " mix them.",
        ),
    ),
    hints=(
        "Five steps: three affine maps, split into heads, attend in all heads at once, put the"
        " heads side by side, one more affine map.",
        "x @ W.T + bias, or F.linear(x, W, bias). Then (b, n, d) becomes (b, h, n, k): `b n (h k)"
        " -> b h n k`. Now your attend works on the last two axes, with mask None.",
        "The way back is the same pattern, read from right to left: `b h n k -> b n (h k)`. With"
        " torch alone: view(b, n, heads, k).transpose(1, 2), and back transpose(1, 2).reshape(b, n,"
        " d).",
    ),
)

EXERCISES = (ATTEND, MULTI_HEAD_ATTENTION)
