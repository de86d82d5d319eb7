"""Lessons as slides: what stands on which slide, and a page that asks the network for nothing."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest
from browsing import browser, wait_for  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import slides  # noqa: E402

LESSON = """\
# 03 · Title

An opening.

## Do you remember?

<details><summary>How many?</summary>

Three, $\\sqrt{9}$.
</details>

<details><summary>Why `$x$`?</summary>

Because.
</details>

## Long

{long}

Three rules:

- one [rule](../exercises/03.ipynb)
- another
"""


def lesson() -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("print(1)", metadata={"tags": ["hide-input"]})
    cell.outputs = [nbformat.v4.new_output("stream", text="1\n")]
    prose = [LESSON.replace("{long}", "word " * 85), "## Next\n\nTry:", "It is one."]
    first, second, third = map(nbformat.v4.new_markdown_cell, prose)
    waits = nbformat.v4.new_code_cell("import torch\nguess_a, guess_b = ..., ...")
    return nbformat.v4.new_notebook(cells=[first, waits, second, cell, third])


def on_slides(made: nbformat.NotebookNode) -> list[str]:
    told: list[str] = []
    for cell in made.cells:
        if cell.metadata["slideshow"]["slide_type"] == "-":
            told[-1] += f" | {cell.source}"
        else:
            told.append(cell.source)
    return told


def test_a_heading_begins_a_slide_and_an_answer_stands_behind_its_question():
    told = on_slides(slides.as_slides(lesson()))
    assert told[0] == "# 03 · Title\n\nAn opening."
    assert told[1] == "## Do you remember?\n\n**Question.** How many?"
    assert told[2] == "*How many?*\n\n**Answer.** Three, $\\sqrt{9}$."
    assert told[3] == "**Question.** Why `$x$`?"
    assert told[4].endswith("Because.")
    # What announces a list goes with it; a link that leads nowhere from here is its text.
    assert told[5].startswith("## Long\n\nword word") and "Three rules" not in told[5]
    assert told[6] == "Three rules:\n\n- one rule\n- another"
    # The cell that only waits for guesses is left out; few words share a slide with the code.
    assert told[7:] == ["## Next\n\nTry: | print(1) | It is one."]


def test_no_slide_of_the_course_holds_a_question_and_its_answer_or_a_heading_alone():
    count = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        given = nbformat.read(path, as_version=4)
        made = slides.as_slides(given)
        nbformat.validate(made)
        told = on_slides(made)
        assert not [text for text in told if "<details>" in text or "</summary>" in text], path.name
        asked = [text for text in told if "**Question.**" in text]
        assert not [text for text in asked if "**Answer.**" in text], path.name
        assert len(asked) == sum(cell.source.count("<details>") for cell in given.cells), path.name
        assert not [text for text in told if text.startswith("#") and "\n" not in text], path.name
        figures = [
            sum("image/png" in output.get("data", {}) for cell in one.cells if "outputs" in cell
                for output in cell.outputs)
            for one in (given, made)
        ]  # fmt: skip
        assert figures[0] == figures[1] > 0
        count += len(asked)
    assert count > 80


def test_formulas_become_mathml_and_code_stays():
    pytest.importorskip("latex2mathml")
    made = slides.with_mathml("`a$b$` <code>$c$</code> $\\sqrt{k}$\n\n$$x_i = \\frac12$$")
    assert made.startswith("`a$b$` <code>$c$</code> <math")
    assert made.count("<math") == 2 and "<msqrt>" in made and "<mfrac>" in made
    for path in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        text = path.read_text(encoding="utf-8").replace("\n# ", "\n")
        assert not set(slides.with_mathml(text).split("<mi>\\")[1:]), path.stem


def test_the_page_shows_one_slide_at_a_time_without_a_network(browser, tmp_path):  # noqa: F811
    pytest.importorskip("latex2mathml")
    page = tmp_path / "lesson.html"
    page.write_text(slides.page(slides.as_slides(lesson())), encoding="utf-8")
    browser.call("Page.navigate", url=page.as_uri())
    wait_for(lambda: browser.run("!!document.querySelector('section.now')"), seconds=30)
    shown = "[...document.querySelectorAll('section')].filter(s => s.offsetParent).length"
    assert browser.run(shown) == 1
    press = "dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}))"
    told = "document.querySelector('section.now').innerText"
    for key in ("PageDown", "ArrowRight"):
        browser.run(press % key)
    assert "Answer. Three" in browser.run(told) and browser.run("location.hash") == "#3"
    browser.run(press % "ArrowLeft")
    assert "How many?" in browser.run(told) and "Three" not in browser.run(told)
    browser.run(press % "End")
    assert browser.run(shown) == 1 and "print(1)" in browser.run(told)
    printed = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert pages == browser.run("document.querySelectorAll('section').length")
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
