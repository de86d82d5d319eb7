"""Figures of lesson 19: what an outlier does, a block's bytes, and error and answers by bits."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREEN, GREY, ORANGE, show

STYLES = ((ORANGE, "s"), (BLUE, "o"))  # colour and mark of each way


def stairs(row: Tensor, ways: dict[str, Tensor]) -> None:
    """The numbers of a row (d,), the largest left out, before and after each way of rounding."""
    usual = (row.abs() < row.abs().max()).numpy()
    edge = 1.08 * float(row[usual].abs().max())
    figure, axes = plt.subplots(1, len(ways), figsize=(4.6 * len(ways), 3.9), sharey=True,
                                layout="constrained")  # fmt: skip
    told = []
    for axis, (name, after), (colour, mark) in zip(axes, ways.items(), STYLES, strict=False):
        axis.plot([-edge, edge], [-edge, edge], color=GREY, lw=1)
        axis.plot(row[usual], after[usual], mark, color=colour, ms=5, mec="white", mew=0.5)
        values = len(np.unique(after[usual].numpy()))
        axis.set_title(f"{name}\n{values} different values", fontsize=11)
        axis.set(xlim=(-edge, edge), xlabel="weight")
        axis.spines[["top", "right"]].set_visible(False)
        told.append(f"{name}: {values} different values")
    axes[0].set_ylabel("after rounding")
    show(
        figure,
        f"""Each of the usual numbers of a row before and after rounding to 4 bits; the outlier, at
        {float(row[~usual][0]):.0f}, lies outside. On the grey diagonal nothing would have changed.
        {"; ".join(told)}.""",
    )


def block() -> None:
    """The 20 bytes of a block of Q4_1, and which numbers lie in them."""
    figure, axis = plt.subplots(figsize=(10, 2.1), layout="constrained")
    for byte in range(20):
        x = byte + 0.25 * (byte >= 2) + 0.25 * (byte >= 4)
        axis.text(x + 0.5, 2.15, str(byte), ha="center", va="bottom", fontsize=9, color=DARK)
        if byte < 4:
            if byte % 2 == 0:
                colour = ORANGE if byte < 2 else GREEN
                axis.add_patch(Rectangle((x, 0), 2, 2, fc=colour + "44", ec=DARK, lw=0.8))
            continue
        for low, number, tint in ((1, byte + 12, "55"), (0, byte - 4, "22")):
            axis.add_patch(Rectangle((x, low), 1, 1, fc=BLUE + tint, ec=DARK, lw=0.8))
            axis.text(x + 0.5, low + 0.5, str(number), ha="center", va="center", fontsize=10)
    for x, name in ((1, "scale"), (3.25, "least")):
        axis.text(x, 1, name, ha="center", va="center", fontsize=11)
    axis.text(20.7, 1.5, "upper 4 bits", va="center", fontsize=10)
    axis.text(20.7, 0.5, "lower 4 bits", va="center", fontsize=10)
    axis.text(-0.2, 2.15, "byte", ha="right", va="bottom", fontsize=9, color=DARK)
    axis.set(xlim=(-1.2, 23.2), ylim=(-0.1, 2.7))
    axis.axis("off")
    show(
        figure,
        """The 20 bytes of a block of Q4_1: bytes 0 and 1 are the scale, bytes 2 and 3 the least
        number. Byte 4 holds number 0 in its lower four bits and number 16 in its upper four, byte 5
        numbers 1 and 17, and so on to byte 19 with numbers 15 and 31.""",
    )


def bits(
    errors: dict[str, dict[int, float]],
    right: dict[str, dict[int, float]],
    before: float,
    blind: float,
) -> None:
    """Error of the weights and right answers, 0 to 1, of each way of rounding over the bits.

    before: right answers of the model as it was; blind: of the commonest answer.
    """
    figure, (left, second) = plt.subplots(1, 2, figsize=(9.5, 3.5), layout="constrained")
    told = []
    for (name, found), (colour, mark) in zip(errors.items(), STYLES, strict=False):
        numbers = list(found)
        percent = [100 * right[name][number] for number in numbers]
        left.plot(numbers, [100 * e for e in found.values()], color=colour, marker=mark, label=name)
        second.plot(numbers, percent, color=colour, marker=mark, label=name)
        told += [
            f"{name}, {number} bits: error {found[number]:.1%}, right {right[name][number]:.0%}"
            for number in numbers
        ]
    left.set(yscale="log", title="error of the weights in %", xlabel="bits")
    left.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    left.minorticks_off()
    second.axhline(100 * before, color=DARK, ls="--", lw=1)
    second.axhline(100 * blind, color=GREY, ls=":", lw=1.5)
    second.text(8, 100 * before + 1.5, "before", ha="left", va="bottom", fontsize=9)
    second.text(8, 100 * blind + 1.5, "commonest answer", ha="left", va="bottom", fontsize=9)
    second.set(ylim=(0, 100), title="right answers in %", xlabel="bits")
    for axis in (left, second):
        axis.set_xticks(numbers)
        axis.invert_xaxis()
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="upper left")
    show(
        figure,
        f"""Error of the decoder's weights and right answers. {"; ".join(told)}. Before:
        {before:.0%}; commonest answer: {blind:.0%}.""",
    )
