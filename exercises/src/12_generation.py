# %% [markdown]
# # Exercise 12 · Generation
#
# You write the distribution that tokens are drawn from, the loop that makes an answer of them, and
# the whole way from pixels to tokens. At the end the trained model speaks through your code.
#
# The lesson is [notebooks/12_generation.ipynb](../notebooks/12_generation.ipynb). Time: 40 minutes.
# Names inside your functions are yours; the order of the arguments is not.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. The distribution
#
# Temperature (above 0), then top-k, then top-p. `None` means: do not cut. Top-p counts within what
# top-k has left, and the token that crosses p stays. Each row of the result sums to 1, and each
# probability stands at the place of its token.


# %%
def distribution(logits, temperature, top_k, top_p):
    """What the next token is drawn with.

    logits: (b, v); temperature: a number above 0; top_k: None or 1, 2, ...; top_p: None, or above 0
    and at most 1
    returns: (b, v)
    """
    ### BEGIN SOLUTION
    ordered, tokens = (logits / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    probabilities = ordered.double().softmax(dim=-1)  # float32 rounds too much for exact sums
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    probabilities = (probabilities / probabilities.sum(dim=-1, keepdim=True)).float()
    return torch.zeros_like(probabilities).scatter(-1, tokens, probabilities)
    ### END SOLUTION


# %%
check("distribution", distribution)

# %% [markdown]
# Stuck? Run `hint("distribution", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. The loop
#
# You get the logits for the first token, and two functions. `choose(logits)` gives one token a row.
# `step(tokens, running)` passes these tokens through the model and returns the logits for the next
# ones; `running` tells it which rows have not said `eos` yet, counting these tokens.
#
# - Give out the tokens of each step, `(b,)`. The `eos` is given out too. After it, the row gives `pad`.
# - End when every row has said `eos`, or after `max_new_tokens` tokens. Never call `step` when no row
#   is running any more.
#
# Use `yield`, and the answer can be shown while it grows. (A list is right too, but then nobody sees
# a word before the last one is done.)


# %%
def continue_tokens(logits, step, choose, eos, pad, max_new_tokens):
    """Give out one token a row and step.

    logits: (b, v); step: (tokens (b,), running bool (b,)) -> (b, v); choose: (b, v) -> (b,)
    yields: (b,), again and again
    """
    ### BEGIN SOLUTION
    running = torch.ones(len(logits), dtype=torch.bool)
    for number in range(max_new_tokens):
        tokens = torch.where(running, choose(logits), pad)
        yield tokens
        running = running & (tokens != eos)
        if number + 1 == max_new_tokens or not running.any():
            return
        logits = step(tokens, running)
    ### END SOLUTION


# %%
check("continue_tokens", continue_tokens)

# %% [markdown]
# ## 3. From pixels to tokens
#
# Now you are the one who calls the model. Here it is two functions:
#
# - `look(pixels)` is the vision tower: `(b, 3, y, x)` to image tokens `(b, n, d)`. It is expensive. In
#   this check it also notices when somebody uses it twice.
# - `read(tokens, image)` is the decoder: tokens `(b, t)` to the logits `(b, v)` after the last of them. It
#   **remembers** all that it has read, as a model with a cache does. `image` is what `look` gave, or
#   `None` if there is nothing new to see.
#
# The table has more rows than there are tokens: only the first `usable` columns of the logits may ever be
# chosen. Use your `continue_tokens`. (All prompts here have the same length, and `read` knows what
# padding is, so `running` is not needed in your step.)


# %%
def answer(pixels, prompt, look, read, choose, usable, eos, pad, max_new_tokens):
    """Prefill, then token by token.

    pixels: (b, 3, y, x); prompt: (b, s) tokens; choose: (b, v) -> (b,)
    returns: the answers, (b, t) tokens
    """

    ### BEGIN SOLUTION
    def masked(logits):
        hidden = torch.arange(logits.shape[-1]) >= usable
        return logits.masked_fill(hidden, float("-inf"))

    def step(tokens, running):
        return masked(read(tokens[:, None], None))

    logits = masked(read(prompt, look(pixels)))
    steps = continue_tokens(logits, step, choose, eos, pad, max_new_tokens)
    return torch.stack(list(steps), dim=1)
    ### END SOLUTION


# %%
check("answer", answer)

# %% [markdown]
# ## 4. Inside the model
#
# `swap` puts your distribution and your loop into the trained model and compares answers, chosen and
# drawn, with the package's.

# %%
from minipali import generate, load, stream
from minipali.scenes import examples
from minipali.swap import swap

model, processor = load("small")
mine = swap(model, distribution=distribution, continue_tokens=continue_tokens)

# %% [markdown]
# Ask both models about a picture by an artist whose drawings neither saw in training: first greedy, then
# drawn with a seed. With the same seed the answers must be the same.

# %%
picture = examples()["two_frogs_and_pizza_test_artist"]
drawn = {"temperature": 2.5, "top_k": 40, "top_p": 0.95}
for how in ({}, {"seed": 1, **drawn}, {"seed": 2, **drawn}):
    for name, one in (("package", model), ("mine", mine)):
        said = generate(one, processor, picture, "caption en", **how)
        print(f"{name:8} seed {how.get('seed', '-')}: {said}")

# %% [markdown]
# And piece by piece, as it comes out of your loop:

# %%
for piece in stream(mine, processor, picture, "caption en"):
    print(piece, end="|", flush=True)

# %% [markdown]
# ## Go on
#
# - Draw ten captions at temperature 1 and ten at 2.5. How many different ones do you get? How many
#   are true?
# - Let `distribution` ignore its top-k and `swap` it in. Does swap notice? Do greedy answers change?
# - Write a `choose` for `min-p`: keep each token whose probability is at least a tenth of the largest.
#   What does it do for a sure model, and what for an unsure one?
