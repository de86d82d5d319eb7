"""The process in which a student's notebook runs when a class is marked. Started by path.

It holds no reference and no check: of minipali only the modules that the other side allows, and in
place of all others stand-ins that refuse to work. It runs the notebook's statements, then calls the
student's functions on arguments that it is sent, and sends back what they return. Whoever reads
its answers (`minipali.attempts`) believes none of them: it compares the numbers.

What comes in is pickled, by the side that is trusted. What goes out is JSON and safetensors.
"""

import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import linecache
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent
# How a piece is called, and what some exercises hand over: no reference among it.
NEEDED = [f"minipali.checks.{name}" for name in ("comparing", "engine", "running", "shapes")]
HANDED = ["minipali.checks.blocks", "minipali.checks.trainable"]
allowed: set[str] = {*NEEDED, *HANDED}  # what is here of minipali
LONGEST_FILE = 64 * 2**20  # bytes


# --- minipali, as far as it is here ---------------------------------------------------------------


class Refused(Exception):
    """A finished piece was used."""


used: list[str] = []  # the finished things that were used since this was cleared


class StandIn:
    """In place of a function, class or object of minipali: whatever is done with it is refused."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, name: str):
        if name.startswith("__"):  # asked by Python itself, as when it looks for a docstring
            raise AttributeError(name)
        return StandIn(f"{self._name}.{name}")

    def __call__(self, *given, **named):
        used.append(self._name)
        raise Refused(f"{self._name} is a finished piece")


class _Stand(ModuleType):
    """In place of a module of minipali."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        whole = f"{self.__name__}.{name}"
        return importlib.import_module(whole) if whole in allowed else StandIn(whole)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The first to be asked for minipali's modules."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "minipali":
            return None
        if name in allowed:
            file = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
            return importlib.util.spec_from_file_location(name, file)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Stand(spec.name)

    def exec_module(self, module):
        module.__path__ = []


# --- messages -------------------------------------------------------------------------------------


def packed(value, tensors: list) -> object:
    """A value as JSON; its tensors go into the list. What is neither is named by its type."""
    import numpy as np
    import torch

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
        if plain and not value.is_complex() and not value.is_quantized:
            tensors.append(value.detach().clone(memory_format=torch.contiguous_format))
            return {"tensor": len(tensors) - 1}
        return {"other": f"{value.layout} tensor on {value.device}".removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [packed(one, tensors) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(k, tensors), packed(v, tensors)] for k, v in value.items()]}
    return {"other": type(value).__name__}


def read(stream) -> bytes | None:
    """The next message, or None at the end."""
    length = int.from_bytes(stream.read(8), "little")
    return (stream.read(length) or None) if length else None


def write(stream, message: bytes) -> None:
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


class Line:
    """The two pipes to the other side."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.incoming, self.outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)

    def hear(self):
        """The next message. At the end, and in a process that a student's code forked: exit."""
        if os.getpid() != self.owner:
            os._exit(0)
        message = read(self.incoming)
        if message is None:
            os._exit(0)
        return _Unpickler(io.BytesIO(message), self).load()

    def tell(self, **said) -> None:
        from safetensors.torch import save

        if os.getpid() != self.owner:
            os._exit(0)
        tensors: list = []
        text = json.dumps({key: packed(value, tensors) for key, value in said.items()}).encode()
        numbers = save({str(number): one for number, one in enumerate(tensors)})
        write(self.outgoing, len(text).to_bytes(8, "little") + text + numbers)


class _Unpickler(pickle.Unpickler):
    """Functions among the arguments stay on the other side; here each is one that asks for it."""

    def __init__(self, file, line: Line) -> None:
        super().__init__(file)
        self.line = line

    def persistent_load(self, number):
        line = self.line

        def given_function(*given, **named):
            line.tell(ask=number, given=given, named=named)
            answer = line.hear()
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return answer["value"]

        return given_function


# --- the notebook ---------------------------------------------------------------------------------


def parsed(cell: str) -> list[ast.stmt]:
    """The statements of a cell; lines for IPython (%, !) become `pass`. Raises SyntaxError."""
    try:
        return ast.parse(cell).body
    except SyntaxError:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.M)).body


def names_in(statement: ast.stmt) -> set[str]:
    """The names that a statement gives something to."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    return {
        one.id
        for one in ast.walk(statement)
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    }


class Notebook:
    """A notebook whose statements have run, each by itself: one that fails stops no other."""

    def __init__(self, cells: list[str], skipped: set[tuple[int, int]], line: Line) -> None:
        module = ModuleType("__main__")
        sys.modules["__main__"] = module
        self.cells, self.scope = cells, vars(module)
        self.failed: dict[str, str] = {}  # names that lack for an error, which is told
        self.skipped: set[str] = set()  # names that lack as their statement was stopped before
        for number, cell in enumerate(cells, start=1):
            file = f"cell {number}"
            linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
            try:
                statements = parsed(cell)
            except Exception as error:  # ValueError, RecursionError and MemoryError are there too
                said = f"cell {number}: {type(error).__name__}: {error}"
                found = re.findall(r"^(?:def|class)\s+(\w+)|^(\w+)\s*=", cell, re.M)
                self.failed |= {name: said for pair in found for name in pair if name}
                continue
            for place, statement in enumerate(statements):
                if (number, place) in skipped:
                    self.skipped |= names_in(statement)
                    continue
                line.tell(at=[number, place])
                self._run(statement, file)

    def _run(self, statement: ast.stmt, file: str) -> None:
        names = names_in(statement)
        try:
            exec(compile(ast.Module([statement], []), file, "exec"), self.scope)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            said = f"{file}: {type(error).__name__}: {error}"
            self.failed |= dict.fromkeys(names, said)
        else:
            for name in names:
                self.failed.pop(name, None)

    def given(self, piece: str) -> str:
        """The name that a piece has in the notebook: what was given to `check`, or its own."""
        pattern = rf"^\s*check\(\s*[\"']{piece}[\"']\s*,\s*(\w+)\s*\)"
        found = [name for cell in self.cells for name in re.findall(pattern, cell, re.M)]
        written = [name for name in found if name in self.scope]
        return (written or [piece])[-1]


def of_signature(attempt) -> list | None:
    """Parameters as [name, kind, has a default], or None where there is no signature."""
    import inspect

    try:
        given = inspect.signature(attempt).parameters.values()
    except (TypeError, ValueError):
        return None
    return [[one.name, int(one.kind), one.default is not one.empty] for one in given]


def about(notebook: Notebook, piece: str) -> dict:
    """What is known of a piece before it is called."""
    import inspect

    name = notebook.given(piece)
    if name not in notebook.scope:
        return {"missing": notebook.failed.get(name), "skipped": name in notebook.skipped}
    attempt = notebook.scope[name]
    if isinstance(attempt, (StandIn, _Stand)):
        own = attempt._name if isinstance(attempt, StandIn) else attempt.__name__
        return {"refused": f"This is {own}, the finished piece"}
    if inspect.isclass(attempt) or not callable(attempt):
        kind = attempt if inspect.isclass(attempt) else type(attempt)
        return {"kind": kind.__name__, "is_class": inspect.isclass(attempt)}
    return {"signature": of_signature(attempt), "doc": str(getattr(attempt, "__doc__", ""))[:5000]}


def called(attempt: Callable, asked: dict) -> tuple[dict, list, object]:
    """Call a function: what is to be told; then its inputs and result, for gradients."""
    from torch import Tensor

    from minipali.checks.comparing import same
    from minipali.checks.engine import failed
    from minipali.checks.running import DATA, call, copied

    given = list(asked["given"])
    inputs = [given[place].requires_grad_() for place in asked["differentiable"]]
    before = copied(tuple(one.detach() if isinstance(one, Tensor) else one for one in given))
    function = asked["around"](attempt) if asked["around"] else attempt
    used.clear()
    try:
        result, ran = call(function, given, set(), asked["banned"], asked["largest"])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            error = RuntimeError("KeyboardInterrupt")
        if used:
            return {"refused": f"runs {used[0]}"}, [], None
        outcome, key = failed("", error), error.args[0] if error.args else None
        told = {"raised": type(error).__name__, "status": outcome.status}
        told |= {"message": outcome.message, "key": key if isinstance(key, str) else ""}
        name, shapes = getattr(error, "of_torch", ("", []))
        return told | {"of_torch": [name, [list(shape) for shape in shapes]]}, [], None
    if ran or used:
        return {"refused": ran or f"runs {used[0]}"}, [], None
    changed = [
        [place, one.detach() if isinstance(one, Tensor) else one]
        for place, (one, old) in enumerate(zip(given, before, strict=True))
        if isinstance(one, (Tensor, *DATA)) and not same(one, old, 0.0)
    ]
    parts = result if isinstance(result, tuple) else (result,)
    graph = [isinstance(one, Tensor) and one.requires_grad for one in parts]
    return {"returned": result, "changed": changed, "graph": graph}, inputs, result


def gradients(inputs: list, result, weights: list) -> list:
    """Gradients of the result's parts that have a graph, for the inputs; None where none comes."""
    import torch

    from minipali.checks.running import plain_torch

    parts = result if isinstance(result, tuple) else (result,)
    parts = [one for one in parts if isinstance(one, torch.Tensor) and one.requires_grad]
    with plain_torch():
        return list(torch.autograd.grad(parts, inputs, weights, allow_unused=True))


def limit(memory: int, seconds: int) -> None:
    """Limits of the system's own, where it has them; the other side looks, too."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LONGEST_FILE, LONGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        limit_memory(memory)


def limit_memory(more: int) -> None:
    """No more addresses than this process has now, and `more` bytes. On Linux; else nothing."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def serve() -> None:
    """Run a notebook, then answer until the other side has enough."""
    line = Line()
    start = line.hear()
    allowed.update(start["allowed"])
    sys.meta_path.insert(0, Finder())
    for name in (*NEEDED, "safetensors.torch"):
        importlib.import_module(name)
    limit(start["memory"], start["seconds"])
    line.tell(started=True)
    notebook = Notebook(start["cells"], start["skipped"], line)
    line.tell(ready=True)
    inputs, result = [], None
    while True:
        asked = line.hear()
        if "about" in asked:
            line.tell(**about(notebook, asked["about"]))
        elif "weights" in asked:
            try:
                line.tell(gradients=gradients(inputs, result, asked["weights"]))
            except Exception as error:
                line.tell(gradients=None, raised=f"{type(error).__name__}: {error}")
        else:
            attempt = notebook.scope.get(notebook.given(asked["call"]))
            told, inputs, result = called(attempt, asked)
            line.tell(**told)


if __name__ == "__main__":
    serve()
