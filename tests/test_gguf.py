"""GGUF files: each type to the last bit as the `gguf` package reads it; damaged files are told."""

import struct

import numpy as np
import pytest
import torch

from minipali.gguf import ARRAY, GGUF, KINDS, NUMBERS, STRING, GGUFError

F32, Q4_1, Q8_0 = 0, 3, 8
STRANGE = 2**63


def text(value: str) -> bytes:
    value = value.encode("utf-8")
    return struct.pack("<Q", len(value)) + value


def entry(name=b"\x01\0\0\0\0\0\0\0a", axes=(4, 3), kind=F32, start=0, count=None) -> bytes:
    """One line of the table of tensors; axes: the nearest neighbours in memory first."""
    count = len(axes) if count is None else count
    sizes = struct.pack(f"<{len(axes)}Q", *axes)
    return name + struct.pack("<I", count) + sizes + struct.pack("<IQ", kind, start)


def gguf_bytes(
    entries=None, pairs=(), numbers=None, magic=b"GGUF", version=3, tensors=None, count=None
) -> bytes:
    """A file, written by hand; by default with one tensor "a" of 3 rows of 4 numbers."""
    entries = [entry()] if entries is None else entries
    numbers = np.arange(12, dtype="<f4").tobytes() if numbers is None else numbers
    tensors = len(entries) if tensors is None else tensors
    count = len(pairs) if count is None else count
    head = magic + struct.pack("<IQQ", version, tensors, count) + b"".join([*pairs, *entries])
    return head + bytes(-len(head) % 32) + numbers


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


@pytest.fixture
def opened(tmp_path):
    def write_and_open(*parts, **named) -> GGUF:
        content = parts[0] if parts else gguf_bytes(**named)
        path = tmp_path / "file é.gguf"
        path.write_bytes(content)
        return GGUF(path)

    return write_and_open


# --- what a file holds ----------------------------------------------------------------------------


def test_rows_and_columns_are_in_torchs_order(opened):
    file = opened()
    assert file.names == list(file) == ["a"] and len(file) == 1
    assert torch.equal(file["a"], torch.arange(12.0).view(3, 4))
    with pytest.raises(KeyError):
        file["b"]


def test_a_tensor_is_the_callers_own_and_the_file_stays(opened, tmp_path):
    file = opened()
    file["a"].zero_()
    assert file["a"].sum() == 66
    assert (tmp_path / "file é.gguf").read_bytes() == gguf_bytes()


def test_blocks_worked_out_by_hand(opened):
    # Scale 0.5 and least -1; the first byte holds the numbers 0 (its lower half) and 16.
    q4_1 = np.array([0.5, -1], "<f2").tobytes() + bytes([0xF3, *[0x10] * 15])
    q8_0 = np.array([0.25], "<f2").tobytes() + bytes([0x80, 127, *range(30)])
    table = [entry(axes=(32,), kind=Q4_1), entry(text("b"), (32,), Q8_0, 32)]
    file = opened(entries=table, numbers=q4_1 + bytes(12) + q8_0)
    assert file["a"].tolist() == [0.5, *[-1.0] * 15, 6.5, *[-0.5] * 15]
    assert file["b"].tolist() == [-32.0, 31.75, *(number / 4 for number in range(30))]
    assert file.entries["a"].kind.name == "Q4_1" and file.blocks("b").shape == (1, 34)


def test_every_kind_of_metadata(opened):
    values = {0: 200, 1: -3, 2: 60000, 3: -300, 4: 2**31, 5: -(2**31), 6: 0.5, 7: True}
    values |= {10: 2**63, 11: -(2**62), 12: 0.1}
    pairs = [pair(f"one {k}", k, struct.pack("<" + NUMBERS[k], v)) for k, v in values.items()]
    for kind, value in values.items():
        listed = struct.pack("<IQ", kind, 2) + 2 * struct.pack("<" + NUMBERS[kind], value)
        pairs.append(pair(f"two {kind}", ARRAY, listed))
    words = struct.pack("<IQ", STRING, 2) + text("zwei") + text("")
    pairs += [pair("words", ARRAY, words), pair("word", STRING, text("é"))]
    assert opened(pairs=pairs).metadata == {
        **{f"one {kind}": value for kind, value in values.items()},
        **{f"two {kind}": [value, value] for kind, value in values.items()},
        "words": ["zwei", ""],
        "word": "é",
    }


def test_an_alignment_of_the_files_own(opened):
    aligned = pair("general.alignment", 4, struct.pack("<I", 64))
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + aligned + entry()
    numbers = np.arange(12, dtype="<f4").tobytes()
    assert opened(head + bytes(-len(head) % 64) + numbers)["a"].sum() == 66


# --- the gguf package -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("gguf", reason="needs the package gguf, of the extra dev")


@pytest.mark.parametrize("number", KINDS, ids=lambda number: KINDS[number].name)
def test_every_bit_is_that_of_the_package(opened, package, number):
    """Random bytes, so that every field of a block takes every value."""
    kind, rng = KINDS[number], np.random.default_rng(number)
    stored = rng.integers(0, 256, (300, kind.bytes), "uint8")
    # The float16 numbers of a block are finite, as in any sound file.
    places = {"F32": [2], "Q6_K": [208]}.get(kind.name, [0, 2] if kind.name[-1] in "1K" else [0])
    for place in places:
        stored[:, place : place + 2] = (
            rng.normal(size=300).astype("<f2").view("uint8").reshape(300, 2)
        )
    found = opened(
        entries=[entry(axes=(kind.numbers * 3, 100), kind=number)], numbers=stored.tobytes()
    )["a"]
    # It wants plain numbers as such, and all else in bytes.
    plain = {"F32": "<f4", "F16": "<f2"}.get(kind.name, "u1")
    theirs = package.quants.dequantize(
        stored.reshape(100, -1).view(plain), package.GGMLQuantizationType[kind.name]
    ).astype(np.float32)
    assert found.shape == theirs.shape == (100, 3 * kind.numbers)
    assert np.array_equal(found.numpy().view("i4"), theirs.view("i4"))
    assert len(np.unique(theirs)) > 200


def test_a_file_that_the_package_wrote(package, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(6, 64)),
        "b": rng.normal(size=5),
        "c": rng.normal(size=(2, 3, 32)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    kinds = {"w": "Q4_1", "b": "F32", "c": "Q8_0"}
    writer = package.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_block_count(30)
    writer.add_token_list(["a", "Ġb", "é"])
    writer.add_rope_freq_base(1e5)
    for name, array in arrays.items():
        kind = package.GGMLQuantizationType[kinds[name]]
        writer.add_tensor(name, package.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUF(tmp_path / "a.gguf")
    assert file.metadata["llama.block_count"] == 30
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "Ġb", "é"]
    assert file.metadata["llama.rope.freq_base"] == 1e5
    assert {name: file.entries[name].kind.name for name in file} == kinds
    for name, array in arrays.items():
        assert file[name].shape == array.shape
        step = {"Q4_1": np.ptp(array) / 15, "Q8_0": abs(array).max() / 127, "F32": 0}[kinds[name]]
        assert abs(file[name].numpy() - array).max() <= 0.51 * step + 1e-3 * bool(step)


# --- damaged files --------------------------------------------------------------------------------

LONG = struct.pack("<Q", STRANGE)
DAMAGED = {
    "another kind": ({"magic": b"PK\x03\x04"}, "first four bytes must be GGUF"),
    "version 1": ({"version": 1}, "version must be 2 or 3, found 1;"),
    "big-endian": ({"version": 3 << 24}, "it is big-endian"),
    "tensors": ({"tensors": STRANGE}, "the tensors must fit into the file"),
    "one tensor too many": ({"tensors": 2}, "must have|must be"),
    "metadata": ({"count": STRANGE}, "the metadata must fit into the file"),
    "one pair too many": ({"count": 1}, "must have|must be"),
    "a key's length": ({"pairs": [LONG + b"a" * 40]}, "a name in the metadata must have 9,223"),
    "a key twice": ({"pairs": 2 * [pair("k", 0, b"\1")]}, "'k' once, found it twice"),
    "a key not UTF-8": (
        {"pairs": [b"\1" + bytes(7) + b"\xff" + pair("", 0, b"\1")[8:]]},
        "must be UTF-8, found b'",
    ),
    "a kind of value": ({"pairs": [pair("k", 13, b"\1")]}, "'k' must be of a kind from 0 to 12"),
    "a string's length": ({"pairs": [pair("k", 8, LONG)]}, "'k' must have 9,223"),
    "a list's length": ({"pairs": [pair("k", 9, struct.pack("<I", 4) + LONG)]}, "'k' must fit"),
    "a list of strings": ({"pairs": [pair("k", 9, struct.pack("<I", 8) + LONG)]}, "'k' must fit"),
    "a list of lists": (
        {"pairs": [pair("k", 9, struct.pack("<IQ", 9, 1) + bytes(40))]},
        "list of numbers or strings, found kind 9",
    ),
    "alignment 0": ({"pairs": [pair("general.alignment", 4, bytes(4))]}, "multiple of 8, found 0"),
    "alignment a word": (
        {"pairs": [pair("general.alignment", 8, text("x"))]},
        "multiple of 8, found 'x'",
    ),
    "a name's length": ({"entries": [entry(LONG + b"a" * 40)]}, "a tensor's name must have 9,223"),
    "no axes": ({"entries": [entry(axes=(), count=0) + bytes(32)]}, "1 to 4 axes, found 0"),
    "many axes": ({"entries": [entry(count=2**31)]}, "1 to 4 axes, found 2,147"),
    "an axis of 0": ({"entries": [entry(axes=(4, 0))]}, r"found the shape \(0, 4\)"),
    "a long axis": ({"entries": [entry(axes=(STRANGE, 4))]}, "must end within the file"),
    "long axes": ({"entries": [entry(axes=(STRANGE,) * 4)]}, "must end within the file"),
    "half a block": ({"entries": [entry(axes=(48, 2), kind=Q8_0)]}, "whole blocks of 32"),
    "an unknown type": ({"entries": [entry(kind=10)]}, "found type number 10;"),
    "a strange type": ({"entries": [entry(kind=2**32 - 1)]}, "found type number 4294967295;"),
    "a far offset": ({"entries": [entry(start=STRANGE)]}, "must end within the file"),
    "an odd offset": ({"entries": [entry(start=1)]}, "multiple of 32, found 1;"),
    "a tensor twice": ({"entries": [entry(), entry()]}, "'a' once, found it twice"),
    "two in one place": (
        {"entries": [entry(), entry(text("b"), start=32)], "numbers": bytes(96)},
        "must not overlap, and 'a' reaches into 'b'",
    ),
    "numbers are missing": ({"numbers": bytes(47)}, "must end within the file"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_told_in_one_sentence(opened, damage):
    parts, told = DAMAGED[damage]
    with pytest.raises(GGUFError, match=told) as raised:
        opened(**parts)
    sentence = str(raised.value)
    assert "file é.gguf must be a whole GGUF file: " in sentence and "\n" not in sentence
    assert sentence.endswith("get it again") and len(sentence) < 500


def test_a_file_may_end_anywhere(opened):
    whole = gguf_bytes(pairs=[pair("k", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))])
    for length in range(len(whole)):
        with pytest.raises(GGUFError):
            opened(whole[:length])


def test_any_byte_may_be_another(opened):
    """Then the file is refused, or it is one that could be so; nothing else is raised."""
    whole = gguf_bytes(pairs=[pair("k", 9, struct.pack("<IQ", 4, 2) + bytes(8))])
    refused = 0
    for place in range(len(whole) - 48):
        for value in (0, 9, 255):
            try:
                file = opened(whole[:place] + bytes([value]) + whole[place + 1 :])
                assert all(file[name].dtype == torch.float32 for name in file)
            except GGUFError:
                refused += 1
    assert refused > 150


@pytest.mark.parametrize("what", ["nothing", "a folder", "an empty file"])
def test_what_is_no_file(tmp_path, what):
    path = tmp_path / "x.gguf"
    if what == "a folder":
        path.mkdir()
    elif what == "an empty file":
        path.touch()
    with pytest.raises(GGUFError, match="x.gguf must be a readable GGUF file"):
        GGUF(path)
