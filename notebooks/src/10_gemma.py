# %% [markdown]
# # 10 · Gemma: from tokens to the next token
#
# You have norms (lesson 02), attention (03), rotary positions (07), the cache (08), shared key heads (09).
# What is left is a way in, an MLP with a gate, a stack, and a way out. Then the decoder is whole, and you
# read what the model would say after *each half layer*.
#
# ## Do you remember?
#
# <details><summary>A colleague writes a layer as <code>x = norm(x + attention(x))</code>. What would
# the vision tower of lesson 04 have in its place?</summary>
#
# <code>x = x + attention(norm(x))</code>. Pre-norm: the part reads a normed copy, and the stream itself
# is never normed.
# </details>
#
# <details><summary>RMSNorm gets a token, and then the same token times 10. How do its two results
# differ?</summary>
#
# Not at all, up to eps: the root mean square is 10 times as large, too.
# </details>
#
# <details><summary>3 rows of 45 tokens went through a layer with 4 query heads and 2 KV heads of 48
# numbers. What is the shape of the keys in its cache?</summary>
#
# (3, 2, 45, 48). The number of query heads does not matter.
# </details>
#
# ## Where we are

# %%
import torch
from torch.nn import functional as F

from minipali import figures, generate, load, scenes
from minipali.checks import reveal
from minipali.swap import put

model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **write** the gated MLP, and say what a gate can do that a bend cannot,
# 2. **assemble** the decoder from token ids to logits, the numbers from which the next word is chosen,
# 3. **read** the residual stream as words after each step, and count what each part of Gemma 2B costs.
#
# Time: 55 minutes. You need: the pre-norm block of lesson 04 and the lessons named above.
#
# ## Predict
#
# Write a guess in place of each `...`. The lesson answers it later, beside your guess.
#
# 1. The model is asked "is there a dog?", and there is one. Its decoder has 4 layers, each with
#    attention and then an MLP: eight steps. After which step, 1 to 8, would it first say *yes*?
# 2. We leave out the norm after the last layer and ask 120 questions. For how many does the first word
#    of the answer change?
# 3. Which part of Gemma 2B holds most of its weights: `"table"` (of words), `"attention"` or `"MLPs"`?

# %%
guess_step, guess_changed, guess_part = ..., ..., ...

# %% [markdown]
# ## By hand: a gate
#
# The plain MLP of lesson 04 made x into (x, -x), bent both by ReLU, and added them. The result was
# the distance from 0. Now we keep the bent pair as **gates**, and send x through a second matrix in
# parallel, to the **ups** x and -x. Each gate multiplies its up, and then we add. For x = 3 the gates
# are 3 and 0, the ups are 3 and -3, and we get 3 · 3 + 0 · (-3) = 9. On paper: what comes out for -2
# and for 0.5?

# %% tags=["nbval-check-output"]
for x in (3.0, -2.0, 0.5):
    gates, ups = (max(x, 0.0), max(-x, 0.0)), (x, -x)
    print(f"{x:4}: plain {sum(gates)}, gated {gates[0] * ups[0] + gates[1] * ups[1]}")

# %% [markdown]
# The gated one gives the **square**, exactly. A plain MLP with ReLU is made of straight pieces, and
# never does. The gated MLP can multiply, because it is built as a product: *what* there is to say (up)
# times *how much* of it (gate). Where the gate is 0, the unit is shut, whatever up says.
#
# ## Build: GeGLU
#
# Gemma's MLP has three matrices and no biases. The gate is bent by GELU, in the tanh form of lesson
# 04. Its name is **GeGLU**: a gated linear unit with GELU. ($\odot$ multiplies number by number.)
#
# $$\text{GeGLU}(x) = \left(\text{GELU}(x\,W_\text{gate}^\top) \odot x\,W_\text{up}^\top\right)
# W_\text{down}^\top$$
#
# Each token goes through it alone. Text and picture never meet in an MLP; they meet in attention.
#
# **Write it now**: [exercise 10](../exercises/10_gemma.ipynb), part 1. In comes (b, t, d), out goes
# (b, t, d), and between them the tokens are `hidden` wide. Two results, where all matrices are single
# numbers, gate 1, up 2, down 3: x = 1 gives GELU(1) · 2 · 3 = 0.8412 · 6 = 5.047, and x = -1 gives
# (-0.1588) · (-2) · 3 = 0.953. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def geglu(x, gate_weight, up_weight, down_weight):
    """(b, t, d) -> (b, t, d); gate and up: (hidden, d), down: (d, hidden)."""
    gate = F.gelu(x @ gate_weight.T, approximate="tanh")  # how much
    return (gate * (x @ up_weight.T)) @ down_weight.T


# %% [markdown]
# Is a gate better than a bend? Not at everything: the second optional part compares the two. In trials
# on language, with equally many parameters, Shazeer found GeGLU and a relative of it best. On the
# reason he wrote: "We offer no explanation as to why these architectures seem to work; we attribute
# their success, as all else, to divine benevolence."
#
# ## Build: the layer
#
# It is the block of lesson 04: norm, compute, add, twice. Only the parts are Gemma's. One name misleads.
# The checkpoint calls the second norm `post_attention_layernorm`. It comes after attention in the list,
# but it works on what the **MLP reads**.
#
# **Write it now**: exercise 10, part 2. Two results. If norms halve, attention gives three times what
# it reads and the MLP ten times, then 2 becomes 2 + 3 = 5, and 5 becomes 5 + 25 = 30. If attention and
# MLP give 0, the stream leaves as it came.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def decoder_layer(x, norm1, attention, norm2, mlp):
    """(b, t, d) -> (b, t, d): the stream before and after one layer."""
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


# %% [markdown]
# ## Build: the way in
#
# Each token id takes its row of a table, and Gemma multiplies the row by $\sqrt d$.
#
# **Write it now**: exercise 10, part 3. Two results: for d = 4 the row (1, 0, 2, -1) becomes
# (2, 0, 4, -2); for d = 16 each number becomes four times as large.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def embed(input_ids, table):
    """(b, t), (v, d) -> (b, t, d)."""
    return table[input_ids] * table.shape[1] ** 0.5


# %% [markdown]
# Why the factor? The row is where a token's stream begins, and the layers add to it. So we measure the
# typical size of a number, three times: in the rows as they are stored, in the scaled rows, and in what
# the attention of the first layer adds to the same words.

# %%
from minipali.rope import rope_angles

gemma = model.requires_grad_(False).language_model
table, image = gemma.embed_tokens.weight, scenes.examples()["dog_and_car_test_artist"]
one = processor(image, "answer en what is on the left?")
ids, picture = one["input_ids"][:, 36:], model.image_features(one["pixel_values"])

# %%
x = torch.cat((picture, embed(ids, table)), dim=1)  # 36 vectors of the picture come first
angles = rope_angles(torch.arange(1, x.shape[1] + 1)[None], gemma.config.head_dim, 1e4)
added = gemma.layers[0].self_attn(gemma.layers[0].input_layernorm(x), angles, None)[:, 36:]
print([f"{part.square().mean().sqrt():.2f}" for part in (table[ids], embed(ids, table), added)])

# %% [markdown]
# In our model the scaled word and what attention adds are of about one size. (This is our reading. Vaswani
# et al., who introduced the factor, give no reason.) The picture's vectors are *not* multiplied: lesson 11.
#
# ## Build: the stack and the way out
#
# The layers run one after the other. Then one **final norm** brings the stream to the size that the head
# expects. The **head** (no head of attention this time) gives one number for each word of the
# vocabulary, its **logit**. Gemma's head has no matrix of its own. It takes the embedding table once
# more, and a word's logit is the dot product with the word's own row. The head is **tied** to the
# table. It asks: to which word's vector does the stream point?
#
# **Write both now**: exercise 10, parts 4 and 5. Two results: with the layers "plus 1" and "times 2" and
# the norm "minus 3", 4 becomes 5, then 10, then 7. With the rows (1, 0), (0, 1) and (1, 1), the vector
# (1, 2) has the logits 1, 2 and 3.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def decoder(x, layers, norm):
    """(b, t, d) -> (b, t, d)."""
    for layer in layers:
        x = layer(x)
    return norm(x)


def logits(x, table):
    """(b, t, d), (v, d) -> (b, t, v)."""
    return x @ table.T


# %% [markdown]
# All together, with the trained weights, and with the attention of lesson 09. Picture and question may
# all see each other, so no mask is needed.


# %%
def as_function(layer, angles):
    mlp = [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight]
    return lambda x: decoder_layer(
        x,
        layer.input_layernorm,
        lambda y: layer.self_attn(y, angles, None),
        layer.post_attention_layernorm,
        lambda y: geglu(y, *mlp),
    )


layers = [as_function(layer, angles) for layer in gemma.layers]

# %%
ours = logits(decoder(x, layers, gemma.norm), table)
print("next word:", processor.token(ours[0, -1].argmax()))
print("as the package:", torch.allclose(ours, model(**one), atol=1e-2))

# %% [markdown]
# ## Break it
#
# Five mistakes, put into the trained model. We ask 120 questions about new pictures and look at the first
# word of each answer: how often it is right, how often it has changed, and what chance the model gives
# to it. Which mistakes are quiet?

# %%
fresh = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * table.std()
mistakes = {
    "erf form in the gate": {"geglu": lambda x, g, u, d: (F.gelu(x @ g.T) * (x @ u.T)) @ d.T},
    "no final norm": {"decoder": lambda x, layers, norm: decoder(x, layers, lambda x: x)},
    "words not scaled": {"embed": lambda ids, table: table[ids]},
    "gate and up swapped": {"geglu": lambda x, g, u, d: geglu(x, u, g, d)},
    "a head of its own": {"logits": lambda x, table: logits(x, fresh)},
}
models = {"right": model, **{name: put(model, **pieces) for name, pieces in mistakes.items()}}

# %%
from minipali.evaluation import evaluation_set

asked = evaluation_set(scenes.VALIDATION_ARTIST, each=15, seed=7)
batch = processor([scene.picture for scene, _ in asked], [q.prompt for _, q in asked])
wanted = torch.tensor([(processor.encode(q.answer) + [1])[0] for _, q in asked])  # 1: eos
usual = model(**batch)[:, -1].argmax(dim=-1)

# %%
changed = {}
print(f"{'':21} right  changed  chance  caption")
for name, each in models.items():
    top, words = each(**batch)[:, -1].softmax(dim=-1).max(dim=-1)
    told = generate(each, processor, image, "caption en", max_new_tokens=12)
    changed[name] = int((words != usual).sum())
    right = (words == wanted).float().mean()
    print(f"{name:21} {right:5.0%} {changed[name]:8} {top.mean():7.3f}  {told!r}")
reveal("changed without the final norm", guess_changed, changed["no final norm"])

# %% [markdown]
# Two are quiet here. The **erf form** changes numbers so little that answers do not show it, but the
# exercise's check does. Without the **final norm** hardly a first word changes. The norm divides a
# token's vector by *one* number, and that does not change which word leads. (The factors 1 + w can.)
# What is ruined are the chances: the model is nearly always certain. Whoever draws words by chance
# (lesson 12), or computes a loss (13), gets nonsense.
#
# ## See it: the head as a lens
#
# Every layer *adds* to the same stream. So nothing stops us from reading earlier: take the stream after
# some layer, apply the final norm, and the tied table tells which word it points to. This is called the
# **logit lens**. We look after every half layer, at the last place, where the answer is to come.


# %%
def layer_and_keep(x, norm1, attention, norm2, mlp):
    half = x + attention(norm1(x))
    whole = half + mlp(norm2(half))
    stream.extend([half, whole] if stream else [x, half, whole])
    return whole


stream = []
watched = put(model, decoder_layer=layer_and_keep)


# %%
def look(batch):
    """What the head reads after each step: chances (step, b, v), and the normed stream."""
    stream.clear()
    watched(**batch)
    read = gemma.norm(torch.stack([x[:, -1] for x in stream]))  # (step, b, d)
    return logits(read, table).softmax(dim=-1), read


# %%
questions = ["is there a dog", "is there a cat", "how many objects are there"]
questions += ["what colour is the background", "what is on the left", "what is on the right"]
prompts = [f"answer en {question}?" for question in questions] + ["detect dog"]
chances, _ = look(processor([image] * 7, prompts))
figures.gemma.lens(chances, processor.token, prompts, "A dog left, a car right, pink behind.")
says_yes = chances[:, 0].argmax(dim=-1) == processor.encode("yes")[0]
reveal("first step that says yes", guess_step, int(says_yes.int().argmax()))

# %% [markdown]
# A frame marks a new word, and blue marks the word that the model says in the end.
#
# - **At the start** the head reads `\n`: the last token of each question *is* the newline, and the tied
#   table gives back what it gave.
# - **In layer 1** guesses come up: *no*, for dog and cat alike, from the MLP.
# - **Then attention brings the answers.** *2* comes in layer 2, and *pink*, a faint guess before, becomes
#   certain. *Dog* and *car* come in layer 3. There the *no* to the dog turns into *yes*, and the *no*
#   to the cat stays. **Detection** is last.
#
# One picture can be luck. So 80 questions of each kind, about new pictures by an artist whom the model
# never saw in training: in how many does its last word lead already?

# %%
asked = evaluation_set(scenes.VALIDATION_ARTIST, each=80, seed=5)
batch = processor([scene.picture for scene, _ in asked], [q.prompt for _, q in asked])
chances, read = look(batch)
leading = chances.argmax(dim=-1).unflatten(1, (-1, 80))  # (step, task, question)
shares = (leading == leading[-1]).float().mean(dim=-1)
figures.gemma.on_top(shares, scenes.TASKS, number=80)

# %%
number = scenes.TASKS.index("yes/no")
after_one, no = leading[2, number], processor.encode("no")[0]  # 2: after the first MLP
print("says no after the first MLP:", int((after_one == no).sum()), "of 80")
print("no is right:", sum(q.answer == "no" for _, q in asked[80 * number : 80 * number + 80]))

# %% [markdown]
# The order holds: background and counting first, then names, places and yes-or-no, boxes last. Three
# warnings:
#
# - More than half of the yes-or-no questions look settled after the first MLP. But there the model says
#   *no* to all of them. That is the commonest answer, and no look at the picture.
# - This is *one* small model from *one* training. Another one, of the same size or a larger, may settle
#   its answers in another order.
# - The lens shows what *the head* can read. The third optional part finds a box in the stream one layer
#   before the head can read it.
#
# ## Check
#
# The results by hand, and the package on random weights. (The last optional part compares with
# `transformers`.)

# %% tags=["nbval-check-output"]
from minipali.config import preset
from minipali.gemma import Gemma

torch.manual_seed(0)
other = Gemma(preset("small").text).requires_grad_(False)
ids, x, places = torch.randint(1856, (2, 7)), torch.randn(2, 7, 128), torch.arange(1, 8)[None]
rows = other.embed_tokens.weight
angles = rope_angles(places, other.config.head_dim, other.config.rope_theta)
ours = decoder(x, [as_function(layer, angles) for layer in other.layers], other.norm)
print("embed:  ", torch.allclose(embed(ids, rows), other.embed(ids), atol=1e-5))
print("decoder:", torch.allclose(ours, other(x, places, None), atol=1e-4))
print("logits: ", torch.allclose(logits(x, rows), other.logits(x), atol=1e-3))

# %% tags=["nbval-check-output"]
number, half = torch.tensor, lambda y: y / 2
one, two, three = (number([[float(n)]]) for n in (1, 2, 3))
print([round(geglu(sign * one, one, two, three).item(), 3) for sign in (1, -1)])
print(decoder_layer(2.0, half, lambda y: 3 * y, half, lambda y: 10 * y))
print(embed(number([[0]]), number([[1.0, 0, 2, -1]])).tolist())
print(decoder(4, [lambda y: y + 1, lambda y: 2 * y], lambda y: y - 3))
print(logits(number([[1.0, 2]]), number([[1.0, 0], [0, 1], [1, 1]])).tolist())

# %% [markdown]
# ## In the real model
#
# Gemma 2B, the decoder of PaliGemma 3B, counted from its configuration.

# %% tags=["nbval-check-output"]
from minipali.paligemma import PaliGemma

with torch.device("meta"):  # shapes without memory
    whole = PaliGemma(preset("paligemma-3b-224"))
named, t = dict(whole.language_model.named_parameters()), whole.config.text
keys = {"table and head": "embed_tokens", "attention": "self_attn", "MLPs": "mlp", "norms": "norm"}
weights = {k: sum(p.numel() for name, p in named.items() if v in name) for k, v in keys.items()}
for part, size in weights.items():
    print(f"{part:15} {size:13,}, {size / sum(weights.values()):.1%}")
print(f"without table   {sum(weights.values()) - weights['table and head']:13,}")
reveal("most weights", guess_part, max(weights, key=weights.get))

# %% [markdown]
# The MLPs hold almost three quarters of the weights: each is eight times as wide inside as outside. The
# Gemma report gives 1,981,884,416 parameters without the embedding: to the last digit the number above,
# which 18 layers give, and the 6 of the notes do not.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the work of each part
#
# Reading a picture and 8 tokens of text, 264 in all, and then one more token. A weight of a
# matrix costs 2 FLOP a token (multiply, add). The head works at one place only.

# %%
n = 264
scores = 4 * n * t.num_attention_heads * t.head_dim * t.num_hidden_layers  # for one token
step = {part: 2 * size for part, size in weights.items() if part != "norms"}
step["attention"] += scores
reading = {part: cost * (1 if "head" in part else n) for part, cost in step.items()}
print(
    f"reading {sum(reading.values()) / 1e12:.2f} TFLOP, one more {sum(step.values()) / 1e9:.1f} GFLOP"
)
figures.gemma.costs({"parameters": weights, "264 tokens": reading, "one more token": step})

# %% [markdown]
# The MLPs do nine tenths of the work of reading. The table costs no work on the way in (a row is looked up,
# not multiplied). As the head it does a fifth of the work for each new token. A head of its own would add
# another 527 million weights.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: plain against gated, and gates at work
#
# Three matrices cost more than two, so a fair opponent is half as wide again: 48 plain units have
# as many weights as 32 gated ones. Both learn three functions of 8 numbers, from as many random
# examples, three times from different starts. Which wins where?


# %%
from torch import nn

from minipali.gemma import GeGLU


def error_after_training(net, target, steps=400):
    """Mean squared error on new inputs, as a share of the target's variance."""
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0, steps)
    for _ in range(steps):
        x = torch.randn(128, 8)
        optimiser.zero_grad()
        F.mse_loss(net(x), target(x)).backward()
        optimiser.step(), rate.step()
    x = torch.randn(4000, 8)
    return (F.mse_loss(net(x), target(x)) / target(x).var()).item()


# %%
a, b, c = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(5)) / 8**0.5
targets = {
    "products of two sums": lambda x: (x @ a) * (x @ b) @ c,
    "distances from 0": lambda x: (x @ a).abs() @ c,
    "waves": lambda x: (1.5 * x @ a).sin() @ c,
}
errors = {task: {"plain, 48 units": [], "gated, 32 units": []} for task in targets}
for task, target in targets.items():
    for seed in range(3):
        torch.manual_seed(seed)
        maps = nn.Linear(8, 48, bias=False), nn.Linear(48, 8, bias=False)
        plain, gated = nn.Sequential(maps[0], nn.GELU("tanh"), maps[1]), GeGLU(8, 32)
        errors[task]["plain, 48 units"].append(error_after_training(plain, target))
        errors[task]["gated, 32 units"].append(error_after_training(gated, target))
figures.gemma.task_errors(errors)

# %% [markdown]
# Neither wins everywhere. The gate is far ahead on products, the bend on distances. On waves neither is
# good.
#
# And what do the gates of our trained model do? We put in a `geglu` that also notes, for each of the 384
# units of a layer, at how many tokens its gate is below 0. We call the unit shut there: GELU lets at
# most 0.17 of the negative side through. Six different questions about six pictures:

# %%
shut = []  # (hidden,) for each layer


def geglu_and_note(x, gate_weight, up_weight, down_weight):
    shut.append((x @ gate_weight.T < 0).float().mean(dim=(0, 1)))
    return geglu(x, gate_weight, up_weight, down_weight)


pictures = scenes.examples()
six = "what is on the left", "is there a dog", "how many apples are there", "what is this"
six = [f"answer en {question}?" for question in six] + ["caption en", "detect cat"]
put(model, geglu=geglu_and_note)(**processor(list(pictures.values()), six))
for number, often in enumerate(shut, start=1):
    always, never = (often == 1).sum(), (often == 0).sum()
    print(f"layer {number}: shut {often.mean():.0%}; units always shut {always}, never {never}")

# %% [markdown]
# In this model a unit is shut more often than open. But none is shut everywhere, and none open
# everywhere: which units work is chosen for each token anew.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: what the lens does not see
#
# Take detection, where the head reads nothing up to layer 3. We fit a linear map from the stream to the
# top edge of the box, on 300 questions about drawings by training artists, and try it on the pictures
# above.


# %%
def top_edges(asked):
    """Numbers of the questions that have a box, and the top edge of the first box, 0 to 1."""
    found = [i for i, (_, q) in enumerate(asked) if q.answer.startswith("<loc")]
    return found, torch.tensor([[int(asked[i][1].answer[4:8]) / 1023] for i in found])


known = evaluation_set(scenes.TRAINING_ARTISTS, each=300, seed=11, tasks=("detection",))
seen, prompts = [scene.picture for scene, _ in known], [q.prompt for _, q in known]
_, read_known = look(processor(seen, prompts))
(learn, learn_tops), (test, test_tops) = top_edges(known), top_edges(asked)
for step in range(2, 9, 2):
    centre = read_known[step, learn].mean(dim=0)
    x, y = read_known[step, learn] - centre, learn_tops - learn_tops.mean()
    weight = torch.linalg.solve(x.T @ x + 10 * torch.eye(128), x.T @ y)
    guess = (read[step, test] - centre) @ weight
    r = torch.corrcoef(torch.cat((guess, test_tops), dim=1).T)[0, 1]
    print(f"after layer {step // 2}: correlation with the true edge {r:5.2f}")

# %% [markdown]
# After layer 3 the place of the box is in the stream. It is only not yet in the form of a word. So
# never conclude from such a lens that something is *not* there.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: numbers of 16 bits, and transformers
#
# The published weights come in 16-bit numbers (bfloat16) too. Near 1 these have steps of 1/128, so a small
# w is lost in 1 + w. Gemma computes the **whole norm in 32 bits** and rounds once, at the end. Llama
# rounds before it multiplies by its weight. How many results come out different? (The factor sqrt(d) is
# rounded as well: in Gemma 2B 45.2548 becomes 45.25, because the model was trained so.)

# %%
x, w = 5 * torch.randn(1000, 128).bfloat16(), gemma.norm.weight.bfloat16()
y = x.float() * x.float().square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
once, before = (y * (1 + w.float())).bfloat16(), y.bfloat16() * (1 + w)
print("1 + 0.003 in bfloat16:", (1 + torch.tensor(0.003).bfloat16()).item())
print(f"another number if rounded before: {(once != before).float().mean():.0%}")
print("sqrt(2048) in bfloat16:", torch.tensor(2048**0.5).bfloat16().item())

# %% [markdown]
# Now the whole model against Hugging Face's `transformers`, which opens the folder of our small model as
# it is. (The course does not install it for you. Without it, read the numbers in the lesson as it came.)

# %%
import importlib.util
from importlib.resources import files

from minipali import hooks


def outputs(net, decoder, batch):
    kept, parts = [], [*decoder.layers, decoder.norm, net]
    with hooks.watch(enumerate(parts), lambda number, given, out: kept.append(out)):
        net(**batch)
    return [out if torch.is_tensor(out) else out[0] for out in kept]


if importlib.util.find_spec("transformers") is None:
    print("transformers is not installed here, so there is nothing to compare with.")
else:
    from transformers import PaliGemmaForConditionalGeneration, logging

    logging.disable_progress_bar()
    folder = str(files("minipali") / "assets" / "small")
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder)
    batch = processor([image, image], ["caption en", "answer en what is on the left?"])
    both = outputs(model, gemma, batch), outputs(theirs, theirs.model.language_model, batch)
    names = "layer 1", "layer 2", "layer 3", "layer 4", "final norm", "logits"
    for name, a, b in zip(names, *both, strict=True):
        gap, size = (one[batch["attention_mask"].bool()].abs().max() for one in (a - b, b))
        print(f"{name:10} largest value {size:5.1f}, largest difference {gap:.6f}")

# %% [markdown]
# Two programs, written apart, agree to the last digits that 32 bits can hold. (Padding, in the first
# row, is left out.)

# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/10_gemma.ipynb), with `geglu`,
# `decoder_layer`, `embed`, `decoder` and `logits`. At its end the trained model answers with your decoder. It has
# one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - GeGLU multiplies: a gate says how much, up says of what. Three matrices, no biases, tanh form.
# - Rows times sqrt(d) in; layers that add to one stream; one final norm; the same rows out.
# - Because the stream is a sum and the head is tied, you can read it anywhere. In our model attention
#   brings most answers in, each kind of question at its own depth.
#
# **Self-test**
#
# <details><summary>The head is tied, but the way in is scaled by sqrt(d). Must the logits be scaled
# as well?</summary>
#
# No. The head uses the rows as they are stored. With the factor, all logits would be sqrt(d) times
# larger: the same word would lead, and the model would be far too sure.
# </details>
#
# <details><summary>Gate and up have the same shape. Why does swapping them matter?</summary>
#
# Only the gate is bent. A strongly negative gate shuts its unit; a strongly negative up turns the
# sign. If they are swapped, what was to be turned is shut, and what was to be shut is turned.
# </details>
#
# <details><summary>At the start, the lens at the last place reads the newline. What would it read at
# the place of the word "dog"?</summary>
#
# "dog": without any layer, the stream there is that word's own row, scaled and normed. It is no law,
# though. A longer row that points in a similar direction can win. Try other words.
# </details>
#
# <details><summary>Your decoder's likeliest words are all the right ones. Is the decoder right?</summary>
#
# Not yet. In our model nearly all words stay the same without the final norm, and all with the erf form.
# Compare numbers.
# </details>
#
# **Sources.** Gemma: Gemma Team 2024, arXiv 2403.08295, its section on the model's architecture and the
# table of parameter counts. Gated MLPs: Shazeer 2020, arXiv 2002.05202, with the quoted sentence in its
# conclusions; Dauphin et al. 2016, arXiv 1612.08083. Scaled and shared table: Vaswani et al. 2017, arXiv
# 1706.03762, section "Embeddings and Softmax"; Press and Wolf 2017, arXiv 1608.05859. The lens:
# nostalgebraist 2020, "interpreting GPT: the logit lens", LessWrong.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | Gemma is short for "Generalized Estimating Equation Model-based Analysis" | it is a name: Latin *gemma*, precious stone, says Google's announcement of February 2024 |
# | 6 decoder layers, "as per" the PaliGemma paper | 18 in Gemma 2B. Six is the depth of the first transformer (Vaswani et al. 2017) |
# | the MLP learns the relation between text and picture | the MLP sees one token at a time; text and picture meet in attention |
# | a linear model may overfit, so an activation is used | without an activation, plain linear maps collapse into one (lesson 04); overfitting is another matter. Gemma's MLP is also gated, which the notes leave out |
# | the vector from the decoder "is passed to the language model" | the decoder *is* the language model; after it come the final norm and the head |
# | `lm_head` as a part of its own | it has no weights of its own: it is the embedding table |
