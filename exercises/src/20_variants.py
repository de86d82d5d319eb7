# %% [markdown]
# # Exercise 20 · Variants
#
# You have built Gemma 1. Here are the pieces that other language models have instead: Llama's MLP
# and its rows, Gemma 3's norms and windows. The fifth piece stands in no lesson: it trains a
# tokenizer. Then your pieces work in SmolLM2, a published Llama, and it answers.
#
# The lesson is [notebooks/20_variants.ipynb](../notebooks/20_variants.ipynb). Time: 75 minutes, 30 of
# them for part 5. Names inside your functions are yours; the order of the arguments is not.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Llama's MLP
#
# It has the same three matrices as Gemma's (exercise 10). But the gate is bent by **SiLU**, a number
# times its own sigmoid. An MLP with such a gate is called **SwiGLU**.
#
# $$\text{SiLU}(g) = g \cdot \sigma(g), \quad \sigma(g) = \frac{1}{1 + e^{-g}} \qquad \qquad
# \text{SwiGLU}(x) = \left(\text{SiLU}(x\,W_\text{gate}^\top) \odot x\,W_\text{up}^\top\right)
# W_\text{down}^\top$$
#
# By hand, where all matrices are single numbers, gate 1, up 2, down 3: x = 1 gives SiLU(1) · 2 · 3 =
# 0.7311 · 6 = 4.386, and x = -1 gives (-0.2689) · (-2) · 3 = 1.614.


# %%
def swiglu(x, gate_weight, up_weight, down_weight):
    """Llama's gated MLP, without biases.

    x: (b, t, d); gate_weight, up_weight: (hidden, d); down_weight: (d, hidden)
    returns: (b, t, d)
    """
    ### BEGIN SOLUTION
    gate = x @ gate_weight.T
    return (gate * gate.sigmoid() * (x @ up_weight.T)) @ down_weight.T
    ### END SOLUTION


# %%
check("swiglu", swiglu)

# %% [markdown]
# Stuck? Run `hint("swiglu", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. Rows in another order
#
# RoPE turns pairs of numbers. Our pairs are **halves**: in a head of k numbers, number i goes with
# number i + k / 2 (lesson 07). In a Llama's GGUF file the pairs are **neighbours**: number 0 goes with 1,
# number 2 with 3. These numbers are what the projection of queries (or keys) gives out, so each of them
# is a *row* of its weight. Put the rows in order, and the same RoPE works for both.
#
# The weight has the rows of head 0 first, then those of head 1, and so on; each head has `head_dim`
# rows. In each head the rows 0, 2, 4, ... come first, then 1, 3, 5, ... The heads keep their places,
# and so do the columns.
#
# By hand, with each row's number in place of the row: one head of 6 rows, [0, 1, 2, 3, 4, 5], becomes
# [0, 2, 4, 1, 3, 5]. Two heads of 4 rows, [0, 1, 2, 3, 4, 5, 6, 7], become [0, 2, 1, 3, 4, 6, 5, 7].


# %%
def halves_from_pairs(weight, head_dim):
    """The rows of a projection, from pairs of neighbours to pairs of halves.

    weight: (h * head_dim, d), for h heads; head_dim: an even number
    returns: (h * head_dim, d)
    """
    ### BEGIN SOLUTION
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))  # (h, k / 2, 2, d)
    return pairs.transpose(1, 2).flatten(0, 2)
    ### END SOLUTION


# %%
check("halves_from_pairs", halves_from_pairs)

# %% [markdown]
# ## 3. Norm, then turn
#
# Gemma 3 norms queries and keys before they meet. (It is called **QK-norm**; the values have none.) Each
# head of each token is divided by the root of the mean of the squares of its k numbers, with eps added
# to that mean, and multiplied by 1 + weight. The weight has k numbers, the same for all heads. Then
# RoPE turns the halves, as in exercise 07: the first half becomes first · cos - second · sin, the second
# half second · cos + first · sin.
#
# By hand, for one head of 2 numbers, x = [3, 4], weight [1, 0] and eps 0.5: the mean of the squares is
# 12.5, plus eps 13, the root 3.606. Divided: [0.832, 1.109]; times 1 + weight: [1.664, 1.109]. With cos 0
# and sin 1 (a quarter of a turn): [-1.109, 1.664].


# %%
def norm_and_turn(x, weight, cos, sin, eps):
    """Queries or keys of Gemma 3, ready to meet.

    x: (b, h, t, k); weight: (k,); cos, sin: (b, t, k / 2); eps: a number. All in float32
    returns: (b, h, t, k)
    """
    ### BEGIN SOLUTION
    x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * (1 + weight)
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    ### END SOLUTION


# %%
check("norm_and_turn", norm_and_turn)

# %% [markdown]
# ## 4. Who sees whom, layer by layer
#
# Most layers of Gemma 3 **slide**: a token sees itself and the `window` - 1 tokens before it. Every
# `every`-th layer is **full**: a token sees itself and all tokens before it. Layers are counted from 0,
# and the full one is the last of each group: with `every` = 6 it is layer 5, then 11, then 17. With
# `every` = 1 all layers are full.
#
# There are s tokens in all, some of them from earlier calls (in the cache). The t queries are the **last**
# t of them. Return a bool tensor (t, s), True where the query may see the key.
#
# By hand, layer 0, t = 2, s = 4, window 2, every 6: query 0 is token 2 of the text and sees tokens 1 and
# 2; query 1 sees 2 and 3. So [[0, 1, 1, 0], [0, 0, 1, 1]] (1 is True). In layer 5 it is
# [[1, 1, 1, 0], [1, 1, 1, 1]].


# %%
def layer_mask(layer, t, s, window, every):
    """The mask of one layer.

    layer: its number from 0; t: queries, the last of s tokens; window, every: as above, at least 1
    returns: bool (t, s)
    """
    ### BEGIN SOLUTION
    query, key = torch.arange(s - t, s)[:, None], torch.arange(s)
    seen = key <= query
    if (layer + 1) % every != 0:
        seen = seen & (key > query - window)
    return seen
    ### END SOLUTION


# %%
check("layer_mask", layer_mask)

# %% [markdown]
# ## 5. A tokenizer from words
#
# SmolLM2's tokenizer is a list of **merges**: pairs that become one token, in the order in which they
# were found in a large text. Find them.
#
# What comes in: `words`, a list of different words; `counts`, how often each of them occurs in the text;
# `merges`, the largest number of pairs to find. What goes out: the list of pairs of strings
# `(left, right)`, the first found first.
#
# 1. At the start the parts of a word are its letters.
# 2. Count how often each pair of neighbours occurs, inside words alone. A word that occurs 5 times brings
#    each of its pairs 5 times. Each place counts, also where places overlap: in a a a the pair (a, a)
#    stands at two places.
# 3. Take the most frequent pair. If several are equally frequent, take the first of them in Python's order
#    of tuples (`min`).
# 4. If there is no pair, or the most frequent one occurs less than twice, stop.
# 5. Write the pair down, and merge it wherever it stands in the words: the two parts become one. Go through a
#    word from left to right: a a a becomes aa a.
# 6. Go on with 2, until there are `merges` pairs.
#
# By hand: `["aab", "ab"]` with counts 2 and 3. The pair (a, b) occurs 2 + 3 = 5 times, (a, a) twice. So
# (a, b) comes first, and the words are now a ab and ab. (a, ab) occurs twice: it is the second. Then every
# word is one part: stop. The result is `[("a", "b"), ("a", "ab")]`, even if more merges were asked for.
# And `["xyz", "zyx"]` with counts 2 and 2: all four pairs occur twice, and (x, y) is the first of them.


# %%
def train_bpe(words, counts, merges):
    """The merges of a byte-pair encoding, in their order.

    words: a list of strings; counts: a list of whole numbers, one for each word; merges: at most
    so many pairs
    returns: a list of tuples (left, right) of strings
    """

    ### BEGIN SOLUTION
    def merged(parts, pair):
        """The parts of a word after one merge."""
        result, i = [], 0
        while i < len(parts):
            hit = tuple(parts[i : i + 2]) == pair
            result.append("".join(pair) if hit else parts[i])
            i += 2 if hit else 1
        return result

    parts, found = [list(word) for word in words], []
    while len(found) < merges:
        places = {}
        for own, count in zip(parts, counts, strict=True):
            for i in range(len(own) - 1):
                pair = own[i], own[i + 1]
                places[pair] = places.get(pair, 0) + count
        best = min(places, key=lambda pair: (-places[pair], pair), default=None)
        if best is None or places[best] < 2:
            break
        found.append(best)
        parts = [merged(own, best) for own in parts]
    return found
    ### END SOLUTION


# %%
check("train_bpe", train_bpe)

# %% [markdown]
# ## 6. In real models
#
# Does your tokenizer find what SmolLM2's found? Here are the thousand most frequent words of the English
# text that every Python brings (its help pages), with `Ġ` for the space in front of a word. On the
# right are the first merges of SmolLM2, whose authors trained on far more text.

# %%
from minipali.checks.variants import english_words, merges_beside, try_gemma3, try_llama

torch.set_num_threads(1)
merges_beside(train_bpe, *english_words())

# %% [markdown]
# Now the others. `try_llama` reads the weights of SmolLM2, puts the rows of all queries and keys in order
# with your `halves_from_pairs`, and computes with your `swiglu`. If it is not on this computer, a small
# model with random weights takes its place; `python course.py weights` brings it (93 MB, Apache-2.0).

# %%
correct = try_llama(swiglu, halves_from_pairs)

# %% [markdown]
# And Gemma 3, with your norms and your masks. Its weights come under Google's terms, which you read and
# accept first (`python course.py weights gemma3`). Without them the model has random weights. Its logits
# show a mistake, too.

# %%
correct = try_gemma3(norm_and_turn, layer_mask)

# %% [markdown]
# ## Go on
#
# - Ask SmolLM2 something else: `try_llama(swiglu, halves_from_pairs, "Why is the sky blue?")`. Then give it
#   a `halves_from_pairs` that returns the weight as it is. What does it say?
#   <details><summary>Answer</summary>With 135 million weights it knows well-known facts, and invents others.
#   With the rows as they stand in the file it is not lost, but confused: the values and the MLPs are
#   right, only who looks at whom is not. To the question about France it says nothing at all.</details>
# - Gemma 3 has one full layer in six. Which tokens can have an influence on the last one after six layers with
#   a window of 3, if *all* of them slide?
#   <details><summary>Answer</summary>Two more with each layer: 12 tokens before it, and itself. A window
#   limits a layer, not the stack.</details>
# - Where does your `train_bpe` spend its time, and what could it keep from one round to the next?
#   <details><summary>Answer</summary>It counts all pairs of all words again. Only words that hold the merged
#   pair have changed: keep the counts, and correct those of these words. With tens of thousands of merges
#   this saves nearly all of the time.</details>
