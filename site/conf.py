"""How Sphinx makes the site. tools/build_site.py calls it, and writes what it reads."""

import re
from importlib import metadata

import minipali

project = "minipali"
author = "the minipali authors"
copyright = "the minipali authors. Code MIT, text CC BY 4.0, drawings by their artists"
release = minipali.__version__
root_doc = "index"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]

# --- lessons and pages ---------------------------------------------------------------------------

nb_execution_mode = "off"  # the lessons keep their outputs
nb_code_prompt_show = "Write it yourself first. Then open the code"
nb_code_prompt_hide = "Close the code"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3  # links such as page.md#heading

# --- modules -------------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # said once: docstrings tell shapes, not types
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
viewcode_follow_imported_members = False  # the code of this package, not that of others

# Where a line of a docstring begins something new, instead of going on with the last one.
ARGUMENTS = re.compile(r"(?:^|(?<=; ))([a-z_]\w*(?:, [a-z_]\w*)*): ")
NEW = re.compile(ARGUMENTS.pattern + "|-> |- |Raises |Source: ")


def plain_docstring(app, what, name, thing, options, lines) -> None:
    """Docstrings are plain text with `code`, not reStructuredText: drawings stay as they are."""
    made = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = paragraph.split("\n")
        if any(row.startswith(" ") or "   " in row for row in rows):  # a drawing, or a table
            made += [".. code-block:: text", "", *(f"   {row}" for row in rows), ""]
            continue
        entries = []
        for row in rows:
            if not entries or NEW.match(row):
                entries.append(ARGUMENTS.sub(r"`\1`: ", row))
            else:
                entries[-1] += " " + row
        made += [*(f"| {escaped(entry.removesuffix('::'))}" for entry in entries), ""]
    lines[:] = made


def escaped(text: str) -> str:
    """Plain text for reStructuredText; what stands in backticks becomes code."""
    parts = re.split(r"`+([^`]+)`+", text)
    plain = [re.sub(r"([\\*_|`<])", r"\\\1", part) for part in parts]
    plain[1::2] = [f"\\ ``{code}``\\ " for code in parts[1::2]]
    return "".join(plain)


# --- HTML ----------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "minipali"
pygments_dark_style = "github-dark"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
# Lines of the pages found are read by fetch, which browsers refuse to pages from disk.
NO_FETCH = "DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== 'file:'"
html_js_files = [(None, {"body": NO_FETCH})]
html_theme_options = {"navigation_with_keys": True}

# MathJax in one file, from this site.
_mathjax = metadata.distribution("sphinx-mathjax-offline")
html_static_path += [
    str(_mathjax.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")),
]
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}  # the menu would load more files


def summaries(app, name, template, context, tree) -> None:
    """A screen reader says what a folded cell's line says, not that there is something hidden."""
    if "body" in context:
        context["body"] = context["body"].replace(' aria-label="Toggle hidden content"', "")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("html-page-context", summaries)
