"""The command `minipali`: its words and options. `verbs.py` does what they say."""

import argparse
import errno
import os
import sys
import warnings
from pathlib import Path

from minipali import __version__, verbs
from minipali.doctor import look, one_line
from minipali.verbs import NAMES, failed, note

QUESTION = "answer en what is on the left?"

PROMPTS = """\
  caption en
  answer en what is this?
  answer en what is on the left?      (or: on the right, at the top, at the bottom)
  answer en what colour is the background?
  answer en how many objects are there?
  answer en how many apples are there?
  answer en is there a dog?
  detect cat"""

ABOUT_PICTURES = """\
A picture is a file, a folder of them, an https address, or - for standard input. Answers about
several come in a line each. What goes wrong with one of several is said, and the exit code is 2."""


ABOUT_CHAT = """\
Without a QUESTION, each line that you type is one. Ctrl-C cuts an answer off, Ctrl-D (Ctrl-Z on
Windows) ends. SmolLM2 answers; Gemma 3 270M has not learned to, and goes on with what you write.
First get the model: python course.py weights smollm2"""

ABOUT_DATA = """\
DATA is a file of JSON lines, or a folder with train.jsonl (or one such file alone):

  {"image": "1.png", "prefix": "answer en what is this?", "suffix": "rabbit"}

Paths of pictures start where the file is. All lines are checked first, and all faults are told.
FOLDER gets an adapter as PEFT writes it (with --full a whole model), and training/ with the log,
the curve and a checkpoint: after a kill or Ctrl-C the same command goes on where it was."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, where argparse would show all the options before it."""

    def error(self, message: str):
        self.exit(2, f"minipali: error: {message}; see {self.prog} --help\n")


class Once(argparse.Action):
    """An option that refuses to be given twice, where argparse would forget the first."""

    def __call__(self, parser, options, value, name=None):
        given = vars(options).setdefault("given", set())
        if self.dest in given:
            parser.error(f"{name} must be given once")
        given.add(self.dest)
        setattr(options, self.dest, value)


class Picture(argparse.Action):
    """A picture or several, wherever they stand between the options."""

    def __call__(self, parser, options, value, name=None):
        more = value if isinstance(value, list) else [value]
        options.pictures = [*(options.pictures or []), *more]


def number(kind: type, what: str, fits):
    """A reader of numbers for argparse: kind int or float, `what` says what fits(value) asks."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {what}, found {text!r}")
        return value

    return read


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="minipali", description="PaliGemma, built from scratch to be read.")
    top.add_argument("--version", action="version", version=f"minipali {__version__}")
    words = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, run, text: str, **options) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        verb = words.add_parser(name, help=text, description=text, formatter_class=raw, **options)
        verb.set_defaults(run=run)
        return verb

    known = f"The small model knows these names:\n{NAMES}"
    verb = add(
        "ask",
        verbs.ask,
        "Ask about pictures. The prompt goes to the model as it is typed.",
        epilog=f"{ABOUT_PICTURES}\n\nThe small model knows these prompts:\n{PROMPTS}\n\n"
        f"with these names:\n{NAMES}",
    )
    verb.add_argument(
        "--prompt", action=Once, default=QUESTION, help=f"the question (default: {QUESTION})"
    )
    add_common(verb)
    add_drawing(verb)

    verb = add("caption", verbs.ask, "Describe pictures.", epilog=ABOUT_PICTURES)
    verb.set_defaults(prompt="caption en")
    add_common(verb)
    add_drawing(verb)

    verb = add(
        "detect",
        verbs.detect,
        "Find an object and draw boxes around it.",
        epilog=f"{ABOUT_PICTURES}\n\n{known}",
    )
    add_name(verb)
    add_common(verb)
    add_output(verb, "boxes.png")

    verb = add(
        "segment",
        verbs.segment,
        "Find an object and draw its outline. The small model has not learned to.",
        epilog=f"{ABOUT_PICTURES}\n\nA published model says outlines in codes. The file that turns"
        " them into pictures is a separate\none of 7 MB; big_vision's code names it as"
        " gs://big_vision/paligemma/vae-oid.npz.",
    )
    add_name(verb)
    add_common(verb)
    add_output(verb, "masks.png")
    verb.add_argument(
        "--codec",
        action=Once,
        default="vae-oid.npz",
        metavar="FILE",
        help="the weights that turn codes into outlines (default: vae-oid.npz here)",
    )

    verb = add(
        "chat",
        verbs.chat,
        "Talk with a language model, which sees no pictures.",
        epilog=ABOUT_CHAT,
    )
    verb.add_argument(
        "model",
        nargs="?",
        default="smollm2",
        metavar="MODEL",
        help="smollm2 (default), gemma3, or a GGUF file of a Llama or Gemma",
    )
    verb.add_argument("question", nargs="?", metavar="QUESTION", help="the only one")
    verb.add_argument(
        "--system", action=Once, metavar="TEXT", help="what the model is told before you speak"
    )
    add_drawing(verb, 256)

    verb = add(
        "finetune",
        verbs.finetune,
        "Let a model learn from your own labelled pictures.",
        epilog=ABOUT_DATA,
    )
    add_finetuning(verb)

    verb = add(
        "merge",
        verbs.merge,
        "Write a whole model: one with what an adapter has learned added to its weights.",
    )
    verb.add_argument("adapter", type=Path, metavar="ADAPTER", help="the adapter's folder")
    verb.add_argument(
        "--model", action=Once, default="small", help="the model that it was trained on"
    )
    verb.add_argument(
        "--output", action=Once, type=Path, required=True, metavar="FOLDER", help="the new model's"
    )

    verb = add(
        "page",
        verbs.page,
        "Write a web page, one file, in which the model answers without a server or a network.",
    )
    verb.add_argument(
        "model", nargs="?", default="small", help="small (default), a model folder, or a hub id"
    )
    verb.add_argument(
        "--output", action=Once, type=Path, required=True, metavar="FILE.html", help="the page"
    )
    verb.add_argument(
        "--codec",
        action=Once,
        metavar="FILE",
        help="the weights that turn codes into outlines, see minipali segment --help: the page"
        " draws them if its model has learned to say them (default: none, it draws boxes alone)",
    )

    add("doctor", doctor, "Look at the installation, and say what to do about what is wrong.")
    return top


def add_finetuning(verb: argparse.ArgumentParser) -> None:
    whole = number(int, "a whole number, at least 1", lambda n: n >= 1)
    above = number(float, "a number above 0", lambda x: 0 < x < float("inf"))

    def add(name: str, text: str, kind=None, default=None, metavar="N", **options) -> None:
        shown = "" if default is None else f" (default: {default})"
        verb.add_argument(
            name, action=Once, type=kind, default=default, metavar=metavar, help=text + shown,
            **options,
        )  # fmt: skip

    verb.add_argument("data", type=Path, metavar="DATA", help="a file or a folder")
    add("--output", "where what is learned goes", Path, metavar="FOLDER")
    verb.add_argument("--check", action="store_true", help="look at the data and do no more")
    add("--model", "small, a model folder, or a hub id", default="small", metavar="MODEL")
    add(
        "--validation",
        "a file to measure on, or the share of pictures to hold out, 0 for none",
        share_or_file, 0.1, metavar="FILE|SHARE",
    )  # fmt: skip
    verb.add_argument("--full", action="store_true", help="train all weights, not LoRA")
    add("--rank", "of LoRA", whole, 8)
    add("--alpha", "of LoRA (default: twice the rank)", above, metavar="A")
    add(
        "--targets",
        "ends of the names of layers that get LoRA, with commas between",
        default="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", metavar="NAMES",
    )  # fmt: skip
    length = verb.add_mutually_exclusive_group()
    length.add_argument("--steps", type=whole, metavar="N", help="how many steps")
    length.add_argument(
        "--epochs", type=whole, default=10, metavar="N", help="times through the data (default: 10)"
    )
    add("--batch-size", "examples a step", whole, 8)
    add("--at-once", "of them, those that go through the model together (default: all)", whole)
    add("--lr", "the highest learning rate (default: by the width of the model)", above)
    add("--seed", "of the order and of LoRA's first numbers",
        number(int, "a whole number from 0 to 2**63 - 1", lambda s: 0 <= s < 2**63), 0)  # fmt: skip
    add("--patience", "measurements without a better loss after which it ends", whole, 3)
    add(
        "--precision",
        "auto measures whether bfloat16 is faster here",
        default="auto", metavar=None, choices=("auto", "float32", "bfloat16"),
    )  # fmt: skip
    verb.add_argument(
        "--less-memory", action="store_true", help="compute activations twice, and keep few"
    )
    verb.add_argument(
        "--shard", action="store_true", help="under torchrun: divide the weights (FSDP)"
    )
    add("--device", "where to compute", default="auto", metavar=None,
        choices=("auto", "cpu", "cuda", "mps"))  # fmt: skip


def share_or_file(text: str) -> float | Path:
    try:
        share = float(text)
    except ValueError:
        if not Path(text).is_file():
            raise argparse.ArgumentTypeError(
                f"must be a file of JSON lines or a share from 0 to below 1, found {text!r}"
            ) from None
        return Path(text)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to below 1, found {text!r}")
    return share


def add_name(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="what to find, such as: cat")


def add_common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "pictures",
        action=Picture,
        nargs="*",
        metavar="PICTURE",
        help="(default: one from the package)",
    )
    verb.add_argument(
        "--image", action=Picture, dest="pictures", metavar="PICTURE", help="the same as PICTURE"
    )
    verb.add_argument(
        "--model",
        action=Once,
        default="small",
        help="small (default), graft (the small model's eyes on SmolLM2), a model folder, or a"
        " model on the hub: owner/name@revision",
    )
    verb.add_argument(
        "--adapter",
        action=Once,
        type=Path,
        metavar="FOLDER",
        help="a LoRA adapter of that model, as minipali finetune or peft writes it",
    )
    verb.add_argument(
        "--device",
        action=Once,
        default="auto",
        choices=("auto", "cpu", "cuda", "mps"),
        help="where to compute (default: auto, a graphics processor if there is one)",
    )
    verb.add_argument(
        "--dtype",
        action=Once,
        choices=("float32", "bfloat16", "float16"),
        help="what the weights become (default: what they are in the files)",
    )
    bits = verb.add_mutually_exclusive_group().add_argument
    for number, why in ((8, "less memory"), (4, "still less, and less exact; on the CPU")):
        bits(
            f"--int{number}",
            action="store_const",
            const=number,
            dest="bits",
            help=f"turn the language model into {number} bits: {why}",
        )
    verb.add_argument("--json", action="store_true", help="print one JSON object for each picture")


def add_drawing(verb: argparse.ArgumentParser, most: int = 64) -> None:
    """How the words of an answer are drawn. most: tokens of an answer, by default."""
    add = verb.add_argument
    add(
        "--max-tokens",
        action=Once,
        type=number(int, "a whole number, at least 1", lambda n: n >= 1),
        default=most,
        metavar="N",
        help=f"where an answer is cut off (default: {most})",
    )
    add(
        "--temperature",
        action=Once,
        type=number(float, "a number, 0 or above", lambda t: 0 <= t < float("inf")),
        default=0.0,
        metavar="T",
        help="above 0: draw each token (default: 0, the most likely one)",
    )
    add(
        "--top-k",
        action=Once,
        type=number(int, "a whole number, at least 1", lambda k: k >= 1),
        metavar="K",
        help="draw from the K most likely tokens",
    )
    add(
        "--top-p",
        action=Once,
        type=number(float, "a number above 0 and at most 1", lambda p: 0 < p <= 1),
        metavar="P",
        help="draw from the most likely tokens that reach P together",
    )
    add(
        "--seed",
        action=Once,
        type=number(int, "a whole number from 0 to 2**64 - 1", lambda s: 0 <= s < 2**64),
        metavar="S",
        help="a number that repeats what was drawn",
    )


def add_output(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument(
        "--output",
        action=Once,
        type=Path,
        metavar="FILE",
        help=f"where the drawn picture goes (default: {default}); for several pictures a folder"
        " (default: none is drawn)",
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, or an end with one sentence about what is wrong."""
    options, rest = parser().parse_known_args(arguments)
    # argparse takes pictures from one place alone, and leaves those behind the next option over.
    takes_pictures = "pictures" in options
    wrong = [word for word in rest if not takes_pictures or (word[0:1] == "-" and word != "-")]
    if wrong:
        Parser(prog=f"minipali {options.verb}").error(f"unrecognized: {' '.join(wrong)}")
    if takes_pictures:
        options.pictures = [*(options.pictures or []), *rest]
        if "name" in options and not options.pictures and os.path.exists(options.name):
            Parser(prog=f"minipali {options.verb}").error(
                f"what to find comes first, found a file: minipali {options.verb} cat"
                f" {options.name}"
            )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done; 1: doctor found something wrong, or nobody reads the output any more; 2: what was asked
    cannot be done, or not for each picture, with one line on stderr that says why.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot write a letter shows "?"
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments or ["--help"])
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
        return failed(one_line(error).replace("max_new_tokens", "--max-tokens"))
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


def doctor(options: argparse.Namespace) -> int:
    return look()
