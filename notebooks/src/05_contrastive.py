# %% [markdown]
# # 05 · Contrastive learning: who belongs to whom?
#
# Lesson 04 built the vision tower. Who taught it to see? SigLIP's tower got pictures, sentences,
# and one question: **which sentence belongs to which picture?** You write the two losses that make
# a number of this question, CLIP's and SigLIP's, and small towers learn with both, in seconds.
#
# ## Do you remember?
#
# <details><summary>The small vision tower of lesson 04 gets two pictures. What is the shape of what
# comes out?</summary>
#
# (2, 36, 160): for each picture 36 patches, for each patch a vector of 160 numbers.
# </details>
#
# <details><summary>A softmax first subtracts the largest score of the row (lesson 03). What would go
# wrong without it, and what does it change in the result?</summary>
#
# exp of a large score is infinite, and infinite divided by infinite is not a number. In the result
# it changes nothing: all exponentials are divided by the same factor.
# </details>
#
# <details><summary>Somebody writes LayerNorm for tokens of shape (n, d) and begins with
# <code>x - x.mean(dim=0)</code>. What is wrong?</summary>
#
# That is the mean of a feature over all tokens. LayerNorm takes the mean of a token over its
# features, <code>dim=-1</code>, and keeps the axis.
# </details>
#
# ## Where we are

# %%
import math

import torch

from minipali import figures, load
from minipali.checks import reveal

model, processor = load("small")
figures.model_map("vision", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **compute** the softmax loss and the sigmoid loss of a small table on paper,
# 2. **explain** what scale and bias do,
# 3. **compare** both losses: in training, and in bytes on many machines.
#
# Time: 60 minutes. You need: the tower (lesson 04) and the softmax (lesson 03). Some three
# minutes of this are training: start with *Run All*, then read.
#
# ## Predict
#
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. A picture fits its own sentence with 0.6 and a wrong one with 0.4. The notes behind this course
#    show 0.95 and 0.05 as *after training*. How many training steps does it take?
# 2. 1,024 machines hold 32 pairs each. By what factor does a machine need more memory for CLIP's
#    loss than for SigLIP's?
# 3. Somebody trains the sigmoid loss with the labels 1 for right pairs and 0 for wrong ones. The
#    loss falls. How alike are a picture and a *wrong* sentence in the end, from -1 (opposite) to 1
#    (the same)?

# %%
guess_steps, guess_factor, guess_alike = ..., ..., ...

# %% [markdown]
# ## By hand: a table of cosines
#
# One tower makes a vector of each picture, another one of each sentence. A linear map at the end of
# each makes the vectors equally wide. Divide each by its length, and a dot product is a **cosine**:
# 1 if two vectors point the same way, -1 if they point opposite ways. **Rows are pictures, columns
# are sentences**, and the right pairs are on the diagonal.
#
# | | a dog | a cat |
# |---|---|---|
# | picture of a dog | 0.6 | 0.4 |
# | picture of a cat | 0.3 | 0.5 |
#
# Read a row as a question: which sentence fits this picture? Softmax turns the cosines of a row
# into **shares**, which add up to 1. The loss is the cross-entropy of lesson 02: minus the log of
# the right share. On paper, for the dog: exp(0.6) = 1.822, exp(0.4) = 1.492, so the right share is
# 1.822 / 3.314 = 0.550, and the loss 0.598.

# %%
cosines = torch.tensor([[0.6, 0.4], [0.3, 0.5]])  # (i, j): picture i, sentence j
for scale in (1, 1 / 0.07, 100):
    shares = (scale * cosines).softmax(dim=1)
    print(f"scale {scale:5.1f}:", [[round(x, 3) for x in row] for row in shares.tolist()])
best = {n: round(math.exp(2) / (math.exp(2) + n - 1), 4) for n in (2, 12, 32768)}
print("best right share at scale 1, for n pairs:", best)
reveal("training steps", guess_steps, 0)

# %% [markdown]
# Both losses multiply the cosines by a **scale** first. CLIP starts with 1 / 0.07 and calls the
# 0.07 **temperature**. That start alone turns 0.6 and 0.4 into 0.95 and 0.05, before any training:
# the first answer. Cosines say how alike, shares say how sure, and the scale turns one into the
# other. At scale 1 even perfect cosines, 1 for right pairs and -1 for all others, give no right
# share of 0.9 among two pairs, and not a thousandth among 32,768.
#
# The scale is learned as a logarithm, so that it stays positive: `log_scale` is a weight, and
# `log_scale.exp()` multiplies. (CLIP stops it at 100.)
#
# ## Build: CLIP's loss
#
# A row asks: which sentence fits this picture? A column asks: which picture fits this sentence?
# CLIP asks both and takes the mean: its loss is **symmetric**. With pictures $x_i$, sentences $y_j$
# and scale $t$:
#
# $$s_{ij} = t\,\frac{x_i \cdot y_j}{|x_i|\,|y_j|},\qquad
# \text{loss} = -\frac{1}{2n} \sum_i \left( \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
#   + \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}} \right)$$
#
# The first sum over j runs along a row (`dim=1`), the second along a column (`dim=0`). At scale 100
# a cosine of 0.95 becomes 95, and exp(95) is infinite in 32-bit numbers. The remedy is that of
# lesson 03, with the largest score $m$:
#
# $$\log \sum_j e^{s_j} = m + \log \sum_j e^{s_j - m}$$
#
# **Write it now**: [exercise 05](../exercises/05_contrastive.ipynb), part 1, `clip_loss`. Vectors
# of any length come in, (n, e) twice, and one number goes out. Two results at scale 1, that is
# `log_scale` = 0: for the pictures (3, 0), (0, 2) and the same two as sentences, each right share
# is exp(1) / (exp(1) + 1), and the loss is 0.313. Exchange the two sentences, and it is 1.313. Then
# open the cell below.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
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


# %% tags=["nbval-check-output"]
pictures, off = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor(0.0)
for name, sentences in (("as they are", pictures), ("exchanged", pictures.flip(0))):
    print(f"{name}: {clip_loss(pictures, sentences, off):.3f}")
print("exp(95) is", torch.tensor(95.0).exp().item())

# %% [markdown]
# ## Build: SigLIP's loss
#
# A share depends on all others in its row. SigLIP asks each pair alone: **do these two belong
# together, yes or no?** The **sigmoid** $\sigma$ makes a probability of *yes* of a score, and that
# of *no* is $\sigma(-s)$. So give right pairs the label $z = +1$ and wrong ones $z = -1$, and the
# probability of the right answer is always $\sigma(z s)$:
#
# $$\sigma(s) = \frac{1}{1 + e^{-s}},\qquad
# \text{loss} = -\frac{1}{n} \sum_i \sum_j \log \sigma\left(z_{ij}\,(s_{ij} + b)\right)$$
#
# Only n of the n · n pairs are right. A learned **bias** $b$ says how rare a yes is. There is no
# second direction: turn the table over, and the sum is the same.
#
# **Write it now**: exercise 05, part 2, `siglip_loss`. Two results for the vectors above: at scale
# 1 with b = 0, right pairs have the score 1 and cost 0.313 each, wrong ones have 0 and cost log 2 =
# 0.693 each, in all 2.013, and half of that is 1.006. At scale 10 with b = -10 the loss is 0.693.
#
# One trap: in 32-bit numbers `sigmoid(x)` is 0 for x below about -88.7, and log 0 is minus
# infinity. torch's `logsigmoid` takes both steps at once, and is safe. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def siglip_loss(image, text, log_scale, bias):
    """(n, e), (n, e), (), () -> (): picture i belongs to sentence i."""
    scores = similarities(image, text) * log_scale.exp() + bias
    labels = 2 * torch.eye(len(image)) - 1
    return -torch.nn.functional.logsigmoid(labels * scores).sum() / len(image)


# %% tags=["nbval-check-output"]
for scale, bias in ((1.0, 0.0), (10.0, -10.0)):
    loss = siglip_loss(pictures, pictures, torch.tensor(scale).log(), torch.tensor(bias))
    print(f"scale {scale}, bias {bias}: {loss:.3f}")
far = torch.tensor([-80.0, -100.0])
print("in two steps:", [round(x, 2) for x in far.sigmoid().log().tolist()])
print("at once:     ", [round(x, 2) for x in torch.nn.functional.logsigmoid(far).tolist()])

# %% [markdown]
# ## See it: train both, live
#
# Twelve objects, 250 pictures of each by the training artists, and one sentence for each: "an
# apple". The towers are small and begin with random weights. A batch holds *different* objects, so
# that each pair off the diagonal is truly wrong.
#
# **One vector for a picture.** A tower gives a vector for each patch. Of the three ways of lesson 04 to
# make one of them we take the simplest, their **mean**. CLIP reads a class token, and SigLIP pools by
# attention.
#
# **The test** is **zero-shot classification**: compare a picture with twelve sentences and take the
# most similar one. No classifier was trained; the names are text. The pictures are by an artist
# whose drawings no run has seen. One run can be luck, so we take three **seeds**, the places where
# random numbers start.

# %%
from minipali.small_tasks import name_scores, naming_task, train_towers

torch.set_num_threads(1)  # towers so small that more threads only wait for each other
task = naming_task(processor, each=250)


def three_seeds(loss, batch, bias=None):
    runs = []
    print(f"{loss.__name__:12} batch {batch:2}:", end="")
    for seed in range(3):
        runs.append(train_towers(loss, task, batch, bias, seed=seed))
        print(f" {runs[-1].accuracy:4.0%}", end="", flush=True)
    print(f"   mean {sum(run.accuracy for run in runs) / 3:.0%}")
    return runs


large = {"sigmoid": three_seeds(siglip_loss, 12, -math.log(11))}

# %%
from minipali.small_tasks import new_artist_table

first, untrained = large["sigmoid"][0], train_towers(siglip_loss, task, bias=0.0, pictures=0)
runs = {"untrained": untrained, "sigmoid, trained": first}
tables = {name: new_artist_table(run.towers, task) for name, run in runs.items()}
figures.contrastive.similarity(task.new, task.names, tables)

# %% [markdown]
# Each row is the mean over twenty pictures of one object, and a frame marks its largest cosine. On
# the right the diagonal comes out. Look at the dashed frames, which are wrong: what is mixed up
# with what?
#
# Now the comparison: both losses, two batch sizes. Each run sees 3,600 pictures.

# %%
large = {"softmax": three_seeds(clip_loss, 12), **large}

# %%
small = {"softmax": three_seeds(clip_loss, 4)}

# %%
small["sigmoid"] = three_seeds(siglip_loss, 4, -math.log(3))
figures.contrastive.runs({"batch 12": large, "batch 4": small}, chance=1 / 12)

# %% [markdown]
# Thick lines are means, thin ones are seeds. Two seeds of the *same* loss can lie further apart
# than the two losses do. So this experiment, with three seeds and twelve new drawings, does **not**
# show that one loss is better. Zhai et al. (2023), with batches of up to a million pairs, report
# that the sigmoid is better at small batches, and that more than some 32,000 pairs bring little.
#
# ## Break it
#
# The notes give the sigmoid the labels 1 for right pairs and 0 for wrong ones. Put that into
# $-\log \sigma(z s)$, and train:


# %%
def zero_one_loss(image, text, log_scale, bias):
    scores = similarities(image, text) * log_scale.exp() + bias
    return -torch.nn.functional.logsigmoid(torch.eye(len(image)) * scores).sum() / len(image)


wrong = train_towers(zero_one_loss, task, bias=-math.log(11))
figures.contrastive.broken({"labels +1, -1": first, "labels 1, 0": wrong}, chance=1 / 12)
right = torch.eye(12, dtype=torch.bool).repeat_interleave(20, dim=0)  # (picture, sentence)
scores = name_scores(wrong.towers, task.new.flatten(0, 1), task.sentences)
print(f"the last loss {wrong.losses[-1]:.2f}; 11 log 2 = {11 * math.log(2):.2f}")
reveal("cosine of wrong pairs", guess_alike, round(scores[~right].mean().item(), 2))

# %% [markdown]
# The loss falls and then stays. The model has learned that **everything belongs together**: all
# vectors point the same way. A label of 0 makes 0 of every score, so each wrong pair costs
# $-\log \sigma(0) = \log 2$ whatever the model does, and only the right pairs teach it anything.
#
# Not every mistake shows like this: many still learn something. A training that works does not
# prove that the loss is right.
#
# ## In the real model
#
# A large batch is spread over many devices, each with its own pictures and sentences. A share needs
# its whole row and column, so the usual softmax sends all vectors to all devices (*all-gather*).
# The sigmoid needs one block of the table at a time: a device adds it up, forgets it, and gets the
# next sentences from its neighbour.

# %%
figures.contrastive.blocks(devices=4)

# %% [markdown]
# Let devices hold m = 32 pairs each, n in all, with vectors of e = 1,152 numbers of 4 bytes. A
# device holds
#
# - for the softmax: all vectors, 2 · n · e, and the table, n · n (or, with care, only its own m
#   rows and columns, 2 · m · n),
# - for the sigmoid: its own vectors and one foreign block, 3 · m · e, and one block of the table,
#   m · m.

# %% tags=["nbval-check-output"]
m, e, counts = 32, 1152, [2**k for k in range(1, 11)]
held = {"softmax, whole table": [], "softmax, own rows": [], "sigmoid": []}
for devices in counts:
    n = devices * m
    held["softmax, whole table"].append(4 * (2 * n * e + n * n) / 1e6)
    held["softmax, own rows"].append(4 * (2 * n * e + 2 * m * n) / 1e6)
    held["sigmoid"].append(4 * (3 * m * e + m * m) / 1e6)
print({name: round(values[-1], 2) for name, values in held.items()}, "MB with 1,024 devices")
factor = held["softmax, own rows"][-1] / held["sigmoid"][-1]
reveal("softmax, with care, against sigmoid", guess_factor, round(factor))

# %%
figures.contrastive.memory(counts, held, "MB held by one device")

# %% [markdown]
# The second answer: 310 MB (or 4.6 GB with the whole table) against less than half a megabyte.
#
# What is left of this in PaliGemma? The vision tower. Text tower, scale, bias and loss are gone:
# picture and text meet in Gemma's attention (lesson 11). Our small model's tower began with the
# sigmoid loss, too, but with more help. Its pictures are composed, so it is known which object
# covers which patch, and the same loss also trained **every patch** against the objects' names. The
# published SigLIP had no such labels.
#
# ## Check
#
# Our two losses and their gradients against the package, and against torch's own cross-entropies.

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

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: where to start the bias
#
# Ten more minutes. SigLIP starts with t = 10 and b = -10. Why so far below 0? At the start all
# cosines are near 0, so each score is about b. One step of training *pulls* each right pair
# together with the strength $1 - \sigma(b)$, and *pushes* each wrong pair apart with $\sigma(b)$. A
# picture has one right sentence and n - 1 wrong ones:

# %%
for n in (12, 32768):
    for start in (0.0, -10.0, -math.log(n - 1)):
        yes = 1 / (1 + math.exp(-start))
        push = (n - 1) * yes
        print(f"n = {n:6}, b = {start:6.2f}: pull {1 - yes:.3f}, all pushes {push:9.3f}")
print(f"-10 would be the balance for {math.exp(10) + 1:,.0f} pairs")

# %% [markdown]
# With b = 0 and a large batch, thousands of pushes drown one pull: the model first learns to say
# no. With b = -log(n - 1) both are equal, because that is the true rate of yes: 1 to n - 1. For
# SigLIP's batch of 32,768 this is -10.4, very near to their -10. For our batch of 12 it is -2.4,
# and that is what the trainings above started with.
#
# The two numbers also set a **threshold**. The answer turns to yes where t · cosine + b = 0, at the
# cosine -b / t. With t = 10 and b = -10 that is 1: at first even a perfect pair is only *perhaps*.
# We train with three starts, one seed each, and look at the cosines of right and wrong pairs
# afterwards.

# %%
starts = {}
for start, run in ((0.0, None), (-math.log(11), large["sigmoid"][0]), (-10.0, None)):
    run = run or train_towers(siglip_loss, task, bias=start)
    end, scale = run.towers.bias.item(), run.towers.log_scale.exp().item()
    scores = name_scores(run.towers, task.new.flatten(0, 1), task.sentences)
    title = f"b from {start:.1f} to {end:.1f}, t from 10 to {scale:.1f}: {run.accuracy:.0%} right"
    starts[title] = scores[right], scores[~right], -end / scale
figures.contrastive.thresholds(starts)

# %% [markdown]
# A few points of accuracy mean nothing here. But the bias stays near its start: 300 steps do not
# carry it far. What moves are the **cosines**. They gather below and around the threshold, wherever
# it is. So never compare the cosines of two models.
#
# Most right pairs stay below the threshold: asked yes or no, the towers would say no. Zero-shot
# classification only needs the right one to be the *largest*.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: any list of names
#
# Five more minutes. A zero-shot classifier is made of words. So we make others, without training:
# shorter lists of names, and the same twelve names in other words. Each number is the mean of the
# three softmax runs at batch 12. One of the lists goes badly wrong. Guess which.


# %%
def zero_shot(names, sentence):
    """Accuracy on the new artist's pictures of these names, told apart by `sentence(name)`."""
    ids = [processor.encode(sentence(name)) for name in names]
    padded = processor.pad([[] for _ in ids], ids, side="right")
    sentences = padded["input_ids"], padded["attention_mask"]
    pictures = task.new[[task.names.index(name) for name in names]].flatten(0, 1)
    right = torch.arange(len(names)).repeat_interleave(task.new.shape[1])
    found = [name_scores(run.towers, pictures, sentences) for run in large["softmax"]]
    return sum((scores.argmax(dim=1) == right).float().mean().item() for scores in found) / 3


# %%
from minipali.scenes import with_article

for names in (("car", "bicycle"), ("apple", "car", "cat"), ("cat", "dog"), task.names):
    told = ", ".join(names) if len(names) < 5 else "all twelve"
    print(f"{told:26} {zero_shot(names, with_article):4.0%}, guessing {1 / len(names):4.0%}")
for told, sentence in (("'a picture of a cat', ...", "a picture of a {}"), ("'cat', ...", "{}")):
    print(f"{told:26} {zero_shot(task.names, sentence.format):4.0%}")

# %% [markdown]
# Fewer names are an easier choice, unless they are the ones that the towers mix up. A longer
# sentence costs a few points. But with the bare name, without "a", nothing is left: in training the
# name always stood in second place, and our text tower has only ever read twelve sentences.
# *Zero-shot* means no new training. It does not mean that every word is understood. CLIP has read
# 400 million texts, and still its authors found that "a photo of a ..." works better than the bare
# name.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the ring, with two processes
#
# Ten more minutes. The sum over all pairs is a sum of sums. First in one process, for six pairs cut
# in two. Then with two real processes: each keeps its own three pairs, computes its diagonal block,
# hands its sentences on, and computes the other block. The package's `siglip_loss_ring` does the
# handing on; in training the gradients travel back the same way. (All-gather in a ring sends
# pictures *and* sentences, so the ring of the sigmoid halves what is sent. The large gain is in
# what is held.)

# %%
torch.manual_seed(0)
image, text = torch.randn(6, 8), torch.randn(6, 8)
log_scale, bias = torch.tensor(2.0), torch.tensor(-1.0)
scores = similarities(image, text) * log_scale.exp() + bias
labels = 2 * torch.eye(6) - 1
blocks = -torch.nn.functional.logsigmoid(labels * scores).reshape(2, 3, 2, 3).sum(dim=(1, 3))
print("sums of the four blocks:", [[round(x, 3) for x in row] for row in blocks.tolist()])
plain = siglip_loss(image, text, log_scale, bias)
print(f"all / 6 = {blocks.sum() / 6:.4f}, plain loss {plain:.4f}")

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
print(f"process 0: {losses[0]:.4f}, process 1: {losses[1]:.4f}, mean {sum(losses) / 2:.4f}")
print(f"one process with everything: {plain:.4f}")

# %% [markdown]
# Two things belong to an honest count. The numbers of *In the real model* are those of the loss
# alone: for the gradient the blocks are kept, in our package too, unless it is computed block by
# block as well. And a softmax can be computed in blocks, too, with running sums of rows and
# columns. It only needs more care.
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/05_contrastive.ipynb). At its end two towers
# learn to see with your losses. It has one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - Contrastive learning asks which picture and which sentence belong together. Softmax makes them
#   compete along rows and columns; sigmoid asks each pair alone.
# - The scale turns cosines into decisions, and the bias says how rare a yes is.
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
# <details><summary>In which form of the sigmoid loss are the labels 1 and 0 right?</summary>
#
# In the *binary cross-entropy*, $-y \log p - (1 - y) \log(1 - p)$: there the 0 does not multiply
# the score, it chooses the second term. It is the same loss, and the *Check* above compares with
# it.
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
# **Sources.** CLIP: Radford et al. 2021, arXiv 2103.00020, figure 3 (the pseudocode), and its
# sections on training (temperature) and on prompt engineering (wording). SigLIP: Zhai et al. 2023,
# arXiv 2303.15343, algorithm 1, and its sections on the sigmoid loss (start values) and on its
# efficient implementation in blocks. That -10 fits a batch of about 22,000 was noticed in
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
# | for the sigmoid: score 1 for right pairs and 0 for wrong ones | labels +1 and -1 in -log sigmoid(z · s), or 1 and 0 in the binary cross-entropy |
# | after the sigmoid, "at the end calculate the symmetric loss" | the sum over all pairs has no direction; only the softmax needs two |
# | picture to text is `axis=0` | rows are pictures, so the question of a picture runs along its row: `axis=1`. CLIP's own figure 3 computes its `loss_i` with `axis=0`, too; the mean of both is the same, only the names are exchanged |
# | the table of scores *after the loss function* | a loss changes no scores; training does. And 0.6, 0.4 become 0.95, 0.05 by temperature alone |
# | zero-shot: any labels match "without any additional training" | no new training, but the words must be words that the text tower knows |
