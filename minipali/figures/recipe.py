"""Figures of lesson 17: what a patch shows, a training as it runs, and the exam."""

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import clear_output
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show
from minipali.figures.training import log


def targets(picture: Image.Image, box_of_patch: Tensor, names: list[str]) -> None:
    """A picture cut into patches, each with the name of what it shows.

    box_of_patch: (n,), the number of a name, or -1.
    """
    side = round(len(box_of_patch) ** 0.5)
    cell = picture.width / side
    figure, axis = plt.subplots(figsize=(4.6, 4.6), layout="constrained")
    axis.imshow(picture)
    for patch, number in enumerate(box_of_patch.tolist()):
        y, x = divmod(patch, side)
        lit = number >= 0
        axis.add_patch(
            Rectangle(
                (x * cell - 0.5, y * cell - 0.5), cell, cell, fill=False,
                ec="white", lw=2.5 if lit else 0.5, ls="-" if lit else ":",
            )
        )  # fmt: skip
        if lit:
            axis.text(
                (x + 0.5) * cell, (y + 0.5) * cell, names[number], ha="center", va="center",
                fontsize=8, color="white", bbox={"fc": "black", "ec": "none", "pad": 1},
            )  # fmt: skip
    axis.axis("off")
    counts = ", ".join(
        f"{(box_of_patch == number).sum().item()} show {name}" for number, name in enumerate(names)
    )
    show(figure, f"A scene in {side} x {side} patches: {counts}, the others nothing.")


def watch(lines: list[dict]) -> None:
    """The curve of a training so far, in the place of what the cell has shown before."""
    clear_output(wait=True)
    log(lines)


def exam(columns: dict[str, dict[str, float]], each: int) -> None:
    """Shares of right answers, a row for each task and a mark for each column, with intervals.

    each: questions behind a mark.
    """
    from minipali.evaluation import interval

    tasks = list(next(iter(columns.values())))
    figure, axis = plt.subplots(figsize=(8.5, 0.42 * len(tasks) + 1.2), layout="constrained")
    styles = zip(columns.items(), (BLUE, ORANGE, GREEN, DARK), "os^|", strict=False)
    for number, ((name, found), colour, mark) in enumerate(styles):
        rows = np.arange(len(tasks)) + 0.16 * (number - (len(columns) - 1) / 2)
        share = np.array([found[task] for task in tasks])
        ends = np.array([interval(one, each) for one in share]).T
        around = 100 * np.abs(ends - share)
        axis.errorbar(
            100 * share, rows, xerr=around, fmt=mark, color=colour, ms=9 if mark == "|" else 6,
            mew=2.5 if mark == "|" else 1, elinewidth=1, label=name,
        )  # fmt: skip
    axis.set_yticks(range(len(tasks)), tasks)
    axis.invert_yaxis()
    axis.set(xlabel="right in %, with 95 % intervals", xlim=(-3, 103))
    axis.grid(axis="x", color=GREY, alpha=0.3)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    told = "; ".join(
        f"{task}: "
        + ", ".join(f"{name} {100 * found[task]:.0f}" for name, found in columns.items())
        for task in tasks
    )
    show(figure, f"Right answers in percent. {told}.")
