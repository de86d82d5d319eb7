"""Figures of lesson 04: GELU, the residual stream, and nearest neighbours."""

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREY, ORANGE, show


def bends(x: Tensor, curves: dict[str, Tensor], gap: Tensor) -> None:
    """Activation functions by name over x, beside the gap between the two forms of GELU."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    styles = zip((BLUE, ORANGE), ("-", "--"), strict=True)
    for (name, y), (colour, style) in zip(curves.items(), styles, strict=False):
        left.plot(x, y, style, color=colour, lw=2.5, label=name)
    left.axhline(0, color=GREY, lw=0.8)
    left.set(xlabel="x", ylabel="result", title="the bend")
    left.legend(fontsize=10)
    right.plot(x, 1e4 * gap, color=BLUE, lw=2)
    right.axhline(0, color=GREY, lw=0.8)
    right.set(xlabel="x", ylabel="difference in 1/10,000", title="tanh form minus erf form")
    for axis in (left, right):
        axis.set_xlim(x.min().item(), x.max().item())
    show(
        figure,
        f"""Left: ReLU is 0 up to x = 0 and then rises with slope 1. GELU follows it smoothly and
        dips a little below 0 between -3 and 0. Right: the tanh form of GELU minus the erf form. The
        curve is symmetric and stays between {1e4 * gap.min():.1f} and {1e4 * gap.max():.1f}
        ten-thousandths; its peaks are near -2.7 and 2.7.""",
    )


def residual_stream(stream: list[float], attention: list[float], mlp: list[float]) -> None:
    """Typical size of a value in the stream, layer by layer, and of what is added to it.

    stream: one more than there are layers (the first is what enters); attention, mlp: one a layer.
    """
    figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
    places = np.arange(len(attention)) + 1
    axis.bar(places - 0.18, attention, 0.34, color=ORANGE, label="attention adds")
    axis.bar(places + 0.18, mlp, 0.34, color=BLUE, hatch="//", edgecolor="white", label="MLP adds")
    axis.plot(np.arange(len(stream)) + 0.5, stream, "o-", color=DARK, lw=2, label="stream")
    axis.set(xlabel="layer", ylabel="root mean square of the values", xticks=places)
    axis.legend(fontsize=10)
    listed = "; ".join(
        f"layer {i}: attention {a:.1f}, MLP {m:.1f}"
        for i, (a, m) in enumerate(zip(attention, mlp, strict=True), start=1)
    )
    show(
        figure,
        f"""A line for the size of the residual stream, from {stream[0]:.1f} before the first layer
        to {stream[-1]:.1f} after the last. Under it, two bars for each layer, what attention and
        what the MLP adds. {listed}.""",
    )


def gradients(lengths: dict[str, list[float]]) -> None:
    """Length of the gradient in each layer, first to last, one line a kind of block."""
    figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
    styles = zip((BLUE, ORANGE), ("o-", "s--"), strict=True)
    for (name, sizes), (colour, style) in zip(lengths.items(), styles, strict=False):
        axis.plot(range(1, len(sizes) + 1), sizes, style, color=colour, ms=4, label=name)
    axis.set(xlabel="layer (the last is next to the loss)", ylabel="length of the gradient")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=10)
    listed = ", ".join(f"{name} from {g[0]:.1f} to {g[-1]:.1f}" for name, g in lengths.items())
    show(figure, f"Length of the gradient from the first layer to the last: {listed}.")


def neighbours(asked: list, found: list, nearest: dict[str, Tensor], shown: list[int]) -> None:
    """A row for each shown query: its picture, then under each way of seeing the nearest ones.

    asked, found: scenes to search with and among; nearest: for each way, (asked, k) numbers of
    found scenes, the nearest first; shown: which of the asked to draw.
    """
    columns = 1 + sum(indices.shape[1] + 0.25 for indices in nearest.values())
    figure = plt.figure(figsize=(10, 10 / columns * (len(shown) + 0.3)))
    height, told = 1 / (len(shown) + 0.3), []
    for row, query in enumerate(shown):
        groups = [("query", [asked[query]])]
        groups += [(f"nearest by {k}", [found[i] for i in v[query]]) for k, v in nearest.items()]
        names = [", ".join(scene.things[0].name for scene in group) for _, group in groups]
        by = [f"by {way} {n}" for way, n in zip(nearest, names[1:], strict=True)]
        told.append(f"{names[0]}: {'; '.join(by)}")
        x = 0.0
        for title, group in groups:
            for number, scene in enumerate(group):
                corner = (x / columns, 1 - (row + 1.3) * height)
                axis = figure.add_axes((*corner, 0.94 / columns, 0.94 * height))
                axis.imshow(scene.pixels)
                axis.set(xticks=[], yticks=[])
                if row == number == 0:
                    axis.set_title(title, fontsize=11, loc="left")
                x += 1
            x += 0.25
    show(figure, f"Drawings and the nearest among another artist's. {'. '.join(told)}.")
