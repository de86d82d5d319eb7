"""A student's functions, called in a process of their own and examined in this one.

That process (`minipali.student_process`) gets a notebook's code, then arguments, and gives numbers
back. The cases, the references and the comparison stay here, where nothing of the student's runs.
So *correct* can only be earned by right numbers. All else that the process says of itself, that a
piece crashed or is not written, is believed: it is to the student's own disadvantage.
"""

import builtins
import contextlib
import inspect
import io
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

import psutil
import torch
from PIL.Image import Image
from safetensors.torch import load
from torch import Tensor, nn

from minipali import student_process
from minipali.checks.comparing import shown
from minipali.checks.engine import (
    CRASHED,
    NOT_ATTEMPTED,
    REFUSED,
    Exercise,
    Outcome,
    examine,
)
from minipali.checks.lessons import STEMS, by_lesson
from minipali.checks.running import OWN
from minipali.student_process import HANDED

STOPPED = "stopped"
TIME_LIMIT = 80  # seconds for one notebook
STEPS = 4  # that many statements or pieces without an end fit into the time limit
MEMORY = 2 * 2**30  # bytes, of the process and of all that it starts
PROCESSES = 16  # that a notebook may have at a time
LONGEST = 32 * 2**20  # bytes of one answer


class Stopped(Exception):
    """The student's process was ended, or ended itself; its text says why."""


class Process:
    """A student's process, with limits. Whatever it starts is ended with it."""

    def __init__(self, step: float, until: float, memory: int) -> None:
        """step: seconds for one answer; until: when time.monotonic() says that all must end."""
        self.step, self.until, self.memory = step, until, memory
        self.ended = ""  # why
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.functions: list = []  # those among the arguments: they run here
        self.limit = until
        self.answers: queue.Queue[dict | None] = queue.Queue()
        adopt_orphans()
        self.before = psutil.Process().children(recursive=True)
        file = student_process.__file__
        self.process = subprocess.Popen(
            [sys.executable, "-I", file],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.folder.name, env=_environment(self.folder.name), start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )  # fmt: skip
        threading.Thread(target=self._read, args=[self.process.stdout], daemon=True).start()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _read(self, stream: BinaryIO) -> None:
        with contextlib.suppress(OSError, ValueError):
            while len(head := stream.read(8)) == 8:
                length = int.from_bytes(head, "little")
                if length > LONGEST:
                    self._end(f"it gave back more than {LONGEST // 2**20} MB")
                    break
                # In this thread: in the other, exercise 14's check sees who calls safetensors.
                try:
                    answer = _decoded(stream.read(length))
                except Exception:  # whatever is wrong with it: a student may have written it
                    self._end("its answer cannot be read")
                    break
                self.answers.put(answer)
        self.answers.put(None)

    def _watch(self) -> None:
        """End the process at the first limit that it breaks."""
        while self.process.poll() is None and not self.ended:
            if time.monotonic() > self.limit:
                whole = self.limit >= self.until
                self._end("the time for the notebook is over" if whole else "it took too long")
                return
            with contextlib.suppress(psutil.Error):
                own = psutil.Process(self.process.pid)
                family = [own, *own.children(recursive=True)]
                if len(family) > PROCESSES:
                    self._end(f"it started more than {PROCESSES} processes")
                    return
                held = 0
                for one in family:
                    with contextlib.suppress(psutil.Error):
                        held += one.memory_info().rss
                if held > self.memory:
                    self._end(f"it took more than {self.memory / 2**30:g} GB of memory")
                    return
            time.sleep(0.05)
        # What it leaves behind may hold the pipe, which then has no end.
        self._end("its process ended by itself")

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        end_family(self.process, self.before)
        self.answers.put(None)  # for who waits, even where something still holds the pipe

    def start(self, **message) -> dict:
        """Send what to begin with, and return the first answer. Raises Stopped.

        The time until then is torch's, which may take long to import, and no student's.
        """
        self._send(message)
        return self.hear()

    def ask(self, **message) -> dict:
        """Send a message, serve what the process asks for meanwhile, and return its answer.

        Raises Stopped.
        """
        self.limit = min(time.monotonic() + self.step, self.until)
        self._send(message)
        while True:
            said = self.hear()
            if "ask" not in said:
                return said
            self._send(self._served(said))

    def _send(self, message: dict) -> None:
        buffer = io.BytesIO()
        _Pickler(buffer, self.functions).dump(message)
        try:
            student_process.write(self.process.stdin, buffer.getvalue())
        except (OSError, ValueError):
            raise self._stopped() from None

    def next(self) -> dict:
        """The next message of those that come unasked. Raises Stopped."""
        self.limit = min(time.monotonic() + self.step, self.until)
        return self.hear()

    def hear(self) -> dict:
        """The next message. Raises Stopped where none comes any more."""
        message = self.answers.get()
        if message is None or self.ended:
            raise self._stopped()
        return message

    def _stopped(self) -> Stopped:
        self._end("its process ended by itself")
        return Stopped(self.ended)

    def _served(self, said: dict) -> dict:
        """What a function that was among the arguments makes of the student's own."""
        try:
            function = self.functions[said["ask"]]
            result = function(*said["given"], **said["named"])
            return {"value": result.detach() if isinstance(result, Tensor) else result}
        except Exception as error:  # theirs: it was given what does not fit
            return {"error": shown(error)}

    def close(self) -> None:
        self._end("closed")
        self.watcher.join()
        for stream in (self.process.stdin, self.process.stdout):
            # A write that failed before is tried again by close.
            with contextlib.suppress(OSError):
                stream.close()
        self.folder.cleanup()


def end_family(process: subprocess.Popen, before: list[psutil.Process]) -> None:
    """Kill a process and what it has started, also what was left to us; not our children before."""
    if os.name == "posix":  # at once, so that nothing is started meanwhile
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                one.kill()
    process.kill()
    process.wait()
    orphans = [one for one in psutil.Process().children(recursive=True) if one not in before]
    for one in orphans:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(orphans, timeout=1)


def adopt_orphans() -> None:
    """On Linux: a process that a student's leaves behind becomes a child of this one, not of init.

    So it is found when the student's process ends.
    """
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _environment(folder: str) -> dict[str, str]:
    """Of this process's variables only what Python needs: others may hold secrets."""
    kept = ("PATH", "HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "SYSTEMROOT", "LANG")
    kept += ("LC_ALL", "LD_LIBRARY_PATH", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    own = {name: os.environ[name] for name in kept if name in os.environ}
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
    fixed = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return own | places | fixed


# --- messages -------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """For the student's process, which has few of this package's classes.

    Functions stay here, and their number goes; a list, dict, tuple or bytes of a class of its own
    goes as a plain one.
    """

    def __init__(self, file, functions: list) -> None:
        super().__init__(file)
        self.functions = functions

    def persistent_id(self, one):
        if not callable(one) or isinstance(one, type):
            return None
        home = type(one).__module__ if isinstance(one, nn.Module) else one.__module__
        if str(home).split(".")[0] != "minipali" or home in HANDED:
            return None
        self.functions.append(one)
        return len(self.functions) - 1

    def reducer_override(self, one):
        kind = type(one)
        if kind.__module__.split(".")[0] == "minipali" and kind.__module__ not in HANDED:
            for base in (bytes, dict, list, tuple):
                if isinstance(one, base):
                    return base, (base(one),)
        return NotImplemented


def _decoded(message: bytes) -> dict:
    """What a student's process says: JSON and, behind it, the tensors that it names."""
    length = int.from_bytes(message[:8], "little")
    said, tensors = json.loads(message[8 : 8 + length]), load(message[8 + length :])
    return {key: _unpacked(value, tensors) for key, value in said.items()}


def _unpacked(value, tensors: dict[str, Tensor]):
    """The value that `packed` made JSON of.

    What JSON cannot say is an object of a class of that name, which is nothing that is asked for.
    """
    if isinstance(value, list):
        return [_unpacked(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[str(value["tensor"])]
    if "bytes" in value:
        return value["bytes"].encode("latin-1")
    if "list" in value or "tuple" in value:
        kind = tuple if "tuple" in value else list
        return kind(_unpacked(one, tensors) for one in value.get("tuple", value.get("list")))
    if "dict" in value:
        return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in value["dict"]}
    return type(str(value["other"])[:80], (), {})()


# --- an attempt -----------------------------------------------------------------------------------


class _Through(torch.autograd.Function):
    """A call in the student's process, as one step of the graph in this one."""

    @staticmethod
    def forward(ctx, process, run, *inputs):
        parts, graph = run()
        tensors = [isinstance(one, Tensor) for one in parts]
        ctx.process, ctx.graph = process, graph
        ctx.set_materialize_grads(False)
        without = zip(parts, tensors, graph, strict=True)
        ctx.mark_non_differentiable(*(one for one, is_one, has in without if is_one and not has))
        return parts

    @staticmethod
    def backward(ctx, *weights):
        wanted = [one for one, has in zip(weights, ctx.graph, strict=True) if has]
        said = ctx.process.ask(weights=wanted)
        if said["gradients"] is None:
            raise RuntimeError(said["raised"])
        return (None, None, *said["gradients"])


def attempt_of(exercise: Exercise, process: Process, told: dict) -> Callable:
    """A function that does in this process what the student's does in theirs.

    What kept it from returning something, if anything, is noted in its attribute `failure`.
    """

    def run(given: tuple) -> tuple[object, list[bool]]:
        said = process.ask(
            call=exercise.name,
            given=tuple(one.detach() if isinstance(one, Tensor) else one for one in given),
            differentiable=[i for i, one in enumerate(given) if _is_leaf(one)],
            around=exercise.asked if _is_handed(exercise.asked) else None,
            banned=exercise.banned,
            largest=exercise.largest,
        )
        if "refused" in said:
            attempt.failure = Outcome(exercise.name, REFUSED, f"It {said['refused']}. {OWN}")
            raise RuntimeError
        if "raised" in said:
            status = NOT_ATTEMPTED if said["status"] == NOT_ATTEMPTED else CRASHED
            attempt.failure = Outcome(exercise.name, status, shown(said["message"]))
            if status == NOT_ATTEMPTED:
                raise NotImplementedError
            raise _error(said)
        for place, value in said["changed"]:
            _change(given[place], value)
        return said["returned"], said["graph"]

    def attempt(*given):
        inputs = [one for one in given if _is_leaf(one)]
        if not inputs:
            return run(given)[0]
        is_tuple = False

        def parts() -> tuple[tuple, list[bool]]:
            nonlocal is_tuple
            result, graph = run(given)
            is_tuple = isinstance(result, tuple)
            return (result if is_tuple else (result,)), graph

        result = _Through.apply(process, parts, *inputs)
        return result if is_tuple else result[0]

    attempt.failure = None
    attempt.__module__, attempt.__doc__ = "notebook", shown(told["doc"])
    if told["signature"] is not None:
        attempt.__signature__ = inspect.Signature(
            inspect.Parameter(
                name,
                inspect._ParameterKind(kind),
                default=None if optional else inspect.Parameter.empty,
            )
            for name, kind, optional in told["signature"]
        )
    return attempt


def _is_leaf(one) -> bool:
    return isinstance(one, Tensor) and one.requires_grad


def _is_handed(function: Callable | None) -> bool:
    """Whether this function is there in the student's process."""
    return function is not None and function.__module__ in HANDED


def _error(said: dict) -> Exception:
    """The error that the student's function raised, as far as a known mistake is told by it."""
    kind, text = str(said["raised"]), said["key"] or shown(said["message"])
    error: Exception = RuntimeError(text)
    if kind == "JSONDecodeError":
        error = json.JSONDecodeError(text, "", 0)
    elif kind == "UnicodeDecodeError":
        error = UnicodeDecodeError("utf-8", b"", 0, 1, text)
    elif inspect.isclass(found := getattr(builtins, kind, None)) and issubclass(found, Exception):
        with contextlib.suppress(TypeError):  # some are made of more than a text
            error = found(text)
    name, shapes = said["of_torch"]
    error.of_torch = name, [tuple(shape) for shape in shapes]
    return error


def _change(mine, theirs) -> None:
    """Change an argument in place as the student's function has changed its own."""
    if isinstance(mine, Tensor):
        mine.data = theirs
    elif isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, Image):
        mine.info["changed"] = True  # how does not matter: it may not be


# --- a notebook -----------------------------------------------------------------------------------


class Written:
    """The pieces of one notebook. After a stop the rest is tried in a new process."""

    def __init__(
        self, cells: list[str], stem: str, time_limit: float = TIME_LIMIT, memory: int = MEMORY
    ) -> None:
        """cells: the notebook's code; stem: of the exercise, "07_rope"."""
        self.cells, self.memory = cells, memory
        self.step, self.until = time_limit / STEPS, time.monotonic() + time_limit
        self.allowed = allowed_in(stem)
        self.skipped: set[tuple[int, int]] = set()  # (cell, statement) that were stopped
        self.process: Process | None = None

    def close(self) -> None:
        if self.process:
            self.process.close()
            self.process = None

    def _running(self) -> Process:
        """The process, with all statements run but those that stop it. Raises Stopped."""
        while not self.process:
            self.process, at = Process(self.step, self.until, self.memory), None
            try:
                said = self.process.start(
                    cells=self.cells, skipped=self.skipped, allowed=self.allowed,
                    memory=self.memory, seconds=int(self.step * STEPS) + 10,
                )  # fmt: skip
                while "ready" not in said:
                    at = tuple(said["at"]) if "at" in said else None
                    said = self.process.next()
            except Stopped:
                over = time.monotonic() > self.until
                self.close()
                if over or at is None or at in self.skipped:
                    raise
                self.skipped.add(at)
        return self.process

    def outcome(self, exercise: Exercise) -> Outcome:
        """What `examine` says of the student's function; also stopped, and why."""
        try:
            return self._outcome(exercise)
        except Stopped as error:
            said = str(error)
        except Exception:  # a student may have written what is no answer to the question
            said = "its answer cannot be read"
        self.close()
        return Outcome(exercise.name, STOPPED, f"It was stopped: {said}.")

    def _outcome(self, exercise: Exercise) -> Outcome:
        process = self._running()
        told = process.ask(about=exercise.name)
        if "missing" in told:
            if told["skipped"]:
                raise Stopped("the statement that defines it does not come to its end")
            if told["missing"]:
                return Outcome(exercise.name, CRASHED, shown(told["missing"]))
            return Outcome(exercise.name, NOT_ATTEMPTED, "It is not in the notebook.")
        if "refused" in told:
            return Outcome(exercise.name, REFUSED, f"{told['refused']}. {OWN}")
        if "kind" in told:
            found = type(shown(told["kind"]), (), {"__module__": "notebook"})
            return examine(exercise, found if told["is_class"] else found())
        attempt = attempt_of(exercise, process, told)
        # What is forbidden is looked for in the student's process: there it would happen.
        here = replace(exercise, banned=(), largest=None)
        if (asked := exercise.asked) and _is_handed(asked):
            here = replace(here, asked=lambda one: one if one is attempt else asked(one))
        outcome = examine(here, attempt)
        if process.ended:
            raise Stopped(process.ended)
        if attempt.failure and outcome.status in (CRASHED, NOT_ATTEMPTED):
            return attempt.failure
        return outcome


def allowed_in(stem: str) -> list[str]:
    """The modules that the pieces of a lesson may use: those of the lessons before it."""
    number = list(by_lesson()).index(stem)
    return [f"minipali.{name}" for name in ("config", *STEMS[:number])]
