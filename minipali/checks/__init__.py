"""Checks that name the mistake.

    check("patchify", patchify)     displays what is right or wrong with your function
    hint("patchify", 1)             displays the first hint

Outcomes are displayed, not raised, so that a notebook runs to its end. With the environment
variable MINIPALI_STRICT=1 everything but *correct* raises CheckFailed: so solutions are tested.
"""

import os
from collections.abc import Callable

from minipali.checks.engine import CORRECT, Exercise, Outcome, examine
from minipali.checks.lessons import exercises

__all__ = ["CheckFailed", "check", "exercise", "hint", "show"]


# Called with every outcome that is shown; `minipali.progress` listens here.
listeners: list[Callable[[Outcome], None]] = []


class CheckFailed(AssertionError):
    """Raised in strict mode for every outcome but *correct*."""


def exercise(name: str) -> Exercise:
    """The exercise of that name. Raises KeyError that lists the names there are."""
    known = exercises()
    if name not in known:
        raise KeyError(f"no exercise {name!r}; there are: {', '.join(known)}")
    return known[name]


def check(name: str, attempt: Callable) -> None:
    """Examine a learner's function and display the outcome.

    Raises KeyError, listing the names there are, for an unknown exercise.
    """
    show(examine(exercise(name), attempt))


def hint(name: str, number: int = 1) -> None:
    """Display hint `number` of an exercise, counted from 1; the last ones say the most."""
    hints = exercise(name).hints
    if not 1 <= number <= len(hints):
        print(f"{name} has hints 1 to {len(hints)}.")
        return
    print(f"Hint {number} of {len(hints)}: {hints[number - 1]}")


def show(outcome: Outcome) -> None:
    """Print an outcome; in strict mode raise CheckFailed unless it is *correct*."""
    print(outcome)
    for listener in listeners:
        listener(outcome)
    if outcome.status != CORRECT and os.environ.get("MINIPALI_STRICT") == "1":
        raise CheckFailed(str(outcome))
