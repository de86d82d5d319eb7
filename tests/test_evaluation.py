"""How answers are scored, and what counts as no answer at all."""

import pytest

from minipali import generate, load, scenes
from minipali.evaluation import (
    TASKS,
    answers,
    by_task,
    commonest,
    evaluation_set,
    interval,
    report,
    score,
)


@pytest.fixture(scope="module")
def small():
    return load("small")


def question(task, answer):
    return scenes.Question(task, "prompt", answer)


LEFT, RIGHT = (
    f"<loc0100><loc{x0:04d}><loc0500><loc{x1:04d}> dog" for x0, x1 in ((100, 300), (600, 900))
)


@pytest.mark.parametrize(
    ("true", "told", "expected"),
    [
        (LEFT, LEFT, 1.0),
        (LEFT, RIGHT, 0.0),
        (f"{LEFT} ; {RIGHT}", LEFT, 0.5),
        (LEFT, f"{LEFT} ; {LEFT}", 0.5),  # one true box is found once
        (LEFT, LEFT.replace("0300", "0290"), 1.0),
        (LEFT, "", 0.0),
        ("no dog", "no dog", 1.0),
        ("no dog", LEFT, 0.0),
    ],
)
def test_detection_is_found_boxes_over_the_larger_number(true, told, expected):
    assert score(question("detection", true), told) == expected


def test_other_answers_are_right_word_for_word():
    assert score(question("naming", "a dog"), "a dog") == 1.0
    assert score(question("naming", "a dog"), "a dog ") == 0.0


@pytest.mark.parametrize(("share", "number"), [(0.8, 10), (0.0, 20), (1.0, 500), (0.33, 100)])
def test_the_ends_of_an_interval_are_just_1_96_standard_errors_from_the_share(share, number):
    """So Wilson defined it: the standard error is that of the end itself."""
    for end in interval(share, number):
        error = (end * (1 - end) / number) ** 0.5
        assert abs(share - end) == pytest.approx(1.96 * error, abs=1e-9)


def test_the_pictures_that_are_shown_are_the_own_the_one_before_or_grey(small):
    asked = evaluation_set(scenes.TRAINING_ARTISTS, 3, 5, ("naming", "background"))
    questions = [question for _, question in asked]
    found = {shown: answers(*small, asked, shown, batch_size=4) for shown in ("own", "before")}
    pictures = [scene.picture for scene, _ in asked]
    for shown, seen in (("own", pictures), ("before", pictures[-1:] + pictures[:-1])):
        expected = [generate(*small, one, q.prompt) for one, q in zip(seen, questions, strict=True)]
        assert found[shown] == expected
    assert found["own"] != found["before"]
    grey = answers(*small, asked, "grey")
    assert len(set(grey)) == len({one.prompt for one in questions})
    with pytest.raises(ValueError, match="own, before or grey, found 'none'"):
        answers(*small, asked, "none")


def test_who_never_looks_says_what_is_commonest_elsewhere():
    found = commonest(scenes.TRAINING_ARTISTS, each=100, seed=1, learned_from=200)
    assert list(found) == list(TASKS)
    # One of 24 names; one of nine backgrounds; one to three objects; yes or no.
    assert found["naming"] < 0.15 and found["background"] < 0.3
    assert 0.2 < found["counting"] < 0.5 and 0.35 < found["yes/no"] < 0.65
    assert found["caption"] < 0.05


def test_each_task_has_its_own_mean():
    asked = [(None, question("naming", "a")), (None, question("naming", "b")),
             (None, question("caption", "c"))]  # fmt: skip
    assert by_task(asked, ["a", "a", "c"]) == {"naming": 0.5, "caption": 1.0}


def test_the_report_has_a_row_for_each_task_in_each_of_its_tables(small):
    tables = report(*small, each=1).split("\n\n")
    assert len(tables) == 3
    for table in tables:
        rows = table.splitlines()
        assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == list(TASKS)
    assert "commonest answer" in tables[1] and "another picture" in tables[1]
