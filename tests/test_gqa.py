"""Lesson 09: grouped-query attention."""

import pytest
import torch
from conftest import make_batch, make_ours, make_pair

from minipali.gqa import repeat_kv
from minipali.paligemma import prefix_lm_mask
from minipali.rope import rope_angles


def test_neighbouring_query_heads_share_a_key_head():
    x = torch.arange(2.0).reshape(1, 2, 1, 1).expand(3, 2, 5, 4)
    repeated = repeat_kv(x, 3)
    assert repeated.shape == (3, 6, 5, 4)
    assert repeated[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]  # not 0 1 0 1 0 1
    assert repeat_kv(x, 1) is x


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
