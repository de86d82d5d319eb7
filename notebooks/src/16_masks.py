# %% [markdown]
# # 16 · Masks: shapes as words
#
# A box also holds what is *not* the dog. "*Which pixels* are dog?" is a question about a shape, and
# a shape of 64 x 64 pixels is 4,096 times yes or no. PaliGemma says it in sixteen words. How does a
# shape fit into so few words, and how are they learned?
#
# ## Do you remember?
#
# <details><summary>What comes out of <code>nn.Conv2d(1, 8, 4, stride=2, padding=1)</code> if a tensor of
# (5, 1, 32, 32) goes in?</summary>
#
# (5, 8, 16, 16): 8 channels, and at stride 2 half as many places in each direction (lesson 01).
# </details>
#
# <details><summary>What is the IoU of the boxes (0, 0, 10, 10) and (0, 5, 10, 15)?</summary>
#
# They share 50, and together they cover 100 + 100 - 50 = 150. So 1/3 (lesson 15).
# </details>
#
# <details><summary>A program reads weights with <code>load_state_dict(weights, strict=False)</code> and
# prints "loaded". Why should you not believe it?</summary>
#
# A key that is missing or has another name is passed over without a word, and that weight stays
# random (lesson 14).
# </details>
#
# ## Where we are

# %%
import re

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from minipali import figures, generate, load, locations, masks, scenes
from minipali.checks import reveal

# %%
torch.set_num_threads(1)  # a codec so small that more threads only wait for each other
model, processor = load("small")
figures.model_map("head", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **compress** an outline into 16 numbers with a codebook,
# 2. **train** through a choice, with a gradient that goes straight through,
# 3. **draw** the answer to `segment NAME` into a picture.
#
# Time: 70 minutes. You need: boxes (lesson 15), convolutions (01), a training loop (13).
#
# ## Predict
#
# 1. The **mask IoU** of two shapes is counted in pixels: those in both, divided by those in one or
#    the other. You say nothing about the shape, and call the whole box "dog". Which mask IoU do you
#    reach, on average?
# 2. Now you may say 16 words out of 128. Which mask IoU now?
# 3. One of the 16 words is replaced by each of the 127 others in turn. How many of these change
#    pixels *outside* of that word's own sixteenth of the shape?

# %%
guess_nothing, guess_words, guess_outside = ..., ..., ...

# %% [markdown]
# ## By hand: name a vector by its nearest neighbour
#
# The answer to `segment dog` is four locations, then **16 tokens `<seg000>` to `<seg127>`**, then
# the name. The box tells place and size. The 16 words tell the shape, stretched to a square; they
# lie on a grid of 4 x 4, row by row.
#
# Each word is the number of an entry in a **codebook**, a list of vectors. To say a vector, name
# the entry that is nearest. On paper, with a codebook of three: entry 0 is (0, 0), entry 1 is (3,
# 4), entry 2 is (0, 5). Which entry is nearest to (1, 1), and which to (1, 4)? Squares of distances
# are enough.

# %% tags=["nbval-check-output"]
book = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0]])
for vector in ([1.0, 1.0], [1.0, 4.0]):
    print(vector, "squared distances:", (book - torch.tensor(vector)).square().sum(dim=1).tolist())
print("16 words out of 128:", 128**16 == 2**112, "112 bits, for a shape of 1,024 or 4,096 bits")

# %% [markdown]
# ## Build: shapes to learn from
#
# Each emoji has a transparent background, so its outline is known. We learn from the training
# artists, also mirrored and turned, and test with the validation artist. Our shapes have 32 x 32
# pixels, the published ones 64 x 64.


# %%
def outline(sprite, mirrored=False, angle=0, side=32):
    """A drawing -> its opacity from 0 to 1, stretched to a square: (side, side)."""
    alpha = sprite.getchannel("A")
    if mirrored:
        alpha = alpha.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = alpha.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    edges = alpha.point(lambda value: 255 * (value > 127)).getbbox()
    square = alpha.crop(edges).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)) / 255


def mask_overlap(a, b):
    """bool (b, y, x) twice -> (b,): the IoU, by counting pixels."""
    return (a & b).flatten(1).sum(dim=1) / (a | b).flatten(1).sum(dim=1)


sets = [one for own in scenes.TRAINING_ARTISTS.values() for one in own]
looks = [(m, angle) for m in (False, True) for angle in (-15, 0, 15)]
drawn = scenes.sprites().items()
known = torch.stack([outline(s, *look) for (one, _), s in drawn if one in sets for look in looks])
new = torch.stack([outline(s) for (one, _), s in drawn if one in scenes.VALIDATION_ARTIST])
true = new > 0.5
print(f"{len(known)} outlines to learn from, {len(new)} to test with")

# %% [markdown]
# ## Build: a codebook of tiles
#
# Cut each outline into 4 x 4 tiles of 8 x 8 pixels, and collect **128 tiles that stand for all
# others**. This is *k-means*: start with some tiles, give every tile to the nearest of them,
# replace each by the mean of those it got, and repeat. To say an outline, name the nearest entry
# for each of its 16 tiles. To draw it, put the entries side by side.
#
# For a vector $v$ and entries $e_0, e_1, \dots$ the code is $\arg\min_j \lVert v - e_j \rVert$.
#
# **Write it now**: [exercise 16](../exercises/16_masks.ipynb), part 1, `nearest_code(vectors,
# codebook)`. Vectors (b, n, d) and a codebook (m, d) come in, whole numbers (b, n) go out. Two
# results, with the codebook from above: the vectors (1, 1), (1, 4) give 0, 2; and an entry of the
# codebook gives its own number. Then open the cell below.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def nearest_code(vectors, codebook):
    """(b, n, d), (m, d) -> the number of the nearest entry: (b, n)."""
    return torch.cdist(vectors, codebook.expand(len(vectors), -1, -1)).argmin(dim=-1)


# %%
def tiles(outlines):
    return rearrange(outlines, "b (ny y) (nx x) -> b (ny nx) (y x)", y=8, x=8)


# %%
torch.manual_seed(0)
pieces = tiles(known).flatten(0, 1)  # (all tiles, 64)
dictionary = pieces[torch.randperm(len(pieces))[:128]]
for _ in range(15):
    nearest = nearest_code(pieces[None], dictionary)[0]
    used = torch.bincount(nearest, minlength=128)
    sums = torch.zeros_like(dictionary).index_add(0, nearest, pieces)
    dictionary = torch.where(used[:, None] > 0, sums / used[:, None].clamp(min=1), dictionary)

# %%
figures.masks.tiles(dictionary.view(128, 8, 8), used)

# %% [markdown]
# The most used tiles come first; dark is inside. Now three ways without a codebook: the whole box
# (0 bits), the pixels that are inside in most outlines (0 bits), and a grid of 10 x 10 fields with
# one bit for each (100 bits).

# %%
entries = dictionary[nearest_code(tiles(new), dictionary)]
fields = F.interpolate(new[:, None], (10, 10), mode="area").round()
drawings = {
    "the whole box": torch.ones_like(true),
    "the usual shape": (known.mean(dim=0) > 0.5).expand_as(true),
    "grid of 10 x 10": F.interpolate(fields, (32, 32), mode="bilinear")[:, 0] > 0.5,
    "tiles": rearrange(entries, "b (ny nx) (y x) -> b (ny y) (nx x)", y=8, ny=4) > 0.5,
}

# %%
reached = {name: mask_overlap(one, true).mean().item() for name, one in drawings.items()}
print("  ".join(f"{name}: {value:.2f}" for name, value in reached.items()))
reveal("mask IoU of the whole box", guess_nothing, round(reached["the whole box"], 2))
reveal("mask IoU of 16 words", guess_words, round(reached["tiles"], 2))

# %% [markdown]
# A mask IoU of 0.6 is not "60 percent right": it is what you get for nothing. The tiles beat the
# grid at about the same number of bits (112), because they spend them on what occurs: edges,
# corners, thin lines. **A codebook is a list of what is likely.**
#
# ## Build: a gradient through a choice
#
# A tile knows nothing of its neighbours. The published **codec** (coder and decoder in one, of a
# kind called VQ-VAE) is learned: convolutions with stride 2 turn the shape into 4 x 4 vectors, each
# of which has seen its neighbours. Each vector is replaced by the nearest of 128 entries.
# **Transposed convolutions** draw the shape from the 16 entries: each spreads a place over a larger
# square, where a convolution gathers a square into a place.
#
# One thing is in the way. "The nearest" is a choice. Move the vector a little, and the same entry
# is chosen: the result does not change, so the gradient is 0, and what comes before the choice
# never learns. The way out is called **straight-through**. Forwards, use the entry. Backwards,
# pretend that nothing was chosen, and give the gradient to the vector unchanged:
#
# $$\text{value} = e, \qquad \frac{\partial\, \text{loss}}{\partial v} := \frac{\partial\, \text{loss}}{\partial e}$$
#
# **Write it now**: exercise 16, part 2, `straight_through(vectors, chosen)`: two tensors of one
# shape come in, one goes out, with the value of `chosen` and the gradient of `vectors`.
# (`detach()` gives a tensor's value without its gradient.) Two results, with the entries 0 and 1
# and the loss (result - 1)². The vector 0.3 has the nearest entry 0: the result is 0, and the
# gradient 2 · (0 - 1) = -2. The vector 0.8 has the nearest entry 1: the result is 1, the
# gradient 0. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def straight_through(vectors, chosen):
    """Two tensors of one shape -> the value of the second, the gradient of the first."""
    # Often written as vectors + (chosen - vectors).detach(), which rounds the value a little.
    return chosen.detach() + (vectors - vectors.detach())


# %% tags=["nbval-check-output"]
for number in (0.3, 0.8):
    x = torch.tensor([[[number]]], requires_grad=True)  # (b, n, d)
    book = torch.tensor([[0.0], [1.0]])
    result = straight_through(x, book[nearest_code(x.detach(), book)])
    (result - 1).square().sum().backward()
    print(f"vector {number}: result {result.item():.1f}, gradient {x.grad.item():.1f}")

# %% [markdown]
# The gradient -2 says: larger! So the vector grows, until entry 1 is nearer. In training the loss
# has two more terms. With sg for `detach()`:
#
# $$\text{loss} = \text{loss of the drawing} + \lVert \text{sg}(v) - e \rVert^2 + \tfrac14 \lVert v - \text{sg}(e) \rVert^2$$
#
# The second term pulls each entry to the vectors that chose it, as in k-means. The third, weaker,
# holds the vectors near their entries. The loss of the drawing asks yes or no for each pixel, with
# the sigmoid of lesson 05. And an entry that nobody chose in 50 steps is set to a vector of the
# batch, or it would never be chosen again.

# %%
torch.manual_seed(0)
codec = masks.MaskCodec(channels=(8, 16, 32), width=64)  # the published layers, fewer channels


def quantize(x):
    """(b, d, y, x) -> entries of the same shape, the pull between both, the codes (b, 16)."""
    vectors = rearrange(x, "b d y x -> b (y x) d")
    codes = nearest_code(vectors.detach(), codec.codebook.detach())
    chosen = codec.codebook[codes]
    pull = F.mse_loss(chosen, vectors.detach()) + 0.25 * F.mse_loss(vectors, chosen.detach())
    return rearrange(straight_through(vectors, chosen), "b (y x) d -> b d y x", y=4), pull, codes


def revive(x, used):
    """Give entries that nobody used a vector of this batch."""
    rows, idle = rearrange(x.detach(), "b d y x -> (b y x) d"), used == 0
    codec.codebook.data[idle] = rows[torch.randint(len(rows), (int(idle.sum()),))]


def redraw(outlines):
    with torch.no_grad():
        return codec.decode(codec.encode(outlines)) > 0


# %%
steps, curve, used = 400, {}, torch.zeros(128)
optimizer = torch.optim.AdamW(codec.parameters(), weight_decay=0.0)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
for step in range(steps):
    goal = known[torch.randint(len(known), (32,))]
    x = codec.encoder(goal[:, None] * 2 - 1)
    if step % 50 == 0 and step < 300:
        revive(x, used)
        used.zero_()
    entries, pull, codes = quantize(x)
    used += torch.bincount(codes.flatten(), minlength=128)
    loss = F.binary_cross_entropy_with_logits(codec.decoder(entries)[:, 0], goal) + pull
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    rate.step()
    if step % 50 == 49:
        curve[step + 1] = mask_overlap(redraw(new), true).mean().item()

# %%
drawings["codec"] = redraw(new)
figures.masks.learning(curve, {name: reached[name] for name in list(reached)[:0:-1]})

# %%
few = torch.arange(3, 66, 8)
shown = {name: drawings[name][few] for name in ("grid of 10 x 10", "tiles", "codec")}
scores = {name: mask_overlap(one, true[few]) for name, one in shown.items()}
figures.masks.redrawn(shown, true[few], scores)

# %% [markdown]
# Above: the curve, and some of the test shapes redrawn.
#
# The tiles were found in a moment, and after all its steps our codec is about as good as the grid.
# Learned is not better by itself. (This is one run, with one seed.) What the codec has is room to
# grow: give it 2,000 steps, which take some minutes, and look again.
#
# ## Break it: read the words wrongly
#
# The codes of all test shapes, read in three wrong ways: column by column, with a codebook in
# another order (as in another codec), and those of another shape.

# %%
codes = codec.encode(new)  # (b, 16)
readings = {
    "right": codes,
    "column by column": rearrange(codes, "b (y x) -> b (x y)", y=4),
    "another codebook": torch.randperm(128)[codes],
    "another shape's words": codes.roll(1, dims=0),
}
for name, told in readings.items():
    print(f"{name:22} {mask_overlap(codec.decode(told) > 0, true).mean():.2f}")

# %% [markdown]
# All three are near the usual shape, 0.68, or below it. And none raises an error: `<seg>` tokens are
# only numbers, and any 16 of them draw something.
#
# What does *one* wrong word do? An entry of the tiles *is* a picture, and changes its own field
# alone. An entry of the codec is 64 numbers, and what it draws depends on its neighbours. We take a
# cactus, and put each of the 127 other words in three of its places.


# %%
def exchanged(codes, place):
    """Which pixels change with each other word at this place: bool (127, y, x)."""
    others = torch.tensor([code for code in range(128) if code != codes[place]])
    variants = codes.repeat(127, 1)
    variants[:, place] = others
    return (codec.decode(variants) > 0) != (codec.decode(codes[None]) > 0)


pick = [name for (one, name), _ in drawn if one in scenes.VALIDATION_ARTIST].index("cactus")
changes = {place: exchanged(codes[pick], place) for place in (0, 6, 13)}
figures.masks.neighbours(codec.decode(codes[[pick]])[0] > 0, codes[pick], changes)
outside = changes[6].clone()
outside[:, 8:16, 16:24] = False  # the field of word 6: row 1, column 2
spread = outside.flatten(1).any(dim=1).sum().item()
reveal("words that change pixels outside", guess_outside, spread)

# %% [markdown]
# The shading says how many of the 127 words change a pixel. The damage does not stop at the orange
# frame: nearly every word moves something outside of it, too, even at the other end of the cactus.
# Most also change their own field. Some leave it as it was: there the neighbours decide.
#
# ## Build: into the picture
#
# The decoded shape is a square of numbers, above 0 inside. To put it into its box, resize the
# **numbers** (bilinear, with antialiasing as in lesson 06), and only then ask which are above 0. If
# the threshold comes first, the border gets steps as large as the pixels of the small square.
#
# **Write it now**: exercise 16, part 3, `paste_mask(mask, box, height, width)`. A square mask comes
# in, and a box (y0, x0, y1, x1) in pixels of the picture, to be rounded to whole pixels. A bool
# tensor (height, width) goes out. Two results: a mask of ones in the box (2, 3, 4, 6) makes 2 · 3 =
# 6 pixels true; a mask of 2 x 2, both rows (1, -0.25), in the box (0, 0, 2, 8) makes 5 of the 8
# columns true, and 4 if the threshold comes first. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def paste_mask(mask, box, height, width):
    """(side, side), above 0 inside, into (y0, x0, y1, x1) -> bool (height, width)."""
    y0, x0, y1, x1 = (round(edge) for edge in box)
    picture = torch.zeros(height, width, dtype=torch.bool)
    if y1 > y0 and x1 > x0:
        values = Image.fromarray(mask.numpy())  # a picture of numbers
        resized = values.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        picture[y0:y1, x0:x1] = torch.from_numpy(np.array(resized)) > 0
    return picture


# %% tags=["nbval-check-output"]
print(paste_mask(torch.ones(2, 2), (2, 3, 4, 6), 5, 8).sum().item())
print(paste_mask(torch.tensor([[1.0, -0.25]] * 2), (0, 0, 2, 8), 2, 8)[0].long().tolist())

# %% [markdown]
# ## See it: all the way
#
# A wide picture with three objects of the validation artist, of which we know every pixel. We say
# each object in 20 tokens and a name, and then we read that text.

# %%
place = {"cat": (60, 30, 180), "guitar": (90, 220, 250), "rocket": (20, 480, 140)}
height, width = 360, 640
picture, text, right = Image.new("RGB", (width, height), "#C9DDB0"), [], {}
for name, (y, x, side) in place.items():
    sprite = scenes.sprites()["fxemoji", name].resize((side, side))
    picture.paste(sprite, (x, y), sprite)
    layer = Image.new("L", picture.size)
    layer.paste(sprite.getchannel("A"), (x, y))
    right[name] = torch.from_numpy(np.array(layer) > 127)
    x0, y0, x1, y1 = layer.point(lambda value: 255 * (value > 127)).getbbox()
    words = locations.box_tokens((y0 / height, x0 / width, y1 / height, x1 / width))
    words += "".join(f"<seg{code:03d}>" for code in codec.encode(outline(sprite)[None])[0].tolist())
    text.append(f"{words} {name}")
print(text[0])

found = []
for part in text:
    [(name, box)] = locations.read_boxes(part)
    box = [place * side for place, side in zip(box, (height, width) * 2, strict=True)]
    told = torch.tensor([[int(number) for number in re.findall(r"<seg(\d{3})>", part)]])
    found.append((name, box, paste_mask(codec.decode(told)[0].detach(), box, height, width)))
values = [mask_overlap(mask[None], right[name][None]).item() for name, _, mask in found]
figures.masks.in_picture(picture, [(n, b, m.numpy()) for n, b, m in found], values)
print("our model:", repr(generate(model, processor, picture, "segment cat", max_new_tokens=24)))

# %% [markdown]
# Our model has rows for the 128 tokens, but it never learned to say them. The published one did.
#
# %% [markdown] jp-MarkdownHeadingCollapsed=true
# ## Optional: the published codec's file
#
# Its weights come in a file of their own, `vae-oid.npz`, with 16 to 128 channels and a codebook of
# 128 x 512. An npz file is a zip archive of arrays. It may also hold *pickled* Python objects, and
# unpickling runs code (lesson 14). So it is read with `allow_pickle=False`, and every name and
# shape must be as published. (The package's mask decoder is held against big_vision's layers,
# written out in numpy, in `tests/test_masks.py`.) We do not ship the file. Here is one with the
# right names and random numbers, and three damaged ones:

# %%
import contextlib
import tempfile

file = "vae-oid.npz"
with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    weights = masks.MaskCodec().state_dict()
    arrays = {masks.published_name(name): one.numpy() for name, one in weights.items()}
    np.savez(file, **arrays)
    published = masks.load_codec(file)
    print(len(arrays), "arrays, a mask:", tuple(published.decode(torch.zeros(1, 16).long()).shape))
    swapped = arrays["decoder.6.weight"].swapaxes(0, 1)
    for broken in (
        {name: one for name, one in arrays.items() if name != "decoder.4.bias"},
        arrays | {"decoder.6.weight": swapped},
        arrays | {"decoder.12.bias": np.array([print], object)},
    ):
        np.savez(file, **broken)
        try:
            masks.load_codec(file)
        except masks.MasksError as error:
            print("-", error)

# %% [markdown]
# With the real file, `minipali segment` draws a model's masks into a picture, and `minipali page
# MODEL --codec vae-oid.npz --output page.html` makes a web page that draws them.
#
# ## Check
#
# Two of our functions against the package's; the third you saw above.

# %% tags=["nbval-check-output"]
x = torch.randn(3, 64, 4, 4, generator=torch.Generator().manual_seed(0))
rows = rearrange(x, "b d y x -> b (y x) d")
print("codes:   ", torch.equal(nearest_code(rows, codec.codebook), codec.nearest(x)))
theirs = masks.read_masks(" ; ".join(text), codec, height, width)
same = [(a[2].numpy() == b[2]).mean() for a, b in zip(found, theirs, strict=True)]
print("in place:", [name for name, _, _ in theirs], min(same) > 0.999)

# %% [markdown]
# ## In the real model
#
# The work of drawing one mask beside the work of saying one token. A multiplication with its
# addition counts as 2 FLOP. A plain convolution works for each place that goes out, a transposed
# one for each that comes in.

# %% tags=["nbval-check-output"]
from minipali.config import preset

published, work = masks.MaskCodec(), []
for layer in published.decoder.modules():
    if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
        spreads = isinstance(layer, torch.nn.ConvTranspose2d)
        layer.register_forward_hook(lambda layer, given, made, spreads=spreads: work.append(
            2 * layer.weight.numel() * (given[0] if spreads else made).shape[-1] ** 2))  # fmt: skip
published.decode(torch.zeros(1, 16).long())
t = preset("paligemma-3b-224").text
heads = 2 * (t.num_attention_heads + t.num_key_value_heads) * t.head_dim
layers = t.num_hidden_layers * t.hidden_size * (heads + 3 * t.intermediate_size)
token = 2 * (layers + t.vocab_size * t.hidden_size)
print(f"codec: {sum(w.numel() for w in published.parameters()):,} parameters;"
      f" a mask {sum(work) / 1e9:.3f} GFLOP, a token of the 3B {token / 1e9:.1f}")  # fmt: skip

# %% [markdown]
# Drawing a mask is cheap. What takes time is saying it: 20 tokens and a name, each a pass through
# the whole language model.
#
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/16_masks.ipynb). A codec learns with your pieces,
# and its masks lie over a picture. It has one piece more that no cell of this lesson shows: a
# codebook that follows its vectors without a gradient, as the published one did.
#
# ## Take away
#
# - A codebook turns shapes into words: name the nearest entry, 16 times out of 128.
# - A choice has no gradient, and straight-through lends it one: the value of the entry, the
#   gradient of the vector.
# - Words mean shapes only with their codebook, their order and their neighbours. Resize first, then
#   compare with 0.
#
# **Self-test**
#
# <details><summary>All masks come out mirrored along the diagonal. What was read wrongly?</summary>
#
# The 16 codes were laid out column by column. They come row by row.
# </details>
#
# <details><summary>A mask could be one token out of a very large codebook of whole shapes. Why 16 tokens
# out of 128?</summary>
#
# 16 choices out of 128 make 128^16 different shapes from a table of 128 rows. A codebook of whole
# shapes needs a row for each shape, and most rows would hardly ever be trained.
# </details>
#
# <details><summary>Somebody trains a codec with <code>chosen</code> in place of
# <code>straight_through(vectors, chosen)</code>. Which part still learns from the drawing, and which does
# not?</summary>
#
# The entries and the layers after the choice learn. The layers before it get no gradient from the
# drawing, only the pull towards entries that they happen to be near.
# </details>
#
# **Sources.** PaliGemma's tokens and tasks: Beyer et al. 2024, arXiv 2407.07726. Codebook,
# straight-through and the pulling terms: van den Oord et al. 2017 (VQ-VAE), arXiv 1711.00937. The
# published codec: Ning et al. 2023 (All in Tokens), arXiv 2301.02229, and big_vision,
# `pp/proj/paligemma/segmentation.py`.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | a mask defines "which tokens are important or not" | that is the mask of lesson 11, over tokens. Today's mask is over the pixels of a box: inside the object, or outside |
