"""Lesson 02. Three ways to bring numbers to one scale; they differ in the axes they average over.

BatchNorm averages one feature over the batch, LayerNorm one token over its features, RMSNorm the
squares of one token over its features. SigLIP uses LayerNorm (`torch.nn.LayerNorm`), Gemma RMSNorm.
"""

import torch
from torch import Tensor, nn


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """Each token to mean 0 and variance 1 over its features, then scaled and shifted.

    x: (..., d); weight, bias: (d,) -> (..., d). The variance is the biased one (divided by d).
    Equal to `torch.nn.functional.layer_norm`. Source: Ba et al. 2016, equation 3.
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weight + bias


class BatchNorm(nn.Module):
    """Each feature to mean 0 and variance 1 over the batch (Ioffe and Szegedy 2015, algorithm 1).

    In training it uses the batch's own statistics and remembers a running average of them; in eval
    mode it uses what it remembers. Equal to `torch.nn.BatchNorm1d` on (b, d) inputs.
    """

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(b, d) -> (b, d). Raises ValueError in training on a batch of one: no variance there."""
        if not self.training:
            mean, variance = self.running_mean, self.running_var
        else:
            if len(x) < 2:
                raise ValueError(
                    f"BatchNorm in training needs at least 2 examples, found {len(x)}: the variance"
                    " of one example is 0; call .eval() or use a larger batch"
                )
            mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                # What is remembered is the unbiased variance, an estimate for all data.
                self.running_var.lerp_(x.var(dim=0, correction=1), self.momentum)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class RMSNorm(nn.Module):
    """Each token divided by the root mean square of its features, times (1 + weight).

    Source: Zhang and Sennrich 2019; Gemma stores the weight minus one, so that a weight of zeros
    (which weight decay pulls towards) leaves the features as they are. All of it is in float32 and
    rounded once at the end; Llama rounds before it multiplies. With offset 0 the factor is the
    weight itself, as Llama stores it.
    """

    def __init__(self, width: int, eps: float = 1e-6, offset: float = 1.0):
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), in the dtype of x."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt((x32 * x32).mean(dim=-1, keepdim=True) + self.eps)
        return (x32 * (self.offset + self.weight.float())).to(x.dtype)
