"""Exercise notebooks run in processes of their own: heard, ended, and remembered."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from minipali import running
from minipali.checks.engine import CORRECT, NOT_ATTEMPTED, WRONG, Outcome
from minipali.running import Report, code_cells, recall_or_run, run, run_all

ROOT = Path(__file__).resolve().parents[1]
LONG = 120  # seconds in which a notebook of a few lines has run on any machine


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of each test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(running, "cache_folder", lambda: folder)
    return folder


def write(path: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(made, path)
    return path


CHECK = "from minipali.checks import check\n"
RIGHT_NORM = """
def norm(x, weight, eps):
    return x * (x * x).mean(-1, keepdim=True).add(eps).rsqrt() * (1 + weight)
"""
# Two programs that would run on: one in the notebook's session, one in a session of its own.
STARTS = """
import subprocess, sys
from pathlib import Path
programs = [
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=own)
    for own in (False, True)
]
Path("pids.part").write_text(" ".join(str(one.pid) for one in programs))
Path("pids.part").rename("pids")
"""


# --- what is heard --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One notebook with everything in it that can happen, after it ran."""
    folder = tmp_path_factory.mktemp("exercises")
    notebook = write(
        folder / "02_norms.ipynb",
        "import os\nfrom pathlib import Path\n" + CHECK + RIGHT_NORM,
        "print('to the screen'); os.write(1, b'{not json'); os.system('echo hello')",
        "%time check('rms_norm', norm)",
        "def todo(x, *rest):\n    raise NotImplementedError",
        "check('layer_norm', todo)",
        "todo(1)",
        "check('batch_norm', lambda *given: 1)\nPath('seen.txt').write_text('here')",
        "this is no Python",
        STARTS,
        "raise ValueError('first line\\nsecond')",
        "check('layer_norm', lambda x, w, b, eps: x)",
        "import time\ntime.sleep(600)",
    )
    before = notebook.read_bytes()
    report = run(notebook, time_limit=30)
    assert notebook.read_bytes() == before
    return folder, report


def test_a_notebook_runs_to_its_end_in_its_folder_and_every_outcome_is_reported(ran):
    folder, report = ran
    assert (folder / "seen.txt").read_text() == "here"
    found = [(outcome.name, outcome.status) for outcome in report.outcomes]
    assert found == [
        ("rms_norm", CORRECT),
        ("layer_norm", NOT_ATTEMPTED),
        ("batch_norm", WRONG),
        ("layer_norm", WRONG),
    ]


def test_what_else_went_wrong_is_said_by_cell(ran):
    stopped, *cells = ran[1].trouble
    assert stopped == "stopped after 30 seconds; what came before counts"
    assert [line.split(":")[0] for line in cells] == ["code cell 8", "code cell 10"]
    assert cells[1] == "code cell 10: ValueError: first line"


def test_a_damaged_notebook_and_a_process_that_dies_are_reported(tmp_path):
    damaged = tmp_path / "01_patches.ipynb"
    damaged.write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(ValueError, match="must be a readable Jupyter notebook"):
        code_cells(damaged)
    [trouble] = run(damaged, time_limit=60).trouble
    assert "readable Jupyter notebook" in trouble
    dies = write(tmp_path / "02_norms.ipynb", "import os\nos._exit(3)")
    assert run(dies, time_limit=60).trouble == ["its process ended before the notebook did"]


def test_a_line_that_is_cut_or_strange_does_not_count(tmp_path):
    told, report = tmp_path / "told", Report("02_norms")
    good = {"name": "rms_norm", "status": CORRECT, "message": "Checked: all."}
    strange = [b"{not json", b"[1]", b"7", b"null", b'{"name": "x"}', b"\xff\xfe", b""]
    told.write_bytes(b"\n".join([*strange, json.dumps(good).encode(), b'{"name": "layer_no']))
    assert not running._hear(told, report)
    assert [(o.name, o.status) for o in report.outcomes] == [("rms_norm", CORRECT)]
    assert report.trouble == []


def test_whatever_a_notebook_writes_to_open_files_is_not_taken_for_an_outcome(tmp_path):
    """Also what it writes past Python, and half a line in front of an outcome."""
    scribbles = """
        import os
        for number in range(1, 40):
            try:
                os.write(number, b'{"trouble": 3}]\\n')
                os.write(number, b'{"name": "rms_norm"')
            except OSError:
                pass
    """
    lines = "\n".join(line[8:] for line in scribbles.splitlines())
    notebook = write(
        tmp_path / "02_norms.ipynb", lines, CHECK + RIGHT_NORM, "check('rms_norm', norm)"
    )
    report = run(notebook, LONG)
    assert [(o.name, o.status) for o in report.outcomes] == [("rms_norm", CORRECT)]
    assert report.trouble == []


# --- what is ended --------------------------------------------------------------------------------


def gone(pid: int) -> bool:
    """Whether a process ends within a time that is long for any machine."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def pids_in(folder: Path) -> list[int]:
    """The programs that a notebook has started, as soon as it has."""
    limit = time.monotonic() + LONG
    while not (folder / "pids").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def test_what_a_notebook_started_ends_with_it(tmp_path):
    assert run(write(tmp_path / "02_norms.ipynb", STARTS), LONG).trouble == []
    assert [gone(pid) for pid in pids_in(tmp_path)] == [True, True]


def test_what_a_notebook_started_ends_at_the_time_limit(ran):
    assert [gone(pid) for pid in pids_in(ran[0])] == [True, True]


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_what_a_notebook_started_ends_with_its_crash(tmp_path):
    notebook = write(tmp_path / "02_norms.ipynb", STARTS, "import os; os._exit(3)")
    assert run(notebook, LONG).trouble == ["its process ended before the notebook did"]
    in_session, own_session = pids_in(tmp_path)
    assert gone(in_session)
    psutil.Process(own_session).kill()  # nobody can know of this one any more


def test_a_finished_notebook_is_not_waited_for_because_of_a_thread(tmp_path):
    lives_on = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()"
    assert run(write(tmp_path / "02_norms.ipynb", lives_on), LONG).trouble == []


def test_an_interruption_ends_every_notebook_and_those_that_wait_never_start(tmp_path, monkeypatch):
    """Ctrl-C, here as the exception that it becomes; the real signal is below."""
    cells = STARTS, "import time; time.sleep(60); open('late', 'w')"
    first = write(tmp_path / "02_norms.ipynb", *cells)
    others = [write(tmp_path / f"{n}.ipynb", "open('late', 'w')") for n in range(10, 20)]
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    def interrupted(*_arguments, **_options):
        pids_in(tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all([first, *others], LONG)
    assert [gone(pid) for pid in pids_in(tmp_path)] == [True, True]
    assert not (tmp_path / "late").exists()


PROGRAM = """
import signal, sys
from pathlib import Path
from minipali import progress, running
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it was ignored, as by nohup
running.cache_folder = lambda: Path(sys.argv[1]) / "cache"
sys.exit(progress.show_progress(Path(sys.argv[1]), 600))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -15), (getattr(signal, "SIGKILL", 9), -9)],
)
def test_when_the_command_ends_its_notebooks_end(tmp_path, sent, code):
    write(tmp_path / "02_norms.ipynb", STARTS, "import time; time.sleep(600)", "open('on', 'w')")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        pids = pids_in(tmp_path)
        process.send_signal(sent)
        told = process.stdout.read().decode()
    assert process.returncode == code
    assert ("Interrupted: all notebooks are stopped" in told) == (sent == signal.SIGINT)
    assert "verified" not in told
    assert [gone(pid) for pid in pids] == [True, True]
    assert not (tmp_path / "on").exists(), "the next cell must not run"


# --- what is remembered ---------------------------------------------------------------------------

RIGHT = Outcome("rms_norm", CORRECT, "Checked: all.")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Save a notebook, ask for its outcomes, and say how often any ran; running is pretended."""
    path, count = tmp_path / "02_norms.ipynb", []

    def pretend(notebook: Path, *_limits) -> Report:
        count.append(notebook)
        trouble = ["code cell 2: OSError"] if "trouble" in code_cells(notebook) else []
        return Report(notebook.stem, [RIGHT], trouble)

    monkeypatch.setattr(running, "run", pretend)

    def ask(*more: str) -> int:
        write(path, "x = 1", *more)
        assert recall_or_run(path, LONG, threading.Event()).outcomes == [RIGHT]
        return len(count)

    ask.notebook, ask.folder = path, tmp_path
    return ask


def test_an_exercise_is_run_once_and_its_outcomes_stay(tmp_path):
    counts = "with open('runs', 'a') as file:\n    file.write('x')"
    path = write(tmp_path / "02_norms.ipynb", CHECK + RIGHT_NORM, "check('rms_norm', norm)", counts)
    first, second = (recall_or_run(path, LONG, threading.Event()) for _ in range(2))
    assert first == second and [o.status for o in second.outcomes] == [CORRECT]
    assert (tmp_path / "runs").read_text() == "x"


def test_a_notebook_that_was_only_saved_again_is_not_run_again(runs):
    assert (runs(), runs()) == (1, 1)
    made = nbformat.read(runs.notebook, as_version=4)
    made.cells[0].execution_count, made.metadata.note = 3, "nothing new in the code"
    nbformat.write(made, runs.notebook)
    assert recall_or_run(runs.notebook, LONG, threading.Event()).outcomes == [RIGHT]
    assert runs() == 1


def test_a_notebook_is_run_again_when_anything_changes_that_its_outcomes_depend_on(
    runs, monkeypatch
):
    assert (runs(), runs("y = 2"), runs("y = 2"), runs("y = 3")) == (1, 2, 2, 3)
    (runs.folder / "helper.py").write_text("one = 1", encoding="utf-8")
    assert (runs(), runs()) == (4, 4)
    (runs.folder / "helper.py").write_text("one = 2", encoding="utf-8")
    assert (runs(), runs()) == (5, 5)
    monkeypatch.setattr(running, "_course", lambda: "the package after an update")
    assert (runs(), runs()) == (6, 6)
    # Other notebooks count where they are read.
    write(runs.folder / "01_patches.ipynb", "x = 1")
    mine = "from minipali.progress import my_pieces"
    assert (runs(), runs(mine), runs(mine)) == (6, 7, 7)
    write(runs.folder / "01_patches.ipynb", "x = 2")
    assert (runs(mine), runs(mine)) == (8, 8)


def test_the_course_is_another_when_a_file_of_the_package_is(tmp_path, monkeypatch):
    for name in ("running.py", "norms.py"):
        (tmp_path / name).write_text("a = 1", encoding="utf-8")
    monkeypatch.setattr(running, "__file__", str(tmp_path / "running.py"))
    course = running._course.__wrapped__
    first = course()
    (tmp_path / "norms.py").write_text("a = 2", encoding="utf-8")
    second = course()
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "norms.py").write_text("", encoding="utf-8")
    assert len({first, second, course()}) == 3


def test_what_went_wrong_is_tried_again(runs):
    assert (runs("trouble"), runs("trouble")) == (1, 2)


def test_a_notebook_saved_while_it_ran_is_not_taken_for_the_one_that_ran(runs, monkeypatch):
    pretend = running.run

    def run_and_save(*arguments):
        report = pretend(*arguments)
        write(runs.notebook, "x = 2")
        return report

    monkeypatch.setattr(running, "run", run_and_save)
    assert (runs(), runs()) == (1, 2)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b"\xff", None])
def test_a_damaged_or_impossible_cache_is_as_none(runs, cache, monkeypatch, damage):
    assert runs() == 1
    [file] = cache.iterdir()
    if damage is None:  # a place where nothing can be written, also not by root
        monkeypatch.setattr(running, "cache_folder", lambda: file / "below a file")
        assert (runs(), runs()) == (2, 3)
        return
    file.write_bytes(damage)
    assert (runs(), runs()) == (2, 2)


def test_a_full_disk_costs_only_the_memory(runs, cache, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert (runs(), runs()) == (1, 2)
    assert not any(file.suffix == ".json" for file in cache.iterdir())
    assert (runs(), runs()) == (3, 3)
