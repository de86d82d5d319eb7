# %% [markdown]
# # Exercise 19 · Quantization
#
# You turn weights into whole numbers, by rows and by groups, and read the blocks of a file that
# others have published. The fifth piece stands in no lesson: you write such blocks yourself. Then the
# small model answers from your whole numbers, and a published language model is read by you.
#
# The lesson is [notebooks/19_quantization.ipynb](../notebooks/19_quantization.ipynb). Time: 75
# minutes, 30 of them for part 5. Names inside your functions are yours; the order of the arguments is
# not.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. Rows in 8 bits
#
# Each row of a weight gets one **scale**, so that the number of the largest size in it becomes 127 or
# -127. Every other one is divided by the scale, too, and rounded to the nearest whole number:
#
# $$\text{scale} = \frac{\max |w|}{127}, \qquad \text{whole} = \text{round}\left(\frac{w}{\text{scale}}
# \right)$$
#
# The whole numbers are int8, the scales float32. A row of zeros becomes zeros; its scale may be any
# number. (Take care: 0 / 0 gives nan, which is no number.)
#
# By hand: the row [0.5, -1.27, 0.004, 0.018, 1] has the scale 0.01 and becomes [50, -127, 0, 2, 100].
# The row [3, 1, -4, 0] has the scale 4 / 127 and becomes [95, 32, -127, 0], because 3 / (4 / 127) is
# 95.25 and 1 / (4 / 127) is 31.75.


# %%
def to_int8(weight):
    """A weight as whole numbers from -127 to 127, and a scale for each row.

    weight: (n, d), float32
    returns: whole (n, d), int8; scale (n,), float32
    """
    ### BEGIN SOLUTION
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
    whole = (weight / scale[:, None]).round().to(torch.int8)
    return whole, scale
    ### END SOLUTION


# %%
check("to_int8", to_int8)

# %% [markdown]
# Stuck? Run `hint("to_int8", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. Groups in few bits
#
# Now `size` neighbours of a row share a scale and a **least** number. With b bits the whole numbers go
# from 0, which stands for the least number of the group, to $2^b - 1$, which stands for the largest:
#
# $$\text{scale} = \frac{\max w - \min w}{2^b - 1}, \qquad \text{whole} = \text{round}\left(\frac{w -
# \min w}{\text{scale}}\right), \qquad w \approx \text{scale} \cdot \text{whole} + \min w$$
#
# A group never reaches into the next row. If `size` does not divide the length of a row, its last
# group is shorter. A group of equal numbers becomes zeros; its scale may be any number.
#
# By hand: the row [-1, 0.5, 0.1, 2, 7, 7.2] with groups of 4 and 2 bits has the groups [-1, 0.5, 0.1,
# 2] and [7, 7.2]. The first one goes from -1 to 2 in 3 steps of 1: whole numbers [0, 2, 1, 3] (1.5
# goes to 2, 1.1 to 1). The second one goes from 7 to 7.2 in 3 steps of 0.0667: [0, 3]. So whole is
# [0, 2, 1, 3, 0, 3], scale [1, 0.0667], least [-1, 7].


# %%
def to_groups(weight, size, bits):
    """A weight as whole numbers of a few bits, counted from the least number of each group.

    weight: (n, d), float32; size: numbers in a group; bits: of each number, from 1 to 8
    returns: whole (n, d), uint8; scale and least (n, groups), float32
    """
    ### BEGIN SOLUTION
    whole, scales, leasts = [], [], []
    for group in weight.split(size, dim=1):
        least = group.amin(dim=1, keepdim=True)
        scale = (group.amax(dim=1, keepdim=True) - least) / (2**bits - 1)
        whole.append(((group - least) / scale.clamp(min=1e-12)).round().to(torch.uint8))
        scales.append(scale)
        leasts.append(least)
    return torch.cat(whole, dim=1), torch.cat(scales, dim=1), torch.cat(leasts, dim=1)
    ### END SOLUTION


# %%
check("to_groups", to_groups)

# %% [markdown]
# ## 3. Blocks of Q8_0
#
# In a GGUF file each block of **Q8_0** is 34 bytes: a float16 number, the scale, in bytes 0 and 1, and
# then 32 whole numbers of one byte each, with a sign (int8). The result is float32, computed in
# float32.
#
# Bytes come as a tensor of uint8. `.view(kind)` reads the same bytes as numbers of another kind: two
# bytes as one `torch.float16`, one byte as one `torch.int8`.
#
# By hand: a block that begins with the bytes 0, 52, 3, 255 has the scale 0.25, and its first numbers
# are 0.75 and -0.25.


# %%
def unpack_q8_0(blocks):
    """The numbers that are stored in blocks of Q8_0.

    blocks: (m, 34), uint8
    returns: (m, 32), float32
    """
    ### BEGIN SOLUTION
    scale = blocks[:, :2].view(torch.float16).float()
    return scale * blocks[:, 2:].view(torch.int8)
    ### END SOLUTION


# %%
check("unpack_q8_0", unpack_q8_0)

# %% [markdown]
# ## 4. Blocks of Q4_1
#
# A block of **Q4_1** is 20 bytes. Bytes 0 and 1 are the scale, bytes 2 and 3 the least number, both
# float16. The other 16 bytes hold 32 whole numbers of 4 bits, from 0 to 15. Byte i of these 16 holds
# number i in its lower four bits and number i + 16 in its upper four. A number is scale * whole +
# least, computed in float32.
#
# By hand: scale 0.5, least -1, and the first of the 16 bytes is 0xF3 (243). Its lower four bits are 3,
# its upper ones 15. So number 0 is 0.5 * 3 - 1 = 0.5, and number 16 is 0.5 * 15 - 1 = 6.5.


# %%
def unpack_q4_1(blocks):
    """The numbers that are stored in blocks of Q4_1.

    blocks: (m, 20), uint8
    returns: (m, 32), float32
    """
    ### BEGIN SOLUTION
    scale = blocks[:, :2].view(torch.float16).float()
    least = blocks[:, 2:4].view(torch.float16).float()
    packed = blocks[:, 4:]
    return scale * torch.cat((packed & 15, packed >> 4), dim=1) + least
    ### END SOLUTION


# %%
check("unpack_q4_1", unpack_q4_1)

# %% [markdown]
# ## 5. Write blocks of Q4_1
#
# The other way: 32 float32 numbers become the 20 bytes of part 4. Any program that knows GGUF can read
# them. For each row of 32:
#
# 1. least is the smallest number, scale is (largest - smallest) / 15. **Both** become float16.
# 2. A program that reads the block has only the rounded scale and the rounded least number. So with
#    these two, in float32, each number becomes (number - least) / scale, rounded to the nearest whole
#    number.
# 3. That can be below 0 or above 15, because float16 has moved the least number. Then it becomes 0 or
#    15.
# 4. Where the rounded scale is 0, all whole numbers are 0.
#
# By hand: 16 times 0 and then 16 times 7.5. The least number is 0, the scale 0.5. The whole numbers
# are 16 times 0, then 16 times 15. As bytes: the scale is 0, 56 (0.5 as float16), the least 0, 0, and
# then 16 times 240, which is 15 in the upper four bits and 0 in the lower ones.
#
# A second one: 32 numbers that are all 0.75. The scale is 0, the least number 0.75, which as float16
# is the bytes 0, 58. The block is 0, 0, 0, 58 and 16 times 0.


# %%
def pack_q4_1(numbers):
    """Blocks of Q4_1 that hold these numbers as nearly as they can.

    numbers: (m, 32), float32
    returns: (m, 20), uint8
    """
    ### BEGIN SOLUTION
    least = numbers.amin(dim=1, keepdim=True)
    scale = (numbers.amax(dim=1, keepdim=True) - least) / 15
    least, scale = least.half(), scale.half()
    whole = (numbers - least.float()) / scale.float().clamp(min=1e-12)
    whole = whole.masked_fill(scale == 0, 0).round().clamp(0, 15).to(torch.uint8)
    packed = whole[:, :16] | whole[:, 16:] << 4
    return torch.cat((scale.view(torch.uint8), least.view(torch.uint8), packed), dim=1)
    ### END SOLUTION


# %%
check("pack_q4_1", pack_q4_1)

# %% [markdown]
# ## 6. The small model in your whole numbers
#
# The decoder of the trained model is rounded by your functions, and then asked 96 questions about
# pictures of the validation artist. "Your blocks" means: your `pack_q4_1` writes them, and minipali's
# own function reads them.

# %%
from minipali import load
from minipali.checks.quantization import try_rounding, try_smollm2

torch.set_num_threads(1)  # a model so small that more threads only wait for each other
model, processor = load("small")
well = try_rounding(model, processor, to_int8, to_groups, pack_q4_1)

# %% [markdown]
# ## 7. A published model, read by you
#
# SmolLM2 is a language model of 134 million numbers, published in Q4_1 and Q8_0. `python course.py
# weights` downloads its file, 93 MB. Your two functions read it. (Lesson 20 builds the model.) Ask it
# something of your own.

# %%
from minipali.variants import answer

found = try_smollm2(unpack_q8_0, unpack_q4_1)
if found is not None:
    print(answer(*found, "What do cats eat?", max_new_tokens=24))

# %% [markdown]
# ## Go on
#
# - Multiply a vector x with a row of Q4_1 blocks, without making a float of each weight: in each block
#   $y = \text{scale} \cdot \sum_i \text{whole}_i x_i + \text{least} \cdot \sum_i x_i$. How many
#   multiplications with a scale or a least number does a block need, and how many if it is unpacked first?
#   <details><summary>Answer</summary>Two in place of 32 with the scale; the sum of x is the same for all
#   rows, so it is computed once. Programs such as llama.cpp go further and round x to 8 bits, too: then
#   the products are of whole numbers.</details>
# - Round the small model in 2 bits, with groups of 32 and of 8. How many bits does a weight take in both,
#   if scale and least number have 16 bits each?
#   <details><summary>Answer</summary>2 + 32 / 32 = 3, and 2 + 32 / 8 = 6. The smaller groups have the
#   smaller error, but for the same 6 bits one can have groups of 32 with 5 bits, and a far smaller
#   one.</details>
# - In `unpack_q4_1`, exchange the two halves, and run part 7 again. What does SmolLM2 say?
#   <details><summary>Answer</summary>Pieces of words in no order. Each block still has the right numbers,
#   but each half of it stands where the other should be. No shape and no sum of a block shows it.</details>
