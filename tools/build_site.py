"""Make the course as a web site: build/site/index.html, which opens from disk too.

    python course.py site        the same, with everything installed that it takes

What the site shows is copied to build/site-sources, each file where it lies in the repository, so
that links between them stay right; pages about the modules and lists are added. Sphinx makes HTML
of that, with the settings and the landing page of site/; a warning is a fault. Nothing is run: the
lessons show the outputs that are stored in them.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from minipali.page import make_page
from minipali.scenes import OBJECTS

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "site"
SOURCES = ROOT / "build" / "site-sources"
DOCTREES = ROOT / "build" / "site-doctrees"

# Pages as they are. Of docs/ every page is shown, whatever there is.
PAGES = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "NOTICE.md",
    "benchmarks/README.md",
    "minipali/assets/small/README.md",
]
# The landing page's map: the number of the first lesson under each heading.
PARTS = {
    0: "Meet it",
    1: "It sees: the vision tower",
    6: "It reads and writes: the language model",
    11: "It answers: both together",
    13: "Train it, load it, let it point",
    17: "Make it your own",
    19: "Published weights",
}

# A lesson's row in the table of README.md.
ROW = re.compile(
    r"\| \[\d\d \w+\]\(notebooks/(?P<name>\w+)\.ipynb\) \| (?P<builds>[^|]+) \|"
    r" [^|]+ \| (?P<minutes>\d+) \|"
)


def main() -> int:
    for folder in (OUTPUT, SOURCES, DOCTREES):
        shutil.rmtree(folder, ignore_errors=True)
    write_sources()
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--jobs", "auto"]
    places = ["-c", ROOT / "site", "-d", DOCTREES, SOURCES, OUTPUT]
    command = [sys.executable, "-m", "sphinx", *options, *places]
    code = subprocess.run([str(part) for part in command], cwd=ROOT).returncode
    if code == 0:
        (OUTPUT / "live.html").write_text(live_page(), encoding="utf-8")
        print(f"made {OUTPUT / 'index.html'}")
    return code


# --- sources -------------------------------------------------------------------------------------


def write_sources() -> None:
    """Put into build/site-sources all that Sphinx reads."""
    lessons, exercises = notebooks("notebooks"), notebooks("exercises")
    documents = sorted((ROOT / "docs").glob("*.md"))
    pages = [*(ROOT / page for page in PAGES), *documents]
    folders = {page.parent for page in pages} - {ROOT}
    pictures = [path for folder in sorted(folders) for path in sorted(folder.rglob("*.png"))]
    licences = [ROOT / "LICENSE", *sorted((ROOT / "licenses").iterdir())]
    shown = {*lessons, *exercises, *pages, *pictures}
    for path in [*lessons, *exercises]:
        write(path.relative_to(ROOT), json.dumps(notebook(path, shown)))
    for path in pages:
        write(path.relative_to(ROOT), linked(path.read_text(encoding="utf-8"), path, shown))
    for path in pictures:
        copy(path.relative_to(ROOT))
    for name, page in module_pages().items():
        write(f"minipali/{name}.md", page)
    write("index.md", landing_page(lessons, documents))
    write("exercises/index.md", exercises_page(exercises))
    write("licences.md", licences_page(licences))


def write(name, text: str) -> None:
    path = SOURCES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy(name) -> None:
    path = SOURCES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, path)


def notebooks(folder: str) -> list[Path]:
    """Those of the course; a learner's own file beside them has another name."""
    return sorted((ROOT / folder).glob("[0-9][0-9]_*.ipynb"))


def contents(paths: list[Path]) -> str:
    """The lines of a table of contents."""
    return "\n".join(path.relative_to(ROOT).as_posix() for path in paths)


# --- notebooks -----------------------------------------------------------------------------------


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def notebook(path: Path, shown: set[Path]) -> dict:
    """A notebook as the site has it: with a line under its title that says where it belongs."""
    made = read(path)
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = linked("".join(cell["source"]), path, shown)
    title, _, rest = made["cells"][0]["source"].partition("\n")
    made["cells"][0]["source"] = f"{title}\n\n{belongs(path)}\n{rest}"
    return made


def belongs(path: Path) -> str:
    """The lines under a notebook's title: its lesson or exercise, its module, how to run it."""
    name = path.stem
    links = [
        f"[{word} {name[:2]}](../{folder}/{path.name})"
        for word, folder in (("lesson", "notebooks"), ("exercise", "exercises"))
        if folder != path.parent.name and (ROOT / folder / path.name).exists()
    ]
    if (ROOT / "minipali" / f"{name[3:]}.py").exists():
        links.append(f"[`minipali/{name[3:]}.py`](../minipali/{name[3:]}.md)")
    command = f"python course.py lab {path.parent.name}/{path.name}"
    if path.parent.name == "exercises":
        run = f"This page is for reading. Write, and have your code judged, with `{command}`."
    else:
        run = f"To run and change this lesson: `{command}`."
    led = " · ".join(links)
    return f":::{{container}} belongs\n{led}{'  ' if led else ''}\n{run}\n:::\n"


LINK = re.compile(r"(!?)\[((?:[^\[\]]|\n)*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def linked(text: str, path: Path, shown: set[Path]) -> str:
    """Links to files that the site shows in another way, or not at all.

    A module's file leads to its page, the readme to the landing page; of a link to anything else in
    the repository only the words stay.
    """

    def link(found: re.Match) -> str:
        words, target = found[2], (path.parent / found[3]).resolve()
        if target in shown or not target.exists():  # Sphinx finds it, or says that it is not there
            return found[0]
        if target == ROOT / "README.md":
            target = ROOT / "index.md"
        elif target.suffix == ".py" and target.parent == ROOT / "minipali":
            target = target.with_suffix(".md")
        else:
            return words
        return f"[{words}]({Path(os.path.relpath(target, path.parent)).as_posix()})"

    return LINK.sub(link, text)


# --- pages that are made -------------------------------------------------------------------------


def lesson_table() -> dict[str, dict[str, str]]:
    """The table of README.md: a lesson's name -> `builds` and `minutes`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return {found["name"]: found.groupdict() for found in ROW.finditer(text)}


def title_of(path: Path) -> str:
    """A notebook's first line, without its number."""
    first = "".join(read(path)["cells"][0]["source"]).splitlines()[0]
    return first.split(" · ", 1)[1]


def landing_page(lessons: list[Path], documents: list[Path]) -> str:
    """site/index.md, with what is counted and listed in place of its comments."""
    hours = sum(int(row["minutes"]) for row in lesson_table().values()) / 60
    beside = ["exercises/index.md", *contents(documents).splitlines(), "minipali/index.md"]
    parts = {
        "objects": str(len(OBJECTS)),
        "count": str(len(lessons)),
        "hours": f"{hours:.0f}",
        "map": course_map(lessons),
        "beside": "\n".join(f"- []({page})" for page in beside),
        "lessons": contents(lessons),
        "documents": contents(documents),
    }
    page = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"<!-- {name} -->", part)
    return page


def course_map(lessons: list[Path]) -> str:
    """Every lesson, under the headings of PARTS, with what is built in it and where that stands."""
    table, made = lesson_table(), []
    for path in lessons:
        number, row = int(path.stem[:2]), table[path.stem]
        if number in PARTS:
            made.append(f"\n### {PARTS[number]}\n")
        links = [f"{row['minutes']} min"]
        if (ROOT / "exercises" / path.name).exists():
            links.append(f"[exercise](exercises/{path.name})")
        module = f"minipali/{path.stem[3:]}"
        if (ROOT / f"{module}.py").exists():
            links.append(f"[`{path.stem[3:]}.py`]({module}.md)")
        made.append(
            f"- **[{path.stem[:2]} {title_of(path)}](notebooks/{path.name})**\n\n"
            f"  {row['builds'].strip()}\n\n  {' · '.join(links)}"
        )
    return "\n".join(made)


def exercises_page(exercises: list[Path]) -> str:
    links = "\n".join(f"- [{path.stem[:2]} {title_of(path)}]({path.name})" for path in exercises)
    listed = "\n".join(path.stem for path in exercises)
    return f"""# Exercises

Each exercise asks for the pieces of one lesson. You write them in JupyterLab, on your own computer:
a check says whether your code is right, names the mistake if it knows it, and puts your piece into
the trained model. `python course.py progress` draws how much of the model is yours.

{links}

```{{toctree}}
:hidden:

{listed}
```
"""


def module_pages() -> dict[str, str]:
    """A page for each module: those of the lessons in their order, then the others, and a list."""
    files = sorted((ROOT / "minipali").glob("[a-z]*.py"))
    packages = [path.parent for path in sorted((ROOT / "minipali").glob("[a-z]*/__init__.py"))]
    taught = [path.stem[3:] for path in notebooks("notebooks")]
    lessons = [name for name in taught if (ROOT / "minipali" / f"{name}.py").exists()]
    others = [path.stem for path in [*files, *packages] if path.stem not in lessons]
    pages = {name: module_page(name) for name in [*lessons, *others]}
    pages["index"] = modules_page(lessons, others)
    return pages


def module_page(name: str) -> str:
    # A package that hands on what its modules define says so in __all__.
    package = ROOT / "minipali" / name / "__init__.py"
    hands_on = package.exists() and "__all__" in package.read_text(encoding="utf-8")
    options = ":members:" + ("\n   :imported-members:" if hands_on else "")
    return f"""# minipali.{name}

```{{eval-rst}}
.. automodule:: minipali.{name}
   {options}
```
"""


def modules_page(lessons: list[str], others: list[str]) -> str:
    def listed(names: list[str]) -> str:
        return "\n".join(f"- [`{name}`]({name}.md): {summary(name)}" for name in names)

    return f"""# Modules

The finished package, module by module. Those of the lessons come in their order, and each needs
only earlier ones. These functions are at hand in `import minipali` itself: `load`, `generate`,
`stream`, `detect` and `save`. A link *[source]* leads to the code.

## Built in the lessons

{listed(lessons)}

## Around them

{listed(others)}

```{{toctree}}
:hidden:

{chr(10).join([*lessons, *others])}
```
"""


def summary(name: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT / "minipali" / f"{name}.py"
    path = path if path.exists() else ROOT / "minipali" / name / "__init__.py"
    first = path.read_text(encoding="utf-8").split('"""')[1].split("\n\n")[0]
    return " ".join(first.split()).removesuffix(".")


def licences_page(licences: list[Path]) -> str:
    """Our own licences, and those of the packages whose scripts and styles the site carries."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in licences}
    texts = {"minipali": texts.pop("LICENSE"), **texts}
    for package in ("Sphinx", "Furo", "MyST-NB"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # no site can be made then
            files = [path for path in metadata.files(package) if path.stem == "LICENSE"]
            texts[package] = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    parts = [f"## {title}\n\n````text\n{text.strip()}\n````" for title, text in texts.items()]
    return "\n\n".join(
        [
            "# Licences",
            "The code is under the MIT licence, the text under CC BY 4.0. The drawings are by"
            " several artists: [licences and credits](NOTICE.md) names them. This site is made with"
            " Sphinx, MyST-NB and Furo; formulas are drawn by MathJax (Apache License 2.0).",
            *parts,
        ]
    )


# --- the live model ------------------------------------------------------------------------------

# Inside the landing page only the picture, the question and the answer are shown, at full height.
# On a phone the questions stand in one row to push aside, so that the answer is soon in sight.
EMBEDDED = """
<style>
.embedded :is(header, footer, #attention-part, #sampling, #own, #others-part > .hint) {
  display: none;
}
.embedded body { padding-bottom: 1rem; }
.embedded #stage { max-width: 19rem; }
.embedded #picture { max-height: none; }
.embedded #examples button { width: 3.2rem; height: 3.2rem; }
@media (min-width: 36rem) {
  .embedded main { grid-template-columns: minmax(0, 19rem) minmax(0, 1fr); }
  .embedded .column { display: flex; }
  .embedded :is(#picture-part, #answer-part) { order: 0; }
}
@media (max-width: 36rem) {
  .embedded :is(#rivals, #picture-title) { display: none; }
  .embedded h2 { margin-top: 0.6rem; }
  .embedded #stage { max-width: 14rem; margin: 0; }
}
</style>
<script>
if (window !== window.top) {
  document.documentElement.classList.add("embedded");
  new ResizeObserver(() => window.parent.postMessage({ height: document.body.offsetHeight }, "*"))
    .observe(document.body);
}
</script>
"""


def live_page() -> str:
    """The page of `minipali page`, which knows when it stands inside the landing page."""
    return make_page().replace("</body>", f"{EMBEDDED}</body>")


if __name__ == "__main__":
    sys.exit(main())
