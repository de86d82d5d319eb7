# %% [markdown]
# # 00 · Ask the finished model
#
# PaliGemma is a model that looks at a picture, reads a question, and writes an answer. In this
# course you build it, piece by piece. Today you use a finished one, so that you know where all the
# pieces lead.
#
# The model in this package is a small PaliGemma of our own. It has the same parts as the
# published one, and it fits into 10 MB. It knows 24 kinds of objects, drawn as emoji.
# Everything here runs offline and without a GPU.

# %% [markdown]
# ## Where we are
#
# This is the whole course in one picture. The **vision tower** turns the picture into vectors. The
# **projector** fits them to the language model. The language model, called the **decoder**, reads
# them together with the question and writes the answer. Each later lesson lights one part.

# %%
from minipali import figures, load
from minipali.checks import reveal

model, processor = load("small")
figures.model_map("all", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **ask** the model about a picture,
# 2. **read** what goes into it and what comes out, token by token,
# 3. **tell** whether it looks at the picture at all.
#
# Time: 30 minutes. You need: Python, and a first idea of what a tensor is.

# %% [markdown]
# ## Predict
#
# Here are the example pictures of the package. The pictures whose name ends in *test artist* show
# drawings by an artist whose work the model never saw in training.

# %%
from minipali.scenes import examples

pictures = examples()
figures.pictures(
    list(pictures.values()),
    [name.replace("_", " ") for name in pictures],
    alt="Six example pictures: emoji drawings on plain coloured backgrounds. "
    + ", ".join(pictures),
    columns=3,
)

# %% [markdown]
# Before you go on, write a guess in place of each `...`. The lesson answers it later, beside your
# guess.
#
# 1. How many numbers (**parameters**) does a model need to answer questions about such pictures?
# 2. It gets 100 questions such as *what is on the left?*, about drawings by an artist whose work it
#    never saw. How many does it answer right?
# 3. Pictures show one, two or three objects. Somebody who never looks always gives the same answer
#    to *how many objects are there?* How many of 100 are right?

# %%
guess_parameters, guess_places, guess_blind = ..., ..., ...

# %% [markdown]
# ## By hand: how long is the question?
#
# The model does not see a picture and a text. It reads one sequence, and each entry of the sequence
# is a **token**. A picture becomes one token for each of its **patches**, small squares. A text
# becomes one token for each word or part of a word. Inside the model each token is a row of
# numbers, whether it came from the picture or from the text.
#
# Work it out on paper first, for the question `answer en what is on the left?` (`en` is English).
# The picture is 72 pixels wide and high, and a patch is 12 pixels wide and high. How many patches
# are there? Add one token for *begin* (`<bos>`), one for each word of the question and one for its
# question mark, and one for the newline at its end.

# %%
prompt = "answer en what is on the left?"
patches = (72 // 12) ** 2
words = processor.encode(prompt)
print("patches:", patches)
print("words:  ", [processor.token(i) for i in words])
print("total:  ", patches + 1 + len(words) + 1)

# %% [markdown]
# The sign `▁` stands for a space: it belongs to the word that follows.

# %% [markdown]
# ## Build: one question, one answer
#
# `generate` does all the work. It prepares picture and text, runs the model, and chooses one token
# after another until the model says that it has finished.

# %%
from minipali import generate

picture = pictures["dog_and_car_test_artist"]
for prompt in (
    "caption en",
    "answer en what is on the left?",
    "answer en how many objects are there?",
    "answer en what colour is the background?",
    "answer en is there a cactus?",
):
    print(f"{prompt:42} -> {generate(model, processor, picture, prompt)}")

# %% [markdown]
# What we ask is the **prompt**. Its first words name the **task**: `caption en` asks for a caption
# in English, `answer en` for an answer. PaliGemma was trained with such prefixes, and so was ours.
#
# Compare each answer with the picture. The model is small, and it makes mistakes. Its *card*, the
# page that describes it, says how often, task by task. Try the picture with the frogs and ask for a
# caption.
#
# The answer comes one token at a time. `stream` shows the pieces as they come.

# %%
from minipali import stream

for piece in stream(model, processor, pictures["rocket_moon_clock"], "caption en"):
    print(repr(piece))

# %% [markdown]
# Change the picture or the prompt above and run the cell again. Then ask for something that it has
# not learned. Guess the answer first:

# %%
for prompt in ("answer en what colour is the dog?", "answer en where is the dog?", "detect zebra"):
    print(f"{prompt:35} -> {generate(model, processor, picture, prompt)!r}")

# %% [markdown]
# Asked for the dog's colour, it names that of the background, the only colour it was ever asked
# for. It does not say that it does not understand. It continues the text with what was likely in
# training.

# %% [markdown]
# ## Break it: close the model's eyes
#
# A model can be right for the wrong reason. If most pictures had two objects, "2" would often be
# right without a look. So what does it say if there is nothing to see? We show it plain grey.

# %%
from PIL import Image

grey = Image.new("RGB", (72, 72), (128, 128, 128))
for prompt in (
    "answer en what is on the left?",
    "answer en how many objects are there?",
    "answer en what colour is the background?",
):
    seeing, shown_grey = (generate(model, processor, p, prompt) for p in (picture, grey))
    print(f"{prompt:42} -> the picture: {seeing:8} grey: {shown_grey}")

# %% [markdown]
# So a grey picture is **not the same as no picture**. Grey is one of the backgrounds of the
# training, and the model names it. It sees a grey scene without objects. It never met one, and
# still it names an object.
#
# An honest comparison does not use this picture at all. There are two. **The commonest answer**:
# for each prompt, what was right most often in 400 other questions. And **another picture's
# answer**: the model looks, but at the picture of the next question.

# %%
from collections import Counter, defaultdict

from minipali.evaluation import answers, evaluation_set, score
from minipali.scenes import TEST_ARTIST


def commonest(task):
    """Prompt -> the answer that was right most often in 400 other questions."""
    counted = defaultdict(Counter)
    for _, question in evaluation_set(TEST_ARTIST, each=400, seed=8, tasks=(task,)):
        counted[question.prompt][question.answer] += 1
    return {prompt: own.most_common(1)[0][0] for prompt, own in counted.items()}


# %%
found = {}
for task in ("places", "counting", "yes/no"):
    asked = evaluation_set(TEST_ARTIST, each=100, seed=7, tasks=(task,))
    scenes, questions = zip(*asked, strict=True)
    swapped = list(zip(scenes[1:] + scenes[:1], questions, strict=True))
    usual = commonest(task)
    told = {
        "model": answers(model, processor, asked),
        "commonest": [usual.get(question.prompt, "") for question in questions],
        "another picture": answers(model, processor, swapped),
    }
    for way, said in told.items():
        found[task, way] = sum(map(score, questions, said))
    print(f"{task:9}", ", ".join(f"{way}: {found[task, way]:.0f} of 100" for way in told))
reveal("places, right of 100", guess_places, f"{found['places', 'model']:.0f}")
reveal("counting without a look", guess_blind, f"{found['counting', 'commonest']:.0f}")

# %% [markdown]
# Only what lies above these two comes from the picture. Whoever never looks is right with "yes" or
# "no" in about half of all cases, so a model with 60 of 100 would know very little. Ask about each
# **accuracy** (the share of right answers) that you read, in [the model's
# card](../minipali/assets/small/README.md) and elsewhere: how far is it above these two?

# %% [markdown]
# ## See it: answers that are places
#
# Some answers are places in the picture. The prompt `detect car` makes the model write four
# location tokens: top, left, bottom and right. `<loc0000>` is the upper or left edge, `<loc1023>`
# the lower or right edge, and `<loc0512>` the middle.

# %%
generate(model, processor, picture, "detect car")

# %% [markdown]
# `detect` reads these tokens and turns them into pixels of the picture that you gave it.

# %%
from minipali import detect

found = detect(model, processor, picture, "car") + detect(model, processor, picture, "dog")
figures.boxes(
    picture,
    found,
    alt="A dog and a car, each in a white box with its name, as the model placed them: "
    + "; ".join(f"{name} at rows {y0:.0f} to {y1:.0f}" for name, (y0, x0, y1, x1) in found),
)

# %% [markdown]
# ## Check
#
# The output of the next cell is verified whenever the course is tested. Yours must be the same.

# %% tags=["nbval-check-output"]
batch = processor(picture, "answer en what is on the left?")
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print("first text tokens:", batch["input_ids"][0, 36:40].tolist())
logits = model(**batch)
print("logits:", tuple(logits.shape))

# %% [markdown]
# `pixel_values` is the picture as numbers from -1 to 1. `input_ids` is the sequence, with a number
# for each token of text: the first 36 entries only keep places for the picture, 2 is `<bos>`, then
# come the words. (`attention_mask` and `token_type_ids` are for lessons 06 and 11.) The model
# returns **logits**: for each place in the sequence, one number for each of the tokens that could
# come next. Only the last place matters for the next token. The largest number wins.

# %%
best = logits[0, -1].topk(3)
for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"{processor.token(token):12} {value:6.2f}")

# %% [markdown]
# ## In the real model
#
# The published PaliGemma has the same parts, only larger. We can build its skeleton without any
# memory (on torch's `meta` device, tensors have a shape but no content) and count.

# %% tags=["nbval-check-output"]
import torch

from minipali.config import preset
from minipali.paligemma import PaliGemma

for name in ("small", "paligemma-3b-224"):
    with torch.device("meta"):
        skeleton = PaliGemma(preset(name))
    numbers = sum(p.numel() for p in skeleton.parameters())
    print(f"{name:17} {numbers:13,} parameters, {numbers * 2 / 1e9:6.3f} GB at 2 bytes each")
    if name == "small":
        reveal("parameters of our model", guess_parameters, f"{numbers:,}")

# %% [markdown]
# ## The course
#
# | lesson | you build | lesson | you build |
# |---|---|---|---|
# | 01 patches | a picture as a row of patches | 09 gqa | heads that share keys and values |
# | 02 norms | three ways to tame numbers | 10 gemma | the language model |
# | 03 attention | the weighted average that learns | 11 paligemma | both together, with its mask |
# | 04 vision | the vision tower | 12 generation | the choice of the next token |
# | 05 contrastive | pictures and words in one space | 13 training | learning itself |
# | 06 tokens | text as numbers | 14 weights | reading a published model |
# | 07 rope | positions as rotations | 15 locations | boxes as words |
# | 08 kv_cache | never compute a thing twice | 16 masks | shapes as words |
#
# From 01 on each lesson has an exercise of the same number, and at its end your own code runs
# inside this trained model.

# %% [markdown]
# ## Your turn
#
# There is nothing to write yet. Ask the model about a picture of your own:
#
# ```python
# generate(model, processor, "my_photo.jpg", "caption en")
# ```
#
# Or play with it in a browser: `minipali page --output page.html` writes the whole model into one file
# that opens without a server or a network, also on a phone. You can draw a picture there.
#
# ![The live model in a browser tab. It was asked to detect frog: two boxes lie on a picture of two
# frogs and a pizza, and below the answer each token shows its probability and what else might have
# come.](../docs/live_page.png)
#
# (Drawings: Twemoji, by Twitter, Inc and other contributors, and EmojiOne 2, CC BY 4.0, modified; Fluent
# Emoji by Microsoft, MIT.)
#
# The model will answer with the few words it knows, whatever you show it. Why? Think about what it was
# trained on, and go on with [01 patches](01_patches.ipynb).

# %% [markdown]
# ## Take away
#
# - A vision-language model reads one sequence of tokens: image tokens first, then the text.
# - It answers by choosing the next token again and again; places are tokens too.
# - An accuracy says little alone. Put beside it what the commonest answer gets, without a look.
#
# **Self-test**
#
# <details><summary>A friend shows a model black pictures and calls its accuracy there "guessing".
# What is wrong with that?</summary>
#
# Black is a picture, too, and the model answers what it sees there. Guessing is what can be said
# without any picture: the commonest answer to the question, or the answer to another picture.
# </details>
#
# <details><summary>How many tokens does a 224 x 224 picture take with patches of 14 x 14
# pixels?</summary>
#
# 224 / 14 = 16, and 16 x 16 = 256.
# </details>
#
# **Sources.** PaliGemma: Beyer et al. 2024, [arXiv 2407.07726](https://arxiv.org/abs/2407.07726).
# SigLIP: Zhai et al. 2023, [arXiv 2303.15343](https://arxiv.org/abs/2303.15343). Gemma: Gemma Team
# 2024, [arXiv 2403.08295](https://arxiv.org/abs/2403.08295).
#
# ### What the notes say, and what is true
#
# This course grew from a student's notes. Each lesson ends with a table like this one. All of them
# together are on [one page](../docs/notes.md).
#
# | the notes say | true |
# |---|---|
# | contrastive learning fuses picture and text, and the result is fed to Gemma | contrastive learning only trains the vision tower beforehand (lesson 05); the fusion happens in Gemma's attention, over image tokens and text tokens in one sequence (lesson 11) |
