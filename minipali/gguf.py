"""GGUF: the file format of llama.cpp, in which many language models are published in few bits.

A file is a header and then numbers. The header holds metadata (sizes of the model, its tokenizer)
and a table of tensors: name, shape, type, and where its numbers begin. Most types store numbers in
blocks of 32 or 256 that share a scale. All is little-endian.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from minipali.config import check_regular, short


class GGUFError(ValueError):
    """A GGUF file that cannot be read."""


# --- blocks of bytes into numbers: uint8 (blocks, bytes) -> float32 (blocks, numbers) ------------


def half(two_bytes: Tensor) -> Tensor:
    """uint8 (n, 2) -> the float16 that is stored in them, as float32 (n, 1)."""
    return two_bytes.contiguous().view(torch.float16).float()


def nibbles(packed: Tensor) -> Tensor:
    """uint8 (n, 16) -> whole numbers of 4 bits, int8 (n, 32).

    The lower four bits of all bytes come first, and then the upper ones.
    """
    return torch.cat((packed & 15, packed >> 4), dim=1).to(torch.int8)


def single_bits(packed: Tensor) -> Tensor:
    """uint8 (n, 4) -> their bits, the lowest of each byte first: int8 (n, 32)."""
    return (packed[..., None] >> torch.arange(8) & 1).flatten(1).to(torch.int8)


def q8_0(block: Tensor) -> Tensor:
    """32 numbers in 34 bytes: a scale, and whole numbers from -128 to 127."""
    scale, whole = half(block[:, :2]), block[:, 2:].view(torch.int8)
    return scale * whole


def q4_0(block: Tensor) -> Tensor:
    """32 numbers in 18 bytes: a scale, and whole numbers from -8 to 7, stored with 8 added."""
    scale, whole = half(block[:, :2]), nibbles(block[:, 2:])
    return scale * (whole - 8)


def q4_1(block: Tensor) -> Tensor:
    """32 numbers in 20 bytes: a scale, the smallest number, and whole numbers from 0 to 15."""
    scale, least, whole = half(block[:, :2]), half(block[:, 2:4]), nibbles(block[:, 4:])
    return scale * whole + least


def q5_0(block: Tensor) -> Tensor:
    """32 numbers in 22 bytes: as Q4_0, with the fifth bits of all numbers in front of the rest."""
    scale, fifth, whole = half(block[:, :2]), single_bits(block[:, 2:6]), nibbles(block[:, 6:])
    return scale * (whole + 16 * fifth - 16)


def q5_1(block: Tensor) -> Tensor:
    """32 numbers in 24 bytes: as Q4_1, with the fifth bits of all numbers in front of the rest."""
    scale, least = half(block[:, :2]), half(block[:, 2:4])
    fifth, whole = single_bits(block[:, 4:8]), nibbles(block[:, 8:])
    return scale * (whole + 16 * fifth) + least


def scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits each: uint8 (n, 12) -> twice (n, 8).

    The first four of both are the lower 6 bits of bytes 0 to 3 and 4 to 7. The upper 2 bits of
    these bytes are the upper bits of the last four, whose lower ones are in bytes 8 to 11.
    """
    a, b, c = packed.split(4, dim=1)
    scales = torch.cat((a & 63, c & 15 | a >> 6 << 4), dim=1)
    minima = torch.cat((b & 63, c >> 4 | b >> 6 << 4), dim=1)
    return scales, minima


def q4_k(block: Tensor) -> Tensor:
    """256 numbers in 144 bytes: eight groups of 32, each with a scale and a minimum of 6 bits.

    Two float16 numbers are the units of these scales and minima.
    """
    scales, minima = scales_and_minima(block[:, 4:16])
    scales, minima = half(block[:, :2]) * scales, half(block[:, 2:4]) * minima
    # 32 bytes hold two groups: one in their lower bits, the next in their upper ones.
    packed = block[:, 16:].unflatten(1, (4, 32))
    whole = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1, 2)  # (n, 8, 32)
    return (scales[..., None] * whole - minima[..., None]).flatten(1)


def q5_k(block: Tensor) -> Tensor:
    """256 numbers in 176 bytes: as Q4_K, with fifth bits; bit g of byte i is that of group g."""
    scales, minima = scales_and_minima(block[:, 4:16])
    scales, minima = half(block[:, :2]) * scales, half(block[:, 2:4]) * minima
    fifth = block[:, None, 16:48] >> torch.arange(8)[:, None] & 1  # (n, 8, 32)
    packed = block[:, 48:].unflatten(1, (4, 32))
    whole = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1, 2) + 16 * fifth
    return (scales[..., None] * whole - minima[..., None]).flatten(1)


def q6_k(block: Tensor) -> Tensor:
    """256 numbers in 210 bytes: sixteen groups of 16, each with a scale of 8 bits.

    A float16 number at the end is the unit of the scales. The numbers, from -32 to 31, are stored
    with 32 added: the lower four bits of all come first, then the upper two.
    """
    lower = block[:, :128].unflatten(1, (2, 1, 64)) >> torch.tensor([0, 4])[:, None] & 15
    upper = block[:, 128:192].unflatten(1, (2, 1, 32)) >> torch.tensor([0, 2, 4, 6])[:, None] & 3
    whole = (lower.flatten(1) + 16 * upper.flatten(1)).to(torch.int8) - 32
    scales = half(block[:, 208:]) * block[:, 192:208].view(torch.int8)
    return (scales[..., None] * whole.unflatten(1, (16, 16))).flatten(1)


@dataclass(frozen=True)
class Kind:
    """How numbers are stored: so many in a block of so many bytes, and how they are got out."""

    name: str
    numbers: int
    bytes: int
    unpack: Callable[[Tensor], Tensor]


KINDS = {  # by the number that stands in the file
    0: Kind("F32", 1, 4, lambda block: block.view(torch.float32).clone()),
    1: Kind("F16", 1, 2, half),
    2: Kind("Q4_0", 32, 18, q4_0),
    3: Kind("Q4_1", 32, 20, q4_1),
    6: Kind("Q5_0", 32, 22, q5_0),
    7: Kind("Q5_1", 32, 24, q5_1),
    8: Kind("Q8_0", 32, 34, q8_0),
    12: Kind("Q4_K", 256, 144, q4_k),
    13: Kind("Q5_K", 256, 176, q5_k),
    14: Kind("Q6_K", 256, 210, q6_k),
    30: Kind("BF16", 1, 2, lambda block: block.view(torch.bfloat16).float()),
}

# --- the header ----------------------------------------------------------------------------------

NUMBERS = {  # kinds of metadata that have one size, as `struct` writes them
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9
ALIGNMENT = "general.alignment"  # a tensor begins at a multiple of it; 32 where it is not stated


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands in the file. shape: in torch's order of axes, rows before columns."""

    kind: Kind
    shape: tuple[int, ...]
    start: int  # of its first byte, from the beginning of the file

    @property
    def size(self) -> int:
        """In bytes."""
        return prod(self.shape) // self.kind.numbers * self.kind.bytes


class Header:
    """Reads the beginning of a file, value by value; each may be damaged."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place = data, 0

    def take(self, count: int, what: str) -> bytes:
        left = len(self.data) - self.place
        if count > left:
            raise GGUFError(f"{what} must have {count:,} bytes, and the file has {left:,} more")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, letter: str, what: str):
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))[0]

    def count(self, least: int, what: str) -> int:
        """How many come; each takes at least so many bytes."""
        found, left = self.number("Q", what), len(self.data) - self.place
        if found > left // least:
            raise GGUFError(
                f"{what} must fit into the file, and {found:,} need more than its {left:,} bytes"
            )
        return found

    def string(self, what: str) -> str:
        found = self.take(self.number("Q", what), what)
        try:
            return found.decode("utf-8")
        except UnicodeDecodeError as error:
            raise GGUFError(f"{what} must be UTF-8, found {short(found)}") from error

    def value(self, what: str):
        """One value of the metadata: a number, a truth value, a string, or a list of these."""
        kind = self.number("I", what)
        if kind == STRING:
            return self.string(what)
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], what)
        if kind != ARRAY:
            raise GGUFError(f"{what} must be of a kind from 0 to 12, found {kind}")
        kind = self.number("I", what)
        if kind == STRING:
            return [self.string(what) for _ in range(self.count(8, what))]
        if kind not in NUMBERS:
            raise GGUFError(f"{what} must be a list of numbers or strings, found kind {kind}")
        each = struct.calcsize("<" + NUMBERS[kind])
        count = self.count(each, what)
        return list(struct.unpack(f"<{count}{NUMBERS[kind]}", self.take(count * each, what)))

    def metadata(self, count: int) -> dict:
        found = {}
        for _ in range(count):
            key = self.string("a name in the metadata")
            if key in found:
                raise GGUFError(f"the metadata must hold {short(key)} once, found it twice")
            found[key] = self.value(f"the metadata {short(key)}")
        return found

    def entry(self) -> tuple[str, Entry]:
        """A tensor's name and place, still counted from the beginning of all numbers."""
        name = self.string("a tensor's name")
        what = f"tensor {short(name)}"
        axes = self.number("I", what)
        if not 1 <= axes <= 4:
            raise GGUFError(f"{what} must have 1 to 4 axes, found {axes:,}")
        # The file names the axis first along which neighbours in memory lie; torch names it last.
        shape = tuple(self.number("Q", what) for _ in range(axes))[::-1]
        number, start = self.number("I", what), self.number("Q", what)
        if number not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            raise GGUFError(
                f"{what} must be of a type that is read here ({known}), found type number {number}"
            )
        kind = KINDS[number]
        if min(shape) < 1 or shape[-1] % kind.numbers:
            raise GGUFError(
                f"{what} must have rows of whole blocks of {kind.numbers} ({kind.name}), found the"
                f" shape {short(shape)}"
            )
        return name, Entry(kind, shape, start)


def read_header(data: mmap.mmap) -> tuple[dict, dict[str, Entry]]:
    """A file -> its metadata, and its tensors by name. Raises GGUFError, without the file's name.

    All sizes are compared with the file's own before anything is read or reserved.
    """
    header = Header(data)
    if (magic := header.take(4, "a GGUF file")) != b"GGUF":
        raise GGUFError(f"the first four bytes must be GGUF, found {short(magic)}")
    version = header.number("I", "the version")
    if version not in (2, 3):
        turned = " (it is big-endian)" if version in (2 << 24, 3 << 24) else ""
        raise GGUFError(f"the version must be 2 or 3, found {version}{turned}")
    tensors = header.count(32, "the tensors")  # a name's length, axes, one size, type, offset
    pairs = header.count(13, "the metadata")  # a name's length, kind, one byte
    metadata = header.metadata(pairs)
    alignment = metadata.get(ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 8 or alignment % 8:
        raise GGUFError(f"{ALIGNMENT} must be a multiple of 8, found {short(alignment)}")
    found = [header.entry() for _ in range(tensors)]
    base = -(-header.place // alignment) * alignment
    entries = {}
    for name, entry in found:
        start = base + entry.start
        what = f"tensor {short(name)}"
        if name in entries:
            raise GGUFError(f"the file must hold {what} once, found it twice")
        if entry.start % alignment:
            raise GGUFError(
                f"{what} must begin at a multiple of {alignment}, found {entry.start:,}"
            )
        if start + entry.size > len(data):
            raise GGUFError(
                f"{what} must end within the file, which has {len(data):,} bytes, and it ends at"
                f" {start + entry.size:,}"
            )
        entries[name] = Entry(entry.kind, entry.shape, start)
    ordered = sorted(entries.items(), key=lambda item: item[1].start)
    for (first, before), (second, after) in zip(ordered, ordered[1:], strict=False):
        if before.start + before.size > after.start:
            raise GGUFError(
                f"tensors must not overlap, and {short(first)} reaches into {short(second)}"
            )
    return metadata, entries


class GGUF:
    """A GGUF file: `file.metadata`, `file.names`, and `file[name]`, a tensor in float32.

    The file is mapped into memory: only what is asked for is read. metadata: name -> number, bool,
    str, or a list of one of these. entries: name -> how and where the tensor is stored.
    Raises GGUFError, which names the file, if it is damaged or holds a type not in KINDS.
    """

    def __init__(self, path: str | Path):
        try:
            check_regular(path)
            with open(path, "rb") as file:
                # A copy of its own for whoever writes into it: torch knows no read-only memory.
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise GGUFError(f"{path} must be a readable GGUF file: {error}") from error
        try:
            self.metadata, self.entries = read_header(data)
        except GGUFError as error:
            raise GGUFError(
                f"{path} must be a whole GGUF file: {error}; it is damaged, cut off or of another"
                " kind, get it again"
            ) from error
        self._bytes = torch.frombuffer(data, dtype=torch.uint8)

    @property
    def names(self) -> list[str]:
        """Of the tensors, in the file's order."""
        return list(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def blocks(self, name: str) -> Tensor:
        """The stored bytes of a tensor: uint8 (blocks, bytes of a block). Not to be changed."""
        entry = self.entries[name]
        stored = self._bytes[entry.start : entry.start + entry.size]
        return stored.view(-1, entry.kind.bytes)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor's numbers in float32, in torch's order of axes, in memory of their own."""
        entry = self.entries[name]
        return entry.kind.unpack(self.blocks(name)).view(entry.shape)
