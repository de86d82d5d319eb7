"""Language models alone: the decoder of any kind that minipali.config knows, without pictures.

`Gemma(text_config("llama"))` is a Llama, and so on. Its weights have transformers' names without
"model." in front, as they stand in a published folder.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minipali.gemma import Gemma
from minipali.generation import check_options, choose, continue_tokens
from minipali.kv_cache import KVCache
from minipali.paligemma import prefix_lm_mask, sliding_mask, token_positions


def causal_states(
    model: Gemma,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    kv_cache: KVCache | None = None,
) -> Tensor:
    """What the head turns into logits: (b, t) -> (b, t, d). No token sees a later one.

    attention_mask: (b, t), 0 at padding (left or right); kv_cache: filled by earlier calls, with
    which every argument is about this call's tokens alone.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    is_real = attention_mask.bool()
    is_real_key = is_real if kv_cache is None else kv_cache.extend(is_real)  # (b, s)
    t = input_ids.shape[1]
    positions = token_positions(is_real, is_real_key[:, :-t].sum(dim=1, keepdim=True))
    everywhere = torch.ones_like(is_real_key)  # there is no prefix
    mask = prefix_lm_mask(is_real_key, everywhere, t)
    window = model.config.sliding_window
    near = window and sliding_mask(mask, is_real_key, everywhere, window)
    return model(model.embed(input_ids), positions, mask, kv_cache, near)


@torch.inference_mode()
def continue_text(
    model: Gemma,
    ids: list[int],
    eos: int,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that go on from `ids`, eos included; greedy unless temperature is above 0.

    Raises ValueError if there is nothing to go on from, both do not fit the model's positions, or
    an option is out of range.
    """
    check_options(max_new_tokens, temperature, top_k, top_p, seed)
    limit = model.config.max_position_embeddings
    if not ids or len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"text and continuation must have at least one and at most {limit} tokens together,"
            f" found {len(ids)} + {max_new_tokens}: shorten the text or lower max_new_tokens"
        )
    device = model.embed_tokens.weight.device
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    cache = KVCache(1, len(ids) + max_new_tokens)

    def logits_after(tokens: Tensor) -> Tensor:
        return model.logits(causal_states(model, tokens[None].to(device), kv_cache=cache)[:, -1])

    def pick(logits: Tensor) -> Tensor:
        return choose(logits.cpu(), temperature, top_k, top_p, generator)

    first = logits_after(torch.tensor(ids)).cpu()
    steps = continue_tokens(
        first, lambda tokens, running: logits_after(tokens).cpu(), pick, eos, 0, max_new_tokens
    )
    yield from (int(tokens[0]) for tokens in steps)
