"""Lesson 20: Llama's gated MLP and its rows, Gemma 3's norms and windows, and training a BPE."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minipali import variants
from minipali.byte_level_bpe import byte_letters
from minipali.byte_level_bpe import words as split_words
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.config import replace, text_config
from minipali.gemma import Gemma
from minipali.gguf import GGUF
from minipali.gguf_tokenizers import Tokenizer
from minipali.published import PUBLISHED, PublishedError, find
from minipali.rope import apply_rope, rope_angles
from minipali.variants import causal_states, chat_prompt, halves_from_pairs, their_name

# --- swiglu ---------------------------------------------------------------------------------------


def _mlps() -> list[tuple]:
    random = torch.Generator().manual_seed(20)

    def case(b: int, t: int, d: int, hidden: int) -> tuple:
        sizes = (b, t, d), (hidden, d), (hidden, d), (d, hidden)
        return tuple(torch.randn(size, generator=random) for size in sizes)

    x, gate_weight, *rest = case(2, 2, 3, 4)
    large = x, 60 * gate_weight, *rest  # e to the gate is infinite
    return [case(2, 3, 5, 8), case(1, 4, 6, 6), case(3, 1, 4, 7), large]


def swiglu(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    bend: Callable[[Tensor], Tensor] = F.silu,
    bend_up: Callable[[Tensor], Tensor] = lambda up: up,
    join: Callable[[Tensor, Tensor], Tensor] = lambda gate, up: gate * up,
    finish: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y,
    read: Callable[[Tensor], Tensor] = lambda x: x,
    read_by_up: Callable[[Tensor], Tensor] = lambda x: x,
    down: Callable[[Tensor, Tensor], Tensor] = F.linear,
    swapped: bool = False,
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with one thing changed."""
    gate, up = read(x) @ gate_weight.T, read_by_up(x) @ up_weight.T
    if swapped:
        gate, up = up, gate
    return finish(x, down(join(bend(gate), bend_up(up)), down_weight))


_BEND = (
    "The gate is bent by another function. SiLU is the gate times its own sigmoid: gate *"
    " sigmoid(gate)."
)


SWIGLU = Exercise(
    name="swiglu",
    reference=swiglu,
    cases=_mlps,
    axes="b t d",
    gradients=("x",),
    checked=(
        "shape and every value of 4 MLPs, of widths 3 to 6, one with large gates, and the gradient"
        " that reaches x; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "Gemma's",
            partial(swiglu, bend=partial(F.gelu, approximate="tanh")),
            "The gate is bent by GELU: that is Gemma's MLP. Llama's has SiLU there:"
            " gate * sigmoid(gate).",
        ),
        Mistake(
            "GELU with erf",
            partial(swiglu, bend=F.gelu),
            "The gate is bent by GELU (in its exact form, with erf). Llama has SiLU there: gate *"
            " sigmoid(gate).",
        ),
        Mistake(
            "1.702",
            partial(swiglu, bend=lambda x: x * (1.702 * x).sigmoid()),
            "1.702 stands inside the sigmoid. That is a cheap GELU. SiLU has the gate itself there:"
            " gate * sigmoid(gate).",
        ),
        Mistake(
            "sigmoid alone",
            partial(swiglu, bend=torch.sigmoid),
            "The gate is only its sigmoid, between 0 and 1 (the first gated MLP, GLU, had that)."
            " SiLU multiplies the sigmoid by the gate's own number: gate * sigmoid(gate).",
        ),
        Mistake(
            "ReLU",
            partial(swiglu, bend=torch.relu),
            "The gate is bent by ReLU. SiLU is smooth and dips a little below 0: gate *"
            " sigmoid(gate).",
        ),
        Mistake(
            "tanh",
            partial(swiglu, bend=torch.tanh),
            "The gate is bent by tanh. SiLU is gate * sigmoid(gate).",
        ),
        Mistake(
            "softplus",
            partial(swiglu, bend=F.softplus),
            "The gate is bent by softplus, log(1 + exp(gate)). SiLU is gate * sigmoid(gate).",
        ),
        Mistake("softmax", partial(swiglu, bend=partial(torch.softmax, dim=-1)), _BEND),
        Mistake("mish", partial(swiglu, bend=F.mish), _BEND),
        Mistake("leaky ReLU", partial(swiglu, bend=F.leaky_relu), _BEND),
        Mistake("ELU", partial(swiglu, bend=F.elu), _BEND),
        Mistake(
            "times the gate twice",
            partial(swiglu, bend=lambda x: x * F.silu(x)),
            "The gate's own number is in it twice: gate * gate * sigmoid(gate). SiLU has it"
            " already: silu(gate) * up.",
        ),
        Mistake(
            "x bent",
            partial(swiglu, read=F.silu),
            "SiLU comes before the gate's matrix. First x W_gate^T, then SiLU of that.",
        ),
        Mistake(
            "x bent for both",
            partial(swiglu, read=F.silu, read_by_up=F.silu, bend=lambda x: x),
            "x is bent before both matrices. First x W_gate^T, then SiLU of that; up is not bent.",
        ),
        Mistake(
            "x bent for the gate, the gate not",
            partial(swiglu, read=F.silu, bend=lambda x: x),
            "SiLU comes before the gate's matrix, in place of after it. First x W_gate^T, then SiLU"
            " of that.",
        ),
        Mistake(
            "the sigmoid of up",
            partial(swiglu, bend=lambda x: x, bend_up=torch.sigmoid),
            "The gate is multiplied by the sigmoid of up. The sigmoid is the gate's own: gate *"
            " sigmoid(gate) * up.",
        ),
        Mistake(
            "without down",
            partial(swiglu, down=lambda y, weight: y),
            "`down` is missing: the tokens are still as wide as inside. The last matrix brings them"
            " back to d.",
        ),
        Mistake(
            "the other sign",
            partial(swiglu, bend=lambda x: x * (-x).sigmoid()),
            "The sign inside the sigmoid is wrong: the gate is open where it should be shut."
            " sigmoid(g) is 1 / (1 + exp(-g)).",
        ),
        Mistake(
            "not bent",
            partial(swiglu, bend=lambda x: x),
            "The gate is not bent at all: gate times up is a plain product. SiLU is gate *"
            " sigmoid(gate).",
        ),
        Mistake(
            "both bent",
            partial(swiglu, bend_up=F.silu),
            "Gate and up are both bent. Only the gate is; up goes through as it is.",
        ),
        Mistake(
            "bent after the product",
            partial(swiglu, bend=lambda x: x, join=lambda gate, up: F.silu(gate * up)),
            "The product is bent. Bend the gate alone, then multiply by up.",
        ),
        Mistake(
            "bent at the end",
            partial(swiglu, bend=lambda x: x, finish=lambda x, y: F.silu(y)),
            "SiLU comes after `down`. It belongs on the gate, before gate and up are multiplied.",
        ),
        Mistake(
            "gate and up exchanged",
            partial(swiglu, swapped=True),
            "Gate and up are exchanged. x W_gate^T is what SiLU bends; x W_up^T is multiplied by"
            " it.",
        ),
        Mistake(
            "added",
            partial(swiglu, join=lambda gate, up: gate + up),
            "Gate and up are added. A gate multiplies: silu(gate) * up.",
        ),
        Mistake(
            "without up",
            partial(swiglu, join=lambda gate, up: gate),
            "`up` plays no part: this is a plain MLP. The bent gate multiplies x W_up^T.",
        ),
        Mistake(
            "with x added",
            partial(swiglu, finish=lambda x, y: x + y),
            "x is added. That is the residual connection, and it belongs to the layer: the MLP"
            " gives only what is added.",
        ),
    ),
    hints=(
        "It is exercise 10's GeGLU with another bend. What is SiLU of 0, of a large number, and of"
        " a very negative one?",
        "SiLU(g) = g * sigmoid(g). Only the gate goes through it.",
        "gate = x @ gate_weight.T; (gate * gate.sigmoid() * (x @ up_weight.T)) @ down_weight.T",
    ),
)


# --- halves_from_pairs ----------------------------------------------------------------------------


def _rows() -> list[tuple]:
    random = torch.Generator().manual_seed(21)
    # An even number of heads, so that who takes it for their size gets a result. In the last one
    # pairs are halves already.
    sizes = ((4, 6, 5), (2, 8, 3), (6, 4, 4), (2, 2, 4))
    return [(torch.randn(h * k, d, generator=random), k) for h, k, d in sizes]


def _in_heads(
    weight: Tensor,
    head_dim: int,
    *,
    order: Callable[[int], list[int]] = lambda k: [*range(0, k, 2), *range(1, k, 2)],
    size: Callable[[int, int], int] = lambda head_dim, rows: head_dim,
    cut: Callable[[Tensor, int], Tensor] = lambda weight, k: weight.unflatten(0, (-1, k)),
    finish: Callable[[Tensor], Tensor] = lambda heads: heads.flatten(0, 1),
) -> Tensor:
    """halves_from_pairs with one thing changed."""
    heads = cut(weight, size(head_dim, len(weight)))  # (h, k, d)
    return finish(heads[:, order(heads.shape[1])])


HALVES = Exercise(
    name="halves_from_pairs",
    reference=halves_from_pairs,
    cases=_rows,
    axes="row d",
    checked=(
        "shape, dtype and every value of 4 weights with 4, 2, 6 and 2 heads of 6, 8, 4 and 2 rows;"
        " input unchanged"
    ),
    mistakes=(
        Mistake(
            "as it was",
            lambda weight, head_dim: weight.clone(),
            "The rows have the order that they had. In each head the rows 0, 2, 4, ... come first,"
            " then 1, 3, 5, ...",
        ),
        Mistake(
            "the other way",
            partial(_in_heads, order=lambda k: [i // 2 + i % 2 * (k // 2) for i in range(k)]),
            "This is the way back: it makes neighbours out of halves. Row 0 and row 1 of a head"
            " must come to places 0 and k / 2, so split each head into pairs, (k / 2, 2), and then"
            " exchange these two axes.",
        ),
        Mistake(
            "all heads in one",
            partial(_in_heads, size=lambda head_dim, rows: rows),
            "The even rows of *all* heads come first. Then a head gets rows of other heads. Each"
            " head is put in order for itself.",
        ),
        Mistake(
            "number and size of the heads exchanged",
            partial(_in_heads, size=lambda head_dim, rows: rows // head_dim),
            "head_dim is taken for the number of heads. It is the number of rows in each head.",
        ),
        Mistake(
            "rows of different heads side by side",
            partial(
                _in_heads,
                cut=lambda weight, k: weight.unflatten(0, (k, -1)).transpose(0, 1),
            ),
            "The rows are cut into heads the wrong way: a head's rows stand together, k after k, so"
            " the heads are the *first* axis, (h, k, d).",
        ),
        Mistake(
            "heads in the middle",
            lambda weight, head_dim: (
                weight.unflatten(0, (head_dim // 2, -1, 2)).transpose(1, 2).flatten(0, 2)
            ),
            "The rows are cut into (k / 2, heads, 2). A head's rows stand together, so the heads"
            " are the *first* axis: (heads, k / 2, 2).",
        ),
        Mistake(
            "heads mixed at the end",
            partial(_in_heads, finish=lambda heads: heads.transpose(0, 1).flatten(0, 1)),
            "Each head is in order, but then rows of different heads stand side by side. The heads"
            " keep their places: one after the other.",
        ),
        Mistake(
            "the first head alone",
            lambda weight, head_dim: torch.cat(
                (weight[:head_dim:2], weight[1:head_dim:2], weight[head_dim:])
            ),
            "Only the first head is in order. The others want it as well, each for itself.",
        ),
        Mistake(
            "all of the weight in two halves",
            lambda weight, head_dim: weight.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1),
            "The two halves of the *whole* weight are put side by side, row by row. Each head is"
            " put in order for itself: its rows 0, 2, 4, ..., then 1, 3, 5, ...",
        ),
        Mistake(
            "odd ones first",
            partial(_in_heads, order=lambda k: [*range(1, k, 2), *range(0, k, 2)]),
            "The odd rows come first. Row 0 is the first of its pair, and stays in front: 0, 2, 4,"
            " ..., then 1, 3, 5, ...",
        ),
        Mistake(
            "halves exchanged",
            partial(_in_heads, order=lambda k: [*range(k // 2, k), *range(k // 2)]),
            "The two halves of each head have changed places, and the pairs are still neighbours."
            " Take every second row: 0, 2, 4, ..., then 1, 3, 5, ...",
        ),
        Mistake(
            "odd ones backwards",
            partial(_in_heads, order=lambda k: [*range(0, k, 2), *range(k - 1, 0, -2)]),
            "The odd rows come in reverse order. The partner of row i is row i + k / 2, so both"
            " halves run the same way.",
        ),
        Mistake(
            "turned round",
            partial(_in_heads, order=lambda k: [*range(k - 1, -1, -1)]),
            "The rows of each head come in reverse order. Take every second one: 0, 2, 4, ..., then"
            " 1, 3, 5, ...",
        ),
        Mistake(
            "neighbours exchanged",
            partial(_in_heads, order=lambda k: [i ^ 1 for i in range(k)]),
            "Each row has changed places with its neighbour, and the pairs are still neighbours."
            " Take every second row: 0, 2, 4, ..., then 1, 3, 5, ...",
        ),
        Mistake(
            "even ones alone",
            partial(_in_heads, order=lambda k: [*range(0, k, 2), *range(0, k, 2)]),
            "The even rows are there twice, and the odd ones not at all. The second half is 1, 3,"
            " 5, ...",
        ),
        Mistake(
            "columns",
            lambda weight, head_dim: torch.cat((weight[:, ::2], weight[:, 1::2]), dim=1),
            "The columns are in another order. A linear layer's outputs, which RoPE turns, are the"
            " *rows* of its weight, axis 0.",
        ),
        Mistake(
            "heads have an axis",
            partial(_in_heads, finish=lambda heads: heads),
            "The heads have an axis of their own. The result has the shape of the weight that came"
            " in: flatten it again.",
        ),
        Mistake(
            "transposed",
            partial(_in_heads, finish=lambda heads: heads.flatten(0, 1).T),
            "The result is transposed. It has the shape of the weight that came in.",
        ),
    ),
    hints=(
        "Write down the rows of one head of 6 with their numbers, and where each one must go. Then"
        " two heads: rows 0 to 5, and rows 6 to 11.",
        "Cut axis 0 into three: (heads, k / 2, 2). The last of them says whether a row is the first"
        " or the second of its pair. Which two of the three must change places?",
        "weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)",
    ),
)


# --- norm_and_turn --------------------------------------------------------------------------------


def _heads() -> list[tuple]:
    random = torch.Generator().manual_seed(22)

    def case(b: int, h: int, t: int, k: int, first: int, eps: float) -> tuple:
        # Sizes that differ from head to head and token to token: a norm over more shows.
        size = 0.2 + 3 * torch.rand(b, h, t, 1, generator=random)
        x = size * (torch.randn(b, h, t, k, generator=random) + 0.3)
        # Each row of the batch begins elsewhere.
        starts = torch.arange(first, first + 2 * b, 2)[:, None]
        angles = rope_angles(starts + torch.arange(t), k, 50.0)
        return x, 0.5 * torch.randn(k, generator=random), *angles, eps

    return [case(2, 3, 4, 6, 3, 1e-3), case(1, 2, 5, 8, 0, 0.5), case(2, 1, 3, 4, 9, 1e-3)]


def _rms(x: Tensor, eps: float, dim: tuple[int, ...] = (-1,)) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=dim, keepdim=True) + eps)


def _neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., ::2], x[..., 1::2]
    pair = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(pair, dim=-1).flatten(-2)


def norm_and_turn(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    norm: Callable[[Tensor, float], Tensor] = _rms,
    factor: Callable[[Tensor], Tensor] = lambda weight: 1 + weight,
    turn: Callable[[Tensor, Tensor, Tensor], Tensor] = apply_rope,
    order: Callable = lambda x, norm, scale, turn: turn(scale(norm(x))),
) -> Tensor:
    """(b, h, t, k) -> (b, h, t, k). The reference, or with one thing changed."""
    return order(
        x, lambda y: norm(y, eps), lambda y: factor(weight) * y, lambda y: turn(y, cos, sin)
    )


NORM_AND_TURN = Exercise(
    name="norm_and_turn",
    reference=norm_and_turn,
    cases=_heads,
    axes="b h t k",
    gradients=("weight",),
    checked=(
        "shape and every value of 3 batches of heads, with eps up to 0.5, and the gradient that"
        " reaches the weight; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "turned first",
            partial(norm_and_turn, order=lambda x, norm, scale, turn: scale(norm(turn(x)))),
            "The norm's weight multiplies after RoPE. (On which side you divide is the same: a turn"
            " keeps lengths.) It has another factor for each of the two numbers of a pair, so"
            " they are stretched after they were turned, and query times key depends on where both"
            " stand, not only on how far apart. Norm and weight first, turn last.",
        ),
        Mistake(
            "weight forgotten",
            partial(norm_and_turn, factor=torch.ones_like),
            "The norm's weight is missing. After the division multiply by 1 + weight.",
        ),
        Mistake(
            "weight alone",
            partial(norm_and_turn, factor=lambda weight: weight),
            "The factor is the weight itself, as Llama has it. Gemma's norms multiply by 1 +"
            " weight, these two as well.",
        ),
        Mistake(
            "not normed",
            partial(norm_and_turn, norm=lambda x, eps: x),
            "The heads are not divided by their root mean square.",
        ),
        Mistake(
            "over all heads",
            partial(norm_and_turn, norm=partial(_rms, dim=(1, 3))),
            "The mean of the squares is taken over all heads of a token together. Each head of each"
            " token has a norm of its own: over the last axis alone.",
        ),
        Mistake(
            "over the tokens",
            partial(norm_and_turn, norm=partial(_rms, dim=(2,))),
            "The mean of the squares is taken over the tokens. It is over the k numbers of one head"
            " of one token, the last axis.",
        ),
        Mistake(
            "over the head's tokens and numbers",
            partial(norm_and_turn, norm=partial(_rms, dim=(2, 3))),
            "The mean of the squares is taken over all tokens of a head. Each head of each token"
            " has a norm of its own: over the last axis alone.",
        ),
        Mistake(
            "mean subtracted",
            partial(norm_and_turn, norm=lambda x, eps: _rms(x - x.mean(-1, keepdim=True), eps)),
            "The mean is subtracted: that is LayerNorm. RMSNorm only divides.",
        ),
        Mistake(
            "sum",
            partial(
                norm_and_turn,
                norm=lambda x, eps: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps),
            ),
            "It divides by the length of the vector, the root of the *sum* of the squares. RMSNorm"
            " takes their mean.",
        ),
        Mistake(
            "L2 norm",
            partial(norm_and_turn, norm=lambda x, eps: F.normalize(x, dim=-1)),
            "It divides by the length of the vector, and eps plays no part. RMSNorm divides by the"
            " root of the mean of the squares, plus eps.",
        ),
        Mistake(
            "eps outside",
            partial(
                norm_and_turn,
                norm=lambda x, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps),
            ),
            "eps is added to the root. It is added to the mean of the squares, under the root.",
        ),
        Mistake(
            "eps forgotten",
            partial(norm_and_turn, norm=lambda x, eps: _rms(x, 0.0)),
            "eps is missing, or it is not the one that was given. It is added to the mean of the"
            " squares, under the root.",
        ),
        Mistake(
            "root forgotten",
            partial(
                norm_and_turn, norm=lambda x, eps: x / (x.square().mean(-1, keepdim=True) + eps)
            ),
            "It divides by the mean of the squares. Take its root first.",
        ),
        Mistake(
            "multiplied",
            partial(
                norm_and_turn,
                norm=lambda x, eps: x * (x.square().mean(-1, keepdim=True) + eps).sqrt(),
            ),
            "It multiplies by the root mean square. Divide by it, or multiply by torch.rsqrt.",
        ),
        Mistake(
            "standard deviation",
            partial(norm_and_turn, norm=lambda x, eps: x / (x.std(-1, keepdim=True) + eps)),
            "It divides by the standard deviation, which subtracts the mean first. RMSNorm divides"
            " by the root of the mean of the squares, plus eps.",
        ),
        Mistake(
            "over everything",
            partial(norm_and_turn, norm=partial(_rms, dim=(0, 1, 2, 3))),
            "One mean is taken over all numbers of the batch. Each head of each token has a norm of"
            " its own: over the last axis alone, with keepdim.",
        ),
        Mistake(
            "each half",
            partial(
                norm_and_turn,
                norm=lambda x, eps: torch.cat([_rms(half, eps) for half in x.chunk(2, -1)], -1),
            ),
            "Each half of a head is normed for itself. One mean over all k numbers of the head.",
        ),
        *(
            Mistake(
                name,
                partial(norm_and_turn, order=order),
                "The weight is added. It multiplies: (1 + weight) times the normed numbers.",
            )
            for name, order in (
                ("weight added", lambda x, norm, scale, turn: turn(norm(x) + scale(1.0) - 1)),
                ("1 + weight added", lambda x, norm, scale, turn: turn(norm(x) + scale(1.0))),
            )
        ),
        Mistake(
            "exponential of the weight",
            partial(norm_and_turn, factor=torch.exp),
            "The factor is exp(weight). It is 1 + weight.",
        ),
        Mistake(
            "1 - weight",
            partial(norm_and_turn, factor=lambda weight: 1 - weight),
            "The factor is 1 - weight. It is 1 + weight.",
        ),
        Mistake(
            "cos and sin exchanged",
            partial(norm_and_turn, turn=lambda x, cos, sin: apply_rope(x, sin, cos)),
            "cos and sin are exchanged. The first half becomes first * cos - second * sin, the"
            " second half second * cos + first * sin.",
        ),
        Mistake(
            "two plus signs",
            partial(
                norm_and_turn,
                turn=lambda x, cos, sin: torch.cat(
                    (
                        apply_rope(x, cos, -sin).chunk(2, -1)[0],
                        apply_rope(x, cos, sin).chunk(2, -1)[1],
                    ),
                    -1,
                ),
            ),
            "Both halves have a plus sign. That is no turn: the first half becomes first * cos -"
            " second * sin.",
        ),
        Mistake(
            "two minus signs",
            partial(
                norm_and_turn,
                turn=lambda x, cos, sin: torch.cat(
                    (
                        apply_rope(x, cos, sin).chunk(2, -1)[0],
                        apply_rope(x, cos, -sin).chunk(2, -1)[1],
                    ),
                    -1,
                ),
            ),
            "Both halves have a minus sign. That is no turn: the second half becomes second * cos +"
            " first * sin.",
        ),
        Mistake(
            "halves exchanged at the end",
            partial(
                norm_and_turn,
                turn=lambda x, cos, sin: torch.cat(apply_rope(x, cos, sin).chunk(2, -1)[::-1], -1),
            ),
            "The two halves of the result have changed places. The first half comes first: first *"
            " cos - second * sin.",
        ),
        Mistake(
            "turned twice",
            partial(
                norm_and_turn,
                turn=lambda x, cos, sin: apply_rope(apply_rope(x, cos, sin), cos, sin),
            ),
            "The heads are turned twice. Once is enough.",
        ),
        Mistake(
            "neighbours",
            partial(norm_and_turn, turn=_neighbours),
            "The pairs that are turned are neighbours, numbers 0 and 1. Gemma's are halves: number"
            " i goes with number i + k / 2, as in lesson 07.",
        ),
        Mistake(
            "the other way round",
            partial(norm_and_turn, turn=lambda x, cos, sin: apply_rope(x, cos, -sin)),
            "The heads are turned the wrong way. The first half becomes first * cos - second * sin,"
            " the second half second * cos + first * sin.",
        ),
        Mistake(
            "not turned",
            partial(norm_and_turn, turn=lambda x, cos, sin: x),
            "The heads are normed, and not turned.",
        ),
        Mistake(
            "normed again",
            partial(norm_and_turn, order=lambda x, norm, scale, turn: turn(norm(scale(norm(x))))),
            "The heads are normed twice. Once is enough: divide, multiply by 1 + weight, turn.",
        ),
        Mistake(
            "divided by the root of k",
            partial(
                norm_and_turn,
                order=lambda x, norm, scale, turn: turn(scale(norm(x))) * x.shape[-1] ** -0.5,
            ),
            "The result is divided by sqrt(k). That belongs to the scores, later, and happens once"
            " for query and key together.",
        ),
    ),
    hints=(
        "Two things that you have written before: RMSNorm (exercise 02), here over the k numbers of"
        " one head of one token, and RoPE (exercise 07). In which order?",
        "y = x divided by the root of (mean of its squares over the last axis, + eps), times 1 +"
        " weight. Then the halves of y are turned; cos and sin want an axis for the heads.",
        "y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1 + weight); first,"
        " second = y.chunk(2, -1); c, s = cos[:, None], sin[:, None]; torch.cat((first * c - second"
        " * s, second * c + first * s), -1)",
    ),
)


# --- layer_mask -----------------------------------------------------------------------------------


def _layers() -> list[tuple]:
    # layer, t, s, window, every: a layer that slides, one that does not, both with a cache; every
    # second and every layer full; a window of the token alone, and one longer than the text.
    return [
        (0, 7, 7, 3, 6),
        (5, 6, 6, 3, 6),
        (3, 4, 9, 4, 6),
        (11, 4, 9, 4, 6),
        (2, 1, 8, 3, 2),
        (1, 3, 8, 3, 2),
        (6, 5, 5, 1, 4),
        (0, 4, 6, 2, 1),
        (4, 5, 5, 9, 6),
    ]


def layer_mask(
    layer: int,
    t: int,
    s: int,
    window: int,
    every: int,
    *,
    full: Callable[[int, int], bool] = lambda layer, every: (layer + 1) % every == 0,
    first: Callable[[int, int, bool], int] = lambda t, s, is_full: s - t,
    near: Callable = lambda query, key, window, s: key > query - window,
    past: Callable = lambda query, key: key <= query,
    past_of_full: Callable = lambda query, key: key <= query,
    finish: Callable[[Tensor], Tensor] = lambda seen: seen,
) -> Tensor:
    """bool (t, s). The reference, or with one thing changed."""
    is_full = full(layer, every)
    query, key = first(t, s, is_full) + torch.arange(t)[:, None], torch.arange(s)
    if is_full:
        return finish(past_of_full(query, key).expand(t, s))
    return finish((past(query, key) & near(query, key, window, s)).expand(t, s))


_OFF = "The window counts the token itself: with a window of 3 it sees itself and two before it."

LAYER_MASK = Exercise(
    name="layer_mask",
    reference=layer_mask,
    cases=_layers,
    axes="t s",
    checked=(
        "shape, dtype and every place of 9 masks: layers that slide and full ones, with and without"
        " a cache, windows from 1 to longer than the text, every sixth, fourth, second and every"
        " layer full"
    ),
    mistakes=(
        Mistake(
            "one too many",
            partial(layer_mask, near=lambda query, key, window, s: key >= query - window),
            f"The window is one token too long. {_OFF}",
        ),
        Mistake(
            "one too few",
            partial(layer_mask, near=lambda query, key, window, s: key > query - window + 1),
            f"The window is one token too short. {_OFF}",
        ),
        Mistake(
            "both sides",
            partial(
                layer_mask,
                near=lambda query, key, window, s: (key - query).abs() < window,
                past=lambda query, key: key >= 0,
            ),
            "In layers that slide, a token sees tokens after it that are near. It sees backwards"
            " alone, itself among them.",
        ),
        Mistake(
            "in the middle",
            partial(
                layer_mask,
                near=lambda query, key, window, s: (key - query).abs() <= window // 2,
                past=lambda query, key: key >= 0,
            ),
            "In layers that slide, the token stands in the middle of its window and sees tokens"
            " after it. The window ends at the token itself.",
        ),
        Mistake(
            "forwards",
            partial(
                layer_mask,
                near=lambda query, key, window, s: key < query + window,
                past=lambda query, key: key >= query,
            ),
            "In layers that slide, the window looks forwards. It ends at the token itself, and goes"
            " back from there.",
        ),
        Mistake(
            "the future",
            partial(layer_mask, past=lambda query, key: key >= 0),
            "In layers that slide, a token sees all tokens after it. The window cuts off what is"
            " too far back; no token sees a later one in any layer.",
        ),
        Mistake(
            "full, with the future",
            partial(layer_mask, past_of_full=lambda query, key: (key >= 0).expand(len(query), -1)),
            "In full layers a token sees tokens after it. `Full` means: as far back as there are"
            " tokens. No token sees a later one in any layer.",
        ),
        Mistake(
            "not itself",
            partial(
                layer_mask,
                past=lambda query, key: key < query,
                past_of_full=lambda query, key: key < query,
            ),
            "A token does not see itself. It does: key <= query.",
        ),
        Mistake(
            "queries from 0",
            partial(layer_mask, first=lambda t, s, is_full: 0),
            "The t queries are taken for the first t of the s tokens. They are the last: the cache"
            " holds what came before them, so query 0 is token s - t.",
        ),
        Mistake(
            "queries from 0 in full layers",
            partial(layer_mask, first=lambda t, s, is_full: 0 if is_full else s - t),
            "In full layers the t queries are taken for the first t of the s tokens. They are the"
            " last, in all layers: query 0 is token s - t.",
        ),
        Mistake(
            "queries from 0 in layers that slide",
            partial(layer_mask, first=lambda t, s, is_full: s - t if is_full else 0),
            "In layers that slide the t queries are taken for the first t of the s tokens. They are"
            " the last, in all layers: query 0 is token s - t.",
        ),
        Mistake(
            "without the cache",
            lambda layer, t, s, window, every: layer_mask(layer, t, t, window, every),
            "The mask is (t, t): keys that the cache holds from before are missing. A column for"
            " each of the s tokens.",
        ),
        Mistake(
            "a row for every token",
            lambda layer, t, s, window, every: layer_mask(layer, s, s, window, every),
            "The mask has a row for each of the s tokens. Only the last t of them are queries now:"
            " (t, s).",
        ),
        Mistake(
            "window and every exchanged",
            lambda layer, t, s, window, every: layer_mask(layer, t, s, every, window),
            "`window` and `every` are exchanged. `window` says how far a token sees, `every` which"
            " layers are full.",
        ),
        Mistake(
            "every second",
            partial(layer_mask, full=lambda layer, every: layer % 2 == 1),
            "Every second layer is full, whatever `every` says. So it is in Gemma 2. Here `every`"
            " says how many layers make a group.",
        ),
        Mistake(
            "every sixth",
            partial(layer_mask, full=lambda layer, every: layer % 6 == 5),
            "Every sixth layer is full, whatever `every` says.",
        ),
        Mistake(
            "queries one too early",
            partial(layer_mask, first=lambda t, s, is_full: s - t - 1),
            "The queries stand one place too early. Query 0 is token s - t.",
        ),
        Mistake(
            "queries one too late",
            partial(layer_mask, first=lambda t, s, is_full: s - t + 1),
            "The queries stand one place too late, and see the token after them. Query 0 is token"
            " s - t.",
        ),
        Mistake(
            "from layer 0",
            partial(layer_mask, full=lambda layer, every: layer % every == 0),
            "The full layers are one of every group, but the first of it. It is the last: layers"
            " are counted from 0, so of every 6 it is layer 5, then 11.",
        ),
        Mistake(
            "exchanged",
            partial(layer_mask, full=lambda layer, every: (layer + 1) % every != 0),
            "Full layers and layers that slide are exchanged. Most layers slide: only every"
            " `every`-th one is full.",
        ),
        Mistake(
            "exchanged, from layer 0",
            partial(layer_mask, full=lambda layer, every: layer % every != 0),
            "Layers that slide are taken for full ones, and the group is counted from the wrong"
            " end. Layer `every` - 1, then 2 * `every` - 1 and so on are full; all others slide.",
        ),
        Mistake(
            "all slide",
            partial(layer_mask, full=lambda layer, every: False),
            "Every layer slides. Layer `every` - 1, then 2 * `every` - 1 and so on see all that"
            " came before.",
        ),
        Mistake(
            "none slides",
            partial(layer_mask, full=lambda layer, every: True),
            "No layer slides: all see everything that came before. Only layer `every` - 1, then 2 *"
            " `every` - 1 and so on do.",
        ),
        Mistake(
            "the first group alone",
            partial(layer_mask, full=lambda layer, every: layer + 1 == every),
            "Only one layer is full. It comes again in every group: with every = 6, layers 5, 11,"
            " 17.",
        ),
        Mistake(
            "by number, not by group",
            partial(layer_mask, full=lambda layer, every: layer >= every - 1),
            "From the first full layer on, all are full. It is one in every group: with every = 6,"
            " layers 5, 11, 17.",
        ),
        Mistake(
            "the last ones for all",
            partial(layer_mask, near=lambda query, key, window, s: key >= s - window),
            "All tokens get the same window, at the end of the text. Each token's window ends at"
            " the token itself: it slides.",
        ),
        Mistake(
            "blocks",
            partial(
                layer_mask, near=lambda query, key, window, s: key // window == query // window
            ),
            "The text is cut into blocks, and a token sees its own block. A sliding window moves"
            " with the token: always itself and the window - 1 tokens before it.",
        ),
        Mistake(
            "what is hidden",
            partial(layer_mask, finish=torch.logical_not),
            "True and False are exchanged. True means: may be seen.",
        ),
        Mistake(
            "added to the scores",
            partial(
                layer_mask,
                finish=lambda seen: torch.zeros(seen.shape).masked_fill(~seen, -torch.inf),
            ),
            "The mask has numbers that are added to scores, 0 and minus infinity. Return a bool"
            " tensor: True where a key may be seen.",
        ),
        Mistake(
            "added, a large number",
            partial(layer_mask, finish=lambda seen: torch.where(seen, 0.0, -1e9)),
            "The mask has numbers that are added to scores, 0 and a very negative one. Return a"
            " bool tensor: True where a key may be seen.",
        ),
        *(
            Mistake(
                f"numbers, {dtype}",
                partial(layer_mask, finish=partial(torch.Tensor.to, dtype=dtype)),
                "The mask has numbers, 1 and 0. Return a bool tensor: True where a key may be"
                " seen.",
            )
            for dtype in (torch.float32, torch.int64, torch.int32)
        ),
        Mistake(
            "transposed",
            partial(layer_mask, finish=lambda seen: seen.T),
            "The mask is transposed. A row for each query, a column for each key: (t, s).",
        ),
    ),
    hints=(
        "Give each query and each key its number in the whole text. Which number does the first of"
        " the t queries have, if there are s tokens in all?",
        "Two conditions, and the second one only where the layer slides: not later than the query;"
        " and fewer than `window` places back. Layers 5, 11, 17 are those for which (layer + 1) % 6"
        " is 0.",
        "query = torch.arange(s - t, s)[:, None]; key = torch.arange(s); seen = key <= query; if"
        " (layer + 1) % every: seen &= key > query - window",
    ),
)


# --- train_bpe ------------------------------------------------------------------------------------


def _texts() -> list[tuple]:
    def case(words: dict[str, int], merges: int) -> tuple:
        return list(words), list(words.values()), merges

    return [
        case({"banana": 3, "bandana": 2, "ana": 4}, 4),
        case({"aab": 2, "ab": 3}, 9),
        case({"aaa": 2, "aaaaa": 3, "ba": 4}, 3),
        case({"ab": 5, "cbbb": 3, "aaaab": 5}, 6),  # all that may be done with a tie differs
        case({"abbbb": 5, "aabbb": 5, "aaa": 4}, 6),
        case({"xy": 1, "zy": 1, "yz": 1}, 3),
        case({"the": 9, "then": 4, "other": 3, "hen": 5, "tone": 2, "note": 2}, 12),
        case({"low": 2}, 0),
        case({"über": 3, "übel": 2}, 2),
    ]


def _pairs(parts: list[str]) -> list[tuple[str, str]]:
    return list(zip(parts, parts[1:], strict=False))


def _pairs_apart(parts: list[str]) -> list[tuple[str, str]]:
    """Without those that share a part with an equal one just counted."""
    found, last = [], -2
    for place, pair in enumerate(_pairs(parts)):
        if place == last + 1 and found and pair == found[-1]:
            continue
        found.append(pair)
        last = place
    return found


def _joined(parts: list[str], pair: tuple[str, str], most: int | None = None) -> list[str]:
    result, place, times = [], 0, 0
    while place < len(parts):
        hit = tuple(parts[place : place + 2]) == pair and (most is None or times < most)
        result.append("".join(pair) if hit else parts[place])
        place, times = place + 1 + hit, times + hit
    return result


def _joined_from_the_right(parts: list[str], pair: tuple[str, str]) -> list[str]:
    mirrored = _joined([part[::-1] for part in parts[::-1]], (pair[1][::-1], pair[0][::-1]))
    return [part[::-1] for part in mirrored[::-1]]


def _joined_as_text(parts: list[str], pair: tuple[str, str]) -> list[str]:
    return " ".join(parts).replace(" ".join(pair), "".join(pair)).split(" ")


def train_bpe(
    words: list[str],
    counts: list[int],
    merges: int,
    *,
    of_word: Callable[[list[str]], list] = _pairs,
    times: Callable[[int], int] = lambda count: count,
    best: Callable = lambda counts: min(counts, key=lambda pair: (-counts[pair], pair)),
    join: Callable[[list[str], tuple[str, str]], list[str]] = _joined,
    least: int = 2,
    number: Callable[[int], int] = lambda merges: merges,
    one_text: bool = False,
    guarded: bool = True,
    give: Callable[[list], list] = lambda found: found,
) -> list[tuple[str, str]]:
    """The merges in their order. The reference, or with one thing changed."""
    own = [(list(word), count) for word, count in zip(words, counts, strict=True)]
    if one_text:
        own = [([letter for parts, count in own for letter in parts * count], 1)]
    found = []
    while len(found) < number(merges):
        places = Counter()
        for parts, count in own:
            for pair in of_word(parts):
                places[pair] += times(count)
        if guarded and not places:
            break
        pair = best(places)
        if places[pair] < least:
            break
        found.append(pair)
        own = [(join(parts, pair), count) for parts, count in own]
    return give(found)


def _counted_once(words: list[str], counts: list[int], merges: int) -> list[tuple[str, str]]:
    found = Counter()
    for word, count in zip(words, counts, strict=True):
        for pair in _pairs(list(word)):
            found[pair] += count
    order = sorted(found, key=lambda pair: (-found[pair], pair))
    return [pair for pair in order if found[pair] >= 2][:merges]


_TIES = (
    "Of pairs that are equally frequent another one is taken. Take the first in Python's order of"
    " tuples: min of those pairs."
)
_EMPTY = (
    "When every word is one part, there is no pair left, and your function looks for the most"
    " frequent one of none. Stop there, and return what was found."
)

TRAIN_BPE = Exercise(
    name="train_bpe",
    transfer=True,
    reference=train_bpe,
    cases=_texts,
    axes="",
    checked=(
        "all merges and their order for 9 lists of words: with ties, repeated letters, pairs that"
        " occur once, more merges asked for than there are, and none; input unchanged"
    ),
    mistakes=(
        Mistake(
            "counts ignored",
            partial(train_bpe, times=lambda count: 1),
            "The words' counts play no part: each word counts once. A word that is there 9 times"
            " brings each of its pairs 9 times.",
        ),
        Mistake(
            "once per word",
            partial(train_bpe, of_word=lambda parts: list(dict.fromkeys(_pairs(parts)))),
            "A pair counts once for each word, even where it stands in the word several times."
            " Count every place.",
        ),
        Mistake(
            "overlapping ones once",
            partial(train_bpe, of_word=_pairs_apart),
            "Overlapping pairs are counted once. In a a a the pair (a, a) stands at two places, and"
            " both count.",
        ),
        Mistake(
            "ties: the first seen",
            partial(train_bpe, best=lambda counts: max(counts, key=counts.get)),
            _TIES,
        ),
        Mistake(
            "ties: the last seen",
            partial(train_bpe, best=lambda counts: max(reversed(counts), key=counts.get)),
            _TIES,
        ),
        Mistake(
            "ties: the largest",
            partial(
                train_bpe, best=lambda counts: max(counts, key=lambda pair: (counts[pair], pair))
            ),
            _TIES,
        ),
        Mistake(
            "ties: by the joined text",
            partial(
                train_bpe,
                best=lambda counts: min(counts, key=lambda pair: (-counts[pair], "".join(pair))),
            ),
            _TIES,
        ),
        Mistake(
            "ties: the shortest",
            partial(
                train_bpe,
                best=lambda counts: min(
                    counts, key=lambda pair: (-counts[pair], len("".join(pair)), pair)
                ),
            ),
            _TIES,
        ),
        Mistake(
            "ties: the longest",
            partial(
                train_bpe,
                best=lambda counts: max(
                    counts, key=lambda pair: (counts[pair], len("".join(pair)))
                ),
            ),
            _TIES,
        ),
        Mistake(
            "the rarest",
            partial(
                train_bpe, best=lambda counts: min(counts, key=lambda pair: (counts[pair], pair))
            ),
            "The rarest pair is merged. Take the most frequent one.",
        ),
        Mistake(
            "first place alone",
            partial(train_bpe, join=partial(_joined, most=1)),
            "In each word the pair is merged at its first place alone. Merge it wherever it"
            " stands.",
        ),
        Mistake(
            "from the right",
            partial(train_bpe, join=_joined_from_the_right),
            "Merging goes from right to left. In a a a the first two become aa, and the last a"
            " stays: from left to right.",
        ),
        Mistake(
            "as text",
            partial(train_bpe, join=_joined_as_text),
            "The merge replaces text, and finds a pair where there is none: in the parts ba and b"
            ' the text "ba b" has "a b" inside. Compare whole parts.',
        ),
        Mistake(
            "counted once",
            _counted_once,
            "All merges are pairs of single letters: the pairs are counted only once, at the start."
            " After each merge count again, with the parts that there are then.",
        ),
        Mistake(
            "single ones too",
            partial(train_bpe, least=1),
            "It goes on with pairs that occur only once. Stop where the most frequent pair occurs"
            " less than twice.",
        ),
        Mistake(
            "more than twice",
            partial(train_bpe, least=3),
            "It stops at pairs that occur twice. Those are still merged; stop where the most"
            " frequent pair occurs less than twice.",
        ),
        Mistake(
            "one too many",
            partial(train_bpe, number=lambda merges: merges + 1),
            "There is one merge too many. `merges` is their largest number; with 0 the list is"
            " empty.",
        ),
        Mistake(
            "one too few",
            partial(train_bpe, number=lambda merges: merges - 1),
            "There is one merge too few.",
        ),
        Mistake(
            "letters counted as merges",
            lambda words, counts, merges: train_bpe(
                words, counts, max(0, merges - len(set("".join(words))))
            ),
            "There are too few merges: the letters seem to count among them. `merges` is the number"
            " of pairs, not the size of the vocabulary.",
        ),
        Mistake(
            "a mark at the end",
            lambda words, counts, merges: train_bpe([f"{w}</w>" for w in words], counts, merges),
            "Each word has a mark at its end, and the mark is merged, too. The parts of a word are"
            " its letters alone.",
        ),
        Mistake(
            "an underscore at the end",
            lambda words, counts, merges: train_bpe([f"{w}_" for w in words], counts, merges),
            "Each word has a mark at its end, and the mark is merged, too. The parts of a word are"
            " its letters alone.",
        ),
        Mistake(
            "in any order",
            partial(train_bpe, of_word=lambda parts: [tuple(sorted(one)) for one in _pairs(parts)]),
            "(a, b) and (b, a) are counted as one. A pair has a left and a right part.",
        ),
        Mistake(
            "over the ends of words",
            partial(train_bpe, one_text=True),
            "Pairs are counted from the end of one word to the start of the next, too. A merge"
            " never reaches over the end of a word: take each word for itself.",
        ),
        Mistake(
            "joined",
            partial(train_bpe, give=lambda found: ["".join(pair) for pair in found]),
            "The list has the merged texts. From those nobody could tell which two parts were"
            " merged: return the pairs, (left, right).",
        ),
        Mistake(
            "joined with a space",
            partial(train_bpe, give=lambda found: [" ".join(pair) for pair in found]),
            'The list has texts such as "a b", as files have them. Here it has pairs: ("a", "b").',
        ),
        Mistake(
            "lists",
            partial(train_bpe, give=lambda found: [list(pair) for pair in found]),
            "The pairs are lists. Return tuples: (left, right).",
        ),
        Mistake(
            "a tuple",
            partial(train_bpe, give=tuple),
            "It returns a tuple of pairs. Return a list.",
        ),
        Mistake(
            "a set",
            partial(train_bpe, give=set),
            "It returns a set. The order of the merges is what the tokenizer goes by: return a"
            " list, the first found first.",
        ),
        Mistake(
            "sorted",
            partial(train_bpe, give=sorted),
            "The merges are sorted. Their order is what the tokenizer goes by: the first found"
            " first.",
        ),
        Mistake(
            "backwards",
            partial(train_bpe, give=lambda found: found[::-1]),
            "The merges come last first. Return the first found first.",
        ),
    ),
    crashes=tuple(
        Mistake(name, partial(train_bpe, guarded=False, best=best), _EMPTY)
        for name, best in (
            ("min of none", lambda counts: min(counts, key=lambda pair: (-counts[pair], pair))),
            ("max of none", lambda counts: max(counts, key=counts.get)),
            ("max of no counts", lambda counts: max(counts.values()) and max(counts)),
            ("first of none", lambda counts: counts.most_common(1)[0][0]),
        )
    ),
    hints=(
        "Keep each word as a list of its parts, at first its letters. One round: count, choose,"
        " merge. Do the example of the text on paper, with the list of parts beside it.",
        "Three small steps, each a function of its own: how often each pair occurs (a Counter, plus"
        " the word's count at each place); which is best (the largest count, then the smallest"
        " pair); the parts of a word after a merge (a loop that goes on by 2 where it merged, else"
        " by 1).",
        "best = min(counts, key=lambda pair: (-counts[pair], pair)); stop if there are no counts or"
        " counts[best] < 2. Merging: while i < len(parts): if tuple(parts[i : i + 2]) == best,"
        " append both joined and i += 2, else append parts[i] and i += 1.",
    ),
)

EXERCISES = (SWIGLU, HALVES, NORM_AND_TURN, LAYER_MASK, TRAIN_BPE)


# --- at work in a real model ----------------------------------------------------------------------

QUESTION = "What is the capital of France?"
TINY = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
}


def _tiny(kind: str, **sizes) -> Gemma:
    """A model of a kind with random weights that make its answers depend on every part."""
    model = Gemma(text_config(kind, **TINY, **sizes)).eval()
    random = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=random) * 0.4)
    return model


def _published(name: str) -> tuple[Gemma, Tokenizer] | None:
    """A published model and its tokenizer; if it is not here, that is said, and None returned."""
    try:
        return variants.load(name)
    except PublishedError:
        print(
            f"{PUBLISHED[name].title} is not on this computer (`python course.py weights {name}`"
            " brings it), so your pieces work in a small model with random weights."
        )


def _alike(name: str, mine: Callable[[], Tensor], right: Tensor, more: str = "") -> bool:
    """Whether a learner's logits are the package's; displayed."""
    try:
        found = mine()
    except BaseException as error:
        show(failed(name, error))
        return False
    apart = (found - right).abs().max().item()
    wrong = not apart <= 1e-3 * right.abs().max().item()  # also where it is no number
    told = f"The logits differ from the package's by {apart:.1g} at most.{more}"
    show(Outcome(name, WRONG if wrong else CORRECT, told))
    return not wrong


@torch.inference_mode()
def try_llama(swiglu: Callable, halves_from_pairs: Callable, question: str = QUESTION) -> bool:
    """A Llama with a learner's MLP, and with rows put in order by a learner; display the outcome.

    It is SmolLM2 if that is there, which then answers a question; else a small random model.
    Returns whether the logits are those of the package.
    """
    if published := _published("smollm2"):
        model, tokenizer = published
        file = GGUF(find("smollm2"))
        ids = tokenizer.encode(chat_prompt([("user", question)]))
        stored = {
            name: file[their_name(name, model.config)]
            for name in model.state_dict()
            if name.endswith(("q_proj.weight", "k_proj.weight"))
        }
    else:
        model, ids = _tiny("llama"), [5, 1, 42, 7, 19, 23]
        back = torch.arange(12).unflatten(0, (2, 6)).T.flatten()  # halves to pairs
        stored = {
            name: weight.unflatten(0, (-1, 12))[:, back].flatten(0, 1)
            for name, weight in model.state_dict().items()
            if name.endswith(("q_proj.weight", "k_proj.weight"))
        }
    ids = torch.tensor([ids])
    right = model.logits(causal_states(model, ids))

    def mine() -> Tensor:
        for name, weight in stored.items():
            own = halves_from_pairs(weight.clone(), model.config.head_dim)
            model.get_parameter(name).copy_(own)
        for layer in model.layers:
            mlp = layer.mlp
            weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
            mlp.forward = lambda x, weights=weights: swiglu(x, *weights)
        logits = model.logits(causal_states(model, ids))
        if published:
            told = variants.answer(model, tokenizer, question, max_new_tokens=24)
            print(f"{question!r} -> {told!r}")
        return logits

    return _alike("a Llama with your pieces", mine, right)


@torch.inference_mode()
def try_gemma3(norm_and_turn: Callable, layer_mask: Callable) -> bool:
    """Gemma 3 with a learner's norms and masks; display the outcome.

    It is Gemma 3 270M if that is there; else a small random model. Returns whether the logits are
    those of the package.
    """
    if published := _published("gemma3"):
        model, tokenizer = published
        ids = tokenizer.encode("The capital of France is Paris, and the capital of Italy is")
        model.config = replace(model.config, sliding_window=4)  # shorter than the text
    else:
        model = _tiny("gemma3_text", sliding_window=4, rope_local_base_freq=20.0)
        ids = [5, 1, 42, 7, 19, 23, 88, 61, 3, 14]
    ids = torch.tensor([ids])
    right = model.logits(causal_states(model, ids))

    def mine() -> Tensor:
        for layer in model.layers:
            attention = layer.self_attn
            attention.forward = partial(_attention, attention, norm_and_turn)
        config, t = model.config, ids.shape[1]
        x, places = model.embed(ids), torch.arange(1, t + 1)[None]
        for number, layer in enumerate(model.layers):
            slides = config.slides(number)
            base = config.rope_local_base_freq if slides else config.rope_theta
            mask = layer_mask(number, t, t, config.sliding_window, config.sliding_window_pattern)
            x = layer(x, rope_angles(places, config.head_dim, base), mask[None, None])
        return model.logits(model.norm(x))

    return _alike("Gemma 3 with your pieces", mine, right)


def _attention(module, norm_and_turn: Callable, x: Tensor, angles, mask: Tensor, cache=None):
    """The package's attention with a learner's way from projections to queries and keys."""
    projected = (
        (module.q_proj(x), module.heads),
        (module.k_proj(x), module.kv_heads),
        (module.v_proj(x), module.kv_heads),
    )
    query, key, value = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y, heads in projected)
    query = norm_and_turn(query, module.q_norm.weight, *angles, module.q_norm.eps)
    key = norm_and_turn(key, module.k_norm.weight, *angles, module.k_norm.eps)
    mixed = module.mix(query * module.scale, key, value, mask)
    return module.o_proj(mixed.transpose(1, 2).flatten(-2))


def english_words(number: int = 1000) -> tuple[list[str], list[int]]:
    """The most frequent words of English text that every Python brings, and how often each occurs.

    It is the text of `help()` about the language itself. In the words bytes are letters, as in
    `minipali.byte_level_bpe`: a space in front is \u0120.
    """
    from pydoc_data.topics import topics

    letters = byte_letters()
    found = Counter(
        "".join(letters[byte] for byte in word.encode())
        for word in split_words("\n".join(topics.values()))
        if word.strip().isalpha()
    )
    frequent = found.most_common(number)
    return [word for word, _ in frequent], [count for _, count in frequent]


def merges_beside(train_bpe: Callable, words: list[str], counts: list[int], number: int = 40):
    """Print the first merges of a learner's function beside SmolLM2's, if it is there."""
    name = "merges beside SmolLM2's"
    try:
        mine = [" ".join(pair) for pair in train_bpe(list(words), list(counts), number)]
    except BaseException as error:
        return show(failed(name, error))
    try:
        theirs = GGUF(find("smollm2")).metadata["tokenizer.ggml.merges"][:number]
    except PublishedError:
        theirs = []
    for place in range(min(10, len(mine))):
        print(f"{place + 1:3}  {mine[place]:10}  {theirs[place] if theirs else ''}".rstrip())
    if theirs:
        common = len(set(mine) & set(theirs))
        print(f"Of your first {len(mine)} merges {common} are among SmolLM2's first {number}.")
    else:
        print("SmolLM2 is not on this computer: `python course.py weights` brings it.")
