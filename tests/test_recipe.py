"""The shipped model's training: its stages, stopping and going on, several processes."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minipali import checkpoints, recipe, scenes
from minipali.checkpoints import (
    TrainingError,
    load_checkpoint,
    only_run_in,
    read_log,
    save_checkpoint,
)
from minipali.checks import recipe as checks
from minipali.checks.engine import REFUSED, examine
from minipali.config import preset
from minipali.contrastive import siglip_loss
from minipali.figures.training import curve
from minipali.page import make_page
from minipali.paligemma import PaliGemma
from minipali.recipe import (
    COUNTS,
    NAMES,
    SENTENCES,
    ContrastiveStage,
    GenerativeStage,
    MyContrastiveStage,
    MyGenerativeStage,
    Recipe,
    Together,
    World,
    Written,
    own_loop,
    run,
)
from minipali.tokens import Processor
from minipali.training import fit, optimizers, suffix_loss
from minipali.weights import load

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
        inputs, labels = dict(group), group["labels"]
        each = len(inputs.pop("labels")) // len(pixels)
        logits = stage.model(**inputs, pixel_values=pixels.repeat_interleave(each, dim=0))
        expected.append(suffix_loss(logits, labels))
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


# --- a model of one's own ------------------------------------------------------------------------

MINE = Recipe(contrastive_steps=3, contrastive_batch=24, generative_steps=3, generative_batch=2)
MY_STAGES = (MyContrastiveStage, MyGenerativeStage)


def own(kind, processor, written=None, **how):
    torch.manual_seed(0)
    return kind(MINE, TINY, processor, World(), written or Written(), **how)


def doing(function):
    """The same function, which nobody would take for the package's, and how often it ran."""
    ran = []

    def mine(*given):
        ran.append(1)
        return function(*given)

    return mine, ran


def test_everything_that_is_written_takes_part_in_both_stages(processor):
    found = {
        name: doing(function)
        for name, function in (
            ("siglip_loss", siglip_loss), ("suffix_loss", suffix_loss), ("train", recipe.train),
            ("row_labels", recipe.row_labels), ("patch_targets", recipe.patch_targets),
            ("rms_norm", lambda x, weight, eps: x * (1 + weight)),
            ("layer_norm", lambda x, weight, bias, eps: torch.nn.functional.layer_norm(
                x, x.shape[-1:], weight, bias, eps)),
        )
    }  # fmt: skip
    pieces = {name: found[name][0] for name in ("layer_norm",)}
    tools = {name: mine for name, (mine, _) in found.items() if not name.endswith("norm")}
    for kind in MY_STAGES:
        stage = own(kind, processor, Written(pieces, {}, tools))
        assert set(stage.pieces) == {"layer_norm"}
        own_loop(stage, stage.module, optimizers(stage.module, 0.01, 1e-3))
    assert {name for name, (_, ran) in found.items() if ran} == set(found) - {"rms_norm"}


@pytest.mark.parametrize("contrastive_steps", [3, 0])
def test_the_second_stage_keeps_a_tower_that_has_learned(contrastive_steps, processor):
    torch.manual_seed(0)
    budget = replace(MINE, contrastive_steps=contrastive_steps)
    stage = MyGenerativeStage(budget, TINY, processor, World(), Written())
    before = {name: p.clone() for name, p in stage.model.named_parameters()}
    own_loop(stage, stage.module, optimizers(stage.module, 0.01, 1e-3))
    moved = {name for name, p in stage.model.named_parameters() if not torch.equal(p, before[name])}
    tower = {name for name in before if name.startswith("vision_tower")}
    assert "language_model.norm.weight" in moved
    assert moved & tower == (set() if contrastive_steps else tower)


@pytest.mark.parametrize("kind", MY_STAGES)
def test_a_piece_that_stops_gradients_or_crashes_is_left_out(kind, processor):
    def right(x, weight, bias, eps):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)

    good = {"layer_norm": right}
    deaf = good | {"mlp": lambda x, w1, b1, w2, b2: torch.zeros_like(x)}
    cut = good | {"layer_norm": lambda *given: right(*given).detach()}
    broken = good | {"attend": lambda *given: 1 / 0}
    for written, kept in ((good, good), (deaf, good), (cut, {}), (broken, good)):
        assert set(own(kind, processor, Written(written)).pieces) == set(kept)


@pytest.mark.parametrize("kind", MY_STAGES)
def test_a_learners_loop_makes_the_steps_that_fit_makes(kind, processor):
    stage, other = own(kind, processor), own(kind, processor)
    losses = own_loop(stage, stage.module, optimizers(stage.module, 0.01, 1e-3))

    def step_loss(step):
        x, y = other.batch(recipe.drawn_for(other, step), step / other.steps)
        return other.loss(other.module(x), y)

    makers = optimizers(other.module, 0.01, 1e-3)
    assert losses == fit(other.module, step_loss, other.steps, makers, recipe.warmup_of(other))
    for name, p in other.module.state_dict().items():
        assert torch.equal(stage.module.state_dict()[name], p), name
    assert np.isfinite(stage.watched)


def goes_on_bit_equal(new, tmp_path, steps: int, every: int) -> None:
    """A stage that `new` makes, killed after some steps and run again, ends as an unbroken one."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir(), halves.mkdir()
    unbroken = new()
    run(unbroken, whole, every=every)
    killed, left = new(), iter(range(steps))
    batch = killed.batch

    def batch_until_killed(*given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return batch(*given)

    killed.batch = batch_until_killed
    with pytest.raises(KeyboardInterrupt):
        run(killed, halves, every=every)
    resumed = new()
    run(resumed, halves, every=every)
    for name, p in unbroken.module.state_dict().items():
        assert torch.equal(resumed.module.state_dict()[name], p), name
    assert logged(halves) == logged(whole)


@pytest.mark.parametrize("kind", MY_STAGES)
def test_a_run_with_a_learners_loop_goes_on_bit_equal(kind, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "CHUNK", 1)
    goes_on_bit_equal(lambda: own(kind, processor), tmp_path, steps=2, every=1)


def test_each_round_has_different_objects_and_truly_belonging_sentences(processor):
    stage = own(MyContrastiveStage, processor)
    rng, made = np.random.default_rng(3), []

    def noted(*given, done=scenes.compose, **how):
        made.append(done(*given, **how))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "compose", noted)
        (_, _, whole, parts), _ = stage.drawn(rng, scenes.TRAINING_ARTISTS, 1.0)
    sentences = NAMES + recipe.GROUNDS
    for pictures, names in whole:
        assert len(set(names.tolist())) == len(names) == 24
        for i, j in zip(pictures.tolist(), names.tolist(), strict=True):
            assert [scenes.with_article(t.name) for t in made[i].things] == [sentences[j]]
    assert len(parts) == recipe.ROUNDS
    for patches, names in parts:
        assert len(set(names.tolist())) == len(names)
        for patch, j in zip(patches.tolist(), names.tolist(), strict=True):
            scene, place = made[patch // 36], patch % 36
            y, x = (place // 6 + 0.5) / 6, (place % 6 + 0.5) / 6
            if j >= len(NAMES):
                assert f"a {scene.background} background" == sentences[j]
                assert not any(inside(t.box, y, x) for t in scene.things)
            else:
                assert sentences[j] in [scenes.with_article(t.name) for t in scene.things]
    assert own(MyContrastiveStage, processor, patch_labels=False).held_out[0][3] == []


def inside(box, y, x):
    return box[0] < y < box[2] and box[1] < x < box[3]


def test_a_patch_belongs_to_the_box_that_covers_most_of_it():
    boxes = torch.tensor([[0.0, 0.5, 0.75, 1.0]])
    assert recipe.patch_targets(boxes, 2, 0.4).tolist() == [-1, 0, -1, 0]
    assert recipe.patch_targets(boxes, 2, 0.5).tolist() == [-1, 0, -1, -1]
    for given in checks.PATCH_TARGETS.cases():
        assert torch.equal(recipe.patch_targets(*given), checks.patch_targets(*given))


def test_several_optimizers_together_keep_to_the_schedule():
    weights = [torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2)]
    makers = [torch.optim.SGD([p], lr=rate) for p, rate in zip(weights, (0.1, 0.2), strict=True)]
    together = Together(makers, steps=10, warmup=2, done=0)
    for step in range(10):
        for p in weights:
            p.grad = torch.tensor(1.0)
        before = [p.item() for p in weights]
        together.step()
        factor = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25][step]
        moved = [a - p.item() for a, p in zip(before, weights, strict=True)]
        assert moved == pytest.approx([0.1 * factor, 0.2 * factor], abs=1e-6)
    together.zero_grad()
    assert all(p.grad is None for p in weights)


def test_attentions_way_back_by_hand_is_autograds():
    for gradient, query, key, value, mask in checks.ATTENTION_BACKWARD.cases():
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        output = torch.nn.functional.scaled_dot_product_attention(*inputs, mask)
        expected = torch.autograd.grad(output, inputs, gradient)
        found = checks.attention_backward(gradient, query, key, value, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def by_autograd(gradient, query, key, value, mask):
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    scores = inputs[0] @ inputs[1].mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return inputs, scores.softmax(dim=-1) @ inputs[2]


def asked_for(*given):
    inputs, output = by_autograd(*given)
    return torch.autograd.grad(output, inputs, given[0])


def left_behind(*given):
    inputs, output = by_autograd(*given)
    output.backward(given[0])
    return tuple(x.grad for x in inputs)


def a_step_of_torch(gradient, query, key, value, mask):
    _, _ = by_autograd(gradient, query, key, value, mask)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    shares = scores.softmax(dim=-1)
    back = torch._softmax_backward_data(gradient @ value.mT, shares, -1, shares.dtype)
    return back @ key, back.mT @ query, shares.mT @ gradient


@pytest.mark.parametrize("attempt", [asked_for, left_behind, a_step_of_torch])
def test_attentions_way_back_is_not_to_be_asked_of_torch(attempt):
    outcome = examine(checks.ATTENTION_BACKWARD, attempt)
    assert outcome.status == REFUSED and "runs torch's" in outcome.message


def one_by_one(boxes, side, share):
    """patch_targets, patch by patch."""
    targets = []
    for place in range(side**2):
        top, left = place // side, place % side
        areas = [
            max(0.0, min(top + 1, side * y1) - max(top, side * y0))
            * max(0.0, min(left + 1, side * x1) - max(left, side * x0))
            for y0, x0, y1, x1 in boxes.tolist()
        ]
        most = max(areas)
        targets.append(areas.index(most) if most > share else -1)
    return torch.tensor(targets)


@pytest.mark.parametrize(("floor", "said"), [(0.0, "correct"), (1.1, "the floor is 110%")])
def test_a_short_training_is_told_whether_it_learned(monkeypatch, capsys, tmp_path, floor, said):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    checks.try_recipe(one_by_one, tmp_path, floor, MINE)
    told = capsys.readouterr().out
    assert "yours, 1: patch_targets" in told and said in told


def test_a_short_training_with_wrong_patch_targets_is_not_correct(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    checks.try_recipe(lambda boxes, side, share: torch.full((side**2,), -1), tmp_path, 0.0, MINE)
    told = capsys.readouterr().out
    assert "wrong" in told and "`patch_targets` does not pass its check" in told


def test_a_stub_in_a_short_training_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)

    def not_written(boxes, side, share):
        raise NotImplementedError("write it")

    assert checks.try_recipe(not_written, tmp_path, 0.0, MINE) is None
    assert "`not_written` is not written yet" in capsys.readouterr().out


def test_a_model_of_ones_own_opens_everywhere(tmp_path, monkeypatch, capsys):
    """In this package, in transformers, and as a web page."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(recipe, "MY_SIZES", TINY)
    seen = []
    model, processor = recipe.train_mine(tmp_path, tmp_path, MINE, 3, 1, seen.append)
    assert "none yet" in capsys.readouterr().out
    assert [line["stage"] for line in seen[-1]] == ["contrastive", "generative"]
    assert {"held out", "training naming", "validation caption"} <= set(seen[-1][-1])
    assert not any("test" in key for line in seen[-1] for key in line)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    batch = processor(list(scenes.examples().values())[:2], ["caption en", "detect dog"])
    with torch.inference_mode():
        expected = model(**batch)[:, -1]
        again, _ = load(tmp_path / "model")
        assert torch.equal(again(**batch)[:, -1], expected)
        theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
            tmp_path / "model", dtype=torch.float32
        )
        found = theirs.eval()(**batch).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert "<title>" in make_page(tmp_path / "model")


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
    goes_on_bit_equal(lambda: make(kind, processor), tmp_path, steps=3, every=2)


def logged(folder: Path) -> list[dict]:
    """The lines of the log as they stand in the file, but for the time that they tell."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


@pytest.mark.parametrize("lost", ["save_checkpoint", "add_line"])
def test_log_and_checkpoint_agree_after_a_kill_between_them(processor, tmp_path, monkeypatch, lost):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir(), halves.mkdir()
    run(make(GenerativeStage, processor), whole, every=1)
    done, calls = getattr(recipe, lost), []

    def killed_the_third_time(file, *given):
        calls.append(file)
        if len(calls) == 3:
            if lost == "add_line":
                file.write_text(file.read_text() + '{"stage": "genera')  # cut in the middle
            raise KeyboardInterrupt
        done(file, *given)

    monkeypatch.setattr(recipe, lost, killed_the_third_time)
    with pytest.raises(KeyboardInterrupt):
        run(make(GenerativeStage, processor), halves, every=1)
    assert [line["step"] for line in read_log(halves / "log.jsonl")][:2] == [1, 2]
    run(make(GenerativeStage, processor), halves, every=1)
    assert logged(halves) == logged(whole)


def test_a_log_says_which_of_its_lines_is_none(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"stage": "a", "step": 1, "loss": 2.5}\nrubbish\n{"stage": "a", "step": 2}\n')
    with pytest.raises(TrainingError, match="line 2 of .*'rubbish'"):
        read_log(log)


def test_a_checkpoint_is_not_mapped_to_its_file(tmp_path):
    """Windows replaces no file that somebody has mapped."""
    file = tmp_path / "x.safetensors"
    save_checkpoint(file, {"a": torch.ones(10_000)})
    held = load_checkpoint(file)["a"]
    with file.open("r+b") as same:
        same.seek(-40_000, os.SEEK_END)
        same.write(bytes(40_000))
    assert torch.equal(held, torch.ones(10_000))


def test_a_file_that_is_held_for_a_while_is_replaced_afterwards(tmp_path, monkeypatch):
    """As on Windows, where a virus scanner opens what is new."""
    file, tries, replaced = tmp_path / "x.safetensors", [], Path.replace

    def held(self, target):
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError("held")
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    save_checkpoint(file, {"a": 1})
    assert load_checkpoint(file) == {"a": 1} and len(tries) == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError("no")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch, error):
    file = tmp_path / "x.safetensors"
    save_checkpoint(file, {"a": 1})

    def full(tensors, new, metadata):
        Path(new).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(TrainingError, match="the disk must have room .* goes on from the last"):
        save_checkpoint(file, {"a": 2})
    assert load_checkpoint(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("what", ["text", "cut", "foreign", "folder", "other model", "no step"])
def test_a_damaged_or_foreign_checkpoint_is_told_in_one_sentence(processor, tmp_path, what):
    run(make(ContrastiveStage, processor), tmp_path, every=6)
    file = tmp_path / "contrastive.safetensors"
    whole, state = file.read_bytes(), load_checkpoint(file)
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "foreign":
        save_file({"weight": torch.ones(2)}, file)
    elif what == "other model":
        save_checkpoint(file, state | {"module": {"weight": torch.ones(2)}})
    elif what == "no step":
        save_checkpoint(file, {key: value for key, value in state.items() if key != "step"})
    else:
        file.write_bytes(b"hello" if what == "text" else whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="contrastive.safetensors must be a checkpoint") as told:
        run(make(ContrastiveStage, processor), tmp_path)
    assert "\n" not in str(told.value) and "delete it" in str(told.value)


def test_another_recipes_checkpoint_is_refused(processor, tmp_path):
    run(make(ContrastiveStage, processor), tmp_path, every=6)
    other = ContrastiveStage(replace(RECIPE, seed=1), TINY, processor, World())
    with pytest.raises(
        TrainingError, match=r"another recipe \(seed 0, now 1\): repeat the command"
    ):
        run(other, tmp_path)
    other = make(ContrastiveStage, processor, World(1, 2))
    with pytest.raises(TrainingError, match=r"another recipe \(processes 1, now 2\)"):
        run(other, tmp_path)


def test_a_folder_belongs_to_one_training_at_a_time(tmp_path):
    folder = tmp_path / "new" / "run"
    with (
        only_run_in(folder),
        pytest.raises(TrainingError, match="another one is at work in it"),
        only_run_in(folder),
    ):
        pass
    with only_run_in(folder):  # free again
        pass


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(TrainingError, match="must be a folder to write in"),
            only_run_in(folder),
        ):
            pass


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


def test_a_recipe_has_steps_and_a_seed_that_can_be_used():
    assert Recipe(contrastive_steps=0).generative_steps == 6000
    for wrong in (
        {"contrastive_steps": -5}, {"generative_steps": 0}, {"generative_steps": -1},
        {"contrastive_batch": 0}, {"generative_batch": 0}, {"seed": -1}, {"seed": 2**64},
    ):  # fmt: skip
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be from"):
            Recipe(**wrong)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    for given, said in (
        (["--contrastive-steps", "-5"], "contrastive_steps must be from 0"),
        (["--generative-steps", "0"], "generative_steps must be from 1"),
        (["--folder", str(tmp_path / "file")], "must be a folder to write in"),
    ):
        monkeypatch.setattr(sys, "argv", ["recipe", "small", *given])
        with pytest.raises(SystemExit) as exit:
            recipe.main()
        told = capsys.readouterr().err
        assert exit.value.code == 2 and said in told
        assert told.startswith("minipali: error: ") and told.count("\n") == 1


def wait_for(file: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not file.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert file.exists(), process.communicate(timeout=5)


def same_end(found: Path, expected: Path) -> None:
    assert logged(found) == logged(expected)
    for stage in ("contrastive", "generative"):
        one, other = (load_file(run / f"{stage}.safetensors") for run in (found, expected))
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (stage, name)
    one, other = (load_file(run / "model" / "model.safetensors") for run in (found, expected))
    assert all(torch.equal(one[name], other[name]) for name in other) and one.keys() == other.keys()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    ((code, text),) = ends(start(COMMAND, "small", "--folder", folder))
    assert code == 0, text
    assert text == ""  # no bar where no terminal reads it
    return folder


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    """Killed from outside, several times, at moments that nobody chose."""
    for _ in range(4):
        (process,) = start(COMMAND, "small", "--folder", tmp_path)
        wait_for(tmp_path / ".lock", process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=random.uniform(0.0, 3.0))
        process.kill()
        process.communicate()
        for file in tmp_path.glob("*.safetensors"):
            load_checkpoint(file)
    ((code, text),) = ends(start(COMMAND, "small", "--folder", tmp_path))
    assert code == 0, text
    same_end(tmp_path, undisturbed)


def test_a_curve_of_one_measurement_can_be_seen():
    one = {"stage": "contrastive", "step": 10, "loss": 9.0, "training zero-shot": 0.1,
           "validation zero-shot": 0.2}  # fmt: skip
    for log, dots in (([one], {"o"}), ([one, one | {"step": 20}], {"None"})):
        figure = curve(log)
        drawn = [line for axis in figure.axes for line in axis.lines]
        assert len(drawn) == 3 and {line.get_marker() for line in drawn} == dots
        plt.close(figure)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_says_how_to_go_on_and_a_second_training_is_refused(tmp_path):
    arguments = ("small", "--folder", tmp_path, "--contrastive-steps", "100000")
    (process,) = start(COMMAND, *arguments)
    wait_for(tmp_path / "contrastive.safetensors", process)
    ((code, text),) = ends(start(COMMAND, *arguments))
    assert code == 2 and "another one is at work in it" in text and text.count("\n") == 1
    process.send_signal(signal.SIGINT)
    ((code, text),) = ends([process])
    assert code == 130
    assert text == (
        f"minipali: stopped; the same command goes on from the last checkpoint in {tmp_path}\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_full_disk_stops_it_in_one_line_and_it_goes_on_afterwards(undisturbed, tmp_path):
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))\n"
    ((code, text),) = ends(start(limited + COMMAND, "small", "--folder", tmp_path))
    assert code == 2 and text.count("\n") == 1 and "the disk must have room" in text
    assert not list(tmp_path.glob("*.new"))
    ((code, text),) = ends(start(COMMAND, "small", "--folder", tmp_path))
    assert code == 0, text
    same_end(tmp_path, undisturbed)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs a way to stop a process")
@pytest.mark.parametrize("stopped_by", ["SIGKILL", "SIGSTOP"])
def test_where_one_process_stops_the_other_ends_too(tmp_path, stopped_by):
    arguments = ("small", "--folder", tmp_path, "--contrastive-steps", "100000")
    first, second = start(COMMAND, *arguments, number=2, TEST_PATIENCE="10")
    try:
        wait_for(tmp_path / "contrastive.safetensors", first)
        second.send_signal(getattr(signal, stopped_by))
        text = first.communicate(timeout=120)[1]
    finally:
        second.kill()
        first.kill()
        second.communicate()
    assert first.returncode == 2
    (told,) = (line for line in text.splitlines() if line.startswith("minipali: "))
    assert "another one has ended or does not answer" in told and "Traceback" not in text
