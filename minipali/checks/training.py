"""Lesson 13: the labels of a row, the loss on its suffix, and a training loop."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.checks.engine import Exercise, Mistake
from minipali.training import row_labels, suffix_loss

# --- row_labels -----------------------------------------------------------------------------------


def _rows() -> list[tuple]:
    # Tokens of the suffix, and eos, also stand in the prefix: only the place decides. In the last
    # case the answer is empty, as for `detect NAME` where there is none.
    return [
        ([900, 900, 2, 31, 32, 10], [41, 31], 1, -100),
        ([7, 4, 55], [55, 56, 7, 57], 4, -1),
        ([800, 6, 21, 10], [], 5, -100),
    ]


def _labelled(build: Callable) -> Callable:
    """build(prefix, suffix, [eos], ignore) -> ids, labels; ignore(n) is the mark n times."""

    def wrong(prefix, suffix, eos, ignore):
        return build(list(prefix), list(suffix), [eos], lambda n: [ignore] * n)

    return wrong


ROW_LABELS = Exercise(
    name="row_labels",
    reference=row_labels,
    cases=_rows,
    axes="t; t",
    parts=("ids", "labels"),
    checked=(
        "ids and labels of 3 rows with different eos and ignore; some tokens stand in the prefix"
        " and in the suffix, and one suffix is empty"
    ),
    mistakes=(
        Mistake(
            "prefix in the loss",
            _labelled(lambda p, s, eos, ignore: (p + s + eos, p + s + eos)),
            "The prefix has labels too. Nobody wants the model to say the question, and its picture"
            " is no text: put ignore at every place of the prefix.",
        ),
        Mistake(
            "eos missing",
            _labelled(lambda p, s, eos, ignore: (p + s, ignore(len(p)) + s)),
            "eos is missing. It is the last token of every answer: a model that never learned to"
            " say it does not stop.",
        ),
        Mistake(
            "eos without a label",
            _labelled(lambda p, s, eos, ignore: (p + s + eos, ignore(len(p)) + s + ignore(1))),
            "eos is in the ids, but its label is ignore. To stop is a part of the answer, and must"
            " be learned: its label is eos.",
        ),
        Mistake(
            "labels shifted here",
            _labelled(
                lambda p, s, eos, ignore: (p + s + eos, ignore(len(p) - 1) + s + eos + ignore(1))
            ),
            "The labels are shifted by one already. Here the label of a place is its own token; the"
            " shift comes in the loss. Shifted in both, each place predicts the token after the"
            " next.",
        ),
        Mistake(
            "one place of the prefix too many",
            _labelled(
                lambda p, s, eos, ignore: (p + s + eos, ignore(len(p) - 1) + p[-1:] + s + eos)
            ),
            "The last token of the prefix has a label. It belongs to the question: ignore for all"
            " of the prefix.",
        ),
        Mistake(
            "suffix ignored",
            _labelled(lambda p, s, eos, ignore: (p + s + eos, p + ignore(len(s) + 1))),
            "It is the wrong way round: the prefix has labels and the answer is ignored.",
        ),
        Mistake(
            "first token of the suffix ignored",
            _labelled(lambda p, s, eos, ignore: (p + s + eos, ignore(len(p) + 1) + (s + eos)[1:])),
            "The first token of the answer has no label. The place before it, the end of the"
            " question, must learn to say it. So it needs one.",
        ),
        Mistake(
            "eos before the suffix",
            _labelled(lambda p, s, eos, ignore: (p + eos + s, ignore(len(p)) + eos + s)),
            "eos stands between prefix and suffix. It ends the answer: put it last.",
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

    # Suffixes of different lengths, with and without padding. In the last case the mark is 0, so
    # that a loss with -100 built in goes wrong and does not crash.
    no = -100
    return [
        given([[no, no, 3, 8, 5, 1], [no, no, no, 4, 1, no], [no, 7, 1, no, no, no]], 11, no),
        given([[no, no, no, no, 6, 2], [no, no, 5, 4, 3, 2]], 9, no),
        given([[0, 0, 4, 6, 3, 1, 0], [0, 0, 0, 5, 1, 0, 0]], 7, 0),
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
) -> Tensor:
    """suffix_loss with one thing changed. mean: over "tokens", "places" or "rows", or the "sum"."""
    t = labels.shape[1]
    logits = logits[:, max(0, -shift) : t - max(0, shift)]
    wanted = labels[:, max(0, shift) : t - max(0, -shift)]
    counted = count(wanted, ignore)
    filled = wanted.masked_fill((wanted == ignore) & (wanted < 0), 0)
    each = -log(logits).gather(-1, filled[..., None])[..., 0] * counted
    if mean == "rows":
        return (each.sum(dim=1) / counted.sum(dim=1)).mean()
    divisors = {"tokens": counted.sum(), "places": counted.numel(), "sum": 1}
    return each.sum() / divisors[mean]


SUFFIX_LOSS = Exercise(
    name="suffix_loss",
    reference=suffix_loss,
    cases=_losses,
    axes="",
    checked=(
        "the loss of 3 batches whose rows have suffixes of different lengths and padding, with two"
        " different marks; inputs unchanged"
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
        Mistake(
            "divided by all places",
            partial(_suffix_loss, mean="places"),
            "The sum is right, but it is divided by the number of all places. Divide by the number"
            " of places that count; else the loss shrinks with every bit of padding.",
        ),
        Mistake(
            "mean of the rows' means",
            partial(_suffix_loss, mean="rows"),
            "This is the mean of each row first, and then of the rows, so that a token of a short"
            " answer counts more. (big_vision does it that way.) Here every token counts the same:"
            " one mean over all places that count.",
        ),
        Mistake(
            "not divided",
            partial(_suffix_loss, mean="sum"),
            "The sum is not divided. Take the mean over the places that count.",
        ),
        Mistake(
            "ignore is always -100",
            partial(_suffix_loss, count=lambda wanted, ignore: (wanted != ignore) | (wanted >= 0)),
            "The mark is taken to be -100. It is the argument `ignore`; cross_entropy has a"
            " parameter ignore_index for it.",
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


class _SGD(torch.optim.SGD):
    # In place of a description of seven lines: a method of a string, which takes no self.
    __repr__ = "SGD".__str__


class _Batches(list):
    __repr__ = "[(x, y), (x, y), ...]".__str__


class _Batch(tuple):
    __repr__ = "(x, y)".__str__


def _small_module(seed: int, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A module that is another in train mode than in eval mode, and its optimizer.

    It has batch statistics and no dropout, so that nothing in it is left to chance.
    """
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    return module, _SGD(module.parameters(), lr=lr)


def _runs() -> list[tuple]:
    random = torch.Generator().manual_seed(130)

    def batch(rows: int) -> _Batch:
        x = torch.randn(rows, 3, generator=random)
        return _Batch((x, torch.stack([x[:, 0] * x[:, 1], 2 + x.sum(dim=1)], dim=1)))

    return [
        (
            *_small_module(seed, lr), _Batches(batch(rows) for rows in sizes), batch(7),
            F.mse_loss, epochs, max_norm,
        )
        for seed, lr, sizes, epochs, max_norm in (
            (1, 0.1, (5, 4, 6), 3, 0.7), (2, 0.2, (3, 5), 2, 1.3),
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
    clip: str = "together",
    measure_mode: str = "eval",
    back: bool = True,
    measure_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """-> losses (steps,), measured (epochs,). The reference, or with one thing changed."""
    losses, measured = [], []

    def measure() -> None:
        module.train(measure_mode == "train")
        with torch.no_grad():
            measured.append(loss(module(held_out[0]), held_out[1]))
        module.train(back)

    for _ in range(epochs):
        if measure_first:
            measure()
        for x, y in batches:
            value = loss(module(x), y)
            if zero == "before":
                optimizer.zero_grad()
            value.backward()
            if zero == "after":
                optimizer.zero_grad()
            if clip == "together":
                nn.utils.clip_grad_norm_(module.parameters(), max_norm)
            elif clip == "alone":
                for p in module.parameters():
                    nn.utils.clip_grad_norm_([p], max_norm)
            elif clip == "values":
                nn.utils.clip_grad_value_(module.parameters(), max_norm)
            optimizer.step()
            losses.append(value.detach())
        if not measure_first:
            measure()
    return torch.stack(losses), torch.stack(measured)


TRAIN = Exercise(
    name="train",
    reference=train,
    cases=_runs,
    axes="step; epoch",
    parts=("losses", "measured"),
    checked=(
        "the loss of every step and the measurement after every epoch, for two small modules with"
        " batch statistics; gradients are longer than max_norm in some steps"
    ),
    mistakes=(
        Mistake(
            "gradients not zeroed",
            partial(train, zero="never"),
            "The gradients are never zeroed. backward *adds* to what is there, so each step also"
            " takes all earlier steps' gradients: optimizer.zero_grad() before backward().",
        ),
        Mistake(
            "zeroed before the step",
            partial(train, zero="after"),
            "The gradients are zeroed between backward() and step(), so that nothing is learned."
            " The order is zero_grad, backward, clip, step.",
        ),
        Mistake(
            "eval mode forgotten",
            partial(train, measure_mode="train"),
            "You measure in train mode. There the module normalises with the statistics of the"
            " batch at hand (and dropout would drop): call module.eval() before measuring.",
        ),
        Mistake(
            "train mode not restored",
            partial(train, back=False),
            "After the first measurement the module stays in eval mode, and the next epochs train"
            " in it. Call module.train() before you go on.",
        ),
        Mistake(
            "not clipped",
            partial(train, clip="never"),
            "The gradients are not clipped, or not at the right moment: between backward() and"
            " step().",
        ),
        Mistake(
            "clipped one by one",
            partial(train, clip="alone"),
            "Each parameter's gradient is clipped by itself, which changes the direction of the"
            " step. Clip all together: clip_grad_norm_(module.parameters(), max_norm).",
        ),
        Mistake(
            "values clipped",
            partial(train, clip="values"),
            "Single values are clipped, which changes the direction of the step. Clip the length of"
            " all gradients together: clip_grad_norm_.",
        ),
        Mistake(
            "measured before the epoch",
            partial(train, measure_first=True),
            "You measure before each epoch. Measure after it: the last number shall belong to the"
            " trained module.",
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
)

EXERCISES = (ROW_LABELS, SUFFIX_LOSS, TRAIN)
