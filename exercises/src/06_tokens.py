# %% [markdown]
# # Exercise 06 · The processor
#
# You write the three functions that stand between a question and the model: one makes pixels of a
# picture, one makes ids of a prompt, one makes rows equally long. The fourth stands in no lesson: it
# packs several short rows into one. At the end the trained model answers what your processor asks, and
# reads three questions in one row.
#
# The lesson is [notebooks/06_tokens.ipynb](../notebooks/06_tokens.ipynb). Time: 65 minutes, 25 of them
# for the fourth. Names inside your functions are yours; the order of the arguments is not. No function
# may change what it gets.

# %%
import numpy as np
import torch
from PIL import Image

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. A picture
#
# You get a Pillow picture of any size and of any of these kinds: colour (RGB), grey (L), both with
# transparency (RGBA, LA), or with a palette (P), which may call one of its colours transparent. All
# have 8 bits. (16 bits, a transparent colour in RGB or L, and pictures that a camera noted as lying on
# their side, are not your task here.) Three steps, in this order:
#
# 1. The picture becomes RGB on white. A pixel that is half transparent is laid on the white: it keeps
#    half of its colour, and the other half is white, rounded to the nearest byte as Pillow does it.
# 2. The whole picture is resized to a square, with Pillow's bicubic filter, which rounds to bytes
#    again. The check wants these bytes exactly.
# 3. The numbers 0 to 255 become -1 to 1. (Here the last digit of a float may differ.)


# %%
def to_pixels(picture, side):
    """The pixels that the model sees.

    picture: a PIL picture; side: width and height that the model takes
    returns: float32 (3, side, side), that is (c, y, x), from -1 to 1
    """
    ### BEGIN SOLUTION
    white = Image.new("RGBA", picture.size, "white")
    rgb = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    square = rgb.resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)  # (c, y, x)
    return (pixels.float() / 255 - 0.5) / 0.5
    ### END SOLUTION


# %%
check("to_pixels", to_pixels)

# %% [markdown]
# Stuck? Run `hint("to_pixels", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. A prompt
#
# The row of a question: the places of the picture, bos, the prompt, the newline. `encode` is a function
# that is ready to use: it takes a text and returns a new list of ids, without bos and without a newline
# of its own. The prompt stays as it is, spaces and capitals too, and gets one newline more, whatever it
# ends with. A newline never joins its neighbours, so `encode(prompt + "\n")` and
# `encode(prompt) + encode("\n")` are the same ids: take either. Do not write any id by heart. They
# differ from model to model, and in the check.


# %%
def prompt_ids(prompt, encode, image_token, num_patches, bos):
    """One row of ids.

    prompt: text; encode: text -> list of ids; image_token, bos: ids; num_patches: how many places
    returns: a list of ids
    """
    ### BEGIN SOLUTION
    return [image_token] * num_patches + [bos] + encode(prompt + "\n")
    ### END SOLUTION


# %%
check("prompt_ids", prompt_ids)

# %% [markdown]
# ## 3. A batch
#
# Fill the rows up to the longest one, and make the mask: 1 where a token is real, 0 where you filled
# up. The filler can be any number, also one that occurs in a row. A row may be empty, but not all of
# them are. Leave the lists that you get as they are: append nothing to them.


# %%
def pad_rows(rows, filler, side):
    """Rows of unequal length as one tensor.

    rows: a list of b lists of ids, b at least 1; filler: an id
    side: "left" or "right", where the filler goes
    returns: ids (b, longest) and mask (b, longest), both int64
    """
    ### BEGIN SOLUTION
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        missing = longest - len(row)
        before, after = (missing, 0) if side == "left" else (0, missing)
        ids.append([filler] * before + row + [filler] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return torch.tensor(ids), torch.tensor(mask)
    ### END SOLUTION


# %%
check("pad_rows", pad_rows)

# %% [markdown]
# ## 4. Several rows in one
#
# Padding is work for nothing: the model computes at each place, real or not. In training there is a
# way out. Put short rows behind one another into one long row, until it is full. This is called
# **packing**. Two things must go along, or the rows would be one text: where each token stands in its
# *own* row, and whose it is.
#
# Take the rows in their order. Each goes, whole, into the **first** packed row that still has room for
# all of it, right behind what is there. A row that just fills it up has room. If none has room, a new
# packed row is begun behind the others. Nothing is sorted, and no row is cut.
#
# By hand first. Rows of 5, 4 and 3 tokens, `length` 8: which packed rows? The first row leaves 3 places,
# so the second begins a new one, and the third goes back to the first: 5 + 3, and 4. Now rows of 3 and 2
# tokens, `length` 6, filler 0:
#
#     ids        a a a b b 0
#     positions  1 2 3 1 2 0
#     owners     0 0 0 1 1 -1


# %%
def pack_rows(rows, length, filler):
    """Put each row, whole, into the first packed row that has room for it.

    rows: a list of lists of ids, at least one; none is empty or longer than length
    length: how many places a packed row has; filler: an id, for the free places at its end
    returns: ids, positions, owners, each (p, length) in int64; p: how many packed rows there are
    positions: 1, 2, 3, ... within the token's own row, 0 at free places
    owners: the number of the token's row in `rows`, from 0; -1 at free places
    """
    ### BEGIN SOLUTION
    packed, taken = [], []  # numbers of rows, and how many places they take
    for number, row in enumerate(rows):
        for i in range(len(packed)):
            if taken[i] + len(row) <= length:
                break
        else:
            i = len(packed)
            packed.append([])
            taken.append(0)
        packed[i].append(number)
        taken[i] += len(row)
    ids, positions, owners = [], [], []
    for numbers, full in zip(packed, taken, strict=True):
        free = length - full
        ids.append([token for i in numbers for token in rows[i]] + [filler] * free)
        positions.append([j + 1 for i in numbers for j in range(len(rows[i]))] + [0] * free)
        owners.append([i for i in numbers for _ in rows[i]] + [-1] * free)
    return torch.tensor(ids), torch.tensor(positions), torch.tensor(owners)
    ### END SOLUTION


# %%
check("pack_rows", pack_rows)

# %% [markdown]
# ## 5. Before the model
#
# `swap` makes a copy of the processor in which your first three functions do the work. It prepares
# pictures and questions with both, and compares every tensor.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(processor, to_pixels=to_pixels, prompt_ids=prompt_ids, pad_rows=pad_rows)

# %% [markdown]
# Now ask about a picture by an artist whose drawings the model never saw in training. All three
# questions go in at once, so the short ones are padded. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
prompts = ["caption en", "answer en what is on the left?", "detect dog"]
for one in (processor, mine):
    for prompt, answer in zip(prompts, generate(model, one, [picture] * 3, prompts), strict=True):
        print(f"{whose(one):8} {prompt:32} {answer}")

# %% [markdown]
# And now all three questions in **one** row. From your owners comes a mask: a token may look only at
# tokens of the same owner. Each picture's 36 vectors go to their places, and the decoder gets your
# positions. For each question we look at the first token of the answer, and at how far the numbers
# behind it (the logits) are from those of the question asked alone. Lesson 11 builds what is used here.

# %%
from minipali.paligemma import merge

rows = [processor.prompt_ids(prompt) for prompt in prompts]


@torch.inference_mode()
def ask_packed(ids, positions, owners):
    features = model.image_features(processor.pixel_values([picture] * len(rows)))  # (3, 36, d)
    x = model.language_model.embed(ids)
    x = merge(x, features.flatten(0, 1)[None], ids == model.config.image_token_id)
    mask = (owners[:, :, None] == owners[:, None, :])[:, None]
    logits = model.language_model.logits(model.language_model(x, positions, mask))
    print(f"padded: {len(rows) * max(map(len, rows))} places, packed: {ids.numel()}")
    for number, prompt in enumerate(prompts):
        packed, alone = logits[owners == number][-1], model(**processor(picture, prompt))[0, -1]
        token, apart = processor.token(int(packed.argmax())), (packed - alone).abs().max()
        print(f"{prompt:32} begins with {token:9} apart: {apart:.5f}")


# %%
with trying("three questions in one row"):
    ask_packed(*pack_rows(rows, sum(map(len, rows)), model.config.pad_token_id))

# %% [markdown]
# ## Go on
#
# - Write a `prompt_ids` that puts bos before the image tokens, and `swap` it in. What does `swap` say?
#   Ask the three questions again. What changes, and by how much?
#   <details><summary>Answer</summary>`swap` names the first place that differs: there is bos where an image
#   token belongs. On our picture the caption says *a car and a car*, the thing on the left becomes a car,
#   and the box is another one. It is one token among 46, but the model never met it there.</details>
# - Write a `to_pixels` that cuts out the middle square. For which pictures is that better, and which
#   questions can no longer be answered?
#   <details><summary>Answer</summary>Better for one thing in the middle of a wide picture: it keeps its
#   shape and is drawn larger. What lies outside the square is gone: it cannot be named, counted or
#   found, and a box is told in the square, not in the picture.</details>
# - In `ask_packed`, let the mask show every real token to every other: `(owners >= 0)[:, None, None]`.
#   What changes? Then put the mask back and let the positions run on:
#   `torch.arange(1, ids.shape[1] + 1)[None]`. Why does so little change?
#   <details><summary>Answer</summary>Without the right mask the three questions are one text with three
#   pictures: all logits are far off, and the caption begins with a place, as if a box were asked for.
#   Positions that run on change nothing but rounding, because this decoder sees only how far two tokens
#   are apart (lesson 07), and inside a row that stays as it was. With a table of positions, as in the
#   vision tower (lesson 01), each token would get another vector.</details>
# - Ask about a picture of your own: `generate(model, mine, Image.open("my.jpg"), "caption en")`. Look
#   at what the model sees, `to_pixels(picture, 72)`, before you judge the answer.
#   <details><summary>Answer</summary>The small model knows 24 kinds of things as its artists draw them. It
#   answers about a photograph, too, and cannot tell you that it is guessing. The 72 x 72 pixels often show
#   why.</details>
