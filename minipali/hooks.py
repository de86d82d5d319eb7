"""What layers return, seen while a model runs."""

import contextlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def watch(
    layers: Iterable[tuple[Hashable, nn.Module]], see: Callable[[Hashable, tuple, Any], Any]
) -> Iterator[None]:
    """Within it see(name, given, output) is called each time a layer has run, in that order.

    layers: with a name for each, such as model.named_modules() or enumerate(model.layers); given:
    what the layer was called with by position.
    """

    def hook(name: Hashable) -> Callable:
        def told(layer: nn.Module, given: tuple, output: Any) -> None:
            see(name, given, output)  # what it returns would take the output's place: nothing

        return told

    with contextlib.ExitStack() as hooks:
        for name, layer in layers:
            hooks.callback(layer.register_forward_hook(hook(name)).remove)
        yield


@torch.inference_mode()
def compare(
    ours: nn.Module,
    theirs: nn.Module,
    run: Callable[[nn.Module], Any],
    difference: Callable[[Tensor, Any], Any],
    our_name: Callable[[str], str] = lambda name: name,
) -> dict[str, Any]:
    """difference(our output, theirs) of every layer that runs in both, in our order of computing.

    run: does the same with each model; our_name: what we call a layer of theirs (of several, the
    last one to run counts). Keys: the name of the layer, "logits" for the whole model; from its
    second call on "name (call 2)".
    """
    outputs: dict[str, Tensor] = {}
    found: dict[str, Any] = {}

    def each(see: Callable[[str, Any], None], name_of: Callable[[str], str]) -> Callable:
        calls = Counter()

        def told(name: str, given: tuple, output: Any) -> None:
            calls[name] += 1
            again = f" (call {calls[name]})" if calls[name] > 1 else ""
            see((name_of(name) if name else "logits") + again, output)

        return told

    def keep(place: str, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[place] = output

    def measure(place: str, output: Any) -> None:
        if place in outputs:
            found[place] = difference(outputs[place], output)

    with watch(ours.named_modules(), each(keep, lambda name: name)):
        run(ours)
    with watch(theirs.named_modules(), each(measure, our_name)):
        run(theirs)
    return {place: found[place] for place in outputs if place in found}
