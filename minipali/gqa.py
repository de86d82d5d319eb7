"""Lesson 09. Grouped-query attention: several query heads share one key and value head.

Axis letters: `b` batch, `h` query heads, `g` key/value heads, `t` queries, `s` keys, `k` head dim.
"""

import torch
from torch import Tensor, nn

from minipali.attention import attend
from minipali.config import TextConfig
from minipali.kv_cache import KVCache
from minipali.norms import RMSNorm
from minipali.rope import apply_rope


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """Repeat each key/value head for its group: (b, g, s, k) -> (b, g * times, s, k).

    Heads 0 .. times - 1 of the result are head 0 of x (as repeat_interleave does it, not repeat).
    With a single head, as in PaliGemma 3B, nothing is copied: reshape returns a view.
    Source: GQA (Ainslie et al. 2023).
    """
    b, g, s, k = x.shape
    return x[:, :, None].expand(b, g, times, s, k).reshape(b, g * times, s, k)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Every number between -cap and cap, and small ones as good as unchanged; any shape.

    Source: Gemma 2 (Gemma Team 2024), section 2, "Logit soft-capping".
    """
    return cap * (x / cap).tanh()


def attend_capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, cap: float):
    """`attend` with soft-capped scores, before the mask: (..., t, k). No fused kernel does that."""
    scores = soft_cap((query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5, cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).to(value.dtype) @ value


class GroupedQueryAttention(nn.Module):
    """Gemma's attention: RoPE on queries and keys, a cache, few key/value heads, no biases.

    The queries are heads * head_dim wide, which need not be the model's width. Gemma 2 caps the
    scores, and of one size (27B) divides them by another root than that of head_dim; Gemma 3 norms
    queries and keys instead.
    """

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, width, bias=False)
        self.scale = (head_dim / (config.query_pre_attn_scalar or head_dim)) ** 0.5
        self.cap = config.attn_logit_softcapping
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x: (b, t, d); angles: cos and sin, (b, t, k/2); mask: bool (b, 1, t, s) -> (b, t, d)."""
        # Torch's own reshaping, because einops reads its pattern at each call, and this runs in
        # every layer for every new token: a small model answers 8 % faster.
        b, t, _ = x.shape
        query = self.q_proj(x).view(b, t, self.heads, -1).transpose(1, 2)  # (b, h, t, k)
        key = self.k_proj(x).view(b, t, self.kv_heads, -1).transpose(1, 2)  # (b, g, t, k)
        value = self.v_proj(x).view(b, t, self.kv_heads, -1).transpose(1, 2)
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = apply_rope(query, *angles), apply_rope(key, *angles)
        if self.scale != 1:
            query = self.scale * query
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        mixed = self.mix(query, key, value, mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query: (b, h, t, k); key, value: (b, g, s, k); mask: (b, 1, t, s) -> (b, h, t, k).

        To its key head, the h / g queries of a group are so many more rows: it need not be
        repeated (`repeat_kv`) to be read by each. A test holds the two equal. The same grouping is
        in big_vision's `Attention` (models/ppp/gemma.py), as the axes K and G of an einsum.
        """
        b, h, t, k = query.shape
        rows = query.reshape(b, self.kv_heads, -1, k)  # (b, g, h / g * t, k)
        if mask is not None:
            each = mask.expand(-1, h // self.kv_heads, -1, -1)  # (b, h / g, t, s)
            mask = each.reshape(len(mask), 1, -1, key.shape[2])
        if self.cap is not None:
            return attend_capped(rows, key, value, mask, self.cap).reshape(b, h, t, k)
        return attend(rows, key, value, mask).reshape(b, h, t, k)
