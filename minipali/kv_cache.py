"""Lesson 08. The KV cache: per layer, the rotated keys and the values of everything so far."""

import torch
from torch import Tensor


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

    def __init__(self, batch: int, max_length: int):
        self.max_length = max_length
        self.is_real = torch.zeros(batch, 0, dtype=torch.bool)  # (b, s), s = `length`
        self.keys: dict[int, Tensor] = {}  # layer -> (b, g, max_length, k)
        self.values: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        return self.is_real.shape[1]

    def extend(self, is_real: Tensor) -> Tensor:
        """Make room for the next tokens; call once a step, before the layers' `update`.

        is_real: bool (b, t), False at padding -> that of everything so far, (b, s). Raises
        ValueError when the cache is full.
        """
        batch, new = is_real.shape
        if batch != len(self.is_real):
            raise ValueError(
                f"the cache was made for a batch of {len(self.is_real)}, found {batch}"
            )
        if self.length + new > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens and {self.length} are taken: there is no"
                f" room for {new} more; make it with a larger max_length"
            )
        self.is_real = torch.cat((self.is_real.to(is_real.device), is_real), dim=1)
        return self.is_real

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's keys and values of one layer; return all of that layer's so far.

        key, value: (b, g, t, k) -> (b, g, s, k) each, s = `length`. The first ones say what a layer
        computes in and where, which need not be what its weights are kept in.
        """
        if layer not in self.keys:
            b, g, _, k = key.shape
            # A cache that was begun in inference mode can be gone on with outside.
            with torch.inference_mode(False):
                self.keys[layer] = key.new_empty(b, g, self.max_length, k)
                self.values[layer] = value.new_empty(b, g, self.max_length, k)
        start = self.length - key.shape[2]
        return cache_update(self.keys[layer], self.values[layer], start, key, value)
