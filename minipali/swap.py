"""Put a learner's own piece inside a trained model, with the model's trained weights."""

import copy
import types
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from minipali import scenes
from minipali.attention import MultiHeadAttention
from minipali.checks import show
from minipali.checks.engine import CORRECT, CRASHED, NOT_ATTEMPTED, WRONG, Outcome
from minipali.gqa import GroupedQueryAttention
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma
from minipali.patches import PatchEmbedding
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


# Name of the piece: the modules whose forward it becomes, and how it gets their weights.
PIECES: dict[str, tuple[type[nn.Module], Callable[[Callable], Callable]]] = {
    "embed_patches": (PatchEmbedding, _embed_patches),
    "layer_norm": (nn.LayerNorm, _layer_norm),
    "rms_norm": (RMSNorm, _rms_norm),
    "multi_head_attention": (MultiHeadAttention, _multi_head_attention),
    "mlp": (MLP, _mlp),
    "encoder_layer": (EncoderLayer, _encoder_layer),
}

# Pieces that are functions which these modules call by that name, as `self.attend(...)`.
HOOKS: dict[str, tuple[type[nn.Module], ...]] = {
    "attend": (MultiHeadAttention, GroupedQueryAttention),
}


def swap(model: PaliGemma, **pieces: Callable) -> PaliGemma:
    """A copy of the model in which your pieces do the work: swap(model, embed_patches=mine).

    It runs both models on a picture and displays whether they agree; if not, the first layer whose
    output differs. A piece that is not written yet, or that crashes, is left out of the copy. The
    model that you pass in stays as it is. Raises KeyError for a piece that does not exist.
    """
    for name in pieces:
        if name not in PIECES and name not in HOOKS:
            raise KeyError(f"no piece {name!r}; there are: {', '.join([*PIECES, *HOOKS])}")
    swapped = copy.deepcopy(model)
    for name, attempt in pieces.items():
        kind, adapter = PIECES.get(name, ((), None))
        for module in swapped.modules():
            if isinstance(module, HOOKS.get(name, ())):
                setattr(module, name, attempt)
            elif isinstance(module, kind):
                # A bound method survives deepcopy, so that a swapped model can be swapped again.
                module.forward = types.MethodType(adapter(attempt), module)
    outcome = compare(model, swapped, ", ".join(pieces))
    show(outcome)
    return copy.deepcopy(model) if outcome.status in (NOT_ATTEMPTED, CRASHED) else swapped


def compare(model: PaliGemma, swapped: PaliGemma, name: str) -> Outcome:
    """Run both on the same picture and question; *correct* if every layer agrees."""
    side, patches = model.config.vision.image_size, model.config.vision.num_patches
    rng = np.random.default_rng(0)
    scene = scenes.compose(rng, scenes.TRAINING_ARTISTS, 2)
    pixels = scenes.pixel_values([scene])
    pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear")
    ids = [model.config.image_token_id] * patches + [model.config.bos_token_id, 5, 6, 7]
    batch = {"input_ids": torch.tensor([ids]), "pixel_values": pixels}
    # The last two tokens are suffix: the others may not see them, so a piece that ignores the mask
    # is noticed.
    batch["token_type_ids"] = torch.tensor([[0] * (len(ids) - 2) + [1, 1]])
    try:
        found = first_difference(model, swapped, batch)
    except NotImplementedError:
        return Outcome(name, NOT_ATTEMPTED, "The model goes on with its own piece for now.")
    except Exception as error:
        told = f"Inside the model: {type(error).__name__}: {error}"
        return Outcome(name, CRASHED, f"{told} The model goes on with its own piece.")
    if found is None:
        return Outcome(name, CORRECT, "Your code is inside the trained model; every layer agrees.")
    layer, difference = found
    return Outcome(
        name,
        WRONG,
        "Your code is inside the trained model, but the model is no longer the same."
        f" The first layer that differs is {layer}: {difference}.",
    )


@torch.inference_mode()
def first_difference(
    model: nn.Module, other: nn.Module, batch: dict[str, Tensor], tolerance: float = 1e-3
) -> tuple[str, str] | None:
    """Name and words on the first layer, in the order of computing, whose outputs differ."""

    def record(which: nn.Module) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: outputs.setdefault(name, output)
            )
            for name, module in which.named_modules()
            if name
        ]
        try:
            outputs["logits"] = which(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs

    expected, found = record(model), record(other)
    for name, want in expected.items():
        # A layer inside a swapped piece may not run at all; what the piece returns is compared.
        if name not in found or not isinstance(want, Tensor):
            continue
        got = found[name]
        if not isinstance(got, Tensor) or got.shape != want.shape:
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            return name, f"the output must have shape {tuple(want.shape)}, found {shape}"
        difference = (got - want).abs().max().item()
        if not difference <= tolerance * max(1.0, want.abs().max().item()):
            return name, f"the largest difference is {difference:.3g}"
    return None
