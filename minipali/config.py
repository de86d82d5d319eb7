"""Sizes of the model, and the published `config.json` they are read from and written to.

Field names are those of the published files, so that a config can be compared with one on disk
key by key. The defaults are PaliGemma 1 3B at 224 px; the real files leave several of them out
(head_dim, rope_theta, rms_norm_eps, and image_size at 224), so the defaults matter.
"""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path


class ConfigError(ValueError):
    """A config that cannot describe a PaliGemma 1 model."""


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
    """The Gemma 1 decoder (2B by default)."""

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
# the model from it would only exhaust the memory.
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
}


def check(config: PaliGemmaConfig) -> None:
    """Raise ConfigError, naming the field, unless the sizes fit together."""
    for part in (config.vision, config.text):
        where = "vision_config" if part is config.vision else "text_config"
        for f in fields(part):
            value = getattr(part, f.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"{where}.{f.name} must be a number, found {value!r}")
            if f.name in LIMITS and not (isinstance(value, int) and 1 <= value <= LIMITS[f.name]):
                raise ConfigError(
                    f"{where}.{f.name} must be a whole number from 1 to {LIMITS[f.name]}, "
                    f"found {value!r}"
                )
            if not 0 < value < float("inf"):
                raise ConfigError(f"{where}.{f.name} must be positive and finite, found {value!r}")
    v, t = config.vision, config.text
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
    if t.num_attention_heads % t.num_key_value_heads:
        raise ConfigError(
            f"text_config.num_attention_heads ({t.num_attention_heads}) must be a multiple of "
            f"num_key_value_heads ({t.num_key_value_heads}): each key/value head serves a group"
        )
    if t.head_dim % 2:
        raise ConfigError(f"text_config.head_dim must be even for RoPE, found {t.head_dim}")
    for name in ("image_token_id", "pad_token_id", "eos_token_id", "bos_token_id"):
        value = getattr(config, name)
        if type(value) is not int or not 0 <= value < t.vocab_size:
            raise ConfigError(
                f"{name} must be a row of the embedding table (0 to {t.vocab_size - 1}), "
                f"found {value!r}"
            )


PRESETS = {
    "paligemma-3b-224": PaliGemmaConfig(),
    "paligemma-3b-448": PaliGemmaConfig(vision=VisionConfig(image_size=448)),
    "paligemma-3b-896": PaliGemmaConfig(vision=VisionConfig(image_size=896)),
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
    """The config of that name: "small", "paligemma-3b-224", "paligemma-3b-448" or "...-896"."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def _part(cls, found: dict):
    names = {f.name for f in fields(cls)}
    kept = {k: v for k, v in found.items() if k in names and v is not None}
    # Newer files keep rope_theta inside rope_parameters.
    rope = found.get("rope_parameters")
    if "rope_theta" in names and isinstance(rope, dict) and "rope_theta" in rope:
        kept.setdefault("rope_theta", rope["rope_theta"])
    return cls(**kept)


def from_dict(found: dict) -> PaliGemmaConfig:
    """Read the content of a published `config.json`.

    Raises ConfigError for another model's file (PaliGemma 2 too) and for impossible sizes.
    """
    if not isinstance(found, dict):
        raise ConfigError(f"a config must be a JSON object, found {type(found).__name__}")
    if found.get("model_type") != "paligemma":
        raise ConfigError(
            f"model_type must be 'paligemma', found {found.get('model_type')!r}: "
            "this folder holds another kind of model"
        )
    text, vision = found.get("text_config", {}), found.get("vision_config", {})
    for name, part in (("text_config", text), ("vision_config", vision)):
        if not isinstance(part, dict):
            raise ConfigError(f"{name} must be an object, found {part!r}")
    kind = text.get("model_type", "gemma")
    if kind != "gemma":
        name = "PaliGemma 2" if kind in ("gemma2", "gemma2_text") else f"a {kind!r} decoder"
        raise ConfigError(
            f"text_config.model_type must be 'gemma' (PaliGemma 1), found {kind!r}: this is "
            f"{name}, which has other layers; use a PaliGemma 1 checkpoint"
        )
    _unsupported(found)
    special = {
        name: found[name]
        for name in ("pad_token_id", "eos_token_id", "bos_token_id")
        if found.get(name) is not None
    }
    image_token = found.get("image_token_index", found.get("image_token_id"))
    if image_token is not None:
        special["image_token_id"] = image_token
    return PaliGemmaConfig(
        vision=_part(VisionConfig, vision),
        text=_part(TextConfig, text),
        **special,
    )


def _unsupported(found: dict) -> None:
    """Settings that would change the arithmetic must have the one value that we compute."""
    text, vision = found.get("text_config", {}), found.get("vision_config", {})
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise ConfigError(f"text_config's rope_type must be 'default', found {kind!r}")
    tied = text.get("tie_word_embeddings", found.get("tie_word_embeddings", True))
    if tied is False:
        raise ConfigError("tie_word_embeddings must be true: Gemma's head is its embedding table")
    if text.get("attention_bias"):
        raise ConfigError("text_config.attention_bias must be false: Gemma has no biases")
    act = text.get("hidden_activation") or text.get("hidden_act") or "gelu_pytorch_tanh"
    # Old files say "gelu" in hidden_act and mean the tanh form: it is what the weights were
    # trained with, and the reference ignores the word too.
    if act not in ("gelu_pytorch_tanh", "gelu", "gelu_fast"):
        raise ConfigError(
            f"text_config.hidden_activation must be 'gelu_pytorch_tanh', found {act!r}"
        )
    act = vision.get("hidden_act", "gelu_pytorch_tanh")
    if act != "gelu_pytorch_tanh":
        raise ConfigError(f"vision_config.hidden_act must be 'gelu_pytorch_tanh', found {act!r}")


def to_dict(config: PaliGemmaConfig, dtype: str = "float32") -> dict:
    """The content of a `config.json` that transformers opens too."""
    v, t = config.vision, config.text
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
            "model_type": "gemma",
            "hidden_activation": "gelu_pytorch_tanh",
            "num_image_tokens": v.num_patches,
            "tie_word_embeddings": True,
            "pad_token_id": config.pad_token_id,
            "eos_token_id": config.eos_token_id,
            "bos_token_id": config.bos_token_id,
            **{f.name: getattr(t, f.name) for f in fields(t)},
        },
    }


def read(path: str | Path) -> PaliGemmaConfig:
    """Read a `config.json`. Errors name the file."""
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
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
    "from_dict",
    "preset",
    "read",
    "replace",
    "to_dict",
]
