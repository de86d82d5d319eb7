"""Lesson 16. Masks as tokens: 16 codes of a VQ-VAE stand for the outline of an object in its box.

The published model answers `segment NAME` with `<loc>` x 4, `<seg>` x 16 and the name. Its codec is
the one of Ning et al. 2023 (All in Tokens, arXiv 2301.02229); big_vision publishes the weights as
`vae-oid.npz`.
"""

import os
import re
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from minipali.locations import Box, draw_boxes, read_boxes
from minipali.tokens import SEGMENTS

GRID = 4  # the codes of a mask lie on a grid of 4 x 4
CODES = GRID * GRID

_SEGMENT = re.compile(rf"((?:<loc[0-9]{{4}}>){{4}})\s*((?:<seg[0-9]{{3}}>){{{CODES}}})\s*([^;<]*)")


class ResidualBlock(nn.Module):
    """(b, c, y, x) -> (b, c, y, x): two 3 x 3 convolutions and a 1 x 1, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class MaskCodec(nn.Module):
    """Masks to 16 codes and back. Its parameters are named as in `vae-oid.npz`, except `codebook`.

    channels: of the encoder's convolutions, each of which halves the picture; the decoder has them
    in reverse. The default is the published codec: 64 x 64 pixels, 4 halvings, 4 x 4 codes.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64, 128),
        width: int = 512,
        entries: int = SEGMENTS,
    ):
        super().__init__()
        self.side = GRID * 2 ** len(channels)
        last = channels[-1]
        down, up = [], []
        for before, after in zip((1, *channels), channels, strict=False):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        for before, after in zip((last, *channels[::-1]), channels[::-1], strict=False):
            up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        blocks = [ResidualBlock(last) for _ in range(4)]
        self.encoder = nn.Sequential(*down, *blocks[:2], nn.Conv2d(last, width, 1))
        self.codebook = nn.Parameter(torch.randn(entries, width))
        self.decoder = nn.Sequential(
            nn.Conv2d(width, last, 1), nn.ReLU(), *blocks[2:], *up, nn.Conv2d(channels[0], 1, 1)
        )

    def nearest(self, x: Tensor) -> Tensor:
        """Vectors (b, d, y, x) -> the number of the nearest entry for each: (b, y * x)."""
        rows = rearrange(x, "b d y x -> b (y x) d")
        return torch.cdist(rows, self.codebook.expand(len(rows), -1, -1)).argmin(dim=-1)

    def encode(self, masks: Tensor) -> Tensor:
        """Masks (b, side, side) from 0 to 1 -> codes (b, 16)."""
        return self.nearest(self.encoder(masks[:, None] * 2 - 1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (b, 16), row by row -> (b, side, side), above 0 inside the object.

        With the published weights about 1 inside and -1 outside.
        """
        x = rearrange(self.codebook[codes], "b (y x) d -> b d y x", y=GRID)
        return self.decoder(x)[:, 0]


# --- the published weights -----------------------------------------------------------------------


class MasksError(ValueError):
    """A file that does not hold the weights of the published codec."""


CODEBOOK = "_vq_vae._embedding"
# The codebook was learned as a moving average; the file may keep its counts and its sums.
STATISTICS = {"_vq_vae._ema_cluster_size", "_vq_vae._ema_w"}
LARGEST = 100_000_000  # bytes of all arrays; the published ones take about 7 million


def load_codec(file: str | Path) -> MaskCodec:
    """The published codec from `vae-oid.npz`, ready for use.

    The file is a PyTorch checkpoint as numpy arrays: (out, in, y, x) for convolutions, (in, out, y,
    x) for transposed ones, so nothing is transposed or flipped here (big_vision, in JAX, has to).
    Nothing in it is executed: arrays of Python objects, which need pickle, are refused. Raises
    MasksError, and says what is wrong, for anything but exactly the published names and shapes.
    """
    with torch.device("meta"):
        codec = MaskCodec()
    wanted = {published_name(name): tuple(one.shape) for name, one in codec.state_dict().items()}
    arrays = _read_arrays(Path(file), set(wanted))
    wrong = [
        f"{name} must be float of shape {shape},"
        f" found {str(arrays[name].dtype)[:40]} {arrays[name].shape}"
        for name, shape in wanted.items()
        if arrays[name].shape != shape or arrays[name].dtype.kind != "f"
    ]
    if wrong:
        raise MasksError(f"{file}: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    weights = {
        name: torch.from_numpy(arrays[published_name(name)].astype(np.float32))
        for name in codec.state_dict()
    }
    codec.load_state_dict(weights, assign=True)
    return codec.requires_grad_(False).eval()


def published_name(name: str) -> str:
    """What the file calls one of our parameters."""
    return CODEBOOK if name == "codebook" else name


def _read_arrays(file: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """The wanted arrays of an npz file, every key of which is accounted for."""
    again = "download it again"
    if not os.path.isfile(file):  # to open a pipe could wait for ever
        raise MasksError(f"no file {file}: get vae-oid.npz from big_vision's PaliGemma release")
    try:
        with open(file, "rb") as stream:
            opened = np.load(stream, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise MasksError(f"{file} must be an npz archive, found a single array: {again}")
            found = set(opened.files)
            if missing := sorted(wanted - found):
                raise MasksError(
                    f"{file} must have {len(wanted)} arrays of the published codec; missing"
                    f" {len(missing)}: {_some(missing)}"
                )
            if extra := sorted(found - wanted - STATISTICS):
                raise MasksError(f"{file} has {len(extra)} unknown arrays: {_some(extra)}")
            size = sum(entry.file_size for entry in opened.zip.infolist())
            if size > LARGEST:
                raise MasksError(f"{file} must hold at most {LARGEST:,} bytes, found {size:,}")
            arrays = {name: opened[name] for name in wanted}
            if damaged := sorted(n for n, a in arrays.items() if not isinstance(a, np.ndarray)):
                raise MasksError(f"{file}: {_some(damaged)} must be arrays, found bytes: {again}")
            return arrays
    except MasksError:
        raise
    # Pickled, cut-off and damaged files make numpy and zipfile raise many things.
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise MasksError(f"{file} must be a whole npz file without pickle: {text}") from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


# --- from an answer to masks in a picture --------------------------------------------------------


def place_mask(mask: Tensor, box: Box, height: int, width: int) -> np.ndarray:
    """A decoded mask (side, side), put into its box: bool (height, width), True inside the object.

    box: (y0, x0, y1, x1) in pixels of the picture. The numbers are resized, and only then compared
    with 0: a mask that is thresholded first has steps as large as its pixels.
    """
    picture = np.zeros((height, width), bool)
    edges = zip(box, (height, width) * 2, strict=True)
    # The published training data cut out at rounded edges, so this puts back at rounded edges.
    y0, x0, y1, x1 = (min(max(round(edge), 0), most) for edge, most in edges)
    if y1 > y0 and x1 > x0:
        values = Image.fromarray(mask.detach().float().cpu().numpy())
        resized = values.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        picture[y0:y1, x0:x1] = np.asarray(resized) > 0
    return picture


def read_masks(
    answer: str, codec: MaskCodec, height: int, width: int
) -> list[tuple[str, Box, np.ndarray]]:
    """All complete objects of an answer: [(name, box in pixels, mask bool (height, width))].

    An object is 4 `<loc>`, 16 `<seg>` and a name. What is incomplete, has numbers that do not exist
    or a box without an inside is passed over: a model may say anything.
    """
    found = []
    for places, segments, name in _SEGMENT.findall(answer):
        codes = [int(number) for number in re.findall(r"[0-9]{3}", segments)]
        boxes = read_boxes(places)
        if not boxes or max(codes) >= len(codec.codebook):
            continue
        [(_, fractions)] = boxes
        size = (height, width) * 2
        box = tuple(place * side for place, side in zip(fractions, size, strict=True))
        if box[0] < box[2] and box[1] < box[3]:
            with torch.inference_mode():
                [mask] = codec.decode(torch.tensor([codes], device=codec.codebook.device))
            found.append((name.strip(), box, place_mask(mask, box, height, width)))
    return found


# Bright colours that differ in lightness too; the first comes again after the last.
COLOURS = ((230, 60, 60), (60, 120, 240), (250, 200, 40), (40, 170, 90), (180, 80, 220))


def draw_masks(picture: Image.Image, found: list[tuple[str, Box, np.ndarray]]) -> Image.Image:
    """A copy of the picture with what `read_masks` found: each mask half covered, box and name."""
    pixels = np.array(picture.convert("RGB"))  # (y, x, c)
    for i, (_, _, mask) in enumerate(found):
        pixels[mask] = (pixels[mask].astype(int) + COLOURS[i % len(COLOURS)]) // 2
    return draw_boxes(Image.fromarray(pixels), [(name, box) for name, box, _ in found])
