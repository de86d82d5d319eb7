"""Narrow weights on a CPU: kept in 16 or 8 bits, computed with in 32.

What `benchmarks/` measures decides how a product is computed here.

- Many rows (a picture, a prompt): a processor without instructions for bfloat16 is several times
  slower in it than in float32. So the weights are widened first, a block at a time, into memory
  that is used again and again: new memory for each product costs more than the widening.
- One row (each new token): every weight is read once and used once, so the time is that of reading
  memory. Fewer bytes are faster: bfloat16 takes about half the time of float32, and int8 half of
  that.

`load` calls `widen` where it helps. `quantize` is for the user to call: it changes the weights.
"""

import functools
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.paligemma import PaliGemma
from minipali.patches import PatchEmbedding

BLOCK = 2**22  # numbers that are widened at a time: 16 MB of float32
_own = threading.local()  # each thread widens into memory of its own


@functools.cache
def is_slow(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies faster in float32 than in this dtype of 16 bits.

    torch uses bfloat16 instructions where there are some, and does float16 in small steps.
    """
    if dtype == torch.bfloat16:
        try:
            return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        except (AttributeError, RuntimeError):  # a torch without oneDNN
            return True
    return dtype == torch.float16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for a narrow W, without rounding x: float32 (..., d), (n, d) -> float32 (..., n).

    Only the single row of a decoding step is rounded to W's dtype, for speed.
    """
    bias = None if bias is None else bias.float()
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return F.linear(x, weight.float(), bias)
    rows = x.flatten(0, -2)
    if len(rows) == 1:
        y = F.linear(rows.to(weight.dtype), weight).float()
    else:
        y = many_rows(rows, weight)
    return (y if bias is None else y + bias).unflatten(0, x.shape[:-1])


def many_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in the dtype of x, a block of W at a time: (b, d) and (n, d) -> (b, n)."""
    n, d = weight.shape
    height = max(1, BLOCK // d)
    wide = getattr(_own, "wide", None)
    if wide is None or wide.dtype != x.dtype or wide.numel() < height * d:
        wide = _own.wide = torch.empty(max(BLOCK, height * d), dtype=x.dtype)
    y = x.new_empty(len(x), n)
    for start in range(0, n, height):
        block = weight[start : start + height]
        y[:, start : start + height] = x @ wide[: block.numel()].view_as(block).copy_(block).T
    return y


class WideLinear(nn.Linear):
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
    nn.Linear: WideLinear,
    nn.LayerNorm: WideLayerNorm,
    nn.Embedding: WideEmbedding,
    PatchEmbedding: WidePatchEmbedding,
}


def widen(model: PaliGemma) -> PaliGemma:
    """Let a model with narrow weights compute in float32; the weights stay as they are.

    Only the classes of its modules change, so that it can be copied and saved as before.
    """
    for module in model.modules():
        if type(module) in WIDE:
            module.__class__ = WIDE[type(module)]
    model.language_model.head = linear
    return model


# --- int8 ----------------------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """A linear map whose weights are whole numbers from -127 to 127, with a factor for each row."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        rounded, scale = to_int8(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., n) in the dtype of x."""
        y = int8_linear(x, self.weight, self.scale)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> whole numbers (n, d) as int8, and the float32 factors (n,) that undo the rounding.

    The largest number of each row becomes 127 or -127. A block of rows at a time, so that a large
    table needs little more memory than its int8 form.
    """
    n, d = weight.shape
    rounded, scale = torch.empty(n, d, dtype=torch.int8), torch.empty(n)
    height = max(1, BLOCK // d)
    for start in range(0, n, height):
        rows = slice(start, start + height)
        wide = weight[rows].detach().float()
        scale[rows] = wide.abs().amax(dim=1).clamp(min=1e-12) / 127
        rounded[rows] = (wide / scale[rows, None]).round().to(torch.int8)
    return rounded, scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x W^T for W = scale * whole numbers: (..., d) -> float32 (..., n)."""
    rows = x.flatten(0, -2)
    if len(rows) == 1:
        # The kernel is fast for bfloat16 alone.
        y = torch._weight_int8pack_mm(rows.bfloat16(), weight, scale.bfloat16()).float()
    else:
        # Whole numbers up to 127 are exact in bfloat16 as well.
        kind = torch.float32 if is_slow(torch.bfloat16) else torch.bfloat16
        y = many_rows(rows.to(kind), weight).float() * scale
    return y.unflatten(0, x.shape[:-1])


class Int8Embedding(nn.Module):
    """The table of tokens in int8. As the head it is the largest matrix of a decoding step."""

    def __init__(self, weight: Tensor):
        super().__init__()
        rounded, scale = to_int8(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scale[ids, None]


def quantize(model: PaliGemma) -> PaliGemma:
    """Turn the decoder's matrices and its table into int8, in place; the model only answers then.

    The vision tower stays: it runs once a picture, and its products have many rows.
    """
    decoder = model.language_model
    if is_slow(decoder.norm.weight.dtype):
        widen(model)
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                setattr(part, name, Int8Linear(module.weight, module.bias))
    table = Int8Embedding(decoder.embed_tokens.weight)
    decoder.embed_tokens = table
    decoder.head = lambda x, weight: int8_linear(x, weight, table.scale)
    return model.requires_grad_(False)
