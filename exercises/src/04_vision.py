# %% [markdown]
# # Exercise 04 · The vision tower
#
# You write the two halves of the tower: the MLP, and the block that puts attention and MLP on the
# residual stream. After each one, a check tells you whether it is right, and if it can, what went
# wrong. At the end the trained model sees with your code.
#
# The lesson is [notebooks/04_vision.ipynb](../notebooks/04_vision.ipynb). Time: 25 minutes. Names
# inside your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The MLP
#
# A linear map to the hidden width, GELU in the form that SigLIP was trained with, and a linear map
# back. A weight has the shape (outputs, inputs), as in `torch.nn.Linear`. You may use `F.linear`
# and `F.gelu`. Do not add `x` to the result: that is the block's work.


# %%
def mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """Two linear maps with a GELU between them, for each patch alone.

    x: (b, n, d); fc1_weight: (hidden, d); fc1_bias: (hidden,)
    fc2_weight: (d, hidden); fc2_bias: (d,)
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    hidden = F.gelu(F.linear(x, fc1_weight, fc1_bias), approximate="tanh")  # (b, n, hidden)
    return F.linear(hidden, fc2_weight, fc2_bias)
    ### END SOLUTION


# %%
check("mlp", mlp)

# %% [markdown]
# Stuck? Run `hint("mlp", 1)`, then `2`, then `3` in a new cell.

# %% [markdown]
# ## 2. The block
#
# One layer of the tower, pre-norm. You get four functions that are ready to call: `norm1(x)`,
# `attention(x)`, `norm2(x)` and `mlp(x)`. Each takes (b, n, d) and returns (b, n, d). Your work is
# the order in which they are called, and what is added to what. Here the name `mlp` is the
# argument, not your function from above.


# %%
def encoder_layer(x, norm1, attention, norm2, mlp):
    """One pre-norm block on the residual stream.

    x: (b, n, d), the stream; norm1, attention, norm2, mlp: functions (b, n, d) -> (b, n, d)
    returns: (b, n, d), the stream after this layer
    """
    ### BEGIN SOLUTION
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))
    ### END SOLUTION


# %%
check("encoder_layer", encoder_layer)

# %% [markdown]
# ## 3. Inside the model
#
# `swap` makes a copy of the trained model in which your two functions do the work, in each layer of
# the vision tower, with the trained weights. It says whether every layer still agrees, or which one
# differs first.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, mlp=mlp, encoder_layer=encoder_layer)

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
# - Write an `mlp` with the erf form, then one with ReLU. What does `check` say, what does `swap` say,
#   and do the answers change? A test of answers alone would pass one of them.
# - Write a block that leaves out attention: `return x + mlp(norm2(x))`. Each patch then sees itself
#   alone. Which questions does the model still answer?
