"""Lesson 09: key and value heads that are shared by groups of query heads."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.attention import attention_weights
from minipali.checks.engine import Exercise, Mistake
from minipali.gqa import repeat_kv
from minipali.rope import apply_rope, rope_angles


def _repeat_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(9)
    sizes = ((3, 2, 5, 4), 2), ((2, 3, 4, 7), 3), ((3, 2, 5, 6), 4), ((2, 4, 3, 5), 1)
    return [(torch.randn(shape, generator=random), times) for shape, times in sizes]


def _copies_inside_the_tokens(x: Tensor, times: int) -> Tensor:
    b, g, s, k = x.shape
    return x[:, :, :, None].expand(b, g, s, times, k).reshape(b, g * times, s, k)


def _averaged(x: Tensor, times: int) -> Tensor:
    return x.mean(dim=1, keepdim=True).expand(-1, x.shape[1] * times, -1, -1)


REPEAT_KV = Exercise(
    name="repeat_kv",
    reference=repeat_kv,
    cases=_repeat_cases,
    axes="b h s k",
    checked=(
        "shape, dtype and every value on 4 batches, with 2, 3 and 4 key/value heads repeated 1 to"
        " 4 times; input unchanged"
    ),
    mistakes=(
        Mistake(
            "tile",
            lambda x, times: x.repeat(1, times, 1, 1),
            "The heads come in the order 0 1 0 1. The copies of a head must stand side by side,"
            " 0 0 1 1, because neighbouring query heads share one: repeat_interleave, not repeat."
            " With one head the two are the same.",
        ),
        Mistake(
            "copies inside the tokens",
            _copies_inside_the_tokens,
            "The new axis for the copies stands behind the tokens, so the reshape mixes tokens into"
            " heads. Put it right behind the heads: (b, g, times, s, k), then reshape.",
        ),
        Mistake(
            "tokens repeated",
            lambda x, times: x.repeat_interleave(times, dim=2),
            "The tokens are repeated, not the heads: axis 2 of (b, g, s, k) counts tokens. Repeat"
            " along axis 1.",
        ),
        Mistake(
            "batch repeated",
            lambda x, times: x.repeat_interleave(times, dim=0),
            "The rows of the batch are repeated, not the heads. Repeat along axis 1 of"
            " (b, g, s, k).",
        ),
        Mistake(
            "all elements repeated",
            lambda x, times: x.repeat_interleave(times),
            "Without dim, repeat_interleave repeats every number and returns one flat row. Say"
            " dim=1, the axis of the heads.",
        ),
        Mistake(
            "averaged",
            _averaged,
            "All heads of the result are alike: the average of the key/value heads. Each group"
            " reads its own head, unchanged.",
        ),
        Mistake(
            "not repeated",
            lambda x, times: x,
            "The input comes back as it was. Each head must appear `times` times, so that there is"
            " one for each query head.",
        ),
    ),
    hints=(
        "There are g heads and times * g query heads. Write down, for g = 2 and times = 2, which"
        " head stands at places 0, 1, 2, 3 of the result.",
        "Place i of the result holds head i // times. torch has a function that repeats each"
        " element of an axis before it goes on to the next.",
        "x.repeat_interleave(times, dim=1). By hand: x[:, :, None] gives the copies an axis right"
        " behind the heads; expand it to `times` and reshape to (b, g * times, s, k).",
    ),
)


def grouped_query_attention(
    x: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    o_weight: Tensor,
    heads: int,
    kv_heads: int,
    rotate: Callable[[Tensor], Tensor],
    remember: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    mask: Tensor | None,
    *,
    order: Callable[[Tensor, int], Tensor] = repeat_kv,
    merge: str = "b g r t k -> b t (g r k)",
    transpose: bool = True,
    width_of_model: bool = False,
    rotate_keys: bool = True,
    masked: bool = True,
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with one thing changed."""
    b, t, d = x.shape
    k = d // heads if width_of_model else q_weight.shape[0] // heads

    def split(weight: Tensor) -> Tensor:
        y = F.linear(x, weight)
        if not transpose:
            return y.reshape(b, -1, t, k)
        return rearrange(y, "b t (h k) -> b h t k", k=k)

    query, key, value = split(q_weight), split(k_weight), split(v_weight)
    key, value = remember(rotate(key) if rotate_keys else key, value)
    groups = key.shape[1]
    key, value = (order(one, heads // kv_heads) for one in (key, value))
    mixed = attention_weights(rotate(query), key, mask if masked else None) @ value
    mixed = rearrange(mixed, "b (g r) t k -> b g r t k", g=groups)
    return F.linear(rearrange(mixed, merge).reshape(b, t, -1), o_weight)


def _tools(earlier: tuple[Tensor, Tensor], t: int, g: int, k: int) -> tuple[Callable, Callable]:
    """rotate and remember for t tokens that follow earlier ones; earlier: two of (b, e, g * k).

    Neither keeps anything, so that every attempt meets the same case. Both accept any cut of the
    same numbers into heads, and complain about what can only come from a wrong order of steps.
    """
    b, e, _ = earlier[0].shape
    positions = e + 1 + torch.arange(t) + 2 * torch.arange(b)[:, None]

    def rotate(y: Tensor) -> Tensor:
        if y.ndim != 4 or y.shape[2] != t:
            raise ValueError(
                f"rotate turns the {t} tokens of this call, (b, heads, {t}, k), before anything is"
                f" remembered; found {tuple(y.shape)}."
            )
        return apply_rope(y, *rope_angles(positions, y.shape[-1], 50.0))

    def remember(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        for name, given in (("keys", key), ("values", value)):
            if given.ndim != 4 or given.shape[2] != t or given.shape[1] * given.shape[3] != g * k:
                raise ValueError(
                    f"remember stores the {name} of this call's {t} tokens in {g} heads of {k},"
                    f" (b, {g}, {t}, {k}), before they are repeated; found {tuple(given.shape)}."
                )
        before = (
            rearrange(past, "b e (g k) -> b g e k", g=given.shape[1])
            for past, given in zip(earlier, (key, value), strict=True)
        )
        return tuple(torch.cat(both, dim=2) for both in zip(before, (key, value), strict=True))

    return rotate, remember


def _grouped_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(10)

    def case(b: int, t: int, e: int, d: int, h: int, g: int, k: int, masked: bool) -> tuple:
        """e: tokens that are remembered already."""

        def some(*shape: int, size: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=random) * size

        x = some(b, t, d)
        widths = h * k, g * k, g * k
        weights = [some(width, d, size=1.5 * d**-0.5) for width in widths]
        weights.append(some(d, h * k, size=(h * k) ** -0.5))
        rotate, remember = _tools((some(b, e, g * k), some(b, e, g * k)), t, g, k)
        mask = None
        if masked:  # every query sees something and misses something; no two rows are alike
            mask = torch.rand(b, 1, t, e + t, generator=random) < 0.6
            mask[..., 0], mask[..., -1] = True, False
        return (x, *weights, h, g, rotate, remember, mask)

    # d // h differs from k, but cuts all widths without a rest: who takes it for the width of a
    # head gets other heads, and no error.
    return [
        case(2, 5, 0, 16, 4, 2, 8, False),
        case(3, 4, 0, 36, 6, 3, 4, True),
        case(3, 3, 5, 16, 4, 2, 8, True),
    ]


GROUPED_QUERY_ATTENTION = Exercise(
    name="grouped_query_attention",
    reference=grouped_query_attention,
    cases=_grouped_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 3 batches: 2 key/value heads for 4 query heads and 3 for"
        " 6, heads * k unlike the width, with and without a mask, and with earlier tokens that are"
        " remembered; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "tile for interleave",
            partial(grouped_query_attention, order=lambda x, times: x.repeat(1, times, 1, 1)),
            "The query heads read the wrong key/value heads: head i reads number i % kv_heads."
            " Neighbours share, so head i must read number i // (heads // kv_heads): repeat the"
            " heads as 0 0 1 1, or group the query heads as (g r), never as (r g).",
        ),
        Mistake(
            "groups put back in another order",
            partial(grouped_query_attention, merge="b g r t k -> b t (r g k)"),
            "The heads are grouped rightly, but put side by side in another order than they came:"
            " as (r g). o_weight expects the query heads in their old order, (g r).",
        ),
        Mistake(
            "key/value heads averaged",
            partial(grouped_query_attention, order=_averaged),
            "All query heads read the same keys and values, the average of the key/value heads."
            " Each group has its own head: repeat the heads, do not mix them.",
        ),
        Mistake(
            "heads as wide as the model allows",
            partial(grouped_query_attention, width_of_model=True),
            "Your heads have k = d // heads numbers. The width of the heads has nothing to do with"
            " the width d of the model: k = q_weight.shape[0] // heads, and o_weight maps heads * k"
            " numbers back to d.",
        ),
        Mistake(
            "split without transpose",
            partial(grouped_query_attention, transpose=False),
            "The heads come from a reshape alone, (b, t, heads * k) to (b, heads, t, k). It moves"
            " no axis, so numbers of different tokens end up in one head. Split into (b, t, heads,"
            " k) first, then transpose.",
        ),
        Mistake(
            "merged without transpose",
            partial(grouped_query_attention, merge="b g r t k -> b (g r t k)"),
            "The result of the heads, (b, h, t, k), is reshaped to (b, t, h * k) without a"
            " transpose, so numbers of different tokens are mixed up. Bring t before h first.",
        ),
        Mistake(
            "keys not rotated",
            partial(grouped_query_attention, rotate_keys=False),
            "The queries are rotated and the keys are not, so their angle depends on where the"
            " query is and no longer on the distance. Rotate both, before the keys are remembered.",
        ),
        Mistake(
            "mask ignored",
            partial(grouped_query_attention, masked=False),
            "The mask is not used: the queries look at keys that are hidden from them. Hand it to"
            " attend.",
        ),
    ),
    hints=(
        "Seven steps: three linear maps, split into heads (query heads and key/value heads), rotate"
        " queries and keys, remember keys and values, repeat them for their groups, attend with"
        " the mask, merge the heads and apply the last map.",
        "k = q_weight.shape[0] // heads. `b t (h k) -> b h t k` with h = heads for the query, with"
        " h = kv_heads for key and value. `key, value = remember(rotate(key), value)`: go on with"
        " what it returns, because it may hold more tokens than you gave.",
        "repeat_kv(..., heads // kv_heads) on key and value, then attend(rotate(query), key, value,"
        " mask), and back with `b h t k -> b t (h k)`. F.linear(y, weight) is y @ weight.T.",
    ),
)

EXERCISES = (REPEAT_KV, GROUPED_QUERY_ATTENTION)
