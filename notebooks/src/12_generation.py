# %% [markdown]
# # 12 · Generation: one distribution, many ways to choose
#
# The model is complete. But it does not speak yet. What comes out of it is one number for each
# token of its vocabulary. Somebody has to choose a token, hand it back, ask for the next one, and
# know when to stop. That is a short loop, and today you write it.
#
# ## Do you remember?
#
# <details><summary>The decoder returns (3, 46, 128), and its table has 1,856 rows. You want the logits of
# the last place only. What is their shape?</summary>
#
# (3, 1856): <code>x[:, -1] @ table.T</code>.
# </details>
#
# <details><summary>36 patches, 4 tokens of a question, and an answer of 10 tokens: why are only 49 places
# of the cache filled at the end?</summary>
#
# The last token was chosen and not fed back, so it has no key and no value.
# </details>
#
# <details><summary>A colleague's processor forgets the newline after the question. All answers are empty.
# Why?</summary>
#
# The newline says that the question ends. In training, a text without it was a finished answer, and the
# next token after that is <code>&lt;eos&gt;</code>.
# </details>
#
# ## Where we are

# %%
import torch

from minipali import figures, generate, generation, hooks, load, scenes
from minipali.checks import reveal
from minipali.evaluation import evaluation_set

torch.set_grad_enabled(False)  # today we only ask
model, processor = load("small")
figures.model_map("head", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **shape** the distribution of the next token by temperature, top-k and top-p, and draw from it,
# 2. **write** the loop that reads the question once, feeds tokens back, and stops row by row,
# 3. **decide** for a task whether to draw at all.
#
# Time: 70 minutes. You need: softmax (lesson 03), padding (06), the cache (08), the whole model (11).
#
# ## Predict
#
# Here is a picture by an artist whose drawings were never trained on. You see three frogs.

# %%
asked = evaluation_set(scenes.VALIDATION_ARTIST, 100, 0, ("places",))
scene, question = asked[25]
told = "Three bright green frogs on a white background; two at the left, one at the right."
figures.pictures([scene.picture], [question.prompt], told)

# %% [markdown]
# 1. The model orders all its tokens by how likely they are. At which place will *frog* stand?
# 2. Of 100 such questions the model answers 75 right, if it always takes the most likely token. How
#    many if each token is drawn at random, at temperature 2, which makes the chances more equal?
# 3. An answer has ten tokens. How many times does the vision tower have to run?

# %%
guess_place, guess_drawn, guess_looks = ..., ..., ...

# %% [markdown]
# ## By hand: four tokens
#
# A model gives four tokens the odds 4 : 2 : 1 : 1. So their probabilities are 1/2, 1/4, 1/8, 1/8.
# The **logits** are the logarithms of the odds. There are four ways to go on. On paper, the share
# of the first token:
#
# - **Greedy**: take the most likely token, always. The first token gets 1.
# - **Temperature** T: divide the logits by T. For T = 1/2 they double, and twice a logarithm is the
#   logarithm of the square. The odds become 16 : 4 : 1 : 1, and the first token gets 16/22 = 0.73.
#   For T = 2 they become the square roots 2 : 1.41 : 1 : 1, and it gets 0.37.
# - **Top-k**: keep the k most likely tokens. For k = 2, 4 : 2 are left, so it gets 2/3.
# - **Top-p**: keep the fewest tokens that reach p together. For p = 0.7, the first has 0.5, which is
#   not enough. The second brings it to 0.75. It crosses 0.7, **and it stays**. The first gets 2/3.
#
# How do you draw a token? Cut a stick of length 1 into pieces as long as the probabilities: the first
# from 0 to 0.5, the second to 0.75, the third to 0.875, the last to 1. Take a random number between
# 0 and 1. The piece that it falls on is the token. On paper: which token does 0.8 give?

# %% tags=["nbval-check-output"]
four = torch.tensor([4.0, 2.0, 1.0, 1.0]).log()
ends = four.softmax(dim=0).cumsum(dim=0)
print("0.8 gives token", int((ends <= 0.8).sum()) + 1)
for temperature in (0.5, 2.0):
    good, bad = (four / temperature).softmax(dim=0), four.softmax(dim=0) / temperature
    print(f"{temperature}: {good[0]:.2f}, but after the softmax {bad[0] / bad.sum():.2f}")

# %% [markdown]
# The last number of each line comes from a mistake worth knowing. Dividing *probabilities* by T
# changes all of them by the same factor, and making them sum to 1 takes the factor out again.
# **The temperature does nothing at all**, and no error tells you.
#
# ## Build: the distribution
#
# Each place predicts the token *after* it, so we need the logits of the last place alone. And not every
# row of the table is text: the last 64 are `<image>` and rows that fill the table up to a round size.
# Nobody may ever draw them, so they are cut off **before** anything else.

# %%
batch = processor([scene.picture for scene, _ in asked], [q.prompt for _, q in asked])
text = model.config.image_token_id  # rows from here on are no text
logits = model(**batch)[:, -1]  # (b, v)
for temperature in (1, 2, 5):
    share = (logits / temperature).softmax(dim=-1)[:, text:].sum(dim=-1).mean()
    print(f"temperature {temperature}: {share:.5f} of all draws would be no text")
logits = logits[:, :text]

# %% [markdown]
# With the logits $z$ and the temperature $T$, token $i$ has the probability
#
# $$p_i = \frac{e^{z_i / T}}{\sum_j e^{z_j / T}}.$$
#
# Then top-k, and then top-p, which counts within what top-k has left. Order the tokens by $p_i$. Token
# $i$ stays as long as those **before** it have not reached $p$ together:
# $\sum_{j \text{ before } i} p_j < p$. So the one that crosses p stays, and there is always one. At the
# end the rows sum to 1 again.
#
# **Write it now**: [exercise 12](../exercises/12_generation.ipynb), part 1. In and out: (b, v). Two
# results for the odds 4 : 2 : 1 : 1. Temperature 1 and top-p 0.7 give 2/3, 1/3, 0, 0. Temperature 2 and
# top-p 0.7 give 0.453, 0.320, 0.227, 0: the first two reach only 0.63 now, so a third one stays. Then
# open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def distribution(logits, temperature=1.0, top_k=None, top_p=None):
    """(b, v) -> (b, v): what the next token is drawn with; rows sum to 1."""
    ordered, tokens = (logits / temperature).sort(dim=-1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = float("-inf")
    probabilities = ordered.double().softmax(dim=-1)  # float32 rounds too much for exact sums
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier ones reach
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    probabilities = (probabilities / probabilities.sum(dim=-1, keepdim=True)).float()
    return torch.zeros_like(logits).scatter(-1, tokens, probabilities)  # back in their places


# %% [markdown]
# Of the 100 questions, the model is least sure of the three frogs: this distribution has the largest
# entropy (lesson 03).

# %%
p = distribution(logits)
entropy = -(p * p.clamp(min=1e-30).log2()).sum(dim=-1)
print(f"least sure: question {int(entropy.argmax())}, with {entropy.max():.1f} bits")
frog = processor.encode(question.answer)[0]
reveal("place of frog", guess_place, int((p[25] > p[25, frog]).sum()) + 1)

# %%
ways = {
    "as it is": (), "temperature 0.5": (0.5,), "temperature 2": (2.0,),
    "greedy": (1.0, 1), "top-k 3": (1.0, 3), "top-p 0.8": (1.0, None, 0.8),
}  # fmt: skip
frogs = logits[25:26]
panels = {name: distribution(frogs, *way)[0] for name, way in ways.items()}
figures.generation.ways(panels, processor.token, question.answer)


def both(temperature=2.0, top_p=0.5):
    shaped = {"as it is": distribution(frogs)[0]}
    shaped[f"temperature {temperature}"] = distribution(frogs, temperature)[0]
    shaped[f"and then top-p {top_p}"] = distribution(frogs, temperature, None, top_p)[0]
    figures.generation.ways(shaped, processor.token, question.answer)


figures.slide(both, temperature=[0.25, 0.5, 1.0, 1.5, 2.0, 3.0], top_p=[0.25, 0.5, 0.8, 0.95, 1.0])

# %% [markdown]
# The grey outlines repeat the first panel, so you see what each way does to it:
#
# - Greedy and a low temperature make the favourite larger. It is wrong here.
# - A high temperature gives to the unlikely tokens, and there are many of them.
# - Top-k cuts after a fixed number of tokens, here just before the right one. Top-p cuts by what the
#   tokens weigh. Here it keeps four. For a sure model it keeps one, and top-k would still keep three.
#
# Below: temperature and top-p together (in JupyterLab you can move both). The higher the
# temperature, the more tokens the same top-p keeps.
#
# ## Build: the draw, and its seed
#
# Temperature 0 would divide by 0, so it is a name for greedy. A **seed** is where the computer's random
# numbers start: the same seed, the same numbers. Two random numbers fall on four sticks, and then the model
# answers with six seeds.


# %%
def choose(logits, temperature=0.0, top_k=None, top_p=None, generator=None):
    """(b, v) -> (b,)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    chances = distribution(logits, temperature, top_k, top_p)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


# %%
rows = {name: panels[name] for name in ("as it is", "temperature 2", "top-k 3", "top-p 0.8")}
figures.generation.sticks(rows, {"0.62": 0.62, "0.97": 0.97}, processor.token)
for seed in range(6):
    alone = generate(model, processor, scene.picture, question.prompt, temperature=1.0, seed=seed)
    print(f"seed {seed}: {alone!r}")

# %% [markdown]
# The hatched part of a stick is the **tail**: all the tokens that are too thin to show. A draw from the
# tail is a strange first word, and what follows can be stranger still, as after seed 0. Top-k and top-p
# cut off the tail.
#
# ## Build: the loop
#
# The **prefill** is the first call: picture and question pass through the model at once and fill the
# cache (lesson 08). Each **step** after it passes one token a row. The picture is in the cache by then,
# so the pixels belong to the prefill alone.
#
# In a batch the rows end at different times. A row that has said `<eos>` goes on as padding until
# the last one is done. `running` tells the model which rows still speak after the tokens of this
# step. Nothing is computed after the last token. `yield` hands out each token as soon as it is
# there.
#
# **Write it now**: exercise 12, parts 2 and 3. Two results, for one row that says 7, eos and one that says
# 5, 6, eos: out come (7, 5), then (eos, 6), then (pad, eos), and `step` is called twice, the second time
# with `running` = (False, True). With `max_new_tokens` = 1 out comes (7, 5), and `step` is never called.
# Then open the two cells.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def continue_tokens(logits, step, choose, eos, pad, max_new_tokens):
    """Yield one token a row and step, (b,), until every row has said eos."""
    running = torch.ones(len(logits), dtype=torch.bool)
    for number in range(max_new_tokens):
        tokens = torch.where(running, choose(logits), pad)
        yield tokens
        running = running & (tokens != eos)
        if number + 1 == max_new_tokens or not running.any():
            return
        logits = step(tokens, running)


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def begin(batch, max_new_tokens):
    """Prefill: the logits (b, v) for the first token, and a step that gives the next ones."""
    rows, length = batch["input_ids"].shape
    cache = model.new_cache(rows, length + max_new_tokens)

    def step(tokens, running):
        now = {"attention_mask": running[:, None], "kv_cache": cache}
        return model(tokens[:, None], **now)[:, -1, :text]

    return model(**batch, kv_cache=cache)[:, -1, :text], step


def answer(pictures, prompts, eos=1, pad=0, most=40):
    """Greedy answers: (b, t) tokens."""
    logits, step = begin(processor(pictures, prompts), most)
    return torch.stack(list(continue_tokens(logits, step, choose, eos, pad, most)), dim=1)


# %% [markdown]
# Three questions of different lengths. Each line is an answer, each column a step. We count how often the
# vision tower runs.

# %%
picture, looks = scenes.examples()["dog_and_car_test_artist"], []
prompts = ["caption en", "answer en what is on the left?", "answer en is there a dog?"]
with hooks.watch([("tower", model.vision_tower)], lambda *_: looks.append(1)):
    for row in answer([picture] * 3, prompts).tolist():
        print(" ".join(f"{processor.token(token):6}" for token in row))
reveal("runs of the vision tower, for ten tokens", guess_looks, len(looks))

# %% [markdown]
# Once, for ten tokens as for a thousand. Some implementations look again at every step, which changes no
# word and takes time.
#
# ## Break it: nobody stops
#
# `eos=-1` is a token that never comes, so the loop goes on to its limit. The model was trained on
# what comes up to `<eos>`, and on nothing after it.

# %%
[told] = answer([picture], ["answer en what is on the left?"], eos=-1).tolist()
print(processor.decode(told))
print(" ".join(processor.token(token) for token in told))

# %% [markdown]
# For a while it says `<eos>` again and again. Then it starts to talk.
#
# ## Break it: the token that crosses
#
# A popular line keeps the tokens whose running sum is **at most** p. It drops the token that crosses
# p. For the frogs you would hardly notice. Then we ask a question that the model finds easy:


# %%
def drops_the_crossing(logits, temperature, top_k, top_p):
    ordered, tokens = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(dim=-1) > top_p, 0.0)
    ordered = ordered / ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, tokens, ordered)


# %%
easy = model(**processor(picture, "caption en"))[:, -1, :text]
for one in (distribution, drops_the_crossing):
    unsure, sure = (one(which, 1.0, None, 0.8) for which in (logits[25:26], easy))
    print(f"{one.__name__:18} frogs: {int((unsure > 0).sum())} tokens, easy: {sure.amax():.3f}")

# %% [markdown]
# If one token has 0.99 and p is 0.8, that token crosses p at once and is dropped. Nothing is left, and
# nothing divided by nothing is NaN.
#
# ## See it: should you draw at all?
#
# The chance of an answer is the product of the chances of its tokens, each given the right tokens before
# it. One pass over question *and* right answer gives all of them. So for each setting we compute
# **exactly** how often a draw is right. And if you draw eight times, the chance that at least one is right
# is $1 - (1 - \text{chance})^8$.

# %%
tasks = ("places", "counting", "caption")
asked = evaluation_set(scenes.VALIDATION_ARTIST, 100, 0, tasks)
pictures, prompts, right = zip(*((s.picture, q.prompt, q.answer) for s, q in asked), strict=True)
batch = processor(pictures, prompts, right)
wanted = batch.pop("labels")[:, 1:]  # each place predicts the token after it
row, place = (wanted >= 0).nonzero(as_tuple=True)  # the places of the answers, eos included
wanted, logits = wanted[row, place], model(**batch)[row, place, :text]


# %%
def chance(*way):
    """The chance that a draw is the right answer, for each question: (300,)."""
    p = distribution(logits, *way).gather(-1, wanted[:, None])[:, 0]
    return torch.zeros(300).index_add(0, row, p.log()).exp()


# %%
ways = {
    "greedy": (1.0, 1), "temperature 0.5": (0.5,), "temperature 1": (1.0,),
    "temperature 2": (2.0,), "temp. 2, top-k 3": (2.0, 3), "temp. 2, top-p 0.8": (2.0, None, 0.8),
}  # fmt: skip
once = torch.stack([chance(*way).view(3, 100) for way in ways.values()])  # (way, task, question)
shares = {draws: (1 - (1 - once) ** draws).mean(dim=-1) for draws in (1, 8)}  # (way, task)
figures.generation.accuracy(list(ways), tasks, shares)
reveal("right of 100, drawn at temperature 2", guess_drawn, round(100 * shares[1][3, 0].item()))

# %% [markdown]
# The filled circles: for this model and these questions no setting beats greedy by more than one
# percent, and draws at a high temperature lose much, most of all in captions, where every token has
# to be right. **Where one answer is right, do not draw.**
#
# The open diamonds: nearly everywhere, one of eight draws is right more often than the one greedy
# answer. This helps only if something can tell the right answer from the others. Draw, too, where
# many answers are good, as in stories: there greedy text tends to repeat itself (Holtzman et al.
# 2020).
#
# ## Check
#
# The results by hand, and the package.

# %% tags=["nbval-check-output"]
for temperature in (1.0, 2.0):
    found = distribution(four[None], temperature, None, 0.7)[0].tolist()
    print([round(share, 3) for share in found])


# %% tags=["nbval-check-output"]
def says(*tokens):  # logits from which the greedy choice is these tokens
    return torch.nn.functional.one_hot(torch.tensor(tokens), 9)


script = iter([says(1, 6), says(3, 1)])
for most, step in ((9, lambda tokens, running: next(script)), (1, None)):
    found = continue_tokens(says(7, 5), step, choose, eos=1, pad=0, max_new_tokens=most)
    print([tokens.tolist() for tokens in found])

# %% tags=["nbval-check-output"]
noise = 3 * torch.randn(5, 31, generator=torch.Generator().manual_seed(0))
for way in ((0.7,), (1.0, 4), (1.0, None, 0.6), (0.7, 9, 0.9)):
    theirs = generation.distribution(noise, *way)
    print(way, torch.allclose(distribution(noise, *way), theirs, atol=1e-6))
mine = [processor.decode(row) for row in answer(pictures[:5], prompts[:5])]
print("answers", mine == generate(model, processor, pictures[:5], prompts[:5]))

# %% [markdown]
# ## In the real model
#
# The work of one pass of the vision tower beside the work of one new token in the decoder, and of the
# head for one place. A multiplication with its addition counts as 2 FLOP.

# %% tags=["nbval-check-output"]
from minipali.config import preset

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    v, t = preset(name).vision, preset(name).text
    n, d, m = v.num_patches, v.hidden_size, v.intermediate_size
    tower = v.num_hidden_layers * (2 * n * (4 * d * d + 2 * d * m) + 4 * n * n * d)
    heads = 2 * (t.num_attention_heads + t.num_key_value_heads)
    layer = t.hidden_size * (heads * t.head_dim + 3 * t.intermediate_size)
    head = 2 * t.vocab_size * t.hidden_size
    token = 2 * t.num_hidden_layers * layer + head
    print(f"{name:16} tower {tower / 1e9:8.3f} GFLOP, a token {token / 1e9:.3f},", end=" ")
    print(f"ratio {tower / token:6.1f}; head {head / 1e9:.4f}")

# %% [markdown]
# Each repeated look would cost this ratio: at 224 pixels some forty times the work of the token
# itself.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: text that appears while you wait
#
# A **stream** shows tokens as they come. It looks easy: decode each token and print it. But a
# character that is not in the vocabulary, such as an emoji, is written in several tokens, one for each
# of its bytes. A part of an emoji is no character, and Python shows it as �. So decode *everything so
# far*, give out what is new, and hold back an end that is no whole character yet. The package's
# `stream` does this.

# %%
from minipali import stream

ids = processor.encode("a 😀 dog")
print("tokens:    ", [processor.token(token) for token in ids])
print("one by one:", [processor.decode([token]) for token in ids])
print("all so far:", [processor.decode(ids[:n]) for n in range(1, len(ids) + 1)])
print("a stream:  ", list(stream(model, processor, picture, "caption en")))

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: three smaller things
#
# **Padding on the right.** There the last place of a shorter row is padding, and the logits mean nothing.
# No error, only wrong words. So pad on the left, or take the last *real* place, as the package does.

# %%
for side in ("left", "right"):
    batch = processor([picture] * 3, ["caption en", "answer en what is on the left?", "detect dog"],
                      padding_side=side)  # fmt: skip
    first = model(**batch)[:, -1].argmax(dim=-1).tolist()
    print(f"padded on the {side}, first words:", [processor.token(i) for i in first])

# %% [markdown]
# **A second look.**
# The second loop also sends the picture through the vision tower at every step, as some implementations
# do. Both give the same answer.

# %%
import time

took, batch = {}, processor(picture, "caption en")


def look_and_step(tokens, running):
    model.image_features(batch["pixel_values"])
    return step(tokens, running)


for again in [False, True] * 5:
    clock = time.perf_counter()
    first, step = begin(batch, 40)
    list(continue_tokens(first, look_and_step if again else step, choose, 1, 0, 40))
    took[again] = min(time.perf_counter() - clock, took.get(again, 9.0))
print(f"the second loop takes {took[True] / took[False]:.1f} times as long")

# %% [markdown]
# In our small model the ratio of the work is about forty as well, and still the second loop does not take
# forty times as long: at that size most of the time is not arithmetic.
#
# **A seed** promises less than it seems. It repeats the numbers, not the answer: in a batch each row gets
# numbers of its own.

# %%
three = [scene.picture] * 3, [question.prompt] * 3
print("seed 1, three rows:", generate(model, processor, *three, temperature=1.0, seed=1))

# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/12_generation.ipynb), with the distribution, the loop,
# and the whole way from pixels to tokens. Then the trained model speaks through your code, word by word.
# It has one piece more that no cell of this lesson shows.
#
# `minipali page --output page.html` writes the model into a file for the browser. There you can move
# temperature and top-p, and see each token's probability and its runners-up.
#
# ## Take away
#
# - The model gives one distribution. Temperature comes before the softmax, top-p keeps the token
#   that crosses p, and what is no text is cut off before anything is drawn.
# - The picture passes the vision tower once. After the prefill, a step is one token a row; a row
#   ends at its own `<eos>` and waits as padding.
# - Where one answer is right, be greedy. Draw where many are good, or where something can choose.
#
# **Self-test**
#
# <details><summary>Does the temperature change which tokens top-k keeps? And top-p?</summary>
#
# Not top-k: a division keeps the order. Top-p yes: a higher temperature makes the probabilities more
# equal, so more tokens are needed to reach p.
# </details>
#
# <details><summary>You draw with top_k=1 and a seed. What does the seed change?</summary>
#
# Nothing. One token is left and gets everything, so this is greedy by another name.
# </details>
#
# <details><summary>Ten rows, one answers with 60 tokens, nine with 2. How many rows does each step
# compute?</summary>
#
# All ten, 59 times after the prefill. Rows that wait are computed and ignored. Busy servers therefore put
# a new question in the place of a finished row.
# </details>
#
# **Sources.** Top-p: Holtzman et al. 2020, *The curious case of neural text degeneration*, arXiv
# 1904.09751, section "Nucleus Sampling". Top-k for stories: Fan et al. 2018, arXiv 1805.04833. Chance that
# one of several draws is right, for programs: Chen et al. 2021, arXiv 2107.03374, section "Functional
# Correctness".
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | PaliGemma's decoder has 6 layers, and the vector after the 6th is the best | 18 layers in PaliGemma 3B (26, 42 or 46 in PaliGemma 2), 4 in our small model |
# | the decoder's final vector is passed on to the language model | the decoder *is* the language model: after its last layer come one RMSNorm and the head |
# | the final logits come from `lm_head` and are used to generate text | right; and `lm_head` has no weights of its own, it is the table of tokens (lesson 10) |
# | the code ends with `return outputs` | these are logits, no text; the choice, the loop and the stop that you wrote today come after it |
