# %% [markdown]
# # Exercise 06 · The processor
#
# You write the three functions that stand between a question and the model: one makes pixels of a
# picture, one makes ids of a prompt, one makes rows equally long. At the end the trained model answers
# what your processor asks.
#
# The lesson is [notebooks/06_tokens.ipynb](../notebooks/06_tokens.ipynb). Time: 30 minutes. Names
# inside your functions are yours; the order of the arguments is not.

# %%
import numpy as np
import torch
from PIL import Image

from minipali.checks import check, hint

# %% [markdown]
# ## 1. A picture
#
# You get a Pillow picture of any size and kind: colour, grey, or with transparent parts. The contract:
#
# - What is transparent becomes white, and the picture becomes RGB.
# - The whole picture is resized to a square, with Pillow's bicubic filter.
# - The values go from -1 (0 in the picture) to 1 (255).


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
# that is ready to use: it takes a text and returns a list of ids, without bos and without a newline of
# its own. Do not write any id by heart. They differ from model to model, and in the check.


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
# up. The filler can be any number, also one that occurs in a row. Leave the rows that you get as they
# are, and build new lists.


# %%
def pad_rows(rows, filler, side):
    """Rows of unequal length as one tensor.

    rows: a list of b lists of ids; filler: an id; side: "left" or "right", where the filler goes
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
# ## 4. Before the model
#
# `swap` makes a copy of the processor in which your three functions do the work. It prepares pictures
# and questions with both, and compares every tensor.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(processor, to_pixels=to_pixels, prompt_ids=prompt_ids, pad_rows=pad_rows)

# %% [markdown]
# Now ask about a picture by an artist whose drawings the model never saw in training. All three
# questions go in at once, so the short ones are padded. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
prompts = ["caption en", "answer en what is on the left?", "detect dog"]
for name, one in (("package", processor), ("mine", mine)):
    for prompt, answer in zip(prompts, generate(model, one, [picture] * 3, prompts), strict=True):
        print(f"{name:8} {prompt:32} {answer}")

# %% [markdown]
# ## Go on
#
# - Write a `prompt_ids` that puts bos before the image tokens, and `swap` it in. What does `swap` say?
#   Ask the three questions again. What changes, and by how much?
# - Write a `to_pixels` that cuts out the middle square. For which pictures is that better, and which
#   questions can no longer be answered?
# - Ask about a picture of your own: `generate(model, mine, Image.open("my.jpg"), "caption en")`. Look
#   at what the model sees, `to_pixels(picture, 72)`, before you judge the answer.
