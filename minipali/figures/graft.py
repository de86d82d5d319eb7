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


def exam(columns: dict[str, dict[str, float]], tasks: tuple[str, ...], each: int) -> None:
    """Shares of right answers by task: the seeds as dots around their mean, and who does not see.

    columns: "seed 0", "seed 1", ... and others -> share by task; each: questions of a task.
    """
    from minipali.evaluation import interval

    seeds = [own for name, own in columns.items() if name.startswith("seed")]
    kinds = {
        "small": ("the small model", GREEN, "^"),
        "before": ("another picture", ORANGE, "s"),
        "grey": ("a grey picture", GREY, "x"),
        "commonest": ("commonest answer", DARK, "|"),
    }
    figure, axis = plt.subplots(figsize=(8.5, 0.45 * len(tasks) + 1.2), layout="constrained")
    rows, told = np.arange(len(tasks)), {task: [] for task in tasks}
    means = np.array([np.mean([own[task] for own in seeds]) for task in tasks])
    ends = np.array([interval(mean, each) for mean in means]).T
    axis.barh(rows, 100 * means, height=0.5, color=BLUE + "44", label=f"graft, {len(seeds)} seeds")
    axis.hlines(rows, 100 * ends[0], 100 * ends[1], color=BLUE, lw=2)
    for own in seeds:
        axis.plot([100 * own[task] for task in tasks], rows, "o", color=BLUE, ms=5, mec="white")
    for task, mean in zip(tasks, means, strict=True):
        told[task].append(f"graft {100 * mean:.0f}")
    for number, (key, (name, colour, mark)) in enumerate(kinds.items()):
        shares = columns.get(key, {})
        there = [(100 * shares[task], row) for row, task in enumerate(tasks) if task in shares]
        if there:
            x, y = np.array(there).T
            axis.plot(x, y + 0.1 * (number - 1.5), mark, color=colour, ms=9 if mark == "|" else 6,
                      mew=2, label=name)  # fmt: skip
        for task in set(tasks) & set(shares):
            told[task].append(f"{name} {100 * shares[task]:.0f}")
    axis.set_yticks(rows, tasks)
    axis.invert_yaxis()
    axis.set(xlabel="right in %, lines: 95 % intervals", xlim=(-2, 103))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    said = "; ".join(f"{task}: {', '.join(own)}" for task, own in told.items())
    show(figure, f"Right answers in percent. {said}.")
