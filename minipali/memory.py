"""How much memory a fine-tuning takes on each device, counted from the config before it begins.

    python -m minipali.memory        the table of docs/finetuning.md

No weight is read and none is made: torch's fake tensors have a shape and a dtype, and no content.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from minipali.config import PaliGemmaConfig, preset
from minipali.finetuning import Settings
from minipali.lora import add_lora
from minipali.paligemma import PaliGemma
from minipali.rope import rope_angles

TEXT, ANSWER = 32, 8  # tokens of a row beside the picture's, and those of them with a loss


def memory(
    config: PaliGemmaConfig,
    settings: Settings,
    dtype: torch.dtype = torch.bfloat16,
    processes: int = 1,
    text: int = TEXT,
    answer: int = ANSWER,
    wide: bool = False,
) -> dict[str, int]:
    """Bytes on each device for weights, gradients, optimizer and activations of a training step.

    dtype: of the frozen weights; what learns is in float32. text: tokens of a row beside the
    picture's; answer: those of them with a loss; wide: on a processor that computes in float32 with
    bfloat16 weights (see `narrow`). Of all processes each has its share of the batch, and with
    `settings.shard` its share of the weights. What torch itself takes is not in it.
    """
    share = processes if settings.shard else 1
    b = min(settings.at_once, -(-settings.batch_size // processes))
    with FakeTensorMode():
        model = PaliGemma(config)
        if not settings.full:
            add_lora(model, list(settings.targets), settings.rank, settings.alpha)
            if wide:
                activations = _activations(model, settings.less_memory, b, text, answer)
            for p in model.parameters():
                p.data = p.data if p.requires_grad else p.data.to(dtype)
        if not wide:
            activations = _activations(model, settings.less_memory, b, text, answer)
        learned = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        layers = [_bytes(one) for one in (model.vision_tower.layers, model.language_model.layers)]
        total = _bytes(model)
        numbers = (config.vision.num_hidden_layers, config.text.num_hidden_layers)
        largest = max(size // number for size, number in zip(layers, numbers, strict=True))
    weights = total // share + learned  # and the best so far, whole
    gradients = learned // share
    if settings.shard:
        # What is in no layer stays whole, and of the layers this one and the next are.
        weights += total - sum(layers) + 2 * largest
        activations = max(activations, 3 * learned)  # a checkpoint is put together in each process
    elif processes > 1:
        gradients *= 2  # DistributedDataParallel sends them from buffers of its own
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": 2 * learned // share,  # AdamW's two averages
        "activations": activations,
    }


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _activations(model: PaliGemma, less_memory: bool, b: int, text: int, answer: int) -> int:
    """What autograd keeps of a forward pass, in bytes, counted for one layer of each kind."""
    config = model.config
    n = config.vision.num_patches
    t = n + text
    dtype = model.language_model.norm.weight.dtype
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def vectors(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    angles = rope_angles(torch.zeros(b, t, dtype=torch.long), config.text.head_dim, 1e4)
    mask = torch.ones(b, 1, t, t, dtype=torch.bool)
    patches = vectors(b, n, config.vision.hidden_size)
    tokens = vectors(b, t, config.text.hidden_size)
    answers = vectors(b * answer, config.text.hidden_size)
    labels = torch.zeros(b * answer, dtype=torch.long)

    def loss() -> Tensor:
        logits = model.language_model.logits(answers).float()
        # Their gradients are as large again.
        return F.cross_entropy(logits, labels) + 0 * logits.exp().sum()

    tower = _kept(lambda: model.vision_tower.layers[-1](patches), own)
    decoder = _kept(lambda: model.language_model.layers[-1](tokens, angles, mask), own)
    head = _kept(loss, own)
    towers, decoders = config.vision.num_hidden_layers, config.text.num_hidden_layers
    if less_memory:  # of each layer its input, and one layer whole while it is computed again
        inputs = towers * patches.nbytes + decoders * tokens.nbytes
        return inputs + max(tower, decoder, head)
    return towers * tower + decoders * decoder + head


def _kept(forward: Callable[[], Tensor], own: set[int]) -> int:
    """Bytes that autograd keeps of what `forward` computes, beside the storages of `own`."""
    storages = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        forward()
    return sum(one.nbytes() for place, one in storages.items() if place not in own)


# --- the table -----------------------------------------------------------------------------------


def rows() -> Iterator[tuple[str, dict[str, int]]]:
    """What stands in the table, line by line."""
    three, ten = preset("paligemma-3b-224"), preset("paligemma2-10b-224")
    for name, config, processes, how in (
        ("3B, LoRA, one device", three, 1, {}),
        ("3B, LoRA, one, --less-memory", three, 1, {"less_memory": True}),
        ("3B, LoRA, two, --shard", three, 2, {"shard": True}),
        ("3B, --full, one, --less-memory", three, 1, {"full": True, "less_memory": True}),
        ("10B, LoRA, one device", ten, 1, {}),
        ("10B, LoRA, eight, --shard", ten, 8, {"shard": True}),
    ):
        yield name, memory(config, Settings(**how), processes=processes)


def gigabytes(number: int) -> str:
    return f"{math.ceil(number / 1e8) / 10:.1f}"


def main() -> None:
    print(f"{'GB on each device':32} weights  gradients  optimizer  activations    all")
    for name, found in rows():
        cells = [gigabytes(one) for one in (*found.values(), sum(found.values()))]
        print(f"{name:32} {cells[0]:>7} {cells[1]:>10} {cells[2]:>10} {cells[3]:>12} {cells[4]:>6}")


if __name__ == "__main__":
    main()
