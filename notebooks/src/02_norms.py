# %% [markdown]
# # 02 · Three ways to tame numbers
#
# A deep network multiplies and adds, layer after layer. If each layer makes its numbers a little
# larger, the last one gets huge numbers. If a little smaller, it gets nothing. A **norm** is a small
# step between layers that brings numbers back to one scale. This lesson builds three of them:
# BatchNorm, LayerNorm and RMSNorm. They differ in one thing above all: which numbers they average.
#
# ## Where we are

# %%
import torch

from minipali import figures, load

model, processor = load("small")
figures.model_map("vision", model.config)

# %% [markdown]
# The vision tower uses LayerNorm, twice in each of its layers and once at its end. The decoder uses
# RMSNorm in the same places. BatchNorm came before both. It has no place in this model, and you will
# see why.
#
# ## Goals
#
# After this lesson you can
#
# 1. **compute** each of the three norms by hand, and say which axis it averages over,
# 2. **explain** what BatchNorm does with a batch of one or two pictures, and in eval mode,
# 3. **judge** the story of internal covariate shift by an experiment of your own.
#
# Time: 45 minutes. You need: lesson 01, and what a mean and a variance are.
#
# ## Predict
#
# - BatchNorm brings each feature of a batch to mean 0 and variance 1. A batch has two pictures. One
#   feature is 5 in the first and 9 in the second. What comes out? And if it is 5 and 900?
# - What comes out if the batch is one picture?
# - LayerNorm brings each token to mean 0 and variance 1. You multiply a token by 10 and then add
#   100 to each of its numbers. What changes in the output?
#
# Write your answers down. You will meet them all.
#
# ## By hand: one token of four numbers
#
# Take the token 5, 5, 7, -1. On paper:
#
# - The **mean** is 16 / 4 = 4. The distances from it are 1, 1, 3 and -5.
# - The **variance** is the mean of their squares: (1 + 1 + 9 + 25) / 4 = 9. Its root, the **standard
#   deviation**, is 3.
# - The **root mean square** (RMS) looks at the numbers themselves, not at distances:
#   (25 + 25 + 49 + 1) / 4 = 25, and the root is 5.
#
# LayerNorm takes the mean away and divides by 3. RMSNorm takes nothing away and divides by 5.

# %%
token = torch.tensor([5.0, 5.0, 7.0, -1.0])
mean, sd, rms = token.mean(), token.std(correction=0), token.square().mean().sqrt()
print("mean, sd, rms:", mean.item(), sd.item(), rms.item())
print("LayerNorm:", (token - mean) / sd)
print("RMSNorm:  ", token / rms)

# %% [markdown]
# 3, 4 and 5 are the sides of a right triangle, and that is no accident: rms² = mean² + sd², always.
# If the mean of a token is near 0, its standard deviation and its RMS are nearly the same, and so
# are the two norms. Remember this for later.
#
# `correction=0` makes torch divide by 4. Without it, torch divides by 3 and gives the **unbiased**
# variance, 12. That one is for guessing the variance of many numbers from a few. LayerNorm does not
# guess. It has all the numbers of its token, so it divides by how many they are.
#
# BatchNorm goes the other way: down a column. Here are two pictures with three features each.

# %%
batch = torch.tensor([[5.0, 5.0, 2.0], [9.0, 900.0, 2.0]])  # (b, d)
centred = batch - batch.mean(dim=0)
centred / (batch.var(dim=0, correction=0) + 1e-5).sqrt()

# %% [markdown]
# The first two columns come out alike. With two examples, one is always one standard deviation
# below the mean and the other one above: **-1 and 1, whatever the numbers were**. Whether the
# second picture had 9 or 900 is lost.
#
# The third column has variance 0. There the small number `eps` under the root keeps us from 0 / 0.
#
# ## Build: which numbers are averaged?
#
# Two pictures of three tokens, four features each. The marked numbers share one mean and one
# variance (in RMSNorm, one mean square). The other columns, or rows, form groups of the same kind.

# %%
torch.manual_seed(2)
example = torch.randint(0, 10, (2, 3, 4)).float()  # (b, n, d)
figures.norms.axes(example)

# %% [markdown]
# This picture holds most of what follows. A column mixes pictures, so in BatchNorm each example
# depends on the others in its batch. A row belongs to one token alone.
#
# ## Build: BatchNorm
#
# In training, BatchNorm uses the mean and variance of the batch. But when the model is in use, there
# may be no batch. So in training it also keeps a **memory**: an average of the means and variances
# that it has met, in which the newest batch has the share `momentum`. In eval mode it uses the memory
# and ignores the batch. Two modes, two behaviours, one layer.
#
# At the end each feature is multiplied by a learned `weight` and shifted by a learned `bias`, so the
# network can still choose a scale. What the norm takes away is the scale that *happens* to come.


# %%
def batch_norm(x, weight, bias, running_mean, running_var, training, momentum=0.1, eps=1e-5):
    """x: (b, d) -> y: (b, d), and the new memory: running_mean (d,), running_var (d,)."""
    mean, variance = running_mean, running_var
    if training:
        mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
        guess = x.var(dim=0, correction=1)  # unbiased: the memory is a guess about all data
        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var = (1 - momentum) * running_var + momentum * guess
    y = (x - mean) / (variance + eps).sqrt() * weight + bias
    return y, running_mean, running_var


# %% [markdown]
# ## Build: LayerNorm and RMSNorm
#
# No memory, no modes, no batch. `dim=-1` is the axis of the features, and the same lines serve for
# any number of axes before it. Gemma's RMSNorm has one peculiarity: it stores its factor minus one
# and multiplies by **(1 + weight)**. A weight of 0 then means "leave it as it is". Training starts
# there, and weight decay, which pulls weights towards 0, pulls towards it.
#
# The second cell tries the third question of *Predict*: times 10, then plus 100.


# %%
def layer_norm(x, weight, bias, eps=1e-6):
    """x: (..., d) -> (..., d)."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias


def rms_norm(x, weight, eps=1e-6):
    """x: (..., d) -> (..., d)."""
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x / (mean_square + eps).sqrt() * (1 + weight)


# %%
one, zero = torch.ones(4), torch.zeros(4)
for x in (token, 10 * token, 10 * token + 100):
    layer, root = layer_norm(x, one, zero), rms_norm(x, zero)
    print([round(v, 2) for v in layer.tolist()], [round(v, 2) for v in root.tolist()])

# %% [markdown]
# LayerNorm (left) notices neither. RMSNorm (right) ignores the factor but not the shift. Zhang and
# Sennrich argued that the factor is what matters, so the mean may stay, and the work of finding it
# is saved.
#
# ## Break it: small batches
#
# First a batch of one. The mean of one number is the number itself:

# %%
single = batch[:1]
print("x - mean:", (single - single.mean(dim=0)).tolist())
try:
    torch.nn.BatchNorm1d(3)(single)
except ValueError as error:
    print("torch:", error)

# %% [markdown]
# All zeros: each picture would give the same output. torch refuses. (In eval mode a single picture is
# no problem, because the memory stands in for the batch.)
#
# A batch of two gave -1 and 1. And larger ones? We take real numbers: 1024 pictures with one object,
# and what the trained patch embedding makes of a patch in the middle of each. Picture 0 is then put
# into 200 random batches of each size, and we watch *one* of its numbers.

# %%
import numpy as np

from minipali import scenes

shown = [scenes.compose(np.random.default_rng(i), scenes.TRAINING_ARTISTS, 1) for i in range(1024)]
pool = model.vision_tower.embeddings(scenes.pixel_values(shown))[:, 14].detach()  # (1024, d)

# %%
one, zero = torch.ones(pool.shape[1]), torch.zeros(pool.shape[1])
outputs = {}
for size in (2, 4, 8, 16, 32, 64):
    others = [1 + torch.randperm(1023)[: size - 1] for _ in range(200)]
    normalised = [
        batch_norm(torch.cat([pool[:1], pool[o]]), one, zero, zero, one, training=True)[0]
        for o in others
    ]
    outputs[size] = torch.stack([y[0, 3] for y in normalised])  # picture 0, feature 3
memory = pool.mean(dim=0), pool.var(dim=0)
in_eval, _, _ = batch_norm(pool[:1], one, zero, *memory, training=False)
of_layer = layer_norm(pool[0], one, zero)
lines = {"BatchNorm in eval mode": in_eval[0, 3].item(), "LayerNorm": of_layer[3].item()}
figures.norms.batch_size_spread(outputs, lines)

# %% [markdown]
# The same picture, the same feature, and the number depends on who else is in the batch. In small
# batches it says little about the picture. (A dot at size 2 that is not at -1 or 1 comes from two
# pictures whose numbers are so close that eps counts.) In eval mode it is fixed, but training and use are now two
# different things. LayerNorm gives one value, always.
#
# A large model has room for few examples at a time, texts have different lengths, and an answer is
# written for one user. A norm that looks at a single token has no trouble with any of that. Now see
# the damage in the model: give the vision tower statistics **over the batch**, and show it one
# picture at a time. (`swap` puts our code inside the trained model, and reports what changes.)

# %%
from minipali import generate
from minipali.scenes import examples
from minipali.swap import swap


def over_the_batch(x, weight, bias, eps):
    mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


blind = swap(model, layer_norm=over_the_batch)
for name in ("dog_and_car_test_artist", "rocket_moon_clock"):
    right, wrong = (generate(m, processor, examples()[name], "caption en") for m in (model, blind))
    print(f"{name}\n   LayerNorm:      {right}\n   over the batch: {wrong}")

# %% [markdown]
# Both pictures get the same answer. The tower is blind, and it does not know it.
#
# ## Break it: loud and quiet mistakes
#
# Two more wrong norms in the trained model: an RMSNorm that multiplies by `weight` and forgets the
# 1, and a LayerNorm that does not subtract the mean.


# %%
def without_the_one(x, weight, eps):
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight


def mean_stays(x, weight, bias, eps):
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight + bias


picture = examples()["dog_and_car_test_artist"]
for wrong in ({"rms_norm": without_the_one}, {"layer_norm": mean_stays}):
    broken = swap(model, **wrong)
    print("->", repr(generate(broken, processor, picture, "caption en", max_new_tokens=12)))

# %% [markdown]
# The first is loud: the decoder falls apart. The second is quiet. `swap` sees a small difference in
# the numbers, and the answer is still right. The next figure shows why.
#
# ## See it: norms at work
#
# What enters and what leaves each norm of the trained model, for one picture and one question.

# %%
figures.norms.scales(model, processor(picture, "caption en"))

# %% [markdown]
# Two things to see.
#
# - **The stream grows, the norms' outputs do not.** Each layer adds to the stream of numbers, and
#   nothing holds that back. But each layer *reads* the stream through a norm, and so it meets numbers
#   of about the same size, however deep it lies.
# - **In the vision tower the mean of a token is almost 0** beside its RMS. As rms² = mean² + sd²,
#   LayerNorm and RMSNorm then divide by nearly the same number. This is why the second mistake is
#   quiet here.
#
# A quiet mistake passes every test that only looks at answers. So the checks of the exercise use small
# widths, a large eps, and numbers far from mean 0.
#
# ## See it: why did anyone normalise?
#
# Ioffe and Szegedy, who proposed BatchNorm in 2015, gave a reason with a long name: **internal
# covariate shift**. While a network trains, all its layers change at once. So the numbers that reach
# a late layer are spread differently from step to step, and the layer has to learn on moving ground.
# Hold the ground still, they argued, and training gets faster. Note the word *internal*: it is about
# layers inside one network during training, not about test data that differ from training data.
#
# We can look. A network of six hidden layers gets our 1024 pictures, shrunk to 12 x 12 pixels, and
# must name the object. We train it three ways. (We use torch's norms here, because they learn their
# weights. The cell under *Check* shows that they compute the same as ours.) The weights start as He
# et al. proposed for ReLU. The learning rate, 0.5, is one at which the three differ clearly; we look
# at other rates below. Every five steps we note what the last hidden layer hands to its ReLU, for
# the same 256 pictures.

# %%
import torch.nn.functional as F
from torch import nn

inputs = F.avg_pool2d(scenes.pixel_values(shown), 6).flatten(1)  # (1024, 432)
targets = torch.tensor([scenes.OBJECTS.index(scene.things[0].name) for scene in shown])
NORMS = {
    "none": lambda width: [],
    "BatchNorm": lambda width: [nn.BatchNorm1d(width)],
    "LayerNorm": lambda width: [nn.LayerNorm(width)],
}


def network(norm, start, width=64):
    layers, between = [], NORMS[norm]
    for i in range(6):
        linear = nn.Linear(width if i else inputs.shape[1], width)
        start(linear.weight)
        layers += [linear, *between(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, len(scenes.OBJECTS)))


# %%
def train(norm, rate=0.5, steps=400, start=nn.init.kaiming_normal_):
    torch.manual_seed(0)
    net = network(norm, start)
    optimiser = torch.optim.SGD(net.parameters(), lr=rate)
    losses, seen = [], []
    for step in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(net(inputs[chosen]), targets[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step % 5 == 0:
            with torch.no_grad():
                seen.append(net[:-2](inputs[:256]))
    return {"loss": losses, "seen": torch.stack(seen)}  # seen: (times, 256, 64)


# %%
runs = {norm: train(norm) for norm in NORMS}
figures.norms.training(runs, every=5)

# %% [markdown]
# The line is the median of one feature over the pictures; in the band lie the middle 70 % of them.
# At first sight the story holds: no norm, moving ground, slow training; BatchNorm, firm ground, fast
# training. But look at LayerNorm. It trains better than no norm, and its ground moves too. It holds
# the numbers of each *picture* together, not those of each *feature*.
#
# ## See it: the dispute
#
# In 2018 Santurkar and others put the story to a test: use BatchNorm, then **spoil its firm ground on
# purpose**, and see whether the advantage goes away. We do the like. After each BatchNorm, every
# feature is stretched by a random factor and shifted by a random amount, new ones in each step. (How
# strongly is our choice: so that the ground moves more than without a norm.)
#
# And we measure the ground: how far does the mean of a feature move in five steps, in standard
# deviations of that feature, on average over the 64 features?


# %%
class Shake(nn.Module):
    def forward(self, x):
        return (0.5 + torch.rand(x.shape[1])) * x + 1.4 * torch.rand(x.shape[1]) - 0.7


NORMS["BatchNorm, shaken"] = lambda width: [nn.BatchNorm1d(width), Shake()]

# %%
runs["BatchNorm, shaken"] = train("BatchNorm, shaken")
figures.norms.training({name: runs[name] for name in runs if name != "LayerNorm"}, every=5)

# %%
for name, run in runs.items():
    mean, sd = run["seen"].mean(dim=1), run["seen"].std(dim=1)  # (times, 64)
    moved = (mean[1:] - mean[:-1]).abs() / sd[:-1].clamp(min=1e-3)
    print(f"{name:18} moved {moved.mean():.2f}   loss {np.mean(run['loss'][-50:]):.2f}")

# %% [markdown]
# The shaken network stands on the ground that moves most of all four, and still it ends below the
# network without a norm. LayerNorm does not hold the ground still either. So firm ground cannot be
# the whole reason.
#
# Santurkar and others offer another: a norm makes the loss a **smoother** function of the weights.
# The gradient then stays true for a longer way, and larger steps are safe. Larger steps we can test:

# %%
NORMS["RMSNorm"] = lambda width: [nn.RMSNorm(width)]
curves = {name: {} for name in [*NORMS, "none, torch's start"]}
for name, curve in curves.items():
    own = {"start": lambda weight: weight} if "start" in name else {}
    norm = "none" if own else name
    for rate in (0.02, 0.1, 0.5, 2.5):
        curve[rate] = np.mean(train(norm, rate, steps=200, **own)["loss"][-30:])
figures.norms.loss_by_rate(curves, guessing=np.log(len(scenes.OBJECTS)))

# %% [markdown]
# Read it slowly; it is richer than either story.
#
# - At a rate of 0.1, a careful start of the weights does nearly as well as a norm.
# - At 0.5 and above, the network without a norm gets worse and then blows up. All norms help at 0.5,
#   and only BatchNorm still learns much at 2.5, **shaken or not**. So moving ground is not what
#   forbids large steps.
# - At small rates the shaken network is the worst of those with a careful start. Shaking has a
#   price. Santurkar and others report next to none for their larger networks; ours pays one.
# - With the start that torch gives by default, and without a norm, this network stays at guessing
#   at every rate. A norm forgives a careless start.
# - LayerNorm and RMSNorm lie close together, as Zhang and Sennrich reported.
#
# One small experiment can refute a simple story. It does not prove another.
#
# ## Check
#
# Our three functions against torch and against the package, on random numbers with a large eps.

# %% tags=["nbval-check-output"]
from minipali.norms import layer_norm as finished

torch.manual_seed(0)
x, weight, bias = 3 * torch.randn(4, 5) + 1, torch.randn(5), torch.randn(5)
theirs, memory = nn.BatchNorm1d(5, eps=0.3), (torch.zeros(5), torch.ones(5))
for _ in range(3):  # three training steps
    y, *memory = batch_norm(x, torch.ones(5), torch.zeros(5), *memory, training=True, eps=0.3)
    same = torch.allclose(y, theirs(x), atol=1e-5)
print("BatchNorm:", same, torch.allclose(memory[1], theirs.running_var))
ours = layer_norm(x, weight, bias, 0.3)
print("LayerNorm:", torch.allclose(ours, F.layer_norm(x, (5,), weight, bias, 0.3), atol=1e-5))
print("package:  ", torch.allclose(ours, finished(x, weight, bias, 0.3), atol=1e-5))
ours = rms_norm(x, weight, 0.3)
print("RMSNorm:  ", torch.allclose(ours, F.rms_norm(x, (5,), 1 + weight, 0.3), atol=1e-5))

# %% [markdown]
# ## In the real model
#
# We build the skeleton of PaliGemma 3B on the `meta` device, where tensors have a shape but no
# content, and count its norms. For each number, LayerNorm does about seven operations (one for the
# mean, one to subtract it, two for the variance, three for scale, weight and bias), RMSNorm about
# four. Beside them: two operations for each weight of the linear maps. We count the 256 tokens of a
# picture, in both towers, at 2 bytes a number.

# %% tags=["nbval-check-output"]
from minipali.config import preset
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma

with torch.device("meta"):
    real = PaliGemma(preset("paligemma-3b-224"))
towers = ((real.vision_tower, nn.LayerNorm, 7), (real.language_model, RMSNorm, 4))
for tower, kind, work in towers:
    norms = [m for m in tower.modules() if isinstance(m, kind)]
    weights = sum(p.numel() for m in norms for p in m.parameters())
    linear = sum(m.weight.numel() for m in tower.modules() if isinstance(m, nn.Linear))
    numbers = 256 * sum(m.weight.numel() for m in norms)
    print(f"{len(norms)} x {kind.__name__} of width {norms[0].weight.numel()}")
    print(f"   {weights:,} parameters beside {linear:,} in linear maps")
    print(f"   {work * numbers / 1e9:.2f} GFLOP beside {2 * 256 * linear / 1e9:,.0f}")
    print(f"   {2 * 2 * numbers / 1e6:.0f} MB read and written")

# %% [markdown]
# Norms are nearly free to compute: less than a thousandth of the work, and still fewer of the
# parameters. What they cost is memory traffic. Each one reads and writes all its tokens, and that is
# why fast programs fuse a norm with its neighbours into one step.
#
# ## Your turn
#
# Open [the exercise](../exercises/02_norms.ipynb). You write all three norms. At the end the trained
# model answers with your LayerNorm and your RMSNorm inside.
#
# ## Take away
#
# - The three norms differ in what they average: BatchNorm a feature over the batch, LayerNorm a token
#   over its features, RMSNorm the squares of a token, with nothing subtracted.
# - BatchNorm ties examples together, needs a memory, and behaves differently in training and in eval
#   mode. With one example it cannot train at all.
# - Norms forgive large steps and a careless start. That they do it by stopping internal covariate
#   shift was the first explanation; later experiments speak against it.
#
# **Self-test**
#
# <details><summary>A model with BatchNorm gives one answer for a picture alone and another for the
# same picture in a batch. What was forgotten?</summary>
#
# <code>model.eval()</code>. In training mode the statistics come from the batch; in eval mode they
# come from the memory, and the neighbours do not matter.
# </details>
#
# <details><summary>What does LayerNorm (weight 1, bias 0) make of the token 2, 2, 2, 6? And
# RMSNorm, with weight 0?</summary>
#
# The mean is 3, the distances are -1, -1, -1, 3, the variance is 12 / 4 = 3. LayerNorm gives about
# -0.58 three times and 1.73. The mean square is 48 / 4 = 12, so RMSNorm divides by 3.46 and gives
# 0.58 three times and 1.73.
# </details>
#
# <details><summary>In your RMSNorm, eps is outside the root, and yet the model's answers and even
# <code>swap</code> show nothing. Why, and when would you notice?</summary>
#
# eps is 0.000001, and the RMS of a token in this model is far above that. The two forms then differ
# by about one part in a million. A token of nearly zeros would show it, and so does a check with a
# large eps.
# </details>
#
# **Sources.** BatchNorm and internal covariate shift: Ioffe and Szegedy 2015, arXiv 1502.03167,
# section 2 and algorithms 1 and 2. LayerNorm: Ba et al. 2016, arXiv 1607.06450, equation 3. RMSNorm:
# Zhang and Sennrich 2019, arXiv 1910.07467. The dispute: Santurkar et al. 2018, arXiv 1805.11604,
# section 2. The start of the weights: He et al. 2015, arXiv 1502.01852.

# %% [markdown]
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | covariate shift is a change of the data between "training and testing", and this is why layers are normalised | such a change is another problem, and no norm solves it; the BatchNorm paper argued with *internal* covariate shift, layers that move during training, and Santurkar et al. disputed even that |
# | batch normalization does "not work with single inputs" | not in training; in eval mode it does, with its memory. It also suffers in small batches, and gives other results in training than in eval mode |
# | normalization ensures that "the output of every layer" is in a consistent range | it sets the scale of what a layer *reads*; in this model the layers' outputs are added to a stream that grows from layer to layer |
