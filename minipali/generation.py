"""Lesson 12. From logits to text: choose a token, append it, repeat until eos."""

import sys
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from minipali.paligemma import PaliGemma


def distribution(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The probabilities that the next token is drawn with: (b, v) -> (b, v), rows sum to 1.

    The logits are divided by the temperature (above 0). Of the tokens only the `top_k` most likely
    remain, and of those only the fewest whose probabilities reach `top_p` together (the token that
    crosses it included). Source for top_p: Holtzman et al. 2020, "Nucleus Sampling".
    """
    ordered, tokens = logits.float().sort(dim=-1, descending=True)
    # Less the largest, which changes nothing, so that a small temperature cannot overflow. In
    # float64: over the 257,216 tokens of the real model, a softmax in float32 sums to 1.00003.
    ordered = (ordered - ordered[:, :1]).double() / temperature
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    probabilities = ordered.softmax(dim=-1)
    if top_p is not None and top_p < 1:  # 1 keeps all, whatever is rounded
        before = probabilities.cumsum(dim=-1) - probabilities  # what the more likely ones reach
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    probabilities = (probabilities / probabilities.sum(dim=-1, keepdim=True)).float()
    return torch.zeros_like(probabilities).scatter(-1, tokens, probabilities)


def choose(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    distribution: Callable[..., Tensor] = distribution,
) -> Tensor:
    """One token a row: (b, v) -> (b,).

    Temperature 0 takes the most likely token (greedy); above 0 one is drawn from `distribution`.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = distribution(logits, temperature, top_k, top_p)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def check_options(max_new_tokens, temperature, top_k, top_p, seed) -> None:
    """Raise ValueError, naming the option, unless all are of the right kind and in range."""

    def found(value) -> str:
        text = repr(value)
        return f"found {text if len(text) <= 40 else type(value).__name__}"

    def is_whole(value) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool)

    def is_number(value) -> bool:
        return is_whole(value) or isinstance(value, (float, np.floating))

    if not (is_whole(max_new_tokens) and max_new_tokens >= 1):
        raise ValueError(
            f"max_new_tokens must be a whole number, at least 1, {found(max_new_tokens)}"
        )
    if not (is_number(temperature) and 0 <= temperature <= sys.float_info.max):
        raise ValueError(f"temperature must be a number, 0 (greedy) or above, {found(temperature)}")
    if top_k is not None and not (is_whole(top_k) and top_k >= 1):
        raise ValueError(f"top_k must be a whole number, at least 1, or None, {found(top_k)}")
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be a number above 0 and at most 1, or None, {found(top_p)}")
    if seed is not None and not (is_whole(seed) and -(2**63) <= seed < 2**64):
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1, {found(seed)}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("top_k and top_p choose what to draw from: set temperature above 0 too")


def continue_tokens(
    logits: Tensor,
    step: Callable[[Tensor, Tensor], Tensor],
    choose: Callable[[Tensor], Tensor],
    eos: int,
    pad: int,
    max_new_tokens: int,
) -> Iterator[Tensor]:
    """Yield one token a row and step, (b,), until every row has said eos.

    logits: (b, v), for the first token; step(tokens, running): the logits after these tokens, where
    running is bool (b,), False in rows that have said eos; choose(logits) -> tokens (b,). Rows that
    have said eos go on as padding.
    """
    running = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for number in range(max_new_tokens):
        tokens = torch.where(running, choose(logits), pad)
        yield tokens
        running = running & (tokens != eos)
        if number + 1 == max_new_tokens or not bool(running.any()):
            return
        logits = step(tokens, running)


@torch.inference_mode()
def token_steps(
    model: PaliGemma,
    batch: dict[str, Tensor],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[Tensor]:
    """Yield one token a row and step, (b,), until every row has said eos.

    batch: what the processor returns, padded on either side. The pictures pass the vision tower
    once, in the first step; of the prompt only the last place gets logits. Raises ValueError if
    prompt and answer do not fit the model's positions, and if a logit is NaN or infinite.
    """
    check_options(max_new_tokens, temperature, top_k, top_p, seed)
    config, device = model.config, next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    is_real = batch["attention_mask"].bool()
    rows, length = is_real.shape
    limit = config.text.max_position_embeddings
    if int(is_real.sum(dim=1).max()) + max_new_tokens > limit:
        raise ValueError(
            f"prompt and answer must have at most {limit} tokens together, found"
            f" {int(is_real.sum(dim=1).max())} + {max_new_tokens}: shorten the prompt or lower"
            " max_new_tokens"
        )
    draw_on = "cpu" if device.type == "mps" else device  # where float64 is known
    generator = None if seed is None else torch.Generator(draw_on).manual_seed(int(seed))
    cache = model.new_cache(rows, length + max_new_tokens)
    # A model may bring its own way of choosing.
    likely = getattr(model, "distribution", distribution)
    loop = getattr(model, "continue_tokens", continue_tokens)

    def next_logits(x: Tensor) -> Tensor:
        logits = model.language_model.logits(x)
        # The image token and the rows that fill up the table are no text.
        logits[:, config.image_token_id :] = float("-inf")
        if not logits.amax(dim=-1).isfinite().all():
            raise ValueError(
                "the model's logits must be numbers, found NaN or infinity: its weights are"
                " damaged, or its numbers are too large for their dtype"
            )
        return logits

    def step(tokens: Tensor, running: Tensor) -> Tensor:
        ids, mask = tokens[:, None], running[:, None]
        x = model.hidden_states(ids, attention_mask=mask, kv_cache=cache)
        return next_logits(x[:, -1])

    def pick(logits: Tensor) -> Tensor:
        drawn = choose(logits.to(draw_on), temperature, top_k, top_p, generator, likely)
        return drawn.to(device)

    place = torch.arange(length, device=device)
    last = torch.where(is_real, place, 0).amax(dim=1)  # the last real token, wherever padding is
    x = model.hidden_states(**batch, kv_cache=cache)
    logits = next_logits(x[torch.arange(rows, device=device), last])
    yield from loop(logits, step, pick, config.eos_token_id, config.pad_token_id, max_new_tokens)


def pieces_of_text(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Token ids, as they come, into pieces of text.

    A piece is held back while it ends in the middle of a character (bytes of one emoji, say).
    """
    ids, text, told = [], "", ""
    for token in tokens:
        ids.append(int(token))
        text = decode(ids)
        if text.startswith(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            if len(text) > len(told):
                yield text[len(told) :]
            told = text
    if len(text) > len(told):
        yield text[len(told) :]
