"""A course for nbgrader from the exercises' sources: `python course.py build --nbgrader FOLDER`.

Each lesson is an assignment: cells with a solution are the student's, those with a check are locked
and give a point. docs/marking.md says how it is used.
"""

import re
from pathlib import Path

import nbformat
from build_notebooks import ROOT, notebook
from nbformat import NotebookNode

from minipali.autograding import CHECK

CONFIG = '''\
"""nbgrader's settings for minipali. Whoever grades needs the package: see docs/marking.md."""

c = get_config()  # noqa: F821 - nbgrader's own

c.CourseDirectory.course_id = "minipali"
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("replace this line")'}
# Students' cells do not run where points are given. Without this line every check gives its point.
c.Autograde.autograde_preprocessors = [
    "minipali.autograding.Mark",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
'''


def assignment(source: Path) -> NotebookNode:
    """An exercise with its solutions between their marks, and with nbgrader's metadata."""
    made = notebook(source, f"nbgrader-{source.stem}")
    for cell in made.cells:
        if cell.cell_type != "code":
            continue
        own = {"schema_version": 3, "task": False, "solution": False, "grade": False}
        if "### BEGIN SOLUTION" in cell.source:
            piece = re.findall(r"^def (\w+)", cell.source, re.M)[-1]
            cell.metadata.nbgrader = {**own, "solution": True, "locked": False, "grade_id": piece}
        elif found := re.fullmatch(r'check\("(\w+)", \w+\)', cell.source.strip()):
            name = {"grade_id": CHECK + found[1], "points": 1}
            cell.metadata.nbgrader = {**own, "grade": True, "locked": True, **name}
    return made


def make_course(folder: Path, only: list[str]) -> int:
    """Write the course into a new folder; the exit code."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        print(f"{folder} must be a new or an empty folder; what is there is left as it is.")
        return 2
    sources = sorted((ROOT / "exercises" / "src").glob("*.py"))
    sources = [one for one in sources if not only or one.stem.startswith(tuple(only))]
    for source in sources:
        place = folder / "source" / source.stem
        place.mkdir(parents=True)
        text = nbformat.writes(assignment(source)) + "\n"
        (place / f"{source.stem}.ipynb").write_text(text, encoding="utf-8", newline="\n")
    (folder / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8", newline="\n")
    print(f"{len(sources)} assignments in {folder}. Next: docs/marking.md, nbgrader")
    return 0
