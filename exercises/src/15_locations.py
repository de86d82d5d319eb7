# %% [markdown]
# # Exercise 15 · Locations
#
# You write the way from a box to tokens, the way back, and the measure by which boxes are compared.
# The fourth piece stands in no lesson: one number for a whole list of boxes that are more or less sure.
# Then you measure the trained model with all four, on pictures of all shapes.
#
# The lesson is [notebooks/15_locations.ipynb](../notebooks/15_locations.ipynb). Time: 60 minutes, 30 of
# them for part 4. Names inside your functions are yours; the order of the arguments is not. No function
# changes a list that it is given, or a list inside it.

# %%
from minipali.checks import check, hint

# %% [markdown]
# ## 1. From a box to tokens
#
# A box is a list [y0, x0, y1, x1], here as in all parts: top, left, bottom, right, in pixels of the
# original picture. It becomes four whole numbers from 0 to 1023, in the same order. 0 is the upper or
# left edge, 1023 the lower or right edge, and between them each place is **rounded to the nearest**
# number. (No place of the check lies just between two numbers.) A box can stick out of the picture on
# any side, or lie outside altogether. Each of the four places that is outside gets the number of the
# nearer edge, 0 or 1023.
#
# By hand, in a picture 300 high and 600 wide: [75.0, 150.0, 330.0, 450.0] becomes [256, 256, 1023, 767].


# %%
def box_to_tokens(box, height, width):
    """Pixels to numbers.

    box: four floats [y0, x0, y1, x1]; height, width: of the picture, in pixels
    returns: a list of four ints (Python's int) from 0 to 1023
    """
    ### BEGIN SOLUTION
    fractions = [place / side for place, side in zip(box, (height, width) * 2, strict=True)]
    return [round(min(max(fraction, 0.0), 1.0) * 1023) for fraction in fractions]
    ### END SOLUTION


# %%
check("box_to_tokens", box_to_tokens)

# %% [markdown]
# Stuck? Run `hint("box_to_tokens", 1)`, then `2`, then `3` in a new cell. The others have hints too.

# %% [markdown]
# ## 2. And back
#
# The four numbers of an answer, into pixels of the **original** picture. The model saw it squeezed into
# a square; does that matter here? Do not round.
#
# By hand, in the same picture: [0, 341, 1023, 682] becomes [0.0, 200.0, 300.0, 400.0].


# %%
def tokens_to_box(numbers, height, width):
    """Numbers to pixels.

    numbers: four ints from 0 to 1023; height, width: of the original picture, in pixels
    returns: a list of four floats [y0, x0, y1, x1]
    """
    ### BEGIN SOLUTION
    return [n / 1023 * side for n, side in zip(numbers, (height, width) * 2, strict=True)]
    ### END SOLUTION


# %%
check("tokens_to_box", tokens_to_box)

# %% [markdown]
# ## 3. How much do two boxes agree?
#
# Intersection over union: the area in both, divided by the area in one or the other. If no area is
# shared, the result is 0. So a box without any area gets 0 with every box, also with itself. Boxes may be
# in pixels, or in fractions of a side, and then their areas are far below 1.
#
# By hand: [0, 0, 2, 2] and [0, 1, 2, 3] share 2 of 6, which is 1/3. [0, 0, 2, 2] and [3, 3, 5, 5] share
# nothing, 0.


# %%
def overlap(a, b):
    """Intersection over union.

    a, b: four floats [y0, x0, y1, x1] each, with y0 <= y1 and x0 <= x1
    returns: a float or int (no tensor) from 0 (no area shared) to 1 (the same box, with an area)
    """
    ### BEGIN SOLUTION
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return height * width / (sum(areas) - height * width)
    ### END SOLUTION


# %%
check("overlap", overlap)

# %% [markdown]
# ## 4. Sure, and right?
#
# A detector says many boxes, each with a score: how sure it is. Two questions at once: does it find what is
# there, and are its sure boxes the right ones? **Average precision** answers both with one number.
#
# 1. Put all boxes of all pictures in one list, the highest score first. No two scores are equal.
# 2. Go through the list from the top. A box is **right** if its overlap with a free true box *of its own
#    picture* is above the limit (just the limit is not enough). It takes that true box, so that no later
#    one can have it. If several are above the limit and free, it takes the one with the largest overlap.
#    (No two overlaps of a box that are above the limit are equally large. No two true boxes of a picture
#    are the same, but two pictures may have the same one.)
# 3. At each box that is right, note the precision so far: the number of right ones up to here, this one with
#    them, divided by the place in the list, counted from 1. At a wrong one, note nothing.
# 4. Add up what you have noted, and divide by the number of **all** true boxes. Those that nobody found are
#    among them, and add 0.
#
# How much two boxes overlap says the function `measure` that you are given. It may be another one than
# yours of part 3, but it gives numbers from 0.0 to 1.0, too, and `measure(a, b)` is the same as
# `measure(b, a)`.
#
# By hand: three boxes, the first and the third are right, and there are two true boxes in all. Noted are
# 1/1 and 2/3, so the result is (1 + 2/3) / 2 = 0.833. If the detector had been least sure of the wrong one,
# it would be (1 + 1) / 2 = 1. And with four true boxes in the place of two, 0.417 and 0.5.


# %%
def average_precision(found, truths, measure, limit):
    """One number for a list of boxes with scores.

    found: a list of (score, picture, box), in any order, perhaps empty; score: from 0.0 to 1.0;
    picture: a number from 0
    truths: for each picture the list of its true boxes, perhaps empty; in all there is at least one
    measure: the overlap of two boxes is measure(a, b); limit: 0.0 or more, and below 1.0
    returns: a float (no tensor) from 0.0 to 1.0
    """
    ### BEGIN SOLUTION
    taken, hits, total = set(), 0, 0.0
    for place, (_, picture, box) in enumerate(sorted(found, reverse=True), start=1):
        free = [i for i in range(len(truths[picture])) if (picture, i) not in taken]
        overlaps = {i: measure(box, truths[picture][i]) for i in free}
        best = max(free, key=overlaps.get, default=None)
        if best is not None and overlaps[best] > limit:
            taken.add((picture, best))
            hits += 1
            total += hits / place
    return total / sum(len(own) for own in truths)
    ### END SOLUTION


# %%
check("average_precision", average_precision)

# %% [markdown]
# ## 5. With the trained model
#
# `try_boxes` takes 100 new scenes by the validation artist, each pulled to a shape of its own, and asks
# the model `detect NAME`. Your `tokens_to_box` turns the answers into pixels, and your `overlap` compares
# each true box with the best told one. Beside it stands the same with the package's functions. And your
# `box_to_tokens` says the true boxes, as for training data: are these the package's tokens?

# %%
from minipali import figures, generate, load, scenes
from minipali.checks.locations import numbers_in, try_boxes, try_precision

model, processor = load("small")
agrees = try_boxes(model, processor, box_to_tokens, tokens_to_box, overlap)

# %% [markdown]
# PaliGemma says no scores. But each of its tokens had a probability, and the product of those of the four
# tokens of a box is one: how sure it was of the whole box. Is it worth something? `try_precision` asks the
# same questions and gives your `average_precision` these scores, and then scores drawn by chance. Where the
# order by the model's own probability gives more, it *knows* which of its boxes are good.

# %%
sure = try_precision(model, processor, tokens_to_box, overlap, average_precision)

# %% [markdown]
# ## 6. On a picture, and all yours
#
# At last a picture that is no square, by an artist whose drawings the model never saw in training.
# `my_pieces` collects what you wrote in exercises 01 to 12, as the notebooks are saved, and `swap` puts
# it into the model. Then seeing, reading, answering and drawing the boxes are yours. What you have not
# written comes from the package.

# %%
from minipali.progress import my_pieces
from minipali.swap import swap, whose

pieces = my_pieces(model, last=12)
yours = swap(model, **pieces) if pieces else model
print(f"{len(pieces)} pieces are yours: {', '.join(pieces) or 'none yet'}. Model: {whose(yours)}")

# %%
picture, found = scenes.examples()["two_frogs_and_pizza_test_artist"].resize((540, 300)), []
if agrees:
    for name in ("frog", "pizza"):
        answer = generate(yours, processor, picture, f"detect {name}")
        print(answer)
        for numbers in numbers_in(answer):
            found.append((name, tokens_to_box(numbers, picture.height, picture.width)))
    figures.paligemma.boxes(picture, {"the picture": [], "your boxes": found})

# %% [markdown]
# ## Go on
#
# - Decode with 1024 in part 2 and run part 5 again. What does the check say, and what would you
#   have seen in the two means alone?
#   <details><summary>Answer</summary>The check of part 2 names it. In the means almost nothing changes: a
#   thousandth of the side is far less than the model's own error, and no box falls below 0.5 for it. A
#   measure that asks "good enough?" does not find small systematic mistakes.</details>
# - Exchange x and y in `box_to_tokens` *and* in `tokens_to_box`. Which test can still notice?
#   <details><summary>Answer</summary>There and back gives the same box, so a round trip notices nothing.
#   The checks do, and every box that comes from elsewhere: the trained model's answers, or a file of the
#   published training data.</details>
# - Fill the pictures up to a square with white bars instead of pulling them. How do the boxes have to be
#   computed now, and does the model find more or less?
#   <details><summary>Answer</summary>A fraction is now one of the longer side, and the bar on the upper or
#   left side comes off: `n / 1023 * longer - (longer - side) / 2`. Measure the rest: objects get smaller,
#   which costs, and keep their proportions, which may help. The model was trained on squeezed pictures and
#   on no bars.</details>
# - Let the model say its boxes for the picture *and* for its mirror image, mirror the second ones back, and
#   give both lists to `average_precision`. What must you do about boxes that are said twice?
#   <details><summary>Answer</summary>The second box on an object is a wrong one by rule 2, so keep of each
#   pair that overlaps strongly only the surer one. That is called non-maximum suppression: go through the
#   list, the surest first, and drop every box whose overlap with a kept one is above a limit.</details>
