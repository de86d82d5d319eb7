"""Lesson 06. Pictures and text become the tensors that the model takes.

A row of `input_ids` is: image token x patches, bos, prompt, newline[, suffix, eos], and padding.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from minipali.config import PaliGemmaConfig

LOCATIONS = 1024  # <loc0000> to <loc1023>
SEGMENTS = 128  # <seg000> to <seg127>
IGNORE = -100  # the label of a place without loss, torch's convention

# Written out in a text, each of these is one token. The brackets of the group keep them in the
# result of re.split. Numbers out of range, such as <loc1024>, are ordinary text.
_LOCATION = "<loc(?:0[0-9]{3}|10[01][0-9]|102[0-3])>"
_SEGMENT = "<seg(?:0[0-9]{2}|1[01][0-9]|12[0-7])>"
_SPECIAL = re.compile(f"(<image>|<bos>|<eos>|<pad>|<unk>|{_LOCATION}|{_SEGMENT})")

# A picture of more pixels is refused: a small file can claim to be gigantic.
MAX_PIXELS = 100_000_000

# How files of the kind that iPhones write begin, after 8 bytes.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# What a camera noted (EXIF) -> what sets the picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """A file or object that is not a usable picture."""


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture file upright and in RGB, as people see it.

    The rotation that a camera noted (EXIF) is carried out, what is transparent becomes white, and
    16 bits become 8. (transformers' `load_image` drops the alpha channel and shows what was hidden
    behind it, and makes almost all of a 16-bit picture white.) Raises PictureError for what is not
    a picture, is truncated, or has more than MAX_PIXELS pixels.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise PictureError(_not_a_picture(path))
    name = _short(path)
    if re.match(r"https?:/", str(path)):  # a Path makes one slash of two
        raise PictureError(f"{name} is a link, and links are not read: download the picture first")
    if not os.path.exists(path):
        raise PictureError(f"no picture at {name}: check the path")
    if os.path.isdir(path):
        raise PictureError(f"{name} must be a picture file, found a folder: name a file in it")
    if not os.path.isfile(path):  # to open a pipe or a device could wait for ever
        raise PictureError(f"{name} must be a picture file, found a pipe or a device")
    return read_picture(path, name)


def read_picture(file: str | Path | io.BytesIO, name: str) -> Image.Image:
    """What `open_picture` makes of a file, also of one that is in memory alone.

    name: what errors call it. Raises PictureError.
    """
    try:
        try:
            rgb = _decode(file, name)
        except Warning:  # where warnings are errors: what Pillow remarks about odd but usable files
            with warnings.catch_warnings(action="ignore"):
                rgb = _decode(file, name)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        unknown = "a whole picture file (PNG, JPEG, WebP, ...): Pillow knows no such format"
        advice = _another_kind(file) or unknown
        raise PictureError(f"{name} must be {advice}") from error
    except Exception as error:  # damaged files make Pillow's many readers raise many things
        advice = f"a whole picture file (PNG, JPEG, WebP, ...): {_short(error)}"
        raise PictureError(f"{name} must be {advice}") from error
    rgb.info.clear()  # the noted rotation has been carried out
    return rgb


def _decode(file: str | Path | io.BytesIO, name: str) -> Image.Image:
    with Image.open(file) as picture:
        _check_size(picture, name)
        picture.load()
        return to_rgb(_eight_bits(_upright(picture), name))


def as_picture(given) -> Image.Image:
    """What a caller may give as a picture: a path, a PIL picture, or an array of bytes.

    A path is opened by `open_picture`. An array or tensor is uint8, (y, x, 3) or (3, y, x). A PIL
    picture is taken as it is, as transformers does; a warning says so if it would look different
    by its path. Raises PictureError.
    """
    if isinstance(given, (str, os.PathLike)):
        return open_picture(given)
    if isinstance(given, Image.Image):
        try:
            given.load()
        except Exception as error:  # of a damaged file, or one that was closed too early
            raise PictureError(f"a picture must have all its pixels: {_short(error)}") from error
        if _orientation(given) in _TURNS:
            warnings.warn(
                "this picture carries a camera's note that it is to be turned (EXIF), and is taken"
                " as it lies: give its path, or turn it with PIL's ImageOps.exif_transpose",
                stacklevel=4,
            )
        if given.mode in ("I", "F") or given.mode.startswith("I;16"):
            warnings.warn(
                f"a picture of mode {given.mode} is read as if 0 were black and 255 white, and cut"
                " off beyond: give the path of a 16-bit file, or scale it to 8 bits",
                stacklevel=4,
            )
        return given
    if isinstance(given, (np.ndarray, Tensor)) and given.ndim == 3:
        values = given.cpu().numpy() if isinstance(given, Tensor) else given
        colours = [axis for axis in (0, 2) if values.shape[axis] == 3]
        if values.dtype == np.uint8 and len(colours) == 1:
            return Image.fromarray(np.ascontiguousarray(np.moveaxis(values, colours[0], 2)))
    raise PictureError(_not_a_picture(given))


def _not_a_picture(given) -> str:
    kind, about = type(given).__name__, ""
    if isinstance(given, (np.ndarray, Tensor)):
        about = f" of {str(given.dtype).removeprefix('torch.')}, {_short(tuple(given.shape))}"
    return (
        "a picture must be a PIL picture, the path of a file, or an array of uint8, (y, x, 3);"
        f" found {kind}{about}: PIL's Image.fromarray makes a picture of an array"
    )


def _another_kind(file: str | Path | io.BytesIO) -> str | None:
    """Advice about a file that Pillow cannot read, if it is of a kind that people try."""
    if isinstance(file, io.BytesIO):
        start = file.getvalue()[:1000]
    else:
        try:
            with open(file, "rb") as opened:
                start = opened.read(1000)
        except OSError:
            return None
    if start.startswith(b"%PDF"):
        return "a picture, found a PDF: save the page as PNG first"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "of a kind that Pillow reads, found a HEIC photo: save it as JPEG first"
    if re.match(rb"\s*<(!doctype html|html)", start, re.IGNORECASE):
        return "a picture, found a web page: save the picture itself first"
    if b"<svg" in start:
        return "a picture of pixels, found an SVG drawing: save it as PNG first"
    return None


def _short(value) -> str:
    text = " ".join(str(value).splitlines())
    return text if len(text) <= 200 else f"{text[:100]} ... {text[-90:]}"


def _check_size(picture: Image.Image, name: str) -> None:
    if not 1 <= picture.width * picture.height <= MAX_PIXELS:
        raise PictureError(
            f"{name} must have from 1 to {MAX_PIXELS:,} pixels, found {picture.width} x"
            f" {picture.height}"
        )


def _orientation(picture: Image.Image) -> int | None:
    """The rotation that a camera noted, 1 to 8; None where nothing can be read.

    The picture must be loaded: a TIFF is turned by that, and its note removed. The EXIF block is
    read by hand first, because Pillow gives up at the first malformed tag, whichever it is.
    """
    block = picture.info.get("exif") or b""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(block[:2])
    if order:

        def number(start: int, size: int) -> int:
            return int.from_bytes(block[start : start + size], order)

        first = number(4, 4) + 2
        for entry in range(first, first + 12 * number(first - 2, 2), 12):
            if number(entry, 2) == ExifTags.Base.Orientation:
                return number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
    try:  # it may stand elsewhere
        return int(picture.getexif()[ExifTags.Base.Orientation])
    except Exception:
        return None


def _upright(picture: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose would also write the whole note anew, which fails if it is malformed.
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """16 bits -> 8. Other numbers (32 bits, floats) have no agreed white, and are refused."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        return Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise PictureError(
            f"{name} must have 8 or 16 bits a colour, found 32: scale it to 0 to 255, and save it"
            " as 8 bits"
        )
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any kind of picture (L, P, RGBA, CMYK, 16-bit, ...) -> RGB, as transformers converts.

    What is transparent becomes white. Numbers above 255, as in 16-bit pictures, become 255: scale
    them first. Raises PictureError for a damaged file and for a kind that Pillow cannot convert.
    """
    try:
        if "A" in picture.getbands() or picture.info.get("transparency") is not None:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(
            f"a {picture.mode} picture must be convertible to RGB: {_short(error)}"
        ) from error


def resize(picture: Image.Image, side: int) -> Image.Image:
    """To a square, whatever the shape; Pillow's bicubic filter is antialiased when it shrinks."""
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def to_pixels(picture: Image.Image, side: int) -> Tensor:
    """A picture -> float32 (3, side, side) in [-1, 1]: resized, / 255, minus 0.5, / 0.5.

    Raises PictureError for a picture that is unusable or has more than MAX_PIXELS pixels.
    """
    _check_size(picture, "the picture")
    square = np.array(resize(to_rgb(picture), side))  # (y, x, c), 0 to 255
    return torch.from_numpy(square).permute(2, 0, 1).float() / 255 * 2 - 1


def prompt_ids(
    prompt: str, encode: Callable[[str], list[int]], image_token: int, num_patches: int, bos: int
) -> list[int]:
    """Image tokens, bos, prompt, newline. The newline tells the model that its turn begins."""
    return [image_token] * num_patches + [bos] + encode(prompt + "\n")


def pad_rows(rows: list[list[int]], filler: int, side: str = "left") -> tuple[Tensor, Tensor]:
    """Rows of unequal length, filled up to the longest: two whole-number tensors (b, longest).

    The first holds the rows and the filler, the second 1 where a row is and 0 where it was filled
    up (the attention mask). side: "left" or "right", where the filler goes.
    """
    longest = max(len(row) for row in rows)
    filled = torch.full((len(rows), longest), filler)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        filled[i, start : start + len(row)] = torch.tensor(row)
        mask[i, start : start + len(row)] = 1
    return filled, mask


class Processor:
    """The tokenizer and the picture size of one checkpoint.

    Its ids, masks and pixels are those of transformers' PaliGemmaProcessor.
    """

    def __init__(self, tokenizer_file: str | Path, config: PaliGemmaConfig):
        self.config = config
        self.tokenizer_file = Path(tokenizer_file)
        self.beside: dict[str, bytes] = {}  # tokenizer.json and its kin, as a loaded model had them
        self.sentencepiece = sentencepiece.SentencePieceProcessor()
        try:
            self.sentencepiece.Load(str(tokenizer_file))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{tokenizer_file} must be a SentencePiece model: {error}") from error
        # The published vocabulary: text, then 1024 locations, 128 segments, and the image token.
        self.first_segment = config.image_token_id - SEGMENTS
        self.first_location = self.first_segment - LOCATIONS
        if self.first_location < 4:
            raise ValueError(
                f"image_token_id must leave room for {LOCATIONS} locations and {SEGMENTS} segments"
                f" before it, found {config.image_token_id}"
            )

    def _special_id(self, token: str) -> int:
        if token.startswith("<loc"):
            return self.first_location + int(token[4:8])
        if token.startswith("<seg"):
            return self.first_segment + int(token[4:7])
        return {
            "<image>": self.config.image_token_id,
            "<bos>": self.config.bos_token_id,
            "<eos>": self.config.eos_token_id,
            "<pad>": self.config.pad_token_id,
            "<unk>": self.sentencepiece.unk_id(),
        }[token]

    def encode(self, text: str) -> list[int]:
        """Text -> token ids, without bos, eos or newline. `<loc0000>` and its kin are one token.

        Raises ValueError for half a surrogate pair, which is no character.
        """
        text.encode()
        ids = []
        for part in _SPECIAL.split(text):
            if _SPECIAL.fullmatch(part):
                ids.append(self._special_id(part))
            elif part:
                ids.extend(self.sentencepiece.EncodeAsIds(part))
        return ids

    def token(self, token_id: int) -> str:
        """One token as it is written: "▁dog", "<loc0512>", "<image>"."""
        if token_id == self.config.image_token_id:
            return "<image>"
        if self.first_segment <= token_id < self.config.image_token_id:
            return f"<seg{token_id - self.first_segment:03d}>"
        if self.first_location <= token_id < self.first_segment:
            return f"<loc{token_id - self.first_location:04d}>"
        if 0 <= token_id < min(self.first_location, self.sentencepiece.GetPieceSize()):
            return self.sentencepiece.IdToPiece(token_id)
        return f"<unused{token_id}>"

    def decode(self, ids) -> str:
        """Token ids -> text. bos, eos, padding, unknown and image tokens leave no trace."""
        config, text, run = self.config, "", []
        silent = {config.image_token_id, config.bos_token_id, config.eos_token_id}
        silent |= {config.pad_token_id, self.sentencepiece.unk_id()}
        for token_id in (int(i) for i in ids):
            if 0 <= token_id < min(self.first_location, self.sentencepiece.GetPieceSize()):
                if token_id not in silent:
                    run.append(token_id)
                continue
            text += self.sentencepiece.DecodeIds(run)
            run = []
            if token_id not in silent:
                text += self.token(token_id)
        return text + self.sentencepiece.DecodeIds(run)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt with its picture's places, see `minipali.tokens.prompt_ids`."""
        config = self.config
        return prompt_ids(
            prompt,
            self.encode,
            config.image_token_id,
            config.vision.num_patches,
            config.bos_token_id,
        )

    def __call__(
        self, images, prompts, suffixes=None, padding_side: str = "left"
    ) -> dict[str, Tensor]:
        """Pictures and prompts, one each or lists of equal length -> the model's arguments.

        images: paths, PIL pictures or arrays, see `as_picture`; suffixes: the answers to learn, for
        training.
        Returns pixel_values (b, 3, y, x); input_ids, attention_mask, token_type_ids (b, t); and
        with suffixes labels (b, t), which are IGNORE everywhere but at the suffix and its eos.
        Raises ValueError if the numbers differ or a row is longer than the model's positions.
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        prompts = list(prompts) if isinstance(prompts, (list, tuple)) else [prompts]
        if suffixes is not None:
            suffixes = list(suffixes) if isinstance(suffixes, (list, tuple)) else [suffixes]
        counts = {len(part) for part in (images, prompts, suffixes) if part is not None}
        if len(counts) != 1 or not images:
            raise ValueError(
                "there must be one picture, one prompt and at most one suffix a row; found"
                f" {len(images)} pictures, {len(prompts)} prompts"
                + (f", {len(suffixes)} suffixes" if suffixes is not None else "")
            )
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', found {padding_side!r}")
        prefix_ids = [self.prompt_ids(self._text(p, "prompt")) for p in prompts]
        suffix_ids = [[] for _ in prompts]
        if suffixes is not None:
            eos = [self.config.eos_token_id]
            suffix_ids = [self.encode(self._text(s, "suffix")) + eos for s in suffixes]
        batch = self.pad(prefix_ids, suffix_ids, padding_side)
        if suffixes is None:
            del batch["labels"]
        batch["pixel_values"] = self.pixel_values(images)
        return batch

    def pixel_values(self, images) -> Tensor:
        """Pictures or paths -> (b, 3, y, x) in [-1, 1], each as `to_pixels` makes it."""
        side = self.config.vision.image_size
        pictures = list(map(as_picture, images))
        return torch.stack([to_pixels(p, side) for p in pictures])

    def _text(self, text: str, kind: str) -> str:
        if not isinstance(text, str):
            raise ValueError(f"a {kind} must be text, found {type(text).__name__}")
        if "<image>" in text:
            raise ValueError(
                f"a {kind} must not contain '<image>': the processor adds the image tokens itself"
            )
        return text

    def pad(
        self, prefixes: list[list[int]], suffixes: list[list[int]], side: str = "left"
    ) -> dict[str, Tensor]:
        """Rows of ids, filled up to the longest, with their mask, kinds and labels."""
        longest = max(len(p) + len(s) for p, s in zip(prefixes, suffixes, strict=True))
        limit = self.config.text.max_position_embeddings
        if longest > limit:
            raise ValueError(
                f"a row must have at most {limit} tokens, found {longest}, of which"
                f" {self.config.vision.num_patches} stand for the picture: shorten the prompt"
            )
        rows = list(zip(prefixes, suffixes, strict=True))
        pad = self.config.pad_token_id
        input_ids, attention_mask = pad_rows([p + s for p, s in rows], pad, side)
        types, _ = pad_rows([[0] * len(p) + [1] * len(s) for p, s in rows], 0, side)
        labels, _ = pad_rows([[IGNORE] * len(p) + s for p, s in rows], IGNORE, side)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": types,
            "labels": labels,
        }
