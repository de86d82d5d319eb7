"""Figures of lesson 15: rulers, boxes and how they overlap."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from minipali.figures.common import BLUE, DARK, GREY, ORANGE, show


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


def outlined_box(axis: Axes, box, colour: str, style: str = "-", width: float = 2.5) -> None:
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
        outlined_box(axis, box, "white")
        outlined_box(axis, true, ORANGE, "--", 2)
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
