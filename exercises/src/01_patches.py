# %% [markdown]
# # Exercise 01 · From a picture to patches
#
# You write two functions. After each one, a check tells you whether it is right, and if it can, what
# went wrong. At the end your code runs inside the trained model.
#
# The lesson is [notebooks/01_patches.ipynb](../notebooks/01_patches.ipynb). Time: 25 minutes. Names
# inside your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Cut
#
# Cut a batch of pictures into flat patches, in reading order. Inside a patch the order is channel,
# row, column. The lesson did it with einops. Do it here with `reshape` and `permute` alone, so that
# you see what einops does for you.


# %%
def patchify(pixels, patch_size):
    """Cut pictures into flat patches.

    pixels: (b, c, y, x), sides multiples of patch_size
    returns: (b, n, c * patch_size * patch_size)
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
# Stuck? Run `hint("patchify", 1)`, then `2`, then `3` in a new cell. The next exercise has hints too:
# `hint("embed_patches", 1)`.

# %% [markdown]
# ## 2. Embed and place
#
# Turn the pictures into the vectors that the vision tower reads: cut, one affine map for all
# patches, plus the vector of each place. The weight has the shape of a convolution. You may use your
# `patchify` and a matrix product, or `F.conv2d`. Do it the other way too, if you have time.


# %%
def embed_patches(pixels, weight, bias, positions):
    """Embed the patches of a batch of pictures.

    pixels: (b, c, y, x); weight: (d, c, p, p); bias: (d,); positions: (n, d)
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    maps = F.conv2d(pixels, weight, bias, stride=weight.shape[-1])  # (b, d, ny, nx)
    return maps.flatten(2).transpose(1, 2) + positions
    ### END SOLUTION


# %%
check("embed_patches", embed_patches)

# %% [markdown]
# ## 3. Inside the model
#
# `swap` makes a copy of the trained model in which your `embed_patches` does the work, with the
# trained weights. It says whether every layer still agrees, or which one differs first. A piece that
# is not written yet is left out, and the model goes on with its own.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, embed_patches=embed_patches)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "detect dog"):
    for name, one in (("package", model), ("mine", mine)):
        print(f"{name:8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Write the inverse: patches back to a picture. Put it behind your `patchify` and look at the result.
# - Shuffle the rows of `positions` in a second `embed_patches` and `swap` it in. (`swap` will say
#   *wrong*: that is what you want to see.) Which questions suffer? Compare with the lesson's surprise.
