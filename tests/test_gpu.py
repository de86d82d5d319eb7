"""The same model on a GPU: same numbers, same answers. Skipped where there is none."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

import minipali
from minipali import attention, masks, scenes
from minipali.quantization import quantize
from minipali.swap import swap, whose
from minipali.training import fit, optimizers, suffix_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")

PROMPTS = ["caption en", "answer en what is on the left?", "detect dog", "detect cat"]


@pytest.fixture(scope="module")
def both():
    """The small model on the processor and on the GPU, and what prepares pictures for it."""
    on_gpu, processor = minipali.load("small", device="cuda")
    return minipali.load("small")[0], on_gpu, processor


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(3)
    return [scenes.compose(rng, scenes.TRAINING_ARTISTS, 2).picture for _ in PROMPTS]


def on_gpu(batch: dict) -> dict:
    return {name: tensor.cuda() for name, tensor in batch.items()}


def test_logits_equal_those_of_the_processor_with_a_cache_too(both, pictures):
    cpu, gpu, processor = both
    batch = processor(pictures, PROMPTS)
    later = torch.tensor([[10], [11], [12], [13]])
    found = []
    for model, given, token in ((cpu, batch, later), (gpu, on_gpu(batch), later.cuda())):
        cache = model.new_cache(4, batch["input_ids"].shape[1] + 1)
        with torch.inference_mode():
            found.append([model(**given, kv_cache=cache), model(token, kv_cache=cache)])
    real = batch["attention_mask"].bool()  # at padding nobody reads the result
    for want, got in zip(*found, strict=True):
        assert got.is_cuda
        rows = real if want.shape[1] > 1 else torch.ones(4, 1, dtype=bool)
        # float32 on both sides, in another order of sums, through six layers.
        torch.testing.assert_close(got.cpu()[rows], want[rows], atol=1e-3, rtol=1e-4)


def test_answers_boxes_and_drawn_tokens_are_the_same_and_repeatable(both, pictures):
    cpu, gpu, processor = both
    answers = [minipali.generate(model, processor, pictures, PROMPTS) for model in (cpu, gpu)]
    assert answers[0] == answers[1]
    boxes = [minipali.detect(model, processor, pictures[2], "dog") for model in (cpu, gpu)]
    assert boxes[0] == boxes[1]
    streamed = minipali.stream(gpu, processor, pictures[0], PROMPTS[0])
    assert "".join(streamed) == answers[1][0]
    drawn = [
        minipali.generate(
            gpu, processor, pictures, PROMPTS, temperature=2.0, top_k=40, top_p=0.9, seed=5
        )
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1] != answers[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_answer_nearly_always_alike(both, pictures, dtype):
    cpu, _, processor = both
    narrow, _ = minipali.load("small", dtype=dtype, device="cuda")
    assert next(narrow.parameters()).dtype == dtype
    wide = minipali.generate(cpu, processor, pictures * 4, PROMPTS * 4)
    found = minipali.generate(narrow, processor, pictures * 4, PROMPTS * 4)
    assert sum(map(str.__eq__, wide, found)) >= 14


def test_int8_weights_work_there_too(both, pictures):
    _, gpu, processor = both
    small = quantize(copy.deepcopy(gpu))
    found = minipali.generate(small, processor, pictures, PROMPTS)
    wide = minipali.generate(gpu, processor, pictures, PROMPTS)
    assert sum(map(str.__eq__, wide, found)) >= 3


def test_a_learners_piece_works_inside_a_model_on_a_gpu(both, capsys):
    _, gpu, _ = both
    mine = swap(gpu, attend=lambda q, k, v, mask: attention.attend(q, k, v, mask))
    assert whose(mine) == "mine" and "correct" in capsys.readouterr().out


def test_a_step_of_training_moves_the_loss_as_on_the_processor(both, pictures):
    cpu, gpu, processor = both
    batch = processor(pictures, PROMPTS, ["a dog", "dog", "none", "none"])
    losses = []
    for model, given in ((cpu, batch), (gpu, on_gpu(batch))):
        learner, given = copy.deepcopy(model), dict(given)
        labels = given.pop("labels")

        def step(_, learner=learner, given=given, labels=labels):
            return suffix_loss(learner(**given), labels)

        losses.append(fit(learner, step, 4, optimizers(learner, 0.01, 0.001), warmup=0))
    assert losses[1][-1] < losses[1][0]
    torch.testing.assert_close(*map(torch.tensor, losses), atol=2e-2, rtol=1e-2)


def test_a_model_saved_from_a_gpu_is_the_same_model(both, tmp_path, pictures):
    cpu, gpu, processor = both
    minipali.save(gpu, processor, tmp_path / "saved")
    again, _ = minipali.load(tmp_path / "saved")
    for (name, want), (_, got) in zip(
        cpu.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(want, got), name


def test_the_mask_decoder_runs_there():
    codec = masks.MaskCodec().eval()
    codes = torch.arange(16)[None] % 128
    with torch.inference_mode():
        want = codec.decode(codes)
        got = copy.deepcopy(codec).cuda().decode(codes.cuda())
    torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-4)


def test_the_command_answers_on_the_gpu():
    told = [
        subprocess.run(
            [sys.executable, "-m", "minipali", "ask", "--prompt", "caption en", "--device", device],
            capture_output=True, text=True, timeout=300, check=True,
        ).stdout
        for device in ("cpu", "cuda", "auto")
    ]  # fmt: skip
    assert told[0] and len(set(told)) == 1
