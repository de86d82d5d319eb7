"""Narrow weights on a CPU: the same results as float32, with the weights left as they are."""

import copy
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import fresh_model, make_batch
from torch.autograd.graph import saved_tensors_hooks

from minipali import cli, load, narrow, save
from minipali.asking import generate
from minipali.generation import token_steps
from minipali.narrow import as_column, linear, rounded, suit, widen, widened
from minipali.scenes import examples

NARROW = (torch.bfloat16, torch.float16)


@pytest.fixture(params=NARROW, ids=str)
def pair(request):
    """A model with narrow weights that computes in float32, and one with the same in float32."""
    narrow_model = fresh_model().to(request.param)
    return widen(copy.deepcopy(narrow_model)), narrow_model.float()


@pytest.fixture(params=[7, 50, 2**22], ids=lambda n: f"blocks of {n}")
def block(request, monkeypatch):
    monkeypatch.setattr(narrow, "BLOCK", request.param)
    monkeypatch.setattr(narrow, "_own", type(narrow._own)())


@pytest.fixture(params=[rounded, as_column], ids=lambda way: way.__name__)
def one_row(request, monkeypatch):
    """Whichever is the faster here, the tests hold for both."""
    for dtype in NARROW:
        monkeypatch.setitem(narrow.CHOSEN, (dtype, True), request.param)


def choose_for_many_rows(monkeypatch, way):
    """As on a processor with fast bfloat16 (rounded) or without (widened)."""
    monkeypatch.setitem(narrow.CHOSEN, (torch.bfloat16, False), way)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_frozen_weight_passes_the_gradient_and_is_kept_narrow(block, dtype):
    x, weight = random(2, 9, 130).requires_grad_(), random(11, 130, seed=1).to(dtype)
    bias, after = random(11, seed=2).to(dtype), random(2, 9, 11, seed=3)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = linear(x, weight, bias)
    assert [tensor.dtype for tensor in kept] == [dtype]
    found.backward(after)
    gradient, x.grad = x.grad, None
    wanted = F.linear(x, weight.float(), bias.float())
    wanted.backward(after)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(gradient, x.grad, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", [rounded, as_column, widened], ids=lambda way: way.__name__)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_way_gives_the_product(block, way, dtype):
    for rows in (1,) if way is as_column else (1, 2, 9):
        x, weight = random(rows, 130), random(11, 130, seed=1).to(dtype)
        exact = x.double() @ weight.double().T
        size = x.double().abs() @ weight.double().abs().T
        # Half a step for x, half a step for the result; float32's sum is much more exact.
        step = 2**-24 * 130 if way is widened else torch.finfo(dtype).eps
        assert ((way(x, weight).double() - exact).abs() <= step * size).all()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_product_is_that_of_the_widened_weights(block, one_row, rows):
    x, weight, bias = random(rows, 13), random(11, 13, seed=1).bfloat16(), random(11, seed=2)
    exact = F.linear(x.double(), weight.double(), bias.double())
    # A single row is rounded to the weights' 8 bits, and so is its result.
    tolerance = 1e-5 if rows > 1 else 0.02
    found = linear(x, weight, bias)
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    assert found.dtype == torch.float32
    assert linear(x.view(rows, 1, 13), weight).shape == (rows, 1, 11)
    in_bfloat16 = linear(x.bfloat16(), weight, bias)
    torch.testing.assert_close(in_bfloat16.double(), exact, rtol=0.02, atol=0.1)
    assert in_bfloat16.dtype == torch.bfloat16


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("fast", [rounded, as_column, widened], ids=lambda way: way.__name__)
def test_the_fastest_way_is_chosen_once(monkeypatch, one, fast):
    """Each way moves a clock of ours; a few calls of the fast one are disturbed."""
    candidates = (rounded, as_column) if one else (widened, rounded)
    if fast not in candidates:
        return
    clock, calls = itertools.count().__next__, []
    now = [0.0]

    def pretend(way):
        def run(x, weight):
            calls.append(way)
            disturbed = way is fast and len(calls) % 3
            now[0] += 0.5 if disturbed else (0.010 if way is fast else 0.015)

        return run

    monkeypatch.setattr(narrow, "CHOSEN", {})
    monkeypatch.setattr(narrow.time, "perf_counter", lambda: now[0] + 1e-9 * clock())
    for way in candidates:
        monkeypatch.setattr(narrow, way.__name__, pretend(way))
    chosen = narrow.fastest(torch.bfloat16, one)
    assert chosen is getattr(narrow, fast.__name__)
    assert len(calls) >= 6 and set(calls) == set(candidates)
    calls.clear()
    assert narrow.fastest(torch.bfloat16, one) is chosen and not calls


def test_threads_that_measure_at_once_agree(monkeypatch):
    monkeypatch.setattr(narrow, "CHOSEN", {})
    start = threading.Barrier(4, timeout=60)

    def ask(_):
        start.wait()
        return narrow.fastest(torch.bfloat16, True)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1


def test_memory_that_is_used_again_serves_in_and_out_of_inference_mode(monkeypatch):
    monkeypatch.setattr(narrow, "_own", type(narrow._own)())
    x, weight = random(3, 13), random(11, 13).bfloat16()
    with torch.inference_mode():
        inside = linear(x, weight).clone()
    with torch.no_grad():
        assert torch.equal(linear(x, weight), inside)


@torch.no_grad()
def test_products_stay_on_the_device_of_their_weights(monkeypatch):
    """torch's meta device stands for a GPU here: nothing of the CPU may meet its tensors."""
    weight = torch.empty(11, 13, dtype=torch.bfloat16, device="meta")
    for rows in (1, 3):
        y = linear(torch.empty(rows, 13, device="meta"), weight, torch.empty(11, device="meta"))
        assert y.shape == (rows, 11) and y.device.type == "meta"
    x, weight = random(3, 13), random(11, 13, seed=1).bfloat16()
    monkeypatch.setattr(narrow, "CHOSEN", {})
    monkeypatch.setattr(narrow, "_own", type(narrow._own)())
    with torch.device("meta"):  # a default device that a user has set
        found = linear(x, weight), linear(x[:1], weight)
    assert {y.device.type for y in found} == {"cpu"}
    torch.testing.assert_close(found[0], x @ weight.float().T)


# --- models ---------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_widened_model_computes_in_float32(pair, side):
    mine, exact = pair
    batch = make_batch([(5, 4), (2, 7), (6, 0)], side)
    torch.testing.assert_close(mine(**batch), exact(**batch), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_widened_model_decodes_with_a_cache(pair, one_row):
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


@pytest.mark.parametrize("way", [rounded, widened], ids=lambda way: way.__name__)
def test_load_suits_the_model_to_the_processor(monkeypatch, way):
    choose_for_many_rows(monkeypatch, way)
    model, processor = load("small", dtype="bfloat16")
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert linears and {type(module) for module in linears} == {narrow.NarrowLinear}
    assert model.language_model.head is linear
    batch = processor(examples()["cat_and_ball"], "caption en")
    logits = model(**batch)
    assert logits.dtype == (torch.float32 if way is widened else torch.bfloat16)
    exact = load("small")[0](**batch)
    # A few hundred products of 8 bits each, in the order of the logits' own size.
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_float32_is_left_alone_and_measures_nothing(monkeypatch):
    monkeypatch.setattr(narrow, "fastest", None)
    model, _ = load("small")
    before = [type(module) for module in model.modules()]
    assert [type(module) for module in suit(model).modules()] == before
    assert model.language_model.head is F.linear


@pytest.mark.parametrize("way", [rounded, widened], ids=lambda way: way.__name__)
def test_many_threads_may_ask_one_model_and_no_setting_changes(monkeypatch, one_row, way):
    choose_for_many_rows(monkeypatch, way)
    model, processor = load("small", dtype="bfloat16")
    pictures = list(examples().values())[:4]

    def settings():
        return torch.get_num_threads(), torch.backends.mkldnn.enabled, torch.is_grad_enabled()

    def answer(number):
        before = settings()
        batch = processor(pictures[number % 4], "caption en")
        told = []
        for tokens in token_steps(model, batch, 12):
            told.append(int(tokens))
            assert settings()[:2] == before[:2]
        assert settings() == before
        return told

    before = settings()
    alone = [answer(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, range(8))) == 2 * alone
        assert set(pool.map(lambda _: settings(), range(4))) == {before}
    later = []
    thread = threading.Thread(target=lambda: later.append(settings()))
    thread.start()
    thread.join(60)
    assert later == [before]


def test_an_answer_may_be_asked_for_in_the_middle_of_another(monkeypatch, one_row):
    model, processor = load("small", dtype="bfloat16")
    first, second = list(examples().values())[:2]
    expected = [generate(model, processor, picture, "caption en") for picture in (first, second)]
    told = []
    for tokens in token_steps(model, processor(first, "caption en")):
        told.append(int(tokens))
        assert generate(model, processor, second, "caption en") == expected[1]
    assert processor.decode(told) == expected[0]


def test_the_command_runs_the_small_model_with_one_thread(capsys):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model, processor = load("small")
        generate(model, processor, examples()["cat_and_ball"], "caption en")
        assert torch.get_num_threads() == 2
        assert cli.main(["ask"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
