"""`course.py handout`: the students' copy has no solution in it, and works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_notebooks  # noqa: E402
import make_handout  # noqa: E402

SOLUTION = re.compile(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", re.DOTALL)
SOURCES = sorted((ROOT / "exercises" / "src").glob("*.py"))
pytestmark = pytest.mark.skipif(
    not (ROOT / "solutions").is_dir(), reason="this is a students' copy itself"
)


@pytest.fixture(scope="module")
def handout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class é") / "handout"
    make_handout.make(folder)
    return folder


def texts(folder: Path, *patterns: str) -> str:
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    assert paths
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def test_solutions_assessment_and_history_are_left_out_and_the_rest_is_there(handout):
    names = {path.relative_to(handout).as_posix() for path in handout.rglob("*") if path.is_file()}
    of_the_course = set(make_handout.files())
    assert names <= of_the_course
    left_out = of_the_course - names
    assert {name.split("/")[0] for name in left_out} <= {"solutions", "assessment"}
    assert {f"solutions/{source.stem}.ipynb" for source in SOURCES} <= left_out
    assert {"course.py", ".gitattributes", "minipali/assets/small/model.safetensors"} <= names


def test_no_solution_stands_in_exercises_and_their_sources(handout):
    shown = texts(handout, "exercises/*.ipynb", "exercises/src/*.py")
    assert "SOLUTION" not in shown
    for source in SOURCES:
        whole = source.read_text(encoding="utf-8")
        hidden = {line.strip() for part in SOLUTION.findall(whole) for line in part.splitlines()}
        outside = {line.strip() for line in SOLUTION.sub("", whole).splitlines()}
        own = [line for line in hidden - outside if len(line) > 30]
        assert own, source
        exercise = texts(handout, f"exercises/{source.stem}.ipynb", f"exercises/src/{source.name}")
        assert [line for line in own if line in exercise] == [], source


def test_build_makes_the_same_exercises_from_the_stubs(handout):
    for source in SOURCES:
        name = f"exercises-{source.stem}"
        expected = build_notebooks.notebook(source, name, build_notebooks.without_solution)
        made = handout / "exercises" / f"{source.stem}.ipynb"
        assert build_notebooks.complaints(made, expected, executed=False) == []


def test_the_tests_that_would_read_solutions_skip_with_a_reason(handout):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "--noconftest",
    ]
    command += ["tests/test_progress.py", "-k", "solutions or every_piece_of_the_model"]
    quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **quick, "PYTHONPATH": str(handout)}
    done = subprocess.run(
        command, cwd=handout, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "a students' copy has no solutions" in done.stdout
    assert re.search(r"\d+ passed, 2 skipped", done.stdout)


def test_a_teachers_own_solutions_and_files_do_not_go_along(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("there is no git here")
    teachers, given = tmp_path / "teacher", tmp_path / "given"
    (teachers / "exercises/src").mkdir(parents=True)
    shutil.copy(SOURCES[0], teachers / "exercises/src")
    solved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("the_answer = 42")])
    nbformat.write(solved, teachers / "exercises" / f"{SOURCES[0].stem}.ipynb")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=teachers, check=True)
    (teachers / "marks.csv").write_text("Ada,1.0\n", encoding="utf-8")
    monkeypatch.setattr(make_handout, "ROOT", teachers)
    make_handout.make(given)
    names = sorted(path.name for path in given.rglob("*") if path.is_file())
    assert names == [f"{SOURCES[0].stem}.ipynb", SOURCES[0].name]
    assert "the_answer" not in texts(given, "exercises/*.ipynb")


def test_a_handout_is_whole_or_not_there(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="must be empty or not there"):
        make_handout.make(tmp_path / "full")

    def killed(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_handout, "write", killed)
        make_handout.make(tmp_path / "given")
    assert not (tmp_path / "given").exists()
    monkeypatch.setattr(make_handout, "write", lambda folder: (folder / "whole").touch())
    make_handout.make(tmp_path / "given")
    assert [path.name for path in (tmp_path / "given").iterdir()] == ["whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "given"]
