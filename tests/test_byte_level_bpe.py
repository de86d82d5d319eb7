"""Byte-level BPE: the ids of the `tokenizers` package, on odd texts too; and back to the text."""

import random

import pytest

from minipali.byte_level_bpe import CONTROL, ByteLevelBPE, words
from minipali.gguf import GGUF
from minipali.published import PublishedError, find

SPECIAL = ["<|end|>", "<|endless|>", "<one>"]
ODD = [
    "",
    " ",
    "The cat isn't here, they'll say. WE'LL",
    "2026 ½ ² Ⅻ ٣ a1b2 一二",
    "tabs\t\tand \n\n lines \r\n end  ",
    "\x00\x1c\x1f\x85\xa0\u2003\u3000 x",
    "snake_case __init__ _ -- 'quoted' 's",
    "naïve café Ω ß क्ष 日本語 👩\u200d👩\u200d👧 e\u0301",
    "<|end|><|endless|> <one<one> <|end",
]


def odd_texts(count: int) -> list[str]:
    rng = random.Random(0)
    letters = list("abc'stre '  \t\n\x1c\x85\xa0\u3000_-.,12½Ⅻ一日éष\u0301\u200d🦊") + SPECIAL
    made = ["".join(rng.choices(letters, k=rng.randrange(20))) for _ in range(count)]
    strange = ["".join(chr(rng.randrange(1, 0xD800)) for _ in range(12)) for _ in range(count)]
    return [*ODD, *made, *strange]


def theirs(tokens: list[str], merges: list[str], special: list[str]):
    package = pytest.importorskip("tokenizers", reason="needs transformers, of the extra dev")
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    found = package.Tokenizer(models.BPE(vocabulary, [tuple(m.split(" ")) for m in merges]))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    found.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens(special)
    return found


@pytest.fixture(scope="module")
def both():
    """A small tokenizer, which the package trained on these texts; "\\x1c" has no token."""
    pytest.importorskip("tokenizers", reason="needs transformers, of the extra dev")
    from tokenizers import trainers

    taught = theirs(["a"], [], [])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    taught.train_from_iterator([text.replace("\x1c", "") for text in ODD * 3], trainer)
    tokens = [taught.id_to_token(number) for number in range(taught.get_vocab_size())]
    merges = []  # a merge has the rank of the token that it makes
    for token in tokens[len(SPECIAL) :]:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [f"{a} {b}" for a, b in halves if a in tokens and b in tokens]
    types = [CONTROL if token in SPECIAL else 1 for token in tokens]
    return ByteLevelBPE(tokens, merges, types), theirs(tokens, merges, SPECIAL)


def test_ids_and_texts_are_those_of_the_package(both):
    mine, package = both
    for text in odd_texts(300):
        ids = package.encode(text).ids
        assert mine.encode(text) == ids, text
        assert mine.decode(ids) == package.decode(ids)


def test_words_worked_out_by_hand():
    assert words("I'm  a cat, 42!\n\n b") == [
        "I", "'m", " ", " a", " cat", ",", " ", "4", "2", "!", "\n\n", " b"
    ]  # fmt: skip


def test_merges_worked_out_by_hand():
    """The pair that was found first is merged first, everywhere in the word."""
    tokens = ["a", "b", "ab", "abab", "ba", "Ġ", "<x>"]
    mine = ByteLevelBPE(tokens, ["a b", "ab ab", "b a"], [1] * 6 + [CONTROL])
    assert mine.encode("ababa") == [3, 0]
    assert mine.encode("bab") == [1, 2]
    assert mine.encode("ab<x> ba") == [2, 6, 5, 4]
    assert mine.encode("<x>", special=False) == []  # none of these letters has a token here
    assert mine.decode([2, 6, 5, 4]) == "ab ba"
    assert mine.decode([2, 6, 5, 4], special=True) == "ab<x> ba"


def test_half_a_letter_is_told_as_such():
    letters = ByteLevelBPE(["Ã", "©"], [], [1, 1])  # the two bytes of é
    assert letters.decode([0, 1]) == "é" and letters.decode([0]) == "\ufffd"


def test_another_tokenizer_is_refused():
    with pytest.raises(ValueError, match="must be gpt2's with smollm's words, found llama with No"):
        ByteLevelBPE.from_metadata({"tokenizer.ggml.model": "llama"})


def test_the_published_tokenizer():
    try:
        metadata = GGUF(find("smollm2")).metadata
    except PublishedError as error:
        pytest.skip(str(error))
    mine = ByteLevelBPE.from_metadata(metadata)
    special = sorted(mine.special, key=mine.ids.get)
    package = theirs(mine.tokens, metadata["tokenizer.ggml.merges"], special)
    for text in [*odd_texts(300), "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"]:
        ids = package.encode(text).ids
        assert mine.encode(text) == ids, text
        assert mine.decode(ids) == package.decode(ids)
