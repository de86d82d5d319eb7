"""Language models alone: Llama and Gemma 1, 2 and 3, against transformers."""

import functools

import pytest
import torch
from conftest import ROUNDING, randomise

from minipali import config as configs
from minipali.config import ConfigError, PaliGemmaConfig, replace, text_config
from minipali.gemma import Gemma
from minipali.kv_cache import KVCache
from minipali.variants import causal_states, continue_text

KINDS = list(configs.KINDS)
LENGTHS = [17, 11, 3]
SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 7,  # the sixth of Gemma 3 sees everything
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rope_theta": 700.0,
    "rms_norm_eps": 1e-3,
}
SPECIAL = {
    "gemma": {},
    "llama": {},
    "gemma2": {
        "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
        "sliding_window": 4,
    },
    "gemma3_text": {
        "query_pre_attn_scalar": 7,
        "sliding_window": 4,
        "rope_local_base_freq": 20.0,
    },
}


def tiny(kind: str):
    return text_config(kind, **(SIZES | SPECIAL[kind]))


def their_model(kind: str):
    """Our sizes as a transformers model, written out by hand."""
    transformers = pytest.importorskip("transformers")
    plain = {"rope_type": "default", "rope_theta": 700.0}
    given = {name: value for name, value in SIZES.items() if name != "rope_theta"}
    given |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "rope_parameters": plain}
    given["tie_word_embeddings"] = True
    if kind == "gemma3_text":
        near = {"rope_type": "default", "rope_theta": 20.0}
        given["rope_parameters"] = {"full_attention": plain, "sliding_attention": near}
    if kind in ("gemma2", "gemma3_text"):
        given |= {"query_pre_attn_scalar": 7, "sliding_window": 4}
    if kind == "gemma2":
        given |= {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0}
    name = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3", "llama": "Llama"}[kind]
    sizes = getattr(transformers, f"{name}{'Text' if kind == 'gemma3_text' else ''}Config")
    theirs = getattr(transformers, f"{name}ForCausalLM")(sizes(**given)).eval()
    theirs.set_attn_implementation("eager")
    return theirs


@functools.cache
def pair(kind: str):
    """(ours, theirs) with the same random weights. Shared between tests: do not change them."""
    ours, theirs = Gemma(tiny(kind)).eval(), their_model(kind)
    randomise(ours)
    weights = ours.state_dict()
    names = {f"model.{name}" for name in weights}
    assert names == theirs.state_dict().keys() - {"lm_head.weight"}
    theirs.load_state_dict({f"model.{name}": x for name, x in weights.items()}, strict=False)
    return ours, theirs


def batch(side: str):
    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(0))
    real = torch.zeros(3, 17, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        real[row, slice(17 - length, None) if side == "left" else slice(length)] = 1
    return {"input_ids": ids, "attention_mask": real}


@torch.no_grad()
def logits(model, **given):
    return model.logits(causal_states(model, **given))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(kind, side):
    ours, theirs = pair(kind)
    given = batch(side)
    is_real = given["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**given).logits[is_real]
    found = logits(ours, **given)[is_real]
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind):
    ours, _ = pair(kind)
    given = batch("left")
    whole, cache, found, start = logits(ours, **given), KVCache(3, 17), [], 0
    for size in (6, 1, 1, 5, 4):  # the first part is longer than the window
        part = {name: x[:, start : start + size] for name, x in given.items()}
        found.append(logits(ours, **part, kv_cache=cache))
        start += size
    is_real = given["attention_mask"].bool()
    found = torch.cat(found, dim=1)[is_real]
    torch.testing.assert_close(found, whole[is_real], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_transformers(kind):
    ours, theirs = pair(kind)
    ids = batch("left")["input_ids"][0].tolist()
    told = theirs.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    found = list(continue_text(ours, ids, -1, 12))
    assert found == told[0, len(ids) :].tolist()
    assert list(continue_text(ours, ids, found[2], 12)) == found[: found.index(found[2]) + 1]


LEFT_OUT = [
    ("llama", {"hidden_activation": "gelu_pytorch_tanh"}),
    ("llama", {"norm_offset": 1.0}),
    ("llama", {"scale_embeddings": True}),
    ("gemma", {"scale_embeddings": False}),
    ("gemma3_text", {"rope_local_base_freq": None}),
    ("gemma3_text", {"sliding_window_pattern": 7}),
    ("gemma3_text", {"sliding_window": None}),
    ("gemma3_text", {"query_pre_attn_scalar": None}),
    ("gemma3_text", {"qk_norm": False}),
    ("gemma2", {"post_norms": False}),
]


@pytest.mark.parametrize("kind, change", LEFT_OUT)
def test_each_of_these_is_felt(kind, change):
    """So that equal logits show that all of them are as transformers has them."""
    ours, _ = pair(kind)
    other = Gemma(replace(ours.config, **change)).eval()
    other.load_state_dict(ours.state_dict(), strict=False)
    given = {"input_ids": batch("left")["input_ids"][:1]}
    assert (logits(other, **given) - logits(ours, **given)).abs().max() > 100 * ROUNDING


def test_published_sizes():
    """As their files say."""
    for kind, millions in (("llama", 134.5), ("gemma3_text", 268.1)):
        with torch.device("meta"):
            model = Gemma(text_config(kind))
        count = sum(p.numel() for p in model.parameters())
        assert round(count / 1e6, 1) == millions


def test_drawn_text_repeats_with_its_seed_and_needs_room():
    ours, _ = pair("llama")
    drawn = [list(continue_text(ours, [5], -1, 8, temperature=2.0, seed=s)) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for ids, new in (([], 4), ([5] * 60, 5)):
        with pytest.raises(ValueError, match="at least one and at most 64 tokens together"):
            next(continue_text(ours, ids, -1, new))


@pytest.mark.parametrize(
    "text",
    [
        text_config("llama"),
        text_config("gemma2", sliding_window_pattern=3),
        text_config("gemma", qk_norm=True),
    ],
    ids=lambda text: text.model_type,
)
def test_what_no_config_file_says_is_not_saved(text):
    with pytest.raises(ConfigError, match=f"found one of kind {text.model_type} that computes"):
        configs.to_dict(PaliGemmaConfig(text=text, image_token_id=49000))
