"""Tokenizers out of GGUF files: SentencePiece's file made again from its pieces."""

import pytest
import sentencepiece

import minipali
from minipali.gguf_tokenizers import read_tokenizer
from minipali.tokenizer_files import parse_pieces

TEXTS = [
    "what is on the left?",
    " a  space,   and three; \t tab\nnew line",
    "",
    "Größe 漢字 🐕 zero\u200bwidth",
    "two▁marks ▁ and <0x41> <eos> <mask>",
]
RUN = "\u2581" * 3  # a piece for three spaces, such as the Gemmas have


def with_runs() -> tuple[bytes, list]:
    """The small model's SentencePiece file with a user-defined piece more, and its pieces."""
    _, processor = minipali.load("small")
    stored = processor.sentencepiece.serialized_model_proto()
    piece = b"\x0a" + bytes([len(RUN.encode())]) + RUN.encode() + b"\x15\0\0\0\0\x18\x04"
    stored += b"\x0a" + bytes([len(piece)]) + piece
    return stored, parse_pieces(stored)


def metadata_of(pieces, **more) -> dict:
    """As llama.cpp keeps them, which writes runs of spaces as they are."""
    tokens = [text.replace("\u2581", " ") if text == RUN else text for text, _, _ in pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [score for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_is_what_it_was(text):
    stored, pieces = with_runs()
    original = sentencepiece.SentencePieceProcessor(model_proto=stored)
    again = read_tokenizer(metadata_of(pieces), len(pieces))
    assert again.encode(text) == [2, *original.encode(text)]
    assert again.decode(again.encode(text)) == original.decode(original.encode(text))
    assert again.eos == 1 and not again.chats


def test_runs_of_spaces_are_one_piece():
    _, pieces = with_runs()
    assert len(pieces) - 1 in read_tokenizer(metadata_of(pieces), len(pieces)).encode("a   b")


def test_a_space_in_front_and_a_first_token_where_the_file_wants_them():
    _, pieces = with_runs()
    plain = read_tokenizer(metadata_of(pieces, add_bos_token=False), len(pieces))
    front = read_tokenizer(
        metadata_of(pieces, add_bos_token=False, add_space_prefix=True), len(pieces)
    )
    assert front.encode("dog") == plain.encode(" dog") != plain.encode("dog")


DAMAGED = [
    ({"tokens": ["a"]}, "must have 641 tokens, found 1"),
    ({"token_type": None}, "must have 641 token_type, found None"),
    ({"eos_token_id": 641}, "eos_token_id must be from 0 to 640, found 641"),
    ({"model": "bert"}, "must be gpt2's or llama's, found 'bert'"),
    ({"token_type": [1] * 641}, "its pieces must make a SentencePiece tokenizer"),
]


@pytest.mark.parametrize("change, told", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_metadata_are_told(change, told):
    _, pieces = with_runs()
    with pytest.raises(ValueError, match=told):
        read_tokenizer(metadata_of(pieces, **change), len(pieces))
