"""Figures of lesson 03: attention weights as tables and over pictures."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, as_picture, show


def tables(tables: dict[str, Tensor], words: list[str]) -> None:
    """Weights (t, s) as tables, one for each title; a weight of exactly 0 is hatched.

    The sum of each row stands to its right.
    """
    shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE])
    figure, axes = plt.subplots(
        1, len(tables), figsize=(3.4 * len(tables), 3.3), layout="constrained", squeeze=False
    )
    told = []
    for axis, (title, weights) in zip(axes.flat, tables.items(), strict=True):
        axis.imshow(weights, cmap=shades, vmin=0, vmax=1)
        for (row, column), weight in np.ndenumerate(weights.numpy()):
            if weight == 0:
                corner = (column - 0.5, row - 0.5)
                axis.add_patch(
                    Rectangle(corner, 1, 1, facecolor="#EEEEEE", edgecolor=GREY, hatch="///", lw=0)
                )
            else:
                colour = "white" if weight > 0.6 else DARK
                axis.text(column, row, f"{weight:.2f}", ha="center", va="center", color=colour)
        lines = []
        for row, (word, line) in enumerate(zip(words, weights, strict=True)):
            total = f"= {line.sum():.2f}"
            axis.text(len(words) - 0.4, row, total, va="center", fontsize=10)
            lines.append(f"{word} " + " + ".join(f"{w:.2f}" for w in line.tolist()) + " " + total)
        told.append(f"{title}: {'; '.join(lines)}.")
        places = range(len(words))
        axis.set_xticks(places, words, rotation=30, ha="right", rotation_mode="anchor")
        axis.set_yticks(places, words if axis is axes[0, 0] else [])
        axis.set(title=title, xlabel="key")
        axis.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("query")
    show(
        figure,
        f"""Tables of attention weights, a row for each query, a column for each key
        ({", ".join(words)}); weights of 0 are hatched. {" ".join(told)}""",
    )


def entropy_by_width(widths: list[int], curves: dict[str, list[float]], keys: int) -> None:
    """Entropy of attention weights against the width of the queries, one curve for each scale."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    styles = zip((ORANGE, BLUE, GREEN), ("s--", "o-", "^:"), strict=True)
    for (name, values), (colour, style) in zip(curves.items(), styles, strict=True):
        axis.plot(widths, values, style, color=colour, lw=2)
        axis.text(widths[-1] * 1.15, values[-1], name, color=DARK, va="center")
    most = np.log2(keys)
    axis.hlines(most, widths[0], widths[-1], color=GREY, lw=1)
    axis.text(widths[0], most + 0.08, f"all {keys} keys have the same", fontsize=9, va="bottom")
    axis.text(widths[0], 0.08, "one key has everything", fontsize=9, va="bottom")
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set(xlabel="width k of queries and keys", ylabel="entropy in bits", ylim=(0, most + 0.6))
    axis.spines[["top", "right"]].set_visible(False)
    told = [f"{name}: from {v[0]:.1f} to {v[-1]:.1f} bits" for name, v in curves.items()]
    show(
        figure,
        f"""Entropy of attention weights over {keys} keys against the width of queries and
        keys, from {widths[0]} to {widths[-1]}. {"; ".join(told)}. The most is {most:.1f} bits:
        all keys have the same weight.""",
    )


def over_picture(
    pixels: Tensor,
    rows: dict[str, list[Tensor]],
    titles: list[str],
    alt: str,
    query: int | None = None,
) -> None:
    """Where attention goes in a picture: for each map of weights (n,), one small grey picture.

    rows: name of a row -> its maps, one for each title. Light squares have much weight, compared
    with the largest of the map; the share of the map's largest square stands above it. query: the
    patch that looks, marked by a white frame. The largest square of each map is added to alt.
    """
    picture = as_picture(pixels).mean(axis=-1)
    figure, axes = plt.subplots(
        len(rows), 1 + len(titles), figsize=(1.75 * (1 + len(titles)), 2.05 * len(rows)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for line, (name, maps) in zip(axes, rows.items(), strict=True):
        side = int(len(maps[0]) ** 0.5)
        whole = (0, side, side, 0)
        line[0].imshow(as_picture(pixels), extent=whole)
        line[0].set_ylabel("\n".join(textwrap.wrap(name, 15)), fontsize=10)
        told = []
        for axis, weights, title in zip(line[1:], maps, titles, strict=True):
            grid = rearrange(weights.detach().float(), "(ny nx) -> ny nx", ny=side)
            y, x = divmod(int(grid.argmax()), side)
            share = (grid.max() / grid.sum()).item()
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=whole)
            drawn = axis.imshow(
                grid / grid.max(), cmap="cividis", vmin=0, vmax=1, alpha=0.75, extent=whole
            )
            axis.set_title(f"{title}: {share:.2f}", fontsize=10)
            told.append(f"{title} row {y}, column {x} with {share:.2f}")
        alt = f"{alt} {name}, largest square: {'; '.join(told)}."
        for axis in line:
            axis.set(xticks=[], yticks=[])
            if query is not None:
                corner = (query % side, query // side)
                for colour, width in (("black", 4), ("white", 2)):
                    axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, lw=width))
    figure.colorbar(drawn, ax=axes, shrink=0.9, ticks=[0, 1], label="weight / largest")
    show(figure, alt)
