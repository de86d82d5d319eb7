"""The figures of the lessons in print quality, with their captions and licences.

    python tools/print_figures.py 01 03     -> build/figures/01_patches-1.png, ... and captions.md
    python tools/print_figures.py           of all lessons: as long as a build

A lesson is run from its source, as by the build, with 300 dots per inch in place of 80. So a figure
shows what the code draws now. The notebooks stay as they are.
"""

import base64
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_notebooks

DPI = 300
SHARP = f"from minipali.figures import common\ncommon.DPI = {DPI}"
LICENCE = """\
Figures: the minipali authors, CC BY 4.0 (<https://creativecommons.org/licenses/by/4.0/>). Drawings
of objects in them are by the artists named in NOTICE.md (a copy lies beside this file) and keep
their licences: print the line of each artist whose drawing can be seen, or the whole list. The
portrait in lesson 06 is in the public domain. Say so if you change a figure.
"""


def figures(source: Path) -> list[tuple[str, str, bytes]]:
    """Run a lesson; (heading, alt text, PNG) of each of its figures.

    Raises CellExecutionError if a cell fails.
    """
    made = build_notebooks.notebook(source, f"print-{source.stem}")
    made.cells.insert(0, nbformat.v4.new_code_cell(SHARP))
    build_notebooks.execute(made, source.parents[1])  # where the lesson's notebook lies
    found, heading = [], ""
    for cell in made.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^##? (.+)", cell.source, re.MULTILINE) or [heading])[-1]
            continue
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.metadata["image/png"]["alt"]
                found.append((heading, alt, base64.b64decode(output.data["image/png"])))
    return found


def main() -> int:
    root = build_notebooks.ROOT
    sources = build_notebooks.chosen_lessons(
        "Write the lessons' figures into build/figures.",
        list((root / "notebooks" / "src").glob("*.py")),
    )
    folder = root / "build" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "NOTICE.md", folder)
    captions = {}
    for source in sources:
        try:
            drawn = figures(source)
        except CellExecutionError as error:
            print(f"{source.stem} does not run, so it has no figures here. {error}")
            return 1
        lines = [f"## {source.stem}"]
        for number, (heading, alt, png) in enumerate(drawn, start=1):
            name = f"{source.stem}-{number}.png"
            (folder / name).write_bytes(png)
            lines.append(f"**{name}** ({heading}). {alt}")
        captions[source.stem] = "\n\n".join(lines)
        print(f"{source.stem}: {len(drawn)} figures in {folder.relative_to(root)}")
    # Captions of lessons that an earlier call printed stay.
    page = folder / "captions.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    kept = {part.split("\n")[0]: f"## {part.rstrip()}" for part in old.split("\n## ")[1:]}
    parts = [LICENCE.rstrip(), *(text for _, text in sorted((kept | captions).items()))]
    build_notebooks.write_text("\n\n".join(parts) + "\n", page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
