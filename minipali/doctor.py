"""Look at the installation: `minipali doctor`.

It must start where anything else is missing or damaged, so it imports nothing but the standard
library before it looks.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

OK, NOTE, WRONG = "ok", "note", "WRONG"
Finding = tuple[str, str]

PYTHON = f'"{sys.executable}"' if " " in sys.executable else sys.executable

# Names to import where they differ from the names to install.
IMPORTED = {"pillow": "PIL", "pytest-xdist": "xdist"}


def one_line(error: BaseException) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines())
    return text or type(error).__name__


def look() -> int:
    """Print one line for each thing looked at; exit code 1 if anything is wrong."""
    wrong = 0
    parts = (packages, small_model, drawings, kernel, language_models, room_for_3b, hub_token)
    for part in parts:
        for kind, text in part():
            print(f"{kind:6}{text}", flush=True)
            wrong += kind == WRONG
    print(f"\n{wrong} wrong; see above." if wrong else "\nAll is well.")
    return 1 if wrong else 0


def packages() -> Iterator[Finding]:
    """Python and each package that pyproject.toml names: importable, and in the range?"""
    import importlib
    from importlib import metadata

    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet

        about = metadata.metadata("minipali")
        requirements = [Requirement(text) for text in metadata.requires("minipali") or []]
    except (ImportError, metadata.PackageNotFoundError) as error:
        yield WRONG, f"minipali is not installed ({error}): run python course.py setup"
        return
    version, needed = platform.python_version(), about["Requires-Python"]
    if SpecifierSet(needed).contains(version, prereleases=True):
        yield OK, f"Python {version}"
    else:
        yield WRONG, f"Python must be {needed}, found {version}: install one, delete .venv"

    uses = {"": "", "course": "for the notebooks", "hub": "to download published models"}
    for wanted in requirements:
        marker = wanted.marker
        extra = next((e for e in uses if not marker or marker.evaluate({"extra": e})), None)
        if extra is None:
            continue
        name = wanted.name
        install = f'{PYTHON} -m pip install "{name}{wanted.specifier}"'
        try:
            found = metadata.version(name)
            importlib.import_module(IMPORTED.get(name, name))
        except metadata.PackageNotFoundError:
            if extra:  # the package itself works without it
                yield NOTE, f"{name} is not installed; it is needed {uses[extra]}: {install}"
            else:
                yield WRONG, f"{name} is not installed: {install}"
        # A damaged package can fail in any way while it is imported.
        except Exception as error:
            yield WRONG, f"{name} {found} cannot be imported ({one_line(error)}): {install}"
        else:
            if wanted.specifier.contains(found, prereleases=True):
                yield OK, f"{name} {found}"
            else:
                yield WRONG, f"{name} must be {wanted.specifier}, found {found}: {install}"


def small_model() -> Iterator[Finding]:
    try:
        from minipali.weights import load

        model, _ = load("small")
    # Whatever it is, it belongs into the list.
    except Exception as error:
        yield WRONG, f"the small model does not load: {one_line(error)}"
    else:
        weights = sum(p.numel() for p in model.parameters())
        yield OK, f"the small model loads ({weights:,} weights)"


def drawings() -> Iterator[Finding]:
    import zipfile

    path = ASSETS / "sprites.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            count = len(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        yield WRONG, f"{path} must be a whole archive ({one_line(error)}): get the repository again"
        return
    if damaged:
        yield WRONG, f"{path} is damaged at {damaged}: get the repository again"
    else:
        yield OK, f"the drawings can be read ({count} pictures)"


def kernel() -> Iterator[Finding]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except Exception:  # missing, or damaged in any way
        yield NOTE, "no Jupyter here; it is needed for the notebooks: python course.py setup"
        return
    if "python3" in KernelSpecManager().find_kernel_specs():
        yield OK, "Jupyter has a Python kernel"
    else:
        yield WRONG, f"Jupyter has no Python kernel: {PYTHON} -m pip install ipykernel"


def language_models() -> Iterator[Finding]:
    """Which of the published language models are in the cache."""
    from minipali.published import PUBLISHED, PublishedError, cache_folder, find

    here, missing = [], []
    for name, model in PUBLISHED.items():
        try:
            find(name)
        except PublishedError:
            how = f"python course.py weights {name}, {model.megabytes} MB"
            missing.append(f"{model.title} is not ({how})")
        else:
            here.append(f"{model.title} is there")
    told = f"published language models in {cache_folder()}: {'; '.join(here + missing)}"
    yield OK if here else NOTE, told


def room_for_3b() -> Iterator[Finding]:
    """Memory and disk for the published 3B model, whose size follows from its config."""
    try:
        import torch

        from minipali.config import preset
        from minipali.paligemma import PaliGemma

        with torch.device("meta"):
            weights = sum(p.numel() for p in PaliGemma(preset("paligemma-3b-224")).parameters())
    # Said above already, with what to do.
    except Exception:
        return
    try:
        import psutil
    except Exception:
        psutil = None
    if psutil:
        free, needed = psutil.virtual_memory().available, 2 * weights
        text = f"PaliGemma 3B takes {needed / 1e9:.1f} GB of memory in bfloat16"
        enough = free > 1.2 * needed
        advice = "" if enough else "; close programs first, or stay with the small model"
        yield OK if enough else NOTE, f"{text}; {free / 1e9:.1f} GB are free{advice}"
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").absolute()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, 4 * weights
    enough = free > 1.1 * needed
    advice = "" if enough else "; HF_HOME can name a folder on another disk"
    text = f"its files take up to {needed / 1e9:.1f} GB below {home}"
    yield OK if enough else NOTE, f"{text}; {free / 1e9:.1f} GB are free{advice}"


def hub_token() -> Iterator[Finding]:
    """Whether there is a token. It is not shown."""
    try:
        from huggingface_hub import get_token
    except Exception:
        return
    if get_token():
        yield OK, "there is a Hugging Face token"
    else:
        yield (
            NOTE,
            "no Hugging Face token; the published models are given out to those who accepted the"
            " licence on their page: hf auth login. The small model needs none",
        )
