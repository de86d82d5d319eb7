"""docs/joining.md: the answers are those that Python gives, the messages are course.py's."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "joining.md").read_text(encoding="utf-8")
QUESTION = re.compile(r"\*\*(\d+)\.\*\*.*?```python\n(.*?)```.*?```text\n(.*?)```", re.DOTALL)
QUESTIONS = QUESTION.findall(PAGE)


def test_there_are_ten_questions():
    assert [number for number, _, _ in QUESTIONS] == [str(n) for n in range(1, 11)]
    assert PAGE.count("<details>") == PAGE.count("</details>") == 10


@pytest.mark.parametrize(("number", "code", "answer"), QUESTIONS)
def test_an_answer_is_what_python_prints(number, code, answer):
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exec(code, {})
    assert told.getvalue() == answer


def test_the_messages_and_verbs_of_the_page_are_those_of_the_course():
    course = (ROOT / "course.py").read_text(encoding="utf-8")
    text = " ".join(re.sub(r'"\s*\n\s*f?"', "", course).split())
    rows = re.findall(r"^\| `(.+?)`.* \|", PAGE.split("## If it does not work")[1], re.MULTILINE)
    ours = [row for row in rows if not row.startswith(("python is", "can't open"))]
    assert len(ours) == 5
    for row in ours:
        for part in row.split("..."):
            part = part.strip().replace("3.11", "{needed}")
            assert part in text, row
    verbs = set(re.findall(r"course\.py (\w+)", PAGE))
    assert verbs <= set(re.findall(r'^    "(\w+)": \(', course, re.MULTILINE))
