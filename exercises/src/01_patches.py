# %% [markdown]
# # Exercise 01 · From a picture to patches
#
# You write three functions. After each one, a check tells you whether it is right, and if it can,
# what went wrong. The third stands in no lesson: a position table for a picture of another size. At
# the end your code runs inside the trained model.
#
# The lesson is [notebooks/01_patches.ipynb](../notebooks/01_patches.ipynb). Time: 55 minutes. Names
# inside your functions are yours; the order of the arguments is not. What comes in keeps its numbers:
# write `x = x + y`, not `x += y`. A result may share memory with it, as a view does. All tensors hold
# 32-bit floats. The checks compare results alone, no gradients.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. Cut
#
# Cut a batch of pictures into flat patches. The patches come in reading order: along the first row of
# patches, then along the second. Inside a patch the order is channel, row, column. Any way that gives
# the right numbers is right. With `reshape` and `permute` you see what einops does for you.


# %%
def patchify(pixels, patch_size):
    """Cut pictures into flat patches, in reading order.

    pixels: (b, c, y, x), any number of pictures and channels, y and x multiples of patch_size
    returns: (b, n, c * patch_size * patch_size), the values of a patch by channel, row, column
    """
    ### BEGIN SOLUTION
    b, c, y, x = pixels.shape
    ny, nx = y // patch_size, x // patch_size
    blocks = pixels.reshape(b, c, ny, patch_size, nx, patch_size)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(b, ny * nx, -1)
    ### END SOLUTION


# %%
check("patchify", patchify)

# %% [markdown]
# Stuck? Run `hint("patchify", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. Embed and place
#
# Turn the pictures into the vectors that the vision tower reads: cut, send each patch through the same
# affine map, and add the vector of its place. The weight has the shape of a convolution. The rows of
# `positions` are in reading order, as your patches are: row i belongs to patch i, in every picture.
# You may use your `patchify` and a matrix product, or `F.conv2d`. Do it the other way too, if you have
# time.


# %%
def embed_patches(pixels, weight, bias, positions):
    """Embed the patches of a batch of pictures, and add to each the vector of its place.

    pixels: (b, c, y, x); weight: (d, c, p, p); bias: (d,); positions: (n, d), in reading order
    returns: (b, n, d), also for one picture, b = 1
    """
    ### BEGIN SOLUTION
    maps = F.conv2d(pixels, weight, bias, stride=weight.shape[-1])  # (b, d, ny, nx)
    return maps.flatten(2).transpose(1, 2) + positions
    ### END SOLUTION


# %%
check("embed_patches", embed_patches)

# %% [markdown]
# ## 3. A table for a larger picture
#
# The position table has one row for each place. A larger picture has more places, and no rows for
# them. You can make these rows from the old ones, because the table is a small picture itself: each
# place is a pixel, and its d numbers are the pixel's channels. So stretch it as you would stretch a
# picture. This is how one set of weights learns to read several picture sizes.
#
# Lay the new grid over the old one, so that the outer edges meet. The centre of a new place then lies
# somewhere among the old centres. Along an axis that goes from `old` to `new` places, place i comes to
# lie at
#
# $$(i + 0.5) \cdot \text{old} / \text{new} - 0.5$$
#
# in the old numbering. At 0.25 it gets 0.75 of row 0 and 0.25 of row 1. Beyond the first and the last
# old centre the border's numbers hold. With two axes do this along both (it is called bilinear). The
# same rule makes a smaller table: there too only the old centres next to a new one count, on either
# side along an axis, even if some old rows are then not used at all.
#
# Two results to hold yours against, one row of places with one number each: 0, 4 stretched to four
# places gives 0, 1, 3, 4. And 0, 6 stretched to three gives 0, 3, 6.
#
# You may use `F.interpolate`; it wants the channels in front, and its options decide where the centres
# lie. (Its `antialias=True` would let more old places count in a smaller table: leave it off.)


# %%
def stretch_positions(positions, old, new):
    """A position table for another grid of places.

    positions: (n, d), in reading order
    old, new: the grids, each a tuple of two ints: (rows, columns); old has n places
    returns: (rows * columns of new, d), in reading order
    """
    ### BEGIN SOLUTION
    grid = positions.T.reshape(1, -1, *old)  # (1, d, rows, columns)
    stretched = F.interpolate(grid, size=new, mode="bilinear", align_corners=False)
    return stretched.flatten(2)[0].T
    ### END SOLUTION


# %%
check("stretch_positions", stretch_positions)

# %% [markdown]
# ## 4. Inside the model
#
# `swap` makes a copy of the trained model in which your `embed_patches` does the work, with the
# trained weights. It says whether every layer still agrees, or which one differs first. A piece that
# is not written yet is left out, and the model goes on with its own.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(model, embed_patches=embed_patches)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "detect dog"):
    for one in (model, mine):
        print(f"{whose(one):8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# And your stretched table? Give the model pictures of 84 x 84 pixels: 7 x 7 patches, where it learned
# 6 x 6. Guess first: will it still know *what* is in the picture? And *where*? Remember the lesson's
# surprise: the decoder numbers the patches itself.

# %%
from dataclasses import replace

from minipali.paligemma import PaliGemma
from minipali.tokens import Processor

config = replace(model.config, vision=replace(model.config.vision, image_size=84))
name = "vision_tower.embeddings.position_embedding.weight"
weights = model.state_dict()
with trying("the model with your larger table"):
    weights[name] = stretch_positions(weights[name], (6, 6), (7, 7))
    larger = PaliGemma(config).eval()
    larger.load_state_dict(weights)
    in_84 = Processor(processor.tokenizer_file, config)
    for prompt in ("caption en", "answer en what is on the left?"):
        print(f"{prompt:32} {generate(larger, in_84, picture, prompt)}")

# %% [markdown]
# <details><summary>Why does it answer so?</summary>
#
# It names the things: the tower got a vector for every place, and what a patch shows does not depend
# on the size of the picture. But left and right come out wrong. The decoder was trained on 36 image
# tokens and learned that six of them are one row. Now seven are. A stretched table is where training
# goes on, not where it ends: the published models for 448 and 896 pixels were trained further at their
# size.
# </details>
#
# ## Go on
#
# - Write the inverse of `patchify`: patches back to a picture. Put it behind your `patchify` and look
#   at the result.
#   <details><summary>Answer</summary>Go the same steps backwards: reshape (b, n, values) to
#   (b, ny, nx, c, p, p), permute to (b, c, ny, p, nx, p), which is `permute(0, 3, 1, 4, 2, 5)`, and
#   reshape to (b, c, y, x). The function must be told ny and nx: 12 patches can be 3 x 4 or
#   2 x 6.</details>
# - Shuffle the rows of `positions` in a second `embed_patches` and `swap` it in. (`swap` will say
#   *wrong*: that is what you want to see.) Which questions suffer? Compare with the lesson's surprise.
#   <details><summary>Answer</summary>Hardly any. The decoder has positions of its own, and the patches
#   still come in reading order. A model whose only positions are those of the table would be
#   lost.</details>
