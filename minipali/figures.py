"""Every figure of the lessons. Each function draws, shows and describes one.

A figure reaches the notebook with its alt text, so that a screen reader, and whoever reads the
notebook as text, gets what it shows. Colours are from Okabe and Ito's set, which colour-blind
readers can tell apart, and never carry a meaning alone.
"""

import base64
import html
import io
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor, nn

from minipali.config import PaliGemmaConfig

BLUE, ORANGE, GREEN, GREY, DARK = "#0072B2", "#E69F00", "#009E73", "#999999", "#222222"
DPI = 80


def show(figure: Figure, alt: str) -> None:
    """Display a figure with its alt text, and close it."""
    from IPython.display import display

    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    alt, png = " ".join(alt.split()), held.getvalue()
    # JupyterLab puts no alt text on a PNG, but keeps that of an HTML image; the PNG itself is for
    # viewers that show no HTML.
    data = base64.b64encode(png).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
    display(
        {"text/html": image, "image/png": data, "text/plain": f"Figure: {alt}"},
        metadata={"image/png": {"alt": alt}},
        raw=True,
    )


def as_picture(pixels: Tensor) -> np.ndarray:
    """(3, y, x) in [-1, 1] -> (y, x, 3) in [0, 1], for drawing."""
    return rearrange(pixels.detach().float(), "c y x -> y x c").add(1).div(2).clamp(0, 1).numpy()


def model_map(lit: str, config: PaliGemmaConfig) -> None:
    """The whole model as boxes with its real sizes; the part of this lesson is lit.

    lit: "patches", "vision", "projector", "tokens", "decoder", "head", or "all".
    """
    v, t = config.vision, config.text
    side = v.image_size // v.patch_size
    depth = f"{v.num_hidden_layers} layers\nwidth {v.hidden_size}"
    decoder = f"{t.num_hidden_layers} layers\nwidth {t.hidden_size}"
    boxes = [  # key, left, bottom, width, text
        ("picture", 0.0, 2.2, 1.7, f"picture\n{v.image_size} x {v.image_size} px"),
        ("patches", 2.3, 2.2, 2.5, f"patch embedding\n{side} x {side} = {v.num_patches}\npatches"),
        ("vision", 5.4, 2.2, 2.2, f"vision tower\n{depth}"),
        ("projector", 8.2, 2.2, 1.9, f"projector\n{v.hidden_size} to\n{t.hidden_size}"),
        ("question", 0.0, 0.0, 1.7, "question\nas text"),
        ("tokens", 2.3, 0.0, 2.5, f"tokens\ntable of\n{t.vocab_size:,} rows"),
        ("decoder", 10.8, 1.1, 2.5, f"Gemma decoder\n{decoder}"),
        ("head", 13.9, 1.1, 1.7, "head:\nnext\ntoken"),
    ]
    figure, axes = plt.subplots(figsize=(10, 2.6))
    centre = {}
    h = 1.35
    for key, x, y, w, text in boxes:
        on = lit in (key, "all") and key not in ("picture", "question")
        axes.add_patch(
            FancyBboxPatch(
                (x, y),
                w,
                h,
                boxstyle="round,pad=0.04",
                linewidth=3 if on else 1,
                edgecolor=BLUE if on else GREY,
                facecolor="#CDE6F5" if on else "white",
            )  # fmt: skip
        )
        axes.text(
            x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9,
            color=DARK if on or lit == "all" else "#555555",
        )  # fmt: skip
        centre[key] = (x, x + w, y + h / 2)
    arrows = [("picture", "patches"), ("patches", "vision"), ("vision", "projector"),
              ("projector", "decoder"), ("question", "tokens"), ("tokens", "decoder"),
              ("decoder", "head")]  # fmt: skip
    for a, b in arrows:
        axes.annotate(
            "", (centre[b][0] - 0.08, centre[b][2]), (centre[a][1] + 0.08, centre[a][2]),
            arrowprops={"arrowstyle": "->", "color": DARK, "lw": 1.3},
        )  # fmt: skip
    axes.set(xlim=(-0.2, 15.8), ylim=(-0.2, 3.7), aspect="equal")
    axes.axis("off")
    told = "Every part is lit." if lit == "all" else f"Lit in this lesson: {lit}."
    show(
        figure,
        f"""Map of PaliGemma. A picture of {v.image_size} pixels goes through the patch embedding
        ({v.num_patches} patches), the vision tower ({v.num_hidden_layers} layers) and the
        projector; a question becomes tokens. Both enter the Gemma decoder ({t.num_hidden_layers}
        layers), whose head gives the next token. {told}""",
    )


def pictures(images: list, titles: list[str], alt: str, columns: int = 4) -> None:
    """Pictures side by side with a line of text under each; long lines are wrapped."""
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    figure, axes = plt.subplots(rows, columns, figsize=(2.5 * columns, 2.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image if isinstance(image, Image.Image) else np.asarray(image))
        axis.set_title("\n".join(textwrap.wrap(title, 26)), fontsize=10, y=-0.08, va="top")
    show(figure, alt)


def boxes(image: Image.Image, found: list[tuple[str, tuple]], alt: str) -> None:
    """A picture with named boxes (y0, x0, y1, x1) in its pixels."""
    figure, axis = plt.subplots(figsize=(3.4, 3.4))
    axis.imshow(image)
    for name, (y0, x0, y1, x1) in found:
        for colour, width in (("black", 4), ("white", 2)):
            axis.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=width)
            )
        axis.text(
            x0, y0 - 3, name, color="white", fontsize=10, va="bottom",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axis.axis("off")
    show(figure, alt)


def patch_grid(pixels: Tensor, patch_size: int, alt: str) -> None:
    """A picture, cut by a grid, beside its patches pulled apart and numbered in reading order."""
    picture = as_picture(pixels)
    side = picture.shape[0] // patch_size
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4))
    left.imshow(picture)
    left.set_xticks(np.arange(0, picture.shape[1] + 1, patch_size) - 0.5, [])
    left.set_yticks(np.arange(0, picture.shape[0] + 1, patch_size) - 0.5, [])
    left.grid(color="black", lw=2)
    left.grid(color="white", lw=0.8)
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


def patch_rows(rows: Tensor, patch_size: int, titles: list[str], alt: str) -> None:
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
        axis.scatter(place % side, place // side, marker="x", color="white", s=60)
        axis.set(title=f"place {place}", xlabel="column", xticks=range(side), yticks=range(side))
    axes[0].set_ylabel("row")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="cosine")
    show(figure, alt)


def training_curve(lines: list[dict]) -> Figure:
    """Loss and accuracy over the steps of a training log; the caller saves or shows the figure."""
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure, axes = plt.subplots(
        2, len(stages), figsize=(5 * len(stages), 7), layout="constrained", squeeze=False
    )
    colours = [BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", DARK]
    for column, stage in enumerate(stages):
        of_stage = [line for line in lines if line["stage"] == stage]
        top, bottom = axes[:, column]
        top.plot(
            [line["step"] for line in of_stage], [line["loss"] for line in of_stage], color=DARK
        )
        top.set(title=f"{stage} stage", ylabel="loss", yscale="log")
        measured = [line for line in of_stage if any(key.startswith("training ") for key in line)]
        keys = measured[-1] if measured else {}
        tasks = [key.removeprefix("training ") for key in keys if key.startswith("training ")]
        for colour, task in zip(colours, tasks, strict=False):
            for group, style in (("training", "-"), ("validation", "--")):
                bottom.plot(
                    [line["step"] for line in measured],
                    [100 * line[f"{group} {task}"] for line in measured],
                    style, color=colour, label=task if group == "training" else None,
                )  # fmt: skip
        bottom.set(xlabel="step", ylabel="right answers in %", ylim=(0, 101))
        if tasks:
            bottom.legend(
                fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4,
                title="solid: training artists, dashed: validation artist", title_fontsize=8,
            )  # fmt: skip
    return figure


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


def attention_tables(tables: dict[str, Tensor], words: list[str]) -> None:
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


def attention_over_picture(
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


def norm_axes(x: Tensor) -> None:
    """A few tokens (b, n, d) as a table, three times: which numbers share their statistics."""
    b, n, d = x.shape
    groups = {
        "BatchNorm\none feature, all tokens of all pictures": (slice(None), 1),
        "LayerNorm\none token, all its features": (1, slice(None)),
        "RMSNorm\none token, all its features": (1, slice(None)),
    }
    figure, axes = plt.subplots(1, 3, figsize=(10, 4.2), layout="constrained")
    table = rearrange(x, "b n d -> (b n) d")
    heights = [row + 0.5 * (row // n) for row in range(b * n)]  # a gap between the pictures
    told = []
    for axis, (title, group) in zip(axes, groups.items(), strict=True):
        inside = torch.zeros(b * n, d, dtype=torch.bool)
        inside[group] = True
        for row, height in enumerate(heights):
            for column in range(d):
                on = bool(inside[row, column])
                axis.add_patch(
                    Rectangle(
                        (column, height), 1, 1, facecolor="#CDE6F5" if on else "white",
                        edgecolor=BLUE if on else GREY, lw=2.5 if on else 0.8, zorder=2 + on,
                    )
                )  # fmt: skip
                axis.text(
                    column + 0.5, height + 0.5, f"{table[row, column]:g}", ha="center",
                    va="center", weight="bold" if on else "normal", color=DARK, zorder=4,
                )  # fmt: skip
        held = table[inside]
        told.append(f"mean {held.mean():.2f}, standard deviation {held.std(correction=0):.2f}")
        if title.startswith("RMSNorm"):
            told[-1] = f"root mean square {held.square().mean().sqrt():.2f}"
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"features\n{told[-1]}", fontsize=10)
        axis.set(xlim=(-0.1, d + 0.1), ylim=(heights[-1] + 1.1, -0.1), aspect="equal", xticks=[])
        middles = [heights[i * n] + n / 2 for i in range(b)]
        axis.set_yticks(middles, [f"picture {i}\n({n} tokens)" for i in range(b)], fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    show(
        figure,
        f"""Three times the same table of {b * n} tokens, in {b} pictures, with {d} features each.
        BatchNorm: a column is marked, one feature of all tokens of all pictures ({told[0]}).
        LayerNorm and RMSNorm: a row is marked, the {d} features of one token ({told[1]};
        {told[2]}).""",
    )


def batch_size_spread(outputs: dict[int, Tensor], lines: dict[str, float]) -> None:
    """What one number becomes in many batches, a dot for each, by batch size; others as lines."""
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for place, values in enumerate(outputs.values()):
        across = np.linspace(-0.3, 0.3, len(values))
        axis.plot(place + across, values.detach().numpy(), ".", color=BLUE, ms=3)
    for (name, value), style in zip(lines.items(), ("-", "--"), strict=False):
        axis.axhline(value, color=ORANGE if style == "-" else DARK, linestyle=style, label=name)
    axis.plot([], [], "o", color=BLUE, ms=3, label="BatchNorm in training")
    axis.set_xticks(range(len(outputs)), list(map(str, outputs)))
    axis.set(xlabel="pictures in the batch", ylabel="one number, normalised")
    axis.legend(fontsize=9, loc="upper right", bbox_to_anchor=(1.02, 1.16), frameon=False, ncols=3)
    ends = "; ".join(
        f"{size} pictures: {values.min():.1f} to {values.max():.1f}"
        for size, values in outputs.items()
    )
    show(
        figure,
        f"""One number of one picture after BatchNorm in many random batches. The dots close in as
        the batch grows ({ends}). Two level lines do not depend on the batch:
        {", ".join(f"{name} at {value:.2f}" for name, value in lines.items())}.""",
    )


def norm_scales(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Sizes of what enters and leaves each norm of a PaliGemma, in the order of computing."""
    names, rows, hooks = [], [], []
    for name, module in model.named_modules():
        if type(module).__name__ not in ("LayerNorm", "RMSNorm"):
            continue

        def keep(_module, inputs, output, name=name):
            names.append(name)
            mean = inputs[0].float().mean(dim=-1).square().mean().sqrt()
            before, after = (x.float().square().mean().sqrt() for x in (inputs[0], output))
            rows.append((before.item(), after.item(), mean.item()))

        hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    split = sum(name.startswith("vision_tower") for name in names)
    before, after, mean = (np.array(column) for column in zip(*rows, strict=True))
    figure, axis = plt.subplots(figsize=(8, 3.6))
    for values, colour, marker, label in (
        (before, ORANGE, "o", "enters the norm: RMS"),
        (mean, DARK, "x", "enters the norm: mean of a token"),
        (after, BLUE, "s", "leaves the norm: RMS"),
    ):
        for part in (slice(0, split), slice(split, None)):
            axis.plot(
                np.arange(1, len(values) + 1)[part], values[part], marker=marker, color=colour,
                label=label if part.start == 0 else None,
            )  # fmt: skip
    axis.axvline(split + 0.5, color=GREY, lw=1, linestyle=":")
    top = 1.05 * before.max()
    for place, text in (((split + 1) / 2, "vision tower: LayerNorm"),
                        ((split + len(names) + 1) / 2, "decoder: RMSNorm")):  # fmt: skip
        axis.text(place, top, text, ha="center", va="bottom")
    axis.set(xlabel="number of the norm, in the order of computing", ylabel="size", ylim=(0, top))
    axis.set_xticks(range(1, len(names) + 1))
    axis.legend(frameon=False, loc="upper left", fontsize=9)
    ends = [f"{v[0]:.1f} to {v[split - 1]:.1f} in the vision tower, {v[split]:.1f} to {v[-1]:.1f}"
            " in the decoder" for v in (before, after)]  # fmt: skip
    show(
        figure,
        f"""Root mean square before and after each of {len(names)} norms. What enters goes from
        {ends[0]}. What leaves goes from {ends[1]}. The mean of a token is at most
        {mean[:split].max():.2f} in the vision tower, {mean[split:].max():.2f} in the decoder.""",
    )


NORM_STYLES = {  # colour, line, marker: a network keeps its own in all figures
    "none": (DARK, "-", "o"),
    "BatchNorm": (BLUE, "--", "s"),
    "LayerNorm": (ORANGE, "-.", "^"),
    "BatchNorm, shaken": ("#D55E00", (0, (1, 1)), "P"),
    "RMSNorm": (GREEN, (0, (5, 1)), "D"),
    "none, torch's start": ("#CC79A7", "-", "v"),
}


def norm_training(runs: dict[str, dict], every: int) -> None:
    """Loss of some runs, and what one feature of each last hidden layer is over the steps.

    runs: name -> {"loss": floats, "seen": (times, examples, d)}; seen each `every` steps.
    """
    figure, (first, *others) = plt.subplots(
        1, 1 + len(runs), figsize=(10, 3.4), layout="constrained",
        width_ratios=[1.4] + [1] * len(runs),
    )  # fmt: skip
    bands = {
        name: [run["seen"][:, :, 0].quantile(q, dim=1) for q in (0.15, 0.5, 0.85)]
        for name, run in runs.items()
    }
    limit = 1.05 * max(line.abs().max().item() for band in bands.values() for line in band)
    for axis, (name, run) in zip(others, runs.items(), strict=True):
        colour, style, _ = NORM_STYLES[name]
        smooth = np.convolve(run["loss"], np.ones(20) / 20, "valid")
        first.plot(np.arange(len(smooth)) + 19, smooth, color=colour, ls=style, label=name, lw=2)
        low, middle, high = bands[name]
        steps = np.arange(len(middle)) * every
        axis.fill_between(steps, low, high, color="#9DCBE8")
        axis.plot(steps, middle, color=DARK, lw=1.2)
        axis.set(xlabel="step", title=name, ylim=(-limit, limit))
        axis.title.set_fontsize(11)
        if axis is not others[0]:
            axis.set_yticklabels([])
    others[0].set_ylabel("one feature, last hidden layer")
    first.set(xlabel="step", title="loss (mean of 20 steps)", ylim=(0, None))
    first.legend(fontsize=9, frameon=False, loc="lower left")
    told = "; ".join(
        f"{name}: loss {np.mean(run['loss'][-20:]):.1f} at the end, median from"
        f" {bands[name][1].min():.1f} to {bands[name][1].max():.1f}"
        for name, run in runs.items()
    )
    show(
        figure,
        f"""Left: the loss of {len(runs)} networks over the steps. Right, for each: the median of
        one feature over the pictures, with a band that holds the middle 70 percent.
        {told}.""",
    )


def loss_by_rate(losses: dict[str, dict[float, float]], guessing: float) -> None:
    """Loss at the end against the learning rate, a line for each network.

    guessing: the loss of a network that knows nothing. A loss that is no number is drawn above.
    """
    figure, axis = plt.subplots(figsize=(7.5, 3.8))
    top = 1.08 * guessing
    for name, by_rate in losses.items():
        colour, style, marker = NORM_STYLES[name]
        rates = list(by_rate)
        drawn = [value if np.isfinite(value) else top for value in by_rate.values()]
        axis.plot(rates, drawn, ls=style, color=colour, marker=marker, lw=2, label=name)
        for rate, value in by_rate.items():
            if not np.isfinite(value):
                axis.annotate(
                    "blew up", (rate, top), (-8, 0), textcoords="offset points", ha="right",
                    va="center", fontsize=9, color=colour,
                )  # fmt: skip
    axis.axhline(guessing, color=GREY, lw=1)
    axis.text(rates[0], guessing * 1.01, "guessing", va="bottom", fontsize=9, color="#555555")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss at the end")
    axis.set_ylim(top=1.03 * top)
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.minorticks_off()
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    told = "; ".join(
        f"{name}: {', '.join(f'{value:.1f}' for value in by_rate.values())}"
        for name, by_rate in losses.items()
    ).replace("nan", "not a number")
    show(
        figure,
        f"""Loss at the end of training against the learning rates
        {", ".join(f"{rate:g}" for rate in rates)}. Guessing has {guessing:.1f}. {told}.""",
    )
