"""Lesson 12: the distribution, the loop, from pixels to tokens, and answers that are boxes."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.generation import continue_tokens, distribution

# --- distribution ---------------------------------------------------------------------------------


def _distribution_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(12)

    def given(rows: int, vocabulary: int) -> Tensor:
        return 1.5 * torch.randn(rows, vocabulary, generator=random)

    sure = given(2, 6)
    sure[:, 4] += 9  # one token alone has more than top_p
    hidden = given(2, 8)
    hidden[:, 2] = hidden[1, 6] = float("-inf")  # forbidden before
    return [
        (given(3, 7), 0.6, None, None),
        (given(4, 11), 1.7, 4, None),
        (given(3, 13)[[1, 0, 2]], 0.6, None, 0.7),  # top-p keeps 1, 3 and 3 tokens
        (given(2, 17), 2.5, 5, 0.6),
        (sure, 0.8, None, 0.9),
        (given(3, 5), 1.2, 9, 1.0),  # more than there are, and all: nothing is cut
        (given(2, 9), 1.5, 1, 0.3),
        (40 * given(2, 8), 0.3, 4, 0.8),  # e to the power of these overflows
        (given(1, 9), 2.0, 6, 0.8),
        (hidden, 1.4, 7, 0.8),
        (hidden, 0.9, None, 0.8),  # what is no number with top-k alone has another reason
    ]


def _softmax(z: Tensor) -> Tensor:
    return z.softmax(dim=-1)


def _distribution(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    *,
    heat: Callable[[Tensor, float], Tensor] = lambda logits, temperature: logits / temperature,
    cut: Callable[[Tensor, float], Tensor] = lambda logits, temperature: logits / temperature,
    soft: Callable[[Tensor], Tensor] = _softmax,
    most: Callable[[int], int] = lambda top_k: top_k,
    keep: Callable[[Tensor, Tensor, float], Tensor] = lambda before, p, top_p: before < top_p,
    whole: bool = False,
    fill: float = float("-inf"),
    normalised: str = "always",
    likely: bool = True,
    alike: Callable[[Tensor], Tensor] | None = None,
    back: str = "scatter",
    last: Callable[[Tensor], Tensor] = lambda p: p,
) -> Tensor:
    """distribution with one thing changed.

    heat, cut: logits and temperature as the softmax sees them, and as the cuts do; keep: of what
    the likelier tokens have together and of a token's own probability, (b, v); normalised:
    "always", "after top-k" or "never".
    """
    z, tokens = heat(logits, temperature).sort(dim=-1, descending=likely)
    seen = cut(logits, temperature).sort(dim=-1, descending=likely).values
    kept = torch.ones_like(z, dtype=torch.bool)
    if top_k is not None:
        kept &= torch.arange(z.shape[-1]) < most(top_k)
    inside = soft(z if whole else z.masked_fill(~kept, float("-inf")))
    if top_p is not None:
        p = soft(seen if whole else seen.masked_fill(~kept, float("-inf")))
        kept = kept & keep(p.cumsum(dim=-1) - p, p, top_p)
    if alike:
        kept = alike(kept).expand_as(kept)
    result = soft(z.masked_fill(~kept, fill))
    if normalised != "always":
        result = (soft(z) if normalised == "never" else inside) * kept
    result = last(result)
    if back == "sorted":
        return result
    return result.gather(-1, tokens) if back == "gather" else result.scatter(-1, tokens, result)


def _divided_after(logits: Tensor, temperature: float) -> Tensor:
    """As logits: probabilities / temperature, made to sum to 1."""
    return logits.log_softmax(dim=-1)


def _exp_alone(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(dim=-1, keepdim=True)


def _first_rows_tokens(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    kept = _distribution(logits[:1], temperature, top_k, top_p) > 0
    return _softmax((logits / temperature).masked_fill(~kept, float("-inf")))


def _places_for_ranks(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> Tensor:
    """argsort used once where it takes two: the token of each rank for the rank of each token."""
    z = logits / temperature
    order = z.argsort(dim=-1, descending=True)
    if top_k is not None:
        z = z.masked_fill(order >= top_k, float("-inf"))
    if top_p is not None:
        p = _softmax(z).gather(-1, order)
        before = (p.cumsum(dim=-1) - p).gather(-1, order)
        z = z.masked_fill(before >= top_p, float("-inf"))
    return _softmax(z)


def _one_limit(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    *,
    limit: Callable[[Tensor], Tensor] = lambda kth: kth[:, None],
) -> Tensor:
    """The least logit that top-k keeps, made of each row's k-th, (b,)."""
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1]
        logits = logits.masked_fill(logits < limit(kth), float("-inf"))
    return _distribution(logits, temperature, None, top_p)


def _masked_by(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    *,
    mask: Callable[[Tensor, Tensor], Tensor] = lambda z, keep: z.masked_fill(~keep, -torch.inf),
    by_place: bool = False,
) -> Tensor:
    """by_place: top-k keeps k tokens of equal ones, too, and not all as large as the k-th."""
    if top_k is not None:
        kth, tokens = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        keep = logits >= kth[:, -1:]
        if by_place:
            keep = torch.zeros_like(keep).scatter(-1, tokens, True)
        logits = mask(logits, keep)
    return _distribution(logits, temperature, None, top_p)


def _k_of_all(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    if top_k is not None:
        least = logits.flatten().topk(min(top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return _distribution(logits, temperature, None, top_p)


OVER_THE_BATCH = (
    "Your softmax runs over the batch. Each row is a distribution of its own, over the vocabulary:"
    " dim=-1."
)
FIRST_ROWS_CUT = (
    "All rows keep what the first row keeps. Each row has its own likeliest tokens and its own"
    " sums: cut each for itself, along dim=-1."
)

CROSSING = (
    "Top-p drops the token that crosses p. It belongs to the fewest tokens that reach p together."
    " Keep a token if those *before* it have not reached p: cumsum minus its own probability <"
    " top_p. Then there is also always one left."
)
NOT_ONE = (
    "What is kept does not sum to 1. Divide by its sum after the last cut: .sum(dim=-1,"
    " keepdim=True)."
)
NOT_TOP_P = (
    "Top-p asks what the most likely tokens have *together*. Here each token is kept or dropped for"
    " its own probability. Sort them, sum up from the likeliest (cumsum), and keep a token if those"
    " before it have not reached p."
)

DISTRIBUTION = Exercise(
    name="distribution",
    reference=distribution,
    cases=_distribution_cases,
    axes="b v",
    checked=(
        "shape, dtype and every value on 11 batches: temperature alone, with top-k, with top-p,"
        " with both; with a model so sure that one token has more than top_p, with logits up to"
        " some hundreds or minus infinity, with top-k above v and top-p 1, and one row alone;"
        " inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "temperature after the softmax",
            partial(_distribution, heat=_divided_after, cut=_divided_after),
            "The temperature has no effect. If you divide the probabilities by it, making them sum"
            " to 1 takes it out again. Divide the logits, before the softmax.",
        ),
        Mistake(
            "softmax of probabilities",
            partial(
                _distribution,
                heat=lambda logits, t: logits.softmax(-1) / t,
                cut=lambda logits, t: logits.softmax(-1) / t,
            ),
            "There are two softmaxes: the temperature divides probabilities, and another softmax"
            " makes them nearly equal. Divide the logits, and take one softmax of that.",
        ),
        Mistake(
            "times the temperature",
            partial(
                _distribution, heat=lambda logits, t: logits * t, cut=lambda logits, t: logits * t
            ),
            "The logits are multiplied by the temperature, so a high one makes the model surer."
            " Divide by it.",
        ),
        *(
            Mistake(
                name,
                partial(_distribution, heat=heat, cut=heat),
                says,
            )
            for name, heat, says in (
                (
                    "temperature twice",
                    lambda logits, t: logits / t / t,
                    "The logits are divided by the temperature twice. Once, before the softmax.",
                ),
                (
                    "smallest subtracted",
                    lambda logits, t: (logits - logits.amin(dim=-1, keepdim=True)) / t,
                    "The smallest logit is subtracted. It may be minus infinity, and minus infinity"
                    " less itself is nan. Take torch's softmax, or subtract the largest.",
                ),
                (
                    "minus infinity replaced",
                    lambda logits, t: logits.masked_fill(logits.isinf(), 0) / t,
                    "Logits of minus infinity are replaced by 0. These tokens were forbidden"
                    " before, and stay so: their probability is 0.",
                ),
            )
        ),
        Mistake(
            "temperature after the cuts",
            partial(_distribution, cut=lambda logits, t: logits),
            "Top-p counts probabilities of before the temperature. The temperature comes first:"
            " divide the logits by it, and cut what comes out.",
        ),
        Mistake(
            "overflow",
            partial(_distribution, soft=_exp_alone),
            "e to the power of a large logit is infinite, and infinite by infinite is nan. Take"
            " torch's softmax, or subtract the largest logit first.",
        ),
        Mistake(
            "over the batch",
            partial(_distribution, soft=lambda z: z.softmax(dim=0)),
            OVER_THE_BATCH,
        ),
        Mistake(
            "over the batch, unsorted",
            lambda logits, temperature, top_k, top_p: (logits / temperature).softmax(dim=0),
            OVER_THE_BATCH,
        ),
        Mistake(
            "top-k ignored",
            partial(_distribution, most=lambda top_k: 10**9),
            "top_k has no effect. Only the top_k most likely tokens of a row may keep a"
            " probability.",
        ),
        Mistake(
            "one token more than k",
            partial(_distribution, most=lambda top_k: top_k + 1),
            "One token more than top_k is kept. In sorted order the first top_k stay, 0 to top_k"
            " - 1.",
        ),
        Mistake(
            "one token fewer than k",
            partial(_distribution, most=lambda top_k: max(1, top_k - 1)),
            "One token fewer than top_k is kept. In sorted order the first top_k stay, 0 to top_k"
            " - 1.",
        ),
        Mistake(
            "top-p ignored",
            partial(_distribution, keep=lambda before, p, top_p: before < 2),
            "top_p has no effect. Only the fewest most likely tokens that reach top_p together may"
            " keep a probability.",
        ),
        Mistake(
            "crossing token dropped",
            partial(_distribution, keep=lambda before, p, top_p: before + p <= top_p + 1e-6),
            CROSSING,
        ),
        Mistake(
            "crossing token dropped, one always kept",
            partial(
                _distribution,
                keep=lambda before, p, top_p: (before + p <= top_p + 1e-6) | (before == 0),
            ),
            CROSSING,
        ),
        Mistake(
            "one token after the crossing one",
            partial(
                _distribution, keep=lambda before, p, top_p: before - p.roll(1, -1) < top_p - 1e-6
            ),
            "Top-p keeps one token too many: the one after the token that crosses p. Keep a token"
            " if those *before* it have not reached p.",
        ),
        Mistake(
            "min-p",
            partial(_distribution, keep=lambda before, p, top_p: p >= top_p * p[:, :1]),
            NOT_TOP_P,
        ),
        Mistake(
            "a threshold for each",
            partial(_distribution, keep=lambda before, p, top_p: (p >= 1 - top_p) | (before == 0)),
            NOT_TOP_P,
        ),
        Mistake(
            "p as a threshold for each",
            partial(_distribution, keep=lambda before, p, top_p: (p >= top_p) | (before == 0)),
            NOT_TOP_P,
        ),
        Mistake(
            "1 - p",
            partial(_distribution, keep=lambda before, p, top_p: before < 1 - top_p + 1e-6),
            "Top-p keeps the tokens up to 1 - top_p. It keeps the fewest most likely ones that"
            " reach top_p itself together.",
        ),
        Mistake(
            "a share of the tokens",
            partial(
                _distribution,
                keep=lambda before, p, top_p: torch.arange(p.shape[-1]) < top_p * p.shape[-1],
            ),
            "Top-p keeps a share of the *number* of tokens. It counts their probabilities: the"
            " fewest most likely tokens that reach top_p together.",
        ),
        Mistake("not renormalised", partial(_distribution, normalised="never"), NOT_ONE),
        Mistake(
            "powers not renormalised",
            lambda logits, t, top_k, top_p: (logits.log_softmax(dim=-1) / t).exp(),
            "The rows do not sum to 1: probabilities to the power of 1 / temperature have another"
            " sum. Divide the logits, and let the softmax make it 1.",
        ),
        Mistake(
            "largest 1",
            partial(_distribution, last=lambda p: p / p.amax(dim=-1, keepdim=True)),
            "The most likely token has 1, so the row's sum is larger. Divide by the sum, not by the"
            " largest.",
        ),
        Mistake(
            "no softmax",
            lambda logits, t, top_k, top_p: logits / t,
            "These are logits. The softmax makes probabilities of them, and each row sums to 1.",
        ),
        Mistake(
            "either top-k or top-p",
            lambda logits, t, top_k, top_p: _distribution(
                logits, t, top_k, top_p if top_k is None else None
            ),
            "With both, only top-k is done. They are no alternatives: first cut to k, then count p"
            " within the rest (`if` twice, not `elif`).",
        ),
        Mistake(
            "either top-p or top-k",
            lambda logits, t, top_k, top_p: _distribution(
                logits, t, top_k if top_p is None else None, top_p
            ),
            "With both, only top-p is done. They are no alternatives: first cut to k, then count p"
            " within the rest (`if` twice, not `elif`).",
        ),
        Mistake(
            "not renormalised at last", partial(_distribution, normalised="after top-k"), NOT_ONE
        ),
        Mistake(
            "left in sorted order",
            partial(_distribution, back="sorted"),
            "The probabilities are sorted, most likely first, so column 0 is no longer token 0."
            " Put each back at its token: zeros.scatter(-1, tokens, probabilities).",
        ),
        Mistake(
            "gather instead of scatter",
            partial(_distribution, back="gather"),
            "The probabilities come back to wrong tokens: gather takes *from* the places that sort"
            " names. You want to put them *to* these places, and that is scatter.",
        ),
        Mistake(
            "top-p of the whole",
            partial(_distribution, whole=True),
            "With both, top-p counts the probabilities of all tokens, also of those that top-k has"
            " cut. Cut to k first, make the rest sum to 1, and count p within that.",
        ),
        Mistake(
            "least likely kept",
            partial(_distribution, likely=False),
            "The *least* likely tokens are kept. Sort from the largest down: descending=True.",
        ),
        Mistake(
            "cut logits set to 0",
            partial(_distribution, fill=0.0),
            "The logits that are cut are set to 0. That is a logit like any other, and its"
            " exponential is 1. Only -inf gets no chance.",
        ),
        Mistake(
            "a second softmax",
            partial(_distribution, last=_softmax),
            "There is a second softmax, over probabilities: it makes them nearly equal, and gives"
            " what was cut a chance again. Divide by the sum instead.",
        ),
        Mistake(
            "the first row's cut for all",
            partial(_distribution, alike=lambda kept: kept[:1]),
            FIRST_ROWS_CUT,
        ),
        *(
            Mistake(
                f"as many for all as {which} row",
                partial(_distribution, alike=alike),
                "All rows keep equally many tokens. How many top-p keeps is another number for each"
                " row: cut each for itself, along dim=-1.",
            )
            for which, alike in {
                "the last": lambda kept: kept[-1:],
                "the longest": lambda kept: kept.any(dim=0, keepdim=True),
                "the shortest": lambda kept: kept.all(dim=0, keepdim=True),
            }.items()
        ),
        Mistake("the first row's tokens for all", _first_rows_tokens, FIRST_ROWS_CUT),
        *(
            Mistake(
                f"masked by products, {least}, {'by place' if by_place else 'by size'}",
                partial(
                    _masked_by,
                    mask=lambda z, keep, least=least: z * keep + ~keep * least,
                    by_place=by_place,
                ),
                "Logits are masked by products, and minus infinity times 0 is no number (nan). Some"
                " logits are minus infinity from before. Take masked_fill or torch.where.",
            )
            for least, by_place in ((-1e9, False), (-1e9, True), (-torch.inf, True))
        ),
        *(
            Mistake(
                f"top-k by {whose} least logit",
                partial(_one_limit, limit=limit),
                "Top-k cuts all rows at one and the same logit. Each row has its own: compare each"
                " with the smallest that *it* keeps, (b, 1), with keepdim=True.",
            )
            for whose, limit in {
                "the smallest": torch.min,
                "the largest": torch.max,
                "the first row's": lambda kth: kth[0],
                "the last row's": lambda kth: kth[-1],
                "the mean": torch.mean,
            }.items()
        ),
        Mistake(
            "k tokens in all",
            _k_of_all,
            "top_k counts the tokens of all rows together. Each row keeps top_k of its own:"
            " dim=-1.",
        ),
        Mistake(
            "places for ranks",
            _places_for_ranks,
            "Other tokens are kept than the likeliest. argsort says which token is at each rank,"
            " not which rank a token has: that is the argsort of the argsort. Or cut in sorted"
            " order, and bring the result back with scatter.",
        ),
        Mistake(
            "logarithms",
            partial(_distribution, last=torch.log),
            "These are logarithms of probabilities. Return the probabilities: each row sums to 1.",
        ),
        Mistake(
            "greedy",
            partial(_distribution, last=lambda p: (p == p.amax(dim=-1, keepdim=True)).float()),
            "The most likely token has everything: this is greedy. Return the probability of each"
            " token that is kept.",
        ),
    ),
    crashes=tuple(
        Mistake(
            name,
            too_many,
            "top_k may be above v, and then nothing is cut: take min(top_k, v), or a slice,"
            " [:, :top_k], which ends where the row ends.",
        )
        for name, too_many in {
            "topk": lambda z, t, k, p: distribution(
                z if k is None else z.masked_fill(z < z.topk(k).values[:, -1:], -torch.inf),
                t,
                None,
                p,
            ),
            "the smallest of k": lambda z, t, k, p: distribution(
                z
                if k is None
                else z.masked_fill(z < z.sort(-1, True).values[:, k - 1, None], -torch.inf),
                t,
                None,
                p,
            ),
        }.items()
    ),
    hints=(
        "Sort the logits / temperature from the largest down (sort gives the values and the"
        " tokens). Then top-k and top-p are both: keep the first so many of the row.",
        "Top-k: -inf from column top_k on, and then the softmax. Top-p: probabilities.cumsum(-1) -"
        " probabilities is what the likelier tokens have reached before each. Where that is >="
        " top_p, put 0.",
        "Divide by the sum of each row (keepdim=True). At last torch.zeros_like(p).scatter(-1,"
        " tokens, p) puts every probability back to its token.",
    ),
)


# --- continue_tokens ------------------------------------------------------------------------------


def _continue_tokens(
    logits: Tensor,
    step: Callable,
    choose: Callable,
    eos: int,
    pad: int,
    max_new_tokens: int,
    *,
    stop: str = "all",
    ends: Callable[[Tensor, int, int], Tensor] = lambda tokens, eos, pad: tokens == eos,
    once: bool = True,
    filler: Callable[[int, int], int | None] = lambda eos, pad: pad,
    eos_shown: bool = True,
    eos_told: bool = True,
    late: bool = False,
    choose_again: str = "",
    buffer: bool = False,
    last_shown: bool = True,
    more: int = 0,
    begin: str = "choose",
    pick: Callable[[Callable, Tensor], Tensor] = lambda choose, logits: choose(logits),
    told_running: Callable[[Tensor, Tensor], Tensor] = lambda before, running: running,
    told_tokens: Callable[[Tensor, Tensor], Tensor] = lambda chosen, tokens: tokens,
    new_logits: bool = True,
) -> list[Tensor]:
    """continue_tokens with one thing changed.

    stop: when "all" rows have ended, "any", the "first", "together" (in one step), "late" (one step
    later), at the "limit", or "never", when no row ever ends; told_running, told_tokens: what step
    gets; late: padding begins one token late; choose_again: another choice is what "step" gets, or
    what is "given out"; buffer: one tensor for all steps.
    """

    def stepped(tokens: Tensor, running: Tensor) -> Tensor | None:
        try:
            return step(tokens, running)
        except UselessStep:
            return None

    before = running = torch.ones(len(logits), dtype=torch.bool)
    told = []
    if begin == "step":  # another step before the first token
        new = stepped(pick(choose, logits), running)
        logits = logits if new is None else new
    for number in range(max_new_tokens + more):
        chosen, fill = pick(choose, logits), filler(eos, pad)
        talking = before if late and number else running
        before = running

        def padded(chosen: Tensor, talking=talking, fill=fill) -> Tensor:
            return chosen if fill is None else torch.where(talking, chosen, fill)

        tokens = padded(chosen)
        ended = ends(tokens, eos, pad)
        if choose_again == "given out":
            tokens = padded(pick(choose, logits))
        running = ~ended if not once else running & ~ended
        if stop == "never":
            running = torch.ones_like(running)
        if not eos_told:
            tokens = torch.where(running, tokens, pad)
        told.append(tokens if eos_shown else torch.where(running, tokens, pad))
        done = {
            "all": not running.any(),
            "any": not running.all(),
            "first": not running[0],
            "together": bool(ended.all()),
            "late": not before.any(),
        }.get(stop, False)
        if done or number + 1 == max_new_tokens + more:
            if done and not last_shown and number:
                told.pop()
            break
        if choose_again == "step":
            chosen = pick(choose, logits)
            tokens = padded(chosen)
        new = stepped(told_tokens(chosen, tokens), told_running(before, running))
        if new is None:
            break
        logits = new if new_logits else logits
    return told[-1:] * len(told) if buffer else told


class UselessStep(RuntimeError):
    """The make-believe model was asked for logits that nobody needs."""


def _script(
    texts: list[list[int]], vocabulary: int, eos: int, pad: int, most: int, strict: bool = False
) -> tuple:
    """Arguments of continue_tokens with a make-believe model; row i of it would say texts[i].

    It goes on with the token after the given one in its text, also after eos. choose takes the
    logit that is second; asked again about the same logits, the last token but three of its table.
    If step is told wrongly who is running, it says the last but one; if a row that has ended does
    not come as padding, the last but two.
    strict: raises UselessStep.
    """
    follows = torch.zeros(len(texts), vocabulary, dtype=torch.long)
    for row, text in enumerate(texts):
        for token, following in zip(text, text[1:], strict=False):
            follows[row, token] = following
    rows = torch.arange(len(texts))
    calls, given, ended = [], [], torch.zeros(len(texts), dtype=torch.bool)

    def as_logits(tokens: Tensor) -> Tensor:
        made = torch.zeros(len(texts), vocabulary)
        given.append(made)
        made[:, vocabulary - 1] = 7.0  # the largest, which choose does not take
        made[rows, tokens] = 5.0
        return made.clone()

    def step(tokens, running):
        tokens, running = torch.as_tensor(tokens), torch.as_tensor(running).bool()
        calls.append(1)
        if len(calls) > 30:
            raise RuntimeError(
                "step was called more than 30 times. Does your loop end after max_new_tokens?"
            )
        for name, one in (("token", tokens), ("value of running", running)):
            if one.shape != rows.shape:
                raise ValueError(
                    f"step takes one {name} a row, ({len(rows)},); found {tuple(one.shape)}"
                )
        if strict and not running.any():
            raise UselessStep(
                "step was called although no row is running. Stop when all rows have said eos."
            )
        if strict and len(calls) >= most:
            raise UselessStep(
                "step was called after the last token. The first token needs no step, so"
                f" max_new_tokens = {most} needs {most - 1}: end before you call it again."
            )
        before = ended.clone()
        ended.logical_or_(tokens == eos)
        if not torch.equal(running, ~ended):
            return as_logits(torch.full_like(rows, vocabulary - 2))
        if (tokens[before] != pad).any():
            return as_logits(torch.full_like(rows, vocabulary - 3))
        return as_logits(follows[rows, tokens])

    asked = []

    def choose(logits):
        logits = torch.as_tensor(logits)
        if len(logits) != len(texts):
            raise ValueError(
                f"choose takes the logits of all rows, ({len(texts)}, {vocabulary}); found"
                f" {tuple(logits.shape)}. It may draw: ask it once a step, for all rows together,"
                " for ended ones too"
            )
        if not any(torch.equal(one, logits) for one in given):
            raise ValueError(
                "choose takes logits as they come; found some that step has not returned. Change"
                " nothing in them: what may be chosen is for choose to say"
            )
        again = bool(asked) and torch.equal(asked[-1], logits)
        asked.append(logits.clone())
        if again:
            return torch.full_like(rows, vocabulary - 4)
        return logits.topk(2, dim=-1).indices[:, 1]

    first = as_logits(torch.tensor([text[0] for text in texts]))
    return first, step, choose, eos, pad, most


def _loop_cases() -> list[tuple]:
    # eos 1 and pad 0 as in the model, then others; after eos each row would talk on. A row alone; a
    # row that never ends; rows that end one after the other; a row that chooses pad and goes on.
    # No two tokens of a row are equal, because each says what follows.
    alone = [[5, 9, 4, 1, 6, 7, 8, 3, 10, 2]]
    three = [[7, 4, 6, 1, 5, 8, 9, 3], [4, 1, 9, 10, 7, 3, 5, 6], [3, 0, 8, 5, 9, 4, 6, 7]]
    others = [[6, 1, 5, 2, 7, 8, 9, 4], [4, 7, 0, 9, 5, 2, 8, 10], [8, 3, 2, 4, 9, 5, 6, 10]]
    early = [[5, 1, 7, 8, 9, 4], [6, 7, 1, 9, 4, 5]]
    return [
        _script(alone, 15, 1, 0, 7),
        _script(three, 17, 1, 0, 6),
        _script(others, 15, 2, 3, 8),
        _script(early, 13, 1, 0, 6, strict=True),
        _script(early, 13, 1, 0, 1, strict=True),
        _script(three, 17, 1, 0, 4, strict=True),
    ]


NO_EOS = (
    "The eos itself is replaced by pad. Give out the tokens first, and update running after that;"
    " padding begins with the token after eos."
)

CONTINUE_TOKENS = Exercise(
    name="continue_tokens",
    reference=continue_tokens,
    cases=_loop_cases,
    axes="b t",
    steps=True,
    checked=(
        "every token on 6 batches of 1 to 3 rows that end early, late or never, with two different"
        " eos and pad, a pad that a running row chooses, and one token at most; choose chooses,"
        " step gets the tokens just given out and who is still running, and no step is useless"
    ),
    mistakes=(
        Mistake(
            "never stops",
            partial(_continue_tokens, stop="never"),
            "Nothing stops at eos: the rows talk on until max_new_tokens. Remember which rows have"
            " said eos, and end when all have.",
        ),
        Mistake(
            "goes on with padding",
            partial(_continue_tokens, stop="limit"),
            "When all rows have said eos, it goes on with padding until max_new_tokens. End as soon"
            " as no row is running any more.",
        ),
        Mistake(
            "ends one step late",
            partial(_continue_tokens, stop="late"),
            "It ends one token late: after the last eos all rows give pad once more. Look whether"
            " any row is running *after* these tokens.",
        ),
        Mistake(
            "stops with the first row",
            partial(_continue_tokens, stop="any"),
            "The loop ends when the first row says eos, and the others are cut off. End when *no*"
            " row is running any more.",
        ),
        Mistake(
            "the first row decides",
            partial(_continue_tokens, stop="first"),
            "The loop ends with the first row of the batch, and the others are cut off. End when"
            " *no* row is running any more.",
        ),
        Mistake(
            "the last eos not given out",
            partial(_continue_tokens, last_shown=False),
            "The last step is missing: the loop ends before it gives out the tokens with the last"
            " eos. Give out first, then look whether to go on.",
        ),
        Mistake(
            "padding one token late",
            partial(_continue_tokens, late=True),
            "Padding begins one token late: after eos the row says one token more. The tokens of a"
            " step are padded for all rows that said eos in *any* step before.",
        ),
        Mistake(
            "all in one step",
            partial(_continue_tokens, stop="together"),
            "The loop ends only when all rows say eos in the same step. They end at different"
            " times: remember who has ended, and end when all have.",
        ),
        Mistake(
            "no padding after eos",
            partial(_continue_tokens, filler=lambda eos, pad: None),
            "Rows that have said eos go on with tokens. Give pad for them: torch.where(running,"
            " tokens, pad).",
        ),
        Mistake(
            "eos in place of pad",
            partial(_continue_tokens, filler=lambda eos, pad: eos),
            "Rows that have said eos say it again and again. After it they give pad.",
        ),
        Mistake(
            "pad is 0",
            partial(_continue_tokens, filler=lambda eos, pad: 0),
            "Rows that have said eos give token 0. That is the small model's pad; take the argument"
            " `pad`.",
        ),
        Mistake(
            "eos is 1",
            partial(_continue_tokens, ends=lambda tokens, eos, pad: tokens == 1),
            "Rows end at token 1. That is the small model's eos; take the argument `eos`.",
        ),
        Mistake(
            "pad ends, too",
            partial(
                _continue_tokens, ends=lambda tokens, eos, pad: (tokens == eos) | (tokens == pad)
            ),
            "A running row that chooses pad is taken for ended. Only eos ends a row: a model may"
            " say anything.",
        ),
        Mistake(
            "running changed before the tokens are given out",
            partial(_continue_tokens, eos_told=False, last_shown=False),
            "running is changed before the tokens are given out, so eos becomes pad, and the last"
            " step is missing. Give out first, then take out the rows that have said eos.",
        ),
        Mistake(
            "one tensor for all steps",
            partial(_continue_tokens, buffer=True),
            "All steps are one and the same tensor, which is written over: what was given out"
            " before changes, too. Give out a new tensor at each step, as torch.where makes it.",
        ),
        Mistake("eos becomes padding", partial(_continue_tokens, eos_shown=False), NO_EOS),
        Mistake("step gets padding for eos", partial(_continue_tokens, eos_told=False), NO_EOS),
        Mistake(
            "one token too many",
            partial(_continue_tokens, more=1),
            "There is one token more than max_new_tokens. The token from the first logits counts"
            " too.",
        ),
        Mistake(
            "one token too few",
            lambda logits, step, choose, eos, pad, most: _continue_tokens(
                logits, step, choose, eos, pad, max(1, most - 1)
            ),
            "There is one token fewer than max_new_tokens. The token from the first logits is"
            " number 1, and max_new_tokens - 1 steps follow.",
        ),
        Mistake(
            "first logits not used",
            partial(_continue_tokens, begin="step"),
            "The first token is missing. The logits that you are given are for it: choose from them"
            " before the first step.",
        ),
        Mistake(
            "the same logits again",
            partial(_continue_tokens, new_logits=False),
            "Every token is chosen from the first logits. Keep what step returns: logits ="
            " step(tokens, running).",
        ),
        Mistake(
            "argmax",
            partial(_continue_tokens, pick=lambda choose, logits: logits.argmax(dim=-1)),
            "You take the largest logit yourself. How a token is chosen is for `choose` to say: it"
            " may draw. Call choose(logits).",
        ),
        Mistake(
            "drawn from the softmax",
            partial(
                _continue_tokens,
                pick=lambda choose, logits: torch.multinomial(logits.softmax(-1), 1)[:, 0],
            ),
            "You draw the token yourself. How a token is chosen is for `choose` to say. Call"
            " choose(logits).",
        ),
        *(
            Mistake(
                f"chosen twice, another {where}",
                partial(_continue_tokens, choose_again=where),
                "choose is called twice for one step: what you give out, what step reads and what"
                " says eos must be the same tokens. choose may draw, and then says something else"
                " each time. Keep its tokens in a variable.",
            )
            for where in ("step", "given out")
        ),
        Mistake(
            "ended rows start again",
            partial(_continue_tokens, once=False),
            "A row that has ended starts again one token later: its padding is not eos, so it"
            " counts as running. Once ended, always ended: running = running & (tokens != eos).",
        ),
        Mistake(
            "running from before",
            partial(_continue_tokens, told_running=lambda before, running: before),
            "step gets `running` as it was before these tokens. Take out the rows that have just"
            " said eos, then call step.",
        ),
        Mistake(
            "running upside down",
            partial(_continue_tokens, told_running=lambda before, running: ~running),
            "`running` is upside down when step gets it: it is True for the rows that have *not*"
            " said eos yet.",
        ),
        Mistake(
            "all running",
            partial(_continue_tokens, told_running=lambda before, running: before | ~before),
            "step is told that all rows are running. In `running` the rows that have said eos are"
            " False, these tokens included.",
        ),
        Mistake(
            "step gets what was chosen",
            partial(_continue_tokens, told_tokens=lambda chosen, tokens: chosen),
            "step gets other tokens than those you gave out: for rows that have ended it gets what"
            " was chosen, not pad. Give it the same tokens, padding too.",
        ),
    ),
    hints=(
        "Before the loop: running = torch.ones(b, dtype=torch.bool), b = len(logits). Then for each"
        " token: choose, replace by pad where not running, give out, update running, stop or step.",
        "torch.where(running, choose(logits), pad) are the tokens. `yield tokens` gives them out"
        " and goes on when the next are asked for. Then running = running & (tokens != eos).",
        "Stop if it was token number max_new_tokens or if not running.any(): `return` ends a"
        " function that yields. Else logits = step(tokens, running).",
    ),
)


# --- answer ---------------------------------------------------------------------------------------


def answer(
    pixels: Tensor,
    prompt: Tensor,
    look: Callable,
    read: Callable,
    choose: Callable,
    usable: int,
    eos: int,
    pad: int,
    max_new_tokens: int,
    *,
    fill: float = float("-inf"),
    at_first: bool = True,
    later: bool = True,
    shift: int = 0,
    hides: Callable[[Tensor, int], Tensor] = torch.ge,
    repair: Callable[[Tensor, int, int], Tensor] | None = None,
    seen: str = "once",
    all_again: bool = False,
    begin: Callable[[Tensor], Tensor] = lambda prompt: prompt,
    whole: bool = True,
    once_more: Callable[[Tensor], Tensor | None] = lambda prompt: None,
    pick: Callable[[Callable, Tensor], Tensor] = lambda choose, logits: choose(logits),
    signs: Callable[[int, int], tuple[int, int]] = lambda eos, pad: (eos, pad),
    shown: Callable[[Tensor, int, int], Tensor] = lambda told, eos, pad: told,
    last: Callable[[Tensor, Tensor], Tensor] = lambda prompt, told: told,
) -> Tensor:
    """(b, c, y, x), (b, s) -> (b, t) tokens. The reference, or with one thing changed.

    seen: the picture "once", "never", "again" at each step, "twice" before the first.
    """

    def mask(logits: Tensor, on: bool) -> Tensor:
        hidden = hides(torch.arange(logits.shape[-1]), usable + shift)
        return logits.masked_fill(hidden, fill) if on else logits

    def choice(logits: Tensor) -> Tensor:
        tokens = pick(choose, logits)
        return repair(tokens, usable, pad) if repair else tokens

    so_far = [prompt]

    def step(tokens: Tensor, running: Tensor) -> Tensor:
        so_far.append(tokens[:, None])
        new = torch.cat(so_far, dim=1) if all_again else tokens[:, None]
        return mask(read(new, look(pixels) if seen == "again" else None), later)

    image = None if seen == "never" else look(pixels)
    if seen == "twice":
        look(pixels)
    if whole:
        logits = read(begin(prompt), image)
    else:
        for place, token in enumerate(begin(prompt).split(1, dim=1)):
            logits = read(token, None if place else image)
    if (again := once_more(prompt)) is not None:
        logits = read(again, None)
    logits = mask(logits, at_first)
    told = _continue_tokens(logits, step, choice, *signs(eos, pad), max_new_tokens)
    return last(prompt, shown(torch.stack(told, dim=1), eos, pad))


def _reader(seed: int, rows: int, vocabulary: int, numbers: list[float]) -> list[Callable]:
    """(look, read, choose) of a make-believe model with a memory.

    read goes on from all that it was given before, as a model with a cache does, and what it is
    given first sees itself whole; choose is a draw with given random numbers, one a row.
    """
    random = torch.Generator().manual_seed(seed)
    width = 6
    table = torch.randn(vocabulary, width, generator=random)
    head = 2 * torch.randn(vocabulary, width, generator=random)
    head[-3:] *= 1.5  # the rows that are no text are likely, so that a missing mask shows
    eye = torch.randn(3, width, generator=random)
    bored = 9.0 * torch.eye(vocabulary)  # logits that know one word
    memory, looks, pictures, reads = [torch.zeros(rows, width)], [], [], []

    def look(pixels):
        looks.append(1)
        return pixels.mean(dim=(2, 3))[:, None] @ eye

    def read(tokens, image):
        if tokens.ndim != 2 or len(tokens) != rows:
            raise ValueError(
                f"read takes tokens (b, m) with b = {rows}; found {tuple(tokens.shape)}. For one"
                " token a row: tokens[:, None]"
            )
        if image is not None:
            if image.shape[2:] != (width,):
                raise ValueError(
                    f"read takes as image what look gave, (b, n, {width}); found"
                    f" {tuple(image.shape)}"
                )
            pictures.append(1)
            memory[0] = memory[0] + image.sum(dim=1)
        reads.append(1)
        if len(reads) == 1:
            memory[0] = memory[0] + table[tokens].sum(dim=1)
        for token in tokens.unbind(dim=1):
            memory[0] = 0.95 * memory[0].roll(1, dims=1) + table[token]
        # Whoever looks twice, or hands over what it saw twice, gets nothing sensible any more, and
        # something else if all is read again.
        if len(looks) > 1 or len(pictures) > 1:
            return bored[3 if tokens.shape[1] == 1 or len(reads) == 1 else 5].repeat(rows, 1)
        return torch.tanh(memory[0]) @ head.T

    stick = torch.tensor(numbers)

    def choose(logits):
        ends = logits.softmax(dim=-1).cumsum(dim=-1)
        return (ends <= stick[:, None]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)

    return [look, read, choose]


def _answer_case(
    seed: int, vocabulary: int, numbers: list[float], eos: int, pad: int, most: int
) -> tuple:
    rows, random = len(numbers), torch.Generator().manual_seed(7 + seed)
    pixels = torch.randn(rows, 3, 4, 5, generator=random)
    prompt = torch.randint(2, vocabulary - 3, (rows, 4), generator=random)
    given = _reader(seed, rows, vocabulary, numbers)
    return (pixels, prompt, *given, vocabulary - 3, eos, pad, most)


def _answer_cases() -> list[tuple]:
    # Seeds for which some rows end and some do not, and every known mistake tells other tokens.
    return [
        _answer_case(28, 11, [0.55, 0.35], 1, 0, 9),
        _answer_case(79, 14, [0.3, 0.62, 0.81], 2, 4, 8),
        _answer_case(77, 10, [0.45], 1, 0, 6),
        _answer_case(34, 12, [0.55, 0.35], 3, 1, 9),  # all rows end
    ]


ONCE = (
    "The picture is used again after the first call: look is called at every step, or read gets the"
    " image again. The picture is in the model's memory by then: look once, and pass None as image"
    " from then on."
)
REPAIRED = (
    "The token is drawn first and replaced by another if it is no text. That leaves holes in the"
    " answer, or says what nobody chose. Mask the logits first, then draw."
)

READ_TWICE = (
    "The last token of the prompt is read twice. The prefill has read it: its logits are those for"
    " the first token of the answer."
)

ANSWER = Exercise(
    name="answer",
    reference=answer,
    cases=_answer_cases,
    axes="b t",
    checked=(
        "every token of 4 batches of 1 to 3 rows, of which one ends early, with three different eos"
        " and pad, drawn with fixed random numbers from a make-believe model that remembers what it"
        " has read and notices a second look at the picture"
    ),
    mistakes=(
        Mistake(
            "nothing masked",
            partial(answer, at_first=False, later=False),
            "Tokens that are no text are drawn: nothing is masked. Put -inf into the logits from"
            " column `usable` on, before choose sees them.",
        ),
        Mistake(
            "only the first logits masked",
            partial(answer, later=False),
            "Only the first logits are masked. Each step's logits have the same columns that are no"
            " text: mask these too.",
        ),
        Mistake(
            "the first logits not masked",
            partial(answer, at_first=False),
            "The first logits are not masked, only those of the steps. The first token is drawn"
            " from the same table: mask all logits.",
        ),
        Mistake(
            "masked with zero",
            partial(answer, fill=0.0),
            "The unusable logits are set to 0. That is a logit like any other, and its exponential"
            " is 1. Only -inf gets no chance.",
        ),
        Mistake(
            "the usable ones masked",
            partial(answer, hides=torch.lt),
            "The mask is upside down: the usable columns are hidden and the others can be chosen."
            " Hide from column `usable` on.",
        ),
        Mistake(
            "one column too few",
            partial(answer, shift=1),
            "Column `usable` itself can still be drawn. There are `usable` tokens, 0 to usable - 1:"
            " mask from column `usable` on.",
        ),
        Mistake(
            "one column too many",
            partial(answer, shift=-1),
            "The last usable column, usable - 1, is masked as well. There are `usable` tokens, 0 to"
            " usable - 1: mask from column `usable` on.",
        ),
        Mistake(
            "chosen first, then repaired",
            partial(
                answer,
                repair=lambda tokens, usable, pad: torch.where(tokens < usable, tokens, pad),
                at_first=False,
                later=False,
            ),
            REPAIRED,
        ),
        Mistake(
            "chosen first, then cut",
            partial(
                answer,
                repair=lambda tokens, usable, pad: tokens.clamp(max=usable - 1),
                at_first=False,
                later=False,
            ),
            REPAIRED,
        ),
        Mistake("looks at every step", partial(answer, seen="again"), ONCE),
        Mistake(
            "looks twice before the first step",
            partial(answer, seen="twice"),
            "look is called twice before the first logits. It is expensive: call it once, and keep"
            " what it gives in a variable.",
        ),
        Mistake(
            "the picture not shown",
            partial(answer, seen="never"),
            "The model never sees the picture. Give read what look made of it, with the prompt:"
            " read(prompt, look(pixels)).",
        ),
        Mistake(
            "reads everything again",
            partial(answer, all_again=True),
            "Every step reads the prompt again. read remembers (its cache does): give it only the"
            " new tokens, tokens[:, None], one a row.",
        ),
        Mistake(
            "the prompt token by token",
            partial(answer, whole=False),
            "The prompt is read token by token. Its tokens must see each other, later ones too:"
            " read it whole, in one call.",
        ),
        Mistake(
            "the last of the prompt twice",
            partial(answer, once_more=lambda prompt: prompt[:, -1:]),
            READ_TWICE,
        ),
        Mistake(
            "the last of the prompt twice at once",
            partial(answer, begin=lambda prompt: torch.cat((prompt, prompt[:, -1:]), dim=1)),
            READ_TWICE,
        ),
        Mistake(
            "the prompt twice",
            partial(answer, once_more=lambda prompt: prompt),
            "The prompt is read twice. The prefill has read it: its logits are those for the first"
            " token of the answer.",
        ),
        Mistake(
            "the last of the prompt not read",
            partial(answer, begin=lambda prompt: prompt[:, :-1]),
            "The last token of the prompt is not read. The prefill reads the whole prompt; its"
            " logits are those for the first token of the answer.",
        ),
        Mistake(
            "only the last of the prompt read",
            partial(answer, begin=lambda prompt: prompt[:, -1:]),
            "Only the last token of the prompt is read. The prefill reads the whole prompt, because"
            " read remembers nothing from before.",
        ),
        Mistake(
            "argmax",
            partial(answer, pick=lambda choose, logits: logits.argmax(dim=-1)),
            "You take the largest logit yourself. How a token is chosen is for `choose` to say: it"
            " may draw. Hand choose on to continue_tokens.",
        ),
        Mistake(
            "eos and pad exchanged",
            partial(answer, signs=lambda eos, pad: (pad, eos)),
            "eos and pad are exchanged. The order is continue_tokens(logits, step, choose, eos,"
            " pad, max_new_tokens).",
        ),
        Mistake(
            "no end",
            partial(answer, signs=lambda eos, pad: (-1, pad)),
            "Nothing stops at eos: the rows talk on until max_new_tokens. Your continue_tokens does"
            " that: hand eos and pad on to it.",
        ),
        Mistake(
            "pad for eos",
            partial(answer, signs=lambda eos, pad: (pad, pad)),
            "Rows end at pad, and not at eos. The order is continue_tokens(logits, step, choose,"
            " eos, pad, max_new_tokens).",
        ),
        Mistake(
            "the small model's eos and pad",
            partial(answer, signs=lambda eos, pad: (1, 0)),
            "eos is 1 and pad is 0, whatever you are given. These are the small model's; hand on"
            " the arguments `eos` and `pad`.",
        ),
        *(
            Mistake(
                f"eos taken out, {name}",
                partial(answer, shown=shown),
                "eos is taken out of the answers. All that your loop gives out belongs to the"
                " result, eos and padding too.",
            )
            for name, shown in {
                "pad in its place": lambda told, eos, pad: told.masked_fill(told == eos, pad),
                "the last step, too": lambda told, eos, pad: told.masked_fill(told == eos, pad)[
                    :, : int((told != eos).any(dim=0).sum())
                ],
            }.items()
        ),
        Mistake(
            "the prompt in the answer",
            partial(answer, last=lambda prompt, told: torch.cat((prompt, told), dim=1)),
            "The prompt is part of the result. Return the answers alone, (b, t).",
        ),
        *(
            Mistake(
                f"padded to the most with {what}",
                lambda *given, filler=filler: F.pad(
                    told := answer(*given),
                    (0, given[-1] - told.shape[1]),
                    value=filler(*given[-3:]),
                ),
                "The answers go on with padding up to max_new_tokens. They are as long as what the"
                " loop gives out, and it ends as soon as every row has said eos: put its steps side"
                " by side.",
            )
            for what, filler in (
                ("pad", lambda eos, pad, most: pad),
                ("0", lambda eos, pad, most: 0),
                ("eos", lambda eos, pad, most: eos),
            )
        ),
        Mistake(
            "steps in front",
            partial(answer, last=lambda prompt, told: told.T),
            "The result is (t, b): the steps are in front. Put them side by side, one row for each"
            " row of the batch: torch.stack(steps, dim=1).",
        ),
        Mistake(
            "the first token left out",
            partial(answer, last=lambda prompt, told: told[:, 1:]),
            "The first token of the answer is missing. It comes from the logits of the prefill.",
        ),
        Mistake(
            "eos left out",
            partial(answer, last=lambda prompt, told: told[:, :-1]),
            "The last step is missing. All that your loop gives out belongs to the result, eos and"
            " padding too; and max_new_tokens is handed on as it is.",
        ),
    ),
    hints=(
        "First the prefill: read(prompt, look(pixels)). Its logits, masked, start your"
        " continue_tokens. Then write a small function step(tokens, running) inside.",
        "step reads tokens[:, None] with None as image, and masks what comes out. A helper for the"
        " mask: logits.masked_fill(torch.arange(v) >= usable, float('-inf')), with v ="
        " logits.shape[-1]. Cutting the columns off, logits[:, :usable], does it too.",
        "torch.stack(list(continue_tokens(logits, step, choose, eos, pad, max_new_tokens)), dim=1)"
        " puts the steps side by side.",
    ),
)


# --- the transfer piece: answers that are boxes ---------------------------------------------------


def allowed_next(
    told: list[int],
    is_place: Tensor,
    names: list[list[int]],
    between: list[int],
    eos: int,
    *,
    fours: int = 4,
    bound: Callable[[list[int], int], int | None] = (
        lambda told, run: told[-2] if run in (2, 3) else None
    ),
    fits: Callable[[Tensor, int], Tensor] = torch.ge,
    ways: Callable[[list[list[int]], list[int]], list[list[int]]] = (
        lambda names, between: [[*name, *between] for name in names]
    ),
    ends: Callable[[list[int], list[list[int]]], bool] = lambda tail, names: tail in names,
    ends_at_start: bool = True,
    always: Callable[[Tensor, int], Tensor] = lambda is_place, eos: torch.zeros_like(is_place),
    longest: str = "",
    whole_stops: bool = False,
    all_between: str = "",
    last: Callable[[Tensor], Tensor] = lambda allowed: allowed,
) -> Tensor:
    """bool (v,). The reference, or with one thing changed.

    bound: the token that the next place must reach, if any; ways: what may follow four places, up
    to the next place; ends: whether eos may follow these tokens after the last place; longest: what
    may not follow a name that begins a longer one, of "eos" and "between"; all_between: where all
    tokens of `between` are allowed, of "after a name" and "inside".
    """
    number = torch.arange(len(is_place))
    places = [place for place, token in enumerate(told) if is_place[token]]
    tail = told[places[-1] + 1 :] if places else list(told)  # what follows the last place
    run = 0  # of places in a row, before that
    while run < len(places) and is_place[told[len(told) - len(tail) - 1 - run]]:
        run += 1
    allowed = always(is_place, eos).clone()
    if not told:
        allowed |= is_place
        allowed[eos] |= ends_at_start
    elif not tail and run < fours:
        least = bound(told, run)
        allowed |= is_place & (True if least is None else fits(number, least))
    else:
        goes_on = False
        for way in ways(names, between):
            if tail == way:
                allowed |= is_place
            elif tail == way[: len(tail)]:
                allowed[way[len(tail)]] = True
                goes_on |= len(tail) + len(between) < len(way)
        if ends(tail, names) and not ("eos" in longest and goes_on):
            allowed[eos] = True
        if "between" in longest and goes_on and tail in names:
            allowed[between[0]] = False
        begun = [len(tail) - len(name) for name in names if tail[: len(name)] == name]
        if (0 in begun and "after" in all_between) or (
            any(0 < number < len(between) for number in begun) and "inside" in all_between
        ):
            allowed[between] = True
        if whole_stops and tail in names:
            allowed &= (number == between[0]) | (number == eos)
    return last(allowed)


def _allowed_cases() -> list[tuple]:
    def places(first: int, number: int, size: int) -> Tensor:
        at = torch.arange(size)
        return (at >= first) & (at < first + number)

    # Places 4 to 11. One name begins another, and two have the same token in the middle.
    first = places(4, 8, 20), [[12], [12, 13], [14, 2, 13], [16, 2, 17]], [3, 15], 1
    box = [6, 5, 9, 7]
    beginnings = [
        [], [6], [6, 5], [6, 5, 9], box, [11, 4], [5, 11, 5],
        # the longer name first: whoever forbids the end after it forbids it after any
        [*box, 12, 13], [*box, 12], [*box, 14], [*box, 14, 2], [*box, 14, 2, 13],
        [*box, 16, 2], [*box, 12, 3], [*box, 12, 3, 15], [*box, 12, 13, 3, 15, 10],
        [*box, 12, 3, 15, 10, 8],
        [*box, 12, 3, 15, 10, 8, 11], [*box, 12, 3, 15, 10, 8, 11, 8],
        [*box, 12, 3, 15, 10, 8, 11, 8, 14, 2, 13],
    ]  # fmt: skip
    # Other numbers, one token between two boxes, and a gap in the places.
    second = places(2, 6, 12) & (torch.arange(12) != 6), [[9]], [11], 8
    others = [[], [5, 4], [5, 4, 5], [5, 4, 5, 4], [5, 4, 5, 4, 9], [5, 4, 5, 4, 9, 11]]
    # A token twice, in a name and between two boxes.
    third = places(3, 4, 12), [[8], [8, 9, 8], [9, 10, 9, 8]], [7, 2, 7], 11
    box, name = [3, 4, 5, 6], [9, 10, 9]
    again = [[*box, 8, 9], [*box, *name], [*box, 8, 7], [*box, 8, 7, 2], [*box, 8, 7, 2, 7]]
    groups = (beginnings, first), (others, second), (again, third)
    return [(told, *given) for group, given in groups for told in group]


def _only(is_place: Tensor, token: int) -> Tensor:
    return torch.arange(len(is_place)) == token


def _shortest(names: list[list[int]]) -> list[list[int]]:
    """Those that begin with no other."""
    return [
        name
        for name in names
        if not any(other != name and name[: len(other)] == other for other in names)
    ]


def _counted_once(told, is_place, names, between, eos):
    four = len([token for token in told if is_place[token]]) > 4 and is_place[told[-1]]
    return allowed_next(told[:4] if four else told, is_place, names, between, eos)


def _later_boxes_bound(told, is_place, names, between, eos, back, runs):
    """The first places of a later box not before the place so many back; runs: which of them."""
    allowed = allowed_next(told, is_place, names, between, eos)
    places = [token for token in told if is_place[token]]
    if len(places) < 4 or len(places) % 4 not in runs:
        return allowed
    return allowed & ~(is_place & (torch.arange(len(is_place)) < places[-back]))


def _names_in_any_order(told, is_place, names, between, eos):
    allowed = allowed_next(told, is_place, names, between, eos)
    words = [token for name in names for token in name]
    if told and told[-1] in words:
        allowed[[*words, between[0], eos]] = True
    elif len(told) > 3 and all(is_place[token] for token in told[-4:]):
        allowed[words] = True
    return allowed


def _after_any_place(told, is_place, names, between, eos):
    if not told or not is_place[told[-1]]:
        return allowed_next(told, is_place, names, between, eos)
    allowed = is_place.clone()
    allowed[[name[0] for name in names]] = True
    return allowed


def _after_between(told, between, is_place):
    """Everywhere True right after what stands between two boxes."""
    return torch.full_like(is_place, told[-len(between) :] == between)


def _stuck_between(told, is_place, names, between, eos):
    """Nothing may follow a part of what stands between two boxes."""
    allowed = allowed_next(told, is_place, names, between, eos)
    part = any(told[-length:] == between[:length] for length in range(1, len(between)))
    return torch.zeros_like(allowed) if part else allowed


def _without_gaps(is_place: Tensor) -> Tensor:
    at = is_place.nonzero()[:, 0]
    number = torch.arange(len(is_place))
    return (number >= at[0]) & (number <= at[-1])


def _since_places(told: list[int], is_place: Tensor) -> list[int]:
    """What follows the last place."""
    return told[max([-1, *(i for i, token in enumerate(told) if is_place[token])]) + 1 :]


def _by_number(told, is_place, names, between, eos):
    """The name's next token told from how many there are."""
    allowed = allowed_next(told, is_place, names, between, eos)
    tail = _since_places(told, is_place)
    if tail and any(tail == name[: len(tail)] for name in names):
        allowed[[name[len(tail)] for name in names if len(tail) < len(name)]] = True
    return allowed


def _names_as_sets(told, is_place, names, between, eos, by_number=False):
    """As if a name had no order; by_number: the next one is told from how many there are."""
    allowed = allowed_next(told, is_place, names, between, eos)
    tail = _since_places(told, is_place)
    if not tail or between[0] in tail:
        return allowed
    allowed = torch.zeros_like(is_place)
    for name in names:
        left = name[len(tail) :] if by_number else [one for one in name if one not in tail]
        if not set(tail) <= set(name):
            continue
        if left:
            allowed[left[0]] = True
        elif tail == name or not by_number:
            allowed[[between[0], eos]] = True
    return allowed


def _between_by_last_token(told, is_place, names, between, eos, which=-1):
    """The next token between two boxes told from the last one alone; which: of equal ones."""
    places = [place for place, token in enumerate(between) if told[-1:] == [token]]
    if not places:
        return allowed_next(told, is_place, names, between, eos)
    following = between[places[which] + 1 :]
    return _only(is_place, following[0]) if following else is_place.clone()


def _by_fixed_length(told, is_place, names, between, eos, shortest=False):
    """As if each name had one token; shortest: and what stands between, too."""
    between = between[:1] if shortest else between
    at = len(told) % (5 + len(between))
    if at < 4:
        least = told[-2] if at > 1 else 0
        return is_place & (torch.arange(len(is_place)) >= least) | (
            _only(is_place, eos) & (not told)
        )
    if at == 4:
        return sum(_only(is_place, name[0]) for name in names) > 0
    return _only(is_place, between[at - 5]) | (_only(is_place, eos) & (at == 5))


def _by_last_token(told, is_place, names, between, eos):
    """The name's next token told from its last one alone."""
    allowed = allowed_next(told, is_place, names, between, eos)
    for name in names:
        for token, following in zip(name, name[1:], strict=False):
            if told and told[-1] == token:
                allowed[following] = True
    return allowed


END_AFTER_BETWEEN = (
    "The answer may end after what stands between two boxes. Once that is told, another box is due."
)
NAMELESS = (
    "A box may go without a name. After four places a name is due, and neither eos nor `between`."
)
EOS_TOO_EARLY = (
    "eos is allowed where a box is not finished. An answer may end before its first token, or after"
    " a whole name, and nowhere else."
)
BETWEEN_WHOLE = (
    "What stands between two boxes is not told whole. After a name come all tokens of `between`, in"
    " order, and only then the next box."
)
ORDER_OF_PLACES = (
    "A box is y0, x0, y1, x1. The third place is compared with the first and the fourth with the"
    " second: both times that is told[-2], and equal is allowed. The first two are free."
)

SHORTEST = (
    "A name that begins with another one cannot be told: after the shorter one its next token is"
    " allowed as well."
)

ALLOWED_NEXT = Exercise(
    name="allowed_next",
    transfer=True,
    reference=allowed_next,
    cases=_allowed_cases,
    axes="v",
    checked=(
        "which tokens may follow 31 beginnings of answers, with up to two boxes, names of one to"
        " four tokens of which one begins another, one to three tokens between boxes, a token that"
        " comes twice, and other numbers for places and eos; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "no end at the start",
            partial(allowed_next, ends_at_start=False),
            "An answer may also end at once: if the model sees nothing, it names no place. Allow"
            " eos when nothing has been told.",
        ),
        Mistake(
            "no end after a name",
            partial(allowed_next, ends=lambda tail, names: False),
            "eos is missing after a whole name. After each one the answer may end: allow eos, too.",
        ),
        Mistake(
            "no end after a name of several tokens",
            partial(allowed_next, ends=lambda tail, names: len(tail) == 1 and tail in names),
            "eos is missing after a name of several tokens. After each whole name the answer may"
            " end: ask whether all that was told since the four places is a name.",
        ),
        Mistake(
            "eos is 1",
            lambda told, is_place, names, between, eos: allowed_next(
                told, is_place, names, between, 1
            ),
            "Token 1 is taken for eos. That is the small model's; take the argument `eos`.",
        ),
        *(
            Mistake(
                f"places without gaps, {when}",
                lambda told, is_place, names, between, eos, first=first: allowed_next(
                    told,
                    _without_gaps(is_place) if told or first else is_place,
                    names,
                    between,
                    eos,
                ),
                "All tokens from the first place to the last are taken for places. There may be"
                " others between them: ask is_place about each.",
            )
            for when, first in (("always", True), ("but not at the start", False))
        ),
        Mistake(
            "end always",
            partial(allowed_next, always=lambda is_place, eos: _only(is_place, eos)),
            EOS_TOO_EARLY,
        ),
        Mistake(
            "end after four places",
            partial(allowed_next, ends=lambda tail, names: not tail or tail in names),
            NAMELESS,
        ),
        Mistake(
            "between after four places",
            partial(
                allowed_next,
                ways=lambda names, between: [[*name, *between] for name in [*names, []]],
            ),
            NAMELESS,
        ),
        Mistake(
            "after a place, places or names",
            _after_any_place,
            "After each place both places and names are allowed. Which of them depends on how many"
            " places stand at the end: fewer than four, and a place is due; four, and a name.",
        ),
        Mistake(
            "end inside a name",
            partial(
                allowed_next,
                ends=lambda tail, names: (
                    bool(tail) and any(tail == name[: len(tail)] for name in names)
                ),
            ),
            "The answer may end inside a name. eos is allowed when what was told after the four"
            " places *is* a name, and not only the beginning of one.",
        ),
        Mistake(
            "end after what stands between",
            partial(
                allowed_next,
                ends=lambda tail, names: any(tail[: len(name)] == name for name in names),
            ),
            END_AFTER_BETWEEN,
        ),
        Mistake(
            "end after all that stands between",
            lambda told, is_place, names, between, eos: (
                allowed_next(told, is_place, names, between, eos)
                | (_only(is_place, eos) & _after_between(told, between, is_place))
            ),
            END_AFTER_BETWEEN,
        ),
        Mistake(
            "places always",
            partial(allowed_next, always=lambda is_place, eos: is_place),
            "Places are allowed everywhere. They come in fours: after the fourth a name is due.",
        ),
        *(
            Mistake(
                f"{number} places",
                partial(allowed_next, fours=number),
                "A box has another number of places than four: y0, x0, y1, x1. Count the places"
                " that stand in a row at the end of what was told.",
            )
            for number in (2, 3, 5)
        ),
        Mistake(
            "all places counted",
            _counted_once,
            "The places are counted from the start of the answer, so there is no second box. Count"
            " those that stand in a row at the *end* of what was told.",
        ),
        Mistake(
            "any order of places",
            partial(allowed_next, bound=lambda told, run: None),
            "Boxes may be upside down: the third place (y1) must not be smaller than the first"
            " (y0), nor the fourth (x1) than the second (x0).",
        ),
        Mistake(
            "order of y alone",
            partial(allowed_next, bound=lambda told, run: told[-2] if run == 2 else None),
            "The fourth place is free, so boxes can end to the left of where they begin: x1 must"
            " not be smaller than x0, the second.",
        ),
        Mistake(
            "order of x alone",
            partial(allowed_next, bound=lambda told, run: told[-2] if run == 3 else None),
            "The third place is free, so boxes can end above where they begin: y1 must not be"
            " smaller than y0, the first.",
        ),
        Mistake("larger", partial(allowed_next, fits=torch.gt), ORDER_OF_PLACES),
        Mistake("smaller or equal", partial(allowed_next, fits=torch.le), ORDER_OF_PLACES),
        *(
            Mistake(
                f"compared with the places {y} and {x} back",
                partial(
                    allowed_next,
                    bound=lambda told, run, back=(y, x): (
                        told[-back[run - 2]] if run in (2, 3) else None
                    ),
                ),
                ORDER_OF_PLACES,
            )
            for y, x in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 3))
        ),
        Mistake(
            "each compared with the place before",
            partial(allowed_next, bound=lambda told, run: told[-1]),
            ORDER_OF_PLACES,
        ),
        Mistake(
            "pairs",
            partial(allowed_next, bound=lambda told, run: told[-1] if run in (1, 3) else None),
            ORDER_OF_PLACES,
        ),
        Mistake(
            "compared with the first box",
            partial(allowed_next, bound=lambda told, run: told[run - 2] if run in (2, 3) else None),
            "The places are compared with those of the first box. Each box has its own: count from"
            " the end of what was told, told[-2].",
        ),
        *(
            Mistake(
                f"later than the box before, {back} back, {runs}",
                lambda *given, back=back, runs=runs: _later_boxes_bound(*given, back, runs),
                "The first two places of a later box are compared with places of the box before."
                " They are free: boxes come in any order.",
            )
            for back, runs in ((2, (0, 1)), (2, (1,)), (4, (0, 1)), (4, (0,)))
        ),
        Mistake(
            "names by their first token",
            partial(
                allowed_next,
                ways=lambda names, between: [[name[0], *between] for name in names],
                ends=lambda tail, names: tail in [name[:1] for name in names],
            ),
            "A name is taken for its first token. Names may have several: all of them, in order.",
        ),
        Mistake(
            "name tokens in any order",
            _names_in_any_order,
            "A name is allowed in pieces. Its tokens come in order, each once: of all names that"
            " begin with what was told after the four places, the next token.",
        ),
        Mistake(
            "the first name alone",
            partial(
                allowed_next,
                ways=lambda names, between: [[*names[0], *between]],
                ends=lambda tail, names: tail == names[0],
            ),
            "Only the first of the names can be told. Go through all of them.",
        ),
        Mistake(
            "a name that begins another is not told",
            partial(allowed_next, longest="eos between"),
            "A name that is the beginning of a longer one cannot be told alone. After it three"
            " things are allowed: the longer name's next token, `between`, and eos.",
        ),
        Mistake(
            "no end after a name that begins another",
            partial(allowed_next, longest="eos"),
            "After a name that is the beginning of a longer one the answer cannot end. Three things"
            " are allowed there: the longer name's next token, `between`, and eos.",
        ),
        Mistake(
            "no box after a name that begins another",
            partial(allowed_next, longest="between"),
            "After a name that is the beginning of a longer one no other box can follow. Three"
            " things are allowed there: the longer name's next token, `between`, and eos.",
        ),
        Mistake(
            "by the last token alone",
            _by_last_token,
            "A name's next token is told from its last one alone. Two names may have a token in"
            " common and go on in different ways: compare all that was told since the four places.",
        ),
        Mistake(
            "by the number of tokens alone",
            _by_number,
            "A name's next token is told from the number of those before it alone. It must go on"
            " with what was told: compare all that was told since the four places.",
        ),
        *(
            Mistake(
                f"names as sets, {name}",
                lambda *given, by_number=by_number: _names_as_sets(*given, by_number=by_number),
                "The tokens of a name are compared as a set. A token may come twice in a name, and"
                " their order counts: the list of all that was told since the four places must be"
                " the beginning of the name.",
            )
            for name, by_number in (("the first one left", False), ("by the number", True))
        ),
        *(
            Mistake(
                f"all tokens between, {where}",
                partial(allowed_next, all_between=where),
                "All tokens of `between` are allowed at once. They come in order: after a name the"
                " first, and then each after the one before it.",
            )
            for where in ("after a name", "inside", "after a name and inside")
        ),
        *(
            Mistake(
                f"between by its last token, {which}",
                lambda *given, which=which: _between_by_last_token(*given, which=which),
                "What comes next between two boxes is told from the last token alone. A token may"
                " come twice in `between`: compare all that was told since the name.",
            )
            for which in (0, -1)
        ),
        *(
            Mistake(
                f"a fixed length, {kind}",
                lambda *given, shortest=shortest: _by_fixed_length(*given, shortest=shortest),
                "The place in a box is told from the length of the answer, as if each name had one"
                " token. Names have one or more: count from the last place on.",
            )
            for kind, shortest in (("between whole", False), ("between one token", True))
        ),
        Mistake(
            "a finished name does not go on",
            partial(allowed_next, whole_stops=True),
            SHORTEST,
        ),
        Mistake(
            "a name that begins another ends it",
            partial(
                allowed_next,
                ways=lambda names, between: [[*name, *between] for name in _shortest(names)],
                ends=lambda tail, names: tail in _shortest(names),
            ),
            SHORTEST,
        ),
        Mistake(
            "only the first token between",
            partial(
                allowed_next,
                ways=lambda names, between: [[*name, *between[:1]] for name in names],
            ),
            BETWEEN_WHOLE,
        ),
        Mistake("stuck between", _stuck_between, BETWEEN_WHOLE),
        Mistake(
            "no box after what stands between",
            lambda told, is_place, names, between, eos: (
                allowed_next(told, is_place, names, [*between, between[0]], eos)
                & ~_after_between(told, between, is_place)
            ),
            "After all tokens of `between` nothing is allowed. Another box begins there: allow the"
            " places.",
        ),
        Mistake(
            "only the last token between",
            partial(
                allowed_next,
                ways=lambda names, between: [[*name, *between[-1:]] for name in names],
            ),
            BETWEEN_WHOLE,
        ),
        Mistake(
            "nothing between",
            partial(allowed_next, ways=lambda names, between: names),
            "The next box follows a name directly. `between` comes first, all its tokens in order.",
        ),
        Mistake(
            "one box",
            lambda told, is_place, names, between, eos: allowed_next(
                told, is_place, names, [eos], eos
            ),
            "Only one box can be told. After a whole name `between` is allowed, too, and then"
            " another box.",
        ),
        Mistake(
            "tokens instead of True and False",
            partial(allowed_next, last=lambda allowed: allowed.nonzero()[:, 0]),
            "These are the tokens that are allowed. Return one True or False for each of the v"
            " tokens.",
        ),
        Mistake(
            "numbers to add",
            partial(
                allowed_next,
                last=lambda allowed: torch.zeros(len(allowed)).masked_fill(~allowed, -torch.inf),
            ),
            "These are numbers to be added to the logits. Return bool (v,): True for each token"
            " that may come next.",
        ),
        Mistake(
            "upside down",
            partial(allowed_next, last=torch.logical_not),
            "The result is upside down: True must mean that the token may come next.",
        ),
        Mistake(
            "everything",
            partial(allowed_next, always=lambda is_place, eos: torch.ones_like(is_place)),
            "Every token is allowed. Only those are that can go on with what was told.",
        ),
    ),
    hints=(
        "Ask first where the answer stands. Three situations: nothing told yet; one to three places"
        " at the end; four places, and then none to some tokens that are no places.",
        "Count the places in a row at the end of told: is_place[told[-1]], is_place[told[-2]], ..."
        " With 2 or 3 of them the next must be at least told[-2]: is_place & (torch.arange(v) >="
        " told[-2]).",
        "After four places: tail = the tokens after the last place. For each name take way = name +"
        " between. If tail == way, places are allowed; if tail is the beginning of way,"
        " way[len(tail)] is; and if tail == name, eos is as well.",
    ),
)

EXERCISES = (DISTRIBUTION, CONTINUE_TOKENS, ANSWER, ALLOWED_NEXT)
