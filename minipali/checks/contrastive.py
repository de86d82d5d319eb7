"""Lesson 05: the softmax loss of CLIP and the sigmoid loss of SigLIP."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minipali.checks.engine import Exercise, Mistake
from minipali.contrastive import clip_loss, siglip_loss


def _embeddings(n: int, e: int, seed: int, alike: float = 1.0) -> tuple[Tensor, Tensor]:
    """Pairs that are a little alike; their lengths differ and are far from 1."""
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(n, e, generator=random)
    text = alike * image + torch.randn(n, e, generator=random)
    lengths = 0.3 + 1.5 * torch.rand(2, n, 1, generator=random)
    return image * lengths[0], text * lengths[1]


def _clip_cases() -> list[tuple]:
    # In the last case the factor is CLIP's largest, 100, and pairs are nearly equal: exp overflows.
    # Two texts are swapped, so that the loss is not 0.
    image, text = _embeddings(4, 6, seed=7, alike=50.0)
    return [
        (*_embeddings(5, 7, seed=5), torch.tensor(1.2)),
        (*_embeddings(3, 4, seed=6), torch.tensor(-0.4)),
        (image, text[[1, 0, 2, 3]], torch.tensor(math.log(100.0))),
    ]


def _siglip_cases() -> list[tuple]:
    # In the last case log(sigmoid) of a wrong pair that is nearly equal is log(0).
    image, text = _embeddings(4, 6, seed=7, alike=50.0)
    return [
        (*_embeddings(5, 7, seed=5), torch.tensor(1.2), torch.tensor(-1.7)),
        (*_embeddings(3, 4, seed=6), torch.tensor(-0.4), torch.tensor(0.6)),
        (image, text[[1, 0, 2, 3]], torch.tensor(math.log(117.0)), torch.tensor(-3.0)),
    ]


def _logits(image: Tensor, text: Tensor, factor: Tensor, unit: bool = True) -> Tensor:
    if unit:
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    return image @ text.T * factor


def _clip_loss(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    *,
    rows: float = 0.5,
    columns: float = 0.5,
    unit: bool = True,
    factor: Callable[[Tensor], Tensor] = torch.exp,
    of_row: Callable[[Tensor], Tensor] = lambda s: s.log_softmax(dim=1).diagonal().mean(),
    of_column: Callable[[Tensor], Tensor] = lambda s: s.log_softmax(dim=0).diagonal().mean(),
) -> Tensor:
    """clip_loss with one thing changed; rows, columns: the weight of each direction."""
    logits = _logits(image, text, factor(log_scale), unit)
    return -(rows * of_row(logits) + columns * of_column(logits))


CLIP = Exercise(
    name="clip_loss",
    reference=clip_loss,
    cases=_clip_cases,
    axes="",
    checked=(
        "the loss of 3 batches of 5, 3 and 4 pairs, whose embeddings have many lengths, at three"
        " temperatures; with a factor of 100 it stays finite; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "rows only",
            partial(_clip_loss, rows=1.0, columns=0.0),
            "Only one direction: each picture chooses among the sentences (rows). The loss is"
            " symmetric: let each sentence choose among the pictures too (columns), and take the"
            " mean of both.",
        ),
        Mistake(
            "columns only",
            partial(_clip_loss, rows=0.0, columns=1.0),
            "Only one direction: each sentence chooses among the pictures (columns). The loss is"
            " symmetric: let each picture choose among the sentences too (rows), and take the mean"
            " of both.",
        ),
        Mistake(
            "both directions added",
            partial(_clip_loss, rows=1.0, columns=1.0),
            "Both directions are there, but added. The loss is their mean: divide the sum by 2.",
        ),
        Mistake(
            "averaged over n squared",
            lambda image, text, log_scale: _clip_loss(image, text, log_scale) / len(image),
            "The loss is n times too small: the sum over the n right pairs is divided by n * n."
            " A row has one right answer, so each direction is a mean over n.",
        ),
        Mistake(
            "embeddings not normalised",
            partial(_clip_loss, unit=False),
            "The embeddings are not normalised: long vectors get large scores. Divide each by its"
            " length (F.normalize, dim=-1), then the products are cosines.",
        ),
        Mistake(
            "temperature not exponentiated",
            partial(_clip_loss, factor=lambda log_scale: log_scale),
            "The cosines are multiplied by log_scale itself. It is the logarithm of the factor:"
            " multiply by log_scale.exp().",
        ),
        Mistake(
            "log missing",
            partial(
                _clip_loss,
                of_row=lambda s: s.softmax(dim=1).diagonal().mean(),
                of_column=lambda s: s.softmax(dim=0).diagonal().mean(),
            ),
            "The logarithm is missing: this is minus the mean probability of the right pairs. Take"
            " the log of each probability first, best as log_softmax or cross_entropy.",
        ),
        Mistake(
            "log missing in the first term",
            partial(_clip_loss, of_row=lambda s: s.softmax(dim=1).diagonal().mean()),
            "The logarithm is missing in one direction, picture to text (it is missing in the notes"
            " too). Both terms are logarithms of probabilities.",
        ),
    ),
    hints=(
        "Four steps: unit vectors, the table of cosines (n, n), times the factor, and a cross"
        " entropy along rows and along columns whose right answers are on the diagonal.",
        "F.normalize(x, dim=-1) makes unit vectors. Row i is picture i, column j is sentence j:"
        " image @ text.T. The factor is log_scale.exp().",
        "F.cross_entropy(logits, torch.arange(n)) is the mean over the rows of -log softmax at the"
        " right column, without overflow. For the other direction give it logits.T. Add both,"
        " divide by 2.",
    ),
)


def _siglip_loss(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    unit: bool = True,
    factor: Callable[[Tensor], Tensor] = torch.exp,
    wrong_label: float = -1.0,
    log: Callable[[Tensor], Tensor] = F.logsigmoid,
    power: int = 1,
    add_bias: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda s, bias, scale: s + bias,
) -> Tensor:
    """siglip_loss with one thing changed; power: of n, by which the sum is divided."""
    scale = factor(log_scale)
    logits = add_bias(_logits(image, text, scale, unit), bias, scale)
    labels = torch.full_like(logits, wrong_label).fill_diagonal_(1.0)
    return -log(labels * logits).sum() / len(image) ** power


SIGLIP = Exercise(
    name="siglip_loss",
    reference=siglip_loss,
    cases=_siglip_cases,
    axes="",
    checked=(
        "the loss of 3 batches of 5, 3 and 4 pairs, whose embeddings have many lengths, at three"
        " temperatures and biases; with a factor of 117 it stays finite; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "labels 0 and 1",
            partial(_siglip_loss, wrong_label=0.0),
            "The labels are 1 and 0. In -log sigmoid(label * logit) a 0 wipes the logit out, and"
            " every wrong pair costs log 2 whatever the model says. Use +1 and -1.",
        ),
        Mistake(
            "averaged over n squared",
            partial(_siglip_loss, power=2),
            "The sum over all n * n pairs is divided by n * n. Divide it by n, the number of"
            " pictures.",
        ),
        Mistake(
            "not divided",
            partial(_siglip_loss, power=0),
            "The sum over all pairs is not divided. Divide it by n, the number of pictures.",
        ),
        Mistake(
            "embeddings not normalised",
            partial(_siglip_loss, unit=False),
            "The embeddings are not normalised: long vectors get large scores. Divide each by its"
            " length (F.normalize, dim=-1), then the products are cosines.",
        ),
        Mistake(
            "temperature not exponentiated",
            partial(_siglip_loss, factor=lambda log_scale: log_scale),
            "The cosines are multiplied by log_scale itself. It is the logarithm of the factor:"
            " multiply by log_scale.exp().",
        ),
        Mistake(
            "log missing",
            partial(_siglip_loss, log=torch.sigmoid),
            "The logarithm is missing: this adds up minus the probabilities of the right answers."
            " Take the log of each first, best as F.logsigmoid.",
        ),
        Mistake(
            "bias omitted",
            partial(_siglip_loss, add_bias=lambda s, bias, scale: s),
            "The bias is missing. The logit of a pair is factor * cosine + bias.",
        ),
        Mistake(
            "bias inside the factor",
            partial(_siglip_loss, add_bias=lambda s, bias, scale: s + bias * scale),
            "The bias is multiplied by the factor too. Multiply first, add afterwards: factor *"
            " cosine + bias.",
        ),
    ),
    hints=(
        "Every pair is a question of its own: do these two belong together? n * n questions, of"
        " which n, on the diagonal, have the answer yes.",
        "logits = cosines * log_scale.exp() + bias. labels = 2 * torch.eye(n) - 1: +1 on the"
        " diagonal, -1 elsewhere.",
        "-F.logsigmoid(labels * logits) is (n, n), and stays finite where log(sigmoid(x)) does not."
        " Sum over everything, divide by n.",
    ),
)

EXERCISES = (CLIP, SIGLIP)
