"""Lesson 01: cutting a picture into patches, and embedding them."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.patches import patchify


def _patchify_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 3, 4, 6, generator=random), 2),
        (torch.randn(3, 2, 9, 6, generator=random), 3),
    ]


def _embed_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(2)

    def case(b: int, c: int, ny: int, nx: int, p: int, d: int) -> tuple:
        return (
            torch.randn(b, c, ny * p, nx * p, generator=random),
            torch.randn(d, c, p, p, generator=random),
            torch.randn(d, generator=random),
            torch.randn(ny * nx, d, generator=random),
        )

    return [case(2, 3, 2, 4, 3, 5), case(3, 2, 3, 2, 2, 7)]


def _scan_lines(pixels: Tensor, p: int) -> Tensor:
    b, c, y, x = pixels.shape
    return pixels.reshape(b, (y // p) * (x // p), c * p * p)


def _scan_lines_channels_last(pixels: Tensor, p: int) -> Tensor:
    b, c, y, x = pixels.shape
    return pixels.permute(0, 2, 3, 1).reshape(b, (y // p) * (x // p), c * p * p)


def _cut(pattern: str):
    def cut(pixels: Tensor, p: int) -> Tensor:
        return rearrange(pixels, f"b c (ny py) (nx px) -> {pattern}", py=p, px=p)

    return cut


def _interleaved(pixels: Tensor, p: int) -> Tensor:
    return rearrange(pixels, "b c (py ny) (px nx) -> b (ny nx) (c py px)", py=p, px=p)


def _unfolded(pixels: Tensor, p: int) -> Tensor:
    blocks = pixels.unfold(2, p, p).unfold(3, p, p)  # (b, c, ny, nx, py, px)
    return blocks.reshape(len(pixels), blocks.shape[2] * blocks.shape[3], -1)


def _channels_as_patches(pixels: Tensor, p: int) -> Tensor:
    return rearrange(pixels, "b c (ny py) (nx px) -> b (c ny nx) (py px)", py=p, px=p)


SCAN_LINE_SENTENCE = (
    "This looks like a scan-line flatten: a reshape takes pixels row by row across the whole"
    " picture, so a “patch” is a thin strip, not a square. Split both axes first: y into (ny py)"
    " and x into (nx px)."
)

PATCHIFY = Exercise(
    name="patchify",
    reference=patchify,
    cases=_patchify_cases,
    axes="b n values",
    checked=(
        "shape, dtype and every value on 2 batches with sides that differ, 2 and 3 channels, and"
        " patches of 2 and 3 pixels; inputs unchanged"
    ),
    mistakes=(
        Mistake("scan lines", _scan_lines, SCAN_LINE_SENTENCE),
        Mistake("scan lines, channels last", _scan_lines_channels_last, SCAN_LINE_SENTENCE),
        Mistake(
            "columns first",
            _cut("b (nx ny) (c py px)"),
            "The patches are right but their order is not: you go down the columns. Reading order"
            " goes along a row first, so write (ny nx), the slow axis first.",
        ),
        Mistake(
            "channels last",
            _cut("b (ny nx) (py px c)"),
            "The patches are right, but inside each one the channel varies fastest. A Conv2d weight"
            " has the order channel, row, column: write (c py px).",
        ),
        Mistake(
            "transposed inside",
            _cut("b (ny nx) (c px py)"),
            "Each patch is transposed: its columns are read before its rows. Write (c py px).",
        ),
        Mistake(
            "interleaved",
            _interleaved,
            "Each “patch” is a coarse copy of the whole picture: you took every ny-th pixel. In"
            " (ny py) the patch number is the slow axis and the pixel inside it the fast one.",
        ),
        Mistake(
            "unfolded without permute",
            _unfolded,
            "Your blocks are right, but they still have the axes (b, c, ny, nx, py, px) when they"
            " are flattened: the channel must first move behind nx. permute does that.",
        ),
        Mistake(
            "channels as patches",
            _channels_as_patches,
            "You made one patch for each channel. A patch holds all its channels: c belongs to the"
            " values, (c py px), not to the patches.",
        ),
    ),
    hints=(
        "A picture of 4 x 6 pixels in patches of 2 x 2 has 2 rows and 3 columns of patches. How"
        " many values has one patch of a colour picture?",
        "Every axis of pixels splits in two: y is (ny py), which patch and which pixel in it; x is"
        " (nx px).",
        "reshape to (b, c, ny, p, nx, p), permute to (b, ny, nx, c, p, p), then reshape again: the"
        " first three axes say which patch, the others which value in it.",
    ),
)


def embed_patches(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    *,
    cut=patchify,
    scale_bias: float = 1.0,
    positions_of=None,
    weights_of=None,
) -> Tensor:
    """(b, c, y, x) -> (b, n, d). The reference, a matrix product, or with one thing changed."""
    p = weight.shape[-1]
    grid = (pixels.shape[2] // p, pixels.shape[3] // p)
    if weights_of is not None:
        weight = weights_of(weight)
    if positions_of is not None:
        positions = positions_of(positions, grid)
    return cut(pixels, p) @ weight.flatten(1).T + scale_bias * bias + positions


def _flattened_without_transpose(pixels, weight, bias, positions):
    maps = F.conv2d(pixels, weight, bias, stride=weight.shape[-1])
    return maps.flatten(2).reshape(len(pixels), -1, len(weight)) + positions


EMBED_PATCHES = Exercise(
    name="embed_patches",
    reference=embed_patches,
    cases=_embed_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches with sides that differ, widths 5 and 7; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake("scan lines", partial(embed_patches, cut=_scan_lines), SCAN_LINE_SENTENCE),
        Mistake(
            "positions missing",
            partial(embed_patches, positions_of=lambda positions, _: 0 * positions),
            "The position vectors are missing: without them the vision tower cannot tell the"
            " places of the patches apart. Add `positions` at the end.",
        ),
        Mistake(
            "bias missing",
            partial(embed_patches, scale_bias=0.0),
            "The bias is missing: an affine map is x W^T + b.",
        ),
        Mistake(
            "positions by columns",
            partial(
                embed_patches,
                positions_of=lambda positions, grid: rearrange(
                    positions, "(nx ny) d -> (ny nx) d", ny=grid[0]
                ),
            ),
            "The positions are added in the order of columns, but the patches come in reading"
            " order, row by row. Patch and place must agree.",
        ),
        Mistake(
            "patches by columns",
            partial(embed_patches, cut=_cut("b (nx ny) (c py px)")),
            "The patches come column by column, the positions row by row. Keep the rows slow and"
            " the columns fast: (ny nx).",
        ),
        Mistake(
            "flattened without transpose",
            _flattened_without_transpose,
            "The shape is right but features and patches are mixed up: a reshape does not move an"
            " axis. After flatten(2) the shape is (b, d, n); transpose it to (b, n, d).",
        ),
        Mistake(
            "kernel flipped",
            partial(embed_patches, weights_of=lambda weight: weight.flip(-1, -2)),
            "The kernel is flipped. What deep learning calls convolution does not flip it: value"
            " (py, px) of a patch meets weight (py, px).",
        ),
        Mistake(
            "channels last",
            partial(embed_patches, cut=_cut("b (ny nx) (py px c)")),
            "The values of a patch are in the order row, column, channel; the weight's are channel,"
            " row, column. Flatten both the same way.",
        ),
    ),
    hints=(
        "Three steps: cut the picture into flat patches, send each through the same affine map, add"
        " to each the vector of its place.",
        "weight has shape (d, c, py, px). Flattened to (d, c*py*px) it is the W of x W^T + b.",
        "With torch: F.conv2d(pixels, weight, bias, stride=patch size) gives (b, d, ny, nx). Then"
        " flatten(2), transpose(1, 2), and add positions.",
    ),
)

EXERCISES = (PATCHIFY, EMBED_PATCHES)
