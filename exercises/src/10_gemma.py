# %% [markdown]
# # Exercise 10 · Gemma
#
# You write the decoder from the token ids to the logits: the way in, the gated MLP, the layer, the
# stack, and the head. Each is two to four lines. At the end all five work inside the trained model.
#
# The lesson is [notebooks/10_gemma.ipynb](../notebooks/10_gemma.ipynb). Time: 35 minutes. Names
# inside your functions are yours; the order of the arguments is not.

# %%
import torch
import torch.nn.functional as F

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The way in
#
# A row of the table for each token id, times the factor that Gemma puts on its words.


# %%
def embed(input_ids, table):
    """Token ids to vectors.

    input_ids: (b, t), whole numbers; table: (v, d), one row for each token of the vocabulary
    returns: (b, t, d)
    """
    ### BEGIN SOLUTION
    return table[input_ids] * table.shape[1] ** 0.5
    ### END SOLUTION


# %%
check("embed", embed)

# %% [markdown]
# Stuck? Run `hint("embed", 1)`, then `2`, then `3` in a new cell. Each part has its own hints.
#
# ## 2. The gated MLP
#
# Gate and up read the same `x`. The gate is bent by GELU, in the form that Gemma was trained with.
# A weight has the shape (outputs, inputs). There are no biases, and `x` is not added here.


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
# ## 3. The layer
#
# You get four functions that are ready to call: `norm1(x)`, `attention(x)`, `norm2(x)` and `mlp(x)`.
# Each takes (b, t, d) and returns (b, t, d). In the checkpoint `norm2` is called
# `post_attention_layernorm`. What does it serve?


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
# ## 4. The stack
#
# All layers, and what comes after the last one.


# %%
def decoder(x, layers, norm):
    """All layers of Gemma.

    x: (b, t, d), the stream; layers: a list of functions, each one whole layer,
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
# A logit for each word of the vocabulary. The head has no weights of its own: you get the embedding
# table.


# %%
def logits(x, table):
    """Vectors to logits.

    x: (b, t, d), as the decoder returns it (or (b, d), one token a row); table: (v, d)
    returns: (b, t, v), or (b, v)
    """
    ### BEGIN SOLUTION
    return x @ table.T
    ### END SOLUTION


# %%
check("logits", logits)

# %% [markdown]
# ## 6. Inside the model
#
# `swap` makes a copy of the trained model in which your five functions do the work, with the trained
# weights. It compares all layers, once for a whole question and once with a cache, and two whole
# answers.

# %%
from minipali import generate, load
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(
    model, embed=embed, geglu=geglu, decoder_layer=decoder_layer, decoder=decoder, logits=logits
)

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
# - Write a `decoder` that leaves out one layer and `swap` it in. Which of the four layers can the
#   model do without, for which questions? What about the order of layers 2 and 3?
# - Write a `geglu` with `F.silu`, the gate of Llama. Do `check`, `swap` and the answers agree about
#   it? Then try no bend at all.
# - Take the plain dot product in `logits`, but set the logit of `processor.encode("pink")[0]` to minus
#   infinity. What does the model say about the background now? (Some words stand in the table twice.)
