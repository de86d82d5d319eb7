# %% [markdown]
# # Exercise 11 · PaliGemma
#
# You write the three pieces that make one model of a vision tower and a language model: image tokens,
# merging, and the mask. Then comes the moment of the course: the trained model runs on *your* pieces
# of all lessons so far.
#
# The lesson is [notebooks/11_paligemma.ipynb](../notebooks/11_paligemma.ipynb). Time: 30 minutes. Names
# inside your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Image tokens
#
# The vision tower is given as a function that is ready to call. Its vectors are as wide as the tower.
# The projector brings them to the width of the decoder. A weight is stored as (out, in).


# %%
def image_tokens(pixels, vision_tower, weight, bias):
    """Pictures as tokens for the decoder, unscaled.

    pixels: (b, c, y, x); vision_tower: function (b, c, y, x) -> (b, n, width of the tower)
    weight: (d, width of the tower); bias: (d,)
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    return F.linear(vision_tower(pixels), weight, bias)
    ### END SOLUTION


# %%
check("image_tokens", image_tokens)

# %% [markdown]
# Stuck? Run `hint("image_tokens", 1)`, then `2`, then `3` in a new cell.
#
# ## 2. Merge
#
# `is_image` is True at n places of each row, at the same n for all rows, but not always at the *same*
# places: with padding on the left, the picture starts later. Put the image tokens there, in their
# order, each row's own. All else stays. Both arguments have their final scale. The result has the
# dtype of the text. Do not change `text` itself.


# %%
def merge(text, image, is_image):
    """One row of vectors for each picture and prompt.

    text: (b, t, d); image: (b, n, d); is_image: bool (b, t), True n times in each row
    returns: (b, t, d), in the dtype of text
    """
    ### BEGIN SOLUTION
    return text.masked_scatter(is_image[..., None], image.to(text.dtype))
    ### END SOLUTION


# %%
check("merge", merge)

# %% [markdown]
# ## 3. The mask
#
# `is_real` is False at padding. `is_suffix` is True at the answer. Both speak about all s tokens so
# far; of these, only the last `queries` tokens ask. (With a cache that is often one token.) Two rules:
#
# 1. A key must be real.
# 2. A key must belong to the prefix, or be not later than the query.
#
# The rules are about keys. They hold for every query, padding too: what padding computes, nobody reads.


# %%
def prefix_lm_mask(is_real, is_suffix, queries):
    """True where a query may look at a key.

    is_real, is_suffix: bool (b, s); queries: how many of the last tokens ask, t
    returns: bool (b, 1, t, s)
    """
    ### BEGIN SOLUTION
    place = torch.arange(is_real.shape[1])
    not_later = place[None, :] <= place[len(place) - queries :, None]  # (t, s)
    visible = is_real[:, None, :] & (~is_suffix[:, None, :] | not_later)  # (b, t, s)
    return visible[:, None]
    ### END SOLUTION


# %%
check("prefix_lm_mask", prefix_lm_mask)

# %% [markdown]
# ## 4. Inside the model
#
# First your three pieces alone. `swap` runs the copy with and without a cache, and says whether every
# layer agrees.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import pieces_of, swap

model, processor = load("small")
mine = swap(model, image_tokens=image_tokens, merge=merge, prefix_lm_mask=prefix_lm_mask)

# %% [markdown]
# ## 5. Your whole model
#
# `my_pieces` reads the exercises 01 to 10 in this folder *as they are saved*, and takes every function
# that passes its check and has a place in the model. What you have not written yet comes from the
# package. So do this now with what you have, and again when you have more. The last two pieces belong to
# lesson 12.

# %%
from minipali.progress import my_pieces

pieces, of_processor = my_pieces(model), my_pieces(processor)
own = [*of_processor, *pieces]
print(f"yours from lessons 01 to 10, {len(own)}:", ", ".join(own) or "none yet")
today = {"image_tokens": image_tokens, "merge": merge, "prefix_lm_mask": prefix_lm_mask}
every = [*pieces_of(processor), *pieces_of(model)]
others = [name for name in every if name not in (*own, *today)]
print(f"from the package, {len(others)}:", ", ".join(others) or "none")

# %%
mine = swap(model, **pieces, **today)
my_processor = swap(processor, **of_processor) if of_processor else processor

# %% [markdown]
# Two pictures by an artist whose drawings the model never saw in training. Your code prepares the
# picture and the text, sees, reads and answers. Only the learned numbers are not yours; they come in
# lesson 13.

# %%
for name in ("dog_and_car_test_artist", "penguin_test_artist"):
    for prompt in (
        "caption en",
        "answer en is there a dog?",
        "answer en how many objects are there?",
    ):
        expected = generate(model, processor, examples()[name], prompt)
        found = generate(mine, my_processor, examples()[name], prompt)
        print(f"{prompt:38} {found:36}", "" if found == expected else f"the package: {expected}")

# %% [markdown]
# ## Go on
#
# - Write a `merge` that puts the image tokens column by column instead of row by row, and `swap` it in.
#   What should "detect dog" say now? Predict the box before you look.
# - Let the picture see itself and the question, but the question only the picture and itself causally.
#   Which tasks of the lesson's table should fall, and do they?
# - Multiply the image tokens by 2, by 4, by 8. How far can you go before an answer changes? Why is
#   dividing different?
