"""Lesson 19: weights as whole numbers, by rows and by groups; GGUF's blocks read and written."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from minipali import gguf, published, quantization, scenes
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.evaluation import answers, evaluation_set, score
from minipali.gguf import GGUF
from minipali.paligemma import PaliGemma
from minipali.tokens import Processor

SMALL = 1e-12  # in place of a scale of 0, by which nothing can be divided


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _wrapped(whole: Tensor, kind: torch.dtype) -> Tensor:
    """As a number that does not fit comes out of most processors: 128 as int8 is -128."""
    return whole.to(torch.int64).to(kind)


# --- to_int8 --------------------------------------------------------------------------------------


def _rows() -> list[tuple]:
    # In one row of each the largest number is positive, in one it is negative.
    first = _random(4, 6, seed=20)
    second = _random(5, 9, seed=55) * torch.tensor([0.3, 1, 40, 1, 5])[:, None]
    second[3] = 0
    tiny = 1e-6 * _random(2, 5, seed=21)  # no scale is too small to count
    return [(first,), (second,), (tiny,)]


def to_int8(
    weight: Tensor,
    *,
    largest: Callable[[Tensor], Tensor] = lambda w: w.abs().amax(dim=1, keepdim=True),
    steps: float = 127,
    whole_of: Callable[[Tensor], Tensor] = torch.round,
    stored: Callable[[Tensor], Tensor] = lambda q: _wrapped(q, torch.int8),
    told: Callable[[Tensor], Tensor] = lambda scale: scale,
    give: Callable[[Tensor, Tensor], tuple] = lambda whole, scale: (whole, scale),
) -> tuple[Tensor, Tensor]:
    """Whole numbers (n, d) and scales (n,). Right, or with one thing changed."""
    scale = largest(weight).clamp(min=SMALL) / steps
    return give(stored(whole_of(weight / scale)), told(scale).squeeze(1))


def _by_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    whole, scale = quantization.to_int8(weight.T)
    return whole.T, scale


def _rows_that_count(function: Callable) -> Callable:
    """Which scale a row of zeros gets does not matter, as long as it is a number."""

    def tried(weight: Tensor):
        result = function(weight)
        if isinstance(result, (tuple, list)) and len(result) == 2:
            whole, scale = result
            empty = weight.detach().eq(0).all(dim=1)
            if isinstance(scale, Tensor) and len(scale.flatten()) == len(empty):
                beside = empty.view_as(scale) & ~scale.isnan()
                result = whole, scale.masked_fill(beside, 0)
        return result

    return tried


TO_INT8 = Exercise(
    name="to_int8",
    reference=quantization.to_int8,
    cases=_rows,
    axes="n d;n",
    parts=("whole", "scale"),
    asked=_rows_that_count,
    checked=(
        "whole numbers and scales of 3 matrices, with rows whose largest number is negative, rows"
        " of very different size, tiny ones and a row of zeros; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "one scale for all",
            partial(to_int8, largest=lambda w: w.abs().amax().expand(len(w), 1)),
            "All rows share one scale, that of the largest number of the whole matrix. In a row of"
            " small numbers hardly a step is left. Each row has a scale of its own: amax(dim=1).",
        ),
        Mistake(
            "a scale for each column",
            _by_columns,
            "Each column has a scale, (d,). The scale must come out of the sum over d when x W^T is"
            " computed, so it belongs to the row: amax(dim=1).",
        ),
        Mistake(
            "toward zero",
            partial(to_int8, whole_of=torch.trunc),
            "The numbers are cut off behind the point: .to(torch.int8) does that to whatever is"
            " there. All weights come out nearer to 0, with an error twice as large. Round to the"
            " nearest first: .round().",
        ),
        Mistake(
            "down",
            partial(to_int8, whole_of=torch.floor),
            "All numbers are rounded down (floor, or //). So all weights come out a half step too"
            " small on average. Round to the nearest: .round().",
        ),
        Mistake(
            "up",
            partial(to_int8, whole_of=torch.ceil),
            "All numbers are rounded up (ceil). Round to the nearest: .round().",
        ),
        Mistake(
            "128 steps",
            partial(to_int8, steps=128, whole_of=lambda q: q.round().clamp(-128, 127)),
            "The largest number becomes 128, which int8 does not have: it ends at 127. So it is cut"
            " off. Divide by 127.",
        ),
        Mistake(
            "128 steps, wrapped",
            partial(to_int8, steps=128),
            "The largest number becomes 128, which int8 does not have: it ends at 127, and what is"
            " one more comes out as -128. Divide by 127.",
        ),
        Mistake(
            "127.5 steps",
            partial(to_int8, steps=127.5),
            "The largest number becomes 127.5, rounded 128, which int8 does not have: it ends at"
            " 127. Divide by 127.",
        ),
        Mistake(
            "127.5 steps, cut off",
            partial(to_int8, steps=127.5, whole_of=lambda q: q.round().clamp(-128, 127)),
            "The largest number becomes 127.5, rounded 128, which int8 does not have: it ends at"
            " 127. Divide by 127.",
        ),
        Mistake(
            "255 steps",
            partial(to_int8, steps=255),
            "The scale is the largest number divided by 255. 255 steps lead from the lower end to"
            " the upper one; from 0 to the largest there are 127. What is larger does not fit.",
        ),
        Mistake(
            "255 steps, cut off",
            partial(to_int8, steps=255, whole_of=lambda q: q.round().clamp(-128, 127)),
            "The scale is the largest number divided by 255. 255 steps lead from the lower end to"
            " the upper one; from 0 to the largest there are 127. What is larger does not fit.",
        ),
        Mistake(
            "without the sign",
            partial(to_int8, largest=lambda w: w.amax(dim=1, keepdim=True)),
            "The scale comes from the largest number, and a negative one that is farther from 0"
            " does not count. Take the largest size: .abs() first.",
        ),
        Mistake(
            "from end to end",
            lambda weight: to_int8(
                weight,
                largest=lambda w: w.amax(dim=1, keepdim=True) - w.amin(dim=1, keepdim=True),
                steps=255,
                whole_of=lambda q: q.round().clamp(-128, 127),
            ),
            "The scale is the way from the smallest to the largest number, divided by 255. That"
            " fits only if the smallest number is stored, too. Here 0 stays 0 and one scale is all:"
            " the largest size divided by 127.",
        ),
        Mistake(
            "from end to end, 254 steps",
            partial(
                to_int8,
                largest=lambda w: w.amax(dim=1, keepdim=True) - w.amin(dim=1, keepdim=True),
                steps=254,
                whole_of=lambda q: q.round().clamp(-127, 127),
            ),
            "The scale comes from the way between the smallest and the largest number. That fits"
            " only if the smallest number is stored, too. Here 0 stays 0 and one scale is all: the"
            " largest size divided by 127.",
        ),
        Mistake(
            "mean size",
            partial(
                to_int8,
                largest=lambda w: w.abs().mean(dim=1, keepdim=True),
                whole_of=lambda q: q.round().clamp(-127, 127),
            ),
            "The scale comes from the mean size of the row. Whatever is larger than the mean is cut"
            " off. The *largest* size must become 127.",
        ),
        Mistake(
            "length",
            partial(to_int8, largest=lambda w: w.norm(dim=1, keepdim=True)),
            "The scale comes from the length of the row (norm), which is larger than every number"
            " in it, so many of the 127 steps are never used. Take the largest size.",
        ),
        Mistake(
            "4 bits",
            partial(to_int8, steps=7),
            "The largest size becomes 7. That would be 4 bits. With 8 bits it becomes 127.",
        ),
        Mistake(
            "multiplied",
            lambda weight: (
                _wrapped((weight * quantization.to_int8(weight)[1][:, None]).round(), torch.int8),
                quantization.to_int8(weight)[1],
            ),
            "The weights are multiplied by the scale. Whole numbers are made by dividing; to"
            " multiply is the way back: weight = scale * whole.",
        ),
        Mistake(
            "the scale a whole number",
            lambda weight: to_int8(
                weight,
                largest=lambda w: (w.abs().amax(dim=1, keepdim=True) / 127).floor(),
                steps=1,
            ),
            "The scale is a whole number: // throws away what is behind the point, and most scales"
            " are smaller than 1. Divide with one stroke.",
        ),
        Mistake(
            "no scale",
            lambda weight: (
                _wrapped(weight.round().clamp(-127, 127), torch.int8),
                torch.ones(len(weight)),
            ),
            "The weights are rounded as they are. Most are smaller than 1 and become 0. Divide each"
            " row by its scale first.",
        ),
        Mistake(
            "shifted",
            lambda weight: to_int8(
                weight - weight.amin(dim=1, keepdim=True), steps=255, stored=_shifted_to_int8
            ),
            "The numbers are counted from the smallest one. Whoever has only the whole numbers and"
            " the scales cannot undo that. Here 0 stays 0: weight / scale, rounded.",
        ),
        Mistake(
            "one by the scale",
            partial(to_int8, told=lambda scale: 1 / scale),
            "The scales are upside down: 127 / largest. The scale undoes the rounding, weight ="
            " scale * whole: it is largest / 127.",
        ),
        Mistake(
            "the largest itself",
            partial(to_int8, told=lambda scale: 127 * scale),
            "The whole numbers are right, but what you return as scales are the largest numbers."
            " The scale is the size of one step: largest / 127.",
        ),
        Mistake(
            "without a sign",
            partial(to_int8, stored=lambda q: _wrapped(q, torch.uint8)),
            "uint8 has no negative numbers: -1 became 255. Half of all weights are negative; with a"
            " sign it is torch.int8.",
        ),
        Mistake(
            "128 added",
            partial(to_int8, stored=lambda q: _wrapped(q + 128, torch.uint8)),
            "128 is added, so that uint8 holds the numbers. Whoever reads int8 would not know."
            " Store them with their sign, as torch.int8.",
        ),
        *(
            Mistake(
                f"stored as {kind}",
                partial(to_int8, stored=lambda q, kind=kind: q.to(kind)),
                f"The whole numbers are right, but stored as {kind}, so they take"
                f" {kind.itemsize} bytes each. One byte is what it was done for: .to(torch.int8).",
            )
            for kind in (torch.float32, torch.int32, torch.int64, torch.int16)
        ),
        Mistake(
            "undone at once",
            partial(
                to_int8,
                stored=lambda q: q,
                give=lambda whole, scale: (whole * scale[:, None], scale),
            ),
            "The whole numbers are multiplied by the scale already: that is the rounded weight, in"
            " as many bytes as before. Return the whole numbers.",
        ),
        Mistake(
            "exchanged",
            partial(to_int8, give=lambda whole, scale: (scale, whole)),
            "The scales come first, then the whole numbers. Return whole, scale.",
        ),
        Mistake(
            "the axis kept",
            partial(to_int8, give=lambda whole, scale: (whole, scale[:, None])),
            "The scales have the shape (n, 1). One number a row is (n,): compute with scale[:,"
            " None], and return scale.",
        ),
    ),
    hints=(
        "In each row, which number must become 127 or -127? How large is then one step?",
        "weight.abs().amax(dim=1) is the largest size of each row. To divide each row by its own"
        " scale, the scale needs a second axis: scale[:, None]. And a row of zeros has none:"
        " clamp.",
        "scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127; whole = (weight / scale[:,"
        " None]).round().to(torch.int8).",
    ),
)


def _shifted_to_int8(whole: Tensor) -> Tensor:
    return _wrapped(whole - 128, torch.int8)


# --- to_groups ------------------------------------------------------------------------------------


def _grouped() -> list[tuple]:
    # Whole groups first; then with a shorter last one, all of whose numbers are positive; then
    # other numbers of bits, and groups of equal numbers.
    second = _random(3, 10, seed=4)
    second[:, 8:] = second[:, 8:].abs() + 2
    third = 30 * _random(6, 7, seed=5)
    third[2], third[4, :3] = 1.5, 0
    return [
        (_random(4, 8, seed=3), 4, 4),
        (second, 4, 4),
        (third, 3, 2),
        (_random(2, 12, seed=6), 5, 8),
    ]


def to_groups(
    weight: Tensor,
    size: int,
    bits: int,
    *,
    cut: Callable[[Tensor, int], tuple] = lambda w, size: w.split(size, dim=1),
    low: Callable[[Tensor], Tensor] = lambda g: g.amin(dim=1, keepdim=True),
    width: Callable[[Tensor, Tensor], Tensor] = lambda g, least: (
        g.amax(dim=1, keepdim=True) - g.amin(dim=1, keepdim=True)
    ),
    steps: Callable[[int], float] = lambda bits: 2**bits - 1,
    whole_of: Callable = lambda group, least, scale, bits: ((group - least) / scale).round(),
    stored: Callable[[Tensor, int], Tensor] = lambda q, bits: _wrapped(q, torch.uint8),
    told: Callable[[Tensor, Tensor], Tensor] = lambda least, scale: least,
    give: Callable = lambda whole, scale, least: (whole, scale, least),
) -> tuple[Tensor, ...]:
    """Whole numbers (n, d), scales and least numbers (n, groups). Right, or one thing changed."""
    whole, scales, least = [], [], []
    for group in cut(weight, size):
        least.append(low(group))
        scales.append(width(group, least[-1]) / steps(bits))
        safe = scales[-1].clamp(min=SMALL)
        whole.append(stored(whole_of(group, least[-1], safe, bits), bits))
        least[-1] = told(least[-1], safe)
    return give(*(torch.cat(part, dim=1) for part in (whole, scales, least)))


def _across(weight: Tensor, size: int, bits: int) -> tuple[Tensor, ...]:
    """Groups that go on in the next row."""
    whole, scale, least = to_groups(weight.reshape(1, -1), size, bits)
    return whole.view_as(weight), scale[0], least[0]


def _padded(weight: Tensor, size: int, bits: int) -> tuple[Tensor, ...]:
    more = nn.functional.pad(weight, (0, -weight.shape[1] % size))
    whole, scale, least = to_groups(more, size, bits)
    return whole[:, : weight.shape[1]], scale, least


def _all_rows(weight: Tensor, size: int, bits: int) -> tuple[Tensor, ...]:
    return to_groups(
        weight,
        size,
        bits,
        low=lambda g: g.amin().expand(len(g), 1),
        width=lambda g, least: (g.amax() - g.amin()).expand(len(g), 1),
    )


def _down(weight: Tensor, size: int, bits: int) -> tuple[Tensor, ...]:
    return tuple(part.T for part in to_groups(weight.T, size, bits))


def _apart(weight: Tensor, size: int, bits: int) -> tuple[Tensor, ...]:
    """Number 0, and those that stand as many places further as there are groups, share a scale."""
    count = -(-weight.shape[1] // size)
    order = torch.arange(weight.shape[1]).argsort(stable=True)
    order = torch.cat([order[start::count] for start in range(count)])
    whole, scale, least = to_groups(weight[:, order], size, bits)
    return whole[:, order.argsort()], scale, least


def _in_last_group(weight: Tensor, size: int, bits: int) -> tuple[Tensor, ...]:
    """The rest of a row is taken into the group before."""

    def cut(w: Tensor, size: int) -> tuple:
        count = max(1, w.shape[1] // size)
        return w.tensor_split([size * i for i in range(1, count)], dim=1)

    return to_groups(weight, size, bits, cut=cut)


def _zero_point(group: Tensor, least: Tensor, scale: Tensor, bits: int) -> Tensor:
    return ((group / scale).round() - (least / scale).round()).clamp(0, 2**bits - 1)


def _groups_that_count(function: Callable) -> Callable:
    """Which scale a group of equal numbers gets does not matter, as long as it is a number."""

    def tried(weight: Tensor, size: int, bits: int):
        result = function(weight, size, bits)
        if isinstance(result, (tuple, list)) and len(result) == 3:
            whole, scale, least = result
            equal = torch.cat(
                [(g == g[:, :1]).all(dim=1, keepdim=True) for g in weight.split(size, dim=1)], dim=1
            )
            if isinstance(scale, Tensor) and scale.shape == equal.shape:
                result = whole, scale.masked_fill(equal & ~scale.isnan(), 0), least
        return result

    return tried


TO_GROUPS = Exercise(
    name="to_groups",
    reference=to_groups,
    cases=_grouped,
    axes="n d;n group;n group",
    parts=("whole", "scale", "least"),
    asked=_groups_that_count,
    checked=(
        "whole numbers, scales and least numbers of 4 matrices, in groups of 4, 4, 3 and 5 numbers"
        " of 4, 4, 2 and 8 bits, with shorter last groups and groups of equal numbers; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake(
            "one step too many",
            partial(to_groups, steps=lambda bits: 2**bits),
            "The way from the least to the largest number is divided by 2**bits. So many *numbers*"
            " there are, but one step less between them: 0 to 15 are 15 steps. Yours never reaches"
            " the largest.",
        ),
        Mistake(
            "one step too many, cut off",
            partial(
                to_groups,
                steps=lambda bits: 2**bits,
                whole_of=lambda g, least, s, bits: ((g - least) / s).round().clamp(0, 2**bits - 1),
            ),
            "The way from the least to the largest number is divided by 2**bits. So many *numbers*"
            " there are, but one step less between them: 0 to 15 are 15 steps. Yours has no whole"
            " number for the largest.",
        ),
        Mistake(
            "2**bits drawers",
            partial(
                to_groups,
                steps=lambda bits: 2**bits,
                whole_of=lambda g, least, s, bits: ((g - least) / s).floor().clamp(0, 2**bits - 1),
            ),
            "The way from the least to the largest number is cut into 2**bits pieces, and each"
            " number is called by its piece. Then nothing comes back as the largest number, and all"
            " come back too small. There are 2**bits - 1 steps; round to the nearest end of one.",
        ),
        Mistake(
            "as many steps as bits",
            partial(to_groups, steps=lambda bits: bits),
            "There are as many steps as bits. With b bits there are 2**b whole numbers, and 2**b -"
            " 1 steps between them.",
        ),
        *(
            Mistake(
                f"always {steps} steps",
                partial(to_groups, steps=lambda bits, steps=steps: steps),
                f"There are {steps} steps whatever `bits` says. With b bits the numbers go from 0"
                " to 2**b - 1.",
            )
            for steps in (255, 127)
        ),
        Mistake(
            "the width forgotten",
            partial(to_groups, width=lambda g, least: g.amax(dim=1, keepdim=True)),
            "The scale comes from the largest number alone. A step is a part of the way from the"
            " least to the largest: largest - least.",
        ),
        Mistake(
            "not divided",
            partial(to_groups, whole_of=lambda g, least, s, bits: (g - least).round()),
            "The numbers are not divided by the scale. whole is (number - least) / scale, rounded.",
        ),
        Mistake(
            "multiplied",
            partial(to_groups, whole_of=lambda g, least, s, bits: ((g - least) * s).round()),
            "The numbers are multiplied by the scale. That is the way back; whole is (number -"
            " least) / scale, rounded.",
        ),
        Mistake(
            "least added",
            partial(to_groups, whole_of=lambda g, least, s, bits: ((g + least) / s).round()),
            "The least number is added before the division. It belongs on the way back; whole is"
            " (number - least) / scale, rounded.",
        ),
        Mistake(
            "one group of all rows",
            _all_rows,
            "A group takes the numbers of all rows: the least and the largest number are taken over"
            " the whole piece. Take them for each row: amin(dim=1, keepdim=True).",
        ),
        Mistake(
            "filled with zeros, and kept",
            lambda weight, size, bits: to_groups(
                nn.functional.pad(weight, (0, -weight.shape[1] % size)), size, bits
            ),
            "The rows are filled with zeros, and have become longer. Take only the numbers that are"
            " there: the last group is shorter.",
        ),
        Mistake(
            "always 4 bits",
            partial(to_groups, steps=lambda bits: 15),
            "There are 15 steps whatever `bits` says. With b bits the numbers go from 0 to 2**b -"
            " 1.",
        ),
        Mistake(
            "half the steps",
            partial(to_groups, steps=lambda bits: 2 ** (bits - 1) - 1),
            "There are 2**(bits - 1) - 1 steps, as if one bit were a sign. These numbers are"
            " counted from the least one and have none: 2**bits - 1 steps.",
        ),
        Mistake(
            "toward zero",
            partial(to_groups, whole_of=lambda g, least, s, bits: ((g - least) / s).trunc()),
            "The numbers are cut off behind the point: .to(torch.uint8) does that to whatever is"
            " there, and floor and // do it, too. All weights come out too small. Round to the"
            " nearest first: .round().",
        ),
        Mistake(
            "up",
            partial(to_groups, whole_of=lambda g, least, s, bits: ((g - least) / s).ceil()),
            "All numbers are rounded up (ceil). Round to the nearest: .round().",
        ),
        Mistake(
            "groups across rows",
            _across,
            "The groups go on in the next row: the matrix was flattened before it was cut. Rows"
            " belong to different outputs and may have very different sizes. Cut each row by"
            " itself; its last group may be shorter.",
        ),
        Mistake(
            "groups down the columns",
            _down,
            "The groups go down the columns: numbers of different rows share a scale. Neighbours in"
            " a *row* do: weight.split(size, dim=1).",
        ),
        Mistake(
            "not neighbours",
            _apart,
            "The numbers of a group do not stand beside each other in the row. The axis of the"
            " groups comes first and the axis in the group last: (n, groups, size).",
        ),
        Mistake(
            "filled with zeros",
            _padded,
            "The shorter last group is filled with zeros, and they count as numbers of the group:"
            " its least or largest number is then 0. Take only the numbers that are there.",
        ),
        Mistake(
            "rest left off",
            lambda weight, size, bits: to_groups(
                weight[:, : max(weight.shape[1] // size, 1) * size], size, bits
            ),
            "What is left over at the end of a row is missing. It is a group, too, a shorter one.",
        ),
        Mistake(
            "rest in the group before",
            _in_last_group,
            "What is left over at the end of a row went into the group before. It is a group of its"
            " own, a shorter one.",
        ),
        Mistake(
            "one group a row",
            partial(to_groups, cut=lambda w, size: (w,)),
            "Each row is one group, whatever `size` says. Then one large number makes all steps of"
            " its row large.",
        ),
        Mistake(
            "one group for all",
            lambda weight, size, bits: _across(weight, weight.numel(), bits),
            "The whole matrix is one group. Take the least and the largest number of each group of"
            " `size` neighbours.",
        ),
        Mistake(
            "scale and least exchanged",
            partial(to_groups, give=lambda whole, scale, least: (whole, least, scale)),
            "The scales and the least numbers are exchanged. Return whole, scale, least.",
        ),
        Mistake(
            "least forgotten",
            partial(
                to_groups,
                whole_of=lambda g, least, s, bits: (g / s).round().clamp(0, 2**bits - 1),
            ),
            "The least number is not subtracted before the division. So what is negative has become"
            " 0. A number is scale * whole + least, so whole is (number - least) / scale, rounded.",
        ),
        Mistake(
            "least forgotten, wrapped",
            partial(to_groups, whole_of=lambda g, least, s, bits: (g / s).round()),
            "The least number is not subtracted before the division. What is negative does not fit"
            " into uint8. A number is scale * whole + least, so whole is (number - least) / scale,"
            " rounded.",
        ),
        Mistake(
            "zero point",
            partial(
                to_groups, whole_of=_zero_point, told=lambda least, scale: -(least / scale).round()
            ),
            "You return zero points: whole numbers that stand for 0. That is another good way. Here"
            " the least number itself is kept, as in the files of this lesson: number = scale *"
            " whole + least.",
        ),
        Mistake(
            "rounded twice",
            partial(to_groups, whole_of=_zero_point),
            "number / scale and least / scale are rounded each by itself, and then subtracted. That"
            " rounds twice. Subtract first: ((number - least) / scale).round().",
        ),
        Mistake(
            "the middle",
            partial(
                to_groups,
                told=lambda least, scale: least + 8 * scale,
            ),
            "What you return as the least number is that of the whole number 8, the middle. Return"
            " the one that a 0 stands for, the least.",
        ),
        Mistake(
            "the largest number",
            partial(
                to_groups,
                low=lambda g: g.amax(dim=1, keepdim=True),
                whole_of=lambda g, most, s, bits: ((g - g.amin(dim=1, keepdim=True)) / s).round(),
            ),
            "You return the largest numbers as the least ones. A 0 stands for the least number of"
            " its group.",
        ),
        Mistake(
            "from the size",
            partial(
                to_groups,
                low=lambda g: -g.abs().amax(dim=1, keepdim=True),
                width=lambda g, least: -2 * least,
            ),
            "The steps go from minus the largest size to the largest size. Where a group lies on"
            " one side of 0, half of them are never used. Let them go from the group's least to its"
            " largest number.",
        ),
        Mistake(
            "the sign forgotten",
            partial(to_groups, low=lambda g: g.abs().amin(dim=1, keepdim=True)),
            "As the least number you take the one that is nearest to 0 (.abs()). The least one is"
            " the one farthest to the left: .amin without .abs().",
        ),
        Mistake(
            "one by the scale",
            partial(
                to_groups,
                give=lambda whole, scale, least: (whole, 1 / scale.clamp(min=SMALL), least),
            ),
            "The scales are upside down. The scale is the size of one step: (largest - least) /"
            " (2**bits - 1).",
        ),
        Mistake(
            "the whole way",
            lambda weight, size, bits: to_groups(
                weight,
                size,
                bits,
                give=lambda whole, scale, least: (whole, (2**bits - 1) * scale, least),
            ),
            "The whole numbers are right, but what you return as scales is the way from the least"
            " to the largest number. The scale is one step of it: divided by 2**bits - 1.",
        ),
        Mistake(
            "signed",
            partial(
                to_groups,
                stored=lambda q, bits: _wrapped(q - 2 ** (bits - 1), torch.int8),
            ),
            "The whole numbers are made signed: half of the range is subtracted. Here they are"
            " counted from the least number, which is 0, and stored as torch.uint8.",
        ),
        *(
            Mistake(
                f"stored as {kind}",
                partial(to_groups, stored=lambda q, bits, kind=kind: _wrapped(q, kind)),
                f"The whole numbers are stored as {kind}. They have no sign and fit into one byte:"
                " .to(torch.uint8).",
            )
            for kind in (torch.float32, torch.int32, torch.int64, torch.int8)
        ),
    ),
    crashes=tuple(
        Mistake(
            f"whole groups alone, by {name}",
            cut,
            "A row need not have a whole number of groups: its last one may be shorter. So no axis"
            " of length `size` can be made of it. weight.split(size, dim=1) gives the groups, the"
            " last one as long as it is.",
        )
        for name, cut in {
            "unflatten": lambda weight, size, bits: to_groups(
                weight.unflatten(1, (-1, size)).flatten(1), size, bits
            ),
            "view": lambda weight, size, bits: to_groups(
                weight.view(len(weight), -1, size).flatten(1), size, bits
            ),
            "reshape": lambda weight, size, bits: to_groups(
                weight.reshape(len(weight), -1, size).flatten(1), size, bits
            ),
            "view, counted": lambda weight, size, bits: to_groups(
                weight.view(len(weight), weight.shape[1] // size, size).flatten(1), size, bits
            ),
            "reshape, counted": lambda weight, size, bits: to_groups(
                weight.reshape(len(weight), weight.shape[1] // size, size).flatten(1), size, bits
            ),
        }.items()
    ),
    hints=(
        "For one group of a row: which number does 0 stand for, and which one 2**bits - 1? How"
        " large is then a step?",
        "for group in weight.split(size, dim=1): gives (n, size) at a time, and at the end what is"
        " left. Collect whole, scale and least in three lists, with keepdim=True, and put each"
        " together with torch.cat(list, dim=1).",
        "least = group.amin(dim=1, keepdim=True); scale = (group.amax(dim=1, keepdim=True) - least)"
        " / (2**bits - 1); whole = ((group - least) / scale.clamp(min=1e-12)).round()"
        ".to(torch.uint8).",
    ),
)


# --- unpack_q8_0 ----------------------------------------------------------------------------------


def _bytes(blocks: int, header: list[list[float]], size: int, seed: int) -> Tensor:
    """Blocks of random bytes behind float16 numbers: uint8 (blocks, 2 * numbers + size)."""
    numbers = torch.tensor(header, dtype=torch.float16).view(torch.uint8)
    random = torch.Generator().manual_seed(seed)
    stored = torch.randint(256, (blocks, size), dtype=torch.uint8, generator=random)
    return torch.cat((numbers.view(blocks, -1), stored), dim=1)


def _little(two_bytes: Tensor, kind: torch.dtype = torch.float16) -> Tensor:
    return two_bytes.contiguous().view(kind).float()


def _big(two_bytes: Tensor) -> Tensor:
    return _little(two_bytes.flip(1))


_HALVES = (
    (
        "the bytes of the scale exchanged",
        _big,
        "The two bytes of a float16 number are exchanged. The file stores the lower byte first"
        " (little-endian), as your processor does: .view(torch.float16) on the bytes as they are.",
    ),
    (
        "bfloat16",
        lambda two_bytes: _little(two_bytes, torch.bfloat16),
        "The two bytes are read as bfloat16. In these blocks they are a float16 number:"
        " .view(torch.float16).",
    ),
    (
        "a whole number of two bytes",
        lambda two_bytes: _little(two_bytes, torch.int16),
        "The two bytes are read as a whole number. They are a float16 number:"
        " .view(torch.float16).",
    ),
    (
        "a value in place of bytes",
        lambda two_bytes: two_bytes[:, :1].float(),
        "The byte is taken as a number of its own (.to, .half() or .float() turn its value into"
        " another type). Two bytes together are one number: .view(torch.float16) reads the same"
        " bytes in another way.",
    ),
)


def unpack_q8_0(
    blocks: Tensor,
    *,
    half: Callable[[Tensor], Tensor] = _little,
    whole_of: Callable[[Tensor], Tensor] = lambda stored: stored.view(torch.int8).float(),
    join: Callable[[Tensor, Tensor], Tensor] = lambda scale, whole: scale * whole,
) -> Tensor:
    """uint8 (m, 34) -> float32 (m, 32). Right, or with one thing changed."""
    return join(half(blocks[:, :2]), whole_of(blocks[:, 2:].contiguous()))


UNPACK_Q8_0 = Exercise(
    name="unpack_q8_0",
    reference=gguf.q8_0,
    cases=lambda: [
        (_bytes(3, [[0.25], [1.5], [0.37]], 32, seed=1),),
        (_bytes(5, [[0.11], [2.5], [0.03], [0.5], [-1.0]], 32, seed=2),),
    ],
    axes="m number",
    checked="the numbers of 3 and of 5 blocks of random bytes, in float32; inputs unchanged",
    mistakes=(
        Mistake(
            "without a sign",
            partial(unpack_q8_0, whole_of=lambda stored: stored.float()),
            "The whole numbers are read without a sign: -1 is stored as 255, and you take it for"
            " 255. .view(torch.int8) reads the same bytes with a sign.",
        ),
        Mistake(
            "128 subtracted",
            partial(unpack_q8_0, whole_of=lambda stored: stored.float() - 128),
            "128 is subtracted. Some formats store a number with 128 added; this one stores the"
            " bytes of int8: .view(torch.int8).",
        ),
        *(Mistake(name, partial(unpack_q8_0, half=half), says) for name, half, says in _HALVES),
        Mistake(
            "scale at the end",
            lambda blocks: _little(blocks[:, 32:]) * blocks[:, :32].contiguous().view(torch.int8),
            "The scale is read from the last two bytes of a block. It stands in front: bytes 0 and"
            " 1, and then 32 numbers.",
        ),
        Mistake(
            "begun too early",
            partial(
                unpack_q8_0,
                join=lambda scale, whole: (
                    scale * torch.cat((scale.half().view(torch.int8).float(), whole[:, :30]), dim=1)
                ),
            ),
            "The bytes of the scale are read as numbers, too, and the last two numbers are missing."
            " The numbers begin at byte 2.",
        ),
        Mistake(
            "one scale for all",
            partial(unpack_q8_0, half=lambda two_bytes: _little(two_bytes[:1])),
            "All blocks get the scale of the first one. Each block has its own:"
            " blocks[:, :2], not blocks[0, :2].",
        ),
        Mistake(
            "127 subtracted",
            partial(unpack_q8_0, whole_of=lambda stored: stored.float() - 127),
            "127 is subtracted. This format adds nothing to its numbers; it stores the bytes of"
            " int8: .view(torch.int8).",
        ),
        Mistake(
            "sign and size",
            partial(
                unpack_q8_0,
                whole_of=lambda stored: torch.where(
                    stored > 127, 128 - stored.float(), stored.float()
                ),
            ),
            "The first bit is read as a sign and the other seven as the size. In int8 -1 is 255:"
            " .view(torch.int8) knows that.",
        ),
        Mistake(
            "added",
            partial(unpack_q8_0, join=lambda scale, whole: scale + whole),
            "The scale is added. A number is scale * whole.",
        ),
        Mistake(
            "divided",
            partial(unpack_q8_0, join=lambda scale, whole: whole / scale),
            "The whole numbers are divided by the scale. A number is scale * whole.",
        ),
        Mistake(
            "scale forgotten",
            partial(unpack_q8_0, join=lambda scale, whole: whole),
            "The scale plays no part. A number is scale * whole.",
        ),
        Mistake(
            "left in float16",
            partial(unpack_q8_0, join=lambda scale, whole: scale.half() * whole.half()),
            "The product is float16, with three digits. Make the scale float32 first (.float()),"
            " then multiply.",
        ),
        Mistake(
            "rounded to float16",
            partial(unpack_q8_0, join=lambda scale, whole: (scale.half() * whole.half()).float()),
            "The product is computed in float16, with three digits, and only then made float32."
            " Make the scale float32 first (.float()), then multiply.",
        ),
        Mistake(
            "flattened",
            lambda blocks: unpack_q8_0(blocks).flatten(),
            "All numbers come in one row. Return a row for each block, (m, 32).",
        ),
    ),
    hints=(
        "A block is 34 bytes: blocks[:, :2] is the scale of each, blocks[:, 2:] are its 32"
        " numbers.",
        ".view(kind) reads the same bytes as another kind of number: two bytes as one"
        " torch.float16, one byte as one torch.int8. It changes no byte. (.to(kind) would keep the"
        " value.)",
        "scale = blocks[:, :2].view(torch.float16).float(); whole = blocks[:, 2:].view(torch.int8);"
        " the result is scale * whole.",
    ),
)


# --- unpack_q4_1 ----------------------------------------------------------------------------------


def unpack_q4_1(
    blocks: Tensor,
    *,
    half: Callable[[Tensor], Tensor] = _little,
    header: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda b: (b[:, :2], b[:, 2:4]),
    low: Callable[[Tensor], Tensor] = lambda packed: packed & 15,
    high: Callable[[Tensor], Tensor] = lambda packed: packed >> 4,
    order: Callable[[Tensor, Tensor], Tensor] = lambda low, high: torch.cat((low, high), dim=1),
    sign: Callable[[Tensor], Tensor] = lambda whole: whole,
    join: Callable = lambda scale, least, whole: scale * whole + least,
) -> Tensor:
    """uint8 (m, 20) -> float32 (m, 32). Right, or with one thing changed."""
    scale, least = map(half, header(blocks))
    packed = blocks[:, 4:].contiguous()
    whole = order(low(packed).float(), high(packed).float())
    return join(scale, least, sign(whole))


_BLOCKS = [[0.25, -2], [1.5, -11], [0.37, 0.5], [0.11, -0.8], [2.5, 3]]

UNPACK_Q4_1 = Exercise(
    name="unpack_q4_1",
    reference=gguf.q4_1,
    cases=lambda: [
        (_bytes(3, _BLOCKS[:3], 16, seed=3),),
        (_bytes(5, _BLOCKS, 16, seed=4),),
    ],
    axes="m number",
    checked="the numbers of 3 and of 5 blocks of random bytes, in float32; inputs unchanged",
    mistakes=(
        Mistake(
            "nibbles exchanged",
            partial(unpack_q4_1, order=lambda low, high: torch.cat((high, low), dim=1)),
            "The halves of the bytes are exchanged: the upper ones come first. Numbers 0 to 15 are"
            " the lower halves (byte & 15), numbers 16 to 31 the upper ones (byte >> 4).",
        ),
        Mistake(
            "neighbours",
            partial(
                unpack_q4_1, order=lambda low, high: torch.stack((low, high), dim=2).flatten(1)
            ),
            "The two halves of a byte become neighbours, numbers 2i and 2i + 1. Here byte i holds"
            " the numbers i and i + 16: first the lower halves of all bytes, then the upper ones.",
        ),
        Mistake(
            "neighbours, exchanged",
            partial(
                unpack_q4_1, order=lambda low, high: torch.stack((high, low), dim=2).flatten(1)
            ),
            "The two halves of a byte become neighbours, the upper one first. Here byte i holds the"
            " numbers i (its lower half) and i + 16 (its upper half).",
        ),
        Mistake(
            "scale and least exchanged",
            partial(unpack_q4_1, header=lambda b: (b[:, 2:4], b[:, :2])),
            "The scale and the least number are exchanged. The scale stands in bytes 0 and 1, the"
            " least number in bytes 2 and 3.",
        ),
        *(Mistake(name, partial(unpack_q4_1, half=half), says) for name, half, says in _HALVES),
        Mistake(
            "8 subtracted",
            partial(unpack_q4_1, sign=lambda whole: whole - 8),
            "8 is subtracted from the whole numbers. That belongs to Q4_0, which has no least"
            " number. Here they are counted from the least one: scale * whole + least.",
        ),
        Mistake(
            "with a sign",
            partial(unpack_q4_1, sign=lambda whole: whole - 16 * (whole > 7)),
            "The whole numbers are read with a sign: what is larger than 7 became negative. They go"
            " from 0 to 15.",
        ),
        Mistake(
            "shifted with the sign",
            partial(unpack_q4_1, high=lambda packed: packed.view(torch.int8) >> 4),
            "The upper halves are shifted in int8. There >> keeps the sign, and what is larger than"
            " 7 becomes negative. Leave the bytes uint8.",
        ),
        Mistake(
            "least subtracted",
            partial(unpack_q4_1, join=lambda scale, least, whole: scale * whole - least),
            "The least number is subtracted. Some formats (Q4_K) store it with the other sign; in"
            " Q4_1 it is added: scale * whole + least.",
        ),
        Mistake(
            "least scaled",
            partial(unpack_q4_1, join=lambda scale, least, whole: scale * (whole + least)),
            "The least number is multiplied by the scale, too. It is a number as it is: scale *"
            " whole + least, without brackets around the sum.",
        ),
        Mistake(
            "least missing",
            partial(unpack_q4_1, join=lambda scale, least, whole: scale * whole),
            "The least number is missing: scale * whole + least.",
        ),
        Mistake(
            "scale missing",
            partial(unpack_q4_1, join=lambda scale, least, whole: whole + least),
            "The scale plays no part: scale * whole + least.",
        ),
        Mistake(
            "upper halves not shifted",
            partial(unpack_q4_1, high=lambda packed: packed & 240),
            "The upper halves stay where they are, so they are 16 times too large. Shift them down:"
            " byte >> 4.",
        ),
        Mistake(
            "lower halves not cut out",
            partial(unpack_q4_1, low=lambda packed: packed),
            "For the lower halves you take the whole bytes. Keep their lower four bits: byte & 15.",
        ),
        Mistake(
            "lower halves alone",
            partial(unpack_q4_1, high=lambda packed: packed & 15),
            "The lower halves are used twice. The upper halves are byte >> 4.",
        ),
        *(
            Mistake(
                f"numbers from byte {start}",
                lambda blocks, start=start: unpack_q4_1(
                    torch.cat((blocks[:, :4], blocks[:, start : start + 16]), dim=1)
                ),
                f"The 16 bytes of the numbers are taken from byte {start} on. They begin at byte 4:"
                " blocks[:, 4:].",
            )
            for start in (2, 3)
        ),
        Mistake(
            "as Q4_0 from byte 2",
            lambda blocks: unpack_q4_1(
                torch.cat((blocks[:, :4], blocks[:, 2:18]), dim=1),
                join=lambda scale, least, whole: scale * whole,
            ),
            "The 16 bytes behind the scale are read as numbers, and no least number is added. Bytes"
            " 2 and 3 are the least number, and the numbers begin at byte 4.",
        ),
        Mistake(
            "parts of 15",
            partial(unpack_q4_1, sign=lambda whole: whole / 15),
            "The whole numbers are divided by 15. The scale is one step already, the 15th part of"
            " the way: scale * whole + least.",
        ),
        Mistake(
            "8 subtracted from bytes",
            partial(unpack_q4_1, sign=lambda whole: (whole - 8) % 256),
            "8 is subtracted from numbers of uint8, where 0 - 8 is 248. And nothing is subtracted"
            " in Q4_1: they are counted from the least number.",
        ),
        Mistake(
            "three bits",
            partial(unpack_q4_1, low=lambda packed: packed & 7),
            "& 7 keeps three bits. Four are byte & 15.",
        ),
        Mistake(
            "header at the end",
            lambda blocks: unpack_q4_1(torch.cat((blocks[:, 16:], blocks[:, :16]), dim=1)),
            "The scale and the least number are read from the end of the block. They stand in"
            " front: bytes 0 to 3, and then 16 bytes of numbers.",
        ),
        Mistake(
            "one header for all",
            partial(unpack_q4_1, header=lambda b: (b[:1, :2], b[:1, 2:4])),
            "All blocks get the scale and the least number of the first one. Each block has its"
            " own: blocks[:, :2], not blocks[0, :2].",
        ),
        Mistake(
            "blocks mixed",
            partial(
                unpack_q4_1,
                order=lambda low, high: torch.cat((low, high), dim=0).reshape(len(low), 32),
            ),
            "Numbers of different blocks are mixed: the halves are put together along the axis of"
            " the blocks. torch.cat(..., dim=1) keeps each block in its row.",
        ),
        Mistake(
            "left in float16",
            partial(
                unpack_q4_1,
                join=lambda scale, least, whole: scale.half() * whole.half() + least.half(),
            ),
            "The result is float16, with three digits. Make scale and least float32 first"
            " (.float()).",
        ),
        Mistake(
            "rounded to float16",
            partial(
                unpack_q4_1,
                join=lambda scale, least, whole: (
                    scale.half() * whole.half() + least.half()
                ).float(),
            ),
            "It is computed in float16, with three digits, and only then made float32. Make scale"
            " and least float32 first (.float()).",
        ),
        Mistake(
            "flattened",
            lambda blocks: unpack_q4_1(blocks).flatten(),
            "All numbers come in one row. Return a row for each block, (m, 32).",
        ),
    ),
    hints=(
        "A block is 20 bytes: two of the scale, two of the least number, and 16 that hold two whole"
        " numbers each.",
        "byte & 15 keeps the lower four bits, byte >> 4 brings the upper four down. In which order"
        " do the 32 numbers come? First all lower halves.",
        "scale, least = (blocks[:, i : i + 2].view(torch.float16).float() for i in (0, 2)); packed"
        " = blocks[:, 4:]; whole = torch.cat((packed & 15, packed >> 4), dim=1); scale * whole +"
        " least.",
    ),
)


# --- pack_q4_1 ------------------------------------------------------------------------------------


def _numbers() -> list[tuple]:
    first, second = _random(3, 32, seed=0), _random(5, 32, seed=268)
    # So far from 0 that float16 moves the least number by more than a step, up or down.
    second[:2] += torch.tensor([[3000.0], [-2000]])
    second[2] *= 50
    second[3] = 0.75
    second[4] *= 5e-6  # so small that float16 moves the scale
    tiny = 1e-7 * _random(2, 32, seed=1)  # so small that float16 has only 0 for the scale
    return [(first,), (second,), (tiny,)]


def _nibbles(low: Tensor, high: Tensor) -> Tensor:
    return low | high << 4


def _in_bytes(low: Tensor, high: Tensor) -> Tensor:
    return _wrapped(low, torch.uint8) | _wrapped(high, torch.uint8) << 4


def _exact(exact: Tensor, kept: Tensor) -> Tensor:
    return exact


def pack_q4_1(
    numbers: Tensor,
    *,
    low: Callable[[Tensor], Tensor] = lambda x: x.amin(dim=1, keepdim=True),
    width: Callable[[Tensor, Tensor], Tensor] = lambda x, kept: (
        x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True)
    ),
    steps: float = 15,
    kept: Callable[[Tensor], Tensor] = lambda x: x.half().float(),
    by_scale: Callable[[Tensor, Tensor], Tensor] = lambda exact, kept: kept,
    by_least: Callable[[Tensor, Tensor], Tensor] = lambda exact, kept: kept,
    exact: Callable[[Tensor], Tensor] = lambda x: x,
    whole_of: Callable[[Tensor], Tensor] = torch.round,
    limit: Callable[[Tensor], Tensor] = lambda q: q.clamp(0, 15),
    order: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda q: (q[:, :16], q[:, 16:]),
    both: Callable[[Tensor, Tensor], Tensor] = _nibbles,
    half: Callable[[Tensor], Tensor] = lambda x: x.half().view(torch.uint8),
    join: Callable = lambda scale, least, packed: (scale, least, packed),
) -> Tensor:
    """float32 (m, 32) -> uint8 (m, 20). Right, or with one thing changed."""
    least = low(numbers)
    scale = width(numbers, kept(least)) / steps
    step = by_scale(scale, kept(scale))
    steps_up = (exact(numbers) - by_least(least, kept(least))) / step.clamp(min=SMALL)
    whole = whole_of(steps_up.masked_fill(step == 0, 0).float())
    packed = _wrapped(both(*order(limit(whole).long())), torch.uint8)
    return torch.cat(join(half(scale), half(least), packed), dim=1)


PACK_Q4_1 = Exercise(
    name="pack_q4_1",
    transfer=True,
    reference=pack_q4_1,
    cases=_numbers,
    axes="m byte",
    checked=(
        "every byte of 3, 5 and 2 blocks: numbers around 0, numbers so far from 0 that float16"
        " moves their least one, equal and tiny numbers; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "measured before they were rounded",
            partial(pack_q4_1, by_scale=_exact, by_least=_exact),
            "The whole numbers belong to the scale and the least number as they were before they"
            " became float16. Whoever reads the block has only what is stored. Round both to"
            " float16 first, and measure with these.",
        ),
        Mistake(
            "measured with a scale before it was rounded",
            lambda numbers: pack_q4_1(numbers, by_scale=_exact),
            "The whole numbers belong to the scale as it was before it became float16. Whoever"
            " reads the block has only what is stored: measure with the rounded one.",
        ),
        Mistake(
            "measured from a least number before it was rounded",
            lambda numbers: pack_q4_1(numbers, by_least=_exact),
            "The whole numbers are counted from the least number as it was before it became"
            " float16. Whoever reads the block has only what is stored: subtract the rounded one.",
        ),
        Mistake(
            "not limited",
            partial(
                pack_q4_1,
                limit=lambda q: q,
                both=lambda low, high: (
                    _wrapped(low, torch.uint8) | _wrapped(high, torch.uint8) << 4
                ),
            ),
            "Some whole numbers are below 0 or above 15, because float16 has moved the least number"
            " by more than a step. Four bits cannot hold them, and they spoil their neighbour's"
            " bits, too. Limit them: .clamp(0, 15).",
        ),
        Mistake(
            "not limited, added",
            partial(pack_q4_1, limit=lambda q: q, both=lambda low, high: low + 16 * high),
            "Some whole numbers are below 0 or above 15, because float16 has moved the least number"
            " by more than a step. Four bits cannot hold them, and they spoil their neighbour's"
            " bits, too. Limit them: .clamp(0, 15).",
        ),
        Mistake(
            "limited above alone",
            partial(pack_q4_1, limit=lambda q: q.clamp(max=15), both=_in_bytes),
            "Some whole numbers are below 0, because float16 has moved the least number by more"
            " than a step. Limit them on both sides: .clamp(0, 15).",
        ),
        Mistake(
            "limited above alone, added",
            partial(
                pack_q4_1, limit=lambda q: q.clamp(max=15), both=lambda low, high: low + 16 * high
            ),
            "Some whole numbers are below 0, because float16 has moved the least number by more"
            " than a step. Limit them on both sides: .clamp(0, 15).",
        ),
        Mistake(
            "limited below alone",
            partial(pack_q4_1, limit=lambda q: q.clamp(min=0), both=_in_bytes),
            "Some whole numbers are above 15, because float16 has moved the least number by more"
            " than a step. Limit them on both sides: .clamp(0, 15).",
        ),
        Mistake(
            "wrapped to four bits",
            partial(pack_q4_1, limit=lambda q: q.long() & 15),
            "Some whole numbers are below 0 or above 15, because float16 has moved the least number"
            " by more than a step. Cut to four bits, -1 becomes 15, the other end. Limit them:"
            " .clamp(0, 15).",
        ),
        Mistake(
            "scale from the stored least",
            partial(
                pack_q4_1, width=lambda x, kept: (x.amax(dim=1, keepdim=True) - kept).clamp(min=0)
            ),
            "The scale is measured from the least number as it is stored. Here it comes from the"
            " numbers themselves, (largest - least) / 15, and only then both become float16.",
        ),
        Mistake(
            "toward zero",
            partial(pack_q4_1, whole_of=torch.trunc),
            "The whole numbers are cut off behind the point: .to(torch.uint8) does that to whatever"
            " is there, and floor and // do it, too. Round to the nearest first: .round().",
        ),
        Mistake(
            "16 steps",
            partial(pack_q4_1, steps=16),
            "The way from the least to the largest number is divided by 16. From 0 to 15 there are"
            " 15 steps.",
        ),
        Mistake(
            "nibbles exchanged",
            partial(pack_q4_1, both=lambda low, high: high | low << 4),
            "The halves of the bytes are exchanged. Byte i holds number i in its lower half and"
            " number i + 16 in its upper half: low | high << 4.",
        ),
        Mistake(
            "neighbours",
            partial(pack_q4_1, order=lambda q: (q[:, ::2], q[:, 1::2])),
            "Each byte holds two neighbours, numbers 2i and 2i + 1. Here byte i holds the numbers i"
            " and i + 16.",
        ),
        Mistake(
            "neighbours, exchanged",
            partial(pack_q4_1, order=lambda q: (q[:, 1::2], q[:, ::2])),
            "Each byte holds two neighbours, the first one in the upper half. Here byte i holds"
            " number i in its lower half and number i + 16 in its upper half.",
        ),
        Mistake(
            "upper halves not shifted",
            partial(pack_q4_1, both=lambda low, high: low | high),
            "Both whole numbers lie on the same four bits. Shift the second one up: high << 4, or"
            " 16 * high.",
        ),
        Mistake(
            "ten times",
            partial(pack_q4_1, both=lambda low, high: low + 15 * high),
            "The upper number is multiplied by 15. Four bits are a factor of 16: 16 * high, or high"
            " << 4.",
        ),
        Mistake(
            "not packed",
            partial(pack_q4_1, both=lambda low, high: torch.cat((low, high), dim=1)),
            "Each whole number has a byte of its own. Four bits are enough for it: put two into a"
            " byte, low | high << 4.",
        ),
        Mistake(
            "scale and least exchanged",
            partial(pack_q4_1, join=lambda scale, least, packed: (least, scale, packed)),
            "The least number comes first. In the block the scale is bytes 0 and 1, the least"
            " number bytes 2 and 3.",
        ),
        Mistake(
            "header at the end",
            partial(pack_q4_1, join=lambda scale, least, packed: (packed, scale, least)),
            "The scale and the least number stand at the end of the block. They come first.",
        ),
        Mistake(
            "header at the end, exchanged",
            partial(pack_q4_1, join=lambda scale, least, packed: (packed, least, scale)),
            "The least number and the scale stand at the end of the block. They come first, the"
            " scale before the least number.",
        ),
        Mistake(
            "stored as bfloat16",
            partial(pack_q4_1, half=lambda x: x.half().bfloat16().view(torch.uint8)),
            "The scale and the least number are stored as bfloat16. The format wants float16:"
            " .half().",
        ),
        Mistake(
            "a scale of 1 for equal numbers",
            partial(
                pack_q4_1,
                width=lambda x, kept: (
                    x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True)
                ).masked_fill((x == x[:, :1]).all(dim=1, keepdim=True), 15.0),
            ),
            "A block of equal numbers gets another scale than 0. The reader would not mind, but the"
            " scale is (largest - least) / 15. Only in your division something else must stand for"
            " it.",
        ),
        Mistake(
            "computed in float16",
            partial(
                pack_q4_1,
                exact=lambda x: x.half().float(),
            ),
            "The numbers themselves become float16 before they are measured. Only the scale and the"
            " least number do: make these float32 again (.float()) and subtract from the numbers as"
            " they are.",
        ),
        Mistake(
            "8 subtracted",
            partial(pack_q4_1, both=lambda low, high: _in_bytes(low - 8, high - 8)),
            "8 is subtracted from the whole numbers, and what is negative spoils its neighbour's"
            " bits. They are counted from the least number, 0 to 15.",
        ),
        Mistake(
            "one least number for all",
            lambda numbers: pack_q4_1(numbers, low=lambda x: x.amin().expand(len(x), 1)),
            "All blocks share one least number. Each block has its own: amin(dim=1, keepdim=True).",
        ),
        Mistake(
            "values in one byte",
            partial(pack_q4_1, half=lambda x: _wrapped(x, torch.uint8)),
            "The scale and the least number are turned into whole numbers of one byte. Their bytes"
            " are wanted: .half().view(torch.uint8).",
        ),
        Mistake(
            "bfloat16",
            lambda numbers: pack_q4_1(
                numbers,
                kept=lambda x: x.bfloat16().float(),
                half=lambda x: x.bfloat16().view(torch.uint8),
            ),
            "The scale and the least number are stored as bfloat16. The format wants float16:"
            " .half().",
        ),
        Mistake(
            "bytes exchanged",
            partial(pack_q4_1, half=lambda x: x.half().view(torch.uint8).flip(1)),
            "The two bytes of the float16 numbers are exchanged. The lower byte comes first, as"
            " .view(torch.uint8) gives them.",
        ),
        Mistake(
            "float32 header",
            lambda numbers: pack_q4_1(
                numbers, kept=lambda x: x, half=lambda x: x.contiguous().view(torch.uint8)
            ),
            "The scale and the least number take four bytes each. As float16 they take two: .half()"
            " before .view(torch.uint8).",
        ),
        Mistake(
            "values in place of bytes",
            partial(pack_q4_1, half=lambda x: _wrapped(x.expand(-1, 2), torch.uint8)),
            "The scale and the least number are turned into whole numbers. Their bytes are wanted:"
            " .half().view(torch.uint8).",
        ),
        Mistake(
            "as Q4_0",
            partial(
                pack_q4_1,
                low=lambda x: -x.abs().amax(dim=1, keepdim=True),
                width=lambda x, kept: 2 * x.abs().amax(dim=1, keepdim=True),
            ),
            "The steps go from minus the largest size to the largest size. Here they go from the"
            " block's least to its largest number.",
        ),
    ),
    hints=(
        "First the two numbers that all share: least, and scale = (largest - least) / 15. Round"
        " both to float16 at once. What will the reader compute with them?",
        "whole = (numbers - least) / scale with the rounded two, to the nearest, between 0 and 15."
        " A block of equal numbers has the scale 0: divide by scale.clamp(min=1e-12). Then byte i"
        " is whole[:, i] | whole[:, i + 16] << 4.",
        "scale, least = scale.half(), least.half(), each (m, 1); whole = ((numbers - least.float())"
        " / scale.float().clamp(min=1e-12)).round().clamp(0, 15).to(torch.uint8); and at the end"
        " torch.cat((scale.view(torch.uint8), least.view(torch.uint8), whole[:, :16] | whole[:,"
        " 16:] << 4), dim=1).",
    ),
)

EXERCISES = (TO_INT8, TO_GROUPS, UNPACK_Q8_0, UNPACK_Q4_1, PACK_Q4_1)


# --- at work in trained models --------------------------------------------------------------------

FAR = 0.05  # how much of the exam may be lost by 8 or 4 bits
QUESTION = "What is the capital of France?"


def matrices(model: PaliGemma) -> list[nn.Parameter]:
    """The decoder's matrices and its table: what is read for each token."""
    decoder = model.language_model
    linear = [part.weight for part in decoder.modules() if isinstance(part, nn.Linear)]
    return [*linear, decoder.embed_tokens.weight]


def restored(whole: Tensor, scale: Tensor, least: Tensor, size: int) -> Tensor:
    """What `to_groups` has made, back as float32 (n, d)."""
    columns = torch.arange(whole.shape[1]) // size  # the group of each
    return whole * scale[:, columns] + least[:, columns]


def try_rounding(
    model: PaliGemma,
    processor: Processor,
    to_int8: Callable,
    to_groups: Callable,
    pack_q4_1: Callable,
    each: int = 12,
) -> bool:
    """Round the trained model's decoder with a learner's functions, and let it sit the exam.

    each: questions of every task, about the validation artist's pictures. *correct* if 8 and 4 bits
    lose at most 5 points.
    """
    name = "the small model in whole numbers"

    def rows(weight: Tensor) -> Tensor:
        whole, scale = to_int8(weight)
        return whole * scale[:, None]

    def groups(bits: int) -> Callable[[Tensor], Tensor]:
        return lambda weight: restored(*to_groups(weight, 32, bits), 32)

    def blocks(weight: Tensor) -> Tensor:
        return gguf.q4_1(pack_q4_1(weight.reshape(-1, 32))).view_as(weight)

    ways = {"8 bits, rows": rows, "4 bits, groups": groups(4), "4 bits, your blocks": blocks}
    ways["2 bits, groups"] = groups(2)
    asked = evaluation_set(scenes.VALIDATION_ARTIST, each, seed=19)
    shares = {}
    try:
        for way, rounded in ("32 bits", None), *ways.items():
            learner = copy.deepcopy(model)
            with torch.no_grad():
                for weight in matrices(learner) if rounded else ():
                    weight.copy_(rounded(weight.detach().clone()))
            told = answers(learner, processor, asked)
            right = [score(question, one) for (_, question), one in zip(asked, told, strict=True)]
            shares[way] = float(np.mean(right))
            print(f"{way:20} right {shares[way]:6.1%} of {len(asked)}")
    except BaseException as error:
        show(failed(name, error))
        return False
    before, *after, _ = shares.values()
    lost = before - min(after)
    message = f"With 8 and 4 bits it loses {100 * lost:.1f} points at most, {100 * FAR:.0f} may be"
    well = lost <= FAR
    show(Outcome(name, CORRECT if well else WRONG, f"{message}."))
    return well


class ReadBy(GGUF):
    """A GGUF file whose blocks are unpacked by other functions, by the name of their type."""

    def __init__(self, path, unpack: dict[str, Callable[[Tensor], Tensor]]):
        super().__init__(path)
        self.unpack = unpack

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        unpack = self.unpack.get(entry.kind.name, entry.kind.unpack)
        return unpack(self.blocks(name)).view(entry.shape)


def try_smollm2(unpack_q8_0: Callable, unpack_q4_1: Callable):
    """Read the published SmolLM2 with a learner's functions, and let it answer.

    Returns the model and its tokenizer, or None where it has not been downloaded or a function is
    not right yet.
    """
    from minipali import variants

    name = "SmolLM2, read by you"
    try:
        path = published.find("smollm2")
    except published.PublishedError as error:
        print(f"Without the published model there is nothing to read here. {error}.")
        return None
    try:
        file = ReadBy(path, {"Q8_0": unpack_q8_0, "Q4_1": unpack_q4_1})
        model, tokenizer = variants.load("smollm2")
        with torch.no_grad():
            for key, weight in model.state_dict().items():
                weight.copy_(variants.read_weight(file, key, model.config))
        said = variants.answer(model, tokenizer, QUESTION, max_new_tokens=16)
    except BaseException as error:
        return show(failed(name, error))
    numbers = sum(weight.numel() for weight in model.state_dict().values())
    found = f"{numbers / 1e6:.0f} million numbers of {len(file)} tensors. {QUESTION} {said!r}"
    if "Paris" not in said:
        return show(Outcome(name, WRONG, f"{found}. What does your `check` say?"))
    show(Outcome(name, CORRECT, found))
    return model, tokenizer
