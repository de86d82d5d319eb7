"""Figures of lesson 05: similarities, the two losses, and training with them."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, as_picture, show

STYLES = {"softmax": (BLUE, "o-"), "sigmoid": (ORANGE, "s--")}


def similarity(pictures: Tensor, names: tuple[str, ...], tables: dict[str, Tensor]) -> None:
    """Tables of mean cosines (i, j), one for each title.

    pictures: (i, each, c, y, x), a row's; the one with the most contrast stands beside the row.
    The largest cosine of a row has a frame: thick on the diagonal, where it belongs, else dashed.
    """
    shades = LinearSegmentedColormap.from_list("shades", [ORANGE, "white", BLUE])
    number = len(pictures)
    shown = [own[own.flatten(2).std(dim=2).mean(dim=1).argmax()] for own in pictures]
    figure, axes = plt.subplots(
        1, len(tables), figsize=(5.4 * len(tables), 5.6), layout="constrained", squeeze=False
    )
    told = []
    for axis, (title, scores) in zip(axes.flat, tables.items(), strict=True):
        values = scores.numpy()
        axis.imshow(values, cmap=shades, vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.75 else DARK
            text = f"{value:.1f}".replace("0.", ".").replace("-.0", ".0")
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        best = values.argmax(axis=1)
        for i, j in enumerate(best):
            line = {"lw": 2.5} if i == j else {"lw": 1.5, "ls": "--"}
            axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=DARK, **line))
        right = int((best == np.arange(number)).sum())
        axis.set(title=f"{title}: {right} of {number} rows right", xlim=(-1.75, number - 0.5))
        for i, picture in enumerate(shown):
            axis.imshow(as_picture(picture), extent=(-1.6, -0.65, i + 0.475, i - 0.475))
        axis.set(xlim=(-1.75, number - 0.5), ylim=(number - 0.5, -0.5), yticks=[])
        axis.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor")
        axis.spines[:].set_visible(False)
        diagonal = np.diagonal(values).mean()
        others = (values.sum() - np.trace(values)) / (values.size - number)
        told.append(
            f"{title}: mean {diagonal:.2f} on the diagonal, {others:.2f} elsewhere; the largest of"
            f" a row is on the diagonal in {right} of {number} rows"
        )
    show(
        figure,
        f"""Tables of mean cosines: rows are pictures of {number} objects, columns are the sentences
        of {", ".join(names)}; pictures and sentence of the same object meet on the diagonal.
        {". ".join(told)}.""",
    )


def runs(panels: dict[str, dict[str, list]], chance: float) -> None:
    """Zero-shot accuracy against pictures seen; a panel for each batch size.

    panels: title -> {"softmax" or "sigmoid": runs with `seen` and `accuracies`, one a seed}. Thin
    lines are seeds, thick ones their mean.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 3.7), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    told = []
    for axis, (title, losses) in zip(axes.flat, panels.items(), strict=True):
        for name, seeds in losses.items():
            colour, style = STYLES[name]
            curves = 100 * np.array([run.accuracies for run in seeds])
            seen = seeds[0].seen
            axis.plot(seen, curves.T, style[1:], color=colour, lw=0.8, alpha=0.6)
            axis.plot(seen, curves.mean(axis=0), style, color=colour, lw=2.5, label=name)
            ends = ", ".join(f"{end:.0f}" for end in curves[:, -1])
            told.append(f"{title}, {name}: {curves[:, -1].mean():.0f} % (seeds {ends})")
        axis.axhline(100 * chance, color=GREY, lw=1)
        axis.text(seen[-1], 100 * chance - 1, "guessing", ha="right", va="top", fontsize=9)
        axis.set(title=title, xlabel="pictures seen", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", frameon=False)
    axes[0, 0].set_ylabel("zero-shot accuracy in %")
    show(
        figure,
        f"""Zero-shot accuracy on the new artist against the number of pictures seen in training,
        from near guessing ({100 * chance:.0f} %) upwards. At the end: {"; ".join(told)}.""",
    )


def broken(runs: dict[str, object], chance: float) -> None:
    """Two training runs side by side: the loss on the left, zero-shot accuracy on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    told = []
    styles = zip(((BLUE, "o-"), (ORANGE, "s--")), runs.items(), strict=True)
    for (colour, style), (name, run) in styles:
        accuracies = [100 * a for a in run.accuracies]
        axes[0].plot(run.seen, run.losses, style, color=colour, lw=2, label=name)
        axes[1].plot(run.seen, accuracies, style, color=colour, lw=2, label=name)
        told.append(
            f"{name}: loss from {run.losses[0]:.2f} to {run.losses[-1]:.2f}, accuracy"
            f" {accuracies[-1]:.0f} %"
        )
    axes[1].axhline(100 * chance, color=GREY, lw=1)
    axes[1].text(run.seen[-1], 100 * chance - 1, "guessing", ha="right", va="top", fontsize=9)
    axes[0].set(title="loss", xlabel="pictures seen", ylim=(0, None))
    axes[1].set(title="zero-shot accuracy in %", xlabel="pictures seen", ylim=(0, None))
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    show(figure, f"Loss and zero-shot accuracy of two training runs. {'; '.join(told)}.")


def thresholds(runs: dict[str, tuple[Tensor, Tensor, float]]) -> None:
    """Cosines of right and of wrong pairs as histograms, a row for each run.

    runs: title -> (cosines of right pairs, of wrong pairs, the cosine where the answer turns from
    no to yes).
    """
    figure, axes = plt.subplots(
        len(runs), 1, figsize=(7.5, 1.5 * len(runs) + 0.8), layout="constrained", sharex=True,
        squeeze=False,
    )  # fmt: skip
    edges, told = np.linspace(-1, 1, 41), []
    for axis, (title, (right, wrong, threshold)) in zip(axes[:, 0], runs.items(), strict=True):
        axis.hist(wrong, edges, density=True, color=GREY, label="wrong pairs")
        axis.hist(
            right, edges, density=True, histtype="step", color=BLUE, lw=2.5, label="right pairs"
        )
        axis.axvline(threshold, color=ORANGE, lw=2.5, ls="--", label="threshold")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set(yticks=[], xlim=(-1.02, 1.02))
        axis.spines[["top", "right", "left"]].set_visible(False)
        told.append(
            f"{title}: right pairs around {right.mean():.2f}, wrong pairs around"
            f" {wrong.mean():.2f}, threshold {threshold:.2f}"
        )
    axes[0, 0].legend(frameon=False, loc="upper left", fontsize=9)
    axes[-1, 0].set_xlabel("cosine of picture and sentence")
    show(figure, f"Histograms of cosines after training. {'; '.join(told)}.")


def blocks(devices: int = 4) -> None:
    """The table of pairs cut among devices: what a softmax needs, and the order of the ring."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    each, tints = 3, ("#CDE6F5", "#FBE3B5", "#C8EBDD", "#E8E8E8")
    n = devices * each
    for axis, title in zip(
        axes, ("softmax: one probability", "sigmoid: one block at a time"), strict=True
    ):
        for i in range(devices):
            axis.add_patch(
                Rectangle((0, i * each), n, each, facecolor=tints[i % len(tints)], edgecolor="none")
            )
            axis.text(-0.3, (i + 0.5) * each, f"device {i}", ha="right", va="center", fontsize=10)
        for k in range(n + 1):
            width = 1.8 if k % each == 0 else 0.3
            axis.plot([k, k], [0, n], color=DARK, lw=width)
            axis.plot([0, n], [k, k], color=DARK, lw=width)
        axis.set(title=title, xlim=(-2.6, n + 0.1), ylim=(n + 0.1, -1.2), aspect="equal")
        for i in range(devices):
            axis.text(
                (i + 0.5) * each, -0.25, f"sentences {i}", ha="center", va="bottom", fontsize=9
            )
        axis.axis("off")
    row, column = 4, 7
    for corner, width, height in (((0, row), n, 1), ((column, 0), 1, n)):
        axes[0].add_patch(
            Rectangle(corner, width, height, facecolor=ORANGE, alpha=0.55, edgecolor=DARK, lw=1)
        )
    axes[0].add_patch(Rectangle((column, row), 1, 1, facecolor=DARK))
    for i in range(devices):
        for step in range(devices):
            j = (i - step) % devices
            axes[1].text(
                (j + 0.5) * each, (i + 0.5) * each, f"step {step}", ha="center", va="center",
                fontsize=10, fontweight="bold" if step == 0 else "normal",
                bbox={"facecolor": "white", "edgecolor": DARK if step == 0 else "none", "pad": 2},
            )  # fmt: skip
    show(
        figure,
        f"""The table of {n} pictures (rows) and {n} sentences (columns), cut among {devices}
        devices, {each} rows each. Left: the softmax of one pair needs its whole row and its whole
        column, which run through the parts of all devices. Right: with the sigmoid each device
        first takes its own block on the diagonal (step 0), then the block of the sentences that
        its neighbour hands on (step 1), and so on, {devices} blocks, one at a time.""",
    )


def memory(devices: list[int], curves: dict[str, list[float]], ylabel: str) -> None:
    """Memory of one device against the number of devices, both axes logarithmic."""
    figure, axis = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    styles = (BLUE, "o-"), (ORANGE, "s--"), (GREEN, "^:"), (DARK, "d-.")
    told = []
    for (colour, style), (name, values) in zip(styles, curves.items(), strict=False):
        axis.plot(devices, values, style, color=colour, lw=2)
        axis.text(devices[-1] * 1.15, values[-1], name, va="center", fontsize=10)
        told.append(f"{name}: {values[0]:,.2f} with {devices[0]} devices, {values[-1]:,.2f} with"
                    f" {devices[-1]:,}")  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(devices, [f"{d:,}" for d in devices])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set(xlabel="devices", ylabel=ylabel, xlim=(devices[0] * 0.9, devices[-1] * 12))
    axis.spines[["top", "right"]].set_visible(False)
    show(figure, f"{ylabel} against the number of devices. {'; '.join(told)}.")
