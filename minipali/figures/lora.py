"""Figures of lesson 18: a change of low rank, what is learned by it, and what is forgotten."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show

PURPLE = "#CC79A7"
STYLES = ((ORANGE, "s"), (GREEN, "^"), (BLUE, "o"), (PURPLE, "D"))  # colour and mark of each way


def beside(n: int, d: int, rank: int) -> None:
    """A frozen weight (n, d) and the two matrices beside it, to scale."""
    figure, axis = plt.subplots(figsize=(8.5, 3.4), layout="constrained")
    gap = 0.35 * d
    boxes = (
        (0, 0, d, n, GREY, f"W, frozen\n{n} x {d}\n= {n * d:,}"),
        (d + gap, 0, rank, n, ORANGE, f"B: {n} x {rank}\n= {n * rank:,}"),
        (d + 2 * gap + rank, n - rank, d, rank, BLUE, f"A: {rank} x {d} = {rank * d:,}"),
    )
    for x, y, width, height, colour, name in boxes:
        axis.add_patch(Rectangle((x, y), width, height, fc=colour + "55", ec=colour, lw=1.5))
        if colour == GREY:
            axis.text(x + width / 2, y + height / 2, name, ha="center", va="center", fontsize=11)
        elif colour == ORANGE:
            axis.text(x + 1.6 * rank, y + height / 3, name, ha="left", va="center", fontsize=11)
        else:
            axis.text(x + width / 2, y - 0.04 * n, name, ha="center", va="top", fontsize=11)
    axis.text(d + gap / 2, n / 2, "+", ha="center", va="center", fontsize=18, color=DARK)
    axis.text(
        d + 1.5 * gap + rank, n - rank / 2, "·", ha="center", va="center", fontsize=22, color=DARK
    )
    axis.set(xlim=(-2, 2 * d + 2 * gap + rank + 2), ylim=(-2, n + 2), aspect="equal")
    axis.axis("off")
    share = rank * (n + d) / (n * d)
    show(
        figure,
        f"""To scale: a frozen weight W of {n} x {d} numbers, and beside it B of {n} x {rank} and A
        of {rank} x {d}, two thin strips with {share:.0%} as many numbers.""",
    )


def both(learned: dict[str, list[float]], kept: dict[str, list[float]], before: float) -> None:
    """What each way learned, and what it kept: a mark for each seed, shares from 0 to 1.

    before: the share of old questions that were right before.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 0.5 * len(learned) + 1.5), sharey=True,
                                layout="constrained")  # fmt: skip
    told = []
    for axis, title, table in ((axes[0], "the new word", learned), (axes[1], "old tasks", kept)):
        for row, ((name, shares), (colour, mark)) in enumerate(
            zip(table.items(), STYLES, strict=False)
        ):
            percent = 100 * np.array(shares)
            axis.plot([percent.min(), percent.max()], [row, row], color=GREY, lw=1, zorder=1)
            axis.plot(percent, [row] * len(percent), mark, color=colour, ms=9, mec="white")
            axis.plot([percent.mean()] * 2, [row - 0.3, row + 0.3], color=DARK, lw=2.5)
            told.append(f"{title}, {name}: {', '.join(f'{p:.0f}' for p in percent)}")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("right in %")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[1].axvline(100 * before, color=DARK, ls="--", lw=1)
    axes[0].set_yticks(range(len(learned)), list(learned), fontsize=11)
    axes[0].set(ylim=(len(learned) - 0.5, -0.6), xlim=(-2, 102))
    show(
        figure,
        f"""Right answers in percent after each way of training, a mark for each seed, a line at the
        mean. {"; ".join(told)}. Dashed: old tasks before the training, {before:.0%}.""",
    )


def tasks(asked: list[str], before: np.ndarray, after: dict[str, list[np.ndarray]]) -> None:
    """The mean score of each task before (a line) and after each way (marks), over all seeds.

    asked: the task of each question; before: its score, 0 to 1; after: the same, for each seed.
    """
    names = list(dict.fromkeys(asked))

    def of_task(scores: np.ndarray) -> dict[str, float]:
        return {name: scores[[one == name for one in asked]].mean() for name in names}

    before = of_task(before)
    after = {way: of_task(np.mean(scores, axis=0)) for way, scores in after.items()}
    figure, axis = plt.subplots(figsize=(9.5, 3.2), layout="constrained")
    for place, name in enumerate(names):
        axis.plot([place - 0.38, place + 0.38], [100 * before[name]] * 2, color=DARK, lw=2)
    for number, ((way, found), (colour, mark)) in enumerate(
        zip(after.items(), STYLES, strict=False)
    ):
        move = 0.22 * (number - (len(after) - 1) / 2)
        axis.plot(
            np.arange(len(names)) + move, [100 * found[name] for name in names], mark,
            color=colour, ms=9, mec="white", ls="none", label=way,
        )  # fmt: skip
    axis.set_xticks(range(len(names)), names, fontsize=10)
    axis.set(ylim=(-3, 104), ylabel="right in %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=len(after), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    told = [
        f"{name}: before {100 * before[name]:.0f}, "
        + ", ".join(f"{way} {100 * found[name]:.0f}" for way, found in after.items())
        for name in names
    ]
    show(figure, f"Old tasks in percent, before and after each way. {'; '.join(told)}.")


def pictures_needed(named: dict[int, list[float]], called: dict[int, list[float]]) -> None:
    """Shares, 0 to 1, over the number of pictures learned from; a mark for each seed.

    named: buses that are called a bus; called: other unknown things that are called one, too.
    """
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    numbers, told = list(named), []
    for table, what, colour, mark in (
        (named, "buses called bus", BLUE, "o"),
        (called, "other new things called bus", ORANGE, "s"),
    ):
        means = [100 * float(np.mean(shares)) for shares in table.values()]
        axis.plot(numbers, means, mark, ls="-", ms=0, color=colour, lw=1.5)
        for number, shares in table.items():
            percent = [100 * share for share in shares]
            axis.plot([number] * len(shares), percent, mark, color=colour, ms=8, mec="white")
            told.append(f"{what}, {number} pictures: {', '.join(f'{p:.0f}' for p in percent)}")
        axis.text(1.08 * numbers[-1], means[-1], what, va="center", fontsize=10, color=DARK)
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.set(
        xlim=(0.85 * numbers[0], 2.6 * numbers[-1]), ylim=(-3, 103),
        xlabel="pictures to learn from", ylabel="answers in %",
    )  # fmt: skip
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    show(figure, f"Answers in percent, a mark for each seed. {'; '.join(told)}.")
