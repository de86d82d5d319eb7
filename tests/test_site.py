"""The web pages: what they are made from, and the pages themselves (slow: Sphinx makes them)."""

import html.parser
import importlib.util
import json
import re
import urllib.parse
from pathlib import Path

import pytest
import yaml
from browsing import wait_for
from test_front_door import dead

ROOT = Path(__file__).resolve().parents[1]


def load_builder(folder: Path):
    """tools/build_site.py, which puts all that it makes into the folder."""
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "tools" / "build_site.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.OUTPUT, builder.SOURCES = folder / "site", folder / "sources"
    builder.DOCTREES = folder / "doctrees"
    return builder


# --- sources -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    builder = load_builder(tmp_path_factory.mktemp("site"))
    builder.write_sources()
    return builder


@pytest.fixture(scope="module")
def sources(builder):
    return builder.SOURCES


def names(folder: str) -> list[str]:
    return [path.name for path in sorted((ROOT / folder).glob("[0-9][0-9]_*.ipynb"))]


def test_links_lead_to_pages_of_the_site(sources):
    pages = [*sources.rglob("*.md"), *sources.rglob("*.ipynb")]
    assert len(pages) > 70
    (sources / "live.html").touch()  # comes beside the finished pages
    assert {str(page): wrong for page in pages if (wrong := dead(page, sources))} == {}


def test_the_map_has_every_lesson_with_its_exercise_and_its_module(sources):
    page = (sources / "index.md").read_text(encoding="utf-8")
    course_map = page.split("## The map")[1].split("## Beside")[0]
    for name in names("notebooks"):
        assert course_map.count(f"](notebooks/{name})") == 1
    for name in names("exercises"):
        assert f"[exercise](exercises/{name})" in course_map
        assert f"](minipali/{name[3:-6]}.md)" in course_map
    assert len(re.findall(r"^  \d+ min", course_map, re.MULTILINE)) == len(names("notebooks"))
    assert "<!--" not in page  # every place was filled


def test_every_document_is_shown_and_no_solution(sources):
    index = (sources / "index.md").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert f"- [](docs/{page.name})" in index
    assert not [path for path in sources.rglob("*") if "solution" in path.name]
    cells = [
        "".join(cell["source"])
        for path in sources.glob("exercises/*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    assert not [source for source in cells if "BEGIN SOLUTION" in source]


def test_every_module_has_a_page(sources):
    modules = {path.stem for path in ROOT.glob("minipali/[a-z]*.py")}
    packages = {path.parent.name for path in ROOT.glob("minipali/[a-z]*/__init__.py")}
    made = {path.stem for path in sources.glob("minipali/*.md")}
    assert made == modules | packages | {"index"}
    listed = (sources / "minipali" / "index.md").read_text(encoding="utf-8")
    taught = [name[3:-6] for name in names("exercises")]
    assert re.findall(r"^- \[`(\w+)`\]", listed, re.MULTILINE)[: len(taught)] == taught


def test_links_out_of_the_site(builder):
    page = ROOT / "docs" / "glossary.md"
    text = (
        "[a](../minipali/rope.py) [b](../README.md#two-commands) [c](../course.py) [d](notes.md)"
        " ![e](../docs/what_it_is.png) [f](gone.md) [g](https://example.org) [h](#here)"
    )
    assert builder.linked(text, page, {ROOT / "docs" / "notes.md"}) == (
        "[a](../minipali/rope.md) [b](../index.md) c [d](notes.md)"
        " e [f](gone.md) [g](https://example.org) [h](#here)"
    )


def test_what_jupyterlab_folds_is_folded_on_the_site():
    for name in names("notebooks"):
        for cell in json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))["cells"]:
            hidden = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
            assert hidden == ("hide-input" in cell["metadata"].get("tags", [])), name


def test_the_workflow_publishes_what_is_built(builder):
    text = (ROOT / ".github" / "workflows" / "site.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", action) for action in used)
    (upload,) = [step for step in steps if "upload-pages" in step.get("uses", "")]
    assert upload["with"]["path"] == "build/site"
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert jobs["publish"]["needs"] == "build"


# --- the pages -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(package, reason="made with `python course.py site`")
    builder = load_builder(tmp_path_factory.mktemp("made é") / "mini pali")
    assert builder.main() == 0
    return builder.OUTPUT


class Page(html.parser.HTMLParser):
    """Where a page leads, what it loads, its places to link to, its pictures without words."""

    LOADS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src"}

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors, self.wordless = [], [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"])
        if self.LOADS.get(tag) in found:
            self.loads.append(found[self.LOADS[tag]])
        if tag == "img" and not found.get("alt"):
            self.wordless.append(found)


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site):
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 100
    wrong = []
    for path, page in pages.items():
        wrong += [(path, "loads", where) for where in page.loads if re.match(r"https?:|//", where)]
        wrong += [(path, "no alt text", "") for _ in page.wordless if path.name != "live.html"]
        for where in page.links + page.loads:
            if re.match(r"[a-z]+:", where):
                continue
            name, _, anchor = urllib.parse.unquote(where.split("?")[0]).partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.is_file() or not target.is_relative_to(site.resolve()):
                wrong.append((path, "no file", where))
            elif anchor and target in pages and anchor not in pages[target].anchors:
                wrong.append((path, "no place", where))
    assert wrong == []


@pytest.mark.slow
def test_modules_are_documented_as_they_are(site):
    text = (site / "minipali" / "paligemma.html").read_text(encoding="utf-8")
    assert "\np # # # # . .\ns # # # # # .\ns # # # # # #\n</pre>" in text
    assert text.count("field-list") == 0  # the arguments are told once, in the docstring's words
    assert 'href="../_modules/minipali/paligemma.html#merge"' in text


@pytest.fixture
def visit(browser, site):
    """A function that opens a page from disk."""

    def visit(name: str, width: int = 1280, scheme: str = "light"):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=844,
                     deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        page, _, query = name.partition("?")
        address = (site / page).as_uri() + (f"?{query}" if query else "")
        browser.call("Page.navigate", url=address)
        wait_for(lambda: browser.run("location.href") == address)
        wait_for(lambda: browser.run("document.readyState") == "complete")

    return visit


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone_or_asks_elsewhere(browser, site, visit):
    folders = ("", "notebooks", "exercises", "docs", "minipali")
    pages = [p.relative_to(site).as_posix() for f in folders for p in (site / f).glob("*.html")]
    wide = []
    for name in pages:
        visit(name, width=390)
        if browser.run("document.documentElement.scrollWidth") > 390:
            wide.append(name)
    assert wide == []
    own = (site.as_uri(), "data:", "blob:", "about:")
    assert [address for address in browser.requests if not address.startswith(own)] == []


@pytest.mark.slow
def test_the_model_answers_on_the_landing_page(browser, visit):
    """The page inside says how high it is: it is there, and may speak, also from disk."""
    visit("index.html", width=390)
    wait_for(lambda: browser.run("document.getElementById('live').style.height"))
    wait_for(lambda: 300 < browser.run("document.getElementById('live').offsetHeight") < 1000)


@pytest.mark.slow
def test_a_lesson_is_whole(browser, visit):
    """Formulas are drawn, code is folded behind a line that says what to do, figures have words."""
    visit("notebooks/07_rope.html")
    wait_for(lambda: browser.run("document.querySelectorAll('mjx-container svg').length") > 10)
    folded = "document.querySelectorAll('details.hide:not([open])')"
    assert browser.run(f"{folded}.length") == 2
    assert "yourself first" in browser.run(f"{folded}[0].querySelector('summary').innerText")
    figures = "[...document.querySelectorAll('.cell_output img')]"
    assert browser.run(f"{figures}.every(figure => figure.alt.length > 20)")


@pytest.mark.slow
def test_search_finds_a_lesson_from_disk(browser, visit):
    visit("search.html?q=rotary+angle")
    found = "[...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    wait_for(lambda: "notebooks/07_rope.html" in "".join(browser.run(found)))
