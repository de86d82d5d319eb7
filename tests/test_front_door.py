"""What a person meets first: `course.py lab`, the links that lead on from there, and a browser."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest
from browsing import HERE, wait_for
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    path
    for folder in ("notebooks", "exercises", "solutions")
    for path in ROOT.glob(f"{folder}/*.ipynb")
)
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "minipali/assets/**/*.md")
    for path in ROOT.glob(pattern)
)

# --- every link leads somewhere ------------------------------------------------------------------


def markdown(path: Path) -> str:
    """The text of a page, or of the markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def tokens(text: str):
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        yield block
        yield from block.children or []


def links(text: str) -> list[str]:
    """Where links and pictures lead, of markdown and of HTML within it."""
    found = []
    for token in tokens(text):
        found += [token.attrs[name] for name in ("href", "src") if name in token.attrs]
        if token.type.startswith("html"):
            found += re.findall(r'(?:href|src)="([^"]*)"', token.content)
    return found


def anchors(text: str) -> set[str]:
    """What `#...` may name: headings as GitHub spells them, and as JupyterLab does."""
    blocks = list(tokens(text))
    titles = [
        b.content for a, b in zip(blocks, blocks[1:], strict=False) if a.type == "heading_open"
    ]
    plain = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in titles]
    github = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}
    return github | {title.replace(" ", "-") for title in plain}


# What a students' copy is without; links may lead there all the same.
WITHHELD = [ROOT / name for name in ("solutions", "assessment") if not (ROOT / name).is_dir()]


def dead(path: Path, root: Path = ROOT) -> list[str]:
    """The relative links of a page or notebook that lead to no file, or to no heading of it."""
    wrong = []
    for link in links(markdown(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = urllib.parse.unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        if any(target.is_relative_to(folder) for folder in WITHHELD):
            continue
        # Case counts, also where the file system does not care.
        if not target.exists() or target.name not in os.listdir(target.parent):
            wrong.append(link)
        elif not target.is_relative_to(root):
            wrong.append(f"{link} leaves the repository")
        elif anchor and anchor not in anchors(markdown(target)):
            wrong.append(f"{link}: no such heading")
    return wrong


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert dead(path) == []


def test_links_are_found(tmp_path):
    """All that may lead somewhere is looked at."""
    page = tmp_path / "page.md"
    page.write_text(
        "# What `it` is\n\n[a](gone.md) ![b](gone.png) [c](page.md#what-it-is) [d](#other)"
        " [g](..)\n\n"
        '| t |\n|---|\n| [e][ref] |\n\n<a href="gone.html">f</a> <https://example.org>\n\n'
        "`[no](link.md)`\n\n[ref]: gone%20too.md\n",
        encoding="utf-8",
    )
    assert [link.split(":")[0] for link in dead(page, tmp_path)] == [
        "gone.md",
        "gone.png",
        "#other",
        ".. leaves the repository",
        "gone%20too.md",
        "gone.html",
    ]


def test_lessons_and_exercises_lead_to_each_other():
    for lesson in ROOT.glob("notebooks/*.ipynb"):
        exercise = ROOT / "exercises" / lesson.name
        if exercise.exists():
            assert f"../exercises/{lesson.name}" in links(markdown(lesson))
            assert f"../notebooks/{lesson.name}" in links(markdown(exercise))


# --- course.py lab -------------------------------------------------------------------------------

# course.py as it is, but for the set-up: the Python that runs the tests has what it needs.
COURSE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("course", sys.argv[1])
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)
course.PYTHON, course.set_up = sys.executable, lambda extras: None
sys.exit(course.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository's notebooks and pages: what runs in them changes nothing in the repository."""
    folder = tmp_path_factory.mktemp("front door é") / "mini pali"
    settings = ROOT.glob("tools/jupyter/**/*.json")
    for path in [ROOT / "course.py", *settings, *NOTEBOOKS, *PAGES]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


@pytest.fixture(scope="module")
def lab(copy, tmp_path_factory):
    """`course.py lab` on the copy, as at its very first start, but without opening a browser."""
    pytest.importorskip("jupyterlab")
    state = tmp_path_factory.mktemp("jupyter")
    environment = {
        **os.environ,
        **{f"JUPYTER_{what}_DIR": str(state / what) for what in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
        "IPYTHONDIR": str(state / "ipython"),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("MPLBACKEND", None)  # notebooks have a backend of their own
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # From another folder than the repository's, and with a path as it is there.
    arguments = ["lab", "01_patches.ipynb", "--no-browser", "--expose-app-in-browser"]
    command = [sys.executable, "-c", COURSE, copy / "course.py", *arguments, f"--port={port}"]
    log = state / "log.txt"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command, cwd=copy / "notebooks", env=environment, stdout=output, stderr=output
        )

    def answers():
        """What the server says of itself, once it does."""
        for path in (state / "RUNTIME").glob("jpserver-*.json"):
            with contextlib.suppress(OSError, ValueError):  # not whole yet, or nobody listens yet
                running = json.loads(path.read_text(encoding="utf-8"))
                ask(running, "api")
                return running

    try:
        running = wait_for(answers, server, log)
        yield running
        ask(running, "api/shutdown", method="POST")
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                process.kill()
            server.wait()


def ask(lab, path, method="GET"):
    """(address, content) of what the server answers, redirections followed."""
    request = urllib.request.Request(
        urllib.parse.urljoin(lab["url"], urllib.parse.quote(path)),
        method=method,
        headers={"Authorization": f"token {lab['token']}"},
    )
    with HERE.open(request) as answer:
        return answer.geturl(), answer.read()


def test_lab_opens_the_lesson_in_the_whole_repository(lab, copy):
    assert Path(lab["root_dir"]) == copy.resolve()
    address, page = ask(lab, "")
    assert urllib.parse.urlparse(address).path == "/lab/tree/notebooks/01_patches.ipynb"
    assert b"jupyter-config-data" in page


def test_lab_has_the_exercise_where_the_lesson_links_to(lab, copy):
    lesson = copy / "notebooks" / "01_patches.ipynb"
    (link,) = {link for link in links(markdown(lesson)) if "exercises" in link}
    path = urllib.parse.urljoin("notebooks/01_patches.ipynb", link)
    assert path == "exercises/01_patches.ipynb"
    _, answer = ask(lab, f"api/contents/{path}")
    sources = [cell["source"] for cell in json.loads(answer)["content"]["cells"]]
    assert sources == [cell.source for cell in nbformat.read(copy / path, as_version=4).cells]
    for path in ("notebooks/00_ask.ipynb", "README.md", "docs/glossary.md"):
        ask(lab, f"lab/tree/{path}")
        ask(lab, f"api/contents/{path}")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(lab, "api/contents/exercises/99_none.ipynb")


# --- a person with a browser ---------------------------------------------------------------------


# What the page is asked. Its notebook, once it and its kernel are ready:
READY = """(() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  return panel?.context?.path === PATH && panel.context.isReady && panel.content.widgets.length > 1
    && panel.sessionContext.session?.kernel?.status === "idle";
})()"""
# [how often it ran, its outputs] of each cell of code:
CELLS = """jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === "code")
  .map(cell => [cell.model.executionCount, cell.model.outputs.toJSON()])"""
# A click on a link, which is drawn once its cell is in sight, and leads to a file a moment later:
FOLLOW = """(async () => {
  const notebook = jupyterapp.shell.currentWidget.content;
  const cell = notebook.widgets.find(cell => cell.model.sharedModel.source.includes(`](${LINK})`));
  notebook.activeCellIndex = notebook.widgets.indexOf(cell);
  for (let i = 0; i < 100; i++) {
    await notebook.scrollToCell(cell);
    const links = [...cell.node.querySelectorAll("a")];
    const link = links.find(link => link.href.includes(LINK.replace("..", "/files")));
    if (link) { link.click(); return true; }
    await new Promise(done => setTimeout(done, 100));
  }
})()"""
WRITE = (
    """jupyterapp.shell.currentWidget.content.widgets[CELL].model.sharedModel.setSource(SOURCE)"""
)
# Run a cell as Shift+Enter does; what it shows:
RUN = """(async () => {
  const notebook = jupyterapp.shell.currentWidget.content;
  notebook.activeCellIndex = CELL;
  await notebook.scrollToCell(notebook.activeCell);
  await jupyterapp.commands.execute("notebook:run-cell");
  return notebook.activeCell.outputArea.node.innerText;
})()"""
SAVE = """jupyterapp.commands.execute("docmanager:save")"""


def test_a_learner_in_a_browser(lab, copy, browser):
    """Reads a lesson, runs it, follows its link, answers wrongly, then rightly."""
    if not (copy / "solutions").is_dir():
        pytest.skip("a students' copy has no solutions to answer with")

    def run(script, **values):
        for name, value in values.items():
            script = script.replace(name, json.dumps(value))
        return browser.run(script)

    def open_notebook(path):
        wait_for(lambda: run(READY, PATH=path))

    browser.call("Page.navigate", url=f"{lab['url']}?token={lab['token']}")
    open_notebook("notebooks/01_patches.ipynb")
    run('jupyterapp.commands.execute("notebook:run-all-cells")')
    ran = run(CELLS)
    assert [count for count, _ in ran] == list(range(1, len(ran) + 1))
    kinds = [output["output_type"] for _, outputs in ran for output in outputs]
    assert "display_data" in kinds and "error" not in kinds
    # Nothing asks for attention on the first start.
    assert run("document.querySelectorAll('.Toastify__toast, .jp-Dialog').length") == 0

    exercise, solution = (
        json.loads((folder / name / "01_patches.ipynb").read_text(encoding="utf-8"))["cells"]
        for folder, name in ((copy, "exercises"), (copy, "solutions"))
    )
    assert run(FOLLOW, LINK="../exercises/01_patches.ipynb")
    open_notebook("exercises/01_patches.ipynb")
    sources = ["".join(cell["source"]) for cell in exercise]
    check = next(i for i, source in enumerate(sources) if source.startswith('check("patchify"'))
    run(RUN, CELL=1)
    run(RUN, CELL=check - 1)
    assert "not attempted" in run(RUN, CELL=check)
    for source, outcome in (
        ("def patchify(pixels, patch_size):\n    return pixels", "wrong"),
        ("".join(solution[check - 1]["source"]), "correct"),
    ):
        run(WRITE, CELL=check - 1, SOURCE=source)
        run(RUN, CELL=check - 1)
        assert f"patchify: {outcome}" in run(RUN, CELL=check)
    run(SAVE)
    saved = json.loads((copy / "exercises" / "01_patches.ipynb").read_text(encoding="utf-8"))
    assert saved["cells"][check - 1]["source"] == solution[check - 1]["source"]
    elsewhere = [
        address
        for address in browser.requests
        if not address.startswith((lab["url"], "data:", "blob:", "about:"))
    ]
    assert elsewhere == []
