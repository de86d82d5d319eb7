"""Figures of lesson 15: rulers, boxes and how they overlap, and masks as codes."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show


def rulers(marks: int) -> None:
    """The same numbers read by the right ruler and by one that divides by one too many."""
    figure, axis = plt.subplots(figsize=(9.5, 2.5), layout="constrained")
    for y, (steps, colour, style, name) in enumerate(
        (
            (marks, ORANGE, "--", f"number / {marks}"),
            (marks - 1, BLUE, "-", f"number / {marks - 1}"),
        )
    ):
        axis.plot([0, 1], [y, y], color=GREY, lw=1)
        for number in range(marks):
            place = number / steps
            axis.plot([place, place], [y - 0.16, y + 0.16], style, color=colour, lw=2.5)
            axis.text(
                place, y + 0.21, number, ha="center", va="bottom", fontsize=11, color=DARK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3,
            )  # fmt: skip
        axis.text(-0.02, y, name, ha="right", va="center", fontsize=11, color=DARK)
    last = (marks - 1) / marks
    axis.annotate(
        "", (last, -0.35), (1, -0.35), arrowprops={"arrowstyle": "<->", "color": DARK, "lw": 1.3}
    )
    axis.text(last - 0.01, -0.35, "never reached", ha="right", va="center", fontsize=10)
    for edge, name in ((0, "left edge"), (1, "right edge")):
        axis.plot([edge, edge], [-0.5, 1.62], color=DARK, lw=1.5, zorder=1)
        axis.text(edge, 1.68, name, ha="center", va="bottom", fontsize=10)
    axis.set(xlim=(-0.17, 1.06), ylim=(-0.75, 1.95))
    axis.axis("off")
    show(
        figure,
        f"""Two rulers with {marks} marks, 0 to {marks - 1}, along a picture. Divided by
        {marks - 1}, mark 0 lies on the left edge and mark {marks - 1} on the right edge. Divided by
        {marks}, the last mark lies at {last:.3f} of the width and the right edge is never
        reached.""",
    )


def _box(axis: Axes, box, colour: str, style: str = "-", width: float = 2.5) -> None:
    """(y0, x0, y1, x1), with a dark border so that it shows on every background."""
    y0, x0, y1, x1 = box
    for one, wide, line in (("black", width + 2, "-"), (colour, width, style)):
        axis.add_patch(
            Rectangle(
                (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=one, lw=wide, ls=line
            )  # fmt: skip
        )


def overlaps(pairs: dict[str, tuple], measured: list[float]) -> None:
    """Pairs of boxes (y0, x0, y1, x1), the second dashed, with their overlap in numbers."""
    figure, axes = plt.subplots(
        1, len(pairs), figsize=(2.1 * len(pairs), 2.5), layout="constrained"
    )
    told = []
    for axis, (name, (a, b)), value in zip(axes, pairs.items(), measured, strict=True):
        for box, colour, style in ((a, BLUE, "-"), (b, ORANGE, "--")):
            y0, x0, y1, x1 = box
            axis.add_patch(
                Rectangle(
                    (x0, y0),
                    x1 - x0,
                    y1 - y0,
                    facecolor=colour + "33",
                    edgecolor=colour,
                    lw=2.5,
                    ls=style,
                )  # fmt: skip
            )
        axis.set(xlim=(-0.5, 15.5), ylim=(14, -0.5), aspect="equal")
        axis.set_title(f"{value:.2f}", fontsize=13)
        axis.text(7.5, 14.2, name, ha="center", va="top", fontsize=11)
        axis.axis("off")
        told.append(f"{name}: {value:.2f}")
    show(
        figure,
        f"""Pairs of boxes of 10 x 10, one solid, one dashed, and their intersection over union.
        {"; ".join(told)}.""",
    )


def readings(
    picture: Image.Image,
    true: list[float],
    told: dict[str, list[float]],
    overlap: Callable[[list[float], list[float]], float],
) -> None:
    """One picture; the true box dashed, and the box that each way of reading gives.

    Boxes are (y0, x0, y1, x1) in pixels of the picture.
    """
    columns = 3
    rows = -(-len(told) // columns)
    height = 3.35 * picture.height / picture.width + 0.35
    figure, axes = plt.subplots(rows, columns, figsize=(10.2, height * rows), layout="constrained")
    said = []
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, box) in zip(axes.flat, told.items(), strict=False):
        value = overlap(true, box)
        axis.imshow(picture)
        _box(axis, box, "white")
        _box(axis, true, ORANGE, "--", 2)
        axis.set(xlim=(0, picture.width), ylim=(picture.height, 0))
        axis.set_title(f"{name}: {value:.2f}", fontsize=11)
        y0, x0, y1, x1 = box
        said.append(f"{name}: rows {y0:.0f} to {y1:.0f}, columns {x0:.0f} to {x1:.0f}, {value:.2f}")
    y0, x0, y1, x1 = true
    show(
        figure,
        f"""The same picture of {picture.width} x {picture.height} pixels. Dashed: the true box,
        rows {y0:.0f} to {y1:.0f}, columns {x0:.0f} to {x1:.0f}. White: the box that each way of
        reading the same tokens gives, with its overlap. {". ".join(said)}.""",
    )


def measured(table: dict[str, np.ndarray], good: float = 0.5) -> None:
    """Overlaps for each way of reading: a dot for each box, the mean, the share above good."""
    figure, axis = plt.subplots(figsize=(9.5, 0.52 * len(table) + 1.2), layout="constrained")
    random, told = np.random.default_rng(0), []
    for row, (name, values) in enumerate(table.items()):
        place = row + random.uniform(-0.25, 0.25, len(values))
        axis.plot(values, place, "o", color=BLUE, ms=3.5, alpha=0.35, mec="none")
        axis.plot([values.mean()] * 2, [row - 0.36, row + 0.36], color=DARK, lw=3)
        share = (values > good).mean()
        axis.text(1.03, row, f"{values.mean():.3f}", va="center", fontsize=11)
        axis.text(1.16, row, f"{share:.0%}", va="center", fontsize=11)
        told.append(f"{name}: mean {values.mean():.3f}, {share:.0%} above {good}")
    axis.text(1.03, -0.72, "mean", fontsize=10, va="bottom")
    axis.text(1.16, -0.72, f"> {good}", fontsize=10, va="bottom")
    axis.axvline(good, color=GREY, lw=1)
    axis.set_yticks(range(len(table)), list(table), fontsize=11)
    axis.set(
        xlim=(-0.02, 1.25), ylim=(len(table) - 0.45, -0.75), xlabel="overlap with the true box"
    )
    axis.set_xticks(np.arange(0, 1.1, 0.25))
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    show(
        figure,
        f"""Overlap of {len(values)} boxes with the true ones, a dot for each box, a line at the
        mean, for each way of reading the same answers. {". ".join(told)}.""",
    )


def tiles(dictionary: Tensor, used: Tensor) -> None:
    """The entries of a dictionary of patches (v, y, x) from 0 to 1, the most used ones first."""
    columns = 16
    rows = -(-len(dictionary) // columns)
    side = dictionary.shape[-1]
    wall = np.full((rows * (side + 1) + 1, columns * (side + 1) + 1, 3), 0.75)
    wall[..., 0], wall[..., 2] = 0.55, 0.9  # a tinted mortar, neither black nor white
    for place, entry in enumerate(used.argsort(descending=True).tolist()):
        y, x = (1 + (side + 1) * step for step in divmod(place, columns))
        wall[y : y + side, x : x + side] = 1 - 0.9 * dictionary[entry].numpy()[..., None]
    figure, axis = plt.subplots(figsize=(9.5, 9.5 * wall.shape[0] / wall.shape[1]))
    axis.imshow(wall)
    axis.axis("off")
    most = used.max().item() / used.sum().item()
    show(
        figure,
        f"""The {len(dictionary)} entries of the dictionary as pictures of {side} x {side} pixels,
        dark inside the object: all dark, all light, straight and slanting edges, corners, thin
        lines. The most used one is {most:.0%} of all; {int((used == 0).sum())} are never used.""",
    )


def redrawn(rows: dict[str, Tensor], true: Tensor, overlaps: dict[str, Tensor]) -> None:
    """Masks bool (b, y, x) in rows, the true ones above, each with its overlap."""
    figure, axes = plt.subplots(
        1 + len(rows), len(true), figsize=(1.22 * len(true) + 0.5, 1.42 * (1 + len(rows))),
        layout="constrained",
    )  # fmt: skip
    told = []
    for line, (name, masks) in zip(axes, {"true": true, **rows}.items(), strict=True):
        for axis, mask, whole, column in zip(line, masks, true, range(len(true)), strict=True):
            picture = np.ones((*mask.shape, 3))
            picture[(mask & whole).numpy()] = (0.2, 0.2, 0.2)
            for wrong, colour in ((mask & ~whole, ORANGE), (~mask & whole, BLUE)):
                picture[wrong.numpy()] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("#CCCCCC")
            if name in overlaps:
                axis.set_title(f"{overlaps[name][column]:.2f}", fontsize=10, pad=2)
        line[0].set_ylabel(name, fontsize=10)
        if name in overlaps:
            listed = ", ".join(f"{value:.2f}" for value in overlaps[name].tolist())
            told.append(f"{name}: {listed}")
    show(
        figure,
        f"""Outlines of {len(true)} drawings by an artist that nothing was trained on, and the same
        redrawn in several ways; orange is too much, blue is missing. Overlaps:
        {"; ".join(told)}.""",
    )


def learning(curve: dict[int, float], lines: dict[str, float]) -> None:
    """Overlap on held-out drawings by step of training, and what other ways reach."""
    figure, axis = plt.subplots(figsize=(9.5, 3.6), layout="constrained")
    steps, values = list(curve), list(curve.values())
    axis.plot(
        steps, values, "o-", color=BLUE, lw=2, ms=5, label=f"codec that learns: {values[-1]:.3f}"
    )
    styles = ((GREEN, "--"), (ORANGE, "-."), (GREY, ":"))
    for (name, value), (colour, style) in zip(lines.items(), styles, strict=True):
        axis.axhline(value, color=colour, lw=2, ls=style, label=f"{name}: {value:.3f}")
    axis.legend(loc="lower right", frameon=False, fontsize=11, handlelength=3.5)
    axis.set(xlabel="step", ylabel="overlap on held-out drawings", ylim=(0.6, 0.97))
    axis.spines[["top", "right"]].set_visible(False)
    listed = "; ".join(f"{name} {value:.3f}" for name, value in lines.items())
    show(
        figure,
        f"""Overlap of redrawn and true outlines by the held-out artist while the codec learns, over
        {steps[-1]} steps: from {values[0]:.3f} to {values[-1]:.3f}. For comparison: {listed}.""",
    )


def neighbours(
    decode: Callable[[Tensor], Tensor], codes: Tensor, changed: dict[int, Tensor]
) -> None:
    """A decoded mask with the numbers of its codes, and what changes when one code is another.

    decode: (b, 16) -> (b, side, side), above 0 inside; codes: (16,); changed: place of the code
    that was exchanged -> all codes then.
    """
    drawn, *others = decode(torch.stack([codes, *changed.values()])).detach()
    side, changed = drawn.shape[-1], dict(zip(changed, others, strict=True))
    step, grid = side / 4, np.arange(0, side + 1, side / 4) - 0.5
    figure, axes = plt.subplots(
        1, 1 + len(changed), figsize=(2.95 * (1 + len(changed)), 3.3), layout="constrained"
    )
    told = []
    for axis, place in zip(axes, (None, *changed), strict=True):
        mask = (drawn if place is None else changed[place]) > 0
        axis.imshow(mask, cmap="Greys", vmin=0, vmax=1.6)
        for line in grid:
            axis.axhline(line, color=BLUE, lw=0.7)
            axis.axvline(line, color=BLUE, lw=0.7)
        if place is None:
            for number, code in enumerate(codes.tolist()):
                y, x = divmod(number, 4)
                axis.text(
                    (x + 0.5) * step - 0.5, (y + 0.5) * step - 0.5, code, ha="center", va="center",
                    fontsize=10, color=DARK,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
                )  # fmt: skip
            axis.set_title("16 codes", fontsize=11)
        else:
            y, x = divmod(place, 4)
            corner = (x * step - 0.5, y * step - 0.5)
            axis.add_patch(Rectangle(corner, step, step, fill=False, edgecolor=ORANGE, lw=3))
            differs = mask != (drawn > 0)
            rows, columns = differs.nonzero(as_tuple=True)
            axis.plot(columns, rows, "x", color=ORANGE, ms=4)
            own = differs[
                int(y * step) : int((y + 1) * step), int(x * step) : int((x + 1) * step)
            ].sum()
            said = (
                f"{int(differs.sum())} pixels change,\n{int(differs.sum() - own)} of them outside"
            )
            axis.set_title(said, fontsize=11)
            told.append(f"row {y}, column {x}: {said}".replace("\n", " "))
        axis.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
        axis.spines[:].set_visible(False)
    show(
        figure,
        f"""A decoded outline with the numbers of its 16 codes on a grid of 4 x 4:
        {codes.tolist()}. Beside it, one code (framed) is exchanged; crosses mark pixels that
        change. {"; ".join(told)}.""",
    )


def in_picture(picture: Image.Image, found: list[tuple], values: list[float]) -> None:
    """A picture beside the same with masks (tinted, outlined) and boxes: (name, box, mask)."""
    height = 4.9 * picture.height / picture.width + 0.1
    figure, axes = plt.subplots(1, 2, figsize=(10, height), layout="constrained")
    axes[0].imshow(picture)
    told = []
    for (name, box, mask), value, colour in zip(found, values, (BLUE, ORANGE, GREEN), strict=False):
        axes[1].contour(mask, levels=[0.5], colors="black", linewidths=4)
        axes[1].contour(mask, levels=[0.5], colors="white", linewidths=1.8)
        tint = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        layer = np.zeros((*mask.shape, 4))
        layer[mask] = (*tint, 0.55)
        axes[1].imshow(layer)
        _box(axes[1], box, "white", ":", 1.5)
        y0, x0, _, _ = box
        axes[1].text(
            x0 + 4, y0 + 4, f"{name} {value:.2f}", color="white", va="top", fontsize=10,
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
        told.append(f"{name}: {mask.sum():,} pixels, overlap with the true outline {value:.2f}")
    axes[1].imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=0, vmax=255, zorder=-1)
    for axis in axes:
        axis.set(xlim=(0, picture.width), ylim=(picture.height, 0))
        axis.axis("off")
    show(
        figure,
        f"""A picture of {picture.width} x {picture.height} pixels, and the same in grey with boxes
        and outlines that were read from tokens. {"; ".join(told)}.""",
    )
