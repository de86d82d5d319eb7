"""A lesson as slides: one HTML file, which opens from disk and needs no network.

    python course.py slides 03 07    -> build/slides/03_attention.html, build/slides/07_rope.html
    python course.py slides          all lessons

The slides are the lesson's own cells with their stored outputs. A heading begins a slide, long
prose goes on to the next one, a cell of code has its own, and the answer to a question stands on
the slide after the question. Beside each file lies the same as a notebook whose cells carry
`slideshow` metadata, for whoever presents with other tools (`jupyter nbconvert --to slides`, which
loads reveal.js from the network).
"""

import importlib.util
import re
import sys
from pathlib import Path

import nbformat
from build_notebooks import chosen_lessons
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
WORDS = 90  # of prose on one slide, at most, unless a single paragraph has more
FEW = 45  # words that share a slide with the cell of code behind them

_DETAILS = re.compile(r"(<details>.*?</details>)", re.DOTALL)
_QUESTION = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
# `code` comes first in each pattern, so that what stands in it is left as it is.
_LINK = re.compile(r"(`[^`]*`)|\[([^\]]+)\]\((?!https?:)[^)]+\)")
_MATH = re.compile(r"(```.*?```|`[^`]*`|<code>.*?</code>)|\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)


def paragraphs(text: str) -> list[str]:
    """The blocks of a Markdown text: what blank lines separate, with code in fences kept whole."""
    made, fenced = [""], False
    for line in text.splitlines():
        if line.strip() or fenced:
            made[-1] += line + "\n"
        elif made[-1]:
            made.append("")
        fenced ^= line.lstrip().startswith("```")
    return [block.rstrip() for block in made if block.strip()]


def words(*blocks: str) -> int:
    return sum(len(re.findall(r"\w+", block)) for block in blocks)


def prose_slides(text: str) -> list[tuple[str, str]]:
    """A cell of prose -> [(kind, text)]: "slide" at a heading, "subslide", or "-" to go on."""
    made: list[tuple[str, str]] = []

    def put(kind: str, block: str) -> None:
        headed = made and re.fullmatch("#.*", made[-1][1])  # no heading stands alone on a slide
        if made and (headed or kind == "-"):
            made[-1] = (made[-1][0], f"{made[-1][1]}\n\n{block}")
        else:
            made.append((kind, block))

    for piece in _DETAILS.split(text):
        if asked := _QUESTION.fullmatch(piece):
            question, answer = " ".join(asked[1].split()), asked[2].strip()
            put("subslide", f"**Question.** {question}")
            put("subslide", f"*{question}*\n\n**Answer.** {answer}")
            continue
        for number, block in enumerate(paragraphs(piece)):
            before = made[-1][1].split("\n\n") if made else []
            if block == "**Self-test**":  # its questions say so themselves
                continue
            if re.match("##? ", block):
                put("slide", block)
            elif block.startswith("###") or (number == 0 and made):  # behind an answer
                put("subslide", block)
            elif words(*before, block) <= WORDS or (before and block.startswith("$$")):
                put("-", block)
            elif len(before) > 1 and before[-1].endswith(":"):  # it announces what comes now
                made[-1] = (made[-1][0], "\n\n".join(before[:-1]))
                put("subslide", f"{before[-1]}\n\n{block}")
            else:
                put("subslide" if before and words(block) > FEW / 2 else "-", block)
    return made


def shows_nothing(source: str) -> bool:
    """Whether a cell only imports, or only waits for the reader's guesses."""
    lines = [line for line in source.splitlines() if line.strip()]
    return all(re.match(r"import |from \S+ import |guess_.* = \.\.\.", line) for line in lines)


def as_slides(lesson: NotebookNode) -> NotebookNode:
    """The lesson's cells, cut and marked with `slideshow` metadata; outputs as they are."""
    made: list[NotebookNode] = []

    def put(kind: str, cell: NotebookNode) -> None:
        cell.id = f"slide-{len(made)}"
        cell.metadata = NotebookNode(slideshow={"slide_type": kind})
        made.append(cell)

    leads = short = False  # a few words that lead to the next cell of code; a short cell of code
    for cell in lesson.cells:
        if cell.cell_type == "code":
            if not shows_nothing(cell.source):
                put("-" if leads else "subslide", nbformat.from_dict(cell))
                leads, short = False, len(cell.source.splitlines()) <= 10
            continue
        for kind, text in prose_slides(cell.source):
            text, few = _LINK.sub(lambda found: found[1] or found[2], text), words(text) <= FEW
            joins = kind == "-" and few and short and not text.endswith(":")
            put(kind if joins or kind != "-" else "subslide", nbformat.v4.new_markdown_cell(text))
            leads, short = few and not joins, False
    return nbformat.v4.new_notebook(cells=made, metadata={"title": title(lesson)})


def title(lesson: NotebookNode) -> str:
    return lesson.cells[0].source.splitlines()[0].removeprefix("# ")


def with_mathml(text: str) -> str:
    """Formulas between dollar signs as MathML, which browsers draw without any script."""
    from latex2mathml.converter import convert

    def drawn(found: re.Match) -> str:
        code, block, inline = found.groups()
        if code:
            return code
        formula = " ".join((block or inline).split()).replace(r"\arg", r"\mathrm{arg}")
        return convert(formula, display="block" if block else "inline")

    return _MATH.sub(drawn, text)


def page(slides: NotebookNode) -> str:
    """One HTML file with everything in it.

    Raises ModuleNotFoundError without latex2mathml, if there are formulas.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="slide_template",
        extra_template_basedirs=[str(ROOT / "tools")],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    drawn = nbformat.from_dict(slides)
    for cell in drawn.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    text, _ = exporter.from_notebook_node(drawn)
    return text


def main() -> int:
    lessons = chosen_lessons(
        "Make slides of lessons, in build/slides.", list((ROOT / "notebooks").glob("*.ipynb"))
    )
    folder = ROOT / "build" / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("latex2mathml") is None:
        print('Formulas need latex2mathml: python -m pip install -e ".[slides]"')
        return 1
    for path in lessons:
        slides = as_slides(nbformat.read(path, as_version=4))
        text, made = page(slides), folder / f"{path.stem}.html"
        made.write_text(text, encoding="utf-8", newline="\n")
        nbformat.write(slides, folder / path.name)
        print(f"made {made.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
