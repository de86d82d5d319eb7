"""PaliGemma 2: Gemma 2 as the decoder, against transformers, and through all that a user does."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import (
    IMAGE_TOKEN,
    ROUNDING,
    change_json,
    change_weights,
    make_batch,
    our_key,
    randomise,
    same,
    their_config,
)
from test_finetuning import write_data
from test_masks import Halves
from test_masks import text as mask_text
from test_weights import LAYOUTS, in_layout

from minipali import asking, cli, load, save
from minipali import config as configs
from minipali.checkpoints import read_log
from minipali.comparison import compare_layers
from minipali.config import PRESETS, ConfigError, PaliGemmaConfig, VisionConfig, replace
from minipali.config import text_config as text_of
from minipali.generation import token_steps
from minipali.gqa import attend_capped, soft_cap
from minipali.paligemma import PaliGemma, prefix_lm_mask, sliding_mask
from minipali.scenes import examples
from minipali.swap import swap
from minipali.weights import WeightsError, accounts, empty_model, our_name, published_name

WINDOW = 6  # shorter than the picture's 9 tokens, and than the longest suffix
RAGGED = [(5, 9), (2, 12), (6, 0), (1, 1)]  # (prompt, suffix) of each row

# Like 3B the width is more than heads x head_dim, like 10B less, and like 28B the scores are
# divided by another root than that of head_dim. The caps are so low that they are felt.
SHAPES = {
    "3b": {"hidden_size": 40, "head_dim": 8, "query_pre_attn_scalar": 8},
    "10b": {"hidden_size": 24, "head_dim": 8, "query_pre_attn_scalar": 8},
    "28b": {"hidden_size": 36, "head_dim": 128, "query_pre_attn_scalar": 144},
}


def tiny(shape: str, **special) -> PaliGemmaConfig:
    sizes = {
        "vocab_size": 1856,
        "intermediate_size": 44,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-3,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
        "sliding_window": WINDOW,
    }
    return PaliGemmaConfig(
        vision=VisionConfig(
            hidden_size=20,
            intermediate_size=28,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=12,
            patch_size=4,
            layer_norm_eps=1e-3,
        ),
        text=text_of("gemma2", **(sizes | SHAPES[shape] | special)),
        image_token_id=IMAGE_TOKEN,
    )


def their_config2(config: PaliGemmaConfig):
    """Our sizes as a transformers config, written out by hand."""
    from transformers import Gemma2Config

    theirs, t = their_config(config), config.text
    theirs.text_config = Gemma2Config(
        vocab_size=t.vocab_size,
        hidden_size=t.hidden_size,
        intermediate_size=t.intermediate_size,
        num_hidden_layers=t.num_hidden_layers,
        num_attention_heads=t.num_attention_heads,
        num_key_value_heads=t.num_key_value_heads,
        head_dim=t.head_dim,
        max_position_embeddings=t.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": t.rope_theta},
        rms_norm_eps=t.rms_norm_eps,
        query_pre_attn_scalar=t.query_pre_attn_scalar,
        attn_logit_softcapping=t.attn_logit_softcapping,
        final_logit_softcapping=t.final_logit_softcapping,
        sliding_window=t.sliding_window,
        use_bidirectional_attention=True,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        bos_token_id=config.bos_token_id,
    )
    return theirs


@functools.cache
def pair(shape: str):
    """(ours, theirs) with the same random weights. Shared between tests: do not change them."""
    transformers = pytest.importorskip("transformers")
    ours = PaliGemma(tiny(shape)).eval()
    randomise(ours)
    theirs = transformers.PaliGemmaForConditionalGeneration(their_config2(tiny(shape)))
    theirs.eval().set_attn_implementation("eager")
    weights = ours.state_dict()
    names = [name for name in theirs.state_dict() if name != "lm_head.weight"]  # tied
    assert sorted(map(our_key, names)) == sorted(weights)  # every weight has its place, both ways
    theirs.load_state_dict({name: weights[our_key(name)] for name in names}, strict=False)
    return ours, theirs


@pytest.fixture(params=SHAPES)
def both(request):
    return pair(request.param)


@pytest.fixture
def model():
    return pair("3b")[0]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_equal_transformers_at_all_real_places(both, side):
    ours, theirs = both
    batch = make_batch(RAGGED, side, config=ours.config)
    is_real = batch["attention_mask"].bool()
    close(ours(**batch)[is_real], theirs(**batch).logits[is_real])


@torch.no_grad()
def test_the_output_of_every_layer_equals_transformers():
    found = compare_layers(*pair("28b"), make_batch([(5, 9)], config=tiny("28b")))
    for name in ("self_attn", "post_attention_layernorm", "post_feedforward_layernorm", "mlp"):
        assert f"language_model.layers.3.{name}" in found
    assert {name: far for name, far in found.items() if far > 1e-5} == {}


@pytest.mark.parametrize("steps", [[1] * 12, [5, 1, 6]], ids=["single tokens", "chunks"])
@torch.no_grad()
def test_with_a_cache_equal_to_transformers_and_to_all_at_once(both, steps):
    from transformers import DynamicCache

    ours, theirs = both
    batch = make_batch([(4, 12), (1, 12)], "left", config=ours.config)
    ids, mask, kinds = (batch[n] for n in ("input_ids", "attention_mask", "token_type_ids"))
    whole, prefix = ours(**batch), ids.shape[1] - 12
    first = {
        "input_ids": ids[:, :prefix],
        "attention_mask": mask[:, :prefix],
        "token_type_ids": kinds[:, :prefix],
        "pixel_values": batch["pixel_values"],
    }
    cache, past = ours.new_cache(2, ids.shape[1]), DynamicCache(config=theirs.config.text_config)
    found = [ours(**first, kv_cache=cache)]
    told = [theirs(**first, past_key_values=past, use_cache=True).logits]
    start = prefix
    for size in steps:
        part = slice(start, start + size)
        found.append(ours(ids[:, part], attention_mask=mask[:, part], kv_cache=cache))
        told.append(
            theirs(
                input_ids=ids[:, part],
                attention_mask=mask[:, : start + size],
                past_key_values=past,
                use_cache=True,
            ).logits
        )
        start += size
    found, told, is_real = torch.cat(found, 1), torch.cat(told, 1), mask.bool()
    assert start == ids.shape[1]
    close(found[is_real], whole[is_real])
    close(found[is_real], told[is_real])


def test_greedy_tokens_equal_transformers(both):
    ours, theirs = both
    batch = make_batch([(5, 0), (2, 0), (1, 0)], "left", config=ours.config)
    new = 2 * WINDOW
    found = torch.stack(list(token_steps(ours, batch, new)), dim=1)
    # What no text is we never say; transformers may.
    told = theirs.generate(
        **batch, max_new_tokens=new, do_sample=False, suppress_tokens=list(range(IMAGE_TOKEN, 1856))
    )[:, batch["input_ids"].shape[1] :]
    assert torch.equal(found[:, : told.shape[1]], told)


def test_an_answer_is_the_same_on_whichever_side_there_is_padding(model):
    rows = [(5, 0), (1, 0)]
    left, right = (make_batch(rows, side, config=model.config) for side in ("left", "right"))
    answers = [
        torch.stack(list(token_steps(model, one, 2 * WINDOW)), dim=1) for one in (left, right)
    ]
    assert torch.equal(*answers)


@torch.no_grad()
def test_gradients_equal_transformers():
    ours, theirs = pair("28b")
    batch = make_batch(RAGGED[:2], "right", config=ours.config)
    is_real = batch["attention_mask"].bool()
    grads = []
    for one, table in (
        (ours, ours.language_model.embed_tokens),
        (theirs, theirs.model.language_model.embed_tokens),
    ):
        with torch.enable_grad():
            logits = one(**batch)
            logits = logits if torch.is_tensor(logits) else logits.logits
            loss = logits[is_real].log_softmax(-1)[:, 7].mean()
            grads.append(torch.autograd.grad(loss, table.weight)[0])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


CHANGES = {
    "attention not capped": {"attn_logit_softcapping": None},
    "logits not capped": {"final_logit_softcapping": None},
    "no window": {"sliding_window": None},
    "window of one less": {"sliding_window": WINDOW - 1},
    "every layer slides": {"sliding_window_pattern": 100},
    "the other layers slide": {"sliding_window_pattern": 1},
    "scores divided by the root of head_dim": {"query_pre_attn_scalar": None},
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_each_of_these_is_felt(change):
    """So that equal logits show that all of them are as transformers has them."""
    ours, _ = pair("28b")
    batch = make_batch(RAGGED, config=ours.config)
    other = PaliGemma(replace(ours.config, text=replace(ours.config.text, **CHANGES[change])))
    other.load_state_dict(ours.state_dict())
    is_real = batch["attention_mask"].bool()
    difference = (other.eval()(**batch) - ours(**batch))[is_real].abs().max()
    assert difference > 100 * ROUNDING


def test_the_window_is_the_rule_written_as_a_loop():
    for side in ("left", "right"):
        batch = make_batch(RAGGED, side, config=tiny("3b"))
        is_real, is_suffix = batch["attention_mask"].bool(), batch["token_type_ids"].bool()
        whole = prefix_lm_mask(is_real, is_suffix)
        found = sliding_mask(whole, is_real, is_suffix, WINDOW)[:, 0]
        last = sliding_mask(whole[:, :, -2:], is_real, is_suffix, WINDOW)[:, 0]
        assert torch.equal(last, found[:, -2:])
        assert found.any(dim=-1).all()
        for row, query, key in np.ndindex(*found.shape):
            if is_suffix[row, query]:
                sees = bool(is_real[row, key]) and 0 <= query - key < WINDOW
            else:
                sees = bool(whole[row, 0, query, key])
            assert bool(found[row, query, key]) == sees


def test_soft_capping():
    x = torch.tensor([-1e9, -2.0, 0.0, 0.01, 2.0, 1e9])
    found = soft_cap(x, 2.0)
    assert found[0] == -2 and found[-1] == 2 and found[2] == 0
    assert found[4].item() == pytest.approx(2 * np.tanh(1.0))
    assert found[3].item() == pytest.approx(0.01, rel=1e-4)


def test_a_cap_beyond_all_scores_is_plain_attention():
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, generator=random) for _ in range(3))
    mask = torch.ones(5, 5).tril().bool()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend_capped(q, k, v, mask, 1e4), expected, atol=1e-5, rtol=0)
    blind = attend_capped(q, k, v, torch.zeros(5, 5).bool(), 50.0)
    assert blind.isfinite().all()


# --- published sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, keys, millions",
    [
        ("paligemma2-3b-224", 727, 3032),  # 439 beside the decoder, 2 in it, and 11 a layer
        ("paligemma2-10b-224", 903, 9663),
        ("paligemma2-28b-224", 947, 27650),
    ],
)
def test_published_sizes(name, keys, millions):
    """Without taking the memory."""
    places = empty_model(configs.preset(name)).state_dict()
    assert len(places) == keys
    assert round(sum(x.numel() for x in places.values()) / 1e6) == millions
    assert all(our_name(published_name(name)) == name for name in places)


# As on the hub: what stands in the file, and what is left out of it.
PUBLISHED = {
    "model_type": "paligemma",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "hidden_size": 2048,  # so it says, and it is wrong
    "image_token_index": 257152,
    "projection_dim": 2304,
    "text_config": {
        "model_type": "gemma2",
        "eos_token_id": [1, 107],
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_image_tokens": 256,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "cache_implementation": "hybrid",
        "vocab_size": 257216,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "projection_dim": 2304,
    },
}


def test_a_published_config():
    assert configs.from_dict(PUBLISHED) == PRESETS["paligemma2-3b-224"]


def changed(**text):
    found = json.loads(json.dumps(configs.to_dict(tiny("28b"))))
    found["text_config"].update(text)
    return found


def test_null_means_none_at_all():
    null = dict.fromkeys(configs.NULLS)
    found = configs.from_dict(changed(**null)).text
    assert (found.attn_logit_softcapping, found.final_logit_softcapping) == (None, None)
    assert not any(found.slides(i) for i in range(4))
    assert found == replace(tiny("28b").text, **null)


@pytest.mark.parametrize(
    "name, value",
    [
        ("attn_logit_softcapping", 0),
        ("final_logit_softcapping", "30"),
        ("query_pre_attn_scalar", -144),
        ("sliding_window", 0),
        ("sliding_window", 4096.5),
        ("layer_types", ["full_attention"] * 4),
        ("layer_types", ["full_attention", "sliding_attention"] * 2),
        ("layer_types", "sliding_attention"),
        ("hidden_activation", "gelu"),
        ("use_bidirectional_attention", False),
        ("rope_local_base_freq", 1e4),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ConfigError, match=f"text_config.{name} must be"):
        configs.from_dict(changed(**{name: value}))


def test_what_stands_for_the_same():
    turns = ["sliding_attention", "full_attention"] * 2
    for same_as in ({"layer_types": turns}, {"layer_types": None}, {"hidden_act": "gelu"}):
        assert configs.from_dict(changed(**same_as)) == tiny("28b")
    # What transformers writes itself.
    theirs = json.loads(their_config2(tiny("28b")).to_json_string(use_diff=False))
    assert theirs["text_config"]["layer_types"] == turns
    assert configs.from_dict(theirs) == tiny("28b")


def test_gemma_1_files_say_nothing_of_gemma_2():
    found = configs.to_dict(PRESETS["small"])["text_config"]
    assert found["model_type"] == "gemma"
    assert not {"sliding_window", "query_pre_attn_scalar", "post_norms"} & found.keys()


# --- folders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved2(small_folder, tmp_path_factory):
    """The tiny 28B, saved. Do not change it; `folder2` is a copy to damage."""
    from minipali.tokens import Processor

    ours, _ = pair("28b")
    folder = tmp_path_factory.mktemp("saved2") / "model"
    save(ours, Processor(small_folder / "tokenizer.model", ours.config), folder)
    return folder


@pytest.fixture
def folder2(saved2, tmp_path):
    shutil.copytree(saved2, tmp_path / "model")
    return tmp_path / "model"


def test_saved_and_loaded(saved2, tmp_path):
    loaded, processor = load(saved2)
    assert same(loaded, pair("28b")[0]) and loaded.config == tiny("28b")
    save(loaded, processor, tmp_path / "again")
    for path in saved2.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_transformers_opens_the_folder(saved2):
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    theirs, info = Theirs.from_pretrained(saved2, output_loading_info=True)
    assert not any(info.values()), info
    theirs.eval().set_attn_implementation("eager")
    batch = make_batch(RAGGED, config=tiny("28b"))
    is_real = batch["attention_mask"].bool()
    with torch.no_grad():
        close(load(saved2)[0](**batch)[is_real], theirs(**batch).logits[is_real])


@pytest.mark.parametrize("head", [None, "lm_head.weight", "language_model.lm_head.weight"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_known_layout(layout, head, folder2):
    def change(found):
        table = found["language_model.model.embed_tokens.weight"]
        found = in_layout(found, *LAYOUTS[layout])
        return found | ({head: table.clone()} if head else {})

    change_weights(folder2, change)
    assert same(load(folder2)[0], pair("28b")[0])
    assert list(accounts(folder2).tied) == ([head] if head else [])


def test_what_transformers_saves(saved2, tmp_path):
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    ours, theirs = pair("28b")
    theirs.save_pretrained(tmp_path / "fresh")
    Theirs.from_pretrained(saved2).save_pretrained(tmp_path / "again")
    for place in ("fresh", "again"):
        shutil.copy(saved2 / "tokenizer.model", tmp_path / place)
        loaded, _ = load(tmp_path / place)
        assert same(loaded, ours) and loaded.config == ours.config


def test_neither_kind_takes_the_others_weights(folder2, saved, tmp_path):
    """The names and shapes of Gemma 1 are all in Gemma 2, and mean another thing there."""
    change_json(folder2 / "config.json", lambda found: found["text_config"].update(one_kind(found)))
    with pytest.raises(WeightsError, match="for which the model of config.json has no place"):
        load(folder2)
    shutil.copytree(saved, tmp_path / "first")
    change_json(
        tmp_path / "first" / "config.json",
        lambda found: found["text_config"].update(model_type="gemma2"),
    )
    with pytest.raises(WeightsError, match="missing are .*feedforward_layernorm"):
        load(tmp_path / "first")


def one_kind(found) -> dict:
    null = dict.fromkeys((*configs.NULLS, "query_pre_attn_scalar"))
    return {"model_type": "gemma"} | null


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_that_compute_in_float32(dtype, saved2):
    from minipali.narrow import widen

    narrow, _ = load(saved2, dtype=dtype)
    wide = PaliGemma(narrow.config).eval()
    wide.load_state_dict({name: x.float() for name, x in narrow.state_dict().items()})
    batch = make_batch(RAGGED, config=wide.config)
    with torch.no_grad():
        close(widen(narrow)(**batch), wide(**batch))


def test_int8_is_near(saved2):
    from minipali.quantization import quantize

    exact, quantized = load(saved2)[0], quantize(load(saved2)[0])
    batch = make_batch(RAGGED, config=exact.config)
    is_real = batch["attention_mask"].bool()
    with torch.no_grad():
        apart = (quantized(**batch) - exact(**batch))[is_real]
    assert 0 < apart.square().mean().sqrt() < 0.3


# --- as it is used -------------------------------------------------------------------------------


def test_answers_equal_transformers(saved2):
    model, processor = load(saved2)
    _, theirs = pair("28b")
    pictures, prompts = list(examples().values())[:2], ["caption en", "detect cat ; dog"]
    batch = processor(pictures, prompts)
    told = theirs.generate(
        **batch, max_new_tokens=12, do_sample=False, suppress_tokens=list(range(IMAGE_TOKEN, 1856))
    )
    told = [processor.decode(row) for row in told[:, batch["input_ids"].shape[1] :].tolist()]
    found = asking.generate(model, processor, pictures, prompts, max_new_tokens=12)
    assert found == told and all(found)
    assert "".join(asking.stream(model, processor, pictures[0], prompts[0], 12)) == told[0]


def test_boxes_and_masks(saved2, monkeypatch):
    """What the model says is put into its mouth; the model runs all the same."""
    model, processor = load(saved2)
    box = "<loc0256><loc0000><loc0768><loc1023>"
    steps = iter([*processor.encode(f"{box} cat"), 1])
    monkeypatch.setattr("minipali.generation.choose", lambda *_: torch.tensor([next(steps)]))
    picture = examples()["cat_and_ball"]
    [(name, (y0, x0, y1, x1))] = asking.detect(model, processor, picture, "cat")
    assert (name, x0, x1) == ("cat", 0, picture.width)
    assert y0 == pytest.approx(256 / 1023 * picture.height)
    assert y1 == pytest.approx(768 / 1023 * picture.height)
    said = mask_text((0.0, 0.0, 1.0, 1.0), [32] * 16, "cat")  # the left half
    steps = iter([*processor.encode(said), 1])
    [(name, _, mask)] = asking.segment(model, processor, Halves(), picture, "cat")
    assert name == "cat" and mask.shape == (picture.height, picture.width)
    assert mask[:, : picture.width // 2 - 1].all() and not mask[:, picture.width // 2 + 1 :].any()


def test_fine_tuned_merged_and_opened_by_transformers(saved2, tmp_path, capsys):
    """An adapter by the command, laid on, merged by the command: three times the same logits."""
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    data, adapter, merged = (tmp_path / name for name in ("data", "adapter", "merged"))
    write_data(data)
    how = ["--steps", "4", "--batch-size", "3", "--validation", "0.25", "--device", "cpu"]
    how += ["--targets", "q_proj,down_proj", "--lr", "0.02", "--model", str(saved2)]
    assert cli.main(["finetune", str(data), "--output", str(adapter), *how]) == 0
    losses = [line["loss"] for line in read_log(adapter / "training" / "log.jsonl")]
    assert losses[-1] < losses[0]
    assert cli.main(["merge", str(adapter), "--model", str(saved2), "--output", str(merged)]) == 0
    batch = make_batch(RAGGED, config=tiny("28b"))
    is_real = batch["attention_mask"].bool()
    theirs = Theirs.from_pretrained(merged, attn_implementation="eager").eval()
    with torch.no_grad():
        laid_on = load(saved2, adapter=adapter)[0](**batch)[is_real]
        close(laid_on, load(merged)[0](**batch)[is_real])
        close(laid_on, theirs(**batch).logits[is_real])
        assert (laid_on - load(saved2)[0](**batch)[is_real]).abs().max() > 100 * ROUNDING


def test_activation_checkpointing_changes_no_gradient(saved2):
    from minipali.finetuning import keep_less

    batch = make_batch([(2, 6)], "right", config=tiny("28b"))
    grads = []
    for less in (False, True):
        one = load(saved2)[0].train()
        if less:
            keep_less(one)
        one(**batch).log_softmax(-1)[..., 7].mean().backward()
        grads.append(one.language_model.layers[0].post_feedforward_layernorm.weight.grad)
    assert grads[0].abs().max() > 0 and torch.equal(*grads)


def test_what_the_page_and_the_lessons_pieces_say(saved2, tmp_path, capsys):
    assert cli.main(["page", str(saved2), "--output", str(tmp_path / "p.html")]) == 2
    assert "a page must have a PaliGemma 1" in capsys.readouterr().err
    assert not (tmp_path / "p.html").exists()
    with pytest.raises(ValueError, match="the model must be a PaliGemma 1"):
        swap(load(saved2)[0], repeat_kv=lambda x, times: x)
