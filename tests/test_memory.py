"""The memory of a fine-tuning that is counted beforehand; `test_real_size` measures a real one."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from minipali import load
from minipali.config import preset
from minipali.finetuning import FineTuned, Settings
from minipali.lora import add_lora
from minipali.memory import memory, rows
from minipali.scenes import examples

SMALL = preset("small")
ALONE = {"processes": 1, "text": 16, "answer": 4}


def test_weights_gradients_and_optimizer_by_hand():
    total, learned = 2_509_024, 122_368  # lesson 18 prints both
    found = memory(SMALL, Settings(), torch.bfloat16)
    # What learns is kept twice: as it is, and as it was at its best.
    assert found["weights"] == 2 * total + 2 * 4 * learned
    assert (found["gradients"], found["optimizer"]) == (4 * learned, 8 * learned)
    found = memory(SMALL, Settings(full=True))
    assert [*found.values()][:3] == [8 * total, 4 * total, 8 * total]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_a_real_step_keeps(dtype):
    model, processor = load("small", "float32")
    batch = processor(
        [examples()["cat_and_ball"]] * 3, ["answer en what is this?"] * 3, ["a cat"] * 3
    )
    model = model.to(dtype)
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    add_lora(model, list(Settings().targets))
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}
    with saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage()._cdata, x.untyped_storage()) and x,
        lambda x: x,
    ):
        FineTuned(model)(batch)
    real = sum(one.nbytes() for place, one in kept.items() if place not in own)
    answer = int((batch["labels"] != -100).sum()) // 3
    text = batch["input_ids"].shape[1] - SMALL.vision.num_patches
    found = memory(SMALL, Settings(batch_size=3), dtype, text=text, answer=answer)
    assert found["activations"] == pytest.approx(real, rel=0.1)


def test_what_each_option_saves():
    plain = memory(SMALL, Settings(), **ALONE)
    less = memory(SMALL, Settings(less_memory=True), **ALONE)
    assert less["activations"] < plain["activations"] / 3
    # Half of the batch each: with the whole model, and with a part of it.
    two = memory(SMALL, Settings(), **ALONE | {"processes": 2})
    assert two["activations"] == pytest.approx(plain["activations"] / 2, rel=0.02)
    assert two["weights"] == plain["weights"] and two["gradients"] == 2 * plain["gradients"]
    part = memory(SMALL, Settings(shard=True), **ALONE | {"processes": 2})
    assert part["optimizer"] == plain["optimizer"] // 2 and part["weights"] < plain["weights"]
    # The same weights, computed with in float32.
    wide = memory(SMALL, Settings(), wide=True, **ALONE)
    assert wide["weights"] == plain["weights"] and wide["activations"] > plain["activations"]


FREED = """
import re
from minipali.verbs import give_back_memory
give_back_memory()
held = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
MB = 2**20
block = b"x" * (20 * MB)
del block  # from now on glibc would keep blocks as large as this one
before = held()
first, second = b"x" * (10 * MB), b"x" * (10 * MB)
del first
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system has no glibc")
def test_what_is_freed_below_something_else_is_given_back():
    told = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert float(told.stdout) == pytest.approx(10, abs=2)


@pytest.mark.slow
def test_the_table_of_the_page():
    page = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    for name, found in rows():
        numbers = (*found.values(), sum(found.values()))
        wanted = [-(-number // 10**8) / 10 for number in numbers]
        [line] = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert [float(cell) for cell in re.findall(r"\d+\.\d", line)] == wanted
