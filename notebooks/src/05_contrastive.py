# %% [markdown]
# # 05 · Contrastive learning: who belongs to whom?
#
# Lesson 04 built the vision tower. Who taught it to see? Nobody told it "this is a dog". It got
# pictures with sentences found beside them, and one task: **which sentence belongs to which
# picture?** This lesson builds the two losses that turn this question into a number, CLIP's and
# SigLIP's, and trains small towers with both, in seconds.
#
# ## Where we are

# %%
import math

import torch

from minipali import figures, load, scenes

model, processor = load("small")
figures.model_map("vision", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **compute** the softmax loss and the sigmoid loss of a small table on paper,
# 2. **explain** what temperature and bias do, and what their start values mean,
# 3. **compare** both losses: in training, and in bytes on many machines.
#
# Time: 45 minutes. You need: the tower (lesson 04), softmax and cosine (lesson 03). Two to
# three minutes of this are training; start with *Run All*, then read.
#
# ## Predict
#
# - Before training the cosines of two pictures with two sentences are in the left table. The notes
#   show the right table as *after training*. How many training steps does the first row need?
#
#   | | Dog | Cat | | | Dog | Cat |
#   |---|---|---|---|---|---|---|
#   | picture 1 | 0.6 | 0.4 | | picture 1 | 0.95 | 0.05 |
#   | picture 2 | 0.3 | 0.5 | | picture 2 | 0.10 | 0.90 |
#
# - 1,024 machines hold 32 pairs each. How much memory does each need for the loss: with CLIP's
#   softmax, and with SigLIP's sigmoid?
# - Someone trains with the sigmoid loss and labels 0 and 1. The loss falls and stays flat. What has
#   the model learned?
#
# ## By hand: a table of cosines
#
# A vision tower makes one vector of each picture, a text tower one of each sentence. Both are
# divided by their lengths, so that a dot product is a **cosine**, from -1 to 1. (This makes lengths
# equal to 1. It does not make *sizes* equal: two linear maps, one after each tower, do that.)
# **Rows are pictures, columns are sentences**, and the right pairs are on the diagonal.
#
# Read a row as a question: which sentence fits this picture? Softmax makes shares of the scores
# (lesson 03), and the loss is -log of the right share: 0 if the share is 1, and large if it is small.
# On paper, for picture 1: exp(0.6) = 1.822, exp(0.4) = 1.492, the right share is 1.822 / 3.314.

# %%
cosines = torch.tensor([[0.6, 0.4], [0.3, 0.5]])  # (i, j): picture i, sentence j
shares = cosines.exp() / cosines.exp().sum(dim=1, keepdim=True)
print("shares:\n", shares)
print("loss of each row:", [round(x, 3) for x in (-shares.diagonal().log()).tolist()])

# %% [markdown]
# Dog is right, and its share is only 0.55. Shares of cosines can not be much better: no two cosines
# differ by more than 2. So both losses first multiply by a factor, here called **scale**. CLIP
# starts with 1 / 0.07; the 0.07 is called *temperature*. See what it does to the same cosines:

# %%
for scale in (1, 1 / 0.07, 100):
    first, second = (cosines * scale).softmax(dim=1).tolist()
    print(f"scale {scale:5.1f}: row 1 {first[0]:.3f} {first[1]:.3f}", end=", ")
    print(f"row 2 {second[0]:.3f} {second[1]:.3f}")
best = [round(math.exp(2) / (math.exp(2) + n - 1), 4) for n in (2, 12, 32768)]
print("best right share at scale 1, for 2, 12 and 32,768 pairs:", best)

# %% [markdown]
# The first answer of *Predict*: **none**. CLIP's start temperature alone turns 0.6 and 0.4 into 0.95
# and 0.05. Shares say how sure, cosines say how alike, and the scale is the exchange rate. The
# last line has scale 1 and perfect cosines, 1 for right pairs and -1 for all others: with 32,768
# pairs the best share is not even a thousandth.
#
# Both papers let the model learn the scale, as a logarithm, so that it stays positive: `log_scale`
# is learned, `log_scale.exp()` multiplies. CLIP stops it at 100.
#
# ## Build: CLIP's loss
#
# A row asks: which sentence fits this picture? A column asks: which picture fits this sentence?
# These are different questions. Above, picture 2 prefers Cat by 0.5 to 0.3, and the sentence Cat
# prefers picture 2 by only 0.5 to 0.4. CLIP takes the mean of both: the loss is **symmetric**.
#
# $$-\frac{1}{2n} \sum_i \left( \log \frac{e^{t\,x_i y_i}}{\sum_j e^{t\,x_i y_j}}
#   + \log \frac{e^{t\,x_i y_i}}{\sum_j e^{t\,x_j y_i}} \right)$$
#
# Both terms have a log. The first sum runs along a row (picture to text, `dim=1`), the second along
# a column (text to picture, `dim=0`). One danger you know from lesson 03: at scale 100 a cosine of
# 0.95 becomes 95, and exp(95) is infinite in 32-bit numbers. Again we subtract the largest score
# first. Taking the log at the same time gives the *log-sum-exp*.


# %%
def log_softmax(scores, dim):
    """The log of the shares along `dim`, without overflow."""
    scores = scores - scores.amax(dim=dim, keepdim=True)
    return scores - scores.exp().sum(dim=dim, keepdim=True).log()


def similarities(image, text):
    """(i, e), (j, e) -> cosines (i, j)."""
    image = image / image.norm(dim=-1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    return image @ text.T


def clip_loss(image, text, log_scale):
    """(n, e), (n, e), () -> (): picture i belongs to sentence i."""
    scores = similarities(image, text) * log_scale.exp()
    rows, columns = log_softmax(scores, dim=1), log_softmax(scores, dim=0)
    return -(rows.diagonal().mean() + columns.diagonal().mean()) / 2


# %%
hot = torch.tensor([[0.95, 0.93], [0.10, 0.90]]) * 100
print("plain: ", (hot.exp() / hot.exp().sum(dim=1, keepdim=True)).log().diagonal().tolist())
print("stable:", log_softmax(hot, dim=1).diagonal().tolist())

# %% [markdown]
# ## Build: SigLIP's loss
#
# A share depends on everyone else in the row. SigLIP asks something simpler, of each pair alone:
# **do these two belong together, yes or no?** The sigmoid turns a score s into a probability of yes,
# 1 / (1 + exp(-s)). The probability of *no* is the same function of -s. So with a label z of **+1**
# for right pairs and **-1** for wrong ones, the probability of the right answer is always
# sigmoid(z · s), and the loss adds up its -log over **all n · n pairs**, divided by n:
#
# $$-\frac{1}{n} \sum_i \sum_j \log \mathrm{sigmoid}\left(z_{ij}\,(t\,x_i y_j + b)\right)$$
#
# Most pairs are wrong ones: n right, n² - n wrong. So most answers are no, and a learned **bias** b
# says how rare a yes is. There is no second direction: turn the table over, and the sum is the same.
#
# On paper, with t = 10 and b = -5: the right pair 0.6 has the score 1, the wrong pair 0.4 has -1.

# %%
scores = 10 * cosines - 5
labels = 2 * torch.eye(2) - 1
terms = -(labels * scores).sigmoid().log()
print(f"scores {scores.tolist()}\nterms  {terms.tolist()}\nloss {terms.sum() / 2:.3f}")


# %%
def siglip_loss(image, text, log_scale, bias):
    """(n, e), (n, e), (), () -> (): picture i belongs to sentence i."""
    scores = similarities(image, text) * log_scale.exp() + bias
    labels = 2 * torch.eye(len(image)) - 1
    return -torch.nn.functional.logsigmoid(labels * scores).sum() / len(image)


# %% [markdown]
# `logsigmoid` is the safe form of `sigmoid(x).log()`, which for x below about -104 is log(0).
#
# ## Build: where to start the bias
#
# SigLIP starts with t = 10 and b = -10. Why so far below 0? At the start all cosines are near 0, so
# each score is about b. One step of training *pulls* each right pair together with the strength
# 1 - sigmoid(b), and *pushes* each wrong pair apart with sigmoid(b). A picture has one right
# sentence and n - 1 wrong ones:

# %%
for n in (12, 32768):
    for start in (0.0, -10.0, -math.log(n - 1)):
        yes = 1 / (1 + math.exp(-start))
        push = (n - 1) * yes
        print(f"n = {n:6}, b = {start:6.2f}: pull {1 - yes:.3f}, all pushes {push:9.3f}")

# %% [markdown]
# With b = 0 and a large batch, thousands of pushes drown one pull: the model first learns to say no.
# With b = -log(n - 1) both are equal, because that is the true rate of yes: 1 to n - 1. For SigLIP's
# batch of 32,768 this is -10.4, very near to their -10. For our batch of 12 it is -2.4, and -10 would
# be a start for some 22,000 pairs.
#
# The two numbers also set a **threshold**. The answer turns to yes where t · cosine + b = 0, at
# cosine -b / t. With t = 10 and b = -10 that is 1: at first even a perfect pair is only *perhaps*.
#
# ## See it: train both, live
#
# The task: twelve objects, 250 pictures of each by the training artists, and one sentence for each:
# "an apple". The towers are small and start from random weights. A batch holds *different* objects,
# so that each pair off the diagonal is truly wrong. (In collected pairs two pictures of dogs may
# meet, and the loss pushes apart what belongs together.)
#
# **Zero-shot classification** is the test: embed a picture and twelve sentences, and take the most
# similar sentence. No classifier was trained; the list of names is text, chosen afterwards. The
# pictures are by the validation artist, whose drawings no run has seen.

# %%
from minipali.small_tasks import name_scores, naming_task, train_towers

torch.set_num_threads(1)  # towers so small that more threads only wait for each other
task = naming_task(processor, each=250)


def three_seeds(loss, batch, bias=None):
    runs = [train_towers(loss, task, batch, bias, seed=seed) for seed in range(3)]
    ends = [run.accuracy for run in runs]
    mean, spread = sum(ends) / 3, max(ends) - min(ends)
    print(f"{loss.__name__}, batch {batch}: {mean:.0%}, best and worst seed {spread:.0%} apart")
    return runs


large = {"sigmoid": three_seeds(siglip_loss, 12, -math.log(11))}

# %%
from minipali.small_tasks import new_artist_table

first, untrained = large["sigmoid"][0], train_towers(siglip_loss, task, bias=0.0, pictures=0)
runs = {"untrained": untrained, "sigmoid, trained": first}
tables = {name: new_artist_table(run.towers, task) for name, run in runs.items()}
figures.contrastive.similarity(task.new, task.names, tables)

# %% [markdown]
# Each row is the mean over twenty pictures of one object. On the left the towers know nothing: all
# rows look alike. On the right the diagonal comes out. A frame marks the largest cosine of a row.
# Look at the dashed ones, which are wrong: what is mixed up with what?
#
# Now the comparison. Both losses, two batch sizes, the same pictures seen (3,600), the same
# optimizer. And **three seeds** each, because one run can be luck. The losses are those that you
# read above. A batch of 4 makes three times as many steps.

# %%
large = {"softmax": three_seeds(clip_loss, 12), **large}

# %%
small = {"softmax": three_seeds(clip_loss, 4)}

# %%
small["sigmoid"] = three_seeds(siglip_loss, 4, -math.log(3))
figures.contrastive.runs({"batch 12": large, "batch 4": small}, chance=1 / 12)

# %% [markdown]
# Compare the two curves of a panel: softmax and sigmoid end within a point or two of each other,
# while two seeds of the *same* loss differ by up to eight. The seed sets the start weights and the
# order of the pictures, and here it matters more than the loss. So this experiment does **not** show
# that one loss is better.
#
# The batch of 12 ends about five points above the batch of 4 on average, with a third of the steps.
# A likely reason: eleven wrong sentences teach more than three. But the ranges of the seeds touch, so
# this is a hint, not a proof. And the new artist drew each object once: 240 pictures, but only twelve
# drawings. Zhai et al. (2023), with batches of up to a million pairs, report that the sigmoid is
# better at small batches, and that more than some 32,000 pairs bring little.
#
# ## See it: any list of names
#
# A zero-shot classifier is made of words. So we make others, without training: shorter lists of
# names, and the same twelve names in other words. One of them goes badly wrong. Guess which.


# %%
def zero_shot(names, sentence=scenes.with_article):
    """Accuracy on the new artist's pictures of these names, told apart by `sentence(name)`."""
    ids = [processor.encode(sentence(name)) for name in names]
    padded = processor.pad([[] for _ in ids], ids, side="right")
    pictures = task.new[[task.names.index(name) for name in names]].flatten(0, 1)
    scores = name_scores(towers, pictures, (padded["input_ids"], padded["attention_mask"]))
    right = torch.arange(len(names)).repeat_interleave(task.new.shape[1])
    return (scores.argmax(dim=1) == right).float().mean().item()


towers = large["softmax"][0].towers
for names in (("car", "bicycle"), ("apple", "car", "cat"), ("cat", "dog"), task.names):
    told = ", ".join(names) if len(names) < 5 else "all twelve"
    print(f"{told:16} {zero_shot(names):4.0%}, guessing {1 / len(names):4.0%}")
print(f"'a picture of a cat', ... {zero_shot(task.names, lambda x: f'a picture of a {x}'):4.0%}")
print(f"'cat', 'dog', ...         {zero_shot(task.names, str):4.0%}")

# %% [markdown]
# Fewer names are an easier choice, unless they are the ones that the towers mix up. A longer
# sentence does little harm. But the bare name, without "a", is fatal: in training the name always
# stood in second place, and our text tower has only ever read twelve sentences. *Zero-shot* means
# no new training. It does not mean that every word is understood. CLIP has read 400 million texts,
# and still its authors found that "a photo of a ..." works better than the bare name.
#
# ## Break it
#
# The notes give the sigmoid the labels 1 for right pairs and 0 for wrong ones. Put that into
# -log sigmoid(z · s), and train:


# %%
def zero_one_loss(image, text, log_scale, bias):
    scores = similarities(image, text) * log_scale.exp() + bias
    return -torch.nn.functional.logsigmoid(torch.eye(len(image)) * scores).sum() / len(image)


wrong = train_towers(zero_one_loss, task, bias=-math.log(11))
figures.contrastive.broken({"labels +1, -1": first, "labels 1, 0": wrong}, chance=1 / 12)
scores = name_scores(wrong.towers, task.new.flatten(0, 1), task.sentences)
print(f"cosines of all {scores.numel()} pairs: from {scores.min():.2f} to {scores.max():.2f}")
print(f"the last loss {wrong.losses[-1]:.2f}; 11 log 2 = {11 * math.log(2):.2f}")

# %% [markdown]
# The loss falls in the first steps, as a loss should, and then stays. The model has learned that
# **everything belongs together**: all vectors point the same way. A 0 wipes the score out, so each
# wrong pair costs -log sigmoid(0) = log 2 whatever the model does, and only the right pairs pull.
# Without pushes, the best answer is one point for all. (Labels 0 and 1 are right in another form
# of the same loss, the binary cross entropy: -y log p - (1 - y) log(1 - p).)
#
# Not every mistake shows like this. The exercise knows sixteen, and several of them still learn
# something. A training that works does not prove that the loss is right.
#
# ## See it: three starts of the bias
#
# Back to the start values. We train with b = 0, b = -log(11) and SigLIP's b = -10, and look at the
# cosines of all right and all wrong pairs of the new artist's pictures afterwards.

# %%
right = torch.eye(12, dtype=torch.bool).repeat_interleave(20, dim=0)
starts = {}
for start, run in ((0.0, None), (-math.log(11), large["sigmoid"][0]), (-10.0, None)):
    run = run or train_towers(siglip_loss, task, bias=start)
    end, scale = run.towers.bias.item(), run.towers.log_scale.exp().item()
    scores = name_scores(run.towers, task.new.flatten(0, 1), task.sentences)
    title = f"b from {start:.1f} to {end:.1f}, t from 10 to {scale:.1f}: {run.accuracy:.0%} right"
    starts[title] = scores[right], scores[~right], -end / scale
figures.contrastive.thresholds(starts)

# %% [markdown]
# The accuracies are close (one seed each; a few points mean nothing). And the bias stays near its
# start: 300 steps do not carry it far. What moves are the **cosines**. They gather below and around
# the threshold, wherever it is. With b = 0 most right pairs have negative cosines; with b = -10 even
# wrong pairs are quite alike. So never compare the cosines of two models.
#
# Most right pairs stay below the threshold: asked yes or no, the towers would say no. Zero-shot
# classification only needs the right one to be the *largest*. And -10 is no magic number. At our
# batch size the start hardly matters; in very large batches it keeps the pushes from drowning the
# pull.
#
# ## Build: the loss on many machines
#
# Large batches are spread over many devices. Each holds its own pictures and its own sentences, and
# the table of all pairs belongs to nobody. Which numbers must travel?
#
# **Softmax**: one share needs the sums of its whole row and its whole column. The usual way is to
# send all vectors to all devices (*all-gather*).
#
# **Sigmoid**: no term needs any other term. A device takes its own block of the table, adds up,
# forgets it, and gets the next sentences from its neighbour. They travel round in a ring, and the
# total is a sum of sums. Below the picture is the same in one process, for six pairs cut in two.

# %%
figures.contrastive.blocks(devices=4)

# %%
torch.manual_seed(0)
image, text = torch.randn(6, 8), torch.randn(6, 8)
log_scale, bias = torch.tensor(2.0), torch.tensor(-1.0)
scores = similarities(image, text) * log_scale.exp() + bias
labels = 2 * torch.eye(6) - 1
blocks = -torch.nn.functional.logsigmoid(labels * scores).reshape(2, 3, 2, 3).sum(dim=(1, 3))
print("sums of the four blocks:", blocks.tolist())
plain = siglip_loss(image, text, log_scale, bias)
print(f"all / 6 = {blocks.sum() / 6:.6f}, plain loss {plain:.6f}")

# %% [markdown]
# Now with two real processes. Each keeps its own three pairs, computes its diagonal block, hands its
# sentences on, and computes the other block. The package's `siglip_loss_ring` does the handing on;
# in training the gradients travel back the same way.

# %%
WORKER = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
from minipali.contrastive import siglip_loss_ring

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
store = dist.FileStore(folder + "/meeting_point", 2)  # they find each other by a file
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
pairs = load_file(folder + "/pairs.safetensors")
own = slice(3 * rank, 3 * rank + 3)
image, text = pairs["image"][own], pairs["text"][own]
loss = siglip_loss_ring(image, text, pairs["log_scale"], pairs["bias"])
save_file({"loss": loss}, folder + f"/loss{rank}.safetensors")
dist.barrier()  # nobody leaves before all are done
dist.destroy_process_group()
"""

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

pairs = {"image": image, "text": text, "log_scale": log_scale, "bias": bias}
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    Path(folder, "worker.py").write_text(WORKER)
    save_file(pairs, Path(folder, "pairs.safetensors"))
    command = [sys.executable, str(Path(folder, "worker.py"))]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [subprocess.Popen([*command, str(r), folder], **output) for r in (0, 1)]
    told = [worker.communicate(timeout=100)[0] for worker in workers]
    assert len(list(Path(folder).glob("loss*"))) == 2, told
    losses = [load_file(Path(folder, f"loss{r}.safetensors"))["loss"].item() for r in (0, 1)]
print(f"process 0: {losses[0]:.6f}, process 1: {losses[1]:.6f}, mean {sum(losses) / 2:.6f}")
print(f"one process with everything: {plain:.6f}")

# %% [markdown]
# ## In the real model
#
# How much does this save? Let D devices hold m = 32 pairs each, so n = 32 · D pairs in all, with
# vectors of e = 1,152 numbers of 4 bytes, as wide as SigLIP's in PaliGemma.
#
# - **Sent by each device.** All-gather in a ring: pictures *and* sentences of all the others pass
#   through, 2 · (D - 1) · m · e numbers. The sigmoid's ring: sentences only, (D - 1) · m · e.
# - **Held by each device.** Softmax: all vectors, 2 · n · e, and the table, n · n. A careful softmax
#   computes only its own m rows and m columns, 2 · m · n. Sigmoid: its own vectors and one foreign
#   block, 3 · m · e, and one block of the table, m · m.

# %% tags=["nbval-check-output"]
m, e, counts = 32, 1152, [2**k for k in range(1, 11)]
sent = {"softmax": [], "sigmoid": []}
held = {"softmax, whole table": [], "softmax, own rows": [], "sigmoid": []}
for devices in counts:
    n = devices * m
    sent["softmax"].append(4 * 2 * (devices - 1) * m * e)
    sent["sigmoid"].append(4 * (devices - 1) * m * e)
    held["softmax, whole table"].append(4 * (2 * n * e + n * n))
    held["softmax, own rows"].append(4 * (2 * n * e + 2 * m * n))
    held["sigmoid"].append(4 * (3 * m * e + m * m))
print("                 MB sent             MB held")
print("devices     softmax sigmoid   whole table  own rows  sigmoid")
for row in zip(counts, *sent.values(), *held.values(), strict=True):
    mb = [x / 1e6 for x in row[1:]]
    print(f"{row[0]:7} {mb[0]:10.2f} {mb[1]:7.2f} {mb[2]:13.2f} {mb[3]:9.2f} {mb[4]:8.2f}")

# %%
figures.contrastive.memory(counts, held, "bytes held by one device")

# %% [markdown]
# The second answer of *Predict*: 4.6 GB against less than half a megabyte, which does not grow. The
# bytes *sent* are only halved. So the gain is memory, and with it the size of the batch. Two things
# belong to the honest picture. These are the numbers of the loss itself. For the gradient autograd
# keeps the blocks, in our package too, unless the gradient is computed block by block as well. And
# a softmax can also be computed in blocks, with running sums of rows and columns; it only needs
# more care.
#
# What is left of all this in PaliGemma? The vision tower, as you know it from lesson 04. The text
# tower, the scale, the bias and the loss are gone: nothing contrastive runs when PaliGemma answers.
# Picture and text meet in Gemma's attention (lesson 11). Our small model came about the same way:
# with the sigmoid loss, which allows several true sentences for one picture (lesson 13).
#
# ## Check
#
# Our two losses and their gradients against the package, and against torch's own cross entropies.

# %% tags=["nbval-check-output"]
import torch.nn.functional as F

from minipali import contrastive

torch.manual_seed(1)
given = [torch.randn(5, 7), torch.randn(5, 7), torch.tensor(1.3), torch.tensor(-2.0)]
for x in given:
    x.requires_grad_()
pairs, table = torch.arange(5), similarities(given[0], given[1]) * given[2].exp()
by_torch = {
    "clip_loss": (F.cross_entropy(table, pairs) + F.cross_entropy(table.T, pairs)) / 2,
    "siglip_loss": F.binary_cross_entropy_with_logits(
        table + given[3], torch.eye(5), reduction="sum"
    ) / 5,
}  # fmt: skip
for ours, number in ((clip_loss, 3), (siglip_loss, 4)):
    theirs = getattr(contrastive, ours.__name__)(*given[:number])
    mine, expected = ours(*given[:number]), by_torch[ours.__name__]
    gradients = [torch.autograd.grad(x, given[:2], retain_graph=True) for x in (mine, expected)]
    same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    close = torch.allclose(mine, theirs, atol=1e-5), torch.allclose(mine, expected, atol=1e-5)
    print(f"{ours.__name__:12} package: {close[0]}, torch: {close[1]}, gradients: {same}")

# %% [markdown]
# ## Your turn
#
# Open [the exercise](../exercises/05_contrastive.ipynb). You write `clip_loss` and `siglip_loss`,
# and at the end two towers learn to see with each of them.
#
# ## Take away
#
# - Contrastive learning asks which picture and which sentence belong together. Softmax makes them
#   compete along rows and columns; sigmoid asks each pair alone.
# - The scale turns cosines into decisions, and the bias says how rare a yes is; -log(n - 1) is the
#   rate of a batch of n.
# - At our size the two losses taught alike. What the sigmoid saves is memory on many machines.
#
# **Self-test**
#
# <details><summary>An untrained model with n pairs: how large is CLIP's loss, about?</summary>
#
# log(n): all shares are near 1/n. For n = 12 that is 2.48. This is a good first look at any run.
# </details>
#
# <details><summary>All cosines of a table grow by 0.1. Which loss changes?</summary>
#
# Only the sigmoid's. A softmax does not see what is added to a whole row or column. The sigmoid has
# a threshold, so for it the cosine itself means something.
# </details>
#
# <details><summary>Why not give CLIP's loss a bias too?</summary>
#
# It would be added to every score of the row and of the column, and the softmax would not see it.
# Its gradient would be 0.
# </details>
#
# <details><summary>A picture shows a dog and a car, and both sentences are in the batch. Which loss can
# say so?</summary>
#
# The sigmoid: two labels of +1 in one row. The softmax shares out one whole, so two right answers
# would compete with each other.
# </details>
#
# **Sources.** CLIP: Radford et al. 2021, arXiv 2103.00020, figure 3 (the pseudocode), sections 2.5
# (temperature) and 3.1.4 (wording). SigLIP: Zhai et al. 2023, arXiv 2303.15343, algorithm 1,
# sections 3.2 (start values) and 3.3 (blocks). That -10 fits a batch of about 22,000 was noticed in
# open_clip's issue 650.

# %% [markdown]
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | contrastive learning aligns picture and text and feeds the result to Gemma | it trains the tower beforehand; PaliGemma drops the text tower, and Gemma's attention brings picture and text together |
# | normalising gives both embeddings the same dimensions and size | two linear maps give the same dimensions; normalising gives length 1 |
# | dividing by the sum makes the softmax stable | it makes the shares sum to 1; subtracting the largest score makes it stable |
# | the formula of the loss, whose first term has no log | both terms are logs |
# | for the sigmoid: score 1 for right pairs and 0 for wrong ones | labels +1 and -1 in -log sigmoid(z · s), or 1 and 0 in the binary cross entropy |
# | after the sigmoid, "at the end calculate the symmetric loss" | the sum over all pairs has no direction; only the softmax needs two |
# | picture to text is `axis=0` | rows are pictures, so picture to text runs along a row: `axis=1` |
# | the table of scores *after the loss function* | a loss changes no scores; training does. And 0.6, 0.4 become 0.95, 0.05 by temperature alone |
# | zero-shot: any labels match "without any additional training" | no new training, but the words must be words that the text tower knows |
