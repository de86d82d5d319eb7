"""The programs in benchmarks/: they start on any system, and the table says what was measured."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def programs(monkeypatch):
    """As modules, on a system without `resource` (Windows); unloaded again afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # `measuring` sets it; undone with the rest
    stems = [path.stem for path in FOLDER.glob("*.py")]
    for stem in stems:
        monkeypatch.delitem(sys.modules, stem, raising=False)
    yield {stem: __import__(stem) for stem in stems}
    for stem in stems:
        sys.modules.pop(stem, None)


def test_each_starts_on_any_system_and_says_what_it_takes(programs, monkeypatch, capsys):
    for stem, program in programs.items():
        if stem != "measuring":
            monkeypatch.setattr(sys, "argv", [f"{stem}.py", "--help"])
            with pytest.raises(SystemExit) as end:
                program.main()
            assert end.value.code == 0 and f"usage: {stem}.py" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_peak_of_memory_grows_with_what_is_held(programs):
    before = programs["measuring"].peak_memory()
    held = b"1" * (before + 2**20)
    assert programs["measuring"].peak_memory() > len(held)


def test_the_table_is_made_from_the_results(programs, monkeypatch, tmp_path, capsys):
    report, measuring = programs["report"], programs["measuring"]
    took = {"ours": [2.0, 4.0], "transformers": [3.0, 6.0]}
    assert measuring.table(took, "ours", parts=2) == {
        "ours": {"seconds": 1.0, "times ours": 1.0},
        "transformers": {"seconds": 1.5, "times ours": 1.5},
    }
    result = {"machine": {"processor": "One of mine"}, "decoding": measuring.table(took, "ours")}
    (tmp_path / "real_size.json").write_text(json.dumps(result))
    (tmp_path / "README.md").write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(sys, "argv", ["report.py"])
    report.main()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    assert "One of mine" in text and "| 3B, decoding | transformers | 1.50 | 3 |" in text
    assert (tmp_path / "ratios.png").exists()
    report.main()
    assert (tmp_path / "README.md").read_text() == text
