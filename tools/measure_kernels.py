"""How much memory the kernel of each notebook takes at its peak: the table of docs/hub.md.

    python tools/measure_kernels.py              every lesson, and every exercise when it is solved
    python tools/measure_kernels.py 05 13        only these

One notebook after the other, each in a fresh kernel with one thread; none is written to. The peak
is the resident memory as the system counts it (getrusage), so this runs on Linux and macOS.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in what the system calls ru_maxrss
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def peak(path: Path) -> float:
    """The most memory, in GB, that the kernel of this notebook held, from first cell to last."""
    made = nbformat.read(path, as_version=4)
    made.cells.append(nbformat.v4.new_code_cell(PEAK))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(made, timeout=1800, resources=resources).execute()
    return int(made.cells[-1].outputs[0].text) * UNIT / 1e9


def main(only: list[str]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    folders = [ROOT / "notebooks", ROOT / "solutions"]
    paths = [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    # What trains comes last: the quick ones are known early.
    for path in sorted(paths, key=lambda path: path.name.startswith(("05", "13"))):
        if not only or path.name.startswith(tuple(only)):
            start = time.monotonic()
            size = peak(path)
            name = f"{path.parent.name}/{path.stem}"
            print(f"{name:28}{size:.2f} GB{time.monotonic() - start:6.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
