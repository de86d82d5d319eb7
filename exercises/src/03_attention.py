# %% [markdown]
# # Exercise 03 · Attention
#
# You write attention twice: once for queries, keys and values that somebody hands you, and once with
# the matrices and heads of a vision layer. The third piece stands in no lesson: exact attention that
# never sees all keys at once. At the end the trained model looks through your code.
#
# The lesson is [notebooks/03_attention.ipynb](../notebooks/03_attention.ipynb). Time: 75 minutes.
# Names inside your functions are yours; the order of the arguments is not. Leave torch's finished
# attention aside (`F.scaled_dot_product_attention`, `nn.MultiheadAttention` and the function inside it,
# `F.multi_head_attention_forward`): the check refuses it. What comes in keeps its numbers: write
# `x = x + y`, not `x += y`. The checks compare results alone, no gradients.

# %%
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Attend
#
# For each query, the average of the values under its weights: the softmax, over the keys, of the
# scores
#
# $$\text{query} \cdot \text{key} \, / \sqrt{k}$$
#
# where k is the width of a head. `mask` is either `None` (every query sees every key) or a table of
# booleans, `True` where a query may look. The mask has one head, and torch stretches it over all heads;
# each picture of the batch has its own. Hidden keys get the weight 0, and the weights of the others
# add up to 1. **The contract for a query that may see nothing: its result is zeros,** not NaN and not
# the average of what it must not see. Scores may be in the thousands: nothing may overflow.
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
# Stuck? Run `hint("attend", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. Several heads
#
# Self-attention as in the vision tower: queries, keys and values all come from `x`, each by its own
# affine map. A weight is stored as (out, in), as torch does it. Split into heads, attend in each head
# (your `attend` with None as mask does it), put the heads side by side, and apply the last map.
#
# The numbers of one head stand side by side: with d = 12 and 3 heads, head 0 has the numbers 0 to 3,
# head 1 has 4 to 7, head 2 has 8 to 11, and they go back in the same order. k is d / heads.


# %%
def multi_head_attention(
    x, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, out_weight, out_bias, heads
):
    """Multi-head self-attention without a mask.

    x: (b, n, d); the weights: (d, d), stored as (out, in); the biases: (d,); heads divides d
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
# ## 3. Block by block
#
# The table of scores has t · s numbers for each head. For a picture of 896 pixels that is 4096 · 4096,
# in every head and every layer. Fast attention never makes the table: it reads the keys and values
# in blocks, and keeps little. The result is exact all the same. How can that be, if the softmax divides
# by a sum over *all* keys?
#
# Keep three things for each query: the sum of exp(score) so far, the sum of exp(score) times value so
# far, and, against overflow, the largest score so far. Every exponential is that of the score minus the
# largest. If a block brings a larger one, what was summed with the old one must be brought to the new
# one: multiply by exp(old largest - new largest). Divide at the end.
#
# A result by hand. One query, scores 0 and then, in a second block, ln 3; values 8 and 4. After the
# first block: largest 0, sum 1, weighted sum 8. After the second the factor for both is exp(0 - ln 3) =
# 1/3, so the sum is 1/3 + 1 = 4/3, the weighted sum 8/3 + 4 = 20/3, and the result 5. The softmax of
# both together gives the weights 1/4 and 3/4: 2 + 3 = 5.
#
# `blocks` hands out one pair (key, value) after the other: `for key, value in blocks`. The blocks may
# have different sizes. They come in the **same memory**: when the next one comes, the last is gone,
# as in the small fast memory of a GPU. So whoever collects them first gets the last block many times.
# There is at least one block, and at least one key in each. Scores may be in the thousands, of either
# sign.
#
# **Never put the keys, the values or the scores of all blocks into one tensor**, and keep no copies of
# blocks that are gone. The check looks at the size of every tensor that torch makes, and at what you
# keep of them all, where there are several blocks. Inside one block anything goes, also torch's
# `softmax` and `logsumexp`, or a tensor of (b, h, t, s, k). Sums of each block, (b, h, t, k) or less,
# may be kept in a list. torch's finished attention is refused here, too.


# %%
def attend_in_blocks(query, blocks):
    """Exact attention without a mask, scores scaled by 1 / sqrt(k), one block of keys at a time.

    query: (b, h, t, k)
    blocks: can be gone through once; gives one or more pairs (key, value), each (b, h, s, k), where s
        is 1 or more and may differ from block to block
    returns: (b, h, t, k), the attention of the queries over the keys of all blocks
    """
    ### BEGIN SOLUTION
    largest = torch.full_like(query[..., :1], float("-inf"))  # (b, h, t, 1)
    total, mixed = torch.zeros_like(largest), torch.zeros_like(query)
    for key, value in blocks:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (b, h, t, s)
        now = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        shares, old = (scores - now).exp(), (largest - now).exp()
        total = total * old + shares.sum(dim=-1, keepdim=True)
        mixed = mixed * old + shares @ value
        largest = now
    return mixed / total
    ### END SOLUTION


# %%
check("attend_in_blocks", attend_in_blocks)

# %% [markdown]
# ## 4. Inside the model
#
# `swap` puts your `multi_head_attention` into every layer of the vision tower, and your `attend` into
# every layer of the decoder, where a mask says which tokens may be seen. It tells you whether every
# layer still agrees, or which one differs first.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(model, multi_head_attention=multi_head_attention, attend=attend)


# %% [markdown]
# Your third piece can serve the vision tower, which has no mask: 36 patches, in blocks of 8.


# %%
def in_blocks(query, key, value, mask):
    if mask is not None:
        return attend(query, key, value, mask)
    return attend_in_blocks(query, zip(key.split(8, dim=2), value.split(8, dim=2), strict=True))


blockwise = swap(model, attend=in_blocks)

# %% [markdown]
# Ask all models about a picture by an artist whose drawings none saw in training. The answers must be
# the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "answer en what is on the right?"):
    for one in (model, mine, blockwise):
        print(f"{whose(one):8} {prompt:34} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Write an `attend` that ignores the mask and `swap` it in. `swap` notices, but the answers of
#   `generate` do not change. Why? (Which tokens exist when the model chooses the next one?)
#   <details><summary>Answer</summary>When a token is chosen, no later one exists yet, and picture and
#   question may see each other whole. So there is nothing to hide from one picture and question alone.
#   The mask matters in training, where the whole answer is there from the start, and for rows of
#   unequal length.</details>
# - Write an `attend` that gives every visible key the same weight. What is left of the answers?
#   <details><summary>Answer</summary>Nothing: they are empty, the model ends at once. Every query gets the
#   same average of all that it may see, so what it looks for no longer matters.</details>
# - Change the scale to 0.5 / sqrt(k) or 2 / sqrt(k). How far can you go before an answer changes?
#   <details><summary>Answer</summary>Upwards far: at five times the scale we still got the same three
#   answers. Which key comes first does not change, and most queries of this model have a clear winner.
#   At half the scale the caption lost the car, at a quarter all three answers were wrong: the weights
#   are spread over too many keys. `swap` sees the difference long before an answer does.</details>
# - In `attend_in_blocks`, leave out "largest so far" and use 0 in its place. For which inputs is the
#   result still right?
#   <details><summary>Answer</summary>As long as no exponential overflows (a score above 88 in 32-bit
#   numbers) and not all of them vanish. With all scores below -87 the exponentials lose digits, and
#   below -104 they are all 0.</details>
