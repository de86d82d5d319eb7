"""Lesson 13. Training: the loss on the suffix, the optimizer, and the loop.

What is trained stands elsewhere: the shipped model in `recipe`, what lessons train in seconds in
`small_tasks`.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.tokens import IGNORE


def row_labels(
    prefix: list[int], suffix: list[int], eos: int, ignore: int = IGNORE
) -> tuple[list[int], list[int]]:
    """One training row: its ids, and its labels, which are `ignore` on the prefix."""
    answer = suffix + [eos]
    return prefix + answer, [ignore] * len(prefix) + answer


def suffix_loss(logits: Tensor, labels: Tensor, ignore: int = IGNORE) -> Tensor:
    """Mean cross entropy of the next token, at the places whose label is not `ignore`.

    logits: (b, t, v); labels: (b, t), a copy of input_ids with `ignore` outside the suffix. The
    logits at one place predict the token at the next, so the two are shifted against each other.
    Every token counts the same, as in transformers; big_vision averages within each row first, so
    that every row does. Source: PaliGemma (Beyer et al. 2024), on its training.
    """
    predicted, wanted = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return F.cross_entropy(predicted, wanted, ignore_index=ignore)


def initialise(model: nn.Module) -> None:
    """Start values: weights of standard deviation 1/sqrt(inputs), table rows of length about 1.

    Residual branches end in small weights, so that every block starts near the identity.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            inputs = module.weight[0].numel()
            small = 0.3 if name.endswith(("out_proj", "o_proj", "fc2", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=small * inputs**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix.

    For the square-ish matrices inside blocks. Matrices of one shape are stacked and treated
    together, in float32 (torch's own version works in bfloat16, one by one, which is slow for so
    small matrices on a CPU).
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers".
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, parameters in by_shape.items():
                gradient = torch.stack([p.grad for p in parameters])
                state = self.state[parameters[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(state["momentum"], group["momentum"])
                update = orthogonalise(update) * max(1, shape[0] / shape[1]) ** 0.5
                for p, u in zip(parameters, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=group["lr"])


def orthogonalise(matrices: Tensor, steps: int = 3) -> Tensor:
    """Drive all singular values of (m, rows, columns) towards 1 by a Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steep at 0; ends between about 0.7 and 1.2
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(
    model: nn.Module,
    matrix_lr: float,
    other_lr: float,
    gentle: float = 1.0,
    fused: bool | None = None,
):
    """Muon for the matrices inside blocks, AdamW for tables, norms, biases and the outer maps.

    gentle: factor on the rates of the vision tower, for a tower that has learned already; fused:
    one call for all of AdamW's tensors, which saves time where they are small.
    """
    groups = {(kind, slow): [] for kind in ("matrix", "table", "other") for slow in (False, True)}
    for name, p in model.named_parameters():
        kind = "other"
        if p.ndim == 2:
            kind = "matrix" if ".layers." in name else "table" if "embed" in name else "other"
        groups[kind, "vision_tower" in name].append(p)
    # The tied table is also the head; at the full rate its many unused rows drown the rest.
    rates = {"matrix": matrix_lr, "table": other_lr / 2, "other": other_lr}
    made = {
        kind: [
            {"params": groups[kind, slow], "lr": rates[kind] * (gentle if slow else 1.0)}
            for slow in (False, True)
        ]
        for kind in rates
    }
    return [
        Muon(made["matrix"], lr=matrix_lr, weight_decay=0.02),
        torch.optim.AdamW(
            made["table"] + made["other"], betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        ),
    ]


def schedule(step: int, steps: int, warmup: int, decay: float = 0.4) -> float:
    """Factor on the learning rates: up in `warmup` steps, flat, then linearly down to 0.

    The last `decay` share of all steps goes down. With 0 for both, the factor is always 1.
    """
    return min(1.0, (step + 1) / max(warmup, 1), (steps - step) / max(decay * steps, 1))


def fit(
    module: nn.Module,
    step_loss: Callable[[int], Tensor | Iterable[Tensor]],
    steps: int,
    optimizers: list[torch.optim.Optimizer],
    warmup: int = 10,
    decay: float = 0.4,
    clip: float = 1.0,
    start: int = 0,
    after: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `module`, and return the loss of each step.

    step_loss(step): the loss (), a tensor with a gradient, or its summands one after the other,
    where a batch is too large to go through the model at once; warmup, decay: see `schedule`; clip:
    the most that all gradients together may be long; after(done, loss): called after each step,
    with the number of steps done. It may measure in eval mode: each step puts train mode back.
    start: the steps that are done already. Whoever loads the states of module and optimizers as
    they were then, and draws the data of a step from its number alone, gets the same end.
    Raises FloatingPointError, before anything moves, when the loss is infinite or no number.
    """
    groups = [group for one in optimizers for group in one.param_groups]
    # Where torch's own schedules keep it: so it comes back with the state of the optimizer.
    rates = [group.setdefault("initial_lr", group["lr"]) for group in groups]
    losses = []
    for step in range(start, steps):
        module.train()
        module.zero_grad()
        losses.append(0.0)
        parts = step_loss(step)
        for loss in [parts] if isinstance(parts, Tensor) else parts:
            losses[-1] += loss.item()
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} in step {step + 1} of {steps}")
            loss.backward()  # adds to the gradients of the parts before
        nn.utils.clip_grad_norm_(module.parameters(), clip)
        factor = schedule(step, steps, warmup, decay)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        for one in optimizers:
            one.step()
        if after is not None:
            after(step + 1, losses[-1])
    return losses
