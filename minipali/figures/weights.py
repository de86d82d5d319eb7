"""Figures of lesson 14: bytes of a file, misread numbers, and what a wrong load does."""

import json

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show

WIDTHS = {"F32": 4, "BF16": 2, "F16": 2}


def file(data: bytes, columns: int = 24) -> None:
    """All bytes of a small safetensors file, with its parts: length, header, each tensor."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    parts = [("header's length", 0, 8, 8, "#F2F2F2"), ("header", 8, 8 + length, 1, "white")]
    shades = ("#CDE6F5", "#FBE3B5", "#C9EBDF")
    for number, (name, entry) in enumerate(header.items()):
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        title = f"{name}: {entry['dtype']} {entry['shape']}"
        parts.append((title, begin, end, WIDTHS[entry["dtype"]], shades[number % 3]))
    rows = -(-len(data) // columns)
    figure, axis = plt.subplots(figsize=(10, 0.42 * rows + 0.9), layout="constrained")
    told = []
    for title, begin, end, width, shade in parts:
        for place in range(begin, end):
            y, x = divmod(place, columns)
            byte = data[place]
            letter = width == 1
            text = chr(byte) if letter else f"{byte:02x}"
            axis.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="#DDDDDD", lw=0.5))
            axis.text(
                x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, family="monospace",
                color=DARK,
            )  # fmt: skip
            # A line where a number begins, and round the part as a whole.
            if (place - begin) % width == 0 and not letter:
                axis.plot([x, x], [y, y + 1], color=DARK, lw=1.2)
        told.append(f"bytes {begin} to {end - 1}: {title}")
        y, x = divmod(begin, columns)
        axis.plot([x, x], [y - 0.08, y + 1.08], color=DARK, lw=3)
    handles = [Rectangle((0, 0), 1, 1, facecolor=shade, edgecolor=GREY) for *_, shade in parts]
    axis.legend(
        handles, [title for title, *_ in parts], loc="upper center", bbox_to_anchor=(0.5, -0.01),
        ncols=4, frameon=False, fontsize=10,
    )  # fmt: skip
    axis.set(xlim=(-0.1, columns + 0.1), ylim=(rows + 0.1, -0.15), xticks=[])
    axis.set_yticks([y + 0.5 for y in range(rows)], [f"{y * columns}" for y in range(rows)])
    axis.tick_params(length=0, labelsize=9)
    axis.set_ylabel("byte")
    axis.spines[:].set_visible(False)
    show(
        figure,
        f"""The {len(data)} bytes of a safetensors file, {columns} in a row. {"; ".join(told)}. The
        header is readable text, the other bytes are shown as hexadecimal numbers; a thick line
        marks where a part begins, a thin one where a number begins.""",
    )


def misread(right: dict[str, Tensor], wrong: dict[str, Tensor]) -> None:
    """bfloat16 read as float16: which number becomes which, and what that does to all weights.

    right, wrong: name -> numbers, before and after.
    """
    figure, (curve, bars) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    true = torch.logspace(-9, 0, 400).bfloat16()
    read = true.view(torch.float16).float()
    true = true.float()
    curve.plot(true, true, "--", color=GREY, lw=1.5)
    curve.plot(true, read, color=BLUE, lw=2)
    curve.text(1e-5, 3e-5, "as it should be", rotation=32, color="#555555", fontsize=9, ha="center")
    curve.text(1e-5, 1.2, "read as float16", color=DARK, fontsize=9, ha="center")
    curve.set(xscale="log", yscale="log", xlabel="the number", ylabel="what is read")
    curve.set(title="one number", ylim=(1e-9, 9))

    before, after = (
        torch.cat([x.flatten() for x in one.values()]).abs().clamp(min=1e-8).log10().numpy()
        for one in (right, wrong)
    )
    edges = np.linspace(-6, 1, 57)
    heights = [np.histogram(x, edges)[0] / len(x) for x in (before, after)]
    style = {"lw": 2, "baseline": 0}
    bars.stairs(heights[0], edges, color=GREY, fill=True, alpha=0.5, label="as stored")
    bars.stairs(heights[1], edges, color=BLUE, label="read as float16", **style)
    bars.set_xticks(range(-6, 2, 2), [f"$10^{{{e}}}$" for e in range(-6, 2, 2)])
    bars.set(xlabel="size of a weight", ylabel="share of all weights", title="all weights")
    bars.legend(loc="upper left", frameon=False, fontsize=9)
    for axis in (curve, bars):
        axis.spines[["top", "right"]].set_visible(False)
    middle = [10 ** float(np.median(x)) for x in (before, after)]
    points = [f"{x:g} becomes {torch.tensor(x).bfloat16().view(torch.float16).item():.2f}"
              for x in (1e-8, 1e-4, 1e-2, 1.0)]  # fmt: skip
    show(
        figure,
        f"""Left, numbers stored as bfloat16 against what is read as float16, on logarithmic axes:
        a line that is nearly flat, {"; ".join(points)}. Right, sizes of all weights: half of them
        are below {middle[0]:.2g} as stored, and below {middle[1]:.2g} as read.""",
    )


def damage(scores: dict[str, Tensor], said: dict[str, str], right: int) -> None:
    """Share of right answers for each way of loading, and what the model says about one picture.

    scores: name -> marks (questions,) from 0 to 1; right: how many of the first are no mistakes.
    """
    figure, axis = plt.subplots(figsize=(10, 0.52 * len(scores) + 1), layout="constrained")
    told = []
    for place, (name, marks) in enumerate(scores.items()):
        share = 100 * marks.mean().item()
        good = place < right
        axis.barh(
            place, share, height=0.6, color=GREEN if good else ORANGE,
            edgecolor=DARK, lw=0.8, hatch=None if good else "//",
        )  # fmt: skip
        words = said[name].strip()
        words = words if len(words) <= 40 else words[:39] + "…"
        axis.text(share + 1.5, place, f"{share:.0f} %", va="center", fontsize=10, fontweight="bold")
        axis.text(106, place, f"“{words}”", va="center", fontsize=10)
        told.append(f"{name}: {share:.0f} %, says {words!r}")
    axis.set_yticks(range(len(scores)), scores)
    axis.invert_yaxis()
    axis.set(xlim=(0, 180), xticks=[0, 25, 50, 75, 100])
    axis.set_xlabel("right answers in %", loc="left")
    axis.text(106, -0.75, "caption of the picture with a dog and a car:", fontsize=9, color=DARK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines["bottom"].set_bounds(0, 100)
    show(
        figure,
        f"""Right answers to {len(next(iter(scores.values())))} questions for each way of loading,
        and the caption of a picture with a dog and a car. {"; ".join(told)}.""",
    )


def differences(curves: dict[str, dict[str, float]], tolerance: float) -> None:
    """Difference between two models, layer by layer, in the order of computing.

    curves: name -> layer -> size of the difference / size of the output. The first layer beyond the
    tolerance is marked and named.
    """
    figure, axis = plt.subplots(figsize=(10, 3.9), layout="constrained")
    least = 1e-8
    names = list(next(iter(curves.values())))
    colours = zip((GREEN, ORANGE, BLUE), ("-", "--", ":"), strict=True)
    told = []
    for (title, found), (colour, style) in zip(curves.items(), colours, strict=False):
        values = [max(found[name], least) for name in names]
        axis.plot(range(len(names)), values, style, color=colour, lw=2.2, label=title)
        bad = next((name for name in names if found[name] > tolerance), None)
        if bad is None:
            told.append(f"{title}: at most {max(found.values()):.1g}, no layer is beyond")
            continue
        place = names.index(bad)
        axis.plot([place], [values[place]], "o", color=colour, ms=9, mec=DARK, zorder=3)
        # In the middle above its point: to the right, lines that leave later would cross it.
        axis.annotate(
            bad, (place, values[place]), (5, 9), textcoords="offset points", fontsize=9,
            ha="center" if place < 0.85 * len(names) else "right", va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
        told.append(f"{title}: first beyond it is {bad} with {found[bad]:.1g}")
    axis.axhline(tolerance, color=GREY, lw=1)
    axis.text(len(names) - 1, tolerance, f"tolerance {tolerance:g}", fontsize=9, va="bottom",
              ha="right", color="#555555")  # fmt: skip
    start = next(i for i, name in enumerate(names) if name.startswith("language_model"))
    axis.axvline(start - 0.5, color=GREY, lw=1, ls=":")
    for x, text, side in ((start - 1.5, "vision tower, projector", "right"),
                          (start + 0.5, "decoder", "left")):  # fmt: skip
        axis.text(x, 2 * least, text, ha=side, va="bottom", fontsize=10)
    axis.set(yscale="log", ylim=(least / 2, 40), xlim=(-1, len(names)))
    axis.set_yticks([least, 1e-6, 1e-4, 1e-2, 1], ["0", "1e-6", "1e-4", "0.01", "1"])
    axis.set(xlabel="layer, in the order of computing", ylabel="difference / output")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    show(
        figure,
        f"""Difference from transformers in each of {len(names)} layers, in the order of computing,
        on a logarithmic axis with a line at {tolerance:g}. {"; ".join(told)}.""",
    )
