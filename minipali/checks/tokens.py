"""Lesson 06: pictures as pixels, prompts as ids, rows of equal length, and rows packed."""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.tokens import pad_rows, prompt_ids, to_pixels, to_rgb


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 * 2 - 1


@cache  # the known mistakes, and two of them at once, are tried on them again and again
def _pictures() -> list[tuple]:
    rng = np.random.default_rng(6)

    def noise(height: int, width: int, channels: int) -> np.ndarray:
        # From 60 to 195, so that the bicubic filter never leaves 0 to 255: cut off or not cut off
        # makes no difference, and the known mistakes are told apart by what they are about.
        # Steps of 5, and shares of 51 of 255: white mixes in without a rest, however it is done.
        return 5 * rng.integers(12, 40, (height, width, channels)).astype(np.uint8)

    def shares(height: int, width: int) -> np.ndarray:
        return rng.choice([0, 51, 102, 204, 255], (height, width)).astype(np.uint8)

    large = noise(61, 83, 3)  # shrinks by 12 and by 9: single pixels show if it is not antialiased
    wide = noise(5, 23, 3)
    grey = noise(37, 16, 1)[..., 0]
    cut_out, grey_cut_out = noise(19, 14, 4), noise(17, 13, 2)
    cut_out[..., 3], grey_cut_out[..., 1] = shares(19, 14), shares(17, 13)
    numbers = rng.integers(0, 8, (15, 18)).astype(np.uint8)
    drawing = Image.frombytes("P", (18, 15), numbers.tobytes())
    drawing.putpalette(noise(1, 8, 3).flatten().tolist())
    drawing.info["transparency"] = 3
    # Here white mixes in with a rest in each pixel, so it counts how that is rounded. (No share of
    # 255 lies in the middle between two bytes.)
    mixed = rng.integers(60, 196, (16, 21, 4)).astype(np.uint8)
    mixed[..., 3] = rng.choice([a for a in range(256) if math.gcd(a, 255) == 1], (16, 21))
    return [
        (Image.fromarray(wide), 6),
        (Image.fromarray(large), 7),
        (Image.fromarray(grey), 9),
        (Image.fromarray(cut_out), 5),
        (Image.fromarray(grey_cut_out), 6),
        (drawing, 7),
        (Image.fromarray(mixed), 6),
    ]


def _to_square(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _to_pixels(
    picture: Image.Image,
    side: int,
    *,
    flat: Callable[[Image.Image], Image.Image] = to_rgb,
    resize: Callable[[Image.Image, int], Image.Image] = _to_square,
    flat_first: bool = True,
    layout: Callable[[np.ndarray], Tensor] = _channels_first,
    scaled: Callable[[Tensor], Tensor] = _scaled,
    finish: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> Tensor:
    """to_pixels with one thing changed."""
    square = resize(flat(picture), side) if flat_first else flat(resize(picture, side))
    return finish(scaled(layout(np.array(square))))


def _on(colour: str) -> Callable[[Image.Image], Image.Image]:
    """Transparent parts on another ground."""

    def flat(picture: Image.Image) -> Image.Image:
        ground = Image.new("RGBA", picture.size, colour)
        return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")

    return flat


def _white_for(modes: tuple[str, ...]) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: to_rgb(picture) if picture.mode in modes else picture.convert("RGB")


def _all_or_nothing(limit: int) -> Callable[[Image.Image], Image.Image]:
    """White where less than `limit` is opaque; elsewhere the colour as it is."""

    def flat(picture: Image.Image) -> Image.Image:
        rgba = np.array(picture.convert("RGBA"))
        colours = rgba[..., :3]
        colours[rgba[..., 3] < limit] = 255
        return Image.fromarray(colours)

    return flat


def _mixed(
    mix: Callable[[np.ndarray, np.ndarray], np.ndarray], dtype: type = np.int64
) -> Callable[[Image.Image], Image.Image]:
    """White mixed in by hand: mix gets colours and shares, 0 to 255, and is cut off to bytes."""

    def flat(picture: Image.Image) -> Image.Image:
        rgba = np.array(picture.convert("RGBA")).astype(dtype)
        return Image.fromarray(mix(rgba[..., :3], rgba[..., 3:]).astype(np.uint8))

    return flat


def _sum_of_shares(colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    return colour * (share / 255) + 255 * (1 - share / 255)


def _sum_of_bytes(colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    return (colour * (share / 255)).astype(int) + (255 * (1 - share / 255)).astype(int)


def _times_255(colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    return colour * share + 255 * (255 - share)


def _resized_by_torch(antialias: bool, rounded: bool = False) -> Callable:
    def wrong(picture: Image.Image, side: int) -> Tensor:
        pixels = _channels_first(np.array(to_rgb(picture))).float()[None]
        pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=antialias)[0]
        return _scaled(pixels.round() if rounded else pixels)

    return wrong


def _imagenet(pixels: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (pixels.float() / 255 - mean) / std


def _middle_square(picture: Image.Image, side: int) -> Image.Image:
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    return _to_square(picture.crop((left, top, left + short, top + short)), side)


def _framed(colour: str) -> Callable[[Image.Image, int], Image.Image]:
    """Proportions kept, the rest of the square in one colour; two common ways."""

    def small_first(picture: Image.Image, side: int) -> Image.Image:
        return ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, colour)

    return small_first


def _letterbox(picture: Image.Image, side: int, colour: str) -> Image.Image:
    long = max(picture.size)
    square = Image.new("RGB", (long, long), colour)
    square.paste(picture, ((long - picture.width) // 2, (long - picture.height) // 2))
    return _to_square(square, side)


def _thumbnail(picture: Image.Image, side: int) -> Image.Image:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return small


def _filter(which: str) -> Callable[[Image.Image, int], Image.Image]:
    return lambda picture, side: picture.resize((side, side), Image.Resampling[which])


_MIDDLE = (
    "The picture is cut to its middle square. PaliGemma sees the whole picture, squeezed into a"
    " square: resize to (side, side), whatever the shape was."
)
_FRAME = (
    "The proportions are kept, and the rest of the square is filled up. Here the whole picture is"
    " squeezed into the square: resize to (side, side), whatever the shape was."
)
_THRESHOLD = (
    "A half-transparent pixel becomes all white, or keeps its colour whole. It is laid on white: of"
    " its colour it keeps the share that it is opaque, and the rest is white."
    " Image.alpha_composite does that."
)
_KINDS = (
    "Some kinds of pictures lose their transparency: grey with transparency (LA) or a palette with"
    " a transparent colour (P) come out with the colour that lies hidden there. Lay every picture"
    " over white after convert('RGBA'), which knows all kinds."
)

TO_PIXELS = Exercise(
    name="to_pixels",
    reference=to_pixels,
    cases=_pictures,
    axes="c y x",
    checked=(
        "shape, dtype and every value on 7 pictures: one nearly five times as wide as high, one"
        " that shrinks about ten times, a grey one, and four with transparent parts: two in colour,"
        " one in grey, and one with a palette; picture unchanged"
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
            partial(_to_pixels, scaled=lambda p: p.float() / 255),
            "The values go from 0 to 1, half of the range. After / 255 subtract 0.5 and divide by"
            " 0.5, so that they go from -1 to 1.",
        ),
        Mistake(
            "from -0.5 to 0.5",
            partial(_to_pixels, scaled=lambda p: p.float() / 255 - 0.5),
            "The values go from -0.5 to 0.5. The last step is missing: divide by 0.5, too.",
        ),
        Mistake(
            "from 0 to 2",
            partial(_to_pixels, scaled=lambda p: p.float() / 127.5),
            "The values go from 0 to 2. Subtract 1, so that they go from -1 to 1.",
        ),
        Mistake(
            "from 0 to 255",
            partial(_to_pixels, scaled=lambda p: p.float()),
            "The values still go from 0 to 255. Divide by 255, subtract 0.5 and divide by 0.5, so"
            " that they go from -1 to 1.",
        ),
        Mistake(
            "divided by 128",
            partial(_to_pixels, scaled=lambda p: p.float() / 128 - 1),
            "The values are divided by 128 (or 256), so that white does not become 1. The largest"
            " value is 255: 255 / 127.5 - 1 is 1.",
        ),
        Mistake(
            "upside down",
            partial(_to_pixels, scaled=lambda p: -_scaled(p)),
            "Light and dark are exchanged: 0 must become -1, and 255 must become 1.",
        ),
        Mistake(
            "cut off at 0",
            partial(_to_pixels, scaled=lambda p: _scaled(p).clamp(0, 1)),
            "Everything below 0 is cut off, so the darker half of the picture is lost. The values"
            " go from -1 to 1.",
        ),
        Mistake(
            "grey",
            partial(_to_pixels, flat=lambda picture: to_rgb(picture).convert("L").convert("RGB")),
            "The picture has become grey: its three channels are equal. Keep the colours:"
            " convert('RGB').",
        ),
        Mistake(
            "thumbnail",
            partial(_to_pixels, resize=_thumbnail),
            "The proportions are kept (Pillow's thumbnail does that), so the result is no square."
            " The whole picture is squeezed into a square: picture.resize((side, side), ...).",
        ),
        Mistake(
            "range of each picture",
            partial(
                _to_pixels,
                scaled=lambda p: (p.float() - p.min()) / (p.max() - p.min()).float() * 2 - 1,
            ),
            "Each picture is stretched to its own darkest and brightest value. The scale is the"
            " same for all: 0 becomes -1 and 255 becomes 1, or a dark picture is no longer dark.",
        ),
        *(
            Mistake(
                f"computed in bytes: {name}",
                partial(_to_pixels, scaled=scaled),
                "You compute with bytes (uint8), which hold 0 to 255 and run over. Make floats"
                " first: pixels.float().",
            )
            for name, scaled in (
                ("all", lambda p: (2 * p - 255).float() / 255),
                ("doubled", lambda p: (2 * p) / 255 - 1),
                ("127 subtracted", lambda p: (p - 127) / 127.5),
                ("128 subtracted", lambda p: (p - 128) / 127.5),
                ("128 and 128", lambda p: (p - 128) / 128),
            )
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
            "resized in floats",
            _resized_by_torch(antialias=True, rounded=True),
            "The picture is resized in floats and rounded once, at the end. Pillow resizes bytes,"
            " and rounds after the width and after the height. The check wants its bytes: use"
            " picture.resize on a picture of bytes.",
        ),
        *(
            Mistake(
                f"{which.lower()} filter",
                partial(_to_pixels, resize=_filter(which)),
                f"The picture is resized with Pillow's {which} filter. The published models were"
                " made with the bicubic one: Image.Resampling.BICUBIC.",
            )
            for which in ("NEAREST", "BILINEAR", "LANCZOS", "BOX", "HAMMING")
        ),
        Mistake(
            "rows and columns exchanged",
            partial(_to_pixels, layout=lambda p: _channels_first(p).transpose(1, 2)),
            "Rows and columns are exchanged. np.array(picture) is (y, x, c), though Pillow's size"
            " is (width, height): permute(2, 0, 1) makes (c, y, x) of it.",
        ),
        Mistake(
            "reshaped instead of permuted",
            partial(_to_pixels, layout=lambda p: torch.from_numpy(p.reshape(3, *p.shape[:2]))),
            "The channels come from a reshape, which moves no number, so the three colours are"
            " mixed up. Bring the axis c to the front: permute(2, 0, 1).",
        ),
        Mistake(
            "channels last",
            partial(_to_pixels, layout=torch.from_numpy),
            "The colours are the last axis, (y, x, c), as NumPy has them. The model wants them in"
            " front: permute(2, 0, 1).",
        ),
        Mistake(
            "blue first",
            partial(_to_pixels, layout=lambda p: _channels_first(p).flip(0)),
            "Red and blue are exchanged. The channels are red, green, blue, as Pillow has them.",
        ),
        Mistake(
            "a batch of one",
            partial(_to_pixels, finish=lambda pixels: pixels[None]),
            "There is a fourth axis in front, as for a batch. One picture is asked for: (3, side,"
            " side).",
        ),
        Mistake("cut to the middle square", partial(_to_pixels, resize=_middle_square), _MIDDLE),
        Mistake(
            "resized and cut to the middle",
            partial(
                _to_pixels,
                resize=lambda p, side: ImageOps.fit(p, (side, side), Image.Resampling.BICUBIC),
            ),
            _MIDDLE,
        ),
        *(
            Mistake(f"{way} {colour}", partial(_to_pixels, resize=resize), _FRAME)
            for colour in ("white", "black")
            for way, resize in (
                ("framed", _framed(colour)),
                ("letterbox", partial(_letterbox, colour=colour)),
            )
        ),
        Mistake(
            "transparency thrown away",
            partial(_to_pixels, flat=lambda picture: picture.convert("RGB")),
            "The transparent parts show the colour that lies hidden there. convert('RGB') throws"
            " the fourth channel away: lay the picture over white first.",
        ),
        Mistake(
            "over black",
            partial(_to_pixels, flat=_on("black")),
            "What is transparent becomes black. Lay the picture over white: Image.new('RGBA',"
            " picture.size, 'white').",
        ),
        Mistake("white for RGBA alone", partial(_to_pixels, flat=_white_for(("RGBA",))), _KINDS),
        Mistake(
            "white without palettes", partial(_to_pixels, flat=_white_for(("RGBA", "LA"))), _KINDS
        ),
        Mistake("white without LA", partial(_to_pixels, flat=_white_for(("RGBA", "P"))), _KINDS),
        *(
            Mistake(
                f"all or nothing at {limit}",
                partial(_to_pixels, flat=_all_or_nothing(limit)),
                _THRESHOLD,
            )
            for limit in (1, 128, 255)
        ),
        *(
            Mistake(
                f"mixed colours cut off: {name}",
                partial(_to_pixels, flat=flat),
                "Where white is mixed in, the numbers are cut off to bytes (.astype(np.uint8),"
                " int(...) and // do that). They are rounded to the nearest byte: np.rint(...)"
                " first, or let Image.alpha_composite mix.",
            )
            for name, flat in (
                ("exactly", _mixed(lambda colour, share: _times_255(colour, share) // 255)),
                ("in float64", _mixed(_sum_of_shares)),
                ("two parts in float64", _mixed(_sum_of_bytes)),
                ("two parts in float32", _mixed(_sum_of_bytes, np.float32)),
            )
        ),
        Mistake(
            "mixed colours rounded up",
            partial(
                _to_pixels,
                flat=_mixed(lambda colour, share: -(-_times_255(colour, share) // 255)),
            ),
            "Where white is mixed in, the numbers are rounded up. They are rounded to the nearest"
            " byte: np.rint(...), or let Image.alpha_composite mix.",
        ),
        *(
            Mistake(
                f"a whole is 256, {name}",
                partial(
                    _to_pixels,
                    flat=_mixed(
                        lambda colour, share, more=more: (_times_255(colour, share) + more) >> 8
                    ),
                ),
                "Where white is mixed in, you divide by 256 (>> 8 does, too), so that white becomes"
                " darker. A pixel that is all opaque has 255: divide by that.",
            )
            for name, more in (("cut off", 0), ("rounded", 128))
        ),
        Mistake(
            "resized first",
            partial(_to_pixels, flat_first=False),
            "The picture is resized before it is RGB on white. The order counts: the numbers of a"
            " palette picture are names of colours and cannot be averaged, and where something is"
            " transparent the result is rounded elsewhere. White and RGB first, then the square.",
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
        (" 2 Dogs?  or 3 ", encoder(200), 7, 5, 4),
        ("", encoder(31), 800, 2, 6),
        ("A cat\n", encoder(57), 600, 4, 9),
    ]


def _prompt_ids(
    prompt: str,
    encode: Callable[[str], list[int]],
    image_token: int,
    num_patches: int,
    bos: int,
    *,
    bos_at: tuple[str, ...] = ("middle",),
    image_at: str = "first",
    newlines: tuple[str, ...] = ("last",),
    places: Callable[[int], int] = lambda num_patches: num_patches,
    bos_of: Callable[[int], int] = lambda bos: bos,
    image_of: Callable[[int], int] = lambda image_token: image_token,
    newline_of: Callable[[list[int]], list] = lambda newline: newline,
    newline_text: str = "\n",
    text_of: Callable[[list[int]], list] = lambda ids: ids,
    spaces_of: Callable[[str], str] = lambda prompt: prompt,
    letters_of: Callable[[str], str] = lambda prompt: prompt,
    finish: Callable[[list], object] = lambda ids: ids,
):
    """prompt_ids with one thing changed."""
    image, begin = [image_of(image_token)] * places(num_patches), [bos_of(bos)]
    newline = newline_of(encode(newline_text))
    text = text_of(encode(letters_of(spaces_of(prompt))))
    row = begin * bos_at.count("first") + image * (image_at == "first")
    row += newline * newlines.count("before bos")
    row += begin * bos_at.count("middle") + image * (image_at == "middle")
    row += newline * newlines.count("first") + text
    row += begin * bos_at.count("behind") + encode(" ") * newlines.count("space")
    row += newline * (newlines.count("last") if prompt or "if text" not in newlines else 0)
    row += [1] * newlines.count("eos")
    row += begin * bos_at.count("last") + image * (image_at == "last")
    return finish(row)


PROMPT_IDS = Exercise(
    name="prompt_ids",
    reference=prompt_ids,
    cases=_prompts,
    axes="t",
    checked=(
        "the list of ids for 4 prompts: a plain one, one with capitals and spaces at both ends, an"
        " empty one, and one that ends in a newline of its own; with 2 to 5 patches and other ids"
        " each time"
    ),
    mistakes=(
        Mistake(
            "bos missing",
            partial(_prompt_ids, bos_at=()),
            "bos is missing: it stands between the image tokens and the prompt. `encode` does not"
            " add it.",
        ),
        Mistake(
            "bos twice",
            partial(_prompt_ids, bos_at=("middle", "middle")),
            "bos is there twice. One is enough. (A tokenizer may add its own; this `encode` does"
            " not.)",
        ),
        Mistake(
            "image tokens after bos",
            partial(_prompt_ids, bos_at=("first",)),
            "The image tokens come after bos. The picture is first; bos begins the text.",
        ),
        Mistake(
            "bos before and after the picture",
            partial(_prompt_ids, bos_at=("first", "middle")),
            "There is a bos before the picture and one after it. Only the second belongs there: the"
            " picture is first, and bos begins the text.",
        ),
        Mistake(
            "bos at the end",
            partial(_prompt_ids, bos_at=("last",)),
            "bos stands at the end. It begins the text: between the image tokens and the prompt.",
        ),
        Mistake(
            "bos behind the prompt",
            partial(_prompt_ids, bos_at=("behind",)),
            "bos stands behind the prompt. It begins the text: between the image tokens and the"
            " prompt.",
        ),
        Mistake(
            "bos by heart",
            partial(_prompt_ids, bos_of=lambda bos: 2),
            "The id of bos is written by heart: 2. Use the `bos` that is given; it differs from"
            " model to model.",
        ),
        Mistake(
            "newline missing",
            partial(_prompt_ids, newlines=()),
            "The newline at the end is missing. It ends the prompt and tells the model that the"
            " answer begins: encode(prompt + '\\n').",
        ),
        Mistake(
            "newline twice",
            partial(_prompt_ids, newlines=("last", "last")),
            "The newline is there twice. One is added, and `encode` adds none.",
        ),
        Mistake(
            "newline before the prompt",
            partial(_prompt_ids, newlines=("first",)),
            "The newline comes before the prompt. It is the last token: what follows it is the"
            " answer.",
        ),
        Mistake(
            "newline before bos",
            partial(_prompt_ids, newlines=("before bos",)),
            "The newline comes before bos. It is the last token, behind the prompt: what follows it"
            " is the answer.",
        ),
        *(
            Mistake(
                f"newline by heart: {number}",
                partial(_prompt_ids, newline_of=lambda newline, number=number: [number]),
                f"The id of the newline is written by heart: {number}. Let `encode` say what it is;"
                " it differs from model to model.",
            )
            for number in (108, 10, 5)
        ),
        *(
            Mistake(
                f"text as a list in the list: {name}",
                partial(_prompt_ids, text_of=lambda ids: [ids], newline_of=change),
                "A list stands inside the list. encode returns a list of ids: join it with +, or"
                " use extend in place of append.",
            )
            for name, change in (
                ("text alone", lambda newline: newline),
                ("both", lambda newline: [newline]),
            )
        ),
        Mistake(
            "all text as a list in the list",
            lambda prompt, encode, image_token, num_patches, bos: (
                [image_token] * num_patches + [bos, encode(prompt + "\n")]
            ),
            "A list stands inside the list. encode returns a list of ids: join it with +, or use"
            " extend in place of append.",
        ),
        Mistake(
            "backslash and n",
            partial(_prompt_ids, newline_text="\\n"),
            "There are two characters in place of the newline, a backslash and an n. Write it"
            " without a second backslash and without r in front: '\\n'.",
        ),
        Mistake(
            "space before the prompt",
            partial(_prompt_ids, spaces_of=lambda prompt: " " + prompt),
            "A space stands before the prompt. Leave the prompt as it is.",
        ),
        Mistake(
            "small first letter",
            partial(_prompt_ids, letters_of=lambda prompt: prompt[:1].lower() + prompt[1:]),
            "The first letter of the prompt is made small. Capitals have ids of their own: leave"
            " the prompt as it is.",
        ),
        Mistake(
            "space before the newline",
            partial(_prompt_ids, newlines=("space", "last")),
            "A space stands before the newline. Add the newline alone: encode(prompt + '\\n').",
        ),
        Mistake(
            "eos at the end",
            partial(_prompt_ids, newlines=("last", "eos")),
            "The id 1 is added at the end: eos? The row of a question ends with its newline, and"
            " the model goes on from there. eos ends the answer.",
        ),
        Mistake(
            "newline missing after an empty prompt",
            partial(_prompt_ids, newlines=("if text", "last")),
            "An empty prompt gets no newline. It gets one like any other: the newline says that"
            " the answer begins.",
        ),
        Mistake(
            "newline as a list in the list",
            partial(_prompt_ids, newline_of=lambda newline: [newline]),
            "A list stands inside the list. encode returns a list of ids: join it with +, or use"
            " extend in place of append.",
        ),
        Mistake(
            "newline of the prompt cut off",
            partial(_prompt_ids, spaces_of=lambda prompt: prompt.removesuffix("\n")),
            "A prompt that ends in a newline gets no other. Leave the prompt as it is, and add one"
            " newline whatever it ends with.",
        ),
        *(
            Mistake(
                f"spaces: {name}",
                partial(_prompt_ids, spaces_of=change),
                "Spaces of the prompt are lost (strip, split, or something like them). Every space"
                " has its id: leave the prompt as it is.",
            )
            for name, change in (
                ("strip", str.strip),
                ("lstrip", str.lstrip),
                ("rstrip", str.rstrip),
                ("split", lambda prompt: " ".join(prompt.split())),
                ("no space at the ends", lambda prompt: prompt.strip(" ")),
                ("word by word", lambda prompt: "".join(prompt.split())),
                ("no space at all", lambda prompt: prompt.replace(" ", "")),
            )
        ),
        Mistake(
            "small letters",
            partial(_prompt_ids, letters_of=str.lower),
            "The prompt is written in small letters. Capitals have ids of their own: leave the"
            " prompt as it is.",
        ),
        Mistake(
            "image tokens after the prompt",
            partial(_prompt_ids, image_at="last"),
            "The image tokens come last. The picture is first: the model writes its answer right"
            " after the newline.",
        ),
        Mistake(
            "no image tokens",
            partial(_prompt_ids, image_at=""),
            "The image tokens are missing. They keep a place for each patch, at the front:"
            " num_patches of them.",
        ),
        Mistake(
            "one image token",
            partial(_prompt_ids, places=lambda number: 1),
            "There is one image token. Each patch needs a place of its own: num_patches of them.",
        ),
        *(
            Mistake(
                f"{number} places",
                partial(_prompt_ids, places=lambda _, number=number: number),
                f"There are always {number} image tokens. How many patches a picture has differs"
                " from model to model: use num_patches.",
            )
            for number in (256, 36)
        ),
        *(
            Mistake(
                f"{more:+d} places",
                partial(_prompt_ids, places=lambda number, more=more: number + more),
                f"There is one image token too {'many' if more > 0 else 'few'}. Each patch has one"
                " place: num_patches of them.",
            )
            for more in (1, -1)
        ),
        Mistake(
            "image token by heart",
            partial(_prompt_ids, image_of=lambda image_token: 257152),
            "The id of the image token is written by heart: 257152. Use the `image_token` that is"
            " given; it differs from model to model.",
        ),
        Mistake(
            "a tensor",
            partial(_prompt_ids, finish=torch.tensor),
            "Your ids are in a tensor. A list is due here, because rows are not equally long yet:"
            " pad_rows makes the tensor.",
        ),
        Mistake(
            "a batch of one",
            partial(_prompt_ids, finish=lambda ids: [ids]),
            "Your row stands in another list, as in a batch. One row is asked for: a list of ids.",
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
    # The filler's number is also a token of some rows, and no two rows of a batch are equally
    # long: a row that is too long or too short on the wrong side cannot go unnoticed.
    return [
        ([[11, 7, 12, 13, 14], [21, 22], [7, 31, 32, 7]], 7, "left"),
        ([[41], [51, 52, 53, -100], [61, 62]], -100, "right"),
        ([[5, 6, 8]], 0, "left"),
        ([[71, 72], [], [81, 0, 83]], 0, "left"),
        ([[], [91, 92]], 3, "right"),
    ]


def _pad_rows(
    rows,
    filler,
    side,
    *,
    side_of: Callable[[str], str] = lambda side: side,
    side_of_mask: Callable[[str], str] = lambda side: side,
    filler_of: Callable[[int], int] = lambda filler: filler,
    mask_of: Callable[[Tensor, Tensor, int], Tensor] = lambda ids, mask, filler: mask,
    ids_of: Callable[[Tensor], Tensor] = lambda ids: ids,
    row_of: Callable[[list[int]], list[int]] = lambda row: row,
    order: Callable[[list], list] = lambda rows: rows,
    length: Callable = max,
    kept: Callable[[list[int], int, str], list[int]] = lambda row, most, side: row[:most],
    more: int = 0,
    both: Callable[[tuple], object] = lambda both: both,
):
    """pad_rows with one thing changed."""
    longest = length(len(row) for row in rows)
    rows = order([row_of(kept(row, longest, side)) for row in rows])
    to = [0] * (longest + more)  # a row that is as long as the result

    def filled(with_what: int, on: str) -> tuple[Tensor, Tensor]:
        ids, mask = pad_rows([*rows, to], with_what, on)
        return ids[:-1], mask[:-1]

    ids, mask = filled(filler_of(filler), side_of(side))
    # The mask goes with the ids, and may go wrong by itself.
    mask = filled(0, side_of_mask(side_of(side)))[1]
    return both((ids_of(ids), mask_of(ids, mask, filler)))


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


def _from_the_end(ids: Tensor, mask: Tensor, filler: int) -> Tensor:
    """mask[-len(row):] = 1, which is the whole row if the length is 0; the other way is right."""
    empty = mask.sum(dim=1, keepdim=True) == 0
    left = bool((mask[:, -1:] == 1).sum() > (mask[:, :1] == 1).sum())
    return torch.where(empty & left, 1, mask)


PAD_ROWS = Exercise(
    name="pad_rows",
    reference=pad_rows,
    cases=_rows,
    axes="b t; b t",
    parts=("ids", "mask"),
    checked=(
        "ids and mask, shape, dtype and every value, for 5 batches: filled up on the left, on the"
        " right, one row that needs no filler, and empty rows on both sides; the filler's number"
        " also occurs as a token; rows unchanged"
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
        *(
            Mistake(
                f"mask read off the ids: {name}",
                partial(_pad_rows, mask_of=lambda ids, mask, filler, kind=kind: kind(ids, filler)),
                "The mask is 0 wherever the filler's number stands, also inside a row, where it is"
                " a real token. Make the mask from the lengths of the rows, not from the ids.",
            )
            for name, kind in (
                ("numbers", lambda ids, filler: (ids != filler).long()),
                ("booleans", lambda ids, filler: ids != filler),
                ("floats", lambda ids, filler: (ids != filler).float()),
            )
        ),
        Mistake(
            "zeros of the ids",
            partial(_pad_rows, mask_of=lambda ids, mask, filler: (ids != 0).long()),
            "The mask is 0 only where an id is 0. The filler can be any number: make the mask from"
            " the lengths of the rows, not from the ids.",
        ),
        Mistake(
            "mask filled with the filler",
            partial(_pad_rows, mask_of=lambda ids, mask, filler: torch.where(mask == 1, 1, filler)),
            "The mask is filled up with the filler's number. At padding the mask is 0.",
        ),
        Mistake(
            "ids in the mask",
            partial(_pad_rows, mask_of=lambda ids, mask, filler: ids * mask),
            "The mask holds ids. It tells only whether a token is real: 1, or 0 at padding.",
        ),
        Mistake(
            "empty row on the left",
            partial(_pad_rows, mask_of=_from_the_end),
            "An empty row gets a mask of ones: a slice that begins at -len(row) begins at 0 if the"
            " row is empty. Count from the front: longest - len(row).",
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
            "mask always on the right",
            partial(_pad_rows, side_of_mask=lambda side: "right"),
            "The ids are right, but the zeros of the mask are always on the right, also if side is"
            " 'left'.",
        ),
        Mistake(
            "mask always on the left",
            partial(_pad_rows, side_of_mask=lambda side: "left"),
            "The ids are right, but the zeros of the mask are always on the left, also if side is"
            " 'right'.",
        ),
        *(
            Mistake(
                f"filler by heart: {number}",
                partial(_pad_rows, filler_of=lambda filler, number=number: number),
                f"The rows are filled up with {number}, whatever `filler` says. The filler differs"
                " from model to model: use the one that is given.",
            )
            for number in (0, 1, -100)
        ),
        *(
            Mistake(
                f"rows turned round{name}",
                partial(_pad_rows, **edit),
                "The tokens of each row come in reverse order. (Turned round to be filled up on the"
                " left? Then turn them back.)",
            )
            for name, edit in (
                (
                    " on the left",
                    {"kept": lambda row, most, side: row[:: -1 if side == "left" else 1]},
                ),
                ("", {"row_of": lambda row: row[::-1]}),
            )
        ),
        Mistake(
            "empty rows dropped",
            partial(_pad_rows, order=lambda rows: [row for row in rows if row]),
            "Empty rows are left out. Row i of the result is row i of `rows`: an empty one is"
            " filled up whole, and its mask is 0 everywhere.",
        ),
        Mistake(
            "rows sorted",
            partial(_pad_rows, order=lambda rows: sorted(rows, key=len, reverse=True)),
            "The rows come sorted by their length. Row i of the result is row i of `rows`.",
        ),
        Mistake(
            "rows sorted, shortest first",
            partial(_pad_rows, order=lambda rows: sorted(rows, key=len)),
            "The rows come sorted by their length. Row i of the result is row i of `rows`.",
        ),
        *(
            Mistake(
                f"cut to the shortest: {name}",
                partial(_pad_rows, length=min, kept=kept),
                "The rows are cut to the shortest, and tokens are lost. Fill them up to the"
                " longest.",
            )
            for name, kept in (
                ("fronts kept", lambda row, most, side: row[:most]),
                ("ends kept", lambda row, most, side: row[len(row) - most :]),
                ("by side", lambda row, most, side: row[-most:] if side == "left" else row[:most]),
            )
        ),
        Mistake(
            "as long as the first row",
            partial(_pad_rows, length=next),
            "The rows are made as long as the first one, and longer ones are cut. Fill them up to"
            " the longest.",
        ),
        Mistake(
            "one place too many",
            partial(_pad_rows, more=1),
            "There is one place too many: fill up to the longest row, which itself needs none.",
        ),
        Mistake(
            "mask first",
            partial(_pad_rows, both=lambda both: both[::-1]),
            "The mask comes first. The contract is (ids, mask).",
        ),
        Mistake(
            "mask missing",
            partial(_pad_rows, both=lambda both: both[0]),
            "Only the ids are returned. The mask goes with them: return ids, mask.",
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


def _short_rows() -> list[tuple]:
    def rows(*lengths: int) -> list[list[int]]:
        return [[10 * (i + 1) + j for j in range(length)] for i, length in enumerate(lengths)]

    # First fit, next fit and best fit differ in the first and the last case; rows that just fit
    # occur in all, and the filler's number is a token of some row.
    return [
        (rows(4, 6, 2, 3, 8, 1), 8, 0),
        (rows(3, 3), 6, 11),
        ([[10, 11, 12], [20, 21], [10, 11, 12], [20, 21], [10, 11, 12]], 7, 50),
        (rows(5, 6, 1, 4, 2, 2, 3), 7, 21),
    ]


def pack_rows(
    rows: list[list[int]],
    length: int,
    filler: int,
    *,
    choose: Callable[[list[int]], list[int]] = lambda fitting: fitting[:1],
    put: Callable[[list[int], int], None] = list.append,
    spare: int = 0,
    order: Callable[[list[int], list], list[int]] = lambda numbers, rows: numbers,
    searched: Callable[[int], range] = range,
    fullest: bool = False,
    first_position: int = 1,
    run_on: bool = False,
    free_position: str = "0",
    free_owner: int | str = -1,
    first_owner: int = 0,
    own_number: Callable[[int, int, int, int], int] = lambda row, inside, packed, before: row,
    filler_of: Callable[[int], int] = lambda filler: filler,
    on_the_left: bool = False,
    as_wide: bool = True,
    by_ids: str = "",
    by_content: bool = False,
    gap: int = 0,
    finish: Callable[[tuple], object] = lambda parts: parts,
):
    """ids, positions and owners, (p, length) each. The reference, or with one thing changed."""
    packed: list[list[int]] = []  # numbers of rows
    for row in order(list(range(len(rows))), rows):
        room = [length - sum(len(rows[one]) + gap for one in each) for each in packed]
        fitting = [i for i in searched(len(packed)) if room[i] >= len(rows[row]) + spare]
        if fullest:
            fitting.sort(key=lambda i: room[i])
        for i in choose(fitting):
            put(packed[i], row)
        if not fitting:
            packed.append([row])
    ids, positions, owners = [], [], []
    for number, each in enumerate(packed):
        before = sum(map(len, packed[:number]))  # so many rows lie in earlier packed rows
        tokens, places, whose = [], [], []
        for inside, row in enumerate(each):
            between = gap if inside else 0
            tokens += [filler] * between
            places += [0] * between
            whose += [-1] * between
            start = first_position + (len(tokens) if run_on else 0)
            places += range(start, start + len(rows[row]))
            of = rows.index(rows[row]) if by_content else row
            whose += [own_number(of, inside, number, before) + first_owner] * len(rows[row])
            tokens += rows[row]
        free = length - len(tokens)
        more = {"0": [0] * free, "1": [1] * free, "-1": [-1] * free}.get(
            free_position, list(range(places[-1] + 1, places[-1] + 1 + free))
        )
        nobody = [whose[-1] if free_owner == "last" else free_owner] * free
        for whole, part, rest in (
            (ids, tokens, [filler_of(filler)] * free),
            (positions, places, more),
            (owners, whose, nobody),
        ):
            whole.append(rest + part if on_the_left else part + rest)
    parts = ids, positions, owners
    if not as_wide:  # only as wide as the fullest needs
        wide = max(sum(len(rows[row]) for row in each) for each in packed)
        parts = tuple([row[:wide] for row in whole] for whole in parts)
    ids, positions, owners = map(torch.tensor, parts)
    if "positions" in by_ids:
        positions = torch.where(ids == filler, 0, positions)
    if "owners" in by_ids:
        owners = torch.where(ids == filler, -1, owners)
    return finish((ids, positions, owners))


def _chopped(rows: list[list[int]], length: int, filler: int) -> tuple[Tensor, ...]:
    """All rows joined to one, and cut into pieces of equal length."""
    whole = [(token, j + 1, i) for i, row in enumerate(rows) for j, token in enumerate(row)]
    whole += [(filler, 0, -1)] * (-len(whole) % length)
    return tuple(torch.tensor(part).reshape(-1, length) for part in zip(*whole, strict=True))


_SORTED = (
    "The rows are sorted by their length before they are packed. That can save a packed row, but"
    " here the order is the one in which they come."
)

PACK_ROWS = Exercise(
    name="pack_rows",
    transfer=True,
    reference=pack_rows,
    cases=_short_rows,
    axes="p place; p place; p place",
    parts=("ids", "positions", "owners"),
    checked=(
        "ids, positions and owners, shape, dtype and every value, for 4 lists of 2 to 7 rows, with"
        " rows that just fit, equal ones, and gaps that a later row fills; the filler's number also"
        " occurs as a token; rows unchanged"
    ),
    mistakes=(
        Mistake(
            "positions run on",
            partial(pack_rows, run_on=True),
            "The positions run on from one row to the next. Each row is a text of its own: its"
            " first token has position 1 again.",
        ),
        Mistake(
            "positions from 0",
            partial(pack_rows, first_position=0),
            "The positions are counted from 0. Here the first token of a row has position 1, and 0"
            " is for free places.",
        ),
        Mistake(
            "positions go on in free places",
            partial(pack_rows, free_position="on"),
            "The free places get positions as if the last row went on. Their position is 0.",
        ),
        Mistake(
            "free places have position 1",
            partial(pack_rows, free_position="1"),
            "The free places get position 1. Their position is 0.",
        ),
        Mistake(
            "owners within a packed row",
            partial(pack_rows, own_number=lambda row, inside, packed, before: inside),
            "The owners start again at 0 in each packed row. The owner of a token is the number"
            " that its row has in `rows`.",
        ),
        Mistake(
            "packed row as owner",
            partial(pack_rows, own_number=lambda row, inside, packed, before: packed),
            "The owner is the number of the packed row. It must tell the rows apart that lie in"
            " one packed row: the number that the token's row has in `rows`.",
        ),
        Mistake(
            "owners from 1",
            partial(pack_rows, first_owner=1),
            "The owners are counted from 1. rows[0] has the number 0.",
        ),
        Mistake(
            "free places belong to row 0",
            partial(pack_rows, free_owner=0),
            "The free places have owner 0, so they seem to belong to rows[0]. They belong to"
            " nobody: -1.",
        ),
        Mistake(
            "free places belong to the last row",
            partial(pack_rows, free_owner="last"),
            "The free places have the owner of the row before them. They belong to nobody: -1.",
        ),
        Mistake(
            "owners from 1, free places 0",
            partial(pack_rows, first_owner=1, free_owner=0),
            "The owners count from 1, with 0 for free places. Others do it so, but here the owner"
            " is the number that the token's row has in `rows`, from 0, and free places have -1.",
        ),
        Mistake(
            "owners by content",
            partial(pack_rows, by_content=True),
            "Rows with equal tokens get the same owner (rows.index finds the first of them). They"
            " are two texts: count the rows with enumerate.",
        ),
        Mistake(
            "owners within a packed row, from 1",
            partial(
                pack_rows,
                own_number=lambda row, inside, packed, before: inside,
                first_owner=1,
                free_owner=0,
            ),
            "The owners count 1, 2, ... anew in each packed row, with 0 for free places. Others do"
            " it so, but here the owner is the number that the token's row has in `rows`, from 0,"
            " and free places have -1.",
        ),
        Mistake(
            "owners by place",
            partial(pack_rows, own_number=lambda row, inside, packed, before: before + inside),
            "The owners count the rows as they lie in the packed rows, one after the other. A later"
            " row may lie in an earlier packed row, in a gap: the owner is the number that the"
            " token's row has in `rows`, so keep it with the row.",
        ),
        Mistake(
            "free places have position -1",
            partial(pack_rows, free_position="-1"),
            "The free places get position -1. Their position is 0; -1 is their owner.",
        ),
        *(
            Mistake(
                f"free places by the ids: {which}",
                partial(pack_rows, by_ids=which),
                "A token whose id happens to be the filler's number is taken for a free place. The"
                " filler may also occur in a row: know the free places by the lengths of the rows.",
            )
            for which in ("positions", "owners", "positions and owners")
        ),
        *(
            Mistake(
                f"filler by heart: {number}",
                partial(pack_rows, filler_of=lambda filler, number=number: number),
                f"The free places hold {number}, whatever `filler` says. Use the filler that is"
                " given.",
            )
            for number in (0, -1)
        ),
        Mistake(
            "owners before positions",
            partial(pack_rows, finish=lambda parts: (parts[0], parts[2], parts[1])),
            "Positions and owners have changed places in what you return: ids, positions, owners.",
        ),
        Mistake(
            "only the last packed row",
            partial(pack_rows, searched=lambda packed: range(packed)[-1:]),
            "Only the packed row that was opened last is looked at. An earlier one may still have"
            " room: take the first that has.",
        ),
        Mistake(
            "the fullest that fits",
            partial(pack_rows, fullest=True),
            "The row goes where the least room is left over. That is a good rule too, but not this"
            " one: take the first packed row that has room.",
        ),
        Mistake(
            "the last that fits",
            partial(pack_rows, choose=lambda fitting: fitting[-1:]),
            "The row goes into the last packed row that has room. Take the first one.",
        ),
        Mistake(
            "all that fit",
            partial(pack_rows, choose=lambda fitting: fitting),
            "The row is put into every packed row that has room, so its tokens are there more than"
            " once. It goes into the first one alone: stop looking there (break).",
        ),
        Mistake(
            "only the first packed row",
            partial(pack_rows, searched=lambda packed: range(packed)[:1]),
            "Only the first of the packed rows is looked at. If it has no room, ask the others in"
            " their order, and begin a new one only if none has.",
        ),
        Mistake(
            "in front of what is there",
            partial(pack_rows, put=lambda packed, row: packed.insert(0, row)),
            "The row is put in front of the rows that lie there. It goes right behind them.",
        ),
        Mistake(
            "nothing packed",
            partial(pack_rows, searched=lambda packed: range(0)),
            "Each row is alone in its packed row. Put it behind an earlier one where there is"
            " room.",
        ),
        Mistake(
            "a place kept free",
            partial(pack_rows, spare=1),
            "A row that just fits is sent on. It may fill a packed row to the last place: compare"
            " with <=.",
        ),
        Mistake(
            "a filler between rows",
            partial(pack_rows, gap=1),
            "There is a free place between neighbours in a packed row. A row stands right behind"
            " the one before it: the owners tell the two apart.",
        ),
        Mistake(
            "cut into pieces",
            _chopped,
            "All rows are joined and cut every `length` places, so some rows are torn apart. A row"
            " stays whole: it goes where all of it has room.",
        ),
        Mistake(
            "longest first",
            partial(
                pack_rows,
                order=lambda numbers, rows: sorted(numbers, key=lambda i: -len(rows[i])),
            ),
            _SORTED,
        ),
        Mistake(
            "shortest first",
            partial(
                pack_rows,
                order=lambda numbers, rows: sorted(numbers, key=lambda i: len(rows[i])),
            ),
            _SORTED,
        ),
        Mistake(
            "free places on the left",
            partial(pack_rows, on_the_left=True),
            "The free places stand on the left. Here they stand at the end of a packed row.",
        ),
        Mistake(
            "as wide as the fullest",
            partial(pack_rows, as_wide=False),
            "The packed rows are as wide as the fullest of them. They have `length` places, also"
            " where none of them is full.",
        ),
    ),
    hints=(
        "Two jobs, one after the other. First decide which rows lie in which packed row: a list of"
        " lists of row numbers, and how many places of each are taken. Then write the three"
        " tensors.",
        "For row i, walk through the packed rows there are. The first with taken + len(row) <="
        " length gets it; if none has room, a new list [i] is put behind the others. Python's"
        " `for ... else` runs its else if no break happened.",
        "For a packed row: ids += rows[i], positions += range(1, len(rows[i]) + 1), owners += [i]"
        " * len(rows[i]) for each i in it. Then fill all three up: filler, 0 and -1, each (length -"
        " taken) times.",
    ),
)

EXERCISES = (TO_PIXELS, PROMPT_IDS, PAD_ROWS, PACK_ROWS)
