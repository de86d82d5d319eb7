"""Figures of lesson 20: what each thing left out costs, and which layers see how far."""

import math

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREY, ORANGE, show

# What is wrong, in words, for the names that the lesson gives.
WORDS = {
    "right": "nothing",
    "GELU": "GELU in place of SiLU",
    "1 + w": "norms with 1 + w",
    "factor": "words times the factor",
    "rows": "rows as in the file",
    "base": "RoPE's base of Gemma 1",
    "heads": "KV heads in a wrong order",
}


def costs(losses: dict[str, float], blind: float) -> None:
    """The loss per token with each thing wrong, sorted, beside the right one and a blind guess.

    losses: by the names in WORDS, among them "right"; blind: the loss of equal chances for all.
    """
    order = sorted(losses, key=losses.get)
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(order) + 1.1), layout="constrained")
    for row, name in enumerate(order):
        right = name == "right"
        axis.barh(row, losses[name], color=BLUE if right else ORANGE, height=0.62)
        axis.text(losses[name] + 0.25, row, f"{losses[name]:.2f}", va="center", color=DARK)
    axis.axvline(blind, color=DARK, ls="--", lw=1.2)
    axis.text(blind, -0.75, f" blind guess {blind:.1f}", color=DARK, va="bottom", fontsize=10)
    axis.set_yticks(range(len(order)), [WORDS[name] for name in order], fontsize=11)
    axis.set(ylim=(len(order) - 0.5, -0.8), xlim=(0, 1.12 * max(*losses.values(), blind)))
    axis.set_xlabel("loss per token")
    axis.set_ylabel("what is wrong")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    told = "; ".join(f"{WORDS[name]}: {losses[name]:.2f}" for name in order)
    show(
        figure,
        f"""Bars of the loss per token, by what is wrong. {told}. A dashed line at {blind:.1f}, a
        blind guess with equal chances for all {math.exp(blind):,.0f} tokens.""",
    )


def windows(masks: list[Tensor]) -> None:
    """Who sees whom in a layer that slides and in the last one, and what comes through several.

    masks: bool (t, t), of each layer; the last one is full.
    """
    reach = [np.eye(len(masks[0]), dtype=bool)]
    for mask in masks:
        reach.append(mask.numpy() @ reach[-1])
    shown = (
        (masks[0].numpy(), f"layers 0 to {len(masks) - 2} slide"),
        (masks[-1].numpy(), f"layer {len(masks) - 1} is full"),
        (reach[2], "through 2 that slide"),
        (reach[-2], f"through {len(masks) - 1} that slide"),
    )
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 3), layout="constrained")
    for place, (axis, (seen, title)) in enumerate(zip(axes, shown, strict=True)):
        colour = BLUE if place < 2 else ORANGE
        for row, column in np.argwhere(seen):
            axis.add_patch(plt.Rectangle((column, row), 1, 1, fc=colour, ec="white", lw=0.8))
        t = len(seen)
        axis.add_patch(plt.Rectangle((0, 0), t, t, fill=False, ec=GREY, lw=1))
        axis.set(xlim=(-0.2, t + 0.2), ylim=(t + 0.2, -0.2), aspect="equal", xticks=[], yticks=[])
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("key")
        axis.set_ylabel("query" if place == 0 else "")
        axis.spines[:].set_visible(False)
    most = [int(seen[-1].sum()) for seen, _ in shown]
    show(
        figure,
        f"""Four tables of {len(masks[0])} queries by as many keys. In a layer that slides the last
        query sees {most[0]} keys, in a full one {most[1]}. Through two layers that slide,
        {most[2]} tokens have an influence on it, through {len(masks) - 1} of them {most[3]}.""",
    )
