"""Lesson 13: the loss, the optimizer, resuming, and training on several processes."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minipali import scenes, training
from minipali.checks import CheckFailed
from minipali.config import preset
from minipali.contrastive import clip_loss, siglip_loss, similarities
from minipali.paligemma import PaliGemma
from minipali.tokens import IGNORE, Processor
from minipali.training import (
    COUNTS,
    NAMES,
    SENTENCES,
    ContrastiveStage,
    GenerativeStage,
    Muon,
    NamingTask,
    Recipe,
    World,
    load_checkpoint,
    naming_task,
    orthogonalise,
    run,
    save_checkpoint,
    schedule,
    speaking_batch,
    speaking_task,
    suffix_loss,
    train_towers,
    try_loss,
    try_training,
)

TINY = replace(
    preset("small"),
    vision=replace(preset("small").vision, num_hidden_layers=1),
    text=replace(preset("small").text, num_hidden_layers=1),
)
RECIPE = Recipe(contrastive_steps=6, contrastive_batch=4, generative_steps=4, generative_batch=2)
STAGES = (ContrastiveStage, GenerativeStage)


@pytest.fixture(scope="module")
def processor():
    return Processor(training.SMALL_TOKENIZER, TINY)


def make(kind, processor, among=None):
    torch.manual_seed(0)
    return kind(RECIPE, TINY, processor, among or World())


def test_suffix_loss_is_the_mean_over_suffix_tokens_alone():
    logits = torch.randn(2, 4, 7, dtype=torch.float64)
    labels = torch.tensor([[IGNORE, IGNORE, 3, 1], [IGNORE, 5, 1, IGNORE]])
    by_hand = []
    for row, place, token in ((0, 1, 3), (0, 2, 1), (1, 0, 5), (1, 1, 1)):
        exponentials = [math.exp(value) for value in logits[row, place].tolist()]
        by_hand.append(-math.log(exponentials[token] / sum(exponentials)))
    assert suffix_loss(logits, labels).item() == pytest.approx(sum(by_hand) / 4, abs=1e-6)
    marked = labels.where(labels != IGNORE, 6)
    assert suffix_loss(logits, marked, ignore=6).item() == pytest.approx(sum(by_hand) / 4, abs=1e-6)


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
    labels = training.sentence_labels(scene)
    true = [SENTENCES[i] for i in np.flatnonzero(labels == 1)]
    assert true == ["a cat", "two objects", "a pink background"]
    assert set(labels.tolist()) == {1.0, -1.0}
    assert SENTENCES[: len(NAMES)] == NAMES and SENTENCES[len(NAMES) :][:3] == COUNTS
    patches = training.patch_labels(scene, 2)[:, scenes.OBJECTS.index("cat")]
    assert patches.tolist() == [1, -1, -1, 1]


def test_orthogonalised_matrices_keep_directions_and_even_out_sizes():
    torch.manual_seed(0)
    for shape in ((3, 8, 8), (2, 12, 6), (2, 6, 12)):
        matrices = torch.randn(shape)
        found = orthogonalise(matrices, steps=12)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        nearest = left @ right
        assert F.cosine_similarity(found.flatten(1), nearest.flatten(1)).min() > 0.97


def test_muon_moves_downhill():
    torch.manual_seed(0)
    target, weight = torch.randn(6, 4), torch.nn.Parameter(torch.zeros(6, 4))
    maker = Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        losses.append(loss.item())
        maker.zero_grad()
        loss.backward()
        maker.step()
    assert losses[-1] < 0.05 * losses[0]


def test_every_parameter_is_trained_by_exactly_one_group(processor):
    for kind in STAGES:
        module = make(kind, processor).module
        groups = [
            g for maker in training.optimizers(module, 0.01, 0.001, 0.3) for g in maker.param_groups
        ]
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in module.parameters())


def test_the_schedule_rises_stays_and_ends_near_zero():
    factors = [schedule(step, 1000, warmup=10) for step in range(1000)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1 and factors[500] == 1
    assert 0 < factors[-1] < 0.01


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
    steps_logged = [line["step"] for line in training.read_log(halves / "log.jsonl")]
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
    losses = [line["loss"] for line in training.read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.5 * losses[0]
    still = [n for n, p in stage.module.named_parameters() if torch.equal(p, before[n])]
    assert still == []


WORKER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from test_training import RECIPE, STAGES, TINY, gradients
from minipali.tokens import Processor
from minipali.training import SMALL_TOKENIZER, world
torch.set_num_threads(1)
with world() as among:
    processor = Processor(SMALL_TOKENIZER, TINY)
    found = [gradients(kind, processor, among) for kind in STAGES]
    if among.rank == 1:
        torch.save(found, Path(sys.argv[1]))
"""


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


def test_two_processes_have_the_gradient_of_one(processor, tmp_path):
    """DistributedDataParallel and the ring of sentences, under torchrun with gloo."""
    script, result = tmp_path / "worker.py", tmp_path / "gradients.pt"
    script.write_text(WORKER)
    here = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += [str(script), str(result), str(here)]
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        # Once in many runs gloo's threads abort a process on its way out. That is torch's own.
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
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


def test_the_command_trains_a_model_that_loads(tmp_path, monkeypatch):
    from minipali import generate, load

    monkeypatch.setattr(training, "measure", None)
    recipe = replace(RECIPE, contrastive_steps=2, generative_steps=2)
    training.train_small(tmp_path, recipe)
    model, processor = load(tmp_path / "model")
    assert isinstance(model, PaliGemma)
    picture = scenes.examples()["three_apples"]
    assert isinstance(generate(model, processor, picture, "caption en", max_new_tokens=3), str)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    stages = [line["stage"] for line in training.read_log(tmp_path / "log.jsonl")]
    assert stages == ["contrastive", "generative"]


# --- lesson 05: two small towers in seconds ------------------------------------------------------


@pytest.fixture(scope="module")
def colours(processor):
    """A task that is learned in some steps: every object is one colour, in all its pictures."""
    shades = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1]])
    pictures = shades[:, None, :, None, None].expand(4, 3, 3, 72, 72).clone()
    ids = torch.arange(10, 22).reshape(4, 3)
    return NamingTask(("a", "b", "c", "d"), (ids, torch.ones_like(ids)), pictures, pictures, 1856)


EASY = {"batch": 4, "pictures": 240}


def test_a_naming_task_keeps_objects_sentences_and_artists_together(processor, monkeypatch):
    made = []

    def compose(rng, artists, names, strength):
        made.append((artists, strength > 0))
        shade = {"dog": 255, "key": 0}[names[0]]
        return scenes.Scene(np.full((72, 72, 3), shade, np.uint8), "white", ())

    monkeypatch.setattr(scenes, "compose", compose)
    task = naming_task(processor, ("key", "dog"), each=3)
    assert task.pictures.shape == (2, 3, 3, 72, 72) and task.new.shape == (2, 20, 3, 72, 72)
    for pictures in (task.pictures, task.new):
        assert (pictures[0] == -1).all() and (pictures[1] == 1).all()
    ids, mask = task.sentences
    told = [
        processor.decode(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True)
    ]
    assert told == ["a key", "a dog"]
    trained_on = [artists for artists, augmented in made if augmented]
    assert len(trained_on) == 6 and all(
        artists == scenes.TRAINING_ARTISTS for artists in trained_on
    )
    tested = [artists for artists, augmented in made if not augmented]
    assert len(tested) == 40 and all(artists == scenes.VALIDATION_ARTIST for artists in tested)


@pytest.mark.parametrize(("loss", "bias"), [(clip_loss, None), (siglip_loss, -1.0)])
def test_towers_learn_an_easy_task_with_either_loss(colours, loss, bias):
    trained = train_towers(loss, colours, bias=bias, **EASY)
    assert trained.accuracy == 1.0
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    assert trained.seen[-1] == 240 and len(trained.seen) == len(trained.accuracies) >= 8
    assert (trained.towers.bias.item() != 0.0) == (bias is not None)


def test_a_batch_holds_different_objects_with_their_own_sentences(colours):
    seen = []

    def spy(image, text, log_scale):
        seen.append(similarities(text, text).detach())
        return clip_loss(image, text, log_scale)

    train_towers(spy, colours, batch=3, pictures=30)
    assert len(seen) == 10
    for alike in seen:
        assert alike.shape == (3, 3) and (alike - 2 * torch.eye(3)).max() < 0.999
    first, second = (train_towers(clip_loss, colours, batch=3, pictures=30) for _ in range(2))
    assert first.losses == second.losses


def test_the_new_artists_pictures_are_never_trained_on(colours):
    blank = replace(colours, new=torch.zeros_like(colours.new))
    trained = train_towers(clip_loss, blank, **EASY)
    assert trained.accuracy == 0.25  # all alike, so one sentence gets them all


def unwritten(image, text, log_scale):
    raise NotImplementedError


def scale_cut_off(image, text, log_scale):
    return clip_loss(image, text, log_scale.item())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (clip_loss, "✓ training with clip_loss: correct. Zero-shot accuracy on the new artist"),
        (lambda i, t, s: clip_loss(i, t.roll(1, 0), s), "0%, the floor is 80%. Guessing gives 25%"),
        (scale_cut_off, "no gradient reached it"),
        (unwritten, "not attempted. Write `clip_loss` first."),
        (lambda i, t, s: clip_loss(i, t, s) * float("nan"), "FloatingPointError: the loss is nan in"
         " step 1 of 60"),
        (lambda i, t, s: clip_loss(i, t, s).detach(), "crashed. RuntimeError"),
    ],
)  # fmt: skip
def test_a_learners_loss_is_told_whether_it_teaches(colours, monkeypatch, capsys, loss, said):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    try_loss("clip_loss", loss, colours, floor=0.8, **EASY)
    assert said in capsys.readouterr().out
    monkeypatch.setenv("MINIPALI_STRICT", "1")
    if "correct" in said:
        assert try_loss("clip_loss", loss, colours, floor=0.8, **EASY).accuracy == 1.0
    else:
        with pytest.raises(CheckFailed, match="training with clip_loss"):
            try_loss("clip_loss", loss, colours, floor=0.8, **EASY)


@pytest.fixture(scope="module")
def speaking():
    """The shipped model, its processor, and a small task for a new decoder behind its tower."""
    from minipali import load

    model, processor = load("small")
    return model, processor, speaking_task(model, processor, number=70, new=50)


def test_a_speaking_batch_is_what_the_processor_makes_of_the_same_rows(speaking):
    _, processor, task = speaking
    long = replace(task, answers=[[7, 8, 9], *task.answers[1:]])
    inputs, labels = speaking_batch(long, [3, 0])
    eos = [processor.config.eos_token_id]
    expected = processor.pad(
        [processor.prompt_ids("answer en what is this?")] * 2,
        [task.answers[3] + eos, [7, 8, 9] + eos],
        side="right",
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(inputs[name], expected[name]), name
    assert torch.equal(labels, expected["labels"])
    assert torch.equal(inputs["features"], task.features[[3, 0]])


def test_a_speaker_sees_what_the_whole_model_sees(speaking):
    model, processor, task = speaking
    rng = np.random.default_rng(31_000)
    made = [
        scenes.compose(rng, scenes.TRAINING_ARTISTS, 1, strength=rng.random() ** 0.5)
        for _ in range(70)
    ]
    assert [processor.decode(ids) for ids in task.answers] == [s.things[0].name for s in made]
    inputs, _ = speaking_batch(task, [0, 5, 69])
    plain = {name: tensor for name, tensor in inputs.items() if name != "features"}
    for one in (model, training.fresh_decoder(model)):
        whole = one(**plain, pixel_values=scenes.pixel_values([made[i] for i in (0, 5, 69)]))
        torch.testing.assert_close(training.Speaker(one)(inputs), whole, atol=1e-4, rtol=1e-4)


def test_the_share_of_right_names_is_that_of_greedy_answers(speaking):
    model, processor, task = speaking
    told = []
    for features in task.new_features:
        batch = processor.pad([task.prefix], [[]])
        del batch["labels"]
        batch["image_features"] = model.multi_modal_projector(features[None])
        x = model.hidden_states(**batch)
        told.append([int(model.language_model.logits(x[:, -1]).argmax())])
    assert all(len(answer) == 1 for answer in task.new_answers)  # so one step is the whole name
    greedy = np.mean([a == b for a, b in zip(told, task.new_answers, strict=True)])
    assert 0.5 < greedy < 1
    assert training.right_share(model, task) == pytest.approx(greedy)


def test_a_fresh_decoder_learns_behind_a_tower_that_does_not(speaking):
    model, _, _ = speaking
    fresh = training.fresh_decoder(model)
    for p, q in zip(fresh.vision_tower.parameters(), model.vision_tower.parameters(), strict=True):
        assert torch.equal(p, q) and not p.requires_grad
    assert all(p.requires_grad for p in fresh.language_model.parameters())
    other = training.fresh_decoder(model, seed=1)
    table = fresh.language_model.embed_tokens.weight
    assert not torch.equal(table, other.language_model.embed_tokens.weight)


def steps_alone(module, optimizer, batches, held_out, loss, epochs, max_norm):
    losses = []
    for x, y in batches * epochs:
        losses.append(loss(module(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach(), torch.zeros(epochs)


def a_wonderful_loss(*given):
    return torch.zeros(20), torch.zeros(2)


def unwritten_labels(prefix, suffix, eos, ignore):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("labels_of", "train", "floor", "said"),
    [
        (training.row_labels, steps_alone, 0.0, "correct. "),
        (training.row_labels, steps_alone, 1.1, "What does your `check` say?"),
        (training.row_labels, a_wonderful_loss, 1.1, "the loss ended at 0.00: the model learned"),
        (unwritten_labels, steps_alone, 0.0, "not attempted. Write `unwritten_labels` first."),
        (lambda *given: None, steps_alone, 0.0, "crashed. TypeError"),
    ],
)
def test_a_learners_pieces_are_told_whether_they_teach(
    speaking, monkeypatch, capsys, labels_of, train, floor, said
):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    model, _, task = speaking
    learner = try_training(labels_of, suffix_loss, train, model, task, floor)
    assert said in capsys.readouterr().out
    if train is steps_alone and labels_of is training.row_labels:
        start = training.fresh_decoder(model).language_model.embed_tokens.weight
        assert not torch.equal(learner.language_model.embed_tokens.weight, start)
