"""No damaged folder becomes a model: one clear error each, which names the file."""

import json
import os
import random
import shutil
import struct
import threading
from pathlib import Path

import pytest
import torch
from conftest import change_json, change_weights, same
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minipali import config as configs
from minipali.config import ConfigError
from minipali.weights import WeightsError, load, read_header

# --- one folder, one file of weights -------------------------------------------------------------


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


WHOLE = "model.safetensors must be a whole safetensors file: "
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
    "PaliGemma 1 weights": (
        as_config(paligemma2),
        "must hold all weights, missing are .*feedforward_layernorm",
    ),
    "PaliGemma 2 weights": (
        as_weights(four_norms),
        "model.safetensors must hold weights of PaliGemma only, found .*pre_feedforward_layernorm",
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
    "empty": (begin_with(b""), WHOLE),
    "absurd header length": (
        begin_with(b"\xff" * 8 + b"{}" * 50),
        "model.safetensors must be .* announce a header of 18,446,744,073,709,551,615 bytes",
    ),
    "header longer than the file": (
        begin_with(struct.pack("<Q", 5000) + b"{}"),
        "model.safetensors must be .* header of 5,000 bytes, and the file has 10",
    ),
    "cut off": (cut, WHOLE + ".*not fully covered; it is cut off or damaged, download"),
    "too long": (lengthen, WHOLE + ".*not fully covered; it is cut off or damaged, download"),
    "header is no JSON": (header(lambda found: b"{nonsense"), WHOLE + ".*header"),
    "header is a list": (header(lambda found: b"[1, 2]"), WHOLE + ".*header"),
    "header is nested": (header(lambda found: b"[" * 99999), WHOLE + ".*header"),
    "an entry without shape": (
        header(lambda found: found[NORM].pop("shape") and None),
        WHOLE + ".*header",
    ),
    "a negative side": (
        header(lambda found: found[NORM].update(shape=[-4, -6])),
        WHOLE + ".*header",
    ),
    "a shape of more bytes": (
        header(lambda found: found[NORM].update(shape=[25])),
        WHOLE + ".*invalid shape, data type, or offset",
    ),
    "overlapping": (
        header(lambda found: found[NORM].update(data_offsets=[0, 96])),
        WHOLE + ".*invalid offset for tensor",
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


def shard_is_a_folder(folder):
    drop_shard(folder)
    (folder / sorted(folder.glob("model-*"))[0].name.replace("00001", "00002")).mkdir()


def drop_shard(folder):
    sorted(folder.glob("model-*"))[1].unlink()


def drop_from_shard(folder):
    file = next(file for file in folder.glob("model-*") if NORM in read_header(file))
    kept = {key: value.clone() for key, value in load_file(file).items() if key != NORM}
    save_file(kept, file)


def point_to(name):
    return remap(lambda found: found["weight_map"].update({NORM: name}))


SHARD_DAMAGES = {
    "a cut shard": (cut_shard, "model-00002-of-.*safetensors must be a whole .* cut off"),
    "a missing shard": (
        drop_shard,
        "must hold the shard .model-00002-of-.* is missing",
    ),
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
    "a name of 300 letters": (
        point_to("x" * 300 + ".safetensors"),
        "hold the shard .* missing",
    ),
    "a name of a million letters": (
        point_to("x" * 10**6 + ".safetensors"),
        "must hold the shard .* mis",
    ),
    "a strange name of a million letters": (point_to("x" * 10**6), r"next to it, .* characters\)"),
    "a name with half a character": (
        point_to("\ud800.safetensors"),
        "hold the shard .* missing",
    ),
    "a folder as a shard": (
        shard_is_a_folder,
        "model-00002-of-.* must be a readable file: .*regul",
    ),
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
    assert str(sharded) in str(caught.value) and len(str(caught.value)) < 1500


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


def to_pipe(file):
    file.unlink()
    os.mkfifo(file)


def to_folder(file):
    file.unlink()
    file.mkdir()


def to_device(file):
    file.unlink()
    file.symlink_to("/dev/zero")


FILES = ["config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
         "model.safetensors", "model.safetensors.index.json"]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders on Windows")
@pytest.mark.parametrize("change", [to_pipe, to_folder, to_device])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_ordinary_file_is_not_waited_for(name, change, folder):
    """Reading from a pipe would wait until somebody writes into it, and a device never ends."""
    if name.endswith("index.json"):
        (folder / "model.safetensors").rename(folder / name)
    change(folder / name)
    told = []

    def work():
        with pytest.raises((WeightsError, ConfigError), match="must be a regular file") as caught:
            load(folder)
        told.append(str(caught.value))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert told and str(folder / name) in told[0]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_gigantic_text_file_is_not_read(name, folder, monkeypatch):
    monkeypatch.setattr(configs, "MOST", 300_000)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(" " * 300_001)
    with pytest.raises((WeightsError, ConfigError), match=f"{name} must have at most 300,000"):
        load(folder)


def test_a_link_to_nothing(folder):
    """As in a cache whose files were deleted."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        copy = Path(shutil.copytree(folder, folder.with_name(f"without {name}")))
        (copy / name).unlink()
        try:
            (copy / name).symlink_to("nowhere")
        except OSError:
            pytest.skip("links are not allowed here")
        with pytest.raises((WeightsError, ConfigError), match=f"{name}.*No such file"):
            load(copy)


def test_the_librarys_own_refusals_are_enough(folder):
    """What the package once refused by itself: whatever is no whole file, the library refuses."""
    for name in ("overlapping", "a negative side", "a shape of more bytes", "too long", "cut off"):
        copy = Path(shutil.copytree(folder, folder.with_name(name)))
        DAMAGES[name][0](copy)
        with pytest.raises(SafetensorError), safe_open(copy / "model.safetensors", "pt"):
            pass
