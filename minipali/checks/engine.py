"""How an attempt is examined: from the outside in, and against the known mistakes.

The contract of every exercise is weights and inputs in, outputs out; names inside are the
learner's own.
"""

import dis
import functools
import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from PIL.Image import Image
from torch import Tensor

from minipali.checks.comparing import difference, of_parts, same, shown
from minipali.checks.running import DATA, call, copied, plain_torch

NOT_ATTEMPTED = "not attempted"
CRASHED = "crashed"
WRONG = "wrong"
REFUSED = "refused"
CORRECT = "correct"
UNKNOWN = "unknown"
PACKAGE, STDLIB = Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))
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
        """Names of the arguments, without those by keyword alone: they make mistakes of it."""
        given = inspect.signature(self.reference).parameters.values()
        return [one.name for one in given if one.kind is not one.KEYWORD_ONLY]


@dataclass(frozen=True)
class Outcome:
    """What is displayed: a status and the sentences that explain it."""

    name: str
    status: str
    message: str

    def __str__(self) -> str:
        return f"{_MARKS.get(self.status, '✗')} {self.name}: {self.status}. {self.message}"


def failed(name: str, error: BaseException, more: str = "") -> Outcome:
    """The outcome of a learner's code that raised: *not attempted* if a stub did, else *crashed*.

    more: a last sentence. KeyboardInterrupt is raised again.
    """
    if isinstance(error, KeyboardInterrupt):
        raise error
    status, said = CRASHED, _crash(error)
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    # torch raises it too, from inside, where it cannot compute with some kind of numbers. A stub
    # has a statement for it.
    code = last.tb_frame.f_code
    by_statement = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    if isinstance(error, NotImplementedError) and by_statement:
        status = NOT_ATTEMPTED
        said = (
            f"`{code.co_name}` is not written yet: replace its line that raises"
            " NotImplementedError."
        )
    return Outcome(name, status, f"{said} {more}".rstrip())


def examine(exercise: Exercise, attempt: Callable) -> Outcome:
    """Try an attempt on every case and say the first thing that is wrong with it."""
    with plain_torch():
        try:
            return _examine(exercise, attempt)
        except Exception as error:  # an object can refuse to be looked at in many ways
            said = "Your function, or what it returns, cannot be examined"
            return Outcome(exercise.name, CRASHED, f"{said}: {_crash(error)}")


def _examine(exercise: Exercise, attempt: Callable) -> Outcome:
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
            result, ran = call(attempt, given, _finished_modules(exercise))
        except BaseException as error:
            raised = failed(exercise.name, error)
            if raised.status == NOT_ATTEMPTED:
                return raised
            # A mistake that shows in an earlier case is often the reason, and says more.
            if complaint := _first_wrong(exercise, results, only_known=True):
                return outcome(WRONG, complaint)
            return outcome(CRASHED, f"{case}: {raised.message}")
        if ran:
            return outcome(
                REFUSED, f"It runs minipali's own {ran}. Write your own: that is the exercise."
            )
        if result is Ellipsis:
            return outcome(NOT_ATTEMPTED, "Replace the `...`.")
        for parameter, before, after in zip(exercise.parameters, arguments, given, strict=False):
            if parameter in exercise.in_place or not isinstance(before, (Tensor, *DATA)):
                continue
            if not same(before, after, 0.0):
                return outcome(
                    WRONG,
                    f"{case}: your function changed its input `{parameter}` in place. Make a"
                    " new one instead (x = x + y, not x += y).",
                )
        if exercise.steps and isinstance(result, list):
            found = {getattr(step, "shape", type(step).__name__) for step in result}
            if len(found) != 1 or not isinstance(result[0], Tensor):
                return outcome(
                    WRONG,
                    f"{case}: each step must be a Tensor with one token a row, (b,); found"
                    f" {' and '.join(sorted(map(shown, found))) or 'no step'}.",
                )
            result = torch.stack(result, dim=1)
        results.append(with_written(exercise, result, given))

    if complaint := _first_wrong(exercise, results):
        return outcome(WRONG, complaint)
    return outcome(CORRECT, f"Checked: {exercise.checked}.")


def _first_wrong(exercise: Exercise, results: list, only_known: bool = False) -> str:
    """What is wrong with the first wrong one of the results there are, or ""."""
    cases = exercise.cases()
    expected = answers(exercise, exercise.reference, len(results))
    for number, (result, right) in enumerate(zip(results, expected, strict=True), start=1):
        complaint = _compare(exercise, result, right)
        if not complaint:
            continue
        if number > 1:
            before = "Case 1 is" if number == 2 else f"Cases 1 to {number - 1} are"
            complaint += f" {before} right."
        case = f"Case {number} of {len(cases)} ({_describe(exercise, cases[number - 1])})"
        if named := diagnose(exercise, results, number):
            return f"{named} {case}: {complaint}"
        return "" if only_known else f"{case}: {complaint}"
    return ""


def _compare(exercise: Exercise, result, expected) -> str:
    """What is wrong with one result, or ""."""
    if exercise.parts and result is not None:
        written = len(exercise.in_place)
        return of_parts(
            result, expected, exercise.parts, exercise.axes, written, exercise.tolerance
        )
    return difference(result, expected, exercise.axes, exercise.tolerance)


def with_written(exercise: Exercise, result, given: list):
    """The result, followed by the tensors that the function was to write into."""
    if not exercise.in_place or not isinstance(result, tuple):
        return result
    return (*result, *(given[exercise.parameters.index(name)] for name in exercise.in_place))


def answers(exercise: Exercise, function: Callable, number: int | None = None) -> list:
    """What the reference or a known mistake makes of the first `number` cases, or of all.

    Of cases of its own: some hand over functions that remember what was done with them.
    """
    found = []
    for arguments in exercise.cases()[:number]:
        given = list(arguments)
        result, _ = call(function, given, set())
        if exercise.steps and isinstance(result, list):
            result = torch.stack(result, dim=1)
        found.append(with_written(exercise, result, given))
    return found


def diagnose(exercise: Exercise, results: list, number: int) -> str:
    """The sentence of the known mistake that gives just these results, or "" if none or several.

    Two mistakes at once match none in every case, but case `number`, the first wrong one, may show
    one of them.
    """
    everywhere, here = set(), set()
    for mistake in exercise.mistakes:
        try:
            wrong = answers(exercise, mistake.wrong, len(results))
        except Exception:
            continue
        pairs = zip(results, wrong, strict=True)
        equal = [same(result, other, exercise.tolerance) for result, other in pairs]
        if all(equal):
            everywhere.add(mistake.says)
        if equal[number - 1]:
            here.add(mistake.says)
    said = everywhere or here
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


def _finished_modules(exercise: Exercise) -> set[ModuleType]:
    """Where the finished piece is: the lesson's module, its checks, the reference's module."""
    checks = exercise.cases.__module__
    names = {checks, checks.replace(".checks", ""), exercise.reference.__module__}
    return {importlib.import_module(name) for name in names}


def _signature(exercise: Exercise, attempt: Callable, arguments: tuple) -> str:
    expected = ", ".join(exercise.parameters[: len(arguments)])
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
        return f"{name} = {shown(value)}"

    parts = [
        described(name, value)
        for name, value in zip(exercise.parameters, arguments, strict=False)
        if not callable(value)  # a given function has nothing to show
    ]
    if len(parts) > 6:
        parts = [*parts[:2], "…", *parts[-2:]]
    return ", ".join(parts)


def _crash(error: BaseException) -> str:
    line = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        # The innermost line that is the learner's: not in a library, not in this package.
        file = Path(frame.filename)
        if not {PACKAGE, STDLIB} & set(file.parents) and "site-packages" not in file.parts:
            line = f" in line {frame.lineno} of its cell: {frame.line}" if frame.line else ""
            break
    text = shown(error)
    return f"{type(error).__name__}{': ' if text else ''}{text}{line}"
