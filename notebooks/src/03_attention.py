# %% [markdown]
# # 03 · Attention: a weighted average that chooses its weights
#
# After lesson 01 a picture is a row of vectors, and each vector knows one square of it. Nobody can
# see a dog in one square. Attention lets every vector take something from all the others, and each
# vector decides from which ones.
#
# ## Do you remember?
#
# <details><summary>The first map of the real model is <code>F.conv2d(pixels, weight,
# stride=14)</code> with pixels of shape (4, 3, 224, 224) and 1152 filters. What shape comes
# out?</summary>
#
# (4, 1152, 16, 16): four pictures, 1152 features, and 224 / 14 = 16 stops along each axis (lesson
# 01).
# </details>
#
# <details><summary>Find the mistake: <code>def rms_norm(x, weight): return x /
# (x.square().mean() + 1e-6).sqrt() * (1 + weight)</code></summary>
#
# The mean runs over everything, so all tokens of all pictures share one number. It must be
# <code>mean(dim=-1, keepdim=True)</code>: one for each token (lesson 02).
# </details>
#
# <details><summary>A prompt has four text tokens beside begin and newline, and a picture has 36
# patches. How long is the sequence that the decoder reads?</summary>
#
# 36 + 1 + 4 + 1 = 42 (lesson 00).
# </details>
#
# ## Where we are

# %%
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali import figures, generate, load, scenes
from minipali.checks import reveal
from minipali.swap import swap

# %%
model, processor = load("small")
figures.model_map("vision", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **compute** attention by hand, as scores, weights and a weighted average,
# 2. **guard** it with a scale, a mask and a softmax that does not overflow,
# 3. **split** it into heads, and see where a trained model looks.
#
# Time: 60 minutes. You need: the patches of lesson 01, gradients from 02, and the matrix product.
#
# ## Predict
#
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. Our vision tower has 36 patches, 5 heads and 5 layers. In each head of each layer every patch
#    gives a weight to every patch. How many weights is that for one picture?
# 2. A score is the sum of the products of two vectors' entries, all random with mean 0 and
#    variance 1. How many times as large is a typical score with 512 entries as with 2?
# 3. You shuffle the patch vectors before they enter attention. Is the output "the same", "shuffled"
#    in the same way, or "new"?

# %%
guess_weights, guess_growth, guess_shuffle = ..., ..., ...

# %% [markdown]
# ## By hand: four words
#
# Take the sentence *I love pepperoni pizza*. Each word gets two numbers, which we made up: how much
# it is about food, and how much about people.
#
# | word | food | people |
# |---|---|---|
# | I | 0 | 2 |
# | love | 1 | 1 |
# | pepperoni | 1 | 0 |
# | pizza | 2 | 0 |
#
# The vector of *pizza* shall take a part of each word, also of itself: the more alike, the more.
# The **dot product** measures how alike two vectors are: multiply entry by entry and add. Pizza and
# love give 2·1 + 0·1 = 2. On paper: the four scores of *pizza*, each divided by their sum, and then
# the average of the four vectors under these weights.

# %%
x = torch.tensor([[0.0, 2.0], [1.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
scores = x[3] @ x.T
weights = scores / scores.sum()
print(f"scores {scores.tolist()}, weights {weights.tolist()}")
print("average", (weights @ x).tolist())

# %% [markdown]
# *Pizza* now has a little of *people* in it, which came from *love*. That is attention: **scores,
# weights, weighted average.** The vector that asks is the **query**, those it is compared with are
# the **keys**, and those that are averaged are the **values**. Here all three are the same `x`. The
# model makes them by three learned matrices, so that a vector may look for one thing, be found by
# another, and hand over a third.
#
# ## Build: the softmax
#
# Change the vector of *I* to (-2, 2). Its score is now -4, and dividing by the sum gives it a
# weight below 0. The exponential function makes every score positive and keeps their order.
# Exponential, then division by the sum: that is the **softmax**. But exponentials grow fast. In
# 32-bit numbers exp(89) is infinite, and infinite divided by infinite is not a number (`nan`). So
# we first subtract the largest score $m$ of the row:
#
# $$\text{softmax}(s)_j = \frac{e^{s_j}}{\sum_i e^{s_i}} = \frac{e^{s_j - m}}{\sum_i e^{s_i - m}},
# \qquad m = \max_i s_i$$
#
# The two fractions are equal: each exponential is divided by the same $e^m$, above and below. In
# the second the largest exponent is 0, and nothing can overflow.


# %%
def softmax(scores):
    """Over the last axis: (..., t, s) -> (..., t, s), each row sums to 1."""
    exponentials = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


# %%
scores, large = torch.tensor([-4.0, 2.0, 2.0, 4.0]), torch.tensor([89.0, 88.0])
print("divided by the sum:", (scores / scores.sum()).tolist())
print("softmax:           ", [round(w, 4) for w in softmax(scores).tolist()])
print("large, plain:      ", (large.exp() / large.exp().sum()).tolist())
print("large, less m:     ", [round(w, 3) for w in softmax(large).tolist()])

# %% [markdown]
# The sum makes the weights add up to 1, the **maximum** makes the computation safe. A row belongs
# to a query, which shares out one whole among the keys. So the softmax runs along the last axis.
#
# ## Build: the scale
#
# The score of two vectors with $k$ entries is a sum of $k$ products. If the entries are
# independent, with mean 0 and variance 1, each product has variance 1, and the variances add up to
# $k$. So a score has the typical size $\sqrt k$, and a softmax of large scores gives almost
# everything to one key.
#
# We look at 36 random keys and 300 random queries: how large is the largest weight of a query?

# %%
torch.manual_seed(0)
scores = {k: torch.randn(300, k) @ torch.randn(36, k).T for k in (2, 512)}
for k, some in scores.items():
    plain, scaled = (softmax(some * c).amax(dim=1).mean() for c in (1, k**-0.5))
    print(f"k = {k:3}: largest weight {plain:.2f}, with the scale {scaled:.2f}")
found = (scores[512].std() / scores[2].std()).item()
reveal("growth of a typical score", guess_growth, f"{found:.0f}, by theory {(512 / 2) ** 0.5:.0f}")

# %% [markdown]
# Without a scale, attention between wide vectors takes almost everything from one key, and is no
# longer an average. A small change of the scores then changes almost nothing, so the gradient is
# close to 0 and the layer learns badly. So scores are divided by $\sqrt k$. In one line, for all
# queries $Q$, keys $K$ and values $V$:
#
# $$\text{attend}(Q, K, V) = \text{softmax}\!\left(\frac{Q K^\top}{\sqrt k}\right) V$$
#
# ## Build: the mask
#
# A text model that learns to write must not see the words that it shall write. A **mask** is a
# table of yes (`True`) and no, a row for each query. Where it says no, the score becomes minus
# infinity *before* the softmax, and exp(-inf) is 0. In the **causal** mask no word sees a later
# one.
#
# A query may even see nothing at all. Then all scores of its row are -inf, so is their largest, and
# -inf minus -inf is `nan`. We decide that such a row takes nothing: all its weights are 0.
#
# **Write it now**: `attend` with its mask, [exercise 03](../exercises/03_attention.ipynb), part 1.
# Queries (b, h, t, k), keys and values (b, h, s, k) come in, (b, h, t, k) goes out; the axis h is
# for the next section. Two results: the query (2, 0, 0, 0) and the keys (0, 0, 0, 0) and (ln 3, 0,
# 0, 0) have the scores 0 and ln 3, so the weights 1/4 and 3/4. With values full of 4 and of 8, out
# comes a row of 7. If the mask hides the second key, a row of 4; if it hides both, of 0. Then open
# the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def attention_weights(query, key, mask=None):
    """(..., t, k) and (..., s, k), mask True where a query may look -> (..., t, s)."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is None:
        return softmax(scores)
    weights = softmax(scores.masked_fill(~mask, float("-inf")))
    return weights.masked_fill(~mask, 0.0)  # also in rows that may see nothing, where it is nan


def attend(query, key, value, mask=None):
    """(..., t, k), (..., s, k), (..., s, k) -> (..., t, k)."""
    return attention_weights(query, key, mask) @ value


# %% [markdown]
# The weights of our sentence, and a common mistake: the mask multiplied *after* the softmax. The
# number to the right of a row is its sum.

# %%
words = ["I", "love", "pepperoni", "pizza"]
causal = torch.ones(4, 4).tril().bool()
free, masked = attention_weights(x, x), attention_weights(x, x, causal)
tables = {"no mask": free, "causal mask": masked, "mask after the softmax": free * causal}
figures.attention.tables(tables, words)

# %% [markdown]
# In the third table the hidden words have taken their share, and it is lost. The vision tower has
# **no mask**: nothing in a picture comes later than the rest. Masks come back with the text, in
# lesson 11.
#
# ## Build: heads
#
# One average answers one question, but a patch has several: which patches have my colour, which
# continue my edge? So the width `d` is split into `h` **heads** of `k = d / h` entries. Each head
# has its own weights and averages its own part of the values. Heads are never compared with each
# other: their results are put side by side, and a last matrix mixes them. Two patches, split into
# two heads:

# %%
toy = torch.arange(12).reshape(1, 2, 6)  # (b, n, d)
split = toy.view(1, 2, 2, 3).transpose(1, 2)  # d -> h, k; then n and h change places: (b, h, n, k)
print("patches:        ", toy[0].tolist())
print("head 0 of (h k):", split[0, 0].tolist())
print("head 0 of (k h):", rearrange(toy, "b n (k h) -> b h n k", h=2)[0, 0].tolist())

# %% [markdown]
# `(h k)` gives head 0 the first three numbers of each patch, and `(k h)` every second number.
# Weights that were trained with one cannot be read with the other, and no shape tells you.
#
# **Why in parallel?** No head needs a result of another. So `h` stands in front, beside `b`, and
# `@` multiplies the last two axes for all pictures and heads in one call. A loop would give the
# same numbers in `h` smaller steps, which leave a chip with thousands of multipliers half idle.
#
# **Write it now**: exercise 03, part 2. In come `x` (b, n, d), four matrices (d, d) with their
# biases, and the number of heads; (b, n, d) goes out. First result: the patches (0, 8) and (4, 0),
# zeros for the matrices of queries and keys, the identity for the other two. All weights are equal,
# so both patches become (2, 4). Second: the patches (0, r) and (1, 0) with $r = \sqrt{\ln 3}$, four
# identities, two heads. Patch 0 becomes (1/2, 3r/4): its first head meets the scores 0 and 0, its
# second ln 3 and 0. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def multi_head_attention(x, layer):
    """(b, n, d) -> (b, n, d)."""
    query, key, value = (
        rearrange(project(x), "b n (h k) -> b h n k", h=layer.heads)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    mixed = attend(query, key, value)  # all heads at once: (b, h, n, k)
    return layer.out_proj(rearrange(mixed, "b h n k -> b n (h k)"))


# %% [markdown]
# With the trained matrices of the first vision layer:

# %%
picture = scenes.examples()["dog_and_car_test_artist"]
pixels = processor(picture, "caption en")["pixel_values"]
first = model.vision_tower.layers[0]
patches = first.layer_norm1(model.vision_tower.embeddings(pixels)).detach()  # (b, n, d)
ours = multi_head_attention(patches, first.self_attn)
print(tuple(ours.shape), torch.allclose(ours, first.self_attn(patches), atol=1e-4))

# %%
order = torch.randperm(36)
moved = multi_head_attention(patches[:, order], first.self_attn)
told = "shuffled" if torch.allclose(moved, ours[:, order], atol=1e-4) else "new"
reveal("shuffled patches", guess_shuffle, told)

# %% [markdown]
# Attention knows no places. It needs the position vectors that lesson 01 added.
#
# ## Break it
#
# The scale is `k ** -0.5`. In the notes behind this course it is `k * -0.5`: one star is missing.
# Nothing fails: shapes are right, rows sum to 1. But for k = 32 the factor is now -16, so each
# patch takes from those that are *least* like what it looks for. `swap` puts this into the trained
# model and names the first layer whose output differs: the matrix right after `attend`.


# %%
def one_star_short(query, key, value, mask):
    k = query.shape[-1]  # attend multiplies by k ** -0.5 itself: take that out, put the mistake in
    return attend(query * (k * -0.5) / k**-0.5, key, value, mask)


# %%
broken = swap(model, attend=one_star_short)
for prompt in ("caption en", "answer en what is on the left?"):
    right, wrong = (generate(m, processor, picture, prompt) for m in (model, broken))
    print(f"{prompt}\n   ** -0.5: {right!r}\n   *  -0.5: {wrong!r}")

# %% [markdown]
# ## See it: where a patch looks
#
# We swap in an `attend` that does what ours does and keeps the weights. Then we choose one patch,
# marked by a frame, and see from where it takes, in each head of the first and third vision layer.

# %%
seen = []  # weights (b, h, t, s), layer after layer: first the vision tower, then the decoder


def attend_and_keep(query, key, value, mask):
    seen.append(attention_weights(query, key, mask).detach())
    return seen[-1] @ value


watched = swap(model, attend=attend_and_keep)

# %%
seen.clear()  # swap has run the model, too
with torch.inference_mode():
    watched(**processor(picture, "caption en"))
depth = len(model.vision_tower.layers)
tower = [weights[0] for weights in seen[:depth]]  # (h, t, s) each


def look_from(layer=3, patch=14):
    rows = {f"layer {i}": list(tower[i - 1][:, patch]) for i in (1, layer)}
    told = f"A dog and a car; where patch {patch} looks, in each head of two layers."
    figures.attention.over_picture(pixels[0], rows, [f"head {i}" for i in range(5)], told, patch)


figures.slide(look_from, layer=range(2, depth + 1), patch=range(36))
reveal("weights in the tower", guess_weights, sum(w.numel() for w in tower))

# %% [markdown]
# The number above a map is the weight of its brightest square. Equal shares would be 1/36 = 0.03.
# In layer 1 every head takes a little from many places. In layer 3 three heads take
# between a quarter and a half of everything from one place. In JupyterLab you can move the sliders:
# in layer 3, head 1 of the empty corner, patch 0, takes half of everything from the car.
#
# ## Check
#
# Our two functions against torch's fused function and against the package.

# %% tags=["nbval-check-output"]
from minipali.attention import MultiHeadAttention

torch.manual_seed(0)
q, k, v = (torch.randn(2, 3, n, 8) for n in (4, 5, 5))
mask = torch.rand(2, 1, 4, 5) < 0.6
mask[..., 0] = True
expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
print("torch:  ", torch.allclose(attend(q, k, v, mask), expected, atol=1e-5))
layer, row = MultiHeadAttention(12, 3), torch.randn(2, 7, 12)
print("package:", torch.allclose(multi_head_attention(row, layer), layer(row), atol=1e-5))
hidden = attend(q, k, v, torch.zeros(4, 5, dtype=torch.bool))
print("blind:  ", hidden.abs().max().item())

# %% [markdown]
# ## In the real model
#
# What attention costs in the vision tower of PaliGemma. The weights grow with the **square** of the
# number of patches. A stored attention weight takes 2 bytes.

# %% tags=["nbval-check-output"]
from minipali.config import preset

print("for one layer and one picture: parameters, GFLOP of the matrices + of scores and averages,")
print("memory for the weights")
for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    v = preset(name).vision
    d, n, h, layers = v.hidden_size, v.num_patches, v.num_attention_heads, v.num_hidden_layers
    parameters = 4 * (d * d + d)
    matrices, mixing = 4 * 2 * n * d * d, 2 * 2 * n * n * d
    print(
        f"{name:16} {layers:2} x {h:2} heads of {d // h}, {parameters:9,} parameters,"
        f" {matrices / 1e9:6.3f} + {mixing / 1e9:6.3f} GFLOP, {2 * h * n * n / 1e6:.3f} MB"
    )

# %% [markdown]
# At 896 pixels the weights of one layer would fill half a gigabyte. So nobody stores them: fused
# functions such as torch's `scaled_dot_product_attention`, which the package uses, compute the
# softmax in pieces and keep only the averages.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: what `.contiguous()` is for
#
# Two more minutes. Putting the heads side by side again has a trap. `transpose` moves no number: it
# only notes that memory shall be read in another order. `view` needs the numbers in order, and
# fails. `.contiguous()` copies them into order. (`reshape` and einops do so by themselves where
# they must.)

# %% tags=["nbval-check-output"]
mixed = attend(split.float(), split.float(), split.float())  # new, in the order (b, h, n, k)
back = mixed.transpose(1, 2)  # (b, n, h, k)
print("in order:", mixed.is_contiguous(), back.is_contiguous())
try:
    back.view(1, 2, 6)
except RuntimeError as error:
    print("view:", type(error).__name__)
print("same as reshape:", torch.equal(back.contiguous().view(1, 2, 6), back.reshape(1, 2, 6)))

# %% [markdown]
# So the code in the notes behind this course says `.transpose(1, 2).contiguous()` before its
# `view`.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: how sharp is a softmax?
#
# Three more minutes. The **entropy** of weights, in bits, is 0 if one key has everything, and
# log2(36), about 5.2, if all 36 keys have the same weight. Its mean over random queries, for many
# widths:


# %%
def entropy(scores):
    """Mean over the queries, in bits."""
    weights = softmax(scores)
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-1).mean().item()


widths = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
scores = {k: torch.randn(300, k) @ torch.randn(36, k).T for k in widths}
curves = {"no scale": 0, "1 / sqrt(k)": -0.5, "1 / k": -1}  # powers of k
for name, power in curves.items():
    curves[name] = [entropy(scores[k] * float(k) ** power) for k in widths]
figures.attention.entropy_by_width(widths, curves, keys=36)

# %% [markdown]
# With 1/k attention becomes a plain average of everything. With $1/\sqrt k$ the width makes no
# difference. All this holds for random vectors, as at the start of training. Trained attention may
# become as sharp as it needs.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: a query that sees nothing
#
# Two more minutes. It happens where a row begins with padding, tokens without meaning, under a
# causal mask. The first word of our sentence sees nothing here, treated in three ways:

# %%
blind = causal.clone()
blind[0] = False
scores = x @ x.T
print("-inf alone:      ", softmax(scores.masked_fill(~blind, float("-inf")))[0].tolist())
print("a large negative:", softmax(scores.masked_fill(~blind, -1e9))[0].tolist())
print("ours:            ", attention_weights(x, x, blind)[0].tolist())

# %% [markdown]
# One `nan` spreads: each later layer mixes it into more places. A large negative number in place of
# -inf finds all keys equal, and averages what it must not see.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: where does the answer come from?
#
# Ten more minutes. The decoder reads the 36 patches and then the question. Its last place, the
# newline that ends the question, is where the first word of the answer is chosen. Where in the
# picture does this place look? Guess first, then ask two questions about one picture. Each map is
# the mean over the heads of a layer.


# %%
def look(images, prompts):
    """Run the model; its best next token for each prompt. The weights are in `seen`."""
    seen.clear()
    with torch.inference_mode():
        return watched(**processor(images, prompts))[:, -1].argmax(dim=-1)


def to_picture():
    """From the last place to the patches, mean over the heads: (layer, b, n)."""
    return torch.stack([weights[:, :, -1, :36].mean(dim=1) for weights in seen[depth:]])


# %%
rows = {}
for side in ("left", "right"):
    answer = processor.decode(look(picture, f"answer en what is on the {side}?").tolist())
    rows[f"on the {side}? answer: {answer}"] = list(to_picture()[:, 0])
told = "A dog on the left, a car on the right; where the model looks when it answers, by layer."
figures.attention.over_picture(pixels[0], rows, [f"layer {i}" for i in (1, 2, 3, 4)], told)

# %% [markdown]
# One picture can be luck. So we measure. We make new pictures with two objects, one clearly to the
# left of the other, by an artist whose drawings were never trained on. We ask for the left and for
# the right object. How much of the weight on the picture falls into the box of the object that was
# asked for, and how much into the other's?

# %%
import numpy as np

rng = np.random.default_rng(0)
new = [scenes.compose(rng, scenes.VALIDATION_ARTIST, 2) for _ in range(80)]
new = [scene for scene in new if scenes.extreme(scene, "left")]
cover = [[scenes.patch_cover(thing.box, 6) for thing in scene.things] for scene in new]
cover = torch.stack([torch.stack(pair) for pair in cover])  # (b, object, n), left object first
share = {}
for asked, side in enumerate(("left", "right")):
    look([scene.picture for scene in new], [f"answer en what is on the {side}?"] * len(new))
    part = to_picture() / to_picture().sum(dim=-1, keepdim=True)
    inside = torch.einsum("lbn,bon->lo", part, cover) / len(new)  # mean over the pictures
    share[side] = inside[:, [asked, 1 - asked]]
print(f"{len(new)} pictures; a box covers {cover.mean():.2f} of the picture")
for i, (asked, other) in enumerate(((share["left"] + share["right"]) / 2).tolist()):
    print(f"layer {i + 1}: {asked:.2f} in the box asked for, {other:.2f} in the other")

# %% [markdown]
# Compare the two numbers of a line. If they are alike, the layer looks at both objects, or at none,
# whatever the question was. If the first is much larger, the question steers the eye. Here picture
# and question meet, in the decoder's attention. Only answers were trained, never these weights.
#
# Read such maps with care. They show from where a layer *takes*, not why the answer is what it is.
# After a few layers a patch also holds what it took from others. And Jain and Wallace (2019) found,
# for models that classify texts, very different weights that lead to the same answer.
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/03_attention.ipynb). At its end the trained model
# looks through your code. It has one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - Attention is a weighted average: scores by dot products, weights by softmax, and the values
#   averaged under these weights.
# - $1/\sqrt k$ keeps the softmax soft at every width, the maximum keeps it finite, and the mask
#   comes before it.
# - Heads are parts of the width, computed side by side. Tokens are compared inside a head, and the
#   last matrix mixes the heads.
#
# **Self-test**
#
# <details><summary>All scores of a row grow by 10. What happens to the weights?</summary>
#
# Nothing: each exponential grows by the same factor, and the division takes it out. This is why the
# maximum may be subtracted.
# </details>
#
# <details><summary>You leave out the bias of the keys. Which outputs change?</summary>
#
# None. The bias adds query · bias to every score of the query's row, the same amount for each key,
# and the softmax does not see it. The published model stores such biases all the same.
# </details>
#
# <details><summary>You use 8 heads instead of 16 at the same width. How many parameters
# more or less?</summary>
#
# None. The four matrices are as wide as before. Heads only say how their results are cut.
# </details>
#
# **Sources.** Scale, masks and heads: Vaswani et al. 2017, arXiv 1706.03762, its section
# "Attention"; patches as a sequence: Dosovitskiy et al. 2020, arXiv 2010.11929, its section "Vision
# Transformer (ViT)". Attention as explanation: Jain and Wallace 2019, arXiv 1902.10186. The
# sentence *I love pepperoni pizza* is from hkproj's slides "Multi-Head Attention".

# %% [markdown]
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | a patch vector of 1024 entries means that "every patch have 1024 pixels" | 1024 is the width of a toy model on a slide: 1024 features. A patch of 14 x 14 pixels has 588 numbers, and its vector in PaliGemma has 1152 |
# | the similarity of head 1 is calculated with respect to the other heads | positions are compared with positions, inside each head; heads meet only in the last matrix |
# | "where is your mask?", in the section on the vision tower | the vision tower has no mask; a causal mask belongs to text that is being written |
# | `head_dim*-0.5` is equivalent to 1 / sqrt(head_dim) | `head_dim ** -0.5` is; the other factor is negative |
# | dividing by the sum makes the softmax stable | it makes the weights sum to 1; subtracting the maximum, which the notes come to last, makes it stable (more in lesson 05) |
