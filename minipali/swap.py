"""Put a learner's own piece inside a trained model, with the model's trained weights."""

import copy
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minipali import hooks, scenes
from minipali.attention import MultiHeadAttention, attend
from minipali.checks import show
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, WRONG, Outcome, failed
from minipali.gemma import DecoderLayer, GeGLU, Gemma
from minipali.generation import token_steps
from minipali.gqa import GroupedQueryAttention
from minipali.kv_cache import KVCache
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma
from minipali.patches import PatchEmbedding
from minipali.rope import apply_rope, rope_angles
from minipali.tokens import Processor
from minipali.vision import MLP, EncoderLayer


def _shaped(name: str, result, shape: tuple[int, ...]) -> Tensor:
    """The result of a piece, if the next layer can use it; else ValueError that names the piece."""
    if not isinstance(result, Tensor) or result.shape != shape:
        found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"{name} must return a Tensor of shape {tuple(shape)}, found {found}.")
    return result


def _embed_patches(attempt: Callable) -> Callable:
    def forward(module: PatchEmbedding, pixels: Tensor) -> Tensor:
        convolution = module.patch_embedding
        positions = module.position_embedding.weight
        result = attempt(pixels, convolution.weight, convolution.bias, positions)
        return _shaped("embed_patches", result, (len(pixels), *positions.shape))

    return forward


def _mlp(attempt: Callable) -> Callable:
    def forward(module: MLP, x: Tensor) -> Tensor:
        fc1, fc2 = module.fc1, module.fc2
        return attempt(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)

    return forward


def _encoder_layer(attempt: Callable) -> Callable:
    def forward(module: EncoderLayer, x: Tensor) -> Tensor:
        norm1, norm2 = module.layer_norm1, module.layer_norm2
        return attempt(x, norm1, module.self_attn, norm2, module.mlp)

    return forward


def _multi_head_attention(attempt: Callable) -> Callable:
    def forward(module: MultiHeadAttention, x: Tensor) -> Tensor:
        maps = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
        given = [tensor for one in maps for tensor in (one.weight, one.bias)]
        return attempt(x, *given, module.heads)

    return forward


def _layer_norm(attempt: Callable) -> Callable:
    def forward(module: nn.LayerNorm, x: Tensor) -> Tensor:
        return attempt(x, module.weight, module.bias, module.eps)

    return forward


def _rms_norm(attempt: Callable) -> Callable:
    def forward(module: RMSNorm, x: Tensor) -> Tensor:
        return attempt(x, module.weight, module.eps)

    return forward


def _grouped_query_attention(attempt: Callable) -> Callable:
    def forward(module: GroupedQueryAttention, x: Tensor, angles, mask, cache=None) -> Tensor:
        def rotate(y: Tensor) -> Tensor:
            return apply_rope(y, *angles)

        def remember(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return (key, value) if cache is None else cache.update(module.layer, key, value)

        maps = (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
        weights = [one.weight for one in maps]
        return attempt(x, *weights, module.heads, module.kv_heads, rotate, remember, mask)

    return forward


def _repeat_kv(attempt: Callable) -> Callable:
    """The model repeats nothing; with a learner's function it does, as the lesson does."""

    def mix(module: GroupedQueryAttention, query: Tensor, key: Tensor, value: Tensor, mask):
        times = module.heads // module.kv_heads
        return attend(query, attempt(key, times), attempt(value, times), mask)

    return mix


def _cache_update(attempt: Callable) -> Callable:
    def new_cache(module: PaliGemma, batch: int, max_length: int) -> KVCache:
        cache = KVCache(batch, max_length)
        update = calling(KVCache.update, "cache_update", attempt)
        cache.update = types.MethodType(update, cache)
        return cache

    return new_cache


def _embed(attempt: Callable) -> Callable:
    def embed(module: Gemma, input_ids: Tensor) -> Tensor:
        table = module.embed_tokens.weight
        return _shaped("embed", attempt(input_ids, table), (*input_ids.shape, table.shape[1]))

    return embed


def _geglu(attempt: Callable) -> Callable:
    def forward(module: GeGLU, x: Tensor) -> Tensor:
        maps = (module.gate_proj, module.up_proj, module.down_proj)
        return attempt(x, *(one.weight for one in maps))

    return forward


def _decoder_layer(attempt: Callable) -> Callable:
    def forward(module: DecoderLayer, x: Tensor, angles, mask, cache=None) -> Tensor:
        def attention(y: Tensor) -> Tensor:
            return module.self_attn(y, angles, mask, cache)

        norm1, norm2 = module.input_layernorm, module.post_attention_layernorm
        return attempt(x, norm1, attention, norm2, module.mlp)

    return forward


def _decoder(attempt: Callable) -> Callable:
    def forward(module: Gemma, x: Tensor, positions, mask, cache=None, near=None) -> Tensor:
        config = module.config
        angles = rope_angles(positions, config.head_dim, config.rope_theta)
        layers = [lambda y, layer=layer: layer(y, angles, mask, cache) for layer in module.layers]
        return attempt(x, layers, module.norm)

    return forward


def _logits(attempt: Callable) -> Callable:
    def logits(module: Gemma, x: Tensor) -> Tensor:
        table = module.embed_tokens.weight
        return _shaped("logits", attempt(x, table), (*x.shape[:-1], len(table)))

    return logits


def _image_tokens(attempt: Callable) -> Callable:
    def image_features(module: PaliGemma, pixels: Tensor) -> Tensor:
        projector = module.multi_modal_projector
        result = attempt(pixels, module.vision_tower, projector.weight, projector.bias)
        shape = (len(pixels), module.config.vision.num_patches, len(projector.weight))
        return _shaped("image_tokens", result, shape)

    return image_features


def _as_it_is(attempt: Callable) -> Callable:
    return lambda module, *given: attempt(*given)


# Name of the piece, the class and the method in which it works, and what that method becomes. Where
# nothing is said there, it stays as it is, but what it calls by the piece's name is the learner's
# function. What replaces a method comes first, so that it too calls what the learner has written.
PIECES: tuple[tuple[str, type, str, Callable[[Callable], Callable] | None], ...] = (
    ("embed_patches", PatchEmbedding, "forward", _embed_patches),
    ("layer_norm", nn.LayerNorm, "forward", _layer_norm),
    ("rms_norm", RMSNorm, "forward", _rms_norm),
    ("multi_head_attention", MultiHeadAttention, "forward", _multi_head_attention),
    ("mlp", MLP, "forward", _mlp),
    ("encoder_layer", EncoderLayer, "forward", _encoder_layer),
    ("cache_update", PaliGemma, "new_cache", _cache_update),
    ("repeat_kv", GroupedQueryAttention, "mix", _repeat_kv),
    ("grouped_query_attention", GroupedQueryAttention, "forward", _grouped_query_attention),
    ("embed", Gemma, "embed", _embed),
    ("geglu", GeGLU, "forward", _geglu),
    ("decoder_layer", DecoderLayer, "forward", _decoder_layer),
    ("decoder", Gemma, "forward", _decoder),
    ("logits", Gemma, "logits", _logits),
    ("image_tokens", PaliGemma, "image_features", _image_tokens),
    ("distribution", PaliGemma, "distribution", _as_it_is),
    ("continue_tokens", PaliGemma, "continue_tokens", _as_it_is),
    ("attend", MultiHeadAttention, "forward", None),
    ("attend", GroupedQueryAttention, "mix", None),
    ("rope_angles", Gemma, "forward", None),
    ("apply_rope", GroupedQueryAttention, "forward", None),
    ("token_positions", PaliGemma, "hidden_states", None),
    ("merge", PaliGemma, "hidden_states", None),
    ("prefix_lm_mask", PaliGemma, "hidden_states", None),
    ("to_pixels", Processor, "pixel_values", None),
    ("prompt_ids", Processor, "prompt_ids", None),
    ("pad_rows", Processor, "pad", None),
)


def calling(function: Callable, name: str, attempt: Callable) -> Callable:
    """The same function, except that in it the global `name` means `attempt`."""
    scope = {**function.__globals__, name: attempt}
    return types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )


def parts(whole: PaliGemma | Processor) -> list:
    """Everything in which a piece may work."""
    return list(whole.modules()) if isinstance(whole, nn.Module) else [whole]


def pieces_of(whole: PaliGemma | Processor) -> list[str]:
    """The names of the pieces that a model, or a processor, consists of."""
    inside = parts(whole)
    names = [name for name, owner, *_ in PIECES if any(isinstance(part, owner) for part in inside)]
    return list(dict.fromkeys(names))


def put(whole: PaliGemma | Processor, **pieces: Callable) -> PaliGemma | Processor:
    """A copy in which your pieces do the work, and those put there before; nothing is compared.

    Raises KeyError for a piece that does not exist, ValueError for PaliGemma 2.
    """
    known = pieces_of(whole)
    if isinstance(whole, PaliGemma) and whole.config.text.model_type != "gemma":
        raise ValueError(
            "the model must be a PaliGemma 1, whose layers the lessons build, found a decoder of"
            f" kind {whole.config.text.model_type}: take the small model"
        )
    for name in pieces:
        if name not in known:
            kind = "processor" if isinstance(whole, Processor) else "model"
            raise KeyError(f"the {kind} has no piece {name!r}; it has: {', '.join(known)}")
    changed = copy.deepcopy(whole)
    changed.pieces = {**getattr(whole, "pieces", {}), **pieces}
    changed.left_out = ()
    for name, owner, method, adapter in PIECES:
        for part in parts(changed):
            if name in changed.pieces and isinstance(part, owner):
                attempt = changed.pieces[name]
                if adapter is None:
                    now = getattr(part, method)
                    function = calling(now.__func__, name, attempt)
                else:
                    function = adapter(attempt)
                # A bound method, because deepcopy binds it to the copy.
                setattr(part, method, types.MethodType(function, part))
    return changed


def swap(whole: PaliGemma | Processor, **pieces: Callable) -> PaliGemma | Processor:
    """A copy of the model in which your pieces do the work: swap(model, embed_patches=mine).

    The pieces of lesson 06 go into a processor instead: swap(processor, to_pixels=mine).
    It runs both on pictures and questions and displays whether they agree; if not, the first place
    where they differ. If a piece is not written yet or crashes, none of those given is in the copy.
    What you pass in stays as it is. Raises KeyError for a piece that does not exist.
    """
    compare, where = compare_models, "model"
    if isinstance(whole, Processor):
        compare, where = compare_processors, "processor"
    swapped = put(whole, **pieces)
    named = ", ".join(pieces) if len(pieces) <= 3 else f"{len(pieces)} pieces"
    outcome = _outcome(named, where, lambda: compare(whole, swapped))
    show(outcome)
    if outcome.status in (NOT_ATTEMPTED, CRASHED):
        swapped = put(whole)
        swapped.left_out = tuple(pieces)
    return swapped


def whose(whole: PaliGemma | Processor) -> str:
    """Whose work an answer is: "mine" if all pieces that were to go in are inside, else why not."""
    if left_out := getattr(whole, "left_out", ()):
        return f"package (without your {', '.join(left_out)})"
    return "mine" if getattr(whole, "pieces", {}) else "package"


def _outcome(named: str, where: str, find_difference: Callable[[], str]) -> Outcome:
    """What comparing says; "" from find_difference means that everything agrees."""
    name, own = f"{named} in the {where}", f"The {where} goes on with its own."
    try:
        difference = find_difference()
    except BaseException as error:
        return failed(name, error, own)
    if difference:
        return Outcome(
            name, WRONG, f"Your code runs, but the {where} is no longer the same. The {difference}."
        )
    agrees = "layer" if where == "model" else "tensor"
    return Outcome(name, CORRECT, f"Your code is inside the {where}; every {agrees} agrees.")


# In the small model's vocabulary; for another model any words do.
LEFT = [273, 270, 392, 297, 280, 274, 485, 564, 5]  # "answer en what is on the left?\n"
CAPTION = [492, 270, 5]  # "caption en\n": a longer answer, so that rows end at different times


def _ids(config, words: list[int]) -> list[int]:
    image = [config.image_token_id] * config.vision.num_patches
    return image + [config.bos_token_id] + words


def compare_models(model: PaliGemma, swapped: PaliGemma) -> str:
    """Run both in three ways; "" if they agree, else what differs first, in words.

    All at once, with a suffix; then as it is used, a padded prefix and single tokens with a cache;
    then whole answers, greedy and drawn.
    """
    config, device = model.config, model.language_model.embed_tokens.weight.device
    rng = np.random.default_rng(0)
    made = [scenes.compose(rng, scenes.TRAINING_ARTISTS, 2) for _ in range(2)]
    side = config.vision.image_size
    pixels = nn.functional.interpolate(scenes.pixel_values(made), (side, side), mode="bilinear")
    pixels = pixels.to(device)

    ids = torch.tensor([_ids(config, CAPTION)], device=device)
    # The last two tokens are suffix: the others may not see them, so a piece that ignores the mask
    # is noticed.
    suffix = torch.zeros_like(ids)
    suffix[:, -2:] = 1
    batch = {"input_ids": ids, "pixel_values": pixels[:1], "token_type_ids": suffix}
    if found := first_difference(model, swapped, lambda which: which(**batch)):
        return "first layer that differs is {}: {}".format(*found)

    long, short = _ids(config, LEFT), _ids(config, CAPTION)
    padding = [config.pad_token_id] * (len(long) - len(short))
    prefix = {
        "input_ids": torch.tensor([long, padding + short], device=device),
        "attention_mask": torch.tensor(
            [[1] * len(long), [0] * len(padding) + [1] * len(short)], device=device
        ),
        "pixel_values": pixels,
    }

    def with_cache(which: PaliGemma) -> None:
        cache = which.new_cache(2, len(long) + 3)
        which(**prefix, kv_cache=cache)
        for tokens in ([[10], [11]], [[12], [13]]):
            which(torch.tensor(tokens, device=device), kv_cache=cache)

    if found := first_difference(model, swapped, with_cache):
        return "first layer that differs, with a cache, is {}: {}".format(*found)

    # The model is sure of its answers: a high temperature makes what is drawn depend on the rest.
    for drawn in (
        {},
        {"temperature": 3.0, "top_k": 40, "top_p": 0.9, "seed": 0},
        *({"temperature": 5.0, "top_k": 3, "top_p": 0.7, "seed": seed} for seed in (1, 2, 3)),
    ):
        # A loop that does not stop is cut off.
        expected, told = (
            list(itertools.islice(token_steps(m, prefix, 8, **drawn), 12)) for m in (model, swapped)
        )
        for number, (want, got) in enumerate(zip(expected, told, strict=False), start=1):
            if not torch.equal(want, got):
                how = f"drawn with {drawn}" if drawn else "greedy"
                return (
                    f"first tokens that differ, {how}, are number {number} of two answers: expected"
                    f" {want.tolist()}, found {got.tolist()}"
                )
        if len(told) != len(expected):
            return f"number of tokens differs: expected {len(expected)}, found {len(told)}"
    return ""


def compare_processors(processor: Processor, swapped: Processor) -> str:
    """Prepare the same pictures and questions with both; "" if all tensors agree, else words."""
    images = list(scenes.examples().values())[:2]
    prompts, suffixes = ["caption en", "answer en what is on the left?"], ["a cat", "cat"]
    for side in ("left", "right"):
        expected = processor(images, prompts, suffixes, side)
        found = swapped(images, prompts, suffixes, side)
        for name, want in expected.items():
            got = found[name]
            if name == "pixel_values":  # of another size the model could not take them at all
                got = _shaped(name, got, want.shape)
            elif got.shape != want.shape:
                return (
                    f"shape of {name}, padded on the {side}, must be {tuple(want.shape)}, found"
                    f" {tuple(got.shape)}"
                )
            if got.dtype != want.dtype:
                return (
                    f"first tensor that differs is {name}: expected {want.dtype}, found {got.dtype}"
                )
            difference = (got.double() - want.double()).abs()
            if not difference.max() <= 1e-5:
                where = torch.unravel_index(difference.argmax(), want.shape)
                place = ", ".join(str(int(i)) for i in where)
                return (
                    f"first tensor that differs is {name}, padded on the {side}: at [{place}]"
                    f" expected {want[where].item():.4g}, found {got[where].item():.4g}"
                )
    return ""


def first_difference(
    model: nn.Module, other: nn.Module, run: Callable[[nn.Module], Any], tolerance: float = 1e-3
) -> tuple[str, str] | None:
    """Name and words on the first layer, in the order of computing, whose outputs differ.

    A layer inside a swapped piece may not run at all; what the piece returns is compared.
    """

    def words(want: Tensor, got: Any) -> str:
        if not isinstance(got, Tensor) or got.shape != want.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            return f"the output must have shape {tuple(want.shape)}, found {shape}"
        difference = (got - want).abs().max().item()
        if not difference <= tolerance * max(1.0, want.abs().max().item()):
            return f"the largest difference is {difference:.3g}"
        return ""

    found = hooks.compare(model, other, run, words)
    return next(((place, said) for place, said in found.items() if said), None)
