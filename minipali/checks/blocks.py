"""What exercise 03 hands over in place of all keys and values.

In a module of its own: a check refuses an attempt that runs functions of the exercise's module.
"""

from collections.abc import Iterator

from torch import Tensor


class Blocks:
    """Pairs of keys and values, one after the other, in the same memory; once."""

    def __init__(self, key: Tensor, value: Tensor, sizes: tuple[int, ...]):
        self.key, self.value, self.sizes, self.gone = key, value, sizes, False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.gone:
            raise RuntimeError(
                "the blocks can be gone through once. Do all that is to be done with a block in one"
                " turn of one loop"
            )
        self.gone = True
        return self._blocks()

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = max(self.sizes)
        held = [one[..., :size, :].clone() for one in (self.key, self.value)]
        start = 0
        for size in self.sizes:
            pair = [one[..., :size, :] for one in held]
            for place, one in zip(pair, (self.key, self.value), strict=True):
                place.copy_(one[..., start : start + size, :])
            yield tuple(pair)
            start += size

    def __str__(self) -> str:
        return f"{len(self.sizes)} with {', '.join(map(str, self.sizes))} keys"
