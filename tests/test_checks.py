"""The exercises' checks: right answers pass, mistakes are named, nothing is borrowed."""

import re

import pytest
import torch

from minipali.checks import CheckFailed, check, engine, exercise, hint
from minipali.checks.engine import (
    CORRECT,
    CRASHED,
    NOT_ATTEMPTED,
    REFUSED,
    WRONG,
    _same,
    examine,
    run,
)
from minipali.checks.lessons import STEMS, exercises

ALL = list(exercises().values())
MISTAKES = [(one, mistake) for one in ALL for mistake in one.mistakes]


@pytest.fixture
def unwatched(monkeypatch):
    """Let the finished pieces and the known mistakes count as a learner's own code."""
    monkeypatch.setattr(engine, "_finished_files", lambda exercise: set())


def foreign(function):
    """The same function, but not itself an object of minipali."""
    return lambda *arguments: function(*arguments)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_right_answer_is_correct_and_says_what_was_checked(unwatched, one):
    outcome = examine(one, foreign(one.reference))
    assert outcome.status == CORRECT
    assert one.checked in outcome.message


@pytest.mark.parametrize(
    ("one", "mistake"), MISTAKES, ids=[f"{one.name}-{mistake.name}" for one, mistake in MISTAKES]
)
def test_each_known_mistake_is_rejected_and_named(unwatched, one, mistake):
    outcome = examine(one, foreign(mistake.wrong))
    assert outcome.status == WRONG
    assert outcome.message.startswith(mistake.says)


@pytest.mark.parametrize(
    ("one", "mistake"), MISTAKES, ids=[f"{one.name}-{mistake.name}" for one, mistake in MISTAKES]
)
def test_each_known_mistake_is_a_hundred_tolerances_away(one, mistake):
    def far(arguments):
        return apart(run(one, one.reference, arguments), run(one, mistake.wrong, arguments))

    def apart(right, wrong):
        if isinstance(right, tuple):
            return any(apart(*both) for both in zip(right, wrong, strict=True))
        if not isinstance(right, torch.Tensor):  # ids and the like: equal or not
            return right != wrong
        if right.shape != wrong.shape:
            return True
        difference = (right.double() - wrong.double()).abs()
        return bool(difference.isnan().any() or difference.max() > 100 * one.tolerance)

    assert any(far(arguments) for arguments in one.cases())


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_an_exercise_has_enough_mistakes_and_hints_and_no_two_mistakes_are_alike(one):
    assert 4 <= len(one.mistakes) <= 8
    assert len(one.hints) >= 3
    cases = one.cases()
    results = [[run(one, mistake.wrong, case) for case in cases] for mistake in one.mistakes]
    for i, first in enumerate(results):
        for second in results[:i]:
            alike = all(_same(a, b, one.tolerance) for a, b in zip(first, second, strict=True))
            assert not alike


def test_names_are_unique_and_every_lesson_with_checks_is_listed():
    names = [one.name for one in ALL]
    assert len(names) == len(set(names))
    assert STEMS[0] == "patches"


CELL = """
import functools, importlib, sys
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

def finds_it(pixels, patch_size):
    found = importlib.import_module("mini" + "pali.patches")
    return getattr(found, "patch" + "ify")(pixels, patch_size)

def has_it_as_default(pixels, patch_size, cut=patchify):
    return cut(pixels, patch_size)

class Holder:
    def __call__(self, pixels, patch_size):
        return patchify(pixels, patch_size)

disguises = [
    patchify, functools.partial(patchify), functools.lru_cache(patchify), PatchEmbedding, calls_it,
    calls_the_module, calls_a_caller, imports_it, finds_it, has_it_as_default, Holder(),
]
"""


def test_the_finished_piece_is_refused_in_every_disguise():
    scope = {}
    exec(CELL, scope)
    for disguise in scope["disguises"]:
        assert examine(exercise("patchify"), disguise).status == REFUSED, disguise


HONEST = """
import numpy as np, torch
from minipali import load  # a name that stands in the notebook, and must not count

class Cutter:
    def load(self, pixels): return pixels
    def __call__(self, pixels, p, *more, scale=1):
        b, c, y, x = self.load(pixels).shape
        return pixels.reshape(b, c, y // p, p, x // p, p).permute(0, 2, 4, 1, 3, 5).reshape(
            b, (y // p) * (x // p), -1)

def loops(pixels, p):
    rows = [pixels[:, :, y:y+p, x:x+p].flatten(1)
            for y in range(0, pixels.shape[2], p) for x in range(0, pixels.shape[3], p)]
    return torch.stack(rows, dim=1)

def through_numpy(pixels, p):
    return torch.from_numpy(np.ascontiguousarray(loops(pixels, p).numpy()))

honest = [Cutter(), loops, through_numpy,
    lambda a, b: torch.nn.functional.unfold(a, b, stride=b).transpose(1, 2)]
"""


def test_honest_answers_of_any_style_are_correct():
    scope = {}
    exec(HONEST, scope)
    for attempt in scope["honest"]:
        outcome = examine(exercise("patchify"), attempt)
        assert outcome.status == CORRECT, outcome


def test_numbers_in_wrong_places_are_said_to_be_that(unwatched):
    right = exercise("patchify").reference

    def said(change):
        return examine(exercise("patchify"), lambda a, b: change(right(a, b))).message

    assert "some are in another b" in said(lambda x: x.flip(0))
    assert "along values they have another order" in said(lambda x: x.flip(2))
    assert "along n they have another order" in said(lambda x: x.flip(1))
    assert "mixed" in said(lambda x: x.flatten(1).flip(1).roll(1, 1).reshape(x.shape))


def test_a_stub_is_not_attempted():
    def stub(pixels, patch_size):
        raise NotImplementedError

    assert examine(exercise("patchify"), stub).status == NOT_ATTEMPTED
    assert examine(exercise("patchify"), lambda pixels, patch_size: ...).status == NOT_ATTEMPTED
    outcome = examine(exercise("patchify"), lambda pixels, patch_size: stub(pixels, patch_size))
    assert outcome.status == NOT_ATTEMPTED and "calls `stub`" in outcome.message


class Learned:
    pass


@pytest.mark.parametrize(
    ("attempt", "status", "said"),
    [
        (lambda pixels: pixels, WRONG, "must take 2 arguments (pixels, patch_size)"),
        (lambda pixels, *, p: pixels, WRONG, "found (pixels, *, p)"),
        (lambda pixels, p: pixels.numpy(), WRONG, "torch.from_numpy"),
        (Learned, WRONG, "an instance of your class: Learned"),
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


def two_mistakes(query, key, value, mask):
    scores = query @ key.transpose(-1, -2)  # not scaled, and a row of -inf becomes NaN
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("grow", ["row.append(filler)", "row += [filler]", "row.insert(0, filler)"])
def test_lists_and_pictures_are_inputs_too(grow):
    scope = {}
    exec(f"def pad(rows, filler, side):\n for row in rows:\n  {grow}\n return rows, rows", scope)
    outcome = examine(exercise("pad_rows"), scope["pad"])
    assert outcome.status == WRONG and "changed its input `rows` in place" in outcome.message

    def shrinks(picture, side):
        picture.thumbnail((side, side))
        return picture

    outcome = examine(exercise("to_pixels"), shrinks)
    assert outcome.status == WRONG and "changed its input `picture` in place" in outcome.message
    assert re.search(r"picture: [A-Z]+, \d+ x \d+ pixels", outcome.message)


def test_a_crash_in_a_later_case_does_not_hide_a_mistake_in_an_earlier_one():
    def unscaled_then_crashing(query, key, value, mask):
        if mask is not None:
            raise RuntimeError("later")
        return (query @ key.mT).softmax(-1) @ value

    outcome = examine(exercise("attend"), unscaled_then_crashing)
    assert outcome.status == WRONG
    assert outcome.message.startswith("The scores are not scaled.")


def test_of_two_mistakes_at_once_the_first_that_shows_is_named():
    outcome = examine(exercise("attend"), two_mistakes)
    assert outcome.status == WRONG
    assert outcome.message.startswith("The scores are not scaled.")


def test_a_softmax_that_overflows_is_noticed():
    def overflows(query, key, value, mask):
        scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).exp()
        scores = scores if mask is None else scores * mask
        return scores / scores.sum(-1, keepdim=True).clamp(min=1e-30) @ value

    outcome = examine(exercise("attend"), overflows)
    assert outcome.status == WRONG
    assert "Case 4 of 4" in outcome.message and "the result has nan" in outcome.message
    assert outcome.message.endswith("Cases 1 to 3 are right.")


def test_of_many_arguments_a_message_shows_the_first_and_the_last():
    outcome = examine(exercise("multi_head_attention"), lambda x, *rest: x)
    assert "(x (2, 5, 12), q_weight (12, 12), …, out_bias (12,), heads = 3)" in outcome.message


def test_only_strict_mode_raises(unwatched, monkeypatch, capsys):
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


def of_batch_norm(change):
    """batch_norm with its right result changed."""
    right = exercise("batch_norm").reference
    return lambda *arguments: change(*right(*arguments))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y, mean, var: y, "`return y, running_mean, running_var`; found Tensor"),
        (lambda y, mean, var: (y, mean), "found a tuple of 2"),
        (lambda y, mean, var: (y, mean[None], var), "running_mean, part 2 of the result: the result"
         " must have 1 axes (d)"),
        (lambda y, mean, var: (y[:1], mean, var), "axis 0 (b) must be 3, found 1"),
        (lambda y, mean, var: (y, mean, var + 1), "running_var, part 3 of the result: the shape is"
         " right, but 100%"),
    ],
)  # fmt: skip
def test_a_result_of_several_parts_is_compared_part_by_part(unwatched, change, said):
    outcome = examine(exercise("batch_norm"), of_batch_norm(change))
    assert outcome.status == WRONG
    assert said in outcome.message


def test_a_memory_that_is_changed_in_place_is_noticed():
    def in_place(x, weight, bias, mean, var, *rest):
        mean.add_(1)
        return x, mean, var

    assert "changed its input `running_mean`" in examine(exercise("batch_norm"), in_place).message
