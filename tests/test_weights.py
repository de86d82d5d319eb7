"""Loading and saving: transformers opens what we write, and no damaged folder becomes a model."""

import copy
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_batch, make_pair, randomise, tiny_config
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import minipali
from minipali import comparison, scenes, weights
from minipali.checks.weights import FILL, OUR_NAME, READ_TENSORS, bfloat16_to_float
from minipali.config import ConfigError, preset
from minipali.paligemma import PaliGemma
from minipali.synthetic import write_synthetic
from minipali.tokens import Processor
from minipali.weights import WeightsError, accounts, load, read_header, save

KEYS = 2 * 16 + 5 + 2 + 3 * 9 + 2  # the tiny model's weights, counted by hand


@pytest.fixture(scope="module")
def model():
    model = PaliGemma(tiny_config()).eval()
    randomise(model, seed=3)
    return model


@pytest.fixture(scope="module")
def saved(model, small_folder, tmp_path_factory):
    """A saved tiny model. Do not change it; `folder` is a copy to damage."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save(model, Processor(small_folder / "tokenizer.model", model.config), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def sharded(model, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 60_000)
    folder = tmp_path / "sharded"
    save(model, load(saved)[1], folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    return folder


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def change_weights(folder, change):
    found = load_file(folder / "model.safetensors")
    found = {key: value.clone() for key, value in found.items()}
    save_file(change(found) or found, folder / "model.safetensors", {"format": "pt"})


def change_json(file, change):
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(change(found) or found), encoding="utf-8")


# --- there and back ------------------------------------------------------------------------------


def test_saved_and_loaded(model, saved):
    loaded, processor = load(saved)
    assert same(model, loaded)
    assert not loaded.training and loaded.config == processor.config == model.config
    assert all(p.requires_grad for p in loaded.parameters())
    assert str(accounts(saved)) == (
        f"{KEYS} keys: {KEYS} used, 0 tied, 0 unused, 0 unexpected; 0 missing"
    )
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("paligemma-3b-224", 2_923_466_480),
        ("paligemma-3b-448", 2_924_351_216),
        ("paligemma-3b-896", 2_927_890_160),
    ],
)
def test_the_published_models_have_a_place_for_each_key(name, parameters):
    """603 tensors, and the sizes of facts.md; without taking the memory."""
    places = weights._empty_model(preset(name)).state_dict()
    assert sum(p.numel() for p in places.values()) == parameters
    assert len(places) == len({weights.published_name(name) for name in places}) == 603
    assert all(weights.our_name(weights.published_name(name)) == name for name in places)


def test_loading_is_light(saved):
    """torch's compiler, which the meta device asks for too easily, takes 2 s to import."""
    code = (
        f"import sys, minipali; minipali.load({str(saved)!r})"
        "; print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_stored_keys_are_the_published_ones(saved):
    keys = set(read_header(saved / "model.safetensors"))
    for key in (
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.2.post_attention_layernorm.weight",
        "language_model.model.norm.weight",
        "vision_tower.vision_model.embeddings.patch_embedding.bias",
        "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj.bias",
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.linear.bias",
    ):
        keys.remove(key)
    assert len(keys) == KEYS - 7 and not any("lm_head" in key for key in keys)


def test_transformers_opens_the_folder(model, saved, sharded):
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    batch = make_batch([(4, 3), (2, 1)])
    for place in (saved, sharded):
        theirs, info = Theirs.from_pretrained(place, output_loading_info=True)
        assert not any(info.values()), info
        theirs.eval()
        with torch.no_grad():
            expected, found = theirs(**batch).logits, load(place)[0](**batch)
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


def test_transformers_reads_the_same_ids_and_pixels(saved):
    from transformers import AutoProcessor

    theirs, ours = AutoProcessor.from_pretrained(saved), load(saved)[1]
    noise = np.random.default_rng(0).integers(0, 256, (50, 91, 4), dtype=np.uint8)
    pictures = [Image.fromarray(noise), Image.fromarray(noise[:, :9, 0])]
    prompts, suffixes = ["detect dog ; cat", "é\n"], ["<loc0012><loc1023> dog", "<seg127>"]
    found = ours(pictures, prompts, suffixes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, about transformers
        expected = theirs(
            images=pictures,
            text=["<image>" + prompt for prompt in prompts],
            suffix=suffixes,
            return_tensors="pt",
            padding=True,
        )
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def random_texts(processor, count):
    """Unicode of all planes, pieces of the vocabulary, near misses of the special tokens."""
    choose = random.Random(0)
    pieces = [processor.sentencepiece.IdToPiece(i).replace("▁", " ") for i in range(640)]
    special = "<image> <bos> <eos> <pad> <unk> <mask> <loc0000> <loc1019> <loc1023> <loc1024>"
    special = special.split() + ["<loc٠٠٠١>", "<seg127>", "<seg128>", "<loc12>", "<0x41>"]
    special += ["\n", "\r\n", "\t", "▁", "\u00a0", "\u200d", "e\u0301", "\0"]
    for i in range(count):
        if i % 3 == 0:
            ranges = ((32, 127), (0, 0xD800), (0xE000, 0x110000))
            yield "".join(chr(choose.randrange(*choose.choice(ranges))) for _ in range(i % 30))
        elif i % 3 == 1:
            yield "".join(choose.choice("aehtrn  swo") for _ in range(i % 40))
        else:
            yield "".join(choose.choice(choose.choice((pieces, special))) for _ in range(i % 12))


def test_transformers_reads_a_thousand_random_texts_alike(saved):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    ours, theirs = load(saved)[1], AutoTokenizer.from_pretrained(saved)
    alone = Tokenizer.from_file(str(saved / "tokenizer.json"))  # as other tools read it
    assert len(theirs) == 1793 and theirs.padding_side == "left"
    assert theirs.convert_tokens_to_ids(["<loc0000>", "<seg000>", "<image>"]) == [640, 1664, 1792]
    for text in random_texts(ours, 1000):
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert alone.encode(text, add_special_tokens=False).ids == ids, text
        if "<unk>" not in text and "<mask>" not in text:  # transformers leaves these out
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_the_shipped_files_are_what_save_writes(small_folder, tmp_path):
    """assets/small holds them ready-made; they must not fall behind the code."""
    config = preset("small")
    alone = Path(shutil.copy(small_folder / "tokenizer.model", tmp_path))
    save(PaliGemma(config), Processor(alone, config), tmp_path / "model")
    for name in (
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shipped = json.loads((small_folder / name).read_text(encoding="utf-8"))
        assert shipped == json.loads((tmp_path / "model" / name).read_text(encoding="utf-8")), name


# --- layouts -------------------------------------------------------------------------------------

LAYOUTS = {
    "published": ("language_model.model.", "vision_tower.vision_model.", ""),
    "4.52 to 5.0": ("model.language_model.", "model.vision_tower.vision_model.", "model."),
    "5.23": ("model.language_model.", "model.vision_tower.", "model."),
    "5.23 saved": ("language_model.model.", "vision_tower.", ""),
}


def in_layout(found, text, vision, projector):
    return {
        re.sub("^multi_modal", f"{projector}multi_modal", key)
        .replace("language_model.model.", text)
        .replace("vision_tower.vision_model.", vision): value
        for key, value in found.items()
    }


@pytest.mark.parametrize("head", [None, "lm_head.weight", "language_model.lm_head.weight"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_known_layout(layout, head, model, folder):
    def change(found):
        table = found["language_model.model.embed_tokens.weight"]
        found = in_layout(found, *LAYOUTS[layout])
        return found | ({head: table.clone()} if head else {})

    change_weights(folder, change)
    assert same(load(folder)[0], model)
    found = accounts(folder)
    assert (len(found.used), list(found.tied)) == (KEYS, [head] if head else [])


def test_what_transformers_saves(tmp_path, saved):
    """Its own save, and a re-save of what it loaded from the published layout."""
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    ours, theirs = make_pair(2)
    theirs.save_pretrained(tmp_path / "fresh")
    Theirs.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for place in ("fresh", "again"):
        shutil.copy(saved / "tokenizer.model", tmp_path / place)
    assert same(load(tmp_path / "fresh")[0], ours)
    assert same(load(tmp_path / "again")[0], load(saved)[0])


def test_known_extras_are_counted_and_left_out(model, folder):
    extras = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(9)[None],
        "vision_tower.vision_model.head.probe": torch.zeros(1, 1, 20),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(5),
    }
    change_weights(folder, lambda found: found | extras)
    assert same(load(folder)[0], model)
    assert set(accounts(folder).unused) == set(extras)


# --- dtype, memory, devices ----------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [None, "float32", "bfloat16", "float16", torch.bfloat16])
def test_dtype(stored, wanted, model, folder):
    change_weights(folder, lambda found: {key: value.to(stored) for key, value in found.items()})
    loaded = load(folder, dtype=wanted)[0]
    dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted or stored
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(stored).to(dtype)), name


@pytest.mark.parametrize("wanted", ["float64", "int8", "half", torch.float64, 16])
def test_no_such_dtype(wanted, saved):
    with pytest.raises(ValueError, match="dtype must be None or one of float32, bfloat16, float16"):
        load(saved, dtype=wanted)


def test_saved_in_bfloat16(saved, tmp_path):
    model, processor = load(saved, dtype="bfloat16")
    save(model, processor, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    header = read_header(tmp_path / "half" / "model.safetensors")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert same(load(tmp_path / "half")[0], model)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_stay_in_the_file(saved):
    """Each weight's address lies in memory that is mapped from the file: there is no copy."""
    loaded = load(saved)[0]
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(saved / "model.safetensors")):
            mapped.append([int(number, 16) for number in line.split()[0].split("-")])
    for name, p in loaded.named_parameters():
        assert any(begin <= p.data_ptr() < end for begin, end in mapped), name


def test_a_loaded_model_can_be_trained_and_its_file_stays(folder, saved):
    loaded = load(folder)[0]
    with torch.no_grad():
        for p in loaded.parameters():
            p.mul_(2)
    content = (folder / "model.safetensors").read_bytes()
    assert content == (saved / "model.safetensors").read_bytes()
    assert same(load(folder)[0], load(saved)[0])


def test_too_little_memory(saved, monkeypatch):
    size = sum(p.numel() for p in load(saved)[0].parameters()) * 4
    monkeypatch.setattr(weights, "_free_memory", lambda: size - 1)
    with pytest.raises(MemoryError, match='load with dtype="bfloat16"'):
        load(saved)
    load(saved, dtype="bfloat16")
    monkeypatch.setattr(weights, "_free_memory", lambda: size // 2 - 1)
    with pytest.raises(MemoryError, match="a computer with more memory"):
        load(saved, dtype="bfloat16")
    monkeypatch.setattr(weights, "_free_memory", lambda: None)
    load(saved)


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="no such call on Windows")
def test_free_memory_is_plausible():
    assert 2**26 < weights._free_memory() <= 2**50


def test_a_gigantic_config_takes_no_memory(folder):
    """Sizes at the limits would be 10^13 bytes: the shapes are compared first."""
    sizes = {"hidden_size": 32768, "intermediate_size": 262144, "vocab_size": 2**22}
    change_json(folder / "config.json", lambda found: found["text_config"].update(sizes))
    with pytest.raises(WeightsError, match="must have the shape"):
        load(folder)


# --- where the model is --------------------------------------------------------------------------


def test_folders_of_a_hub_cache(model, saved, tmp_path):
    """There, the files are links into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate(saved.iterdir()):
        shutil.copy(path, blobs / str(i))
        try:
            os.symlink(f"../../blobs/{i}", snapshot / path.name)
        except OSError:
            pytest.skip("links are not allowed here")
    assert same(load(snapshot)[0], model)
    save(*load(snapshot), tmp_path / "copy")
    assert same(load(tmp_path / "copy")[0], model)
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())


@pytest.mark.parametrize("source", ["no/such/folder", "nothing", "../x/y", "C:\\x", "", "a/b@"])
def test_no_such_place(source):
    with pytest.raises(WeightsError, match="source must be 'small', a folder, or a hub id|config"):
        load(source)


def test_a_hub_id_goes_to_the_hub(monkeypatch, saved):
    asked = []
    monkeypatch.setattr(weights, "download", lambda *args: asked.append(args) or saved)
    load("owner/name")
    load("owner/na.me-1@bfloat16")
    load("owner/name@refs/pr/1")
    assert asked == [
        ("owner/name", None),
        ("owner/na.me-1", "bfloat16"),
        ("owner/name", "refs/pr/1"),
    ]
    with pytest.raises(WeightsError, match="source must be"):
        load(Path("owner/name"))


def test_a_file_is_no_folder(saved):
    with pytest.raises(WeightsError, match="model.safetensors must be the folder of a model"):
        load(saved / "model.safetensors")


def test_the_package_offers_it():
    assert minipali.load is load and minipali.save is save and minipali.__version__


# --- damaged folders: one clear error each, naming the file --------------------------------------


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def lengthen(folder):
    with open(folder / "model.safetensors", "ab") as stream:
        stream.write(b"hidden")


def begin_with(content):
    def damage(folder):
        (folder / "model.safetensors").write_bytes(content)

    return damage


def header(change):
    """Change the JSON header and leave the numbers as they are."""

    def damage(folder):
        file = folder / "model.safetensors"
        content = file.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        found = json.loads(content[8 : 8 + length])
        text = change(found)
        text = text if isinstance(text, bytes) else json.dumps(found).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def as_weights(change):
    return lambda folder: change_weights(folder, change)


def as_config(change):
    return lambda folder: change_json(folder / "config.json", change)


def to_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


def paligemma2(found):
    found["text_config"]["model_type"] = "gemma2"


def four_norms(found):
    key = "language_model.model.layers.0.pre_feedforward_layernorm.weight"
    return found | {key: torch.zeros(24)}


def all_as(dtype):
    return lambda found: {key: value.to(dtype) for key, value in found.items()}


NORM = "language_model.model.norm.weight"
TABLE = "language_model.model.embed_tokens.weight"
DAMAGES = {
    "no config": (remove("config.json"), "must hold config.json, found"),
    "config is not JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json must be a readable JSON file",
    ),
    "absurd config": (
        as_config(lambda found: found["text_config"].update(hidden_size=10**12)),
        "config.json: text_config.hidden_size must be a whole number",
    ),
    "PaliGemma 2": (as_config(paligemma2), "config.json: .*this is PaliGemma 2"),
    "PaliGemma 2 weights": (
        as_weights(four_norms),
        "model.safetensors must hold PaliGemma 1 weights only, found .*pre_feedforward_layernorm",
    ),
    "another model": (
        as_config(lambda found: found.update(model_type="llava")),
        "config.json: model_type must be 'paligemma', found 'llava'",
    ),
    "no tokenizer": (remove("tokenizer.model"), "must hold tokenizer.model, found"),
    "no tokenizer inside": (
        lambda folder: (folder / "tokenizer.model").write_bytes(b"nonsense"),
        "tokenizer.model must be a SentencePiece model",
    ),
    "another tokenizer's size": (
        as_config(lambda found: found.update(image_token_index=1800)),
        "tokenizer.model must hold 648 pieces of text .*, found 640",
    ),
    "another tokenizer's bos": (
        as_config(lambda found: found.update(bos_token_id=5)),
        "tokenizer.model must have bos_token_id 5, as config.json says, found 2",
    ),
    "no room for locations": (
        as_config(lambda found: found.update(image_token_index=100)),
        "image_token_id must leave room for 1024 locations",
    ),
    "no weights": (
        remove("model.safetensors"),
        "must hold model.safetensors or model.safetensors.index.json, found",
    ),
    "a pickle": (to_pickle, "pickled weights are not read, because .* safetensors version"),
    "a pickle renamed": (
        begin_with(b"\x80\x02}q\x00." + bytes(64)),
        "model.safetensors must be .*this looks like a pickle",
    ),
    "a zip renamed": (begin_with(b"PK\x03\x04" + bytes(64)), "this looks like a pickle"),
    "an LFS pointer": (
        begin_with(b"version https://git-lfs.github.com/spec/v1\noid sha256:12"),
        "Git LFS pointer, .* run `git lfs pull`",
    ),
    "empty": (begin_with(b""), "model.safetensors must be a whole safetensors file"),
    "absurd header length": (
        begin_with(b"\xff" * 8 + b"{}" * 50),
        "model.safetensors must be .* announce a header of 18,446,744,073,709,551,615 bytes",
    ),
    "header longer than the file": (
        begin_with(struct.pack("<Q", 5000) + b"{}"),
        "model.safetensors must be .* header of 5,000 bytes, and the file has 10",
    ),
    "cut off": (cut, "model.safetensors must have .* bytes by its header, found"),
    "too long": (lengthen, "model.safetensors must have .* bytes by its header, found"),
    "header is no JSON": (header(lambda found: b"{nonsense"), "begin with a safetensors header"),
    "header is a list": (header(lambda found: b"[1, 2]"), "begin with a safetensors header"),
    "header is nested": (header(lambda found: b"[" * 99999), "begin with a safetensors header"),
    "an entry without shape": (
        header(lambda found: found[NORM].pop("shape") and None),
        "begin with a safetensors header",
    ),
    "a negative side": (
        header(lambda found: found[NORM].update(shape=[-4, -6])),
        "begin with a safetensors header",
    ),
    "a shape of more bytes": (
        header(lambda found: found[NORM].update(shape=[25])),
        "begin with a safetensors header, found .*96 bytes for the shape",
    ),
    "overlapping": (
        header(lambda found: found[NORM].update(data_offsets=[0, 96])),
        "model.safetensors must hold its weights one after the other",
    ),
    "a missing key": (
        as_weights(lambda found: {k: v for k, v in found.items() if k != NORM}),
        f"must hold all weights, missing are '{NORM}' .*1 missing",
    ),
    "an extra key": (
        as_weights(lambda found: found | {"language_model.model.extra": torch.zeros(1)}),
        "model.safetensors must hold .* found 'language_model.model.extra'",
    ),
    "a key of nothing": (
        as_weights(lambda found: found | {"extra": torch.zeros(1)}),
        "model.safetensors must hold .* found 'extra'",
    ),
    "a weight twice": (
        as_weights(lambda found: found | {"model.language_model.norm.weight": torch.zeros(24)}),
        "must hold each weight once, found",
    ),
    "a wrong shape": (
        as_weights(lambda found: found | {NORM: torch.zeros(25)}),
        rf"model.safetensors: '{NORM}' must have the shape \[24\] by config.json, found \[25\]",
    ),
    "turned around": (
        as_weights(lambda found: found | {TABLE: found[TABLE].T.contiguous()}),
        r"must have the shape \[1856, 24\] by config.json, found \[24, 1856\]",
    ),
    "int8": (
        as_weights(lambda found: found | {NORM: torch.zeros(24, dtype=torch.int8)}),
        f"model.safetensors: '{NORM}' must be of dtype F32, BF16, F16, found I8",
    ),
    "float64": (as_weights(all_as(torch.float64)), "must be of dtype F32, BF16, F16, found F64"),
    "float8": (as_weights(all_as(torch.float8_e4m3fn)), "must be of dtype .*, found F8_E4M3"),
    "mixed": (
        as_weights(lambda found: found | {NORM: found[NORM].bfloat16()}),
        "all weights must have one dtype, found ",
    ),
    "a head of its own": (
        as_weights(lambda found: found | {"lm_head.weight": found[TABLE] + 1e-3}),
        "model.safetensors: 'lm_head.weight' must equal .* differs",
    ),
    "a head of another shape": (
        as_weights(lambda found: found | {"lm_head.weight": found[TABLE][:5].clone()}),
        r"'lm_head.weight' must have the shape \[1856, 24\]",
    ),
    "fewer layers in the config": (
        as_config(lambda found: found["text_config"].update(num_hidden_layers=2)),
        "found 'language_model.model.layers.2.* no place",
    ),
    "more layers in the config": (
        as_config(lambda found: found["vision_config"].update(num_hidden_layers=3)),
        "missing are 'vision_tower.vision_model.encoder.layers.2",
    ),
    "another resolution": (
        as_config(lambda found: found["vision_config"].update(image_size=16)),
        r"position_embedding.weight' must have the shape \[16, 20\]",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged(name, folder):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises((WeightsError, ConfigError), match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def remap(change):
    def damage(folder):
        change_json(folder / "model.safetensors.index.json", change)

    return damage


def index_is(text):
    def damage(folder):
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


def cut_shard(folder):
    file = sorted(folder.glob("model-*"))[1]
    file.write_bytes(file.read_bytes()[:-1])


def drop_shard(folder):
    sorted(folder.glob("model-*"))[1].unlink()


def drop_from_shard(folder):
    file = next(file for file in folder.glob("model-*") if NORM in read_header(file))
    kept = {key: value.clone() for key, value in load_file(file).items() if key != NORM}
    save_file(kept, file)


def point_to(name):
    return remap(lambda found: found["weight_map"].update({NORM: name}))


SHARD_DAMAGES = {
    "a cut shard": (cut_shard, "model-00002-of-.*safetensors must have"),
    "a missing shard": (drop_shard, "model-00002-of-.*safetensors must exist, .* is missing"),
    "index is not JSON": (index_is("{nonsense"), "index.json must be a JSON object"),
    "index is a list": (index_is("[]"), "index.json must be a JSON object"),
    "index is nested": (index_is("[" * 99999), "index.json must be a JSON object"),
    "no weight_map": (index_is("{}"), "index.json must be a JSON object with a weight_map"),
    "empty weight_map": (index_is('{"weight_map": {}}'), "index.json must be a JSON object"),
    "weight_map is a list": (index_is('{"weight_map": [1]}'), "index.json must be a JSON object"),
    "numbers as names": (index_is('{"weight_map": {"a": 1}}'), "index.json must be a JSON object"),
    "../": (point_to("../model.safetensors"), r"found '\.\./model.safetensors': do not use"),
    "absolute": (point_to("/etc/passwd"), "next to it, found '/etc/passwd'"),
    "Windows": (point_to("C:\\x.safetensors"), "next to it, found"),
    "no weights": (point_to("config.json"), "next to it, found 'config.json'"),
    "in the index, not in the shard": (
        drop_from_shard,
        f"must agree, found '{NORM}' in model.safetensors.index.json and not in model-",
    ),
    "in the shard, not in the index": (
        remap(lambda found: found["weight_map"].pop(NORM) and None),
        f"must agree, found '{NORM}' in model-.* and not in model.safetensors.index.json",
    ),
}


@pytest.mark.parametrize("name", SHARD_DAMAGES)
def test_damaged_shards(name, sharded):
    damage, message = SHARD_DAMAGES[name]
    shutil.copy(sharded / "config.json", sharded.parent / "model.safetensors")  # for "../"
    damage(sharded)
    with pytest.raises(WeightsError, match=message) as caught:
        load(sharded)
    assert str(sharded) in str(caught.value)


def test_shards_hold_the_same_model(model, sharded):
    assert same(load(sharded)[0], model)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.parameters())
    assert set(index["weight_map"].values()) == {path.name for path in sharded.glob("model-*")}


def test_any_cut_and_any_changed_byte_of_the_header_is_noticed_or_harmless(folder, model):
    """A byte of the header changed at random: an error of ours, or the same keys and shapes."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    choose = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        if choose.random() < 0.5:
            damaged = damaged[: choose.randrange(len(content))]
        else:
            damaged[choose.randrange(end)] = choose.randrange(256)
        file.write_bytes(damaged)
        try:
            assert [p.shape for p in load(folder)[0].parameters()] == [
                p.shape for p in model.parameters()
            ]
        except WeightsError as error:
            assert str(folder) in str(error)


def test_a_longer_header_than_the_format_allows_is_not_read(saved, monkeypatch):
    monkeypatch.setattr(weights, "HEADER_BYTES", 1000)
    with pytest.raises(WeightsError, match="must be a whole safetensors file: .* announce"):
        read_header(saved / "model.safetensors")


# --- saving --------------------------------------------------------------------------------------


def test_a_model_is_replaced_and_other_files_stay(sharded, saved):
    (sharded / "README.md").write_text("mine")
    (sharded / "notes").mkdir()
    (sharded / "notes" / "a").write_text("b")
    save(*load(saved), sharded)  # in one shard each is larger than SHARD_BYTES
    assert (sharded / "README.md").read_text() == "mine"
    assert (sharded / "notes" / "a").read_text() == "b"
    assert same(load(sharded)[0], load(saved)[0])


def test_no_old_shards_are_left(sharded, saved, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 10**9)
    save(*load(saved), sharded)
    assert [path.name for path in sharded.glob("model*")] == ["model.safetensors"]
    assert [path.name for path in sharded.parent.iterdir()] == ["sharded"]
    assert same(load(sharded)[0], load(saved)[0])


@pytest.mark.skipif(sys.platform == "win32", reason="there, files in use cannot be replaced")
def test_a_model_may_replace_the_files_it_is_mapped_from(folder, model):
    loaded, processor = load(folder)
    with torch.no_grad():
        loaded.language_model.norm.weight.add_(1)
    save(loaded, processor, folder)
    again = load(folder)[0]
    assert same(again, loaded) and not same(again, model)


@pytest.mark.parametrize("found", [{"notes.txt": "x"}, {"config.json": '{"model_type": "llava"}'}])
def test_a_folder_of_something_else_is_refused(found, saved, tmp_path):
    for name, content in found.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(WeightsError, match="must be new, empty, or the folder of a PaliGemma"):
        save(*load(saved), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == found


def test_a_file_is_not_replaced(saved, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WeightsError, match="must be new, empty"):
        save(*load(saved), tmp_path / "file")


def test_new_and_empty_folders(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b", str(tmp_path / "text")):
        save(*load(saved), place)
        assert same(load(place)[0], load(saved)[0])
    mode = (tmp_path / "text" / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "text" / "config.json").stat().st_mode


def test_a_failed_save_leaves_the_old_model(folder, saved, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save(*load(saved), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert same(load(folder)[0], load(saved)[0])


def test_a_full_disk(saved, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(WeightsError, match="GB free for the weights, found 0.0 GB"):
        save(*load(saved), tmp_path / "model")


def test_only_a_plain_model_is_saved(saved, tmp_path):
    model, processor = load(saved)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(
        WeightsError, match="difference in 'extra.bias', 'extra.weight': merge LoRA"
    ):
        save(model, processor, tmp_path / "model")
    model, processor = load(saved)
    model.language_model.norm.bfloat16()
    with pytest.raises(WeightsError, match="must have one dtype"):
        save(model, processor, tmp_path / "model")
    with pytest.raises(WeightsError, match="must have one dtype of float32, bfloat16, float16"):
        save(model.double(), processor, tmp_path / "model")
    model, processor = load(saved)
    model.language_model.norm.weight = nn.Parameter(torch.zeros(25))
    with pytest.raises(
        WeightsError, match=r"language_model.norm.weight must have the shape \(24,\)"
    ):
        save(model, processor, tmp_path / "model")
    with torch.device("meta"):
        empty = PaliGemma(tiny_config())
    with pytest.raises(WeightsError, match="hold numbers, found .* on meta"):
        save(empty, processor, tmp_path / "model")
    other = Processor(saved / "tokenizer.model", tiny_config(kv_heads=4))
    with pytest.raises(WeightsError, match="model and processor must have the same config"):
        save(load(saved)[0], other, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_given_tokenizer_json_is_kept(folder, tmp_path):
    """Published folders have one with more settings than ours."""
    change_json(folder / "tokenizer_config.json", lambda found: found.update(mine=1))
    (folder / "added_tokens.json").write_text('{"<image>": 1792}')
    save(*load(folder), tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())["mine"] == 1
    assert (tmp_path / "copy" / "added_tokens.json").exists()


# --- comparing with transformers -----------------------------------------------------------------


def planted(ours, change):
    """A copy of the tiny model with one thing changed."""
    copied = copy.deepcopy(ours)
    change(copied)
    return copied


def transpose(path):
    def change(model):
        weight = model.get_submodule(path).weight
        assert weight.shape[0] == weight.shape[1]
        weight.data = weight.data.T.contiguous()

    return change


def exact_gelu(model):
    for layer in model.vision_tower.layers:
        layer.mlp.forward = lambda x, m=layer.mlp: m.fc2(nn.functional.gelu(m.fc1(x)))


def without_position(model):
    model.vision_tower.embeddings.position_embedding.weight.data.zero_()


def third_norm(model):
    model.language_model.layers[2].input_layernorm.weight.data[5] += 1


def one_batch():
    return make_batch([(4, 3)])


def test_every_layer_is_compared_with_transformers_and_agrees(pair2):
    ours, theirs = pair2
    found = comparison.compare_layers(ours, theirs, one_batch())
    expected = {
        name for name, module in ours.named_modules() if not isinstance(module, nn.ModuleList)
    }
    # Two tables are left out: one is scaled elsewhere, the other is added without being called.
    tables = {"language_model.embed_tokens", "vision_tower.embeddings.position_embedding"}
    assert set(found) == expected - tables - {""} | {"logits"}
    assert list(found)[0] == "vision_tower.embeddings.patch_embedding"
    assert list(found)[-1] == "logits"
    assert max(found.values()) < 1e-5
    assert comparison.first_difference(ours, theirs, one_batch()) is None


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (transpose("vision_tower.layers.1.self_attn.q_proj"),
         "vision_tower.layers.1.self_attn.q_proj"),
        (exact_gelu, "vision_tower.layers.0.mlp.fc2"),
        (without_position, "vision_tower.embeddings"),
        (third_norm, "language_model.layers.2.input_layernorm"),
    ],
)  # fmt: skip
def test_the_first_layer_that_differs_is_named(pair2, change, first):
    ours, theirs = pair2
    assert comparison.first_difference(planted(ours, change), theirs, one_batch()) == first


def test_nan_and_other_shapes_are_infinitely_far(pair2):
    ours, theirs = pair2

    def nan(model):
        model.multi_modal_projector.bias.data[3] = torch.nan

    found = comparison.compare_layers(planted(ours, nan), theirs, one_batch())
    assert found["vision_tower"] < 1e-5 and found["multi_modal_projector"] == float("inf")

    class Reads(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.language_model = nn.Sequential(nn.Linear(2, width))

        def forward(self, x):
            return self.language_model(x)

    found = comparison.compare_layers(Reads(3), Reads(4), {"x": torch.ones(1, 2)})
    names = ("language_model.0", "language_model", "logits")
    assert found == dict.fromkeys(names, float("inf"))


def test_comparing_leaves_no_hooks_behind(pair2):
    ours, theirs = pair2
    comparison.compare_layers(ours, theirs, one_batch())
    with pytest.raises(ValueError):
        comparison.compare_layers(ours, theirs, {**one_batch(), "pixel_values": None})
    for model in (ours, theirs):
        assert not any(module._forward_hooks for module in model.modules())


# --- the lesson's cells for the 3B model ---------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]


def cells_for_3b():
    """The code of the lesson's cells tagged 3b, and of the one that they take `sizes_of` from."""
    import jupytext

    source = ROOT / "notebooks" / "src" / "14_weights.py"
    cells = jupytext.read(source, fmt="py:percent").cells
    tagged = [cell.source for cell in cells if "3b" in cell.metadata.get("tags", [])]
    [before] = [cell.source for cell in cells if "def sizes_of" in cell.source]
    return before.split("\n\n\nfor name in")[0], tagged


def run_cells_for_3b(capsys, theirs=True):
    """Run them as the notebook does, with what earlier cells define; what they print."""
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    before, cells = cells_for_3b()
    assert len(cells) == 2
    scope = {
        "torch": torch,
        "PaliGemma": PaliGemma,
        "TABLE": "language_model.embed_tokens.weight",
        "load": minipali.load,
        "generate": minipali.generate,
        "picture": scenes.examples()["cat_and_ball"],
        "compare_layers": comparison.compare_layers,
        "Theirs": Theirs if theirs else None,
    }
    for cell in (before, *cells):
        exec(cell, scope)
    return capsys.readouterr().out, scope


def test_the_3b_cells_run_on_a_folder(tmp_path, monkeypatch, capsys):
    write_synthetic(tmp_path / "big", preset("small"))
    monkeypatch.setenv("MINIPALI_3B", str(tmp_path / "big"))
    told, scope = run_cells_for_3b(capsys)
    assert "125 keys: 125 used, 0 tied, 0 unused, 0 unexpected; 0 missing" in told
    assert scope["big"].language_model.norm.weight.dtype == torch.bfloat16
    assert "111 layers, the furthest is" in told and "first beyond 5 %: None" in told
    told, _ = run_cells_for_3b(capsys, theirs=False)
    assert "125 used" in told and "This cell would open the same files" in told


def test_the_3b_cells_say_what_they_would_do(monkeypatch, capsys):
    monkeypatch.delenv("MINIPALI_3B", raising=False)
    told, _ = run_cells_for_3b(capsys)
    assert "603 tensors, 5.85 GB" in told  # 2,923,466,480 numbers of 2 bytes
    assert "5.02 GB are read" in told  # 2,508,662,784 of them
    assert "27 vision\nlayers and 18 decoder layers" in told


# --- the exercise's pieces -----------------------------------------------------------------------


def test_the_checks_files_are_real_ones_and_its_reference_reads_them():
    """What the exercise hands out as safetensors files opens with the library, and agrees."""
    from safetensors.torch import load as read

    for data, name in READ_TENSORS.cases():
        expected = read(bytes(data))
        assert torch.equal(READ_TENSORS.reference(data, name), expected[name])
        assert f"{name} " in str(data)


def test_bfloat16_by_hand_is_torchs_for_all_patterns():
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
    found, expected = bfloat16_to_float(patterns), patterns.view(torch.bfloat16).float()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(0), expected.nan_to_num(0))


def test_the_exercises_names_are_the_packages(saved):
    """But for the head, which the package counts as tied before it asks for a name."""
    keys = [weights.published_name(name) for name in PaliGemma(tiny_config()).state_dict()]
    for layout in LAYOUTS.values():
        for key in in_layout(dict.fromkeys(keys), *layout):
            assert OUR_NAME.reference(key) == weights.our_name(key)
    assert OUR_NAME.reference("model.layers.0.mlp.up_proj.weight") == "no place"


def test_a_changed_dict_is_refused_with_advice():
    """Else a learner's pop would change the case under the reference's hands."""
    _, tensors = FILL.cases()[1]
    for change in (lambda d: d.pop("lm_head.weight"), lambda d: d.update(a=1), lambda d: d.clear()):
        with pytest.raises(TypeError, match=r"given = dict\(tensors\)"):
            change(tensors)
    assert dict(tensors).pop("lm_head.weight") is tensors["lm_head.weight"]
