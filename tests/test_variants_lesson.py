"""Lesson 20: its pieces against `tokenizers` and in models, SmolLM2 against transformers."""

import random
import string
from functools import partial

import pytest
import torch

from minipali import published, variants
from minipali.checks import variants as pieces
from minipali.checks.engine import examine
from minipali.published import PublishedError


def foreign(function):
    """The same function, but not itself an object of minipali."""
    return lambda *arguments: function(*arguments)


@pytest.fixture
def without_weights(monkeypatch):
    def load(name):
        raise PublishedError("not here")

    monkeypatch.setattr(variants, "load", load)


def known(exercise, name: str):
    return next(one.wrong for one in exercise.mistakes if one.name == name)


def test_a_tokenizer_trained_by_hand_has_the_merges_of_the_tokenizers_library():
    tokenizers = pytest.importorskip("tokenizers")
    drawn = random.Random(20)
    # Pairs of letters that no word repeats side by side, and counts that make ties improbable.
    words = {
        "".join(drawn.sample(string.ascii_lowercase[:9], drawn.randint(3, 7))): 0 for _ in range(60)
    }
    counts = {word: drawn.randint(1, 5000) for word in words}
    found = pieces.train_bpe(list(counts), list(counts.values()), 25)

    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=9 + 25, show_progress=False)
    theirs.train_from_iterator((" ".join([word] * n) for word, n in counts.items()), trainer)
    vocabulary = sorted(theirs.get_vocab().items(), key=lambda item: item[1])
    assert ["".join(pair) for pair in found] == [token for token, _ in vocabulary[9:]]


def test_right_pieces_give_the_packages_logits_and_wrong_ones_do_not(without_weights, capsys):
    swiglu = foreign(pieces.swiglu)
    assert pieces.try_llama(swiglu, variants.halves_from_pairs)
    assert not pieces.try_llama(known(pieces.SWIGLU, "Gemma's"), variants.halves_from_pairs)
    assert not pieces.try_llama(swiglu, known(pieces.HALVES, "as it was"))
    norm_and_turn, layer_mask = pieces.norm_and_turn, pieces.layer_mask
    assert pieces.try_gemma3(norm_and_turn, layer_mask)
    assert not pieces.try_gemma3(known(pieces.NORM_AND_TURN, "turned first"), layer_mask)
    for name in ("one too many", "from layer 0"):
        assert not pieces.try_gemma3(norm_and_turn, known(pieces.LAYER_MASK, name))
    told = capsys.readouterr().out
    assert told.count("so your pieces work in a small model with random weights") == 7
    assert told.count("correct") == 2 and told.count("wrong") == 5


def test_a_stub_is_said_to_be_one(without_weights, capsys):
    def stub(*given):
        raise NotImplementedError

    pieces.try_llama(stub, stub), pieces.try_gemma3(stub, stub)
    pieces.merges_beside(stub, ["ab"], [2])
    assert capsys.readouterr().out.count("not attempted") == 3


def test_words_to_learn_merges_from():
    words, counts = pieces.english_words(200)
    assert len(set(words)) == 200 and "Ġthe" in words
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("exercise", "both"),
    [
        (pieces.SWIGLU, ("Gemma's", "gate and up exchanged")),
        (pieces.NORM_AND_TURN, ("weight alone", "eps forgotten")),
        (pieces.LAYER_MASK, ("one too many", "from layer 0")),
        (pieces.TRAIN_BPE, ("counts ignored", "joined")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_two_mistakes_at_once_are_both_named(exercise, both, monkeypatch):
    monkeypatch.setattr("minipali.checks.engine._finished_modules", lambda exercise: set())
    first, second = (known(exercise, name) for name in both)
    attempt = partial(first.func, **first.keywords, **second.keywords)
    message = examine(exercise, foreign(attempt)).message
    says = [one.says for one in exercise.mistakes if one.name in both]
    assert message.startswith("Two things at once") and all(one in message for one in says)


@pytest.fixture
def smollm2():
    try:
        return published.find("smollm2")
    except PublishedError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm2_gives_the_logits_that_transformers_reads_out_of_the_same_file(smollm2):
    """23 s of CPU: transformers reads the file on its own, rows, types and sizes."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    ours, tokenizer = variants.load("smollm2")
    chat = variants.chat_prompt([("user", "What is the capital of France?")])
    for text in (chat, "The mill by the river has been turning for two hundred years. " * 8):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.inference_mode():
            expected, found = theirs(ids).logits, ours.logits(variants.causal_states(ours, ids))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # of up to 40
        assert torch.equal(found.argmax(dim=-1), expected.argmax(dim=-1))
