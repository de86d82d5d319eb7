"""Measures of answers, each against a computation of its own."""

import numpy as np
import pytest

from minipali.metrics import average_precision, bootstrap, exact_match, normalise, vqa_accuracy

# --- words ---------------------------------------------------------------------------------------


def test_exact_match():
    assert [exact_match(told, "a dog") for told in ("a dog", " a dog\n", "A dog", "dog")] == [
        1.0, 1.0, 0.0, 0.0
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("The Dog", "dog"),
        ("two  dogs\nand a cat", "2 dogs and cat"),
        ("none", "0"),
        ("yes!", "yes"),
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("it isnt", "it isn't"),
        ("isn't", "isn't"),
        ("its", "its"),  # a word of its own
        ("well-known", "well known"),
        # As the evaluation code of VQAv2 answers these.
        ("couldntve couldn'tve couldnt've", "couldntve couldn't've couldn't've"),
        ("somebody'd ow's'at Im", "somebodyd 'ow's'at im"),
        ("'dont a.b 5. p.m.", "'dont ab 5 pm"),
        ("3.5 of 1,000-ish", "3.5 of 1000ish"),
    ],
)
def test_normalised_as_the_vqa_evaluation_does(answer, normalised):
    assert normalise(answer) == normalised


def test_vqa_accuracy_by_hand():
    people = ["dog"] * 2 + ["puppy"] * 8
    # Without one of the two who said dog one is left: 1/3, twice; without another two: 2/3.
    assert vqa_accuracy("A dog.", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa_accuracy("puppy", people) == 1
    assert vqa_accuracy("cat", people) == 0
    # Three say it: each of them leaves 2/3, the others 1.
    assert vqa_accuracy("x", ["x"] * 3 + ["y"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    # Nobody disagrees: letters count as they are, as in the evaluation code of VQAv2.
    assert vqa_accuracy("A dog", ["a dog"] * 10) == 0
    assert vqa_accuracy(" a\tdog\n", ["a dog"] * 10) == 1
    with pytest.raises(ValueError, match="two people or more, found 1"):
        vqa_accuracy("x", ["x"])


# --- boxes ---------------------------------------------------------------------------------------

A, B = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)


def test_average_precision_by_hand():
    true = [[("dog", A), ("dog", B)]]
    assert average_precision(true, true) == pytest.approx(1)
    assert average_precision([[]], true) == 0
    # Half of what is wanted, nothing wrong: precision 1 up to recall 0.50, that is at 51 of 101.
    assert average_precision([[("dog", A)]], true) == pytest.approx(51 / 101)
    # A wrong one first: precision 1/2 at those, 2/3 at none.
    wrong = [[("dog", (0.0, 0.6, 0.1, 0.7)), ("dog", A)]]
    assert average_precision(wrong, true) == pytest.approx(51 / 101 / 2)
    # An overlap of exactly 0.6 is enough at 0.50, 0.55 and 0.60: 3 of 10 thresholds.
    assert average_precision(
        [[("dog", (0.0, 0.0, 0.5, 0.3))]], [[("dog", (0.0, 0.0, 0.5, 0.5))]]
    ) == pytest.approx(0.3)
    # The mean over names, and a name that nobody wanted counts for nothing.
    assert average_precision([[("dog", A), ("cow", B)]], [[("dog", A), ("cat", B)]]) == 0.5
    # Told twice, found once: the second is wrong, but after the full recall.
    assert average_precision([[("dog", A), ("dog", A)]], [[("dog", A)]]) == 1
    assert np.isnan(average_precision([[("dog", A)]], [[]]))


def scattered():
    """Boxes that lie about right, some missing, some too many, two names."""
    rng = np.random.default_rng(5)
    told, true = [], []
    for _ in range(40):
        wanted, said = [], []
        for _ in range(rng.integers(0, 5)):
            name = ("dog", "cat")[rng.integers(2)]
            y, x, h, w = rng.integers(0, 50, 2).tolist() + rng.integers(10, 50, 2).tolist()
            wanted.append((name, (y, x, y + h, x + w)))
            if rng.random() < 0.8:
                shift = rng.integers(-3, 4, 4).tolist()
                box = (y + shift[0], x + shift[1], y + h + shift[2], x + w + shift[3])
                said.append((name, box))
        if rng.random() < 0.3:
            said.insert(0, ("dog", (1, 2, 30, 40)))
        told.append(said)
        true.append(wanted)
    return told, true


def by_pycocotools(told, true) -> float:
    coco = pytest.importorskip("pycocotools.coco", reason="pip install pycocotools")
    from pycocotools.cocoeval import COCOeval

    def notes(boxes, with_scores):
        found = []
        for image, own in enumerate(boxes):
            rank = {}
            for name, (y0, x0, y1, x1) in own:
                note = {"image_id": image, "category_id": {"dog": 1, "cat": 2}[name]}
                note |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                note |= {"id": len(found) + 1, "iscrowd": 0}
                rank[name] = rank.get(name, 0) + 1
                found.append(note | ({"score": 1 - rank[name] / 1000} if with_scores else {}))
        return found

    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(true))],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": notes(true, False),
    }
    truth.createIndex()
    result = coco.COCO()
    result.dataset = truth.dataset | {"annotations": notes(told, True)}
    result.createIndex()
    judge = COCOeval(truth, result, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[0]


OF_PYCOCOTOOLS = 0.3556891138806397  # version 2.0.11, as `by_pycocotools` computes it


def test_average_precision_is_that_of_coco():
    assert average_precision(*scattered()) == pytest.approx(OF_PYCOCOTOOLS, abs=1e-9)


def test_what_is_noted_of_pycocotools():
    assert by_pycocotools(*scattered()) == pytest.approx(OF_PYCOCOTOOLS, abs=1e-9)


# --- intervals -----------------------------------------------------------------------------------


def test_the_bootstrap_of_a_mean_is_about_that_of_the_normal_distribution():
    scores = np.repeat([0.0, 1.0], [40, 60])
    low, high = bootstrap(lambda drawn: scores[drawn].mean(), 100, rounds=2000)
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert low == pytest.approx(0.6 - half, abs=0.02) and high == pytest.approx(
        0.6 + half, abs=0.02
    )
    assert np.isnan(bootstrap(lambda drawn: float("nan"), 3, rounds=5)).all()
