"""Saving: a model becomes a folder of files that `load` and transformers open.

All files are written into a hidden folder inside the model's, and change places with the old ones
when all are whole. `config.json` leaves first and comes last, and without it no model is read: so
nobody ever loads a mixture of two models.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from minipali import config as configs
from minipali.hub import FILES
from minipali.paligemma import PaliGemma
from minipali.tokenizer_files import processor_files
from minipali.tokens import Processor
from minipali.weights import (
    DTYPE_NAMES,
    INDEX,
    SAVING,
    SINGLE,
    WeightsError,
    a_few,
    broken_off,
    empty_model,
    path_of,
    published_name,
)

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

SHARD_BYTES = 5_000_000_000  # a larger model is saved in shards of at most this size
CONFIG = "config.json"
TRAINING = "training"  # a folder inside the model's: log and checkpoint of its fine-tuning
WAIT = 600  # seconds for another save into the same folder
# Seconds before a refused renaming is tried again: on Windows, while a virus scanner reads a file.
PAUSES = (0.1, 0.2, 0.4, 0.8)


def save(model: PaliGemma, processor: Processor, folder: str | Path) -> None:
    """Write a model folder that `load` and transformers open.

    A model in the folder is replaced, also the one that `model` was loaded from; other files (a
    README) stay. Saves into one folder, by threads or programs, wait for each other.

    What the folder holds if it is interrupted:
    - by an error, a full disk or Ctrl-C: what it held before.
    - killed while it writes, which is nearly all the time: what it held before, and a hidden folder
      ".saving-...", which the next save removes.
    - killed in the milliseconds in which the files change places: no config.json, so that nothing
      can be loaded. `recover`, or the next save, brings the old model back.

    Raises WeightsError if the folder holds something else or cannot be written, the model is not a
    plain PaliGemma, or the disk is full.
    """
    if not isinstance(processor, Processor):
        raise WeightsError(
            f"save takes a model, its processor and a folder, found {type(processor).__name__} as"
            " the processor"
        )
    weights = weights_to_save(model)
    if processor.config != model.config:
        raise WeightsError("model and processor must have the same config: load them together")
    sizes = {key: weight.nbytes for key, weight in weights.items()}
    with finished(folder, sum(sizes.values())) as part:
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        write_beside(part, processor, dtype)
        for name, keys in write_index(part, sizes, SHARD_BYTES).items():
            shard = {key: weights[key].contiguous() for key in keys}
            save_file(shard, part / name, metadata={"format": "pt"})
            shutil.copymode(part / CONFIG, part / name)  # save_file's own is owner-only


def weights_to_save(model: PaliGemma) -> dict[str, Tensor]:
    """By published key, checked against a fresh model of the same config."""
    if not isinstance(model, PaliGemma):
        raise WeightsError(
            f"the model must be a minipali.paligemma.PaliGemma, found {type(model).__name__}: give"
            " the model itself, not what it is wrapped in"
        )
    weights, places = model.state_dict(), empty_model(model.config).state_dict()
    if different := set(weights) ^ set(places):
        raise WeightsError(
            f"the model must have PaliGemma's own weights, found a difference in"
            f" {a_few(different)}: merge LoRA weights or undo quantization before saving"
        )
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPE_NAMES.values()):
        raise WeightsError(
            f"all weights must have one dtype of {', '.join(DTYPE_NAMES)}, found {dtypes}: convert"
            " the model, e.g. with model.float()"
        )
    for name, weight in weights.items():
        if weight.shape != places[name].shape or weight.is_meta:
            raise WeightsError(
                f"{name} must have the shape {tuple(places[name].shape)} and hold numbers, found"
                f" {tuple(weight.shape)} on {weight.device}"
            )
    return {published_name(name): weight for name, weight in weights.items()}


# --- the files -----------------------------------------------------------------------------------


def write_beside(part: Path, processor: Processor, dtype: str) -> None:
    """Everything in a model folder but the weights. The processor holds all that it takes."""
    texts = {CONFIG: configs.to_dict(processor.config, dtype)} | processor_files(processor)
    for name, content in texts.items():
        _write_json(part / name, content)
    (part / "tokenizer.model").write_bytes(processor.sentencepiece.serialized_model_proto())
    for name, content in processor.beside.items():  # a tokenizer.json that came with the model
        (part / name).write_bytes(content)


def write_index(part: Path, sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Divide keys among files of at most `limit` bytes, and write the index if it takes several.

    sizes: key -> bytes. Returns file name -> its keys, in order; the files are for the caller.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = [SINGLE] if count == 1 else names
    files = dict(zip(names, shards, strict=True))
    if count > 1:
        weight_map = {key: name for name, keys in files.items() for key in keys}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(part / INDEX, index)
    return files


def _write_json(file: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")


# --- the folder ----------------------------------------------------------------------------------


@contextlib.contextmanager
def finished(folder: str | Path, size: int):
    """A hidden new folder to write a model into, whose files go into `folder` when all is written.

    size: bytes of the weights. Whatever fails, `folder` stays as it was; see `save`.
    Raises WeightsError if it holds no model of ours, cannot be written, or the disk is too full.
    """
    folder = path_of(folder, "the folder to save into").resolve()
    with _told(folder):
        new = not folder.exists()
        if new:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with _alone(folder) as alone:
                _check_replaceable(folder)
                if alone:
                    _put_away_leftovers(folder)
                free = shutil.disk_usage(folder).free
                if size > free:
                    raise WeightsError(
                        f"{folder} must have {tqdm.format_sizeof(size, 'B')} free for the weights,"
                        f" found {tqdm.format_sizeof(free, 'B')}: choose another disk"
                    )
                part = Path(tempfile.mkdtemp(prefix=SAVING, dir=folder))
                try:
                    (part / "old").mkdir()
                    (part / "new").mkdir()
                    yield part / "new"
                    _change_places(folder, part)
                finally:
                    _put_away(folder, part)
        except BaseException:
            if new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def recover(folder: str | Path) -> None:
    """Bring back the model of a folder after a save was killed while the files changed places."""
    folder = path_of(folder, "the folder").resolve()
    with _told(folder), _alone(folder):
        _put_away_leftovers(folder)


def is_unused(folder: Path) -> bool:
    """Whether a folder is not there yet or empty, but for what a killed save or a training left."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    return all(path.name.startswith(SAVING) or path.name == TRAINING for path in folder.iterdir())


def _check_replaceable(folder: Path) -> None:
    if is_unused(folder) or broken_off(folder):
        return
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if json.loads(configs.content(folder / CONFIG))["model_type"] == "paligemma":
            return
    raise WeightsError(
        f"{folder} must be new, empty, or the folder of a PaliGemma model, which is replaced; it"
        " holds something else: choose another folder"
    )


@contextlib.contextmanager
def _told(folder: Path):
    """What system and library say about a folder that cannot be written, as a WeightsError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        left = (
            f"its model waits in a hidden folder, call minipali.saving.recover({str(folder)!r})"
            if broken_off(folder)
            else "its files are as they were, make room or save into another folder"
        )
        raise WeightsError(
            f"{folder} must be a folder that can be written: {error}; {left}"
        ) from error


@contextlib.contextmanager
def _alone(folder: Path):
    """Hold the folder's lock, which the system takes back when a program ends, however it ends.

    Yields False where the file system has no locks. Then only the names keep two saves apart.
    """
    # Windows locks files alone.
    place = folder if fcntl else folder / f"{SAVING}lock"
    file = os.open(place, os.O_RDONLY | os.O_DIRECTORY if fcntl else os.O_RDWR | os.O_CREAT)
    end = time.monotonic() + WAIT
    try:
        while (locked := _lock(file)) is None:
            if time.monotonic() > end:
                raise WeightsError(
                    f"{folder} must not be saved into by another program, and one has been at it"
                    f" for {WAIT // 60} minutes: end that, or save into another folder"
                )
            time.sleep(0.02)
        yield locked
    finally:
        if fcntl:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file too
        os.close(file)
        if not fcntl:
            with contextlib.suppress(OSError):  # refused while another waits for it
                place.unlink()


def _lock(file: int) -> bool | None:
    """Take a file's lock. None: another has it; False: there are no locks here."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return None if error.errno in (errno.EAGAIN, errno.EACCES) else False
    return True


def _change_places(folder: Path, part: Path) -> None:
    """The old model's files go to part/old, then those of part/new into the folder."""
    for path in _model_files(folder):
        _rename(path, part / "old" / path.name)
    (part / "old is out").touch()  # so that `_put_away` knows how far it came
    for path in reversed(_model_files(part / "new")):
        _rename(path, folder / path.name)


def _put_away_leftovers(folder: Path) -> None:
    for part in folder.glob(f"{SAVING}*"):
        if part.is_dir():
            _put_away(folder, part)


def _put_away(folder: Path, part: Path) -> None:
    """Remove a save's hidden folder. If the changing of places broke off, undo it first."""
    if (part / "new").exists() and not (folder / CONFIG).exists():
        if (part / "old is out").exists():  # then what is there is new
            for path in _model_files(folder):
                _rename(path, part / "new" / path.name)
            (part / "old is out").unlink()
        for path in reversed(_model_files(part / "old")):
            _rename(path, folder / path.name)
    # On Windows the files of a loaded model cannot be removed: the next save does it.
    shutil.rmtree(part, ignore_errors=True)


def _model_files(folder: Path) -> list[Path]:
    """The files of a folder that belong to a model, `config.json` first."""
    found = {path for pattern in FILES for path in folder.glob(pattern)}
    return sorted(found, key=lambda path: (path.name != CONFIG, path.name))


def _rename(source: Path, target: Path) -> None:
    for pause in PAUSES:
        try:
            source.rename(target)
            return
        except PermissionError:
            time.sleep(pause)
    source.rename(target)
