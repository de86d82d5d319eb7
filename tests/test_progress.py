"""What a learner has written, read from exercise notebooks without touching them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from minipali import load, running
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, WRONG, Outcome
from minipali.checks.lessons import by_lesson, exercises
from minipali.progress import (
    DAY,
    DRAWING,
    checked_functions,
    draw,
    lines_about,
    main,
    my_pieces,
    review,
    self_test,
)
from minipali.running import Report, run
from minipali.swap import PIECES, pieces_of

ROOT = Path(__file__).resolve().parents[1]
WITH_SOLUTIONS = pytest.mark.skipif(
    not (ROOT / "solutions").is_dir(), reason="a students' copy has no solutions"
)


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


def test_every_piece_of_the_model_has_a_place_in_the_drawing():
    for name in {name for name, *_ in PIECES}:
        assert DRAWING.count(f"{{{name}}}") == 1, name
    assert "{" not in draw({})


def test_the_drawing_shows_marks_lessons_and_keeps_its_columns():
    lines = draw({"merge": "✓", "embed_patches": "✗"}).splitlines()
    assert any("✗ 01 embed_patches" in line for line in lines)
    assert sum("✓" in line for line in lines) == 1
    numbers = {one.name: stem[:2] for stem, some in by_lesson().items() for one in some}
    for name, number in numbers.items():
        if f"{{{name}}}" in DRAWING:
            assert any(line.split()[-3:] == [".", number, name] or name in line for line in lines)
    question, arrow = lines[0].index("question"), lines[1].rindex("|")
    assert question < arrow < question + len("question")


def test_functions_are_found_without_running_what_is_slow_or_broken(tmp_path):
    notebook = write(
        tmp_path / "02_norms.ipynb",
        CHECK + "from minipali import load\nimport torch\n",
        "%matplotlib inline",
        "model = load('a model that would take an hour')\nlayers = model.layers",
        "half = torch.tensor(0.5)\nboom = 1 / 0",
        RIGHT_NORM,
        "check('rms_norm', norm)\ncheck('layer_norm', missing)",
        'def double(x):\n    return x / half\n\ncheck("batch_norm", double)',
    )
    found = checked_functions(notebook)
    assert sorted(found) == ["batch_norm", "rms_norm"]
    assert found["batch_norm"](3.0) == 6.0


def test_my_pieces_are_those_that_pass_and_fit(tmp_path):
    model, processor = load("small")
    assert my_pieces(model, tmp_path) == {}
    write(
        tmp_path / "02_norms.ipynb", CHECK, RIGHT_NORM, "check('rms_norm', norm)",
        "def wrong(x, *rest):\n    return x", "check('layer_norm', wrong)",
    )  # fmt: skip
    assert list(my_pieces(model, tmp_path)) == ["rms_norm"]
    assert my_pieces(model, tmp_path, last=1) == {}
    assert my_pieces(processor, tmp_path) == {}


@WITH_SOLUTIONS
def test_the_solutions_hold_every_piece_of_lessons_01_to_10():
    model, processor = load("small")
    early = {one.name for some in list(by_lesson().values())[:10] for one in some}
    for whole in (model, processor):
        assert set(my_pieces(whole, ROOT / "solutions")) == set(pieces_of(whole)) & early


REPORT = Report(
    "02_norms",
    [
        Outcome("rms_norm", CORRECT, "Checked: all."),
        Outcome("layer_norm", CRASHED, "Later right."),
        Outcome("layer_norm", CORRECT, "Checked: all."),
        Outcome("batch_norm", WRONG, "Biased."),
    ],
    ["code cell 9: ValueError: first line"],
)


def test_the_lines_count_and_name_what_is_wrong_by_its_last_outcome():
    assert list(lines_about(REPORT)) == [
        "02_norms         2 of 4 verified",
        "    ✗ batch_norm: wrong. Biased.",
        "    ✗ code cell 9: ValueError: first line",
    ]


def test_for_one_lesson_every_piece_is_told():
    told = list(lines_about(REPORT, every_piece=True))
    assert [line.split(":")[0].strip() for line in told[1:]] == [
        "✓ rms_norm", "✓ layer_norm", "✗ batch_norm", "✗ code cell 9",
    ]  # fmt: skip


def test_only_its_own_pieces_make_an_exercise_started():
    """Exercises 14 and 15 put all that was written before into the model, and say so."""
    others = [Outcome("17 pieces in the model", CORRECT, ""), Outcome("rms_norm", CORRECT, "")]
    unwritten = [Outcome(one.name, NOT_ATTEMPTED, "") for one in by_lesson()["14_weights"]]
    [line] = lines_about(Report("14_weights", unwritten + others))
    assert line == "14_weights       not started"
    own = Outcome(unwritten[0].name, WRONG, "")
    line, _complaint = lines_about(Report("14_weights", [*unwritten, own, *others]))
    assert line == f"14_weights       0 of {len(unwritten)} verified"


def test_an_exercise_as_it_comes_is_not_started(tmp_path):
    name = "01_patches.ipynb"
    shutil.copy(ROOT / "exercises" / name, tmp_path)
    before = (tmp_path / name).read_bytes()
    report = run(tmp_path / name, time_limit=100)
    assert list(lines_about(report)) == ["01_patches       not started"]
    assert (tmp_path / name).read_bytes() == before


def ask(monkeypatch, capsys, folder, *arguments):
    """(exit code, what was said, what was complained about)."""
    monkeypatch.setattr(sys, "argv", ["progress", "--folder", str(folder), *arguments])
    code = main()
    return code, *capsys.readouterr()


def test_the_command_draws_counts_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    write(tmp_path / "02_norms.ipynb", CHECK + RIGHT_NORM, "check('rms_norm', norm)")
    code, told, _ = ask(monkeypatch, capsys, tmp_path)
    assert code == 0
    assert "✓ 02 rms_norm" in told and ". 02 layer_norm" in told
    assert "01_patches.ipynb is missing" in told
    assert "1 of 4 pieces verified" in told
    code, _, complaint = ask(monkeypatch, capsys, tmp_path / "nowhere")
    assert code == 2 and "there must be exercises" in complaint


def test_one_lesson_or_several_can_be_asked_for(tmp_path, monkeypatch, capsys):
    write(tmp_path / "02_norms.ipynb", CHECK + RIGHT_NORM, "check('rms_norm', norm)")
    write(tmp_path / "03_attention.ipynb", "from pathlib import Path", "Path('ran').touch()")
    code, told, _ = ask(monkeypatch, capsys, tmp_path, "2")
    assert code == 0 and not (tmp_path / "ran").exists()
    assert told.splitlines()[:2] == [
        "02_norms         1 of 4 verified",
        f"    ✓ rms_norm: correct. Checked: {exercises()['rms_norm'].checked}.",
    ]
    assert "03_attention" not in told and "01_patches" not in told and "picture" not in told
    code, told, _ = ask(monkeypatch, capsys, tmp_path, "02", "03")
    assert code == 0 and "02_norms" in told and "03_attention" in told
    code, _, complaint = ask(monkeypatch, capsys, tmp_path, "02", "99")
    assert code == 2 and "no exercise begins with '99'; there are: 01_patches" in complaint


def test_what_was_finished_days_ago_is_asked_again_another_question_every_day(tmp_path):
    exercises_folder, notebooks = tmp_path / "exercises", tmp_path / "notebooks"
    exercises_folder.mkdir(), notebooks.mkdir()
    first, second = "<details><summary>What is <code>x</code>,\nhere?</summary>", "<summary>Why?"
    lesson = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("<details><summary>Earlier?</summary>\n\nNo.\n"),
            nbformat.v4.new_markdown_cell(f"**Self-test**\n\n{first}\n\n{second}</summary>"),
        ]
    )
    for stem in ("01_patches", "02_norms"):
        nbformat.write(lesson, notebooks / f"{stem}.ipynb")
    now = 20_000.5 * DAY
    for stem, age in (("02_norms", 9.2), ("03_attention", 30), ("01_patches", 0.5)):
        file = exercises_folder / f"{stem}.ipynb"
        write(file, "")
        os.utime(file, (now - age * DAY,) * 2)

    def report(stem, status):
        return Report(stem, [Outcome(one.name, status, "") for one in by_lesson()[stem]])

    done = [report(stem, CORRECT) for stem in ("01_patches", "02_norms", "03_attention")]
    # 01 is too fresh, 03 has no lesson beside it.
    [asked] = review(done, exercises_folder, now)
    [next_day] = review(done, exercises_folder, now + DAY)
    assert asked == "02_norms, finished 9 days ago: What is `x`, here?"
    assert next_day == "02_norms, finished 10 days ago: Why?"
    assert list(review([report("02_norms", WRONG)], exercises_folder, now)) == []


@pytest.mark.parametrize("stem", list(by_lesson()))
def test_every_lesson_has_questions_to_ask_again(stem):
    questions = self_test(ROOT / "notebooks" / f"{stem}.ipynb")
    assert len(questions) >= 2 and all(one[-1] in "?." for one in questions), questions


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_a_console_without_a_tick_shows_other_marks(tmp_path, encoding):
    """As Windows does for piped output, for the command and for the processes that it starts."""
    write(
        tmp_path / "02_norms.ipynb",
        CHECK + RIGHT_NORM,
        "check('rms_norm', norm)\ncheck('layer_norm', norm)",
    )
    command = [sys.executable, "-m", "minipali.progress", "--folder", str(tmp_path)]
    places = {name: str(tmp_path / "cache") for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME")}
    environment = {**os.environ, **places, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([*command], capture_output=True, env=environment, cwd=ROOT)
    told = done.stdout.decode(encoding)
    assert done.returncode == 0, done.stderr
    assert "+ 02 rms_norm" in told and "x 02 layer_norm" in told and "+ verified" in told
    assert b"%|" not in done.stderr, "no bar where there is no terminal"


@WITH_SOLUTIONS
def test_the_functions_of_all_solutions_are_those_that_the_lessons_ask_for():
    found = {}
    for stem in by_lesson():
        found |= checked_functions(ROOT / "solutions" / f"{stem}.ipynb")
    assert set(found) == set(exercises())
