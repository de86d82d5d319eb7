# %% [markdown]
# # 10 · Gemma: from tokens to the next token
#
# You have all the difficult parts: norms (lesson 02), attention (03), rotary positions (07), the cache
# (08), shared key heads (09). What is left is short: a way in, an MLP with a gate, a stack, and a way
# out. Then the decoder is whole, and we can do something nice with it. We hold its own head to the
# stream after every half layer, and read what the model would say *there*.
#
# ## Where we are

# %%
import torch

from minipali import figures, generate, hooks, load, scenes

model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **write** the gated MLP, and say what a gate can do that a bend cannot,
# 2. **assemble** the decoder from token ids to logits, and check it layer by layer,
# 3. **read** the stream with the head, and count what each part of Gemma 2B costs.
#
# Time: 45 minutes. You need: the pre-norm block of lesson 04 and the lessons named above.
#
# ## Predict
#
# Write down four answers. Cells below find them.
#
# - The model is asked "is there a dog?". Its decoder has 4 layers, each with attention and an MLP.
#   At which of these eight steps does *yes* come up? And what would the head say before the first?
# - Leave out the norm after the last layer. How many answers change?
# - An MLP with a gate, and a plain one with as many weights: which learns better?
# - Which part of Gemma 2B holds most of its weights: word table, attention or MLPs?
#
# ## By hand: a gate
#
# The plain MLP of lesson 04 made x into (x, -x), bent both by ReLU, and added them. The result was
# the distance from 0. Now we keep the bent pair as **gates**, and send x through a second matrix in
# parallel. We call that way **up**. Each gate multiplies its up, and then we add:
#
# - gates: relu(x) and relu(-x),
# - ups: x and -x,
# - result: the sum of gate times up.
#
# For x = 3 the gates are 3 and 0, the ups are 3 and -3, and we get 3 · 3 + 0 · (-3) = 9. On paper:
# what comes out for -2 and for 0.5?

# %%
x = torch.tensor([[3.0], [-2.0], [0.5]])
first, last = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0]])
bent, up = (x @ first.T).relu(), x @ first.T
print("plain:", (bent @ last.T).flatten().tolist())
print("gated:", ((bent * up) @ last.T).flatten().tolist())

# %% [markdown]
# The gated one gives the **square**, exactly. A plain MLP with ReLU is made of straight pieces, and
# never gives a square. The gated MLP can multiply, because it is built as a product: *what* there is
# to say (up) times *how much* of it (gate). Where the gate is 0, the unit is shut, whatever up says.
#
# ## Build: GeGLU
#
# Gemma's MLP has three matrices and no biases. The gate is bent by GELU, in the tanh form of lesson
# 04. Its name is **GeGLU**: a gated linear unit with GELU. Each token goes through it alone. Text and
# picture never meet in an MLP; they meet in attention.


# %%
def geglu(x, gate_weight, up_weight, down_weight):
    """(b, t, d) -> (b, t, d); gate and up: (hidden, d), down: (d, hidden)."""
    gate = torch.nn.functional.gelu(x @ gate_weight.T, approximate="tanh")  # how much
    return (gate * (x @ up_weight.T)) @ down_weight.T


# %% [markdown]
# ## See it: plain against gated, a fair race
#
# Three matrices cost more than two, so a fair opponent is half as wide again: 48 plain units have
# as many weights as 32 gated ones. Both learn three functions of 8 numbers, from as many random
# examples, three times from different starts. Which wins where?


# %%
from torch import nn
from torch.nn import functional as F


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
from minipali.gemma import GeGLU

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
# Neither wins everywhere. The gate is far ahead on products, the bend on distances. (With a learning
# rate three times larger or smaller that was the same.) On waves neither is good. So what speaks for
# the gate? Trials on language. Shazeer tried both kinds in a T5 with the same number of parameters.
# GeGLU and its relative SwiGLU predicted held-out text best (his table 1). On the reason he wrote: "We
# offer no explanation as to why these architectures seem to work; we attribute their success, as all
# else, to divine benevolence."
#
# ## See it: gates at work
#
# What do the gates do in our trained model? We swap in a `geglu` that also notes, for each of the 384
# units of a layer, at how many tokens its gate is below 0. We call the unit shut there: GELU lets at
# most 0.17 of the negative side through. We ask six different questions about six pictures.

# %%
from minipali.rope import rope_angles
from minipali.swap import swap

shut = []  # (hidden,) for each layer


def geglu_and_note(x, gate_weight, up_weight, down_weight):
    shut.append((x @ gate_weight.T < 0).float().mean(dim=(0, 1)))
    return geglu(x, gate_weight, up_weight, down_weight)


watched = swap(model, geglu=geglu_and_note)
shut.clear()
pictures = scenes.examples()
asked = "what is on the left", "is there a dog", "how many apples are there", "what is this"
prompts = [f"answer en {question}?" for question in asked] + ["caption en", "detect cat"]
watched(**processor(list(pictures.values()), prompts))
for number, often in enumerate(shut, start=1):
    always, never = (often == 1).sum(), (often == 0).sum()
    print(f"layer {number}: shut {often.mean():.0%}; units always shut {always}, never {never}")

# %% [markdown]
# A unit is shut more often than open. But none is shut everywhere, and none open everywhere: which
# units work is chosen for each token anew.
#
# ## Build: the layer
#
# It is the block of lesson 04: norm, compute, add, twice. Only the parts are Gemma's: RMSNorm with
# (1 + w), attention with rotary positions and shared key heads, GeGLU. One name misleads. The
# checkpoint calls the second norm `post_attention_layernorm`. It comes after attention in the list,
# but it works on what the **MLP reads**.
#
# One more thing about the norms, for the second cell. The published weights come in 16-bit numbers
# (bfloat16) too. Near 1 these have steps of 1/128, so a small w is lost in 1 + w. Gemma computes the
# **whole norm in 32 bits** and rounds once, at the end. Llama rounds before it multiplies by its
# weight. How many results come out different?


# %%
def decoder_layer(x, norm1, attention, norm2, mlp):
    """(b, t, d) -> (b, t, d): the stream before and after one layer."""
    x = x + attention(norm1(x))
    return x + mlp(norm2(x))


# %%
gemma = model.requires_grad_(False).language_model
x, w = 5 * torch.randn(1000, 128).bfloat16(), gemma.norm.weight.bfloat16()
y = x.float() * x.float().square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()
once, before = (y * (1 + w.float())).bfloat16(), y.bfloat16() * (1 + w)
print("1 + 0.003 in bfloat16:", (1 + torch.tensor(0.003).bfloat16()).item())
print(f"another number if rounded before: {(once != before).float().mean():.0%}")

# %% [markdown]
# ## Build: the way in
#
# Each token id takes its row of a table, and Gemma multiplies the row by **sqrt(d)**. Why? The same
# table also serves as the way out, as we will see. There small rows are good: they keep the logits
# small. But the row is also where a token's stream begins, and the layers add to it. Let us measure
# the typical size of a number, three times: in the rows as they are stored, in the scaled rows, and
# in what the attention of the first layer adds to the same words.


# %%
def embed(input_ids, table):
    """(b, t), (v, d) -> (b, t, d)."""
    return table[input_ids] * table.shape[1] ** 0.5


table, image = gemma.embed_tokens.weight, pictures["dog_and_car_test_artist"]

# %%
one = processor(image, "answer en what is on the left?")
ids, picture = one["input_ids"][:, 36:], model.image_features(one["pixel_values"])
x = torch.cat((picture, embed(ids, table)), dim=1)  # 36 vectors of the picture come first
angles = rope_angles(torch.arange(1, x.shape[1] + 1)[None], gemma.config.head_dim, 1e4)
added = gemma.layers[0].self_attn(gemma.layers[0].input_layernorm(x), angles, None)[:, 36:]
print([f"{part.square().mean().sqrt():.2f}" for part in (table[ids], embed(ids, table), added)])

# %% [markdown]
# Scaled, the word and what attention adds are of a size. Without the factor the word would be a tenth
# of it, and drown in the first sum. Note that attention itself would not notice: it reads through a
# norm, and a norm takes every factor out again. (This is our reading. Vaswani et al., who introduced
# the factor together with the shared table, give no reason.)
#
# The picture's vectors are *not* multiplied: the projector has learned their size itself. In bfloat16
# the factor is rounded first (in Gemma 2B 45.2548 becomes 45.25), because the model was trained so.
#
# ## Build: the stack and the way out
#
# The layers run one after the other. Nothing has normed the stream on its way, so one **final norm**
# brings it to the size that the head expects. Then the **head**: a logit for every word of the
# vocabulary. A head of its own would be a second matrix of (v, d). Gemma has none. It takes the
# embedding table once more, and a word's logit is the dot product with the word's own row. The head
# is **tied** to the table. It asks: which word's vector does the stream point to?
#
# The third cell puts all together, with the trained weights. Attention, norms and rotary angles are
# those of lessons 09, 02 and 07. Picture and question are all prefix, so no mask is needed.


# %%
def decoder(x, layers, norm):
    """(b, t, d) -> (b, t, d)."""
    for layer in layers:
        x = layer(x)
    return norm(x)


def logits(x, table):
    """(b, t, d), (v, d) -> (b, t, v)."""
    return x @ table.T


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


def our_gemma(x):
    """Vectors of picture and words (b, t, d) -> logits (b, t, v)."""
    positions = torch.arange(1, x.shape[1] + 1)[None]
    angles = rope_angles(positions, gemma.config.head_dim, gemma.config.rope_theta)
    layers = [as_function(layer, angles) for layer in gemma.layers]
    return logits(decoder(x, layers, gemma.norm), table)


# %%
ours = our_gemma(x)
print("next word:", processor.token(ours[0, -1].argmax()))
print("as the package:", torch.allclose(ours, model(**one), atol=1e-2))

# %% [markdown]
# ## Break it
#
# Six mistakes, put into the trained model. The answer about one picture can be luck, so we also ask
# 120 questions about new pictures and look at the first word of each answer: how often it is right,
# how often it has changed, and what chance the model gives to it. Guess first: which mistakes are
# quiet?


# %%
def norm_after(x, norm1, attention, norm2, mlp):
    x = norm1(x + attention(x))
    return norm2(x + mlp(x))


fresh = torch.randn(table.shape, generator=torch.Generator().manual_seed(0)) * table.std()
mistakes = {
    "erf form in the gate": {"geglu": lambda x, g, u, d: (F.gelu(x @ g.T) * (x @ u.T)) @ d.T},
    "no final norm": {"decoder": lambda x, layers, norm: decoder(x, layers, lambda x: x)},
    "words not scaled": {"embed": lambda ids, table: table[ids]},
    "gate and up swapped": {"geglu": lambda x, g, u, d: geglu(x, u, g, d)},
    "norms after": {"decoder_layer": norm_after},
    "a head of its own": {"logits": lambda x, table: logits(x, fresh)},
}

# %%
from minipali.evaluation import evaluation_set

asked = evaluation_set(scenes.VALIDATION_ARTIST, each=15, seed=7)
batch = processor([scene.picture for scene, _ in asked], [q.prompt for _, q in asked])
wanted = torch.tensor([(processor.encode(q.answer) + [1])[0] for _, q in asked])  # 1: eos
models = {"right": model, **{name: swap(model, **pieces) for name, pieces in mistakes.items()}}
usual = model(**batch)[:, -1].argmax(dim=-1)
print(f"\n{'':21} right  changed  chance  caption")
for name, one_model in models.items():
    top, words = one_model(**batch)[:, -1].softmax(dim=-1).max(dim=-1)
    told = generate(one_model, processor, image, "caption en", max_new_tokens=12)
    right, changed = (words == wanted).float().mean(), (words != usual).sum()
    print(f"{name:21} {right:5.0%} {changed:8} {top.mean():7.3f}  {told!r}")

# %% [markdown]
# Two are quiet. The **erf form** changes so little that even `swap` accepts it; the exercise's check
# does not. Without the **final norm** the logits are far off, and yet hardly a first word changes. The
# norm divides a token's vector by *one* number, and that does not change which word leads. (The
# factors 1 + w can, but here they rarely do.) What is ruined are the chances: the model is
# nearly always certain. Whoever draws words by chance (lesson 12), or computes a loss (13), gets
# nonsense. Greedy answers hide this mistake.
#
# The others can be seen. Look where `swap` finds the **unscaled words** first: not at the norm or the
# attention of layer 0, but at the norm after the first sum, as we expected. And a head of its own
# speaks a language of which nobody has the dictionary.
#
# ## See it: the head as a lens
#
# Every layer *adds* to the same stream, and the head reads the stream. So nothing stops us from
# reading earlier: take the stream after some layer, apply the final norm, and the tied table tells
# which word it points to. This is called the **logit lens**. We look after every half layer, at the
# last place, where the answer is to come. To catch the stream there, we swap in our own layer.


# %%
def layer_and_keep(x, norm1, attention, norm2, mlp):
    half = x + attention(norm1(x))
    whole = half + mlp(norm2(half))
    stream.extend([half, whole] if stream else [x, half, whole])
    return whole


# %%
def look(batch):
    """What the head reads after each step: chances (step, b, v), and the normed stream."""
    stream.clear()
    watched(**batch)
    read = gemma.norm(torch.stack([x[:, -1] for x in stream]))  # (step, b, d)
    return logits(read, table).softmax(dim=-1), read


# %%
stream = []
watched = swap(model, decoder_layer=layer_and_keep)
asked = ["is there a dog", "is there a cat", "how many objects are there"]
asked += ["what colour is the background", "what is on the left", "what is on the right"]
prompts = [f"answer en {question}?" for question in asked] + ["detect dog"]
chances, _ = look(processor([image] * 7, prompts))
figures.gemma.lens(chances, processor.token, prompts, "A dog left, a car right, pink behind.")

# %% [markdown]
# Read a column from top to bottom. A frame marks a new word, and blue marks the word that the model
# says in the end, darker if it is surer.
#
# - **At the start** the head reads `\n`, with certainty. The last token of each question *is* the
#   newline, and the tied table gives back what it gave.
# - **In layer 1** guesses come up: *no*, for dog and cat alike, from the MLP. The model has read what
#   kind of answer is wanted. It has hardly looked yet.
# - **Then attention brings the news.** *2* comes in layer 2, and *pink*, a faint guess before, becomes
#   certain. *Dog* and *car* come in layer 3. There the *no* to the dog turns into *yes*, and the *no*
#   to the cat stays.
# - **Detection** is last. Through three layers the head reads nothing but `\n`.
#
# Is that so in general? 80 questions of each kind, about new pictures by an artist that the model was
# never trained on. In how many does the word that the model says in the end lead already?

# %%
asked = evaluation_set(scenes.VALIDATION_ARTIST, each=80, seed=5)
batch = processor([scene.picture for scene, _ in asked], [q.prompt for _, q in asked])
chances, read = look(batch)
leading = chances.argmax(dim=-1).unflatten(1, (-1, 80))  # (step, task, question)
shares = (leading == leading[-1]).float().mean(dim=-1)
figures.gemma.on_top(shares, scenes.TASKS, number=80)

# %%
for task, after_one in zip(scenes.TASKS, leading[2], strict=True):
    word, count = after_one.mode().values, (after_one == after_one.mode().values).sum()
    print(f"{task:14} most often after layer 1: {processor.token(word)!r}, in {count} of 80")

# %% [markdown]
# The order holds: background and counting first, then names, places and yes-or-no, boxes last. After
# one layer three kinds of question have an answer, and it is the same for nearly every picture: *no*
# to each yes-or-no question, *0* to each "how many apples", *pink* for the background. The figure calls
# more than half of the yes-or-no questions settled there, because the answer to these is *no* in the
# end. Those guesses are blind, and *no* comes from an MLP. What depends on the picture comes mostly in
# the attention rows.
#
# A warning. The lens shows what *the head* can read. Something may be there in another form. Take
# detection, where the head reads nothing up to layer 3. We fit a linear map from the stream to the top
# edge of the box, on 300 questions about drawings by training artists, and try it on the pictures
# above.


# %%
def top_edges(asked):
    """Numbers of the questions that have a box, and the top edge of the first box, 0 to 1."""
    found = [i for i, (_, q) in enumerate(asked) if q.answer.startswith("<loc")]
    return found, torch.tensor([[int(asked[i][1].answer[4:8]) / 1023] for i in found])


known = evaluation_set(scenes.TRAINING_ARTISTS, each=300, seed=11, tasks=("detection",))
pictures, prompts = [scene.picture for scene, _ in known], [q.prompt for _, q in known]
_, read_known = look(processor(pictures, prompts))
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
#
# ## Check
#
# First against the package, on random weights. Then against Hugging Face's `transformers`, layer by
# layer: it opens the folder of our small model as it is.

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

# %%
import importlib.util
from importlib.resources import files


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
# Four layers, the final norm and the logits: two programs, written apart, agree to the last digits
# that 32 bits can hold. (Padding, in the first row, is left out.) The course does not install
# `transformers` for you. Without it, read the numbers in the lesson as it came.
#
# ## In the real model
#
# Gemma 2B, the decoder of PaliGemma 3B, counted from its configuration. A weight of a matrix costs 2
# FLOP a token (multiply, add). The work is that of reading a picture and 8 tokens of text, 264 in
# all, and of one further token. The head works at one place only.

# %% tags=["nbval-check-output"]
from minipali.paligemma import PaliGemma

with torch.device("meta"):  # shapes without memory
    whole = PaliGemma(preset("paligemma-3b-224"))
count = {name: sum(p.numel() for p in part.parameters()) for name, part in whole.named_children()}
named, t, n = dict(whole.language_model.named_parameters()), whole.config.text, 264
keys = {"table and head": "embed_tokens", "attention": "self_attn", "MLPs": "mlp", "norms": "norm"}
weights = {k: sum(p.numel() for name, p in named.items() if v in name) for k, v in keys.items()}
scores = 4 * n * t.num_attention_heads * t.head_dim * t.num_hidden_layers  # for one token
more = {"table and head": 0, "attention": scores, "MLPs": 0, "norms": 0}
step = {part: 2 * size + more[part] for part, size in weights.items() if part != "norms"}
reading = {part: cost * (1 if "head" in part else n) for part, cost in step.items()}
for part, size in weights.items():
    work = f"{reading[part] / 1e9:7.1f} + {step[part] / 1e9:.2f} GFLOP" if part in step else ""
    print(f"{part:21} {size:13,} {work}".rstrip())
for part, size in count.items():
    print(f"{part:21} {size:13,}")
rest = count["language_model"] - weights["table and head"]
layer = (rest - t.hidden_size) // t.num_hidden_layers
print(f"all of PaliGemma 3B   {sum(count.values()):13,}")
print(f"decoder, no table     {rest:13,} ({t.num_hidden_layers} layers of {layer:,}, and a norm)")

# %%
figures.gemma.costs({"parameters": weights, "264 tokens": reading, "one more token": step})

# %% [markdown]
# The MLPs hold almost three quarters of the weights, and do nine tenths of the work of reading.
# Attention is small: an MLP is eight times as wide inside as outside, and one key head serves all
# eight query heads. The table is a fifth of all weights. It costs no work on the way in (a row is
# looked up, not multiplied). As the head it does a fifth of the work for each new token. A head of its
# own would add another 527 million weights.
#
# The Gemma report (table 2) gives 1,981,884,416 parameters without the embedding: to the last digit
# the number above, which 18 layers give and 6 do not. Its table has 256,128 rows; PaliGemma's has some
# more, for `<loc>`, `<seg>` and `<image>`.
#
# ## Your turn
#
# Open [the exercise](../exercises/10_gemma.ipynb). You write `embed`, `geglu`, `decoder_layer`,
# `decoder` and `logits`, and at the end the trained model answers with your decoder.
#
# ## Take away
#
# - GeGLU multiplies: a gate says how much, up says of what. Three matrices, no biases, tanh form.
# - Rows times sqrt(d) in; layers that add to one stream; one final norm; the same rows out.
# - Because the stream is a sum and the head is tied, you can read it anywhere. Attention brings the
#   answer in, question by question at its own depth.
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
# <details><summary>Your decoder gives the right words, greedily. Is it right?</summary>
#
# Not yet. Without the final norm nearly all words stay the same, and with the erf form all. Compare
# numbers.
# </details>
#
# **Sources.** Gemma: Gemma Team 2024, arXiv 2403.08295, section 2 and tables 1 and 2. Gated MLPs:
# Shazeer 2020, arXiv 2002.05202, with the quoted sentence in its conclusions; Dauphin et al. 2016,
# arXiv 1612.08083. Scaled and shared table: Vaswani et al. 2017, arXiv 1706.03762, section 3.4;
# Press and Wolf 2017, arXiv 1608.05859. The lens: nostalgebraist 2020, "interpreting GPT: the logit
# lens", LessWrong.
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
