"""Checks that name the mistake.

    check("patchify", patchify)     displays what is right or wrong with your function
    hint("patchify", 1)             displays the first hint
    with trying("a picture"): ...   displays what is missing or crashes inside, and goes on

Outcomes are displayed, not raised, so that a notebook runs to its end. With the environment
variable MINIPALI_STRICT=1 everything but *correct* raises CheckFailed: so solutions are tested.
"""

import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minipali.checks.comparing import shown
from minipali.checks.engine import CORRECT, UNKNOWN, Exercise, Outcome, examine, failed
from minipali.checks.lessons import exercises

__all__ = ["CheckFailed", "check", "exercise", "hint", "reveal", "show", "trying"]


# Called with every outcome that is shown; `minipali.progress` listens here.
listeners: list[Callable[[Outcome], None]] = []


class CheckFailed(AssertionError):
    """Raised in strict mode for every outcome but *correct*."""


def exercise(name: str) -> Exercise:
    """The exercise of that name. Raises KeyError that lists the names there are."""
    if unknown := _unknown(name):
        raise KeyError(unknown)
    return exercises()[name]


def check(name: str, attempt: Callable) -> None:
    """Examine a learner's function and display the outcome; also for a name that does not exist."""
    unknown = _unknown(name)
    show(Outcome(shown(name), UNKNOWN, unknown) if unknown else examine(exercise(name), attempt))


def hint(name: str, number: int = 1) -> None:
    """Display hint `number` of an exercise, counted from 1; the last ones say the most."""
    if unknown := _unknown(name):
        _write(unknown)
        return
    hints = exercise(name).hints
    if number not in range(1, len(hints) + 1):
        _write(f'{name} has hints 1 to {len(hints)}: hint("{name}", 1), and so on.')
        return
    _write(f"Hint {int(number)} of {len(hints)}: {hints[int(number) - 1]}")


def reveal(question: str, guess, found) -> None:
    """Print a learner's guess beside the result; a guess of `...` is none."""
    told = "you wrote no guess" if guess is ... else f"your guess: {shown(guess)}"
    _write(f"{question}: {told}   found: {found}")


def show(outcome: Outcome) -> None:
    """Print an outcome; in strict mode raise CheckFailed unless it is *correct*."""
    for listener in listeners:
        listener(outcome)
    _write(str(outcome))
    if outcome.status != CORRECT and os.environ.get("MINIPALI_STRICT") == "1":
        raise CheckFailed(str(outcome))


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Run what stands inside; a learner's piece that is missing or crashes there is told in a line.

    So the rest of the notebook still runs. what: what is tried, in words.
    """
    try:
        yield
    except BaseException as error:
        show(failed(what, error))


def _unknown(name) -> str:
    """What is to be said about a name that is none of an exercise, or ""."""
    known = list(exercises())
    if name in known:
        return ""
    if not isinstance(name, str):
        return f'The name of the exercise comes first, as text: check("{known[0]}", {known[0]}).'
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no exercise {shown(name)!r}.{meant} There are: {', '.join(known)}."


_AT_WORDS = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}


def _write(text: str) -> None:
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        # JupyterLab breaks a long line of text at any letter.
        lines = re.sub(r" (Case \d+ of \d+)", r"\n\1", text, count=1).splitlines()
        text = "\n".join(textwrap.fill(line, 96, **_AT_WORDS) for line in lines)
    # A console that cannot write a tick (Windows, cp1252) gets a question mark in its place.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, errors="replace").decode(encoding))
