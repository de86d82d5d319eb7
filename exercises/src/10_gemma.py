# %% [markdown]
# # Exercise 10 · Gemma
#
# You write the decoder from the token ids to the logits: the gated MLP, the layer, the way in, the
# stack, and the head. Each is two to four lines. The sixth piece stands in no lesson: you take the
# numbers out of the norms, and the layer does the same. At the end all of it works inside the trained
# model.
#
# The lesson is [notebooks/10_gemma.ipynb](../notebooks/10_gemma.ipynb). Time: 60 minutes, 25 of them
# for the sixth piece. Names inside your functions are yours; the order of the arguments is not. All
# numbers are float32 (ids apart), in and out. The arguments of your functions must stay unchanged; what
# a function gives back to you is yours.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. The gated MLP
#
# Gate and up read the same `x`. The gate is bent by GELU in its tanh form, and multiplied by up, entry
# by entry; down brings the product back to the width d. A weight has the shape (outputs, inputs).
# There are no biases, and `x` is not added here. Gates may be large (up to some tens): bend them as they
# are, and see that no number of the result is infinite or nan.


# %%
def geglu(x, gate_weight, up_weight, down_weight):
    """Gemma's MLP, for each token alone.

    x: (b, t, d); gate_weight, up_weight: (hidden, d); down_weight: (d, hidden)
    returns: (b, t, d)
    """
    ### BEGIN SOLUTION
    gate = F.gelu(F.linear(x, gate_weight), approximate="tanh")  # (b, t, hidden)
    return F.linear(gate * F.linear(x, up_weight), down_weight)
    ### END SOLUTION


# %%
check("geglu", geglu)

# %% [markdown]
# Stuck? Run `hint("geglu", 1)`, then `2`, then `3` in a new cell. Each part has its own hints.
#
# ## 2. The layer
#
# You get four functions that are ready to call: `norm1(x)`, `attention(x)`, `norm2(x)` and `mlp(x)`.
# Each takes (b, t, d) and returns (b, t, d). The layer is pre-norm: a norm prepares what is *read*,
# `norm1` for attention and `norm2` for the MLP. (In the checkpoint `norm2` is called
# `post_attention_layernorm`, because it comes after attention. But what attention gives is not normed
# before it is added.) Attention and MLP each add to the stream, which itself is never normed. Call
# `attention` once: with a cache it remembers what it has read. (The other three remember nothing.)


# %%
def decoder_layer(x, norm1, attention, norm2, mlp):
    """One layer of Gemma on the residual stream.

    x: (b, t, d), the stream; norm1, attention, norm2, mlp: functions (b, t, d) -> (b, t, d)
    returns: (b, t, d), the stream after this layer
    """
    ### BEGIN SOLUTION
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))
    ### END SOLUTION


# %%
check("decoder_layer", decoder_layer)

# %% [markdown]
# ## 3. The way in
#
# For each token id its row of the table, times sqrt(d), where d is the width of the table. All ids are
# treated alike.


# %%
def embed(input_ids, table):
    """Token ids to vectors.

    input_ids: (b, t), int64, from 0 to v - 1; table: (v, d), row i belongs to token i
    returns: (b, t, d)
    """
    ### BEGIN SOLUTION
    return table[input_ids] * table.shape[1] ** 0.5
    ### END SOLUTION


# %%
check("embed", embed)

# %% [markdown]
# ## 4. The stack
#
# All layers in their order, the first one first. (One that stands twice in `layers` works twice.) Each
# takes the stream and returns the whole new stream. After the last one comes the final norm. There may
# be any number of layers. With none, only the norm works. A layer is a function, and need not be a
# module of torch.


# %%
def decoder(x, layers, norm):
    """All layers of Gemma.

    x: (b, t, d), the stream; layers: a list or tuple of functions, each one whole layer,
    (b, t, d) -> (b, t, d); norm: the final norm, (b, t, d) -> (b, t, d)
    returns: (b, t, d), ready for the head
    """
    ### BEGIN SOLUTION
    for layer in layers:
        x = layer(x)
    return norm(x)
    ### END SOLUTION


# %%
check("decoder", decoder)

# %% [markdown]
# ## 5. The head
#
# A logit for each token of the vocabulary, at every place: how much the vector there agrees with each
# row of the table. The head has no weights of its own: you get the embedding table, as it is stored.
# The logits are neither scaled nor capped.


# %%
def logits(x, table):
    """Vectors to logits.

    x: (b, t, d), as the decoder returns it, or (b, d), one token a row; table: (v, d)
    returns: (b, t, v), or (b, v): write it so that both work
    """
    ### BEGIN SOLUTION
    return x @ table.T
    ### END SOLUTION


# %%
check("logits", logits)

# %% [markdown]
# ## 6. Norms without numbers
#
# A norm of Gemma does two things to a token. It divides the token by its root mean square, and it
# multiplies each feature by a factor, 1 + weight. The second step needs no norm. What reads the result
# is a matrix, and a matrix can multiply features, too. So a layer can give its norms' factors to its
# matrices. The norms then only divide, and the layer computes the same. (Methods that keep a model in
# few bits begin like this: QuaRot, Ashkboos et al. 2024.) A factor may be negative, or 0.
#
# Write the nine weights of that new layer. Two results to hold yours against:
#
# - The norm weight (1, -0.5) stands before the matrix [[3, 4]]. The new matrix is [[6, 2]]. Check it with
#   a token that is (1, 1) after the division: 2 · 3 + 0.5 · 4 = 8 before, and 8 after.
# - If both norms have weights of 0, all nine weights come back as they are.
#
# Before you write: which of the seven matrices read what a norm gives? And which weight does a norm
# need that only divides?


# %%
def fold_norms(norm1, query, key, value, out, norm2, gate, up, down):
    """The weights of a layer that computes the same, with two norms that only divide.

    norm1, norm2: (d,), as Gemma stores them: the factor is 1 + weight. The others are matrices,
    (outputs, inputs). query: (q, d); key, value: (kv, d); out: (d, q), what attention gives to the
    stream; gate, up: (hidden, d); down: (d, hidden)
    returns: all nine, a tuple or list, in the order of the arguments and with their shapes; what does
    not change may be the same tensor, and the two norms may be one
    """
    ### BEGIN SOLUTION
    first, second = 1 + norm1, 1 + norm2  # one factor for each input: for each column of a matrix
    attention = query * first, key * first, value * first, out
    return (
        torch.zeros_like(norm1),
        *attention,
        torch.zeros_like(norm2),
        gate * second,
        up * second,
        down,
    )
    ### END SOLUTION


# %%
check("fold_norms", fold_norms)

# %% [markdown]
# ## 7. Inside the model
#
# `swap` makes a copy of the trained model in which your first five functions do the work, with the
# trained weights. It compares all layers, once for a whole question and once with a cache, and two
# whole answers.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap, whose

model, processor = load("small")
mine = swap(
    model, embed=embed, geglu=geglu, decoder_layer=decoder_layer, decoder=decoder, logits=logits
)

# %% [markdown]
# Ask both models about a picture that neither saw in training. The answers must be the same.

# %%
picture = examples()["dog_and_car_test_artist"]
questions = "caption en", "answer en what is on the left?", "detect dog"
for prompt in questions:
    for one in (model, mine):
        print(f"{whose(one):8} {prompt:32} {generate(one, processor, picture, prompt)}")

# %% [markdown]
# And a third copy, in which all four layers have the weights that your `fold_norms` makes of theirs.
# Different numbers, the same answers.

# %%
import copy

light = copy.deepcopy(model)
with trying("the model with folded norms"):
    for layer in light.language_model.layers:
        a, m = layer.self_attn, layer.mlp
        parts = [layer.input_layernorm, a.q_proj, a.k_proj, a.v_proj, a.o_proj]
        parts += [layer.post_attention_layernorm, m.gate_proj, m.up_proj, m.down_proj]
        folded = fold_norms(*(part.weight.detach() for part in parts))
        for part, weight in zip(parts, folded, strict=True):
            part.weight.data = weight
    batch = processor([picture], ["caption en"])
    with torch.no_grad():
        apart = (light(**batch) - model(**batch)).abs().max()
    print(f"largest difference of a logit: {apart:.5f}")
    for prompt in questions:
        print(f"folded   {prompt:32} {generate(light, processor, picture, prompt)}")

# %% [markdown]
# ## Go on
#
# - Write a `decoder` that leaves out one layer and `swap` it in. Which of the four layers can the
#   model do without, for which questions? What about the order of layers 2 and 3?
#   <details><summary>Answer</summary>Try the three pictures by the new artist. Without layer 1, names
#   are repeated until the limit. Without 2, the colours go wrong. Without 3, nearly all answers stay,
#   but a box can be wrong. Without 4, boxes and captions break and short answers hold. If 2 and 3
#   change places, the colours go wrong, as without 2.</details>
# - Write a `geglu` with `F.silu`, the gate of Llama. Do `check`, `swap` and the answers agree about
#   it? Then try no bend at all.
#   <details><summary>Answer</summary>`check` names it, `swap` finds a difference of about 1 in the first
#   layer, and on these pictures every answer stays. Without a bend long answers break, and some short
#   ones. Same answers do not prove the same model.</details>
# - Take the plain dot product in `logits`, but set the logit of `processor.encode("pink")[0]` to minus
#   infinity. What does the model say about the background now? (Some words stand in the table twice.)
#   <details><summary>Answer</summary>On the pink picture it says ` pink background`, with a space in front.
#   The table has a second row for pink, as a word inside a sentence. That row was next, and after it
#   the model goes on as in a caption.</details>
# - The final norm has a weight, too, and after it comes a matrix: the head. Why can the head not take
#   it up?
#   <details><summary>Answer</summary>The head is the embedding table. With other columns in it, `embed`
#   would send other vectors into the first layer. It works only for a model whose head is a matrix of
#   its own.</details>
