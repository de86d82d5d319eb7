"""What a user calls with a model: an answer at once or as it comes, boxes, masks."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from minipali.generation import pieces_of_text, token_steps
from minipali.locations import Box, read_boxes
from minipali.masks import MaskCodec, read_masks
from minipali.paligemma import PaliGemma
from minipali.tokens import Processor, as_picture

# Tokens that an answer about places may have: an object takes about 6, with a mask about 22.
LONGEST = 1024


def generate(
    model: PaliGemma,
    processor: Processor,
    images,
    prompts,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> str | list[str]:
    """The model's answer to one prompt about one picture, or a list of answers to lists.

    images: paths, PIL pictures or arrays of uint8, see `minipali.tokens.as_picture`. Greedy unless
    temperature is above 0 (see `minipali.generation.choose`); seed: repeats a drawn answer. Raises
    ValueError, naming what is wrong, for options, prompts and pictures that cannot be used, and if
    the model's numbers are no numbers.
    """
    one = isinstance(prompts, str)
    batch = processor(images, prompts)
    steps = token_steps(model, batch, max_new_tokens, temperature, top_k, top_p, seed)
    rows = torch.stack(list(steps), dim=1).tolist()
    texts = [processor.decode(row) for row in rows]
    return texts[0] if one else texts


def stream(
    model: PaliGemma,
    processor: Processor,
    image,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """The same answer as `generate`, in pieces as they come.

    A piece is held back while it ends in the middle of a character (bytes of one emoji, say).
    """
    if not isinstance(prompt, str):
        raise ValueError("stream answers one prompt; for several use generate")
    batch = processor(image, prompt)
    steps = token_steps(model, batch, max_new_tokens, temperature, top_k, top_p, seed)
    yield from pieces_of_text((int(tokens[0]) for tokens in steps), processor.decode)


def detect(model: PaliGemma, processor: Processor, image, name: str) -> list[tuple[str, Box]]:
    """Ask "detect NAME" and return [(name, (y0, x0, y1, x1))] in pixels of the given picture.

    The model saw the picture squeezed into a square; fractions undo that. The list is empty if the
    model names no place. A UserWarning says so if the answer had to be cut off.
    """
    picture = image if isinstance(image, Image.Image) else as_picture(image)
    answer = _places(model, processor, picture, f"detect {name}")
    size = (picture.height, picture.width) * 2
    return [
        (found, tuple(place * pixels for place, pixels in zip(box, size, strict=True)))
        for found, box in read_boxes(answer)
    ]


def segment(
    model: PaliGemma, processor: Processor, codec: MaskCodec, image, name: str
) -> list[tuple[str, Box, np.ndarray]]:
    """Ask a published model "segment NAME"; see `minipali.masks.read_masks`.

    The small model never learned to. A UserWarning says so if the answer had to be cut off.
    """
    picture = image if isinstance(image, Image.Image) else as_picture(image)
    answer = _places(model, processor, picture, f"segment {name}")
    return read_masks(answer, codec, picture.height, picture.width)


def _places(model: PaliGemma, processor: Processor, picture: Image.Image, prompt: str) -> str:
    """The whole answer, as far as the model's positions and LONGEST allow."""
    batch = processor(picture, prompt)
    room = model.config.text.max_position_embeddings - batch["input_ids"].shape[1]
    steps = token_steps(model, batch, max_new_tokens=max(1, min(room, LONGEST)))
    ids = [int(tokens[0]) for tokens in steps]
    if ids[-1] != model.config.eos_token_id:
        warnings.warn(
            f"the answer was cut off after {len(ids)} tokens; the model may know of more objects",
            stacklevel=3,
        )
    return processor.decode(ids)
