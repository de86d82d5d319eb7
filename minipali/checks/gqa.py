"""Lesson 09: key and value heads that are shared by groups of query heads, also afterwards."""

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
    # In the first, nothing repeated, a copy less and a copy more all give another shape, and with
    # three heads reversed is not moved on by one.
    sizes = ((2, 3, 5, 6), 6), ((2, 3, 4, 7), 3), ((3, 2, 5, 4), 2), ((2, 4, 3, 5), 1)
    return [(torch.randn(shape, generator=random), times) for shape, times in sizes]


def _repeat_kv(
    x: Tensor,
    times: int,
    *,
    copies: Callable[[int, int], int] = lambda g, times: times,
    head_at: Callable[[int, int, int], int] = lambda place, g, times: place // times,
    factor: Callable[[int], float] = lambda times: 1.0,
    rows: Callable[[Tensor], Tensor] = lambda x: x,
    finish: Callable[[Tensor, int, int], Tensor] = lambda y, g, times: y,
) -> Tensor:
    """repeat_kv with one thing changed."""
    x = rows(x)
    g = x.shape[1]
    times = copies(g, times)
    heads = [x[:, head_at(place, g, times)] for place in range(g * times)]
    return finish(torch.stack(heads, dim=1) * factor(times) if heads else x[:, :0], g, times)


def _copies_inside_the_tokens(x: Tensor, times: int) -> Tensor:
    b, g, s, k = x.shape
    return x[:, :, :, None].expand(b, g, s, times, k).reshape(b, g * times, s, k)


def _folded(y: Tensor, x: Tensor, times: int) -> Tensor:
    b, g, s, k = x.shape
    return y.reshape(b, g * times, s, k)


def _averaged(x: Tensor, times: int) -> Tensor:
    return x.mean(dim=1, keepdim=True).expand(-1, x.shape[1] * times, -1, -1)


_EXPANDED = (
    "You stretch the axis of the heads itself, and expand does that only with an axis of length 1:"
    " it works for one head. Give the copies an axis of their own, x[:, :, None], expand that, and"
    " reshape."
)

REPEAT_KV = Exercise(
    name="repeat_kv",
    reference=repeat_kv,
    cases=_repeat_cases,
    axes="b h s k",
    checked=(
        "shape, dtype and every value on 4 batches, with 2, 3 and 4 key/value heads repeated 1 to"
        " 6 times; input unchanged"
    ),
    mistakes=(
        Mistake(
            "tile",
            partial(_repeat_kv, head_at=lambda place, g, times: place % g),
            "The heads come in the order 0 1 0 1. The copies of a head must stand side by side,"
            " 0 0 1 1, because neighbouring query heads share one: repeat_interleave, not repeat."
            " With one head the two are the same.",
        ),
        Mistake(
            "heads reversed",
            partial(_repeat_kv, head_at=lambda place, g, times: g - 1 - place // times),
            "The heads come in reverse order, the last one first. The first query heads read head"
            " 0: place i of the result holds head i // times.",
        ),
        Mistake(
            "tile, reversed",
            partial(_repeat_kv, head_at=lambda place, g, times: g - 1 - place % g),
            "The heads come in reverse order, and one after the other (1 0 1 0). Place i of the"
            " result holds head i // times: 0 0 1 1.",
        ),
        Mistake(
            "first head for all",
            partial(_repeat_kv, head_at=lambda place, g, times: 0),
            "All heads of the result are copies of the first one. That is right if there is one"
            " key/value head. Each of the g heads appears `times` times.",
        ),
        Mistake(
            "copies inside the tokens",
            _copies_inside_the_tokens,
            "The copies were made behind the tokens or along the width, and the reshape then mixes"
            " tokens into heads. The new axis belongs right behind the heads: (b, g, times, s, k),"
            " then reshape.",
        ),
        Mistake(
            "tokens repeated",
            lambda x, times: x.repeat_interleave(times, dim=2),
            "The tokens are repeated, not the heads: axis 2 of (b, g, s, k) counts tokens. Repeat"
            " along axis 1.",
        ),
        Mistake(
            "all tokens again",
            lambda x, times: x.repeat(1, 1, times, 1),
            "The tokens come again, not the heads: axis 2 of (b, g, s, k) counts tokens. Repeat"
            " along axis 1.",
        ),
        Mistake(
            "width repeated",
            lambda x, times: x.repeat_interleave(times, dim=3),
            "The numbers inside the heads are repeated, so the heads become wider. There should be"
            " more heads: repeat along axis 1 of (b, g, s, k).",
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
            "shared out",
            partial(_repeat_kv, factor=lambda times: 1 / times),
            "Each copy is divided by `times`. Nothing is shared out: every query head reads the"
            " whole head.",
        ),
        Mistake(
            "multiplied",
            partial(_repeat_kv, factor=lambda times: times),
            "The numbers are multiplied by `times`. Each copy holds the head as it is; there are"
            " more of them.",
        ),
        *(
            Mistake(
                f"rows of the batch mixed: {name}",
                wrong,
                "The rows of the batch are mixed: the copies stand in front of the batch, or the"
                " heads do, when you reshape. A reshape moves no axis: b must be in front of it,"
                " (b, g, times, s, k).",
            )
            for name, wrong in (
                ("batch copied", lambda x, times: _folded(x.repeat(times, 1, 1, 1), x, times)),
                (
                    "heads in front",
                    lambda x, times: _folded(
                        x.transpose(0, 1).repeat_interleave(times, dim=0), x, times
                    ),
                ),
                (
                    "copies and heads in front",
                    lambda x, times: _folded(x.transpose(0, 1).repeat(times, 1, 1, 1), x, times),
                ),
            )
        ),
        *(
            Mistake(
                f"{which} row of the batch for all",
                partial(_repeat_kv, rows=lambda x, at=at: x[at:][:1].expand_as(x)),
                f"All rows of the batch hold the heads of the {which} one. Each keeps its own: the"
                " axis b stays as it is.",
            )
            for which, at in (("first", 0), ("last", -1))
        ),
        *(
            Mistake(
                f"{number} copies, always",
                partial(_repeat_kv, copies=lambda g, times, number=number: number),
                f"Each head appears {number} times, whatever `times` is. It says how often.",
            )
            for number in (2, 4)
        ),
        Mistake(
            "one copy too few",
            partial(_repeat_kv, copies=lambda g, times: times - 1),
            "There is one copy too few. `times` counts all copies of a head, the head itself among"
            " them.",
        ),
        Mistake(
            "one copy too many",
            partial(_repeat_kv, copies=lambda g, times: times + 1),
            "There is one copy too many. `times` counts all copies of a head, the head itself among"
            " them.",
        ),
        Mistake(
            "times as the number of heads",
            partial(_repeat_kv, copies=lambda g, times: max(1, times // g)),
            "`times` is taken for the number of heads that are wanted. It says how often each head"
            " appears: g * times come out.",
        ),
        Mistake(
            "not merged",
            partial(_repeat_kv, finish=lambda y, g, times: y.unflatten(1, (g, -1))),
            "The copies have an axis of their own, (b, g, times, s, k). Merge it with the heads:"
            " reshape to (b, g * times, s, k).",
        ),
        Mistake(
            "heads behind the tokens",
            partial(_repeat_kv, finish=lambda y, g, times: y.transpose(1, 2)),
            "The heads stand behind the tokens, (b, s, h, k). They belong in front of them: (b, h,"
            " s, k).",
        ),
        Mistake(
            "heads behind the tokens, reshaped",
            partial(_repeat_kv, finish=lambda y, g, times: y.transpose(1, 2).reshape(y.shape)),
            "The heads stand behind the tokens, (b, s, h, k), when you reshape to (b, h, s, k). A"
            " reshape moves no axis, so it mixes tokens into heads: transpose in its place.",
        ),
        Mistake(
            "not repeated",
            lambda x, times: x,
            "The input comes back as it was. Each head must appear `times` times, so that there is"
            " one for each query head.",
        ),
    ),
    crashes=(
        Mistake(
            "expanded",
            lambda x, times: x.expand(len(x), x.shape[1] * times, *x.shape[2:]),
            _EXPANDED,
        ),
        Mistake(
            "expanded, by -1",
            lambda x, times: x.expand(-1, x.shape[1] * times, -1, -1),
            _EXPANDED,
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
    order_of_values: Callable[[Tensor, int], Tensor] | None = None,
    weights: Callable[[Tensor, Tensor, Tensor | None], Tensor] = attention_weights,
    maps: Callable[[Tensor, Tensor, Tensor], tuple] = lambda q, k, v: (q, k, v),
    cut: str = "b t (h k) -> b h t k",
    merge: str = "b g r t k -> b t (g r k)",
    transpose: bool = True,
    width_of_model: bool = False,
    rotated: str = "qk",
    recall: Callable[[Tensor | None], bool] = lambda mask: True,
    exchanged: bool = False,
    hidden: Callable[[Tensor | None, Tensor], Tensor | None] = lambda mask, scores: mask,
    size: Callable[[int, int], float] = lambda k, d: k,
    out: Callable[[Tensor, Tensor], Tensor] = F.linear,
    finish: Callable[[Tensor, Tensor], Tensor] = lambda y, x: y,
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with one thing changed."""
    b, t, d = x.shape
    k = d // heads if width_of_model else q_weight.shape[0] // heads

    def split(weight: Tensor) -> Tensor:
        y = F.linear(x, weight)
        if not transpose:
            return y.reshape(b, -1, t, k)
        return rearrange(y, cut, k=k)

    query, key, value = map(split, maps(q_weight, k_weight, v_weight))
    query, key, value = (
        rotate(one) if name in rotated else one
        for name, one in zip("qkv", (query, key, value), strict=True)
    )
    if recall(mask):
        key, value = remember(key, value)
    if exchanged:
        key, value = value, key
    groups = key.shape[1]
    key = order(key, heads // kv_heads)
    value = (order_of_values or order)(value, heads // kv_heads)
    mask = hidden(mask, query @ key.mT)
    if mask is not None:
        mask = mask[..., -key.shape[2] :]
    query = query * (query.shape[-1] / size(query.shape[-1], d)) ** 0.5
    mixed = weights(query, key, mask) @ value
    mixed = rearrange(mixed, "b (g r) t k -> b g r t k", g=groups)
    return finish(out(rearrange(mixed, merge).reshape(b, t, -1), o_weight), x)


def _zeros_for_hidden(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores if mask is None else scores * mask).softmax(dim=-1)


def _mask_added(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(dim=-1)


def _masked_afterwards(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
    return weights if mask is None else weights * mask


def _width_of_the_model(cut: Callable[[Tensor, int, int], Tensor]) -> Callable:
    """Heads of d // heads numbers, which torch refuses."""

    def attention(x, q_weight, k_weight, v_weight, o_weight, heads, *others):
        return cut(F.linear(x, q_weight), heads, x.shape[-1] // heads)

    return attention


def _over_the_queries(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, -1e30)).softmax(dim=-2)


def _tools(earlier: tuple[Tensor, Tensor], t: int, g: int, k: int) -> tuple[Callable, Callable]:
    """rotate and remember for t tokens that follow earlier ones; earlier: two of (b, e, g * k).

    Both accept any cut of the same numbers into heads, and complain about what can only come from a
    wrong order of steps.
    """
    b, e, _ = earlier[0].shape
    calls: list[Tensor] = []
    positions = e + 1 + torch.arange(t) + 2 * torch.arange(b)[:, None]

    def rotate(y: Tensor) -> Tensor:
        if y.ndim != 4 or y.shape[2] != t:
            raise ValueError(
                f"rotate turns the {t} tokens of this call, (b, heads, {t}, k), before anything is"
                f" remembered; found {tuple(y.shape)}."
            )
        if calls and y.shape[1] * y.shape[3] == g * k:
            raise ValueError(
                "rotate was given keys after remember was called. What is remembered must be"
                " rotated already, and is not rotated again: each key turns once, by the position"
                " of its own token. And remember is called once: key, value = remember(key, value)."
            )
        return apply_rope(y, *rope_angles(positions, y.shape[-1], 50.0))

    def remember(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(key)
        if len(calls) > 1:
            raise ValueError(
                "remember was called a second time, and would store this call's tokens twice. Call"
                " it once, with keys and values, and take both of what it returns:"
                " key, value = remember(key, value)."
            )
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
        if masked:  # every query sees something old and something new, and misses something
            mask = torch.rand(b, 1, t, e + t, generator=random) < 0.6
            mask[..., 0], mask[..., -2], mask[..., -1] = True, True, False
        return (x, *weights, h, g, rotate, remember, mask)

    # d // h differs from k, but cuts all widths without a rest: who takes it for the width of a
    # head gets other heads, and no error.
    return [
        case(2, 5, 0, 16, 4, 2, 8, False),
        case(3, 4, 0, 36, 6, 3, 4, True),
        case(3, 3, 5, 16, 4, 2, 8, True),
        case(2, 2, 3, 16, 4, 2, 8, False),
    ]


_OWN_WIDTH = (
    "Your heads have k = d // heads numbers. The width of the heads has nothing to do with the"
    " width d of the model: k = q_weight.shape[0] // heads, and o_weight maps heads * k numbers"
    " back to d."
)

GROUPED_QUERY_ATTENTION = Exercise(
    name="grouped_query_attention",
    reference=grouped_query_attention,
    cases=_grouped_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 4 batches: 2 key/value heads for 4 query heads and 3 for"
        " 6, heads * k unlike the width, with and without a mask, each also with earlier tokens"
        " that are remembered; inputs unchanged"
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
            "values tiled",
            partial(
                grouped_query_attention, order_of_values=lambda x, times: x.repeat(1, times, 1, 1)
            ),
            "The keys are repeated as 0 0 1 1 and the values as 0 1 0 1, so a head looks with one"
            " group's keys and takes another's values. Repeat both in the same way.",
        ),
        Mistake(
            "hidden scores are 0",
            partial(grouped_query_attention, weights=_zeros_for_hidden),
            "Hidden scores are set to 0, and the softmax still gives them weight: exp(0) is 1. Set"
            " them to minus infinity, or hand the mask to attend.",
        ),
        Mistake(
            "mask added",
            partial(grouped_query_attention, weights=_mask_added),
            "The mask is added to the scores as a number. True counts 1 and False 0, so hidden keys"
            " keep nearly all their weight. Set hidden scores to minus infinity, or hand the mask"
            " to attend.",
        ),
        Mistake(
            "mask after the softmax",
            partial(grouped_query_attention, weights=_masked_afterwards),
            "The mask comes after the softmax, so the weights of a query no longer add up to 1."
            " Hide scores before the softmax (minus infinity), or hand the mask to attend.",
        ),
        Mistake(
            "softmax over the queries",
            partial(grouped_query_attention, weights=_over_the_queries),
            "The softmax runs over the queries. Each query shares its weight out among the keys:"
            " the last axis, dim=-1.",
        ),
        Mistake(
            "one row's mask for all",
            partial(
                grouped_query_attention,
                hidden=lambda mask, scores: None if mask is None else mask[:1],
            ),
            "All rows of the batch got the mask of the first one. Each has its own: hand attend the"
            " whole mask, (b, 1, t, s).",
        ),
        Mistake(
            "groups put back in another order",
            partial(grouped_query_attention, merge="b g r t k -> b t (r g k)"),
            "The heads are grouped rightly, but put side by side in another order than they came:"
            " as (r g). o_weight expects the query heads in their old order, (g r).",
        ),
        Mistake(
            "groups in reverse order",
            partial(
                grouped_query_attention,
                order=lambda x, times: x.flip(1).repeat_interleave(times, dim=1),
            ),
            "The groups read the key/value heads in reverse order. Query head i reads head number i"
            " // (heads // kv_heads).",
        ),
        Mistake(
            "first head for all",
            partial(
                grouped_query_attention,
                order=lambda x, times: x[:, :1].expand(-1, x.shape[1] * times, -1, -1),
            ),
            "All query heads read the first key/value head. Query head i reads head number i //"
            " (heads // kv_heads).",
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
            _OWN_WIDTH,
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
            "heads cut as (k h)",
            partial(grouped_query_attention, cut="b t (k h) -> b h t k"),
            "The heads are cut as (k h): each head got every h-th number. The weights keep the"
            " numbers of a head side by side: (h k), the head as the slow axis.",
        ),
        Mistake(
            "merged as (k h)",
            partial(grouped_query_attention, merge="b g r t k -> b t (k g r)"),
            "The heads are put together as (k h), number by number. o_weight expects the numbers of"
            " a head side by side: (h k), the head as the slow axis.",
        ),
        *(
            Mistake(
                f"rotated: {rotated or 'nothing'}",
                partial(grouped_query_attention, rotated=rotated),
                says,
            )
            for rotated, says in (
                (
                    "q",
                    "The queries are rotated and the keys are not, so their angle depends on where"
                    " the query is and no longer on the distance. Rotate both, before the keys are"
                    " remembered.",
                ),
                (
                    "k",
                    "The keys are rotated and the queries are not, so their angle depends on where"
                    " the key is and no longer on the distance. Rotate both.",
                ),
                (
                    "",
                    "Nothing is rotated, so the layer does not know which token stands where."
                    " Rotate queries and keys, before the keys are remembered.",
                ),
                (
                    "qkv",
                    "The values are rotated too. Only queries and keys are compared, so only these"
                    " two are rotated; values are averaged as they are.",
                ),
                (
                    "qv",
                    "The values are rotated and the keys are not. Queries and keys are compared, so"
                    " these two are rotated; values are averaged as they are.",
                ),
            )
        ),
        Mistake(
            "nothing remembered",
            partial(grouped_query_attention, recall=lambda mask: False),
            "The queries see the tokens of this call alone. Hand keys and values to `remember`, and"
            " go on with what it returns: those of everything so far.",
        ),
        Mistake(
            "nothing remembered without a mask",
            partial(grouped_query_attention, recall=lambda mask: mask is not None),
            "Without a mask the queries see the tokens of this call alone. Hand keys and values to"
            " `remember` in every call, and go on with what it returns; the mask only hides some.",
        ),
        Mistake(
            "keys and values exchanged",
            partial(grouped_query_attention, exchanged=True),
            "Keys and values have changed places: queries are compared with keys, and values are"
            " averaged. (remember returns the keys first.)",
        ),
        *(
            Mistake(
                f"keys and values of {name}",
                partial(grouped_query_attention, maps=maps),
                f"Keys and values are both made with {name}. Each has its own map: keys k_weight,"
                " values v_weight.",
            )
            for name, maps in (
                ("k_weight", lambda q, k, v: (q, k, k)),
                ("v_weight", lambda q, k, v: (q, v, v)),
            )
        ),
        Mistake(
            "mask ignored",
            partial(grouped_query_attention, hidden=lambda mask, scores: None),
            "The mask is not used: the queries look at keys that are hidden from them. Hand it to"
            " attend.",
        ),
        Mistake(
            "mask upside down",
            partial(
                grouped_query_attention,
                hidden=lambda mask, scores: None if mask is None else ~mask,
            ),
            "The mask is upside down: True is where a query may look.",
        ),
        *(
            Mistake(
                f"causal without a mask: {name}",
                partial(
                    grouped_query_attention,
                    hidden=lambda mask, scores, earlier=earlier: (
                        torch.ones_like(scores[:, :1], dtype=torch.bool).tril(
                            (scores.shape[-1] - scores.shape[-2]) * earlier
                        )
                        if mask is None
                        else mask
                    ),
                ),
                "Without a mask your queries do not see later tokens. None means that every query"
                " sees everything; a causal mask would be handed over as a mask.",
            )
            for name, earlier in (("earlier tokens are seen", 1), ("counted from the first", 0))
        ),
        Mistake(
            "causal too",
            partial(
                grouped_query_attention,
                hidden=lambda mask, scores: (
                    torch.ones_like(scores[:, :1], dtype=torch.bool).tril(
                        scores.shape[-1] - scores.shape[-2]
                    )
                    & (True if mask is None else mask)
                ),
            ),
            "Your queries never see later tokens, whatever the mask says. The mask alone says who"
            " sees what, and None means that every query sees everything.",
        ),
        Mistake(
            "scaled by the model's width",
            partial(grouped_query_attention, size=lambda k, d: d),
            "The scores are divided by the root of d, the width of the model. What is multiplied"
            " are heads of k numbers: divide by the root of k.",
        ),
        Mistake(
            "not scaled",
            partial(grouped_query_attention, size=lambda k, d: 1),
            "The scores are not divided by the root of k. (attend does it for you.)",
        ),
        Mistake(
            "divided by k",
            partial(grouped_query_attention, size=lambda k, d: k**2),
            "The scores are divided by k, or twice by its root. Divide by the root of k, once."
            " (attend does it for you.)",
        ),
        Mistake(
            "x added",
            partial(grouped_query_attention, finish=lambda y, x: x + y),
            "x is added at the end. That is the residual connection, and it belongs to the layer"
            " around the attention (lesson 10). Return what o_weight gives.",
        ),
        Mistake(
            "last map missing",
            partial(grouped_query_attention, out=lambda y, weight: y),
            "The last map is missing: the heads stand side by side, heads * k numbers. o_weight"
            " mixes them and brings them back to d.",
        ),
    ),
    crashes=tuple(
        Mistake(f"heads as wide as the model allows: {name}", _width_of_the_model(cut), _OWN_WIDTH)
        for name, cut in (
            ("view", lambda y, heads, k: y.view(*y.shape[:2], heads, k)),
            ("unflatten", lambda y, heads, k: y.unflatten(-1, (heads, k))),
        )
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


def _share_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(19)

    def case(k: int, d: int, groups: list[list[int]]) -> tuple:
        wide = k * sum(map(len, groups))
        shapes = (wide, d), (wide, d), (wide, d), (d, wide)
        return (*(torch.randn(shape, generator=random) for shape in shapes), groups)

    # In the first, rows and columns are equally many: who takes one for the other gets no error.
    return [
        case(3, 12, [[3, 0], [2, 1]]),
        case(2, 9, [[5, 0, 3], [1, 4, 2]]),
        case(4, 5, [[1, 2], [4, 0], [3, 5]]),
        case(2, 7, [[1, 2, 0]]),
        case(3, 4, [[1], [2], [0]]),
    ]


def share_heads(
    q_weight: Tensor,
    k_weight: Tensor,
    v_weight: Tensor,
    o_weight: Tensor,
    groups: list[list[int]],
    *,
    read: Callable[[list[list[int]]], list[list[int]]] = lambda groups: groups,
    cut: str = "(h k) d -> h k d",
    merge: str | None = None,
    joined: Callable[[Tensor], Tensor] = lambda heads: heads.mean(dim=0),
    joined_values: Callable[[Tensor], Tensor] | None = None,
    sharing: Callable[[list[list[int]]], list[list[int]]] = lambda groups: groups,
    queries: Callable[[list[int], int], list[int]] = lambda order, size: order,
    columns: Callable[[list[int], int], list[int]] = lambda order, size: order,
    rows_of_out: bool = False,
    queries_averaged: bool = False,
    repeated: Callable[[list[list[int]]], list[int]] | None = None,
    width_of_model: bool = False,
    times: Callable[[int, int], float] = lambda size, groups: 1.0,
    finish: Callable[[tuple], tuple] = lambda four: four,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Multi-head weights, (h k, d) three times and (d, h k), as those of a grouped layer.

    The reference, or with one thing changed.
    """
    heads, groups = sum(map(len, groups)), read(groups)
    if width_of_model:
        few = heads * (q_weight.shape[1] // heads)
        q_weight, k_weight, v_weight = q_weight[:few], k_weight[:few], v_weight[:few]
        o_weight = o_weight[:, :few]
    order, size = [head for group in groups for head in group], len(groups[0])
    back = merge or " -> ".join(reversed(cut.split(" -> ")))

    def heads_of(weight: Tensor) -> Tensor:
        return rearrange(weight, cut, h=heads)

    def shared(weight: Tensor, join: Callable[[Tensor], Tensor]) -> Tensor:
        few = torch.stack([join(heads_of(weight)[group]) for group in sharing(groups)])
        few = few * times(size, len(groups))
        if repeated:
            few = few[repeated(groups)]
        return rearrange(few, back)

    q = rearrange(heads_of(q_weight)[queries(order, size)], back)
    if queries_averaged:
        q = shared(q_weight, joined)
    if rows_of_out and o_weight.shape[0] % heads == 0:
        o = rearrange(heads_of(o_weight)[columns(order, size)], back)
    elif rows_of_out:
        o = o_weight
    else:
        o = rearrange(heads_of(o_weight.mT)[columns(order, size)], back).mT
    k, v = shared(k_weight, joined), shared(v_weight, joined_values or joined)
    return finish((q, k, v, o))


def _neighbours(groups: list[list[int]]) -> list[list[int]]:
    size = len(groups[0])
    return [list(range(i * size, (i + 1) * size)) for i in range(len(groups))]


def _every_nth(groups: list[list[int]]) -> list[list[int]]:
    count, heads = len(groups), sum(map(len, groups))
    return [list(range(i, heads, count)) for i in range(count)]


def _in_turns(order: list[int], size: int) -> list[int]:
    """Query heads as (r g)."""
    return [head for place in range(size) for head in order[place::size]]


def _sorted(order: list[int], size: int) -> list[int]:
    return sorted(order)


def _in_order(groups: list[list[int]]) -> list[int]:
    """For each query head, in its new place, the number of its group."""
    return [number for number, group in enumerate(groups) for _ in group]


def _in_place(groups: list[list[int]]) -> list[int]:
    """For each head, in its old place, the number of its group."""
    of = {head: number for number, group in enumerate(groups) for head in group}
    return [of[head] for head in sorted(of)]


def _columns_averaged(q_weight, k_weight, v_weight, o_weight, groups):
    *three, o = share_heads(q_weight, k_weight, v_weight, o_weight, groups)
    o = rearrange(o, "d (g r k) -> d g r k", g=len(groups), r=len(groups[0]))
    return *three, o.mean(dim=2, keepdim=True).expand_as(o).flatten(1)


def _single_rows(alone: bool) -> Callable:
    """Numbers of heads are taken for numbers of rows; the other rows are left out, or stay."""

    def share(q_weight, k_weight, v_weight, o_weight, groups):
        order = [head for group in groups for head in group]
        rest = slice(0, 0) if alone else slice(len(order), None)
        q = torch.cat((q_weight[order], q_weight[rest]))
        o = torch.cat((o_weight[:, order], o_weight[:, rest]), dim=1)
        k, v = (
            torch.stack([one[group].mean(0) for group in groups]) for one in (k_weight, v_weight)
        )
        return q, k, v, o

    return share


def _where(order: list[int], size: int) -> list[int]:
    """Where each head went: the other way round."""
    return sorted(range(len(order)), key=order.__getitem__)


_KEEP_TOGETHER = (
    " A grouped layer gives neighbouring query heads one key/value head, so the heads of a group"
    " must become neighbours: in the rows of q_weight and, in the same order, in the columns of"
    " o_weight."
)

_SINGLE_ROWS = (
    "You take single rows of the weights for heads. A head is k rows (and k columns of o_weight):"
    " cut into (heads, k, d) first; k is the number of rows divided by the number of heads."
)
_ITS_OWN_WIDTH = (
    "Your heads have k = d // heads rows. The width of the heads has nothing to do with the width d"
    " of the model: k is the number of rows of q_weight divided by the number of heads."
)

_SIDE_BY_SIDE = (
    "The heads are cut as (k h): each got every h-th row. The rows of a head lie one after the"
    " other: (h k), the head as the slow axis."
)

SHARE_HEADS = Exercise(
    name="share_heads",
    transfer=True,
    reference=share_heads,
    cases=_share_cases,
    axes="w d; v d; v d; d w",
    parts=("q_weight", "k_weight", "v_weight", "o_weight"),
    checked=(
        "shape, dtype and every value of the four weights for 5 layers of 3 to 6 heads: two groups"
        " of 2 and of 3, three of 2, one of all heads, and groups of one; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "queries in their old order",
            partial(share_heads, queries=_sorted),
            "The query heads are still in their old order." + _KEEP_TOGETHER,
        ),
        Mistake(
            "columns in their old order",
            partial(share_heads, columns=_sorted),
            "The query heads are reordered, and the columns of o_weight are not, so what a head"
            " found is taken for what another one found." + _KEEP_TOGETHER,
        ),
        Mistake(
            "nothing reordered",
            partial(share_heads, queries=_sorted, columns=_sorted),
            "Keys and values are right, but the query heads are still in their old order, and read"
            " the heads of other groups." + _KEEP_TOGETHER,
        ),
        Mistake(
            "queries the other way round",
            partial(share_heads, queries=_where),
            "The query heads are reordered the other way round: head i was moved to place order[i]."
            " Place i must hold head order[i], with order = the groups' heads one after the other:"
            " index with it, q[order].",
        ),
        Mistake(
            "columns the other way round",
            partial(share_heads, columns=_where),
            "The columns of o_weight are reordered the other way round. They follow the query"
            " heads: place i holds the columns of head order[i], in both.",
        ),
        Mistake(
            "both the other way round",
            partial(share_heads, queries=_where, columns=_where),
            "Query heads and columns are reordered the other way round: head i was moved to place"
            " order[i]. Place i must hold head order[i]: index with it, q[order].",
        ),
        Mistake(
            "rows of o_weight",
            partial(share_heads, rows_of_out=True),
            "The rows of o_weight are reordered. Its rows are the model's numbers; what the heads"
            " found comes in by its columns: o_weight is (d, heads * k).",
        ),
        Mistake(
            "sum of the heads",
            partial(share_heads, joined=lambda heads: heads.sum(dim=0)),
            "Keys and values are the sum of a group's heads. Take the mean, or scores and values"
            " grow with the size of the group.",
        ),
        Mistake(
            "values summed",
            partial(share_heads, joined_values=lambda heads: heads.sum(dim=0)),
            "The values are the sum of a group's heads. Take the mean, as for the keys.",
        ),
        Mistake(
            "first head of a group",
            partial(share_heads, joined=lambda heads: heads[0]),
            "Keys and values are those of the first head of a group; the others are thrown away."
            " Take the mean of the group's heads.",
        ),
        Mistake(
            "last head of a group",
            partial(share_heads, joined=lambda heads: heads[-1]),
            "Keys and values are those of the last head of a group; the others are thrown away."
            " Take the mean of the group's heads.",
        ),
        *(
            Mistake(
                f"two heads: {name}",
                partial(share_heads, joined=joined),
                "Keys and values are made as if each group had two heads. It has as many as"
                " `groups` lists: take the mean of them all.",
            )
            for name, joined in (
                ("first and last", lambda heads: (heads[0] + heads[-1]) / 2),
                ("first and second", lambda heads: heads[:2].mean(dim=0)),
                ("half of the sum", lambda heads: heads.sum(dim=0) / 2),
            )
        ),
        *(
            Mistake(
                f"divided by the number of {what}",
                partial(share_heads, times=times),
                f"The sum of a group's heads is divided by the number of {what}. Divide by the"
                " number of heads in the group: the mean.",
            )
            for what, times in (
                ("groups", lambda size, groups: size / groups),
                ("all heads", lambda size, groups: 1 / groups),
            )
        ),
        Mistake(
            "width of the model",
            partial(share_heads, width_of_model=True),
            _ITS_OWN_WIDTH,
        ),
        Mistake(
            "values of the first head",
            partial(share_heads, joined_values=lambda heads: heads[0]),
            "The keys are the mean of a group's heads, and the values are those of the first. Take"
            " the mean for both.",
        ),
        Mistake(
            "keys of the first head",
            partial(
                share_heads,
                joined=lambda heads: heads[0],
                joined_values=lambda heads: heads.mean(dim=0),
            ),
            "The values are the mean of a group's heads, and the keys are those of the first. Take"
            " the mean for both.",
        ),
        Mistake(
            "mean inside a head",
            partial(
                share_heads, joined=lambda heads: heads.mean(1, keepdim=True).expand_as(heads)[0]
            ),
            "The mean runs over the numbers of one head, so that its rows become equal. Take it"
            " over the heads of a group, number by number: all first rows, all second rows, ...",
        ),
        Mistake(
            "neighbours as groups",
            partial(share_heads, read=_neighbours),
            "The groups are those of neighbours, 0 1 | 2 3, whatever `groups` says. It lists the"
            " numbers of the heads that are to share.",
        ),
        Mistake(
            "neighbours averaged",
            partial(share_heads, sharing=_neighbours),
            "Query heads and columns are in order, but keys and values are the means of neighbours,"
            " 0 1 | 2 3. Average the heads that a group lists (or reorder them first, too).",
        ),
        Mistake(
            "every nth head averaged",
            partial(share_heads, sharing=_every_nth),
            "Query heads and columns are in order, but keys and values are the means of every n-th"
            " head. Average the heads that a group lists.",
        ),
        *(
            Mistake(
                f"first of each group, then the second: {what}",
                partial(share_heads, queries=_in_turns, **more),
                "The query heads are put in turns: the first of each group, then the second of"
                " each." + _KEEP_TOGETHER,
            )
            for what, more in (
                ("queries and columns", {"columns": _in_turns}),
                ("queries", {}),
            )
        ),
        Mistake(
            "first columns of each group, then the second",
            partial(share_heads, columns=_in_turns),
            "The columns of o_weight are put in turns: those of the first head of each group, then"
            " of the second of each. They follow the query heads: the heads of a group are"
            " neighbours, in both.",
        ),
        *(
            Mistake(
                f"keys and values of sorted groups: {name}",
                partial(share_heads, sharing=order),
                "Keys and values come in the order of sorted groups, and the query heads do not, so"
                " they read those of other groups. Keep the order of `groups` in all four.",
            )
            for name, order in (
                ("by their first head", sorted),
                ("by their smallest head", lambda groups: sorted(groups, key=min)),
            )
        ),
        Mistake(
            "groups reversed",
            partial(share_heads, read=lambda groups: groups[::-1]),
            "The groups come in reverse order, the last one first. Keep the order of `groups`.",
        ),
        Mistake(
            "heads of a group reversed",
            partial(share_heads, read=lambda groups: [group[::-1] for group in groups]),
            "The heads of a group come in reverse order. That computes the same, but the contract"
            " asks for the order in which `groups` lists them.",
        ),
        Mistake(
            "heads of a group sorted",
            partial(share_heads, read=lambda groups: [sorted(group) for group in groups]),
            "The heads of a group are sorted. That computes the same, but the contract asks for the"
            " order in which `groups` lists them.",
        ),
        Mistake(
            "groups sorted",
            partial(share_heads, read=sorted),
            "The groups are sorted. That computes the same, but the contract asks for the order of"
            " `groups`: the first group's head comes first.",
        ),
        Mistake(
            "groups sorted by their smallest head",
            partial(share_heads, read=lambda groups: sorted(groups, key=min)),
            "The groups are sorted. That computes the same, but the contract asks for the order of"
            " `groups`: the first group's head comes first.",
        ),
        Mistake(
            "columns averaged, too",
            _columns_averaged,
            "The columns of o_weight are averaged over a group. Each query head still finds"
            " something of its own, which goes out through its own columns: they are reordered, and"
            " not averaged.",
        ),
        Mistake(
            "queries averaged, too",
            partial(share_heads, queries_averaged=True),
            "The query heads are averaged, too. Only keys and values are shared; all query heads"
            " stay, in a new order.",
        ),
        Mistake(
            "every nth head as a group",
            partial(share_heads, read=_every_nth),
            "The groups are those of every n-th head, whatever `groups` says. It lists the numbers"
            " of the heads that are to share.",
        ),
        Mistake(
            "heads cut as (k h)",
            partial(share_heads, cut="(k h) d -> h k d"),
            _SIDE_BY_SIDE,
        ),
        Mistake(
            "heads cut as (k h), joined as (h k)",
            partial(share_heads, cut="(k h) d -> h k d", merge="h k d -> (h k) d"),
            _SIDE_BY_SIDE,
        ),
        Mistake(
            "heads joined as (k h)",
            partial(share_heads, merge="h k d -> (k h) d"),
            "The heads are cut rightly and put together as (k h), row by row. The rows of a head"
            " lie one after the other again: (h k), the head as the slow axis.",
        ),
        *(
            Mistake(f"single rows for heads: {name}", _single_rows(alone), _SINGLE_ROWS)
            for name, alone in (("alone", True), ("the others stay", False))
        ),
        Mistake(
            "keys and values repeated",
            partial(share_heads, repeated=_in_order),
            "Keys and values have as many heads as before, equal ones in a group. That computes the"
            " right thing and saves nothing: return one head for each group.",
        ),
        Mistake(
            "nothing moved, keys and values repeated",
            partial(share_heads, repeated=_in_place, queries=_sorted, columns=_sorted),
            "Each head is in its old place, and has the keys and values of its group. That computes"
            " the right thing and saves nothing: return one head for each group, and put the query"
            " heads of a group side by side.",
        ),
        Mistake(
            "keys and values repeated in their old places",
            partial(share_heads, repeated=_in_place),
            "Keys and values have as many heads as before, each in its old place, while the query"
            " heads have moved. Return one head for each group, in the order of `groups`.",
        ),
        Mistake(
            "keys and values exchanged",
            partial(share_heads, finish=lambda four: (four[0], four[2], four[1], four[3])),
            "The weights of keys and values have changed places in what you return.",
        ),
        Mistake(
            "o_weight turned",
            partial(share_heads, finish=lambda four: (*four[:3], four[3].mT)),
            "o_weight is turned: it must be (d, heads * k) again, as it came.",
        ),
    ),
    hints=(
        "heads = the length of all groups together; k = rows // heads. Cut q, k and v weights into"
        " (heads, k, d), and o_weight into (d, heads, k). Then a head is one index.",
        "For keys and values: for each group, the mean over its heads, k_heads[group].mean(dim=0);"
        " stack the groups, and flatten back. A list of numbers may be an index: k_heads[[2, 0]]"
        " are heads 2 and 0.",
        "order = [head for group in groups for head in group]. Then q_heads[order] and"
        " o_heads[:, order], flattened back to (heads * k, d) and (d, heads * k).",
    ),
)

EXERCISES = (REPEAT_KV, GROUPED_QUERY_ATTENTION, SHARE_HEADS)
