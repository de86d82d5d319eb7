"""What exercise 03 hands over in place of all keys and values.

In a module of its own: a check refuses an attempt that runs functions of the exercise's module.
"""

import weakref
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Blocks:
    """Pairs of keys and values, one after the other, in the same memory; once.

    most: so many numbers may be kept at a time, in all tensors together.
    """

    def __init__(self, key: Tensor, value: Tensor, sizes: tuple[int, ...], most: int | None = None):
        self.key, self.value, self.sizes, self.most, self.gone = key, value, sizes, most, False

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


def in_little_memory(function: Callable) -> Callable:
    """The same function of a query and blocks; it raises MemoryError if it keeps too much."""

    def tried(query: Tensor, blocks: Blocks) -> Tensor:
        if blocks.most is None:
            return function(query, blocks)
        with _Kept(blocks.most):
            return function(query, blocks)

    return tried


class _Kept(TorchFunctionMode):
    """Counts the numbers in all tensors that torch has made and somebody still holds."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.made = most, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            place = result.untyped_storage().data_ptr()  # a view has that of the whole
            self.made.append((weakref.ref(result), place, result.numel()))
            self.made, kept = [one for one in self.made if one[0]() is not None], {}
            for _, place, numbers in self.made:
                kept[place] = max(kept.get(place, 0), numbers)
            if sum(kept.values()) > self.most:
                raise MemoryError(
                    f"your function keeps more than {self.most} numbers at a time, in all its"
                    " tensors together"
                )
        return result
