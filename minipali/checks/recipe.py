"""Lesson 17: which object covers a patch, attention's way back, and a training with own pieces."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minipali import recipe, scenes
from minipali.checks import show
from minipali.checks.attention import FINISHED
from minipali.checks.engine import (
    CORRECT,
    WRONG,
    Exercise,
    Mistake,
    Outcome,
    examine,
    failed,
)
from minipali.evaluation import answers, by_task, evaluation_set
from minipali.paligemma import PaliGemma
from minipali.training import optimizers

# --- patch_targets --------------------------------------------------------------------------------


def _boxes() -> list[tuple]:
    random = torch.Generator().manual_seed(17)

    def case(m: int, side: int, share: float) -> tuple:
        corners = 0.7 * torch.rand(m, 2, generator=random)
        sizes = 0.1 + 0.5 * torch.rand(m, 2, generator=random)
        return torch.cat((corners, (corners + sizes).clamp(max=1)), dim=1), side, share

    # Edges on quarters of a patch: some patches are covered by just a half, and by a whole.
    exact = torch.tensor([[0.125, 0.0, 0.75, 0.5], [0.25, 0.5, 1.0, 0.875]])
    # Two boxes cover less than half of a patch each, and more of it together; a third covers
    # hardly more than half: so little shows in no small number of points.
    halves = torch.tensor([[0, 0, 1, 0.0938], [0, 0.1562, 0.75, 0.25], [0.0, 0.5, 0.5, 0.6255]])
    return [
        (torch.tensor([[0.0, 0.5, 0.75, 1.0]]), 2, 0.4),
        case(2, 5, 1 / 3),
        case(3, 6, 0.5),
        case(4, 4, 0.1),
        (exact, 4, 0.5),
        (halves, 4, 0.5),
        (torch.tensor([[0.125, 0.25, 0.75, 1.0]]), 1, 0.25),  # the whole picture is one patch
    ]


def _overlap(low: Tensor, high: Tensor, side: int) -> Tensor:
    """How much of each of `side` cells lies between low and high, in cells: (m, side)."""
    start = torch.arange(side, dtype=low.dtype)
    return torch.minimum(start + 1, high) - torch.maximum(start, low)


def _most(cover: Tensor, share: float) -> tuple[Tensor, Tensor]:
    return cover.max(dim=0)


def _first(cover: Tensor, share: float) -> tuple[Tensor, Tensor]:
    enough = cover > share
    box = enough.int().argmax(dim=0)
    return cover.gather(0, box[None])[0], box


def _last(cover: Tensor, share: float) -> tuple[Tensor, Tensor]:
    value, box = _first(cover.flip(0), share)
    return value, len(cover) - 1 - box


def _together(cover: Tensor, share: float) -> tuple[Tensor, Tensor]:
    return cover.sum(dim=0), cover.argmax(dim=0)


def _points(low: Tensor, high: Tensor, side: int, number: int) -> Tensor:
    """Which part of some points of each cell lies between low and high: (m, side)."""
    points = (torch.arange(side * number) + 0.5) / number
    inside = ((points > low) & (points < high)).float()
    return inside.unflatten(1, (side, number)).mean(dim=-1)


def patch_targets(
    boxes: Tensor,
    side: int,
    share: float,
    *,
    edges: tuple[int, int, int, int] = (0, 1, 2, 3),
    clamp: bool = True,
    of: Callable[[Tensor, Tensor], Tensor] = lambda cover, area: cover,
    choose: Callable[[Tensor, float], tuple[Tensor, Tensor]] = _most,
    enough: Callable[[Tensor, float], Tensor] = torch.gt,
    nothing: int = -1,
    first: int = 0,
    points: int = 0,
) -> Tensor:
    """The number of the box that covers each patch. The reference, or with one thing changed."""
    y0, x0, y1, x1 = (side * boxes[:, list(edges)]).T[..., None]
    rows, columns = _overlap(y0, y1, side), _overlap(x0, x1, side)
    if clamp:
        rows, columns = rows.clamp(min=0), columns.clamp(min=0)
    if points:
        rows, columns = _points(y0, y1, side, points), _points(x0, x1, side, points)
    cover = (rows[:, :, None] * columns[:, None, :]).flatten(1)
    cover = of(cover, (y1 - y0) * (x1 - x0))
    value, box = choose(cover, share)
    return (box + first).where(enough(value, share), nothing)


PATCH_TARGETS = Exercise(
    name="patch_targets",
    reference=patch_targets,
    cases=_boxes,
    axes="n",
    checked=(
        "the example by hand; 2, 3 and 4 boxes in 25, 36 and 16 patches, also boxes that overlap;"
        " one box in one patch; patches covered by just the share that was given, by hardly"
        " more, and by two boxes that reach it only together; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "x and y exchanged",
            partial(patch_targets, edges=(1, 0, 3, 2)),
            "Your rows and columns are exchanged. A box is (y0, x0, y1, x1), y first, and patches"
            " are numbered row by row: the one in row 0 and column 1 has the number 1.",
        ),
        Mistake(
            "negative times negative",
            partial(patch_targets, clamp=False),
            "A box far away to the left *and* above covers a patch in your result. Both overlaps"
            " are negative there, and their product is positive: set negative ones to 0 before"
            " you multiply.",
        ),
        Mistake(
            "share of the box",
            partial(patch_targets, of=lambda cover, area: cover / area),
            "You ask which part of the *box* lies in the patch. Asked is which part of the *patch*"
            " lies in the box: a large box may cover many patches whole.",
        ),
        Mistake(
            "the first that is enough",
            partial(patch_targets, choose=_first),
            "Where two boxes cover enough of a patch, you take the first. Take the one that covers"
            " most of it.",
        ),
        Mistake(
            "the last that is enough",
            partial(patch_targets, choose=_last),
            "Where two boxes cover enough of a patch, you take the last: a later one is painted"
            " over an earlier one. Take the one that covers most of it.",
        ),
        Mistake(
            "all boxes together",
            partial(patch_targets, choose=_together),
            "You compare `share` with what all boxes cover together. One box must cover more than"
            " `share` of the patch by itself: the one that covers most.",
        ),
        Mistake(
            "intersection over union",
            partial(patch_targets, of=lambda cover, area: cover / (area + 1 - cover)),
            "You divide by the union of box and patch (the overlap of lesson 15). Then a large box"
            " covers no small patch. Asked is which part of the *patch* lies in the box.",
        ),
        Mistake(
            "share of the picture",
            partial(patch_targets, of=lambda cover, area: cover / cover.shape[-1]),
            "You compare the area in fractions of the *picture*. A whole patch is only 1 / (side *"
            " side) of it: multiply by side * side, and it is the part of the patch.",
        ),
        *(
            Mistake(
                f"{number} x {number} points",
                partial(patch_targets, points=number),
                "You count points in each patch. That gives its covered part only roughly. Compute"
                " it: the common length of rows times the common length of columns.",
            )
            for number in (2, 4, 8)
        ),
        Mistake(
            "at least",
            partial(patch_targets, enough=torch.ge),
            "A patch that is covered by just `share` gets a box. It must be covered by more.",
        ),
        Mistake(
            "no box anywhere",
            lambda boxes, side, share: torch.full((side**2,), -1),
            "No patch gets a box in your result, wherever the boxes are: all numbers are -1.",
        ),
        Mistake(
            "the first box everywhere",
            lambda boxes, side, share: torch.zeros(side**2, dtype=torch.int64),
            "All patches get box 0 in your result, wherever the boxes are.",
        ),
        Mistake(
            "every patch",
            partial(patch_targets, enough=lambda value, share: value > 0),
            "Each patch that a box touches gets its number. It must cover more than `share` of the"
            " patch: a corner of an ear shows no cat.",
        ),
        Mistake(
            "by the middle",
            partial(patch_targets, points=1),
            "You ask whether the middle of the patch lies in the box. Compute which part of the"
            " patch is covered, and compare it with `share`.",
        ),
        Mistake(
            "0 for nothing",
            partial(patch_targets, nothing=0),
            "A patch without a box gets 0, and 0 is the number of the first box. Nothing is -1.",
        ),
        Mistake(
            "counted from 1",
            partial(patch_targets, nothing=0, first=1),
            "Your boxes are counted from 1, and nothing is 0. Count from 0, and nothing is -1.",
        ),
    ),
    hints=(
        "Multiply the boxes by `side`: then patch i of a row reaches from i to i + 1. How long is"
        " the part that a box and this stretch have in common? The smaller end less the larger"
        " start, and never below 0.",
        "Do that for rows (m, side) and for columns (m, side). Their product, rows[:, :, None] *"
        " columns[:, None, :], is the covered part of each patch, (m, side, side). Then"
        " .flatten(1).",
        "cover, box = (...).flatten(1).max(dim=0); return box.where(cover > share, -1).",
    ),
)


# --- attention_backward ---------------------------------------------------------------------------


def _backward_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(170)

    def case(b: int, h: int, t: int, s: int, k: int, mask: Tensor | None) -> tuple:
        shapes = (b, h, t, k), (b, h, t, k), (b, h, s, k), (b, h, s, k)
        return (*(torch.randn(shape, generator=random) for shape in shapes), mask)

    def row(*numbers: float) -> Tensor:
        return torch.tensor(numbers)[None, None, None]

    by_hand = (
        row(1.0, 0, 0, 0), row(2.0, 0, 0, 0),
        torch.tensor([[[[0.0, 1, 0, 0], [0, 3, 0, 0]]]]),
        torch.tensor([[[[1.0, 0, 0, 0], [3, 0, 0, 0]]]]), None,
    )  # fmt: skip
    some = torch.rand(3, 1, 4, 5, generator=random) < 0.6
    some[..., 1], some[..., 3] = True, False
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()  # one for all pictures and heads
    gradient, query, key, value, _ = case(1, 2, 3, 4, 4, None)
    # Of large scores the largest are hidden, 1000 above the rest. (Smaller factors: digits are lost
    # in each softmax.)
    large = 40 * query.round(), 10 * key.round()
    visible = torch.ones(1, 2, 3, 4, dtype=torch.bool)
    visible.scatter_(-1, (large[0] @ large[1].mT).topk(2, dim=-1).indices, False)
    return [
        # First one where all lengths differ, and in which no two mistakes look alike.
        case(2, 3, 4, 5, 9, None),
        by_hand,
        case(3, 2, 4, 5, 7, some),
        case(2, 2, 5, 5, 5, causal),
        (gradient, *large, value, None),
        (gradient, 24 * query.round(), 24 * key.round(), value, visible),
    ]


Term = Callable[[Tensor, Tensor], Tensor]


def _share_of_all(shares: Tensor, back: Tensor) -> Tensor:
    return (shares * back).sum(dim=-1, keepdim=True)


def attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    hides: Callable[[Tensor], Tensor] = torch.logical_not,
    fill: float = float("-inf"),
    lowered: float | None = None,
    limit: float | None = None,
    soft: Callable[[Tensor, Tensor | None], Tensor] = lambda scores, _: scores.softmax(dim=-1),
    scale: Callable[[int, int], float] = lambda k, s: k**-0.5,
    of_value: Callable[..., Tensor] = lambda shares, *others: shares,
    term: Term = _share_of_all,
    inner: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    query_scale: Callable[[int, int], float] = lambda k, s: k**-0.5,
    key_scale: Callable[[int, int], float] = lambda k, s: k**-0.5,
    back_by: int = 3,
    query_by: int = 2,
    key_by: int = 1,
    masked_later: str = "",
    gather: Callable[[Tensor], Tensor] = lambda x: x,
    turn_shares: Callable[[Tensor], Tensor] = lambda x: x.mT,
    turn_scores: Callable[[Tensor], Tensor] = lambda x: x.mT,
    order: tuple[int, int, int] = (0, 1, 2),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value. The reference, or with one thing changed.

    Not by autograd, which the exercise bans; a test holds it against autograd. back_by, query_by,
    key_by: numbers of the arguments that the gradients of shares, query and key are made with;
    masked_later: which of the gradients of "shares" and "scores" the mask sets to 0.
    """
    given = gradient, query, key, value
    k, s = query.shape[-1], key.shape[-2]
    scores = query @ key.mT * scale(k, s)
    if limit is not None:
        scores = scores.clamp(-limit, limit)
    hidden = None if mask is None else hides(mask)
    if hidden is not None and lowered is not None:
        scores = scores - lowered * hidden
    elif hidden is not None:
        scores = scores.masked_fill(hidden, fill)
    shares = soft(scores, hidden)
    back = gradient @ given[back_by].mT  # (b, h, t, s), of the shares
    if mask is not None and masked_later == "shares":
        back = back.masked_fill(~mask, 0.0)
    if inner is None:
        of_scores = shares * (back - term(shares, back))
    else:
        of_scores = inner(shares, back, term(shares, back))
    if mask is not None and masked_later == "scores":
        of_scores = of_scores.masked_fill(~mask, 0.0)
    result = (
        query_scale(k, s) * of_scores @ given[query_by],
        gather(key_scale(k, s) * turn_scores(of_scores) @ given[key_by]),
        gather(turn_shares(of_value(shares, scores, back, of_scores)) @ gradient),
    )
    return tuple(result[place] for place in order)


def _once(k: int, s: int) -> float:
    return 1.0


def _root_of_keys(k: int, s: int) -> float:
    return s**-0.5


def _overflows(scores: Tensor, hidden: Tensor | None) -> Tensor:
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


def _with_one_maximum(scores: Tensor, hidden: Tensor | None) -> Tensor:
    powers = (scores - scores.max()).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def _masked_later(scores: Tensor, hidden: Tensor | None, again: bool) -> Tensor:
    """Shares of all keys, of which the hidden ones are set to 0; again: and the rest divided."""
    shares = scores.softmax(dim=-1)
    if hidden is None:
        return shares
    shares = shares.masked_fill(hidden, 0.0)
    return shares / shares.sum(dim=-1, keepdim=True) if again else shares


def _no_mask(mask: Tensor) -> Tensor:
    return torch.zeros_like(mask)


def _turned_and_averaged(x: Tensor) -> Tensor:
    return x.mT / x.shape[-2]


def _reshaped(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-2], x.shape[-1], x.shape[-2])


def _one_by_one(index: Callable[[Tensor, int, int], Tensor]) -> Callable:
    """Attention's way back, for which each head of each picture takes its mask by itself."""

    def backward(gradient, query, key, value, mask):
        for place in itertools.product(*map(range, query.shape[:2])) if mask is not None else ():
            index(mask, *place)
        return attention_backward(gradient, query, key, value, mask)

    return backward


def _index_with_mask(gradient, query, key, value, mask):
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores[~mask] = float("-inf")
    return attention_backward(gradient, query, key, value, mask)


ATTENTION_BACKWARD = Exercise(
    name="attention_backward",
    transfer=True,
    reference=attention_backward,
    cases=_backward_cases,
    axes="b h t k; b h s k; b h s k",
    parts=("query_gradient", "key_gradient", "value_gradient"),
    banned=(
        *FINISHED,
        "grad",
        "backward",
        "_make_dual",
        "_softmax_backward_data",
    ),  # fmt: skip
    tolerance=1e-4,
    checked=(
        "the gradients of query, key and value: 4 queries on 5 keys without and with a mask, the"
        " example by hand, a causal mask for all pictures, and scores above 1000, without a mask"
        " and with the largest ones hidden; inputs unchanged"
    ),
    crashes=(
        Mistake(
            "indexed by the mask",
            _index_with_mask,
            "scores[~mask] wants a mask of just the shape of the scores. This one has an axis of"
            " length 1 for all heads: masked_fill(~mask, ...) stretches it.",
        ),
        Mistake(
            "no mask at all",
            lambda gradient, query, key, value, mask: attention_backward(
                gradient, query, key, value, ~mask
            ),
            "The mask can be None: then every query may look at every key. Ask first: if mask is"
            " not None.",
        ),
        *(
            Mistake(
                f"mask taken apart, {name}",
                _one_by_one(index),
                "You take the mask apart, picture by picture or head by head, and this mask has one"
                " entry for all of them, on an axis of length 1. Stretch it first: mask.expand(b,"
                " h, t, s). Or leave it whole: masked_fill stretches it.",
            )
            for name, index in (
                ("by both numbers", lambda mask, b, h: mask[b, h]),
                ("by one after the other", lambda mask, b, h: mask[b][h]),
                ("by the picture's", lambda mask, b, h: mask[b]),
            )
        ),
        *(
            Mistake(
                f"no axis kept, {name}",
                partial(
                    attention_backward,
                    term=lambda shares, back: (shares * back).sum(dim=-1),
                    inner=inner,
                ),
                "The sum over the keys has lost its axis: (b, h, t), and torch sets its t against"
                " s. Keep it: .sum(dim=-1, keepdim=True) is (b, h, t, 1).",
            )
            for name, inner in (
                ("of the sum", None),
                ("of the product", lambda shares, back, mean: shares * back - shares * mean),
            )
        ),
        Mistake(
            "not turned",
            partial(attention_backward, turn_scores=lambda x: x),
            "Shares and scores and their gradients are (t, s): to their right belongs something"
            " with s rows. Query and gradient have t rows. For the gradients of key and value turn"
            " the left one, .mT: (s, t) @ (t, k) is (s, k).",
        ),
        Mistake(
            "turned, with s rows",
            partial(attention_backward, key_by=2),
            "Turned by .mT, shares and scores and their gradients are (s, t): to their right"
            " belongs something with t rows. Key and value have s. For the gradient of key it is"
            " query, for that of value the output's gradient.",
        ),
    ),
    mistakes=(
        Mistake(
            "softmax without its second term",
            partial(attention_backward, term=lambda shares, back: 0 * back),
            "The softmax's second term is missing. The shares of a query add up to 1: if one grows,"
            " all others shrink. Subtract, before you multiply by the share, the sum over the keys"
            " of share times gradient of the share.",
        ),
        Mistake(
            "sign of the scores",
            partial(attention_backward, inner=lambda shares, back, mean: shares * (mean - back)),
            "The gradient of the scores has the wrong sign. A score whose share has a gradient"
            " *above* the weighted mean has one above 0: share times (gradient of the share less"
            " the mean).",
        ),
        *(
            Mistake(
                name,
                partial(attention_backward, inner=inner),
                "You take the difference of share and gradient. That short way is for a"
                " cross-entropy behind the softmax (share less target). Here it is share times"
                " (gradient of the share less the weighted mean).",
            )
            for name, inner in (
                ("share less gradient", lambda shares, back, _: shares - back),
                ("gradient less share", lambda shares, back, _: back - shares),
            )
        ),
        Mistake(
            "all other keys alone",
            partial(attention_backward, inner=lambda p, back, mean: p * (p * back - mean)),
            "A score's own share is left out (i = j): p_i (1 - p_i) has a 1 in it, too. Together it"
            " is share times (gradient of the share less the weighted mean).",
        ),
        Mistake(
            "the share for the first term alone",
            partial(attention_backward, inner=lambda shares, back, mean: shares * back - mean),
            "The share multiplies only the first term. It multiplies the whole difference: share"
            " times (gradient of the share less the weighted mean).",
        ),
        Mistake(
            "log-softmax",
            partial(
                attention_backward,
                inner=lambda shares, back, _: back - shares * back.sum(dim=-1, keepdim=True),
            ),
            "That is the way back through a *log*-softmax: gradient less share times the sum of"
            " gradients. Through a softmax it is share times (gradient less the sum of share times"
            " gradient).",
        ),
        Mistake(
            "softmax as a sigmoid",
            partial(attention_backward, inner=lambda shares, back, _: shares * (1 - shares) * back),
            "You use share times (1 - share), the slope of a sigmoid. That is the way from a score"
            " to its *own* share. It also moves the shares of all other keys.",
        ),
        Mistake(
            "without the shares",
            partial(attention_backward, inner=lambda shares, back, mean: back - mean),
            "The gradient of a score is not yet multiplied by its share. A key that is hardly"
            " looked at has hardly an influence.",
        ),
        Mistake(
            "mean of the gradients",
            partial(attention_backward, term=lambda _, back: back.mean(dim=-1, keepdim=True)),
            "You subtract the plain mean of the gradients of the shares. It is the mean *weighted*"
            " by the shares: the sum of share times gradient.",
        ),
        Mistake(
            "sum of the gradients",
            partial(attention_backward, term=lambda _, back: back.sum(dim=-1, keepdim=True)),
            "You subtract the plain sum of the gradients of the shares. Multiply each by its share"
            " before you add up: that is their mean, *weighted* by the shares.",
        ),
        Mistake(
            "mean of the products",
            partial(
                attention_backward,
                term=lambda shares, back: (shares * back).mean(dim=-1, keepdim=True),
            ),
            "You take the mean of share times gradient over the keys, and it is their *sum*: the"
            " shares add up to 1, so the sum is already a mean, weighted by them.",
        ),
        Mistake(
            "summed over everything",
            partial(attention_backward, term=lambda shares, back: (shares * back).sum()),
            "The sum of share times gradient runs over everything: .sum() without an axis makes one"
            " number. Each query has a sum of its own, over its keys: .sum(dim=-1, keepdim=True).",
        ),
        Mistake(
            "summed over the queries",
            partial(
                attention_backward,
                term=lambda shares, back: (shares * back).sum(dim=-2, keepdim=True),
            ),
            "The sum of share times gradient runs over the queries. The shares of one query add up"
            " to 1, so sum over the keys, the last axis.",
        ),
        Mistake(
            "sign of the second term",
            partial(attention_backward, term=lambda shares, back: -_share_of_all(shares, back)),
            "The softmax's second term has the wrong sign: it is subtracted.",
        ),
        Mistake(
            "scale forgotten",
            partial(attention_backward, query_scale=_once, key_scale=_once),
            "1 / sqrt(k) is missing on the way back. The scores were multiplied by it, so the"
            " gradients of query and key are, too.",
        ),
        Mistake(
            "scale for the query alone",
            partial(attention_backward, key_scale=_once),
            "1 / sqrt(k) is missing in the gradient of the key. It belongs into both, query's and"
            " key's.",
        ),
        Mistake(
            "scale for the key alone",
            partial(attention_backward, query_scale=_once),
            "1 / sqrt(k) is missing in the gradient of the query. It belongs into both, query's and"
            " key's.",
        ),
        Mistake(
            "scale without the root",
            partial(
                attention_backward, query_scale=lambda k, s: 1 / k, key_scale=lambda k, s: 1 / k
            ),
            "On the way back you divide by k. On the way there it was sqrt(k); so it is sqrt(k)"
            " here. (Perhaps it is in it twice.)",
        ),
        Mistake(
            "scale twice for the key",
            partial(attention_backward, key_scale=lambda k, s: 1 / k),
            "1 / sqrt(k) is twice in the gradient of the key. If the query that you multiply with"
            " is already divided by sqrt(k), or the gradient of the scores is, the other must not"
            " be.",
        ),
        Mistake(
            "scale twice for the query",
            partial(attention_backward, query_scale=lambda k, s: 1 / k),
            "1 / sqrt(k) is twice in the gradient of the query. If the key that you multiply with"
            " is already divided by sqrt(k), or the gradient of the scores is, the other must not"
            " be.",
        ),
        Mistake(
            "mask ignored",
            partial(attention_backward, hides=_no_mask),
            "Keys that the mask hides get a gradient, and give one. Their shares are 0: set their"
            " scores to -inf before the softmax. (True means: may be looked at.)",
        ),
        Mistake(
            "mask the wrong way round",
            partial(attention_backward, hides=lambda mask: mask),
            "The mask is used the wrong way round: you hide the keys where it is True. True is"
            " where a query may look, so hide where it is False: ~mask.",
        ),
        *(
            Mistake(
                f"hidden by {fill}",
                partial(attention_backward, fill=fill),
                "Hidden keys get a fixed number as their score, and visible scores may be smaller"
                " still: then a hidden key gets the largest share. Use -inf, below which nothing"
                " is.",
            )
            for fill in (0.0, -1.0, -10.0, -100.0, -1000.0)
        ),
        Mistake(
            "hidden by +inf",
            partial(attention_backward, fill=float("inf")),
            "Hidden keys get +inf as their score, and the softmax makes NaN of it. It is -inf,"
            " below which nothing is.",
        ),
        Mistake(
            "one mask for all",
            partial(attention_backward, hides=lambda mask: ~mask[:1, :1]),
            "All pictures, or all heads, get the mask of the first one. Leave the mask whole:"
            " masked_fill stretches axes of length 1 by itself.",
        ),
        Mistake(
            "mask added",
            partial(attention_backward, lowered=1.0),
            "The mask of True and False is added to the scores, which makes them 1 larger where a"
            " query may look and hides nothing. Use masked_fill(~mask, float('-inf')).",
        ),
        *(
            Mistake(
                f"lowered by {lowered}",
                partial(attention_backward, lowered=lowered),
                "The scores of hidden keys are lowered by a fixed number. Where they are higher by"
                " more, the hidden keys still get a share. Use -inf: masked_fill(~mask,"
                " float('-inf')).",
            )
            for lowered in (10.0, 100.0, 1000.0)
        ),
        Mistake(
            "0 times infinity",
            partial(attention_backward, lowered=float("inf")),
            "You multiply the mask by infinity. Where a query may look that is 0 times infinity,"
            " which is NaN. Do not multiply: masked_fill(~mask, float('-inf')), or torch.where.",
        ),
        *(
            Mistake(
                f"mask on the way back alone, for the {what}",
                partial(attention_backward, hides=_no_mask, masked_later=what),
                "You use the mask on the way back alone. The shares must be those of the forward"
                " pass, where hidden keys had none: set their scores to -inf before the softmax."
                " Then the way back needs no mask.",
            )
            for what in ("shares", "scores")
        ),
        Mistake(
            "mask after the softmax",
            partial(attention_backward, soft=partial(_masked_later, again=False), lowered=0.0),
            "The mask comes after the softmax. Hidden keys have already taken their share, so the"
            " shares of a query add up to less than 1. Put -inf into the scores, then take the"
            " softmax.",
        ),
        Mistake(
            "mask after the softmax, divided again",
            partial(attention_backward, soft=partial(_masked_later, again=True), lowered=0.0),
            "You take the softmax over all keys, set the hidden shares to 0 and divide by what is"
            " left. If a hidden score is larger by some hundred, nothing is left: 0 / 0 is NaN."
            " Put -inf into the scores, then take the softmax.",
        ),
        Mistake(
            "clamped",
            partial(attention_backward, limit=50.0),
            "The scores are clamped, so that exp cannot overflow. Then all large scores count the"
            " same. Scores may be 1000 and more: subtract each query's largest one instead, as"
            " torch's softmax does.",
        ),
        *(
            Mistake(
                f"scale by the keys, {where}",
                partial(attention_backward, **dict.fromkeys(where, _root_of_keys)),
                "You divide by the root of the number of keys. It is the root of k, the length of a"
                " query: query.shape[-1].",
            )
            for where in (
                ("scale", "query_scale", "key_scale"),
                ("scale",),
                ("query_scale", "key_scale"),
            )
        ),
        Mistake(
            "no scale on the way there",
            partial(attention_backward, scale=_once),
            "On the way there the scores are not divided by sqrt(k), so the shares are others:"
            " P = softmax(Q K^T / sqrt(k)).",
        ),
        Mistake(
            "no scale at all",
            partial(
                attention_backward,
                scale=_once,
                query_scale=_once,
                key_scale=_once,
            ),
            "1 / sqrt(k) is missing everywhere. The scores are divided by sqrt(k) before the"
            " softmax, and so are the gradients of query and key on the way back.",
        ),
        *(
            Mistake(
                f"values by the {name}",
                partial(attention_backward, of_value=of_value),
                f"The gradient of the values is made with the {name}. The output was a sum of"
                " values weighted by the *shares*, so it is made with these: shares.mT @ gradient.",
            )
            for name, of_value in (
                ("scores", lambda _, scores, *more: scores.masked_fill(scores.isinf(), 0.0)),
                ("gradient of the shares", lambda shares, scores, back, _: back),
                ("gradient of the scores", lambda shares, scores, back, of_scores: of_scores),
            )
        ),
        *(
            Mistake(f"{next(iter(edit))}: {says[:40]}", partial(attention_backward, **edit), says)
            for edit, says in (
                (
                    {"back_by": 2},
                    "The gradient of the shares is made with the key. The output was shares @"
                    " value, so it is gradient @ value.mT.",
                ),
                (
                    {"query_by": 3},
                    "The gradient of the query is made with the value. The scores were query @"
                    " key.mT, so it is the gradient of the scores @ key.",
                ),
                (
                    {"term": lambda shares, back: (shares * back).sum(dim=1, keepdim=True)},
                    "The sum of share times gradient runs over the heads. The shares of one query"
                    " add up to 1 over its keys, so sum over these, the last axis.",
                ),
                (
                    {"key_by": 0},
                    "The gradient of the key is made with the output's gradient. The scores were"
                    " query @ key.mT, so it is the gradient of the scores, turned, @ query.",
                ),
            )
        ),
        *(
            Mistake(
                f"softmax over axis {axis}",
                partial(
                    attention_backward, soft=lambda scores, _, axis=axis: scores.softmax(dim=axis)
                ),
                "The softmax runs over the wrong axis. The shares of one query add up to 1 over"
                " its keys, the last axis: softmax(dim=-1).",
            )
            for axis in (2, 1, 0)
        ),
        *(
            Mistake(
                f"mean over the queries, {name}",
                partial(attention_backward, **dict.fromkeys(where, _turned_and_averaged)),
                "The gradient of a key or of a value is a mean over the queries. It is the sum:"
                " each query that looks at it adds its part.",
            )
            for name, where in (
                ("both", ("turn_shares", "turn_scores")),
                ("the scores", ("turn_scores",)),
                ("the shares", ("turn_shares",)),
            )
        ),
        *(
            Mistake(
                f"added up over heads, {name}",
                partial(attention_backward, gather=gather),
                "The gradients of key and value are added up over the heads. Here each head has"
                " keys and values of its own, so h stays, each with its own gradient.",
            )
            for name, gather in (
                ("one axis left", lambda x: x.sum(dim=1, keepdim=True)),
                ("the same for all", lambda x: x.sum(dim=1, keepdim=True).expand_as(x)),
            )
        ),
        *(
            Mistake(
                f"scale {name}, everywhere",
                partial(
                    attention_backward,
                    **dict.fromkeys(("scale", "query_scale", "key_scale"), factor),
                ),
                f"There and back you {what}. It is a division by the root of k: query.shape[-1] **"
                " -0.5.",
            )
            for name, factor, what in (
                ("without the root", lambda k, s: 1 / k, "divide by k"),
                ("turned round", lambda k, s: k**0.5, "multiply by the root of k"),
            )
        ),
        *(
            Mistake(
                f"turned by reshape, {name}",
                partial(attention_backward, **dict.fromkeys(where, _reshaped)),
                "You turn (t, s) into (s, t) by reshape or view. That leaves all numbers in a row"
                " and cuts the row at other places. To exchange two axes use .mT or .transpose(-1,"
                " -2).",
            )
            for name, where in (
                ("both", ("turn_shares", "turn_scores")),
                ("the scores", ("turn_scores",)),
                ("the shares", ("turn_shares",)),
            )
        ),
        Mistake(
            "softmax that overflows",
            partial(attention_backward, soft=_overflows),
            "With scores of several hundred exp is infinite, and infinity by infinity is NaN."
            " Subtract each query's largest score first, as torch's softmax does.",
        ),
        Mistake(
            "one largest score for all",
            partial(attention_backward, soft=_with_one_maximum),
            "You subtract the largest of all scores. A query whose scores are all some hundred"
            " below that has only zeros left, and 0 / 0 is NaN. Subtract each query's own largest"
            " score: .amax(dim=-1, keepdim=True).",
        ),
        Mistake(
            "exp not divided",
            partial(attention_backward, soft=lambda scores, _: scores.exp()),
            "The shares are exp of the scores, not divided by their sum: the shares of one query"
            " add up to 1.",
        ),
        Mistake(
            "sigmoid",
            partial(attention_backward, soft=lambda scores, _: scores.sigmoid()),
            "The shares come from a sigmoid. It looks at each score by itself; it is a softmax, and"
            " the shares of one query add up to 1.",
        ),
        Mistake(
            "query and key exchanged",
            partial(attention_backward, order=(1, 0, 2)),
            "The gradients of query and key are exchanged. Return query's, key's, value's.",
        ),
        Mistake(
            "key and value exchanged",
            partial(attention_backward, order=(0, 2, 1)),
            "The gradients of key and value are exchanged. Return query's, key's, value's.",
        ),
        *(
            Mistake(
                f"another order, {order}",
                partial(attention_backward, order=order),
                "The three gradients come in another order. Return query's, key's, value's.",
            )
            for order in ((2, 0, 1), (2, 1, 0), (1, 2, 0))
        ),
    ),
    hints=(
        "Go back step by step. output = shares @ value: which two products give the gradients of"
        " shares and of value? (For y = A @ B: A's is gradient @ B^T, B's is A^T @ gradient.)",
        "Through the softmax: each score's gradient is its share times (the gradient of its share"
        " less the sum over all keys of share times gradient). Hidden keys have a share of 0.",
        "d_shares = gradient @ value.mT; d_scores = shares * (d_shares - (shares *"
        " d_shares).sum(-1, keepdim=True)); d_query = d_scores @ key / k**0.5; d_key ="
        " d_scores.mT @ query / k**0.5; d_value = shares.mT @ gradient.",
    ),
)

EXERCISES = (PATCH_TARGETS, ATTENTION_BACKWARD)


# --- a training with everything that is written ---------------------------------------------------

GLANCE = recipe.Recipe(
    contrastive_steps=10, contrastive_batch=24, generative_steps=45, generative_batch=8
)
TITLE = "a short training with your pieces"


def try_recipe(
    patch_targets: Callable,
    exercises: str | Path = ".",
    floor: float = 0.5,
    short: recipe.Recipe = GLANCE,
    last: int = 13,
) -> PaliGemma | None:
    """Both stages from random weights, so short that only the background is learned; displayed.

    Everything that passes its check in the exercises 01 to `last` of the folder takes part, with
    `patch_targets`, which is given. *correct* if that passes its check, too, and the share of the
    validation artist's backgrounds that are named right reaches `floor`. Returns the model.
    """
    passes = examine(PATCH_TARGETS, patch_targets).status == CORRECT
    try:
        own = recipe.written_in(exercises, last)
        own.tools["patch_targets"] = patch_targets
        stages = recipe.my_stages(short, recipe.World(), own, {"background": 1, "naming": 1})
        print(recipe.told_of(own, stages[0].pieces | stages[1].pieces))
        for stage in stages:
            if stage is stages[1]:
                tower = stages[0].module.vision_tower.state_dict()
                stage.model.vision_tower.load_state_dict(tower)
            makers = optimizers(stage.module, short.matrix_lr, short.other_lr, stage.gentle)
            losses = recipe.own_loop(stage, stage.module, makers)
            print(f"{stage.name:12} loss {losses[0]:5.2f} to {sum(losses[-5:]) / 5:5.2f}")
        model = stages[1].model.eval()
        asked = evaluation_set(scenes.VALIDATION_ARTIST, 60, 1, ("background",))
        share = by_task(asked, answers(model, stages[1].processor, asked))["background"]
    except BaseException as error:
        return show(failed(TITLE, error))
    chance = 1 / len(scenes.BACKGROUNDS)
    found = (
        f"{share:.0%} of the backgrounds are named right; guessing gives {chance:.0%}; the floor is"
        f" {floor:.0%}"
    )
    status = CORRECT if share >= floor and passes else WRONG
    more = "" if share >= floor else " What do your `check`s say?"
    if not passes:
        more += " But your `patch_targets` does not pass its check."
    show(Outcome(TITLE, status, f"{found}.{more}"))
    return model
