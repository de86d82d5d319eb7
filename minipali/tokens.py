"""Lesson 06. Pictures and text become the tensors that the model takes.

A row of `input_ids` is: image token x patches, bos, prompt, newline[, suffix, eos], and padding.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image, ImageOps
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


class PictureError(ValueError):
    """A file or object that is not a usable picture."""


def open_picture(path: str | Path) -> Image.Image:
    """Open a picture file upright and in RGB, as transformers' `load_image` does.

    The rotation that a camera noted (EXIF) is carried out, and an alpha channel is dropped. Raises
    PictureError for what is not a picture, is truncated, or has more than MAX_PIXELS pixels.
    """
    try:
        # Pillow's remarks about odd but usable files help nobody here.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            _check_size(picture, str(path))
            return ImageOps.exif_transpose(picture).convert("RGB")
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"no picture at {path}: check the path") from error
    except Exception as error:  # damaged files make Pillow's many readers raise many things
        raise PictureError(
            f"{path} must be a whole picture file (PNG, JPEG, WebP, ...): {error}"
        ) from error


def _check_size(picture: Image.Image, name: str) -> None:
    if not 1 <= picture.width * picture.height <= MAX_PIXELS:
        raise PictureError(
            f"{name} must have from 1 to {MAX_PIXELS:,} pixels, found {picture.width} x"
            f" {picture.height}"
        )


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
            f"a {picture.mode} picture must be convertible to RGB: {error}"
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

        images: PIL pictures or paths; suffixes: the answers to learn, for training.
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
        pictures = [p if isinstance(p, Image.Image) else open_picture(p) for p in images]
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
