"""Lesson 04. The SigLIP vision tower: patches in, one contextual vector per patch out."""

import torch.nn.functional as F
from torch import Tensor, nn

from minipali.attention import MultiHeadAttention
from minipali.config import VisionConfig
from minipali.patches import PatchEmbedding


class MLP(nn.Module):
    """Two linear maps with the tanh form of GELU between them, applied to each patch alone."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class EncoderLayer(nn.Module):
    """A pre-norm block: LayerNorm comes before attention and before the MLP, never after.

    Both add to the residual stream, which nothing normalises on its way. Source: ViT, equations 2
    and 3.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = MultiHeadAttention(width, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionTower(nn.Module):
    """SigLIP's picture encoder without its pooling head, as PaliGemma uses it."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = PatchEmbedding(
            config.image_size, config.patch_size, config.num_channels, config.hidden_size
        )
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, c, y, x) with values in [-1, 1] -> (b, n, d)."""
        x = self.embeddings(pixels)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)
