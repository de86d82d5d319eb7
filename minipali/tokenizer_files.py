"""The files beside the weights that transformers wants: `tokenizer.json` and its kin.

They say nothing that `tokenizer.model` and the config do not say already; `minipali` itself does
not read them.
"""

import struct

from minipali.tokens import LOCATIONS, SEGMENTS, Processor

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Kinds of a piece in a SentencePiece file.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4


def processor_files(processor: Processor) -> dict[str, dict]:
    """The content of each file by its name."""
    config = processor.config
    side = config.vision.image_size
    return {
        "tokenizer.json": tokenizer_json(processor),
        "tokenizer_config.json": tokenizer_config(processor),
        "special_tokens_map.json": _special_tokens(processor),
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_seq_length": config.vision.num_patches,
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "PaliGemmaProcessor",
            "resample": 3,  # Pillow's number of the bicubic filter
            "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side},
        },
        "generation_config.json": {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        },
    }


def _special_tokens(processor: Processor) -> dict:
    pieces, config = processor.sentencepiece, processor.config
    return {
        "bos_token": pieces.IdToPiece(config.bos_token_id),
        "eos_token": pieces.IdToPiece(config.eos_token_id),
        "pad_token": pieces.IdToPiece(config.pad_token_id),
        "unk_token": pieces.IdToPiece(pieces.unk_id()),
        "additional_special_tokens": ["<image>"],
    }


def tokenizer_config(processor: Processor) -> dict:
    """The content of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "PaliGemmaProcessor",
        "add_bos_token": False,  # the processor writes <bos> itself, after the image tokens
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": processor.config.text.max_position_embeddings,
        "padding_side": "left",
        **_special_tokens(processor),
    }


def tokenizer_json(processor: Processor) -> dict:
    """The content of `tokenizer.json`: the same byte-pair encoding as `tokenizer.model`.

    The vocabulary is the pieces. A SentencePiece file gives each piece a score and joins the pair
    with the best result first; `tokenizer.json` lists the pairs in the order they are joined.
    """
    pieces = parse_pieces(processor.sentencepiece.serialized_model_proto())
    pieces = pieces[: processor.first_location]
    vocab = {piece: number for number, (piece, _, _) in enumerate(pieces)}
    kinds = {piece: kind for piece, _, kind in pieces}

    pairs = []
    for piece, score, kind in pieces:
        if kind != NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if kinds.get(left) == kinds.get(right) == NORMAL:
                pairs.append((-score, -len(left), [left, right]))
    pairs.sort(key=lambda pair: pair[:2])

    added = [(i, p, True) for i, (p, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)]
    added += [(i, p, False) for i, (p, _, kind) in enumerate(pieces) if kind == USER_DEFINED]
    first, segment = processor.first_location, processor.first_segment
    added += [(first + i, f"<loc{i:04d}>", False) for i in range(LOCATIONS)]
    added += [(segment + i, f"<seg{i:03d}>", False) for i in range(SEGMENTS)]
    added += [(processor.config.image_token_id, "<image>", True)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for number, token, special in sorted(added)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": processor.sentencepiece.IdToPiece(processor.sentencepiece.unk_id()),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [pair for _, _, pair in pairs],
        },
    }


def parse_pieces(model: bytes) -> list[tuple[str, float, int]]:
    """(piece, score, kind) of each piece in the bytes of a SentencePiece file.

    The library does not tell which pieces are user-defined, so this reads the protobuf: field 1 of
    the file is a piece, whose fields 1 to 3 are the text, the score and the kind (1 if not given).
    """
    pieces = []
    for number, piece in _fields(model):
        if number == 1:
            values = {1: b"", 2: b"\0\0\0\0", 3: NORMAL} | dict(_fields(piece))
            pieces.append((values[1].decode(), struct.unpack("<f", values[2])[0], values[3]))
    return pieces


def _fields(message: bytes):
    """(field number, value) of a protobuf message: an int, or bytes for all other kinds."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 2: None, 5: 4}[tag & 7]  # two fixed sizes, and one that says its length
        size = varint() if size is None else size
        yield tag >> 3, message[place : place + size]
        place += size
