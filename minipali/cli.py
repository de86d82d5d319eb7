"""The command `minipali`: ask a model about a picture, and look at the installation."""

import argparse
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

# torch takes seconds to import: functions import what they need, so that --help does not wait.

ASSETS = Path(__file__).parent / "assets"
QUESTION = "answer en what is on the left?"

# What the small model has learned; a name is one of minipali.scenes.OBJECTS.
PROMPTS = """\
  caption en
  answer en what is this?
  answer en what is on the left?      (or: on the right, at the top, at the bottom)
  answer en what colour is the background?
  answer en how many objects are there?
  answer en how many apples are there?
  answer en is there a dog?
  detect cat"""

LEARNED = re.compile(
    r"caption en|detect \w+|answer en (what is (this|on the left|on the right|at the top"
    r"|at the bottom)|what colour is the background|how many \w+ are there|is there an? \w+)\?"
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minipali", description="PaliGemma, built from scratch to be read."
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--image", type=Path, metavar="FILE", help="the picture (default: one from the package)"
    )
    common.add_argument(
        "--model",
        default="small",
        help="small (default), a model folder, or a model on the hub: owner/name@revision",
    )

    def add(name: str, run, text: str, **options) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text, **options)
        verb.set_defaults(run=run)
        return verb

    verb = add(
        "ask",
        ask,
        "Ask about a picture. The prompt goes to the model as it is typed.",
        parents=[common],
        epilog=f"The small model knows these prompts:\n{PROMPTS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--prompt", default=QUESTION, help=f"the question (default: {QUESTION})")
    verb = add("caption", ask, "Describe a picture.", parents=[common])
    verb.set_defaults(prompt="caption en")
    verb = add("detect", detect, "Find an object and draw boxes around it.", parents=[common])
    verb.add_argument("name", help="what to find, such as: cat")
    verb.add_argument(
        "--output",
        type=Path,
        default=Path("boxes.png"),
        metavar="FILE",
        help="where the picture with boxes goes (default: boxes.png)",
    )
    add("doctor", doctor, "Look at the installation, and say what to do about what is wrong.")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done; 1: doctor found something wrong; 2: what was asked cannot be done, with one line on
    stderr that says why.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot write a letter shows "?"
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments or ["--help"])
    try:
        return options.run(options)
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # What a model folder, a picture, the disk or the network can be wrong with. Anything else is
    # a bug, and keeps its traceback.
    except (ValueError, OSError, MemoryError) as error:
        print(f"minipali: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def one_line(error: BaseException) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines())
    return text or type(error).__name__


def load_model(source: str):
    """(model, processor); see `minipali.load`. Sets torch's threads: this program is ours alone."""
    import torch

    from minipali.weights import load

    model, processor = load(source)
    # In a small model a second thread gains nothing; where other programs run, all wait for it.
    if sum(p.numel() for p in model.parameters()) < 2**26:
        torch.set_num_threads(1)
    return model, processor


def load_picture(path: Path | None):
    """Open the picture, or the package's first one, and print its name and size."""
    from minipali.tokens import open_picture

    if path is None:
        folder = ASSETS / "pictures"
        path = min(folder.glob("*.png"), default=None)
        if path is None:
            raise FileNotFoundError(f"no picture in {folder}: name one with --image")
    picture = open_picture(path)
    print(f"picture   {path.name}, {picture.width} x {picture.height} pixels", flush=True)
    return picture


def ask(options: argparse.Namespace) -> int:
    from minipali.generation import stream

    picture = load_picture(options.image)
    model, processor = load_model(options.model)
    shown = options.prompt if len(options.prompt) <= 80 else f"{options.prompt[:77]}..."
    print(f"question  {shown}")
    if options.model == "small" and not LEARNED.fullmatch(options.prompt):
        print("note      the small model has not learned this prompt; see minipali ask --help")
    pieces = stream(model, processor, picture, options.prompt)
    first = next(pieces, "")
    print(f"answer    {first}", end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)
    return 0


def detect(options: argparse.Namespace) -> int:
    from minipali import locations

    output = options.output
    check_output(output, options.image)
    picture = load_picture(options.image)
    model, processor = load_model(options.model)
    boxes = locations.detect(model, processor, picture, options.name)
    if not boxes:
        print(f"found     nothing that the model calls {options.name!r}; no picture was written")
        return 0
    for name, (y0, x0, y1, x1) in boxes:
        print(f"found     {name}: x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}")
    locations.draw_boxes(picture, boxes).save(output)
    print(f"written   {output}")
    return 0


def check_output(output: Path, image: Path | None) -> None:
    """Raise ValueError, before any work, if the picture cannot or must not be written there."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output must end in .png, found {output}")
    if not output.parent.is_dir():
        raise ValueError(
            f"--output must be in a folder that exists, and {output.parent} does not: make it first"
        )
    if output.is_dir():
        raise ValueError(f"--output must be a file, and {output} is a folder")
    if image is not None and image.exists() and output.exists() and output.samefile(image):
        raise ValueError(f"--output must not be the picture itself ({image}): name another file")


# --- doctor --------------------------------------------------------------------------------------

OK, NOTE, WRONG = "ok", "note", "WRONG"
Finding = tuple[str, str]

PYTHON = f'"{sys.executable}"' if " " in sys.executable else sys.executable

# Names to import where they differ from the names to install.
IMPORTED = {"pillow": "PIL", "pytest-xdist": "xdist"}


def doctor(options: argparse.Namespace) -> int:
    """Print one line for each thing looked at; exit code 1 if anything is wrong."""
    wrong = 0
    for look in (packages, small_model, drawings, kernel, room_for_3b, hub_token):
        for kind, text in look():
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
        model, _ = load_model("small")
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
    except ImportError:
        yield NOTE, "no Jupyter here; it is needed for the notebooks: python course.py setup"
        return
    if "python3" in KernelSpecManager().find_kernel_specs():
        yield OK, "Jupyter has a Python kernel"
    else:
        yield WRONG, f"Jupyter has no Python kernel: {PYTHON} -m pip install ipykernel"


def room_for_3b() -> Iterator[Finding]:
    """Memory and disk for the published 3B model, whose size follows from its config."""
    try:
        import torch

        from minipali.config import preset
        from minipali.paligemma import PaliGemma

        with torch.device("meta"):
            weights = sum(p.numel() for p in PaliGemma(preset("paligemma-3b-224")).parameters())
    # Said above already, with what to do.
    except ImportError:
        return
    try:
        import psutil
    except ImportError:
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
    except ImportError:
        return
    if get_token():
        yield OK, "there is a Hugging Face token"
    else:
        yield (
            NOTE,
            "no Hugging Face token; the published models are given out to those who accepted the"
            " licence on their page: hf auth login. The small model needs none",
        )
