"""How far a learner has come: which pieces of the model are written, and pass their checks.

    python course.py progress          runs the exercises as they are saved, and draws the model

Notebooks are only read. They run in processes of their own, each with a time limit.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from minipali import checks
from minipali.checks.engine import CORRECT, NOT_ATTEMPTED, Outcome, examine
from minipali.checks.lessons import by_lesson
from minipali.paligemma import PaliGemma
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
TIME_LIMIT = 300  # seconds for one notebook; that of lesson 05 trains a model


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


def code_cells(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell. Raises ValueError if it is not a whole notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} must be a readable Jupyter notebook: {error}") from error


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


def my_pieces(
    whole: PaliGemma | Processor, folder: str | Path = ".", last: int = 10
) -> dict[str, Callable]:
    """The learner's pieces that fit into a model, or into a processor: `swap(whole, **pieces)`.

    Reads the exercises 01 to `last` that lie in the folder, and keeps what passes its check.
    """
    wanted = pieces_of(whole)
    pieces = {}
    for stem, of_lesson in list(by_lesson().items())[:last]:
        notebook = Path(folder) / f"{stem}.ipynb"
        if not notebook.exists():
            continue
        written = checked_functions(notebook)
        for one in of_lesson:
            if one.name in wanted and one.name in written:
                outcome = examine(one, written[one.name])
                if outcome.status == CORRECT:
                    pieces[one.name] = written[one.name]
    return pieces


# --- running the notebooks ------------------------------------------------------------------------


@dataclass
class Report:
    """What happened when one exercise ran: the outcomes in order, and what else went wrong."""

    stem: str
    outcomes: list[Outcome] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def latest(self) -> dict[str, Outcome]:
        """The last outcome of each name: a learner may check twice in one notebook."""
        return {outcome.name: outcome for outcome in self.outcomes}


def run_cells(notebook: Path) -> None:
    """Run all code cells and write every outcome as a line of JSON; the child's part of `run`."""
    from IPython.core.interactiveshell import InteractiveShell

    cells = code_cells(notebook)
    # What the cells print goes nowhere; the outcomes go where standard output was.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def tell(**what) -> None:
        told.write(json.dumps(what) + "\n")

    checks.listeners.append(lambda o: tell(name=o.name, status=o.status, message=o.message))
    os.chdir(notebook.parent)
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    for number, cell in enumerate(cells, start=1):
        result = shell.run_cell(cell)
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not isinstance(error, NotImplementedError):
            text = str(error).strip().split("\n")[0]
            tell(trouble=f"code cell {number}: {type(error).__name__}: {text}")
    tell(done=True)


def run(notebook: Path, time_limit: float = TIME_LIMIT) -> Report:
    """Run an exercise in a process of its own and report. The file is not touched."""
    report = Report(notebook.stem)
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    environment.pop("MINIPALI_STRICT", None)
    command = [sys.executable, "-m", "minipali.progress", "--cells-of", str(notebook.resolve())]
    try:
        ended = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env=environment,
            timeout=time_limit,
        )  # fmt: skip
        told, complaint = ended.stdout, ended.stderr.decode(errors="replace").strip()
    except subprocess.TimeoutExpired as error:
        told, complaint = error.stdout or b"", ""
        report.trouble.append(f"stopped after {time_limit:g} seconds; what came before counts")
    done = bool(report.trouble)
    for line in told.decode().splitlines():
        said = json.loads(line)
        done = done or "done" in said
        if "trouble" in said:
            report.trouble.append(said["trouble"])
        elif "name" in said:
            report.outcomes.append(Outcome(**said))
    if not done:
        report.trouble.append(
            complaint.split("\n")[-1] or "its process ended before the notebook did"
        )
    return report


def lines_about(report: Report) -> Iterator[str]:
    """A line that counts, then one for each thing that is wrong."""
    names = [one.name for one in by_lesson()[report.stem]]
    latest = report.latest()
    right = [n for n in names if n in latest and latest[n].status == CORRECT]
    started = any(outcome.status != NOT_ATTEMPTED for outcome in latest.values())
    state = f"{len(right)} of {len(names)} verified" if started else "not started"
    yield f"{report.stem:16} {state}"
    for outcome in latest.values():
        if outcome.status not in (CORRECT, NOT_ATTEMPTED):
            yield f"    {outcome}"
    for trouble in report.trouble:
        yield f"    {NO} {trouble}"


def show_progress(folder: Path, time_limit: float) -> int:
    """Run all exercises in the folder, draw the model and list what is wrong."""
    notebooks = [folder / f"{stem}.ipynb" for stem in by_lesson()]
    missing = [path.name for path in notebooks if not path.exists()]
    notebooks = [path for path in notebooks if path.exists()]
    if not notebooks:
        print(f"minipali: error: there must be exercises in {folder}, found none", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        running = pool.map(lambda path: run(path, time_limit), notebooks)
        reports = list(tqdm(running, total=len(notebooks), desc="exercises", leave=False))
    marks = {
        name: {CORRECT: YES, NOT_ATTEMPTED: NOT_YET}.get(outcome.status, NO)
        for report in reports
        for name, outcome in report.latest().items()
    }
    print(draw(marks))
    print(f"\n{YES} verified   {NO} not right yet   {NOT_YET} not written yet\n")
    for report in reports:
        print("\n".join(lines_about(report)))
    for name in missing:
        print(f"{name} is missing: python course.py build makes it again")
    names = [one.name for report in reports for one in by_lesson()[report.stem]]
    print(f"\n{sum(marks.get(name) == YES for name in names)} of {len(names)} pieces verified.")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="course.py progress", description="Run the exercises and draw what is verified."
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("exercises"), help="where the exercises are"
    )
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS",
        help=f"for each notebook (default: {TIME_LIMIT})",
    )  # fmt: skip
    parser.add_argument("--cells-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cells_of:
        run_cells(given.cells_of)
        return 0
    return show_progress(given.folder, given.time_limit)


if __name__ == "__main__":
    sys.exit(main())
