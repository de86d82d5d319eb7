# %% [markdown]
# # 20 · Variants: Llama, Gemma 2, Gemma 3
#
# Your decoder is Gemma 1. Language models with other names are almost the same code: a few lines
# differ. Today you change them, read a published model, and it answers in words. Then you take each
# change back, one at a time, and see what it costs.
#
# ## Do you remember?
#
# <details><summary>9 query heads share 3 KV heads. Which KV head does query head 5 read?</summary>
#
# Head 1: neighbours share, and 5 // 3 = 1 (lesson 09).
# </details>
#
# <details><summary>A model gives every one of 1,000 words the same chance. What is its loss per
# word?</summary>
#
# ln 1000 = 6.9, whatever the text says (lesson 13).
# </details>
#
# <details><summary>All numbers of an RMSNorm's weight in Gemma are 0. What does the norm do?</summary>
#
# It divides by the root mean square, and multiplies by 1 + 0: it is a norm without a factor (lesson 02).
# </details>
#
# ## Where we are

# %%
import math

import torch
from torch.nn import functional as F

from minipali import figures, published, variants
from minipali.checks import reveal
from minipali.config import preset, replace, text_config
from minipali.gemma import GeGLU, Gemma
from minipali.gguf import GGUF
from minipali.gguf_tokenizers import read_tokenizer
from minipali.rope import apply_rope, rope_angles

torch.set_num_threads(1)
figures.model_map("decoder", preset("small"))

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **change** a Gemma 1 into a Llama, and into Gemma 2 and 3, line by line,
# 2. **read** a published model whose weights have their rows in another order, and show that all is right,
# 3. **say** which mistakes cost much, which little, and why a loss alone can mislead.
#
# Time: 60 minutes. You need: norms (lesson 02), RoPE (07), the cache (08), shared heads (09), the
# decoder (10), the loss (13) and GGUF files (19).
#
# ## Predict
#
# 1. SmolLM2, a published model, was trained as a Llama. Your code is a Gemma 1. Four changes lead from one
#    to the other: in the MLP, in the words' vectors, in the norms, in the order of rows. We make them one
#    after the other and compute the loss on a text. After how many is it better than a blind guess's?
# 2. Then all is right, and we make one mistake at a time: `"GELU"` in the MLP, norms with `"1 + w"`, words
#    times Gemma's `"factor"` $\sqrt d$, the `"rows"` in the file's order, the `"base"` of Gemma 1's RoPE,
#    KV `"heads"` given to the wrong queries. Which one costs least, and which most?
# 3. In Gemma 3 270M, 15 of 18 layers look back 512 tokens at most. For a text of 32,768 tokens, how many
#    percent of the cache does it need, compared with 18 full layers?

# %%
guess_changes, guess_least, guess_most, guess_percent = ..., ..., ..., ...

# %% [markdown]
# ## By hand: the same turn in another order
#
# RoPE turns pairs of numbers. Which two are a pair? In our code, number i and number i + k / 2, the
# *halves*. In Llama's first release, and in the GGUF file of lesson 19, *neighbours*. A quarter of a turn
# makes (-b, a) of a pair (a, b). On paper: what does it make of [1, 2, 3, 4] with halves, and what
# with neighbours? Now put the four numbers in the order [1, 3, 2, 4] first, and turn halves.

# %% tags=["nbval-check-output"]
x, quarter = torch.tensor([1.0, 2, 3, 4]), (torch.zeros(1, 1, 2), torch.ones(1, 1, 2))


def turned(x):
    return apply_rope(x.view(1, 1, 1, 4), *quarter).flatten()


neighbours = torch.stack((-x[1::2], x[::2]), dim=1).flatten()
print("halves:                  ", turned(x).tolist())
print("neighbours:              ", neighbours.tolist())
print("halves, in another order:", turned(x[[0, 2, 1, 3]]).tolist())

# %% [markdown]
# The last line holds the same numbers as the one above it, in the other order. A dot product of a query and
# a key is the same in every order, if both have the same one. And each number of a query comes from one row
# of the weight. So we put the rows of the query and key weights in our order *once*, and keep our RoPE.
#
# ## Build: rows in order
#
# **Write it now**: [exercise 20](../exercises/20_variants.ipynb), part 2. The weight of a projection
# comes in, (heads · k, d), and the head's width k; the same shape goes out. In each head the rows
# 0, 2, 4, ... come first, then 1, 3, 5, ... Two results, with numbers of rows: [0, 1, 2, 3, 4, 5] is
# [0, 2, 4, 1, 3, 5] for one head, and [0 ... 7] in two heads is [0, 2, 1, 3, 4, 6, 5, 7].


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def halves_from_pairs(weight, head_dim):
    pairs = weight.unflatten(0, (-1, head_dim // 2, 2))  # (h, k / 2, 2, d)
    return pairs.transpose(1, 2).flatten(0, 2)


# %% [markdown]
# ## Build: Llama's MLP
#
# The gate is bent by SiLU, a number times its own sigmoid. It is much like GELU: both are 0 at 0, near 0
# far below it, and near the number itself far above it. With this gate an MLP is called **SwiGLU**.
#
# $$\text{SiLU}(g) = g \cdot \sigma(g) = \frac{g}{1 + e^{-g}}$$
#
# **Write it now**: exercise 20, part 1. (b, t, d) comes in and goes out. Two results, with the single
# numbers gate 1, up 2, down 3: x = 1 gives 4.386, x = -1 gives 1.614.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def swiglu(x, gate_weight, up_weight, down_weight):
    gate = x @ gate_weight.T
    return (gate * gate.sigmoid() * (x @ up_weight.T)) @ down_weight.T


# %% [markdown]
# Two more changes leave something out. Llama's norms multiply by w, where Gemma's have 1 + w. And Llama
# does not multiply the words' vectors by $\sqrt d$. That is all: the rest is the same in both. (The first
# Llamas have a head of their own; SmolLM2's is tied, as Gemma's.)
#
# ## See it: change after change
#
# SmolLM2 is a Llama of 135 million weights, published by Hugging Face under Apache-2.0. Its 9 query heads
# share 3 KV heads. First the file, and a text that we wrote for this lesson, so that no model can know it.

# %%
TEXT = """A small village lies between two hills, and a river runs through it. In spring the river is
full and loud, because the snow on the hills melts. In summer it is so low that children cross it on
stones. The oldest house of the village is the mill. For two hundred years its wheel turned day and
night, and the farmers brought their grain to it. Today nobody grinds grain there any more. The wheel
still turns, but now it makes electricity for the school and for twelve houses. The miller's daughter,
who repaired it, says that the work was not hard. She read old books about wheels, asked an engineer
in the next town, and made many small mistakes. The first winter, ice broke two of the boards. The
second winter she took the wheel out of the water before the frost came. Visitors often ask her what
she would do otherwise if she could begin again. She always gives the same answer: she would measure
first, and build later."""

# %%
try:
    file = GGUF(published.find("smollm2"))
    config = variants.config_of(file)
    tokenizer = read_tokenizer(file.metadata, config.vocab_size)
    ids = torch.tensor([tokenizer.encode(" ".join(TEXT.split()))])
    print(f"{config.num_attention_heads} query heads, {config.num_key_value_heads} KV heads")
    print(f"{config.num_hidden_layers} layers; the text has {ids.shape[1]} tokens")
except published.PublishedError:
    file = None
    print("SmolLM2 is not on this computer: `python course.py weights` brings it (93 MB).")
    print("Without it, the cells that read it show nothing.")


# %% [markdown]
# The weights as they stand in the file, and once more with the rows of queries and keys in order:


# %%
def in_order(stored):
    weights = dict(stored)
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = halves_from_pairs(weights[name], config.head_dim)
    return weights


def made(weights, **changes):
    """A decoder with these weights, and with fields of its config changed."""
    with torch.device("meta"):
        model = Gemma(replace(config, **changes))
    model.load_state_dict(weights, assign=True)
    return model.eval()


@torch.inference_mode()
def loss(model):
    """The mean over all tokens of the text but the first."""
    logits = model.logits(variants.causal_states(model, ids))[0]
    return F.cross_entropy(logits[:-1], ids[0, 1:]).item()


# %%
if file:
    blind = math.log(config.vocab_size)
    with torch.device("meta"):
        names = list(Gemma(config).state_dict())
    stored = {name: file[variants.their_name(name, config)] for name in names}
    gemma = {"hidden_activation": "gelu_pytorch_tanh", "scale_embeddings": True, "norm_offset": 1.0}
    losses = {"Gemma 1's code": loss(made(stored, **gemma))}
    for field, change in zip(list(gemma), ("SiLU", "no factor", "w, not 1 + w"), strict=True):
        del gemma[field]  # what the file's own config says
        losses[f"+ {change}"] = loss(made(stored, **gemma))
    weights = in_order(stored)
    model = made(weights)
    losses["+ rows in order"] = loss(model)
    for name, value in losses.items():
        print(f"{name:16} {value:5.1f}")
    print(f"{'blind guess':16} {blind:5.1f}")
    better = [value < blind for value in losses.values()].index(True)
    reveal("changes", guess_changes, better)

# %% [markdown]
# SiLU is right, and the loss hardly moves. Leaving out the factor is right as well, and the loss gets
# *worse*. Who trusts the loss alone takes both back, and never finds the right model. As long as one thing
# is far wrong, the loss says nothing about the others. So this course checks each piece for itself.
#
# ## See it: it answers
#
# Around a question stand marks that the model was trained with. They say who speaks, and until where.

# %%
if file:
    print(variants.chat_prompt([("user", "What is the capital of France?")]))
    for question in ("What is the capital of France?", "Write a sentence about a cat."):
        print(question, "->", variants.answer(model, tokenizer, question, max_new_tokens=24))

# %% [markdown]
# Its tokenizer is not SentencePiece (lesson 06), but **byte-level BPE**: text is cut into words, each word
# into bytes (so nothing is unknown), and frequent neighbours are merged, in an order that was found once,
# in a large text. Here are the first merges, and an example. (`Ġ` stands for a space.)

# %%
if file:
    print(file.metadata["tokenizer.ggml.merges"][:12])
    tokens = file.metadata["tokenizer.ggml.tokens"]
    print([tokens[i] for i in tokenizer.encode(" mistakes of millers")])

# %% [markdown]
# ## Break it: one thing at a time
#
# Now the other way round: all is right, and one thing is wrong. For the last mistake query head 5 reads KV
# head 5 % 3 = 2, in place of 5 // 3 = 1. We ask each broken model for France's capital, too.


# %%
def other_heads(weights):
    """Query head i reads KV head i % g: the heads change places, behind q and before o."""
    moved, cut = dict(weights), (config.num_key_value_heads, -1, config.head_dim)
    for name, weight in weights.items():
        if name.endswith("q_proj.weight"):
            moved[name] = weight.unflatten(0, cut).transpose(0, 1).flatten(0, 2)
        if name.endswith("o_proj.weight"):
            moved[name] = weight.unflatten(1, cut).transpose(1, 2).flatten(1)
    return moved


# %%
if file:
    broken = {
        "GELU": made(weights, hidden_activation="gelu_pytorch_tanh"),
        "1 + w": made(weights, norm_offset=1.0),
        "factor": made(weights, scale_embeddings=True),
        "rows": made(stored),
        "base": made(weights, rope_theta=10_000.0),
        "heads": made(other_heads(weights)),
    }
    costs = {"right": losses["+ rows in order"]}
    for name, one in broken.items():
        costs[name] = loss(one)
        told = variants.answer(one, tokenizer, "What is the capital of France?", max_new_tokens=8)
        print(f"{name:7} {costs[name]:5.2f}  {told!r}")
    figures.variants.costs(costs, blind)
    least, *_, most = sorted(broken, key=costs.get)
    reveal("costs least", guess_least, least)
    reveal("costs most", guess_most, most)

# %% [markdown]
# - **base**: the loss hardly moves. On a text of 199 tokens one could take that for chance. But the answer
#   is another one.
# - **GELU** still makes sentences, but no longer answers what it was asked. With the **rows** as in the
#   file, attention goes to wrong tokens, and the answer ends before its first word.
# - **factor**: the words are $\sqrt{576}$ = 24 times too large. What layers add is small beside them.
# - **heads** and **1 + w** are worse than a blind guess. The model is not unsure, it is certain of wrong
#   words, and that costs more.
#
# (One model and one text. For another model the order may be another.)
#
# ## Build: what Gemma 2 and 3 changed
#
# **Numbers that must not grow.** Gemma 2 norms twice: what attention and the MLP *read*, as before, and
# what they *give*, before it is added. And it caps: scores at 50, logits at 30. A **soft cap** bends
# numbers smoothly. (A hard cut has gradient 0 beyond c.)
#
# $$\text{cap}(x) = c \cdot \tanh(x / c)$$

# %% tags=["nbval-check-output"]
scores = torch.tensor([1.0, 10, 50, 100, 1000])
print([round(x, 1) for x in (50 * (scores / 50).tanh()).tolist()])

# %% [markdown]
# The cap comes *before* the mask. If it came after, minus infinity would become -50, and hidden tokens would
# get a weight again, if a small one.
#
# Gemma 3 keeps the four norms and drops the caps. It also norms queries and keys, each head for itself:
# **QK-norm**. Long vectors can no longer make large scores. This comes before RoPE. The norm's weight has
# one factor for each number; after the turn, two factors that differ would spoil the angle of a pair.
#
# **Write it now**: exercise 20, part 3. Queries or keys come in, (b, h, t, k), and go out. Two results:
# [3, 4] with weight [1, 0] and eps 0.5 is [1.664, 1.109] before the turn, and [-1.109, 1.664] after a
# quarter of one.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def norm_and_turn(x, weight, cos, sin, eps):
    x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * (1 + weight)
    return apply_rope(x, cos, sin)


# %% [markdown]
# Lesson 07 promised that a score depends on the *distance* of two tokens alone. Does it still?


# %% tags=["nbval-check-output"]
def turn_and_norm(x, weight, cos, sin, eps):
    x = apply_rope(x, cos, sin)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * (1 + weight)


torch.manual_seed(0)
query, key, q_weight, k_weight = (
    torch.randn(1, 1, 1, 8),
    torch.randn(1, 1, 1, 8),
    *torch.randn(2, 8),
)
for order in (norm_and_turn, turn_and_norm):
    found = []
    for first in (0, 10, 100):
        q = order(query, q_weight, *rope_angles(torch.tensor([[first + 4]]), 8), 1e-6)
        k = order(key, k_weight, *rope_angles(torch.tensor([[first]]), 8), 1e-6)
        found.append(round((q * k).sum().item(), 2))
    print(f"{order.__name__}: 4 apart, from place 0, 10, 100: {found}")

# %% [markdown]
# With the turn last it does; with the norm last it does not.
#
# **Long texts.** The cache grows with each token, in each layer (lesson 08). So most layers **slide**: a token
# sees itself and the `window` - 1 tokens before it. In Gemma 2 every second layer is full, in Gemma 3 every
# sixth. What a window hides can still arrive, layer by layer (orange in the figure below).
#
# **Write it now**: exercise 20, part 4. The layer's number (from 0), t queries (the last of s tokens), s,
# window and `every` (the last layer of so many is full) come in; a bool (t, s) goes out. Two results, with
# t = 2, s = 4, window 2, every 6: layer 0 gives [[0, 1, 1, 0], [0, 0, 1, 1]], layer 5 [[1, 1, 1, 0],
# [1, 1, 1, 1]].


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def layer_mask(layer, t, s, window, every):
    query, key = torch.arange(s - t, s)[:, None], torch.arange(s)
    seen = key <= query
    if (layer + 1) % every != 0:
        seen = seen & (key > query - window)
    return seen


# %%
figures.variants.windows([layer_mask(i, 12, 12, 3, 6) for i in range(6)])

# %%
gemma3 = text_config("gemma3_text")
length, layers = gemma3.max_position_embeddings, range(gemma3.num_hidden_layers)
kept = sum(gemma3.sliding_window if gemma3.slides(i) else length for i in layers)
reveal("percent of the cache", guess_percent, f"{100 * kept / (length * len(layers)):.1f}")
for name, base in (("sliding", gemma3.rope_local_base_freq), ("full", gemma3.rope_theta)):
    slowest = 2 * math.pi * base ** (1 - 2 / gemma3.head_dim)
    print(f"{name:8} base {base:9,.0f}: the slowest pair turns once in {slowest:9,.0f} tokens")

# %% [markdown]
# The last change follows from that: **two bases**. Layers that look back 512 tokens keep Gemma 1's base. Full
# layers must tell places apart in texts of 32,768 tokens and more, so they turn more slowly.
#
# ## Check
#
# Our pieces against the package's. Its tests compare the logits of all four kinds with transformers', and
# SmolLM2's, too: transformers reads the same file with its own code.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
mlp, x, weight = GeGLU(12, 20, "silu"), torch.randn(2, 5, 12), torch.randn(24, 7)
with torch.no_grad():
    given = [part.weight for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    print("MLP: ", torch.allclose(swiglu(x, *given), mlp(x), atol=1e-5))
print("rows:", torch.equal(halves_from_pairs(weight, 8), variants.halves_from_pairs(weight, 8)))

# %% [markdown]
# ## In the real model
#
# All differences, as fields of one config. The package has *one* decoder layer for the four, in
# `minipali/gemma.py`.

# %% tags=["nbval-check-output"]
FIELDS = """hidden_activation norm_offset scale_embeddings post_norms qk_norm attn_logit_softcapping
final_logit_softcapping sliding_window sliding_window_pattern rope_theta rope_local_base_freq"""
kinds = [text_config(kind) for kind in ("llama", "gemma", "gemma2", "gemma3_text")]
print(f"{'':24}" + "".join(f"{one.model_type:>19}" for one in kinds))
for field in FIELDS.split():
    print(f"{field:24}" + "".join(f"{getattr(one, field)!s:>19}" for one in kinds))

# %% [markdown]
# `gemma2` is also the decoder of PaliGemma 2. Here is Gemma 3 270M itself, if you have accepted its terms.
# It continues a text; it was not trained to chat.

# %%
try:
    large, its_tokenizer = variants.load("gemma3")
    print(variants.answer(large, its_tokenizer, "The capital of France is", max_new_tokens=12))
except published.PublishedError:
    print("Gemma 3 is not on this computer: `python course.py weights gemma3` shows its terms.")

# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/20_variants.ipynb). Your pieces make SmolLM2 answer. It has
# one piece more that no cell of this lesson shows: the training of a tokenizer.
#
# ## Take away
#
# - Llama and Gemma 1 differ in an activation, a norm's 1, a factor, and in the order of rows in a file.
# - Gemma 2 and 3 keep numbers small (norms behind the parts, caps, then QK-norm) and the cache short
#   (sliding layers, two RoPE bases).
# - A model with one mistake can look right (base), or be useless (1 + w). Compare with known results,
#   piece by piece.
#
# **Self-test**
#
# <details><summary>You repair a loader. One change that you are sure of makes the loss worse. What do you
# do?</summary>
#
# Keep it, and look for what else is wrong. As long as one thing is far off, the loss says nothing about
# the others.
# </details>
#
# <details><summary>Six layers slide with a window of 3. How far back can something lie that has an influence
# on a token?</summary>
#
# 6 · 2 = 12 tokens: each layer reaches two further.
# </details>
#
# <details><summary>Do the rows of the values have to be put in order, too?</summary>
#
# No. RoPE turns queries and keys alone, and a row of v meets the same column of o as before.
# </details>
#
# **Sources.** Llama: Touvron et al. 2023, arXiv 2302.13971. SwiGLU: Shazeer 2020, arXiv 2002.05202. SmolLM2:
# Ben Allal et al. 2025, arXiv 2502.02737. Gemma 2: Gemma Team 2024, arXiv 2408.00118 (model architecture).
# Gemma 3: Gemma Team 2025, arXiv 2503.19786 (model architecture); the 270M's numbers: its config.json.
# QK-norm: Henry et al. 2020, arXiv 2010.04245. BPE for text: Sennrich et al. 2016, arXiv 1508.07909.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | Gemma's decoder is a model of its own | it is Llama's, with an activation, a norm's 1 and a factor changed; four families share one layer here |
