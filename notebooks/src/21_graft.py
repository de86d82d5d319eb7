# %% [markdown]
# # 21 · Graft: eyes for a language model
#
# SmolLM2 has read very many texts, and has never seen anything. Our small model sees, and knows 24
# objects by name. Today you join the two, the tower of one and the language model of the other, as a
# gardener *grafts* a branch of one tree onto another. The first projector between them needs no training
# at all. You compute it.
#
# ## Do you remember?
#
# <details><summary>In PaliGemma's mask, what may a token of the picture see? And a token of the
# answer?</summary>
#
# A picture token sees the whole prefix, picture and question. A token of the answer sees the prefix and
# the answer up to itself (lesson 11).
# </details>
#
# <details><summary>LoRA adds <code>alpha / r * B A</code> to a frozen weight. Which of A and B is zero at
# the start, and why only one?</summary>
#
# B. With both at zero, both gradients would be zero in every step (lesson 18).
# </details>
#
# <details><summary>SmolLM2 is a Llama. Name two things in which a Llama differs from Gemma 1.</summary>
#
# SiLU in place of GELU, norm weights w in place of 1 + w, no factor on the embeddings (lesson 20).
# </details>
#
# ## Where we are

# %%
import json

import numpy as np
import torch
import torch.nn.functional as F

from minipali import figures, generate, graft, load, published, scenes
from minipali.checks import reveal
from minipali.config import preset

# %%
torch.set_num_threads(1)  # a second thread gains little, and loses much where others work
eyes, _ = load("small")
try:
    model, processor = graft.new_graft()  # both halves, nothing trained between them
    SMOLLM2 = True
except published.PublishedError as error:
    SMOLLM2 = False
    print(f"What follows needs SmolLM2 in most cells, which then do nothing. {error}")
figures.model_map("projector", eyes.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **compute** a projector by least squares, and read patches as words,
# 2. **build** mask and positions with which several questions share one picture,
# 3. **judge** what a graft learned from pictures, and what it brought along.
#
# Time: 60 minutes. You need: the projector and the mask (lesson 11), LoRA (18), SmolLM2 (20): `python
# course.py weights` brings it here, once.
#
# ## Predict
#
# 1. The projector is computed from pictures by the training artists. Then it reads patches inside the
#    objects of an artist who is new to it. The nearest of 33 words (24 objects, 9 colours) is the right
#    one for how many percent? (Chance: 3 %.)
# 2. Three questions about one picture, each as a row of its own, have 136 tokens. In each row 37 are a
#    first token and the picture's 36. In one row that shares these: how many tokens?
# 3. After the training, which was about 24 objects by their names, it is asked "is there an animal?".
#    How many percent of the answers are right? (In half of the pictures there is one.)

# %%
guess_patches, guess_tokens, guess_animal = ..., ..., ...

# %% [markdown]
# ## By hand: a map by least squares
#
# Each patch has a vector x from the tower. Let y be the vector of the **word for what it shows**, from
# the table of the language model. We look for the linear map with the smallest mean of
# $\lVert W x + b - y \rVert^2$. There is a formula for it: no steps, no learning rate. Subtract the
# means, write the x as rows of X and the y as rows of Y:
#
# $$\left(\tfrac{1}{n} X^T X + \lambda I\right) W^T = \tfrac{1}{n} X^T Y, \qquad b = \bar y - W \bar x$$
#
# This is **least squares**. The small $\lambda$, the **ridge**, keeps W from growing where the patches
# hardly vary.
#
# On paper: two patches of one number, x = 0 and 2, words y = 1 and 5. What are W and b without a
# ridge? And with $\lambda = 1$?

# %% tags=["nbval-check-output"]
x, y = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0])
for ridge in (0, 1):
    X, Y = x - x.mean(), y - y.mean()
    W = (X * Y).mean() / ((X * X).mean() + ridge)
    print(f"ridge {ridge}: W = {W:.0f}, b = {y.mean() - W * x.mean():.0f}")

# %% [markdown]
# ## Build: the projector
#
# **Write it now**: [exercise 21](../exercises/21_graft.ipynb), part 1. Patches (n, p), words (n, d) and
# the ridge come in; the weight (d, p) and the bias (d,) go out. Two results are above. Then open the
# cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def closed_form_projector(patches, words, ridge):
    """patches (n, p), words (n, d) -> weight (d, p), bias (d,)."""
    x_mean, y_mean = patches.mean(dim=0), words.mean(dim=0)
    X, Y = (patches - x_mean).double(), (words - y_mean).double()
    gram = X.T @ X / len(X) + ridge * torch.eye(X.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, X.T @ Y / len(X)).T.float()
    return weight, y_mean - weight @ x_mean


# %% [markdown]
# What does a patch show? We compose the scenes, so we know: the object whose box covers it, else the
# colour of the background, and a mix at the edges. These are **patch labels**. A photograph has none;
# PaliGemma never had them. They are why all this is so fast.


# %%
def patches_and_words(made, vectors):
    """What the tower says of each patch, (n, 160), and what covers it: shares of WORDS, and words."""
    with torch.no_grad():
        patches = eyes.vision_tower(scenes.pixel_values(made)).flatten(0, 1)
    shares = torch.cat([graft.word_shares(scene, 6) for scene in made])
    return patches, shares, shares @ vectors


# %%
def drawn(number, artists, seed):
    rng = np.random.default_rng(seed)
    return [scenes.compose(rng, artists) for _ in range(number)]


# %%
if SMOLLM2:
    vectors = graft.word_vectors(model, processor.encode, graft.WORDS)  # (33, 576)
    patches, _, words = patches_and_words(drawn(300, scenes.TRAINING_ARTISTS, 0), vectors)
    weight, bias = closed_form_projector(patches, words, 1e-3)
    left = (words - F.linear(patches, weight, bias)).square().sum()
    r2 = 1 - left / (words - words.mean(dim=0)).square().sum()
    print(f"{len(patches):,} patches, {tuple(weight.shape)} numbers; R2 {r2:.2f}")

# %% [markdown]
# **R2** is the share of the words' variance that the map explains. Now the test: an artist whose drawings
# were in no training. Each patch goes through the projector, and we look for the nearest of the 33 words.
# No gradient has been computed in this lesson so far.

# %%
if SMOLLM2:
    rng = np.random.default_rng(4)
    names = [["dog", "pizza"], ["frog", "umbrella"], ["penguin"]]
    shown = [scenes.compose(rng, scenes.VALIDATION_ARTIST, names=own) for own in names]
    seen, _, _ = patches_and_words(shown, vectors)
    nearest = torch.cdist(F.linear(seen, weight, bias), vectors).argmin(dim=1)
    told = np.array(graft.WORDS)[nearest].reshape(len(shown), -1).tolist()
    figures.graft.word_map([s.picture for s in shown], told, [", ".join(own) for own in names])

# %%
if SMOLLM2:
    seen, shares, _ = patches_and_words(drawn(100, scenes.VALIDATION_ARTIST, 1), vectors)
    nearest = torch.cdist(F.linear(seen, weight, bias), vectors).argmin(dim=1)
    inside = (shares.amax(dim=1) > 0.9) & (shares.argmax(dim=1) < len(scenes.OBJECTS))
    right = (nearest == shares.argmax(dim=1))[inside].float().mean()
    reveal("percent of the patches", guess_patches, f"{100 * right:.0f}")

# %% [markdown]
# The picture has become a text of 36 words, in a square; inside objects about two of three are right. (The
# frog is called an apple: green and round is not enough.) What
# does the language model make of it? We put the 36 vectors where PaliGemma has its image tokens, and ask.

# %%
if SMOLLM2:
    model.multi_modal_projector.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    asked = ("what is on the left?", "what is at the top?", "what is this?")
    for scene, question in zip(shown, asked, strict=True):
        print(question, "->", generate(model, processor, scene.picture, question, 8))

# %% [markdown]
# It says nothing about the picture. It must learn to look: that is what LoRA is for. Two things help it:
#
# - **Where** is a patch? RoPE counts the patches row by row, as one line. So each place gets a vector of
#   its own, which starts as a mix of the *words* left, right, top and bottom.
# - The **first token**: language models give much attention to the first token, whatever it is. So
#   `<|im_start|>` stays there, before the picture. And the model reads the picture as it reads everything:
#   forward, each token sees those before it. In the tower each patch has seen all others already.
#
# ## Build: questions that share a picture
#
# A step of training costs the more, the more tokens it has. The picture's 36 stand in every row, and the
# questions are short. So we put several questions behind one picture. Then two things must be as if
# each were alone:
#
# - the **mask**: a question sees the picture and itself, nothing of the others;
# - the **positions**: each goes on where the picture ended.
#
# **Write both now**: exercise 21, parts 2 and 3. `owner` (b, s) comes in, 0 at the picture, 1, 2, …
# at the questions. By hand for 0 0 1 2 2: the last row of the mask sees places 1, 2, 4, 5; the
# positions are 1, 2, 3, 3, 4. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input", "nbval-check-output"]
def shared_mask(owner):
    """owner (b, s) -> bool (b, 1, s, s)."""
    place = torch.arange(owner.shape[1])
    same, picture = owner[:, :, None] == owner[:, None, :], owner[:, None, :] == 0
    return ((same | picture) & (place[None, :] <= place[:, None]))[:, None]


def shared_positions(owner):
    """owner (b, s) -> (b, s): as many tokens as each one sees."""
    return shared_mask(owner)[:, 0].sum(dim=-1)


owner = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]])
print(shared_positions(owner)[0].tolist())
row = "start patch patch what? a dog is_it a cat? no colour? red"
figures.graft.shared(shared_mask(owner)[0, 0], row.split(), owner[0].tolist())

# %%
if SMOLLM2:
    rng = np.random.default_rng(2)
    scene = scenes.compose(rng, scenes.VALIDATION_ARTIST, 3)
    asked = graft.questions(rng, scene, 3)
    rows, pixels = (
        [graft.question_row(processor, one) for one in asked],
        scenes.pixel_values([scene]),
    )
    with torch.no_grad():
        together, _ = graft.shared_logits(model, pixels, [rows])
        alone = torch.cat([graft.shared_logits(model, pixels, [[one]])[0] for one in rows])
    count = sum(len(ids) for ids, _ in rows)
    print("the same logits:", bool((together - alone).abs().max() < 1e-2))
    reveal("tokens", guess_tokens, f"{37 + count} in place of {3 * 37 + count}")

# %% [markdown]
# ## See it: after a training
#
# Projector and LoRA (rank 8 on queries, keys, values and outputs) together were trained for 400 steps of 4
# pictures with 6 questions each. Not here: it takes minutes (`python -m minipali.graft train`). The
# result lies in the package: 1 million numbers in 2 MB, float16. The 135 million of SmolLM2 are as they
# were.

# %%
if SMOLLM2:
    graft.put(model)
    asked = ("what is on the left?", "what is at the top?", "what is this?")
    for scene, question in zip(shown, asked, strict=True):
        print(question, "->", generate(model, processor, scene.picture, question, 8))

# %% [markdown]
# One word each, and two of the three are wrong. The umbrella was partly a balloon in the map of words
# already. Left and right come further below.
#
# How good is it? The exam shows the **test artist**, with whose drawings nothing was trained and nothing
# was chosen; it was taken by three trainings with different seeds. Beside them stand the same model that
# is shown a grey picture, or that of the question before, and the commonest answer: these do not see the
# picture. The small model has the same tower and was trained far longer.

# %%
results = json.loads((graft.SHIPPED.parent / "exam.json").read_text())
figures.graft.exam(results, graft.TASKS, each=200)

# %% [markdown]
# ## See it: questions that it was never asked
#
# In its training no question was about animals, food or plants. Half of these are to be answered yes.

# %%
figures.graft.exam(results, tuple(graft.CATEGORIES), each=100)
animal = np.mean([found["animal"] for name, found in results.items() if name.startswith("seed")])
reveal("percent of the animals", guess_animal, f"{100 * animal:.0f}")

# %% [markdown]
# The small model says the same to everything: half is right. The graft often knows that a dog is an
# animal, though no training question ever said so: **the language model brought that along**. Do not call it
# reasoning. Probably *dog* and *animal* lie near each other in its table; with plants and toys it
# guesses. Instrument is one object here, the guitar, and fruit the apple. And the seeds differ. Now other
# wordings:

# %%
if SMOLLM2:
    penguin = scenes.examples()["penguin_test_artist"]
    for question in ("is there a bird?", "was ist das?", "which sound does it make?", "caption en"):
        print(question, "->", generate(model, processor, penguin, question, 8))

# %% [markdown]
# A penguin is a bird, and it says no. For the rest it has the few words that its training left it. SmolLM2's own talent, to go on with a
# text, is covered up.
#
# ## See it: left and right
#
# Seven of ten questions about places are right in the exam. Look at them place by place, in scenes with
# two different objects.

# %%
if SMOLLM2:
    rng = np.random.default_rng(5)
    kinds = [list(rng.choice(scenes.OBJECTS, 2, replace=False)) for _ in range(16)]
    made = [
        scenes.compose(rng, scenes.VALIDATION_ARTIST, names=list(map(str, own))) for own in kinds
    ]
    for place in scenes.PLACES:
        there = [(scene, scenes.extreme(scene, place)) for scene in made]
        there = [(scene, thing.name) for scene, thing in there if thing is not None]
        question = f"what is {'at' if place in ('top', 'bottom') else 'on'} the {place}?"
        pictures = [scene.picture for scene, _ in there]
        told = generate(model, processor, pictures, [question] * len(there), 5)
        hits = sum(one == name for one, (_, name) in zip(told, there, strict=True))
        others = [{thing.name for thing in scene.things} - {name} for scene, name in there]
        swapped = sum(one in other for one, other in zip(told, others, strict=True))
        print(f"{place:7} of {len(there)}: {hits:2} right, {swapped:2} the other object")

# %% [markdown]
# It knows top and bottom, and **not left and right**: there the other object comes as often. The patches
# stand in the row line after line. What is at the top comes early, at the bottom late, and early and
# late are what a language model knows well. Left and right are only in the 36 vectors of the places, and our
# training did not learn to use them. The one number for "places" had hidden that.
#
# ## Break it: what does each part do?
#
# Ten scenes of the validation artist, four questions each. One part is taken away at a time, from the
# trained graft. Which do you expect to hurt most?


# %%
def right(model, rows, made, **changed):
    """Share of questions of which every token of the answer is told."""
    kept = {name: getattr(graft, name) for name in changed}
    for name, value in changed.items():
        setattr(graft, name, value)
    with torch.no_grad():
        logits, wanted = graft.shared_logits(model, scenes.pixel_values(made), rows)
    for name, value in kept.items():
        setattr(graft, name, value)
    lengths = [sum(label >= 0 for label in labels) for row in rows for _, labels in row]
    hits = (logits.argmax(dim=1) == wanted).split(lengths)
    return np.mean([bool(of_one.all()) for of_one in hits])


# %%
if SMOLLM2:
    rng = np.random.default_rng(9)
    made = [scenes.compose(rng, scenes.VALIDATION_ARTIST, 2 + i % 2) for i in range(10)]
    rows = [[graft.question_row(processor, q) for q in graft.questions(rng, s, 4)] for s in made]

# %%
if SMOLLM2:
    leak = {"shared_mask": lambda owner: shared_mask(owner.clamp(max=0))}
    leak["shared_positions"] = shared_positions
    through = {"shared_positions": lambda owner: torch.arange(1, owner.shape[1] + 1)[None]}
    places = model.multi_modal_projector.places
    print(f"as it was trained             {right(model, rows, made):4.0%}")
    print(f"questions see each other      {right(model, rows, made, **leak):4.0%}")
    print(f"positions counted through     {right(model, rows, made, **through):4.0%}")
    print(f"another picture               {right(model, rows, made[1:] + made[:1]):4.0%}")
    kept = places.data.clone()
    places.data = kept.mean(dim=0).expand_as(kept).clone()
    print(f"all places alike              {right(model, rows, made):4.0%}")
    places.data = kept

# %% [markdown]
# - **Another picture** hurts most: most of its answers come from what it sees.
# - **Questions that see each other** were never met in the training. In a training with this mistake
#   the loss can look *better*, because earlier answers help.
# - **Positions counted through** do no harm here, with four short questions. Not every mistake shows in
#   an exam, so compare the logits, as above.
# - **All places alike** changes little: their vectors are hardly used. That fits with left and right.
#
# ## Check
#
# Our projector, mask and positions against the package's, on the same numbers.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
some, other = torch.randn(50, 7) + 1, torch.randn(50, 5) - 2
ours, theirs = (f(some, other, 0.1) for f in (closed_form_projector, graft.closed_form_projector))
print("projector:", all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True)))
owner = torch.tensor([[0, 0, 1, 1, 2, 3, 3], [0, 0, 1, 2, 2, 2, -1]])
print("mask:     ", torch.equal(shared_mask(owner), graft.shared_mask(owner)))
print("positions:", torch.equal(shared_positions(owner), graft.shared_positions(owner)))

# %% [markdown]
# ## In the real model
#
# How large is the projector's part? PaliGemma's is one linear layer, too. But it starts from zeros, and
# *all* weights of both halves are trained with it, on a billion examples (its paper; lesson 17). Others
# keep the halves frozen at first and train the projector alone, as LLaVA does.

# %% tags=["nbval-check-output"]
for name in ("small", "paligemma-3b-224"):
    config = preset(name)
    vision, text = config.vision.hidden_size, config.text.hidden_size
    print(f"{name:18} {vision} -> {text}: {vision * text + text:9,} numbers in the projector")
lora = 30 * 8 * (2 * (576 + 576) + 2 * (576 + 192))
print(f"{'graft':18} 160 -> 576: {161 * 576:9,}, for places {36 * 576:,}, LoRA {lora:,}")

# %% [markdown]
# What all this does **not** show:
#
# - The tower is not new to such pictures. It had met such scenes, with a label for every patch in its
#   first stage, and then learned these kinds of questions inside the small model.
# - Nobody has shown it a photograph. It has 24 objects and 9 colours.
# - Our projector needed labels of patches. Without them it has to be learned from pictures with texts:
#   LLaVA's from 595,000 pairs (its paper).
#
# ## Your turn
#
# [The exercise](../exercises/21_graft.ipynb) has one piece more that no cell of this lesson shows: the
# projector from more pictures than your memory holds.
#
# ## Take away
#
# - Where you know what each patch shows, least squares makes words of patches, in one equation.
# - Questions that share a picture need a mask and positions as if each were alone.
# - An exam needs those who do not see beside it, and a training says nothing about questions that it
#   never asked, until you ask them.
#
# **Self-test**
#
# <details><summary>The ridge grows without end. What does the projector say of every patch?</summary>
#
# W goes to zero and b to the mean of the words: of every patch it says the same.
# </details>
#
# <details><summary>A row has a picture of 36 places after the first token, and then questions of 8, 10
# and 9 tokens. Which position has the last token of the third question?</summary>
#
# 1 + 36 + 9 = 46: it sees the first token, the picture and itself.
# </details>
#
# <details><summary>In a training the questions see each other by mistake. Why can the loss fall faster
# than without the mistake?</summary>
#
# The answers of earlier questions stand in the row: "is there a dog? yes" helps with "what is on the
# left?". At the exam they are missing.
# </details>
#
# **Sources.** Least squares with a ridge: Hoerl and Kennard 1970. A frozen language model that is given
# pictures: Tsimpoukelli et al. 2021, "Multimodal Few-Shot Learning with Frozen Language Models". The
# projector first, then the language model: Liu et al. 2023, "Visual Instruction Tuning" (LLaVA). Attention
# on the first token: Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks".
# SmolLM2: Ben Allal et al. 2025, arXiv 2502.02737. PaliGemma: Beyer et al. 2024, arXiv 2407.07726.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the projector makes the picture's vectors as wide as the text's | so it does, and it can do more: here its outputs are near to the vectors of words, because it was computed so |
