"""Lesson 20. Language models alone: Llama and Gemma 1, 2 and 3 through the decoder of lesson 10.

`Gemma(text_config("llama"))` is a Llama, and so on. Its weights have transformers' names without
"model." in front, as they stand in a published folder. `load("smollm2")` reads a published one from
llama.cpp's kind of file.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minipali import published
from minipali.config import ConfigError, TextConfig, check_text, short, text_config
from minipali.gemma import Gemma
from minipali.generation import check_options, choose, continue_tokens, pieces_of_text
from minipali.gguf import GGUF, GGUFError
from minipali.gguf_tokenizers import Tokenizer, read_tokenizer
from minipali.kv_cache import KVCache
from minipali.paligemma import prefix_lm_mask, sliding_mask, token_positions

# --- a model's answer ----------------------------------------------------------------------------


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


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_prompt(turns: list[tuple[str, str]], system: str = SYSTEM) -> str:
    """[("user", text), ("assistant", text), ...] -> the text after which the assistant speaks.

    In the marks that SmolLM2 was trained with; `system` is the first turn that its authors write.
    """
    spoken = [("system", system), *turns]
    marked = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in spoken]
    return "".join(marked) + "<|im_start|>assistant\n"


def stream_text(model: Gemma, tokenizer: Tokenizer, prompt: str, **options) -> Iterator[str]:
    """What the model writes after the prompt, in pieces as they come.

    options: those of `continue_text`. If the model chats, `chat_prompt` makes the prompt.
    """
    steps = continue_text(model, tokenizer.encode(prompt), tokenizer.eos, **options)
    return pieces_of_text(steps, tokenizer.decode)


def answer(model: Gemma, tokenizer: Tokenizer, question: str, **options) -> str:
    """The model's answer to one question, or how it goes on with a text if it does not chat."""
    prompt = chat_prompt([("user", question)]) if tokenizer.chats else question
    return "".join(stream_text(model, tokenizer, prompt, **options))


# --- a published model ---------------------------------------------------------------------------

# What llama.cpp calls a family in the file, and we in KINDS.
FAMILIES = {"llama": "llama", "gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3_text"}
# Our sizes, and their names in the file's metadata behind the family's.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Ends of our names of weights, and the file's. Llama and Gemma 1 have one norm before the MLP.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def load(source: str | Path) -> tuple[Gemma, Tokenizer]:
    """A published language model in float32, in eval mode, and its tokenizer.

    source: "smollm2" or "gemma3", which `python course.py weights` has downloaded, or a GGUF file
    of a Llama or Gemma. Raises PublishedError if it is not there, GGUFError, which names the file,
    if it is damaged or of another kind.
    """
    path = published.find(source) if source in published.PUBLISHED else source
    if not str(path).endswith(".gguf"):
        known = ", ".join(published.PUBLISHED)
        raise GGUFError(
            f"a language model must be {known} or a GGUF file, found {short(str(path))}"
        )
    file = GGUF(path)
    try:
        config = config_of(file)
        tokenizer = read_tokenizer(file.metadata, config.vocab_size)
        with torch.device("meta"):
            model = Gemma(config)
        _check_places(file, model)
    # Metadata can be of any type and size. ConfigError is a ValueError.
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        missing = f"{error} must be in it, and is missing"
        what = missing if isinstance(error, KeyError) else error
        raise GGUFError(
            f"{path} must hold a Llama or a Gemma whole: {what}; get another file"
        ) from error
    weights = {name: read_weight(file, name, config) for name in model.state_dict()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval(), tokenizer


def config_of(file: GGUF) -> TextConfig:
    """The sizes of the model in a file. Raises ConfigError if it is another kind of model."""
    found = file.metadata
    family = found["general.architecture"]
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"the family must be one of {known}, found {short(family)}")
    kind = FAMILIES[family]
    for key in (f"{family}.rope.scaling.type", f"{family}.expert_count"):
        if found.get(key) not in (None, 0, "none"):
            raise ConfigError(f"{key} must be absent, found {short(found[key])}")
    sizes = {
        ours: found[f"{family}.{theirs}"]
        for ours, theirs in SIZES.items()
        if f"{family}.{theirs}" in found
    }
    heads = sizes["num_attention_heads"]
    sizes.setdefault("head_dim", sizes["hidden_size"] // heads)
    sizes.setdefault("num_key_value_heads", heads)
    if kind == "llama":
        sizes.setdefault("rope_theta", 1e4)
    if kind in ("gemma2", "gemma3_text"):
        # The file does not say it: the 27B models, known by their layers, divide otherwise.
        large = sizes["num_hidden_layers"] in (46, 62)
        sizes["query_pre_attn_scalar"] = (
            sizes["hidden_size"] // heads if large else sizes["head_dim"]
        )
    config = text_config(kind, **sizes, vocab_size=file.entries["token_embd.weight"].shape[0])
    check_text(config)
    return config


def their_name(name: str, config: TextConfig) -> str:
    """Our name of a weight -> the file's."""
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    layer, part = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name).groups()
    if part == "post_attention_layernorm" and not config.post_norms:
        part = "pre_feedforward_layernorm"  # what this name means in Llama and Gemma 1
    return f"blk.{layer}.{NAMES[part]}.weight"


def read_weight(file: GGUF, name: str, config: TextConfig) -> Tensor:
    """A weight of the model by our name, float32, as our modules want it.

    llama.cpp has turned two things round: it keeps what a norm multiplies by, 1 + w in Gemma, and
    the rows of Llama's queries and keys in pairs of neighbours.
    """
    weight = file[their_name(name, config)]
    if name.endswith("norm.weight"):
        return weight - config.norm_offset
    if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        return halves_from_pairs(weight, config.head_dim)
    return weight


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """(h * k, d) -> (h * k, d): in each head the rows 0, 2, 4, ... first, and then 1, 3, 5, ...

    RoPE turns pairs of rows. Where the pairs are neighbours, row 2i and row 2i + 1 belong together;
    ours are row i and row i + k / 2 (lesson 07). The angle of a pair stays the same.
    """
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))  # (h, k/2, 2, d)
    return pairs.transpose(1, 2).flatten(0, 2)


def _check_places(file: GGUF, model: Gemma) -> None:
    """Raise KeyError or ValueError unless the file has each weight in its shape, and no other."""
    places = {their_name(name, model.config): x for name, x in model.state_dict().items()}
    if missing := [name for name in places if name not in file.entries]:
        raise KeyError(missing[0])
    if extra := [name for name in file.names if name not in places]:
        raise ValueError(
            f"it must hold weights of the kind {model.config.model_type} alone, found"
            f" {short(extra[0])}, for which the model has no place"
        )
    for name, place in places.items():
        if (found := file.entries[name].shape) != tuple(place.shape):
            raise ValueError(f"{name!r} must have the shape {tuple(place.shape)}, found {found}")
