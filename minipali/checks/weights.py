"""Lesson 14: the bytes of a file, bfloat16, names of weights, and a model that is filled whole."""

import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake

HEAD, TABLE = "lm_head.weight", "language_model.embed_tokens.weight"
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CODES = {kind: code for code, kind in KINDS.items()}


# --- read_tensors ---------------------------------------------------------------------------------


class _File(bytes):
    """Bytes of a safetensors file that introduce themselves in messages."""

    def __str__(self) -> str:
        header = json.loads(self[8 : 8 + int.from_bytes(self[:8], "little")])
        header.pop("__metadata__", None)
        held = [f"{name} {entry['dtype']} {entry['shape']}" for name, entry in header.items()]
        return f"a file with {'; '.join(held)}"

    __repr__ = __str__


def file_of(tensors: dict[str, Tensor], listed: list[str], notes: dict | None = None) -> _File:
    """A safetensors file: numbers in the order of `tensors`, the header in that of `listed`."""
    entries, numbers = {}, b""
    for name, tensor in tensors.items():
        own = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
        entries[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(numbers), len(numbers) + len(own)],
        }
        numbers += own
    header = {"__metadata__": notes} if notes else {}
    text = json.dumps(header | {name: entries[name] for name in listed}).encode()
    text += b" " * (-len(text) % 8)
    return _File(len(text).to_bytes(8, "little") + text + numbers)


def _files() -> list[tuple]:
    random = torch.Generator().manual_seed(14)

    def given(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    first = {"norm": given(3), "table": given(4, 3).bfloat16(), "square": given(3, 3)}
    second = {"half": given(2, 5).half(), "scale": given(5).half(), "map": given(2, 5).bfloat16()}
    plain = file_of(first, list(first))
    # The header's order is free, and there may be notes in it.
    mixed = file_of(second, ["map", "half", "scale"], {"format": "pt"})
    return [(plain, name) for name in first] + [(mixed, name) for name in second]


def read_tensor(
    data: bytes,
    name: str,
    *,
    start: Callable[[int], int] = lambda length: 8 + length,
    kinds: dict[str, torch.dtype] = KINDS,
    shaped: Callable[[Tensor, list[int]], Tensor] = lambda flat, shape: flat.reshape(shape),
    swapped: bool = False,
    in_turn: bool = False,
) -> Tensor:
    """One tensor of a file. The reference, or with one thing changed."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    begin, end = header[name]["data_offsets"]
    if in_turn:
        sizes = {key: entry["data_offsets"] for key, entry in header.items()}
        before = list(sizes)[: list(sizes).index(name)]
        size = end - begin
        begin = sum(sizes[key][1] - sizes[key][0] for key in before)
        end = begin + size
    first = start(length)
    own = bytearray(data[first + begin : first + end])
    kind = kinds[header[name]["dtype"]]
    if swapped:
        own = torch.frombuffer(own, dtype=torch.uint8).reshape(-1, kind.itemsize).flip(1)
        return shaped(own.reshape(-1).view(kind), header[name]["shape"])
    return shaped(torch.frombuffer(own, dtype=kind), header[name]["shape"])


READ_TENSORS = Exercise(
    name="read_tensors",
    reference=read_tensor,
    cases=_files,
    axes="row column",
    checked=(
        "shape, dtype and every value of 6 tensors in 2 files: all three kinds of numbers, a square"
        " matrix, notes in the header, and a header in another order than the numbers"
    ),
    mistakes=(
        Mistake(
            "counted from the start of the file",
            partial(read_tensor, start=lambda length: 0),
            "The offsets are counted from the start of the file, so the numbers are made of the"
            " header's letters. They count from the end of the header: cut data[8 + length:] off"
            " first.",
        ),
        Mistake(
            "eight bytes forgotten",
            partial(read_tensor, start=lambda length: length),
            "Everything is read 8 bytes too early: the numbers begin after the header, and the"
            " header begins after the 8 bytes of its length. Start at 8 + length.",
        ),
        Mistake(
            "bfloat16 read as float16",
            partial(read_tensor, kinds=KINDS | {"BF16": torch.float16}),
            "BF16 is read as float16. Both have 16 bits, so every shape is right, and nearly every"
            " number is wrong. BF16 is torch.bfloat16.",
        ),
        Mistake(
            "float16 read as bfloat16",
            partial(read_tensor, kinds=KINDS | {"F16": torch.bfloat16}),
            "F16 is read as bfloat16. Both have 16 bits, but cut them at other places: F16 is"
            " torch.float16.",
        ),
        Mistake(
            "transposed",
            partial(read_tensor, shaped=lambda flat, shape: flat.reshape(shape).t().contiguous()),
            "The matrices are transposed. The file holds them as torch does, (out, in), row after"
            " row: reshape(shape), and nothing more. (Weights of JAX are (in, out); these are"
            " not.)",
        ),
        Mistake(
            "column by column",
            partial(
                read_tensor, shaped=lambda flat, shape: flat.reshape(shape[::-1]).t().contiguous()
            ),
            "The shape is right, but the numbers run down the columns. The file holds row after"
            " row: reshape(shape), without turning the shape round.",
        ),
        Mistake(
            "last byte first",
            partial(read_tensor, swapped=True),
            "The bytes of each number are read in the wrong order. The format is little-endian,"
            " like nearly every computer: torch.frombuffer reads it as it is.",
        ),
        Mistake(
            "in the header's order",
            partial(read_tensor, in_turn=True),
            "The tensors are read one after the other in the order of the header. Its order means"
            " nothing: `data_offsets` says where each one lies.",
        ),
    ),
    hints=(
        "Three parts: int.from_bytes(data[:8], 'little') is the length of the header; json.loads"
        " reads the header, data[8 : 8 + length]; the numbers are what is left.",
        "For each name but __metadata__: start, end = entry['data_offsets'], counted from the"
        " beginning of the numbers. Its bytes are numbers[start:end].",
        "torch.frombuffer(bytearray(...), dtype=...) makes a flat tensor of them, with"
        " torch.float32, torch.bfloat16 or torch.float16. Then .reshape(entry['shape']).",
    ),
)


# --- bfloat16_to_float ----------------------------------------------------------------------------


def bfloat16_to_float(bits: Tensor, *, places: int = 16) -> Tensor:
    """The reference, or with another shift: int16 -> float32 of the same shape."""
    return (bits.to(torch.int32) << places).view(torch.float32)


def _patterns() -> list[tuple]:
    random = torch.Generator().manual_seed(15)

    def given(size: float, *shape: int) -> tuple[Tensor]:
        return ((size * torch.randn(shape, generator=random)).bfloat16().view(torch.int16),)

    return [given(1.0, 3, 5), given(0.02, 4, 3), given(1e20, 2, 7), given(1e-3, 5, 2)]


def _by_formula(
    bits: Tensor,
    *,
    hidden: int = 128,
    bias: int = 127,
    signed: bool = True,
) -> Tensor:
    """bfloat16_to_float from sign, exponent and fraction, with one thing changed."""
    whole = bits.to(torch.int32) & 0xFFFF
    exponent, fraction = (whole >> 7) & 0xFF, whole & 0x7F
    size = (hidden + fraction).double() / 128 * 2.0 ** (exponent - bias).double()
    return (size * (1 - 2 * (whole >> 15)) if signed else size).float()


def _bytes_swapped(bits: Tensor) -> Tensor:
    whole = bits.to(torch.int32) & 0xFFFF
    return (((whole & 0xFF) << 8 | whole >> 8) << 16).view(torch.float32)


BFLOAT16_TO_FLOAT = Exercise(
    name="bfloat16_to_float",
    reference=bfloat16_to_float,
    cases=_patterns,
    axes="row column",
    checked=(
        "shape, dtype and every value for 59 bit patterns: numbers of both signs, large, small and"
        " in between"
    ),
    mistakes=(
        Mistake(
            "read as float16",
            lambda bits: bits.view(torch.float16).float(),
            "The bits are read as float16: 5 for the exponent and 10 for the fraction. bfloat16 has"
            " 8 and 7.",
        ),
        Mistake(
            "not shifted",
            partial(bfloat16_to_float, places=0),
            "The 16 bits stand at the right end, so they are the last bits of the fraction. They"
            " are the *first* half of a float32: shift them left by 16 places.",
        ),
        Mistake(
            "numbers instead of bits",
            lambda bits: bits.float(),
            "The patterns are converted as whole numbers, so 1.0, whose pattern is 16256, becomes"
            " 16256.0. You want the same bits under another name: .view(torch.float32) after the"
            " shift.",
        ),
        Mistake(
            "sign lost",
            partial(_by_formula, signed=False),
            "The negative numbers have become positive. The first of the 16 bits is the sign.",
        ),
        Mistake(
            "shifted by 15",
            partial(bfloat16_to_float, places=15),
            "The pattern is shifted by 15 places. It has 16 bits and must end up in the first half"
            " of 32: 16 places.",
        ),
        Mistake(
            "leading one forgotten",
            partial(_by_formula, hidden=0),
            "The leading one is missing. The fraction comes after it: (1 + fraction / 128) * 2 **"
            " (exponent - 127).",
        ),
        Mistake(
            "exponent of float16",
            partial(_by_formula, bias=15),
            "The exponent is counted from 15, as in float16. bfloat16 counts from 127, as float32"
            " does.",
        ),
        Mistake(
            "bytes exchanged",
            _bytes_swapped,
            "The two bytes of each number are exchanged. The pattern that you get is in the right"
            " order already.",
        ),
    ),
    hints=(
        "A bfloat16 is the first half of a float32: the same sign, the same exponent, and the first"
        " 7 bits of the fraction. What is missing at the end are zeros.",
        "Room first: bits.to(torch.int32). Then 16 places to the left: << 16.",
        "The 32 bits are right now, and torch still calls them a whole number."
        " .view(torch.float32) gives the same bits another name; .float() would convert the"
        " number.",
    ),
)


# --- our_name -------------------------------------------------------------------------------------

NO_PLACE = "no place"
BEGINNINGS = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "language_model.",
    "language_model.": "language_model.",
    "lm_head.": "lm_head.",
    "vision_tower.vision_model.encoder.": "vision_tower.",
    "vision_tower.vision_model.": "vision_tower.",
    "vision_tower.encoder.": "vision_tower.",
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.linear.": "multi_modal_projector.",
}
HEADS = ("language_model.lm_head.", "lm_head.")
KEYS = (
    "vision_tower.vision_model.encoder.layers.11.mlp.fc1.bias",
    "language_model.model.layers.3.self_attn.q_proj.weight",
    "vision_tower.vision_model.embeddings.position_embedding.weight",
    "multi_modal_projector.linear.bias",
    "language_model.lm_head.weight",
    "model.language_model.layers.0.input_layernorm.weight",
    "model.vision_tower.vision_model.encoder.layers.4.layer_norm2.weight",
    "model.vision_tower.vision_model.post_layernorm.bias",
    "model.multi_modal_projector.linear.weight",
    "lm_head.weight",
    "model.vision_tower.encoder.layers.2.layer_norm1.weight",
    "vision_tower.encoder.layers.0.self_attn.out_proj.bias",
    "vision_tower.embeddings.patch_embedding.weight",
    "model.layers.0.mlp.up_proj.weight",  # Gemma alone
    "vision_model.encoder.layers.0.mlp.fc1.weight",  # SigLIP alone
    "text_model.encoder.layers.0.mlp.fc1.weight",
)


def our_name(
    key: str,
    *,
    beginnings: dict[str, str] = BEGINNINGS,
    strip: Callable[[str], str] = lambda key: key.removeprefix("model."),
    otherwise: Callable[[str], str] = lambda key: NO_PLACE,
) -> str:
    """The name of a key, or "no place". The reference, or with one thing changed."""
    short = strip(key)
    for theirs, ours in beginnings.items():
        if short.startswith(theirs):
            return ours + short.removeprefix(theirs)
    return otherwise(key)


def _without(*left_out: str) -> dict[str, str]:
    return {theirs: ours for theirs, ours in BEGINNINGS.items() if theirs not in left_out}


def _lone_decoder(key: str) -> str:
    short = key.removeprefix("model.")
    return f"language_model.{short}" if short.startswith("layers.") else NO_PLACE


OUR_NAME = Exercise(
    name="our_name",
    reference=our_name,
    cases=lambda: [(key,) for key in KEYS],
    axes="",
    checked=(
        f"the names for {len(KEYS)} keys in all four layouts, with the head, and of files that hold"
        " another model"
    ),
    mistakes=(
        Mistake(
            "published layout alone",
            partial(
                our_name,
                beginnings=_without("language_model.", "vision_tower.encoder.", "vision_tower."),
                strip=lambda key: key,
            ),
            "The published layout is read, and no other. Files that newer versions of transformers"
            " have written begin with `model.`, and in the newest ones `vision_model.` is gone.",
        ),
        Mistake(
            "model. removed everywhere",
            partial(our_name, strip=lambda key: key.replace("model.", "")),
            "`model.` is removed wherever it stands, also inside `language_model.` and"
            " `vision_model.`. Remove it at the beginning only: key.removeprefix('model.').",
        ),
        Mistake(
            "encoder left in the newest layout",
            partial(our_name, beginnings=_without("vision_tower.encoder.")),
            "In the newest layout, without `vision_model.`, the word `encoder.` stays in the name."
            " Our tower has its layers right below it: vision_tower.layers.0...",
        ),
        Mistake(
            "vision_model left",
            partial(
                our_name,
                beginnings=_without(
                    "vision_tower.vision_model.encoder.", "vision_tower.vision_model."
                ),
            ),
            "`vision_model.` stays in the name. It is one more box in their model, which ours has"
            " not.",
        ),
        Mistake(
            "linear left",
            partial(
                our_name,
                beginnings=_without("multi_modal_projector.linear.")
                | {"multi_modal_projector.": "multi_modal_projector."},
            ),
            "The projector keeps `linear.` in its name. Ours is the linear map itself:"
            " multi_modal_projector.weight.",
        ),
        Mistake(
            "anything passes",
            partial(our_name, otherwise=lambda key: key),
            "A key that belongs to no part of PaliGemma comes back as it is. Return None for it, so"
            " that the filling can refuse it. A wrong file should not look like a right one.",
        ),
        Mistake(
            "another model accepted",
            partial(our_name, otherwise=_lone_decoder),
            "Keys of Gemma alone (`model.layers.0...`) are taken for the decoder of PaliGemma. They"
            " are another model's: its file has no vision tower, and its numbers are not those that"
            " were trained with pictures. Return None.",
        ),
        Mistake(
            "head taken for the table",
            partial(
                our_name,
                beginnings=BEGINNINGS | dict.fromkeys(HEADS, "language_model.embed_tokens."),
            ),
            "The head gets the name of the table. Then two keys have one name, and the later one"
            " wins without a word. Call it lm_head.weight; `fill` compares the two.",
        ),
    ),
    hints=(
        "First key.removeprefix('model.'). Three of the four layouts are then two: with and without"
        " `vision_model.` in the vision tower.",
        "What is left begins with one of a few words. Make a table of their beginnings and ours,"
        " the longer ones first, and go through it with key.startswith(theirs).",
        "Beginnings: language_model.lm_head. and lm_head. (ours: lm_head.); language_model.model."
        " and language_model. (language_model.); vision_tower. alone, with encoder., with"
        " vision_model. and with both (vision_tower.); multi_modal_projector.linear."
        " (multi_modal_projector.). If none fits, return None.",
    ),
)


# --- fill -----------------------------------------------------------------------------------------

NORM, MAP = "language_model.norm.weight", "multi_modal_projector.weight"
SHAPES = {NORM: (3,), TABLE: (4, 3), MAP: (3, 2)}


class _Shown(dict):
    """A dict of a case. It cannot be changed, and shows shapes in place of numbers."""

    def _refuse(self, *_, **__):
        raise TypeError("the dict that your function was given must stay as it is: given ="
                        " dict(tensors) makes one of your own")  # fmt: skip

    pop = popitem = clear = update = setdefault = __setitem__ = __delitem__ = __ior__ = _refuse

    def __repr__(self) -> str:
        parts = [(name.split(".")[-2], getattr(x, "shape", x)) for name, x in self.items()]
        return " + ".join(f"{name} {tuple(shape)}" for name, shape in parts)

    __str__ = __repr__


def _fillings() -> list[tuple]:
    random = torch.Generator().manual_seed(16)
    right = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    other = right[TABLE].clone()
    other[1, 2] += 0.5
    cases = (
        right,
        right | {HEAD: right[TABLE].clone()},
        {name: right[name] for name in (TABLE, NORM)},
        right | {"language_model.layers.0.pre_feedforward_layernorm.weight": right[NORM]},
        right | {MAP: right[MAP].T.contiguous()},
        right | {NORM: torch.randn(4, generator=random)},
        right | {HEAD: other},
    )
    return [(_Shown(SHAPES), _Shown(tensors)) for tensors in cases]


def outcome(shapes: dict, filled: dict, tensors: dict) -> str:
    """What the exercise's notebook makes of a result, so that the check can compare it."""
    words = []
    for name in sorted(filled):
        same = name in tensors and torch.equal(filled[name], tensors[name])
        words.append(f"{name} {'as given' if same else 'not as given'}")
    return ", ".join(words)


def fill(
    shapes: dict,
    tensors: dict,
    *,
    missing: str = "refuse",
    unexpected: str = "refuse",
    shape: str = "refuse",
    head: str = "compare",
) -> str:
    """What `fill` does, in words. The reference, or with one thing changed."""
    given, filled = dict(tensors), {}
    stored = None if head in ("keep", "refuse") else given.pop(HEAD, None)
    places = set(shapes) | ({HEAD} if head == "keep" else set())
    if unexpected == "refuse" and set(given) - places:
        return "ValueError"
    for name, want in shapes.items():
        if name not in given:
            if missing == "refuse":
                return "ValueError"
            if missing == "make up":
                filled[name] = torch.zeros(want)
            continue
        filled[name] = given[name]
        if tuple(given[name].shape) != tuple(want) and shape != "ignore":
            turned = given[name].t()
            if shape == "refuse" or tuple(turned.shape) != tuple(want):
                return "ValueError"
            filled[name] = turned
    if head == "keep" and HEAD in given:
        filled[HEAD] = given[HEAD]
    if head == "compare" and stored is not None and not torch.equal(stored, given[TABLE]):
        return "ValueError"
    return outcome(shapes, filled, tensors)


FILL = Exercise(
    name="fill",
    reference=fill,
    cases=_fillings,
    axes="",
    checked=(
        "what comes out of 7 sets of tensors: all there; with a stored head; one missing; one too"
        " many; one transposed; one too long; and with a head that is not the table (what your"
        " error says is not checked: read it yourself)"
    ),
    mistakes=(
        Mistake(
            "missing left random",
            partial(fill, missing="make up"),
            "A missing weight is made up. The model then answers with a part of it random, and"
            " often you would not notice. Raise ValueError, and name what is missing.",
        ),
        Mistake(
            "missing left out",
            partial(fill, missing="skip"),
            "A missing weight is left out, and nobody is told. Every name in `shapes` must be"
            " filled, else raise ValueError.",
        ),
        Mistake(
            "unexpected dropped",
            partial(fill, unexpected="drop"),
            "A tensor that has no place is dropped. It was a norm of PaliGemma 2: the file is"
            " another model's, and only this key says so. Raise ValueError.",
        ),
        Mistake(
            "shape not compared",
            partial(fill, shape="ignore"),
            "The shapes are not compared. A weight of a wrong shape belongs to another model or"
            " another layout. Raise ValueError, with both shapes.",
        ),
        Mistake(
            "transposed to fit",
            partial(fill, shape="turn"),
            "A matrix that does not fit is transposed or reshaped until it does. That is a guess,"
            " and for square matrices there is nothing to guess from. Raise ValueError.",
        ),
        Mistake(
            "head left untied",
            partial(fill, head="keep"),
            "The stored head is kept as a weight of its own. Our head *is* the table: compare the"
            " two, and return the table alone.",
        ),
        Mistake(
            "stored head refused",
            partial(fill, head="refuse"),
            "A file that stores the head as well is refused, though its head equals the table. It"
            " is the same model, saved twice over: compare, and leave the head out.",
        ),
        Mistake(
            "head not compared",
            partial(fill, head="drop"),
            "The stored head is dropped without a look. If it differs from the table, the model was"
            " trained with a head of its own, and ours would give other answers. Raise ValueError.",
        ),
    ),
    hints=(
        "Work on a copy: given = dict(tensors). Take the head out of it first: head ="
        " given.pop(HEAD, None). What is left must have exactly the names in `shapes`.",
        "shapes.keys() - given.keys() are the missing names, given.keys() - shapes.keys() the"
        " unexpected ones. If there are any: raise ValueError(f'...{sorted(missing)}').",
        "Then for each name compare tuple(given[name].shape) with tuple(shapes[name]). Last, if"
        " there was a head: torch.equal(head, given[TABLE]) must be true. Return `given`.",
    ),
)

EXERCISES = (READ_TENSORS, BFLOAT16_TO_FLOAT, OUR_NAME, FILL)
