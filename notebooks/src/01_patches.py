# %% [markdown]
# # 01 · From a picture to patches
#
# A transformer, the kind of network inside PaliGemma, reads a sequence of vectors. A picture is a
# grid of pixels. This lesson turns one into the other: cut the picture into squares (patches), turn
# each square into a vector, and tell each vector where its square came from.
#
# ## Where we are

# %%
from minipali import figures, load
from minipali.scenes import examples

model, processor = load("small")
figures.model_map("patches", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **cut** a batch of pictures into patches, in the right order,
# 2. **embed** the patches with one affine map (a matrix product plus a bias), in two ways,
# 3. **place** them with a table of position vectors.
#
# Time: 35 minutes. You need: what the shape of a tensor is, and what a matrix product is.
#
# ## Predict
#
# Our small model takes pictures of 72 x 72 pixels in three colours. A patch is 12 x 12 pixels.
#
# - How many patches does a picture have?
# - How many numbers are in one patch?
# - If you read the patches like a page of text and count from 0, which number has the first patch of
#   the second row?
#
# Write your three numbers down. The section *Build: cut* computes them.
#
# ## By hand: four patches of four numbers
#
# Take a picture of 4 x 4 pixels in one colour, so small that you can do it on paper. Its values are
# 0 to 15, in reading order. Cut it into patches of 2 x 2.

# %%
import torch

tiny = torch.arange(16.0).reshape(1, 1, 4, 4)  # (b, c, y, x)
tiny[0, 0]

# %% [markdown]
# The first patch is the upper left square. It holds 0, 1, 4 and 5. Not 0, 1, 2 and 3: these are the
# first **row**, a strip and not a square. Memory holds the picture row by row, so a plain `reshape`
# gives the strip. To get squares, both axes must be split first:
#
# - `y` becomes `(ny py)`: which row of patches, and which pixel row inside the patch,
# - `x` becomes `(nx px)`: which column of patches, and which pixel column inside it.
#
# Then the four new axes are put in another order. The library einops writes just that.

# %%
from einops import rearrange

strips = tiny.reshape(1, 4, 4)
squares = rearrange(tiny, "b c (ny py) (nx px) -> b (ny nx) (c py px)", py=2, px=2)
print("reshape:  ", strips[0].tolist())
print("rearrange:", squares[0].tolist())

# %% [markdown]
# Now one number for each patch; later, many of them make a vector. Multiply the four values of a
# patch by four weights, add them up, and add a bias. With weights 1, 0, 0, 2 and bias 10, the first
# patch gives 0·1 + 1·0 + 4·0 + 5·2 + 10 = 20. On paper: what does the second patch give?

# %%
weights = torch.tensor([1.0, 0.0, 0.0, 2.0])
squares[0] @ weights + 10

# %% [markdown]
# Different patches, different results, but **every patch meets the same weights**. That is the whole
# idea: one small map, used again and again. (`@` is the matrix product.)
#
# ## Build: cut
#
# The same line works for batches and colours. `b` counts pictures, `c` colours, `n` patches. The
# values of one patch keep the order channel, row, column.


# %%
def patchify(pixels, patch_size):
    """(b, c, y, x) -> (b, n, c * patch_size * patch_size), patches in reading order."""
    return rearrange(
        pixels, "b c (ny py) (nx px) -> b (ny nx) (c py px)", py=patch_size, px=patch_size
    )


picture = examples()["dog_and_car_test_artist"]
pixels = processor(picture, "caption en")["pixel_values"]  # (1, 3, 72, 72), from -1 to 1
patches = patchify(pixels, 12)
print(tuple(patches.shape), "first patch of the second row:", 72 // 12)

# %% [markdown]
# 36 patches of 432 numbers: 6 x 6 squares, each with 12 x 12 pixels in 3 colours. (The processor
# prepares picture and text together, so it wants a prompt too; we need only the pixels.)
#
# ## See it
#
# A picture that the model never saw, cut and numbered. Find the patches that hold the dog's nose.

# %%
figures.patches.grid(
    pixels[0],
    12,
    alt="Left: a dog and a car under a grid of 6 by 6 squares. Right: the 36 squares "
    "pulled apart and numbered from 0 at the upper left to 35 at the lower right, row by row.",
)

# %% [markdown]
# ## Build: embed
#
# Each patch now becomes a vector of the model's width `d` by an affine map: multiply by a matrix,
# add a bias. This map is called the **patch embedding**. We take the **trained** weights from the
# model. They are stored as a convolution of shape (d, c, 12, 12); flattened, each of the `d` filters
# is one row of the matrix.

# %%
layer = model.vision_tower.embeddings
weight, bias = layer.patch_embedding.weight, layer.patch_embedding.bias
matrix = rearrange(weight, "d c py px -> d (c py px)")
vectors = patches @ matrix.T + bias  # (b, n, values) @ (values, d) -> (b, n, d)
print("matrix: ", tuple(matrix.shape))
print("vectors:", tuple(vectors.shape))

# %% [markdown]
# The same map can be written as a convolution. A convolution slides a filter (a small grid of
# weights) over the picture and takes a dot product at each stop. If it moves by exactly one patch at a
# time (`stride = 12`), it stops once on each patch, and each stop does what one row of our matrix
# does. Nothing is padded, so a stop never hangs over the edge.

# %%
import torch.nn.functional as F

maps = F.conv2d(pixels, weight, bias, stride=12)  # (b, d, ny, nx)
same = rearrange(maps, "b d ny nx -> b (ny nx) d")
print("maps:", tuple(maps.shape))
print("largest difference:", f"{(same - vectors).abs().max():.0e}")

# %% [markdown]
# The difference is rounding: the same sums, added up in another order. Both forms are in use. The
# convolution cuts and multiplies in one call; which form is faster depends on sizes and machine.
#
# ## Build: place
#
# The affine map sees one patch and nothing else. A piece of green in the upper left corner gives
# the same vector as the same green at the bottom. So a table is added, the **position embedding**:
# one learned vector for each place. Row 7 of the table always goes to patch 7.

# %%
positions = layer.position_embedding.weight  # (n, d)
embedded = vectors + positions  # the same table for every picture of the batch
embedded.shape

# %% [markdown]
# Nobody tells the model that place 7 lies beside place 8. It learns that from pictures. Compare the
# vector of one place with those of all others (cosine 1: same direction, 0: nothing in common):

# %%
figures.patches.position_similarity(
    positions,
    alt="Four maps of 6 by 6 places. Each shows how similar the position vectors of all places are "
    "to one chosen place, marked by a white cross. For three corners the whole border is bright and "
    "the middle dark. For a place in the middle the middle is bright and the border dark.",
)

# %% [markdown]
# Nobody told the model which places lie at the border. What has the table learned? Average the
# cosines within the border, within the inside, and between the two:

# %%
unit = torch.nn.functional.normalize(positions, dim=1)
cosine = unit @ unit.T
grid = torch.zeros(6, 6, dtype=torch.bool)
grid[1:5, 1:5] = True
inside = grid.flatten()
for name, a, b in (
    ("border", ~inside, ~inside),
    ("inside", inside, inside),
    ("between", ~inside, inside),
):
    print(f"{name:8} {cosine[a][:, b].mean():5.2f}")

# %% [markdown]
# Mostly one thing: border or inside. Two opposite corners are as alike as two neighbours. (Each of
# the first two means contains the places' cosines with themselves, which are 1.)
#
# ## Break it
#
# What if we cut wrongly, with the plain `reshape`? The shape is right, so nothing fails. Look at
# four of the "patches":


# %%
def strips_not_squares(pixels, patch_size):
    b, c, y, x = pixels.shape
    return pixels.reshape(b, (y // patch_size) * (x // patch_size), c * patch_size**2)


shown = [14, 15, 20, 21]
rows = torch.cat([patches[0, shown], strips_not_squares(pixels, 12)[0, shown]])
figures.patches.rows(
    rows,
    12,
    [f"square {i}" for i in shown] + [f"strip {i}" for i in shown],
    alt="Eight small pictures. Four squares show parts of the dog and the car. Four strips, made by "
    "reshape, show repeated coloured stripes with nothing to recognise.",
)

# %% [markdown]
# A strip is 432 numbers of *one* colour. Drawn as a patch, its first third becomes red, its second
# green, its third blue. And the answer? `swap` puts our code inside the trained model, with the trained weights, and
# compares the two models layer by layer.

# %%
from minipali import generate
from minipali.swap import swap


def embed_strips(pixels, weight, bias, positions):
    return strips_not_squares(pixels, 12) @ weight.flatten(1).T + bias + positions


broken = swap(model, embed_patches=embed_strips)
for prompt in ("caption en", "answer en what is on the left?"):
    right, wrong = (generate(m, processor, picture, prompt) for m in (model, broken))
    print(f"{prompt}\n   squares: {right}\n   strips:  {wrong}")

# %% [markdown]
# A model with this mistake still talks, and Python raises no error: only the comparison found it. This
# is why the exercises of this course compare your numbers, and name the mistake if they know it.
#
# And if we leave the positions out? Predict what happens to questions about places. Then measure it,
# on 100 new scenes for each kind of question.

# %%
from minipali.evaluation import accuracies
from minipali.scenes import TRAINING_ARTISTS


def embed_without_positions(pixels, weight, bias, positions):
    return patchify(pixels, 12) @ weight.flatten(1).T + bias + 0 * positions


unplaced = swap(model, embed_patches=embed_without_positions)
for name, one in (("with", model), ("without", unplaced)):
    right = accuracies(one, processor, TRAINING_ARTISTS, each=100)
    print(f"{name:8} places {right['places']:.0%}, detection {right['detection']:.0%}")

# %% [markdown]
# A surprise: almost nothing happens. Without the table, all orders of the patches look the same to the
# **vision tower**. But the decoder numbers its tokens too, by another method (RoPE, lesson 07), and it
# reads the patches in order. In our model this second source is enough. Measure before you believe.
#
# ## Check
#
# Our three steps against the package, which uses torch's convolution, on random pictures.

# %% tags=["nbval-check-output"]
from minipali.patches import PatchEmbedding

torch.manual_seed(0)
reference = PatchEmbedding(image_size=72, patch_size=12, channels=3, width=160)
x = torch.randn(2, 3, 72, 72)
w, b = reference.patch_embedding.weight, reference.patch_embedding.bias
ours = patchify(x, 12) @ w.flatten(1).T + b + reference.position_embedding.weight
print(tuple(ours.shape), torch.allclose(ours, reference(x), atol=1e-5))

# %% [markdown]
# ## In the real model
#
# The published PaliGemma comes for three picture sizes. Its patches are 14 x 14 pixels, and its
# vectors are 1152 wide. Everything below is computed from its configuration: how many patches of how
# many values, the parameters of the map and of the table, and the work for one picture.

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
# The map has the same size in all three. The table grows with the picture, because it has one row
# for each place, so one set of weights (a checkpoint) fits one picture size. FLOP counts
# multiplications and additions: each weight meets each patch once, with one of both. A patch of 14 x 14 pixels in
# three colours has 588 values, and the map makes 1152 out of them: here it adds dimensions.

# %% [markdown]
# ## Your turn
#
# Open [the exercise](../exercises/01_patches.ipynb). You write `patchify` and `embed_patches`, and
# at the end the trained model answers with your code inside.
#
# ## Take away
#
# - A picture becomes a row of patches; the order is that of reading, and the reader depends on it.
# - One affine map serves all patches, and a convolution whose stride is its size is that map.
# - A patch does not know its place; a learned table adds it. It need not be the only source.
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
# The same vectors come in another order, and nothing else. Attention in the vision tower does not
# care about the order (lesson 03), so the same results come out, swapped.
# </details>
#
# <details><summary>Can a model for 224 pixels read a picture of 448 pixels?</summary>
#
# The map could: the patches are the same size. The table could not: it has 256 rows, and there are
# 1024 patches. One can stretch the table by interpolation and train a little more.
# </details>
#
# **Sources.** Patches and positions: Dosovitskiy et al. 2020, equation 1,
# [arXiv 2010.11929](https://arxiv.org/abs/2010.11929). Sizes: Zhai et al. 2023,
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
