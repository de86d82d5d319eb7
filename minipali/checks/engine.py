"""How an attempt is examined: from the outside in, and against the known mistakes.

The contract of every exercise is weights and inputs in, outputs out; names inside are the
learner's own.
"""

import copy
import functools
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Number
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

NOT_ATTEMPTED = "not attempted"
CRASHED = "crashed"
WRONG = "wrong"
REFUSED = "refused"
CORRECT = "correct"
STDLIB = Path(sysconfig.get_path("stdlib"))
DATA = (list, Image)  # arguments, beside tensors, that a function could write into
_MARKS = {CORRECT: "✓", NOT_ATTEMPTED: "…"}


@dataclass(frozen=True)
class Mistake:
    """A wrong implementation and the sentence it deserves."""

    name: str
    wrong: Callable
    says: str


@dataclass(frozen=True)
class Exercise:
    """One piece to write.

    reference: a right implementation; cases: makes the lists of arguments it is tried on, chosen so
    that every known mistake gives another result; axes: names of the result's axes, for messages;
    checked: what *correct* means, in words. If the result is a tuple, parts names its tensors, and
    axes has theirs, divided by semicolons: "b d; d; d".
    in_place: parameters that the function shall write into; they count as last parts of the result,
    with a name and axes of their own. steps: an attempt may also yield, or return a list of, the
    tensors (b,) of each step; they are put side by side.
    """

    name: str
    reference: Callable
    cases: Callable[[], list[tuple]]
    axes: str
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    checked: str
    tolerance: float = 1e-5
    parts: tuple[str, ...] = ()
    in_place: tuple[str, ...] = ()
    steps: bool = False

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.reference).parameters)


@dataclass(frozen=True)
class Outcome:
    """What is displayed: a status and the sentences that explain it."""

    name: str
    status: str
    message: str

    def __str__(self) -> str:
        return f"{_MARKS.get(self.status, '✗')} {self.name}: {self.status}. {self.message}"


def examine(exercise: Exercise, attempt: Callable) -> Outcome:
    """Try an attempt on every case and say the first thing that is wrong with it."""

    def outcome(status: str, message: str) -> Outcome:
        return Outcome(exercise.name, status, message)

    if not callable(attempt):
        found = type(attempt).__name__
        return outcome(WRONG, f"Give check the function itself, without brackets; found {found}.")
    if origin := borrowed(attempt):
        return outcome(
            REFUSED, f"This is {origin}, the finished piece. Write your own: that is the exercise."
        )
    cases = exercise.cases()
    if complaint := _signature(exercise, attempt, cases[0]):
        return outcome(WRONG, complaint)

    results = []
    for number, arguments in enumerate(cases, start=1):
        case = f"Case {number} of {len(cases)} ({_describe(exercise, arguments)})"
        given = copied(arguments)
        try:
            result, ran = _watched(attempt, given, _finished_files(exercise))
            if exercise.steps and isinstance(result, list) and result:
                result = torch.stack(result, dim=1)
        except NotImplementedError as error:
            return outcome(NOT_ATTEMPTED, _unwritten(error, attempt))
        except Exception as error:
            # A mistake that shows in an earlier case is often the reason, and says more.
            if complaint := _first_wrong(exercise, cases, results, only_known=True):
                return outcome(WRONG, complaint)
            return outcome(CRASHED, f"{case}: {_crash(error)}")
        if ran:
            return outcome(
                REFUSED, f"It runs minipali's own {ran}. Write your own: that is the exercise."
            )
        if result is Ellipsis:
            return outcome(NOT_ATTEMPTED, "Replace the `...`.")
        for parameter, before, after in zip(exercise.parameters, arguments, given, strict=False):
            if parameter in exercise.in_place or not isinstance(before, (Tensor, *DATA)):
                continue
            if not _same(before, after, 0.0):
                return outcome(
                    WRONG,
                    f"{case}: your function changed its input `{parameter}` in place. Make a"
                    " new one instead (x = x + y, not x += y).",
                )
        results.append(with_written(exercise, result, given))

    if complaint := _first_wrong(exercise, cases, results):
        return outcome(WRONG, complaint)
    return outcome(CORRECT, f"Checked: {exercise.checked}.")


def _first_wrong(
    exercise: Exercise, cases: list[tuple], results: list, only_known: bool = False
) -> str:
    """What is wrong with the first wrong one of the results there are, or ""."""
    for number, result in enumerate(results, start=1):
        arguments = cases[number - 1]
        complaint = _compare(exercise, result, run(exercise, exercise.reference, arguments))
        if not complaint:
            continue
        if number > 1:
            before = "Case 1 is" if number == 2 else f"Cases 1 to {number - 1} are"
            complaint += f" {before} right."
        # Two mistakes at once match none in every case, but the first wrong case may show one.
        here = slice(number - 1, number)
        named = diagnose(exercise, cases[: len(results)], results) or diagnose(
            exercise, cases[here], results[here]
        )
        case = f"Case {number} of {len(cases)} ({_describe(exercise, arguments)})"
        if named:
            return f"{named} {case}: {complaint}"
        return "" if only_known else f"{case}: {complaint}"
    return ""


def copied(arguments: tuple) -> list:
    """Arguments that a function may write into without harm to the case."""
    return [
        a.clone() if isinstance(a, Tensor) else copy.deepcopy(a) if isinstance(a, DATA) else a
        for a in arguments
    ]


def with_written(exercise: Exercise, result, given: list):
    """The result, followed by the tensors that the function was to write into."""
    if not exercise.in_place or not isinstance(result, tuple):
        return result
    return (*result, *(given[exercise.parameters.index(name)] for name in exercise.in_place))


def run(exercise: Exercise, function: Callable, arguments: tuple):
    """What a function makes of a case, on copies of the case's tensors."""
    given = copied(arguments)
    return with_written(exercise, function(*given), given)


def diagnose(exercise: Exercise, cases: list[tuple], results: list) -> str:
    """The sentence of the known mistake that gives just these results, or "" if none or several."""
    said = set()
    for mistake in exercise.mistakes:
        try:
            wrong = [run(exercise, mistake.wrong, arguments) for arguments in cases]
        except Exception:
            continue
        pairs = zip(results, wrong, strict=True)
        if all(_same(result, other, exercise.tolerance) for result, other in pairs):
            said.add(mistake.says)
    return said.pop() if len(said) == 1 else ""


def borrowed(attempt: Callable) -> str:
    """The name of the object of minipali that an attempt is, or ""."""
    while isinstance(attempt, functools.partial):
        attempt = attempt.func
    attempt = inspect.unwrap(attempt)
    if not inspect.isroutine(attempt) and not inspect.isclass(attempt):
        attempt = type(attempt)
    module = str(getattr(attempt, "__module__", ""))
    if module.split(".")[0] == "minipali":
        return f"{module}.{attempt.__qualname__}"
    return ""


def _finished_files(exercise: Exercise) -> set[str]:
    """The files that hold the finished piece: the lesson's module and its checks."""
    checks = Path(exercise.cases.__code__.co_filename)
    return {str(checks), str(checks.parents[1] / checks.name)}


def _watched(attempt: Callable, given: list, finished: set[str]) -> tuple[object, str]:
    """Call the attempt; return its result and the finished function that it ran on the way, or "".

    What runs is watched, not what is named: a name says little, and there are many ways round it.
    Functions that the exercise itself hands over may run.
    """
    ran, inside_given = "", 0
    handed = {getattr(one, "__code__", None) for one in given} - {None}

    def watch(frame, event, _argument):
        nonlocal ran, inside_given
        if frame.f_code in handed:
            inside_given += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not inside_given and frame.f_code.co_filename in finished:
            ran = ran or frame.f_code.co_name

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        result = attempt(*given)
        if isinstance(result, Iterator):  # a generator runs when it is asked
            result = list(result)
    finally:
        sys.setprofile(before)
    return result, ran


def _unwritten(error: NotImplementedError, attempt: Callable) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1].name
    if where != getattr(attempt, "__name__", where):
        return f"It calls `{where}`, which is not written yet."
    return "Replace the line that raises NotImplementedError."


def _signature(exercise: Exercise, attempt: Callable, arguments: tuple) -> str:
    expected = ", ".join(exercise.parameters)
    if inspect.isclass(attempt):
        return f"Give check an instance of your class: {attempt.__name__}(...)."
    try:
        signature = inspect.signature(attempt)
    except (TypeError, ValueError):  # some built-in functions have none
        return ""
    try:
        signature.bind(*arguments)
    except TypeError:
        return (
            f"It must take {len(arguments)} arguments ({expected}), in this order; found"
            f" {signature}. The names are yours."
        )
    return ""


def _describe(exercise: Exercise, arguments: tuple) -> str:

    def described(name: str, value) -> str:
        if isinstance(value, Tensor):
            return f"{name} {tuple(value.shape)}"
        if isinstance(value, Image):
            return f"{name}: {value.mode}, {value.width} x {value.height} pixels"
        return f"{name} = {value}"

    parts = [
        described(name, value)
        for name, value in zip(exercise.parameters, arguments, strict=False)
        if not callable(value)  # a given function has nothing to show
    ]
    if len(parts) > 6:
        parts = [*parts[:2], "…", *parts[-2:]]
    return ", ".join(parts)


def _crash(error: Exception) -> str:
    line = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        # The innermost line that is the learner's: not in a library, not in this package.
        file = Path(frame.filename)
        library = STDLIB in file.parents or {"site-packages", "minipali"} & set(file.parts)
        if not library:
            line = f" in line {frame.lineno} of its cell: {frame.line}" if frame.line else ""
            break
    return f"{type(error).__name__}: {error}{line}"


def _compare(exercise: Exercise, result, expected) -> str:
    """What is wrong with one result, or ""."""
    if result is None:
        return "your function returned None. Is a `return` missing?"
    if exercise.parts:
        return _compare_parts(exercise, result, expected)
    numbers = isinstance(result, Number) and isinstance(expected, Number)
    if not numbers and not isinstance(result, type(expected)):
        found = type(result).__name__
        more = " torch.from_numpy makes a tensor of it." if found == "ndarray" else ""
        return f"the result must be a {type(expected).__name__}, found a {found}.{more}"
    if not isinstance(expected, Tensor):
        return "" if _same(result, expected, exercise.tolerance) else (
            f"the result must be {expected}, found {result}."
        )  # fmt: skip
    if result.shape != expected.shape:
        axes = exercise.axes.split()
        if result.ndim != expected.ndim:
            return (
                f"the result must have {expected.ndim} axes ({exercise.axes}), shape"
                f" {tuple(expected.shape)}; found {result.ndim} axes, shape {tuple(result.shape)}."
            )
        wrong = [
            f"axis {i} ({axes[i]}) must be {want}, found {got}"
            for i, (want, got) in enumerate(zip(expected.shape, result.shape, strict=True))
            if want != got
        ]
        return f"the shape is wrong: {'; '.join(wrong)}."
    if result.dtype != expected.dtype:
        return f"the dtype must be {expected.dtype}, found {result.dtype}."
    if result.device != expected.device:
        return f"the result must be on {expected.device}, found {result.device}."
    bad = (~result.isfinite()) & expected.isfinite()
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        place = f" at {_place(exercise, where)}" if where else ""
        return f"the result has {result[where].item()}{place}."
    difference = (result.double() - expected.double()).abs()
    if not _same(result, expected, exercise.tolerance):
        if result.ndim == 0:
            return f"the result must be {expected.item():.6g}, found {result.item():.6g}."
        where = tuple(
            torch.stack(torch.unravel_index(difference.argmax(), difference.shape)).tolist()
        )
        if moved := _moved(exercise, result, expected):
            return moved
        share = (difference > exercise.tolerance).double().mean().item()
        return (
            f"the shape is right, but {share:.0%} of the values are not. The largest difference is"
            f" at {_place(exercise, where)}: expected {expected[where].item():.4g}, found"
            f" {result[where].item():.4g}."
        )
    return ""


def _moved(exercise: Exercise, result: Tensor, expected: Tensor) -> str:
    """How the right numbers are arranged wrongly, or "" if they are not the right numbers."""

    def alike(a: Tensor, b: Tensor) -> bool:
        return _same(a.flatten(1).sort(dim=1).values, b.flatten(1).sort(dim=1).values, 1e-6)

    axes = exercise.axes.split()
    if result.ndim != 3 or not alike(result[None], expected[None]):
        return ""
    start = "all the right numbers are there, but not in their places:"
    if not alike(result, expected):
        return f"{start} some are in another {axes[0]}. The axis {axes[0]} must stay in front."
    flat, wanted = result.flatten(0, 1), expected.flatten(0, 1)
    if alike(flat, wanted):
        return f"{start} along {axes[2]} they have another order."
    order = [rows.sort(dim=-1).values.tolist() for rows in (result, expected)]
    if all(sorted(a) == sorted(b) for a, b in zip(*order, strict=True)):
        return f"{start} along {axes[1]} they have another order."
    return f"{start} numbers that belong to different {axes[1]} are mixed."


def _compare_parts(exercise: Exercise, result, expected: tuple) -> str:
    """What is wrong with the first wrong part of a tuple, or ""."""
    if not isinstance(result, tuple) or len(result) != len(expected):
        written = len(exercise.in_place)
        found = type(result).__name__
        if isinstance(result, tuple):
            found = f"a tuple of {len(result) - written}"
        names = exercise.parts[: len(exercise.parts) - written]
        return f"it must end with `return {', '.join(names)}`; found {found}."
    axes = exercise.axes.split(";")
    for name, got, want, own in zip(exercise.parts, result, expected, axes, strict=True):
        complaint = _compare(replace(exercise, axes=own.strip(), parts=()), got, want)
        if complaint:
            number = exercise.parts.index(name) + 1
            if number > len(exercise.parts) - len(exercise.in_place):
                return f"{name}, which your function shall write into: {complaint}"
            return f"{name}, part {number} of the result: {complaint}"
    return ""


def _place(exercise: Exercise, where: tuple[int, ...]) -> str:
    axes = exercise.axes.split()
    return ", ".join(f"{axis} {index}" for axis, index in zip(axes, where, strict=False)) or "0"


def _same(a, b, tolerance: float) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (
            a.shape == b.shape
            and a.dtype == b.dtype
            and torch.allclose(
                a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True
            )
        )
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(_same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, Number) and isinstance(b, Number):  # NumPy's too
        return abs(a - b) <= tolerance * max(1.0, abs(b))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)
