# %% [markdown]
# # Exercise 03 · Attention
#
# You write attention twice: once for queries, keys and values that somebody hands you, and once with
# the matrices and heads of a vision layer. At the end the trained model looks through your code.
#
# The lesson is [notebooks/03_attention.ipynb](../notebooks/03_attention.ipynb). Time: 30 minutes.
# Names inside your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Attend
#
# For each query, the average of the values under its weights. `mask` is either `None` (every query
# sees every key) or a table of booleans, `True` where a query may look. It has one head, and torch
# stretches it over all heads. **The contract for a query that may see nothing: its result is zeros,**
# not NaN and not the average of what it must not see.
#
# You may use torch's `softmax`, or write it as in the lesson.


# %%
def attend(query, key, value, mask):
    """Scaled dot-product attention.

    query: (b, h, t, k); key, value: (b, h, s, k); mask: None or bool (b, 1, t, s)
    returns: (b, h, t, k)
    """
    ### BEGIN SOLUTION
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (b, h, t, s)
    if mask is None:
        return scores.softmax(dim=-1) @ value
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0) @ value
    ### END SOLUTION


# %%
check("attend", attend)

# %% [markdown]
# Stuck? Run `hint("attend", 1)`, then `2`, then `3` in a new cell.

# %% [markdown]
# ## 2. Several heads
#
# Self-attention as in the vision tower: queries, keys and values all come from `x`, each by its own
# affine map. A weight is stored as (out, in), as torch does it. Split into heads, use your `attend`
# without a mask, put the heads side by side, and apply the last map.


# %%
def multi_head_attention(
    x, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, out_weight, out_bias, heads
):
    """Multi-head self-attention without a mask.

    x: (b, n, d); the weights: (d, d); the biases: (d,); d is a multiple of heads
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    query, key, value = (
        rearrange(F.linear(x, weight, bias), "b n (h k) -> b h n k", h=heads)
        for weight, bias in ((q_weight, q_bias), (k_weight, k_bias), (v_weight, v_bias))
    )
    mixed = attend(query, key, value, None)
    return F.linear(rearrange(mixed, "b h n k -> b n (h k)"), out_weight, out_bias)
    ### END SOLUTION


# %%
check("multi_head_attention", multi_head_attention)

# %% [markdown]
# ## 3. Inside the model
#
# `swap` puts your `multi_head_attention` into every layer of the vision tower, and your `attend` into
# every layer of the decoder, where a mask says which tokens may be seen. It tells you whether every
# layer still agrees, or which one differs first.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, multi_head_attention=multi_head_attention, attend=attend)

# %% [markdown]
# Ask both models about a picture by an artist whose drawings neither saw in training. The answers
# must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "answer en what is on the right?"):
    for name, one in (("package", model), ("mine", mine)):
        print(f"{name:8} {prompt:34} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Write an `attend` that ignores the mask and `swap` it in. `swap` notices, but the answers of
#   `generate` do not change. Why? (Which tokens exist when the model chooses the next one?)
# - Write an `attend` that gives every visible key the same weight. What is left of the answers?
# - Change the scale to 0.5 / sqrt(k) or 2 / sqrt(k). How far can you go before an answer changes?
