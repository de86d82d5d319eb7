"""Lesson 06: pictures as pixels, prompts as ids, and rows of equal length."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.tokens import pad_rows, prompt_ids, to_pixels, to_rgb


def _scaled(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 * 2 - 1


def _pictures() -> list[tuple]:
    rng = np.random.default_rng(6)

    def noise(height: int, width: int, channels: int) -> np.ndarray:
        # From 60 to 195, so that the bicubic filter never leaves 0 to 255: cut off or not cut off
        # makes no difference, and the known mistakes are told apart by what they are about.
        return rng.integers(60, 196, (height, width, channels), dtype=np.uint8)

    large = noise(61, 83, 3)  # shrinks by 12 and by 9: single pixels show if it is not antialiased
    wide = noise(5, 23, 3)
    cut_out = noise(19, 14, 4)
    cut_out[..., 3] = rng.choice([0, 128, 255], (19, 14))
    grey = noise(37, 16, 1)[..., 0]
    return [
        (Image.fromarray(large), 7),
        (Image.fromarray(wide), 6),
        (Image.fromarray(grey), 9),
        (Image.fromarray(cut_out), 5),
    ]


def _to_pixels(
    picture: Image.Image,
    side: int,
    *,
    flat: Callable[[Image.Image], Image.Image] = to_rgb,
    scaled: Callable[[np.ndarray], Tensor] = _scaled,
) -> Tensor:
    """to_pixels with one thing changed."""
    square = flat(picture).resize((side, side), Image.Resampling.BICUBIC)
    return scaled(np.array(square))


def _resized_by_torch(antialias: bool) -> Callable:
    def wrong(picture: Image.Image, side: int) -> Tensor:
        pixels = _scaled(np.array(to_rgb(picture)))[None]
        return F.interpolate(pixels, (side, side), mode="bicubic", antialias=antialias)[0]

    return wrong


def _imagenet(pixels: np.ndarray) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std


def _middle_square(picture: Image.Image) -> Image.Image:
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    return to_rgb(picture).crop((left, top, left + short, top + short))


TO_PIXELS = Exercise(
    name="to_pixels",
    reference=to_pixels,
    cases=_pictures,
    axes="c y x",
    checked=(
        "shape, dtype and every value on 4 pictures: one that shrinks about ten times, one nearly"
        " five times as wide as high, a grey one, and one with transparent parts"
    ),
    mistakes=(
        Mistake(
            "ImageNet's mean and std",
            partial(_to_pixels, scaled=_imagenet),
            "The pixels are normalised with ImageNet's mean and standard deviation. SigLIP was"
            " trained with 0.5 and 0.5 in each channel: 0 to 255 becomes -1 to 1.",
        ),
        Mistake(
            "from 0 to 1",
            partial(
                _to_pixels, scaled=lambda p: torch.from_numpy(p).permute(2, 0, 1).float() / 255
            ),
            "The values go from 0 to 1, half of the range. After / 255 subtract 0.5 and divide by"
            " 0.5, so that they go from -1 to 1.",
        ),
        Mistake(
            "not antialiased",
            _resized_by_torch(antialias=False),
            "The picture is resized without antialiasing: F.interpolate looks at 4 x 4 pixels"
            " however far it shrinks, and skips the rest. Use picture.resize((side, side),"
            " Image.Resampling.BICUBIC), before the picture becomes a tensor.",
        ),
        Mistake(
            "antialiased by torch",
            _resized_by_torch(antialias=True),
            "This is antialiased and nearly right, but not the same numbers: Pillow resizes bytes"
            " and rounds to bytes. The published models were made with Pillow's result. Resize the"
            " picture first, then make a tensor of it.",
        ),
        Mistake(
            "rows and columns exchanged",
            partial(_to_pixels, scaled=lambda p: _scaled(p).transpose(1, 2).contiguous()),
            "Rows and columns are exchanged. np.array(picture) is (y, x, c), though Pillow's size"
            " is (width, height): permute(2, 0, 1) makes (c, y, x) of it.",
        ),
        Mistake(
            "reshaped instead of permuted",
            partial(
                _to_pixels, scaled=lambda p: _scaled(p).permute(1, 2, 0).reshape(_scaled(p).shape)
            ),
            "The channels come from a reshape, which moves no number, so the three colours are"
            " mixed up. Bring the axis c to the front: permute(2, 0, 1).",
        ),
        Mistake(
            "cut to the middle square",
            partial(_to_pixels, flat=_middle_square),
            "The picture is cut to its middle square. PaliGemma sees the whole picture, squeezed"
            " into a square: resize to (side, side), whatever the shape was.",
        ),
        Mistake(
            "transparency thrown away",
            partial(_to_pixels, flat=lambda picture: picture.convert("RGB")),
            "The transparent parts show the colour that lies hidden there. convert('RGB') throws"
            " the fourth channel away: lay the picture over white first.",
        ),
    ),
    hints=(
        "Four steps, in this order: over white and to RGB, to a square, to a tensor (c, y, x), to"
        " -1 to 1. The first two are Pillow's work.",
        "For the first step: white = Image.new('RGBA', picture.size, 'white'), then"
        " Image.alpha_composite(white, picture.convert('RGBA')).convert('RGB'). A picture without"
        " transparency comes out as it was.",
        "Then picture.resize((side, side), Image.Resampling.BICUBIC), and"
        " torch.from_numpy(np.array(picture)) with permute(2, 0, 1). Last: float(), / 255, - 0.5,"
        " / 0.5.",
    ),
)


def _prompts() -> list[tuple]:
    def encoder(first: int) -> Callable[[str], list[int]]:
        """One id a character, other ids in each case: none of them can be known by heart."""

        def encode(text: str) -> list[int]:
            return [first + ord(character) for character in text]

        return encode

    return [
        ("cap en", encoder(10), 900, 3, 2),
        (" 2 dogs? ", encoder(200), 7, 5, 4),
        ("", encoder(31), 800, 2, 6),
    ]


def _prompt(build: Callable[[list[int], int, list[int], list[int]], list[int]]) -> Callable:
    """build(picture, bos, words, newline) -> ids."""

    def wrong(prompt, encode, image_token, num_patches, bos):
        return build([image_token] * num_patches, bos, encode(prompt), encode("\n"))

    return wrong


PROMPT_IDS = Exercise(
    name="prompt_ids",
    reference=prompt_ids,
    cases=_prompts,
    axes="t",
    checked=(
        "the list of ids for 3 prompts, one of them empty and one with spaces at both ends, with"
        " 3, 5 and 2 patches and other ids each time"
    ),
    mistakes=(
        Mistake(
            "bos missing",
            _prompt(lambda picture, bos, words, newline: picture + words + newline),
            "bos is missing: it stands between the image tokens and the prompt. `encode` does not"
            " add it.",
        ),
        Mistake(
            "bos twice",
            _prompt(lambda picture, bos, words, newline: picture + [bos, bos] + words + newline),
            "bos is there twice. One is enough. (A tokenizer may add its own; this `encode` does"
            " not.)",
        ),
        Mistake(
            "newline missing",
            _prompt(lambda picture, bos, words, newline: picture + [bos] + words),
            "The newline at the end is missing. It ends the prompt and tells the model that the"
            " answer begins: encode(prompt + '\\n').",
        ),
        Mistake(
            "image tokens after bos",
            _prompt(lambda picture, bos, words, newline: [bos] + picture + words + newline),
            "The image tokens come after bos. The picture is first; bos begins the text.",
        ),
        Mistake(
            "bos before and after the picture",
            _prompt(lambda picture, bos, words, newline: [bos, *picture, bos, *words, *newline]),
            "There is a bos before the picture and one after it. Only the second belongs there: the"
            " picture is first, and bos begins the text.",
        ),
        Mistake(
            "image tokens after the prompt",
            _prompt(lambda picture, bos, words, newline: [bos] + words + newline + picture),
            "The image tokens come last. The picture is first: the model writes its answer right"
            " after the newline.",
        ),
        Mistake(
            "one image token",
            _prompt(lambda picture, bos, words, newline: picture[:1] + [bos] + words + newline),
            "There is one image token. Each patch needs a place of its own: num_patches of them.",
        ),
        Mistake(
            "newline before the prompt",
            _prompt(lambda picture, bos, words, newline: picture + [bos] + newline + words),
            "The newline comes before the prompt. It is the last token: what follows it is the"
            " answer.",
        ),
    ),
    hints=(
        "A list of ids in four parts: the picture's places, bos, the prompt, the newline.",
        "[image_token] * num_patches repeats an id. Lists are joined with +, and a single id needs"
        " brackets: [bos].",
        "encode gives ids without bos and without a newline. Leave the prompt as it is, spaces"
        " too, and add the newline to it: encode(prompt + '\\n').",
    ),
)


def _rows() -> list[tuple]:
    # The filler's number is also a token of some rows, and no two rows are equally long: a row
    # that is too long or too short on the wrong side cannot go unnoticed.
    return [
        ([[11, 7, 12, 13, 14], [21, 22], [7, 31, 32, 7]], 7, "left"),
        ([[41], [51, 52, 53, -100], [61, 62]], -100, "right"),
        ([[5, 6, 8]], 0, "left"),
    ]


def _pad_rows(
    rows,
    filler,
    side,
    *,
    side_of: Callable[[str], str] = lambda side: side,
    side_of_mask: Callable[[str], str] | None = None,
    filler_of: Callable[[int], int] = lambda filler: filler,
    mask_of: Callable[[Tensor, Tensor, int], Tensor] = lambda ids, mask, filler: mask,
    length: Callable = max,
):
    """pad_rows with one thing changed."""
    longest = length(len(row) for row in rows)
    rows = [row[:longest] for row in rows]
    ids, mask = pad_rows(rows, filler_of(filler), side_of(side))
    if side_of_mask:
        mask = pad_rows(rows, filler_of(filler), side_of_mask(side))[1]
    return ids, mask_of(ids, mask, filler)


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


PAD_ROWS = Exercise(
    name="pad_rows",
    reference=pad_rows,
    cases=_rows,
    axes="b t; b t",
    parts=("ids", "mask"),
    checked=(
        "ids and mask, shape, dtype and every value, for 3 batches: filled up on the left, on the"
        " right, and one row that needs no filler; the filler's number also occurs as a token"
    ),
    mistakes=(
        Mistake(
            "padding counted as text",
            partial(_pad_rows, mask_of=lambda ids, mask, filler: torch.ones_like(mask)),
            "The mask is 1 everywhere, so padding counts as text and the model reads it. Put 0"
            " where you filled up.",
        ),
        Mistake(
            "mask upside down",
            partial(_pad_rows, mask_of=lambda ids, mask, filler: 1 - mask),
            "The mask is upside down: 1 is for real tokens, 0 for padding.",
        ),
        Mistake(
            "mask read off the ids",
            partial(_pad_rows, mask_of=lambda ids, mask, filler: (ids != filler).long()),
            "The mask is 0 wherever the filler's number stands, also inside a row, where it is a"
            " real token. Make the mask from the lengths of the rows, not from the ids.",
        ),
        Mistake(
            "always on the right",
            partial(_pad_rows, side_of=lambda side: "right"),
            "The rows are filled up on the right even if side is 'left'.",
        ),
        Mistake(
            "always on the left",
            partial(_pad_rows, side_of=lambda side: "left"),
            "The rows are filled up on the left even if side is 'right'.",
        ),
        Mistake(
            "sides exchanged",
            partial(_pad_rows, side_of=_other),
            "The sides are exchanged. side says where the filler goes: with 'left' it stands before"
            " the row.",
        ),
        Mistake(
            "mask on the other side",
            partial(_pad_rows, side_of_mask=_other),
            "The ids are right, but the zeros of the mask are on the other side.",
        ),
        Mistake(
            "cut to the shortest",
            partial(_pad_rows, length=min),
            "The rows are cut to the shortest, and tokens are lost. Fill them up to the longest.",
        ),
    ),
    hints=(
        "First the longest length. Then, for each row, how much is missing.",
        "[filler] * missing is the padding. side 'left' puts it before the row, 'right' after it."
        " Join lists with +, which makes a new list and leaves the row as it is.",
        "The mask is built in the same way from [1] * len(row) and [0] * missing. At the end"
        " torch.tensor(...) of the list of rows gives int64.",
    ),
)

EXERCISES = (TO_PIXELS, PROMPT_IDS, PAD_ROWS)
