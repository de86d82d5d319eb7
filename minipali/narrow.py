"""Narrow weights on a CPU: kept in 16 bits, multiplied in the way that is fastest here.

- Many rows (a picture, a prompt): a processor without instructions for bfloat16 is several times
  slower in it than in float32. So the weights are widened first, a block at a time, into memory
  that is used again and again: new memory for each product costs more than the widening.
- One row (each new token): every weight is read once and used once, so the time is that of reading
  memory, if the right function of torch is called. Fewer bytes are faster.

Which way is fastest depends on the processor, so `fastest` measures, once in a process. `load`
calls `suit`. Weights of 8 and 4 bits are in `minipali.quantization`. `benchmarks/` compares.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.gemma import Gemma
from minipali.paligemma import PaliGemma
from minipali.patches import PatchEmbedding

BLOCK = 2**22  # numbers that are widened at a time: 16 MB of float32
_own = threading.local()  # each thread widens into memory of its own


# --- x W^T in several ways: (b, d) and (n, d) -> (b, n), in any dtype -----------------------------

Way = Callable[[Tensor, Tensor], Tensor]


def rounded(x: Tensor, weight: Tensor) -> Tensor:
    """With x in W's dtype, as torch and transformers do it."""
    return F.linear(x.to(weight.dtype), weight)


def as_column(x: Tensor, weight: Tensor) -> Tensor:
    """For one row alone: the same product as W x, for which torch calls other code."""
    return torch.mv(weight, x[0].to(weight.dtype))[None]


def widened(x: Tensor, weight: Tensor) -> Tensor:
    """With W in the dtype of x, which is at least as wide: nothing is rounded before the product.

    A block of W at a time, so that it never takes more memory than `BLOCK` numbers.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight.to(x.dtype))
    y = x.new_empty(len(x), len(weight))
    for rows, block in _blocks(weight, x.dtype):
        y[:, rows] = x @ block.T
    return y


def _blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of W after the other, which they are and in a wider dtype, in the same memory."""
    n, d = weight.shape
    height = max(1, BLOCK // d)
    wide = getattr(_own, "wide", None)
    if wide is None or wide.dtype != dtype or wide.numel() < height * d:
        # Memory that was made in inference mode could not be used outside it.
        with torch.inference_mode(False):
            wide = torch.empty(max(BLOCK, height * d), dtype=dtype, device="cpu")
        _own.wide = wide
    for start in range(0, n, height):
        block = weight[start : start + height]
        yield slice(start, start + height), wide[: block.numel()].view_as(block).copy_(block)


class Frozen(torch.autograd.Function):
    """`widened` where x learns and W does not: for the way back W is kept narrow, too."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return widened(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        [weight] = ctx.saved_tensors
        of_x = gradient.new_zeros(len(gradient), weight.shape[1])
        for rows, block in _blocks(weight, gradient.dtype):
            of_x += gradient[:, rows] @ block
        return of_x, None


CHOSEN: dict[tuple[torch.dtype, bool], Way] = {}


def fastest(dtype: torch.dtype, one_row: bool) -> Way:
    """How this processor multiplies with weights of this dtype in the least time.

    Measured in about a tenth of a second when it is first asked for, and kept while the process
    lives, so that a product always has the same digits. The ways take turns, and the best time of
    each counts: what else the machine does then disturbs all alike. The first of the ways gives
    place only to one that is clearly faster.
    """
    if (dtype, one_row) not in CHOSEN:
        ways = (rounded, as_column) if one_row else (widened, rounded)
        # So large that threads which wait for each other do not decide.
        x = torch.ones(1 if one_row else 64, 2048, dtype=torch.float32, device="cpu")
        weight = torch.ones(4096 if one_row else 1024, 2048, dtype=dtype, device="cpu")
        took = {way: [] for way in ways}
        end = time.perf_counter() + 0.05
        while len(took[ways[0]]) < 3 or time.perf_counter() < end:
            for way in ways:
                start = time.perf_counter()
                way(x, weight)
                took[way].append(time.perf_counter() - start)
        best = {way: min(seconds) for way, seconds in took.items()}
        best[ways[0]] *= 0.9
        # Of two threads that measure at once, the first to end decides.
        CHOSEN.setdefault((dtype, one_row), min(ways, key=best.get))
    return CHOSEN[dtype, one_row]


def is_slow(dtype: torch.dtype) -> bool:
    """Whether a model with weights of this dtype should compute in float32 on this processor.

    float16 always should: its largest number is 65,504, which activations can pass.
    """
    if dtype == torch.bfloat16:
        return fastest(dtype, one_row=False) is widened
    return dtype == torch.float16


# --- weights of 16 bits --------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for a narrow W, in the dtype of x: (..., d), (n, d) -> (..., n).

    Only the single row of a decoding step is rounded to W's dtype, for speed.
    """
    bias = None if bias is None else bias.to(x.dtype)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    one = x.numel() == x.shape[-1]
    if learns and not weight.requires_grad and x.device.type == "cpu" and x.dtype != weight.dtype:
        y = Frozen.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
        return y if bias is None else y + bias
    if learns or x.device.type != "cpu" or (x.dtype == weight.dtype and not one):
        return F.linear(x, weight.to(x.dtype), bias)
    way = fastest(weight.dtype, one_row=True) if one else widened
    y = way(x.flatten(0, -2), weight).to(x.dtype).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


class NarrowLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class WideLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class WideEmbedding(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


class WidePatchEmbedding(PatchEmbedding):
    def embed(self, pixels: Tensor) -> Tensor:
        convolution = self.patch_embedding
        weight, bias = convolution.weight.float(), convolution.bias.float()
        return F.conv2d(pixels, weight, bias, stride=convolution.stride)


WIDE = {
    nn.Linear: NarrowLinear,
    nn.LayerNorm: WideLayerNorm,
    nn.Embedding: WideEmbedding,
    PatchEmbedding: WidePatchEmbedding,
}


Model = TypeVar("Model", PaliGemma, Gemma)


def decoder_of(model: PaliGemma | Gemma) -> Gemma:
    """The decoder of a PaliGemma; a language model alone is one itself."""
    return model if isinstance(model, Gemma) else model.language_model


def suit(model: Model) -> Model:
    """Let a model on a CPU compute as fast as its weights allow; one in float32 does already.

    The weights stay as they are. Only the classes of its modules change, so that it can be copied
    and saved as before.
    """
    dtype = decoder_of(model).norm.weight.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return model
    fastest(dtype, one_row=True)  # measured now, and not while somebody waits for the second token
    return widen(model) if is_slow(dtype) else _become(model, {nn.Linear: NarrowLinear})


def widen(model: Model) -> Model:
    """Let a model with narrow weights compute in float32, in the way of `suit`."""
    return _become(model, WIDE)


def _become(model: Model, classes: dict[type, type]) -> Model:
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    decoder_of(model).head = linear
    return model
