"""The import graph is the syllabus: a lesson's module needs only modules of earlier lessons."""

import ast
import re
from pathlib import Path

import pytest

import minipali.config
from minipali.checks.lessons import STEMS

FOLDER = Path(minipali.config.__file__).parent
LESSONS = [*STEMS, "masks", "lora", "quantization", "gemma2"]  # masks: lesson 15 too
BESIDE = {
    "config", "scenes", "evaluation", "figures", "progress", "swap", "checks", "cli", "hub",
    "tokenizer_files", "synthetic", "narrow", "cpu", "checkpoints", "recipe", "small_tasks",
}  # fmt: skip
PRESENT = {path.stem for path in FOLDER.glob("*.py")} | {
    path.parent.name for path in FOLDER.glob("*/__init__.py")
}


def imported_by(stem: str) -> set[str]:
    """The modules of minipali that a module names in any import, also one inside a function."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{stem}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "minipali" if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "minipali":
                found.add(rest.partition(".")[0] or "minipali itself")
    return found


@pytest.mark.parametrize("stem", [stem for stem in LESSONS if stem in PRESENT])
def test_a_lesson_imports_only_what_came_before(stem):
    allowed = set(LESSONS[: LESSONS.index(stem)])
    allowed |= {"config", "cpu"} if LESSONS.index(stem) < LESSONS.index("training") else BESIDE
    assert imported_by(stem) <= allowed


def test_config_imports_nothing_of_ours():
    assert imported_by("config") == set()


def test_the_first_thirteen_lessons_have_their_module():
    assert set(LESSONS[:13]) <= PRESENT


def test_every_module_has_its_place():
    strays = {stem for stem in PRESENT if not stem.startswith("_")} - set(LESSONS) - BESIDE
    assert strays == set(), "put each new module into LESSONS or BESIDE"


def test_the_reader_of_imports_sees_all_their_forms(tmp_path, monkeypatch):
    (tmp_path / "example.py").write_text(
        "import minipali\nimport minipali.rope as r\nfrom minipali import norms\n"
        "from . import gqa\nfrom .gemma import GeGLU\n"
        "def late():\n    from minipali.checks.rope import CASES\n    import torch\n"
    )
    monkeypatch.setattr("test_imports.FOLDER", tmp_path)
    assert imported_by("example") == {"minipali itself", "rope", "norms", "gqa", "gemma", "checks"}


def test_the_map_for_contributors_names_every_module_beside_the_lessons():
    text = (FOLDER.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {
        name.rstrip("/").removesuffix(".py") for name in re.findall(r"`([a-z_]+(?:\.py|/))`", text)
    }
    assert PRESENT - set(STEMS) - {"__init__", "__main__"} <= named
