"""Loading: every layout, dtype and place; and what lesson 14 does with it."""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import change_json, change_weights, make_batch, make_pair, same, tiny_config
from PIL import Image
from torch import nn

import minipali
from minipali import adapters, comparison, scenes, weights
from minipali.checks import exercise
from minipali.checks.engine import CRASHED, REFUSED, WRONG, examine
from minipali.checks.weights import FILL, OUR_NAME, READ_TENSORS, bfloat16_to_float
from minipali.config import preset
from minipali.paligemma import PaliGemma
from minipali.patches import PatchEmbedding
from minipali.saving import save
from minipali.synthetic import write_synthetic
from minipali.weights import WeightsError, accounts, load, read_header

KEYS = 2 * 16 + 5 + 2 + 3 * 9 + 2  # the tiny model's weights, counted by hand


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
    places = weights.empty_model(preset(name)).state_dict()
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


NO_PLACES = ["no/such/folder", "nothing", "../x/y", "C:\\x", "a/b@", "x" * 300, "/" + "x/" * 3000]


@pytest.mark.parametrize("source", NO_PLACES, ids=range(len(NO_PLACES)))
def test_no_such_place(source):
    with pytest.raises(
        WeightsError, match="source must be 'small', a folder, or a hub id"
    ) as error:
        load(source)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("source", [None, 3, b"small", [], ["small"], "", "a\0b", True])
def test_a_source_that_is_no_path(source):
    with pytest.raises(WeightsError, match="source, if it is not 'small' .* must be a path, found"):
        load(source)


def no_cuda(*args, **kwargs):
    raise AssertionError("Torch not compiled with CUDA enabled\nand much more")


def test_a_device_that_is_not_there(saved, monkeypatch):
    for device in ("toaster", "meta", 2.5, "cpu:x"):
        with pytest.raises(ValueError, match=f"device must be one that .*, found {device!r} "):
            load(saved, device=device)
    monkeypatch.setattr(torch, "empty", no_cuda)  # what torch says without CUDA
    with pytest.raises(ValueError, match=r"found 'cuda' \(Torch not compiled with CUDA enabled\)"):
        load(saved, device="cuda")


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
    assert minipali.load is adapters.load and minipali.save is save and minipali.__version__


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
    # Where weights of 16 bits are widened, the patch embedding does not call its convolution.
    layers = 111 if type(scope["big"].vision_tower.embeddings) is PatchEmbedding else 110
    assert f"{layers} layers, the furthest is" in told and "first beyond 5 %: None" in told
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
        assert torch.equal(READ_TENSORS.reference(data)[name], expected[name])
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
    assert OUR_NAME.reference("model.layers.0.mlp.up_proj.weight") is None


def test_an_error_for_another_models_key_is_named_and_any_other_is_a_crash():
    names = {key: OUR_NAME.reference(key) for (key,) in OUR_NAME.cases()}

    def of_a_table(key):
        return {key: name for key, name in names.items() if name is not None}[key]

    def without_the_tower(key):
        return {key: name for key, name in names.items() if "vision" not in key}[key]

    outcome = examine(OUR_NAME, of_a_table)
    assert outcome.status == WRONG and "Return None for it" in outcome.message
    outcome = examine(OUR_NAME, without_the_tower)
    assert outcome.status == CRASHED and "KeyError" in outcome.message


def test_a_changed_dict_is_refused_with_advice():
    """Else a learner's pop would change the case under the reference's hands."""
    _, tensors = FILL.cases()[1]
    for change in (lambda d: d.pop("lm_head.weight"), lambda d: d.update(a=1), lambda d: d.clear()):
        with pytest.raises(TypeError, match=r"given = dict\(tensors\)"):
            change(tensors)
    assert dict(tensors).pop("lm_head.weight") is tensors["lm_head.weight"]


@pytest.mark.parametrize("widen", [lambda b: b.view(torch.bfloat16).float(), lambda b: (
    torch.frombuffer(bytearray(b.numpy().tobytes()), dtype=torch.bfloat16).float().reshape(b.shape)
)])  # fmt: skip
def test_torchs_bfloat16_is_refused_where_it_is_to_be_written(widen):
    outcome = examine(exercise("bfloat16_to_float"), widen)
    assert outcome.status == REFUSED and "torch.bfloat16" in outcome.message


def test_the_safetensors_library_is_refused_where_its_work_is_to_be_written():
    from safetensors.torch import load

    outcome = examine(exercise("read_tensors"), lambda data: load(bytes(data)))
    assert outcome.status == REFUSED and "safetensors.torch's load" in outcome.message


@pytest.mark.parametrize("block", [16, 64, 1000, 100_000])
def test_a_header_read_in_blocks_is_said_to_be_read_too_far(block):
    def fetch(weight_map, read, name):
        file, header = weight_map[name], b""
        length = int.from_bytes(read(file, 0, 8), "little")
        while len(header) < length:
            header += read(file, 8 + len(header), 8 + len(header) + block)
        entry, start = json.loads(header[:length])[name], 8 + length
        own = read(file, *(start + place for place in entry["data_offsets"]))
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[entry["dtype"]]
        flat = torch.frombuffer(bytearray(own), dtype=kind) if own else torch.empty(0, dtype=kind)
        return flat.reshape(entry["shape"])

    outcome = examine(exercise("fetch_tensor"), fetch)
    assert outcome.status == WRONG and "you read on behind it" in outcome.message


def test_one_tensor_is_fetched_from_a_real_file_with_its_own_bytes_alone(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.randn(3, 4), "b": torch.randn(7).bfloat16(), "none": torch.empty(0, 2)}
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    data, touched = (tmp_path / "x").read_bytes(), set()

    def read(file, start, end):
        touched.update(range(start, end))
        return data[start:end]

    fetch, header = exercise("fetch_tensor").reference, 8 + int.from_bytes(data[:8], "little")
    for name, tensor in tensors.items():
        touched.clear()
        assert torch.equal(fetch(dict.fromkeys(tensors, "x"), read, name), tensor)
        assert len(touched) == header + tensor.nbytes
