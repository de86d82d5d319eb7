"""Write the students' copy of the course: without solutions and without the assessment.

    python course.py handout FOLDER

Left out are `solutions/`, `assessment/` and git's history, which holds both. In `exercises/src`
each solution is replaced by the line that says what is missing: so `build` goes on to make the same
exercises, and makes no solutions. What git does not track stays here.

The package stays whole, as the lessons run on it: whoever reads `minipali/` finds the finished
pieces, and in `minipali/checks` what the exercises are compared with.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import build_notebooks
import update_course

ROOT = Path(__file__).resolve().parents[1]
WITHHELD = ("solutions/", "assessment/")


def files() -> list[str]:
    """The names of the course's files: what git tracks, or all where there is no git."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        names = update_course.git("ls-files", "-z", folder=ROOT).split("\0")
    else:
        names = list(update_course.here())
    return sorted(name for name in names if name and (ROOT / name).is_file())


def write(folder: Path) -> None:
    """Fill an empty folder."""
    for name in files():
        target = folder / name
        if name.startswith(WITHHELD) or name.startswith("exercises/") and name.endswith(".ipynb"):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("exercises/src/") and name.endswith(".py"):
            source = (ROOT / name).read_text(encoding="utf-8")
            stub = build_notebooks.without_solution(source) + "\n"
            target.write_text(stub, encoding="utf-8", newline="\n")
        else:
            shutil.copy2(ROOT / name, target)
    # Made anew: a teacher may have solved those that lie here.
    for source in sorted((folder / "exercises" / "src").glob("*.py")):
        made = build_notebooks.notebook(source, f"exercises-{source.stem}")
        build_notebooks.write(made, folder / "exercises" / f"{source.stem}.ipynb")


def make(folder: Path) -> None:
    """Make the folder as a whole, or not at all. Raises FileExistsError if there is one."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} must be empty or not there, and has something in it")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    if folder.exists():
        folder.rmdir()
    os.replace(part, folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="course.py handout",
        description="Write the students' copy: without solutions and without the assessment.",
    )
    parser.add_argument("folder", type=Path, help="where to; empty or not there")
    folder = parser.parse_args().folder.resolve()
    try:
        make(folder)
    except (OSError, update_course.Failure) as error:
        print(f"course.py: no handout: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is the students' copy. Try it: cd there, python course.py test")
    if not (ROOT / ".git").exists():
        print(
            "There is no git here to tell the course's files from yours: see that none went along."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
