"""Run exercise notebooks, each in a process of its own, and hear what their checks say.

Whatever a notebook starts ends with it. What an unchanged one gave is remembered, so that nothing
is trained twice.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path

import platformdirs
import psutil
from tqdm import tqdm

from minipali import checks
from minipali.checks.engine import Outcome

TIME_LIMIT = 300  # seconds for one notebook; that of lesson 05 trains a model


def code_cells(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell. Raises ValueError if it is not a whole notebook."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} must be a readable Jupyter notebook: {error}") from error


@dataclass
class Report:
    """What happened when one exercise ran: the outcomes in order, and what else went wrong."""

    stem: str
    outcomes: list[Outcome] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    def latest(self) -> dict[str, Outcome]:
        """The last outcome of each name: a learner may check twice in one notebook."""
        return {outcome.name: outcome for outcome in self.outcomes}


def run(
    notebook: Path, time_limit: float = TIME_LIMIT, stop: threading.Event | None = None
) -> Report:
    """Run an exercise in a process of its own and report. The file is not touched.

    When it has run, at the time limit, and when `stop` is set, all that it started is ended.
    """
    report = Report(notebook.stem)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        told, complaint = Path(folder, "told"), Path(folder, "complaint")
        told.touch()
        with open(complaint, "wb") as stderr:
            in_time = _run_process([str(notebook.resolve()), str(told)], stderr, time_limit, stop)
        done = _hear(told, report)
        last_words = complaint.read_text(encoding="utf-8", errors="replace").strip().split("\n")[-1]
    if not in_time:
        report.trouble.insert(0, f"stopped after {time_limit:g} seconds; what came before counts")
    elif not done:
        report.trouble.append(last_words or "its process ended before the notebook did")
    return report


def _hear(told: Path, report: Report) -> bool:
    """Enter into the report what a process has told; whether it came to its end.

    A line that is cut, as its process was killed, or that is anything else does not count.
    """
    done = False
    for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            said = json.loads(line)
            if "done" in said:
                done = True
            elif "trouble" in said:
                report.trouble.append(str(said["trouble"]))
            else:
                name, status, message = (str(said[key]) for key in ("name", "status", "message"))
                report.outcomes.append(Outcome(name, status, message))
        except (ValueError, TypeError, LookupError):
            continue
    return done


def _run_process(
    arguments: list[str], stderr, time_limit: float, stop: threading.Event | None
) -> bool:
    """Run the child's part, `run_cells`, to its end; False if the time limit came first.

    The child gets its own session, on Windows its own group: a Ctrl-C is for this process alone,
    which then ends the child. If this one dies, the child's input closes, and it ends itself.
    """
    environment = {
        **os.environ,
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",  # Windows gives a child cp1252, which has no tick
    }
    environment.pop("MINIPALI_STRICT", None)
    limit = time.monotonic() + time_limit
    stop = stop or threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-m", "minipali.running", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, env=environment,
        start_new_session=True, creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )  # fmt: skip
    try:
        while process.poll() is None and time.monotonic() < limit and not stop.wait(0.05):
            pass
        return process.poll() is not None
    finally:
        if process.poll() is None:
            end_descendants(process.pid)
        if os.name == "posix":  # also what outlived a crash
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdin.close()


def end_descendants(pid: int) -> None:
    """Kill all that a living process has started, and what these have started."""
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                one.kill()


def run_cells(notebook: Path, told: Path) -> None:
    """Run all code cells and write every outcome as a line of JSON; the child's part of `run`.

    Ends the process, with all that it has started: a cell may leave a thread or a program behind.
    """
    from IPython.core.interactiveshell import InteractiveShell

    def end() -> None:
        end_descendants(os.getpid())
        os._exit(0)

    def end_with_parent() -> None:
        os.read(parent, 1)  # returns when there is no parent any more
        end()

    cells = code_cells(notebook)
    # What the cells print goes nowhere, and what they ask for has no answer.
    parent = os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    threading.Thread(target=end_with_parent, daemon=True).start()
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)

    heard = open(told, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - open to the end

    def tell(**what) -> None:
        # On a line of its own, whatever a notebook may have written into open files.
        heard.write("\n" + json.dumps(what) + "\n")

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
    end()


# --- what is known from before --------------------------------------------------------------------


def cache_folder() -> Path:
    return platformdirs.user_cache_path("minipali") / "progress"


@functools.cache
def _course() -> str:
    """A digest of what an outcome depends on beside the notebook: package, libraries, Python."""
    package = Path(__file__).parent
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    versions = [importlib.metadata.version(name) for name in ("torch", "numpy", "pillow")]
    return _digest(sys.version, *versions, *_contents(files))


def _contents(files: Iterable[Path]) -> Iterator[str | bytes]:
    for file in sorted(files):
        yield file.name
        yield file.read_bytes()


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def key(notebook: Path) -> str:
    """Another text whenever the outcomes of a notebook may be others. Raises ValueError, OSError.

    They depend on its code, on the course, and on Python files beside it that it may import. A
    notebook that speaks of `my_pieces`, or of notebooks, depends on all of them.
    """
    cells, folder = code_cells(notebook), notebook.parent
    parts = [*cells, *_contents([*folder.glob("*.py"), *folder.glob("*/*.py")])]
    if any("my_pieces" in cell or "ipynb" in cell for cell in cells):
        for other in sorted(folder.glob("*.ipynb")):
            parts += [other.name, *code_cells(other)]
    return _digest(_course(), *parts)


def recall_or_run(notebook: Path, time_limit: float, stop: threading.Event) -> Report:
    """The report on a notebook, from before if nothing has changed since.

    Only runs without trouble are remembered: a full disk or a slow machine may be better now. A
    cache that cannot be read or written is as if there were none.
    """
    try:
        before = key(notebook)
        name = _digest(str(notebook.resolve()))[:16]
        file = cache_folder() / f"{notebook.stem}-{name}.json"
    except (OSError, ValueError, RuntimeError):
        return run(notebook, time_limit, stop)
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["key"] == before:
            return Report(notebook.stem, [Outcome(**one) for one in known["outcomes"]])
    report = run(notebook, time_limit, stop)
    with contextlib.suppress(OSError, ValueError):
        if not report.trouble and not stop.is_set() and key(notebook) == before:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            text = json.dumps({"key": before, "outcomes": [asdict(o) for o in report.outcomes]})
            part.write_text(text, encoding="utf-8")
            os.replace(part, file)
    return report


def run_all(notebooks: list[Path], time_limit: float) -> list[Report]:
    """The report on each notebook, in their order. At Ctrl-C all that runs is ended."""
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        reports = [pool.submit(recall_or_run, path, time_limit, stop) for path in notebooks]
        try:
            with tqdm(total=len(reports), desc="exercises", leave=False, disable=None) as bar:
                waiting = set(reports)
                while waiting:  # in short turns: on Windows, Ctrl-C cannot wake a longer wait
                    done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                    bar.update(len(done))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [report.result() for report in reports]


if __name__ == "__main__":
    run_cells(Path(sys.argv[1]), Path(sys.argv[2]))
