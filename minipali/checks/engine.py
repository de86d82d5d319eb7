"""How an attempt is examined: from the outside in, and against the known mistakes.

The contract of every exercise is weights and inputs in, outputs out; names inside are the
learner's own.
"""

import contextlib
import dis
import functools
import importlib
import inspect
import io
import itertools
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, NoneType

import torch
from PIL.Image import Image
from torch import Tensor

from minipali.checks.comparing import (
    NEAR,
    difference,
    of_gradients,
    of_parts,
    same,
    same_gradient,
    shown,
)
from minipali.checks.relations import (
    Wrong,
    another,
    is_constant,
    is_nan,
    other_arguments,
    relation,
    shows_all,
)
from minipali.checks.running import DATA, call, copied, plain_torch
from minipali.checks.shapes import axis_names, of_shapes

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
    axes has theirs, divided by semicolons: "b d; d; d". If results have different numbers of axes,
    axes has the names of each kind, divided by bars: "b t v|b v".
    in_place: parameters that the function shall write into; they count as last parts of the result,
    with a name and axes of their own. steps: an attempt yields, or returns a list of, the tensors
    (b,) of each step; they are put side by side.
    crashes: wrong implementations that raise, known by what they raise.
    gradients: parameters that gradients must reach; each case is tried once more for them.
    banned: names of torch's functions that do the whole work, and must not run ("layer_norm";
    "view(dtype)" if a dtype is given; "torch.bfloat16" for any that meets this dtype). largest: no
    tensor that an attempt makes may have more numbers, where a piece is to do without the whole
    table. without: other modules ("safetensors.torch") of which no function may run. transfer: no
    lesson and no module shows this piece.
    asked: makes of a function, be it an attempt, the reference or a mistake, the one that is tried,
    where what it does is no result to compare (a dict, an error, gradients in a module).
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
    crashes: tuple[Mistake, ...] = ()
    gradients: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    largest: int | None = None
    without: tuple[str, ...] = ()
    transfer: bool = False
    asked: Callable[[Callable], Callable] | None = None
    # What known mistakes make of the tries, by mistake and number of the try. The next attempt is
    # compared with the same ones.
    found: dict[tuple[Callable, int], object] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def parameters(self) -> list[str]:
        """Names of the arguments, without those by keyword alone: they make mistakes of it."""
        return list(_parameters_of(self.reference))


@functools.cache  # it is asked for often, and takes as long as running a piece
def _parameters_of(function: Callable) -> tuple[str, ...]:
    given = inspect.signature(function).parameters.values()
    return tuple(one.name for one in given if one.kind is not one.KEYWORD_ONLY)


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
    tries = _tries(exercise)
    if complaint := _signature(exercise, attempt, tries[0][0]):
        return outcome(WRONG, complaint)

    results = []
    for number, (arguments, backward) in enumerate(tries, start=1):
        case = _case(exercise, number)
        given = copied(arguments)
        try:
            limits = _finished_modules(exercise), exercise.banned, exercise.largest
            result, ran = _result(exercise, attempt, given, backward, *limits)
        except BaseException as error:
            raised = failed(exercise.name, error)
            if raised.status == NOT_ATTEMPTED:
                return raised
            # A mistake that shows in an earlier case is often the reason, and says more.
            if complaint := _first_wrong(exercise, results):
                return outcome(WRONG, complaint)
            axes = axis_names(attempt.__doc__, exercise.parameters, arguments)
            told = f"{case}: {raised.message}{of_shapes(error, axes)}"
            named = _of_crash(exercise, results, error) or _of_autograd(error)
            return outcome(CRASHED, f"{named} {told}" if named else told)
        if ran:
            return outcome(REFUSED, f"It {ran}")
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
        if exercise.steps and isinstance(result, Tensor):
            return outcome(
                WRONG,
                f"{case}: all steps come as one tensor, {tuple(result.shape)}. Yield the tokens of"
                " each step, (b,), or return a list of them.",
            )
        if exercise.steps and isinstance(result, (list, tuple)):
            found = {getattr(step, "shape", type(step).__name__) for step in result}
            if len(found) != 1 or not isinstance(result[0], Tensor):
                return outcome(
                    WRONG,
                    f"{case}: each step must be a Tensor with one token a row, (b,); found"
                    f" {' and '.join(sorted(map(shown, found))) or 'no step'}.",
                )
        results.append(_whole(exercise, result, given))

    if complaint := _first_wrong(exercise, results, attempt):
        return outcome(WRONG, complaint)
    return outcome(CORRECT, f"Checked: {exercise.checked}.")


def _tries(exercise: Exercise) -> list[tuple[tuple, bool]]:
    """The arguments of each case; then, if gradients count, each once more and True."""
    cases = exercise.cases()
    again = [(arguments, True) for arguments in cases if exercise.gradients]
    return [(arguments, False) for arguments in cases] + again


def _case(exercise: Exercise, number: int) -> str:
    """What a message calls try `number`, from 1."""
    cases = exercise.cases()
    one = (number - 1) % len(cases)
    kind = ", gradients" if number > len(cases) else ""
    return f"Case {one + 1} of {len(cases)}{kind} ({_describe(exercise, cases[one])})"


def _result(
    exercise: Exercise,
    function: Callable,
    given: list,
    backward: bool,
    finished: set[ModuleType] = frozenset(),
    banned: tuple[str, ...] = (),
    largest: int | None = None,
    watch: bool = True,
) -> tuple[object, str]:
    """What the function makes of arguments, or its gradients, and the forbidden thing it did.

    The gradients are those of a sum of all results with fixed random weights, one for each
    parameter in exercise.gradients; None where none arrives.
    """
    if exercise.asked:
        function = exercise.asked(function)
    if not backward:
        return call(function, given, finished, banned, largest, watch)
    places = [exercise.parameters.index(name) for name in exercise.gradients]
    for place in places:
        given[place] = given[place].detach().clone().requires_grad_()
    result, ran = call(function, given, finished, banned, largest, watch)
    parts = result if isinstance(result, (tuple, list)) else (result,)
    parts = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(part.shape, generator=random, dtype=part.dtype) for part in parts]
    inputs = [given[place] for place in places]
    if parts and not ran:
        reached = torch.autograd.grad(parts, inputs, weights, allow_unused=True)
    else:
        reached = (None,) * len(inputs)
    for place in places:
        given[place] = given[place].detach()
    return reached, ran


def _first_wrong(exercise: Exercise, results: list, attempt: Callable | None = None) -> str:
    """What is wrong with the first wrong one of the results there are, or "".

    Without the attempt only known mistakes count.
    """
    cases = len(exercise.cases())
    expected = answers(exercise, exercise.reference, len(results))
    for number, (result, right) in enumerate(zip(results, expected, strict=True), start=1):
        complaint = _compare(exercise, result, right, number > cases)
        if not complaint:
            continue
        if 1 < number <= cases:
            before = "Case 1 is" if number == 2 else f"Cases 1 to {number - 1} are"
            complaint += f" {before} right."
        if named := diagnose(exercise, results, number):
            complaint = complaint.replace(f" {NEAR}", "")  # that guesses, and the name knows
            return f"{named} {_case(exercise, number)}: {complaint}"
        if attempt is None:
            return ""
        try:
            related = _related(exercise, attempt, results)
        except Exception:  # results can be anything, and the rest is to be said all the same
            related = ""
        return f"{related} {_case(exercise, number)}: {complaint}".lstrip()
    return ""


def _related(exercise: Exercise, attempt: Callable, results: list) -> str:
    """How wrong results that no known mistake gives are related to the right ones, or ""."""
    cases, expected = exercise.cases(), answers(exercise, exercise.reference, len(results))
    backward = all(map(same, results, expected, itertools.repeat(exercise.tolerance, len(cases))))
    parts = exercise.gradients if backward else exercise.parts
    tries = range(len(cases), len(results)) if backward else range(len(cases))
    equal = same_gradient if backward else same

    def agree(found, right) -> bool:
        pairs = zip(found, right, strict=True) if backward else [(found, right)]
        return all(equal(a, b, exercise.tolerance) for a, b in pairs)

    wrong = [one for one in tries if not agree(results[one], expected[one])]
    part = 0  # the first wrong one
    if parts:
        both = zip(results[wrong[0]], expected[wrong[0]], strict=True)
        part = next(i for i, (a, b) in enumerate(both) if not equal(a, b, exercise.tolerance))
    pairs = []
    for one in wrong:
        found, right = results[one], expected[one]
        if parts:
            found, right = found[part], right[part]
        if type(found) is not type(right):
            return ""  # it is told as such
        given = dict(zip(exercise.parameters, cases[one % len(cases)], strict=False))
        axes = [] if backward else exercise.axes.split(";")[part if parts else 0].split("|")
        kinds = [kind.split() for kind in axes]
        axes = next((kind for kind in kinds if len(kind) == getattr(right, "ndim", 0)), [])
        if not equal(found, right, exercise.tolerance):
            pairs.append(Wrong(given, found, right, axes, attempt.__doc__))
    if said := "" if backward else _of_arguments(exercise, attempt, results, wrong):
        return said
    if not backward:
        for other, name in enumerate(parts):
            if all(same(results[i][part], expected[i][other], exercise.tolerance) for i in wrong):
                how = (
                    "stands at the end in" if parts[part] in exercise.in_place else "you return as"
                )
                return f"What {how} {parts[part]} is what {name} must be."
    said = relation(pairs, exercise.tolerance)
    of = f"The gradient of `{parts[part]}`" if backward else parts[part] if parts else ""
    return f"{of}: {said}" if said and of else said


def _of_arguments(exercise: Exercise, attempt: Callable, results: list, wrong: list[int]) -> str:
    """Whether all results are right for other arguments, or do not depend on one, or ""."""
    cases, names = exercise.cases(), exercise.parameters
    tries = [wrong[0], *(one for one in range(len(cases)) if one != wrong[0])]
    several = not all(map(is_constant, map(results.__getitem__, wrong)))
    for sentence, changed in other_arguments(names, cases) if several else ():
        own = [(arguments, False) for arguments in changed]
        try:
            found = _answers(exercise, exercise.reference, tries, own, watch=False)
            both = ((results[one], next(found)) for one in tries)
            # Where all is nan, that has many reasons.
            if all(same(a, b, exercise.tolerance) and not is_nan(b) for a, b in both):
                return sentence
        except Exception:  # with these arguments the right function does nothing
            continue
    for place, name in enumerate(names[: len(cases[0])]):
        told = f"`{name}` has no effect in your function: with another one it gives the same."
        if _without_effect(exercise, attempt, tries, place):
            return told
        if len(wrong) < len(cases) and _without_effect(exercise, attempt, wrong, place):
            return f"Where it is wrong, {told}"
    return ""


def _without_effect(
    exercise: Exercise, attempt: Callable, tries: Iterable[int], place: int
) -> bool:
    """Whether another argument at that place changes right results and none of the attempt's."""
    cases, counts = exercise.cases(), 0
    for one in tries:
        other = another(cases[one][place])
        if other is None:
            return False
        changed = (*cases[one][:place], other, *cases[one][place + 1 :])
        own = [(cases[one], False), (changed, False)]
        try:
            right = list(_answers(exercise, exercise.reference, (0, 1), own, watch=False))
            with contextlib.redirect_stdout(io.StringIO()):  # it has printed in its tries
                found = list(_answers(exercise, attempt, (0, 1), own, watch=False))
        except Exception:
            return False
        if not all(map(shows_all, (*right, *found))) or not same(*found, 0.0):
            return False
        counts += not same(*right, exercise.tolerance)
    return counts > 1  # once could be a softmax that is all in one place already


def _compare(exercise: Exercise, result, expected, backward: bool) -> str:
    """What is wrong with one result, or ""."""
    if backward:
        return of_gradients(result, expected, exercise.gradients, exercise.tolerance)
    if exercise.parts and result is not None:
        written = len(exercise.in_place)
        return of_parts(
            result, expected, exercise.parts, exercise.axes, written, exercise.tolerance
        )
    return difference(result, expected, exercise.axes, exercise.tolerance)


def _whole(exercise: Exercise, result, given: list):
    """The result, its steps side by side, followed by the tensors that were to be written into."""
    if exercise.steps and isinstance(result, (list, tuple)):
        result = torch.stack(list(result), dim=1)
    if exercise.parts and isinstance(result, list):  # as good as a tuple
        result = tuple(result)
    if not exercise.in_place or not isinstance(result, tuple):
        return result
    return (*result, *(given[exercise.parameters.index(name)] for name in exercise.in_place))


def answers(exercise: Exercise, function: Callable, number: int | None = None) -> list:
    """What the reference or a known mistake makes of the first `number` tries, or of all."""
    tries = range(len(_tries(exercise)))[:number]
    return list(_answers(exercise, function, tries))


def _answers(
    exercise: Exercise,
    function: Callable,
    tries: Iterable[int],
    own: list[tuple[tuple, bool]] | None = None,
    watch: bool = True,
) -> Iterator:
    """One after the other. Of cases of its own, or of those given."""
    own = own or _tries(exercise)
    for one in tries:
        arguments, backward = own[one]
        # What is written into, and may be returned itself, must not be another try's as well.
        given = copied(arguments) if exercise.in_place else list(arguments)
        result, _ = _result(exercise, function, given, backward, watch=watch)
        yield _whole(exercise, result, given)


def _lasting(exercise: Exercise) -> list[tuple[tuple, bool]] | None:
    """The tries, if they are the same after use: some hand over objects that remember."""
    tries, plain = _tries(exercise), (Tensor, int, float, str, tuple, NoneType)
    kept = all(isinstance(one, plain) for arguments, _ in tries for one in arguments)
    kept = kept or hasattr(exercise.cases, "cache_info")  # the same objects serve all tries anyway
    return tries if kept and not exercise.in_place else None


def diagnose(exercise: Exercise, results: list, number: int) -> str:
    """The sentence of the known mistake that gives just these results, or "" if none or several.

    Else of two mistakes that do so together, else of the one that explains at least all results up
    to `number`, the first wrong one.
    """
    single = {mistake.wrong: mistake.says for mistake in exercise.mistakes}
    own, cases = _lasting(exercise), len(exercise.cases())

    def found(wrong: Callable, one: int) -> object:
        if (wrong, one) not in exercise.found:
            [result] = _answers(exercise, wrong, [one], own, watch=False)
            if own is None or wrong not in single:
                return result
            exercise.found[wrong, one] = result
        return exercise.found[wrong, one]

    def explain(wrong: Callable, tries: Iterable[int]) -> bool:
        try:
            return all(
                _alike(results[one], found(wrong, one), exercise.tolerance, number <= cases)
                if one >= cases
                else same(results[one], found(wrong, one), exercise.tolerance)
                for one in tries
            )
        except Exception:
            return False

    # The first wrong result first: most candidates fail there.
    all_tries = [number - 1, *(one for one in range(len(results)) if one != number - 1)]
    pairs, kinds = {}, {}
    # Where all values are right and a gradient is not, no two mistakes can be the reason. Of a
    # mistake's variants the first stands for all.
    for wrong, says in single.items() if number <= cases else ():
        kinds.setdefault(says, wrong)
    for (first, a), (second, b) in itertools.combinations(kinds.items(), 2):
        if both := _both(a, b):
            pairs[both] = f"Two things at once. {first} And: {second}"
    up_to = all_tries[:number]
    for candidates, tries in ((single, all_tries), (pairs, all_tries), (single, up_to)):
        said = {says for wrong, says in candidates.items() if explain(wrong, tries)}
        if len(said) == 1:
            return said.pop()
        if said:
            return ""
    return ""


def _alike(a: tuple, b: tuple, tolerance: float, none_is_0: bool) -> bool:
    """Whether gradients are equal; where values differ, none is as good as one of 0."""
    return all(
        not (y if x is None else x).any()
        if none_is_0 and (x is None) != (y is None)
        else same_gradient(x, y, tolerance)
        for x, y in zip(a, b, strict=True)
    )


def _of_crash(exercise: Exercise, results: list, error: BaseException) -> str:
    """The sentence of the known crash that gives these results and then raises the same, or ""."""

    def what(error: BaseException) -> tuple:
        return type(error), shown(error), getattr(error, "of_torch", ("", []))[1]

    said = set()
    for mistake in exercise.crashes:
        found = _answers(exercise, mistake.wrong, range(len(results) + 1))
        try:
            if not all(same(one, next(found), exercise.tolerance) for one in results):
                continue
        except Exception:  # it raises earlier
            continue
        try:
            next(found)
        except Exception as other:
            if what(other) == what(error):
                said.add(mistake.says)
    return said.pop() if len(said) == 1 else ""


def _of_autograd(error: BaseException) -> str:
    """What is said of what autograd raises where it was written into or NumPy is used, or ""."""
    text = shown(error) if isinstance(error, RuntimeError) else ""
    if "Can't call numpy()" in text:
        return (
            "NumPy knows nothing of gradients, and .detach() would lose them: do the whole"
            " computation with torch's functions."
        )
    if "inplace" not in text and "in-place" not in text:
        return ""
    return (
        "You write into a tensor (+=, out[...] =, a method whose name ends with _) that autograd"
        " needs as it was, for the way back. Make a new one: y = y + z, not y += z."
    )


def _both(a: Callable, b: Callable) -> Callable | None:
    """Two known mistakes at once, if they are edits of different things in one function."""
    edits = [one for one in (a, b) if isinstance(one, functools.partial) and not one.args]
    if len(edits) < 2 or a.func is not b.func or set(a.keywords) & set(b.keywords):
        return None
    return functools.partial(a.func, **a.keywords, **b.keywords)


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
    """Where a finished piece is: the lesson's module, its checks, the reference's, and others."""
    checks = exercise.cases.__module__
    names = {checks, checks.replace(".checks", ""), exercise.reference.__module__}
    names |= set(exercise.without)
    return {importlib.import_module(name) for name in names}


def _signature(exercise: Exercise, attempt: Callable, arguments: tuple) -> str:
    arguments = arguments[: len(exercise.parameters)]
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


def _holds_tensors(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def _describe(exercise: Exercise, arguments: tuple) -> str:

    def described(name: str, value) -> str:
        if isinstance(value, Tensor):
            return f"{name} {tuple(value.shape)}"
        if isinstance(value, Image):
            return f"{name}: {value.mode}, {value.width} x {value.height} pixels"
        if isinstance(value, (list, tuple)) and _holds_tensors(value):
            kind = "list" if isinstance(value, list) else "tuple"
            return f"{name}: {len(value)} in a {kind}"  # all numbers help nobody
        if isinstance(value, float) and not value.is_integer():
            return f"{name} = {value:.6g}"
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
