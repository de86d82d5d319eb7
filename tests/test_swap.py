"""A learner's piece inside the trained model."""

import pytest
import torch
import torch.nn.functional as F

from minipali import load
from minipali.checks import CheckFailed
from minipali.swap import HOOKS, PIECES, swap


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
    with pytest.raises(KeyError, match=", ".join([*PIECES, *HOOKS])):
        swap(model, patch=right)
    monkeypatch.setenv("MINIPALI_STRICT", "1")
    with pytest.raises(CheckFailed):
        swap(model, embed_patches=without_positions)


# --- lesson 04 ------------------------------------------------------------------------------------


def right_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    hidden = F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate="tanh")
    return F.linear(hidden, fc2_weight, fc2_bias)


def right_layer(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


def test_mlp_and_block_run_in_every_layer_of_the_tower_and_change_nothing(model, capsys):
    calls = []

    def counted(piece):
        def call(*arguments):
            calls.append(piece.__name__)
            return piece(*arguments)

        return call

    mine = swap(model, mlp=counted(right_mlp), encoder_layer=counted(right_layer))
    assert "correct" in capsys.readouterr().out
    calls.clear()
    torch.testing.assert_close(logits(mine), logits(model), atol=1e-4, rtol=0)
    layers = model.config.vision.num_hidden_layers
    assert calls == ["right_layer", "right_mlp"] * layers


@pytest.mark.parametrize(
    ("pieces", "layer"),
    [
        ({"mlp": lambda x, w1, b1, w2, b2: right_mlp(x, w1, 0 * b1, w2, b2)}, "layers.0.mlp"),
        (
            {"encoder_layer": lambda x, n1, a, n2, m: n2((y := n1(x + a(x))) + m(y))},
            "layers.0.layer_norm1",
        ),
        ({"encoder_layer": lambda x, n1, a, n2, m: x + a(n1(x))}, "layers.0:"),
    ],
    ids=["biases missing", "post-norm", "MLP forgotten"],
)
def test_a_wrong_mlp_or_block_is_found_inside_the_first_layer(model, capsys, pieces, layer):
    swap(model, **pieces)
    assert f"vision_tower.{layer}" in capsys.readouterr().out


def attention(query, key, value, mask, scale=None):
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ value


def ignores_the_mask(query, key, value, mask):
    return attention(query, key, value, None)


def multi_head(
    x, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, out_weight, out_bias, heads
):
    def split(weight, bias):
        return F.linear(x, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key, value = split(q_weight, q_bias), split(k_weight, k_bias), split(v_weight, v_bias)
    mixed = attention(query, key, value, None)
    return F.linear(mixed.transpose(1, 2).flatten(2), out_weight, out_bias)


def test_a_learners_attention_works_in_both_towers(model, capsys):
    masks = []

    def counted(query, key, value, mask):
        masks.append(mask is not None)
        return attention(query, key, value, mask)

    mine = swap(model, attend=counted)
    assert "correct" in capsys.readouterr().out
    masks.clear()
    torch.testing.assert_close(logits(mine), logits(model), atol=1e-3, rtol=0)
    config = model.config
    layers = config.vision.num_hidden_layers, config.text.num_hidden_layers
    assert masks == [False] * layers[0] + [True] * layers[1]


def test_a_learners_multi_head_attention_leaves_every_answer_as_it_was(model, capsys):
    mine = swap(model, multi_head_attention=multi_head, attend=attention)
    assert "correct" in capsys.readouterr().out
    torch.testing.assert_close(logits(mine), logits(model), atol=1e-3, rtol=0)


def test_wrong_attention_is_noticed_where_it_works(model, capsys):
    swap(model, attend=lambda *given: attention(*given, scale=1.0))
    assert "vision_tower.layers.0.self_attn" in capsys.readouterr().out
    swap(model, attend=ignores_the_mask)
    assert "language_model.layers.0.self_attn" in capsys.readouterr().out
    swap(model, multi_head_attention=lambda x, *rest: x)
    assert "vision_tower.layers.0.self_attn: " in capsys.readouterr().out


def layer(x, weight, bias, eps):
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def root_mean_square(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), 1 + weight, eps)


def test_norms_of_the_learner_run_in_every_layer_with_the_trained_weights(model, capsys):
    widths = []

    def counted(norm):
        def attempt(x, *rest):
            widths.append(x.shape[-1])
            return norm(x, *rest)

        return attempt

    mine = swap(model, layer_norm=counted(layer), rms_norm=counted(root_mean_square))
    assert "correct" in capsys.readouterr().out
    widths.clear()
    torch.testing.assert_close(logits(mine), logits(model), atol=1e-3, rtol=0)
    v, t = model.config.vision, model.config.text
    in_vision, in_text = 2 * v.num_hidden_layers + 1, 2 * t.num_hidden_layers + 1
    assert widths == [v.hidden_size] * in_vision + [t.hidden_size] * in_text


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (
            {"layer_norm": lambda x, w, b, eps: layer(x.mT, None, None, eps).mT * w + b},
            "vision_tower.layers.0.layer_norm1",
        ),
        (
            {"rms_norm": lambda x, w, eps: root_mean_square(x, w - 1, eps)},
            "language_model.layers.0.input_layernorm",
        ),
    ],
)
def test_a_wrong_norm_is_named_by_its_first_place(model, capsys, wrong, where):
    mine = swap(model, **wrong)
    assert f"{where}: the largest difference" in capsys.readouterr().out
    assert (logits(mine) - logits(model)).abs().max() > 0.1


def test_a_swapped_norm_gets_the_models_own_eps(model):
    seen = set()

    def note(x, weight, bias, eps):
        seen.add(eps)
        return layer(x, weight, bias, eps)

    swap(model, layer_norm=note)
    assert seen == {model.config.vision.layer_norm_eps}
