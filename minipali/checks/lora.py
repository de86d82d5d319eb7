"""Lesson 18: LoRA's start values, its forward pass, merging, and a change taken apart."""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali import scenes
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.checks.trainable import change_of, start_of
from minipali.evaluation import answers, by_task, evaluation_set
from minipali.lora import find_targets
from minipali.paligemma import PaliGemma
from minipali.small_tasks import new_word, teach
from minipali.tokens import Processor

# --- start_values ---------------------------------------------------------------------------------


def start_values(
    n: int,
    d: int,
    rank: int,
    *,
    of_a: Callable[[int, int], Tensor] = lambda rank, d: (2 * torch.rand(rank, d) - 1) * d**-0.5,
    of_b: Callable[[int, int], Tensor] = torch.zeros,
    sizes: Callable[[int, int, int], tuple] = lambda n, d, rank: ((rank, d), (n, rank)),
    learns: Callable[[Tensor], Tensor] = Tensor.requires_grad_,
    b_learns: bool = True,
    give: Callable[[Tensor, Tensor], tuple] = lambda a, b: (a, b),
) -> tuple[Tensor, Tensor]:
    """A (rank, d) random and B (n, rank) zero. The reference, or with one thing changed."""
    first, second = sizes(n, d, rank)
    return give(learns(of_a(*first)), of_b(*second).requires_grad_(b_learns))


def _random(rows: int, columns: int) -> Tensor:
    return (2 * torch.rand(rows, columns) - 1) * columns**-0.5


def _seeded(rows: int, columns: int) -> Tensor:
    torch.manual_seed(0)
    return _random(rows, columns)


def _of_numpy(rows: int, columns: int) -> Tensor:
    numbers = np.random.default_rng().uniform(-1, 1, (rows, columns)) * columns**-0.5
    return torch.from_numpy(numbers).float()


START_VALUES = Exercise(
    name="start_values",
    reference=start_values,
    # A so large that what chance does to its largest number and its mean is small.
    cases=lambda: [(30, 400, 8), (1200, 300, 16)],
    axes=";;;;;;;;;;;",
    parts=(
        "the shape of A",
        "the shape of B",
        "the dtypes",
        "whether all of B is zero",
        "whether nearly all numbers of A differ from each other",
        "about how far A reaches, in units of 1 / sqrt(d)",
        "how the numbers of A lie between the smallest and the largest",
        "whether A learns",
        "whether B learns",
        "whether A is a leaf of the graph",
        "whether the next call draws other numbers",
        "whether torch.manual_seed brings the same numbers back",
    ),
    asked=start_of,
    checked=(
        "for 2 sizes: both shapes, B all zero, A random and uniform between -1 / sqrt(d) and"
        " 1 / sqrt(d) in float32, drawn anew by torch in each call, and that both learn"
    ),
    mistakes=(
        Mistake(
            "both zero",
            partial(start_values, of_a=torch.zeros),
            "Both matrices are zero. The gradient of B goes through A, and that of A through B. So"
            " both gradients are zero, in every step, and nothing is ever learned. A must be"
            " random.",
        ),
        Mistake(
            "both random",
            partial(start_values, of_b=_random),
            "Both matrices are random. Then the change B A is noise from the first moment: the"
            " model is not what it was, before it has learned anything. B must be zero.",
        ),
        Mistake(
            "the other one zero",
            partial(start_values, of_a=torch.zeros, of_b=_random),
            "A is zero and B is random. That would learn, too: one of the two must be zero. But"
            " everybody's files have it the other way, so B is the one here.",
        ),
        Mistake(
            "a constant",
            partial(start_values, of_a=lambda rank, d: torch.full((rank, d), d**-0.5)),
            "All numbers of A are the same. Then all its rows get the same gradient and stay alike,"
            " and whatever the rank is, the change has rank 1. A must be random.",
        ),
        Mistake(
            "normal, of size 1",
            partial(start_values, of_a=torch.randn),
            "The numbers of A have the size 1. With d of them in a row, A x is larger than x by"
            " sqrt(d), and the first steps are far too long. Draw them between -1 / sqrt(d) and"
            " 1 / sqrt(d).",
        ),
        Mistake(
            "normal",
            partial(start_values, of_a=lambda rank, d: torch.randn(rank, d) * d**-0.5),
            "The numbers of A have the right size, but they are normal: some are three and four"
            " times as large as most. It would learn as well. Here they are uniform, between"
            " -1 / sqrt(d) and 1 / sqrt(d), as in a new linear layer of torch.",
        ),
        *(
            Mistake(
                f"normal, of size {size}",
                partial(start_values, of_a=lambda rank, d, size=size: torch.randn(rank, d) * size),
                "The numbers of A are normal, and of a fixed size. Here they are uniform, and the"
                " wider the layer the smaller: between -1 / sqrt(d) and 1 / sqrt(d).",
            )
            for size in (0.02, 0.01)
        ),
        Mistake(
            "uniform, of size 1",
            partial(start_values, of_a=lambda rank, d: 2 * torch.rand(rank, d) - 1),
            "The numbers of A reach from -1 to 1. With d of them in a row, A x is larger than x,"
            " and the first steps are far too long: divide by sqrt(d).",
        ),
        Mistake(
            "half as far",
            partial(start_values, of_a=lambda rank, d: (torch.rand(rank, d) - 0.5) * d**-0.5),
            "The numbers of A reach half as far as they may. torch.rand less 0.5 lies between -0.5"
            " and 0.5: the factor 2 is missing.",
        ),
        Mistake(
            "limits of an initialisation",
            partial(
                start_values, of_a=lambda rank, d: nn.init.kaiming_uniform_(torch.empty(rank, d))
            ),
            "The numbers of A reach too far, about twice: the limits are -1 / sqrt(d) and"
            " 1 / sqrt(d). kaiming_uniform_ and xavier_uniform_ have limits of their own, about"
            " sqrt(6 / d). (With a=math.sqrt(5) the first one has ours.)",
        ),
        Mistake(
            "by the outputs",
            lambda n, d, rank: start_values(
                n, d, rank, of_a=lambda rank, d: (2 * torch.rand(rank, d) - 1) * n**-0.5
            ),
            "The numbers of A reach to 1 / sqrt(n). What is added up in A x are d numbers, as many"
            " as come in: 1 / sqrt(d).",
        ),
        Mistake(
            "not around zero",
            partial(start_values, of_a=lambda rank, d: torch.rand(rank, d) * d**-0.5),
            "All numbers of A are positive: torch.rand draws between 0 and 1. So all rows of A are"
            " much alike. Draw between -1 / sqrt(d) and 1 / sqrt(d).",
        ),
        Mistake(
            "by the rank",
            partial(start_values, of_a=lambda rank, d: (2 * torch.rand(rank, d) - 1) * rank**-0.5),
            "The numbers of A reach to 1 / sqrt(rank). What is added up in A x are d numbers, not"
            " rank of them: 1 / sqrt(d).",
        ),
        Mistake(
            "without the root",
            partial(start_values, of_a=lambda rank, d: (2 * torch.rand(rank, d) - 1) / d),
            "The numbers of A reach to 1 / d. A sum of d random numbers grows with sqrt(d), so"
            " 1 / sqrt(d) is the size that keeps A x as large as x.",
        ),
        Mistake(
            "turned",
            partial(
                start_values,
                sizes=lambda n, d, rank: ((d, rank), (rank, n)),
                of_a=lambda d, rank: (2 * torch.rand(d, rank) - 1) * d**-0.5,
            ),
            "Both matrices are turned. As torch keeps the weight of a linear layer, the outputs"
            " come first: W is (n, d), A (rank, d), B (n, rank).",
        ),
        Mistake(
            "A turned",
            partial(
                start_values,
                sizes=lambda n, d, rank: ((d, rank), (n, rank)),
                of_a=lambda d, rank: (2 * torch.rand(d, rank) - 1) * d**-0.5,
            ),
            "A is turned. It takes d numbers and gives rank, and as in a linear layer of torch a"
            " matrix has a row for each output: A is (rank, d).",
        ),
        Mistake(
            "sides exchanged",
            partial(start_values, sizes=lambda n, d, rank: ((rank, n), (d, rank))),
            "A must take the d inputs and B must make the n outputs: A is (rank, d), B is"
            " (n, rank). Yours have n and d exchanged.",
        ),
        Mistake(
            "B first",
            partial(start_values, give=lambda a, b: (b, a)),
            "B comes first, then A. Return A, B.",
        ),
        Mistake(
            "frozen too",
            partial(start_values, learns=lambda a: a, b_learns=False),
            "No gradient reaches A and B. They are all that learns here:"
            " x.requires_grad_() or nn.Parameter(x).",
        ),
        Mistake(
            "A frozen",
            partial(start_values, learns=lambda a: a),
            "No gradient reaches A. Both learn: A.requires_grad_() or nn.Parameter(A), too.",
        ),
        Mistake(
            "B frozen",
            partial(start_values, b_learns=False),
            "No gradient reaches B. It is zero, so nothing is ever learned: B.requires_grad_() or"
            " nn.Parameter(B), too.",
        ),
        Mistake(
            "no leaf",
            partial(start_values, learns=lambda a: 1 * a.requires_grad_()),
            "A is computed from a tensor that learns, and is none itself: an optimizer refuses it."
            " Make the numbers first, and call requires_grad_() on the result.",
        ),
        Mistake(
            "double",
            partial(start_values, of_a=lambda rank, d: _random(rank, d).double()),
            "A is float64. The model computes in float32, and a product of the two is an error.",
        ),
        Mistake(
            "double of NumPy",
            partial(start_values, of_a=lambda rank, d: _of_numpy(rank, d).double()),
            "A is float64 and drawn by NumPy. The model computes in float32, and torch.manual_seed"
            " does not bring NumPy's numbers back. Use torch.rand.",
        ),
        Mistake(
            "of NumPy",
            partial(start_values, of_a=_of_numpy),
            "torch.manual_seed does not bring the numbers back, so no run could be repeated. They"
            " come from NumPy, from Python, or from a generator of your own: use torch.rand"
            " without one.",
        ),
        Mistake(
            "a seed inside",
            partial(start_values, of_a=_seeded),
            "Each call gives the same numbers, so all layers begin alike. Either nothing is drawn,"
            " or a seed stands inside, by torch.manual_seed or in a generator of your own. Leave"
            " the seed to the caller.",
        ),
    ),
    hints=(
        "A takes d numbers in and gives rank numbers out; B takes these and gives n. As in a linear"
        " layer of torch, a matrix has a row for each output.",
        "torch.rand(rank, d) is uniform between 0 and 1. Which two steps make it uniform between"
        " -1 / sqrt(d) and 1 / sqrt(d)?",
        "A = (2 * torch.rand(rank, d) - 1) / d**0.5; B = torch.zeros(n, rank); and"
        " .requires_grad_() on both.",
    ),
)


# --- lora_forward ---------------------------------------------------------------------------------


def _layers() -> list[tuple]:
    random = torch.Generator().manual_seed(18)

    def case(shape: tuple, n: int, rank: int, alpha: float) -> tuple:
        d = shape[-1]
        sizes = (shape, (n, d), (rank, d), (n, rank))
        return (*(torch.randn(size, generator=random) for size in sizes), alpha)

    # A square one first, in which matrices on wrong sides still fit.
    return [case((2, 3, 6), 6, 2, 5.0), case((2, 4, 7), 5, 3, 8.0), case((4, 3), 8, 1, 0.5)]


def lora_forward(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    alpha: float,
    *,
    scale: Callable[[float, int, int], float] = lambda alpha, rank, d: alpha / rank,
    base: Callable[[Tensor, Tensor], Tensor] = lambda x, weight: F.linear(x, weight.detach()),
    change: Callable = lambda x, y, A, B: x @ A.T @ B.T,
    join: Callable = lambda y, scale, change: y + scale * change,
) -> Tensor:
    """x (..., d) -> (..., n). The reference, or with one thing changed."""
    y = base(x, weight)
    return join(y, scale(alpha, *A.shape), change(x, y, A, B))


def _square(wrong: Callable) -> Callable:
    """A change that only square weights let pass; for others the right one."""

    def change(x: Tensor, y: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return wrong(x, y, A, B) if len(B) == A.shape[1] else x @ A.T @ B.T

    return change


_SCALES = (
    (
        "scale forgotten",
        lambda alpha, rank, d=0: 1.0,
        "The change is not scaled: alpha plays no part. Multiply it by alpha / rank.",
    ),
    (
        "alpha alone",
        lambda alpha, rank, d=0: alpha,
        "The change is multiplied by alpha alone. Then a larger rank, which adds up more products,"
        " makes a larger change, and needs another learning rate. Multiply by alpha / rank.",
    ),
    (
        "rank and alpha exchanged",
        lambda alpha, rank, d=0: rank / alpha,
        "rank and alpha are exchanged: the change is multiplied by rank / alpha. It is alpha"
        " / rank.",
    ),
    (
        "1 / rank",
        lambda alpha, rank, d=0: 1 / rank,
        "The change is divided by the rank, but alpha plays no part. Multiply by alpha / rank.",
    ),
    (
        "root of the rank",
        lambda alpha, rank, d=0: alpha / rank**0.5,
        "The change is multiplied by alpha / sqrt(rank). That is a later variant (rsLoRA). Here it"
        " is alpha / rank.",
    ),
    (
        "divided by the width",
        lambda alpha, rank, d=0: alpha / d,
        "The change is divided by the width of the layer, d or n. The rank is the *short* side of A"
        " and B: A is (rank, d), so it is A.shape[0], or len(A).",
    ),
    (
        "whole numbers",
        lambda alpha, rank, d=0: alpha // rank,
        "alpha // rank throws away what is behind the point, and is 0 where alpha is smaller than"
        " the rank. Divide with one stroke: alpha / rank.",
    ),
    (
        "rank twice",
        lambda alpha, rank, d=0: alpha / rank**2,
        "The change is divided by the rank twice. It is alpha / rank.",
    ),
    (
        "root of all of it",
        lambda alpha, rank, d=0: (alpha / rank) ** 0.5,
        "The change is multiplied by the root of alpha / rank. It is alpha / rank itself.",
    ),
    (
        "scaled twice",
        lambda alpha, rank, d=0: (alpha / rank) ** 2,
        "The scale alpha / rank is in it twice, for instance in A and in B. It belongs there once.",
    ),
)

LORA_FORWARD = Exercise(
    name="lora_forward",
    reference=lora_forward,
    cases=_layers,
    axes="b t n|b n",
    gradients=("x", "weight", "A", "B"),
    checked=(
        "the outputs of 3 layers with ranks 2, 3 and 1, for inputs of 2 and 3 axes; that gradients"
        " reach x, A and B as they should, and the frozen weight not at all; inputs unchanged"
    ),
    mistakes=(
        *(Mistake(name, partial(lora_forward, scale=scale), says) for name, scale, says in _SCALES),
        Mistake(
            "base not frozen",
            partial(lora_forward, base=F.linear),
            "The values are right, but the weight learns, too: a gradient reaches it. Then this is"
            " full fine-tuning with something on top. Freeze it: weight.detach().",
        ),
        Mistake(
            "no way through the base",
            partial(lora_forward, base=lambda x, weight: F.linear(x.detach(), weight.detach())),
            "The values are right, but no gradient goes back through the frozen part, so all layers"
            " before this one learn from the change alone. That happens where torch.no_grad() or"
            " .detach() stands around x @ weight.T. Frozen means that the weight does not learn;"
            " the gradient must still pass: detach the weight alone.",
        ),
        Mistake(
            "no way through the change",
            partial(lora_forward, change=lambda x, y, A, B: x.detach() @ A.T @ B.T),
            "The values are right, but the gradient of x lacks the part that goes through A and B."
            " Detach the weight alone, not x.",
        ),
        Mistake(
            "weight not turned",
            partial(
                lora_forward,
                base=lambda x, weight: F.linear(
                    x, weight.detach().T if weight.shape[0] == weight.shape[1] else weight.detach()
                ),
            ),
            "The frozen weight is multiplied from the wrong side: x W in place of x W^T. W is"
            " (n, d): a row for each output.",
        ),
        Mistake(
            "change alone",
            partial(lora_forward, join=lambda y, scale, change: scale * change),
            "The frozen layer's own output is missing. The change is added to it: x W^T first.",
        ),
        Mistake(
            "all of it scaled",
            partial(lora_forward, join=lambda y, scale, change: scale * (y + change)),
            "The frozen layer's output is scaled as well. Only the change is multiplied by alpha"
            " / rank.",
        ),
        Mistake(
            "subtracted",
            partial(lora_forward, join=lambda y, scale, change: y - scale * change),
            "The change is subtracted. It would learn with the other sign, but no other program"
            " could read what it has learned. Add it.",
        ),
        Mistake(
            "on the wrong side",
            partial(lora_forward, change=_square(lambda x, y, A, B: y @ A.T @ B.T)),
            "A reads the *output* of the frozen layer. LoRA stands beside the layer, not behind it:"
            " A reads the same x as the layer does.",
        ),
        Mistake(
            "not turned",
            partial(lora_forward, change=_square(lambda x, y, A, B: x @ (B @ A))),
            "The change is multiplied from the wrong side: x B A in place of x A^T B^T. As W is"
            " (n, d) and is used as x W^T, so B A is (n, d) and is used as x (B A)^T.",
        ),
        Mistake(
            "B before A",
            partial(lora_forward, change=_square(lambda x, y, A, B: x @ B @ B.T)),
            "A plays no part, B is used twice. x goes through A first, then through B.",
        ),
    ),
    crashes=(
        Mistake(
            "frozen by a switch",
            lambda x, weight, A, B, alpha: lora_forward(
                x, weight.requires_grad_(False), A, B, alpha
            ),
            "requires_grad_(False) inside the function changes the weight itself, for everybody who"
            " holds it. Take it out of the graph here alone: weight.detach().",
        ),
        Mistake(
            "A and B not turned",
            partial(lora_forward, change=lambda x, y, A, B: x @ A @ B),
            "A and B have a row for each output, as W has. So x is multiplied by them turned:"
            " x @ A.T @ B.T.",
        ),
        *(
            Mistake(
                f"two axes alone, {name}",
                wrong,
                "x may have any number of axes before the last one, d. In einsum three dots stand"
                " for them: '...d,nd->...n'.",
            )
            for name, wrong in (
                (
                    "W",
                    partial(
                        lora_forward, base=lambda x, weight: torch.einsum("bd,nd->bn", x, weight)
                    ),
                ),
                (
                    "A",
                    partial(
                        lora_forward, change=lambda x, y, A, B: torch.einsum("bd,rd->br", x, A)
                    ),
                ),
            )
        ),
    ),
    hints=(
        "Two ways lead from x to the result, side by side: the frozen weight, and A followed by B."
        " What comes out of the second is multiplied by a number, and both are added.",
        "The rank stands in the shape of A. And where must .detach() stand, so that the weight"
        " gets no gradient but x still does?",
        "y = x @ weight.detach().T; change = x @ A.T @ B.T; the result is y + alpha / len(A) *"
        " change.",
    ),
)


# --- merge ----------------------------------------------------------------------------------------


def _weights() -> list[tuple]:
    random = torch.Generator().manual_seed(81)

    def case(n: int, d: int, rank: int, alpha: float, dtype=torch.float32) -> tuple:
        weight, a, b = (
            torch.randn(size, generator=random) for size in ((n, d), (rank, d), (n, rank))
        )
        return weight.to(dtype), a, b, alpha

    return [case(6, 6, 2, 5.0), case(5, 8, 3, 8.0), case(7, 9, 2, 0.5, torch.bfloat16)]


def merge_weight(
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    alpha: float,
    *,
    scale: Callable[[float, int, int], float] = lambda alpha, rank, d: alpha / rank,
    product: Callable[[Tensor, Tensor], Tensor] = lambda A, B: B @ A,
    add: Callable = lambda weight, change: (weight.float() + change).to(weight.dtype),
) -> Tensor:
    """One weight (n, d) that does the same. The reference, or with one thing changed."""
    return add(weight, scale(alpha, *A.shape) * product(A, B))


def _step_by_step(weight: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    for row, column in zip(A, B.T, strict=True):
        weight = weight + (alpha / len(A) * torch.outer(column, row)).to(weight.dtype)
    return weight


MERGE = Exercise(
    name="merge_weight",
    reference=merge_weight,
    cases=_weights,
    axes="n d",
    checked=(
        "the merged weights of 3 layers with ranks 2, 3 and 2, one of them in bfloat16, added in"
        " float32 and rounded once; inputs unchanged"
    ),
    mistakes=(
        *(Mistake(name, partial(merge_weight, scale=scale), says) for name, scale, says in _SCALES),
        Mistake(
            "merged twice",
            partial(merge_weight, scale=lambda alpha, rank, d: 2 * alpha / rank),
            "The change is in it twice. That also happens where a layer is merged and its A and B"
            " go on working beside it. Add it once.",
        ),
        Mistake(
            "subtracted",
            partial(merge_weight, scale=lambda alpha, rank, d: -alpha / rank),
            "The change is subtracted. That takes a merged change out again. To merge, add it.",
        ),
        Mistake(
            "change alone",
            partial(merge_weight, add=lambda weight, change: change.to(weight.dtype)),
            "The frozen weight is missing. The result is W + alpha / rank * B A.",
        ),
        Mistake(
            "turned",
            partial(
                merge_weight, product=lambda A, B: (B @ A).T if len(B) == A.shape[1] else B @ A
            ),
            "The change is turned: (B A)^T in place of B A. B is (n, rank) and A is (rank, d), so"
            " B A has the shape of W as it is.",
        ),
        Mistake(
            "result turned",
            lambda weight, A, B, alpha: merge_weight(weight, A, B, alpha).T,
            "The result is turned. W and B A are (n, d) as they are, and so is their sum.",
        ),
        Mistake(
            "left in float32",
            partial(merge_weight, add=lambda weight, change: weight.float() + change),
            "Where the weight is bfloat16, the merged one is float32. A model is saved with one"
            " dtype: give the result the weight's own.",
        ),
        *(
            Mistake(
                name,
                wrong,
                "Where the weight is bfloat16, the change is rounded before it is added, and then"
                " the sum is rounded once more. Add in float32 and round once, at the end.",
            )
            for name, wrong in (
                (
                    "rounded too early",
                    partial(
                        merge_weight, add=lambda weight, change: weight + change.to(weight.dtype)
                    ),
                ),
                ("rounded in each step", _step_by_step),
            )
        ),
        *(
            Mistake(
                f"{name} in bfloat16",
                lambda weight, A, B, alpha, narrow=narrow: merge_weight(
                    weight, narrow(A, weight), narrow(B, weight), alpha
                ),
                "Where the weight is bfloat16, A and B are rounded to it before they are"
                " multiplied. Work in float32 and round once, at the end.",
            )
            for name, narrow in (
                ("multiplied", lambda x, weight: x.to(weight.dtype)),
                ("rounded", lambda x, weight: x.to(weight.dtype).float()),
            )
        ),
        Mistake(
            "always bfloat16",
            partial(merge_weight, add=lambda weight, change: (weight.float() + change).bfloat16()),
            "The result is bfloat16, whatever the weight is. It has the weight's own dtype:"
            " .to(weight.dtype).",
        ),
        Mistake(
            "all of it scaled",
            lambda weight, A, B, alpha: ((weight.float() + B @ A) * (alpha / len(A))).to(
                weight.dtype
            ),
            "The old weight is scaled as well. Only the change is multiplied by alpha / rank.",
        ),
    ),
    hints=(
        "x W^T + s x A^T B^T is x times one matrix, turned. Which one?",
        "B A has the shape of W. The scale is the same as in part 2.",
        "(weight.float() + alpha / A.shape[0] * B @ A).to(weight.dtype)",
    ),
)


# --- extract --------------------------------------------------------------------------------------


def _trained() -> list[tuple]:
    random = torch.Generator().manual_seed(180)

    def case(n: int, d: int, rank: int, alpha: float, directions: int | None = None) -> tuple:
        before = torch.randn(n, d, generator=random)
        change = 0.5 * torch.randn(n, d, generator=random)
        if directions is not None:
            change = change[:, :directions] @ change[:directions]
        return before, before + change, rank, alpha

    # At last a change of fewer directions than are kept, and none at all.
    return [
        case(6, 6, 2, 3.0), case(5, 8, 1, 4.0), case(9, 4, 3, 2.0), case(4, 5, 3, 1.0, 1),
        case(3, 4, 2, 3.0, 0),
    ]  # fmt: skip


def extract(
    before: Tensor,
    after: Tensor,
    rank: int,
    alpha: float,
    *,
    of: Callable[[Tensor, Tensor], Tensor] = lambda before, after: after - before,
    keep: Callable[[int], slice] = lambda rank: slice(rank),
    left: Callable[[Tensor], Tensor] = lambda u: u,
    right: Callable[[Tensor], Tensor] = lambda vh: vh,
    sizes: Callable[[Tensor], Tensor] = lambda s: s,
    scale: Callable[[float, int], float] = lambda alpha, rank: rank / alpha,
    number: Callable[[int, Tensor], int] = lambda rank, s: rank,
    give: Callable[[Tensor, Tensor], tuple] = lambda a, b: (a, b),
) -> tuple[Tensor, Tensor]:
    """A (rank, d), B (n, rank): the nearest change. The reference, or with one thing changed.

    number: of summands, for the scale.
    """
    u, s, vh = torch.linalg.svd(of(before, after))
    kept = torch.arange(len(s))[keep(rank)]
    b = left(u)[:, kept] * sizes(s)[kept] * scale(alpha, number(rank, s))
    return give(right(vh)[kept], b)


def _best_beside(before: Tensor, after: Tensor, rank: int, alpha: float, side: str) -> tuple:
    """One matrix drawn by chance, and the best other one."""
    change = after - before
    if side == "B":
        b = torch.randn(len(before), rank)
        return torch.linalg.pinv(b) @ change, b * rank / alpha
    size = rank, before.shape[1]
    a = torch.randn(size) if side == "A" else 2 * torch.rand(size) - 1
    return a, change @ torch.linalg.pinv(a) * rank / alpha


def _rows(change: Tensor, rank: int, longest: bool) -> tuple[Tensor, Tensor]:
    """Some rows as they are: A, and B that puts them in their places."""
    which = change.norm(dim=1).topk(rank).indices if longest else torch.arange(rank)
    return change[which], torch.eye(len(change))[:, which]


def _some(before: Tensor, after: Tensor, rank: int, alpha: float, columns: bool, longest: bool):
    change = after - before
    a, b = _rows(change.T if columns else change, rank, longest)
    a, b = (b.T, a.T) if columns else (a, b)
    return a, b * rank / alpha


def _sizes_on_rows(before: Tensor, after: Tensor, rank: int, alpha: float) -> tuple:
    u, s, vh = torch.linalg.svd(after - before)
    u[: len(s)] *= s[:, None]
    return vh[:rank], u[:, :rank] * rank / alpha


def _orthogonal(before: Tensor, after: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(after - before)
    return r[:rank], q[:, :rank] * rank / alpha


def _apart(before: Tensor, after: Tensor, rank: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Factors of both weights, subtracted."""
    (a0, b0), (a1, b1) = (extract(0 * one, one, rank, alpha) for one in (before, after))
    return a1 - a0, b1 - b0


EXTRACT = Exercise(
    name="extract",
    transfer=True,
    reference=extract,
    cases=_trained,
    axes=";;n d",
    parts=("the shape of A", "the shape of B", "the change alpha / rank * B A"),
    asked=change_of,
    tolerance=1e-4,
    checked=(
        "both shapes, and that alpha / rank * B A is the nearest matrix of that rank to the change,"
        " for 5 weights and ranks 1 to 3, one of which has changed in one direction alone and one"
        " not at all; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "of the new weight",
            partial(extract, of=lambda before, after: after),
            "The new weight is taken apart, with all that was in it before. What the adapter must"
            " hold is the change: after - before.",
        ),
        Mistake(
            "sign",
            partial(extract, of=lambda before, after: before - after),
            "The sign is wrong: the adapter leads from after back to before. The change is after -"
            " before.",
        ),
        Mistake(
            "the smallest",
            partial(extract, keep=lambda rank: slice(-rank, None)),
            "The smallest singular values are kept, and the largest thrown away. torch.linalg.svd"
            " sorts them, the largest first. (The values of torch.linalg.eigh come the other way"
            " round.)",
        ),
        Mistake(
            "the largest left out",
            partial(extract, keep=lambda rank: slice(1, rank + 1)),
            "The largest singular value is left out. They are counted from 0: [:rank].",
        ),
        Mistake(
            "without the sizes",
            partial(extract, sizes=torch.ones_like),
            "The singular values are missing: all directions are equally long. The change is a sum"
            " of size * column * row.",
        ),
        Mistake(
            "sizes twice",
            partial(extract, sizes=lambda s: s**2),
            "The singular values are in it twice, in A and in B. They belong in one of the two, or"
            " their root in each.",
        ),
        Mistake(
            "sizes and their root",
            partial(extract, sizes=lambda s: s**1.5),
            "One matrix has the singular values and the other their root. They belong in one of the"
            " two, or their root in each.",
        ),
        Mistake(
            "root of the sizes",
            partial(extract, sizes=lambda s: s**0.5),
            "There is only the root of the singular values in it. If one matrix gets the root, the"
            " other must get it, too.",
        ),
        Mistake(
            "scale forgotten",
            partial(extract, scale=lambda alpha, rank: 1.0),
            "B A itself is the nearest change. But the layer multiplies it by alpha / rank before"
            " it adds it. So divide by that: * rank / alpha.",
        ),
        Mistake(
            "divided by alpha alone",
            partial(extract, scale=lambda alpha, rank: 1 / alpha),
            "It is divided by alpha alone. The layer multiplies by alpha / rank, so the rank"
            " belongs in it, too: * rank / alpha.",
        ),
        Mistake(
            "scaled in both",
            partial(extract, scale=lambda alpha, rank: (rank / alpha) ** 2),
            "rank / alpha is in it twice, in A and in B. It belongs there once.",
        ),
        Mistake(
            "whole numbers",
            partial(extract, scale=lambda alpha, rank: rank // alpha),
            "rank // alpha throws away what is behind the point: nothing is left where alpha is"
            " larger. Divide with one stroke: rank / alpha.",
        ),
        Mistake(
            "all kept",
            partial(extract, keep=lambda rank: slice(None)),
            "All summands are kept, whatever `rank` says. An adapter of rank r has the first r:"
            " [:rank].",
        ),
        Mistake(
            "one too many",
            partial(extract, keep=lambda rank: slice(rank + 1)),
            "There is one summand too many. [:rank] keeps rank of them.",
        ),
        Mistake(
            "one too few",
            partial(extract, keep=lambda rank: slice(rank - 1)),
            "One summand is missing. They are counted from 0, and [:rank] ends before number rank:"
            " so many are kept.",
        ),
        Mistake(
            "one alone",
            partial(extract, sizes=lambda s: s * (torch.arange(len(s)) == 0)),
            "Only the first summand is in it. An adapter of rank r has the first r.",
        ),
        *(
            Mistake(
                f"some {'columns' if columns else 'rows'}, {'the longest' if longest else 'first'}",
                lambda *given, columns=columns, longest=longest: _some(*given, columns, longest),
                "It copies some rows or columns of the change and leaves out the rest. That has"
                " rank r, but another matrix of rank r is nearer: the first r summands of"
                " torch.linalg.svd.",
            )
            for columns in (False, True)
            for longest in (False, True)
        ),
        *(
            Mistake(
                f"{side} by chance",
                lambda *given, side=side: _best_beside(*given, side),
                "One of the two matrices is drawn by chance, and the other is the best one for it."
                " Another pair is nearer: the first r summands of torch.linalg.svd.",
            )
            for side in ("A", "A, uniform", "B")
        ),
        Mistake(
            "taken apart each by itself",
            _apart,
            "before and after are taken apart each by itself. A difference of factors makes no"
            " difference of products: take after - before apart.",
        ),
        *(
            Mistake(
                f"without the mean of {name}",
                partial(
                    extract,
                    of=lambda before, after, dim=dim: (
                        (after - before) - (after - before).mean(dim=dim, keepdim=True)
                    ),
                ),
                "The mean is taken off the change before it is taken apart, as in a principal"
                " component analysis. Take the change apart as it is.",
            )
            for name, dim in (("columns", 0), ("rows", 1), ("all", (0, 1)))
        ),
        Mistake(
            "root of the scale",
            partial(extract, scale=lambda alpha, rank: (rank / alpha) ** 0.5),
            "There is only the root of rank / alpha in it. If one matrix gets the root, the other"
            " must get it, too.",
        ),
        Mistake(
            "scaled by all summands",
            partial(extract, number=lambda rank, s: len(s)),
            "It is multiplied by the number of all summands / alpha. The layer multiplies by alpha"
            " / rank, so it is the number of those that are kept: * rank / alpha.",
        ),
        Mistake(
            "divided by the sizes",
            partial(extract, sizes=lambda s: s * (s / s)),
            "Where nothing has changed, the singular values are 0, and a division by them, or by"
            " their root, gives nan. U, S and Vh need no division: columns of U times S, and rows"
            " of Vh.",
        ),
        Mistake(
            "scaled the wrong way",
            partial(extract, scale=lambda alpha, rank: alpha / rank),
            "It is multiplied by alpha / rank, and the layer does the same once more. Divide by it:"
            " * rank / alpha.",
        ),
        Mistake(
            "columns of V^T",
            partial(extract, right=lambda vh: vh.T),
            "The rows of A are columns of what torch returns as third. torch.linalg.svd returns V"
            " turned already (Vh): its first *rows* belong to the largest singular values.",
        ),
        Mistake(
            "rows of U",
            partial(extract, left=lambda u: u.T),
            "The columns of B are rows of U. The first *columns* of U belong to the largest"
            " singular values: U[:, :rank].",
        ),
        Mistake(
            "turned",
            partial(extract, give=lambda a, b: (a.T, b.T)),
            "Both matrices are turned. A is (rank, d) and B is (n, rank), as in part 1.",
        ),
        *(
            Mistake(
                f"{name} turned",
                partial(extract, give=give),
                f"{name} is turned. A is (rank, d) and B is (n, rank), as in part 1.",
            )
            for name, give in (("A", lambda a, b: (a.T, b)), ("B", lambda a, b: (a, b.T)))
        ),
        Mistake(
            "sizes on rows of U",
            _sizes_on_rows,
            "The singular values multiply the rows of U. Each belongs to a column: U * S.",
        ),
        Mistake(
            "QR",
            _orthogonal,
            "This is the beginning of a QR decomposition. It has rank r, but another matrix of rank"
            " r is nearer: the first r summands of torch.linalg.svd.",
        ),
        Mistake(
            "B first",
            partial(extract, give=lambda a, b: (b, a)),
            "B comes first, then A. Return A, B.",
        ),
    ),
    hints=(
        "Which matrix is it whose nearest neighbour you look for? Then torch.linalg.svd takes it"
        " apart into U, S, Vh: it is the sum of S[i] * U[:, i] * Vh[i], the largest first.",
        "Keep the first `rank` of these summands. Columns of U make B, rows of Vh make A, and the"
        " sizes S go into one of the two. What does the layer multiply by?",
        "U, S, Vh = torch.linalg.svd(after - before, full_matrices=False); A = Vh[:rank];"
        " B = U[:, :rank] * S[:rank] * rank / alpha.",
    ),
)

EXERCISES = (START_VALUES, LORA_FORWARD, MERGE, EXTRACT)


# --- at work in the trained model -----------------------------------------------------------------

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORD = "bus"


class _Adapted(nn.Module):
    """A linear layer of the model with a learner's change beside it."""

    def __init__(
        self, base: nn.Linear, start: Callable, forward: Callable, rank: int, alpha: float
    ):
        super().__init__()
        self.base, self.apply_change, self.alpha = base, forward, alpha
        a, b = start(base.out_features, base.in_features, rank)
        self.A, self.B = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        y = self.apply_change(x, self.base.weight, self.A, self.B, self.alpha)
        return y if self.base.bias is None else y + self.base.bias


def decoder_layers(model: PaliGemma) -> list[str]:
    """The names of the decoder's linear layers."""
    return [name for name in find_targets(model, TARGETS) if name.startswith("language_model")]


def named_right(model: PaliGemma, processor: Processor, number: int = 60) -> dict[str, float]:
    """Shares of the validation artist's pictures named right: of the new word, and of old ones."""
    new = [
        one
        for one in new_word(WORD, 4 * number, seed=1, artists=scenes.VALIDATION_ARTIST)
        if one[1].answer == WORD and one[1].task == "naming"
    ][:number]
    old = evaluation_set(scenes.VALIDATION_ARTIST, number, 18, ("naming",))
    return {
        kind: by_task(asked, answers(model, processor, asked))["naming"]
        for kind, asked in ((WORD, new), ("old names", old))
    }


def try_lora(
    model: PaliGemma,
    processor: Processor,
    start_values: Callable,
    lora_forward: Callable,
    merge_weight: Callable,
    pictures: int = 40,
    steps: int = 60,
    floor: float = 0.7,
    rank: int = 8,
    alpha: float = 16.0,
    number: int = 60,
) -> PaliGemma | None:
    """Teach the trained model a new word with a learner's LoRA, and merge; display the outcome.

    *correct* if the share of `number` new pictures of it that are named right reaches `floor`, and
    the merged model gives the same logits. Returns the merged model.
    """
    name = f"your LoRA learns {WORD!r}"

    def outcome(status: str, message: str) -> None:
        show(Outcome(name, status, message))

    try:
        learner = copy.deepcopy(model).requires_grad_(False)
        places = decoder_layers(learner)
        torch.manual_seed(0)
        for place in places:
            layer = _Adapted(learner.get_submodule(place), start_values, lora_forward, rank, alpha)
            learner.set_submodule(place, layer)
        losses = teach(
            learner, processor, new_word(WORD, pictures, seed=0), steps, rate=6e-3, seed=0
        )
        before, after = (named_right(one.eval(), processor, number) for one in (model, learner))
        merged = copy.deepcopy(learner)
        for place in places:
            layer = merged.get_submodule(place)
            with torch.no_grad():
                weight = merge_weight(layer.base.weight, layer.A, layer.B, alpha)
            layer.base.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
            merged.set_submodule(place, layer.base)
        batch = processor(list(scenes.examples().values())[:2], ["caption en"] * 2)
        with torch.inference_mode():
            apart = (learner(**batch) - merged(**batch)).abs().max().item()
    except BaseException as error:
        return show(failed(name, error))
    for kind, share in before.items():
        print(f"{kind:10} before {share:4.0%}, after {after[kind]:4.0%}")
    found = (
        f"{after[WORD]:.0%} of the new artist's pictures are named {WORD}, the floor is"
        f" {floor:.0%}; the loss went from {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    if after[WORD] < floor:
        outcome(WRONG, f"{found}. What does your `check` say?")
    elif not apart <= 1e-2:
        outcome(WRONG, f"{found}. But the merged model's logits differ by up to {apart:.2g}.")
    else:
        outcome(CORRECT, f"{found}. Merged, the logits differ by {apart:.0e} at most.")
    return merged


def try_extract(
    model: PaliGemma,
    processor: Processor,
    extract: Callable,
    ranks: tuple[int, ...] = (1, 2, 4, 8, 32),
    pictures: int = 40,
    steps: int = 60,
) -> bool:
    """Teach the whole decoder a new word, and keep of its change only some ranks; display it.

    Returns whether the largest of the ranks names nearly as much as the whole change does.
    """
    name = "a whole fine-tuning in a few ranks"
    whole = copy.deepcopy(model).requires_grad_(False)
    places = decoder_layers(whole)
    for place in places:
        whole.get_submodule(place).requires_grad_(True)
    teach(whole, processor, new_word(WORD, pictures, seed=0), steps, rate=2e-3, seed=0)
    whole.eval()
    shares = {}
    try:
        for rank in ranks:
            small = copy.deepcopy(model)
            for place in places:
                before, after = (one.get_submodule(place).weight.detach() for one in (model, whole))
                a, b = extract(before.clone(), after.clone(), rank, 16.0)
                with torch.no_grad():
                    small.get_submodule(place).weight.add_(16.0 / rank * b @ a)
            shares[rank] = named_right(small.eval(), processor)
    except BaseException as error:
        show(failed(name, error))
        return False
    all_of_it = named_right(whole, processor)
    for rank, share in (*shares.items(), ("all", all_of_it)):
        told = ", ".join(f"{kind} {value:4.0%}" for kind, value in share.items())
        print(f"rank {rank!s:>3}: {told}")
    largest, best = shares[ranks[-1]][WORD], all_of_it[WORD]
    if largest < best - 0.15:
        show(Outcome(name, WRONG, f"Rank {ranks[-1]} names {largest:.0%}, all of it {best:.0%}."))
        return False
    show(Outcome(name, CORRECT, f"Rank {ranks[-1]} names {largest:.0%}, all of it {best:.0%}."))
    return True
