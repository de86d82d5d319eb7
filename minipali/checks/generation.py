"""Lesson 12: the distribution of the next token, the loop, and the way from pixels to tokens."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.generation import continue_tokens, distribution

# --- distribution ---------------------------------------------------------------------------------


def _distribution_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(12)

    def given(rows: int, vocabulary: int) -> Tensor:
        return 1.5 * torch.randn(rows, vocabulary, generator=random)

    # In the last case one token alone has more than top_p.
    sure = given(2, 6)
    sure[:, 4] += 9
    return [
        (given(3, 7), 0.6, None, None),
        (given(4, 11), 1.7, 4, None),
        (given(3, 13), 0.6, None, 0.7),
        (given(2, 17), 2.5, 5, 0.6),
        (sure, 0.8, None, 0.9),
    ]


def _distribution(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    *,
    soften: Callable[[Tensor, float], Tensor] = lambda logits, t: (logits / t).softmax(-1),
    one_less: bool = False,
    whole: bool = False,
    renormalise: bool = True,
    back: str = "scatter",
) -> Tensor:
    """distribution with one thing changed."""
    p, tokens = soften(logits, temperature).sort(dim=-1, descending=True)
    place = torch.arange(p.shape[-1])
    before = p.cumsum(-1) - p
    if top_k is not None:
        p = p.masked_fill(place >= top_k, 0.0)
        if not whole:
            before = (p.cumsum(-1) - p) / p.sum(-1, keepdim=True)
    if top_p is not None:
        reached = before + p / p.sum(-1, keepdim=True)
        p = p.masked_fill(reached > top_p if one_less else before >= top_p, 0.0)
    if renormalise:
        p = p / p.sum(-1, keepdim=True)
    if back == "sorted":
        return p
    return p.gather(-1, tokens) if back == "gather" else p.scatter(-1, tokens, p)


def _divided_after(logits: Tensor, temperature: float) -> Tensor:
    p = logits.softmax(-1) / temperature
    return p / p.sum(-1, keepdim=True)


DISTRIBUTION = Exercise(
    name="distribution",
    reference=distribution,
    cases=_distribution_cases,
    axes="b v",
    checked=(
        "shape, dtype and every value on 5 batches: temperature alone, with top-k, with top-p, with"
        " both, and with a model so sure that one token has more than top_p; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "temperature after the softmax",
            partial(_distribution, soften=_divided_after),
            "The temperature has no effect. If you divide the probabilities by it, making them sum"
            " to 1 takes it out again. Divide the logits, before the softmax.",
        ),
        Mistake(
            "softmax of probabilities",
            partial(_distribution, soften=lambda logits, t: (logits.softmax(-1) / t).softmax(-1)),
            "There are two softmaxes: the temperature divides probabilities, and another softmax"
            " makes them nearly equal. Divide the logits, and take one softmax of that.",
        ),
        Mistake(
            "times the temperature",
            partial(_distribution, soften=lambda logits, t: (logits * t).softmax(-1)),
            "The logits are multiplied by the temperature, so a high one makes the model surer."
            " Divide by it.",
        ),
        Mistake(
            "crossing token dropped",
            partial(_distribution, one_less=True),
            "Top-p drops the token that crosses p. It belongs to the fewest tokens that reach p"
            " together. Keep a token if those *before* it have not reached p: cumsum minus its own"
            " probability < top_p. Then there is also always one left.",
        ),
        Mistake(
            "not renormalised",
            partial(_distribution, renormalise=False),
            "What is kept does not sum to 1. Divide by its sum after cutting.",
        ),
        Mistake(
            "left in sorted order",
            partial(_distribution, back="sorted"),
            "The probabilities are sorted, most likely first, so column 0 is no longer token 0."
            " Put each back at its token: zeros.scatter(-1, tokens, probabilities).",
        ),
        Mistake(
            "gather instead of scatter",
            partial(_distribution, back="gather"),
            "The probabilities come back to wrong tokens: gather takes *from* the places that sort"
            " names. You want to put them *to* these places, and that is scatter.",
        ),
        Mistake(
            "top-p of the whole",
            partial(_distribution, whole=True),
            "With both, top-p counts the probabilities of all tokens, also of those that top-k has"
            " cut. Cut to k first, make the rest sum to 1, and count p within that.",
        ),
    ),
    hints=(
        "Sort the logits / temperature from the largest down (sort gives the values and the"
        " tokens). Then top-k and top-p are both: keep the first so many of the row.",
        "Top-k: -inf from column top_k on, and then the softmax. Top-p: probabilities.cumsum(-1) -"
        " probabilities is what the likelier tokens have reached before each. Where that is >="
        " top_p, put 0.",
        "Divide by the sum of each row (keepdim=True). At last torch.zeros_like(p).scatter(-1,"
        " tokens, p) puts every probability back to its token.",
    ),
)


# --- continue_tokens ------------------------------------------------------------------------------


def _continue_tokens(
    logits: Tensor,
    step: Callable,
    choose: Callable,
    eos: int,
    pad: int,
    max_new_tokens: int,
    *,
    stop: str = "all",
    padding: bool = True,
    eos_shown: bool = True,
    more: int = 0,
    first: bool = True,
    revive: bool = False,
    stale: bool = False,
) -> Tensor:
    """continue_tokens, its steps side by side (b, t), with one thing changed.

    stop: "all", "any" or "never".
    """
    running = torch.ones(len(logits), dtype=torch.bool)
    if not first:
        logits = step(choose(logits), running)
    told = []
    for number in range(max_new_tokens + more):
        tokens = choose(logits)
        before = running
        if padding:
            tokens = torch.where(running, tokens, pad)
        running = (tokens != eos) if revive else running & (tokens != eos)
        if stop == "never":
            running = torch.ones_like(running)
        told.append(tokens if eos_shown else torch.where(running, tokens, pad))
        done = not running.any() if stop == "all" else not running.all()
        if (done and stop != "never") or number + 1 == max_new_tokens + more:
            break
        logits = step(tokens, before if stale else running)
    return torch.stack(told, dim=1)


def _script(texts: list[list[int]], vocabulary: int, watch: int | None = None) -> tuple:
    """(logits, step, choose) of a make-believe model; row i of it would say texts[i].

    It goes on with the token after the given one in its text, also after eos. watch: the eos by
    which step sees for itself who is running; told otherwise, it says the last token of its table.
    """
    follows = torch.zeros(len(texts), vocabulary, dtype=torch.long)
    for row, text in enumerate(texts):
        for token, following in zip(text, text[1:], strict=False):
            follows[row, token] = following
    rows = torch.arange(len(texts))
    calls, ended = [], torch.zeros(len(texts), dtype=torch.bool)

    def as_logits(tokens: Tensor) -> Tensor:
        made = torch.zeros(len(texts), vocabulary)
        made[rows, tokens] = 5.0
        return made

    def step(tokens, running):
        tokens, running = torch.as_tensor(tokens), torch.as_tensor(running).bool()
        calls.append(1)
        if len(calls) > 30:
            raise RuntimeError(
                "step was called more than 30 times. Does your loop end after max_new_tokens?"
            )
        if not running.any():
            raise RuntimeError(
                "step was called although no row is running. Stop when all rows have said eos."
            )
        for name, one in (("token", tokens), ("value of running", running)):
            if one.shape != rows.shape:
                raise ValueError(
                    f"step takes one {name} a row, ({len(rows)},); found {tuple(one.shape)}"
                )
        ended.logical_or_(tokens == (-1 if watch is None else watch))
        if watch is not None and not torch.equal(running, ~ended):
            return as_logits(torch.full_like(rows, vocabulary - 1))
        return as_logits(follows[rows, tokens])

    def choose(logits):
        return logits.argmax(dim=-1)

    return as_logits(torch.tensor([text[0] for text in texts])), step, choose


def _loop_cases() -> list[tuple]:
    # eos 1 and pad 0 as in the model, then others; after eos each row would talk on. A row alone; a
    # row that never ends; rows that end one after the other, where `running` is looked at.
    alone = [[5, 9, 4, 1, 6, 7, 8, 3, 10, 2]]
    three = [[7, 4, 6, 1, 5, 8, 9, 3], [4, 1, 9, 10, 7, 3, 5, 6], [3, 8, 5, 9, 4, 6, 7, 10]]
    others = [[6, 5, 2, 7, 8, 9, 4, 10], [4, 7, 6, 9, 2, 8, 5, 10], [8, 7, 2, 4, 9, 5, 6, 10]]
    return [
        (*_script(alone, 13), 1, 0, 7),
        (*_script(three, 17), 1, 0, 6),
        (*_script(others, 12, watch=2), 2, 3, 8),
    ]


CONTINUE_TOKENS = Exercise(
    name="continue_tokens",
    reference=continue_tokens,
    cases=_loop_cases,
    axes="b t",
    steps=True,
    checked=(
        "every token on 3 batches of 1 to 3 rows that end early, late or never, with two different"
        " eos and pad; step gets the tokens just chosen and who is still running"
    ),
    mistakes=(
        Mistake(
            "never stops",
            partial(_continue_tokens, stop="never"),
            "Nothing stops at eos: the rows talk on until max_new_tokens. Remember which rows have"
            " said eos, and end when all have.",
        ),
        Mistake(
            "stops with the first row",
            partial(_continue_tokens, stop="any"),
            "The loop ends when the first row says eos, and the others are cut off. End when *no*"
            " row is running any more.",
        ),
        Mistake(
            "no padding after eos",
            partial(_continue_tokens, padding=False),
            "Rows that have said eos go on with tokens. Give pad for them: torch.where(running,"
            " tokens, pad).",
        ),
        Mistake(
            "eos becomes padding",
            partial(_continue_tokens, eos_shown=False),
            "The eos itself is replaced by pad. Give out the tokens first, and update running after"
            " that; padding begins with the token after eos.",
        ),
        Mistake(
            "one token too many",
            partial(_continue_tokens, more=1),
            "There is one token more than max_new_tokens. The token from the first logits counts"
            " too.",
        ),
        Mistake(
            "first logits not used",
            partial(_continue_tokens, first=False),
            "The first token is missing. The logits that you are given are for it: choose from them"
            " before the first step.",
        ),
        Mistake(
            "ended rows start again",
            partial(_continue_tokens, revive=True),
            "A row that has ended starts again one token later: its padding is not eos, so it"
            " counts as running. Once ended, always ended: running = running & (tokens != eos).",
        ),
        Mistake(
            "running from before",
            partial(_continue_tokens, stale=True),
            "step gets `running` as it was before these tokens. Take out the rows that have just"
            " said eos, then call step.",
        ),
    ),
    hints=(
        "Before the loop: running = torch.ones(b, dtype=torch.bool), b = len(logits). Then for each"
        " token: choose, replace by pad where not running, give out, update running, stop or step.",
        "torch.where(running, choose(logits), pad) are the tokens. `yield tokens` gives them out"
        " and goes on when the next are asked for. Then running = running & (tokens != eos).",
        "Stop if it was token number max_new_tokens or if not running.any(): `return` ends a"
        " function that yields. Else logits = step(tokens, running).",
    ),
)


# --- answer ---------------------------------------------------------------------------------------


def answer(
    pixels: Tensor,
    prompt: Tensor,
    look: Callable,
    read: Callable,
    choose: Callable,
    usable: int,
    eos: int,
    pad: int,
    max_new_tokens: int,
    *,
    fill: float = float("-inf"),
    at_first: bool = True,
    later: bool = True,
    shift: int = 0,
    repair: bool = False,
    look_again: bool = False,
    all_again: bool = False,
) -> Tensor:
    """(b, c, y, x), (b, s) -> (b, t) tokens. The reference, or with one thing changed."""

    def mask(logits: Tensor, on: bool) -> Tensor:
        hidden = torch.arange(logits.shape[-1]) >= usable + shift
        return logits.masked_fill(hidden, fill) if on else logits

    def pick(logits: Tensor) -> Tensor:
        tokens = choose(logits)
        return torch.where(tokens < usable, tokens, pad) if repair else tokens

    so_far = [prompt]

    def step(tokens: Tensor, running: Tensor) -> Tensor:
        so_far.append(tokens[:, None])
        new = torch.cat(so_far, dim=1) if all_again else tokens[:, None]
        return mask(read(new, look(pixels) if look_again else None), later)

    logits = mask(read(prompt, look(pixels)), at_first)
    return _continue_tokens(logits, step, pick, eos, pad, max_new_tokens)


def _reader(seed: int, rows: int, vocabulary: int, numbers: list[float]) -> list[Callable]:
    """(look, read, choose) of a make-believe model with a memory.

    read goes on from all that it was given before, as a model with a cache does; choose is a draw
    with given random numbers, one a row.
    """
    random = torch.Generator().manual_seed(seed)
    width = 6
    table = torch.randn(vocabulary, width, generator=random)
    head = 2 * torch.randn(vocabulary, width, generator=random)
    head[-3:] *= 1.5  # the rows that are no text are likely, so that a missing mask shows
    eye = torch.randn(3, width, generator=random)
    bored = 9.0 * torch.eye(vocabulary)[2]  # logits that know one word
    memory, looks, pictures = [torch.zeros(rows, width)], [], []

    def look(pixels):
        looks.append(1)
        return pixels.mean(dim=(2, 3))[:, None] @ eye

    def read(tokens, image):
        if tokens.ndim != 2:
            raise ValueError(f"read takes tokens (b, t); found {tuple(tokens.shape)}")
        if image is not None:
            pictures.append(1)
            memory[0] = memory[0] + image.sum(dim=1)
        for token in tokens.unbind(dim=1):
            memory[0] = 0.95 * memory[0].roll(1, dims=1) + table[token]
        # Whoever looks twice, or hands over what it saw twice, gets nothing sensible any more.
        if len(looks) > 1 or len(pictures) > 1:
            return bored.repeat(rows, 1)
        return torch.tanh(memory[0]) @ head.T

    stick = torch.tensor(numbers)

    def choose(logits):
        ends = logits.softmax(dim=-1).cumsum(dim=-1)
        return (ends <= stick[:, None]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)

    return [look, read, choose]


def _answer_cases() -> list[tuple]:
    def case(seed: int, rows: int, vocabulary: int, numbers: list[float], most: int) -> tuple:
        random = torch.Generator().manual_seed(7 + seed)
        pixels = torch.randn(rows, 3, 4, 5, generator=random)
        prompt = torch.randint(2, vocabulary - 3, (rows, 4), generator=random)
        given = _reader(seed, rows, vocabulary, numbers)
        return (pixels, prompt, *given, vocabulary - 3, 1, 0, most)

    # Seeds for which some rows end and some do not, and every known mistake tells other tokens.
    return [case(28, 2, 11, [0.55, 0.35], 9), case(40, 3, 14, [0.3, 0.62, 0.81], 8)]


ANSWER = Exercise(
    name="answer",
    reference=answer,
    cases=_answer_cases,
    axes="b t",
    checked=(
        "every token of 2 batches, drawn with fixed random numbers from a make-believe model that"
        " remembers what it has read and notices a second look at the picture"
    ),
    mistakes=(
        Mistake(
            "nothing masked",
            partial(answer, at_first=False, later=False),
            "Tokens that are no text are drawn: nothing is masked. Put -inf into the logits from"
            " column `usable` on, before choose sees them.",
        ),
        Mistake(
            "only the first logits masked",
            partial(answer, later=False),
            "Only the first logits are masked. Each step's logits have the same columns that are no"
            " text: mask these too.",
        ),
        Mistake(
            "masked with zero",
            partial(answer, fill=0.0),
            "The unusable logits are set to 0. That is a logit like any other, and its exponential"
            " is 1. Only -inf gets no chance.",
        ),
        Mistake(
            "one column too few",
            partial(answer, shift=1),
            "Column `usable` itself can still be drawn. There are `usable` tokens, 0 to usable - 1:"
            " mask from column `usable` on.",
        ),
        Mistake(
            "chosen first, then repaired",
            partial(answer, repair=True, at_first=False, later=False),
            "The token is drawn first and replaced by pad if it is no text. That leaves holes in"
            " the answer. Mask the logits first, then draw.",
        ),
        Mistake(
            "looks at every step",
            partial(answer, look_again=True),
            "The picture is used again after the first call: look is called at every step, or read"
            " gets the image again. The picture is in the model's memory by then: look once, and"
            " pass None as image from then on.",
        ),
        Mistake(
            "reads everything again",
            partial(answer, all_again=True),
            "Every step reads the prompt again. read remembers (its cache does): give it only the"
            " new tokens, tokens[:, None], one a row.",
        ),
    ),
    hints=(
        "First the prefill: read(prompt, look(pixels)). Its logits, masked, start your"
        " continue_tokens. Then write a small function step(tokens, running) inside.",
        "step reads tokens[:, None] with None as image, and masks what comes out. A helper for the"
        " mask: logits.masked_fill(torch.arange(v) >= usable, float('-inf')), with v ="
        " logits.shape[-1]. Cutting the columns off, logits[:, :usable], does it too.",
        "torch.stack(list(continue_tokens(logits, step, choose, eos, pad, max_new_tokens)), dim=1)"
        " puts the steps side by side.",
    ),
)

EXERCISES = (DISTRIBUTION, CONTINUE_TOKENS, ANSWER)
