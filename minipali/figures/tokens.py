"""Figures of lesson 06: pieces of text, rows of tokens, and pictures made small."""

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, as_picture, show
from minipali.tokens import Processor

# Light fills behind dark text; a kind is also told by what is written in its box.
FILLS = {"image": "#CDE6F5", "special": "#F8E3B5", "text": "white", "padding": "#DDDDDD"}


def _written(piece: str) -> str:
    return piece.replace("\n", "\\n")


def _box(axis: Axes, x: float, y: float, width: float, text: str, kind: str = "text") -> None:
    hatch = {"hatch": "////"} if kind == "padding" else {}
    axis.add_patch(
        Rectangle((x, y), width, 1, facecolor=FILLS[kind], edgecolor=GREY, lw=0.8, **hatch)
    )
    axis.text(
        x + width / 2, y + 0.48, text, ha="center", va="center", fontsize=9, color=DARK,
        family="monospace",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if hatch else None,
    )  # fmt: skip


def _canvas(width: float, height: float, inches: float = 10.0) -> tuple:
    """Axes in which one unit is as wide as a letter of the boxes is, and rows are 1 high."""
    figure, axis = plt.subplots(figsize=(inches, 0.27 * height * inches / 10))
    axis.set(xlim=(-0.2, width + 0.2), ylim=(height, -0.2))
    axis.axis("off")
    return figure, axis


def pieces(cuts: dict[str, list[str]]) -> None:
    """The same sentence in pieces, a row for each way of cutting it."""
    width = max(sum(len(_written(piece)) + 0.8 for piece in cut) for cut in cuts.values())
    figure, axis = _canvas(max(width, 75), 2.4 * len(cuts))
    told = []
    for row, (name, cut) in enumerate(cuts.items()):
        title = f"{name}: {len(cut)} tokens"
        axis.text(0, 2.4 * row + 0.6, title, va="center", fontsize=10, color=DARK)
        x = 0.0
        for piece in cut:
            wide = len(_written(piece)) + 0.8
            _box(axis, x, 2.4 * row + 1.1, wide, _written(piece))
            x += wide
        told.append(f"{title}, {' | '.join(map(_written, cut))}")
    show(
        figure,
        f"One sentence cut into pieces by vocabularies of different size. {'; '.join(told)}.",
    )


def row(ids: list[int], pixels: Tensor, processor: Processor) -> None:
    """One row of input_ids as boxes; image tokens show the patch that they stand for."""
    config = processor.config
    number, p = config.vision.num_patches, config.vision.patch_size
    patches = rearrange(as_picture(pixels), "(ny p) (nx q) c -> (ny nx) p q c", p=p, q=p)
    image = [i for i, one in enumerate(ids) if one == config.image_token_id]
    middle_row = image[number // 3 + 1 : number // 3 + 5]
    shown = image[:2] + middle_row + image[-1:]
    words = [i for i in range(len(ids)) if i not in image]
    tokens = {i: _written(processor.token(ids[i])) for i in words}
    wide = {i: max(len(tokens[i]), 4) + 1 for i in words}
    figure, axis = _canvas(38 + sum(wide.values()), 4.6)
    x = 0.0
    for i in sorted(shown + words):
        if i in image:
            axis.imshow(
                patches[image.index(i)], extent=(x, x + 4, 2.6, 1.1), aspect="auto", zorder=2
            )
            width, text = 4.4, str(ids[i])
        else:
            width, text = wide[i], str(ids[i])
            special = ids[i] in (config.bos_token_id, config.eos_token_id) or tokens[i] == "\\n"
            _box(axis, x, 1.4, width, tokens[i], "special" if special else "text")
        middle = x + (2 if i in image else width / 2)
        axis.text(middle, 3.2, text, ha="center", va="center", fontsize=8, color=DARK)
        if i in shown or i == words[-1]:
            axis.text(middle, 0.5, str(i), ha="center", va="center", fontsize=8, color=BLUE)
        x += width
        if i in (image[1], middle_row[-1]):
            axis.text(x + 1.2, 1.9, "...", ha="center", va="center", fontsize=12, color=DARK)
            x += 3
    axis.text(-1, 0.5, "place", ha="right", va="center", fontsize=9, color=BLUE)
    axis.text(-1, 3.2, "id", ha="right", va="center", fontsize=9, color=DARK)
    axis.set(xlim=(-6, x + 0.3), ylim=(4, 0))
    listed = ", ".join(f"{tokens[i]} ({ids[i]})" for i in words)
    show(
        figure,
        f"""A row of {len(ids)} tokens. Places {image[0]} to {image[-1]} hold the image token,
        {number} times the id {config.image_token_id}, each drawn as the patch of the picture that
        it stands for. After them: {listed}.""",
    )


def padded(batches: dict[str, tuple[Tensor, Tensor]], processor: Processor) -> None:
    """Padded rows and their masks; the image tokens of a row are drawn as one box.

    batches: title -> ids (b, t) and mask (b, t).
    """
    config = processor.config
    ids, mask = next(iter(batches.values()))
    rows, step = len(ids), 2.3
    block = step * rows + 1.8
    longest = 16 + 7.5 * (ids.shape[1] - config.vision.num_patches)
    figure, axis = _canvas(longest, block * len(batches))
    told = []
    for number, (title, (ids, mask)) in enumerate(batches.items()):
        axis.text(0, number * block + 0.6, title, va="center", fontsize=11, color=DARK)
        lines = []
        for r, (row_ids, row_mask) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
            x, y, seen, line = 0.0, number * block + 1.3 + step * r, 0, []
            for one, real in zip(row_ids, row_mask, strict=True):
                text, width, kind = _written(processor.token(one)), 7.5, "text"
                bit = str(real)
                if one == config.image_token_id:
                    seen += 1
                    if seen > 1:
                        continue
                    times = config.vision.num_patches
                    text, width, kind, bit = (
                        f"{times} x <image>",
                        16.0,
                        "image",
                        f"{real} x {times}",
                    )
                elif text in ("<bos>", "\\n"):
                    kind = "special"
                elif not real:
                    kind = "padding"
                _box(axis, x, y, width, text, kind)
                axis.text(
                    x + width / 2, y + 1.38, bit, ha="center", va="center", fontsize=8, color=BLUE
                )
                x += width
                line.append(f"{text} {bit}")
            lines.append(", ".join(line))
        told.append(f"{title}: {'; '.join(lines)}")
    show(
        figure,
        f"""Rows of tokens filled up to one length; under each token its value in the attention
        mask. {". ".join(told)}.""",
    )


def shrunk(picture: Image.Image, small: dict[str, Tensor], part: tuple) -> None:
    """A picture, and two ways to make it small, each with an enlarged part.

    small: title -> (3, side, side) in [-1, 1]; part: (y0, x0, y1, x1) as fractions of the picture.
    """
    first, second = small.values()
    gap = 127.5 * (first - second).abs()
    side = first.shape[-1]
    small = {f"{title}, {side} x {side}": as_picture(one) for title, one in small.items()}
    shown = {f"the picture, {picture.width} x {picture.height}": np.asarray(picture), **small}
    figure, axes = plt.subplots(
        2, len(shown), figsize=(2.5 * len(shown), 5.0), layout="constrained"
    )
    for (above, below), (title, values) in zip(axes.T, shown.items(), strict=True):
        h, w = values.shape[:2]
        y0, x0, y1, x1 = part[0] * h, part[1] * w, part[2] * h, part[3] * w
        # The large picture shrinks on the page too; of the small ones every pixel shall be seen.
        way = {"interpolation": "nearest" if title in small else "antialiased"}
        above.imshow(values, aspect="auto" if title in small else "equal", **way)
        for colour, width in (("black", 3.5), ("white", 1.5)):
            above.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width)
            )
        above.set_title(title, fontsize=11)
        enlarged = values[round(y0) : round(y1), round(x0) : round(x1)]
        below.imshow(enlarged, aspect="auto", **way)
        for axis in (above, below):
            axis.set(xticks=[], yticks=[])
            axis.set_box_aspect(1 if axis is below or title in small else h / w)
    show(
        figure,
        f"""A photograph of {picture.width} x {picture.height} pixels and two versions of
        {side} x {side} pixels, {" and ".join(small)}, each with an enlarged part. The first is
        smooth, the second is full of specks and broken lines. They differ by up to
        {gap.max():.0f} of 255 levels, by {gap.mean():.0f} on average.""",
    )


def stripes(rows: dict[str, list[Tensor]], titles: list[str]) -> None:
    """Small pictures (3, y, x) in [-1, 1], a row for each way of making them small.

    titles: one for each column.
    """
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(1.9 * len(titles), 2.0 * len(rows)), layout="constrained"
    )
    for line, (name, shown) in zip(axes, rows.items(), strict=True):
        for axis, pixels, title in zip(line, shown, titles, strict=True):
            axis.imshow(as_picture(pixels), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if line is axes[0]:
                axis.set_title(title, fontsize=10)
        line[0].set_ylabel(name, fontsize=10)
    show(
        figure,
        f"""Drawings of {", ".join(titles)}, printed with fine stripes and then made small, a row
        for each way: {"; ".join(rows)}. Where the shrinking is antialiased, the stripes are
        almost gone and the drawings are clear. Where it is not, broad dark and light bars run over
        them.""",
    )


def mistakes(table: dict[str, list[float]], tasks: list[str]) -> None:
    """How much is right, a row for each way of preparing, a column for each task, in percent."""
    values = 100 * np.array(list(table.values()))
    shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE])
    figure, axis = plt.subplots(figsize=(9.5, 0.42 * len(table) + 1.2), layout="constrained")
    axis.imshow(values, cmap=shades, vmin=0, vmax=100, aspect="auto")
    for (r, c), value in np.ndenumerate(values):
        colour = "white" if value > 60 else DARK
        axis.text(c, r, f"{value:.0f}", ha="center", va="center", fontsize=10, color=colour)
    axis.set_xticks(range(len(tasks)), tasks, rotation=20, ha="left", rotation_mode="anchor")
    axis.set_yticks(range(len(table)), list(table))
    axis.xaxis.tick_top()
    axis.set_xlabel("right answers in %")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.hlines(0.5, -0.5, len(tasks) - 0.5, color=DARK, lw=1.5)
    told = [
        f"{name}: " + ", ".join(f"{task} {v:.0f}" for task, v in zip(tasks, line, strict=True))
        for name, line in zip(table, values, strict=True)
    ]
    show(figure, f"Right answers in percent by task. {'; '.join(told)}.")


def moved_boxes(picture: Image.Image, boxes: dict[str, tuple], side: int) -> None:
    """One picture with its grid of side x side patches, and a box for each way of preparing.

    boxes: name -> (y0, x0, y1, x1) as fractions of the picture.
    """
    figure, axes = plt.subplots(
        1, len(boxes), figsize=(3.1 * len(boxes), 3.4), layout="constrained"
    )
    styles = zip((GREEN, ORANGE, BLUE), ("-", "--", ":"), strict=True)
    for axis, (name, (y0, x0, y1, x1)), (colour, style) in zip(
        axes, boxes.items(), styles, strict=True
    ):
        axis.imshow(picture, extent=(0, side, side, 0))
        axis.set_xticks(range(side + 1), [])
        axis.set_yticks(range(side + 1), [])
        axis.grid(color="white", lw=0.6)
        axis.tick_params(length=0)
        corner, w, h = (side * x0, side * y0), side * (x1 - x0), side * (y1 - y0)
        axis.add_patch(Rectangle(corner, w, h, fill=False, edgecolor="black", lw=5))
        axis.add_patch(Rectangle(corner, w, h, fill=False, edgecolor=colour, ls=style, lw=3))
        axis.set_title(name, fontsize=11)
    told = [
        f"{name}: columns {side * x0:.1f} to {side * x1:.1f},"
        f" rows {side * y0:.1f} to {side * y1:.1f}"
        for name, (y0, x0, y1, x1) in boxes.items()
    ]
    show(
        figure,
        f"""The same picture with a grid of {side} x {side} patches and the box that the model
        tells, in units of patches. {"; ".join(told)}.""",
    )
