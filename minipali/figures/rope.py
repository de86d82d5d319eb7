"""Figures of lesson 07: hands, wavelengths, boxes that move, and angles in bfloat16."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show


def dials(pairs: list[int], positions: list[int], head_dim: int, theta: float) -> None:
    """A dial for each pair (row) and position (column); its hand is the pair's angle.

    A hand starts at the right and turns against the clock, as angles do.
    """
    speeds = {pair: theta ** (-2 * pair / head_dim) for pair in pairs}
    figure, axes = plt.subplots(
        len(pairs), len(positions), figsize=(1.0 * len(positions) + 1.2, 1.12 * len(pairs)),
        squeeze=False,
    )  # fmt: skip
    told = []
    for axis, position in zip(axes[0], positions, strict=True):
        axis.set_title(f"position\n{position}" if position == positions[0] else f"\n{position}")
    for line, pair in zip(axes, pairs, strict=True):
        for axis, position in zip(line, positions, strict=True):
            angle = position * speeds[pair]
            axis.add_patch(Circle((0, 0), 1, fill=False, edgecolor=GREY, lw=1))
            axis.plot([0, 1], [0, 0], color=GREY, lw=1, ls=":")
            axis.plot([0, np.cos(angle)], [0, np.sin(angle)], color=BLUE, lw=2.5)
            axis.plot(np.cos(angle), np.sin(angle), "o", color=BLUE, ms=5)
            axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        turn = 2 * np.pi / speeds[pair]
        line[0].set_ylabel(
            f"pair {pair}\n{turn:,.{int(turn < 100)}f} tokens\na turn",
            rotation=0, ha="right", va="center", fontsize=10,
        )  # fmt: skip
        hands = ", ".join(f"{np.degrees(p * speeds[pair]) % 360:.0f}" for p in positions)
        told.append(f"pair {pair} ({turn:,.1f} tokens a turn): {hands} degrees")
    figure.subplots_adjust(left=0.14, right=0.99, top=0.88, bottom=0.01, wspace=0.08, hspace=0.08)
    show(
        figure,
        f"""Dials with one hand each, a row for each pair of a head of {head_dim} numbers, a column
        for each of the positions {", ".join(map(str, positions))}. Hands at {"; ".join(told)}.""",
    )


def wavelengths(
    models: dict[str, tuple[int, float]], lengths: dict[str, int], positions: int
) -> None:
    """Left: the cosine of every pair of the first model at positions 0, 1, ...; right: tokens a
    turn by pair.

    models: name -> head_dim and theta; lengths: name of a length -> tokens, drawn as a line.
    """
    name, (head_dim, theta) = next(iter(models.items()))
    speeds = theta ** (-2 * np.arange(head_dim // 2) / head_dim)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1, 1.15)
    )
    waves = np.cos(speeds[:, None] * np.arange(positions))
    drawn = left.imshow(waves, cmap="cividis", aspect="auto", interpolation="nearest")
    left.set(xlabel="position", ylabel="pair", title=f"cosine of the angle, {name}")
    figure.colorbar(drawn, ax=left, ticks=[-1, 0, 1], shrink=0.8)

    told = []
    looks = zip((BLUE, ORANGE), ("o", "s"), (0.97, 0.33), strict=True)
    for (name, (head_dim, theta)), (colour, mark, along) in zip(
        models.items(), looks, strict=False
    ):
        turns = 2 * np.pi * theta ** (2 * np.arange(head_dim // 2) / head_dim)
        right.plot(turns, mark, color=colour, ms=4)
        place = int(along * len(turns))
        right.text(place + 4, turns[place] * 0.7, f"{name}: {len(turns)} pairs", va="top")
        told.append(f"{name}: {head_dim // 2} pairs, from {turns[0]:.1f} to {turns[-1]:,.0f}")
    end = right.get_xlim()[1]
    for name, tokens in lengths.items():
        right.axhline(tokens, color=DARK, lw=1, ls="--")
        # At the right end, unless the last model's marks pass there: then left of them.
        crossed = int((turns < tokens).sum())
        place = 0.94 * crossed if crossed > 0.6 * end else end
        right.text(place, tokens * 1.12, f"{name}: {tokens:,}", fontsize=9, ha="right")
    right.set_yscale("log")
    right.set(xlabel="pair", ylabel="tokens in one turn", title="one turn of each pair")
    right.spines[["top", "right"]].set_visible(False)
    show(
        figure,
        f"""Left: the cosine of each pair at positions 0 to {positions - 1}; fast stripes in the
        first pairs, almost no change in the last. Right: tokens in one turn of each pair, on a
        logarithmic scale. {"; ".join(told)}. Dashed lines for comparison:
        {", ".join(f"{name} {tokens:,}" for name, tokens in lengths.items())}.""",
    )


def boxes_by_numbering(
    picture: Image.Image, found: dict[str, list[tuple[str, tuple]]], below: dict[str, str]
) -> None:
    """One picture several times, each with the boxes that the model names in that numbering.

    found: title -> boxes (name, (y0, x0, y1, x1) in pixels); below: title -> a line under it.
    """
    figure, axes = plt.subplots(1, len(found), figsize=(3.3 * len(found), 3.9), squeeze=False)
    told = []
    for axis, (title, boxes) in zip(axes.flat, found.items(), strict=True):
        axis.imshow(picture)
        for (name, (y0, x0, y1, x1)), style in zip(boxes, ("-", "--", ":"), strict=False):
            for colour, width in (("black", 5), ("white", 2.5)):
                axis.add_patch(
                    Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width,
                              ls=style if colour == "white" else "-")
                )  # fmt: skip
            axis.text(
                x0 + 4, y0 + 4, name, color="white", fontsize=11, va="top",
                bbox={"facecolor": "black", "edgecolor": "none", "pad": 2},
            )  # fmt: skip
        axis.set(xticks=[], yticks=[], xlim=(0, picture.width), ylim=(picture.height, 0))
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(below[title], fontsize=11)
        edges = [
            f"{name} from x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}"
            for name, (y0, x0, y1, x1) in boxes
        ]
        told.append(f"{title}: {'; '.join(edges)}; {below[title]}")
    figure.tight_layout()
    show(
        figure,
        f"""The same picture, {picture.width} pixels wide, once for each numbering of the patches,
        with the boxes that the model names. {". ".join(told).replace(chr(10), ", ")}.""",
    )


def score_by_distance(distances: Tensor, curves: dict[str, Tensor]) -> None:
    """The score of one query and one key against their distance; the first curve is a line."""
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    looks = (
        {"color": BLUE, "lw": 2},
        {"color": DARK, "marker": "o", "ls": "", "ms": 7, "fillstyle": "none"},
        {"color": GREEN, "marker": "+", "ls": "", "ms": 11, "mew": 1.6},
        {"color": ORANGE, "marker": "x", "ls": "", "ms": 7, "mew": 2},
    )
    for (name, scores), look in zip(curves.items(), looks, strict=False):
        axis.plot(distances, scores, label=name, **look)
    axis.set(xlabel="distance: query's position minus key's position", ylabel="score")
    axis.legend(frameon=False, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    first = next(iter(curves.values()))
    told = [
        f"{name}: {scores[0]:.1f} at distance {distances[0]}, {scores[-1]:.1f} at {distances[-1]},"
        f" at most {(scores - first).abs().max():.2g} from the first curve"
        for name, scores in curves.items()
    ]
    show(
        figure,
        f"""Score of a query and a key of ones, against their distance. {"; ".join(told)}.""",
    )
