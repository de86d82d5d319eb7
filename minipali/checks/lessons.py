"""The lessons that have exercises, in their order; each is a module of that name beside this."""

import functools
import importlib

from minipali.checks.engine import Exercise

STEMS = ("patches", "norms", "attention", "vision")


@functools.cache
def exercises() -> dict[str, Exercise]:
    """All exercises by name."""
    found = {}
    for stem in STEMS:
        for one in importlib.import_module(f"minipali.checks.{stem}").EXERCISES:
            found[one.name] = one
    return found
