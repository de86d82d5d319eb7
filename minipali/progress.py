"""How far a learner has come: which pieces of the model are written, and pass their checks.

python course.py progress          runs the exercises as they are saved, and draws the model
python course.py progress 07 13    runs these, and says what each of their pieces lacks

With --class FOLDER it is a teacher's command: see `minipali.classroom`.
"""

import argparse
import ast
import json
import re
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from minipali.attempts import TIME_LIMIT as CLASS_TIME_LIMIT
from minipali.checks.engine import CORRECT, NOT_ATTEMPTED, examine
from minipali.checks.lessons import by_lesson
from minipali.paligemma import PaliGemma
from minipali.running import TIME_LIMIT, Report, code_cells, run_all
from minipali.swap import pieces_of
from minipali.tokens import Processor

# The pieces in the order in which data flows. Each name becomes a box with its mark.
DRAWING = """
      picture                    ||     question
         |                       ||        |
{to_pixels}                      ||{prompt_ids}
         |                       ||{pad_rows}
{embed_patches}                  ||        |
vision tower                     ||{embed}
{encoder_layer}                  ||        |
  {layer_norm}                   ||        |
  {multi_head_attention}         ||        |
  {mlp}                          ||        |
{image_tokens}                   ||        |
         |                       ||        |
         +---------------+----------------+
                         |
              {token_positions}
              {merge}
              {prefix_lm_mask}
              Gemma decoder
              {decoder}
                {decoder_layer}
                  {rms_norm}
                  {grouped_query_attention}
                    {rope_angles}
                    {apply_rope}
                    {cache_update}
                    {repeat_kv}
                    {attend}
                  {geglu}
              {logits}
                         |
              {distribution}
              {continue_tokens}
                         |
                     next token
"""
COLUMN = 34  # where the right half begins, in lines that have two halves
YES, NO, NOT_YET = "✓", "✗", "."
INTERRUPTED = 130


def draw(marks: dict[str, str]) -> str:
    """The model as text, each piece with its lesson and its mark; "." where there is none."""
    numbers = {one.name: stem[:2] for stem, of_lesson in by_lesson().items() for one in of_lesson}

    def box(found: re.Match) -> str:
        name = found[1]
        return f"{marks.get(name, NOT_YET)} {numbers.get(name, '  ')} {name}"

    lines = re.sub(r"\{(\w+)\}", box, DRAWING.strip("\n")).splitlines()
    halves = [[half.rstrip() for half in line.split("||")] for line in lines]
    return "\n".join(
        left.ljust(COLUMN) + "".join(right) if right else left for left, *right in halves
    )


# --- the functions that a learner has written -----------------------------------------------------


def definitions(cells: list[str]) -> Iterator[ast.stmt]:
    """The statements that define something, without those that run minipali (load, swap, ...).

    A cell that is no Python, and one that uses IPython's % and !, is passed over.
    """
    costly: set[str] = set()
    for cell in cells:
        try:
            statements = ast.parse(cell).body
        except SyntaxError:
            continue
        for one in statements:
            named = {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}
            if isinstance(one, (ast.Import, ast.ImportFrom)):
                if "minipali" in ast.unparse(one):
                    costly |= {alias.asname or alias.name for alias in one.names}
                yield one
            elif isinstance(one, (ast.FunctionDef, ast.ClassDef)):
                yield one
            elif isinstance(one, (ast.Assign, ast.AnnAssign)):
                if named & costly:
                    costly |= named
                else:
                    yield one


def checked_functions(notebook: Path) -> dict[str, Callable]:
    """What the notebook gives to `check`, by exercise; only its definitions are run.

    A cell that cannot be run leaves its names undefined, and their checks are left out.
    """
    cells, scope = code_cells(notebook), {}
    for statement in definitions(cells):
        code = compile(ast.Module([statement], []), str(notebook), "exec")
        try:
            exec(code, scope)
        except Exception:
            continue
    found = {}
    for cell in cells:
        for name, given in re.findall(r"^check\(\s*[\"'](\w+)[\"']\s*,\s*(\w+)\s*\)", cell, re.M):
            if given in scope:
                found[name] = scope[given]
    return found


def my_functions(
    wanted: Container[str], folder: str | Path = ".", last: int = 10
) -> dict[str, Callable]:
    """The learner's functions of these names, as far as they pass their checks.

    Reads the exercises 01 to `last` that lie in the folder.
    """
    found = {}
    for stem, of_lesson in list(by_lesson().items())[:last]:
        notebook = Path(folder) / f"{stem}.ipynb"
        if not notebook.exists():
            continue
        written = checked_functions(notebook)
        for one in of_lesson:
            if one.name in wanted and one.name in written:
                outcome = examine(one, written[one.name])
                if outcome.status == CORRECT:
                    found[one.name] = written[one.name]
    return found


def my_pieces(
    whole: PaliGemma | Processor, folder: str | Path = ".", last: int = 10
) -> dict[str, Callable]:
    """The learner's pieces that fit into a model, or into a processor: `swap(whole, **pieces)`.

    Reads the exercises 01 to `last` that lie in the folder, and keeps what passes its check.
    """
    return my_functions(pieces_of(whole), folder, last)


# --- what is shown --------------------------------------------------------------------------------

PLAIN = str.maketrans({YES: "+", NO: "x", "…": "."})


def tell(text: str = "") -> None:
    """Print, on a console that cannot write a tick with other marks."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    print(text)


def lines_about(report: Report, every_piece: bool = False) -> Iterator[str]:
    """A line that counts, then one for each thing that is wrong, or for every piece."""
    names = [one.name for one in by_lesson()[report.stem]]
    latest = report.latest()
    right = [n for n in names if n in latest and latest[n].status == CORRECT]
    started = any(n in latest and latest[n].status != NOT_ATTEMPTED for n in names)
    state = f"{len(right)} of {len(names)} verified" if started else "not started"
    yield f"{report.stem:16} {state}"
    for outcome in latest.values():
        if every_piece or outcome.status not in (CORRECT, NOT_ATTEMPTED):
            yield f"    {outcome}"
    for trouble in report.trouble:
        yield f"    {NO} {trouble}"


DAY = 24 * 60 * 60  # seconds


def self_test(lesson: Path) -> list[str]:
    """The questions at the end of a lesson, as plain text; none if there is no such notebook."""
    try:
        cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.findall(r"<summary>(.*?)</summary>", text.partition("**Self-test**")[2], re.DOTALL)
    return [" ".join(re.sub("</?code>", "`", one).split()) for one in found]


def review(reports: list[Report], folder: Path, now: float) -> Iterator[str]:
    """A question of each of the three lessons that were finished longest ago, and before yesterday.

    Every day it is another one. now: seconds since 1970; a lesson counts as finished when its
    exercise, all verified, was last saved.
    """
    done = []
    for report in reports:
        latest = report.latest()
        names = [one.name for one in by_lesson()[report.stem]]
        if all(name in latest and latest[name].status == CORRECT for name in names):
            done.append(((folder / f"{report.stem}.ipynb").stat().st_mtime, report.stem))
    for saved, stem in sorted(done)[:3]:
        days = int((now - saved) / DAY)
        questions = self_test(folder.resolve().parent / "notebooks" / f"{stem}.ipynb")
        if days >= 2 and questions:
            yield f"{stem}, finished {days} days ago: {questions[int(now / DAY) % len(questions)]}"


def stems_of(lessons: Sequence[str]) -> list[str]:
    """The exercises whose names begin so, or all of them. Raises ValueError if there is none."""
    stems = list(by_lesson())
    asked = {one: [stem for stem in stems if stem.startswith(one.zfill(2))] for one in lessons}
    for one, found in asked.items():
        if not found:
            raise ValueError(f"no exercise begins with {one!r}; there are: {', '.join(stems)}")
    return [stem for stem in stems if not asked or any(stem in one for one in asked.values())]


def show_progress(folder: Path, time_limit: float, lessons: Sequence[str] = ()) -> int:
    """Run the exercises in the folder, draw the model and list what is wrong.

    lessons: beginnings of names, such as "07"; then these alone, without the drawing.
    """
    try:
        stems = stems_of(lessons)
    except ValueError as error:
        return _fail(str(error))
    notebooks = [folder / f"{stem}.ipynb" for stem in stems]
    missing = [path.name for path in notebooks if not path.exists()]
    notebooks = [path for path in notebooks if path.exists()]
    if not notebooks:
        return _fail(f"there must be exercises in {folder}, found none")
    try:
        reports = run_all(notebooks, time_limit)
    except KeyboardInterrupt:
        tell("Interrupted: all notebooks are stopped. Those that had finished are remembered.")
        return INTERRUPTED
    marks = {
        name: {CORRECT: YES, NOT_ATTEMPTED: NOT_YET}.get(outcome.status, NO)
        for report in reports
        for name, outcome in report.latest().items()
    }
    if not lessons:
        tell(draw(marks))
        tell(f"\n{YES} verified   {NO} not right yet   {NOT_YET} not written yet\n")
    for report in reports:
        tell("\n".join(lines_about(report, every_piece=bool(lessons))))
    for name in missing:
        tell(f"{name} is missing: python course.py build makes it again")
    names = [one.name for report in reports for one in by_lesson()[report.stem]]
    tell(f"\n{sum(marks.get(name) == YES for name in names)} of {len(names)} pieces verified.")
    questions = list(review(reports, folder, time.time()))
    if questions and not lessons:
        tell('\nDo you remember? (The answers stand under "Self-test" in each lesson.)')
        tell("\n".join(f"    {question}" for question in questions))
    return 0


def show_class(
    folder: Path, time_limit: float, lessons: Sequence[str] = (), table: Path | None = None
) -> int:
    """Mark the notebooks of a class, show the board, and write it as CSV to `table`."""
    from minipali import classroom

    try:
        stems = stems_of(lessons)
        students = classroom.students_in(folder)
    except (OSError, ValueError) as error:
        return _fail(str(error))
    if not students:
        return _fail(f"{folder} must have one folder a student, with notebooks in it; found none")
    if table and not table.parent.is_dir():  # said before the minutes of marking
        return _fail(f"the folder of {table} must exist, and does not")
    try:
        rows = classroom.mark_all(students, stems, time_limit)
    except KeyboardInterrupt:
        tell("Interrupted: all that ran is stopped, and nothing is written.")
        return INTERRUPTED
    tell(classroom.board(rows, stems))
    if table:
        try:
            classroom.write_csv(classroom.as_csv(rows, stems), table)
        except OSError as error:
            return _fail(f"{table} could not be written: {error}")
    return 0


def _fail(message: str) -> int:
    print(f"minipali: error: {message}", file=sys.stderr)
    return 2


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="course.py progress", description="Run the exercises and draw what is verified."
    )
    parser.add_argument(
        "lessons", nargs="*", metavar="LESSON", help="beginnings of names, such as 07: only these"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("exercises"), help="where the exercises are"
    )
    parser.add_argument(
        "--class",
        type=Path,
        dest="class_folder",
        metavar="FOLDER",
        help="mark a class: one folder a student, with that student's exercise notebooks",
    )
    parser.add_argument(
        "--lesson",
        action="append",
        default=[],
        dest="lessons_too",
        metavar="LESSON",
        help="the same as LESSON",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="with --class: write the board to this file, too"
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="SECONDS",
        help=f"for each notebook (default: {TIME_LIMIT}; with --class: {CLASS_TIME_LIMIT})",
    )  # fmt: skip
    given = parser.parse_args()
    lessons = given.lessons + given.lessons_too
    if given.class_folder:
        limit = given.time_limit or CLASS_TIME_LIMIT
        return show_class(given.class_folder, limit, lessons, given.csv)
    if given.csv:
        parser.error("--csv writes the board of a class: it needs --class FOLDER")
    return show_progress(given.folder, given.time_limit or TIME_LIMIT, lessons)


if __name__ == "__main__":
    sys.exit(main())
