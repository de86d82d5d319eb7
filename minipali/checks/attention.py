"""Lesson 03: attention as a weighted average, in several heads, and block by block."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.attention import attention_weights
from minipali.checks.blocks import Blocks, in_little_memory
from minipali.checks.engine import Exercise, Mistake

FINISHED = (
    "scaled_dot_product_attention", "multi_head_attention_forward",
    "_native_multi_head_attention",
)  # fmt: skip

# Scores in the hundreds and thousands: exp overflows. Whole numbers and k = 4 keep them exact,
# however they are added up.
QUERY = 40 * torch.tensor([[1.0, -1, 0, 2], [0, 3, 1, 0], [-2, 0, 0, 1]])
KEY = 10 * torch.tensor([[1.0, 0, 0, 2], [0, 4, 1, 0], [-1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The reference: (b, h, t, k)."""
    return attention_weights(query, key, mask) @ value


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
    value = torch.randn(1, 2, 5, 4, generator=random)
    huge = [QUERY.expand(1, 2, 3, 4).clone(), KEY.expand(1, 2, 5, 4).clone(), value]
    # The best keys are hidden: what the first and the last query may see has scores far below 0.
    far = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()[None, None]
    return [
        (*given(2, 3, 4, 5, 9), None),
        (*given(3, 2, 5, 4, 7), some),
        (*given(2, 3, 4, 6, 5), none),
        (*huge, far),
    ]


def _exponentials(scores: Tensor, axis: int) -> Tensor:
    shares = scores.exp()
    return shares / shares.sum(axis, keepdim=True)


def _exponentials_over_something(scores: Tensor, axis: int) -> Tensor:
    shares = scores.exp()
    return shares / shares.sum(axis, keepdim=True).clamp(min=1e-30)


def _one_largest(scores: Tensor, axis: int) -> Tensor:
    shares = (scores - scores.max()).exp()
    return shares / shares.sum(axis, keepdim=True)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: Callable[[Tensor, Tensor], float] = lambda query, key: query.shape[-1] ** -0.5,
    cosines: bool = False,
    axis: int = -1,
    distances: bool = False,
    added: float | None = None,
    lowered: float | None = None,
    limit: float = math.inf,
    after: Callable[[Tensor, Tensor], Tensor] = lambda mixed, query: mixed,
    soft: Callable[[Tensor, int], Tensor] = torch.softmax,
    mask_of: Callable[[Tensor], Tensor | None] = lambda mask: mask,
    hides: Callable[[Tensor], Tensor] = torch.logical_not,
    fill: float = float("-inf"),
    clean: bool = True,
    values: Callable[[Tensor, Tensor], Tensor] = lambda key, value: value,
) -> Tensor:
    """attend with one thing changed; clean: hidden weights are set to zero at the end."""
    if cosines:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    scores = -torch.cdist(query, key) if distances else query @ key.mT
    scores = (scores * scale(query, key)).clamp(-limit, limit)
    mask = None if mask is None else mask_of(mask)
    if mask is None:
        return after(soft(scores, axis) @ values(key, value), query)
    hidden = hides(mask)
    if added is not None:
        weights = soft(scores + added * mask, axis)
    elif lowered is not None:
        weights = soft(scores - lowered * hidden, axis)
        weights = weights * mask.any(-1, keepdim=True) if clean else weights
    else:
        weights = soft(scores.masked_fill(hidden, fill), axis)
        weights = weights.masked_fill(hidden, 0.0) if clean else weights
    return after(weights @ values(key, value), query)


def _mask_after_softmax(query, key, value, mask):
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ value


def _hidden_ones_largest(query, key, value, mask, least: float):
    scores = query @ key.mT * query.shape[-1] ** -0.5
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    shares = shares if mask is None else shares * mask
    return shares / shares.sum(-1, keepdim=True).clamp(min=least) @ value


def _mask_squeezed(query, key, value, mask):
    return (
        attend(query, key, value, None)
        if mask is None
        else (query @ key.mT).masked_fill(~mask.squeeze(1), float("-inf"))
    )


def _index_with_mask(query, key, value, mask):
    if mask is None:
        return attend(query, key, value, None)
    scores = query @ key.mT
    scores[~mask] = float("-inf")
    return scores


SCALE_MISSING = (
    "The scores are not scaled. Multiply them by 1 / sqrt(k) before the softmax, where k ="
    " query.shape[-1]; else wide heads look at one key alone."
)
OVERFLOW = (
    "exp of a large score is infinite, and exp of a score far below 0 is 0; then inf / inf or 0 / 0"
    " gives nan. Subtract each row's largest score before exp: no weight changes, and nothing"
    " overflows. torch's softmax does it."
)

ATTEND = Exercise(
    name="attend",
    reference=attend,
    cases=_attend_cases,
    axes="b h t k",
    banned=FINISHED,
    checked=(
        "shape, dtype and every value on 4 batches in which all axes differ: without a mask, with a"
        " mask, with a query that may see nothing (zeros), with huge scores of either sign; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake("scale missing", partial(_attend, scale=lambda query, key: 1.0), SCALE_MISSING),
        Mistake(
            "scale by k",
            partial(_attend, scale=lambda query, key: 1 / query.shape[-1]),
            "The scores are divided by k. Divide by its square root: a sum of k products typically"
            " has the size sqrt(k), not k.",
        ),
        Mistake(
            "times minus a half",
            partial(_attend, scale=lambda query, key: query.shape[-1] * -0.5),
            "The scores are multiplied by k * -0.5, one star short of k ** -0.5. The factor is"
            " negative, so the least similar key gets the largest weight.",
        ),
        Mistake(
            "times the root",
            partial(_attend, scale=lambda query, key: query.shape[-1] ** 0.5),
            "The scores are multiplied by sqrt(k). Divide by it: k ** -0.5.",
        ),
        *(
            Mistake(
                f"scale by {name}",
                partial(_attend, scale=lambda query, key, of=of: of(query, key) ** -0.5),
                f"The scores are divided by the root of {name}. The number that"
                " counts is k, the width of one head: query.shape[-1].",
            )
            for name, of in {
                "the number of keys": lambda query, key: key.shape[-2],
                "the number of queries": lambda query, key: query.shape[-2],
                "the number of heads": lambda query, key: query.shape[1],
                "the width of all heads together": lambda query, key: query[0, :, 0].numel(),
            }.items()
        ),
        Mistake(
            "scaled twice",
            partial(_attend, scale=lambda query, key: query.shape[-1] ** -0.25),
            "The scores are divided by the fourth root of k, the root of the root.",
        ),
        Mistake(
            "cosines",
            partial(_attend, cosines=True),
            "You compare queries and keys by their cosine. Attention takes the dot product as it"
            " is: long queries and keys count for more.",
        ),
        Mistake(
            "softmax over the queries",
            partial(_attend, axis=-2),
            "The softmax runs over the queries. Each query shares out one whole among the keys: a"
            " row of (t, s) must sum to 1, so take dim=-1.",
        ),
        Mistake(
            "softmax over the heads",
            partial(_attend, axis=1),
            "The softmax runs over the heads. Each query shares out one whole among the keys: the"
            " last axis of (b, h, t, s), dim=-1.",
        ),
        Mistake(
            "softmax over the batch",
            partial(_attend, axis=0),
            "The softmax runs over the batch. Each query shares out one whole among the keys: the"
            " last axis of (b, h, t, s), dim=-1.",
        ),
        Mistake(
            "no softmax",
            partial(_attend, soft=lambda scores, axis: scores, fill=0.0),
            "There is no softmax: the scores themselves weigh the values. They may be negative and"
            " do not sum to 1.",
        ),
        Mistake(
            "not divided",
            partial(_attend, soft=lambda scores, axis: scores.exp()),
            "The exponentials are not divided by their sum, so the weights of a query do not sum"
            " to 1.",
        ),
        Mistake(
            "sigmoid",
            partial(_attend, soft=lambda scores, axis: scores.sigmoid()),
            "You take the sigmoid of each score. The weights of a query must sum to 1: softmax.",
        ),
        Mistake("overflow", partial(_attend, soft=_exponentials), OVERFLOW),
        Mistake(
            "overflow, 0 avoided", partial(_attend, soft=_exponentials_over_something), OVERFLOW
        ),
        Mistake(
            "one largest for all",
            partial(_attend, soft=_one_largest),
            "You subtract one largest score from all rows. A row whose scores lie far below it has"
            " only zeros left, and 0 / 0 is nan. Each query has a largest score of its own:"
            " amax(dim=-1, keepdim=True).",
        ),
        Mistake(
            "mask after the softmax",
            _mask_after_softmax,
            "The mask comes after the softmax. Hidden keys have already taken their share, so the"
            " rows sum to less than 1. Put -inf into the scores, then take the softmax.",
        ),
        Mistake(
            "mask upside down",
            partial(_attend, hides=lambda mask: mask),
            "The mask is upside down: True means that the query may look there. Fill the others:"
            " masked_fill(~mask, ...).",
        ),
        Mistake(
            "mask ignored",
            partial(_attend, mask_of=lambda mask: None),
            "The mask is ignored: every query sees every key. Fill the scores of hidden keys with"
            " -inf before the softmax.",
        ),
        Mistake(
            "one mask for the batch",
            partial(_attend, mask_of=lambda mask: mask[:1]),
            "The mask of the first picture is used for the whole batch. Each picture has its own;"
            " only the heads share it.",
        ),
        Mistake(
            "one row for all queries",
            partial(_attend, mask_of=lambda mask: mask[:, :, :1]),
            "The first query's row of the mask is used for all queries. Each query has its own"
            " row.",
        ),
        Mistake(
            "hidden scores are 0",
            partial(_attend, fill=0.0, clean=False),
            "Hidden scores are set to 0, but exp(0) is 1: hidden keys still take part. Set them to"
            " -inf, whose exponential is 0.",
        ),
        Mistake(
            "hidden scores are 0, then cleaned",
            partial(_attend, fill=0.0),
            "Hidden scores are set to 0, but exp(0) is 1: hidden keys take a share, and the rest"
            " sums to less than 1. Set them to -inf before the softmax.",
        ),
        *(
            Mistake(
                f"hidden scores are {fill}",
                partial(_attend, fill=fill, clean=False),
                f"Hidden scores are set to {fill:g}. Visible scores can be lower than that, and"
                f" then"
                " the hidden keys win. -inf is lower than every score.",
            )
            for fill in (-10.0, -100.0)
        ),
        Mistake(
            "hidden scores are tiny",
            partial(_attend, fill=1e-3, clean=False),
            "Hidden scores are set to a tiny number above 0. Its exponential is 1: hidden keys"
            " still"
            " take part. Set them to -inf, whose exponential is 0.",
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
        *(
            Mistake(
                f"hidden scores lowered by {by:g}",
                partial(_attend, lowered=by, clean=False),
                "A query that may see nothing looks at all keys: you lower every hidden score by"
                " one large number, and if all are lowered, the softmax does not notice it. The"
                " contract says zeros.",
            )
            for by in (1e4, 1e5, 1e6)
        ),
        *(
            Mistake(
                f"hidden scores lowered by only {by:g}",
                partial(_attend, lowered=by),
                "The scores of hidden keys are lowered by a fixed number. Where they are higher by"
                " more, hidden keys still get a share. Fill in -inf, below which nothing is.",
            )
            for by in (10.0, 100.0, 1000.0)
        ),
        Mistake(
            "clamped",
            partial(_attend, limit=50.0),
            "The scores are clamped, so that exp cannot overflow. Then all large scores count the"
            " same. Subtract each query's largest score instead, as torch's softmax does: that"
            " changes no weight.",
        ),
        *(
            Mistake(
                f"largest of the hidden ones, {name}",
                lambda *given, least=least: _hidden_ones_largest(*given, least),
                "The largest score that you subtract may be that of a hidden key. If all visible"
                " ones lie far below it, their exponentials are all 0, and nothing is left to share"
                " out. Hide first (-inf), then take the largest.",
            )
            for name, least in (("0 / 0", 0.0), ("0", 1e-30))
        ),
        Mistake(
            "zeros everywhere",
            partial(
                _attend,
                clean=False,
                after=lambda mixed, _: torch.zeros_like(mixed) if mixed.isnan().any() else mixed,
            ),
            "One query may see nothing, and all results become zeros with it. Only that query's own"
            " result is zeros.",
        ),
        *(
            Mistake(
                f"zeros for {whose}",
                partial(
                    _attend,
                    clean=False,
                    after=lambda mixed, _, axes=axes: mixed.masked_fill(
                        mixed.isnan().any(dim=axes, keepdim=True), 0.0
                    ),
                ),
                f"One query may see nothing, and {whose} becomes zeros with it. Only that query's"
                " own result is zeros: ask mask.any(dim=-1), for each query by itself.",
            )
            for whose, axes in {
                "its whole picture": (1, 2, 3),
                "the query with its number in every picture": (0, 1, 3),
            }.items()
        ),
        Mistake(
            "mask added",
            partial(_attend, added=1.0),
            "The mask is added to the scores as 0 and 1. That favours the visible keys a little and"
            " hides nothing: hidden scores become -inf.",
        ),
        Mistake(
            "scaled after the softmax",
            partial(
                _attend,
                scale=lambda query, key: 1.0,
                after=lambda mixed, query: mixed * query.shape[-1] ** -0.5,
            ),
            "The scale comes after the softmax. It belongs to the scores: query . key / sqrt(k),"
            " then softmax.",
        ),
        Mistake(
            "scaled twice, before and after",
            partial(_attend, after=lambda mixed, query: mixed * query.shape[-1] ** -0.5),
            "The result is divided by sqrt(k) once more. The scale belongs to the scores alone.",
        ),
        Mistake(
            "softmax of the result",
            partial(_attend, after=lambda mixed, _: mixed.softmax(-1)),
            "A softmax comes after the values, too. The result is their weighted sum as it is.",
        ),
        Mistake(
            "winner alone",
            partial(_attend, soft=lambda s, axis: (s == s.amax(axis, keepdim=True)).float()),
            "Each query takes the value of its best key alone. The softmax gives every visible key"
            " a share.",
        ),
        Mistake(
            "distances",
            partial(_attend, distances=True),
            "You compare queries and keys by their distance. Attention takes the dot product.",
        ),
        Mistake(
            "keys for values",
            partial(_attend, values=lambda key, value: key),
            "You average the keys. The weights come from queries and keys; what is averaged are the"
            " values.",
        ),
    ),
    crashes=(
        Mistake(
            "no case for None",
            lambda query, key, value, mask: ~mask,
            "mask may be None, and then there is nothing to hide: ask `if mask is None` first.",
        ),
        Mistake(
            "None filled",
            lambda query, key, value, mask: query.masked_fill(mask == 0, 0.0),
            "mask may be None, and then there is nothing to hide: ask `if mask is None` first.",
        ),
        Mistake(
            "mask without its axis for the heads",
            _mask_squeezed,
            "The mask has lost its axis for the heads: (b, t, s) is set against (b, h, t, s) from"
            " the right, so its b meets h. Leave it (b, 1, t, s): the axis of length 1 stretches"
            " over all heads.",
        ),
        Mistake(
            "indexed by the mask",
            _index_with_mask,
            "scores[~mask] wants a mask of just the shape of the scores. This one has an axis of"
            " length 1 for all heads: masked_fill(~mask, ...) stretches it.",
        ),
        Mistake(
            "not transposed",
            lambda query, key, value, mask: query @ key,
            "The keys are not transposed. query @ key.transpose(-1, -2) compares each query with"
            " each key.",
        ),
        Mistake(
            "wrong axes transposed",
            lambda query, key, value, mask: query @ key.transpose(1, 2),
            "The wrong axes of the keys are transposed. The last two change places:"
            " key.transpose(-1, -2).",
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
    number: Callable[[int, int], int] = lambda heads, d: heads,
    scale: Callable[[int, int], float] = lambda k, heads: k**-0.5,
    axis: int = -1,
    causal: bool = False,
    weights_from: str = "qkv",
    biases_from: str = "qkv",
    transposed: str = "",
    out: bool = True,
    out_biases: Callable[[int], float] = lambda heads: 1.0,
    residual: bool = False,
) -> Tensor:
    """(b, n, d) -> (b, n, d). The reference, or with one thing changed.

    Empty patterns stand for a plain reshape; "." in weights_from for no map, in biases_from for no
    bias; transposed: whose weights are, of "q", "k", "v" and "o".
    """
    b, n, d = x.shape
    own = heads
    heads = number(heads, d)
    weights = {"q": q_weight, "k": k_weight, "v": v_weight, ".": torch.eye(d)}
    biases = {"q": q_bias, "k": k_bias, "v": v_bias, ".": torch.zeros_like(q_bias)}

    def turned(weight: Tensor, name: str) -> Tensor:
        return weight.T if name in transposed else weight

    def parts(x: Tensor) -> Tensor:
        if not split:
            return x.reshape(b, heads, n, d // heads)
        return rearrange(x, split, h=heads)

    query, key, value = (
        parts(F.linear(x, turned(weights[of], name), biases[bias]))
        for name, of, bias in zip("qkv", weights_from, biases_from, strict=True)
    )
    scores = query @ key.mT * scale(query.shape[-1], own)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    mixed = scores.softmax(axis) @ value
    mixed = rearrange(mixed, merge) if merge else mixed.reshape(b, n, d)
    if out:
        mixed = F.linear(mixed, turned(out_weight, "o"), out_biases(own) * out_bias)
    return x + mixed if residual else mixed


HEADS_ATTEND_TO_HEADS = (
    "The heads of one patch attend to each other, and no patch sees another. Positions are"
    " compared, inside each head: n must be the last axis but one, (b, h, n, k)."
)

MULTI_HEAD_ATTENTION = Exercise(
    name="multi_head_attention",
    reference=multi_head_attention,
    cases=_multi_head_cases,
    axes="b n d",
    banned=FINISHED,
    checked=(
        "shape, dtype and every value on 2 batches with 5 and 7 patches, 3 and 2 heads; inputs"
        " unchanged (the bias of the keys cannot be checked: it adds one number to all scores of a"
        " query, and changes no result)"
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
            "heads split as (k h), merged as (h k)",
            partial(multi_head_attention, split="b n (k h) -> b h n k"),
            "The heads are split as (k h): each head got every h-th number. They are put back"
            " rightly, as (h k). Split them as (h k) too: the numbers of a head stand side by"
            " side.",
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
            "split without transpose",
            partial(multi_head_attention, split=""),
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
            HEADS_ATTEND_TO_HEADS,
        ),
        Mistake(
            "one head",
            partial(multi_head_attention, number=lambda heads, d: 1),
            "Everything is in one head of width d: `heads` is not used. Each head compares its own"
            " d / heads numbers, and has weights of its own.",
        ),
        Mistake(
            "k heads of width h",
            partial(multi_head_attention, number=lambda heads, d: d // heads),
            "The number of heads and their width are exchanged: there are `heads` heads, each of"
            " width d / heads.",
        ),
        Mistake(
            "scale by the whole width",
            partial(multi_head_attention, scale=lambda k, heads: (k * heads) ** -0.5),
            "The scores are scaled by the whole width d. Each head's dot product has only k = d /"
            " heads terms: scale by 1 / sqrt(k).",
        ),
        Mistake(
            "scale missing",
            partial(multi_head_attention, scale=lambda k, heads: 1.0),
            "The scores are not scaled. Does your `attend` do it, with k = d / heads? 1 / sqrt(k),"
            " before the softmax.",
        ),
        Mistake(
            "scaled twice",
            partial(multi_head_attention, scale=lambda k, heads: 1 / k),
            "The scores are divided by k, as if they were scaled twice by 1 / sqrt(k). Your"
            " `attend`"
            " does it once already.",
        ),
        Mistake(
            "scale by heads",
            partial(multi_head_attention, scale=lambda k, heads: heads**-0.5),
            "The scores are scaled by the number of heads. The dot product has k = d / heads terms:"
            " scale by 1 / sqrt(k).",
        ),
        Mistake(
            "softmax over the queries",
            partial(multi_head_attention, axis=-2),
            "The softmax runs over the queries. Each query shares out one whole among the keys:"
            " dim=-1.",
        ),
        Mistake(
            "causal",
            partial(multi_head_attention, causal=True),
            "No patch sees the ones after it, as in a language model. The vision tower has no mask:"
            " every patch sees every patch.",
        ),
        *(
            Mistake(
                f"weights of {names}, biases of {biases}",
                partial(multi_head_attention, weights_from=names, biases_from=biases),
                says,
            )
            for names, biases, says in (
                (
                    "qvk",
                    "qvk",
                    "Keys and values are exchanged: what is compared are queries and"
                    " keys, what is averaged are the values.",
                ),
                (
                    "kqv",
                    "kqv",
                    "Queries and keys are exchanged. A query asks and a key is found:"
                    " the rows of the table belong to the queries.",
                ),
                (
                    "qkk",
                    "qkk",
                    "The values come from the keys' map. They have a weight and a bias of"
                    " their own.",
                ),
                (
                    "qkk",
                    "qkv",
                    "The values come from the keys' weight. They have a weight of their own.",
                ),
                (
                    "qqv",
                    "qqv",
                    "The keys come from the queries' map. They have a weight of their own.",
                ),
                (
                    "qkq",
                    "qkq",
                    "The values come from the queries' map. They have a weight and a bias"
                    " of their own.",
                ),
                (
                    "qk.",
                    "qk.",
                    "The values are x itself: their map, v_weight and v_bias, is missing.",
                ),
                (
                    "q.v",
                    "q.v",
                    "The keys are x itself: their map, k_weight and k_bias, is missing.",
                ),
                (
                    ".kv",
                    ".kv",
                    "The queries are x itself: their map, q_weight and q_bias, is missing.",
                ),
                (
                    "...",
                    "...",
                    "x itself serves as queries, keys and values: the three maps before attention"
                    " are missing.",
                ),
                (
                    "qqq",
                    "qqq",
                    "Keys and values come from the queries' map. Each of the three has a"
                    " weight and a bias of its own.",
                ),
            )
        ),
        *(
            Mistake(f"biases {names}", partial(multi_head_attention, biases_from=names), says)
            for names, says in (
                (".kv", "The bias of the queries is missing."),
                ("qk.", "The bias of the values is missing."),
                ("...", "The biases of queries, keys and values are missing: x W^T + b."),
                ("qkk", "The values get the bias of the keys. They have their own."),
                ("qkq", "The values get the bias of the queries. They have their own."),
                ("kkv", "The queries get the bias of the keys. They have their own."),
                ("vkv", "The queries get the bias of the values. They have their own."),
            )
        ),
        Mistake(
            "bias of the last map missing",
            partial(multi_head_attention, out_biases=lambda heads: 0.0),
            "The bias of the last map is missing.",
        ),
        Mistake(
            "no biases",
            partial(multi_head_attention, biases_from="...", out_biases=lambda heads: 0.0),
            "All biases are missing. In SigLIP every map has one: x W^T + b.",
        ),
        Mistake(
            "weights transposed",
            partial(multi_head_attention, transposed="qkvo"),
            "The weights are used as x @ W. torch keeps a weight as (out, in): write x @ W.T, or"
            " F.linear(x, W, bias). The matrices are square, so no shape complains.",
        ),
        Mistake(
            "last weight transposed",
            partial(multi_head_attention, transposed="o"),
            "The last weight is used as x @ W, the others rightly. torch keeps a weight as (out,"
            " in): x @ W.T, or F.linear(x, W, bias).",
        ),
        *(
            Mistake(
                f"{name} transposed",
                partial(multi_head_attention, transposed=name[0]),
                f"The weight of the {name} is used as x @ W, the others rightly. torch keeps a"
                " weight as (out, in): x @ W.T, or F.linear(x, W, bias).",
            )
            for name in ("queries", "keys", "values")
        ),
        Mistake(
            "first weights transposed",
            partial(multi_head_attention, transposed="qkv"),
            "The weights of queries, keys and values are used as x @ W, the last one rightly. torch"
            " keeps a weight as (out, in): x @ W.T, or F.linear(x, W, bias).",
        ),
        Mistake(
            "last map missing",
            partial(multi_head_attention, out=False),
            "The last map is missing: after the heads are put side by side, out_weight and out_bias"
            " mix them.",
        ),
        Mistake(
            "bias of the last map in every head",
            partial(multi_head_attention, out_biases=lambda heads: heads),
            "The bias of the last map is added once for each head. Add it once, to the sum of what"
            " the heads give.",
        ),
        Mistake(
            "residual",
            partial(multi_head_attention, residual=True),
            "x is added to the result. That is the work of the block around it (lesson 04), not of"
            " attention itself.",
        ),
    ),
    crashes=(
        Mistake(
            "view after transpose",
            lambda x, *given: (
                x.reshape(*x.shape[:2], given[-1], -1)
                .transpose(1, 2)
                .contiguous()
                .transpose(1, 2)
                .view(x.shape)
            ),
            "view cannot merge what transpose has moved, because it never moves a number in memory."
            " reshape can: it copies where it must.",
        ),
        Mistake(
            "heads not merged",
            lambda x, *given: F.linear(
                x.reshape(*x.shape[:2], given[-1], -1).transpose(1, 2), given[6], given[7]
            ),
            "The heads are not put back side by side before the last map: (b, h, n, k) becomes"
            " (b, n, d) first.",
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


LARGEST = 600


def _block_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(33)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    by_hand = Blocks(
        torch.tensor([0.0, math.log(3)]).reshape(1, 1, 2, 1),
        torch.tensor([8.0, 4.0]).reshape(1, 1, 2, 1),
        (1, 1),
    )
    # A block of scores times values, (b, h, t, s, k), and the blocks' own results, (8, b, h, t, k),
    # have fewer than LARGEST numbers; all keys have more, and so have all scores.
    # 60 keys; the first block is not the largest, and not the only one of its size.
    sizes = (6, 9, 6, 8, 9, 9, 6, 7)
    many = Blocks(2 * draw(2, 2, sum(sizes), 3), draw(2, 2, sum(sizes), 3), sizes)
    # Here the scores of one query alone are more.
    # All keys and values are 3900 numbers, and a block's scores times its values 300.
    long = Blocks(2 * draw(1, 1, 650, 3), draw(1, 1, 650, 3), (50,) * 13, most=3500)
    one = Blocks(draw(1, 3, 6, 4), draw(1, 3, 6, 4), (6,))
    # Of four queries, one number each: the first finds its best key in the first block, the second
    # in the second; all that the third finds lies far below 0; the fourth's scores rise.
    query = torch.diag(torch.tensor([40.0, 40, -80, 40]))
    key = torch.tensor(
        [
            [50.0, 0, 10, -60],
            [40, 10, 20, -50],
            [0, 60, 15, -10],
            [10, 50, 30, 0],
            [-30, 20, 12, 50],
        ]
    )
    value = draw(1, 2, 5, 4)
    huge = Blocks(key.expand(1, 2, 5, 4).clone(), value, (2, 2, 1))
    return [
        (draw(2, 2, 4, 3), many),
        (draw(1, 1, 2, 3), long),
        (draw(1, 3, 2, 4), one),
        (query.expand(1, 2, 4, 4).clone(), huge),
        (torch.ones(1, 1, 1, 1), by_hand),  # last: so small a result has many explanations
    ]


def attend_in_blocks(
    query: Tensor,
    blocks: Blocks,
    *,
    scale: Callable[[int], float] = lambda k: k**-0.5,
    collect: bool = False,
    which: Callable[[int], bool] = lambda number: True,
    start: float = float("-inf"),
    largest_of: Callable[[Tensor, Tensor, int], Tensor] = lambda before, scores, number: (
        torch.maximum(before, scores.amax(-1, keepdim=True))
    ),
    of_total: Callable[[Tensor, Tensor], Tensor] = lambda before, now: (before - now).exp(),
    of_mixed: Callable[[Tensor, Tensor], Tensor] = lambda before, now: (before - now).exp(),
    of_shares: Callable[[Tensor, Tensor], Tensor | float] = lambda before, now: 1.0,
    divide_in_turn: bool = False,
    divide: bool = True,
    limit: float = math.inf,
    mean: bool = False,
    more: float = 0.0,
    values: Callable[[Tensor, Tensor], Tensor] = lambda key, value: value,
    again: bool = False,
) -> Tensor:
    """(b, h, t, k). The reference, or with one thing changed.

    The finished attention needs all keys at once, which the exercise forbids; a test holds this
    against it.
    """
    largest = torch.full_like(query[..., :1], start)
    total, mixed = torch.zeros_like(largest), torch.zeros_like(query)
    for number, (key, value) in enumerate(list(blocks) if collect else blocks):
        if not which(number):
            continue
        times = number + 1 if again else 1
        scores = (query @ key.mT * scale(query.shape[-1]) ** times).clamp(-limit, limit)
        now = largest_of(largest, scores, number)
        shares = (scores - now).exp() * of_shares(largest, now)
        added = shares.mean(-1, keepdim=True) if mean else shares.sum(-1, keepdim=True)
        total = total * of_total(largest, now) + added
        mixed = mixed * of_mixed(largest, now) + shares @ values(key, value)
        if divide_in_turn:
            mixed = mixed / total
        largest = now
    return mixed / (total + more) if divide and not divide_in_turn else mixed


def _one_late(blocks: Blocks) -> Blocks:
    kept = None
    for block in blocks:
        if kept is not None:
            yield kept
        kept = block
    yield kept


def _from_copies(query: Tensor, blocks: Blocks) -> Tensor:
    return attend_in_blocks(query, [(key.clone(), value.clone()) for key, value in blocks])


def _of_the_firsts_size(blocks: Blocks) -> Blocks:
    size = None
    for key, value in blocks:
        size = size or key.shape[2]
        if key.shape[2] == size:
            yield key, value


def _cut_to_the_first(blocks: Blocks) -> Blocks:
    size = None
    for key, value in blocks:
        size = size or key.shape[2]
        yield key[:, :, :size], value[:, :, :size]


def _each_by_itself(
    query: Tensor,
    blocks: Blocks,
    of: Callable[[int], float] = lambda size: 1.0,
    divided: bool = True,
) -> Tensor:
    """The blocks' own results, added up."""
    total, parts = 0.0, 0.0
    for key, value in blocks:
        weight = of(key.shape[-2])
        parts = parts + weight * ((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value)
        total += weight
    return parts / total if divided else parts


def _no_factor(before: Tensor, now: Tensor) -> Tensor:
    return torch.ones_like(now)


def _turned_factor(before: Tensor, now: Tensor) -> Tensor:
    return torch.where(before.isinf(), 1.0, (now - before).exp())


def _last_block(query: Tensor, blocks: Blocks) -> Tensor:
    for key, value in blocks:
        found = attend(query, key, value, None)
    return found


def _best_block(query: Tensor, blocks: Blocks, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """The result of the block with the largest score: for each query, or with dims for all."""
    largest, found = float("-inf"), torch.zeros_like(query)
    for key, value in blocks:
        scores = query @ key.mT * query.shape[-1] ** -0.5
        top = scores.amax(dims, keepdim=True)
        found = torch.where(top > largest, scores.softmax(-1) @ value, found)
        largest = top.clamp(min=largest)
    return found


def _late_values(query: Tensor, blocks: Blocks) -> Tensor:
    kept = [(query @ key.mT * query.shape[-1] ** -0.5, value) for key, value in blocks]
    largest = torch.stack([scores.amax(-1, keepdim=True) for scores, _ in kept]).amax(0)
    shares = [((scores - largest).exp(), value) for scores, value in kept]
    total = sum(one.sum(-1, keepdim=True) for one, _ in shares)
    return sum(one @ value for one, value in shares) / total


NO_LARGEST = (
    "The softmax is right as long as nothing overflows. With scores in the thousands exp is"
    " infinite,"
    " or 0 for all keys of a query: keep the largest score so far, for each query, and subtract it"
    " from every score before exp."
)
NOT_RESCALED = (
    "When a block brings a larger score, what was summed before was computed with the old largest"
    " one. Bring both sums to the new one: multiply them by exp(old largest - new largest)."
    " Take the old largest before you overwrite it."
)
BY_ITSELF = (
    "Each block has a softmax of its own, and the results are put together afterwards. A block"
    " whose scores are low then counts as much as one whose scores are high. Sum exponentials and"
    " weighted values over all blocks, and divide once, at the end."
)
ATTEND_IN_BLOCKS = Exercise(
    name="attend_in_blocks",
    transfer=True,
    reference=attend_in_blocks,
    cases=_block_cases,
    axes="b h t k",
    banned=FINISHED,
    largest=LARGEST,
    asked=in_little_memory,
    checked=(
        "shape, dtype and every value: 60 keys in 8 blocks of unequal size, 650 keys in 13, one"
        " block alone, huge scores of either sign, and the example by hand; no tensor of all keys"
        " or of their scores, no blocks kept; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "not rescaled",
            partial(attend_in_blocks, of_total=_no_factor, of_mixed=_no_factor),
            NOT_RESCALED,
        ),
        Mistake(
            "only the weighted sum rescaled",
            partial(attend_in_blocks, of_total=_no_factor),
            "The weighted sum is brought to the new largest score, the sum of the exponentials is"
            " not. Both were computed with the old one: both need the factor.",
        ),
        Mistake(
            "only the sum rescaled",
            partial(attend_in_blocks, of_mixed=_no_factor),
            "The sum of the exponentials is brought to the new largest score, the weighted sum of"
            " the values is not. Both were computed with the old one: both need the factor.",
        ),
        Mistake(
            "factor turned round",
            partial(attend_in_blocks, of_total=_turned_factor, of_mixed=_turned_factor),
            "The factor is the wrong way round: exp(new - old). The old sums are too large for the"
            " new largest score, so they must shrink: exp(old largest - new largest).",
        ),
        Mistake(
            "infinite factor",
            partial(
                attend_in_blocks,
                of_total=lambda before, now: (now - before).exp(),
                of_mixed=lambda before, now: (now - before).exp(),
            ),
            "Everything becomes NaN. As long as the largest score is -inf, exp(old largest - new"
            " largest) is 0, as it should be. Turned round, or with a score minus the *old*"
            " largest,"
            " exp is infinite, and infinity times 0 is NaN.",
        ),
        Mistake(
            "new ones rescaled",
            partial(
                attend_in_blocks,
                of_total=_no_factor,
                of_mixed=_no_factor,
                of_shares=lambda before, now: torch.where(
                    before.isinf(), 1.0, (before - now).exp()
                ),
            ),
            "The factor is applied to the new block. Its exponentials are already taken with the"
            " new"
            " largest score; it is the old sums that must be brought there.",
        ),
        Mistake(
            "no largest",
            partial(attend_in_blocks, start=0.0, largest_of=lambda before, scores, _: 0 * before),
            NO_LARGEST,
        ),
        Mistake(
            "largest starts at 0",
            partial(attend_in_blocks, start=0.0),
            "The largest score starts at 0. If all scores of a query lie far below 0, every"
            " exponential is 0, and 0 / 0 is NaN. Start at -inf.",
        ),
        Mistake(
            "largest of the first block",
            partial(
                attend_in_blocks,
                largest_of=lambda before, scores, number: (
                    before if number else scores.amax(-1, keepdim=True)
                ),
            ),
            "A later block brings a much larger score, and the largest so far does not move to it:"
            " it stays that of the first block, or moves only if all queries have a larger one."
            " Then exp overflows. Take the larger of both for each query (torch.maximum), and bring"
            " the sums to it.",
        ),
        Mistake(
            "largest of each block",
            partial(
                attend_in_blocks,
                largest_of=lambda before, scores, _: scores.amax(-1, keepdim=True),
            ),
            "The largest score is that of the last block alone, also where an older one was larger:"
            " then exp(old - new) overflows. Keep the larger of the old one and the block's.",
        ),
        Mistake(
            "one largest for all queries",
            partial(
                attend_in_blocks,
                largest_of=lambda before, scores, _: torch.maximum(
                    before, scores.max().expand_as(before)
                ),
            ),
            "There is one largest score for all queries. A query whose scores lie far below it has"
            " only zeros left, and 0 / 0 is NaN. Each query has its own: amax(dim=-1,"
            " keepdim=True).",
        ),
        Mistake(
            "not divided",
            partial(attend_in_blocks, divide=False),
            "The weighted sum is not divided by the sum of the exponentials. Do it once, at the"
            " end.",
        ),
        Mistake(
            "divided in every block",
            partial(attend_in_blocks, divide_in_turn=True),
            "You divide in every block. What was divided is then summed and divided again. Divide"
            " once, behind the loop.",
        ),
        Mistake(
            "last block only",
            _last_block,
            "The result is that of the last block alone. Is something set back to its start inside"
            " the loop? Or does the largest score never move from -inf, so that the factor is"
            " always"
            " exp(-inf) = 0?",
        ),
        Mistake(
            "first block only",
            partial(attend_in_blocks, which=lambda number: number == 0),
            "The result is that of the first block alone. Does a `return` stand inside the loop?",
        ),
        Mistake(
            "first block left out",
            partial(attend_in_blocks, which=lambda number: number > 0),
            "The first block is left out of the result.",
        ),
        Mistake(
            "only blocks of the first one's size",
            lambda query, blocks: attend_in_blocks(query, _of_the_firsts_size(blocks)),
            "Blocks of another size than the first are left out. Blocks may have different sizes:"
            " take each one as it comes.",
        ),
        Mistake(
            "cut to the first block's size",
            lambda query, blocks: attend_in_blocks(query, _cut_to_the_first(blocks)),
            "The first block's size is used for all blocks, so larger ones are cut. Blocks may have"
            " different sizes: take each one as it comes.",
        ),
        Mistake(
            "blocks collected",
            partial(attend_in_blocks, collect=True),
            "You collect the blocks before you compute. They come in the same memory, so what you"
            " have collected is the last block, many times. Use each block at once, and keep sums.",
        ),
        Mistake(
            "one block late",
            lambda query, blocks: attend_in_blocks(query, _one_late(blocks)),
            "You work on a block when the next one has come already. They come in the same memory,"
            " so what you kept of it is overwritten by then. Use each block at once.",
        ),
        Mistake(
            "values collected",
            _late_values,
            "You keep the values of a block until later. They lie in the same memory as the next"
            " block's: by then they are gone. Use them at once, and keep the weighted sum.",
        ),
        Mistake(
            "clamped",
            partial(
                attend_in_blocks,
                start=0.0,
                largest_of=lambda before, scores, _: 0 * before,
                limit=80.0,
            ),
            "The scores are clamped, so that nothing overflows. But then all large scores count the"
            " same. Subtract the largest score so far instead: that changes no weight.",
        ),
        Mistake(
            "mean of the exponentials",
            partial(attend_in_blocks, mean=True),
            "You add up the means of the exponentials of each block. A block of four keys counts"
            " four times: add up the exponentials themselves.",
        ),
        Mistake(
            "1 too many",
            partial(attend_in_blocks, more=1.0),
            "The sum of the exponentials is 1 too large. It starts at 0, and nothing but"
            " exponentials is added.",
        ),
        *(
            Mistake(name, wrong, BY_ITSELF)
            for name, wrong in (
                ("mean of the blocks", lambda *given: _each_by_itself(*given)),
                ("sum of the blocks", lambda *given: _each_by_itself(*given, divided=False)),
                ("mean by size", lambda *given: _each_by_itself(*given, of=float)),
            )
        ),
        *(
            Mistake(
                f"best block, {name}",
                wrong,
                "The result is that of one block, the one with the largest score. All blocks count:"
                " a larger score makes what was summed before smaller, and does not wipe it out.",
            )
            for name, wrong in (
                ("for each query", lambda *given: _best_block(*given)),
                ("for all", lambda *given: _best_block(*given, dims=(0, 1, 2, 3))),
            )
        ),
        Mistake(
            "scaled again in each block",
            partial(attend_in_blocks, again=True),
            "The query is scaled once more in every block, as by `query = query * scale` inside the"
            " loop. Scale it once, before the loop, or scale each block's scores.",
        ),
        Mistake("scale missing", partial(attend_in_blocks, scale=lambda k: 1.0), SCALE_MISSING),
        Mistake(
            "scale by k",
            partial(attend_in_blocks, scale=lambda k: 1 / k),
            "The scores are divided by k. Divide by its square root: k ** -0.5.",
        ),
        Mistake(
            "times the root",
            partial(attend_in_blocks, scale=lambda k: k**0.5),
            "The scores are multiplied by sqrt(k). Divide by it: k ** -0.5.",
        ),
        Mistake(
            "keys for values",
            partial(attend_in_blocks, values=lambda key, value: key),
            "You sum the keys. The weights come from queries and keys; what is summed are the"
            " values.",
        ),
    ),
    crashes=(
        Mistake(
            "gone through twice",
            lambda query, blocks: [list(blocks), list(blocks)],
            "You go through the blocks twice. They come once: keep the largest score so far, and"
            " bring the sums to a new one when it comes.",
        ),
        Mistake(
            "copies kept",
            _from_copies,
            "You keep copies of blocks that are gone. Use each block at once, and keep little: for"
            " each query the largest score so far and two sums.",
        ),
        Mistake(
            "length asked for",
            lambda query, blocks: len(blocks),
            "`blocks` has no length and cannot be indexed. Go through it with `for key, value in"
            " blocks`.",
        ),
        Mistake(
            "indexed",
            lambda query, blocks: blocks[0],
            "`blocks` has no length and cannot be indexed. Go through it with `for key, value in"
            " blocks`.",
        ),
        Mistake(
            "not transposed",
            lambda query, blocks: [query @ key for key, _ in blocks],
            "The keys are not transposed. query @ key.transpose(-1, -2) compares each query with"
            " each key.",
        ),
    ),
    hints=(
        "Work on paper with one query and two blocks first. If you knew the largest score of all"
        " before you start, two running sums would do: of exp(score - largest), and of the same"
        " times value.",
        "You learn of a larger score later. exp(score - old) * exp(old - new) is exp(score - new):"
        " one factor brings a whole sum from the old largest score to the new one.",
        "In the loop: now = torch.maximum(largest, scores.amax(-1, keepdim=True)); old = (largest -"
        " now).exp(); shares = (scores - now).exp(); total = total * old + shares.sum(-1,"
        " keepdim=True); mixed = mixed * old + shares @ value; largest = now. Start with -inf, 0"
        " and"
        " 0; return mixed / total.",
    ),
)


EXERCISES = (ATTEND, MULTI_HEAD_ATTENTION, ATTEND_IN_BLOCKS)
