"""PaliGemma 3B and PaliGemma 2 3B at their real sizes, with random weights.

Minutes, 13 GB of disk, 12 GB of memory:

    python course.py test tests/test_real_size.py -m slow

MINIPALI_SYNTHETIC names a folder that `python -m minipali.synthetic` has written, if there is one
already.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minipali import load
from minipali.config import preset
from minipali.finetuning import Settings
from minipali.generation import token_steps
from minipali.memory import memory
from minipali.narrow import is_slow, widen
from minipali.scenes import examples
from minipali.synthetic import write_synthetic
from minipali.weights import INDEX, accounts

pytestmark = pytest.mark.slow

WEIGHTS = 2_923_466_480  # as the published index of the model at 224 px says
BYTES = 2 * WEIGHTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    given = os.environ.get("MINIPALI_SYNTHETIC")
    if given:
        yield Path(given)
        return
    made = tmp_path_factory.mktemp("real") / "3b"
    write_synthetic(made, preset("paligemma-3b-224"))
    yield made
    shutil.rmtree(made)


def test_it_has_the_published_files_names_and_sizes(folder):
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == BYTES
    assert len(index["weight_map"]) == 603
    assert len(set(index["weight_map"].values())) == 3
    assert str(accounts(folder)) == (
        "603 keys: 603 used, 0 tied, 0 unused, 0 unexpected; 0 missing"
    )


def renamed(folder: Path, other: Path, name) -> None:
    """The same weights under other keys."""
    other.mkdir()
    for path in folder.iterdir():
        if ".safetensors" not in path.name:
            shutil.copy(path, other)
    weight_map = {}
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as old:
            content = old.read(2**20)  # the header is in there
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        header = {name(key): entry for key, entry in header.items() if key != "__metadata__"}
        weight_map |= dict.fromkeys(header, path.name)
        text = json.dumps(header).encode()
        with open(path, "rb") as old, open(other / path.name, "wb") as new:
            new.write(len(text).to_bytes(8, "little") + text)
            old.seek(8 + int.from_bytes(old.read(8), "little"))
            shutil.copyfileobj(old, new, 2**24)
    (other / INDEX).write_text(json.dumps({"weight_map": weight_map}))


LAYOUTS = {
    "transformers 4.52 to 5.0, in memory": lambda key: (
        "model." + key.replace("language_model.model.", "language_model.")
    ),
    "transformers 5.23, in memory": lambda key: (
        "model."
        + key.replace("language_model.model.", "language_model.").replace("vision_model.", "")
    ),
    "transformers 5.23, saved anew": lambda key: key.replace("vision_model.", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_same_weights(folder, tmp_path, layout):
    renamed(folder, tmp_path / "renamed", LAYOUTS[layout])
    keys = json.loads((tmp_path / "renamed" / INDEX).read_text())["weight_map"]
    assert keys.keys() != json.loads((folder / INDEX).read_text())["weight_map"].keys()
    expected, found = (load(one)[0].state_dict() for one in (folder, tmp_path / "renamed"))
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    del found
    shutil.rmtree(tmp_path / "renamed")


LOAD_AND_ANSWER = """
import re, sys
from minipali import load, generate
from minipali.scenes import examples
# Not getrusage: what that says is inherited from the process that started this one.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
model, processor = load(sys.argv[1])
loaded = peak()
generate(model, processor, examples()["dog_and_car_test_artist"], "caption en", max_new_tokens=2)
print(before, loaded, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_grows_only_with_what_is_used(folder):
    command = [sys.executable, "-c", LOAD_AND_ANSWER, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, loaded, answered = map(int, told.split())
    assert loaded - before < 0.1 * BYTES
    assert answered <= 1.15 * BYTES


def test_logits_and_greedy_tokens_equal_transformers_in_float32(folder):
    check_against_transformers(folder)


def test_paligemma_2_equals_transformers_in_float32(tmp_path):
    write_synthetic(tmp_path / "model", preset("paligemma2-3b-224"))
    assert str(accounts(tmp_path / "model")) == (
        "727 keys: 727 used, 0 tied, 0 unused, 0 unexpected; 0 missing"
    )
    check_against_transformers(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")


@torch.inference_mode()
def check_against_transformers(folder):
    """One model after the other, so that 10 GB of memory are enough."""
    theirs = their_model(folder)
    model, processor = load(folder)
    widen(model)  # computes in float32 with the bfloat16 weights, on any processor
    asked = (("dog_and_car_test_artist", "caption en"), ("cat_and_ball", "detect cat"))
    batches = [processor(examples()[name], prompt) for name, prompt in asked]
    found = [(model(**one), torch.stack(list(token_steps(model, one, 8)), 1)) for one in batches]
    del model
    for batch, (logits, tokens) in zip(batches, found, strict=True):
        torch.testing.assert_close(logits, theirs(**batch).logits, rtol=0, atol=1e-5)
        told = theirs.generate(**batch, max_new_tokens=8, do_sample=False)
        assert torch.equal(tokens, told[:, batch["input_ids"].shape[1] :])


def their_model(folder):
    """transformers' model, which computes in float32 and keeps its layers in bfloat16.

    A layer becomes float32 when its turn has come, and then what it was: exactly what a float32
    copy would compute, without the memory for one.
    """
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16
    ).eval()
    text = theirs.model.language_model
    for part in (theirs.model.vision_tower, theirs.model.multi_modal_projector, text.norm):
        part.float()
    text.embed_tokens.float()
    text.embed_tokens.embed_scale.fill_(text.embed_tokens.scalar_embed_scale)  # as in float32
    assert theirs.lm_head.weight is text.embed_tokens.weight
    assert text.rotary_emb.inv_freq.dtype == torch.float32

    def wide(layer, *given):
        layer.stored = [p.data for p in layer.parameters()]
        layer.float()

    def narrow(layer, *given):
        for p, data in zip(layer.parameters(), layer.stored, strict=True):
            p.data = data

    for layer in text.layers:
        layer.register_forward_pre_hook(wide)
        layer.register_forward_hook(narrow)
    return theirs


@pytest.mark.parametrize("side", [448, 896])
def test_larger_pictures_load_by_config_alone(tmp_path, side):
    write_synthetic(tmp_path / "model", preset(f"paligemma-3b-{side}"))
    model, processor = load(tmp_path / "model")
    batch = processor(examples()["cat_and_ball"], "caption en")
    assert (batch["input_ids"] == 257152).sum() == (side // 14) ** 2
    if side == 448:  # at 896 px the answer takes many minutes
        assert len(list(token_steps(model, batch, 1))) == 1
    shutil.rmtree(tmp_path / "model")


LEARN = """
import re, sys
from minipali import cli, finetuning, memory
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
code = cli.main(["finetune", *sys.argv[1:]])
print(before, peak())
raise SystemExit(code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_step_of_lora_takes_the_memory_that_was_counted(folder, tmp_path):
    """All that the command holds: the model's files, what it computes, log, checkpoint, adapter."""
    (tmp_path / "data").mkdir()
    examples()["cat_and_ball"].save(tmp_path / "data" / "0.png")
    line = {"image": "0.png", "prefix": "answer en what is this?", "suffix": "a cat and a ball"}
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(line))
    command = [sys.executable, "-c", LEARN, tmp_path / "data", "--model", folder, "--output"]
    command += [tmp_path / "out", "--steps", "1", "--batch-size", "1", "--less-memory"]
    command += ["--validation", "0", "--device", "cpu"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split()[-2:])
    processor = load(folder)[1]
    answer = len(processor.encode(line["suffix"])) + 1
    counted = memory(
        preset("paligemma-3b-224"),
        Settings(batch_size=1, less_memory=True),
        text=len(processor.prompt_ids(line["prefix"])) - 256 + answer,
        answer=answer,
        wide=is_slow(torch.bfloat16),
    )
    print(f"measured {(after - before) / 1e9:.2f} GB, counted {counted}")
    assert sum(counted.values()) == pytest.approx(after - before, rel=0.1)
