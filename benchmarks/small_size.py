"""The small model against transformers: decoding and a step of training.

python benchmarks/small_size.py
"""

import argparse
import copy

from measuring import by_turns, measured_machine, restart_as_avx2, table, write


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the small model against transformers.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--as-avx2", action="store_true", help="hide newer instructions from torch")
    parser.add_argument("--without-compile", action="store_true", help="there is no C++ compiler")
    given = parser.parse_args()
    if given.as_avx2:
        restart_as_avx2()
    import torch

    result = {"machine": measured_machine()}
    # As the course runs it. A second thread gains nothing here, and while another program keeps a
    # core busy each operation waits for it: ten times as long a token was measured.
    torch.set_num_threads(1)
    result["decoding"] = decoding(given.rounds, not given.without_compile)
    result["training step"] = training(given.rounds)
    write("small_size_avx2" if given.as_avx2 else "small_size", result)


def both():
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    import minipali
    from minipali.weights import SMALL

    torch.manual_seed(0)
    model, processor = minipali.load("small")
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(SMALL).eval()
    return model, theirs, processor


def decoding(rounds: int, with_compile: bool, tokens: int = 40) -> dict:
    """Greedy, with end of text switched off on both sides, so that both write `tokens` tokens."""
    import torch

    from minipali.generation import token_steps
    from minipali.scenes import examples

    model, theirs, processor = both()
    prompt = processor(examples()["dog_and_car_test_artist"], "caption en")
    never = {"eos_token_id": None, "max_new_tokens": tokens, "do_sample": False}

    model.continue_tokens = endless
    models = {"ours": model}
    if with_compile:
        models["ours, compiled"] = copy.deepcopy(model)
        models["ours, compiled"].language_model.compile(dynamic=True)

    def ours(name):
        told[name] = torch.stack(list(token_steps(models[name], prompt, tokens)), dim=1)

    def generate():
        told["transformers"] = theirs.generate(**prompt, **never)[:, -tokens:]

    told = {}
    variants = {name: lambda name=name: ours(name) for name in models}
    took = by_turns(variants | {"transformers": generate}, rounds)
    for name in models:
        assert torch.equal(told[name], told["transformers"]), f"{name} must write the same"
    return table(took, "ours", tokens)


def endless(logits, step, choose, eos, pad, max_new_tokens):
    """The package's loop, without an end of text."""
    from minipali.generation import continue_tokens

    return continue_tokens(logits, step, choose, -1, pad, max_new_tokens)


def training(rounds: int, rows: int = 64) -> dict:
    """Forward, loss and backward of one batch; the optimizer would be the same.

    Ours as in `minipali.recipe`: logits only at the places that have a label.
    """
    import numpy as np

    from minipali import scenes
    from minipali.recipe import Generative

    model, theirs, processor = both()
    rng = np.random.default_rng(0)
    made = [scenes.compose(rng, scenes.TRAINING_ARTISTS) for _ in range(rows)]
    captions = [scenes.caption(scene) for scene in made]
    pictures = [scene.picture for scene in made]
    batch = processor(pictures, ["caption en"] * rows, captions, padding_side="right")
    losses, learner = {}, Generative(model)
    pixels = batch["pixel_values"]
    rest = {name: tensor for name, tensor in batch.items() if name != "pixel_values"}

    def ours():
        model.zero_grad()
        loss = learner(pixels, [dict(rest)])
        loss.backward()
        losses["ours"] = loss.item()

    def transformers():
        theirs.zero_grad()
        loss = theirs(**batch).loss
        loss.backward()
        losses["transformers"] = loss.item()

    took = by_turns({"ours": ours, "transformers": transformers}, rounds)
    assert abs(losses["ours"] - losses["transformers"]) < 1e-3, losses
    return table(took, "ours")


if __name__ == "__main__":
    main()
