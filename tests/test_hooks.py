"""The recorder of layer outputs."""

import pytest
import torch
from torch import nn

from minipali.hooks import compare, watch


def doubling_chain():
    chain = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Identity())
    chain[0].weight.data = 2 * torch.eye(2)
    return chain


def test_layers_are_seen_in_the_order_of_computing_with_what_they_got():
    chain, seen = doubling_chain(), []
    with watch(chain.named_modules(), lambda *told: seen.append(told)):
        chain(torch.ones(2))
    assert [(name, given[0].tolist(), output.tolist()) for name, given, output in seen] == [
        ("0", [1, 1], [2, 2]),
        ("1", [2, 2], [2, 2]),
        ("", [1, 1], [2, 2]),
    ]


def test_what_the_watcher_returns_changes_nothing():
    chain = doubling_chain()
    with watch(chain.named_modules(), lambda *told: torch.zeros(2)):
        assert chain(torch.ones(2)).tolist() == [2, 2]


def test_no_hook_stays_behind_even_after_an_error():
    chain = doubling_chain()
    with pytest.raises(RuntimeError), watch(chain.named_modules(), print):
        chain(torch.ones(3))
    assert not any(layer._forward_hooks for layer in chain.modules())


def test_calls_of_a_layer_are_paired_one_by_one_and_what_only_one_runs_is_left_out():
    ours, theirs = doubling_chain(), doubling_chain()
    theirs[0].weight.data[0, 0] = 3
    theirs[1] = nn.Sequential(nn.Identity())

    def run(model):
        for x in (torch.tensor([0.0, 1]), torch.tensor([1.0, 0])):
            model(x)

    found = compare(ours, theirs, run, lambda want, got: (got - want).abs().max().item())
    assert found == {
        "0": 0, "1": 0, "logits": 0, "0 (call 2)": 1, "1 (call 2)": 1, "logits (call 2)": 1,
    }  # fmt: skip
    assert list(found)[:4] == ["0", "1", "logits", "0 (call 2)"]


def test_their_names_are_translated():
    ours = nn.ModuleDict({"first": nn.Identity()})
    theirs = nn.ModuleDict({"premier": nn.Identity(), "autre": nn.Identity()})

    def run(model):
        for layer in model.values():
            layer(torch.ones(1))

    names = {"premier": "first"}
    found = compare(ours, theirs, run, torch.equal, lambda name: names.get(name, ""))
    assert found == {"first": True}
