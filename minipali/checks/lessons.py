"""The lessons that have exercises, in their order; each is a module of that name beside this."""

import functools
import importlib

from minipali.checks.engine import Exercise

STEMS = (
    "patches",
    "norms",
    "attention",
    "vision",
    "contrastive",
    "tokens",
    "rope",
    "kv_cache",
    "gqa",
    "gemma",
    "paligemma",
    "generation",
    "training",
    "weights",
    "locations",
    "masks",
    "recipe",
    "lora",
    "quantization",
    "variants",
    "graft",
)


@functools.cache
def by_lesson() -> dict[str, tuple[Exercise, ...]]:
    """The exercises of each lesson, by its file's stem: "01_patches" and so on."""
    return {
        f"{number:02d}_{stem}": importlib.import_module(f"minipali.checks.{stem}").EXERCISES
        for number, stem in enumerate(STEMS, start=1)
    }


@functools.cache
def exercises() -> dict[str, Exercise]:
    """All exercises by name."""
    return {one.name: one for of_lesson in by_lesson().values() for one in of_lesson}
