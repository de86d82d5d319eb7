"""A board of a class: one row a student, one column a piece.

python course.py progress --class FOLDER [--lesson 07] [--csv FILE]

FOLDER has one folder a student, with that student's exercise notebooks. docs/marking.md says what
each word means, and what is protected and what is not.
"""

import csv
import io
import multiprocessing
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from wcwidth import wcswidth

from minipali.attempts import MEMORY, STOPPED, TIME_LIMIT, Written
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, REFUSED, WRONG, Outcome
from minipali.checks.lessons import by_lesson
from minipali.running import code_cells
from minipali.student_process import limit_memory

MARKS = {
    CORRECT: "✓", WRONG: "✗", CRASHED: "!", REFUSED: "R", STOPPED: "S", NOT_ATTEMPTED: ".",
}  # fmt: skip
KILLED = "The process that marks was killed, perhaps by this student's code."
LARGEST = 30_000_000  # bytes of a notebook
FORMULA = tuple(
    "=+-@\uff1d\uff0b\uff0d\uff20"
)  # a cell that begins so is a formula for a spreadsheet


@dataclass
class Student:
    """One row of the board."""

    name: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by piece
    trouble: list[str] = field(default_factory=list)  # what the teacher should know


def plain(text: str) -> str:
    """A text of a student's without what could steer a terminal, or break a line."""
    return "".join(one if one.isprintable() else "?" for one in text)


# --- finding --------------------------------------------------------------------------------------


def students_in(folder: Path) -> list[Path]:
    """The students' folders, by name. A link is none: it could lead to anybody's files."""
    found = [one for one in folder.iterdir() if not one.name.startswith((".", "__"))]
    found = [one for one in found if one.is_dir() and not _is_link(one)]
    return sorted(found, key=lambda one: (one.name.casefold(), one.name))


def _is_link(path: Path) -> bool:
    return path.is_symlink() or (hasattr(path, "is_junction") and path.is_junction())


def notebooks_of(folder: Path, stem: str) -> list[Path]:
    """The places of a notebook: in the student's folder, else in folders in it.

    If it is a copy of the whole course, lessons and solutions have the same names.
    """
    name = f"{stem}.ipynb"
    inside = sorted(one for one in folder.iterdir() if one.is_dir() and not _is_link(one))
    inside = [one for one in inside if one.name not in ("notebooks", "solutions")]
    found = [one / name for one in (folder, *inside) if os.path.lexists(one / name)]
    return found[:1] if found and found[0].parent == folder else found


def cells_of(notebook: Path) -> list[str]:
    """The code of a student's notebook. Raises ValueError, in words, if it cannot be had."""
    kind = notebook.lstat()
    if _is_link(notebook) or not stat.S_ISREG(kind.st_mode):
        raise ValueError("it must be a file of its own, and is a link or a device")
    if kind.st_size > LARGEST:
        raise ValueError(
            f"it must have {LARGEST / 1e6:g} MB at most, and has {kind.st_size / 1e6:.0f}: clear"
            " its outputs"
        )
    try:
        return code_cells(notebook)
    except (ValueError, RecursionError, AttributeError) as error:
        kind = type(error.__cause__ or error).__name__
        raise ValueError(f"it must be a Jupyter notebook, and is none ({kind})") from error


# --- marking --------------------------------------------------------------------------------------


def marked(cells: list[str], stem: str, time_limit: float = TIME_LIMIT) -> list[Outcome]:
    """The outcome of every piece of a lesson, from the code of a notebook."""
    written = Written(cells, stem, time_limit)
    try:
        return [written.outcome(one) for one in by_lesson()[stem]]
    finally:
        written.close()


def marked_student(folder: Path, stems: list[str], time_limit: float) -> Student:
    """A student's row."""
    student = Student(folder.name)
    for stem in stems:
        names = [one.name for one in by_lesson()[stem]]
        status, said = NOT_ATTEMPTED, "There is no such notebook."
        found = notebooks_of(folder, stem)
        for copy in sorted(folder.glob(f"{stem}*.ipynb")):
            if copy.stem != stem and not found:
                student.trouble.append(f"{copy.name} is not read: its name must be {stem}.ipynb")
        if found:
            place = found[0].relative_to(folder).as_posix()
            if len(found) > 1:
                others = ", ".join(one.relative_to(folder).as_posix() for one in found[1:])
                student.trouble.append(f"{place} is taken, and not {others}")
            try:
                cells = cells_of(found[0])
            except (OSError, ValueError) as error:
                status, said = CRASHED, f"{place}: {error}"
                student.trouble.append(said)
            else:
                outcomes = marked(cells, stem, time_limit)
                student.outcomes |= {one.name: one for one in outcomes}
                continue
        student.outcomes |= {name: Outcome(name, status, said) for name in names}
    return student


def mark_all(
    folders: list[Path], stems: list[str], time_limit: float = TIME_LIMIT
) -> list[Student]:
    """Every student's row, in this order; as many at a time as there are processors, 4 at most."""
    done: dict[Path, Student] = {}
    with _pool(min(4, os.cpu_count() or 1)) as pool:
        waiting = {pool.submit(marked_student, one, stems, time_limit): one for one in folders}
        bar = tqdm(as_completed(waiting), "students", len(waiting), leave=False, disable=None)
        try:
            for one in bar:
                folder = waiting[one]
                try:
                    done[folder] = one.result()
                except BrokenProcessPool:
                    pass  # a student's code has killed the process that marks: see below
                except Exception as error:  # such as a folder that may not be read
                    done[folder] = _unmarked(folder, stems, f"{type(error).__name__}: {error}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done.get(one) or _marked_apart(one, stems, time_limit) for one in folders]


def _marked_apart(folder: Path, stems: list[str], time_limit: float) -> Student:
    """A row that was lost with its pool, in a process for it alone; *stopped* if that dies too."""
    try:
        return _apart(marked_student, folder, stems, time_limit)
    except BrokenProcessPool:
        return _unmarked(folder, stems, KILLED)


def _unmarked(folder: Path, stems: list[str], said: str) -> Student:
    names = [one.name for stem in stems for one in by_lesson()[stem]]
    return Student(folder.name, {one: Outcome(one, STOPPED, said) for one in names}, [said])


def marked_apart(cells: list[str], stem: str, time_limit: float = TIME_LIMIT) -> list[Outcome]:
    """The same as `marked`, in a process of its own, which a student's code may kill."""
    try:
        return _apart(marked, cells, stem, time_limit)
    except BrokenProcessPool:
        return [Outcome(one.name, STOPPED, KILLED) for one in by_lesson()[stem]]


def _apart(function: Callable, *given):
    with _pool(1) as pool:
        return pool.submit(function, *given).result()


def _pool(size: int) -> ProcessPoolExecutor:
    """Processes that mark. Each is fresh, and none is this one: a check changes torch's settings.

    What a student's numbers make them compute may not take all memory.
    """
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(size, fresh, initializer=limit_memory, initargs=(2 * MEMORY,))


# --- what is shown --------------------------------------------------------------------------------


def board(students: list[Student], stems: list[str]) -> str:
    """The board as text, with a legend, troubles, and the mistakes that several students made."""
    lessons = {stem: [one.name for one in by_lesson()[stem]] for stem in stems}
    names = [_cut(plain(one.name)) for one in students]
    width = max(len("student"), *map(wcswidth, names)) + 2
    several = len(stems) > 1

    def line(first: str, groups: list[str], last: str = "") -> str:
        cells = [
            one.ljust(max(2, len(of))) for one, of in zip(groups, lessons.values(), strict=True)
        ]
        return (first + " " * (width - wcswidth(first)) + "  ".join(cells) + "  " + last).rstrip()

    total = sum(map(len, lessons.values()))
    lines = [
        line("", [stem[:2] if several else stem for stem in stems]),
        line("student", ["".join(str(i + 1) for i in range(len(of))) for of in lessons.values()]),
    ]
    for name, student in zip(names, students, strict=True):
        marks = [
            "".join(MARKS[student.outcomes[one].status] for one in of) for of in lessons.values()
        ]
        right = sum(one.status == CORRECT for one in student.outcomes.values())
        lines.append(line(name, marks, f"{right} of {total}"))
    lines += ["", "   ".join(f"{mark} {status}" for status, mark in MARKS.items()), ""]
    lines.append(f"Correct, of {len(students)} students:")
    for stem, pieces in lessons.items():
        told = [
            f"{i} {name} {sum(one.outcomes[name].status == CORRECT for one in students)}"
            for i, name in enumerate(pieces, start=1)
        ]
        lines.append(f"{stem:16} {'   '.join(told)}")
    if common := list(_common(students)):
        lines += ["", "Said to several:", *common]
    if troubles := [f"{one.name}: {said}" for one in students for said in one.trouble]:
        lines += ["", "To look at:", *map(plain, troubles)]
    return "\n".join(lines)


def _cut(name: str, most: int = 28) -> str:
    while wcswidth(name) > most:
        name = name[:-2] + "…"
    return name


def _common(students: list[Student]) -> Iterator[str]:
    """The sentences about known mistakes that at least two students got; the ten most frequent."""
    said = Counter(
        (one.name, named)
        for student in students
        for one in student.outcomes.values()
        if one.status == WRONG and (named := one.message.split(" Case ")[0].strip())
        and not named.startswith("Case ")
    )  # fmt: skip
    for (piece, sentence), number in said.most_common(10):
        if number > 1:
            yield f"{number:3} {piece}: {plain(sentence)}"


def as_csv(students: list[Student], stems: list[str]) -> str:
    """One row a student: `student`, then a column for each piece with its status.

    A name that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    pieces = [one.name for stem in stems for one in by_lesson()[stem]]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["student", *pieces])
    for one in students:
        name = plain(one.name)
        name = f"'{name}" if name.startswith(FORMULA) else name
        rows.writerow([name, *(one.outcomes[piece].status for piece in pieces)])
    return text.getvalue()


def write_csv(text: str, path: Path) -> None:
    """Whole or not at all. With the mark by which spreadsheets know UTF-8."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8-sig", errors="replace", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
