# %% [markdown]
# # Exercise 13 · Training
#
# You write what a training needs: the labels of a row, the loss on its suffix, and the loop. The fourth
# piece stands in no lesson: a batch that is too big for the memory, in parts. At the end the first three
# teach a new decoder to name what the trained vision tower sees, in seconds.
#
# The lesson is [notebooks/13_training.ipynb](../notebooks/13_training.ipynb). Time: 70 minutes, 25 of them
# for part 4. Names inside your functions are yours; the order of the arguments is not. No function changes
# a list or a tensor that it is given; only `train` and `accumulate` change the module.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. The labels of a row
#
# `prefix` is the question with the newline that ends it, and all before it; `suffix` is the answer. The
# row's ids are both of them and `eos`. The labels have the same length. **Each place has its own token as its
# label**, or the mark `ignore` where nothing is asked. (The shift comes in part 2.) `eos` always has a
# label, also after an empty suffix. A token may stand in prefix and suffix: its place decides.
#
# By hand: prefix 7, 8, 9, suffix 8, eos 1, ignore -100. The ids are 7, 8, 9, 8, 1, and the labels -100,
# -100, -100, 8, 1.


# %%
def row_labels(prefix, suffix, eos, ignore):
    """Ids and labels of one row.

    prefix, suffix: lists of ids; the suffix may be empty, the prefix not; eos, ignore: numbers
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
# The logits at a place are for the **next** token. Shift, leave out every place whose label is `ignore` (the
# mark is not always -100, and may be 0), and take the mean over all others: one mean for the whole batch, so
# that each token counts the same. A label at place 0 is predicted by nobody, so it never counts. A row may
# have no label at all, but not all rows. Logits may be large: the loss must not become infinite, and it must
# have a gradient.
#
# By hand: one row with the labels ignore, ignore, 1, 0 and a vocabulary of 2. At the second place both
# logits are equal, and at the third they are 0 and log 3, so that the right token has 1/4. The loss is
# (log 2 + log 4) / 2 = 1.04. The logits of the last place play no part.


# %%
def suffix_loss(logits, labels, ignore):
    """Mean cross entropy of the next token.

    logits: (b, t, v); labels: (b, t), whole numbers (torch.int64)
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
# In every epoch: one step for each batch, in their order, **in train mode**. Then one measurement, the loss
# on the held-out batch, **in eval mode** and without a graph, by `torch.no_grad()` or otherwise (the check
# notices). A step follows the gradients of its own batch alone; the module comes to you without any. They are
# clipped to the length `max_norm`, those of all the module's parameters together: longer ones are made
# shorter, shorter ones stay. (A frozen parameter has none: its `grad` is `None`.) The optimizer has the same
# parameters.
#
# The module of the check has a BatchNorm, so the modes matter, and it may come to you in eval mode. In
# which mode you leave it, and with which gradients, is up to you. Each loss is noted as it was before its
# step, as a number: no graph may hang on the results. There is one for each step, so epochs · batches in
# all.


# %%
def train(module, optimizer, batches, held_out, loss, epochs, max_norm):
    """Train a module.

    batches: a list of (x, y); held_out: one (x, y); loss: called as loss(module(x), y)
    returns: (losses (steps,), measured (epochs,)), two float32 tensors without a graph
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
# ## 4. A batch in parts
#
# A batch of 256 rows does not fit into the memory. So 16 parts of 16 rows go through the module one after
# the other, their gradients add up, and then comes *one* step. Is that the same step? Only if each token
# counts as it would in the big batch. In 2024 it came out that widely used training code had this wrong for
# years: it took the mean of the parts' means.
#
# Parts have different numbers of rows, of places and of labels that count. In all there is at least one
# label that counts. A part may have none, also the first. You may leave such a part out.
#
# By hand: in the first part one token counts, and its loss is 2. In the second part three count, and their
# mean loss is 1. The loss of the whole is (2 + 3) / 4 = 1.25, not 1.5: the first part adds 2/4 = 0.5 to it,
# and the second 3/4 = 0.75.
#
# - The module may hold old gradients. Afterwards it holds those of this batch alone. (`None` is as good as
#   zeros. Frozen parameters have `None` before and after.)
# - **One part at a time**: a part that has labels gets its `backward()` before the next one goes through
#   the module, so that its graph is gone. (The check counts how many wait for it. `torch.autograd.grad` is as
#   good. What goes through with gradients switched off does not count.)
# - Make no step: that is for whoever calls you. Train or eval mode plays no part here.


# %%
def accumulate(module, parts, ignore):
    """Put the gradients of one big batch into a module, from its parts.

    module: makes logits (b, t, v) of x; parts: a list of (x, labels), labels: (b, t), as in part 2
    returns: the loss of the whole batch, a tensor without axes, (); it needs no graph
    """
    ### BEGIN SOLUTION
    module.zero_grad()
    total = sum((labels[:, 1:] != ignore).sum() for _, labels in parts)
    loss = torch.zeros(())
    for x, labels in parts:
        predicted, wanted = module(x)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        share = F.cross_entropy(predicted, wanted, ignore_index=ignore, reduction="sum") / total
        share.backward()
        loss += share.detach()
    return loss
    ### END SOLUTION


# %%
check("accumulate", accumulate)

# %% [markdown]
# ## 5. Do they teach?
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
if mine is None:
    print("try_training has given no model yet")
else:
    told = [generate(mine, processor, one, "answer en what is this?") for one in pictures]
    figures.pictures(pictures, told, f"Three pictures and what your decoder says: {told}")

# %% [markdown]
# And your `accumulate`, on the decoder that you have just trained: 16 pictures at once, and the same ones in
# parts of 2, 9 and 5. The loss should be the same, and so should every gradient, up to rounding.

# %%
from minipali.small_tasks import Speaker, speaking_batch
from minipali.tokens import IGNORE


def in_parts(model, *sizes):
    """Loss and gradients of the task's first pictures, in parts of these sizes."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    spans = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    parts = [speaking_batch(task, list(span), labels_of=row_labels) for span in spans]
    loss = accumulate(Speaker(model), parts, IGNORE)
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


with trying("a real batch in parts"):
    if mine is not None:
        whole, some = in_parts(mine, 16), in_parts(mine, 2, 9, 5)
        apart = max((a - b).abs().max().item() for a, b in zip(whole[1], some[1], strict=True))
        print(f"loss {whole[0]:.5f} at once, {some[0]:.5f} in parts")
        print(f"the gradients differ by {apart:.0e} at most")

# %% [markdown]
# ## Go on
#
# - Give `try_training` labels without `eos`, or a loss that is not shifted. What does the loss say, and what
#   does the model say?
#   <details><summary>Answer</summary>Both losses become small, and both look like success. Without `eos` the
#   model names the thing and does not stop. Without the shift it learns to repeat the token that it has just
#   read, which is easy, and says nothing useful.</details>
# - Train with the question in the loss too. It may still reach the floor. By how much is it worse, and is
#   one run enough to say so? (`try_training(..., seed=1)`)
#   <details><summary>Answer</summary>Here all questions are the same, so they are learned in a few steps
#   and cost little afterwards. Runs with different seeds differ by several percent: you need a few seeds of
#   each before the difference means anything.</details>
# - Take `zero_grad` out of your loop, then clipping. Which of the two does this model forgive?
#   <details><summary>Answer</summary>Clipping, as a rule: AdamW divides each gradient by its usual size, so
#   long gradients do little harm here. Without `zero_grad` each step follows the sum of all gradients so
#   far, and the training runs in old directions.</details>
# - Use the mean of the parts' means in `accumulate`. When is it right?
#   <details><summary>Answer</summary>When all parts have the same number of labels that count. With rows of
#   equal length, as in pretraining on packed text, nobody notices.</details>
