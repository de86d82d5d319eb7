"""Figures of lesson 10: gated and plain MLPs, the stream read by the head, and what parts cost."""

import textwrap
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show

SHADES = LinearSegmentedColormap.from_list("shades", ["white", BLUE])


def task_errors(errors: dict[str, dict[str, list[float]]]) -> None:
    """Error by task and kind of MLP on a logarithmic axis, one mark for each start."""
    figure, axis = plt.subplots(figsize=(8, 0.75 * len(errors) + 1.1), layout="constrained")
    told = []
    for row, (task, kinds) in enumerate(errors.items()):
        styles = zip((ORANGE, BLUE), ("s", "o"), (-0.13, 0.13), strict=True)
        for (kind, values), (colour, mark, shift) in zip(kinds.items(), styles, strict=True):
            axis.plot(
                values, [row + shift] * len(values), mark, color=colour, ms=8, mec="white",
                label=kind if row == 0 else None,
            )  # fmt: skip
            told.append(f"{task}, {kind}: " + ", ".join(f"{value:.4f}" for value in values))
        if row:
            axis.axhline(row - 0.5, color=GREY, lw=0.6)
    axis.set_xscale("log")
    axis.set_yticks(range(len(errors)), errors)
    axis.set_ylim(len(errors) - 0.5, -0.5)
    axis.set_xlabel("error on new inputs, as a share of the variance (left is better)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1, 1))
    show(
        figure,
        f"""Errors of a plain and a gated MLP of equal size, one mark for each start.
        {"; ".join(told)}.""",
    )


def _steps(rows: int) -> list[str]:
    """Names of the rows: before the first layer, then after each half of each layer."""
    return [
        "start",
        *(f"{part} {i + 1}" for i in range(rows // 2) for part in ("attention", "MLP")),
    ]


def _table(axis: Axes, columns: list[str], rows: int) -> None:
    """Column names above, steps at the left, a line between layers."""
    for edge in range(0, rows, 2):
        axis.axhline(edge + 0.5, color=DARK, lw=1)
    wrapped = ["\n".join(textwrap.wrap(name, 14)) for name in columns]
    axis.set_xticks(range(len(columns)), wrapped)
    axis.xaxis.tick_top()
    axis.set_yticks(range(rows), _steps(rows))
    axis.tick_params(length=0, labelsize=10)
    axis.spines[:].set_visible(False)


def lens(chances: Tensor, token: Callable[[int], str], prompts: list[str], alt: str) -> None:
    """The word that the head reads at each step (row) for each question (column), with its chance.

    chances: (steps, questions, v); token: an id as text. Bold in a frame: not the word of the step
    before. Shaded, the darker the surer: the word of the last step.
    """
    best, ids = chances.max(dim=-1)
    words = [[repr(token(i)).strip("'").lstrip("\u2581") for i in row] for row in ids.tolist()]
    names = [prompt.removeprefix("answer en ") for prompt in prompts]
    rows, columns = best.shape
    figure, axis = plt.subplots(figsize=(10, 0.43 * rows + 1.3), layout="constrained")
    axis.imshow((best * (ids == ids[-1])).numpy(), cmap=SHADES, vmin=0, vmax=1.5, aspect="auto")
    told = []
    for column in range(columns):
        changes = [f"{words[0][column]} at the start"]
        for row in range(rows):
            new = row > 0 and words[row][column] != words[row - 1][column]
            word = words[row][column]
            axis.text(
                column, row, f"{word}  {best[row, column]:.2f}", ha="center", va="center",
                fontsize=8.5 if len(word) > 6 else 10, color=DARK,
                weight="bold" if new else "normal",
            )  # fmt: skip
            if new:
                corner = (column - 0.47, row - 0.43)
                axis.add_patch(Rectangle(corner, 0.94, 0.86, fill=False, ec=ORANGE, lw=2.5))
                changes.append(f"{word} after {_steps(rows)[row]}")
        told.append(f"{names[column]} {', then '.join(changes)}")
    _table(axis, names, rows)
    show(figure, f"{alt} What the head reads, step by step. {'; '.join(told)}.")


def on_top(shares: Tensor, tasks: tuple[str, ...], number: int) -> None:
    """In how many questions of a task (column) the final word leads at each step (row).

    shares: (steps, tasks), 0 to 1; number: questions a task.
    """
    rows = len(shares)
    figure, axis = plt.subplots(figsize=(10, 0.4 * rows + 1), layout="constrained")
    axis.imshow(shares.numpy(), cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares.numpy()):
        colour = "white" if share > 0.7 else DARK
        axis.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour)
    _table(axis, list(tasks), rows)
    told = [
        f"{task}: " + ", ".join(f"{share:.0%}" for share in shares[:, column].tolist())
        for column, task in enumerate(tasks)
    ]
    show(
        figure,
        f"""Share of {number} questions a task in which the word that the model says at last leads
        already, step by step ({", ".join(_steps(rows))}). {"; ".join(told)}.""",
    )


def costs(bars: dict[str, dict[str, float]]) -> None:
    """Shares of a total by part, one stacked bar for each name: bars[name][part]."""
    figure, axis = plt.subplots(figsize=(9, 0.7 * len(bars) + 1.2), layout="constrained")
    looks = zip((ORANGE, BLUE, GREEN, GREY), ("", "//", "..", "xx"), strict=True)
    parts = list(next(iter(bars.values())))
    left, told = np.zeros(len(bars)), []
    for part, (colour, hatch) in zip(parts, looks, strict=False):
        share = np.array([bar.get(part, 0) / sum(bar.values()) for bar in bars.values()])
        axis.barh(list(bars), share, left=left, color=colour, hatch=hatch, edgecolor="white",
                  label=part)  # fmt: skip
        for row, (start, width) in enumerate(zip(left, share, strict=True)):
            if width > 0.04:
                axis.text(
                    start + width / 2, row, f"{width:.0%}", ha="center", va="center", fontsize=11,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )  # fmt: skip
        left += share
    for name, bar in bars.items():
        whole = sum(bar.values())
        told.append(f"{name}: " + ", ".join(f"{k} {v / whole:.1%}" for k, v in bar.items()))
    axis.set(xlim=(0, 1), xticks=[])
    axis.invert_yaxis()
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=11)
    axis.legend(ncols=len(parts), fontsize=10, loc="upper center", bbox_to_anchor=(0.5, -0.02),
                frameon=False)  # fmt: skip
    show(figure, f"Stacked bars, the shares of each part. {'; '.join(told)}.")
