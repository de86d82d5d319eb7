"""What int8 weights cost in answers: the small model's whole evaluation set, bfloat16 and int8.

python benchmarks/int8_accuracy.py
"""

import argparse
from statistics import mean

from measuring import write

from minipali import load
from minipali.evaluation import ARTISTS, TASKS, answers, evaluation_set, score
from minipali.narrow import quantize


def parts(each: int):
    """The places of each task's questions in the evaluation set."""
    return [slice(i * each, (i + 1) * each) for i in range(len(TASKS))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare answers with int8 and bfloat16 weights.")
    parser.add_argument("--each", type=int, default=500, help="questions a task and artist")
    given = parser.parse_args()
    model, processor = load("small", dtype="bfloat16")
    small = quantize(load("small", dtype="bfloat16")[0])
    result = {}
    for name, artists in ARTISTS.items():
        asked = evaluation_set(artists, given.each, seed=2026)  # the model card's questions
        told = [answers(one, processor, asked, progress=True) for one in (model, small)]
        marks = [[score(q, a) for (_, q), a in zip(asked, one, strict=True)] for one in told]
        result[name] = {
            "questions": len(asked),
            "same answer %": round(100 * mean(a == b for a, b in zip(*told, strict=True)), 2),
            "right % in bfloat16": round(100 * mean(marks[0]), 2),
            "right % in int8": round(100 * mean(marks[1]), 2),
            "int8 - bfloat16, points": {
                task: round(100 * mean(b - a for a, b in list(zip(*marks, strict=True))[part]), 1)
                for task, part in zip(TASKS, parts(given.each), strict=True)
            },
        }
    write("int8_accuracy", result)


if __name__ == "__main__":
    main()
