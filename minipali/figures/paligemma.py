"""Figures of lesson 11: one row of two kinds of tokens, masks, scales, and what mistakes cost."""

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, as_picture, show
from minipali.tokens import Processor


def _spoken(token: str) -> str:
    """A token as it stands under a figure: without the sign for a space, the newline visible."""
    return {"<image>": "img", "\n": "\\n", "<0x0A>": "\\n"}.get(token, token.replace("▁", ""))


def rows(processor: Processor, batch: dict[str, Tensor]) -> None:
    """The rows of a batch as the decoder gets them: patches, words, and padding (hatched)."""
    config = processor.config
    side = config.vision.image_size // config.vision.patch_size
    number, length = batch["input_ids"].shape
    figure, axes = plt.subplots(number, 1, figsize=(10.5, 1.05 * number), squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, hspace=0.05)
    told = []
    for axis, pixels, ids, is_real in zip(
        axes[:, 0], batch["pixel_values"], batch["input_ids"].tolist(),
        batch["attention_mask"].tolist(), strict=True,
    ):  # fmt: skip
        patches = rearrange(
            as_picture(pixels), "(ny y) (nx x) c -> (ny nx) y x c", ny=side, nx=side
        )
        coming, words = iter(patches), []
        for place, (token, real) in enumerate(zip(ids, is_real, strict=True)):
            look = {"facecolor": "white", "edgecolor": GREY, "lw": 0.8}
            if not real:
                look |= {"facecolor": "#EEEEEE", "hatch": "////"}
            elif token == config.image_token_id:
                axis.imshow(next(coming), extent=(place, place + 1, 0, 1), zorder=2)
                look["facecolor"] = "none"
            else:
                words.append(_spoken(processor.token(token)))
                axis.text(
                    place + 0.5, -0.2, words[-1], rotation=90, ha="center", va="top", fontsize=10
                )
                look["facecolor"] = "#CDE6F5"
            axis.add_patch(Rectangle((place, 0), 1, 1, zorder=3, **look))
        axis.set(xlim=(-0.1, length + 0.1), ylim=(-3.4, 1.1), aspect="equal")
        axis.axis("off")
        told.append(
            f"{is_real.count(0)} places of padding, {side * side} patches, then {' '.join(words)}"
        )
    show(
        figure,
        f"""Rows of {length} tokens each, as the decoder gets them. {". ".join(told)}.""",
    )


def masks(masks: dict[str, Tensor], tokens: list[str]) -> None:
    """Masks (t, s) over the same tokens, the right one last; the others show how they differ."""
    right = list(masks.values())[-1]
    words = [_spoken(token) for token in tokens]
    figure, axes = plt.subplots(
        1, len(masks), figsize=(3.9 * len(masks), 4.4), layout="constrained", squeeze=False
    )
    # Lines between picture and prompt, and between prompt and suffix.
    borders = [tokens.count("<image>") - 0.5, int(right[0].sum()) - 0.5]
    told, places = [], range(len(words))
    for axis, (title, mask) in zip(axes.flat, masks.items(), strict=True):
        for (row, column), sees in np.ndenumerate(mask.numpy()):
            wanted = bool(right[row, column])
            colour = "white" if not sees else BLUE if wanted else ORANGE
            axis.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="#CCCCCC", lw=0.5
                )
            )
            if sees != wanted:
                axis.text(
                    column, row, "×" if sees else "–", ha="center", va="center", color=DARK,
                    fontsize=11,
                )  # fmt: skip
        for border in borders:
            axis.axhline(border, color=DARK, lw=1.2)
            axis.axvline(border, color=DARK, lw=1.2)
        more, less = int((mask & ~right).sum()), int((~mask & right).sum())
        said = f"{int(mask.sum())} of {mask.numel()} visible"
        said += f", {more} too many (×)" if more else f", {less} missing (–)" if less else ""
        told.append(f"{title}: {said}")
        axis.set_title(f"{title}\n{said}", fontsize=10)
        axis.set(xlim=(-0.5, len(words) - 0.5), ylim=(len(words) - 0.5, -0.5), aspect="equal")
        axis.set_xticks(places, words, rotation=90, fontsize=9)
        axis.set_yticks(places, words if axis is axes[0, 0] else [], fontsize=9)
        axis.tick_params(length=0)
        axis.set_xlabel("key")
        axis.spines[:].set_visible(False)
    axes[0, 0].set_ylabel("query")
    show(
        figure,
        f"""Masks over the tokens {" ".join(words)}, a row for each query, a column for each key;
        a filled square may be seen. {". ".join(told)}.""",
    )


def sizes(schemes: dict[str, Tensor], is_image: Tensor) -> None:
    """Typical size (root mean square) of the numbers in each token, one line for each scheme."""
    figure, axis = plt.subplots(figsize=(8.4, 3.6), layout="constrained")
    split = int(is_image.sum())
    styles = ((ORANGE, "^:"), (BLUE, "o-"), (GREEN, "s--"))
    told = []
    for (name, x), (colour, style) in zip(schemes.items(), styles, strict=False):
        size = x.square().mean(dim=-1).sqrt()
        picture, text = size[is_image].mean().item(), size[~is_image].mean().item()
        axis.plot(size, style, color=colour, ms=4, lw=1.2)
        axis.text(0, size[:split].max() * 1.15, f"{name}: {picture:.2g}", fontsize=10, va="bottom")
        told.append(f"{name}: image tokens {picture:.2g}, text tokens {text:.2g}")
    axis.text(split + 0.5, size[split:].max() * 1.3, f"text: {text:.2g}", fontsize=10, va="bottom")
    axis.axvline(split - 0.5, color=GREY, lw=1)
    axis.set_yscale("log")
    axis.set(xlabel="place in the row", ylabel="typical size of a number", ylim=(0.3, 250))
    axis.spines[["top", "right"]].set_visible(False)
    show(
        figure,
        f"""Typical size of the numbers in each token of a row, logarithmic; {split} image tokens,
        then {len(is_image) - split} of text. Means: {"; ".join(told)}.""",
    )


def losses(curves: dict[str, list[float]], chance: float) -> None:
    """Losses over the steps of training, and the loss of guessing: -log(chance)."""
    figure, axis = plt.subplots(figsize=(7, 3.3), layout="constrained")
    honest, told = -np.log(chance), []
    styles = ((BLUE, "-"), (ORANGE, "--"))
    for (name, values), (colour, style) in zip(curves.items(), styles, strict=True):
        smooth = np.convolve(values, np.ones(10) / 10, mode="valid")  # mean of 10 steps
        axis.plot(np.arange(len(smooth)) + 10, smooth, style, color=colour, lw=2)
        middle = len(smooth) * 6 // 10
        axis.annotate(name, (middle + 10, smooth[middle]), (8, 8), textcoords="offset points")
        told.append(f"{name} ends at {smooth[-1]:.2f}")
    axis.axhline(honest, color=GREY, lw=1)
    axis.text(12, honest - 0.07, f"a fair die: {honest:.2f}", va="top", fontsize=10)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, 3), xlim=(0, len(values)))
    axis.spines[["top", "right"]].set_visible(False)
    show(
        figure,
        f"""Loss of two tiny decoders that learn to predict dice, over {len(values)} steps.
        {"; ".join(told)}. Without a look at the answer, {honest:.2f} is the least.""",
    )


def boxes(image: Image.Image, found: dict[str, list[tuple[str, tuple]]]) -> None:
    """One picture several times, each with the named boxes (y0, x0, y1, x1) that a model told."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(3.3 * len(found), 3.7), layout="constrained", squeeze=False
    )
    told = []
    for axis, (title, named) in zip(axes.flat, found.items(), strict=True):
        axis.imshow(image)
        for (name, (y0, x0, y1, x1)), dash in zip(named, ("-", "--", ":"), strict=False):
            for colour, width in (("black", 5), ("white", 2.5)):
                axis.add_patch(
                    Rectangle(
                        (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width, ls=dash
                    )
                )
            axis.text(
                x0 + 4, y1 - 4, name, color="white", fontsize=11, va="bottom",
                bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        places = [
            f"{name} rows {y0:.0f} to {y1:.0f}, columns {x0:.0f} to {x1:.0f}"
            for name, (y0, x0, y1, x1) in named
        ]
        told.append(f"{title}: {'; '.join(places) or 'no box'}")
        axis.set_title(title, fontsize=11)
        axis.axis("off")
    show(
        figure,
        f"""The same picture of {image.width} x {image.height} pixels with the boxes that a model
        told. {". ".join(told)}.""",
    )


def damage(marks: dict[str, Tensor], tasks: list[str]) -> None:
    """Right answers in percent, a row for each variant and a column for each task.

    marks: (task, question) from 0 to 1, the right model first. A frame marks a cell that has lost
    more than 3 standard errors of the difference, question by question.
    """
    shades = LinearSegmentedColormap.from_list("shades", ["white", BLUE])
    figure, axis = plt.subplots(figsize=(10, 0.5 * len(marks) + 1.1), layout="constrained")
    shares = np.stack([values.mean(dim=1).numpy() for values in marks.values()])
    axis.imshow(shares, cmap=shades, vmin=0, vmax=1.3, aspect="auto")
    right, told = next(iter(marks.values())), []
    for row, (name, values) in enumerate(marks.items()):
        lost = right - values
        error = lost.std(dim=1) / lost.shape[1] ** 0.5
        cells = []
        for column, task in enumerate(tasks):
            share, worse = shares[row, column], bool(lost[column].mean() > 3 * error[column])
            axis.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=11,
                color="white" if share > 0.75 else DARK, weight="bold" if worse else "normal",
            )  # fmt: skip
            if worse:
                corner = (column - 0.46, row - 0.44)
                axis.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=ORANGE, lw=2.5))
            cells.append(f"{task} {100 * share:.0f}{' (worse)' if worse else ''}")
        told.append(f"{name}: {', '.join(cells)}")
    axis.set_xticks(range(len(tasks)), [task.replace(" ", "\n") for task in tasks], fontsize=10)
    axis.set_yticks(range(len(marks)), list(marks), fontsize=10)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    show(
        figure,
        f"""Right answers in percent, {right.shape[1]} questions a cell. {". ".join(told)}.""",
    )
