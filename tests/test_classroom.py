"""A class is marked by what the students' functions compute, whatever their notebooks say or do."""

import base64
import csv
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from minipali import classroom
from minipali.attempts import STOPPED, Process, Stopped, Written, allowed_in
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, REFUSED, WRONG, Outcome
from minipali.checks.lessons import STEMS, by_lesson
from minipali.classroom import Student, as_csv, board, marked, marked_student, plain
from minipali.progress import main
from minipali.running import code_cells

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_notebooks  # noqa: E402
import make_nbgrader  # noqa: E402
import report_to_classroom  # noqa: E402


def statuses(cells: list[str], stem: str, time_limit: float = 80) -> dict[str, str]:
    return {one.name: one.status for one in marked(cells, stem, time_limit)}


# One of each kind: blocks, gradients, functions and what is written into, modules, bytes and dicts.
KINDS = {"03_attention", "05_contrastive", "08_kv_cache", "13_training", "14_weights"}
LESSONS = [
    pytest.param(stem, marks=() if stem in KINDS else pytest.mark.slow) for stem in by_lesson()
]


@pytest.mark.parametrize("stem", LESSONS)
def test_every_solution_is_correct(stem):
    """Through the pipe: arguments, functions among them, modules that train, and gradients."""
    found = marked(code_cells(ROOT / "solutions" / f"{stem}.ipynb"), stem)
    assert [one.name for one in found] == [one.name for one in by_lesson()[stem]]
    assert {one.status for one in found} == {CORRECT}, "\n".join(map(str, found))


def test_what_nobody_has_touched_is_not_attempted():
    source = ROOT / "exercises" / "src" / "13_training.py"
    cells = build_notebooks.notebook(source, "x", build_notebooks.without_solution).cells
    found = statuses([one.source for one in cells if one.cell_type == "code"], "13_training")
    assert len(found) == 4 and set(found.values()) == {NOT_ATTEMPTED}


NORM = "def rms_norm(x, weight, eps):\n    "
RIGHT = NORM + "return x * (x * x).mean(-1, keepdim=True).add(eps).rsqrt() * (1 + weight)"
FORGED = """
import sys, os, builtins, json, torch
from minipali import checks
from minipali.checks import engine, running, comparing, show, lessons
from minipali.checks.engine import Outcome
show(Outcome("rms_norm", "correct", "Checked."))
print("✓ rms_norm: correct. Checked: all.")
checks.check = check = lambda *given: print("correct")
engine.examine = checks.examine = lambda exercise, attempt: Outcome(exercise.name, "correct", "")
engine.same = comparing.same = comparing.difference = lambda *given: True
torch.allclose = torch.equal = lambda *given, **named: True
for one in lessons.exercises().values():
    object.__setattr__(one, "reference", None)
"""
PATCHED = """
import sys, torch
torch.allclose = torch.equal = lambda *given, **named: True
said = {"returned": True, "status": "correct", "changed": [], "graph": []}
for name, module in list(sys.modules.items()):
    if name.startswith("minipali") or name == "__main__":
        for own in ("same", "failed", "difference", "examine"):
            setattr(module, own, lambda *given, **named: said)
"""
PIPED = """
def batch_norm(x, *given):
    import json, os
    said = json.dumps({"status": "correct", "returned": True}).encode()
    for file in range(3, 20):
        try:
            os.write(file, len(said).to_bytes(8, "little") + said)
        except OSError:
            pass
    return x
"""


def test_no_point_is_earned_but_by_right_numbers():
    cells = [FORGED, "def layer_norm(x, *given):\n    return x", NORM + "return x", PIPED]
    found = statuses([*cells, PATCHED, FORGED], "02_norms")
    assert len(found) == 4 and CORRECT not in found.values(), found


def test_a_finished_piece_is_refused_however_it_is_reached():
    found = statuses(
        [
            "from minipali.norms import layer_norm",
            NORM + "import minipali.norms as own\n    return own.rms_norm(x, weight, eps)",
            "from minipali.checks.norms import BATCH_NORM\nbatch_norm = BATCH_NORM.reference",
            "def layer_norm_backward(*given):\n    import torch\n    try:\n"
            "        return minipali.norms.rms_norm(*given)\n    except Exception:\n"
            "        return torch.zeros(1)\nimport minipali",
        ],
        "02_norms",
    )
    assert len(found) == 4 and set(found.values()) == {REFUSED}, found


def test_words_are_those_of_the_check_and_one_bad_piece_spoils_no_other():
    found = statuses(
        [
            "%matplotlib inline\n!ls\nimport sys\nsys.exit(3)",
            "def layer_norm(x, weight, bias, eps)\n    return x",
            RIGHT,
            "def batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps):"
            "\n    return undefined",
            "import torch.nn.functional as F\n"
            "def other(gradient, x, weight, eps):\n"
            "    return F.layer_norm(x, x.shape[-1:]), x, x\n"
            "check('layer_norm_backward', other)",
        ],
        "02_norms",
    )
    assert found == {
        "layer_norm": CRASHED, "rms_norm": CORRECT, "batch_norm": CRASHED,
        "layer_norm_backward": REFUSED,
    }  # fmt: skip
    assert statuses([NORM + "return x"], "02_norms")["rms_norm"] == WRONG


def test_an_endless_piece_and_an_endless_cell_cost_themselves_alone():
    cells = [
        "while True: print('x' * 10**6)",
        "def layer_norm(x, weight, bias, eps):\n    while True: pass",
        "import os, time\nif os.fork() == 0:\n    time.sleep(500)\nelse:\n    os._exit(0)",
        RIGHT,
    ]
    written = Written(cells, "02_norms", time_limit=300)
    written.step = 5
    try:
        found = {one.name: written.outcome(one).status for one in by_lesson()["02_norms"]}
    finally:
        written.close()
    assert found["layer_norm"] == STOPPED and found["rms_norm"] == CORRECT
    assert found["batch_norm"] == NOT_ATTEMPTED


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a daemon escapes, as documented")
def test_whatever_a_student_starts_is_ended():
    mark = f"{os.getpid()}.25"
    child = f"[sys.executable, '-c', 'import time; time.sleep({mark})']"
    cells = [
        "import subprocess, sys",
        f"for _ in range(3):\n    subprocess.Popen({child}, start_new_session=True, env={{}})",
        f"import os\nif os.fork() == 0:\n    os.setsid()\n    subprocess.Popen({child})\n"
        "    os._exit(0)",
        RIGHT,
    ]
    assert statuses(cells, "02_norms")["rms_norm"] == CORRECT
    left = [one for one in psutil.process_iter(["cmdline"]) if mark in str(one.info["cmdline"])]
    assert left == []


@pytest.mark.slow
def test_memory_processes_and_answers_have_limits():
    written = Written(
        [
            "import torch",
            "def layer_norm(*given):\n    kept = [torch.ones(2**24) for _ in range(1000)]",
            NORM + "return torch.ones(2**24)",
            "def batch_norm(*given):\n    import os, time\n    for _ in range(40):\n"
            "        if os.fork() == 0:\n            time.sleep(60)\n    time.sleep(60)",
        ],
        "02_norms",
        memory=2**30,
    )
    try:
        found = [written.outcome(one) for one in by_lesson()["02_norms"][:3]]
    finally:
        written.close()
    assert [one.status for one in found][1:] == [STOPPED, STOPPED]
    assert found[0].status in (STOPPED, CRASHED)  # the system may refuse memory before we do
    assert "32 MB" in found[1].message and "more than" in found[2].message


def test_the_students_process_gets_no_secret_and_no_reference(monkeypatch):
    monkeypatch.setenv("TOKEN_OF_THE_TEACHER", "secret")
    probe = """
    import os, sys
    held = [name for name in sys.modules if name.startswith("minipali.")]
    assert "TOKEN_OF_THE_TEACHER" not in os.environ
    raise RuntimeError(" ".join(sorted(held)))
"""
    outcome = marked([NORM.rstrip() + probe], "02_norms")[1]
    held = set(re.findall(r"minipali\.[\w.]+", outcome.message))
    assert outcome.status == CRASHED and "minipali.checks.running" in held
    assert not {one for one in held if one.split(".")[-1] in STEMS}


def test_a_piece_may_use_earlier_lessons_only():
    assert "minipali.attention" in allowed_in("09_gqa")
    assert not {"minipali.gqa", "minipali.gemma"} & set(allowed_in("09_gqa"))


def test_an_answer_that_cannot_be_read_stops_the_process():
    process = Process(step=20, until=time.monotonic() + 20, memory=2**31)
    try:
        answer = b"\x05" + b"\0" * 7 + b'{"a":'
        process._read(io.BytesIO(len(answer).to_bytes(8, "little") + answer))
        with pytest.raises(Stopped, match="cannot be read"):
            process.hear()
        assert process.process.poll() is not None
    finally:
        process.close()


def test_an_answer_to_another_question_stops_no_marking(monkeypatch):
    written = Written([], "02_norms")
    monkeypatch.setattr(written, "_running", lambda: None)
    found = written.outcome(by_lesson()["02_norms"][0])
    assert found.status == STOPPED and "cannot be read" in found.message


# --- folders, board and table ---------------------------------------------------------------------


def write(path: Path, *cells: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(made, path)
    return path


def test_a_notebook_that_is_none_is_told_and_costs_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setattr(classroom, "LARGEST", 10_000)
    (tmp_path / "text").mkdir(), (tmp_path / "link").mkdir(), (tmp_path / "deep").mkdir()
    (tmp_path / "text" / "02_norms.ipynb").write_text("hello", encoding="utf-8")
    (tmp_path / "deep" / "02_norms.ipynb").write_text("[" * 9_000, encoding="utf-8")
    write(tmp_path / "large" / "02_norms.ipynb", "x" * 20_000)
    write(tmp_path / "copy" / "02_norms (1).ipynb", RIGHT)
    write(tmp_path / "whole" / "solutions" / "02_norms.ipynb", RIGHT)
    try:
        (tmp_path / "link" / "02_norms.ipynb").symlink_to(ROOT / "solutions" / "02_norms.ipynb")
        (tmp_path / "linked").symlink_to(ROOT / "solutions", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    folders = classroom.students_in(tmp_path)
    rows = {one.name: marked_student(one, ["02_norms"], 20) for one in folders}
    assert list(rows) == ["copy", "deep", "large", "link", "text", "whole"]
    found = {name: {one.status for one in row.outcomes.values()} for name, row in rows.items()}
    assert found == {
        "copy": {NOT_ATTEMPTED}, "deep": {CRASHED}, "large": {CRASHED}, "link": {CRASHED},
        "text": {CRASHED}, "whole": {NOT_ATTEMPTED},
    }  # fmt: skip
    for name, told in (("copy", "must be 02_norms"), ("large", "MB at most"), ("link", "a link")):
        assert told in rows[name].trouble[0]


NAMES = ["Zoë, Müller", "=HYPERLINK(1)", "王小明", "a\x1b[2Jb", "@sum"]


def rows_of(names: list[str]) -> list[Student]:
    pieces = [one.name for one in by_lesson()["02_norms"]]
    wrong = "It is biased. Case 1 of 3 (x): the shape is right."
    outcomes = {one: Outcome(one, CORRECT, "") for one in pieces}
    outcomes[pieces[0]] = Outcome(pieces[0], WRONG, wrong)
    return [Student(name, outcomes) for name in names]


def test_the_table_has_a_column_a_piece_and_no_formula():
    told = list(csv.DictReader(io.StringIO(as_csv(rows_of(NAMES), ["02_norms"]))))
    assert [one["student"] for one in told] == [
        "Zoë, Müller", "'=HYPERLINK(1)", "王小明", "a?[2Jb", "'@sum",
    ]  # fmt: skip
    assert list(told[0]) == ["student", *(one.name for one in by_lesson()["02_norms"])]
    assert [told[0]["layer_norm"], told[0]["rms_norm"]] == [WRONG, CORRECT]


def test_the_board_keeps_its_columns_and_tells_the_common_mistake_once():
    lines = board(rows_of(NAMES), ["02_norms"]).splitlines()
    rows = [line for line in lines if "3 of 4" in line]
    assert len(rows) == len(NAMES) and "\x1b" not in "".join(lines)
    assert rows[0].index("✗") == lines[1].index("1")
    assert [line for line in lines if "biased" in line] == ["  5 layer_norm: It is biased."]
    assert any("1 layer_norm 0   2 rms_norm 5" in line for line in lines)
    assert plain("\u202eab\n") == "?ab?"


def test_the_command_shows_and_writes_the_same(tmp_path, monkeypatch, capsys):
    write(tmp_path / "class" / "Ada, 1" / "exercises" / "02_norms.ipynb", RIGHT)
    (tmp_path / "class" / "Zoë" / "nothing").mkdir(parents=True)
    table = tmp_path / "board.csv"
    given = ["--class", str(tmp_path / "class"), "--lesson", "2", "--csv", str(table)]
    monkeypatch.setattr(sys, "argv", ["progress", *given])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert main() == 0
    told, rows = capsys.readouterr().out, table.read_text(encoding="utf-8-sig").splitlines()
    assert rows[1] == f'"Ada, 1",{NOT_ATTEMPTED},{CORRECT},{NOT_ATTEMPTED},{NOT_ATTEMPTED}'
    assert rows[2].startswith("Zoë") and CORRECT not in rows[2] and len(rows) == 3
    assert ".✓..  1 of 4" in told and "....  0 of 4" in told
    for wrong, complaint in (
        (["--class", str(tmp_path / "nowhere")], "nowhere"),
        (["--class", str(tmp_path / "class" / "Ada, 1" / "exercises")], "one folder a student"),
        (["--class", str(tmp_path / "class"), "--csv", str(tmp_path / "no" / "x")], "must exist"),
    ):
        monkeypatch.setattr(sys, "argv", ["progress", *wrong])
        assert main() == 2 and complaint in capsys.readouterr().err


# --- GitHub and nbgrader --------------------------------------------------------------------------


def test_github_gets_a_point_for_each_correct_piece(tmp_path, monkeypatch):
    table, summary, output = (tmp_path / name for name in ("board.csv", "summary", "output"))
    table.write_text(as_csv(rows_of(["mine"]), ["02_norms"]), encoding="utf-8-sig")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    report_to_classroom.main(table)
    told = json.loads(base64.b64decode(output.read_text(encoding="utf-8").partition("=")[2]))
    assert (told["status"], told["max_score"], len(told["tests"])) == ("fail", 4, 4)
    assert [one["score"] for one in told["tests"]] == [0, 1, 1, 1]
    assert "3 of 4 pieces" in summary.read_text(encoding="utf-8")


def test_the_workflow_sleeps_here_and_marks_with_the_teachers_course():
    text = (ROOT / ".github" / "workflows" / "classroom.yml").read_text(encoding="utf-8")
    [job] = yaml.safe_load(text)["jobs"].values()
    assert "vars.COURSE != ''" in job["if"]
    commands = " ".join(one.get("run", "") for one in job["steps"])
    assert "course/course.py progress" in commands and "copy/course.py" not in commands
    for file in re.findall(r"course/([\w/]+\.py)", commands):
        assert (ROOT / file).exists(), file


def test_a_course_for_nbgrader_has_a_locked_point_for_every_piece(tmp_path, capsys):
    assert make_nbgrader.make_course(tmp_path / "made", []) == 0
    for stem, pieces in by_lesson().items():
        file = tmp_path / "made" / "source" / stem / f"{stem}.ipynb"
        cells = nbformat.read(file, as_version=4).cells
        given = [one.metadata.nbgrader for one in cells if "nbgrader" in one.metadata]
        points = [one for one in given if one.get("grade")]
        assert [one.grade_id for one in points] == [f"check-{one.name}" for one in pieces]
        assert all(one.locked and one.points == 1 for one in points)
        assert [one.grade_id for one in given if one.solution] == [one.name for one in pieces]
    assert make_nbgrader.make_course(tmp_path / "made", []) == 2
    assert "new or an empty folder" in capsys.readouterr().out
    assert (tmp_path / "made" / "nbgrader_config.py").read_text("utf-8").count("Mark") == 1


@pytest.mark.skipif(os.name != "posix", reason="the attack is POSIX's")
def test_who_kills_the_process_that_marks_is_stopped():
    found = classroom.marked_apart(["import os\nos.kill(os.getppid(), 9)", RIGHT], "02_norms")
    assert [one.status for one in found] == [STOPPED] * 4


def test_nbgraders_points_come_from_the_marking(monkeypatch):
    from minipali import autograding

    monkeypatch.setattr(autograding, "marked_apart", marked)

    def cell(source: str, **given) -> dict:
        return nbformat.v4.new_code_cell(source, metadata={"nbgrader": given} if given else {})

    made = nbformat.v4.new_notebook(
        cells=[
            cell("from minipali import checks\nchecks.check = lambda *given: None"),
            cell(RIGHT, solution=True, grade=False, grade_id="rms_norm"),
            cell("check('rms_norm', rms_norm)", grade=True, grade_id="check-rms_norm"),
            cell("check('layer_norm', 1)", grade=True, grade_id="check-layer_norm"),
        ]
    )
    made, _ = autograding.Mark().preprocess(made, {"nbgrader": {"notebook": "02_norms"}})
    kinds = [[one.output_type for one in each.outputs] for each in made.cells]
    assert kinds == [[], [], ["stream"], ["error"]]
