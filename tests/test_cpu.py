"""Settings for one call on a CPU: chosen by its size, and as before after it."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import fresh_model, make_batch

from minipali import cpu
from minipali.config import preset
from minipali.gemma import Gemma
from minipali.generation import token_steps


def settings() -> tuple[int, bool]:
    return torch.get_num_threads(), torch.backends.mkldnn.enabled


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "dtype", "tokens", "expected"),
    [
        ("small", torch.float32, 1, (1, True)),
        ("small", torch.bfloat16, 1, (1, False)),
        ("small", torch.bfloat16, 2, (1, True)),
        ("small", torch.float32, 100 * 60, (2, True)),
        ("paligemma-3b-224", torch.float32, 1, (2, True)),
        ("paligemma-3b-224", torch.bfloat16, 1, (2, False)),
        ("paligemma-3b-224", torch.bfloat16, 264, (2, True)),
    ],
)
def test_settings_suit_the_call_and_are_undone(two_threads, name, dtype, tokens, expected):
    with cpu.suited_to(preset(name).text, dtype, tokens):
        assert settings() == expected
    assert settings() == (2, True)
    with pytest.raises(ZeroDivisionError), cpu.suited_to(preset(name).text, dtype, tokens):
        raise ZeroDivisionError
    assert settings() == (2, True)


def test_the_size_of_a_call_is_that_of_the_weights(two_threads):
    """What decides is a formula; here are the weights it stands for (norms are not products)."""
    config = preset("paligemma-3b-224").text
    with torch.device("meta"):
        weights = sum(p.numel() for p in Gemma(config).parameters() if p.ndim == 2)
    for limit, threads in ((weights, 2), (weights + 1, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "SMALL_CALL", limit)
            with cpu.suited_to(config, torch.float32, 1):
                assert torch.get_num_threads() == threads


def test_a_caller_between_two_tokens_has_its_own_settings(two_threads):
    model = fresh_model().bfloat16()
    batch = make_batch([(4, 0)])
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    inside = []
    whole = model.hidden_states

    def watched(*args, **kwargs):
        inside.append(settings())
        return whole(*args, **kwargs)

    model.hidden_states = watched
    for _ in token_steps(model, batch, 3):
        assert settings() == (2, True)
    assert inside[0] == (1, True) and set(inside[1:]) <= {(1, False)}


def test_threads_that_answer_at_once_leave_the_settings_as_they_were(two_threads):
    model = fresh_model().bfloat16()

    def answer(number):
        batch = make_batch([(4, 0)], seed=number)
        batch["pixel_values"] = batch["pixel_values"].bfloat16()
        return [int(tokens) for tokens in token_steps(copy.deepcopy(model), batch, 6)]

    alone = [answer(number) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, range(8))) == alone
    assert settings() == (2, True)
