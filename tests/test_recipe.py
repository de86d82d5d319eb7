"""The shipped model's training: its stages, stopping and going on, several processes."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minipali import recipe, scenes
from minipali.checkpoints import (
    load_checkpoint,
    read_log,
    save_checkpoint,
)
from minipali.config import preset
from minipali.contrastive import siglip_loss
from minipali.paligemma import PaliGemma
from minipali.recipe import (
    COUNTS,
    NAMES,
    SENTENCES,
    ContrastiveStage,
    GenerativeStage,
    Recipe,
    World,
    run,
)
from minipali.tokens import Processor
from minipali.training import optimizers, suffix_loss

TINY = replace(
    preset("small"),
    vision=replace(preset("small").vision, num_hidden_layers=1),
    text=replace(preset("small").text, num_hidden_layers=1),
)
RECIPE = Recipe(contrastive_steps=6, contrastive_batch=4, generative_steps=4, generative_batch=2)
STAGES = (ContrastiveStage, GenerativeStage)


@pytest.fixture(scope="module")
def processor():
    return Processor(recipe.SMALL_TOKENIZER, TINY)


def make(kind, processor, among=None):
    torch.manual_seed(0)
    return kind(RECIPE, TINY, processor, among or World())


# --- the stages ----------------------------------------------------------------------------------


def test_the_generative_loss_is_the_suffix_loss_of_the_plain_model(processor):
    stage = make(GenerativeStage, processor)
    pixels, groups = stage.batch(np.random.default_rng(0), 0.5)
    expected = []
    for group in groups:
        each = len(group["labels"]) // len(pixels)
        logits = stage.model(**group, pixel_values=pixels.repeat_interleave(each, dim=0))
        expected.append(suffix_loss(logits, group["labels"]))
    found = stage.module(pixels, [dict(group) for group in groups])
    torch.testing.assert_close(found, sum(expected) / 2, atol=1e-5, rtol=0)


def test_the_contrastive_loss_counts_pictures_and_patches(processor):
    stage = make(ContrastiveStage, processor)
    pixels, sentences, picture_labels, names, patch_labels = stage.batch(
        np.random.default_rng(0), 0.5
    )
    module = stage.module
    features = module.vision_tower(pixels)
    texts = module.text_tower(*sentences)
    whole = siglip_loss(
        module.image_projection(features.mean(1)), texts, module.log_scale, module.bias,
        picture_labels,
    )  # fmt: skip
    parts = siglip_loss(
        module.patch_projection(features).flatten(0, 1), module.text_tower(*names),
        module.log_scale, module.patch_bias, patch_labels.flatten(0, 1),
    )  # fmt: skip
    found = module(pixels, sentences, picture_labels, names, patch_labels)
    torch.testing.assert_close(found, whole + parts)


def test_labels_say_what_is_in_the_scene():
    things = (
        scenes.Thing("cat", (0.0, 0.0, 0.5, 0.5)),
        scenes.Thing("cat", (0.5, 0.5, 1.0, 1.0)),
    )
    scene = scenes.Scene(np.zeros((72, 72, 3), np.uint8), "pink", things)
    labels = recipe.sentence_labels(scene)
    true = [SENTENCES[i] for i in np.flatnonzero(labels == 1)]
    assert true == ["a cat", "two objects", "a pink background"]
    assert set(labels.tolist()) == {1.0, -1.0}
    assert SENTENCES[: len(NAMES)] == NAMES and SENTENCES[len(NAMES) :][:3] == COUNTS
    patches = recipe.patch_labels(scene, 2)[:, scenes.OBJECTS.index("cat")]
    assert patches.tolist() == [1, -1, -1, 1]


def test_every_parameter_is_trained_by_exactly_one_group(processor):
    for kind in STAGES:
        module = make(kind, processor).module
        groups = [g for maker in optimizers(module, 0.01, 0.001, 0.3) for g in maker.param_groups]
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in module.parameters())


# --- stopping and going on -----------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"a": torch.randn(2, 3), "b": [1, None, {"c": torch.ones(1)}], "d": {3: "x", "4": 2.5}}
    save_checkpoint(tmp_path / "x.safetensors", state)
    back = load_checkpoint(tmp_path / "x.safetensors")
    assert torch.equal(back["a"], state["a"]) and torch.equal(back["b"][2]["c"], torch.ones(1))
    assert back["d"] == {3: "x", "4": 2.5} and back["b"][:2] == [1, None]
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("kind", STAGES)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(kind, processor, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir(), halves.mkdir()
    unbroken = make(kind, processor)
    run(unbroken, whole, every=2)

    killed = make(kind, processor)
    batch, steps = killed.batch, iter(range(3))

    def batch_until_killed(*given):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return batch(*given)

    killed.batch = batch_until_killed
    with pytest.raises(KeyboardInterrupt):
        run(killed, halves, every=2)
    resumed = make(kind, processor)
    run(resumed, halves, every=2)
    for name, p in unbroken.module.state_dict().items():
        torch.testing.assert_close(resumed.module.state_dict()[name], p, msg=name)
    steps_logged = [line["step"] for line in read_log(halves / "log.jsonl")]
    assert steps_logged == sorted(set(steps_logged)) and steps_logged[-1] == resumed.steps


def test_another_recipes_checkpoint_is_refused(processor, tmp_path):
    run(make(ContrastiveStage, processor), tmp_path, every=6)
    other = ContrastiveStage(replace(RECIPE, seed=1), TINY, processor, World())
    with pytest.raises(ValueError, match="another recipe"):
        run(other, tmp_path)


def test_learning_reduces_the_loss_and_every_part_of_the_model_moves(processor, tmp_path):
    torch.manual_seed(0)
    stage = GenerativeStage(replace(RECIPE, generative_steps=30), TINY, processor, World())
    batch = stage.batch(np.random.default_rng(0), 0.0)
    stage.batch = lambda rng, progress: (batch[0], [dict(group) for group in batch[1]])
    before = {name: p.clone() for name, p in stage.module.named_parameters()}
    run(stage, tmp_path, every=5)
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.5 * losses[0]
    still = [n for n, p in stage.module.named_parameters() if torch.equal(p, before[n])]
    assert still == []


# --- several processes ---------------------------------------------------------------------------


def gradients(kind, processor, among: World) -> dict[str, torch.Tensor]:
    """The gradient of one step; with two processes each takes half of the pictures."""
    stage = make(kind, processor, among)
    alone = make(kind, processor)  # makes the whole batch, of which each process takes its part
    batch = alone.batch(np.random.default_rng(3), 0.9)
    part = slice(among.rank, None, among.size)
    if kind is ContrastiveStage:
        pixels, _, labels, names, patch_labels = batch
        given = (pixels[part], stage.sentences, labels[part], names, patch_labels[part])
    else:
        # Equal numbers of answer tokens, so that the mean of two means is the mean of all.
        pixels, groups = batch
        row = {name: tensor[:1] for name, tensor in groups[0].items()}
        group = {name: tensor.expand(len(pixels[part]), -1) for name, tensor in row.items()}
        given = (pixels[part], [group])
    module = stage.module
    if among.size > 1:
        module = torch.nn.parallel.DistributedDataParallel(module)
    module(*given).backward()
    return {name: p.grad for name, p in stage.module.named_parameters()}


# What the processes of a test run. torchrun is left out: it would look for the host by its name.
GRADIENTS = """
import sys
import torch
from test_recipe import RECIPE, STAGES, TINY, gradients
from minipali.recipe import SMALL_TOKENIZER, world
from minipali.tokens import Processor
torch.set_num_threads(1)
with world() as among:
    processor = Processor(SMALL_TOKENIZER, TINY)
    found = [gradients(kind, processor, among) for kind in STAGES]
    if among.rank == 1:
        torch.save(found, sys.argv[1])
"""
# The command, with a recipe and a model that take seconds.
COMMAND = """
import functools, os, signal
from datetime import timedelta
import torch
from minipali import recipe
from test_recipe import TINY, TinyRecipe
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests ignore it
torch.set_num_threads(1)
recipe.Recipe, recipe.measure, recipe.preset = TinyRecipe, None, lambda name: TINY
recipe.run = functools.partial(recipe.run, every=2)
recipe.PATIENCE = timedelta(seconds=float(os.environ.get("TEST_PATIENCE", 60)))
recipe.main()
"""


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    contrastive_steps: int = 6
    contrastive_batch: int = 4
    generative_steps: int = 6
    generative_batch: int = 2


def start(code: str, *arguments, number: int = 1, **environment: str) -> list[subprocess.Popen]:
    """Processes that run `code`; several know of each other as torchrun's do."""
    here = Path(__file__).parent
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        **environment,
    }
    for name in ("RANK", "WORLD_SIZE"):
        shared.pop(name, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    meeting["WORLD_SIZE"] = str(number)
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=shared | ({} if number == 1 else meeting | {"RANK": str(rank)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]


def ends(processes: list[subprocess.Popen], seconds: int = 120) -> list[tuple[int, str]]:
    """Exit code and stderr of each."""
    try:
        told = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def test_two_processes_have_the_gradient_of_one(processor, tmp_path):
    """DistributedDataParallel and the ring of sentences, with gloo."""
    result = tmp_path / "gradients.pt"
    for _ in range(3):
        done = ends(start(GRADIENTS, result, number=2))
        # Once in many runs gloo's threads abort a process on its way out. That is torch's own.
        if not any("terminate called without an active exception" in text for _, text in done):
            break
    assert [code for code, _ in done] == [0, 0], done
    together = torch.load(result, weights_only=True)
    for kind, found in zip(STAGES, together, strict=True):
        alone = gradients(kind, processor, World())
        assert alone.keys() == found.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(
                found[name],
                gradient,
                atol=2e-5,
                rtol=1e-3,
                msg=lambda said, name=name: f"{name}: {said}",
            )


def test_uneven_shares_are_refused(processor):
    with pytest.raises(ValueError, match="divide evenly"):
        ContrastiveStage(RECIPE, TINY, processor, World(0, 5))
    with pytest.raises(ValueError, match="divide evenly"):
        GenerativeStage(RECIPE, TINY, processor, World(0, 3))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_trains_a_model_that_loads(tmp_path, monkeypatch):
    from minipali import generate, load

    monkeypatch.setattr(recipe, "measure", None)
    recipe.train_small(tmp_path, replace(RECIPE, contrastive_steps=2, generative_steps=2))
    model, processor = load(tmp_path / "model")
    assert isinstance(model, PaliGemma)
    picture = scenes.examples()["three_apples"]
    assert isinstance(generate(model, processor, picture, "caption en", max_new_tokens=3), str)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    stages = [line["stage"] for line in read_log(tmp_path / "log.jsonl")]
    assert stages == ["contrastive", "generative"]
