# %% [markdown]
# # Exercise 18 · LoRA
#
# You write LoRA's start values, the layer and the merge. The fourth piece stands in no lesson: it
# makes an adapter of a model that somebody has trained in full. Then the trained model learns a
# word with your layer, and you see how few directions that word needs.
#
# The lesson is [notebooks/18_lora.ipynb](../notebooks/18_lora.ipynb). Time: 60 minutes, 20 of them
# for part 4. Names inside your functions are yours; the order of the arguments is not. No function
# changes a tensor that it is given, also not whether it learns (`requires_grad_`). All tensors are
# float32, but for the weight of part 3.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Start values
#
# A linear layer has a weight W of shape (n, d): d numbers come in, n go out. Beside it come two
# small matrices, **A (rank, d)** and **B (n, rank)**.
#
# A is random, uniform between -1 / sqrt(d) and 1 / sqrt(d). B is zero. Both learn: an optimizer takes
# them as they are (`requires_grad`, and not computed from anything that learns). Draw with torch, and
# set no seed: two calls give different A, and whoever wants the same one calls `torch.manual_seed`.
#
# By hand: for n = 3, d = 4 and rank 2, A has 2 rows of 4 numbers, all between -0.5 and 0.5, and B
# has 3 rows of 2 zeros.


# %%
def start_values(n, d, rank):
    """The two small matrices as they are before the first step.

    n, d: numbers that the layer gives out, and that it takes; rank: of the change
    returns: A (rank, d) and B (n, rank), which both learn
    """
    ### BEGIN SOLUTION
    A = (2 * torch.rand(rank, d) - 1) / d**0.5
    B = torch.zeros(n, rank)
    return A.requires_grad_(), B.requires_grad_()
    ### END SOLUTION


# %%
check("start_values", start_values)

# %% [markdown]
# Stuck? Run `hint("start_values", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. The layer
#
# $$y = x W^T + \frac{\alpha}{r}\, x A^T B^T$$
#
# W is **frozen**: no gradient may reach it. But the gradient must go on *through* the frozen part to
# x, because the layers before this one want to learn, too. The rank r stands in the shape of A.
#
# By hand, with rank 1 and alpha 2: W = [[2, 0], [1, 1]], A = [[1, 1]], B = [[0.5], [-1]] and x =
# [1, 3]. The frozen part gives [2, 4]. A makes 4 of x, B makes [2, -4] of that, times 2 / 1 is
# [4, -8]. The sum is [6, -4].


# %%
def lora_forward(x, weight, A, B, alpha):
    """A frozen linear layer with a change beside it.

    x: (..., d); weight: (n, d), frozen; A: (rank, d); B: (n, rank); alpha: a number
    returns: (..., n)
    """
    ### BEGIN SOLUTION
    frozen = x @ weight.detach().T
    return frozen + alpha / A.shape[0] * (x @ A.T @ B.T)
    ### END SOLUTION


# %%
check("lora_forward", lora_forward)

# %% [markdown]
# ## 3. Merge
#
# After training the two ways become one: one weight of the old shape that gives the same outputs. So
# a model with a merged adapter costs nothing more in use.
#
# The weight may be `bfloat16`. Compute in float32, and round **once**, at the end: the result has the
# weight's dtype.
#
# By hand, with the numbers of part 2: 2 / 1 times B A is [[1, 1], [-2, -2]], and with W added [[3,
# 1], [-1, -1]]. Times x = [1, 3] it gives [6, -4], as above.


# %%
def merge_weight(weight, A, B, alpha):
    """One weight that does the work of all three.

    weight: (n, d), float32 or bfloat16; A: (rank, d); B: (n, rank); alpha: a number
    returns: (n, d), of the weight's dtype
    """
    ### BEGIN SOLUTION
    return (weight.float() + alpha / A.shape[0] * B @ A).to(weight.dtype)
    ### END SOLUTION


# %%
check("merge_weight", merge_weight)

# %% [markdown]
# ## 4. An adapter from a model that was trained in full
#
# Somebody trained all weights, and published the whole model. You have the model from before, and want
# a small file: an adapter of rank r. Each layer's weight went from `before` to `after`. Find A and B
# so that $\frac{\alpha}{r} B A$ comes **as near as possible** to what changed (the smallest sum of
# squared differences). Many pairs A and B do that equally well; each of them is right. They need not
# learn. What changed may have a rank below r, or be zero.
#
# What you need from mathematics: every matrix M is a sum of simple ones, $M = \sum_i s_i\, u_i
# v_i^T$, each a column times a row times a size $s_i$, the largest size first.
# `torch.linalg.svd(M)` returns the columns $u_i$ side by side, the sizes, and the rows $v_i^T$ below
# each other. Of all matrices of rank r, the sum of the **first r** summands is the nearest to M
# (Eckart and Young 1936).
#
# By hand: the weight [[1, 0], [0, 1]] became [[4, 0], [0, 2]]. With rank 1, the nearest change is
# [[3, 0], [0, 0]]. With alpha 2 the layer multiplies by 2 / 1, so B A must be [[1.5, 0], [0, 0]].


# %%
def extract(before, after, rank, alpha):
    """The adapter that comes nearest to a full training.

    before, after: (n, d), the weight of one layer; rank: from 1 to the smaller of n and d; alpha: above 0
    returns: A (rank, d) and B (n, rank), so that alpha / rank * B A is nearest to the change
    """
    ### BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(after - before, full_matrices=False)
    return Vh[:rank], U[:, :rank] * S[:rank] * rank / alpha
    ### END SOLUTION


# %%
check("extract", extract)

# %% [markdown]
# ## 5. A word for the trained model
#
# The small model knows 24 objects. A bus is none of them. `try_lora` freezes the model, puts your
# layer on all linear layers of the decoder, trains 60 steps on 40 pictures of buses and other things,
# and then merges with your `merge_weight`. The exam: new pictures by the validation artist, whose drawings
# nobody was trained on. Does it name the bus, and does it still know the old names?

# %%
from minipali import load
from minipali.checks.lora import try_extract, try_lora

torch.set_num_threads(1)  # a model so small that more threads only wait for each other
model, processor = load("small")
yours = try_lora(model, processor, start_values, lora_forward, merge_weight)

# %% [markdown]
# Now all weights of the decoder learn the same word, and your `extract` keeps only a part of what
# changed: 1, 2, 4 … directions of each layer's 128. How few are enough?

# %%
kept = try_extract(model, processor, extract)

# %% [markdown]
# ## 6. Ask it
#
# The merged model is a plain model again. Ask it about a bus that it has not seen, and about an old
# friend.

# %%
import numpy as np

from minipali import figures, generate, scenes

rng, told = np.random.default_rng(7), []
shown = {"bus": "what is this?", "bus dog": "what is on the left?", "penguin": "what is this?"}
scenes_of = [scenes.compose(rng, scenes.VALIDATION_ARTIST, names=names.split()) for names in shown]
if yours is not None:
    for scene, question in zip(scenes_of, shown.values(), strict=True):
        prompts = [f"answer en {question}", "caption en"]
        told.append(" / ".join(generate(yours, processor, scene.picture, one) for one in prompts))
    alt = f"Three pictures and what your model says about them: {told}"
    figures.pictures([scene.picture for scene in scenes_of], told, alt)

# %% [markdown]
# Behind each stroke stands its caption. No caption that it learned from had a bus in it. Did the word
# come over from the questions? With our solution it did not: the caption names something else. A model
# of this size learns a word for a question, not a word.
#
# ## Go on
#
# - Give `try_lora` start values of which both are zero. What is the loss in the last step?
#   <details><summary>Answer</summary>The same as in the first, up to the luck of the batches: no gradient
#   ever arrives, and every step is a step of length 0.</details>
# - Try ranks 1 and 32 (`rank=`), with the same alpha and with the same alpha / rank. Which of the two
#   comparisons is fair?
#   <details><summary>Answer</summary>With the same alpha the change of a larger rank is divided by more, so
#   that the learning rate can stay. With the same alpha / rank a larger rank takes larger steps. Neither is
#   fair by itself: a fair comparison looks for the best rate of each.</details>
# - Teach it something that it must not lose anything for: put 40 old questions beside the 40 pictures.
#   <details><summary>Answer</summary>Old names stay better. This is called replay. It needs examples of the
#   old tasks, which we have, because we compose them; who downloads a model often has none.</details>
