"""Lesson 10: the decoder, layer by layer, and whether the comparison would notice a mistake."""

import copy
import functools

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from conftest import ROUNDING, make_batch, make_pair, outputs_of, tiny_config
from torch import nn

from minipali import figures, gqa, load, paligemma
from minipali.checks import exercise
from minipali.checks.engine import CORRECT, CRASHED, WRONG, examine
from minipali.gemma import GeGLU, Gemma
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma, prefix_lm_mask
from minipali.swap import swap


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_decoder_layer_and_the_final_norm_equal_transformers(pair, side):
    ours, theirs = pair
    batch = make_batch([(5, 4), (2, 7), (6, 0), (1, 1)], side)
    is_real = batch["attention_mask"].bool()

    def parts(decoder):
        return [*decoder.layers, decoder.norm]

    found = outputs_of(parts(ours.language_model), lambda: ours(**batch))
    expected = outputs_of(parts(theirs.model.language_model), lambda: theirs(**batch))
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        # Values of up to some 5 after three layers: their last bits differ between processors.
        torch.testing.assert_close(a[is_real], b[is_real], rtol=1e-5, atol=1e-5)


def test_geglu_equals_transformers_and_gates_with_tanh_gelu(pair2):
    ours, theirs = pair2
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    mine, other = ours.language_model.layers[0].mlp, theirs.model.language_model.layers[0].mlp
    with torch.no_grad():
        torch.testing.assert_close(mine(x), other(x), rtol=0, atol=1e-5)
        swapped = mine.down_proj(F.gelu(mine.up_proj(x), approximate="tanh") * mine.gate_proj(x))
        erf = mine.down_proj(F.gelu(mine.gate_proj(x)) * mine.up_proj(x))
        assert (swapped - mine(x)).abs().max() > 0.1
        assert (erf - mine(x)).abs().max() > 1e-4


def test_geglu_has_no_biases():
    assert {name for name, _ in GeGLU(3, 5).named_parameters()} == {
        "gate_proj.weight",
        "up_proj.weight",
        "down_proj.weight",
    }


def test_text_embeddings_are_scaled_and_the_head_is_the_same_table_unscaled(pair2):
    ours, theirs = pair2
    ids = torch.tensor([[5, 9, 1700]])
    table = theirs.state_dict()["lm_head.weight"]
    with torch.no_grad():
        found = ours.language_model.embed(ids)
        torch.testing.assert_close(found, table[ids] * 24**0.5, rtol=0, atol=1e-6)
        x = torch.randn(2, 24)
        torch.testing.assert_close(ours.language_model.logits(x), x @ table.T, rtol=0, atol=1e-5)


def test_the_embedding_factor_is_rounded_in_bfloat16_as_in_training():
    model = PaliGemma(tiny_config()).bfloat16()
    ids = torch.tensor([[5, 9]])
    factor = torch.tensor(24**0.5).bfloat16()
    expected = model.language_model.embed_tokens.weight[ids] * factor
    assert torch.equal(model.language_model.embed(ids), expected)


def weight_itself(self, x):
    x32 = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
    return x32 * self.weight


def neighbours(x, cos, sin):
    cos, sin, pairs = cos[:, None], sin[:, None], x.unflatten(-1, (-1, 2))
    a, b = pairs.unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def unscaled(query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


def mask_of(change):
    """The right mask of changed arguments."""
    return lambda is_real, is_suffix, queries: prefix_lm_mask(*change(is_real, is_suffix), queries)


def scaled_picture(self, pixels):
    return self.multi_modal_projector(self.vision_tower(pixels)) * 24**0.5


def in_turns(self, query, key, value, mask):
    key, value = (x.repeat(1, self.heads // self.kv_heads, 1, 1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


MISTAKES = {
    "norm without the 1 +": (RMSNorm, "forward", weight_itself),
    "key heads in turns": (gqa.GroupedQueryAttention, "mix", in_turns),
    "rope pairs neighbours": (gqa, "apply_rope", neighbours),
    "no rope": (gqa, "apply_rope", lambda x, cos, sin: x),
    "scores not scaled": (gqa, "attend", unscaled),
    "text not scaled": (Gemma, "embed", lambda self, ids: self.embed_tokens(ids)),
    "picture scaled too": (PaliGemma, "image_features", scaled_picture),
    "causal prefix": (
        paligemma,
        "prefix_lm_mask",
        mask_of(lambda real, suffix: (real, real)),
    ),
    "suffix not causal": (
        paligemma,
        "prefix_lm_mask",
        mask_of(lambda real, suffix: (real, suffix & ~real)),
    ),
    "padding visible": (
        paligemma,
        "prefix_lm_mask",
        mask_of(lambda real, suffix: (real | ~real, suffix)),
    ),
    "picture not merged": (paligemma, "merge", lambda text, image, where: text),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_random_weights_are_large_enough_to_show(mistake, monkeypatch):
    """Each known mistake moves some logit by far more than the tolerance."""
    batch = make_batch([(5, 4), (2, 3)])
    model, theirs = make_pair(2)
    is_real = batch["attention_mask"].bool()
    with torch.no_grad():
        correct = theirs(**batch).logits[is_real]
        assert (model(**batch)[is_real] - correct).abs().max() < ROUNDING
        monkeypatch.setattr(*MISTAKES[mistake])
        assert (model(**batch)[is_real] - correct).abs().max() > 1e-2


# --- the lesson's pieces --------------------------------------------------------------------------


def embed(input_ids, table):
    return F.embedding(input_ids, table) * table.shape[1] ** 0.5


def geglu(x, gate_weight, up_weight, down_weight):
    gate = F.gelu(F.linear(x, gate_weight), approximate="tanh")
    return F.linear(gate * F.linear(x, up_weight), down_weight)


def decoder_layer(x, norm1, attention, norm2, mlp):
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


def decoder(x, layers, norm):
    for layer in layers:
        x = layer(x)
    return norm(x)


def logits(x, table):
    return F.linear(x, table)


@pytest.fixture(scope="module")
def small_model():
    return load("small")[0]


RIGHT = (embed, geglu, decoder_layer, decoder, logits)


def test_a_learners_whole_decoder_runs_and_leaves_every_answer_as_it_was(small_model, capsys):
    calls = []

    def counted(piece):
        def call(*arguments):
            calls.append(piece.__name__)
            return piece(*arguments)

        return call

    mine = swap(small_model, **{piece.__name__: counted(piece) for piece in RIGHT})
    assert "correct" in capsys.readouterr().out
    calls.clear()
    batch = make_batch([(5, 4), (2, 3)], config=small_model.config)
    with torch.inference_mode():
        torch.testing.assert_close(mine(**batch), small_model(**batch), rtol=0, atol=1e-3)
    layers = small_model.config.text.num_hidden_layers
    assert calls == ["embed", "decoder", *["decoder_layer", "geglu"] * layers, "logits"]


@pytest.mark.parametrize(
    ("pieces", "place"),
    [
        ({"embed": lambda ids, table: table[ids]}, "layers.0."),
        ({"geglu": lambda x, gate, up, down: geglu(x, up, gate, down)}, "layers.0.mlp:"),
        ({"decoder_layer": lambda x, n1, a, n2, m: n2(x + a(n1(x)))}, "layers.0:"),
        ({"decoder": lambda x, layers, norm: decoder(x, layers, lambda x: x)}, "language_model:"),
        ({"logits": lambda x, table: x @ table.T * 2}, "logits:"),
    ],
    ids=["not scaled", "gate and up swapped", "no MLP", "no final norm", "logits doubled"],
)
def test_a_wrong_part_of_the_decoder_is_found_in_the_trained_model(
    small_model, capsys, pieces, place
):
    swap(small_model, **pieces)
    told = capsys.readouterr().out
    assert "wrong" in told and place in told


def test_a_fresh_head_is_named_though_its_weights_are_random():
    def untied(x, table):
        return nn.Linear(table.shape[1], table.shape[0], bias=False)(x)

    for _ in range(2):
        outcome = examine(exercise("logits"), untied)
        assert outcome.status == WRONG
        assert outcome.message.startswith("The head is not tied")


def test_layers_may_be_called_in_any_honest_way_and_belong_to_the_case():
    def folded(x, layers, norm):
        return norm(functools.reduce(lambda x, layer: layer(x), layers, x))

    assert examine(exercise("decoder"), folded).status == CORRECT

    outcome = examine(exercise("decoder"), lambda x, layers, norm: nn.Sequential(*layers, norm)(x))
    assert outcome.status == CRASHED and outcome.message.startswith("nn.Sequential")

    def uses_them_up(x, layers, norm):
        while layers:
            x = layers.pop(0)(x)
        return norm(x)

    outcome = examine(exercise("decoder"), uses_them_up)
    assert outcome.status == CRASHED and "layers = 3 functions" in outcome.message

    def appends(x, layers, norm):
        layers = list(layers) if isinstance(layers, tuple) else layers
        layers.append(norm)
        return functools.reduce(lambda x, layer: layer(x), layers, x)

    outcome = examine(exercise("decoder"), appends)
    assert outcome.status == WRONG and "changed its input `layers`" in outcome.message


def test_attention_is_called_once():
    def twice(x, norm1, attention, norm2, mlp):
        x, _ = x + attention(norm1(x)), attention(norm1(x))
        return x + mlp(norm2(x))

    outcome = examine(exercise("decoder_layer"), twice)
    assert outcome.status == CRASHED and "attention was called twice" in outcome.message


def test_the_axes_of_one_token_a_row_have_their_own_names():
    outcome = examine(exercise("logits"), lambda x, table: x @ table.T[:, : 7 + 2 * (x.ndim > 2)])
    assert "axis 1 (v) must be 11, found 7" in outcome.message


def test_nine_weights_may_come_in_a_list():
    def attempt(norm1, query, key, value, out, norm2, gate, up, down):
        attention = [one @ torch.diag(1 + norm1) for one in (query, key, value)]
        mlp = [one @ torch.diag(1 + norm2) for one in (gate, up)]
        return [0 * norm1, *attention, out, 0 * norm2, *mlp, down]

    assert examine(exercise("fold_norms"), attempt).status == CORRECT


def test_the_figure_of_the_lens_tells_where_a_word_comes_up(monkeypatch):
    told = []

    def show(figure, alt):
        told.append(alt)
        plt.close(figure)

    monkeypatch.setattr(figures.gemma, "show", show)
    chances = torch.zeros(5, 2, 3)
    for step, words in enumerate([(0, 0), (0, 1), (2, 1), (2, 1), (2, 2)]):
        for question, word in enumerate(words):
            chances[step, question, word] = 0.9
    figures.gemma.lens(chances, "abc".__getitem__, ["answer en left?", "right?"], "Alt.")
    assert "left? a at the start, then c after MLP 1;" in told[0]
    assert "right? a at the start, then b after attention 1, then c after MLP 2." in told[0]


def test_folded_norms_leave_the_trained_model_as_it_was():
    model, _ = load("small")
    folded = copy.deepcopy(model)
    for layer in folded.language_model.layers:
        a, m = layer.self_attn, layer.mlp
        parts = [layer.input_layernorm, a.q_proj, a.k_proj, a.v_proj, a.o_proj]
        parts += [layer.post_attention_layernorm, m.gate_proj, m.up_proj, m.down_proj]
        weights = exercise("fold_norms").reference(*(part.weight.detach() for part in parts))
        for part, weight in zip(parts, weights, strict=True):
            part.weight.data = weight
        assert not layer.input_layernorm.weight.any()
    ids = torch.randint(700, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(folded(ids), model(ids), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("logits", lambda x, table: torch.einsum("btd,vd->btv", x, table), "einsum"),
        ("decoder", lambda x, layers, norm: norm(layers.pop(0)(x)), "must stay as it is"),
    ],
)
def test_what_crashes_in_these_pieces_is_told_in_words_that_help(name, wrong, said):
    outcome = examine(exercise(name), wrong)
    assert outcome.status == CRASHED
    assert said in outcome.message and "stands over" not in outcome.message
