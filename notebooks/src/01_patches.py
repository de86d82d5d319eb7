# %% [markdown]
# # 01 · From a picture to patches
#
# A transformer, the kind of network inside PaliGemma, reads a row of vectors. A picture is a grid
# of pixels. This lesson turns one into the other: cut the picture into squares, the **patches**,
# turn each square into a vector, and tell each vector where its square came from.
#
# ## Where we are

# %%
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali import figures, generate, load, scenes
from minipali.checks import reveal
from minipali.swap import swap

# %%
model, processor = load("small")
figures.model_map("patches", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **cut** a batch of pictures into patches, in the right order,
# 2. **embed** the patches with one affine map (a matrix product plus a bias), in two ways,
# 3. **place** them with a table of position vectors, and show a model that fails without it.
#
# Time: 50 minutes. You need: what the shape of a tensor is, and what a matrix product is.
#
# ## Predict
#
# Our small model takes pictures of 72 x 72 pixels in three colours. A patch is 12 x 12 pixels.
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. How many numbers does one patch hold?
# 2. Read the patches like a page of text and count from 0. Which number has the first patch of the
#    second row?
# 3. A model averages the vectors of all patches, and says whether the object is on the left or on
#    the right. Nothing tells the vectors where their patches lie. In how many percent of the
#    pictures is it right?

# %%
guess_numbers, guess_place, guess_percent = ..., ..., ...

# %% [markdown]
# ## By hand: four patches of four numbers
#
# Take a picture of 4 x 4 pixels in one colour. Its values are 0 to 15, in reading order. Cut it
# into patches of 2 x 2. On paper: which four numbers are in the first patch?
#
# The upper left square holds 0, 1, 4 and 5. Not 0, 1, 2 and 3: these are the first **row**, a strip
# and not a square. Memory holds a picture row by row, so a plain `reshape` cuts strips.

# %%
tiny = torch.arange(16.0).reshape(1, 1, 4, 4)  # (b, c, y, x)
strips = tiny.reshape(4, 4)
squares = torch.stack([tiny[0, 0, y : y + 2, x : x + 2].flatten() for y in (0, 2) for x in (0, 2)])
print("strips: ", strips.tolist())
print("squares:", squares.tolist())

# %% [markdown]
# Now one number for each patch; later, many of them make a vector. Multiply the four values by four
# weights, add them up, and add a bias. With weights 1, 0, 0, 2 and bias 10 the first patch gives
# 0·1 + 1·0 + 4·0 + 5·2 + 10 = 20. On paper: what does the second patch give?

# %% tags=["nbval-check-output"]
weights = torch.tensor([1.0, 0.0, 0.0, 2.0])
print((squares @ weights + 10).tolist())  # @ is the matrix product

# %% [markdown]
# **Every patch meets the same weights.** That is the whole idea: one small map, used again and
# again.
#
# ## Build: cut
#
# In comes a batch of pictures (b, c, y, x): `b` counts pictures, `c` colours. Out come the patches
# (b, n, c · p · p): `n` counts patches in reading order, and a patch of p x p pixels is flat. Its
# values keep the order colour, row, column.
#
# To get squares, split both axes first. `y` becomes `(ny py)`: which row of patches, and which
# pixel row inside the patch. `x` becomes `(nx px)` in the same way. Then the axes change their
# order, and the ones that belong together are merged.
#
# **Write it now**: [exercise 01](../exercises/01_patches.ipynb), part 1. Two results to hold yours
# against. The picture above becomes 0, 1, 4, 5 / 2, 3, 6, 7 / 8, 9, 12, 13 / 10, 11, 14, 15. A
# picture of two rows and four columns in two colours, 0 to 7 in the first and 10 to 17 in the
# second, becomes 0, 1, 4, 5, 10, 11, 14, 15 / 2, 3, 6, 7, 12, 13, 16, 17. Then open the cell. (It
# uses the library einops, which writes such a step in one line. The exercise does without.)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def patchify(pixels, patch_size):
    """(b, c, y, x) -> (b, n, c * patch_size * patch_size), patches in reading order."""
    return rearrange(
        pixels, "b c (ny py) (nx px) -> b (ny nx) (c py px)", py=patch_size, px=patch_size
    )


# %%
picture = scenes.examples()["dog_and_car_test_artist"]
pixels = processor(picture, "caption en")["pixel_values"]  # (1, 3, 72, 72), from -1 to 1
patches = patchify(pixels, 12)
reveal("numbers in a patch", guess_numbers, patches.shape[2])
reveal("first patch of the second row", guess_place, 72 // 12)

# %% [markdown]
# 3 colours x 12 x 12 pixels are 432 numbers, and 6 x 6 squares are 36 patches. (The processor
# prepares picture and prompt together. Here we need the pixels alone.)
#
# ## See it
#
# A picture that the model never saw in training, cut and numbered. Which patches hold the dog's
# nose?

# %%
figures.patches.grid(
    pixels[0],
    12,
    alt="Left: a dog and a car under a grid of 6 by 6 squares. Right: the 36 squares "
    "pulled apart and numbered from 0 at the upper left to 35 at the lower right, row by row.",
)

# %% [markdown]
# ## Build: embed and place
#
# Each patch becomes a vector of $d$ numbers; $d$ is the **width** of the model. Patch $i$ is a
# vector $x_i$ of 432 numbers. Multiply it by a matrix $W$ and add a bias $b$, the same for all
# patches. Then add a vector $e_i$ that belongs to **place** $i$:
#
# $$v_i = W x_i + b + e_i$$
#
# The first part is an **affine map**, here called the **patch embedding**. It sees one patch and
# nothing else: a piece of green gives the same vector in the upper left corner and at the bottom.
# So the table of the $e_i$ is added, the **position embedding**. Its row 7 goes to patch 7 of each
# picture.
#
# The weights are stored as a convolution. A **convolution** slides a filter, a small grid of
# weights, over the picture. At each stop it multiplies the filter with the pixels under it, entry
# by entry, and adds up. How far it moves between two stops is its **stride**. With $d$ filters of 3
# x 12 x 12 weights and a stride of 12, it stops once on each patch, and there it does what $W$
# does: a flattened filter is one row of $W$. No rim of zeros is put around the picture.
#
# **Write it now**: exercise 01, part 2, as a matrix product or as a convolution. Two results: the 4
# x 4 picture with the one filter ((1, 0), (0, 2)), bias 10 and a table of zeros gives 20, 26, 44,
# 50; with the table 0, 100, 200, 300 it gives 20, 126, 244, 350. Then open the cell, which has both
# ways.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def embed_patches(pixels, weight, bias, positions):
    """pixels (b, c, y, x), weight (d, c, p, p), bias (d,), positions (n, d) -> (b, n, d)."""
    matrix = rearrange(weight, "d c py px -> d (c py px)")
    return patchify(pixels, weight.shape[-1]) @ matrix.T + bias + positions


def embed_by_convolution(pixels, weight, bias, positions):
    maps = F.conv2d(pixels, weight, bias, stride=weight.shape[-1])  # (b, d, ny, nx)
    return rearrange(maps, "b d ny nx -> b (ny nx) d") + positions


# %%
layer = model.vision_tower.embeddings.requires_grad_(False)  # trained, and left as it is
weight, bias = layer.patch_embedding.weight, layer.patch_embedding.bias
positions = layer.position_embedding.weight
vectors = embed_patches(pixels, weight, bias, positions)
same = embed_by_convolution(pixels, weight, bias, positions)
print(f"weight {tuple(weight.shape)}, positions {tuple(positions.shape)}")
print(f"vectors {tuple(vectors.shape)}, differ by {(same - vectors).abs().max():.0e}")

# %% [markdown]
# The difference is rounding: the same sums, added up in another order.
#
# What happens if the stride is not the size of the filter? With pictures of $X$ pixels and patches
# of $P$, a stride of $S$ makes $\lfloor (X - P) / S \rfloor + 1$ stops along each axis (the
# brackets mean: round down):

# %% tags=["nbval-check-output"]
for stride in (12, 6, 18):
    ny, nx = F.conv2d(pixels, weight, bias, stride=stride).shape[2:]
    by_formula = (72 - 12) // stride + 1
    print(f"stride {stride:2}: {ny} x {nx} = {ny * nx} stops, by the formula {by_formula} a side")

# %% [markdown]
# With 6 the squares overlap: what one square cuts in two, another may show whole. But there are
# more than three times as many vectors to work on. Older vision networks do this with small filters
# and stride 1 (lesson 04). With 18 the pixels between the squares are never read.
#
# ## A model that needs the table
#
# The third question of *Predict*. Here is a model so small that we can choose all its numbers. It
# says on which side of a picture the object is.
#
# - The vector of a patch has two numbers. Both are its **contrast**: how much its pixels differ
#   from each other, from 0 to 1. A plain background has almost none.
# - The table adds -1 to the first number on the right half of the picture, and to the second number
#   on the left half.
# - What is below 0 becomes 0. So the first number stays above 0 in the left half only, the second
#   in the right half only.
# - It **averages** the vectors of all patches. If the first number is larger, it says *left*.
#
# On paper, with four patches, two by two, and the contrasts 0.6, 0, 0, 0: the averages of the two
# numbers are 0.15 and 0, so *left*. Without the table both are 0.15.
#
# The test is hard: pictures whose object lies in one half, and the same pictures with **left and
# right half exchanged**. Both have the same patches, in another order.


# %%
def contrast(pixels):
    """(b, c, y, x) -> (b, n): how much the pixels of a patch differ, colour by colour."""
    patches = rearrange(patchify(pixels, 12), "b n (c p) -> b n c p", c=3)
    return patches.std(dim=3, correction=0).mean(dim=2)


def says_left(pixels, table):
    """(b, c, y, x), (n, 2) -> (b,) of True and False."""
    vectors = contrast(pixels)[:, :, None] + table  # (b, n, 2): the same contrast twice, plus place
    averages = vectors.relu().mean(dim=1)  # (b, 2); relu: what is below 0 becomes 0
    return averages[:, 0] > averages[:, 1]


# %%
def exchanged(pixels):
    """The left and the right half of each picture in each other's place."""
    return torch.cat([pixels[..., 36:], pixels[..., :36]], dim=3)


rng = np.random.default_rng(0)
made = [scenes.compose(rng, scenes.TRAINING_ARTISTS, 1) for _ in range(1000)]
edges = [scene.things[0].box[1::2] for scene in made]  # left and right edge of the object, 0 to 1
left = scenes.pixel_values([made[i] for i, (x0, x1) in enumerate(edges) if x1 <= 0.5])
right = scenes.pixel_values([made[i] for i, (x0, x1) in enumerate(edges) if x0 >= 0.5])
on_left, on_right = torch.cat([left, exchanged(right)]), torch.cat([right, exchanged(left)])

# %% tags=["nbval-check-output"]
column = torch.arange(36) % 6  # of each patch
table = -torch.stack([column >= 3, column < 3], dim=1).float()
count = len(on_left) + len(on_right)
for name, own in (("with", table), ("without", 0 * table)):
    good = says_left(on_left, own).sum() + (~says_left(on_right, own)).sum()
    percent = 100 * good.item() / count
    print(f"{name:7} the table: {percent:.0f} % of {count} right")
reveal("percent without positions", guess_percent, round(percent))

# %% [markdown]
# Without the table: half. And no other weights could do better. A picture and its exchanged twin
# have the same 36 patches, so the same 36 vectors in another order, and an average does not know
# the order. A model that only averages says the same of both, and is right for one of them.
#
# Our trained model does not average. An optional part below takes its table away.
#
# ## Break it
#
# What if we cut wrongly, with the plain `reshape`? The shape is right, so nothing fails.


# %%
def strips_not_squares(pixels, patch_size):
    b, c, y, x = pixels.shape
    return pixels.reshape(b, (y // patch_size) * (x // patch_size), c * patch_size**2)


# %%
chosen = [14, 15, 20, 21]
figures.patches.rows(
    torch.cat([patches[0, chosen], strips_not_squares(pixels, 12)[0, chosen]]),
    12,
    [f"square {i}" for i in chosen] + [f"strip {i}" for i in chosen],
    alt="Eight small pictures. Four squares show parts of the dog and the car. Four strips, made by "
    "reshape, show stripes or plain grey, with nothing to recognise.",
)

# %% [markdown]
# A strip is 432 numbers of *one* colour. Drawn as a patch, its first third becomes red, its second
# green, its third blue. And the answers? `swap` puts our code inside the trained model, with the
# trained weights, and compares the two models layer by layer.


# %%
def embed_strips(pixels, weight, bias, positions):
    return strips_not_squares(pixels, 12) @ weight.flatten(1).T + bias + positions


# %%
broken = swap(model, embed_patches=embed_strips)
for prompt in ("caption en", "answer en what is on the left?"):
    right, wrong = (generate(m, processor, picture, prompt) for m in (model, broken))
    print(f"{prompt}\n   squares: {right}\n   strips:  {wrong}")

# %% [markdown]
# A model with this mistake still talks, and Python raises no error: only the comparison found it.
# This is why the exercises of this course compare your numbers, and name the mistake if they know
# it.
#
# ## Check
#
# Our steps against the package, which uses torch's convolution, on random pictures.

# %% tags=["nbval-check-output"]
from minipali.patches import PatchEmbedding

torch.manual_seed(0)
reference = PatchEmbedding(image_size=72, patch_size=12, channels=3, width=160)
x = torch.randn(2, 3, 72, 72)
w, b = reference.patch_embedding.weight, reference.patch_embedding.bias
ours = embed_patches(x, w, b, reference.position_embedding.weight)
print(tuple(ours.shape), torch.allclose(ours, reference(x), atol=1e-5))

# %% [markdown]
# ## In the real model
#
# The published PaliGemma comes for three picture sizes. From its configuration: the patches and the
# values in each, the parameters of the map and of the table, and the work for one picture. A
# **FLOP** is one multiplication or one addition; each weight costs one of each for each patch.

# %% tags=["nbval-check-output"]
from minipali.config import preset

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    v = preset(name).vision
    values = v.num_channels * v.patch_size**2
    map_size, table = (values + 1) * v.hidden_size, v.num_patches * v.hidden_size
    flops = 2 * values * v.hidden_size * v.num_patches
    print(
        f"{name:16} {v.num_patches:5,} patches of {values}, map {map_size:7,},"
        f" table {table:9,}, {flops / 1e9:.3f} GFLOP"
    )

# %% [markdown]
# The map has the same size in all three. The table has a row for each place, so it grows with the
# picture, and one file of weights fits one picture size. A patch of 14 x 14 pixels has 588 values,
# and the map makes 1152 out of them: it does not have to shrink anything.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: does our trained model need its table?
#
# Three more minutes. Measure before you believe. We ask about new pictures, with the table and
# without.


# %%
def embed_without_positions(pixels, weight, bias, positions):
    return embed_patches(pixels, weight, bias, 0 * positions)


unplaced = swap(model, embed_patches=embed_without_positions)

# %%
from minipali.evaluation import answers, evaluation_set, score

for task in ("places", "detection"):
    new = evaluation_set(scenes.TRAINING_ARTISTS, each=100, seed=1, tasks=(task,))
    for name, one in (("with", model), ("without", unplaced)):
        told = answers(one, processor, new)
        right = sum(score(question, said) for (_, question), said in zip(new, told, strict=True))
        print(f"{task:9} {name:7} the table: {right:.0f} of 100 right")

# %% [markdown]
# A surprise: here it loses nothing. Its decoder reads the 36 vectors one after another and numbers
# them itself (by RoPE, lesson 07), and for these plain pictures that second source of places is
# enough. Lesson 04 has the proof.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: what did the table learn?
#
# Five more minutes. Nobody told the model which places are neighbours. Compare the vector of one
# place with those of all others, by the cosine of the angle between the two (1: same direction, 0:
# nothing in common, -1: opposite).

# %%
figures.patches.position_similarity(
    positions,
    alt="Four maps of 6 by 6 places. Each shows how similar the position vectors of all places are "
    "to one chosen place, marked by a cross. For three corners the whole border is bright and "
    "the middle dark. For a place in the middle the middle is bright and the border dark.",
)

# %% [markdown]
# Border and inside are told apart. Are near places also more alike than far ones? Averages over
# pairs:

# %%
unit = F.normalize(positions, dim=1)
cosine = rearrange(unit @ unit.T, "(y x) (v u) -> y x v u", y=6, v=6)
y, x, v, u = torch.meshgrid(*[torch.arange(6)] * 4, indexing="ij")
border, other_border = ((a % 5 == 0) | (b % 5 == 0) for a, b in ((y, x), (v, u)))
steps = (y - v).abs() + (x - u).abs()
groups = {
    "neighbours, both on the border": border & other_border & (steps == 1),
    "opposite corners": border & other_border & (steps == 10),
    "neighbours, both inside": ~border & ~other_border & (steps == 1),
    "one on the border, one inside": border & ~other_border,
}
for name, chosen in groups.items():
    print(f"{name:31} {cosine[chosen].mean():5.2f}")

# %% [markdown]
# On the border, neighbours are more alike than opposite corners. But the larger difference by far
# is that between border and inside. The table of a large tower, trained on photographs, looks
# different: the figure on position embeddings in Dosovitskiy et al. shows rows and columns.
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/01_patches.ipynb). At its end the trained model
# answers with your `embed_patches` inside. It has one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - A picture becomes a row of patches, in reading order, and the model depends on this order.
# - One affine map serves all patches, and a convolution whose stride is its size is that map.
# - A patch does not know its place, so a learned table adds it. A model that averages over the
#   patches needs that table; one that reads them in order may not.
#
# **Self-test**
#
# <details><summary>Why is a <code>reshape</code> from (b, c, y, x) to (b, n, values)
# wrong?</summary>
#
# It never moves a value in memory. Memory holds a picture row by row, so it cuts strips. Squares
# need the axes to change their order.
# </details>
#
# <details><summary>You swap two patches of a picture and also the two rows of the position table.
# What changes for the rest of the model?</summary>
#
# The same vectors come in another order, and nothing else. The vision tower does not care about the
# order (lesson 03), so the same results come out, swapped.
# </details>
#
# <details><summary>Can a model for 224 pixels read a picture of 448 pixels?</summary>
#
# The map could: the patches are the same size. The table could not: it has 256 rows, and there are
# 1024 patches. One can stretch the table by interpolation and train a little more.
# </details>
#
# **Sources.** Patches, positions, and the stretched table: Dosovitskiy et al. 2020,
# [arXiv 2010.11929](https://arxiv.org/abs/2010.11929), its sections "Vision Transformer (ViT)" and
# "Fine-tuning and higher resolution". Sizes: Zhai et al. 2023,
# [arXiv 2303.15343](https://arxiv.org/abs/2303.15343); Beyer et al. 2024,
# [arXiv 2407.07726](https://arxiv.org/abs/2407.07726).

# %% [markdown]
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | "every pixel size is 768", and `in_channels` is the hidden size | 768 numbers are in one *patch* of 16 x 16 pixels and 3 colours; `in_channels` is 3 |
# | `padding="Valid"` | torch knows `"valid"`, in small letters, and raises an error for the other |
# | the batch size is the number of patches; H is horizontal, W vertical | the batch size is the number of pictures; the height H is vertical, the width W horizontal |
# | `flatten(2)` flattens "dimension >= 2" vectors | it merges the axes from number 2 on: (b, d, ny, nx) becomes (b, d, n) |
# | patches have different sizes, and the projection evens them out and removes noise | all patches have the same size; the projection is one affine map that all of them share |
