# %% [markdown]
# # Exercise 21 · Graft
#
# You write a projector that needs no training, and the mask and the positions with which several
# questions share a picture. The fourth piece stands in no lesson: the same projector from more
# pictures than your memory holds. Then your pieces join the small model's tower to SmolLM2.
#
# The lesson is [notebooks/21_graft.ipynb](../notebooks/21_graft.ipynb). Time: 75 minutes, 25 of them
# for part 4. Names inside your functions are yours; the order of the arguments is not.

# %%
import torch

from minipali.checks import check, hint

# %% [markdown]
# ## 1. A projector by least squares
#
# n patches: for each the tower's vector (p numbers) and the vector of the word that covers it (d
# numbers). Find the weight W and the bias b that make this as small as possible:
#
# $$\frac{1}{n} \sum_i \lVert W x_i + b - y_i \rVert^2 + \text{ridge} \cdot \sum_{jk} W_{jk}^2$$
#
# The bias is not in the second term. What you need from mathematics: subtract the mean of the x from
# all x, and the mean of the y from all y, and write them as rows of X and Y. Then the best W solves
#
# $$\left(\frac{1}{n} X^T X + \text{ridge} \cdot I\right) W^T = \frac{1}{n} X^T Y$$
#
# and b is what makes the mean of the x go to the mean of the y. `torch.linalg.solve(G, R)` solves G Z
# = R for Z.
#
# By hand: two patches of one number, x = 0 and x = 2, and words y = 1 and y = 5. Minus their means
# they are -1, 1 and -2, 2. X^T X / n is 1, X^T Y / n is 2. Without a ridge W = 2 and b = 3 - 2 · 1 = 1: the
# line through both points. With ridge 1, W = 2 / (1 + 1) = 1 and b = 2.


# %%
def closed_form_projector(patches, words, ridge):
    """The linear map that takes patches nearest to words.

    patches: (n, p); words: (n, d), both float32; ridge: a number, 0 or more
    returns: the weight (d, p), as in a linear layer, and the bias (d,), both float32
    """
    ### BEGIN SOLUTION
    n, p = patches.shape
    x_mean, y_mean = patches.mean(dim=0), words.mean(dim=0)
    X, Y = (patches - x_mean).double(), (words - y_mean).double()
    gram = X.T @ X / n + ridge * torch.eye(p, dtype=torch.float64)
    weight = torch.linalg.solve(gram, X.T @ Y / n).T.float()
    return weight, y_mean - weight @ x_mean
    ### END SOLUTION


# %%
check("closed_form_projector", closed_form_projector)

# %% [markdown]
# Stuck? Run `hint("closed_form_projector", 1)`, then `2`, then `3` in a new cell. The others have hints
# too.

# %% [markdown]
# ## 2. Who sees whom
#
# A row holds a picture and behind it several questions with their answers. `owner` says whose each
# place is: 0 is the picture's, 1, 2, … the questions', -1 is padding. A query may see a key if
#
# - it is not later than the query, **and**
# - it belongs to the picture, or to the same owner as the query.
#
# So a question sees the picture and what came before in itself, and no other question. Padding is
# treated as one more question: nobody reads what comes of it, but each row of a mask needs a key.
#
# By hand, for the owners 0 0 1 2 2, a row for each query:
#
# ```
#           0 0 1 2 2
#        0  1 . . . .
#        0  1 1 . . .
#        1  1 1 1 . .
#        2  1 1 . 1 .
#        2  1 1 . 1 1
# ```


# %%
def shared_mask(owner):
    """What each query may see, where questions share a picture.

    owner: (b, s) whole numbers, 0 at the picture, 1, 2, ... at questions, -1 at padding
    returns: bool (b, 1, s, s), True where a query (row) may see a key (column)
    """
    ### BEGIN SOLUTION
    place = torch.arange(owner.shape[1])
    same = owner[:, :, None] == owner[:, None, :]
    picture = owner[:, None, :] == 0
    return ((same | picture) & (place[None, :] <= place[:, None]))[:, None]
    ### END SOLUTION


# %%
check("shared_mask", shared_mask)

# %% [markdown]
# ## 3. Where each token stands
#
# RoPE turns queries and keys by their positions. A question must stand where it would stand if it were
# the only one: it goes on where the picture ended. Positions begin at 1. Padding is treated as one
# more question.
#
# By hand, for the owners 0 0 1 2 2: 1, 2, 3, 3, 4. For 0 0 0 1 1 2 2 2 it is 1, 2, 3, 4, 5, 4, 5, 6.


# %%
def shared_positions(owner):
    """The position of each token, as if its question were alone with the picture.

    owner: (b, s) whole numbers, as in part 2
    returns: (b, s) whole numbers, the first is 1
    """
    ### BEGIN SOLUTION
    return shared_mask(owner)[:, 0].sum(dim=-1)
    ### END SOLUTION


# %%
check("shared_positions", shared_positions)

# %% [markdown]
# ## 4. More pictures than fit
#
# A thousand pictures make 36,000 patches, and the words for them fill 83 MB. A million pictures would
# fill 83 GB. But the equation of part 1 needs of all these patches only a few small sums. So take them
# in parts: `batches` are pairs of patches and words, and of each you keep what you need and forget the
# rest: a tensor of all patches is refused. At the end, return what part 1 would return for **all
# patches together**. The batches differ in size, and in their means.
#
# A hint from statistics: the mean of $(x - m)(x - m)^T$ is the mean of $x x^T$ minus $m m^T$. Add up in
# float64.
#
# By hand: the patch x = 0 with the word y = 1 is one batch, x = 2 with y = 5 is the other. Each batch
# alone, minus its own mean, is 0 and says nothing about W. Together they say W = 2 and b = 1, as in part 1.


# %%
def fit_in_parts(batches, ridge):
    """The projector of part 1 from patches that come in parts.

    batches: a list of pairs, patches (n, p) and words (n, d), n differs; ridge: a number, 0 or more
    returns: the weight (d, p) and the bias (d,), both float32
    """
    ### BEGIN SOLUTION
    n, x, y, xx, xy = 0, 0, 0, 0, 0
    for patches, words in batches:
        p, w = patches.double(), words.double()
        n, x, y = n + len(p), x + p.sum(dim=0), y + w.sum(dim=0)
        xx, xy = xx + p.T @ p, xy + p.T @ w
    x, y = x / n, y / n
    gram = xx / n - torch.outer(x, x) + ridge * torch.eye(len(x), dtype=torch.float64)
    weight = torch.linalg.solve(gram, xy / n - torch.outer(x, y)).T
    return weight.float(), (y - weight @ x).float()
    ### END SOLUTION


# %%
check("fit_in_parts", fit_in_parts)

# %% [markdown]
# ## 5. Inside the two models
#
# The tower is the small model's, the words are SmolLM2's. Your projector is fitted on 300 pictures by
# the training artists. Then it reads patches of the validation artist: which of 33 words (24 objects, 9
# colours) is nearest? And three questions share a picture by your mask and your positions, and are
# asked alone: are the logits the same?
#
# `python course.py weights` brings SmolLM2 here, once (93 MB). Without it this part is left out.

# %%
from minipali import graft, published
from minipali.checks.graft import try_projector, try_sharing

torch.set_num_threads(1)
try:
    published.find("smollm2")
    model, processor = graft.new_graft()
except published.PublishedError as error:
    model, processor = None, None
    print(error)

# %%
if model is not None:
    try_projector(model, processor.encode, closed_form_projector)
    try_sharing(model, processor, shared_mask, shared_positions)

# %% [markdown]
# No step of training has been made: the map of words is what a linear map finds in the vectors of a
# tower that never saw one of these word vectors.
#
# ## Go on
#
# - Give `try_projector` a projector whose weight is zero, and only the bias is right. What does it say
#   of every patch?
#   <details><summary>Answer</summary>The same word, the one nearest to the mean of all words, for every
#   patch. Its squared error is the variance of the words, and R2 is 0.</details>
# - Fit with `number=10` pictures in place of 300. Then with a ridge of 1 in place of 0.001. What
#   happens on the artist whom it has not seen?
#   <details><summary>Answer</summary>Ten pictures show at most thirty objects, some words never: those
#   patches are told wrong. A large ridge draws all words to the mean, and the rare ones are lost
#   first.</details>
# - Leave the `owner == 0` out of the mask: questions see themselves alone. Would the loss of a training
#   tell you?
#   <details><summary>Answer</summary>It would still fall, to that of the commonest answers. A loss that
#   falls is no proof that anybody looks: compare with an exam without the picture.</details>
