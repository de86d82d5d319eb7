# %% [markdown]
# # 14 · Weights: a file becomes a model
#
# You have built every part of PaliGemma. But a new model is full of random numbers. The numbers
# that know something lie in a file. Today you read that file byte by byte, put each number where it
# belongs, and learn to notice when one does not.
#
# ## Do you remember?
#
# <details><summary>How many numbers does <code>nn.Linear(160, 480)</code> hold, and in which
# shapes?</summary>
#
# A weight of (480, 160), so (out, in), and a bias of 480: 77,280 numbers (lesson 04).
# </details>
#
# <details><summary>Gemma's head has no weights of its own. Where do its logits come from?</summary>
#
# From the embedding table: each logit is the dot product of the last vector with a row of it. The
# two are *tied* (lesson 10).
# </details>
#
# <details><summary>A training loss falls to 0.0001, and in use the model repeats the newline for ever. Which
# step was forgotten?</summary>
#
# The shift. Each place was asked for the token that it has just read (lesson 13).
# </details>
#
# ## Where we are

# %%
import numpy as np
import torch

from minipali import figures, generate, load, scenes
from minipali.checks import reveal

# %%
model, processor = load("small")
figures.model_map("all", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **read** a safetensors file by hand: its header, its tensors, and bfloat16 numbers,
# 2. **load** strictly: each name in the file has its place, and each place its name,
# 3. **find** the first layer in which two models differ.
#
# Time: 70 minutes. You need: the whole model (lesson 11) and the tied head (10).
#
# ## Predict
#
# 1. Our small model has 2,509,024 numbers of 4 bytes. Its file has 15,776 bytes more than these.
#    How many of these 15,776 could you *not* read in a text editor?
# 2. bfloat16 and float16 both take 16 bits. A file holds 0.01 in bfloat16, and you read it as
#    float16. Which number do you get?
# 3. Our model answers 81 of 100 new questions rightly. One of its square matrices is loaded
#    transposed, rows and columns exchanged. How many then?

# %%
guess_bytes, guess_misread, guess_transposed = ..., ..., ...

# %% [markdown]
# ## By hand: a file of two tensors
#
# A **safetensors** file has three parts. First 8 bytes: a whole number, the length of the header.
# Then the **header**: text in JSON, which gives each tensor's name, kind of number, shape and
# place. Then the numbers, one tensor after the other.
#
# We write a file with a vector of two numbers in float32 (4 bytes each) and a table of 2 x 3
# numbers in bfloat16 (2 bytes each). On paper: how many bytes of numbers is that, and at which does
# the table begin and end?

# %%
norm, table = torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 1, 3], [-1, 0, 2]]).bfloat16()
header = b'{"norm":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
header += b'"table":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}}'
numbers = bytes([*norm.view(torch.uint8), *table.view(torch.uint8).flatten()])
data = len(header).to_bytes(8, "little") + header + numbers
figures.weights.file(data)

# %% [markdown]
# 20 bytes of numbers. The vector has bytes 0 to 7, and the table begins at 8. The offsets count
# from the *end of the header*, and the second one is the first byte *after* the tensor.
#
# The figure writes a byte that is no letter in hexadecimal: the length `76` is 7 · 16 + 6 = 118.
# All numbers stand in the file with their *last* byte first (*little-endian*). So `00 00 80 3f` is
# 3f 80 00 00, which is 1.0 in float32. In bfloat16 1.0 is `80 3f`, or 3f 80: the first half of
# that.
#
# ## Build: the reader
#
# **Write it now**: [exercise 14](../exercises/14_weights.ipynb), part 1. The bytes of a file come
# in, a dict of name to tensor goes out, each in its own kind of number. Two results: the file above
# gives `norm` = [1, -2] and `table` = [[0.5, 1, 3], [-1, 0, 2]]; a tensor of shape [0, 3] has the
# offsets [8, 8], so no byte at all, and comes out as an empty tensor of that shape. Then open the
# cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
import json

KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def read_tensors(data):
    """The bytes of a safetensors file -> dict of name -> tensor."""
    length = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)  # notes of the program that wrote the file
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = torch.empty(0, dtype=KINDS[entry["dtype"]])
        if start < end:  # torch makes no tensor of no bytes; it wants bytes that it may change
            flat = torch.frombuffer(bytearray(numbers[start:end]), dtype=flat.dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


# %%
from minipali.weights import SMALL

print(read_tensors(data))
data = (SMALL / "model.safetensors").read_bytes()
file = read_tensors(data)

# %%
count, length = sum(x.numel() for x in file.values()), int.from_bytes(data[:8], "little")
print(f"{len(data):,} bytes = 8 + {length:,} header + {4 * count:,} for {len(file)} tensors")
print(data[8:260].decode())
reveal("bytes that are no text", guess_bytes, len(data) - length - 4 * count)

# %% [markdown]
# The header is text in any editor. Only its length is not.
#
# Nothing in such a file can *run* (an optional part below shows a kind that can).
#
# ## Build: bfloat16 by hand
#
# A float32 has 32 bits: a sign $s$, 8 bits of exponent $e$, 23 bits of fraction $f$ (its first bit
# is worth 1/2, the next 1/4). Except for the tiniest numbers, infinity and NaN, the number is
#
# $$(-1)^s \cdot (1 + f) \cdot 2^{\,e - 127}$$
#
# Two formats make 16 bits of it:
#
# - **float16**: 1 + 5 + 10 bits. With its short exponent the largest number is 65,504, and below
#   0.00006 digits are lost.
# - **bfloat16**: 1 + 8 + 7 bits. It is the first half of a float32. All exponents stay, but only
#   two to three decimal digits.
#
# **Write it now**: exercise 14, part 2, without `torch.bfloat16`. Bit patterns come in as int16,
# float32 goes out. Two results: the pattern 0 01111111 0000000, as a whole number 16256, is 1.0;
# the pattern 1 10000000 1000000, as int16 -16320, is -(1 + 1/2) · 2 = -3.0. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def bfloat16_to_float(bits):
    """int16 bit patterns -> float32 of the same shape."""
    return (bits.to(torch.int32) << 16).view(torch.float32)


# %% tags=["nbval-check-output"]
for number in (1.0, 0.01, 0.3, 65504.0, 70000.0, 1e-8):
    brain, half = torch.tensor(number).bfloat16(), torch.tensor(number).half()
    pattern = f"{brain.view(torch.int16).item():016b}"
    parts = f"{pattern[0]} {pattern[1:9]} {pattern[9:]}"
    by_hand = bfloat16_to_float(brain.view(torch.int16)).item()
    print(f"{number:<8} bfloat16 {parts} = {by_hand:<12.5g} float16 {half.item():.5g}")

# %% [markdown]
# float16 is nearer to 0.3. But 70,000 is infinite for it, and 10^-8 is nothing.
#
# ## Break it: bfloat16 read as float16
#
# Both take two bytes a number, so all shapes fit, even if you name the wrong one.

# %%
misread = {name: x.bfloat16().view(torch.float16).float() for name, x in model.state_dict().items()}
figures.weights.misread(model.state_dict(), misread)
found = torch.tensor(0.01).bfloat16().view(torch.float16).item()
reveal("0.01 read as float16", guess_misread, round(found, 2))

# %% [markdown]
# The last three of the eight exponent bits are now read as fraction. One step of the other five
# meant a factor of $2^8$, and now 2. So you read about twice the *eighth root* of the number. All
# that was small is now about as large as 1.
#
# ## Build: the key map
#
# The file's names are called **keys**. A key is the path to a weight in the code that wrote the
# file, such as `layers.0.mlp.fc1.bias`. If the code is rearranged, the keys get other names. There
# are four layouts:
#
# | written by | text | picture | projector | head, if stored |
# |---|---|---|---|---|
# | the published files | `language_model.model.` | `vision_tower.vision_model.` | `multi_modal_projector.linear.` | `language_model.lm_head.` |
# | transformers 4.52 to 5.0, in memory | `model.language_model.` | `model.vision_tower.vision_model.` | `model.multi_modal_projector.linear.` | `lm_head.` |
# | transformers 5.23, in memory | `model.language_model.` | `model.vision_tower.` | `model.multi_modal_projector.linear.` | `lm_head.` |
# | transformers 5.23, saved anew | `language_model.model.` | `vision_tower.` | `multi_modal_projector.linear.` | |
#
# In their vision tower an `encoder` holds the layers; ours holds them itself. After a renaming,
# programs that load by name find nothing, and some go on without a word: in one project with a
# training loss of 4.5 in place of 0.5 ([lerobot issue
# 1406](https://github.com/huggingface/lerobot/issues/1406)).
#
# **Write it now**: exercise 14, part 3. A key of any layout comes in, our name goes out, or `None`.
# Two results: `vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias` is our
# `vision_tower.layers.0.mlp.fc1.bias`; and `model.layers.0.mlp.up_proj.weight` is `None`. It is a
# key of Gemma alone, without a vision tower. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
BEGINNINGS = {  # theirs: ours; the longer ones first
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "language_model.",
    "language_model.": "language_model.",
    "lm_head.": "lm_head.",
    "vision_tower.vision_model.encoder.": "vision_tower.",
    "vision_tower.vision_model.": "vision_tower.",
    "vision_tower.encoder.": "vision_tower.",
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.linear.": "multi_modal_projector.",
}


def our_name(key):
    """A key of any known layout -> our name, or None for a key of another model."""
    key = key.removeprefix("model.")
    for theirs, ours in BEGINNINGS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None


# %% [markdown]
# ## Build: strict filling
#
# Now there are named tensors, and places in the model that want them. **Strict** means: exactly one
# tensor for each place, in the right shape. All else is an error with a name in it.
#
# The head is **tied** to the table, and the published files store the table alone. Some programs
# store the head as well. Then it must equal the table.
#
# **Write it now**: exercise 14, part 4. The wanted shapes and a file's tensors come in, by our
# names; exactly the wanted tensors go out, or a `ValueError`. Two results: for one tensor too many,
# the error names it; a stored head that equals the table is accepted, and is not in the result.
# Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
HEAD, TABLE = "lm_head.weight", "language_model.embed_tokens.weight"


def fill(shapes, tensors):
    """Exactly the wanted tensors; ValueError for one missing, unexpected or of a wrong shape."""
    given = dict(tensors)
    head = given.pop(HEAD, None)
    missing, unexpected = shapes.keys() - given.keys(), given.keys() - shapes.keys()
    if missing or unexpected:
        raise ValueError(f"missing: {list(missing)[:3]}, without a place: {list(unexpected)[:3]}")
    for name, shape in shapes.items():
        if given[name].shape != shape:
            raise ValueError(f"{name} must be {shape}, found {tuple(given[name].shape)}")
    if head is not None and not torch.equal(head, given[TABLE]):
        raise ValueError("the stored head is not the table: this model's head is not tied")
    return given


# %%
from minipali.paligemma import PaliGemma

torch.manual_seed(0)
shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
fresh, picture = PaliGemma(model.config).eval(), scenes.examples()["dog_and_car_test_artist"]
print("random: ", repr(generate(fresh, processor, picture, "caption en", max_new_tokens=8)))

# %%
named = {our_name(key): tensor for key, tensor in file.items()}
fresh.load_state_dict(fill(shapes, named))
print("loaded: ", repr(generate(fresh, processor, picture, "caption en")))

# %% [markdown]
# The class from lesson 11 speaks.
#
# ## See it: what wrong loads cost
#
# torch's `load_state_dict` has a switch, `strict=False`: take what fits by name, and be silent
# about the rest. (A wrong shape is still an error.) **None of the five wrong loads below raises an
# error** then. Each model answers 120 questions about new scenes by an artist whose drawings were
# never trained on. "Vision keys not recognised": the loader knows the published layout alone and
# meets the newest, so the tower stays random. "Head left untied": it gets a random matrix of its
# own.

# %%
from minipali.evaluation import answers, evaluation_set, score

torch.manual_seed(1)
right, random = model.state_dict(), PaliGemma(model.config).state_dict()
square, one = (f"vision_tower.layers.{x}.weight" for x in ("2.self_attn.q_proj", "3.mlp.fc1"))
loads = {
    "one square matrix transposed": right | {square: right[square].T},
    "one key missing, left random": right | {one: random[one]},
    "vision keys not recognised": {
        name: (random if name.startswith("vision_tower") else right)[name] for name in right
    },
    "bfloat16 read as float16": misread,
    "head left untied, random": right,
}
models = {"right": model}
for name, numbers in loads.items():
    models[name] = PaliGemma(model.config).eval()
    models[name].load_state_dict(numbers, strict=False)
models["head left untied, random"].language_model.head = lambda x, _: x @ random[TABLE].T

# %%
asked, told, marks, said = evaluation_set(scenes.VALIDATION_ARTIST, 15, seed=0), {}, {}, {}


def examine(name, one):
    told[name] = answers(one, processor, asked)
    scores = [score(q, a) for (_, q), a in zip(asked, told[name], strict=True)]
    marks[name] = torch.tensor(scores)
    said[name] = generate(one, processor, picture, "caption en", max_new_tokens=12)


# %%
for name, one in models.items():
    examine(name, one)
figures.weights.damage(marks, said, right=1)
share = marks["one square matrix transposed"].mean().item()
reveal("of 100 with a matrix transposed", guess_transposed, round(100 * share))

# %%
others = np.roll(np.reshape(told["right"], (8, 15)), 1, axis=1).ravel()  # within each task
by_chance = np.mean([score(q, a) for (_, q), a in zip(asked, others, strict=True)])
print(f"the right model's answers to other pictures: {by_chance:.0%}")

# %% [markdown]
# The last three are easy: one look at an answer, and you know. (Even answers to other pictures are
# sometimes right, as the last line shows.) **The dangerous ones are the first two of the five.**
# The model is a little worse, and you would believe that it is just not very good: what a layer
# adds to the stream is only a part of it (lesson 10). (Two matrices of one small model are no
# rule.)
#
# Strict loading finds the missing key. But the transposed matrix is square, so every name and every
# shape is right. No loader can see it. What can?
#
# ## See it: layer by layer
#
# A second implementation can, with the same weights. Give both the same picture and question, and
# compare every layer's output in the order of computing. The **first** layer that differs has the
# mistake, or the step right before it. All later ones differ because of it. For transformers' model
# the names must be mapped, as `our_name` does.

# %%
from minipali.comparison import compare_layers

# %%
try:
    from transformers import PaliGemmaForConditionalGeneration as Theirs
    from transformers.utils import logging
except ImportError:
    Theirs = None
    print('No transformers here, so nothing is compared: python -m pip install -e ".[dev]"')

# %%
batch = processor(picture, "answer en what is on the left?")
if Theirs is not None:
    logging.disable_progress_bar()
    theirs = Theirs.from_pretrained(SMALL).eval()

# %%
if Theirs is not None:
    transposed = models["one square matrix transposed"]
    curves = {
        "as loaded": compare_layers(model, theirs, batch),
        "one matrix transposed": compare_layers(transposed, theirs, batch),
    }
    for layer in theirs.modules():
        if hasattr(layer, "activation_fn"):  # the MLPs of the vision tower
            layer.activation_fn = torch.nn.GELU()
    curves["exact GELU"] = compare_layers(model, theirs, batch)
    figures.weights.differences(curves, tolerance=1e-5)

# %% [markdown]
# As loaded, all layers agree. Then two mistakes on purpose: the transposed matrix, and the exact
# form of GELU, with `erf`, in place of the tanh form. Where a line leaves the others, there the
# mistake is. For the matrix it is the matrix itself. (`k_proj` and `v_proj` come next and do not
# depend on it, so the line falls back.) For GELU it is `fc2`, the layer *after* the activation,
# because the activation is no layer of its own in our model. This mistake is a ten-thousandth of
# the output: answers would hardly show it. So compare in float32, with a small tolerance, in a row
# without padding.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: why not a pickle
#
# Weights used to come as `.bin`, `.pt` or `.pth` files. These are **pickles**. A pickle does not
# hold objects. It holds *instructions* to build them, and one of the instructions is: call this
# function. We write a pickle by hand. It says: fetch `print` from `builtins`, take this text, call.

# %%
import pickle

found_in_the_web = b"cbuiltins\nprint\n(VI was only opened. But I can run any function.\ntR."
pickle.loads(found_in_the_web)

# %% [markdown]
# We only opened it. In place of `print` it could have named a function that reads your passwords or
# deletes your files. **Never open a pickle that you did not write yourself.** (Since version 2.6
# `torch.load` refuses most functions unless you say `weights_only=False`. Do not say it.) A
# safetensors file holds a JSON text and numbers. There is nothing in it that could run. The package
# reads nothing else.
#
# Why bfloat16 in training? In float16 a small gradient becomes 0 and a large one infinite; bfloat16
# has the range for both.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: several files
#
# Large models are cut into **shards**, so that no file is larger than a few gigabytes. Beside them
# lies an **index**: a JSON file with a map from each key to its shard. We cut our small model into
# three, as the published one is, and read it back.
#
# Our reader takes a whole file into memory and then copies it. The package **maps** it: the
# operating system makes the file look like memory, and reads a page of it when somebody looks
# there. So a model of many gigabytes is "loaded" in a moment. That works because the numbers lie in
# the file exactly as torch wants them.

# %%
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from minipali.saving import write_index

beside = tempfile.TemporaryDirectory()
folder, sizes = Path(beside.name), {key: tensor.nbytes for key, tensor in file.items()}
for name, keys in write_index(folder, sizes, limit=4_000_000).items():
    save_file({key: file[key] for key in keys}, folder / name)
    print(name, len(keys), "tensors")

# %%
index = json.loads((folder / "model.safetensors.index.json").read_text())
names = sorted(set(index["weight_map"].values()))
shards = {name: read_tensors((folder / name).read_bytes()) for name in names}
whole = {key: shards[name][key] for key, name in index["weight_map"].items()}
print(index["metadata"], "first:", *list(index["weight_map"].items())[0])
print("as in one file:", all(torch.equal(whole[key], file[key]) for key in file), len(whole))

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: PaliGemma 2 in PaliGemma 1
#
# There is a well-known misuse of `strict=False`. The decoder of **PaliGemma 2** has other layers,
# with four norms in place of two, and code that was written for PaliGemma 1 "loads" it. Then it
# prints blanks or nonsense.
#
# We have no small PaliGemma 2, so we build a stand-in: our trained weights in layers of its form. A
# norm comes before each part *and after it*. Watch the name `post_attention_layernorm`. In Gemma 1
# it norms what goes into the MLP. In Gemma 2 it norms what comes out of attention, and the other
# job is called `pre_feedforward_layernorm`. The new norms get one factor, 3, with which the
# stand-in works well enough.

# %%
import copy

from torch import nn

from minipali.norms import RMSNorm


class Layer2(nn.Module):
    """A trained layer of ours in the form of Gemma 2."""

    def __init__(self, old):
        super().__init__()
        self.input_layernorm, self.self_attn, self.mlp = old.input_layernorm, old.self_attn, old.mlp
        self.pre_feedforward_layernorm = old.post_attention_layernorm
        for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
            setattr(self, name, RMSNorm(128, 1e-6))
            nn.init.constant_(getattr(self, name).weight, 2.0)  # the factor is 1 + 2

    def forward(self, x, angles, mask, cache=None):
        found = self.self_attn(self.input_layernorm(x), angles, mask, cache)
        x = x + self.post_attention_layernorm(found)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


second = copy.deepcopy(model)
second.language_model.layers = nn.ModuleList(map(Layer2, second.language_model.layers))

# %%
wrong = PaliGemma(model.config).eval()
result = wrong.load_state_dict(second.state_dict(), strict=False)
print(len(result.missing_keys), "missing,", len(result.unexpected_keys), "unexpected, no error")
for name, one in (("as PaliGemma 2", second), ("in PaliGemma 1", wrong)):
    examine(name, one)
    print(f"{name}: {marks[name].mean():.0%} right, says {said[name]!r}")

# %% [markdown]
# Nothing is missing, because all the old names exist. Eight keys were left over, and nobody asks
# why. In each layer one norm has another's numbers. Our `fill` would have stopped at these eight
# keys. (The real PaliGemma 2 has more differences. Its sizes differ too, but code takes its sizes
# from the config that lies beside the weights, so all shapes fit.)
#
# %% [markdown]
# ## Check
#
# Our reader against the safetensors library; our bfloat16 against torch, for all 65,536 patterns;
# our names in all four layouts; and the filled model against `load`.

# %% tags=["nbval-check-output"]
import safetensors.torch as library

theirs_read = library.load(data)
print(
    "reader:  ", all(torch.equal(file[key], x) for key, x in theirs_read.items()), len(theirs_read)
)
empty = library.save({"a": torch.zeros(0, 3), "b": torch.ones(2)})
print("empty:   ", [tuple(x.shape) for x in read_tensors(empty).values()])
patterns = torch.arange(-(2**15), 2**15).to(torch.int16)
by_torch = patterns.view(torch.bfloat16).float()
print("bfloat16:", torch.equal(bfloat16_to_float(patterns).nan_to_num(7), by_torch.nan_to_num(7)))
for text, vision, rest in (("language_model.model.", "vision_tower.vision_model.", ""),
                           ("model.language_model.", "model.vision_tower.vision_model.", "model."),
                           ("model.language_model.", "model.vision_tower.", "model."),
                           ("language_model.model.", "vision_tower.", "")):  # fmt: skip
    keys = [key.replace("language_model.model.", text).replace("vision_tower.vision_model.", vision)
            .replace("multi_modal", f"{rest}multi_modal") for key in file]  # fmt: skip
    print("names:   ", {our_name(key) for key in keys} == shapes.keys(), keys[0])
print("filled:  ", all(torch.equal(x, right[name]) for name, x in fresh.state_dict().items()))

# %% [markdown]
# ## In the real model
#
# PaliGemma 3B on disk, at each of its three picture sizes. The last two columns are for bfloat16:
# what a head stored a second time would add, and what is read from memory for every new token.

# %% tags=["nbval-check-output"]
from minipali.config import preset


def sizes_of(config):
    """Tensors, all parameters, parameters of the table, and of decoder and table together."""
    with torch.device("meta"):  # shapes without numbers
        skeleton = PaliGemma(config)
    each = {name: x.numel() for name, x in skeleton.state_dict().items()}
    decoder = sum(n for name, n in each.items() if name.startswith("language_model"))
    return len(each), sum(each.values()), each[TABLE], decoder


for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    tensors, whole, table, decoder = sizes_of(preset(name))
    print(
        f"{name:16} {tensors} tensors, {whole:13,} numbers: {4 * whole / 1e9:6.3f} GB in float32,"
        f" {2 * whole / 1e9:5.3f} in bfloat16; head {2 * table / 1e9:.3f}, a token {2 * decoder / 1e9:.3f}"
    )

# %% [markdown]
# The three sizes differ in nothing but the table of positions.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the published model
#
# If you have the weights, name them and run this notebook again:
#
# ```
# MINIPALI_3B=google/paligemma-3b-pt-224@bfloat16 jupyter lab        (or a folder)
# ```
#
# The published files are in float32; branches named `bfloat16` and `float16` lie beside them. They
# belong to Google, and you may download them after you have accepted their licence on the model's
# page. Without them the next two cells say what they would do. (No licence yet? `python -m
# minipali.synthetic FOLDER` writes a model of the real size with random numbers. It talks nonsense,
# but it is as heavy.)

# %% tags=["3b"]
import os
import time

from minipali.weights import accounts

where = os.environ.get("MINIPALI_3B")  # a folder, or an id on the Hugging Face hub
if where is None:
    tensors, whole, _, decoder = sizes_of(preset("paligemma-3b-224"))
    print(
        f"MINIPALI_3B is not set. This cell would map {tensors} tensors, {2 * whole / 1e9:.2f} GB in"
    )
    print(
        f"bfloat16, and ask about a picture; {2 * decoder / 1e9:.2f} GB are read for each new token."
    )
else:
    torch.set_num_threads(os.cpu_count() or 1)  # here there is work for all
    clock = time.perf_counter()
    big, its = load(where)
    print(f"loaded in {time.perf_counter() - clock:.1f} s:", accounts(its.tokenizer_file.parent))
    clock = time.perf_counter()
    said = generate(big, its, picture, "caption en", max_new_tokens=8)
    print(f"{said!r} after {time.perf_counter() - clock:.1f} s")

# %% tags=["3b"]
if where is None or Theirs is None:
    v, t = preset("paligemma-3b-224").vision, preset("paligemma-3b-224").text
    print(
        f"This cell would open the same files with transformers, run {v.num_hidden_layers} vision"
    )
    print(
        f"layers and {t.num_hidden_layers} decoder layers twice, and name the first that differs."
    )
else:
    reference = Theirs.from_pretrained(its.tokenizer_file.parent, dtype=torch.bfloat16).eval()
    found = compare_layers(big, reference, its(picture, "caption en"))
    furthest = max(found, key=found.get)
    print(f"{len(found)} layers, the furthest is {furthest}: {found[furthest]:.1%} apart")
    print("first beyond 5 %:", next((name for name, far in found.items() if far > 0.05), None))

# %% [markdown]
# In bfloat16 the two need not agree to the last digit, because sums in another order are rounded
# otherwise. So this comparison allows 5 %. It finds a wrong matrix, but no wrong GELU. How long
# loading and a token take beside transformers is measured in [benchmarks](../benchmarks/README.md).
# With the published `paligemma-3b-pt-224` there is one more test: the tests of transformers show it
# a photograph of a cow, with an empty prompt, and expect "cow on the beach".
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/14_weights.ipynb). The packaged file goes through
# your code into a fresh model, which answers. It has one piece more that no cell of this lesson
# shows.
#
# ## Take away
#
# - A safetensors file is a length, a JSON header, and numbers. It can run nothing.
# - A loader accounts for every key: used, tied, without a place, missing. `strict=False` is a
#   promise that you will look yourself.
# - A small mistake in the weights can hide from every look at the answers. Compare with a second
#   implementation, layer by layer, and find the first layer that differs.
#
# **Self-test**
#
# <details><summary>A loader reports: 603 keys, 603 used, none missing. What can still be wrong?</summary>
#
# The numbers: a transposed square matrix, bfloat16 read as float16, two tensors of one shape
# exchanged, a download of other weights of the same sizes. Names and shapes are all that it
# compared.
# </details>
#
# <details><summary>Which numbers survive the way float32, bfloat16, float32 unchanged?</summary>
#
# Those whose last 16 bits are 0. All others are rounded to 8 significant binary digits, by at most
# 1 part in 256.
# </details>
#
# <details><summary>A file has <code>lm_head.weight</code> and no <code>embed_tokens.weight</code>. The head is
# tied. Could you load it?</summary>
#
# Yes: the two are one matrix, so the head can fill the table. Ours refuses, because the table is
# missing, and says so. Nobody is hurt by an error with a name in it.
# </details>
#
# **Sources.** The safetensors format: the README of huggingface/safetensors. What a pickle is made
# of: the standard library's `pickletools`. bfloat16 in training: Kalamkar et al. 2019, arXiv
# 1905.12322. PaliGemma: Beyer et al. 2024, arXiv 2407.07726.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the code ends with the last `forward`, at `return outputs` | so far it is a form without content: a fresh model says what you saw above. Loading weights is the other half, and the notes have nothing about it |
# | the projection computes Y = XW + b | torch stores W as (out, in) and computes X W^T + b, and so do the files; JAX, in which PaliGemma was trained, stores (in, out), and whoever converts must transpose |
# | attributes are called this or that (the number of heads is once `nembed_dim`) | numbers may have any name; but the names of *layers* are the keys of the file: call `q_proj` something else, and nothing fills it |
# | the decoder has 6 layers | count the keys: `language_model.model.layers.0` to `.17` in the published file |
# | logits come from `lm_head` | there is no such key in the published files: the head is the table |
