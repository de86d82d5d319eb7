"""Lesson 08: one layer's cache, positions of new tokens, a decoding loop, a window as a ring."""

import itertools
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from minipali.attention import attention_weights
from minipali.checks.engine import Exercise, Mistake
from minipali.checks.running import EachPlaceOnce
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
        # The prompt. All sizes differ, also by more than 1: who takes one for another is known.
        case(3, 2, 9, 5, 0, 7),
        case(3, 2, 9, 5, 7, 1),  # one new token
        case(2, 3, 8, 4, 3, 2),  # two
        case(2, 1, 6, 7, 5, 1),  # the last place
    ]


def _cache_update(
    keys: Tensor,
    values: Tensor,
    start: int,
    key: Tensor,
    value: Tensor,
    *,
    place: Callable[[int, int, int], int] = lambda start, new, longest: start,
    stored: str = "kv",
    value_of: Callable[[Tensor, Tensor], Tensor] = lambda key, value: value,
    tokens: Callable[[Tensor], Tensor] = lambda new: new,
    rows: Callable[[Tensor], Tensor] = lambda new: new,
    onto: Callable[[Tensor, Tensor], Tensor] = lambda old, new: new,
    within: Callable[[Tensor], Tensor] = lambda part: part,
    behind: Callable[[Tensor], Tensor] = lambda rest: rest,
    read: Callable[[int, int, int], tuple[int, int]] = lambda start, end, longest: (0, end),
    from_the_buffer: bool = True,
    new_first: bool = False,
    order: Callable[[tuple], tuple] = lambda both: both,
) -> tuple[Tensor, Tensor]:
    """cache_update with one thing changed."""
    t, longest, both = key.shape[2], keys.shape[2], []
    for name, buffer, new in zip("kv", (keys, values), (key, value_of(key, value)), strict=True):
        joined = torch.cat((buffer[:, :, :start], new, buffer[:, :, start + t :]), dim=2)
        written = tokens(rows(new))
        if name in stored:
            first = min(place(start, t, longest), longest - written.shape[2])
            part = within(buffer[:, :, first : first + written.shape[2]])
            part[...] = onto(part, within(written))
            rest = buffer[:, :, start + t :]
            rest[...] = behind(rest)
        first, last = read(start, start + t, longest)
        whole = (buffer if from_the_buffer else joined)[:, :, first:last]
        both.append(torch.cat((new, buffer[:, :, :start]), dim=2) if new_first else whole)
    return order(tuple(both))


def _joined(edit: dict[str, Callable]) -> Callable:
    """With one thing changed in what is stored; what is returned is joined, and right.

    No partial: its sentence would be wrong beside another mistake's.
    """
    return lambda *given: _cache_update(*given, **edit, from_the_buffer=False)


def _in_front(keys, values, start, key, value):
    """The new ones in front of the old ones, in the buffers too."""
    end = start + key.shape[2]
    for buffer, new in ((keys, key), (values, value)):
        buffer[:, :, :end] = torch.cat((new, buffer[:, :, :start]), dim=2)
    return keys[:, :, :end], values[:, :, :end]


def _behind_the_end(keys, values, start, key, value):
    """Into no place at all, which torch refuses unless one token comes: that is lost."""
    longest = keys.shape[2]
    keys[:, :, longest : longest + key.shape[2]] = key


def _so_many(number: Callable[[Tensor], int]) -> Callable:
    """What is written goes to `number` places, which torch refuses."""

    def update(keys, values, start, key, value):
        keys[:, :, start : start + number(key)] = key

    return update


def _cut_to(axis: int) -> Callable:
    """As many tokens are taken as another axis is long; what torch stretches or cuts, fits."""

    def update(keys, values, start, key, value):
        n = key.shape[axis]
        for buffer, new in ((keys, key), (values, value)):
            buffer[:, :, start : start + n] = new[:, :, :n]
        return keys[:, :, : start + n], values[:, :, : start + n]

    return update


def _in_one_place(keys, values, start, key, value):
    keys[:, :, start] = key


def _behind_the_buffer(keys, values, start, key, value):
    return torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)


_SO_MANY = (
    "You write as many places as there are {what}: key.shape[{axis}]. The tokens of this call are"
    " the third axis of key, (b, g, t, k): t = key.shape[2]."
)
_OWN_PLACE = (
    "Only the last token of this call is stored; the places before it keep their garbage. The first"
    " call brings the whole prompt: write all t = key.shape[2] tokens, to start to start + t."
)
_NOT_STORED = (
    "Nothing is stored: the buffers are as they were, and the next call would find garbage. Write"
    " into them: keys[:, :, a:b] = key."
)
_LAST_TOKEN = (
    "Only the last token of this call is stored, in the first free place. The first call brings the"
    " whole prompt: write all t = key.shape[2] tokens."
)
_ONE_TOKEN = (
    "Only the first token of this call is stored. The first call brings the whole prompt: write all"
    " t = key.shape[2] tokens, to the places start to start + t."
)

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
            partial(_cache_update, place=lambda start, new, longest: 0),
            "The new tokens are written to the front of the buffer, over the tokens that were"
            " there. `start` tokens are stored already: write from place `start` on.",
        ),
        Mistake(
            "start ignored, and only so many returned",
            partial(
                _cache_update,
                place=lambda start, new, longest: 0,
                read=lambda start, end, longest: (0, end - start),
            ),
            "The new tokens are written to the front of the buffer, over the tokens that were"
            " there. `start` tokens are stored already: write from place `start` on.",
        ),
        Mistake(
            "one place too far",
            partial(_cache_update, place=lambda start, new, longest: start + 1),
            "The new tokens are written one place too far back, and one place of garbage stays"
            " between old and new. Places count from 0, so `start` is the first free one.",
        ),
        Mistake(
            "over the last token",
            partial(_cache_update, place=lambda start, new, longest: max(0, start - 1)),
            "The first new token is written over the last old one. Places count from 0: the old"
            " ones are 0 to start - 1, and `start` is the first free one.",
        ),
        Mistake(
            "last token alone, at its own place",
            partial(
                _cache_update,
                tokens=lambda new: new[:, :, -1:],
                place=lambda start, new, longest: start + new - 1,
            ),
            _OWN_PLACE,
        ),
        Mistake(
            "last token alone, at its own place, and joined to the old ones",
            partial(
                _cache_update,
                tokens=lambda new: new[:, :, -1:],
                place=lambda start, new, longest: start + new - 1,
                from_the_buffer=False,
            ),
            _OWN_PLACE,
        ),
        Mistake(
            "over the last token, and one less returned",
            partial(
                _cache_update,
                place=lambda start, new, longest: max(0, start - 1),
                read=lambda start, end, longest: (0, end - (start > 0)),
            ),
            "The first new token is written over the last old one. Places count from 0: the old"
            " ones are 0 to start - 1, and `start` is the first free one.",
        ),
        Mistake(
            "at the end of the buffer",
            partial(_cache_update, place=lambda start, new, longest: longest - new),
            "The new tokens are written to the end of the buffer. They belong behind those that"
            " are there: from place `start` on.",
        ),
        *(
            Mistake(
                f"{name}, and joined for what is returned",
                _joined(edit),
                "What you return is right, but the buffers are not: " + said,
            )
            for name, edit, said in (
                (
                    "start ignored",
                    {"place": lambda start, new, longest: 0},
                    "the new tokens are written to their front, over the tokens that were there."
                    " Write from place `start` on.",
                ),
                (
                    "one place too far",
                    {"place": lambda start, new, longest: start + 1},
                    "the new tokens are written one place too far back. Places count from 0, so"
                    " `start` is the first free one.",
                ),
                (
                    "over the last token",
                    {"place": lambda start, new, longest: max(0, start - 1)},
                    "the first new token is written over the last old one. Places count from 0, so"
                    " `start` is the first free one.",
                ),
                (
                    "at the end of the buffer",
                    {"place": lambda start, new, longest: longest - new},
                    "the new tokens are written to their end. Write from place `start` on.",
                ),
                (
                    "first token alone",
                    {"tokens": lambda new: new[:, :, :1]},
                    "only the first token of this call is stored. Write all t = key.shape[2]"
                    " tokens, to the places start to start + t.",
                ),
                (
                    "last token alone",
                    {"tokens": lambda new: new[:, :, -1:]},
                    "only the last token of this call is stored, in the first free place. Write all"
                    " t = key.shape[2] tokens, to the places start to start + t.",
                ),
            )
        ),
        Mistake(
            "whole buffer returned",
            partial(_cache_update, read=lambda start, end, longest: (0, longest)),
            "The whole buffer is returned, with places that hold no token yet. Only the first start"
            " + t places are filled: cut the buffers there.",
        ),
        Mistake(
            "only the new returned",
            partial(_cache_update, read=lambda start, end, longest: (start, end)),
            "Only the keys and values of this call are returned. The new token must see the earlier"
            " ones too: return everything so far.",
        ),
        Mistake(
            "only the old returned",
            partial(_cache_update, read=lambda start, end, longest: (0, start)),
            "The tokens of this call are stored, but they are missing in what is returned. A token"
            " sees itself too: return start + t places.",
        ),
        Mistake(
            "last place not returned",
            partial(_cache_update, read=lambda start, end, longest: (0, end - 1)),
            "The last token is missing in what is returned. A slice ends before its second number:"
            " keys[:, :, : start + t] holds start + t places.",
        ),
        Mistake(
            "one place too many returned",
            partial(_cache_update, read=lambda start, end, longest: (0, end + 1)),
            "One place too many is returned, which holds no token yet. start + t places are filled:"
            " keys[:, :, : start + t].",
        ),
        Mistake(
            "not stored",
            partial(_cache_update, stored="", from_the_buffer=False),
            _NOT_STORED,
        ),
        Mistake(
            "written into a copy",
            partial(_cache_update, stored=""),
            "Nothing is stored, and what you return holds the garbage that was there. You write"
            " into a copy (a list of places, as in keys[:, :, [4, 5]][...], or .clone() makes"
            " one): write keys[:, :, a:b] = key.",
        ),
        Mistake(
            "values not stored",
            partial(_cache_update, stored="k", from_the_buffer=False),
            "The keys are stored, but the values are not: the next call would find garbage. Write"
            " into both buffers.",
        ),
        Mistake(
            "keys not stored",
            partial(_cache_update, stored="v", from_the_buffer=False),
            "The values are stored, but the keys are not: the next call would find garbage. Write"
            " into both buffers.",
        ),
        Mistake(
            "one token at a time",
            partial(
                _cache_update,
                tokens=lambda new: new[:, :, :1],
                read=lambda start, end, longest: (0, start + 1),
            ),
            _ONE_TOKEN,
        ),
        Mistake(
            "one token at a time, all returned",
            partial(_cache_update, tokens=lambda new: new[:, :, :1]),
            _ONE_TOKEN,
        ),
        Mistake(
            "last token alone",
            partial(_cache_update, tokens=lambda new: new[:, :, -1:]),
            _LAST_TOKEN,
        ),
        Mistake(
            "last token alone, and one place returned",
            partial(
                _cache_update,
                tokens=lambda new: new[:, :, -1:],
                read=lambda start, end, longest: (0, start + 1),
            ),
            _LAST_TOKEN,
        ),
        Mistake(
            "one row written",
            partial(_cache_update, within=lambda part: part[:1]),
            "Only the first row of the buffers is written, keys[0]. Each text of the batch has its"
            " own row: keys[:, :, a:b] = key writes them all.",
        ),
        Mistake(
            "one head written",
            partial(_cache_update, within=lambda part: part[:, :1]),
            "Only the first head of the buffers is written, keys[:, 0]. Each has keys and values of"
            " its own: keys[:, :, a:b] = key writes them all.",
        ),
        Mistake(
            "number of texts for tokens",
            _cut_to(0),
            _SO_MANY.format(what="texts", axis=0),
        ),
        Mistake(
            "first row alone",
            partial(_cache_update, rows=lambda new: new[:1].expand_as(new)),
            "All rows of the buffers get the tokens of the first text. Each text of the batch has"
            " its own row: keys[:, :, a:b] = key, with key as it is.",
        ),
        Mistake(
            "added",
            partial(_cache_update, onto=lambda old, new: old + new),
            "The new tokens are added to what lies in the buffer, and that is garbage. Assign them:"
            " = and not +=.",
        ),
        Mistake(
            "the rest cleared",
            partial(_cache_update, behind=torch.zeros_like),
            "What lies further back is overwritten with zeros. Leave it alone: write to the places"
            " start to start + t, and to no others.",
        ),
        Mistake(
            "keys in place of values",
            partial(_cache_update, value_of=lambda key, value: key),
            "The buffer of the values holds keys. Look at the two lines that write: one stores key,"
            " the other value.",
        ),
        Mistake(
            "values first",
            partial(_cache_update, order=lambda both: both[::-1]),
            "Keys and values have changed places in what you return: keys first.",
        ),
        Mistake(
            "new before old",
            partial(_cache_update, new_first=True),
            "What you return begins with the new tokens. The old ones come first, as they are"
            " stored.",
        ),
        Mistake(
            "stored in front",
            _in_front,
            "The new tokens are put in front of the old ones, which are moved back. Nothing is"
            " moved: the new ones are written behind the old ones, from place `start` on.",
        ),
        Mistake(
            "appended behind the buffer",
            _behind_the_buffer,
            "The new tokens are joined on behind the whole buffer, after its empty places, and"
            " nothing is stored. The buffer is long enough: write into it, from place `start` on.",
        ),
    ),
    crashes=(
        *(
            Mistake(
                f"number of {what} for tokens",
                _so_many(lambda key, axis=axis: key.shape[axis]),
                _SO_MANY.format(what=what, axis=axis),
            )
            for axis, what in ((0, "texts"), (1, "heads"), (3, "numbers in a head"))
        ),
        *(
            Mistake(
                f"number of {what} for tokens, which are cut to it",
                _cut_to(axis),
                _SO_MANY.format(what=what, axis=axis),
            )
            for axis, what in ((1, "heads"), (3, "numbers in a head"))
        ),
        *(
            Mistake(
                f"{more:+d} place",
                _so_many(lambda key, more=more: key.shape[2] + more),
                f"The part that you write into is one place too {long}. A slice ends before its"
                " second number: keys[:, :, start : start + t] has t places.",
            )
            for more, long in ((-1, "short"), (1, "long"))
        ),
        Mistake(
            "behind the end",
            _behind_the_end,
            "You write behind the end of the buffer. Its first free place is `start`. (It cannot be"
            " found in what is stored: what lies further back is garbage, not 0. And max is the"
            " length of the whole buffer.)",
        ),
        Mistake(
            "one place for all",
            _in_one_place,
            "keys[:, :, start] is a single place, and this call brings t tokens: write to places"
            " start to start + t, keys[:, :, start : start + t] = key.",
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
        case(["#####", "..###", ".####", "....."], [0, 0, 0, 0]),  # prompts, padded on the left
        case(["#", "#", "#"], [3, 5, 4]),  # one new token each
        # More tokens, with padding behind them, in front of them, and between them.
        case(["####", "##..", "..##", "#..#"], [7, 2, 5, 3]),
        case(["#", "."], [9, 4]),  # the second row has ended
        case(["#" * 300, "." * 7 + "#" * 293], [0, 0]),  # more than a byte can count
    ]


def _token_positions(
    is_real: Tensor,
    earlier: Tensor,
    *,
    count: Callable[[Tensor], Tensor] = lambda is_real: is_real.cumsum(1),
    go_on: Callable[[Tensor], Tensor] = lambda earlier: earlier,
    more: int = 0,
    least: int = 1,
    at_padding: Callable[[Tensor, Tensor], Tensor] = lambda positions, is_real: positions,
) -> Tensor:
    """token_positions with one thing changed."""
    positions = (count(is_real) + go_on(earlier) + more).clamp(min=least)
    return at_padding(positions, is_real)


_RESTART = (
    "It looks like positions restart at 1 in every call. With a cache, a call brings only the new"
    " tokens: go on after the `earlier` ones of the row."
)
_EARLIER = (
    "All rows go on from one and the same number. Each row has had its own number of real tokens:"
    " `earlier` is (b, 1), one number a row."
)

TOKEN_POSITIONS = Exercise(
    name="token_positions",
    reference=token_positions,
    cases=_positions_cases,
    axes="b t",
    checked=(
        "every position in 5 calls: padded prompts and a row of nothing but padding, one new token"
        " after prompts of different lengths, more of them with padding in front, between and"
        " behind, a row that has ended, and 300 tokens at once; inputs unchanged"
    ),
    mistakes=(
        Mistake("positions restart", partial(_token_positions, go_on=torch.zeros_like), _RESTART),
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
            partial(_token_positions, more=-1, least=0),
            "Positions are counted from 0. The contract says from 1, as transformers does it.",
        ),
        Mistake(
            "counted from 0, and 0 made 1",
            partial(_token_positions, more=-1),
            "Every position is one too low, and 0 is made 1. cumsum counts the token itself, as it"
            " should: subtract nothing.",
        ),
        Mistake(
            "counted before the token",
            partial(_token_positions, count=lambda is_real: is_real.cumsum(1) - is_real.long()),
            "Only the tokens *before* a place are counted. The contract counts up to and including"
            " it: is_real.cumsum(dim=1) does.",
        ),
        Mistake(
            "one too many",
            partial(_token_positions, more=1),
            "Every position is one too high. cumsum counts the token itself already: the first real"
            " token has position 1.",
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
            "one jumped over",
            partial(_token_positions, go_on=lambda earlier: earlier + (earlier > 0)),
            "Between the last call and this one a position is left out. After `earlier` tokens,"
            " counted from 1, the next position is earlier + 1, and cumsum adds this 1 already.",
        ),
        Mistake(
            "clamped before earlier",
            partial(_token_positions, count=lambda is_real: is_real.cumsum(1).clamp(min=1)),
            "1 is made the least number before `earlier` is added, so padding in front counts as a"
            " token in later calls. First add, then clamp: a place with padding gets the number of"
            " real tokens so far, and 1 only where there are none.",
        ),
        Mistake(
            "all padding gets 1",
            partial(_token_positions, at_padding=lambda p, is_real: p.masked_fill(~is_real, 1)),
            "All padding gets position 1. The model would not mind, because padding is masked; but"
            " the contract asks for the number of real tokens so far, and 1 only where there are"
            " none.",
        ),
        Mistake(
            "all padding gets 0",
            partial(_token_positions, at_padding=lambda p, is_real: p * is_real),
            "All padding gets position 0. The contract asks for the number of real tokens so far,"
            " and 1 where there are none.",
        ),
        Mistake(
            "padding gets the next position",
            partial(_token_positions, at_padding=lambda p, is_real: p + (~is_real & (p > 1))),
            "Padding behind real tokens gets the position of the next token. The contract asks for"
            " the number of real tokens so far.",
        ),
        Mistake(
            "padding counted after the first token",
            lambda is_real, earlier: (
                earlier + ((is_real.cumsum(1) + earlier) > 0).cumsum(1)
            ).clamp(min=1),
            "Padding counts as soon as a row has had a real token. It never does: a place with"
            " padding gets the number of real tokens so far, those of `earlier` included.",
        ),
        Mistake(
            "padding counted after the first token of this call",
            lambda is_real, earlier: (earlier + (is_real.cumsum(1) > 0).cumsum(1)).clamp(min=1),
            "Padding behind the first real token of a call is counted. It never is: a place with"
            " padding gets the number of real tokens so far, those of `earlier` included.",
        ),
        Mistake(
            "padding gets its own call's count",
            lambda is_real, earlier: torch.where(
                is_real, is_real.cumsum(1) + earlier, is_real.cumsum(1)
            ).clamp(min=1),
            "At padding the tokens of this call alone are counted. A place with padding gets the"
            " number of real tokens so far, those of `earlier` included.",
        ),
        Mistake(
            "1 in front of this call's tokens",
            lambda is_real, earlier: torch.where(
                is_real.cumsum(1) == 0, 1, is_real.cumsum(1) + earlier
            ),
            "Padding in front of the tokens of this call gets 1, also in rows that had tokens"
            " before. `earlier` counts there, too: 1 is only for rows without a real token so far.",
        ),
        Mistake(
            "counted through all rows",
            partial(
                _token_positions,
                count=lambda is_real: is_real.flatten().cumsum(0).view(is_real.shape),
            ),
            "The count goes on from row to row. Rows are different texts: count in each alone,"
            " along axis 1.",
        ),
        Mistake(
            "counted along the batch",
            partial(_token_positions, count=lambda is_real: is_real.cumsum(0)),
            "Tokens are counted along the batch. Rows are different texts: count along the tokens,"
            " axis 1.",
        ),
        Mistake(
            "sum of the row",
            partial(
                _token_positions,
                count=lambda is_real: is_real.sum(1, keepdim=True).expand(is_real.shape),
            ),
            "All tokens of a row get the same position: the sum. A position counts the real tokens"
            " up to its place: a running sum, cumsum.",
        ),
        Mistake(
            "counted from the end",
            partial(_token_positions, count=lambda is_real: is_real.flip(1).cumsum(1).flip(1)),
            "The tokens are counted from the end of the row. Count from the left.",
        ),
        Mistake(
            "earlier of the first row",
            partial(_token_positions, go_on=lambda earlier: earlier[:1].expand_as(earlier)),
            _EARLIER,
        ),
        Mistake(
            "earlier of the longest row",
            partial(_token_positions, go_on=lambda earlier: earlier.max().expand_as(earlier)),
            _EARLIER,
        ),
        Mistake(
            "earlier subtracted",
            partial(_token_positions, go_on=lambda earlier: -earlier),
            "`earlier` is subtracted. These tokens came before, so the new ones are further on: add"
            " it.",
        ),
        Mistake(
            "counted in bytes",
            partial(
                _token_positions,
                count=lambda is_real: is_real.cumsum(1, dtype=torch.uint8).long(),
            ),
            "After 255 tokens the count begins again at 0: it was made in uint8, which holds no"
            " more. A picture alone can have more tokens.",
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
    counted: Callable[[Tensor], Tensor] = lambda real: real.sum(dim=1, keepdim=True),
    later: int = 0,
    advance: bool = True,
    turned: str = "qk",
    rotate_late: bool = False,
    newest: bool = False,
    grow_mask: bool = True,
    shared: bool = False,
    hide_padding: tuple[bool, bool] = (True, True),
    causal: bool = False,
    visible: Callable[[Tensor, int], Tensor] = lambda mask, prompt: mask,
    of_a_row: Callable[[Tensor], Tensor] = lambda positions: positions,
    again: str = "",
    only_new: bool = False,
    exchanged: bool = False,
    forget: bool = False,
    chained: bool = True,
    place: int = -1,
    read: Callable[[Tensor], Tensor] | None = None,
    choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(dim=-1, keepdim=True),
    fed: Callable[[list[Tensor]], Tensor] = lambda tokens: tokens[-1],
    more: int = 0,
    finished: Callable[[list[Tensor]], Tensor] = lambda all_logits: torch.stack(all_logits, dim=1),
) -> Tensor:
    """Prompt tokens (b, t) -> logits (b, steps, v) of the new ones.

    The reference, or with one thing changed.
    """
    calls = [(prompt, is_real)]
    buffers: list = [None] * layers
    seen = is_real[:, :0]
    earlier = torch.zeros(len(prompt), 1, dtype=torch.long)
    start, all_logits, chosen, everywhere = 0, [], [prompt[:, -1:]], prompt
    longest = prompt.shape[1] + steps + more
    while len(all_logits) < steps + more:
        tokens, real = calls[-1]
        positions = token_positions(real, earlier if go_on else torch.zeros_like(earlier))
        if only_new and start:
            positions = torch.full_like(positions, len(all_logits))
        positions = of_a_row(positions + later * (start > 0))
        everywhere = torch.cat((everywhere, positions), dim=1) if start else positions
        if advance or not start:
            earlier = earlier + counted(real)
        hidden_tokens = torch.zeros_like(real) if start and not grow_mask else real
        seen = torch.cat((seen[:, :0] if forget else seen, hidden_tokens), dim=1)
        hide = hide_padding[0 if start == 0 else 1]
        mask = (seen if hide else torch.ones_like(seen))[:, None, None]
        if causal and start == 0:
            mask = mask & torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
        mask = visible(mask, prompt.shape[1])
        x = embedded = embed(tokens)
        for i in range(layers):
            query, key, value = project(i, x)
            query = rotate(query, positions) if "q" in turned else query
            if "k" in turned and not rotate_late:
                key = rotate(key, positions)
            value = rotate(value, positions) if "v" in turned else value
            where = 0 if shared else i
            if buffers[where] is None:
                b, g, _, k = key.shape
                buffers[where] = [key.new_zeros(b, g, longest, k) for _ in "kv"]
            keys, values = cache_update(*buffers[where], start, key, value)
            if forget:
                keys, values = key, value
            if rotate_late:
                keys = rotate(keys, positions[:, -1:] if newest else positions)
            if again and start:
                turned_again = rotate(keys, everywhere if "own" in again else positions)
                if "old" in again:
                    turned_again[:, :, start:] = key
                keys = keys.copy_(turned_again) if "kept" in again else turned_again
            if exchanged:
                keys, values = values, keys
            x = finish(i, x if chained else embedded, attend(query, keys, values, mask))
        start += tokens.shape[1]
        all_logits.append(head(read(x) if read else x[:, place]))
        chosen.append(choose(all_logits[-1]))
        calls.append((fed(chosen), torch.ones_like(chosen[-1], dtype=torch.bool)))
    return finished(all_logits)


def _tiny_model(seed: int, layers: int, h: int, g: int, k: int) -> tuple[Callable, ...]:
    """Functions of a decoder with random weights: embed, project, rotate, attend, finish, head.

    attend refuses what a loop with a cache never asks for, and says what it did.
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


@cache  # two mistakes at once are tried on them hundreds of times
def _decode_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(9)

    def case(rows: list[str], steps: int, layers: int, h: int, g: int, k: int, seed: int) -> tuple:
        is_real = torch.tensor([[place == "#" for place in row] for row in rows])
        prompt = torch.randint(1, 11, is_real.shape, generator=random) * is_real  # 0 is padding
        return prompt, is_real, steps, layers, *_tiny_model(seed, layers, h, g, k)

    # Of the seeds tried, these give the most varied tokens, none of them close to a tie.
    return [
        case(["..###", "#####", ".####"], 4, 2, 4, 2, 6, seed=315),
        case(["..##", ".###"], 3, 3, 2, 2, 4, seed=300),  # no row is without padding
    ]


def _one_at_a_time(decoding: Callable) -> Callable:
    """What is tried: a loop whose project refuses what is in the cache already."""

    def tried(prompt, is_real, steps, layers, embed, project, *others):
        calls, layer_before, in_the_first = 1, 0, {}

        def projected(layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal calls, layer_before
            calls += layer < layer_before  # within a call a layer may be asked more than once
            layer_before = layer
            if calls == 1:
                in_the_first[layer] = x
            elif x.shape[1] > 1 and torch.equal(x, in_the_first.get(layer, x[:, :0])):
                raise ValueError(
                    "one call with the prompt fills the cache and gives the first logits; the"
                    " prompt goes through the model a second time"
                )
            elif x.shape[1] > 1:
                raise ValueError(
                    "each call after the first brings one new token, because all others are in the"
                    f" cache; project got {x.shape[1]} tokens at once (the prompt has"
                    f" {prompt.shape[1]})"
                )
            return project(layer, x)

        return decoding(prompt, is_real, steps, layers, embed, projected, *others)

    return tried


def _alone(**changes) -> Callable:
    """An edit of decode that is not tried together with others: two at once cost time."""
    return lambda *given: decode(*given, **changes)


def _hide(part: str) -> Callable[[Tensor, int], Tensor]:
    """Part of what a new token sees is hidden from it; the prompt sees what it should."""

    def visible(mask: Tensor, prompt: int) -> Tensor:
        if mask.shape[-1] == prompt:
            return mask
        mask = mask.clone()
        if part == "itself":
            mask[..., -1] = False
        elif part == "prompt":
            mask[..., :prompt] = False
        else:
            mask[..., prompt:-1] = False
        return mask

    return visible


_AGAIN = (
    "The keys of the cache are rotated once more in each call. A key is rotated once, by the"
    " position of its own token, and stored so."
)
_COMMONEST = "old new kept"  # this one also together with others
_UNDONE = (
    "In later calls the rotation of the query has no effect: either the query is not rotated there,"
    " or all keys of the cache are rotated once more by its position. Rotate every query and every"
    " key once, by the position of its own token."
)

_ALONE = (
    Mistake(
        "new token does not see itself",
        _alone(visible=_hide("itself")),
        "A new token sees all others, but not itself. Its key and value are in the cache when it"
        " looks: put a True for it into the mask before the call.",
    ),
    Mistake(
        "prompt hidden later",
        _alone(visible=_hide("prompt")),
        "New tokens do not see the prompt. The mask of a later call has a column for each place so"
        " far: those of the prompt, as they were, and one more for each new token.",
    ),
    Mistake(
        "earlier new tokens hidden",
        _alone(visible=_hide("between")),
        "A new token sees the prompt and itself, but not the tokens that were written before it."
        " Each call adds a True that stays.",
    ),
    Mistake(
        "mask upside down",
        _alone(visible=lambda mask, prompt: ~mask),
        "The mask is upside down: True is where a query may look, which is where tokens are real.",
    ),
    Mistake(
        "one row's mask for all",
        _alone(visible=lambda mask, prompt: mask[:1].expand_as(mask)),
        "All rows got the mask of the first one. Each row has its own padding: (b, 1, 1, s).",
    ),
    Mistake(
        "one row's positions for all",
        _alone(of_a_row=lambda positions: positions[:1].expand_as(positions)),
        "All rows got the positions of the first one. Rows have different padding, so their"
        " positions differ: (b, t).",
    ),
    Mistake(
        "padding counted in the prompt",
        _alone(
            of_a_row=lambda positions: (
                torch.arange(1, positions.shape[1] + 1).expand_as(positions)
                if positions.shape[1] > 1
                else positions
            )
        ),
        "In the prompt, padding takes positions, and later it does not, so new tokens stand too"
        " near. Count real tokens alone in every call, as token_positions does.",
    ),
    Mistake(
        "all keys by the newest position",
        _alone(rotate_late=True, newest=True),
        "The cache holds keys that are not rotated, and each call rotates all of them by the"
        " newest position. A key keeps the position of its own token: rotate it once, before it is"
        " stored.",
    ),
    *(
        Mistake(
            f"rotated again: {which}, {how}",
            _alone(again=f"{which} {how}"),
            _UNDONE if (which, how) == ("all new", "read") else _AGAIN,
        )
        for which, how in itertools.product(
            ("all new", "all own", "old own", "old new"), ("read", "kept")
        )
        if f"{which} {how}" != _COMMONEST
    ),
    Mistake(
        "position stays",
        _alone(advance=False, later=-1),
        "All new tokens get the position of the prompt's last one. `earlier` is the number of all"
        " real tokens before a call, and grows by one with each new token.",
    ),
    Mistake(
        "only new tokens counted",
        _alone(only_new=True),
        "The new tokens are counted 1, 2, 3, ..., as if there were no prompt. They come after it:"
        " `earlier` holds the real tokens of the prompt, too.",
    ),
    Mistake(
        "keys and values exchanged",
        _alone(exchanged=True),
        "Keys and values have changed places on the way to attend: query, key, value.",
    ),
    Mistake(
        "mean of all places",
        _alone(read=lambda x: x.mean(dim=1)),
        "The logits come from the mean of all places. What follows the last token is read from the"
        " last place: head(x[:, -1]).",
    ),
    Mistake(
        "last token of the prompt fed",
        _alone(fed=lambda tokens: tokens[0]),
        "Each later call gets the last token of the prompt again. Feed the token that was just"
        " chosen.",
    ),
    Mistake(
        "first choice fed again",
        _alone(fed=lambda tokens: tokens[1]),
        "Each later call gets the first chosen token again. Feed the one that was just chosen.",
    ),
    Mistake(
        "one token late",
        _alone(fed=lambda tokens: tokens[-2]),
        "Each later call gets the token before the one that was just chosen. Feed the newest one.",
    ),
    Mistake(
        "second likeliest",
        _alone(choose=lambda logits: logits.topk(2, dim=-1).indices[:, 1:]),
        "The second largest logit is chosen. The likeliest token is the one with the largest:"
        " argmax.",
    ),
    Mistake(
        "logarithms of probabilities",
        _alone(finished=lambda all_logits: torch.stack(all_logits, dim=1).log_softmax(-1)),
        "These are logarithms of probabilities. Return the logits, as head gives them.",
    ),
)

DECODE = Exercise(
    name="decode",
    reference=decode,
    cases=_decode_cases,
    asked=_one_at_a_time,
    axes="b steps v",
    checked=(
        "all logits on 2 models of 2 and 3 layers, with padded prompts; each call after the first"
        " brought one token"
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
            partial(decode, counted=lambda real: real.shape[1]),
            "In padded rows the position jumps between the prompt and the first new token, by as"
            " many places as there is padding. `earlier` counts the real tokens of each row, not"
            " the places in the cache.",
        ),
        Mistake(
            "positions of the longest row",
            _alone(counted=lambda real: real.sum(dim=1).max()),
            "All rows go on from the number of real tokens of the longest one. `earlier` has a"
            " number for each row, (b, 1): its own real tokens.",
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
            "padding visible",
            partial(decode, hide_padding=(False, False)),
            "The mask lets tokens see the padding. Padding is False in the mask, in the first call"
            " and in each later one.",
        ),
        Mistake(
            "causal prompt",
            partial(decode, causal=True),
            "The prompt is masked causally. Here, as in PaliGemma, it is a prefix: each of its"
            " tokens sees all its real tokens, later ones too.",
        ),
        Mistake(
            "padding visible later",
            _alone(hide_padding=(True, False)),
            "The padding is hidden in the first call, and visible in the later ones. The mask of a"
            " later call has a column for each place so far, and padding stays False in it.",
        ),
        Mistake(
            "padding visible at first",
            _alone(hide_padding=(False, True)),
            "The padding is visible in the first call. It is False in the mask, in the first call"
            " and in each later one.",
        ),
        Mistake(
            "only the new token visible",
            partial(decode, forget=True),
            "In later calls the new token sees nothing but itself: what was stored is not handed to"
            " attend. Attend to all keys and values so far.",
        ),
        Mistake(
            "last position twice",
            partial(decode, later=-1),
            "The first new token gets the position of the prompt's last token, and so on: all new"
            " positions are one too low. token_positions adds 1 by itself, so `earlier` is the"
            " number of all real tokens before this call.",
        ),
        Mistake(
            "one position jumped over",
            _alone(later=1),
            "All new positions are one too high: between the prompt and the first new token one is"
            " left out. `earlier` is the number of real tokens before this call; token_positions"
            " adds the 1.",
        ),
        Mistake(
            "position does not advance",
            _alone(advance=False),
            "All new tokens get the same position. `earlier` grows by one with each of them.",
        ),
        *(
            Mistake(f"turned: {turned or 'nothing'}", partial(decode, turned=turned), says)
            for turned, says in (
                (
                    "qkv",
                    "The values are rotated too. Only queries and keys are: what they share is a"
                    " distance, and a value meets no second turned vector.",
                ),
                (
                    "q",
                    "The keys are not rotated, neither before they are stored nor after. Rotate"
                    " queries and keys, each by the positions of its own call.",
                ),
                (
                    "k",
                    "The queries are not rotated. Rotate queries and keys, each by the positions of"
                    " its own call.",
                ),
                (
                    "",
                    "Nothing is rotated, so the model does not know which token stands where."
                    " Rotate queries and keys by the positions of their call.",
                ),
            )
        ),
        Mistake(f"rotated again: {_COMMONEST}", partial(decode, again=_COMMONEST), _AGAIN),
        *_ALONE,
        Mistake(
            "layers not chained",
            _alone(chained=False),
            "Each layer is finished with the embedded tokens, as if no layer had come before. Hand"
            " on what the last one returned: x = finish(layer, x, mixed).",
        ),
        Mistake(
            "first place read",
            partial(decode, place=0),
            "The logits come from the first place. The last place has seen the whole prompt, and"
            " what follows it is the new token: head(x[:, -1]).",
        ),
        Mistake(
            "first row's choice",
            _alone(
                choose=lambda logits: logits[:1].argmax(-1, keepdim=True).expand(len(logits), 1),
            ),
            "Every text gets the token that was chosen for the first one. Each row chooses its own:"
            " argmax over the last axis, dim=-1.",
        ),
        Mistake(
            "least likely",
            _alone(choose=lambda logits: logits.argmin(dim=-1, keepdim=True)),
            "The smallest logit is chosen. The likeliest token is the one with the largest:"
            " argmax.",
        ),
        Mistake(
            "probabilities",
            partial(decode, finished=lambda all_logits: torch.stack(all_logits, dim=1).softmax(-1)),
            "These are probabilities. Return the logits, as head gives them.",
        ),
        Mistake(
            "steps in front",
            _alone(finished=torch.stack),
            "The steps are the first axis. Put them behind the batch: torch.stack(all_logits,"
            " dim=1).",
        ),
        Mistake(
            "one step too few",
            partial(decode, more=-1),
            "There is one step too few. The first call, with the prompt, chooses a token already:"
            " `steps` calls in all, and logits of each.",
        ),
        Mistake(
            "one step too many",
            _alone(more=1),
            "There is one step too many. The first call, with the prompt, chooses a token already:"
            " `steps` calls in all, the prompt's among them.",
        ),
        Mistake(
            "prompt's logits left out",
            _alone(more=1, finished=lambda all_logits: torch.stack(all_logits[1:], dim=1)),
            "The logits of the first call are missing. The first new token is chosen from what the"
            " prompt's last place gives, so these are the first to be returned.",
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


def _ring_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(18)

    def case(b: int, g: int, window: int, k: int, start: int, t: int) -> tuple:
        buffers = []
        for _ in "kv":
            # What is not filled yet is garbage: a new buffer is not empty.
            buffer = torch.randn(b, g, window, k, generator=random)
            buffer[:, :, start:] = 1000 + 100 * buffer[:, :, start:]
            buffers.append(buffer)
        key, value = (torch.randn(b, g, t, k, generator=random) for _ in "kv")
        return (*buffers, start, key, value)

    return [
        case(3, 2, 5, 4, 0, 3),  # a short prompt
        case(3, 2, 5, 4, 3, 1),  # one more, and the ring is not full yet
        case(2, 1, 4, 3, 4, 2),  # it is just full: a place for each token so far
        case(3, 2, 5, 4, 12, 1),  # long ago it was
        case(2, 3, 5, 4, 8, 3),  # three, of which the last begins the ring anew
        case(2, 1, 5, 6, 0, 8),  # a prompt that is longer than the window
        case(2, 2, 4, 3, 7, 6),  # and more of it later
        case(2, 1, 1, 3, 5, 2),  # a window of one: each token sees itself alone
    ]


def ring_update(
    keys: Tensor,
    values: Tensor,
    start: int,
    key: Tensor,
    value: Tensor,
    *,
    back: Callable[[int], int] = lambda window: window - 1,
    known: Callable[[int, int], int] = lambda start, window: start,
    number: Callable[[Tensor, int], Tensor] = lambda places, window: places % window,
    stay: Callable[[Tensor, int], Tensor] = lambda fresh, window: fresh[-window:],
    to: Callable[[Tensor, int, int], Tensor] = lambda stay, start, window: stay,
    written_first: str = "",
    stored: str = "kv",
    value_of: Callable[[Tensor, Tensor], Tensor] = lambda key, value: value,
    old_order: Callable[[Tensor, int, int], Tensor] = lambda places, window, start: places,
    take: Callable[[Tensor, Tensor], Tensor] = lambda buffer, places: buffer[:, :, places],
    cut: bool = False,
    parts: Callable[[Tensor, Tensor, int], tuple] = lambda old, new, window: (old, new),
    rolled: bool = False,
    cleared: bool = False,
    order: Callable[[tuple], tuple] = lambda both: both,
) -> tuple[Tensor, Tensor]:
    """All keys and values that this call's tokens may see, and its own stored in the ring.

    keys, values: (b, g, window, k), written in place; key, value: (b, g, t, k) -> two of (b, g, s,
    k). The reference, or with one thing changed.
    """
    window, t, both = keys.shape[2], key.shape[2], []
    last = known(start, window)
    before = torch.arange(max(0, last - max(0, back(window))), last)
    before = old_order(number(before, window), window, start)
    for name, buffer, new in zip("kv", (keys, values), (key, value_of(key, value)), strict=True):
        old = take(buffer, before)
        kept = stay(torch.arange(start, start + t), window)
        if name in stored:
            places = number(to(kept, start, window), window)
            for place, token in zip(places.tolist(), (kept - start).tolist(), strict=True):
                buffer[:, :, place] = new[:, :, token]
            if cleared:
                buffer[:, :, start + t :] = 0
            if rolled:  # what is oldest at the front
                buffer[...] = buffer.roll(-((start + t) % window) * (start + t >= window), 2)
        if name in written_first:
            old = take(buffer, before)
        whole = torch.cat(parts(old, new, window), dim=2)
        both.append(whole[:, :, -window:] if cut else whole)
    return order(tuple(both))


# What is read of a ring in which each token so far has its place, and no older one was there.
JUST_FULL = {
    "the first places": lambda window: torch.arange(window - 1),
    "all": torch.arange,
    "none": lambda window: torch.arange(0),
}

_NOT_IN_THE_RING = " Token number n of a row, counted from 0, lies at place n % window."

_PUSHED = (
    "The buffer is pushed along, so that its tokens lie in their order. That moves every key in"
    " each step. In a ring nothing moves: the new token takes the place of the oldest."
    + _NOT_IN_THE_RING
)
_ALL_STORED = (
    " token of this call is stored. A call may bring several: store all t, or the last `window` of"
    " them, each at its own place."
)
_SEVERAL_IN_A_ROW = (
    "Of a call with more than `window` tokens the last ones are stored, but at the places of other"
    " tokens: the first of those that stay lies where its own number says." + _NOT_IN_THE_RING
)


def _as_a_slice(buffer: Tensor, places: Tensor) -> Tensor:
    """A view, if the places lie in one piece."""
    if not len(places) or places[-1] - places[0] != len(places) - 1:
        return buffer[:, :, places]
    return buffer[:, :, places[0] : places[-1] + 1]


def _pushed_through(keys, values, start, key, value):
    window, both = keys.shape[2], []
    for buffer, new in ((keys, key), (values, value)):
        old = buffer[:, :, : min(start, window)].clone()
        both.append(torch.cat((old[:, :, int(start >= window) :], new), dim=2))
        kept = torch.cat((old, new), dim=2)[:, :, -window:]
        buffer[:, :, : kept.shape[2]] = kept
    return tuple(both)


def _queue(keys, values, start, key, value):
    """The newest lies at the end from the first token on, and garbage in front."""
    window, both = keys.shape[2], []
    for buffer, new in ((keys, key), (values, value)):
        whole = torch.cat((buffer, new), dim=2)
        both.append(whole[:, :, window - min(start, window - 1) :])
        buffer[...] = whole[:, :, -window:]
    return tuple(both)


def _start_as_a_place(keys, values, start, key, value):
    """As in an ordinary cache; where torch would refuse, the rest is dropped."""
    room = max(0, keys.shape[2] - start)
    return cache_update(keys, values, start, key[:, :, :room], value[:, :, :room])


def _by_a_slice(place: Callable[[int, int], int]) -> Callable:
    """Stored by a slice, which torch refuses where the ring goes round."""

    def update(keys, values, start, key, value):
        seen = ring_update(keys.clone(), values.clone(), start, key, value)
        first, t = place(start, keys.shape[2]), key.shape[2]
        keys[:, :, first : first + t] = key[:, :, -keys.shape[2] :]
        values[:, :, first : first + t] = value[:, :, -keys.shape[2] :]
        return seen

    return update


def _ring_returned(keys, values, start, key, value):
    ring_update(keys, values, start, key, value)
    end = start + key.shape[2]
    return keys[:, :, :end].clone(), values[:, :, :end].clone()


def _each_place_once(update: Callable) -> Callable:
    """What is tried: a function that may not leave it to torch which of two tokens stays."""

    def tried(*given):
        with EachPlaceOnce():
            return update(*given)

    return tried


RING_UPDATE = Exercise(
    name="ring_update",
    transfer=True,
    reference=ring_update,
    cases=_ring_cases,
    asked=_each_place_once,
    axes="b g s k; b g s k; b g window k; b g window k",
    parts=("seen_keys", "seen_values", "keys", "values"),
    in_place=("keys", "values"),
    checked=(
        "what is returned and what is stored, every value, in 8 calls: a short prompt, one token"
        " before the ring is full, two when it is just full, one long after, three that run over"
        " its end, a prompt longer than the window, many tokens later, and a window of one; places"
        " that are not filled hold garbage"
    ),
    mistakes=(
        Mistake(
            "one old token too many",
            partial(ring_update, back=lambda window: window),
            "One old token too many is returned. A token sees `window` tokens, and it is one of"
            " them: at most window - 1 come from the ring.",
        ),
        Mistake(
            "one old token too few",
            partial(ring_update, back=lambda window: window - 2),
            "One old token is missing in what is returned. A token sees `window` tokens, itself"
            " among them: window - 1 come from the ring.",
        ),
        *(
            Mistake(
                f"{read} of a ring that is just full",
                partial(
                    ring_update,
                    old_order=lambda places, window, start, read=read: (
                        JUST_FULL[read](window) if start == window > 1 else places
                    ),
                ),
                says,
            )
            for read, says in (
                (
                    "the first places",
                    "A ring that is just full (`start` is `window`) is read as if it were not: its"
                    " first window - 1 places. The oldest token, at place 0, is no longer seen, and"
                    " the one at the last place is: read from start - window + 1 on.",
                ),
                (
                    "all",
                    "Of a ring that is just full (`start` is `window`) all tokens are returned, one"
                    " too many. At most window - 1 come from the ring, from start - window + 1 on.",
                ),
                (
                    "none",
                    "Of a ring that is just full (`start` is `window`) no token is returned."
                    " `start` % `window` is 0 there, and that is a place, not a number of tokens:"
                    " the last window - 1 tokens are still seen.",
                ),
            )
        ),
        Mistake(
            "written before read",
            partial(ring_update, written_first="kv"),
            "The ring is written before it is read. The new tokens lie where old ones lay that the"
            " first of the new ones still sees: read first, then write.",
        ),
        Mistake(
            "a view kept",
            partial(ring_update, take=_as_a_slice),
            "Where the old tokens lie in one piece you keep a slice of the ring. That is a view,"
            " which changes when the ring is written: copy it before (.clone()), or join it with"
            " the new tokens before you write.",
        ),
        *(
            Mistake(
                f"written before read: {one}",
                partial(ring_update, written_first=one[0]),
                f"The ring of the {one} is written before it is read; the other one is right. Read"
                " both first, then write.",
            )
            for one in ("keys", "values")
        ),
        Mistake(
            "ordered by place",
            partial(ring_update, old_order=lambda places, window, start: places.sort().values),
            "The old tokens come in the order of their places. In a ring the oldest does not lie at"
            " place 0: tokens start - window + 1 to start - 1 lie at these numbers % window.",
        ),
        Mistake(
            "newest first",
            partial(ring_update, old_order=lambda places, window, start: places.flip(0)),
            "The old tokens come with the newest first. Return the oldest first.",
        ),
        Mistake(
            "rolled the other way",
            partial(
                ring_update,
                old_order=lambda places, window, start: (
                    (torch.arange(1, window) - start) % window if start >= window else places
                ),
            ),
            "The ring is turned the wrong way round before it is read. Its oldest token lies at"
            " place start % window: it comes to the front by roll(-start), or read tokens by their"
            " numbers.",
        ),
        Mistake(
            "first tokens of a long prompt kept",
            partial(ring_update, stay=lambda fresh, window: fresh[:window]),
            "Of more tokens than the window holds, the first are kept. Later tokens see the last"
            " ones: store the last `window` tokens." + _NOT_IN_THE_RING,
        ),
        Mistake(
            "last tokens of a long prompt at the first one's place",
            partial(
                ring_update,
                to=lambda stay, start, window: start + torch.arange(len(stay)),
            ),
            _SEVERAL_IN_A_ROW,
        ),
        Mistake(
            "last tokens of a long prompt from place 0",
            partial(
                ring_update,
                to=lambda stay, start, window: torch.arange(window) if stay[0] > start else stay,
            ),
            _SEVERAL_IN_A_ROW,
        ),
        Mistake(
            "one less stored of a long prompt",
            partial(
                ring_update,
                stay=lambda fresh, window: (
                    fresh[len(fresh) - window + 1 :] if len(fresh) > window else fresh
                ),
            ),
            "Of more tokens than the window holds, only the last window - 1 are stored. The next"
            " token will not read more, but the contract says: the last `window`.",
        ),
        Mistake(
            "first token stored",
            partial(ring_update, stay=lambda fresh, window: fresh[:1]),
            "Only the first" + _ALL_STORED,
        ),
        Mistake(
            "last token stored",
            partial(ring_update, stay=lambda fresh, window: fresh[-1:]),
            "Only the last" + _ALL_STORED,
        ),
        Mistake(
            "cut off at the end of the ring",
            partial(
                ring_update,
                stay=lambda fresh, window: fresh[: window - int(fresh[0]) % window],
            ),
            "Tokens that no longer fit behind place start % window are lost. The ring goes on at"
            " place 0: each token has a place of its own, (start + j) % window.",
        ),
        Mistake(
            "start as a place",
            _start_as_a_place,
            "`start` is used as a place of the buffer. After `window` tokens it lies behind the"
            " end, and nothing is stored." + _NOT_IN_THE_RING,
        ),
        Mistake(
            "start as a place, for reading",
            partial(
                ring_update,
                old_order=lambda places, window, start: torch.arange(
                    min(window, max(0, start - window + 1)), min(window, start)
                ),
            ),
            "Old tokens are read at the places of their own numbers, as in an ordinary cache. After"
            " `window` tokens these lie behind the end." + _NOT_IN_THE_RING,
        ),
        Mistake(
            "start ignored",
            partial(ring_update, to=lambda stay, start, window: stay - start),
            "The new tokens are stored from place 0 on, whatever `start` is." + _NOT_IN_THE_RING,
        ),
        Mistake(
            "one token older",
            partial(ring_update, known=lambda start, window: max(0, start - 1)),
            "The token just before this call is missing in what is returned: all old ones are one"
            " too old. They are numbers start - window + 1 to start - 1, and that one is the last.",
        ),
        Mistake(
            "the rest cleared",
            partial(ring_update, cleared=True),
            "Places that hold no token yet are overwritten with zeros. Leave them as they are:"
            " write to the places of the new tokens alone.",
        ),
        Mistake(
            "ring returned",
            _ring_returned,
            "You return the ring as it is after writing: its places are not in the order of the"
            " tokens, and of several new tokens the first no longer find what they should see."
            " Return the old ones, oldest first, and then all new ones.",
        ),
        Mistake(
            "last token stored at the place of the first",
            partial(
                ring_update,
                stay=lambda fresh, window: fresh[-1:],
                to=lambda stay, start, window: stay * 0 + start,
            ),
            "Only the last" + _ALL_STORED,
        ),
        Mistake(
            "no ring",
            partial(ring_update, number=lambda places, window: places.clamp(max=window - 1)),
            "After the last place the ring does not begin anew: all later tokens go to its last"
            " place." + _NOT_IN_THE_RING,
        ),
        Mistake(
            "a ring of window - 1 places",
            partial(ring_update, number=lambda places, window: places % max(1, window - 1)),
            "The ring goes round one place too soon: the numbers are taken % (window - 1)."
            " window - 1 old tokens are read, but `window` are kept." + _NOT_IN_THE_RING,
        ),
        *(
            Mistake(
                f"stored one place {where}",
                partial(ring_update, to=lambda stay, start, window, more=more: stay + more),
                f"The new tokens are stored one place too {where}. The first of them has the number"
                " `start`, because tokens are counted from 0." + _NOT_IN_THE_RING,
            )
            for where, more in (("far", 1), ("early", -1))
        ),
        Mistake(
            "ring one place further",
            partial(ring_update, number=lambda places, window: (places + 1) % window),
            "All tokens lie one place too far, as if they were counted from 1." + _NOT_IN_THE_RING,
        ),
        Mistake("pushed through", _pushed_through, _PUSHED),
        Mistake("pushed through, read from the ring", partial(ring_update, rolled=True), _PUSHED),
        Mistake("pushed through, newest at the end", _queue, _PUSHED),
        Mistake(
            "not stored",
            partial(ring_update, stored=""),
            "Nothing is stored. The next call would find the ring as it was: write into keys and"
            " values.",
        ),
        Mistake(
            "values not stored",
            partial(ring_update, stored="k"),
            "The keys are stored, but the values are not. Write into both rings.",
        ),
        Mistake(
            "keys in place of values",
            partial(ring_update, value_of=lambda key, value: key),
            "The ring of the values holds keys. Look at the two lines that write: one stores key,"
            " the other value.",
        ),
        Mistake(
            "only the new returned",
            partial(ring_update, parts=lambda old, new, window: (new,)),
            "Only the tokens of this call are returned. They see the earlier ones too: up to window"
            " - 1 from the ring, then the new ones.",
        ),
        Mistake(
            "only the old returned",
            partial(ring_update, parts=lambda old, new, window: (old,)),
            "The tokens of this call are missing in what is returned. Each sees itself: the old"
            " ones first, then all new ones.",
        ),
        Mistake(
            "new before old",
            partial(ring_update, parts=lambda old, new, window: (new, old)),
            "What you return begins with the new tokens. The oldest come first.",
        ),
        Mistake(
            "old tokens left out of a long call",
            partial(
                ring_update,
                parts=lambda old, new, window: (
                    old[:, :, : old.shape[2] * (new.shape[2] < window)],
                    new,
                ),
            ),
            "When a call brings `window` tokens or more, the old ones are left out. Its first token"
            " still sees the last window - 1 of them.",
        ),
        Mistake(
            "new tokens cut to the window",
            partial(ring_update, parts=lambda old, new, window: (old, new[:, :, -window:])),
            "Of the new tokens only the last `window` are returned. Only so many are stored, but"
            " this call's tokens need all t new ones.",
        ),
        Mistake(
            "a window of one",
            partial(ring_update, back=lambda window: window - (window > 1)),
            "With a window of 1 an old token is returned, and a token should see itself alone."
            " window - 1 is 0 then, and a slice [-0:] takes everything.",
        ),
        Mistake(
            "cut to the window",
            partial(ring_update, cut=True),
            "What you return is cut to the last `window` tokens. That is right for one new token."
            " Of several, the first sees window - 1 tokens before *itself*: return these and all"
            " new ones.",
        ),
        Mistake(
            "ring begins anew",
            partial(ring_update, known=lambda start, window: start % window),
            "Only the tokens since the last time round are returned. The ring is full then: the"
            " places behind hold older tokens, which are still in the window.",
        ),
        Mistake(
            "garbage before the ring is full",
            partial(ring_update, known=max),
            "Places are returned that hold no token yet. Only `start` tokens came before, and while"
            " these are fewer than window - 1, only so many are returned.",
        ),
        Mistake(
            "values first",
            partial(ring_update, order=lambda both: both[::-1]),
            "Keys and values have changed places in what you return: keys first.",
        ),
    ),
    crashes=tuple(
        Mistake(
            f"stored by a slice: {name}",
            _by_a_slice(place),
            "The new tokens are stored by one slice, and a slice does not go round the end of the"
            " ring. Each token has a place of its own, (start + j) % window.",
        )
        for name, place in (
            ("start % window", lambda start, window: start % window),
            ("start", lambda start, window: start),
        )
    ),
    hints=(
        "Name tokens by their numbers in the row, not by their places: the old ones that are seen"
        " are start - window + 1 to start - 1 (from 0, if that is less than 0), the new ones start"
        " to start + t - 1. A place is then number % window.",
        "torch.arange(a, b) % window gives the places of tokens a to b - 1, oldest first, and"
        " keys[:, :, places] copies what lies there. Read so, join with the new tokens (torch.cat"
        " along axis 2), and write only after that.",
        "To write: keys[:, :, places] = ... If t is more than window, several tokens have the same"
        " place. Store the last window of them alone: key[:, :, -window:], whose numbers begin at"
        " max(start, start + t - window).",
    ),
)

EXERCISES = (CACHE_UPDATE, TOKEN_POSITIONS, DECODE, RING_UPDATE)
