# %% [markdown]
# # 08 · The KV cache: remember, do not read again
#
# A decoder writes one token at a time, and each new token must look at everything before it: the
# picture, the question, and what is written so far. The plain way is to run the whole decoder again
# for each token. You keep what stays the same, and see what happens to an answer when something
# that was kept is wrong.
#
# ## Do you remember?
#
# <details><summary>Which of queries, keys and values does RoPE turn, and what does a score then depend
# on?</summary>
#
# Queries and keys, never values. The score depends on the distance of the two positions (lesson
# 07).
# </details>
#
# <details><summary>Two rows are padded on the left: <code>[[5, 6, 7], [0, 0, 8]]</code>. Which mask
# belongs to them?</summary>
#
# <code>[[1, 1, 1], [0, 0, 1]]</code>. It is made from the lengths, not from the ids (lesson 06).
# </details>
#
# <details><summary>Somebody writes the factor of the scores as <code>k * -0.5</code>. What does the trained
# model do?</summary>
#
# It runs, and talks nonsense: the factor must be <code>k ** -0.5</code>. The other one is negative,
# so each token takes from those that fit it least (lesson 03).
# </details>
#
# ## Where we are

# %%
import torch

from minipali import figures, generate, load, scenes
from minipali.checks import reveal

model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **build** a cache, and prove that it changes no answer,
# 2. **explain** which keys may be kept, and when not,
# 3. **recognise** a broken cache by its answers.
#
# Time: 50 minutes. You need: attention (lesson 03), the row and its padding (06), RoPE (07).
#
# ## Predict
#
# 1. Our small model reads 36 patches and a question of 4 tokens, and writes 10 tokens. How many
#    token vectors go through the decoder, if it reads everything again for each token?
# 2. You have asked one question about a picture, and now you ask another. May the decoder keep what
#    it remembers of the 36 patches: yes or no?
# 3. A patch of the real model has 14 x 14 pixels of three colours: 588 bytes. How many bytes does
#    the decoder remember of it?

# %%
guess_vectors, guess_keep, guess_bytes = ..., ..., ...

# %% [markdown]
# ## By hand: what is new in a longer table
#
# Take *I love pepperoni* from lesson 03, with the vectors (0, 2), (1, 1) and (1, 0). They are
# queries and keys at once. Write the table of dot products on paper: a row for each query, where
# each word sees itself and the words before it. Now *pizza* arrives, (2, 0). Write the table again.
# Which numbers are new?

# %% tags=["nbval-check-output"]
x = torch.tensor([[0, 2], [1, 1], [1, 0], [2, 0]])
before, after = (x[:3] @ x[:3].T).tril(), (x @ x.T).tril()
print("before:", before.tolist())
print("after: ", after.tolist())
print("old rows unchanged:", torch.equal(after[:3, :3], before))

# %% [markdown]
# Only the last row is new. Its four numbers need one new query, one new key, and **three old
# keys**. The average that follows needs the old values too. Nobody needs an old query: each query
# is used in its own row, and never again. In symbols, for the new token $t$ with heads of $k$
# numbers:
#
# $$\text{out}_t = \text{softmax}\left(\frac{q_t\,K^\top}{\sqrt{k}}\right) V,\qquad
# K = \begin{pmatrix} k_1 \\ \vdots \\ k_t \end{pmatrix},\quad
# V = \begin{pmatrix} v_1 \\ \vdots \\ v_t \end{pmatrix}$$
#
# So the rule is: **keep keys and values, forget queries.** What is kept is the **KV cache**. A step
# then costs one row and not the whole table, here 4 dot products and not 1 + 2 + 3 + 4 = 10.
#
# ## Build: without a cache, and with one
#
# `write` runs the decoder, takes the last place, chooses the token with the largest logit, and goes
# on. The two ways differ in one line, the last but one. Without a cache, the next call gets
# everything and the new token. With a cache, it gets the new token alone.


# %%
def appended(batch, token, kind=1):
    """The batch with one token more, (b, 1). Kind 1 is part of the answer, 0 of the question."""
    more = {"input_ids": token, "attention_mask": torch.ones_like(token)}
    more["token_type_ids"] = torch.full_like(token, kind)
    return batch | {name: torch.cat((batch[name], new), dim=1) for name, new in more.items()}


# %%
@torch.inference_mode()
def write(batch, steps, cache=None):
    """For one picture: the logits that each token is chosen from, (steps, v)."""
    given, all_logits = batch, []
    for _ in range(steps):
        x = model.hidden_states(**given, kv_cache=cache)  # (1, t, d)
        all_logits.append(model.language_model.logits(x[0, -1]))
        token = all_logits[-1].argmax()[None, None]
        given = appended(given, token) if cache is None else {"input_ids": token}
    return torch.stack(all_logits)


# %% [markdown]
# Each layer has its own keys and values, so each needs its own memory. The way that most people
# write first is to **concatenate**. Our class builds on the package's `KVCache`, which has `keys`
# and `values`, with one tensor for each layer, and remembers which tokens are real. (`g` counts the
# heads of keys and values: 2 here, for 4 heads of queries. Lesson 09 says why.) The keys come
# *after* they were turned (lesson 07): a token's position never changes.

# %%
from minipali.kv_cache import KVCache
from minipali.swap import put


class Concatenated(KVCache):
    def update(self, layer, key, value):
        """(b, g, t, k) of this call -> (b, g, s, k) of everything so far."""
        if layer in self.keys:  # not the first call
            key = torch.cat((self.keys[layer], key), dim=2)
            value = torch.cat((self.values[layer], value), dim=2)
        self.keys[layer], self.values[layer] = key, value
        return key, value


# %% [markdown]
# Each call makes a longer tensor and copies the old one into it. The second way makes the room
# before: **preallocate** a buffer for the longest text that may come, and write into it.
#
# **Write it now**: [exercise 08](../exercises/08_kv_cache.ipynb), part 1, `cache_update`. Two
# buffers (b, g, max, k), the number `start` of filled places, and the new key and value (b, g, t,
# k) come in. Keys and values of everything so far go out, as the front part of the buffers, without
# a copy. Two results for a buffer of four places with one number each, `?` for what the memory held
# before: start 0 and the keys 1, 2 fill it to 1, 2, ?, ? and return 1, 2; then start 2 and the key
# 7 fill it to 1, 2, 7, ? and return 1, 2, 7. Nobody may look at the `?`.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def cache_update(keys, values, start, key, value):
    """Buffers (b, g, max, k), `start` places filled; write (b, g, t, k); return (b, g, s, k)."""
    end = start + key.shape[2]
    keys[:, :, start:end] = key
    values[:, :, start:end] = value
    return keys[:, :, :end], values[:, :, :end]


# %% [markdown]
# Then three loops, and one answer. All logits of all steps must agree, up to rounding. A cache is
# no approximation.

# %% tags=["nbval-check-output"]
picture = scenes.examples()["dog_and_car_test_artist"]
batch = processor(picture, "caption en")
concatenated = Concatenated(1, 64)
preallocated = put(model, cache_update=cache_update).new_cache(1, 64)  # filled by our function
without = write(batch, steps=10)
for name, cache in (("concatenated", concatenated), ("preallocated", preallocated)):
    print(f"{name}: same logits", torch.allclose(write(batch, 10, cache), without, atol=1e-3))
words = [processor.token(int(i)).strip("▁") for i in without.argmax(dim=-1)]
print("the answer:", *words)
print("places filled:", preallocated.length, "of", preallocated.max_length)

# %%
# How many token vectors go through the decoder in each call:
calls = {"without": [40 + i for i in range(10)], "with": [40] + [1] * 9}
reveal("vectors without a cache", guess_vectors, sum(calls["without"]))
print("with a cache:", sum(calls["with"]))
figures.kv_cache.work(patches=36, prompt=4, words=words)

# %% [markdown]
# With a cache, 49 vectors: 36 patches, 4 tokens of the question, and 9 of the 10 new tokens. The
# last one was chosen and not fed back. The first call, which reads picture and question at once, is
# called **prefill**. Without a cache, the work for a text grows with the **square** of its length.
# With a cache a thin diagonal is left in the figure. Only attention still grows with the text,
# because each new token looks at all places.
#
# ## Build: the position of a new token
#
# A call now brings one token, and no longer shows how many came before it. So its **position** must
# go on where the last call stopped. And in a batch, short questions are padded in front. Padding
# takes no position, so the rows stand at different numbers.
#
# **Write it now**: exercise 08, part 2, `token_positions`. In: which of the new tokens are real,
# (b, t), and how many real tokens came earlier, (b, 1). Out: positions, (b, t). Two results for the
# rows `####` and `..##` (`#` is a token, `.` is padding): the first call gives 1, 2, 3, 4 and 1, 1,
# 1, 2; a second call with one token for each row gives 5 and 3.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def token_positions(is_real, earlier):
    """bool (b, t), and (b, 1) real tokens before these -> positions (b, t), counted from 1."""
    return (is_real.cumsum(dim=1) + earlier).clamp(min=1)


# %% tags=["nbval-check-output"]
prompt = torch.tensor([[c == "#" for c in row] for row in ("####", "..##")])
print("first call: ", token_positions(prompt, 0).tolist())
earlier = prompt.sum(dim=1, keepdim=True)
print("second call:", token_positions(torch.tensor([[True], [True]]), earlier).tolist())

# %% [markdown]
# The **mask** must grow too. In the second call it has one row, for the new token, and a column for
# each place so far: `True` for all that are real. So the cache remembers which places are real.
#
# Part 3 of the exercise is the whole loop, put together from such parts. This lesson does not show
# it.
#
# ## See it: when may a key be kept?
#
# In our small table no word saw a later one. In the model, the keys of layer 2 are made from what
# layer 1 mixed. If an old token sees the *new* token there, its key in layer 2 changes, and the
# kept one is wrong. We change the input in three ways, and measure how far the keys of the old
# tokens move, compared with their length.


# %%
@torch.inference_mode()
def keys_of(batch, places):
    """The keys of the first places in all layers: (layers, s, g * k)."""
    cache = model.new_cache(1, batch["input_ids"].shape[1])
    model.hidden_states(**batch, kv_cache=cache)
    return torch.stack(
        [keys[0, :, :places].transpose(0, 1).flatten(1) for keys in cache.keys.values()]
    )


# %%
token = without[0].argmax()[None, None]
left, right = (processor(picture, f"answer en what is on the {s}?") for s in ("left", "right"))
changes = {
    "one more token, in the answer": (batch, appended(batch, token), 40),
    "the same token, in the question": (batch, appended(batch, token, kind=0), 40),
    "another question about the same picture": (left, right, 36),
}
maps = {}
for name, (one, other, places) in changes.items():
    old, new = keys_of(one, places), keys_of(other, places)
    maps[name] = (new - old).norm(dim=-1) / old.norm(dim=-1)  # (layers, s)
figures.kv_cache.key_changes(maps, patches=36)
moved = maps["another question about the same picture"].max().item()
reveal("keep the patches", guess_keep, "no" if moved > 1e-3 else "yes")

# %% [markdown]
# - A token of the **answer** changes no key before it, because nothing before it may see it. This
#   mask is what makes a cache exact.
# - A token of the **question** changes keys in every layer but the first. In PaliGemma, picture and
#   question see each other whole (lesson 11). So they must come whole, in one call. The package
#   refuses a part of a question that comes later.
# - For the same reason **a second question needs a new cache**. The patches have read the first
#   question. With a causal mask they would not see it, and could be kept.
#
# ## Break it
#
# A cache is a promise: what was kept is what would be computed now. Here are four ways to break the
# promise. None of them gives an error.
#
# - *Positions restart*: each call counts from 1, so a new token stands where the first patch
#   stands.
# - *One cache for all layers*: each layer overwrites what the layer before it kept.
# - *Mask not grown*: new tokens stay hidden, from later ones and from themselves.
#   (`prefix_lm_mask`, which makes the mask, is built in lesson 11.)
# - *Keys turned late*: kept as they were before RoPE, and then all turned by the position of the
#   new token. For it, no old token is nearer than another.


# %%
from minipali.paligemma import prefix_lm_mask
from minipali.rope import apply_rope, rope_angles
from minipali.swap import swap

kept = {}


def restart(is_real, earlier):
    return is_real.cumsum(dim=1).clamp(min=1)


def one_for_all(keys, values, start, key, value):
    pair = kept.setdefault(keys.shape, (keys.clone(), values.clone()))
    return cache_update(*pair, start, key, value)


def not_grown(is_real, is_suffix, queries):
    if queries == is_real.shape[1]:  # the first call
        kept["prompt"] = queries
    mask = prefix_lm_mask(is_real, is_suffix, queries)
    mask[..., kept["prompt"] :] = False
    return mask


# %%
def turned_late(keys, values, start, key, value):
    keys, values = cache_update(keys, values, start, key, value)
    too_far = torch.arange(start, start - keys.shape[2], -1)[None]  # to the new position
    turned = apply_rope(keys, *rope_angles(too_far, keys.shape[-1]))
    return (turned if start else keys), values


# %%
broken = {
    "positions restart": swap(model, token_positions=restart),
    "one cache for all layers": swap(model, cache_update=one_for_all),
    "mask not grown": swap(model, prefix_lm_mask=not_grown),
    "keys turned late": swap(model, cache_update=turned_late),
}

# %%
prompts = ["answer en what is on the left?", "caption en", "detect dog"]
for name, one in {"right": model, **broken}.items():
    print(name)
    for prompt in prompts:
        print("   ", generate(one, processor, picture, prompt, max_new_tokens=12))

# %% [markdown]
# `swap` finds all four in `call 2`. The first call is right: it fills the cache and reads nothing
# back.
#
# One picture can be luck. So we take 40 new pictures by an artist whose drawings were never trained
# on, and count the answers that a mistake leaves exactly as they were.

# %%
import numpy as np

rng = np.random.default_rng(0)
new = [scenes.compose(rng, scenes.VALIDATION_ARTIST, 2) for _ in range(40)]
images, prompts[2] = [scene.picture for scene in new], "detect an object"
survivors = {name: [] for name in broken}
for prompt in prompts:
    asked = [prompt.replace("an object", scene.things[0].name) for scene in new]
    right = generate(model, processor, images, asked, max_new_tokens=12)
    for name, one in broken.items():
        found = generate(one, processor, images, asked, max_new_tokens=12)
        survivors[name].append(sum(a == b for a, b in zip(found, right, strict=True)))
figures.kv_cache.survivors(survivors, prompts, total=40)

# %% [markdown]
# Answers of one word hide a broken cache. Their word is chosen in the prefill, and all that the
# cache decides is whether the model stops after it. Two of the four mistakes leave every such
# answer as it was. So test a cache with long answers. Better, compare logits with a loop that has
# no cache.
#
# ## Check
#
# Our pieces in the trained model, with two questions of different length in one batch: the shorter
# one is padded. Each answer must be what it is alone.

# %%
mine = swap(model, cache_update=cache_update, token_positions=token_positions)
asked = ["caption en", "answer en what is on the left?"]
alone = [generate(model, processor, picture, prompt) for prompt in asked]
print("padded, as alone:", generate(mine, processor, [picture] * 2, asked) == alone)

# %% [markdown]
# ## In the real model
#
# A token leaves a key and a value in each layer, for each of their heads, in numbers of 2 bytes.

# %% tags=["nbval-check-output"]
from minipali.config import preset

real = preset("paligemma-3b-224").text
memory = 2 * real.num_hidden_layers * real.num_key_value_heads * real.head_dim * 2  # bytes a token
pixels, heads = 14 * 14 * 3, real.num_attention_heads
reveal("bytes of a patch", guess_bytes, memory)
print(f"{memory / pixels:.0f} times the patch's pixels", end="; ")
print(f"{memory * heads / pixels:.0f} times, if each of the {heads} query heads had its own keys")
for side, n in ((224, 256), (448, 1024), (896, 4096)):
    print(f"at {side} pixels: {n:4} patches keep {n * memory / 1e6:4.1f} MB")

# %% [markdown]
# In PaliGemma, 8 query heads share one head of keys and values (lesson 09). Without that the cache
# would be eight times as large.
#
# Pope et al. (2022) count what both kinds of call cost in large models. In the prefill, many tokens
# share each weight that is read. In every later call *all* weights and the *whole* cache are read
# for one token of each text, so those calls wait for memory.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: count the multiplications
#
# Fifteen more minutes. Each token that goes through a layer meets the matrices for queries, keys,
# values and output, and the three of the MLP (lesson 10). Then each query head multiplies with
# every key that it sees, and again with every value. Once a call, a last matrix turns one vector
# into logits.
#
# A formula should be checked. torch can count while the model runs. It counts matrix products, and
# a multiplication with its addition as two, so we halve. It does not see into the fused attention
# of a CPU, so we ask for the plain one. The picture comes as finished features, `image_features`:
# we count the decoder alone.


# %%
def multiplications(text, new, seen):
    """Of one call of the decoder, `new` tokens that see `seen` places; text: a TextConfig."""
    d, h, g, k = (
        text.hidden_size,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.head_dim,
    )
    matrices = d * (h + 2 * g) * k + h * k * d + 3 * d * text.intermediate_size
    attention = 2 * h * k * seen  # scores, and averages
    return text.num_hidden_layers * new * (matrices + attention) + d * text.vocab_size


# %% tags=["nbval-check-output"]
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

with torch.inference_mode():
    question = batch | {"image_features": model.image_features(batch["pixel_values"])}
del question["pixel_values"]
calls = {"without a cache": [(n, n) for n in range(40, 50)]}  # (new, seen)
calls["with a cache"] = [(40, 40)] + [(1, n) for n in range(41, 50)]
for name, cache in zip(calls, (None, model.new_cache(1, 64)), strict=True):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        write(question, 10, cache)
    formula = sum(multiplications(model.config.text, *call) for call in calls[name])
    counted = counter.get_total_flops() // 2
    print(f"{name:15} {sum(new for new, _ in calls[name]):3} token vectors,", end=" ")
    print(f"formula {formula:11,}, counted {counted:11,}")

# %% [markdown]
# Now the real model. **Memory.** The weights that one token needs are as many as its
# multiplications without attention. The small model keeps numbers of 4 bytes, the real one of 2.
#
# **Pixels.** After the first call the keys and values of all patches are in the cache, and no later
# token needs a pixel. Some programs send the picture again with each token. The answer stays right,
# and each token pays for the whole vision tower. Our package refuses it.
#
# **Work.** A picture, 8 tokens of question, and an answer of 20 tokens.

# %% tags=["nbval-check-output"]
for name, t, size in (("small", model.config.text, 4), ("3B", real, 2)):
    bytes_kept = 2 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim * size
    weights = multiplications(t, 1, 0) * size
    print(f"{name:5} a token keeps {bytes_kept:6,} bytes; the weights are", end=" ")
    print(f"{weights / 1e6:7,.1f} MB, as much as {weights // bytes_kept:7,} tokens")


# %% tags=["nbval-check-output"]
def tower(v):
    """Multiplications of the vision tower for one picture; v: a VisionConfig."""
    n, d = v.num_patches, v.hidden_size
    layer = n * (4 * d * d + 2 * d * v.intermediate_size) + 2 * n * n * d
    return n * d * v.num_channels * v.patch_size**2 + v.num_hidden_layers * layer


with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
    model.vision_tower(batch["pixel_values"])
print("small tower: formula", tower(model.config.vision), "counted", counter.get_total_flops() // 2)
for name in ("paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    vision, first = preset(name).vision, preset(name).vision.num_patches + 8
    again = sum(multiplications(real, first + i, first + i) for i in range(20))
    later = [multiplications(real, 1, first + i) for i in range(1, 20)]
    once = multiplications(real, first, first) + sum(later)
    print(f"{name}: decoder {again / 1e12:6.2f} without, {once / 1e12:4.2f} with a cache;", end=" ")
    print(
        f"tower {tower(vision) / 1e12:4.2f} (10^12) = {tower(vision) / later[0]:4.0f} later tokens"
    )

# %% [markdown]
# - The real model's cache reaches the size of its weights after 272,199 tokens, far beyond the 8192
#   positions that it knows.
# - With a cache, most of the work is in the prefill. That is why a model lets you wait for its
#   first word. Pixels that are sent again cost as much as 43 tokens at 224 pixels, for each token.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: time
#
# Five more minutes. Multiplications are not milliseconds. We measure one more token after 64 to
# 4096 others, in three ways, by turns, and keep the fastest run of each, because other programs can
# only slow a run down. (The small model never learned texts of that length. We measure time, not
# sense.)


# %%
import time


@torch.inference_mode()
def milliseconds(ids, cache):
    start = time.perf_counter()
    model.hidden_states(ids, kv_cache=cache)
    return 1000 * (time.perf_counter() - start)


# %%
lengths = [64, 256, 1024, 4096]
curves = {"without a cache": [], "concatenated": [], "preallocated": []}
for length in lengths:
    ids = torch.full((1, length), 600)
    caches = [None] + [kind(1, length + 60) for kind in (Concatenated, KVCache)]
    for cache in caches[1:]:
        milliseconds(ids, cache)  # fills it
    for curve in curves.values():
        curve.append(float("inf"))
    for turn in range(60):
        for curve, cache in zip(curves.values(), caches, strict=True):
            if cache or turn * length < 8192:  # the slow way not so often
                took = milliseconds(ids[:, :1] if cache else ids, cache)
                curve[-1] = min(curve[-1], took)
    slow, joined, ready = (curve[-1] for curve in curves.values())
    print(f"{length:4} tokens, preallocated = 1:", end=" ")
    print(f"concatenated {joined / ready:.2f}, without a cache {slow / ready:.1f}")
figures.kv_cache.time_per_token(lengths, curves)

# %% [markdown]
# Without a cache the line climbs: twice the text, at least twice the work, and more where attention
# outweighs the matrices. With a cache there is a floor. However short the text, each token calls
# all layers and reads all weights. Only far to the right the cache itself weighs something.
#
# And the two caches? A ratio within a few hundredths of 1 means that we cannot tell them apart.
# Copying is felt only where the cache is large, compared with the weights, which are read for each
# token anyway. A preallocated cache has another use: memory that does not grow and stays in its
# place, which compilers rely on.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the prompt, stored twice
#
# Two more minutes. The notes behind this course contain a fifth mistake. Their class stores the
# keys of the first call. Then it should say `else`, but it does not, and so it joins the same keys
# on once more: **the prompt is in the cache twice**. In the first call this changes nothing. Each
# weight is split in two equal parts, and the average stays the same. But then a new token comes.
# Here its score is 0:

# %%
torch.manual_seed(0)
query, key, new_key = torch.randn(1, 8), torch.randn(3, 8), torch.zeros(1, 8)
for times in (1, 2):
    scores = query @ torch.cat((key.repeat(times, 1), new_key)).T * 8**-0.5
    print(f"prompt stored {times} x: weight of the new token {scores.softmax(-1)[0, -1]:.2f}")

# %% [markdown]
# Each token of the prompt has two votes now, and the new one has one. What the model has just
# written counts too little.
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/08_kv_cache.ipynb). At its end the trained model
# remembers with your code. It has one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - For each layer keep the turned keys and the values, and forget the queries. The mask makes this
#   exact: no old token sees a new one.
# - From call to call, positions go on and the mask grows. Pixels and question go in once, together.
# - A cache turns work into memory and changes no logit. A broken one shows in long answers.
#
# **Self-test**
#
# <details><summary>A model with a cache answers in one word rightly, and its captions repeat
# themselves. Where do you look first?</summary>
#
# At the second call: do positions go on, does the mask grow, has each layer its own buffers? The
# first token reads nothing from the cache, so it cannot show the mistake.
# </details>
#
# <details><summary>Somebody adds 100 to all positions, in all calls. What changes?</summary>
#
# Nothing. Rotary positions are relative, so only differences count. A restart is another matter: it
# changes the difference between new queries and old keys.
# </details>
#
# <details><summary>Could the vision tower read a picture patch by patch, with a cache?</summary>
#
# No. It has no mask: each patch sees all others. A new patch would change the keys of the old ones
# in every layer but the first.
# </details>
#
# **Sources.** Decoding step by step with kept keys and values, and why reading them is the limit:
# Shazeer 2019, arXiv 1911.02150, its section on multi-head attention step by step; Pope et al.
# 2022, *Efficiently Scaling Transformer Inference*, arXiv 2211.05102, on prefill, on reading
# weights and cache, and on heads that share keys. The prefix that sees itself whole: PaliGemma,
# Beyer et al. 2024, arXiv 2407.07726, figure 2. *I love pepperoni pizza*: hkproj's slides
# "Multi-Head Attention". A picture sent again with each token: `inference.py` in
# hkproj/pytorch-paligemma.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the cache stores what the user typed | it stores no text, but rotated keys and values, for each layer, of everything so far |
# | `update` stores the first keys, then concatenates, with no `else` between | then the prompt is stored twice; only later calls concatenate |
# | `num_items` gives the length in a line below `return 0`, in the same branch | that line is never reached; here too an `else` is missing |
# | the input of the decoder carries the positions, and the cache comes after that | each layer rotates its queries and keys, and keeps the rotated keys |
