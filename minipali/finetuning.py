"""Fine-tuning on people's own pictures: LoRA beside a frozen model, or the whole of it.

What a run needs to go on lies in `training/` of its folder: log, curve, checkpoint. Data and order
of a step depend on the seed and the step alone, so a run that was killed ends as it would have.
"""

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from minipali import narrow
from minipali.adapters import fingerprint, load, save_adapter
from minipali.checkpoints import (
    TrainingError,
    add_line,
    cut_log,
    load_checkpoint,
    only_run_in,
    read_log,
    reading,
    save_checkpoint,
)
from minipali.dataset import Data, Example
from minipali.evaluation import interval
from minipali.generation import token_steps
from minipali.locations import read_boxes
from minipali.lora import add_lora
from minipali.metrics import average_precision, bootstrap, exact_match, vqa_accuracy
from minipali.paligemma import PaliGemma
from minipali.recipe import World, world
from minipali.saving import TRAINING, is_unused, save
from minipali.tokens import IGNORE, PictureError, Processor, open_picture, to_pixels
from minipali.training import fit, schedule

ALONE = World()
STAGE = "finetune"
MEASURED = 200  # validation examples that are looked at, at most
PIXELS = 2**28  # bytes of pictures that are kept in memory
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Settings:
    """What a run depends on, beside model and data.

    batch_size: examples a step; at_once: how many of them go through the model together; lr: the
    highest rate, by default as `rate` says; patience: measurements without a better validation loss
    after which the run ends; less_memory: compute activations twice; shard: divide the weights
    among the processes, where one device cannot hold them.
    """

    full: bool = False
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    steps: int = 200
    batch_size: int = 8
    at_once: int = 8
    lr: float | None = None
    seed: int = 0
    patience: int = 3
    precision: str = "auto"
    less_memory: bool = False
    shard: bool = False


def rate(model: PaliGemma, full: bool) -> float:
    """A learning rate for AdamW: it goes with 1 / width, and LoRA takes a larger one.

    At the width of PaliGemma 3B, 2048, these are 2e-5 and 2.4e-4, near what is in use for it; at
    the small model's, 128, both did well.
    Source: Yang et al. 2022, "Tensor Programs V", on the width.
    """
    return (0.04 if full else 0.5) / model.config.text.hidden_size


class FineTuned(nn.Module):
    """A model and the loss on its suffixes, summed over the tokens, not averaged."""

    def __init__(self, model: PaliGemma):
        super().__init__()
        self.model = model
        self.narrow = False  # compute in bfloat16 where torch thinks that it is safe

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch = dict(batch)
        labels = batch.pop("labels")[:, 1:]
        kind = labels.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.narrow):
            x = self.model.hidden_states(**batch)[:, :-1]
            wanted = labels != IGNORE  # logits only where there is a loss
            logits = self.model.language_model.logits(x[wanted])
        return F.cross_entropy(logits.float(), labels[wanted], reduction="sum")


# --- batches -------------------------------------------------------------------------------------


class Batches:
    """Examples become tensors."""

    def __init__(self, processor: Processor, device: torch.device):
        self.processor, self.device = processor, device
        side = processor.config.vision.image_size
        self.pixels = functools.lru_cache(maxsize=PIXELS // (12 * side**2))(self._pixels)

    def _pixels(self, image: Path) -> Tensor:
        try:
            return to_pixels(open_picture(image), self.processor.config.vision.image_size)
        except PictureError as error:
            raise TrainingError(
                f"all pictures must stay until the end, and one that was there is not: {error}; put"
                " it back, and the same command goes on from the last checkpoint, if there is one"
            ) from error

    def suffix(self, example: Example) -> list[int]:
        return self.processor.encode(example.suffix) + [self.processor.config.eos_token_id]

    def batch(self, examples: list[Example], asked: bool = False) -> dict[str, Tensor]:
        """asked: without the suffixes, for the model to answer."""
        prefixes = [self.processor.prompt_ids(one.prefix) for one in examples]
        suffixes = [[] if asked else self.suffix(one) for one in examples]
        batch = self.processor.pad(prefixes, suffixes, "left" if asked else "right")
        batch["pixel_values"] = torch.stack([self.pixels(one.image) for one in examples])
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def losses(
        self, module: nn.Module, examples: list[Example], at_once: int, among: World = ALONE
    ) -> Iterator[Tensor]:
        """The mean loss of all suffix tokens as its summands, each of `at_once` examples.

        Each token counts the same, whichever part and process it is in. Of several processes each
        takes its share; their gradients are averaged, so the summands are so many times larger.
        """
        tokens = sum(len(self.suffix(one)) for one in examples) / among.size
        examples = examples[among.rank :: among.size]
        for start in range(0, len(examples), at_once):
            yield module(self.batch(examples[start : start + at_once])) / tokens


def chosen(examples: list[Example], step: int, settings: Settings) -> list[Example]:
    """The examples of a step: epoch after epoch, each in an order of its own."""
    number = len(examples)
    places = range(step * settings.batch_size, (step + 1) * settings.batch_size)
    orders = {
        epoch: np.random.default_rng([settings.seed, 0, epoch]).permutation(number)
        for epoch in {place // number for place in places}
    }
    return [examples[orders[place // number][place % number]] for place in places]


# --- measuring -----------------------------------------------------------------------------------


@torch.no_grad()
def validation_loss(module: FineTuned, batches: Batches, examples: list[Example], size: int):
    """Mean loss of all suffix tokens."""
    module.eval()
    return float(sum(loss.item() for loss in batches.losses(module, examples, size)))


def answers(model: PaliGemma, batches: Batches, examples: list[Example], size: int) -> list[str]:
    """Greedy answers."""
    model.eval()
    told = []
    starts = range(0, len(examples), size)
    for start in tqdm(starts, desc="answering", disable=None, leave=False):
        part = examples[start : start + size]
        longest = max(len(batches.suffix(one)) for one in part)
        batch = batches.batch(part, asked=True)
        room = model.config.text.max_position_embeddings - batch["input_ids"].shape[1]
        steps = token_steps(model, batch, max_new_tokens=max(1, min(2 * longest + 8, room)))
        told += [batches.processor.decode(row) for row in torch.stack(list(steps), 1).tolist()]
    return told


def measures(examples: list[Example], told: list[str]) -> dict[str, list[float]]:
    """Each measure that makes sense here, with its 95 % interval: [value, low, high]."""
    number = len(examples)
    exact = float(np.mean([exact_match(t, e.suffix) for t, e in zip(told, examples, strict=True)]))
    found = {"exact match": [exact, *interval(exact, number)]}
    several = [i for i, one in enumerate(examples) if len(one.answers) > 1]
    if several:
        scores = np.array([vqa_accuracy(told[i], examples[i].answers) for i in several])
        spread = bootstrap(lambda drawn: float(scores[drawn].mean()), len(scores))
        found["VQA accuracy"] = [float(scores.mean()), *spread]
    true = [read_boxes(one.suffix) for one in examples]
    boxes = [i for i, one in enumerate(true) if one]
    if boxes:
        said, true = [read_boxes(told[i]) for i in boxes], [true[i] for i in boxes]

        def precision(drawn) -> float:
            return average_precision([said[i] for i in drawn], [true[i] for i in drawn])

        spread = bootstrap(precision, len(boxes), rounds=200)
        found["box mAP"] = [precision(range(len(boxes))), *spread]
    return found


def table(before: dict[str, list[float]], after: dict[str, list[float]], number: int) -> str:
    """Lines of before and after, in percent with 95 % intervals."""
    lines = [f"measured on {number} examples that were not learned from, in % (95 % interval):"]
    for name, old in before.items():
        cells = [
            f"{100 * value:5.1f} ({100 * low:.0f} to {100 * high:.0f})"
            for value, low, high in (old, after[name])
        ]
        lines.append(f"  {name:13} before {cells[0]:20} after {cells[1]}")
    return "\n".join(lines)


# --- a run ---------------------------------------------------------------------------------------


class _Enough(Exception):
    """The validation loss has not become better for long enough."""


def narrow_gains(module: FineTuned, batch: dict[str, Tensor]) -> bool:
    """Whether a step in bfloat16 is clearly faster here than one in float32, by measurement."""
    if batch["input_ids"].device.type == "cpu" and narrow.is_slow(torch.bfloat16):
        return False
    if next(module.model.vision_tower.parameters()).dtype != torch.float32:
        return False  # the model brings its own way, see `minipali.narrow`
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3):
        for module.narrow in (False, True):
            began = time.perf_counter()
            module(batch).backward()
            if batch["input_ids"].device.type == "cuda":
                torch.cuda.synchronize()
            took[module.narrow].append(time.perf_counter() - began)
            module.zero_grad()
    module.narrow = False
    return min(took[True]) < 0.9 * min(took[False])


def keep_less(model: PaliGemma) -> None:
    """Activation checkpointing: each layer keeps its input alone, and is computed again later."""
    for layer in (*model.vision_tower.layers, *model.language_model.layers):
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def divide(module: FineTuned) -> None:
    """FSDP2: each process keeps its part of every weight, and has one layer whole at a time."""
    from torch.distributed.fsdp import fully_shard  # here, because it takes seconds

    model = module.model
    for layer in (*model.vision_tower.layers, *model.language_model.layers):
        fully_shard(layer)
    fully_shard(module)


def gathered(value):
    """A state with whole tensors in place of divided ones. All processes must call it."""
    if isinstance(value, dict):
        return {key: gathered(inner) for key, inner in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, divided as `like` is."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def finetune(
    source: str,
    data: Data,
    output: Path,
    settings: Settings,
    device: str = "cpu",
) -> str:
    """Train, from the checkpoint in `output` if there is one, and write what was learned.

    output: gets an adapter (with `settings.full` a whole model), and `training/` with log.jsonl,
    curve.png and checkpoint.safetensors. What is kept is the state with the least validation loss,
    where there are examples for it. Under torchrun all processes train together, each on its share
    of every batch. Returns what to tell about before and after. Raises TrainingError, WeightsError
    or FloatingPointError, in one sentence.
    """
    from minipali.figures.training import loss_curve

    whole = (output / "config.json").exists()
    usable = whole or is_unused(output) if settings.full else not whole
    if not usable or (whole and os.path.exists(source) and output.samefile(source)):
        raise TrainingError(
            f"{output} must be new, or the folder of"
            f" {'another whole model' if settings.full else 'an adapter'}, found another thing in"
            " it: choose another --output"
        )
    folder = output / TRAINING
    with world() as among, only_run_in(folder) if among.rank == 0 else contextlib.nullcontext():
        if settings.batch_size % among.size:
            raise TrainingError(
                f"a batch of {settings.batch_size} must divide evenly among the processes, found"
                f" {among.size}"
            )
        if settings.shard and among.size == 1:
            raise TrainingError(
                "weights are divided among processes, and there is one: start several with torchrun"
            )
        if device == "cuda" and among.size > 1:
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dtype = "float32" if settings.full else None
        torch.manual_seed(settings.seed)
        # What is divided comes from the files part by part.
        model, processor = load(source, dtype, "cpu" if settings.shard else device)
        run = Run(model, processor, data, settings, folder, among)
        run.go()
        if settings.shard:
            learned = gathered(dict(run.learned))
        if among.rank > 0:
            return ""
        if settings.shard:  # once more as one, to be written
            model, _ = load(source, dtype, "cpu")
            run.prepare(model)
            run.put(learned)
        model = run.model.eval()
        for layer in (*model.vision_tower.layers, *model.language_model.layers):
            layer.__dict__.pop("forward", None)
        if settings.full:
            save(model, processor, output)
        else:
            save_adapter(model, output, source)
        loss_curve(read_log(run.log)).savefig(folder / "curve.png", dpi=100, bbox_inches="tight")
        if not run.asked:
            return "nothing was asked: before and after are the validation losses of the log"
        return table(run.before, run.measure(), len(run.asked))


class Run:
    """One fine-tuning: what it consists of, and its state."""

    def __init__(
        self,
        model: PaliGemma,
        processor: Processor,
        data: Data,
        settings: Settings,
        folder: Path,
        among: World,
    ):
        self.data, self.settings, self.model, self.among = data, settings, model, among
        self.file, self.log = folder / "checkpoint.safetensors", folder / "log.jsonl"
        self.base = fingerprint(model)
        self.prepare(model)
        if settings.less_memory:
            keep_less(model)
        self.module = FineTuned(model)
        if settings.shard:
            divide(self.module)
            self.learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.lr = settings.lr or rate(model, settings.full)
        self.optimizer = torch.optim.AdamW(
            self.learned.values(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        device = next(model.parameters()).device
        self.batches = Batches(processor, device)
        self.shown = data.validation[:MEASURED]
        self.asked = [] if settings.shard else self.shown  # a divided model is not asked
        self.best: dict | None = None  # loss, step, weights
        self.waited, self.step, self.seconds = 0, 0, 0.0
        self.quiet = None if among.rank == 0 else True  # None: quiet where no terminal reads it
        self.before: dict[str, list[float]] = {}
        if self.file.exists():
            self.resume()
        else:
            self.before = self.measure()
            self.module.narrow = self.is_narrow()

    def prepare(self, model: PaliGemma) -> None:
        """Make a model as it comes from its files one that learns."""
        settings, self.model = self.settings, model
        if settings.full:
            for p in model.parameters():  # which may lie in the model's files
                p.data = p.data.clone()
        else:
            add_lora(model, list(settings.targets), settings.rank, settings.alpha)
        self.learned = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def is_narrow(self) -> bool:
        if self.settings.shard:
            return False
        if self.settings.precision != "auto":
            return self.settings.precision == "bfloat16"
        self.module.train()
        found = [narrow_gains(self.module, self.batches.batch(self.data.training[:1]))]
        if self.among.size > 1:  # all as the first has measured
            dist.broadcast_object_list(found)
        return found[0]

    def measure(self) -> dict[str, list[float]]:
        told = answers(self.model, self.batches, self.asked, self.settings.at_once)
        return measures(self.asked, told) if self.asked else {}

    @property
    def every(self) -> int:
        """Steps from one measurement and checkpoint to the next."""
        return max(1, min(100, self.settings.steps // 10))

    def go(self) -> None:
        settings, steps = self.settings, self.settings.steps
        if self.among.rank == 0:
            cut_log(self.log, STAGE, self.step)
        trained = self.module
        if self.among.size > 1 and not settings.shard:
            trained = DistributedDataParallel(self.module)
        began, recent = time.monotonic() - self.seconds, []
        warmup = min(100, steps // 10 + 1)

        def step_loss(step: int) -> Iterator[Tensor]:
            examples = chosen(self.data.training, step, settings)
            return self.batches.losses(trained, examples, settings.at_once, self.among)

        def after(done: int, loss: float) -> None:
            bar.update()
            recent.append(loss)
            if done % self.every and done != steps:
                return
            self.step, self.seconds = done, round(time.monotonic() - began, 1)
            line = {"stage": STAGE, "step": done, "seconds": self.seconds}
            line["loss"] = round(self.of_all(float(np.mean(recent))), 5)
            line["learning rate"] = self.lr * schedule(done - 1, steps, warmup)
            recent.clear()
            if self.data.validation:
                line["validation loss"] = self.look()
            bar.set_postfix({k: v for k, v in line.items() if "loss" in k})
            # The line first: after a kill between the two, `cut_log` takes it away again.
            state = self.state()
            if self.among.rank == 0:
                add_line(self.log, line)
                save_checkpoint(self.file, state)
            if self.waited >= settings.patience:
                raise _Enough

        with tqdm(initial=self.step, total=steps, desc="training", disable=self.quiet) as bar:
            start = steps if self.waited >= settings.patience else self.step
            with contextlib.suppress(_Enough):
                fit(self.module, step_loss, steps, [self.optimizer], warmup, start=start,
                    after=after)  # fmt: skip
        if self.best is not None:
            self.put(self.best["weights"])

    def of_all(self, loss: float) -> float:
        """The mean over all processes."""
        shared = torch.tensor(loss, dtype=torch.float64)
        if self.among.size > 1:
            dist.all_reduce(shared)
        return shared.item() / self.among.size

    def look(self) -> float:
        """Measure the validation loss, and keep the weights if it is the best so far.

        Every process measures for itself: they have the same weights, and so come to the same end.
        """
        examples, size = self.shown, self.settings.at_once
        loss = round(validation_loss(self.module, self.batches, examples, size), 5)
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            weights = {n: gathered(p.detach()).clone() for n, p in self.learned.items()}
            self.best, self.waited = {"loss": loss, "step": self.step, "weights": weights}, 0
        else:
            self.waited += 1
        return loss

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor]) -> None:
        for name, p in self.learned.items():
            p.copy_(divided(weights[name], p))

    def belongs_to(self) -> dict:
        """What a checkpoint must agree in."""
        settings = asdict(self.settings) | {"targets": list(self.settings.targets)}
        return settings | {
            "data": self.data.digest(),
            "base": self.base,
            "processes": self.among.size,
        }

    def state(self) -> dict:
        return {
            "settings": self.belongs_to(),
            "step": self.step,
            "seconds": self.seconds,
            "narrow": self.module.narrow,
            "before": self.before,
            "best": self.best,
            "waited": self.waited,
            "weights": gathered(dict(self.learned)),
            "optimizer": gathered(self.optimizer.state_dict()),
        }

    def resume(self) -> None:
        saved = load_checkpoint(self.file)
        with reading(self.file):
            found = saved["settings"]
            different = [
                f"{name} is another one" if name in ("data", "base")
                else f"{name} {found[name]}, now {value}"
                for name, value in self.belongs_to().items()
                if found[name] != value
            ]  # fmt: skip
            if different:
                raise TrainingError(
                    f"{self.file} belongs to another run ({'; '.join(different)}): repeat the"
                    " command that began it, or choose another folder"
                )
            self.put(saved["weights"])
            for p, own in zip(
                self.learned.values(), saved["optimizer"]["state"].values(), strict=True
            ):
                own |= {key: divided(t, p) for key, t in own.items() if t.ndim == p.ndim}
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.best, self.waited, self.before = saved["best"], saved["waited"], saved["before"]
            self.module.narrow = saved["narrow"]
