# %% [markdown]
# # 15 · Locations: places as words
#
# A language model can do one thing: choose the next token. So how does PaliGemma answer "*where* is
# the dog?" It says words that mean places. Nothing in the model is new today. All the work is to
# agree on what the words mean. You will see how such an agreement breaks without any error.
#
# ## Do you remember?
#
# <details><summary>A photograph is 600 pixels wide and 300 high. Which shape does the processor of the
# small model make of it, and what happens to its proportions?</summary>
#
# (3, 72, 72). The picture is squeezed into the square. No bars are added (lesson 06).
# </details>
#
# <details><summary>The labels of a row are <code>[-100, -100, -100, 9, 1]</code>, and 1 is the token that
# ends an answer. At which place must the model say 9?</summary>
#
# At the third, the last place of the question. A place predicts the *next* token (lesson 13).
# </details>
#
# <details><summary>Somebody generates with a KV cache and gives the model the whole row again at every
# step. What goes wrong?</summary>
#
# The cache already holds the keys and values of that row, so they come in a second time, at wrong
# positions. Only the newest token goes in (lesson 08).
# </details>
#
# ## Where we are

# %%
import re

import numpy as np

from minipali import detect, figures, generate, load, locations, scenes
from minipali.checks import reveal

model, processor = load("small")
figures.model_map("head", model.config)

# %% [markdown]
# ## Goals
#
# After this lesson you can
#
# 1. **translate** boxes into tokens and back, in pixels of the picture that you were given,
# 2. **measure** how well two boxes agree,
# 3. **tell** which mistakes that measure shows, and which it hides.
#
# Time: 60 minutes. You need: tokens (lesson 06) and generation (12).
#
# ## Predict
#
# 1. A photograph is 4,000 pixels wide. Each edge of a box is one token out of 1,024. By how many
#    pixels can an edge be wrong, because of the tokens alone?
# 2. Somebody divides by 1024 where 1023 is right. Of more than 200 boxes, how many fewer are found?
#    (A box is *found* if it agrees well enough with the true one; the measure comes below.)
# 3. Somebody has *perfect* answers, but exchanges x and y when reading them. How many boxes of 100
#    still count as found?

# %%
guess_pixels, guess_fewer, guess_mirrored = ..., ..., ...

# %% [markdown]
# ## By hand: a ruler with 1,024 marks
#
# Lay a ruler along an edge of the picture, whatever the edge's length. It has 1,024 marks, called
# `<loc0000>` to `<loc1023>`. Mark 0 is on one edge of the picture and mark 1023 on the other.
# Between 1,024 marks there are **1,023 steps**, as there are 9 gaps between 10 trees in a row. So
# one half of the width is at 0.5 · 1023 = 511.5, which is rounded.
#
# A box is four marks: **top, left, bottom, right**, or $y_0, x_0, y_1, x_1$. Vertical comes first,
# as in (row, column). On paper: a picture is 300 pixels high and 600 wide. A box has its top at 75,
# its left edge at 150, its bottom at 300 and its right edge at 450. Which four numbers?

# %% tags=["nbval-check-output"]
for place, side in ((75, 300), (150, 600), (300, 300), (450, 600)):
    print(f"{place} of {side}: {place / side:.2f} -> {place / side * 1023:.2f}", end=" -> ")
    print(f"<loc{round(place / side * 1023):04d}>; with 1024: {round(place / side * 1024)}")
print("<loc1024> is", [processor.token(i) for i in processor.encode("<loc1024>")])

# %% [markdown]
# "With 1024" is a common mistake: 1,024 steps. (Some demonstrations of PaliGemma have it.) It looks
# harmless, 767 or 768. But the bottom edge becomes 1024, and there is **no such token**. Our
# tokenizer takes it as ordinary text, in eight pieces. A model that is trained on that learns to
# *spell* at the right and lower edge.
#
# The figure shows the same mistake on the way back, with rulers of 8 marks so that you can see it.
# If you divide by one too many, you never reach the edge.

# %%
figures.locations.rulers(8)

# %% [markdown]
# ## Build: boxes to tokens and back
#
# An edge lies at place $p$ of a side with $s$ pixels. Take the fraction $p / s$, move it to the
# border of the picture if the box reaches beyond it (there are no marks outside), and round to a
# mark. The way back has no rounding:
#
# $$n = \text{round}\big(1023 \cdot \min(\max(p / s,\, 0),\, 1)\big), \qquad p = \frac{n}{1023}\, s$$
#
# Which $s$? The model never saw your picture, but a square of 72 x 72 pixels (PaliGemma: 224, 448
# or 896). Squeezing does not change fractions: what is at one third of the width stays there. So
# $s$ is always a side of the **original** picture.
#
# **Write both now**: [exercise 15](../exercises/15_locations.ipynb), parts 1 and 2. Four pixels,
# height and width come in, four whole numbers go out, and back. Two results, in a picture 300 high
# and 600 wide: the box (75, 150, 330, 450) becomes 256, 256, 1023, 767, because its bottom lies
# outside; the numbers 0, 341, 1023, 682 become the box (0, 200, 300, 400). Then open the cell
# below.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def box_to_tokens(box, height, width):
    """(y0, x0, y1, x1) in pixels -> four numbers from 0 to 1023."""
    fractions = [place / side for place, side in zip(box, (height, width) * 2, strict=True)]
    return [round(min(max(fraction, 0.0), 1.0) * 1023) for fraction in fractions]


def tokens_to_box(numbers, height, width):
    """Four numbers from 0 to 1023 -> (y0, x0, y1, x1) in pixels."""
    return [n / 1023 * side for n, side in zip(numbers, (height, width) * 2, strict=True)]


# %% tags=["nbval-check-output"]
print(box_to_tokens((75, 150, 330, 450), 300, 600), tokens_to_box((0, 341, 1023, 682), 300, 600))
random, furthest = np.random.default_rng(0), {}
for side in (224, 4000):
    places = random.uniform(0, side, 10_000)
    back = [tokens_to_box(box_to_tokens((p, 0, p, 0), side, side), side, side)[0] for p in places]
    furthest[side] = round(np.abs(places - back).max(), 2)
    print(f"side {side:4}: wrong by at most {furthest[side]} pixels")
reveal("pixels of 4,000", guess_pixels, furthest[4000])

# %% [markdown]
# Half a step, never more. In a picture of 224 pixels it is a tenth of a pixel. Rounding to marks is
# not what limits a model's boxes.
#
# ## See it: from an answer to a drawing
#
# An answer is text, and a model may say anything. So we look for four locations in a row and a
# name, as often as they occur, and pass over all else. Then we ask about a picture that is no
# square, by an artist whose drawings were never trained on.


# %%
def read(answer):
    """Text -> [(name, four numbers)]."""
    found = re.findall(r"((?:<loc\d{4}>){4})\s*([^;<]*)", answer)
    return [
        (name.strip(), [int(n) for n in re.findall(r"\d{4}", tokens)]) for tokens, name in found
    ]


# %%
picture, found = scenes.examples()["dog_and_car_test_artist"].resize((480, 270)), []
for thing in ("dog", "car", "zebra"):
    answer = generate(model, processor, picture, f"detect {thing}")
    print(f"detect {thing} -> {answer!r}")
    found += [(name, tokens_to_box(numbers, 270, 480)) for name, numbers in read(answer)]
figures.paligemma.boxes(picture, {"the picture": [], "what the model told": found})

# %% [markdown]
# For the zebra it says nothing: it learned that an empty answer means "not there". Each `<loc>` is
# **one** token with one row in the embedding table, not four digits. The model chooses a place as
# it chooses a word, and must learn each mark by itself. Ours learned only 25 of them, because all
# edges in its training lay on a grid of 24 steps.
#
# ## Build: how much do two boxes agree?
#
# The usual measure is **intersection over union**, IoU: the area that lies in both boxes, divided
# by the area that lies in one or the other. 1 means the same box, 0 means no shared area. The areas
# are $|A|$ and $|B|$, and the area in both is $|A \cap B|$:
#
# $$\text{IoU}(A, B) = \frac{|A \cap B|}{|A| + |B| - |A \cap B|}, \qquad |A \cap B| = \max(h, 0)\,\max(w, 0)$$
#
# where $h$ is the smaller bottom minus the larger top, and $w$ the smaller right edge minus the
# larger left edge. Two traps. The shared area is in both boxes, so without the minus it counts
# twice. And for boxes that are apart in both directions $h$ and $w$ are negative. Minus times minus
# is plus, so each must become 0 *before* they are multiplied.
#
# **Write it now**: exercise 15, part 3. Two boxes come in, a number from 0 to 1 goes out. Two
# results: two boxes of 10 x 10, the second moved to the right by 5, share 50, and 50 / (100 +
# 100 - 50) is 1/3; the boxes (0, 0, 10, 10) and (11, 11, 21, 21) have 0, though $h \cdot w$
# is 1. Then open the cell.


# %% jupyter={"source_hidden": true} tags=["hide-input"]
def overlap(a, b):
    """(y0, x0, y1, x1) twice -> 0 to 1."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    both = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(both) - shared) if shared else 0.0


# %%
box = (0, 0, 10, 10)
moved = {"right by 1": (0, 1), "right by 3": (0, 3), "right by 5": (0, 5), "both by 3": (3, 3)}
pairs = {name: (box, (y, x, y + 10, x + 10)) for name, (y, x) in moved.items()}
pairs["half as high"] = (box, (0, 0, 5, 10))
figures.locations.overlaps(pairs, [overlap(*pair) for pair in pairs.values()])

# %% [markdown]
# Half shared is not 0.5 but 1/3. IoU is strict. So the usual test is mild: a box counts as
# **found** above 0.5. A box that is moved by three tenths of its width passes.
#
# ## Break it: five ways to misread
#
# We take 200 new scenes by the validation artist, stretched to 640 x 360 pixels, and one `detect`
# question for each. The model answers once. Then we read *the same answers* in six ways, and
# compare with the true boxes. Each true box gets its best match among the boxes of the answer. (A
# box too many costs nothing here. The last piece of the exercise mends that.)

# %%
from minipali.evaluation import evaluation_set

asked = evaluation_set(scenes.VALIDATION_ARTIST, 200, 15, ("detection",))
height, width = 360, 640
pictures = [scene.picture.resize((width, height)) for scene, _ in asked]
answers = generate(model, processor, pictures, [question.prompt for _, question in asked])


# %%
def measure(read_box, answers):
    """Overlap with the best box of the answer, for each true box."""
    best = []
    for (_, question), answer in zip(asked, answers, strict=True):
        told = [read_box(numbers) for _, numbers in read(answer)]
        for _, true in read(question.answer):
            box = tokens_to_box(true, height, width)
            best.append(max((overlap(box, other) for other in told), default=0.0))
    return np.array(best)


# %%
ways = {
    "right": lambda n: tokens_to_box(n, height, width),
    "divided by 1024": lambda n: tokens_to_box([i * 1023 / 1024 for i in n], height, width),
    "x before y": lambda n: tokens_to_box([n[1], n[0], n[3], n[2]], height, width),
    "filled up to a square": lambda n: tokens_to_box(n, width, width),
    "height and width exchanged": lambda n: tokens_to_box(n, width, height),
    "pixels of the square of 224": lambda n: tokens_to_box(n, 224, 224),
}
table = {name: measure(way, answers) for name, way in ways.items()}
truths = [question.answer for _, question in asked]
table["answer to another picture"] = measure(ways["right"], answers[1:] + answers[:1])
table["the truth, x before y"] = measure(ways["x before y"], truths)
found = {name: (values > 0.5).sum() for name, values in table.items()}
figures.locations.measured(table)
reveal("fewer with 1024", guess_fewer, found["right"] - found["divided by 1024"])
mirrored = found["the truth, x before y"] / len(table["right"])
reveal("of 100, x before y", guess_mirrored, round(100 * mirrored))

# %% [markdown]
# One picture, read in all six ways. The true box is orange and dashed, the box that was read is
# white.

# %%
chosen = 36
true, numbers = read(truths[chosen])[0][1], read(answers[chosen])[0][1]
told = {name: way(numbers) for name, way in ways.items()}
figures.locations.readings(pictures[chosen], tokens_to_box(true, height, width), told, overlap)

# %% [markdown]
# Compare the rows of the first figure. A dot at 0 is an object for which no box is near.
#
# - **Divided by 1024** costs almost nothing: not one box fewer is found. No picture shows it, and
#   no usual test. That is why it survives. Edges are wrong by up to a thousandth of the picture,
#   most at the right and at the bottom.
# - **x before y** destroys most boxes, but not all. Look at the last row: perfect answers, read in
#   this way, still pass in more than a quarter of the cases. A box near the diagonal is almost its
#   own mirror image. A test with one ball in the middle of a square picture does not find this
#   mistake.
# - **Filled up to a square** is a real habit of other models: they add bars above and below.
#   PaliGemma squeezes. On square pictures this mistake does no harm, and neither does **height and
#   width exchanged**. So test with a wide picture.
# - **Pixels of the square**: all boxes crowd in the upper left corner. The easiest mistake to
#   notice.
# - **Answer to another picture**: how good are boxes that have nothing to do with the picture? A
#   model must be better than this number, and it is not 0.
#
# ## Check
#
# Our functions against the package's, there and back on random boxes, and the small model's answer.

# %% tags=["nbval-check-output"]
random = np.random.default_rng(1)
corners = [np.sort(random.uniform(0, 1, (2, 2)), axis=0).ravel() for _ in range(100)]
texts = ["".join(f"<loc{n:04d}>" for n in box_to_tokens(c, 1, 1)) for c in corners]
print("tokens:  ", texts == [locations.box_tokens(c) for c in corners])
back = [tokens_to_box(read(text + " x")[0][1], 1, 1) for text in texts]
print("and back:", np.allclose(back, [locations.read_boxes(text)[0][1] for text in texts]))
some = list(zip(corners, corners[1:], strict=False))
print("overlap: ", np.allclose([overlap(*p) for p in some], [locations.overlap(*p) for p in some]))
picture = scenes.examples()["penguin_test_artist"].resize((500, 200))
[(_, numbers)] = read(generate(model, processor, picture, "detect penguin"))
[(_, box)] = detect(model, processor, picture, "penguin")
print("detect:  ", np.allclose(tokens_to_box(numbers, 200, 500), box))

# %% [markdown]
# ## In the real model
#
# What the tokens for places cost, and how fine they are beside a patch.

# %% tags=["nbval-check-output"]
from minipali.config import preset

for name in ("small", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896"):
    config = preset(name)
    rows, v = 1024 * config.text.hidden_size, config.vision
    print(f"{name:16} rows of <loc> {rows:9,} numbers, a step {v.image_size / 1023:.2f} pixels,"
          f" {1023 * v.patch_size / v.image_size:5.1f} steps in a patch")  # fmt: skip

# %% [markdown]
# A step is much finer than a patch: at 224 pixels, 64 marks share one. So where an edge lies
# *between* the borders of patches must come from what is in the vectors.
#
# ## Your turn
#
# If you have not yet: [the exercise](../exercises/15_locations.ipynb). You measure the trained
# model with your functions, on pictures of all shapes. It has one piece more that no cell of this
# lesson shows: one number for a whole list of boxes, of which some are surer than others.
#
# ## Take away
#
# - A place is a mark on a ruler of 1,024: `round(fraction · 1023)`, y before x, always as a
#   fraction of the original picture.
# - IoU divides what is shared by what one or the other covers. It is strict in its numbers and mild
#   as a test.
# - It hides 1024 for 1023 altogether, and a part of x before y. Test with wide pictures and objects
#   at the edge.
#
# **Self-test**
#
# <details><summary>Your boxes are right in square pictures and wrong in wide ones. Two mistakes could
# do that. Which?</summary>
#
# Height and width exchanged, or bars added to make a square although the model squeezes. (x before
# y shows in square pictures as well.)
# </details>
#
# <details><summary>A box lies inside another one that has four times its area. What is their IoU, and is
# it "found"?</summary>
#
# The shared area is the small box, and the union is the large one: 1/4. It is not found.
# </details>
#
# <details><summary>A model answers every <code>detect</code> with the same ten boxes, spread over the
# picture. What does our <code>measure</code> say about it?</summary>
#
# It praises too much: each true box gets its best match of ten, and the nine others cost nothing. A
# fair measure must count what was named in vain.
# </details>
#
# **Sources.** Places as tokens: Chen et al. 2021 (Pix2Seq), arXiv 2109.10852. PaliGemma's tokens
# and tasks: Beyer et al. 2024, arXiv 2407.07726. 1023 and the order of the edges: big_vision,
# `pp/proj/paligemma/segmentation.py`.
#
# ### What the notes say, and what is true
#
# | the notes say | true |
# |---|---|
# | `Num_patches_H` counts patches "along the hight of the image(horizontally)", `Num_patches_W` along the width "(vertically)" | the height is vertical: H counts rows from top to bottom, W counts columns. And y comes before x, in tensors, in boxes and in tokens |
# | the logits are used to generate text, and there the notes end | the same text can be read as places, if both sides agree on how |
