"""Hand a student's row of the board to GitHub: a table for the reader, points for GitHub Classroom.

    python tools/report_to_classroom.py board.csv

The points go to the step's output `result`, in the form that autograding-grading-reporter reads:
base64 of JSON with the keys status, max_score and tests. See .github/workflows/classroom.yml.
"""

import base64
import csv
import json
import os
import sys
from pathlib import Path


def result_of(row: dict[str, str]) -> dict:
    """A row of the board as a result of one runner: a test and a point for each piece."""
    tests = [
        {
            "name": piece,
            "status": "pass" if status == "correct" else "fail",
            "score": int(status == "correct"),
            "message": status,
        }
        for piece, status in row.items()
    ]
    passed = all(one["status"] == "pass" for one in tests)
    return {
        "version": 1,
        "status": "pass" if passed else "fail",
        "max_score": len(tests),
        "tests": tests,
    }


def main(file: Path) -> None:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        [row] = csv.DictReader(lines)
    del row["student"]
    result = base64.b64encode(json.dumps(result_of(row)).encode()).decode()
    right = sum(status == "correct" for status in row.values())
    table = "".join(f"| {piece} | {status} |\n" for piece, status in row.items())
    with open(os.environ["GITHUB_STEP_SUMMARY"], "a", encoding="utf-8") as summary:
        summary.write(f"{right} of {len(row)} pieces\n\n| piece | |\n|---|---|\n{table}")
    with open(os.environ["GITHUB_OUTPUT"], "a", encoding="utf-8") as output:
        output.write(f"result={result}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
