"""Lesson 14: the bytes of a file, bfloat16, names of weights, and a model that is filled whole."""

import json
import math
from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake

HEAD, TABLE = "lm_head.weight", "language_model.embed_tokens.weight"
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CODES = {kind: code for code, kind in KINDS.items()}


# --- read_tensors ---------------------------------------------------------------------------------


class _File(bytes):
    """Bytes of a safetensors file that introduce themselves in messages."""

    asked = ""

    def __str__(self) -> str:
        header = json.loads(self[8 : 8 + int.from_bytes(self[:8], "little")])
        header.pop("__metadata__", None)
        held = [f"{name} {entry['dtype']} {entry['shape']}" for name, entry in header.items()]
        return f"a file with {'; '.join(held)}" + (f". This is its {self.asked}" * bool(self.asked))

    __repr__ = __str__


LONG = 2**16 + 8  # a header whose length needs three bytes; the first two of them say 8
LAST = 3  # spaces at a header's end


def file_of(
    tensors: dict[str, Tensor], listed: list[str], notes: dict | None = None, least: int = 0
) -> _File:
    """A safetensors file: numbers in the order of `tensors`, the header in that of `listed`.

    least: the header has so many bytes at least.
    """
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
    # An odd number of eights: whoever reads in blocks of 16 or more does not end where it ends.
    # Less than 8 spaces come last: whoever cuts it 8 bytes too early has no JSON.
    text += b" " * LAST
    more = max(0, least - len(text))
    text = text[:1] + b" " * (more + (8 - len(text) - more) % 16) + text[1:]
    return _File(len(text).to_bytes(8, "little") + text + numbers)


def _files() -> list[tuple]:
    random = torch.Generator().manual_seed(14)

    def given(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    first = {"norm": given(3), "table": given(4, 3).bfloat16(), "square": given(3, 3)}
    second = {"half": given(2, 5).half(), "scale": given(5).half(), "map": given(2, 5).bfloat16()}
    third = {"empty": given(0, 3), "one": given(), "deep": given(2, 3, 2)}
    fourth = {"far": given(3)}
    plain = file_of(first, list(first))
    # The header's order is free, and there may be notes in it. It is longer than 255 bytes.
    mixed = file_of(second, ["map", "half", "scale"], {"format": "pt", "notes": "..." * 50})
    odd = file_of(third, ["deep", "one", "empty"])
    cases = []
    far = file_of(fourth, list(fourth), least=LONG)
    for whole, tensors in ((plain, first), (mixed, second), (odd, third), (far, fourth)):
        for name in tensors:
            data = _File(whole)
            data.asked = name
            cases.append((data, name))
    return cases


def _numbers(own: bytes, kind: torch.dtype) -> Tensor:
    # torch.frombuffer takes no empty buffer.
    return torch.frombuffer(bytearray(own), dtype=kind) if own else torch.empty(0, dtype=kind)


def _never_empty(own: bytes, kind: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(own), dtype=kind)


_EMPTY = (
    "This tensor has no numbers, and torch.frombuffer takes no empty buffer. Make it another way:"
    " torch.empty(shape, dtype=...)."
)
_COUNT = (
    "The second offset is taken for a number of bytes. It is the place after the last byte, as in a"
    " slice."
)


def _as_stored(flat: Tensor, shape: list[int]) -> Tensor:
    return flat.reshape(shape)


def read_tensors(
    data: bytes,
    *,
    length_of: Callable[[bytes], int] = lambda first: int.from_bytes(first, "little"),
    cut: Callable[[bytes, int], bytes] = lambda data, length: data[8 : 8 + length],
    start: Callable[[int], int] = lambda length: 8 + length,
    notes: str = "",
    pop: Callable[[dict], object] = lambda header: header.pop("__metadata__", None),
    kinds: dict[str, torch.dtype] = KINDS,
    stop: Callable[[int, int], int] = lambda begin, end: end,
    shaped: Callable[[Tensor, list[int]], Tensor] = _as_stored,
    swapped: bool = False,
    in_turn: bool = False,
    numbers: Callable[[bytes, torch.dtype], Tensor] = _numbers,
    finish: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    keep: Callable[[Tensor], bool] = lambda tensor: True,
) -> dict[str, Tensor]:
    """All tensors of a file. The reference, or with one thing changed.

    notes: what is read first of each entry, where the notes are one of them.
    """
    length = length_of(data[:8])
    header = json.loads(cut(data, length))
    if not notes:
        pop(header)
    tensors, place = {}, 0
    for name, entry in header.items():
        _ = entry[notes or "dtype"]
        kind, (begin, end) = kinds[entry["dtype"]], entry["data_offsets"]
        if in_turn:
            begin, end = place, place + end - begin
        place = end
        first = start(length)
        own = data[first + begin : first + stop(begin, end)]
        if swapped and own:
            units = torch.frombuffer(bytearray(own), dtype=torch.uint8).reshape(-1, kind.itemsize)
            own = bytes(units.flip(1).reshape(-1).tolist())
        tensors[name] = finish(shaped(numbers(own, kind), entry["shape"]))
    return {name: tensor for name, tensor in tensors.items() if keep(tensor)}


def _by_count(data: bytes, cut: bool) -> dict[str, Tensor]:
    """All tensors, each cut out by torch.frombuffer itself."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    given, before = (bytearray(data[start:]), 0) if cut else (bytearray(data), start)
    return {
        name: torch.frombuffer(
            given,
            dtype=KINDS[entry["dtype"]],
            offset=before + entry["data_offsets"][0],
            count=math.prod(entry["shape"]),
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }


# Results in place of errors that tell which mistake it was; their types show in the message.
_NO_JSON = type("header that is no JSON", (str,), {})
_NO_KEY = type("KeyError", (str,), {})


def _of_file(read_tensors: Callable) -> Callable:
    """What is tried: one tensor of the dict. Errors that say which mistake it was are results."""

    def tried(data, name):
        try:
            tensors = read_tensors(data)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return _NO_JSON()
        except KeyError as error:
            if error.args[0] not in {*CODES.values(), "dtype", "shape", "data_offsets"}:
                raise
            return _NO_KEY(error.args[0])
        if not isinstance(tensors, dict):
            found = type(tensors).__name__
            raise TypeError(f"the function must return a dict of name -> tensor, found {found}")
        if name not in tensors:
            raise KeyError(f"the dict has no {name}")
        return tensors[name]

    return tried


_HEADER = (
    "The header that you cut out is no JSON. Its length stands in the first 8 bytes, the lowest"
    " byte first: int.from_bytes(data[:8], 'little'). And it begins after these 8: data[8 : 8 +"
    " length]."
)
_LONG = (
    "You take the header's length from its first two bytes. This header is so long that it needs"
    " three, and there are 8 of them: int.from_bytes(..., 'little') of all."
)
_KINDS = (
    "Your table of kinds of numbers is not complete. There are three: F32 (torch.float32), BF16"
    " (torch.bfloat16) and F16 (torch.float16)."
)
_SINGLE = (
    "A tensor whose shape is [] is taken for one without numbers. It is a single number: only a"
    " shape with a 0 in it has none. Ask whether there are bytes, and not whether there is a shape."
)
_TURNED = (
    "The shape is turned round. The file's shape is the tensor's: reshape(shape), and nothing more."
)

READ_TENSORS = Exercise(
    name="read_tensors",
    reference=read_tensors,
    cases=_files,
    axes="row column inner",
    asked=_of_file,
    without=("safetensors.torch", "safetensors.numpy"),
    checked=(
        "shape, dtype and every value of 10 tensors in 4 files: all three kinds of numbers, a"
        " square matrix, a single number, a tensor without numbers, one with three axes, notes in"
        " the header, headers in another order than the numbers, and a long one"
    ),
    mistakes=(
        *(
            Mistake(f"no JSON, {name}", partial(read_tensors, **edit), _HEADER)
            for name, edit in (
                ("big-endian", {"length_of": lambda first: int.from_bytes(first, "big")}),
                ("the first byte alone", {"length_of": lambda first: first[0]}),
            )
        ),
        Mistake(
            "the first two bytes alone",
            partial(read_tensors, length_of=lambda first: int.from_bytes(first[:2], "little")),
            _LONG,
        ),
        *(
            Mistake(
                f"notes read as a tensor, {first} first",
                partial(read_tensors, notes=first),
                "__metadata__ is read like a tensor. It holds notes, and has no dtype and no"
                " offsets: leave it out.",
            )
            for first in ("dtype", "shape", "data_offsets")
        ),
        *(
            Mistake(
                f"{name} as float32",
                partial(read_tensors, finish=finish),
                "Tensors of 16 bits come out as float32. The numbers are the same, but keep the"
                " kind that the file has: bfloat16 for BF16, float16 for F16.",
            )
            for name, finish in (
                ("all", Tensor.float),
                ("bfloat16", lambda x: x.float() if x.dtype == torch.bfloat16 else x),
                ("float16", lambda x: x.float() if x.dtype == torch.float16 else x),
            )
        ),
        Mistake(
            "F16 missing",
            partial(read_tensors, kinds={k: v for k, v in KINDS.items() if k != "F16"}),
            _KINDS,
        ),
        Mistake(
            "BF16 missing",
            partial(read_tensors, kinds={k: v for k, v in KINDS.items() if k != "BF16"}),
            _KINDS,
        ),
        Mistake(
            "counted from the start of the file",
            partial(read_tensors, start=lambda length: 0),
            "The offsets are counted from the start of the file, so the numbers are made of the"
            " header's letters. They count from the end of the header: cut data[8 + length:] off"
            " first.",
        ),
        Mistake(
            "counted from the start of the header",
            partial(read_tensors, start=lambda length: 8),
            "The offsets are counted from the start of the header, so the numbers are made of its"
            " letters. They count from its end: 8 + length.",
        ),
        Mistake(
            "eight bytes forgotten",
            partial(read_tensors, start=lambda length: length),
            "Everything is read 8 bytes too early: the numbers begin after the header, and the"
            " header begins after the 8 bytes of its length. Start at 8 + length.",
        ),
        Mistake(
            "right behind the JSON",
            partial(read_tensors, start=lambda length: 8 + length - LAST),
            "The numbers are read from where the JSON ends. There may be spaces behind it: the"
            " numbers begin at 8 + length.",
        ),
        Mistake(
            "bfloat16 read as float16",
            partial(read_tensors, kinds=KINDS | {"BF16": torch.float16}),
            "BF16 is read as float16. Both have 16 bits, so every shape is right, and nearly every"
            " number is wrong. BF16 is torch.bfloat16.",
        ),
        Mistake(
            "float16 read as bfloat16",
            partial(read_tensors, kinds=KINDS | {"F16": torch.bfloat16}),
            "F16 is read as bfloat16. Both have 16 bits, but cut them at other places: F16 is"
            " torch.float16.",
        ),
        Mistake(
            "flat",
            partial(read_tensors, shaped=lambda flat, shape: flat),
            "The numbers are right, but in one row. Give each tensor its shape: reshape(shape).",
        ),
        Mistake(
            "flat without numbers",
            partial(
                read_tensors, shaped=lambda flat, shape: flat.reshape(shape) if len(flat) else flat
            ),
            "A tensor without numbers comes out with the shape (0,). It has a shape in the header,"
            " too, such as (0, 3): torch.empty(shape, dtype=...).",
        ),
        Mistake(
            "shape turned round",
            partial(read_tensors, shaped=lambda flat, shape: flat.reshape(shape[::-1])),
            _TURNED,
        ),
        Mistake(
            "a single number with an axis",
            partial(read_tensors, shaped=lambda flat, shape: flat.reshape(shape or [1])),
            "A single number, whose shape is [], gets an axis of length 1. reshape([]) makes a"
            " tensor without axes.",
        ),
        *(
            Mistake(
                f"a single number as none, {name}",
                partial(read_tensors, shaped=shaped),
                _SINGLE,
            )
            for name, shaped in (
                ("zero", lambda flat, shape: flat.reshape(shape) * bool(shape)),
                ("empty", lambda flat, shape: flat.reshape(shape) if shape else flat[:0]),
            )
        ),
        Mistake(
            "transposed",
            partial(
                read_tensors,
                shaped=lambda flat, shape: flat.reshape(shape).permute(
                    tuple(reversed(range(len(shape))))
                ),
            ),
            "The matrices are transposed. The file holds them as torch does, (out, in), row after"
            " row: reshape(shape), and nothing more. (Weights of JAX are (in, out); these are"
            " not.)",
        ),
        Mistake(
            "column by column",
            partial(
                read_tensors,
                shaped=lambda flat, shape: flat.reshape(shape[::-1]).permute(
                    tuple(reversed(range(len(shape))))
                ),
            ),
            "The shape is right, but the numbers run down the columns. The file holds row after"
            " row: reshape(shape), without turning the shape round.",
        ),
        Mistake(
            "last byte first",
            partial(read_tensors, swapped=True),
            "The bytes of each number are read in the wrong order. The format is little-endian,"
            " like nearly every computer: torch.frombuffer reads it as it is.",
        ),
        Mistake(
            "in the header's order",
            partial(read_tensors, in_turn=True),
            "The tensors are read one after the other in the order of the header. Its order means"
            " nothing: `data_offsets` says where each one lies.",
        ),
    ),
    crashes=(
        Mistake("empty", partial(read_tensors, numbers=_never_empty), _EMPTY),
        *(
            Mistake(f"empty, {name} by offset and count", partial(_by_count, cut=cut), _EMPTY)
            for name, cut in (("the file", False), ("the numbers", True))
        ),
        Mistake(
            "notes taken for granted",
            partial(read_tensors, pop=lambda header: header.pop("__metadata__")),
            "Not every header has `__metadata__`. Take it out only if it is there:"
            " header.pop('__metadata__', None).",
        ),
        Mistake(
            "empty ones left out",
            partial(read_tensors, keep=lambda tensor: tensor.numel() > 0),
            "Tensors without numbers are left out. They are tensors of the file, too: give each"
            " one, with its shape, such as (0, 3).",
        ),
        Mistake(
            "the end as a number of bytes",
            partial(read_tensors, stop=lambda begin, end: begin + end),
            _COUNT,
        ),
    ),
    hints=(
        "Three parts: int.from_bytes(data[:8], 'little') is the length of the header; json.loads"
        " reads the header, data[8 : 8 + length]; the numbers are what is left.",
        "For each name but __metadata__: start, end = entry['data_offsets'], counted from the"
        " beginning of the numbers. Its bytes are numbers[start:end].",
        "torch.frombuffer(bytearray(...), dtype=...) makes a flat tensor of them, with"
        " torch.float32, torch.bfloat16 or torch.float16. Then .reshape(entry['shape']). An empty"
        " buffer it does not take: torch.empty(shape, dtype=...) for a tensor without numbers.",
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

    # 0 and -0, the smallest and the largest of each kind, infinity and nan.
    special = torch.tensor(
        [0, 0x8000, 1, 0x8001, 0x40, 0x7F, 0x80, 0x8080, 0x3F80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80,
         0x7FC0, 0x7F81, 0xFFC1]
    )  # fmt: skip
    special = torch.where(special < 0x8000, special, special - 0x10000).to(torch.int16)
    return [
        given(1.0, 3, 5), given(0.02, 4, 3), given(1e20, 2, 7), given(1e-3, 5, 2),
        (special.reshape(4, 4),), given(1.0, 2, 1, 3), (special[:2], True),
    ]  # fmt: skip


def _with_signs(bfloat16_to_float: Callable) -> Callable:
    """What is tried: the numbers; of 0 and -0 their text, since as numbers they are equal."""

    def tried(bits, as_text=False):
        numbers = bfloat16_to_float(bits)
        if not as_text or not isinstance(numbers, Tensor):
            return numbers
        return " and ".join(map(str, numbers.flatten().tolist()))

    return tried


def _by_formula(
    bits: Tensor,
    *,
    hidden: int = 128,
    bias: int = 127,
    signed: bool = True,
    small: str = "right",
    large: str = "right",
    fraction_by: int = 128,
    masked: bool = True,
    plain_zero: bool = False,
) -> Tensor:
    """bfloat16_to_float from sign, exponent and fraction, with one thing changed.

    small, large: what the exponents 0 and 255 mean; masked: the sign is taken off the exponent;
    plain_zero: 0 has no sign.
    """
    whole = bits.to(torch.int32) & 0xFFFF
    exponent, fraction = (whole >> 7) & 0xFF, whole & 0x7F
    if not masked:
        exponent = bits.to(torch.int32) >> 7
    size = (hidden / 128 + fraction.double() / fraction_by) * 2.0 ** (exponent - bias).double()
    if small != "ordinary":
        low = fraction.double() / fraction_by * 2.0 ** (1 - bias) * (small != "zero")
        size = torch.where(exponent == 0, low if small != "one off" else low / 2, size)
    if large != "ordinary":
        top = torch.where(fraction > 0, torch.nan, torch.inf).double()
        if large == "largest":
            top = torch.full_like(size, torch.finfo(torch.float32).max)
        if large == "nan":
            top = torch.full_like(size, torch.nan)
        if large == "exchanged":
            top = torch.where(fraction > 0, torch.inf, torch.nan).double()
        if large == "unsigned":
            top = top * (1 - 2 * (whole >> 15))
        size = torch.where(exponent == 255, top, size)
    found = (size * (1 - 2 * (whole >> 15)) if signed else size).float()
    return torch.where(found == 0, 0.0, found) if plain_zero else found


def _bytes_swapped(bits: Tensor) -> Tensor:
    whole = bits.to(torch.int32) & 0xFFFF
    return (((whole & 0xFF) << 8 | whole >> 8) << 16).view(torch.float32)


_NARROW = (
    "A view as float32 wants 32 bits for each number, and here each has 16 (a shift does not change"
    " that: what goes over the end is lost). Widen them first, with bits.to(torch.int32)."
)

BFLOAT16_TO_FLOAT = Exercise(
    name="bfloat16_to_float",
    reference=bfloat16_to_float,
    cases=_patterns,
    axes="row column inner",
    asked=_with_signs,
    tolerance=0.0,
    banned=("torch.bfloat16", "bfloat16"),
    checked=(
        "shape, dtype and the exact number for 83 patterns of bits: numbers of both signs, large,"
        " small and in between, 0 and its sign, numbers below the smallest ordinary one, infinity"
        " and nan"
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
            "not shifted, the sign masked",
            lambda bits: (bits.to(torch.int32) & 0xFFFF).view(torch.float32),
            "The 16 bits stand at the right end, so they are the last bits of the fraction. They"
            " are the *first* half of a float32: shift them left by 16 places.",
        ),
        Mistake(
            "shifted without room",
            lambda bits: (bits << 16).to(torch.int32).view(torch.float32),
            "You shift the 16 bits by 16 places while there are only 16: they all fall out, and"
            " zeros are left. Make room first: bits.to(torch.int32), then << 16.",
        ),
        Mistake(
            "shifted and then converted",
            lambda bits: (bits.to(torch.int32) << 16).float(),
            "The shift is right, and then the whole number is converted (.float()). You want the"
            " same 32 bits under another name: .view(torch.float32).",
        ),
        Mistake(
            "the second half filled",
            lambda bits: ((bits.to(torch.int32) << 16) | (bits.to(torch.int32) & 0xFFFF)).view(
                torch.float32
            ),
            "The second half of the 32 bits is filled with the pattern, too. What bfloat16 does not"
            " store is 0.",
        ),
        Mistake(
            "one row",
            lambda bits: (bits.to(torch.int32) << 16).view(torch.float32).flatten(),
            "The numbers are right, but all in one row. Keep the shape of bits, whatever it is.",
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
            "leading one everywhere",
            partial(_by_formula, small="ordinary"),
            "Numbers with the exponent 0 have no leading one: 0 is 0, and the others are fraction /"
            " 128 * 2 ** -126. (With a shift you need no cases.)",
        ),
        Mistake(
            "small ones as 0",
            partial(_by_formula, small="zero"),
            "The smallest numbers, whose exponent is 0, have become 0. They are fraction / 128 * 2"
            " ** -126. (With a shift you need no cases.)",
        ),
        Mistake(
            "small ones halved",
            partial(_by_formula, small="one off"),
            "The smallest numbers, whose exponent is 0, count as if it were 2 ** -127. They have no"
            " leading one, and the same unit as those with the exponent 1: 2 ** -126.",
        ),
        Mistake(
            "the largest number for exponent 255",
            partial(_by_formula, large="largest"),
            "The exponent 255 means infinity (fraction 0) or nan (any other fraction), and no"
            " ordinary number, not even the largest. (With a shift you need no cases.)",
        ),
        Mistake(
            "nan as infinity",
            partial(_by_formula, large="ordinary"),
            "With the exponent 255 everything has become infinity. That is right for the fraction"
            " 0; any other fraction means nan.",
        ),
        Mistake(
            "infinity as nan",
            partial(_by_formula, large="nan"),
            "With the exponent 255 everything has become nan. That is right for every fraction but"
            " 0; the fraction 0 means infinity.",
        ),
        Mistake(
            "infinity and nan exchanged",
            partial(_by_formula, large="exchanged"),
            "Infinity and nan are exchanged. With the exponent 255 the fraction 0 means infinity,"
            " any other fraction nan.",
        ),
        Mistake(
            "the sign in the exponent",
            partial(_by_formula, masked=False),
            "Negative numbers become almost 0: their sign is still in the exponent. Shifting an"
            " int16 or int32 to the right fills up with the sign: keep 8 bits alone, (bits >> 7) &"
            " 0xFF.",
        ),
        Mistake(
            "infinity without its sign",
            partial(_by_formula, large="unsigned"),
            "Minus infinity has become infinity. It has its sign like any other number.",
        ),
        Mistake(
            "minus zero without its sign",
            partial(_by_formula, plain_zero=True),
            "Minus zero has become 0. The two compare as equal, and yet it has its sign like any"
            " other number: keep it.",
        ),
        Mistake(
            "the sign as -1",
            lambda bits: bfloat16_to_float(bits) * torch.where(bits < 0, -3, 1),
            "Negative numbers come out positive and three times as large. `bits >> 15` of an int16"
            " fills up with the sign and gives -1, so that 1 - 2 * sign is 3. Keep one bit alone:"
            " (bits >> 15) & 1.",
        ),
        Mistake(
            "the minus of a whole number",
            lambda bits: (
                bits.to(torch.int32).sign() * (bits.to(torch.int32).abs() << 16).view(torch.float32)
            ),
            "You take the minus off the whole number (abs or -), and that changes all 16 bits. In a"
            " float the sign is the first bit alone, and the 15 others stay as they are: bits &"
            " 0x7FFF.",
        ),
        Mistake(
            "fraction by 127",
            partial(_by_formula, fraction_by=127),
            "The fraction is divided by 127. It has 7 bits, so it counts 128th parts.",
        ),
        *(
            Mistake(
                f"exponent counted from {bias}",
                partial(_by_formula, bias=bias),
                "The exponent is not counted from 127: every number is off by a factor of 2 or"
                " more. 1.0 has the exponent 127.",
            )
            for bias in (126, 128)
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
    crashes=(
        Mistake("shifted in 16 bits", lambda bits: (bits << 16).view(torch.float32), _NARROW),
        Mistake("viewed as they are", lambda bits: bits.view(torch.float32), _NARROW),
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
    "model.language_model.norm.weight",
    "language_model.model.embed_tokens.weight",
    "model.vision_tower.embeddings.position_embedding.weight",
    "vision_tower.post_layernorm.weight",
    "ema.language_model.model.norm.weight",  # the beginning, but not at the beginning
    "optimizer.lm_head.weight",
    "language_model_2.model.norm.weight",
    "lm_head_2.weight",
    "vision_tower_2.embeddings.patch_embedding.weight",
    "model.multi_modal_projector.linear_2.weight",
    "qformer.encoder.layer.0.weight",
    # Words of the table further on: they stay.
    "language_model.model.layers.1.encoder.model.linear.weight",
    "model.language_model.layers.2.vision_model.weight",
    "vision_tower.vision_model.head.encoder.linear.weight",
    "language_model.model.encoder.layers.0.weight",
    "vision_tower.encoder.encoder.layers.0.weight",
    "vision_tower.encoder.vision_model.layers.0.weight",
    "vision_tower.vision_model.encoder.final.weight",
    "weights",  # no dot at all
)


def our_name(
    key: str,
    *,
    beginnings: dict[str, str] = BEGINNINGS,
    strip: Callable[[str], str] = lambda key: key.removeprefix("model."),
    otherwise: Callable[[str], str | None] = lambda key: None,
    found: Callable[[str, str], bool] = str.startswith,
    after: Callable[[str], str] = lambda name: name,
) -> str | None:
    """The name of a key, or None. The reference, or with one thing changed."""
    short = strip(key)
    for theirs, ours in beginnings.items():
        if found(short, theirs):
            return after(ours + short[short.index(theirs) + len(theirs) :])
    return otherwise(key)


def _without(*left_out: str) -> dict[str, str]:
    return {theirs: ours for theirs, ours in BEGINNINGS.items() if theirs not in left_out}


# The table of the exercise, whole beginnings, the longer ones first.
WHOLE = {
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
    "language_model.model.": "language_model.",
    "model.language_model.": "language_model.",
    "multi_modal_projector.linear.": "multi_modal_projector.",
    "model.multi_modal_projector.linear.": "multi_modal_projector.",
    "vision_tower.vision_model.": "vision_tower.",
    "model.vision_tower.vision_model.": "vision_tower.",
    "vision_tower.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
}


def _but(*left_out: str) -> dict[str, str]:
    """The table without some beginnings, and with `encoder.` where it goes."""
    kept = {theirs: ours for theirs, ours in WHOLE.items() if theirs not in left_out}
    return {
        f"{theirs}{more}": ours
        for theirs, ours in kept.items()
        for more in (("encoder.", "") if ours == "vision_tower." else ("",))
    }


def _within_the_tower(word: str) -> Callable[[str], str]:
    """Of one of our names: the word is removed wherever it stands, if it is the tower's."""
    return lambda name: name.replace(word, "") if name.startswith("vision_tower.") else name


def _lone_decoder(key: str) -> str | None:
    short = key.removeprefix("model.")
    return f"language_model.{short}" if short.startswith("layers.") else None


def _lone_tower(key: str) -> str | None:
    beginnings = ("vision_model.encoder.", "vision_model.")
    fits = [one for one in beginnings if key.startswith(one)]
    return f"vision_tower.{key.removeprefix(fits[0])}" if fits else None


_REPLACED = {
    "language_model.model.": "language_model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "language_model.",
    "vision_model.": "",
    "encoder.": "",
    "projector.linear.": "projector.",
    "model.vision_tower.": "vision_tower.",
    "model.multi": "multi",
}


def _anywhere(key: str, known: Callable[[str, str], bool]) -> str | None:
    """With replace: wherever the words of the table stand."""
    for old, new in _REPLACED.items():
        key = key.replace(old, new)
    ours = ("language_model.", "vision_tower.", "multi_modal_projector.", "lm_head.")
    return key if any(known(key, one) for one in ours) else None


class _Raised(str):
    """A result in place of the error that was raised for a key without a place."""


def _or_raised(our_name: Callable) -> Callable:
    """What is tried: the name, or that there was an error where None is due."""
    # Looked up here and not below: what runs there is watched, and must not be ours.
    foreign = {key for key in KEYS if OUR_NAME.reference(key) is None}

    def tried(key):
        try:
            return our_name(key)
        except (LookupError, ValueError) as error:
            if key not in foreign:
                raise
            return _Raised(type(error).__name__)

    return tried


def _two_words(key: str, *, error: type[Exception] | None = None) -> str | None:
    if error and "." not in key:
        raise error
    return our_name(key)


def _each_encoder(name: str) -> str:
    while name.startswith("vision_tower.encoder."):
        name = name.replace("encoder.", "", 1)
    return name


def _raises(key: str) -> str:
    if (name := our_name(key)) is None:
        raise KeyError(key)
    return name


def _after_any_beginning(name: str) -> str:
    first, rest = name.split(".", 1)
    if first == "vision_tower":  # there it is gone already
        return name
    return f"{first}.{rest.removeprefix('encoder.')}"


OUR_NAME = Exercise(
    name="our_name",
    reference=our_name,
    cases=lambda: [(key,) for key in KEYS],
    axes="",
    asked=_or_raised,
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
            "published layout alone, with its own head",
            partial(
                our_name,
                beginnings=_without(
                    "language_model.", "vision_tower.encoder.", "vision_tower.", "lm_head."
                ),
                strip=lambda key: key,
            ),
            "The published layout is read, and no other. Files that newer versions of transformers"
            " have written begin with `model.`, and in the newest ones `vision_model.` is gone.",
        ),
        Mistake(
            "letters stripped",
            partial(our_name, strip=lambda key: key.lstrip("model.")),
            "lstrip removes letters, all that are in `model.`, and not the word. A beginning goes"
            " with removeprefix.",
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
        *(
            Mistake(
                f"vision_model left{also}",
                partial(
                    our_name,
                    beginnings=_without(
                        "vision_tower.vision_model.encoder.", "vision_tower.vision_model."
                    ),
                    **edit,
                ),
                "`vision_model.` stays in the name. It is one more box in their model, which ours"
                " has not.",
            )
            for also, edit in (
                ("", {}),
                (", encoder not", {"after": lambda name: name.replace("model.encoder.", "model.")}),
            )
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
            "linear if it is there",
            partial(
                our_name,
                beginnings=BEGINNINGS | {"multi_modal_projector.": "multi_modal_projector."},
            ),
            "A key of the projector gets a name without `linear.`, too. In the table its beginning"
            " is multi_modal_projector.linear., whole: a key that begins otherwise gets None.",
        ),
        Mistake(
            "every encoder",
            partial(our_name, after=_each_encoder),
            "Right after the tower's beginning you remove `encoder.` as often as it comes. One"
            " goes; what follows stays as it is.",
        ),
        Mistake(
            "encoder only before layers",
            partial(
                our_name,
                beginnings={
                    theirs.replace("encoder.", "encoder.layers."): ours
                    + "layers." * ("encoder." in theirs)
                    for theirs, ours in BEGINNINGS.items()
                },
            ),
            "`encoder.` is removed only if `layers.` follows. It goes whatever follows: all that"
            " lies in it lies right in our tower.",
        ),
        *(
            Mistake(
                f"a key of one word, {error.__name__}",
                partial(_two_words, error=error),
                "A key of one word, without a dot, raises an error. It belongs to another model:"
                " return None.",
            )
            for error in (IndexError, ValueError)
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
            "lone tower accepted",
            partial(our_name, otherwise=_lone_tower),
            "Keys of SigLIP alone (`vision_model.encoder...`) are taken for the tower of PaliGemma."
            " They are another model's. Return None.",
        ),
        Mistake(
            "empty text",
            partial(our_name, otherwise=lambda key: ""),
            "A key without a place gets an empty text. Return None for it.",
        ),
        Mistake(
            "a beginning anywhere",
            partial(our_name, found=lambda short, theirs: theirs in short),
            "The words of the table are looked for anywhere in the key. They must stand at its"
            " beginning (startswith): `ema.language_model.model.norm.weight` has no place.",
        ),
        *(
            Mistake(
                f"encoder. removed everywhere{where}",
                partial(our_name, after=after),
                "`encoder.` is removed wherever it stands. It goes only right after the tower's own"
                " beginning; what follows stays as it is.",
            )
            for where, after in (
                ("", lambda name: name.replace("encoder.", "")),
                (" in the tower", _within_the_tower("encoder.")),
            )
        ),
        *(
            Mistake(
                f"{word} removed everywhere{where}",
                partial(our_name, after=after),
                f"`{word}` is removed wherever it stands. Only the beginning of a key changes; what"
                " follows stays as it is.",
            )
            for word, where, after in (
                ("vision_model.", "", lambda name: name.replace("vision_model.", "")),
                ("vision_model.", " in the tower", _within_the_tower("vision_model.")),
                ("linear.", "", lambda name: name.replace("linear.", "")),
            )
        ),
        *(
            Mistake(
                f"{missing} missing",
                partial(our_name, strip=lambda key: key, beginnings=_but(missing)),
                f"`{missing}` is one of the table's beginnings, and yours lacks it: such keys get"
                " None, or keep a part of it in their names.",
            )
            for missing in WHOLE
            if missing != "language_model.lm_head."  # it has a name of its own below
        ),
        *(
            Mistake(
                f"{what} missing",
                partial(our_name, strip=lambda key: key, beginnings=_but(*missing)),
                f"Keys of {what} have no place, or keep a part of their beginning. They are in the"
                " table, too.",
            )
            for what, missing in (
                ("the text", ("language_model.model.", "model.language_model.")),
                ("the projector", [one for one in WHOLE if "projector" in one]),
                ("the published layout", ("vision_tower.vision_model.", "language_model.lm_head.")),
                (
                    "the published layout and of the newest, saved,",
                    [one for one in WHOLE if not one.startswith(("model.", "lm_head."))],
                ),
            )
        ),
        Mistake(
            "encoder. after any beginning",
            partial(our_name, after=_after_any_beginning),
            "`encoder.` is removed after other beginnings, too. Only in the vision tower do their"
            " layers lie in it: a text model with the word in its keys keeps it.",
        ),
        *(
            Mistake(
                f"words replaced anywhere, {name}",
                lambda key, known=known: _anywhere(key, known),
                "The words of the table are replaced wherever they stand (key.replace). They count"
                " at the beginning of a key alone: key.startswith(...) and removeprefix. What"
                " follows stays, and a key that begins otherwise gets None.",
            )
            for name, known in (
                ("ours within", lambda key, ours: ours in key),
                ("ours in front", str.startswith),
            )
        ),
        *(
            Mistake(
                f"without the dot, but {kept or 'none'}",
                partial(
                    our_name,
                    beginnings={
                        a.rstrip("." * (a != kept)): b.rstrip("." * (a != kept))
                        for a, b in BEGINNINGS.items()
                    },
                ),
                "The beginnings are compared without their dot, so that a longer word fits, too:"
                " `lm_head_2.weight` does not begin with `lm_head.`, and belongs to another model."
                " Compare them with the dot.",
            )
            for kept in ("", "language_model.")
        ),
        Mistake(
            "a tower of layers alone",
            partial(our_name, beginnings=_without("vision_tower.vision_model.", "vision_tower.")),
            "Only the layers of the vision tower have a place, the keys with `encoder.`. The tower"
            " has other weights: its embeddings and its last norm.",
        ),
        Mistake(
            "an error",
            _raises,
            "Your function raises an error for a key of another model. Return None for it: whoever"
            " calls you decides what that means.",
        ),
        *(
            Mistake(
                f"no head, {name}",
                partial(our_name, **edit),
                "The head, where a file stores it, gets None (or a name of the language model). It"
                " has a name of ours: lm_head.weight. `fill` needs it to compare.",
            )
            for name, edit in (
                ("missing in the table", {"beginnings": _without(*HEADS)}),
                (
                    "thrown away",
                    {"strip": lambda key: "" if "lm_head." in key else key.removeprefix("model.")},
                ),
            )
        ),
        Mistake(
            "published head as a layer",
            partial(our_name, beginnings=_without("language_model.lm_head.")),
            "language_model.lm_head.weight, the head of the published layout, keeps"
            " `language_model.` in front. Ours is lm_head.weight: try the longer beginnings first.",
        ),
        Mistake(
            "published head missing",
            partial(
                our_name,
                beginnings=_without("language_model.lm_head.", "language_model."),
                strip=lambda key: (
                    key.replace("model.language_model.", "language_model.model.", 1)
                    if key.startswith("model.language_model.")
                    else key.removeprefix("model.")
                ),
            ),
            "language_model.lm_head.weight, the head of the published layout, has no place. It is"
            " one of ours: lm_head.weight.",
        ),
        Mistake(
            "encoder left everywhere",
            partial(
                our_name,
                beginnings=_without("vision_tower.vision_model.encoder.", "vision_tower.encoder."),
            ),
            "`encoder.` stays in the names of the tower. Our tower has its layers right below it:"
            " vision_tower.layers.0...",
        ),
        Mistake(
            "encoder left in the published layout",
            partial(our_name, beginnings=_without("vision_tower.vision_model.encoder.")),
            "`encoder.` stays in the names of the tower. Our tower has its layers right below it:"
            " vision_tower.layers.0...",
        ),
        Mistake(
            "newest tower has no place",
            partial(our_name, beginnings=_without("vision_tower.encoder.", "vision_tower.")),
            "The tower's keys of the newest layout, without `vision_model.`, have no place.",
        ),
        Mistake(
            "later layouts missing",
            partial(our_name, strip=lambda key: key),
            "Keys that begin with `model.` have no place. In the later and the newest layout all"
            " but the head begin so.",
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
        "First key.removeprefix('model.'): some layouts put it first. What is left of the"
        " vision tower's names has `vision_model.` in some layouts, and in others not.",
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
        parts = []
        for name, x in self.items():
            part = f"{name.split('.')[-2]} {tuple(getattr(x, 'shape', x))}"
            if name == HEAD and TABLE in self and isinstance(x, Tensor):
                part += ", equal to the table" if torch.equal(x, self[TABLE]) else ", not the table"
            parts.append(part)
        return " + ".join(parts)

    __str__ = __repr__


def _fillings() -> list[tuple]:
    random = torch.Generator().manual_seed(16)
    right = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    other, near = right[TABLE].clone(), right[TABLE].clone()
    other[1, 2] += 0.5
    near[3, 0] *= 1 + 1e-6
    cases = (
        right,
        right | {HEAD: right[TABLE].clone()},
        {name: right[name] for name in (TABLE, NORM)},
        right | {"language_model.layers.0.pre_feedforward_layernorm.weight": right[NORM]},
        right | {MAP: right[MAP].T.contiguous()},
        right | {NORM: torch.randn(4, generator=random)},
        right | {HEAD: other},
        right | {HEAD: near},
        right | {HEAD: torch.randn(SHAPES[TABLE], generator=random)},
        right | {HEAD: right[TABLE][:3].clone()},
        {name: right[name] for name in (MAP, NORM)} | {HEAD: right[TABLE].clone()},
        right | {"lm_head.bias": torch.randn(4, generator=random)},
        # One missing and one too many: as many names as wanted.
        {name: right[name] for name in (TABLE, NORM)} | {"vision_tower.extra.weight": right[MAP]},
    )
    return [(_Shown(SHAPES), _Shown(tensors)) for tensors in cases]


def _in_words(fill: Callable) -> Callable:
    """What is tried: what a learner's function did, as text."""

    def tried(shapes, tensors):
        try:
            filled = fill(shapes, tensors)
        except (ValueError, KeyError, AssertionError) as error:
            kind = type(error).__name__
            given, want = {name: tuple(x.shape) for name, x in tensors.items()}, dict(shapes)
            guilty = {HEAD, *(want.keys() ^ given.keys())}
            guilty |= {name for name in want.keys() & given.keys() if want[name] != given[name]}
            if HEAD in tensors:  # it differs from the table
                guilty.add(TABLE)
            if kind != "ValueError" or any(name in str(error) for name in guilty):
                return kind
            return "ValueError that names no guilty weight"
        if not isinstance(filled, dict):
            return f"no dict but {filled if filled is None else type(filled).__name__}"
        words = []
        for name in sorted(filled):
            same = name in tensors and torch.equal(filled[name], tensors[name])
            words.append(f"{name} {'as given' if same else 'not as given'}")
        return ", ".join(words)

    return tried


def fill(
    shapes: dict,
    tensors: dict,
    *,
    missing: str = "refuse",
    unexpected: str = "refuse",
    shape: str = "refuse",
    head: str = "compare",
    equal: Callable[[Tensor, Tensor], bool] = torch.equal,
    error: type[Exception] = ValueError,
    quiet: str = "",
) -> dict:
    """Exactly the wanted weights. The reference, or with one thing changed.

    quiet: kinds of errors that name no weight.
    """

    def raised(kind: str, name: str) -> Exception:
        return error("the weights do not fit" if kind in quiet else name)

    given, filled = dict(tensors), {}
    if head == "require" and HEAD not in given:
        raise raised("head", HEAD)
    if missing == "count":
        if len(given.keys() - {HEAD}) != len(shapes):
            raise raised("missing", min((given.keys() - {HEAD}) ^ shapes.keys()))
        shapes = {name: shapes.get(name, given[name].shape) for name in given.keys() - {HEAD}}
    if missing == "from the head" and HEAD in given:
        given.setdefault(TABLE, given[HEAD])
    if missing == "table first" and HEAD in given and TABLE not in given:
        raise KeyError(TABLE)
    stored = None if head in ("keep", "refuse") else given.pop(HEAD, None)
    if unexpected == "drop heads":
        given = {name: x for name, x in given.items() if not name.startswith("lm_head.")}
    places = set(shapes) | ({HEAD} if head == "keep" else set())
    if unexpected != "drop" and (more := set(given) - places):
        raise raised("unexpected", min(more))
    for name, want in shapes.items():
        if name not in given:
            if missing not in ("make up", "skip"):
                raise raised("missing", name)
            if missing == "make up":
                filled[name] = torch.zeros(want)
            continue
        one = filled[name] = given[name]
        if tuple(one.shape) == tuple(want) or shape == "ignore":
            continue
        if shape == "numel" and one.numel() == torch.Size(want).numel():
            continue
        if shape == "turn" and tuple(one.t().shape) == tuple(want):
            filled[name] = one.t()
        else:
            raise raised("shape", name)
    if head == "keep" and HEAD in given:
        filled[HEAD] = given[HEAD]
    if head in ("compare", "require") and stored is not None:
        if TABLE not in given:
            return filled
        if not equal(stored, given[TABLE]):
            raise raised("head", HEAD)
    return filled


FILL = Exercise(
    name="fill",
    reference=fill,
    cases=_fillings,
    axes="",
    asked=_in_words,
    checked=(
        "what comes out of 13 sets of tensors: all there; with a stored head; one missing; one too"
        " many; one transposed; one too long; with a head that is not the table, or nearly, or has"
        " another shape, or no table beside it; with a bias of the head; one missing and another"
        " too many; and that each error names a guilty weight"
    ),
    mistakes=(
        Mistake(
            "missing left random",
            partial(fill, missing="make up"),
            "A missing weight is made up. The model then answers with a part of it random, and"
            " often you would not notice. Raise ValueError, and name what is missing.",
        ),
        Mistake(
            "table from the head",
            partial(fill, missing="from the head"),
            "Where the table is missing, the stored head takes its place. It is the same matrix if"
            " all is well, but nobody can say so any more: the table is a wanted weight, and it is"
            " missing. Raise ValueError.",
        ),
        Mistake(
            "table not looked for",
            partial(fill, missing="table first"),
            "Where a head is stored and the table is missing, a KeyError comes from the comparison"
            " of the two. Look for missing names first, and raise ValueError for them.",
        ),
        Mistake(
            "missing left out",
            partial(fill, missing="skip"),
            "A missing weight is left out, and nobody is told. Every name in `shapes` must be"
            " filled, else raise ValueError.",
        ),
        Mistake(
            "names counted",
            partial(fill, missing="count"),
            "Only the number of names is compared. One missing and another that nobody wants are"
            " together as many as wanted: compare the names themselves.",
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
            "numbers counted",
            partial(fill, shape="numel"),
            "Only the number of numbers is compared. A transposed matrix has as many: compare the"
            " shapes.",
        ),
        Mistake(
            "any head dropped",
            partial(fill, unexpected="drop heads"),
            "All names that begin with lm_head. are dropped. Only lm_head.weight may be left out;"
            " a bias of the head has no place in our model: ValueError.",
        ),
        Mistake(
            "nearly equal",
            partial(fill, equal=lambda a, b: a.shape == b.shape and torch.allclose(a, b)),
            "The head is nearly the table, and you let it pass. Equal is to mean number by number:"
            " torch.equal(head, table).",
        ),
        Mistake(
            "the head's shape alone",
            partial(fill, equal=lambda a, b: a.shape == b.shape),
            "Of the head only the shape is compared. Compare the numbers: torch.equal(head,"
            " table).",
        ),
        Mistake(
            "some of the head",
            partial(fill, equal=lambda a, b: a.shape == b.shape and bool((a == b).any())),
            "One equal number is enough for you. All must be equal: torch.equal(head, table).",
        ),
        *(
            Mistake(
                f"{kind.__name__} raised",
                partial(fill, error=kind),
                "Another kind of error is raised. Whoever calls you waits for a ValueError: raise"
                " it yourself, before Python stumbles over something.",
            )
            for kind in (KeyError, AssertionError)
        ),
        *(
            Mistake(
                f"no name in the error, {kind} alone",
                partial(fill, quiet=kind),
                f"Your error names no guilty weight where {what}. Whoever reads it has thousands:"
                " put the name in.",
            )
            for kind, what in (
                ("missing", "one is missing"),
                ("unexpected", "one is too many"),
                ("shape", "a shape is wrong"),
                ("head", "the head is not the table"),
            )
        ),
        *(
            Mistake(
                f"no name in the error: {', '.join(kinds)}",
                partial(fill, quiet=" ".join(kinds)),
                "Your errors name no guilty weight. Whoever reads one has thousands: put the name"
                " in, as in ValueError(f'{name} is missing').",
            )
            for number in (2, 3, 4)
            for kinds in combinations(("missing", "unexpected", "shape", "head"), number)
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
            "head required",
            partial(fill, head="require"),
            "A file without a stored head is refused. Most files have none, since the head is tied:"
            " look at it only if it is there.",
        ),
        Mistake(
            "head not compared",
            partial(fill, head="drop"),
            "The stored head is dropped without a look. If it differs from the table, the model was"
            " trained with a head of its own, and ours would give other answers. Raise ValueError.",
        ),
    ),
    crashes=(
        Mistake(
            "== of two shapes",
            partial(fill, equal=lambda a, b: bool((a == b).all())),
            "Here the head has another shape than the table, and == of two tensors wants shapes"
            " that fit. torch.equal(head, table) says False for them, and you raise the"
            " ValueError.",
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

# --- fetch_tensor ---------------------------------------------------------------------------------


def _shards() -> list[tuple]:
    random = torch.Generator().manual_seed(19)

    def given(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    first = {"norm": given(3), "table": given(4, 3).bfloat16(), "map": given(2, 5)}
    second = {
        "scale": given(5).half(),
        "square": given(3, 3),
        "empty": given(0, 2).bfloat16(),
        "one": given(),
    }
    third = {"far": given(3), "other": given(2)}
    files = {
        "model-1.safetensors": file_of(first, ["map", "norm", "table"], {"notes": "..." * 70}),
        "model-2.safetensors": file_of(second, list(second)),
        "model-3.safetensors": file_of(third, ["other", "far"], least=LONG),
    }
    holders = zip(files, (first, second, third), strict=True)
    weight_map = _Map({name: file for file, held in holders for name in held})

    def read(file: str, start: int, end: int) -> bytes:
        return bytes(files[file])[start:end]

    names = ("table", "square", "map", "scale", "norm", "one", "empty", "far")
    return [(weight_map, read, name) for name in names]


class _Map(dict):
    __repr__ = "name -> file".__str__


def fetch_tensor(
    weight_map: dict[str, str],
    read: Callable[[str, int, int], bytes],
    name: str,
    *,
    files: Callable[[dict, str], list[str]] = lambda weight_map, name: [weight_map[name]],
    header_from: int = 8,
    after: Callable[[int], int] = lambda length: 8 + length,
    end_of: Callable[[int, int], int] = lambda begin, end: end,
    whole: bool = False,
    kinds: dict[str, torch.dtype] = KINDS,
    shaped: Callable[[Tensor, list[int]], Tensor] = lambda flat, shape: flat.reshape(shape),
    length_of: Callable[[bytes], int] = lambda first: int.from_bytes(first, "little"),
    cut: bool = True,
    count: bool = False,
    in_turn: bool = False,
    numbers: Callable[[bytes, torch.dtype], Tensor] = _numbers,
) -> Tensor:
    """One tensor of a sharded checkpoint. The reference, or with one thing changed.

    files: those whose headers are read; whole: each file is read whole.
    """
    for file in files(weight_map, name):
        data = read(file, 0, 10**9) if whole else b""

        def get(start, end, file=file, data=data):
            return data[start:end] if whole else read(file, start, end)

        length = length_of(get(0, 8))
        header = json.loads(get(header_from, 8 + length)[8 - header_from :])
        if name in header:
            break
    entry = header[name]
    begin, end = entry["data_offsets"]
    if in_turn:
        names = [one for one in header if one != "__metadata__"]
        before = [header[one]["data_offsets"] for one in names[: names.index(name)]]
        begin, end = (sum(b - a for a, b in before) + place for place in (0, end - begin))
    kind, start = kinds[entry["dtype"]], after(length)
    own = get(start + begin, end - begin if count else start + end_of(begin, end))
    own = own[: end - begin] if cut else own
    return shaped(numbers(own, kind), entry["shape"])


def _counted(fetch_tensor: Callable) -> Callable:
    """What is tried: the tensor, and whether more was read than it needs."""

    def tried(weight_map, read, name):
        spans, files = [], set()

        def counting(file, start, end):
            found = read(file, start, end)
            spans.append(range(start, start + len(found)))
            files.add(file)
            return found

        try:
            tensor = fetch_tensor(weight_map, counting, name)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return _NO_JSON(), ""
        file = weight_map[name]
        stop = 8 + int.from_bytes(read(file, 0, 8), "little")
        begin, end = json.loads(read(file, 8, stop))[name]["data_offsets"]
        touched = {place for span in spans for place in span}
        if files != {file}:
            return tensor, "other files"
        if any(span.start < stop < span.stop for span in spans):
            return tensor, "the header, and on behind it"
        if more := touched - set(range(stop)) - set(range(stop + begin, stop + end)):
            return tensor, "one byte too many" if len(more) == 1 else "numbers of other tensors"
        if sum(map(len, spans)) > len(touched):
            return tensor, "bytes twice"
        if not touched >= set(range(8, stop)):
            return tensor, "no header (do you keep it from one call to the next?)"
        return tensor, "what is needed"

    return tried


_FAR_HEADER = (
    "The header that you cut out is no JSON. Its length stands in the first 8 bytes, the lowest"
    " byte first: int.from_bytes(read(file, 0, 8), 'little'). It goes from byte 8 up to byte 8 +"
    " length: read's last argument is a place in the file, and no number of bytes."
)
_OTHERS = (
    "You read numbers of other tensors. From a far-away file that takes its time: read 8 bytes,"
    " then the header, then the bytes from 8 + length + begin to 8 + length + end."
)
_BEHIND = (
    "Where you read the header, you read on behind it, into the numbers, perhaps up to the file's"
    " end. From a far-away file that takes its time: the first 8 bytes say how long the header is,"
    " so read(file, 8, 8 + length) is just the header."
)

FETCH_TENSOR = Exercise(
    name="fetch_tensor",
    transfer=True,
    reference=fetch_tensor,
    cases=_shards,
    axes="row column; ",
    parts=("the tensor", "what was read"),
    asked=_counted,
    checked=(
        "shape, dtype and every value of 8 tensors of all three kinds in 3 files, one of them a"
        " single number and one without numbers; and that no byte too many is read"
    ),
    mistakes=(
        Mistake("whole files", partial(fetch_tensor, whole=True), _BEHIND),
        Mistake(
            "one byte too many",
            partial(fetch_tensor, end_of=lambda begin, end: end + 1),
            "You read one byte too many, the one at `end`. The second place is not among the bytes"
            " that read gives, as in a slice: from 8 + length + begin to 8 + length + end.",
        ),
        Mistake(
            "the first two bytes alone",
            partial(fetch_tensor, length_of=lambda first: int.from_bytes(first[:2], "little")),
            _LONG,
        ),
        *(
            Mistake(
                f"all headers, {'last' if last_first else 'first'} file first",
                partial(
                    fetch_tensor,
                    files=lambda weight_map, name, last_first=last_first: sorted(
                        set(weight_map.values()), reverse=last_first
                    ),
                ),
                "You look through other files as well. The weight_map says which file holds the"
                " tensor: weight_map[name].",
            )
            for last_first in (False, True)
        ),
        Mistake("all numbers", partial(fetch_tensor, end_of=lambda begin, end: 10**9), _OTHERS),
        Mistake(
            "header and length together",
            partial(fetch_tensor, header_from=0),
            "The tensor is right, but some bytes are read twice. The header begins after the 8"
            " bytes of its length, read(file, 8, 8 + length), and each part is read once.",
        ),
        Mistake(
            "eight bytes forgotten",
            partial(fetch_tensor, after=lambda length: length),
            "The numbers are read 8 bytes too early: they begin after the header, and the header"
            " begins after the 8 bytes of its length. Start at 8 + length.",
        ),
        Mistake(
            "from the start of the file",
            partial(fetch_tensor, after=lambda length: 0),
            "The offsets are counted from the start of the file. They count from the end of the"
            " header: add 8 + length.",
        ),
        Mistake(
            "from the start of the header",
            partial(fetch_tensor, after=lambda length: 8),
            "The offsets are counted from the start of the header. They count from its end: add 8 +"
            " length.",
        ),
        Mistake(
            "big-endian",
            partial(fetch_tensor, length_of=lambda first: int.from_bytes(first, "big")),
            _FAR_HEADER,
        ),
        Mistake(
            "in the header's order",
            partial(fetch_tensor, in_turn=True),
            "The place of the tensor is added up in the order of the header. Its order means"
            " nothing: `data_offsets` says where the tensor lies.",
        ),
        *(
            Mistake(
                f"{name} as float32",
                partial(fetch_tensor, shaped=shaped),
                "A tensor of 16 bits comes out as float32. Keep the kind that the file has:"
                " bfloat16 for BF16, float16 for F16.",
            )
            for name, shaped in (
                ("all", lambda flat, shape: flat.reshape(shape).float()),
                (
                    "bfloat16",
                    lambda flat, shape: (
                        flat.float() if flat.dtype == torch.bfloat16 else flat
                    ).reshape(shape),
                ),
            )
        ),
        Mistake(
            "a single number with an axis",
            partial(fetch_tensor, shaped=lambda flat, shape: flat.reshape(shape or [1])),
            "A single number, whose shape is [], gets an axis of length 1. reshape([]) makes a"
            " tensor without axes.",
        ),
        *(
            Mistake(
                f"a single number as none, {name}",
                partial(fetch_tensor, shaped=shaped),
                _SINGLE,
            )
            for name, shaped in (
                ("zero", lambda flat, shape: flat.reshape(shape) * bool(shape)),
                ("empty", lambda flat, shape: flat.reshape(shape) if shape else flat[:0]),
            )
        ),
        Mistake(
            "flat without numbers",
            partial(
                fetch_tensor, shaped=lambda flat, shape: flat.reshape(shape) if len(flat) else flat
            ),
            "A tensor without numbers comes out with the shape (0,). It has a shape in the header,"
            " too, such as (0, 3): torch.empty(shape, dtype=...).",
        ),
        Mistake(
            "float32 without numbers",
            partial(
                fetch_tensor,
                numbers=lambda own, kind: _numbers(own, kind if own else torch.float32),
            ),
            "A tensor without numbers comes out as float32, whatever the header says. It has a kind"
            " all the same: torch.empty(shape, dtype=...).",
        ),
        Mistake(
            "bfloat16 read as float16",
            partial(fetch_tensor, kinds=KINDS | {"BF16": torch.float16}),
            "BF16 is read as float16. BF16 is torch.bfloat16.",
        ),
        Mistake(
            "float16 read as bfloat16",
            partial(fetch_tensor, kinds=KINDS | {"F16": torch.bfloat16}),
            "F16 is read as bfloat16. F16 is torch.float16.",
        ),
        Mistake(
            "flat",
            partial(fetch_tensor, shaped=lambda flat, shape: flat),
            "The numbers are right, but in one row. Give the tensor its shape: reshape(shape).",
        ),
        Mistake(
            "shape turned round",
            partial(fetch_tensor, shaped=lambda flat, shape: flat.reshape(shape[::-1])),
            _TURNED,
        ),
    ),
    crashes=(
        Mistake("empty", partial(fetch_tensor, numbers=_never_empty), _EMPTY),
        Mistake(
            "the end as a number of bytes",
            partial(fetch_tensor, cut=False, end_of=lambda begin, end: begin + end),
            _COUNT,
        ),
        *(
            Mistake(
                f"the {which} file for all",
                partial(
                    fetch_tensor,
                    files=lambda weight_map, name, place=place: [list(weight_map.values())[place]],
                ),
                "The name is not in the header that you read: it is another file's. The weight_map"
                " says which file holds the tensor: weight_map[name].",
            )
            for which, place in (("first", 0), ("last", -1))
        ),
        Mistake(
            "a number of bytes for the end",
            partial(fetch_tensor, count=True),
            "read's last argument is a place in the file, the one after the last byte, and not a"
            " number of bytes.",
        ),
    ),
    hints=(
        "Three reads, and each one tells you where the next one is: the length, the header, the"
        " numbers.",
        "read(file, 0, 8) is the length, lowest byte first. read(file, 8, 8 + length) is the"
        " header, in JSON. `data_offsets` in it count from 8 + length.",
        "begin, end = header[name]['data_offsets']; own = read(file, 8 + length + begin, 8 + length"
        " + end). The rest is as in part 1: frombuffer of a bytearray, reshape, and torch.empty for"
        " a tensor without numbers.",
    ),
)

EXERCISES = (READ_TENSORS, BFLOAT16_TO_FLOAT, OUR_NAME, FILL, FETCH_TENSOR)
