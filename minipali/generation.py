"""Lesson 12. From logits to text: choose a token, append it, repeat until eos."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from minipali.paligemma import PaliGemma
from minipali.tokens import Processor


def distribution(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The probabilities that the next token is drawn with: (b, v) -> (b, v), rows sum to 1.

    The logits are divided by the temperature (above 0). Of the tokens only the `top_k` most likely
    remain, and of those only the fewest whose probabilities reach `top_p` together (the token that
    crosses it included). Source for top_p: Holtzman et al. 2020, section 3.1.
    """
    # Less the largest, which changes nothing, so that a small temperature cannot overflow.
    logits = logits.float() - logits.amax(dim=-1, keepdim=True).float()
    ordered, tokens = (logits / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    probabilities = ordered.softmax(dim=-1)
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # what the more likely ones reach
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
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


def check_options(max_new_tokens, temperature, top_k, top_p) -> None:
    """Raise ValueError, naming the option, unless all are in range."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or above, found {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, found {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, found {top_p}")
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
    prompt and answer do not fit the model's positions.
    """
    check_options(max_new_tokens, temperature, top_k, top_p)
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
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    cache = model.new_cache(rows, length + max_new_tokens)
    # `minipali.swap` puts a learner's own functions on the model.
    likely = getattr(model, "distribution", distribution)
    loop = getattr(model, "continue_tokens", continue_tokens)

    def next_logits(x: Tensor) -> Tensor:
        logits = model.language_model.logits(x)
        # The image token and the rows that fill up the table are no text.
        logits[:, config.image_token_id :] = float("-inf")
        return logits

    def step(tokens: Tensor, running: Tensor) -> Tensor:
        ids, mask = tokens[:, None], running[:, None]
        x = model.hidden_states(ids, attention_mask=mask, kv_cache=cache)
        return next_logits(x[:, -1])

    def pick(logits: Tensor) -> Tensor:
        return choose(logits, temperature, top_k, top_p, generator, likely)

    place = torch.arange(length, device=device)
    last = torch.where(is_real, place, 0).amax(dim=1)  # the last real token, wherever padding is
    x = model.hidden_states(**batch, kv_cache=cache)
    logits = next_logits(x[torch.arange(rows, device=device), last])
    yield from loop(logits, step, pick, config.eos_token_id, config.pad_token_id, max_new_tokens)


def generate(
    model: PaliGemma,
    processor: Processor,
    images,
    prompts,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> str | list[str]:
    """The model's answer to one prompt about one picture, or a list of answers to lists.

    Greedy unless temperature is above 0 (see `choose`); seed: repeats a drawn answer.
    """
    one = isinstance(prompts, str)
    batch = processor(images, prompts)
    steps = token_steps(model, batch, max_new_tokens, temperature, top_k, top_p, seed)
    rows = torch.stack(list(steps), dim=1).tolist()
    texts = [processor.decode(row) for row in rows]
    return texts[0] if one else texts


def stream(
    model: PaliGemma,
    processor: Processor,
    image,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """The same answer as `generate`, in pieces as they come.

    A piece is held back while it ends in the middle of a character (bytes of one emoji, say).
    """
    if not isinstance(prompt, str):
        raise ValueError("stream answers one prompt; for several use generate")
    ids, told = [], ""
    batch = processor(image, prompt)
    for tokens in token_steps(model, batch, max_new_tokens, temperature, top_k, top_p, seed):
        ids.append(int(tokens[0]))
        text = processor.decode(ids)
        if text.startswith(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            if len(text) > len(told):
                yield text[len(told) :]
            told = text
    text = processor.decode(ids)
    if len(text) > len(told):
        yield text[len(told) :]
