"""Lesson 16: the nearest code, a gradient through a choice, a mask in its picture, and a codebook
that follows its vectors."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from minipali import masks, scenes
from minipali.checks import show
from minipali.checks.engine import CORRECT, WRONG, Exercise, Mistake, Outcome, failed
from minipali.masks import MaskCodec

# --- nearest_code ---------------------------------------------------------------------------------


def _vectors() -> list[tuple]:
    # Entries of very different lengths, far from 0, and vectors between them: of all the wrong
    # measures below each finds other entries than the distance does, in the first two cases.
    random = torch.Generator().manual_seed(144)

    def case(b: int, n: int, m: int, d: int) -> tuple:
        lengths = 0.5 + 2 * torch.rand(m, 1, generator=random)
        codebook = lengths * torch.randn(m, d, generator=random) + 1.5
        return 2 * torch.randn(b, n, d, generator=random) + 1.5, codebook

    # The last has axes of length 1, which must stay.
    return [case(2, 6, 7, 3), case(3, 5, 9, 4), case(1, 1, 6, 3)]


def _squares(v: Tensor, c: Tensor) -> Tensor:
    return (v - c).square().sum(dim=-1)


def nearest_code(
    vectors: Tensor,
    codebook: Tensor,
    *,
    distance: Callable[[Tensor, Tensor], Tensor] = _squares,
    choose: Callable[[Tensor, Tensor], Tensor] = lambda apart, _: apart.argmin(dim=-1),
) -> Tensor:
    """(b, n, d), (m, d) -> (b, n). The reference, or with one thing changed.

    distance: of vectors and entries (..., d) -> (...); choose: from the distances (b, n, m) and the
    codebook.
    """
    return choose(distance(vectors[:, :, None], codebook), codebook)


def _dot(v: Tensor, c: Tensor) -> Tensor:
    return (v * c).sum(dim=-1)


NEAREST_CODE = Exercise(
    name="nearest_code",
    reference=nearest_code,
    cases=_vectors,
    axes="b n",
    checked=(
        "the numbers of the nearest entries for batches of 2 x 6, 3 x 5 and 1 x 1 vectors, with 7,"
        " 9 and 6 entries of very different lengths; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "largest product",
            partial(nearest_code, distance=lambda v, c: -_dot(v, c)),
            "You choose the entry with the largest product with the vector. That favours long"
            " entries, however far away they are. Nearest means the smallest distance: the root of"
            " the sum of the squared differences (without the root it is the same entry).",
        ),
        Mistake(
            "smallest product",
            partial(nearest_code, distance=_dot),
            "You choose the entry with the smallest product with the vector. That is the one that"
            " points the other way. Nearest means the smallest distance: the sum of the squared"
            " differences.",
        ),
        Mistake(
            "cosine",
            partial(nearest_code, distance=lambda v, c: -F.cosine_similarity(v, c, dim=-1)),
            "You compare directions (the cosine, or entries of length 1) and leave the lengths"
            " out. Two vectors can point the same way and lie far apart. Take the distance: the"
            " sum of the squared differences.",
        ),
        Mistake(
            "absolute differences",
            partial(nearest_code, distance=lambda v, c: (v - c).abs().sum(dim=-1)),
            "You add up the absolute differences. That is a distance too, but another one. The"
            " straight line between two points comes from the sum of the *squared* differences.",
        ),
        Mistake(
            "largest difference",
            partial(nearest_code, distance=lambda v, c: (v - c).abs().amax(dim=-1)),
            "You look at the largest single difference alone. The straight line between two points"
            " comes from the sum of all squared differences.",
        ),
        Mistake(
            "differences with their signs",
            partial(nearest_code, distance=lambda v, c: (v - c).sum(dim=-1)),
            "You add up the differences with their signs, so that they cancel each other, and the"
            " smallest sum is the most negative one. Square each difference first.",
        ),
        Mistake(
            "differences added, then the sign dropped",
            partial(nearest_code, distance=lambda v, c: (v - c).sum(dim=-1).abs()),
            "You add up the differences first and drop the sign afterwards. By then +3 and -3 have"
            " cancelled each other. Square each difference first, then add.",
        ),
        Mistake(
            "lengths alone",
            partial(nearest_code, distance=lambda v, c: (v.norm(dim=-1) - c.norm(dim=-1)).abs()),
            "You compare how long the vectors are. Two vectors can be equally long and point"
            " anywhere. Subtract the vectors themselves, number by number, and square then.",
        ),
        Mistake(
            "the first number alone",
            partial(nearest_code, distance=lambda v, c: (v - c)[..., 0].square()),
            "You look at the first of the d numbers alone. All of them count: the sum of the"
            " squared differences.",
        ),
        Mistake(
            "the 2 missing",
            partial(nearest_code, distance=lambda v, c: c.square().sum(dim=-1) - _dot(v, c)),
            "The 2 is missing before the product: |v - c|^2 = |v|^2 - 2 v·c + |c|^2.",
        ),
        Mistake(
            "a plus before the product",
            partial(nearest_code, distance=lambda v, c: c.square().sum(dim=-1) + 2 * _dot(v, c)),
            "The product has the wrong sign: |v - c|^2 = |v|^2 - 2 v·c + |c|^2.",
        ),
        Mistake(
            "the farthest",
            partial(nearest_code, choose=lambda apart, _: apart.argmax(dim=-1)),
            "This is the *farthest* entry. Distances want the smallest: argmin.",
        ),
        Mistake(
            "over the vectors",
            partial(nearest_code, choose=lambda apart, _: apart.argmin(dim=1)),
            "You looked for the nearest vector of each entry. It is the other way round: each"
            " vector looks for its nearest entry, so the minimum runs over the entries, the last"
            " axis of the distances (b, n, m).",
        ),
        Mistake(
            "the entry itself",
            partial(nearest_code, choose=lambda apart, codebook: codebook[apart.argmin(dim=-1)]),
            "You return the entry itself. Its *number* is asked for: that is the word, <seg017> or"
            " so. The entry comes back from it with codebook[number].",
        ),
        Mistake(
            "vectors of length 1",
            partial(nearest_code, distance=lambda v, c: _squares(F.normalize(v, dim=-1), c)),
            "You bring the vectors to the length 1 first. That moves them, and another entry can be"
            " the nearest then. Compare them as they are.",
        ),
        Mistake(
            "all distances",
            partial(nearest_code, choose=lambda apart, _: apart),
            "You return all distances, (b, n, m). Of the m distances of each vector take the place"
            " of the smallest one: .argmin(dim=-1).",
        ),
        Mistake(
            "roots of all distances",
            partial(nearest_code, choose=lambda apart, _: apart.sqrt()),
            "You return all distances, (b, n, m). Of the m distances of each vector take the place"
            " of the smallest one: .argmin(dim=-1).",
        ),
        Mistake(
            "ones and zeros",
            partial(
                nearest_code,
                choose=lambda apart, _: F.one_hot(apart.argmin(dim=-1), apart.shape[-1]),
            ),
            "You return a row of zeros with a one in it for each vector. The place of the one is"
            " asked for: a single number.",
        ),
        Mistake(
            "counted from 1",
            partial(nearest_code, choose=lambda apart, _: apart.argmin(dim=-1) + 1),
            "The numbers are too large by 1. Entries are counted from 0: codebook[0] is the first.",
        ),
        Mistake(
            "one row for all pictures",
            partial(nearest_code, choose=lambda apart, _: apart.argmin(dim=-1).flatten()),
            "The numbers are right, but all in one row. Keep the axes b and n: reshape(b, n).",
        ),
        Mistake(
            "squeezed",
            partial(nearest_code, choose=lambda apart, _: apart.argmin(dim=-1).squeeze()),
            "The numbers are right, but axes of length 1 are lost: .squeeze() takes all of them"
            " away, also that of a batch of one picture. The result is (b, n), whatever b and n"
            " are.",
        ),
        Mistake(
            "b and n mixed",
            partial(
                nearest_code,
                choose=lambda apart, _: apart.argmin(dim=-1).mT.reshape(apart.shape[:2]),
            ),
            "The numbers are right, but not in their places: vectors of different pictures are"
            " mixed. A reshape after a transpose does that. Keep b in front.",
        ),
        *(
            Mistake(
                f"the smallest distance, {name}",
                partial(nearest_code, choose=choose),
                "You return the smallest distance. Return its place among the entries: argmin in"
                " place of min (or amin).",
            )
            for name, choose in (
                ("squared", lambda apart, _: apart.amin(dim=-1)),
                ("with the root", lambda apart, _: apart.amin(dim=-1).sqrt()),
            )
        ),
        *(
            Mistake(
                f"the {name} picture for all",
                partial(
                    nearest_code,
                    choose=lambda apart, _, one=one: apart.argmin(dim=-1)[[one]].expand(
                        len(apart), -1
                    ),
                ),
                "All pictures of the batch get the numbers of one of them. Each picture has vectors"
                " of its own: keep the axis b.",
            )
            for name, one in (("first", 0), ("last", -1))
        ),
        Mistake(
            "the first picture alone",
            partial(nearest_code, choose=lambda apart, _: apart.argmin(dim=-1)[:1]),
            "Only the first picture of the batch is there. Each picture has vectors of its own:"
            " keep the axis b.",
        ),
    ),
    crashes=(
        Mistake(
            "every vector minus the whole codebook",
            lambda vectors, codebook: nearest_code(vectors, codebook, choose=vectors - codebook),
            "vectors - codebook sets n against m, vector by entry in turn. Every vector must meet"
            " every entry: give the vectors one more axis, vectors[:, :, None], and the difference"
            " is (b, n, m, d).",
        ),
    ),
    hints=(
        "For one vector and one entry: subtract, square, add up. For all at once the difference"
        " needs four axes, (b, n, m, d).",
        "vectors[:, :, None] has the shape (b, n, 1, d), and (b, n, 1, d) - (m, d) is (b, n, m, d):"
        " every vector minus every entry.",
        "(vectors[:, :, None] - codebook).square().sum(dim=-1) are the squared distances (b, n, m)."
        " .argmin(dim=-1) gives the place of the smallest.",
    ),
)

# --- straight_through -----------------------------------------------------------------------------


def _chosen() -> list[tuple]:
    random = torch.Generator().manual_seed(17)
    return [
        tuple(torch.randn(shape, generator=random) for _ in range(2))
        for shape in ((2, 3, 4), (3, 2, 5))
    ]


def straight_through(
    vectors: Tensor,
    chosen: Tensor,
    *,
    result: Callable[[Tensor, Tensor], Tensor] = lambda v, c: v + (c - v).detach(),
) -> Tensor:
    """(b, n, d) twice -> (b, n, d). The reference, or with one thing changed."""
    return result(vectors, chosen)


def _backwards(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """`chosen`, whose gradient goes to the vectors, changed: from the gradient and both inputs."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(context, vectors, chosen):
            context.save_for_backward(vectors, chosen)
            return chosen.clone()

        @staticmethod
        def backward(context, gradient):
            return change(gradient, *context.saved_tensors), None

    return Through.apply


_BOTH = (
    " Write a sum of two parts: one that the gradient goes through, and one that it does not"
    " (.detach())."
)

STRAIGHT_THROUGH = Exercise(
    name="straight_through",
    reference=straight_through,
    cases=_chosen,
    axes="b n d",
    gradients=("vectors", "chosen"),
    checked=(
        "the values are those of chosen, vectors gets the gradient as it is, and chosen gets none,"
        " for tensors of 2 x 3 x 4 and 3 x 2 x 5; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "chosen alone",
            partial(straight_through, result=lambda v, c: c),
            "The values are right, but the whole gradient goes to chosen, as if you returned chosen"
            " itself. Then vectors gets none, and the encoder before it learns nothing." + _BOTH,
        ),
        Mistake(
            "chosen, detached",
            partial(straight_through, result=lambda v, c: c.detach()),
            "The values are right, but no gradient goes anywhere: for autograd the result is a"
            " constant, or a new tensor that hangs on nothing. That happens where .detach() or"
            " torch.no_grad() stands around all of it." + _BOTH,
        ),
        Mistake(
            "vectors alone",
            partial(straight_through, result=lambda v, c: v),
            "You return the vectors as they are. The gradient is right, and nothing was chosen: the"
            " values must be those of chosen." + _BOTH,
        ),
        Mistake(
            "no detach",
            partial(straight_through, result=lambda v, c: v + (c - v)),
            "The values are right, but all of the gradient goes to chosen, and vectors gets 0. (In"
            " vectors + (chosen - vectors) vectors stands twice, with + and with -.) Take the"
            " difference out of the graph: .detach().",
        ),
        Mistake(
            "vectors detached inside",
            partial(straight_through, result=lambda v, c: v + (c - v.detach())),
            "The values are right and vectors gets its gradient, but chosen gets one, too. It must"
            " get none here: the codebook follows its vectors in another way. Put everything that"
            " chosen stands in inside of .detach().",
        ),
        Mistake(
            "chosen detached inside",
            partial(straight_through, result=lambda v, c: v + (c.detach() - v)),
            "The values are right, but vectors stands twice outside of .detach(), with + and with"
            " -: its gradient is 0. Detach the whole difference, (chosen - vectors).detach().",
        ),
        Mistake(
            "the first vectors detached",
            partial(straight_through, result=lambda v, c: v.detach() + (c - v)),
            "The values are right, but .detach() is on the wrong part: vectors gets its gradient"
            " with a minus, and chosen gets one. vectors + (...).detach() is the right way round.",
        ),
        Mistake(
            "the other way round",
            partial(straight_through, result=lambda v, c: c + (v - c).detach()),
            "It is the wrong way round: the values are those of vectors, and the gradient goes to"
            " chosen. Forwards the entry counts, backwards the vector.",
        ),
        *(
            Mistake(
                f"gradient times {name}",
                partial(straight_through, result=_backwards(change)),
                "The values are right, but the gradient that vectors gets is multiplied by"
                " something. It must come through as it is.",
            )
            for name, change in (
                *(
                    (factor, lambda gradient, v, c, factor=factor: factor * gradient)
                    for factor in (2.0, 0.5, -1.0)
                ),
                ("vectors", lambda gradient, v, c: gradient * v),
                ("chosen", lambda gradient, v, c: gradient * c),
                ("the quotient", lambda gradient, v, c: gradient * c / v),
            )
        ),
        *(
            Mistake(
                f"not the gradient, {name}",
                partial(straight_through, result=_backwards(change)),
                "The values are right, but the gradient that vectors gets is another one than the"
                " result's: you replace it, or cut some of it off. Backwards, vectors gets the"
                " gradient of the result as it is, every number of it.",
            )
            for name, change in (
                ("ones", lambda gradient, v, c: torch.ones_like(gradient)),
                ("signs", lambda gradient, v, c: gradient.sign()),
                ("clamped", lambda gradient, v, c: gradient.clamp(-1, 1)),
                ("near 0 alone", lambda gradient, v, c: gradient * (v.abs() <= 1)),
                ("the difference", lambda gradient, v, c: v - c),
            )
        ),
        *(
            Mistake(
                f"commitment, {factor}{' by their number' if mean else ''}",
                partial(
                    straight_through,
                    result=_backwards(
                        lambda gradient, v, c, factor=factor, mean=mean: (
                            gradient + factor * (v - c) / (v.numel() if mean else 1)
                        )
                    ),
                ),
                "The values are right, but the gradient that vectors gets has the pull of another"
                " loss in it, towards chosen. That loss is a term of its own. Here the gradient of"
                " the result comes through as it is.",
            )
            for factor in (2.0, 1.0, 0.5, 0.25)
            for mean in (False, True)
        ),
        Mistake(
            "half of each",
            partial(straight_through, result=lambda v, c: (v + c.detach()) / 2),
            "The result lies between vectors and chosen. Its values are those of chosen, whole:"
            " pretending is for the gradient alone." + _BOTH,
        ),
        Mistake(
            "half of each, both learn",
            partial(straight_through, result=lambda v, c: (v + c) / 2),
            "The result lies between vectors and chosen. Its values are those of chosen, whole:"
            " pretending is for the gradient alone." + _BOTH,
        ),
        Mistake(
            "the difference turned round",
            partial(straight_through, result=lambda v, c: v + (v - c).detach()),
            "The difference has the wrong sign: vectors + (vectors - chosen) is not chosen. Write"
            " vectors + (chosen - vectors).detach().",
        ),
        Mistake(
            "twice the way through",
            partial(straight_through, result=lambda v, c: c.detach() + v),
            "You add the vectors to the entry, so the values are too large. Add something that is"
            " 0 in value and still has the gradient: vectors - vectors.detach().",
        ),
    ),
    hints=(
        "What is vectors + (chosen - vectors), in numbers? And which part of it should the gradient"
        " not see?",
        "x.detach() has the value of x, and for autograd it is a constant: no gradient goes through"
        " it.",
        "vectors + (chosen - vectors).detach(): in numbers it is chosen, for the gradient it is"
        " vectors plus a constant.",
    ),
)

# --- paste_mask -----------------------------------------------------------------------------------


def _masks() -> list[tuple]:
    random = torch.Generator().manual_seed(5)

    def mask(side: int) -> Tensor:
        rough = torch.randn(1, 1, 5, 5, generator=random)
        smooth = F.interpolate(rough, (side, side), mode="bicubic")[0, 0]
        return smooth + 0.3 * torch.randn(side, side, generator=random)

    with_zeros = mask(8)
    with_zeros[2:6, 3:8] = 0.0
    return [
        (mask(16), [3.2, 5.7, 30.6, 45.4], 50, 60),
        # Smaller than the mask, and two edges just between two pixels: 2 and 30 are the even ones.
        (mask(16), [2.5, 30.5, 12.7, 37.8], 20, 50),
        (with_zeros, [0.0, 0.0, 33.0, 27.0], 33, 27),  # the whole picture
        (mask(8), [3.1, 2.0, 3.4, 9.0], 12, 14),  # no rows after rounding
        (mask(8), [2.0, 3.1, 9.0, 3.4], 12, 14),  # no columns
    ]


def _by_pillow(how: Image.Resampling) -> Callable[[Tensor, int, int], Tensor]:
    def resize(mask: Tensor, height: int, width: int) -> Tensor:
        values = Image.fromarray(mask.numpy()).resize((width, height), how)
        return torch.from_numpy(np.array(values))

    return resize


def _by_torch(**how) -> Callable[[Tensor, int, int], Tensor]:
    def resize(mask: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(mask[None, None], (height, width), **how)[0, 0]

    return resize


_bilinear = _by_pillow(Image.Resampling.BILINEAR)


def paste_mask(
    mask: Tensor,
    box: Sequence[float],
    height: int,
    width: int,
    *,
    first: Callable[[Tensor], Tensor] = lambda mask: mask,
    resize: Callable[[Tensor, int, int], Tensor] = _bilinear,
    inside: Callable[[Tensor], Tensor] = lambda values: values > 0,
    whole: Callable[[list[float]], list[int]] = lambda edges: [round(edge) for edge in edges],
    read: Callable[[Sequence[float]], Sequence[float]] = lambda box: box,
    give: Callable[[Tensor], Tensor] = lambda picture: picture,
    also_empty: str = "",
) -> Tensor:
    """(s, s) -> bool (height, width). `masks.place_mask`, or with one thing changed.

    first: what is done before the resize; whole: edges to whole pixels; read: the box, before;
    give: the picture, at the end; also_empty: whether a box without "rows" or "columns" is filled.
    """
    y0, x0, y1, x1 = whole(read(box))
    picture = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = y1 > y0 or "rows" in also_empty, x1 > x0 or "columns" in also_empty
    if rows and columns:
        made = inside(resize(first(mask), y1 - y0, x1 - x0))
        picture[y0:y1, x0:x1] = made[: height - y0, : width - x0]
    return give(picture)


_STEPS = (
    "Its steps are as large as the mask's own pixels: you compare with 0 first and resize"
    " afterwards (or resize with the nearest pixel, which is the same). Resize the *numbers*, and"
    " only then ask which are above 0."
)
_RESIZE = (
    "The numbers are resized in another way than the contract says. It is bilinear, and where the"
    " box is smaller than the mask, an average over all the pixels that fall together:"
    " Image.Resampling.BILINEAR in Pillow, or F.interpolate(..., mode='bilinear', antialias=True)."
)
_ROUND = (
    "The edges of the box are not rounded to the nearest whole pixel. int() cuts off, floor and"
    " ceil go one way only: use round()."
)


def _numbers_of(inside: Tensor) -> Tensor:
    return (inside > 0).float()


def _turned(mask: Tensor, box: list[float], height: int, width: int) -> Tensor:
    y0, x0, y1, x1 = map(round, box)
    picture = torch.zeros(height, width, dtype=torch.bool)
    picture[y0:y1, x0:x1] = _bilinear(mask, x1 - x0, y1 - y0) > 0
    return picture


def _turned_in_numpy(mask: Tensor, box: list[float], height: int, width: int) -> Tensor:
    y0, x0, y1, x1 = map(round, box)
    picture = np.zeros((height, width), bool)
    picture[y0:y1, x0:x1] = _bilinear(mask, x1 - x0, y1 - y0).numpy() > 0
    return torch.from_numpy(picture)


PASTE_MASK = Exercise(
    name="paste_mask",
    reference=paste_mask,
    cases=_masks,
    axes="y x",
    checked=(
        "every pixel for 5 masks and boxes: larger and smaller than the mask, as large as the"
        " picture, with numbers that are just 0, with edges just between two pixels, a box without"
        " rows, and one without columns; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "compared first",
            partial(paste_mask, first=_numbers_of, inside=lambda values: values > 0.5),
            "You compare with 0 first, then resize the ones and zeros. What lies between the"
            " numbers, how near the edge is, is lost by then. Resize the *numbers*, and only then"
            " ask which are above 0.",
        ),
        *(
            Mistake(
                f"compared first, torch's resize{', sampled' if sampled else ''}",
                partial(
                    paste_mask,
                    first=_numbers_of,
                    inside=lambda values: values > 0.5,
                    resize=_by_torch(mode="bilinear", antialias=not sampled),
                ),
                "You compare with 0 first, then resize the ones and zeros. What lies between the"
                " numbers, how near the edge is, is lost by then. Resize the *numbers*, and only"
                " then ask which are above 0.",
            )
            for sampled in (False, True)
        ),
        Mistake(
            "compared first, grown",
            partial(paste_mask, first=_numbers_of),
            "You compare with 0 first, then resize the ones and zeros, and then every pixel that a"
            " one has touched counts: the object grows. (To cut off all below 0 does the same.)"
            " Resize the *numbers*, and only then ask which are above 0.",
        ),
        Mistake(
            "nearest",
            partial(paste_mask, resize=_by_pillow(Image.Resampling.NEAREST)),
            _STEPS,
        ),
        Mistake("nearest, torch's", partial(paste_mask, resize=_by_torch(mode="nearest")), _STEPS),
        Mistake(
            "nearest, torch's exact one",
            partial(paste_mask, resize=_by_torch(mode="nearest-exact")),
            _STEPS,
        ),
        Mistake(
            "above one half",
            partial(paste_mask, inside=lambda values: values > 0.5),
            "You compare with 0.5. The decoder's numbers are about 1 inside and -1 outside, so the"
            " edge of the object lies at 0.",
        ),
        Mistake(
            "zero counts",
            partial(paste_mask, inside=lambda values: values >= 0),
            "Numbers that are just 0 count as inside. Above 0 is inside: > and not >=.",
        ),
        Mistake(
            "inside out",
            partial(paste_mask, inside=lambda values: values < 0),
            "Inside and outside are exchanged: numbers above 0 are inside the object.",
        ),
        Mistake(
            "the whole box",
            partial(paste_mask, inside=lambda values: torch.ones_like(values, dtype=torch.bool)),
            "You mark the whole box, or every number that is not 0. Inside the object are the"
            " numbers above 0.",
        ),
        Mistake(
            "not smoothed when made smaller",
            partial(paste_mask, resize=_by_torch(mode="bilinear")),
            "Case 1 is right, but a mask that is made smaller is not averaged: torch's interpolate"
            " reads single pixels and leaves others out. Pass antialias=True, or use Pillow.",
        ),
        *(
            Mistake(
                f"corners on corners{', smoothed' if smooth else ''}",
                partial(
                    paste_mask,
                    resize=_by_torch(mode="bilinear", align_corners=True, antialias=smooth),
                ),
                _RESIZE,
            )
            for smooth in (False, True)
        ),
        Mistake(
            "height and width exchanged",
            partial(paste_mask, resize=lambda mask, h, w: _bilinear(mask, w, h).reshape(h, w)),
            "Height and width are exchanged in the resize. Pillow takes (width, height), torch"
            " (height, width). A reshape brings back the shape, but the rows run on from one into"
            " the next.",
        ),
        Mistake("areas", partial(paste_mask, resize=_by_torch(mode="area")), _RESIZE),
        Mistake(
            "bicubic", partial(paste_mask, resize=_by_pillow(Image.Resampling.BICUBIC)), _RESIZE
        ),
        Mistake("bicubic, torch's", partial(paste_mask, resize=_by_torch(mode="bicubic")), _RESIZE),
        Mistake(
            "Lanczos", partial(paste_mask, resize=_by_pillow(Image.Resampling.LANCZOS)), _RESIZE
        ),
        Mistake(
            "cut off",
            partial(paste_mask, whole=lambda edges: [int(edge) for edge in edges]),
            _ROUND,
        ),
        Mistake(
            "rounded outwards",
            partial(
                paste_mask,
                whole=lambda edges: [
                    *(int(np.floor(edge)) for edge in edges[:2]),
                    *(int(np.ceil(edge)) for edge in edges[2:]),
                ],
            ),
            _ROUND,
        ),
        Mistake(
            "rounded up",
            partial(paste_mask, whole=lambda edges: [int(np.ceil(edge)) for edge in edges]),
            _ROUND,
        ),
        Mistake(
            "halves rounded up",
            partial(paste_mask, whole=lambda edges: [int(np.floor(e + 0.5)) for e in edges]),
            "An edge just between two pixels, as 2.5, is rounded up. Python's `round` gives the"
            " even neighbour, here 2, and the box was cut out that way: use `round` itself.",
        ),
        Mistake(
            "height and width rounded",
            partial(
                paste_mask,
                whole=lambda edges: [
                    *(round(edge) for edge in edges[:2]),
                    *(round(edges[i - 2]) + round(edges[i] - edges[i - 2]) for i in (2, 3)),
                ],
            ),
            "You round the height and the width of the box. Round its four edges, each by itself;"
            " its height is then y1 - y0, its width x1 - x0.",
        ),
        Mistake(
            "one more row and column",
            partial(
                paste_mask,
                whole=lambda edges: [
                    *(round(edge) for edge in edges[:2]),
                    *(round(edge) + 1 for edge in edges[2:]),
                ],
            ),
            "The box has one row and one column too many. Its edges are places between pixels: it"
            " has y1 - y0 rows, and picture[y0:y1] are just these.",
        ),
        Mistake(
            "transposed",
            partial(paste_mask, first=lambda mask: mask.mT.contiguous()),
            "The mask is mirrored along its diagonal. Its first axis is y, from top to bottom."
            " (Pillow's resize takes (width, height), but its arrays are (y, x).)",
        ),
        Mistake(
            "x first",
            partial(paste_mask, read=lambda box: [box[i] for i in (1, 0, 3, 2)]),
            "The box is read as x0, y0, x1, y1. It comes as y0, x0, y1, x1: top, left, bottom,"
            " right.",
        ),
        Mistake(
            "read as height and width",
            partial(
                paste_mask, read=lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            ),
            "The last two numbers of the box are taken for its height and width. They are its lower"
            " and right edges, y1 and x1.",
        ),
        Mistake(
            "at least one pixel",
            partial(
                paste_mask,
                whole=lambda edges: [
                    *(round(edge) for edge in edges[:2]),
                    *(max(round(edges[i]), round(edges[i - 2]) + 1) for i in (2, 3)),
                ],
            ),
            "A box without rows or columns gets one all the same. It must leave the picture False.",
        ),
        *(
            Mistake(
                f"numbers bent, {name}",
                partial(paste_mask, first=bent, inside=lambda values, edge=edge: values > edge),
                "The numbers are changed before they are resized (a sigmoid, a clamp, whole"
                " numbers). What lies between two of them is then another number, and the edge"
                " moves. Resize the decoder's numbers as they are.",
            )
            for name, bent, edge in (
                ("sigmoid", Tensor.sigmoid, 0.5),
                ("tanh", Tensor.tanh, 0.0),
                ("clamp to 1", lambda mask: mask.clamp(-1, 1), 0.0),
                ("clamp to 0 and 1, half", lambda mask: mask.clamp(0, 1), 0.5),
                ("sign", Tensor.sign, 0.0),
            )
        ),
        Mistake(
            "outside True",
            partial(paste_mask, give=torch.logical_not),
            "True and False are exchanged everywhere: True is inside the object, and all that lies"
            " outside of the box is False.",
        ),
        Mistake(
            "as large as the picture",
            lambda mask, box, height, width: _bilinear(mask, height, width) > 0,
            "The mask covers the whole picture: box is not used. Resize the mask to the box, and"
            " put it there into a picture of False.",
        ),
        Mistake(
            "as large as the picture, then cut",
            lambda mask, box, height, width: (
                paste_mask(torch.ones(2, 2), box, height, width)
                & (_bilinear(mask, height, width) > 0)
            ),
            "The mask is stretched over the whole picture, and the box shows a part of it. The"
            " whole mask belongs into the box: resize it to the height and width of the box.",
        ),
        Mistake(
            "in the corner",
            lambda mask, box, height, width: paste_mask(
                mask,
                [0, 0, round(box[2]) - round(box[0]), round(box[3]) - round(box[1])],
                height,
                width,
            ),
            "The mask lies in the upper left corner of the picture. Its place begins at row y0 and"
            " column x0: picture[y0:y1, x0:x1].",
        ),
        Mistake(
            "the box alone",
            lambda mask, box, height, width: paste_mask(mask, box, height, width)[
                round(box[0]) : round(box[2]), round(box[1]) : round(box[3])
            ],
            "You return the inside of the box alone. Put it at its place in a picture of False, of"
            " the given height and width.",
        ),
        Mistake(
            "mirrored",
            partial(paste_mask, first=lambda mask: mask.flip(1)),
            "The mask is mirrored from left to right: its first column is the left one.",
        ),
        Mistake(
            "upside down",
            partial(paste_mask, first=lambda mask: mask.flip(0)),
            "The mask stands on its head: its first row is the top one.",
        ),
    ),
    crashes=(
        *(
            Mistake(
                f"no {empty}, {name}",
                partial(paste_mask, also_empty=empty, resize=resize),
                f"After rounding this box has no {empty.split()[0]}, and nothing can be resized to"
                " that. Look first: if it has no rows or no columns, the picture stays False.",
            )
            for empty in ("rows and columns", "columns")
            for name, resize in (
                ("Pillow", _bilinear),
                ("torch", _by_torch(mode="bilinear", antialias=True)),
            )
        ),
        *(
            Mistake(
                f"width and height exchanged, {name}",
                turned,
                "The resized mask has its height and width exchanged. Pillow's resize takes (width,"
                " height), torch's interpolate (height, width).",
            )
            for name, turned in (("torch", _turned), ("NumPy", _turned_in_numpy))
        ),
    ),
    hints=(
        "Four steps: whole edges; an empty picture; the mask's numbers, resized to the height and"
        " width of the box; which of them are above 0, into the box.",
        "Image.fromarray(mask.numpy()) makes a picture of numbers, and .resize((x1 - x0, y1 - y0),"
        " Image.Resampling.BILINEAR) resizes it: width first. torch.from_numpy(np.array(...)) leads"
        " back.",
        "picture = torch.zeros(height, width, dtype=torch.bool). If y1 > y0 and x1 > x0:"
        " picture[y0:y1, x0:x1] = resized > 0. Return picture.",
    ),
)

# --- follow ---------------------------------------------------------------------------------------


def follow(
    vectors: Tensor,
    codes: Tensor,
    counts: Tensor,
    sums: Tensor,
    decay: float,
    *,
    share: Callable[[float], float] = lambda decay: 1 - decay,
    keep: Callable[[float], float] = lambda decay: decay,
    share_of_counts: Callable[[float], float] | None = None,
    keep_of_counts: Callable[[float], float] | None = None,
    read: Callable[[Tensor], Tensor] = lambda batch: batch,
    chose: Callable[[Tensor, int], Tensor] = lambda codes, m: torch.bincount(codes, minlength=m),
    collect: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda empty, codes, v: empty.index_add(
        0, codes, v
    ),
    idle_rest: bool = False,
    entries: Callable = lambda new, old: new[1] / new[0][:, None],
    graph: Callable[[Tensor], Tensor] = Tensor.detach,
    scale: Callable[[int, int], float] = lambda b, n: 1.0,
    give: Callable[[tuple, tuple], tuple] = lambda made, old: made,
) -> tuple[Tensor, Tensor, Tensor]:
    """The new counts (m,), sums (m, d) and codebook (m, d). The reference, or with one thing
    changed.

    share, keep: of the batch and of what was before, for the counts the same if they have none of
    their own; read: what of the batch is looked at; entries: from the new counts and sums, and the
    old ones with the decay, the batch's counts and its sums; scale: what each vector counts; give:
    what is returned, from all that and the old ones.
    """
    share_of_one = scale(*codes.shape)
    codes, vectors = read(codes).flatten(), graph(read(vectors)).flatten(0, 1)
    here = share_of_one * chose(codes, len(counts)).to(sums.dtype)
    added = share_of_one * collect(torch.zeros_like(sums), codes, vectors)
    new_counts = (keep_of_counts or keep)(decay) * counts
    new_counts = new_counts + (share_of_counts or share)(decay) * here
    new_sums = keep(decay) * sums + share(decay) * added
    if idle_rest:
        new_counts = torch.where(here > 0, new_counts, counts)
        new_sums = torch.where(here[:, None] > 0, new_sums, sums)
    made = entries((new_counts, new_sums), (counts, sums, decay, here, added))
    return give((new_counts, new_sums, made), (counts, sums))


def _vector_by_vector(vectors: Tensor, codes: Tensor, counts: Tensor, sums: Tensor, decay: float):
    counts, sums = counts.clone(), sums.clone()
    pairs = zip(codes.flatten().tolist(), vectors.detach().flatten(0, 1), strict=True)
    for code, vector in pairs:
        counts[code] = decay * counts[code] + (1 - decay)
        sums[code] = decay * sums[code] + (1 - decay) * vector
    return counts, sums, sums / counts[:, None]


def _row_by_row(vectors: Tensor, codes: Tensor, counts: Tensor, sums: Tensor, decay: float):
    made = counts, sums, None
    for row, of_row in zip(vectors[:, None], codes[:, None], strict=True):
        made = follow(row, of_row, *made[:2], decay)
    return made


def _smoothed(made: tuple, old: tuple, eps: float) -> tuple:
    counts, sums, _ = made
    total = counts.sum()
    counts = (counts + eps) / (total + len(counts) * eps) * total
    return counts, sums, sums / counts[:, None]


def _divided_by_smoothed(made: tuple, old: tuple, eps: float) -> tuple:
    counts, sums, _ = made
    return counts, sums, _smoothed(made, old, eps)[2]


_GIVEN = type("tensor that you were given", (str,), {})


def _new_tensors(follow: Callable) -> Callable:
    """What is tried: the results, of which none may lie in the memory of an input."""

    def tried(vectors, codes, counts, sums, decay):
        made = follow(vectors, codes, counts, sums, decay)
        if not isinstance(made, (tuple, list)):
            return made
        old = {one.data_ptr() for one in (vectors, counts, sums)}
        return tuple(
            _GIVEN() if isinstance(one, Tensor) and one.data_ptr() in old else one for one in made
        )

    return tried


def _one_of_each(empty: Tensor, codes: Tensor, vectors: Tensor) -> Tensor:
    empty = empty.clone()
    for code, vector in zip(codes.tolist(), vectors, strict=True):
        empty[code] = vector
    return empty


def _means(empty: Tensor, codes: Tensor, vectors: Tensor) -> Tensor:
    here = torch.bincount(codes, minlength=len(empty)).clamp(min=1)
    return empty.index_add(0, codes, vectors) / here[:, None]


def _batch_alone(new: tuple, old: tuple) -> Tensor:
    counts, sums, _, here, added = old
    return torch.where(
        here[:, None] > 0, added / here.clamp(min=1)[:, None], sums / counts[:, None]
    )


def _mean_of_means(new: tuple, old: tuple, idle: bool = False) -> Tensor:
    counts, sums, decay, here, added = old
    entry, mean = sums / counts[:, None], added / here.clamp(min=1)[:, None]
    moved = decay * entry + (1 - decay) * mean
    return moved if idle else torch.where(here[:, None] > 0, moved, entry)


def _follow_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(29)

    def case(b: int, n: int, m: int, d: int, decay: float, last: float) -> tuple:
        counts = 0.5 + 3 * torch.rand(m, generator=random)
        counts[-1] = last
        entries = 2 * torch.randn(m, d, generator=random)
        # The last entry is chosen by nobody, and some by several.
        codes = torch.randint(m - 1, (b, n), generator=random)
        vectors = entries[codes] + torch.randn(b, n, d, generator=random)
        return vectors, codes, counts, entries * counts[:, None], decay

    # The last count has faded: whoever adds something to it moves its entry.
    return [
        case(2, 5, 4, 3, 0.6, 2.0),
        case(3, 4, 6, 2, 0.9, 1e-4),
        case(1, 3, 5, 1, 1.0, 1.0),  # nothing changes; also axes of length 1 stay
    ]


FOLLOW = Exercise(
    name="follow",
    transfer=True,
    reference=follow,
    cases=_follow_cases,
    axes="m; m d; m d",
    parts=("counts", "sums", "codebook"),
    gradients=("vectors",),
    asked=_new_tensors,
    checked=(
        "new counts, sums and codebook for 3 batches of 2 x 5, 3 x 4 and 1 x 3 vectors, decay 0.6,"
        " 0.9 and 1; some entries are chosen by several vectors and one by none; new tensors; no"
        " gradient comes out; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "decay the wrong way round",
            partial(follow, keep=lambda decay: 1 - decay, share=lambda decay: decay),
            "The shares are exchanged. decay is the share of the *old* count or sum, 1 - decay that"
            " of the new batch.",
        ),
        Mistake(
            "the batch with its full weight",
            partial(follow, share=lambda decay: 1.0),
            "The old part is multiplied by decay, and the batch comes on top with its full weight."
            " In a running mean the two shares add up to 1: decay and 1 - decay.",
        ),
        Mistake(
            "nothing forgotten",
            partial(follow, keep=lambda decay: 1.0),
            "The old counts and sums are kept whole. Then nothing is ever forgotten, and the"
            " codebook lags behind more and more. Multiply the old part by decay.",
        ),
        Mistake(
            "one vector of each entry",
            partial(follow, collect=_one_of_each),
            "Where several vectors chose the same entry, only the last of them is in the sum."
            " sums[codes] = ... and sums[codes] += ... write once for each place, not once for each"
            " vector. index_add adds all of them.",
        ),
        Mistake(
            "means for sums",
            partial(follow, collect=_means),
            "The sums get the *mean* of the vectors that chose an entry. The division comes at the"
            " end, by the counts; here add the vectors up.",
        ),
        Mistake(
            "chosen or not",
            partial(follow, chose=lambda codes, m: torch.bincount(codes, minlength=m).clamp(max=1)),
            "The counts only know whether an entry was chosen, not how often. Each vector counts"
            " once: torch.bincount(codes.flatten(), minlength=m).",
        ),
        *(
            Mistake(
                f"{what} alone {wrong}",
                partial(follow, **edit),
                f"The new {what} are not made like the {other}: {told}. Both are decay times the"
                " old one plus 1 - decay times what the batch has.",
            )
            for what, other, wrong, edit, told in (
                (
                    "counts",
                    "sums",
                    "never forgotten",
                    {
                        "keep_of_counts": lambda decay: 1.0,
                        "share_of_counts": lambda decay: 1.0,
                    },
                    "they are only added up",
                ),
                (
                    "counts",
                    "sums",
                    "kept",
                    {"keep_of_counts": lambda decay: 1.0},
                    "the old ones are kept whole",
                ),
                (
                    "counts",
                    "sums",
                    "with the whole batch",
                    {"share_of_counts": lambda decay: 1.0},
                    "the batch comes with its full weight",
                ),
                (
                    "sums",
                    "counts",
                    "never forgotten",
                    {
                        "keep_of_counts": lambda decay: decay,
                        "share_of_counts": lambda decay: 1 - decay,
                        "keep": lambda decay: 1.0,
                        "share": lambda decay: 1.0,
                    },
                    "they are only added up",
                ),
                (
                    "sums",
                    "counts",
                    "with the whole batch",
                    {
                        "share_of_counts": lambda decay: 1 - decay,
                        "share": lambda decay: 1.0,
                    },
                    "the batch comes with its full weight",
                ),
            )
        ),
        Mistake(
            "nothing forgotten, the whole batch",
            partial(follow, keep=lambda decay: 1.0, share=lambda decay: 1.0),
            "Counts and sums are only added up: decay is not used. Then nothing is ever forgotten."
            " Both are decay times the old one plus 1 - decay times what the batch has.",
        ),
        *(
            Mistake(
                f"decay always {fixed}",
                partial(
                    follow,
                    keep=lambda decay, fixed=fixed: fixed,
                    share=lambda decay, fixed=fixed: 1 - fixed,
                ),
                "The argument decay is not used: your function has a fixed number in its place.",
            )
            for fixed in (0.5, 0.9, 0.99, 0.999)
        ),
        Mistake(
            "vector by vector",
            _vector_by_vector,
            "The decay is applied once for each vector. It is applied once for each batch, to all"
            " entries: first count and add up the batch's vectors, then decay times the old ones"
            " plus 1 - decay times these.",
        ),
        Mistake(
            "picture by picture",
            _row_by_row,
            "The decay is applied once for each picture of the batch. It is applied once for the"
            " whole batch: first count and add up all b * n vectors, then decay times the old ones"
            " plus 1 - decay times these.",
        ),
        *(
            Mistake(
                f"the {name} row of the batch alone",
                partial(follow, read=read),
                "Only a part of the batch is looked at. vectors are (b, n, d): all b * n of them"
                " count.",
            )
            for name, read in (
                ("first", lambda batch: batch[:1]),
                ("last", lambda batch: batch[-1:]),
            )
        ),
        Mistake(
            "idle entries 0",
            partial(
                follow,
                entries=lambda new, old: (old[3] > 0)[:, None] * new[1] / new[0][:, None],
            ),
            "counts and sums are right, but an entry that nobody chose becomes 0 in the codebook."
            " It stays where it is: divide its new sum by its new count, as for all others.",
        ),
        *(
            Mistake(
                f"counts smoothed by {eps}",
                partial(follow, give=partial(_smoothed, eps=eps)),
                "The counts are smoothed: something is added to each, and all are scaled back to"
                " the same total. That helps where a count can be 0. Here the counts are above 0:"
                " return them as they are, and divide by them as they are.",
            )
            for eps in (1.0, 1e-1, 1e-2, 1e-3)
        ),
        *(
            Mistake(
                f"divided by counts smoothed by {eps}",
                partial(follow, give=partial(_divided_by_smoothed, eps=eps)),
                "counts and sums are right, but you divide by smoothed counts: something is added"
                " to each, and all are scaled back to the same total. That helps where a count can"
                " be 0. Here the counts are above 0: divide by them as they are.",
            )
            for eps in (1.0, 1e-1, 1e-2, 1e-3)
        ),
        Mistake(
            "given back",
            partial(
                follow,
                give=lambda made, old: tuple(
                    before if torch.equal(new, before) else new
                    for new, before in zip(made, (*old, made[2]), strict=True)
                ),
            ),
            "With decay 1 nothing changes, and you return the tensors that you were given. Return"
            " new ones: whoever writes into a result would change the input.",
        ),
        Mistake(
            "divided in place",
            partial(follow, give=lambda made, old: (made[0], made[2], made[2])),
            "The codebook is right, but what you return as the sums is the codebook, too: codebook"
            " = sums gives one tensor two names, and /= changes both. Write codebook = sums /"
            " counts[:, None].",
        ),
        Mistake(
            "idle entries rest",
            partial(follow, idle_rest=True),
            "The counts and sums of entries that nobody chose stay as they are. They fade like all"
            " others, both by the same factor, so the entry itself stays where it is. Its falling"
            " count shows that nobody needs it.",
        ),
        Mistake(
            "the batch alone",
            partial(follow, entries=_batch_alone),
            "counts and sums are right, but each entry of the codebook is the mean of this batch's"
            " vectors alone. Divide the new sums by the new counts: they remember earlier batches.",
        ),
        Mistake(
            "entries averaged with means",
            partial(follow, entries=_mean_of_means),
            "counts and sums are right, but the codebook is decay * entry + (1 - decay) * mean of"
            " the batch. There one vector moves an entry as much as a hundred do. Divide the new"
            " sums by the new counts.",
        ),
        Mistake(
            "entries averaged with means, the idle ones, too",
            partial(follow, entries=partial(_mean_of_means, idle=True)),
            "counts and sums are right, but the codebook is decay * entry + (1 - decay) * mean of"
            " the batch, and for entries that nobody chose that mean is 0. Divide the new sums by"
            " the new counts: then they stay where they are.",
        ),
        *(
            Mistake(
                f"counts helped, {name}",
                partial(follow, entries=entries),
                "counts and sums are right, but something is added to the counts before the"
                " division, or they are raised to a least value. The count of an entry that nobody"
                " needs becomes small, and then its entry moves. The counts are above 0: divide by"
                " them as they are.",
            )
            for name, entries in (
                ("at least 1", lambda new, old: new[1] / new[0].clamp(min=1)[:, None]),
                *(
                    (f"{eps} more", lambda new, old, eps=eps: new[1] / (new[0] + eps)[:, None])
                    for eps in (1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
                ),
                ("at least 0.001", lambda new, old: new[1] / new[0].clamp(min=1e-3)[:, None]),
            )
        ),
        *(
            Mistake(
                f"divided by the {what}",
                partial(follow, scale=scale),
                "The batch's counts and sums are divided by the number of pictures or vectors. Each"
                " vector counts once, as a whole.",
            )
            for what, scale in (
                ("pictures", lambda b, n: 1 / b),
                ("vectors", lambda b, n: 1 / (b * n)),
                ("vectors of a picture", lambda b, n: 1 / n),
            )
        ),
        *(
            Mistake(
                f"another order, {order}",
                partial(
                    follow,
                    give=lambda made, old, order=order: tuple(made[place] for place in order),
                ),
                "The three results come in another order: return the counts first, then the sums,"
                " then the codebook.",
            )
            for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        ),
        Mistake(
            "counts as they were",
            partial(follow, give=lambda made, old: (old[0], made[1], made[1] / old[0][:, None])),
            "The counts do not change. They fade and grow like the sums: decay * counts + (1 -"
            " decay) * how many chose.",
        ),
        Mistake(
            "divided by the old counts",
            partial(follow, entries=lambda new, old: new[1] / old[0][:, None]),
            "The new sums are divided by the old counts. Both must be of the same moment: new sums"
            " / new counts.",
        ),
        Mistake(
            "old sums",
            partial(follow, entries=lambda new, old: old[1] / new[0][:, None]),
            "The old sums are divided by the new counts. Both must be of the same moment: new sums"
            " / new counts.",
        ),
        Mistake(
            "the codebook of before",
            partial(follow, entries=lambda new, old: old[1] / old[0][:, None]),
            "counts and sums are right, but the codebook is the one of before: old sums / old"
            " counts. Divide the new ones.",
        ),
        Mistake(
            "not divided",
            partial(follow, entries=lambda new, old: new[1]),
            "The codebook is the sums. An entry is the *mean* of its vectors: divide by the counts,"
            " counts[:, None].",
        ),
        Mistake(
            "in the graph",
            partial(follow, graph=lambda vectors: vectors),
            "The numbers are right, but they hang on autograd's graph: a gradient flows from the"
            " codebook back into the vectors, and each step would hold on to all steps before it."
            " Use vectors.detach(), or torch.no_grad().",
        ),
    ),
    crashes=(
        Mistake(
            "entries that nobody chose",
            partial(follow, chose=lambda codes, m: torch.bincount(codes)),
            "There are fewer counts than entries: nobody chose the last one, and bincount stops at"
            " the largest code it meets. Tell it how many there are: minlength=len(counts).",
        ),
        Mistake(
            "no axis for d",
            partial(follow, entries=lambda new, old: new[1] / new[0]),
            "The sums are (m, d) and the counts (m,), and torch sets their last axes against each"
            " other. Each row has one count: give the counts one more axis, counts[:, None].",
        ),
    ),
    hints=(
        "First leave decay aside: how many vectors chose each entry, (m,), and what is their sum,"
        " (m, d)? Flatten the codes to (b*n,) and the vectors to (b*n, d).",
        "torch.bincount(codes.flatten(), minlength=m) counts. torch.zeros_like(sums).index_add(0,"
        " codes.flatten(), vectors.detach().flatten(0, 1)) adds up.",
        "counts = decay * counts + (1 - decay) * how many; sums = decay * sums + (1 - decay) *"
        " their sum; codebook = sums / counts[:, None]. As new tensors, without a graph.",
    ),
)

EXERCISES = (NEAREST_CODE, STRAIGHT_THROUGH, PASTE_MASK, FOLLOW)

# --- all of them at work --------------------------------------------------------------------------

SIDE = 32


def outline(sprite: Image.Image, mirrored: bool = False, angle: int = 0) -> Tensor:
    """A drawing -> its opacity from 0 to 1, stretched to a square: (SIDE, SIDE)."""
    alpha = sprite.getchannel("A")
    if mirrored:
        alpha = alpha.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = alpha.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    edges = alpha.point(lambda value: 255 * (value > 127)).getbbox()
    square = alpha.crop(edges).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)) / 255


def try_codec(
    nearest_code: Callable,
    straight_through: Callable,
    follow: Callable,
    floor: float,
    steps: int = 200,
    seed: int = 0,
) -> MaskCodec | None:
    """Train a small codec for outlines with a learner's pieces; display whether it learned.

    The encoder and the decoder learn by gradients, the codebook by `follow`. *correct* if the mean
    IoU of outlines by the validation artist, said in 16 codes and drawn again, reaches `floor`.
    Returns the codec.
    """
    name = "a codec with your pieces"
    drawn = scenes.sprites().items()
    sets = [one for own in scenes.TRAINING_ARTISTS.values() for one in own]
    looks = [(mirrored, angle) for mirrored in (False, True) for angle in (-15, 0, 15)]
    known = torch.stack(
        [outline(s, *look) for (one, _), s in drawn if one in sets for look in looks]
    )
    new = torch.stack([outline(s) for (one, _), s in drawn if one in scenes.VALIDATION_ARTIST])
    try:
        codec = _trained(known, nearest_code, straight_through, follow, steps, seed)
        codes = _said(codec, new, nearest_code)
        again, true = codec.decode(codes) > 0, new > 0.5
        shared = (again & true).flatten(1).sum(dim=1) / (again | true).flatten(1).sum(dim=1)
        used = len(codes.unique())
    except BaseException as error:
        return show(failed(name, error))
    reached = shared.mean().item()
    found = (
        f"Mean IoU {reached:.3f} with {used} of {len(codec.codebook)} codes, the floor is {floor}"
    )
    if reached >= floor:
        show(Outcome(name, CORRECT, f"{found}."))
    else:
        show(Outcome(name, WRONG, f"{found}. What do your checks say?"))
    return codec


def _said(codec: MaskCodec, outlines: Tensor, nearest_code: Callable) -> Tensor:
    """Outlines (b, y, x) -> their codes (b, 16), chosen by a learner's function."""
    return nearest_code(_rows(codec, outlines), codec.codebook)


def _rows(codec: MaskCodec, outlines: Tensor) -> Tensor:
    return rearrange(codec.encoder(outlines[:, None] * 2 - 1), "b d y x -> b (y x) d")


def _trained(
    known: Tensor,
    nearest_code: Callable,
    straight_through: Callable,
    follow: Callable,
    steps: int,
    seed: int,
) -> MaskCodec:
    torch.manual_seed(seed)
    codec = MaskCodec(channels=(8, 16, 16), width=32)
    codec.codebook.requires_grad_(False)
    learning = [one for one in codec.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    codebook = codec.codebook
    counts = torch.zeros(len(codebook))
    for step in range(steps):
        goal = known[torch.randint(len(known), (32,))]
        vectors = _rows(codec, goal)
        if step % 20 == 0 and step < steps * 2 // 3:
            # Entries that nobody needs get a vector of this batch: at first that is all of them.
            some = vectors.detach().flatten(0, 1)
            idle = counts < 0.05
            codebook = codebook.clone()
            codebook[idle] = some[torch.randint(len(some), (int(idle.sum()),))]
            counts = counts.masked_fill(idle, 1.0)
            sums = codebook * counts[:, None]
        codes = nearest_code(vectors.detach(), codebook)
        entries = codebook[codes]
        drawn = rearrange(straight_through(vectors, entries), "b (y x) d -> b d y x", y=masks.GRID)
        near = F.mse_loss(vectors, entries.detach())
        loss = F.binary_cross_entropy_with_logits(codec.decoder(drawn)[:, 0], goal) + 0.25 * near
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        counts, sums, codebook = follow(vectors, codes, counts, sums, 0.9)
    codec.codebook.data.copy_(codebook.detach())
    return codec.requires_grad_(False).eval()


def scene_in_codes(codec: MaskCodec) -> tuple[Image.Image, list[tuple[str, list[float], Tensor]]]:
    """A wide picture, and its objects as a model would say them: [(name, box, codes (16,))].

    By the validation artist. A box is (y0, x0, y1, x1) in pixels, read from four location tokens.
    """
    places = {"cat": (60, 30, 180), "guitar": (90, 220, 250), "rocket": (20, 480, 140)}
    picture, objects = Image.new("RGB", (640, 360), "#C9DDB0"), []
    [artist] = scenes.VALIDATION_ARTIST
    for name, (y, x, side) in places.items():
        sprite = scenes.sprites()[artist, name].resize((side, side))
        picture.paste(sprite, (x, y), sprite)
        left, top, right, bottom = sprite.getchannel("A").point(
            lambda value: 255 * (value > 127)
        ).getbbox()  # fmt: skip
        edges, sides = (y + top, x + left, y + bottom, x + right), (360, 640) * 2
        numbers = [round(edge / s * 1023) for edge, s in zip(edges, sides, strict=True)]
        box = [number / 1023 * s for number, s in zip(numbers, sides, strict=True)]
        objects.append((name, box, codec.encode(outline(sprite)[None])[0]))
    return picture, objects
