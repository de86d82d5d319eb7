"""Figures of lesson 12: distributions over the next token, and what is drawn from them."""

from collections.abc import Callable

import matplotlib.pyplot as plt
from torch import Tensor

from minipali.figures.common import BLUE, DARK, GREY, ORANGE, show


def ways(panels: dict[str, Tensor], name: Callable[[int], str], right: str, shown: int = 7) -> None:
    """One distribution (v,) after several treatments; the first panel is the distribution itself.

    The bars are the `shown` most likely tokens of the first panel, and all others together. Grey
    outlines repeat the first panel; a token that can no longer be drawn is marked "out". right: the
    right answer, which is marked at the left.
    """
    first = next(iter(panels.values()))
    best = first.topk(shown).indices.tolist()
    names = [name(token) for token in best]
    labels = [f"✓ {one}" if one == right else one for one in names]
    labels.append(f"{len(first) - shown:,} others")

    def bars(probabilities: Tensor) -> list[float]:
        return [*probabilities[best].tolist(), 1 - probabilities[best].sum().item()]

    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(10, 2.9 * rows), layout="constrained", sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    places, told = range(shown + 1), []
    for axis, (title, probabilities) in zip(axes.flat, panels.items(), strict=False):
        values = bars(probabilities)
        axis.barh(places, bars(first), height=0.8, facecolor="none", edgecolor=GREY, lw=1)
        axis.barh(places, values, height=0.8, color=BLUE, alpha=0.85)
        for place, (value, before) in enumerate(zip(values, bars(first), strict=True)):
            text = f"{value:.2f}" if value > 1e-6 else "out"
            axis.text(max(value, before) + 0.02, place, text, va="center", fontsize=9)
        axis.set_title(title, fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
        parts = [f"{label} {value:.2f}" for label, value in zip(labels, values, strict=True)]
        told.append(f"{title}: {', '.join(parts)}.")
    for axis in axes[:, 0]:
        axis.set_yticks(places, labels)
        for tick, one in zip(axis.get_yticklabels(), [*names, ""], strict=True):
            tick.set_fontweight("bold" if one == right else "normal")
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlim=(0, 1.15), xticks=[0, 0.5, 1])
    for axis in axes[-1]:
        axis.set_xlabel("probability")
    show(
        figure,
        f"""Probabilities of the next token, one distribution after {len(panels)} treatments; the
        right answer is {right}. {" ".join(told)}""",
    )


def sticks(rows: dict[str, Tensor], numbers: dict[str, float], name: Callable[[int], str]) -> None:
    """Each distribution (v,) as a stick of length 1, cut into its tokens, most likely first.

    numbers: label -> a number from 0 to 1, marked above each stick.
    """
    figure, axis = plt.subplots(figsize=(10, 0.75 * len(rows) + 1.2), layout="constrained")
    told = []
    for place, (title, probabilities) in enumerate(rows.items()):
        ordered, tokens = probabilities.sort(descending=True)
        start, hit, ends = 0.0, {}, []
        for number, (width, token) in enumerate(
            zip(ordered.tolist(), tokens.tolist(), strict=True)
        ):
            if width < 0.02:
                break
            hit |= {one: name(token) for one, x in numbers.items() if start <= x < start + width}
            shade = ("#CDE6F5", "#F7F7F7")[number % 2]
            axis.barh(place, width, left=start, height=0.7, color=shade, edgecolor=DARK, lw=0.8)
            size = next(
                (s for s in (10, 7) if width > (0.001 * s * len(name(token)) + 0.005)), None
            )
            if size:
                middle = start + width / 2
                axis.text(middle, place, name(token), ha="center", va="center", fontsize=size)
            start += width
            ends.append(f"{name(token)} to {start:.2f}")
        if start < 0.99:  # the tail: too many pieces to draw
            axis.barh(
                place, 1 - start, left=start, height=0.7, facecolor="white", edgecolor=GREY,
                hatch="////", lw=0.8,
            )  # fmt: skip
            ends.append("the rest to 1.00")
        hits = ", ".join(f"{label} hits {hit.get(label, 'the rest')}" for label in numbers)
        told.append(f"{title}: {', '.join(ends)}; {hits}.")
    for label, x in numbers.items():
        # Behind the sticks, so that no name is crossed; a mark above each shows where it falls.
        axis.plot([x, x], [-0.55, len(rows) - 1.4], color=ORANGE, lw=2, zorder=0)
        tops = [place - 0.4 for place in range(len(rows))]
        axis.plot([x] * len(rows), tops, "v", color=ORANGE, mec=DARK, mew=0.6, ms=8, zorder=3)
        axis.text(x, -0.6, label, ha="center", va="bottom", fontsize=9)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.95), xticks=[0, 0.25, 0.5, 0.75, 1])
    axis.spines[["top", "right", "left"]].set_visible(False)
    show(
        figure,
        f"""Distributions as sticks of length 1, cut into tokens, most likely first; lines at
        {" and ".join(numbers)}. {" ".join(told)}""",
    )


def accuracy(settings: list[str], tasks: tuple[str, ...], shares: dict[int, Tensor]) -> None:
    """Chance of the right answer by setting: in one draw, and in at least one of several.

    shares: number of draws, 1 and another -> chances (setting, task).
    """
    (_, once), (draws, several) = sorted(shares.items())
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(10, 0.42 * len(settings) + 1.3), layout="constrained", sharey=True
    )
    told = []
    for axis, task, low, high in zip(axes, tasks, 100 * once.T, 100 * several.T, strict=True):
        places = range(len(settings))
        axis.axvline(low[0], color=GREY, lw=1, ls=":")
        axis.hlines(places, low, high, color=GREY, lw=1.5)
        name = f"at least one of {draws}"
        axis.plot(high, places, "D", color=ORANGE, ms=8, mfc="white", mew=2, label=name)
        axis.plot(low, places, "o", color=BLUE, ms=8, label="one draw")
        axis.set(title=task, xlabel="right in %", xlim=(0, 100))
        axis.spines[["top", "right"]].set_visible(False)
        parts = [f"{s} {a:.0f} and {b:.0f}" for s, a, b in zip(settings, low, high, strict=True)]
        told.append(f"{task}: {'; '.join(parts)}.")
    axes[0].set_yticks(range(len(settings)), settings)
    axes[0].invert_yaxis()
    axes[0].legend(loc="upper left", fontsize=9, frameon=False)
    show(
        figure,
        f"""Chance of the right answer in percent, for each setting in one draw and in at least one
        of {draws} draws. {" ".join(told)}""",
    )
