"""Train the small model's tokenizer on every kind of prompt and answer.

    python tools/train_tokenizer.py            writes minipali/assets/small/tokenizer.model

Byte-pair encoding with byte fallback, as Gemma's: every object and colour becomes one token, and
any other text falls back to letters and bytes. A model trained with one tokenizer cannot be used
with another: train it again after a change.
"""

import io
import string
from pathlib import Path

import sentencepiece

from minipali import scenes
from minipali.recipe import SENTENCES

TARGET = Path(__file__).resolve().parents[1] / "minipali" / "assets" / "small" / "tokenizer.model"
PIECES = 640


def corpus() -> list[str]:
    lines = {
        "caption en",
        "answer en what is this?",
        "answer en what colour is the background?",
        "answer en how many objects are there?",
        "yes",
        "no",
        *SENTENCES,
        *string.digits,
    }
    for name in scenes.OBJECTS:
        one, many = scenes.with_article(name), scenes.plural(name)
        lines |= {
            f"answer en how many {many} are there?",
            f"answer en how many {name} are there?",
            f"answer en is there {one}?",
            f"answer en is there a {name}?",
            f"detect {name}",
            name,
            f" {name} ; ",
            f"two {many}, {one} and",
            f"three {many} on a",
            f"{one}, {one} on a",
        }
    for colour in scenes.BACKGROUNDS:
        lines |= {colour, f" on a {colour} background"}
    for place in ("on the left", "on the right", "at the top", "at the bottom"):
        lines.add(f"answer en what is {place}?")
    letters = string.ascii_letters + string.digits + string.punctuation.replace("<", "")
    return sorted(lines) * 20 + [letters] * 2


if __name__ == "__main__":
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=made,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        # The ids of Gemma's tokenizer; the newline ends every prompt and must be one token.
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["<mask>", "\n"],
        num_threads=1,
        minloglevel=2,
    )
    TARGET.write_bytes(made.getvalue())
    print(f"{TARGET.name}: {PIECES} pieces, {len(made.getvalue()):,} bytes")
