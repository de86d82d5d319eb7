# %% [markdown]
# # Exercise 11 · PaliGemma
#
# You write the three pieces that make one model of a vision tower and a language model: image tokens,
# merging, and the mask. A fourth piece stands in no lesson: a mask for several questions in one row.
# Then comes the moment of the course: the trained model runs on *your* pieces of all lessons so far.
#
# The lesson is [notebooks/11_paligemma.ipynb](../notebooks/11_paligemma.ipynb). Time: 65 minutes, 25 of
# them for the fourth piece. Names inside your functions are yours; the order of the arguments is not.
# What your functions are given must stay unchanged.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. Image tokens
#
# The vision tower is given as a function that is ready to call. Its vectors are as wide as the tower.
# The projector, one affine map and nothing else, brings them to the width of the decoder. A weight is
# stored as (out, in). The pixels come as the tower wants them. No sqrt(d) here: that is for text.


# %%
def image_tokens(pixels, vision_tower, weight, bias):
    """Pictures as tokens for the decoder, one for each patch, not multiplied by sqrt(d).

    pixels: (b, c, y, x); weight: (d, width of the tower); bias: (d,)
    vision_tower: a function of pixels of any b, (b, c, y, x) -> (b, n, width of the tower); n from 1 on
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
# `is_image` is True at n places of each row, n of at least 1. All rows have the same n, but not always
# the *same* places: with padding on the left, the picture starts later. The places need not be
# neighbours: text may stand between them. Put the image tokens there, in their order, each row's own.
# All else stays, and nothing moves. `text` and `image` have their final scale. The result has the dtype
# of the text; `image` has the same or a wider one.


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
# `is_real` is False at padding, which stands on the left or on the right. `is_suffix` is True at the
# answer, one block behind the prefix. (At padding it says nothing: it may be True or False there.) Both
# speak about all s tokens so far; of these, only the last `queries` tokens ask. (With a cache that is
# often one token.) Two rules, and both must hold:
#
# 1. A key must be real.
# 2. A key must belong to the prefix, or be not later than the query. (*Not later*: earlier, or itself.)
#
# The rules are about keys. They hold for every query, padding too, and without exception: what padding
# computes, nobody reads. (Each row has at least one token that is real and no suffix, so no query sees
# nothing.)


# %%
def prefix_lm_mask(is_real, is_suffix, queries):
    """True where a query may look at a key.

    is_real, is_suffix: bool (b, s); queries: how many of the last tokens ask, t, from 1 to s
    returns: bool (b, 1, t, s), the 1 for all heads
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
# ## 4. Several rows in one
#
# In a batch, short rows are filled up with padding, and the model computes it for nothing. *Packing*
# avoids that: several rows, each with its own picture, prompt and answer, are put behind each other in
# one sequence. Training programs do so. But now every row could read its neighbours' questions, and
# their answers. It takes walls between them, and a mask can be the wall.
#
# `row` says to which row a token belongs. 0 is padding, and stands in front of rows, between them or
# behind them, never inside one. The other numbers, 1 to 9999, only tell rows apart: they come in any
# order. The tokens of a row stand together, and no other row of the sequence has its number. In *another*
# sequence of the batch the same number is another row. Each row is a prefix of one token or more, and
# then its suffix, if it has one. (At padding `is_suffix` again says nothing.) Three rules:
#
# 1. A token of a row sees keys of its own row alone.
# 2. Which of these it sees, is as before: those of the prefix, and those that are not later than it.
# 3. A token of padding sees itself and nothing else (with nothing at all, its softmax would be 0 / 0).
#
# Two results to hold yours against. In the sequence of the rows [5, 5, 3, 3, 0] with the suffix
# [False, True, False, True, True] 7 of 25 places are True. (Draw them first.) And if one row fills a
# sequence, the mask is your `prefix_lm_mask` for that row, with all tokens real and all asking.


# %%
def packed_mask(row, is_suffix):
    """True where a query may look at a key, with several rows in each sequence.

    row: (b, s), int64, 0 at padding; is_suffix: bool (b, s)
    returns: bool (b, 1, s, s), queries before keys
    """
    ### BEGIN SOLUTION
    place = torch.arange(row.shape[1])
    not_later = place[None, :] <= place[:, None]  # (query, key)
    same_row = (row[:, :, None] == row[:, None, :]) & (row != 0)[:, None, :]
    visible = same_row & (~is_suffix[:, None, :] | not_later)
    itself = torch.eye(row.shape[1], dtype=torch.bool)  # new for padding alone
    return (visible | itself)[:, None]
    ### END SOLUTION


# %%
check("packed_mask", packed_mask)

# %% [markdown]
# Now use it: three questions about three pictures in *one* sequence, without any padding. `positions`
# start again in each row. Each question's last token must say what it says alone. Then the same
# sequence without walls.

# %%
from minipali import generate, load
from minipali.scenes import examples

model, processor = load("small")
asked = {
    "dog_and_car_test_artist": "caption en",
    "penguin_test_artist": "answer en what colour is the background?",
    "two_frogs_and_pizza_test_artist": "answer en what is on the left?",
}
rows = [processor([examples()[name]], [prompt]) for name, prompt in asked.items()]
ids = torch.cat([one["input_ids"] for one in rows], dim=1)  # (1, s)
lengths = torch.tensor([one["input_ids"].shape[1] for one in rows])
row = torch.arange(1, 4).repeat_interleave(lengths)[None]  # 1 1 … 2 2 … 3 3 …
positions = torch.cat([torch.arange(1, 1 + length) for length in lengths])[None]
prefix = torch.zeros_like(ids, dtype=torch.bool)  # no answers yet

with trying("three rows in one sequence"):
    masks = {"walls": packed_mask(row, prefix), "none": packed_mask(row.clamp(max=1), prefix)}
    gemma, is_image = model.language_model, ids == model.config.image_token_id
    with torch.no_grad():
        alone = torch.cat([model(**one) for one in rows], dim=1)  # each in a call of its own
        image = model.image_features(torch.cat([one["pixel_values"] for one in rows]))
        x = merge(gemma.embed(ids), image.flatten(0, 1)[None], is_image)
        for name, mask in masks.items():
            found = gemma.logits(gemma(x, positions, mask))
            said = found[0, lengths.cumsum(dim=0) - 1].argmax(dim=-1)
            words = ", ".join(processor.decode([int(token)]) for token in said)
            print(f"{name:6} largest difference {(found - alone).abs().max():.5f}: {words}")

# %% [markdown]
# ## 5. Inside the model
#
# First the three pieces of the lesson. `swap` runs the copy with and without a cache, and says whether
# every layer agrees.

# %%
from minipali.swap import pieces_of, swap, whose

mine = swap(model, image_tokens=image_tokens, merge=merge, prefix_lm_mask=prefix_lm_mask)

# %% [markdown]
# ## 6. Your whole model
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
# picture and the text, sees, reads and answers. The learned numbers are not yours: they come from the
# package. (In lesson 13 you train a decoder, and in lesson 17 all of it, from random weights.)

# %%
print("the model that answers:", whose(mine))
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
#   <details><summary>Answer</summary>Down and across change places: the picture is mirrored at its
#   diagonal. The dog's box (256, 85, 725, 597) should become (85, 256, 597, 725). The model says (43,
#   170, 682, 725), and that the car is on the left.</details>
# - Let the picture see itself and the question, but the question only the picture and itself causally.
#   Which tasks of the lesson's table should fall, and do they?
#   <details><summary>Answer</summary>None of them. Of the lesson's 320 questions just as many are right, up
#   to one or two in a task. The picture still looks at the question, which is what the causal mask took
#   away, and the last token sees everything before it in any case.</details>
# - Multiply the image tokens by 2, by 4, by 8. How far can you go before an answer changes? Why is
#   dividing different?
#   <details><summary>Answer</summary>On these pictures names, colours and numbers stay up to 8; one
#   caption changes at 4, from "a frog, a frog and a pizza" to "two frogs and a pizza". The first norm
#   takes the factor away; after it, what the layers add counts for less. Divided, it counts for more:
#   at half one caption is wrong, and at an eighth colours and numbers, too.</details>
# - In your packed sequence, let the positions go on from row to row instead of starting again: 1 to 132.
#   Do the logits change?
#   <details><summary>Answer</summary>Only in the last digits. RoPE makes the scores depend on distances,
#   and inside a row these stay. The walls shut out all other distances.</details>
