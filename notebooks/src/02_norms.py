# %% [markdown]
# # 02 · Three ways to tame numbers
#
# A deep network multiplies and adds, layer after layer. If each layer makes its numbers a little
# larger, the last one gets huge numbers. You train a small network, watch its numbers explode, and
# mend it with a **norm**: a step between layers that brings numbers back to one scale.
#
# ## Do you remember?
#
# <details><summary>A picture of 72 x 72 pixels is cut into patches of 12 x 12. How many patches are
# there, and how many numbers does each hold?</summary>
#
# 6 x 6 = 36 patches. Each holds 3 x 12 x 12 = 432 numbers, because a pixel has three colours.
# </details>
#
# <details><summary>What is the shape of <code>patchify(pixels, 12)</code> if <code>pixels</code> is
# (2, 3, 72, 72)?</summary>
#
# (2, 36, 432): two pictures, 36 patches, 432 numbers.
# </details>
#
# <details><summary>Two patches with the same content lie in different places. Which line of the patch
# embedding makes their vectors differ?</summary>
#
# The one that adds the position table. The convolution gives both the same vector.
# </details>
#
# ## Where we are

# %%
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minipali import figures, generate, load, scenes
from minipali.checks import reveal
from minipali.swap import swap

model, processor = load("small")
figures.model_map("vision", model.config)

# %% [markdown]
# The vision tower uses LayerNorm, twice in each of its layers and once at its end. The decoder uses
# RMSNorm in the same places. BatchNorm came before both, and has no place in this model.
#
# ## Goals
#
# After this lesson you can
#
# 1. **train** a small network in six lines, and say what loss, gradient and learning rate are,
# 2. **compute** each of the three norms by hand, and say which axis it averages over,
# 3. **explain** what BatchNorm does with a batch of one or two pictures, and in eval mode.
#
# Time: 55 minutes. You need: lesson 01, and what a mean is.
#
# ## Predict
#
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. A network has 8 layers, and each makes its numbers twice as large. By what factor do they grow?
# 2. BatchNorm brings each feature of a batch to mean 0 and variance 1. A batch has two pictures. One
#    feature is 5 in the first and 900 in the second. What comes out for the second?
# 3. LayerNorm brings each token to mean 0 and variance 1. You add 100 to each number of a token. By
#    how much do the numbers that come out change?

# %%
guess_growth, guess_of_two, guess_shift = ..., ..., ...

# %% [markdown]
# ## A network that learns
#
# We need a task. 1024 pictures with one object each, shrunk to 12 x 12 pixels, are 1024 rows of 432
# numbers. A network shall say which of 24 objects it sees.

# %%
shown = [scenes.compose(np.random.default_rng(i), scenes.TRAINING_ARTISTS, 1) for i in range(1024)]
inputs = F.avg_pool2d(scenes.pixel_values(shown), 6).flatten(1)  # (1024, 432)
targets = torch.tensor([scenes.OBJECTS.index(scene.things[0].name) for scene in shown])
print(inputs.shape, scenes.OBJECTS[targets[0]])

# %% [markdown]
# The network is a stack of **layers**. Each multiplies its numbers by a matrix of **weights**, and
# then **ReLU** replaces what is below 0 by 0. (Without that step a stack of matrices would be no more
# than one matrix.) Layers between input and output are **hidden**, and each number that they hand on
# is a **feature**. The last layer gives each object a number, its **score**. The weights start as
# random numbers of a `size` that we choose.


# %%
def network(hidden, size, norm=None, width=64):
    layers = []
    for inner in [432] + [width] * (hidden - 1):
        layers += [nn.Linear(inner, width), norm(width) if norm else nn.Identity(), nn.ReLU()]
        nn.init.normal_(layers[-3].weight, std=size * inner**-0.5)
    return nn.Sequential(*layers, nn.Linear(width, len(scenes.OBJECTS)))


# %% [markdown]
# How wrong is it? Turn the 24 scores of a picture into probabilities (lesson 03 shows how), and
# take minus the natural logarithm of the right object's. The mean over the pictures is the
# **loss**, here the **cross-entropy**. It is 0 for whoever is sure and right. Guessing, 1/24 for
# each object, has log 24 = 3.18.

# %%
torch.manual_seed(0)
net = network(hidden=2, size=1.4)
scores = net(inputs[:64])  # (64, 24)
probabilities = scores.softmax(dim=-1)
of_the_right_one = probabilities[torch.arange(64), targets[:64]]
print(-of_the_right_one.log().mean().item(), F.cross_entropy(scores, targets[:64]).item())

# %% [markdown]
# Make one weight a little larger and look at the loss again: the change, divided by how much larger
# the weight became, is that weight's **gradient**. `backward()` finds those of all weights at once. We
# try it with a **bias**, a weight that is only added to a score.

# %% tags=["nbval-check-output"]
loss = F.cross_entropy(net(inputs[:64]), targets[:64])
loss.backward()
nudge = 0.01 * F.one_hot(torch.tensor(20), 24)  # makes one bias, that of object 20, larger
nudged = F.cross_entropy(net(inputs[:64]) + nudge, targets[:64])
print(f"by hand {(nudged - loss) / 0.01:.3f}, by backward {net[-1].bias.grad[20]:.3f}")

# %% [markdown]
# If the gradient is above 0, a smaller weight makes the loss smaller. So a **step** of training moves
# every weight by minus its gradient, times a small number, the **learning rate**. It looks at a
# random **batch** of 64 pictures. That is all of *stochastic gradient descent*, **SGD**.


# %%
def train(net, rate=0.1, steps=200):
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(net(inputs[chosen]), targets[chosen])
        net.zero_grad()  # forget the last step's gradients
        loss.backward()
        with torch.no_grad():
            for weight in net.parameters():
                weight -= rate * weight.grad
        losses.append(loss.item())
    return np.mean(losses[-30:])


print("loss after 200 steps:", round(train(net), 2))

# %% [markdown]
# Better than guessing. Now eight hidden layers instead of two, with three sizes of the first weights.
# We look at the numbers that each layer gives, before any training.

# %%
sizes = {}
for size in (0.5, 1.4, 3.0):
    torch.manual_seed(0)
    net = network(8, size)
    sizes[size] = [net[: i + 1](inputs[:256]).std().item() for i in range(0, len(net), 3)]
figures.norms.sizes_by_layer(sizes)

# %% [markdown]
# With the small start nothing of the picture arrives: what remains are the biases. With the large one
# the numbers **explode**. In between they stay level in the hidden layers (He et al. calculated that
# start). Does it matter for training? And the first question of *Predict*:

# %%
reveal("growth over 8 layers, each times 2", guess_growth, 2**8)
for name, norm in (("no norm", None), ("LayerNorm", nn.LayerNorm)):
    for size in (0.5, 1.4, 3.0):
        found = []
        for seed in range(3):  # one run could be luck
            torch.manual_seed(seed)
            found.append(train(network(8, size, norm)))
        print(f"{name:10} size {size}: loss", " ".join(f"{loss:.2f}" for loss in found))

# %% [markdown]
# In all three runs the small start stays at guessing, and the large one ends in `nan`, which is what
# a computer makes of infinity minus infinity. With a norm between the layers every start learns.
#
# ## By hand: one token of four numbers
#
# In the vision tower each patch is one row of features. Such a row is called a **token**, too. Take
# the token 5, 5, 7, -1. On paper:
#
# - The **mean** is 16 / 4 = 4. The distances from it are 1, 1, 3 and -5.
# - The **variance** is the mean of their squares: (1 + 1 + 9 + 25) / 4 = 9. Its root, the **standard
#   deviation**, is 3.
# - The **root mean square** (RMS) looks at the numbers themselves, not at distances:
#   (25 + 25 + 49 + 1) / 4 = 25, and the root is 5.
#
# LayerNorm subtracts the mean and divides by 3. RMSNorm subtracts nothing and divides by 5.

# %% tags=["nbval-check-output"]
token = torch.tensor([5.0, 5.0, 7.0, -1.0])
mean, sd, rms = token.mean(), token.std(correction=0), token.square().mean().sqrt()
print("mean, sd, rms:", mean.item(), sd.item(), rms.item())
print("LayerNorm:", (token - mean) / sd)
print("RMSNorm:  ", token / rms)

# %% [markdown]
# 3, 4 and 5 are the sides of a right triangle, and that is no accident: $\text{rms}^2 =
# \text{mean}^2 + \text{sd}^2$, always. If the mean of a token is near 0, the two norms are nearly the
# same.
#
# `correction=0` makes torch divide by 4. Without it, torch divides by 3 and gives the **unbiased**
# variance, 12. That one guesses the variance of many numbers from a few. LayerNorm has all of its
# token's numbers, and need not guess.
#
# ## Build: LayerNorm and RMSNorm
#
# For a token $x$ of $d$ features, with weight $w$, bias $b$ and a small $\varepsilon$ that keeps us
# from dividing by 0:
#
# $$\text{LayerNorm}(x)_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \varepsilon}}\, w_i + b_i,\qquad
# \mu = \frac1d\sum_j x_j,\quad \sigma^2 = \frac1d\sum_j (x_j - \mu)^2$$
#
# $$\text{RMSNorm}(x)_i = \frac{x_i}{\sqrt{\frac1d\sum_j x_j^2 + \varepsilon}}\,(1 + w_i)$$
#
# With the learned weight and bias the network chooses a scale and a centre for each feature.
# Gemma's RMSNorm stores its factor minus one, so a weight of 0 means "leave it as it is".
#
# **Write both now**: [exercise 02](../exercises/02_norms.ipynb), parts 1 and 2. What comes in is
# (b, n, d), what goes out has the same shape. Two results to hold yours against, with w = 1, b = 0
# and $\varepsilon$ = 0 in LayerNorm and w = 0 in RMSNorm: the token 5, 5, 7, -1 becomes 1/3, 1/3,
# 1, -5/3 in the one and 1, 1, 1.4, -0.2 in the other; the token 3, 3, 3, 3 is 0/0 in the one (with
# an $\varepsilon$ above 0 it becomes 0, 0, 0, 0) and 1, 1, 1, 1 in the other. Then open the cell
# below.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def layer_norm(x, weight, bias, eps=1e-6):
    """x: (..., d) -> (..., d)."""
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight + bias


def rms_norm(x, weight, eps=1e-6):
    """x: (..., d) -> (..., d)."""
    mean_square = x.square().mean(dim=-1, keepdim=True)
    return x / (mean_square + eps).sqrt() * (1 + weight)


# %% [markdown]
# Zhang and Sennrich, who proposed RMSNorm, argued that the division is what matters, so the work of
# finding the mean can be saved. The third question of *Predict*: the token, then times 10, then
# plus 100:

# %%
one, zero = torch.ones(4), torch.zeros(4)
for x in (token, 10 * token, token + 100):
    layer, root = layer_norm(x, one, zero), rms_norm(x, zero)
    print([round(v, 2) for v in layer.tolist()], [round(v, 2) for v in root.tolist()])
change = (layer_norm(token + 100, one, zero) - layer_norm(token, one, zero)).abs().max()
reveal("change after adding 100", guess_shift, round(change.item(), 4))

# %% [markdown]
# LayerNorm (left) changes with neither. RMSNorm (right) ignores the 10 but not the 100.
#
# ## Build: BatchNorm
#
# BatchNorm goes the other way: down a column. Two pictures of three tokens, four features each. The
# marked numbers share one mean and one variance (in RMSNorm, one mean square).

# %%
torch.manual_seed(2)
example = torch.randint(0, 10, (2, 3, 4)).float()  # (b, n, d)
figures.norms.axes(example)

# %% [markdown]
# A column mixes pictures, so in BatchNorm each example depends on the others in its batch. A row
# belongs to one token alone. So LayerNorm works with one example and with texts of unequal length,
# and does the same in training and in use.
#
# In use there may be no batch. So in training BatchNorm also keeps a **memory**,
# in torch the *running statistics*: an average of the means and variances that it has met, in which
# the newest batch has the share `momentum`. In **eval mode**, the mode for use, it takes the memory
# and ignores the batch.
#
# **Write it now**: exercise 02, part 3. Two results: the batch (5, 900) of one feature becomes
# (-1, 1), whatever the two numbers are; with momentum 0.1, a memory of mean 0 and variance 1 becomes
# 0.1 x 452.5 = 45.25 and 0.9 + 0.1 x 400,512.5 = 40,052.15. (The memory takes the unbiased variance,
# because it *is* a guess about all data.) Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def batch_norm(x, weight, bias, running_mean, running_var, training, momentum=0.1, eps=1e-5):
    """x: (b, d) -> y: (b, d), and the new memory: running_mean (d,), running_var (d,)."""
    mean, variance = running_mean, running_var
    if training:
        mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
        guess = x.var(dim=0, correction=1)
        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var = (1 - momentum) * running_var + momentum * guess
    y = (x - mean) / (variance + eps).sqrt() * weight + bias
    return y, running_mean, running_var


# %% tags=["nbval-check-output"]
column = torch.tensor([[5.0], [900.0]])
y, *memory = batch_norm(column, torch.ones(1), torch.zeros(1), torch.zeros(1), torch.ones(1), True)
reveal("second of two", guess_of_two, round(y[1].item(), 4))
print("memory:", [round(m.item(), 2) for m in memory])

# %% [markdown]
# With two examples, one is always one standard deviation below the mean and the other above. Whether
# the second picture had 9 or 900 is lost. And a batch of one is its own mean: all zeros come out.
# torch refuses to train on it.
#
# ## Break it: small batches
#
# How much do the others in the batch matter? We take what the trained patch embedding makes of a
# patch in the middle of each of our pictures. Picture 0 is put into 200 random batches of each size,
# and we watch *one* of its numbers.

# %%
pool = model.vision_tower.embeddings(scenes.pixel_values(shown))[:, 14].detach()  # (1024, d)
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
# The number depends on who else is in the batch. LayerNorm gives one value, always. Now in the
# model: we give the vision tower statistics **over the batch**, and show it one picture at a time.
# (`swap` puts our code inside the trained model, and reports what changes.)


# %%
def over_the_batch(x, weight, bias, eps):
    mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


blind = swap(model, layer_norm=over_the_batch)
for name in ("dog_and_car_test_artist", "rocket_moon_clock"):
    right, wrong = (
        generate(m, processor, scenes.examples()[name], "caption en") for m in (model, blind)
    )
    print(f"{name}\n   LayerNorm:      {right}\n   over the batch: {wrong}")

# %% [markdown]
# Both pictures get the same answer: the tower is blind.
#
# ## See it: norms at work
#
# What enters and what leaves each norm of the trained model, for one picture and one question.

# %%
picture = scenes.examples()["dog_and_car_test_artist"]
figures.norms.scales(model, processor(picture, "caption en"))

# %% [markdown]
# - **What enters grows, what leaves does not.** Each layer *adds* its result to the tokens, and
#   nothing holds the sum back. But each layer *reads* them through a norm, and so meets numbers of
#   about one size, however deep it lies.
# - **In the vision tower the mean of a token is almost 0.** A LayerNorm that forgets to subtract it
#   hardly changes an answer.
#
# ## Check
#
# Our three functions against torch and the package, with a large eps, so that a wrong one shows.

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
# PaliGemma 3B on the `meta` device, where tensors have a shape but no content: its norms beside its
# linear maps.

# %% tags=["nbval-check-output"]
from minipali.config import preset
from minipali.norms import RMSNorm
from minipali.paligemma import PaliGemma

with torch.device("meta"):
    real = PaliGemma(preset("paligemma-3b-224"))
for tower, kind in ((real.vision_tower, nn.LayerNorm), (real.language_model, RMSNorm)):
    norms = [m for m in tower.modules() if isinstance(m, kind)]
    own = sum(p.numel() for m in norms for p in m.parameters())
    linear = sum(m.weight.numel() for m in tower.modules() if isinstance(m, nn.Linear))
    print(f"{len(norms)} x {kind.__name__} of width {norms[0].weight.numel()}:", end=" ")
    print(f"{own:,} parameters beside {linear:,}, one in {linear // own:,}")

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: why did anyone normalise?
#
# Ten more minutes, on a dispute. Ioffe and Szegedy, who proposed BatchNorm in 2015, gave a reason with
# a long name: **internal covariate shift**. While a network trains, all its layers change at once.
# The weights of an early layer change, so its output changes, so the input of the next layer is spread
# differently, so the gradients of *its* weights answer to a situation that is gone a step later. Each
# layer learns on moving ground. Hold the ground still, they argued, and training gets faster. Note the
# word *internal*: it is about layers inside one network during training, not about test data that
# differ from training data.
#
# The thorough way would be **whitening**: make the features of a layer independent of each other, too.
# It needs a matrix of all pairs of features and its inverse root in every step, and gradients through
# it, which is too costly. BatchNorm is that idea with two simplifications: each feature is normalised
# alone, and the statistics come from the batch, not from all data.
#
# We train a network of six hidden layers and note, every five steps, what the last hidden layer hands
# to its ReLU for the same 256 pictures.


# %%
class Shake(nn.Module):
    """After BatchNorm: stretch and shift every feature at random, anew in each step."""

    def forward(self, x):
        return (0.5 + torch.rand(x.shape[1])) * x + 1.4 * torch.rand(x.shape[1]) - 0.7


NORMS = {
    "none": None,
    "BatchNorm": nn.BatchNorm1d,
    "LayerNorm": nn.LayerNorm,
    "BatchNorm, shaken": lambda width: nn.Sequential(nn.BatchNorm1d(width), Shake()),
    "RMSNorm": nn.RMSNorm,
}


# %%
def watched(norm, rate=0.5, steps=400, size=1.4, seed=0):
    torch.manual_seed(seed)
    net = network(6, size, NORMS[norm])
    losses, seen = [], []
    for _ in range(steps // 5):
        with torch.no_grad():
            seen.append(net[:-2](inputs[:256]))
        losses.append(train(net, rate, steps=5))
    return {"loss": losses, "seen": torch.stack(seen)}  # seen: (times, 256, 64)


runs = {norm: watched(norm) for norm in ("none", "BatchNorm", "LayerNorm")}
figures.norms.training(runs, every=5)

# %% [markdown]
# The line is the median of one feature over the pictures; in the band lie the middle 70 % of them.
# At first sight the story holds: no norm, moving ground, slow training; BatchNorm, firm ground, fast
# training. But look at LayerNorm. It trains better than no norm, and its ground moves too. It holds
# the numbers of each *picture* together, not those of each *feature*.
#
# In 2018 Santurkar and others put the story to a test: use BatchNorm, then **spoil its firm ground on
# purpose**, and see whether the advantage goes away. We try the same with `Shake`. (How strongly is our
# choice: so that the ground moves more than without a norm.) And we measure the ground: how far does
# the mean of a feature move in five steps, in standard deviations of that feature?

# %%
for name in ("none", "BatchNorm", "LayerNorm", "BatchNorm, shaken"):
    moved, losses = [], []
    for seed in range(3):
        run = runs[name] if seed == 0 and name in runs else watched(name, seed=seed)
        mean, sd = run["seen"].mean(dim=1), run["seen"].std(dim=1)  # (times, 64)
        moved.append(((mean[1:] - mean[:-1]).abs() / sd[:-1].clamp(min=1e-3)).mean().item())
        losses.append(np.mean(run["loss"][-10:]))
    print(f"{name:18} moved {np.mean(moved):.2f}   loss", " ".join(f"{v:.2f}" for v in losses))

# %% [markdown]
# In each of the three runs the shaken network stands on the ground that moves most, and still ends
# below the network without a norm. LayerNorm does not hold the ground still either. So firm ground
# cannot be the whole reason. Santurkar and others offer another: a norm makes the loss a **smoother**
# function of the weights. The gradient then stays true for a longer way, and larger steps are safe.
# Larger steps we can test, once for each network:

# %%
curves = {name: {} for name in NORMS}
for name, curve in curves.items():
    for rate in (0.02, 0.1, 0.5, 2.5):
        curve[rate] = np.mean(watched(name, rate, steps=200)["loss"][-6:])
figures.norms.loss_by_rate(curves, guessing=np.log(len(scenes.OBJECTS)))

# %% [markdown]
# - At a rate of 0.1, the careful start of the weights does nearly as well as a norm.
# - At 2.5 the network without a norm blows up, and only BatchNorm still learns much, **shaken or not**.
#   So moving ground is not what forbids large steps.
# - At small rates the shaken network is the worst. Shaking has a price. Santurkar and others report
#   next to none for their larger networks; ours pays one.
#
# One small experiment can refute a simple story. It does not prove another.
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/02_norms.ipynb). At its end the trained model
# answers with your LayerNorm and your RMSNorm inside. It has one piece more that no cell of this
# lesson shows: how gradients flow *back* through LayerNorm.
#
# ## Take away
#
# - Training is a loop: loss, gradients, a small step against them. Numbers that explode or vanish on
#   their way through the layers break it.
# - The three norms differ in what they average: BatchNorm a feature over the batch, LayerNorm a token
#   over its features, RMSNorm the squares of a token, with nothing subtracted.
# - BatchNorm ties examples together, needs a memory, and behaves differently in training and in eval
#   mode. With one example it cannot train at all.
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
# <details><summary>A first loss of 40 with 24 objects: what does it tell you before any
# training?</summary>
#
# Guessing has log 24 = 3.18. A loss far above says that the network is *sure*, and wrong: its scores
# are huge, so its numbers exploded on the way.
# </details>
#
# **Sources.** BatchNorm and internal covariate shift: Ioffe and Szegedy 2015, arXiv 1502.03167, its
# section on internal covariate shift and its two algorithms. LayerNorm: Ba et al. 2016, arXiv
# 1607.06450. RMSNorm: Zhang and Sennrich 2019, arXiv 1910.07467. The dispute: Santurkar et al.
# 2018, arXiv 1805.11604. The start of the weights: He et al. 2015, arXiv 1502.01852.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | covariate shift is a change of the data between "training and testing", and this is why layers are normalised | such a change is another problem, and no norm is made for it (though re-estimating BatchNorm's memory on the new data can help); the BatchNorm paper argued with *internal* covariate shift, layers that move during training, and Santurkar et al. disputed even that |
# | batch normalization does "not work with single inputs" | not in training; in eval mode it does, with its memory. It also suffers in small batches, and gives other results in training than in eval mode |
# | normalization ensures that "the output of every layer" is in a consistent range | it sets the scale of what a layer *reads*; in this model the layers' outputs are added to a stream that grows from layer to layer |
