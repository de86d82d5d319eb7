# %% [markdown]
# # Exercise 04 · The vision tower
#
# You write the two halves of the tower: the MLP, and the block that puts attention and MLP on the
# residual stream. The third piece stands in no lesson: the head with which SigLIP makes one vector of a
# whole picture. After each one, a check tells you whether it is right, and if it can, what went wrong.
# At the end the trained model sees with your code.
#
# The lesson is [notebooks/04_vision.ipynb](../notebooks/04_vision.ipynb). Time: 65 minutes. Names
# inside your functions are yours; the order of the arguments is not. What comes in keeps its numbers:
# write `x = x + y`, not `x += y`. All three are trained, so gradients must reach all tensors that come
# in, and be right: take nothing out of autograd's graph.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The MLP
#
# A linear map to the hidden width, GELU, and a linear map back. Both maps have a bias. GELU comes in
# two forms; SigLIP was trained with the **tanh form**:
#
# $$\text{GELU}(u) = 0.5\, u \,\bigl(1 + \tanh(\sqrt{2 / \pi}\,(u + 0.044715\, u^3))\bigr)$$
#
# A weight has the shape (outputs, inputs), as in `torch.nn.Linear`. You may use `F.linear` and
# `F.gelu`, which needs to be told the form. u may be large, a hundred or more, and the result and the
# gradients must be right there too: no NaN, and no upper limit (GELU(100) is 100). Do not add `x` to the
# result: that is the block's work.


# %%
def mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """Two linear maps with a GELU (tanh form) between them, for each patch alone.

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
# Stuck? Run `hint("mlp", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. The block
#
# One layer of the tower, pre-norm: attention first, then the MLP. You get four functions that are ready
# to call: `norm1(x)`, `attention(x)`, `norm2(x)` and `mlp(x)`. Each takes (b, n, d) and returns (b, n,
# d), and gives the same for the same input, however often you call it. Each may hand back its argument
# itself, so do not write into what it returns (`h += x`). Attention reads the stream through norm1 and
# adds its result to the stream; the MLP reads the new stream through norm2 and adds its result. The
# stream itself is never normed. Here the name `mlp` is the argument, not your function from above.


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
# ## 3. One vector for a whole picture
#
# The tower gives one vector for each patch. To compare a picture with a sentence (lesson 05) it takes
# one for the whole picture. The mean of the patches is the simplest way. SigLIP learns which patches
# count: **one learned query**, the same for every picture, attends to all patches. Nothing asks but
# this query; the patches are only keys and values.
#
# - The queries' map is applied to `probe`, the keys' and the values' maps to x. The three are stored in
#   one piece, as the published weights have them: the first d rows of `in_weight` (and the first d
#   numbers of `in_bias`) belong to the queries, the next d to the keys, the last d to the values. Each
#   of the three maps is (out, in).
# - Attention in several heads, as in lesson 03: the numbers of a head stand side by side, the scale is
#   1 / sqrt(d / heads). Scores may be in the hundreds: the softmax must not overflow. Then the last
#   map, `out_weight` and `out_bias`.
# - Call the result y, one vector for each picture. What is returned is y + mlp(norm(y)): an MLP adds to
#   it, as in a block. The probe itself is not added. norm and mlp may hand back their argument itself.
#
# One gradient is 0 on paper: the keys' bias moves all scores of a head alike, and the softmax does not
# notice. What rounding leaves of it does not count.
#
# A result by hand. Say d = 1, one head, all weights 1, all biases 0, norm and mlp that change
# nothing. probe = ln 3, and a picture has two patches, 0 and 1. The scores are 0 and ln 3, the weights
# 1/4 and 3/4, y is 3/4, and the result 3/2. And for any probe: if all patches of a picture are the same,
# the weights do not matter.
#
# You may use your pieces of earlier exercises. Unlike in exercise 03 you may also use torch's
# `F.scaled_dot_product_attention`: attention itself is not what is new here. torch's finished
# `nn.MultiheadAttention` and `F.multi_head_attention_forward` are refused by the check.


# %%
def attention_pool(x, probe, in_weight, in_bias, out_weight, out_bias, heads, norm, mlp):
    """One vector for each picture: a learned query attends to all patches, then an MLP adds.

    x: (b, n, d); probe: (d,); in_weight: (3 * d, d); in_bias: (3 * d,)
    out_weight: (d, d); out_bias: (d,); heads divides d
    norm, mlp: functions of the last axis, for any axes before it: (..., d) -> (..., d)
    returns: (b, d)
    """
    ### BEGIN SOLUTION
    q_weight, k_weight, v_weight = in_weight.chunk(3)
    q_bias, k_bias, v_bias = in_bias.chunk(3)
    b, n, d = x.shape
    query = F.linear(probe, q_weight, q_bias).reshape(1, heads, 1, d // heads)
    key = F.linear(x, k_weight, k_bias).reshape(b, n, heads, -1).transpose(1, 2)
    value = F.linear(x, v_weight, v_bias).reshape(b, n, heads, -1).transpose(1, 2)
    weights = (query @ key.mT * (d // heads) ** -0.5).softmax(dim=-1)  # (b, h, 1, n)
    y = F.linear((weights @ value).reshape(b, d), out_weight, out_bias)
    return y + mlp(norm(y))
    ### END SOLUTION


# %%
check("attention_pool", attention_pool)

# %% [markdown]
# ## 4. Inside the model
#
# `swap` makes a copy of the trained model in which your first two functions do the work, in each layer
# of the vision tower, with the trained weights. It says whether every layer still agrees, or which one
# differs first. (The third is no part of PaliGemma, which keeps all patches and has no use for one
# vector.)

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(model, mlp=mlp, encoder_layer=encoder_layer)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "detect dog"):
    for one in (model, mine):
        print(f"{whose(one):8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Write an `mlp` with the erf form, then one with ReLU. What does `check` say, what does `swap` say,
#   and do the answers change? A test of answers alone would pass one of them.
#   <details><summary>Answer</summary>The check names both. `swap` lets the erf form pass: its
#   numbers are closer than the difference that `swap` allows. It notices ReLU; still, the answers
#   about this picture stay the same, or a box moves a little. Only the check of numbers told you all.</details>
# - Write a block that leaves out attention: `return x + mlp(norm2(x))`. Each patch then sees itself
#   alone. Which questions does the model still answer?
#   <details><summary>Answer</summary>None of them. It still says a sentence in the right form, with things
#   and a colour that are not there: what the tower hands over is so far from what the decoder has
#   learned to read that even the background comes out wrong.</details>
# - Give `attention_pool` a probe of zeros and an `in_bias` of zeros. What are the weights, and what
#   does the head then do before its last map?
#   <details><summary>Answer</summary>Every score is 0, so every patch gets the weight 1 / n: the head
#   takes the mean of the values. The mean is attention that has learned nothing.</details>
