# %% [markdown]
# # Exercise 12 · Generation
#
# You write the distribution that tokens are drawn from, the loop that makes an answer of them, and
# the whole way from pixels to tokens. The fourth piece stands in no lesson: it makes sure that an
# answer is a list of boxes, whatever the model would like to say. At the end the trained model speaks
# through your code.
#
# The lesson is [notebooks/12_generation.ipynb](../notebooks/12_generation.ipynb). Time: 90 minutes, 35 of
# them for the fourth piece. Names inside your functions are yours; the order of the arguments is not.
# The arguments of your functions must stay unchanged; what a function gives back to you is yours.
# Tensors of tokens are int64.

# %%
import torch

from minipali.checks import check, hint, trying

# %% [markdown]
# ## 1. The distribution
#
# Temperature (above 0), then top-k, then top-p. `None` means: do not cut.
#
# - The logits are divided by the temperature, before the softmax.
# - Top-k keeps the `top_k` most likely tokens of each row. If there are not so many, it keeps all.
# - Top-p keeps the fewest most likely tokens that have the probability `top_p` or more together. The
#   token that crosses it stays. It counts within what top-k has left, made to sum to 1. (`top_p` = 1
#   needs no rule of its own: should rounding cut off the last tokens, they are too small to count.)
#
# What is cut has the probability 0. Each row of the result sums to 1, and each probability stands at
# the place of its token. Logits may be large (some hundreds). Some, but not all of a row, are minus
# infinity: tokens that were forbidden before. No two finite ones of a row are equal, also after the
# division, and no sum comes so near to a `top_p` below 1 that rounding decides.


# %%
def distribution(logits, temperature, top_k, top_p):
    """What the next token is drawn with.

    logits: (b, v), float32; temperature: a number above 0; top_k: None or 1, 2, ..., also above v;
    top_p: None, or above 0 and at most 1
    returns: (b, v), float32
    """
    ### BEGIN SOLUTION
    ordered, tokens = (logits / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    probabilities = ordered.double().softmax(dim=-1)  # float32 rounds too much for exact sums
    if top_p is not None and top_p < 1:
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
# You get the logits for the first token, and two functions. `choose(logits)` takes logits as they come
# and gives one token a row. How it chooses is its own affair: it may draw, so ask it once a step, for
# all rows together.
# `step(tokens, running)` passes tokens through the model and returns the logits for the next ones. It
# wants the tokens that you have just given out, `pad` included. In `running`, `(b,)`, it wants True for
# the rows that go on: those that have not said `eos`, neither earlier nor in these tokens.
#
# - Give out the tokens of each step, `(b,)`, and do not write into them later. (`running` may be one
#   tensor that you write into.) The `eos` is given out too. After it, the row gives `pad`, whatever is
#   chosen for it.
# - Only `eos` ends a row. A running row may choose `pad`, as any token, and goes on. `eos` and `pad` are
#   two different numbers; which ones, the arguments say.
# - End as soon as every row has said `eos`, and after `max_new_tokens` tokens at the latest (1 or more).
#   No useless steps: never call `step` when no row is running, and not after the last token.
#
# Use `yield`, and the answer can be shown while it grows. (A list or tuple of the steps is right too,
# but then nobody sees a word before the last one is done. One tensor for all steps is not.)


# %%
def continue_tokens(logits, step, choose, eos, pad, max_new_tokens):
    """Give out one token a row and step.

    logits: (b, v), for the first token; step: function (tokens (b,), running bool (b,)) -> (b, v);
    choose: function (b, v) -> (b,); eos, pad: one token each
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
# - `look(pixels)` is the vision tower: `(b, 3, y, x)` to image tokens `(b, n, d)`. It is expensive: call
#   it once.
# - `read(tokens, image)` is the decoder: tokens `(b, m)` to the logits `(b, v)` after the last of them. It
#   **remembers** all that it has read, as a model with a cache does. The first call takes the whole
#   prompt, because its tokens see each other, and as `image` what `look` gave. From then on it takes only
#   what is new, one token a row with an axis of its own, `(b, 1)`, and `None` as `image`.
#
# The table has more rows than there are tokens: only the first `usable` columns of the logits may ever be
# chosen. Give each call of `choose` all columns, the others at minus infinity, or those `usable` alone.
# Use your `continue_tokens`: part 2 must be right first. (All prompts here have the same length, and
# `read` knows what padding is, so `running` is not needed in your step.)


# %%
def answer(pixels, prompt, look, read, choose, usable, eos, pad, max_new_tokens):
    """Prefill, then token by token.

    pixels: (b, 3, y, x); prompt: (b, s), tokens; look, read: functions, see above;
    choose: function (b, v) -> (b,); usable: how many columns are tokens; eos, pad: one token each
    returns: the answers without the prompt, (b, t), all that the loop gives out
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
# ## 4. It can only say boxes
#
# A program that asks "detect frog" wants boxes, and a model can say anything. You cannot make it right,
# but you can make it *well formed*: before each choice, forbid every token that no right answer could
# have in that place. Their logits become minus infinity, and `choose` takes one of the others.
#
# A right answer is this:
#
# - It ends at once (`eos`, nothing is seen), or it has one or more boxes with `between` from one to the
#   next, and then `eos`.
# - A box is four places and a name. The places are y0, x0, y1, x1, and any token that `is_place` marks
#   is one. For y a larger token lies further down, for x further to the right, so y1 is at least y0, and
#   x1 at least x0. (Equal is allowed.)
# - The name is one of `names`, all its tokens in order. One name may be the beginning of another: after
#   "fire", "fire truck" is still possible, and so is the end of the name.
# - `between` is one token or more, all of them, in order. Places, names, `between` and eos have no token
#   in common; two names may, and a token may come twice in one name or in `between`.
#
# Say which tokens may come next. Two results to hold yours against, with the places 4 to 11, the names
# [12] and [12, 13], between [3] and eos 1:
#
# - After [6, 5] the places 6 to 11 may come.
# - After [6, 5, 9, 7, 12] three tokens may come. Which? (And after [6, 5, 9, 7, 12, 13]?)


# %%
def allowed_next(told, is_place, names, between, eos):
    """Which tokens may come next in an answer that is boxes with names.

    told: list of the tokens so far, the beginning of a right answer, without eos
    is_place: bool (v,), True for tokens that are places, at least one (there may be gaps between)
    names: list of one name or more, all different, each a list of one token or more; between: list of
    one token or more; eos: one token
    returns: bool (v,)
    """
    ### BEGIN SOLUTION
    number = torch.arange(len(is_place))
    if not told:
        return is_place | (number == eos)
    places = [i for i, token in enumerate(told) if is_place[token]]
    if inside := len(places) % 4:  # a box has begun, and has so many places
        return is_place & (number >= told[-2]) if inside > 1 else is_place
    tail = told[places[-1] + 1 :]  # what follows the last place
    allowed = torch.zeros_like(is_place)
    for name in names:
        way = [*name, *between]
        if tail == way:
            return is_place
        if tail == way[: len(tail)]:
            allowed[way[len(tail)]] = True
        if tail == name:
            allowed[eos] = True
    return allowed
    ### END SOLUTION


# %%
check("allowed_next", allowed_next)

# %% [markdown]
# ## 5. Inside the model
#
# `swap` puts your distribution and your loop into the trained model and compares answers, chosen and
# drawn, with the package's.

# %%
from minipali import generate, load, stream
from minipali.scenes import examples
from minipali.swap import put, swap, whose

model, processor = load("small")
mine = swap(model, distribution=distribution, continue_tokens=continue_tokens)

# %% [markdown]
# Ask both models about a picture by an artist whose drawings neither saw in training: first greedy, then
# drawn with a seed. With the same seed the answers must be the same.

# %%
picture = examples()["two_frogs_and_pizza_test_artist"]
drawn = {"temperature": 2.5, "top_k": 40, "top_p": 0.95}
for how in ({}, {"seed": 1, **drawn}, {"seed": 2, **drawn}):
    for one in (model, mine):
        said = generate(one, processor, picture, "caption en", **how)
        print(f"{whose(one):8} seed {how.get('seed', '-')}: {said}")

# %% [markdown]
# And piece by piece, as it comes out of your loop:

# %%
for piece in stream(mine, processor, picture, "caption en"):
    print(piece, end="|", flush=True)

# %% [markdown]
# Now boxes. The model that is asked here draws its tokens at temperature 2, which is far too much: it
# loses itself. The second model has the same weights, the same seeds and the same temperature, and your
# `allowed_next` before each choice. (`put` is `swap` without a comparison: this model is meant to be
# different.) Its names are all things that can be in a scene.

# %%
from minipali.scenes import OBJECTS

is_place = torch.zeros(model.config.text.vocab_size, dtype=torch.bool)
is_place[processor.first_location : processor.first_location + 1024] = True
names = [processor.encode(" " + name) for name in OBJECTS]
between = processor.encode(" ; <loc0000>")[:-1]


def boxes_alone(logits, step, choose, eos, pad, max_new_tokens):
    told = []

    def choose_allowed(logits):
        allowed = allowed_next(told, is_place, names, between, eos)
        tokens = choose(logits.masked_fill(~allowed, float("-inf")))
        told.append(int(tokens[0]))
        return tokens

    yield from continue_tokens(logits, step, choose_allowed, eos, pad, max_new_tokens)


with trying("the model with your forms"):
    for name, one in (("free", model), ("boxes", put(model, continue_tokens=boxes_alone))):
        for seed in range(4):
            said = generate(one, processor, picture, "detect frog", 24, temperature=2.0, seed=seed)
            print(f"{name:6} {said!r}")

# %% [markdown]
# Every answer of the second model can be read, and some are wrong: a form is no truth.
#
# ## Go on
#
# - Draw ten captions at temperature 1 and ten at 2.5. How many different ones do you get? How many
#   are true?
#   <details><summary>Answer</summary>At 1, with seeds 0 to 9 and the frogs, two different captions,
#   and one of them is true. At 2.5 ten different ones, none true, most of them no sentence.</details>
# - Let `distribution` ignore its top-k and `swap` it in. Does swap notice? Do greedy answers change?
#   <details><summary>Answer</summary>It does, in a drawn answer: with another set to draw from the same
#   random number means another token. Greedy answers stay: they take the largest logit and never ask
#   `distribution`.</details>
# - Write a `choose` for `min-p`: keep each token whose probability is at least a tenth of the largest.
#   What does it do for a sure model, and what for an unsure one?
#   <details><summary>Answer</summary>`p = logits.softmax(-1)`, `p[p < 0.1 * p.amax(-1, keepdim=True)] =
#   0`, then draw. A sure model keeps one token, an unsure one many: as top-p does, but a token is judged
#   by its distance from the best and not by the sum of those before it.</details>
# - Give `allowed_next` the name of the question alone, `names = [processor.encode(" frog")]`. What is
#   better now, and what can you no longer see?
#   <details><summary>Answer</summary>No box has a wrong name any more. But a model that takes a pizza
#   for a frog, and would have said "pizza", now has to say "frog": the form hides a doubt.</details>
