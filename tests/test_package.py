"""What goes to a package index: metadata, the page there, wheel and source archive."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

import minipali

ROOT = Path(__file__).resolve().parents[1]


def setup_py():
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_on_an_index():
    change = setup_py().for_an_index
    text = "[a](docs/a.md) ![b\nc](d.png) [e](https://example.org) `f[0](g)`"
    assert change("[a](docs/a.md), ![b\nc](d.png)", "") == "a, *b\nc*"
    want = "[a](https://x/docs/a.md) ![b\nc](https://x/d.png) [e](https://example.org)"
    assert change(text, "https://x").startswith(want)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for address in ("", "https://example.org"):
        told = change(readme, address)
        assert re.findall(r"\]\((?!https?://)", told) == []
        assert "[ViT](https://arxiv.org/abs/2010.11929)" in told


def test_version_and_authors_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == re.search(r"^## (\S+[0-9])", changes, re.MULTILINE)[1]
    assert citation["version"] == minipali.__version__
    assert citation["authors"] == project["authors"] == [{"name": "the minipali authors"}]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the project's files, the wheel's, its metadata, the archive's), built without a network."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout here: which files belong to the project is not known")
    try:  # not imported: setuptools changes what this process imports after it
        found = int(version("setuptools").split(".")[0])
    except PackageNotFoundError:
        found = 0
    if found < 77:
        pytest.skip(f"setuptools must be 77 or newer, found {found}")
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    project = {name for name in listed.decode().split("\0") if (ROOT / name).is_file()}
    for name in project:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    made = []
    # Where Python is told to leave no compiled files behind, setuptools warns of it.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    for what in ("sdist", "wheel"):
        code = f"from setuptools import build_meta as b; print('made', b.build_{what}('dist'))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=source, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert "warning" not in (done.stdout + done.stderr).lower(), done.stderr[-2000:]
        made.append(source / "dist" / done.stdout.split()[-1])
    with tarfile.open(made[0]) as archive:
        in_archive = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(made[1]) as wheel:
        in_wheel = set(wheel.namelist())
        [about] = [name for name in in_wheel if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(about))
    return project, in_wheel, metadata, in_archive


def test_the_wheel_holds_the_package_alone(built):
    project, in_wheel, metadata, _ = built
    assert {name for name in project if name.startswith("minipali/")} <= in_wheel
    assert {name.partition("/")[0].partition("-")[0] for name in in_wheel} == {"minipali"}
    for name in ("LICENSE", "NOTICE.md", "licenses/Apache-2.0.txt"):
        assert any(found.endswith(f"dist-info/licenses/{name}") for found in in_wheel)
    assert metadata["Author"] == "the minipali authors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert "# minipali" in metadata.get_payload()


def test_the_source_archive_holds_the_course(built):
    """A folder or a kind of file that is new must be named in MANIFEST.in."""
    project, _, _, in_archive = built
    assert {name for name in project if not name.startswith(".")} <= in_archive
    assert not any("__pycache__" in name or name.startswith(".") for name in in_archive)
