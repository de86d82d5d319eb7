"""What a learner has written, read from exercise notebooks without touching them."""

import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from minipali import load
from minipali.checks.engine import CORRECT, NOT_ATTEMPTED, WRONG
from minipali.checks.lessons import by_lesson, exercises
from minipali.progress import (
    DRAWING,
    checked_functions,
    code_cells,
    draw,
    lines_about,
    main,
    my_pieces,
    run,
)
from minipali.swap import PIECES, pieces_of

ROOT = Path(__file__).resolve().parents[1]


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


def test_the_solutions_hold_every_piece_of_lessons_01_to_10():
    model, processor = load("small")
    early = {one.name for some in list(by_lesson().values())[:10] for one in some}
    for whole in (model, processor):
        assert set(my_pieces(whole, ROOT / "solutions")) == set(pieces_of(whole)) & early


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
        "raise ValueError('first line\\nsecond')",
        "check('layer_norm', lambda x, w, b, eps: x)",
        "while True: pass",
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
    assert [line.split(":")[0] for line in cells] == ["code cell 8", "code cell 9"]
    assert cells[1] == "code cell 9: ValueError: first line"


def test_the_lines_count_and_name_the_check_that_failed(ran):
    first, *others = lines_about(ran[1])
    assert first.split() == ["02_norms", "1", "of", "3", "verified"]
    told = "\n".join(others)
    assert "✗ layer_norm: wrong" in told and "✗ batch_norm: wrong" in told
    assert "rms_norm" not in told


def test_an_exercise_as_it_comes_is_not_started(tmp_path):
    name = "01_patches.ipynb"
    shutil.copy(ROOT / "exercises" / name, tmp_path)
    before = (tmp_path / name).read_bytes()
    report = run(tmp_path / name, time_limit=100)
    assert list(lines_about(report)) == ["01_patches       not started"]
    assert (tmp_path / name).read_bytes() == before


def test_a_damaged_notebook_and_a_process_that_dies_are_reported(tmp_path):
    damaged = tmp_path / "01_patches.ipynb"
    damaged.write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(ValueError, match="must be a readable Jupyter notebook"):
        code_cells(damaged)
    [trouble] = run(damaged, time_limit=60).trouble
    assert "readable Jupyter notebook" in trouble
    dies = write(tmp_path / "02_norms.ipynb", "import os\nos._exit(3)")
    assert run(dies, time_limit=60).trouble == ["its process ended before the notebook did"]


def test_the_command_draws_counts_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    write(tmp_path / "02_norms.ipynb", CHECK + RIGHT_NORM, "check('rms_norm', norm)")
    monkeypatch.setattr(sys, "argv", ["progress", "--folder", str(tmp_path)])
    assert main() == 0
    told = capsys.readouterr().out
    assert "✓ 02 rms_norm" in told and ". 02 layer_norm" in told
    assert "01_patches.ipynb is missing" in told
    assert "1 of 3 pieces verified" in told
    monkeypatch.setattr(sys, "argv", ["progress", "--folder", str(tmp_path / "nowhere")])
    assert main() == 2
    assert "there must be exercises" in capsys.readouterr().err


def test_the_functions_of_all_solutions_are_those_that_the_lessons_ask_for():
    found = {}
    for stem in by_lesson():
        found |= checked_functions(ROOT / "solutions" / f"{stem}.ipynb")
    assert set(found) == set(exercises())
