"""Lesson 13: the loss, the optimizer, and the loop."""

import math
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minipali.checks import exercise
from minipali.checks.engine import CORRECT, examine
from minipali.tokens import IGNORE
from minipali.training import Muon, fit, orthogonalise, schedule, suffix_loss


def test_suffix_loss_is_the_mean_over_suffix_tokens_alone():
    logits = torch.randn(2, 4, 7, dtype=torch.float64)
    labels = torch.tensor([[IGNORE, IGNORE, 3, 1], [IGNORE, 5, 1, IGNORE]])
    by_hand = []
    for row, place, token in ((0, 1, 3), (0, 2, 1), (1, 0, 5), (1, 1, 1)):
        exponentials = [math.exp(value) for value in logits[row, place].tolist()]
        by_hand.append(-math.log(exponentials[token] / sum(exponentials)))
    assert suffix_loss(logits, labels).item() == pytest.approx(sum(by_hand) / 4, abs=1e-6)
    marked = labels.where(labels != IGNORE, 6)
    assert suffix_loss(logits, marked, ignore=6).item() == pytest.approx(sum(by_hand) / 4, abs=1e-6)


def test_orthogonalised_matrices_keep_directions_and_even_out_sizes():
    torch.manual_seed(0)
    for shape in ((3, 8, 8), (2, 12, 6), (2, 6, 12)):
        matrices = torch.randn(shape)
        found = orthogonalise(matrices, steps=12)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        nearest = left @ right
        assert F.cosine_similarity(found.flatten(1), nearest.flatten(1)).min() > 0.97


def test_muon_moves_downhill():
    torch.manual_seed(0)
    target, weight = torch.randn(6, 4), torch.nn.Parameter(torch.zeros(6, 4))
    maker = Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        losses.append(loss.item())
        maker.zero_grad()
        loss.backward()
        maker.step()
    assert losses[-1] < 0.05 * losses[0]


def test_the_schedule_rises_stays_and_ends_near_zero():
    factors = [schedule(step, 1000, warmup=10) for step in range(1000)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1 and factors[500] == 1
    assert 0 < factors[-1] < 0.01


# --- the loop -----------------------------------------------------------------------------------


class Seen(nn.Module):
    """A module that is another in train mode, and batches that depend on the step alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        # Without a bias before the norm: its gradient is rounding alone, which AdamW makes large.
        self.layers = nn.Sequential(
            nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)
        )
        self.modes = []

    def loss(self, step: int) -> torch.Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        self.modes.append(self.training)
        return (self.layers(x).squeeze(1) - 20 * x.sum(dim=1)).square().mean()

    def optimizers(self, lr: float = 0.05) -> list[torch.optim.Optimizer]:
        first, *rest = self.parameters()
        return [
            torch.optim.SGD([first], lr=lr / 10, momentum=0.9),
            torch.optim.AdamW([{"params": rest[:2], "lr": lr}, {"params": rest[2:], "lr": 2 * lr}]),
        ]


def by_hand(module: Seen, steps: int, warmup: int, decay: float, clip: float) -> list[float]:
    """The same training, with the parts written out: norms by hand, rates from a list."""
    makers, losses = module.optimizers(), []
    rates = [[group["lr"] for group in maker.param_groups] for maker in makers]
    for step in range(steps):
        loss = module.loss(step)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        length = sum(float(g.square().sum()) for g in gradients) ** 0.5
        for p, gradient in zip(module.parameters(), gradients, strict=True):
            p.grad = gradient * min(1.0, clip / length)
        up = (step + 1) / warmup if step < warmup else 1.0
        down = (steps - step) / (decay * steps) if steps - step < decay * steps else 1.0
        for maker, own in zip(makers, rates, strict=True):
            for group, rate in zip(maker.param_groups, own, strict=True):
                group["lr"] = rate * min(up, down)
            maker.step()
        losses.append(loss.item())
    return losses


def test_fit_is_the_loop_written_out():
    module, twin = Seen(), Seen()
    found = fit(module, module.loss, 20, module.optimizers(), warmup=4, decay=0.5, clip=2.0)
    assert found == pytest.approx(by_hand(twin, 20, 4, 0.5, 2.0), rel=1e-4)
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_no_schedule_and_no_clipping_leave_the_optimizer_alone():
    module, twin = Seen(), Seen()
    fit(module, module.loss, 5, module.optimizers(), warmup=0, decay=0, clip=math.inf)
    makers = twin.optimizers()
    for step in range(5):
        twin.zero_grad()
        twin.loss(step).backward()
        for maker in makers:
            maker.step()
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_each_step_trains_even_if_after_it_is_measured():
    module, seen = Seen(), []

    def after(done, loss):
        seen.append((done, loss))
        module.eval()

    losses = fit(module.eval(), module.loss, 3, module.optimizers(), after=after)
    assert module.modes == [True] * 3
    assert seen == list(enumerate(losses, start=1))


def test_a_training_that_goes_on_ends_as_if_it_had_not_stopped():
    whole, half, rest = Seen(), Seen(), Seen()
    losses = fit(whole, whole.loss, 12, whole.optimizers(), warmup=4)
    makers, kept = half.optimizers(), {}

    class Stopped(Exception):
        pass

    def after(done, loss):
        if done == 7:
            kept.update(module=half.state_dict(), makers=[maker.state_dict() for maker in makers])
            raise Stopped

    with pytest.raises(Stopped):
        fit(half, half.loss, 12, makers, warmup=4, after=after)
    rest.load_state_dict(kept["module"])
    makers = rest.optimizers()
    for maker, state in zip(makers, kept["makers"], strict=True):
        maker.load_state_dict(state)
    assert fit(rest, rest.loss, 12, makers, warmup=4, start=7) == losses[7:]
    for p, q in zip(rest.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_a_second_training_starts_from_the_same_rates():
    module = Seen()
    makers = module.optimizers(lr=0.05)
    for _ in range(2):
        fit(module, module.loss, 4, makers, warmup=1, decay=0.0)
        assert [group["lr"] for maker in makers for group in maker.param_groups] == [
            pytest.approx(0.005), 0.05, 0.1
        ]  # fmt: skip
        fit(module, module.loss, 4, makers, warmup=1, decay=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training_before_it_does_harm(value):
    module = Seen()

    def step_loss(step):
        return module.loss(step) * (value if step == 2 else 1)

    kept = {}

    def after(done, loss):
        kept.update({name: p.clone() for name, p in module.named_parameters()})

    with pytest.raises(FloatingPointError, match=f"the loss is {value} in step 3 of 5"):
        fit(module, step_loss, 5, module.optimizers(), after=after)
    for name, p in module.named_parameters():
        assert torch.equal(p, kept[name])


def cell_of_lesson_13(defines: str):
    """A function as the lesson writes it."""
    source = Path(__file__).parents[1] / "notebooks" / "src" / "13_training.py"
    cells = source.read_text(encoding="utf-8").split("# %%")
    (cell,) = (cell for cell in cells if f"\ndef {defines}(" in cell)
    names = {"nn": nn, "F": F}
    exec(cell[cell.index(f"def {defines}(") :], names)
    return names[defines]


def test_the_loop_that_lesson_13_shows_is_the_packages():
    shown, module, twin = cell_of_lesson_13("fit"), Seen(), Seen()
    told, expected = [], []
    given = {"warmup": 3, "decay": 0.6, "clip": 0.5}
    shown(module, module.loss, 9, module.optimizers(), after=lambda *x: told.append(x), **given)
    fit(twin, twin.loss, 9, twin.optimizers(), after=lambda *x: expected.append(x), **given)
    assert told == expected and len(told) == 9
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    for name in ("warmup", "decay", "clip"):
        assert signature(shown).parameters[name].default == signature(fit).parameters[name].default


def test_training_draws_nothing():
    """A model can be trained where no window system and no matplotlib is."""
    code = "import sys, minipali.training; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- the exercise ---------------------------------------------------------------------------------


def test_parts_have_the_gradients_of_one_padded_batch():
    torch.manual_seed(0)
    module, rows = nn.Linear(4, 6), []
    for length, labels in ((5, [9, 9, 3, 1, 2]), (3, [2, 4, 1]), (7, [9, 9, 9, 9, 5, 0, 1])):
        rows.append((torch.randn(length, 4), torch.tensor(labels)))
    x = nn.utils.rnn.pad_sequence([one for one, _ in rows], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([one for _, one in rows], True, padding_value=9)
    suffix_loss(module(x), labels, 9).backward()
    expected = [p.grad.clone() for p in module.parameters()]
    parts = [(one[None], own[None]) for one, own in rows]
    loss = exercise("accumulate").reference(module, parts, 9)
    torch.testing.assert_close(loss, suffix_loss(module(x), labels, 9))
    torch.testing.assert_close([p.grad for p in module.parameters()], expected)


def test_measuring_without_a_graph_is_right_in_any_way():
    outcome = examine(exercise("train"), freezing)
    assert outcome.status == CORRECT, outcome.message


def freezing(module, optimizer, batches, held_out, loss, epochs, max_norm):
    losses, measured = [], []
    for _ in range(epochs):
        module.train()
        for x, y in batches:
            value = loss(module(x), y)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        module.eval().requires_grad_(False)
        measured.append(loss(module(held_out[0]), held_out[1]).item())
        module.requires_grad_(True)
    return torch.tensor(losses), torch.tensor(measured)


def test_losses_that_hang_on_a_graph_are_told():
    outcome = examine(exercise("train"), hoarding)
    assert "still hang on autograd's graph" in outcome.message


def hoarding(module, optimizer, batches, held_out, loss, epochs, max_norm):
    losses = [loss(module.train()(x), y) for x, y in batches]
    return torch.stack(losses), torch.zeros(epochs)
