# %% [markdown]
# # 04 · The vision tower
#
# Attention mixes the patches (lesson 03). It is half of a layer. The other half is an MLP, which
# works on each patch alone. This lesson builds the MLP, puts both halves together, stacks the
# layers, and asks what such a tower knows after training. Beside it stands the older way to see: a
# small ResNet, trained on the same pictures.
#
# ## Where we are

# %%
from minipali import figures, generate, load
from minipali.scenes import examples

model, processor = load("small")
figures.model_map("vision", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **write** the MLP of the tower, and say what its bend is for,
# 2. **assemble** a pre-norm block and a whole tower around a residual stream,
# 3. **measure** what a tower knows, and what it costs beside a ResNet.
#
# Time: 45 minutes. You need: patches (lesson 01), LayerNorm and BatchNorm (02), attention (03).
#
# ## Predict
#
# Write down four answers. Cells below find them.
#
# - Which has more parameters in a layer of the real tower: attention or the MLP?
# - The MLP of our small tower widens 160 numbers to 480 and narrows them again. Take the bend in the
#   middle away. How many weights would do the same work?
# - You shuffle the 36 patches of a picture. What happens to the 36 vectors that come out?
# - You have 1,200 training pictures and a few seconds. Which learns more: a tower or a ResNet?
#
# ## By hand: what a bend is for
#
# An MLP has two linear maps. Take one number in, two in the middle, one out, and no biases:
#
# - first map: x becomes (x, -x),
# - second map: add the two.
#
# For x = 3 that gives 3 + (-3) = 0, and for each other x it gives 0 too. Now bend the middle:
# replace what is below 0 by 0. This bend is called ReLU. On paper: what comes out for 3, for -2 and
# for 0.5?

# %%
import torch

x = torch.tensor([[3.0], [-2.0], [0.5]])
first, second = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])
print("without a bend:", (x @ first.T @ second.T).flatten().tolist())
print("with ReLU:     ", ((x @ first.T).relu() @ second.T).flatten().tolist())

# %% [markdown]
# With the bend we get the distance from 0. No linear map can do that: a line that gives 3 at 3 and
# 3 at -3 is flat.
#
# Without a bend the second map adds nothing at all. Two linear maps in a row are **one** linear
# map, and its matrix is the product of the two. See it with the trained weights of the tower:

# %%
trained = model.vision_tower.requires_grad_(False)
fc1, fc2 = trained.layers[0].mlp.fc1, trained.layers[0].mlp.fc2
one_map, one_bias = fc2.weight @ fc1.weight, fc2.weight @ fc1.bias + fc2.bias
x = torch.randn(7, 160, generator=torch.Generator().manual_seed(0))
print("equal:", torch.allclose(fc2(fc1(x)), x @ one_map.T + one_bias, atol=1e-3))
print("weights in two maps:", 2 * fc1.weight.numel(), "and in one:", one_map.numel())

# %% [markdown]
# The wide middle is paid for nothing, unless something bends in it. So the bend is not there
# against overfitting, as one sometimes reads. It is there because layers without it are one matrix.
#
# ## Build: the bend
#
# ReLU has a corner, and below 0 it passes nothing on. **GELU** is a smooth relative: x times the
# chance that a random number from the normal distribution is smaller than x. That chance goes
# smoothly from 0 to 1. The function `erf` computes it exactly, a formula with `tanh` approximately.
# SigLIP was trained with the tanh form. How far are the two apart?


# %%
def gelu(x):
    """x times a smooth step from 0 to 1, in the tanh form."""
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + inner.tanh())


# %%
x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
gap = gelu(x) - 0.5 * x * (1 + torch.erf(x / 2**0.5))
print(f"largest difference {gap.abs().max():.6f}, at x = ±{x[gap.abs().argmax()].abs():.2f}")
print(f"smallest value of GELU {gelu(x).min():.2f}, at x = {x[gelu(x).argmin()]:.2f}")
figures.vision.bends(x, {"GELU, tanh form": gelu(x), "ReLU": x.relu()}, gap)

# %% [markdown]
# ## Build: the MLP and the block
#
# The MLP sees one patch at a time. Attention is the only place where patches meet.
#
# The **block** connects the two. One vector for each patch flows through the whole tower: the
# **residual stream**. Attention and MLP read a normed copy of it, and **add** what they found.
# Nothing replaces the stream, and nothing norms it on its way. Each norm comes before the part that
# it serves, so this is called *pre-norm*. The attention has no mask here: every patch may look at
# every patch.


# %%
def mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """(b, n, d) -> (b, n, d), each patch alone."""
    hidden = gelu(x @ fc1_weight.T + fc1_bias)  # (b, n, hidden)
    return hidden @ fc2_weight.T + fc2_bias


# %%
def encoder_layer(x, norm1, attention, norm2, mlp):
    """(b, n, d) -> (b, n, d): the stream before and after one layer."""
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


# %% [markdown]
# ## Build: the tower
#
# Patches, then the layers, then one LayerNorm at the very end, because nothing has normed the
# stream until there. That is the whole SigLIP tower as PaliGemma uses it. Norms and attention come
# from lessons 02 and 03; we take the model's, with its trained weights.


# %%
def tower(given, pixels):
    """(b, c, y, x) -> (b, n, d): one vector for each patch, which knows of all the others."""
    x = given.embeddings(pixels)
    for layer in given.layers:
        fc1, fc2 = layer.mlp.fc1, layer.mlp.fc2

        def our_mlp(x, weights=(fc1.weight, fc1.bias, fc2.weight, fc2.bias)):
            return mlp(x, *weights)

        x = encoder_layer(x, layer.layer_norm1, layer.self_attn, layer.layer_norm2, our_mlp)
    return given.post_layernorm(x)


# %%
picture = examples()["dog_and_car_test_artist"]
pixels = processor(picture, "caption en")["pixel_values"]
features = tower(trained, pixels)
print(tuple(features.shape), torch.allclose(features, trained(pixels), atol=1e-3))

# %% [markdown]
# ## See it: the stream
#
# How large are the numbers in the stream, and how much does each half of each layer add? We take
# the root mean square of all values, on one picture.


# %%
def rms(values):
    return values.square().mean().sqrt().item()


x = trained.embeddings(pixels)
stream, from_attention, from_mlp = [rms(x)], [], []
for layer in trained.layers:
    a = layer.self_attn(layer.layer_norm1(x))
    m = layer.mlp(layer.layer_norm2(x + a))
    x = x + a + m
    from_attention.append(rms(a)), from_mlp.append(rms(m)), stream.append(rms(x))

figures.vision.residual_stream(stream, from_attention, from_mlp)

# %% [markdown]
# The stream grows, because each layer adds to it. Attention and MLP do not notice: they read it
# through a norm. And a late layer can still find what an early one wrote.
#
# ## Break it
#
# The first transformer (2017) normed each sum: *post-norm*. We put such a block around the trained
# weights. In a second copy we leave the block alone and give the MLP the erf form, which is torch's
# default. Guess first: which of the two can you see in the answers?


# %%
def post_norm_layer(x, norm1, attention, norm2, mlp):
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


# %%
import torch.nn.functional as F

from minipali.swap import swap


def erf_mlp(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


post, erf = swap(model, encoder_layer=post_norm_layer), swap(model, mlp=erf_mlp)
questions = "caption en", "answer en what is on the left?"
for name, one in (("ours", model), ("erf form", erf), ("post-norm", post)):
    told = [generate(one, processor, picture, question) for question in questions]
    change = (one.vision_tower(pixels) - features).abs().max()
    print(f"{name:10} {told}, features differ by {change:.4f}")

# %% [markdown]
# Two mistakes of two kinds. Post-norm says nothing useful, because the weights were trained for
# the other block. The erf form changes the features by so little that the answers stay, and `swap`,
# which allows for rounding, accepts it. Only numbers show it, on inputs made for the purpose. The
# exercise has such inputs.
#
# The test was unfair to post-norm. So take fresh weights for both: 27 layers as in the real tower,
# one backward pass, and the length of the gradient that the MLP of each layer gets.

# %%
from minipali.config import VisionConfig
from minipali.vision import EncoderLayer

deep, lengths = VisionConfig(hidden_size=64, intermediate_size=192, num_attention_heads=2), {}
for name, block in (("pre-norm", encoder_layer), ("post-norm", post_norm_layer)):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(EncoderLayer(deep) for _ in range(27))
    for matrix in (p for p in layers.parameters() if p.ndim == 2):
        torch.nn.init.xavier_normal_(matrix)
    x = torch.randn(8, 36, 64)
    for layer in layers:
        x = block(x, layer.layer_norm1, layer.self_attn, layer.layer_norm2, layer.mlp)
    guess = F.layer_norm(x, (64,)).mean(dim=1) @ torch.randn(64, 10) / 8
    F.cross_entropy(guess, torch.arange(8)).backward()
    lengths[name] = [layer.mlp.fc1.weight.grad.norm().item() for layer in layers]
figures.vision.gradients(lengths)

# %% [markdown]
# In the post-norm stack the layers next to the loss get the largest gradients, several times those
# of pre-norm. Xiong et al. 2020 derive this. They show that post-norm needs a slow start of the
# training (*warm-up*) and that pre-norm can do without. A sum also passes a gradient on unchanged,
# so in a pre-norm stack it has a direct way back to the first layer.
#
# ## See it: places
#
# The MLP works on each patch alone, and attention without a mask treats all patches alike. In the
# tower only the position table knows where a patch is. First we set the table to zero, shuffle the
# patches of a picture, and compare the features. Then we ask about new pictures by an artist that
# the model never saw: what is on the left or on top, and where is the dog? A third model gets the
# vectors of the second in a wrong order.

# %%
import copy

from einops import rearrange

grid, apart = "b c (ny py) (nx px)", "b (ny nx) c py px"
order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
patches = rearrange(pixels, f"{grid} -> {apart}", py=12, px=12)
shuffled = rearrange(patches[:, order], f"{apart} -> {grid}", ny=6)
no_table = copy.deepcopy(model)
no_table.vision_tower.embeddings.position_embedding.weight.zero_()
for name, one in (("with table", model), ("without", no_table)):
    change = one.vision_tower(shuffled) - one.vision_tower(pixels)[:, order]
    print(f"{name:10} largest difference {change.abs().max():.3f}")

# %%
from minipali.evaluation import answers, evaluation_set, score
from minipali.scenes import TEST_ARTIST

mixed = copy.deepcopy(no_table)  # without the table, and its vectors reach Gemma in another order
mixed.vision_tower.register_forward_hook(lambda module, given, found: found[:, order])
for task in ("places", "detection"):
    asked = evaluation_set(TEST_ARTIST, each=60, seed=3, tasks=(task,))
    for name, one in (("with table", model), ("without", no_table), ("mixed", mixed)):
        told = answers(one, processor, asked)
        right = sum(score(question, a) for (_, question), a in zip(asked, told, strict=True))
        print(f"{task:9} {name:10} {right:4.1f} of 60 right")

# %% [markdown]
# Without the table the same 36 vectors come out, in the new order: such a tower is blind to places.
# With the table they differ.
#
# The answers are perhaps not what you expected. Our model hardly needs the table, even for questions
# about places. The reason lies outside the tower: Gemma reads the 36 vectors **in reading order**
# and knows the number of each (lesson 07). The third line of each task is the proof: the same
# vectors in another order, and boxes go wrong; "what is on the left" comes near to guessing among
# the two or three objects. Who averages over the patches, as we do next,
# has no such help. This is a finding about a small model and its plain pictures. It says nothing
# about the published one.
#
# ## See it: neighbours
#
# What do the features know? Average them over the patches: one vector for each picture. Then find
# the nearest pictures by cosine. We make it hard in two ways. We search with drawings by one artist
# among drawings by **another**, and the tower was trained on neither. And we search only among
# pictures with another background, so that the background cannot help. The same search on raw
# pixels shows what needs no tower.

# %%
import numpy as np

from minipali.scenes import OBJECTS, VALIDATION_ARTIST, compose, drawings_of, pixel_values

rng, nearest = np.random.default_rng(0), {}
known = [name for name in OBJECTS if drawings_of(name, VALIDATION_ARTIST)]
artists = (TEST_ARTIST, VALIDATION_ARTIST)
ask, find = ([compose(rng, artist, names=[n]) for n in known * 4] for artist in artists)
alike = torch.tensor([[one.background == other.background for other in find] for one in ask])
for way, see in (("tower", lambda p: trained(p).mean(dim=1)), ("pixels", lambda p: p.flatten(1))):
    a, b = (F.normalize(see(pixel_values(scenes)), dim=1) for scenes in (ask, find))
    nearest[way] = (a @ b.T).masked_fill(alike, -1).topk(4).indices
    pairs = zip(ask, (find[i] for i in nearest[way][:, 0]), strict=True)
    same = np.mean([one.things[0].name == other.things[0].name for one, other in pairs])
    print(f"{way:7} {same:4.0%} of the nearest show the same object")
print(f"chance  {1 / len(known):4.0%}")

# %%
figures.vision.neighbours(
    ask, find, nearest, [known.index(name) for name in ("dog", "car", "umbrella")]
)

# %% [markdown]
# The tower finds the object again far more often than the pixels do, in another artist's hand, at
# another size and place. It learned what a dog is from sentences and questions about pictures by
# other artists. It does not know everything: look for the places where it fails.
#
# ## Build: a ResNet beside it
#
# Before 2020 most vision towers were **convolutional**. A ResNet slides small filters over the
# picture, halves its sides and widens its vectors step by step. Its stream of sums is where the
# residual stream comes from. Two things are built in that a transformer must learn: near pixels
# belong together, and a thing looks the same wherever it is.

# %%
from torch import nn


class ResidualBlock(nn.Module):
    """(b, d_in, y, x) -> (b, d_out, y / 2, x / 2)."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.conv1 = nn.Conv2d(d_in, d_out, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(d_out, d_out, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(d_out), nn.BatchNorm2d(d_out)
        self.shortcut = nn.Conv2d(d_in, d_out, 1, stride=2)  # the stream, at its new size

    def forward(self, x):
        found = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(found)))


# %%
from einops.layers.torch import Rearrange

blocks = ResidualBlock(16, 32), ResidualBlock(32, 64)
resnet = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), *blocks, Rearrange("b d y x -> b (y x) d"))
tuple(resnet(pixels).shape)  # (b, n, d), like a tower

# %% [markdown]
# Both get the same task: name the one object in the picture, out of eight. Both get the same 1,200
# pictures, 150 steps with 64 pictures each, the same optimizer, and a linear map on the average of
# their vectors. Then both are tested on 400 pictures by the test artist.


# %%
from minipali.scenes import TRAINING_ARTISTS
from minipali.training import fit

torch.set_num_threads(1)  # models so small that more threads only wait for each other


def labelled(artists, number, strength):
    labels = rng.integers(8, size=number)
    made = [compose(rng, artists, names=[OBJECTS[i]], strength=strength) for i in labels]
    return pixel_values(made), torch.tensor(labels)


def train(encoder, pictures, labels, steps=150):
    head = nn.Linear(64, 8)
    whole = nn.ModuleList([encoder, head])
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.003, weight_decay=0.05)

    def step_loss(step):
        chosen = torch.randint(len(pictures), (64,))
        return F.cross_entropy(head(encoder(pictures[chosen]).mean(dim=1)), labels[chosen])

    fit(whole, step_loss, steps, [optimizer])  # the loop of lesson 13
    return lambda pictures: head(encoder.eval()(pictures).mean(dim=1)).argmax(dim=1)


# %%
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minipali.evaluation import interval
from minipali.training import initialise
from minipali.vision import VisionTower

pictures, labels = labelled(TRAINING_ARTISTS, 1200, strength=0.5)
new, wanted = labelled(TEST_ARTIST, 400, strength=0)
sizes = VisionConfig(
    64, 128, num_hidden_layers=2, num_attention_heads=2, image_size=72, patch_size=12
)
small_tower = VisionTower(sizes)
initialise(small_tower)  # start values, lesson 13
print("         parameters  MFLOP  right  95 % interval")
for name, encoder in (("tower", small_tower), ("ResNet", resnet)):
    right = (train(encoder, pictures, labels)(new) == wanted).float().mean().item()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(new[:1])  # MATH: the form of attention whose products are counted
    size, flops = sum(p.numel() for p in encoder.parameters()), counter.get_total_flops()
    low, high = interval(right, len(new))
    print(f"{name:9} {size:9,} {flops / 1e6:6.1f} {right:6.0%}  {low:.0%} to {high:.0%}")

# %% [markdown]
# With so few pictures the ResNet wins, with fewer parameters and fewer operations (one in eight is
# chance). What is built in need not be learned. The interval is for the choice of
# test pictures; the start values are one draw. One run each:
# another seed gives other numbers.
#
# Why does PaliGemma use a transformer, then? Because of what happens with *many* pictures.
# Dosovitskiy et al. 2020 found their transformers a few points behind ResNets of like size when
# trained on 1.3 million pictures, and level or ahead with 14 to 300 million. SigLIP saw billions of
# pairs of picture and text (lesson 05). And a row of patch vectors is what a language model can read on from.
#
# ## Check
#
# Our tower against the package's, on random weights and pictures, and our GELU against both of
# torch's. The package's tower is held against the one in Hugging Face's transformers, layer by
# layer, in `tests/test_vision.py`.

# %% tags=["nbval-check-output"]
reference, x = VisionTower(sizes), torch.randn(2, 3, 72, 72)
ours, theirs = tower(reference, x), reference(x)
print(tuple(ours.shape), torch.allclose(ours, theirs, atol=1e-4))
print("GELU, tanh form:", torch.allclose(gelu(x), F.gelu(x, approximate="tanh"), atol=1e-6))
print("GELU, erf form: ", torch.allclose(gelu(x), F.gelu(x), atol=1e-6))

# %% [markdown]
# ## In the real model
#
# The tower of PaliGemma 3B at 224 pixels, counted from its configuration. A matrix costs two
# operations (multiply, add) for each weight and each patch. In attention, the scores and the
# averages cost 2 · n² · d operations each.

# %% tags=["nbval-check-output"]
from minipali.config import preset

v = preset("paligemma-3b-224").vision
d, hidden, n, layers = v.hidden_size, v.intermediate_size, v.num_patches, v.num_hidden_layers
parts = {
    "attention": (4 * (d * d + d), 2 * n * 4 * d * d + 4 * n * n * d),
    "MLP": (2 * d * hidden + hidden + d, 2 * n * 2 * d * hidden),
    "two norms": (4 * d, 0),
}
for name, (numbers, flops) in parts.items():
    print(f"{name:9} {numbers:11,} parameters and {flops / 1e9:6.2f} GFLOP in a layer")
with torch.device("meta"):
    numbers = sum(p.numel() for p in VisionTower(v).parameters())
flops = layers * sum(flops for _, flops in parts.values())
print(f"tower     {numbers:11,} parameters and {flops / 1e9:6.2f} GFLOP in its {layers} layers")
print(f"bytes     {numbers * 4 / 1e9:.2f} GB in float32, {numbers * 2 / 1e9:.2f} GB in bfloat16")

# %% [markdown]
# Two thirds of a layer's numbers are in the MLP. The tower runs once for each picture, and never
# again while the answer is written.
#
# ## Your turn
#
# Open [the exercise](../exercises/04_vision.ipynb). You write `mlp` and `encoder_layer`, and at the
# end the trained model sees with your code.
#
# ## Take away
#
# - An MLP is two linear maps and a bend; without the bend it is one linear map.
# - A pre-norm block norms what it reads and adds what it finds; the stream itself is never normed.
# - What a tower is good for is measured: by swaps, by neighbours, and beside another encoder.
#
# **Self-test**
#
# <details><summary>The MLP never looks at two patches at once. How does a patch learn about its
# neighbours?</summary>
#
# By attention alone. The MLP then works on what attention has written into the patch's vector.
# </details>
#
# <details><summary>Why does this tower end with a norm, and why would a post-norm tower not need
# one?</summary>
#
# In a pre-norm tower every layer adds to the stream and nothing norms it, so its size at the end is
# anything. A post-norm tower norms each sum, also the last.
# </details>
#
# <details><summary>You took the wrong form of GELU. How do you notice?</summary>
#
# Not from the answers. Compare numbers with a reference, at values near 2.7 or -2.7, where the forms
# differ most, with a tolerance below that difference.
# </details>
#
# <details><summary>You average the features of a tower without a position table. Does the average
# tell whether the dog is left or right?</summary>
#
# No. Patches in another order give the same vectors in another order, and so the same average.
# </details>
#
# **Sources.** The tower: Dosovitskiy et al. 2020, arXiv 2010.11929, equations 1 to 4, and section
# 4.3 on the number of pictures; Zhai et al. 2023, arXiv 2303.15343. GELU in its forms: Hendrycks and
# Gimpel 2016, arXiv 1606.08415, section 2. ResNet: He et al. 2015, arXiv 1512.03385. Pre-norm and
# post-norm: Xiong et al. 2020, arXiv 2002.04745.

# %% [markdown]
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the MLP, and "then we perform the 2nd layer normalization" | pre-norm: one norm before attention, one before the MLP, none after it |
# | a causal mask on a slide of the vision section | attention in the tower has no mask; a causal mask belongs to text that is being written |
# | a linear model may overfit, so we use an activation | without an activation a stack of linear maps is one linear map; overfitting is another matter |
# | ViT instead of ResNet "for complex task or large dataset" | the number of pictures in pre-training decides; with few of them the ResNet is ahead, as measured above |
