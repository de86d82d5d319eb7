"""Lesson 08: one layer's cache, the positions of new tokens, and a decoding loop with a cache."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minipali.attention import attention_weights
from minipali.checks.engine import Exercise, Mistake
from minipali.kv_cache import cache_update
from minipali.paligemma import token_positions
from minipali.rope import apply_rope, rope_angles


def _cache_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(8)

    def case(b: int, g: int, longest: int, k: int, start: int, t: int) -> tuple:
        buffers = []
        for _ in "kv":
            # What lies behind the first `start` is garbage: a new buffer is not empty.
            buffer = 1000 + 100 * torch.randn(b, g, longest, k, generator=random)
            buffer[:, :, :start] = torch.randn(b, g, start, k, generator=random)
            buffers.append(buffer)
        key, value = (torch.randn(b, g, t, k, generator=random) for _ in "kv")
        return (*buffers, start, key, value)

    return [
        case(3, 2, 9, 5, 0, 4),  # the prompt
        case(3, 2, 9, 5, 4, 1),  # one new token
        case(2, 3, 8, 4, 3, 2),  # two
        case(2, 1, 6, 7, 5, 1),  # the last place
    ]


def _start_ignored(keys, values, start, key, value):
    _, t = start, key.shape[2]
    keys[:, :, :t], values[:, :, :t] = key, value
    return keys[:, :, : start + t], values[:, :, : start + t]


def _whole_buffer(keys, values, start, key, value):
    cache_update(keys, values, start, key, value)
    return keys, values


def _only_new(keys, values, start, key, value):
    cache_update(keys, values, start, key, value)
    return key, value


def _only_old(keys, values, start, key, value):
    cache_update(keys, values, start, key, value)
    return keys[:, :, :start], values[:, :, :start]


def _not_stored(keys, values, start, key, value):
    return (
        torch.cat((keys[:, :, :start], key), dim=2),
        torch.cat((values[:, :, :start], value), dim=2),
    )


def _one_token(keys, values, start, key, value):
    keys[:, :, start], values[:, :, start] = key[:, :, 0], value[:, :, 0]
    return keys[:, :, : start + 1], values[:, :, : start + 1]


def _values_hold_keys(keys, values, start, key, value):
    return cache_update(keys, values, start, key, key)


def _behind_the_buffer(keys, values, start, key, value):
    return torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)


CACHE_UPDATE = Exercise(
    name="cache_update",
    reference=cache_update,
    cases=_cache_cases,
    axes="b g s k; b g s k; b g max k; b g max k",
    parts=("all_keys", "all_values", "keys", "values"),
    in_place=("keys", "values"),
    checked=(
        "what is returned and what is stored, every value, in 4 calls: a prompt, one and two new"
        " tokens after it, and the last place of the buffer; the rest of the buffer holds garbage"
        " and is left alone"
    ),
    mistakes=(
        Mistake(
            "start ignored",
            _start_ignored,
            "The new tokens are written to the front of the buffer, over the tokens that were"
            " there. `start` tokens are stored already: write from place `start` on.",
        ),
        Mistake(
            "whole buffer returned",
            _whole_buffer,
            "The whole buffer is returned, with places that hold no token yet. Only the first start"
            " + t places are filled: cut the buffers there.",
        ),
        Mistake(
            "only the new returned",
            _only_new,
            "Only the keys and values of this call are returned. The new token must see the earlier"
            " ones too: return everything so far.",
        ),
        Mistake(
            "only the old returned",
            _only_old,
            "The tokens of this call are stored, but they are missing in what is returned. A token"
            " sees itself too: return start + t places.",
        ),
        Mistake(
            "not stored",
            _not_stored,
            "What you return is right, but nothing is stored: the buffers are as they were. The"
            " next call would find garbage. Write into them: keys[:, :, a:b] = key.",
        ),
        Mistake(
            "one token at a time",
            _one_token,
            "Only the first token of this call is stored. The first call brings the whole prompt:"
            " write all t = key.shape[2] tokens, to the places start to start + t.",
        ),
        Mistake(
            "keys in place of values",
            _values_hold_keys,
            "The buffer of the values holds keys. Look at the two lines that write: one stores key,"
            " the other value.",
        ),
        Mistake(
            "appended behind the buffer",
            _behind_the_buffer,
            "The new tokens are joined on behind the whole buffer, after its empty places, and"
            " nothing is stored. The buffer is long enough: write into it, from place `start` on.",
        ),
    ),
    hints=(
        "The buffers are longer than what is in them. `start` says how many places are filled, and"
        " key.shape[2] how many tokens are new.",
        "Write into a part of a tensor by assigning to it: keys[:, :, a:b] = key. The third axis"
        " counts the tokens.",
        "With end = start + key.shape[2]: write to start:end in both buffers, and return the first"
        " `end` places of both.",
    ),
)


def _positions_cases() -> list[tuple]:
    def case(rows: list[str], earlier: list[int]) -> tuple:
        is_real = torch.tensor([[place == "#" for place in row] for row in rows])
        return is_real, torch.tensor(earlier)[:, None]

    return [
        case(["#####", "..###", ".####"], [0, 0, 0]),  # prompts, padded on the left
        case(["#", "#", "#"], [5, 3, 4]),  # one new token each
        case(["###", "##."], [7, 2]),  # more tokens; the second row is padded at the end
        case(["#", "."], [9, 4]),  # the second row has ended
    ]


def _token_positions(
    is_real: Tensor,
    earlier: Tensor,
    *,
    count: Callable[[Tensor], Tensor] = lambda is_real: is_real.cumsum(1),
    go_on: Callable[[Tensor], Tensor] = lambda earlier: earlier,
    least: int = 1,
) -> Tensor:
    """token_positions with one thing changed."""
    return (count(is_real) + go_on(earlier)).clamp(min=least)


def _all_padding_one(is_real, earlier):
    return (is_real.cumsum(1) + earlier).masked_fill(~is_real, 1)


TOKEN_POSITIONS = Exercise(
    name="token_positions",
    reference=token_positions,
    cases=_positions_cases,
    axes="b t",
    checked=(
        "every position in 4 calls: a padded prompt, one new token after prompts of different"
        " lengths, three new tokens, and a row that has ended"
    ),
    mistakes=(
        Mistake(
            "positions restart",
            partial(_token_positions, go_on=torch.zeros_like),
            "It looks like positions restart at 1 in every call. With a cache, a call brings only"
            " the new tokens: go on after the `earlier` ones of the row.",
        ),
        Mistake(
            "padding counted",
            partial(
                _token_positions,
                count=lambda is_real: torch.arange(1, is_real.shape[1] + 1).expand(is_real.shape),
            ),
            "Padding takes positions too. Count only what is real: a row's first real token has"
            " position 1, however much padding stands in front of it.",
        ),
        Mistake(
            "counted from 0",
            partial(_token_positions, count=lambda is_real: is_real.cumsum(1) - 1, least=0),
            "Positions are counted from 0. The contract says from 1, as transformers does it.",
        ),
        Mistake(
            "padding in front gets 0",
            partial(_token_positions, least=-1),
            "Padding in front of the first token gets position 0. The contract says 1: no position"
            " is smaller than 1.",
        ),
        Mistake(
            "last position twice",
            partial(_token_positions, go_on=lambda earlier: (earlier - 1).clamp(min=0)),
            "The first new token gets the position of the last token before it. After `earlier`"
            " tokens, counted from 1, the next position is earlier + 1.",
        ),
        Mistake(
            "all padding gets 1",
            _all_padding_one,
            "All padding gets position 1. The model would not mind, because padding is masked; but"
            " the contract asks for the number of real tokens so far, and 1 only where there are"
            " none.",
        ),
        Mistake(
            "counted along the batch",
            partial(_token_positions, count=lambda is_real: is_real.cumsum(0)),
            "Tokens are counted along the batch. Rows are different texts: count along the tokens,"
            " axis 1.",
        ),
    ),
    hints=(
        "Without padding and without earlier tokens the answer is 1, 2, 3, ... In each row the"
        " position is the number of real tokens up to this place.",
        "A running count along axis 1: is_real.cumsum(dim=1) counts each True as one.",
        "Add `earlier`; its shape (b, 1) stretches over the tokens. Then .clamp(min=1) for the"
        " padding in front.",
    ),
)


def decode(
    prompt: Tensor,
    is_real: Tensor,
    steps: int,
    layers: int,
    embed: Callable,
    project: Callable,
    rotate: Callable,
    attend: Callable,
    finish: Callable,
    head: Callable,
    *,
    go_on: bool = True,
    count_padding: bool = False,
    rotate_late: bool = False,
    grow_mask: bool = True,
    shared: bool = False,
    prompt_twice: bool = False,
    hide_padding: bool = True,
    causal: bool = False,
) -> Tensor:
    """Prompt tokens (b, t) -> logits (b, steps, v) of the new ones.

    The reference, or with one thing changed.
    """
    calls = [(prompt, is_real)]
    buffers: list = [None] * layers
    seen = is_real[:, :0]
    earlier = torch.zeros(len(prompt), 1, dtype=torch.long)
    start, all_logits = 0, []
    longest = 2 * prompt.shape[1] + steps
    while len(all_logits) < steps:
        tokens, real = calls[-1]
        positions = token_positions(real, earlier if go_on else torch.zeros_like(earlier))
        counted = torch.ones_like(real) if count_padding else real
        earlier = earlier + counted.sum(dim=1, keepdim=True)
        hidden_tokens = torch.zeros_like(real) if start and not grow_mask else real
        seen = torch.cat((seen, hidden_tokens), dim=1)
        mask = (seen if hide_padding else torch.ones_like(seen))[:, None, None]
        if causal and start == 0:
            mask = mask & torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
        x = embed(tokens)
        for i in range(layers):
            query, key, value = project(i, x)
            query = rotate(query, positions)
            if not rotate_late:
                key = rotate(key, positions)
            place = 0 if shared else i
            if buffers[place] is None:
                b, g, _, k = key.shape
                buffers[place] = [key.new_zeros(b, g, longest, k) for _ in "kv"]
            keys, values = cache_update(*buffers[place], start, key, value)
            if rotate_late:
                keys = rotate(keys, positions)
            x = finish(i, x, attend(query, keys, values, mask))
        start += tokens.shape[1]
        if prompt_twice and len(calls) == 1:
            calls.append((prompt, is_real))
            continue
        all_logits.append(head(x[:, -1]))
        new = all_logits[-1].argmax(dim=-1, keepdim=True)
        calls.append((new, torch.ones_like(new, dtype=torch.bool)))
    return torch.stack(all_logits, dim=1)


def _tiny_model(
    seed: int, longest: int, layers: int, h: int, g: int, k: int
) -> tuple[Callable, ...]:
    """Functions of a decoder with random weights: embed, project, rotate, attend, finish, head.

    They refuse what a loop with a cache never asks for, and say what it did.
    """
    random = torch.Generator().manual_seed(seed)
    width, vocabulary = 12, 11

    def matrix(out: int, into: int) -> Tensor:
        return torch.randn(out, into, generator=random) * 1.5 * into**-0.5

    table = torch.randn(vocabulary, width, generator=random)
    maps = [
        [matrix(n * k, width) for n in (h, g, g)] + [matrix(width, h * k), matrix(width, width)]
        for _ in range(layers)
    ]
    last = matrix(vocabulary, width)

    def embed(ids: Tensor) -> Tensor:
        return table[ids]

    def project(layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.shape[1] > longest:
            raise ValueError(
                "the other tokens are in the cache, so each call after the first brings only the"
                f" new one; project got {x.shape[1]} tokens at once (the prompt has {longest})"
            )
        return tuple(
            (x @ weight.T).unflatten(-1, (-1, k)).transpose(1, 2) for weight in maps[layer][:3]
        )

    def rotate(y: Tensor, positions: Tensor) -> Tensor:
        return apply_rope(y, *rope_angles(positions, k, theta=30.0))

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        if mask is None:
            raise ValueError(
                "a new token may see all tokens so far, but not the padding in front of them;"
                " attend got no mask"
            )
        if mask.shape[-1] != key.shape[2]:
            raise ValueError(
                "the mask must grow with the cache, each layer needs a cache of its own, and"
                " nothing is stored twice;"
                f" attend got {key.shape[2]} keys and a mask for {mask.shape[-1]}"
            )
        key, value = (y.repeat_interleave(h // g, dim=1) for y in (key, value))
        return attention_weights(query, key, mask) @ value

    def finish(layer: int, x: Tensor, mixed: Tensor) -> Tensor:
        out, mlp = maps[layer][3:]
        x = x + mixed.transpose(1, 2).flatten(2) @ out.T
        x = x + (x @ mlp.T).tanh()
        return x / x.square().mean(dim=-1, keepdim=True).sqrt()

    def head(x: Tensor) -> Tensor:
        return x @ last.T

    return embed, project, rotate, attend, finish, head


def _decode_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(9)

    def case(rows: list[str], steps: int, layers: int, h: int, g: int, k: int) -> tuple:
        is_real = torch.tensor([[place == "#" for place in row] for row in rows])
        prompt = torch.randint(1, 11, is_real.shape, generator=random) * is_real  # 0 is padding
        # Of the seeds tried, 89 gives the most varied tokens, none of them close to a tie.
        return prompt, is_real, steps, layers, *_tiny_model(89, len(rows[0]), layers, h, g, k)

    return [
        case(["#####", "..###", ".####"], 4, 2, 4, 2, 6),
        case([".###", "####"], 3, 3, 2, 2, 4),
    ]


DECODE = Exercise(
    name="decode",
    reference=decode,
    cases=_decode_cases,
    axes="b steps v",
    checked=(
        "all logits on 2 models of 2 and 3 layers, with padded prompts; no call after the first"
        " brought more tokens than the prompt has"
    ),
    mistakes=(
        Mistake(
            "positions restart",
            partial(decode, go_on=False),
            "It looks like positions restart at 1 in every call. The new token comes after all"
            " others: hand token_positions the number of real tokens of each row so far.",
        ),
        Mistake(
            "positions jump over the padding",
            partial(decode, count_padding=True),
            "In padded rows the position jumps between the prompt and the first new token, by as"
            " many places as there is padding. `earlier` counts the real tokens of each row, not"
            " the places in the cache.",
        ),
        Mistake(
            "un-rotated keys, new positions",
            partial(decode, rotate_late=True),
            "The cache holds keys that are not rotated, and each call rotates all of them by the"
            " positions of the new token. A key keeps the position of its own token: rotate it"
            " once, before it is stored.",
        ),
        Mistake(
            "mask not grown",
            partial(decode, grow_mask=False),
            "The mask knows the prompt alone: new tokens stay hidden, from the later ones and from"
            " themselves. Each call adds a True for each real new token.",
        ),
        Mistake(
            "layers share one cache",
            partial(decode, shared=True),
            "All layers share one cache: a layer finds the keys and values that a later layer left"
            " there. Keep one pair of buffers for each layer.",
        ),
        Mistake(
            "prompt appended twice",
            partial(decode, prompt_twice=True),
            "The prompt is in the cache twice: it went through the model once to fill the cache,"
            " and once more to get the first logits. The first call does both.",
        ),
        Mistake(
            "padding visible",
            partial(decode, hide_padding=False),
            "The mask lets tokens see the padding. Padding is False in the mask, in the first call"
            " and in each later one.",
        ),
        Mistake(
            "causal prompt",
            partial(decode, causal=True),
            "The prompt is masked causally. Here, as in PaliGemma, it is a prefix: each of its"
            " tokens sees all its real tokens, later ones too.",
        ),
    ),
    hints=(
        "One call is: embed, then for each layer project, rotate queries and keys, store, attend,"
        " finish; at the end the head, on the last place alone. The loop makes `steps` such calls:"
        " the first with the prompt, each later one with the token just chosen, as (b, 1).",
        "Four things live from call to call: the buffers of each layer, how many places are filled"
        " (all of them, for cache_update), how many real tokens each row has had (for"
        " token_positions), and the row of booleans that says which places are real.",
        "That row is the mask: (b, s), with two axes put in, mask[:, None, None, :]. After each"
        " choice, torch.cat a column of True to it. Buffers: make them in the first call, when you"
        " know the shape of a key, one pair for each layer, with room for prompt.shape[1] + steps.",
        "Order matters: rotate, then store. The next token is logits.argmax(dim=-1, keepdim=True),"
        " and the result is torch.stack(all_logits, dim=1).",
    ),
)

EXERCISES = (CACHE_UPDATE, TOKEN_POSITIONS, DECODE)
