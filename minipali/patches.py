"""Lesson 01. A picture becomes a sequence: one vector per patch, plus one per place.

Axis letters, here and in every module: `b` batch, `n` patches, `d` width, `c y x` pixels.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """Cut pictures into flat patches, in reading order.

    pixels: (b, c, y, x), sides multiples of `patch_size` -> (b, n, c * patch_size * patch_size).
    The values of one patch are ordered channel, row, column, as a Conv2d weight is.
    Source: ViT (Dosovitskiy et al. 2021), "Vision Transformer".
    """
    return rearrange(
        pixels, "b c (ny py) (nx px) -> b (ny nx) (c py px)", py=patch_size, px=patch_size
    )


class PatchEmbedding(nn.Module):
    """Patches to vectors by one shared affine map, plus a learned vector for each place.

    A Conv2d whose kernel and stride are both the patch size visits each patch once: it *is* that
    affine map. Source: ViT, equation 1; there is no CLS token in SigLIP.
    """

    def __init__(self, image_size: int, patch_size: int, channels: int, width: int):
        super().__init__()
        self.image_size = image_size
        self.patch_embedding = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, c, y, x) -> (b, n, d), n = (image_size / patch_size) ** 2 in reading order.

        Raises ValueError for a picture of another size: the position table has one row a patch.
        """
        channels = self.patch_embedding.in_channels
        expected = (channels, self.image_size, self.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must have shape (batch, {channels}, {self.image_size}, {self.image_size}),"
                f" found {tuple(pixels.shape)}; resize the pictures first (the processor does)"
            )
        patches = rearrange(self.embed(pixels), "b d ny nx -> b (ny nx) d")
        return patches + self.position_embedding.weight

    def embed(self, pixels: Tensor) -> Tensor:
        """(b, c, y, x) -> (b, d, ny, nx), without positions."""
        return self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))


def affine_map(embedding: PatchEmbedding) -> tuple[Tensor, Tensor]:
    """The convolution as the matrix and bias of y = x W^T + b on flat patches: (d, c*p*p), (d,)."""
    convolution = embedding.patch_embedding
    bias = torch.zeros(()) if convolution.bias is None else convolution.bias
    return rearrange(convolution.weight, "d c py px -> d (c py px)"), bias
