# %% [markdown]
# # 18 · LoRA: a word more
#
# A trained model knows what it was trained on. You have forty pictures of something else. You can
# go on training, with all weights, and the model learns your word. What does it lose by that? Today
# you teach a word in a few seconds, in three ways, and measure both.
#
# ## Do you remember?
#
# <details><summary>A linear layer of torch takes 128 numbers and gives 384. Which shape has its
# weight?</summary>
#
# (384, 128): a row for each output. It computes x W^T (lesson 01).
# </details>
#
# <details><summary>Two recipes are compared, with one run each. The first names 74 %, the second 67 %.
# What do you know?</summary>
#
# Little. Runs with other seeds may differ by as much (lesson 13).
# </details>
#
# <details><summary>AdamW trains 1,000 weights in 32-bit numbers. How many bytes does it need for weights,
# gradients and its own memory?</summary>
#
# 16 bytes for each weight: 16,000 (lesson 13).
# </details>
#
# ## Where we are

# %%
import copy

import numpy as np
import torch
from torch import nn

from minipali import figures, load, lora, scenes
from minipali.checks import reveal
from minipali.config import preset
from minipali.evaluation import answers, evaluation_set, score
from minipali.finetuning import TARGETS
from minipali.paligemma import PaliGemma
from minipali.small_tasks import new_question, new_word, teach

# %%
torch.set_num_threads(1)  # a model so small that more threads only wait for each other
model, processor, SEEDS = *load("small"), (0, 1, 2)
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **build** LoRA: start values, the layer, the merge,
# 2. **teach** a trained model a word and a question, from a few pictures,
# 3. **measure** what it forgets by that, and say whether two ways differ.
#
# Time: 60 minutes. You need: the decoder (lesson 10), labels, loss and loop (13), and why
# one seed is not enough (13). Some cells train for a minute: start with *Run All*, then read.
#
# ## Predict
#
# 1. LoRA of rank 8 on all linear layers of our small decoder: how many percent of the model's
#    weights learn?
# 2. Three ways to teach it the word "bus": all weights (write `"all"`), all but the vision tower
#    (`"frozen tower"`), LoRA (`"LoRA"`). Which one forgets most of what it knew?
# 3. From how many pictures, 4, 16 or 40, does it name more than half of the buses of an artist
#    whom it never saw?

# %%
guess_share, guess_forgets, guess_pictures = ..., ..., ...

# %% [markdown]
# ## By hand: a small change beside a frozen weight
#
# A layer computes $x W^T$. We **freeze** W: it does not learn. Beside it comes a change that is a
# product of two thin matrices, A with r rows and B with r columns. r is the **rank**:
#
# $$y = x W^T + \frac{\alpha}{r}\, x A^T B^T$$
#
# On paper, with r = 1 and $\alpha$ = 2: W = [[2, 0], [1, 1]], A = [[1, 1]], B = [[0.5], [-1]], x =
# [1, 3]. What is $x W^T$? What does A make of x? What is y?

# %% tags=["nbval-check-output"]
x, alpha, r = torch.tensor([1.0, 3]), 2, 1
W, A, B = map(torch.tensor, ([[2.0, 0], [1, 1]], [[1.0, 1]], [[0.5], [-1]]))
for name, found in {"x W^T": x @ W.T, "x A^T": x @ A.T, "x A^T B^T": x @ A.T @ B.T}.items():
    print(f"{name:20}", found.tolist())
print("y                   ", (x @ W.T + alpha / r * x @ A.T @ B.T).tolist())
print("W + alpha / r * B A ", (W + alpha / r * B @ A).tolist())

# %% [markdown]
# The last line is one matrix M that does the same: $x M^T$ is [6, -4], too. A change of this kind is
# **low-rank**: each row of B A is a mix of the r rows of A. Why so thin? Here is a layer of our
# decoder, to scale. The idea of LoRA (low-rank adaptation) is that to learn one thing more takes few
# directions.

# %%
figures.lora.beside(384, 128, rank=8)

# %% [markdown]
# ## Build: where both begin
#
# Before the first step the model should be what it was, so B A must be zero. But how do A and B
# learn? Let $e$ be the gradient that arrives at y. Then the gradient of B is $e^T (x A^T)$ and that
# of A is $(e B)^T x$, both times $\alpha / r$. The gradient of each goes **through the other one**. If
# both are zero, both gradients are zero in every step. So only one is zero, and that is B. The other
# is random.
#
# How large is A? Uniform between $-1 / \sqrt{d}$ and $1 / \sqrt{d}$, as in a new linear layer of
# torch: d numbers are added up in each output.
#
# **Write it now**: [exercise 18](../exercises/18_lora.ipynb), part 1. Three numbers come in: W has n
# rows of d numbers, and the rank. A and B go out. Two results, for n = 3, d = 4 and rank 2: A has 2
# rows of 4 numbers between -0.5 and 0.5, which is $1 / \sqrt{4}$; B has 3 rows of 2 zeros. Then open
# the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def start_values(n, d, rank):
    """A (rank, d) is random, B (n, rank) is zero; both learn."""
    A = (2 * torch.rand(rank, d) - 1) / d**0.5
    return A.requires_grad_(), torch.zeros(n, rank, requires_grad=True)


# %% [markdown]
# ## Build: the layer, and the merge
#
# $\alpha / r$ keeps the size of the change about the same when you try another rank. Frozen means:
# W gets no gradient. But the gradient must go on *through* the frozen layer to x, for the layers
# before.
#
# After training, $W + \frac{\alpha}{r} B A$ takes the place of W, A and B: a plain model again, as
# fast as before. That is **merging**.
#
# **Write both now**: exercise 18, parts 2 and 3. Two results are above: [6, -4] and the merged
# matrix. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def lora_forward(x, weight, A, B, alpha):
    """x (..., d), weight (n, d), A (r, d), B (n, r) -> (..., n)."""
    return x @ weight.detach().T + alpha / len(A) * (x @ A.T @ B.T)


def merge_weight(weight, A, B, alpha):
    """One weight (n, d) that does the work of all three."""
    return (weight.float() + alpha / len(A) * B @ A).to(weight.dtype)


# %% [markdown]
# Now into the model. A module holds the old layer, A and B. It replaces the seven linear layers of
# each decoder layer, which have no bias.


# %%
class Adapted(nn.Module):
    def __init__(self, base, rank=8, alpha=16, start=start_values):
        super().__init__()
        self.base, self.alpha = base.requires_grad_(False), alpha
        self.A, self.B = map(nn.Parameter, start(*base.weight.shape, rank))

    def forward(self, x):
        return lora_forward(x, self.base.weight, self.A, self.B, self.alpha)


# %%
def adapted(model, **how):
    learner = copy.deepcopy(model).requires_grad_(False)
    for place, layer in list(learner.language_model.named_modules()):
        if isinstance(layer, nn.Linear):
            learner.language_model.set_submodule(place, Adapted(layer, **how))
    return learner


# %%
learner, total = adapted(model), sum(p.numel() for p in model.parameters())
learned = sum(p.numel() for p in learner.parameters() if p.requires_grad)
print(f"{learned:,} of {total:,} weights learn")
reveal("percent that learn", guess_share, f"{100 * learned / total:.1f}")

# %% [markdown]
# ## See it: three ways to a word
#
# The package has drawings of a bus that nothing was trained on. "bus" is two tokens of our
# vocabulary. We make 40 pictures, of a bus alone, of a bus beside something
# known, and some of known things alone, so that the word does not become the answer to everything.
# About each there are two questions. What does the model say today, about the validation artist's
# pictures?

# %%
lessons = new_word("bus", 40)
asked = new_word("bus", 120, seed=1, artists=scenes.VALIDATION_ARTIST)
buses = [(scene, one) for scene, one in asked if one.task == "naming" and one.answer == "bus"]
old = evaluation_set(scenes.VALIDATION_ARTIST, 20, seed=18)  # 20 questions of each old task
today = answers(model, processor, buses)
print([processor.token(i) for i in processor.encode("bus")])
shown = [lessons[0], *buses[:3]]
titles = [f"{one.prompt} {one.answer}" for _, one in lessons[:1]] + today[:3]
figures.pictures(
    [scene.picture for scene, _ in shown],
    titles,
    f"A picture to learn from, three new ones: {titles}",
)

# %% [markdown]
# Three ways, each 40 steps of 8 questions, each with three seeds, which draw other pictures and
# other start values. `teach` is the loop of lesson 13. LoRA takes a larger learning rate
# than weights that learn themselves.


# %%
def everything(model):
    return copy.deepcopy(model).requires_grad_(True)


def frozen_tower(model):
    learner = everything(model)
    learner.vision_tower.requires_grad_(False)
    return learner


WAYS = {"all": (everything, 1e-3), "frozen tower": (frozen_tower, 1e-3), "LoRA": (adapted, 6e-3)}


def taught(way, lessons, seed=0, steps=40):
    make, rate = WAYS[way]
    torch.manual_seed(seed)
    learner = make(model)
    teach(learner, processor, lessons, steps, rate, seed=seed)
    return learner


def right(learner, asked):
    """The score of each question, 0 to 1."""
    told = answers(learner, processor, asked)
    return np.array([score(one, answer) for (_, one), answer in zip(asked, told, strict=True)])


# %%
learners = {way: [taught(way, new_word("bus", 40, seed), seed) for seed in SEEDS] for way in WAYS}
word = {way: [right(one, buses).mean() for one in own] for way, own in learners.items()}
kept = {way: [right(one, old) for one in own] for way, own in learners.items()}  # by question

# %%
before = right(model, old)
shares = {name: [one.mean() for one in scores] for name, scores in kept.items()}
figures.lora.both(word, shares, before.mean())
most = min(shares, key=lambda name: np.mean(shares[name]))
reveal("forgets most", guess_forgets, most)

# %% [markdown]
# All three ways have taught the word. But with all weights, the model lost almost half of what it
# could do. With a frozen tower, and with LoRA, the mean hardly moved.
#
# Why? The tower makes vectors of a picture, and the decoder has learned to read exactly these. If the
# tower changes, *every* answer is read from other vectors. And our LoRA is in the decoder alone, so
# its tower is frozen, too.
#
# ## See it: is the difference more than luck?
#
# All models answered the **same** questions. So we compare in **pairs**: for each question the mean
# over the three seeds of one way minus that of the other. Where both are equal, the pair says
# nothing. If the two ways were equally good, each difference could as well have the other sign. So we
# change signs by chance, 10,000 times: how often is the mean as far from 0 as the one that was found?
# This is a **paired test**.


# %%
def paired(a, b, rounds=10_000):
    """The mean difference, and how often chance alone makes one as large (a paired test)."""
    differences = np.mean(a, axis=0) - np.mean(b, axis=0)
    signs = np.random.default_rng(0).choice([-1, 1], (rounds, len(differences)))
    by_chance = np.abs((signs * differences).mean(axis=1))
    return differences.mean(), (by_chance >= abs(differences.mean())).mean()


# %%
for name in WAYS:
    mean, chance = paired(kept[name], [before])
    print(f"{name:12} - before: {100 * mean:+5.1f} points, by chance in {chance:.2%}")
for a, b in (("LoRA", "all"), ("LoRA", "frozen tower"), ("frozen tower", "all")):
    mean, chance = paired(kept[a], kept[b])
    print(f"{a:12} - {b:12}: {100 * mean:+5.1f} points, by chance in {chance:.2%}")

# %%
figures.lora.tasks([one.task for _, one in old], before, kept)

# %% [markdown]
# That all weights forget more, there is no doubt. But LoRA and the frozen tower? A difference of two
# points, and chance alone makes one as large in one of twelve times. That is no proof. Whoever says
# "LoRA forgets less" because its dots lie further right has not looked at the pairs. What saved the
# model here was the frozen tower. (And the test speaks of other *questions*. Of other seeds it knows
# three.)
#
# The last figure shows what a mean hides. Each line is a task before, each mark the same task after.
# With LoRA and with the frozen tower one task is clearly worse: naming. It is the one that is nearest
# to the new word.
#
# ## See it: how few pictures are enough?

# %%
rng, unknown = np.random.default_rng(5), ("truck", "train", "plane", "cow") * 10
others = [scenes.compose(rng, scenes.VALIDATION_ARTIST, names=[name]) for name in unknown]
strangers = [(scene, buses[0][1]) for scene in others]  # scored 1 if the answer is "bus"
few = {n: [taught("LoRA", new_word("bus", n, seed), seed) for seed in SEEDS] for n in (4, 16)}
few[40] = learners["LoRA"]
named = {n: [right(one, buses).mean() for one in own] for n, own in few.items()}
called = {n: [right(one, strangers).mean() for one in own] for n, own in few.items()}
figures.lora.pictures_needed(named, called)
enough = [n for n, found in named.items() if np.mean(found) > 0.5]
reveal("pictures", guess_pictures, min(enough, default="none of these"))

# %% [markdown]
# Four pictures are enough to name the buses of an artist whom it never saw. (That artist has one
# drawing of a bus, shown here in many sizes and on many backgrounds.) But look at the orange
# squares. Trucks, trains, planes and cows are new to it as well, and after four pictures it calls
# most of them a bus. It has learned that *what I do not know is a bus*. With forty pictures it is
# still so for two of five.
#
# So how few are enough? That depends on what you ask afterwards. An exam without strangers would
# have said: four.
#
# ## See it: a question that it never learned
#
# "What colour is the dog?" In its training our model was asked only for the colour of the
# *background*. What will it say? We paint objects in one colour, on a background of another, and
# teach the new question with LoRA, 120 pictures. The danger: the old question differs by one word.
# Does it survive?


# %%
def same_pictures(asked):
    """The old question, about the same pictures."""
    rng = np.random.default_rng(0)
    return [(scene, scenes.ask(rng, scene, "background")) for scene, _ in asked]


# %%
painted, more = new_question(60, 1, scenes.VALIDATION_ARTIST), new_question(60, seed=2)
told, grounds = answers(model, processor, painted), same_pictures(painted)
same = np.mean([one == ground.answer for one, (_, ground) in zip(told, grounds, strict=True)])
print(f"asked for the object's colour, today it names the background's: {same:.0%}")
models = {"before": model}
models["new question alone"] = taught("LoRA", new_question(120))
models["and the old one"] = taught("LoRA", new_question(120) + same_pictures(more), steps=150)
for name, one in models.items():
    new, ground = right(one, painted).mean(), right(one, same_pictures(painted)).mean()
    print(f"{name:18} colour of the object {new:4.0%}, of the background {ground:4.0%}")

# %% [markdown]
# With the new question alone, a third of its answers are right. (There are six colours, so guessing
# gives 17 %.) And the old question is lost: nearly all its answers were right before, and nobody
# wanted it to forget. The remedy is to mix in **old examples**, here the old question about 60
# pictures, and more steps, because now the model must use the one word that differs. Then the old
# question is kept, and of the new ones about half are right. But that needs examples of what shall
# stay. Who downloads a model often has none.
#
# ## Break it: four mistakes
#
# Each is one line. Which does the loss alone show?


# %%
def zeros(n, d, rank):
    return torch.zeros(rank, d), torch.zeros(n, rank)


def noise(n, d, rank):
    return torch.randn(rank, d), torch.randn(n, rank)


def twice(model):
    """Merged, and the change goes on beside it."""
    both = copy.deepcopy(model)
    for layer in [layer for layer in both.modules() if isinstance(layer, Adapted)]:
        layer.base.weight.data = merge_weight(
            layer.base.weight, layer.A, layer.B, layer.alpha
        ).detach()
    return both


# %%
broken = {
    "both zero": {"start": zeros},
    "both random": {"start": noise},
    "alpha and rank exchanged": {"alpha": 4},  # 8 / 16 = 4 / 8
}
for name, how in broken.items():
    torch.manual_seed(0)
    learner = adapted(model, **how)
    first = right(learner, old).mean()
    losses = teach(learner, processor, lessons, steps=40, rate=6e-3)
    print(f"{name:24} old questions before the first step {first:4.0%}, loss {losses[0]:.1f} to"
          f" {np.mean(losses[-5:]):.1f}, buses {right(learner, buses).mean():4.0%}")  # fmt: skip
for name, one in (
    ("merged once", learners["LoRA"][2]),
    ("merged twice", twice(learners["LoRA"][2])),
):
    print(
        f"{name:24} old questions {right(one, old).mean():4.0%}, buses {right(one, buses).mean():4.0%}"
    )

# %% [markdown]
# - **Both zero**: not one number moves. The loss changes because each step has other pictures, and
#   that can look like learning.
# - **Both random**: of the trained model almost nothing is left before the first step, and forty
#   steps do not repair it. (The numbers here have the size 1.)
# - **alpha and rank exchanged**: the change is multiplied by 1/2 in place of 2. It learns, but so
#   slowly that it names no bus. It looks like a learning rate that is too small.
# - **Merged twice**: the buses are as good as before, and the old questions fall. An exam of the new
#   word alone would praise it.
#
# ## Check
#
# Our layer and our merge against the package's, with the same numbers.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
base, x = nn.Linear(12, 20, bias=False), torch.randn(4, 12)
theirs, ours = lora.LoRA(base, rank=3, alpha=6), Adapted(base, rank=3, alpha=6)
with torch.no_grad():
    print("starts as it was:", torch.equal(ours(x), x @ base.weight.T))
    ours.A.copy_(theirs.lora_A), ours.B.normal_(), theirs.lora_B.copy_(ours.B)
    print("layer:           ", torch.allclose(ours(x), theirs(x), atol=1e-6))
    one = merge_weight(base.weight, ours.A, ours.B, 6)
    print("merged:          ", torch.allclose(x @ one.T, ours(x), atol=1e-5))
    print("merge, package:  ", torch.allclose(one, theirs.merged().weight, atol=1e-6))

# %% [markdown]
# ## In the real model
#
# What learns, and what it costs: 2 bytes for each frozen weight (bfloat16), 16 for each that
# learns. Without activations: `python -m minipali.memory` counts those, too. `TARGETS` are the
# layers that `minipali finetune` changes: also queries, keys and values of the tower, so they are
# more than above.

# %% tags=["nbval-check-output"]
for name in ("small", "paligemma-3b-224"):
    for rank in (1, 8, 64):
        with torch.device("meta"):  # sizes without memory
            real = PaliGemma(preset(name))
        count = sum(p.numel() for p in real.parameters())
        lora.add_lora(real, list(TARGETS), rank)
        learned = sum(p.numel() for p in real.parameters() if p.requires_grad)
        print(f"{name:16} rank {rank:2}: {learned:11,} weights learn, {learned / count:6.2%};"
              f" {(2 * count + 16 * learned) / 1e9:6.2f} GB, all {16 * count / 1e9:5.2f} GB;"
              f" a file of {4 * learned / 1e6:6.1f} MB")  # fmt: skip

# %% [markdown]
# This is why LoRA is used so much: not because it learns better, but because a 3B model then fits
# into a card of 24 GB, and because what was learned is a small file. `minipali finetune FOLDER
# --output learned` does it from a folder of labelled pictures, for this model and the published ones.
#
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/18_lora.ipynb). The trained model learns a word
# with your layer. It has one piece more that no cell of this lesson shows: an adapter out of a model
# that somebody has trained in full.
#
# ## Take away
#
# - LoRA freezes W and learns $\frac{\alpha}{r} B A$ beside it. B starts at zero, A random: so the
#   model starts as it was, and learns.
# - Merged, it is a plain model again. Merge once.
# - Learning has a price in what was known. Measure it: the same questions before and after, more
#   than one seed, in pairs.
#
# **Self-test**
#
# <details><summary>A's numbers are all zero, B's are random. Does the model start as it was? Does it
# learn?</summary>
#
# Yes, B A is zero. And yes: A gets a gradient through B from the first step on. It works as well with
# the roles exchanged. By convention it is B that is zero.
# </details>
#
# <details><summary>Somebody doubles the rank and leaves alpha as it is. How does the scale
# change?</summary>
#
# alpha / r is halved. But twice as many products are added up, so the change keeps about its size.
# </details>
#
# <details><summary>A merged model answers with the same words, only worse than before the merge. Which
# mistake is likely?</summary>
#
# The change is in it twice: merged, and still beside the layer. Or the merge has another scale than
# the layer.
# </details>
#
# **Sources.** LoRA: Hu et al. 2021, arXiv 2106.09685. Start values as in PEFT and torch's linear
# layer. Flipping signs in pairs: Fisher 1935, *The Design of Experiments*, chapter 3.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the notes load the published weights and use them as they are | they are a start, too: a few small matrices beside them learn what was never in their data |
