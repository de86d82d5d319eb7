# %% [markdown]
# # Exercise 05 · Contrastive learning
#
# You write both losses, and then one of them a second time, in chunks: a form that stands in no lesson.
# Then each loss has to teach: two small towers start from random weights, learn with your loss for some
# seconds, and must name pictures by an artist whom they have never seen.
#
# The lesson is [notebooks/05_contrastive.ipynb](../notebooks/05_contrastive.ipynb). Time: 65
# minutes, one of them for training. Names inside your functions are yours; the order of the
# arguments is not. torch's own functions are welcome: `F.normalize`, `F.cross_entropy`, `F.logsigmoid`,
# `F.binary_cross_entropy_with_logits`. n, the number of pairs, is at least 2. All tensors hold
# 32-bit floats, the losses too. What comes in keeps its numbers: write `x = x + y`, not `x += y`.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The softmax loss
#
# CLIP's loss. Picture i belongs to sentence i. The vectors come as the towers made them: they have
# different lengths, never 0 nor nearly so, and you bring them to length 1 first. A score is the cosine of
# picture and sentence times exp(`log_scale`); `log_scale` is the **logarithm** of the factor. Each picture
# chooses among the sentences: minus the log of the softmax at the right one, and the mean over the
# pictures. Each sentence chooses among the pictures in the same way. The loss is the mean of both
# directions.
#
# The factor may be as large as 200. It is not to be clamped, and the loss must be right there too: neither
# infinite nor NaN, nor capped. The training below learns through your loss, so the check compares
# gradients, too: they must reach image, text and `log_scale`, and be right. So compute with torch alone
# (its own `exp` on `log_scale`), and take nothing out of autograd's graph on which the loss depends. The
# length of a vector belongs to it, too; a largest score that you subtract against overflow does not.


# %%
def clip_loss(image, text, log_scale):
    """CLIP's symmetric softmax loss.

    image, text: (n, e), rows not yet of length 1; log_scale: a tensor without axes, ()
    returns: the loss, a tensor without axes, ()
    """
    ### BEGIN SOLUTION
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (picture, sentence)
    logits = cosines * log_scale.exp()
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    ### END SOLUTION


# %%
check("clip_loss", clip_loss)

# %% [markdown]
# Stuck? Run `hint("clip_loss", 1)`, then `2`, then `3` in a new cell.

# %% [markdown]
# ## 2. The sigmoid loss
#
# SigLIP's loss. Every pair of a picture and a sentence is a question of its own: do these two belong
# together? The score of a pair is its cosine times exp(`log_scale`), plus `bias`. The probability of
# "yes" is sigmoid(score), that of "no" is sigmoid(-score). The right answer is "yes" for the n pairs
# with the same number and "no" for all others. Each pair costs minus the log of the probability of its
# right answer. The loss is the sum over all n · n pairs, divided by n (not by n · n).
#
# Vectors, factor and gradients are as above; gradients must reach the bias, too. A score may be far on
# the wrong side, below -100, and the loss must be right there as well.


# %%
def siglip_loss(image, text, log_scale, bias):
    """SigLIP's sigmoid loss.

    image, text: (n, e), rows not yet of length 1; log_scale, bias: tensors without axes, ()
    returns: the loss, a tensor without axes, ()
    """
    ### BEGIN SOLUTION
    cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (picture, sentence)
    logits = cosines * log_scale.exp() + bias
    labels = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)
    ### END SOLUTION


# %%
check("siglip_loss", siglip_loss)

# %% [markdown]
# ## 3. In chunks
#
# SigLIP was trained with batches of 32,768 pairs. Their table of scores has over a thousand million
# numbers, 4.3 GB. A softmax needs whole rows and columns of it. The sigmoid does not: each pair's cost
# stands for itself, so you can work on `size` sentences at a time, add up what they cost, and forget
# them. On many devices it is done so: each keeps its pictures, and the sentences travel round.
#
# The only thing to watch: where in a chunk are the right pairs? With n = 5 and size 2 the chunks hold
# the sentences 0 and 1, 2 and 3, and 4 alone. In the second chunk picture 2 belongs to the first column.
# The last chunk may be shorter, and size may be larger than n.
#
# By hand: if all scores are 0, each of the n · n pairs costs ln 2, so the loss is n · ln 2, for every size.
# And for every batch the result is that of your `siglip_loss`, up to rounding: a loss that is
# added up in another order may differ in its last digits. Vectors, factor, bias and gradients are as
# above.
#
# **Never make a table of n · n numbers** when size is smaller than n, not even of labels. The check looks
# at every tensor that torch makes in your function: with 14 pairs none may have more than 84 numbers,
# where the whole table has 196. (So a chunk's products may stand there before they are added up, and
# where size is n or more, one chunk holds everything.) Smaller steps are right as well, even one
# sentence at a time, and so are chunks of pictures in place of sentences. The way back is not measured:
# for it autograd keeps the chunks.


# %%
def siglip_loss_in_chunks(image, text, log_scale, bias, size):
    """SigLIP's sigmoid loss, computed in chunks; gradients flow through it.

    image, text: (n, e), rows not yet of length 1; log_scale, bias: tensors without axes, ()
    size: how many sentences a chunk holds at most, 1 or more; the last chunk may be shorter
    returns: the loss, a tensor without axes, ()
    """
    ### BEGIN SOLUTION
    image, total = F.normalize(image, dim=-1), 0.0
    for start in range(0, len(text), size):
        chunk = F.normalize(text[start : start + size], dim=-1)
        scores = image @ chunk.T * log_scale.exp() + bias  # (n, size)
        labels = -torch.ones_like(scores)
        columns = torch.arange(len(chunk))
        labels[start + columns, columns] = 1.0
        total = total - F.logsigmoid(labels * scores).sum()
    return total / len(image)
    ### END SOLUTION


# %%
check("siglip_loss_in_chunks", siglip_loss_in_chunks)

# %% [markdown]
# ## 4. Do they teach?
#
# Twelve objects, 12 different ones in each batch, 300 steps, about five seconds for each loss. After
# training, the towers see new pictures by an artist who is in no training picture, and choose among
# the twelve sentences. Guessing gives 8 %. **The floor is 25 %**; in six runs with right losses we got
# 38 to 44 %.

# %%
import math

from minipali import load
from minipali.checks.live import try_loss
from minipali.small_tasks import naming_task

torch.set_num_threads(1)  # towers so small that more threads only wait for each other
model, processor = load("small")
task = naming_task(processor)

# %%
softmax = try_loss("clip_loss", clip_loss, task, floor=0.25)

# %%
sigmoid = try_loss("siglip_loss", siglip_loss, task, floor=0.25, bias=-math.log(11))

# %% [markdown]
# The new artist's pictures as the towers with your loss see them: mean cosines, a row for each
# object, a frame around the largest.

# %%
from minipali import figures
from minipali.small_tasks import new_artist_table

trained = {"clip_loss": softmax, "siglip_loss": sigmoid}
tables = {name: new_artist_table(run.towers, task) for name, run in trained.items() if run}
if tables:
    figures.contrastive.similarity(task.new, task.names, tables)

# %% [markdown]
# ## Go on
#
# - Train with some of the mistakes that `check` knows: one direction only, no bias, the mean over
#   n · n, no exp. Which of them reach the floor all the same? What does this say about training as
#   a test?
#   <details><summary>Answer</summary>All of them. In one run each, no loss with one of these mistakes named fewer than 40 % of
#   the pictures, and some named more than the right loss did: chance between runs is larger than the
#   difference. Training forgives much. That is why a wrong loss can live for years in somebody's code,
#   and why the check compares numbers.</details>
# - Train with `siglip_loss_in_chunks` and a size of 5: `try_loss("siglip_loss", lambda i, t, s, b:
#   siglip_loss_in_chunks(i, t, s, b, 5), task, floor=0.25, bias=-math.log(11))`. What changes?
#   <details><summary>Answer</summary>Only the time: it is the same loss, so the same towers come out,
#   up to rounding.</details>
# - `try_loss(..., pictures=14_400)` shows the towers four times as many pictures. What does it bring?
#   <details><summary>Answer</summary>About 55 % with either loss, in one run each, where 3,600 pictures gave 40 and 44 %.
#   More pictures help more than the choice of the loss.</details>
# - Train with `bias=-10.0`, then with `bias=5.0`. What happens to the cosines in the picture?
#   <details><summary>Answer</summary>The bias hardly moves in 300 steps, so the cosines do the
#   work. With -10 they lie high: in one run the right pairs had 0.76 in the mean and the wrong ones
#   0.46. With 5 they lie low: -0.51 and -0.69. What counts is the difference, and the accuracy is about
#   the same.</details>
# - `try_loss(..., scale=1.0)` or `scale=100.0` starts with another temperature. Where does it end?
#   (`softmax.towers.log_scale.exp()`)
#   <details><summary>Answer</summary>Not far from where it began: from 1 it came to 1.7, from 100 down to 72, from 10 to
#   about 9. 300 steps are few, and what is learned is the logarithm. The accuracy hardly differs.</details>
