"""Lesson 15: boxes to tokens and back."""

import random

import pytest
from PIL import Image

from minipali import load
from minipali.checks import exercise
from minipali.checks.locations import EXERCISES, confidences, try_boxes, try_precision
from minipali.locations import box_tokens, draw_boxes, overlap, read_boxes


def test_corners_are_exact_and_vertical_comes_first():
    assert box_tokens((0.0, 0.25, 1.0, 0.5)) == "<loc0000><loc0256><loc1023><loc0512>"
    assert box_tokens((-0.2, 0.0, 1.2, 1.0)) == "<loc0000><loc0000><loc1023><loc1023>"


def test_the_golden_answer_of_the_published_model_is_read():
    # transformers' own test of paligemma-3b-pt-224 on shoe.png
    [(name, box)] = read_boxes("<loc0051><loc0309><loc0708><loc0646> shoe")
    assert name == "shoe"
    assert box == pytest.approx((51 / 1023, 309 / 1023, 708 / 1023, 646 / 1023))


def test_several_boxes_are_read_and_nonsense_is_passed_over():
    first, second = "<loc0001><loc0002><loc0003><loc0004>", "<loc0005><loc0006><loc0007><loc0008>"
    assert [name for name, _ in read_boxes(f"{first} red car ; {second} dog")] == ["red car", "dog"]
    assert read_boxes("<loc0001><loc0002><loc0003> dog") == []
    assert read_boxes("<loc0001><loc0002><loc0003><loc1024> dog") == []
    assert read_boxes("a dog") == []


def test_names_are_kept_in_answers_that_hold_segments():
    box, codes = "<loc0001><loc0002><loc0003><loc0004>", "<seg001>" * 16
    # The forms of big_vision's and transformers' examples, and what a model may make of them.
    for answer, names in {
        f"{box}{codes} cat": ["cat"],
        f"{box} {codes} red car ; {box}{codes} dog": ["red car", "dog"],
        f"{box}{codes} cat ; {box} dog": ["cat", "dog"],
        f"{box}<seg001><seg127> cat": ["cat"],  # too few codes are still no name
        f"{box}{codes}": [""],
        f"{box}{codes}{box} cat": ["", "cat"],
        f"{box};{box} cat": ["", "cat"],
        f"{box}<seg12> cat": [""],  # no segment token
        "<loc٠٠٠١><loc٠٠٠٢><loc٠٠٠٣><loc٠٠٠٤> cat": [],  # digits, but no location token
    }.items():
        assert [name for name, _ in read_boxes(answer)] == names, answer


def by_token(answer: list[str]) -> list[tuple[str, list[int]]]:
    """What read_boxes should find, token by token and without a pattern."""
    found, i = [], 0
    while i < len(answer):
        four = answer[i : i + 4]
        if len(four) < 4 or not all(token.startswith("<loc") for token in four):
            i += 1
            continue
        i += 4
        while i < len(answer) and (answer[i].startswith("<seg") or answer[i] == " "):
            i += 1
        name = ""
        while i < len(answer) and answer[i] != ";" and not answer[i].startswith("<"):
            name += answer[i]
            i += 1
        numbers = [int(token[4:8]) for token in four]
        if max(numbers) < 1024:
            found.append((name.strip(), numbers))
    return found


def test_random_answers_are_read_as_token_by_token():
    chance, boxes = random.Random(0), 0
    for _ in range(3000):
        answer = []
        for _ in range(chance.randint(1, 8)):
            answer += [f"<loc{chance.choice((7, 500, 1023, 1024)):04d}>"] * chance.choice((3, 4, 5))
            answer += ["<seg001>"] * chance.choice((0, 0, 1, 16, 17))
            answer += chance.choice(([" ", "cat"], [" ", "red", " ", "car", " "], ["dog"], []))
            answer += chance.choice(([" ", ";", " "], [";"], []))
        found = [(name, [round(1023 * edge) for edge in box]) for name, box in
                 read_boxes("".join(answer))]  # fmt: skip
        assert found == by_token(answer), "".join(answer)
        boxes += len(found)
    assert boxes > 3000


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.123, 0.456, 0.789, 0.99)])
def test_there_and_back_is_off_by_half_a_step_at_most(box):
    [(_, back)] = read_boxes(box_tokens(box) + " x")
    assert back == pytest.approx(box, abs=0.5 / 1023)


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (0, 1, 2, 3)) == pytest.approx(2 / 6)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert overlap((1, 1, 0, 0), (0, 0, 1, 1)) == 0  # a box turned inside out


def test_drawing_leaves_the_picture_and_survives_any_box():
    picture = Image.new("RGB", (60, 40), "green")
    wild = [
        ("a", (5, 5, 30, 50)),
        ("b", (30, 50, 5, 5)),
        ("c", (0, 0, 1, 1)),
        ("d", (0, 0, 99, 99)),
    ]
    drawn = draw_boxes(picture, wild)
    assert drawn.size == picture.size
    assert picture.getcolors() == [(2400, (0, 128, 0))]
    assert len(drawn.getcolors()) > 2


def test_the_exercises_ask_for_what_the_package_does():
    numbers = random.Random(0)
    to_tokens, to_box, same = (
        exercise(name).reference for name in ("box_to_tokens", "tokens_to_box", "overlap")
    )
    for _ in range(50):
        height, width = numbers.randint(5, 900), numbers.randint(5, 900)
        y, x = (sorted(numbers.uniform(0, side) for _ in range(2)) for side in (height, width))
        a = [y[0], x[0], y[1], x[1]]
        b = [0.2 * height, 0.3 * width, 0.8 * height, 0.9 * width]
        fractions = [edge / side for edge, side in zip(a, (height, width) * 2, strict=True)]
        written = "".join(f"<loc{number:04d}>" for number in to_tokens(a, height, width))
        assert written == box_tokens(fractions)
        [(_, read)] = read_boxes(written)
        back = [edge * side for edge, side in zip(read, (height, width) * 2, strict=True)]
        assert to_box(to_tokens(a, height, width), height, width) == pytest.approx(back)
        assert same(a, b) == pytest.approx(overlap(a, b))


def test_average_precision_is_the_area_under_recall_and_precision():
    """Against the other way to compute it: steps of recall times precision, from counts."""
    numbers, average_precision = random.Random(1), exercise("average_precision").reference
    for _ in range(30):
        truths = [
            [[0, 20 * i, 10, 20 * i + 10] for i in range(numbers.randint(0, 4))] for _ in "abc"
        ]
        if not (number := sum(map(len, truths))):
            continue
        found = []
        for _ in range(numbers.randint(0, 9)):
            left = 20 * numbers.randint(0, 4) + numbers.choice((0, 2, 6))
            found.append((numbers.random(), numbers.randint(0, 2), [0, left, 10, left + 10]))
        seen, right, recalls, area = set(), 0, [0.0], 0.0
        for place, (_, picture, box) in enumerate(sorted(found)[::-1], start=1):
            for i, true in enumerate(truths[picture]):  # far apart: at most one is near
                if overlap(box, true) > 0.5 and (picture, i) not in seen:
                    seen.add((picture, i))
                    right += 1
            recalls.append(right / number)
            area += (recalls[-1] - recalls[-2]) * right / place
        assert average_precision(found, truths, overlap, 0.5) == pytest.approx(area)


def stub(*given):
    raise NotImplementedError


def crash(*given):
    raise RuntimeError("no")


@pytest.fixture(scope="module")
def small():
    return load("small")


def test_the_trained_models_boxes_are_measured_with_a_learners_functions(small, capsys):
    right = [one.reference for one in EXERCISES[:3]]
    assert try_boxes(*small, *right, each=20)
    package, mine, tokens, outcome = capsys.readouterr().out.splitlines()
    assert package.removeprefix("package") == mine.removeprefix("mine   ")
    assert ": correct." in outcome
    for place in range(3):
        others = [*right]
        others[place] = stub
        assert not try_boxes(*small, *others, each=4)
        assert "not attempted" in capsys.readouterr().out
        others[place] = crash
        assert not try_boxes(*small, *others, each=4)
        assert "crashed. RuntimeError: no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "mistake"),
    [(0, "times 1024"), (1, "divided by 1024"), (1, "x read first"), (2, "boxes apart")],
)
def test_quiet_mistakes_are_noticed_on_the_trained_models_boxes(small, capsys, place, mistake):
    pieces = [one.reference for one in EXERCISES[:3]]
    pieces[place] = next(m.wrong for m in EXERCISES[place].mistakes if m.name == mistake)
    assert not try_boxes(*small, *pieces, each=40)
    assert ": wrong." in capsys.readouterr().out


def test_a_box_is_as_sure_as_its_four_tokens_together(small):
    model, processor = small
    pictures = [Image.new("RGB", (50, 40), colour) for colour in ("red", "white")]
    answers = [f"{box_tokens((0.1, 0.2, 0.3, 0.4))} cat ; {box_tokens((0, 0, 1, 1))} cat", "no"]
    both, none = confidences(model, processor, pictures, ["detect cat"] * 2, answers)
    assert none == [] and len(both) == 2
    batch = processor(pictures[:1], ["detect cat"], answers[:1])
    labels = batch.pop("labels")[0]
    logits = model(**batch)[0].softmax(dim=-1)
    start = int((labels >= 0).nonzero()[0])
    by_hand = 1.0
    for place in range(start, start + 4):
        by_hand *= logits[place - 1, labels[place]].item()
    assert both[0] == pytest.approx(by_hand, rel=1e-3)


def test_precision_is_measured_with_a_learners_functions(small, capsys):
    _, to_box, same, precision = (one.reference for one in EXERCISES)
    assert try_precision(*small, to_box, same, precision, each=20)
    assert "correct." in capsys.readouterr().out
    for broken, said in ((stub, "not attempted"), (crash, "crashed. RuntimeError: no")):
        assert not try_precision(*small, to_box, same, broken, each=4)
        assert said in capsys.readouterr().out
    assert not try_precision(*small, to_box, same, lambda *given: 0.5, each=20)
    assert ": wrong." in capsys.readouterr().out
