"""Lesson 01: cutting a picture into patches, embedding them, and a table for another size."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.patches import patchify


def _patchify_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(1)
    # Along no axis are there in all cases as many patches as a patch has pixels.
    return [
        (torch.randn(2, 3, 4, 6, generator=random), 2),
        (torch.randn(3, 4, 12, 6, generator=random), 3),
        (torch.randn(1, 1, 4, 2, generator=random), 2),
    ]


def _sides_exchanged(pixels: Tensor, p: int) -> Tensor:
    b, c, y, x = pixels.shape
    blocks = pixels.reshape(b, c, x // p, p, y // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (y // p) * (x // p), -1)


def _as_square(pixels: Tensor, p: int) -> Tensor:
    b, c, y, _ = pixels.shape
    blocks = pixels.reshape(b, c, y // p, p, y // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (y // p) ** 2, -1)


def _three_channels(pixels: Tensor, p: int) -> Tensor:
    b, _, y, x = pixels.shape
    blocks = pixels.reshape(b, 3, y // p, p, x // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, (y // p) * (x // p), -1)


def _three_at_last(pixels: Tensor, p: int, n: int = -1) -> Tensor:
    b, c, y, x = pixels.shape
    blocks = pixels.reshape(b, c, y // p, p, x // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, n, 3 * p * p)


def _view_at_last(pixels: Tensor, p: int) -> Tensor:
    b, c, y, x = pixels.shape
    blocks = pixels.view(b, c, y // p, p, x // p, p)
    return blocks.permute(0, 2, 4, 1, 3, 5).view(b, (y // p) * (x // p), -1)


def _embed_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(2)

    def case(b: int, c: int, ny: int, nx: int, p: int, d: int) -> tuple:
        return (
            torch.randn(b, c, ny * p, nx * p, generator=random),
            torch.randn(d, c, p, p, generator=random),
            torch.randn(d, generator=random),
            torch.randn(ny * nx, d, generator=random),
        )

    return [case(2, 3, 2, 4, 3, 5), case(3, 2, 3, 2, 2, 7), case(1, 1, 2, 3, 2, 4)]


def _scan_lines(pixels: Tensor, p: int) -> Tensor:
    b, c, y, x = pixels.shape
    return pixels.reshape(b, (y // p) * (x // p), c * p * p)


def _scan_lines_channels_last(pixels: Tensor, p: int) -> Tensor:
    return pixels.permute(0, 2, 3, 1).reshape(_scan_lines(pixels, p).shape)


def _as_many_pieces(pixels: Tensor, p: int, along: tuple[str, str]) -> Tensor:
    sizes = dict.fromkeys(along, p)
    return rearrange(pixels, "b c (ny py) (nx px) -> b (ny nx) (c py px)", **sizes)


def _unfolded(pixels: Tensor, p: int) -> Tensor:
    blocks = pixels.unfold(2, p, p).unfold(3, p, p)  # (b, c, ny, nx, py, px)
    return blocks.reshape(len(pixels), blocks.shape[2] * blocks.shape[3], -1)


def _patchify(
    pixels: Tensor,
    p: int,
    *,
    y: str = "ny py",
    x: str = "nx px",
    places: str = "(ny nx)",
    values: str = "(c py px)",
    cut: Callable | None = None,
    pictures: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    turned: bool = False,
    joined: bool = False,
    without: tuple[int, int] = (0, 0),
    least: int = 0,
    last: Callable[[Tensor], Tensor] = lambda patches: patches,
) -> Tensor:
    """patchify with one thing changed; the pattern's parts, or another way to cut.

    without: so many rows and columns of patches at the end, as long as `least` are left.
    """
    pixels = pictures(pixels)
    y_end, x_end = (
        max(n - p * w, least * p) for n, w in zip(pixels.shape[2:], without, strict=True)
    )
    pixels = pixels[:, :, :y_end, :x_end]
    if cut is not None:
        return last(cut(pixels, p))
    first, second = (values, places) if turned else (places, values)
    patches = rearrange(pixels, f"b c ({y}) ({x}) -> b {first} {second}", py=p, px=p)
    return last(patches.flatten(0, 1) if joined else patches)


SCAN_LINE_SENTENCE = (
    "This looks like a scan-line flatten: a reshape takes pixels row by row across the whole"
    " picture, so a “patch” is a thin strip, not a square. Split both axes first: y into (ny py)"
    " and x into (nx px)."
)
COLUMNS_SENTENCE = (
    "The order of the patches is not that of reading: you go down the columns. Reading order"
    " goes along a row first, so write (ny nx), the slow axis first."
)
CHANNELS_LAST_SENTENCE = (
    "Inside each patch the channel varies fastest. A Conv2d weight has the order channel, row,"
    " column: write (c py px)."
)
INTERLEAVED_SENTENCE = (
    "A “patch” is no square of neighbours: you took pixels at equal distances from the whole"
    " picture. In (ny py) the patch number is the slow axis and the pixel inside it the fast one;"
    " the same holds for (nx px)."
)
CHANNELS_AS_PATCHES_SENTENCE = (
    "You made one patch for each channel. A patch holds all its channels: c belongs to the"
    " values, (c py px), not to the patches."
)
UNFOLDED_SENTENCE = (
    "Your blocks are right, but they still have the axes (b, c, ny, nx, py, px) when they are"
    " flattened: the channel must first move behind nx. permute does that."
)
THREE_SENTENCE = "Three channels are written into your code. Take their number from pixels.shape."
THREE_CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "at most": lambda pixels: pixels[:, :3],
    "repeated": lambda pixels: pixels[:, torch.arange(3) % pixels.shape[1]],
    "zeros added": lambda pixels: F.pad(pixels, (0, 0, 0, 0, 0, 2))[:, :3],
}


def _pictures_mixed(pixels: Tensor, patch_size: int) -> Tensor:
    patches = patchify(pixels, patch_size)  # (b, n, values)
    return patches.transpose(0, 1).reshape(patches.shape)


PATCHIFY = Exercise(
    name="patchify",
    reference=patchify,
    cases=_patchify_cases,
    axes="b n values",
    checked=(
        "shape, dtype and every value on 3 batches of 2, 3 and 1 pictures with sides that differ,"
        " 3, 4 and 1 channels, patches of 2 and 3 pixels; inputs unchanged"
    ),
    mistakes=(
        Mistake("scan lines", partial(_patchify, cut=_scan_lines), SCAN_LINE_SENTENCE),
        Mistake(
            "scan lines, channels last",
            partial(_patchify, cut=_scan_lines_channels_last),
            SCAN_LINE_SENTENCE,
        ),
        Mistake(
            "pictures mixed",
            _pictures_mixed,
            "Patches of different pictures stand in one row: they were joined along the batch, and"
            " a reshape does not part them again. Join them along an axis of their own:"
            " torch.stack(patches, dim=1).",
        ),
        Mistake("columns first", partial(_patchify, places="(nx ny)"), COLUMNS_SENTENCE),
        Mistake("channels last", partial(_patchify, values="(py px c)"), CHANNELS_LAST_SENTENCE),
        Mistake(
            "channel in the middle",
            partial(_patchify, values="(py c px)"),
            "Inside each patch the rows come before the channels. A Conv2d weight has the order"
            " channel, row, column: write (c py px).",
        ),
        Mistake(
            "channels last and transposed",
            partial(_patchify, values="(px py c)"),
            "Inside each patch the values are backwards: column, row, channel. Write (c py px).",
        ),
        Mistake(
            "transposed inside",
            partial(_patchify, values="(c px py)"),
            "Each patch is transposed: its columns are read before its rows. Write (c py px).",
        ),
        Mistake("interleaved", partial(_patchify, y="py ny", x="px nx"), INTERLEAVED_SENTENCE),
        Mistake("interleaved down", partial(_patchify, y="py ny"), INTERLEAVED_SENTENCE),
        Mistake("interleaved across", partial(_patchify, x="px nx"), INTERLEAVED_SENTENCE),
        Mistake("unfolded without permute", partial(_patchify, cut=_unfolded), UNFOLDED_SENTENCE),
        Mistake(
            "sides exchanged",
            partial(_patchify, cut=_sides_exchanged),
            "Height and width are exchanged: pixels are (b, c, y, x), so y // patch_size rows of"
            " patches come first, then x // patch_size columns.",
        ),
        Mistake(
            "at every pixel",
            partial(_patchify, cut=lambda pixels, p: F.unfold(pixels, p).mT),
            "Your patches overlap: a new one starts at every pixel. Here the next one starts where"
            " the last one ended, so the stride is the patch size.",
        ),
        *(
            Mistake(
                f"as many pieces, {along}",
                partial(_patchify, cut=partial(_as_many_pieces, along=along)),
                "patch_size is taken as the number of pieces along a side, as by chunk. It is the"
                " side of a patch in pixels: there are y // patch_size rows of patches. (split"
                " takes a size, chunk a number.)",
            )
            for along in (("ny", "nx"), ("ny", "px"), ("py", "nx"))
        ),
        Mistake(
            "rows only",
            partial(
                _patchify,
                cut=lambda pixels, p: rearrange(pixels, "b c (ny py) x -> b ny (c py x)", py=p),
            ),
            "You cut the rows alone: each “patch” is as wide as the picture. Cut the columns too.",
        ),
        Mistake(
            "side by side",
            partial(_patchify, last=lambda patches: patches.flatten(1)),
            "The patches of a picture stand in one long row. They need an axis of their own:"
            " torch.stack makes one, torch.cat does not.",
        ),
        Mistake(
            "mean taken off",
            partial(_patchify, last=lambda patches: patches - patches.mean(-1, keepdim=True)),
            "The mean of each patch is taken off. Cutting changes no number.",
        ),
        Mistake(
            "channels as patches",
            partial(_patchify, places="(c ny nx)", values="(py px)"),
            CHANNELS_AS_PATCHES_SENTENCE,
        ),
        Mistake(
            "channels as fast patches",
            partial(_patchify, places="(ny nx c)", values="(py px)"),
            CHANNELS_AS_PATCHES_SENTENCE,
        ),
        Mistake(
            "values before patches",
            partial(_patchify, turned=True),
            "The last two axes are the wrong way round: yours are values, patches, as F.unfold"
            " gives them. One row is to be one patch: transpose(1, 2).",
        ),
        Mistake(
            "pictures in one list",
            partial(_patchify, joined=True),
            "The patches of all pictures are in one long list. The batch stays an axis of its own,"
            " in front: (b, n, values).",
        ),
        Mistake(
            "rows of patches kept",
            partial(_patchify, places="ny nx"),
            "The grid of patches is not flattened: you have rows and columns of patches. They"
            " become one axis of n patches, in reading order.",
        ),
        Mistake(
            "values not flattened",
            partial(_patchify, values="c py px"),
            "Each patch is still a small picture with three axes. Flatten it: channel, row and"
            " column become one axis of values.",
        ),
        Mistake(
            "first picture only",
            partial(_patchify, pictures=lambda pixels: pixels[:1]),
            "Only the first picture of the batch is cut. All of them are to be: the batch is the"
            " first axis of pixels and of the result.",
        ),
        Mistake(
            "first channel only",
            partial(_patchify, pictures=lambda pixels: pixels[:, :1]),
            "Only the first channel is there. A patch holds all its channels.",
        ),
        *(
            Mistake(f"three channels, {how}", partial(_patchify, pictures=of), THREE_SENTENCE)
            for how, of in THREE_CHANNELS.items()
        ),
        Mistake(
            "scaled",
            partial(_patchify, last=lambda patches: patches / 255),
            "The pixels are divided by 255. Cutting changes no number.",
        ),
        Mistake(
            "backwards",
            partial(_patchify, last=lambda patches: patches.flip(1)),
            "The patches come from the last to the first. Reading order starts at the top left.",
        ),
        Mistake(
            "batch axis lost",
            partial(_patchify, last=lambda patches: patches.squeeze()),
            "For a batch of one picture the batch axis is gone. Keep it, with length 1: squeeze()"
            " removes every axis of length 1.",
        ),
        *(
            Mistake(
                f"last patches missing {without}, {least} kept",
                partial(_patchify, without=without, least=least),
                "The last row or the last column of patches is missing. Does your loop end one step"
                " early (range(0, y, p) goes up to the last patch by itself), or does it count one"
                " side and take it for both?",
            )
            for without, least in (((1, 1), 1), ((1, 1), 0), ((1, 0), 0), ((0, 1), 0))
        ),
        Mistake(
            "batch and patches exchanged",
            partial(_patchify, last=lambda patches: patches.transpose(0, 1)),
            "The batch and the patches are exchanged. The batch stays in front: (b, n, values).",
        ),
    ),
    crashes=(
        Mistake(
            "square pictures only",
            _as_square,
            "You take every picture to be as wide as it is high. Count the columns of patches from"
            " the width: x // patch_size.",
        ),
        Mistake(
            "three channels only",
            _three_channels,
            THREE_SENTENCE,
        ),
        Mistake("three channels at last", _three_at_last, THREE_SENTENCE),
        Mistake(
            "three channels at last, all patches",
            lambda pixels, p: _three_at_last(pixels, p, pixels[0, 0].numel() // p**2),
            THREE_SENTENCE,
        ),
        Mistake(
            "view after permute",
            _view_at_last,
            "view cannot flatten what permute has moved, because it never moves a number in memory."
            " reshape can: it copies where it must.",
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


def _by_columns(table: Tensor, grid: tuple[int, int]) -> Tensor:
    return rearrange(table, "(nx ny) d -> (ny nx) d", ny=grid[0])


def embed_patches(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor,
    *,
    cut=patchify,
    weights_of: Callable[[Tensor], Tensor] = lambda weight: weight,
    matrix: Callable[[Tensor], Tensor] = lambda weight: weight.flatten(1).T,
    times: Callable[[Tensor], float] = lambda weight: 1.0,
    biases: float = 1.0,
    positions_of: Callable = lambda positions, _: positions,
    flat: Callable[[Tensor, tuple], Tensor] = lambda vectors, _: vectors,
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    last: Callable[[Tensor], Tensor] = lambda vectors: vectors,
) -> Tensor:
    """(b, c, y, x) -> (b, n, d). The reference, a matrix product, or with one thing changed."""
    p = weight.shape[-1]
    grid = (pixels.shape[2] // p, pixels.shape[3] // p)
    vectors = (cut(pixels, p) @ matrix(weights_of(weight)) + biases * bias) * times(weight)
    return last(add(flat(vectors, grid), positions_of(positions, grid)))


def _convolved(pixels: Tensor, weight: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
    return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2) + positions


def _convolved_at_every_pixel(pixels, weight, bias, positions):
    return F.conv2d(pixels, weight, bias).flatten(2).transpose(1, 2) + positions


def _padded(pixels, weight, bias, positions):
    maps = F.conv2d(pixels, weight, bias, stride=weight.shape[-1], padding=1)
    return maps.flatten(2).transpose(1, 2) + positions


def _positions_first(pixels, weight, bias, positions):
    return (patchify(pixels, weight.shape[-1]) + positions) @ weight.flatten(1).T + bias


def _left_as_grid(pixels, weight, bias, positions):
    return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]) + positions


def _weight_not_flat(pixels, weight, bias, positions):
    return patchify(pixels, weight.shape[-1]) @ weight.T + bias + positions


def _weight_not_turned(pixels, weight, bias, positions):
    return patchify(pixels, weight.shape[-1]) @ weight.flatten(1) + bias + positions


def _without_transpose(vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    """As convolved, (b, d, n), and reshaped to (b, n, d)."""
    return vectors.mT.reshape(vectors.shape)


def _part(**changes) -> Callable:
    return partial(_patchify, **changes)


EMBED_PATCHES = Exercise(
    name="embed_patches",
    reference=embed_patches,
    cases=_embed_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 3 batches of 2, 3 and 1 pictures with sides that differ,"
        " widths 5, 7 and 4; inputs unchanged"
    ),
    mistakes=(
        Mistake("scan lines", partial(embed_patches, cut=_scan_lines), SCAN_LINE_SENTENCE),
        Mistake(
            "interleaved",
            partial(embed_patches, cut=_part(y="py ny", x="px nx")),
            INTERLEAVED_SENTENCE,
        ),
        Mistake("unfolded", partial(embed_patches, cut=_unfolded), UNFOLDED_SENTENCE),
        Mistake(
            "positions missing",
            partial(embed_patches, positions_of=lambda positions, _: 0 * positions),
            "The position vectors are missing: without them the vision tower cannot tell the"
            " places of the patches apart. Add `positions` at the end.",
        ),
        Mistake(
            "positions twice",
            partial(embed_patches, positions_of=lambda positions, _: 2 * positions),
            "The position vectors are added twice. Once is enough.",
        ),
        Mistake(
            "positions subtracted",
            partial(embed_patches, positions_of=lambda positions, _: -positions),
            "The position vectors are subtracted. They are to be added.",
        ),
        Mistake(
            "positions multiplied",
            partial(embed_patches, add=torch.mul),
            "The position vectors are multiplied with the patches' vectors. They are to be added.",
        ),
        Mistake(
            "first position for all",
            partial(embed_patches, positions_of=lambda positions, _: positions[:1]),
            "Every patch gets the first row of `positions`. Patch i gets row i.",
        ),
        Mistake(
            "positions counted through the batch",
            partial(
                embed_patches,
                add=lambda vectors, table: (
                    vectors + table.repeat_interleave(len(vectors), 0).reshape(vectors.shape)
                ),
            ),
            "The rows of `positions` are shared out over the patches of the whole batch. Each"
            " picture starts anew: in every picture patch i gets row i.",
        ),
        Mistake(
            "positions by picture",
            partial(
                embed_patches, add=lambda vectors, table: vectors + table[: len(vectors), None]
            ),
            "Every patch of picture i gets row i of `positions`. The rows belong to places, not to"
            " pictures: in every picture patch i gets row i.",
        ),
        Mistake(
            "positions in the first picture alone",
            partial(
                embed_patches,
                add=lambda vectors, table: torch.cat([vectors[:1] + table, vectors[1:]]),
            ),
            "Only the first picture gets its positions. In every picture patch i gets row i.",
        ),
        *(
            Mistake(
                f"positions shifted by {by}",
                partial(embed_patches, positions_of=lambda table, _, by=by: table.roll(by, 0)),
                "The rows of `positions` are shifted by one. Patch i gets row i: no token stands"
                " before the patches here.",
            )
            for by in (1, -1)
        ),
        Mistake(
            "positions shifted, zeros first",
            partial(
                embed_patches,
                positions_of=lambda table, _: F.pad(table, (0, 0, 1, 0))[:-1],
            ),
            "The rows of `positions` are shifted by one. Patch i gets row i: no token stands before"
            " the patches here.",
        ),
        Mistake(
            "positions backwards",
            partial(embed_patches, positions_of=lambda positions, _: positions.flip(0)),
            "The rows of `positions` are added from the last to the first. Patch i gets row i.",
        ),
        Mistake(
            "mean position for all",
            partial(embed_patches, positions_of=lambda positions, _: positions.mean(0)),
            "Every patch gets the same vector, the mean of `positions`. Patch i gets row i.",
        ),
        Mistake(
            "bias missing",
            partial(embed_patches, biases=0.0),
            "The bias is missing: an affine map is x W^T + b.",
        ),
        Mistake(
            "bias twice",
            partial(embed_patches, biases=2.0),
            "The bias is added twice, perhaps by conv2d and once more by you. Once is enough.",
        ),
        Mistake(
            "bias subtracted",
            partial(embed_patches, biases=-1.0),
            "The bias is subtracted. An affine map is x W^T + b.",
        ),
        Mistake(
            "positions by columns",
            partial(embed_patches, positions_of=_by_columns),
            "The positions are added in the order of columns, but the patches come in reading"
            " order, row by row. Patch and place must agree.",
        ),
        Mistake(
            "patches by columns",
            partial(embed_patches, cut=_part(places="(nx ny)")),
            "The patches come column by column, the positions row by row. Keep the rows slow and"
            " the columns fast: (ny nx).",
        ),
        Mistake(
            "patches and positions by columns",
            partial(
                embed_patches,
                cut=_part(places="(nx ny)"),
                positions_of=lambda positions, grid: rearrange(
                    positions, "(ny nx) d -> (nx ny) d", ny=grid[0]
                ),
            ),
            "Each patch has its own place, but the result comes column by column. Reading order"
            " goes along a row first: (ny nx).",
        ),
        Mistake(
            "rows and columns exchanged",
            partial(embed_patches, cut=_part(places="(nx ny)", values="(c px py)")),
            "Rows and columns of the pictures are exchanged: pixels are (b, c, y, x), and the"
            " weight is (d, c, rows, columns).",
        ),
        Mistake(
            "positions reshaped",
            partial(embed_patches, positions_of=lambda table, _: table.T.reshape(table.shape)),
            "The position table is turned and then reshaped, so its numbers no longer belong to"
            " one place each. It has the shape that it needs: (n, d).",
        ),
        Mistake(
            "positions of columns and rows",
            partial(embed_patches, positions_of=lambda table, _: table.mean(1, keepdim=True)),
            "Every feature of a patch gets the same number. Row i of `positions` is a vector of d"
            " numbers, one for each feature.",
        ),
        Mistake(
            "weight channels last",
            partial(embed_patches, weights_of=lambda w: w.permute(0, 2, 3, 1).reshape(w.shape)),
            "The weight's axes were moved: its values are row, column, channel, the patches' are"
            " channel, row, column. Flatten both the same way.",
        ),
        Mistake(
            "mean over the batch",
            partial(embed_patches, last=lambda vectors: vectors.mean(0, keepdim=True)),
            "You average over the batch. Each picture keeps its own vectors.",
        ),
        Mistake(
            "normed",
            partial(embed_patches, last=lambda v: F.layer_norm(v, v.shape[-1:])),
            "A norm comes after the sum. That is the next layer's work; the result here is the"
            " sum.",
        ),
        Mistake(
            "flattened without transpose",
            partial(embed_patches, flat=_without_transpose),
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
            "weight reshaped",
            partial(embed_patches, matrix=lambda w: w.reshape(-1, len(w))),
            "The weight is reshaped to (c * p * p, d). That does not turn it: the numbers of one"
            " filter no longer stand in one column. Flatten it to (d, c * p * p), then transpose.",
        ),
        Mistake(
            "channels last",
            partial(embed_patches, cut=_part(values="(py px c)")),
            "The values of a patch are in the order row, column, channel; the weight's are channel,"
            " row, column. Flatten both the same way.",
        ),
        Mistake(
            "transposed inside",
            partial(embed_patches, cut=_part(values="(c px py)")),
            "Inside each patch the columns are read before the rows, in the weight the rows before"
            " the columns. Flatten both the same way: (c py px).",
        ),
        Mistake(
            "times the root of d",
            partial(embed_patches, times=lambda weight: len(weight) ** 0.5),
            "The vectors are multiplied by the root of their width. Nothing is scaled here: a"
            " matrix product, plus the bias, plus positions.",
        ),
        Mistake(
            "divided by the number of values",
            partial(embed_patches, times=lambda weight: 1 / weight[0].numel()),
            "The products are averaged. An affine map adds them up: a matrix product, no mean.",
        ),
        Mistake(
            "divided by the root of the number of values",
            partial(embed_patches, times=lambda weight: weight[0].numel() ** -0.5),
            "The products are divided by the root of their number. Nothing is scaled here: a"
            " matrix product, plus the bias.",
        ),
        Mistake(
            "batch axis lost",
            partial(embed_patches, last=lambda vectors: vectors.squeeze(0)),
            "For a batch of one picture the batch axis is gone. Keep it, with length 1: the result"
            " is (b, n, d) for every b.",
        ),
        Mistake(
            "first picture only",
            partial(embed_patches, last=lambda vectors: vectors[:1]),
            "Only the first picture of the batch is there. The batch is the first axis of pixels"
            " and of the result.",
        ),
        Mistake(
            "features before patches",
            partial(embed_patches, last=lambda vectors: vectors.mT),
            "The last two axes are the wrong way round: yours are features, patches. Transpose"
            " them: (b, n, d).",
        ),
        Mistake(
            "bent",
            partial(embed_patches, last=F.relu),
            "Everything below 0 is cut off. The map is affine, and nothing comes behind it but the"
            " positions.",
        ),
    ),
    crashes=(
        Mistake(
            "features before patches",
            _convolved,
            "After the convolution and flatten(2) the axes are (b, d, n): features before patches."
            " Transpose the last two, then add positions.",
        ),
        Mistake(
            "stride 1",
            _convolved_at_every_pixel,
            "The filter stops at every pixel. Give conv2d the stride: one patch,"
            " stride=weight.shape[-1].",
        ),
        Mistake(
            "padded",
            _padded,
            "The pictures are padded, so that there are more stops than patches. Nothing is padded"
            " here: padding=0.",
        ),
        Mistake(
            "positions first",
            _positions_first,
            "The positions are added to the flat patches. They belong to the vectors of width d:"
            " first the affine map, then the positions.",
        ),
        Mistake(
            "grid not flattened",
            _left_as_grid,
            "After the convolution the axes are (b, d, ny, nx). Flatten the grid to n and bring the"
            " features to the end, (b, n, d), then add positions.",
        ),
        Mistake(
            "weight not flattened",
            _weight_not_flat,
            "The weight still has four axes. Flatten it to (d, c * p * p) before the product, and"
            " transpose that.",
        ),
        Mistake(
            "weight not transposed",
            _weight_not_turned,
            "The flattened weight is (d, c * p * p). For patches @ matrix it must be"
            " (c * p * p, d): transpose it.",
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


def _stretch_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(11)

    def case(d: int, old: tuple[int, int], new: tuple[int, int]) -> tuple:
        return torch.randn(old[0] * old[1], d, generator=random), old, new

    return [
        case(4, (2, 3), (4, 5)),
        case(5, (3, 2), (3, 5)),
        case(3, (5, 4), (2, 3)),
        case(2, (3, 4), (3, 4)),
        case(3, (2, 6), (3, 4)),  # as many places as before
        # The stub's first example comes last: so small a result has many explanations.
        (torch.tensor([[0.0], [4.0]]), (1, 2), (1, 4)),
    ]


def _centres(i: Tensor, old: int, new: int) -> Tensor:
    return (i + 0.5) * old / new - 0.5


def _shares(old: int, new: int, places: Callable, beyond: str, share: Callable) -> Tensor:
    """(new, old): how much of each old place a new one gets."""
    at = places(torch.arange(new, dtype=torch.float64), old, new)
    at = at.clamp(0, old - 1) if beyond == "border" else at
    at = at.clamp(max=old - 1) if beyond == "line at the start" else at
    first = at.floor()
    if beyond == "share kept":
        shares, rows = torch.zeros(new, old, dtype=torch.float64), torch.arange(new)
        low = first.clamp(0, old - 1).long()
        shares[rows, low] += 1 - share(at - first)
        shares[rows, (low + 1).clamp(max=old - 1)] += share(at - first)
        return shares
    if beyond == "line at the start":
        first = first.clamp(min=0)
    if beyond == "line":
        first = first.clamp(0, max(old - 2, 0))
    shares, rows = torch.zeros(new, old + 2, dtype=torch.float64), torch.arange(new)
    # A column before the first and one behind the last, for what goes beyond.
    for place, part in ((first, 1 - share(at - first)), (first + 1, share(at - first))):
        shares[rows, (place + 1).clamp(0, old + 1).long()] += part
    if beyond in ("border", "round the start", "line at the start"):
        shares[:, old] += shares[:, old + 1]
    if beyond == "round":
        shares[:, 1] += shares[:, old + 1]
    if beyond in ("round", "round the start"):
        shares[:, old] += shares[:, 0]
    return shares[:, 1 : old + 1]


def stretch_positions(
    positions: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    into: Callable[[Tensor, tuple], Tensor] = lambda table, old: table.T.reshape(1, -1, *old),
    places: Callable = _centres,
    beyond: str = "border",
    share: Callable[[Tensor], Tensor] = lambda fraction: fraction,
    by: Callable | None = None,
    size: Callable[[tuple], tuple] = lambda new: new,
    axes: tuple[bool, bool] = (True, True),
    ratio: int | None = None,
    out: Callable[[Tensor], Tensor] = lambda grid: grid.flatten(2)[0].T,
) -> Tensor:
    """(n, d) -> (rows * columns, d). The reference, or with one thing changed.

    ratio: the axis whose old / new serves both.
    """
    grid = into(positions, old)  # (1, d, rows, columns)
    if by is not None:
        return out(by(grid, size(tuple(new))))
    lengths = list(zip(grid.shape[-2:], size(tuple(new)), strict=True))
    if ratio is not None:
        own, (before, after) = places, lengths[ratio]
        places = lambda i, *_: own(i, before, after)  # noqa: E731
    down, across = (
        _shares(*both, places, beyond, share if on else torch.round).to(grid.dtype)
        for both, on in zip(lengths, axes, strict=True)
    )
    return out(down @ grid @ across.T)


def _first_rows(positions: Tensor, n: int) -> Tensor:
    return F.pad(positions, (0, 0, 0, n))[:n]


def _square_root(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    side = int(len(positions) ** 0.5)
    grid = positions.T.reshape(1, -1, side, side)
    return F.interpolate(grid, size=new, mode="bilinear").flatten(2)[0].T


def _square_cut_off(positions: Tensor, old: tuple[int, int]) -> Tensor:
    side = int(len(positions) ** 0.5)
    return positions[: side * side].T.reshape(1, -1, side, side)


def _no_batch_axis(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    return F.interpolate(positions.T.reshape(-1, *old), size=new, mode="bilinear").flatten(1).T


def _in_one_line(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    return F.interpolate(positions.T[None], size=new[0] * new[1], mode="linear")[0].T


def _areas_if_smaller(grid: Tensor, new: tuple[int, int]) -> Tensor:
    smaller = all(after <= before for before, after in zip(grid.shape[-2:], new, strict=True))
    return F.interpolate(grid, size=new, mode="area" if smaller else "bilinear")


def _corners(i: Tensor, old: int, new: int) -> Tensor:
    return i * (old - 1) / max(new - 1, 1)


SQUARE_SENTENCE = (
    "You take the old grid to be square. It need not be: `old` says how many rows and columns it"
    " has."
)
CORNERS_SENTENCE = (
    "The first and last centres of both grids lie on each other (align_corners=True). Here the"
    " outer edges meet, so a new place lies at (i + 0.5) * old / new - 0.5: align_corners=False."
)
BICUBIC_SENTENCE = (
    "This is bicubic: four neighbours along each axis. Bilinear is asked for, which takes two."
)
NEAREST_SENTENCE = (
    "Each new place gets a copy of one old row. Between two old centres a new place gets a share of"
    ' both, by its distance: mode="bilinear".'
)

STRETCH_POSITIONS = Exercise(
    name="stretch_positions",
    transfer=True,
    reference=stretch_positions,
    cases=_stretch_cases,
    axes="n d",
    checked=(
        "shape, dtype and every value for 6 tables: one larger along both axes, one along one axis,"
        " one smaller, one as it was, another grid of as many places, the first example; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake(
            "nearest",
            partial(stretch_positions, by=partial(F.interpolate, mode="nearest")),
            NEAREST_SENTENCE,
        ),
        Mistake(
            "nearest, exact",
            partial(stretch_positions, by=partial(F.interpolate, mode="nearest-exact")),
            NEAREST_SENTENCE,
        ),
        Mistake(
            "corners on corners",
            partial(stretch_positions, places=_corners),
            CORNERS_SENTENCE,
        ),
        Mistake(
            "halves forgotten",
            partial(stretch_positions, places=lambda i, old, new: i * old / new),
            "New place i is taken to lie at i * old / new. That is where its edge lies. Its centre"
            " is half a place further, and so are the old centres: (i + 0.5) * old / new - 0.5.",
        ),
        Mistake(
            "first half only",
            partial(stretch_positions, places=lambda i, old, new: (i + 0.5) * old / new),
            "Half a place is added and not taken off again: (i + 0.5) * old / new - 0.5. The old"
            " numbering counts centres too.",
        ),
        Mistake(
            "second half only",
            partial(stretch_positions, places=lambda i, old, new: i * old / new - 0.5),
            "The first half is missing: a new place's centre is at i + 0.5, so it lies at"
            " (i + 0.5) * old / new - 0.5.",
        ),
        Mistake(
            "old and new exchanged",
            partial(stretch_positions, places=lambda i, old, new: (i + 0.5) * new / old - 0.5),
            "The ratio is upside down: a new place lies at (i + 0.5) * old / new - 0.5 in the old"
            " numbering.",
        ),
        Mistake(
            "extrapolated",
            partial(stretch_positions, beyond="line"),
            "Beyond the first and the last old centre your line goes on rising or falling. There"
            " the border's numbers hold: clamp the place between 0 and old - 1.",
        ),
        Mistake(
            "extrapolated at the start",
            partial(stretch_positions, beyond="line at the start"),
            "Before the first old centre your line goes on: the index is clamped, the share is not,"
            " and falls below 0. Clamp the place itself between 0 and old - 1, then take index and"
            " share from it.",
        ),
        Mistake(
            "zeros beyond",
            partial(stretch_positions, beyond="zeros"),
            "Beyond the first and the last old centre you mix with zeros. There the border's"
            " numbers hold.",
        ),
        *(
            Mistake(
                f"index goes {beyond}",
                partial(stretch_positions, beyond=beyond),
                "Before the first old centre you mix with the last row: index -1 is Python's last"
                " one, and % goes round. There the border's numbers hold: clamp between 0 and"
                " old - 1.",
            )
            for beyond in ("round", "round the start")
        ),
        Mistake(
            "shares exchanged",
            partial(stretch_positions, share=lambda fraction: 1 - fraction),
            "The two shares are exchanged: the nearer old centre gets the smaller one. At 0.25 row"
            " 0 gets 0.75 and row 1 gets 0.25.",
        ),
        Mistake(
            "halves always",
            partial(stretch_positions, share=lambda fraction: 0 * fraction + 0.5),
            "Each new place gets half of both neighbours, wherever it lies. The shares go by"
            " distance: at 0.25 row 0 gets 0.75 and row 1 gets 0.25.",
        ),
        Mistake("rounded", partial(stretch_positions, share=torch.round), NEAREST_SENTENCE),
        Mistake("rounded down", partial(stretch_positions, share=torch.floor), NEAREST_SENTENCE),
        Mistake(
            "filled with zeros",
            lambda positions, old, new: _first_rows(positions, new[0] * new[1]),
            "The old rows stand at the start, and the rest are zeros (or are cut off). Nothing is"
            " stretched yet: every new row is mixed from old ones.",
        ),
        Mistake(
            "filled with the last row",
            lambda positions, old, new: positions[
                torch.arange(new[0] * new[1]).clamp(max=len(positions) - 1)
            ],
            "The old rows stand at the start, and the last one is repeated (or the rest are cut"
            " off). Nothing is stretched yet: every new row is mixed from old ones.",
        ),
        Mistake(
            "rows taken in turn",
            lambda positions, old, new: positions[torch.arange(new[0] * new[1]) % len(positions)],
            "The old rows come again and again in their order. Nothing is stretched yet: every new"
            " row is mixed from old ones.",
        ),
        Mistake(
            "share kept",
            partial(stretch_positions, beyond="share kept"),
            "Before the first old centre you clamp the row, but not the place: its share is still"
            " that of a place before the first, and mixes in the second row. Clamp the place first,"
            " between 0 and old - 1; then take its floor and its share.",
        ),
        Mistake(
            "areas where it becomes smaller",
            partial(stretch_positions, by=_areas_if_smaller),
            "You average over areas where the table becomes smaller. Bilinear takes the two nearest"
            " old places along each axis, for larger and smaller tables alike.",
        ),
        Mistake(
            "bicubic",
            partial(stretch_positions, by=partial(F.interpolate, mode="bicubic")),
            BICUBIC_SENTENCE,
        ),
        Mistake(
            "bicubic, corners on corners",
            partial(
                stretch_positions, by=partial(F.interpolate, mode="bicubic", align_corners=True)
            ),
            f"Two things at once. {BICUBIC_SENTENCE} And: {CORNERS_SENTENCE}",
        ),
        Mistake(
            "bicubic, antialiased",
            partial(stretch_positions, by=partial(F.interpolate, mode="bicubic", antialias=True)),
            "This is bicubic with antialias=True: many neighbours along each axis. Bilinear takes"
            " the two nearest, for larger and smaller tables alike.",
        ),
        Mistake(
            "antialiased",
            partial(stretch_positions, by=partial(F.interpolate, mode="bilinear", antialias=True)),
            "For a smaller table you average over more than the two nearest places along an axis"
            " (antialias=True). The rule is the same for larger and smaller tables.",
        ),
        Mistake(
            "area",
            partial(stretch_positions, by=partial(F.interpolate, mode="area")),
            'Each new place gets the mean of an area of old ones (mode="area"). Bilinear is asked'
            " for: shares of the two nearest centres along each axis.",
        ),
        Mistake(
            "tiled",
            partial(
                stretch_positions,
                by=lambda grid, new: grid.tile(5, 5)[..., : new[0], : new[1]],
            ),
            "The old table is repeated beside itself, or cut off. Stretch it, so that its edges"
            " come to lie on the new edges.",
        ),
        Mistake(
            "reshaped, not turned",
            partial(stretch_positions, into=lambda table, old: table.reshape(1, -1, *old)),
            "The table is reshaped to (1, d, rows, columns) without a transpose, so the numbers of"
            " one place are spread over several. positions.T first: (d, n), then the grid.",
        ),
        Mistake(
            "grid by columns",
            partial(
                stretch_positions,
                into=lambda table, old: table.T.reshape(1, -1, old[1], old[0]).mT,
            ),
            "The old table is read column by column. It is in reading order: rows are slow, columns"
            " fast.",
        ),
        Mistake(
            "rows and columns of old exchanged",
            partial(
                stretch_positions,
                into=lambda table, old: table.T.reshape(1, -1, old[1], old[0]),
            ),
            "Rows and columns of the old grid are exchanged: `old` is (rows, columns), and rows"
            " come first in the grid too.",
        ),
        Mistake(
            "rows and columns of both exchanged",
            partial(
                stretch_positions,
                into=lambda table, old: table.T.reshape(1, -1, old[1], old[0]),
                size=lambda new: new[::-1],
            ),
            "Rows and columns are exchanged in both grids. `old` and `new` are (rows, columns), and"
            " in reading order the columns are fast.",
        ),
        Mistake(
            "back if as many",
            lambda positions, old, new: (
                positions
                if len(positions) == new[0] * new[1]
                else stretch_positions(positions, old, new)
            ),
            "If there are as many new places as old ones, the table comes back as it was. The grid"
            " can be another one all the same: 2 x 6 and 3 x 4 places.",
        ),
        Mistake(
            "square grid, cut off",
            partial(stretch_positions, into=_square_cut_off),
            SQUARE_SENTENCE,
        ),
        *(
            Mistake(
                f"ratio of the {which}",
                partial(stretch_positions, ratio=axis),
                f"old / new of the {which} serves both axes. Each axis has its own: the rows'"
                " old[0] / new[0], the columns' old[1] / new[1].",
            )
            for axis, which in enumerate(("rows", "columns"))
        ),
        Mistake(
            "result by columns",
            partial(stretch_positions, out=lambda grid: grid.mT.flatten(2)[0].T),
            "The new table comes column by column. Reading order goes along a row first.",
        ),
        Mistake(
            "result reshaped, not turned",
            partial(stretch_positions, out=lambda grid: grid.reshape(-1, grid.shape[1])),
            "The result is reshaped from (d, rows, columns) to (n, d) without a transpose, so the"
            " numbers of one place are spread over several. flatten(2), then .T.",
        ),
        Mistake(
            "rows and columns of new exchanged",
            partial(stretch_positions, size=lambda new: new[::-1]),
            "Rows and columns of the new grid are exchanged: `new` is (rows, columns).",
        ),
        Mistake(
            "in one line",
            _in_one_line,
            "The table is stretched along n, as if all places lay in one line. The end of one row"
            " of places is then mixed with the start of the next. Make it a grid of rows and"
            " columns first.",
        ),
        Mistake(
            "only across",
            partial(stretch_positions, axes=(False, True)),
            "Only the columns are mixed; along the rows each place gets a copy. Do the same along"
            " both axes.",
        ),
        Mistake(
            "only down",
            partial(stretch_positions, axes=(True, False)),
            "Only the rows are mixed; along the columns each place gets a copy. Do the same along"
            " both axes.",
        ),
        Mistake(
            "patches before features",
            partial(stretch_positions, out=lambda grid: grid.flatten(2)[0]),
            "The result is (d, n): one row for each feature. One row is to be one place:"
            " transpose it.",
        ),
        Mistake(
            "grid left standing",
            partial(stretch_positions, out=lambda grid: grid[0].permute(1, 2, 0)),
            "The result is still a grid. Rows and columns become one axis of n places, in reading"
            " order.",
        ),
        Mistake(
            "batch axis left",
            partial(stretch_positions, out=lambda grid: grid.flatten(2).mT),
            "There is an axis too many in front: the batch of one that F.interpolate wanted. Take"
            " it off again.",
        ),
    ),
    crashes=(
        Mistake(
            "square grid",
            _square_root,
            SQUARE_SENTENCE,
        ),
        Mistake(
            "no batch axis",
            _no_batch_axis,
            "F.interpolate wants four axes, (batch, channels, rows, columns). Put an axis of length"
            " 1 in front of your grid, and take it off at the end.",
        ),
    ),
    hints=(
        "The table (n, d) is a picture of old[0] x old[1] pixels with d channels. Three steps: make"
        " a picture of it, stretch that, make a table of the result.",
        "F.interpolate wants (batch, channels, rows, columns): transpose the table to (d, n), split"
        " n into rows and columns, and put a 1 in front.",
        'F.interpolate(grid, size=new, mode="bilinear", align_corners=False) puts the centres where'
        " the formula says. Then flatten(2), take off the 1, and transpose.",
    ),
)

EXERCISES = (PATCHIFY, EMBED_PATCHES, STRETCH_POSITIONS)
