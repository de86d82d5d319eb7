# %% [markdown]
# # Exercise 07 · RoPE
#
# You write the angles, the turning, and the few lines around them in a layer. After each piece a check
# tells you whether it is right, and if it can, what went wrong. The fourth piece stands in no lesson:
# angles for texts that are longer than any in training. At the end the trained model finds its places
# with your code.
#
# The lesson is [notebooks/07_rope.ipynb](../notebooks/07_rope.ipynb). Time: 65 minutes, 25 of them for
# the fourth piece. Names inside your functions are yours; the order of the arguments is not. No function
# may change what it gets.

# %%
import math

import torch
from einops import rearrange

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. The angles
#
# Pair `i` of a head turns by `theta ** (-2 * i / k)` radians a step, for i = 0, 1, ..., k/2 - 1, where
# k is `head_dim`. The angle is the position times that speed. `positions` are whole numbers from 0 to
# some hundred thousands (int64 or int32), and each row of the batch has its own. Take them as they are,
# wherever they begin. `theta` is an argument: 10,000 in Gemma, and something else in the check. Compute in
# float32 or float64, and return float32. (The check allows for the rounding of float32.)


# %%
def rope_angles(positions, head_dim, theta):
    """Cosine and sine of every pair's angle.

    positions: (b, t), whole numbers; head_dim: k, even; theta: a number above 1, int or float
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
# alike. They are float32. `x` is float32, or bfloat16 or float16, as in large models. The result has the
# dtype of `x`. Multiply in float32 and convert the result, or convert `cos` and `sin` to the dtype of `x`
# first, as many models do: the first is more exact, and the check takes both, also mixed. A float32 `x`
# may lose no digits on the way.


# %%
def apply_rope(x, cos, sin):
    """Turn every pair by its angle, half-split layout.

    x: (b, h, t, k); cos, sin: (b, t, k/2)
    returns: (b, h, t, k), in the dtype of x
    """
    ### BEGIN SOLUTION
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, k/2)
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
    ### END SOLUTION


# %%
check("apply_rope", apply_rope)

# %% [markdown]
# ## 3. In a layer
#
# The matrices of a layer give you flat queries, keys and values. Split them into heads: queries have
# `heads` heads, keys and values `kv_heads`, and all heads have the same width k, which the shapes tell
# you. The numbers of a head stand side by side. Then turn those of the three that are compared with one
# another; what is not compared stays as it is. Use your two functions: if they are wrong, this is, too.
# (Lesson 09 explains why there are fewer heads of keys.)


# %%
def rotate_heads(query, key, value, positions, heads, kv_heads, theta):
    """Split into heads, and turn by positions. All tensors but positions are float32.

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
# ## 4. Longer texts
#
# A model was trained on texts of at most `trained` tokens. Now it is to read texts that are `factor`
# times as long. What is new to it are not the large numbers, but the **angles**. A fast pair has been all
# the way round in training, many times, and knows every angle. A slow pair has not made one whole turn.
# Further on it comes to angles that it never stood at.
#
# So slow the slow ones down. How many tokens does pair `i` need for a whole turn, which is 2 pi radians?
# (Never a whole number: do not round it.) If these are more than `trained`, divide its speed by `factor`:
# then it comes no further in the long text than it came in training. All other pairs keep their speed, and
# with it the sense for neighbours. A pair has one speed in every text, short or long, and at every position.
# Positions stay as they are.
#
# By hand first: k = 4 and theta = 10,000, so the speeds are 1 and 0.01. Trained on 100 tokens, factor 4.
# How many tokens does each pair need for a turn, and which speeds come out? (6.28 and 628.3; 1 and
# 0.0025. At position 396 the second pair stands at 0.99 radians, where it stood at position 99, the last
# one in training.) And what comes out with factor 1, whatever `trained` is? (The angles of `rope_angles`.)


# %%
def stretched_angles(positions, head_dim, theta, trained, factor):
    """Cosine and sine of every pair's angle, the slow pairs slowed by factor.

    positions: (b, t), whole numbers; head_dim: k, even; theta: a number above 1, int or float
    trained: how many tokens the longest text in training had, a whole number
    factor: a number, at least 1, not always a whole one
    returns: cos, sin, each (b, t, k/2) in float32, computed in float32 or better
    """
    ### BEGIN SOLUTION
    speeds = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    wavelengths = 2 * math.pi / speeds  # tokens for a whole turn
    speeds = torch.where(wavelengths > trained, speeds / factor, speeds)
    angles = positions[..., None].float() * speeds
    return angles.cos(), angles.sin()
    ### END SOLUTION


# %%
check("stretched_angles", stretched_angles)

# %% [markdown]
# ## 5. Inside the model
#
# `swap` puts your `rope_angles` and `apply_rope` into the trained decoder, in each of its layers. It
# says whether every layer still agrees, or which one differs first.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import put, swap, whose

model, processor = load("small")
mine = swap(model, rope_angles=rope_angles, apply_rope=apply_rope)

# %% [markdown]
# Ask both models about a picture that neither saw in training, also for a place. The answers must be
# the same.

# %%
picture = examples()["dog_and_car_test_artist"]
prompts = ("caption en", "answer en what is on the left?", "detect dog")
for prompt in prompts:
    for one in (model, mine):
        print(f"{whose(one):8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# Stretching must not spoil what the model can do. Our model reads about 60 tokens. We stretch it for texts
# 8 times as long, and ask the same short questions: once with your angles, and once with *all* pairs
# slowed. (With `trained` = 1 they are: no pair needs less than 6 tokens for a turn. `put` is `swap` without
# the comparison.) Which answers will suffer?


# %%
def stretched(trained):
    return lambda positions, k, theta: stretched_angles(positions, k, theta, trained, 8)


with trying("the model with your stretched angles"):
    for name, trained in (("slow pairs", 60), ("all pairs", 1)):
        other = put(model, rope_angles=stretched(trained))
        for prompt in prompts:
            print(f"{name:10} {prompt:32} {generate(other, processor, picture, prompt)}")

# %% [markdown]
# A place is told by neighbours: the patch to the left is one position away, the one above is six. With
# all pairs slowed, neighbours are closer together than ever in training. With the fast pairs left alone
# nothing is lost. (Whether long texts are read well is another question. A model that is stretched is
# usually trained on a little. Llama 3.1 stretches in this way, with a soft border between slow and fast.)

# %% [markdown]
# ## Go on
#
# - Number the patches from bottom to top: swap in `rope_angles` with changed positions, as the lesson
#   does with right to left. Which answers about top and bottom, left and right do you expect?
#   <details><summary>Answer</summary>Top and bottom change places, left and right stay. A patch at position
#   p, from 1 to 36, is in row (p - 1) // 6; its new position is p + 6 * (5 - 2 * row). Boxes are mirrored
#   from top to bottom, too.</details>
# - Swap in a `rope_angles` with another theta: 9,000, 5,000, 100. At which distances do the angles
#   change most? How far can you go before an answer changes?
#   <details><summary>Answer</summary>At large distances, and there in the middle pairs: pair 0 does not depend
#   on theta, and the slowest hardly turn. On our picture all answers stay down to 5,000. At 2,000 the boxes
#   move, while words stay. At 100 there are no boxes.</details>
# - Freeze some hands: set the angles of pairs 0 to 5 to zero, then those of pairs 12 to 23 only.
#   Which of the two does the model miss?
#   <details><summary>Answer</summary>The fast ones. Without pairs 0 to 5 the boxes are lost, and the caption
#   names the dog twice. Without pairs 12 to 23 no answer about our picture changes: on 60 tokens they hardly
#   move.</details>
# - The older way to stretch without training changes theta alone: `theta * factor ** (k / (k - 2))`, called
#   *NTK-aware*. What does it do to the fastest pair, and what to the slowest?
#   <details><summary>Answer</summary>The fastest keeps its speed: its exponent is 0. The slowest has the
#   exponent -(k - 2) / k, so its speed is divided by factor exactly. Those between are slowed a little or
#   much, also pairs that have been all the way round.</details>
