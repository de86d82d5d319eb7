# %% [markdown]
# # Exercise 09 · Grouped-query attention
#
# You write the function that hands few key and value heads out to many query heads, and then the
# whole attention of Gemma around it. The third piece stands in no lesson: it lets heads share that were
# trained without sharing. At the end the trained model answers with your code.
#
# The lesson is [notebooks/09_gqa.ipynb](../notebooks/09_gqa.ipynb). Time: 65 minutes, 30 of them for the
# third piece. Names inside your functions are yours; the order of the arguments is not. No function may
# change the tensors and lists that it gets.

# %%
import torch
import torch.nn.functional as F
from einops import rearrange

from minipali.attention import attend
from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. Repeat the key and value heads
#
# `g` heads come in, `g * times` go out, each as it was. Query heads that are neighbours share a head, so
# the copies of a head stand side by side.


# %%
def repeat_kv(x, times):
    """Each key/value head `times` times.

    x: (b, g, s, k), float32
    times: how often each head appears, 1 or more
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
# A weight is stored as (out, in), and there are no biases. The numbers of a head stand side by side. Two
# functions are given to you:
#
# - `rotate(y)` turns (b, heads, t, k) by the positions of this call's `t` tokens. Queries and keys
#   need it, values do not.
# - `remember(key, value)` takes this call's keys and values, (b, kv_heads, t, k), and returns those
#   of everything so far, (b, kv_heads, s, k), these included. Here `s` may be larger than `t`. Give it
#   keys that are rotated, and not yet repeated. Call it exactly once, also without a mask: it stores at
#   each call.
#
# For the weighted average you may use `attend(query, key, value, mask)`, which is imported above. It
# is the function of lesson 03, and divides the scores by the root of k, as you do if you write your own.
# Your function gets a `mask`, which holds for all heads alike. It may be `None`: then every query sees
# everything so far. If there is one, every query sees at least one token.
#
# The width `k` of a head is not among the arguments. The weights tell you: heads * k need not be d.


# %%
def grouped_query_attention(
    x, q_weight, k_weight, v_weight, o_weight, heads, kv_heads, rotate, remember, mask
):
    """Attention in which groups of query heads share keys and values.

    x: (b, t, d); q_weight: (heads * k, d); k_weight, v_weight: (kv_heads * k, d)
    o_weight: (d, heads * k); mask: None or bool (b, 1, t, s), True where a query may look
    heads, kv_heads: whole numbers, of which the first is a multiple of the second
    rotate, remember: functions, see above
    returns: (b, t, d), without x added
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
# ## 3. Share afterwards
#
# A layer was trained as multi-head attention: every query head has keys and values of its own. Now some
# heads are to share, so that the cache gets smaller. `groups` says which: `[[2, 0], [3, 1]]` means that
# heads 2 and 0 share, and heads 3 and 1. All groups are equally long, and each head is in one of them. There
# may be one single group, or groups of one head. How many heads there are, and with that k, you find from
# `groups`.
#
# Return the four weights of the grouped layer: new tensors, views of the old ones, or, where nothing
# changes, an old one itself. Its keys and values have one head for each group: the **mean** of the group's
# heads, in the order of `groups`. No query head is lost, but they change places, because a grouped layer
# lets *neighbours* share: first the heads of the first group, as it lists them, then those of the second,
# and so on. (Another order inside a group would compute the same. The check wants this one.) What a query
# head found goes out through its own part of `o_weight`, which must follow.
#
# A head is k rows of `q_weight`, `k_weight` and `v_weight`, one after the other: head 0 the first k, head
# 1 the next k. In `o_weight` it is k *columns*.
#
# By hand first, with heads of one number, k = 1. Four heads whose rows of `k_weight` are 1.0, 3.0, 5.0,
# 7.0, and the groups above. Which keys come out? In which order do the rows of `q_weight` stand, and the
# columns of `o_weight`? (Keys: 3, the mean of 5 and 1, and 5, the mean of 7 and 3. Both orders:
# 2, 0, 3, 1.) And a case where nothing may change: if the heads of each group have equal keys and values, the
# grouped layer computes what the old one did.


# %%
def share_heads(q_weight, k_weight, v_weight, o_weight, groups):
    """A multi-head layer's weights as those of a grouped layer.

    q_weight, k_weight, v_weight: (w, d), w = heads * k, not always d; o_weight: (d, w); all float32
    groups: lists of head numbers, equally long; each head is in one of them
    returns: the new q_weight (w, d), k_weight and v_weight (len(groups) * k, d), o_weight (d, w)
    """
    ### BEGIN SOLUTION
    order = [head for group in groups for head in group]
    cut = "(h k) d -> h k d"
    q, k, v, o = (
        rearrange(one, cut, h=len(order)) for one in (q_weight, k_weight, v_weight, o_weight.T)
    )
    k, v = (torch.stack([one[group].mean(dim=0) for group in groups]) for one in (k, v))
    q, k, v, o = (rearrange(one, "h k d -> (h k) d") for one in (q[order], k, v, o[order]))
    return q, k, v, o.T
    ### END SOLUTION


# %%
check("share_heads", share_heads)

# %% [markdown]
# ## 4. Inside the model
#
# `swap` puts your first two functions into every layer of the decoder, with the trained weights. It
# compares all layers, first without a cache and then with one, and the tokens that are generated.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(model, repeat_kv=repeat_kv, grouped_query_attention=grouped_query_attention)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same. The
# last question is the one that a wrong order of heads gets wrong.

# %%
picture = examples()["dog_and_car_test_artist"]
prompts = ("caption en", "answer en what is on the left?", "answer en is there a dog?")
for prompt in prompts:
    for one in (model, mine):
        print(f"{whose(one):8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# Now your third function. We write the trained decoder as multi-head attention, which is exact: its four
# query heads read A, A, B, B, so their own keys and values are A, A, B and B. Then your function lets them
# share in three ways. Guess first: which groups change no answer, and which do?

# %%
import copy


@torch.no_grad()
def shared(groups):
    other = copy.deepcopy(model)
    for layer in other.language_model.layers:
        maps = layer.self_attn
        own = [
            repeat_kv(rearrange(one.weight, "(g k) d -> 1 g k d", g=2), 2)[0].flatten(0, 1)
            for one in (maps.k_proj, maps.v_proj)
        ]
        given = maps.q_proj.weight, *own, maps.o_proj.weight
        names = "q_proj", "k_proj", "v_proj", "o_proj"
        for name, weight in zip(names, share_heads(*given, groups), strict=True):
            getattr(maps, name).weight = torch.nn.Parameter(weight)
        maps.kv_heads = len(groups)
    return other


with trying("the model with shared heads"):
    for groups in ([[1, 0], [2, 3]], [[3, 2], [0, 1]], [[0, 2], [1, 3]]):
        other = shared(groups)
        print(groups, [generate(other, processor, picture, prompt) for prompt in prompts])

# %% [markdown]
# Heads 0 and 1 have equal keys and values, and so have 2 and 3. Let these share, in whatever order, and
# nothing is lost, because rows and columns moved together. Let A share with B, and their mean is neither of
# them. So who shares with whom matters, and after a bad mixture one has to train on a little, as the lesson
# does.

# %% [markdown]
# ## Go on
#
# - Write `grouped_query_attention` without `repeat_kv`: fold the query heads of a group into rows.
#   Mind the mask. `check` must still say *correct*.
#   <details><summary>Answer</summary>The lesson's `attend_folded` does it: `rearrange(query, "b (g r) t k ->
#   b g (r t) k", g=kv_heads)`, the mask as `mask.repeat(1, 1, heads // kv_heads, 1)`, and back with
#   `"b g (r t) k -> b (g r) t k"`. The keys stay as they are.</details>
# - `swap` in a `repeat_kv` that gives A B A B, and one that gives B B A A. Which of the two does more
#   damage? Count how many query heads read the wrong head.
#   <details><summary>Answer</summary>B B A A: all four read the wrong head, and nothing is left of the answers. With
#   A B A B these are two of four, and the model still names things and colours.</details>
# - Silence one KV head in one layer at a time. In which layer does it matter?
#   <details><summary>Answer</summary>In the first, for this model: without A it hardly counts, without B it has lost the
#   colour of the background. In the other layers few answers change. That is one model from one
#   training.</details>
# - One group of all four heads, `[[0, 1, 2, 3]]`, is multi-query attention, as in PaliGemma 3B. What becomes
#   of the three answers, and why is it the same as with `[[0, 2], [1, 3]]`? How many numbers does a layer
#   keep for a token?
#   <details><summary>Answer</summary>Both groups of `[[0, 2], [1, 3]]` hold one A and one B, so their means
#   are equal, and equal to the mean of all four. A layer keeps a key and a value for each KV head: 2 x 48
#   numbers with one, 192 with two as trained.</details>
