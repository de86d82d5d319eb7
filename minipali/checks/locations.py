"""Lesson 15: boxes to tokens and back, and how much two boxes have in common."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from minipali import locations, scenes
from minipali.asking import generate
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.evaluation import evaluation_set
from minipali.paligemma import PaliGemma
from minipali.tokens import Processor

# --- box_to_tokens --------------------------------------------------------------------------------


def _boxes() -> list[tuple]:
    # Wide, tall, sticking out on both sides, and the whole picture.
    return [
        ([37.0, 120.0, 200.0, 413.0], 240, 640),
        ([100.5, 12.0, 911.0, 300.0], 1000, 333),
        ([-12.0, 50.0, 60.0, 131.0], 90, 120),
        ([0.0, 0.0, 75.0, 50.0], 75, 50),
    ]


def box_to_tokens(
    box: Sequence[float],
    height: int,
    width: int,
    *,
    number: Callable[[float], int] = lambda fraction: round(fraction * 1023),
    sides: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width),
    inside: bool = True,
    x_first: bool = False,
) -> list[int]:
    """(y0, x0, y1, x1) in pixels -> four numbers from 0 to 1023.

    The reference, or with one thing changed.
    """
    fractions = [place / side for place, side in zip(box, sides(height, width) * 2)]  # noqa: B905
    if inside:
        fractions = [min(max(fraction, 0.0), 1.0) for fraction in fractions]
    y0, x0, y1, x1 = map(number, fractions)
    return [x0, y0, x1, y1] if x_first else [y0, x0, y1, x1]


_MARKS = (
    " There are 1024 numbers, from 0 to 1023, so there are 1023 steps between the first and the"
    " last: round(fraction * 1023)."
)

BOX_TO_TOKENS = Exercise(
    name="box_to_tokens",
    reference=box_to_tokens,
    cases=_boxes,
    axes="",
    checked=(
        "the list of four numbers for 4 boxes, in a wide and in a tall picture, for a box that"
        " sticks out of the picture on two sides, and for one that is the whole picture"
    ),
    mistakes=(
        Mistake(
            "x before y",
            partial(box_to_tokens, x_first=True),
            "x comes before y. The order is y0, x0, y1, x1: top, left, bottom, right.",
        ),
        Mistake(
            "times 1024",
            partial(box_to_tokens, number=lambda fraction: round(fraction * 1024)),
            "The fraction is multiplied by 1024, and at the right and lower edge you get the number"
            " 1024. There is no <loc1024>: it would be cut into pieces of text." + _MARKS,
        ),
        Mistake(
            "times 1024, cut to 1023",
            partial(box_to_tokens, number=lambda fraction: min(round(fraction * 1024), 1023)),
            "The fraction is multiplied by 1024, and only the number 1024 is repaired." + _MARKS,
        ),
        Mistake(
            "1024 bins",
            partial(box_to_tokens, number=lambda fraction: min(int(fraction * 1024), 1023)),
            "The picture is cut into 1024 bins, and each place gets the number of its bin. Other"
            " models do that. PaliGemma's numbers are marks on a ruler." + _MARKS,
        ),
        Mistake(
            "cut off",
            partial(box_to_tokens, number=lambda fraction: int(fraction * 1023)),
            "The numbers are cut off, not rounded: int(0.9) is 0. So a box moves up and to the left"
            " by half a step on average. Use round.",
        ),
        Mistake(
            "left outside",
            partial(box_to_tokens, inside=False),
            "A box that sticks out of the picture gets numbers below 0 or above 1023, for which"
            " there are no tokens. Move fractions below 0 to 0 and above 1 to 1.",
        ),
        Mistake(
            "height and width exchanged",
            partial(box_to_tokens, sides=lambda height, width: (width, height)),
            "Height and width are exchanged: divide y by the height and x by the width.",
        ),
        Mistake(
            "longer side for both",
            partial(box_to_tokens, sides=lambda height, width: (max(height, width),) * 2),
            "Both are divided by the longer side, as if the picture were filled up to a square."
            " PaliGemma squeezes it into a square: y is a fraction of the height, x of the width.",
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
    return [([51, 309, 708, 646], 375, 500), ([0, 256, 1023, 767], 890, 301)]


def tokens_to_box(
    numbers: Sequence[int],
    height: int,
    width: int,
    *,
    scale: Callable[[int, int, int], float] = lambda number, side, other: number / 1023 * side,
    read: Sequence[int] = (0, 1, 2, 3),
    give: Sequence[int] = (0, 1, 2, 3),
) -> list[float]:
    """Four numbers from 0 to 1023 -> (y0, x0, y1, x1) in pixels.

    The reference, or with one thing changed.

    scale: (number, its side, the other side) -> pixels; read, give: orders of what goes in and out.
    """
    numbers = [numbers[i] for i in read]
    sides = ((height, width), (width, height)) * 2
    box = [scale(number, *both) for number, both in zip(numbers, sides, strict=True)]
    return [box[i] for i in give]


_RESIZED = (
    "The result does not depend on the picture's size: it is in pixels of the square that the model"
    " saw. Whoever asked has the original picture, so multiply by *its* height and width."
)

TOKENS_TO_BOX = Exercise(
    name="tokens_to_box",
    reference=tokens_to_box,
    cases=_numbers,
    axes="",
    checked="the four places in pixels for 2 boxes, in a wide and in a tall picture",
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
            partial(tokens_to_box, scale=lambda number, side, other: number / 1024 * side),
            "The numbers are divided by 1024, so no box can reach the right or lower edge. 1023 is"
            " the edge: divide by 1023. (Some demonstrations have this mistake.)",
        ),
        Mistake(
            "fractions",
            partial(tokens_to_box, scale=lambda number, side, other: number / 1023),
            "These are fractions of the picture. Multiply them by its height (y) and width (x).",
        ),
        Mistake(
            "height and width exchanged",
            partial(tokens_to_box, scale=lambda number, side, other: number / 1023 * other),
            "Height and width are exchanged: y is a fraction of the height, x of the width.",
        ),
        Mistake(
            "pixels of the small model's square",
            partial(tokens_to_box, scale=lambda number, side, other: number / 1023 * 72),
            _RESIZED,
        ),
        Mistake(
            "pixels of PaliGemma's square",
            partial(tokens_to_box, scale=lambda number, side, other: number / 1023 * 224),
            _RESIZED,
        ),
        Mistake(
            "whole pixels",
            partial(
                tokens_to_box, scale=lambda number, side, other: float(round(number / 1023 * side))
            ),
            "The places are rounded to whole pixels. Leave them as they are: whoever needs whole"
            " pixels can round later.",
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
        ([0.0, 0.0, 4.0, 6.0], [1.0, 2.0, 7.0, 8.0]),
        ([10.0, 10.0, 20.0, 14.0], [12.0, 11.0, 15.0, 13.0]),  # one inside the other
        ([0.0, 0.0, 2.0, 3.0], [5.0, 7.0, 9.0, 8.0]),  # apart in both directions
        ([0.0, 0.0, 2.0, 9.0], [4.0, 1.0, 6.0, 5.0]),  # apart in one
        ([0.0, 0.0, 3.0, 3.0], [3.0, 0.0, 6.0, 3.0]),  # an edge in common
        ([5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]),  # nothing at all
    ]


def _overlap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    divide: Callable = lambda shared, a, b: shared / (_area(a) + _area(b) - shared),
    clamp: bool = True,
    more: float = 0.0,
) -> float:
    """overlap with one thing changed. divide: (shared area, a, b) -> result; more: per side."""
    height = min(a[2], b[2]) - max(a[0], b[0]) + more
    width = min(a[3], b[3]) - max(a[1], b[1]) + more
    shared = max(height, 0.0) * max(width, 0.0) if clamp else height * width
    if more:
        a, b = ([y0, x0, y1 + more, x1 + more] for y0, x0, y1, x1 in (a, b))
    return divide(shared, a, b) if shared else 0.0


def _hull(a: Sequence[float], b: Sequence[float]) -> float:
    return _area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])


OVERLAP = Exercise(
    name="overlap",
    reference=locations.overlap,
    cases=_pairs,
    axes="",
    checked=(
        "6 pairs of boxes: crossing, one inside the other, apart in two directions and in one, with"
        " only an edge in common, and without any area"
    ),
    mistakes=(
        Mistake(
            "shared area counted twice",
            partial(_overlap, divide=lambda shared, a, b: shared / (_area(a) + _area(b))),
            "The shared area is in the union twice: it lies in both boxes. Union = area of a + area"
            " of b - shared area.",
        ),
        Mistake(
            "boxes apart",
            partial(_overlap, clamp=False),
            "Boxes that lie apart share something. The height or the width of what they share comes"
            " out negative, and negative times negative is positive. Make each at least 0 before"
            " you multiply.",
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
            "twice the shared area over the sum",
            partial(_overlap, divide=lambda shared, a, b: 2 * shared / (_area(a) + _area(b))),
            "This is the Dice score, 2 * shared / (a + b), another measure with larger values. Here"
            " we want shared / union.",
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

EXERCISES = (BOX_TO_TOKENS, TOKENS_TO_BOX, OVERLAP)


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

    asked = evaluation_set(scenes.VALIDATION_ARTIST, each, 15, ("detection",))
    sizes = np.random.default_rng(0).integers(100, 700, (each, 2)).tolist()
    pictures = [scene.picture.resize(size) for (scene, _), size in zip(asked, sizes, strict=True)]
    answers = generate(model, processor, pictures, [question.prompt for _, question in asked])
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
