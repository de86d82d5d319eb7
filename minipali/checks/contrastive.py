"""Lesson 05: the softmax loss of CLIP, the sigmoid loss of SigLIP, and the latter in chunks."""

import math
from collections.abc import Callable, Iterable
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
    # In the last case the factor is 200 and pairs are nearly equal: exp overflows. Two texts are
    # swapped, so that the loss is not 0.
    image, text = _embeddings(4, 6, seed=7, alike=50.0)
    return [
        (*_embeddings(5, 7, seed=5), torch.tensor(1.2)),
        (*_embeddings(3, 4, seed=6), torch.tensor(-0.4)),
        (image, text[[1, 0, 2, 3]], torch.tensor(math.log(200.0))),
    ]


def _siglip_cases() -> list[tuple]:
    # In the last case log(sigmoid) of a wrong pair that is nearly equal is log(0).
    image, text = _embeddings(4, 6, seed=7, alike=50.0)
    return [
        (*_embeddings(5, 7, seed=5), torch.tensor(1.2), torch.tensor(-1.7)),
        (*_embeddings(3, 4, seed=6), torch.tensor(-0.4), torch.tensor(0.6)),
        (image, text[[1, 0, 2, 3]], torch.tensor(math.log(200.0)), torch.tensor(-3.0)),
    ]


def _both_units(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def _lengths_detached(*which: bool) -> Callable:
    def units(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        lengths = [x.norm(dim=-1, keepdim=True) for x in (image, text)]
        return tuple(
            x / (length.detach() if detached else length)
            for x, length, detached in zip((image, text), lengths, which, strict=True)
        )

    return units


UNITS: tuple[tuple[str, Callable, str], ...] = (
    ("embeddings not normalised", lambda image, text: (image, text),
     "The embeddings are not normalised: long vectors get large scores. Divide each by its"
     " length (F.normalize, dim=-1), then the products are cosines."),
    ("texts not normalised", lambda image, text: (F.normalize(image, dim=-1), text),
     "Only the pictures' vectors are brought to length 1. The sentences' vectors too:"
     " F.normalize(text, dim=-1)."),
    ("pictures not normalised", lambda image, text: (image, F.normalize(text, dim=-1)),
     "Only the sentences' vectors are brought to length 1. The pictures' vectors too:"
     " F.normalize(image, dim=-1)."),
    ("pictures with pictures", lambda image, text: (F.normalize(image, dim=-1),) * 2,
     "You compare pictures with pictures: `text` is not used."),
    ("normalised over the batch",
     lambda image, text: (F.normalize(image, dim=0), F.normalize(text, dim=0)),
     "You normalise along the batch, dim=0. Each row is a vector of its own: dim=-1."),
    ("normalised as a whole", lambda image, text: (image / image.norm(), text / text.norm()),
     "You divide by one length for the whole batch. Each row has a length of its own:"
     " F.normalize(x, dim=-1)."),
    ("divided by the square of the length",
     lambda image, text: tuple(x / x.square().sum(-1, keepdim=True) for x in (image, text)),
     "You divide by the square of the length. Its root is missing."),
    ("divided by the sum",
     lambda image, text: tuple(x / x.abs().sum(-1, keepdim=True) for x in (image, text)),
     "You divide by the sum of the absolute values. The length of a vector is the root of the sum"
     " of the squares."),
    *((f"lengths detached {which}", _lengths_detached(*which),
       "A length is computed outside autograd's graph (detach, no_grad, .data or NumPy), as if it"
       " were a constant. It is made of the vector's own numbers, so the gradient must go through"
       " it, too.")
      for which in ((True, True), (True, False), (False, True))),
)  # fmt: skip

FACTORS: tuple[tuple[str, Callable, str], ...] = (
    ("temperature not exponentiated", lambda log_scale: log_scale,
     "The cosines are multiplied by log_scale itself. It is the logarithm of the factor:"
     " multiply by log_scale.exp()."),
    ("divided by the factor", lambda log_scale: (-log_scale).exp(),
     "The cosines are divided by exp(log_scale), as by a temperature. exp(log_scale) is the factor:"
     " multiply by it."),
    ("divided by the logarithm", lambda log_scale: 1 / log_scale,
     "The cosines are divided by log_scale itself. It is the logarithm of the factor: multiply by"
     " log_scale.exp()."),
    ("factor missing", lambda log_scale: 0 * log_scale + 1,
     "The cosines are used as they are. Multiply them by log_scale.exp()."),
    ("factor clamped", lambda log_scale: log_scale.exp().clamp(max=100.0),
     "The factor is clamped at 100, as in CLIP's own training. Here it is to be used as it is, also"
     " above 100."),
    ("factor squared", lambda log_scale: (2 * log_scale).exp(),
     "The factor is there twice: exp(log_scale) squared. Multiply by it once."),
    ("softplus", F.softplus,
     "The factor is softplus(log_scale). log_scale is the logarithm of the factor: its exp is"
     " due."),
    ("a power of ten", lambda log_scale: 10**log_scale,
     "The factor is 10 to the power of log_scale. log_scale is the natural logarithm: its exp is"
     " due."),
    ("a power of two", lambda log_scale: 2**log_scale,
     "The factor is 2 to the power of log_scale. log_scale is the natural logarithm: its exp is"
     " due."),
)  # fmt: skip


def _clip_loss(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    *,
    rows: float = 0.5,
    columns: float = 0.5,
    units: Callable = _both_units,
    factor: Callable[[Tensor], Tensor] = torch.exp,
    logits: Callable[[Tensor], Tensor] = lambda logits: logits,
    log: Callable[[Tensor, int], Tensor] = lambda s, axis: s.log_softmax(dim=axis),
    log_of_rows: Callable[[Tensor, int], Tensor] | None = None,
    right: Callable[[Tensor], Tensor] = torch.diagonal,
    power: float = 1.0,
    times: float = 1.0,
    cut: str = "",
    frozen: tuple[str, str] = ("", ""),
    cap: float = math.inf,
) -> Tensor:
    """clip_loss with one thing changed.

    rows, columns: the weight of each direction. cut: which one is out of autograd's graph. frozen:
    whose vectors are so in the rows and in the columns. cap: of a choice's cost.
    """
    image, text = units(image, text)

    def table(without: str) -> Tensor:
        i, t = (
            x.detach() if without == name else x
            for x, name in zip((image, text), ("image", "text"), strict=True)
        )
        return logits(i @ t.T * factor(log_scale))

    of_rows = right((log_of_rows or log)(table(frozen[0]), 1)).clamp(min=-cap).sum()
    of_columns = right(log(table(frozen[1]), 0)).clamp(min=-cap).sum()
    of_rows = of_rows.detach() if cut == "rows" else of_rows
    of_columns = of_columns.detach() if cut == "columns" else of_columns
    return -times * (rows * of_rows + columns * of_columns) / len(image) ** power


def _over_the_table(table: Tensor, axis: int) -> Tensor:
    return table.flatten().log_softmax(dim=0).unflatten(0, table.shape)


def _among_the_others(table: Tensor, axis: int) -> Tensor:
    others = table.masked_fill(torch.eye(len(table), dtype=torch.bool), -math.inf)
    return table - others.logsumexp(dim=axis, keepdim=True)


def _plain(table: Tensor, axis: int) -> Tensor:
    shares = table.exp()
    return (shares / shares.sum(dim=axis, keepdim=True)).log()


LOG_OF_SOFTMAX = (
    "You take the log of a softmax. If the right pair's probability is too small for 32 bits, it is"
    " 0, and log(0) is infinite. log_softmax and cross_entropy compute both in one, and never do"
    " that."
)

CLIP = Exercise(
    name="clip_loss",
    reference=clip_loss,
    cases=_clip_cases,
    axes="",
    gradients=("image", "text", "log_scale"),
    checked=(
        "the loss of 3 batches of 5, 3 and 4 pairs, whose embeddings have many lengths, at three"
        " temperatures; with a factor of 200 it stays finite and right; gradients reach image, text"
        " and log_scale; inputs unchanged"
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
            "half of one direction",
            partial(_clip_loss, columns=0.0),
            "Only one direction, the pictures', is there, and it is halved. The other half is the"
            " sentences' choice among the pictures.",
        ),
        *(
            Mistake(
                f"{cut} out of the graph",
                partial(_clip_loss, cut=cut),
                f"The values are right, but {whose} is out of autograd's graph (detach, no_grad,"
                " .data): only the other direction teaches.",
            )
            for cut, whose in (
                ("rows", "the pictures' choice among the sentences"),
                ("columns", "the sentences' choice among the pictures"),
            )
        ),
        *(
            Mistake(
                f"{one} out of the graph in the rows, {other} in the columns",
                partial(_clip_loss, frozen=(one, other)),
                "The values are right, but in each direction the vectors of one side are out of"
                " autograd's graph (detach, no_grad). Both directions teach pictures and"
                " sentences.",
            )
            for one, other in (("text", "image"), ("image", "text"))
        ),
        *(
            Mistake(
                f"capped at {cap}",
                partial(_clip_loss, cap=cap),
                "The cost of a choice, or the loss itself, is capped (clamp). A pair that is very"
                " wrong then no longer teaches. There is no cap.",
            )
            for cap in (10.0, 20.0, 30.0, 40.0, 50.0, 100.0)
        ),
        *(
            Mistake(
                f"scores clamped at {most}",
                partial(_clip_loss, logits=lambda logits, most=most: logits.clamp(-most, most)),
                "The scores are clamped. That caps the loss of a pair that is very wrong, and such"
                " a pair no longer teaches. log_softmax and cross_entropy are finite for every"
                " score.",
            )
            for most in (50, 80, 88, 100)
        ),
        Mistake(
            "symmetric scores",
            partial(_clip_loss, logits=lambda logits: (logits + logits.T) / 2),
            "The table of scores is averaged with its mirror image before the softmax. Each"
            " direction takes the table as it is; their losses are averaged.",
        ),
        Mistake(
            "probabilities averaged",
            partial(_clip_loss, log=lambda s, axis: ((s.softmax(0) + s.softmax(1)) / 2).log()),
            "The probabilities of both directions are averaged, and then the log is taken. Take the"
            " log in each direction first, then the mean.",
        ),
        Mistake(
            "right pair not among the choices",
            partial(_clip_loss, log=_among_the_others),
            "The right pair is missing from the sum under the fraction bar. The softmax is over all"
            " n choices, the right one among them.",
        ),
        Mistake(
            "summed over the batch",
            partial(_clip_loss, power=0.0),
            "The loss is n times too large: it is a sum over the pairs. Take the mean over them.",
        ),
        Mistake(
            "both summed over the batch",
            partial(_clip_loss, rows=1.0, columns=1.0, power=0.0),
            "The loss is 2n times too large: both directions are sums over the pairs, and added."
            " Take the mean over the pairs, and the mean of both directions.",
        ),
        Mistake(
            "averaged over n squared",
            partial(_clip_loss, power=2.0),
            "The loss is n times too small: the sum over the n right pairs is divided by n * n."
            " A row has one right answer, so each direction is a mean over n.",
        ),
        Mistake(
            "sign",
            partial(_clip_loss, times=-1.0),
            "The sign is wrong: this is the mean log probability of the right pairs, which is"
            " below 0. The loss is minus that.",
        ),
        *(Mistake(name, partial(_clip_loss, units=units), says) for name, units, says in UNITS),
        *(
            Mistake(name, partial(_clip_loss, factor=factor), says)
            for name, factor, says in FACTORS
        ),
        Mistake(
            "least cosine chosen",
            partial(_clip_loss, logits=lambda logits: -logits),
            "The scores have the wrong sign: the least similar sentence gets the largest share.",
        ),
        Mistake(
            "all pairs",
            partial(_clip_loss, right=lambda table: table),
            "You take the logs of all pairs. Only the right ones count, on the diagonal; the others"
            " come in through the softmax.",
        ),
        Mistake(
            "all pairs, mean",
            partial(_clip_loss, right=lambda table: table / len(table)),
            "You take the mean over all pairs. Only the right ones count, on the diagonal; the"
            " others come in through the softmax.",
        ),
        Mistake(
            "wrong pairs",
            partial(_clip_loss, right=lambda table: table.flip(0).diagonal()),
            "The right answers are taken from the wrong diagonal. Picture i belongs to sentence i.",
        ),
        Mistake(
            "first sentence always",
            partial(_clip_loss, right=lambda table: table[:, 0]),
            "The right answer is always number 0. For picture i it is sentence i: torch.arange(n).",
        ),
        Mistake(
            "softmax twice",
            partial(_clip_loss, log=lambda s, axis: s.softmax(axis).log_softmax(axis)),
            "The softmax is there twice: cross_entropy and log_softmax take the scores as they are"
            " and do it themselves.",
        ),
        *(
            Mistake(
                f"softmax over the whole table, {name}",
                partial(_clip_loss, log=_over_the_table, log_of_rows=of_rows),
                f"The softmax{which} runs over the whole table of n * n scores. Each picture"
                " chooses in its own row, and each sentence in its own column: dim=1 and dim=0.",
            )
            for name, of_rows, which in (
                ("both", None, ""),
                (
                    "columns",
                    lambda s, axis: s.log_softmax(dim=axis),
                    " in one direction, sentence to picture,",
                ),
            )
        ),
        Mistake(
            "sigmoid",
            partial(_clip_loss, log=lambda s, axis: F.logsigmoid(s)),
            "You take a sigmoid of each right pair's score. Here each picture chooses among all"
            " sentences: a softmax along the row, and along the column.",
        ),
        Mistake(
            "log missing",
            partial(_clip_loss, log=lambda s, axis: s.softmax(axis)),
            "The logarithm is missing: this is minus the mean probability of the right pairs. Take"
            " the log of each probability first, best as log_softmax or cross_entropy.",
        ),
        Mistake(
            "softmax missing",
            partial(_clip_loss, log=lambda s, axis: s),
            "The softmax is missing: this is minus the mean score of the right pairs, and the"
            " others"
            " do not count.",
        ),
        Mistake(
            "log missing in the first term",
            partial(_clip_loss, log_of_rows=lambda s, axis: s.softmax(axis)),
            "The logarithm is missing in one direction, picture to text (it is missing in the notes"
            " too). Both terms are logarithms of probabilities.",
        ),
        Mistake(
            "log of a softmax",
            partial(_clip_loss, log=lambda s, a: s.softmax(a).log()),
            LOG_OF_SOFTMAX,
        ),
        Mistake(
            "overflow",
            partial(_clip_loss, log=_plain),
            "exp of a score above 88 is infinite in 32 bits, and inf / inf is NaN. Subtract the"
            " largest score of a row first, or take log_softmax or cross_entropy, which do it.",
        ),
        *(
            Mistake(
                f"log of a softmax plus {tiny}",
                partial(_clip_loss, log=lambda s, axis, tiny=tiny: (s.softmax(axis) + tiny).log()),
                "A tiny number is added before the log, or probabilities are clamped to it. That"
                " caps"
                " the loss of a pair that is very wrong, and such a pair no longer teaches."
                " log_softmax needs no such number.",
            )
            for tiny in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
        ),
        Mistake(
            "two's logarithm",
            partial(_clip_loss, times=1 / math.log(2)),
            "The logarithm is that of base 2. The loss takes the natural one, torch.log.",
        ),
        Mistake(
            "base ten",
            partial(_clip_loss, times=1 / math.log(10)),
            "The logarithm is that of base 10. The loss takes the natural one, torch.log.",
        ),
    ),
    crashes=(
        Mistake(
            "not transposed",
            lambda image, text, *_: F.normalize(image, dim=-1) @ F.normalize(text, dim=-1),
            "The sentences' vectors are not transposed: image @ text.T compares each picture with"
            " each sentence.",
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


def _off_diagonal(n: int) -> Tensor:
    return 1 - torch.eye(n)


def _right(labels: Tensor, scores: Tensor) -> Tensor:
    """The probability of the right answer, "no" as 1 - sigmoid."""
    yes = scores.sigmoid()
    return torch.where(labels > 0, yes, 1 - yes)


def _corrected(scores: Tensor, right: Tensor) -> Tensor:
    """All pairs as "no", and then the right ones corrected, with logs of sigmoids."""
    yes = scores.sigmoid()
    change = torch.where(right, yes.log() - (1 - yes).log(), 0.0)
    return F.logsigmoid(-scores) + change


def _with_targets(scores: Tensor, right: Tensor, yes: float, no: float) -> Tensor:
    """What binary_cross_entropy_with_logits makes of these targets, with the opposite sign."""
    return F.logsigmoid(scores) - (1 - torch.where(right, yes, no)) * scores


def _targets_first(scores: Tensor, right: Tensor) -> Tensor:
    targets = right.float()
    return F.logsigmoid(targets) - (1 - scores) * targets


def _cut(costs: Tensor, right: Tensor, which: str) -> Tensor:
    """The same costs, those of "right" or "wrong" pairs out of autograd's graph."""
    if not which:
        return costs
    return torch.where(right == (which == "right"), costs.detach(), costs)


def _siglip_loss(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    units: Callable = _both_units,
    factor: Callable[[Tensor], Tensor] = torch.exp,
    right_label: float = 1.0,
    wrong_label: float = -1.0,
    place: Callable[[Tensor], Tensor] = lambda labels: labels,
    log: Callable[[Tensor], Tensor] = F.logsigmoid,
    through: Callable[[Tensor], Tensor] | None = None,
    counted: Callable[[int], Tensor | float] = lambda n: 1.0,
    divisor: Callable[[int], float] = lambda n: n,
    sign: float = -1.0,
    add_bias: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda s, bias, scale: s * scale + bias,
    bias_on: tuple[float, float] = (1.0, 1.0),
    bias_after_label: bool = False,
    also_no: bool = False,
    instead: Callable[[Tensor, Tensor], Tensor] | None = None,
    cut: str = "",
    in_sum: Callable[[int], float] = lambda n: 0.0,
    end: float = 0.0,
) -> Tensor:
    """siglip_loss with one thing changed; counted: which pairs.

    bias_on: how much of it the right and the other pairs get. also_no: the right pairs cost what
    their "no" costs, too. instead: costs made of the scores and of where the right pairs are.
    cut: which pairs are out of autograd's graph. in_sum, end: how much of the bias is added to the
    sum, and to the loss.
    """
    n = len(image)
    image, text = units(image, text)
    cosines, scale = image @ text.T, factor(log_scale)
    labels = place(torch.full_like(cosines, wrong_label).fill_diagonal_(right_label))
    yes = torch.eye(n, dtype=torch.bool)
    scores = add_bias(cosines, bias * torch.where(yes, *bias_on), scale)
    if bias_after_label:
        costs = log(labels * cosines * scale + bias)
    else:
        costs = through(_right(labels, scores)) if through else log(labels * scores)
    costs = counted(n) * costs
    if also_no:
        costs = costs + log(-scores).diag().diag()
    if instead:
        costs = instead(scores, yes)
    costs = _cut(costs, yes, cut)
    return (sign * costs.sum() + in_sum(n) * bias) / divisor(n) + end * bias


BIASES: tuple[tuple[str, Callable, str], ...] = (
    ("bias omitted", lambda s, bias, scale: s * scale,
     "The bias is missing. The score of a pair is factor * cosine + bias."),
    ("bias inside the factor", lambda s, bias, scale: (s + bias) * scale,
     "The bias is multiplied by the factor too. Multiply first, add afterwards: factor * cosine +"
     " bias."),
    ("bias subtracted", lambda s, bias, scale: s * scale - bias,
     "The bias is subtracted. It is to be added: factor * cosine + bias."),
    ("bias twice", lambda s, bias, scale: s * scale + 2 * bias,
     "The bias is added twice. Once: factor * cosine + bias."),
    ("bias as a logarithm", lambda s, bias, scale: s * scale + bias.exp(),
     "exp(bias) is added. Only the factor is kept as a logarithm; the bias is added as it is."),
)  # fmt: skip
CLAMPED = (
    "The scores, or the costs, are clamped. That caps the cost of a pair that is very wrong, and"
    " such a pair no longer teaches. F.logsigmoid is finite for every score."
)
BIASES += tuple(
    (f"scores clamped at {most}",
     lambda s, bias, scale, most=most: (s * scale + bias).clamp(-most, most), CLAMPED)
    for most in (20, 30, 50, 80, 88)
)  # fmt: skip
DIVISORS: tuple[tuple[str, Callable[[int], float], str], ...] = (
    ("averaged over n squared", lambda n: n**2,
     "The sum over all n * n pairs is divided by n * n. Divide it by n, the number of pictures."),
    ("not divided", lambda n: 1,
     "The sum over all pairs is not divided. Divide it by n, the number of pictures."),
    ("divided by 2n", lambda n: 2 * n,
     "The sum is divided by 2n, as if two directions were averaged. The table of pairs is gone"
     " through once: divide by n."),
    ("divided by the wrong pairs", lambda n: n * (n - 1),
     "The sum is divided by n * (n - 1), the number of wrong pairs. Divide it by n."),
    ("divided by 12", lambda n: 12,
     "The sum is divided by 12, as in the training below. n differs from batch to batch:"
     " len(image)."),
)  # fmt: skip
TINY = (
    "A tiny number is added before the log, or probabilities are clamped to it. That caps the"
    " cost of a"
    " pair that is very wrong, and such a pair no longer teaches. F.logsigmoid needs no such"
    " number."
)
AT_100 = (
    "The cost of a pair is capped at 100: torch's binary_cross_entropy does so, or a clamp. It has"
    " no cap: F.logsigmoid, or binary_cross_entropy_with_logits."
)
TWICE = (
    "The sigmoid is there twice: F.logsigmoid and binary_cross_entropy_with_logits take the scores"
    " as they are, and do it themselves."
)
LOGS: tuple[tuple[str, Callable[[Tensor], Tensor], str], ...] = (
    ("log missing", torch.sigmoid,
     "The logarithm is missing: this adds up minus the probabilities of the right answers. Take the"
     " log of each first, best as F.logsigmoid."),
    ("log of a sigmoid", lambda s: s.sigmoid().log(),
     "For a score far on the wrong side the sigmoid is 0 in 32 bits, and exp(-score) is infinite,"
     " so"
     " log(sigmoid(score)) and log(1 + exp(-score)) both become infinite. F.logsigmoid, or"
     " F.softplus"
     " of -score, stays finite and right."),
    ("log missing, wrong answers", lambda s: s.sigmoid() - 1,
     "The logarithm is missing: this adds up the probabilities of the wrong answers. The cost of a"
     " pair is minus the log of the probability of its right answer, best as F.logsigmoid."),
    ("sigmoid twice", lambda s: F.logsigmoid(s.sigmoid()), TWICE),
    ("sigmoid missing", lambda s: s,
     "The sigmoid and its log are missing: this adds up minus the scores. The cost of a pair is"
     " -log sigmoid(label * score)."),
    ("exponential", lambda s: -(-s).exp(),
     "You add up exp(-score). The cost of a pair is log(1 + exp(-label * score))."),
    ("hinge", lambda s: -F.relu(1 - s),
     "This is a hinge loss. The cost of a pair is -log sigmoid(label * score)."),
    *((f"log of a sigmoid plus {tiny}", lambda s, tiny=tiny: (s.sigmoid() + tiny).log(), TINY)
      for tiny in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)),
    ("capped at 100", lambda s: F.logsigmoid(s).clamp(min=-100.0), AT_100),
)  # fmt: skip
THROUGH = (
    *((f"log of 1 - sigmoid plus {tiny}", lambda p, tiny=tiny: (p + tiny).log(), TINY)
      for tiny in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)),
    ("1 - sigmoid, capped at 100", lambda p: p.log().clamp(min=-100.0), AT_100),
)  # fmt: skip
LABELS: tuple[tuple[str, dict, str], ...] = (
    ("labels 0 and 1", {"wrong_label": 0.0},
     "The labels are 1 and 0. In -log sigmoid(label * score) a 0 wipes the score out, and every"
     " wrong pair costs log 2 whatever the model says. Use +1 and -1."),
    ("labels all 1", {"wrong_label": 1.0},
     "Every pair has the label +1, so all are to belong together. Only the n pairs on the diagonal"
     " do; the others get -1."),
    ("labels exchanged", {"right_label": -1.0, "wrong_label": 1.0},
     "The labels are exchanged: the right pairs, on the diagonal, get +1, all others -1."),
    ("labels all -1", {"right_label": -1.0},
     "Every pair has the label -1. The n pairs on the diagonal belong together: +1."),
)  # fmt: skip


BIAS_LATE = (
    "The bias is added to the costs. It belongs to every score, before the sigmoid: factor * cosine"
    " + bias."
)
ALSO_NO = (
    'The right pairs are counted twice: as "yes", which is right, and as "no" like all the others.'
    " Each pair has one right answer."
)


def _without_bias(cosines: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return cosines * scale


# Edits that both functions of the sigmoid loss know.
PAIRS: tuple[tuple[str, dict, str], ...] = (
    ("sigmoid twice, of all scores",
     {"add_bias": lambda s, bias, scale: (s * scale + bias).sigmoid()}, TWICE),
    *((f"bias only on {which} pairs", {"bias_on": weights},
       f"Only the {which} pairs get the bias. It belongs to the score of every pair: factor *"
       " cosine + bias.")
      for which, weights in (("right", (1.0, 0.0)), ("wrong", (0.0, 1.0)))),
    ("targets 1 and -1", {"instead": partial(_with_targets, yes=1.0, no=-1.0)},
     "The answers +1 and -1 are given to binary_cross_entropy_with_logits. It wants the probability"
     " of yes, 1 and 0: torch.eye(n). +1 and -1 are for -F.logsigmoid(label * score)."),
    ("scores for targets", {"instead": _targets_first},
     "In binary_cross_entropy_with_logits scores and answers are exchanged. The scores come first,"
     " then the answers, 1 and 0."),
    ("corrected", {"instead": _corrected},
     "Right pairs are corrected with log(sigmoid(score)) and log(1 - sigmoid(score)). Each can be"
     " infinite in 32 bits, and then the difference is infinite or NaN. F.logsigmoid(score) and"
     " F.logsigmoid(-score) stay finite."),
    *((f"{which} pairs out of the graph", {"cut": which},
       f"The values are right, but the costs of the {which} pairs are out of autograd's graph"
       " (no_grad, detach, .item()): only the other pairs teach.")
      for which in ("right", "wrong")),
)  # fmt: skip


def _edits(function: Callable, given: tuple) -> tuple[Mistake, ...]:
    return tuple(Mistake(name, partial(function, **edit), says) for name, edit, says in given)


def _named(function: Callable, keyword: str, given: tuple) -> tuple[Mistake, ...]:
    return tuple(
        Mistake(name, partial(function, **{keyword: one}), says) for name, one, says in given
    )


SIGLIP = Exercise(
    name="siglip_loss",
    reference=siglip_loss,
    cases=_siglip_cases,
    axes="",
    gradients=("image", "text", "log_scale", "bias"),
    checked=(
        "the loss of 3 batches of 5, 3 and 4 pairs, whose embeddings have many lengths, at three"
        " temperatures and biases; with a factor of 200 it stays finite and right; gradients reach"
        " image, text, log_scale and bias; inputs unchanged"
    ),
    mistakes=(
        *(Mistake(name, partial(_siglip_loss, **given), says) for name, given, says in LABELS),
        *_named(_siglip_loss, "divisor", DIVISORS),
        *_named(_siglip_loss, "units", UNITS),
        *_named(_siglip_loss, "factor", FACTORS),
        *_named(_siglip_loss, "log", LOGS),
        *_named(_siglip_loss, "through", THROUGH),
        *_named(_siglip_loss, "add_bias", BIASES),
        *_edits(_siglip_loss, PAIRS),
        Mistake(
            "bias after the label",
            partial(_siglip_loss, bias_after_label=True),
            "The bias is added after the label was multiplied in, so it pushes wrong pairs the"
            " wrong"
            " way. The label multiplies the whole score, bias included.",
        ),
        Mistake(
            "right pairs only",
            partial(_siglip_loss, counted=torch.eye),
            "Only the right pairs count, those on the diagonal. All n * n do: for the others the"
            " right answer is no.",
        ),
        Mistake(
            "wrong pairs only",
            partial(_siglip_loss, counted=_off_diagonal),
            "The right pairs, on the diagonal, do not count. All n * n do.",
        ),
        Mistake(
            "right pairs twice",
            partial(_siglip_loss, counted=lambda n: 1 + torch.eye(n)),
            "The right pairs cost twice what they should. Every pair counts once.",
        ),
        Mistake("right pairs as no, too", partial(_siglip_loss, also_no=True), ALSO_NO),
        *(
            Mistake(
                f"bias {name}", partial(_siglip_loss, add_bias=_without_bias, **given), BIAS_LATE
            )
            for name, given in (
                ("added to the loss", {"end": 1.0}),
                ("added to the sum", {"in_sum": lambda n: 1.0}),
                ("added to each cost", {"in_sum": lambda n: float(n * n)}),
            )
        ),
        Mistake(
            "pairs once",
            partial(_siglip_loss, counted=lambda n: torch.ones(n, n).triu()),
            "Only the pairs on and above the diagonal count. Picture 1 with sentence 0 is another"
            " pair than picture 0 with sentence 1: all n * n count.",
        ),
        Mistake(
            "right pairs as often as the others",
            partial(_siglip_loss, counted=lambda n: 1 + (n - 2) * torch.eye(n)),
            "The right pairs count n - 1 times, as if there were as many of them as wrong ones."
            " Every pair counts once.",
        ),
        Mistake(
            "right pairs weighted",
            partial(_siglip_loss, counted=lambda n: torch.eye(n) + _off_diagonal(n) / (n - 1)),
            "The wrong pairs count less, as if there were as many of them as right ones. Every pair"
            " counts once.",
        ),
        Mistake(
            "sign",
            partial(_siglip_loss, sign=1.0),
            "The sign is wrong: this is the sum of log probabilities, which is below 0. The loss is"
            " minus that.",
        ),
        Mistake(
            "softmax",
            lambda image, text, log_scale, bias: clip_loss(image, text, log_scale) + 0 * bias,
            "This is the softmax loss of CLIP. Here each pair is a question of its own, with a"
            " sigmoid: -log sigmoid(label * score), for all n * n pairs.",
        ),
        Mistake(
            "other diagonal",
            partial(_siglip_loss, place=lambda labels: labels.flip(0)),
            "The labels lie on the wrong diagonal. Picture i belongs to sentence i.",
        ),
    ),
    crashes=(
        Mistake(
            "not transposed",
            lambda image, text, *_: F.normalize(image, dim=-1) @ F.normalize(text, dim=-1),
            "The sentences' vectors are not transposed: image @ text.T compares each picture with"
            " each sentence.",
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


def _chunk_cases() -> list[tuple]:
    # Of the last but one all scores are 0: the loss is 4 ln 2.
    image, text = (torch.eye(2)[[place] * 4] * (2 + place) for place in (0, 1))
    near, other = _embeddings(6, 4, seed=17, alike=50.0)
    return [
        (*_embeddings(14, 2, seed=15), torch.tensor(1.2), torch.tensor(-1.7), 2),
        (*_embeddings(14, 2, seed=16), torch.tensor(-0.4), torch.tensor(0.6), 3),
        (image, text, torch.tensor(0.7), torch.tensor(0.0), 9),
        (near, other[[1, 0, 2, 3, 5, 4]], torch.tensor(math.log(200.0)), torch.tensor(-3.0), 1),
    ]


def _labels(rows: int, columns: int, start: int, size: int = 0) -> Tensor:
    right = torch.arange(rows)[:, None] == start + torch.arange(columns)
    return torch.where(right, 1.0, -1.0)


def _right_pairs_only(image, text, log_scale, bias, size):
    image, text = _both_units(image, text)
    return -F.logsigmoid((image * text).sum(-1) * log_scale.exp() + bias).mean()


def _block_labels(rows: int, columns: int, start: int, size: int) -> Tensor:
    own = torch.arange(rows)[:, None] // size == start // size
    return torch.where(own, 1.0, -1.0).expand(rows, columns)


def _repeated_labels(rows: int, columns: int, start: int, size: int) -> Tensor:
    one = 2 * torch.eye(columns) - 1
    return one.repeat(-(-rows // columns), 1)[:rows]


def siglip_loss_in_chunks(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    size: int,
    *,
    units: Callable = _both_units,
    factor: Callable[[Tensor], Tensor] = torch.exp,
    labels: Callable[[int, int, int, int], Tensor] = _labels,
    values: tuple[float, float] = (1.0, -1.0),
    log: Callable[[Tensor], Tensor] = F.logsigmoid,
    through: Callable[[Tensor], Tensor] | None = None,
    add_bias: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda s, bias, scale: s * scale + bias,
    starts: Callable[[int, int], Iterable[int]] = lambda n, size: range(0, n, size),
    filled: str = "",
    step: Callable[[int], int] = lambda size: size,
    rows: bool = False,
    of_chunk: Callable[[Tensor], Tensor] = torch.sum,
    divisor: Callable[[int, int], float] = lambda n, size: n,
    sign: float = -1.0,
    weights: tuple[float, float] = (1.0, 1.0),
    bias_on: tuple[float, float] = (1.0, 1.0),
    also_no: bool = False,
    instead: Callable[[Tensor, Tensor], Tensor] | None = None,
    cut: str = "",
    at_once: bool = False,
    in_each: float = 0.0,
    in_sum: float = 0.0,
    end: float = 0.0,
) -> Tensor:
    """The loss, (). The reference, or with one thing changed.

    The package's has the whole table, which the exercise forbids; a test holds this against it.
    rows: only the pictures that belong to a chunk's sentences. values, weights: of the right pairs
    and of the others. filled: with what a short chunk is filled, the "first" sentences or "zeros".
    cut: which pairs are out of autograd's graph, or all "earlier" chunks. at_once: the sum so
    far is divided in each chunk. in_each, in_sum, end: how much of the bias is added to each
    chunk's costs, to the sum, and to the loss. Others as above.
    """
    n, total = len(image), torch.zeros(())
    image, text = units(image, text)
    whole = text
    if filled:
        whole = text[torch.arange(n + size) % n]
        whole = whole * (torch.arange(n + size) < n)[:, None] if filled == "zeros" else whole
    for start in starts(n, size):
        chunk = whole[start : start + step(size)]
        own = image[start : start + step(size)] if rows else image
        right = labels(len(own), len(chunk), 0 if rows else start, size) > 0
        if filled == "first":
            right = torch.arange(n)[:, None] == (start + torch.arange(len(chunk))) % n
        bias_here = bias * torch.where(right, *bias_on)
        scores = add_bias(own @ chunk.T, bias_here, factor(log_scale))
        signs = torch.where(right, *values)
        costs = through(_right(signs, scores)) if through else log(signs * scores)
        costs = torch.where(right, *weights) * costs
        if also_no:
            costs = costs + right * log(-scores)
        if instead:
            costs = instead(scores, right)
        total = total.detach() if cut == "earlier" else total
        costs = _cut(costs, right, cut if cut != "earlier" else "")
        total = total + sign * of_chunk(costs) + in_each * bias
        total = total / divisor(n, size) if at_once else total
    return (total + in_sum * bias) / (1 if at_once else divisor(n, size)) + end * bias


def _by_full_chunks(
    image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor, size: int, *, how: str
) -> Tensor:
    """The loss as long as all chunks are full; else it raises, in one of many ways."""
    n, total = len(image), 0.0
    image, text = _both_units(image, text)
    if how == "view":
        text.view(-1, size, text.shape[1])
    if how == "unflatten":
        text.unflatten(0, (-1, size))
    for start in range(0, n, size):
        scores = image @ text[start : start + size].T * log_scale.exp() + bias
        labels = -torch.ones_like(scores) if "like" in how else -torch.ones(n, size)
        if how.startswith("loop"):
            for column in range(size):
                labels[start + column, column] = 1.0
        elif how.startswith("at once"):
            labels[start + torch.arange(size), torch.arange(size)] = 1.0
        else:
            labels = _labels(n, size, start)
        if how == "where":
            scores = torch.where(labels > 0, scores, -scores)
        elif how == "scores first":
            scores = scores * labels
        else:
            scores = labels * scores
        total = total - F.logsigmoid(scores).sum()
    return total / n


CHUNK_LABELS = (
    "In every chunk the right pairs are looked for at its start, as if picture 0 belonged to each"
    " chunk's first sentence. In the chunk that starts with sentence `start` it is picture `start`."
)

SIGLIP_IN_CHUNKS = Exercise(
    name="siglip_loss_in_chunks",
    transfer=True,
    reference=siglip_loss_in_chunks,
    cases=_chunk_cases,
    axes="",
    gradients=("image", "text", "log_scale", "bias"),
    largest=84,  # n * size * e, where that is most
    checked=(
        "the loss of 4 batches of 14, 14, 4 and 6 pairs in chunks of 2, 3, 9 and 1, one with all"
        " scores 0 and one with a factor of 200; no tensor of n * n numbers; gradients reach image,"
        " text, log_scale and bias; inputs unchanged"
    ),
    mistakes=(
        Mistake(
            "labels from the start",
            partial(
                siglip_loss_in_chunks, labels=lambda rows, columns, *_: _labels(rows, columns, 0)
            ),
            CHUNK_LABELS,
        ),
        Mistake(
            "right pairs in the first chunk alone",
            partial(
                siglip_loss_in_chunks,
                labels=lambda rows, columns, start, _: _labels(
                    rows, columns, start if not start else rows
                ),
            ),
            "Only the first chunk has right pairs. Every chunk has as many as it has sentences: the"
            " column c of the chunk that starts with sentence `start` belongs to picture start + c."
            " That is diagonal(-start), below the first one; diagonal(start) lies above it.",
        ),
        Mistake(
            "labels by chunks counted",
            partial(
                siglip_loss_in_chunks,
                labels=lambda rows, columns, start, size: _labels(rows, columns, start // size),
            ),
            "The right pairs of a chunk begin at the number of the chunk. They begin at its first"
            " sentence's number: the chunk's number times size.",
        ),
        Mistake(
            "labels by the chunk's own length",
            partial(
                siglip_loss_in_chunks,
                labels=lambda rows, columns, start, size: _labels(
                    rows, columns, start // size * columns
                ),
            ),
            "In the last chunk, which is shorter, the right pairs are looked for in a wrong place:"
            " the chunk's number is multiplied by its own length. Its first sentence has the"
            " chunk's number times `size`.",
        ),
        Mistake(
            "labels in whole blocks",
            partial(siglip_loss_in_chunks, labels=_block_labels),
            "In each chunk all its sentences belong to all of its pictures. Sentence c of a chunk"
            " belongs to picture start + c alone.",
        ),
        Mistake(
            "labels one later",
            partial(
                siglip_loss_in_chunks,
                labels=lambda rows, columns, start, _: _labels(rows, columns, start + 1),
            ),
            "The right pairs are looked for one place too far. The chunk that starts with sentence"
            " `start` has picture `start` in its first column.",
        ),
        *(
            Mistake(
                f"labels {name}",
                partial(
                    siglip_loss_in_chunks,
                    labels=lambda rows, columns, start, size, away=away: _labels(
                        rows, columns, start + away * size
                    ),
                ),
                f"The right pairs are looked for one chunk too {name}. In the chunk that starts"
                " with sentence `start` they begin at picture `start`, and only after the chunk"
                " `start` grows by size.",
            )
            for name, away in (("far", 1), ("early", -1))
        ),
        Mistake(
            "last chunk moved back",
            partial(
                siglip_loss_in_chunks,
                starts=lambda n, size: [max(min(i, n - size), 0) for i in range(0, n, size)],
            ),
            "The last chunk is moved back until it is full, so some sentences count twice. It may"
            " be shorter: text[start : start + size] ends at n by itself.",
        ),
        *(
            Mistake(
                f"short chunk filled with {what}",
                partial(siglip_loss_in_chunks, filled=what),
                f"A chunk that is too short is filled up {how}, and these count as sentences. It"
                " may be shorter: text[start : start + size] ends at n by itself.",
            )
            for what, how in (("first", "with the first sentences again"), ("zeros", "with zeros"))
        ),
        Mistake(
            "earlier chunks out of the graph",
            partial(siglip_loss_in_chunks, cut="earlier"),
            "The values are right, but the sum so far is taken out of autograd's graph (detach,"
            " .item(), no_grad), so only the last chunk teaches.",
        ),
        *_edits(siglip_loss_in_chunks, PAIRS),
        Mistake("right pairs as no, too", partial(siglip_loss_in_chunks, also_no=True), ALSO_NO),
        Mistake(
            "right pairs twice",
            partial(siglip_loss_in_chunks, weights=(2.0, 1.0)),
            "The right pairs cost twice what they should. Every pair counts once.",
        ),
        Mistake(
            "wrong pairs only",
            partial(siglip_loss_in_chunks, weights=(0.0, 1.0)),
            "The right pairs do not count. All n * n do.",
        ),
        *(
            Mistake(
                f"bias {name}",
                partial(siglip_loss_in_chunks, add_bias=_without_bias, **given),
                BIAS_LATE,
            )
            for name, given in (
                ("added to the sum", {"in_sum": 1.0}),
                ("added to each chunk's sum", {"in_each": 1.0}),
                ("added to the loss", {"end": 1.0}),
            )
        ),
        Mistake(
            "right pairs in every chunk for all pictures",
            partial(siglip_loss_in_chunks, labels=_repeated_labels),
            "In every chunk all pictures find a right sentence, as if the numbering began anew in"
            " each chunk. A picture has one right sentence in all chunks together.",
        ),
        Mistake(
            "right pairs only",
            _right_pairs_only,
            "Only the right pairs count. All n * n do: for the others the right answer is no.",
        ),
        Mistake(
            "only the blocks on the diagonal",
            partial(siglip_loss_in_chunks, rows=True),
            "Each chunk of sentences meets only its own pictures. It must meet all n pictures: n"
            " * n"
            " pairs count, most of them wrong ones.",
        ),
        Mistake(
            "last chunk dropped",
            partial(siglip_loss_in_chunks, starts=lambda n, size: range(0, n - size + 1, size)),
            "The last chunk, which is shorter, is left out. range(0, n, size) goes up to it.",
        ),
        Mistake(
            "last chunk dropped, unless alone",
            partial(
                siglip_loss_in_chunks, starts=lambda n, size: range(0, max(n - size + 1, 1), size)
            ),
            "The last chunk, which is shorter, is left out, unless there is no other. range(0, n,"
            " size) goes up to it.",
        ),
        *(
            Mistake(
                f"last chunk left out{but}",
                partial(siglip_loss_in_chunks, starts=starts),
                "The last chunk is left out, even where it is full. range(0, n, size) goes up to"
                " it.",
            )
            for but, starts in {
                "": lambda n, size: range(0, n - size, size),
                ", unless alone": lambda n, size: range(0, max(n - size, 1), size),
            }.items()
        ),
        Mistake(
            "divided inside the loop",
            partial(siglip_loss_in_chunks, at_once=True),
            "You divide by n inside the loop, so the first chunks are divided again and again. Add"
            " up all chunks, and divide once, behind the loop.",
        ),
        Mistake(
            "first chunk only",
            partial(siglip_loss_in_chunks, starts=lambda n, size: range(0, 1)),
            "Only the first chunk counts. Does a `return` stand inside the loop, or is the sum"
            " never"
            " added to?",
        ),
        Mistake(
            "last chunk only",
            partial(
                siglip_loss_in_chunks,
                starts=lambda n, size: range((n - 1) // size * size, n, size),
            ),
            "Only the last chunk counts. Is the sum set back to its start inside the loop?",
        ),
        Mistake(
            "first chunk left out",
            partial(siglip_loss_in_chunks, starts=lambda n, size: range(size, n, size)),
            "The first chunk is left out.",
        ),
        Mistake(
            "chunks overlap",
            partial(siglip_loss_in_chunks, step=lambda size: size + 1),
            "The chunks overlap by one sentence, which then counts twice.",
        ),
        Mistake(
            "chunks with gaps",
            partial(siglip_loss_in_chunks, step=lambda size: max(size - 1, 1)),
            "One sentence between two chunks is left out. text[start : start + size] ends just"
            " before the next start.",
        ),
        Mistake(
            "averaged over each chunk's pairs",
            partial(siglip_loss_in_chunks, of_chunk=torch.mean),
            "You take the mean of each chunk. A shorter chunk then counts as much as a long one:"
            " add"
            " up the costs of all pairs, and divide once, by n.",
        ),
        Mistake(
            "mean of the chunks' losses",
            partial(
                siglip_loss_in_chunks,
                of_chunk=lambda costs: costs.sum() / costs.shape[1],
                divisor=lambda n, size: math.ceil(n / size),
            ),
            "You take the mean of the chunks' own losses. A shorter chunk then counts as much as a"
            " long one: add up the costs of all pairs, and divide once, by n.",
        ),
        Mistake(
            "divided by each chunk's length",
            partial(
                siglip_loss_in_chunks,
                of_chunk=lambda costs: costs.sum() / costs.shape[1],
                divisor=lambda n, size: 1,
            ),
            "Each chunk's sum is divided by the chunk's length. Divide the whole sum by n, once.",
        ),
        Mistake(
            "sum of means",
            partial(siglip_loss_in_chunks, of_chunk=torch.mean, divisor=lambda n, size: 1),
            "You add up the mean of each chunk's costs. Add up the costs themselves, and divide"
            " once, by n.",
        ),
        Mistake(
            "mean of means",
            partial(
                siglip_loss_in_chunks,
                of_chunk=torch.mean,
                divisor=lambda n, size: math.ceil(n / size),
            ),
            "You take the mean of the chunks' means. Add up the costs of all pairs, and divide"
            " once,"
            " by n.",
        ),
        Mistake(
            "divided by size",
            partial(siglip_loss_in_chunks, divisor=lambda n, size: size),
            "The sum is divided by size. Divide it by n, the number of pictures.",
        ),
        Mistake(
            "divided by the chunks too",
            partial(siglip_loss_in_chunks, divisor=lambda n, size: n * math.ceil(n / size)),
            "The sum is divided by n and by the number of chunks. The chunks together are one sum:"
            " divide by n alone.",
        ),
        *_named(
            siglip_loss_in_chunks,
            "divisor",
            tuple((name, lambda n, size, of=of: of(n), says) for name, of, says in DIVISORS),
        ),
        *(
            Mistake(
                name,
                partial(
                    siglip_loss_in_chunks,
                    values=(given.get("right_label", 1.0), given.get("wrong_label", -1.0)),
                ),
                says,
            )
            for name, given, says in LABELS
        ),
        *_named(siglip_loss_in_chunks, "units", (*UNITS[:4], UNITS[-3])),
        *_named(siglip_loss_in_chunks, "factor", FACTORS[:5]),
        *_named(siglip_loss_in_chunks, "log", LOGS),
        # Of the others two give the same here as "plus" the same number.
        *_named(siglip_loss_in_chunks, "through", (*THROUGH[:3], *THROUGH[5:])),
        *_named(siglip_loss_in_chunks, "add_bias", BIASES[:5]),
        Mistake(
            "sign",
            partial(siglip_loss_in_chunks, sign=1.0),
            "The sign is wrong: this is the sum of log probabilities, which is below 0. The loss is"
            " minus that.",
        ),
    ),
    crashes=tuple(
        Mistake(
            f"only full chunks, {how}",
            partial(_by_full_chunks, how=how),
            "You take every chunk to hold `size` sentences. The last one may be shorter, and size"
            " may be larger than n: ask the chunk for its length.",
        )
        for how in (
            "labels first",
            "scores first",
            "where",
            "at once",
            "at once, like",
            "loop",
            "loop, like",
            "view",
            "unflatten",
        )
    ),
    hints=(
        "Take your `siglip_loss` and let it see `size` sentences: text[start : start + size] for"
        " start in range(0, n, size). What changes in the table of scores, and what in the labels?",
        "The table of a chunk is (n, size of the chunk), and in column c the right picture is"
        " number"
        " start + c. labels = -torch.ones_like(scores) first; then n of them become 1.",
        "columns = torch.arange(len(chunk)); labels[start + columns, columns] = 1. Add up"
        " -F.logsigmoid(labels * scores).sum() over the chunks, and divide by len(image) behind the"
        " loop.",
    ),
)

EXERCISES = (CLIP, SIGLIP, SIGLIP_IN_CHUNKS)
