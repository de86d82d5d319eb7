"""The command `minipali`: ask a model about a picture. (`minipali doctor` is in `doctor.py`.)"""

import argparse
import errno
import io
import os
import re
import sys
import warnings
from pathlib import Path

from minipali import __version__
from minipali.doctor import ASSETS, look, one_line

# torch takes seconds to import: functions import what they need, so that --help does not wait.

QUESTION = "answer en what is on the left?"

# What the small model has learned. The names are minipali.scenes.OBJECTS, and a test compares them:
# to import them would take as long as torch does.
NAMES = """\
  apple ball balloon bicycle cactus cake car cat clock crown dog frog
  guitar hamburger key moon mushroom penguin pig pizza rocket sunflower tree umbrella"""
NAME = "|".join(NAMES.split())

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
    rf"caption en|detect ({NAME})|answer en (what is (this|on the left|on the right|at the top"
    rf"|at the bottom)|what colour is the background|how many (objects|({NAME})(s|es)?) are there"
    rf"|is there an? ({NAME}))\?"
)


class Once(argparse.Action):
    """An option that refuses to be given twice, where argparse would forget the first."""

    def __call__(self, parser, options, value, name=None):
        given = vars(options).setdefault("given", set())
        if self.dest in given:
            parser.error(f"{name} must be given once; for another picture run the command again")
        given.add(self.dest)
        setattr(options, self.dest, value)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minipali", description="PaliGemma, built from scratch to be read."
    )
    top.add_argument("--version", action="version", version=f"minipali {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--image", action=Once, metavar="FILE", help="the picture (default: one from the package)"
    )
    common.add_argument(
        "--model",
        action=Once,
        default="small",
        help="small (default), a model folder, or a model on the hub: owner/name@revision",
    )
    common.add_argument(
        "--device",
        action=Once,
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where to compute (default: auto, a graphics processor if there is one)",
    )

    def add(name: str, run, text: str, **options) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        verb = verbs.add_parser(name, help=text, description=text, formatter_class=raw, **options)
        verb.set_defaults(run=run)
        return verb

    verb = add(
        "ask",
        ask,
        "Ask about a picture. The prompt goes to the model as it is typed.",
        parents=[common],
        epilog=f"The small model knows these prompts:\n{PROMPTS}\n\nwith these names:\n{NAMES}",
    )
    verb.add_argument(
        "--prompt", action=Once, default=QUESTION, help=f"the question (default: {QUESTION})"
    )
    verb = add("caption", ask, "Describe a picture.", parents=[common])
    verb.set_defaults(prompt="caption en")
    verb = add(
        "detect",
        detect,
        "Find an object and draw boxes around it.",
        parents=[common],
        epilog=f"The small model knows these names:\n{NAMES}",
    )
    verb.add_argument("name", help="what to find, such as: cat")
    verb.add_argument(
        "--output",
        action=Once,
        type=Path,
        default=Path("boxes.png"),
        metavar="FILE",
        help="where the picture with boxes goes (default: boxes.png)",
    )
    verb = add(
        "page",
        page,
        "Write a web page, one file, in which the model answers without a server or a network.",
    )
    verb.add_argument(
        "model", nargs="?", default="small", help="small (default), a model folder, or a hub id"
    )
    verb.add_argument(
        "--output", action=Once, type=Path, required=True, metavar="FILE.html", help="the page"
    )
    add("doctor", doctor, "Look at the installation, and say what to do about what is wrong.")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done; 1: doctor found something wrong, or nobody reads the output any more; 2: what was asked
    cannot be done, with one line on stderr that says why.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot write a letter shows "?"
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments or ["--help"])
    try:
        # What our own library warns about is a note; what others remark helps nobody here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module="minipali")
            warnings.showwarning = lambda message, *place: note(message)
            return options.run(options)
    except KeyboardInterrupt:
        return 130
    # What a model folder, a picture, the disk or the network can be wrong with. Anything else is
    # a bug, and keeps its traceback.
    except (ValueError, OSError, MemoryError) as error:
        if nobody_reads(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return failed(one_line(error))
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        return failed("the model must fit into the memory of the device: try --device cpu")


def nobody_reads(error: Exception) -> bool:
    """Whether the program that read our output, such as head, has seen enough and gone."""
    # Windows says "invalid argument", without naming a file as for a path.
    invalid = isinstance(error, OSError) and error.errno == errno.EINVAL
    on_windows = sys.platform == "win32" and invalid and error.filename is None
    return isinstance(error, BrokenPipeError) or on_windows


def failed(why: str) -> int:
    print(f"minipali: error: {why}", file=sys.stderr)
    return 2


def note(text) -> None:
    print(f"note      {text}", flush=True)


def choose_device(name: str) -> str:
    """auto, cpu, cuda or mps -> cpu, cuda or mps. Raises ValueError if it is not there."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((device for device, there in present.items() if there), "cpu")
    if not present.get(name, True):
        raise ValueError(
            f"--device {name} must be a device that this torch ({torch.__version__}) can use, found"
            " none: use --device cpu, or install another build of torch"
        )
    return name


def load_model(source: str, device: str):
    """(model, processor); see `minipali.load`. Sets torch's threads: this program is ours alone."""
    import torch

    from minipali.weights import load

    model, processor = load(source, device=choose_device(device))
    # In a small model a second thread gains nothing; where other programs run, all wait for it.
    if sum(p.numel() for p in model.parameters()) < 2**26:
        torch.set_num_threads(1)
    return model, processor


def load_picture(path: str | None):
    """Open the picture, or the package's first one, and print its name and size."""
    from minipali.tokens import open_picture

    if path is None:
        folder = ASSETS / "pictures"
        path = min(folder.glob("*.png"), default=None)
        if path is None:
            raise FileNotFoundError(f"no picture in {folder}: name one with --image")
    picture = open_picture(path)
    print(f"picture   {Path(path).name}, {picture.width} x {picture.height} pixels", flush=True)
    return picture


def ask(options: argparse.Namespace) -> int:
    from minipali.asking import stream

    picture = load_picture(options.image)
    model, processor = load_model(options.model, options.device)
    shown = options.prompt if len(options.prompt) <= 80 else f"{options.prompt[:77]}..."
    print(f"question  {shown}")
    if options.model == "small" and not LEARNED.fullmatch(options.prompt):
        note("the small model has not learned this prompt; see minipali ask --help")
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
    from minipali import asking
    from minipali.locations import draw_boxes

    output = options.output
    check_output(output, options.image)
    picture = load_picture(options.image)
    model, processor = load_model(options.model, options.device)
    if options.model == "small" and options.name not in NAMES.split():
        note("the small model has not learned this name; see minipali detect --help")
    boxes = asking.detect(model, processor, picture, options.name)
    if not boxes:
        print(f"found     nothing that the model calls {options.name!r}; no picture was written")
        return 0
    for name, (y0, x0, y1, x1) in boxes:
        print(f"found     {name}: x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}")
    png = io.BytesIO()
    draw_boxes(picture, boxes).save(png, "PNG")
    replace(output, png.getvalue())
    print(f"written   {output}")
    return 0


def page(options: argparse.Namespace) -> int:
    output = options.output
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must end in .html, found {output}")
    if not output.parent.is_dir():
        raise ValueError(f"--output must be in a folder that exists, found {output}: make it first")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output must be a file, found a folder, pipe or device: {output}")
    from minipali.page import make_page

    content = make_page(options.model).encode()
    replace(output, content)
    print(f"written   {output}, {len(content) / 1e6:.1f} MB: open it in a browser")
    return 0


def replace(file: Path, content: bytes) -> None:
    """Write a file beside it first, so that an error, such as a full disk, leaves the old one."""
    file = file.resolve()  # through a link, which stays
    part = file.with_name(f".minipali-{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    except OSError as error:
        raise OSError(f"{file} was not written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def doctor(options: argparse.Namespace) -> int:
    return look()


def check_output(output: Path, image: str | None) -> None:
    """Raise ValueError, before any work, if the picture cannot or must not be written there."""
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output must end in .png, found {output}")
    if not output.parent.is_dir():
        raise ValueError(
            f"--output must be in a folder that exists, and {output.parent} does not: make it first"
        )
    if output.is_dir():
        raise ValueError(f"--output must be a file, and {output} is a folder")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output must be a file, and {output} is a pipe or a device")
    if image is not None and os.path.exists(image) and output.exists() and output.samefile(image):
        raise ValueError(f"--output must not be the picture itself ({image}): name another file")
