"""Lesson 10. The Gemma decoder: token vectors in, contextual vectors out, and the tied head.

What Gemma 2 and 3 and Llama compute otherwise are fields of TextConfig; their defaults are Gemma 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.config import TextConfig
from minipali.gqa import GroupedQueryAttention, soft_cap
from minipali.kv_cache import KVCache
from minipali.norms import RMSNorm
from minipali.rope import rope_angles


class GeGLU(nn.Module):
    """A gated MLP: down(gelu(gate(x)) * up(x)). Source: Shazeer 2020, equation 6; tanh GELU.

    With activation "silu" it is Llama's: SwiGLU, in the same equation.
    """

    def __init__(self, width: int, hidden: int, activation: str = "gelu_pytorch_tanh"):
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        if self.activation == "silu":
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A pre-norm block. `post_attention_layernorm` is the published name of the MLP's norm.

    With `post_norms`, as in Gemma 2 and 3, what attention and MLP return is normed too, and that
    name means the norm behind attention.
    """

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        norm = config.hidden_size, config.rms_norm_eps, config.norm_offset
        self.input_layernorm = RMSNorm(*norm)
        self.self_attn = GroupedQueryAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(*norm)
        self.mlp = GeGLU(config.hidden_size, config.intermediate_size, config.hidden_activation)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.pre_feedforward_layernorm = RMSNorm(*norm)
            self.post_feedforward_layernorm = RMSNorm(*norm)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(b, t, d) -> (b, t, d)."""
        mixed = self.self_attn(self.input_layernorm(x), angles, mask, cache)
        if self.post_norms:
            x = x + self.post_attention_layernorm(mixed)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class Gemma(nn.Module):
    """Embedding table, decoder layers and final norm; the head is the table once more."""

    # The product with the table. A model whose table is kept in few bits has one of its own.
    head = staticmethod(F.linear)

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids (b, t) -> (b, t, d), scaled by sqrt(d), except in Llama.

        The factor is rounded to the weights' dtype first, as the published model was trained.
        """
        x = self.embed_tokens(input_ids)
        if not self.config.scale_embeddings:
            return x
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype, device=x.device)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KVCache | None = None,
        near: Tensor | None = None,
    ) -> Tensor:
        """x: embedded tokens (b, t, d); positions: (b, t); mask: bool (b, 1, t, s) -> (b, t, d).

        near: the mask of the layers with a sliding window, where the config has some. In Gemma 3
        their positions turn queries and keys faster, too.
        """
        config = self.config
        angles = near_angles = rope_angles(positions, config.head_dim, config.rope_theta)
        if config.rope_local_base_freq is not None:
            near_angles = rope_angles(positions, config.head_dim, config.rope_local_base_freq)
        for i, layer in enumerate(self.layers):
            if config.slides(i):
                x = layer(x, near_angles, near, cache)
            else:
                x = layer(x, angles, mask, cache)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., v): the dot product with every row of the embedding table."""
        logits = self.head(x, self.embed_tokens.weight)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)
