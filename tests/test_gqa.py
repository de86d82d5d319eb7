"""Lesson 09: grouped-query attention."""

import pytest
import torch
from conftest import make_batch, make_ours, make_pair

from minipali import figures, load
from minipali.attention import attend
from minipali.checks import exercise
from minipali.checks.engine import CORRECT, CRASHED, examine
from minipali.gqa import repeat_kv
from minipali.paligemma import prefix_lm_mask
from minipali.rope import rope_angles
from minipali.swap import put, swap


def test_neighbouring_query_heads_share_a_key_head():
    x = torch.arange(2.0).reshape(1, 2, 1, 1).expand(3, 2, 5, 4)
    repeated = repeat_kv(x, 3)
    assert repeated.shape == (3, 6, 5, 4)
    assert repeated[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]  # not 0 1 0 1 0 1
    assert torch.equal(repeat_kv(x, 1), x)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_gemma(kv_heads, implementation):
    ours, theirs = make_pair(kv_heads, implementation)
    batch = make_batch([(4, 3), (2, 1)])
    is_real, is_suffix = batch["attention_mask"].bool(), batch["token_type_ids"].bool()
    positions = is_real.cumsum(1).clamp(min=1)
    mask = prefix_lm_mask(is_real, is_suffix)
    x = torch.randn(*is_real.shape, 24, generator=torch.Generator().manual_seed(1))
    additive = torch.where(mask, 0.0, -1e30)
    angles = rope_angles(positions, 10, 500.0)
    with torch.no_grad():
        their_angles = theirs.model.language_model.rotary_emb(x, positions)
        for mine, other in zip(
            ours.language_model.layers, theirs.model.language_model.layers, strict=True
        ):
            expected = other.self_attn(x, their_angles, additive)[0]
            found = mine.self_attn(x, angles, mask)
            torch.testing.assert_close(found[is_real], expected[is_real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_times_head_dim_need_not_be_the_width(kv_heads):
    attention = make_ours(kv_heads).language_model.layers[0].self_attn
    shapes = {name: tuple(p.shape) for name, p in attention.named_parameters()}
    assert shapes == {
        "q_proj.weight": (40, 24),
        "k_proj.weight": (10 * kv_heads, 24),
        "v_proj.weight": (10 * kv_heads, 24),
        "o_proj.weight": (24, 40),
    }


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("t", [1, 2, 5])
def test_rows_of_a_group_see_the_same_as_heads_with_repeated_keys(kv_heads, masked, t):
    random, seen = torch.Generator().manual_seed(t), []
    query = torch.randn(3, 4, t, 10, generator=random)
    key, value = (torch.randn(3, kv_heads, 7, 10, generator=random) for _ in "kv")
    mask = None
    if masked:  # another one for each row and query
        mask = torch.rand(3, 1, t, 7, generator=random) < 0.6
        mask[..., -1] = True

    def watched(query, key, value, mask):
        seen.append((tuple(query.shape), tuple(key.shape)))
        return attend(query, key, value, mask)

    model = make_ours(kv_heads)
    without, repeated = (
        put(model, attend=watched, **more).language_model.layers[0].self_attn
        for more in ({}, {"repeat_kv": in_order})
    )
    expected = attend(query, *(in_order(x, 4 // kv_heads) for x in (key, value)), mask)
    for one in (model.language_model.layers[0].self_attn, without, repeated):
        torch.testing.assert_close(one.mix(query, key, value, mask), expected, rtol=0, atol=1e-6)
    assert seen == [
        ((3, kv_heads, 4 // kv_heads * t, 10), (3, kv_heads, 7, 10)),
        ((3, 4, t, 10), (3, 4, 7, 10)),
    ]


# --- the lesson and the exercise ------------------------------------------------------------------


def in_order(x, times):
    return torch.stack([x[:, i // times] for i in range(x.shape[1] * times)], dim=1)


def tiled(x, times):
    return torch.cat([x] * times, dim=1)


def attention(order):
    """Grouped-query attention head by head, with `order` for repeat_kv."""

    def attempt(x, q_weight, k_weight, v_weight, o_weight, heads, kv_heads, rotate, remember, mask):
        def split(weight, number):
            return (x @ weight.T).unflatten(-1, (number, -1)).transpose(1, 2)

        key, value = remember(rotate(split(k_weight, kv_heads)), split(v_weight, kv_heads))
        query = rotate(split(q_weight, heads))
        key, value = order(key, heads // kv_heads), order(value, heads // kv_heads)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e30)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2) @ o_weight.T

    return attempt


@pytest.fixture(scope="module")
def small():
    return load("small")[0]


def test_right_pieces_run_in_every_layer_and_change_nothing(small, capsys):
    calls = []

    def counted(x, times):
        calls.append((x.shape[1], times))
        return in_order(x, times)

    swap(small, repeat_kv=counted)
    assert "correct" in capsys.readouterr().out
    assert set(calls) == {(2, 2)}
    calls.clear()
    mine = swap(small, repeat_kv=counted, grouped_query_attention=attention(counted))
    assert "correct" in capsys.readouterr().out
    calls.clear()
    with torch.inference_mode():
        mine(input_ids=torch.tensor([[2, 9, 10]]))
    assert len(calls) == 2 * small.config.text.num_hidden_layers


@pytest.mark.parametrize(
    "pieces", [{"repeat_kv": tiled}, {"grouped_query_attention": attention(tiled)}]
)
def test_a_wrong_order_is_noticed_in_the_first_layer(small, capsys, pieces):
    swap(small, **pieces)
    told = capsys.readouterr().out
    assert "wrong" in told and "language_model.layers.0.self_attn" in told


def test_with_one_key_value_head_the_order_cannot_be_noticed(capsys):
    swap(make_ours(1), repeat_kv=tiled)
    assert "correct" in capsys.readouterr().out


def test_a_single_head_is_repeated_without_copying():
    x = torch.randn(2, 1, 5, 4)
    assert repeat_kv(x, 8).data_ptr() == x.data_ptr()
    cached = torch.randn(2, 1, 9, 4)[:, :, :5]  # part of a larger buffer, as the cache returns it
    assert repeat_kv(cached, 8).data_ptr() == cached.data_ptr()


def examined(attempt):
    return examine(exercise("grouped_query_attention"), attempt)


@pytest.mark.parametrize("order", [in_order, lambda x, times: x.repeat_interleave(times, 1)])
def test_honest_attention_is_correct(order):
    assert examined(attention(order)).status == CORRECT


def folded(x, q_weight, k_weight, v_weight, o_weight, heads, kv_heads, rotate, remember, mask):
    def split(weight, number):
        return (x @ weight.T).unflatten(-1, (number, -1)).transpose(1, 2)

    key, value = remember(rotate(split(k_weight, kv_heads)), split(v_weight, kv_heads))
    rows = rotate(split(q_weight, heads)).unflatten(1, (kv_heads, -1))  # (b, g, r, t, k)
    scores = rows.flatten(2, 3) @ key.mT / rows.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.repeat(1, 1, heads // kv_heads, 1), -1e30)
    mixed = (scores.softmax(-1) @ value).view(rows.shape).flatten(1, 2)
    return mixed.transpose(1, 2).flatten(2) @ o_weight.T


def test_heads_with_equal_keys_and_values_share_them_without_loss():
    """A multi-head layer, and what the exercise's reference makes of it."""
    random, groups, k, d = torch.Generator().manual_seed(0), [[3, 0, 4], [5, 2, 1]], 8, 12
    few = torch.randn(2, 2, k, d, generator=random) * 0.3  # keys and values, a head for each group
    own = torch.empty(2, 6, k, d)
    for i, group in enumerate(groups):
        own[:, group] = few[:, i, None]
    weights = [torch.randn(6 * k, d, generator=random), *own.flatten(1, 2)]
    weights.append(torch.randn(d, 6 * k, generator=random) * 0.3)
    x = torch.randn(2, 5, d, generator=random)
    rest = (lambda y: y, lambda key, value: (key, value), None)  # nothing rotated or remembered
    layer = attention(in_order)
    expected = layer(x, *weights, 6, 6, *rest)
    shared = exercise("share_heads").reference(*weights, groups)
    assert [len(one) for one in shared] == [48, 16, 16, 12]
    torch.testing.assert_close(layer(x, *shared, 6, 2, *rest), expected)


def test_folded_query_heads_are_correct():
    assert examined(folded).status == CORRECT


def with_order(remember_first=False, repeat_first=False, ignore=False):
    """Steps in a wrong order, or the remembered ones not used."""

    def attempt(x, q, k, v, o, heads, kv_heads, rotate, remember, mask):
        def turned(y):
            return y if remember_first else rotate(y)

        def remembered(key, value):
            if repeat_first:
                key, value = in_order(key, heads // kv_heads), in_order(value, heads // kv_heads)
            found = remember(key, value)
            return (key, value) if ignore else found

        def order(y, times):
            return y if repeat_first else in_order(y, times)

        if remember_first:
            return attention(order)(
                x, q, k, v, o, heads, kv_heads, lambda y: y,
                lambda key, value: tuple(map(rotate, remember(key, value))), mask,
            )  # fmt: skip
        return attention(order)(x, q, k, v, o, heads, kv_heads, turned, remembered, mask)

    return attempt


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (with_order(repeat_first=True), "before they are repeated; found (2, 4, 5, 8)"),
        (with_order(remember_first=True), "rotate was given keys after remember was called"),
        (with_order(ignore=True), "size of tensor"),
    ],
)
def test_a_wrong_order_of_the_steps_is_said(attempt, said):
    outcome = examined(attempt)
    assert outcome.status == CRASHED
    assert said in outcome.message


@pytest.mark.parametrize("number", range(len(exercise("grouped_query_attention").cases())))
def test_cases_have_more_query_heads_than_key_heads_and_another_width(number):
    x, q_weight, k_weight, _, o_weight, heads, kv_heads, *_ = exercise(
        "grouped_query_attention"
    ).cases()[number]
    assert (heads, kv_heads) in ((4, 2), (6, 3))
    assert len(q_weight) == o_weight.shape[1] != x.shape[-1]
    assert len(k_weight) * heads == len(q_weight) * kv_heads


def test_figures_say_what_they_show(capsys):
    figures.gqa.sharing({"grouped": [0, 0, 1, 1]})
    assert "grouped: 0 reads A, 1 reads A, 2 reads B, 3 reads B." in capsys.readouterr().out
    figures.gqa.by_task({"as trained": [80.0, 3.0]}, ("naming", "yes/no"))
    assert "as trained: naming 80, yes/no 3" in capsys.readouterr().out
    losses = {"mean": [3.0, 2, 1, 1, 1, 1], "random": [5.0] * 6}
    figures.gqa.repaired(losses, {"mean": (20.0, 70.0), "random": (0.0, 9.0)}, whole=85.0)
    told = capsys.readouterr().out
    assert "in 6 training steps" in told and "mean: 20 before, 70 after" in told
    figures.gqa.cache_size([1, 8], {"224 px": [6.0, 47.0]}, {"real": [(1, 6.0)]})
    told = capsys.readouterr().out
    assert "224 px: 6 MB with 1, 47 with 8" in told and "real: 6 MB with 1" in told
