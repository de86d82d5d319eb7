# %% [markdown]
# # 03 · Attention: a weighted average that chooses its weights
#
# After lesson 01 a picture is a row of vectors, and each vector knows one square of it. Nobody can
# see a dog in one square. Attention lets every vector take something from all the others, and each
# vector decides from which ones.
#
# ## Where we are

# %%
import torch
from einops import rearrange

from minipali import figures, generate, load, scenes
from minipali.swap import swap

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
# Time: 45 minutes. You need: the patches of lesson 01, the matrix product, and what an average is.
#
# ## Predict
#
# - Our small vision tower has 36 patches, 5 heads and 5 layers. In each head of each layer, every
#   patch gives a weight to every patch. How many weights is that for one picture?
# - You shuffle the patch vectors before they enter an attention layer. What happens to the output?
# - The model is asked what is on the left. At which patches will it look when it answers?
#
# Write your guesses down. Later cells answer all three.
#
# ## By hand: four words
#
# Take the sentence *I love pepperoni pizza*. Give each word two numbers: how much it is about food,
# and how much about people. We made these numbers up, so that you can do the sums on paper.
#
# | word | food | people |
# |---|---|---|
# | I | 0 | 2 |
# | love | 1 | 1 |
# | pepperoni | 1 | 0 |
# | pizza | 2 | 0 |
#
# The vector of *pizza* does not say that somebody loves it. It shall take a part of the other
# words: the more alike, the more. The **dot product** measures how alike two vectors are. Multiply
# entry by entry and add: pizza and love give 2·1 + 0·1 = 2. On paper: the four scores of *pizza*,
# each divided by their sum, and then the average of the four vectors under these weights.

# %%
x = torch.tensor([[0.0, 2.0], [1.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
scores = x[3] @ x.T
weights = scores / scores.sum()
print(f"scores {scores.tolist()}, weights {weights.tolist()}")
print("average", (weights @ x).tolist())

# %% [markdown]
# The new vector of *pizza* has a little of *people* in it, which came from *love*. That is
# attention: **scores, weights, weighted average.** Three names belong to it. The vector that asks
# is the **query**. The vectors it is compared with are the **keys**. The vectors that are averaged
# are the **values**. Here all three are the same `x`. In the model, three learned matrices make
# them from `x`, so that a vector may look for one thing, be found by another, and hand over a third.
#
# One step will not do: dividing by the sum. Change the vector of *I* to (-2, 2). Its score is now
# -4, and a weight becomes negative. The exponential function helps. It makes every score positive
# and keeps their order. Exponential, then division by the sum: that is the **softmax**.

# %%
scores = torch.tensor([-4.0, 2.0, 2.0, 4.0])
print("divided by the sum:", (scores / scores.sum()).tolist())
print("softmax:           ", [round(w, 3) for w in scores.softmax(dim=0).tolist()])

# %% [markdown]
# ## Build: a softmax that does not overflow
#
# Exponentials grow fast. In 32-bit numbers exp(89) is infinite, and infinite divided by infinite is
# not a number (NaN). So we first subtract the largest score of the row. This divides every
# exponential by the same factor, and their sum too, so the weights stay the same. The largest
# exponent is now 0, and nothing can overflow.


# %%
def softmax(scores):
    """Over the last axis: (..., t, s) -> (..., t, s), each row sums to 1."""
    largest = scores.amax(dim=-1, keepdim=True)
    exponentials = (scores - largest).exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


large = torch.tensor([89.0, 88.0])
print("exp:    ", large.exp().tolist())
print("plain:  ", (large.exp() / large.exp().sum()).tolist())
print("stable: ", [round(w, 3) for w in softmax(large).tolist()])

# %% [markdown]
# The division by the sum makes the weights sum to 1. The **maximum** makes the computation safe.
# And the axis matters: each query shares out one whole among the keys. A row of our tables is a
# query, a column is a key, so the softmax runs along the last axis.
#
# ## Build: the scale
#
# Our word vectors had 2 entries. In general queries and keys have `k` entries, and a dot product is
# a sum of `k` products. If the entries are independent, with mean 0 and variance 1, the sum has variance
# `k`, so its typical size is sqrt(k). Wide vectors get large scores, and a softmax of large scores
# gives almost everything to one key.
#
# We measure that with the **entropy** of the weights, in bits. It is 0 if one key has everything,
# and log2(36), about 5.2, if all 36 keys have the same weight.


# %%
def entropy(scores):
    """Mean over the queries, in bits."""
    weights = softmax(scores)
    return -(weights * weights.clamp(min=1e-30).log2()).sum(dim=-1).mean().item()


torch.manual_seed(0)
widths = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
scores = {k: torch.randn(300, k) @ torch.randn(36, k).T for k in widths}
curves = {
    "no scale": [entropy(scores[k]) for k in widths],
    "1 / sqrt(k)": [entropy(scores[k] * k**-0.5) for k in widths],
    "1 / k": [entropy(scores[k] / k) for k in widths],
}
figures.attention.entropy_by_width(widths, curves, keys=36)

# %% [markdown]
# Without a scale, attention between wide vectors is a choice and no longer an average. Its gradient
# is close to zero, because a small change of the scores changes almost nothing, so it learns badly.
# With 1/k it is a plain average of everything. With 1/sqrt(k) the width makes no difference. All
# this holds for random vectors, as at the start of training. Trained attention may become as sharp
# as it needs.
#
# ## Build: the mask
#
# Sometimes a query must not see a key. A text model that learns to write must not see the words
# that it shall write. A **mask** is a table of yes (`#`) and no (`.`), a row for each query. Where
# it says no, the score becomes minus infinity *before* the softmax, and exp(-inf) is 0.

# %%
causal = torch.ones(4, 4).tril().bool()  #                 I    love  pepperoni  pizza
#                                          I               #     .       .         .
#                                          love            #     #       .         .
#                                          pepperoni       #     #       #         .
#                                          pizza           #     #       #         #


# %%
def attention_weights(query, key, mask=None):
    """(..., t, k) and (..., s, k), mask True where a query may look -> (..., t, s)."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is None:
        return softmax(scores)
    weights = softmax(scores.masked_fill(~mask, float("-inf")))
    return weights.masked_fill(~mask, 0.0)  # for rows that see nothing; see below


def attend(query, key, value, mask=None):
    """(..., t, k), (..., s, k), (..., s, k) -> (..., t, k)."""
    return attention_weights(query, key, mask) @ value


# %% [markdown]
# Here are the weights of our sentence: without a mask, with the causal one, and with a common
# mistake, the mask multiplied *after* the softmax. The number right of a row is its sum.

# %%
words = ["I", "love", "pepperoni", "pizza"]
free, masked = attention_weights(x, x), attention_weights(x, x, causal)
tables = {"no mask": free, "causal mask": masked, "mask after the softmax": free * causal}
figures.attention.tables(tables, words)

# %% [markdown]
# In the right table the hidden words have already taken their share, and it is lost. In the middle
# table they took no part.
#
# What if a query may see nothing at all? It happens: put padding in front of a text and use a
# causal mask. All scores of such a row are -inf. The largest is -inf too, and -inf minus -inf is
# NaN. One NaN spreads: each later layer mixes it into more places. A large negative number instead
# of -inf does not help. Then the row finds all keys equal and averages what it must not see. We
# decide that such a row has weights 0, so it takes nothing. This is what the last line of
# `attention_weights` does.

# %%
blind = causal.clone()
blind[0] = False
scores = x @ x.T
print("-inf alone:      ", softmax(scores.masked_fill(~blind, float("-inf")))[0].tolist())
print("a large negative:", softmax(scores.masked_fill(~blind, -1e9))[0].tolist())
print("ours:            ", attention_weights(x, x, blind)[0].tolist())

# %% [markdown]
# The vision tower has **no mask**: every patch sees every patch, because nothing in a picture comes
# later than the rest. Masks come back with the text, in lesson 11.
#
# ## Build: heads
#
# One average can answer one question. But a patch has several: which patches have my colour, which
# continue my edge? So the width `d` is split into `h` **heads** of `k = d / h` entries. (The entries
# are learned features, not pixels.) Each head has its own weights, and averages its own part of the
# values. Positions are compared with positions, inside one head. Heads are never compared with each
# other. Their results are put side by side, and a last matrix mixes them.
#
# The split is one line of einops. Look at two patches of six numbers and two heads:

# %%
toy = torch.arange(12).reshape(1, 2, 6)  # (b, n, d)
split = rearrange(toy, "b n (h k) -> b h n k", h=2)
same = toy.view(1, 2, 2, 3).transpose(1, 2)  # d -> h, k; then n and h change places
print("patches:        ", toy[0].tolist())
print("head 0 of (h k):", split[0, 0].tolist(), "the same by view:", torch.equal(split, same))
print("head 0 of (k h):", rearrange(toy, "b n (k h) -> b h n k", h=2)[0, 0].tolist())

# %% [markdown]
# `(h k)` gives head 0 the first three numbers of each patch, and `(k h)` every second number. A
# model trained from scratch could live with either. But weights that were trained with one cannot
# be read with the other, and no shape tells you.
#
# Now the whole piece, with the trained matrices of the first vision layer.


# %%
def multi_head_attention(x, layer):
    """(b, n, d) -> (b, n, d)."""
    query, key, value = (
        rearrange(project(x), "b n (h k) -> b h n k", h=layer.heads)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    mixed = attend(query, key, value)  # all heads at once: (b, h, n, k)
    return layer.out_proj(rearrange(mixed, "b h n k -> b n (h k)"))


# %%
picture = scenes.examples()["dog_and_car_test_artist"]
pixels = processor(picture, "caption en")["pixel_values"]
first = model.vision_tower.layers[0]
patches = first.layer_norm1(model.vision_tower.embeddings(pixels))  # (b, n, d)
ours = multi_head_attention(patches, first.self_attn)
print(tuple(ours.shape), torch.allclose(ours, first.self_attn(patches), atol=1e-4))

# %% [markdown]
# ## Break it
#
# The scale is `k ** -0.5`. In the notes behind this course it was typed `k * -0.5`, one star short.
# Nothing fails: the shapes are right, and the rows sum to 1. But for k = 32 the factor is now -16.
# The sign turns the order around, so each patch takes from the patches that are *least* like what
# it looks for. `swap` puts this into the vision tower and the decoder of the trained model. It
# names the first layer whose output differs: `out_proj`, the matrix right after `attend`.


# %%
def one_star_short(query, key, value, mask):
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] * -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores) @ value


broken = swap(model, attend=one_star_short)
for prompt in ("caption en", "answer en what is on the left?"):
    right, wrong = (generate(m, processor, picture, prompt) for m in (model, broken))
    print(f"{prompt}\n   ** -0.5: {right!r}\n   *  -0.5: {wrong!r}")

# %% [markdown]
# ## See it: where a patch looks
#
# `swap` can also open a window. We swap in an `attend` that does what ours does and keeps the
# weights. The model's answers stay the same. Then we choose one patch, marked by a frame, and see
# from where it takes, in each head of the first and of the third layer of the vision tower.

# %%
seen = []  # weights (b, h, t, s), layer after layer: first the vision tower, then the decoder


def attend_and_keep(query, key, value, mask):
    seen.append(attention_weights(query, key, mask).detach())
    return seen[-1] @ value


watched = swap(model, attend=attend_and_keep)


# %%
def look(images, prompts):
    """Run the model; its best next token for each prompt. The weights are in `seen`."""
    seen.clear()
    with torch.inference_mode():
        return watched(**processor(images, prompts))[:, -1].argmax(dim=-1)


# %%
look(picture, "caption en")
depth, patch = len(model.vision_tower.layers), 14
rows = {f"layer {i + 1}": list(seen[i][0, :, patch]) for i in (0, 2)}
told = "A dog and a car; where one patch of the dog's face looks, in each head of two layers."
figures.attention.over_picture(pixels[0], rows, [f"head {i}" for i in range(5)], told, patch)
print("weights in the vision tower:", sum(w.numel() for w in seen[:depth]))

# %% [markdown]
# The number above a map is the weight of its lightest square. Equal shares would be 1/36 = 0.03.
# Heads differ: some take a little from many places, others almost all from one or two. The last
# line answers the first question of *Predict*: 5 layers, 5 heads, 36 x 36 weights.
#
# ## See it: where the answer comes from
#
# The decoder reads the 36 patches and then the question. Its last place, the newline that ends the
# question, is where the first word of the answer is chosen. Where in the picture does this place
# look? We ask two questions about one picture. Each map is the mean over the heads of a layer.


# %%
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

# %% [markdown]
# ## Check
#
# Against torch's fused function, against the package, and the second question of *Predict*: shuffle
# the patches, and the output is shuffled in the same way. Attention knows no places; it needs the
# position vectors of lesson 01.

# %% tags=["nbval-check-output"]
import torch.nn.functional as F

from minipali.attention import MultiHeadAttention

torch.manual_seed(0)
q, k, v = (torch.randn(2, 3, n, 8) for n in (4, 5, 5))
mask = torch.rand(2, 1, 4, 5) < 0.6
mask[..., 0] = True
expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
print("torch:   ", torch.allclose(attend(q, k, v, mask), expected, atol=1e-5))
layer, row, order = MultiHeadAttention(12, 3), torch.randn(2, 7, 12), torch.randperm(7)
ours = multi_head_attention(row, layer)
print("package: ", torch.allclose(ours, layer(row), atol=1e-5))
shuffled = multi_head_attention(row[:, order], layer)
print("shuffled:", torch.allclose(shuffled, ours[:, order], atol=1e-5))
hidden = attend(q, k, v, torch.zeros(4, 5, dtype=torch.bool))
print("blind:   ", hidden.abs().max().item())

# %% [markdown]
# ## In the real model
#
# What attention costs in the vision tower of PaliGemma. The four matrices grow with the width `d`.
# The weights grow with the **square** of the number of patches `n`. A multiplication with its
# addition counts as 2 FLOP, and a stored weight takes 2 bytes.

# %% tags=["nbval-check-output"]
from minipali.config import preset

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
# A line gives the layers, then for one layer and one picture: heads and their width, parameters of
# the four matrices, work, and memory for the weights. The first GFLOP number is the four matrices, the
# second is scores and averages. At 896 pixels the weights would fill half a gigabyte. So nobody stores them. Fused functions such
# as torch's `scaled_dot_product_attention` compute the softmax in pieces and keep only the averages.
# The package uses it in its `attend`, and a test holds it equal to the weights written out.
#
# ## Your turn
#
# Open [the exercise](../exercises/03_attention.ipynb). You write `attend` and
# `multi_head_attention`, and at the end the trained model looks through your code.
#
# ## Take away
#
# - Attention is a weighted average: scores by dot products, weights by softmax, and the values
#   averaged under these weights.
# - 1/sqrt(k) keeps the softmax soft at every width, the maximum keeps it finite, and the mask comes
#   before it.
# - Heads are parts of the width. Positions are compared inside a head, and the last matrix mixes.
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
# **Sources.** Scale, masks and heads: Vaswani et al. 2017, arXiv 1706.03762, section 3.2; patches
# as a sequence: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1 and appendix A. Attention
# as explanation: Jain and Wallace 2019, arXiv 1902.10186.

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
