# %% [markdown]
# # 09 · Grouped-query attention: heads that share
#
# The cache of lesson 08 makes decoding fast, and it fills the memory. How much it holds depends on
# how many heads have keys and values of their own. PaliGemma 3B has eight query heads and **one** head
# of keys and values, which all eight read. Our small model has four and two. You build such sharing,
# and break it in a way that shows only in some questions.
#
# ## Do you remember?
#
# <details><summary>The vision tower has 5 heads and reads 36 patches of 2 pictures. What is the shape
# of all its scores in one layer?</summary>
#
# (2, 5, 36, 36): for each picture and each head a table, a row for each query, a column for each key.
# </details>
#
# <details><summary>RoPE turns a head of 8 numbers in the half-split layout. Which number is the
# partner of number 1? And what happens to the values?</summary>
#
# Number 5: the first half goes with the second half. Nothing happens to the values: only queries and
# keys are turned.
# </details>
#
# <details><summary>A model with a cache writes the first word of its answer as it should. All words
# after it are wrong. Which line would you read first?</summary>
#
# The one that makes the positions. In the first call it counts from the beginning of the row. If it
# counts from the beginning of *each call*, every new token gets the first position again.
# </details>
#
# ## Where we are

# %%
from collections import Counter
from statistics import mean

import torch
from einops import rearrange

from minipali import figures, generate, load, scenes
from minipali.checks import reveal
from minipali.swap import put, swap

model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **build** attention in which groups of query heads share keys and values,
# 2. **find** the mistake that no shape shows, and that with one shared head nobody can see,
# 3. **weigh** what sharing saves in bytes against what it costs in answers.
#
# Time: 55 minutes. You need: heads (lesson 03), rotation (07), the cache (08).
#
# ## Predict
#
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. PaliGemma 3B has 18 layers. For each token the cache keeps, in each layer, one key and one value
#    of 256 numbers: 18,432 bytes with 2 bytes a number. How many would it be if each of the eight heads
#    that ask had a key and a value of its own?
# 2. In the small model we hand out the two shared heads in a wrong order. The picture has a dog on the
#    left. Which answer goes wrong, that to *what is on the left?* or that to *is there a dog?* Write
#    `"left"` or `"dog"`.
# 3. We replace the two shared heads by their average. Before, the model answers about 85 of 100
#    questions right. How many after?

# %%
guess_bytes, guess_question, guess_average = ..., ..., ...

# %% [markdown]
# ## By hand: two books for four readers
#
# A head of keys and values, a **KV head**, is like a book, and query heads are readers. In
# **multi-head** attention each reader has a book. In **multi-query** attention all readers share one.
# **Grouped-query** attention is between the two: neighbours share.

# %%
together = {"multi-head": [0, 1, 2, 3], "grouped-query": [0, 0, 1, 1], "multi-query": [0, 0, 0, 0]}
figures.gqa.sharing({**together, "grouped, in another order": [0, 1, 0, 1]})

# %% [markdown]
# One token, and heads of one number. Book A has the key 3, book B the key -1. The queries of the four
# readers are 1, 2, 1, 2. A score is query times key. On paper: the four scores in the right order
# A A B B, and in the order A B A B.

# %%
books, readers = torch.tensor([3, -1]), torch.tensor([1, 2, 1, 2])
for name, dealt in {"A A B B": [0, 0, 1, 1], "A B A B": [0, 1, 0, 1]}.items():
    print(f"{name}: keys {books[dealt].tolist()}, scores {(readers * books[dealt]).tolist()}")

# %% [markdown]
# Readers 0 and 3 have the right book in both orders. Only 1 and 2 are wrong. And with **one** book
# both orders are A A A A. Whoever tests with the weights of PaliGemma 3B can make this mistake and
# never know. That is why our small model has two KV heads.
#
# ## Build: repeat_kv
#
# Attention multiplies each query head with a key head. So we copy each KV head as often as it has
# readers: (b, g, s, k) comes in, with g KV heads, and (b, g * times, s, k) goes out.
#
# **Write it now**: [exercise 09](../exercises/09_gqa.ipynb), part 1. Two results: the heads A, B with
# `times` = 3 become A A A B B B; a single head with `times` = 8 becomes eight equal heads. Then open
# the cell below.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def repeat_kv(x, times):
    """(b, g, s, k) -> (b, g * times, s, k), the copies of a head side by side."""
    b, g, s, k = x.shape
    copies = x[:, :, None].expand(b, g, times, s, k)  # the same memory, seen several times
    return copies.reshape(b, g * times, s, k)  # now copied, unless there is only one head


# %% [markdown]
# The copies get an axis of their own **right behind** the heads, and then the two axes become one. In
# einops that is `b g s k -> b (g times) s k`. In such brackets the left axis moves slowly and the
# right one fast: all copies of head 0, then all copies of head 1.
#
# ## Build: the whole attention
#
# Query head $i$ reads KV head $\lfloor i / r \rfloor$, where $r$ is the number of query heads divided
# by the number of KV heads:
#
# $$\text{head}_i = \text{softmax}\!\left(\frac{Q_i\, K_{\lfloor i/r \rfloor}^{\top}}{\sqrt{k}} +
# \text{mask}\right) V_{\lfloor i/r \rfloor}$$
#
# All else is lesson 03 with three changes: rotation (lesson 07), a cache (08), and no biases. Two
# things need care.
#
# - **Order**: first rotate, then remember, then repeat. The cache holds rotated keys of the few KV
#   heads. To store the copies would lose what sharing saves.
# - **Widths**: the queries are `heads * k` wide. That need not be the width `d` of the model. The last
#   matrix maps back from `heads * k` to `d`.
#
# **Write it now**: exercise 09, part 2. You get `rotate` and `remember` as functions. Two results
# to hold yours against. One token, x = (5, 7), heads of one number, four query heads, two KV heads,
# and both functions give back what they get. The value matrix is the identity, so the values are 5
# and 7. With a single key each softmax is 1, so the four heads give 5, 5, 7, 7, whatever the queries
# are. If the last matrix has the rows (1, 1, 0, 0) and (0, 0, 1, 1), the result is (10, 14). With the
# rows (1, 0, 0, 0) and (0, 1, 0, 0) it is (5, 5). Then open the cell.

# %% jupyter={"source_hidden": true} tags=["hide-input"]
import torch.nn.functional as F

from minipali.attention import attend


def grouped_query_attention(
    x, q_weight, k_weight, v_weight, o_weight, heads, kv_heads, rotate, remember, mask
):
    """(b, t, d) -> (b, t, d)."""
    query = rearrange(F.linear(x, q_weight), "b t (h k) -> b h t k", h=heads)
    key = rearrange(F.linear(x, k_weight), "b t (g k) -> b g t k", g=kv_heads)
    value = rearrange(F.linear(x, v_weight), "b t (g k) -> b g t k", g=kv_heads)
    key, value = remember(rotate(key), value)  # of everything so far: (b, g, s, k)
    times = heads // kv_heads
    mixed = attend(rotate(query), repeat_kv(key, times), repeat_kv(value, times), mask)
    return F.linear(rearrange(mixed, "b h t k -> b t (h k)"), o_weight)


# %% [markdown]
# The two results by hand, and the four matrices of the first layer of our model. A shape is (out, in).
# The model is 128 wide, and its queries are 4 x 48 = 192 wide.

# %% tags=["nbval-check-output"]
x, ones, eye = torch.tensor([[[5.0, 7.0]]]), torch.ones(4, 2), torch.eye(2)
same = (lambda y: y), (lambda key, value: (key, value))  # rotate, remember
for last in ([[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 0, 0, 0], [0, 1, 0, 0]]):
    last = torch.tensor(last).float()
    out = grouped_query_attention(x, ones, ones[:2], eye, last, 4, 2, *same, None)
    print(out.flatten().tolist())
layer = model.language_model.layers[0].self_attn
print({name: tuple(weight.shape) for name, weight in layer.named_parameters()})

# %% [markdown]
# ## Break it: A B A B
#
# We put the other order into the trained model. (`put` is `swap` without the comparison, for mistakes
# that we make on purpose.) Then we ask about one picture.


# %%
def tile(x, times):
    return x.repeat(1, times, 1, 1)  # all heads, and then all heads again


tiled = put(model, repeat_kv=tile)

# %%
picture, wrong = scenes.examples()["dog_and_car_test_artist"], []
asked = {
    "left": "what is on the left?",
    "": "what colour is the background?",
    "dog": "is there a dog?",
}
for short, question in asked.items():
    told = [generate(m, processor, picture, f"answer en {question}") for m in (model, tiled)]
    print(f"{question:32} trained: {told[0]:6} A B A B: {told[1]}")
    wrong += [short] * (told[0] != told[1])
reveal("the question that goes wrong", guess_question, ", ".join(wrong))

# %% [markdown]
# It says that the thing on the left is a dog, and denies that there is a dog. One picture can be
# luck. So we measure: 50 new questions of each of six kinds, about drawings of an artist whom the
# model never saw in training. The vision tower looks at each picture once, for all models.

# %%
from minipali.evaluation import evaluation_set
from minipali.generation import token_steps

TASKS = ("naming", "background", "places", "counting", "counting NAME", "yes/no")
asked = evaluation_set(scenes.VALIDATION_ARTIST, 50, 7, TASKS)
prompts = [processor.prompt_ids(question.prompt) for _, question in asked]
exam = processor.pad(prompts, [[]] * len(asked))
with torch.no_grad():
    exam["image_features"] = model.image_features(scenes.pixel_values([one for one, _ in asked]))


# %%
def by_task(told):
    """Right answers in percent, for each task."""
    same = [one == question.answer for one, (_, question) in zip(told, asked, strict=True)]
    return (100 * torch.tensor(same).float().view(len(TASKS), -1).mean(dim=1)).tolist()


# %%
def right(which):
    rows = torch.stack(list(token_steps(which, exam, max_new_tokens=4)), dim=1)
    return by_task([processor.decode(row) for row in rows.tolist()])


# %% [markdown]
# Whoever always gives the commonest answer of a task is right sometimes, too. That is the line to
# compare with.

# %%
rows, usual = {"as trained": right(model), "A B A B": right(tiled)}, []
for task in TASKS:
    usual += Counter(q.answer for _, q in asked if q.task == task).most_common(1) * 50
rows["commonest answer"] = by_task([word for word, _ in usual])
figures.gqa.by_task(rows, TASKS)

# %% [markdown]
# Naming, background and places lose a few points, counting loses more. But where the question
# *names* a thing (*how many dogs*, *is there a dog*), the model is no better than the commonest
# answer. Whoever tests with *what is this?* alone will not find this mistake.
#
# ## See it: what the two KV heads hold
#
# We silence one at a time: its keys and values become 0 in all layers, and its two readers then add
# nothing.

# %%
for name, factors in {"A": [0.0, 1.0], "B": [1.0, 0.0]}.items():
    each = torch.tensor(factors)[:, None, None]  # one for each KV head
    muted = put(model, repeat_kv=lambda x, times, each=each: repeat_kv(each * x, times))
    rows[f"{name} silenced"] = right(muted)
figures.gqa.by_task({name: row for name, row in rows.items() if name != "A B A B"}, TASKS)

# %% [markdown]
# Nobody told the two heads to divide the work, and yet they did. Without A the model still knows the
# colour of the background, but it cannot count. Without B it still names and counts, and has lost the
# colour. This is one model from one training. Another one may divide the work in another way, or not
# at all.
#
# ## See it: from two KV heads to one
#
# Ainslie et al. (2023) did not train their grouped models from nothing. They took a multi-head model
# and **averaged** the heads of each group: the matrices that make keys and values. In `mix` each new
# head has a row, which says how much it takes of each old one.

# %%
from dataclasses import replace

from minipali.paligemma import PaliGemma


def converted(mix):
    """The trained model with other KV heads; mix: (new heads, old heads)."""
    text = replace(model.config.text, num_key_value_heads=len(mix))
    new, weights = PaliGemma(replace(model.config, text=text)).eval(), model.state_dict()
    for name, weight in weights.items():
        if name.startswith("language_model") and ("k_proj" in name or "v_proj" in name):
            heads = rearrange(weight, "(g k) d -> g k d", g=2)
            heads = torch.einsum("ng,gkd->nkd", torch.tensor(mix), heads)
            weights[name] = rearrange(heads, "n k d -> (n k) d")
    new.load_state_dict(weights)
    return new


A, B, MEAN = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]

# %% [markdown]
# The way up is exact: `[A, A, B, B]` is a multi-head model that computes what ours does. The way
# down, `[MEAN]`, loses something. And does one KV head really hide the wrong order? We put it in.

# %%
single = converted([MEAN])
swap(single, repeat_kv=tile)
print(f"right in percent, as trained: {mean(rows['as trained']):.0f}")
reveal("right in percent, with the average", guess_average, round(mean(right(single))))
maps = [one.self_attn.k_proj.weight.view(2, -1) for one in model.language_model.layers]
print("cosine of A and B:", [f"{F.cosine_similarity(*one, dim=0):.2f}" for one in maps])

# %% [markdown]
# *Correct*: every layer agrees, whatever the order. This is how the mistake hides.
#
# The average answers badly. The two key matrices are not alike at all (a cosine near 0), so their
# average is neither of them. Ainslie et al. trained their averaged models on, with 5 % of the
# computing of the first training, and came close to the old quality. The first optional part below
# does so in thirty steps.
#
# ## See it: what sharing saves
#
# The first question of *Predict* is a product. How much is that for a picture and 64 tokens of text?

# %%
from minipali.config import preset


def megabytes(tokens, layers, kv_heads, k=256):
    return 2 * layers * kv_heads * k * 2 * tokens / 1e6


# %%
reveal("bytes of one token", guess_bytes, round(1e6 * megabytes(1, layers=18, kv_heads=8)))
heads, lines, gemma, gemma2 = [1, 2, 4, 8], {}, [], []
for side in (224, 448, 896):
    tokens = preset(f"paligemma-3b-{side}").vision.num_patches + 64
    lines[f"{side} px"] = [megabytes(tokens, 18, g) for g in heads]
    gemma.append((1, megabytes(tokens, 18, 1)))
    gemma2.append((4, megabytes(tokens, 26, 4)))
figures.gqa.cache_size(heads, lines, {"PaliGemma 3B": gemma, "PaliGemma 2 3B": gemma2})

# %% [markdown]
# Each line is PaliGemma 3B as it would be with more KV heads; the filled circles are the real one.
# The diamonds are PaliGemma 2 3B, with 26 layers and 4 KV heads. So one KV head is cheapest, but not
# everyone's choice. The authors of Gemma found that one works well at small scale, and gave their
# 7B model 16 KV heads for 16 query heads.
#
# ## Check
#
# Our sharing against torch, with a mask and more keys than queries. (`enable_gqa` lets torch share the
# heads itself.) Our attention against the package's. Then the conversions, as whole models.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
q, k, v = torch.randn(3, 6, 4, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
mask = torch.rand(3, 1, 4, 9) < 0.6
mask[..., 0] = True
expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
ours = attend(q, repeat_kv(k, 3), repeat_kv(v, 3), mask)
print("repeated:", torch.allclose(ours, expected, atol=1e-5))

# %% tags=["nbval-check-output"]
from minipali.rope import apply_rope, rope_angles

angles, x = rope_angles(torch.arange(1, 8).expand(2, -1), 48), torch.randn(2, 7, 128)
weights = [layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight, layer.o_proj.weight]
rotate, remember = (lambda y: apply_rope(y, *angles)), (lambda key, value: (key, value))
ours = grouped_query_attention(x, *weights, 4, 2, rotate, remember, None)
print("attention:", torch.allclose(ours, layer(x, angles, None), atol=1e-4))
batch = processor(picture, "caption en")
with torch.inference_mode():
    want, other = (one(**batch) for one in (model, tiled))
    print("A A B B:  ", torch.allclose(converted([A, A, B, B])(**batch), want, atol=1e-3))
    print("A B A B:  ", torch.allclose(converted([A, B, A, B])(**batch), other, atol=1e-3))

# %% [markdown]
# ## In the real model
#
# To write one token, the decoder reads all its weights once, and the cache once for each text that
# it works on.

# %% tags=["nbval-check-output"]
with torch.device("meta"):  # shapes without content
    real = PaliGemma(preset("paligemma-3b-896"))
text, weights = real.config.text, sum(p.numel() for p in real.language_model.parameters())
print(f"weights of the decoder: {2 * weights / 1e9:.2f} GB in bfloat16")
for g in (1, 8):
    maps = 2 * text.num_hidden_layers * text.hidden_size * g * text.head_dim
    print(f"{g} KV head{'s' * (g > 1)}: {maps / 1e6:.0f} million weights for keys and values")
    for side in (224, 896):
        tokens = preset(f"paligemma-3b-{side}").vision.num_patches + 64
        size = megabytes(tokens, text.num_hidden_layers, g)
        share = size / (2 * weights / 1e6)
        print(
            f"   {side} px: {size:5.1f} MB, {share:6.2%} of the weights; 100% at {1 / share:.0f} texts"
        )

# %% [markdown]
# For one text and a small picture the cache is next to nothing beside the weights, and so is all that
# one can save in it. Sharing pays where contexts are long, and where many texts are written at once, as
# on a server. With eight KV heads and 896 pixels, eight texts would read as much cache as weights.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: thirty steps of training on
#
# Is the average useless, or nearly there? We train on for 30 steps of 16 questions, about drawings by
# the training artists. Only the decoder's attention learns. Beside the mean we start from A alone, from
# B alone, and from random keys and values. (Lesson 13 explains the loss and the loop.)

# %%
import numpy as np

from minipali.recipe import SHORT, questions, training_scenes
from minipali.training import fit, suffix_loss

rng, course = np.random.default_rng(0), []
for _ in range(30):
    made = training_scenes(rng, 16, strength=1.0, progress=1.0)
    pairs = list(questions(rng, made, SHORT, 1))
    ends = [processor.encode(q.answer) + [model.config.eos_token_id] for q in pairs]
    batch = processor.pad([processor.prompt_ids(q.prompt) for q in pairs], ends, side="right")
    with torch.no_grad():
        batch["image_features"] = model.image_features(scenes.pixel_values(made))
    course.append((batch.pop("labels"), batch))


# %%
def train(which):
    """The loss of each step; only attention learns."""
    which.requires_grad_(False)
    parts = [p for layer in which.language_model.layers for p in layer.self_attn.parameters()]
    adam = torch.optim.Adam([p.requires_grad_() for p in parts], lr=1e-3)

    def step_loss(step):
        labels, batch = course[step]
        return suffix_loss(which.language_model.logits(which.hidden_states(**batch)), labels)

    return fit(which, step_loss, len(course), [adam], warmup=0, decay=0)


starts = {"mean": converted([MEAN]), "A alone": converted([A]), "B alone": converted([B])}
starts["random"] = converted([A])
torch.manual_seed(0)
for one in starts["random"].language_model.layers:
    for part in (one.self_attn.k_proj, one.self_attn.v_proj):
        torch.nn.init.normal_(part.weight, std=128**-0.5)

# %%
before = {name: mean(right(one)) for name, one in starts.items()}
losses = {name: train(one) for name, one in starts.items()}
scores = {name: (before[name], mean(right(one))) for name, one in starts.items()}
figures.gqa.repaired(losses, scores, whole=mean(rows["as trained"]))

# %% [markdown]
# Thirty steps, where the first training took 6,000. The average looked ruined, and it was nearly there.
# In this one run random keys and values stay far behind. The other three starts lie closer together:
# with 300 questions each number is uncertain by 4 to 6 points, and another run would give others. Ainslie
# et al. compared the same three kinds of start in a large text model, and found the mean better than
# one of the heads or a random start.
#
# Be careful with the speed. Our questions are easy, and these are the short ones alone. Boxes and
# captions were neither trained here nor measured.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: without copies
#
# Copies cost time and memory, and they are not needed. All readers of a book can read at once. For
# KV head A, put the queries of its readers **below each other**, as if they were more tokens: `r`
# heads of `t` queries become one head of `r * t` rows. Attention never mixes rows, so nothing else
# changes. Afterwards we take the rows apart again. The package does the same.


# %%
def attend_folded(query, key, value, mask=None):
    """(b, h, t, k) with keys and values (b, g, s, k), not repeated -> (b, h, t, k)."""
    g, t = key.shape[1], query.shape[2]
    rows = rearrange(query, "b (g r) t k -> b g (r t) k", g=g)
    if mask is not None:
        mask = mask.repeat(1, 1, query.shape[1] // g, 1)  # (b, 1, r * t, s)
    return rearrange(attend(rows, key, value, mask), "b g (r t) k -> b (g r) t k", t=t)


print("folded:", torch.allclose(attend_folded(q, k, v, mask), expected, atol=1e-5))

# %% [markdown]
# Note the pattern `(g r)`: in the number of a query head the KV head moves slowly. With `(r g)` we would
# be back at A B A B. For the mask, `repeat` is right for once: in `(r t)` the tokens move fast, and the
# whole mask comes again for each reader.
#
# When the model writes, there is one new token and a long cache. The four ways below multiply **equally
# often**, and differ in what they read and write: eight KV heads; one, copied eight times; one, in our
# `repeat_kv` (with a single head torch need not copy, and reads it eight times); and one, read once by
# eight folded queries. One layer of the size of the 3B model, in float32, best of five runs.

# %%
import time


def best(attention, q, k, v):
    """Milliseconds."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        attention(q, k, v)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


ways = {
    "copied": lambda q, k, v: attend(q, *(one.repeat_interleave(8, dim=1) for one in (k, v))),
    "repeat_kv": lambda q, k, v: attend(q, repeat_kv(k, 8), repeat_kv(v, 8)),
    "folded": attend_folded,
}

# %%
for tokens in (256, 1024, 4096):
    q, own = torch.randn(1, 8, 1, 256), torch.randn(2, 1, 8, tokens, 256)
    ms = {"8 KV heads": best(attend, q, *own)}
    ms |= {name: best(way, q, *own[:, :, :1].contiguous()) for name, way in ways.items()}
    told = ", ".join(f"{name} {one:.2f} ms" for name, one in ms.items())
    print(f"{tokens:4} tokens: {told}; copied / folded = {ms['copied'] / ms['folded']:.0f}")

# %% [markdown]
# Trust the ratios, not the times, and expect others on your machine. Copying tends to be slower even
# than eight real KV heads: it writes all that they would have to read, and then reads it. Beside the
# weights of a whole model all this is small as long as the cache is: see the shares in the part before.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the same step in other programs
#
# - torch has a function for our `repeat_kv`: `repeat_interleave`. Its `repeat` goes through all heads
#   and starts again. NumPy has both under other names: what torch calls `repeat_interleave` is `repeat`
#   there, and torch's `repeat` is `tile`. The names mislead even experts: a pull request to the ONNX
#   standard (onnx/onnx#7274, in 2025) replaces a tile by a repeat_interleave in just this place.
# - Some programs *add* a mask of 0 and minus infinity, and some fill minus infinity in. It is the same.
# - Many take the softmax in float32 and cast back, because bfloat16 has too few digits for a sum of
#   many weights.
# - Some set a share of the weights to 0 at random in training (*dropout*). Gemma's share is 0, so we
#   leave it out.

# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/09_gqa.ipynb). At its end the trained model answers
# with your `repeat_kv` and your whole attention inside. It has one piece more that no cell of this
# lesson shows.
#
# ## Take away
#
# - Query heads share keys and values in groups of neighbours: query head `i` reads KV head
#   `i // group`. Repeat A A B B, and never A B A B.
# - With one KV head the order cannot be tested. With two, in our model, only some questions show it.
# - Sharing makes the cache smaller in proportion. A trained model can be taken to fewer KV heads by
#   averaging and a little more training.
#
# **Self-test**
#
# <details><summary>A model has 32 query heads and 8 KV heads. Which KV head does query head 13 read?
# Which one in the order A B C ... A B C ...?</summary>
#
# 32 / 8 = 4 readers a book, and 13 // 4 = 3: the fourth one, number 3. In the other order 13 % 8 = 5.
# </details>
#
# <details><summary>Which of the four matrices become smaller with fewer KV heads?</summary>
#
# Those of keys and values. The queries and the last map keep their size: there are as many query
# heads as before.
# </details>
#
# <details><summary>You repeat the heads first and store the copies in the cache. Are the answers
# wrong?</summary>
#
# No. But the cache is as large as with multi-head attention, and every step reads all of it.
# </details>
#
# **Sources.** Multi-query attention: Shazeer 2019, arXiv 1911.02150. Grouped-query attention,
# averaging and training on: Ainslie et al. 2023, arXiv 2305.13245. The heads of Gemma: Gemma Team
# 2024, arXiv 2403.08295, its section on the model's architecture. PaliGemma 2: Steiner et al. 2024,
# arXiv 2412.03555.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the width must be a multiple of the number of heads (an `assert`) | the queries are heads x head_dim wide, whatever the width is: 192 and 128 in our small model, 2048 and 2304 in PaliGemma 2 3B. What must divide is query heads by KV heads |
# | the values that are multiplied with the weights have `Num_Heads_KV` heads (a comment) | after `repeat_kv` they have as many heads as the queries |
# | `is_causal = True` | nothing reads it. Who may see whom is said by the mask, and in PaliGemma the picture and the question see each other in both directions (lesson 11) |
# | the weights tell which pair of image and text has the higher score | they tell, for one text and its picture, how much each token takes from each other one. Pairs of images and texts are compared in the contrastive training of lesson 05 |
