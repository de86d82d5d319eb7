"""Figures of lesson 21: a picture as a map of words, and the mask of questions that share it."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show


def word_map(pictures: list[Image.Image], words: list[list[str]], titles: list[str]) -> None:
    """Pictures above, and below each one word for each patch, row by row.

    words: for each picture side * side words; a dot stands for the picture's commonest one.
    """
    side = round(len(words[0]) ** 0.5)
    figure, axes = plt.subplots(
        2, len(pictures), figsize=(4.4 * len(pictures), 7.4), layout="constrained", squeeze=False,
        height_ratios=(1, 1.1),
    )  # fmt: skip
    told = []
    for number, (picture, own, title) in enumerate(zip(pictures, words, titles, strict=True)):
        above, below = axes[:, number]
        above.imshow(picture)
        cell = picture.width / side
        for edge in range(1, side):
            for line in (above.axhline, above.axvline):
                line(edge * cell - 0.5, color="white", lw=0.8, ls=":")
        above.set_title(title, fontsize=11)
        common = max(set(own), key=own.count)
        kinds = [word for word in dict.fromkeys(own) if word != common]
        colours = dict(zip(kinds, (BLUE, ORANGE, GREEN, "#CC79A7"), strict=False))
        for place, word in enumerate(own):
            y, x = divmod(place, side)
            lit = word != common
            shade = colours.get(word, GREY) + "55" if lit else "white"
            below.add_patch(Rectangle((x, y), 1, 1, fc=shade, ec="#CCCCCC", lw=0.8))
            size = 9 if len(word) < 8 else 7
            below.text(x + 0.5, y + 0.5, word if lit else "·", ha="center", va="center",
                       fontsize=size, color=DARK)  # fmt: skip
        below.set(xlim=(0, side), ylim=(side, 0), aspect="equal")
        below.set_title(f"· is {common}", fontsize=10)
        above.axis("off"), below.axis("off")
        counts = ", ".join(f"{own.count(word)} {word}" for word in (common, *kinds))
        told.append(f"{title}: {counts}")
    show(figure, f"The nearest word of each of {side} x {side} patches. {'; '.join(told)}.")


def shared(mask: Tensor, tokens: list[str], owner: list[int]) -> None:
    """A mask (s, s): a row for each query, coloured by the question that it belongs to."""
    colours = [GREY, BLUE, ORANGE, GREEN, "#CC79A7"]
    figure, axis = plt.subplots(figsize=(6.6, 6.6), layout="constrained")
    for (row, column), sees in np.ndenumerate(mask.numpy()):
        colour = colours[owner[row] % len(colours)] if sees else "white"
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=colour, ec="#CCCCCC", lw=0.5))
    for place in range(1, len(owner)):
        if owner[place] != owner[place - 1]:
            axis.axhline(place - 0.5, color=DARK, lw=1.2)
            axis.axvline(place - 0.5, color=DARK, lw=1.2)
    size = len(tokens)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axis.set_xticks(range(size), tokens, rotation=90, fontsize=9)
    axis.set_yticks(range(size), tokens, fontsize=9)
    axis.set(xlabel="key", ylabel="query")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    show(
        figure,
        f"""The mask over {" ".join(tokens)}: {int(mask.sum())} of {mask.numel()} squares are
        visible. Below the picture each question's rows are filled at the picture's columns and,
        up to the diagonal, at its own; the squares of other questions are empty.""",
    )


def loss(losses: dict[str, list[float]], window: int = 10) -> None:
    """Training losses on a logarithmic scale, each the mean of `window` steps."""
    figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    told = []
    for (name, curve), colour, style in zip(
        losses.items(), (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=False
    ):
        kept = np.array(curve[: len(curve) // window * window]).reshape(-1, window).mean(axis=1)
        axis.plot(window * (1 + np.arange(len(kept))), kept, style, color=colour, label=name)
        told.append(f"{name}: from {kept[0]:.2f} to {kept[-1]:.2f}")
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9)
    show(figure, f"The loss of the training. {'; '.join(told)}.")
