"""Lesson 19: weights in few bits, how far rounding moves them, and that the answers stay."""

import copy
import struct

import numpy as np
import pytest
import torch
from conftest import randomise

from minipali import gguf, load, narrow, quantization, save
from minipali.adapters import save_adapter
from minipali.asking import generate
from minipali.checks.quantization import pack_q4_1, to_groups, try_rounding, try_smollm2
from minipali.config import KINDS, text_config
from minipali.evaluation import answers, evaluation_set, score
from minipali.gemma import Gemma
from minipali.kv_cache import KVCache
from minipali.lora import add_lora
from minipali.narrow import rounded, widened
from minipali.quantization import Int4Linear, Int8Linear, int8_linear, quantize, to_int4, to_int8
from minipali.scenes import TEST_ARTIST, examples
from minipali.variants import causal_states


@pytest.fixture(params=[7, 50, 2**22], ids=lambda n: f"blocks of {n}")
def block(request, monkeypatch):
    for module in (narrow, quantization):
        monkeypatch.setattr(module, "BLOCK", request.param)
    monkeypatch.setattr(narrow, "_own", type(narrow._own)())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- 8 bits ---------------------------------------------------------------------------------------


def test_rounding_to_int8_is_off_by_half_a_step_at_most(block):
    weight = random(9, 13) * torch.logspace(-3, 3, 9)[:, None]
    weight[4] = 0
    whole, scale = to_int8(weight.bfloat16())
    assert whole.dtype == torch.int8 and whole.shape == weight.shape and scale.shape == (9,)
    assert whole.abs().amax(dim=1).tolist() == [127] * 4 + [0] + [127] * 4
    wide = weight.bfloat16().float()
    assert ((whole * scale[:, None] - wide).abs() <= 0.5001 * scale[:, None]).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_an_int8_product_is_that_of_the_rounded_weights(block, rows, dtype):
    x, weight = random(rows, 1, 64).to(dtype), random(32, 64, seed=1)
    whole, scale = to_int8(weight)
    exact = x.double() @ (whole.double() * scale.double()[:, None]).T
    found = int8_linear(x, whole, scale)
    rounds = rows == 1 or dtype == torch.bfloat16
    tolerance = 0.02 * exact.abs().max().item() if rounds else 1e-4
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)


@torch.no_grad()
def test_int8_stays_on_the_device_of_its_weights():
    """torch's meta device stands for a GPU here: nothing of the CPU may meet its tensors."""
    whole, scale = to_int8(torch.empty(11, 13, dtype=torch.bfloat16, device="meta"))
    for rows in (1, 3):
        y = int8_linear(torch.empty(rows, 13, device="meta"), whole, scale)
        assert y.shape == (rows, 11) and y.device.type == "meta"
    with torch.device("meta"):  # a default device that a user has set
        weight = torch.ones(3, 32, device="cpu")
        assert to_int8(weight)[0].device.type == to_int4(weight)[0].device.type == "cpu"


# --- 4 bits ---------------------------------------------------------------------------------------


def test_a_group_in_int4_worked_out_by_hand():
    """From -1 to 2 in steps of 0.2: exact in bfloat16 is none of it, and that is made up for."""
    group = torch.tensor([-1.0, 2.0, 0.0, 0.29, 0.31, *[-1.0] * 27])
    whole, scale, middle = to_int4(group[None])
    assert whole[0, :5].tolist() == [0, 15, 5, 6, 7] and not whole[0, 5:].any()
    assert scale.item() == pytest.approx(0.2, rel=0.004)
    assert middle.item() == pytest.approx(0.6, rel=0.004)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_to_int4_is_off_by_half_a_step(dtype):
    """And by what the rounding of the scale to 8 bits leaves at the ends of the group."""
    weight = (random(48, 96) * torch.logspace(-3, 3, 48)[:, None]).to(dtype)
    weight[5, 32:64], weight[6] = 0.0, 1.0  # constant groups
    whole, scale, middle = to_int4(weight)
    assert whole.shape == weight.shape and scale.shape == middle.shape == (48, 3)
    assert whole.min() == 0 and whole.max() == 15
    steps = scale.float().repeat_interleave(32, dim=1)
    back = (whole.float() - 8) * steps + middle.float().repeat_interleave(32, dim=1)
    assert ((back - weight.float()).abs() <= 0.6 * steps).all()
    assert (back[5, 32:64] == 0).all() and (back[6] == 1).all()


def test_no_group_knows_of_another():
    """Neither along a row nor from row to row."""
    weight = random(16, 64)
    loud = weight.clone()
    loud[3, 32:] *= 1000
    same = torch.ones(16, 64, dtype=torch.bool)
    same[3, 32:] = False
    before, after = to_int4(weight)[0], to_int4(loud)[0]
    assert torch.equal(before[same], after[same])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(16, 32), (32, 64), (48, 96), (80, 160), (192, 128)], ids=str)
def test_an_int4_product_is_that_of_the_rounded_weights(shape, dtype):
    n, d = shape
    weight, bias = random(n, d, seed=1), random(n, seed=2)
    whole, scale, middle = to_int4(weight)
    groups = (whole.view(n, -1, 32).double() - 8) * scale[..., None] + middle[..., None]
    for rows in (1, 2, 5, 40):
        x = random(rows, 1, d).to(dtype)
        exact = x.double() @ groups.flatten(1).T + bias.double()
        found = Int4Linear(weight, bias)(x)
        assert found.dtype == dtype and found.shape == (rows, 1, n)
        tolerance = 0.02 * exact.abs().max().item()
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)
    every_second = random(3, 2 * d)[:, ::2]
    assert torch.equal(
        Int4Linear(weight, None)(every_second), Int4Linear(weight, None)(every_second.contiguous())
    )


def test_a_matrix_of_another_shape_is_kept_in_8_bits():
    for n, d in ((16, 48), (24, 32)):
        layer = quantization._quantized(torch.nn.Linear(d, n, bias=False), 4)
        assert isinstance(layer, Int8Linear) and layer(random(2, d)).shape == (2, n)


# --- models ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("way", [rounded, widened], ids=lambda way: way.__name__)
@pytest.mark.parametrize(("bits", "most"), [(8, 0.6), (4, 0.5)])
def test_a_quantized_model_answers_as_before(monkeypatch, way, bits, most):
    monkeypatch.setitem(narrow.CHOSEN, (torch.bfloat16, False), way)
    model, processor = load("small", dtype="bfloat16")
    size = sum(p.nbytes for p in model.language_model.parameters())
    pictures = list(examples().values())
    prompts = ["caption en"] * len(pictures)
    before = generate(model, processor, pictures, prompts)
    small = quantize(model, bits)
    assert small.language_model.embed_tokens.weight.dtype == torch.int8
    held = sum(b.nbytes for b in small.language_model.buffers())
    assert held < most * size
    after = generate(small, processor, pictures, prompts)
    assert sum(a == b for a, b in zip(after, before, strict=True)) >= len(before) - (bits == 4)
    assert generate(small, processor, pictures[0], "caption en") == before[0]


def test_answers_in_int4_are_as_right_as_before():
    asked = evaluation_set(TEST_ARTIST, 10, seed=7)
    right = [
        sum(score(question, answer) for (_, question), answer in zip(asked, told, strict=True))
        for told in (answers(*load("small", dtype=dtype), asked) for dtype in ("float32", "int4"))
    ]
    assert right[0] > 0.7 * len(asked)
    assert right[1] >= right[0] - 0.02 * len(asked)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_load_takes_few_bits_as_a_dtype_and_an_adapter_with_it(tmp_path, dtype):
    model, processor = load("small")
    add_lora(model, ["q_proj", "v_proj"])
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    save_adapter(model, tmp_path, "small")
    batch = processor(examples()["cat_and_ball"], "caption en")
    with torch.no_grad():
        wanted, plain = model(**batch), load("small")[0](**batch)
        found = load("small", dtype, adapter=tmp_path)[0](**batch)
    assert (found - wanted).abs().mean() < 0.4 * (plain - wanted).abs().mean()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.2)])
@pytest.mark.parametrize("kind", KINDS)
def test_language_models_alone_are_rounded_too(kind, bits, most, dtype):
    """Norms within attention, as in Gemma 3, and more than two within a layer, stay as they are."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}
    exact = Gemma(text_config(kind, **sizes, **heads)).eval()
    randomise(exact)
    exact = exact.to(dtype).float()
    small = quantize(copy.deepcopy(exact).to(dtype), bits)
    found = [m for m in small.modules() if isinstance(m, (Int8Linear, Int4Linear))]
    assert len(found) == 2 * 7
    assert {type(m) for m in found} == {Int8Linear if bits == 8 else Int4Linear}
    assert not any(isinstance(m, torch.nn.Linear) for m in small.modules())

    def near(told, wanted):
        return 0 < (told - wanted).square().mean() < most**2 * wanted.square().mean()

    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted, told = (m.logits(causal_states(m, ids)).float() for m in (exact, small))
    assert near(told, wanted)
    cache = KVCache(1, 9)  # a single row goes through other products
    alone = [
        small.logits(causal_states(small, one[None], kv_cache=cache)) for one in ids[0].split(1)
    ]
    assert near(torch.cat(alone, dim=1).float(), wanted[:1])


def test_what_cannot_be_is_told():
    model, _ = load("small")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="bits must be 8 or 4, found 3"):
        quantize(model, 3)
    with pytest.raises(ValueError, match="int4 must be on the CPU.* found meta"):
        quantize(model.to("meta"), 4)
    assert list(model.state_dict()) == list(before)
    add_lora(model, ["q_proj"])
    with pytest.raises(ValueError, match="must have no LoRA layers when it is rounded"):
        quantize(model)


def test_a_quantized_model_is_not_saved_as_if_it_were_whole(tmp_path):
    model, processor = load("small")
    with pytest.raises(ValueError, match="undo quantization before saving"):
        save(quantize(model), processor, tmp_path / "no")
    assert not (tmp_path / "no").exists()


# --- the exercise ---------------------------------------------------------------------------------


def test_a_group_takes_the_nearest_of_its_values():
    weight, size, bits = 5 * random(7, 22) + 1, 8, 3
    whole, scale, least = to_groups(weight, size, bits)
    for row in range(7):
        for group, start in enumerate(range(0, 22, size)):
            own = weight[row, start : start + size].double().numpy()
            values = np.linspace(own.min(), own.max(), 2**bits)
            nearest = np.abs(own[:, None] - values).argmin(axis=1)
            assert whole[row, start : start + size].tolist() == nearest.tolist()
            assert scale[row, group] == pytest.approx(values[1] - values[0])
            assert least[row, group] == own.min().astype(np.float32)


def blocks_of_numbers():
    """Around 0, far from it, of one value, tiny and huge."""
    numbers = random(40, 32, seed=3)
    numbers[:10] += torch.logspace(0, 4, 10)[:, None]
    numbers[10], numbers[11] = 0.75, 0
    numbers[12:20] *= torch.logspace(-7, 3, 8)[:, None]
    return numbers


def test_a_written_block_holds_the_nearest_of_the_values_that_it_can_hold():
    numbers = blocks_of_numbers()
    for own, stored in zip(numbers.double().numpy(), pack_q4_1(numbers), strict=True):
        scale, least, *packed = struct.unpack("<ee16B", bytes(stored.tolist()))
        assert np.float16(own.min()) == least and np.float16((own.max() - own.min()) / 15) == scale
        found = [byte & 15 for byte in packed] + [byte >> 4 for byte in packed]
        values = least + scale * np.arange(16)
        off = np.abs(own[:, None] - values)
        assert (off[range(32), found] <= off.min(axis=1) + 1e-6 * abs(own).max()).all()


def test_the_package_gguf_reads_written_blocks():
    package = pytest.importorskip("gguf", reason="needs the package gguf, of the extra dev")
    stored = pack_q4_1(blocks_of_numbers())
    theirs = package.quants.dequantize(stored.numpy(), package.GGMLQuantizationType.Q4_1)
    assert np.array_equal(theirs, gguf.q4_1(stored).numpy())


def test_the_trial_in_the_small_model_tells_right_from_wrong(capsys):
    model, processor = load("small")
    assert try_rounding(model, processor, to_int8, to_groups, pack_q4_1, each=3)
    assert "32 bits              right" in capsys.readouterr().out
    flipped = lambda numbers: pack_q4_1(numbers.flip(1))  # noqa: E731
    assert not try_rounding(model, processor, to_int8, to_groups, flipped, each=3)
    assert "wrong" in capsys.readouterr().out


def test_without_the_published_model_the_trial_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIPALI_WEIGHTS", str(tmp_path))
    assert try_smollm2(gguf.q8_0, gguf.q4_1) is None
    assert "python course.py weights smollm2" in capsys.readouterr().out
