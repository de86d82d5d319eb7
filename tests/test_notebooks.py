"""The notebooks: built from their sources, and lessons that keep to the template."""

import os
import re
import statistics
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_notebooks  # noqa: E402


def is_answered(path: Path) -> bool:
    """A learner's own answers are no fault of the repository."""
    plans = {made: cells for made, cells, _ in build_notebooks.plan([])}
    return not os.environ.get("CI") and build_notebooks.has_answers(path, plans[path])


LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*.ipynb"))
SOURCE = """# %% [markdown]
# # Title

# %% tags=["nbval-check-output"]
def double(x):
    \"\"\"Twice x.\"\"\"
    ### BEGIN SOLUTION
    y = 2 * x
    return y
    ### END SOLUTION

# %%
double(2)
"""


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "03_double.py"
    file.write_text(SOURCE, encoding="utf-8")
    return file


def test_exercise_and_solution_come_from_one_source(source):
    exercise = build_notebooks.notebook(source, "e", build_notebooks.without_solution)
    solution = build_notebooks.notebook(source, "s", build_notebooks.with_solution)
    stub, solved = exercise.cells[1].source, solution.cells[1].source
    for kept in ("def double(x):", '"""Twice x."""'):
        assert kept in stub and kept in solved
    assert "2 * x" not in stub and "    raise NotImplementedError" in stub
    assert "    y = 2 * x\n    return y" in solved
    assert "###" not in stub + solved
    compile(stub, "stub", "exec"), compile(solved, "solved", "exec")


def test_two_builds_are_equal_and_ids_are_unique(source):
    first, second = (build_notebooks.notebook(source, "x") for _ in range(2))
    assert first == second
    assert len({cell.id for cell in first.cells}) == len(first.cells)


def test_printed_text_in_pieces_becomes_one():
    def said(text, name="stdout"):
        return nbformat.v4.new_output("stream", name=name, text=text)

    picture = nbformat.v4.new_output("display_data", data={"text/plain": "x"})
    made = build_notebooks.joined([said("a"), said("b"), said("c", "stderr"), picture, said("d")])
    assert [output.get("text") for output in made] == ["ab", "c", None, "d"]


def executed(source):
    made = build_notebooks.notebook(source, "x", build_notebooks.with_solution)
    for number, cell in enumerate((c for c in made.cells if c.cell_type == "code"), start=1):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", text="4")]
    return made


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda made: None, None),
        (lambda made: made.cells[0].update(source="# Other"), "differs"),
        (lambda made: made.cells[2].update(execution_count=None), "top to bottom"),
        (lambda made: made.cells[1].update(outputs=[]), "no output"),
        (lambda made: made.cells[2].outputs[0].update(text="/home/me/x"), "path of the machine"),
        (
            lambda made: made.cells[2].update(
                outputs=[nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
            ),
            "error",
        ),
        (
            lambda made: made.cells[2].update(
                outputs=[nbformat.v4.new_output("display_data", data={"image/png": "AAAA"})]
            ),
            "alt text",
        ),
    ],
)
def test_the_freshness_check_notices(source, tmp_path, damage, said):
    expected = build_notebooks.notebook(source, "x", build_notebooks.with_solution)
    made = executed(source)
    damage(made)
    file = tmp_path / "x.ipynb"
    nbformat.write(made, file)
    complaints = build_notebooks.complaints(file, expected, True)
    assert complaints == [] if said is None else any(said in one for one in complaints)


def test_a_missing_notebook_and_outputs_in_an_exercise_are_noticed(source, tmp_path):
    expected = build_notebooks.notebook(source, "x", build_notebooks.with_solution)
    assert build_notebooks.complaints(tmp_path / "no.ipynb", expected, True) == ["missing"]
    nbformat.write(executed(source), tmp_path / "x.ipynb")
    [complaint] = build_notebooks.complaints(tmp_path / "x.ipynb", expected, False)
    assert "without" in complaint


def test_a_learners_answers_are_seen_and_never_overwritten(tmp_path, monkeypatch, capsys):
    for folder in ("notebooks/src", "exercises/src", "solutions"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "exercises/src/03_double.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["build"])
    monkeypatch.delenv("CI", raising=False)
    assert build_notebooks.main() == 0
    file = tmp_path / "exercises/03_double.ipynb"
    fresh = file.read_text(encoding="utf-8")
    mine = nbformat.read(file, as_version=4)
    mine.cells[1].source = "def double(x):\n    return x + x"
    nbformat.write(mine, file)
    answered = file.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["build", "--check"])
    assert build_notebooks.main() == 0
    monkeypatch.setattr(sys, "argv", ["build"])
    assert build_notebooks.main() == 0
    assert "left as it is" in capsys.readouterr().out
    assert file.read_text(encoding="utf-8") == answered != fresh
    monkeypatch.setenv("CI", "true")  # where an answered exercise must not be committed
    monkeypatch.setattr(sys, "argv", ["build", "--check"])
    assert build_notebooks.main() == 1


def test_a_notebook_without_a_source_is_noticed(tmp_path, monkeypatch):
    for folder in ("notebooks", "exercises", "solutions"):
        (tmp_path / folder).mkdir()
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "exercises" / "99_stray.ipynb")
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    assert [p.name for p in build_notebooks.stray([])] == ["99_stray.ipynb"]


def test_all_committed_notebooks_are_up_to_date():
    made = build_notebooks.plan([])
    wrong = {
        str(path): build_notebooks.complaints(path, cells, run)
        for path, cells, run in made
        if not is_answered(path)
    }
    assert {path: found for path, found in wrong.items() if found} == {}
    assert build_notebooks.stray(made) == []
    assert len(made) >= 4


def test_the_course_map_lists_every_lesson_with_its_minutes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        prose = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        minutes = re.search(r"Time: (\d+) minutes", prose)[1]
        [row] = re.findall(rf"^\| \[[^]]+\]\(notebooks/{path.name}\) \|.*$", readme, re.MULTILINE)
        assert row.split(" | ")[3] == minutes, path.stem


def test_the_notes_page_has_the_table_of_every_lesson_and_is_up_to_date():
    page = (ROOT / "docs" / "notes.md").read_text(encoding="utf-8")
    assert page == build_notebooks.notes_page()
    for path in LESSONS:
        part = page.split(f"(../notebooks/{path.name})")[1].split("\n## ")[0]
        assert part.count("\n| ") >= 2 and "|---|---|" in part, path.stem


def test_the_glossary_leads_from_each_term_to_a_lesson_that_uses_it():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| .+ \| \[(\d\d)\]\((.+?)\) \|$", page, re.MULTILINE)
    assert len(rows) == page.count("\n| **") >= 60
    terms = [term.lower() for term, _, _ in rows]
    assert terms == sorted(terms), "in the order of the alphabet"
    for term, number, link in rows:
        path = (ROOT / "docs" / link).resolve()
        assert path.name.startswith(number) and path.exists(), term
        prose = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        used = re.split(r"[(,]", term)[0].strip()
        assert re.search(re.escape(used), prose, re.IGNORECASE), f"{term} is not in {path.stem}"


HEADINGS = ("Where we are", "Goals", "Predict", "By hand", "Build", "Break it", "See it", "Check",
            "In the real model", "Your turn", "Take away")  # fmt: skip


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_keeps_to_the_template(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = [cell for cell in cells if cell.cell_type == "code"]
    lines = [len(cell.source.splitlines()) for cell in code]
    assert len(cells) <= 40
    assert statistics.median(lines) <= 6
    assert max(lines) <= 25
    # Text behind "# %% [markdown]" would become a title that no reader sees.
    assert not any("title" in cell.metadata for cell in cells)
    for heading in HEADINGS:
        assert re.search(rf"^## {heading}", prose, re.MULTILINE), heading
    assert prose.count("<details>") >= 2, "a self-test with folded answers"
    assert "**Sources.**" in prose
    assert f"{build_notebooks.NOTES}\n" in prose
    assert re.search(r"Time: \d+ minutes", prose)
    assert not re.search(r"\b(simply|obviously|of course|trivial)", prose, re.IGNORECASE)
    # Calm reading: 200 words a minute, and half a minute for each cell of code.
    assert len(prose.split()) / 200 + len(code) / 2 <= 45
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@pytest.mark.parametrize(
    "path", LESSONS + EXERCISES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_links_between_notebooks_lead_somewhere(path):
    prose = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_is_unsolved_and_has_its_lesson_module_checks_and_test(path):
    if is_answered(path):
        pytest.skip("it holds a learner's answers")
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert code.count("raise NotImplementedError") >= 1
    # It ends with the learner's code at work: in the trained model, or in a training.
    assert "check(" in code and ("swap(" in code or "load(" in code)
    name = path.stem.split("_", 1)[1]
    for other in (
        ROOT / "notebooks" / path.name,
        ROOT / "solutions" / path.name,
        ROOT / "minipali" / f"{name}.py",
        ROOT / "minipali" / "checks" / f"{name}.py",
        ROOT / "tests" / f"test_{name}.py",
    ):
        assert other.exists(), other
