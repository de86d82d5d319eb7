"""Lesson 07: rotary positions: angles, turning, and which vectors are turned."""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

from minipali import rope
from minipali.checks.engine import Exercise, Mistake

# Every row has its own positions and none starts at 0 or 1, as when decoding goes on after prompts
# of different lengths: who counts from 0, or takes one row for all, gets other angles. Above 256,
# neighbouring whole numbers are equal in bfloat16.
NEAR = torch.tensor([[3, 4, 5, 6, 7], [20, 21, 23, 24, 25], [9, 10, 11, 12, 13]])
LONG = torch.tensor([[5, 6, 7, 8], [301, 302, 303, 304], [41, 42, 44, 45]])
ONE = torch.tensor([[37], [1100], [6]])  # one new token a row


def _angles_cases() -> list[tuple]:
    # The first case keeps all angles small, also those of the wrong exponents: huge angles differ
    # with the way they are computed, and then no mistake could be recognised.
    return [(NEAR, 10, 100.0), (ONE, 6, 10000.0), (LONG, 10, 10000.0)]


def _rope_angles(
    positions: Tensor,
    head_dim: int,
    theta: float,
    *,
    exponent: Callable[[Tensor, int], Tensor] = lambda i, k: -2 * i / k,
    places: Callable[[Tensor], Tensor] = lambda positions: positions,
    finish: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda a: (a.cos(), a.sin()),
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """rope_angles with one thing changed."""
    speeds = theta ** exponent(torch.arange(head_dim // 2), head_dim)
    cos, sin = finish(places(positions)[..., None].to(dtype) * speeds.to(dtype))
    return cos.float(), sin.float()


def _count(positions: Tensor) -> Tensor:
    """0, 1, 2, ... in every row, whatever the positions are."""
    return torch.zeros_like(positions) + torch.arange(positions.shape[1])


def _first_row(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def _twice(angles: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


ROPE_ANGLES = Exercise(
    name="rope_angles",
    reference=rope.rope_angles,
    cases=_angles_cases,
    axes="b t pair; b t pair",
    parts=("cos", "sin"),
    # In float32 the angle of position 1100 is known to about 0.00006, whichever way it is computed.
    tolerance=3e-4,
    checked=(
        "shape, dtype and every value of cos and sin for 3 batches: rows that start at different"
        " positions, one new token a row, positions above 256, head widths 6 and 10, two values of"
        " theta; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "step of one",
            partial(_rope_angles, exponent=lambda i, k: -i / k),
            "The exponent grows in steps of 1 / k. There are k / 2 pairs and the exponent must run"
            " over the whole range from 0 to (almost) 1: theta ** (-2 * i / k) for i = 0, 1, ...",
        ),
        Mistake(
            "sign of the exponent",
            partial(_rope_angles, exponent=lambda i, k: 2 * i / k),
            "The exponent has the wrong sign: the pairs get faster and faster, up to thousands of"
            " radians a step. Pair 0 is the fastest, with 1 radian a step, and the others are"
            " slower: theta ** (-2 * i / k).",
        ),
        Mistake(
            "pairs counted from one",
            partial(_rope_angles, exponent=lambda i, k: -2 * (i + 1) / k),
            "The pairs are counted from 1. The paper does that too, but then writes i - 1. With i ="
            " 0, 1, ... the first pair has exponent 0 and turns by 1 radian a step.",
        ),
        Mistake(
            "positions restart at 0",
            partial(_rope_angles, places=_count),
            "It looks like positions restart at 0: the angles are those of 0, 1, 2, ... in every"
            " row. Use the positions that are given. When the model writes, a call holds one new"
            " token whose position is far from 0.",
        ),
        Mistake(
            "one row's positions for all",
            partial(_rope_angles, places=_first_row),
            "Every row got the angles of the first row. Rows of a batch may have different"
            " positions (prompts differ in length): keep the axis b.",
        ),
        Mistake(
            "sine before cosine",
            partial(_rope_angles, finish=lambda a: (a.sin(), a.cos())),
            "Sine and cosine have changed places. The contract is (cos, sin).",
        ),
        Mistake(
            "angles in bfloat16",
            partial(_rope_angles, dtype=torch.bfloat16),
            "The angles were computed in bfloat16, where 301 and 302 are one number. Compute"
            " positions, speeds and angles in float32; only the turned vectors may be bfloat16.",
        ),
        Mistake(
            "an angle for each number",
            partial(_rope_angles, finish=_twice),
            "There is an angle for each of the k numbers, each one twice. That suits the formula x"
            " * cos + rotate_half(x) * sin of some libraries. Here the contract is one angle a"
            " pair: k / 2 of them.",
        ),
    ),
    hints=(
        "An angle is a position times a speed. There are b x t positions and k / 2 speeds, so the"
        " angles have shape (b, t, k / 2).",
        "The speeds: theta ** (-2 * i / k) for i = 0 ... k/2 - 1. torch.arange(0, k, 2) gives the"
        " 2 * i. With dtype=torch.float32 everything stays in float32.",
        "positions[..., None] has shape (b, t, 1), and times (k / 2,) gives (b, t, k / 2). Then"
        " return angles.cos(), angles.sin().",
    ),
)


def _apply_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(7)

    def case(positions: Tensor, heads: int, head_dim: int) -> tuple:
        shape = (len(positions), heads, positions.shape[1], head_dim)
        angles = rope.rope_angles(positions, head_dim, 100.0)
        return (torch.randn(shape, generator=random), *angles)

    return [case(LONG, 2, 6), case(ONE, 4, 10), case(LONG[:2, :3], 5, 8)]


def _apply_rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    split: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda x: x.chunk(2, dim=-1),
    turn: Callable = lambda a, b, cos, sin: (a * cos - b * sin, b * cos + a * sin),
    join: Callable[[tuple], Tensor] = lambda halves: torch.cat(halves, dim=-1),
    rows: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """apply_rope with one thing changed."""
    return join(turn(*split(x), rows(cos)[:, None], rows(sin)[:, None]))


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., ::2], x[..., 1::2]


def _zipped(halves: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack(halves, dim=-1).flatten(-2)


def _one_after_the_other(a: Tensor, b: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    a = a * cos - b * sin
    return a, b * cos + a * sin


APPLY_ROPE = Exercise(
    name="apply_rope",
    reference=rope.apply_rope,
    cases=_apply_cases,
    axes="b h t k",
    checked=(
        "shape, dtype and every value on 3 batches in which all axes differ and each row has its"
        " own positions; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "nothing is turned",
            lambda x, cos, sin: x.clone(),
            "Nothing is turned: the result is x. Without it the decoder does not know which token"
            " stands where.",
        ),
        Mistake(
            "neighbours are pairs",
            partial(_apply_rope, split=_neighbours, join=_zipped),
            "Neighbours were taken as pairs, (0, 1), (2, 3), ..., the interleaved layout of the"
            " paper. These weights use the half-split layout: number i of the first half pairs"
            " with number i of the second half.",
        ),
        Mistake(
            "turned backwards",
            partial(
                _apply_rope, turn=lambda a, b, cos, sin: (a * cos + b * sin, b * cos - a * sin)
            ),
            "The pairs turn backwards: the minus is at the other sine. It belongs to the first"
            " half: first * cos - second * sin, and second * cos + first * sin.",
        ),
        Mistake(
            "no minus",
            partial(
                _apply_rope, turn=lambda a, b, cos, sin: (a * cos + b * sin, b * cos + a * sin)
            ),
            "The minus is missing. Without it the pairs are not turned but mirrored, and lengths"
            " are not kept: first * cos - second * sin, and second * cos + first * sin.",
        ),
        Mistake(
            "second half from the turned first half",
            partial(_apply_rope, turn=_one_after_the_other),
            "The second half was computed from the first half after it had been turned. Both need"
            " the old values: give the turned halves new names.",
        ),
        Mistake(
            "halves zipped",
            partial(_apply_rope, join=_zipped),
            "The halves are turned rightly, but put together in turns, as if neighbours were pairs."
            " Put the second half after the first: torch.cat((first, second), dim=-1).",
        ),
        Mistake(
            "one row's angles for all",
            partial(_apply_rope, rows=_first_row),
            "Every row of the batch was turned by the angles of the first row. cos and sin have"
            " an axis b too: make them (b, 1, t, k / 2) with cos[:, None].",
        ),
        Mistake(
            "cosine and sine exchanged",
            partial(
                _apply_rope, turn=lambda a, b, cos, sin: (a * sin - b * cos, b * sin + a * cos)
            ),
            "Cosine and sine have changed places. At position 0 the cosine is 1 and the sine is 0,"
            " and nothing turns: first * cos - second * sin, and second * cos + first * sin.",
        ),
    ),
    hints=(
        "Cut the last axis in two halves. Number i of the first and number i of the second half are"
        " one pair (x, y), and it turns to (x cos - y sin, y cos + x sin).",
        "x.chunk(2, dim=-1) gives both halves, (b, h, t, k / 2). cos has no axis for the heads:"
        " cos[:, None] is (b, 1, t, k / 2), and torch stretches it over all heads.",
        "return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)",
    ),
)


def rotate_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    heads: int,
    kv_heads: int,
    theta: float,
    *,
    split: str = "b t (h k) -> b h t k",
    turned: str = "qk",
    layout: Callable = rope.apply_rope,
    places: Callable[[Tensor], Tensor] = lambda positions: positions,
    before_the_split: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat (b, t, h*k), (b, t, g*k) twice -> (b, h, t, k), (b, g, t, k) twice.

    The reference, or with one thing changed. An empty split stands for a plain reshape.
    """

    def one(name: str, x: Tensor, n: int) -> Tensor:
        b, t, wide = x.shape

        def turn(y: Tensor) -> Tensor:
            angles = rope.rope_angles(places(positions), y.shape[-1], theta)
            return layout(y, *angles) if name in turned else y

        if before_the_split:
            x = turn(x[:, None])[:, 0]
        heads = rearrange(x, split, h=n) if split else x.reshape(b, n, t, wide // n)
        return heads if before_the_split else turn(heads)

    return one("q", query, heads), one("k", key, kv_heads), one("v", value, kv_heads)


def _heads_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(8)

    def case(positions: Tensor, heads: int, kv_heads: int, head_dim: int, theta: float) -> tuple:
        b, t = positions.shape
        wide = (heads, kv_heads, kv_heads)
        flat = [torch.randn(b, t, n * head_dim, generator=random) for n in wide]
        return (*flat, positions, heads, kv_heads, theta)

    return [case(NEAR, 4, 2, 6, 100.0), case(ONE % 50, 6, 3, 10, 30.0)]


ROTATE_HEADS = Exercise(
    name="rotate_heads",
    reference=rotate_heads,
    cases=_heads_cases,
    axes="b h t k; b g t k; b g t k",
    parts=("query", "key", "value"),
    tolerance=1e-4,
    checked=(
        "shape, dtype and every value of query, key and value on 2 batches: 4 and 2 heads of width"
        " 6, 6 and 3 heads of width 10, rows with different positions; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "values turned too",
            partial(rotate_heads, turned="qkv"),
            "The values are turned too. Only queries and keys are compared, and only there the"
            " positions become a distance. Values are handed over as they are.",
        ),
        Mistake(
            "keys not turned",
            partial(rotate_heads, turned="q"),
            "The keys are not turned. A score depends on the distance only if query and key are"
            " both turned, each by its own position.",
        ),
        Mistake(
            "nothing is turned",
            partial(rotate_heads, turned=""),
            "The heads are split rightly, but nothing is turned. Use your rope_angles and your"
            " apply_rope on query and key.",
        ),
        Mistake(
            "turned before the split",
            partial(rotate_heads, before_the_split=True),
            "The vectors were turned before the heads were split, so numbers of different heads"
            " became pairs. Split first: every head has its own k / 2 pairs, with the same angles.",
        ),
        Mistake(
            "neighbours are pairs",
            partial(rotate_heads, layout=partial(_apply_rope, split=_neighbours, join=_zipped)),
            "Neighbours were taken as pairs, the interleaved layout. These weights use the"
            " half-split layout: number i of the first half of a head with number i of the second.",
        ),
        Mistake(
            "positions restart at 0",
            partial(rotate_heads, places=_count),
            "It looks like positions restart at 0 in every row. Use the positions that are given:"
            " when the model writes, a call holds one new token, far from 0.",
        ),
        Mistake(
            "heads split as (k h)",
            partial(rotate_heads, split="b t (k h) -> b h t k"),
            "The heads are split as (k h): each head got every h-th number. The weights keep the"
            " numbers of a head side by side: write (h k), the head as the slow axis.",
        ),
        Mistake(
            "reshaped without transpose",
            partial(rotate_heads, split=""),
            "The heads come from a reshape alone, (b, t, h k) to (b, h, t, k). It moves no axis, so"
            " numbers of different tokens end up in one head. Split first: (b, t, h, k), then"
            " transpose t and h.",
        ),
    ),
    hints=(
        "Split all three into heads first, as in lesson 03. Then turn two of the three.",
        "rearrange(query, 'b t (h k) -> b h t k', h=heads). Keys and values have kv_heads heads of"
        " the same width k. The width of a head is query.shape[-1] after the split.",
        "cos, sin = rope_angles(positions, k, theta) serves both: apply_rope(query, cos, sin) and"
        " apply_rope(key, cos, sin). Return query, key, value, with the value as it is.",
    ),
)

EXERCISES = (ROPE_ANGLES, APPLY_ROPE, ROTATE_HEADS)
