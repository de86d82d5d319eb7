"""Make all notebooks from their sources, one way; with --check, see that they are up to date.

    python tools/build_notebooks.py              make and execute everything
    python tools/build_notebooks.py 01 07        only these lessons
    python tools/build_notebooks.py --check      compare; exit code 1 if anything differs

notebooks/src/NN_name.py   -> notebooks/NN_name.ipynb   executed, with outputs
exercises/src/NN_name.py   -> exercises/NN_name.ipynb   solutions cut out, no outputs
                           -> solutions/NN_name.ipynb   whole, no outputs
notebooks/src/*.py         -> docs/notes.md             the lessons' tables of what the notes say
"""

import argparse
import hashlib
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CHECKED = "nbval-check-output"  # nbval compares the output of cells with this tag
LARGEST = 1_500_000  # bytes of one executed notebook

_SOLUTION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION\n?",
    re.MULTILINE | re.DOTALL,
)
_MARKS = re.compile(r"^[ \t]*### (BEGIN|END) SOLUTION\n?", re.MULTILINE)


def without_solution(code: str) -> str:
    """Replace what stands between the solution marks by a line that says what is missing."""
    missing = r'\g<indent>raise NotImplementedError("replace this line")  # your turn' + "\n"
    return _SOLUTION.sub(missing, code).rstrip("\n")


def with_solution(code: str) -> str:
    """Remove the marks and keep what stands between them."""
    return _MARKS.sub("", code).rstrip("\n")


def notebook(source: Path, name: str, change=lambda code: code) -> NotebookNode:
    """Read a py:percent source as a notebook without outputs.

    Cell ids follow from the notebook's name and the cell's place, so that two builds are equal.
    """
    made = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(made.cells):
        cell.id = hashlib.sha1(f"{name}-{number}".encode()).hexdigest()[:8]
        cell.metadata.pop("lines_to_next_cell", None)
        if cell.cell_type == "code":
            cell.source = change(cell.source)
            cell.outputs, cell.execution_count = [], None
    made.metadata = NotebookNode(kernelspec=KERNEL)
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def execute(made: NotebookNode, folder: Path) -> None:
    """Run all cells in a fresh kernel, from the folder that the notebook lies in."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar that moves has no place on paper
    client = NotebookClient(
        made, timeout=600, resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute()
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    made.metadata = NotebookNode(kernelspec=KERNEL)  # without the version of Python


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of printed text as one: where a kernel cuts them is chance."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == "stream" and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def plan(only: list[str]) -> list[tuple[Path, NotebookNode, bool]]:
    """Every notebook to make: its path, its cells, and whether it is executed."""
    made = []
    for source in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        name = source.stem
        made.append(
            (ROOT / "notebooks" / f"{name}.ipynb", notebook(source, f"lesson-{name}"), True)
        )
    for source in sorted((ROOT / "exercises" / "src").glob("*.py")):
        for folder, change in (("exercises", without_solution), ("solutions", with_solution)):
            cells = notebook(source, f"{folder}-{source.stem}", change)
            made.append((ROOT / folder / f"{source.stem}.ipynb", cells, False))
    if only:
        made = [one for one in made if one[0].name.startswith(tuple(only))]
    return made


NOTES = "### What the notes say, and what is true"


def notes_page() -> str:
    """One page of what the lessons say about the notes, each table under its lesson's title."""
    parts = [
        "# What the notes say, and what is true",
        "This course grew from a student's notes on PaliGemma. They ask the right questions, and"
        " some of their answers are common mistakes. Here are all of them, as the lessons put them"
        " right. The page is made from the lessons by `python course.py build`.",
    ]
    for source in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        prose = [c.source for c in jupytext.read(source, fmt="py:percent").cells]
        title = prose[0].splitlines()[0].removeprefix("# ")
        for cell in prose:
            if NOTES in cell:
                table = cell.split(NOTES, 1)[1].split("\n## ", 1)[0]
                rows = [line for line in table.splitlines() if line.startswith("|")]
                parts += [f"## [{title}](../notebooks/{source.stem}.ipynb)", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def bare(made: NotebookNode) -> list[tuple]:
    """What must agree between a source and its notebook: everything but the outputs."""
    return [(c.id, c.cell_type, c.source, dict(c.metadata)) for c in made.cells]


def has_answers(path: Path, expected: NotebookNode) -> bool:
    """Whether a learner has worked in this exercise: something ran, or a gap is filled."""
    if path.parent.name != "exercises" or not path.exists():
        return False
    found = nbformat.read(path, as_version=4)
    gaps = {cell.id for cell in expected.cells if "raise NotImplementedError" in cell.source}
    open_gaps = {cell.id for cell in found.cells if "raise NotImplementedError" in cell.source}
    ran = any(cell.get("outputs") or cell.get("execution_count") for cell in found.cells)
    return ran or not gaps <= open_gaps


def complaints(path: Path, expected: NotebookNode, executed: bool) -> list[str]:
    """What is wrong with one committed notebook."""
    if not path.exists():
        return ["missing"]
    found = nbformat.read(path, as_version=4)
    wrong = []
    if bare(found) != bare(expected) or found.metadata != expected.metadata:
        wrong.append("differs from its source")
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    if not executed:
        if any(cell.outputs or cell.execution_count for cell in code):
            wrong.append("has outputs; exercises and solutions are committed without")
        return wrong
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        wrong.append("was not executed from top to bottom")
    for number, cell in enumerate(code, start=1):
        # Text alone: among the letters of an encoded picture anything turns up.
        text = "".join(
            output.get("text", "") + output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        )
        if any(output.output_type == "error" for output in cell.outputs):
            wrong.append(f"code cell {number} ends in an error")
        if str(ROOT) in text or re.search(r"(/home/|/Users/|/tmp/|/root/|[A-Z]:\\\\Users)", text):
            wrong.append(f"code cell {number} shows a path of the machine it ran on")
        if CHECKED in cell.metadata.get("tags", []) and not cell.outputs:
            wrong.append(f"code cell {number} is tagged {CHECKED} but has no output")
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                html = "".join(output["data"].get("text/html", ""))
                if len(alt) < 20 or '<img alt="' not in html:
                    wrong.append(f"the figure of code cell {number} has no alt text")
    if path.stat().st_size > LARGEST:
        wrong.append(f"has {path.stat().st_size:,} bytes; at most {LARGEST:,}")
    return wrong


def stray(made: list[tuple[Path, NotebookNode, bool]]) -> list[Path]:
    """Notebooks that no source makes."""
    known = {path for path, _, _ in made}
    folders = ("notebooks", "exercises", "solutions")
    return [p for f in folders for p in sorted((ROOT / f).glob("*.ipynb")) if p not in known]


def main() -> int:
    parser = argparse.ArgumentParser(description="Make all notebooks from their sources.")
    parser.add_argument("only", nargs="*", help="beginnings of names, such as 01")
    parser.add_argument("--check", action="store_true", help="compare instead of making")
    given = parser.parse_args()
    made = plan(given.only)
    failures = 0
    for path, cells, executed in made:
        name = path.relative_to(ROOT)
        if has_answers(path, cells) and not os.environ.get("CI"):
            print(f"{name} holds answers and is left as it is; delete it to have it made anew.")
            continue
        if given.check:
            for complaint in complaints(path, cells, executed):
                print(f"{name}: {complaint}")
                failures += 1
            continue
        if executed:
            execute(cells, path.parent)
        path.parent.mkdir(exist_ok=True)
        nbformat.write(cells, path)
        print(f"made {name}")
    page = ROOT / "docs" / "notes.md"
    if not given.only and not given.check:
        page.parent.mkdir(exist_ok=True)
        page.write_text(notes_page(), encoding="utf-8", newline="\n")
        print(f"made {page.relative_to(ROOT)}")
    if given.check:
        if not given.only and (not page.exists() or page.read_text("utf-8") != notes_page()):
            print(f"{page.relative_to(ROOT)}: differs from the lessons")
            failures += 1
        for path in [] if given.only else stray(made):
            print(f"{path.relative_to(ROOT)}: no source makes it; delete it or add its source")
            failures += 1
        if failures:
            print("Run `python course.py build` and commit the result.")
        else:
            print(f"{len(made)} notebooks are up to date.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
