"""A checkpoint of PaliGemma's real size with random weights, to measure on.

python -m minipali.synthetic FOLDER          3B at 224 px: 603 tensors, 5.8 GB

The published weights need a licence and a download. This model answers nonsense, but it has every
size, name and file of the published one: loading, memory, speed and agreement with transformers can
be measured on it.
"""

import argparse
import json
import math
import struct
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from minipali.config import PRESETS, PaliGemmaConfig, preset
from minipali.saving import finished, is_unused, write_beside, write_index
from minipali.tokens import Processor
from minipali.weights import SMALL, WeightsError, empty_model, path_of, published_name

SHARD = 2_000_000_000  # bytes; makes three files of the 3B model, as published
PIECE = 2**22  # numbers that are made at a time


def write_synthetic(folder: str | Path, config: PaliGemmaConfig, seed: int = 0) -> None:
    """Write a model folder with random bfloat16 weights, a few megabytes at a time.

    Raises WeightsError if the folder holds anything, a model too, or the disk is too full.
    """
    folder = path_of(folder, "the folder to write into")
    if not is_unused(folder):
        raise WeightsError(
            f"{folder} must be new or an empty folder, so that random numbers replace nothing:"
            " choose another one"
        )
    places = {
        published_name(name): tuple(weight.shape)
        for name, weight in empty_model(config).state_dict().items()
    }
    sizes = {key: 2 * math.prod(shape) for key, shape in places.items()}
    with finished(folder, sum(sizes.values())) as part, tempfile.TemporaryDirectory() as beside:
        pieces = Path(beside) / "tokenizer.model"
        pieces.write_bytes(tokenizer(config))
        write_beside(part, Processor(pieces, config), "bfloat16")
        random = torch.Generator().manual_seed(seed)
        size = sum(sizes.values())
        bar = tqdm(total=size, unit="B", unit_scale=True, desc="random weights", disable=None)
        for name, keys in write_index(part, sizes, SHARD).items():
            with open(part / name, "wb") as file:
                file.write(header({key: places[key] for key in keys}))
                for key in keys:
                    for numbers in values(key, places[key], random):
                        file.write(numbers.bfloat16().view(torch.uint8).numpy())
                        bar.update(2 * len(numbers))
        bar.close()


def header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The beginning of a safetensors file with these bfloat16 tensors; see lesson 14."""
    entries, start = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shapes.items():
        end = start + 2 * math.prod(shape)
        entries[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def values(key: str, shape: tuple[int, ...], random: torch.Generator):
    """The numbers of one tensor, piece by piece.

    Their sizes are such that no layer's output explodes or vanishes: a matrix keeps the size of
    what goes in, and a norm's factor is near 1 (Gemma stores it less 1). The rows of a table are
    short, or the head, which is the table too, would only repeat the last token.
    """
    total, centre = math.prod(shape), 0.0
    if len(shape) == 1:
        spread = 0.1
        if key.startswith("vision_tower") and "norm" in key and key.endswith("weight"):
            centre = 1.0
    elif key.endswith(("embed_tokens.weight", "position_embedding.weight")):
        spread = 0.1 * shape[-1] ** -0.5
    else:
        spread = math.prod(shape[1:]) ** -0.5
    for start in range(0, total, PIECE):
        yield centre + spread * torch.randn(min(PIECE, total - start), generator=random)


def tokenizer(config: PaliGemmaConfig) -> bytes:
    """The small model's tokenizer, with unused pieces up to the published size.

    Two messages in protobuf's format, one after the other, are their sum: the pieces are appended.
    """
    small = Processor(SMALL / "tokenizer.model", preset("small"))
    wanted = Processor(SMALL / "tokenizer.model", config).first_location
    have = small.sentencepiece.GetPieceSize()
    if have > wanted:
        raise WeightsError(f"there must be room for {have} pieces of text, found {wanted}")
    unused = []
    for number in range(have, wanted):
        piece = f"<unused{number}>".encode()
        # Field 1 is the text, 2 the score (a float), 3 the kind: 5 is "unused".
        inside = b"\x0a" + bytes([len(piece)]) + piece
        inside += b"\x15" + struct.pack("<f", 0) + b"\x18\x05"
        unused.append(b"\x0a" + bytes([len(inside)]) + inside)
    return (SMALL / "tokenizer.model").read_bytes() + b"".join(unused)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minipali.synthetic", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="where the model goes; must be new or empty")
    parser.add_argument(
        "--preset", default="paligemma-3b-224", choices=PRESETS, help="default paligemma-3b-224"
    )
    given = parser.parse_args()
    try:
        write_synthetic(given.folder, preset(given.preset))
    except (WeightsError, OSError) as error:
        parser.exit(2, f"minipali: error: {error}\n")
    print(f"A model with random weights is in {given.folder}.")


if __name__ == "__main__":
    main()
