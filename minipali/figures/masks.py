"""Figures of lesson 16: masks as codes of a codebook, and masks in a picture."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show
from minipali.figures.locations import outlined_box


def tiles(dictionary: Tensor, used: Tensor) -> None:
    """The entries of a dictionary of patches (v, y, x) from 0 to 1, the most used ones first."""
    columns = 16
    rows = -(-len(dictionary) // columns)
    side = dictionary.shape[-1]
    wall = np.full((rows * (side + 1) + 1, columns * (side + 1) + 1, 3), 0.75)
    wall[..., 0], wall[..., 2] = 0.55, 0.9  # a tinted mortar, neither black nor white
    for place, entry in enumerate(used.argsort(descending=True).tolist()):
        y, x = (1 + (side + 1) * step for step in divmod(place, columns))
        wall[y : y + side, x : x + side] = 1 - 0.9 * dictionary[entry].numpy()[..., None]
    figure, axis = plt.subplots(figsize=(9.5, 9.5 * wall.shape[0] / wall.shape[1]))
    axis.imshow(wall)
    axis.axis("off")
    most = used.max().item() / used.sum().item()
    show(
        figure,
        f"""The {len(dictionary)} tiles of the codebook as pictures of {side} x {side} pixels,
        dark inside the object: all dark, all light, straight and slanting edges, corners, thin
        lines. The most used one is {most:.0%} of all; {int((used == 0).sum())} are never used.""",
    )


def redrawn(rows: dict[str, Tensor], true: Tensor, overlaps: dict[str, Tensor]) -> None:
    """Masks bool (b, y, x) in rows, the true ones above, each with its overlap."""
    figure, axes = plt.subplots(
        1 + len(rows), len(true), figsize=(1.22 * len(true) + 0.5, 1.42 * (1 + len(rows)) + 0.3),
        layout="constrained",
    )  # fmt: skip
    told = []
    for line, (name, masks) in zip(axes, {"true": true, **rows}.items(), strict=True):
        for axis, mask, whole, column in zip(line, masks, true, range(len(true)), strict=True):
            picture = np.ones((*mask.shape, 3))
            picture[(mask & whole).numpy()] = (0.2, 0.2, 0.2)
            for wrong, colour in ((mask & ~whole, ORANGE), (~mask & whole, BLUE)):
                picture[wrong.numpy()] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("#CCCCCC")
            if name in overlaps:
                axis.set_title(f"{overlaps[name][column]:.2f}", fontsize=10, pad=2)
        line[0].set_ylabel(name, fontsize=10)
        if name in overlaps:
            listed = ", ".join(f"{value:.2f}" for value in overlaps[name].tolist())
            told.append(f"{name}: {listed}")
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=colour) for colour in ((0.2, 0.2, 0.2), ORANGE, BLUE)
    ]
    figure.legend(
        handles, ["right", "too much", "missing"], loc="outside lower center", ncols=3,
        frameon=False, fontsize=10,
    )  # fmt: skip
    show(
        figure,
        f"""Outlines of {len(true)} drawings by an artist that nothing was trained on, and the same
        redrawn in several ways; orange is too much, blue is missing. Overlaps:
        {"; ".join(told)}.""",
    )


def learning(curve: dict[int, float], lines: dict[str, float]) -> None:
    """Overlap on held-out drawings by step of training, and what other ways reach."""
    figure, axis = plt.subplots(figsize=(9.5, 3.2), layout="constrained")
    steps, values = list(curve), list(curve.values())
    name = f"codec that learns: {values[-1]:.2f}"
    axis.plot(steps, values, "o-", color=BLUE, lw=2, ms=5, label=name)
    styles = ((GREEN, "--"), (ORANGE, "-."), (GREY, ":"))
    for (name, value), (colour, style) in zip(lines.items(), styles, strict=True):
        axis.axhline(value, color=colour, lw=2, ls=style, label=f"{name}: {value:.2f}")
    axis.legend(  # beside the lines, so that none crosses it
        loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11, handlelength=3.5
    )
    axis.set(xlabel="step", ylabel="mask IoU, new drawings", ylim=(0.6, 0.97))
    axis.spines[["top", "right"]].set_visible(False)
    listed = "; ".join(f"{name} {value:.2f}" for name, value in lines.items())
    show(
        figure,
        f"""Mask IoU of redrawn and true outlines by the held-out artist while the codec learns,
        over {steps[-1]} steps: from {values[0]:.2f} to {values[-1]:.2f}. For comparison:
        {listed}.""",
    )


def neighbours(mask: Tensor, codes: Tensor, changes: dict[int, Tensor]) -> None:
    """A decoded mask with its codes, and which pixels change when one code is another.

    mask: bool (y, x); codes: (16,); changes: place of the code that was exchanged -> bool (others,
    y, x), where each other code changes the mask.
    """
    side = mask.shape[-1]
    step, grid = side / 4, np.arange(0, side + 1, side / 4) - 0.5
    figure, axes = plt.subplots(
        1, 1 + len(changes), figsize=(2.75 * (1 + len(changes)), 3.3), layout="constrained"
    )
    told = []
    axes[0].imshow(mask, cmap="Greys", vmin=0, vmax=1.6)
    for number, code in enumerate(codes.tolist()):
        y, x = divmod(number, 4)
        axes[0].text(
            (x + 0.5) * step - 0.5, (y + 0.5) * step - 0.5, code, ha="center", va="center",
            fontsize=10, color=DARK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85},
        )  # fmt: skip
    axes[0].set_title("the 16 words", fontsize=11)
    for axis, (place, changed) in zip(axes[1:], changes.items(), strict=True):
        share = changed.float().mean(dim=0)
        shading = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axis.contour(mask, levels=[0.5], colors=DARK, linewidths=1.2)
        y, x = (int(step * part) for part in divmod(place, 4))
        axis.add_patch(
            Rectangle((x - 0.5, y - 0.5), step, step, fill=False, edgecolor=ORANGE, lw=3)
        )
        outside = changed.clone()
        outside[:, y : y + int(step), x : x + int(step)] = False
        own = changed[:, y : y + int(step), x : x + int(step)].flatten(1).any(dim=1).sum()
        far = outside.flatten(1).any(dim=1).sum()
        axis.set_title(f"in the frame: {own} of {len(changed)}\noutside: {far}", fontsize=11)
        told.append(
            f"Row {y // int(step)}, column {x // int(step)}: {own} of {len(changed)} other words"
            f" change pixels in the frame, {far} change pixels outside, at most"
            f" {changed.flatten(1).sum(dim=1).max()} pixels in all."
        )
    for axis in axes:
        for line in grid[1:-1]:
            axis.axhline(line, color=GREY, lw=0.6)
            axis.axvline(line, color=GREY, lw=0.6)
        axis.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
        axis.spines[:].set_color("#CCCCCC")
    bar = figure.colorbar(shading, ax=axes, shrink=0.75, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["no word", "half of them", "all words"], fontsize=9)
    bar.outline.set_visible(False)
    show(
        figure,
        f"""A decoded outline with the numbers of its 16 words on a grid of 4 x 4:
        {codes.tolist()}. Beside it, one word (framed) is exchanged for each of the others; the
        shading says how many of them change a pixel. {" ".join(told)}""",
    )


def in_picture(picture: Image.Image, found: list[tuple], values: list[float]) -> None:
    """A picture beside the same with masks (tinted, outlined) and boxes: (name, box, mask)."""
    height = 4.9 * picture.height / picture.width + 0.1
    figure, axes = plt.subplots(1, 2, figsize=(10, height), layout="constrained")
    axes[0].imshow(picture)
    told = []
    for (name, box, mask), value, colour in zip(found, values, (BLUE, ORANGE, GREEN), strict=False):
        axes[1].contour(mask, levels=[0.5], colors="black", linewidths=4)
        axes[1].contour(mask, levels=[0.5], colors="white", linewidths=1.8)
        tint = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        layer = np.zeros((*mask.shape, 4))
        layer[mask] = (*tint, 0.55)
        axes[1].imshow(layer)
        outlined_box(axes[1], box, "white", ":", 1.5)
        y0, x0, _, _ = box
        axes[1].text(
            x0 + 4, y0 + 4, f"{name} {value:.2f}", color="white", va="top", fontsize=10,
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
        told.append(f"{name}: {mask.sum():,} pixels, overlap with the true outline {value:.2f}")
    axes[1].imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=0, vmax=255, zorder=-1)
    for axis in axes:
        axis.set(xlim=(0, picture.width), ylim=(picture.height, 0))
        axis.axis("off")
    show(
        figure,
        f"""A picture of {picture.width} x {picture.height} pixels, and the same in grey with boxes
        and outlines that were read from tokens. {"; ".join(told)}.""",
    )
