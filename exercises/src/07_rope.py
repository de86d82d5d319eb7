# %% [markdown]
# # Exercise 07 · RoPE
#
# You write the angles, the turning, and the few lines around them in a layer. After each piece a check
# tells you whether it is right, and if it can, what went wrong. At the end the trained model finds its
# places with your code.
#
# The lesson is [notebooks/07_rope.ipynb](../notebooks/07_rope.ipynb). Time: 30 minutes. Names inside
# your functions are yours; the order of the arguments is not.

# %%
import torch
from einops import rearrange

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The angles
#
# Pair `i` of a head turns by `theta ** (-2 * i / k)` radians a step, for i = 0, 1, ..., k/2 - 1, where
# k is `head_dim`. The angle is the position times that speed. `positions` are whole numbers, and each
# row of the batch has its own. Compute in float32.


# %%
def rope_angles(positions, head_dim, theta):
    """Cosine and sine of every pair's angle.

    positions: (b, t), whole numbers; head_dim: k, even; theta: a number
    returns: cos, sin, each (b, t, k/2) in float32
    """
    ### BEGIN SOLUTION
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim  # 2 i / k
    angles = positions[..., None].float() * theta**-exponents  # (b, t, k/2)
    return angles.cos(), angles.sin()
    ### END SOLUTION


# %%
check("rope_angles", rope_angles)

# %% [markdown]
# Stuck? Run `hint("rope_angles", 1)`, then `2`, then `3` in a new cell.

# %% [markdown]
# ## 2. Turn
#
# Number `i` of the first half of a head and number `i` of its second half are a pair (x, y), and it
# becomes (x cos - y sin, y cos + x sin). `cos` and `sin` have no axis for the heads: all heads turn
# alike.


# %%
def apply_rope(x, cos, sin):
    """Turn every pair by its angle, half-split layout.

    x: (b, h, t, k); cos, sin: (b, t, k/2)
    returns: (b, h, t, k)
    """
    ### BEGIN SOLUTION
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, k/2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    ### END SOLUTION


# %%
check("apply_rope", apply_rope)

# %% [markdown]
# ## 3. In a layer
#
# The matrices of a layer give you flat queries, keys and values. Split them into heads: queries have
# `heads` heads, keys and values `kv_heads`, and all heads have the same width k. Then turn what must
# be turned, with your two functions. (Lesson 09 explains why there are fewer heads of keys.)


# %%
def rotate_heads(query, key, value, positions, heads, kv_heads, theta):
    """Split into heads, and turn by positions.

    query: (b, t, heads * k); key, value: (b, t, kv_heads * k); positions: (b, t)
    returns: query (b, heads, t, k), key (b, kv_heads, t, k), value (b, kv_heads, t, k)
    """
    ### BEGIN SOLUTION
    query = rearrange(query, "b t (h k) -> b h t k", h=heads)
    key = rearrange(key, "b t (g k) -> b g t k", g=kv_heads)
    value = rearrange(value, "b t (g k) -> b g t k", g=kv_heads)
    cos, sin = rope_angles(positions, query.shape[-1], theta)
    return apply_rope(query, cos, sin), apply_rope(key, cos, sin), value
    ### END SOLUTION


# %%
check("rotate_heads", rotate_heads)

# %% [markdown]
# ## 4. Inside the model
#
# `swap` puts your `rope_angles` and `apply_rope` into the trained decoder, in each of its layers. It
# says whether every layer still agrees, or which one differs first.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, rope_angles=rope_angles, apply_rope=apply_rope)

# %% [markdown]
# Ask both models about a picture that neither saw in training, also for a place. The answers must be
# the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "detect dog"):
    for name, one in (("package", model), ("mine", mine)):
        print(f"{name:8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Number the patches from bottom to top: swap in `rope_angles` with changed positions, as the lesson
#   does with right to left. Which answers about top and bottom, left and right do you expect?
# - Swap in a `rope_angles` with another theta: 9,000, 5,000, 100. At which distances do the angles
#   change most? How far can you go before an answer changes?
# - Freeze some hands: set the angles of pairs 0 to 5 to zero, then those of pairs 12 to 23 only.
#   Which of the two does the model miss?
