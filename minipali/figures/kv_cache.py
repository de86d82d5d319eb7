"""Figures of lesson 08: what a cache costs and saves."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show


def work(patches: int, prompt: int, words: list[str]) -> None:
    """Which token goes through the decoder in which call, without and with a cache.

    patches, prompt: number of image tokens and of text tokens before the answer; words: the
    answer's tokens, in order. A row is a call, a column a place.
    """
    calls, first = len(words), patches + prompt
    width = first + calls - 1  # the last token chosen is not fed again
    figure, axes = plt.subplots(2, 1, figsize=(9, 5.4), layout="constrained", sharex=True)
    told = []
    for axis, cached in zip(axes, (False, True), strict=True):
        computed = 0
        for call in range(calls):
            seen = first + call
            start = seen - 1 if cached and call else 0
            computed += seen - start
            for place in range(seen):
                new = place >= start
                colour = (ORANGE if place < patches else BLUE) if new else "#EEEEEE"
                axis.add_patch(
                    Rectangle((place, call), 1, 1, facecolor=colour, edgecolor="white", lw=0.6)
                )
        name = "with a cache" if cached else "without a cache"
        told.append(f"{name}: {computed} token vectors in {calls} calls")
        axis.set_title(f"{name}: {computed} token vectors through the decoder", fontsize=11)
        axis.set(xlim=(0, width), ylim=(calls, 0), ylabel="call chooses")
        axis.set_yticks(np.arange(calls) + 0.5, words, fontsize=8)
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[1].set_xticks(
        [patches / 2, patches + prompt / 2, first + (calls - 1) / 2],
        [f"{patches} patches", "question", "answer"],
        fontsize=9,
    )
    axes[1].set_xlabel("place in the row: one square is one token vector", fontsize=9)
    legend = {"picture, computed": ORANGE, "text, computed": BLUE, "read from the cache": "#EEEEEE"}
    figure.legend(
        handles=[Patch(facecolor=c, edgecolor=GREY, label=name) for name, c in legend.items()],
        loc="outside lower center", ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
    show(
        figure,
        f"""Two tables. A row is a call of the decoder, a column a place: {patches} patches,
        {prompt} tokens of the question, then the answer, {" ".join(words)}. {"; ".join(told)}.
        Without a cache all rows are filled; with one, the first row is filled and then only the
        diagonal, one token a call.""",
    )


def key_changes(maps: dict[str, Tensor], patches: int) -> None:
    """How much the keys of each place change, relative to their length: (layers, n) a title."""
    shades = LinearSegmentedColormap.from_list("shades", ["#CDE6F5", BLUE, DARK])
    norm = LogNorm(1e-3, 1)
    figure, axes = plt.subplots(
        len(maps), 1, figsize=(9, 1.55 * len(maps)), layout="constrained", squeeze=False,
        sharex=True,
    )  # fmt: skip
    told = []
    for axis, (title, changes) in zip(axes[:, 0], maps.items(), strict=True):
        layers, places = changes.shape
        changed = np.ma.masked_less(changes.numpy(), 1e-3)  # less is rounding
        same = Rectangle((0, 0.5), places, layers, fc="white", ec=GREY, hatch="//", lw=0, zorder=0)
        axis.add_patch(same)
        extent = (0, places, layers + 0.5, 0.5)
        drawn = axis.imshow(changed, cmap=shades, norm=norm, aspect="auto", extent=extent, zorder=1)
        axis.axvline(patches, color=ORANGE, lw=2)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlim(0, max(one.shape[1] for one in maps.values()))
        axis.set_yticks(range(1, layers + 1))
        axis.set_ylabel("layer")
        means = [f"layer {i + 1} {changes[i].mean().item():.3f}" for i in range(layers)]
        told.append(f"{title}: mean change in {', '.join(means)}.")
    axes[-1, 0].set_xlabel(f"place ({patches} patches, then the text)")
    bar = figure.colorbar(
        drawn, ax=axes, label="change, as a part of the key's length", ticks=[1e-3, 1e-2, 1e-1, 1]
    )
    bar.ax.set_yticklabels(["0.001", "0.01", "0.1", "1"])
    show(
        figure,
        f"""Maps of how much the keys of old tokens change, a row for each layer, a column for each
        place; hatched where they stay the same. {" ".join(told)}""",
    )


def survivors(rows: dict[str, list[int]], tasks: list[str], total: int) -> None:
    """Of `total` answers, how many a mistake leaves as they were: one bar a task."""
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(9, 0.45 * len(rows) + 1.1), layout="constrained", sharey=True
    )
    colours = (GREEN, BLUE, ORANGE)
    for i, (axis, task) in enumerate(zip(axes, tasks, strict=True)):
        counts = [counts[i] for counts in rows.values()]
        axis.barh(range(len(rows)), [total] * len(rows), color="#F2F2F2")
        axis.barh(range(len(rows)), counts, color=colours[i % 3])
        for place, count in enumerate(counts):
            inside = count > 0.8 * total
            axis.text(
                count + (-0.02 if inside else 0.02) * total, place, str(count), va="center",
                ha="right" if inside else "left", color="white" if inside else DARK, fontsize=10,
            )  # fmt: skip
        axis.set_title("\n".join(textwrap.wrap(task, 30)), fontsize=10)
        axis.set(xticks=[], xlim=(0, total), xlabel=f"unchanged, of {total}")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].invert_yaxis()
    told = [
        f"{name}: " + ", ".join(f"{n} for {task!r}" for n, task in zip(counts, tasks, strict=True))
        for name, counts in rows.items()
    ]
    show(
        figure,
        f"""Bars: of {total} answers, how many stay exactly as they were when the cache has a
        mistake. {"; ".join(told)}.""",
    )


def time_per_token(lengths: list[int], curves: dict[str, list[float]]) -> None:
    """Milliseconds for one more token against how many come before, on two logarithmic axes."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    styles = zip((ORANGE, GREEN, BLUE), ("s--", "^:", "o-"), strict=True)
    for (name, values), (colour, style) in zip(curves.items(), styles, strict=True):
        axis.plot(lengths, values, style, color=colour, lw=2, ms=6, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g} ms")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="tokens so far", ylabel="time for one more token")
    axis.legend(frameon=False)
    axis.grid(axis="y", color="#E5E5E5")
    axis.spines[["top", "right"]].set_visible(False)
    told = [
        f"{name}: " + ", ".join(f"{v:.1f} at {n}" for n, v in zip(lengths, values, strict=True))
        for name, values in curves.items()
    ]
    show(
        figure,
        f"""Milliseconds for one more token against the number of tokens before it, both axes
        logarithmic. {"; ".join(told)}.""",
    )
