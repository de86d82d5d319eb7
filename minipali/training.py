"""Lesson 13. Training: the loss on the suffix, and how the small model came about.

python -m minipali.training small            repeat the training of the shipped model
torchrun --nproc-per-node 2 -m minipali.training small     the same on two processes
"""

import argparse
import contextlib
import json
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minipali import scenes
from minipali.checks import show
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, WRONG, Outcome
from minipali.config import PaliGemmaConfig, VisionConfig, preset
from minipali.contrastive import Contrastive, TextTower, similarities
from minipali.evaluation import accuracies, zero_shot
from minipali.figures.training import curve
from minipali.paligemma import PaliGemma
from minipali.tokens import IGNORE, Processor, pad_rows
from minipali.vision import VisionTower

SMALL_TOKENIZER = Path(__file__).parent / "assets" / "small" / "tokenizer.model"


def suffix_loss(logits: Tensor, labels: Tensor, ignore: int = IGNORE) -> Tensor:
    """Mean cross entropy of the next token, at the places whose label is not `ignore`.

    logits: (b, t, v); labels: (b, t), a copy of input_ids with `ignore` outside the suffix. The
    logits at one place predict the token at the next, so the two are shifted against each other.
    Every token counts the same, as in transformers; big_vision averages within each row first, so
    that every row does. Source: PaliGemma (Beyer et al. 2024), section 3.2.
    """
    predicted, wanted = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return F.cross_entropy(predicted, wanted, ignore_index=ignore)


def initialise(model: nn.Module) -> None:
    """Start values: weights of standard deviation 1/sqrt(inputs), table rows of length about 1.

    Residual branches end in small weights, so that every block starts near the identity.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            inputs = module.weight[0].numel()
            small = 0.3 if name.endswith(("out_proj", "o_proj", "fc2", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=small * inputs**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


# --- optimizer -----------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix.

    For the square-ish matrices inside blocks; it learns about twice as much from a picture here as
    AdamW. Matrices of one shape are stacked and treated together, in float32 (torch's own version
    works in bfloat16 one by one, which this size of model on a CPU pays for dearly).
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers".
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, parameters in by_shape.items():
                gradient = torch.stack([p.grad for p in parameters])
                state = self.state[parameters[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(state["momentum"], group["momentum"])
                update = orthogonalise(update) * max(1, shape[0] / shape[1]) ** 0.5
                for p, u in zip(parameters, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=group["lr"])


def orthogonalise(matrices: Tensor, steps: int = 3) -> Tensor:
    """Drive all singular values of (m, rows, columns) towards 1 by a Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at 0; ends between about 0.7 and 1.2
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(
    model: nn.Module,
    matrix_lr: float,
    other_lr: float,
    gentle: float = 1.0,
    fused: bool | None = None,
):
    """Muon for the matrices inside blocks, AdamW for tables, norms, biases and the outer maps.

    gentle: factor on the rates of the vision tower, for a tower that has learned already; fused:
    one call for all of AdamW's tensors, which saves time where they are small.
    """
    groups = {(kind, slow): [] for kind in ("matrix", "table", "other") for slow in (False, True)}
    for name, p in model.named_parameters():
        kind = "other"
        if p.ndim == 2:
            kind = "matrix" if ".layers." in name else "table" if "embed" in name else "other"
        groups[kind, "vision_tower" in name].append(p)
    # The tied table is also the head; at the full rate its many unused rows drown the rest.
    rates = {"matrix": matrix_lr, "table": other_lr / 2, "other": other_lr}
    made = {
        kind: [
            {"params": groups[kind, slow], "lr": rates[kind] * (gentle if slow else 1.0)}
            for slow in (False, True)
        ]
        for kind in rates
    }
    return [
        Muon(made["matrix"], lr=matrix_lr, weight_decay=0.02),
        torch.optim.AdamW(
            made["table"] + made["other"], betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        ),
    ]


def schedule(step: int, steps: int, warmup: int, decay: float = 0.4) -> float:
    """Factor on the learning rates: up in `warmup` steps, flat, then linearly down to 0.

    The last `decay` share of all steps goes down.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


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


@dataclass(frozen=True)
class World:
    """The processes that train together: one, unless torchrun started several."""

    rank: int = 0
    size: int = 1


@contextlib.contextmanager
def world():
    """Join the processes that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield World()
        return
    dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # who leaves early takes its connections from the others
    finally:
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


# --- lesson 05: two small towers in seconds -------------------------------------------------------


@dataclass(frozen=True)
class NamingTask:
    """Pictures of one object each, and one sentence for each object.

    sentences: ids and mask, (objects, t) each; pictures: (objects, each, c, y, x) by the training
    artists; new: the same by the validation artist, whom nothing is trained on.
    """

    names: tuple[str, ...]
    sentences: tuple[Tensor, Tensor]
    pictures: Tensor
    new: Tensor
    vocab_size: int


def naming_task(
    processor: Processor, names: tuple[str, ...] = scenes.OBJECTS[:12], each: int = 200
) -> NamingTask:
    """`each` pictures of every name, and 20 by the new artist, coloured as drawn."""
    rng = np.random.default_rng(30_000)

    def drawn(artists: dict, each: int, strength: float) -> Tensor:
        made = [
            scenes.compose(rng, artists, names=[name], strength=strength * rng.random() ** 0.5)
            for name in names
            for _ in range(each)
        ]
        return rearrange(scenes.pixel_values(made), "(o each) c y x -> o each c y x", each=each)

    ids = [processor.encode(scenes.with_article(name)) for name in names]
    padded = processor.pad([[] for _ in ids], ids, side="right")
    return NamingTask(
        names,
        (padded["input_ids"], padded["attention_mask"]),
        drawn(scenes.TRAINING_ARTISTS, each, strength=1.0),
        drawn(scenes.VALIDATION_ARTIST, 20, strength=0.0),
        processor.config.text.vocab_size,
    )


@dataclass
class TowerRun:
    """Two trained towers and the log of their training: pictures seen, loss, zero-shot accuracy."""

    towers: Contrastive
    seen: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return self.accuracies[-1]


@torch.inference_mode()
def name_scores(towers: Contrastive, pictures: Tensor, sentences: tuple[Tensor, Tensor]) -> Tensor:
    """Cosine of every picture with every sentence: (b, c, y, x) and (j, t), (j, t) -> (b, j)."""
    return similarities(towers.embed_pictures(pictures), towers.text_tower(*sentences))


def new_artist_table(towers: Contrastive, task: NamingTask) -> Tensor:
    """Mean cosine of the new artist's pictures of each object with each sentence: (i, j)."""
    scores = name_scores(towers, task.new.flatten(0, 1), task.sentences)
    return scores.unflatten(0, task.new.shape[:2]).mean(dim=1)


def new_artist_accuracy(towers: Contrastive, task: NamingTask) -> float:
    """Share of the new artist's pictures whose most similar sentence is the right one."""
    scores = name_scores(towers, task.new.flatten(0, 1), task.sentences)
    right = torch.arange(len(task.names)).repeat_interleave(task.new.shape[1])
    return (scores.argmax(dim=1) == right).float().mean().item()


def train_towers(
    loss: Callable,
    task: NamingTask,
    batch: int = 12,
    bias: float | None = None,
    pictures: int = 3600,
    seed: int = 0,
    scale: float = 10.0,
) -> TowerRun:
    """Train a vision tower and a text tower from random weights until they saw `pictures`.

    loss: called as loss(image, text, log_scale) if bias is None, else as loss(image, text,
    log_scale, bias) with a learned bias that starts there. Each batch holds `batch` different
    objects, so that every pair off the diagonal is truly a wrong one.
    """
    torch.manual_seed(seed)
    vision = VisionConfig(64, 128, 2, 2, image_size=scenes.SIDE, patch_size=12)
    text = TextTower(task.vocab_size, width=64, heads=2, layers=1, max_length=16)
    towers = Contrastive(VisionTower(vision), text, start_bias=bias or 0.0)
    initialise(towers)
    learned = [towers.log_scale] if bias is None else [towers.log_scale, towers.bias]
    nn.init.constant_(towers.log_scale, math.log(scale))
    makers = optimizers(towers, matrix_lr=0.01, other_lr=3e-3, fused=True)
    rates = [[group["lr"] for group in maker.param_groups] for maker in makers]
    run, steps, losses = TowerRun(towers), pictures // batch, []
    every = -(-steps // 8)  # so that the log has about eight points
    for step in tqdm(range(steps), desc=f"batch {batch}, seed {seed}", mininterval=2, leave=False):
        objects = torch.randperm(len(task.names))[:batch]
        chosen = task.pictures[objects, torch.randint(task.pictures.shape[1], (batch,))]
        mirrored = torch.rand(batch, 1, 1, 1) < 0.5
        image = towers.embed_pictures(torch.where(mirrored, chosen.flip(-1), chosen))
        words = text(*(part[objects] for part in task.sentences))
        value = loss(image, words, *learned)
        if not value.isfinite():
            raise FloatingPointError(f"the loss is {value.item()} in step {step + 1} of {steps}")
        towers.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        factor = schedule(step, steps, warmup=min(100, steps // 10 + 1))
        for maker, own in zip(makers, rates, strict=True):
            for group, rate in zip(maker.param_groups, own, strict=True):
                group["lr"] = rate * factor
            maker.step()
        losses.append(value.item())
        if len(losses) == every or step + 1 == steps:
            run.seen.append((step + 1) * batch)
            run.losses.append(float(np.mean(losses)))
            run.accuracies.append(new_artist_accuracy(towers, task))
            losses = []
    return run


def try_loss(
    name: str, loss: Callable, task: NamingTask, floor: float, bias: float | None = None, **given
) -> TowerRun | None:
    """`train_towers` with a learner's loss; displays whether it learned, and returns the run.

    *correct* if zero-shot accuracy on the new artist reaches `floor`, from 0 to 1.
    """

    def outcome(status: str, message: str) -> None:
        show(Outcome(f"training with {name}", status, message))

    try:
        run = train_towers(loss, task, bias=bias, **given)
    except NotImplementedError:
        return outcome(NOT_ATTEMPTED, f"Write `{name}` first.")
    except Exception as error:
        return outcome(CRASHED, f"{type(error).__name__}: {error}")
    found = f"Zero-shot accuracy on the new artist {run.accuracy:.0%}, the floor is {floor:.0%}"
    if run.towers.log_scale.item() == torch.tensor(math.log(given.get("scale", 10.0))).item():
        outcome(
            WRONG,
            f"{found}, but log_scale never moved: no gradient reached it. Use torch's exp on the"
            " tensor; math.exp, float() and .item() cut the gradient off.",
        )
    elif run.accuracy < floor:
        chance = 1 / len(task.names)
        outcome(WRONG, f"{found}. Guessing gives {chance:.0%}. What does your `check` say?")
    else:
        outcome(CORRECT, f"{found}.")
    return run


# --- lesson 13: a new decoder learns to speak, in seconds -----------------------------------------


@dataclass(frozen=True)
class SpeakingTask:
    """Pictures of one object each, as the trained tower sees them, and what is asked about them.

    features: (pictures, n, d), computed once, because the tower does not learn here; prefix: the
    question's ids; answers: the names' ids, without eos; new_features, new_answers: the same for
    the validation artist, whom nothing is trained on.
    """

    prefix: list[int]
    features: Tensor
    answers: list[list[int]]
    new_features: Tensor
    new_answers: list[list[int]]
    eos: int
    pad: int


def speaking_task(
    model: PaliGemma, processor: Processor, number: int = 1500, new: int = 300
) -> SpeakingTask:
    """`number` pictures by the training artists and `new` by the validation artist."""
    rng = np.random.default_rng(31_000)

    @torch.inference_mode()
    def looked_at(artists: dict, number: int, strength: float):
        made = [
            scenes.compose(rng, artists, 1, strength=strength * rng.random() ** 0.5)
            for _ in range(number)
        ]
        parts = [made[start : start + 100] for start in range(0, number, 100)]
        seen = torch.cat([model.vision_tower(scenes.pixel_values(part)) for part in parts])
        return seen, [processor.encode(scene.things[0].name) for scene in made]

    features, answers = looked_at(scenes.TRAINING_ARTISTS, number, strength=1.0)
    new_features, new_answers = looked_at(scenes.VALIDATION_ARTIST, new, strength=0.0)
    prefix = processor.prompt_ids("answer en what is this?")
    config = processor.config
    # A copy is an ordinary tensor again, which a model that learns may use.
    return SpeakingTask(
        prefix, features.clone(), answers, new_features.clone(), new_answers,
        config.eos_token_id, config.pad_token_id,
    )  # fmt: skip


def row_labels(
    prefix: list[int], suffix: list[int], eos: int, ignore: int = IGNORE
) -> tuple[list[int], list[int]]:
    """One training row: its ids, and its labels, which are `ignore` on the prefix."""
    answer = suffix + [eos]
    return prefix + answer, [ignore] * len(prefix) + answer


def speaking_batch(
    task: SpeakingTask, chosen: list[int], new: bool = False, labels_of: Callable = row_labels
) -> tuple[dict[str, Tensor], Tensor]:
    """What a `Speaker` takes, and the labels (b, t), for the chosen pictures; padded on the right.

    labels_of: makes ids and labels of a row, as `row_labels` does.
    """
    features, answers = (
        (task.new_features, task.new_answers) if new else (task.features, task.answers)
    )
    rows = [labels_of(list(task.prefix), list(answers[i]), task.eos, IGNORE) for i in chosen]
    ids, mask = pad_rows([row for row, _ in rows], task.pad, "right")
    labels, _ = pad_rows([row for _, row in rows], IGNORE, "right")
    is_suffix = torch.arange(ids.shape[1]) >= len(task.prefix)
    inputs = {"input_ids": ids, "attention_mask": mask, "features": features[chosen]}
    return inputs | {"token_type_ids": (is_suffix & (mask == 1)).long()}, labels


class Speaker(nn.Module):
    """A model whose pictures went through the vision tower before."""

    def __init__(self, model: PaliGemma):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """inputs as `speaking_batch` makes them -> logits (b, t, v)."""
        rest = {name: tensor for name, tensor in inputs.items() if name != "features"}
        image = self.model.multi_modal_projector(inputs["features"])
        x = self.model.hidden_states(**rest, image_features=image)
        return self.model.language_model.logits(x)


def tiny_model(model: PaliGemma, seed: int = 0, tower: VisionConfig | None = None) -> PaliGemma:
    """A new model with random weights: a decoder of 2 layers of width 64, and the given tower.

    tower: its sizes, by default those of the model's own.
    """
    torch.manual_seed(seed)
    text = replace(
        model.config.text, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16
    )
    fresh = PaliGemma(replace(model.config, text=text, vision=tower or model.config.vision))
    initialise(fresh)
    return fresh


def fresh_decoder(model: PaliGemma, seed: int = 0) -> PaliGemma:
    """The model's vision tower, frozen, with a new projector and a new small decoder."""
    fresh = tiny_model(model, seed)
    fresh.vision_tower.load_state_dict(model.vision_tower.state_dict())
    fresh.vision_tower.requires_grad_(False)
    return fresh


@torch.inference_mode()
def right_share(model: PaliGemma, task: SpeakingTask) -> float:
    """Share of the new artist's pictures that are named right, eos included.

    The answer is given and every token of it compared with the best one: if all agree, then the
    greedy answer, which follows the same path, is the right one.
    """
    inputs, labels = speaking_batch(task, list(range(len(task.new_answers))), new=True)
    best, wanted = Speaker(model)(inputs)[:, :-1].argmax(dim=-1), labels[:, 1:]
    return ((best == wanted) | (wanted == IGNORE)).all(dim=1).float().mean().item()


def try_training(
    labels_of: Callable,
    loss: Callable,
    train: Callable,
    model: PaliGemma,
    task: SpeakingTask,
    floor: float,
    seed: int = 0,
) -> PaliGemma | None:
    """Train a new decoder with a learner's labels, loss and loop; display whether it learned.

    labels_of(prefix, suffix, eos, ignore), loss(logits, labels, ignore) and train(module,
    optimizer, batches, held_out, loss, epochs, max_norm) are the pieces of exercise 13. *correct*
    if the share of the new artist's pictures that are named right reaches `floor`. Returns the
    trained model.
    """
    pieces = (labels_of, loss, train)

    def outcome(status: str, message: str) -> None:
        show(Outcome("training with your pieces", status, message))

    try:
        learner = fresh_decoder(model, seed)
        whole = len(task.answers) // 16
        order = np.random.default_rng(seed).permutation(len(task.answers))[: 16 * whole]
        batches = [
            speaking_batch(task, row.tolist(), labels_of=labels_of)
            for row in order.reshape(whole, 16)
        ]
        some = list(range(min(100, len(task.new_answers))))
        held_out = speaking_batch(task, some, new=True, labels_of=labels_of)
        parameters = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95), fused=True)
        losses, _ = train(
            Speaker(learner), optimizer, batches, held_out, lambda x, y: loss(x, y, IGNORE), 2, 1.0
        )
        share, last = right_share(learner.eval(), task), float(losses[-10:].mean())
    except NotImplementedError as error:
        names = [getattr(piece, "__name__", "") for piece in pieces]
        where = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        missing = next((name for name in reversed(where) if name in names), "your functions")
        return outcome(NOT_ATTEMPTED, f"Write `{missing}` first.")
    except Exception as error:
        return outcome(CRASHED, f"{type(error).__name__}: {error}")
    found = f"{share:.0%} of the new artist's pictures are named right, the floor is {floor:.0%}"
    if share >= floor:
        outcome(CORRECT, f"{found}. The loss ended at {last:.2f}.")
    elif last < 0.3:
        outcome(
            WRONG,
            f"{found}. But the loss ended at {last:.2f}: the model learned something, and it is not"
            " to answer. What do your labels ask it to say, and where? See what `check` says.",
        )
    else:
        outcome(WRONG, f"{found}, and the loss ended at {last:.2f}. What does your `check` say?")
    return learner


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


def save_checkpoint(file: Path, state: dict) -> None:
    """Write a nested state of dicts, lists, numbers and tensors as one safetensors file.

    It is written beside and then renamed: a kill in the middle leaves the older one whole.
    """
    tensors: dict[str, Tensor] = {}

    def outline(value):
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().clone().contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[key, outline(inner)] for key, inner in value.items()]}
        return [outline(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    text = json.dumps(outline(state))
    save_file(tensors, file.with_suffix(".new"), metadata={"outline": text})
    file.with_suffix(".new").replace(file)


def load_checkpoint(file: Path) -> dict:
    """Read what `save_checkpoint` wrote."""
    with safe_open(file, framework="pt") as opened:

        def filled(value):
            if isinstance(value, dict) and "tensor" in value:
                return opened.get_tensor(value["tensor"])
            if isinstance(value, dict):
                return {key: filled(inner) for key, inner in value["dict"]}
            return [filled(inner) for inner in value] if isinstance(value, list) else value

        return filled(json.loads(opened.metadata()["outline"]))


def run(stage, folder: Path, every: int = 250, measure=None) -> None:
    """Train a stage to its end, from its newest checkpoint in `folder` if there is one.

    Every `every` steps it writes `<stage>.safetensors` (checkpoint) and a line of `log.jsonl`. The
    scenes of a step depend on seed, stage, step and rank alone, so a resumed run is the run that it
    would have been.
    """
    recipe, among = stage.recipe, stage.among
    makers = optimizers(stage.module, recipe.matrix_lr, recipe.other_lr, stage.gentle)
    rates = [[group["lr"] for group in maker.param_groups] for maker in makers]
    checkpoint, log = folder / f"{stage.name}.safetensors", folder / "log.jsonl"
    start, seconds = 0, 0.0
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint)
        if saved["recipe"] != asdict(recipe):
            raise ValueError(
                f"{checkpoint} belongs to another recipe: {saved['recipe']}; continue with that one"
                " or choose another --folder"
            )
        stage.module.load_state_dict(saved["module"])
        for maker, state in zip(makers, saved["optimizers"], strict=True):
            maker.load_state_dict(state)
        start, seconds = saved["step"], saved["seconds"]
    trained = DistributedDataParallel(stage.module) if among.size > 1 else stage.module
    trained.train()
    began, losses = time.monotonic() - seconds, []
    bar = tqdm(
        range(start, stage.steps), initial=start, total=stage.steps, desc=stage.name,
        disable=among.rank > 0, mininterval=2,
    )  # fmt: skip
    for step in bar:
        rng = np.random.default_rng([recipe.seed, stage.name == "generative", step, among.rank])
        loss = trained(*stage.batch(rng, step / stage.steps))
        stage.module.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(stage.module.parameters(), 1.0)
        factor = schedule(step, stage.steps, warmup=min(100, stage.steps // 10 + 1))
        for maker, own in zip(makers, rates, strict=True):
            for group, rate in zip(maker.param_groups, own, strict=True):
                group["lr"] = rate * factor
            maker.step()
        losses.append(loss.item())
        done = step + 1
        if among.rank > 0 or (done % every and done != stage.steps):
            continue
        line = {"stage": stage.name, "step": done, "seconds": round(time.monotonic() - began, 1)}
        line["loss"] = round(float(np.mean(losses)), 4)
        losses = []
        if measure is not None:
            line |= measure(stage, done)
        bar.set_postfix(loss=line["loss"])
        state = {"module": stage.module.state_dict(), "step": done, "recipe": asdict(recipe)}
        state["optimizers"] = [maker.state_dict() for maker in makers]
        state["seconds"] = line["seconds"]
        save_checkpoint(checkpoint, state)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


# --- measuring -----------------------------------------------------------------------------------


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


# --- the whole training --------------------------------------------------------------------------


def train_small(folder: Path, recipe: Recipe, tokenizer_file: Path = SMALL_TOKENIZER) -> PaliGemma:
    """Both stages, each continued from its checkpoint in `folder` if there is one.

    Without contrastive steps the second stage starts from a random tower. Writes `model/` (a folder
    that `minipali.load` opens), `log.jsonl` and `curve.png`.
    """
    from minipali.saving import save  # lesson 14; the command stands at the end of the course

    folder.mkdir(parents=True, exist_ok=True)
    with world() as among:
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


def read_log(file: Path) -> list[dict]:
    """The lines of a training log; where a killed run repeated a step, the last counts."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return list({(line["stage"], line["step"]): line for line in lines}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small model that comes with minipali.")
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
    folder = given.pop("folder")
    train_small(folder, Recipe(**given))
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"The model is in {folder / 'model'}, the curve in {folder / 'curve.png'}.")
        print(f"Measure it: python -m minipali.evaluation --model {folder / 'model'}")


if __name__ == "__main__":
    main()
