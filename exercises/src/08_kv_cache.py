# %% [markdown]
# # Exercise 08 · The KV cache
#
# You write the memory of one layer, the positions of new tokens, and then a whole decoding loop that
# uses both. After each one, a check tells you whether it is right, and if it can, what went wrong. At
# the end the trained model remembers with your code.
#
# The lesson is [notebooks/08_kv_cache.ipynb](../notebooks/08_kv_cache.ipynb). Time: 40 minutes. Names
# inside your functions are yours; the order of the arguments is not.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The memory of a layer
#
# A layer has two buffers, for keys and for values, with room for `max` tokens. The first `start` places
# are filled. Store the keys and values of this call behind them, **in place**, so that the next call
# finds them. Return the keys and the values of everything so far. What lies further back is garbage:
# leave it alone, and do not return it.


# %%
def cache_update(keys, values, start, key, value):
    """Store what is new, return all so far.

    keys, values: buffers (b, g, max, k), written in place; start: how many places are filled
    key, value: of this call's tokens, (b, g, t, k)
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
# padding gets the number of real tokens so far, and 1 where there are none yet.


# %%
def token_positions(is_real, earlier):
    """The positions of this call's tokens.

    is_real: bool (b, t), False at padding; earlier: whole numbers (b, 1)
    returns: whole numbers (b, t)
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
# calls: the first with the whole prompt, each later one with the one token chosen before. In each call,
# the last place gives the logits, and the likeliest token is chosen.
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
# The prompts are padded on the left. As in PaliGemma, the prompt sees itself whole: every token sees
# every real token of everything so far. So one row of booleans for each text is all the mask you
# need, and it grows with each call.


# %%
def decode(prompt, is_real, steps, layers, embed, project, rotate, attend, finish, head):
    """Greedy decoding with a cache.

    prompt: ids (b, t); is_real: bool (b, t), False at padding; steps: how many tokens to choose
    layers: how many layers there are; the rest: functions, see above
    returns: the logits that each token was chosen from, (b, steps, v)
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
# ## 4. Inside the model
#
# `swap` makes a copy of the trained model that remembers with your `cache_update` and counts with your
# `token_positions`. It compares all layers, without a cache and with one, and whole answers.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, cache_update=cache_update, token_positions=token_positions)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "detect dog"):
    for name, one in (("package", model), ("mine", mine)):
        print(f"{name:8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Let `token_positions` ignore `earlier`, and swap it in. Which of the three answers survives? Then let it
#   add 100 to every position. The check complains, and the answers do not change. Why?
# - Round what you store: `key.bfloat16()` and `value.bfloat16()`. The memory could then be half as large.
#   What does `swap` say, and does an answer change? Round more: `(4 * key).round() / 4`. When does it?
# - Return copies from `cache_update` (`.clone()`), not views. Every check passes. What did you lose?
