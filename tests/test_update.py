"""`course.py update`: what is new comes, and nothing of a learner's is lost."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import build_notebooks  # noqa: E402
import update_course  # noqa: E402

DAY = "2026-11-27"


def exercise(path: Path, code: str, text: str = "# RoPE") -> None:
    """A notebook as build writes one, with its mark."""
    cells = [nbformat.v4.new_markdown_cell(text, id="a"), nbformat.v4.new_code_cell(code, id="b")]
    made = nbformat.v4.new_notebook(cells=cells)
    path.parent.mkdir(exist_ok=True)
    build_notebooks.write(made, path)


def save(path: Path, code: str | None = None, outputs=()) -> None:
    """Change a notebook as JupyterLab does that saves it: the code of its cell, what that shows."""
    made = nbformat.read(path, as_version=4)
    made.metadata.language_info = {"name": "python", "version": "3.13.1"}
    made.cells[1].source = made.cells[1].source if code is None else code
    made.cells[1].outputs = [nbformat.v4.new_output("stream", text=text) for text in outputs]
    nbformat.write(made, path)


STUB = "def f(x):\n    raise NotImplementedError"
SOLVED = "def f(x):\n    return x"


def course(folder: Path, version: int) -> None:
    """The course in its first or second version: lesson 01 stays, 02 changes, 09 goes, 10 comes."""
    second = version == 2
    files = {
        "course.py": f"VERSION = {version}\n",
        "pyproject.toml": "",
        "README.md": "The same.\n",
        ".gitattributes": "* text=auto eol=lf\n",
        "minipali/__init__.py": f"__version__ = '{version}'\n",
        "minipali/same.py": "SAME = 1\n",
        "minipali/new.py" if second else "minipali/old.py": f"PLACE = {version}\n",
        ".ci/run": f"#!/bin/sh\nexit {version}\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / ".ci/run").chmod(0o755)
    exercise(folder / "exercises/01_patches.ipynb", STUB)
    exercise(folder / "exercises/02_norms.ipynb", STUB, "# Norms, mended" if second else "# Norms")
    exercise(folder / "exercises/03_attention.ipynb", STUB, f"# Attention {version}")
    exercise(folder / ("exercises/10_new.ipynb" if second else "exercises/09_old.ipynb"), STUB)


def contents(folder: Path) -> dict[str, bytes]:
    names = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in names
        if not {".git", "__pycache__"}.intersection(path.relative_to(folder).parts)
    }


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def commit(folder: Path, *arguments: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x", *arguments)


@pytest.fixture(autouse=True)
def own_git(monkeypatch):
    """git without this machine's settings, and with a name to commit under."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A learner")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "learner@example.org")


@pytest.fixture
def published(tmp_path):
    """The new version, as a folder."""
    course(tmp_path / "published", 2)
    return tmp_path / "published"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A learner's copy of the first version, without git; it is what is updated."""
    course(tmp_path / "mine_é", 1)
    monkeypatch.setattr(update_course, "ROOT", tmp_path / "mine_é")
    return tmp_path / "mine_é"


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """(a learner's clone, the repository it is of): the clone has the first version of two."""
    if shutil.which("git") is None:
        pytest.skip("there is no git here")
    upstream, here = tmp_path / "upstream", tmp_path / "clone_é"
    upstream.mkdir()
    git(upstream, "init", "-q", "-b", "main")
    course(upstream, 1)
    commit(upstream)
    git(tmp_path, "clone", "-q", str(upstream), str(here))
    for path in [upstream / "minipali/old.py", upstream / "exercises/09_old.ipynb"]:
        path.unlink()
    course(upstream, 2)
    commit(upstream)
    monkeypatch.setattr(update_course, "ROOT", here)
    return here, upstream


def work(folder: Path) -> dict[str, bytes]:
    """What a learner does in many places: the files that are this learner's."""
    save(folder / "exercises/01_patches.ipynb", SOLVED)
    save(folder / "exercises/02_norms.ipynb", SOLVED)
    save(folder / "exercises/09_old.ipynb", SOLVED)
    save(folder / "exercises/03_attention.ipynb", outputs=["it ran"])  # no work
    (folder / "exercises/scratch.ipynb").write_text("mine", encoding="utf-8")
    (folder / "my notes.txt").write_text("mine, too", encoding="utf-8")
    with open(folder / "minipali/__init__.py", "a", encoding="utf-8") as file:
        file.write("print('hello')\n")
    names = ["exercises/01_patches.ipynb", "exercises/02_norms.ipynb", "exercises/09_old.ipynb"]
    names += ["exercises/scratch.ipynb", "my notes.txt", "minipali/__init__.py"]
    return {name: (folder / name).read_bytes() for name in names}


def check(folder: Path, theirs: dict[str, bytes], published: Path) -> None:
    """All that is new is there, all work is there, and what was in the way lies in mine/."""
    now, new = contents(folder), contents(published)
    for name in ("course.py", "minipali/new.py", ".ci/run", "exercises/10_new.ipynb"):
        assert now[name] == new[name], name
    assert now["minipali/__init__.py"] == new["minipali/__init__.py"]
    assert now["exercises/03_attention.ipynb"] == new["exercises/03_attention.ipynb"]
    assert now[f"mine/{DAY}/minipali/__init__.py"] == theirs["minipali/__init__.py"]
    assert now[f"mine/{DAY}/exercises/02_norms.ipynb"] == theirs["exercises/02_norms.ipynb"]
    for name in theirs.keys() - {"minipali/__init__.py"}:
        assert now[name] == theirs[name], name
    assert "minipali/old.py" not in now
    assert not [name for name in now if name.endswith(".part")]
    assert os.name == "nt" or (folder / ".ci/run").stat().st_mode & 0o100


def test_a_mark_is_what_build_says_of_a_notebook():
    for name in ("notebooks/07_rope.ipynb", "exercises/07_rope.ipynb"):
        content = (ROOT / name).read_bytes()
        found = build_notebooks.read(ROOT / name)
        as_built = build_notebooks.fingerprints(found)["cells"] == found.metadata.minipali["cells"]
        assert update_course.mark(content) == (found.metadata.minipali["cells"], as_built)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"cells": []}', b"\xff", b"[" * 99999])
def test_a_damaged_notebook_is_its_owners(content):
    assert update_course.mark(content) == ("", False)


def test_a_clone_gets_what_is_new_and_keeps_what_is_its_owners(clone, capsys):
    here, upstream = clone
    theirs = work(here)
    update_course.update(None, DAY)
    check(here, theirs, upstream)
    assert "exercises/09_old.ipynb" in contents(here)
    told = capsys.readouterr().out
    assert "exercises/02_norms.ipynb: yours stays, and a copy lies in mine/" in told
    assert "course.py build 02" in told and "09_old.ipynb: is no longer part" in told
    assert "minipali/__init__.py: is renewed or gone; what was here lies in mine/" in told
    assert git(here, "rev-parse", "HEAD") == git(upstream, "rev-parse", "HEAD")
    changed = git(here, "status", "--porcelain", "-uno").split("\n")
    assert changed == [" M exercises/01_patches.ipynb", " M exercises/02_norms.ipynb", ""]
    before = contents(here)
    update_course.update(None, DAY)
    assert capsys.readouterr().out == "Nothing is new.\n"
    assert contents(here) == before


@pytest.mark.parametrize("form", ["a ZIP as GitHub makes it", "a ZIP of files", "a folder", "git"])
def test_a_copy_without_git_is_updated_from(form, mine, published, tmp_path, capsys):
    theirs = work(mine)
    source = tmp_path / "new version.zip"
    if form == "a folder":
        source = published
        (source / ".venv").mkdir()
        (source / ".venv/x").write_text("not the course's", encoding="utf-8")
    elif form == "git":
        if shutil.which("git") is None:
            pytest.skip("there is no git here")
        source = published
        git(source, "init", "-q")
        commit(source)
        (source / "not committed").write_text("x", encoding="utf-8")
    else:
        inside = "" if form == "a ZIP of files" else "minipali-main/"
        with zipfile.ZipFile(source, "w") as archive:
            for name in contents(published):
                archive.write(published / name, inside + name)
            for name in (f"{inside}.venv/x", "__MACOSX/._course.py"):
                archive.writestr(name, "not the course's")
    update_course.update(str(source), DAY)
    check(mine, theirs, published)
    for name in (".venv", "not committed", "__MACOSX"):
        assert not (mine / name).exists()
    assert (mine / f"mine/{DAY}/minipali/old.py").exists(), "nobody knows whether it was changed"
    assert "02_norms.ipynb: yours stays" in capsys.readouterr().out
    before = contents(mine)
    update_course.update(str(source), DAY)
    assert contents(mine) == before


class Killed(BaseException):
    pass


class Clock:
    """Counts what changes the disk, and kills (with an exception that nobody catches) in time."""

    def __init__(self, patch, moment=None):
        self.moment, self.count = moment, 0
        for place, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
            patch.setattr(place, name, self.watched(getattr(place, name)))
        patch.setattr(update_course, "joined", self.watched(update_course.joined))

    def watched(self, function):
        def call(*arguments, **options):
            self.count += 1
            if self.count == self.moment:
                raise Killed
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("kind", ["clone", "copy"])
def test_a_kill_at_any_moment_loses_nothing_and_the_same_command_goes_on(
    kind, request, monkeypatch
):
    if kind == "clone":
        here, published = request.getfixturevalue("clone")
        source = None
    else:
        here, published = (request.getfixturevalue(name) for name in ("mine", "published"))
        source = str(published)
    theirs = work(here)
    start = shutil.copytree(here, here.with_name("start"))
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        update_course.update(source, DAY)
    assert clock.count > 15
    # In a clone, where git takes its time, at some of them, and before its record moves.
    moments = range(1, clock.count + 1) if kind == "copy" else [1, 4, 9, 14, clock.count]
    for moment in moments:
        shutil.rmtree(here)
        shutil.copytree(start, here)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            Clock(patch, moment)
            update_course.update(source, DAY)
        assert set(theirs.values()) <= set(contents(here).values())
        update_course.update(source, DAY)
        check(here, theirs, published)
        if kind == "clone":
            assert git(here, "rev-parse", "HEAD") == git(published, "rev-parse", "HEAD")


def test_own_commits_stay_and_are_joined_with_what_is_new(clone, capsys):
    here, upstream = clone
    theirs = work(here)
    commit(here)
    mine = git(here, "rev-parse", "HEAD").strip()
    update_course.update(None, DAY)
    check(here, theirs, upstream)
    assert "Your own commits stay" in capsys.readouterr().out
    assert mine in git(here, "rev-list", "HEAD")
    assert git(upstream, "rev-parse", "HEAD").strip() in git(here, "rev-list", "HEAD")
    # All is committed: nothing is left over for git to complain of.
    assert git(here, "status", "--porcelain", "-uno") == ""
    assert "my notes.txt" in git(here, "ls-files") and "old.py" not in git(here, "ls-files")
    (upstream / "README.md").write_text("Once more.\n", encoding="utf-8")
    commit(upstream)
    update_course.update(None, DAY)
    assert (here / "README.md").read_text(encoding="utf-8") == "Once more.\n"
    check(here, theirs, upstream)


def test_a_clone_that_stands_at_no_branch_and_is_shallow(clone, tmp_path, monkeypatch):
    _, upstream = clone
    here = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", upstream.as_uri(), str(here))
    git(here, "checkout", "-q", "--detach")
    (upstream / "README.md").write_text("Once more.\n", encoding="utf-8")
    commit(upstream)
    save(here / "exercises/02_norms.ipynb", SOLVED)
    monkeypatch.setattr(update_course, "ROOT", here)
    update_course.update(None, DAY)
    assert (here / "README.md").read_text(encoding="utf-8") == "Once more.\n"
    assert git(here, "rev-parse", "HEAD") == git(upstream, "rev-parse", "HEAD")
    assert git(here, "status", "--porcelain", "-uno") == " M exercises/02_norms.ipynb\n"


def test_a_clone_takes_a_zip_too_and_git_stays_as_it_is(clone, published):
    here, _ = clone
    theirs = work(here)
    head = git(here, "rev-parse", "HEAD")
    update_course.update(str(published), DAY)
    check(here, theirs, published)
    assert git(here, "rev-parse", "HEAD") == head
    update_course.update(None, DAY)  # and later git, with the same content
    check(here, theirs, published)
    assert git(here, "rev-parse", "HEAD") != head


def test_what_was_put_aside_is_never_replaced(mine, published):
    theirs = work(mine)
    update_course.update(str(published), DAY)
    (mine / "minipali/__init__.py").write_text("# changed again\n", encoding="utf-8")
    update_course.update(str(published), DAY)
    check(mine, theirs, published)
    again = mine / f"mine/{DAY}-2/minipali/__init__.py"
    assert again.read_text(encoding="utf-8") == "# changed again\n"


def refused(source, capsys) -> str:
    """The one sentence that update ends with; nothing is changed by it."""
    before = contents(update_course.ROOT)
    assert update_course.main([] if source is None else [str(source)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("course.py: ") and told.count("\n") == 1
    assert contents(update_course.ROOT) == before
    return told


def test_what_is_no_copy_of_the_course_is_refused(mine, tmp_path, capsys):
    cut, odd, other = (tmp_path / name for name in ("cut.zip", "odd.zip", "other.zip"))
    for path, names in ((other, ["x.txt"]), (odd, ["course.py", "../../x"])):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "x")
    cut.write_bytes(other.read_bytes()[:40])
    assert "must be a whole ZIP file" in refused(cut, capsys)
    assert "has no course.py" in refused(other, capsys)
    assert "names ../../x" in refused(odd, capsys)
    assert "is not there" in refused(tmp_path / "none.zip", capsys)
    assert "has no course.py" in refused(tmp_path, capsys)


def test_where_the_new_version_comes_from_must_be_known(mine, capsys):
    assert "comes from a teacher" in refused(None, capsys)
    (mine / "solutions").mkdir()
    (mine / "setup.py").write_text('ADDRESS = ""  # none\n', encoding="utf-8")
    assert "does not know where it comes from" in refused(None, capsys)
    (mine / "setup.py").write_text('ADDRESS = "https://x.org/a/b/blob/main"  #\n', encoding="utf-8")
    assert update_course.published() == "https://x.org/a/b/archive/HEAD.zip"


def test_a_clone_that_cannot_be_updated_says_why(clone, capsys, monkeypatch):
    here, upstream = clone
    (here / ".git/MERGE_HEAD").write_text("x", encoding="utf-8")
    assert "in the middle of something (MERGE_HEAD)" in refused(None, capsys)
    (here / ".git/MERGE_HEAD").unlink()
    upstream.rename(upstream.with_name("moved"))
    assert "git fetch failed" in refused(None, capsys)
    git(here, "remote", "remove", "origin")
    assert "names no other that it comes from" in refused(None, capsys)
    monkeypatch.setattr(update_course.shutil, "which", lambda name: None)
    assert "there is no git here" in refused(None, capsys)


def test_a_full_disk_loses_nothing_and_says_so(mine, published, monkeypatch, capsys):
    theirs = work(mine)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert update_course.main([str(published)]) == 1
    assert "No space left on device. Nothing of yours is lost" in capsys.readouterr().err
    assert {name: (mine / name).read_bytes() for name in theirs} == theirs


def test_a_zip_is_fetched_from_its_address(mine, published, tmp_path, monkeypatch):
    theirs = work(mine)
    shutil.make_archive(str(tmp_path / "served" / "HEAD"), "zip", published)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def log_message(self, *told):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(update_course.Failure, match="cannot be fetched: HTTP Error 404"):
            update_course.update(f"{address}/none.zip", DAY)
        update_course.update(f"{address}/HEAD.zip", DAY)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    check(mine, theirs, published)
