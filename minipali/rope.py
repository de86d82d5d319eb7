"""Lesson 07. Rotary positions: the query and key vectors turn by an angle that grows with position.

Their dot product then depends on the difference of their positions alone.
"""

import torch
from torch import Tensor


def rope_angles(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta ** (-2 i / head_dim) for i = 0 .. head_dim / 2 - 1.

    positions: (b, t) whole numbers -> two float32 tensors (b, t, head_dim / 2).
    Always in float32: in bfloat16 the whole numbers above 256 already collide.
    Source: RoFormer (Su et al. 2021), equation 15.
    """
    exponents = (
        torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    )
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + k/2]) by its angle.

    x: (b, h, t, k); cos, sin: (b, t, k/2) -> (b, h, t, k) in the dtype of x.
    The half-split layout: the first half of a head pairs with its second half. The paper pairs
    neighbours instead (RoFormer, equation 34), but Gemma's weights were trained with halves: see
    `_apply_rope` in big_vision's models/ppp/gemma.py.
    """
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)  # (b, 1, t, k/2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
