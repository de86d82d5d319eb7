# %% [markdown]
# # Exercise 14 · Weights
#
# You write the way from a file to a model: read the bytes, turn bfloat16 into float32, give every key
# our name, and fill the model so that nothing is missing and nothing is left over. The fifth piece stands
# in no lesson: one tensor out of many files, without reading the rest. At the end the packaged weights go
# through your code into a fresh model, and it answers.
#
# The lesson is [notebooks/14_weights.ipynb](../notebooks/14_weights.ipynb). Time: 85 minutes, 20 of them
# for part 5. Names inside your functions are yours; the order of the arguments is not. No function changes
# a tensor or a dict that it is given.

# %%
import json

import torch

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. Read a file
#
# The bytes of a safetensors file: 8 bytes with the length of the header (a whole number, its last byte
# first), the header in JSON, then the numbers. For each tensor the header has `dtype` (`F32`, `BF16` or
# `F16`), `shape`, and `data_offsets`: the first byte and the byte after the last, counted from the end of
# the header. A name `__metadata__`, which need not be there, is no tensor. Keep the kind of number that the
# file has. The header's order means nothing. A tensor may be a single number, shape `[]`, or have no numbers
# at all, such as shape `[0, 3]`.
#
# Write it without the safetensors library. (The check refuses its `load`, and does not see the rest of it.)
#
# By hand: a file begins with the bytes 0x58 and seven zeros, so its header is 88 bytes long. An entry says
# `{"dtype": "F16", "shape": [2, 2], "data_offsets": [12, 20]}`. Its 8 bytes are data[108:116].


# %%
def read_tensors(data):
    """Read a safetensors file.

    data: bytes
    returns: dict of name -> tensor, float32, bfloat16 or float16 as in the file
    """
    ### BEGIN SOLUTION
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    length = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        kind, shape = kinds[entry["dtype"]], entry["shape"]
        own = bytearray(numbers[start:end])
        # An empty buffer is refused by torch.
        flat = torch.frombuffer(own, dtype=kind) if own else torch.empty(0, dtype=kind)
        tensors[name] = flat.reshape(shape)
    return tensors
    ### END SOLUTION


# %%
check("read_tensors", read_tensors)

# %% [markdown]
# Stuck? Run `hint("read_tensors", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. bfloat16 by hand
#
# You get the 16 bits of each number as a whole number (`int16`), and give the number itself, exactly: also
# for 0 (which keeps its sign), for the smallest numbers of all (exponent 0), for infinity and for nan.
# `torch.bfloat16` is refused: it does the whole work. `view` with another kind is not.
#
# By hand: 0x3F80 is 0 01111111 0000000, sign, exponent, fraction. 1 · 2^(127 - 127) = 1. And 0xC040 is
# 1 10000000 1000000, which is -(1 + 64/128) · 2^(128 - 127) = -3.


# %%
def bfloat16_to_float(bits):
    """The numbers that these bit patterns mean.

    bits: int16, any shape
    returns: float32 of the same shape
    """
    ### BEGIN SOLUTION
    return (bits.to(torch.int32) << 16).view(torch.float32)
    ### END SOLUTION


# %%
check("bfloat16_to_float", bfloat16_to_float)

# %% [markdown]
# ## 3. Names
#
# Four layouts of keys, each for PaliGemma and nothing else:
#
# | | text | picture | projector | head, if stored |
# |---|---|---|---|---|
# | published | `language_model.model.` | `vision_tower.vision_model.` | `multi_modal_projector.linear.` | `language_model.lm_head.` |
# | later | `model.language_model.` | `model.vision_tower.vision_model.` | `model.multi_modal_projector.linear.` | `lm_head.` |
# | newest | `model.language_model.` | `model.vision_tower.` | `model.multi_modal_projector.linear.` | `lm_head.` |
# | newest, saved | `language_model.model.` | `vision_tower.` | `multi_modal_projector.linear.` | |
#
# Ours: `language_model.`, `vision_tower.`, `multi_modal_projector.`, `lm_head.`. What follows stays as it
# is, with one exception: in the vision tower their layers lie in `encoder.`, and ours right in the tower. So
# an `encoder.` that comes right after one of the table's beginnings of the vision tower goes, and no other.
# Where two beginnings fit, the longer one counts. A key that begins with none of them, each with its dot,
# belongs to another model: return `None`, and raise nothing.
#
# Two kinds of keys are left to you, since no file has them: our own names where the table begins otherwise
# (`language_model.norm.weight`, `multi_modal_projector.bias`), and mixtures of two rows
# (`model.lm_head.weight`, `model.language_model.lm_head.weight`).
#
# By hand: `model.vision_tower.encoder.layers.3.mlp.fc2.bias` becomes `vision_tower.layers.3.mlp.fc2.bias`.
# `ema.language_model.model.norm.weight` becomes `None`, though the words are in it.


# %%
def our_name(key):
    """Our name for a key of any of the four layouts.

    key: text, such as "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    returns: text, such as "vision_tower.layers.0.mlp.fc1.bias", or None
    """
    ### BEGIN SOLUTION
    beginnings = {
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
    key = key.removeprefix("model.")
    for theirs, ours in beginnings.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None
    ### END SOLUTION


# %%
check("our_name", our_name)

# %% [markdown]
# ## 4. Fill, strictly
#
# `shapes` says which weights the model wants. `tensors` is what a file had, under our names. Return a
# dict with exactly the wanted ones. Raise `ValueError`, with at least one guilty name in it,
#
# - if one is missing,
# - if there is one that nobody wants,
# - if one has another shape than wanted.
#
# The head is tied: the model has none of its own. If the file stores one, it must equal the table, number
# by number, else raise `ValueError` with the name of one of the two. It is never part of the result. Another
# name of a head, such as `lm_head.bias`, is one that nobody wants. Leave `tensors` as it is. (The table is
# always in `shapes`, though it may be missing in `tensors`; the head is never in `shapes`. Both have the same
# kind of number, and no nan.)

# %%
HEAD, TABLE = "lm_head.weight", "language_model.embed_tokens.weight"


def fill(shapes, tensors):
    """Exactly the wanted weights.

    shapes: dict of name -> tuple; tensors: dict of name -> tensor
    returns: dict of name -> tensor; or raises ValueError
    """
    ### BEGIN SOLUTION
    given = dict(tensors)
    head = given.pop(HEAD, None)
    if missing := shapes.keys() - given.keys():
        raise ValueError(f"{len(missing)} missing, such as {min(missing)}")
    if unexpected := given.keys() - shapes.keys():
        raise ValueError(f"{len(unexpected)} without a place, such as {min(map(str, unexpected))}")
    for name, shape in shapes.items():
        if tuple(given[name].shape) != tuple(shape):
            raise ValueError(f"{name} must be {shape}, found {tuple(given[name].shape)}")
    if head is not None and not torch.equal(head, given[TABLE]):
        raise ValueError(f"{HEAD} must equal {TABLE}, but it differs")
    return given
    ### END SOLUTION


# %%
check("fill", fill)

# %% [markdown]
# ## 5. One tensor, from far away
#
# Large models lie in several files, *shards*, and a file `model.safetensors.index.json` says which name is in
# which. Suppose the files are on a server, and you want one tensor. `read(file, start, end)` gives the bytes
# from `start` up to `end`, which is not among them, as a slice does. Servers can do that, and disks too.
#
# Read what you need and nothing else: the length of one header, this header, and the bytes of this tensor.
# No byte twice, and nothing kept for the next call, which may ask another server. (The check counts bytes,
# and not how often you call `read`. To read none, from a place to the same place, is allowed.) The files are
# built as in part 1, and all that holds there holds here: for single numbers, for tensors without numbers,
# and for the kinds.
#
# By hand: the header is 88 bytes long, and the tensor has the offsets 12 and 20. You read 0 to 8, 8 to 96,
# and 108 to 116: 104 bytes in all, however large the file is.


# %%
def fetch_tensor(weight_map, read, name):
    """One tensor of a sharded checkpoint.

    weight_map: dict of name -> file; read: read(file, start, end) gives bytes; name: of the tensor
    returns: the tensor, float32, bfloat16 or float16 as in the file
    """
    ### BEGIN SOLUTION
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    file = weight_map[name]
    length = int.from_bytes(read(file, 0, 8), "little")
    entry = json.loads(read(file, 8, 8 + length))[name]
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    kind, shape = kinds[entry["dtype"]], entry["shape"]
    if start == end:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(read(file, start, end)), dtype=kind).reshape(shape)
    ### END SOLUTION


# %%
check("fetch_tensor", fetch_tensor)

# %% [markdown]
# ## 6. A model from your own hands
#
# Now the packaged file, 10 MB. Your reader opens it, your names find a place for every key, and your
# `fill` hands the numbers to a fresh model, which is random until then.

# %%
from minipali import generate, load
from minipali.paligemma import PaliGemma
from minipali.scenes import examples
from minipali.weights import SMALL

model, processor = load("small")
shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def load_by_hand():
    """A model filled by your four functions, and what they read, by our names."""
    file = read_tensors((SMALL / "model.safetensors").read_bytes())
    named = {our_name(key): tensor for key, tensor in file.items()}
    fresh = PaliGemma(model.config).eval()
    fresh.load_state_dict(fill(shapes, named))
    print(len(file), "keys,", len(named.keys() & shapes.keys()), "of them have a place")
    return fresh, named


mine, named = model, model.state_dict()  # the packaged one, until yours can be filled
with trying("a model filled by your functions"):
    mine, named = load_by_hand()

# %% [markdown]
# It answers about pictures by an artist whose drawings the model never saw in training. The answers must
# be those of the packaged model.

# %%
for name in ("dog_and_car_test_artist", "penguin_test_artist"):
    for prompt in ("caption en", "answer en is there a dog?", "detect dog"):
        expected, found = (generate(m, processor, examples()[name], prompt) for m in (model, mine))
        print(f"{prompt:28} {found:40}", "" if found == expected else f"package: {expected}")

# %% [markdown]
# And one tensor of the packaged file alone. Whoever only wants to see one row of the positions need not load
# a model.

# %%
taken = 0


def read(file, start, end):
    """Bytes of a file in the packaged folder, counted."""
    global taken
    with open(SMALL / file, "rb") as stream:
        stream.seek(start)
        taken += end - start
        return stream.read(end - start)


key, file = "vision_tower.vision_model.embeddings.position_embedding.weight", "model.safetensors"
with trying("one tensor of the file"):
    one = fetch_tensor({key: file}, read, key)
    same = torch.equal(one, model.vision_tower.embeddings.position_embedding.weight)
    print(
        f"{tuple(one.shape)}: {taken:,} of {(SMALL / file).stat().st_size:,} bytes, equal: {same}"
    )

# %% [markdown]
# Does your strictness hold? Three damaged files. Read what your errors say: would you know what to do?

# %%
some = "vision_tower.layers.0.mlp.fc1.weight"
extra = "language_model.layers.0.pre_feedforward_layernorm.weight"
damaged = {
    "one tensor missing": {name: tensor for name, tensor in named.items() if name != some},
    "one transposed": {**named, some: named[some].T},
    "a norm of PaliGemma 2": {**named, extra: torch.zeros(128)},
}
for what, tensors in damaged.items():
    try:
        fill(shapes, tensors)
        print(f"{what:22} accepted!")
    except (ValueError, NotImplementedError) as error:
        print(f"{what:22} {error}")

# %% [markdown]
# And now all that you have written for this model at once. `my_pieces` collects what passes its check in
# your exercises 01 to 12, as they are saved, and `swap` puts it into the model that you have just filled.

# %%
from minipali.progress import my_pieces
from minipali.swap import swap, whose

pieces = my_pieces(mine, last=12)
print(len(pieces), "pieces of yours:", ", ".join(pieces) or "none yet")
whole = swap(mine, **pieces) if pieces else mine
answer = generate(whole, processor, examples()["dog_and_car_test_artist"], "caption en")
print(f"{whose(whole)}: {answer}")

# %% [markdown]
# ## Go on
#
# - Transpose one square matrix at a time (`x.shape[0] == x.shape[1]`) and ask ten questions. Which
#   layers can you break without noticing?
#   <details><summary>Answer</summary>Single matrices of late layers often change no answer, or one in ten.
#   Their shapes fit, so `fill` cannot help. That is why lesson 14 compares with another implementation layer
#   by layer, with numbers and not with answers.</details>
# - Save what you read as bfloat16 (`safetensors.torch.save_file`), read it with your reader, and load it. How
#   many bytes does it have? Which answers change?
#   <details><summary>Answer</summary>Nearly half: 2 bytes a number in place of 4, and the header stays. Most
#   answers stay, since 8 bits of precision are enough where one token is clearly ahead. Look at boxes: their
#   tokens are neighbours, and small changes show there first.</details>
# - How many bytes does `fetch_tensor` read for one norm of the published model (three files of about 5, 5 and
#   1 GB)? What takes longer, the bytes or the three questions?
#   <details><summary>Answer</summary>A header of a few ten thousand bytes, and 2,048 numbers. From a server
#   each question takes its way there and back, so three in a row take longer than the bytes. Tools ask for
#   the first 100 kB at once: more bytes, one question less.</details>
