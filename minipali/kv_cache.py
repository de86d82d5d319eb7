"""Lesson 08. The KV cache: per layer, the rotated keys and the values of everything so far."""

import torch
from torch import Tensor

from minipali.config import TextConfig


def cache_update(
    keys: Tensor, values: Tensor, start: int, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Store the keys and values of new tokens behind the first `start`; return all so far.

    keys, values: one layer's buffers (b, g, max_length, k), written in place; key, value: those of
    this call, (b, g, t, k) -> two views (b, g, start + t, k). Nothing is copied but the new.
    """
    end = start + key.shape[2]
    keys[:, :, start:end] = key
    values[:, :, start:end] = value
    return keys[:, :, :end], values[:, :, :end]


class KVCache:
    """Keys and values of up to `max_length` tokens, allocated once and filled from the left.

    Besides them it remembers which places hold real tokens (`is_real`), so that padding stays
    masked in every later step.
    """

    # The function in use; `minipali.swap` puts a learner's own here.
    cache_update = staticmethod(cache_update)

    def __init__(self, config: TextConfig, batch: int, max_length: int, dtype=None, device=None):
        shape = (batch, config.num_key_value_heads, max_length, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.is_real = torch.zeros(batch, max_length, dtype=torch.bool, device=device)
        self.length = 0

    @property
    def max_length(self) -> int:
        return self.is_real.shape[1]

    def extend(self, is_real: Tensor) -> None:
        """Make room for the next tokens; call once a step, before the layers' `update`.

        is_real: bool (b, t), False at padding. Raises ValueError when the cache is full.
        """
        batch, new = is_real.shape
        if batch != self.is_real.shape[0]:
            raise ValueError(
                f"the cache was made for a batch of {self.is_real.shape[0]}, found {batch}"
            )
        if self.length + new > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens and {self.length} are taken: there is no"
                f" room for {new} more; make it with a larger max_length"
            )
        self.is_real[:, self.length : self.length + new] = is_real
        self.length += new

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's keys and values of one layer; return all of that layer's so far.

        key, value: (b, g, t, k) -> (b, g, s, k) each, s = `length`.
        """
        start = self.length - key.shape[2]
        return self.cache_update(self.keys[layer], self.values[layer], start, key, value)
