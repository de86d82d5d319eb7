"""The notebooks: built from their sources, and lessons that keep to the template."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_notebooks  # noqa: E402

PLANS = {path: (cells, executed) for path, cells, executed in build_notebooks.plan([])}


def text_of(path: Path) -> str:
    """All that stands in the cells of a notebook, by its source."""
    return "\n".join(cell.source for cell in PLANS[path][0].cells)


LESSONS = [path for path in PLANS if path.parent.name == "notebooks"]
EXERCISES = [path for path in PLANS if path.parent.name == "exercises"]
SOLVED = any(path.parent.name == "solutions" for path in PLANS)  # not in a students' copy
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
        *(
            (lambda made, text=text: made.cells[2].outputs[0].update(text=text), "path of the")
            for text in (
                "/home/me/x",
                "/Users/me/x",
                "/root/x",
                "/private/var/x",
                "C:/Users/me",
                "C:\\Users\\me",
                "'D:\\\\work\\\\x'",
                "c:\\temp",
                "lib/site-packages/x.py:1: Warning",
            )
        ),
        (lambda made: made.cells[2].outputs[0].update(text="n:\n at 12:30, a\\b"), None),
        (lambda made: made.cells[2].outputs[0].update(name="stderr"), "stderr"),
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


def test_a_lesson_that_imports_transformers_shows_no_red_text(tmp_path):
    cells = (
        "from minipali import figures",
        "from tqdm.auto import tqdm\nimport huggingface_hub.utils",
    )
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    build_notebooks.execute(made, tmp_path)
    assert [cell.outputs for cell in made.cells] == [[], []]


# --- what build does to the work of a learner -----------------------------------------------------


@pytest.fixture
def clone(tmp_path, monkeypatch, capsys):
    """A repository with one source, built once: a function that runs build and returns its words.

    With CI set, as on a hub or a classroom's machine: nothing may depend on it.
    """
    for folder in ("notebooks/src", "exercises/src"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "exercises/src/03_double.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    monkeypatch.setenv("CI", "true")

    def build(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["build", *arguments])
        assert build_notebooks.main() == code
        return capsys.readouterr().out

    build()
    build.root, build.exercise = tmp_path, tmp_path / "exercises/03_double.ipynb"
    build.source = tmp_path / "exercises/src/03_double.py"
    return build


def edit(path: Path, change) -> str:
    """Change a notebook as a program does that opens and saves it; the file's new text."""
    made = nbformat.read(path, as_version=4)
    change(made)
    made.metadata.language_info = {"name": "python", "version": "3.13.1"}
    nbformat.write(made, path)
    return path.read_text(encoding="utf-8")


WORK = {
    "a solved gap": lambda made: made.cells[1].update(source="def double(x):\n    return x + x"),
    "half a gap": lambda made: made.cells[1].update(
        source=made.cells[1].source.replace("    raise", "    y = 2\n    raise")
    ),
    "a note in a new cell": lambda made: made.cells.append(nbformat.v4.new_markdown_cell("Note")),
    "a word in the text": lambda made: made.cells[0].update(source="# Title, my way"),
    "a deleted cell": lambda made: made.cells.pop(),
    "cells in another order": lambda made: made.cells.reverse(),
    "a cell that ran": lambda made: made.cells[2].update(execution_count=1),
    "an output": lambda made: made.cells[2].update(
        outputs=[nbformat.v4.new_output("stream", text="4")]
    ),
    "a solved gap, and the mark lost": lambda made: (
        WORK["a solved gap"](made),
        made.metadata.clear(),
    ),
}


@pytest.mark.parametrize("change", WORK.values(), ids=WORK)
def test_build_leaves_whatever_a_learner_did_and_does_not_call_it_a_fault(clone, change):
    mine = edit(clone.exercise, change)
    assert "exercises/03_double.ipynb is not as build wrote it" in clone().replace("\\", "/")
    clone("03")
    assert clone.exercise.read_text(encoding="utf-8") == mine
    clone("--check")
    assert "03_double" in clone("--pristine", code=1), "in the repository itself it is a fault"


@pytest.mark.parametrize("change", WORK.values(), ids=WORK)
def test_a_learners_work_outlives_a_newer_source_and_the_new_exercise_can_be_had(clone, change):
    mine = edit(clone.exercise, change)
    clone.source.write_text(SOURCE + "\n# %%\ndouble(3)\n", encoding="utf-8")
    told = clone()
    assert ("Its source is newer" in told) == ("minipali" in json.loads(mine)["metadata"])
    assert "give yours another name first" in told
    assert clone.exercise.read_text(encoding="utf-8") == mine
    clone("--check")
    aside = clone.exercise.rename(clone.exercise.with_name("03_mine.ipynb"))
    clone()
    assert "double(3)" in clone.exercise.read_text(encoding="utf-8")
    assert aside.read_text(encoding="utf-8") == mine
    clone("--check")


def test_an_exercise_that_was_only_opened_and_saved_is_renewed_with_its_source(clone):
    edit(clone.exercise, lambda made: None)
    clone("--check"), clone("--pristine")
    assert "made" in clone()
    edit(clone.exercise, lambda made: None)
    clone.source.write_text(SOURCE.replace("Title", "New title"), encoding="utf-8")
    assert "differs from its source" in clone("--check", code=1)
    assert "left as it is" not in clone()
    assert "New title" in clone.exercise.read_text(encoding="utf-8")
    clone("--check"), clone("--pristine")


def test_a_forgotten_build_is_noticed_in_exercise_and_solution(clone):
    clone.source.write_text(SOURCE.replace("2 * x", "x + x"), encoding="utf-8")
    told = clone("--check", code=1)
    assert re.findall(r"(\w+)[/\\]03_double.ipynb: differs", told) == ["solutions"]
    clone.source.write_text(SOURCE.replace("Twice", "Two times"), encoding="utf-8")
    told = clone("--check", code=1)
    assert re.findall(r"(\w+)[/\\]03_double.ipynb: differs", told) == ["exercises", "solutions"]


def test_in_a_lesson_cells_are_the_readers_and_outputs_are_builds(clone):
    source = clone.root / "notebooks/src/03_double.py"
    source.write_text("# %% [markdown]\n# # A lesson\n#\n# | no |\n\n# %%\n1 + 1\n", "utf-8")
    clone()
    lesson = clone.root / "notebooks/03_double.ipynb"
    assert nbformat.read(lesson, as_version=4).cells[1].outputs[0].data["text/plain"] == "2"
    assert build_notebooks.is_as_written(lesson)
    edit(lesson, lambda made: made.cells[1].update(execution_count=7, outputs=[]))
    clone("--check")
    assert "top to bottom" in clone("--pristine", code=1)
    clone(), clone("--pristine")
    mine = edit(lesson, lambda made: made.cells[0].update(source="# A lesson\n\nMy guess: 3"))
    clone("--check")
    assert "left as it is" in clone()
    assert lesson.read_text(encoding="utf-8") == mine


def test_a_lesson_that_fails_keeps_its_old_notebook_and_the_others_are_made(clone):
    for name, line in (("03_double", "1 / 0"), ("04_other", "1 + 1")):
        text = f"# %% [markdown]\n# # Title\n\n# %%\n{line}\n"
        (clone.root / f"notebooks/src/{name}.py").write_text(text, encoding="utf-8")
    told = clone(code=1)
    assert "03_double.ipynb does not run" in told and "ZeroDivisionError" in told
    assert [p.name for p in (clone.root / "notebooks").glob("*.ipynb")] == ["04_other.ipynb"]


@pytest.mark.parametrize("content", [b"", b'{"cells": [', b"[1, 2]", b"{}", b"\xff\xfe", None])
def test_a_damaged_exercise_is_named_left_alone_and_stops_nothing(clone, content):
    solution = clone.root / "solutions/03_double.ipynb"
    solution.unlink(), clone.exercise.unlink()
    if content is None:
        clone.exercise.mkdir()
    else:
        clone.exercise.write_bytes(content)
    told = clone(code=1)
    [line] = [line for line in told.splitlines() if "cannot be made" in line]
    assert line.replace("\\", "/").startswith("exercises/03_double.ipynb")
    assert solution.exists()
    assert clone.exercise.is_dir() if content is None else clone.exercise.read_bytes() == content
    assert "03_double.ipynb" in clone("--check", code=1)


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_every_old_notebook_whole_and_nothing_beside_it(
    clone, monkeypatch, fails
):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    before = {p: p.read_bytes() for p in clone.root.rglob("*") if p.is_file()}
    clone.source.write_text(SOURCE.replace("Title", "New"), encoding="utf-8")
    before[clone.source] = clone.source.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        told = clone(code=1)
    assert told.count("cannot be made, and is left as it was: [Errno 28]") == 3
    assert {p: p.read_bytes() for p in clone.root.rglob("*") if p.is_file()} == before


def test_a_kill_leaves_the_old_notebook_and_the_next_build_clears_up(clone):
    """Killed while it writes: here as it hands the file to the disk, with most of it written."""
    clone.source.write_text(SOURCE.replace("Title", "New"), encoding="utf-8")
    before = clone.exercise.read_bytes()
    program = (
        "import os, sys, time, pathlib\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "import build_notebooks\n"
        f"build_notebooks.ROOT = pathlib.Path({str(clone.root)!r})\n"
        "os.fsync = lambda _: (print('writing', flush=True), time.sleep(600))\n"
        "sys.argv = ['build', '03']\n"
        "build_notebooks.main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline().strip() == b"writing"
        child.kill()
    assert clone.exercise.read_bytes() == before
    clone()
    assert "New" in clone.exercise.read_text(encoding="utf-8")
    assert list(clone.root.rglob("*.part")) == []


def test_a_source_without_a_solution_makes_none(clone):
    """In a students' copy the solutions are cut out of the sources, and must not come back."""
    solution = clone.root / "solutions/03_double.ipynb"
    solution.unlink()
    clone.source.write_text(build_notebooks.without_solution(SOURCE) + "\n", encoding="utf-8")
    clone(), clone("--pristine")
    assert clone.exercise.exists() and not solution.exists()


def test_a_notebook_whose_source_is_gone_is_noticed_and_a_learners_own_is_not(clone):
    copy = clone.exercise.with_name("04_gone.ipynb")
    copy.write_bytes(clone.exercise.read_bytes())
    nbformat.write(nbformat.v4.new_notebook(), clone.exercise.with_name("scratch.ipynb"))
    told = clone("--check", code=1)
    assert "04_gone.ipynb: no source makes it" in told and "scratch" not in told
    edit(copy, WORK["a solved gap"])
    clone("--check")


# --- the notebooks of the course ------------------------------------------------------------------


def test_all_committed_notebooks_are_up_to_date():
    made = build_notebooks.plan([])
    wrong = {path.name: build_notebooks.compare(path, *plan, False) for path, *plan in made}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert build_notebooks.stray(made) == []
    assert len(made) >= (46 if SOLVED else 30)


def test_the_course_map_lists_every_lesson_with_its_minutes():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in LESSONS:
        minutes = re.search(r"Time: (\d+) minutes", text_of(path))[1]
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
        used = re.split(r"[(,]", term)[0].strip()
        text = " ".join(text_of(path).split())
        assert re.search(re.escape(used), text, re.IGNORECASE), f"{term}: {path.stem}"


# Glossary terms that are everyday words, too, and stand in earlier lessons as such.
PLAIN = {"label", "merge", "segment", "value"}


def test_no_lesson_uses_a_term_before_its_own_lesson_without_saying_which_that_is():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| .+ \| \[(\d\d)\]", page, re.MULTILINE)
    early = []
    for path in LESSONS[1:]:  # 00 shows the whole, before anything is explained
        cells = without_optional_parts(PLANS[path][0].cells)
        prose = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for paragraph in re.split(r"\n\s*\n", prose.split("**Sources.**")[0]):
            told = re.findall(r"lessons? (\d\d)", paragraph)
            for term, number in rows:
                word = re.escape(re.split(r"[(,]", term)[0].strip())
                used = re.search(
                    rf"(?<![\w-]){word}s?\b", " ".join(paragraph.split()), re.IGNORECASE
                )
                if used and path.stem[:2] < number and not told and term not in PLAIN:
                    early.append(f"{path.stem}: {term} ({number}) in {paragraph[:60]!r}")
    assert early == []


WRITTEN = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "*/src/*.py", "minipali/**/*.py", "minipali/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_promised_that_is_not_there(path):
    text = re.sub(r"\s*\n[# ]*", " ", path.read_text(encoding="utf-8"))  # a sentence, many lines
    for kind, there in (("lesson", LESSONS), ("exercise", EXERCISES)):
        numbers = {other.name[:2] for other in there}
        named = re.findall(rf"\b{kind}s? (\d\d\b(?:(?:, | and | to )\d\d\b)*)", text, re.IGNORECASE)
        assert {number for some in named for number in re.findall(r"\d\d", some)} <= numbers
    # No index has the package: it is installed from the clone.
    assert not re.search(r"pip install [\"']?minipali", text)
    assert not re.search(r"lessons .{0,20}are ready|others follow|will follow", text, re.IGNORECASE)


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_tells_which_pieces_it_collects(path):
    text = text_of(path)
    calls = re.findall(r"my_pieces\(\w+(?:, last=(\d+))?\)", text)
    told = re.findall(r"exercises 01 to (\d\d)", text)
    assert {f"{int(last or 10):02d}" for last in calls} == set(told)


HEADINGS = ("Where we are", "Goals", "Predict", "By hand", "Build", "Break it", "See it", "Check",
            "In the real model", "Your turn", "Take away")  # fmt: skip


def without_optional_parts(cells: list) -> list:
    """The cells that everyone reads: not those under a folded heading of the second level."""
    kept, folded = [], False
    for cell in cells:
        if cell.cell_type == "markdown" and re.search("^## ", cell.source, re.MULTILINE):
            folded = cell.metadata.get("jp-MarkdownHeadingCollapsed", False)
            assert folded == cell.source.startswith("## Optional"), cell.source[:40]
        if not folded:
            kept.append(cell)
    return kept


def words_for_everyone(path: Path) -> int:
    """How many words all must read: no folded part, no sources, no table of the notes."""
    cells = without_optional_parts(PLANS[path][0].cells)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = prose.split("### What the notes say")[0]
    for left_out in (r"<details>.*?</details>", r"\*\*Sources\.\*\*.*?(?=\n\n|\Z)"):
        prose = re.sub(left_out, "", prose, flags=re.DOTALL)
    return len(prose.split())


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_about_1500_words_long(path):
    assert words_for_everyone(path) <= 1720


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_asks_before_it_tells(path):
    cells = without_optional_parts(PLANS[path][0].cells)
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    guesses = re.findall(r"^(guess_\w+(?:, guess_\w+)*) = \.\.\.", code, re.MULTILINE)
    guesses = [name for found in guesses for name in found.split(", ")]
    assert len(guesses) >= 2
    for name in guesses:
        assert re.search(rf"reveal\(.*\b{name}\b", code), f"{name} is never answered"
    if path.stem[:2] >= "02":
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        remembered = prose.split("## Do you remember?")[1].split("\n## ")[0]
        assert remembered.count("<details>") == 3
    if path.stem[:2] >= "01":
        folded = [cell for cell in cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
        assert folded, "what the exercise asks for stands in folded cells"
        assert all("hide-input" in cell.metadata.tags for cell in folded)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_keeps_to_the_template(path):
    cells = without_optional_parts(PLANS[path][0].cells)
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


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_shows_a_figure(path):
    found = build_notebooks.read(path)
    if build_notebooks.changed(found, *PLANS[path]):
        pytest.skip("somebody has worked in it")
    outputs = [output for cell in found.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize(
    "path", LESSONS + EXERCISES, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_links_between_notebooks_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", text_of(path)):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_is_unsolved_and_has_its_lesson_module_checks_and_test(path):
    code = text_of(path)
    assert code.count("raise NotImplementedError") >= 1
    # It ends with the learner's code at work: in the trained model, or in a training.
    assert "check(" in code and re.search(r"\b(swap|load|try_\w+)\(", code)
    name = path.stem.split("_", 1)[1]
    for other in (
        ROOT / "notebooks" / path.name,
        ROOT / ("solutions" if SOLVED else "exercises") / path.name,
        ROOT / "minipali" / f"{name}.py",
        ROOT / "minipali" / "checks" / f"{name}.py",
        ROOT / "tests" / f"test_{name}.py",
    ):
        assert other.exists(), other
