"""Lesson 10: the decoder, layer by layer, and whether the comparison would notice a mistake."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch, make_pair, outputs_of, tiny_config

from minipali import gqa
from minipali.gemma import GeGLU, Gemma
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma, prefix_lm_mask


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


def unscaled(self, query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


def mask_of(change):
    """The right mask of changed arguments."""
    return staticmethod(
        lambda is_real, is_suffix, queries=None: prefix_lm_mask(
            *change(is_real, is_suffix), queries
        )
    )


def scaled_picture(self, pixels):
    return self.multi_modal_projector(self.vision_tower(pixels)) * 24**0.5


ATTENTION = gqa.GroupedQueryAttention
MISTAKES = {
    "norm without the 1 +": (RMSNorm, "forward", weight_itself),
    "key heads in turns": (ATTENTION, "repeat_kv", staticmethod(lambda x, n: x.repeat(1, n, 1, 1))),
    "rope pairs neighbours": (ATTENTION, "apply_rope", staticmethod(neighbours)),
    "no rope": (ATTENTION, "apply_rope", staticmethod(lambda x, cos, sin: x)),
    "scores not scaled": (ATTENTION, "attend", unscaled),
    "text not scaled": (Gemma, "embed", lambda self, ids: self.embed_tokens(ids)),
    "picture scaled too": (PaliGemma, "image_features", scaled_picture),
    "causal prefix": (
        PaliGemma,
        "prefix_lm_mask",
        mask_of(lambda real, suffix: (real, real)),
    ),
    "suffix not causal": (
        PaliGemma,
        "prefix_lm_mask",
        mask_of(lambda real, suffix: (real, suffix & ~real)),
    ),
    "padding visible": (
        PaliGemma,
        "prefix_lm_mask",
        mask_of(lambda real, suffix: (real | ~real, suffix)),
    ),
    "picture not merged": (PaliGemma, "merge", staticmethod(lambda text, image, where: text)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_random_weights_are_large_enough_to_show(mistake, monkeypatch):
    """Each known mistake moves some logit by far more than the tolerance of 1e-5."""
    batch = make_batch([(5, 4), (2, 3)])
    model, theirs = make_pair(2)
    is_real = batch["attention_mask"].bool()
    with torch.no_grad():
        correct = theirs(**batch).logits[is_real]
        assert (model(**batch)[is_real] - correct).abs().max() < 1e-5
        monkeypatch.setattr(*MISTAKES[mistake])
        assert (model(**batch)[is_real] - correct).abs().max() > 1e-2
