# %% [markdown]
# # Exercise 09 · Grouped-query attention
#
# You write the function that hands few key and value heads out to many query heads, and then the
# whole attention of Gemma around it. At the end the trained model answers with both.
#
# The lesson is [notebooks/09_gqa.ipynb](../notebooks/09_gqa.ipynb). Time: 30 minutes. Names inside
# your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali.attention import attend
from minipali.checks import check, hint

# %% [markdown]
# ## 1. Repeat the key and value heads
#
# `g` heads come in, `g * times` go out. Query heads that are neighbours share a head, so the copies
# of a head stand side by side.


# %%
def repeat_kv(x, times):
    """Each key/value head `times` times.

    x: (b, g, s, k)
    returns: (b, g * times, s, k)
    """
    ### BEGIN SOLUTION
    return x.repeat_interleave(times, dim=1)
    ### END SOLUTION


# %%
check("repeat_kv", repeat_kv)

# %% [markdown]
# Stuck? Run `hint("repeat_kv", 1)`, then `2`, then `3` in a new cell.

# %% [markdown]
# ## 2. The attention of Gemma
#
# A weight is stored as (out, in), and there are no biases. Two functions are given to you:
#
# - `rotate(y)` turns (b, heads, t, k) by the positions of this call's `t` tokens. Queries and keys
#   need it.
# - `remember(key, value)` takes this call's keys and values, (b, kv_heads, t, k), and returns those
#   of everything so far, (b, kv_heads, s, k), these included. Here `s` may be larger than `t`.
#
# For the weighted average you may use `attend(query, key, value, mask)`, which is imported above. It
# is the function of lesson 03. `mask` may be `None`.
#
# The width `k` of a head is not among the arguments. The weights tell you.


# %%
def grouped_query_attention(
    x, q_weight, k_weight, v_weight, o_weight, heads, kv_heads, rotate, remember, mask
):
    """Attention in which groups of query heads share keys and values.

    x: (b, t, d); q_weight: (heads * k, d); k_weight, v_weight: (kv_heads * k, d)
    o_weight: (d, heads * k); mask: None or bool (b, 1, t, s), True where a query may look
    returns: (b, t, d)
    """
    ### BEGIN SOLUTION
    query = rearrange(F.linear(x, q_weight), "b t (h k) -> b h t k", h=heads)
    key = rearrange(F.linear(x, k_weight), "b t (g k) -> b g t k", g=kv_heads)
    value = rearrange(F.linear(x, v_weight), "b t (g k) -> b g t k", g=kv_heads)
    key, value = remember(rotate(key), value)  # (b, g, s, k)
    times = heads // kv_heads
    mixed = attend(rotate(query), repeat_kv(key, times), repeat_kv(value, times), mask)
    return F.linear(rearrange(mixed, "b h t k -> b t (h k)"), o_weight)
    ### END SOLUTION


# %%
check("grouped_query_attention", grouped_query_attention)

# %% [markdown]
# ## 3. Inside the model
#
# `swap` puts both functions into every layer of the decoder, with the trained weights. It compares
# all layers, first without a cache and then with one, and the tokens that are generated.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, repeat_kv=repeat_kv, grouped_query_attention=grouped_query_attention)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same. The
# last question is the one that a wrong order of heads gets wrong.

# %%
picture = examples()["dog_and_car_test_artist"]
for prompt in ("caption en", "answer en what is on the left?", "answer en is there a dog?"):
    for name, one in (("package", model), ("mine", mine)):
        print(f"{name:8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Write `grouped_query_attention` without `repeat_kv`: fold the query heads of a group into rows.
#   Mind the mask. `check` must still say *correct*.
# - `swap` in a `repeat_kv` that gives A B A B, and one that gives B B A A. Which of the two does more
#   damage? Count how many query heads read the wrong head.
# - Silence one KV head in one layer at a time. In which layer does it matter?
