# %% [markdown]
# # Exercise 16 · Masks
#
# You write how a vector finds its word, how a gradient passes a choice, and how a mask comes back into
# its picture. The fourth piece stands in no lesson: a codebook that learns without gradients. At the end
# a codec learns with your pieces, and its masks lie over a picture.
#
# The lesson is [notebooks/16_masks.ipynb](../notebooks/16_masks.ipynb). Time: 60 minutes, 25 of them for
# part 4. Names inside your functions are yours; the order of the arguments is not. No function changes
# a tensor that it is given.

# %%
import numpy as np
import torch
from PIL import Image

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. The nearest entry
#
# A codebook has m entries, each a vector of d numbers. For each of your vectors, find the entry that lies
# nearest to it: the straight line between the two is the shortest. Give its **number**, from 0 to m - 1.
# No two entries are nearly equally near, so rounding does not decide, whatever formula you use.
#
# By hand: the entries are (0, 0), (3, 0) and (0, 6). The vector (1, 1) gets 0, and (2, 4) gets 2. A product
# instead of a distance would give (1, 1) the entry 2: it is the longest.


# %%
def nearest_code(vectors, codebook):
    """The number of the nearest entry for each vector.

    vectors: (b, n, d); codebook: (m, d)
    returns: (b, n), whole numbers (torch.int64)
    """
    ### BEGIN SOLUTION
    apart = vectors[:, :, None] - codebook  # (b, n, m, d)
    return apart.square().sum(dim=-1).argmin(dim=-1)
    ### END SOLUTION


# %%
check("nearest_code", nearest_code)

# %% [markdown]
# Stuck? Run `hint("nearest_code", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. A gradient through a choice
#
# `chosen` are the entries that the vectors found. The decoder shall get them: the result has the values
# of `chosen` (up to rounding). Backwards, pretend that nothing was chosen: `vectors` gets the gradient of
# the result as it is, and `chosen` gets none.
#
# By hand, with single numbers: the vector is 0.3, the entry 0, and the loss is (result - 1)². The result is
# 0, so the loss is 1. The gradient of the vector is 2 · (0 - 1) = -2, and the entry has none.


# %%
def straight_through(vectors, chosen):
    """The value of chosen, the gradient of vectors.

    vectors, chosen: (b, n, d)
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    return vectors + (chosen - vectors).detach()
    ### END SOLUTION


# %%
check("straight_through", straight_through)

# %% [markdown]
# ## 3. Back into the picture
#
# The decoder gives a square of numbers: above 0 is inside the object, and the edge of the object runs
# where they pass through 0. Put it into its box, in a picture of True and False.
#
# - The edges of the box are rounded to whole pixels with Python's `round`, also where they lie just between
#   two: `round(2.5)` is 2, the even one. The rounded box lies in the picture. Before and
#   after rounding y0 <= y1 and x0 <= x1.
# - The *numbers* are resized to the rounded box: bilinear, and averaged where they become fewer. Pillow
#   does that (`Image.resize` with `Image.Resampling.BILINEAR`), and so does torch
#   (`F.interpolate(..., mode="bilinear", antialias=True)`), with one exception: for a box that is 1 pixel
#   wide, torch 2.13 writes the first row's number into all rows. The check has no box so narrow.
# - Only then: a number above 0 is inside, True; 0 is not. (In no pixel of the check does rounding
#   decide.) Everything outside of the box is False.
# - A box that has no rows or no columns after rounding leaves the picture False.
#
# By hand, one row of a mask: (1, -3), in a box 4 pixels wide. Resized, its numbers are 1, 0, -2, -3: one
# pixel is inside. Whoever compares with 0 first gets two. (At the ends a number is repeated; between,
# pixel 1 lies a quarter of the way from 1 to -3.)


# %%
def paste_mask(mask, box, height, width):
    """A decoded mask, in its picture.

    mask: (s, s), float32; box: a list of four floats, y0, x0, y1, x1, in pixels;
    height, width: of the picture
    returns: (height, width), bool
    """
    ### BEGIN SOLUTION
    y0, x0, y1, x1 = (round(edge) for edge in box)
    picture = torch.zeros(height, width, dtype=torch.bool)
    if y1 > y0 and x1 > x0:
        values = Image.fromarray(mask.numpy())  # a picture of numbers
        resized = values.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        picture[y0:y1, x0:x1] = torch.from_numpy(np.array(resized)) > 0
    return picture
    ### END SOLUTION


# %%
check("paste_mask", paste_mask)

# %% [markdown]
# ## 4. A codebook that follows
#
# In the lesson, a term of the loss pulls each entry to the vectors that chose it. The published codec does
# it without a gradient. An entry is the **mean of the vectors that chose it**, lately: of today's batch, and
# less and less of those before.
#
# For each entry keep two things: how many vectors chose it, `counts`, and their sum, `sums`. With each batch
# both become `decay` times the old one plus `1 - decay` times what this batch has: the number of vectors
# that chose the entry, and the sum of these vectors. That holds for all entries, also for those that nobody
# chose: there the batch has 0. The new codebook is the new sums divided by the new counts.
#
# By hand, vectors of one number, two entries, decay 0.5. Old counts 2 and 1, old sums 4 and 9, so the
# entries are 2 and 9. The batch has the vectors 4, 4 and 6 with the codes 0, 0 and 1. The new counts are
# 2 and 1, the new sums 6 and 7.5, and the codebook is 3 and 7.5. And if nobody chooses an entry, its
# count and its sum become smaller, and the entry stays where it is.
#
# All three results are new tensors, for keeping, and nothing learns through them: no gradient may come out
# of them. (`vectors` may hang on autograd's graph. `counts` and `sums` never do.)


# %%
def follow(vectors, codes, counts, sums, decay):
    """Counts, sums and codebook after one more batch.

    vectors: (b, n, d); codes: (b, n), from 0 to m - 1; counts: (m,), 0.0001 or more; sums: (m, d);
    decay: above 0, at most 1, the share of what was before
    returns: the new counts (m,), the new sums (m, d), the new codebook (m, d)
    """
    ### BEGIN SOLUTION
    codes, vectors = codes.flatten(), vectors.detach().flatten(0, 1)
    here = torch.bincount(codes, minlength=len(counts))
    added = torch.zeros_like(sums).index_add(0, codes, vectors)
    counts = decay * counts + (1 - decay) * here
    sums = decay * sums + (1 - decay) * added
    return counts, sums, sums / counts[:, None]
    ### END SOLUTION


# %%
check("follow", follow)

# %% [markdown]
# ## 5. Does it learn?
#
# `try_codec` takes a small encoder and a small decoder with random weights, and a codebook of 128 entries.
# For 200 steps it shows them outlines of emoji: **your `nearest_code` chooses, your `straight_through`
# brings the gradient to the encoder, your `follow` moves the codebook**. It takes about 8 seconds. Then
# outlines by an artist whom it has not seen are said in 16 codes and drawn again. **The floor is an IoU of
# 0.83**; with right pieces we got 0.86 to 0.88. (The lesson's codec has more channels and three times as
# many steps.)

# %%
from minipali.checks.masks import scene_in_codes, try_codec

torch.set_num_threads(1)  # a codec so small that more threads only wait for each other
codec = try_codec(nearest_code, straight_through, follow, floor=0.83)

# %% [markdown]
# And now a picture: three objects by that artist, each said in four numbers for its box and 16 codes for
# its shape. The codec draws the numbers, and your `paste_mask` puts them into the picture.

# %%
import matplotlib.pyplot as plt

from minipali import figures


def painted(codec):
    """The picture, and the same with the masks of its objects in one colour each."""
    picture, objects = scene_in_codes(codec)
    seen = np.array(picture)
    colours = np.array([[200, 30, 30], [30, 60, 220], [140, 30, 160]])
    for (name, box, codes), colour in zip(objects, colours, strict=True):
        inside = paste_mask(codec.decode(codes[None])[0], box, picture.height, picture.width)
        inside = inside.numpy()
        seen[inside] = 0.4 * seen[inside] + 0.6 * colour
        print(f"{name:7} box {[round(edge) for edge in box]}, {int(inside.sum()):6,} pixels inside")
    return {"the picture": picture, "your masks": seen}


# %%
drawn = {}
with trying("the picture with your masks"):
    drawn = painted(codec) if codec is not None else {}
if drawn:
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.6))
    for axis, (title, pixels) in zip(axes, drawn.items(), strict=True):
        axis.imshow(pixels)
        axis.set_title(title)
        axis.axis("off")
    figures.show(figure, "A cat, a guitar and a rocket; beside them the same with your masks.")

# %% [markdown]
# ## Go on
#
# - Return `chosen` alone from `straight_through` and run part 5 again. What does the encoder learn now,
#   and why does the IoU not fall to 0?
#   <details><summary>Answer</summary>The gradient no longer reaches the encoder through the decoder, so it
#   never hears how good the drawing was. (It only learns to lie near the entries.) The codebook still follows
#   its vectors, and the decoder learns to draw what most outlines with these codes look like. We got 0.68,
#   which is not far above calling the whole box inside.</details>
# - `follow` with `decay=0` and with `decay=1`: what is the codebook then? Which of the two can divide by 0?
#   <details><summary>Answer</summary>With 0 it is the mean of this batch's vectors, and an entry that nobody
#   chose has count 0: 0 / 0 is nan. With 1 nothing ever moves.</details>
# - Compare with 0 before you resize, in `paste_mask`. Look at the picture again, then let `check` say how
#   many pixels are wrong. Where do they lie?
#   <details><summary>Answer</summary>All along the edges of the objects: they become stairs whose steps are
#   as large as the mask's own pixels. Inside and far outside nothing changes.</details>
