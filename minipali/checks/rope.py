"""Lesson 07: rotary positions: angles, turning, which vectors are turned, and longer texts."""

import math
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
FAR = torch.tensor([[37], [200_000], [6]])  # behind the end of any table


def _angles_cases() -> list[tuple]:
    # The first case keeps all angles small, also those of the wrong exponents: huge angles differ
    # with the way they are computed, and then no mistake could be recognised.
    return [(NEAR, 10, 100.0), (FAR, 4, 500_000.0), (LONG.int(), 10, 500)]


def _rope_angles(
    positions: Tensor,
    head_dim: int,
    theta: float,
    *,
    pairs: Callable[[int], int] = lambda k: k // 2,
    exponent: Callable[[Tensor, int], Tensor] = lambda i, k: 2 * i / k,
    sign: int = -1,
    base: Callable[[float], float] = lambda theta: theta,
    speeds_of: Callable[[Tensor], Tensor] = lambda speeds: speeds,
    places: Callable[[Tensor], Tensor] = lambda positions: positions,
    finish: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda a: (a.cos(), a.sin()),
    order: Callable[[tuple], object] = lambda both: both,
    dtype: torch.dtype = torch.float32,
    of_positions: torch.dtype = torch.float32,
    of_speeds: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """rope_angles with one thing changed."""
    speeds = base(theta) ** (sign * exponent(torch.arange(pairs(head_dim)), head_dim))
    speeds = speeds_of(speeds).to(of_speeds).to(dtype)
    where = places(positions)[..., None].to(of_positions).to(dtype)
    return order(tuple(one.float() for one in finish(where * speeds)))


def _count(positions: Tensor) -> Tensor:
    """0, 1, 2, ... in every row, whatever the positions are."""
    return torch.zeros_like(positions) + torch.arange(positions.shape[1])


def _first_row(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def _last_row(x: Tensor) -> Tensor:
    return x[-1:].expand_as(x)


def _rounded(to: torch.dtype, then: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda angles: (angles.to(to).to(then).cos(), angles.to(to).to(then).sin())


def _exactly(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Of angles that may be coarse."""
    return angles.float().cos(), angles.float().sin()


def _twice(angles: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _twice_in_turns(angles: Tensor) -> tuple[Tensor, Tensor]:
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


_TWICE = (
    "There is an angle for each of the k numbers, each one twice. That suits the formula x * cos +"
    " rotate_half(x) * sin of some libraries. Here the contract is one angle a pair: k / 2 of them."
)
_COARSE = (
    "The angles were computed in bfloat16, where 301 and 302 are one number. Compute positions,"
    " speeds and angles in float32; only the turned vectors may be bfloat16."
)
_COARSE_HALF = (
    "The angles were computed in float16, which has 11 bits for its digits: near 300 an angle is"
    " wrong by up to 0.1. Compute positions, speeds and angles in float32."
)
_TABLE = (
    "Far-off positions get the angles of a nearer one, as if the angles came from a table that ends"
    " there. No position is the last: compute the angles from the positions that are given."
)
_BY_HEART = (
    "theta is written by heart: 10,000. It is an argument, because models differ in it: use the"
    " theta that is given."
)


ROPE_ANGLES = Exercise(
    name="rope_angles",
    reference=rope.rope_angles,
    cases=_angles_cases,
    axes="b t pair; b t pair",
    parts=("cos", "sin"),
    # In float32 the second angle of position 200,000, which is 283, is known to about 0.00006,
    # whichever way it is computed.
    tolerance=3e-4,
    checked=(
        "shape, dtype and every value of cos and sin for 3 batches: rows that start at different"
        " positions, one new token a row, positions above 256 and one of 200,000, head widths 4 and"
        " 10, three values of theta, positions in int64 and int32; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "step of one",
            partial(_rope_angles, exponent=lambda i, k: i / k),
            "The exponent grows in steps of 1 / k. There are k / 2 pairs and the exponent must run"
            " over the whole range from 0 to (almost) 1: theta ** (-2 * i / k) for i = 0, 1, ...",
        ),
        Mistake(
            "sign of the exponent",
            partial(_rope_angles, sign=1),
            "The exponent has the wrong sign: the pairs get faster and faster, up to thousands of"
            " radians a step. Pair 0 is the fastest, with 1 radian a step, and the others are"
            " slower: theta ** (-2 * i / k).",
        ),
        Mistake(
            "step of four",
            partial(_rope_angles, exponent=lambda i, k: 4 * i / k),
            "The exponent grows in steps of 4 / k, twice as fast as it should. If i counts in twos"
            " already, as torch.arange(0, k, 2) does, it is 2 * i: do not multiply by 2 again, and"
            " divide by k, not by k / 2.",
        ),
        Mistake(
            "last exponent is one",
            partial(_rope_angles, exponent=lambda i, k: i / (k // 2 - 1)),
            "The exponent runs to -1 itself, so the slowest pair turns by 1 / theta. It ends one"
            " step before: -2 * i / k for i = 0, 1, ..., k / 2 - 1.",
        ),
        Mistake("theta by heart", partial(_rope_angles, base=lambda theta: 10000.0), _BY_HEART),
        Mistake(
            "e for theta",
            partial(_rope_angles, base=lambda theta: math.e),
            "theta is not used: your speeds are exp(-2 * i / k). The base of the power is theta,"
            " not e: theta ** (-2 * i / k).",
        ),
        Mistake(
            "slowest pair first",
            partial(_rope_angles, speeds_of=lambda speeds: speeds.flip(0)),
            "The pairs come in reverse order, the slowest first. Pair 0 is the fastest, with 1"
            " radian a step.",
        ),
        Mistake(
            "all pairs alike",
            partial(_rope_angles, speeds_of=torch.ones_like),
            "All pairs turn by 1 radian a step. Each has a speed of its own: theta ** (-2 * i /"
            " k). (Do you divide with //? It cuts the exponent to a whole number.)",
        ),
        Mistake(
            "exponent cut to a whole number",
            partial(_rope_angles, exponent=lambda i, k: -(-2 * i // k)),
            "The exponent is cut to a whole number, as // does it: 0 for the first pair and -1 for"
            " all others. Divide with /: -2 * i / k is a fraction.",
        ),
        *(
            Mistake(
                f"k speeds: {name}",
                partial(_rope_angles, pairs=lambda k: k, exponent=exponent),
                "There are k speeds, one for each number of a head. Two numbers turn together, as"
                " a pair: k / 2 speeds, for i = 0, 1, ..., k / 2 - 1.",
            )
            for name, exponent in (
                ("2 i / k", lambda i, k: 2 * i / k),
                ("i / k", lambda i, k: i / k),
            )
        ),
        *(
            Mistake(
                f"table of {size}",
                partial(_rope_angles, places=lambda p, size=size: p.clamp(max=size - 1)),
                _TABLE,
            )
            for size in (512, 1024, 2048, 4096, 8192, 32768, 131072)
        ),
        Mistake(
            "whole turns",
            partial(_rope_angles, speeds_of=lambda speeds: 2 * math.pi * speeds),
            "Your angles are 2 pi times too large, as if the speeds were turns a step. They are"
            " radians a step: position times speed, and nothing more.",
        ),
        Mistake(
            "degrees",
            partial(_rope_angles, speeds_of=lambda speeds: speeds * math.pi / 180),
            "Your angles are treated as degrees. They are radians, which cos and sin want: position"
            " times speed, and nothing more.",
        ),
        Mistake(
            "turned backwards",
            partial(_rope_angles, speeds_of=lambda speeds: -speeds),
            "The angles are negative, so that the sine has the wrong sign. Position times speed is"
            " positive; only the exponent of theta is negative.",
        ),
        Mistake(
            "pairs counted from one",
            partial(_rope_angles, exponent=lambda i, k: 2 * (i + 1) / k),
            "The pairs are counted from 1. The paper does that too, but then writes i - 1. With i ="
            " 0, 1, ... the first pair has exponent 0 and turns by 1 radian a step.",
        ),
        Mistake(
            "one subtracted from pairs counted from zero",
            partial(_rope_angles, exponent=lambda i, k: 2 * (i - 1) / k),
            "The exponent is -2 * (i - 1) / k, as in the paper, which counts the pairs from 1. Here"
            " i = 0, 1, ..., so it is -2 * i / k: the first pair turns by 1 radian a step.",
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
            "last row's positions for all",
            partial(_rope_angles, places=_last_row),
            "Every row got the angles of the last row. Rows of a batch may have different positions"
            " (prompts differ in length): keep the axis b.",
        ),
        Mistake(
            "positions from the smallest",
            partial(_rope_angles, places=lambda positions: positions - positions.min()),
            "The smallest position is subtracted from all. Use the positions as they are: when the"
            " model writes, a call holds one new token, far from 0.",
        ),
        Mistake(
            "pairs before tokens",
            partial(_rope_angles, order=lambda both: tuple(one.mT for one in both)),
            "The pairs stand before the tokens, (b, k / 2, t). The contract is (b, t, k / 2):"
            " positions[..., None] times the speeds.",
        ),
        Mistake(
            "positions one too high",
            partial(_rope_angles, places=lambda positions: positions + 1),
            "1 is added to each position. They are counted already: take them as they are.",
        ),
        Mistake(
            "positions one too low",
            partial(_rope_angles, places=lambda positions: positions - 1),
            "1 is subtracted from each position. Take them as they are; where they begin is not"
            " your task.",
        ),
        Mistake(
            "positions from each row's start",
            partial(_rope_angles, places=lambda positions: positions - positions[:, :1]),
            "Each row begins with the angle 0: its first position is subtracted. Use the positions"
            " as they are. When the model writes, a call holds one new token, far from 0.",
        ),
        Mistake(
            "sine before cosine",
            partial(_rope_angles, order=lambda both: both[::-1]),
            "Sine and cosine have changed places. The contract is (cos, sin).",
        ),
        Mistake(
            "angles themselves",
            partial(_rope_angles, finish=lambda angles: (angles, angles)),
            "These are the angles themselves. Return their cosine and their sine.",
        ),
        *(
            Mistake(f"{what} {dtype}", partial(_rope_angles, **change(dtype)), says)
            for dtype, says in ((torch.bfloat16, _COARSE), (torch.float16, _COARSE_HALF))
            for what, change in (
                ("angles in", lambda dtype: {"dtype": dtype}),
                (
                    "exponents, too, in",
                    lambda dtype: {"dtype": dtype, "exponent": lambda i, k: (2 * i / k).to(dtype)},
                ),
                ("angles rounded to", lambda dtype: {"finish": _rounded(dtype, torch.float32)}),
                (
                    "positions and speeds in",
                    lambda dtype: {"of_positions": dtype, "of_speeds": dtype},
                ),
            )
        ),
        Mistake(
            "cosines in bfloat16",
            partial(_rope_angles, finish=_rounded(torch.bfloat16, torch.bfloat16)),
            _COARSE,
        ),
        Mistake(
            "products in bfloat16",
            partial(_rope_angles, dtype=torch.bfloat16, finish=_exactly),
            _COARSE,
        ),
        Mistake(
            "positions in bfloat16", partial(_rope_angles, of_positions=torch.bfloat16), _COARSE
        ),
        Mistake(
            "speeds in bfloat16",
            partial(_rope_angles, of_speeds=torch.bfloat16),
            "The speeds were rounded to bfloat16. A small error of a speed is multiplied by the"
            " position, and grows with it. Compute positions, speeds and angles in float32; only"
            " the turned vectors may be bfloat16.",
        ),
        Mistake(
            "positions in float16",
            partial(_rope_angles, of_positions=torch.float16),
            "The positions were made float16, which holds no number above 65,504: there they are"
            " infinite (and above 2,048 only even ones are left). Compute positions, speeds and"
            " angles in float32.",
        ),
        *(
            Mistake(
                f"table of {size}, begun again",
                partial(_rope_angles, places=lambda p, size=size: p % size),
                "Far-off positions get the angles of nearer ones, as if positions began again after"
                " the end of a table. No position is the last: compute the angles from the"
                " positions that are given.",
            )
            for size in (1024, 2048, 4096)
        ),
        Mistake("an angle for each number", partial(_rope_angles, finish=_twice), _TWICE),
        Mistake(
            "an angle for each number, in turns",
            partial(_rope_angles, finish=_twice_in_turns),
            _TWICE,
        ),
        Mistake(
            "an axis for the heads",
            partial(_rope_angles, order=lambda both: tuple(one[:, None] for one in both)),
            "There is an axis for the heads already. Here the contract is (b, t, k / 2); apply_rope"
            " makes that axis.",
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

    # In bfloat16 and float16 only quarter turns, which are exact in whatever dtype they are
    # computed: it is free.
    quarters = torch.randint(0, 4, (2, 5, 3), generator=random)
    cos = torch.tensor([1.0, 0.0, -1.0, 0.0])[quarters]
    sin = torch.tensor([0.0, 1.0, 0.0, -1.0])[quarters]
    coarse = torch.randn(2, 4, 5, 6, generator=random).bfloat16()
    half = torch.randn(2, 1, 5, 6, generator=random).half()
    return [
        # As many rows as heads as tokens: who takes one for another gets numbers, and no error.
        case(NEAR[:, :3], 3, 6),
        case(LONG, 2, 6),
        case(ONE, 4, 10),
        case(LONG[:2, :3], 5, 8),
        (coarse, cos, sin),
        (half, cos, sin),
    ]


def _square(x: Tensor) -> bool:
    return len(set(x.shape[:3])) == 1


def _both(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y


def _apply_rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    split: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda x: x.chunk(2, dim=-1),
    spread: Callable[[Tensor], tuple[Tensor, Tensor]] = _both,
    turn: Callable = lambda a, b, c, s: (a * c[0] - b * s[0], b * c[1] + a * s[1]),
    join: Callable[[tuple], Tensor] = lambda halves: torch.cat(halves, dim=-1),
    rows: Callable[[Tensor], Tensor] = lambda x: x,
    place: Callable[[Tensor], int] = lambda x: 1,
    heads: slice = slice(None),
    finish: Callable[[Tensor, Tensor], Tensor] = lambda turned, x: turned,
    times: int = 1,
    computed_in: torch.dtype | None = None,
) -> Tensor:
    """apply_rope with one thing changed: each half may have cosines and sines of its own."""
    kind = x.dtype
    x = x if computed_in is None else x.to(computed_in)
    c, s = (spread(rows(one).unsqueeze(place(x))) for one in (cos.to(x.dtype), sin.to(x.dtype)))
    for _ in range(times):
        turned = join(turn(*split(x), c, s))
        turned = torch.cat((turned[:, heads], x[:, turned[:, heads].shape[1] :]), dim=1)
        x = finish(turned, x)
    return x.to(kind)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., ::2], x[..., 1::2]


def _zipped(halves: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack(halves, dim=-1).flatten(-2)


def _first_before(a: Tensor, b: Tensor, c: tuple, s: tuple) -> tuple[Tensor, Tensor]:
    a = a * c[0] - b * s[0]
    return a, b * c[1] + a * s[1]


def _second_before(a: Tensor, b: Tensor, c: tuple, s: tuple) -> tuple[Tensor, Tensor]:
    b = b * c[1] + a * s[1]
    return a * c[0] - b * s[0], b


def _in_turns(y: Tensor) -> tuple[Tensor, Tensor]:
    """Each number twice, side by side, and then in halves."""
    return y.repeat_interleave(2, dim=-1).chunk(2, dim=-1)


def _coarse(y: Tensor) -> Tensor:
    """With the digits of bfloat16."""
    return y.bfloat16().to(y.dtype)


def _coarse_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return _coarse(x).chunk(2, dim=-1)


_FORMULA = "first * cos - second * sin, and second * cos + first * sin"
_OLD_VALUES = (
    "One half was computed from the other half after that had been turned. Both need the old"
    " values: give the turned halves new names."
)

APPLY_ROPE = Exercise(
    name="apply_rope",
    reference=rope.apply_rope,
    cases=_apply_cases,
    axes="b h t k",
    checked=(
        "shape, dtype and every value on 6 batches: each row has its own positions, once there are"
        " as many rows as heads as tokens, x is once bfloat16 and once float16; inputs unchanged"
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
                _apply_rope,
                turn=lambda a, b, c, s: (a * c[0] + b * s[0], b * c[1] - a * s[1]),
            ),
            f"The pairs turn backwards: the minus is at the other sine. It belongs to the first"
            f" half: {_FORMULA}.",
        ),
        Mistake(
            "no minus",
            partial(
                _apply_rope,
                turn=lambda a, b, c, s: (a * c[0] + b * s[0], b * c[1] + a * s[1]),
            ),
            f"The minus is missing. Without it the pairs are not turned, and lengths are not kept:"
            f" {_FORMULA}.",
        ),
        Mistake(
            "minus twice",
            partial(
                _apply_rope,
                turn=lambda a, b, c, s: (a * c[0] - b * s[0], b * c[1] - a * s[1]),
            ),
            f"Both halves have a minus. Then the pairs are not turned, and lengths are not kept:"
            f" {_FORMULA}.",
        ),
        Mistake(
            "second half from the turned first half",
            partial(_apply_rope, turn=_first_before),
            _OLD_VALUES,
        ),
        Mistake(
            "first half from the turned second half",
            partial(_apply_rope, turn=_second_before),
            _OLD_VALUES,
        ),
        Mistake(
            "only the first half",
            partial(_apply_rope, turn=lambda a, b, c, s: (a * c[0] - b * s[0], b)),
            "Only the first half is turned, and the second comes out as it went in. Both numbers of"
            f" a pair change: {_FORMULA}.",
        ),
        Mistake(
            "only the second half",
            partial(_apply_rope, turn=lambda a, b, c, s: (a, b * c[1] + a * s[1])),
            "Only the second half is turned, and the first comes out as it went in. Both numbers of"
            f" a pair change: {_FORMULA}.",
        ),
        Mistake(
            "only the cosines",
            partial(_apply_rope, turn=lambda a, b, c, s: (a * c[0], b * c[1])),
            "The parts with the sine are missing, so nothing turns, and pairs become shorter:"
            f" {_FORMULA}.",
        ),
        *(
            Mistake(
                f"each number with itself: {sign:+d}",
                partial(
                    _apply_rope,
                    turn=lambda a, b, c, s, sign=sign: (
                        a * c[0] + sign * a * s[0],
                        b * c[1] + b * s[1],
                    ),
                ),
                "Each number is combined with itself. A pair is one number of each half, and each"
                f" needs the other: {_FORMULA}.",
            )
            for sign in (1, -1)
        ),
        Mistake(
            "halves zipped",
            partial(_apply_rope, join=_zipped),
            "The halves are turned rightly, but put together in turns, as if neighbours were pairs."
            " Put the second half after the first: torch.cat((first, second), dim=-1).",
        ),
        Mistake(
            "halves exchanged",
            partial(_apply_rope, join=lambda halves: torch.cat(halves[::-1], dim=-1)),
            "The halves are turned rightly, but the second stands before the first:"
            " torch.cat((first, second), dim=-1).",
        ),
        Mistake(
            "neighbours taken, halves joined",
            partial(_apply_rope, split=_neighbours),
            "Neighbours were taken as pairs, and the results joined as halves. These weights use"
            " the half-split layout on both sides: x.chunk(2, dim=-1), and torch.cat.",
        ),
        Mistake(
            "angles in turns",
            partial(_apply_rope, spread=_in_turns),
            "The pairs are right, but get the angles of other pairs: cos and sin were made as long"
            " as x by repeating each number (repeat_interleave). For the half-split layout they"
            " stand twice one behind the other: torch.cat((cos, cos), dim=-1).",
        ),
        Mistake(
            "one row's angles for all",
            partial(_apply_rope, rows=_first_row),
            "Every row of the batch was turned by the angles of the first row. cos and sin have"
            " an axis b too: make them (b, 1, t, k / 2) with cos[:, None].",
        ),
        Mistake(
            "last row's angles for all",
            partial(_apply_rope, rows=_last_row),
            "Every row of the batch was turned by the angles of the last row. cos and sin have"
            " an axis b too: make them (b, 1, t, k / 2) with cos[:, None].",
        ),
        *(
            Mistake(
                f"{which} token's angles for all",
                partial(_apply_rope, rows=rows),
                f"All tokens were turned by the angles of the {which} one. Each token has its own,"
                " on the axis t of cos and sin.",
            )
            for which, rows in (
                ("first", lambda y: y[:, :1].expand_as(y)),
                ("last", lambda y: y[:, -1:].expand_as(y)),
            )
        ),
        Mistake(
            "cosine and sine exchanged",
            partial(
                _apply_rope,
                turn=lambda a, b, c, s: (a * s[0] - b * c[0], b * s[1] + a * c[1]),
            ),
            "Cosine and sine have changed places. At position 0 the cosine is 1 and the sine is 0,"
            f" and nothing turns: {_FORMULA}.",
        ),
        Mistake(
            "heads for tokens",
            # Where there are as many heads as tokens; elsewhere it is an error of torch's.
            partial(_apply_rope, place=lambda x: 2 if _square(x) else 1),
            "Each head got the angles of one position, and all tokens the same. The new axis of cos"
            " and sin belongs before the tokens, for the heads: cos[:, None] is (b, 1, t, k / 2).",
        ),
        Mistake(
            "heads for rows",
            partial(_apply_rope, place=lambda x: 0 if _square(x) else 1),
            "Each head got the angles of one row of the batch. cos and sin have no axis for the"
            " heads, and torch takes b for it: put one in, cos[:, None] is (b, 1, t, k / 2).",
        ),
        Mistake(
            "first head alone",
            partial(_apply_rope, heads=slice(1)),
            "Only the first head is turned. All heads turn alike, by the same angles.",
        ),
        Mistake(
            "x added",
            partial(_apply_rope, finish=lambda turned, x: turned + x),
            "x is added to the turned vectors. The turned ones take its place: lengths must stay as"
            " they were.",
        ),
        Mistake(
            "first token alone",
            partial(
                _apply_rope,
                finish=lambda turned, x: torch.cat((turned[:, :, :1], x[:, :, 1:]), dim=2),
            ),
            "Only the first token is turned. Every token turns, each by its own angles.",
        ),
        Mistake(
            "mirrored pairs",
            partial(
                _apply_rope,
                split=lambda x: (x.chunk(2, dim=-1)[0], x.chunk(2, dim=-1)[1].flip(-1)),
                join=lambda halves: torch.cat((halves[0], halves[1].flip(-1)), dim=-1),
            ),
            "The first number is paired with the last, the second with the one before it. The"
            " second half runs in the same order as the first: number i with number i + k / 2.",
        ),
        Mistake(
            "turned twice",
            partial(_apply_rope, times=2),
            "The vectors are turned twice, so each angle is doubled.",
        ),
        *(
            Mistake(
                f"{what} {name}",
                partial(_apply_rope, **change),
                f"Numbers go through {name} on the way, whatever x is, and float32 ones lose digits"
                " there. Compute in float32, or in the dtype of x.",
            )
            for what, name, change in (
                ("computed in", "bfloat16", {"computed_in": torch.bfloat16}),
                ("computed in", "float16", {"computed_in": torch.float16}),
                ("angles in", "bfloat16", {"rows": _coarse}),
                ("result in", "bfloat16", {"finish": lambda y, x: _coarse(y)}),
                ("x in", "bfloat16", {"split": _coarse_halves}),
                (
                    "x and angles in",
                    "bfloat16",
                    {"split": _coarse_halves, "rows": _coarse},
                ),
                (
                    "x and result in",
                    "bfloat16",
                    {"split": _coarse_halves, "finish": lambda y, x: _coarse(y)},
                ),
                (
                    "x and result in",
                    "float16",
                    {
                        "split": lambda x: x.half().to(x.dtype).chunk(2, dim=-1),
                        "finish": lambda y, x: y.half().to(y.dtype),
                    },
                ),
                (
                    "angles and result in",
                    "bfloat16",
                    {"rows": _coarse, "finish": lambda y, x: _coarse(y)},
                ),
            )
        ),
    ),
    hints=(
        "Cut the last axis in two halves. Number i of the first and number i of the second half are"
        " one pair (x, y), and it turns to (x cos - y sin, y cos + x sin).",
        "x.chunk(2, dim=-1) gives both halves, (b, h, t, k / 2). cos has no axis for the heads:"
        " cos[:, None] is (b, 1, t, k / 2), and torch stretches it over all heads.",
        "return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1). If x"
        " is bfloat16, float32 angles make the result float32: .to(x.dtype) brings it back.",
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
    base: Callable[[float], float] = lambda theta: theta,
    before_the_split: bool = False,
    backwards: str = "",
    all_heads: bool = False,
    of_all_heads: bool = False,
    repeated: bool = False,
    axes: Callable[[Tensor], Tensor] = lambda y: y,
    order: Callable[[tuple], tuple] = lambda three: three,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flat (b, t, h*k), (b, t, g*k) twice -> (b, h, t, k), (b, g, t, k) twice.

    The reference, or with one thing changed. An empty split stands for a plain reshape.
    """

    def one(name: str, x: Tensor, n: int) -> Tensor:
        b, t, wide = x.shape

        def turn(y: Tensor) -> Tensor:
            k, of = y.shape[-1], heads if of_all_heads else 1
            cos, sin = rope.rope_angles(places(positions), k * of, base(theta))
            cos, sin = cos[..., : k // 2], sin[..., : k // 2]
            sin = -sin if name in backwards else sin
            return layout(y, cos, sin) if name in turned else y

        if before_the_split:
            x = turn(x[:, None])[:, 0]
        each = rearrange(x, split, h=n) if split else x.reshape(b, n, t, wide // n)
        return each if before_the_split else turn(each)

    kv_heads = heads if all_heads else kv_heads
    three = [one("q", query, heads), one("k", key, kv_heads), one("v", value, kv_heads)]
    if repeated:
        three[1:] = [y.repeat_interleave(heads // kv_heads, dim=1) for y in three[1:]]
    return order(tuple(map(axes, three)))


def _heads_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(8)

    def case(positions: Tensor, heads: int, kv_heads: int, head_dim: int, theta: float) -> tuple:
        b, t = positions.shape
        wide = (heads, kv_heads, kv_heads)
        flat = [torch.randn(b, t, n * head_dim, generator=random) for n in wide]
        return (*flat, positions, heads, kv_heads, theta)

    # All widths can be cut into `heads` heads, too: who cuts keys so gets numbers, and no error.
    return [case(NEAR, 4, 2, 8, 100.0), case(ONE % 50, 6, 1, 12, 30)]


ROTATE_HEADS = Exercise(
    name="rotate_heads",
    reference=rotate_heads,
    cases=_heads_cases,
    axes="b h t k; b g t k; b g t k",
    parts=("query", "key", "value"),
    tolerance=1e-4,
    checked=(
        "shape, dtype and every value of query, key and value on 2 batches: 4 and 2 heads of width"
        " 8, 6 heads and 1 of width 12, rows with different positions; inputs unchanged"
    ),
    mistakes=(
        *(
            Mistake(f"turned: {turned or 'nothing'}", partial(rotate_heads, turned=turned), says)
            for turned, says in (
                (
                    "qkv",
                    "The values are turned too. Only queries and keys are compared, and only there"
                    " the positions become a distance. Values are handed over as they are.",
                ),
                (
                    "q",
                    "The keys are not turned. A score depends on the distance only if query and key"
                    " are both turned, each by its own position.",
                ),
                (
                    "k",
                    "The queries are not turned. A score depends on the distance only if query and"
                    " key are both turned, each by its own position.",
                ),
                (
                    "qv",
                    "The values are turned and the keys are not. Queries and keys are compared, so"
                    " these two are turned; values are handed over as they are.",
                ),
                (
                    "kv",
                    "Keys and values are turned and the queries are not. Queries and keys are"
                    " compared, so these two are turned; values are handed over as they are.",
                ),
                (
                    "v",
                    "The values are turned, and nothing else. Queries and keys are compared, so"
                    " these two are turned; values are handed over as they are.",
                ),
                (
                    "",
                    "The heads are split rightly, but nothing is turned. Use your rope_angles and"
                    " your apply_rope on query and key.",
                ),
            )
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
            "one row's positions for all",
            partial(rotate_heads, places=_first_row),
            "Every row got the angles of the first row. Rows of a batch have positions of their"
            " own: hand rope_angles all of them, (b, t).",
        ),
        Mistake(
            "last row's positions for all",
            partial(rotate_heads, places=_last_row),
            "Every row got the angles of the last row. Rows of a batch have positions of their"
            " own: hand rope_angles all of them, (b, t).",
        ),
        Mistake(
            "turned twice",
            partial(rotate_heads, places=lambda positions: 2 * positions),
            "Queries and keys are turned twice, so each angle is doubled.",
        ),
        *(
            Mistake(
                f"positions from {name}",
                partial(rotate_heads, places=places),
                "Positions are counted from the first or the smallest one. Use them as they are:"
                " when the model writes, a call holds one new token, far from 0.",
            )
            for name, places in (
                ("each row's start", lambda positions: positions - positions[:, :1]),
                ("the smallest", lambda positions: positions - positions.min()),
            )
        ),
        Mistake("theta by heart", partial(rotate_heads, base=lambda theta: 10000.0), _BY_HEART),
        Mistake(
            "turned backwards",
            partial(rotate_heads, backwards="qk"),
            "The pairs turn backwards. A pair (x, y) becomes (x cos - y sin, y cos + x sin).",
        ),
        *(
            Mistake(
                f"{name} backwards",
                partial(rotate_heads, backwards=name[0]),
                f"The {name} turn backwards, against the others. Queries and keys are turned the"
                " same way, each by its own position; the difference comes about in the score.",
            )
            for name in ("queries", "keys")
        ),
        Mistake(
            "positions one too high",
            partial(rotate_heads, places=lambda positions: positions + 1),
            "1 is added to each position. They are counted already: take them as they are.",
        ),
        Mistake(
            "keys cut into all heads",
            partial(rotate_heads, all_heads=True),
            "Keys and values are cut into `heads` heads, so theirs are narrower than the queries'."
            " They have kv_heads heads, of the same width k.",
        ),
        Mistake(
            "speeds of the whole width",
            partial(rotate_heads, of_all_heads=True),
            "The speeds are those of all heads together, so they fall too slowly from pair to pair."
            " head_dim is the width k of one head: query.shape[-1] after the split.",
        ),
        Mistake(
            "heads behind the tokens",
            partial(rotate_heads, axes=lambda y: y.transpose(1, 2)),
            "The heads stand behind the tokens, (b, t, h, k). Bring them in front: (b, h, t, k).",
        ),
        Mistake(
            "cosine and sine exchanged",
            partial(rotate_heads, layout=lambda x, cos, sin: rope.apply_rope(x, sin, cos)),
            "Cosine and sine have changed places on the way: rope_angles returns (cos, sin), and"
            " apply_rope takes x, cos, sin.",
        ),
        Mistake(
            "keys and values repeated",
            partial(rotate_heads, repeated=True),
            "Keys and values are repeated for all query heads already. That comes later (lesson"
            " 09); here they keep their kv_heads heads.",
        ),
        Mistake(
            "keys and values exchanged",
            partial(rotate_heads, order=lambda three: (three[0], three[2], three[1])),
            "Key and value have changed places in what you return: query, key, value.",
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


def _stretch_cases() -> list[tuple]:
    # The wavelengths are 6, 29.2, 135, 628, 2916, 13537; then 6, 20, 63, 199; then 6, 49.9, 396; at
    # last 6, 63, 628, 6283.
    # What is compared with what changes the answer for some pair in one case or another: `trained`
    # is just below 29.2, and just above 49.9.
    # One row goes beyond `trained`, and one lies behind the end of many a table.
    # None is `trained` itself, where whoever stretches only what lies beyond may decide both ways.
    rows = torch.tensor([[44], [5000]]) + torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 9, 10])
    return [
        (LONG, 12, 10000.0, 29, 4.0),
        (NEAR.int(), 8, 100.0, 38, 2.5),
        (rows, 6, 500.0, 50, 8),
        (NEAR, 8, 100.0, 38, 1.0),
        (NEAR, 8, 10000.0, 100, 3.0),
    ]


def stretched_angles(
    positions: Tensor,
    head_dim: int,
    theta: float,
    trained: int,
    factor: float,
    *,
    exponent: Callable[[Tensor, int], Tensor] = lambda i, k: 2 * i / k,
    border: Callable[[Tensor, Tensor], Tensor] = lambda speeds, exponents: speeds,
    wavelength: Callable[[Tensor], Tensor] = lambda speeds: 2 * math.pi / speeds,
    limit: Callable[[float, float], float] = lambda trained, factor: trained,
    tokens: Callable[[Tensor, int], Tensor] = lambda positions, trained: positions == positions,
    slow: Callable[[Tensor, float], Tensor] = lambda wavelengths, limit: wavelengths > limit,
    changed: Callable[[Tensor, float], Tensor] = lambda speeds, factor: speeds / factor,
    base: Callable[[float, float, int], float] = lambda theta, factor, k: theta,
    places: Callable[[Tensor, int, float], Tensor] = lambda positions, trained, factor: positions,
    places_of_slow: Callable[[Tensor, int, float], Tensor] = (
        lambda positions, trained, factor: positions
    ),
    dtype: torch.dtype = torch.float32,
    of_positions: torch.dtype = torch.float32,
    of_speeds: torch.dtype = torch.float32,
    finish: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda a: (a.cos(), a.sin()),
    size: Callable[[float], float] = lambda factor: 1.0,
    order: Callable[[tuple], tuple] = lambda both: both,
) -> tuple[Tensor, Tensor]:
    """cos and sin, (b, t, k/2) each, in float32. The reference, or with one thing changed."""
    exponents = exponent(torch.arange(head_dim // 2), head_dim)
    speeds = base(theta, factor, head_dim) ** -exponents
    chosen = slow(wavelength(border(speeds, exponents)), limit(trained, factor))
    chosen = chosen & tokens(positions, trained)[..., None]
    speeds = torch.where(chosen, changed(speeds, factor), speeds).to(of_speeds).to(dtype)
    positions = places(positions, trained, factor)[..., None].to(of_positions).to(dtype)
    positions = torch.where(chosen, places_of_slow(positions, trained, factor), positions)
    return order(tuple(one.float() * size(factor) for one in finish(positions * speeds)))


def _soft_border(turns: int) -> Callable:
    """Slow below one turn, fast above so many, and a mixture between."""

    def angles(positions, head_dim, theta, trained, factor):
        speeds = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        fast = ((trained * speeds / (2 * math.pi) - 1) / (turns - 1)).clamp(0, 1)
        mixed = fast * speeds + (1 - fast) * speeds / factor
        return _exactly(positions[..., None] * mixed)

    return angles


def _by_length(length: Callable[[Tensor], Tensor]) -> Callable:
    """factor is read off the batch."""

    def angles(positions, head_dim, theta, trained, factor):
        longer = max(1.0, float(length(positions)) / trained)
        return stretched_angles(positions, head_dim, theta, trained, longer)

    return angles


def _one_speed(tokens: Callable[[int, float], float]) -> Callable:
    """All slow pairs make one turn in so many tokens."""

    def angles(positions, head_dim, theta, trained, factor):
        speed = 2 * math.pi / tokens(trained, factor)
        return stretched_angles(
            *(positions, head_dim, theta, trained, factor),
            changed=lambda speeds, factor: torch.full_like(speeds, speed),
        )

    return angles


def _not_yet_round(
    positions: Tensor, head_dim: int, theta: float, trained: int, factor: float
) -> tuple[Tensor, Tensor]:
    speeds = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions[..., None].float() * speeds
    angles = torch.where(angles < 2 * math.pi, angles / factor, angles)
    return angles.cos(), angles.sin()


def _theta_of_the_slow(power: Callable[[int], float]) -> Callable:
    """For the slow pairs theta is multiplied by a power of factor."""

    def angles(positions, head_dim, theta, trained, factor):
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        larger = theta * factor ** power(head_dim)
        return stretched_angles(
            *(positions, head_dim, theta, trained, factor),
            changed=lambda speeds, factor: larger**-exponents,
        )

    return angles


def _half(which: int) -> Callable[[Tensor, float], Tensor]:
    return lambda wavelengths, limit: (
        torch.arange(len(wavelengths)) * 2 // len(wavelengths) == which
    )


_RIGHT_PAIRS = (
    " Slowed by factor are the pairs that need more than `trained` tokens for one whole turn, and"
    " no others."
)

_OF_THIS_BATCH = (
    "You compare with the length or the largest position of this batch. `trained` says how long"
    " texts were in training." + _RIGHT_PAIRS
)

_ONLY_LONG = (
    "Texts that are not longer than `trained` are not stretched. Then the same distance has other"
    " angles in a short text than in a long one: the speeds do not depend on the positions."
)

_WHOLE_FACTOR = (
    "The slow pairs are slowed by a whole number. factor may be a fraction, as 2.5: divide by it as"
    " it is."
)

STRETCHED_ANGLES = Exercise(
    name="stretched_angles",
    transfer=True,
    reference=stretched_angles,
    cases=_stretch_cases,
    axes="b t pair; b t pair",
    parts=("cos", "sin"),
    tolerance=3e-4,
    checked=(
        "shape, dtype and every value of cos and sin in 5 cases: trained lengths of 29 to 100,"
        " factors 1, 2.5, 3, 4 and 8, some pairs slow and some fast, two of them by little,"
        " positions in int64 and int32; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "all pairs slowed",
            partial(stretched_angles, slow=lambda wavelengths, limit: wavelengths > 0),
            "All pairs are slowed, which is the same as dividing the positions by factor. Then"
            " neighbours stand closer together than ever in training, and the fast pairs can no"
            " longer tell them apart." + _RIGHT_PAIRS,
        ),
        Mistake(
            "fast pairs slowed",
            partial(stretched_angles, slow=lambda wavelengths, limit: wavelengths < limit),
            "The wrong pairs are slowed: the fast ones, which have been all the way round in"
            " training." + _RIGHT_PAIRS,
        ),
        Mistake(
            "none slowed",
            partial(stretched_angles, slow=lambda wavelengths, limit: wavelengths < 0),
            "No pair is slowed: these are the angles as before." + _RIGHT_PAIRS,
        ),
        Mistake(
            "without 2 pi",
            partial(stretched_angles, wavelength=lambda speeds: 1 / speeds),
            "You compare 1 / speed with `trained`: so many tokens turn a pair by 1 radian. A whole"
            " turn is 2 pi radians: 2 pi / speed tokens.",
        ),
        Mistake(
            "half a turn",
            partial(stretched_angles, wavelength=lambda speeds: math.pi / speeds),
            "You compare half a turn with `trained` (pi / speed), or one with twice as many. A"
            " whole turn is 2 pi radians: 2 pi / speed tokens.",
        ),
        Mistake(
            "two turns",
            partial(stretched_angles, wavelength=lambda speeds: 4 * math.pi / speeds),
            "You compare two turns with `trained`, or one with half of it. A whole turn is 2 pi"
            " radians: 2 pi / speed tokens.",
        ),
        Mistake(
            "rounded wavelengths",
            partial(stretched_angles, wavelength=lambda speeds: (2 * math.pi / speeds).floor()),
            "You round the tokens of a turn to whole ones before you compare, or compare with"
            " trained + 1. A pair that needs 29.2 tokens for a turn needs more than 29: compare 2"
            " pi / speed as it is, with `trained`.",
        ),
        Mistake(
            "compared with one less",
            partial(stretched_angles, limit=lambda trained, factor: trained - 1),
            "You compare with trained - 1, or round the tokens of a turn up. A pair that comes"
            " round within `trained` tokens keeps its speed." + _RIGHT_PAIRS,
        ),
        Mistake(
            "border of another theta",
            partial(stretched_angles, border=lambda speeds, exponents: 10000.0**-exponents),
            "Which pairs are slow is found with theta = 10,000, whatever theta is. Use the theta"
            " that is given for that, too.",
        ),
        Mistake(
            "compared with the longer text",
            partial(stretched_angles, limit=lambda trained, factor: trained * factor),
            "You compare with the longer text, trained * factor. What counts is what a pair has"
            " been through in training." + _RIGHT_PAIRS,
        ),
        Mistake(
            "compared with the shorter text",
            partial(stretched_angles, limit=lambda trained, factor: trained / factor),
            "You compare with trained / factor. What counts is whether a pair made one turn in"
            " `trained` tokens." + _RIGHT_PAIRS,
        ),
        Mistake(
            "the slower half",
            partial(stretched_angles, slow=_half(1)),
            "The second half of the pairs is slowed, wherever the limit lies. Compute how many"
            " tokens each pair needs for a turn." + _RIGHT_PAIRS,
        ),
        Mistake(
            "the faster half",
            partial(stretched_angles, slow=_half(0)),
            "The first half of the pairs is slowed, wherever the limit lies. Compute how many"
            " tokens each pair needs for a turn." + _RIGHT_PAIRS,
        ),
        Mistake(
            "made faster",
            partial(stretched_angles, changed=lambda speeds, factor: speeds * factor),
            "The slow pairs are made faster: their speed is multiplied by factor. Divide by it, so"
            " that they come no farther in a longer text than they came in training.",
        ),
        Mistake(
            "stopped",
            partial(stretched_angles, changed=lambda speeds, factor: torch.zeros_like(speeds)),
            "The slow pairs stand still. They are slowed: their speed is divided by factor.",
        ),
        Mistake(
            "factor squared",
            partial(stretched_angles, changed=lambda speeds, factor: speeds / factor**2),
            "The slow pairs are slowed by the square of factor. Is it applied twice, to the speed"
            " and to the position?",
        ),
        Mistake(
            "factor cut to a whole number",
            partial(stretched_angles, changed=lambda speeds, factor: speeds / int(factor)),
            _WHOLE_FACTOR,
        ),
        Mistake(
            "factor rounded up",
            partial(stretched_angles, changed=lambda speeds, factor: speeds / math.ceil(factor)),
            _WHOLE_FACTOR,
        ),
        Mistake(
            "root of factor",
            partial(stretched_angles, changed=lambda speeds, factor: speeds / factor**0.5),
            "The slow pairs are slowed by the root of factor. Divide their speed by factor itself.",
        ),
        Mistake(
            "positions of slow pairs cut to whole numbers",
            partial(
                stretched_angles,
                changed=lambda speeds, factor: speeds,
                places_of_slow=lambda positions, trained, factor: positions // factor,
            ),
            "For the slow pairs, positions are divided by factor and cut to whole numbers (//), so"
            " several tokens get one angle. Divide the speed by factor, and leave positions whole.",
        ),
        Mistake(
            "positions cut to whole numbers, all of them",
            partial(
                stretched_angles,
                slow=lambda wavelengths, limit: wavelengths < 0,
                places=lambda positions, trained, factor: positions // factor,
            ),
            "All positions are divided by factor and cut to whole numbers (//), so several tokens"
            " get one angle. Positions stay as they are." + _RIGHT_PAIRS,
        ),
        Mistake(
            "positions divided, too",
            partial(stretched_angles, places=lambda positions, trained, factor: positions / factor),
            "The positions are divided by factor, and the slow pairs are slowed besides. Leave the"
            " positions as they are." + _RIGHT_PAIRS,
        ),
        *(
            Mistake(
                f"soft border, as in {name}",
                _soft_border(turns),
                "Between slow and fast pairs there is a soft border, as in Llama 3.1 and in YaRN."
                " Here the border is hard: a pair is slowed by factor or not at all."
                + _RIGHT_PAIRS,
            )
            for name, turns in (("Llama 3.1", 4), ("YaRN", 32))
        ),
        Mistake(
            "the slower half, rounded down",
            partial(
                stretched_angles,
                slow=lambda wavelengths, limit: (
                    torch.arange(len(wavelengths)) >= len(wavelengths) // 2
                ),
            ),
            "The second half of the pairs is slowed, wherever the limit lies. Compute how many"
            " tokens each pair needs for a turn." + _RIGHT_PAIRS,
        ),
        Mistake(
            "the slowest pair alone",
            partial(
                stretched_angles,
                slow=lambda wavelengths, limit: wavelengths == wavelengths.max(),
            ),
            "Only the slowest pair is slowed." + _RIGHT_PAIRS,
        ),
        Mistake(
            "the first slow pair alone",
            partial(
                stretched_angles,
                slow=lambda wavelengths, limit: (
                    (wavelengths > limit) & ((wavelengths > limit).cumsum(0) == 1)
                ),
            ),
            "Of the slow pairs only the first, the fastest of them, is slowed. (Does a loop stop"
            " there?)" + _RIGHT_PAIRS,
        ),
        *(
            Mistake(
                f"one speed for all slow pairs: {name}",
                _one_speed(tokens),
                "All slow pairs get one and the same speed. Each keeps its own, divided by factor.",
            )
            for name, tokens in (
                ("a turn in the longer text", lambda trained, factor: trained * factor),
                ("a turn in training", lambda trained, factor: trained),
            )
        ),
        Mistake(
            "longest position for trained",
            lambda *given: stretched_angles(*given[:3], int(given[0].max()), given[4]),
            _OF_THIS_BATCH,
        ),
        Mistake(
            "length for trained",
            lambda *given: stretched_angles(*given[:3], given[0].shape[1], given[4]),
            _OF_THIS_BATCH,
        ),
        Mistake(
            "only in long texts",
            partial(
                stretched_angles,
                tokens=lambda positions, trained: (positions.max() > trained).expand_as(positions),
            ),
            _ONLY_LONG,
        ),
        Mistake(
            "only in long rows",
            partial(
                stretched_angles,
                tokens=lambda positions, trained: (
                    (positions > trained).any(dim=1, keepdim=True).expand_as(positions)
                ),
            ),
            _ONLY_LONG,
        ),
        *(
            Mistake(
                f"slow angles cut off at trained{name}",
                partial(
                    stretched_angles,
                    changed=lambda speeds, factor: speeds,
                    places_of_slow=lambda positions, trained, factor, less=less: positions.clamp(
                        max=trained - less
                    ),
                ),
                "The angles of the slow pairs stop at the one they had at the end of training, so"
                " tokens further on cannot be told apart. Divide the speed by factor.",
            )
            for name, less in (("", 0), (" - 1", 1))
        ),
        *(
            Mistake(
                f"by how much longer the batch is: {name}",
                _by_length(length),
                "The slow pairs are slowed by how much longer this batch is than `trained`, so that"
                " their speed changes from text to text. Divide it by factor.",
            )
            for name, length in (
                ("largest position", lambda positions: positions.max()),
                ("largest position + 1", lambda positions: positions.max() + 1),
            )
        ),
        *(
            Mistake(
                f"larger theta for the slow pairs: {name}",
                _theta_of_the_slow(power),
                "theta is made larger for the slow pairs, which slows each by another amount."
                " Divide their speed by factor, and leave theta.",
            )
            for name, power in (("factor", lambda k: 1), ("NTK-aware", lambda k: k / (k - 2)))
        ),
        Mistake(
            "larger theta",
            partial(
                stretched_angles,
                slow=lambda wavelengths, limit: wavelengths < 0,
                base=lambda theta, factor, k: theta * factor ** (k / (k - 2)),
            ),
            "This is another way to stretch: a larger theta ('NTK-aware'), which slows all pairs"
            " but the first, the slowest ones most. Here theta stays." + _RIGHT_PAIRS,
        ),
        Mistake(
            "theta times factor",
            partial(
                stretched_angles,
                slow=lambda wavelengths, limit: wavelengths < 0,
                base=lambda theta, factor, k: theta * factor,
            ),
            "theta is multiplied by factor, which slows all pairs but the first, each by another"
            " amount. Here theta stays." + _RIGHT_PAIRS,
        ),
        Mistake(
            "theta by heart",
            partial(stretched_angles, base=lambda theta, factor, k: 10000.0),
            _BY_HEART,
        ),
        Mistake(
            "positions begin again",
            partial(
                stretched_angles, places=lambda positions, trained, factor: positions % trained
            ),
            "Positions begin again after `trained` tokens, so tokens that are far apart get the"
            " same angles. Positions stay as they are; the speeds change.",
        ),
        *(
            Mistake(
                f"table of {size}",
                partial(
                    stretched_angles,
                    places=lambda positions, *_, size=size: positions.clamp(max=size - 1),
                ),
                _TABLE,
            )
            for size in (512, 1024, 2048, 4096)
        ),
        *(
            Mistake(
                f"positions end at trained{name}",
                partial(
                    stretched_angles,
                    places=lambda positions, trained, factor, less=less: positions.clamp(
                        max=trained - less
                    ),
                ),
                "All positions beyond training become one. Positions stay as they are; the speeds"
                " change.",
            )
            for name, less in (("", 0), (" - 1", 1))
        ),
        Mistake(
            "positions restart at 0",
            partial(stretched_angles, places=lambda positions, trained, factor: _count(positions)),
            "It looks like positions restart at 0 in every row. Use the positions that are given.",
        ),
        *(
            Mistake(
                f"only positions beyond trained{name}",
                partial(stretched_angles, **change),
                "Only tokens beyond `trained` are stretched, the others are not. Then the distance"
                " between two of them is no longer in their angles: all tokens turn by the same"
                " speeds.",
            )
            for name, change in (
                ("", {"tokens": lambda positions, trained: positions > trained}),
                (
                    ", counted from there",
                    {
                        "changed": lambda speeds, factor: speeds,
                        "places_of_slow": lambda positions, trained, factor: torch.where(
                            positions > trained, trained + (positions - trained) / factor, positions
                        ),
                    },
                ),
            )
        ),
        Mistake(
            "sine before cosine",
            partial(stretched_angles, order=lambda both: both[::-1]),
            "Sine and cosine have changed places. The contract is (cos, sin).",
        ),
        Mistake(
            "only tokens that have not been round",
            _not_yet_round,
            "It is decided for each token whether it has come round yet. A pair turns by one speed"
            " for all tokens, or distances are lost." + _RIGHT_PAIRS,
        ),
        Mistake(
            "attention made sharper",
            partial(stretched_angles, size=lambda factor: 0.1 * math.log(factor) + 1),
            "cos and sin are multiplied by a number that grows with factor, as YaRN does it. Then"
            " cos squared plus sin squared is no longer 1, and vectors become longer. Here only"
            " speeds change.",
        ),
        Mistake(
            "step of one",
            partial(stretched_angles, exponent=lambda i, k: i / k),
            "The exponent grows in steps of 1 / k. It is -2 * i / k for i = 0, 1, ..., as in"
            " rope_angles.",
        ),
        *(
            Mistake(
                f"an angle for each number: {name}",
                partial(stretched_angles, finish=finish),
                _TWICE,
            )
            for name, finish in (("halves", _twice), ("in turns", _twice_in_turns))
        ),
        *(
            Mistake(f"{what} bfloat16", partial(stretched_angles, **change), _COARSE)
            for what, change in (
                ("angles in", {"dtype": torch.bfloat16}),
                ("products in", {"dtype": torch.bfloat16, "finish": _exactly}),
                ("angles rounded to", {"finish": _rounded(torch.bfloat16, torch.float32)}),
                (
                    "positions and speeds in",
                    {"of_positions": torch.bfloat16, "of_speeds": torch.bfloat16},
                ),
            )
        ),
    ),
    hints=(
        "Begin as in rope_angles, with the k / 2 speeds. Only some of them change; positions do"
        " not.",
        "A pair that turns by `speed` radians a token needs 2 pi / speed tokens for a whole turn:"
        " its wavelength. Compare it with `trained`, for all pairs at once, and you get k / 2"
        " booleans.",
        "torch.where(wavelength > trained, speeds / factor, speeds) takes, pair by pair, the first"
        " or the second. The rest is as in rope_angles.",
    ),
)

EXERCISES = (ROPE_ANGLES, APPLY_ROPE, ROTATE_HEADS, STRETCHED_ANGLES)
