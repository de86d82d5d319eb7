"""Fine-tuning: what is wrong with data, what a step computes, stopping and going on."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import fresh_model
from PIL import Image
from safetensors.torch import load_file
from test_recipe import ends, start

import minipali
from minipali import cli, finetuning
from minipali.checkpoints import TrainingError, goes_on, read_log
from minipali.dataset import DataError, hold_out, read_data
from minipali.finetuning import Batches, FineTuned, Run, Settings, chosen, finetune, measures
from minipali.lora import add_lora
from minipali.tokens import Processor
from minipali.training import fit, suffix_loss

QUESTION = "answer en what is this?"
TARGETS = ("q_proj", "v_proj")


def write_data(folder: Path, number: int = 8, **special) -> Path:
    """Pictures of one colour each, and what colour it is; `special` lines replace others."""
    folder.mkdir(exist_ok=True)
    colours = {"red": (200, 30, 30), "green": (20, 160, 40), "blue": (20, 40, 200)}
    lines = []
    for i in range(number):
        name, colour = list(colours.items())[i % 3]
        Image.new("RGB", (16, 12), tuple(c + i for c in colour)).save(folder / f"{i}.png")
        suffix = name if i % 2 else f"a {name} dog"  # of several lengths
        lines.append({"image": f"{i}.png", "prefix": QUESTION, "suffix": suffix})
    text = "\n".join(json.dumps(line) for line in lines) + "\n"
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Do not change it."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data(folder, processor):
    return read_data(folder, processor, 0.25)


def settings(**how) -> Settings:
    return Settings(**{"steps": 6, "batch_size": 3, "at_once": 2, "targets": TARGETS} | how)


# --- the data ------------------------------------------------------------------------------------


def faults(folder, processor, *lines, **how) -> list[str]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return read_data(folder, processor, **how).faults


GOOD = {"image": "0.png", "prefix": QUESTION, "suffix": "a dog"}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "must be a JSON object on one line"),
        ([1], "must be a JSON object, found [1]"),
        (GOOD | {"image": "x.png"}, "image must be a picture: no picture at"),
        (GOOD | {"image": "train.jsonl"}, "image must be a picture: "),
        (GOOD | {"image": 3}, "image must be a text, not empty, found 3"),
        ({"prefix": "", "suffix": "a"}, "image must be a text, not empty, found none"),
        (GOOD | {"suffix": "  "}, "suffix must be a text, not empty, found '  '"),
        (GOOD | {"prefix": None}, "prefix must be a text, found None"),
        (GOOD | {"suffix": "<loc1024><loc0000><loc0001><loc0002> dog"}, "found '<loc1024>'"),
        (GOOD | {"prefix": "detect <loc12 dog"}, "found '<loc12'"),
        (GOOD | {"suffix": "<seg128>"}, "found '<seg128>'"),
        (GOOD | {"suffix": "a <image>"}, "suffix must not hold <image>"),
        (GOOD | {"suffix": "\ud800"}, "whole characters"),
        (GOOD | {"suffix": "dog " * 300}, "must have at most 128 tokens together, with the 9 of"),
        (GOOD | {"answers": "dog"}, "answers must be a list of texts, found 'dog'"),
    ],
)
def test_a_line_that_cannot_be_used(processor, tmp_path, line, fault):
    write_data(tmp_path)
    (found,) = faults(tmp_path, processor, GOOD, "", line)
    assert found.startswith("train.jsonl, line 3: ") and fault in found


def test_all_faults_are_told_at_once(processor, tmp_path):
    write_data(tmp_path)
    bad = {"image": "x.png", "prefix": 1, "suffix": ""}
    found = faults(tmp_path, processor, bad, GOOD, GOOD | {"suffix": ""})
    assert [fault.split(": ")[0][-6:] for fault in found] == ["line 1"] * 3 + ["line 3"]
    assert faults(tmp_path, processor, "") == ["train.jsonl: must have lines to learn from, found"
                                               " none"]  # fmt: skip


def test_a_file_of_another_encoding(processor, tmp_path):
    write_data(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"\n\n{\xe4}")
    (found,) = read_data(tmp_path, processor).faults
    assert found == "train.jsonl, line 3: must be UTF-8, found another encoding"


def test_a_picture_must_not_be_in_both_parts(processor, tmp_path):
    write_data(tmp_path)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    other = GOOD | {"prefix": "caption en"}
    lines = [other, GOOD | {"image": "copy.png", "suffix": "red"}]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "validation.jsonl").write_text(text, encoding="utf-8")
    (found,) = faults(tmp_path, processor, GOOD, GOOD | {"image": "1.png"})
    assert found.startswith("validation.jsonl, line 2: a picture and its prefix must not")
    assert found.endswith("train.jsonl, line 1")


def test_pictures_are_held_out_with_all_their_lines(processor, tmp_path):
    write_data(tmp_path)
    text = (tmp_path / "train.jsonl").read_text(encoding="utf-8")
    (tmp_path / "train.jsonl").write_text(text + text.replace("this", "that"), encoding="utf-8")
    data = read_data(tmp_path, processor, 0.25)
    assert not data.faults and len(data.training) == 12 and len(data.validation) == 4
    assert {one.digest for one in data.training} & {one.digest for one in data.validation} == set()
    assert len(read_data(tmp_path, processor, 0.0).training) == 16
    one = data.training[:1]
    assert hold_out(one, 0.5, 0) == (one, [])  # of one picture none


def test_which_file_is_read(processor, folder, tmp_path):
    assert len(read_data(folder / "train.jsonl", processor, 0.0).training) == 8
    with pytest.raises(DataError, match="a file of JSON lines or a folder with one, found"):
        read_data(tmp_path / "none", processor)
    with pytest.raises(DataError, match=r"must hold train.jsonl, or one file .*, found none"):
        read_data(tmp_path, processor)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="found a.jsonl, b.jsonl: name the file itself"):
        read_data(tmp_path, processor)


# --- a step --------------------------------------------------------------------------------------


def gradients(module, examples, batches, at_once):
    module.zero_grad()
    losses = list(batches.losses(module, examples, at_once))
    sum(losses).backward()
    wanted = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return float(sum(losses).detach()), wanted


@pytest.fixture
def prepared(processor):
    model = fresh_model().train()
    add_lora(model, list(TARGETS), 2, 4.0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(1))
    return FineTuned(model), Batches(processor, torch.device("cpu"))


def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(prepared, data):
    """With suffixes of several lengths, where a mean of means would differ."""
    module, batches = prepared
    examples = data.training[:5]
    batch = batches.batch(examples)
    labels = batch.pop("labels")
    module.zero_grad()
    loss = suffix_loss(module.model(**batch), labels)
    loss.backward()
    wanted = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    for at_once in (5, 2, 1):
        value, found = gradients(module, examples, batches, at_once)
        assert value == pytest.approx(loss.item(), abs=1e-5)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    means = [suffix_loss_of(module, batches, examples[i : i + 2]) for i in (0, 2, 4)]
    assert abs(sum(means) / 3 - loss.item()) > 1e-3


def suffix_loss_of(module, batches, examples) -> float:
    batch = batches.batch(examples)
    labels = batch.pop("labels")
    return suffix_loss(module.model(**batch), labels).item()


def test_the_loop_adds_the_parts_of_a_step():
    def trained(step_loss):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        module = torch.nn.ParameterList([p])
        losses = fit(module, lambda step: step_loss(p), 3, [torch.optim.SGD([p], lr=0.1)])
        return losses, p.detach()

    whole = trained(lambda p: (p**2).sum())
    parts = trained(lambda p: (value**2 for value in p))
    assert whole[0] == pytest.approx(parts[0]) and torch.equal(whole[1], parts[1])


def test_an_epoch_shows_every_example_once(data):
    seen = [one.where for step in range(4) for one in chosen(data.training, step, settings())]
    first, second = seen[:6], seen[6:]
    everything = {one.where for one in data.training}
    assert len(everything) == 6 and set(first) == set(second) == everything
    assert first != second
    again = [one.where for one in chosen(data.training, 1, settings())]
    assert again == seen[3:6]  # of the step's number alone


def test_activation_checkpointing_changes_no_gradient(prepared, data):
    module, batches = prepared
    wanted = gradients(module, data.training[:3], batches, 3)
    calls = []
    layer = module.model.language_model.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    finetuning.keep_less(module.model)
    found = gradients(module, data.training[:3], batches, 3)
    assert len(calls) == 2  # once forward, once again backward
    assert found[0] == wanted[0]
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(("is_slow", "seconds", "wanted"), [
    (True, None, False), (False, {True: 1.0, False: 2.0}, True),
    (False, {True: 1.9, False: 2.0}, False), (False, {True: 3.0, False: 2.0}, False),
])  # fmt: skip
def test_bfloat16_is_used_where_it_is_measured_to_be_faster(
    prepared, data, monkeypatch, is_slow, seconds, wanted
):
    module, batches = prepared
    clock = [0.0]
    monkeypatch.setattr(finetuning.narrow, "is_slow", lambda dtype: is_slow)
    monkeypatch.setattr(finetuning.time, "perf_counter", lambda: clock[0])

    class Timed(FineTuned):
        def forward(self, batch):
            clock[0] += seconds[self.narrow]
            return super().forward(batch)

    timed = Timed(module.model)
    assert finetuning.narrow_gains(timed, batches.batch(data.training[:1])) is wanted
    assert all(p.grad is None for p in timed.parameters())


# --- a run ---------------------------------------------------------------------------------------


def end_of(output: Path) -> dict:
    lines = read_log(output / "training" / "log.jsonl")
    log = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return {"log": log, **load_file(output / "adapter_model.safetensors")}


def same_end(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys() and found.pop("log") == wanted["log"]
    assert all(torch.equal(found[key], wanted[key]) for key in found)


@pytest.fixture(scope="module")
def undisturbed(saved, folder, processor, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    told = finetune(str(saved), read_data(folder, processor, 0.25), output, settings())
    return output, told


def test_what_a_run_leaves(saved, undisturbed, data, capsys):
    output, told = undisturbed
    assert {path.name for path in output.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "training"
    }  # fmt: skip
    assert {path.name for path in (output / "training").iterdir()} - {".lock"} == {
        "log.jsonl", "curve.png", "checkpoint.safetensors"
    }  # fmt: skip
    lines = read_log(output / "training" / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "validation loss", "learning rate"} <= line.keys() for line in lines)
    assert "exact match   before" in told and "2 examples" in told
    model, processor = minipali.load(saved, adapter=output)
    batches = Batches(processor, torch.device("cpu"))
    loss = finetuning.validation_loss(FineTuned(model), batches, data.validation, 2)
    assert loss == pytest.approx(min(line["validation loss"] for line in lines), abs=1e-4)


def test_it_learns(saved, data, tmp_path):
    finetune(str(saved), data, tmp_path, settings(steps=20, lr=0.02, targets=("q_proj", "v_proj",
             "o_proj", "down_proj", "up_proj"), patience=99))  # fmt: skip
    losses = [line["loss"] for line in read_log(tmp_path / "training" / "log.jsonl")]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("lost", ["add_line", "save_checkpoint"])
def test_killed_at_a_checkpoint_it_ends_as_if_it_had_not_been(
    saved, data, undisturbed, tmp_path, monkeypatch, lost
):
    """Before the third line, or after it and before the third checkpoint."""
    whole, calls = getattr(finetuning, lost), []

    def dies(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        whole(*given)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, lost, dies)
        with pytest.raises(KeyboardInterrupt):
            finetune(str(saved), data, tmp_path, settings())
    assert not (tmp_path / "adapter_config.json").exists()
    asked = []
    monkeypatch.setattr(Run, "is_narrow", lambda self: asked.append(1))
    told = finetune(str(saved), data, tmp_path, settings())
    same_end(end_of(tmp_path), end_of(undisturbed[0]))
    assert told == undisturbed[1] and not asked


def test_a_run_that_is_done_is_not_begun_again(saved, data, undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    assert finetune(str(saved), data, tmp_path, settings()) == undisturbed[1]
    same_end(end_of(tmp_path), end_of(undisturbed[0]))


def test_another_runs_checkpoint_is_refused(saved, folder, data, processor, undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(TrainingError, match=r"another run \(rank 8, now 4; lr None, now 0.1\)"):
        finetune(str(saved), data, tmp_path, settings(rank=4, lr=0.1))
    other = read_data(folder, processor, 0.5)
    with pytest.raises(TrainingError, match=r"another run \(data is another one\)"):
        finetune(str(saved), other, tmp_path, settings())
    (tmp_path / "training" / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="must be a checkpoint of this training"):
        finetune(str(saved), data, tmp_path, settings())


def test_another_base_is_refused(data, undisturbed, tmp_path):
    """As when the folder of the model has changed since the run began."""
    model, processor = minipali.load("small")
    with torch.no_grad():
        model.language_model.layers[0].mlp.down_proj.weight.add_(0.01)
    minipali.save(model, processor, tmp_path / "base")
    shutil.copytree(undisturbed[0], tmp_path / "run")
    with pytest.raises(TrainingError, match=r"another run \(base is another one\)"):
        finetune(str(tmp_path / "base"), data, tmp_path / "run", settings())


def test_all_weights(saved, data, tmp_path):
    before = (saved / "model.safetensors").read_bytes()
    finetune(str(saved), data, tmp_path / "whole", settings(full=True, steps=3))
    model, _ = minipali.load(tmp_path / "whole")
    old = minipali.load(saved)[0].state_dict()
    moved = {name for name, weight in model.state_dict().items() if not weight.equal(old[name])}
    assert {name.split(".")[0] for name in moved} == {
        "vision_tower", "multi_modal_projector", "language_model"
    }  # fmt: skip
    assert (saved / "model.safetensors").read_bytes() == before
    with pytest.raises(TrainingError, match="the folder of an adapter, found another thing"):
        finetune(str(saved), data, tmp_path / "whole", settings())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").touch()
    with pytest.raises(TrainingError, match="the folder of another whole model, found"):
        finetune(str(saved), data, tmp_path / "other", settings(full=True))


@pytest.mark.parametrize("how", [{}, {"precision": "bfloat16", "less_memory": True}])
def test_a_base_in_bfloat16_learns_in_float32(saved, data, tmp_path, how):
    model, processor = minipali.load(saved, dtype="bfloat16")
    minipali.save(model, processor, tmp_path / "base")
    finetune(str(tmp_path / "base"), data, tmp_path / "out", settings(**how))
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "training" / "log.jsonl")]
    assert losses[-1] < losses[0]
    learned = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {weight.dtype for weight in learned.values()} == {torch.float32}
    minipali.load(tmp_path / "base", adapter=tmp_path / "out")


def test_the_base_is_not_written_over(folder, data, tmp_path):
    minipali.save(*minipali.load("small"), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="must be new, or the folder of another whole model"):
        finetune(str(tmp_path), data, tmp_path, settings(full=True))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "training").exists()


def test_it_ends_early_and_keeps_the_best(saved, data, tmp_path, monkeypatch):
    losses = iter([5.0, 3.0, 4.0, 3.5, 1.0])
    monkeypatch.setattr(finetuning, "validation_loss", lambda *_: next(losses))
    kept = []
    save = finetuning.save_checkpoint
    monkeypatch.setattr(
        finetuning, "save_checkpoint",
        lambda file, state: (kept.append({n: p.detach().clone() for n, p in
                                          state["weights"].items()}), save(file, state)),
    )  # fmt: skip
    finetune(str(saved), data, tmp_path, settings(patience=2))
    assert len(kept) == 4  # the fifth of six measurements does not come
    found = minipali.load(saved, adapter=tmp_path)[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in kept[1].items())


# --- bad ends ------------------------------------------------------------------------------------


def command(saved, folder, output, *more) -> list[str]:
    """Of the command, on the tiny model, for a moment."""
    return ["finetune", str(folder), "--model", str(saved), "--output", str(output), "--steps", "6",
            "--batch-size", "3", "--at-once", "2", "--targets", "q_proj,v_proj", "--alpha", "16",
            "--validation", "0.25", "--device", "cpu", *map(str, more)]  # fmt: skip


def test_the_command(saved, folder, undisturbed, tmp_path, capsys):
    assert cli.main(command(saved, folder, tmp_path)) == 0
    told = capsys.readouterr().out
    assert "6 lines to learn from, 2 to measure on; no fault" in told
    assert undisturbed[1] in told and f"--adapter {tmp_path}" in told
    wanted = end_of(undisturbed[0])
    found = end_of(tmp_path)
    assert found.pop("log")[-1]["loss"] == wanted["log"][-1]["loss"]


def test_check_looks_and_does_no_more(saved, folder, tmp_path, capsys):
    arguments = ["finetune", str(folder), "--model", str(saved), "--check"]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "no fault" in told and "GB on each device for a step (weights 0." in told
    write_data(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"image": "x.png"}\n', encoding="utf-8")
    arguments[1] = str(tmp_path)
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line[:22] for line in told[:3]] == ["train.jsonl, line 1: p", "train.jsonl, line 1: s",
                                                "train.jsonl, line 1: i"]  # fmt: skip
    assert told[-1] == "minipali: error: 3 faults must be mended before training"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--targets", "attention"], "a target must end the name of a linear layer"),
        (["--steps", "0"], "must be a whole number, at least 1, found '0'"),
        (["--validation", "1.5"], "a share from 0 to below 1, found '1.5'"),
        (["--validation", "none.jsonl"], "must be a file of JSON lines or a share"),
        (["--epochs", "3", "--steps", "4"], "not allowed with"),
    ],
)
def test_options_that_cannot_be_used(saved, folder, tmp_path, capsys, more, says):
    base = ["finetune", str(folder), "--model", str(saved), "--output", str(tmp_path / "out")]
    try:
        code = cli.main(base + more)
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr().err
    assert code == 2 and says in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number(saved, folder, tmp_path, capsys):
    assert cli.main(command(saved, folder, tmp_path, "--lr", "1e30")) == 2
    told = capsys.readouterr().err
    assert "the loss is nan in step" in told or "the loss is inf in step" in told
    assert "begin again in another folder with a lower --lr" in told


def test_a_picture_that_vanished(saved, data, tmp_path, processor):
    own = write_data(tmp_path / "own")
    data = read_data(own, processor, 0.25)
    data.training[0].image.unlink()
    with pytest.raises(TrainingError, match="one that was there is not: no picture at .*; put it"):
        finetune(str(saved), data, tmp_path / "out", settings())


def test_a_full_disk(saved, folder, data, undisturbed, tmp_path, monkeypatch, capsys):
    def full(*given, **how):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("minipali.checkpoints.save_file", full)
        assert cli.main(command(saved, folder, tmp_path)) == 2
    told = capsys.readouterr().err
    assert "the disk must have room" in told and "the same command begins anew" in told
    assert told.count("\n") == 1
    assert cli.main(command(saved, folder, tmp_path)) == 0


def test_killed_from_outside(saved, folder, undisturbed, tmp_path):
    """At a moment that nobody chose; and the same command goes on to the same end."""
    arguments = [sys.executable, "-m", "minipali", *command(saved, folder, tmp_path)]
    log = tmp_path / "training" / "log.jsonl"
    # One thread there as here: another number sums in another order, and early Adam, which divides
    # by the gradient's own size, makes much of the last bit of a gradient near 0.
    alone = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(arguments, env=alone, **quiet)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not log.exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert cli.main(command(saved, folder, tmp_path)) == 0
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4, 5, 6]
    same_end(end_of(tmp_path), end_of(undisturbed[0]))


def test_ctrl_c_says_how_to_go_on(saved, folder, tmp_path, monkeypatch, capsys):
    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "add_line", stopped)
    assert cli.main(command(saved, folder, tmp_path)) == 130
    told = capsys.readouterr().err
    assert told == "minipali: stopped; the same command begins anew: there is no checkpoint yet\n"
    (tmp_path / "training" / "checkpoint.safetensors").touch()
    assert goes_on(tmp_path / "training") == (
        f"goes on from the last checkpoint in {tmp_path / 'training'}"
    )


# --- measuring -----------------------------------------------------------------------------------


def test_the_measures_that_make_sense(data):
    from dataclasses import replace

    box = "<loc0000><loc0000><loc0512><loc0512> dog"
    asked = [
        replace(data.training[0], suffix="red"),
        replace(data.training[1], suffix="blue", answers=("blue",) * 9 + ("green",)),
        replace(data.training[2], suffix=box),
    ]
    found = measures(asked, ["red", "Blue.", box])
    assert found["exact match"][0] == pytest.approx(2 / 3)
    assert found["VQA accuracy"][0] == 1
    assert found["box mAP"][0] == 1
    low, high = found["exact match"][1:]
    assert 0.2 < low < 2 / 3 < high < 0.94  # Wilson's, by hand 0.208 to 0.939
    assert set(measures(asked[:1], ["green"])) == {"exact match"}


def test_answers_are_those_of_generate(saved, data, processor):
    model, own = minipali.load(saved)
    batches = Batches(own, torch.device("cpu"))
    told = finetuning.answers(model, batches, data.validation, 2)
    for one, answer in zip(data.validation, told, strict=True):
        longest = max(len(batches.suffix(other)) for other in data.validation)
        alone = minipali.generate(model, own, one.image, one.prefix, 2 * longest + 8)
        assert answer == alone


def test_the_script_makes_data_without_faults(tmp_path, small_folder):
    from minipali.config import read

    script = Path(__file__).parents[1] / "tools" / "labelled_pictures.py"
    made = runpy.run_path(str(script))
    made["make"](tmp_path / "d", "bus", 8, seed=0)
    processor = Processor(small_folder / "tokenizer.model", read(small_folder / "config.json"))
    data = read_data(tmp_path / "d", processor)
    assert not data.faults and len(data.training) > 8 and len(data.validation) > 8
    assert any("bus" in one.suffix for one in data.training)
    assert any("bus" not in one.suffix and "<loc" not in one.suffix for one in data.training)


# --- several processes ---------------------------------------------------------------------------

SHARED = """
import contextlib, sys, torch
from pathlib import Path
from test_finetuning import finetune, finetuning, read_data, settings
from minipali.weights import load
torch.set_num_threads(1)
saved, folder, output = sys.argv[1:]
data = read_data(Path(folder), load(saved)[1], 0.25)
with finetuning.world() as among:
    finetuning.world = lambda: contextlib.nullcontext(among)
    for name, shard in (("whole", False), ("divided", True), ("divided", True)):
        how = settings(steps=3, batch_size=4, at_once=1, shard=shard)
        finetune(saved, data, Path(output) / name, how)
        torch.distributed.barrier()
"""


def test_two_processes_end_as_one(saved, folder, data, tmp_path):
    """Each with the whole model, and with a part of every weight, which also goes on.

    With suffixes of several lengths, where a mean of the processes' means would differ.
    """
    finetune(str(saved), data, tmp_path / "one", settings(steps=3, batch_size=4, at_once=4))
    for code, text in ends(start(SHARED, saved, folder, tmp_path, number=2)):
        assert code == 0, text
    for name in ("whole", "divided"):
        wanted, found = end_of(tmp_path / "one"), end_of(tmp_path / name)
        for one, other in zip(wanted.pop("log"), found.pop("log"), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)
            assert one["validation loss"] == pytest.approx(other["validation loss"], abs=2e-5)
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], atol=2e-4, rtol=0)
    with pytest.raises(TrainingError, match="processes 2, now 1"):
        finetune(str(saved), data, tmp_path / "whole", settings(steps=3, batch_size=4, at_once=1))
    with pytest.raises(TrainingError, match="divided among processes, and there is one"):
        finetune(str(saved), data, tmp_path / "new", settings(shard=True))
