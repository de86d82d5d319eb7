# %% [markdown]
# # Exercise 15 · Locations
#
# You write the way from a box to tokens, the way back, and the measure by which boxes are compared.
# Then you measure the trained model with them, on pictures of all shapes.
#
# The lesson is [notebooks/15_locations.ipynb](../notebooks/15_locations.ipynb). Time: 30 minutes.
# Names inside your functions are yours; the order of the arguments is not.

# %%
from minipali.checks import check, hint

# %% [markdown]
# ## 1. From a box to tokens
#
# A box is a list (y0, x0, y1, x1): top, left, bottom, right, in pixels of the original picture. It
# becomes four whole numbers from 0 to 1023, in the same order. 0 is the upper or left edge, 1023 the
# lower or right edge. A box that sticks out of the picture is cut off at the edge first.


# %%
def box_to_tokens(box, height, width):
    """Pixels to numbers.

    box: four floats (y0, x0, y1, x1); height, width: of the picture, in pixels
    returns: a list of four ints from 0 to 1023
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


# %%
def tokens_to_box(numbers, height, width):
    """Numbers to pixels.

    numbers: four ints from 0 to 1023; height, width: of the original picture, in pixels
    returns: a list of four floats (y0, x0, y1, x1)
    """
    ### BEGIN SOLUTION
    return [n / 1023 * side for n, side in zip(numbers, (height, width) * 2, strict=True)]
    ### END SOLUTION


# %%
check("tokens_to_box", tokens_to_box)

# %% [markdown]
# ## 3. How much do two boxes agree?
#
# Intersection over union: the area in both, divided by the area in one or the other. If nothing is
# shared, the result is `0.0`, also for boxes without any area.


# %%
def overlap(a, b):
    """Intersection over union.

    a, b: four floats (y0, x0, y1, x1) each, with y0 <= y1 and x0 <= x1
    returns: a float from 0.0 (nothing shared) to 1.0 (the same box)
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
# ## 4. With the trained model
#
# `try_boxes` takes 100 new scenes by the validation artist, each pulled to a shape of its own, and asks
# the model `detect NAME`. Your `tokens_to_box` turns the answers into pixels, and your `overlap` compares
# each true box with the best told one. Beside it stands the same with the package's functions. And your
# `box_to_tokens` says the true boxes, as for training data: are these the package's tokens?

# %%
from minipali import figures, generate, load, scenes
from minipali.checks.locations import numbers_in, try_boxes

model, processor = load("small")
agrees = try_boxes(model, processor, box_to_tokens, tokens_to_box, overlap)

# %% [markdown]
# ## 5. On a picture, and all yours
#
# At last a picture that is no square, by an artist whose drawings the model never saw in training.
# `my_pieces` collects what you wrote in exercises 01 to 12, as the notebooks are saved, and `swap` puts
# it into the model. Then seeing, reading, answering and drawing the boxes are yours. What you have not
# written comes from the package.

# %%
from minipali.progress import my_pieces
from minipali.swap import swap

pieces = my_pieces(model, last=12)
yours = swap(model, **pieces) if pieces else model
print(f"{len(pieces)} pieces are yours: {', '.join(pieces)}")

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
# - Decode with 1024 in section 2 and run section 4 again. What does the check say, and what would you
#   have seen in the two means alone?
# - Exchange x and y in `box_to_tokens` *and* in `tokens_to_box`. Which test can still notice?
# - Fill the pictures up to a square with white bars instead of pulling them. How do the boxes have to be
#   computed now, and does the model find more or less?
