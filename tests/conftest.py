"""Shared by all tests: a tiny config, and the same random weights in minipali and transformers.

transformers is the oracle. Nothing here touches the network, and nothing reads minipali's own
loader: weights are copied in memory, so that a mistake in the loader cannot hide one in the model.
"""

import functools
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from browsing import browser  # noqa: F401, the fixture
from torch import nn

import minipali.config
from minipali.config import PaliGemmaConfig, TextConfig, VisionConfig
from minipali.hooks import watch
from minipali.paligemma import PaliGemma

torch.set_num_threads(1)

# How far two right ways to sum may be apart in the tiny model's logits: float32 rounds by 2^-24 of
# a number, these reach 10, and some 100 roundings lie one behind the other, on each side: 1.2e-4 if
# all went one way. The smallest mistake that the tests know moves a logit by more than 1e-2.
ROUNDING = 1e-4

IMAGE_TOKEN = 1792  # as in the small model, so that its tokenizer fits the tiny config too


def tiny_config(kv_heads: int = 2, **special) -> PaliGemmaConfig:
    """All sizes differ, heads x head_dim != width, and eps and theta are not the defaults."""
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
        text=TextConfig(
            vocab_size=1856,
            hidden_size=24,
            intermediate_size=36,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=10,
            max_position_embeddings=128,
            rope_theta=500.0,
            rms_norm_eps=1e-3,
        ),
        **{"image_token_id": IMAGE_TOKEN, **special},
    )


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights so large that mistakes show; transformers' start values (0.02) would hide them."""
    random = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=random)
        if "norm" in name and name.endswith("weight"):
            centre = 1.0 if "layer_norm" in name or "post_layernorm" in name else 0.0
            p.copy_(centre + 0.4 * noise)
        elif p.ndim == 1:
            p.copy_(0.3 * noise)
        elif "embedding" in name or "embed_tokens" in name:
            p.copy_(0.25 * noise)
        else:
            p.copy_(1.2 * noise * p[0].numel() ** -0.5)


def their_config(config: PaliGemmaConfig):
    """Our sizes as a transformers config, written out by hand."""
    from transformers import GemmaConfig, SiglipVisionConfig
    from transformers import PaliGemmaConfig as TheirConfig

    v, t = config.vision, config.text
    special = {
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "bos_token_id": config.bos_token_id,
    }
    return TheirConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=v.hidden_size,
            intermediate_size=v.intermediate_size,
            num_hidden_layers=v.num_hidden_layers,
            num_attention_heads=v.num_attention_heads,
            image_size=v.image_size,
            patch_size=v.patch_size,
            layer_norm_eps=v.layer_norm_eps,
            vision_use_head=False,
        ),
        text_config=GemmaConfig(
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
            **special,
        ),
        image_token_index=config.image_token_id,
        projection_dim=t.hidden_size,
        hidden_size=t.hidden_size,
        vocab_size=t.vocab_size,
        **special,
    )


def our_key(key: str) -> str:
    """The name in minipali of a weight in transformers 5's memory."""
    key = key.removeprefix("model.")
    key = key.replace("vision_tower.vision_model.", "vision_tower.")  # transformers up to 5.0
    key = key.replace("vision_tower.encoder.layers.", "vision_tower.layers.")
    return key.replace("multi_modal_projector.linear.", "multi_modal_projector.")


@functools.cache
def make_ours(kv_heads: int = 2) -> PaliGemma:
    """A tiny model with random weights. Shared between tests: do not change it."""
    model = PaliGemma(tiny_config(kv_heads)).eval()
    randomise(model)
    return model


def fresh_model(**special) -> PaliGemma:
    """A copy of the tiny model to change, or with other special tokens."""
    model = PaliGemma(tiny_config(**special)).eval()
    model.load_state_dict(make_ours().state_dict())
    return model


@functools.cache
def make_theirs(kv_heads: int = 2, attention: str = "eager"):
    """transformers' model with the same weights, and one way of attention in both its towers."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PaliGemmaForConditionalGeneration(their_config(tiny_config(kv_heads)))
    theirs.eval().set_attn_implementation(attention)
    for part in (theirs.model.vision_tower, theirs.model.language_model):
        assert part.config._attn_implementation == attention
    weights = make_ours(kv_heads).state_dict()
    names = [name for name in theirs.state_dict() if name != "lm_head.weight"]  # tied
    assert sorted(map(our_key, names)) == sorted(weights)  # every weight has its place, both ways
    theirs.load_state_dict({name: weights[our_key(name)] for name in names}, strict=False)
    assert theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    return theirs


def make_pair(kv_heads: int = 2, attention: str = "eager"):
    """(ours, theirs) with the same random weights."""
    return make_ours(kv_heads), make_theirs(kv_heads, attention)


@pytest.fixture(params=[1, 2, 4], ids=lambda n: f"{n}kv")
def pair(request):
    return make_pair(request.param)


@pytest.fixture
def pair2():
    """Two key/value heads for four query heads: the case that shows mistakes in grouping."""
    return make_pair(2)


@pytest.fixture
def model():
    return make_ours()


def make_batch(
    lengths: list[tuple[int, int]],
    side: str = "left",
    seed: int = 0,
    config: PaliGemmaConfig | None = None,
) -> dict[str, torch.Tensor]:
    """Random pictures, and rows of (prompt, suffix) lengths padded to the longest."""
    config = config or tiny_config()
    random = torch.Generator().manual_seed(seed)
    n = config.vision.num_patches
    longest = max(n + sum(row) for row in lengths)
    names = ("input_ids", "attention_mask", "token_type_ids")
    batch = {name: torch.zeros(len(lengths), longest, dtype=torch.long) for name in names}
    for i, (prompt, suffix) in enumerate(lengths):
        length = n + prompt + suffix
        start = longest - length if side == "left" else 0
        words = torch.randint(5, 600, (prompt + suffix,), generator=random)
        ids = torch.cat((torch.full((n,), config.image_token_id), words))
        batch["input_ids"][i, start : start + length] = ids
        batch["attention_mask"][i, start : start + length] = 1
        batch["token_type_ids"][i, start + n + prompt : start + length] = 1
    size = (len(lengths), 3, config.vision.image_size, config.vision.image_size)
    batch["pixel_values"] = torch.rand(size, generator=random) * 2 - 1
    return batch


def outputs_of(layers, run) -> list[torch.Tensor]:
    """What each layer returns while `run` runs."""
    kept = []

    def keep(number, given, output):
        kept.append(output if torch.is_tensor(output) else output[0])

    with torch.no_grad(), watch(enumerate(layers), keep):
        run()
    return kept


@pytest.fixture(scope="session")
def small_folder():
    return Path(minipali.config.__file__).parent / "assets" / "small"


@pytest.fixture(scope="session")
def processor(small_folder):
    """The small model's tokenizer with the tiny config's sizes."""
    from minipali.tokens import Processor

    return Processor(small_folder / "tokenizer.model", tiny_config())


# --- model folders, for the tests of weights.py and saving.py ------------------------------------


@pytest.fixture(scope="session")
def saved(small_folder, tmp_path_factory):
    """The tiny model, saved. Do not change it; `folder` is a copy to damage."""
    from minipali.saving import save
    from minipali.tokens import Processor

    folder = tmp_path_factory.mktemp("saved") / "model"
    model = make_ours()
    save(model, Processor(small_folder / "tokenizer.model", model.config), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(saved, tmp_path, monkeypatch):
    from minipali.saving import save
    from minipali.weights import load

    monkeypatch.setattr("minipali.saving.SHARD_BYTES", 60_000)
    folder = tmp_path / "sharded"
    save(*load(saved), folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    return folder


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same weights."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    found = {key: value.clone() for key, value in found.items()}
    save_file(change(found) or found, folder / "model.safetensors", {"format": "pt"})


def change_json(file, change):
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(change(found) or found), encoding="utf-8")
