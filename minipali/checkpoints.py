"""What a long training leaves behind so that it can be stopped at any moment and goes on.

A checkpoint is whole or the older one, the log agrees with it, and one run has a folder to itself.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class TrainingError(ValueError):
    """A training that cannot go on as it is, in one sentence."""


# --- checkpoints ---------------------------------------------------------------------------------


def save_checkpoint(file: Path, state: dict) -> None:
    """Write a nested state of dicts, lists, numbers and tensors as one safetensors file.

    It is written beside and then renamed: a kill in the middle, or a full disk, leaves the older
    one whole. Raises TrainingError where it cannot be written.
    """
    tensors: dict[str, Tensor] = {}

    def outline(value):
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().clone().contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[key, outline(inner)] for key, inner in value.items()]}
        return [outline(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(outline(state))
    with _written_beside(file) as new:
        save_file(tensors, new, metadata={"outline": text})


def load_checkpoint(file: Path) -> dict:
    """Read what `save_checkpoint` wrote. Raises TrainingError where it is something else."""
    with reading(file), safe_open(file, framework="pt") as opened:

        def filled(value):
            if isinstance(value, dict) and "tensor" in value:
                # A copy: a tensor that is mapped to the file keeps Windows from replacing it.
                return opened.get_tensor(value["tensor"]).clone()
            if isinstance(value, dict):
                return {key: filled(inner) for key, inner in value["dict"]}
            return [filled(inner) for inner in value] if isinstance(value, list) else value

        return filled(json.loads(opened.metadata()["outline"]))


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever is wrong with the content of a checkpoint, as one sentence."""
    try:
        yield
    except TrainingError:
        raise
    except (
        OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError,
        RuntimeError,
    ) as error:  # fmt: skip
        raise TrainingError(
            f"{file} must be a checkpoint of this training and can be read as none: delete it to"
            f" begin its stage anew, or choose another folder ({_first_line(error)})"
        ) from error


@contextlib.contextmanager
def _written_beside(file: Path) -> Iterator[Path]:
    """Yields the name to write under; puts it in the file's place once it is whole."""
    new = file.with_name(f"{file.name}.new")
    try:
        yield new
        _rename(new, file)
    except (OSError, SafetensorError) as error:
        new.unlink(missing_ok=True)
        raise _unwritten(file, error) from error


def _rename(new: Path, file: Path, tries: int = 50) -> None:
    # On Windows whoever has the old file open, such as a virus scanner, is in the way for a while.
    for _ in range(tries - 1):
        try:
            new.replace(file)
            return
        except PermissionError:
            time.sleep(0.1)
    new.replace(file)


def goes_on(folder: Path) -> str:
    """What the same command does after a training in `folder` was stopped, in words."""
    if any(folder.glob("*.safetensors")):
        return f"goes on from the last checkpoint in {folder}"
    return "begins anew: there is no checkpoint yet"


def _unwritten(file: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"{file} must be writable, and the disk must have room ({_first_line(error)}): mend that,"
        f" and the same command {goes_on(file.parent)}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# --- the log -------------------------------------------------------------------------------------


def read_log(file: Path) -> list[dict]:
    """The lines of a training log: stage, step, seconds, loss and what was measured.

    A last line that a kill cut off does not count. Raises TrainingError for any other damage.
    """
    lines = []
    texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            lines.append({"stage": line["stage"], "step": int(line["step"]), **line})
        except (ValueError, KeyError, TypeError) as error:
            if number == len(texts):
                break
            raise TrainingError(
                f"line {number} of {file} must be one of a training's log, found {text[:60]!r}:"
                " take it out, or choose another folder"
            ) from error
    return lines


def add_line(file: Path, line: dict) -> None:
    """Append a line. Raises TrainingError where it cannot be written."""
    try:
        with file.open("a", encoding="utf-8", newline="\n") as lines:
            lines.write(json.dumps(line) + "\n")
    except OSError as error:
        raise _unwritten(file, error) from error


def cut_log(file: Path, stage: str, step: int) -> None:
    """Leave only lines that are whole, and none of `stage` after `step`: those steps come again."""
    if not file.exists():
        return
    kept = [line for line in read_log(file) if line["stage"] != stage or line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    if text.encode() != file.read_bytes():
        with _written_beside(file) as new:
            new.write_text(text, encoding="utf-8", newline="\n")


# --- one run a folder ----------------------------------------------------------------------------


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Make the folder and keep others out. The system ends a dead process's lock by itself.

    Raises TrainingError where another training has it, or where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout as error:
        raise TrainingError(
            f"{folder} must belong to one training at a time, and another one is at work in it:"
            " wait for its end or choose another folder"
        ) from error
    except OSError as error:
        raise TrainingError(
            f"{folder} must be a folder to write in ({_first_line(error)}): choose another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
