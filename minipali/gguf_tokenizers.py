"""The tokenizer of a language model, as it stands in the metadata of a GGUF file.

Two kinds are read: the byte-level BPE of SmolLM2, and the SentencePiece of the Gemmas and old
Llamas, whose pieces and scores make a SentencePiece file again.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import sentencepiece

from minipali.byte_level_bpe import ByteLevelBPE
from minipali.config import short

SPACE = "\u2581"  # what SentencePiece writes for a space
BPE = 2  # SentencePiece's number of the way in which pieces are joined
BYTE = 6  # the kind of the pieces that stand for a byte each, where all else is unknown


@dataclass(frozen=True)
class Tokenizer:
    """encode: text -> ids, with the first token if texts have one; decode: ids -> text.

    eos: the id that ends a text or a turn. chats: whether the model was trained to answer, in the
    marks of `minipali.variants.chat_prompt`.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    eos: int
    chats: bool


def read_tokenizer(metadata: dict, vocab_size: int) -> Tokenizer:
    """From `GGUF(path).metadata`. Raises ValueError for a tokenizer of another kind or size."""
    of = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    for name in ("tokens", "token_type"):
        if not isinstance(of.get(name), list) or len(of[name]) != vocab_size:
            found = f"{len(of[name]):,}" if isinstance(of.get(name), list) else short(of.get(name))
            raise ValueError(f"the tokenizer must have {vocab_size:,} {name}, found {found}")
    eos = of.get("eos_token_id")
    if type(eos) is not int or not 0 <= eos < vocab_size:
        raise ValueError(f"eos_token_id must be from 0 to {vocab_size - 1}, found {short(eos)}")
    chats = "<|im_start|>" in metadata.get("tokenizer.chat_template", "")
    if of.get("model") == "gpt2":
        bpe = ByteLevelBPE.from_metadata(metadata)
        return Tokenizer(bpe.encode, bpe.decode, eos, chats)
    if of.get("model") != "llama":
        raise ValueError(f"the tokenizer must be gpt2's or llama's, found {short(of.get('model'))}")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_file(of))
    except RuntimeError as error:
        raise ValueError(f"its pieces must make a SentencePiece tokenizer: {error}") from error
    # Both are true where the file does not say otherwise.
    first = [of["bos_token_id"]] if of.get("add_bos_token", True) else []
    return Tokenizer(lambda text: first + pieces.encode(text), pieces.decode, eos, chats)


def sentencepiece_file(of: dict) -> bytes:
    """The bytes of `tokenizer.model` again, from pieces, scores and kinds.

    It is a protobuf: field 1 is a piece, with text, score and kind; field 2 says how pieces are
    joined; field 3 how a text is made ready, of which a space in front is one thing.
    """
    stored = b""
    for piece, score, kind in zip(of["tokens"], of["scores"], of["token_type"], strict=True):
        text = piece.replace(" ", SPACE).encode()
        one = _field(1, text) + b"\x15" + struct.pack("<f", float(score)) + b"\x18" + _varint(kind)
        stored += _field(1, one)
    ids = {"unknown": 40, "bos": 41, "eos": 42, "padding": 43}
    all_bytes = of["token_type"].count(BYTE) == 256
    trainer = b"\x18" + _varint(BPE) + b"\x98\x02" + bytes([all_bytes])  # field 35: use them
    for name, number in ids.items():
        value = of.get(f"{name}_token_id", -1)
        trainer += _varint(number << 3) + _varint(value % 2**64)
    # Fields 3, 4, 5: a space in front, runs of spaces as one, spaces as SPACE.
    front = bool(of.get("add_space_prefix", True))
    normalizer = _field(1, b"identity") + bytes((0x18, front, 0x20, 0, 0x28, 1))
    return stored + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first; all but the last have bit 8 set."""
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes((*found, value))
