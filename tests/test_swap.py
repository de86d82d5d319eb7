"""A learner's piece inside the trained model."""

import pytest
import torch
import torch.nn.functional as F

from minipali import load
from minipali.checks import CheckFailed
from minipali.swap import PIECES, swap


@pytest.fixture(scope="module")
def model():
    return load("small")[0]


def right(pixels, weight, bias, positions):
    maps = F.conv2d(pixels, weight, bias, stride=weight.shape[-1])
    return maps.flatten(2).transpose(1, 2) + positions


def without_positions(pixels, weight, bias, positions):
    return right(pixels, weight, bias, 0 * positions)


def logits(model):
    torch.manual_seed(0)
    ids = torch.tensor([[model.config.image_token_id] * 36 + [2, 9, 10]])
    with torch.inference_mode():
        return model(input_ids=ids, pixel_values=torch.randn(1, 3, 72, 72))


def test_a_right_piece_leaves_every_answer_as_it_was(model, capsys):
    calls = []

    def counted(*arguments):
        calls.append(1)
        return right(*arguments)

    mine = swap(model, embed_patches=counted)
    assert "correct" in capsys.readouterr().out
    calls.clear()
    torch.testing.assert_close(logits(mine), logits(model), atol=1e-4, rtol=0)
    assert calls, "the learner's function did not run"


def test_a_wrong_piece_is_named_by_the_first_layer_that_differs(model, capsys):
    mine = swap(model, embed_patches=without_positions)
    assert "vision_tower.embeddings: the largest difference" in capsys.readouterr().out
    assert (logits(mine) - logits(model)).abs().max() > 0.1


def test_a_piece_of_the_wrong_shape_is_reported_not_raised(model, capsys):
    swap(model, embed_patches=lambda pixels, *rest: pixels)
    assert "crashed" in capsys.readouterr().out or "shape" in capsys.readouterr().out


def test_the_given_model_stays_as_it_is_and_a_swapped_one_can_be_swapped_back(model, capsys):
    before = logits(model)
    mine = swap(model, embed_patches=without_positions)
    torch.testing.assert_close(logits(model), before)
    torch.testing.assert_close(logits(swap(mine, embed_patches=right)), before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("failure", [NotImplementedError, ZeroDivisionError])
def test_a_stub_or_a_crash_leaves_the_models_own_piece(model, capsys, failure):
    def fails(pixels, weight, bias, positions):
        raise failure("not yet")

    mine = swap(model, embed_patches=fails)
    expected = "not attempted" if failure is NotImplementedError else "crashed"
    assert expected in capsys.readouterr().out
    torch.testing.assert_close(logits(mine), logits(model))


def test_strict_mode_raises_and_unknown_pieces_are_listed(model, monkeypatch):
    with pytest.raises(KeyError, match=", ".join(PIECES)):
        swap(model, patch=right)
    monkeypatch.setenv("MINIPALI_STRICT", "1")
    with pytest.raises(CheckFailed):
        swap(model, embed_patches=without_positions)
