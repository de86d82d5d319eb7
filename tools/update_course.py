"""Bring what is new into this copy of the course, and keep what its owner has written.

    python course.py update              a git clone: from where it was cloned
    python course.py update VERSION      any copy: from a ZIP file, a folder or a ZIP's address

A file is "yours" if it is not as the course last brought it. In a git clone git knows that. In a
copy without git, build's mark tells it of notebooks; other files that differ count as yours.

    not changed by the course                   stays, yours or not
    not yours                                   is renewed, or removed
    a notebook of yours                         stays
    another file of yours                       is renewed or removed, as the rest needs it

Where both have changed a file, a copy of yours is first put into mine/DATE/. What a notebook shows
is not work, as it can be run again: its cells are. Each file is replaced whole or not at all, and
git's own record moves last: after a kill the same command goes on.
Needs nothing but Python, and git in a clone.
"""

import datetime
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("course.py", "pyproject.toml", "minipali/__init__.py")  # in every copy of the course
# Folders that are the course's alone, where a copy without git is rid of what the new one lacks.
OURS = ("minipali/", "tests/", "tools/", "benchmarks/", "notebooks/src/", "exercises/src/")
LEFT_OUT = {".git", ".venv", "mine", "build", "runs", "minipali.egg-info"}
LEFT_OUT |= {"__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache"}
LEFT_OUT |= {"__MACOSX", ".DS_Store"}  # what macOS adds to a ZIP
SOURCE = "give the new version: python course.py update FILE.zip (or a folder, or an address)"


class Failure(Exception):
    """Why there is no update, in one sentence."""


# --- git -----------------------------------------------------------------------------------------


def git(*arguments, folder=None, binary=False, **variables):
    """What git says; raises Failure with the last line of its complaint."""
    command = ["git", "-C", str(folder or ROOT), *arguments]
    environment = {**os.environ, **variables, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(command, capture_output=True, env=environment)
    if done.returncode:
        complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Failure(f"git {arguments[0]} failed: {(complaint or ['it does not say why'])[-1]}")
    return done.stdout if binary else done.stdout.decode("utf-8", "surrogateescape").strip()


def answer(*arguments):
    """What git says; "" if it says no."""
    try:
        return git(*arguments)
    except Failure:
        return ""


def tree(commit):
    """{name: (mode, blob)} of a commit; nothing without a commit."""
    listed = git("ls-tree", "-r", "-z", commit) if commit else ""
    found = {}
    for line in filter(None, listed.split("\0")):
        about, name = line.split("\t", 1)
        mode, _, blob = about.split()
        found[name] = (mode, blob)
    return found


def blob(content, like):
    """git's name for a content; like: a name of that kind, SHA-1 or SHA-256."""
    digest = hashlib.new("sha256" if len(like) == 64 else "sha1", b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


def fetched():
    """The commit that is new where this clone comes from."""
    folder = Path(git("rev-parse", "--absolute-git-dir"))
    for name in ("MERGE_HEAD", "rebase-merge", "rebase-apply", "CHERRY_PICK_HEAD", "REVERT_HEAD"):
        if (folder / name).exists():
            raise Failure(
                f"git is in the middle of something ({name}), which must come to its end first:"
                " finish it, or undo it with git merge --abort or git rebase --abort"
            )
    branch = answer("symbolic-ref", "--short", "-q", "HEAD")
    remotes = git("remote").split()
    remote = answer("config", f"branch.{branch}.remote") if branch else ""
    if remote not in remotes:
        remote = "origin" if "origin" in remotes else (remotes or [""])[0]
    if not remote:
        raise Failure(f"this git repository names no other that it comes from; {SOURCE}")
    git("fetch", "--quiet", remote)
    places = ["HEAD", "main", "master"]
    for place in ["@{upstream}", *(f"refs/remotes/{remote}/{name}" for name in places)]:
        if commit := answer("rev-parse", "--verify", "-q", f"{place}^{{commit}}"):
            return commit
    raise Failure(f"{remote} must have a branch main to update from, and has none; {SOURCE}")


def joined(new, base):
    """The commit to stand on: the new one, or one that joins it with the owner's own commits."""
    if base == git("rev-parse", "HEAD"):
        return new
    before, head, after = tree(base), tree("HEAD"), tree(new)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        git("read-tree", new, **index)
        for name, (mode, theirs) in head.items():
            path = ROOT / name
            kept = before.get(name) != (mode, theirs) and path.is_file()
            if kept and (name not in after or blob(path.read_bytes(), theirs) == theirs):
                git("update-index", "--add", "--cacheinfo", f"{mode},{theirs},{name}", **index)
        made = git("write-tree", **index)
    who = {}
    if not answer("config", "user.email"):
        names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
        who = dict.fromkeys(names, "course.py")
    told = "What is new in the course, joined with my own commits"
    return git("commit-tree", made, "-p", "HEAD", "-p", new, "-m", told, **who)


# --- the new version -----------------------------------------------------------------------------


def in_zip(content, source):
    """({name: content}, names of programs) of a ZIP, without the folder that it all lies in."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [
                entry
                for entry in archive.infolist()
                if not entry.is_dir() and not LEFT_OUT.intersection(entry.filename.split("/"))
            ]
            programs = {e.filename for e in entries if e.external_attr >> 16 & 0o100}
            new = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise Failure(f"{source} must be a whole ZIP file: {error}") from error
    top = os.path.commonprefix([f"{name.rpartition('/')[0]}/" for name in new])
    if "course.py" not in new and f"{top}course.py" in new:
        new = {name[len(top) :]: content for name, content in new.items()}
        programs = {name[len(top) :] for name in programs}
    odd = [name for name in new if ".." in name.split("/") or name[:1] in "/\\" or ":" in name]
    if odd:
        raise Failure(f"{source} must stay in its folder, and names {odd[0]}")
    return new, programs


def in_folder(folder):
    """As in_zip, of a folder: what git has of it, if git knows it."""
    if (folder / ".git").exists() and shutil.which("git"):
        return in_zip(git("archive", "--format=zip", "HEAD", folder=folder, binary=True), folder)
    new, programs = {}, set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not LEFT_OUT.intersection(name.parts):
            new[name.as_posix()] = path.read_bytes()
            if os.name == "posix" and path.stat().st_mode & 0o100:
                programs.add(name.as_posix())
    return new, programs


def version(source):
    """What a ZIP file, a folder or an address holds."""
    if source.startswith(("https://", "http://")):
        try:
            with urllib.request.urlopen(source, timeout=60) as reply:
                new, programs = in_zip(reply.read(), source)
        except (urllib.error.URLError, OSError) as error:
            raise Failure(f"{source} cannot be fetched: {error}") from error
    elif Path(source).is_dir():
        new, programs = in_folder(Path(source).resolve())
    elif Path(source).is_file():
        new, programs = in_zip(Path(source).read_bytes(), source)
    else:
        raise Failure(f"{source} must be a ZIP file, a folder or an address, and is not there")
    for name in NEEDED:
        if name not in new:
            raise Failure(f"{source} must be a copy of the course, and has no {name}")
    return new, programs


def published():
    """The address of a ZIP of the published course, as GitHub names it."""
    if not (ROOT / "solutions").is_dir():
        raise Failure(f"this is a student's copy, which comes from a teacher; {SOURCE}")
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    found = re.search(r'^ADDRESS = "(.+?)(/blob/.*)?"', text, re.MULTILINE)
    if not found:
        raise Failure(f"this copy does not know where it comes from; {SOURCE}")
    return f"{found[1]}/archive/HEAD.zip"


# --- what is whose -------------------------------------------------------------------------------


def mark(content):
    """(what build noted of a notebook's cells, whether they still are so); ("", False) if nothing.

    As `fingerprints` in tools/build_notebooks.py, which needs packages.
    """
    try:
        found = json.loads(content)
        noted = found["metadata"]["minipali"]["cells"]
        cells = []
        for cell in found["cells"]:
            cell["source"] = "".join(cell["source"])
            keys = ("id", "cell_type", "source", "metadata", "attachments")
            cells.append({key: cell[key] for key in keys if cell.get(key)})
        text = json.dumps(cells, sort_keys=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", False
    return noted, noted == hashlib.sha256(text.encode()).hexdigest()[:16]


def is_theirs(name, content, before):
    """Whether a file is its owner's work. before: as `tree`; None where there is no git."""
    if before and name in before and blob(content, before[name][1]) == before[name][1]:
        return False
    return not (name.endswith(".ipynb") and mark(content)[1])


def is_changed(name, mine, new, before):
    """Whether the course has changed a file since the owner's was brought."""
    if before is not None:
        return name not in before or blob(new, before[name][1]) != before[name][1]
    return not name.endswith(".ipynb") or mark(mine)[0] != mark(new)[0]


def is_gone(name, content, before):
    """Whether a file that the new version lacks came from the course."""
    if before is not None:
        return name in before
    if name.endswith(".ipynb"):
        return mark(content)[1]
    return name.startswith(OURS)


def plan(new, before):
    """{name: what is done} for all that is not as in the new version.

    stay: yours, and the course has not changed it; left: yours, and no longer part of the course;
    keep: yours, with a copy put aside; replace and retire: renewed and removed, with a copy of
    yours put aside; renew; remove.
    """
    todo = {}
    for name, content in sorted(new.items()):
        path = ROOT / name
        mine = path.read_bytes() if os.path.lexists(path) else None
        if mine == content:
            continue
        theirs = mine is not None and is_theirs(name, mine, before)
        if mine is not None and not is_changed(name, mine, content, before):
            if theirs:
                todo[name] = "stay"
        elif not theirs:
            todo[name] = "renew"
        else:
            todo[name] = "keep" if name.endswith(".ipynb") else "replace"
    for name in here() if before is None else before:
        path = ROOT / name
        if name in new or not path.is_file() or not is_gone(name, path.read_bytes(), before):
            continue
        theirs = is_theirs(name, path.read_bytes(), before)
        todo[name] = "remove" if not theirs else "left" if name.endswith(".ipynb") else "retire"
    return todo


def here():
    """The names of all files of this copy, but for what is made and what was put aside."""
    for folder, inner, files in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in LEFT_OUT]
        for name in files:
            if not name.endswith(".part"):
                yield Path(folder, name).relative_to(ROOT).as_posix()


# --- files ---------------------------------------------------------------------------------------


def write(path, content, program=False):
    """Put a file in place, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        shutil.copymode(path, part)
    if program:
        part.chmod(part.stat().st_mode | 0o111)
    os.replace(part, path)


def put_aside(name, day):
    """Copy a file into mine/DATE/; returns the copy's name. What lies there is never replaced."""
    content, number = (ROOT / name).read_bytes(), 1
    while True:
        path = ROOT / "mine" / (day if number == 1 else f"{day}-{number}") / name
        if not path.exists():
            write(path, content)
        if path.read_bytes() == content:
            return path.relative_to(ROOT).as_posix()
        number += 1


def carry_out(todo, new, programs, day):
    """Do what is planned; returns {name: where its copy lies}."""
    asides = {n: put_aside(n, day) for n, do in todo.items() if do in ("keep", "replace", "retire")}
    for name, do in todo.items():
        if do in ("renew", "replace"):
            write(ROOT / name, new[name], name in programs)
    for name, do in todo.items():
        if do in ("remove", "retire"):
            (ROOT / name).unlink()
    return asides


def report(todo, asides):
    """What was done, a line for each file in which somebody's work is."""
    done = list(todo.values())
    renewed = sum(do in ("renew", "replace") for do in done)
    removed = sum(do in ("remove", "retire") for do in done)
    print(f"{renewed} files are new or renewed, {removed} are gone.")
    for name in [name for name, do in todo.items() if do == "left"]:
        print(f"{name}: is no longer part of the course; yours stays.")
    for name in [name for name in asides if todo[name] == "keep"]:
        print(
            f"{name}: yours stays, and a copy lies in {asides[name]}. There is a new one: to have"
            f" it, delete yours and run python course.py build {Path(name).name[:2]}"
        )
    moved = [name for name in asides if todo[name] != "keep"]
    for name in moved[:5]:
        print(f"{name}: is renewed or gone; what was here lies in {asides[name]}")
    if len(moved) > 5:
        print(f"... and {len(moved) - 5} more files, in the same way.")
    if stay := done.count("stay"):
        print(f"Yours, and left as they are: {stay} more.")


def update(source, day):
    in_git = (ROOT / ".git").exists()
    if in_git and not shutil.which("git"):
        if source is None:
            raise Failure(f"this is a git clone, and there is no git here: install it, or {SOURCE}")
        in_git = False
    if source is None and not in_git:
        source = published()
    commit = base = None
    if source is None:
        commit = fetched()
        base = answer("merge-base", "HEAD", commit)
        if base == commit:
            print("Nothing is new.")
            return
        archive = git("archive", "--format=zip", commit, binary=True)
        new, programs = in_zip(archive, "what git fetched")
    else:
        new, programs = version(source)
    before = tree(base if commit else "HEAD") if in_git else None
    todo = plan(new, before)
    asides = carry_out(todo, new, programs, day)
    if commit:
        target = joined(commit, base)
        git("reset", "--mixed", "--quiet", target)
        if target != commit:
            print("Your own commits stay, joined with what is new by one more.")
    if todo:
        report(todo, asides)
    else:
        print("Nothing is new.")


def main(arguments):
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__)
        return 0 if arguments in (["--help"], ["-h"]) else 2
    try:
        update(arguments[0] if arguments else None, datetime.date.today().isoformat())
    except Failure as failure:
        print(f"course.py: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"course.py: could not update all files: {error}. Nothing of yours is lost; the same"
            " command goes on from here.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)
