"""Figures of lesson 13: what a training log says."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from minipali.figures.common import BLUE, DARK, GREEN, ORANGE


def curve(lines: list[dict]) -> Figure:
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
