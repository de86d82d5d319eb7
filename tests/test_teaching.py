"""The teachers' page: its plans fill their hours, and name sections and parts that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
SECTIONS = dict(part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
HOURS = {"One hour": 1, "Two hours": 2, "Six hours": 6, "Twelve hours": 12}


def headings(folder: str, number: str) -> list[str]:
    """The titles of a lesson's or an exercise's sections."""
    [source] = (ROOT / folder / "src").glob(f"{number}_*.py")
    return re.findall(r"^# ##+ (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][2:]


def is_there(title: str, number: str) -> bool:
    return any(h == title or h.startswith(f"{title}:") for h in headings("notebooks", number))


@pytest.mark.parametrize("hours", HOURS)
def test_a_plan_fills_its_hours_and_names_what_is_there(hours):
    [section] = [text for title, text in SECTIONS.items() if title.startswith(hours)]
    table = rows(section)
    minutes = [row[0] for row in table if row[0]]
    assert sum(map(int, minutes)) == 60 * HOURS[hours]
    for _, _, where, *_ in table:
        number = where[:2]
        if number.isdigit():
            for title in re.findall(r"\*(.+?)\*", where):
                assert is_there(title, number), f"{number}: {title}"
        elif asked := re.match(r"exercise (\d\d), parts? ([\d, and]+)$", where):
            parts = {title.split(".")[0] for title in headings("exercises", asked[1])}
            assert set(re.findall(r"\d", asked[2])) <= parts, where


def test_a_misconception_points_to_a_section_of_its_lesson():
    [section] = [text for title, text in SECTIONS.items() if title.startswith("What they will")]
    table = rows(section)
    assert {row[0] for row in table} == {
        path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    named = [(row[0], title) for row in table for title in re.findall(r"\*(.+?)\*[.?]", row[2])]
    named = [(number, title.rstrip(".?")) for number, title in named if title[0].isupper()]
    assert len(named) > 20
    assert [pair for pair in named if not is_there(pair[1].rstrip("?"), pair[0])
            and not is_there(pair[1] + "?", pair[0])] == []  # fmt: skip
