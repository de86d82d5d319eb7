"""Lesson 09. Grouped-query attention: several query heads share one key and value head.

Axis letters: `b` batch, `h` query heads, `g` key/value heads, `t` queries, `s` keys, `k` head dim.
"""

from einops import rearrange
from torch import Tensor, nn

from minipali.attention import attend
from minipali.config import TextConfig
from minipali.kv_cache import KVCache
from minipali.rope import apply_rope


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """Repeat each key/value head for its group: (b, g, s, k) -> (b, g * times, s, k).

    Heads 0 .. times - 1 of the result are head 0 of x (as repeat_interleave does it, not repeat).
    With a single head, as in PaliGemma 3B, nothing is copied: reshape returns a view.
    Source: GQA (Ainslie et al. 2023).
    """
    b, g, s, k = x.shape
    return x[:, :, None].expand(b, g, times, s, k).reshape(b, g * times, s, k)


class GroupedQueryAttention(nn.Module):
    """Gemma's attention: RoPE on queries and keys, a cache, few key/value heads, no biases.

    The queries are heads * head_dim wide, which need not be the model's width.
    """

    # The functions in use; `minipali.swap` puts a learner's own here.
    apply_rope = staticmethod(apply_rope)
    repeat_kv = staticmethod(repeat_kv)
    attend = staticmethod(attend)

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, width, bias=False)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x: (b, t, d); angles: cos and sin, (b, t, k/2); mask: bool (b, 1, t, s) -> (b, t, d)."""
        query = rearrange(self.q_proj(x), "b t (h k) -> b h t k", h=self.heads)
        key = rearrange(self.k_proj(x), "b t (g k) -> b g t k", g=self.kv_heads)
        value = rearrange(self.v_proj(x), "b t (g k) -> b g t k", g=self.kv_heads)
        query, key = self.apply_rope(query, *angles), self.apply_rope(key, *angles)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)
        group = self.heads // self.kv_heads
        key, value = self.repeat_kv(key, group), self.repeat_kv(value, group)
        mixed = self.attend(query, key, value, mask)
        return self.o_proj(rearrange(mixed, "b h t k -> b t (h k)"))
