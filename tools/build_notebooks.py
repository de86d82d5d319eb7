"""Make all notebooks from their sources, one way; with --check, see that they are up to date.

    python tools/build_notebooks.py              make and execute everything
    python tools/build_notebooks.py 01 07        only these lessons
    python tools/build_notebooks.py --check      compare; exit code 1 if anything differs
    python tools/build_notebooks.py --nbgrader FOLDER      a course for nbgrader, instead

notebooks/src/NN_name.py   -> notebooks/NN_name.ipynb   executed, with outputs
exercises/src/NN_name.py   -> exercises/NN_name.ipynb   solutions cut out, no outputs
                           -> solutions/NN_name.ipynb   whole, no outputs
notebooks/src/*.py         -> docs/notes.md             the lessons' tables of what the notes say

A notebook that is no longer as build last wrote it is somebody's work: it is left alone, and the
comparison passes over it. With --pristine such notebooks are faults too: in the repository itself
nobody's work lies in them.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CHECKED = "nbval-check-output"  # nbval compares the output of cells with this tag
LARGEST = 1_500_000  # bytes of one executed notebook
MARK = "minipali"  # what build writes about a notebook into its metadata
# A path of somebody's machine; in text that quotes a string, Windows' backslashes come doubled.
OWN_PATH = re.compile(
    r"/home/|/Users/|/tmp/|/root/|/private/|/var/folders/|site-packages|\b[A-Za-z]:\\+\w"
)

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
    """Run all cells in a fresh kernel, from the folder that the notebook lies in.

    Warnings are not hidden: what is red here is red for the reader, and `complaints` says so.
    """
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
        kinds = [("exercises", without_solution), ("solutions", with_solution)]
        if not _MARKS.search(source.read_text(encoding="utf-8")):
            kinds.pop()  # a students' copy: see make_handout.py
        for folder, change in kinds:
            cells = notebook(source, f"{folder}-{source.stem}", change)
            made.append((ROOT / folder / f"{source.stem}.ipynb", cells, False))
    if only:
        made = [one for one in made if one[0].name.startswith(tuple(only))]
    return made


def chosen_lessons(description: str, files: list[Path]) -> list[Path]:
    """Those of the files that the command names; the beginnings of names are its arguments.

    Ends the program with a sentence if there are none.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("only", nargs="*", help="beginnings of names, such as 03")
    only = parser.parse_args().only
    names = sorted(file.stem for file in files)
    found = [file for file in sorted(files) if not only or file.name.startswith(tuple(only))]
    if not found:
        print(
            f"No lesson begins with {', '.join(only)}; they are called {names[0][:2]} to"
            f" {names[-1][:2]}."
        )
        sys.exit(2)
    return found


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


def bare(made: NotebookNode) -> list[dict]:
    """What must agree between a source and its notebook: everything but the outputs."""
    keys = ("id", "cell_type", "source", "metadata", "attachments")
    return [{key: cell[key] for key in keys if cell.get(key)} for cell in made.cells]


def fingerprints(made: NotebookNode) -> dict[str, str]:
    """Short digests of the cells and of their outputs.

    What a program changes when it opens and saves a notebook (the version of Python, the order of
    keys, the notebook's other metadata) is in neither.
    """
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    outputs = [(cell.get("execution_count"), cell.get("outputs", [])) for cell in code]
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
        for name, part in (("cells", bare(made)), ("outputs", outputs))
    }


def mark(found: NotebookNode) -> dict[str, str]:
    """The fingerprints that build left in the notebook; none if it is not by build."""
    left = found.metadata.get(MARK)
    return left if isinstance(left, dict) else {}


def read(path: Path) -> NotebookNode:
    """A notebook. Raises ValueError if the file is none, OSError if it cannot be read."""
    text = path.read_bytes()
    try:
        found = nbformat.reads(text.decode("utf-8"), as_version=4)
        fingerprints(found)
    except Exception as error:  # many kinds: no JSON, no cells, another version, odd bytes
        raise ValueError(
            f"what is there must be a whole notebook, and is none ({type(error).__name__});"
            " rename or delete it"
        ) from error
    return found


def changed(found: NotebookNode, expected: NotebookNode, executed: bool) -> set[str]:
    """Which of "cells" and "outputs" are neither as build last wrote them nor as it would now.

    Build's own mark says what it wrote, so git, dates and the environment play no part. A notebook
    that has lost its mark, or never had one, is compared with what build would write.
    """
    now, wrote, would = fingerprints(found), mark(found), fingerprints(expected)
    if executed:
        would.pop("outputs")  # not known before it is run
        if not wrote and now["cells"] == would["cells"]:
            would["outputs"] = now["outputs"]
    return {name for name in now if now[name] not in (wrote.get(name), would.get(name))}


def own_work(path: Path, expected: NotebookNode, executed: bool) -> str:
    """Why build must not replace this file, in words; "" if it may.

    In a lesson only the cells count: its outputs are made by build, and made again.
    Raises ValueError or OSError, in words too, if the file cannot be read: nobody can tell then.
    """
    if not os.path.lexists(path):
        return ""
    found = read(path)
    if not changed(found, expected, executed) - ({"outputs"} if executed else set()):
        return ""
    wrote = mark(found).get("cells")
    news = "" if wrote in (None, fingerprints(expected)["cells"]) else " Its source is newer."
    return (
        f"{path.relative_to(ROOT)} is not as build wrote it: it is yours, and left as it is.{news}"
        " To have it made anew, give yours another name first."
    )


def write(made: NotebookNode, path: Path) -> None:
    """Put a marked notebook in place, whole or not at all: killed half-way, the old one stands."""
    made.metadata[MARK] = fingerprints(made)
    write_text(nbformat.writes(made) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Replace a text file by another, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def complaints(path: Path, expected: NotebookNode, executed: bool) -> list[str]:
    """What is wrong with one committed notebook."""
    if not path.exists():
        return ["missing"]
    try:
        found = read(path)
    except (OSError, ValueError) as error:
        return [str(error)]
    wrong = []
    if bare(found) != bare(expected):
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
        if str(ROOT) in text or OWN_PATH.search(text):
            wrong.append(f"code cell {number} shows a path of the machine it ran on")
        if any(output.get("name") == "stderr" for output in cell.outputs):
            wrong.append(f"code cell {number} shows warnings or other text of stderr, in red")
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
    """Notebooks that build once wrote and no source makes any more; others are somebody's own."""
    known = {path for path, _, _ in made}
    folders = ("notebooks", "exercises", "solutions")
    others = [p for f in folders for p in sorted((ROOT / f).glob("*.ipynb")) if p not in known]
    return [path for path in others if is_as_written(path)]


def is_as_written(path: Path) -> bool:
    try:
        found = read(path)
    except (OSError, ValueError):
        return False
    return mark(found) == fingerprints(found)


def make(path: Path, cells: NotebookNode, executed: bool) -> bool:
    """Make one notebook, unless somebody's work is in its place; say which. False if it failed."""
    name = path.relative_to(ROOT)
    try:
        work = own_work(path, cells, executed)
        if executed and not work:
            execute(cells, path.parent)
            work = own_work(path, cells, executed)  # it may have been saved in these minutes
        if not work:
            write(cells, path)
    except (CellControlSignal, DeadKernelError) as error:
        print(f"{name} does not run, and is left as it was. {error}")
        return False
    except (OSError, ValueError) as error:
        print(f"{name} cannot be made, and is left as it was: {error}")
        return False
    print(work or f"made {name}")
    return True


def make_page(page: Path) -> bool:
    """Make the page about the notes. False if it failed."""
    try:
        write_text(notes_page(), page)
    except OSError as error:
        print(f"{page.relative_to(ROOT)} cannot be made, and is left as it was: {error}")
        return False
    print(f"made {page.relative_to(ROOT)}")
    return True


def compare(path: Path, cells: NotebookNode, executed: bool, pristine: bool) -> list[str]:
    """What is wrong with one notebook; nothing, in a notebook that is somebody's work."""
    wrong = complaints(path, cells, executed)
    if not wrong or pristine or not path.exists():
        return wrong
    try:
        theirs = changed(read(path), cells, executed)
    except (OSError, ValueError):
        return wrong
    return [] if theirs else wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Make all notebooks from their sources.")
    parser.add_argument("only", nargs="*", help="beginnings of names, such as 01")
    parser.add_argument("--check", action="store_true", help="compare instead of making")
    parser.add_argument(
        "--pristine", action="store_true", help="compare, and allow nobody's own work"
    )
    parser.add_argument(
        "--nbgrader", type=Path, metavar="FOLDER", help="make a course for nbgrader, instead"
    )
    given = parser.parse_args()
    if given.nbgrader:
        from make_nbgrader import make_course

        return make_course(given.nbgrader, given.only)
    made = plan(given.only)
    page = ROOT / "docs" / "notes.md"
    if not (given.check or given.pristine):
        done = [make(*one) for one in made]
        if not given.only:
            done.append(make_page(page))
        return 0 if all(done) else 1

    wrong = [
        f"{path.relative_to(ROOT)}: {complaint}"
        for path, cells, executed in made
        for complaint in compare(path, cells, executed, given.pristine)
    ]
    if not given.only:
        if not page.exists() or page.read_text("utf-8") != notes_page():
            wrong.append(f"{page.relative_to(ROOT)}: differs from the lessons")
        wrong += [
            f"{path.relative_to(ROOT)}: no source makes it; delete it or add its source"
            for path in stray(made)
        ]
    if wrong:
        print(*wrong, "Run `python course.py build` and commit the result.", sep="\n")
    else:
        print(f"{len(made)} notebooks are up to date, or somebody's own work.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
