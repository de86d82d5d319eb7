"""How the shipped model is trained: its data, its two stages, its checkpoints, its command.

python -m minipali.recipe small            repeat the training of the shipped model
torchrun --nproc-per-node 2 -m minipali.recipe small       the same on two processes
"""

import argparse
import contextlib
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minipali import scenes
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
from minipali.config import PaliGemmaConfig, preset
from minipali.contrastive import Contrastive, TextTower
from minipali.evaluation import accuracies, zero_shot
from minipali.paligemma import PaliGemma
from minipali.tokens import IGNORE, Processor
from minipali.training import fit, initialise, optimizers
from minipali.vision import VisionTower

SMALL_TOKENIZER = Path(__file__).parent / "assets" / "small" / "tokenizer.model"
EVERY = 250  # steps from one checkpoint to the next
PATIENCE = timedelta(minutes=10)  # how long a process waits for another; measuring takes a while

# --- data ----------------------------------------------------------------------------------------

NAMES = [scenes.with_article(name) for name in scenes.OBJECTS]
COUNTS = ["one object", "two objects", "three objects"]
# What the contrastive stage can say about a picture.
SENTENCES = NAMES + COUNTS + [f"a {colour} background" for colour in scenes.BACKGROUNDS]


def sentence_labels(scene: scenes.Scene) -> np.ndarray:
    """(sentences,): +1 for each of SENTENCES that is true of the picture, else -1."""
    labels = -np.ones(len(SENTENCES), np.float32)
    for thing in scene.things:
        labels[scenes.OBJECTS.index(thing.name)] = 1
    labels[len(NAMES) + len(scene.things) - 1] = 1
    labels[SENTENCES.index(f"a {scene.background} background")] = 1
    return labels


def patch_labels(scene: scenes.Scene, side: int) -> np.ndarray:
    """(side ** 2, objects): +1 where an object's box covers a third of a patch or more, else -1."""
    labels = -np.ones((side, side, len(scenes.OBJECTS)), np.float32)
    edges = np.arange(side + 1) / side
    for thing in scene.things:
        y0, x0, y1, x1 = thing.box
        rows = np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0)
        columns = np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0)
        covered = rows.clip(0)[:, None] * columns.clip(0)[None, :] * side**2
        labels[covered > 1 / 3, scenes.OBJECTS.index(thing.name)] = 1
    return labels.reshape(side**2, -1)


def training_scenes(rng: np.random.Generator, number: int, strength: float, progress: float):
    """New scenes by the training artists; mostly single objects at first (a curriculum)."""
    single = max(0.3, 0.9 - 1.5 * progress)
    p = [single, 0.45 * (1 - single), 0.55 * (1 - single)]
    counts = 1 + rng.choice(3, size=number, p=p)
    return [
        scenes.compose(
            rng, scenes.TRAINING_ARTISTS, int(n), strength=strength * rng.random() ** 0.5
        )
        for n in counts
    ]


# Short answers and long ones go into separate batches, so that few places are padding.
SHORT = {"naming": 3, "background": 1, "places": 4, "counting": 2, "counting NAME": 3, "yes/no": 3}
LONG = {"detection": 3, "caption": 2}


def questions(rng, made: list[scenes.Scene], weights: dict[str, int], each: int):
    """`each` questions about every scene, drawn with these weights among those that make sense."""
    tasks, p = list(weights), np.array(list(weights.values())) / sum(weights.values())
    for scene in made:
        asked = 0
        while asked < each:
            question = scenes.ask(rng, scene, tasks[rng.choice(len(tasks), p=p)])
            if question is not None:
                asked += 1
                yield question


# --- the two stages ------------------------------------------------------------------------------

# The least of each. Without contrastive steps the second stage starts from a random tower.
LEAST = {
    "seed": 0, "contrastive_steps": 0, "contrastive_batch": 1, "generative_steps": 1,
    "generative_batch": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything, apart from the code, that the training of the small model depends on."""

    seed: int = 0
    contrastive_steps: int = 4000
    contrastive_batch: int = 96
    generative_steps: int = 6000
    generative_batch: int = 32  # pictures a step; each gets two short questions and a long one
    matrix_lr: float = 0.01
    other_lr: float = 3e-3
    tower_factor: float = 0.3  # on both rates, for the tower in the generative stage
    strength: float = 1.0  # of the augmentation

    def __post_init__(self):
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < 2**63:
                found = getattr(self, name)
                raise ValueError(f"{name} must be from {least} to 2**63 - 1, found {found}")


@dataclass(frozen=True)
class World:
    """The processes that train together: one, unless torchrun started several."""

    rank: int = 0
    size: int = 1


class ProcessLost(TrainingError):
    """Another process of this training has ended or does not answer."""


@contextlib.contextmanager
def world():
    """Join the processes that torchrun started, if it did. Raises ProcessLost where one fails."""
    if "WORLD_SIZE" not in os.environ:
        yield World()
        return
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
        yield World(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # who leaves early takes its connections from the others
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ProcessLost(
            "all processes of a training must run, and another one has ended or does not answer:"
            " see what it says; the same command goes on from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class ContrastiveStage:
    """Pictures against sentences, and patches against names, both with the sigmoid loss.

    A scene has several true sentences, which the sigmoid takes and the softmax could not. We know
    where each object lies and ask the same question of every patch; SigLIP had no such labels.
    """

    name = "contrastive"

    def __init__(self, recipe: Recipe, config: PaliGemmaConfig, processor: Processor, among: World):
        if len(SENTENCES) % among.size or recipe.contrastive_batch % among.size:
            raise ValueError(
                f"{len(SENTENCES)} sentences and a batch of {recipe.contrastive_batch} must divide"
                f" evenly among the processes, found {among.size}"
            )
        self.recipe, self.among, self.steps = recipe, among, recipe.contrastive_steps
        self.gentle = 1.0
        self.side = config.vision.image_size // config.vision.patch_size
        text = TextTower(config.text.vocab_size, width=96, heads=4, layers=1, max_length=16)
        self.module = Contrastive(
            VisionTower(config.vision), text, start_bias=-math.log(len(SENTENCES))
        )
        initialise(self.module)
        # All are padded to one length, because the text tower sees the padding.
        ids = [processor.encode(sentence) for sentence in SENTENCES]
        padded = processor.pad([[] for _ in ids], ids, side="right")
        tokens = padded["input_ids"], padded["attention_mask"]
        share = len(SENTENCES) // among.size
        own = slice(among.rank * share, (among.rank + 1) * share)
        self.sentences = tuple(part[own] for part in tokens)
        self.names = tuple(part[: len(NAMES)] for part in tokens)

    def batch(self, rng: np.random.Generator, progress: float) -> tuple:
        number = self.recipe.contrastive_batch // self.among.size
        made = training_scenes(rng, number, self.recipe.strength, progress)
        return (
            scenes.pixel_values(made),
            self.sentences,
            torch.from_numpy(np.stack([sentence_labels(scene) for scene in made])),
            self.names,
            torch.from_numpy(np.stack([patch_labels(scene, self.side) for scene in made])),
        )


class Generative(nn.Module):
    """PaliGemma and its loss on several questions a picture; the tower sees each picture once."""

    def __init__(self, model: PaliGemma):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, groups: list[dict[str, Tensor]]) -> Tensor:
        """pixels: (b, c, y, x); each group: a padded batch of a multiple of b rows -> mean loss."""
        features = self.model.image_features(pixels)
        losses = []
        for group in groups:
            labels = group.pop("labels")
            each = len(labels) // len(pixels)
            x = self.model.hidden_states(
                **group, image_features=features.repeat_interleave(each, dim=0)
            )
            wanted = labels[:, 1:] != IGNORE  # logits only where there is a loss
            logits = self.model.language_model.logits(x[:, :-1][wanted])
            losses.append(F.cross_entropy(logits, labels[:, 1:][wanted]))
        return torch.stack(losses).mean()


class GenerativeStage:
    """The whole model on questions about scenes, from the tower that the first stage made."""

    name = "generative"

    def __init__(self, recipe: Recipe, config: PaliGemmaConfig, processor: Processor, among: World):
        if recipe.generative_batch % among.size:
            raise ValueError(
                f"a batch of {recipe.generative_batch} must divide evenly among the processes,"
                f" found {among.size}"
            )
        self.recipe, self.among, self.steps = recipe, among, recipe.generative_steps
        self.gentle = recipe.tower_factor if recipe.contrastive_steps else 1.0
        self.processor = processor
        self.model = PaliGemma(config)
        initialise(self.model)
        self.module = Generative(self.model)

    def batch(self, rng: np.random.Generator, progress: float) -> tuple:
        number = self.recipe.generative_batch // self.among.size
        made = training_scenes(rng, number, self.recipe.strength, progress)
        groups = []
        for weights, each in ((SHORT, 2), (LONG, 1)):
            asked = list(questions(rng, made, weights, each))
            groups.append(self.rows(asked))
        return scenes.pixel_values(made), groups

    def rows(self, asked: list[scenes.Question]) -> dict[str, Tensor]:
        prompts = [self.processor.prompt_ids(question.prompt) for question in asked]
        eos = [self.processor.config.eos_token_id]
        answers = [self.processor.encode(question.answer) + eos for question in asked]
        return self.processor.pad(prompts, answers, side="right")


# --- a run ---------------------------------------------------------------------------------------


def run(stage, folder: Path, every: int = EVERY, measure=None) -> None:
    """Train a stage to its end, from its newest checkpoint in `folder` if there is one.

    Every `every` steps it writes a line of `log.jsonl` and `<stage>.safetensors` (checkpoint). The
    scenes of a step depend on seed, stage, step and rank alone, so a resumed run is the run that it
    would have been. Raises TrainingError where the checkpoint is damaged or of another recipe.
    """
    recipe, among = stage.recipe, stage.among
    makers = optimizers(stage.module, recipe.matrix_lr, recipe.other_lr, stage.gentle)
    checkpoint, log = folder / f"{stage.name}.safetensors", folder / "log.jsonl"
    start, seconds = resume(stage, makers, checkpoint) if checkpoint.exists() else (0, 0.0)
    if among.rank == 0:
        cut_log(log, stage.name, start)
    trained = DistributedDataParallel(stage.module) if among.size > 1 else stage.module
    began, recent = time.monotonic() - seconds, []

    def step_loss(step: int) -> Tensor:
        rng = np.random.default_rng([recipe.seed, stage.name == "generative", step, among.rank])
        return trained(*stage.batch(rng, step / stage.steps))

    def after(done: int, loss: float) -> None:
        bar.update()
        recent.append(loss)
        if among.rank > 0 or (done % every and done != stage.steps):
            return
        line = {"stage": stage.name, "step": done, "seconds": round(time.monotonic() - began, 1)}
        line["loss"] = round(float(np.mean(recent)), 4)
        recent.clear()
        if measure is not None:
            line |= measure(stage, done)
        bar.set_postfix(loss=line["loss"])
        # The line first: after a kill between the two, `cut_log` takes it away, and it comes again.
        add_line(log, line)
        save_checkpoint(checkpoint, state(stage, makers, done, line["seconds"]))

    quiet = None if among.rank == 0 else True  # None: quiet where no terminal reads it
    with tqdm(
        initial=start, total=stage.steps, desc=stage.name, mininterval=2, disable=quiet
    ) as bar:
        warmup = min(100, stage.steps // 10 + 1)
        fit(stage.module, step_loss, stage.steps, makers, warmup, start=start, after=after)


def belongs_to(stage) -> dict:
    """What a checkpoint must agree in: the recipe, and how many processes draw its scenes."""
    return asdict(stage.recipe) | {"processes": stage.among.size}


def state(stage, makers: list[torch.optim.Optimizer], step: int, seconds: float) -> dict:
    return {
        "recipe": belongs_to(stage),
        "step": step,
        "seconds": seconds,
        "module": stage.module.state_dict(),
        "optimizers": [maker.state_dict() for maker in makers],
    }


def resume(stage, makers: list[torch.optim.Optimizer], file: Path) -> tuple[int, float]:
    """Put what `state` held into stage and optimizers; returns its step and its seconds."""
    saved = load_checkpoint(file)
    with reading(file):
        found, wanted = saved["recipe"], belongs_to(stage)
        different = [
            f"{name} {found[name]}, now {value}"
            for name, value in wanted.items()
            if found[name] != value
        ]
        if different:
            raise TrainingError(
                f"{file} belongs to another recipe ({'; '.join(different)}): repeat the command"
                " that began it, or choose another --folder"
            )
        stage.module.load_state_dict(saved["module"])
        for maker, own in zip(makers, saved["optimizers"], strict=True):
            maker.load_state_dict(own)
        return saved["step"], saved["seconds"]


def measure(stage, step: int) -> dict[str, float]:
    """What the log says beside the loss: training artists and the validation artist."""
    last = step == stage.steps
    groups = {"training": scenes.TRAINING_ARTISTS, "validation": scenes.VALIDATION_ARTIST}
    if stage.name == "contrastive":
        return {
            f"{name} zero-shot": round(zero_shot(stage.module, stage.names, artists), 4)
            for name, artists in groups.items()
        }
    if step % 500 and not last:
        return {}
    stage.model.eval()
    found = {
        name: accuracies(stage.model, stage.processor, artists, each=100)
        for name, artists in groups.items()
    }
    stage.model.train()
    return {
        f"{name} {task}": round(value, 3)
        for name, by_task in found.items()
        for task, value in by_task.items()
    }


def train_small(folder: Path, recipe: Recipe, tokenizer_file: Path = SMALL_TOKENIZER) -> PaliGemma:
    """Both stages, each continued from its checkpoint in `folder` if there is one.

    Without contrastive steps the second stage starts from a random tower. Writes `model/` (a folder
    that `minipali.load` opens), `log.jsonl` and `curve.png`. Raises TrainingError where it cannot.
    """
    from minipali.figures.training import curve
    from minipali.saving import save

    with world() as among, only_run_in(folder) if among.rank == 0 else contextlib.nullcontext():
        torch.manual_seed(recipe.seed)
        processor = Processor(tokenizer_file, preset("small"))
        first = ContrastiveStage(recipe, processor.config, processor, among)
        second = GenerativeStage(recipe, processor.config, processor, among)
        if recipe.contrastive_steps:
            run(first, folder, measure=measure)
            tower = first.module.vision_tower.state_dict()
            second.model.vision_tower.load_state_dict(tower)
        run(second, folder, measure=measure)
        if among.rank == 0:
            save(second.model.eval(), processor, folder / "model")
            figure = curve(read_log(folder / "log.jsonl"))
            figure.savefig(folder / "curve.png", dpi=100, bbox_inches="tight")
    return second.model


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minipali.recipe",
        description=f"Train the small model that comes with minipali. Every {EVERY} steps it writes"
        " a checkpoint and a line of log.jsonl. The same command goes on with a training that was"
        " stopped.",
    )
    parser.add_argument("what", choices=["small"], help="which model")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/small"), help="default runs/small"
    )
    for name in ("seed", "contrastive_steps", "generative_steps"):
        default = getattr(Recipe, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}"
        )
    given = vars(parser.parse_args())
    given.pop("what")
    folder, rank = given.pop("folder"), int(os.environ.get("RANK", 0))
    try:
        train_small(folder, Recipe(**given))
    except ProcessLost as error:
        stop(2, f"error: {error}" if rank == 0 else None)  # once is enough
    except (ValueError, ArithmeticError, OSError) as error:
        stop(2, f"error: {error}" if rank == 0 else f"error in process {rank}: {error}")
    except KeyboardInterrupt:
        told = f"stopped; the same command goes on from the last checkpoint in {folder}"
        stop(130, told if rank == 0 else None)
    if rank == 0:
        print(f"The model is in {folder / 'model'}, the curve in {folder / 'curve.png'}.")
        print(f"Measure it: python -m minipali.evaluation --model {folder / 'model'}")


def stop(code: int, sentence: str | None) -> None:
    if sentence:
        print(f"minipali: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
