"""The import graph is the syllabus: a lesson's module needs only modules of earlier lessons."""

import ast
import re
from pathlib import Path

import pytest

import minipali.config
from minipali.checks.lessons import STEMS

FOLDER = Path(minipali.config.__file__).parent
LESSONS = list(STEMS)


def source_of(module: str) -> Path | None:
    """The file of a module, by its name without "minipali." in front; None if there is none."""
    path = FOLDER / module.replace(".", "/")
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def imported_by(module: str) -> set[str]:
    """The modules of minipali that a module names in any import, also one inside a function."""
    file = source_of(module)
    package = ["minipali", *module.split(".")]
    if file.name != "__init__.py":
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first != "minipali":
                continue
            # The last part may be a function in the module rather than a module.
            parts = rest.split(".")
            while parts and not source_of(".".join(parts)):
                parts.pop()
            found.add(".".join(parts) or "minipali itself")
    return found


def needed_by(module: str) -> set[str]:
    """All modules of minipali that an import of this one may bring, followed to the end."""
    reached, waiting = set(), [module]
    while waiting:
        for found in imported_by(waiting.pop()) - reached - {"minipali itself"}:
            reached.add(found)
            waiting.append(found)
    return reached


PRESENT = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")} | {
    path.parent.name for path in FOLDER.glob("*/__init__.py")
}


@pytest.mark.parametrize("stem", [stem for stem in LESSONS if stem in PRESENT])
def test_a_lesson_needs_only_what_came_before(stem):
    later = set(LESSONS[LESSONS.index(stem) :])
    assert needed_by(stem) & later == set()


@pytest.mark.parametrize("stem", [stem for stem in LESSONS[:13] if stem in PRESENT])
def test_the_model_needs_nothing_beside_the_lessons_but_its_sizes(stem):
    assert needed_by(stem) - set(LESSONS) <= {"config"}


@pytest.mark.parametrize("module", ["scenes", "locations", "masks"])
def test_data_and_text_about_places_need_no_model(module):
    assert needed_by(module) & {"paligemma", "gemma", "vision", "generation"} == set()


def test_no_module_needs_itself():
    assert [stem for stem in sorted(PRESENT) if stem in needed_by(stem)] == []


def test_config_imports_nothing_of_ours():
    assert imported_by("config") == set()


def test_every_lesson_up_to_the_masks_has_its_module():
    assert set(LESSONS) <= PRESENT


def test_the_reader_of_imports_sees_all_their_forms(tmp_path, monkeypatch):
    (tmp_path / "checks").mkdir()
    for name in ("rope", "norms", "gqa", "gemma", "checks/__init__", "checks/rope"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "example.py").write_text(
        "import minipali\nimport minipali.rope as r\nfrom minipali import norms\n"
        "from . import gqa\nfrom .gemma import GeGLU\n"
        "def late():\n    from minipali.checks.rope import CASES\n    import torch\n"
    )
    (tmp_path / "rope.py").write_text("from minipali import norms\nimport minipali.config\n")
    (tmp_path / "config.py").write_text("from .checks import rope\n")
    monkeypatch.setattr("test_imports.FOLDER", tmp_path)
    assert imported_by("example") == {
        "minipali itself", "rope", "norms", "gqa", "gemma", "checks.rope"
    }  # fmt: skip
    assert needed_by("rope") == {"norms", "config", "checks.rope"}


def test_the_map_for_contributors_names_every_module_beside_the_lessons():
    text = (FOLDER.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {
        name.rstrip("/").removesuffix(".py") for name in re.findall(r"`([a-z_]+(?:\.py|/))`", text)
    }
    assert PRESENT - set(STEMS) <= named
