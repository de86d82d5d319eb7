"""Put a learner's own piece inside a trained model, with the model's trained weights."""

import copy
import itertools
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from minipali import scenes
from minipali.attention import MultiHeadAttention
from minipali.checks import show
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, WRONG, Outcome
from minipali.gemma import DecoderLayer, GeGLU, Gemma
from minipali.generation import token_steps
from minipali.gqa import GroupedQueryAttention
from minipali.kv_cache import KVCache
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma
from minipali.patches import PatchEmbedding
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
            return module.apply_rope(y, *angles)

        def remember(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return (key, value) if cache is None else cache.update(module.layer, key, value)

        maps = (module.q_proj, module.k_proj, module.v_proj, module.o_proj)
        weights = [one.weight for one in maps]
        return attempt(x, *weights, module.heads, module.kv_heads, rotate, remember, mask)

    return forward


def _cache_update(attempt: Callable) -> Callable:
    def new_cache(module: PaliGemma, batch: int, max_length: int) -> KVCache:
        cache = PaliGemma.new_cache(module, batch, max_length)
        cache.cache_update = attempt
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
    def forward(module: Gemma, x: Tensor, positions, mask, cache=None) -> Tensor:
        config = module.config
        angles = module.rope_angles(positions, config.head_dim, config.rope_theta)
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


# Name of the piece: whose method it becomes, which one, and how it gets the weights.
PIECES: dict[str, tuple[type[nn.Module], str, Callable[[Callable], Callable]]] = {
    "embed_patches": (PatchEmbedding, "forward", _embed_patches),
    "layer_norm": (nn.LayerNorm, "forward", _layer_norm),
    "rms_norm": (RMSNorm, "forward", _rms_norm),
    "multi_head_attention": (MultiHeadAttention, "forward", _multi_head_attention),
    "mlp": (MLP, "forward", _mlp),
    "encoder_layer": (EncoderLayer, "forward", _encoder_layer),
    "cache_update": (PaliGemma, "new_cache", _cache_update),
    "grouped_query_attention": (GroupedQueryAttention, "forward", _grouped_query_attention),
    "embed": (Gemma, "embed", _embed),
    "geglu": (GeGLU, "forward", _geglu),
    "decoder_layer": (DecoderLayer, "forward", _decoder_layer),
    "decoder": (Gemma, "forward", _decoder),
    "logits": (Gemma, "logits", _logits),
    "image_tokens": (PaliGemma, "image_features", _image_tokens),
}

# Pieces that are functions which these modules call by that name, as `self.attend(...)`.
HOOKS: dict[str, tuple[type[nn.Module], ...]] = {
    "attend": (MultiHeadAttention, GroupedQueryAttention),
    "rope_angles": (Gemma,),
    "apply_rope": (GroupedQueryAttention,),
    "token_positions": (PaliGemma,),
    "repeat_kv": (GroupedQueryAttention,),
    "merge": (PaliGemma,),
    "prefix_lm_mask": (PaliGemma,),
    "distribution": (PaliGemma,),
    "continue_tokens": (PaliGemma,),
}

# Pieces of the processor: the name that it calls them by.
OF_PROCESSOR = {"to_pixels": "to_pixels", "prompt_ids": "build_prompt", "pad_rows": "pad_rows"}


def swap(whole: PaliGemma | Processor, **pieces: Callable) -> PaliGemma | Processor:
    """A copy of the model in which your pieces do the work: swap(model, embed_patches=mine).

    The pieces of lesson 06 go into a processor instead: swap(processor, to_pixels=mine).
    It runs both on pictures and questions and displays whether they agree; if not, the first place
    where they differ. If a piece is not written yet or crashes, none of those given is in the copy.
    What you pass in stays as it is. Raises KeyError for a piece that does not exist.
    """
    known = OF_PROCESSOR if isinstance(whole, Processor) else {**PIECES, **HOOKS}
    for name in pieces:
        if name not in known:
            kind = "processor" if isinstance(whole, Processor) else "model"
            raise KeyError(f"the {kind} has no piece {name!r}; it has: {', '.join(known)}")
    put, compare, where = _put_into_model, compare_models, "model"
    if isinstance(whole, Processor):
        put, compare, where = _put_into_processor, compare_processors, "processor"
    swapped = put(whole, pieces)
    named = ", ".join(pieces) if len(pieces) <= 3 else f"{len(pieces)} pieces"
    outcome = _outcome(named, where, lambda: compare(whole, swapped))
    show(outcome)
    return put(whole, {}) if outcome.status in (NOT_ATTEMPTED, CRASHED) else swapped


def _put_into_model(model: PaliGemma, pieces: dict[str, Callable]) -> PaliGemma:
    swapped = copy.deepcopy(model)
    for name, attempt in pieces.items():
        kind, method, adapter = PIECES.get(name, ((), "", None))
        for module in swapped.modules():
            if isinstance(module, HOOKS.get(name, ())):
                setattr(module, name, attempt)
            elif isinstance(module, kind):
                # A bound method survives deepcopy, so that a swapped model can be swapped again.
                setattr(module, method, types.MethodType(adapter(attempt), module))
    return swapped


def _put_into_processor(processor: Processor, pieces: dict[str, Callable]) -> Processor:
    swapped = copy.copy(processor)
    for name, attempt in pieces.items():
        setattr(swapped, OF_PROCESSOR[name], attempt)
    return swapped


def _outcome(named: str, where: str, find_difference: Callable[[], str]) -> Outcome:
    """What comparing says; "" from find_difference means that everything agrees."""
    name, own = f"{named} in the {where}", f"The {where} goes on with its own."
    try:
        difference = find_difference()
    except NotImplementedError:
        return Outcome(name, NOT_ATTEMPTED, own)
    except Exception as error:
        return Outcome(name, CRASHED, f"{type(error).__name__}: {error} {own}")
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
    config = model.config
    rng = np.random.default_rng(0)
    made = [scenes.compose(rng, scenes.TRAINING_ARTISTS, 2) for _ in range(2)]
    side = config.vision.image_size
    pixels = nn.functional.interpolate(scenes.pixel_values(made), (side, side), mode="bilinear")

    ids = torch.tensor([_ids(config, CAPTION)])
    # The last two tokens are suffix: the others may not see them, so a piece that ignores the mask
    # is noticed.
    suffix = torch.zeros_like(ids)
    suffix[:, -2:] = 1
    batch = {"input_ids": ids, "pixel_values": pixels[:1], "token_type_ids": suffix}
    if found := first_difference(model, swapped, batch):
        return "first layer that differs is {}: {}".format(*found)

    long, short = _ids(config, LEFT), _ids(config, CAPTION)
    padding = [config.pad_token_id] * (len(long) - len(short))
    prefix = {
        "input_ids": torch.tensor([long, padding + short]),
        "attention_mask": torch.tensor([[1] * len(long), [0] * len(padding) + [1] * len(short)]),
        "pixel_values": pixels,
    }

    def with_cache(which: PaliGemma) -> None:
        cache = which.new_cache(2, len(long) + 3)
        which(**prefix, kv_cache=cache)
        for tokens in ([[10], [11]], [[12], [13]]):
            which(torch.tensor(tokens), kv_cache=cache)

    if found := _first_difference(model, swapped, with_cache):
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
    model: nn.Module, other: nn.Module, batch: dict[str, Tensor], tolerance: float = 1e-3
) -> tuple[str, str] | None:
    """Name and words on the first layer, in the order of computing, whose outputs differ."""
    return _first_difference(model, other, lambda which: which(**batch), tolerance)


@torch.inference_mode()
def _first_difference(
    model: nn.Module, other: nn.Module, run: Callable[[nn.Module], None], tolerance: float = 1e-3
) -> tuple[str, str] | None:
    def record(which: nn.Module) -> list[tuple[str, Tensor]]:
        """(name, output) of every layer, in the order of computing; the model itself is logits."""
        outputs: list[tuple[str, Tensor]] = []
        hooks = [
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: outputs.append((name, output))
            )
            for name, module in which.named_modules(prefix="")
        ]
        try:
            run(which)
        finally:
            for hook in hooks:
                hook.remove()
        return [(name or "logits", output) for name, output in outputs]

    def calls(outputs: list[tuple[str, Tensor]]) -> Iterator[tuple[str, int, Tensor]]:
        """Number the calls of each layer, so that those of both models can be paired."""
        times: dict[str, int] = {}
        for name, output in outputs:
            times[name] = times.get(name, 0) + 1
            yield name, times[name], output

    found = {(name, number): output for name, number, output in calls(record(other))}
    for name, number, want in calls(record(model)):
        # A layer inside a swapped piece may not run at all; what the piece returns is compared.
        if (name, number) not in found or not isinstance(want, Tensor):
            continue
        got = found[name, number]
        place = name if number == 1 else f"{name} (call {number})"
        if not isinstance(got, Tensor) or got.shape != want.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            return place, f"the output must have shape {tuple(want.shape)}, found {shape}"
        difference = (got - want).abs().max().item()
        if not difference <= tolerance * max(1.0, want.abs().max().item()):
            return place, f"the largest difference is {difference:.3g}"
    return None
