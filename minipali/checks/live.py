"""Live trials: a learner's piece trains a small model, and whether that learned is displayed."""

import math
from collections.abc import Callable

import numpy as np
import torch

from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Outcome, failed
from minipali.paligemma import PaliGemma
from minipali.small_tasks import (
    NamingTask,
    Speaker,
    SpeakingTask,
    TowerRun,
    fresh_decoder,
    right_share,
    speaking_batch,
    train_towers,
)
from minipali.tokens import IGNORE

TITLE = "training with your pieces"


def try_loss(
    name: str, loss: Callable, task: NamingTask, floor: float, bias: float | None = None, **given
) -> TowerRun | None:
    """`train_towers` with a learner's loss; displays whether it learned, and returns the run.

    *correct* if zero-shot accuracy on the new artist reaches `floor`, from 0 to 1.
    """

    def outcome(status: str, message: str) -> None:
        show(Outcome(f"training with {name}", status, message))

    try:
        run = train_towers(loss, task, bias=bias, **given)
    except BaseException as error:
        return show(failed(f"training with {name}", error))
    found = f"Zero-shot accuracy on the new artist {run.accuracy:.0%}, the floor is {floor:.0%}"
    if run.towers.log_scale.item() == torch.tensor(math.log(given.get("scale", 10.0))).item():
        outcome(
            WRONG,
            f"{found}, but log_scale never moved: no gradient reached it. Use torch's exp on the"
            " tensor; math.exp, float() and .item() cut the gradient off.",
        )
    elif run.accuracy < floor:
        chance = 1 / len(task.names)
        outcome(WRONG, f"{found}. Guessing gives {chance:.0%}. What does your `check` say?")
    else:
        outcome(CORRECT, f"{found}.")
    return run


def try_training(
    labels_of: Callable,
    loss: Callable,
    train: Callable,
    model: PaliGemma,
    task: SpeakingTask,
    floor: float,
    seed: int = 0,
) -> PaliGemma | None:
    """Train a new decoder with a learner's labels, loss and loop; display whether it learned.

    labels_of(prefix, suffix, eos, ignore), loss(logits, labels, ignore) and train(module,
    optimizer, batches, held_out, loss, epochs, max_norm) are the pieces of exercise 13. *correct*
    if the share of the new artist's pictures that are named right reaches `floor`. Returns the
    trained model.
    """

    def outcome(status: str, message: str) -> None:
        show(Outcome(TITLE, status, message))

    try:
        learner = fresh_decoder(model, seed)
        whole = len(task.answers) // 16
        order = np.random.default_rng(seed).permutation(len(task.answers))[: 16 * whole]
        batches = [
            speaking_batch(task, row.tolist(), labels_of=labels_of)
            for row in order.reshape(whole, 16)
        ]
        some = list(range(min(100, len(task.new_answers))))
        held_out = speaking_batch(task, some, new=True, labels_of=labels_of)
        parameters = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.95), fused=True)
        losses, _ = train(
            Speaker(learner), optimizer, batches, held_out, lambda x, y: loss(x, y, IGNORE), 2, 1.0
        )
        share, last = right_share(learner.eval(), task), float(losses[-10:].mean())
    except BaseException as error:
        return show(failed(TITLE, error))
    found = f"{share:.0%} of the new artist's pictures are named right, the floor is {floor:.0%}"
    if share >= floor:
        outcome(CORRECT, f"{found}. The loss ended at {last:.2f}.")
    elif last < 0.3:
        outcome(
            WRONG,
            f"{found}. But the loss ended at {last:.2f}: the model learned something, and it is not"
            " to answer. What do your labels ask it to say, and where? See what `check` says.",
        )
    else:
        outcome(WRONG, f"{found}, and the loss ended at {last:.2f}. What does your `check` say?")
    return learner
