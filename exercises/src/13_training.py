# %% [markdown]
# # Exercise 13 · Training
#
# You write what a training needs: the labels of a row, the loss on its suffix, and the loop. At the end
# your three pieces teach a new decoder to name what the trained vision tower sees, in seconds.
#
# The lesson is [notebooks/13_training.ipynb](../notebooks/13_training.ipynb). Time: 35 minutes.
# Names inside your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The labels of a row
#
# `prefix` is everything up to the newline that ends the question, `suffix` is the answer. The row's ids
# are both of them and `eos`. The labels have the same length. **Each place has its own token as its
# label**, or the mark `ignore` where nothing is asked. (The shift comes in part 2.)


# %%
def row_labels(prefix, suffix, eos, ignore):
    """Ids and labels of one row.

    prefix, suffix: lists of ids; the suffix may be empty; eos, ignore: numbers
    returns: (ids, labels), two lists of equal length
    """
    ### BEGIN SOLUTION
    answer = suffix + [eos]
    return prefix + answer, [ignore] * len(prefix) + answer
    ### END SOLUTION


# %%
check("row_labels", row_labels)

# %% [markdown]
# Stuck? Run `hint("row_labels", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. The loss
#
# The logits at a place are for the **next** token. Shift, leave out every place whose label is
# `ignore` (the mark is not always -100), and take the mean over all others: one mean for the whole batch,
# so that each token counts the same.


# %%
def suffix_loss(logits, labels, ignore):
    """Mean cross entropy of the next token.

    logits: (b, t, v); labels: (b, t), whole numbers
    returns: a tensor without axes, ()
    """
    ### BEGIN SOLUTION
    predicted = logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(predicted, labels[:, 1:].flatten(), ignore_index=ignore)
    ### END SOLUTION


# %%
check("suffix_loss", suffix_loss)

# %% [markdown]
# ## 3. The loop
#
# In every epoch: one step for each batch, in their order, **in train mode**. Then one measurement, the
# loss on the held-out batch, **in eval mode** and without gradients. The gradients of all parameters
# together are clipped to the length `max_norm`. The module of the check has a BatchNorm, so the
# modes matter. Each loss is noted as it was before its step.


# %%
def train(module, optimizer, batches, held_out, loss, epochs, max_norm):
    """Train a module.

    batches: a list of (x, y); held_out: one (x, y); loss: called as loss(module(x), y)
    returns: (losses (steps,), measured (epochs,)), two float32 tensors
    """
    ### BEGIN SOLUTION
    losses, measured = [], []
    for _ in range(epochs):
        module.train()
        for x, y in batches:
            value = loss(module(x), y)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), max_norm)
            optimizer.step()
            losses.append(value.item())
        module.eval()
        with torch.no_grad():
            measured.append(loss(module(held_out[0]), held_out[1]).item())
    return torch.tensor(losses), torch.tensor(measured)
    ### END SOLUTION


# %%
check("train", train)

# %% [markdown]
# ## 4. Do they teach?
#
# The trained vision tower, frozen, has looked at 1,500 pictures of single objects. In front of a new
# projector and a new decoder it is asked "what is this?", 180 steps of 16 pictures, in about six
# seconds: **with your labels, your loss and your loop**. Then it must name new pictures by an artist
# whom neither the tower nor the decoder has seen. Guessing among 24 names gives 4 %. **The floor is
# 55 %**; with right pieces we got 69 to 75 %.

# %%
from minipali import load
from minipali.checks.live import try_training
from minipali.small_tasks import speaking_task

torch.set_num_threads(1)  # a decoder so small that more threads only wait for each other
model, processor = load("small")
task = speaking_task(model, processor)

# %%
mine = try_training(row_labels, suffix_loss, train, model, task, floor=0.55)

# %% [markdown]
# Ask it about pictures of the package, by artists whom it does and does not know. It has learned one
# question and no other.

# %%
from minipali import figures, generate
from minipali.scenes import examples

names = ["penguin_test_artist", "cat_and_ball", "three_apples"]
pictures = [examples()[name] for name in names]
if mine is not None:
    told = [generate(mine, processor, one, "answer en what is this?") for one in pictures]
    figures.pictures(pictures, told, f"Three pictures and what your decoder says: {told}")

# %% [markdown]
# ## Go on
#
# - Give `try_training` labels without `eos`, or a loss that is not shifted. What does the loss say, and what
#   does the model say?
# - Train with the question in the loss too. It may still reach the floor. By how much is it worse, and is
#   one run enough to say so? (`try_training(..., seed=1)`)
# - Take `zero_grad` out of your loop, then clipping. Which of the two does this model forgive?
