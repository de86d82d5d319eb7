# %% [markdown]
# # 07 · RoPE: a place is an angle
#
# Attention knows no places: shuffle its vectors, and the same vectors come out, shuffled. The
# vision tower has a table of positions. The decoder has none, and nothing is added to its vectors.
# Still it knows what is on the left. The trick is called **rotary position embedding**, **RoPE**,
# and has no parameters at all. You write it, and then you move a dog to the other side of a picture
# without touching a pixel or a weight.
#
# ## Do you remember?
#
# <details><summary>A row of the small model holds a picture and the prompt <code>caption en</code>, two
# tokens. Which ids come in which order, and how many are there?</summary>
#
# 36 image tokens, bos, 2 tokens, and the newline: 40 (lesson 06).
# </details>
#
# <details><summary>Queries are (b, h, t, k), keys are (b, h, s, k). What is the shape of the scores, and
# over which axis goes the softmax?</summary>
#
# (b, h, t, s), over the last axis: each query shares out one whole among the keys (lesson 03).
# </details>
#
# <details><summary>Which line gives two equal patches in different places different vectors:
# <code>patches @ weight.T + bias</code>, <code>+ positions</code>, or
# <code>(x - mean) / sd</code>?</summary>
#
# <code>+ positions</code>: the tower adds a learned vector for each place, once, before its first
# layer (lesson 01).
# </details>
#
# ## Where we are

# %%
import torch

from minipali import detect, figures, generate, load, scenes
from minipali.checks import reveal

model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **turn** queries and keys by their positions, by hand and in a few lines of code,
# 2. **show** that scores then depend on distances alone, and what that is good for,
# 3. **find** mistakes that load and run without any error.
#
# Time: 50 minutes. You need: attention and heads (lesson 03), and that a full circle has 2π = 6.28
# radians.
#
# ## Predict
#
# The decoder reads 36 image tokens, row by row, and then the question, at the positions 1, 2, 3 and
# so on. We ask 240 questions, and 60 of them ask for a box. The model finds 48 of the 60.
#
# 1. All tokens get position 0. How many of the 60 boxes does the model still find?
# 2. Instead, every position grows by 1,000. How many of the 240 answers change?
# 3. Instead, you number each row of patches from right to left. The picture stays as it is: a dog
#    on the left, a car on the right. What does the model say is on the left?

# %%
guess_boxes, guess_changed, guess_left = ..., ..., ...

# %% [markdown]
# ## By hand: one pair
#
# Take a query of two numbers, (2, 1), and a key, (1, 0). Draw them as arrows. The rule of RoPE is:
# **an arrow at position p is turned p times by the same angle.** For sums on paper, let the angle
# be a quarter of a circle, against the clock. A quarter turn makes (-y, x) of (x, y).
#
# | position | 0 | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|---|
# | query | (2, 1) | (-1, 2) | (-2, -1) | (1, -2) | (2, 1) |
# | key | (1, 0) | (0, 1) | (-1, 0) | (0, -1) | (1, 0) |
#
# On paper: the query at 3 with the key at 1 gives the score 1·0 + (-2)·1 = -2. Move both by one:
# the query at 4 with the key at 2. And by one more: the query at 5 (as at 1) with the key at 3. For
# any angle $\varphi$, turning an arrow is the product
#
# $$R_\varphi \begin{pmatrix} x \\ y \end{pmatrix} =
# \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix}
# \begin{pmatrix} x \\ y \end{pmatrix}$$
#
# The second cell below prints the score of each query position (row) with each key position (column).


# %%
def turn(pair, angle):
    """(2,) -> (2,): the arrow, turned against the clock."""
    x, y = pair
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((x * cos - y * sin, y * cos + x * sin))


# %%
query, key = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])
angles = torch.arange(6) * torch.pi / 2  # of positions 0 to 5
for q in angles:
    print(" ".join(f"{turn(query, q) @ turn(key, k):3.0f}" for k in angles))

# %% [markdown]
# Find your three scores. Every diagonal has **one** number: only the distance counts. Why? Turn two
# arrows by the same angle, and neither their lengths nor the angle between them change, so their
# dot product does not change. Let the query stand at $p$ and the key at $s$, and let $R_p$ turn an
# arrow $p$ times. Turn both back by $p$, and only the difference of the positions is left:
#
# $$(R_{p}\,\vec q) \cdot (R_{s}\,\vec k) = \vec q \cdot (R_{s - p}\,\vec k)$$
#
# **Each vector is turned by its own place, and the score sees their distance.**
#
# ## Build: fast and slow hands
#
# With quarter turns, position 4 looks like position 0. A clock has the same trouble with its second
# hand, and the cure is more hands: a fast one that tells seconds apart, and slow ones for minutes
# and hours. A head of $k$ numbers has $k/2$ pairs. Pair 0 turns by 1 radian a step, the others more
# and more slowly. At position $p$ the angle of pair $i$ is
#
# $$\varphi_i = p \cdot \theta^{-2i/k},\qquad i = 0, 1, \dots, k/2 - 1$$
#
# with $\theta$ = 10,000 in Gemma. So the speeds run from 1 to almost $1/\theta$.
#
# **Write it now**: [exercise 07](../exercises/07_rope.ipynb), part 1, `rope_angles`. Positions come
# in, (b, t), whole numbers, each row with its own. Cosine and sine go out, (b, t, k/2) each. Two
# results for k = 4 and $\theta$ = 10,000, where the speeds are 1 and 0.01: at position 0 the
# cosines are 1, 1 and the sines 0, 0; at position 3 the angles are 3 and 0.03, so the cosines are
# -0.990, 1.000 and the sines 0.141, 0.030. Compute in float32. (Large models keep their numbers in
# **bfloat16**, where whole numbers are exact only up to 256. An optional part shows the damage.)
# Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def rope_angles(positions, head_dim, theta):
    """(b, t) -> cos and sin of the angles, (b, t, k/2) each."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim  # 2 i / k
    angles = positions[..., None].float() * theta**-exponents
    return angles.cos(), angles.sin()


# %%
cos, sin = rope_angles(torch.tensor([[0, 3]]), 4, 10000.0)
print([[round(x, 3) for x in y[0, 1].tolist()] for y in (cos, sin)])
hands, places = [0, 6, 12, 18, 23], [0, 1, 2, 3, 4, 5, 6, 12, 36, 512]
choices = [10, 100, 1000, 10000, 100000, 1000000]
figures.slide(lambda theta=10000: figures.rope.dials(hands, places, 48, theta), theta=choices)

# %% [markdown]
# A column is the face of a clock with five of the 24 hands of our small model (k = 48), and it
# tells the position. Between neighbours only the upper hands move. The lower ones tell the
# beginning of a long text from its end. In JupyterLab you can move $\theta$: all hands change but
# those of pair 0.
#
# How many tokens does one turn take? A full circle is 2π, so 2π / speed: the **wavelength**. On the
# left, all 24 hands as stripes. On the right the wavelengths, beside some lengths that matter.

# %%
figures.rope.wavelengths(
    {"small model": (48, 10000.0), "PaliGemma 3B": (256, 10000.0)},
    {"a row of our patches": 6, "our picture": 36, "picture, 224 px": 256, "longest text": 8192},
    positions=72,
)

# %% [markdown]
# The slowest hands hardly move in any text. A head can use them to compare *what* is there, and the
# fast ones to compare *where*.
#
# ## Build: turn a head
#
# Which numbers of a head are a pair? In Gemma, number `i` of the **first half** goes with number
# `i` of the **second half**: for k = 8 these are 0 with 4, 1 with 5, 2 with 6, 3 with 7. This
# layout is called *half-split*.
#
# **Write it now**: exercise 07, part 2, `apply_rope`. In: x (b, h, t, k), and cos and sin, (b, t,
# k/2). Out: x, turned. Two results for the head (1, 2, 3, 4), whose pairs are (1, 3) and (2, 4): a
# quarter turn of the first pair alone gives (-3, 2, 1, 4), and half a turn of both gives (-1, -2,
# -3, -4).


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def apply_rope(x, cos, sin):
    """x: (b, h, t, k); cos, sin: (b, t, k/2) -> (b, h, t, k)."""
    cos, sin = cos[:, None], sin[:, None]  # (b, 1, t, k/2): the same for all heads
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# %% tags=["nbval-check-output"]
head = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
for cos, sin in (([0.0, 1.0], [1.0, 0.0]), ([-1.0, -1.0], [0.0, 0.0])):
    print(apply_rope(head, torch.tensor([[cos]]), torch.tensor([[sin]])).flatten().tolist())

# %% [markdown]
# Where in the model does that happen? Three rules:
#
# - **In every layer, on queries and keys.** Each layer makes its queries and keys, turns them, and
#   compares them. What flows on to the next layer is not turned.
# - **After the heads are split.** The hands start anew in each head: k is the width of one head.
# - **Never the values.** In a score two turns meet, and their difference is left. A value meets no
#   second turn, so its own would stay in the result. Positions decide how much is taken from a
#   token, not what.
#
# Part 3 of the exercise asks for these rules in code, which this lesson does not show.
#
# ## See it: other numbers for the same patches
#
# If only its position tells where a patch is, we can move it by changing that number. `swap` puts a
# function of ours into the trained model: first `renumber` changes the positions, then
# `make_angles` makes angles.


# %%
def as_they_are(positions):
    return positions


def all_zero(positions):
    return torch.zeros_like(positions)


def a_thousand_more(positions):
    return positions + 1000


def right_to_left(positions):
    column = (positions - 1) % 6  # the picture has the positions 1 to 36, six a row
    return torch.where(positions <= 36, positions + 5 - 2 * column, positions)


def columns_first(positions):
    row, column = (positions - 1) // 6, (positions - 1) % 6
    return torch.where(positions <= 36, 6 * column + row + 1, positions)


# %%
from minipali.swap import swap

picture = scenes.examples()["dog_and_car_test_artist"]
renumber, make_angles = as_they_are, rope_angles
other = swap(model, rope_angles=lambda p, k, theta: make_angles(renumber(p), k, theta))
found, told = {}, {}
for renumber in (as_they_are, right_to_left, columns_first):
    title = renumber.__name__.replace("_", " ")
    found[title] = [x for name in ("dog", "car") for x in detect(other, processor, picture, name)]
    left, top = (
        generate(other, processor, picture, f"answer en what is {where}?")
        for where in ("on the left", "at the top")
    )
    told[title] = f"on the left: {left}\nat the top: {top}"
figures.rope.boxes_by_numbering(picture, found, told)
left = told["right to left"].split("\n")[0].removeprefix("on the left: ")
reveal("on the left, numbered from right to left", guess_left, left)

# %% [markdown]
# Same pixels, same weights, same 36 vectors. Numbered from right to left, the dog is on the right,
# and so is its box. With rows and columns exchanged, left is top and top is left. What an image
# token holds is *what* is there. RoPE says *where*.
#
# Is that luck? We ask 60 questions of each kind about pictures by an artist who was never trained
# on. In the last two lines the model sees each picture in a mirror.

# %%
from dataclasses import replace

from minipali.evaluation import answers, evaluation_set, score

KINDS = ("naming", "background", "places", "detection")
asked = {kind: evaluation_set(scenes.VALIDATION_ARTIST, 60, 3, (kind,)) for kind in KINDS}
in_a_mirror = {
    kind: [(replace(s, pixels=s.pixels[:, ::-1].copy()), q) for s, q in questions]
    for kind, questions in asked.items()
}


def examine(name, one, asked=asked):
    told = [answers(one, processor, questions) for questions in asked.values()]
    right = [
        sum(score(question, a) for (_, question), a in zip(questions, answered, strict=True))
        for questions, answered in zip(asked.values(), told, strict=True)
    ]
    print(f"{name:26}", *(f"{number:10.0f}" for number in right))
    return right, sum(told, [])


# %%
print(f"{'right of 60':26}", *(f"{kind:>10}" for kind in KINDS))
ways, results = (as_they_are, a_thousand_more, all_zero, right_to_left), {}
for renumber in ways:
    results[renumber] = examine(renumber.__name__, other)
for renumber in (as_they_are, right_to_left):
    _ = examine(f"{renumber.__name__}, a mirror", other, in_a_mirror)
luck = [[t.name == q.answer for t in s.things] for s, q in asked["places"]]  # any object
print("places, by luck:", round(sum(sum(x) / len(x) for x in luck)), "of 60")
reveal("boxes found, all zero", guess_boxes, round(results[all_zero][0][3]))
before, after = (results[way][1] for way in ways[:2])
reveal("answers changed", guess_changed, sum(a != b for a, b in zip(before, after, strict=True)))

# %% [markdown]
# - **1,000 more changes nothing.** For this model there are only distances. (So it does not matter
#   that our positions start at 1, as in transformers, and those of PaliGemma's authors at 0.)
# - **Without positions** (all zero) the model still knows *what* there is. It does not know
#   *where*: boxes are lost, and for "what is on the left" it would do better to pick one of the
#   objects blindly. (The background suffers too: the words of the *question* have lost their order
#   as well.)
# - **Numbers from right to left** break places and boxes. A mirror alone does the same. **Both
#   together cancel**: the last line is about as good as the first.
#
# ## Break it: the other layout
#
# The paper pairs **neighbours**: 0 with 1, 2 with 3, the *interleaved* layout. Both are fine to
# train with. But here are weights that were trained with halves, under code that takes neighbours:


# %%
from einops import rearrange


def interleaved(x, cos, sin):
    cos, sin = cos[:, None], sin[:, None]
    even, odd = x[..., ::2], x[..., 1::2]  # (b, h, t, k/2) each
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return rearrange(turned, "b h t i two -> b h t (i two)")


neighbours = swap(model, apply_rope=interleaved)
_ = examine("interleaved", neighbours)

# %% [markdown]
# Compare with the first line above. No error: all shapes fit, all weights load, words come out. The
# model still names things. But places, boxes and even the colour of the background are lost.
#
# So two files with the same names and shapes may need different code, and no loader can see it.
# Meta's Llama weights are interleaved; the script that made the files for transformers reorders
# their rows into halves. PaliGemma's own training code splits in halves.
#
# ## Check
#
# Against the package, against complex numbers (a turn is a multiplication by a number of length 1),
# and against the formula that transformers and the notes use, where cos and sin are k wide.

# %% tags=["nbval-check-output"]
from minipali import rope

torch.manual_seed(0)
positions = torch.tensor([[0, 1, 2, 3, 4], [7, 9, 100, 300, 511]])
x, (cos, sin) = torch.randn(2, 3, 5, 48), rope_angles(positions, 48, 10000.0)
ours = apply_rope(x, cos, sin)
theirs = rope.apply_rope(x, *rope.rope_angles(positions, 48, 10000.0))
print("package:  ", torch.allclose(ours, theirs, atol=1e-4))

first, second = x.chunk(2, dim=-1)
number = torch.complex(first, second) * torch.complex(cos, sin)[:, None]
print("complex:  ", torch.allclose(ours, torch.cat((number.real, number.imag), -1), atol=1e-5))

wide_cos, wide_sin = (torch.cat((y, y), dim=-1)[:, None] for y in (cos, sin))
half_turned = torch.cat((-second, first), dim=-1)  # what rotate_half returns
print("two terms:", torch.allclose(ours, x * wide_cos + half_turned * wide_sin, atol=1e-5))
print("lengths:  ", torch.allclose(ours.norm(dim=-1), x.norm(dim=-1), atol=1e-4))

# %% [markdown]
# The package is held against transformers' Gemma in `tests/test_rope.py`.
#
# ## In the real model
#
# What RoPE costs in PaliGemma 3B, per token, beside the matrices that make queries and keys (8
# heads and 1: lesson 09), and beside a table of positions as the vision tower has.

# %% tags=["nbval-check-output"]
from minipali.config import preset

t = preset("paligemma-3b-224").text
k, heads = t.head_dim, t.num_attention_heads + t.num_key_value_heads  # 8 of queries, 1 of keys
turns = 2 * torch.pi * t.rope_theta ** (torch.arange(0, k, 2) / k)  # tokens a turn
most = t.max_position_embeddings
print(f"{k // 2} pairs, from {turns[0]:.2f} to {turns[-1]:,.0f} tokens a turn")
print(f"{int((turns > most).sum())} of them never get once around in {most:,} tokens")
turning, making = 3 * heads * k, 2 * t.hidden_size * heads * k
print(f"work in a layer: {turning:,} FLOP to turn, {making:,} to make queries and keys")
print(f"parameters: 0; a table for {most:,} positions would have {most * t.hidden_size:,}")

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the cure for the wrong layout
#
# Five more minutes. The paper's formula 34 adds to x · cos the vector (-x2, x1, -x4, x3, ...) ·
# sin. In the half-split layout, for k = 8 and counted from 1 as there, the second vector is (-x5,
# -x6, -x7, -x8, x1, x2, x3, x4).
#
# A score is a **sum** over the k numbers of a head, and a sum does not care about order. So we may
# reorder the numbers of queries and keys, if we do it to both. The number `i` of half `two` moves
# to place `(i two)`. Numbers come from rows of `q_proj` and `k_proj`, so we reorder these rows,
# once, in the weights:

# %%
import copy

fitted = copy.deepcopy(neighbours)
for layer in fitted.language_model.layers:
    for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
        halves = "(h two i) d -> (h i two) d"
        linear.weight.data = rearrange(linear.weight.data, halves, two=2, i=48 // 2)

batch = processor(picture, "caption en")
for name, one in (("weights as they were", neighbours), ("weights reordered", fitted)):
    print(f"{name:20} logits differ by {(one(**batch) - model(**batch)).abs().max():.5f}")
_ = examine("interleaved, reordered", fitted)

# %% [markdown]
# The answers are back. Values and the output matrix stay as they were, because nothing turns there.
#
# In transformers, GPT-J and GLM are interleaved, GPT-NeoX and Gemma are half-split. Gemma's weights
# were never reordered.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: no offset when writing
#
# Two more minutes. When the model writes, it gets one new token at a time (lesson 08 builds this).
# If the tokens of each call are numbered from 0, every new token gets position 0.


# %%
def restart(positions):
    return positions if positions.shape[1] > 1 else torch.zeros_like(positions)


for renumber in (as_they_are, restart):
    for prompt in ("answer en what is on the left?", "caption en"):
        print(f"{renumber.__name__:12} {generate(other, processor, picture, prompt)}")

# %% [markdown]
# The first token of an answer is what it should be, because it comes from the call that reads the
# question. All that follows is written as if the new token stood in front of the picture. A test
# with answers of one token would not notice. So the inputs of the exercise have rows that start far
# from 0, each somewhere else.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: angles in bfloat16
#
# Ten more minutes. Of the 16 bits of bfloat16, one is the sign, 8 go to the exponent and 7 to the
# digits, so whole numbers are exact only up to 256. At 224 pixels PaliGemma's picture has the
# positions 1 to 256, and the text begins at 257. Here are our 36 patches, moved by 1,000.
#
# Then two versions of the mistake. In `coarse_speeds` only the speeds are rounded. This happens
# where a module keeps them as a buffer, as in the notes behind this course: `model.bfloat16()`
# casts buffers too, and a later `.float()` brings nothing back. In `coarse_angles` all is bfloat16.
# How wrong are the cosines of the 128 pairs of PaliGemma 3B, near position 1,000?

# %%
moved = torch.arange(1001, 1037)
print("36 positions; different ones in bfloat16:", len(moved.bfloat16().unique()))
print(moved[20:32].tolist())
print([int(p) for p in moved[20:32].bfloat16()])


# %%
def coarse_speeds(positions, head_dim, theta):
    speeds = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = positions[..., None].float() * speeds.bfloat16().float()
    return angles.cos(), angles.sin()


def coarse_angles(positions, head_dim, theta):
    speeds = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = positions[..., None].bfloat16() * speeds.bfloat16()
    return angles.cos().float(), angles.sin().float()


# %%
WAYS = {"float32": rope_angles, "speeds bfloat16": coarse_speeds, "all bfloat16": coarse_angles}
near_1000 = torch.arange(1000, 1101)
exact = near_1000[:, None].double() * 10000.0 ** -(torch.arange(0, 256, 2).double() / 256)
for name, way in WAYS.items():
    error = (way(near_1000, 256, 10000.0)[0] - exact.cos()).abs().max()
    print(f"{name:16} largest error of a cosine {error:.5f}")

# %% [markdown]
# A cosine lies between -1 and 1, so an error of 2 is the worst there is. Both look like a disaster.
# Which one will hurt the answers? Guess. Then look at the trained model, with all positions moved
# by 1,000, which changed nothing in float32. (The first line is the worse version with the
# positions not moved.)


# %%
renumber, make_angles = as_they_are, coarse_angles
_ = examine("all bfloat16, not moved", other)
renumber = a_thousand_more
for name in ("speeds bfloat16", "all bfloat16"):
    make_angles = WAYS[name]
    _ = examine(f"{name}, + 1,000", other)

# %% [markdown]
# The rounded speeds do no harm here. Query and key are turned by the *same* wrong speed, so the
# score still sees a distance, on a clock that runs a little wrong. That error grows with the
# distance, and ours are short. Rounded *angles* are another matter: neighbours fall together, and
# the distance itself is lost.
#
# See it. Query and key are all ones, so the score is a sum of cosines. The line is the score by
# distance, with the key at position 0. The marks are the same query and key, moved by 1,000.

# %%
distances = torch.arange(37)[None]
ones = torch.ones(1, 1, 37, 48)


def scores_from(start, way):
    query = apply_rope(ones, *way(start + distances, 48, 10000.0))
    key = apply_rope(ones, *way(start + 0 * distances, 48, 10000.0))
    return (query * key).sum(dim=-1)[0, 0]  # (t,)


curves = {"float32, key at 0": scores_from(0, rope_angles)}
for name, way in WAYS.items():
    curves[f"{name}, key at 1,000"] = scores_from(1000, way)
figures.rope.score_by_distance(distances[0], curves)

# %% [markdown]
# Circles and plus signs lie on the line or close to it. The crosses come in steps: several
# distances share one score.
#
# The line tells one thing more. It is highest at distance 0 and falls, with waves. The paper calls
# this *long-term decay*. Our arrows all point the same way. A query that points elsewhere can have
# its highest score at another distance.
#
# Real models got this wrong. In transformers, Gemma's positions lost precision in bfloat16 until a
# pull request forced float32 in early 2024 (#29285). **So: positions, speeds, angles in float32;
# only then cast cos and sin.**
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/07_rope.ipynb). At its end the trained model
# finds its places with your code. It has one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - RoPE turns pairs of numbers in queries and keys by position times speed; a score then depends on
#   the distance alone.
# - It happens in every layer, after the split into heads, and never to values; nothing is added to
#   the vectors, and no parameters are needed.
# - Layout, offset and precision can be wrong without any error: compare numbers with a reference,
#   at positions far from 0.
#
# **Self-test**
#
# <details><summary>You turn only the queries. Does the score still depend on the distance?</summary>
#
# No. It depends on the position of the query alone. All keys count as if they stood at position 0.
# </details>
#
# <details><summary>You turn queries and keys by minus the angle. What would the trained model
# see?</summary>
#
# Every distance has the other sign: what came before now comes after. It is a text read backwards,
# and the picture would be turned by half a circle and stand behind the question.
# </details>
#
# <details><summary>A loader reorders the rows of q_proj for the other layout and forgets k_proj. What
# happens?</summary>
#
# The products in a score pair numbers that do not belong together, even at distance 0. Try it:
# leave `k_proj` out of the loop in the optional part on the cure, and compare the answers with
# those of the wrong layout.
# </details>
#
# <details><summary>Positions are shifted by 1,000, angles are float32, and cos and sin are then cast
# to bfloat16. How large is the error?</summary>
#
# A number near 1 is rounded by at most 1/512 in bfloat16, so a cosine is off by at most 0.002. It
# does not grow with the position.
# </details>
#
# **Sources.** RoFormer: Su et al. 2021, arXiv 2104.09864: turning and speeds, equations 14 and 15;
# relative positions, equation 16; the formula with two terms, equation 34, in its section on a
# computationally efficient realization; decay, in its section on long-term decay. Halves in
# PaliGemma's training code: `_apply_rope` in big_vision, `models/ppp/gemma.py`. Reordering of
# Llama: `permute` in transformers' `convert_llama_weights_to_hf.py`. Precision: transformers pull
# request 29285.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | positions are combined with the embedding vectors of text and picture, and that is the decoder's input | nothing is added before the decoder; each layer turns its queries and keys, and values carry no position |
# | `rotate_half` builds "[-x2, x1, -x4, x3, ...]" and follows formula 34 | formula 34 and that vector pair neighbours; the code pairs halves, [-x5, ..., -x8, x1, ..., x4] for k = 8, and so do the weights |
# | i = 0, 1, 2, ..., dim // 2 | i ends at dim // 2 - 1: a head of k numbers has k / 2 pairs |
# | `freqs` has the width of the head | it has half of it; the missing line `emb = torch.cat((freqs, freqs), dim=-1)` makes it the whole width, and without it `emb` does not exist |
# | `self.inv_freq.to(x.device)` | that returns a copy and changes nothing; and `inv_freq` is a buffer, so `model.bfloat16()` rounds it before the careful `.float()` |
# | `max_position_embeddings=2048` is given to the rotary module | it is stored and never used: RoPE has no table, and any position has an angle |
