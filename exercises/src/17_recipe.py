# %% [markdown]
# # Exercise 17 · A model of your own
#
# You write which object a patch shows, and then one step of what `backward()` has done for you
# since lesson 02: the way back through attention, by hand. It stands in no lesson. At the end
# everything that you wrote in this course trains a model from random weights.
#
# The lesson is [notebooks/17_recipe.ipynb](../notebooks/17_recipe.ipynb). Time: 60 minutes, 30 of
# them for part 2. Names inside your functions are yours; the order of the arguments is not.

# %%
import torch

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. What a patch shows
#
# A scene is composed, so we know where each object lies: in a box (y0, x0, y1, x1), in fractions of
# the picture. The picture is cut into `side` x `side` patches, numbered row by row. For each patch:
# the **number of the box that covers most of it**, counted from 0, if that box covers **more than**
# `share` of the patch; else -1. Boxes may overlap; where two cover equally much, take either. The
# boxes that you are given stay as they are. (In no patch of the check does rounding decide.)
#
# By hand: one box (0, 0.5, 0.75, 1), two by two patches, share 0.4. The box is as wide as the right
# half, and reaches from the top to three quarters of the height. It covers all of patch 1, half of
# patch 3, and nothing of 0 and 2. The result is -1, 0, -1, 0. With share 0.5 it is -1, 0, -1, -1.


# %%
def patch_targets(boxes, side, share):
    """Which box a patch belongs to.

    boxes: (m, 4), one box or more, float32: y0, x0, y1, x1 from 0 to 1, y0 < y1 and x0 < x1;
    side: patches in a row and in a column; share: from 0 to 1
    returns: (n,) for n = side * side patches, whole numbers (torch.int64)
    """
    ### BEGIN SOLUTION
    start = torch.arange(side)
    y0, x0, y1, x1 = (side * boxes).T[..., None]  # (m, 1) each
    rows = (torch.minimum(start + 1, y1) - torch.maximum(start, y0)).clamp(min=0)  # (m, side)
    columns = (torch.minimum(start + 1, x1) - torch.maximum(start, x0)).clamp(min=0)
    cover, box = (rows[:, :, None] * columns[:, None, :]).flatten(1).max(dim=0)
    return box.where(cover > share, -1)
    ### END SOLUTION


# %%
check("patch_targets", patch_targets)

# %% [markdown]
# Stuck? Run `hint("patch_targets", 1)`, then `2`, then `3` in a new cell. The other has hints too.

# %% [markdown]
# ## 2. Attention's way back
#
# In lesson 03 you wrote attention forwards:
#
# $$P = \text{softmax}\left(\frac{Q K^T}{\sqrt{k}}\right), \qquad O = P V$$
#
# Training needs it backwards. Someone gives you G, the gradient of the loss by each number of the
# output O. You give back the gradients by Q, K and V, and change none of your inputs. **Without
# autograd**, in whatever form: no `backward`, no `grad`, nothing from `torch.func`. No finished
# attention either; `softmax` you may use. What you need from mathematics:
#
# - For Y = A B with the gradient G of Y, the gradient of A is $G B^T$ and that of B is $A^T G$.
# - Softmax, one row: the shares $p_j$ come from the scores $s_j$. A score moves its own share and,
#   because they add up to 1, all others: $\partial p_i / \partial s_j = p_i (1 - p_j)$ if i = j,
#   else $-p_i p_j$. The shares' gradients are $d_i$. For the gradient of the score $s_j$, multiply
#   each $d_i$ by $\partial p_i / \partial s_j$, sum over i, and simplify. It becomes short.
#
# A key that the mask hides (False) has no share: no gradient goes to it or comes from it. Every
# query sees at least one key. Scores may be large, 1000 and more.
#
# By hand, with k = 4, so $\sqrt{k}$ = 2: the query [2, 0, 0, 0], the keys [0, 1, 0, 0] and
# [0, 3, 0, 0], the values [1, 0, 0, 0] and [3, 0, 0, 0], the gradient [1, 0, 0, 0]. Both scores are 0,
# both shares 1/2. The gradient of each value is [0.5, 0, 0, 0]. The gradients of the shares are 1
# and 3, those of the scores -0.5 and 0.5. So the query's is [0, 0.5, 0, 0], and the keys' are
# [-0.5, 0, 0, 0] and [0.5, 0, 0, 0].


# %%
def attention_backward(gradient, query, key, value, mask):
    """The gradients of attention's three inputs.

    gradient: (b, h, t, k), of the output; query: (b, h, t, k); key, value: (b, h, s, k)
    mask: None, or bool with four axes, t and s as above, b and h as above or 1; True where a query
    may look; no input requires a gradient
    returns: (query_gradient, key_gradient, value_gradient), of the shapes of query, key and value
    """
    ### BEGIN SOLUTION
    scale = query.shape[-1] ** -0.5
    scores = query @ key.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(dim=-1)
    of_shares = gradient @ value.mT
    mean = (shares * of_shares).sum(dim=-1, keepdim=True)  # weighted by the shares
    of_scores = shares * (of_shares - mean)
    return of_scores @ key * scale, of_scores.mT @ query * scale, shares.mT @ gradient
    ### END SOLUTION


# %%
check("attention_backward", attention_backward)

# %% [markdown]
# Now it takes autograd's place inside a real layer: the first of the trained tower. `Mine` is the
# form in which torch takes a function that brings its own way back.

# %%
from minipali import load
from minipali.scenes import examples

torch.set_num_threads(1)  # models so small that more threads only wait for each other
model, processor = load("small")


class Mine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value):
        ctx.save_for_backward(query, key, value)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    @staticmethod
    def backward(ctx, gradient):
        return attention_backward(gradient, *ctx.saved_tensors, None)


# %%
from minipali.swap import put


def gradient_of_first_layer(attend):
    learner = put(model, attend=attend)
    learner.zero_grad()
    pixels = processor.pixel_values([examples()["cat_and_ball"]])
    learner.vision_tower(pixels).square().mean().backward()
    return learner.vision_tower.layers[0].self_attn.q_proj.weight.grad


with trying("your gradients in a real layer"):
    attend = torch.nn.functional.scaled_dot_product_attention
    theirs = gradient_of_first_layer(lambda query, key, value, mask=None: attend(query, key, value))
    yours = gradient_of_first_layer(
        lambda query, key, value, mask=None: Mine.apply(query, key, value)
    )
    apart = (theirs - yours).abs().max() / theirs.abs().max()
    print(f"the gradient of the first layer's queries differs by {apart:.0e} of its largest number")

# %% [markdown]
# ## 3. Everything that you wrote
#
# `try_recipe` reads the exercises of lessons 01 to 13 in this folder *as they are saved*, and takes
# every function that passes its check: the model's pieces, the sigmoid loss, labels, the loss on
# the suffix, the loop. Your `patch_targets` says what patches show. What is missing comes from the
# package. Then both stages run, from random weights, for some seconds.
#
# That is enough for one thing, the colour of the background. The exam is on pictures by the
# validation artist. **The floor is 50 %**; guessing among nine colours gives 11 %.

# %%
from minipali.checks.recipe import try_recipe

mine = try_recipe(patch_targets, exercises=".")

# %% [markdown]
# ## 4. In full
#
# The whole training is a command, for a terminal in the folder of the course. It can be stopped at
# any time, and the same command goes on:
#
# ```
# python -m minipali.recipe mine --exercises exercises
# ```
#
# Afterwards the model lies in `runs/mine/model`. Run the lesson again, and it shows *your* curve,
# your exam and your failures. `minipali ask PICTURE --model runs/mine/model` asks it, and
# `minipali page` makes a web page of it.
#
# ## Go on
#
# - In your `attention_backward`, replace the weighted mean by the sum of gradient times output,
#   `(gradient * (shares @ value)).sum(-1, keepdim=True)`. Why is it the same?
#   <details><summary>Answer</summary>The sum over keys of share times (gradient · value) is
#   gradient · (sum of share times value), and that is gradient · output. FlashAttention uses it:
#   one number a query, and no table of t x s has to be kept.</details>
# - Which tensors of the forward pass does your function need? Which could be computed again?
#   <details><summary>Answer</summary>Query, key, value, and the shares. You compute the shares
#   again from query and key. To keep them would cost t x s numbers for each head. To compute again
#   saves memory and costs time; done for whole layers, it is called activation
#   checkpointing.</details>
# - Give `try_recipe` a `patch_targets` that returns -1 for all patches. What is learned without
#   patch labels?
#   <details><summary>Answer</summary>In so few steps the background still. Names come later: whole
#   pictures teach them, too, but each picture says only one thing. The lesson compares
#   both.</details>
