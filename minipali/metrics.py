"""How well answers about people's own pictures agree with what was wanted, by the usual measures.

`evaluation` measures the small model on scenes, whose every answer is known; here any answers are
compared.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from minipali.locations import Box, overlap

# --- words ---------------------------------------------------------------------------------------


def exact_match(told: str, wanted: str) -> float:
    """1 if the answer is the wanted one, letter by letter, but for space around it."""
    return float(told.strip() == wanted.strip())


_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(i) for i, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've"""
# Where one apostrophe is missing it comes back, where two are the word stays as it is.
_WHOLE = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS.split()
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # as that code has it


def normalise(answer: str) -> str:
    """An answer as the VQA evaluation compares it.

    Lower case, numbers up to ten as digits, no articles, no punctuation but points before a digit,
    apostrophes where they belong. Source: Antol et al. 2015, "VQA: Visual Question Answering", and
    the evaluation code of VQAv2 (vqaEval.py, whose tables and order this follows).
    """
    text = " ".join(answer.split())
    in_a_number = re.search(r"\d,\d", text) is not None
    result = text
    for mark in _PUNCTUATION:
        # Between two words it parts them; beside a space, or where a number has commas, it is lost.
        lost = f"{mark} " in text or f" {mark}" in text or in_a_number
        result = result.replace(mark, "" if lost else " ")
    words = re.sub(r"\.(?!\d)", "", result).lower().split()
    words = [_DIGITS.get(word, word) for word in words]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(_WHOLE.get(word, word) for word in words)


def vqa_accuracy(told: str, answers: Sequence[str]) -> float:
    """How far an answer agrees with those of several people, 0 to 1.

    Of all people but one, who takes turns, three or more must have said the same: min(1, same / 3),
    averaged over the turns. Where all people wrote the same, letter by letter, nothing is
    normalised. Source: as `normalise`. Raises ValueError for fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError(f"there must be answers of two people or more, found {len(answers)}")
    told, *people = (re.sub(r"[\n\t]", " ", answer).strip() for answer in (told, *answers))
    if len(set(people)) > 1:
        told, *people = map(normalise, (told, *people))
    same = sum(answer == told for answer in people)
    turns = [min(1.0, (same - (answer == told)) / 3) for answer in people]
    return sum(turns) / len(turns)


# --- boxes ---------------------------------------------------------------------------------------

THRESHOLDS = np.arange(50, 100, 5) / 100  # of intersection over union
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # boxes of one name in one picture


def average_precision(
    told: Sequence[Sequence[tuple[str, Box]]], true: Sequence[Sequence[tuple[str, Box]]]
) -> float:
    """Box mean average precision as COCO defines it, 0 to 1; NaN where no box is wanted.

    told, true: for each picture its (name, box), as `minipali.locations.read_boxes` makes them. A
    box that is told takes the free true one of its name that it overlaps most. For each name, and
    for each threshold of overlap from 0.50 to 0.95, precision is averaged over 101 recalls; what is
    returned is the mean over thresholds and names. PaliGemma tells no confidence: earlier boxes of
    an answer count as surer than later ones, and pictures go in their order.
    Source: Lin et al. 2014, "Microsoft COCO", and its evaluation code.
    """
    names = sorted({name for boxes in true for name, _ in boxes})
    return float(np.mean([_of_name(name, told, true) for name in names])) if names else np.nan


def _of_name(name: str, told, true) -> float:
    wanted = [[box for other, box in boxes if other == name] for boxes in true]
    found = [[box for other, box in boxes if other == name][:MOST] for boxes in told]
    total = sum(map(len, wanted))
    ranked = sorted((rank, i) for i, boxes in enumerate(found) for rank in range(len(boxes)))
    precisions = []
    for threshold in THRESHOLDS:
        taken = [set() for _ in wanted]
        right = np.zeros(len(ranked))
        for number, (rank, i) in enumerate(ranked):
            best, most = None, threshold
            for j, box in enumerate(wanted[i]):
                shared = overlap(found[i][rank], box)
                if j not in taken[i] and shared >= most:
                    best, most = j, shared
            if best is not None:
                taken[i].add(best)
                right[number] = 1
        recall = right.cumsum() / total
        precision = right.cumsum() / np.arange(1, len(ranked) + 1)
        # The best precision at this recall or a larger one.
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALLS)
        precisions.append(np.append(precision, 0.0)[places.clip(max=len(precision))].mean())
    return float(np.mean(precisions))


# --- intervals -----------------------------------------------------------------------------------


def bootstrap(
    statistic: Callable[[np.ndarray], float], number: int, rounds: int = 500, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of a statistic, by drawing the `number` examples again and again.

    statistic: takes the indices of a drawn set of examples. Source: Efron 1979.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(number, size=number)) for _ in range(rounds)]
    values = [value for value in values if not np.isnan(value)]
    return tuple(np.quantile(values, (0.025, 0.975))) if values else (np.nan, np.nan)
