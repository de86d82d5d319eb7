"""From nothing to an answer: `minipali ask` beside `import torch`, without which there is none.

python benchmarks/cold_start.py
"""

import argparse
import subprocess
import sys

from measuring import by_turns, measured_machine, table, write

THEIRS = """
import torch
torch.set_num_threads(1)
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor
from minipali.cli import ASSETS, QUESTION
picture = Image.open(min((ASSETS / "pictures").glob("*.png"))).convert("RGB")
processor = PaliGemmaProcessor.from_pretrained(ASSETS / "small")
model = PaliGemmaForConditionalGeneration.from_pretrained(ASSETS / "small").eval()
batch = processor(images=picture, text="<image>" + QUESTION, return_tensors="pt")
told = model.generate(**batch, max_new_tokens=64, do_sample=False)
print(processor.decode(told[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))
"""

PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import minipali": ["-c", "import minipali"],
    "minipali ask": ["-m", "minipali", "ask"],
    "transformers, the same answer": ["-c", THEIRS],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure whole programs from their start.")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds

    def run(name: str) -> None:
        done = subprocess.run(
            [sys.executable, *PROGRAMS[name]], capture_output=True, text=True, check=True
        )
        told[name] = done.stdout.split()[-1:]

    told = {}
    took = by_turns({name: lambda name=name: run(name) for name in PROGRAMS}, rounds)
    assert told["minipali ask"] == told["transformers, the same answer"], told
    result = {"cold start": table(took, "import torch")}
    write("cold_start", {"machine": measured_machine()} | result)


if __name__ == "__main__":
    main()
