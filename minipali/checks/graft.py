"""Lesson 21: a projector by least squares, and questions that share a picture."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minipali import graft, scenes
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.paligemma import PaliGemma

# --- closed_form_projector ------------------------------------------------------------------------


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=0)


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x[0])


def projector(
    patches: Tensor,
    words: Tensor,
    ridge: float,
    *,
    x_centre: Callable[[Tensor], Tensor] = _mean,
    y_centre: Callable[[Tensor], Tensor] = _mean,
    count: Callable[[Tensor, Tensor], float] = lambda x, y: len(x),
    penalty: Callable[[float, int], Tensor] = lambda ridge, p: ridge * torch.eye(p).double(),
    solve: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve,
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w, x, y: y - w @ x,
    give: Callable[[Tensor, Tensor], tuple] = lambda w, b: (w, b),
) -> tuple[Tensor, Tensor]:
    """Weight (d, p) and bias (d,). The reference, or with one thing changed."""
    x, y = patches.double(), words.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x, y = x - x_centre(x), y - y_centre(y)
    number = count(x, y)
    weight = solve(x.T @ x / number + penalty(ridge, x.shape[1]), x.T @ y / number).T
    return give(weight.float(), bias(weight, x_mean, y_mean).float())


def _bias_penalised(patches: Tensor, words: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    x = torch.cat((patches, torch.ones(len(patches), 1)), dim=1).double()
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1]).double()
    both = torch.linalg.solve(gram, x.T @ words.double() / len(x)).T.float()
    return both[:, :-1], both[:, -1]


def _standardised(patches: Tensor, words: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    spread = patches.std(dim=0, correction=0)
    weight, bias = projector(patches / spread, words, ridge)
    return weight / spread, bias


def _from_words(patches: Tensor, words: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    return projector(words, patches, ridge)


def _pairs() -> list[tuple]:
    random = torch.Generator().manual_seed(210)

    def case(n: int, p: int, d: int, ridge: float) -> tuple:
        x = torch.randn(n, p, generator=random) + torch.randn(p, generator=random)
        y = x @ torch.randn(p, d, generator=random) + torch.randn(n, d, generator=random) + 2
        return x, y, ridge

    return [case(9, 3, 4, 0.5), case(30, 4, 2, 0.1), case(5, 7, 3, 0.2), case(12, 3, 3, 0.0)]


PROJECTOR = Exercise(
    name="closed_form_projector",
    reference=graft.closed_form_projector,
    cases=_pairs,
    axes="d p;d",
    parts=("the weight", "the bias"),
    tolerance=1e-4,
    checked=(
        "weight and bias for 9, 30, 5 and 12 patches, of which the third has fewer patches than"
        " numbers in each, with ridges 0.5, 0.1, 0.2 and 0; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "no ridge",
            partial(projector, penalty=lambda ridge, p: 1e-9 * torch.eye(p).double()),
            "`ridge` is not used. Without it, numbers of the patch vectors that hardly vary get"
            " huge weights: add ridge times the unit matrix before you solve.",
        ),
        Mistake(
            "sum",
            partial(projector, count=lambda x, y: 1),
            "The squared errors are added up where the mean is meant. Then the same ridge says less"
            " the more patches there are: divide X^T X and X^T Y by their number.",
        ),
        Mistake(
            "half",
            partial(projector, solve=lambda gram, right: torch.linalg.solve(gram, right) / 2),
            "The weight is half of what it should be. The gradient of the squared error has a 2,"
            " and so has that of the squared weights: both go.",
        ),
        Mistake(
            "one less",
            partial(projector, count=lambda x, y: len(x) - 1),
            "X^T X is divided by the number of patches less 1, as an estimate of a variance is."
            " Here it is a mean over the patches: divide by their number.",
        ),
        Mistake(
            "mean over numbers",
            partial(projector, count=lambda x, y: y.numel()),
            "The error is a mean over the patches and over the d numbers of each. Then the same"
            " ridge says more the wider the language model is: divide by the number of patches"
            " alone.",
        ),
        Mistake(
            "bias penalised",
            _bias_penalised,
            "The ridge draws the bias to zero, too: a column of ones was added, and the ridge got"
            " that as well. Only the weights are to be small. Subtract the means instead.",
        ),
        Mistake(
            "through the origin",
            partial(
                projector, x_centre=_zero, y_centre=_zero, bias=lambda w, x, y: torch.zeros_like(y)
            ),
            "There is no bias: the map goes through zero, though neither patches nor words lie"
            " around it. Subtract both means first; the bias is what is left of them.",
        ),
        Mistake(
            "not centred",
            partial(projector, x_centre=_zero, y_centre=_zero),
            "The means are not subtracted before the weight is solved for, so the weight has to"
            " explain them as well. Subtract both means first.",
        ),
        Mistake(
            "words alone centred",
            partial(projector, x_centre=_zero),
            "The mean of the words is subtracted, that of the patches is not. Subtract both.",
        ),
        Mistake(
            "one mean for all",
            partial(projector, x_centre=lambda x: x.mean(), y_centre=lambda y: y.mean()),
            "One number is subtracted, the mean of all numbers of all patches. Each of the p"
            " numbers has a mean of its own: mean(dim=0).",
        ),
        Mistake(
            "standardised",
            _standardised,
            "The patches are divided by their spread before the ridge is added, so that the ridge"
            " falls on other weights than those that are returned. Subtract the means alone.",
        ),
        Mistake(
            "bias is the mean",
            partial(projector, bias=lambda w, x, y: y),
            "The bias is the mean of the words. That is right for patches around zero. Theirs is"
            " not zero: mean of the words - W times the mean of the patches.",
        ),
        Mistake(
            "bias of zeros",
            partial(projector, bias=lambda w, x, y: torch.zeros_like(y)),
            "The weight is right and the bias is zero: mean of the words - W times the mean of the"
            " patches.",
        ),
        Mistake(
            "bias sign",
            partial(projector, bias=lambda w, x, y: y + w @ x),
            "The bias has a wrong sign: at the mean of the patches the map must give the mean of"
            " the words. So it is mean of the words *minus* W times the mean of the patches.",
        ),
        Mistake(
            "bias negative",
            partial(projector, bias=lambda w, x, y: w @ x - y),
            "The bias has its sign turned round: it is mean of the words - W times the mean of the"
            " patches.",
        ),
        Mistake(
            "not solved",
            partial(projector, solve=lambda gram, right: right),
            "The weight is X^T Y / n alone. Numbers of the patch vectors that say the same then"
            " count twice. Solve (X^T X / n + ridge I) W^T = X^T Y / n.",
        ),
        Mistake(
            "multiplied",
            partial(projector, solve=lambda gram, right: gram @ right),
            "X^T Y is multiplied by X^T X + ridge I. It must be divided: torch.linalg.solve.",
        ),
        Mistake(
            "ridge everywhere",
            partial(projector, penalty=lambda ridge, p: ridge * torch.ones(p, p).double()),
            "The ridge is added to all of X^T X. It belongs on the diagonal: ridge * torch.eye(p).",
        ),
        Mistake(
            "ridge squared",
            partial(projector, penalty=lambda ridge, p: ridge**2 * torch.eye(p).double()),
            "The ridge is squared. The weights are squared in what is made small; their factor"
            " stays as it is.",
        ),
        Mistake(
            "ridge subtracted",
            partial(projector, penalty=lambda ridge, p: -ridge * torch.eye(p).double()),
            "The ridge is subtracted. That rewards large weights: add it.",
        ),
        Mistake(
            "ridge halved or doubled",
            partial(projector, penalty=lambda ridge, p: 2 * ridge * torch.eye(p).double()),
            "The ridge counts twice. The 2 of the gradient is in both terms, and goes in both.",
        ),
        Mistake(
            "weight turned",
            partial(projector, give=lambda w, b: (w.T, b)),
            "The weight is turned. As in a linear layer of torch it has a row for each output:"
            " (d, p).",
        ),
        Mistake(
            "bias first",
            partial(projector, give=lambda w, b: (b, w)),
            "The bias comes first. Return weight, bias.",
        ),
        Mistake(
            "double",
            partial(projector, give=lambda w, b: (w.double(), b.double())),
            "Weight and bias are float64. Solving in float64 is wise; what you return goes into a"
            " model of float32.",
        ),
        Mistake(
            "the other way",
            _from_words,
            "This map takes words to patch vectors. Exchange the two: patches go in, words come"
            " out.",
        ),
    ),
    hints=(
        "Subtract the mean of the patches and the mean of the words. For what is left there is no"
        " bias, and the best weight solves a linear system.",
        "With X (n, p) and Y (n, d) less their means: (X^T X / n + ridge I) W^T = X^T Y / n. Then"
        " the bias makes the mean of the patches go to the mean of the words.",
        "G = X.T @ X / n + ridge * torch.eye(p); weight = torch.linalg.solve(G, X.T @ Y / n).T;"
        " bias = words.mean(0) - weight @ patches.mean(0).",
    ),
)


# --- shared_mask ----------------------------------------------------------------------------------


def _owners() -> list[tuple]:
    rows = (
        [[0, 0, 0, 1, 1, 2, 2, 2]],
        [[0, 0, 1, 1, 2, 3, 3], [0, 0, 1, 2, 2, 2, -1]],
        [[0, 0, 2, 2, 1, 1, 1, -1, -1]],
        [[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2, -1]],  # pictures of different sizes
    )
    return [(torch.tensor(row),) for row in rows]


def _same(owner: Tensor) -> Tensor:
    return owner[:, :, None] == owner[:, None, :]


def _picture(owner: Tensor) -> Tensor:
    return (owner == 0)[:, None, :].expand(-1, owner.shape[1], -1)


def _not_later(owner: Tensor) -> Tensor:
    return torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()


def mask(
    owner: Tensor,
    *,
    own: Callable[[Tensor], Tensor] = _same,
    picture: Callable[[Tensor], Tensor] = _picture,
    time: Callable[[Tensor], Tensor] = _not_later,
    rest: Callable[[Tensor, Tensor], Tensor] = lambda sees, owner: sees,
    give: Callable[[Tensor], Tensor] = lambda sees: sees[:, None],
) -> Tensor:
    """bool (b, 1, s, s). The reference, or with one thing changed."""
    return give(rest((own(owner) | picture(owner)) & time(owner), owner))


MASK = Exercise(
    name="shared_mask",
    reference=graft.shared_mask,
    cases=_owners,
    axes="b one s s",
    checked=(
        "4 batches: two questions after a picture of three places; two rows, one of them padded;"
        " questions that are not numbered in their order, and padding; rows whose pictures differ"
        " in size; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "plain causal",
            partial(mask, own=lambda owner: torch.ones_like(_same(owner))),
            "A question sees the questions before it. It would answer from them, and at the exam"
            " they are not there: a question sees the picture and itself.",
        ),
        Mistake(
            "earlier numbers",
            partial(mask, own=lambda owner: owner[:, None, :] <= owner[:, :, None]),
            "A question sees those with a lower number. It must see its own number and the picture"
            " alone: ==, not <=.",
        ),
        Mistake(
            "not causal",
            partial(mask, time=lambda owner: torch.ones_like(_same(owner))),
            "A token sees what comes after it in its question, its answer among it. In training it"
            " then copies what it should foretell. A key must not be later than the query.",
        ),
        Mistake(
            "picture both ways",
            partial(mask, time=lambda owner: _not_later(owner) | (_picture(owner) & _same(owner))),
            "The picture's places see each other in both directions, as in PaliGemma. This language"
            " model has only ever read forward: also in the picture no key may be later than the"
            " query.",
        ),
        Mistake(
            "picture sees questions",
            partial(mask, rest=lambda sees, owner: sees | _picture(owner).transpose(1, 2)),
            "The picture sees the questions. Then its vectors depend on what is asked, and the"
            " questions learn of each other through it. The picture sees itself alone.",
        ),
        Mistake(
            "own alone",
            partial(mask, picture=lambda owner: torch.zeros_like(_same(owner))),
            "The questions do not see the picture. Its *columns* must be filled for every row: keys"
            " of the owner 0 are visible to all that come after them.",
        ),
        Mistake(
            "picture alone",
            partial(mask, own=lambda owner: torch.zeros_like(_same(owner))),
            "A question sees the picture and not itself: it cannot know what it asks. Keys of the"
            " same owner are visible, too.",
        ),
        Mistake(
            "not itself",
            partial(mask, time=lambda owner: _not_later(owner).tril(-1)),
            "No token sees itself: the diagonal is empty, and the first row of the picture sees"
            " nothing at all. Not later means <=.",
        ),
        Mistake(
            "backwards",
            partial(mask, time=lambda owner: _not_later(owner).T),
            "It runs backwards: each token sees what is not earlier. Rows are queries, columns are"
            " keys, and a key must not be later than the query.",
        ),
        Mistake(
            "turned",
            partial(mask, give=lambda sees: sees.transpose(1, 2)[:, None]),
            "Queries and keys are exchanged. Rows are queries, columns are keys.",
        ),
        Mistake(
            "padding sees nothing",
            partial(mask, rest=lambda sees, owner: sees & (owner >= 0)[:, :, None]),
            "The rows of the padding are empty. A softmax over nothing is no number, and one such"
            " row can spoil all gradients. Treat padding as one question more.",
        ),
        Mistake(
            "padding unseen by itself",
            partial(mask, rest=lambda sees, owner: sees & (owner >= 0)[:, None, :]),
            "Padding does not see itself. It would do no harm, but this exercise treats padding as"
            " one question more, without an exception.",
        ),
        Mistake(
            "hidden for visible",
            partial(mask, give=lambda sees: ~sees[:, None]),
            "True and False are exchanged: True is what may be seen.",
        ),
        Mistake(
            "first row for all",
            lambda owner: mask(owner[:1].expand(len(owner), -1)),
            "All rows of the batch have the mask of the first one. Their questions may differ in"
            " length: compute it for each.",
        ),
        Mistake(
            "three axes",
            partial(mask, give=lambda sees: sees),
            "The axis of the heads is missing: (b, 1, s, s), one mask for all heads.",
        ),
        Mistake(
            "added",
            partial(
                mask,
                give=lambda sees: torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))[
                    :, None
                ],
            ),
            "These are numbers to add to the scores. Our attention takes a mask of True and False.",
        ),
    ),
    hints=(
        "Three comparisons of a column of queries with a row of keys: the same owner? a key of the"
        " picture? not later?",
        "owner[:, :, None] has the queries, owner[:, None, :] the keys. Visible is what is (the"
        " same owner, or the picture's key) and not later.",
        "place = torch.arange(s); same = owner[:, :, None] == owner[:, None, :]; ((same |"
        " (owner == 0)[:, None]) & (place[None, :] <= place[:, None]))[:, None]",
    ),
)


# --- shared_positions -----------------------------------------------------------------------------


def positions(
    owner: Tensor,
    *,
    start: Callable[[Tensor], Tensor] = lambda pictures: pictures,
    first: int = 1,
    within: Callable[[Tensor], Tensor] = lambda x: x,
    counted: Callable[[Tensor], Tensor] = _same,
) -> Tensor:
    """(b, s). The reference, or with one thing changed."""
    place = (counted(owner) & _not_later(owner)).sum(dim=-1)  # 1, 2, ... in each question
    pictures = (owner == 0).sum(dim=1, keepdim=True)
    return torch.where(owner == 0, place, start(pictures) + within(place)) + first - 1


POSITIONS = Exercise(
    name="shared_positions",
    reference=graft.shared_positions,
    cases=_owners,
    axes="b s",
    checked=(
        "4 batches: two questions after a picture of three places; two rows, one of them padded;"
        " questions that are not numbered in their order, and padding; rows whose pictures differ"
        " in size; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "one after the other",
            partial(positions, start=lambda n: 0 * n, counted=lambda o: torch.ones_like(_same(o))),
            "The places are counted through. Then the second question stands further from the"
            " picture than it will when it is asked alone. Every question goes on where the"
            " picture ended.",
        ),
        Mistake(
            "from zero",
            partial(positions, first=0),
            "The count begins at 0. Ours begins at 1, as in lesson 11.",
        ),
        Mistake(
            "anew",
            partial(positions, start=lambda n: 0 * n),
            "Each question begins at 1 again, as if the picture were not before it. It goes on"
            " where the picture ended.",
        ),
        Mistake(
            "one too low",
            partial(positions, start=lambda n: n - 1),
            "Each question begins at the last place of the picture. Its first token comes after"
            " it: one more.",
        ),
        Mistake(
            "one too high",
            partial(positions, start=lambda n: n + 1),
            "There is a gap of one between the picture and each question.",
        ),
        Mistake(
            "pictures of all rows",
            partial(positions, start=lambda pictures: pictures.sum()),
            "The places of the pictures are added up over the whole batch. Each row has a picture"
            " of its own: sum(dim=1, keepdim=True).",
        ),
        Mistake(
            "all alike",
            partial(positions, within=torch.ones_like),
            "All tokens of a question have the same position, so that their order is lost.",
        ),
        Mistake(
            "backwards",
            lambda owner: positions(owner.flip(1)).flip(1),
            "It counts from the end. The first place of the picture is 1.",
        ),
        Mistake(
            "padding at one",
            lambda owner: torch.where(owner < 0, 1, positions(owner)),
            "Padding gets 1. Nobody looks at it, but here it is treated as one question more.",
        ),
        Mistake(
            "padding at zero",
            lambda owner: torch.where(owner < 0, 0, positions(owner)),
            "Padding gets 0. Nobody looks at it, but here it is treated as one question more.",
        ),
        Mistake(
            "by number",
            lambda owner: torch.where(
                owner == 0, positions(owner), (owner == 0).sum(dim=1, keepdim=True) + owner
            ),
            "The number of a question is taken for a place in it.",
        ),
        Mistake(
            "first row for all",
            lambda owner: positions(owner[:1].expand(len(owner), -1)),
            "All rows of the batch have the positions of the first one. Their questions may differ"
            " in length: compute them for each.",
        ),
        Mistake(
            "with the other questions",
            lambda owner: (owner[:, None, :] <= owner[:, :, None]).sum(dim=-1),
            "It counts all tokens with a lower or the same number, later ones too. Count those that"
            " a token *sees*.",
        ),
        Mistake(
            "numbers of another kind",
            lambda owner: positions(owner).float(),
            "The positions are floats. They are whole numbers: a sum of True and False is one.",
        ),
    ),
    hints=(
        "Where would this token stand if its question were the only one?",
        "How many tokens does the first token of the picture see? How many its second? And the"
        " first token of a question?",
        "shared_mask(owner)[:, 0].sum(dim=-1)",
    ),
)


# --- fit_in_parts ---------------------------------------------------------------------------------


def _parts() -> list[tuple]:
    random = torch.Generator().manual_seed(211)

    def case(sizes, p: int, d: int, ridge: float, spread: float = 1, far: float = 0) -> tuple:
        true, batches = torch.randn(p, d, generator=random), []
        for n in sizes:  # each batch lies elsewhere, as scenes of one kind would
            x = spread * torch.randn(n, p, generator=random) + far
            x = x + 2 * spread * torch.randn(p, generator=random)
            y = x @ true + torch.randn(n, d, generator=random) + torch.randn(d, generator=random)
            batches.append((x, y))
        return batches, ridge

    sizes = [case((6, 6), 2, 3, 0.3), case((4, 5, 3) * 10, 3, 2, 0.1), case((7,), 3, 3, 0.2)]
    # Single patches; and patches far from 0, whose squares hide in float32 how much they vary.
    return [*sizes, case((1, 5, 1, 4), 2, 2, 0.1), case((20, 20), 2, 3, 0.01, spread=0.3, far=60)]


def fit_in_parts(
    batches: list[tuple[Tensor, Tensor]],
    ridge: float,
    *,
    of_batch: Callable[[Tensor, Tensor], tuple] = lambda x, y: (x, y),
    grow: Callable[[list, Tensor], list] = lambda sums, new: [
        a + b for a, b in zip(sums, new, strict=True)
    ],
    size: Callable[[int], float] = lambda n: 1.0,
    ridges: Callable[[float, int, float], float] = lambda ridge, batches, n: ridge,
    centre: Callable[[Tensor, Tensor], Tensor] = lambda second, means: second - means,
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda w, x, y: y - w @ x,
    give: Callable[[Tensor, Tensor], tuple] = lambda w, b: (w, b),
) -> tuple[Tensor, Tensor]:
    """Weight (d, p) and bias (d,) of sums over the batches. The reference, or one thing changed."""
    sums = None
    for patches, words in batches:
        x, y = of_batch(patches.double(), words.double())
        new = [torch.tensor(float(len(x))), x.sum(dim=0), y.sum(dim=0), x.T @ x, x.T @ y]
        new = [size(len(x)) * one for one in new]
        sums = new if sums is None else grow(sums, new)
    n, x, y, xx, xy = sums
    x_mean, y_mean = x / n, y / n
    gram = centre(xx / n, torch.outer(x_mean, x_mean))
    eye = torch.eye(len(x)).double()
    gram = gram + ridges(ridge, len(batches), float(n)) * eye
    weight = torch.linalg.solve(gram, centre(xy / n, torch.outer(x_mean, y_mean))).T
    return give(weight.float(), bias(weight, x_mean, y_mean).float())


def _mean_of_solutions(batches, ridge, weighted: bool = False) -> tuple[Tensor, Tensor]:
    found = [graft.closed_form_projector(x, y, ridge) for x, y in batches]
    sizes = torch.tensor([float(len(x)) if weighted else 1.0 for x, _ in batches])
    shares = sizes / sizes.sum()
    return tuple(sum(s * part for s, part in zip(shares, own, strict=True))
                 for own in zip(*found, strict=True))  # fmt: skip


def _around(batches, ridge, centres: list[tuple], means: tuple) -> tuple[Tensor, Tensor]:
    """The solution where each batch is taken around a centre; the bias is that of the means."""
    n, gram, cross = sum(len(x) for x, _ in batches), 0, 0
    for (x, y), (x_centre, y_centre) in zip(batches, centres, strict=True):
        gram = gram + (x - x_centre).T @ (x - x_centre) / n
        cross = cross + (x - x_centre).T @ (y - y_centre) / n
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), cross).T
    return weight, means[1] - weight @ means[0]


def _batch_means(batches) -> list[tuple]:
    return [(x.mean(dim=0), y.mean(dim=0)) for x, y in batches]


def _centred_apart(batches, ridge) -> tuple[Tensor, Tensor]:
    n = sum(len(x) for x, _ in batches)
    means = tuple(sum(part.sum(dim=0) for part in own) / n for own in zip(*batches, strict=True))
    return _around(batches, ridge, _batch_means(batches), means)


def _means_of_means(batches, ridge) -> tuple[Tensor, Tensor]:
    own = _batch_means(batches)
    means = tuple(sum(part) / len(own) for part in zip(*own, strict=True))
    return _around(batches, ridge, [means] * len(batches), means)


FIT_IN_PARTS = Exercise(
    name="fit_in_parts",
    transfer=True,
    largest=300,  # all patches of the second case have 360 numbers
    reference=fit_in_parts,
    cases=_parts,
    axes="d p;d",
    parts=("the weight", "the bias"),
    tolerance=1e-4,
    checked=(
        "weight and bias for two batches of 6 patches, for thirty of 3 to 5, for a single one, for"
        " batches of one patch, and for patches far from 0; no tensor of all patches; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake(
            "mean of solutions",
            _mean_of_solutions,
            "Each batch is solved alone, and the solutions are averaged. That is not the solution"
            " for all patches: batches that differ say things together that none says alone. Add"
            " up the sums, and solve once at the end.",
        ),
        Mistake(
            "mean of solutions by size",
            lambda batches, ridge: _mean_of_solutions(batches, ridge, weighted=True),
            "Each batch is solved alone, and the solutions are averaged by size. That is not the"
            " solution for all patches. Add up the sums, and solve once at the end.",
        ),
        Mistake(
            "last batch",
            partial(fit_in_parts, grow=lambda sums, new: new),
            "Only the last batch is used: the sums are set where they should grow.",
        ),
        Mistake(
            "first batch",
            partial(fit_in_parts, grow=lambda sums, new: sums),
            "Only the first batch is used.",
        ),
        Mistake(
            "centred apart",
            _centred_apart,
            "Each batch's own means are subtracted. What differs between the batches is lost by"
            " that. The means are those of all patches, and you know them only at the end: X^T X /"
            " n less the product of the means.",
        ),
        Mistake(
            "every batch alike",
            partial(fit_in_parts, size=lambda n: 1 / n),
            "Every batch counts the same, however many patches it has. Every patch must: add up"
            " sums, not means.",
        ),
        Mistake(
            "mean of means",
            _means_of_means,
            "The mean of all patches is taken as the mean of the batches' means. The batches differ"
            " in size: add up the sums, and divide by the number of all patches.",
        ),
        Mistake(
            "not centred",
            partial(fit_in_parts, centre=lambda second, means: second),
            "The means are not subtracted, so the weight has to explain them as well. Of the mean"
            " of x x^T subtract the product of the means, and the same for x y^T.",
        ),
        Mistake(
            "means added",
            partial(fit_in_parts, centre=lambda second, means: second + means),
            "The product of the means is added. It must be subtracted: the mean of (x - m)^2 is"
            " the mean of x^2 less m^2.",
        ),
        Mistake(
            "ridge for each batch",
            partial(fit_in_parts, ridges=lambda ridge, batches, n: ridge * batches),
            "The ridge is added once for each batch. It belongs there once, at the end.",
        ),
        Mistake(
            "ridge on the sums",
            partial(fit_in_parts, ridges=lambda ridge, batches, n: ridge / n),
            "The ridge is added to the sums. In part 1 it goes with the mean error: divide by the"
            " number of patches first.",
        ),
        Mistake(
            "no ridge",
            partial(fit_in_parts, ridges=lambda ridge, batches, n: 0.0),
            "`ridge` is not used.",
        ),
        Mistake(
            "through the origin",
            partial(
                fit_in_parts,
                centre=lambda second, means: second,
                bias=lambda w, x, y: torch.zeros_like(y),
            ),
            "There is no bias: the map goes through zero.",
        ),
        Mistake(
            "bias is the mean",
            partial(fit_in_parts, bias=lambda w, x, y: y),
            "The bias is the mean of the words: mean of the words - W times the mean of the"
            " patches.",
        ),
        Mistake(
            "weight turned",
            partial(fit_in_parts, give=lambda w, b: (w.T, b)),
            "The weight is turned: (d, p).",
        ),
        Mistake(
            "double",
            partial(fit_in_parts, give=lambda w, b: (w.double(), b.double())),
            "Weight and bias are float64. What you return goes into a model of float32.",
        ),
    ),
    hints=(
        "Look at your part 1: of the patches it needs only five things, and all of them are sums or"
        " made of sums.",
        "n, the sum of x, the sum of y, the sum of x x^T and the sum of x y^T grow with each batch."
        " With means m: the mean of (x - m)(x - m)^T is the mean of x x^T less m m^T.",
        "G = XX / n - outer(mx, mx) + ridge * eye; R = XY / n - outer(mx, my); weight ="
        " solve(G, R).T; bias = my - weight @ mx. Add up in float64.",
    ),
)

EXERCISES = (PROJECTOR, MASK, POSITIONS, FIT_IN_PARTS)


# --- at work in the two models --------------------------------------------------------------------


def patches_and_words(
    model: PaliGemma, encode: Callable, made: list[scenes.Scene]
) -> tuple[Tensor, Tensor]:
    """What the tower says of each patch, (n, p), and the word that covers it, (n, d)."""
    vision = model.config.vision
    side = vision.image_size // vision.patch_size
    with torch.no_grad():
        patches = model.vision_tower(scenes.pixel_values(made)).flatten(0, 1)
        shares = torch.cat([graft.word_shares(scene, side) for scene in made])
        return patches, shares @ graft.word_vectors(model, encode, graft.WORDS)


def drawn(number: int, artists: dict, seed: int) -> list[scenes.Scene]:
    rng = np.random.default_rng(seed)
    return [scenes.compose(rng, artists) for _ in range(number)]


def try_projector(
    model: PaliGemma, encode: Callable, closed_form_projector: Callable, number: int = 300
) -> bool:
    """Fit a learner's projector on scenes, and read an unseen artist's patches with it; display it.

    Returns whether it names at least half of the patches that lie inside an object.
    """
    name = "your projector reads patches as words"
    train, unseen = scenes.TRAINING_ARTISTS, scenes.VALIDATION_ARTIST
    try:
        made = drawn(number, train, 0)
        weight, bias = closed_form_projector(*patches_and_words(model, encode, made), 1e-3)
        new = drawn(60, unseen, 1)
        patches, _ = patches_and_words(model, encode, new)
        vectors = graft.word_vectors(model, encode, graft.WORDS)
        told = torch.cdist(patches @ weight.T + bias, vectors).argmin(dim=1)
    except BaseException as error:
        show(failed(name, error))
        return False
    vision = model.config.vision
    side = vision.image_size // vision.patch_size
    shares = torch.cat([graft.word_shares(scene, side) for scene in new])
    inside = (shares.amax(dim=1) > 0.9) & (shares.argmax(dim=1) < len(scenes.OBJECTS))
    right = float((told == shares.argmax(dim=1))[inside].float().mean())
    said = f"{right:.0%} of {int(inside.sum())} patches inside objects of an unseen artist"
    said += f" are nearest to the right one of {len(graft.WORDS)} words; by chance it would be 3 %"
    show(Outcome(name, CORRECT if right >= 0.5 else WRONG, f"{said}."))
    return right >= 0.5


def try_sharing(
    model: PaliGemma, processor, shared_mask: Callable, shared_positions: Callable
) -> bool:
    """Three questions in one row and each alone: the same logits? Displays the outcome."""
    name = "three questions in one row"
    rng = np.random.default_rng(2)
    scene = scenes.compose(rng, scenes.VALIDATION_ARTIST, 3)
    asked = graft.questions(rng, scene, 3)
    rows = [[graft.question_row(processor, one) for one in asked]]
    pixels = scenes.pixel_values([scene])
    ours = graft.shared_mask, graft.shared_positions
    try:
        graft.shared_mask, graft.shared_positions = shared_mask, shared_positions
        with torch.no_grad():
            together, _ = graft.shared_logits(model, pixels, rows)
    except BaseException as error:
        show(failed(name, error))
        return False
    finally:
        graft.shared_mask, graft.shared_positions = ours
    with torch.no_grad():
        alone = [graft.shared_logits(model, pixels, [[one]])[0] for one in rows[0]]
    apart = float((together - torch.cat(alone)).abs().max())
    count = processor.config.vision.num_patches + 1
    tokens = sum(len(ids) for ids, _ in rows[0])
    said = f"{count + tokens} tokens in place of {3 * count + tokens}, and the logits differ by"
    show(Outcome(name, CORRECT if apart < 1e-2 else WRONG, f"{said} {apart:.0e} at most."))
    return apart < 1e-2
