"""Lesson 14. Weights: a folder of files becomes a model, and every key is accounted for.

A model folder is laid out as the published ones: `config.json`, `tokenizer.model`, and the weights
in `model.safetensors`, or in several shards with a `model.safetensors.index.json`.
"""

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minipali import config as configs
from minipali import narrow
from minipali.config import PaliGemmaConfig
from minipali.hub import download
from minipali.paligemma import PaliGemma
from minipali.tokenizer_files import TOKENIZER_FILES, processor_files
from minipali.tokens import Processor

SMALL = Path(__file__).parent / "assets" / "small"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # a larger model is saved in shards of at most this size
HEADER_BYTES = 100_000_000  # the format's own limit

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
    """What a safetensors file holds, without its numbers.

    The file is 8 bytes (the header's length, little-endian), the header (JSON), then the numbers.
    Returns, by key, `dtype` ("F32", ...), `shape`, and `data_offsets`: first byte and the byte
    after the last, counted from the end of the header.
    Raises WeightsError for a damaged or cut-off file, and for one of another format.
    """
    file = Path(file)
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            whole = len(start) == 8 and 2 <= length <= min(HEADER_BYTES, size - 8)
            content = stream.read(length) if whole else start + stream.read(32)
    except OSError as error:
        raise WeightsError(f"{file} must be a readable file: {error}") from error
    if not whole:
        raise WeightsError(
            f"{file} must be a whole safetensors file: {_what(content, length, size)}"
        )
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        for entry in header.values():
            begin, end = entry["data_offsets"]
            numbers = 1
            for side in entry["shape"]:
                if type(side) is not int or side < 0:
                    raise ValueError(f"a shape of {entry['shape']}")
                numbers *= side
            itemsize = DTYPES[entry["dtype"]].itemsize if entry["dtype"] in DTYPES else None
            if itemsize is not None and numbers * itemsize != end - begin:
                raise ValueError(f"{end - begin} bytes for the shape {entry['shape']}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{file} must begin with a safetensors header, found {error!r} in it: the file is"
            " damaged; download or save it again"
        ) from error
    # The numbers must fill the file without gaps, so that nothing in it goes unaccounted for.
    expected = 0
    for begin, end in spans:
        if begin != expected or end < begin:
            raise WeightsError(
                f"{file} must hold its weights one after the other, found one from byte {begin}"
                f" after one that ends at {expected}: the file is damaged; download it again"
            )
        expected = end
    if size != 8 + length + expected:
        raise WeightsError(
            f"{file} must have {8 + length + expected:,} bytes by its header, found {size:,}: the"
            " download was cut off or the file damaged; download it again"
        )
    return header


def _what(content: bytes, length: int, size: int) -> str:
    """What a file is that has no safetensors header, and what to do about it."""
    if content.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, the weights are elsewhere; run `git lfs pull`"
    if content.startswith((b"\x80", b"PK\x03\x04")):
        return (
            "this looks like a pickle (torch.save), which can run any code when it is opened and"
            " is therefore not read; save the weights with safetensors"
        )
    return (
        f"its first 8 bytes announce a header of {length:,} bytes, and the file has {size:,}; it"
        " is cut off or of another format, download it again"
    )


def _shards(folder: Path) -> dict[str, dict]:
    """The headers of all weight files of a folder, by file name."""
    # Both may be there after a careless copy; transformers, too, takes the single file then.
    if (folder / SINGLE).exists():
        return {SINGLE: read_header(folder / SINGLE)}
    index = folder / INDEX
    if not index.exists():
        raise WeightsError(f"{folder} must hold {SINGLE} or {INDEX}, found {_contents(folder)}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
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
                f"{index} must name .safetensors files next to it, found {name!r}: do not use this"
                " folder unless you know who made it"
            )
        if not (folder / name).exists():
            raise WeightsError(
                f"{folder / name} must exist, as {INDEX} names it, but it is missing: download"
                " all shards into one folder"
            )
    shards = {name: read_header(folder / name) for name in sorted(by_file)}
    for name, header in shards.items():
        for keys, where, elsewhere in (
            (by_file[name] - set(header), INDEX, name),
            (set(header) - by_file[name], name, INDEX),
        ):
            if keys:
                raise WeightsError(
                    f"{folder / name} and {INDEX} must agree, found {_some(keys)} in {where} and"
                    f" not in {elsewhere}: the files belong to different models or versions;"
                    " download all of them again"
                )
    return shards


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in names):
        return (
            f"{_some(names)}: pickled weights are not read, because opening a pickle can run any"
            " code; get the safetensors version of this model, or convert it with"
            " transformers' save_pretrained"
        )
    if not names:
        return "nothing: give the folder of a downloaded or saved model"
    return f"{_some(names)}: download the missing file, or give the folder of a whole model"


def _some(names) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


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
    return _account(folder, _empty_model(configs.read(folder / "config.json")))


def _account(folder: Path, model: PaliGemma) -> Accounts:
    result, places = Accounts(), model.state_dict()
    for file, header in _shards(folder).items():
        for key, entry in header.items():
            if key in result.entries:
                raise WeightsError(f"{folder / file} must not repeat {key!r}, which an earlier has")
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
                    f"{folder / file} must hold each weight once, found {key!r} and"
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
            f"{folder / file} must hold PaliGemma 1 weights only, found {key!r}, for which the"
            f" model of config.json has no place ({result}): these are another model's weights, or"
            " another config"
        )
    if result.missing:
        raise WeightsError(
            f"{folder} must hold all weights, missing are"
            f" {_some(map(published_name, result.missing))} ({result}): download the files again,"
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
    A processor without fast bfloat16 computes in float32 with weights of 16 bits (minipali.narrow).
    Raises WeightsError, ConfigError or HubError, naming the file and the key, before any model is
    returned; MemoryError if the weights do not fit.
    """
    wanted = _dtype(dtype)
    folder = _find(source)
    config = configs.read(folder / "config.json")
    processor = _processor(folder, config)
    model = _empty_model(config)
    found = _account(folder, model)
    _check(found, folder, model)

    stored = DTYPES[found.entries[found.used[EMBEDDING][1]]["dtype"]]
    on_cpu = device is None or torch.device(device).type == "cpu"
    if on_cpu:
        _check_memory(model, wanted or stored)
    _check_tied(folder, found)
    weights = _read(folder, found, wanted, device)
    model.load_state_dict(weights, strict=True, assign=True)
    if on_cpu and narrow.is_slow(wanted or stored):
        narrow.widen(model)
    return model.eval(), processor


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    wanted = DTYPE_NAMES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if wanted is not None and wanted not in DTYPE_NAMES.values():
        raise ValueError(f"dtype must be None or one of {', '.join(DTYPE_NAMES)}, found {dtype!r}")
    return wanted


def _find(source: str | Path) -> Path:
    if source == "small":
        return SMALL
    if Path(source).exists():
        return _model_folder(source)
    hub_id = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", str(source))
    if isinstance(source, Path) or not hub_id:
        raise WeightsError(
            f"source must be 'small', a folder, or a hub id 'owner/name', found {str(source)!r},"
            " where there is no folder: check the path"
        )
    return download(hub_id[1], hub_id[2])


def _model_folder(folder: str | Path) -> Path:
    folder = SMALL if folder == "small" else Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder} must be the folder of a model, with config.json in it")
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} must hold config.json, found {_contents(folder)}")
    return folder


def _empty_model(config: PaliGemmaConfig) -> PaliGemma:
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
        with _open(folder / file) as stored:
            for key, name in keys.items():
                weights[name] = stored.get_tensor(key).to(dtype=dtype, device=device)
    return weights


def _check_tied(folder: Path, found: Accounts) -> None:
    """A stored head must be the embedding, number by number: the model has no other."""
    embedding_file, embedding_key = found.used[EMBEDDING]
    for key, file in found.tied.items():
        with _open(folder / file) as head, _open(folder / embedding_file) as embedding:
            equal = torch.equal(head.get_tensor(key), embedding.get_tensor(embedding_key))
        if not equal:
            raise WeightsError(
                f"{folder / file}: {key!r} must equal {embedding_key!r}, because the model uses the"
                " embedding as its head, but it differs: this model was trained with a head of its"
                " own and cannot be loaded"
            )


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} must be a readable safetensors file: {error}") from error


def _processor(folder: Path, config: PaliGemmaConfig) -> Processor:
    file = folder / "tokenizer.model"
    if not file.is_file():
        raise WeightsError(
            f"{folder} must hold tokenizer.model, found {_contents(folder)} (tokenizer.json alone"
            " is not enough)"
        )
    try:
        processor = Processor(file, config)
    except ValueError as error:
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
    raise MemoryError(
        f"the weights must fit into memory: they take {needed / 1e9:.1f} GB as"
        f" {str(dtype).removeprefix('torch.')}, {free / 1e9:.1f} GB are free; {step}"
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


# --- saving --------------------------------------------------------------------------------------


def save(model: PaliGemma, processor: Processor, folder: str | Path) -> None:
    """Write a model folder that `load` and transformers open.

    The files are written next to the folder and moved there when all are whole. A model in the
    folder is replaced, and files that belong to no model (a README) stay.
    Raises WeightsError if the folder holds something else, the model is not a plain PaliGemma, or
    the disk is full.
    """
    weights = _weights_to_save(model)
    if processor.config != model.config:
        raise WeightsError("model and processor must have the same config: load them together")
    sizes = {key: weight.nbytes for key, weight in weights.items()}
    with finished(folder, sum(sizes.values())) as part:
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        write_beside(part, processor, dtype)
        for name, keys in write_index(part, sizes, SHARD_BYTES).items():
            shard = {key: weights[key].contiguous() for key in keys}
            save_file(shard, part / name, metadata={"format": "pt"})
            shutil.copymode(part / "config.json", part / name)  # save_file's own is owner-only


@contextlib.contextmanager
def finished(folder: str | Path, size: int):
    """A new folder to write a model into, which takes the place of `folder` when all is written.

    If anything fails, the old folder stays as it was. Raises WeightsError if it holds no model of
    ours, or if fewer than `size` bytes are free.
    """
    folder = Path(folder).resolve()
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise WeightsError(
            f"{folder.parent} must have {size / 1e9:.1f} GB free for the weights, found"
            f" {free / 1e9:.1f} GB: choose another disk"
        )
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        _replace(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _weights_to_save(model: PaliGemma) -> dict[str, Tensor]:
    """By published key, checked against a fresh model of the same config."""
    weights, places = model.state_dict(), _empty_model(model.config).state_dict()
    if different := set(weights) ^ set(places):
        raise WeightsError(
            f"the model must have PaliGemma's own weights, found a difference in"
            f" {_some(different)}: merge LoRA weights or undo quantization before saving"
        )
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES.values()):
        raise WeightsError(
            f"all weights must have one dtype of {', '.join(DTYPE_NAMES)}, found {dtypes}: convert"
            " the model, e.g. with model.float()"
        )
    for name, weight in weights.items():
        if weight.shape != places[name].shape or weight.is_meta:
            raise WeightsError(
                f"{name} must have the shape {tuple(places[name].shape)} and hold numbers, found"
                f" {tuple(weight.shape)} on {weight.device}"
            )
    return {published_name(name): weight for name, weight in weights.items()}


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if found["model_type"] == "paligemma":
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise WeightsError(
        f"{folder} must be new, empty, or the folder of a PaliGemma model, which is replaced; it"
        " holds something else: choose another folder"
    )


def write_beside(part: Path, processor: Processor, dtype: str) -> None:
    """Everything in a model folder but the weights."""
    texts = {"config.json": configs.to_dict(processor.config, dtype)}
    texts |= processor_files(processor)
    for name, content in texts.items():
        _write_json(part / name, content)
    source = processor.tokenizer_file.parent
    shutil.copyfile(processor.tokenizer_file, part / "tokenizer.model")
    # A tokenizer.json that came with the model stays as it was.
    if (source / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, part / name)


def write_index(part: Path, sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Divide keys among files of at most `limit` bytes, and write the index if it takes several.

    sizes: key -> bytes. Returns file name -> its keys, in order; the files are for the caller.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = [SINGLE] if count == 1 else names
    files = dict(zip(names, shards, strict=True))
    if count > 1:
        weight_map = {key: name for name, keys in files.items() for key in keys}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(part / INDEX, index)
    return files


def _write_json(file: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")


def _replace(folder: Path, part: Path) -> None:
    """Put the finished folder in the old one's place, and the old one's other files into it."""
    if not folder.exists():
        part.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        folder.rename(old)
    except OSError as error:  # Windows, while a loaded model holds the files
        raise WeightsError(f"{folder} is in use: save to another folder ({error})") from error
    part.rename(folder)
    for path in old.iterdir():
        weights = path.name.startswith("model") and ".safetensors" in path.name
        if not weights and not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(old)


if __name__ == "__main__":
    from minipali.synthetic import main

    main()
