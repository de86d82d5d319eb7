"""Lesson 19. Weights in 8 or 4 bits: whole numbers, and the factors that undo the rounding.

Decoding reads all weights for each token, so on a CPU fewer bytes are faster, as long as arithmetic
keeps up with memory: unpacking 4 bits costs more of it than 8, so on a processor with AVX2 alone
int4 saves memory and no time beside int8. The decoder's matrices are rounded; the vision tower
stays as it is: it runs once a picture, and its products have many rows, where arithmetic takes the
time anyway.
"""

import torch
from torch import Tensor, nn

from minipali.lora import lora_layers
from minipali.narrow import BLOCK, Model, WideEmbedding, decoder_of, suit, widened

GROUP = 32  # neighbours in a row that share a scale and a middle, in int4


def quantize(model: Model, bits: int = 8) -> Model:
    """Turn the decoder's matrices into 8 or 4 bits, in place; the model only answers then.

    model: a PaliGemma, or a language model alone (`minipali.gemma.Gemma`) of any kind. The table of
    tokens becomes int8 in both cases: rows of it are looked up, and in 4 bits the head's rounding
    would reach the answer without a layer in between. 4 bits are for a CPU alone.
    Raises ValueError for other bits or devices, and for LoRA layers, which must be merged first.
    """
    decoder = decoder_of(model)
    on_cpu = decoder.norm.weight.device.type == "cpu"
    if bits not in (4, 8):
        raise ValueError(f"bits must be 8 or 4, found {bits!r}")
    if bits == 4 and not on_cpu:
        raise ValueError(
            "a model in int4 must be on the CPU, for which torch has the products, found"
            f" {decoder.norm.weight.device}: use int8, or the device cpu"
        )
    if lora_layers(decoder):
        raise ValueError("a model must have no LoRA layers when it is rounded: merge them first")
    if on_cpu:
        suit(model)
    layers = decoder.layers
    names = [name for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    for name in names:  # by names, so that each matrix can go before the next one is rounded
        layers.set_submodule(name, _quantized(layers.get_submodule(name), bits))
    wide, table = isinstance(decoder.embed_tokens, WideEmbedding), decoder.embed_tokens.weight
    table = Int8Embedding(table, torch.float32 if wide else table.dtype)
    decoder.embed_tokens = table
    decoder.head = lambda x, weight: int8_linear(x, weight, table.scale)
    return model.requires_grad_(False)


def _quantized(layer: nn.Linear, bits: int) -> nn.Module:
    n, d = layer.weight.shape
    # What torch's product for int4 takes; a matrix of another shape is kept in 8 bits.
    fits = n % 16 == 0 and d % GROUP == 0
    return (Int4Linear if bits == 4 and fits else Int8Linear)(layer.weight, layer.bias)


# --- 8 bits: one scale for each row --------------------------------------------------------------


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) -> whole numbers (n, d) as int8, and the float32 factors (n,) that undo the rounding.

    The largest number of each row becomes 127 or -127. A block of rows at a time, so that a large
    table needs little more memory than its int8 form.
    """
    n, d = weight.shape
    whole = torch.empty(n, d, dtype=torch.int8, device=weight.device)
    scale = torch.empty(n, dtype=torch.float32, device=weight.device)
    height = max(1, BLOCK // d)
    for start in range(0, n, height):
        rows = slice(start, start + height)
        wide = weight[rows].detach().float()
        scale[rows] = wide.abs().amax(dim=1).clamp(min=1e-12) / 127
        whole[rows] = (wide / scale[rows, None]).round().to(torch.int8)
    return whole, scale


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x W^T for W = scale * whole numbers: (..., d) -> float32 (..., n)."""
    rows = x.flatten(0, -2)
    if len(rows) == 1 and x.device.type == "cpu":
        # The kernel is fast for bfloat16 alone.
        y = torch._weight_int8pack_mm(rows.bfloat16(), weight, scale.bfloat16()).float()
    else:
        # Whole numbers up to 127 are exact in every dtype that x can have.
        y = widened(rows, weight).float() * scale
    return y.unflatten(0, x.shape[:-1])


class Int8Linear(nn.Module):
    """A linear map whose weights are whole numbers from -127 to 127, with a factor for each row."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        whole, scale = to_int8(weight)
        self.register_buffer("weight", whole)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., n) in the dtype of x."""
        y = int8_linear(x, self.weight, self.scale)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class Int8Embedding(nn.Module):
    """The table of tokens in int8. As the head it is the largest matrix of a decoding step.

    dtype: of the vectors that it gives.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        whole, scale = to_int8(weight)
        self.register_buffer("weight", whole)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weight[ids] * self.scale[ids, None]).to(self.dtype)


# --- 4 bits: a scale and a middle for each group of 32 -------------------------------------------


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, d) -> whole numbers (n, d) from 0 to 15, and bfloat16 scales and middles (n, d / 32).

    A weight is about (whole - 8) * scale + middle: 16 equal steps from the smallest to the largest
    number of its group. The middle is the number that an 8 stands for, as torch's product wants it.
    """
    groups = weight.detach().float().unflatten(1, (-1, GROUP))
    least, most = groups.amin(dim=2), groups.amax(dim=2)
    scale = ((most - least) / 15).clamp(min=1e-12).bfloat16()
    middle = (least + 8 * scale).bfloat16()
    # Measured from what is kept, so that the rounding to bfloat16 is made up for.
    whole = ((groups - middle[..., None]) / scale[..., None] + 8).round().clamp(0, 15)
    return whole.to(torch.uint8).flatten(1), scale, middle


class Int4Linear(nn.Module):
    """A linear map whose weights are whole numbers from 0 to 15, two in a byte."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        whole, scale, middle = to_int4(weight)
        # In the order in which torch's product reads them, which depends on the processor.
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.int(), 1)
        self.register_buffer("weight", packed)
        self.register_buffer("scales", torch.stack((scale.T, middle.T), dim=-1).contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., n) in the dtype of x."""
        rows = x.flatten(0, -2).bfloat16().contiguous()  # the kernel is fast for bfloat16 alone
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        y = product(rows, self.weight, GROUP, self.scales).unflatten(0, x.shape[:-1])
        return (y if self.bias is None else y + self.bias).to(x.dtype)
