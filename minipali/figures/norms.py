"""Figures of lesson 02: what the norms average over, and what they do to training."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show
from minipali.hooks import watch
from minipali.norms import RMSNorm


def axes(x: Tensor) -> None:
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


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def sizes_by_layer(sizes: dict[float, list[float]]) -> None:
    """Standard deviation of what each layer gives, a line for each size of the first weights."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for (size, values), colour, marker in zip(
        sizes.items(), (BLUE, GREEN, ORANGE), "osD", strict=True
    ):
        layers = range(1, len(values) + 1)
        axis.plot(layers, values, color=colour, marker=marker, lw=2, label=f"first weights {size}")
        axis.annotate(
            _short(values[-1]), (len(values), values[-1]), (8, 0), textcoords="offset points",
            va="center", fontsize=10,
        )  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)  # the labels stand where the frame would be
    axis.set(yscale="log", xlabel="layer", ylabel="standard deviation of its output")
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    told = "; ".join(
        f"first weights {size}: {_short(values[0])} in layer 1, {_short(values[-1])} in the last"
        for size, values in sizes.items()
    )
    show(figure, f"Three lines, the size of each layer's numbers on a logarithmic axis. {told}.")


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


def scales(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Sizes of what enters and leaves each norm of a PaliGemma, in the order of computing."""
    names, rows = [], []

    def keep(name, given, output):
        names.append(name)
        mean = given[0].float().mean(dim=-1).square().mean().sqrt()
        before, after = (x.float().square().mean().sqrt() for x in (given[0], output))
        rows.append((before.item(), after.item(), mean.item()))

    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.LayerNorm, RMSNorm))]
    with torch.no_grad(), watch(norms, keep):
        model(**batch)
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


def training(runs: dict[str, dict], every: int) -> None:
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
