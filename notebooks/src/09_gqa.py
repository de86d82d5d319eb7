# %% [markdown]
# # 09 · Grouped-query attention: heads that share
#
# The cache of lesson 08 makes decoding fast, and then it fills the memory. How much it holds depends
# on one number: how many heads have keys and values of their own. PaliGemma 3B has eight query heads
# and **one** head of keys and values, which all eight read. Our small model has four and two. This
# lesson builds such sharing, breaks it in a way that only shows in some questions, and takes a
# trained model from two shared heads to one.
#
# ## Where we are

# %%
import torch
from einops import rearrange

from minipali import figures, generate, load, scenes
from minipali.swap import swap

model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **build** attention in which groups of query heads share keys and values,
# 2. **find** the mistake that no shape shows, and that with one shared head nobody can see,
# 3. **weigh** what sharing saves (bytes, time) against what it costs (answers).
#
# Time: 40 minutes. You need: heads (lesson 03), rotation (07), the cache (08).
#
# ## Predict
#
# - PaliGemma 3B reads a picture of 896 pixels: 4096 image tokens. It has 18 layers, one head of keys
#   and values with 256 numbers, and 2 bytes a number. How many bytes of cache is that? How many
#   if all eight query heads had their own keys and values?
# - In our small model we deal the two shared heads out in a wrong order. The picture has a dog on
#   the left. Which answer goes wrong: *what is on the left?* or *is there a dog?*
# - We replace the two shared heads by their average. The model was trained with 6,000 steps. How many
#   more does it need until it answers as before?
#
# ## By hand: two books for four readers
#
# We call a head of keys and values a **KV head**. It is like a book, and query heads are readers.
# In **multi-head** attention each reader has a book. In **multi-query** attention all readers share
# one. **Grouped-query** attention is between the two: neighbours share. Four readers and two books,
# A and B: readers 0 and 1 read A, readers 2 and 3 read B.
#
# Now with numbers, one token and heads of one number. Book A has the key 3, book B has the key -1.
# The queries of the four readers are 1, 2, 1, 2. A score is query times key. On paper: the four
# scores in the right order A A B B, and in the wrong order A B A B.

# %%
together = {"multi-head": [0, 1, 2, 3], "grouped-query": [0, 0, 1, 1], "multi-query": [0, 0, 0, 0]}
figures.gqa.sharing({**together, "grouped, in a wrong order": [0, 1, 0, 1]})

# %%
books, readers = torch.tensor([3, -1]), torch.tensor([1, 2, 1, 2])
for name, dealt in {"A A B B": books.repeat_interleave(2), "A B A B": books.repeat(2)}.items():
    print(f"{name}: keys {dealt.tolist()}, scores {(readers * dealt).tolist()}")
print("one book:", books[:1].repeat_interleave(4).tolist(), books[:1].repeat(4).tolist())

# %% [markdown]
# Two things to keep. Readers 0 and 3 have the right book in both orders; only 1 and 2 are wrong. And
# with **one** book, the two orders are the same list. Whoever tests with the weights of PaliGemma 3B
# can make this mistake and never know. That is why our small model has two KV heads.
#
# ## Build: repeat_kv
#
# Attention multiplies each query head with a key head, so we copy each KV head as often as it has
# readers. torch calls the right way `repeat_interleave`: each element `times` times, then the next.
# `repeat`, which NumPy calls `tile`, goes through all heads and starts again. The names mislead even
# experts: what torch calls `repeat_interleave`, NumPy calls `repeat`. A pull request to the ONNX
# standard (onnx/onnx#7274, in 2025) replaces a tile by a repeat_interleave in just this place.
#
# Without a special function: give the copies an axis of their own **right behind** the heads, and
# join the two. In einops: `b g s k -> b (g times) s k`. What stands left in the brackets moves slowly.


# %%
def repeat_kv(x, times):
    """(b, g, s, k) -> (b, g * times, s, k), the copies of a head side by side."""
    b, g, s, k = x.shape
    copies = x[:, :, None].expand(b, g, times, s, k)  # the same memory, seen several times
    return copies.reshape(b, g * times, s, k)  # now copied, unless there is only one head


# %% [markdown]
# ## Build: the whole attention
#
# It is the attention of lesson 03 with four changes: fewer KV heads, rotation (lesson 07), a
# cache (08), and no biases. Read it with an eye on **order** and on **widths**.
#
# - First rotate, then remember, then repeat. The cache holds rotated keys of the few KV heads. To
#   store the copies would give away all that sharing saves.
# - `remember` returns the keys and values of *everything so far*. So there can be more keys than
#   queries: `s` and `t` differ.
# - `heads * k` is the width of all queries. It need not be the width `d` of the model. `o_proj` maps
#   back from `heads * k` to `d`.
#
# `attend` is the one of lesson 03: scores over sqrt(k), mask, softmax, average. Some programs *add* a
# mask of 0 and minus infinity instead of filling in. That is the same. Many take the softmax in
# float32 and cast back, because bfloat16 has too few digits for a sum of many weights. And some drop
# a share of the weights at random in training (*dropout*). Gemma's rate is 0, so we leave it out.
#
# The second cell runs it in the first layer of the trained decoder, without a cache. Mind the widths.

# %%
from minipali.attention import attend
from minipali.rope import apply_rope, rope_angles


def grouped_query_attention(x, layer, rotate, remember, mask):
    """(b, t, d) -> (b, t, d)."""
    query = rearrange(layer.q_proj(x), "b t (h k) -> b h t k", h=layer.heads)
    key = rearrange(layer.k_proj(x), "b t (g k) -> b g t k", g=layer.kv_heads)
    value = rearrange(layer.v_proj(x), "b t (g k) -> b g t k", g=layer.kv_heads)
    key, value = remember(rotate(key), value)  # of everything so far: (b, g, s, k)
    group = layer.heads // layer.kv_heads
    mixed = attend(rotate(query), repeat_kv(key, group), repeat_kv(value, group), mask)
    return layer.o_proj(rearrange(mixed, "b h t k -> b t (h k)"))


# %%
layer, x = model.language_model.layers[0].self_attn, torch.randn(2, 7, 128)
angles = rope_angles(torch.arange(1, 8).expand(2, -1), 48)
steps = (lambda y: apply_rope(y, *angles)), (lambda key, value: (key, value))  # rotate, remember
ours = grouped_query_attention(x, layer, *steps, mask=None)
print({name: tuple(weight.shape) for name, weight in layer.named_parameters()})
print(tuple(ours.shape), torch.allclose(ours, layer(x, angles, None), atol=1e-4))

# %% [markdown]
# A shape is (out, in). The model is 128 wide and its queries are 4 x 48 = 192 wide. Nothing has to
# divide 128. What must divide is the number of query heads by the number of KV heads: 4 by 2.
#
# ## Build: without copies
#
# Copies cost time and memory, and they are not needed. All readers of a book can read at once. For
# KV head A, put the queries of its readers **below each other**, as if they were more tokens: `r`
# heads of `t` queries become one head of `r * t` rows. Attention never mixes rows, so nothing else
# changes. Afterwards we take the rows apart again.


# %%
def attend_folded(query, key, value, mask=None):
    """(b, h, t, k) with keys and values (b, g, s, k), not repeated -> (b, h, t, k)."""
    g, t = key.shape[1], query.shape[2]
    rows = rearrange(query, "b (g r) t k -> b g (r t) k", g=g)
    if mask is not None:
        mask = mask.repeat(1, 1, query.shape[1] // g, 1)  # (b, 1, r * t, s)
    return rearrange(attend(rows, key, value, mask), "b g (r t) k -> b (g r) t k", t=t)


# %% [markdown]
# Note the pattern `(g r)`: the number of a query head counts the book slowly and the reader fast. With
# `(r g)` we would be back at A B A B. For the mask, `repeat` is right for once: in `(r t)` the tokens
# run fast, and the whole mask comes again for each reader.
#
# ## Break it: A B A B
#
# We put the wrong order into the trained model. `swap` says where the numbers change first. Then we
# ask about one picture. Remember your guess: which answer goes wrong?


# %%
def tile(x, times):
    return x.repeat(1, times, 1, 1)


tiled = swap(model, repeat_kv=tile)

# %%
picture = scenes.examples()["dog_and_car_test_artist"]
for question in ("what is on the left?", "what colour is the background?", "is there a dog?"):
    prompt = f"answer en {question}"
    told = [generate(one, processor, picture, prompt) for one in (model, tiled)]
    print(f"{question:32} trained: {told[0]:6} wrong order: {told[1]}")

# %% [markdown]
# It says that the thing on the left is a dog, and denies that there is a dog. One picture can be
# luck. So we measure: 50 new questions of each of six kinds, about drawings of an artist whom the
# model never saw in training. The vision tower does not change in this lesson, so it looks at each
# picture once, and all models get the same features.

# %%
from minipali.evaluation import evaluation_set
from minipali.generation import token_steps


def prepared(pairs, answered=False):
    """Questions about scenes as a batch; answered: with the answers, for training."""
    eos = [model.config.eos_token_id]
    ends = [processor.encode(question.answer) + eos for _, question in pairs]
    prompts = [processor.prompt_ids(question.prompt) for _, question in pairs]
    batch = processor.pad(prompts, ends if answered else [[] for _ in pairs], side="right")
    pixels = scenes.pixel_values([scene for scene, _ in pairs])
    with torch.no_grad():
        return {**batch, "image_features": model.image_features(pixels)}


def ask(which):
    """The model's answers to all questions of the exam."""
    rows = torch.stack(list(token_steps(which, exam, max_new_tokens=4)), dim=1)
    return [processor.decode(row) for row in rows.tolist()]


# %%
TASKS = ("naming", "background", "places", "counting", "counting NAME", "yes/no")
asked = evaluation_set(scenes.VALIDATION_ARTIST, 50, 7, TASKS)
exam = prepared(asked)


def right(told):
    """Right answers in percent, for each task."""
    same = [one == question.answer for one, (_, question) in zip(told, asked, strict=True)]
    return (100 * torch.tensor(same).float().view(len(TASKS), -1).mean(dim=1)).tolist()


# %%
trained, of_tiled = right(ask(model)), ask(tiled)
for task in ("counting NAME", "yes/no"):
    told = [one for one, (_, q) in zip(of_tiled, asked, strict=True) if q.task == task]
    denied = sum(one in ("no", "0") for one in told)
    print(f"{task}: 'no' or '0' in {denied} of {len(told)} answers")
figures.gqa.by_task({"as trained": trained, "wrong order": right(of_tiled)}, TASKS)

# %% [markdown]
# Naming, background and places lose a few points, counting loses more. But whenever the question
# *names* a thing (*how many dogs*, *is there a dog*), the model answers as if the thing were not there.
# About half of the yes/no questions have the answer *no*, so it still gets those right.
#
# Think of how you would have tested. *What is this?* on a few pictures: fine. *What is on the left?*
# Fine. This mistake does not spoil everything a little. It takes some abilities and leaves others.
#
# ## See it: what the two KV heads hold
#
# So what does each book contain? We silence one at a time: its keys and values become 0 in all
# layers, and its two readers then add nothing.


# %%
rows = {"as trained": trained}
for name, factors in {"A": [0.0, 1.0], "B": [1.0, 0.0]}.items():
    each = torch.tensor(factors)[:, None, None]  # one for each KV head
    muted = swap(model, repeat_kv=lambda x, times, each=each: repeat_kv(each * x, times))
    rows[f"{name} silenced"] = right(ask(muted))
figures.gqa.by_task(rows, TASKS)

# %% [markdown]
# Nobody told the two heads to divide the work, and yet they did. Without A the model still knows the
# colour of the background, but it cannot count, and a thing is named right far less often. Without B
# it still names and counts, and has lost the colour. Questions that name a thing suffer from both.
#
# This is one model from one training. Another one may divide the work in another way, or not at all.
#
# ## See it: from two KV heads to one
#
# Ainslie et al. (2023) did not train their grouped models from nothing. They took a multi-head model
# and **averaged** the heads of each group: the matrices that make keys and values. Then they trained
# on, with 5 % of the computing that the first training took. We do the same. Each new KV head is a
# mixture of the old ones, so a small matrix says it all: a row for each new head, a column for each
# old one.
#
# The way up is exact: `[A, A, B, B]` is a multi-head model with four KV heads that computes just what
# ours does. A grouped-query model *is* a multi-head model in which heads are equal. The way down,
# `[MEAN]`, loses something. And with one KV head we can keep a promise: put the wrong order in.

# %%
from dataclasses import replace
from statistics import mean

import torch.nn.functional as F

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

# %%
single = converted([MEAN])
swap(single, repeat_kv=tile)
print(f"right: as trained {mean(trained):.0f} %, with the average {mean(right(ask(single))):.0f} %")
maps = [layer.self_attn.k_proj.weight.view(2, -1) for layer in model.language_model.layers]
print("cosine of A and B:", [round(F.cosine_similarity(*one, dim=0).item(), 2) for one in maps])

# %% [markdown]
# *Correct*: every layer agrees, whatever the order. This is how the mistake hides.
#
# And the average answers badly. The two key matrices are not alike at all (a cosine near 0), so their
# average is neither of them. Is it a useless start, then? We train on for 30 steps of 16 questions,
# about drawings by the training artists. Only the decoder's attention learns. Beside the mean we
# start from A alone, from B alone, and from random keys and values.

# %%
import numpy as np

from minipali.recipe import SHORT, questions, training_scenes
from minipali.training import fit, suffix_loss


def train(which):
    """The loss of each step; only attention learns."""
    which.requires_grad_(False)
    parts = [p for layer in which.language_model.layers for p in layer.self_attn.parameters()]
    adam = torch.optim.Adam([p.requires_grad_() for p in parts], lr=1e-3)

    def step_loss(step):
        labels, batch = course[step]
        return suffix_loss(which.language_model.logits(which.hidden_states(**batch)), labels)

    return fit(which, step_loss, len(course), [adam], warmup=0, decay=0)  # the loop of lesson 13


# %%
rng, course = np.random.default_rng(0), []
for _ in range(30):
    made = training_scenes(rng, 16, strength=1.0, progress=1.0)
    pairs = list(zip(made, questions(rng, made, SHORT, 1), strict=True))
    batch = prepared(pairs, answered=True)
    course.append((batch.pop("labels"), batch))

# %%
starts = {"mean": converted([MEAN]), "A alone": converted([A]), "B alone": converted([B])}
starts["random"] = converted([A])
torch.manual_seed(0)
for layer in starts["random"].language_model.layers:
    for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
        torch.nn.init.normal_(part.weight, std=128**-0.5)

# %%
before = {name: mean(right(ask(one))) for name, one in starts.items()}
losses = {name: train(one) for name, one in starts.items()}
scores = {name: (before[name], mean(right(ask(one)))) for name, one in starts.items()}
figures.gqa.repaired(losses, scores, whole=mean(trained))

# %% [markdown]
# Thirty steps! The average looked ruined, and it was nearly there. With 300 questions each number is
# uncertain by 4 to 6 points, so do not rank what lies closer together than that. A alone stays
# behind, and random keys and values are far off. Ainslie et al. compared the same three kinds of
# start in a large text model, and found the mean better than one of the heads or a random start.
#
# Be careful with the speed, though. Our questions are easy, and these are the short ones alone. Boxes
# and captions were neither trained here nor measured.
#
# ## See it: what sharing saves
#
# For each token the cache keeps keys and values, in each layer, for each KV head. So the
# first question of *Predict* is a product: 2 x 18 layers x 1 head x 256 numbers x 2 bytes
# = 18,432 bytes a token, times the tokens. We add 64 tokens of text to those of the picture.

# %%
from minipali.config import preset


def megabytes(tokens, layers, kv_heads, k=256):
    return 2 * layers * kv_heads * k * 2 * tokens / 1e6


heads, lines, gemma, gemma2 = [1, 2, 4, 8], {}, [], []
for side in (224, 448, 896):
    tokens = preset(f"paligemma-3b-{side}").vision.num_patches + 64
    lines[f"{side} px"] = [megabytes(tokens, 18, g) for g in heads]
    gemma.append((1, megabytes(tokens, 18, 1)))
    gemma2.append((4, megabytes(tokens, 26, 4)))
figures.gqa.cache_size(heads, lines, {"PaliGemma 3B": gemma, "PaliGemma 2 3B": gemma2})

# %% [markdown]
# Each line is PaliGemma 3B as it would be with more KV heads. The filled circles are the real one.
# The diamonds are PaliGemma 2 of the same size, with 26 layers and 4 KV heads for 8 query heads. It
# spends almost six times as many bytes on a token as its predecessor. So one KV head is cheapest, but
# not everyone's choice. The authors of Gemma found that one works well at small scale, and gave their
# 7B model 16 KV heads for 16 query heads.
#
# ## See it: what sharing saves in time
#
# When the model writes, there is one new token and a long cache. All its keys and values must come
# from memory, and there is little to compute with them. The four ways below multiply **equally often**. They
# differ in what they read and write:
#
# - eight KV heads, no sharing,
# - one KV head, copied eight times by `repeat_interleave`,
# - one KV head in our `repeat_kv`: with a single head, torch need not copy, and reads it eight times,
# - one KV head, read once by eight folded queries.
#
# One layer of the size of the 3B model, in float32, best of five runs.

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


# %%
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
# Trust the ratios, not the times. On the two shared cores where we wrote this, folding was about four
# times as fast as copying at 256 tokens, and more than twenty times at 4096. Copying was even slower
# than eight real KV heads: it writes all that they would have to read, and then reads it. Your
# numbers will differ. If your ratio is near 1, believe it.
#
# And yet, when the whole 3B model writes at 224 pixels, folding saved us **3 %** of the time of a token.
# (Twelve rounds by turns, random weights of the real size, bfloat16.) The section after the next says
# why it is so little. It is free, so the package folds too.
#
# ## Check
#
# Both ways of sharing against torch, with a mask and more keys than queries. (`enable_gqa` lets torch
# share the heads itself, in the same order as we do.) Then the conversions, as whole models:
# `[A, A, B, B]` computes what ours does, and `[A, B, A, B]` what the wrong order does.

# %% tags=["nbval-check-output"]
from minipali.gqa import repeat_kv as finished

torch.manual_seed(0)
q, k, v = torch.randn(3, 6, 4, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
mask = torch.rand(3, 1, 4, 9) < 0.6
mask[..., 0] = True
expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
repeated = attend(q, repeat_kv(k, 3), repeat_kv(v, 3), mask)
print("repeated:", torch.allclose(repeated, expected, atol=1e-5))
print("folded:  ", torch.allclose(attend_folded(q, k, v, mask), expected, atol=1e-5))
print("package: ", torch.equal(repeat_kv(k, 3), finished(k, 3)))
batch = processor(picture, "caption en")
with torch.inference_mode():
    want, wrong = (one(**batch) for one in (model, tiled))
    for name, mix, other in (("A A B B", [A, A, B, B], want), ("A B A B", [A, B, A, B], wrong)):
        print(f"{name}: ", torch.allclose(converted(mix)(**batch), other, atol=1e-3))

# %% [markdown]
# ## In the real model
#
# To write one token, the decoder reads all its weights once, and the cache once for each text that
# it works on. So the share of the cache depends on how many texts are written at the same time.

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
# For one text and a small picture the cache is a rounding error beside the weights, and so is all that
# one can save in it. That is why we gained so little: at 224 pixels each of 18 layers saves a fraction of a
# millisecond, and reading the weights takes two hundred milliseconds on our machine. Sharing pays
# where contexts are long, and where many texts are written at once, as on a server. With eight KV
# heads and 896 pixels, eight texts would read as much cache as weights.
#
# ## Your turn
#
# Open [the exercise](../exercises/09_gqa.ipynb). You write `repeat_kv` and the whole attention of
# Gemma. At the end the trained model answers with both inside.
#
# ## Take away
#
# - Query heads share keys and values in groups of neighbours: query head `i` reads KV head
#   `i // group`. Repeat A A B B, or fold the readers into rows, and never A B A B.
# - With one KV head the order cannot be tested. With two, only some questions show a mistake.
# - Sharing makes the cache smaller in proportion, and saves no multiplications in the scores. A
#   trained model can be taken to fewer KV heads by averaging and a little more training.
#
# **Self-test**
#
# <details><summary>A model has 32 query heads and 8 KV heads. Which KV head does query head 13 read?
# Which one in the wrong order?</summary>
#
# 32 / 8 = 4 readers a book, and 13 // 4 = 3: the fourth one, number 3. In the wrong order 13 % 8 = 5.
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
# 2024, arXiv 2403.08295. PaliGemma 2: Steiner et al. 2024, arXiv 2412.03555.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the width must be a multiple of the number of heads (an `assert`) | the queries are heads x head_dim wide, whatever the width is: 192 and 128 in our small model, 2048 and 2304 in PaliGemma 2 3B. What must divide is query heads by KV heads |
# | the values that are multiplied with the weights have `Num_Heads_KV` heads (a comment) | after `repeat_kv` they have as many heads as the queries |
# | `is_causal = True` | nothing reads it. Who may see whom is said by the mask, and in PaliGemma the picture and the question see each other in both directions (lesson 11) |
# | the weights tell which pair of image and text has the higher score | they tell, for one text and its picture, how much each token takes from each other one. Pairs of images and texts are compared in the contrastive training of lesson 05 |
