# %% [markdown]
# # Exercise 14 · Weights
#
# You write the way from a file to a model: read the bytes, turn bfloat16 into float32, give every key
# our name, and fill the model so that nothing is missing and nothing is left over. At the end the
# packaged weights go through your code into a fresh model, and it answers.
#
# The lesson is [notebooks/14_weights.ipynb](../notebooks/14_weights.ipynb). Time: 40 minutes.
# Names inside your functions are yours; the order of the arguments is not.

# %%
import json

import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Read a file
#
# The bytes of a safetensors file: 8 bytes with the length of the header (a whole number, its last byte
# first), the header in JSON, then the numbers. For each tensor the header has `dtype` (`F32`, `BF16` or
# `F16`), `shape`, and `data_offsets`: the first byte and the byte after the last, counted from the end of
# the header. A name `__metadata__` is no tensor. Keep the kind of number that the file has.
#
# Write it without the safetensors library.


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
        flat = torch.frombuffer(bytearray(numbers[start:end]), dtype=kinds[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors
    ### END SOLUTION


# %% [markdown]
# The check asks for one tensor at a time:


# %%
def one_tensor(data, name):
    return read_tensors(data)[name]


check("read_tensors", one_tensor)

# %% [markdown]
# Stuck? Run `hint("read_tensors", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. bfloat16 by hand
#
# You get the 16 bits of each number as a whole number (`int16`), and give the number itself. Do not use
# `torch.bfloat16`.


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
# is, with one exception: in the vision tower their layers lie in `encoder.`, and ours right in the tower.
# A key that begins with none of these belongs to another model: `None`.


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
def name_in_words(key):
    return our_name(key) or "no place"


check("our_name", name_in_words)

# %% [markdown]
# ## 4. Fill, strictly
#
# `shapes` says which weights the model wants. `tensors` is what a file had, under our names. Return a
# dict with exactly the wanted ones. Raise `ValueError`, with the guilty name in it,
#
# - if one is missing,
# - if there is one that nobody wants,
# - if one has another shape than wanted.
#
# The head is tied: the model has none of its own. If the file stores one, it must equal the table, number
# by number, else raise `ValueError`. It is never part of the result. Leave `tensors` as it is.

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


# %% [markdown]
# The check compares what your function does, in words:


# %%
def fill_in_words(shapes, tensors):
    try:
        filled = fill(shapes, tensors)
    except ValueError:
        return "ValueError"
    words = []
    for name in sorted(filled):
        same = name in tensors and torch.equal(filled[name], tensors[name])
        words.append(f"{name} {'as given' if same else 'not as given'}")
    return ", ".join(words)


check("fill", fill_in_words)

# %% [markdown]
# ## 5. A model from your own hands
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


try:
    mine, named = load_by_hand()
except NotImplementedError:
    print("Not all of your functions are written yet, so the packaged model answers.")
    mine, named = model, model.state_dict()

# %% [markdown]
# It answers about pictures by an artist whose drawings the model never saw in training. The answers must
# be those of the packaged model.

# %%
for name in ("dog_and_car_test_artist", "penguin_test_artist"):
    for prompt in ("caption en", "answer en is there a dog?", "detect dog"):
        expected, found = (generate(m, processor, examples()[name], prompt) for m in (model, mine))
        print(f"{prompt:28} {found:40}", "" if found == expected else f"package: {expected}")

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
from minipali.swap import swap

pieces = my_pieces(mine, last=12)
print(len(pieces), "pieces of yours:", ", ".join(pieces) or "none yet")
whole = swap(mine, **pieces) if pieces else mine
print(generate(whole, processor, examples()["dog_and_car_test_artist"], "caption en"))

# %% [markdown]
# ## Go on
#
# - Transpose one square matrix at a time (`x.shape[0] == x.shape[1]`) and ask ten questions. Which
#   layers can you break without noticing?
# - Save what you read as bfloat16 (`safetensors.torch.save_file`), read it with your reader, and load it. How
#   many bytes does it have? Which answers change?
# - Write a reader that does not read the numbers of tensors nobody asks for: open the file, `seek` to
#   the offset, `read` only those bytes.
