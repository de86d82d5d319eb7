"""Adapters: LoRA layers as files in PEFT's own layout, written, and laid onto the model again.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. `peft` opens ours, and we open
those that it wrote for PaliGemma.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from minipali import config as configs
from minipali import published, variants, weights
from minipali.config import short
from minipali.gemma import Gemma
from minipali.gguf_tokenizers import Tokenizer
from minipali.lora import LoRA, lora_layers, merge_lora
from minipali.paligemma import PaliGemma
from minipali.quantization import quantize
from minipali.tokens import Processor
from minipali.weights import DTYPES, WeightsError, a_few, open_weights, our_name, path_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base"  # in the file's metadata, where other tools pass over it: fingerprint of the base

# Beginnings of our layers' names, and what transformers 5 calls them in memory: PEFT's keys.
THEIRS = (
    ("language_model.", "model.language_model."),
    ("vision_tower.layers.", "model.vision_tower.encoder.layers."),
    ("multi_modal_projector", "model.multi_modal_projector.linear"),
)
PREFIX = "base_model.model."

# Ways to begin after which an adapter belongs to its base as it is; others change the base first.
STARTS = (True, False, "gaussian", "eva", "orthogonal", None)


def load(
    source: str | Path = "small",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    adapter: str | Path | None = None,
) -> tuple[PaliGemma, Processor] | tuple[Gemma, Tokenizer]:
    """A model, in eval mode, and the processor that goes with it: `minipali.weights.load`.

    source: "small", a folder, or a hub id; dtype, device: see there. adapter: a folder with a LoRA
    adapter that was trained on this model, see `load_adapter`; `minipali.lora.merge_lora` makes a
    plain model of the two. dtype can also be "int8" or "int4": the language model is rounded to
    these, with the adapter merged, and only answers then (`minipali.quantization.quantize`).

    source can also be "smollm2", "gemma3" or a GGUF file: a language model in float32 and its
    tokenizer (`minipali.variants.load`). "graft" is the small model's tower joined to SmolLM2
    (`minipali.graft.load`), in float32.
    """
    if str(source) == "graft":
        from minipali import graft  # lesson 21, which comes after this module's

        if (dtype, adapter) != (None, None):
            raise ValueError("the graft is read in float32: leave dtype and adapter out")
        model, processor = graft.load()
        return model.to(device), processor
    if str(source) in published.PUBLISHED or str(source).endswith(".gguf"):
        if (dtype, device, adapter) != (None, None, None):
            raise ValueError(
                "a language model alone is read in float32 on the CPU, without an adapter: leave"
                " dtype, device and adapter out"
            )
        return variants.load(source)
    bits = {"int8": 8, "int4": 4}.get(dtype) if isinstance(dtype, str) else None
    model, processor = weights.load(source, None if bits else dtype, device)
    if adapter is not None:
        load_adapter(model, adapter)
    if bits:
        merge_lora(model)
        quantize(model, bits)
    return model, processor


def fingerprint(model: nn.Module) -> str:
    """A digest of the weights, the same in float32 and bfloat16, with and without LoRA layers.

    Of 16 numbers from each tensor, so that a large model need not be read whole: another training
    moves all of them.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        step = max(1, tensor.numel() // 16)
        sample = tensor.detach().flatten()[::step][:16].cpu().bfloat16()
        digest.update(name.replace(".base.", ".").encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


# --- writing -------------------------------------------------------------------------------------


def save_adapter(model: nn.Module, folder: str | Path, base: str) -> None:
    """Write the LoRA layers of a model into `folder`, which is made if it is not there.

    base: what to load first, as the user named it. An adapter in the folder is replaced when the
    new one is whole; other files stay. Raises WeightsError if there are no LoRA layers, they differ
    in rank or alpha, or the folder cannot be written.
    """
    layers = lora_layers(model)
    if len({(layer.rank, layer.alpha) for layer in layers.values()}) != 1:
        raise WeightsError(
            f"an adapter must have LoRA layers of one rank and one alpha, found {len(layers)}"
            " layers: call minipali.lora.add_lora first"
        )
    one = next(iter(layers.values()))
    about = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": one.rank,
        "lora_alpha": one.alpha,
        "target_modules": _targets(model),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "task_type": None,
        "inference_mode": True,
    }
    tensors = {
        f"{PREFIX}{their_name(name)}.{part}.weight": getattr(layer, part).detach().cpu().clone()
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    folder = path_of(folder, "the folder to save into")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=weights.SAVING, dir=folder) as part:
            new = Path(part)
            text = json.dumps(about, indent=2) + "\n"
            (new / CONFIG).write_text(text, encoding="utf-8", newline="\n")
            save_file(tensors, new / WEIGHTS, {"format": "pt", BASE: fingerprint(model)})
            os.chmod(new / WEIGHTS, (new / CONFIG).stat().st_mode)  # save_file's is owner-only
            # Without a config nothing is read: a kill in between leaves no mixture of two adapters.
            (folder / CONFIG).unlink(missing_ok=True)
            os.replace(new / WEIGHTS, folder / WEIGHTS)
            os.replace(new / CONFIG, folder / CONFIG)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{folder} must be a folder that can be written, and the disk must have room: {error}"
        ) from error


def their_name(name: str) -> str:
    """The name of a linear layer of ours in transformers 5."""
    for ours, theirs in THEIRS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise WeightsError(f"{name!r} must be a linear layer of PaliGemma: it is in no part of it")


def _targets(model: nn.Module) -> list[str]:
    """The ends of the names of all LoRA layers, or the whole names where these are not enough."""
    chosen = {their_name(name) for name in lora_layers(model)}
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    every = {their_name(name.removesuffix(".base")) for name in linear}
    ends = {name.rpartition(".")[2] for name in chosen}
    reached = {name for name in every if name.rpartition(".")[2] in ends}
    return sorted(ends if reached == chosen else chosen)


# --- reading -------------------------------------------------------------------------------------


def load_adapter(model: PaliGemma, folder: str | Path) -> None:
    """Put the LoRA layers of an adapter, ours or PEFT's, onto a model without any.

    Raises WeightsError, before the model is touched, if the folder holds no whole LoRA adapter, it
    is for a model of other sizes, or for one of other weights (which only our own adapters tell).
    """
    folder = path_of(folder, "the adapter's folder")
    about = _read_config(folder)
    alpha = float(about["lora_alpha"])
    base = short(str(about.get("base_model_name_or_path")))
    if lora_layers(model):
        raise WeightsError("the model must have no LoRA layers yet: merge or remove them first")

    layers: dict[str, LoRA] = {}
    for name, (a, b) in _read_weights(folder).items():
        try:
            place = model.get_submodule(name) if name else None
        except AttributeError:
            place = None
        if not isinstance(place, nn.Linear):
            raise WeightsError(
                f"{folder / WEIGHTS} must be an adapter for this model, which has no linear layer"
                f" {short(name)}: load the model that it was trained on, {base}"
            )
        rank = len(a)
        wanted = (rank, place.in_features), (place.out_features, rank)
        if (tuple(a.shape), tuple(b.shape)) != wanted:
            raise WeightsError(
                f"{folder / WEIGHTS} must be an adapter for this model: at {name} A and B must have"
                f" the shapes {wanted[0]} and {wanted[1]}, found {tuple(a.shape)} and"
                f" {tuple(b.shape)}; load the model that it was trained on, {base}"
            )
        layer = LoRA(place, rank, alpha * rank**0.5 if about.get("use_rslora") else alpha)
        layer.lora_A.data.copy_(a)
        layer.lora_B.data.copy_(b)
        layers[name] = layer
    _check_base(model, folder, base)
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer.eval())


def _read_config(folder: Path) -> dict:
    file = folder / CONFIG
    if not os.path.lexists(file):
        whole = os.path.lexists(folder / "config.json")
        raise WeightsError(
            f"{folder} must be the folder of an adapter, with {CONFIG} in it; found "
            + ("a whole model: give it as the model itself" if whole else "none: check the path")
        )
    try:
        about = json.loads(configs.content(file))
        fits = about["peft_type"] == "LORA" and 0 < float(about["lora_alpha"]) < float("inf")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"{file} must be a JSON object with peft_type and lora_alpha, found"
            f" {short(repr(error))}: it is damaged, save the adapter again"
        ) from error
    if not fits:
        raise WeightsError(
            f"{file} must have peft_type LORA and a lora_alpha above 0, found"
            f" {short(str(about['peft_type']))} and {short(str(about['lora_alpha']))}: other kinds"
            " of adapters are not read"
        )
    # What PEFT offers beside plain LoRA, and would change the result.
    unknown = {
        name: value
        for name, value in about.items()
        if value
        and (
            (name.startswith("use_") and name != "use_rslora")
            or (name.endswith("_config") and name != "eva_config")
            or name in ("alpha_pattern", "fan_in_fan_out", "layer_replication", "lora_bias")
            or name in ("modules_to_save", "target_parameters", "trainable_token_indices")
            or (name == "bias" and value != "none")
        )
    }
    if about.get("init_lora_weights") not in STARTS:
        unknown["init_lora_weights"] = about["init_lora_weights"]
    if unknown:
        raise WeightsError(
            f"{file} must describe a plain LoRA adapter, found {a_few(unknown)}, which is not read:"
            " merge the adapter with peft's merge_and_unload, and load the whole model"
        )
    return about


def _read_weights(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """By our name of each layer its A and B, in float32."""
    file = folder / WEIGHTS
    if not os.path.lexists(file):
        pickled = os.path.lexists(folder / "adapter_model.bin")
        raise WeightsError(
            f"{folder} must hold {WEIGHTS}, and it is missing: "
            + ("pickled weights are not read, " if pickled else "")
            + "save the adapter again"
        )
    found: dict[str, dict[str, Tensor]] = {}
    with open_weights(file) as stored:
        for key in stored.keys():  # noqa: SIM118
            stem, _, part = key.removesuffix(".weight").rpartition(".")
            name = our_name(f"{stem.removeprefix(PREFIX)}.weight")
            tensor = stored.get_tensor(key)
            if part not in ("lora_A", "lora_B") or name is None or tensor.ndim != 2:
                raise WeightsError(
                    f"{file} must hold lora_A and lora_B of linear layers of PaliGemma, found"
                    f" {short(key)} of shape {tuple(tensor.shape)}: this is another kind of"
                    " adapter, or another model's"
                )
            if tensor.dtype not in DTYPES.values() or not tensor.isfinite().all():
                raise WeightsError(
                    f"{file}: {short(key)} must hold numbers of {', '.join(DTYPES)}, found"
                    f" {tensor.dtype}"
                    + ("" if tensor.dtype not in DTYPES.values() else " that are no numbers")
                    + ": the training went wrong or the file is damaged"
                )
            found.setdefault(name.removesuffix(".weight"), {})[part] = tensor.float()
    alone = [name for name, parts in found.items() if len(parts) != 2]
    if alone or not found:
        raise WeightsError(
            f"{file} must hold lora_A and lora_B of each layer, found "
            + (f"only one of them for {a_few(alone)}" if alone else "nothing")
            + ": it is damaged, save the adapter again"
        )
    return {name: (parts["lora_A"], parts["lora_B"]) for name, parts in found.items()}


def _check_base(model: PaliGemma, folder: Path, base: str) -> None:
    with open_weights(folder / WEIGHTS) as stored:
        wanted = (stored.metadata() or {}).get(BASE)
    # float16 has no room for the smallest numbers, so that their digest differs.
    if wanted is None or model.language_model.norm.weight.dtype == torch.float16:
        return
    if fingerprint(model) != wanted:
        raise WeightsError(
            f"{folder} must be an adapter for this model, and it was trained on other weights of"
            f" the same sizes: load what it was trained on, {base}; if that has changed since,"
            " train the adapter again"
        )
