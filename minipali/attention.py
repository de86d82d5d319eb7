"""Lesson 03. Attention: each query takes a weighted average of the values.

Axis letters: `b` batch, `h` heads, `t` queries, `s` keys, `k` head dim, `d` width.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax over the keys of query . key / sqrt(k).

    query: (..., t, k), key: (..., s, k), mask: bool (..., t, s), True where a query may look
    -> (..., t, s) in float32, rows sum to 1. A row in which nothing may be seen becomes zeros.
    Source: Vaswani et al. 2017, equation 1.
    """
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    # Subtracting the largest score of a row changes nothing but keeps exp from overflowing. A row
    # of -inf alone has no largest score: 0 stands in, and the row's sum of 0 is kept from dividing.
    largest = scores.amax(dim=-1, keepdim=True).nan_to_num(neginf=0.0)
    exponentials = (scores - largest).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The average of the values under `attention_weights`: (..., t, k).

    Computed by torch's fused kernel, which never stores the weights; a test holds the two equal.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class MultiHeadAttention(nn.Module):
    """Self-attention of the vision tower: every patch sees every patch, in several heads.

    Source: Vaswani et al. 2017, "Multi-Head Attention"; SigLIP's projections have biases.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        query, key, value = (
            rearrange(project(x), "b n (h k) -> b h n k", h=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(query, key, value, None)  # no mask: every patch sees every patch
        return self.out_proj(rearrange(mixed, "b h n k -> b n (h k)"))
