"""The published config.json, read strictly: what is not a PaliGemma 1 never becomes a model."""

import json
import math

import pytest
from conftest import their_config, tiny_config

from minipali import config as configs
from minipali.config import ConfigError, PaliGemmaConfig, from_dict, preset, to_dict

# The shape of the published files, which leave out much (facts.md, section 1).
PUBLISHED = {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_size": 2048,
    "image_token_index": 257152,
    "model_type": "paligemma",
    "pad_token_id": 0,
    "projection_dim": 2048,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "num_key_value_heads": 1,
        "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_image_tokens": 256,
        "patch_size": 14,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "vision_use_head": False,
    },
}


def changed(part=None, /, **values):
    found = json.loads(json.dumps(to_dict(tiny_config())))
    (found[part] if part else found).update(values)
    return found


def test_what_the_published_file_leaves_out_is_supplied():
    assert from_dict(PUBLISHED) == preset("paligemma-3b-224") == PaliGemmaConfig()
    larger = PUBLISHED | {"vision_config": PUBLISHED["vision_config"] | {"image_size": 448}}
    assert from_dict(larger) == preset("paligemma-3b-448")


@pytest.mark.parametrize("name", configs.PRESETS)
def test_written_and_read_again(name, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(preset(name))))
    assert configs.read(file) == preset(name)


def test_transformers_reads_ours_and_we_read_theirs(tmp_path):
    from transformers import PaliGemmaConfig as Theirs

    (tmp_path / "config.json").write_text(json.dumps(to_dict(tiny_config())))
    theirs = Theirs.from_pretrained(tmp_path)
    by_hand = their_config(tiny_config())
    for part in ("vision_config", "text_config"):
        read, wanted = getattr(theirs, part), getattr(by_hand, part)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            assert getattr(read, name) == getattr(wanted, name)
    assert theirs.text_config.rope_parameters["rope_theta"] == 500.0
    assert theirs.text_config.rms_norm_eps == theirs.vision_config.layer_norm_eps == 1e-3
    assert (theirs.text_config.head_dim, theirs.image_token_id) == (10, 1792)
    by_hand.save_pretrained(tmp_path / "theirs")
    assert configs.read(tmp_path / "theirs" / "config.json") == tiny_config()


@pytest.mark.parametrize("value", [10**12, 10**400, -1, 0, True, "24", math.nan, math.inf, 2.5, []])
@pytest.mark.parametrize(
    "part, name",
    [
        ("text_config", "hidden_size"),
        ("text_config", "vocab_size"),
        ("text_config", "num_hidden_layers"),
        ("text_config", "num_key_value_heads"),
        ("vision_config", "image_size"),
        ("vision_config", "patch_size"),
        ("vision_config", "num_attention_heads"),
    ],
)
def test_absurd_sizes(part, name, value):
    with pytest.raises(ConfigError, match=f"{part}.{name} must be"):
        from_dict(changed(part, **{name: value}))


@pytest.mark.parametrize("value", [-1e-6, 0, math.nan, math.inf, True, "1e-6"])
def test_absurd_epsilon(value):
    with pytest.raises(ConfigError, match="text_config.rms_norm_eps must be"):
        from_dict(changed("text_config", rms_norm_eps=value))


@pytest.mark.parametrize("value", [-1, 1856, True, 2.0, "2", [1, 107]])
@pytest.mark.parametrize("name", ["image_token_index", "eos_token_id", "bos_token_id"])
def test_absurd_token(name, value):
    if name == "image_token_index":
        found = changed(image_token_index=value)
        name = "image_token_id"
    else:
        found = changed(**{name: value})
    with pytest.raises(ConfigError, match=f"{name} must be a row of the embedding table"):
        from_dict(found)


@pytest.mark.parametrize(
    "found, message",
    [
        ([], "a config must be a JSON object"),
        (changed(model_type="llava"), "model_type must be 'paligemma', found 'llava'"),
        (changed(text_config=None), "text_config must be an object"),
        (changed(vision_config=[1]), "vision_config must be an object"),
        (changed("text_config", model_type=["gemma"]), r"a \['gemma'\] decoder"),
        (changed("text_config", model_type="llama"), "a 'llama' decoder"),
        (changed("text_config", tie_word_embeddings=False), "tie_word_embeddings must be true"),
        (changed("text_config", attention_bias=True), "attention_bias must be false"),
        (changed("text_config", hidden_activation="relu"), "found 'relu'"),
        (changed("vision_config", hidden_act="gelu"), "vision_config.hidden_act must be"),
        (changed("text_config", model_type="x" * 10**6), r"a 'xxx.* characters\) decoder"),
        (changed("vision_config", hidden_size=21), r"hidden_size \(21\) must be a multiple of"),
        (changed("vision_config", image_size=13), r"image_size \(13\) must be a multiple of"),
        (changed("text_config", num_key_value_heads=3), "must be a multiple of num_key_value"),
        (changed("text_config", head_dim=9), "head_dim must be even for RoPE, found 9"),
    ],
)
def test_what_is_no_paligemma_1(found, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(found)


@pytest.mark.parametrize("content", ["", "{", "\x00", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_an_unreadable_file_is_named(content, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="config.json must be a readable JSON file"):
        configs.read(file)
    with pytest.raises(ConfigError, match="absent.json must be a readable"):
        configs.read(tmp_path / "absent.json")
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match="config.json must be a readable"):
        configs.read(file)


def test_no_such_preset():
    with pytest.raises(ConfigError, match="no preset 'large'; there are: paligemma-3b-224"):
        preset("large")


# Settings of GemmaConfig, SiglipVisionConfig, PaliGemmaConfig and their kin that change what is
# computed: what must be refused, and what means the same as our arithmetic.
SETTINGS = {
    "text_config": {
        "attention_bias": ([True], [False, None]),
        "mlp_bias": ([True], [False]),
        "attn_logit_softcapping": ([50.0, 0], [None]),
        "final_logit_softcapping": ([30.0], [None]),
        "query_pre_attn_scalar": ([256, 9], [10, 10.0, None]),  # the tiny head_dim
        "sliding_window": ([4096, 1], [None]),
        "layer_types": ([["full_attention", "sliding_attention"], "x"], [["full_attention"], None]),
        "use_bidirectional_attention": ([False], [True, None]),
        "hidden_act": (["relu", ["gelu"]], ["gelu_pytorch_tanh", "gelu", "gelu_fast", None]),
        "hidden_activation": (["relu", "gelu"], ["gelu_pytorch_tanh", None]),
        "partial_rotary_factor": ([0.5], [1.0, 1]),
        "rope_local_base_freq": ([10000.0], [None]),
        "rope_scaling": (
            [{"type": "linear", "factor": 2}, {"rope_type": "llama3"}, "linear", [1]],
            [{"rope_type": "default"}, {}, None],
        ),
        "rope_parameters": (
            [
                {"rope_type": "yarn", "rope_theta": 500.0},
                {"rope_type": "default", "partial_rotary_factor": 0.5},
                {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
            ],
            [{"rope_type": "default", "rope_theta": 500.0}, {"partial_rotary_factor": 1}],
        ),
        "tie_word_embeddings": ([False], [True, None]),
        "add_cross_attention": ([True], [False]),
    },
    "vision_config": {
        "hidden_act": (["gelu", "quick_gelu"], ["gelu_pytorch_tanh", None]),
        "model_type": (["clip_vision_model", 3], ["siglip_vision_model", None]),
    },
    None: {
        "tie_word_embeddings": ([False], [True, None]),
        "quantization_config": ([{"quant_method": "bitsandbytes"}], [None]),
    },
}
CASES = [(part, name) for part, settings in SETTINGS.items() for name in settings]


@pytest.mark.parametrize("part, name", CASES)
def test_settings_that_change_the_arithmetic(part, name):
    refused, fine = SETTINGS[part][name]
    for value in refused:
        with pytest.raises(ConfigError, match=f"{part or ''}.?{name}.* must be .*found"):
            from_dict(changed(part, **{name: value}))
    for value in fine:
        assert from_dict(changed(part, **{name: value})) == tiny_config()


def test_settings_that_count_in_training_alone_are_fine():
    assert from_dict(changed("text_config", attention_dropout=0.1)) == tiny_config()
    assert from_dict(changed("vision_config", attention_dropout=0.1)) == tiny_config()


def test_transformers_has_no_setting_that_nobody_has_looked_at():
    """A new one, which a file of a later version may hold, is to be put into one of the lists."""
    import dataclasses

    from transformers import GemmaConfig, SiglipVisionConfig
    from transformers import PaliGemmaConfig as Theirs
    from transformers.configuration_utils import PreTrainedConfig

    changes_nothing = {
        "attention_dropout", "initializer_range", "use_cache", "vision_use_head", "projection_dim",
        "vision_config", "text_config", "image_token_index", "rope_parameters",
        "query_pre_attn_scalar", "layer_types",
    }  # fmt: skip
    general = {f.name for f in dataclasses.fields(PreTrainedConfig)}
    for theirs, part in (
        (GemmaConfig, "text_config"), (SiglipVisionConfig, "vision_config"), (Theirs, "")
    ):  # fmt: skip
        known = set(configs.SETTINGS[part]) | changes_nothing | set(to_dict(tiny_config()))
        known |= {f.name for f in dataclasses.fields(configs.TextConfig)}
        known |= {f.name for f in dataclasses.fields(configs.VisionConfig)}
        assert {f.name for f in dataclasses.fields(theirs)} - general <= known


@pytest.mark.parametrize("value", [10**400, 10**4000, 1e13, 0, -1, 1e-300, math.nan, math.inf, "1"])
@pytest.mark.parametrize("place", ["text_config.rope_theta", "text_config.rms_norm_eps",
                                   "vision_config.layer_norm_eps"])  # fmt: skip
def test_fractions_that_would_overflow_or_vanish(place, value):
    part, name = place.split(".")
    found = changed()
    found[part][name] = value
    with pytest.raises(ConfigError, match=f"{place} must be ") as told:
        from_dict(found)
    assert len(str(told.value)) < 250


def test_a_number_that_python_does_not_write_out():
    with pytest.raises(ConfigError, match="hidden_size must be .*, found a number of 16,610 bits"):
        from_dict(changed("text_config", hidden_size=10**5000))


def test_theta_in_rope_parameters_counts_first_as_in_transformers(tmp_path):
    from transformers import PaliGemmaConfig as Theirs

    for name in ("rope_parameters", "rope_scaling"):
        found = changed("text_config", rope_theta=7.0)
        found["text_config"][name] = {"rope_type": "default", "rope_theta": 9.0}
        (tmp_path / "config.json").write_text(json.dumps(found))
        theirs = Theirs.from_pretrained(tmp_path).text_config.rope_parameters["rope_theta"]
        assert configs.read(tmp_path / "config.json").text.rope_theta == theirs == 9.0
