"""The lessons' figures in print quality, with what they show and whose they are."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_notebooks  # noqa: E402
import print_figures  # noqa: E402

LESSON = """\
# %% [markdown]
# # 03 · Title
#
# ## See it

# %%
import matplotlib.pyplot as plt
from minipali.figures import show

figure, axis = plt.subplots(figsize=(2, 1))
axis.plot([1, 2])
show(figure, "A line that rises from one to two.")
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    (tmp_path / "notebooks" / "src" / "03_line.py").write_text(LESSON, encoding="utf-8")
    (tmp_path / "NOTICE.md").write_text("by artists", encoding="utf-8")
    monkeypatch.setattr(build_notebooks, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_a_figure_is_sharp_and_comes_with_its_caption_and_licence(course, monkeypatch):
    folder = course / "build" / "figures"
    folder.mkdir(parents=True)
    (folder / "captions.md").write_text("Old.\n\n## 01_other\n\nKept.\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["print_figures", "03"])
    assert print_figures.main() == 0
    width, _ = Image.open(io.BytesIO((folder / "03_line-1.png").read_bytes())).size
    assert width > 2 * 300 * 0.8  # two inches, less the margin that is cut off
    told = (folder / "captions.md").read_text(encoding="utf-8")
    assert "**03_line-1.png** (See it). A line that rises from one to two." in told
    assert told.startswith("Figures: the minipali authors, CC BY 4.0") and "NOTICE.md" in told
    assert told.index("## 01_other\n\nKept.") < told.index("## 03_line")
    assert (folder / "NOTICE.md").read_text(encoding="utf-8") == "by artists"


def test_a_lesson_that_is_not_there_is_named(course, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["print_figures", "99"])
    with pytest.raises(SystemExit) as ended:
        print_figures.main()
    assert ended.value.code == 2
    told = capsys.readouterr().out
    assert told == "No lesson begins with 99; they are called 03 to 03.\n"
