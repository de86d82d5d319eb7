"""Lesson 15: boxes to tokens and back, and how much two boxes have in common."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from minipali import locations, scenes
from minipali.asking import generate
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.evaluation import evaluation_set
from minipali.paligemma import PaliGemma
from minipali.tokens import Processor

# --- box_to_tokens --------------------------------------------------------------------------------


def _boxes() -> list[tuple]:
    # Wide, tall, sticking out on all sides, the whole picture, and no whole pixels.
    return [
        ([37.0, 120.0, 201.0, 413.0], 240, 640),
        ([100.5, 12.0, 911.0, 300.0], 1000, 333),
        ([-12.0, 50.0, 60.0, 131.0], 90, 120),
        ([20.0, -7.5, 96.5, 80.0], 90, 120),
        ([0.0, 0.0, 75.0, 50.0], 75, 50),
        ([3.3, 7.4, 8.8, 21.7], 11, 29),
        ([-30.0, 125.0, -4.0, 140.0], 90, 120),  # altogether outside, above and to the right
    ]


def box_to_tokens(
    box: Sequence[float],
    height: int,
    width: int,
    *,
    steps: int = 1023,
    most: int = 10_000,
    whole: Callable[[float], int] = round,
    sides: Callable[[int, int], tuple[float, float]] = lambda height, width: (height, width),
    inside: Callable[[float], float] = lambda fraction: min(max(fraction, 0.0), 1.0),
    edges: Callable[[float, int], float] = lambda place, side: place,
    order: Sequence[int] = (0, 1, 2, 3),
    read: Callable[[Sequence[float]], Sequence[float]] = lambda box: box,
    last: Callable[[list], list] = lambda numbers: numbers,
) -> list[int]:
    """(y0, x0, y1, x1) in pixels -> four numbers from 0 to 1023.

    The reference, or with one thing changed. edges: (place, its side) -> place, before all else;
    steps: a whole side has, of which the number may be `most`.
    """
    own = (height, width) * 2
    places = [edges(place, side) for place, side in zip(read(box), own, strict=True)]
    fractions = [place / side for place, side in zip(places, sides(height, width) * 2, strict=True)]
    numbers = [whole(inside(fraction) * steps) for fraction in fractions]
    if most < steps:
        numbers = [min(number, most) for number in numbers]
    return last([numbers[i] for i in order])


_MARKS = (
    " There are 1024 numbers, from 0 to 1023, so there are 1023 steps between the first and the"
    " last: round(fraction * 1023)."
)
_OUTSIDE = (
    "A box that sticks out of the picture gets numbers below 0 or above 1023, for which there are"
    " no tokens. Move fractions below 0 to 0 and above 1 to 1: all four, on both sides."
)
_BINS = (
    "The picture is cut into 1024 bins, and each place gets the number of its bin. Other models do"
    " that. PaliGemma's numbers are marks on a ruler." + _MARKS
)
_ONE_SIDE = (
    "Both directions are divided by the same side, as if the picture were filled up to a square or"
    " cut to one. PaliGemma squeezes it into a square: y is a fraction of the height, x of the"
    " width."
)

_LENGTHS = (
    "The last two numbers are the height and the width of the box. PaliGemma says its lower and"
    " right edges: y1 and x1."
)


def _to_lengths(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _corner_by_corner(box: Sequence[float], height: int, width: int) -> list[int]:
    y0, x0, y1, x1 = (edge / side for edge, side in zip(box, (height, width) * 2, strict=True))
    return [round(1023 * place) for place in (max(y0, 0), max(x0, 0), min(y1, 1), min(x1, 1))]


def _corners(
    box: Sequence[float], height: int, width: int, *, whole: Sequence[Callable] = (round, round)
) -> list[int]:
    """Upper left and lower right, each made whole in its own way."""
    first, second = (box_to_tokens(box, height, width, whole=one) for one in whole)
    return first[:2] + second[2:]


def _zeros_outside(box: Sequence[float], height: int, width: int) -> list[int]:
    if box[2] <= 0 or box[3] <= 0 or box[0] >= height or box[1] >= width:
        return [0, 0, 0, 0]
    return box_to_tokens(box, height, width)


def _to_middle(box: Sequence[float]) -> list[float]:
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, *_to_lengths(box)[2:]]


def _from_lengths(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


BOX_TO_TOKENS = Exercise(
    name="box_to_tokens",
    reference=box_to_tokens,
    cases=_boxes,
    axes="",
    checked=(
        "the list of four numbers for 7 boxes, in wide and in tall pictures, for boxes that stick"
        " out of the picture on each of the four sides, for one that lies outside altogether, and"
        " for one that is the whole picture"
    ),
    mistakes=(
        Mistake(
            "x before y",
            partial(box_to_tokens, order=(1, 0, 3, 2)),
            "x comes before y. The order is y0, x0, y1, x1: top, left, bottom, right.",
        ),
        Mistake(
            "both y first",
            partial(box_to_tokens, order=(0, 2, 1, 3)),
            "The order is y0, y1, x0, x1. It must be y0, x0, y1, x1: first the upper left corner,"
            " then the lower right one.",
        ),
        Mistake("height and width of the box", partial(box_to_tokens, last=_to_lengths), _LENGTHS),
        Mistake(
            "height and width of the box, not yet rounded",
            partial(box_to_tokens, read=_to_lengths),
            _LENGTHS,
        ),
        Mistake(
            "middle, height and width of the box",
            partial(box_to_tokens, read=_to_middle),
            "These are the middle of the box, its height and its width. PaliGemma says its four"
            " edges: y0, x0, y1, x1, as they come.",
        ),
        Mistake(
            "read as height and width",
            partial(box_to_tokens, read=_from_lengths),
            "The last two numbers of the box are taken for its height and width. They are its lower"
            " and right edges, y1 and x1: nothing is to be added.",
        ),
        *(
            Mistake(
                f"divided by {square}",
                partial(box_to_tokens, sides=lambda height, width, square=square: (square,) * 2),
                "Places are divided by a fixed number, as if the box were in pixels of the square"
                " that the model sees. It is in pixels of the original picture: divide y by its"
                " height, x by its width.",
            )
            for square in (72, 224)
        ),
        Mistake(
            "times 1024",
            partial(box_to_tokens, steps=1024),
            "The fraction is multiplied by 1024, and at the right and lower edge you get the number"
            " 1024. There is no <loc1024>: it would be cut into pieces of text." + _MARKS,
        ),
        Mistake(
            "times 1024, cut to 1023",
            partial(box_to_tokens, steps=1024, most=1023),
            "The fraction is multiplied by 1024, and only the number 1024 is repaired." + _MARKS,
        ),
        Mistake(
            "1024 bins",
            partial(box_to_tokens, steps=1024, most=1023, whole=int),
            _BINS,
        ),
        Mistake(
            "1024 bins, the last one open",
            partial(box_to_tokens, steps=1024, whole=int),
            _BINS,
        ),
        Mistake(
            "cut off",
            partial(box_to_tokens, whole=int),
            "The numbers are cut off, not rounded: int(0.9) is 0. So a box moves up and to the left"
            " by half a step on average. Use round.",
        ),
        Mistake(
            "rounded up",
            partial(box_to_tokens, whole=math.ceil),
            "The numbers are rounded up. So a box moves down and to the right by half a step on"
            " average. Use round, to the nearest.",
        ),
        *(
            Mistake(
                f"the corners rounded {name}",
                partial(_corners, whole=whole),
                "The upper left corner is rounded in one direction and the lower right one in the"
                " other. Each of the four places goes to the nearest number: round.",
            )
            for name, whole in (
                ("outwards", (math.floor, math.ceil)),
                ("inwards", (math.ceil, math.floor)),
            )
        ),
        Mistake(
            "zeros for a box outside",
            _zeros_outside,
            "A box that lies outside altogether gets four zeros. Each of its places goes to the"
            " nearer edge by itself, and that is 1023 on the lower and on the right side.",
        ),
        Mistake(
            "pixels of the square rounded first",
            partial(
                box_to_tokens, edges=lambda place, side: round(place / side * 224) / 224 * side
            ),
            "The places are made whole pixels of a small square first. That costs many marks. Round"
            " once, at the end.",
        ),
        Mistake(
            "pixels rounded first",
            partial(box_to_tokens, edges=lambda place, side: round(place)),
            "The pixels are rounded before they are divided. In a small picture that costs many"
            " marks. Round once, at the end.",
        ),
        Mistake(
            "pixels cut off first",
            partial(box_to_tokens, edges=lambda place, side: int(place)),
            "The pixels are made whole (int) before they are divided. In a small picture that"
            " costs many marks. Round once, at the end.",
        ),
        Mistake(
            "not whole",
            partial(box_to_tokens, whole=lambda number: number),
            "The numbers are not whole. There are tokens for whole numbers alone: round them to the"
            " nearest.",
        ),
        Mistake(
            "fractions",
            partial(box_to_tokens, steps=1, whole=lambda number: number),
            "These are fractions of the picture. One step is missing: a number from 0 to 1023."
            + _MARKS,
        ),
        Mistake(
            "times 1000",
            partial(box_to_tokens, steps=1000),
            "The fraction is multiplied by 1000. Some other models count so." + _MARKS,
        ),
        Mistake(
            "as text",
            partial(box_to_tokens, whole=lambda number: f"<loc{round(number):04d}>"),
            "These are the tokens as text. Return the four numbers themselves, as ints.",
        ),
        Mistake("left outside", partial(box_to_tokens, inside=lambda fraction: fraction), _OUTSIDE),
        Mistake(
            "left above 1",
            partial(box_to_tokens, inside=lambda fraction: max(fraction, 0)),
            _OUTSIDE,
        ),
        Mistake(
            "left below 0",
            partial(box_to_tokens, inside=lambda fraction: min(fraction, 1)),
            _OUTSIDE,
        ),
        Mistake(
            "each corner on its side",
            _corner_by_corner,
            "y0 and x0 are only kept from going below 0, y1 and x1 only from going past the height"
            " and the width. A box that lies outside altogether then gets numbers for which there"
            " are no tokens. Move each of the four places to the nearer edge, on both sides.",
        ),
        Mistake(
            "mirrored",
            partial(box_to_tokens, inside=lambda fraction: abs(fraction)),
            "A place outside of the picture is mirrored into it (abs). Move it to the edge: a"
            " fraction below 0 becomes 0.",
        ),
        Mistake(
            "cut off at the last pixel",
            partial(box_to_tokens, edges=lambda place, side: min(max(place, 0), side - 1)),
            "Places are moved to side - 1 at most, the number of the last pixel. A box's edges are"
            " places between pixels, and the right edge of the picture is at the full width.",
        ),
        Mistake(
            "side minus 1",
            partial(box_to_tokens, sides=lambda height, width: (height - 1, width - 1)),
            "Places are divided by height - 1 and width - 1, the numbers of the last pixels. A"
            " box's edges are places between pixels, and the lower edge of the picture is at the"
            " full height.",
        ),
        Mistake(
            "height and width exchanged",
            partial(box_to_tokens, sides=lambda height, width: (width, height)),
            "Height and width are exchanged: divide y by the height and x by the width.",
        ),
        Mistake(
            "longer side for both",
            partial(box_to_tokens, sides=lambda height, width: (max(height, width),) * 2),
            _ONE_SIDE,
        ),
        Mistake(
            "shorter side for both",
            partial(box_to_tokens, sides=lambda height, width: (min(height, width),) * 2),
            _ONE_SIDE,
        ),
        Mistake(
            "height for both",
            partial(box_to_tokens, sides=lambda height, width: (height,) * 2),
            _ONE_SIDE,
        ),
        Mistake(
            "width for both",
            partial(box_to_tokens, sides=lambda height, width: (width,) * 2),
            _ONE_SIDE,
        ),
    ),
    hints=(
        "Three steps for each of the four: a fraction of the picture's side, moved into 0 to 1, and"
        " then a whole number.",
        "y0 and y1 are divided by the height, x0 and x1 by the width. min(max(f, 0.0), 1.0) moves a"
        " fraction inside.",
        "round(f * 1023): 0 becomes 0, 1 becomes 1023. Return a list in the order of the box.",
    ),
)


# --- tokens_to_box --------------------------------------------------------------------------------


def _numbers() -> list[tuple]:
    return [
        ([51, 309, 708, 646], 375, 500),
        ([0, 256, 1023, 767], 890, 301),
        ([100, 0, 345, 1023], 31, 17),
    ]


def tokens_to_box(
    numbers: Sequence[int],
    height: int,
    width: int,
    *,
    steps: int = 1023,
    sides: Callable[[int, int], tuple[float, float]] = lambda height, width: (height, width),
    move: Callable[[float, int, int], float] = lambda place, side, other: place,
    last_of_each: Callable[[float], float] = lambda place: place,
    read: Sequence[int] = (0, 1, 2, 3),
    give: Sequence[int] = (0, 1, 2, 3),
    last: Callable[[list], list] = lambda box: box,
) -> list[float]:
    """Four numbers from 0 to 1023 -> (y0, x0, y1, x1) in pixels.

    The reference, or with one thing changed.

    steps: a whole side has; sides: that fractions are multiplied by; move: (pixels, its side, the
    other side) -> pixels; last_of_each: on each place, at the end; read, give: orders of what goes
    in and out.
    """
    own = ((height, width), (width, height)) * 2
    scales = zip(read, sides(height, width) * 2, strict=True)
    scaled = [numbers[i] / steps * side for i, side in scales]
    box = [last_of_each(move(place, *both)) for place, both in zip(scaled, own, strict=True)]
    return last([box[i] for i in give])


_RESIZED = (
    "The result does not depend on the picture's size: it is in pixels of the square that the model"
    " saw. Whoever asked has the original picture, so multiply by *its* height and width."
)

_BARS = (
    "The places are right in square pictures alone: they are computed as if the picture had been"
    " filled up to a square, or cut to one. PaliGemma squeezes it: y is a fraction of the height, x"
    " of the width."
)
_FRACTIONS = "These are fractions of the picture. Multiply them by its height (y) and width (x)."
_WHOLE = (
    "The places are made whole pixels. Leave them as they are: whoever needs whole pixels can round"
    " later."
)

TOKENS_TO_BOX = Exercise(
    name="tokens_to_box",
    reference=tokens_to_box,
    cases=_numbers,
    axes="",
    checked=(
        "the four places in pixels for 3 boxes, in a wide and in two tall pictures, the numbers 0"
        " and 1023 among them"
    ),
    mistakes=(
        Mistake(
            "x read first",
            partial(tokens_to_box, read=(1, 0, 3, 2)),
            "The numbers are read as x0, y0, x1, y1. They come as y0, x0, y1, x1.",
        ),
        Mistake(
            "x given first",
            partial(tokens_to_box, give=(1, 0, 3, 2)),
            "The places are right, but in the order x0, y0, x1, y1. Return y0, x0, y1, x1.",
        ),
        Mistake(
            "divided by 1024",
            partial(tokens_to_box, steps=1024),
            "The numbers are divided by 1024, so no box can reach the right or lower edge. 1023 is"
            " the edge: divide by 1023. (Some demonstrations have this mistake.)",
        ),
        Mistake(
            "fractions",
            partial(tokens_to_box, sides=lambda height, width: (1, 1)),
            _FRACTIONS,
        ),
        Mistake(
            "height and width exchanged",
            partial(tokens_to_box, sides=lambda height, width: (width, height)),
            "Height and width are exchanged: y is a fraction of the height, x of the width.",
        ),
        *(
            Mistake(
                f"pixels of a square of {square}",
                partial(tokens_to_box, sides=lambda height, width, square=square: (square,) * 2),
                _RESIZED,
            )
            for square in (224, 448, 72, 896)  # the first one is tried together with others
        ),
        *(
            Mistake(
                f"x first, {name}",
                partial(
                    tokens_to_box,
                    give=(1, 0, 3, 2),
                    sides=lambda height, width, side=side: (side(height, width),) * 2,
                ),
                f"Two things at once. x stands first: return y0, x0, y1, x1. And: {says}",
            )
            # Where both directions have one side, x read first and x given first are the same.
            for name, side, says in (
                ("a square of 224", lambda height, width: 224, _RESIZED),
                ("fractions", lambda height, width: 1, _FRACTIONS),
                ("longer side", max, _BARS),
                ("shorter side", min, _BARS),
            )
        ),
        Mistake(
            "longer side for both",
            partial(tokens_to_box, sides=lambda height, width: (max(height, width),) * 2),
            _BARS,
        ),
        Mistake(
            "height for both",
            partial(tokens_to_box, sides=lambda height, width: (height,) * 2),
            "All four fractions are multiplied by the height. y is a fraction of the height, x of"
            " the width.",
        ),
        Mistake(
            "width for both",
            partial(tokens_to_box, sides=lambda height, width: (width,) * 2),
            "All four fractions are multiplied by the width. y is a fraction of the height, x of"
            " the width.",
        ),
        Mistake(
            "shorter side for both",
            partial(tokens_to_box, sides=lambda height, width: (min(height, width),) * 2),
            _BARS,
        ),
        Mistake(
            "bars taken off",
            partial(
                tokens_to_box,
                sides=lambda height, width: (max(height, width),) * 2,
                move=lambda place, side, other: place - (max(side, other) - side) / 2,
            ),
            _BARS,
        ),
        Mistake(
            "middle of a bin",
            partial(
                tokens_to_box,
                steps=1024,
                move=lambda place, side, other: place + 0.5 / 1024 * side,
            ),
            "You return the middle of one of 1024 bins. The numbers are marks on a ruler: 0 is one"
            " edge, 1023 the other, and number / 1023 the fraction.",
        ),
        Mistake(
            "a half added",
            partial(tokens_to_box, move=lambda place, side, other: place + 0.5 / 1023 * side),
            "A half is added to each number. The numbers are marks on a ruler: 0 is one edge, 1023"
            " the other, and number / 1023 the fraction.",
        ),
        Mistake(
            "cut off at the last pixel",
            partial(tokens_to_box, move=lambda place, side, other: min(place, side - 1)),
            "Places are moved to side - 1 at most, the number of the last pixel. The number 1023 is"
            " the edge of the picture itself: the full height or width.",
        ),
        Mistake(
            "side minus 1",
            partial(tokens_to_box, sides=lambda height, width: (height - 1, width - 1)),
            "The fractions are multiplied by side - 1, the number of the last pixel. The number"
            " 1023 is the edge of the picture itself: multiply by the full height and width.",
        ),
        Mistake(
            "1024 and side minus 1",
            partial(tokens_to_box, steps=1024, sides=lambda height, width: (height - 1, width - 1)),
            "The numbers are divided by 1024, and then multiplied by side - 1. 1023 is the edge of"
            " the picture: number / 1023, times the full height or width.",
        ),
        Mistake(
            "whole pixels",
            partial(tokens_to_box, last_of_each=lambda place: float(round(place))),
            _WHOLE,
        ),
        Mistake(
            "whole pixels, cut off",
            partial(tokens_to_box, last_of_each=lambda place: float(int(place))),
            _WHOLE,
        ),
        *(
            Mistake(
                f"{decimals} decimals",
                partial(
                    tokens_to_box,
                    last_of_each=lambda place, decimals=decimals: round(place, decimals),
                ),
                "The places are rounded to a few decimals. Leave them as they are: whoever needs"
                " rounder numbers can round later.",
            )
            for decimals in (1, 2)
        ),
        Mistake(
            "both y first",
            partial(tokens_to_box, give=(0, 2, 1, 3)),
            "The places are right, but in the order y0, y1, x0, x1. Return y0, x0, y1, x1.",
        ),
        Mistake(
            "height and width of the box",
            partial(tokens_to_box, last=_to_lengths),
            "The last two numbers are the height and the width of the box. Return its lower and"
            " right edges: y1 and x1.",
        ),
        Mistake(
            "read as height and width",
            partial(tokens_to_box, last=_from_lengths),
            "The last two numbers are taken for the height and width of the box and added to the"
            " first two. They are its lower and right edges themselves.",
        ),
        Mistake(
            "whole fractions",
            lambda numbers, height, width: [
                number // 1023 * side
                for number, side in zip(numbers, (height, width) * 2, strict=True)
            ],
            "// divides and cuts off, so that every number below 1023 becomes 0. Use /.",
        ),
    ),
    hints=(
        "It is the way back: a number becomes a fraction, and the fraction becomes pixels.",
        "The fraction is number / 1023. The model saw a square, but a fraction of the square is the"
        " same fraction of the original picture.",
        "Multiply the first and the third fraction by the height, the second and the fourth by the"
        " width. Return a list of four floats.",
    ),
)


# --- overlap --------------------------------------------------------------------------------------


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _pairs() -> list[tuple]:
    return [
        ([0.0, 3.0, 4.0, 9.0], [1.0, 4.0, 7.0, 10.0]),
        ([10.0, 10.0, 20.0, 14.0], [12.0, 11.0, 15.0, 13.0]),  # one inside the other
        ([12.5, 11.0, 15.0, 13.0], [10.0, 10.5, 20.0, 14.0]),  # and the other way round
        ([0.0, 12.0, 30.0, 22.0], [10.0, 2.0, 20.0, 33.0]),  # a cross
        ([3.5, 20.0, 9.0, 26.5], [1.0, 18.0, 7.0, 24.0]),
        ([2.0, 3.0, 4.5, 9.0], [2.0, 3.0, 4.5, 9.0]),  # the same
        ([0.0, 0.0, 2.0, 3.0], [5.0, 7.0, 9.0, 8.0]),  # apart in both directions
        ([0.0, 0.0, 30.0, 30.0], [32.0, 33.0, 60.0, 70.0]),  # and near, the first one first
        ([32.0, 33.0, 60.0, 70.0], [0.0, 0.0, 30.0, 30.0]),
        ([0.0, 40.0, 30.0, 70.0], [31.0, 0.0, 60.0, 38.0]),
        ([0.0, 0.0, 2.0, 9.0], [4.0, 1.0, 6.0, 5.0]),  # apart in one
        ([1.0, 0.0, 9.0, 2.0], [2.0, 4.0, 5.0, 6.0]),  # and in the other
        ([0.0, 0.0, 3.0, 3.0], [3.0, 0.0, 6.0, 3.0]),  # an edge in common
        ([0.25, 0.5, 0.251, 0.501], [0.25, 0.5, 0.251, 0.501]),  # in fractions, and small
        ([5.0, 5.0, 5.0, 5.0], [2.0, 2.0, 8.0, 9.0]),  # a point inside a box
        ([5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]),  # nothing at all
    ]


def _both_at_least_0(height: float, width: float) -> float:
    return max(height, 0.0) * max(width, 0.0)


def _overlap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    divide: Callable = lambda shared, a, b: shared / (_area(a) + _area(b) - shared),
    clamp: Callable[[float, float], float] = _both_at_least_0,
    more: float = 0.0,
    finish: Callable[[float], float] = lambda value: value,
    read: Callable[[Sequence[float]], Sequence[float]] = lambda box: box,
    empty: Callable[[Sequence[float], Sequence[float]], float] = lambda a, b: 0.0,
    guard: bool = True,
    sides: Callable[[Sequence[float], Sequence[float]], tuple[float, float]] | None = None,
    meet: Callable[[Sequence[float], Sequence[float]], bool] = lambda a, b: True,
) -> float:
    """overlap with one thing changed.

    divide: (shared area, a, b) -> result; more: per side; sides: height and width of what is
    shared; meet: else the result is 0.
    """
    a, b = read(a), read(b)
    height, width = (side + more for side in (sides or _sides)(a, b))
    if not meet(a, b):
        return 0.0
    shared = clamp(height, width)
    if more:
        a, b = ([y0, x0, y1 + more, x1 + more] for y0, x0, y1, x1 in (a, b))
    return finish(divide(shared, a, b)) if shared or not guard else empty(a, b)


def _sides(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    return min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])


def _hull(a: Sequence[float], b: Sequence[float]) -> float:
    return _area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])


def _around(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Height and width of the box around both."""
    return max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])


def _has_corner(a: Sequence[float], b: Sequence[float], number: int = 4) -> bool:
    """Whether one of the first corners of b lies in a."""
    corners = [(b[y], b[x]) for y in (0, 2) for x in (1, 3)][:number]
    return any(a[0] <= y <= a[2] and a[1] <= x <= a[3] for y, x in corners)


def _union(shared: float, a: Sequence[float], b: Sequence[float]) -> float:
    return _area(a) + _area(b) - shared


def _pixels_shared(a: Sequence[float], b: Sequence[float], whole: Callable) -> float:
    cells = [
        {
            (y, x)
            for y in range(whole(box[0]), whole(box[2]))
            for x in range(whole(box[1]), whole(box[3]))
        }
        for box in (a, b)
    ]
    return len(cells[0] & cells[1]) / (len(cells[0] | cells[1]) or 1)


def _of_lines(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The overlaps of heights and of widths, each by itself."""
    height, width = (max(side, 0.0) for side in _sides(a, b))
    return (
        height / (max(a[2], b[2]) - min(a[0], b[0]) or 1),
        width / (max(a[3], b[3]) - min(a[1], b[1]) or 1),
    )


_APART = (
    "Boxes that lie apart share something. The height or the width of what they share comes out"
    " negative, and negative times negative is positive. Make each at least 0 before you multiply."
)
_EXCHANGED = (
    "min and max are exchanged: that is the box around both. What both share begins at the larger"
    " of the two tops and ends at the smaller of the two bottoms."
)
_NO_NUMBER = (
    "Two boxes without any area have the union 0, and 0 / 0 is no number. If nothing is shared,"
    " return 0.0 before you divide."
)
_UNION = (
    "The shared area is in the union twice: it lies in both boxes. Union = area of a + area of b -"
    " shared area."
)

OVERLAP = Exercise(
    name="overlap",
    reference=locations.overlap,
    cases=_pairs,
    axes="",
    checked=(
        "16 pairs of boxes: crossing, one inside the other, the same box twice, apart in two"
        " directions and in one, far and near, with only an edge in common, and without any area"
    ),
    mistakes=(
        Mistake(
            "shared area counted twice",
            partial(_overlap, divide=lambda shared, a, b: shared / (_area(a) + _area(b))),
            _UNION,
        ),
        Mistake(
            "boxes apart", partial(_overlap, clamp=lambda height, width: height * width), _APART
        ),
        Mistake(
            "boxes apart, the result at least 0",
            partial(
                _overlap,
                clamp=lambda height, width: height * width,
                finish=lambda value: max(value, 0.0),
            ),
            _APART,
        ),
        Mistake(
            "boxes apart, the area at least 0",
            partial(_overlap, clamp=lambda height, width: max(height * width, 0.0)),
            _APART,
        ),
        Mistake(
            "boxes apart, lengths without sign",
            partial(_overlap, clamp=lambda height, width: abs(height) * abs(width)),
            "Boxes that lie apart share something: you drop the sign of a height or width below 0"
            " (abs), and that is the gap between the boxes. Make it 0 instead: max(height, 0.0).",
        ),
        Mistake(
            "boxes apart, lengths without sign, the result at least 0",
            partial(
                _overlap,
                clamp=lambda height, width: abs(height) * abs(width),
                divide=lambda shared, a, b: (
                    shared / _union(shared, a, b) if _union(shared, a, b) > 0 else 0.0
                ),
            ),
            "Boxes that lie apart share something: you drop the sign of a height or width below 0"
            " (abs), and that is the gap between the boxes. Make it 0 instead: max(height, 0.0).",
        ),
        Mistake(
            "boxes apart, width alone",
            partial(_overlap, clamp=lambda height, width: height * max(width, 0.0)),
            "The width of the shared part is made at least 0, its height is not: boxes that lie one"
            " above the other get a negative overlap. Make both at least 0.",
        ),
        Mistake(
            "boxes apart, height alone",
            partial(_overlap, clamp=lambda height, width: max(height, 0.0) * width),
            "The height of the shared part is made at least 0, its width is not: boxes that lie"
            " side by side get a negative overlap. Make both at least 0.",
        ),
        *(
            Mistake(
                f"no corner, {name}",
                partial(_overlap, meet=meet),
                "You look whether a corner of one box lies in the other, and give 0 if not. Boxes"
                " can share an area without that: one is inside the other, or they make a cross."
                " Height and width of the shared part say it all.",
            )
            for name, meet in (
                ("b's in a", _has_corner),
                ("a's in b", lambda a, b: _has_corner(b, a)),
                ("one's in the other", lambda a, b: _has_corner(a, b) or _has_corner(b, a)),
                ("b's first one in a", partial(_has_corner, number=1)),
            )
        ),
        *(
            Mistake(
                f"b begins, {name}",
                partial(_overlap, sides=sides),
                "It is right only where the second box begins later and ends later. What both"
                " share begins at max(a[0], b[0]) and ends at min(a[2], b[2]); so do the columns.",
            )
            for name, sides in (
                ("a ends", lambda a, b: (a[2] - b[0], a[3] - b[1])),
                ("the first ends", lambda a, b: (min(a[2], b[2]) - b[0], min(a[3], b[3]) - b[1])),
            )
        ),
        Mistake(
            "min and max exchanged",
            partial(
                _overlap,
                sides=_around,
                divide=lambda shared, a, b: (
                    shared / _union(shared, a, b) if _union(shared, a, b) > 0 else 0.0
                ),
            ),
            _EXCHANGED,
        ),
        Mistake(
            "1 for a box inside another",
            partial(
                _overlap,
                divide=lambda shared, a, b: (
                    1.0 if shared in (_area(a), _area(b)) else shared / _union(shared, a, b)
                ),
            ),
            "A box inside another gets 1.0. Only the same box twice gets that: divide by the union,"
            " which is the larger one here.",
        ),
        *(
            Mistake(
                f"rounded to {decimals} decimals",
                partial(_overlap, finish=partial(round, ndigits=decimals)),
                "The result is rounded. Leave it as it is.",
            )
            for decimals in (2, 3, 4)
        ),
        Mistake(
            "divided to whole numbers",
            partial(_overlap, finish=lambda value: float(int(value))),
            "The result is cut off to a whole number: // does that, and int. Divide with /.",
        ),
        Mistake(
            "nan",
            partial(
                _overlap,
                guard=False,
                divide=lambda shared, a, b: (
                    shared / _union(shared, a, b) if _union(shared, a, b) else math.nan
                ),
            ),
            _NO_NUMBER,
        ),
        Mistake(
            "shared area alone",
            partial(_overlap, divide=lambda shared, a, b: shared),
            "This is the shared area itself. Divide it by the union of both boxes.",
        ),
        Mistake(
            "root of the result",
            partial(_overlap, finish=lambda value: value**0.5 if value >= 0 else value),
            "This is the root of the overlap. Areas are compared as they are: shared / union.",
        ),
        Mistake(
            "divided by the first box",
            partial(_overlap, divide=lambda shared, a, b: shared / _area(a)),
            "The shared area is divided by the area of the first box. Then a box that covers the"
            " whole picture is always perfect. Divide by the union of both.",
        ),
        Mistake(
            "divided by the second box",
            partial(_overlap, divide=lambda shared, a, b: shared / _area(b)),
            "The shared area is divided by the area of the second box. Then one small spot inside"
            " the first is perfect. Divide by the union of both.",
        ),
        Mistake(
            "divided by the smaller box",
            partial(_overlap, divide=lambda shared, a, b: shared / min(_area(a), _area(b))),
            "The shared area is divided by the area of the smaller box, so a spot inside a large"
            " box is perfect. Divide by the union of both.",
        ),
        Mistake(
            "divided by the larger box",
            partial(_overlap, divide=lambda shared, a, b: shared / max(_area(a), _area(b))),
            "The shared area is divided by the area of the larger box. Divide by the union: what"
            " lies in one of them or in both.",
        ),
        Mistake(
            "twice the shared area over the sum",
            partial(_overlap, divide=lambda shared, a, b: 2 * shared / (_area(a) + _area(b))),
            "This is the Dice score, 2 * shared / (a + b), another measure with larger values. Here"
            " we want shared / union.",
        ),
        Mistake(
            "shared area taken off twice",
            partial(
                _overlap,
                divide=lambda shared, a, b: shared / max(_area(a) + _area(b) - 2 * shared, 1e-9),
            ),
            "The shared area is taken off twice, so the union is only what lies in one of the two"
            " and not in both. It was counted twice, and once it must stay: a + b - shared.",
        ),
        Mistake(
            "one pixel more",
            partial(_overlap, more=1.0),
            "One is added to heights and widths. That counts pixels in boxes whose last pixel"
            " belongs to them. Our edges are places between pixels: the height is y1 - y0.",
        ),
        Mistake(
            "box around both",
            partial(_overlap, divide=lambda shared, a, b: shared / _hull(a, b)),
            "The shared area is divided by the box around both. The union is only what lies in one"
            " of them or in both: area of a + area of b - shared area.",
        ),
        *(
            Mistake(
                f"{eps} added",
                partial(
                    _overlap,
                    divide=lambda shared, a, b, eps=eps: shared / (_union(shared, a, b) + eps),
                ),
                "Something small is added to the union, so that nothing is divided by 0. For small"
                " boxes in fractions it is not small: the same box twice is no longer 1.0. Return"
                " 0.0 before you divide, if nothing is shared.",
            )
            for eps in (1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
        ),
        *(
            Mistake(
                f"union at least {least}",
                partial(
                    _overlap,
                    divide=lambda shared, a, b, least=least: (
                        shared / max(_union(shared, a, b), least)
                    ),
                ),
                "The union is made at least a fixed number, so that nothing is divided by 0. Small"
                " boxes, in fractions of a side, have a smaller union: the same box twice is no"
                " longer 1.0. Return 0.0 before you divide, if nothing is shared.",
            )
            for least in (1.0, 1e-2, 1e-3, 1e-4, 1e-5)
        ),
        *(
            Mistake(
                f"pixels counted, {name}",
                lambda a, b, whole=whole: _pixels_shared(a, b, whole),
                "You count whole pixels, and edges may lie between them (in fractions of a side all"
                " of them do). An area is height times width, as numbers: nothing is to be rounded"
                " or cut off.",
            )
            for name, whole in (("cut off", int), ("rounded", round))
        ),
        *(
            Mistake(
                f"heights and widths by themselves, {name}",
                lambda a, b, both=both: both(*_of_lines(a, b)),
                "You compare the heights by themselves and the widths by themselves. It is about"
                " areas: shared height times shared width, divided by the union of the areas.",
            )
            for name, both in (
                ("mean", lambda y, x: (y + x) / 2),
                ("mean if both", lambda y, x: (y + x) / 2 if y and x else 0.0),
                ("smaller", min),
            )
        ),
        Mistake(
            "1 for the same box without area",
            partial(_overlap, empty=lambda a, b: 1.0 if _area(a) == _area(b) == 0 else 0.0),
            "Two boxes without any area get 1.0. They share nothing that could be measured: 0.0.",
        ),
        Mistake(
            "boxes read as corner, height, width",
            partial(_overlap, read=_from_lengths),
            "The last two numbers of a box are taken for its height and width. They are its lower"
            " and right edges, y1 and x1.",
        ),
        Mistake(
            "boxes read as y0, y1, x0, x1",
            partial(_overlap, read=lambda box: [box[0], box[2], box[1], box[3]]),
            "The boxes are read as y0, y1, x0, x1. They come as y0, x0, y1, x1: places 0 and 2 are"
            " vertical.",
        ),
        Mistake(
            "generalised",
            lambda a, b: (
                locations.overlap(a, b)
                - (_hull(a, b) - _union(_both_at_least_0(*_sides(a, b)), a, b)) / (_hull(a, b) or 1)
            ),
            "This is the generalised overlap, which takes off the empty part of the box around"
            " both. Boxes that share nothing have an overlap of 0.0 here.",
        ),
    ),
    crashes=(
        Mistake("0 / 0", partial(_overlap, guard=False), _NO_NUMBER),
        Mistake(
            "0 / 0, whole numbers",
            partial(
                _overlap,
                guard=False,
                divide=lambda shared, a, b: (shared or 0) / (_union(shared, a, b) or 0),
            ),
            _NO_NUMBER,
        ),
        Mistake("min and max exchanged", partial(_overlap, sides=_around), _EXCHANGED),
    ),
    hints=(
        "First the part that both share: its top is the lower of the two tops, max(a[0], b[0]), and"
        " its bottom the upper of the two bottoms.",
        "Height and width of the shared part, each made at least 0, give its area. The union is the"
        " sum of both areas minus the shared area.",
        "If nothing is shared, return 0.0 before you divide: two boxes without area have the union"
        " 0.",
    ),
)

# --- average_precision ----------------------------------------------------------------------------

Found = tuple[float, int, list[float]]  # score, picture, box


def _by_score(found: list[Found], limit: float) -> list[Found]:
    return sorted(found, key=lambda one: -one[0])


def average_precision(
    found: list[Found],
    truths: list[list[list[float]]],
    measure: Callable,
    limit: float,
    *,
    order: Callable[[list[Found], float], list[Found]] = _by_score,
    hit: Callable[[float, float], bool] = lambda value, limit: value > limit,
    mark: Callable[[int, int, list], object] | None = lambda picture, i, true: (picture, i),
    pick: str = "best free",
    use_up: bool = False,
    stop: str = "",
    surely: str = "",
    everywhere: bool = False,
    leave_out_empty: bool = False,
    only_said: bool = False,
    gain: Callable[[int, int, float], float] = lambda hits, rank, value: hits / rank,
    of_misses: bool = False,
    places_of: str = "all",
    smooth: str = "",
    divisor: Callable[[int, int, int, int], float] = lambda truths, hits, found, pictures: truths,
    least: int = 1,
    zero: float = 0.0,
    compare: Callable | None = None,
) -> float:
    """From 0.0 to 1.0. The reference, or with one thing changed.

    order: of (found, limit); mark: what is remembered of a true box that is taken, from its
    picture, number, and the box itself; pick: "best free", "best" (a miss if it is taken), "first
    free", "last free", "worst free" or "all"; use_up: wrong boxes take a true one, too; stop: at
    the first box with nothing "free" or "above" the limit; surely: with max() of nothing there;
    everywhere: true boxes of all pictures are tried; leave_out_empty: those without true boxes;
    only_said: true boxes count only in pictures about which something was said;
    gain: from hits so far, rank and overlap; of_misses: misses gain, too; places_of: "all" boxes,
    or of each "picture"; smooth: "later" (each precision is made the best one from there on), "11"
    or "101" (the mean of the best ones at so many recalls); divisor: of the sum; least: in place of
    a divisor of 0; zero: what the sum starts with; compare: in place of measure.
    """
    measure = compare or measure
    if leave_out_empty:
        found = [one for one in found if truths[one[1]]]
    said = {one[1] for one in found}
    counted = [own for i, own in enumerate(truths) if i in said or not only_said]
    taken, hits, gains, number = set(), 0, [], sum(map(len, counted))
    seen: dict[int, list[int]] = {}
    for rank, (_, picture, box) in enumerate(order(found, limit), start=1):
        own = seen.setdefault(picture, [0, 0])
        own[1] += 1
        near = [
            (measure(box, true), key)
            for place in (range(len(truths)) if everywhere else [picture])
            for i, true in enumerate(truths[place])
            if (key := mark(place, i, true) if mark else None) not in taken or pick == "best"
        ]
        if use_up and near:
            taken |= {max(near, key=lambda one: one[0])[1]}
        above = [(value, key) for value, key in near if hit(value, limit)]
        if surely and not {"free": near, "above": above}[surely]:
            max([])
        if stop and not {"free": near, "above": above}[stop]:
            break
        near = above
        if near:
            first = min if pick == "worst free" else max
            places = {"first free": 0, "last free": -1}
            value, key = (
                near[places[pick]] if pick in places else first(near, key=lambda one: one[0])
            )
        if not near or (key in taken and not use_up):
            if of_misses:
                gains.append(gain(hits, rank, 0.0))
            continue
        if mark:
            taken |= {key} if pick != "all" else {key for _, key in near}
        hits += 1
        own[0] += 1
        gains.append(
            gain(own[0], own[1], value) if places_of == "picture" else gain(hits, rank, value)
        )
    if smooth:
        gains = [max(gains[i:]) for i in range(len(gains))]
    if smooth in ("11", "101"):
        steps = int(smooth) - 1
        recalls = [math.ceil(number * one / steps - 1e-9) for one in range(steps + 1)]
        best = [gains[max(need - 1, 0)] for need in recalls if len(gains) >= max(need, 1)]
        return sum(best) / (steps + 1)
    return sum(gains, zero) / (divisor(number, hits, len(found), len(truths)) or least)


def _by_picture(found: list[Found], truths: list, measure: Callable, limit: float) -> float:
    each = [
        average_precision([one for one in found if one[1] == i], [[]] * i + [own], measure, limit)
        for i, own in enumerate(truths)
        if own
    ]
    return sum(each) / len(each)


def _best_for_each_truth(found: list[Found], truths: list, measure: Callable, limit: float):
    ranked, right = _by_score(found, limit), set()
    for picture, own in enumerate(truths):
        for true in own:
            near = [
                (value, place)
                for place, (_, where, box) in enumerate(ranked)
                if where == picture and place not in right and (value := measure(box, true)) > limit
            ]
            right |= {max(near)[1]} if near else set()
    gains = [hits / (place + 1) for hits, place in enumerate(sorted(right), start=1)]
    return sum(gains) / sum(map(len, truths))


def _twice_is_nothing(found: list[Found], truths: list, measure: Callable, limit: float) -> float:
    """Boxes whose true ones are all taken have no place in the list."""
    taken, hits, place, total = set(), 0, 0, 0.0
    for _, picture, box in _by_score(found, limit):
        near = [
            (measure(box, true), (picture, i))
            for i, true in enumerate(truths[picture])
            if measure(box, true) > limit
        ]
        free = [one for one in near if one[1] not in taken]
        place += bool(free or not near)
        if free:
            taken.add(max(free)[1])
            hits += 1
            total += hits / place
    return total / sum(map(len, truths))


def _dice(a: Sequence[float], b: Sequence[float]) -> float:
    shared = locations.overlap(a, b)
    return 2 * shared / (1 + shared)


def _answers() -> list[tuple]:
    # On a line, all boxes 10 high: box(0, 10) and box(2, 12) share 8 of 12.
    def box(left: float, right: float) -> list[float]:
        return [0.0, float(left), 10.0, float(right)]

    first, near, third = box(0, 10), box(3, 13), box(40, 50)
    two = [
        (0.2, 0, box(0, 9)),
        (0.7, 0, box(0.5, 10.5)),  # the best is the first, and the second is above 0.3, too
        (0.9, 0, box(0, 10)),
        (0.5, 1, box(60, 70)),
        (0.4, 1, box(21, 31)),
    ]
    many = [
        (0.30, 0, box(42, 52)),  # 0.67 of the third
        (0.95, 0, box(1.6, 11.6)),  # nearer to the second than to the first: 0.75 and 0.72
        (0.92, 1, box(0, 10)),  # nothing is there, but in other pictures
        (0.90, 0, box(1, 11)),  # nearest to the first: 0.82
        (0.60, 2, box(20, 26)),  # just 0.5 of the second
        (0.85, 0, box(2.5, 12.5)),  # its best is taken, and so is the other one
        (0.40, 2, box(22, 34)),  # 0.71
    ]
    truths = [[first, near, third], [], [list(first), box(20, 32)]]
    given = [
        ([(0.6, 0, box(70, 80)), (0.3, 0, box(39, 49)), (0.8, 0, first)], [[first, third]], 0.5),
        ([(0.4, 0, box(1, 11)), (0.7, 0, first)], [[first, third, box(70, 80)]], 0.5),  # twice
        # another's, twice
        ([(0.9, 1, first), (0.7, 1, third), (0.5, 0, third)], [[first, third], [near]], 0.6),
        ([(0.9, 0, box(0, 5)), (0.6, 0, third)], [[first, third]], 0.5),  # just 0.5
        (two, [[first, box(4, 14)], [box(20, 30), box(80, 90)]], 0.3),
        (many, truths, 0.5),
        (many, truths, 0.7),
        (many, [own[::-1] for own in truths], 0.7),  # now the best one is not the last
        ([], [[first]], 0.5),
    ]
    # The same true box in two pictures, found in both, and not the first of the second one's. They
    # are two lists: who remembers the objects themselves is right.
    twice = [(0.9, 0, first), (0.7, 1, box(1, 11)), (0.6, 1, box(41, 51)), (0.5, 0, near)]
    given.append((twice, [[first], [third, list(first)]], 0.5))
    # Nothing was said about two pictures in which something is.
    given.append(([(0.9, 1, first), (0.5, 1, box(70, 80))], [[near], [first, third], [third]], 0.5))
    cases = [(found, true, locations.overlap, limit) for found, true, limit in given]
    # By another measure, for which 0.7 is above the limit, and by ours it is not.
    apart = [(0.8, 0, box(0, 7)), (0.4, 0, box(30, 40)), (0.3, 0, box(40, 50))]
    return [*cases, (apart, [[first, third]], _dice, 0.75)]


_NOT_THE_ORDER = (
    "The boxes are not taken in the order of their scores, the highest first. The whole measure is"
    " about this order: a sure mistake costs more than an unsure one."
)

_SMOOTH = (
    "The curve of precision over recall is made smooth, or averaged between its points. Other rules"
    " do that. Here the precision at each hit counts as it is, and nothing else."
)

AVERAGE_PRECISION = Exercise(
    name="average_precision",
    transfer=True,
    reference=average_precision,
    cases=_answers,
    axes="",
    checked=(
        "the number for 12 lists of 0 to 7 boxes in 1 to 3 pictures, with different limits and two"
        " measures; some true boxes are found twice or never, some boxes have two true ones near,"
        " some are just at the limit, one picture has no true box, two have the same one, and about"
        " two nothing was said"
    ),
    mistakes=(
        Mistake(
            "in the order given",
            partial(average_precision, order=lambda found, limit: found),
            _NOT_THE_ORDER,
        ),
        Mistake(
            "lowest score first",
            partial(
                average_precision, order=lambda found, limit: sorted(found, key=lambda one: one[0])
            ),
            "The boxes are taken with the *lowest* score first. The highest comes first:"
            " sorted(found, reverse=True), or a key with a minus.",
        ),
        Mistake(
            "picture by picture",
            partial(
                average_precision,
                order=lambda found, limit: sorted(found, key=lambda one: (one[1], -one[0])),
            ),
            "The boxes are taken picture by picture. There is one list for all pictures, ordered by"
            " score alone.",
        ),
        Mistake(
            "mean over the pictures",
            _by_picture,
            "This is a number for each picture, and then their mean. All boxes of all pictures"
            " stand in one list, and there is one number.",
        ),
        Mistake(
            "a true box counted twice",
            partial(average_precision, mark=None),
            "A true box counts as found more than once. Who says the same box ten times would be"
            " ten times right. Keep in mind which are taken.",
        ),
        Mistake(
            "the best one, though taken",
            partial(average_precision, pick="best"),
            "A box whose nearest true box is taken already counts as a miss. By our rule it may"
            " still take another true box above the limit: choose among those that are free.",
        ),
        Mistake(
            "the first free one",
            partial(average_precision, pick="first free"),
            "A box takes the first true box above the limit (or, which comes to the same, each true"
            " box takes the surest box that lies near). By our rule it takes the one with the"
            " *largest* overlap among those that are free.",
        ),
        Mistake(
            "the last free one",
            partial(average_precision, pick="last free"),
            "A box takes the last true box above the limit. By our rule it takes the one with the"
            " *largest* overlap among those that are free.",
        ),
        Mistake(
            "the worst free one",
            partial(average_precision, pick="worst free"),
            "Of the true boxes above the limit a box takes the one with the smallest overlap. By"
            " our rule it takes the one with the *largest* overlap.",
        ),
        Mistake(
            "used up by misses",
            partial(average_precision, use_up=True),
            "A wrong box takes a true box, too, so that no later one can have it. Only a box above"
            " the limit takes one.",
        ),
        *(
            Mistake(
                f"stopped, nothing {what}",
                partial(average_precision, stop=what),
                "You stop at a box for which there is no true one (break, or return). Boxes that"
                " follow can be right: go on with the next one (continue).",
            )
            for what in ("free", "above")
        ),
        Mistake(
            "1 for an empty list",
            lambda found, truths, measure, limit: (
                average_precision(found, truths, measure, limit) if found else 1.0
            ),
            "If nothing was said, nothing was found: the result is 0.0, not 1.0.",
        ),
        Mistake(
            "all near ones",
            partial(average_precision, pick="all"),
            "A box takes all true boxes above the limit, and none of them is free for a later one."
            " It takes one alone: the free one with the largest overlap.",
        ),
        Mistake(
            "each true box chooses",
            _best_for_each_truth,
            "Each true box takes the found box that lies best. It is the found boxes that choose,"
            " the surest first, and each takes the best true box that is still free: a sure box"
            " counts before one that lies better and is less sure.",
        ),
        Mistake(
            "pictures without true boxes left out",
            partial(
                average_precision,
                leave_out_empty=True,
            ),
            "Boxes in pictures without any true box are left out. They are in the list, and wrong:"
            " the detector said something where nothing is.",
        ),
        Mistake(
            "no place for a box said twice",
            _twice_is_nothing,
            "A box on a true one that is already taken has no place in your list. It is a wrong"
            " box, and counts in the places of all that follow.",
        ),
        Mistake(
            "the overlap in place of the measure",
            partial(average_precision, compare=locations.overlap),
            "The boxes are compared by the overlap of part 3, whatever `measure` is. It is given,"
            " and in this case it is another one: call measure(a, b).",
        ),
        Mistake(
            "pictures without found boxes left out",
            partial(average_precision, only_said=True),
            "Only true boxes of pictures with a found box are counted. Those of a picture about"
            " which nothing was said are not found either, and count: sum(len(own) for own in"
            " truths).",
        ),
        Mistake(
            "in other pictures",
            partial(average_precision, everywhere=True),
            "A box is compared with true boxes of other pictures. Only those of its own picture"
            " count: truths[picture].",
        ),
        Mistake(
            "at the limit",
            partial(average_precision, hit=lambda value, limit: value >= limit),
            "A box whose overlap is just the limit counts as right. It must be above: > and not"
            " >=.",
        ),
        Mistake(
            "limit of 0.5",
            partial(average_precision, hit=lambda value, limit: value > 0.5),
            "The limit is always 0.5. It is the argument `limit`.",
        ),
        Mistake(
            "divided by the hits",
            partial(average_precision, divisor=lambda truths, hits, found, pictures: hits),
            "The sum is divided by the number of boxes that were right. Then a true box that nobody"
            " found costs nothing. Divide by the number of all true boxes.",
        ),
        Mistake(
            "mean over the hits, times the recall, of no hits",
            partial(
                average_precision,
                divisor=lambda truths, hits, found, pictures: truths if hits else math.nan,
            ),
            "Where nothing was found, the result is no number (nan): the mean of no numbers. Divide"
            " the sum by the number of all true boxes: that is never 0.",
        ),
        Mistake(
            "divided by the found",
            partial(average_precision, divisor=lambda truths, hits, found, pictures: found),
            "The sum is divided by the number of boxes that were said. Divide by the number of all"
            " true boxes, found or not.",
        ),
        Mistake(
            "precision alone",
            partial(
                average_precision,
                gain=lambda hits, rank, value: 1.0,
                divisor=lambda truths, hits, found, pictures: found,
            ),
            "This is the share of boxes that are right, the precision of the whole list. The order"
            " plays no part in it. Note the precision *at each hit*: hits so far / place in the"
            " list.",
        ),
        Mistake(
            "precision times recall",
            partial(
                average_precision,
                gain=lambda hits, rank, value: 2 * hits - 1,
                divisor=lambda truths, hits, found, pictures: truths * found,
            ),
            "This is the precision of the whole list times its recall. The order plays no part in"
            " it. Note the precision *at each hit*: hits so far / place in the list.",
        ),
        Mistake(
            "recall alone",
            partial(average_precision, gain=lambda hits, rank, value: 1.0),
            "This is the share of true boxes that were found, the recall. Boxes that are wrong cost"
            " nothing in it. Add the precision at each hit, hits so far / place in the list.",
        ),
        Mistake(
            "misses noted, too",
            partial(
                average_precision,
                of_misses=True,
                divisor=lambda truths, hits, found, pictures: found,
            ),
            "This is the mean of the precision over all places of the list. Note it at the hits"
            " alone, and divide by the number of true boxes.",
        ),
        Mistake(
            "misses added",
            partial(average_precision, of_misses=True),
            "The precision is added at every place of the list, also where the box is wrong. Add it"
            " at the hits alone.",
        ),
        Mistake(
            "place from 0",
            partial(average_precision, gain=lambda hits, rank, value: hits / max(rank - 1, 1)),
            "The places in the list are counted from 0, so the precision comes out too high. The"
            " first box has place 1.",
        ),
        Mistake(
            "place from 2",
            partial(average_precision, gain=lambda hits, rank, value: hits / (rank + 1)),
            "The places in the list are too large by 1, so the precision comes out too low. The"
            " first box has place 1: the place is the number of boxes up to here, this one with"
            " them.",
        ),
        Mistake(
            "1 / place",
            partial(average_precision, gain=lambda hits, rank, value: 1 / rank),
            "You add 1 / place. The precision at a hit is the number of hits so far, this one with"
            " them, divided by the place.",
        ),
        Mistake(
            "hits before this one",
            partial(average_precision, gain=lambda hits, rank, value: (hits - 1) / rank),
            "The hit itself is missing in the precision: count it first, then divide by the place.",
        ),
        Mistake(
            "weighted by the overlap",
            partial(average_precision, gain=lambda hits, rank, value: value * hits / rank),
            "The precision is multiplied by the overlap. A box above the limit is right, and how"
            " far above plays no part.",
        ),
        Mistake(
            "made smooth",
            partial(average_precision, smooth="later"),
            _SMOOTH,
        ),
        *(
            Mistake(f"made smooth at {n} points", partial(average_precision, smooth=n), _SMOOTH)
            for n in ("11", "101")
        ),
        Mistake(
            "trapezoids",
            partial(
                average_precision,
                gain=lambda hits, rank, value: (
                    (hits / rank + ((hits - 1) / (rank - 1) if rank > 1 else 1.0)) / 2
                ),
            ),
            _SMOOTH,
        ),
        Mistake(
            "F1",
            partial(
                average_precision,
                gain=lambda hits, rank, value: 1.0,
                divisor=lambda truths, hits, found, pictures: (truths + found) / 2,
            ),
            "This is the F1 score, precision and recall of the whole list in one number. The order"
            " plays no part in it. Add the precision at each hit, hits so far / place in the list.",
        ),
        Mistake(
            "mean overlap",
            partial(average_precision, gain=lambda hits, rank, value: value),
            "You add the overlaps. A box above the limit is right, and how far above plays no part:"
            " add the precision, hits so far / place in the list.",
        ),
        Mistake(
            "divided by the pictures",
            partial(average_precision, divisor=lambda truths, hits, found, pictures: pictures),
            "The sum is divided by the number of pictures. Divide by the number of all true boxes:"
            " sum(len(own) for own in truths).",
        ),
        Mistake(
            "percent",
            partial(average_precision, divisor=lambda truths, hits, found, pictures: truths / 100),
            "The result is a hundred times too large, perhaps in percent. It must be 0.0 to 1.0.",
        ),
        Mistake(
            "taken in all pictures",
            partial(average_precision, mark=lambda picture, i, true: i),
            "If true box number 0 of one picture is taken, you take number 0 of all others for"
            " taken, too. Remember the picture with it: (picture, number).",
        ),
        Mistake(
            "taken where the box is alike",
            partial(average_precision, mark=lambda picture, i, true: tuple(true)),
            "You remember the taken true boxes by their four numbers alone. Another picture may"
            " have the same box, and there it is free: remember (picture, number).",
        ),
        Mistake(
            "one for each picture",
            partial(average_precision, mark=lambda picture, i, true: picture),
            "After one hit in a picture all of its true boxes count as taken. Remember which one it"
            " was: (picture, number).",
        ),
        Mistake(
            "places in the picture",
            partial(average_precision, places_of="picture"),
            "Hits and places are counted for each picture by itself. There is one list for all"
            " pictures: count through all of it.",
        ),
        *(
            Mistake(
                f"unsure ones dropped, {name}",
                partial(
                    average_precision,
                    order=lambda found, limit, least=least: [
                        one for one in _by_score(found, limit) if one[0] > (least or limit)
                    ],
                ),
                "Boxes with a low score are left out. The limit is one for overlaps, not for"
                " scores: all boxes are in the list.",
            )
            for name, least in (("below the limit", None), ("below 0.5", 0.5))
        ),
    ),
    crashes=(
        *(
            Mistake(
                f"divided by 0 {what}, from {zero}",
                partial(average_precision, least=0, zero=zero, divisor=divisor),
                f"The sum is divided by the number of {what}, which is 0 where nothing was found."
                " Divide by the number of all true boxes.",
            )
            for zero in (0, 0.0)
            for what, divisor in (
                ("hits", lambda truths, hits, found, pictures: hits),
                ("boxes that were said", lambda truths, hits, found, pictures: found),
            )
        ),
        *(
            Mistake(
                f"mean over the hits, times the recall, from {zero}",
                # What is divided by the hits is multiplied by them again.
                partial(
                    average_precision,
                    divisor=lambda truths, hits, found, pictures, zero=zero: (
                        truths * ((hits or zero) / hits)
                    ),
                ),
                "The sum is divided by the number of hits, which is 0 where nothing was found."
                " Divide by the number of all true boxes.",
            )
            for zero in (0, 0.0)
        ),
        *(
            Mistake(
                f"max of nothing {what}",
                partial(average_precision, surely=what),
                "There may be no true box to choose from: none in the picture, none that is free or"
                " none above the limit. The box is wrong then: give max a default, or ask first.",
            )
            for what in ("free", "above")
        ),
    ),
    hints=(
        "Sort by score first. Then go through the list once, with two things in your memory: how"
        " many boxes were right so far, and which true boxes are taken.",
        "For each box: among the true boxes of its picture that are free, the one with the largest"
        " overlap. Is it above the limit? Then it is taken, hits grows by 1, and hits / place is"
        " added to the total.",
        "for place, (score, picture, box) in enumerate(sorted(found, reverse=True), start=1): ... A"
        " set of (picture, number of the true box) holds what is taken. At the end total /"
        " sum(len(own) for own in truths).",
    ),
)

_precision = average_precision  # what a learner's is compared with where the name is taken

EXERCISES = (BOX_TO_TOKENS, TOKENS_TO_BOX, OVERLAP, AVERAGE_PRECISION)


# --- all three at work ----------------------------------------------------------------------------


def numbers_in(answer: str) -> list[list[int]]:
    """The four numbers of each box in an answer."""
    return [[round(place * 1023) for place in box] for _, box in locations.read_boxes(answer)]


def try_boxes(
    model: PaliGemma,
    processor: Processor,
    box_to_tokens: Callable,
    tokens_to_box: Callable,
    overlap: Callable,
    each: int = 100,
) -> bool:
    """Measure the trained model with a learner's functions and with the package's; display both.

    New scenes by the validation artist, each pulled to a shape of its own, and one `detect`
    question for each. Every true box is compared with the best of the told ones, in pixels.
    Returns whether both measures agree, and also the tokens of the true boxes.
    """
    name = "your functions on the trained model's boxes"

    def outcome(status: str, message: str) -> bool:
        show(Outcome(name, status, message))
        return status == CORRECT

    asked, sizes, _, answers = _asked(model, processor, each)
    mine, package, tokens, wanted = [], [], [], []
    try:
        for (scene, question), (width, height), answer in zip(asked, sizes, answers, strict=True):
            fractions = [box for _, box in locations.read_boxes(answer)]
            theirs = [_pixels(box, height, width) for box in fractions]
            told = [tokens_to_box(numbers, height, width) for numbers in numbers_in(answer)]
            for thing in scene.things:
                if thing.name in question.prompt.split():
                    true = _pixels(thing.box, height, width)
                    mine.append(max((overlap(true, box) for box in told), default=0.0))
                    package.append(
                        max((locations.overlap(true, box) for box in theirs), default=0.0)
                    )
                    tokens.append(list(box_to_tokens(true, height, width)))
                    wanted += numbers_in(locations.box_tokens(_fractions(true, height, width)))
    except BaseException as error:
        show(failed(name, error))
        return False
    for who, values in (("package", np.array(package)), ("mine", np.array(mine))):
        print(
            f"{who:8} {len(values)} boxes, mean IoU {values.mean():.3f},"
            f" above 0.5: {(values > 0.5).mean():.1%}"
        )
    same = sum(a == b for a, b in zip(tokens, wanted, strict=True))
    print(f"your tokens are the package's for {same} of {len(wanted)} true boxes")
    apart = float(np.abs(np.subtract(mine, package)).max())
    if same < len(wanted):
        return outcome(WRONG, "box_to_tokens gives other tokens. What does its check say?")
    if not apart <= 1e-4:
        return outcome(WRONG, f"IoU differs from the package's by up to {apart:.4f}.")
    return outcome(CORRECT, "Every IoU and every token agrees with the package's.")


def _pixels(box: Sequence[float], height: int, width: int) -> list[float]:
    return [edge * side for edge, side in zip(box, (height, width) * 2, strict=True)]


def _fractions(box: Sequence[float], height: int, width: int) -> list[float]:
    return [edge / side for edge, side in zip(box, (height, width) * 2, strict=True)]


def _asked(model: PaliGemma, processor: Processor, each: int) -> tuple[list, list, list, list]:
    """New scenes with a `detect` question each, the sizes of the pictures, these, and answers."""
    asked = evaluation_set(scenes.VALIDATION_ARTIST, each, 15, ("detection",))
    sizes = np.random.default_rng(0).integers(100, 700, (each, 2)).tolist()
    pictures = [scene.picture.resize(size) for (scene, _), size in zip(asked, sizes, strict=True)]
    answers = generate(model, processor, pictures, [question.prompt for _, question in asked])
    return asked, sizes, pictures, answers


def confidences(
    model: PaliGemma, processor: Processor, pictures: list, prompts: list[str], answers: list[str]
) -> list[list[float]]:
    """For each answer, the probability that the model gave to the four tokens of each box."""
    batch = processor(pictures, prompts, answers)
    labels = batch.pop("labels")[:, 1:]
    with torch.inference_mode():
        told = model(**batch)[:, :-1].log_softmax(dim=-1)
    each = told.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    first = processor.first_location
    rows = []
    for logs, row in zip(each, labels, strict=True):
        of_places = logs[(row >= first) & (row < first + locations.LOCATIONS)]
        rows.append(of_places.reshape(-1, 4).sum(dim=1).exp().tolist())
    return rows


def try_precision(
    model: PaliGemma,
    processor: Processor,
    tokens_to_box: Callable,
    overlap: Callable,
    average_precision: Callable,
    each: int = 100,
) -> bool:
    """Average precision of the trained model's boxes by a learner's functions; display it.

    The scores are the model's own: the probability that it gave to the four tokens of a box. Beside
    them stands the same with scores that know nothing. Returns whether the numbers are right.
    """
    name = "average_precision on the trained model's boxes"
    asked, sizes, pictures, answers = _asked(model, processor, each)
    prompts = [question.prompt for _, question in asked]
    sure = confidences(model, processor, pictures, prompts, answers)
    found, truths, fractions = [], [], []
    try:
        for i, (width, height) in enumerate(sizes):
            for score, numbers in zip(sure[i], numbers_in(answers[i]), strict=True):
                found.append((score, i, tokens_to_box(numbers, height, width)))
                fractions.append((score, i, _pixels([n / 1023 for n in numbers], height, width)))
            scene, question = asked[i]
            named = [one for one in scene.things if one.name in question.prompt.split()]
            truths.append([_pixels(one.box, height, width) for one in named])
        chance = np.random.default_rng(1).permutation(len(found)) / len(found)
        blind = [(float(c), i, box) for c, (_, i, box) in zip(chance, found, strict=True)]
        apart = 0.0
        for limit in (0.5, 0.75, 0.9):
            mine, unsure = (
                average_precision(list(one), truths, overlap, limit) for one in (found, blind)
            )
            right = _precision(fractions, truths, locations.overlap, limit)
            apart = max(apart, abs(mine - right))
            print(
                f"limit {limit}: {mine:.3f} by the model's own probabilities, {unsure:.3f} in a"
                " random order"
            )
    except BaseException as error:
        show(failed(name, error))
        return False
    if not apart <= 1e-4:
        show(Outcome(name, WRONG, f"The right numbers are others, by up to {apart:.4f}."))
        return False
    show(Outcome(name, CORRECT, f"{len(found)} boxes for {sum(map(len, truths))} true ones."))
    return True
