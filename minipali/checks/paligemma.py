"""Lesson 11: image tokens, merging them with text, and the prefix-LM mask."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.paligemma import merge, prefix_lm_mask


def _image_tokens_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(11)

    def tower(pixels: Tensor) -> Tensor:
        """Patches of 2 x 2, with another mean and spread than a norm would leave: (b, n, 12)."""
        return 1.7 * rearrange(pixels, "b c (y p) (x q) -> b (y x) (p q c)", p=2, q=2) + 0.6

    def case(b: int, y: int, x: int, d: int) -> tuple:
        pixels = torch.rand(b, 3, y, x, generator=random) * 2 - 1
        weight = torch.randn(d, 12, generator=random) * 0.5
        return pixels, tower, weight, torch.randn(d, generator=random)

    return [case(3, 4, 6, 7), case(2, 6, 4, 12)]


def image_tokens(
    pixels: Tensor,
    vision_tower: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor,
    *,
    before: Callable[[Tensor], Tensor] = lambda x: x,
    after: Callable[[Tensor], Tensor] = lambda x: x,
    with_bias: bool = True,
) -> Tensor:
    """(b, c, y, x) -> (b, n, d). The reference, or with more before or after the projector."""
    x = before(vision_tower(pixels))
    return after(F.linear(x, weight, bias if with_bias else None))


IMAGE_TOKENS = Exercise(
    name="image_tokens",
    reference=image_tokens,
    cases=_image_tokens_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on 2 batches of 3 and 2 pictures, with a small made-up vision"
        " tower; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "scaled like text",
            partial(image_tokens, after=lambda x: x * x.shape[-1] ** 0.5),
            "The image tokens are multiplied by sqrt(d). Only the text is: the factor belongs to"
            " the rows of the embedding table, and image tokens do not come from it.",
        ),
        Mistake(
            "divided by the scale",
            partial(image_tokens, after=lambda x: x / x.shape[-1] ** 0.5),
            "The image tokens are divided by sqrt(d). That is half of the other scheme, in which"
            " the whole sequence is multiplied by sqrt(d) later. Here only text is multiplied, so"
            " leave the image tokens as they are.",
        ),
        Mistake(
            "bias missing",
            partial(image_tokens, with_bias=False),
            "The bias is missing: x @ weight.T + bias, or F.linear(x, weight, bias).",
        ),
        Mistake(
            "GELU after the projector",
            partial(image_tokens, after=lambda x: F.gelu(x, approximate="tanh")),
            "There is a GELU after the projector. It is one linear map and nothing else; the entry"
            " `projector_hidden_act` in the published config.json is not used.",
        ),
        Mistake(
            "unit length",
            partial(image_tokens, before=lambda x: F.normalize(x, dim=-1)),
            "The vectors of the tower are brought to length 1. The contrastive loss of lesson 05"
            " does that; PaliGemma takes them as the tower gives them.",
        ),
        Mistake(
            "averaged",
            partial(image_tokens, before=lambda x: x.mean(dim=1, keepdim=True).expand_as(x)),
            "All patches have the same vector, their average. Each patch stays a token of its own:"
            " apply the map to the last axis and leave the others alone.",
        ),
    ),
    hints=(
        "Two steps: the vision tower turns pixels into one vector a patch, and one affine map turns"
        " its width into the decoder's. Nothing else.",
        "vision_tower(pixels) is (b, n, width of the tower). A weight is stored as (out, in).",
        "F.linear(x, weight, bias) works on the last axis and leaves b and n alone. No scale: text"
        " alone is multiplied by sqrt(d).",
    ),
)


def _merge_cases() -> list[tuple]:
    random = torch.Generator().manual_seed(12)

    def case(places: list[list[int]], t: int, d: int, dtype=torch.float32) -> tuple:
        is_image = torch.zeros(len(places), t, dtype=torch.bool)
        for row, own in enumerate(places):
            is_image[row, own] = True
        text = torch.randn(len(places), t, d, generator=random).to(dtype)
        image = 2 * torch.randn(len(places), len(places[0]), d, generator=random)
        return text, image, is_image

    return [
        case([[0, 1, 2, 3]] * 3, t=7, d=5),
        # padding on the left, so that the picture starts elsewhere in each row
        case([[3, 4, 5], [0, 1, 2], [1, 2, 3]], t=8, d=6),
        # text between image tokens
        case([[0, 2, 3, 6], [1, 2, 4, 5]], t=7, d=3),
        case([[0, 1], [1, 2]], t=4, d=3, dtype=torch.bfloat16),
    ]


def _merge(
    change: Callable[[Tensor], Tensor] = lambda image: image,
    after: Callable[[Tensor], Tensor] = lambda x: x,
) -> Callable:
    """Merging with the image changed before it or the sequence after it."""

    def wrong(text, image, is_image):
        return after(merge(text, change(image), is_image))

    return wrong


def _merge_by_adding(text, image, is_image):
    return text + merge(torch.zeros_like(text), image, is_image)


def _merge_in_front(text, image, is_image):
    return torch.cat((image.to(text.dtype), text[:, image.shape[1] :]), dim=1)


def _merge_one_late(text, image, is_image):
    number = is_image.cumsum(dim=1).clamp(max=image.shape[1] - 1)  # starts at 1 instead of 0
    row = torch.arange(len(text))[:, None]
    return torch.where(is_image[..., None], image[row, number].to(text.dtype), text)


MERGE = Exercise(
    name="merge",
    reference=merge,
    cases=_merge_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 4 batches: picture in front, behind padding of unequal"
        " length, with text in between, and text in bfloat16; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "last patch first",
            _merge(lambda image: image.flip(1)),
            "The image tokens are in the wrong order: the last patch comes first. The decoder knows"
            " where a patch is from its place in the row, so it sees the picture upside down.",
        ),
        Mistake(
            "patch by patch through the batch",
            _merge(lambda image: image.transpose(0, 1).reshape(image.shape)),
            "The image tokens are taken patch by patch through the batch, so the pictures are"
            " mixed. All tokens of the first picture must come first: (b, n, d), not (n, b, d).",
        ),
        Mistake(
            "one token late",
            _merge_one_late,
            "The image tokens are shifted by one: the first is missing and the last comes twice."
            " cumsum counts from 1; subtract 1 for an index.",
        ),
        Mistake(
            "always in front",
            _merge_in_front,
            "The image tokens are put at the start of each row, whatever `is_image` says. With"
            " padding on the left the picture starts later: put them where is_image is True.",
        ),
        Mistake(
            "added",
            _merge_by_adding,
            "The image tokens are added to the vectors in their places. Replace those: the row that"
            " stands for <image> in the embedding table has no meaning.",
        ),
        Mistake(
            "image scaled",
            _merge(lambda image: image * image.shape[-1] ** 0.5),
            "The image tokens are multiplied by sqrt(d) on the way. They arrive in their final"
            " scale, and so does the text: merging changes no number.",
        ),
        Mistake(
            "image divided",
            _merge(lambda image: image / image.shape[-1] ** 0.5),
            "The image tokens are divided by sqrt(d) on the way. That is half of the other scheme,"
            " in which everything is multiplied by sqrt(d) after merging. Here the text alone is"
            " multiplied, and that has happened: leave both as they are.",
        ),
        Mistake(
            "everything scaled",
            _merge(after=lambda x: x * torch.tensor(x.shape[-1] ** 0.5, dtype=x.dtype)),
            "The merged sequence is multiplied by sqrt(d). The text is scaled already, when it is"
            " embedded; this would be its second time.",
        ),
    ),
    hints=(
        "Where is_image is False, keep the text. Where it is True, take the next image token of"
        " this row, in order.",
        "is_image has the shape (b, t). is_image[..., None] is (b, t, 1), and torch stretches it"
        " over the width.",
        "text.masked_scatter(is_image[..., None], image) fills the True places with the numbers of"
        " image, in order, and leaves text alone (masked_scatter_ would change it). Both must have"
        " one dtype: image.to(text.dtype).",
    ),
)


def _not_later(s: int, queries: int) -> Tensor:
    place = torch.arange(s)
    return place[None, :] <= place[s - queries :, None]  # (t, s)


def _mask_cases() -> list[tuple]:
    def case(rows: list[str], queries: int) -> tuple:
        """A letter a token: x prefix, S suffix, . padding."""
        is_real = torch.tensor([[letter != "." for letter in row] for row in rows])
        is_suffix = torch.tensor([[letter == "S" for letter in row] for row in rows])
        return is_real, is_suffix, queries

    return [
        case(["xxxSSSS", "xxxxxSS"], 7),
        case(["..xxxSS", "xxxxxxS", ".xxSSSS"], 7),  # padded on the left
        case(["xxxSSS...", "xxxxxxSSS", "xxxxS...."], 9),  # on the right
        # with a cache: the last tokens ask, and of the earlier ones the kind is not told
        case(["..xxxxxSS", "xxxxxxxSS"], 2),
        case([".xxxxxxS", "xxxxxxxS"], 1),
    ]


def _mask(rule: Callable[..., Tensor]) -> Callable:
    """A mask by another rule.

    rule(real, real_query, suffix, suffix_query, not_later): (b, 1, s), (b, t, 1), (b, 1, s),
    (b, t, 1) and (t, s) -> bool, stretched to (b, t, s).
    """

    def wrong(is_real, is_suffix, queries):
        b, s = is_real.shape
        asking = slice(s - queries, s)
        visible = rule(
            is_real[:, None, :],
            is_real[:, asking, None],
            is_suffix[:, None, :],
            is_suffix[:, asking, None],
            _not_later(s, queries),
        )
        return visible.expand(b, queries, s)[:, None]

    return wrong


def _mask_of_the_first_queries(is_real, is_suffix, queries):
    place = torch.arange(is_real.shape[1])
    not_later = place[None, :] <= place[:queries, None]
    return (is_real[:, None, :] & (~is_suffix[:, None, :] | not_later))[:, None]


PREFIX_LM_MASK = Exercise(
    name="prefix_lm_mask",
    reference=prefix_lm_mask,
    cases=_mask_cases,
    axes="b 1 t s",
    checked=(
        "shape, dtype and every place of the mask on 5 batches: no padding, padding on the left and"
        " on the right, and the last 2 or 1 tokens alone, as with a cache; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "fully causal",
            _mask(lambda real, rq, suffix, sq, not_later: real & not_later),
            "The prefix is causal too. Picture and prompt are given at once, so all their tokens"
            " may see each other: a key of the prefix is visible to everybody, earlier or later.",
        ),
        Mistake(
            "suffix visible to everybody",
            _mask(lambda real, rq, suffix, sq, not_later: real),
            "Every token sees the whole suffix. In training the model would read the answer"
            " that it shall predict: a key of the suffix is visible only if it is not later.",
        ),
        Mistake(
            "kind of the query",
            _mask(lambda real, rq, suffix, sq, not_later: real & (~sq | not_later)),
            "The prefix sees the suffix. You asked whether the query belongs to the prefix; ask"
            " whether the key does: is_suffix[:, None, :], on the axis s.",
        ),
        Mistake(
            "padding visible",
            _mask(lambda real, rq, suffix, sq, not_later: ~suffix | not_later),
            "Padding is visible. Nobody may see it: combine the rule with `& is_real[:, None, :]`.",
        ),
        Mistake(
            "padding on the wrong axis",
            _mask(lambda real, rq, suffix, sq, not_later: rq & (~suffix | not_later)),
            "is_real is put on the axis of the queries, so padding sees nothing but is seen. It"
            " must hide keys: is_real[:, None, :], on the axis s.",
        ),
        Mistake(
            "padding sees nothing",
            _mask(lambda real, rq, suffix, sq, not_later: real & rq & (~suffix | not_later)),
            "Padding is hidden as a key, which is right, and as a query it sees nothing. Nobody"
            " reads what padding computes, but a row without any key becomes NaN in a plain"
            " softmax. The contract: the same rule for all queries, padding too.",
        ),
        Mistake(
            "the first queries",
            _mask_of_the_first_queries,
            "The t queries are taken from the start of the row. With a cache they are its last"
            " tokens: their places are s - t to s - 1.",
        ),
        Mistake(
            "upside down",
            _mask(lambda real, rq, suffix, sq, not_later: ~(real & (~suffix | not_later))),
            "The mask is upside down: True must mean that the query may look there.",
        ),
    ),
    hints=(
        "Two rules. A key must be real. And it must either belong to the prefix or not be later"
        " than the query.",
        "Places count along s. Keys have the places 0 to s - 1, the queries the last t of them."
        " place[None, :] <= place[s - queries:, None] is (t, s): `not later`.",
        "What is said about keys lies on the axis s: is_real[:, None, :] and is_suffix[:, None, :]."
        " real & (~suffix | not_later) is (b, t, s); [:, None] makes it (b, 1, t, s), one mask for"
        " all heads.",
    ),
)

EXERCISES = (IMAGE_TOKENS, MERGE, PREFIX_LM_MASK)
