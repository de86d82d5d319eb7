"""Byte-level BPE: the tokenizer of GPT-2 and of SmolLM2, as a GGUF file holds it.

Text is cut into words, a word into its UTF-8 bytes, and pairs of neighbours are merged in the order
in which training found them. So no word is unknown. (SmolLM2's list lacks tokens for some bytes
that hardly occur, such as most control characters; they vanish, as in the tokenizers package.)

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

import functools
import re
import unicodedata

CONTROL = 3  # the type of a token that is no text, such as <|im_start|>

# What Unicode calls white space. Python's \s has four control characters more.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# GPT-2's words: an ending after an apostrophe; letters, or signs, with one space before; spaces,
# of which the last belongs to what follows. There are no digits here, see `words`.
WORD = re.compile(
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W_]+| ?(?:[^\w{SPACE}]|_)+|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
)


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in the files: itself if it can be seen, else another.

    Those without a picture of their own, such as the space, get the letters from U+0100 on.
    """
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def words(text: str) -> list[str]:
    """Cut a text so that no token reaches over a cut; every digit is a word of its own."""
    found, start = [], 0
    for place, letter in enumerate(text):
        if unicodedata.category(letter).startswith("N"):
            found += [*WORD.findall(text[start:place]), letter]
            start = place + 1
    return found + WORD.findall(text[start:])


class ByteLevelBPE:
    """Text to token ids and back.

    tokens: all of them, by id; merges: pairs "left right", the first found first; types: of each
    token. All three are in the metadata of a GGUF file, see `from_metadata`.
    """

    def __init__(self, tokens: list[str], merges: list[str], types: list[int]):
        self.tokens, self.ids = tokens, {token: id_ for id_, token in enumerate(tokens)}
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}
        self.letters = byte_letters()
        self.bytes = {letter: byte for byte, letter in self.letters.items()}
        special = [token for token, type_ in zip(tokens, types, strict=True) if type_ == CONTROL]
        self.special = set(special)
        # The longest first: one may be the beginning of another.
        ordered = sorted(special, key=len, reverse=True)
        self.cut = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
        self.merged = functools.lru_cache(maxsize=2**14)(self._merged)

    @classmethod
    def from_metadata(cls, metadata: dict) -> "ByteLevelBPE":
        """From `GGUF(path).metadata`. Raises ValueError if the file has another tokenizer."""
        kind = [metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
        if kind != ["gpt2", "smollm"]:
            raise ValueError(
                f"the tokenizer must be gpt2's with smollm's words, found {kind[0]} with {kind[1]}"
            )
        keys = ("tokens", "merges", "token_type")
        return cls(*(metadata[f"tokenizer.ggml.{key}"] for key in keys))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Text -> ids. special: whether "<|im_start|>" in it is that token, or these letters."""
        found, start = [], 0
        for cut in self.cut.finditer(text) if special else ():
            found += self._encode(text[start : cut.start()])
            found.append(self.ids[cut[0]])
            start = cut.end()
        return found + self._encode(text[start:])

    def _encode(self, text: str) -> list[int]:
        return [id_ for word in words(text) for id_ in self.merged(word)]

    def _merged(self, word: str) -> tuple[int, ...]:
        """The ids of a word: merge the pair that comes first in the list, until none is in it."""
        letters = (self.letters[byte] for byte in word.encode("utf-8", "replace"))
        parts = [letter for letter in letters if letter in self.ids]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            joined, place = [], 0
            while place < len(parts):
                both = tuple(parts[place : place + 2]) == best
                joined.append("".join(best) if both else parts[place])
                place += 1 + both
            parts = joined
        return tuple(self.ids[part] for part in parts)

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Ids -> text. Bytes that are no UTF-8 become "\ufffd". special: show such tokens too."""
        stored = b""
        for token in (self.tokens[id_] for id_ in ids):
            if token not in self.special:
                stored += bytes(self.bytes[letter] for letter in token)
            elif special:
                stored += token.encode("utf-8")
        return stored.decode("utf-8", "replace")
