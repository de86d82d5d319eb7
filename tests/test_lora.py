"""Lesson 18: LoRA layers by hand, and adapters as files against `peft` itself."""

import json
import shutil

import pytest
import torch
from conftest import change_json, fresh_model, make_batch, make_theirs, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import minipali
from minipali import cli
from minipali.adapters import fingerprint, load_adapter, save_adapter
from minipali.lora import LoRA, add_lora, find_targets, lora_layers, merge_lora, remove_lora
from minipali.quantization import quantize
from minipali.weights import WeightsError

TARGETS = ["q_proj", "down_proj", "fc1", "multi_modal_projector"]


def learned(targets=("q_proj", "down_proj", "fc1", "multi_modal_projector"), **how):
    """The tiny model with LoRA layers whose B is no longer zero."""
    torch.manual_seed(0)
    model = fresh_model()
    add_lora(model, list(targets), **how)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.05)
    return model


def logits_of(model, **how):
    with torch.no_grad():
        return model(**make_batch([(4, 3), (2, 5)]), **how)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Do not change it; `copied` is a copy to damage."""
    folder = tmp_path_factory.mktemp("adapter") / "learned"
    save_adapter(learned(rank=3, alpha=7.0), folder, "the/base")
    return folder


@pytest.fixture
def copied(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copied")


# --- the layer -----------------------------------------------------------------------------------


def test_the_layer_by_hand():
    base = nn.Linear(2, 2)
    layer = LoRA(base, rank=1, alpha=4.0)
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        base.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.lora_A.copy_(torch.tensor([[1.0, 1.0]]))
        layer.lora_B.copy_(torch.tensor([[0.25], [-1.0]]))
    x = torch.tensor([[3.0, 1.0]])
    # W x + b = (3.5, 2); A x = 4; B (A x) = (1, -4), times 4 / 1.
    torch.testing.assert_close(layer(x), torch.tensor([[7.5, -14.0]]))
    torch.testing.assert_close(layer.merged()(x), torch.tensor([[7.5, -14.0]]))


def test_it_starts_as_the_model_was_and_learns_in_its_own_numbers_alone():
    model, before = fresh_model(), fresh_model()
    add_lora(model, TARGETS)
    assert torch.equal(logits_of(model), logits_of(before))
    model(**make_batch([(4, 3)])).square().mean().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient and all(".lora_" in name for name in with_gradient)
    for layer in lora_layers(model).values():
        assert layer.lora_B.grad.abs().sum() > 0  # so A learns from the second step on
        assert layer.lora_A.abs().sum() > 0


def test_the_size_of_the_change_does_not_depend_on_the_rank():
    assert LoRA(nn.Linear(4, 4), rank=2, alpha=16.0).scale == 8
    assert LoRA(nn.Linear(4, 4), rank=16, alpha=16.0).scale == 1
    with pytest.raises(ValueError, match="rank must be 1 or more, found 0"):
        LoRA(nn.Linear(4, 4), rank=0, alpha=1.0)


def test_merged_it_answers_the_same_and_is_a_plain_model(tmp_path, processor):
    model = learned()
    wanted = logits_of(model)
    assert (wanted - logits_of(fresh_model())).abs().max() > 0.1  # it has learned something
    with pytest.raises(WeightsError, match="merge LoRA weights"):
        minipali.save(model, processor, tmp_path / "model")
    merge_lora(model)
    torch.testing.assert_close(logits_of(model), wanted, atol=1e-4, rtol=0)
    assert list(model.state_dict()) == list(fresh_model().state_dict())
    minipali.save(model, processor, tmp_path / "model")
    assert same(minipali.load(tmp_path / "model")[0], model)


def test_taken_off_the_model_is_as_it_was():
    model = learned()
    remove_lora(model)
    assert same(model, fresh_model())


def test_narrow_weights_get_changes_in_float32():
    model = learned().bfloat16()
    for layer in lora_layers(model).values():
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.float(), layer.lora_B.float()
    layer = next(iter(lora_layers(model).values()))
    assert layer(torch.ones(1, 20, dtype=torch.bfloat16)).dtype == torch.bfloat16
    merge_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_targets_are_ends_of_names():
    model = fresh_model()
    both = find_targets(model, ["q_proj"])
    assert len(both) == 5 and {name.split(".")[0] for name in both} == {
        "vision_tower", "language_model"
    }  # fmt: skip
    assert find_targets(model, ["multi_modal_projector"]) == ["multi_modal_projector"]
    assert find_targets(model, ["layers.2.mlp.up_proj"]) == ["language_model.layers.2.mlp.up_proj"]
    with pytest.raises(ValueError, match=r"such as down_proj, fc1, .*; found 'proj'"):
        find_targets(model, ["q_proj", "proj"])
    with pytest.raises(ValueError, match="no LoRA layers yet"):
        add_lora(learned(), ["q_proj"])


# --- files, and peft -----------------------------------------------------------------------------


def with_peft(**how):
    """transformers' tiny model with the same weights, in a copy that may be changed."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    from transformers import PaliGemmaForConditionalGeneration as Theirs

    shared = make_theirs()
    theirs = Theirs(shared.config).eval()
    theirs.load_state_dict(shared.state_dict())
    return peft, theirs


# peft asks transformers in a way that newer ones call by another name.
older = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@older
@pytest.mark.parametrize("targets", [TARGETS, ["language_model.layers.1.self_attn.q_proj"]])
def test_peft_opens_ours_and_gives_the_same_logits(targets, tmp_path):
    model = learned(targets, rank=3, alpha=7.0)
    save_adapter(model, tmp_path, "somewhere")
    peft, theirs = with_peft()
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    batch = make_batch([(4, 3), (2, 5)])
    # Without labels transformers knows no suffix: both take all as prefix.
    batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
    with torch.no_grad():
        wanted, found = theirs(**batch).logits, model(**batch)
        plain = fresh_model()(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=0)
    assert (found - plain)[real].abs().max() > 0.01


@older
@pytest.mark.parametrize(
    "how",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*language_model.*\.(q_proj|up_proj)", "use_rslora": True},
        {"target_modules": ["linear", "fc2", "o_proj"], "rank_pattern": {"o_proj": 2}},
    ],
    ids=["ends", "pattern", "ranks"],
)
def test_we_open_those_of_peft(how, tmp_path):
    peft, theirs = with_peft()
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=6, **how)).eval()
    torch.manual_seed(1)
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.05)
    theirs.save_pretrained(tmp_path)
    model = fresh_model()
    load_adapter(model, tmp_path)
    batch = make_batch([(4, 3), (2, 5)])
    batch["token_type_ids"] = torch.zeros_like(batch["token_type_ids"])
    with torch.no_grad():
        wanted, found = theirs(**batch).logits, model(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=0)


def test_what_is_saved_comes_back(adapter):
    model = fresh_model()
    load_adapter(model, adapter)
    assert torch.equal(logits_of(model), logits_of(learned(rank=3, alpha=7.0)))
    assert {p.requires_grad for n, p in model.named_parameters() if ".lora_" not in n} == {False}
    about = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["target_modules"] == ["down_proj", "fc1", "linear", "q_proj"]
    assert about["base_model_name_or_path"] == "the/base"
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip


def test_load_and_the_command_take_an_adapter(saved, adapter, tmp_path, capsys):
    model, _ = minipali.load(saved, adapter=adapter)
    wanted = logits_of(model)
    assert cli.main(["merge", str(adapter), "--model", str(saved), "--output", str(tmp_path)]) == 0
    merged, _ = minipali.load(tmp_path)
    torch.testing.assert_close(logits_of(merged), wanted, atol=1e-4, rtol=0)
    assert (wanted - logits_of(minipali.load(saved)[0])).abs().max() > 0.1
    capsys.readouterr()
    arguments = ["ask", "--adapter", str(adapter), "--model", str(saved), "--max-tokens", "2"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0
    assert "answer" in capsys.readouterr().out
    assert cli.main([*arguments, "--device", "cpu", "--int8"]) == 0
    assert "answer" in capsys.readouterr().out


def test_int8_takes_what_is_merged():
    model = learned()
    wanted = logits_of(model)
    merge_lora(model)
    assert (logits_of(quantize(model)) - wanted).abs().mean() < 0.1 * wanted.abs().mean()


# --- bad ends ------------------------------------------------------------------------------------


def refused(folder, match, model=None):
    model = model or fresh_model()
    with pytest.raises(WeightsError, match=match):
        load_adapter(model, folder)
    assert not lora_layers(model)


def change_tensors(folder, change, metadata=None):
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() if metadata is None else metadata
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    save_file(change(tensors) or tensors, file, metadata)


def test_a_folder_that_holds_no_adapter(copied, saved, tmp_path):
    refused(tmp_path / "missing", "must be the folder of an adapter, .* check the path")
    refused(saved, "a whole model: give it as the model itself")
    with pytest.raises(WeightsError, match="this is an adapter, load the model that it was"):
        minipali.load(copied)
    (copied / "adapter_model.safetensors").unlink()
    refused(copied, "must hold adapter_model.safetensors, and it is missing: save")
    (copied / "adapter_model.bin").touch()
    refused(copied, "pickled weights are not read")


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_file_that_is_cut_off(copied, size):
    file = copied / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(copied, "must be a whole safetensors file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda about: about.pop("lora_alpha") and None, "with peft_type and lora_alpha"),
        (lambda about: about.update(lora_alpha="much"), "with peft_type and lora_alpha"),
        (lambda about: about.update(lora_alpha=0), "a lora_alpha above 0"),
        (lambda about: [about], "with peft_type and lora_alpha"),
        (lambda about: about.update(peft_type="IA3"), "found 'IA3'"),
        (lambda about: about.update(use_dora=True), "plain LoRA adapter, found 'use_dora'"),
        (lambda about: about.update(modules_to_save=["lm_head"]), "found 'modules_to_save'"),
        (lambda about: about.update(bias="all"), "found 'bias'"),
        (lambda about: about.update(alpha_pattern={"q_proj": 3}), "found 'alpha_pattern'"),
        (lambda about: about.update(init_lora_weights="pissa"), "found 'init_lora_weights'"),
    ],
)
def test_a_description_that_cannot_be_followed(copied, change, match):
    change_json(copied / "adapter_config.json", change)
    refused(copied, match)


def test_a_description_that_is_no_json(copied):
    (copied / "adapter_config.json").write_text("{", encoding="utf-8")
    refused(copied, "it is damaged, save the adapter again")


A_KEY = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def nan(tensors):
    tensors[A_KEY][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (nan, "that are no numbers: the training went wrong"),
        (lambda t: t.pop(A_KEY) is None, "only one of them for 'language_model.layers.0.self"),
        (
            lambda t: t.update({A_KEY: torch.zeros(3, 99)}),
            r"A and B must have the shapes \(3, 24\)",
        ),
        (lambda t: t.update({A_KEY: torch.zeros(3, 24).int()}), "must hold numbers of F32"),
        (lambda t: t.update({"lm_head.lora_A.weight": torch.zeros(3, 24)}), "found 'lm_head.lora"),
        (
            lambda t: {key.replace("layers.0", "layers.9"): value for key, value in t.items()},
            "no linear layer 'language_model.layers.9.*trained on, 'the/base'",
        ),
        (lambda t: {"x": torch.zeros(1)}, "must hold lora_A and lora_B of linear layers"),
    ],
)
def test_weights_that_do_not_belong(copied, change, match):
    change_tensors(copied, change)
    refused(copied, match)


def test_a_base_of_other_weights(adapter, copied):
    other = fresh_model()
    with torch.no_grad():
        other.language_model.norm.weight += 0.1
    refused(adapter, "trained on other weights of the same sizes: .* 'the/base'", other)
    change_tensors(copied, lambda tensors: None, metadata={"format": "pt"})
    load_adapter(other, copied)  # peft does not say what weights it was trained on


def test_the_same_base_in_another_dtype(adapter):
    model = fresh_model()
    wanted = fingerprint(model)
    assert fingerprint(model.bfloat16()) == wanted
    load_adapter(model, adapter)
    assert fingerprint(model) == wanted
    load_adapter(fresh_model().half(), adapter)


def test_saving_needs_layers_of_one_kind_and_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="found 0 layers: call"):
        save_adapter(fresh_model(), tmp_path, "base")
    model = learned()
    next(iter(lora_layers(model).values())).alpha = 3.0
    with pytest.raises(WeightsError, match="one rank and one alpha"):
        save_adapter(model, tmp_path, "base")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="must be a folder that can be written"):
        save_adapter(learned(), tmp_path / "file", "base")


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(copied, monkeypatch):
    def full(tensors, file, metadata):
        file.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    monkeypatch.setattr("minipali.adapters.save_file", full)
    with pytest.raises(WeightsError, match="the disk must have room: .*No space left"):
        save_adapter(learned(), copied, "another")
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
