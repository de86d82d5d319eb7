"""Random checkpoints in the published form: small ones here, the real size in test_real_size.py."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config

from minipali import load, synthetic
from minipali.config import preset
from minipali.rope import rope_angles
from minipali.synthetic import write_synthetic
from minipali.weights import INDEX, WeightsError, accounts, read_header


@pytest.fixture
def shards(monkeypatch):
    """Small shards and pieces, so that a tiny model has several of both."""
    monkeypatch.setattr(synthetic, "SHARD", 60_000)
    monkeypatch.setattr(synthetic, "PIECE", 1000)


def test_a_folder_is_complete_in_several_shards_with_published_names(shards, tmp_path):
    write_synthetic(tmp_path / "model", tiny_config())
    weight_map = json.loads((tmp_path / "model" / INDEX).read_text())["weight_map"]
    assert len(set(weight_map.values())) >= 3
    assert "language_model.model.embed_tokens.weight" in weight_map
    assert "vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias" in weight_map
    assert "multi_modal_projector.linear.weight" in weight_map
    found = accounts(tmp_path / "model")
    assert len(found.used) == len(weight_map)
    assert not found.missing and not found.unexpected and not found.tied
    for name in set(weight_map.values()):
        header = read_header(tmp_path / "model" / name)  # raises if sizes and offsets do not fit
        assert {entry["dtype"] for entry in header.values()} == {"BF16"}


def test_it_opens_in_transformers_and_both_agree(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_synthetic(tmp_path / "model", tiny_config())
    model, processor = load(tmp_path / "model", dtype="float32")
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    ).eval()
    from minipali.scenes import examples

    batch = processor(next(iter(examples().values())), "caption en")
    with torch.inference_mode():
        torch.testing.assert_close(
            model(**batch), theirs(**batch).logits, rtol=1e-4, atol=1e-5, check_dtype=False
        )


@torch.inference_mode()
def test_the_seed_decides_the_numbers_and_nothing_explodes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_synthetic(tmp_path / name, preset("small"), seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    model, processor = load(tmp_path / "a", dtype="float32")
    pixels = torch.rand(2, 3, 72, 72) * 2 - 1
    features = model.image_features(pixels)
    assert 0.2 < features.std() < 5
    x = model.language_model.embed(torch.randint(5, 600, (2, 9)))
    x = model.language_model.layers[0](x, rope_angles(torch.arange(9)[None], 48), None)
    assert 0.05 < x.std() < 5


def test_the_tokenizer_fills_up_to_the_published_size():
    processor_file = synthetic.tokenizer(preset("paligemma-3b-224"))
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=processor_file)
    assert pieces.GetPieceSize() == 256_000
    small = sentencepiece.SentencePieceProcessor(model_proto=synthetic.tokenizer(preset("small")))
    for text in ("caption en\n", "naïve 😀", "<unused700>"):
        assert pieces.EncodeAsIds(text) == small.EncodeAsIds(text)
        assert pieces.DecodeIds(pieces.EncodeAsIds(text)) == text


@pytest.mark.parametrize("side", [8, 16, 20])
def test_other_resolutions_load_by_config_alone(tmp_path, side):
    config = tiny_config()
    config = replace(config, vision=replace(config.vision, image_size=side))
    write_synthetic(tmp_path / "model", config)
    model, processor = load(tmp_path / "model")
    assert model.config.vision.num_patches == (side // 4) ** 2
    from minipali.asking import generate
    from minipali.scenes import examples

    assert isinstance(
        generate(model, processor, next(iter(examples().values())), "caption en", 2), str
    )


def test_a_full_disk_and_a_folder_of_something_else_leave_all_as_it_was(tmp_path, monkeypatch):
    other = tmp_path / "letters"
    other.mkdir()
    (other / "to_anna.txt").write_text("Dear Anna")
    with pytest.raises(WeightsError, match="must be new or an empty folder"):
        write_synthetic(other, preset("small"))
    monkeypatch.setattr(
        "minipali.saving.shutil.disk_usage", lambda path: type("Disk", (), {"free": 1000})
    )
    with pytest.raises(WeightsError, match="MB free for the weights"):
        write_synthetic(tmp_path / "new", preset("small"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters"]
    assert [path.name for path in other.iterdir()] == ["to_anna.txt"]


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "minipali.synthetic", str(tmp_path / "m")]
    done = subprocess.run([*command, "--preset", "small"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stdout
    assert load(tmp_path / "m")[0].config == preset("small")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    again = subprocess.run([*command, "--preset", "small"], capture_output=True, text=True)
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert again.stderr.startswith("minipali: error:") and "must be new" in again.stderr
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_what_a_killed_run_left_is_no_hindrance(tmp_path):
    (tmp_path / "m" / ".saving-abc" / "new").mkdir(parents=True)
    write_synthetic(tmp_path / "m", preset("small"))
    assert len(list(tmp_path.glob("m/.*"))) == 0 and load(tmp_path / "m")
