"""Draw the results: how many times as long each variant takes as ours.

python benchmarks/plot.py          reads results/*.json, writes results/ratios.png
"""

import json

import matplotlib.pyplot as plt
from measuring import RESULTS

from minipali.figures.common import BLUE, DARK, ORANGE

PARTS = {
    "real_size": ("3B, this processor", ("prefill", "decoding")),
    "real_size_avx2": ("3B, without bfloat16 instructions", ("prefill", "decoding")),
    "small_size": ("small model", ("decoding", "training step")),
}


def read(name: str) -> dict:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def main() -> None:
    rows = []
    for name, (title, parts) in PARTS.items():
        # What hkproj's code takes was measured in a run of its own.
        found, beside = read(name), read(name.replace("real_size", "hkproj"))
        for part in parts:
            for variant, values in (beside.get(part, {}) | found.get(part, {})).items():
                rows.append((f"{title}, {part}", variant, values["times ours"]))
    groups = list(dict.fromkeys(group for group, _, _ in rows))
    figure, axis = plt.subplots(
        figsize=(8, 0.32 * (len(rows) + len(groups)) + 1), layout="constrained"
    )
    places = [number + groups.index(group) for number, (group, _, _) in enumerate(rows)]
    for place, (group, variant, times) in zip(places, rows, strict=True):
        own = variant.startswith("ours") and "again" not in variant
        axis.barh(place, times, color=BLUE if own else ORANGE, hatch="" if own else "//")
        axis.text(times * 1.03, place, f"{times:g}", va="center", fontsize=9)
        if group in groups:  # its first row: the title goes into the gap above
            axis.text(0.31, place - 1, group, fontsize=9, weight="bold", color=DARK, va="center")
            groups.remove(group)
    axis.set_yticks(places, [variant for _, variant, _ in rows])
    axis.axvline(1, color=DARK, lw=1)
    axis.set(xscale="log", xlabel="times as long as ours (logarithmic)", xlim=(0.3, 15))
    axis.set_xticks([0.5, 1, 2, 5, 10], ["1/2", "1", "2", "5", "10"])
    axis.minorticks_off()
    axis.set_ylim(max(places) + 0.8, -1.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "ratios.png", dpi=100)


if __name__ == "__main__":
    main()
