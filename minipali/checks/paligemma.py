"""Lesson 11: image tokens, merging them with text, the prefix-LM mask, and one for packed rows."""

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

    # In the first the weight is square, so that a turned one does not crash. In the last there is
    # one patch.
    return [case(3, 4, 6, 12), case(2, 6, 4, 7), case(1, 4, 4, 5), case(2, 2, 2, 4)]


def image_tokens(
    pixels: Tensor,
    vision_tower: Callable[[Tensor], Tensor],
    weight: Tensor,
    bias: Tensor,
    *,
    see: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    before: Callable[[Tensor], Tensor] = lambda x: x,
    matrix: Callable[[Tensor], Tensor] = lambda weight: weight,
    plus: Callable[[Tensor], Tensor] = lambda bias: bias,
    between: Callable[[Tensor], Tensor] = lambda x: x,
    after: Callable[[Tensor], Tensor] = lambda x: x,
    last: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """(b, c, y, x) -> (b, n, d). The reference, or with one thing changed."""
    x = before(vision_tower(see(pixels)))
    return last(after(between(x @ matrix(weight).T) + plus(bias)))


def _turned(weight: Tensor) -> Tensor:
    """The transposed matrix, where it fits."""
    return weight.T if len(weight) == weight.shape[1] else weight


def _rows_normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _mean_for_all(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True).expand_as(x)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


SCALED = (
    "The image tokens are multiplied by sqrt(d). Only the text is: the factor belongs to the rows"
    " of the embedding table, and image tokens do not come from it."
)
BENT = (
    "There is a GELU after the projector. It is one linear map and nothing else; the entry"
    " `projector_hidden_act` in the published config.json is not used."
)
NORMED = (
    "There is a norm beside the projector. The tower ends with its own norm, and the decoder's"
    " layers bring theirs: between them is one affine map and nothing else."
)
LENGTH_ONE = (
    "Vectors are brought to length 1. The contrastive loss of lesson 05 does that; PaliGemma takes"
    " them as the tower and the projector give them."
)
TURNED = (
    "The weight is used the wrong way round. It is stored as (out, in), and x has `in` on its last"
    " axis: x @ weight.T, or F.linear(x, weight, bias)."
)
POOLED = (
    "There is one vector a picture, the average of its patches. Each patch stays a token of its"
    " own: apply the map to the last axis and leave b and n alone."
)

IMAGE_TOKENS = Exercise(
    name="image_tokens",
    reference=image_tokens,
    cases=_image_tokens_cases,
    axes="b n d",
    checked=(
        "shape, dtype and every value on batches of 3, 2 and 1 pictures of 6, 4 and 1 patches, with"
        " a small made-up vision tower; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "scaled like text",
            partial(image_tokens, after=lambda x: x * x.shape[-1] ** 0.5),
            SCALED,
        ),
        Mistake(
            "scaled before the bias",
            partial(image_tokens, between=lambda x: x * x.shape[-1] ** 0.5),
            SCALED,
        ),
        Mistake(
            "divided by the scale",
            partial(image_tokens, after=lambda x: x / x.shape[-1] ** 0.5),
            "The image tokens are divided by sqrt(d). That is half of the other scheme, in which"
            " the whole sequence is multiplied by sqrt(d) later. Here only text is multiplied, so"
            " leave the image tokens as they are.",
        ),
        Mistake(
            "divided by the tower's scale",
            partial(image_tokens, before=lambda x: x / x.shape[-1] ** 0.5),
            "The vectors of the tower are divided by the square root of their width. They are used"
            " as they come: one affine map, and no factor.",
        ),
        Mistake(
            "multiplied by the tower's scale",
            partial(image_tokens, before=lambda x: x * x.shape[-1] ** 0.5),
            "The vectors of the tower are multiplied by the square root of their width. They are"
            " used as they come: one affine map, and no factor.",
        ),
        Mistake(
            "bias missing",
            partial(image_tokens, plus=torch.zeros_like),
            "The bias is missing: x @ weight.T + bias, or F.linear(x, weight, bias).",
        ),
        Mistake(
            "bias twice",
            partial(image_tokens, plus=lambda bias: 2 * bias),
            "The bias is added twice. F.linear(x, weight, bias) adds it already.",
        ),
        Mistake(
            "bias subtracted",
            partial(image_tokens, plus=torch.neg),
            "The bias is subtracted. It is added: x @ weight.T + bias.",
        ),
        *(
            Mistake(
                name,
                partial(image_tokens, plus=lambda bias, power=power: bias * len(bias) ** power),
                "The bias alone is multiplied, or divided, by sqrt(d). It is used as it is stored,"
                " like the weight: F.linear(x, weight, bias).",
            )
            for name, power in (("bias scaled", 0.5), ("bias divided", -0.5))
        ),
        Mistake(
            "weight reshaped",
            partial(image_tokens, matrix=lambda weight: weight.reshape(weight.shape[::-1]).T),
            "The weight is brought into the other shape with reshape or view. That leaves its"
            " numbers in a row and mixes them. Turn the matrix: weight.T, or F.linear(x, weight,"
            " bias).",
        ),
        Mistake(
            "weight turned",
            partial(image_tokens, matrix=_turned),
            TURNED,
        ),
        Mistake(
            "1 + weight",
            partial(image_tokens, matrix=lambda weight: 1 + weight),
            "1 is added to the weight, as to that of Gemma's norms. The projector's weight is used"
            " as it is stored.",
        ),
        Mistake("GELU after the projector", partial(image_tokens, after=_gelu), BENT),
        Mistake("GELU after the projector, erf form", partial(image_tokens, after=F.gelu), BENT),
        Mistake(
            "ReLU after the projector",
            partial(image_tokens, after=F.relu),
            "There is a ReLU after the projector. It is one affine map and nothing else.",
        ),
        Mistake(
            "GELU before the projector",
            partial(image_tokens, before=_gelu),
            "There is a GELU between the tower and the projector. The projector is one affine map"
            " of what the tower gives, and nothing else.",
        ),
        Mistake(
            "GELU before the projector, erf form",
            partial(image_tokens, before=F.gelu),
            "There is a GELU between the tower and the projector. The projector is one affine map"
            " of what the tower gives, and nothing else.",
        ),
        Mistake(
            "unit length",
            partial(image_tokens, before=lambda x: F.normalize(x, dim=-1)),
            LENGTH_ONE,
        ),
        Mistake(
            "unit length after",
            partial(image_tokens, after=lambda x: F.normalize(x, dim=-1)),
            LENGTH_ONE,
        ),
        Mistake("normed before", partial(image_tokens, before=_rows_normed), NORMED),
        Mistake("normed after", partial(image_tokens, after=_rows_normed), NORMED),
        Mistake(
            "averaged",
            partial(image_tokens, before=_mean_for_all),
            "All patches have the same vector, their average. Each patch stays a token of its own:"
            " apply the map to the last axis and leave the others alone.",
        ),
        Mistake(
            "one vector a picture, with its axis",
            partial(image_tokens, before=lambda x: x.mean(dim=1, keepdim=True)),
            POOLED,
        ),
        Mistake(
            "one vector a picture", partial(image_tokens, before=lambda x: x.mean(dim=1)), POOLED
        ),
        Mistake(
            "first patch dropped",
            partial(image_tokens, before=lambda x: x[:, 1:]),
            "The first patch is missing. Some towers have a class token in front; SigLIP's has"
            " none: every vector belongs to a patch.",
        ),
        Mistake(
            "first patch alone",
            partial(image_tokens, before=lambda x: x[:, 0]),
            "Only the first vector is used, as if it stood for the whole picture. SigLIP's tower"
            " has no class token: all n vectors become tokens.",
        ),
        Mistake(
            "flattened",
            partial(image_tokens, last=lambda x: x.flatten(0, 1)),
            "All pictures are in one row. Keep the batch apart: (b, n, d).",
        ),
        Mistake(
            "patches last",
            partial(image_tokens, last=lambda x: x.mT),
            "The result is (b, d, n). The width is the last axis: (b, n, d).",
        ),
        Mistake(
            "projector left out",
            lambda pixels, vision_tower, weight, bias: vision_tower(pixels),
            "These are the vectors of the tower. The projector is missing, which brings them to the"
            " width of the decoder: F.linear(x, weight, bias).",
        ),
        Mistake(
            "the first picture for all",
            partial(image_tokens, see=lambda pixels: pixels[:1].expand_as(pixels)),
            "All rows got the tokens of the first picture. Give the tower the whole batch.",
        ),
        Mistake(
            "no axis for one picture",
            partial(image_tokens, last=lambda x: x[0] if len(x) == 1 else x),
            "A batch of one picture has lost its axis b. Keep it, whatever its length:"
            " .squeeze() removes every axis of length 1.",
        ),
        Mistake(
            "no axis for one patch",
            partial(image_tokens, last=lambda x: x[:, 0] if x.shape[1] == 1 else x),
            "Pictures of one patch have lost their axis n. Keep it, whatever its length:"
            " .squeeze() removes every axis of length 1.",
        ),
        Mistake(
            "no axis of length 1",
            partial(image_tokens, last=torch.squeeze),
            "Axes of length 1 are lost: b of a single picture, and n of a single patch. Keep them:"
            " .squeeze() removes every axis of length 1.",
        ),
        Mistake(
            "pixels moved",
            partial(image_tokens, see=lambda pixels: 2 * pixels - 1),
            "The pixels are moved once more before the tower sees them. They come as it wants them,"
            " from -1 to 1.",
        ),
        Mistake(
            "pixels moved back",
            partial(image_tokens, see=lambda pixels: (pixels + 1) / 2),
            "The pixels are moved once more before the tower sees them. They come as it wants them,"
            " from -1 to 1.",
        ),
    ),
    crashes=tuple(
        Mistake(
            f"weight turned, {name}",
            lambda pixels, tower, weight, bias, by=by: by(tower(pixels), weight, bias),
            TURNED,
        )
        for name, by in {
            "@": lambda x, weight, bias: x @ weight + bias,
            "linear": lambda x, weight, bias: F.linear(x, weight.T, bias),
            "linear and bias": lambda x, weight, bias: F.linear(x, weight.T) + bias,
        }.items()
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
        case([[1, 3]], t=5, d=4),
    ]


def _merge(
    text: Tensor,
    image: Tensor,
    is_image: Tensor,
    *,
    order: Callable[[Tensor], Tensor] = lambda image: image,
    scale: Callable[[Tensor], Tensor] = lambda image: image,
    places: Callable[[Tensor], Tensor] = lambda is_image: is_image,
    under: Callable[[Tensor], Tensor] = lambda text: text,
    after: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """merge with one thing changed."""
    return after(merge(under(text), scale(order(image)), places(is_image)))


def _by_root(x: Tensor, power: float) -> Tensor:
    return x * torch.tensor(x.shape[-1] ** power, dtype=x.dtype)


def _added(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
    return text + merge(torch.zeros_like(text), image, is_image)


def _between(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
    """Half of each."""
    return torch.where(is_image[..., None], (text + merge(text, image, is_image)) / 2, text)


def _rest_first(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
    """Image tokens where the text belongs: as many as there are, then again from the first."""
    number = ((~is_image).cumsum(dim=1) - 1).clamp(min=0) % image.shape[1]
    row = torch.arange(len(text))[:, None]
    return torch.where(is_image[..., None], text, image[row, number].to(text.dtype))


def _numbered(shift: int) -> Callable:
    """By a running count of the image places that begins with another number."""

    def wrong(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
        number = (is_image.cumsum(dim=1) - 1 + shift).clamp(0, image.shape[1] - 1)
        row = torch.arange(len(text))[:, None]
        return torch.where(is_image[..., None], image[row, number].to(text.dtype), text)

    return wrong


def _block(start: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """The image tokens side by side, from start(is_image, n), (b,), in each row on."""

    def wrong(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
        n, place = image.shape[1], torch.arange(text.shape[1])
        first = start(is_image, n)[:, None]
        return merge(text, image, (place >= first) & (place < first + n))

    return wrong


def _same_place_number(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
    """By the place in the row instead of the number of the image place."""
    place = torch.arange(text.shape[1]).clamp(max=image.shape[1] - 1)
    return torch.where(is_image[..., None], image[:, place].to(text.dtype), text)


def _text_behind(text: Tensor, image: Tensor, is_image: Tensor) -> Tensor:
    rest = [own[~places] for own, places in zip(text, is_image, strict=True)]
    return torch.cat((image.to(text.dtype), torch.stack(rest)), dim=1)


def _first_place(is_image: Tensor, n: int) -> Tensor:
    return is_image.int().argmax(dim=1)


IMAGE_SCALED = (
    "The image tokens are multiplied by sqrt(d) on the way. They arrive in their final scale, and"
    " so does the text: merging changes no number."
)
FIRST_ROWS_PLACES = (
    "The image tokens of all rows are put where the first row has its places. With padding on the"
    " left each row has its own: use is_image of each row."
)
ONE_LATE = (
    "The image tokens are shifted by one. A running count of the image places (cumsum) counts from"
    " 1, and indices count from 0: subtract 1, once."
)
OTHER_DTYPE = (
    "The values are right, and the result has another dtype than the text. Bring the image tokens"
    " to it first: image.to(text.dtype)."
)

MERGE = Exercise(
    name="merge",
    reference=merge,
    cases=_merge_cases,
    axes="b t d",
    checked=(
        "shape, dtype and every value on 5 batches: picture in front, behind padding of unequal"
        " length, with text in between, text in bfloat16, and one row alone; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "last patch first",
            partial(_merge, order=lambda image: image.flip(1)),
            "The image tokens are in the wrong order: the last patch comes first. The decoder knows"
            " where a patch is from its place in the row, so it sees the picture upside down.",
        ),
        Mistake(
            "patch by patch through the batch",
            partial(_merge, order=lambda image: image.transpose(0, 1).reshape(image.shape)),
            "The image tokens are taken patch by patch through the batch, so the pictures are"
            " mixed. All tokens of the first picture must come first: (b, n, d), not (n, b, d).",
        ),
        Mistake(
            "features and patches mixed",
            partial(_merge, order=lambda image: image.mT.reshape(image.shape)),
            "Patches and features are mixed: (b, d, n) was read as (b, n, d). A reshape does not"
            " turn axes.",
        ),
        Mistake(
            "pictures in other rows",
            partial(_merge, order=lambda image: image.flip(0)),
            "The pictures are in each other's rows, from the last to the first. Row i gets picture"
            " i.",
        ),
        Mistake(
            "the first picture for all",
            partial(_merge, order=lambda image: image[:1].expand_as(image)),
            "All rows got the first picture. Each row has its own: image[i] for row i.",
        ),
        Mistake(
            "the first patch for all places",
            partial(_merge, order=lambda image: image[:, :1].expand_as(image)),
            "All image places got the first image token of their row. The places take the tokens in"
            " order, one each.",
        ),
        Mistake(
            "the mean for all places",
            partial(_merge, order=_mean_for_all),
            "All image places got the mean of the picture. The places take the image tokens in"
            " order, one each.",
        ),
        Mistake("one token late", _numbered(1), ONE_LATE),
        Mistake("one token early", _numbered(-1), ONE_LATE),
        Mistake(
            "one token round",
            partial(_merge, order=lambda image: image.roll(1, 1)),
            "The image tokens are shifted by one, and the last comes first. The places take them in"
            " order, from image[:, 0] on.",
        ),
        Mistake(
            "one token round, the other way",
            partial(_merge, order=lambda image: image.roll(-1, 1)),
            "The image tokens are shifted by one, and the first comes last. The places take them in"
            " order, from image[:, 0] on.",
        ),
        Mistake(
            "the number of the place",
            _same_place_number,
            "Place j got image token j. The places are counted among themselves: the first True of"
            " a row takes image token 0, the next one token 1, wherever they stand.",
        ),
        Mistake(
            "always in front",
            _block(lambda is_image, n: torch.zeros(len(is_image), dtype=torch.long)),
            "The image tokens are put at the start of each row, whatever `is_image` says. With"
            " padding on the left the picture starts later: put them where is_image is True.",
        ),
        Mistake(
            "picture first, then all the text",
            _text_behind,
            "The image tokens come first and all text behind them, so the row has another order."
            " Nothing moves: each image token goes where is_image is True, and text stays in its"
            " place.",
        ),
        Mistake(
            "inserted",
            lambda text, image, is_image: torch.cat((image.to(text.dtype), text), dim=1),
            "The row has become longer: the image tokens are put in front of it. They *replace* the"
            " vectors at the places where is_image is True.",
        ),
        Mistake(
            "always at the end",
            _block(lambda is_image, n: torch.full((len(is_image),), is_image.shape[1] - n)),
            "The image tokens are put at the end of each row, whatever `is_image` says. Put them"
            " where it is True.",
        ),
        Mistake(
            "a block from the first place on",
            _block(_first_place),
            "The image tokens are put side by side, from the first image place on. The places need"
            " not be neighbours: put one token at each True.",
        ),
        Mistake(
            "a block from the first row's first place on",
            _block(lambda is_image, n: _first_place(is_image, n)[:1].expand(len(is_image))),
            FIRST_ROWS_PLACES,
        ),
        Mistake(
            "the first row's places",
            partial(_merge, places=lambda is_image: is_image[:1].expand_as(is_image)),
            FIRST_ROWS_PLACES,
        ),
        Mistake(
            "added",
            _added,
            "The image tokens are added to the vectors in their places. Replace those: the row that"
            " stands for <image> in the embedding table has no meaning.",
        ),
        Mistake(
            "half of each",
            _between,
            "The image tokens and the vectors in their places are averaged. Replace those: the row"
            " that stands for <image> in the embedding table has no meaning.",
        ),
        Mistake(
            "nothing merged",
            lambda text, image, is_image: text.clone(),
            "This is the text as it came: no image token is in it. Are you returning the new"
            " tensor? masked_scatter makes one and leaves `text` alone.",
        ),
        Mistake(
            "text lost",
            partial(_merge, under=torch.zeros_like),
            "The image tokens are in their places, and everything else is 0. Where is_image is"
            " False, the text stays.",
        ),
        Mistake(
            "the wrong way round",
            _rest_first,
            "The image tokens are where the text belongs. Where is_image is *True* the image token"
            " comes in; where it is False the text stays.",
        ),
        Mistake(
            "image scaled",
            partial(_merge, scale=lambda image: image * image.shape[-1] ** 0.5),
            IMAGE_SCALED,
        ),
        Mistake(
            "image divided",
            partial(_merge, scale=lambda image: image / image.shape[-1] ** 0.5),
            "The image tokens are divided by sqrt(d) on the way. That is half of the other scheme,"
            " in which everything is multiplied by sqrt(d) after merging. Here the text alone is"
            " multiplied, and that has happened: leave both as they are.",
        ),
        Mistake(
            "text scaled",
            partial(_merge, under=partial(_by_root, power=0.5)),
            "The text is multiplied by sqrt(d). That has happened already, when it was embedded:"
            " merging changes no number.",
        ),
        Mistake(
            "everything scaled",
            partial(_merge, after=partial(_by_root, power=0.5)),
            "The merged sequence is multiplied by sqrt(d). The text is scaled already, when it is"
            " embedded; this would be its second time.",
        ),
        Mistake(
            "image of length 1",
            partial(_merge, scale=lambda image: F.normalize(image, dim=-1)),
            "The image tokens are brought to length 1 on the way. Merging changes no number.",
        ),
        Mistake(
            "in float32",
            lambda text, image, is_image: merge(text.float(), image, is_image),
            OTHER_DTYPE,
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


# --- the mask -------------------------------------------------------------------------------------


def _rows_of(letters: list[str]) -> tuple[Tensor, Tensor]:
    """is_real and is_suffix. A letter a token: x prefix, S suffix, . padding, : padding as"
    " suffix."""
    return tuple(
        torch.tensor([[letter in kinds for letter in row] for row in letters])
        for kinds in ("xS", "S:")
    )


def _mask_cases() -> list[tuple]:
    return [
        (*_rows_of(["xxxSSSS", "xxxxxSS"]), 7),
        (*_rows_of(["..xxxSS", "xxxxxxS", "::xSSSS"]), 7),  # padded on the left
        (*_rows_of(["xxxSSS...", "xxxxxxSSS", "xxxxS::::"]), 9),  # on the right
        # with a cache: the last tokens ask
        (*_rows_of(["..xxxxxSS", "xxxxxSSSS", "::xxxxxxS"]), 2),
        (*_rows_of([".xxxxxxS", "xxxxxSSS"]), 1),
        (*_rows_of(["..xxxSS"]), 3),
    ]


def _mask(
    is_real: Tensor,
    is_suffix: Tensor,
    queries: int,
    *,
    real: Callable[[Tensor, Tensor], Tensor] = lambda key, query: key,
    prefix: Callable[[Tensor, Tensor], Tensor] = lambda key, query: ~key,
    order: Callable[[Tensor, Tensor], Tensor] = torch.le,
    join: Callable[[Tensor, Tensor], Tensor] = torch.logical_or,
    also: Callable[[Tensor, Tensor], Tensor | bool] = lambda key, query: True,
    first: Callable[[int, int], int] = lambda s, t: s - t,
    rows: Callable[[Tensor], Tensor] = lambda given: given,
    last: Callable[[Tensor], Tensor] = lambda visible: visible[:, None],
) -> Tensor:
    """prefix_lm_mask with one thing changed.

    real, prefix, also: of what is known of a key (b, 1, s) and of a query (b, t, 1); order: of
    their places; first: the place of the first query of t.
    """
    s = is_real.shape[1]
    asking = torch.arange(queries) + first(s, queries)
    place = torch.arange(s)

    def both(given: Tensor) -> tuple[Tensor, Tensor]:
        return rows(given)[:, None, :], rows(given)[:, asking.clamp(0, s - 1), None]

    rule = join(prefix(*both(is_suffix)), order(place[None, None, :], asking[None, :, None]))
    visible = real(*both(is_real)) & rule & also(*both(is_suffix))
    return last(visible.expand(len(is_real), -1, -1))


def _never(key: Tensor, query: Tensor) -> Tensor:
    return torch.zeros_like(key | query)


def _always(key: Tensor, query: Tensor) -> Tensor:
    return ~_never(key, query)


def _everyone(key: Tensor, query: Tensor) -> Tensor:
    """Whatever numbers they have."""
    return (key == key) & (query == query)


def _to_add(visible: Tensor, least: float) -> Tensor:
    """0 where visible, a very negative number elsewhere: (b, 1, t, s)."""
    return torch.zeros(visible.shape).masked_fill(~visible, least)[:, None]


LEAST = (float("-inf"), torch.finfo(torch.float32).min, -1e9, -1e4)


def _prefix_by_number(whole_row: bool) -> Callable:
    """The prefix taken for the first places of a row, as many as it has tokens."""

    def wrong(is_real: Tensor, is_suffix: Tensor, queries: int) -> Tensor:
        place = torch.arange(is_real.shape[1])
        prefix = ~is_suffix if whole_row else is_real & ~is_suffix
        begins = place < prefix.sum(dim=1, keepdim=True)  # (b, s)
        not_later = place <= place[len(place) - queries :, None]
        return (is_real[:, None, :] & (begins[:, None, :] | not_later))[:, None]

    return wrong


def _by_count(is_real: Tensor, number: Tensor, queries: int) -> Tensor:
    """Keys visible whose number of suffix tokens so far, (b, s), is not above the query's."""
    not_above = number[:, None, :] <= number[:, -queries:, None]
    return (is_real[:, None, :] & not_above)[:, None]


OTHER_KIND = "True where the query may look. `attend` puts -inf where it is False."
KEYS_NOT_QUERIES = (
    "Both rules ask about keys: is_real[:, None, :] and is_suffix[:, None, :] lie on the axis s."
)
PREFIX_LM_MASK = Exercise(
    name="prefix_lm_mask",
    reference=prefix_lm_mask,
    cases=_mask_cases,
    axes="b 1 t s",
    checked=(
        "shape, dtype and every place of the mask on 6 batches: no padding, padding on the left and"
        " on the right, and the last 3, 2 or 1 tokens alone, as with a cache; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "fully causal",
            partial(_mask, prefix=_never),
            "The prefix is causal too. Picture and prompt are given at once, so all their tokens"
            " may see each other: a key of the prefix is visible to everybody, earlier or later.",
        ),
        Mistake(
            "suffix visible to everybody",
            partial(_mask, order=_always),
            "Every token sees the whole suffix. In training the model would read the answer"
            " that it shall predict: a key of the suffix is visible only if it is not later.",
        ),
        Mistake(
            "suffix sees all of itself",
            partial(_mask, prefix=lambda key, query: ~key | query),
            "The suffix sees all of itself, also what is later. In training each token would read"
            " the next one, which it shall predict: a key of the suffix is visible only if it is"
            " not later.",
        ),
        Mistake(
            "kind of the query",
            partial(_mask, prefix=lambda key, query: ~query),
            "The prefix sees the suffix. You asked whether the query belongs to the prefix; ask"
            " whether the key does: is_suffix[:, None, :], on the axis s.",
        ),
        Mistake(
            "kind of key and query",
            partial(_mask, prefix=lambda key, query: ~key & ~query, also=torch.eq),
            "The suffix does not see the prefix. It must read picture and prompt, or it answers"
            " nothing: a key of the prefix is visible to everybody.",
        ),
        Mistake(
            "prefix visible to the prefix",
            partial(_mask, prefix=lambda key, query: ~key & ~query),
            "You also ask whether the *query* belongs to the prefix, and padding in front that is"
            " marked as suffix sees too little. Rule 2 is about the key: ~is_suffix[:, None, :].",
        ),
        Mistake(
            "suffix sees the prefix alone",
            partial(_mask, order=_never),
            "The suffix sees the prefix alone, and not what it has said itself. Two ways make a key"
            " visible: it belongs to the prefix, *or* it is not later than the query.",
        ),
        Mistake(
            "suffix sees the prefix and itself",
            partial(_mask, order=torch.eq),
            "A token of the suffix sees the prefix and itself, and not the suffix before it. A key"
            " of the suffix is visible if it is *not later*: <=, not ==.",
        ),
        Mistake(
            "the kinds confused",
            partial(_mask, prefix=lambda key, query: key),
            "Prefix and suffix are confused: the suffix is visible to everybody and the prefix is"
            " causal. It is the prefix that everybody sees: ~is_suffix.",
        ),
        Mistake(
            "and for or",
            partial(_mask, join=torch.logical_and),
            "Both conditions of rule 2 are asked for at once. One is enough: a key belongs to the"
            " prefix, *or* (|) it is not later than the query.",
        ),
        Mistake(
            "strictly earlier",
            partial(_mask, order=torch.lt),
            "A token of the suffix does not see itself. *Not later* includes the query's own place:"
            " <=, not <. (Or the places of the queries begin one too early: they are s - t to s"
            " - 1.)",
        ),
        Mistake(
            "later",
            partial(_mask, order=torch.ge),
            "The suffix looks the wrong way: it sees what is later, and not what is earlier. The"
            " key must be not later than the query: place of the key <= place of the query.",
        ),
        Mistake(
            "padding visible",
            partial(_mask, real=_always),
            "Padding is visible. Nobody may see it: combine the rule with `& is_real[:, None, :]`.",
        ),
        Mistake(
            "padding on the wrong axis",
            partial(_mask, real=lambda key, query: query),
            "is_real is put on the axis of the queries, so padding sees nothing but is seen. It"
            " must hide keys: is_real[:, None, :], on the axis s.",
        ),
        Mistake(
            "padding sees nothing",
            partial(_mask, real=torch.logical_and),
            "Padding is hidden as a key, which is right, and as a query it sees nothing. Nobody"
            " reads what padding computes, but a row without any key becomes NaN in a plain"
            " softmax. The contract: the same rule for all queries, padding too.",
        ),
        Mistake(
            "padding for real",
            partial(_mask, real=lambda key, query: ~key),
            "is_real is upside down: padding is seen, and what is real is hidden. A key must be"
            " *real*.",
        ),
        Mistake(
            "the two rules joined by or",
            lambda is_real, is_suffix, queries: (
                _mask(is_real, is_suffix, queries, real=_always) | is_real[:, None, None, :]
            ),
            "The two rules are joined by `or`. Both must hold: the key is real, *and* it belongs to"
            " the prefix or is not later than the query.",
        ),
        Mistake(
            "padding of the prefix visible",
            lambda is_real, is_suffix, queries: (
                _mask(is_real, is_suffix, queries) | ~is_suffix[:, None, None, :]
            ),
            "Padding is visible where it is not marked as suffix. Rule 1 holds for every key: real"
            " & (prefix | not_later).",
        ),
        Mistake(
            "suffix counted, padding too",
            lambda is_real, is_suffix, queries: _by_count(
                is_real, is_suffix.cumsum(dim=1), queries
            ),
            "The suffix is counted, and padding in front that is marked as suffix counts as well:"
            " such padding sees too little. Count what is real: (is_suffix & is_real).cumsum(1).",
        ),
        Mistake(
            "queries of the prefix see no suffix",
            lambda is_real, is_suffix, queries: (
                _mask(is_real, is_suffix, queries)
                & ~(~is_suffix[:, None, -queries:, None] & is_suffix[:, None, None, :])
            ),
            "You also ask whether the *query* belongs to the prefix. The rules are about keys: they"
            " hold for every query alike, and padding behind a suffix sees it, too.",
        ),
        Mistake(
            "brackets missing",
            lambda is_real, is_suffix, queries: (
                _mask(is_real, is_suffix, queries, order=_never)
                | _mask(is_real, is_suffix, queries, real=_always, prefix=_never)
            ),
            "Brackets are missing: `&` comes before `|`, so the rule about padding holds for the"
            " prefix alone, and padding is visible where it is not later. Write real & (prefix |"
            " not_later).",
        ),
        Mistake(
            "the first queries",
            partial(_mask, first=lambda s, t: 0),
            "The t queries are taken from the start of the row. With a cache they are its last"
            " tokens: their places are s - t to s - 1.",
        ),
        Mistake(
            "one place late",
            partial(_mask, first=lambda s, t: s - t + 1),
            "The suffix sees one token too many, the one that comes next. Either the comparison or"
            " the places of the queries are off by one: these are s - t to s - 1.",
        ),
        Mistake(
            "itself always visible",
            lambda is_real, is_suffix, queries: (
                _mask(is_real, is_suffix, queries)
                | torch.eye(is_real.shape[1], dtype=torch.bool)[-queries:]
            ),
            "Padding sees itself. Rule 1 has no exception: a key must be real. (Whatever is real"
            " sees itself by the rules.)",
        ),
        Mistake(
            "all tokens ask",
            lambda is_real, is_suffix, queries: _mask(is_real, is_suffix, is_real.shape[1]),
            "All s tokens ask. Only the last `queries` do: the mask has t = queries rows.",
        ),
        *(
            Mistake(
                f"the {which} keys alone",
                lambda is_real, is_suffix, queries, cut=cut: _mask(
                    cut(is_real, queries), cut(is_suffix, queries), queries
                ),
                "The mask has as many keys as queries. With a cache the last `queries` tokens ask,"
                " and all s are keys: (b, 1, t, s).",
            )
            for which, cut in {
                "last": lambda given, t: given[:, -t:],
                "first": lambda given, t: given[:, :t],
            }.items()
        ),
        Mistake(
            "prefix counted from the first place",
            _prefix_by_number(whole_row=False),
            "The prefix is taken for the first places of a row, as many as it has tokens. With"
            " padding on the left it starts later: ask is_suffix about each key.",
        ),
        Mistake(
            "prefix counted, padding too",
            _prefix_by_number(whole_row=True),
            "The prefix is taken for the first places of a row, as many as are not suffix. Padding"
            " stands on either side and may be marked as suffix: ask is_suffix about each key.",
        ),
        Mistake(
            "the first row for all",
            partial(_mask, rows=lambda given: given[:1].expand_as(given)),
            "All rows of the batch have the mask of the first. Prompts and answers differ in"
            " length: keep the axis b.",
        ),
        Mistake(
            "everything visible",
            partial(_mask, real=_always, order=_always),
            "Everything is visible. There are two rules: no padding, and of the suffix only what is"
            " not later than the query.",
        ),
        Mistake(
            "upside down",
            partial(_mask, last=lambda visible: ~visible[:, None]),
            "The mask is upside down: True must mean that the query may look there.",
        ),
        Mistake(
            "queries and keys turned",
            lambda is_real, is_suffix, queries: _mask(is_real, is_suffix, is_real.shape[1]).mT[
                :, :, -queries:
            ],
            f"The axes of queries and keys are exchanged: (b, 1, s, t). {KEYS_NOT_QUERIES}",
        ),
        Mistake(
            "no axis for the heads",
            partial(_mask, last=lambda visible: visible),
            "The axis of the heads is missing: (b, t, s). All heads share one mask, so its length"
            " is 1: mask[:, None].",
        ),
        *(
            Mistake(
                f"numbers to add, {least}",
                partial(_mask, last=partial(_to_add, least=least)),
                f"These are numbers to be added to the scores. The result is bool: {OTHER_KIND}",
            )
            for least in LEAST
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

# --- the transfer piece: several rows in one sequence ---------------------------------------------


def packed_mask(
    row: Tensor,
    is_suffix: Tensor,
    *,
    same: Callable[[Tensor, Tensor], Tensor] = torch.eq,
    real: Callable[[Tensor, Tensor], Tensor] = lambda key, query: key != 0,
    prefix: Callable[[Tensor, Tensor], Tensor] = lambda key, query: ~key,
    order: Callable[[Tensor, Tensor], Tensor] = torch.le,
    join: Callable[..., Tensor] = lambda same, prefix, order: same & (prefix | order),
    own: Callable[[Tensor, Tensor], Tensor] = lambda padding, itself: padding & itself,
    rows: Callable[[Tensor], Tensor] = lambda given: given,
    numbers: Callable[[Tensor], Tensor] = lambda row: row,
    last: Callable[[Tensor], Tensor] = lambda visible: visible[:, None],
) -> Tensor:
    """(b, s), (b, s) -> bool (b, 1, s, s). The reference, or with one thing changed.

    same, real, prefix: of what is known of a key (b, 1, s) and of a query (b, s, 1); order: of
    their places; own: what padding sees.
    """
    row, is_suffix, place = numbers(rows(row)), rows(is_suffix), torch.arange(row.shape[1])

    def both(given: Tensor) -> tuple[Tensor, Tensor]:
        return given[..., None, :], given[..., :, None]

    rule = join(same(*both(row)), prefix(*both(is_suffix)), order(*both(place)))
    padding = (row == 0)[:, :, None].expand(rule.shape)  # as a query
    itself = torch.eye(len(place), dtype=torch.bool).expand(rule.shape)
    return last((rule & real(*both(row))) | own(padding, itself))


def _packed_cases() -> list[tuple]:
    def case(*rows: tuple[str, str]) -> tuple:
        """Of each sequence the rows' numbers, a letter a token, and the kinds.

        a is 1, b 4, c 9: some numbers are larger than there are rows. y and z are one in 16 bits.
        """
        number = {"y": 2048, "z": 2049} | {"0abcdefghi"[i]: i**2 for i in range(10)}
        numbers = torch.tensor([[number[one] for one in n] for n, _ in rows])
        return numbers, _rows_of([kinds for _, kinds in rows])[1]

    return [
        case(("bbbbaaaaa", "xxSSxxxSS"), ("aaaaabbbc", "xxxSSxxSx")),
        # numbers in any order, and another number of rows in each sequence
        case(("dddgggbbb", "xxSxSSxxS"), ("hhhhhhhhh", "xxxxxSSSS"), ("cccaaaaie", "xxSxxSSxx")),
        # padding at the end, in front and in between, as prefix or as suffix
        case(("bbbbaaa00", "xxSSxSS.."), ("00yyyzz00", "::xSSxS.:"), ("aa00ccc0f", "xS:.xxS:x")),
        case(("aab00", "xSx..")),
    ]


WALLS = (
    "Write the rule for one row in brackets, and ask for the same row as well: same_row & (prefix |"
    " not_later)."
)


def _nothing(padding: Tensor, itself: Tensor) -> Tensor:
    return padding & ~padding


def _rows_counted(row: Tensor, is_suffix: Tensor, count: Callable, alone: bool) -> Tensor:
    """Only the numbers from 1 to the count of rows; alone: the others see themselves."""
    known = (row <= count(row))[:, None, :, None]
    itself = torch.eye(row.shape[1], dtype=torch.bool) & alone
    return torch.where(known, packed_mask(row, is_suffix), itself)


def _each_counted(row: Tensor) -> Tensor:
    """How many rows each sequence has: (b, 1)."""
    return torch.tensor([len(one[one != 0].unique()) for one in row])[:, None]


ROWS_COUNTED = {
    "in each sequence": _each_counted,
    "in each sequence and one": lambda row: _each_counted(row) + 1,
    "in all": lambda row: len(row[row != 0].unique()),
}


def _rows_in_front(row: Tensor, is_suffix: Tensor, real: Callable) -> Tensor:
    """The first places taken for the rows, as many as are no padding; the others see themselves."""
    front = torch.arange(row.shape[1]) < (row != 0).sum(dim=1, keepdim=True)  # (b, s)
    known = front[:, None, :, None] & front[:, None, None, :]
    itself = torch.eye(row.shape[1], dtype=torch.bool)
    return torch.where(known, packed_mask(row, is_suffix, real=real), False) | itself


def _padding_at(row: Tensor, ends: str) -> Tensor:
    """True at the padding in "front" of all rows, and "behind" them: (b, s)."""
    front = row.cumsum(dim=1) == 0
    behind = row.flip(1).cumsum(dim=1).flip(1) == 0
    return (front & ("front" in ends)) | (behind & ("behind" in ends))


def _rest_is_a_row(row: Tensor, is_suffix: Tensor, ends: str, seen: bool) -> Tensor:
    """Padding that is not at these ends taken for a row, which sees all padding, or its own."""
    known = _padding_at(row, ends)
    zero = row == 0
    see = (zero & ~known)[:, None, :, None] & (zero if seen else zero & ~known)[:, None, None, :]
    return packed_mask(row, is_suffix) | (see & packed_mask(torch.ones_like(row), is_suffix))


def _by_the_suffix(row: Tensor, is_suffix: Tensor) -> Tensor:
    """A row taken to begin where suffix turns to prefix."""
    begins = F.pad(is_suffix[:, :-1] & ~is_suffix[:, 1:], (1, 0))
    return packed_mask((begins.cumsum(dim=1) + 1) * (row != 0), is_suffix)


def _stretches(row: Tensor) -> Tensor:
    """1 for the first stretch of one number, 2 for the next, and so on."""
    return F.pad((row.diff(dim=1) != 0).cumsum(dim=1), (1, 0)) + 1


def _some_blind(row: Tensor, is_suffix: Tensor, suffix: bool) -> Tensor:
    """Padding that is marked as suffix, or as prefix, sees nothing."""
    blind = (row == 0) & (is_suffix if suffix else ~is_suffix)
    return packed_mask(row, is_suffix) & ~blind[:, None, :, None]


PADDING_SEEN = (
    "Padding is visible to the rows. Nobody may see it but itself: a key must have a number other"
    " than 0."
)
FIRST_SEQUENCE = (
    "All sequences of the batch have the mask of the first. Each is packed in its own way: keep the"
    " axis b."
)

PACKED_MASK = Exercise(
    name="packed_mask",
    transfer=True,
    reference=packed_mask,
    cases=_packed_cases,
    axes="b 1 s s",
    checked=(
        "shape, dtype and every place of the mask on 4 batches of 1 to 3 sequences that hold 1 to 4"
        " rows with numbers in any order, and padding in front, in between and at the end; inputs"
        " unchanged"
    ),
    mistakes=(
        Mistake(
            "no walls",
            partial(packed_mask, same=_everyone),
            "The rows see each other: one question would read another's picture and answer. A key"
            f" must belong to the row of the query. {WALLS}",
        ),
        Mistake(
            "earlier rows visible",
            partial(packed_mask, same=torch.le),
            "Rows with smaller numbers are visible. The numbers only tell rows apart: a key must"
            " belong to the *same* row, ==.",
        ),
        Mistake(
            "later rows visible",
            partial(packed_mask, same=torch.ge),
            "Rows with larger numbers are visible. The numbers only tell rows apart: a key must"
            " belong to the *same* row, ==.",
        ),
        Mistake(
            "other rows visible",
            partial(packed_mask, same=torch.ne),
            "Each row sees all rows but its own. A key must belong to the *same* row: ==.",
        ),
        Mistake(
            "prefixes of other rows visible",
            partial(packed_mask, join=lambda same, prefix, order: prefix | (same & order)),
            f"The prefixes of the other rows are visible: `same row` counts for the suffix alone."
            f" {WALLS}",
        ),
        Mistake(
            "prefixes of earlier rows visible",
            partial(
                packed_mask,
                join=lambda same, prefix, order: (same & (prefix | order)) | (prefix & order),
            ),
            f"The prefixes of earlier rows are visible. {WALLS}",
        ),
        Mistake(
            "prefix and suffix apart",
            lambda row, is_suffix: (
                packed_mask(row, is_suffix)
                & (is_suffix[:, None, :, None] == is_suffix[:, None, None, :])
            ),
            "The suffix does not see its prefix. It must read picture and prompt of its own row: a"
            " key of the prefix is visible to the whole row.",
        ),
        Mistake(
            "suffixes of other rows visible",
            partial(packed_mask, join=lambda same, prefix, order: (same & prefix) | order),
            "All that is earlier is visible, in other rows too: `same row` counts for the prefix"
            f" alone. {WALLS}",
        ),
        Mistake(
            "joined by or",
            partial(packed_mask, join=lambda same, prefix, order: same | prefix | order),
            f"All conditions are joined by `or`, and one of them lets a key through. {WALLS}",
        ),
        Mistake(
            "joined by and",
            partial(packed_mask, join=lambda same, prefix, order: same & prefix & order),
            "All conditions are asked for at once. In the same row one of two is enough: the key"
            " belongs to the prefix, *or* it is not later than the query.",
        ),
        Mistake(
            "the whole row",
            partial(packed_mask, join=lambda same, prefix, order: same),
            "A row sees all of itself, its whole answer too. In training the model would read what"
            f" it shall predict. {WALLS}",
        ),
        Mistake(
            "causal in its row",
            partial(packed_mask, prefix=_never),
            "The prefix is causal. Picture and prompt of a row are given at once: a key of the"
            f" prefix is visible to its whole row. {WALLS}",
        ),
        Mistake(
            "suffix sees the prefix alone",
            partial(packed_mask, order=_never),
            "The suffix of a row sees its prefix alone, and not what it has said itself. In the"
            " same row a key is visible if it belongs to the prefix *or* is not later.",
        ),
        Mistake(
            "suffix sees all of itself",
            partial(packed_mask, prefix=lambda key, query: ~key | query),
            "The suffix of a row sees all of itself, also what is later. A key of the suffix is"
            " visible only if it is not later than the query.",
        ),
        Mistake(
            "kind of the query",
            partial(packed_mask, prefix=lambda key, query: ~query),
            "The prefix sees its suffix. You asked whether the query belongs to the prefix; ask"
            " whether the key does: is_suffix[:, None, :].",
        ),
        Mistake(
            "the kinds confused",
            partial(packed_mask, prefix=lambda key, query: key),
            "Prefix and suffix are confused: a row sees its whole suffix, and its prefix is causal."
            " It is the prefix that the whole row sees: ~is_suffix.",
        ),
        Mistake(
            "strictly earlier",
            partial(packed_mask, order=torch.lt),
            "A token of the suffix does not see itself. *Not later* includes the query's own place:"
            " <=, not <.",
        ),
        Mistake(
            "later",
            partial(packed_mask, order=torch.ge),
            "The suffix looks the wrong way: it sees what is later, and not what is earlier. The"
            " key must be not later than the query.",
        ),
        *(
            Mistake(
                f"padding taken for {a_row}",
                partial(packed_mask, **edit),
                "Padding is taken for a row, whose tokens see each other. A token of padding sees"
                " itself alone.",
            )
            for a_row, edit in {
                "a row": {"real": _everyone},
                "a row at each place": {"numbers": _stretches},
            }.items()
        ),
        Mistake(
            "padding only at the end",
            partial(packed_mask, numbers=lambda row: row * ((row == 0).cumsum(dim=1) == 0)),
            "From the first padding on, everything is taken for padding. It may also stand in front"
            " and between rows: ask row != 0 about each token.",
        ),
        *(
            Mistake(
                f"rows in front, {name}",
                lambda row, is_suffix, real=real: _rows_in_front(row, is_suffix, real),
                "The first places are taken for the rows, as many as are not padding, and the rest"
                " for padding. It may also stand in front and between rows: ask row != 0 about each"
                " token.",
            )
            for name, real in (
                ("padding as a row", _everyone),
                ("no padding as key", lambda key, query: key != 0),
            )
        ),
        *(
            Mistake(
                f"padding {where} alone, {seen}",
                lambda row, is_suffix, ends=ends, seen=seen: _rest_is_a_row(
                    row, is_suffix, ends, seen
                ),
                f"Only padding {where} is taken for padding, and all other for a row of its own,"
                " whose tokens see each other. It may stand in front of rows, between them or"
                " behind them: ask row != 0 about each token.",
            )
            for where, ends, seen in (
                ("behind the last row", "behind", True),
                ("behind the last row", "behind", False),
                ("in front of the first row", "front", True),
                ("in front of the first row", "front", False),
                ("at both ends", "front and behind", True),
            )
        ),
        *(
            Mistake(
                f"padding marked as {name} sees nothing",
                lambda row, is_suffix, suffix=suffix: _some_blind(row, is_suffix, suffix),
                "Some padding sees nothing: that which is marked in one way in is_suffix. There it"
                " may be either. Each token of padding sees itself.",
            )
            for name, suffix in (("suffix", True), ("prefix", False))
        ),
        *(
            Mistake(
                f"rows counted {where}, {alone}",
                lambda row, is_suffix, count=count, alone=alone: _rows_counted(
                    row, is_suffix, count, alone
                ),
                "Some rows are left out: you go through the numbers 1, 2, ... The numbers only tell"
                " rows apart and may be any above 0. Compare them: row[:, :, None] == row[:, None,"
                " :].",
            )
            for where, count in ROWS_COUNTED.items()
            for alone in (True, False)
        ),
        *(
            Mistake(
                f"padding sees the rows, {itself}",
                lambda row, is_suffix, itself=itself: (
                    packed_mask(row, is_suffix, **({} if itself else {"own": _nothing}))
                    | ((row == 0)[:, None, :, None] & (row != 0)[:, None, None, :])
                ),
                "Padding sees the rows. A token of padding sees itself alone.",
            )
            for itself in (True, False)
        ),
        Mistake(
            "padding sees the rows by their rule",
            partial(packed_mask, same=lambda key, query: (key == query) | (query == 0)),
            "Padding sees the rows. A token of padding sees itself alone.",
        ),
        Mistake(
            "one suffix for all rows",
            lambda row, is_suffix: packed_mask(row, is_suffix.cumsum(dim=1) > 0),
            "From the first suffix on, all the rest of the sequence is taken for suffix. Each row"
            " begins with a prefix of its own: ask is_suffix about each key.",
        ),
        Mistake(
            "rows begin where suffix turns to prefix",
            _by_the_suffix,
            "Two rows are one to you where the first has no suffix: you look for places where"
            " suffix turns to prefix. A row may be prefix alone: its numbers in `row` say where it"
            " ends.",
        ),
        Mistake(
            "numbers in 16 bits",
            partial(packed_mask, numbers=Tensor.half),
            "Rows whose numbers are large and near each other are one to you: floats of 16 bits"
            " cannot tell such numbers apart. Compare them as they are, in int64.",
        ),
        Mistake(
            "padding sees nothing",
            partial(packed_mask, own=_nothing),
            "Padding sees nothing. A softmax over no keys is 0 / 0, which is NaN: let each token of"
            " padding see itself.",
        ),
        Mistake(
            "padding sees everything",
            partial(packed_mask, own=lambda padding, itself: padding),
            "Padding sees everything. A token of padding sees itself alone.",
        ),
        Mistake(
            "padding visible",
            partial(
                packed_mask,
                same=lambda key, query: (key == query) | (key == 0),
                real=_everyone,
            ),
            PADDING_SEEN,
        ),
        Mistake(
            "padding visible to all",
            lambda row, is_suffix: packed_mask(row, is_suffix) | (row == 0)[:, None, None, :],
            PADDING_SEEN,
        ),
        Mistake(
            "the first sequence for all",
            partial(packed_mask, rows=lambda given: given[:1].expand_as(given)),
            FIRST_SEQUENCE,
        ),
        Mistake(
            "the first sequence's rows for all",
            partial(packed_mask, numbers=lambda row: row[:1].expand_as(row)),
            FIRST_SEQUENCE,
        ),
        Mistake(
            "upside down",
            partial(packed_mask, last=lambda visible: ~visible[:, None]),
            "The mask is upside down: True must mean that the query may look there.",
        ),
        Mistake(
            "queries and keys turned",
            partial(packed_mask, last=lambda visible: visible.mT[:, None]),
            "The axes of queries and keys are exchanged. Queries come first, then keys: what is"
            " said about keys lies on the last axis, as in row[:, None, :].",
        ),
        Mistake(
            "no axis for the heads",
            partial(packed_mask, last=lambda visible: visible),
            "The axis of the heads is missing: (b, s, s). All heads share one mask, so its length"
            " is 1: mask[:, None].",
        ),
        *(
            Mistake(
                f"numbers to add, {least}",
                partial(packed_mask, last=partial(_to_add, least=least)),
                f"These are numbers to be added to the scores. The result is bool: {OTHER_KIND}",
            )
            for least in LEAST
        ),
    ),
    hints=(
        "The rule inside a row is the one that you know. What is new is a wall: a key must belong"
        " to the same row as the query. And padding is a special case of its own.",
        "row[:, :, None] == row[:, None, :] is (b, s, s): query and key in the same row. It is True"
        " for two tokens of padding as well, so ask for row[:, None, :] != 0, too.",
        "place = torch.arange(s); not_later = place[None, :] <= place[:, None]; visible = same &"
        " real & (~suffix_of_key | not_later). At last let everyone see itself: visible |"
        " torch.eye(s, dtype=torch.bool). And the axis of the heads: [:, None].",
    ),
)

EXERCISES = (IMAGE_TOKENS, MERGE, PREFIX_LM_MASK, PACKED_MASK)
