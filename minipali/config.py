"""Sizes of the model, and the published `config.json` they are read from and written to.

Field names are those of the published files, so that a config can be compared with one on disk
key by key. The defaults are PaliGemma 1 3B at 224 px; the real files leave several of them out
(head_dim, rope_theta, rms_norm_eps, and image_size at 224), so the defaults matter. KINDS says
what is otherwise in PaliGemma 2, and in other language models.
"""

import json
import os
import stat
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

MOST = 100_000_000  # bytes of a file beside the weights: more is damaged


class ConfigError(ValueError):
    """A config that cannot describe a PaliGemma."""


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP vision tower (So400m/14 by default)."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_patches(self) -> int:
        """Patches of one picture, which is also its number of image tokens."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """The decoder (Gemma 1 2B by default).

    In the fields from model_type on other decoders differ; their defaults are Gemma 1.
    """

    vocab_size: int = 257216
    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256
    max_position_embeddings: int = 8192
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6

    model_type: str = "gemma"
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None is head_dim
    attn_logit_softcapping: float | None = None  # no score is beyond plus or minus this
    final_logit_softcapping: float | None = None  # and no logit beyond this
    sliding_window: int | None = None  # tokens that a suffix token sees, where the layer slides
    sliding_window_pattern: int = 1  # every n-th layer sees everything; 1 means all layers
    post_norms: bool = False  # norms also behind attention and MLP
    qk_norm: bool = False  # norms on queries and keys, before RoPE
    rope_local_base_freq: float | None = None  # in layers that slide, in place of rope_theta
    hidden_activation: str = "gelu_pytorch_tanh"  # or "silu"
    norm_offset: float = 1.0  # what a norm adds to its weight
    scale_embeddings: bool = True  # by the root of the width

    def slides(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has a sliding window."""
        return self.sliding_window is not None and (layer + 1) % self.sliding_window_pattern != 0


# What each kind of decoder has in place of TextConfig's defaults. Published files leave out some.
KINDS = {
    "gemma": {},
    "gemma2": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "post_norms": True,
    },
    # Language models alone; the sizes are those of Gemma 3 270M and of SmolLM2 135M.
    "gemma3_text": {
        "vocab_size": 262144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "post_norms": True,
        "qk_norm": True,
    },
    "llama": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rope_theta": 1e5,
        "rms_norm_eps": 1e-5,
        "hidden_activation": "silu",
        "norm_offset": 0.0,
        "scale_embeddings": False,
    },
}
PALIGEMMAS = ("gemma", "gemma2")  # those that a published PaliGemma has


def text_config(kind: str, **sizes) -> TextConfig:
    """The decoder of a kind, one of KINDS: its own values where `sizes` names none."""
    return TextConfig(model_type=kind, **(KINDS[kind] | sizes))


@dataclass(frozen=True)
class PaliGemmaConfig:
    """A whole model. `image_token_id` stands for one patch in the token sequence."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image_token_id: int = 257152
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2

    def __post_init__(self):
        check(self)


# Upper limits far beyond any published model: a number above them is a damaged file, and building
# the model from it would only exhaust the memory, or overflow.
FRACTIONS = {
    "rope_theta": 1e12,
    "rms_norm_eps": 1.0,
    "layer_norm_eps": 1.0,
    "query_pre_attn_scalar": 1e6,
    "attn_logit_softcapping": 1e6,
    "final_logit_softcapping": 1e6,
    "rope_local_base_freq": 1e12,
}
LIMITS = {
    "hidden_size": 32768,
    "intermediate_size": 262144,
    "num_hidden_layers": 512,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
    "head_dim": 4096,
    "image_size": 8192,
    "patch_size": 8192,
    "num_channels": 16,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**24,
    "sliding_window": 2**24,
    "sliding_window_pattern": 512,
}


def _check_numbers(part: VisionConfig | TextConfig, where: str) -> None:
    for f in fields(part):
        value, name = getattr(part, f.name), f"{where}.{f.name}"
        if isinstance(f.default, (bool, str)) or (value is None and f.default is None):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{name} must be a number, found {short(value)}")
        if f.name in LIMITS and not (isinstance(value, int) and 1 <= value <= LIMITS[f.name]):
            raise ConfigError(
                f"{name} must be a whole number from 1 to {LIMITS[f.name]}, found {short(value)}"
            )
        # Smaller fractions are 0 in float32.
        if f.name in FRACTIONS and not 1e-38 <= value <= FRACTIONS[f.name]:
            raise ConfigError(
                f"{name} must be positive and at most {FRACTIONS[f.name]:g}, found {short(value)}"
            )


def check_text(t: TextConfig) -> None:
    """Raise ConfigError, naming the field, unless the sizes of a decoder fit together."""
    _check_numbers(t, "text_config")
    if t.model_type not in KINDS:
        raise ConfigError(
            f"text_config.model_type must be one of {', '.join(KINDS)}, found {short(t.model_type)}"
        )
    if t.num_attention_heads % t.num_key_value_heads:
        raise ConfigError(
            f"text_config.num_attention_heads ({t.num_attention_heads}) must be a multiple of "
            f"num_key_value_heads ({t.num_key_value_heads}): each key/value head serves a group"
        )
    if t.head_dim % 2:
        raise ConfigError(f"text_config.head_dim must be even for RoPE, found {t.head_dim}")


def check(config: PaliGemmaConfig) -> None:
    """Raise ConfigError, naming the field, unless the sizes fit together."""
    v, t = config.vision, config.text
    _check_numbers(v, "vision_config")
    check_text(t)
    if v.hidden_size % v.num_attention_heads:
        raise ConfigError(
            f"vision_config.hidden_size ({v.hidden_size}) must be a multiple of "
            f"num_attention_heads ({v.num_attention_heads})"
        )
    if v.image_size % v.patch_size:
        raise ConfigError(
            f"vision_config.image_size ({v.image_size}) must be a multiple of "
            f"patch_size ({v.patch_size}): a picture is cut into whole patches"
        )
    for name in ("image_token_id", "pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(config, name)
        if type(value) is not int or not 0 <= value < t.vocab_size:
            raise ConfigError(
                f"{name} must be a row of the embedding table (0 to {t.vocab_size - 1}), "
                f"found {short(value)}"
            )


def short(found) -> str:
    """repr, cut where it is long: names and values in a damaged file may be of any length."""
    try:
        text = repr(found)
    except ValueError:  # Python writes no whole numbers of more than 4,300 digits
        return f"a number of {found.bit_length():,} bits"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text):,} characters)"


# The decoders of the published models, by the models' names.
DECODERS = {
    "paligemma-3b": TextConfig(),
    "paligemma2-3b": text_config("gemma2"),
    "paligemma2-10b": text_config(
        "gemma2",
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "paligemma2-28b": text_config(
        "gemma2",
        hidden_size=4608,
        intermediate_size=36864,
        num_hidden_layers=46,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=144,  # width / heads, not head_dim
    ),
}
PRESETS = {
    **{
        f"{name}-{side}": PaliGemmaConfig(vision=VisionConfig(image_size=side), text=text)
        for name, text in DECODERS.items()
        for side in (224, 448, 896)
    },
    # The model that comes with this package. Heads x head_dim (4 x 48) differs from the width, and
    # two key/value heads serve four query heads, so that mistakes in either are visible.
    "small": PaliGemmaConfig(
        vision=VisionConfig(
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=5,
            num_attention_heads=5,
            image_size=72,
            patch_size=12,
        ),
        text=TextConfig(
            vocab_size=1856,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=48,
            max_position_embeddings=512,
        ),
        image_token_id=1792,
    ),
}


def preset(name: str) -> PaliGemmaConfig:
    """The config of that name: "small", or such as "paligemma-3b-224", "paligemma2-10b-448"."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"no preset {short(name)}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


# In these null is a value, "none at all"; elsewhere it means the default.
NULLS = ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window")


def in_files(cls, kind: str) -> list[str]:
    """The fields of a part that stand in `config.json` where its decoder is of this kind."""
    names = [f.name for f in fields(cls)]
    if cls is TextConfig:  # what follows from the kind is not in there
        names = names[: names.index("model_type")]
        names += [name for name in ("query_pre_attn_scalar", *NULLS) if name in KINDS[kind]]
    return names


def _kept(cls, kind: str, found: dict) -> dict:
    names = in_files(cls, kind)
    kept = {k: v for k, v in found.items() if k in names and (v is not None or k in NULLS)}
    # Newer files keep rope_theta in here, and there it counts first.
    for rope in (found.get("rope_scaling"), found.get("rope_parameters")):
        if "rope_theta" in names and rope and rope.get("rope_theta") is not None:
            kept["rope_theta"] = rope["rope_theta"]
    return kept


def from_dict(found: dict) -> PaliGemmaConfig:
    """Read the content of a published `config.json`.

    Raises ConfigError for another model's file and for impossible sizes.
    """
    if not isinstance(found, dict):
        raise ConfigError(f"a config must be a JSON object, found {type(found).__name__}")
    if found.get("model_type") != "paligemma":
        raise ConfigError(
            f"model_type must be 'paligemma', found {short(found.get('model_type'))}: "
            "this folder holds another kind of model"
        )
    text, vision = found.get("text_config", {}), found.get("vision_config", {})
    for name, part in (("text_config", text), ("vision_config", vision)):
        if not isinstance(part, dict):
            raise ConfigError(f"{name} must be an object, found {short(part)}")
    kind = text.get("model_type", "gemma")
    if kind not in PALIGEMMAS:
        raise ConfigError(
            "text_config.model_type must be 'gemma' (PaliGemma 1) or 'gemma2' (PaliGemma 2), found"
            f" a {short(kind)} decoder, which has other layers: use a PaliGemma checkpoint"
        )
    _check_settings(found)
    special = {
        name: found[name]
        for name in ("pad_token_id", "eos_token_id", "bos_token_id")
        if found.get(name) is not None
    }
    image_token = found.get("image_token_index", found.get("image_token_id"))
    if image_token is not None:
        special["image_token_id"] = image_token
    return PaliGemmaConfig(
        vision=VisionConfig(**_kept(VisionConfig, kind, vision)),
        text=text_config(kind, **_kept(TextConfig, kind, text)),
        **special,
    )


# Settings that change the arithmetic, with the values that stand for what is computed here. A
# setting that is absent or null is fine. Old files say hidden_act "gelu" and mean its tanh form: it
# is what the weights were trained with, and transformers reads the word so too.
TANH = ("gelu_pytorch_tanh", "gelu_fast", "gelu_new")  # one formula under three names
SETTINGS = {
    "text_config": {
        "hidden_act": (*TANH, "gelu"),
        "hidden_activation": TANH,
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1,),
        "rope_local_base_freq": (),
        "use_bidirectional_attention": (True,),  # over the prefix, that is
        "tie_word_embeddings": (True,),
        "add_cross_attention": (False,),
    },
    "vision_config": {
        "model_type": ("siglip_vision_model",),
        "hidden_act": TANH,
    },
    "": {
        "tie_word_embeddings": (True,),
        "quantization_config": (),
    },
}
ROPE = {"rope_type": ("default",), "type": ("default",), "partial_rotary_factor": (1,)}


def _check_settings(found: dict) -> None:
    """Raise ConfigError, naming it, for a setting that asks for another arithmetic than ours."""
    text = found.get("text_config", {})
    for part, settings in SETTINGS.items():
        _check_values(found.get(part, {}) if part else found, settings, part)
    kind = text.get("model_type", "gemma")
    if kind == "gemma":
        width = text.get("head_dim") or TextConfig.head_dim
        _check_values(text, dict.fromkeys(NULLS, ()), "text_config")
        _check_values(text, {"query_pre_attn_scalar": (width,)}, "text_config")
    for name in ("rope_scaling", "rope_parameters"):
        rope = {} if text.get(name) is None else text[name]
        if not isinstance(rope, dict):
            raise ConfigError(f"text_config.{name} must be an object, found {short(rope)}")
        # Gemma 3 has an object for each kind of layer in here.
        nested = {key: () for key, value in rope.items() if isinstance(value, dict)}
        _check_values(rope, ROPE | nested, f"text_config.{name}")
    # "sliding_attention", of Gemma 2 every layer but the second, fourth and so on.
    pattern = KINDS[kind].get("sliding_window_pattern", 1)
    types = text.get("layer_types") or []
    if not isinstance(types, list) or any(
        found != ("sliding_attention" if (i + 1) % pattern else "full_attention")
        for i, found in enumerate(types)
    ):
        turns = "'sliding_attention' and 'full_attention' in turn"
        wanted = "'full_attention' for all" if pattern == 1 else turns
        raise ConfigError(f"text_config.layer_types must be {wanted}, found {short(types)}")


def _check_values(part: dict, settings: dict[str, tuple], where: str) -> None:
    for name, allowed in settings.items():
        value = part.get(name)
        if value is not None and value not in allowed:
            place = f"{where}.{name}" if where else name
            wanted = " or ".join(map(json.dumps, allowed)) or "absent or null"
            raise ConfigError(
                f"{place} must be {wanted}, found {short(value)}: this model computes otherwise"
                " than PaliGemma does, its weights would give wrong answers here"
            )


def to_dict(config: PaliGemmaConfig, dtype: str = "float32") -> dict:
    """The content of a `config.json` that transformers opens too.

    Raises ConfigError for a decoder that no published PaliGemma has: nothing could open it.
    """
    v, t = config.vision, config.text
    text = {name: getattr(t, name) for name in in_files(TextConfig, t.model_type)}
    if t.model_type not in PALIGEMMAS or text_config(t.model_type, **text) != t:
        raise ConfigError(
            "to be saved, a model must have the decoder of PaliGemma 1 or 2 in all but its sizes,"
            f" found one of kind {t.model_type} that computes otherwise: no file could say so"
        )
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "torch_dtype": dtype,
        "image_token_index": config.image_token_id,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "bos_token_id": config.bos_token_id,
        "hidden_size": t.hidden_size,
        "projection_dim": t.hidden_size,
        "vocab_size": t.vocab_size,
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "projection_dim": t.hidden_size,
            "num_image_tokens": v.num_patches,
            "vision_use_head": False,
            **{f.name: getattr(v, f.name) for f in fields(v)},
        },
        "text_config": {
            "model_type": t.model_type,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_image_tokens": v.num_patches,
            "tie_word_embeddings": True,
            "pad_token_id": config.pad_token_id,
            "eos_token_id": config.eos_token_id,
            "bos_token_id": config.bos_token_id,
            **text,
        },
    }


def check_regular(path: str | Path) -> None:
    """Raise OSError unless there is an ordinary file: reading from a pipe may wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path} must be a regular file, and is a folder, pipe or device")


def content(path: str | Path) -> bytes:
    """What stands in a file beside the weights.

    Raises OSError unless it is an ordinary file of at most MOST bytes.
    """
    check_regular(path)
    with open(path, "rb") as file:
        found = file.read(MOST + 1)
    if len(found) > MOST:
        raise OSError(f"{path} must have at most {MOST:,} bytes: it is damaged")
    return found


def read(path: str | Path) -> PaliGemmaConfig:
    """Read a `config.json`. Errors name the file."""
    path = Path(path)
    try:
        found = json.loads(content(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} must be a readable JSON file: {error}") from error
    try:
        return from_dict(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


__all__ = [
    "ConfigError",
    "PRESETS",
    "PaliGemmaConfig",
    "TextConfig",
    "VisionConfig",
    "check_text",
    "from_dict",
    "preset",
    "read",
    "replace",
    "text_config",
    "to_dict",
]
