"""Lesson 14. How far transformers' PaliGemma is from ours, layer by layer."""

import math
from typing import Any

from torch import Tensor, nn

from minipali import hooks
from minipali.paligemma import PaliGemma
from minipali.weights import our_name

# transformers multiplies by sqrt(width) inside this layer, we do it right after; so its outputs
# differ by that factor, and the next layers show whether it is all that differs.
SCALED_INSIDE = "language_model.embed_tokens"


def compare_layers(
    ours: PaliGemma, theirs: nn.Module, batch: dict[str, Tensor]
) -> dict[str, float]:
    """The length of the difference of both outputs / the length of ours, for each layer.

    batch: what both are called with. Without padding: there, both may compute anything. Returns
    them by our name, in the order of computing; infinite if the shapes differ. "logits" is the
    whole model.
    """

    def difference(want: Tensor, got: Any) -> float:
        got = got if isinstance(got, Tensor) else got[0]
        if got.shape != want.shape:
            return math.inf
        far = ((got.float() - want.float()).norm() / want.float().norm()).item()
        return math.inf if math.isnan(far) else far

    def name_of(layer: str) -> str:
        return (our_name(f"{layer}.") or "").removesuffix(".")

    found = hooks.compare(ours, theirs, lambda model: model(**batch), difference, name_of)
    found.pop(SCALED_INSIDE, None)
    return found


def first_difference(
    ours: PaliGemma, theirs: nn.Module, batch: dict[str, Tensor], tolerance: float = 1e-5
) -> str | None:
    """Our name of the first layer that is farther from transformers' than `tolerance`, or None.

    The default is for float32. In bfloat16 rounding alone may make a percent.
    """
    found = compare_layers(ours, theirs, batch)
    return next((name for name, far in found.items() if far > tolerance), None)
