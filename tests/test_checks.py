"""The exercises' checks: right answers pass, mistakes are named, nothing is borrowed."""

import functools

import pytest
import torch

from minipali.checks import CheckFailed, check, exercise, hint
from minipali.checks.engine import (
    CORRECT,
    CRASHED,
    NOT_ATTEMPTED,
    REFUSED,
    WRONG,
    _same,
    borrowed,
    examine,
)
from minipali.checks.lessons import STEMS, exercises

ALL = list(exercises().values())
MISTAKES = [(one, mistake) for one in ALL for mistake in one.mistakes]


def foreign(function):
    """The same function as a learner's own: not of minipali, and calling nothing of it."""
    return lambda *arguments: function(*arguments)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_right_answer_is_correct_and_says_what_was_checked(one):
    outcome = examine(one, foreign(one.reference))
    assert outcome.status == CORRECT
    assert one.checked in outcome.message


@pytest.mark.parametrize(
    ("one", "mistake"), MISTAKES, ids=[f"{one.name}-{mistake.name}" for one, mistake in MISTAKES]
)
def test_each_known_mistake_is_rejected_and_named(one, mistake):
    outcome = examine(one, foreign(mistake.wrong))
    assert outcome.status == WRONG
    assert outcome.message.startswith(mistake.says)


@pytest.mark.parametrize(
    ("one", "mistake"), MISTAKES, ids=[f"{one.name}-{mistake.name}" for one, mistake in MISTAKES]
)
def test_each_known_mistake_is_a_hundred_tolerances_away(one, mistake):
    def far(arguments):
        right, wrong = one.reference(*arguments), mistake.wrong(*arguments)
        if right.shape != wrong.shape:
            return True
        return bool((right - wrong).abs().max() > 100 * one.tolerance)

    assert any(far(arguments) for arguments in one.cases())


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_an_exercise_has_enough_mistakes_and_hints_and_no_two_mistakes_are_alike(one):
    assert 4 <= len(one.mistakes) <= 8
    assert len(one.hints) >= 3
    cases = one.cases()
    results = [[mistake.wrong(*arguments) for arguments in cases] for mistake in one.mistakes]
    for i, first in enumerate(results):
        for second in results[:i]:
            alike = all(_same(a, b, one.tolerance) for a, b in zip(first, second, strict=True))
            assert not alike


def test_names_are_unique_and_every_lesson_with_checks_is_listed():
    names = [one.name for one in ALL]
    assert len(names) == len(set(names))
    assert STEMS[0] == "patches"


CELL = """
import minipali.patches as module
from minipali.patches import PatchEmbedding, patchify

def calls_it(pixels, patch_size):
    return patchify(pixels, patch_size)

def calls_the_module(pixels, patch_size):
    return module.patchify(pixels, patch_size)

def calls_a_caller(pixels, patch_size):
    return calls_it(pixels, patch_size)

def imports_it(pixels, patch_size):
    from minipali.patches import patchify as cut
    return cut(pixels, patch_size)
"""


def test_the_finished_piece_is_refused_in_every_disguise():
    scope = {}
    exec(CELL, scope)
    names = ["patchify", "PatchEmbedding", "calls_it", "calls_the_module", "calls_a_caller"]
    disguises = [scope[name] for name in [*names, "imports_it"]]
    disguises.append(functools.partial(scope["patchify"]))
    for disguise in disguises:
        assert examine(exercise("patchify"), disguise).status == REFUSED, disguise


def test_a_function_that_calls_itself_is_examined():
    scope = {}
    exec("def again(a, b): return a if b == 0 else again(a, 0)", scope)
    assert borrowed(scope["again"]) == ""
    assert examine(exercise("patchify"), scope["again"]).status == WRONG


def test_a_stub_is_not_attempted():
    def stub(pixels, patch_size):
        raise NotImplementedError

    assert examine(exercise("patchify"), stub).status == NOT_ATTEMPTED
    assert examine(exercise("patchify"), lambda pixels, patch_size: ...).status == NOT_ATTEMPTED


@pytest.mark.parametrize(
    ("attempt", "status", "said"),
    [
        (lambda pixels: pixels, WRONG, "must take 2 arguments (pixels, patch_size)"),
        (lambda pixels, p: None, WRONG, "`return`"),
        (lambda pixels, p: pixels.tolist(), WRONG, "must be a Tensor, found a list"),
        (lambda pixels, p: pixels, WRONG, "found 4 axes"),
        (lambda pixels, p: pixels.reshape(7), CRASHED, "RuntimeError"),
        (lambda pixels, p: torch.full((2, 6, 12), torch.nan), WRONG, "nan at b 0, n 0, values 0"),
        (lambda pixels, p: torch.zeros(2, 6, 12).double(), WRONG, "torch.float64"),
        (lambda pixels, p: torch.zeros(2, 5, 12), WRONG, "axis 1 (n) must be 6, found 5"),
        (lambda pixels, p: torch.zeros(2, 6, 12), WRONG, "100% of the values"),
        (3, WRONG, "found int"),
    ],
)
def test_what_is_wrong_is_said(attempt, status, said):
    outcome = examine(exercise("patchify"), attempt)
    assert outcome.status == status
    assert said in outcome.message


def test_changing_the_input_is_noticed():
    def in_place(pixels, patch_size):
        pixels += 1
        return pixels

    outcome = examine(exercise("patchify"), in_place)
    assert outcome.status == WRONG
    assert "changed its input `pixels`" in outcome.message


def test_only_strict_mode_raises(monkeypatch, capsys):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    check("patchify", lambda pixels, p: None)
    assert "wrong" in capsys.readouterr().out
    monkeypatch.setenv("MINIPALI_STRICT", "1")
    with pytest.raises(CheckFailed, match="wrong"):
        check("patchify", lambda pixels, p: None)
    check("patchify", foreign(exercise("patchify").reference))


def test_hints_come_one_by_one_and_an_unknown_name_lists_the_known(capsys):
    hint("patchify", 2)
    assert "Hint 2 of 3" in capsys.readouterr().out
    hint("patchify", 9)
    assert "hints 1 to 3" in capsys.readouterr().out
    with pytest.raises(KeyError, match="embed_patches"):
        hint("pachify", 1)
