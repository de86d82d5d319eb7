"""Lesson 17. How the shipped model is trained, and a model of your own: data, stages, command.

python -m minipali.recipe small            repeat the training of the shipped model
python -m minipali.recipe mine             train one of your own, with what you wrote in exercises/
torchrun --nproc-per-node 2 -m minipali.recipe mine        the same on two processes
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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
    goes_on,
    load_checkpoint,
    only_run_in,
    read_log,
    reading,
    save_checkpoint,
)
from minipali.config import PaliGemmaConfig, preset
from minipali.contrastive import Contrastive, TextTower, siglip_loss
from minipali.evaluation import accuracies, answers, by_task, evaluation_set, zero_shot
from minipali.paligemma import PaliGemma
from minipali.swap import pieces_of, put
from minipali.tokens import IGNORE, Processor, pad_rows
from minipali.training import fit, initialise, optimizers, row_labels, schedule, suffix_loss
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


def training_scenes(
    rng: np.random.Generator,
    number: int,
    strength: float,
    progress: float,
    artists: dict = scenes.TRAINING_ARTISTS,
):
    """New scenes by the training artists; mostly single objects at first (a curriculum)."""
    single = max(0.3, 0.9 - 1.5 * progress)
    p = [single, 0.45 * (1 - single), 0.55 * (1 - single)]
    counts = 1 + rng.choice(3, size=number, p=p)
    return [
        scenes.compose(rng, artists, int(n), strength=strength * rng.random() ** 0.5)
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
            " see what it says; the same command goes on from the last checkpoint, if there is one"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def new_towers(kind: type[Contrastive], config: PaliGemmaConfig, sentences: int) -> Contrastive:
    """A random vision tower and a random text tower, for so many sentences at once."""
    text = TextTower(config.text.vocab_size, width=96, heads=4, layers=1, max_length=16)
    module = kind(VisionTower(config.vision), text, start_bias=-math.log(sentences))
    initialise(module)
    return module


def padded(processor: Processor, sentences: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, (j, t) each, of one length, because the text tower sees the padding."""
    ids = [processor.encode(sentence) for sentence in sentences]
    rows = processor.pad([[] for _ in ids], ids, side="right")
    return rows["input_ids"], rows["attention_mask"]


class ContrastiveStage:
    """Pictures against sentences, and patches against names, both with the sigmoid loss.

    A scene has several true sentences, which the sigmoid takes and the softmax could not. We know
    where each object lies and ask the same question of every patch; SigLIP had no such labels.
    """

    name = "contrastive"
    loop = None  # in place of `fit`

    def __init__(self, recipe: Recipe, config: PaliGemmaConfig, processor: Processor, among: World):
        if len(SENTENCES) % among.size or recipe.contrastive_batch % among.size:
            raise ValueError(
                f"{len(SENTENCES)} sentences and a batch of {recipe.contrastive_batch} must divide"
                f" evenly among the processes, found {among.size}"
            )
        self.recipe, self.among, self.steps = recipe, among, recipe.contrastive_steps
        self.gentle = 1.0
        self.side = config.vision.image_size // config.vision.patch_size
        self.module = new_towers(Contrastive, config, len(SENTENCES))
        tokens = padded(processor, SENTENCES)
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
    loop = None  # in place of `fit`

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


# --- a model of your own -------------------------------------------------------------------------

# Smaller than the shipped one, and no boxes: what two cores learn in a quarter of an hour.
SMALL = preset("small")
MY_SIZES = replace(
    SMALL,
    vision=replace(
        SMALL.vision, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4,
    ),
    text=replace(SMALL.text, num_hidden_layers=3),
)  # fmt: skip
MY_TASKS = {"naming": 3, "background": 1, "places": 4, "counting": 1, "yes/no": 2, "caption": 3}
GROUNDS = [f"a {colour} background" for colour in scenes.BACKGROUNDS]
ROUNDS = 12  # how often a step asks for a patch of each name and of each background
CHUNK = 10  # steps that a learner's loop takes at a time


class Together:
    """Several optimizers as one, which a learner's loop can use; it keeps to the schedule."""

    def __init__(self, makers: list[torch.optim.Optimizer], steps: int, warmup: int, done: int):
        self.makers, self.steps, self.warmup, self.done = makers, steps, warmup, done
        self.param_groups = [group for maker in makers for group in maker.param_groups]
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        for maker in self.makers:
            maker.zero_grad(set_to_none)

    def step(self) -> None:
        factor = schedule(self.done, self.steps, self.warmup)
        for group in self.param_groups:
            group["lr"] = group["initial_lr"] * factor
        for maker in self.makers:
            maker.step()
        self.done += 1


def train(module, optimizer, batches, held_out, loss, epochs: int, max_norm: float):
    """The loop of exercise 13, for those who have not written it: `fit`, then a measurement."""
    losses, measured = [], []
    for _ in range(epochs):

        def step_loss(step: int) -> Tensor:
            x, y = batches[step]
            return loss(module(x), y)

        losses += fit(module, step_loss, len(batches), [optimizer], 0, 0, max_norm)
        module.eval()
        with torch.no_grad():
            measured.append(loss(module(held_out[0]), held_out[1]).item())
    return torch.tensor(losses), torch.tensor(measured)


def own_loop(
    stage,
    module: nn.Module,
    makers: list[torch.optim.Optimizer],
    start: int = 0,
    after: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train with the stage's own loop, some steps at a time; returns the losses, as `fit` does.

    After each part `stage.watched` is the held-out loss.
    """
    together, all_losses = Together(makers, stage.steps, warmup_of(stage), start), []
    for first in range(start, stage.steps, CHUNK):
        steps = range(first, min(first + CHUNK, stage.steps))
        batches = [stage.batch(drawn_for(stage, step), step / stage.steps) for step in steps]
        losses, watched = stage.loop(module, together, batches, stage.held_out, stage.loss, 1, 1.0)
        stage.watched = float(watched[-1])
        for step, loss in zip(steps, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} in step {step + 1} of {stage.steps}")
            all_losses.append(loss)
            if after is not None:
                after(step + 1, loss)
    return all_losses


@dataclass(frozen=True)
class Written:
    """What a learner has written: pieces of the model and of the processor, and what trains them.

    Those that are missing are the package's.
    """

    model: dict[str, Callable] = field(default_factory=dict)
    processor: dict[str, Callable] = field(default_factory=dict)
    tools: dict[str, Callable] = field(default_factory=dict)

    def tool(self, name: str) -> Callable:
        theirs = {
            "siglip_loss": siglip_loss, "row_labels": row_labels, "suffix_loss": suffix_loss,
            "train": train, "patch_targets": patch_targets,
        }  # fmt: skip
        return self.tools.get(name, theirs[name])


def written_in(exercises: str | Path, last: int = 13) -> Written:
    """What passes its check in the exercises 01 to `last`, and `patch_targets`, in a folder."""
    from minipali.progress import my_functions, my_pieces

    with torch.device("meta"):
        empty = PaliGemma(MY_SIZES)
    processor = Processor(SMALL_TOKENIZER, MY_SIZES)
    tools = ("siglip_loss", "row_labels", "suffix_loss", "train")
    return Written(
        my_pieces(empty, exercises, last=last),
        my_pieces(processor, exercises, last=last),
        my_functions(tools, exercises, last) | my_functions(("patch_targets",), exercises, 17),
    )


def fitting(module: nn.Module, pieces: dict[str, Callable], x, y, loss: Callable) -> dict:
    """Those of the pieces through which the same gradients reach all weights.

    A piece may be right and still cut the gradient off: with .item(), .detach() or torch.no_grad.
    """

    def gradients(one: nn.Module) -> list[Tensor]:
        one.zero_grad()
        loss(one(x), y).backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in one.parameters()]

    def agrees(some: dict[str, Callable]) -> bool:
        try:
            found = gradients(put(module, **some))
        except Exception:
            return False
        pairs = zip(found, expected, strict=True)
        return all((a - b).norm() <= 1e-3 * b.norm() + 1e-6 for a, b in pairs)

    inside = {name: one for name, one in pieces.items() if name in pieces_of(module)}
    expected = gradients(module)
    if agrees(inside):
        return inside
    return {name: one for name, one in inside.items() if agrees({name: one})}


class Pairs(Contrastive):
    """Two towers whose pictures and patches meet sentences in rounds of pairs, for a plain loss."""

    def forward(self, x: tuple) -> tuple[list[tuple], list[tuple]]:
        """x: as `MyContrastiveStage.batch` makes it -> what `siglip_loss` takes, for each round."""
        pixels, sentences, whole, parts = x
        features = self.vision_tower(pixels)
        pictures = self.image_projection(features.mean(dim=1))
        patches = self.patch_projection(features).flatten(0, 1)
        text = self.text_tower(*sentences)
        return (
            [(pictures[i], text[j], self.log_scale, self.bias) for i, j in whole],
            [(patches[i], text[j], self.log_scale, self.patch_bias) for i, j in parts],
        )


def patch_targets(boxes: Tensor, side: int, share: float = 1 / 3) -> Tensor:
    """Which box covers each patch most, if it covers more than `share` of it, else -1.

    boxes: (m, 4), (y0, x0, y1, x1) as fractions of the picture -> (side ** 2,), row by row.
    """
    start = torch.arange(side, dtype=boxes.dtype)
    y0, x0, y1, x1 = (side * boxes).T[..., None]  # (m, 1) each
    rows = (torch.minimum(start + 1, y1) - torch.maximum(start, y0)).clamp(min=0)  # (m, side)
    columns = (torch.minimum(start + 1, x1) - torch.maximum(start, x0)).clamp(min=0)
    cover, box = (rows[:, :, None] * columns[:, None, :]).flatten(1).max(dim=0)
    return box.where(cover > share, -1)


def patches_of(made: list[scenes.Scene], side: int, targets: Callable) -> list[np.ndarray]:
    """For each name and each background: the patches that show it, counted through all scenes.

    targets: as `patch_targets`; a patch shows the background where no box touches it.
    """
    own: list[list[np.ndarray]] = [[] for _ in NAMES + GROUNDS]
    for number, scene in enumerate(made):
        boxes = torch.tensor([thing.box for thing in scene.things])
        box, first = targets(boxes, side, 1 / 3).numpy(), number * side**2
        for i, thing in enumerate(scene.things):
            own[scenes.OBJECTS.index(thing.name)].append(first + np.flatnonzero(box == i))
        free = sum(scenes.patch_cover(thing.box, side) for thing in scene.things) == 0
        ground = len(NAMES) + list(scenes.BACKGROUNDS).index(scene.background)
        own[ground].append(first + np.flatnonzero(free))
    return [np.concatenate(found) if found else np.zeros(0, int) for found in own]


class MyContrastiveStage:
    """Each of the objects once, then again: pictures against names, by a loss without labels.

    Two thirds of the pictures show one object, so in a round of 24 every pair off the diagonal is
    a wrong one. With `patch_labels` come rounds of patches, one of each name and background, also
    from scenes of several objects. Every process has rounds of its own.
    """

    name = "contrastive"
    gentle = 1.0

    def __init__(
        self, recipe: Recipe, config: PaliGemmaConfig, processor: Processor, among: World,
        own: Written, patch_labels: bool = True,
    ):  # fmt: skip
        share = recipe.contrastive_batch // among.size
        if recipe.contrastive_batch % among.size or share < len(NAMES):
            raise ValueError(
                f"a batch of {recipe.contrastive_batch} must give each of {among.size} processes"
                f" equally many pictures, {len(NAMES)} or more"
            )
        self.recipe, self.among, self.steps = recipe, among, recipe.contrastive_steps
        self.share, self.patch_labels = share, patch_labels
        self.side = config.vision.image_size // config.vision.patch_size
        self.loop, self.siglip = own.tool("train"), own.tool("siglip_loss")
        self.patch_targets = own.tool("patch_targets")
        self.sentences = padded(processor, NAMES + GROUNDS)
        self.names = tuple(part[: len(NAMES)] for part in self.sentences)
        self.module = new_towers(Pairs, config, len(NAMES + GROUNDS))
        self.held_out = self.drawn(np.random.default_rng(32_000), scenes.VALIDATION_ARTIST, 0.0)
        pieces = fitting(self.module, own.model, *self.held_out, self.loss)
        self.pieces, self.module = pieces, put(self.module, **pieces)

    def batch(self, rng: np.random.Generator, progress: float) -> tuple:
        return self.drawn(rng, scenes.TRAINING_ARTISTS, self.recipe.strength)

    def drawn(self, rng: np.random.Generator, artists: dict, strength: float) -> tuple:
        """((pixels, sentences, rounds of pictures, rounds of patches), None)."""
        each = len(NAMES)
        rounds = max(1, self.share * (2 if self.patch_labels else 3) // 3 // each)
        names = [[name] for name in scenes.OBJECTS] * rounds
        names += [None] * (self.share - len(names))
        made = []
        for own in names:
            count = None if own else int(rng.integers(2, 4))
            how = {"strength": strength * rng.random() ** 0.5}
            made.append(scenes.compose(rng, artists, count, own, **how))
        everyone = torch.arange(each)
        whole = [(everyone + each * number, everyone) for number in range(rounds)]
        parts = []
        if self.patch_labels:
            shown = patches_of(made, self.side, self.patch_targets)
            there = torch.tensor([j for j, found in enumerate(shown) if len(found)])
            chosen = np.stack([rng.choice(shown[j], ROUNDS) for j in there], axis=1)
            parts = [(patches, there) for patches in torch.from_numpy(chosen)]
        return (scenes.pixel_values(made), self.sentences, whole, parts), None

    def loss(self, rounds: tuple[list[tuple], list[tuple]], _) -> Tensor:
        means = [sum(self.siglip(*pair) for pair in own) / len(own) for own in rounds if own]
        return sum(means)


class Answering(nn.Module):
    """PaliGemma as a learner's loop calls it: one argument, and logits where answers begin."""

    def __init__(self, model: PaliGemma):
        super().__init__()
        self.model = model

    def forward(self, x: tuple) -> Tensor:
        """x: as `MyGenerativeStage.batch` makes it -> logits (rows, t - start, v)."""
        pixels, inputs, start = x
        features = self.model.image_features(pixels)
        each = len(inputs["input_ids"]) // len(pixels)
        x = self.model.hidden_states(
            **inputs, image_features=features.repeat_interleave(each, dim=0)
        )
        return self.model.language_model.logits(x[:, start:])


class MyGenerativeStage:
    """The decoder on questions about pictures, of those tasks that it can learn in minutes."""

    name = "generative"
    gentle = 1.0

    def __init__(
        self, recipe: Recipe, config: PaliGemmaConfig, processor: Processor, among: World,
        own: Written, tasks: dict[str, int] = MY_TASKS,
    ):  # fmt: skip
        if recipe.generative_batch % among.size:
            raise ValueError(
                f"a batch of {recipe.generative_batch} must divide evenly among the processes,"
                f" found {among.size}"
            )
        self.recipe, self.among, self.steps = recipe, among, recipe.generative_steps
        self.loop, self.row_labels = own.tool("train"), own.tool("row_labels")
        self.suffix_loss = own.tool("suffix_loss")
        self.processor = processor
        self.long = {task: share for task, share in tasks.items() if task in LONG}
        self.short = {task: share for task, share in tasks.items() if task not in LONG}
        model = PaliGemma(config)
        initialise(model)
        rng = np.random.default_rng(33_000)
        self.held_out = self.drawn(rng, 0.5, tasks, scenes.VALIDATION_ARTIST, 0.0)
        pieces = fitting(Answering(model), own.model, *self.held_out, self.loss)
        self.pieces, self.model = pieces, put(model, **pieces)
        # A tower that has learned stays as it is: it sees new artists better so than after so few
        # more steps with the decoder, and a step is a quarter shorter.
        self.model.vision_tower.requires_grad_(not recipe.contrastive_steps)
        self.module = Answering(self.model)

    def batch(self, rng: np.random.Generator, progress: float) -> tuple:
        # Two short answers a picture, or a long one in every fourth step: less padding. All
        # processes agree in that, so none waits for another.
        fourth = round(progress * self.steps) % 4 == 3
        tasks = self.long if self.long and fourth else self.short
        return self.drawn(rng, progress, tasks, scenes.TRAINING_ARTISTS, self.recipe.strength)

    def drawn(self, rng, progress: float, tasks: dict, artists: dict, strength: float) -> tuple:
        """((pixels, inputs, start), labels); logits and labels before `start` are left out."""
        number = self.recipe.generative_batch // self.among.size
        made = training_scenes(rng, number, strength, progress, artists)
        asked = list(questions(rng, made, tasks, each=min(2, len(tasks))))
        prompts = [self.processor.prompt_ids(question.prompt) for question in asked]
        eos, pad = self.processor.config.eos_token_id, self.processor.config.pad_token_id
        rows = [
            self.row_labels(list(prompt), self.processor.encode(question.answer), eos, IGNORE)
            for prompt, question in zip(prompts, asked, strict=True)
        ]
        ids, mask = pad_rows([ids for ids, _ in rows], pad, "right")
        labels, _ = pad_rows([labels for _, labels in rows], IGNORE, "right")
        inputs = {"input_ids": ids, "attention_mask": mask}
        inputs["token_type_ids"] = (labels != IGNORE).long()
        start = min(len(prompt) for prompt in prompts) - 1
        return (scenes.pixel_values(made), inputs, start), labels[:, start:]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.suffix_loss(logits, labels, IGNORE)


MY_EVERY = 100
MINE = Recipe(
    contrastive_steps=1600, contrastive_batch=72, generative_steps=950, generative_batch=32
)


def my_stages(
    recipe: Recipe, among: World, own: Written, tasks: dict[str, int] = MY_TASKS
) -> tuple[MyContrastiveStage, MyGenerativeStage]:
    """Both stages, random weights, with everything in its place that a learner has written."""
    torch.manual_seed(recipe.seed)
    processor = put(Processor(SMALL_TOKENIZER, MY_SIZES), **own.processor)
    first = MyContrastiveStage(recipe, MY_SIZES, processor, among, own)
    return first, MyGenerativeStage(recipe, MY_SIZES, processor, among, own, tasks)


def train_mine(
    folder: Path,
    exercises: str | Path,
    recipe: Recipe = MINE,
    every: int = MY_EVERY,
    each: int = 60,
    watch: Callable[[list[dict]], None] | None = None,
) -> tuple[PaliGemma, Processor]:
    """A model of a learner's own, as `train_small` makes the shipped one, and with the same files.

    exercises: the folder with the learner's notebooks; every: steps from one checkpoint to the
    next; each: how many questions of every task and artist the log is measured with; watch: gets
    the log so far, at each of its lines. `curve.png` is made anew then, too.
    """
    from matplotlib.pyplot import close

    from minipali.figures.training import curve
    from minipali.saving import save

    own = written_in(exercises)

    def measure(stage, step: int) -> dict[str, float]:
        draw(read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else [])
        return measure_mine(stage, step, each)

    def draw(lines: list[dict]) -> None:
        if lines:
            figure = curve(lines)
            figure.savefig(folder / "curve.png", dpi=100, bbox_inches="tight")
            close(figure)
            if watch is not None:
                watch(lines)

    with world() as among, only_run_in(folder) if among.rank == 0 else contextlib.nullcontext():
        first, second = my_stages(recipe, among, own)
        if among.rank == 0:
            print(told_of(own, first.pieces | second.pieces))
        if recipe.contrastive_steps:
            run(first, folder, every, measure)
            second.model.vision_tower.load_state_dict(first.module.vision_tower.state_dict())
        run(second, folder, every, measure)
        if among.rank == 0:
            save(second.model.eval(), second.processor, folder / "model")
            draw(read_log(folder / "log.jsonl"))
    return second.model, second.processor


def told_of(own: Written, inside: dict) -> str:
    """Which pieces are the learner's, in words."""
    names = [*own.processor, *own.model, *own.tools]
    told = f"yours, {len(names)}: {', '.join(names) or 'none yet; the package has them all'}"
    if left := sorted(set(own.model) - set(inside)):
        told += f"\nleft out, because gradients do not come through: {', '.join(left)}"
    return told


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
        return trained(*stage.batch(drawn_for(stage, step), step / stage.steps))

    def after(done: int, loss: float) -> None:
        bar.update()
        recent.append(loss)
        if among.rank > 0 or (done % every and done != stage.steps):
            return
        line = {"stage": stage.name, "step": done, "seconds": round(time.monotonic() - began, 1)}
        line["loss"] = round(float(np.mean(recent)), 4)
        recent.clear()
        if stage.loop is not None:
            line["held out"] = round(stage.watched, 4)
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
        if stage.loop is None:
            warmup = warmup_of(stage)
            fit(stage.module, step_loss, stage.steps, makers, warmup, start=start, after=after)
        else:
            own_loop(stage, trained, makers, start, after)


def warmup_of(stage) -> int:
    return min(100, stage.steps // 10 + 1)


def drawn_for(stage, step: int) -> np.random.Generator:
    """The random numbers of a step: they depend on seed, stage, step and rank alone."""
    return np.random.default_rng(
        [stage.recipe.seed, stage.name == "generative", step, stage.among.rank]
    )


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


def measure_mine(stage, step: int, each: int) -> dict[str, float]:
    """The same for a learner's own model, on the tasks that it learns, with fewer pictures."""
    groups = {"training": scenes.TRAINING_ARTISTS, "validation": scenes.VALIDATION_ARTIST}
    found = {}
    stage.module.eval()
    for name, artists in groups.items():
        if stage.name == "contrastive":
            right = {"zero-shot": zero_shot(stage.module, stage.names, artists, 4 * each)}
        elif step % 300 == 0 or step == stage.steps:
            asked = evaluation_set(artists, each, 1, tuple(MY_TASKS))
            right = by_task(asked, answers(stage.model, stage.processor, asked))
        else:
            right = {}
        found |= {f"{name} {task}": round(value, 3) for task, value in right.items()}
    return found


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
        description="Train the small model that comes with minipali, or one of your own. Every"
        f" {EVERY} steps (mine: {MY_EVERY}) it writes a checkpoint and a line of log.jsonl. The"
        " same command goes on with a training that was stopped.",
    )
    parser.add_argument(
        "what", choices=["small", "mine"],
        help="small: the shipped model; mine: random weights in the pieces that you have written",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="default runs/small or runs/mine")
    parser.add_argument(
        "--exercises", type=Path, default=Path("exercises"),
        help="where the notebooks with your pieces lie, for mine; default exercises",
    )  # fmt: skip
    for name in ("seed", "contrastive_steps", "generative_steps"):
        defaults = f"default {getattr(Recipe, name)}, mine {getattr(MINE, name)}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=defaults)
    given = vars(parser.parse_args())
    what, exercises = given.pop("what"), given.pop("exercises")
    folder, rank = given.pop("folder") or Path("runs", what), int(os.environ.get("RANK", 0))
    changed = {name: value for name, value in given.items() if value is not None}
    try:
        if what == "small":
            train_small(folder, Recipe(**changed))
        else:
            train_mine(folder, exercises, replace(MINE, **changed))
    except ProcessLost as error:
        stop(2, f"error: {error}" if rank == 0 else None)  # once is enough
    except (ValueError, ArithmeticError, OSError) as error:
        stop(2, f"error: {error}" if rank == 0 else f"error in process {rank}: {error}")
    except KeyboardInterrupt:
        stop(130, f"stopped; the same command {goes_on(folder)}" if rank == 0 else None)
    if rank == 0:
        print(f"The model is in {folder / 'model'}, the curve in {folder / 'curve.png'}.")
        print(f"Measure it: python -m minipali.evaluation --model {folder / 'model'}")


def stop(code: int, sentence: str | None) -> None:
    if sentence:
        print(f"minipali: {sentence}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
