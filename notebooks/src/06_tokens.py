# %% [markdown]
# # 06 · Tokens: text and pictures in one row
#
# The decoder of PaliGemma reads one row of vectors. It does not know letters, and it does not know
# files. The **processor** cuts text into pieces, gives each piece a number, makes every picture the
# same size, and puts both into one row. It has no weights. But it makes all that the model gets, and
# a model cannot say when that is wrong. You will make nine mistakes on purpose, and measure what
# each one costs.
#
# ## Do you remember?
#
# <details><summary>What is the shape of <code>pixel_values</code> for two pictures of the small
# model?</summary>
#
# (2, 3, 72, 72): pictures, colours, height, width (lesson 01).
# </details>
#
# <details><summary>Somebody hides padding with <code>weights = softmax(scores) * mask</code>. What is
# wrong?</summary>
#
# The hidden keys have taken their share already, and the weights of a row no longer sum to 1. The
# mask must make the *scores* minus infinity, before the softmax (lesson 03).
# </details>
#
# <details><summary>A picture of a dog and a car is in a batch with the sentences "a dog" and "a car".
# Which of the two losses of lesson 05 can call both right?</summary>
#
# SigLIP's: it asks each pair alone. In CLIP's softmax two right answers compete.
# </details>
#
# ## Where we are

# %%
import numpy as np

from minipali import figures, load, scenes
from minipali.checks import reveal

model, processor = load("small")
figures.model_map("tokens", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **train** a tokenizer, and say what happens to text that it has never met,
# 2. **assemble** a row from image tokens, bos, prompt, newline and padding, with its mask,
# 3. **prepare** a picture, and tell loud mistakes from quiet ones by measuring.
#
# Time: 55 minutes. You need: patches (lesson 01), and what a mask is (03).
#
# ## Predict
#
# 1. Our tokenizer learned from English questions about 24 objects. You give it the emoji 😀. How
#    many tokens does it make of it?
# 2. A question ends with a newline. You forget it. Which token does the model then find most
#    likely, where it said `dog` before?
# 3. The text begins with a token named *bos*. You forget that one. What suffers most: *naming*,
#    *counting*, or *detection* (boxes)?

# %%
guess_tokens, guess_token, guess_task = ..., ..., ...

# %% [markdown]
# ## By hand: three merges
#
# **Byte-pair encoding** (BPE) lies between letters, which make long rows, and words, of which there
# are too many. Start from letters, and join the neighbours that stand together most often. Then
# again, and again. Each join adds one piece to the **vocabulary**, the list of all pieces.
#
# Take the text *cat cat scat rat*. A space belongs to the word that follows it and is written `▁`;
# put one before the first word, too. On paper: which two neighbours are most frequent? Join them
# everywhere and count again. Three times.

# %%
from collections import Counter
from itertools import pairwise


def merge(word, pair):
    """Join each place in a word where the two pieces of the pair stand side by side."""
    joined = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return tuple(joined)


def next_pair(words):
    """words: {pieces of a word: how often} -> the most frequent pair, and how often."""
    count = Counter()
    for word, often in words.items():
        for pair in pairwise(word):
            count[pair] += often
    return count.most_common(1)[0]


# %%
words = {tuple("▁cat"): 2, tuple("▁scat"): 1, tuple("▁rat"): 1}
for _ in range(3):
    pair, often = next_pair(words)
    words = {merge(word, pair): n for word, n in words.items()}
    print(f"{'+'.join(pair):7} {often} times:", " | ".join(" ".join(word) for word in words))

# %% [markdown]
# Frequent words end as one piece, rare ones stay in parts. New text is cut by the same joins in the
# same order: *cats* becomes `▁cat s`, though we never saw it.
#
# ## Build: a tokenizer
#
# **SentencePiece**, the library behind Gemma's tokenizer, does this fast. We train it here, on
# captions and questions about 300 scenes. As in Gemma's, each digit is a piece of its own, spaces
# stay as they are, and unknown characters become bytes. The newline is a piece that never joins.

# %%
rng, text = np.random.default_rng(0), []
for _ in range(300):
    scene = scenes.compose(rng, scenes.TRAINING_ARTISTS)
    asked = [scenes.ask(rng, scene, task) for task in scenes.TASKS[:6]]  # no boxes
    text += [scenes.caption(scene), *(question.prompt for question in asked if question)]
print(f"{len(text)} lines, {sum(map(len, text)):,} letters:", text[:3])

# %%
import io

import sentencepiece


def train(size, byte_fallback=True):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=made, model_type="bpe", vocab_size=size,
        split_digits=True, remove_extra_whitespaces=False, byte_fallback=byte_fallback,
        normalization_rule_name="identity", add_dummy_prefix=False, user_defined_symbols=["\n"],
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


# %%
sentence = "two penguins on a purple background\n"
trained = {size: train(size) for size in (300, 340, 400, 500)}
figures.tokens.pieces(
    {f"vocabulary of {size}": one.EncodeAsPieces(sentence) for size, one in trained.items()}
)

# %% [markdown]
# A larger vocabulary makes shorter rows. The price is a larger table, because each piece has a
# vector of its own (lesson 10), and a rare piece has a vector that was rarely trained.
#
# Of the 300 entries of the smallest vocabulary, 256 are the **bytes**. A character that is not in
# the vocabulary is written as the bytes of its UTF-8 form. Without this **byte fallback** it
# becomes *unknown* and is lost. We compare the two on a text that our training never met.

# %%
without = train(300, byte_fallback=False)
strange = "un chien noir 😀"
for name, one in (("with bytes", trained[500]), ("without", without)):
    print(f"{name:10} {one.EncodeAsPieces(strange)}")
    print(f"{'':10} back as text: {one.DecodeIds(one.EncodeAsIds(strange))!r}")
reveal("tokens of an emoji", guess_tokens, len(trained[500].EncodeAsIds("😀")))

# %% [markdown]
# (Without bytes you see `😀` too, but there it has the id of *unknown*, and reads back as `⁇`.) An
# unknown language is a long row of letters and bytes, of which the model learned nothing. To lose
# nothing is not to understand.
#
# ## Build: tokens that are no text
#
# Some ids stand for no text. SentencePiece has four of its own, with the ids 0 to 3: `<pad>`
# (padding), `<eos>` (end), `<bos>` (begin) and `<unk>` (unknown). PaliGemma adds three kinds behind
# all pieces:
#
# - `<loc0000>` to `<loc1023>`: **places**. A box is four of them: top, left, bottom, right. An edge
#   at a fraction v of the height or width, 0 to 1, is the number round(v · 1023).
# - `<seg000>` to `<seg127>`: **shapes**, for the outlines of objects (lesson 16).
# - `<image>`: an **image token** keeps a place free for one patch of the picture.
#
# Alone, SentencePiece cuts `<loc0512>` into small pieces. So the processor looks for such
# names first.

# %% tags=["nbval-check-output"]
print("the first four:     ", [processor.sentencepiece.IdToPiece(i) for i in range(4)])
print("SentencePiece alone:", processor.sentencepiece.EncodeAsPieces("<loc0512>"))
print("processor:          ", processor.encode("<loc0512>"), "= 512 +", processor.first_location)
box = (0.25, 0.1, 0.75, 0.9)  # top, left, bottom, right
places = "".join(f"<loc{round(v * 1023):04d}>" for v in box)
print("a box:", places, "->", processor.encode(places + " dog"))

# %% [markdown]
# ## Build: the row
#
# The row of a question has four parts, in this order: **image tokens**, one for each patch;
# **bos**, which begins the text; the **prompt**; and a **newline**. The newline marks where the
# question ends and the answer begins. It occurs in none of PaliGemma's prompts, and the tokenizer
# may not join it with a neighbour, or the mark would not always be the same token.
#
# **Write it now**: [exercise 06](../exercises/06_tokens.ipynb), `prompt_ids`. A prompt comes in,
# and a function `encode` that makes a list of ids of a text; one list of ids goes out. Two results,
# with an `encode` that gives each letter its number in Unicode (h 104, i 105, newline 10), image
# token 9, two patches and bos 2: `"hi"` becomes [9, 9, 2, 104, 105, 10], and `""` becomes [9, 9, 2,
# 10].


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def prompt_ids(prompt, encode, image_token, num_patches, bos):
    """One row: the picture's places, bos, prompt, newline."""
    return [image_token] * num_patches + [bos] + encode(prompt + "\n")


# %%
picture = scenes.examples()["dog_and_car_test_artist"]
special = (model.config.image_token_id, model.config.vision.num_patches, model.config.bos_token_id)
ids = prompt_ids("answer en what is on the left?", processor.encode, *special)
figures.tokens.row(ids, processor(picture, "")["pixel_values"][0], processor)

# %% [markdown]
# The image tokens all have one id. In lesson 11 the 36 vectors of the vision tower take their
# places. The tokenizer gives **ids** and nothing more; text vectors come from the model's table.
#
# The model answers with one score for each id that may come next, its **logits**, and softmax makes
# shares of them. With the newline, and without:

# %%
import torch

view = processor(picture, "")["pixel_values"]
for name, row in (("with the newline", ids), ("without it", ids[:-1])):
    best = model(torch.tensor([row]), pixel_values=view)[0, -1].softmax(dim=-1).topk(3)
    likeliest = [processor.token(i) for i in best.indices.tolist()]
    pairs = zip(likeliest, best.values.tolist(), strict=True)
    print(f"{name:17}", ", ".join(f"{token!r} {share:.3f}" for token, share in pairs))
reveal("likeliest without the newline", guess_token, likeliest[0])

# %% [markdown]
# Without the newline the answer *ends* before it begins. In training, a text without a newline
# behind it was a finished answer, and so the model finishes.
#
# ## Build: padding
#
# A batch is one tensor, so its rows must be equally long. The short ones get **padding**, and a
# **mask** tells which tokens are real: 1 for real, 0 for padding.
#
# **Write it now**: exercise 06, `pad_rows`. Lists of ids come in; ids and mask go out, each (b,
# longest). Two results for the rows [5, 6, 7] and [8] and the filler 0: on the left, the second row
# becomes [0, 0, 8] with the mask [0, 0, 1]; on the right, [8, 0, 0] with [1, 0, 0]. Make the mask
# from the lengths, not from `ids != 0`: the filler may also be a real id.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def pad_rows(rows, filler, side):
    """Lists of ids -> ids (b, longest) and mask (b, longest)."""
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        missing = longest - len(row)
        before, after = (missing, 0) if side == "left" else (0, missing)
        ids.append([filler] * before + row + [filler] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return torch.tensor(ids), torch.tensor(mask)


# %%
prompts = ["answer en what is on the left?", "caption en"]
rows = [prompt_ids(prompt, processor.encode, *special) for prompt in prompts]
sides = {f"padding on the {side}": pad_rows(rows, 0, side) for side in ("left", "right")}
figures.tokens.padded(sides, processor)

# %% [markdown]
# Both are right, as long as the mask goes with the ids. On the left is handy for answering: the last
# column holds the newline of every row, and each new token is one more column.
#
# ## Build: the picture
#
# - **RGB.** Some pictures are grey, some have a fourth channel that says how transparent a pixel
#   is. We lay every picture over white.
# - **A square.** The whole picture is squeezed into the model's square. Nothing is cut off.
# - **The scale.** SigLIP was trained on numbers from -1 to 1: divide by 255, subtract 0.5, divide
#   by 0.5.
#
# **Write it now**: exercise 06, `to_pixels`. A Pillow picture of any size and kind comes in,
# float32 (3, side, side) goes out. Two results: a grey picture of the value 51 becomes -0.6
# everywhere, because (51 / 255 - 0.5) / 0.5 = -0.6, and a wholly transparent one becomes 1, which
# is white.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
import torch.nn.functional as F
from PIL import Image


def to_pixels(picture, side):
    """Any picture -> float32 (3, side, side) from -1 to 1."""
    white = Image.new("RGBA", picture.size, "white")
    rgb = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    square = rgb.resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)  # (y, x, c) -> (c, y, x)
    return (pixels.float() / 255 - 0.5) / 0.5


# %% tags=["nbval-check-output"]
print([round(to_pixels(Image.new("L", (5, 4), v), 2)[0, 0, 0].item(), 3) for v in (0, 51, 255)])
print("transparent:", to_pixels(Image.new("RGBA", (5, 4), (0, 0, 0, 0)), 2).unique().tolist())

# %% [markdown]
# ## See it: a photograph made small
#
# The resizing hides a decision. In a picture made eight times smaller, one new pixel stands for 64
# old ones. Pillow averages over all of them and some around: **antialiasing**. torch's
# `F.interpolate` with `mode="bicubic"` looks, by default, at 4 x 4 pixels and skips the rest. Here
# is Grace Hopper, who wrote one of the first compilers (a portrait by the U.S. Navy, public domain,
# which comes with matplotlib). The lower row enlarges the framed part.


# %%
def not_antialiased(picture, side):
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, (side, side), mode="bicubic")[0].clamp(0, 255)
    return small / 255 * 2 - 1


# %%
from matplotlib.cbook import get_sample_data

photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))
small = {"antialiased": to_pixels(photo, 72), "not antialiased": not_antialiased(photo, 72)}
figures.tokens.shrunk(photo, small, part=(0.22, 0.28, 0.62, 0.78))

# %% [markdown]
# The specks on the right are not in the photograph. They are single pixels that happened to be
# kept.
#
# ## Break it: nine ways to ask wrongly
#
# We ask 160 questions, 20 of each task, about pictures by an artist whose drawings were never
# trained on. Then the *same* questions again, with one mistake at a time in the processor (`put`
# sets a function of ours into a copy of it). Read the list `tried` first. Which will you notice?


# %%
def begin(order):
    """A prompt_ids whose row begins with i, the picture, and b, bos, in this order."""

    def build(prompt, encode, image_token, num_patches, bos):
        parts = {"i": [image_token] * num_patches, "b": [bos]}
        return [one for letter in order for one in parts[letter]] + encode(prompt + "\n")

    return build


def read_as_text(side):
    """A pad_rows that fills up on this side and says that all tokens are real."""

    def pad(rows, filler, _):
        ids, _ = pad_rows(rows, filler, side)
        return ids, torch.ones_like(ids)

    return pad


# %%
mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet's red, green and blue
mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
tried = {
    "as it should be": {},
    "newline missing": {"prompt_ids": lambda p, e, i, n, bos: [i] * n + [bos] + e(p)},
    "bos missing": {"prompt_ids": begin("i")},
    "bos twice": {"prompt_ids": begin("ibb")},
    "image tokens after bos": {"prompt_ids": begin("bi")},
    "ImageNet's mean and std": {
        "to_pixels": lambda p, side: ((to_pixels(p, side) + 1) / 2 - mean) / std
    },
    "pixels from 0 to 1": {"to_pixels": lambda p, side: (to_pixels(p, side) + 1) / 2},
    "red and blue exchanged": {"to_pixels": lambda p, side: to_pixels(p, side).flip(0)},
    "padding left, read as text": {"pad_rows": read_as_text("left")},
    "padding right, read as text": {"pad_rows": read_as_text("right")},
}

# %%
from minipali import generate
from minipali.evaluation import evaluation_set, score
from minipali.swap import put

asked, table = evaluation_set(scenes.VALIDATION_ARTIST, each=20, seed=7), {}
pictures, prompts = [scene.picture for scene, _ in asked], [q.prompt for _, q in asked]
for name, pieces in tried.items():
    told = generate(model, put(processor, **pieces), pictures, prompts, max_new_tokens=24)
    right = [score(question, a) for (_, question), a in zip(asked, told, strict=True)]
    table[name] = np.reshape(right, (len(scenes.TASKS), -1)).mean(axis=1)
figures.tokens.mistakes({name: row.tolist() for name, row in table.items()}, scenes.TASKS)
lost = table["as it should be"] - table["bos missing"]
reveal("suffers most without bos", guess_task, scenes.TASKS[lost.argmax()])

# %% [markdown]
# One question is 5 points here, so small differences mean nothing. The large ones tell five stories
# about this small model:
#
# - **Newline missing: loud.** Almost all answers are empty.
# - **bos missing, twice, or before the picture: quiet.** Most tasks hardly notice, but the boxes
#   are wrong. Whoever tests with captions alone will not know.
# - **Wrong scale: in between.** With ImageNet's numbers or with pixels from 0 to 1 the model still
#   sees *something*, and loses a part of every task.
# - **Red and blue exchanged**, as some libraries read pictures: worse in most tasks, in none lost.
# - **Padding read as text**: no harm on the left, here. On the right it depends on the *company*:
#   only the longest rows of a batch have no padding.
#
# ## Check
#
# Our first eleven joins against SentencePiece's, in any order, and our three functions against the
# package. (The package is held against the processor of Hugging Face's transformers, in
# `tests/test_tokens.py`.)

# %% tags=["nbval-check-output"]
from minipali import tokens

lines = [line.split(" ") for line in text]
words = Counter(tuple("▁" * (i > 0) + w) for line in lines for i, w in enumerate(line))
joins = []
for _ in range(11):
    pair, _ = next_pair(words)
    joins.append("".join(pair))
    words = {merge(word, pair): n for word, n in words.items()}
theirs = [trained[400].IdToPiece(260 + i) for i in range(11)]
print("joins: ", sorted(joins) == sorted(theirs), joins)
theirs = tokens.prompt_ids("answer en what is on the left?", processor.encode, *special)
print("row:   ", ids == theirs)
for side in ("left", "right"):
    both = zip(pad_rows(rows, 0, side), tokens.pad_rows(rows, 0, side), strict=True)
    print("padded:", side, all(torch.equal(ours, theirs) for ours, theirs in both))
sprite = scenes.sprites()["noto", "cat"]
print("pixels:", sprite.mode, torch.allclose(to_pixels(sprite, 72), tokens.to_pixels(sprite, 72)))

# %% [markdown]
# ## In the real model
#
# The vocabulary of PaliGemma 3B, and what a picture costs beside a question: two FLOP for each
# weight of the decoder's layers and each token (the scores of attention come on top).

# %% tags=["nbval-check-output"]
from minipali.config import preset

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    config = preset(name)
    t, n, image_id = config.text, config.vision.num_patches, config.image_token_id
    table = t.vocab_size * t.hidden_size
    heads = (2 * t.num_attention_heads + 2 * t.num_key_value_heads) * t.head_dim
    layers = t.num_hidden_layers * t.hidden_size * (heads + 3 * t.intermediate_size)
    print(f"{name:16} loc {image_id - 1152:,}, seg {image_id - 128:,}, image {image_id:,}")
    print(f"   table {table:,} numbers, {2 * table / 1e6:,.1f} MB at 2 bytes")
    print(f"   picture {n} tokens, {2 * layers * n / 1e9:,.2f} GFLOP;"
          f" question of 10 tokens, {2 * layers * 10 / 1e9:,.2f} GFLOP")  # fmt: skip

# %% [markdown]
# The picture is the long part of the row, at 896 pixels 4,096 tokens beside ten. And each new
# special token costs one row of the table, no more: 1,024 places and 128 shapes were cheap to add.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: every character of Unicode
#
# Two more minutes. The package's own tokenizer (trained in the same way, with 640 pieces) shall
# encode and decode every character that there is. (The code points that we skip are halves of
# pairs, no characters.)

# %% tags=["nbval-check-output"]
characters = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)
lost = []
for block in (characters[i : i + 256] for i in range(0, len(characters), 256)):
    if processor.decode(processor.encode(block)) != block:
        lost += [c for c in block if processor.decode(processor.encode(c)) != c]
print(f"{len(characters):,} characters, {len(lost)} of them not the same: {lost}")

# %% [markdown]
# One is lost: `▁` itself, which reads back as the space that it stands for.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: fine stripes
#
# Five more minutes. Does the model mind a picture that is not antialiased? We draw 60 objects at
# eight times the size, by an artist whose drawings were never trained on, and ask what they are.
# Then we print fine stripes over the same pictures, as in a photograph of a screen or of a striped
# shirt: brighter and darker by turns, 7 pixels from one bright stripe to the next. `swap` is `put`
# with a comparison.

# %%
from minipali.swap import swap

rng = np.random.default_rng(3)
large = [scenes.compose(rng, scenes.VALIDATION_ARTIST, 1, scale=8) for _ in range(60)]
names = [scene.things[0].name for scene in large]
stripes = 60 * np.sign(np.sin(2 * np.pi * np.arange(8 * 72) / 7))[:, None]  # (x, 1)
ways = {"antialiased": processor, "not antialiased": swap(processor, to_pixels=not_antialiased)}
for kind, added in (("plain", 0), ("striped", stripes)):
    pictures = [(scene.pixels + added).clip(0, 255).astype(np.uint8) for scene in large]
    pictures = [Image.fromarray(picture) for picture in pictures]
    for way, one in ways.items():
        told = generate(model, one, pictures, ["answer en what is this?"] * len(pictures))
        right = sum(a == name for a, name in zip(told, names, strict=True))
        print(f"{kind:8} {way:16} {right} of {len(names)} named right")
shown = {way: one.pixel_values(pictures[:5]) for way, one in ways.items()}
figures.tokens.stripes(shown, names[:5])

# %% [markdown]
# On plain drawings it makes no difference: they have almost nothing finer than a pixel of the small
# picture. With stripes and without antialiasing the model is lost, and look at why: the bars in the
# lower row are in no picture that we made. Fine stripes that are skipped through come back as broad
# ones. This is **aliasing**. A mistake in resizing can pass all your tests, and fail at the first
# striped shirt.

# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: bos moves the boxes
#
# Five more minutes. Why do the boxes mind a missing bos? We look at *how* they are wrong. For each
# question with one box in the true answer and one in the model's, we take the distance between the
# two centres, in patches.

# %%
from minipali.locations import read_boxes

asked = evaluation_set(scenes.VALIDATION_ARTIST, 60, seed=8, tasks=("detection",))
pictures, prompts = [scene.picture for scene, _ in asked], [q.prompt for _, q in asked]
orders = {"one bos": "ib", "no bos": "i", "two bos": "ibb", "bos first": "bi", "both": "bib"}
boxes = {}
for name, order in orders.items():
    told = generate(model, put(processor, prompt_ids=begin(order)), pictures, prompts)
    boxes[name], moved = [read_boxes(a) for a in told], []
    for (_, question), found in zip(asked, boxes[name], strict=True):
        true = read_boxes(question.answer)
        if len(true) == len(found) == 1:
            (_, a), (_, b) = true[0], found[0]
            moved.append([3 * (b[i] + b[i + 2] - a[i] - a[i + 2]) for i in (0, 1)])
    down, right = np.median(moved, axis=0).round(1) + 0.0
    print(f"{name:10} median of {len(moved)}: {right:+.1f} patches right, {down:+.1f} down")

# %%
single = [i for i in range(60) if all(len(boxes[name][i]) == 1 for name in orders)]
chosen = next(i for i in single if 0.35 < asked[i][0].things[0].centre[1] < 0.65)
told = {name: boxes[name][chosen][0][1] for name in ("one bos", "no bos", "two bos")}
figures.tokens.moved_boxes(pictures[chosen], told, side=6)

# %% [markdown]
# **One token too few moves the boxes one patch to the right, one too many about one to the left.**
# So our model finds a patch by how many steps lie between it and the question. A bos *before* the
# picture does not help, because it is not in between. With one before and one after, the steps are
# right, and so are the boxes. How positions get into attention is the subject of the next lesson.
#
# This is our small model. The published one is larger and has seen more, but it was trained with
# one format too, and nobody promises you what it does with another.
#
# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/06_tokens.ipynb). At its end the trained model
# answers what your processor asks. It has one piece more that no cell of this lesson shows.
#
# ## Take away
#
# - A tokenizer joins what often stands together, and falls back to bytes: text goes in and comes
#   back, known or not.
# - The row is image tokens, bos, prompt, newline. Padding fills rows up, and the mask says so.
# - Pictures are squeezed to a square with antialiasing and scaled to -1 to 1. Mistakes here are
#   often quiet, so compare numbers, not only answers.
#
# **Self-test**
#
# <details><summary>A prompt has 9 tokens. How long is its row in PaliGemma 3B at 448 pixels?</summary>
#
# 1024 image tokens, bos, 9, and the newline: 1035.
# </details>
#
# <details><summary>You ask one question at a time, and the padding is read as text. When do you
# notice?</summary>
#
# Never: a single row has no padding. The mistake waits for the first batch with prompts of
# different length.
# </details>
#
# <details><summary>Your model's captions are fine, but all boxes are a little too far to the right.
# Where do you look first?</summary>
#
# At the row of ids. Perhaps a token is missing between picture and question, such as bos.
# </details>
#
# **Sources.** The row, the newline and the fixed square: Beyer et al. 2024 (PaliGemma), arXiv
# 2407.07726, its sections on the architecture and on the tasks of pretraining. SentencePiece: Kudo
# and Richardson 2018, arXiv 1808.06226. BPE for text: Sennrich et al. 2016, arXiv 1508.07909.
# Gemma's tokenizer (digits are split, whitespace stays, bytes for the unknown): Gemma Team 2024,
# arXiv 2403.08295, on training data. `<loc>` split into characters: huggingface/transformers issue
# 30824.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the tokenizer converts every token into an embedding vector | it gives ids; the vectors are rows of the model's table (lesson 10) |
# | picture and text are aligned by contrastive learning, and the result is Gemma's input | contrastive learning trained SigLIP, once, before (lesson 05); here the text stays text tokens behind the image tokens, and Gemma's attention brings them together |
# | `assert torch.all(attention_mask == 1)`, with the comment "make sure the input is right-padded" | this line allows no padding at all, on no side, so no batch of different prompts |
# | the picture is normalised there "so that match the scale of image and text" | that line scales the *features* that leave the projector; the picture was normalised long before, to -1 to 1 |
# | masks define "which tokens are important or not" | they tell the kind of a token: picture, text or padding |
# | padding brings text and picture to the same scale | it makes the rows of a batch equally long; pictures become equal by resizing |
