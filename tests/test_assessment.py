"""The assessment set: the numbers of its 38 answers are computed, and its points add up."""

import math
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali import load
from minipali.config import preset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_notebooks  # noqa: E402

FOLDER = ROOT / "assessment"
if not FOLDER.exists():
    pytest.skip("a student's copy: the assessment set is left out", allow_module_level=True)
HEAD = re.compile(
    r"\*Lesson (?P<lesson>\d\d) · (?P<kind>[a-z ]+)"
    r" · (?P<minutes>\d+) minutes · (?P<points>\d) points"
)


def parts(name: str) -> dict[str, str]:
    """Title -> text."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])


QUESTIONS, ANSWERS = parts("questions.md"), parts("answers.md")
HEADS = {title: HEAD.search(text).groupdict() for title, text in QUESTIONS.items()}


def close(found, wanted) -> bool:
    """Equal to the digits that an answer gives."""
    found, wanted = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= 6e-4)


GIVEN = {  # names that the code of an answer may use without importing them
    "math": math, "Counter": Counter, "pairwise": pairwise, "torch": torch, "F": F,
    "rearrange": rearrange, "load": load, "preset": preset, "close": close,
}  # fmt: skip


@pytest.mark.parametrize("title", ANSWERS, ids=lambda title: title.split(".")[0])
def test_the_numbers_of_an_answer_are_computed(title):
    blocks = re.findall(r"```python\n(.*?)```", ANSWERS[title], re.DOTALL)
    assert blocks and all("assert" in block for block in blocks)
    for block in blocks:
        exec(compile(block, title, "exec"), dict(GIVEN))


def test_every_question_has_an_answer_whose_points_add_up():
    assert list(QUESTIONS) == list(ANSWERS) and len(QUESTIONS) == 38
    for title, head in HEADS.items():
        points = re.findall(r"^- (\d) points?(.*)", ANSWERS[title], re.MULTILINE)
        # "1 point for each of (a), (b), (c)" is as many points as it has letters.
        given = sum(int(n) * max(1, len(re.findall(r"\(\w\)", told))) for n, told in points)
        assert given == int(head["points"]), title


def test_the_set_covers_every_lesson_and_kind_and_tells_its_sums():
    lessons = {path.name[:2] for path in (ROOT / "notebooks" / "src").glob("*.py")}
    assert {head["lesson"] for head in HEADS.values()} == lessons
    kinds = Counter(head["kind"] for head in HEADS.values())
    assert {"trace", "find the bug", "predict a number", "explain", "design"} == set(kinds)
    points, minutes = (sum(int(h[name]) for h in HEADS.values()) for name in ("points", "minutes"))
    told = (FOLDER / "questions.md").read_text(encoding="utf-8")
    assert f"{points} points in {minutes} minutes" in " ".join(told.split())


def test_no_question_is_asked_in_a_lesson_and_no_answer_stands_beside_a_question():
    def words(text: str) -> str:
        return " ".join(re.findall(r"\w+", re.sub(r"<.*?>", "", text).lower()))

    asked = []
    for source in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        for cell in build_notebooks.notebook(source, "x").cells:
            asked += re.findall(r"<summary>(.*?)</summary>", cell.source, re.DOTALL)
    assert len(asked) > 80
    for title, text in QUESTIONS.items():
        assert "```python" not in text and "- 1 point" not in text
        for sentence in re.split(r"[.?:]\s", text):
            if len(sentence.split()) > 7:
                assert not [one for one in asked if words(sentence) in words(one)], title
