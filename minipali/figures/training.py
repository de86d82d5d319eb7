"""Figures of lesson 13: what counts in a row, and what training logs say."""

import math

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show
from minipali.tokens import IGNORE

PURPLE, RED = "#CC79A7", "#D55E00"


def curve(lines: list[dict]) -> Figure:
    """Loss and accuracy over the steps of a training log; the caller saves or shows the figure.

    Above the loss of each stage, below a small plot for each task: so no more than two lines meet.
    """
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    of_stage = {stage: [line for line in lines if line["stage"] == stage] for stage in stages}
    tasks = [
        (stage, key.removeprefix("training "))
        for stage, own in of_stage.items()
        for key in max(own, key=len)
        if key.startswith("training ")
    ]
    columns = 5
    rows = -(-len(tasks) // columns)
    figure = plt.figure(figsize=(10, 2.9 + 1.9 * rows), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.9, 1.9 * max(rows, 1)))
    for axis, stage in zip(top.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        own = of_stage[stage]
        steps, losses = [line["step"] for line in own], [line["loss"] for line in own]
        axis.plot(steps, losses, color=DARK, marker=_marker(steps))
        axis.set(title=f"{stage} stage", xlabel="step", ylabel="loss", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
    if not tasks:
        return figure
    axes = bottom.subplots(rows, columns, sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (stage, task) in zip(axes.flat, tasks, strict=False):
        measured = [line for line in of_stage[stage] if f"training {task}" in line]
        steps = [line["step"] for line in measured]
        for group, artists, style, colour in (
            ("training", "artists", "-", BLUE),
            ("validation", "artist", "--", ORANGE),
        ):
            shares = [100 * line[f"{group} {task}"] for line in measured]
            look = {"color": colour, "lw": 1.8, "marker": _marker(steps)}
            axis.plot(steps, shares, style, label=f"{group} {artists}", **look)
        axis.axis("on")
        axis.set_title(task, fontsize=10)
        axis.set(ylim=(0, 104), yticks=(0, 50, 100))
        axis.tick_params(labelsize=8)
    bottom.supylabel("right in %", fontsize=10)
    bottom.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
        frameon=False, fontsize=10,
    )  # fmt: skip
    return figure


def _marker(steps: list[int]) -> str | None:
    """A line of one point shows nothing, so that gets a dot."""
    return "o" if len(steps) == 1 else None


def log(lines: list[dict]) -> None:
    """`curve` of a log, shown."""
    told = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        of_stage = [line for line in lines if line["stage"] == stage]
        first, last = of_stage[0], of_stage[-1]
        ends = ", ".join(
            f"{key} {100 * value:.0f}"
            for key, value in last.items()
            if key.startswith(("training ", "validation "))
        )
        begins = f"falls from {first['loss']:.2f} at step {first['step']} to"
        told.append(
            f"{stage} stage: the loss {begins if len(of_stage) > 1 else 'is'}"
            f" {last['loss']:.2f} at step {last['step']}; right at the end in percent: {ends}."
        )
    show(curve(lines), "Loss and right answers over the steps of training. " + " ".join(told))


def rows(picture: Image.Image, words: list[list[str]], labels: Tensor, losses: Tensor) -> None:
    """Rows of a batch about one picture: what each place must say, and a model's loss there.

    words: the tokens of each row as they are written; labels: (b, t), not shifted; losses: (b, t -
    1), of the token after each place, which counts where its label is not IGNORE.
    """
    b, t = labels.shape

    def written(word: str) -> str:
        return {"\n": "\\n"}.get(word, word.replace("▁", " ").strip())

    figure, (left, axis) = plt.subplots(
        1, 2, figsize=(0.84 * t + 1.9, 1.55 * b), width_ratios=(1.6, t), layout="constrained"
    )
    left.imshow(picture)
    left.axis("off")
    told = []
    for row in range(b):
        top, counted = -3.2 * row, []
        for y, text in ((0.4, "reads"), (-0.9, "must say"), (-1.4, "loss")):
            axis.text(-0.15, top + y, text, ha="right", va="center", fontsize=9)
        for place, word in enumerate(words[row]):
            middle, word = place + 0.47, written(word)
            colour = "#CDE6F5" if labels[row, place] != IGNORE else "white"
            hatch = "///" if word == "<pad>" else None
            axis.add_patch(Rectangle((place, top), 0.94, 0.8, fc=colour, ec=GREY, hatch=hatch))
            behind = {"fc": colour, "ec": "none", "pad": 1}
            axis.text(
                middle, top + 0.4, word, ha="center", va="center", fontsize=8, bbox=behind
            )  # fmt: skip
            if place + 1 == t or labels[row, place + 1] == IGNORE:
                axis.text(middle, top - 0.9, "-", ha="center", va="center", color="#666666")
                continue
            wanted, value = written(words[row][place + 1]), losses[row, place].item()
            axis.annotate(
                "", (middle, top - 0.62), (middle, top - 0.06),
                arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 1.5},
            )  # fmt: skip
            axis.text(
                middle, top - 0.9, wanted, ha="center", va="center", fontsize=8, color=BLUE,
                fontweight="bold",
            )  # fmt: skip
            axis.text(middle, top - 1.4, f"{value:.2f}", ha="center", va="center", fontsize=8)
            counted.append(f"at {word} it must say {wanted}, loss {value:.2f}")
        told.append(f"Row {row + 1}: {'; '.join(counted)}; nothing is asked anywhere else.")
    axis.set(xlim=(-1.2, t), ylim=(-3.2 * (b - 1) - 1.7, 1.0))
    axis.axis("off")
    show(
        figure,
        "A picture, and the ends of two rows of a batch about it; shaded: the suffix, hatched:"
        f" padding. Under each place that counts stands the next token. {' '.join(told)}",
    )


def mistakes(curves: dict[str, list[float]], vocabulary: int) -> None:
    """Losses of runs on one batch, on a logarithmic scale; the first is the right one."""
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    styles = [(DARK, "-"), (RED, "--"), (BLUE, "-."), (ORANGE, ":"), (PURPLE, (0, (5, 1, 1, 1)))]
    for (name, losses), (colour, style) in zip(curves.items(), styles, strict=False):
        axis.plot(
            range(1, len(losses) + 1), losses, color=colour, ls=style,
            lw=2.6 if style == "-" else 2, label=f"{name}: {losses[-1]:.4f}",
        )  # fmt: skip
    guess = math.log(vocabulary)
    axis.axhline(guess, color=GREY, lw=1)
    axis.text(len(losses), guess * 1.12, f"guessing: log {vocabulary:,} = {guess:.2f}", ha="right",
              va="bottom", fontsize=9, color="#555555")  # fmt: skip
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.legend(title="loss at the end", fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    ends = "; ".join(
        f"{name}: from {losses[0]:.2f} to {losses[-1]:.4f}" for name, losses in curves.items()
    )
    show(figure, f"Losses over {len(losses)} steps on one batch, logarithmic. {ends}.")


def live(runs: dict[str, dict]) -> None:
    """Loss, and right answers as they come, of runs from different towers.

    runs: name -> {"losses": [...], "steps": [...], "<task>": shares of right answers, ...}.
    """
    tasks = [key for key in next(iter(runs.values())) if key not in ("losses", "steps")]
    figure, axes = plt.subplots(
        1, 1 + len(tasks), figsize=(4 * (1 + len(tasks)), 3.4), layout="constrained"
    )
    told = []
    for (name, run), colour, style, mark in zip(
        runs.items(), (BLUE, ORANGE, GREEN), ("-", "--", ":"), "osD", strict=False
    ):
        losses = np.array(run["losses"])
        width = 5
        smooth = [losses[max(0, i - width + 1) : i + 1].mean() for i in range(len(losses))]
        axes[0].plot(range(1, len(losses) + 1), smooth, color=colour, ls=style, lw=2, label=name)
        for axis, task in zip(axes[1:], tasks, strict=True):
            shares = [100 * share for share in run[task]]
            axis.plot(run["steps"], shares, color=colour, ls=style, marker=mark, lw=2, label=name)
        ends = ", ".join(f"{task} {100 * run[task][-1]:.0f} percent" for task in tasks)
        told.append(f"{name}: loss {smooth[0]:.2f} to {smooth[-1]:.2f}, right at the end: {ends}")
    axes[0].set(title="loss (mean of 5 steps)", xlabel="step", yscale="log")
    for axis, task in zip(axes[1:], tasks, strict=True):
        axis.set(title=f"{task}, right in %", xlabel="step", ylim=(-3, 103))
    axes[0].legend(fontsize=9)
    show(figure, f"Training live, new pictures by the validation artist. {'; '.join(told)}.")


def ablations(shares: dict[str, list[float]], usual: str) -> None:
    """A row for each way to train, a dot for each seed; the band spans the seeds of `usual`."""
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(shares) + 1), layout="constrained")
    low, high = (100 * edge(shares[usual]) for edge in (min, max))
    axis.axvspan(low, high, color="#CDE6F5", label=f"seeds of '{usual}'")
    for row, values in enumerate(shares.values()):
        axis.plot([100 * v for v in values], [row] * len(values), "o", color=DARK, alpha=0.8)
        axis.plot(100 * np.mean(values), row, "|", color=BLUE, ms=20, mew=3)
    axis.set_yticks(range(len(shares)), list(shares))
    axis.set(
        xlabel="right names in % (dots: seeds, bar: their mean)", ylim=(len(shares) - 0.5, -0.5)
    )
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    told = "; ".join(
        f"{name}: {', '.join(f'{100 * v:.0f}' for v in values)}" for name, values in shares.items()
    )
    show(figure, f"Right names in percent for each seed. {told}.")


def loss_curve(lines: list[dict]) -> Figure:
    """Loss of a fine-tuning, and its validation loss where there is one; the caller saves it."""
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for key, style, colour in (("loss", "-", DARK), ("validation loss", "--", ORANGE)):
        own = [line for line in lines if key in line]
        if own:
            steps = [line["step"] for line in own]
            axis.plot(
                steps, [line[key] for line in own], style, color=colour, label=key, marker="."
            )
    axis.set(xlabel="step", ylabel="loss a token", ylim=(0, None))
    axis.legend(frameon=False)
    return figure
