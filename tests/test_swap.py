"""A learner's piece inside the trained model."""

import copy
import inspect
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from minipali import load
from minipali.checks import CheckFailed
from minipali.gemma import Gemma
from minipali.scenes import examples
from minipali.swap import PIECES, pieces_of, put, swap, whose


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
    said = capsys.readouterr().out
    assert "crashed" in said and "embed_patches must return a Tensor of shape (1, 36, 160)" in said


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
    assert whose(mine) == "package (without your embed_patches)"
    assert whose(swap(mine, embed_patches=right)) == "mine" and whose(model) == "package"


def test_strict_mode_raises_and_unknown_pieces_are_listed(model, monkeypatch):
    with pytest.raises(KeyError, match=", ".join(pieces_of(model))):
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


# --- lessons 06 to 12 -----------------------------------------------------------------------------


def rope(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def angles(positions, head_dim, theta):
    rates = theta ** (-torch.arange(0, head_dim, 2) / head_dim)
    return (positions[..., None] * rates).cos(), (positions[..., None] * rates).sin()


def store(keys, values, start, key, value):
    end = start + key.shape[2]
    keys[:, :, start:end], values[:, :, start:end] = key, value
    return keys[:, :, :end], values[:, :, :end]


def grouped(x, q, k, v, o, heads, kv_heads, rotate, remember, mask):
    def split(weight, parts):
        return F.linear(x, weight).unflatten(-1, (parts, -1)).transpose(1, 2)

    key, value = remember(rotate(split(k, kv_heads)), split(v, kv_heads))
    key, value = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (key, value))
    mixed = F.scaled_dot_product_attention(rotate(split(q, heads)), key, value, attn_mask=mask)
    return F.linear(mixed.transpose(1, 2).flatten(2), o)


def gated(x, gate, up, down):
    return F.linear(F.gelu(F.linear(x, gate), approximate="tanh") * F.linear(x, up), down)


def stack(x, layers, norm):
    for layer in layers:
        x = layer(x)
    return norm(x)


def see(pixels, tower, weight, bias):
    return F.linear(tower(pixels), weight, bias)


def mix(text, image, is_image):
    out = text.clone()
    out[is_image] = image.flatten(0, 1)
    return out


def visible(is_real, is_suffix, queries):
    s = is_real.shape[1]
    order = torch.ones(s, s).tril().bool()[-queries:]
    return (is_real[:, None] & (order | ~is_suffix[:, None]))[:, None]


def probabilities(logits, temperature, top_k, top_p):
    p = (logits / temperature).softmax(-1)
    ordered, places = p.sort(dim=-1, descending=True)
    ordered[:, top_k or len(ordered[0]) :] = 0
    ordered = ordered / ordered.sum(-1, keepdim=True)
    ordered[ordered.cumsum(-1) - ordered >= (top_p or 1.0)] = 0
    p = torch.zeros_like(p).scatter(-1, places, ordered)
    return p / p.sum(-1, keepdim=True)


def loop(logits, step, choose, eos, pad, max_new_tokens):
    running, told = torch.ones(len(logits)).bool(), []
    while True:
        told.append(torch.where(running, choose(logits), pad))
        running = running & (told[-1] != eos)
        if len(told) == max_new_tokens or not running.any():
            return told
        logits = step(told[-1], running)


RIGHT = {
    "rope_angles": angles,
    "apply_rope": rope,
    "cache_update": store,
    "token_positions": lambda is_real, earlier: (is_real.cumsum(1) + earlier).clamp(min=1),
    "repeat_kv": lambda x, times: x.repeat_interleave(times, 1),
    "grouped_query_attention": grouped,
    "embed": lambda ids, table: table[ids] * table.shape[1] ** 0.5,
    "geglu": gated,
    "decoder_layer": right_layer,
    "decoder": stack,
    "logits": lambda x, table: x @ table.T,
    "image_tokens": see,
    "merge": mix,
    "prefix_lm_mask": visible,
    "distribution": probabilities,
    "continue_tokens": loop,
}


RIGHT_OF_ALL = {"attend": attention, **RIGHT}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_piece_of_the_decoder_runs_and_changes_nothing(model, capsys, name):
    calls = []

    def counted(*arguments):
        calls.append(1)
        return RIGHT[name](*arguments)

    swap(model, **{name: counted})
    assert f"✓ {name} in the model: correct" in capsys.readouterr().out
    assert calls, "the learner's function did not run"


def test_all_pieces_of_the_model_can_be_swapped_at_once(model, capsys):
    mine = swap(model, **RIGHT, mlp=right_mlp, encoder_layer=right_layer, embed_patches=right)
    assert "✓ 19 pieces in the model: correct" in capsys.readouterr().out
    torch.testing.assert_close(logits(mine), logits(model), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rope_angles": lambda p, *rest: angles(0 * p, *rest)}, "layers.0.self_attn.o_proj"),
        # These two agree as long as nothing is cached.
        (
            {"token_positions": lambda is_real, earlier: is_real.cumsum(1).clamp(min=1)},
            "with a cache, is language_model.layers.0.self_attn.o_proj (call 2)",
        ),
        (
            {"cache_update": lambda keys, values, start, key, value: (key, value)},
            "crashed",
        ),
        ({"repeat_kv": lambda x, times: x.repeat(1, times, 1, 1)}, "layers.0.self_attn.o_proj"),
        ({"embed": lambda ids, table: table[ids]}, "differs is language_model"),
        ({"logits": lambda x, table: x}, "logits must return a Tensor of shape"),
        ({"merge": lambda text, image, is_image: mix(text, image.flip(1), is_image)}, "layers.0."),
        (
            {"prefix_lm_mask": lambda real, suffix, t: visible(real, suffix | True, t)},
            "layers.0.self_attn.o_proj",
        ),
        # The forward never draws: only whole answers show these.
        ({"distribution": lambda logits, *rest: logits.softmax(-1)}, "drawn with"),
        (
            {"distribution": lambda logits, t, k, p: probabilities(logits, t, k, None)},
            "drawn with",
        ),
        (
            {"distribution": lambda logits, t, k, p: probabilities(logits, t, None, p)},
            "drawn with",
        ),
        (
            {"continue_tokens": lambda *given: loop(*given[:3], -1, *given[4:])},
            "first tokens that differ, greedy",
        ),
        ({"continue_tokens": lambda *given: loop(*given[:5], 3)}, "number of tokens differs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_piece_of_the_decoder_is_noticed_where_it_first_shows(model, capsys, wrong, said):
    swap(model, **wrong)
    assert said in capsys.readouterr().out


def test_a_loop_that_never_stops_is_cut_off(model, capsys):
    def endless(logits, step, choose, *rest):
        while True:
            yield choose(logits)

    swap(model, continue_tokens=endless)
    assert "✗ continue_tokens in the model: wrong" in capsys.readouterr().out


@pytest.fixture(scope="module")
def small_processor():
    return load("small")[1]


def fill(rows, filler, side):
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row)
        ids.append([filler] * gap + row if side == "left" else row + [filler] * gap)
        mask.append([0] * gap + [1] * len(row) if side == "left" else [1] * len(row) + [0] * gap)
    return torch.tensor(ids), torch.tensor(mask)


def scaled(picture, side):
    square = picture.convert("RGB").resize((side, side), 3)
    return torch.tensor(list(square.getdata())).reshape(side, side, 3).permute(2, 0, 1) / 127.5 - 1


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


OF_LESSON_06 = {
    "to_pixels": scaled,
    "prompt_ids": lambda text, encode, image, n, bos: [image] * n + [bos] + encode(text + "\n"),
    "pad_rows": fill,
}


@pytest.mark.filterwarnings("ignore:Image.Image.getdata")
def test_right_pieces_of_the_processor_change_nothing(small_processor, capsys):
    picture, prompt = next(iter(examples().values())), "caption en"
    mine = swap(small_processor, **OF_LESSON_06)
    assert "in the processor: correct" in capsys.readouterr().out
    for name, tensor in small_processor(picture, prompt).items():
        torch.testing.assert_close(mine(picture, prompt)[name], tensor)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"to_pixels": lambda picture, side: 0 * scaled(picture, side)}, "pixel_values"),
        ({"prompt_ids": lambda text, encode, *rest: encode(text)}, "shape of input_ids, padded on"),
        (
            {"pad_rows": lambda rows, filler, side: (fill(rows, filler, side)[0],) * 2},
            "tensor that differs is attention_mask, padded on the left",
        ),
        ({"pad_rows": lambda rows, filler, side: fill(rows, filler, "left")}, "on the right"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Image.Image.getdata")
def test_wrong_pieces_of_the_processor_are_named_by_the_tensor(
    small_processor, capsys, wrong, said
):
    rows = [next(iter(examples().values()))] * 2, ["caption en", "detect cat and dog"]
    before = small_processor(*rows)
    mine = swap(small_processor, **wrong)
    assert said in capsys.readouterr().out
    # What is wrong, but can run, stays in, so that the damage can be seen.
    assert not same(mine(*rows, padding_side="right"), small_processor(*rows, padding_side="right"))
    assert same(small_processor(*rows), before)


# --- how it is done -------------------------------------------------------------------------------


def test_every_row_of_the_table_names_a_method_that_is_there(model, small_processor):
    of_generation = {"distribution", "continue_tokens"}  # these two are found on the model
    for name, owner, method, _ in PIECES:
        assert name in of_generation or callable(getattr(owner, method)), name
    names = [*pieces_of(model), *pieces_of(small_processor)]
    assert sorted(names) == sorted({name for name, *_ in PIECES})


CALLED = [(name, owner, method) for name, owner, method, adapter in PIECES if adapter is None]


@pytest.mark.parametrize(("name", "owner", "method"), CALLED)
def test_a_piece_that_a_method_calls_is_a_global_name_in_it(name, owner, method):
    """Else the learner's function would never run, and every answer would be called correct."""
    function = getattr(owner, method)
    inside = [function.__code__]  # and the functions in it, such as comprehensions
    inside += [one for one in function.__code__.co_consts if isinstance(one, types.CodeType)]
    assert name in function.__globals__ and any(name in one.co_names for one in inside)


@pytest.mark.parametrize(
    "order",
    [
        ("apply_rope", "grouped_query_attention"),
        ("grouped_query_attention", "apply_rope"),
        ("rope_angles", "decoder"),
        ("attend", "repeat_kv"),
        ("cache_update", "grouped_query_attention"),
    ],
)
def test_pieces_put_in_one_after_another_all_work(model, order):
    ran = set()

    def noted(name):
        def call(*given):
            ran.add(name)
            return RIGHT_OF_ALL[name](*given)

        return call

    mine = model
    for name in order:
        mine = put(mine, **{name: noted(name)})
    with torch.inference_mode():
        cache = mine.new_cache(1, 8)
        mine(torch.tensor([[2, 9, 10]]), kv_cache=cache)
    assert ran == set(order)


def test_a_swapped_model_can_be_copied_and_the_copy_is_its_own(model):
    mine = put(model, mlp=right_mlp, attend=attention, rope_angles=angles, cache_update=store)
    copied = copy.deepcopy(mine)
    expected = logits(mine)
    with torch.no_grad():
        for p in mine.parameters():
            p.zero_()
    torch.testing.assert_close(logits(copied), expected)
    assert copied.language_model.forward.__self__ is copied.language_model


def test_two_models_with_other_pieces_answer_at_the_same_time(model):
    """Each piece works in its own copy alone, and no state is shared while they run."""
    turned = put(model, rope_angles=lambda p, *rest: angles(0 * p, *rest))
    three = (model, put(model, rope_angles=angles), turned)
    ids = torch.tensor([[2, 9, 10, 11, 12]])

    @torch.inference_mode()
    def told(one):
        return one(ids)

    expected = [told(one) for one in three]
    assert (expected[2] - expected[0]).abs().max() > 0.1
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(told, three * 8)):
            torch.testing.assert_close(found, expected[number % 3], atol=1e-4, rtol=0)


def test_the_methods_of_a_swapped_model_are_those_of_its_class_to_debuggers(model):
    mine = put(model, rope_angles=angles)
    found, own = mine.language_model.forward, Gemma.forward
    assert found.__code__ is own.__code__ and inspect.getsource(found) == inspect.getsource(own)
    assert Gemma.forward.__globals__["rope_angles"] is not angles


def test_pieces_of_the_model_and_of_the_processor_are_told_apart(model, small_processor):
    with pytest.raises(KeyError, match="the processor has no piece 'mlp'; it has: to_pixels"):
        swap(small_processor, mlp=right_mlp)
    with pytest.raises(KeyError, match="the model has no piece 'to_pixels'"):
        swap(model, to_pixels=scaled)
