"""Lesson 14. Weights: a folder of files becomes a model, and every key is accounted for.

A model folder is laid out as the published ones: `config.json`, `tokenizer.model`, and the weights
in `model.safetensors`, or in several shards with a `model.safetensors.index.json`.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minipali import config as configs
from minipali import narrow
from minipali.config import PaliGemmaConfig, short
from minipali.hub import download
from minipali.paligemma import PaliGemma
from minipali.tokenizer_files import TOKENIZER_FILES
from minipali.tokens import Processor

SMALL = Path(__file__).parent / "assets" / "small"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SAVING = ".saving-"  # beginning of the hidden folders into which minipali.saving writes

# What the files call a dtype, for those that the model can compute in.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Beginnings of keys in the files, and ours. A leading "model." is dropped first: transformers has
# moved the parts around between versions, and all of its layouts are in use.
PREFIXES = (
    ("language_model.model.", "language_model."),
    ("language_model.", "language_model."),
    ("vision_tower.vision_model.encoder.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.encoder.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
    ("multi_modal_projector.linear.", "multi_modal_projector."),
)
EMBEDDING = "language_model.embed_tokens.weight"
HEADS = ("lm_head.weight", "language_model.lm_head.weight")

# Keys of older files that carry nothing: numbers which follow from the sizes, and the pooling head
# that SigLIP has and PaliGemma does not use.
UNUSED = re.compile(
    r"vision_tower\.(vision_model\.)?(embeddings\.position_ids|head\..+)"
    r"|language_model\.(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)


class WeightsError(ValueError):
    """A model folder that cannot be loaded, or a model that cannot be saved."""


# --- reading a safetensors file ------------------------------------------------------------------


def read_header(file: str | Path) -> dict[str, dict]:
    """What a safetensors file holds, without its numbers: key -> `dtype` ("F32", ...) and `shape`.

    Raises WeightsError for a damaged or cut-off file, and for one of another format.
    """
    with open_weights(Path(file)) as stored:
        slices = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118
        return {
            key: {"dtype": one.get_dtype(), "shape": one.get_shape()} for key, one in slices.items()
        }


def open_weights(file: Path):
    """A safetensors file, to be used in a `with`. Raises WeightsError if it is none."""
    try:
        configs.check_regular(file)
        return safe_open(file, framework="pt")
    except OSError as error:
        raise WeightsError(f"{file} must be a readable file: {error}") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{file} must be a whole safetensors file: {_what(file, error)}"
        ) from error


def _what(file: Path, error: SafetensorError) -> str:
    """What a file is that the library refuses, and what to do about it."""
    with open(file, "rb") as stream:
        start = stream.read(32)
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, the weights are elsewhere; run `git lfs pull`"
    if start.startswith((b"\x80", b"PK\x03\x04")):
        return (
            "this looks like a pickle (torch.save), which can run any code when it is opened and"
            " is therefore not read; save the weights with safetensors"
        )
    length, size = int.from_bytes(start[:8], "little"), file.stat().st_size
    if length > size - 8:
        return (
            f"its first 8 bytes announce a header of {length:,} bytes, and the file has {size:,};"
            " it is cut off or of another format, download it again"
        )
    return f"{str(error):.300}; it is cut off or damaged, download or save it again"


def _shards(folder: Path) -> dict[str, dict]:
    """The headers of all weight files of a folder, by file name."""
    # Both may be there after a careless copy; transformers, too, takes the single file then.
    if os.path.lexists(folder / SINGLE):
        return {SINGLE: read_header(folder / SINGLE)}
    index = folder / INDEX
    if not os.path.lexists(index):
        raise WeightsError(f"{folder} must hold {SINGLE} or {INDEX}, found {_contents(folder)}")
    try:
        weight_map = json.loads(configs.content(index))["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError("weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{index} must be a JSON object with a weight_map from keys to file names, found"
            f" {error!r}: download the file again"
        ) from error
    by_file: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        by_file.setdefault(name, set()).add(key)
    for name in by_file:
        # The names come from whoever wrote the index: a path could lead to any file.
        if re.search(r"[/\\:\0]", name) or not name.endswith(".safetensors"):
            raise WeightsError(
                f"{index} must name .safetensors files next to it, found {short(name)}: do not use"
                " this folder unless you know who made it"
            )
        if not os.path.exists(folder / name):  # so, too, if the name is too long for a file
            raise WeightsError(
                f"{folder} must hold the shard {short(name)}, which {INDEX} names, but it is"
                " missing: download all shards into one folder"
            )
    shards = {name: read_header(folder / name) for name in sorted(by_file)}
    for name, header in shards.items():
        for keys, where, elsewhere in (
            (by_file[name] - set(header), INDEX, name),
            (set(header) - by_file[name], name, INDEX),
        ):
            if keys:
                raise WeightsError(
                    f"{folder / name} and {INDEX} must agree, found {a_few(keys)} in {where} and"
                    f" not in {elsewhere}: the files belong to different models or versions;"
                    " download all of them again"
                )
    return shards


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in names):
        return (
            f"{a_few(names)}: pickled weights are not read, because opening a pickle can run any"
            " code; get the safetensors version of this model, or convert it with"
            " transformers' save_pretrained"
        )
    if "adapter_config.json" in names:
        return (
            f"{a_few(names)}: this is an adapter, load the model that it was trained on and name"
            " this folder as the adapter"
        )
    if not names:
        return "nothing: give the folder of a downloaded or saved model"
    return f"{a_few(names)}: download the missing file, or give the folder of a whole model"


def a_few(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(short, names[:3])) + more


# --- accounting for the keys ---------------------------------------------------------------------


@dataclass
class Accounts:
    """What became of each key in a folder's weight files.

    used: our name -> (file, key); tied: keys of a stored head, which must equal the embedding;
    unused: known keys that carry nothing; missing: our names that no key fills; unexpected: keys
    that the model has no place for. A folder is loaded only if the last two are empty.
    """

    used: dict[str, tuple[str, str]] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)  # key -> file
    unused: dict[str, str] = field(default_factory=dict)  # key -> file
    missing: list[str] = field(default_factory=list)
    unexpected: dict[str, str] = field(default_factory=dict)  # key -> file
    entries: dict[str, dict] = field(default_factory=dict, repr=False)  # key -> dtype, shape

    def __str__(self) -> str:
        keys = len(self.used) + len(self.tied) + len(self.unused) + len(self.unexpected)
        return (
            f"{keys} keys: {len(self.used)} used, {len(self.tied)} tied, {len(self.unused)} unused,"
            f" {len(self.unexpected)} unexpected; {len(self.missing)} missing"
        )


def our_name(key: str) -> str | None:
    """A key of any known layout -> the model's own name of the weight, or None."""
    key = key.removeprefix("model.")
    for theirs, ours in PREFIXES:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None


def published_name(name: str) -> str:
    """The model's own name of a weight -> its key in the published files."""
    for ours, published in (
        ("language_model.", "language_model.model."),
        ("vision_tower.layers.", "vision_tower.vision_model.encoder.layers."),
        ("vision_tower.", "vision_tower.vision_model."),
        ("multi_modal_projector.", "multi_modal_projector.linear."),
    ):
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    raise WeightsError(f"{name!r} must be a weight of PaliGemma: it is in no part of the model")


def accounts(folder: str | Path) -> Accounts:
    """Match the keys of a folder's weight files with the model its config describes.

    Reads headers alone. Raises WeightsError for damaged files; a key without a place, or a place
    without a key, is listed, not raised.
    """
    folder = _model_folder(folder)
    return _account(folder, empty_model(configs.read(folder / "config.json")))


def _account(folder: Path, model: PaliGemma) -> Accounts:
    result, places = Accounts(), model.state_dict()
    for file, header in _shards(folder).items():
        for key, entry in header.items():
            if key in result.entries:
                raise WeightsError(
                    f"{folder / file} must not repeat {short(key)}, which an earlier has"
                )
            result.entries[key] = entry
            name = our_name(key)
            if key.removeprefix("model.") in HEADS:
                result.tied[key] = file
            elif UNUSED.fullmatch(key.removeprefix("model.")):
                result.unused[key] = file
            elif name not in places:
                result.unexpected[key] = file
            elif name in result.used:
                raise WeightsError(
                    f"{folder / file} must hold each weight once, found {short(key)} and"
                    f" {result.used[name][1]!r}, which are the same weight in two layouts"
                )
            else:
                result.used[name] = (file, key)
    result.missing = [name for name in places if name not in result.used]
    return result


def _check(result: Accounts, folder: Path, model: PaliGemma) -> None:
    """Raise WeightsError unless each place has one key of its shape, and all have one dtype."""
    if result.unexpected:
        key, file = next(iter(result.unexpected.items()))
        raise WeightsError(
            f"{folder / file} must hold weights of PaliGemma only, found {short(key)}, for which"
            f" the model of config.json has no place ({result}): these are another model's"
            " weights, or another config"
        )
    if result.missing:
        raise WeightsError(
            f"{folder} must hold all weights, missing are"
            f" {a_few(map(published_name, result.missing))} ({result}): download the files again,"
            " or correct config.json if it describes a larger model"
        )
    stored = {}
    places = model.state_dict()
    wanted = {key: name for name, (_, key) in result.used.items()}
    wanted |= dict.fromkeys(result.tied, EMBEDDING)
    files = {key: file for file, key in result.used.values()} | result.tied
    for key, name in wanted.items():
        entry, where = result.entries[key], f"{folder / files[key]}: {key!r}"
        if entry["dtype"] not in DTYPES:
            raise WeightsError(
                f"{where} must be of dtype {', '.join(DTYPES)}, found {entry['dtype']}: get the"
                " weights in one of these (quantized files are not supported)"
            )
        stored[entry["dtype"]] = where
        if entry["shape"] != list(places[name].shape):
            raise WeightsError(
                f"{where} must have the shape {list(places[name].shape)} by config.json, found"
                f" {entry['shape']}: the weights and the config are of different models"
            )
    if len(stored) > 1:
        found = "; ".join(f"{dtype} in {where}" for dtype, where in stored.items())
        raise WeightsError(
            f"all weights must have one dtype, found {found}: convert the file first"
        )


# --- loading -------------------------------------------------------------------------------------


def load(
    source: str | Path = "small",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[PaliGemma, Processor]:
    """A model, in eval mode, and the processor that goes with it.

    source: "small", the model that comes with this package; or a folder; or a hub id
    "owner/name", if wanted with a revision: "google/paligemma-3b-pt-224@bfloat16".
    dtype: "float32", "bfloat16" or "float16"; None keeps what the files hold.
    device: where the weights go; None is the CPU, where they stay in the files and are paged in
    when they are used, unless the dtype is converted. So leave the files alone while it is in use.
    There weights of 16 bits are multiplied as is fastest on this processor, which is measured
    once: without fast bfloat16 the model computes in float32 with them (minipali.narrow).
    Raises WeightsError, ConfigError or HubError, naming the file and the key, before any model is
    returned; MemoryError if the weights do not fit.
    """
    wanted = _dtype(dtype)
    _check_device(device)
    folder = _find(source)
    seen = _identity(folder)
    config = configs.read(folder / "config.json")
    processor = _processor(folder, config)
    model = empty_model(config)
    found = _account(folder, model)
    _check(found, folder, model)

    stored = DTYPES[found.entries[found.used[EMBEDDING][1]]["dtype"]]
    on_cpu = device is None or torch.device(device).type == "cpu"
    if on_cpu:
        _check_memory(model, wanted or stored)
    _check_tied(folder, found)
    weights = _read(folder, found, wanted, device)
    if _identity(folder) != seen:
        raise WeightsError(f"{folder} must not change while it is read: load it again")
    model.load_state_dict(weights, strict=True, assign=True)
    if on_cpu:
        narrow.suit(model)
    return model.eval(), processor


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    wanted = DTYPE_NAMES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if wanted is not None and wanted not in DTYPE_NAMES.values():
        raise ValueError(f"dtype must be None or one of {', '.join(DTYPE_NAMES)}, found {dtype!r}")
    return wanted


def _check_device(device: str | torch.device | None) -> None:
    try:
        usable = device is None or not torch.empty(0, device=device).is_meta
        reason = "there, weights have no numbers"
    except Exception as error:  # torch raises several kinds, and some of them are asserts
        usable, reason = False, str(error).partition("\n")[0][:200]
    if not usable:
        raise ValueError(
            f"device must be one that torch can use on this computer, found {device!r} ({reason}):"
            " leave it out to use the CPU"
        )


def path_of(place: str | Path, what: str) -> Path:
    """A path, or a WeightsError that calls it `what`."""
    try:
        if place != "" and "\0" not in str(place):
            return Path(place)
    except TypeError:
        pass
    raise WeightsError(f"{what} must be a path, found {short(place)}")


def _find(source: str | Path) -> Path:
    if source == "small":
        return SMALL
    if os.path.exists(path_of(source, "source, if it is not 'small' or a hub id 'owner/name',")):
        return _model_folder(source)
    hub_id = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", str(source))
    if isinstance(source, Path) or not hub_id:
        raise WeightsError(
            f"source must be 'small', a folder, or a hub id 'owner/name', found"
            f" {short(str(source))}, where there is no folder: check the path"
        )
    return download(hub_id[1], hub_id[2])


def _model_folder(folder: str | Path) -> Path:
    folder = SMALL if folder == "small" else path_of(folder, "the model's folder")
    if not os.path.isdir(folder):
        raise WeightsError(f"{folder} must be the folder of a model, with config.json in it")
    if broken_off(folder):
        raise WeightsError(
            f"{folder} must hold config.json, but a save into it is still running or was killed: if"
            f" it was killed, call minipali.saving.recover({str(folder)!r}), which brings back the"
            " model that was there before, or save again"
        )
    if not os.path.lexists(folder / "config.json"):
        raise WeightsError(f"{folder} must hold config.json, found {_contents(folder)}")
    return folder


def _identity(folder: Path) -> tuple[int, int] | None:
    """Another when another model has been saved into the folder."""
    try:
        found = os.stat(folder / "config.json")
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def broken_off(folder: Path) -> bool:
    """Whether a save into the folder is not finished and there is no model to be read meanwhile."""
    there = os.path.isdir(folder) and not os.path.lexists(folder / "config.json")
    return there and any(folder.glob(f"{SAVING}*/new"))


def empty_model(config: PaliGemmaConfig) -> PaliGemma:
    """The model without numbers: its weights are on the meta device, which takes no memory."""
    with torch.device("meta"), _NoStartValues():
        return PaliGemma(config)


class _NoStartValues(TorchFunctionMode):
    """Leaves out the drawing of numbers, for which torch would load its compiler here: 2 s."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs)


def _read(folder: Path, found: Accounts, dtype, device) -> dict[str, Tensor]:
    """The weights by our names. Mapped into memory; one at a time is copied where it must be."""
    by_file: dict[str, dict[str, str]] = {}
    for name, (file, key) in found.used.items():
        by_file.setdefault(file, {})[key] = name
    weights = {}
    for file, keys in by_file.items():
        with open_weights(folder / file) as stored:
            for key, name in keys.items():
                weights[name] = stored.get_tensor(key).to(dtype=dtype, device=device)
    return weights


def _check_tied(folder: Path, found: Accounts) -> None:
    """A stored head must be the embedding, number by number: the model has no other."""
    embedding_file, embedding_key = found.used[EMBEDDING]
    for key, file in found.tied.items():
        with (
            open_weights(folder / file) as head,
            open_weights(folder / embedding_file) as embedding,
        ):
            equal = torch.equal(head.get_tensor(key), embedding.get_tensor(embedding_key))
        if not equal:
            raise WeightsError(
                f"{folder / file}: {key!r} must equal {embedding_key!r}, because the model uses the"
                " embedding as its head, but it differs: this model was trained with a head of its"
                " own and cannot be loaded"
            )


def _processor(folder: Path, config: PaliGemmaConfig) -> Processor:
    file = folder / "tokenizer.model"
    if not os.path.lexists(file):
        raise WeightsError(
            f"{folder} must hold tokenizer.model, found {_contents(folder)} (tokenizer.json alone"
            " is not enough)"
        )
    try:
        configs.check_regular(file)
        processor = Processor(file, config)
        # Kept for `save`: the folder may be gone by then.
        if os.path.lexists(folder / "tokenizer.json"):
            for name in TOKENIZER_FILES:
                if os.path.lexists(folder / name):
                    processor.beside[name] = configs.content(folder / name)
    except (ValueError, OSError) as error:
        raise WeightsError(f"{folder}: {error}") from error
    pieces: sentencepiece.SentencePieceProcessor = processor.sentencepiece
    # Locations and segments follow the text pieces. Some tokenizer files list them, too.
    first, size = processor.first_location, pieces.GetPieceSize()
    if size != first and not (size > first and pieces.IdToPiece(first) == "<loc0000>"):
        raise WeightsError(
            f"{file} must hold {first} pieces of text (image_token_index"
            f" {config.image_token_id} in config.json, minus {config.image_token_id - first}"
            f" locations and segments), found {size}: the tokenizer is another model's"
        )
    for name in ("bos", "eos", "pad"):
        given, own = getattr(config, f"{name}_token_id"), getattr(pieces, f"{name}_id")()
        if given != own:
            raise WeightsError(
                f"{file} must have {name}_token_id {given}, as config.json says, found {own}: the"
                " tokenizer is another model's"
            )
    return processor


def _check_memory(model: PaliGemma, dtype: torch.dtype) -> None:
    needed = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    free = _free_memory()
    if free is None or needed <= free:
        return
    step = (
        'load with dtype="bfloat16", which takes half of that'
        if dtype == torch.float32 and needed <= 2 * free
        else "close other programs or use a computer with more memory"
    )
    from tqdm import tqdm  # here, because answering needs no progress bar

    raise MemoryError(
        f"the weights must fit into memory: they take {tqdm.format_sizeof(needed, 'B')}"
        f" as {str(dtype).removeprefix('torch.')}, {tqdm.format_sizeof(free, 'B')} are free; {step}"
    )


def _free_memory() -> int | None:
    """Bytes that a program may still take; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:  # not what is free, but what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
