"""Lesson 13: the labels of a row, the loss on its suffix, and a training loop."""

import operator
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.checks.engine import Exercise, Mistake
from minipali.checks.trainable import (
    SGD,
    Batch,
    Batches,
    Head,
    Parts,
    Small,
    as_numbers,
    gradients_of,
)
from minipali.training import row_labels, suffix_loss

# --- row_labels -----------------------------------------------------------------------------------


def _rows() -> list[tuple]:
    # Tokens of the suffix, and eos, also stand in the prefix: only the place decides. In the third
    # case the answer is empty, as for `detect NAME` where there is none. In the last one the token
    # that ends the prefix stands before and after that, too, and a token of the answer is 0.
    return [
        ([900, 900, 2, 31, 32, 10], [41, 31], 1, -100),
        ([7, 4, 55], [55, 56, 7, 57], 4, -1),
        ([800, 6, 21, 10], [], 5, -100),
        ([800, 10, 6, 10], [9, 10, 0, 9, 3], 5, -7),
    ]


def _row(
    prefix: list[int],
    suffix: list[int],
    eos: int,
    ignore: int,
    *,
    ids: Callable = lambda p, s, e: p + s + e,
    labels: Callable = lambda p, s, e, no: no(len(p)) + s + e,
    mark: Callable[[int], int] = lambda ignore: ignore,
    give: Callable[[list, list], tuple] = lambda ids, labels: (ids, labels),
) -> tuple[list[int], list[int]]:
    """row_labels with one thing changed. labels: no(n) is the mark n times."""
    p, s, e = list(prefix), list(suffix), [eos]
    return give(ids(p, s, e), labels(p, s, e, lambda n: [mark(ignore)] * n))


def _last(tokens: list[int], token: int) -> int:
    """The place after the last one that is this token, or 0."""
    return max((i + 1 for i, one in enumerate(tokens) if one == token), default=0)


def _from(ids: list[int], no: Callable, token: int, back: bool = False) -> list[int]:
    """Labels from the first place where this token stands; ids: reversed if `back`."""
    place = len(ids) - 1 - ids.index(token) if back else ids.index(token)
    return no(place) + (ids[::-1] if back else ids)[place:]


_SAME_LENGTH = (
    "The labels are those of the answer alone, so they are shorter than the ids. The two lists have"
    " equal length: put the mark `ignore` at each place of the prefix."
)

ROW_LABELS = Exercise(
    name="row_labels",
    reference=row_labels,
    cases=_rows,
    axes="t; t",
    parts=("ids", "labels"),
    checked=(
        "ids and labels of 4 rows with different eos and ignore; some tokens stand in the prefix"
        " and in the suffix, the prefix's last one, too, one is 0, and one suffix is empty"
    ),
    mistakes=(
        Mistake(
            "prefix in the loss",
            partial(_row, labels=lambda p, s, e, no: p + s + e),
            "The prefix has labels too. Nobody wants the model to say the question, and its picture"
            " is no text: put ignore at every place of the prefix.",
        ),
        *(
            Mistake(
                f"eos missing{name}",
                partial(_row, ids=ids, labels=labels),
                "eos is missing. It is the last token of every answer, also of an empty one: a"
                " model that never learned to say it does not stop.",
            )
            for name, ids, labels in (
                ("", lambda p, s, e: p + s, lambda p, s, e, no: no(len(p)) + s),
                (
                    " after an empty answer",
                    lambda p, s, e: p + s + e * bool(s),
                    lambda p, s, e, no: no(len(p)) + s + e * bool(s),
                ),
            )
        ),
        Mistake(
            "eos in the labels alone",
            partial(_row, ids=lambda p, s, e: p + s),
            "eos has a label, but it is missing in the ids, which are one shorter. The row's ids"
            " are prefix, suffix and eos.",
        ),
        *(
            Mistake(
                f"the beginning of the answer looked for, {name}",
                partial(_row, labels=labels),
                "Where the answer begins is found by looking for a token. The same token may stand"
                " in other places, too. Only the length says it: the answer begins at len(prefix).",
            )
            for name, labels in (
                (
                    "the first newline",
                    lambda p, s, e, no: (
                        no((p + s + e).index(p[-1]) + 1) + (p + s + e)[p.index(p[-1]) + 1 :]
                    ),
                ),
                (
                    "the last newline",
                    lambda p, s, e, no: no(len(p) + _last(s, p[-1])) + (s + e)[_last(s, p[-1]) :],
                ),
                ("its first token", lambda p, s, e, no: _from(p + s + e, no, (s + e)[0])),
                (
                    "its first token, from the back",
                    lambda p, s, e, no: _from((p + s + e)[::-1], no, (s + e)[0], back=True),
                ),
            )
        ),
        Mistake(
            "prefix in the loss after an empty answer",
            partial(_row, labels=lambda p, s, e, no: (no(len(p)) + s if s else p) + e),
            "Where the answer is empty, the prefix has labels. A slice like [-len(suffix):] takes"
            " everything if the length is 0: count from the front, [len(prefix):].",
        ),
        Mistake(
            "eos without a label",
            partial(_row, labels=lambda p, s, e, no: no(len(p)) + s + no(1)),
            "eos is in the ids, but its label is ignore. To stop is a part of the answer, and must"
            " be learned: its label is eos.",
        ),
        Mistake(
            "eos without a label after an empty answer",
            partial(_row, labels=lambda p, s, e, no: no(len(p)) + (s + e if s else no(1))),
            "Where the answer is empty, eos has no label. Then eos is the whole answer, and the"
            " model must learn to say it. (A slice like [-len(suffix):] takes everything if the"
            " length is 0.)",
        ),
        Mistake(
            "labels shifted here",
            partial(_row, labels=lambda p, s, e, no: no(len(p) - 1) + s + e + no(1)),
            "The labels are shifted by one already. Here the label of a place is its own token; the"
            " shift comes in the loss. Shifted in both, each place predicts the token after the"
            " next.",
        ),
        Mistake(
            "labels shifted the other way",
            partial(_row, labels=lambda p, s, e, no: no(len(p) + 1) + s),
            "The labels are one place too late. The label of a place is its own token: the first"
            " token of the answer has itself as its label.",
        ),
        Mistake(
            "one place of the prefix too many",
            partial(_row, labels=lambda p, s, e, no: no(len(p) - 1) + p[-1:] + s + e),
            "The last token of the prefix has a label. It belongs to the question: ignore for all"
            " of the prefix.",
        ),
        *(
            Mistake(
                f"suffix ignored{', eos not' if kept else ''}",
                partial(
                    _row,
                    labels=lambda p, s, e, no, kept=kept: p + no(len(s)) + (e if kept else no(1)),
                ),
                "It is the wrong way round: the prefix has labels and the answer is ignored.",
            )
            for kept in (False, True)
        ),
        Mistake(
            "first token of the suffix ignored",
            partial(_row, labels=lambda p, s, e, no: no(len(p) + 1) + (s + e)[1:]),
            "The first token of the answer has no label. The place before it, the end of the"
            " question, must learn to say it. So it needs one.",
        ),
        Mistake(
            "eos before the suffix",
            partial(
                _row,
                ids=lambda p, s, e: p + e + s,
                labels=lambda p, s, e, no: no(len(p)) + e + s,
            ),
            "eos stands between prefix and suffix. It ends the answer: put it last.",
        ),
        *(
            Mistake(
                f"eos twice, {name}",
                partial(_row, ids=lambda p, s, e: p + e + s + e, labels=labels),
                "eos stands between prefix and suffix as well. The prefix ends with its newline"
                " already; eos comes once, at the end of the answer.",
            )
            for name, labels in (
                ("the first ignored", lambda p, s, e, no: no(len(p) + 1) + s + e),
                ("both with labels", lambda p, s, e, no: no(len(p)) + e + s + e),
            )
        ),
        Mistake(
            "by the token",
            partial(
                _row,
                labels=lambda p, s, e, no: [
                    no(1)[0] if i < len(p) or one in p else one for i, one in enumerate(p + s + e)
                ],
            ),
            "Tokens of the answer that also stand in the prefix have no label. Not the token"
            " decides, but its place: ignore for the first len(prefix) places.",
        ),
        Mistake(
            "eos of the prefix",
            partial(
                _row, labels=lambda p, s, e, no: [x if [x] == e else no(1)[0] for x in p] + s + e
            ),
            "Where eos stands in the prefix, it has a label. Only the place decides: the label is"
            " ignore at all places of the prefix, whatever stands there.",
        ),
        Mistake(
            "0 without a label",
            partial(_row, labels=lambda p, s, e, no: no(len(p)) + [x or no(1)[0] for x in s] + e),
            "A 0 in the answer has no label. 0 is a token like others (and `token or ignore` takes"
            " it for False): all places behind the prefix have labels.",
        ),
        Mistake(
            "ids and labels shifted",
            partial(
                _row,
                ids=lambda p, s, e: p + s,
                labels=lambda p, s, e, no: no(len(p) - 1) + s + e,
            ),
            "The shift is done already: the ids lack their last token, and the labels begin one"
            " place too early. Here the label of a place is its own token, and the ids end with"
            " eos; the shift comes in the loss.",
        ),
        Mistake(
            "-100 always",
            partial(_row, mark=lambda ignore: -100),
            "The mark is always -100. It is the argument `ignore`.",
        ),
        Mistake(
            "0 as the mark",
            partial(_row, mark=lambda ignore: 0),
            "The mark is 0, which is a token. It is the argument `ignore`.",
        ),
        Mistake(
            "eos as the mark",
            lambda prefix, suffix, eos, ignore: _row(prefix, suffix, eos, eos),
            "eos stands where the mark is due. The mark is the argument `ignore`.",
        ),
        Mistake("short labels", partial(_row, labels=lambda p, s, e, no: s + e), _SAME_LENGTH),
        Mistake(
            "short labels without eos", partial(_row, labels=lambda p, s, e, no: s), _SAME_LENGTH
        ),
        Mistake(
            "the answer alone in the ids",
            partial(_row, ids=lambda p, s, e: s + e),
            "The prefix is missing in the ids. The model reads the question too: prefix, suffix and"
            " eos.",
        ),
        Mistake(
            "ones and zeros",
            partial(_row, labels=lambda p, s, e, no: [0] * len(p) + [1] * len(s + e)),
            "The labels are ones and zeros, a mask. A label is the token itself, or the mark"
            " `ignore`.",
        ),
        Mistake(
            "ids marked, too",
            partial(_row, give=lambda ids, labels: (labels, labels)),
            "The ids hold the mark, too. After `labels = ids` there is one list with two names, and"
            " what is written into one is in the other: begin with a copy, labels = list(ids).",
        ),
        Mistake(
            "exchanged",
            partial(_row, give=lambda ids, labels: (labels, ids)),
            "The two lists are exchanged: return the ids first, then the labels.",
        ),
    ),
    hints=(
        "Two lists of equal length. The ids: prefix, suffix, eos, joined with +. A single id needs"
        " brackets: [eos].",
        "The labels are the ids again, but with the mark `ignore` at each place of the prefix:"
        " [ignore] * len(prefix).",
        "return prefix + suffix + [eos], [ignore] * len(prefix) + suffix + [eos]",
    ),
)

# --- suffix_loss ----------------------------------------------------------------------------------


def _losses() -> list[tuple]:
    random = torch.Generator().manual_seed(13)

    def given(rows: list[list[int]], vocabulary: int, ignore: int) -> tuple:
        logits = 2 * torch.randn(len(rows), len(rows[0]), vocabulary, generator=random)
        return logits, torch.tensor(rows), ignore

    # Suffixes of different lengths, with and without padding. In the third case the mark is 0, so
    # that a loss with -100 built in goes wrong and does not crash; there place 0 has a label, which
    # nobody predicts. The last case has large logits, as untrained or sure models give them.
    no = -100
    large, labels, ignore = given([[no, 3, 2, 1, no], [no, no, no, no, no]], 6, no)
    return [
        given([[no, no, 3, 8, 5, 1], [no, no, no, 4, 1, no], [no, 7, 1, no, no, no]], 11, no),
        given([[no, no, no, no, 6, 2], [no, no, 5, 4, 3, 2]], 9, no),
        given([[3, 0, 4, 6, 3, 1, 0], [2, 0, 0, 5, 1, 0, 0], [5, 2, 0, 0, 0, 0, 0]], 7, 0),
        given([[4, 2, 0, 3, 1], [1, no, no, 0, 1], [0, 0, 2, 1, no]], 5, no),
        (100 * large, labels, ignore),
    ]


def _suffix_loss(
    logits: Tensor,
    labels: Tensor,
    ignore: int,
    *,
    shift: int = 1,
    mean: str = "tokens",
    count: Callable[[Tensor, int], Tensor] = lambda wanted, ignore: wanted != ignore,
    log: Callable[[Tensor], Tensor] = lambda logits: logits.log_softmax(dim=-1),
    rows: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda logits, labels: (
        logits,
        labels,
    ),
    counted_of: Callable[[Tensor], Tensor] = lambda labels: labels[:, 1:],
    divided_by: Callable[[Tensor], Tensor] | None = None,
    graph: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Tensor:
    """suffix_loss with one thing changed.

    mean: over "tokens", "places" or "rows", or the "sum"; rows: of logits and labels, before all
    else; counted_of: labels (without the shift) whose mark decides; divided_by: labels that are
    counted for the mean, of all.
    """
    logits, labels = rows(logits, labels)
    t, unshifted = labels.shape[1], labels
    logits = logits[:, max(0, -shift) : t - max(0, shift)]
    wanted = labels[:, max(0, shift) : t - max(0, -shift)]
    decides = counted_of(labels) if shift == 1 else wanted
    counted = count(decides, ignore)
    filled = wanted.masked_fill((wanted == ignore) & (wanted < 0), 0)
    each = -log(logits).gather(-1, filled[..., None])[..., 0].masked_fill(~counted, 0.0)
    number = counted.sum() if divided_by is None else count(divided_by(unshifted), ignore).sum()
    if mean == "rows":
        own = counted.sum(dim=1)
        return graph((each.sum(dim=1) / own.clamp(min=1))[own > 0].mean())
    if mean == "rows, nan":
        return graph((each.sum(dim=1) / counted.sum(dim=1)).mean())
    if mean == "rows, all":
        return graph((each.sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean())
    divisors = {
        "tokens": number, "places": counted.numel(), "sum": 1, "row number": len(labels),
        "all places": unshifted.numel(),
    }  # fmt: skip
    return graph(each.sum() / divisors[mean])


_ROW_MEANS = (
    "This is the mean of each row first, and then of the rows, so that a token of a short answer"
    " counts more. (big_vision does it that way.) Here every token counts the same: one mean over"
    " all places that count."
)
_ALL_PLACES = (
    "The sum is right, but it is divided by the number of all places. Divide by the number of"
    " places that count; else the loss shrinks with every bit of padding."
)
_INFINITE = (
    "Large logits make the loss infinite or nan: exp of a large number is infinite, a softmax can"
    " be 0, and its logarithm is infinite, too. Use log_softmax, logsumexp or cross_entropy, which"
    " subtract the largest logit first."
)
_ADDED = (
    "Something small is added before the logarithm. It hides log(0), and where the model is sure"
    " and wrong, the loss is cut off and teaches nothing. log_softmax needs no such help."
)

SUFFIX_LOSS = Exercise(
    name="suffix_loss",
    reference=suffix_loss,
    cases=_losses,
    axes="",
    gradients=("logits",),
    checked=(
        "the loss of 5 batches and its gradient: suffixes of different lengths, padding, a row"
        " without an answer, labels at place 0, two different marks, large logits; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "not shifted",
            partial(_suffix_loss, shift=0),
            "Logits and labels are not shifted against each other. The logits at a place are for"
            " the *next* token: compare logits[:, :-1] with labels[:, 1:]. Unshifted, the model"
            " learns to repeat the token that it has just read.",
        ),
        Mistake(
            "shifted the wrong way",
            partial(_suffix_loss, shift=-1),
            "The shift goes the wrong way: each place is asked for the token *before* it. Drop the"
            " last place of the logits and the first of the labels.",
        ),
        Mistake(
            "padding in the loss",
            partial(
                _suffix_loss, count=lambda wanted, ignore: torch.ones_like(wanted, dtype=torch.bool)
            ),
            "Places whose label is ignore, padding and prefix, are counted as if they should say"
            " token 0. Leave them out: neither in the sum nor in the number that it is divided by.",
        ),
        Mistake("divided by all places", partial(_suffix_loss, mean="places"), _ALL_PLACES),
        Mistake(
            "divided by all places, the first too",
            partial(_suffix_loss, mean="all places"),
            _ALL_PLACES,
        ),
        Mistake(
            "divided by the rows",
            partial(_suffix_loss, mean="row number"),
            "The sum is divided by the number of rows. Divide by the number of tokens that count: a"
            " long answer has more of them.",
        ),
        Mistake("mean of the rows' means", partial(_suffix_loss, mean="rows"), _ROW_MEANS),
        Mistake(
            "mean of the rows' means, nan where there is none",
            partial(_suffix_loss, mean="rows, nan"),
            _ROW_MEANS,
        ),
        Mistake("mean of all rows' means", partial(_suffix_loss, mean="rows, all"), _ROW_MEANS),
        Mistake(
            "over the ends of rows",
            partial(
                _suffix_loss,
                rows=lambda logits, labels: (
                    logits.reshape(1, -1, logits.shape[-1]),
                    labels.reshape(1, -1),
                ),
            ),
            "The rows are laid end to end before the shift, so the last place of a row is asked for"
            " the first token of the next row. Shift first, within each row; flatten afterwards.",
        ),
        Mistake(
            "the first label at the end",
            partial(
                _suffix_loss,
                rows=lambda logits, labels: (
                    torch.cat([logits, logits[:, :1]], dim=1),
                    torch.cat([labels, labels[:, :1]], dim=1),
                ),
            ),
            "The label at place 0 is asked of the last place: roll moves it there. It is predicted"
            " by nobody, and the last place predicts nothing that you know. Cut both off:"
            " logits[:, :-1] and labels[:, 1:].",
        ),
        Mistake(
            "marks of the unshifted labels",
            partial(_suffix_loss, counted_of=lambda labels: labels[:, :-1]),
            "Which places count is taken from the labels before the shift, and does not fit the"
            " shifted ones. Shift the labels first, then look for the mark.",
        ),
        Mistake(
            "the first token of the answer left out",
            partial(
                _suffix_loss,
                counted_of=lambda labels: torch.stack([labels[:, 1:], labels[:, :-1]]),
                count=lambda both, ignore: (both != ignore).all(dim=0),
            ),
            "The first token of each answer is left out: you look for the mark at the place that"
            " predicts, too. Only the label of what is predicted decides.",
        ),
        Mistake(
            "counted before the shift",
            partial(_suffix_loss, divided_by=lambda labels: labels),
            "The sum is right, but the places are counted before the shift. A label at place 0 is"
            " predicted by nobody and must not count: count in labels[:, 1:].",
        ),
        Mistake(
            "b, t and v mixed",
            partial(
                _suffix_loss,
                rows=lambda logits, labels: (
                    torch.cat(
                        [
                            logits[:, :-1].reshape(len(logits), logits.shape[-1], -1).mT,
                            logits[:, -1:],
                        ],
                        dim=1,
                    ),
                    labels,
                ),
            ),
            "The axes t and v are exchanged by a reshape, which moves no number: what comes out"
            " mixes places. cross_entropy wants (places, v), flatten(0, 1), or (b, v, t), which is"
            " .mT.",
        ),
        Mistake(
            "softmax over the places",
            partial(_suffix_loss, log=lambda logits: logits.log_softmax(dim=1)),
            "The softmax runs over the places of a row. It must run over the vocabulary, the last"
            " axis: dim=-1.",
        ),
        Mistake(
            "divided by the vocabulary",
            partial(_suffix_loss, log=lambda x: x.log_softmax(dim=-1) / x.shape[-1]),
            "The sum is divided by the size of the vocabulary as well. Take the mean over the"
            " places alone: each has one label.",
        ),
        Mistake(
            "0 left out, too",
            partial(_suffix_loss, count=lambda wanted, ignore: (wanted != ignore) & (wanted > 0)),
            "Labels of 0 are left out as well. 0 is a token like others; only `ignore` is the"
            " mark.",
        ),
        Mistake(
            "softmax by hand",
            partial(
                _suffix_loss,
                log=lambda logits: (logits.exp() / logits.exp().sum(dim=-1, keepdim=True)).log(),
            ),
            _INFINITE,
        ),
        Mistake(
            "large logits, exp summed",
            partial(
                _suffix_loss,
                log=lambda logits: logits - logits.exp().sum(dim=-1, keepdim=True).log(),
            ),
            _INFINITE,
        ),
        *(
            Mistake(
                f"{eps} added",
                partial(_suffix_loss, log=lambda x, eps=eps: (x.softmax(dim=-1) + eps).log()),
                _ADDED,
            )
            for eps in (1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12)
        ),
        Mistake(
            "no gradient",
            partial(_suffix_loss, graph=Tensor.detach),
            "The value is right, but it is a bare number: no gradient flows from it, and nothing"
            " can learn. Return the tensor itself, not .item(), float() or .detach() of it.",
        ),
        Mistake(
            "not divided",
            partial(_suffix_loss, mean="sum"),
            "The sum is not divided. Take the mean over the places that count.",
        ),
        Mistake(
            "ignore is always -100",
            partial(_suffix_loss, count=lambda wanted, ignore: (wanted != ignore) | (wanted >= 0)),
            "The mark is taken to be -100, or every label below 0. It is the argument `ignore`;"
            " cross_entropy has a parameter ignore_index for it.",
        ),
        Mistake(
            "softmax twice",
            partial(_suffix_loss, log=lambda logits: logits.softmax(dim=-1).log_softmax(dim=-1)),
            "There are two softmaxes. cross_entropy and log_softmax take the logits as they are.",
        ),
    ),
    hints=(
        "Three steps: shift, leave out, mean. The last place predicts nothing that you know, and"
        " the first token is predicted by nobody.",
        "logits[:, :-1] and labels[:, 1:] belong together, place by place. cross_entropy wants"
        " (places, v) and (places,): flatten(0, 1) and flatten().",
        "F.cross_entropy(predicted, wanted, ignore_index=ignore) leaves out and takes the mean of"
        " the rest.",
    ),
)

# --- train ----------------------------------------------------------------------------------------


def _small_module(seed: int, lr: float, mode: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module that is another in train mode than in eval mode, and its optimizer.

    It has batch statistics and no dropout, so that nothing in it is left to chance. One bias is
    frozen, as the vision tower of lesson 17 is.
    """
    torch.manual_seed(seed)
    module = Small(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    module[0].bias.requires_grad_(False)
    module.train(mode)
    return module, SGD(module.parameters(), lr=lr)


def _runs() -> list[tuple]:
    random = torch.Generator().manual_seed(130)

    def batch(rows: int) -> Batch:
        x = torch.randn(rows, 3, generator=random)
        return Batch((x, torch.stack([x[:, 0] * x[:, 1], 2 + x.sum(dim=1)], dim=1)))

    return [
        (
            *_small_module(seed, lr, mode), Batches(batch(rows) for rows in sizes), batch(7),
            F.mse_loss, epochs, max_norm,
        )
        for seed, lr, sizes, epochs, max_norm, mode in (
            (1, 0.1, (5, 4, 6), 3, 0.7, True), (2, 0.2, (3, 5), 2, 1.3, False),
            (3, 0.02, (4, 6), 2, 100.0, True),
        )
    ]  # fmt: skip


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list,
    held_out: tuple,
    loss: Callable,
    epochs: int,
    max_norm: float,
    *,
    zero: str = "before",
    clip: Callable[[list, float], object] | None = nn.utils.clip_grad_norm_,
    measure_mode: bool = False,
    no_grad: bool = True,
    training: str = "each epoch",
    measure_at: str = "after",
    note: str = "before the step",
    order: Callable[[list], list] = lambda batches: batches,
    one_step: bool = False,
    graph: bool = False,
    measured_on: Callable[[list, tuple], tuple] = lambda batches, held_out: held_out,
    given: Callable[[Tensor], Tensor] = lambda losses: losses.flatten(),
    by_hand: bool = False,
    modes: bool = True,
    frozen_too: bool = False,
) -> tuple[Tensor, Tensor]:
    """-> losses (steps,), measured (epochs,). The reference, or with one thing changed.

    training: when train mode is switched on; measure_at: of an epoch, "before", "after" or "each
    step"; note: when the loss is noted; one_step: one step an epoch; given: of the losses, (epochs,
    steps of each), what is returned; by_hand: the modes are written into the outermost module;
    modes: whether they are set at all; frozen_too: frozen parameters are clipped with the others.
    """
    losses, measured = [], []
    parameters = [p for p in module.parameters() if p.requires_grad or frozen_too]

    def to(mode: bool) -> None:
        if not modes:
            return
        if by_hand:
            module.training = mode
        else:
            module.train(mode)

    def measure() -> None:
        to(measure_mode)
        with torch.set_grad_enabled(not no_grad):
            x, y = measured_on(batches, held_out)
            measured.append(loss(module(x), y).detach())
        to({"start": measure_mode, "never": measure_mode}.get(training, True))

    if training == "start":
        to(True)
    for _ in range(epochs):
        if training == "each epoch":
            to(True)
        if measure_at == "before":
            measure()
        if zero == "epoch":
            optimizer.zero_grad()
        for place, (x, y) in enumerate(order(batches), start=1):
            value = loss(module(x), y)
            if zero == "before" and not (one_step and place > 1):
                optimizer.zero_grad()
            value.backward()
            if zero == "after":
                optimizer.zero_grad()
            last = not one_step or place == len(batches)
            if clip is not None and last:
                clip(parameters, max_norm)
            if last:
                optimizer.step()
            if note == "before the step":
                losses.append(value if graph else value.detach())
            else:
                module.train(note == "after the step")
                with torch.no_grad():
                    losses.append(loss(module(x), y))
                module.train()
            if measure_at == "each step":
                measure()
        if measure_at == "after":
            measure()
    return given(torch.stack(losses).reshape(epochs, -1)), torch.stack(measured)


def _always(parameters: list, max_norm: float) -> None:
    length = torch.stack([p.grad.norm() for p in parameters]).norm()
    for p in parameters:
        p.grad.mul_(max_norm / length)


def _alone(parameters: list, max_norm: float) -> None:
    for p in parameters:
        nn.utils.clip_grad_norm_([p], max_norm)


def _met(what: Callable[[Tensor], object]) -> Callable[[list, float], None]:
    """A clipping that begins with this of every gradient."""

    def clip(parameters: list, max_norm: float) -> None:
        for p in parameters:
            what(p.grad)

    return clip


def _by_length(length: Callable[[list], Tensor]) -> Callable[[list, float], None]:
    """A clipping that takes the length of the parameters' gradients so."""

    def clip(parameters: list, max_norm: float) -> None:
        scale = min(1.0, max_norm / length([p.grad for p in parameters]).item())
        for p in parameters:
            p.grad.mul_(scale)

    return clip


_MODES = (
    "After the first measurement the module stays in eval mode, or it came in eval mode and is"
    " trained in it. Call module.train() at the start of every epoch."
)
_AFTER = (
    "Each loss is noted after its step: it belongs to weights that have just learned this batch."
    " Note the loss that you called backward() on."
)
_CLIP = " Clip all together: clip_grad_norm_(module.parameters(), max_norm)."

TRAIN = Exercise(
    name="train",
    reference=train,
    cases=_runs,
    axes="step; epoch",
    parts=("losses", "measured"),
    asked=as_numbers,
    checked=(
        "the loss of every step and the measurement after every epoch, for three small modules with"
        " batch statistics, one of which comes in eval mode; gradients are longer than max_norm in"
        " some steps, shorter in others; no graph hangs on the losses"
    ),
    mistakes=(
        Mistake(
            "modes never set",
            partial(train, modes=False),
            "You never change the mode, so the module stays in the one in which it came:"
            " module.train() before the steps of an epoch, module.eval() before it is measured.",
        ),
        Mistake(
            "gradients not zeroed",
            partial(train, zero="never"),
            "The gradients are never zeroed. backward *adds* to what is there, so each step also"
            " takes all earlier steps' gradients: optimizer.zero_grad() before backward().",
        ),
        Mistake(
            "gradients zeroed once an epoch",
            partial(train, zero="epoch"),
            "The gradients are zeroed once an epoch. backward *adds* to what is there:"
            " optimizer.zero_grad() before every backward().",
        ),
        Mistake(
            "zeroed before the step",
            partial(train, zero="after"),
            "Nothing is learned: step() is missing, or the gradients are zeroed between backward()"
            " and step(). The order is zero_grad, backward, clip, step.",
        ),
        Mistake(
            "eval mode forgotten",
            partial(train, measure_mode=True),
            "You measure in train mode. There the module normalises with the statistics of the"
            " batch at hand (and dropout would drop): call module.eval() before measuring.",
        ),
        Mistake(
            "measured with gradients",
            partial(train, no_grad=False),
            "You measure with gradients on. They are not needed there and cost memory: measure"
            " inside `with torch.no_grad():`. (The check's module notices, and says other numbers"
            " then.)",
        ),
        Mistake(
            "modes of the outermost module",
            partial(train, by_hand=True),
            "You set `module.training` yourself. That changes the outermost module alone, and those"
            " inside it keep their mode: call module.train() and module.eval().",
        ),
        Mistake("train mode never", partial(train, training="never"), _MODES),
        Mistake("train mode not restored", partial(train, training="start"), _MODES),
        Mistake("train mode after measuring alone", partial(train, training="after"), _MODES),
        Mistake(
            "not clipped",
            partial(train, clip=None),
            "The gradients are not clipped, or not at the right moment: between backward() and"
            " step().",
        ),
        Mistake(
            "always scaled",
            partial(train, clip=_always),
            "All gradients are brought to the length max_norm, the short ones as well. Clipping"
            " makes long ones shorter and leaves short ones alone.",
        ),
        *(
            Mistake(
                f"clipped to {norm}",
                partial(train, clip=lambda p, _, norm=norm: nn.utils.clip_grad_norm_(p, norm)),
                "The gradients are clipped to a fixed length. It is the argument `max_norm`.",
            )
            for norm in (1.0, 0.5)
        ),
        Mistake(
            "clipped by the largest",
            partial(train, clip=partial(nn.utils.clip_grad_norm_, norm_type=float("inf"))),
            "The gradients are scaled by their largest value. The length is the root of the sum of"
            " all squares, which clip_grad_norm_ takes unless told otherwise.",
        ),
        Mistake(
            "clipped by the sum of sizes",
            partial(train, clip=partial(nn.utils.clip_grad_norm_, norm_type=1)),
            "The length is taken as the sum of all sizes (the 1-norm). It is the root of the sum of"
            " all squares, which clip_grad_norm_ takes unless told otherwise.",
        ),
        Mistake(
            "clipped by the sum of lengths",
            partial(train, clip=_by_length(lambda grads: sum(g.norm() for g in grads))),
            "The lengths of the parameters' gradients are added. The length of all together is the"
            " root of the sum of all squares." + _CLIP,
        ),
        Mistake(
            "clipped by the square",
            partial(train, clip=_by_length(lambda grads: sum(g.square().sum() for g in grads))),
            "max_norm is compared with the sum of all squares. The length is the root of it."
            + _CLIP,
        ),
        Mistake(
            "clipped one by one",
            partial(train, clip=_alone),
            "Each parameter's gradient is clipped by itself, which changes the direction of the"
            " step." + _CLIP,
        ),
        Mistake(
            "values clipped",
            partial(train, clip=nn.utils.clip_grad_value_),
            "Single values are clipped, which changes the direction of the step. Clip the length of"
            " all gradients together: clip_grad_norm_.",
        ),
        Mistake(
            "measured before the epoch",
            partial(train, measure_at="before"),
            "You measure before each epoch. Measure after it: the last number shall belong to the"
            " trained module.",
        ),
        Mistake(
            "measured after each step",
            partial(train, measure_at="each step"),
            "You measure after each step. One measurement an epoch is asked for, after its last"
            " batch.",
        ),
        *(
            Mistake(
                f"measured on the {name} batch",
                partial(train, measured_on=on),
                "You measure on a batch of the training. How well the module does on what it was"
                " trained with says little: measure on `held_out`.",
            )
            for name, on in (
                ("last", lambda batches, held_out: batches[-1]),
                ("first", lambda batches, held_out: batches[0]),
            )
        ),
        *(
            Mistake(
                f"one loss an epoch, the {name}",
                partial(train, given=given),
                "There is one loss for each epoch. Note one for each step: all batches of all"
                " epochs, in their order.",
            )
            for name, given in (
                ("mean", lambda losses: losses.mean(dim=1)),
                ("sum", lambda losses: losses.sum(dim=1)),
                ("last", lambda losses: losses[:, -1]),
            )
        ),
        Mistake(
            "the last epoch's losses",
            partial(train, given=lambda losses: losses[-1]),
            "Only the losses of the last epoch are there. Make the list before the first epoch, and"
            " not anew in each.",
        ),
        Mistake("noted after the step", partial(train, note="after the step"), _AFTER),
        Mistake("noted after the step, in eval mode", partial(train, note="in eval mode"), _AFTER),
        Mistake(
            "batches backwards",
            partial(train, order=lambda batches: batches[::-1]),
            "The batches are taken from the last to the first. Take them in their order.",
        ),
        Mistake(
            "batches shuffled",
            partial(
                train,
                order=lambda batches: [batches[i] for i in torch.randperm(len(batches)).tolist()],
            ),
            "The batches are shuffled. Take them in their order: whoever calls you has mixed them,"
            " or wants them so.",
        ),
        Mistake(
            "one step an epoch",
            partial(train, one_step=True),
            "The gradients of all batches of an epoch are added, and there is one step at its end."
            " Make one step for each batch.",
        ),
    ),
    hints=(
        "Two loops, one inside the other: epochs, and the batches of an epoch. A step is: loss,"
        " zero_grad, backward, clip, step. After the inner loop: measure.",
        "Clip with nn.utils.clip_grad_norm_(module.parameters(), max_norm), between backward() and"
        " step(). Keep value.item(), not value, which holds on to everything it was made of.",
        "To measure: module.eval(), then inside `with torch.no_grad():` the loss of module(x), y of"
        " held_out; module.train() at the start of every epoch. Return torch.tensor(losses),"
        " torch.tensor(measured).",
    ),
    crashes=tuple(
        Mistake(
            f"frozen ones measured, {name}",
            partial(train, clip=_met(what), frozen_too=True),
            "A frozen parameter has no gradient: p.grad is None, and nothing can be measured or"
            " made shorter. Leave it out: if p.grad is not None."
            " nn.utils.clip_grad_norm_ does so.",
        )
        for name, what in (
            ("norm", lambda grad: grad.norm()),
            ("detach", lambda grad: grad.detach()),
            ("data", lambda grad: grad.data),
            ("torch.norm", torch.norm),
            ("linalg", torch.linalg.norm),
            ("vector_norm", torch.linalg.vector_norm),
            ("** 2", lambda grad: grad**2),
            ("pow", lambda grad: grad.pow(2)),
            ("times itself", lambda grad: grad * grad),
            ("square", lambda grad: grad.square()),
            ("torch.square", torch.square),
            ("torch.sum", torch.sum),
            ("flatten", lambda grad: grad.flatten()),
            ("reshape", lambda grad: grad.reshape(-1)),
            ("view", lambda grad: grad.view(-1)),
            ("mul_", lambda grad: grad.mul_(1.0)),
            ("*= a number", lambda grad: operator.imul(grad, 1.0)),
            ("*= a tensor", lambda grad: operator.imul(grad, torch.ones(()))),
        )
    ),
)

# --- accumulate -----------------------------------------------------------------------------------


def accumulate(
    module: nn.Module,
    parts: list[tuple[Tensor, Tensor]],
    ignore: int,
    *,
    weight: Callable = lambda own, total, parts, labels: own / total,
    counted_in: Callable[[Tensor], Tensor] = lambda labels: labels[:, 1:],
    shift: bool = True,
    held: int = 0,
    skip: bool = True,
    zero: str = "first",
    returned: Callable[[list, list, list], Tensor] = lambda losses, means, numbers: sum(
        losses, torch.zeros(())
    ),
    back: bool = True,
    stop: bool = False,
    clip: float | None = None,
    empty: bool = True,
    over_ends: bool = False,
    running: bool = False,
    by_rows: bool = False,
    divided_last: bool = False,
    divide: Callable = operator.truediv,
    frozen_too: bool = False,
) -> Tensor:
    """The loss (), and the gradients in the module. The reference, or with one thing changed.

    weight: of a part's mean loss, from its own count, the total, all parts, and its labels;
    counted_in: the labels that are counted in the total; held: parts that wait for backward() while
    the next one goes through the module; skip: those without labels never wait; returned: from the
    weighted losses, the parts' own means and their numbers of tokens; stop: at a part without
    labels; clip: the gradients' length at the end; empty: a part without labels gives 0, and not
    nan; over_ends: rows are laid end to end before the shift; running: divided by the tokens so
    far; by_rows: the mean of each row first; divided_last: what is in the gradients at the end is
    divided by the total, how `divide` says, and what is frozen too.
    """
    rows = sum((labels[:, 1:] != ignore).any(dim=1).sum() for _, labels in parts)
    number = [(labels[:, 1:] != ignore).sum() for _, labels in parts]
    total = sum((counted_in(labels) != ignore).sum() for _, labels in parts)
    losses, means, waiting, so_far = [], [], [], 0
    if zero in ("first", "and at the end"):
        module.zero_grad()
    for (x, labels), own in zip(parts, number, strict=True):
        if zero == "each" or (zero == "if the first counts" and own and not losses):
            module.zero_grad()
        if stop and not own:
            break
        logits = module(x)
        if over_ends:
            predicted, wanted = logits.flatten(0, 1)[:-1], labels.flatten()[1:]
        elif shift:
            predicted, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        else:
            predicted, wanted = logits.flatten(0, 1), labels.flatten()
        summed = F.cross_entropy(predicted, wanted, ignore_index=ignore, reduction="sum")
        here = (wanted != ignore).sum()
        so_far = so_far + own
        mean = summed / (here.clamp(min=1) if empty else here)
        own = here
        value = mean * weight(own, so_far if running else total, parts, labels)
        if by_rows:
            each = F.cross_entropy(
                logits[:, :-1].mT, labels[:, 1:], ignore_index=ignore, reduction="none"
            )
            own_of_rows = (labels[:, 1:] != ignore).sum(dim=1)
            value = (each.sum(dim=1) / own_of_rows.clamp(min=1)).sum() / rows
        waiting += [value] if back and (here or not empty or not skip) else []
        if len(waiting) > held:
            waiting.pop(0).backward()
        losses.append(value.detach())
        means.append(mean.detach())
    for value in waiting:
        value.backward()
    if zero == "and at the end":
        module.zero_grad()
    for p in module.parameters() if divided_last else ():
        if frozen_too or p.requires_grad:
            p.grad = divide(p.grad, total)
    if clip:
        nn.utils.clip_grad_norm_(module.parameters(), clip)
    return returned(losses, means, number)


def _right_loss(losses: list, means: list, numbers: list) -> Tensor:
    """For `returned`, where a weight is wrong and the loss is not."""
    return sum(mean * own for mean, own in zip(means, numbers, strict=True)) / sum(numbers)


def _undivided(module: nn.Module, parts: list, ignore: int) -> Tensor:
    summed = accumulate(module, parts, ignore, weight=lambda own, total, parts, labels: own.float())
    return summed / sum((labels[:, 1:] != ignore).sum() for _, labels in parts)


def _divided_with_old_ones(module: nn.Module, parts: list, ignore: int) -> Tensor:
    number = sum((labels[:, 1:] != ignore).sum() for _, labels in parts)
    summed = accumulate(
        module, parts, ignore, zero="never", divided_last=True,
        weight=lambda own, total, parts, labels: own,
    )  # fmt: skip
    return summed / number


def _weighted_before_the_shift(module: nn.Module, parts: list, ignore: int) -> Tensor:
    return accumulate(
        module, parts, ignore, counted_in=lambda labels: labels,
        weight=lambda own, total, parts, labels: (labels != ignore).sum() / total,
    )  # fmt: skip


def _stepping(module: nn.Module, parts: list, ignore: int) -> Tensor:
    loss = accumulate(module, parts, ignore)
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    return loss


def _parts_of_batches() -> list[tuple]:
    # In the first case each way to weight the parts gives another result: 1/4 of the labels, 1/3 of
    # the rows, 5/13 of the places, 4/10 of them after the shift, and 1/2 of the parts.
    random = torch.Generator().manual_seed(136)
    no = -100

    def given(v: int, ignore: int, old: bool, *labels: list[list[int]]) -> tuple:
        torch.default_generator.manual_seed(v)  # torch.manual_seed looks for GPUs: slow
        parts = Parts(
            (torch.randn(len(rows), len(rows[0]), 3, generator=random), torch.tensor(rows))
            for rows in labels
        )
        return Head(3, v, old), parts, ignore

    return [
        given(5, no, False, [[no, no, no, no, 1]], [[no, 2, 4, 1], [no, no, 3, 1]]),
        given(4, no, True, [[no, 2, 1]], [[2, no, 3, 1, 2], [3, no, no, 2, 1]], [[no, no, 1]]),
        given(6, 0, False, [[4, 0, 5, 1], [0, 3, 2, 0]], [[2, 0, 0]], [[0, 5, 4, 3, 2, 1]]),
        given(5, no, True, [[3, no, no]], [[no, 2, 4, 1], [no, no, no, 1]], [[no, 4, 2]]),
    ]


_TOKENS = (
    " Each token of the whole batch counts the same: divide the *sum* over a part's tokens by the"
    " number of tokens of all parts."
)

ACCUMULATE = Exercise(
    name="accumulate",
    transfer=True,
    reference=accumulate,
    cases=_parts_of_batches,
    axes="; v d; v; ; ",
    parts=(
        "loss",
        "gradient of the weight",
        "gradient of the bias",
        "parts that wait for backward()",
        "weights unchanged",
    ),
    asked=gradients_of,
    checked=(
        "the loss and the gradients of 4 batches in 2 and 3 parts, against one big batch: parts"
        " with different numbers of rows, places and labels, two without any label, labels at"
        " place 0, old gradients in the module; and that each part has had backward() before the"
        " next one goes through, and no step is made"
    ),
    mistakes=(
        Mistake(
            "mean of the means",
            partial(accumulate, weight=lambda own, total, parts, labels: 1 / len(parts)),
            "This is the mean of the parts' means. There a token of a part with few answers counts"
            " more than others." + _TOKENS,
        ),
        Mistake(
            "sum of the means",
            partial(accumulate, weight=lambda own, total, parts, labels: 1.0),
            "The parts' means are added, and so are their gradients: as if each part were a whole"
            " batch." + _TOKENS,
        ),
        Mistake(
            "sums not divided",
            partial(accumulate, weight=lambda own, total, parts, labels: own),
            "The sums over the tokens are not divided." + _TOKENS,
        ),
        Mistake(
            "gradients not divided",
            _undivided,
            "The loss is right, but the gradients are those of the sum over the tokens. Divide"
            " them, too: the number of tokens must be in what you call backward() on, or divide"
            " each p.grad at the end.",
        ),
        Mistake(
            "sums divided by all places",
            partial(
                accumulate,
                weight=lambda own, total, parts, labels: own / sum(one.numel() for _, one in parts),
            ),
            "The sums over the tokens are divided by the number of all places." + _TOKENS,
        ),
        Mistake(
            "sums divided by all shifted places",
            partial(
                accumulate,
                weight=lambda own, total, parts, labels: (
                    own / sum(one[:, 1:].numel() for _, one in parts)
                ),
            ),
            "The sums over the tokens are divided by the number of all places." + _TOKENS,
        ),
        Mistake(
            "sums divided by the rows",
            partial(
                accumulate,
                weight=lambda own, total, parts, labels: own / sum(len(one) for _, one in parts),
            ),
            "The sums over the tokens are divided by the number of rows." + _TOKENS,
        ),
        Mistake(
            "divided by the tokens so far",
            partial(accumulate, running=True),
            "Each part is divided by the number of tokens up to it. The number of the whole batch"
            " must be known before the first part: count in all labels first.",
        ),
        Mistake(
            "over the ends of rows",
            partial(accumulate, over_ends=True),
            "The rows of a part are laid end to end before the shift, so the last place of a row is"
            " asked for the first token of the next row. Shift first, within each row.",
        ),
        Mistake(
            "divided by the parts, too",
            partial(accumulate, weight=lambda own, total, parts, labels: own / total / len(parts)),
            "The shares are divided by the number of parts, too. That belongs to the mean of the"
            " parts' means: with the tokens of the whole batch below the line, the shares add up.",
        ),
        Mistake(
            "sums divided by the parts",
            partial(accumulate, weight=lambda own, total, parts, labels: own / len(parts)),
            "The sums over the tokens are divided by the number of parts." + _TOKENS,
        ),
        Mistake(
            "by the rows",
            partial(
                accumulate,
                weight=lambda own, total, parts, labels: (
                    len(labels) / sum(len(one) for _, one in parts)
                ),
            ),
            "The parts' means are weighted by their numbers of rows. Rows have answers of different"
            " lengths." + _TOKENS,
        ),
        Mistake(
            "by the places",
            partial(
                accumulate,
                weight=lambda own, total, parts, labels: (
                    labels.numel() / sum(one.numel() for _, one in parts)
                ),
            ),
            "The parts' means are weighted by their numbers of places, with prefix and padding."
            + _TOKENS,
        ),
        Mistake(
            "by the shifted places",
            partial(
                accumulate,
                weight=lambda own, total, parts, labels: (
                    labels[:, 1:].numel() / sum(one[:, 1:].numel() for _, one in parts)
                ),
            ),
            "The parts' means are weighted by their numbers of places, with prefix and padding."
            + _TOKENS,
        ),
        Mistake(
            "counted before the shift",
            partial(accumulate, counted_in=lambda labels: labels),
            "The tokens are counted before the shift. A label at place 0 is predicted by nobody:"
            " count in labels[:, 1:].",
        ),
        Mistake(
            "means weighted by counts before the shift",
            _weighted_before_the_shift,
            "The parts' means are weighted by their numbers of labels, counted before the shift. A"
            " label at place 0 is predicted by nobody: count in labels[:, 1:].",
        ),
        Mistake(
            "not shifted",
            partial(accumulate, shift=False, counted_in=lambda labels: labels),
            "Logits and labels are not shifted against each other: compare logits[:, :-1] with"
            " labels[:, 1:], as in part 2.",
        ),
        Mistake(
            "-100 always",
            lambda module, parts, ignore: accumulate(module, parts, -100),
            "The mark is taken to be -100. It is the argument `ignore`.",
        ),
        Mistake(
            "old gradients kept",
            partial(accumulate, zero="never"),
            "Gradients from before are still in the module, and yours are added to them. Start with"
            " module.zero_grad(): only this batch's gradients shall be there.",
        ),
        Mistake(
            "old gradients kept, and divided with the new ones",
            _divided_with_old_ones,
            "Gradients from before are still in the module. Yours are added to them, and all are"
            " divided at the end. Start with module.zero_grad().",
        ),
        Mistake(
            "zeroed with the first part if it counts",
            partial(accumulate, zero="if the first counts"),
            "Old gradients stay where no label of the first part counts: you zero them together"
            " with it, and leave it out. Zero before the loop, whatever the parts are.",
        ),
        Mistake(
            "zeroed at the end, too",
            partial(accumulate, zero="and at the end"),
            "The loss is right, but all gradients are zero. Either they are zeroed at the end, or"
            " the parts go through the module with gradients switched off. They are what you were"
            " asked for: leave them in the module.",
        ),
        Mistake(
            "mean of the rows' means",
            partial(accumulate, by_rows=True),
            "This is the mean of each row first, and then of the rows, so that a token of a short"
            " answer counts more." + _TOKENS,
        ),
        Mistake(
            "zeroed for each part",
            partial(accumulate, zero="each"),
            "The gradients are zeroed before each part, so that only the last part's are left. Zero"
            " once, before the first: backward() adds.",
        ),
        Mistake(
            "all at once",
            partial(accumulate, held=10),
            "The numbers are right, but nothing is saved: all parts' graphs are held until the end."
            " Call backward() for each part, before the next one goes through the module.",
        ),
        *(
            Mistake(
                f"one part late{'' if skip else ', also one without labels'}",
                partial(accumulate, held=1, skip=skip),
                "The numbers are right, but backward() comes one part too late: a part goes through"
                " the module while the graph of the one before is still there. Call backward()"
                " first.",
            )
            for skip in (True, False)
        ),
        Mistake(
            "clipped",
            partial(accumulate, clip=1.0),
            "The loss is right, but the gradients are clipped. That is for whoever calls you, and"
            " so is the step.",
        ),
        Mistake(
            "stopped",
            partial(accumulate, stop=True),
            "You stop at the first part without labels (break, or return). Others come after it: go"
            " on with the next one (continue).",
        ),
        *(
            Mistake(
                f"{name}, the loss right",
                partial(accumulate, returned=_right_loss, **wrong),
                f"The loss is right, but the gradients are not: {says}",
            )
            for name, wrong, says in (
                (
                    "mean of the means",
                    {"weight": lambda own, total, parts, labels: 1 / len(parts)},
                    "they are those of the mean of the parts' means." + _TOKENS,
                ),
                (
                    "sum of the means",
                    {"weight": lambda own, total, parts, labels: 1.0},
                    "they are those of the sum of the parts' means." + _TOKENS,
                ),
                (
                    "divided by the parts, too",
                    {"weight": lambda own, total, parts, labels: own / total / len(parts)},
                    "they are divided by the number of parts as well. The parts' shares add up.",
                ),
                (
                    "divided by the tokens so far",
                    {"running": True},
                    "each part is divided by the number of tokens up to it. The number of the whole"
                    " batch must be known before the first backward().",
                ),
            )
        ),
        Mistake(
            "a step",
            _stepping,
            "The numbers are right, but the weights have changed: you make a step. That is for"
            " whoever calls you, after clipping.",
        ),
        Mistake(
            "no backward",
            partial(accumulate, back=False),
            "The loss is right, but there are no gradients in the module: backward() is missing.",
        ),
        Mistake(
            "a part without labels",
            partial(accumulate, empty=False),
            "A part in which no label counts gives nan: a mean over nothing is 0 / 0, and nan times"
            " 0 is nan. Take the sum, reduction='sum', which is 0 there.",
        ),
        Mistake(
            "gradients divided twice",
            partial(accumulate, divided_last=True),
            "The loss is right, but the gradients are divided by the number of tokens twice: before"
            " backward() and again at the end. Once is enough.",
        ),
        Mistake(
            "the loss not divided",
            partial(
                accumulate,
                divided_last=True,
                weight=lambda own, total, parts, labels: own,
            ),
            "The gradients are right, but the loss that you return is the sum over the tokens."
            " Divide it, too, by the number of tokens of all parts.",
        ),
        Mistake(
            "the last part's loss",
            partial(accumulate, returned=lambda losses, means, numbers: losses[-1]),
            "The gradients are right, but the loss is the last part's share. Add those of all"
            " parts.",
        ),
        Mistake(
            "the last part's mean",
            partial(accumulate, returned=lambda losses, means, numbers: means[-1]),
            "The gradients are right, but the loss is the last part's mean. Return that of the"
            " whole batch: the sum of the parts' shares.",
        ),
        Mistake(
            "the means' mean as the loss",
            partial(accumulate, returned=lambda losses, means, numbers: sum(means) / len(means)),
            "The gradients are right, but the loss that you return is the mean of the parts' means."
            " Return the sum of their shares.",
        ),
        Mistake(
            "the loss divided once more",
            partial(accumulate, returned=lambda losses, means, numbers: sum(losses) / len(losses)),
            "The gradients are right, but the loss is divided by the number of parts. The shares"
            " add up to the mean over all tokens.",
        ),
    ),
    crashes=(
        *(
            Mistake(
                f"no gradients yet, {name}",
                lambda module, parts, ignore, zero=zero: [zero(p) for p in module.parameters()],
                "A module that has not learned yet has no gradients: p.grad is None."
                " module.zero_grad() takes care of that.",
            )
            for name, zero in (
                ("zero_", lambda p: p.grad.zero_()),
                ("data", lambda p: p.grad.data.zero_()),
                ("detach_", lambda p: p.grad.detach_()),
                ("fill_", lambda p: p.grad.fill_(0)),
                ("times 0", lambda p: setattr(p, "grad", operator.imul(p.grad, 0))),
            )
        ),
        *(
            Mistake(
                f"frozen ones divided, {name}",
                partial(
                    accumulate,
                    divided_last=True,
                    divide=divide,
                    frozen_too=True,
                    weight=lambda own, total, parts, labels: own,
                ),
                "A frozen parameter has no gradient: p.grad is None, and nothing can be divided."
                " Leave it out: if p.grad is not None.",
            )
            for name, divide in (
                ("/= a tensor", operator.itruediv),
                ("/= a number", lambda grad, total: operator.itruediv(grad, total.item())),
                ("/ a tensor", operator.truediv),
                ("/ a number", lambda grad, total: grad / total.item()),
                ("div_", lambda grad, total: grad.div_(total)),
                ("mul_", lambda grad, total: grad.mul_(1 / total)),
                ("*= a tensor", lambda grad, total: operator.imul(grad, 1 / total)),
                ("*= a number", lambda grad, total: operator.imul(grad, 1 / total.item())),
            )
        ),
        Mistake(
            "gradients of frozen ones",
            lambda module, parts, ignore: torch.autograd.grad(
                module(parts[0][0]).sum(), list(module.parameters())
            ),
            "torch.autograd.grad takes no frozen parameter: it has no gradient. Give it those with"
            " p.requires_grad alone.",
        ),
    ),
    hints=(
        "The loss of the big batch is one sum over all its tokens, divided by one number. A sum can"
        " be taken part by part. What must you know before the first part?",
        "First count: in labels[:, 1:] of all parts, how many are not `ignore`? That needs no"
        " module. Then for each part the summed cross entropy (reduction='sum'), divided by that"
        " number, and backward(): it adds to the gradients that are there.",
        "module.zero_grad(); total = sum((labels[:, 1:] != ignore).sum() for _, labels in parts)."
        " For each part: share = F.cross_entropy(module(x)[:, :-1].flatten(0, 1), labels[:,"
        " 1:].flatten(), ignore_index=ignore, reduction='sum') / total; share.backward(). Return"
        " the sum of share.detach().",
    ),
)

EXERCISES = (ROW_LABELS, SUFFIX_LOSS, TRAIN, ACCUMULATE)
