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
    quantization,
    recipe,
    rope,
    tokens,
    training,
    variants,
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
    "quantization",
    "recipe",
    "rope",
    "show",
    "slide",
    "tokens",
    "training",
    "variants",
    "vision",
    "weights",
]
