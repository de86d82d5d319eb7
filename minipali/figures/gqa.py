"""Figures of lesson 09: heads that share keys and values."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show

_COLOURS = (BLUE, ORANGE, GREEN, GREY)


def sharing(kinds: dict[str, list[int]]) -> None:
    """Who reads whose keys and values: title -> the KV head that each query head reads."""
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(2.9 * len(kinds), 2.5), layout="constrained", squeeze=False
    )
    told = []
    for axis, (title, reads) in zip(axes.flat, kinds.items(), strict=True):
        count = max(reads) + 1
        step = len(reads) / count
        places = [(i + 0.5) * step - 0.5 for i in range(count)]
        for head, kv in enumerate(reads):
            axis.plot([head, places[kv]], [1, 0], color=_COLOURS[kv], lw=2.5, zorder=1)
            axis.plot(head, 1, "o", ms=24, mfc="white", mec=_COLOURS[kv], mew=2.5)
            axis.text(head, 1, str(head), ha="center", va="center", fontsize=11, color=DARK)
        for kv, place in enumerate(places):
            axis.plot(place, 0, "s", ms=26, color=_COLOURS[kv])
            ink = DARK if _COLOURS[kv] == ORANGE else "white"
            axis.text(
                place,
                0,
                "ABCD"[kv],
                ha="center",
                va="center",
                fontsize=12,
                color=ink,
                weight="bold",
            )
        axis.set(xlim=(-0.6, len(reads) - 0.4), ylim=(-0.4, 1.4), title=title)
        axis.set_xticks([])
        axis.set_yticks([0, 1], ["KV head", "query head"] if axis is axes[0, 0] else ["", ""])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        pairs = ", ".join(f"{head} reads {'ABCD'[kv]}" for head, kv in enumerate(reads))
        told.append(f"{title}: {pairs}.")
    show(figure, f"Which KV head each query head reads. {' '.join(told)}")


def by_task(rows: dict[str, list[float]], tasks: tuple[str, ...]) -> None:
    """Right answers in percent: a row for each model, a column for each task."""
    shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE])
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.55 * len(rows)), layout="constrained")
    axis.imshow(list(rows.values()), cmap=shades, vmin=0, vmax=110, aspect="auto")
    for (row, column), value in np.ndenumerate(np.array(list(rows.values()))):
        colour = "white" if value > 75 else DARK
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=12)
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    # White lines between the cells.
    axis.set_xticks(np.arange(0.5, len(tasks) - 1), minor=True)
    axis.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axis.grid(which="minor", color="white", lw=3)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)
    told = [
        f"{name}: " + ", ".join(f"{task} {v:.0f}" for task, v in zip(tasks, values, strict=True))
        for name, values in rows.items()
    ]
    show(figure, f"Right answers in percent. {'; '.join(told)}.")


def repaired(
    losses: dict[str, list[float]], scores: dict[str, tuple[float, float]], whole: float
) -> None:
    """A model with one KV head from several starts: its loss while it learns, and its answers.

    losses: start -> loss of each step; scores: start -> right answers in percent, before and after;
    whole: those of the model with all its KV heads.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.4), layout="constrained", width_ratios=(1, 1.15)
    )
    kinds = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (GREY, ":"))
    styles = dict(zip(losses, kinds, strict=False))
    told = []
    for name, values in losses.items():
        smooth = np.convolve(values, np.ones(5) / 5, "valid")
        colour, line = styles[name]
        left.plot(np.arange(len(smooth)) + 3, smooth, line, color=colour, lw=2.5, label=name)
    left.set(xlabel="training step", ylabel="loss (mean of 5 steps)", yscale="log")
    left.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    left.set_yticks([], minor=True)
    left.legend(frameon=False, fontsize=9)
    for row, (name, (before, after)) in enumerate(scores.items()):
        colour, line = styles[name]
        right.plot([before, after], [row, row], line, color=colour, lw=2.5, zorder=1)
        right.plot(before, row, "o", ms=10, mfc="white", mec=colour, mew=2.5)
        right.plot(after, row, "o", ms=10, color=colour)
        right.text(before, row - 0.3, f"{before:.0f}", ha="center", fontsize=10)
        right.text(after, row - 0.3, f"{after:.0f}", ha="center", fontsize=10)
        told.append(f"{name}: {before:.0f} before, {after:.0f} after")
    right.axvline(whole, color=DARK, lw=1)
    right.text(whole - 1, -0.8, f"all KV heads: {whole:.0f}", ha="right", va="center", fontsize=9)
    right.set_yticks(range(len(scores)), list(scores))
    right.set(ylim=(len(scores) - 0.5, -1.05), xlim=(-5, 100), xlabel="right answers in percent")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    steps = len(next(iter(losses.values())))
    show(
        figure,
        f"""A model with one KV head, from {len(scores)} starts. Left: the loss in {steps} training
        steps. Right: right answers in percent, open circles before and filled ones after training.
        {"; ".join(told)}. The model with all its KV heads: {whole:.0f}.""",
    )


def cache_size(
    heads: list[int],
    lines: dict[str, list[float]],
    marks: dict[str, list[tuple[int, float]]],
) -> None:
    """Megabytes of cache against the number of KV heads.

    lines: name -> MB for each number of heads; marks: a real model -> its (heads, MB) on each line.
    """
    figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    styles = zip(((BLUE, "-"), (GREEN, "--"), (ORANGE, "-.")), lines.items(), strict=False)
    told = []
    for (colour, style), (name, sizes) in styles:
        axis.plot(heads, sizes, style, color=colour, lw=2, marker="o", mfc="white", ms=7)
        axis.text(heads[-1] * 1.07, sizes[-1], f"{name}\n{sizes[-1]:.0f} MB", va="center")
        axis.text(heads[0] / 1.07, sizes[0], f"{sizes[0]:.0f} MB", va="center", ha="right")
        told.append(f"{name}: {sizes[0]:.0f} MB with {heads[0]}, {sizes[-1]:.0f} with {heads[-1]}")
    for shape, (name, points) in zip(("o", "D"), marks.items(), strict=False):
        axis.plot(*zip(*points, strict=True), shape, color=DARK, ms=9, zorder=5, label=name)
        if points[0][0] != heads[0]:  # the first line of heads has its numbers already
            for number, size in points:
                axis.text(number / 1.06, size, f"{size:.0f} MB", va="bottom", ha="right")
        sizes = ", ".join(f"{size:.0f} MB with {number}" for number, size in points)
        told.append(f"{name}: {sizes}")
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    axis.set(xscale="log", yscale="log", xlabel="KV heads (query heads: 8)", ylabel="MB of cache")
    axis.set_xticks(heads, [str(number) for number in heads])
    axis.set_yticks([10, 30, 100, 300], ["10", "30", "100", "300"])
    axis.set_xticks([], minor=True)
    axis.set_yticks([], minor=True)
    axis.set_xlim(heads[0] / 1.5, heads[-1] * 1.7)
    axis.spines[["top", "right"]].set_visible(False)
    show(figure, f"Size of the cache against the number of KV heads. {'; '.join(told)}.")
