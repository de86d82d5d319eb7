"""How a piece is run: on copies, with torch as it comes, and with an eye on what it calls."""

import copy
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import CodeType, FunctionType, ModuleType

import torch
from PIL.Image import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

DATA = (list, Image)  # arguments, beside tensors, that a function could write into
LONGEST = 1000  # what yields more often has no end
OWN = "Write your own: that is the exercise."


def _set_threads(number: int) -> None:
    if number != torch.get_num_threads():  # setting it again is not free of effects
        torch.set_num_threads(number)


def _set_device(device: torch.device) -> None:
    # None instead of the processor: a default device costs time at every call of torch.
    torch.set_default_device(None if device.type == "cpu" else device)


def _autocast(kind: str) -> tuple[Callable, Callable, bool]:
    return (
        lambda: torch.is_autocast_enabled(kind),
        lambda on: torch.set_autocast_enabled(kind, on),
        False,
    )


# What a function can change in torch: how it is read, how it is written, and what it is during a
# check, so that the outcome does not depend on the notebook's other cells (None: as it is).
SETTINGS: dict[str, tuple[Callable, Callable, object]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    "default device": (torch.get_default_device, _set_device, torch.device("cpu")),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled, True),
    "anomaly mode": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda both: torch.autograd.set_detect_anomaly(*both),
        (False, True),
    ),
    "autocast": _autocast("cpu"),
    "autocast on a GPU": _autocast("cuda"),
    "deterministic": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
        0,
    ),
    "precision of products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        "highest",
    ),
    "threads": (torch.get_num_threads, _set_threads, None),
    # One start for all: who draws random numbers gets the same as a known mistake that draws them.
    "random numbers": (
        torch.get_rng_state,
        torch.set_rng_state,
        torch.Generator().manual_seed(0).get_state(),
    ),
}


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, torch has the settings that checks run with; afterwards it has those of before."""
    before = [(write, read()) for read, write, _ in SETTINGS.values()]
    with torch.inference_mode(False):
        try:
            for _, write, plain in SETTINGS.values():
                if plain is not None:
                    write(plain)
            yield
        finally:
            for write, value in before:
                write(value)


def copied(arguments: tuple) -> list:
    """Arguments that a function may write into without harm to the case."""
    return [
        a.clone() if isinstance(a, Tensor) else copy.deepcopy(a) if isinstance(a, DATA) else a
        for a in arguments
    ]


def call(
    function: Callable,
    given: list,
    finished: set[ModuleType],
    banned: tuple[str, ...] = (),
    largest: int | None = None,
    watch: bool = True,
) -> tuple[object, str]:
    """What a function makes of arguments, and the forbidden thing that it did, in words, or "".

    finished: the modules whose functions must not run; banned: names of torch's functions that must
    not; largest: how many numbers a tensor may have that torch makes. None of them counts inside
    functions of `given`. watch: without it nothing is forbidden, and it is quick.
    Raises RuntimeError if what it returns goes on yielding without end. What one of torch's
    functions raises carries what that was given, as `of_torch`: its name and its tensors' shapes.
    """
    handed = {getattr(one, "__code__", None) for one in given} - {None}
    with ExitStack() as around:
        around.enter_context(plain_torch())
        ran = around.enter_context(_watched(finished, handed)) if watch else []
        if watch:
            around.enter_context(_Observed(banned, largest, handed, ran))
        result = function(*given)
        if isinstance(result, Iterator):  # a generator runs when it is asked
            result = list(itertools.islice(result, LONGEST + 1))
            if len(result) > LONGEST:
                raise RuntimeError(
                    f"it must come to an end, and went on after {LONGEST} values; does its loop"
                    " stop?"
                )
    return result, ran[0] if ran else ""


# --- watching -------------------------------------------------------------------------------------


class _Observed(TorchFunctionMode):
    """Notes which of torch's functions run that are banned, or make too large a tensor.

    What a function that fails was given is kept with its error.
    """

    def __init__(
        self,
        banned: tuple[str, ...],
        largest: int | None,
        handed: set[CodeType],
        ran: list[str],
    ) -> None:
        super().__init__()
        self.banned, self.largest, self.handed, self.ran = banned, largest, handed, ran

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "").split(".")[0]  # one of torch.ops: "mm.default"
        given = [*args, *(kwargs or {}).values()]
        if name in ("view", "to") and any(isinstance(one, torch.dtype) for one in given):
            name = f"{name}(dtype)"
        if not _inside(self.handed):
            if name in self.banned:
                self.ran.append(f"runs torch's {name}. {OWN}")
            for one in given:
                kind = one.dtype if isinstance(one, Tensor) else one
                if isinstance(kind, torch.dtype) and str(kind) in self.banned:
                    self.ran.append(f"runs torch's {name} with {kind}. {OWN}")
        try:
            result = function(*args, **(kwargs or {}))
        except Exception as error:
            flat = [
                one
                for each in given
                for one in (each if isinstance(each, (tuple, list)) else [each])
            ]
            error.of_torch = name, [tuple(one.shape) for one in flat if isinstance(one, Tensor)]
            raise
        made = result.numel() if isinstance(result, Tensor) else 0
        if self.largest is not None and made > self.largest and not _inside(self.handed):
            self.ran.append(
                f"makes a tensor of the shape {tuple(result.shape)}, by torch's {name}. Here none"
                f" may have more than {self.largest} numbers: work on one block at a time and keep"
                " less."
            )
        return result


class EachPlaceOnce(TorchFunctionMode):
    """Inside, no list of places that one line writes to may name one twice.

    It works on the processor, and torch promises nothing. Raises ValueError.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in ("__setitem__", "index_copy_", "index_put_"):
            given = [*args[1:], *(kwargs or {}).values()]
            flat = [x for one in given for x in (one if isinstance(one, tuple) else [one])]
            lists = [x.tolist() if isinstance(x, Tensor) and x.ndim == 1 else x for x in flat]
            for places in [x for x in lists if isinstance(x, list) and all(map(_is_whole, x))]:
                if len(set(places)) < len(places):
                    raise ValueError(
                        "torch does not say which of several things that one line writes to a place"
                        " stays there, so write only those that are to stay; places are named twice"
                        f" in {places}"
                    )
        return function(*args, **(kwargs or {}))


def _is_whole(x) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _inside(handed: set[CodeType]) -> bool:
    """Whether one of these functions is running."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in handed:
            return True
        frame = frame.f_back
    return False


_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def _watched(modules: set[ModuleType], handed: set[CodeType]) -> Iterator[list[str]]:
    """Collect the names of these modules' functions that this thread calls, outside handed code.

    What runs is watched, not what is named: a name says little, and there are many ways round it.
    So for the time being every function gets other code, in place, that notes the call and then
    does what it did. The interpreter has a hook for such things, sys.setprofile, but there is only
    one, and a profiler that is at work would lose it.
    """
    ran, thread = [], threading.get_ident()

    def note(name: str) -> None:
        if threading.get_ident() == thread and not _inside(handed):
            ran.append(f"runs {name}. {OWN}")

    with _ONE_AT_A_TIME:
        functions = [
            (one, one.__code__, one.__kwdefaults__)
            for one in _functions(modules)
            if one.__code__ not in handed
        ]
        try:
            for function, *_ in functions:
                # In this order other threads can call it at any moment.
                function.__kwdefaults__ = {
                    **(function.__kwdefaults__ or {}), "through": _noting(function, note)
                }  # fmt: skip
                yields = inspect.isgeneratorfunction(function)  # Python 3.13 wants the same kind
                function.__code__ = (_through_yielding if yields else _through).__code__
            yield ran
        finally:
            for function, code, defaults in functions:
                function.__code__, function.__kwdefaults__ = code, defaults


def _through(*given, through: Callable, **named):
    return through(*given, **named)


def _through_yielding(*given, through: Callable, **named):
    return (yield from through(*given, **named))


def _noting(function: FunctionType, note: Callable[[str], None]) -> Callable:
    own = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    own.__kwdefaults__ = function.__kwdefaults__
    module = function.__module__
    whose = "minipali's own" if module.startswith("minipali.") else f"{module}'s"

    def noting(*given, **named):
        note(f"{whose} {own.__name__}")
        return own(*given, **named)

    return noting


def _functions(modules: set[ModuleType]) -> set[FunctionType]:
    """The functions and methods that these modules define."""
    found = set()
    for module in modules:
        own = [one for one in vars(module).values() if isinstance(one, type)]
        classes = [vars(one) for one in own if one.__module__ == module.__name__]
        for names in (vars(module), *classes):
            for one in names.values():
                while hasattr(one, "__wrapped__"):  # under a decorator
                    one = one.__wrapped__
                if isinstance(one, FunctionType) and one.__module__ == module.__name__:
                    found.add(one)
    # Code with variables of an outer function (as super() needs) has no room for ours.
    return {one for one in found if not one.__code__.co_freevars}
