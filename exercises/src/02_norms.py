# %% [markdown]
# # Exercise 02 · Three ways to tame numbers
#
# You write LayerNorm, RMSNorm and BatchNorm. After each one, a check tells you whether it is right,
# and if it can, what went wrong. The fourth piece stands in no lesson: the way back through
# LayerNorm. At the end the first two run inside the trained model.
#
# The lesson is [notebooks/02_norms.ipynb](../notebooks/02_norms.ipynb). Time: 75 minutes. Names
# inside your functions are yours; the order of the arguments is not. Leave torch's finished norms
# aside (`F.layer_norm`, `F.batch_norm`, `F.normalize` and every other function or module of torch that
# normalises), in all four pieces: with them there is nothing left to learn, and the check refuses them.
# What only measures is allowed (`mean`, `std`, `var_mean`, `torch.linalg.vector_norm`, `einsum` and the
# like). What comes in keeps its numbers: write `x = x + y`, not `x += y`. What you return has the dtype
# of x, whatever you compute with on the way. Here autograd's gradients are not checked.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. LayerNorm
#
# Bring each token to mean 0 and variance 1 over its features: subtract its mean, divide by
#
# $$\sqrt{\text{variance} + \text{eps}}$$
#
# Then multiply by the weight and add the bias. The variance is the one that divides by d. eps is the
# number that you are given, above 0 and perhaps large; it stands inside the root. A token may have the
# same number everywhere. A token's mean may be thousands of times as
# large as its spread: subtract the mean before you square, or the squares swallow the difference. (The
# check's tokens of this kind are chosen so that 32 bits are enough.)


# %%
def layer_norm(x, weight, bias, eps):
    """Normalise each token over its features.

    x: (b, n, d); weight, bias: (d,)
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(variance + eps) * weight + bias
    ### END SOLUTION


# %%
check("layer_norm", layer_norm)

# %% [markdown]
# Stuck? Run `hint("layer_norm", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. RMSNorm, as Gemma has it
#
# Divide each token by the root mean square of its features,
#
# $$\sqrt{\text{mean of the squares} + \text{eps}}$$
#
# with eps inside the root again. Nothing is subtracted. The stored weight is the factor minus one, so
# multiply by 1 + weight. A token may be all zeros, and stays so.


# %%
def rms_norm(x, weight, eps):
    """Divide each token by the root mean square of its features, times (1 + weight).

    x: (b, n, d); weight: (d,)
    returns: (b, n, d)
    """
    ### BEGIN SOLUTION
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * (1 + weight)
    ### END SOLUTION


# %%
check("rms_norm", rms_norm)

# %% [markdown]
# ## 3. BatchNorm, with its memory in your hands
#
# BatchNorm normalises each feature over the batch. It is the only one of the three with a memory.
# Here the memory comes in as two tensors, and you return the new ones.
#
# - In training, the output uses the mean and the variance (divided by b) of this batch. The memory
#   moves by the share `momentum` towards the batch's mean and towards its *unbiased* variance
#   (divided by b - 1): new = (1 - momentum) * old + momentum * batch, with a momentum between 0 and 1.
#   Return it as two new tensors (`torch.lerp` makes one, `lerp_` changes what came in). b is at least 2.
# - In eval mode, the output uses the memory, and the memory stays as it is: return the two tensors that
#   came in, or copies. b may be 1.
# - In both, the output is (x - mean) / sqrt(variance + eps), times the weight, plus the bias.


# %%
def batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """Normalise each feature over the batch, or with the memory.

    x: (b, d); weight, bias, running_mean, running_var: (d,); training: True or False
    returns: y (b, d), the new running_mean (d,), the new running_var (d,)
    """
    ### BEGIN SOLUTION
    mean, variance = running_mean, running_var
    if training:
        mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var = (1 - momentum) * running_var + momentum * x.var(dim=0, correction=1)
    y = (x - mean) * torch.rsqrt(variance + eps) * weight + bias
    return y, running_mean, running_var
    ### END SOLUTION


# %%
check("batch_norm", batch_norm)

# %% [markdown]
# ## 4. The way back
#
# In training, gradients flow through each layer from its output to its inputs. torch does it for you.
# Do it once by hand. The loss has the gradient `gradient` with respect to the output of your
# `layer_norm`. What are its gradients with respect to x, the weight and the bias? The tokens are like
# those of section 1. Nothing of torch that differentiates is allowed: no `backward`, no
# `torch.autograd`, no `torch.func`, no `native_layer_norm_backward`. The check refuses them. Differences
# of nearby outputs, (y(x + h) - y(x - h)) / 2h, are a way to test your formula, not what is asked for: in
# 32 bits they are too coarse for the check. In 64 bits they pass, at two forward passes for each number.
#
# On paper first. Change one number of a token a little: its output changes directly, and all outputs of
# the token change, because the mean and the standard deviation move. Weight and bias are the same for all
# tokens of the batch. One result to hold yours against: add the same number to a whole token and no
# output changes, so the gradients of x add up to 0 over the features of each token. And one to compute
# with: x = (1, 3), weight = (1, 1), eps = 3 gives a divisor of 2, and the gradient (1, 0) comes back to x
# as (0.1875, -0.1875), to the weight as (-0.5, 0), to the bias as (1, 0).


# %%
def layer_norm_backward(gradient, x, weight, eps):
    """Gradients of a loss through y = layer_norm(x, weight, bias, eps).

    gradient: of the loss with respect to y, (b, n, d); x: (b, n, d); weight: (d,)
    returns: three gradients, for x (b, n, d), for the weight (d,), for the bias (d,), in this order
    """
    ### BEGIN SOLUTION
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    normal = centred / deviation
    inner = gradient * weight
    through_mean = inner.mean(dim=-1, keepdim=True)
    through_deviation = normal * (inner * normal).mean(dim=-1, keepdim=True)
    of_x = (inner - through_mean - through_deviation) / deviation
    return of_x, (gradient * normal).sum(dim=(0, 1)), gradient.sum(dim=(0, 1))
    ### END SOLUTION


# %%
check("layer_norm_backward", layer_norm_backward)

# %% [markdown]
# ## 5. Inside the model
#
# The vision tower normalises with LayerNorm, the decoder with RMSNorm. `swap` makes a copy of the
# trained model in which your two functions do this work, in every layer and with the trained
# weights. (The model has no BatchNorm, so your third function stays outside.)

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(model, layer_norm=layer_norm, rms_norm=rms_norm)

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
# - Write LayerNorm a second time from your `rms_norm`: what is missing? `swap` it in.
#   <details><summary>Answer</summary>The mean: subtract it from each token first. Then
#   `rms_norm(x - mean, weight - 1, eps) + bias`, because `rms_norm` adds 1 to its weight.</details>
# - Use the unbiased variance in `layer_norm` on purpose. What does the check say, what does `swap`
#   say, and do the answers change? Which of the three tells you the truth about your code?
#   <details><summary>Answer</summary>The check names it, because its tokens are narrow: 5 against 4 is
#   much. In the model a token has so many features that the difference is small, and an answer need
#   not show it. The check tells the truth.</details>
# - Give `batch_norm` one example in training, and look at all three results.
#   <details><summary>Answer</summary>The output is the bias, whatever came in. The new mean is fine. The
#   new variance is `nan`: the unbiased one divides by b - 1, which is 0.</details>
