"""LoRA: a trained model learns something new in a few small matrices beside its own.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRA(nn.Module):
    """A frozen linear layer and a small change to it: W x + b + alpha / rank * B (A x).

    W: (n, d), A: (rank, d), B: (n, rank). B starts at zero, so that the layer starts as it was; A
    starts random, else neither of the two would ever get a gradient. Dividing by the rank keeps the
    size of the change about the same when another rank is tried.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank must be 1 or more, found {rank}")
        d, n = base.in_features, base.out_features
        self.base = base.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        # In float32 also beside narrower weights, in which small steps would be rounded away.
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, d, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(n, rank, dtype=torch.float32, device=device))
        nn.init.uniform_(self.lora_A, -(d**-0.5), d**-0.5)  # as a linear layer of torch, and PEFT

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., n)."""
        y = self.base(x)
        change = F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return y + (self.scale * change).to(y.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer with the change added to its weight: W + alpha / rank * B A."""
        changed = self.base.weight.float() + self.scale * self.lora_B @ self.lora_A
        # A new tensor: the old one may lie in the file that it was loaded from.
        self.base.weight = nn.Parameter(changed.to(self.base.weight.dtype), requires_grad=False)
        return self.base


def lora_layers(model: nn.Module) -> dict[str, LoRA]:
    """All LoRA layers of a model by their names."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRA)}


def find_targets(model: nn.Module, targets: list[str]) -> list[str]:
    """The names of all linear layers that are called, or end in, one of `targets`, as in PEFT.

    "q_proj" means every query projection, of the vision tower and of the decoder;
    "language_model.layers.0.self_attn.q_proj" one alone. Raises ValueError for a target that is in
    no name.
    """
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    chosen = set()
    for target in targets:
        found = [name for name in names if f".{name}".endswith(f".{target}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise ValueError(
                f"a target must end the name of a linear layer, such as {', '.join(known)}; found"
                f" {target!r}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def add_lora(model: nn.Module, targets: list[str], rank: int = 8, alpha: float = 16.0) -> None:
    """Freeze a model, and put LoRA on the layers that `targets` name; see `find_targets`.

    Raises ValueError if the model has LoRA layers already: merge or remove those first.
    """
    if lora_layers(model):
        raise ValueError("the model must have no LoRA layers yet: merge or remove them first")
    names = find_targets(model, targets)
    model.requires_grad_(False)
    for name in names:
        model.set_submodule(name, LoRA(model.get_submodule(name), rank, alpha))


def merge_lora(model: nn.Module) -> None:
    """Add each change to its layer's weight: the same answers, and a plain model again."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.merged())


def remove_lora(model: nn.Module) -> None:
    """Take the changes off again: the model as it was before, number by number."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)
