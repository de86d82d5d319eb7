"""Tasks so small that a piece is tried in seconds.

Two towers (05), a new decoder (13), a word and a question more for the trained model (18).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from minipali import scenes
from minipali.config import VisionConfig
from minipali.contrastive import Contrastive, TextTower, similarities
from minipali.paligemma import PaliGemma
from minipali.tokens import IGNORE, Processor, pad_rows
from minipali.training import fit, initialise, optimizers, row_labels, suffix_loss
from minipali.vision import VisionTower

# --- lesson 05: two small towers -----------------------------------------------------------------


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
    run, steps, recent = TowerRun(towers), pictures // batch, []
    every = -(-steps // 8)  # so that the log has about eight points

    def step_loss(step: int) -> Tensor:
        objects = torch.randperm(len(task.names))[:batch]
        chosen = task.pictures[objects, torch.randint(task.pictures.shape[1], (batch,))]
        mirrored = torch.rand(batch, 1, 1, 1) < 0.5
        image = towers.embed_pictures(torch.where(mirrored, chosen.flip(-1), chosen))
        return loss(image, text(*(part[objects] for part in task.sentences)), *learned)

    def after(done: int, value: float) -> None:
        bar.update()
        recent.append(value)
        if len(recent) == every or done == steps:
            run.seen.append(done * batch)
            run.losses.append(float(np.mean(recent)))
            run.accuracies.append(new_artist_accuracy(towers, task))
            recent.clear()

    makers = optimizers(towers, matrix_lr=0.01, other_lr=3e-3, fused=True)
    label = f"batch {batch}, seed {seed}"
    with tqdm(total=steps, desc=label, mininterval=2, leave=False, disable=None) as bar:
        fit(towers, step_loss, steps, makers, warmup=min(100, steps // 10 + 1), after=after)
    return run


# --- lesson 13: a new decoder learns to speak ----------------------------------------------------


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


# --- lesson 18: a word and a question more -------------------------------------------------------

Asked = list[tuple[scenes.Scene, scenes.Question]]


def new_word(
    name: str, pictures: int, seed: int = 0, artists: dict = scenes.TRAINING_ARTISTS
) -> Asked:
    """Two questions about each of so many pictures, of which three in four show the object.

    Of each four, two show it alone and one beside a known object. The fourth shows a known one, so
    that the new word does not become the answer to everything.
    """
    rng = np.random.default_rng([seed, 18])
    asked = []
    for number in range(pictures):
        known = scenes.OBJECTS[rng.integers(len(scenes.OBJECTS))]
        names = [[name], [name, known], [name], [known]][number % 4]
        scene = scenes.compose(rng, artists, names=names)
        tasks = ("naming" if len(names) == 1 else "places", "detection")
        questions = [scenes.ask(rng, scene, task) for task in tasks]
        asked += [(scene, one) for one in questions if one is not None and one.answer]
    return asked


COLOURS = ("red", "pink", "yellow", "green", "blue", "purple")


def new_question(pictures: int, seed: int = 0, artists: dict = scenes.TRAINING_ARTISTS) -> Asked:
    """ "What colour is the dog?", about painted objects; the background has another colour."""
    rng = np.random.default_rng([seed, 180])
    asked = []
    while len(asked) < pictures:
        colour = COLOURS[rng.integers(len(COLOURS))]
        scene = scenes.compose(rng, artists, 1, colour=colour)
        if scene.background != colour:
            prompt = f"answer en what colour is the {scene.things[0].name}?"
            asked.append((scene, scenes.Question("colour", prompt, colour)))
    return asked


def teach(
    model: PaliGemma,
    processor: Processor,
    asked: Asked,
    steps: int = 60,
    rate: float = 3e-3,
    batch: int = 8,
    seed: int = 0,
) -> list[float]:
    """Train what is not frozen on these questions; returns the losses."""
    rng, speaker = np.random.default_rng(seed), Speaker(model)
    eos = [processor.config.eos_token_id]
    pixels = scenes.pixel_values([scene for scene, _ in asked])
    frozen = not any(p.requires_grad for p in model.vision_tower.parameters())
    with torch.no_grad():  # a frozen tower looks once
        features = model.vision_tower(pixels) if frozen else None

    def step_loss(step: int) -> Tensor:
        chosen = rng.choice(len(asked), min(batch, len(asked)), replace=False).tolist()
        questions = [asked[i][1] for i in chosen]
        prompts = [processor.prompt_ids(question.prompt) for question in questions]
        suffixes = [processor.encode(question.answer) + eos for question in questions]
        inputs = processor.pad(prompts, suffixes, "right")
        labels = inputs.pop("labels")
        seen = features[chosen] if frozen else model.vision_tower(pixels[chosen])
        return suffix_loss(speaker(inputs | {"features": seen}), labels)

    learned = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses = fit(model, step_loss, steps, [adam], warmup=steps // 10 + 1)
    model.eval()
    return losses
