"""What the command does for ask, caption, detect, segment, chat, finetune, merge and page.

Answers go to standard output, everything else (notes, what is wrong) to standard error.
"""

import argparse
import io
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from minipali.doctor import ASSETS, one_line

# torch takes seconds to import: functions import what they need, so that --help does not wait.

# What the small model has learned. The names are minipali.scenes.OBJECTS, and a test compares them:
# to import them would take as long as torch does.
NAMES = """\
  apple ball balloon bicycle cactus cake car cat clock crown dog frog
  guitar hamburger key moon mushroom penguin pig pizza rocket sunflower tree umbrella"""
NAME = "|".join(NAMES.split())

LEARNED = re.compile(
    rf"caption en|detect ({NAME})|answer en (what is (this|on the left|on the right|at the top"
    rf"|at the bottom)|what colour is the background|how many (objects|({NAME})(s|es)?) are there"
    rf"|is there an? ({NAME}))\?"
)


FAULTS = 100  # of the data that are told one by one


def note(text) -> None:
    print(f"note      {text}", file=sys.stderr, flush=True)


def failed(why: str) -> int:
    print(f"minipali: error: {why}", file=sys.stderr, flush=True)
    return 2


# --- the model -----------------------------------------------------------------------------------


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


def check_sees(source: str) -> None:
    """Raise ValueError for the name or file of a language model."""
    from minipali.published import PUBLISHED

    if source in PUBLISHED or source.endswith(".gguf"):
        raise ValueError(
            f"{source} is a language model, which sees no pictures: talk with it by"
            f" `minipali chat {source}`"
        )


def load_model(
    source: str,
    device: str,
    dtype: str | None = None,
    bits: int | None = None,
    adapter: Path | None = None,
):
    """(model, processor); see `minipali.load`. Sets torch's threads: this program is ours alone.

    bits: 8 or 4, and then the language model is rounded to so many.
    """
    import torch

    from minipali.adapters import load
    from minipali.lora import merge_lora
    from minipali.quantization import quantize

    check_sees(source)
    model, processor = load(source, dtype, choose_device(device), adapter)
    # In a small model a second thread gains nothing; where other programs run, all wait for it.
    if sum(p.numel() for p in model.parameters()) < 2**26:
        torch.set_num_threads(1)
    if bits:
        if bits == 4 and source == "graft":
            raise ValueError("in 4 bits the graft has no sensible answer left: leave --int4 out")
        merge_lora(model)
        quantize(model, bits)
    return model, processor


# --- all pictures of one command -----------------------------------------------------------------


class Job:
    """The pictures of one command: opens one after the other, and tells what the model said of it.

    One picture alone is told in a few lines, several in one line each, and with --json each is an
    object on a line of its own. What is wrong with one of several does not stop the others.
    """

    def __init__(self, options: argparse.Namespace, prompt: str):
        from minipali import pictures

        check_sees(options.model)
        given = options.pictures or [first_picture()]
        self.sources, self.notes = pictures.find(given)
        self.options, self.prompt = options, prompt
        self.several = len(self.sources) > 1 or os.path.isdir(given[0])
        self.alone = not (self.several or options.json)
        self.code = 0  # what the command returns

    def __iter__(self) -> Iterator[tuple]:
        """(source, picture, model, processor) for each picture that can be opened."""
        from minipali.pictures import open_source, title
        from minipali.tokens import PictureError

        options, model = self.options, None
        for text in self.notes:
            note(text)
        for source in self.sources:
            try:
                picture = open_source(source)
            except PictureError as error:
                if not (self.several or options.json):
                    raise
                self.wrong(source, error)
                continue
            if self.alone:
                size = f"{picture.width} x {picture.height} pixels"
                print(f"picture   {title(source)}, {size}", flush=True)
            if (
                model is None
            ):  # now, so that nobody waits for a large one to hear of a wrong picture
                model, processor = load_model(
                    options.model, options.device, options.dtype, options.bits, options.adapter
                )
                known = options.model == "small" and not options.adapter
                if known and not LEARNED.fullmatch(self.prompt):
                    help_ = f"minipali {options.verb} --help"
                    note(f"the small model has not learned this prompt; see {help_}")
            yield source, picture, model, processor

    def wrong(self, source: str, error: Exception) -> None:
        self.code = 2
        if self.options.json:
            self.print_json(source, error=one_line(error))
        else:
            failed(one_line(error))

    def tell(self, source: str, picture, word: str, lines: list[str], **facts) -> None:
        """word: what one line each is about; facts: the same as lines, for --json."""
        if self.options.json:
            size = {"width": picture.width, "height": picture.height}
            self.print_json(source, **size, prompt=self.prompt, **facts)
        elif self.several:
            line = " ".join("; ".join(lines).splitlines())  # a model may say a line break
            print(f"{source}: {line}", flush=True)
        else:
            for line in lines:
                print(f"{word:10}{line}", flush=True)

    def print_json(self, source: str, **facts) -> None:
        print(json.dumps({"picture": source, **facts}), flush=True)


def first_picture() -> str:
    folder = ASSETS / "pictures"
    path = min(folder.glob("*.png"), default=None)
    if path is None:
        raise FileNotFoundError(f"no picture in {folder}: name one")
    return str(path)


# --- verbs ---------------------------------------------------------------------------------------


def drawing(options: argparse.Namespace) -> dict:
    """What `stream` and `stream_text` want to know. Raises ValueError if it says two things."""
    if options.temperature == 0 and (options.top_k or options.top_p):
        raise ValueError(
            "--top-k and --top-p choose what to draw from: give --temperature above 0 too"
        )
    names = ("temperature", "top_k", "top_p", "seed")
    return {name: getattr(options, name) for name in names} | {"max_new_tokens": options.max_tokens}


def ask(options: argparse.Namespace) -> int:
    from minipali.asking import stream

    how = drawing(options)
    job = Job(options, options.prompt)
    for source, picture, model, processor in job:
        pieces = stream(model, processor, picture, options.prompt, **how)
        if job.alone:
            prompt = options.prompt
            print(f"question  {prompt if len(prompt) <= 80 else f'{prompt[:77]}...'}")
            print_stream(pieces)
        else:
            answer = "".join(pieces)
            job.tell(source, picture, "answer", [answer], answer=answer)
    return job.code


def print_stream(pieces: Iterator[str]) -> None:
    """The answer as it comes. It begins once there is something to say."""
    print(f"answer    {next(pieces, '')}", end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    finally:
        print(flush=True)


def detect(options: argparse.Namespace) -> int:
    from minipali import asking
    from minipali.locations import draw_boxes

    def look(model, processor, picture):
        found = asking.detect(model, processor, picture, options.name)
        objects = [(name, box, {}) for name, box in found]
        return objects, draw_boxes(picture, found)

    return find_objects(options, f"detect {options.name}", look, "boxes.png")


def segment(options: argparse.Namespace) -> int:
    from minipali import asking
    from minipali.masks import draw_masks, load_codec

    if not os.path.exists(options.codec):
        raise ValueError(
            f"--codec must be the file that turns codes into outlines, found none at"
            f" {options.codec}: big_vision publishes it, see minipali segment --help"
        )
    codec = load_codec(options.codec)

    def look(model, processor, picture):
        found = asking.segment(model, processor, codec, picture, options.name)
        objects = [(name, box, {"pixels": int(mask.sum())}) for name, box, mask in found]
        return objects, draw_masks(picture, found)

    return find_objects(options, f"segment {options.name}", look, "masks.png")


def find_objects(options: argparse.Namespace, prompt: str, look, default: str) -> int:
    """look(model, processor, picture) -> ([(name, box, more facts)], the picture with them drawn).

    default: where one picture goes if nothing is said. For several nothing is written then.
    """
    job = Job(options, prompt)
    outputs = output_files(options.output or (Path(default) if job.alone else None), job)
    for source, picture, model, processor in job:
        objects, drawn = look(model, processor, picture)
        lines, facts = [], []
        for name, (y0, x0, y1, x1), more in objects:
            pixels = "".join(f", {number:,} {what}" for what, number in more.items())
            lines.append(f"{name}: x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}{pixels}")
            box = {"x0": x0, "y0": y0, "x1": x1, "y1": y1}
            facts.append({"name": name, **{k: round(v, 1) for k, v in box.items()}, **more})
        output = outputs.get(source) if objects else None
        if output is not None:
            png = io.BytesIO()
            drawn.save(png, "PNG")
            replace(output, png.getvalue())
        nothing = f"nothing that the model calls {options.name!r}"
        if job.alone:
            nothing += "; no picture was written"
        written = {} if output is None else {"output": str(output)}
        job.tell(source, picture, "found", lines or [nothing], objects=facts, **written)
        if job.alone and written:
            print(f"written   {output}")
    return job.code


def chat(options: argparse.Namespace) -> int:
    from minipali.variants import SYSTEM, chat_prompt, load, stream_text

    how, turns = drawing(options), []
    system = SYSTEM if options.system is None else options.system
    model, tokenizer = load(options.model)
    if options.system is not None and not tokenizer.chats:
        raise ValueError(
            f"--system is for a model that answers, and {options.model} goes on with text"
        )
    room = model.config.max_position_embeddings - options.max_tokens

    def reply(text: str) -> str:
        """What the model says to the newest turn, printed as it comes."""
        turns.append(("user", text))
        prompt = chat_prompt(turns, system) if tokenizer.chats else text
        while len(tokenizer.encode(prompt)) > room and len(turns) > 1:
            del turns[:2]
            note("the beginning of this talk is forgotten: it no longer fits")
            prompt = chat_prompt(turns, system)
        said = []
        try:
            for piece in stream_text(model, tokenizer, prompt, **how):
                said.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if options.question is not None:
                raise
        finally:
            print(flush=True)
        return "".join(said)

    if options.question is not None:
        reply(options.question)
        return 0
    asked = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(asked).strip()
        except EOFError:
            return 0
        if text:
            said = reply(text)
            turns.append(("assistant", said))
            if not tokenizer.chats:
                turns.clear()


def finetune(options: argparse.Namespace) -> int:
    import torch

    from minipali import finetuning
    from minipali.checkpoints import goes_on
    from minipali.dataset import read_data
    from minipali.lora import find_targets

    if options.model == "graft":
        raise ValueError("the graft is trained by `python -m minipali.graft train`, see its --help")
    if options.less_memory:
        give_back_memory()
    device = choose_device(options.device)
    model, processor = load_model(options.model, "cpu")
    data = read_data(options.data, processor, options.validation, options.seed)
    for fault in data.faults[:FAULTS]:
        print(fault, file=sys.stderr)
    if data.faults:
        more = len(data.faults) - FAULTS
        hidden = f" ({more} more are not shown)" if more > 0 else ""
        number = len(data.faults)
        return failed(f"{number} fault{'s' * (number > 1)} must be mended before training{hidden}")
    held, first = len(data.validation), os.environ.get("RANK", "0") == "0"  # else another tells
    if first:
        print(f"data      {len(data.training)} lines to learn from, {held} to measure on; no fault")
    if options.output is None and not options.check:
        raise ValueError("--output must say where what is learned goes")
    batch, targets = options.batch_size, options.targets.split(",")
    if not options.full:
        find_targets(model, targets)  # raises before anything is begun
    settings = finetuning.Settings(
        full=options.full,
        rank=options.rank,
        alpha=options.rank * 2 if options.alpha is None else options.alpha,
        targets=tuple(targets),
        steps=options.steps or -(-options.epochs * len(data.training) // batch),
        batch_size=batch,
        at_once=min(batch, options.at_once or batch),
        lr=options.lr or finetuning.rate(model, options.full),
        seed=options.seed,
        patience=options.patience,
        precision=options.precision,
        less_memory=options.less_memory,
        shard=options.shard,
    )
    if options.check:
        if first:
            print(f"memory    {needed_memory(model, processor, data, settings, device)}")
        return 0
    what = "all weights" if options.full else f"LoRA of rank {settings.rank}"
    if first:
        told = f"{what}, {settings.steps} steps of {batch}, rate {settings.lr:.2g}"
        print(f"training  {told}", flush=True)
    del model
    try:
        told = finetuning.finetune(options.model, data, options.output, settings, device)
    except KeyboardInterrupt:
        where = options.output / finetuning.TRAINING
        if first:
            print(f"minipali: stopped; the same command {goes_on(where)}", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        return failed(f"{error}: begin again in another folder with a lower --lr")
    except torch.OutOfMemoryError:
        return failed(
            "the training must fit into the memory of the device: lower --at-once, which changes"
            " nothing else, or give --less-memory"
        )
    if not first:
        return 0
    print(told)
    how = f"--model {options.output}" if options.full else f"--adapter {options.output}"
    base = "" if options.full or options.model == "small" else f" --model {options.model}"
    print(f"written   {options.output}; ask with{base} {how}")
    return 0


def give_back_memory() -> None:
    """Let glibc, where a Linux has it, return freed memory at once; for this whole process.

    By itself it keeps blocks of up to 32 MB for later. What is freed of one layer then lies between
    what the layer leaves behind, and the next layer finds no place in it: on 3B 2.8 GB in the end.
    To get memory anew each time costs about a quarter more time (measured with AVX2).
    """
    if platform.libc_ver()[0] == "glibc":
        import ctypes

        m_mmap_threshold = -3  # so malloc.h calls it
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**20)


def needed_memory(model, processor, data, settings, device: str) -> str:
    """What a step of this fine-tuning takes on each device, by the longest of the lines."""
    from minipali.memory import gigabytes, memory
    from minipali.narrow import is_slow

    lines = (*data.training, *data.validation)
    answer = max(len(processor.encode(one.suffix)) for one in lines) + 1  # and the end token
    text = max(len(processor.prompt_ids(one.prefix)) for one in lines)
    dtype = model.language_model.norm.weight.dtype
    found = memory(
        model.config,
        settings,
        dtype,
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        text=text - model.config.vision.num_patches + answer,
        answer=answer,
        wide=device == "cpu" and is_slow(dtype),
    )
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in found.items())
    return f"{gigabytes(sum(found.values()))} GB on each device for a step ({parts})"


def merge(options: argparse.Namespace) -> int:
    from minipali.adapters import load
    from minipali.lora import merge_lora
    from minipali.saving import save

    model, processor = load(options.model, adapter=options.adapter)
    merge_lora(model)
    save(model, processor, options.output)
    print(f"written   {options.output}: a whole model, ask it with --model {options.output}")
    return 0


def page(options: argparse.Namespace) -> int:
    output = options.output
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output must end in .html, found {output}")
    if not output.parent.is_dir():
        raise ValueError(f"--output must be in a folder that exists, found {output}: make it first")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output must be a file, found a folder, pipe or device: {output}")
    from minipali.masks import load_codec
    from minipali.page import make_page

    codec = None if options.codec is None else load_codec(options.codec)
    content = make_page(options.model, codec).encode()
    replace(output, content)
    print(f"written   {output}, {len(content) / 1e6:.1f} MB: open it in a browser")
    return 0


# --- where pictures are written ------------------------------------------------------------------


def output_files(output: Path | None, job: Job) -> dict[str, Path]:
    """A file to write for each source, checked before any work: one PNG, or a folder for several.

    Raises ValueError if a picture cannot or must not be written there.
    """
    from minipali.pictures import title

    if output is None:
        return {}
    if not job.several:
        [source] = job.sources
        check_output(output, source)
        return {source: output}
    if output.suffix.lower() == ".png" or (output.exists() and not output.is_dir()):
        raise ValueError(f"--output must be a folder where there are several pictures: {output}")
    source_of = {}
    for source in job.sources:
        file = output / f"{Path(title(source)).stem}.png"
        if file in source_of:
            both = f"{source_of[file]} and {source}"
            raise ValueError(f"{both} would both be written to {file}: rename one of them")
        source_of[file] = source
    if output.parent.is_dir():
        output.mkdir(exist_ok=True)
    for file, source in source_of.items():
        check_output(file, source)
    return {source: file for file, source in source_of.items()}


def check_output(output: Path, source: str) -> None:
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
    if os.path.exists(source) and output.exists() and output.samefile(source):
        raise ValueError(f"--output must not be the picture itself ({source}): name another")


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
