"""PaliGemma 3B at its real size against transformers: loading, prefill, decoding.

    python -m minipali.synthetic build/3b                random weights, 5.8 GB
    python benchmarks/real_size.py build/3b [--as-avx2]

Needs 24 GB of memory, most of it for transformers' float32 copy (leave it out: --without-float32).
With --decoding that alone is measured, after a few tokens without a picture: in minutes, by one
thread and its own time in the processor, so that other work on the machine counts little.
With --hkproj FOLDER, a clone of https://github.com/hkproj/pytorch-paligemma answers in its place.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from measuring import (
    by_turns,
    machine,
    measured_machine,
    peak_memory,
    restart_as_avx2,
    table,
    write,
)

TOKENS = 6  # decoded in a turn


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the 3B model against transformers.")
    parser.add_argument("folder", help="a model folder; weights may be random")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--as-avx2", action="store_true", help="hide newer instructions from torch")
    parser.add_argument("--without-float32", action="store_true")
    parser.add_argument("--decoding", action="store_true", help="that alone, with one thread")
    parser.add_argument("--hkproj", metavar="FOLDER", help="a clone of hkproj/pytorch-paligemma")
    parser.add_argument("--load-only", choices=LOADERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hkproj and not (Path(given.hkproj) / "modeling_gemma.py").exists():
        parser.error(
            f"{given.hkproj} must be a clone of hkproj/pytorch-paligemma: no modeling_gemma.py"
        )
    if given.as_avx2:
        restart_as_avx2()
    if given.load_only:
        LOADERS[given.load_only](given.folder)
        return
    if given.decoding:
        import torch

        torch.set_num_threads(1)
        result = {"machine": machine()}
        result |= running(given.folder, given.rounds, only_decoding=True)
        write("decoding", result)
        return
    result = {"machine": measured_machine()}
    if given.hkproj:
        result |= running(given.folder, given.rounds, hkproj=given.hkproj)
    else:
        result |= loading(given.folder, given.rounds)
        result |= running(given.folder, given.rounds, with_float32=not given.without_float32)
    name = "hkproj" if given.hkproj else "real_size"
    write(f"{name}_avx2" if given.as_avx2 else name, result)


# --- loading: each in a process of its own, because memory once taken is not given back ----------


def load_ours(folder: str):
    import minipali

    return minipali.load(folder)[0]


def load_theirs(folder: str, dtype: str = "bfloat16"):
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.eval()


def timed(load, run):
    """Seconds to load, seconds to load and give the first token, and the peak of memory."""

    def measure(folder: str) -> None:
        prompt = example(folder)
        start = time.perf_counter()
        model = load(folder)
        loaded = time.perf_counter() - start
        run(model, prompt)
        told = time.perf_counter() - start
        print(loaded, told, peak_memory())

    return measure


def example(folder: str) -> dict:
    from minipali import config, scenes
    from minipali.tokens import Processor

    processor = Processor(f"{folder}/tokenizer.model", config.read(f"{folder}/config.json"))
    return processor(scenes.examples()["dog_and_car_test_artist"], "caption en")


def first_token_ours(model, prompt) -> None:
    from minipali.generation import token_steps

    next(token_steps(model, prompt, 1))


def first_token_theirs(model, prompt) -> None:
    import torch

    with torch.inference_mode():
        model(**prompt, logits_to_keep=1, use_cache=True)


LOADERS = {
    "ours": timed(load_ours, first_token_ours),
    "transformers": timed(load_theirs, first_token_theirs),
}


def loading(folder: str, rounds: int) -> dict:
    found = {name: [] for name in LOADERS}
    for _ in range(rounds):
        for name in LOADERS:
            command = [sys.executable, __file__, folder, "--load-only", name]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[name].append([float(word) for word in told.split()[-3:]])
    loaded, first, peak = (
        {name: [run[column] for run in runs] for name, runs in found.items()} for column in range(3)
    )
    return {
        "loading": table(loaded, "ours"),
        "loading and first token": table(first, "ours"),
        "peak GB": {name: round(max(most) / 1e9, 2) for name, most in peak.items()},
    }


# --- prefill and decoding: one process, by turns -------------------------------------------------


def running(
    folder: str,
    rounds: int,
    with_float32: bool = False,
    hkproj: str = "",
    only_decoding: bool = False,
) -> dict:
    import torch

    from minipali.quantization import quantize

    prompt = example(folder)
    if only_decoding:  # a picture's prefill takes longer than all that is measured here
        prompt = {"input_ids": prompt["input_ids"][:, -4:]}
    ours = {"ours": load_ours(folder)}
    ours |= {f"ours, int{bits}": quantize(load_ours(folder), bits) for bits in (8, 4)}
    theirs = {} if hkproj else {"transformers": load_theirs(folder)}
    if with_float32:
        theirs["transformers, float32"] = load_theirs(folder, "float32")
    state = {}

    def prefill_ours(name):
        model, length = ours[name], prompt["input_ids"].shape[1]
        cache = model.new_cache(1, length + TOKENS)
        x = model.hidden_states(**prompt, kv_cache=cache)
        state[name] = cache, model.language_model.logits(x[:, -1])

    def prefill_theirs(name):
        out = theirs[name](**prompt, logits_to_keep=1, use_cache=True)
        state[name] = out.past_key_values, out.logits[:, -1]

    def decode_ours(name, look_again=False):
        """look_again: the vision tower at every token, and logits everywhere at the prefill."""
        model, (cache, logits) = ours[name], state[name]
        length = cache.length
        for _ in range(TOKENS):
            if look_again:
                model.image_features(prompt["pixel_values"])
            token = logits.argmax(dim=-1, keepdim=True)
            logits = model(token, kv_cache=cache)[:, -1]
        cache.is_real = cache.is_real[:, :length]  # forget these tokens again

    def decode_theirs(name):
        model, (cache, logits) = theirs[name], state[name]
        length = cache.get_seq_length()
        for _ in range(TOKENS):
            token = logits.argmax(dim=-1, keepdim=True)
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
        cache.crop(length - cache.get_seq_length())  # a negative number: so many from the end

    with torch.inference_mode():
        prefill = {name: lambda name=name: prefill_ours(name) for name in ours}
        prefill |= {name: lambda name=name: prefill_theirs(name) for name in theirs}
        if hkproj:
            prefill["hkproj"], again = hkproj_steps(folder, hkproj, prompt)
        first = by_turns(prefill, 0 if only_decoding else rounds)
        decode = {name: lambda name=name: decode_ours(name) for name in ours}
        decode |= {name: lambda name=name: decode_theirs(name) for name in theirs}
        if hkproj:
            decode["hkproj"] = again
        if not only_decoding:
            decode["ours, looking again"] = lambda: decode_ours("ours", look_again=True)
        rest = by_turns(decode, rounds, time.thread_time if only_decoding else time.perf_counter)
    held = {
        name: sum(w.nbytes for w in model.state_dict().values()) for name, model in ours.items()
    }
    return {
        "weights GB": {name: round(size / 1e9, 2) for name, size in held.items()},
        **({} if only_decoding else {"prefill": table(first, "ours")}),
        "decoding": table(rest, "ours", TOKENS),
    }


def hkproj_steps(folder: str, code: str, prompt: dict):
    """Its prefill and its decoding, as its inference.py calls the model: in float32."""
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, code)
    from modeling_gemma import KVCache, PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config["text_config"].pop("pad_token_id", None)  # it passes that on itself
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**config)).eval()
    for shard in sorted(Path(folder).glob("*.safetensors")):
        model.load_state_dict(load_file(shard), strict=False)
    model.tie_weights()
    state = {}

    def call(tokens, seen, cache):
        mask = torch.ones(1, seen)
        return model(tokens, prompt["pixel_values"], mask, cache)["logits"][:, -1]

    def prefill():
        cache = KVCache()
        state["cache"] = cache
        tokens = prompt["input_ids"]
        state["logits"] = call(tokens, tokens.shape[1], cache)

    def decode():
        cache, logits = state["cache"], state["logits"]
        length = cache.num_items()
        for number in range(TOKENS):
            token = logits.argmax(dim=-1, keepdim=True)
            logits = call(token, length + number + 1, cache)
        for held in (cache.key_cache, cache.value_cache):
            held[:] = [tensor[:, :, :length] for tensor in held]  # forget these tokens again

    return prefill, decode


if __name__ == "__main__":
    main()
