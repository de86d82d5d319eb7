"""Labelled pictures to fine-tune on: JSON lines with `image`, `prefix` and `suffix`, checked first.

    {"image": "cat.png", "prefix": "answer en what is this?", "suffix": "a cat"}

`image` is a path, as seen from the file's folder. A line may have `answers` too, a list of all that
people answered, which the VQA accuracy is computed from. Other keys are passed over.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minipali.config import short
from minipali.tokens import PictureError, Processor, open_picture

TRAINING_NAME = "train.jsonl"
VALIDATION_NAMES = ("validation.jsonl", "val.jsonl", "valid.jsonl")
_PLACE = re.compile(r"<(?:loc|seg)[^<>\s]*>?")


@dataclass(frozen=True)
class Example:
    """One line: where it stands, the picture's path and digest, and what is asked and answered."""

    where: str
    image: Path
    digest: str
    prefix: str
    suffix: str
    answers: tuple[str, ...] = ()


@dataclass
class Data:
    """What is learned from and what it is measured on, and all that is wrong with the lines."""

    training: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """Another text for other data: of every picture, prefix and suffix."""
        parts = [
            [one.digest, one.prefix, one.suffix] for one in (*self.training, None, *self.validation)
            if one is not None
        ]  # fmt: skip
        text = json.dumps([len(self.training), parts])
        return hashlib.sha256(text.encode()).hexdigest()


class DataError(ValueError):
    """Data that is not there at all."""


def read_data(
    data: Path, processor: Processor, validation: Path | float = 0.1, seed: int = 0
) -> Data:
    """All lines of `data`, checked; whoever trains looks first whether there are faults.

    data: a file of JSON lines, or a folder with train.jsonl, or with one such file alone.
    validation: another such file; or the share of pictures to hold out, if `data` is a folder
    without a file validation.jsonl. No picture is in both parts then.
    Raises DataError where there is no file to read.
    """
    file, found = find_files(data)
    if isinstance(validation, Path):
        found = find_files(validation)[0]
    pictures: dict[Path, str] = {}
    result = Data()
    result.training = _read(file, processor, pictures, result.faults)
    if found is not None:
        result.validation = _read(found, processor, pictures, result.faults)
        learned = {(one.digest, one.prefix): one.where for one in reversed(result.training)}
        for one in result.validation:
            if where := learned.get((one.digest, one.prefix)):
                result.faults.append(
                    f"{one.where}: a picture and its prefix must not be learned from too, found"
                    f" them in {where}"
                )
    elif validation > 0:
        result.training, result.validation = hold_out(result.training, validation, seed)
    if not result.training and not result.faults:
        result.faults.append(f"{file.name}: must have lines to learn from, found none")
    return result


def find_files(data: Path) -> tuple[Path, Path | None]:
    """The file to learn from, and the one to measure on where a folder has one."""
    if data.is_file():
        return data, None
    if not data.is_dir():
        raise DataError(f"the data must be a file of JSON lines or a folder with one, found {data}")
    files = {path.name: path for path in sorted(data.glob("*.jsonl"))}
    validation = next((files.pop(name) for name in VALIDATION_NAMES if name in files), None)
    if TRAINING_NAME in files:
        return files[TRAINING_NAME], validation
    if len(files) != 1:
        raise DataError(
            f"{data} must hold {TRAINING_NAME}, or one file that ends in .jsonl, found"
            f" {', '.join(files) or 'none'}: name the file itself"
        )
    return next(iter(files.values())), validation


def hold_out(examples: list[Example], share: float, seed: int) -> tuple[list, list]:
    """Divide by pictures: a `share` of them, at least one of two, goes to the second list."""
    pictures = list(dict.fromkeys(one.digest for one in examples))
    number = min(max(1, round(share * len(pictures))), len(pictures) - 1)
    drawn = np.random.default_rng([seed, 1]).permutation(len(pictures))[: max(number, 0)]
    held = {pictures[i] for i in drawn}
    parts = [], []
    for one in examples:
        parts[one.digest in held].append(one)
    return parts


# --- one file ------------------------------------------------------------------------------------


def _read(
    file: Path, processor: Processor, pictures: dict[Path, str], faults: list[str]
) -> list[Example]:
    try:
        texts = file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.append(f"{file.name}, line {line}: must be UTF-8, found another encoding")
        return []
    examples = []
    for number, text in enumerate(tqdm(texts, desc=f"reading {file.name}", disable=None), start=1):
        if not text.strip():
            continue
        where, wrong = f"{file.name}, line {number}", []
        example = _example(text, where, file.parent, processor, pictures, wrong.append)
        faults += [f"{where}: {fault}" for fault in wrong]
        if example is not None:
            examples.append(example)
    return examples


def _example(
    text: str,
    where: str,
    folder: Path,
    processor: Processor,
    pictures: dict[Path, str],
    wrong: Callable[[str], None],
) -> Example | None:
    """What a line says; None, after `wrong` was told each reason, if it cannot be used."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        wrong(f"must be a JSON object on one line: {error}")
        return None
    if not isinstance(line, dict):
        wrong(f"must be a JSON object, found {short(line)}")
        return None
    given = {}
    for name in ("image", "prefix", "suffix"):
        value = line.get(name)
        if isinstance(value, str) and (value.strip() or name == "prefix"):
            given[name] = value
        else:
            found = short(value) if name in line else "none"
            wrong(f"{name} must be a text" + ("" if name == "prefix" else ", not empty")
                  + f", found {found}")  # fmt: skip
    answers = line.get("answers", [])
    if not (isinstance(answers, list) and all(isinstance(one, str) for one in answers)):
        wrong(f"answers must be a list of texts, found {short(answers)}")
        answers = []
    texts = {name: given[name] for name in ("prefix", "suffix") if name in given}
    usable = [_check_text(name, value, processor, wrong) for name, value in texts.items()]
    if len(usable) == 2 and all(usable):
        ids = processor.prompt_ids(texts["prefix"]), processor.encode(texts["suffix"])
        length, limit = sum(map(len, ids)) + 1, processor.config.text.max_position_embeddings
        if length > limit:
            wrong(
                f"prefix and suffix must have at most {limit} tokens together, with the"
                f" {processor.config.vision.num_patches} of the picture, found {length}"
            )
    digest = _digest(folder, given["image"], pictures, wrong) if "image" in given else None
    if digest is None or len(usable) != 2 or not all(usable):
        return None
    image = folder / given["image"]
    return Example(where, image, digest, **texts, answers=tuple(answers))


def _check_text(name: str, text: str, processor: Processor, wrong) -> bool:
    try:
        processor.encode(text)
    except ValueError:
        wrong(f"{name} must hold whole characters, found half a surrogate pair in {short(text)}")
        return False
    if "<image>" in text:
        wrong(f"{name} must not hold <image>: the picture's places are added without it")
        return False
    first, last = processor.first_location, processor.config.image_token_id
    places = set(_PLACE.findall(text))
    strange = [one for one in places if not (len(processor.encode(one)) == 1
               and first <= processor.encode(one)[0] < last)]  # fmt: skip
    if strange:
        wrong(
            f"{name} must name places from <loc0000> to <loc1023> and <seg000> to <seg127>, found"
            f" {', '.join(map(short, sorted(strange)[:5]))}"
        )
        return False
    return True


def _digest(folder: Path, image: str, pictures: dict[Path, str], wrong) -> str | None:
    """A digest of the picture's file, which is opened once."""
    path = folder / image
    if path not in pictures:
        try:
            open_picture(path)
            pictures[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        except (PictureError, OSError, ValueError) as error:
            wrong(f"image must be a picture: {error}")
            return None
    return pictures[path]
