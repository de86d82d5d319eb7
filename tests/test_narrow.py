"""Narrow weights on a CPU: the same results as float32, with the weights left as they are."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import fresh_model, make_batch

from minipali import load, narrow, save
from minipali.generation import token_steps
from minipali.narrow import linear, many_rows, quantize, to_int8, widen


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def pair(request):
    """A model with narrow weights that computes in float32, and one with the same in float32."""
    narrow_model = fresh_model().to(request.param)
    return widen(copy.deepcopy(narrow_model)), narrow_model.float()


@pytest.fixture(params=[7, 50, 2**22], ids=lambda n: f"blocks of {n}")
def block(request, monkeypatch):
    monkeypatch.setattr(narrow, "BLOCK", request.param)
    monkeypatch.setattr(narrow, "_own", type(narrow._own)())


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_product_is_that_of_the_widened_weights(block, rows):
    x, weight, bias = random(rows, 13), random(11, 13, seed=1).bfloat16(), random(11, seed=2)
    exact = F.linear(x.double(), weight.double(), bias.double())
    # A single row is rounded to the weights' 8 bits, and so is its result.
    tolerance = 1e-5 if rows > 1 else 0.02
    found = linear(x, weight, bias)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    assert found.dtype == torch.float32
    assert linear(x.view(rows, 1, 13), weight).shape == (rows, 1, 11)


@torch.no_grad()
def test_results_do_not_share_the_memory_that_is_used_again():
    x, weights = random(3, 13), [random(11, 13, seed=s).bfloat16() for s in (1, 2)]
    first = many_rows(x, weights[0])
    kept = first.clone()
    many_rows(x, weights[1])
    assert torch.equal(first, kept)


def test_two_threads_do_not_widen_into_each_others_memory():
    x, weights = random(8, 300), [random(400, 300, seed=s).bfloat16() for s in range(4)]
    expected = [F.linear(x, weight.float()) for weight in weights]

    @torch.no_grad()
    def work(number):
        return [linear(x, weights[number]) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for number, results in enumerate(pool.map(work, range(4))):
            for result in results:
                torch.testing.assert_close(result, expected[number], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_widened_model_computes_in_float32(pair, side):
    mine, exact = pair
    batch = make_batch([(5, 4), (2, 7), (6, 0)], side)
    torch.testing.assert_close(mine(**batch), exact(**batch), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_widened_model_decodes_with_a_cache(pair):
    mine, exact = pair
    batch = make_batch([(5, 0), (2, 0)])
    found, expected = (torch.stack(list(token_steps(m, batch, 5))) for m in pair)
    assert torch.equal(found, expected)
    cache = mine.new_cache(1, 40)
    one = make_batch([(5, 0)])
    mine(**one, kv_cache=cache)
    assert cache.keys[0].dtype == torch.float32
    step = mine(torch.tensor([[7]]), kv_cache=cache)[:, -1]
    whole = torch.cat((one["input_ids"], torch.tensor([[7]])), dim=1)
    kinds = torch.zeros_like(whole)
    kinds[:, -1] = 1
    exact = exact(whole, one["pixel_values"], token_type_ids=kinds)[:, -1]
    # One row a product: rounded to the weights' dtype, here and nowhere else.
    torch.testing.assert_close(step, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_a_widened_model_learns(pair):
    mine, exact = pair
    batch = make_batch([(5, 4), (2, 7)])
    for model in pair:
        model(**batch).square().mean().backward()
    for (name, p), q in zip(mine.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad.float(), q.grad, rtol=0.02, atol=1e-3, msg=name)


def test_only_classes_change_so_that_a_model_can_be_copied_and_saved(tmp_path):
    model, processor = load("small", dtype="bfloat16")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save(copy.deepcopy(widen(model)), processor, tmp_path / "again")
    after = load(tmp_path / "again")[0].state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_load_widens_where_the_processor_is_slow(monkeypatch, slow, dtype):
    monkeypatch.setattr(narrow, "is_slow", lambda asked: slow and asked == torch.bfloat16)
    model, processor = load("small", dtype=dtype)
    widened = isinstance(model.multi_modal_projector, narrow.WideLinear)
    assert widened == (slow and dtype == "bfloat16")


# --- int8 -----------------------------------------------------------------------------------------


def test_rounding_to_int8_is_off_by_half_a_step_at_most(block):
    weight = random(9, 13) * torch.logspace(-3, 3, 9)[:, None]
    weight[4] = 0
    whole, scale = to_int8(weight.bfloat16())
    assert whole.dtype == torch.int8 and whole.shape == weight.shape and scale.shape == (9,)
    assert whole.abs().amax(dim=1).tolist() == [127] * 4 + [0] + [127] * 4
    wide = weight.bfloat16().float()
    assert ((whole * scale[:, None] - wide).abs() <= 0.5001 * scale[:, None]).all()


@torch.no_grad()
@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_an_int8_product_is_that_of_the_rounded_weights(block, monkeypatch, rows, slow):
    monkeypatch.setattr(narrow, "is_slow", lambda dtype: slow)
    x, weight = random(rows, 1, 64), random(32, 64, seed=1)
    whole, scale = to_int8(weight)
    exact = x.double() @ (whole.double() * scale.double()[:, None]).T
    found = narrow.int8_linear(x, whole, scale)
    rounded = rows == 1 or not slow  # x to bfloat16, for speed
    tolerance = 0.02 * exact.abs().max().item() if rounded else 1e-4
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize("slow", [True, False])
def test_a_quantized_model_answers_as_before(monkeypatch, slow):
    monkeypatch.setattr(narrow, "is_slow", lambda dtype: slow and dtype == torch.bfloat16)
    model, processor = load("small", dtype="bfloat16")
    size = sum(p.nbytes for p in model.language_model.parameters())
    from minipali.asking import generate
    from minipali.scenes import examples

    pictures = list(examples().values())
    prompts = ["caption en"] * len(pictures)
    before = generate(model, processor, pictures, prompts)
    small = quantize(model)
    assert small.language_model.embed_tokens.weight.dtype == torch.int8
    held = sum(b.nbytes for b in small.language_model.buffers())
    assert held < 0.6 * size
    assert generate(small, processor, pictures, prompts) == before
    assert generate(small, processor, pictures[0], "caption en") == before[0]


def test_a_quantized_model_is_not_saved_as_if_it_were_whole(tmp_path):
    model, processor = load("small")
    with pytest.raises(ValueError, match="undo quantization before saving"):
        save(quantize(model), processor, tmp_path / "no")
    assert not (tmp_path / "no").exists()
