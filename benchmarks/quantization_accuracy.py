"""What weights in 8 and 4 bits cost in answers: the small model's evaluation set, beside float32.

python benchmarks/quantization_accuracy.py
"""

import argparse
from statistics import mean

from measuring import write

from minipali import load
from minipali.evaluation import ARTISTS, TASKS, answers, evaluation_set, score


def parts(each: int):
    """The places of each task's questions in the evaluation set."""
    return [slice(i * each, (i + 1) * each) for i in range(len(TASKS))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare answers in int8 and int4 with float32.")
    parser.add_argument("--each", type=int, default=500, help="questions a task and artist")
    given = parser.parse_args()
    models = {dtype: load("small", dtype=dtype) for dtype in ("float32", "int8", "int4")}
    result = {}
    for name, artists in ARTISTS.items():
        asked = evaluation_set(artists, given.each, seed=2026)  # the model card's questions
        told = {dtype: answers(*pair, asked, progress=True) for dtype, pair in models.items()}
        marks = {
            dtype: [
                score(question, answer) for (_, question), answer in zip(asked, own, strict=True)
            ]
            for dtype, own in told.items()
        }
        result[name] = {
            "questions": len(asked),
            "right %": {dtype: round(100 * mean(own), 2) for dtype, own in marks.items()},
        }
        for dtype in ("int8", "int4"):
            same = mean(a == b for a, b in zip(told["float32"], told[dtype], strict=True))
            gained = [b - a for a, b in zip(marks["float32"], marks[dtype], strict=True)]
            result[name][dtype] = {
                "same answer %": round(100 * same, 2),
                "points to float32": {
                    task: round(100 * mean(gained[part]), 1)
                    for task, part in zip(TASKS, parts(given.each), strict=True)
                },
            }
    write("quantization_accuracy", result)


if __name__ == "__main__":
    main()
