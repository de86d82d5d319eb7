"""Figures of lesson 01: patches and their places."""

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from torch import Tensor

from minipali.figures.common import DARK, as_picture, show


def grid(pixels: Tensor, patch_size: int, alt: str) -> None:
    """A picture, cut by a grid, beside its patches pulled apart and numbered in reading order."""
    picture = as_picture(pixels)
    side = picture.shape[0] // patch_size
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
    left.imshow(picture)
    left.set_xticks(np.arange(0, picture.shape[1] + 1, patch_size) - 0.5, [])
    left.set_yticks(np.arange(0, picture.shape[0] + 1, patch_size) - 0.5, [])
    left.grid(color="black", lw=2)
    left.grid(color="white", lw=0.8)
    left.tick_params(length=0)
    left.set_title(f"{picture.shape[1]} x {picture.shape[0]} pixels, cut")
    gap = patch_size // 2
    apart = np.ones((side * (patch_size + gap) + gap, side * (patch_size + gap) + gap, 3))
    for row in range(side):
        for column in range(side):
            y, x = gap + row * (patch_size + gap), gap + column * (patch_size + gap)
            block = picture[
                row * patch_size : (row + 1) * patch_size,
                column * patch_size : (column + 1) * patch_size,
            ]
            apart[y : y + patch_size, x : x + patch_size] = block
            right.text(
                x, y - 1, str(row * side + column), fontsize=7, color=DARK, va="bottom", ha="left"
            )
    right.imshow(apart)
    right.set_title(f"{side * side} patches of {patch_size} x {patch_size}, in reading order")
    right.axis("off")
    show(figure, alt)


def rows(rows: Tensor, patch_size: int, titles: list[str], alt: str) -> None:
    """Flat patches (n, 3 * p * p) in [-1, 1], drawn again as little pictures, one row a list."""
    figure, axes = plt.subplots(1, len(rows), figsize=(1.15 * len(rows), 1.7), squeeze=False)
    for axis, row, title in zip(axes.flat, rows, titles, strict=True):
        block = rearrange(row, "(c py px) -> c py px", py=patch_size, px=patch_size)
        axis.imshow(as_picture(block))
        axis.set_title(title, fontsize=9)
        axis.set(xticks=[], yticks=[])
    show(figure, alt)


def position_similarity(table: Tensor, alt: str, chosen: tuple[int, ...] | None = None) -> None:
    """Cosine of a few places' position vectors with all others, each as a map of the picture."""
    side = int(len(table) ** 0.5)
    middle = (side // 2) * side + side // 2
    chosen = chosen or (0, side - 1, middle, (side - 1) * side)
    unit = (table / table.norm(dim=1, keepdim=True)).detach().float()
    figure, axes = plt.subplots(1, len(chosen), figsize=(9, 2.6), layout="constrained")
    for axis, place in zip(axes, chosen, strict=True):
        cosine = rearrange(unit @ unit[place], "(ny nx) -> ny nx", ny=side)
        drawn = axis.imshow(cosine, cmap="cividis", vmin=-1, vmax=1)
        axis.scatter(place % side, place // side, marker="x", color="black", s=60)
        axis.set(title=f"place {place}", xlabel="column", xticks=range(side), yticks=range(side))
    axes[0].set_ylabel("row")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="cosine")
    show(figure, alt)
