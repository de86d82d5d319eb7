# %% [markdown]
# # Exercise 08 · The KV cache
#
# You write the memory of one layer, the positions of new tokens, and then a whole decoding loop. After
# each one, a check tells you whether it is right, and if it can, what went wrong. The fourth piece stands
# in no lesson: a memory that never grows. At the end the trained model remembers with your code.
#
# The lesson is [notebooks/08_kv_cache.ipynb](../notebooks/08_kv_cache.ipynb). Time: 95 minutes, 35 of
# them for the loop and 25 for the fourth piece. Names inside your functions are yours; the order of the
# arguments is not. `cache_update` and `ring_update` write into the buffers that they get; besides that, no
# function may change what it gets.

# %%
import torch

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. The memory of a layer
#
# A layer has two buffers, for keys and for values, with room for `max` tokens. The first `start` places
# are filled. Store the keys and values of this call behind them, **in place**, so that the next call
# finds them. Return the keys and the values of everything so far, the old ones first: a part of the
# buffers or a copy of it. There is always room for the new ones. What lies further back is garbage: leave
# it alone, and do not return it.


# %%
def cache_update(keys, values, start, key, value):
    """Store what is new, return all so far.

    keys, values: buffers (b, g, max, k), written in place
    start: how many places are filled, 0 in the first call
    key, value: of this call's tokens, (b, g, t, k), in the dtype of the buffers
    returns: keys and values of everything so far, (b, g, start + t, k) each
    """
    ### BEGIN SOLUTION
    end = start + key.shape[2]
    keys[:, :, start:end] = key
    values[:, :, start:end] = value
    return keys[:, :, :end], values[:, :, :end]
    ### END SOLUTION


# %%
check("cache_update", cache_update)

# %% [markdown]
# Stuck? Run `hint("cache_update", 1)`, then `2`, then `3` in a new cell.

# %% [markdown]
# ## 2. Positions go on
#
# The position of a token is the number of real tokens in its row up to and including it: the first has
# position 1. `earlier` says how many real tokens of each row came in earlier calls. A place with
# padding, in front of real tokens, between or behind them, gets the number of real tokens so far, those
# of earlier calls included, and 1 where there are none yet.


# %%
def token_positions(is_real, earlier):
    """The positions of this call's tokens.

    is_real: (b, t), booleans, False at padding; earlier: (b, 1), int64
    returns: (b, t), int64
    """
    ### BEGIN SOLUTION
    return (is_real.cumsum(dim=1) + earlier).clamp(min=1)
    ### END SOLUTION


# %%
check("token_positions", token_positions)

# %% [markdown]
# ## 3. The decoding loop
#
# Now the whole loop. You get the parts of a small decoder as functions, and the prompt. Make `steps`
# calls (1 or more): the first with the whole prompt, each later one with the one token chosen before.
# In each call, the last place gives the logits, and each row chooses the token with the largest one. (No
# two are equally large.) `project` refuses more than one token after the first call: the others are in the
# cache. Keep each layer's keys and values with your `cache_update`, or in your own way (`torch.cat`).
#
# | given | what it does |
# |---|---|
# | `embed(ids)` | (b, t) -> vectors (b, t, d) |
# | `project(layer, x)` | -> query (b, h, t, k), key, value (b, g, t, k), not rotated; `layer`: 0, 1, ... |
# | `rotate(y, positions)` | turns queries or keys by their positions (b, t) |
# | `attend(query, key, value, mask)` | mask: bool (b, 1, 1, s) or (b, 1, t, s), True where a query may look |
# | `finish(layer, x, mixed)` | -> x after this layer; `mixed` is what `attend` returned |
# | `head(x)` | (b, d) -> logits (b, v) |
#
# The prompts are padded on the left, and each has at least one real token. As in PaliGemma, the prompt
# sees itself whole: every token sees every real token of everything so far. (What a place with padding
# sees does not matter, because nobody sees that place.) So one row of booleans for each text is all the
# mask you need, and it grows with each call.
#
# The positions of a row's real tokens go on by 1, from call to call too. Your `token_positions` counts so.
# (Where they begin does not matter: `rotate` lets only distances count.) A key's position never changes,
# so you may keep it rotated.


# %%
def decode(prompt, is_real, steps, layers, embed, project, rotate, attend, finish, head):
    """Greedy decoding with a cache.

    prompt: (b, t), ids; is_real: (b, t), booleans, False at padding
    steps: how many tokens to choose; layers: how many layers there are
    the rest: functions, see above
    returns: (b, steps, v), the logits that each token was chosen from
    """
    ### BEGIN SOLUTION
    longest = prompt.shape[1] + steps
    buffers, all_logits = {}, []
    tokens, new_is_real, start = prompt, is_real, 0
    earlier = torch.zeros(len(prompt), 1, dtype=torch.long)
    while True:
        positions = token_positions(new_is_real, earlier)
        x = embed(tokens)
        for layer in range(layers):
            query, key, value = project(layer, x)
            query, key = rotate(query, positions), rotate(key, positions)
            if layer not in buffers:
                b, g, _, k = key.shape
                buffers[layer] = [key.new_empty(b, g, longest, k) for _ in "kv"]
            keys, values = cache_update(*buffers[layer], start, key, value)
            x = finish(layer, x, attend(query, keys, values, is_real[:, None, None]))
        all_logits.append(head(x[:, -1]))
        if len(all_logits) == steps:
            return torch.stack(all_logits, dim=1)
        start += tokens.shape[1]
        earlier = earlier + new_is_real.sum(dim=1, keepdim=True)
        tokens = all_logits[-1].argmax(dim=-1, keepdim=True)
        new_is_real = torch.ones_like(tokens, dtype=torch.bool)
        is_real = torch.cat((is_real, new_is_real), dim=1)
    ### END SOLUTION


# %%
check("decode", decode)

# %% [markdown]
# This one has four hints: `hint("decode", 1)` to `hint("decode", 4)`.

# %% [markdown]
# ## 4. A memory that never grows
#
# A cache grows with the text. There are models with a **sliding window**: in most of their layers a token
# sees only the last `window` tokens, itself among them. What is older will never be read again, so its
# place can be used anew. Such a memory is a **ring**: `window` places, and token number n of a row
# (counted from 0, padding too) lies at place `n % window`. Nothing is ever moved. The new token takes the place of the
# oldest.
#
# A call brings t tokens, and `start` tokens came before. Return what its tokens need: the last
# `window - 1` tokens before this call (fewer, if there were not so many), the oldest first, and then all
# t new ones. Copy the old ones before you write: a slice of the ring is a view, and changes with it. (Which
# of the new ones may look at which is the mask's business.)
#
# And store the new ones **in place**: of more than `window`, the last `window`. Places that hold no token
# yet are garbage, and stay as they are. (A list of places, as in `keys[:, :, places] = ...`, must not name
# one twice: torch does not say which token stays.)
#
# By hand first, with a window of 4. Six tokens came before, 0 to 5. Which lies where? Token 6 comes alone:
# which keys are returned, and which place is written? (Places: 4 5 2 3. Returned: 3 4 5 6. Place 2, where
# token 2 lay.) Now tokens 6 and 7 come together. Why must you read before you write? (Token 6 still sees
# token 3, and token 7 takes its place.)


# %%
def ring_update(keys, values, start, key, value):
    """Return what this call's tokens may see, and store them in the ring.

    keys, values: (b, g, window, k), the ring, written in place, window from 1 on
    start: how many tokens came before; key, value: (b, g, t, k), of this call's tokens, t from 1 on
    returns: keys and values, (b, g, s, k) each, with s = min(start, window - 1) + t
    """
    ### BEGIN SOLUTION
    window, t = keys.shape[2], key.shape[2]
    old = torch.arange(max(0, start - window + 1), start) % window
    new = torch.arange(max(start, start + t - window), start + t) % window
    both = []
    for ring, fresh in ((keys, key), (values, value)):
        both.append(torch.cat((ring[:, :, old], fresh), dim=2))  # a list of places makes a copy
        ring[:, :, new] = fresh[:, :, -len(new) :]
    return tuple(both)
    ### END SOLUTION


# %%
check("ring_update", ring_update)

# %% [markdown]
# ## 5. Inside the model
#
# `swap` makes a copy of the trained model that remembers with your `cache_update` and counts with your
# `token_positions`. It compares all layers, without a cache and with one, and whole answers.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import put, swap, whose

model, processor = load("small")
mine = swap(model, cache_update=cache_update, token_positions=token_positions)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
prompts = ("caption en", "answer en what is on the left?", "detect dog")
for prompt in prompts:
    for one in (model, mine):
        print(f"{whose(one):8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# Our model was trained to see everything. What happens if its new tokens see only a window? We give it
# rings of 64, 20 and 10 places, and cut the mask to what the ring returns. The prompt still sees itself
# whole; only the words of the answer look through the window. A row of *caption en* has 36 patches and 4
# tokens of text. Guess what will be said with 20 places, and what with 10.

# %%
from minipali.paligemma import prefix_lm_mask


def with_window(window):
    def update(keys, values, start, key, value):
        return ring_update(keys[:, :, :window], values[:, :, :window], start, key, value)

    def mask(is_real, is_suffix, queries):
        return prefix_lm_mask(is_real, is_suffix, queries)[..., -(window - 1 + queries) :]

    return put(model, cache_update=update, prefix_lm_mask=mask)


with trying("the model with your ring"):
    for window in (64, 20, 10):
        print(f"{window:2} places: {generate(with_window(window), processor, picture, prompts[0])}")

# %% [markdown]
# A ring of 64 holds everything, and nothing changes. With 20 places the upper patches are out of sight,
# and with 10 soon the whole picture is: it stays a good sentence, about things that are not there. So
# models with sliding windows (Gemma 3 is one) let some layers see everything.

# %% [markdown]
# ## Go on
#
# - Let `token_positions` ignore `earlier`, and swap it in. Which of the three answers survives? Then let it
#   add 100 to every position. The check complains, and the answers do not change. Why?
#   <details><summary>Answer</summary>The answer of one word: it is chosen in the first call, where nothing
#   came earlier. 100 more changes no distance, and RoPE sees only distances (lesson 07).</details>
# - Round what you store: `key.bfloat16()` and `value.bfloat16()`. (Our buffers keep it as float32. Buffers of
#   bfloat16 would be half as large.) What does `swap` say, and does an answer change? Round more:
#   `(4 * key).round() / 4`. When does it?
#   <details><summary>Answer</summary>`swap` notices at once, in the second call. No answer about our picture
#   changes, not even with quarters. Rounded to whole numbers, `key.round()`, one edge of the box moves.</details>
# - Return copies from `cache_update` (`.clone()`), not views. Every check passes. What did you lose?
#   <details><summary>Answer</summary>Time and memory: in each step every layer copies all that it
#   remembers, and the work for a text grows with the square of its length again, though only by
#   copying.</details>
# - How many places does a ring need so that *caption en* comes out as it was? Try it with `with_window`.
#   Why are fewer than 36 enough?
#   <details><summary>Answer</summary>27 on our picture. With 26 it says *a dog and a dog*. The patches have
#   seen one another, in the tower and in the prompt, so the lower ones know something of the upper ones.</details>
