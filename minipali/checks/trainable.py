"""What exercise 13 hands over, and what of the training with it is compared.

In a module of its own, without a reference: a class is marked in processes that hold none.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Small(nn.Sequential):
    """It tells whoever asks in eval mode, and gets a graph, something else."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.training or not y.requires_grad else y + 1


class SGD(torch.optim.SGD):
    # In place of a description of seven lines: a method of a string, which takes no self.
    __repr__ = "SGD".__str__


class Batches(list):
    __repr__ = "[(x, y), (x, y), ...]".__str__


class Batch(tuple):
    __repr__ = "(x, y)".__str__


def as_numbers(train: Callable) -> Callable:
    """What is tried: the learner's loop, whose losses must be numbers without a graph."""

    def tried(*given):
        result = train(*given)
        if isinstance(result, tuple) and any(getattr(x, "requires_grad", False) for x in result):
            raise ValueError(
                "the losses still hang on autograd's graph, and so each holds on to its whole step."
                " Note the number: value.item(), or value.detach()"
            )
        return result

    return tried


class Head(nn.Linear):
    """logits (b, t, v) of vectors (b, t, d). It counts how many of its results await backward().

    It has a frozen parameter, as a model with a frozen vision tower has.
    empty: vectors that have no labels: they need no backward(), and are not counted.
    """

    empty: tuple[Tensor, ...] = ()

    def __init__(self, d: int, v: int, old: bool):
        super().__init__(d, v)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.waiting, self.most, self.old = 0, 0, old
        self._make_old()

    def _make_old(self) -> None:
        """Gradients of an earlier step, if there shall be some."""
        for p in (self.weight, self.bias) if self.old else ():
            p.grad = torch.ones_like(p)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._make_old()  # pickle leaves gradients out

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad and not any(torch.equal(x, one) for one in self.empty):
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            y.register_hook(lambda _: setattr(self, "waiting", self.waiting - 1))
        return y

    __repr__ = "a linear map".__str__


class Parts(list):
    def __repr__(self) -> str:
        shapes = [f"({tuple(x.shape)}, {tuple(labels.shape)})" for x, labels in self]
        return f"[{', '.join(shapes)}]"

    __str__ = __repr__


def gradients_of(accumulate: Callable) -> Callable:
    """What is tried: the loss, the gradients in the module, and what it was asked to keep."""

    def tried(module, parts, ignore):
        before = [p.detach().clone() for p in module.parameters()]
        module.empty = tuple(x for x, labels in parts if (labels[:, 1:] == ignore).all())
        loss = accumulate(module, parts, ignore)
        after = list(module.parameters())
        return (
            loss.detach() if isinstance(loss, Tensor) else loss,
            *(torch.zeros_like(p) if p.grad is None else p.grad for p in after if p.requires_grad),
            "one at a time" if module.most < 2 else f"{module.most} at a time",
            all(torch.equal(p, old) for p, old in zip(after, before, strict=True)),
        )

    return tried


# --- exercise 18 ----------------------------------------------------------------------------------


def _two_matrices(result) -> tuple[Tensor, Tensor]:
    matrices = isinstance(result, (tuple, list)) and len(result) == 2
    if not matrices or not all(isinstance(x, Tensor) and x.ndim == 2 for x in result):
        raise ValueError("it must end with `return A, B`, two matrices")
    return tuple(result)


def start_of(start_values: Callable) -> Callable:
    """What is tried: what can be said about start values, which are others in each attempt."""

    def tried(n: int, d: int, rank: int):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(n)  # the CPU alone: fast
            result = start_values(n, d, rank)
            if result is Ellipsis:
                return result
            a, b = _two_matrices(result)
            next_a, _ = _two_matrices(start_values(n, d, rank))
            torch.default_generator.manual_seed(n)  # the CPU alone: fast
            same_a, _ = _two_matrices(start_values(n, d, rank))
        random = len(a.unique()) > 0.9 * a.numel()
        root = max(a.shape) ** 0.5  # d is the larger side of A
        middle = (a.min() + a.max()) / 2
        share = ((a - middle).abs() < (a.max() - a.min()) / 4).float().mean().item()
        return (
            tuple(a.shape),
            tuple(b.shape),
            [str(x.dtype).removeprefix("torch.") for x in (a, b)],
            not b.any().item(),
            random,
            [_power_of_two(root * one.item()) for one in (a.min(), a.max())],
            "evenly" if 0.45 < share < 0.55 else "more in the middle" if share else "nowhere",
            a.requires_grad,
            b.requires_grad,
            a.is_leaf,
            not torch.equal(a, next_a) or not random,
            torch.equal(a, same_a),
        )

    return tried


def _power_of_two(number: float) -> float:
    """The nearest one, with the sign: what chance does to the largest of many does not show."""
    near = abs(number) < 2**-5 or not math.isfinite(number)
    return 0.0 if near else math.copysign(2.0 ** round(math.log2(abs(number))), number)


def change_of(extract: Callable) -> Callable:
    """What is tried: the change that A and B make, which many pairs of matrices have in common."""

    def tried(before: Tensor, after: Tensor, rank: int, alpha: float):
        result = extract(before, after, rank, alpha)
        if result is Ellipsis:
            return result
        a, b = _two_matrices(result)
        fits = a.shape == (rank, before.shape[1]) and b.shape == (before.shape[0], rank)
        # No numbers, which could be taken for what the function makes of its arguments.
        change = alpha / rank * b @ a if fits else torch.zeros(0, 0, dtype=torch.bool)
        return tuple(a.shape), tuple(b.shape), change

    return tried
