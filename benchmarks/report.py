"""The results as a table in README.md and as a picture: how many times as long as ours.

python benchmarks/report.py                 from results/*.json, as they are
python benchmarks/report.py build/3b        measures all again first
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from measuring import RESULTS

from minipali.figures.common import BLUE, DARK, ORANGE

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- table: made by report.py -->", "<!-- end of table -->"

# What is shown of each file of results; those of hkproj's code were measured in a run of their own.
SPEED = ("loading", "loading and first token", "prefill", "decoding")
PARTS = {
    "real_size": ("3B", SPEED),
    "hkproj": ("3B", SPEED),
    "decoding": ("3B, one thread", ("decoding",)),
    "real_size_avx2": ("3B as AVX2", SPEED),
    "hkproj_avx2": ("3B as AVX2", SPEED),
    "small_size": ("small model", ("decoding", "training step")),
    "small_size_amx": ("small model, AMX", ("decoding", "training step")),
    "smollm2": ("SmolLM2 135M", ("prefill", "decoding")),
    "cold_start": ("cold start", ("cold start",)),
}


def measure(folder: str) -> None:
    for program in (["small_size.py"], ["cold_start.py"], ["real_size.py", folder]):
        subprocess.run([sys.executable, HERE / program[0], *program[1:]], check=True)


def read(name: str) -> dict:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def rows() -> list[tuple[str, str, str, float, float]]:
    """(model, part, variant, times the first of its part, seconds) for all that was measured."""
    found = []
    for name, (model, parts) in PARTS.items():
        measured = read(name)
        for part in parts:
            for variant, numbers in measured.get(part, {}).items():
                if name.startswith("hkproj") and variant != "hkproj":
                    continue
                (times,) = (value for key, value in numbers.items() if key.startswith("times"))
                found.append((model, part, variant, times, numbers["seconds"]))
    return found


def as_table() -> str:
    lines = []
    machines = {name: read(name).get("machine") for name in PARTS}
    for name, machine in machines.items():
        if machine:
            facts = ", ".join(f"{key} {value}" for key, value in machine.items())
            lines.append(f"- `{name}`: {facts}")
    lines += ["", "| | | times as long | seconds |", "|---|---|---|---|"]
    for model, part, variant, times, seconds in rows():
        title = model if model == part else f"{model}, {part}"
        lines.append(f"| {title} | {variant} | {times:.2f} | {seconds:.3g} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the results into README.md.")
    parser.add_argument("folder", nargs="?", help="a model of 3B: measure all again first")
    given = parser.parse_args()
    if given.folder:
        measure(given.folder)
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    table = as_table()
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8", newline="\n")
    print(table)
    shown = [row for row in rows() if row[0] != "cold start" and not row[1].startswith("loading")]
    if shown:
        draw(shown)


def draw(rows) -> None:
    rows = [(f"{model}, {part}", variant, times) for model, part, variant, times, _ in rows]
    groups = list(dict.fromkeys(group for group, _, _ in rows))
    rows.sort(key=lambda row: groups.index(row[0]))
    figure, axis = plt.subplots(
        figsize=(8, 0.32 * (len(rows) + len(groups)) + 1), layout="constrained"
    )
    places = [number + groups.index(group) for number, (group, _, _) in enumerate(rows)]
    for place, (group, variant, times) in zip(places, rows, strict=True):
        own = variant.startswith("ours") and "again" not in variant
        axis.barh(place, times, color=BLUE if own else ORANGE, hatch="" if own else "//")
        axis.text(times * 1.03, place, f"{times:g}", va="center", fontsize=9)
        if group in groups:  # its first row: the title goes into the gap above
            axis.text(
                0.31, place - 1, group, fontsize=9, weight="bold", color=DARK, va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
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
