"""How wrong results are related to the right ones, where no known mistake gives them.

A relation is told if it holds in every wrong case, to the last digit that counts. So it is a fact,
whatever the reason for it may be.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Number

import torch
from torch import Tensor

from minipali.checks.comparing import same
from minipali.checks.shapes import axis_names

ENOUGH = 3  # so many wrong numbers must agree: two could do so by chance


@dataclass(frozen=True)
class Wrong:
    """One wrong result: the arguments by name, what was found, what is right, names of axes."""

    given: dict[str, object]
    found: object
    right: object
    axes: list[str]
    text: str | None = None


# --- the right function with other arguments ------------------------------------------------------

# What one argument is changed to; for which kind of argument; and what is said of it.
CHANGES: tuple[tuple[str, Callable[[object], bool], Callable], ...] = (
    ("if `{}` is the other way round (not `{}`)", lambda x: _is(x, torch.bool), torch.bitwise_not),
    ("if all of `{}` is True", lambda x: _is(x, torch.bool), torch.ones_like),
    ("if all of `{}` is False", lambda x: _is(x, torch.bool), torch.zeros_like),
    ("if `{}` is None", lambda x: x is not None, lambda x: None),
    ("if all of `{}` is 0. Is it left out?", lambda x: _is_float(x), torch.zeros_like),
    ("if all of `{}` is 1. Is it left out?", lambda x: _is_float(x), torch.ones_like),
    ("if `{}` has the opposite sign", lambda x: _is_float(x), torch.neg),
    ("if the last two axes of `{}` are exchanged", lambda x: _is_square(x), lambda x: x.mT),
    ("if `{}` is reversed along its first axis", lambda x: _axes(x) > 0, lambda x: x.flip(0)),
    ("if `{}` is reversed along its last axis", lambda x: _axes(x) > 1, lambda x: x.flip(-1)),
    ("if `{}` is 0. Is it left out?", lambda x: isinstance(x, float), lambda x: 0.0),
    ("if `{}` is 1. Is it left out?", lambda x: isinstance(x, float), lambda x: 1.0),
    ("if `{}` is greater by 1", lambda x: type(x) is int, lambda x: x + 1),
    ("if `{}` is smaller by 1", lambda x: type(x) is int, lambda x: x - 1),
    ("if `{}` is the other way round (not `{}`)", lambda x: type(x) is bool, lambda x: not x),
    ("if `{}` is reversed", lambda x: isinstance(x, list), lambda x: x[::-1]),
)  # fmt: skip


def _is(x, dtype: torch.dtype) -> bool:
    return isinstance(x, Tensor) and x.dtype == dtype


def _is_float(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _axes(x) -> int:
    return x.ndim if isinstance(x, Tensor) else 0


def _is_square(x) -> bool:
    return _axes(x) > 1 and x.shape[-1] == x.shape[-2]


def other_arguments(
    parameters: list[str], cases: list[tuple]
) -> Iterator[tuple[str, list[tuple] | None]]:
    """Sentences, and the cases with the arguments that they tell of."""
    start = "Your function gives what is right"
    places = range(len(cases[0]))
    for a, b in itertools.combinations(places, 2):
        if all(_alike(case[a], case[b]) for case in cases):
            changed = [
                tuple(case[{a: b, b: a}.get(place, place)] for place in places) for case in cases
            ]
            yield f"{start} if `{parameters[a]}` and `{parameters[b]}` are exchanged.", changed
    for place, (text, fits, change) in itertools.product(places, CHANGES):
        old = [case[place] for case in cases]
        if text.endswith("is None") and None not in old:
            continue
        if any(fits(one) for one in old) and all(one is None or fits(one) for one in old):
            new = [one if one is None else change(one) for one in old]
            changed = [
                (*case[:place], one, *case[place + 1 :])
                for case, one in zip(cases, new, strict=True)
            ]
            end = "" if text.endswith("?") else "."
            yield f"{start} {text.replace('{}', parameters[place])}{end}", changed


def _alike(a, b) -> bool:
    """Whether two arguments can be taken for each other."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.ndim == b.ndim and a.dtype == b.dtype
    return type(a) is type(b) and isinstance(a, (int, float, list, str))


def another(x):
    """Another argument of the same kind, which any function can take, or None."""
    if isinstance(x, float):
        return 1.5 * x + 0.25
    if _is(x, torch.bool):
        return ~x
    if _is_float(x) and x.numel():
        return 1.5 * x.flip(-1) + 0.25 if x.ndim else 1.5 * x + 0.25
    return None


def is_constant(result) -> bool:
    """Whether it is one number everywhere, as many arguments would give it."""
    return (
        isinstance(result, Tensor) and result.numel() > 1 and bool((result == result.min()).all())
    )


def is_nan(result) -> bool:
    """Whether it holds nothing but nan."""
    parts = result if isinstance(result, tuple) else (result,)
    return all(_is_float(one) and bool(one.isnan().all()) for one in parts)


def shows_all(result) -> bool:
    """Whether any change would show: whole numbers and nan often stay the same."""
    parts = result if isinstance(result, tuple) else (result,)
    return any(isinstance(one, float) or _is_float(one) for one in parts) and all(
        not isinstance(one, Tensor) or one.isfinite().all() for one in parts
    )


# --- from the right numbers to the wrong ones -----------------------------------------------------

# The right result is changed so, number by number.
ALTERED: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("1 minus the right one (for True and False: the other way round)", lambda x: 1 - x),
    ("the right one with the opposite sign", torch.neg),
    ("1 divided by the right one", torch.reciprocal),
    ("the square of the right one", torch.square),
    ("the square root of the right one", torch.sqrt),
    ("the exponential of the right one", torch.exp),
    ("the logarithm of the right one", torch.log),
    ("the sigmoid of the right one", torch.sigmoid),
    ("the right one without its sign", torch.abs),
    ("the right one, rounded to whole numbers", torch.round),
    ("the right one, rounded down to whole numbers", torch.floor),
    ("the right one, with 0 for all that is negative", torch.relu),
)
# What works along an axis, and can be missing or be done once too often.
ALONG: tuple[tuple[str, Callable[[Tensor, int], Tensor]], ...] = (
    ("A softmax", lambda x, axis: x.softmax(axis)),
    ("A log-softmax", lambda x, axis: x.log_softmax(axis)),
    ("A division by the sum", lambda x, axis: x / x.sum(axis, keepdim=True)),
    ("A division by the length (the norm)", lambda x, axis: x / x.norm(dim=axis, keepdim=True)),
    ("A subtraction of the mean", lambda x, axis: x - x.mean(axis, keepdim=True)),
    ("A running sum", lambda x, axis: x.cumsum(axis)),
    ("A sorting (the smallest first)", lambda x, axis: x.sort(axis).values),
    ("A sorting (the largest first)", lambda x, axis: x.sort(axis, descending=True).values),
)
# What a factor can be, made of the length n of an axis or of a number that was given.
FACTORS: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("{}", lambda n: n),
    ("1 / {}", lambda n: 1 / n),
    ("the square root of {}", math.sqrt),
    ("1 / the square root of {}", lambda n: 1 / math.sqrt(n)),
    ("{0} / ({0} - 1)", lambda n: n / (n - 1)),
    ("({0} - 1) / {0}", lambda n: (n - 1) / n),
    ("{} squared", lambda n: n * n),
)
Fact = tuple[str, Callable[[Wrong], tuple[object, object]]]  # a sentence, and what must be the same


def relation(wrong: list[Wrong], tolerance: float) -> str:
    """What holds between found and right in all wrong cases, as a sentence, or ""."""
    if any(isinstance(one.right, bool) for one in wrong):
        return ""  # yes or no: there is no relation
    numbers = [_in_numbers(one) for one in wrong]
    if None in numbers:
        return next(_holding(wrong, _of_lists(wrong), tolerance), "")
    if any(one.found.shape != one.right.shape for one in numbers):
        return next(_holding(numbers, _of_shapes(numbers), tolerance), "")
    if sum((one.found != one.right).sum().item() for one in numbers) < ENOUGH:
        return ""
    if any((one.right.isfinite() & ~one.found.isfinite()).any() for one in numbers):
        return ""  # nan and inf are told as such
    facts = [_of_numbers(numbers), _of_inputs(numbers), _of_axes(numbers)]
    if said := next(_holding(numbers, itertools.chain(*facts), tolerance), ""):
        return said
    if all(_is_float(one.right) or isinstance(one.right, float) for one in wrong):
        if said := _of_rows(numbers, tolerance):
            return said
        for name, less in _without_inputs(numbers):
            said = next(_holding(less, _of_factors(less), tolerance), "")
            if said := said or _of_rows(less, tolerance):
                less = f"less `{name}`"
                said = said.replace("Your result", f"Your result {less}")
                return said.replace("the right one", f"the right one {less},")
    return _of_places(numbers, tolerance)


def _holding(wrong: list[Wrong], facts: Iterator[Fact], tolerance: float) -> Iterator[str]:
    for sentence, both in facts:
        try:
            if all(same(*both(one), tolerance) and _explains(one, *both(one)) for one in wrong):
                yield sentence
        except Exception:  # what cannot be computed of these is not what was done
            continue


def _explains(one: Wrong, a, b) -> bool:
    """Whether what is left is small beside what was wrong, and not only beside large numbers."""
    if not isinstance(a, Tensor) or one.found.shape != one.right.shape or not a.numel():
        return True
    left, apart = ((x - y).nan_to_num().abs().max() for x, y in ((a, b), (one.found, one.right)))
    return bool(left <= 0.01 * apart)


def _in_numbers(one: Wrong) -> Wrong | None:
    """The same with results that are tensors of float64, or None."""
    try:
        found, right = (
            (x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)).double()
            for x in (one.found, one.right)
        )
    except (TypeError, ValueError):  # no numbers, or lists of different lengths
        return None
    plain = [f"axis {axis}" for axis in range(right.ndim)]
    lists = [] if isinstance(one.right, Tensor) else ["the list", "the inner lists"]
    axes = [*one.axes, *lists, *plain][: right.ndim]
    return replace(one, found=found, right=right, axes=axes)


def _of_numbers(wrong: list[Wrong]) -> Iterator[Fact]:
    """Each number made of the right one."""
    constant = len({x for one in wrong for x in one.right.flatten().tolist()}) == 1
    for text, change in () if constant else ALTERED:
        yield f"Your result is {text}.", lambda one, change=change: (one.found, change(one.right))
    yield from _of_factors(wrong)
    one = max(wrong, key=lambda one: one.right.abs().max())
    largest = one.right.abs().argmax()
    apart = (one.found - one.right).flatten()[largest].item()
    more = "more" if apart > 0 else "less"
    sentence = f"Your result is the right one and {_number(abs(apart))} {more}, at every place."
    yield sentence, lambda one: (one.found, one.right + apart)


def _of_factors(wrong: list[Wrong]) -> Iterator[Fact]:
    """The right one times one number."""

    def times(factor: Callable[[Wrong], float]) -> Callable[[Wrong], tuple[Tensor, Tensor]]:
        return lambda one: (one.found, one.right * factor(one))

    sizes = [_sizes(one) for one in wrong]
    for name in sizes[0]:
        for text, of_size in FACTORS if len({one.get(name) for one in sizes}) > 1 else ():
            sentence = f"Your result is the right one times {text.format(name)}."
            yield sentence, times(lambda one, name=name, f=of_size: f(_sizes(one)[name]))
    one = max(wrong, key=lambda one: one.right.abs().max())
    largest = one.right.abs().argmax()
    factor = (one.found.flatten()[largest] / one.right.flatten()[largest]).item()
    if factor and math.isfinite(factor):
        sentence = f"Your result is the right one times {_number(factor)}."
        yield sentence, times(lambda one: factor)


def _sizes(one: Wrong) -> dict[str, float]:
    """Lengths of axes, and numbers that were given, by name."""
    axes = zip(one.axes, one.right.shape, strict=False)
    given = {
        f"`{name}`": float(x)
        for name, x in one.given.items()
        if isinstance(x, Number) and not isinstance(x, bool)
    }
    inside = {axis: float(size) for size, axis in axis_names(one.text, *_split(one.given)).items()}
    return {**inside, **{axis: float(size) for axis, size in axes if axis != "1"}, **given}


def _split(given: dict) -> tuple[list[str], tuple]:
    return list(given), tuple(given.values())


def _of_inputs(wrong: list[Wrong]) -> Iterator[Fact]:
    """Made of the right one and an input; or the input itself."""
    for name, x in wrong[0].given.items():
        if not isinstance(x, (Tensor, float)) or _is(x, torch.bool):
            continue

        def input_of(one: Wrong, name=name) -> Tensor:
            return torch.as_tensor(one.given[name]).double().expand(one.right.shape)

        told = f"`{name}`"
        for text, both in (
            (f"Your result is {told} itself.", lambda x, one: (one.found, x)),
            (f"Your result is {told} with the opposite sign.", lambda x, one: (one.found, -x)),
            (f"Your result lacks {told}: with it added, it is right.",
             lambda x, one: (one.found + x, one.right)),
            (f"Your result has {told} added once too often: without it, it is right.",
             lambda x, one: (one.found - x, one.right)),
            (f"Your result is right once it is multiplied by {told}.",
             lambda x, one: (one.found * x, one.right)),
            (f"Your result is the right one times {told}.",
             lambda x, one: (one.found, one.right * x)),
        ):  # fmt: skip
            yield text, lambda one, both=both, input_of=input_of: both(input_of(one), one)


def _of_axes(wrong: list[Wrong]) -> Iterator[Fact]:
    """Made of the right one along an axis."""
    axes = wrong[0].axes
    for a, b in itertools.combinations(range(len(axes)), 2):
        both = f"{a} ({axes[a]}) and {b} ({axes[b]})"
        sentence = f"Your result is right once its axes {both} are exchanged."
        yield sentence, lambda one, a=a, b=b: (one.found.transpose(a, b), one.right)
    for axis, name in enumerate(axes):

        def along(make: Callable[[Wrong, int], tuple], axis=axis) -> Callable[[Wrong], tuple]:
            def made(one: Wrong) -> tuple:
                if one.right.shape[axis] < 2:  # of one number alone everything is easily made
                    raise ValueError
                return make(one, axis)

            return made

        yield (
            f"Along {name} your result is the right one, reversed.",
            along(lambda one, axis: (one.found.flip(axis), one.right)),
        )
        for text, late in (("late", 1), ("early", 0)):
            yield (
                f"Along {name} your numbers come one place too {text}.",
                along(lambda one, axis, late=late: _shifted(one, axis, late)),
            )
        yield (
            f"Along {name} all places of your result hold what is right at the first.",
            along(lambda one, axis: (one.found, one.right.narrow(axis, 0, 1).expand_as(one.found))),
        )
        for text, change in ALONG:
            yield (
                f"{text} along {name} makes your result right.",
                along(lambda one, axis, change=change: (change(one.found, axis), one.right)),
            )
            yield (
                f"{text} along {name} makes your result of the right one: it is too much.",
                along(lambda one, axis, change=change: (one.found, change(one.right, axis))),
            )


def _shifted(one: Wrong, axis: int, late: int) -> tuple[Tensor, Tensor]:
    """What must be the same if all comes one place too late (1) or too early (0)."""
    length = one.right.shape[axis] - 1
    if length < 2:
        raise ValueError
    return one.found.narrow(axis, late, length), one.right.narrow(axis, 1 - late, length)


# How found numbers x can differ from right ones y along an axis: what is said of it, the numbers
# that it would make, and where to look.
ROWS: tuple[tuple[str, Callable[[Tensor, Tensor, int], Tensor], str], ...] = (
    (
        "times a factor",
        lambda x, y, axis: y * (x * y).sum(axis, True) / y.square().sum(axis, True),
        "multiply or divide by",
    ),
    ("plus a number", lambda x, y, axis: y + (x - y).mean(axis, True), "add or subtract"),
)


def _of_rows(wrong: list[Wrong], tolerance: float) -> str:
    """Whether each row along some axes has one wrong factor, or one wrong number added, or ""."""
    if any(((one.found == 0) & (one.right != 0)).any() for one in wrong):
        return ""  # something is left out
    names = wrong[0].axes
    for text, fit, what in ROWS:

        def alike(axis: int, fit=fit) -> bool:
            facts = iter([("", lambda one: (one.found, fit(one.found, one.right, axis)))])
            several = any(one.right.shape[axis] > 1 for one in wrong)
            return several and any(True for _ in _holding(wrong, facts, tolerance))

        same_along = [axis for axis in range(len(names)) if alike(axis)]
        others = [axis for axis in range(len(names)) if axis not in same_along]
        rows = sum(math.prod(one.right.shape[axis] for axis in others) for one in wrong)
        if sum(one.right.numel() for one in wrong) < ENOUGH * rows:
            continue
        if differs := " and ".join(names[axis] for axis in others if names[axis] != "1"):
            along = " and ".join(names[axis] for axis in same_along if names[axis] != "1")
            which = f"that is the same along {along} and differs with {differs}"
        else:
            which = "that differs from case to case"
        return (
            f"Your result is the right one {text} {which}. Look at what you {what}, and not at the"
            " rest."
        )
    return ""


def _without_inputs(wrong: list[Wrong]) -> Iterator[tuple[str, list[Wrong]]]:
    """The same results less an input that is added to them."""
    for name, x in wrong[0].given.items():
        if _is_float(x) and x.ndim:
            try:
                yield (
                    name,
                    [
                        replace(
                            one,
                            found=one.found - one.given[name].expand(one.found.shape),
                            right=one.right - one.given[name].expand(one.found.shape),
                        )
                        for one in wrong
                    ],
                )
            except (RuntimeError, AttributeError):  # of another shape, or None
                continue


def _of_shapes(wrong: list[Wrong]) -> Iterator[Fact]:
    """Another shape, with the right numbers."""
    yield (
        "The numbers are right; an axis of length 1 is too many or missing (keepdim, squeeze,"
        " unsqueeze).",
        lambda one: (one.found.squeeze(), one.right.squeeze()),
    )
    yield "Your result is right once it is turned (.mT).", lambda one: (one.found.mT, one.right)
    for axis, name in enumerate(wrong[0].axes):
        ends = (("first", 1), ("last", 0))
        for end, start in ends:
            yield (
                f"Along {name} the {end} is missing, all others are right.",
                lambda one, axis=axis, start=start: (
                    one.found,
                    one.right.narrow(axis, start, one.right.shape[axis] - 1),
                ),
            )
            yield (
                f"Along {name} there is one too many, the {end}; all others are right.",
                lambda one, axis=axis, start=start: (
                    one.found.narrow(axis, start, one.found.shape[axis] - 1),
                    one.right,
                ),
            )
    yield (
        "The right numbers are there, in the right order, in another shape.",
        lambda one: (one.found.flatten(), one.right.flatten()),
    )


def _of_lists(wrong: list[Wrong]) -> Iterator[Fact]:
    """Lists, tuples and texts."""
    text = isinstance(wrong[0].right, str)
    one = "character" if text else "item"
    for sentence, both in (
        (f"The first {one} is missing, all others are right.", lambda x, y: (x, y[1:])),
        (f"The last {one} is missing, all others are right.", lambda x, y: (x, y[:-1])),
        (f"The first {one} is too many, all others are right.", lambda x, y: (x[1:], y)),
        (f"The last {one} is too many, all others are right.", lambda x, y: (x[:-1], y)),
        ("Your result is the right one, reversed.", lambda x, y: (x[::-1], y)),
        ("All but blanks and line ends is right.",
         lambda x, y: ("".join(x.split()), "".join(y.split()))),
        ("All but upper and lower case is right.", lambda x, y: (x.casefold(), y.casefold())),
        (f"Each {one} is there, as often as it must be, but in another order.",
         lambda x, y: (sorted(x), sorted(y))),
        (f"Each {one} is there, but not as often as it must be.",
         lambda x, y: (sorted(set(x)), sorted(set(y)))),
    ):  # fmt: skip
        yield sentence, lambda one, both=both: both(one.found, one.right)


def _of_places(wrong: list[Wrong], tolerance: float) -> str:
    """Where it is wrong, and only there, as a sentence, or ""."""
    bad = [
        ~torch.isclose(one.found, one.right, rtol=tolerance, atol=tolerance, equal_nan=True)
        for one in wrong
    ]
    if all(one.all() for one in bad):
        return ""
    for axis, name in enumerate(wrong[0].axes):
        rest = [[i for i in range(one.ndim) if i != axis] for one in bad]
        lines = [one.any(dim=dims) if dims else one for one, dims in zip(bad, rest, strict=True)]
        if len(wrong) < 2 or any(len(line) < 3 for line in lines):
            continue
        for text, inside in (
            ("only the first place is", lambda n: torch.arange(n) == 0),
            ("only the last place is", lambda n: torch.arange(n) == n - 1),
            ("all but the first place are", lambda n: torch.arange(n) > 0),
            ("all but the last place are", lambda n: torch.arange(n) < n - 1),
        ):
            if name == "m" or (name == "b" and text != "all but the first place are"):
                continue  # they stand in no order
            if all(line.equal(inside(len(line))) for line in lines):
                return f"Along {name} {text} wrong."
    for name, x in wrong[0].given.items():
        if not _is(x, torch.bool):
            continue
        marks = [_beside(one.given[name], one.right) for one in wrong]
        for value in (True, False):
            if all(
                mark is not None and not (one & (mark != value)).any() and (mark != value).any()
                for mark, one in zip(marks, bad, strict=True)
            ):
                return f"It is wrong only where `{name}` is {value}."
    rights = {x for one, b in zip(wrong, bad, strict=True) for x in one.right[b].tolist()}
    founds = {x for one, b in zip(wrong, bad, strict=True) for x in one.found[b].tolist()}
    several = len({x for one in wrong for x in one.right.flatten().tolist()}) > 2
    if len(rights) == 1 and several:
        return f"It is wrong only where {_number(rights.pop())} is right."
    if len(founds) == 1 and several:
        return f"Where it is wrong it is {_number(founds.pop())}."
    if len(founds) == 2 and sum(founds) == 0 and several:
        most = max(founds)
        return f"Where it is wrong it is {_number(most)} or {_number(-most)}. Is it limited?"
    return ""


def _beside(mark: Tensor, right: Tensor) -> Tensor | None:
    """A mark (b, t) of a result (b, t, ...), stretched to its shape, or None."""
    if not isinstance(mark, Tensor) or mark.shape != right.shape[: mark.ndim]:
        return None
    return mark[(...,) + (None,) * (right.ndim - mark.ndim)].expand_as(right)


def _number(x: float) -> str:
    return str(int(x)) if x.is_integer() else f"{x:.4g}"
