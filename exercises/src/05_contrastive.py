# %% [markdown]
# # Exercise 05 · Contrastive learning
#
# You write both losses. Then each of them has to teach: two small towers start from random weights,
# learn with your loss for some seconds, and must name pictures by an artist whom they have never
# seen.
#
# The lesson is [notebooks/05_contrastive.ipynb](../notebooks/05_contrastive.ipynb). Time: 30
# minutes, one of them for training. Names inside your functions are yours; the order of the
# arguments is not.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The softmax loss
#
# CLIP's loss. Picture i belongs to sentence i. The vectors come as the towers made them, so their
# lengths are anything; `log_scale` is the **logarithm** of the factor on the cosines. Each picture
# chooses among the sentences, each sentence among the pictures; the loss is the mean of both
# directions. It must stay finite when the factor is 100.
#
# Use torch's own `exp` on `log_scale`: the training below must be able to learn it.


# %%
def clip_loss(image, text, log_scale):
    """CLIP's symmetric softmax loss.

    image: (n, e); text: (n, e), neither of length 1; log_scale: a tensor without axes, ()
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
# SigLIP's loss: for each of the n · n pairs, minus the log of the probability of the right answer.
# Their sum, divided by n. It must stay finite when a score is far on the wrong side.


# %%
def siglip_loss(image, text, log_scale, bias):
    """SigLIP's sigmoid loss.

    image: (n, e); text: (n, e), neither of length 1; log_scale, bias: tensors without axes, ()
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
# ## 3. Do they teach?
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
# - `try_loss(..., pictures=14_400)` shows the towers four times as many pictures. What does it bring?
# - Train with `bias=-10.0`, then with `bias=5.0`. What happens to the cosines in the picture?
# - `try_loss(..., scale=1.0)` or `scale=100.0` starts with another temperature. Where does it end?
#   (`softmax.towers.log_scale.exp()`)
