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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minipali import scenes
from minipali.config import PaliGemmaConfig, preset
from minipali.contrastive import Contrastive, TextTower
from minipali.evaluation import accuracies, zero_shot
from minipali.figures.training import curve
from minipali.paligemma import PaliGemma
from minipali.tokens import IGNORE, Processor
from minipali.vision import VisionTower

SMALL_TOKENIZER = Path(__file__).parent / "assets" / "small" / "tokenizer.model"


def suffix_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the next token, at the places whose label is not IGNORE.

    logits: (b, t, v); labels: (b, t), a copy of input_ids with IGNORE outside the suffix. The
    logits at one place predict the token at the next, so the two are shifted against each other.
    Source: PaliGemma (Beyer et al. 2024), section 3.2.
    """
    predicted, wanted = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return F.cross_entropy(predicted, wanted, ignore_index=IGNORE)


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


def optimizers(model: nn.Module, matrix_lr: float, other_lr: float, gentle: float = 1.0):
    """Muon for the matrices inside blocks, AdamW for tables, norms, biases and the outer maps.

    gentle: factor on the rates of the vision tower, for a tower that has learned already.
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
        torch.optim.AdamW(made["table"] + made["other"], betas=(0.9, 0.95), weight_decay=0.0),
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
    from minipali.weights import save  # lesson 14; the command stands at the end of the course

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
