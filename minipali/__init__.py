"""PaliGemma, built from scratch to be read. The course around it is in the repository."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers see of `__getattr__` below
    from minipali.adapters import load
    from minipali.asking import detect, generate, stream
    from minipali.saving import save

__version__ = "0.1.0"
__all__ = ["detect", "generate", "load", "save", "stream"]

_HOMES = {
    "detect": "minipali.asking",
    "generate": "minipali.asking",
    "load": "minipali.adapters",
    "save": "minipali.saving",
    "stream": "minipali.asking",
}


def __getattr__(name: str):
    # Imported on first use: `minipali doctor` must start even where torch is missing or broken.
    if name not in _HOMES:
        raise AttributeError(f"module 'minipali' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
