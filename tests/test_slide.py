"""Sliders: static figures wherever nobody can move them, and figures that follow where one can."""

import json
from pathlib import Path

import pytest

from minipali import figures

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def drawn():
    """What was drawn, by a figure of two numbers."""
    calls = []

    def draw(theta=100, top_p=0.5):
        calls.append((theta, top_p))

    return calls, draw


CHOICES = {"theta": [10, 100, 1000], "top_p": [0.5, 1.0]}


@pytest.mark.parametrize("session", [None, "lesson.ipynb"])
def test_a_figure_without_sliders(drawn, monkeypatch, session):
    """In a build or a test, and where ipywidgets is not installed."""
    calls, draw = drawn
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if session:
        monkeypatch.setenv("JPY_SESSION_NAME", session)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    figures.slide(draw, **CHOICES)
    assert calls == [(100, 0.5)]


def test_sliders_draw_anew(drawn, monkeypatch):
    widgets = pytest.importorskip("ipywidgets", reason="ipywidgets is not installed here")
    calls, draw = drawn
    monkeypatch.setenv("JPY_SESSION_NAME", "lesson.ipynb")
    made = []
    interact = widgets.interact
    monkeypatch.setattr(
        widgets, "interact", lambda *a, **sliders: made.append(sliders) or interact(*a, **sliders)
    )
    figures.slide(draw, **CHOICES)
    assert calls == [(100, 0.5)]
    [sliders] = made
    sliders["theta"].value = 1000
    sliders["top_p"].index = 1
    assert calls[1:] == [(1000, 0.5), (1000, 1.0)]


def test_stored_lessons_hold_no_sliders():
    """A stored slider is dead, and shows an error in place of the figure."""
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                assert not any("widget" in kind for kind in output.get("data", {})), path.name
