"""Every figure of the lessons. Each function draws, shows and describes one.

A lesson's own figures are in the module of its name: `figures.norms.axes(...)`. What all lessons
share is here: `figures.model_map(...)`.
"""

from minipali.figures import (
    attention,
    contrastive,
    gemma,
    generation,
    gqa,
    graft,
    kv_cache,
    locations,
    lora,
    masks,
    norms,
    paligemma,
    patches,
    recipe,
    rope,
    tokens,
    training,
    vision,
    weights,
)
from minipali.figures.common import as_picture, boxes, model_map, pictures, show, slide

__all__ = [
    "as_picture",
    "attention",
    "boxes",
    "contrastive",
    "gemma",
    "generation",
    "gqa",
    "graft",
    "kv_cache",
    "locations",
    "lora",
    "masks",
    "model_map",
    "norms",
    "paligemma",
    "patches",
    "pictures",
    "recipe",
    "rope",
    "show",
    "slide",
    "tokens",
    "training",
    "vision",
    "weights",
]
