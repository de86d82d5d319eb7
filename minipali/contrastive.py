"""Lesson 05. Pictures and sentences in one space: CLIP's softmax loss and SigLIP's sigmoid loss.

Axis letters: `i` pictures, `j` sentences, `e` embedding width; `b n d` as in `patches`.
"""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from minipali.config import VisionConfig
from minipali.vision import EncoderLayer, VisionTower

# The published start values. Scales are learned as logarithms, so that they stay positive.
CLIP_LOG_SCALE = math.log(1 / 0.07)
SIGLIP_LOG_SCALE, SIGLIP_BIAS = math.log(10.0), -10.0


def similarities(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of every picture with every sentence: (..., i, e), (j, e) -> (..., i, j)."""
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def clip_loss(image: Tensor, text: Tensor, log_scale: Tensor | float = CLIP_LOG_SCALE) -> Tensor:
    """CLIP's symmetric softmax loss; picture i belongs to sentence i.

    image, text: (i, e), not yet normalised; log_scale: log of the factor on the cosines.
    Mean of two cross entropies: along each row (which sentence fits this picture?) and along each
    column (which picture fits this sentence?). Source: Radford et al. 2021, figure 3.
    """
    _check_pairs(image, text)
    logits = similarities(image, text) * torch.as_tensor(log_scale).exp()
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def siglip_loss(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor | float = SIGLIP_LOG_SCALE,
    bias: Tensor | float = SIGLIP_BIAS,
    labels: Tensor | None = None,
) -> Tensor:
    """SigLIP's sigmoid loss: every pair is a yes-or-no question of its own.

    image: (i, e), text: (j, e), not yet normalised; labels: (i, j), +1 for pairs that belong
    together and -1 for the others; by default picture i belongs to sentence i alone.
    -log sigmoid(label * (scale * cosine + bias)), summed over all pairs, divided by the number of
    pictures. Source: Zhai et al. 2023, algorithm 1 (start values 10 and -10).
    """
    logits = similarities(image, text) * torch.as_tensor(log_scale).exp() + bias
    if labels is None:
        _check_pairs(image, text)
        labels = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(image)


def _check_pairs(image: Tensor, text: Tensor) -> None:
    if len(image) != len(text):
        raise ValueError(
            "without labels picture i belongs to sentence i, so there must be as many of both;"
            f" found {len(image)} pictures and {len(text)} sentences"
        )


class _PassOn(torch.autograd.Function):
    """Send a tensor to the next rank and receive the previous rank's; gradients go back."""

    @staticmethod
    def forward(ctx, sent: Tensor) -> Tensor:
        return _exchange(sent, step=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _exchange(gradient, step=-1)


def _exchange(sent: Tensor, step: int) -> Tensor:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    sent = sent.contiguous()
    received = torch.empty_like(sent)  # which copies the order of the axes in memory too
    work = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, sent, (rank + step) % ranks),
            dist.P2POp(dist.irecv, received, (rank - step) % ranks),
        ]
    )
    for part in work:
        part.wait()
    return received


def siglip_loss_ring(
    image: Tensor,
    text: Tensor,
    log_scale: Tensor | float,
    bias: Tensor | float,
    labels: Tensor | None = None,
) -> Tensor:
    """`siglip_loss` over all ranks of a process group, one block of sentences at a time.

    Each rank holds i pictures and j sentences (the same numbers on every rank). The sentences
    travel round the ring, and a rank computes with one foreign block at a time, because the sigmoid
    needs no sum over a whole row. (For the backward pass autograd keeps the blocks.) labels: (i,
    ranks * j), columns in the order of the ranks; by default picture i of a rank belongs to its
    sentence i. The mean over the ranks of the result is `siglip_loss` of everything together, which
    is what DistributedDataParallel's averaged gradient follows. Source: Zhai et al. 2023, section
    3.3.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    # Whatever is wrong must be said before anything is sent, or the other ranks get it in pieces.
    if labels is None:
        _check_pairs(image, text)
        labels = -torch.ones(len(image), ranks * len(text), device=image.device)
        own = torch.arange(len(image), device=image.device)
        labels[own, rank * len(text) + own] = 1
    elif labels.shape != (len(image), ranks * len(text)):
        raise ValueError(
            f"labels must have a row for each of {len(image)} pictures and a column for each of"
            f" {ranks} x {len(text)} sentences, found {tuple(labels.shape)}"
        )
    blocks = labels.split(len(text), dim=1)
    loss = siglip_loss(image, text, log_scale, bias, blocks[rank])
    for step in range(1, ranks):
        text = _PassOn.apply(text)
        loss = loss + siglip_loss(image, text, log_scale, bias, blocks[(rank - step) % ranks])
    return loss


class TextTower(nn.Module):
    """A small sentence encoder, used while the vision tower learns and dropped afterwards."""

    def __init__(self, vocab_size: int, width: int, heads: int, layers: int, max_length: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(max_length, width)
        config = VisionConfig(width, 2 * width, layers, heads)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(j, t), (j, t) with 0 at padding -> (j, d), the mean over the real tokens.

        Padding is not masked inside the layers (SigLIP does not either), only left out of the mean.
        """
        x = self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        weights = attention_mask[..., None].to(x.dtype)
        return (self.final_layer_norm(x) * weights).sum(dim=1) / weights.sum(dim=1)


class Contrastive(nn.Module):
    """A vision tower and a text tower with projections into one space, scale and bias.

    The published SigLIP pools patches with an attention head; the mean does here.
    """

    def __init__(self, vision: VisionTower, text: TextTower, start_bias: float = SIGLIP_BIAS):
        super().__init__()
        width = text.token_embedding.embedding_dim
        self.vision_tower = vision
        self.text_tower = text
        self.image_projection = nn.Linear(vision.post_layernorm.normalized_shape[0], width)
        self.patch_projection = nn.Linear(vision.post_layernorm.normalized_shape[0], width)
        self.log_scale = nn.Parameter(torch.tensor(SIGLIP_LOG_SCALE))
        self.bias = nn.Parameter(torch.tensor(start_bias))
        self.patch_bias = nn.Parameter(torch.tensor(start_bias))

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """(b, c, y, x) -> (b, e), not yet normalised."""
        return self.image_projection(self.vision_tower(pixels).mean(dim=1))

    def forward(
        self,
        pixels: Tensor,
        sentences: tuple[Tensor, Tensor],
        picture_labels: Tensor,
        names: tuple[Tensor, Tensor],
        patch_labels: Tensor,
    ) -> Tensor:
        """The sigmoid loss of pictures against sentences plus that of patches against names.

        pixels: (b, c, y, x); sentences, names: ids and mask, (j, t) each, this rank's share of the
        sentences but all names; picture_labels: (b, all sentences); patch_labels: (b, n, names).
        """
        features = self.vision_tower(pixels)
        pictures = self.image_projection(features.mean(dim=1))
        patches = self.patch_projection(features).flatten(0, 1)
        across_ranks = dist.is_initialized() and dist.get_world_size() > 1
        whole = (siglip_loss_ring if across_ranks else siglip_loss)(
            pictures, self.text_tower(*sentences), self.log_scale, self.bias, picture_labels
        )
        parts = siglip_loss(
            patches, self.text_tower(*names), self.log_scale, self.patch_bias,
            patch_labels.flatten(0, 1),
        )  # fmt: skip
        return whole + parts
