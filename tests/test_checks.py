"""The exercises' checks: right answers pass, mistakes are named, nothing is borrowed."""

import ast
import cProfile
import dataclasses
import functools
import importlib
import inspect
import io
import pkgutil
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import minipali
from minipali import checks, generation, load, patches
from minipali.checks import CheckFailed, check, engine, exercise, hint, running, trying
from minipali.checks.comparing import NEAR, difference, same
from minipali.checks.engine import (
    CORRECT,
    CRASHED,
    NOT_ATTEMPTED,
    REFUSED,
    WRONG,
    answers,
    diagnose,
    examine,
)
from minipali.checks.lessons import STEMS, by_lesson, exercises
from minipali.checks.running import SETTINGS
from minipali.swap import pieces_of, swap

ROOT = Path(__file__).resolve().parents[1]
ALL = list(exercises().values())
MISTAKES = [(one, mistake) for one in ALL for mistake in one.mistakes]


@pytest.fixture
def unwatched(monkeypatch):
    """Let the finished pieces and the known mistakes count as a learner's own code."""
    monkeypatch.setattr(engine, "_finished_modules", lambda exercise: set())


def foreign(function):
    """The same function, but not itself an object of minipali."""
    return lambda *arguments: function(*arguments)


@functools.cache
def answers_of(name: str, function) -> list:
    """What the reference or a known mistake makes of all tries. Do not change it."""
    return answers(exercise(name), function)


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
    assert NEAR not in outcome.message  # a guess beside the reason


def test_a_copy_with_other_cases_is_compared_with_its_own(unwatched):
    one = exercise("layer_norm")
    other = dataclasses.replace(one, cases=lambda: one.cases()[::-1])
    for mistake in one.mistakes[:6]:
        for asked in (one, other):
            assert examine(asked, foreign(mistake.wrong)).message.startswith(mistake.says)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_each_known_mistake_is_a_hundred_tolerances_away(one):
    def apart(right, wrong):
        if isinstance(right, tuple):
            return any(apart(*both) for both in zip(right, wrong, strict=True))
        if not (isinstance(right, torch.Tensor) and isinstance(wrong, torch.Tensor)):
            return type(right) is not type(wrong) or right != wrong  # ids and the like
        if (right.shape, right.dtype) != (wrong.shape, wrong.dtype):
            return True
        difference = (right.double() - wrong.double()).abs()
        return bool(difference.isnan().any() or (difference > 100 * one.tolerance).any())

    right = answers_of(one.name, one.reference)
    found = [(mistake.name, answers_of(one.name, mistake.wrong)) for mistake in one.mistakes]
    assert [name for name, wrong in found if not any(map(apart, right, wrong))] == []
    assert all(len(wrong) == len(right) for _, wrong in found)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_mistake_is_one_edit_of_a_right_answer(one):
    """Else more than what its sentence says would be wrong with it."""
    right = answers(one, one.reference)
    for edited in {m.wrong.func for m in one.mistakes if isinstance(m.wrong, functools.partial)}:
        unedited = answers(one, edited)
        assert all(map(functools.partial(same, tolerance=one.tolerance), unedited, right))


def test_the_references_are_what_the_trained_model_does(capsys):
    """Also where the package has a module in place of a function, they are one truth."""
    for whole in load("small"):
        swap(whole, **{name: exercise(name).reference for name in pieces_of(whole)})
    said = capsys.readouterr().out
    assert said.count("correct") == 2 and "wrong" not in said


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_an_exercise_has_enough_mistakes_and_hints_and_no_two_mistakes_are_alike(one):
    assert len(one.mistakes) >= 4
    assert len({mistake.name for mistake in one.mistakes}) == len(one.mistakes)
    assert len(one.hints) >= 3
    results = [answers_of(one.name, mistake.wrong) for mistake in one.mistakes]
    for i, first in enumerate(results):
        for second in results[:i]:
            alike = all(same(a, b, one.tolerance) for a, b in zip(first, second, strict=True))
            assert not alike


def test_names_are_unique_and_every_lesson_with_checks_is_listed():
    with_checks = {
        path.stem
        for path in Path(checks.__file__).parent.glob("*.py")
        if hasattr(importlib.import_module(f"minipali.checks.{path.stem}"), "EXERCISES")
    }
    assert with_checks == set(STEMS)
    sources = Path(__file__).parents[1] / "exercises" / "src"
    assert sorted(by_lesson()) == sorted(path.stem for path in sources.glob("*.py"))
    every = [one for of_lesson in by_lesson().values() for one in of_lesson]
    assert len(every) == len({one.name for one in every}) == len(ALL)


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


def disguises():
    scope = {}
    exec(CELL, scope)
    return scope["disguises"]


def test_the_finished_piece_is_refused_in_every_disguise():
    for disguise in disguises():
        assert examine(exercise("patchify"), disguise).status == REFUSED, disguise


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_finished_piece_is_refused_inside_a_function_too(one):
    assert examine(one, foreign(one.reference)).status == REFUSED


def profiled_in_c():
    return cProfile.Profile().enable, lambda: None


def profiled():
    seen = []
    return lambda: sys.setprofile(lambda *event: seen.append(event)), lambda: seen


def debugged():
    seen = []

    def trace(frame, event, _):
        seen.append(event)
        return trace

    return lambda: sys.settrace(trace), lambda: seen


@pytest.mark.parametrize("hook", [profiled_in_c, profiled, debugged])
def test_profilers_and_debuggers_change_nothing_and_lose_nothing(hook):
    scope = {}
    exec(HONEST, scope)
    attempts = [*scope["honest"], *disguises()]
    expected = [CORRECT] * len(scope["honest"]) + [REFUSED] * len(disguises())
    traced, profiler = sys.gettrace(), sys.getprofile()
    start, seen = hook()
    try:
        start()
        during = sys.gettrace(), sys.getprofile()
        found = [examine(exercise("patchify"), attempt).status for attempt in attempts]
        assert (sys.gettrace(), sys.getprofile()) == during
    finally:
        sys.settrace(traced)
        sys.setprofile(profiler if callable(profiler) else None)
    assert found == expected
    assert seen() is None or seen()


def test_a_generator_stays_one_while_it_is_watched():
    """Python 3.13 warns where a function changes its kind."""
    own = {one for one in vars(generation).values() if inspect.isgeneratorfunction(one)}
    assert own
    with running._watched({generation}, set()):
        assert all(map(inspect.isgeneratorfunction, own))


def test_watching_leaves_the_package_as_it_was_and_no_other_thread_is_watched():
    code, defaults = patches.patchify.__code__, patches.patchify.__kwdefaults__
    pixels, results = torch.zeros(1, 3, 4, 4), []

    def in_another_thread():
        results.append(patches.patchify(pixels, 2).shape)

    def right_beside_a_thread(pixels, p):
        thread = threading.Thread(target=in_another_thread)
        thread.start()
        thread.join()
        return honest_patchify(pixels, p)

    def gives_up(pixels, p):
        raise KeyboardInterrupt

    assert examine(exercise("patchify"), right_beside_a_thread).status == CORRECT
    assert results == [(1, 4, 12)] * len(exercise("patchify").cases())
    with pytest.raises(KeyboardInterrupt):
        examine(exercise("patchify"), gives_up)
    assert (patches.patchify.__code__, patches.patchify.__kwdefaults__) == (code, defaults)


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


def honest_patchify(pixels, p):
    rows = [
        pixels[:, :, y : y + p, x : x + p].flatten(1)
        for y in range(0, pixels.shape[2], p)
        for x in range(0, pixels.shape[3], p)
    ]
    return torch.stack(rows, dim=1)


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
    assert outcome.status == NOT_ATTEMPTED and "`stub` is not written yet" in outcome.message


def test_a_stub_is_known_wherever_its_source_is():
    """`progress` gives the notebook as its file, whose lines are JSON."""
    scope = {}
    stub = "def stub(pixels, patch_size):\n    raise NotImplementedError('replace this line')"
    exec(compile(stub, __file__, "exec"), scope)
    assert examine(exercise("patchify"), scope["stub"]).status == NOT_ATTEMPTED


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


def test_two_mistakes_that_show_in_different_cases_are_both_named():
    outcome = examine(exercise("attend"), two_mistakes)
    assert outcome.status == WRONG
    assert outcome.message.startswith("Two things at once. The scores are not scaled.")


def test_of_two_mistakes_of_which_one_is_unknown_the_known_one_that_shows_first_is_named():
    def unscaled_and_reversed(query, key, value, mask):
        return two_mistakes(query, key, value, None if mask is None else mask.flip(-1))

    outcome = examine(exercise("attend"), unscaled_and_reversed)
    assert outcome.status == WRONG
    assert outcome.message.startswith("The scores are not scaled.")


def test_a_mistake_that_would_have_shown_earlier_is_not_named():
    one = exercise("average_precision")
    of = {mistake.name: mistake for mistake in one.mistakes}
    right, lowest = (answers(one, f) for f in (one.reference, of["lowest score first"].wrong))
    last = max(i for i, (a, b) in enumerate(zip(right, lowest, strict=True)) if abs(a - b) > 1e-3)
    assert any(abs(a - b) > 1e-3 for a, b in zip(right[:last], lowest[:last], strict=True))
    results = [*right[:last], lowest[last], *right[last + 1 :]]
    assert diagnose(one, results, last + 1) == ""


def test_a_float_is_no_whole_number():
    def last_one_a_float(box, height, width):
        numbers = [round(1023 * x / s) for x, s in zip(box, (height, width) * 2, strict=True)]
        return [*numbers[:3], float(numbers[3])]

    outcome = examine(exercise("box_to_tokens"), last_one_a_float)
    assert outcome.status == WRONG and "Case 1 of" in outcome.message
    told = "must be whole numbers (int): [158, 192, 857, 660], found [158, 192, 857, 660.0]."
    assert outcome.message.endswith(told)


def test_a_softmax_that_overflows_is_noticed():
    def overflows(query, key, value, mask):
        scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).exp()
        scores = scores if mask is None else scores * mask
        return scores / scores.sum(-1, keepdim=True).clamp(min=1e-30) @ value

    outcome = examine(exercise("attend"), overflows)
    assert outcome.status == WRONG
    assert "Case 4 of 4" in outcome.message and "the result has nan" in outcome.message
    assert outcome.message.endswith("Cases 1 to 3 are right.")


def test_two_edits_of_one_function_are_named_together(unwatched):
    of = {mistake.name: mistake for mistake in exercise("rms_norm").mistakes}
    first, second = of["weight without the 1"], of["sum of squares"]
    both = functools.partial(first.wrong.func, **first.wrong.keywords, **second.wrong.keywords)
    outcome = examine(exercise("rms_norm"), foreign(both))
    assert outcome.message.startswith(f"Two things at once. {first.says} And: {second.says}")


def test_torchs_errors_are_told_by_the_names_of_axes():
    def said(name, attempt):
        outcome = examine(exercise(name), attempt)
        assert outcome.status == CRASHED
        return outcome.message

    def no_keepdim(x, weight, bias, eps):
        """x: (b, n, d); weight, bias: (d,)"""
        return x - x.mean(-1)

    def not_turned(query, key, value, mask):
        """query: (b, h, t, k); key, value: (b, h, s, k)"""
        return (query @ key).softmax(-1) @ value

    told = said("layer_norm", no_keepdim)
    assert "d (5) stands over n (3)" in told and "keepdim=True" in told
    told = said("attend", not_turned)
    assert "the last axis of the first, k (9), is multiplied with s (5)" in told
    told = said("patchify", lambda pixels, p: pixels.reshape(7))
    assert "must keep all numbers: (2, 3, 4, 6) cannot become (7)" in told


def _with(name, **changes):
    return dataclasses.replace(exercise(name), **changes)


@pytest.mark.parametrize("by", [
    lambda x, w, b, eps: nn.functional.layer_norm(x, w.shape, w, b, eps),
    lambda x, w, b, eps: torch.layer_norm(x, w.shape, w, b, eps),
    lambda x, w, b, eps: nn.LayerNorm(len(w), eps=eps)(x) * w + b,
    lambda x, w, b, eps: torch.ops.aten.layer_norm.default(x, w.shape, w, b, eps),
])  # fmt: skip
def test_a_banned_function_is_refused_however_it_is_called(by):
    outcome = examine(_with("layer_norm", banned=("layer_norm",)), by)
    assert outcome.status == REFUSED and "torch's layer_norm" in outcome.message


def test_a_banned_function_may_run_inside_what_was_handed_over():
    def finished(y):
        return y.softmax(-1)

    one = _with(
        "layer_norm", reference=lambda x, f: f(x), axes="b n", banned=("softmax",), mistakes=(),
        cases=lambda: [(torch.ones(2, 3), finished)],
    )  # fmt: skip
    assert examine(one, lambda x, f: f(x)).status == CORRECT
    assert examine(one, lambda x, f: x.softmax(-1)).status == REFUSED


def test_gradients_are_compared_where_they_count():
    cases = exercise("layer_norm").cases()[:2]
    one = _with("layer_norm", gradients=("x", "weight"), banned=(), cases=lambda: cases)

    def with_scale(change):
        return examine(
            one, lambda x, w, b, eps: nn.functional.layer_norm(x, w.shape, change(w), b, eps)
        )

    assert with_scale(lambda weight: weight).status == CORRECT
    for cut in (torch.detach, lambda w: w.data, lambda w: torch.tensor(w.tolist())):
        outcome = with_scale(cut)
        assert outcome.status == WRONG and "no gradient reaches `weight`" in outcome.message
    doubled = with_scale(lambda weight: 2 * weight - weight.detach())
    assert "the gradient that reaches `weight` is not" in doubled.message

    # A known mistake with the same gradients and other values is not the reason.
    def other(x, w, b, eps):
        return nn.functional.layer_norm(x, w.shape, 2 * w - w.detach(), b + 1, eps)

    one = dataclasses.replace(one, mistakes=(checks.engine.Mistake("other", other, "Other."),))
    assert "Other." not in with_scale(lambda weight: 2 * weight - weight.detach()).message


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


def test_a_piece_that_is_missing_or_crashes_in_the_model_holds_nothing_up(monkeypatch, capsys):
    def missing():
        raise NotImplementedError

    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    for piece, said in (
        (missing, "not attempted. `missing` is not written"),
        (int, "crashed. Val"),
    ):
        with trying("the model with it"):
            piece("x") if piece is int else piece()
            raise AssertionError("never reached")
        assert f"the model with it: {said}" in capsys.readouterr().out
    monkeypatch.setenv("MINIPALI_STRICT", "1")
    with pytest.raises(CheckFailed), trying("a solution"):
        missing()
    with pytest.raises(KeyboardInterrupt), trying("a long one"):
        raise KeyboardInterrupt


def test_a_message_breaks_at_words_in_a_notebook(monkeypatch, capsys):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))
    check("patchify", lambda pixels, patch_size: pixels)
    broken = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "IPython", None)
    check("patchify", lambda pixels, patch_size: pixels)
    assert broken.split() == capsys.readouterr().out.split()
    assert "\nCase 1 of" in broken and max(map(len, broken.splitlines())) <= 96


def test_hints_come_one_by_one(capsys):
    hint("patchify", 2)
    assert "Hint 2 of 3" in capsys.readouterr().out
    for number in (0, -1, 4, "1", 1.5, None, torch):
        hint("patchify", number)
        assert "hints 1 to 3" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pachify", "", None, 3, honest_patchify, torch.zeros(2)])
def test_an_unknown_name_is_told_which_there_are(capsys, monkeypatch, name):
    monkeypatch.delenv("MINIPALI_STRICT", raising=False)
    hint(name, 1)
    check(name, honest_patchify)
    said = capsys.readouterr().out
    if isinstance(name, str):
        assert said.count("embed_patches") == 2 and "unknown" in said
    else:
        assert said.count('check("patchify", patchify)') == 2
    monkeypatch.setenv("MINIPALI_STRICT", "1")
    with pytest.raises(CheckFailed):
        check(name, honest_patchify)
    with pytest.raises(KeyError):
        exercise(name)


def test_a_mistyped_name_is_guessed(capsys):
    hint("pachify")
    assert "Did you mean 'patchify'?" in capsys.readouterr().out


def test_a_console_without_a_tick_shows_the_rest_and_listeners_hear_of_it(monkeypatch):
    console, heard = io.TextIOWrapper(io.BytesIO(), encoding="cp1252"), []
    monkeypatch.setattr(sys, "stdout", console)
    monkeypatch.setattr(checks, "listeners", [heard.append])
    check("patchify", honest_patchify)
    console.flush()
    assert console.buffer.getvalue().startswith(b"? patchify: correct")
    assert [outcome.status for outcome in heard] == [CORRECT]


# --- what an attempt does to torch, and torch to an attempt ---------------------------------------

CHANGES = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast on a GPU": lambda: torch.set_autocast_enabled("cuda", True),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "precision of products": lambda: torch.set_float32_matmul_precision("medium"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "random numbers": lambda: torch.manual_seed(1234),
}


def settings():
    found = {name: read() for name, (read, _, _) in SETTINGS.items()}
    return {name: x.tolist() if torch.is_tensor(x) else x for name, x in found.items()}


@pytest.fixture
def restored():
    before = [(write, read()) for read, write, _ in SETTINGS.values()]
    yield
    for write, value in before:
        write(value)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_an_attempt_changes_in_torch_is_put_back(restored, name):
    seen = []

    def changes(pixels, p):
        seen.append(settings()[name])
        CHANGES[name]()
        seen.append(settings()[name])
        return honest_patchify(pixels, p)

    before = settings()
    assert examine(exercise("patchify"), changes).status == CORRECT
    assert settings() == before
    assert seen[0] != seen[1], "the attempt did change it"
    assert len(seen) >= 4
    assert seen == seen[:2] * (len(seen) // 2), "and the next cases did not notice"


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "threads"])
def test_the_outcome_does_not_depend_on_settings_and_leaves_them(restored, name):
    module = nn.Linear(3, 2)
    CHANGES[name]()
    before = settings()
    for piece, attempt in {"patchify": honest_patchify, "train": honest_train}.items():
        assert examine(exercise(piece), attempt).status == CORRECT
        assert settings() == before
    assert module.weight.device.type == "cpu"


def test_inference_mode_around_a_check_or_left_on_by_an_attempt_does_not_matter():
    kept = []

    def leaves_it_on(pixels, p):
        kept.append(torch.inference_mode())
        kept[-1].__enter__()
        return honest_patchify(pixels, p)

    with torch.inference_mode():
        assert examine(exercise("train"), honest_train).status == CORRECT
        assert torch.is_inference_mode_enabled()
    assert examine(exercise("patchify"), leaves_it_on).status == CORRECT
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    for one in reversed(kept):
        one.__exit__(None, None, None)
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def honest_train(module, optimizer, batches, held_out, loss, epochs, max_norm):
    losses, measured = [], []
    for _ in range(epochs):
        module.train()
        for x, y in batches:
            value = loss(module(x), y)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), max_norm)
            optimizer.step()
            losses.append(value.item())
        module.eval()
        with torch.no_grad():
            measured.append(loss(module(held_out[0]), held_out[1]).item())
    return torch.tensor(losses), torch.tensor(measured)


# --- results and errors that are hard to look at --------------------------------------------------


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __eq__ = __len__ = __repr__ = __str__
    __hash__ = None


class Silent(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        raise TypeError("no")


def raising(error):
    def attempt(*given):
        raise error

    return attempt


def endless(*given):
    while True:
        yield torch.zeros(1)


def deep(*given):
    return deep(*given)


RIGHT_SHAPE = torch.zeros(2, 6, 12)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (RIGHT_SHAPE.to_sparse(), "found a sparse_coo one"),
        (RIGHT_SHAPE.to("meta"), "must be on cpu, found meta"),
        (RIGHT_SHAPE.to(torch.complex64), "found torch.complex64"),
        (RIGHT_SHAPE.bool(), "found torch.bool"),
        (RIGHT_SHAPE.to(torch.float8_e4m3fn), "found torch.float8_e4m3fn"),
        (RIGHT_SHAPE.as_subclass(Silent), "cannot be examined: TypeError: no"),
        (NoText(), "found a NoText"),
        ((x for x in [1, 2]), "found a list"),
        (float("nan"), "must be a Tensor, found a float"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_an_odd_result_gets_a_sentence(result, said):
    outcome = examine(exercise("patchify"), lambda *given: result)
    assert outcome.status in (WRONG, CRASHED)
    assert said in str(outcome)


@pytest.mark.parametrize(
    "name", ["prompt_ids", "box_to_tokens", "overlap", "our_name", "row_labels"]
)
@pytest.mark.parametrize(
    "result",
    [
        float("nan"), 10**400, 1j, NoText(), [NoText()], "x" * 10**6, [float("nan")] * 4, [None],
        (), ([], []), (NoText(), NoText()), torch.zeros(4), {}, True,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_odd_results_where_plain_values_are_due(name, result):
    outcome = examine(exercise(name), lambda *given: result)
    assert outcome.status in (WRONG, CRASHED)
    assert len(str(outcome)) < 3000


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (raising(NoText()), "NoText: a NoText that cannot be shown"),
        (raising(ValueError("x" * 10**6)), "… (1000000 characters)"),
        (raising(SystemExit(3)), "SystemExit: 3"),
        (raising(GeneratorExit()), "GeneratorExit in line"),
        (deep, "RecursionError: maximum recursion depth"),
        (endless, "it must come to an end"),
        (lambda pixels, p: pixels.bool() @ pixels.bool().mT, "not implemented for 'Bool'"),
    ],
)
def test_what_an_attempt_raises_is_told_in_short(attempt, said):
    outcome = examine(exercise("patchify"), attempt)
    assert outcome.status == CRASHED
    assert said in outcome.message and len(outcome.message) < 1000


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (lambda: [1, 2], "one token a row, (b,); found int"),
        (lambda: [torch.zeros(1), torch.zeros(2)], "found torch.Size([1]) and torch.Size([2])"),
        (lambda: [], "found no step"),
        (lambda: endless(), "it must come to an end"),
    ],
)
def test_odd_steps_are_told(steps, said):
    outcome = examine(exercise("continue_tokens"), lambda *given: steps())
    assert outcome.status in (WRONG, CRASHED) and said in outcome.message


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
         " must have 1 axis (d)"),
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


TRANSFER = [one for one in ALL if one.transfer]


@pytest.mark.parametrize("stem", by_lesson())
def test_every_exercise_has_a_piece_that_no_lesson_shows(stem):
    assert any(one.transfer for one in by_lesson()[stem])


@functools.cache
def functions_of_lessons_and_package() -> list:
    """All functions that a lesson defines, and all of the package."""
    found = []
    for file in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
            function.args.defaults, function.decorator_list, scope = [], [], {"torch": torch}
            exec(compile(ast.Module([function], []), file.name, "exec"), scope)
            found.append(scope[function.name])
    # Marking a class starts processes and sets limits, whatever it is given, and has no such piece.
    marking = ("attempts", "autograding", "classroom", "student_process")
    passed_over = {f"minipali.{name}" for name in ("__main__", *marking)}
    for module in pkgutil.iter_modules(minipali.__path__, "minipali."):
        if module.name not in passed_over:
            own = vars(importlib.import_module(module.name)).values()
            functions = [one for one in own if inspect.isfunction(one)]
            found += [one for one in functions if one.__module__ == module.name]
    assert {place(one) for one in found} >= WHOLE_MODELS
    return [one for one in found if place(one) not in WHOLE_MODELS]


def place(function) -> str:
    return f"{function.__module__}.{function.__name__}"


# These load or train a model for seconds before they look at what they are given.
WHOLE_MODELS = {
    "minipali.cli.doctor", "minipali.evaluation.report", "minipali.graft.load",
    "minipali.graft.measured", "minipali.graft.train",
    "minipali.hub.download", "minipali.recipe.train_mine", "minipali.recipe.written_in",
    "minipali.small_tasks.naming_task", "minipali.small_tasks.speaking_task",
}  # fmt: skip


def takes(function, number: int) -> bool:
    """Whether a function can be called with so many arguments, without names."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("one", TRANSFER, ids=lambda one: one.name)
def test_no_function_of_lesson_or_package_passes_for_a_transfer_piece(one, unwatched):
    """Who copies has not learned it."""
    one = dataclasses.replace(one, mistakes=(), crashes=())  # their names do not matter
    every = one.cases  # whoever is wrong in the first need not try the others
    shorter = dataclasses.replace(one, cases=lambda: every()[:1])

    def passes(function) -> bool:
        disguised = foreign(function)  # so that it is tried and not refused for its name
        return all(examine(piece, disguised).status == CORRECT for piece in (shorter, one))

    number = len(every()[0])
    fitting = [each for each in functions_of_lessons_and_package() if takes(each, number)]
    assert fitting and passes(one.reference)
    assert [each.__qualname__ for each in fitting if passes(each)] == []


def test_the_largest_difference_is_one():
    """Infinity less itself is no number, and no number counts as the largest of all."""
    expected = torch.tensor([[torch.inf, 1.0, torch.nan], [torch.inf, 2.0, 3.0]])
    found = expected.clone()
    found[1, 1] = 2.5
    told = difference(found, expected, "row column", 0.0)
    assert "at row 1, column 1: expected 2, found 2.5" in told and "17%" in told


def test_numbers_that_look_alike_are_told_apart_and_nearly_right_is_said():
    expected = torch.tensor([2.35, 1.0])
    told = difference(torch.tensor([2.3499, 1.0]), expected, "row", 1e-5)
    assert "expected 2.35, found 2.3499. All of it is nearly right" in told
    told = difference(torch.tensor(2.35001), torch.tensor(2.35), "", 1e-7)
    assert "must be 2.35, found 2.35001. All of it" in told
    told = difference(torch.tensor([2.25, 1.0]), expected, "row", 1e-5)
    assert told.endswith("expected 2.35, found 2.25.")
    told = difference(torch.tensor([5000]), torch.tensor([5001]), "row", 1e-5)
    assert told.endswith("expected 5001, found 5000.")


def related(right, wrong, cases, axes="b n", **more):
    """What is said of a wrong function, if no mistake is known."""
    one = _with(
        "layer_norm", reference=right, cases=lambda: cases, axes=axes, mistakes=(), banned=(),
        gradients=(), **more,
    )  # fmt: skip
    outcome = examine(one, wrong)
    assert outcome.status == WRONG
    return outcome.message.split("Case 1")[0].strip()


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


TABLES = [(numbers(3, 4),), (numbers(2, 5),)]
PAIRS = [(numbers(3, 4), numbers(4)), (numbers(2, 5), numbers(5))]
MASKED = [(numbers(3, 4), numbers(3, 4) > 0), (numbers(2, 5), numbers(2, 5) > 0)]


@pytest.mark.parametrize(
    ("right", "wrong", "cases", "said"),
    [
        # The right function with other arguments.
        (lambda a, b: a - b, lambda a, b: b - a, [(numbers(4), numbers(3, 4)[0])] * 2,
         "gives what is right if `a` and `b` are exchanged."),
        (lambda x, mask: x * mask, lambda x, mask: x * ~mask, MASKED,
         "if `mask` is the other way round (not `mask`)."),
        (lambda x, mask: x * mask, lambda x, mask: x + 0, MASKED, "if all of `mask` is True."),
        (lambda x, w: x * w, lambda x, w: x + 0, PAIRS, "if all of `w` is 1. Is it left out?"),
        (lambda x, w: x + w, lambda x, w: x - w, PAIRS, "if `w` has the opposite sign."),
        (lambda x, k: x[:, :k], lambda x, k: x[:, : k - 1], [(numbers(3, 4), 3)],
         "if `k` is smaller by 1."),
        (lambda x, w: (x * w).exp() + w, lambda x, w: x.exp(), PAIRS, "`w` has no effect"),
        # Number by number.
        (lambda x: x.square(), lambda x: -x.square(), TABLES, "with the opposite sign."),
        (lambda x: x > 0.3, lambda x: x <= 0.3, TABLES, "1 minus the right one"),
        (lambda x: x.exp(), lambda x: x + 0, TABLES, "the logarithm of the right one."),
        (lambda x: x.exp(), lambda x: x.exp() / x.shape[1], TABLES, "times 1 / n."),
        (lambda x: x.exp(), lambda x: x.exp() / 2, TABLES, "times 0.5."),
        (lambda x: x.argsort(), lambda x: x.argsort() + 1, TABLES, "1 more, at every place."),
        (lambda x, w: x.sin() * w, lambda x, w: x.sin() * w + x, PAIRS,
         "has `x` added once too often"),
        (lambda x: x.sin(), lambda x: x + 0, TABLES, "Your result is `x` itself."),
        # Along an axis.
        (lambda x: x.cumsum(1), lambda x: x.cumsum(1).flip(1), TABLES,
         "Along n your result is the right"),
        (lambda x: x.cumsum(1), lambda x: x.cumsum(1).roll(1, 1), TABLES, "one place too late."),
        (lambda x: x.sin().softmax(1), lambda x: x.sin(), TABLES,
         "A softmax along n makes your result"),
        (lambda x: x.sin(), lambda x: x[:1].sin().expand_as(x), TABLES,
         "Along b all places of your result hold what is right at the first."),
        (lambda x: x / (x.square().sum(1, True) + 0.1), lambda x: x / (x.square().sum(1, True) + 1),
         TABLES, "factor that is the same along n and differs with b."),
        (lambda x, w: (x / x.norm(dim=1, keepdim=True)) + w, lambda x, w: x + w, PAIRS,
         "less `w` is the right one less `w`, times a factor that is the same along n"),
        # Shapes, lists and texts.
        (lambda x: x.exp(), lambda x: x.exp()[None], TABLES, "an axis of length 1 is too many"),
        (lambda x: x.exp(), lambda x: x.exp().mT, TABLES, "right once it is turned (.mT)."),
        (lambda x: x.exp(), lambda x: x.exp()[:, 1:], TABLES, "Along n the first is missing"),
        (lambda n: list("abcd")[:n], lambda n: list("bcd"), [(4,)], "The first item is missing"),
        (lambda n: "one two", lambda n: "one two\n", [(4,)], "The last character is too many"),
        (lambda n: "one two", lambda n: "one  two ", [(4,)], "All but blanks and line ends"),
        (lambda n: ["b", "a", "c"], lambda n: ["a", "b", "c"], [(4,)], "but in another order."),
        # Places.
        (lambda x: x.exp(), lambda x: x.exp() * (torch.arange(x.shape[1]) > 0), TABLES,
         "Along n only the first place is wrong."),
        (lambda x, mask: x.sin() * mask, lambda x, mask: x.sin() * mask + x.cos() * ~mask, MASKED,
         "It is wrong only where `mask` is False."),
    ],
)  # fmt: skip
def test_a_relation_to_the_right_result_is_told_where_no_mistake_is_known(
    right, wrong, cases, said
):
    assert said in related(right, wrong, cases)


def test_what_gives_nan_alone_is_not_explained_by_other_arguments():
    """They give nan for another reason."""

    def right(x, mask):
        return x.masked_fill(~mask, -torch.inf).softmax(dim=1)

    cases = [(numbers(3, 4), numbers(3, 4) < numbers(3, 4).amax(dim=1, keepdim=True))]
    assert related(right, lambda x, mask: x * torch.nan, cases) == ""
    assert "other way round" in related(right, lambda x, mask: right(x, ~mask), cases)


def test_parts_in_another_order_are_told():
    def said(change):
        return related(
            lambda x: (x.sin(), x.cos()), lambda x: change(x.sin(), x.cos()), TABLES,
            axes="b n; b n", parts=("sine", "cosine"),
        )  # fmt: skip

    assert said(lambda s, c: (c, s)) == "What you return as sine is what cosine must be."
    assert said(lambda s, c: (s, 2 * c)) == "cosine: Your result is the right one times 2."


def test_a_relation_of_gradients_is_told():
    one = _with(
        "layer_norm", reference=lambda x: x.sin(), cases=lambda: TABLES, axes="b n", mistakes=(),
        banned=(), gradients=("x",),
    )  # fmt: skip
    outcome = examine(one, lambda x: 2 * x.sin() - x.sin().detach())
    assert outcome.message.startswith("The gradient of `x`: Your result is the right one times 2.")


def test_a_relation_must_hold_in_all_wrong_cases():
    """And explain what was wrong, not only vanish beside large numbers."""

    def sometimes(x):
        return x.sin() * (2 if x.shape[0] == 3 else -1)

    assert "times 2" not in related(lambda x: x.sin(), sometimes, TABLES)
    large = [(1e8 + numbers(3, 4), numbers(3, 4))]
    told = related(lambda x, y: y.sin(), lambda x, y: y.sin() + y, large)
    assert "less `x`" not in told
    # Two wrong numbers can be related by chance.
    assert related(lambda x: x[0, :1].sin(), lambda x: 2 * x[0, :1].sin(), TABLES, axes="n") == ""
