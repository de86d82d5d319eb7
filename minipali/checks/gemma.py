"""Lesson 10: the way into the decoder, its MLP, layer, stack and head; norms without numbers."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.attention import attend
from minipali.checks.engine import Exercise, Mistake


def embed(
    input_ids: Tensor,
    table: Tensor,
    *,
    factor: Callable[[Tensor, Tensor], float] = lambda input_ids, table: table.shape[1] ** 0.5,
    rows: Callable[[Tensor], Tensor] = lambda table: table,
    which: Callable[[Tensor], Tensor] = lambda input_ids: input_ids,
    plus: Callable[[Tensor], Tensor | float] = lambda x: 0.0,
    last: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """(b, t), (v, d) -> (b, t, d). The reference, or with one thing changed."""
    x = rows(table)[which(input_ids)] * factor(input_ids, table)
    return last(x + plus(x))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def geglu(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    read: Callable[[Tensor], Tensor] = lambda x: x,
    gate_reads: Callable[[Tensor], Tensor] = lambda x: x,
    bend: Callable[[Tensor], Tensor] = _gelu,
    swapped: bool = False,
    up: Callable[[Tensor], Tensor] = lambda up: up,
    combine: Callable[[Tensor, Tensor], Tensor] = torch.mul,
    after: Callable[[Tensor], Tensor] = lambda hidden: hidden,
    plus: Callable[[Tensor], Tensor | float] = lambda x: 0.0,
    last: Callable[[Tensor], Tensor] = lambda y: y,
    down_first: bool = False,
    turn: Callable[[Tensor], Tensor] = torch.t,
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with one thing changed."""
    if swapped:
        gate_weight, up_weight = up_weight, gate_weight
    gate_weight, up_weight, down_weight = map(turn, (gate_weight, up_weight, down_weight))
    halves = bend(gate_reads(read(x)) @ gate_weight), up(read(x) @ up_weight)
    if down_first:
        return last(combine(*(after(half) @ down_weight for half in halves)) + plus(x))
    hidden = combine(*halves)
    return last(after(hidden) @ down_weight + plus(x))


def decoder_layer(
    x: Tensor,
    norm1: Callable,
    attention: Callable,
    norm2: Callable,
    mlp: Callable,
    *,
    norms: str = "before",
    pick: Callable[[Callable, Callable], tuple] = lambda norm1, norm2: (norm1, norm2),
    halves: Callable[[Callable, Callable], tuple] = lambda attention, mlp: (attention, mlp),
    add1: bool = True,
    add2: Callable[[Tensor, Tensor, Tensor], Tensor | float] = lambda start, x, read: x,
    reads: Callable[[Tensor, Tensor], Tensor] = lambda start, x: x,
    given1: Callable[..., Tensor] = lambda given, norm1, norm2: given,
    given2: Callable[..., Tensor] = lambda given, norm1, norm2: given,
    sum1: Callable[[Tensor, Tensor], Tensor] = lambda new, old: new,
    sum2: Callable[[Tensor, Tensor], Tensor] = lambda new, old: new,
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with one thing changed.

    norms: "before" attention and MLP, or "after" the sums; given1, given2: what is added of what
    each gives; sum1, sum2: the stream after each.
    """
    (norm1, norm2), (attention, mlp) = pick(norm1, norm2), halves(attention, mlp)
    first, second = (norm1, norm2) if norms == "before" else (_as_it_is, _as_it_is)
    new = (x if add1 else 0) + given1(attention(first(x)), norm1, norm2)
    new = sum1(norm1(new) if norms == "after" else new, x)
    read = second(reads(x, new))
    last = sum2(add2(x, new, read) + given2(mlp(read), norm1, norm2), new)
    return norm2(last) if norms == "after" else last


def _as_it_is(x: Tensor) -> Tensor:
    return x


def decoder(
    x: Tensor,
    layers: Sequence[Callable],
    norm: Callable,
    *,
    before: Callable[[Tensor, Callable], Tensor] = lambda x, norm: x,
    read: Callable[[Tensor, Callable], Tensor] = lambda x, norm: x,
    which: Callable[[Sequence], Sequence] = lambda layers: layers,
    between: Callable[[Tensor, Tensor, Callable], Tensor] = lambda old, new, norm: new,
    after: Callable[[Tensor, Tensor, Callable], Tensor] = lambda start, x, norm: norm(x),
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with one thing changed."""
    start, x = x, before(x, norm)
    for layer in which(layers):
        x = between(x, layer(read(x, norm)), norm)
    return after(start, x, norm)


def logits(
    x: Tensor,
    table: Tensor,
    *,
    rows: Callable[[Tensor], Tensor] = lambda table: table,
    read: Callable[[Tensor], Tensor] = lambda x: x,
    turn: Callable[[Tensor], Tensor] = torch.t,
    factor: Callable[[Tensor], float] = lambda table: 1.0,
    after: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Tensor:
    """(..., d), (v, d) -> (..., v). The reference, or with one thing changed."""
    return after(read(x) @ turn(rows(table)) * factor(table))


def _embed_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(6)

    def case(b: int, t: int, v: int, d: int, most: int) -> tuple:
        ids = torch.randint(most, (b, t), generator=random)
        ids[0, :2] = torch.tensor([0, most - 1])
        table = torch.randn(v, d, generator=random)
        table[-1] /= 8  # all others are longer than 1
        return ids, table

    # The first row and the last are asked for; in one text alone, not the last ones.
    return [case(2, 3, 11, 5, 11), case(3, 4, 6, 7, 6), case(1, 3, 9, 6, 5)]


def _geglu_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(10)

    def case(
        b: int, t: int, d: int, hidden: int, spread: float, shift: float, ups: float = 1
    ) -> tuple:
        x = torch.randn(b, t, d, generator=random)
        x[..., 0] = 1  # there are no biases; this feature stands in for one
        gate = torch.randn(hidden, d, generator=random) * spread / d**0.5
        gate[:, 0] += shift
        up = torch.randn(hidden, d, generator=random) * ups
        return x, gate, up, torch.randn(d, hidden, generator=random)

    # The second: gates around -2.5. Nearly all are shut, so the results are small, and there the
    # two forms of GELU differ most. The third: gates so large that a tanh made of e^x overflows.
    return [
        case(2, 3, 5, 14, 1, 0),
        case(3, 4, 7, 11, 0.4, -2.5),
        case(2, 3, 6, 8, 12, 0, ups=0.1),
    ]


def _rms_norm(weight: Tensor) -> Callable:
    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-2).sqrt() * (1 + weight)

    return norm


def _once(attention: Callable) -> Callable:
    """As with a cache, where a second call would store all keys and values again."""
    called = []

    def attention_with_memory(x: Tensor) -> Tensor:
        if called:
            raise RuntimeError(
                "attention was called twice. Call it once and keep what it gives: with a cache it"
                " remembers what it has read"
            )
        called.append(1)
        return attention(x)

    return attention_with_memory


def _layer_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(5)

    def case(b: int, t: int, d: int, hidden: int) -> tuple:
        query, key, value = torch.randn(3, d, d, generator=random) / d**0.5
        gate, up = torch.randn(2, hidden, d, generator=random) / d**0.5
        down = torch.randn(d, hidden, generator=random) / hidden**0.5
        return (
            torch.randn(b, t, d, generator=random) * 2 + 1,
            _rms_norm(torch.randn(d, generator=random)),
            _once(lambda x: attend(x @ query, x @ key, x @ value)),
            _rms_norm(torch.randn(d, generator=random)),
            lambda x: geglu(x, gate, up, down),
        )

    return [case(2, 3, 5, 14), case(3, 4, 7, 11)]


class _LayerList(list):
    """Functions, shown in messages by number."""

    def __repr__(self) -> str:
        return f"{len(self)} functions"


class _Layers(tuple):
    """Functions that an attempt cannot take away from the case; shown in messages by number."""

    def __repr__(self) -> str:
        return f"{len(self)} functions"

    def __getattr__(self, name: str):
        raise AttributeError(
            f"`layers` must stay as it is, without .{name}: the model needs it for the next token."
            " Go through it with a for loop"
        )


def _decoder_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(8)

    def case(b: int, t: int, d: int, number: int) -> tuple:
        def layer() -> Callable:
            weight = torch.randn(d, d, generator=random) * 1.5 / d**0.5
            bias = torch.randn(d, generator=random)
            return lambda x: torch.tanh(x @ weight.T + bias)  # a plain function, and no module

        layers = _Layers(layer() for _ in range(number))
        if number > 4:  # a list, in which one layer stands twice
            layers = _LayerList([*layers[:-2], layers[1], layers[-1]])
        x = torch.randn(b, t, d, generator=random)
        return x, layers, _rms_norm(torch.randn(d, generator=random))

    return [case(2, 3, 5, 3), case(3, 4, 7, 6), case(2, 3, 5, 1), case(2, 3, 6, 0)]


def _logits_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(9)

    def case(v: int, *shape: int) -> tuple:
        # Large, so that a cap on the logits would show.
        return 5 * torch.randn(*shape, generator=random), torch.randn(
            v, shape[-1], generator=random
        )

    # the last: one row and one token, as a step with a cache has it
    return [case(7, 2, 3, 5), case(9, 3, 4, 6), case(11, 3, 5), case(8, 1, 1, 4)]


def _of_length_one(table: Tensor) -> Tensor:
    return F.normalize(table, dim=-1)


def _turns(x: Tensor) -> Tensor:
    """A table of positions, as the first transformer adds it: (t, d)."""
    place = torch.arange(x.shape[1])[:, None] / 100 ** (torch.arange(x.shape[2]) / x.shape[2])
    return place.sin()


def _one_row_divided(table: Tensor, row: int, by: float | None = None) -> Tensor:
    """By the factor that comes later, or by another number."""
    table = table.clone()
    table[row] /= by or table.shape[1] ** 0.5
    return table


ONE_MODELS_WIDTH = (
    "The factor is that of one model's width, written as a number. Take it from the table that you"
    " are given: the square root of table.shape[1]."
)
SQUEEZED = (
    "An axis of length 1 is lost: .squeeze() removes all of them, and b or t may be 1. Keep every"
    " axis in front, whatever its length."
)
OTHER_ROWS = (
    "These are other rows: an id is the number of its row, counted from 0. Index the table with the"
    " ids as they are: table[input_ids]."
)

EMBED = Exercise(
    name="embed",
    reference=embed,
    cases=_embed_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 3 batches, one of them a text alone, with tables of 11, 6"
        " and 9 rows and widths 5 to 7; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "scale missing",
            partial(embed, factor=lambda ids, table: 1.0),
            "The scale is missing: these are the rows as they are stored. Gemma multiplies them by"
            " sqrt(d), where d = table.shape[1], before the first layer.",
        ),
        Mistake(
            "divided by sqrt(d)",
            partial(embed, factor=lambda ids, table: table.shape[1] ** -0.5),
            "The rows are divided by sqrt(d). That is the scale of attention's scores. Here they"
            " are multiplied: the rows are stored small and become larger.",
        ),
        Mistake(
            "times d",
            partial(embed, factor=lambda ids, table: float(table.shape[1])),
            "The rows are multiplied by d. The factor is its square root, once: d ** 0.5.",
        ),
        Mistake(
            "divided by d",
            partial(embed, factor=lambda ids, table: 1 / table.shape[1]),
            "The rows are divided by d. They are multiplied, and by its square root: d ** 0.5.",
        ),
        Mistake(
            "square root of the vocabulary",
            partial(embed, factor=lambda ids, table: table.shape[0] ** 0.5),
            "The factor is the square root of the number of rows, the vocabulary. Take that of"
            " their width: d = table.shape[1].",
        ),
        Mistake(
            "square root of the tokens",
            partial(embed, factor=lambda ids, table: ids.shape[1] ** 0.5),
            "The factor is the square root of the number of tokens. A token's vector must not"
            " depend on how many others there are: take the width, d = table.shape[1].",
        ),
        Mistake(
            "square root of all numbers",
            partial(embed, factor=lambda ids, table: table.numel() ** 0.5),
            "The factor is the square root of all numbers of the table. Take that of its width: d ="
            " table.shape[1].",
        ),
        Mistake(
            "square root of the batch",
            partial(embed, factor=lambda ids, table: ids.shape[0] ** 0.5),
            "The factor is the square root of the number of rows in the batch. A token's vector"
            " must not depend on its company: take the width, d = table.shape[1].",
        ),
        Mistake(
            "Gemma's factor typed",
            partial(embed, factor=lambda ids, table: 2048**0.5),
            ONE_MODELS_WIDTH,
        ),
        Mistake(
            "the small model's factor typed",
            partial(embed, factor=lambda ids, table: 128**0.5),
            ONE_MODELS_WIDTH,
        ),
        *(
            Mistake(
                name,
                partial(embed, factor=lambda ids, table, whole=whole: whole(table.shape[1] ** 0.5)),
                "The factor is brought to a whole number. It is sqrt(d) itself: d ** 0.5, without"
                " int, round or //.",
            )
            for name, whole in (
                ("rounded down", int),
                ("rounded up", math.ceil),
                ("rounded", round),
            )
        ),
        Mistake(
            "rounded to bfloat16",
            partial(
                embed,
                factor=lambda ids, table: torch.tensor(table.shape[1] ** 0.5).bfloat16().item(),
            ),
            "The factor is rounded to bfloat16, as in programs that run the whole model in it. Here"
            " all numbers are float32: table.shape[1] ** 0.5, a number of Python.",
        ),
        Mistake(
            "the fourth root",
            partial(embed, factor=lambda ids, table: table.shape[1] ** 0.25),
            "The factor is the fourth root of d: one root too many. It is sqrt(d), d ** 0.5.",
        ),
        Mistake(
            "sqrt(d) added",
            partial(embed, factor=lambda ids, table: 1.0, plus=lambda x: x.shape[-1] ** 0.5),
            "sqrt(d) is added to the rows. Multiply by it.",
        ),
        Mistake(
            "rows normed",
            partial(embed, rows=_of_length_one),
            "The rows are brought to one length. The factor is the same for all rows: long rows"
            " stay long. Norms come later, inside the layers.",
        ),
        Mistake(
            "rows normed, without the factor",
            partial(
                embed,
                rows=_of_length_one,
                factor=lambda ids, table: 1.0,
            ),
            "The rows are brought to length 1, and no factor follows. Leave the rows as long as"
            " they are, and multiply all by sqrt(d).",
        ),
        Mistake(
            "long rows shortened",
            partial(embed, rows=lambda table: table / table.norm(dim=-1, keepdim=True).clamp(1)),
            "Rows longer than 1 are shortened, as `max_norm` does it. The factor is the same for"
            " all rows: long rows stay long. Norms come later, inside the layers.",
        ),
        Mistake(
            "the row of id 0 emptied",
            partial(embed, rows=partial(_one_row_divided, row=0, by=torch.inf)),
            "The row of id 0 is replaced by zeros, as `padding_idx` does it. Id 0 is a row like any"
            " other here: padding is kept out by the mask of attention.",
        ),
        *(
            Mistake(
                f"the {which} row without the factor",
                partial(embed, rows=partial(_one_row_divided, row=row)),
                "One id's row comes without the factor. All ids are treated alike: what stands at"
                " image tokens and padding is none of this function's business.",
            )
            for which, row in (("first", 0), ("last", -1))
        ),
        Mistake("one row early", partial(embed, which=lambda ids: ids - 1), OTHER_ROWS),
        Mistake(
            "one row early, but not the first",
            partial(embed, which=lambda ids: (ids - 1).clamp(min=0)),
            "Each id but 0 has the row before its own: ids are counted from 0, as rows are. Index"
            " the table with the ids as they are: table[input_ids].",
        ),
        *(
            Mistake(
                f"one row late, the last one {which}",
                partial(embed, rows=rows),
                "Each id has the row after its own: ids are counted from 0, as rows are. Index the"
                " table with the ids as they are: table[input_ids].",
            )
            for which, rows in {
                "the first": lambda table: table.roll(-1, 0),
                "kept": lambda table: torch.cat((table[1:], table[-1:])),
            }.items()
        ),
        Mistake("counted from the end", partial(embed, which=lambda ids: -1 - ids), OTHER_ROWS),
        Mistake(
            "the first text for all",
            partial(embed, which=lambda ids: ids[:1].expand_as(ids)),
            "All rows of the batch have the vectors of the first. Look up all ids at once:"
            " table[input_ids].",
        ),
        Mistake(
            "tokens in front",
            partial(embed, last=lambda x: x.transpose(0, 1)),
            "The result is (t, b, d). The batch stays in front: (b, t, d), as table[input_ids]"
            " gives it.",
        ),
        Mistake(
            "width in the middle",
            partial(embed, last=lambda x: x.mT),
            "The result is (b, d, t). The width is the last axis: (b, t, d), as table[input_ids]"
            " gives it.",
        ),
        Mistake(
            "positions added",
            partial(embed, plus=_turns),
            "Something is added that depends on the place in the row. Gemma's positions are turned"
            " into queries and keys (RoPE, lesson 07); nothing is added to the vectors.",
        ),
        Mistake("axes of length 1 lost", partial(embed, last=torch.squeeze), SQUEEZED),
    ),
    crashes=(
        *(
            Mistake(
                f"one-hot rows too short, {name}",
                lambda ids, table, look_up=look_up: (
                    look_up(F.one_hot(ids).to(table.dtype), table) * table.shape[1] ** 0.5
                ),
                "one_hot makes only as many columns as the largest id needs, and the table may have"
                " more rows. Say how many: one_hot(input_ids, len(table)). Or index the table:"
                " table[input_ids].",
            )
            for name, look_up in {
                "product": torch.matmul,
                "einsum": partial(torch.einsum, "btv,vd->btd"),
            }.items()
        ),
    ),
    hints=(
        "Two steps: take a row of the table for each id, and multiply.",
        "A table of shape (v, d) that is indexed by ids of shape (b, t) gives (b, t, d).",
        "The factor is the square root of the width: table.shape[1] ** 0.5.",
    ),
)


TANH_FORM = 'F.gelu(…, approximate="tanh")'

RESHAPED = (
    "A weight is brought into the other shape with reshape or view. That leaves its numbers in a"
    " row and mixes them. Turn the matrix: weight.T, or F.linear(x, weight)."
)


def _gelu_by(
    tanh: Callable[[Tensor], Tensor] = torch.tanh,
    inside: Callable[[Tensor], Tensor] = lambda x: (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3),
) -> Callable[[Tensor], Tensor]:
    return lambda x: 0.5 * x * (1 + tanh(inside(x)))


def _tanh_of_one_power(x: Tensor) -> Tensor:
    return ((2 * x).exp() - 1) / ((2 * x).exp() + 1)


def _tanh_of_powers(x: Tensor) -> Tensor:
    return (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())


ROOT = (2 / torch.pi) ** 0.5
OTHER_INSIDES = {
    "the cube left out": lambda x: ROOT * x,
    "square for cube": lambda x: ROOT * (x + 0.044715 * x**2),
    "fourth power for cube": lambda x: ROOT * (x + 0.044715 * x**4),
    "cube of all": lambda x: ROOT * (x + 0.044715 * x) ** 3,
    "cube alone": lambda x: ROOT * 0.044715 * x**3,
    "cube without its number": lambda x: ROOT * (x + x**3),
    "point in another place": lambda x: ROOT * (x + 0.44715 * x**3),
    "cube subtracted": lambda x: ROOT * (x - 0.044715 * x**3),
    "no root of 2 / pi": lambda x: x + 0.044715 * x**3,
    "2 / pi": lambda x: ROOT**2 * (x + 0.044715 * x**3),
    "root of pi / 2": lambda x: (x + 0.044715 * x**3) / ROOT,
    "factor for x alone": lambda x: ROOT * x + 0.044715 * x**3,
}


GEGLU = Exercise(
    name="geglu",
    reference=geglu,
    cases=_geglu_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 3 batches, widths 5 to 7, hidden widths 8 to 14, with"
        " gates that tell the tanh form of GELU from the erf form, and large ones; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "reshaped",
            partial(geglu, turn=lambda weight: weight.reshape(weight.shape[::-1])),
            RESHAPED,
        ),
        *(
            Mistake(
                f"overflow, {name}",
                partial(geglu, bend=_gelu_by(tanh)),
                "Your tanh is made of powers of e, and of a large gate these are infinite: infinite"
                f" by infinite is nan. Take torch.tanh, or {TANH_FORM}.",
            )
            for name, tanh in (("one power", _tanh_of_one_power), ("two", _tanh_of_powers))
        ),
        *(
            Mistake(
                f"cut off at {most}",
                partial(geglu, bend=lambda gate, most=most: _gelu(gate.clamp(-most, most))),
                "Large gates are cut off. GELU of a large gate is the gate itself: torch.tanh and"
                f" {TANH_FORM} take gates of any size.",
            )
            for most in (5, 6, 8, 10, 20)
        ),
        Mistake(
            "gate and up swapped",
            partial(geglu, swapped=True),
            "Gate and up are swapped: the bend is on up. GELU goes over the gate, and up stays"
            " linear. Both matrices have the same shape, so nothing else complains.",
        ),
        Mistake(
            "erf form",
            partial(geglu, bend=F.gelu),
            "This is GELU in its erf form, which is torch's default. Gemma was trained with the"
            f" tanh form: {TANH_FORM}. The model would still answer, but no number would agree with"
            " the published model.",
        ),
        Mistake(
            "quick GELU",
            partial(geglu, bend=lambda gate: gate * torch.sigmoid(1.702 * gate)),
            "This is x · sigmoid(1.702 x), a third form of GELU, which CLIP uses. Gemma uses the"
            f" tanh form: {TANH_FORM}.",
        ),
        *(
            Mistake(
                name,
                partial(geglu, bend=_gelu_by(inside=inside)),
                "The formula of your tanh form has another inside: it is 0.5 x (1 + tanh(sqrt(2 /"
                f" pi) · (x + 0.044715 x³))). Or let torch do it: {TANH_FORM}.",
            )
            for name, inside in OTHER_INSIDES.items()
        ),
        *(
            Mistake(
                name,
                partial(geglu, bend=bend),
                "The formula of your GELU lacks the factor x: what is left says only how much of"
                " the gate passes. GELU is the gate times that: 0.5 x (1 + tanh(…)). Or let torch"
                f" do it: {TANH_FORM}.",
            )
            for name, bend in {
                "share of the gate alone": lambda gate: _gelu_by()(gate) / gate,
                "share alone, erf form": lambda gate: 0.5 * (1 + torch.erf(gate / 2**0.5)),
                "share alone, twice": lambda gate: 2 * _gelu_by()(gate) / gate,
            }.items()
        ),
        *(
            Mistake(
                name,
                partial(geglu, bend=bend),
                "The formula of your tanh form lacks its 1: it is 0.5 x (1 + tanh(…)), with"
                f" brackets around the sum. Or let torch do it: {TANH_FORM}.",
            )
            for name, bend in {
                "no 1": lambda gate: _gelu_by()(gate) - gate / 2,
                "no brackets around the sum": lambda gate: (
                    gate / 2 + 2 * _gelu_by()(gate) / gate - 1
                ),
            }.items()
        ),
        Mistake(
            "gate twice",
            partial(geglu, bend=lambda gate: gate * _gelu(gate)),
            "The bent gate is multiplied by the gate once more. GELU holds the gate already: gelu("
            "gate) times up, and no more.",
        ),
        Mistake(
            "the half left out",
            partial(geglu, bend=lambda gate: 2 * _gelu(gate)),
            "Your bend is twice GELU: its formula begins with 0.5, 0.5 x (1 + tanh(…)). Or let"
            f" torch do it: {TANH_FORM}.",
        ),
        Mistake(
            "product after down",
            partial(geglu, down_first=True),
            "The product comes after down, with gate and up brought down one by one. Multiply them"
            " where they are wide, and bring the product down once.",
        ),
        Mistake(
            "SiLU",
            partial(geglu, bend=F.silu),
            "The gate is x · sigmoid(x), called SiLU or swish: this is the SwiGLU of Llama. Gemma's"
            f" gate is GELU in the tanh form: {TANH_FORM}.",
        ),
        Mistake(
            "ReLU",
            partial(geglu, bend=F.relu),
            "The gate is cut off at 0: this is ReLU (and the whole is called ReGLU). Gemma's gate"
            f" is GELU in the tanh form: {TANH_FORM}.",
        ),
        Mistake(
            "sigmoid",
            partial(geglu, bend=torch.sigmoid),
            "The gate is a sigmoid, from 0 to 1: this is the first of the gated units, GLU. Gemma's"
            f" gate is GELU in the tanh form: {TANH_FORM}.",
        ),
        Mistake(
            "tanh",
            partial(geglu, bend=torch.tanh),
            "The gate is tanh itself. What is meant is GELU, in the form that is computed with"
            f" tanh: {TANH_FORM}.",
        ),
        Mistake(
            "no bend",
            partial(geglu, bend=_as_it_is),
            "Gate times up, and nothing bends. The gate must go through GELU before the product, so"
            " that it can shut.",
        ),
        Mistake(
            "bend after the product",
            partial(geglu, bend=_as_it_is, after=_gelu),
            "The GELU comes after the product. It belongs on the gate alone: bend the gate, then"
            " multiply by up.",
        ),
        *(
            Mistake(
                f"bend before {before}",
                partial(geglu, bend=_as_it_is, **edit),
                "The GELU is on x, before a matrix. It belongs on the gate: bend what gate_weight"
                " makes of x, then multiply by up.",
            )
            for before, edit in {
                "the gate's matrix": {"gate_reads": _gelu},
                "both matrices": {"read": _gelu},
            }.items()
        ),
        Mistake(
            "normed inside",
            partial(geglu, read=lambda x: x / x.square().mean(dim=-1, keepdim=True).sqrt()),
            "x is normed here. That is done in the layer (`decoder_layer`), with norm2, before it"
            " comes in.",
        ),
        Mistake(
            "bend once more after the product",
            partial(geglu, after=_gelu),
            "There is a second GELU after the product. One is enough: bend the gate, multiply by"
            " up, and go down.",
        ),
        Mistake(
            "both bent",
            partial(geglu, up=_gelu),
            "Both halves go through GELU. Only the gate is bent; up stays linear, so that it can"
            " carry any sign.",
        ),
        Mistake(
            "sum instead of product",
            partial(geglu, combine=torch.add),
            "Gate and up are added. They are multiplied, entry by entry: a gate near 0 must shut"
            " its unit, whatever up says.",
        ),
        Mistake(
            "up not used",
            partial(geglu, combine=lambda gate, up: gate),
            "Up is not used: this is the plain MLP, with GELU between two matrices. Multiply the"
            " bent gate by up, entry by entry.",
        ),
        Mistake(
            "gate not used",
            partial(geglu, combine=lambda gate, up: up),
            "The gate is not used: this is up and down alone, which together are one linear map."
            " Multiply up by the bent gate, entry by entry.",
        ),
        Mistake(
            "up bent in place of the gate",
            partial(geglu, combine=lambda gate, up: _gelu(up)),
            "The gate is not used: this is the plain MLP, made of up and down. Bend the gate, and"
            " multiply up by it, entry by entry.",
        ),
        Mistake(
            "gate times itself",
            partial(geglu, bend=_as_it_is, combine=lambda gate, up: _gelu(gate) * gate),
            "The gate is multiplied by itself, and up is not used. Its partner is x @ up_weight.T.",
        ),
        Mistake(
            "1 + gate",
            partial(geglu, combine=lambda gate, up: (1 + gate) * up),
            "1 is added to the gate, as to the weight of Gemma's norms. A shut gate is 0: multiply"
            " up by the bent gate as it is.",
        ),
        Mistake(
            "softmax over the hidden units",
            partial(geglu, bend=lambda gate: gate.softmax(dim=-1)),
            "The gate is a softmax over the hidden units. They do not compete: each has a gate of"
            f" its own, {TANH_FORM}.",
        ),
        Mistake(
            "bend at the end",
            partial(geglu, bend=_as_it_is, last=_gelu),
            "The GELU comes at the very end, after down. It belongs on the gate alone, before the"
            " product.",
        ),
        Mistake(
            "residual inside",
            partial(geglu, plus=lambda x: x),
            "You added x to the result. That sum is right, but its place is the layer"
            " (`decoder_layer`). With both, x would be added twice.",
        ),
    ),
    hints=(
        "Three matrices: two go from d to the hidden width, side by side, and one goes back.",
        "Both of the first two read the same x. One result is bent by GELU, and then the two are"
        " multiplied, entry by entry.",
        'hidden = F.gelu(x @ gate_weight.T, approximate="tanh") * (x @ up_weight.T), then'
        " hidden @ down_weight.T. No biases, and x is not added here.",
    ),
)


def _by_norm1(given: Tensor, norm1: Callable, norm2: Callable) -> Tensor:
    return norm1(given)


def _by_norm2(given: Tensor, norm1: Callable, norm2: Callable) -> Tensor:
    return norm2(given)


NORM_MISSING = (
    "A norm is missing. Both attention and the MLP read the stream through a norm of their own:"
    " attention(norm1(x)), mlp(norm2(x))."
)

DECODER_LAYER = Exercise(
    name="decoder_layer",
    reference=decoder_layer,
    cases=_layer_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 2 batches, widths 5 and 7, with two different norms and a"
        " stream whose values are not normed; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "norm after",
            partial(decoder_layer, norms="after"),
            "The norms come after the sums, as in the first transformer (2017). Gemma is pre-norm:"
            " norm what attention and the MLP *read*, and leave the sum as it is.",
        ),
        Mistake(
            "norms on what is added",
            partial(decoder_layer, norms="", given1=_by_norm1, given2=_by_norm2),
            "The norms are on what attention and the MLP give. Gemma norms what they *read*:"
            " attention(norm1(x)) and mlp(norm2(x)).",
        ),
        Mistake(
            "second norm on the output of attention",
            lambda x, norm1, attention, norm2, mlp: (
                (new := x + norm2(attention(norm1(x)))) + mlp(new)
            ),
            "The second norm is on the output of attention, as its published name"
            " (`post_attention_layernorm`) suggests. In Gemma 1 it is the norm that the MLP reads"
            " through: x + mlp(norm2(x)).",
        ),
        *(
            Mistake(
                f"what is given normed too, {name}",
                partial(decoder_layer, **edit),
                "What attention or the MLP gives is normed as well. Gemma 2 does so, and has norms"
                " of their own for it. In Gemma 1 it is added as it comes: x + attention(norm1(x)),"
                " x + mlp(norm2(x)).",
            )
            for name, edit in {
                "both": {"given1": _by_norm1, "given2": _by_norm2},
                "both by norm2": {"given1": _by_norm2, "given2": _by_norm2},
                "attention by norm1": {"given1": _by_norm1},
                "attention by norm2": {"given1": _by_norm2},
                "MLP by norm1": {"given2": _by_norm1},
                "MLP by norm2": {"given2": _by_norm2},
            }.items()
        ),
        *(
            Mistake(
                f"doubled, {name}",
                partial(decoder_layer, **edit),
                "A sum is added to the same stream once more. Does `+=` change a tensor that has a"
                " second name (residual = x)? Then both names hold the sum. Write x = x + …, and"
                " add once.",
            )
            for name, edit in {
                "first": {"sum1": lambda new, old: new + new},
                "second": {"sum2": lambda new, old: new + new},
                "both": {"sum1": lambda new, old: new + new, "sum2": lambda new, old: new + new},
                "the stream to the first": {"sum1": lambda new, old: new + old},
                "the stream to the second": {"sum2": lambda new, old: new + old},
                "the stream to both": {
                    "sum1": lambda new, old: new + old,
                    "sum2": lambda new, old: new + old,
                },
            }.items()
        ),
        Mistake(
            "second norm on the stream",
            partial(decoder_layer, add2=lambda start, x, read: read),
            "The stream itself goes through norm2, and the second sum starts from the normed one."
            " Only what the MLP *reads* is normed: x + mlp(norm2(x)).",
        ),
        Mistake(
            "first norm on the stream",
            lambda x, norm1, attention, norm2, mlp: decoder_layer(
                norm1(x), lambda x: x, attention, norm2, mlp
            ),
            "The stream itself goes through norm1, and the sum starts from the normed one. Only"
            " what attention *reads* is normed: x + attention(norm1(x)).",
        ),
        Mistake(
            "both norms on the stream",
            lambda x, norm1, attention, norm2, mlp: (
                (new := norm2((x := norm1(x)) + attention(x))) + mlp(new)
            ),
            "The stream itself goes through the norms, and the sums start from what is normed. Only"
            " what attention and the MLP *read* is normed; the sum starts from x as it was.",
        ),
        Mistake(
            "norms swapped",
            partial(decoder_layer, pick=lambda norm1, norm2: (norm2, norm1)),
            "The norms are swapped. Each has its own trained weights: norm1 serves attention, norm2"
            " the MLP.",
        ),
        Mistake(
            "norm1 twice",
            partial(decoder_layer, pick=lambda norm1, norm2: (norm1, norm1)),
            "norm1 works twice, and norm2 not at all. Each has its own trained weights: norm1"
            " serves attention, norm2 the MLP.",
        ),
        Mistake(
            "norm2 twice",
            partial(decoder_layer, pick=lambda norm1, norm2: (norm2, norm2)),
            "norm2 works twice, and norm1 not at all. Each has its own trained weights: norm1"
            " serves attention, norm2 the MLP.",
        ),
        Mistake(
            "no norm for attention",
            partial(decoder_layer, pick=lambda norm1, norm2: (_as_it_is, norm2)),
            NORM_MISSING,
        ),
        Mistake(
            "no norm for the MLP",
            partial(decoder_layer, pick=lambda norm1, norm2: (norm1, _as_it_is)),
            NORM_MISSING,
        ),
        Mistake(
            "no norms",
            partial(decoder_layer, pick=lambda norm1, norm2: (_as_it_is, _as_it_is)),
            "There are no norms at all. Both attention and the MLP read the stream through a norm"
            " of their own: attention(norm1(x)), mlp(norm2(x)).",
        ),
        Mistake(
            "no residual at attention",
            partial(decoder_layer, add1=False),
            "What attention gives replaces the stream. It must be added: x = x +"
            " attention(norm1(x)).",
        ),
        Mistake(
            "no residual at the MLP",
            partial(decoder_layer, add2=lambda start, x, read: 0.0),
            "You return what the MLP gives, without the stream. It must be added: return x +"
            " mlp(norm2(x)).",
        ),
        Mistake(
            "no residual at all",
            partial(decoder_layer, add1=False, add2=lambda start, x, read: 0.0),
            "Nothing is added to the stream: attention and the MLP replace it. Both must be added:"
            " x = x + attention(norm1(x)), and then x + mlp(norm2(x)).",
        ),
        Mistake(
            "old residual",
            partial(decoder_layer, add2=lambda start, x, read: start),
            "The second sum starts from the x that came in, so what attention added is lost. After"
            " attention the stream is the new sum; the MLP's result is added to that.",
        ),
        Mistake(
            "the start once more",
            partial(decoder_layer, add2=lambda start, x, read: x + start),
            "The x that came in is added twice: the stream after attention holds it already. The"
            " MLP's result is added to the new stream alone.",
        ),
        Mistake(
            "parallel",
            partial(decoder_layer, reads=lambda start, x: start),
            "Attention and MLP both read the x that came in, side by side. Gemma's MLP reads the"
            " stream after attention has added its part.",
        ),
        Mistake(
            "both norms for the MLP, parallel",
            lambda x, norm1, attention, norm2, mlp: (
                x + attention(read := norm1(x)) + mlp(norm2(read))
            ),
            "The MLP reads the x that came in, through norm1 and norm2. It reads the stream after"
            " attention has added its part, through norm2 alone.",
        ),
        Mistake(
            "one norm for both, parallel",
            lambda x, norm1, attention, norm2, mlp: x + attention(norm1(x)) + mlp(norm1(x)),
            "Attention and MLP both read norm1 of the x that came in, side by side. Gemma's MLP"
            " reads the stream after attention has added its part, through norm2.",
        ),
        *(
            Mistake(
                f"MLP first, {name}",
                partial(decoder_layer, halves=lambda attention, mlp: (mlp, attention), **edit),
                "The MLP comes first. Attention, with norm1, is the first half of a layer; the MLP,"
                " with norm2, is the second.",
            )
            for name, edit in {
                "with its norm": {"pick": lambda norm1, norm2: (norm2, norm1)},
                "with norm1": {},
            }.items()
        ),
        Mistake(
            "no MLP",
            lambda x, norm1, attention, norm2, mlp: x + attention(norm1(x)),
            "The second half is missing: x + mlp(norm2(x)), with the x that attention has added"
            " to.",
        ),
        Mistake(
            "no attention",
            lambda x, norm1, attention, norm2, mlp: x + mlp(norm2(x)),
            "The first half is missing: x + attention(norm1(x)), before the MLP.",
        ),
        Mistake(
            "the MLP reads attention's result alone",
            lambda x, norm1, attention, norm2, mlp: (
                x + (given := attention(norm1(x))) + mlp(norm2(given))
            ),
            "The MLP reads what attention gave, alone. It reads the stream, to which that has been"
            " added: x = x + attention(norm1(x)), then mlp(norm2(x)).",
        ),
        Mistake(
            "only the MLP's sum, from attention",
            lambda x, norm1, attention, norm2, mlp: x + mlp(norm2(attention(norm1(x)))),
            "There is one sum where two belong. Attention's result is added to the stream, and the"
            " MLP's result is added to that.",
        ),
    ),
    hints=(
        "It is the block of lesson 04 with other parts: two steps of the same form, norm, compute,"
        " add to the stream.",
        "The stream itself is never normed. Only what attention and the MLP read is.",
        "The first step is x = x + attention(norm1(x)). The second has the same form and starts"
        " from this new x.",
    ),
)


DECODER = Exercise(
    name="decoder",
    reference=decoder,
    cases=_decoder_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 4 batches, with 3, 6, 1 and 0 layers, in a tuple or a"
        " list, one of them twice; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "final norm missing",
            partial(decoder, after=lambda start, x, norm: x),
            "The final norm is missing. The stream has grown from layer to layer, and the head was"
            " trained to read it through this norm.",
        ),
        Mistake(
            "no norm without layers",
            lambda x, layers, norm: decoder(x, layers, norm) if len(layers) else x,
            "Without layers the final norm is missing. It comes after the loop, whatever the loop"
            " has done.",
        ),
        Mistake(
            "norm before the layers",
            partial(decoder, before=lambda x, norm: norm(x), after=lambda start, x, norm: x),
            "The norm comes before the layers. Each layer brings its own norms; this one comes"
            " after the last layer, for the head.",
        ),
        Mistake(
            "norm before and after the layers",
            partial(decoder, before=lambda x, norm: norm(x)),
            "The norm works twice, before the layers and after them. Each layer brings its own"
            " norms; this one comes after the last layer alone, for the head.",
        ),
        Mistake(
            "norm after every layer",
            partial(
                decoder,
                between=lambda old, new, norm: norm(new),
                after=lambda start, x, norm: x,
            ),
            "The norm is applied after every layer. It comes once, after the last: between layers"
            " the stream flows on as it is.",
        ),
        Mistake(
            "norm after every layer and again",
            partial(decoder, between=lambda old, new, norm: norm(new)),
            "The norm is applied after every layer, and once more at the end. It comes once, after"
            " the last layer: between layers the stream flows on as it is.",
        ),
        Mistake(
            "norm before every layer",
            partial(decoder, read=lambda x, norm: norm(x), after=lambda start, x, norm: x),
            "The norm is applied before every layer. Each layer brings its own norms; this one"
            " comes once, after the last layer, for the head.",
        ),
        Mistake(
            "norm before every layer and at the end",
            partial(decoder, read=lambda x, norm: norm(x)),
            "The norm is applied before every layer. Each layer brings its own norms; this one"
            " comes once, after the last layer, for the head.",
        ),
        Mistake(
            "norm added",
            partial(decoder, after=lambda start, x, norm: x + norm(x)),
            "The normed stream is added to the stream. The norm at the end replaces it: return"
            " norm(x).",
        ),
        Mistake(
            "norm twice at the end",
            partial(decoder, after=lambda start, x, norm: norm(norm(x))),
            "The norm works twice at the end. Once: return norm(x).",
        ),
        Mistake(
            "the start added",
            partial(decoder, after=lambda start, x, norm: norm(start + x)),
            "The x that came in is added to what the layers gave. Each layer has kept the stream"
            " already: nothing is to be added here.",
        ),
        Mistake(
            "the start added after the norm",
            partial(decoder, after=lambda start, x, norm: start + norm(x)),
            "The x that came in is added to what the layers gave. Each layer has kept the stream"
            " already: nothing is to be added here.",
        ),
        Mistake(
            "residual around the layers",
            partial(decoder, between=lambda old, new, norm: old + new),
            "You add x to what a layer gives. A layer has done that already, twice: its result *is*"
            " the new stream.",
        ),
        Mistake(
            "the first layer alone",
            partial(decoder, which=lambda layers: layers[:1]),
            "Only the first layer has worked. Does `return` stand inside the loop?",
        ),
        Mistake(
            "the last layer alone",
            partial(decoder, which=lambda layers: layers[-1:]),
            "Only the last layer counts: each layer got the x that came in. Hand the result of one"
            " layer to the next: x = layer(x).",
        ),
        Mistake(
            "no layers",
            partial(decoder, which=lambda layers: layers[:0]),
            "No layer has worked: this is the norm of the x that came in. Keep what a layer"
            " returns: x = layer(x).",
        ),
        Mistake(
            "sum of what all layers make of the start",
            lambda x, layers, norm: norm(sum((layer(x) for layer in layers), start=0 * x)),
            "Each layer got the x that came in, and their results are added. Hand the result of one"
            " layer to the next: x = layer(x).",
        ),
        Mistake(
            "sum of what all layers make of the start, each normed",
            lambda x, layers, norm: sum((norm(layer(x)) for layer in layers), start=0 * x),
            "Each layer got the x that came in, and their normed results are added. Hand the result"
            " of one layer to the next, x = layer(x), and norm once, at the end.",
        ),
        Mistake(
            "start and all layers of it",
            lambda x, layers, norm: norm(x + sum((layer(x) for layer in layers), start=0 * x)),
            "Each layer got the x that came in, and their results are added. Hand the result of one"
            " layer to the next: x = layer(x).",
        ),
        Mistake(
            "backwards",
            partial(decoder, which=lambda layers: layers[::-1]),
            "The layers run from the last to the first. Begin with layers[0].",
        ),
        Mistake(
            "last layer left out",
            partial(decoder, which=lambda layers: layers[:-1]),
            "The last layer has not worked. Is the range of the loop one too short?",
        ),
        Mistake(
            "first layer left out",
            partial(decoder, which=lambda layers: layers[1:]),
            "The first layer has not worked. Indices count from 0: begin with layers[0].",
        ),
        Mistake(
            "four layers at most",
            partial(decoder, which=lambda layers: layers[:4]),
            "Only four layers have worked, as many as the small model has. Go through all that you"
            " are given: for layer in layers.",
        ),
        Mistake(
            "no layer twice",
            partial(decoder, which=dict.fromkeys),
            "A layer that stands twice in `layers` has worked once. Each place of it counts: go"
            " through `layers` as it is, with a for loop.",
        ),
        *(
            Mistake(
                f"the last token alone, {kept}",
                partial(decoder, after=lambda start, x, norm, kept=kept: norm(x)[:, kept]),
                "Only the last token comes back. Return the whole stream, (b, t, d): training needs"
                " every place.",
            )
            for kept in (-1, slice(-1, None))
        ),
        Mistake(
            "each layer twice",
            partial(decoder, which=lambda layers: [one for one in layers for _ in range(2)]),
            "Each layer has worked twice. Call it once, and keep what it returns: x = layer(x).",
        ),
        Mistake(
            "the first layer again and again",
            partial(decoder, which=lambda layers: layers[:1] * len(layers)),
            "The first layer has done all the work, again and again. The layers have different"
            " weights: each works once, in their order.",
        ),
    ),
    crashes=(
        *(
            Mistake(
                name,
                needs_one,
                "There may be no layers, and then there is no first one and no last one. A for loop"
                " over `layers` does nothing then, and the norm works alone.",
            )
            for name, needs_one in {
                "begins with the first": lambda x, layers, norm: decoder(
                    layers[0](x), layers[1:], norm
                ),
                "ends with the last": lambda x, layers, norm: norm(
                    layers[-1](decoder(x, layers[:-1], _as_it_is))
                ),
                "reduced": lambda x, layers, norm: norm(
                    reduce(lambda f, g: lambda x: g(f(x)), layers)(x)
                ),
            }.items()
        ),
        *(
            Mistake(
                name,
                in_torch,
                "nn.Sequential and nn.ModuleList take modules alone. Here each layer, and the norm,"
                " is a function that is ready to call. Go through the layers with a for loop.",
            )
            for name, in_torch in {
                "all in nn.Sequential": lambda x, layers, norm: nn.Sequential(*layers, norm)(x),
                "layers in nn.Sequential": lambda x, layers, norm: norm(nn.Sequential(*layers)(x)),
                "layers in nn.ModuleList": lambda x, layers, norm: nn.ModuleList(layers),
            }.items()
        ),
    ),
    hints=(
        "A loop and a norm.",
        "Each layer takes the stream and returns the stream, with its own part added already.",
        "for layer in layers: x = layer(x). After the loop: return norm(x).",
    ),
)


def _rms_of_one(x: Tensor) -> Tensor:
    return x / x.square().mean(dim=-1, keepdim=True).sqrt()


def _head_of_its_own(x: Tensor, table: Tensor) -> Tensor:
    # Random, and yet recognised: a check starts torch's random numbers anew for whoever draws them.
    return F.linear(x, nn.Linear(table.shape[1], table.shape[0], bias=False).weight.detach())


def _head_with_bias(x: Tensor, table: Tensor) -> Tensor:
    return nn.Linear(table.shape[1], table.shape[0])(x).detach()


def _by_three_sizes(x: Tensor, table: Tensor) -> Tensor:
    b, t, d = x.shape
    return (x.reshape(b * t, d) @ table.T).reshape(b, t, -1)


NOT_TIED = (
    "The head is not tied: this is a new matrix with random start values. The checkpoint has no"
    " weights for it. The head is the embedding table that you are given."
)
DISTANCES = (
    "These are distances between the vector and the rows. Here long rows count more: take the dot"
    " product with each row."
)

LOGITS = Exercise(
    name="logits",
    reference=logits,
    cases=_logits_cases,
    axes="b t v|b v",
    checked=(
        "shape, dtype and every value on batches of 2 x 3, 3 x 4 and 1 x 1 tokens and on one token"
        " a row, with tables of 7 to 11 rows; inputs unchanged"
    ),
    mistakes=(
        Mistake("head not tied", _head_of_its_own, NOT_TIED),
        Mistake(
            "reshaped",
            partial(logits, turn=lambda table: table.reshape(table.shape[::-1])),
            RESHAPED,
        ),
        Mistake(
            "axes of length 1 lost",
            partial(logits, after=torch.squeeze),
            SQUEEZED,
        ),
        *(
            Mistake(
                f"always three axes, {place}",
                lambda x, table, place=place: (x.unsqueeze(place) if x.ndim == 2 else x) @ table.T,
                "(b, d) comes back with three axes. One token a row gives (b, v): `@` leaves the"
                " axes in front as they are.",
            )
            for place in (0, 1)
        ),
        Mistake("head not tied, with a bias", _head_with_bias, NOT_TIED),
        Mistake(
            "table scaled",
            partial(logits, factor=lambda table: table.shape[1] ** 0.5),
            "The logits are sqrt(d) times too large. The scale belongs to the way in (`embed`)"
            " alone. The head uses the table as it is stored.",
        ),
        Mistake(
            "divided by sqrt(d)",
            partial(logits, factor=lambda table: table.shape[1] ** -0.5),
            "The logits are divided by sqrt(d), as the scores of attention are. The head has no"
            " scale: it is the plain dot product with each row.",
        ),
        Mistake(
            "divided by d",
            partial(logits, factor=lambda table: 1 / table.shape[1]),
            "The logits are divided by d: a mean of products. The head is the plain dot product,"
            " the sum of products.",
        ),
        Mistake(
            "softmax",
            partial(logits, after=lambda x: x.softmax(dim=-1)),
            "These are probabilities. Logits come before the softmax: the loss and the sampling"
            " take it from there.",
        ),
        Mistake(
            "log of the softmax",
            partial(logits, after=lambda x: x.log_softmax(dim=-1)),
            "These are logarithms of probabilities. Logits come before any softmax: the loss and"
            " the sampling take it from there.",
        ),
        Mistake(
            "sigmoid",
            partial(logits, after=torch.sigmoid),
            "These are sigmoids, between 0 and 1. Logits are the dot products themselves.",
        ),
        *(
            Mistake(
                f"capped at {cap}",
                partial(logits, after=lambda x, cap=cap: cap * torch.tanh(x / cap)),
                "The logits are capped with a tanh. Gemma 2 does so; in Gemma 1, and in PaliGemma,"
                " they are the plain dot products.",
            )
            for cap in (30.0, 50.0)
        ),
        Mistake(
            "largest subtracted",
            partial(logits, after=lambda x: x - x.amax(dim=-1, keepdim=True)),
            "The largest logit is subtracted. A stable softmax does that for itself; the head"
            " returns the dot products as they are.",
        ),
        Mistake(
            "cosine",
            partial(logits, rows=_of_length_one),
            "The rows are brought to length 1, as for CLIP's similarities. Here long rows count"
            " more: use the table as it is stored.",
        ),
        Mistake(
            "cosine, the vectors",
            partial(logits, read=_of_length_one),
            "The vectors are brought to length 1, as for CLIP's similarities. The decoder returns"
            " them through the final norm: use them as they come.",
        ),
        Mistake(
            "cosine, both",
            partial(logits, rows=_of_length_one, read=_of_length_one),
            "Vectors and rows are both brought to length 1, as for CLIP's similarities. The head is"
            " the plain dot product: long rows count more.",
        ),
        Mistake(
            "normed again",
            partial(logits, read=_rms_of_one),
            "The vectors are normed once more. The decoder returns them through the final norm:"
            " here they are used as they come.",
        ),
        Mistake(
            "normed again, with the mean",
            partial(logits, read=lambda x: F.layer_norm(x, x.shape[-1:])),
            "The vectors are normed once more. The decoder returns them through the final norm:"
            " here they are used as they come.",
        ),
        Mistake(
            "bent",
            partial(logits, read=_gelu),
            "There is a GELU before the head. The head is the plain dot product with each row.",
        ),
        Mistake(
            "1 + table",
            partial(logits, rows=lambda table: 1 + table),
            "1 is added to the table, as to the weight of Gemma's norms. The rows are used as they"
            " are stored.",
        ),
        Mistake(
            "turned sign",
            partial(logits, factor=lambda table: -1.0),
            "The sign is turned: the row that agrees best gets the lowest logit.",
        ),
        Mistake(
            "squared distances",
            lambda x, table: -(x[..., None, :] - table).square().sum(dim=-1),
            DISTANCES,
        ),
        Mistake("distances", lambda x, table: -torch.cdist(x, table), DISTANCES),
        Mistake(
            "vocabulary in the middle",
            partial(logits, after=lambda x: x.transpose(0, -1) if x.ndim == 2 else x.mT),
            "The vocabulary stands before the tokens: (b, v, t). It is the last axis: (b, t, v), as"
            " x @ table.T gives it.",
        ),
        Mistake(
            "last place only",
            lambda x, table: (x[:, -1] if x.ndim == 3 else x) @ table.T,
            "Only the last token has logits. Here every token of x gets them; the generation picks"
            " the last one before it calls this function.",
        ),
        Mistake(
            "last place, its axis kept",
            lambda x, table: (x[:, -1:] if x.ndim == 3 else x) @ table.T,
            "Only the last token has logits. Here every token of x gets them; the generation picks"
            " the last one before it calls this function.",
        ),
        Mistake(
            "the mean over the tokens",
            lambda x, table: (x.mean(dim=1) if x.ndim == 3 else x) @ table.T,
            "The tokens are averaged before the head. Every token of x gets logits of its own.",
        ),
        Mistake(
            "the words, not the logits",
            partial(logits, after=lambda x: x.argmax(dim=-1)),
            "These are the most likely tokens. Return the logits, one for each row of the table;"
            " the choice comes in lesson 12.",
        ),
    ),
    crashes=tuple(
        Mistake(
            name,
            three_axes,
            "Your function takes (b, t, d) alone. (b, d), one token a row, must work, too: x @"
            " table.T works for any axes in front.",
        )
        for name, three_axes in {
            "einsum": lambda x, table: torch.einsum("btd,vd->btv", x, table),
            "bmm": lambda x, table: torch.bmm(x, table.T.expand(len(x), -1, -1)),
            "three sizes": _by_three_sizes,
            "axes by number": lambda x, table: (table @ x.transpose(1, 2)).transpose(1, 2),
            "three indices": lambda x, table: x[:, :, :] @ table.T,
        }.items()
    ),
    hints=(
        "One logit for each row of the table: how much does the vector agree with that row?",
        "The dot product of a vector (d,) with every row of (v, d) gives (v,).",
        "x @ table.T, or F.linear(x, table). No scale, no softmax, no weights of its own.",
    ),
)


# --- the transfer piece: norms without numbers of their own ---------------------------------------


def _fold_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(23)

    def case(d: int, q: int, kv: int, hidden: int) -> tuple:
        def made(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        attention = made(q, d), made(kv, d), made(kv, d), made(d, q)
        return (made(d), *attention, made(d), made(hidden, d), made(hidden, d), made(d, hidden))

    # The first: all matrices square, so that no wrong axis crashes. The second: a factor of 0.
    square, other = case(5, 5, 5, 5), case(4, 6, 2, 7)
    other[5][1] = -1
    return [square, other]


def fold_norms(
    norm1: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    norm2: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    plus: float = 1.0,
    left: Callable[[Tensor], Tensor] = torch.zeros_like,
    kept: str = "",
    put: Callable[[Tensor, Tensor], Tensor] = lambda matrix, factor: matrix * factor,
    swapped: bool = False,
    by_first: str = "query key value",
    by_second: str = "gate up",
    put_second: Callable[[Tensor, Tensor], Tensor] | None = None,
    written: dict[str, str] | None = None,
    write: Callable[[Tensor, Tensor], Tensor] = lambda matrix, factor: matrix * factor[:, None],
) -> tuple[Tensor, ...]:
    """Nine weights of one layer -> nine weights. The reference, or with one thing changed.

    by_first, by_second: the matrices that take up each norm's factor; put_second: how the second's
    do; kept: a norm that keeps it; written: the norms that "out" and "down" take up, on their rows.
    """
    names = ("query", "key", "value", "out", "gate", "up", "down")
    matrices = dict(zip(names, (query, key, value, out, gate, up, down), strict=True))
    norms = (norm2, norm1) if swapped else (norm1, norm2)
    ways = (by_first, put), (by_second, put_second or put)
    for norm, (readers, way) in zip(norms, ways, strict=True):
        for name in readers.split():
            if matrices[name].shape[1] == len(norm):  # else it could not be done
                matrices[name] = way(matrices[name], plus + norm)
    for name, norm in (written or {}).items():
        matrices[name] = write(matrices[name], 1 + {"norm1": norm1, "norm2": norm2}[norm])
    folded = list(matrices.values())
    new1 = left(norm1) if by_first and kept != "norm1" else norm1
    new2 = left(norm2) if by_second and kept != "norm2" else norm2
    return (new1, *folded[:4], new2, *folded[4:])


def _written(*weights: Tensor) -> tuple[Tensor, ...]:
    """The factors on what attention and the MLP give to the stream."""
    norm1, query, key, value, out, norm2, gate, up, down = weights
    out, down = (matrix * (1 + norm)[:, None] for matrix, norm in ((out, norm1), (down, norm2)))
    return 0 * norm1, query, key, value, out, 0 * norm2, gate, up, down


def _by_one_norm(*weights: Tensor, which: int) -> tuple[Tensor, ...]:
    """Both norms' readers take up the numbers of one."""
    given = list(weights)
    given[0] = given[5] = weights[which]
    return fold_norms(*given)


def _by_both_norms(*weights: Tensor, both: tuple[int, ...]) -> tuple[Tensor, ...]:
    """These matrices take up the numbers of both norms."""
    folded = list(fold_norms(*weights))
    for i in both:
        folded[i] = weights[i] * (1 + weights[0]) * (1 + weights[5])
    return tuple(folded)


def _on_the_rows(matrix: Tensor, factor: Tensor) -> Tensor:
    """On the wrong axis, where it can be."""
    return matrix * (factor[:, None] if len(matrix) == len(factor) else factor)


NOT_FOR_ALL_READERS = (
    "A matrix that reads through a norm has not taken up its numbers. Three read what norm1 gives:"
    " query, key and value. Two read what norm2 gives: gate and up."
)
NOT_A_READER = (
    "A matrix has taken up the numbers of a norm that it does not read through. `out` reads what"
    " the heads have mixed, and `down` reads gate times up: no norm stands before them. Leave both"
    " as they are."
)

SQUARE_ROOTS = (
    "Matrices have taken up the square root of the factor. What they give is multiplied together"
    " (query with key, gate with up), but each reads the whole normed token by itself, and takes"
    " the whole factor."
)
KEPT = (
    "The matrices have taken up the factors, but a norm has kept its own, too: they would work"
    " twice. Return weights of 0 for both norms."
)

FOLD_NORMS = Exercise(
    name="fold_norms",
    transfer=True,
    reference=fold_norms,
    cases=_fold_cases,
    axes="d; q d; kv d; kv d; d q; d; hidden d; hidden d; d hidden",
    parts=("norm1", "query", "key", "value", "out", "norm2", "gate", "up", "down"),
    checked=(
        "shape, dtype and every value of the nine weights, for a layer of width 5 whose matrices"
        " are all square and for one of width 4 whose widths all differ; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake(
            "weight without the 1",
            partial(fold_norms, plus=0.0),
            "The matrices are multiplied by the stored weights. Gemma stores the factor minus one:"
            " what is to be taken up is 1 + weight.",
        ),
        Mistake(
            "norms left at 1",
            partial(fold_norms, left=torch.ones_like),
            "The norms are left with weights of 1. That is a factor of 2: Gemma multiplies by 1 +"
            " weight. The weight that changes nothing is 0.",
        ),
        Mistake(
            "norms left as they were",
            partial(fold_norms, left=lambda norm: norm),
            KEPT,
        ),
        Mistake("norm1 left as it was", partial(fold_norms, kept="norm1"), KEPT),
        Mistake("norm2 left as it was", partial(fold_norms, kept="norm2"), KEPT),
        Mistake(
            "norms left at -1",
            partial(fold_norms, left=lambda norm: -torch.ones_like(norm)),
            "The norms are left with weights of -1. That is a factor of 0, and nothing comes"
            " through. The weight that changes nothing is 0.",
        ),
        Mistake(
            "nothing taken up",
            partial(fold_norms, put=lambda matrix, factor: matrix),
            "The norms have lost their numbers, and no matrix has taken them up: the layer computes"
            " something else now. Multiply into the matrices that read through each norm.",
        ),
        Mistake(
            "nothing done",
            lambda *weights: tuple(weights),
            "All nine weights are as they came. The norms keep weights of 0, and the matrices that"
            " read through them take up the factors, 1 + weight.",
        ),
        Mistake(
            "on what is written",
            _written,
            "The factors are on `out` and `down`, on what attention and the MLP *give*. A norm"
            " stands before what is *read*: its factors go to query, key and value, or to gate and"
            " up.",
        ),
        *(
            Mistake(
                f"divided on the way out, {written}",
                partial(
                    fold_norms,
                    written=written,
                    write=lambda matrix, factor: matrix / factor[:, None],
                ),
                "`out` or `down` is divided by the factors, as if something had to be made up for."
                " The matrices that read give the same as before, so all that follows stays as it"
                " is.",
            )
            for written in ({"out": "norm1", "down": "norm2"}, {"out": "norm1"}, {"down": "norm2"})
        ),
        *(
            Mistake(
                f"square roots, query and key, {name}",
                lambda *weights, root=root: (
                    weights[0] * 0,
                    *fold_norms(*weights, put=root)[1:3],
                    *fold_norms(*weights)[3:],
                ),
                SQUARE_ROOTS,
            )
            for name, root in {
                "roots": lambda matrix, factor: matrix * factor.sqrt(),
                "sizes": lambda matrix, factor: matrix * factor.abs().sqrt(),
            }.items()
        ),
        *(
            Mistake(
                f"square roots, {name}",
                partial(fold_norms, **edit),
                SQUARE_ROOTS,
            )
            for name, edit in {
                "gate and up": {"put_second": lambda matrix, factor: matrix * factor.sqrt()},
                "gate and up, sizes": {
                    "put_second": lambda matrix, factor: matrix * factor.abs().sqrt()
                },
                "all": {"put": lambda matrix, factor: matrix * factor.sqrt()},
                "all, sizes": {"put": lambda matrix, factor: matrix * factor.abs().sqrt()},
            }.items()
        ),
        *(
            Mistake(
                f"norm{number} for both",
                lambda *weights, which=which: _by_one_norm(*weights, which=which),
                f"All five matrices have taken up the numbers of norm{number}. Each norm has its"
                " own readers: norm1 query, key and value, norm2 gate and up.",
            )
            for number, which in ((1, 0), (2, 5))
        ),
        *(
            Mistake(
                f"both norms for {which}",
                lambda *weights, both=both: _by_both_norms(*weights, both=both),
                "Matrices have taken up the numbers of both norms. The stream itself is never"
                " normed, so each norm has its own readers: norm1 query, key and value, norm2 gate"
                " and up.",
            )
            for which, both in (
                ("the MLP", (6, 7)),
                ("attention", (1, 2, 3)),
                ("all", (1, 2, 3, 6, 7)),
            )
        ),
        *(
            Mistake(
                f"the norms {place}",
                lambda *weights, order=order: tuple(fold_norms(*weights)[i] for i in order),
                "The order is not that of the arguments: norm1, query, key, value, out, norm2,"
                " gate, up, down.",
            )
            for place, order in (
                ("in front", (0, 5, 1, 2, 3, 4, 6, 7, 8)),
                ("at the end", (1, 2, 3, 4, 6, 7, 8, 0, 5)),
            )
        ),
        Mistake(
            "rows instead of columns",
            partial(fold_norms, put=_on_the_rows),
            "The factors are on the rows of the matrices, and so on what they give. A weight is"
            " stored as (outputs, inputs): what comes in is the last axis. Multiply the columns:"
            " matrix * factor.",
        ),
        Mistake(
            "product of matrices",
            partial(fold_norms, put=torch.mv),
            "The numbers of a row are added up. Each input has a factor of its own: multiply each"
            " column by its factor, matrix * factor, and add nothing.",
        ),
        Mistake(
            "divided",
            partial(fold_norms, put=lambda matrix, factor: matrix / factor),
            "The matrices are divided by the factors. The norm multiplies by them, and so must the"
            " matrix that takes its place.",
        ),
        Mistake(
            "factor added",
            partial(fold_norms, put=lambda matrix, factor: matrix + factor),
            "The factors are added to the matrices. The norm multiplies by them: so does the matrix"
            " that takes its place, column by column.",
        ),
        Mistake(
            "norms swapped",
            partial(fold_norms, swapped=True),
            "The norms are swapped. norm1 stands before query, key and value, norm2 before gate and"
            " up.",
        ),
        *(
            Mistake(f"by the first only {readers}", partial(fold_norms, by_first=readers), said)
            for readers, said in {
                "query key": NOT_FOR_ALL_READERS,
                "query": NOT_FOR_ALL_READERS,
                "key value": NOT_FOR_ALL_READERS,
                "query value": NOT_FOR_ALL_READERS,
                "value": NOT_FOR_ALL_READERS,
                "query key value out": NOT_A_READER,
            }.items()
        ),
        *(
            Mistake(f"by the second only {readers}", partial(fold_norms, by_second=readers), said)
            for readers, said in {
                "gate": NOT_FOR_ALL_READERS,
                "up": NOT_FOR_ALL_READERS,
                "gate up down": NOT_A_READER,
            }.items()
        ),
        Mistake(
            "out and down too",
            partial(fold_norms, by_first="query key value out", by_second="gate up down"),
            NOT_A_READER,
        ),
        *(
            Mistake(
                f"on what is given, too, {written}",
                partial(fold_norms, written=written),
                "`out` or `down` has taken up a norm's numbers on its rows, as well as the matrices"
                " that read through the norm. What they give passes through no norm: leave both as"
                " they are.",
            )
            for written in (
                {"out": "norm1"},
                {"out": "norm2"},
                {"down": "norm2"},
                {"out": "norm1", "down": "norm2"},
            )
        ),
        Mistake(
            "without its sign",
            partial(fold_norms, put=lambda matrix, factor: matrix * factor.abs()),
            "The factors have lost their sign. 1 + weight may be negative: multiply by it as it"
            " is.",
        ),
        Mistake(
            "cut off at 0",
            partial(fold_norms, put=lambda matrix, factor: matrix * factor.clamp(min=0)),
            "Negative factors are cut off at 0. 1 + weight may be negative: multiply by it as it"
            " is.",
        ),
        *(
            Mistake(
                f"0 replaced by {least}",
                partial(
                    fold_norms,
                    put=lambda matrix, factor, least=least: (
                        matrix * factor.masked_fill(factor == 0, least)
                    ),
                ),
                "A factor of 0 is replaced by another number. Nothing is divided by it: multiply by"
                " it as it is, and the column becomes 0.",
            )
            for least in (1.0, 0.1, 0.01)
        ),
        Mistake(
            "the second on what attention gives",
            lambda *weights: (
                *(folded := fold_norms(*weights))[:4],
                weights[4] * (1 + weights[5])[:, None],
                folded[5],
                *weights[6:],
            ),
            "norm2 has gone into `out`, as its published name (`post_attention_layernorm`)"
            " suggests. It stands before the MLP: gate and up read the stream through it.",
        ),
        Mistake(
            "attention alone",
            partial(fold_norms, by_second=""),
            "norm2 is as it was, and gate and up are, too. Its numbers move as well: gate and up"
            " read the stream through it.",
        ),
        Mistake(
            "MLP alone",
            partial(fold_norms, by_first=""),
            "norm1 is as it was, and query, key and value are, too. Its numbers move as well: these"
            " three read the stream through it.",
        ),
    ),
    hints=(
        "Write one matrix and its norm as one line: matrix @ (normal * factor), where normal is the"
        " token after the division and factor is what the norm multiplies by. Which other matrix"
        " gives the same with normal alone?",
        "Input number i of the matrix is multiplied by factor[i] before it comes in. So multiply"
        " column i by factor[i]: weights are (outputs, inputs), and matrix * factor does it for all"
        " columns. Which of the seven matrices read what a norm gives?",
        "norm1: query, key, value. norm2: gate, up. The factor is 1 + weight, and each norm keeps"
        " torch.zeros_like(weight). out and down stay as they are.",
    ),
)

EXERCISES = (GEGLU, DECODER_LAYER, EMBED, DECODER, LOGITS, FOLD_NORMS)  # as in the notebook
