"""Lesson 10: what goes into the decoder, its gated MLP, its layer, its stack, and its head."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.attention import attend
from minipali.checks.engine import Exercise, Mistake
from minipali.checks.vision import no_residual_at_mlp, old_residual, parallel, post_norm


def embed(
    input_ids: Tensor,
    table: Tensor,
    *,
    factor: Callable[[Tensor, Tensor], float] = lambda input_ids, table: table.shape[1] ** 0.5,
) -> Tensor:
    """(b, t), (v, d) -> (b, t, d). The reference, or with another factor."""
    return table[input_ids] * factor(input_ids, table)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def geglu(
    x: Tensor,
    gate_weight: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    *,
    combine: Callable[[Tensor, Tensor], Tensor] = lambda gate, up: _gelu(gate) * up,
) -> Tensor:
    """(b, t, d) -> (b, t, d). The reference, or with gate and up combined in another way."""
    return combine(x @ gate_weight.T, x @ up_weight.T) @ down_weight.T


def decoder_layer(
    x: Tensor, norm1: Callable, attention: Callable, norm2: Callable, mlp: Callable
) -> Tensor:
    """The reference: (b, t, d) -> (b, t, d)."""
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


def decoder(x: Tensor, layers: list[Callable], norm: Callable) -> Tensor:
    """The reference: (b, t, d) -> (b, t, d)."""
    for layer in layers:
        x = layer(x)
    return norm(x)


def logits(x: Tensor, table: Tensor) -> Tensor:
    """The reference: (b, t, d), (v, d) -> (b, t, v)."""
    return x @ table.T


def _embed_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(6)

    def case(b: int, t: int, v: int, d: int) -> tuple:
        ids = torch.randint(v, (b, t), generator=random)
        return ids, torch.randn(v, d, generator=random)

    return [case(2, 3, 11, 5), case(3, 4, 6, 7)]


def _geglu_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(10)

    def case(b: int, t: int, d: int, hidden: int, spread: float, shift: float) -> tuple:
        x = torch.randn(b, t, d, generator=random)
        x[..., 0] = 1  # there are no biases; this feature stands in for one
        gate = torch.randn(hidden, d, generator=random) * spread / d**0.5
        gate[:, 0] += shift
        up = torch.randn(hidden, d, generator=random)
        return x, gate, up, torch.randn(d, hidden, generator=random)

    # The second: gates around -2.5. Nearly all are shut, so the results are small, and there the
    # two forms of GELU differ most.
    return [case(2, 3, 5, 14, 1, 0), case(3, 4, 7, 11, 0.4, -2.5)]


def _rms_norm(weight: Tensor) -> Callable:
    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=-1, keepdim=True) + 1e-2).sqrt() * (1 + weight)

    return norm


def _layer_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(5)

    def case(b: int, t: int, d: int, hidden: int) -> tuple:
        query, key, value = torch.randn(3, d, d, generator=random) / d**0.5
        gate, up = torch.randn(2, hidden, d, generator=random) / d**0.5
        down = torch.randn(d, hidden, generator=random) / hidden**0.5
        return (
            torch.randn(b, t, d, generator=random) * 2 + 1,
            _rms_norm(torch.randn(d, generator=random)),
            lambda x: attend(x @ query, x @ key, x @ value),
            _rms_norm(torch.randn(d, generator=random)),
            lambda x: geglu(x, gate, up, down),
        )

    return [case(2, 3, 5, 14), case(3, 4, 7, 11)]


class _Layers(tuple):
    """Functions that an attempt cannot take away from the case; shown in messages by number."""

    def __repr__(self) -> str:
        return f"{len(self)} functions"


def _decoder_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(8)

    def case(b: int, t: int, d: int, number: int) -> tuple:
        def layer() -> Callable:
            # A module of torch: calling it runs no code of this file, which would count as ours.
            linear = nn.Linear(d, d).requires_grad_(False)
            linear.weight.copy_(torch.randn(d, d, generator=random) * 1.5 / d**0.5)
            linear.bias.copy_(torch.randn(d, generator=random))
            return nn.Sequential(linear, nn.Tanh())

        layers = _Layers(layer() for _ in range(number))
        x = torch.randn(b, t, d, generator=random)
        return x, layers, _rms_norm(torch.randn(d, generator=random))

    return [case(2, 3, 5, 3), case(3, 4, 7, 4)]


def _logits_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(9)
    return [(torch.randn(2, 3, 5, generator=random), torch.randn(7, 5, generator=random))]


def _of_length_one(table: Tensor) -> Tensor:
    return F.normalize(table, dim=-1)


EMBED = Exercise(
    name="embed",
    reference=embed,
    cases=_embed_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 2 batches, tables of 11 and 6 rows, widths 5 and 7; inputs"
        " unchanged"
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
            "The rows are multiplied by d. The factor is its square root: d ** 0.5.",
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
            "rows normed",
            lambda ids, table: embed(ids, _of_length_one(table)),
            "The rows are brought to one length. The factor is the same for all rows: long rows"
            " stay long. Norms come later, inside the layers.",
        ),
    ),
    hints=(
        "Two steps: take a row of the table for each id, and multiply.",
        "A table of shape (v, d) that is indexed by ids of shape (b, t) gives (b, t, d).",
        "The factor is the square root of the width: table.shape[1] ** 0.5.",
    ),
)


GEGLU = Exercise(
    name="geglu",
    reference=geglu,
    cases=_geglu_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 2 batches, widths 5 and 7, hidden widths 14 and 11, with"
        " gates that tell the tanh form of GELU from the erf form; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "gate and up swapped",
            partial(geglu, combine=lambda gate, up: _gelu(up) * gate),
            "Gate and up are swapped: the bend is on up. GELU goes over the gate, and up stays"
            " linear. Both matrices have the same shape, so nothing else complains.",
        ),
        Mistake(
            "erf form",
            partial(geglu, combine=lambda gate, up: F.gelu(gate) * up),
            "This is GELU in its erf form, which is torch's default. Gemma was trained with the"
            ' tanh form: F.gelu(…, approximate="tanh"). The model would still answer, but no number'
            " would agree with the published model.",
        ),
        Mistake(
            "SiLU",
            partial(geglu, combine=lambda gate, up: F.silu(gate) * up),
            "The gate is x · sigmoid(x), called SiLU or swish: this is the SwiGLU of Llama. Gemma's"
            ' gate is GELU in the tanh form: F.gelu(…, approximate="tanh").',
        ),
        Mistake(
            "no bend",
            partial(geglu, combine=lambda gate, up: gate * up),
            "Gate times up, and nothing bends. The gate must go through GELU before the product, so"
            " that it can shut.",
        ),
        Mistake(
            "bend after the product",
            partial(geglu, combine=lambda gate, up: _gelu(gate * up)),
            "The GELU comes after the product. It belongs on the gate alone: bend the gate, then"
            " multiply by up.",
        ),
        Mistake(
            "both bent",
            partial(geglu, combine=lambda gate, up: _gelu(gate) * _gelu(up)),
            "Both halves go through GELU. Only the gate is bent; up stays linear, so that it can"
            " carry any sign.",
        ),
        Mistake(
            "sum instead of product",
            partial(geglu, combine=lambda gate, up: _gelu(gate) + up),
            "Gate and up are added. They are multiplied, entry by entry: a gate near 0 must shut"
            " its unit, whatever up says.",
        ),
        Mistake(
            "residual inside",
            lambda x, *weights: x + geglu(x, *weights),
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


def _norm_on_the_outputs(x, norm1, attention, norm2, mlp):
    x = x + norm1(attention(x))
    return x + norm2(mlp(x))


def _second_norm_after_attention(x, norm1, attention, norm2, mlp):
    x = x + norm2(attention(norm1(x)))
    return x + mlp(x)


def _norms_swapped(x, norm1, attention, norm2, mlp):
    x = x + attention(norm2(x))
    return x + mlp(norm1(x))


def _no_residual_at_attention(x, norm1, attention, norm2, mlp):
    x = attention(norm1(x))
    return x + mlp(norm2(x))


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
            post_norm,
            "The norms come after the sums, as in the first transformer (2017). Gemma is pre-norm:"
            " norm what attention and the MLP *read*, and leave the sum as it is.",
        ),
        Mistake(
            "norms on what is added",
            _norm_on_the_outputs,
            "The norms are on what attention and the MLP give. Gemma norms what they *read*:"
            " attention(norm1(x)) and mlp(norm2(x)).",
        ),
        Mistake(
            "second norm on the output of attention",
            _second_norm_after_attention,
            "The second norm is on the output of attention, as its published name"
            " (`post_attention_layernorm`) suggests. In Gemma 1 it is the norm that the MLP reads"
            " through: x + mlp(norm2(x)).",
        ),
        Mistake(
            "norms swapped",
            _norms_swapped,
            "The norms are swapped. Each has its own trained weights: norm1 serves attention, norm2"
            " the MLP.",
        ),
        Mistake(
            "no residual at attention",
            _no_residual_at_attention,
            "What attention gives replaces the stream. It must be added: x = x +"
            " attention(norm1(x)).",
        ),
        Mistake(
            "no residual at the MLP",
            no_residual_at_mlp,
            "You return what the MLP gives, without the stream. It must be added: return x +"
            " mlp(norm2(x)).",
        ),
        Mistake(
            "old residual",
            old_residual,
            "The second sum starts from the x that came in, so what attention added is lost. After"
            " attention the stream is the new sum; the MLP's result is added to that.",
        ),
        Mistake(
            "parallel",
            parallel,
            "Attention and MLP both read the x that came in, side by side. Gemma's MLP reads the"
            " stream after attention has added its part.",
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


def _no_final_norm(x, layers, norm):
    for layer in layers:
        x = layer(x)
    return x


def _norm_first(x, layers, norm):
    x = norm(x)
    for layer in layers:
        x = layer(x)
    return x


def _norm_after_each(x, layers, norm):
    for layer in layers:
        x = norm(layer(x))
    return x


def _residual_outside(x, layers, norm):
    for layer in layers:
        x = x + layer(x)
    return norm(x)


def _returns_in_the_loop(x, layers, norm):
    return norm(layers[0](x))


def _all_from_the_start(x, layers, norm):
    return norm(layers[-1](x))


def _backwards(x, layers, norm):
    for layer in layers[::-1]:
        x = layer(x)
    return norm(x)


def _last_left_out(x, layers, norm):
    for layer in layers[:-1]:
        x = layer(x)
    return norm(x)


DECODER = Exercise(
    name="decoder",
    reference=decoder,
    cases=_decoder_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 2 batches, with 3 and 4 layers that are all different;"
        " inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "final norm missing",
            _no_final_norm,
            "The final norm is missing. The stream has grown from layer to layer, and the head was"
            " trained to read it through this norm.",
        ),
        Mistake(
            "norm before the layers",
            _norm_first,
            "The norm comes before the layers. Each layer brings its own norms; this one comes"
            " after the last layer, for the head.",
        ),
        Mistake(
            "norm after every layer",
            _norm_after_each,
            "The norm is applied after every layer. It comes once, after the last: between layers"
            " the stream flows on as it is.",
        ),
        Mistake(
            "residual around the layers",
            _residual_outside,
            "You add x to what a layer gives. A layer has done that already, twice: its result *is*"
            " the new stream.",
        ),
        Mistake(
            "first layer alone",
            _returns_in_the_loop,
            "Only the first layer has worked. Does `return` stand inside the loop?",
        ),
        Mistake(
            "last layer alone",
            _all_from_the_start,
            "Only the last layer counts: each layer got the x that came in. Hand the result of one"
            " layer to the next: x = layer(x).",
        ),
        Mistake(
            "backwards",
            _backwards,
            "The layers run from the last to the first. Begin with layers[0].",
        ),
        Mistake(
            "last layer left out",
            _last_left_out,
            "The last layer has not worked. Is the range of the loop one too short?",
        ),
    ),
    hints=(
        "A loop and a norm.",
        "Each layer takes the stream and returns the stream, with its own part added already.",
        "for layer in layers: x = layer(x). After the loop: return norm(x).",
    ),
)


def _head_of_its_own(x, table):
    # Random, and yet recognised: a check starts torch's random numbers anew for whoever draws them.
    return F.linear(x, nn.Linear(table.shape[1], table.shape[0], bias=False).weight.detach())


LOGITS = Exercise(
    name="logits",
    reference=logits,
    cases=_logits_cases,
    axes="b t v",
    checked="shape, dtype and every value on a batch of 2 x 3 tokens, 7 words of width 5; inputs"
    " unchanged",
    mistakes=(
        Mistake(
            "head not tied",
            _head_of_its_own,
            "The head is not tied: this is a new matrix with random start values. The checkpoint"
            " has no weights for it. The head is the embedding table that you are given.",
        ),
        Mistake(
            "table scaled",
            lambda x, table: x @ table.T * table.shape[1] ** 0.5,
            "The logits are sqrt(d) times too large. The scale belongs to the way in (`embed`)"
            " alone. The head uses the table as it is stored.",
        ),
        Mistake(
            "divided by sqrt(d)",
            lambda x, table: x @ table.T * table.shape[1] ** -0.5,
            "The logits are divided by sqrt(d), as the scores of attention are. The head has no"
            " scale: it is the plain dot product with each row.",
        ),
        Mistake(
            "softmax",
            lambda x, table: (x @ table.T).softmax(dim=-1),
            "These are probabilities. Logits come before the softmax: the loss and the sampling"
            " take it from there.",
        ),
        Mistake(
            "cosine",
            lambda x, table: x @ _of_length_one(table).T,
            "The rows are brought to length 1, as for CLIP's similarities. Here long rows count"
            " more: use the table as it is stored.",
        ),
        Mistake(
            "last place only",
            lambda x, table: x[:, -1] @ table.T,
            "Only the last token has logits. Here every token of x gets them; the generation picks"
            " the last one before it calls this function.",
        ),
    ),
    hints=(
        "One logit for each row of the table: how much does the vector agree with that row?",
        "The dot product of a vector (d,) with every row of (v, d) gives (v,).",
        "x @ table.T, or F.linear(x, table). No scale, no softmax, no weights of its own.",
    ),
)

EXERCISES = (EMBED, GEGLU, DECODER_LAYER, DECODER, LOGITS)
