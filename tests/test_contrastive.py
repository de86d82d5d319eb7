"""Lesson 05: both losses against the papers' formulas, and the ring against one process."""

import math
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from minipali.checks import exercise
from minipali.checks.contrastive import siglip_loss_in_chunks
from minipali.checks.engine import REFUSED, examine
from minipali.config import VisionConfig
from minipali.contrastive import (
    Contrastive,
    TextTower,
    _PassOn,
    clip_loss,
    siglip_loss,
    siglip_loss_ring,
    similarities,
)
from minipali.hooks import watch
from minipali.vision import VisionTower

PICTURES, SENTENCES, E = 4, 4, 6


def embeddings(i: int = PICTURES, j: int = SENTENCES, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    image = 2 * torch.randn(i, E, generator=random)
    text = 3 * torch.randn(j, E, generator=random)
    return image, text


def leaves(*numbers) -> list[torch.Tensor]:
    return [torch.as_tensor(x).detach().clone().requires_grad_() for x in numbers]


def cosine(x, y):
    """Written out in float64."""
    dot = sum(a * b for a, b in zip(x.double(), y.double(), strict=True))
    length = [sum(a * a for a in z.double()).sqrt() for z in (x, y)]
    return dot / (length[0] * length[1])


def clip_by_loop(image, text, log_scale):
    """Radford et al. 2021, figure 3: -log of the right pair's share, by row and by column."""
    scores = [[log_scale.double().exp() * cosine(x, y) for y in text] for x in image]
    n = len(scores)
    by_row = sum(
        torch.log(sum(scores[i][j].exp() for j in range(n))) - scores[i][i] for i in range(n)
    )
    by_column = sum(
        torch.log(sum(scores[i][j].exp() for i in range(n))) - scores[j][j] for j in range(n)
    )
    return (by_row / n + by_column / n) / 2


def siglip_by_loop(image, text, log_scale, bias, labels):
    """Zhai et al. 2023, equation 1: -1/|B| sum_i sum_j log 1 / (1 + e^(z (-t x.y - b)))."""
    total = 0.0
    for i, x in enumerate(image):
        for j, y in enumerate(text):
            logit = log_scale.double().exp() * cosine(x, y) + bias.double()
            total = total + torch.log(1 + torch.exp(-float(labels[i, j]) * logit))
    return total / len(image)


def same_value_and_gradients(found_loss, expected_loss, arguments, twins):
    torch.testing.assert_close(found_loss.double(), expected_loss, rtol=0, atol=1e-5)
    found = torch.autograd.grad(found_loss, arguments)
    expected = torch.autograd.grad(expected_loss, twins)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-6)


def test_similarities_are_cosines_with_pictures_as_rows():
    image, text = embeddings(3, 5)
    found = similarities(image, text)
    assert found.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            assert float(found[i, j]) == pytest.approx(float(cosine(image[i], text[j])), abs=1e-6)


def test_similarities_of_patches_keep_their_leading_axes():
    image, text = embeddings(6, 5)
    patches = image.reshape(2, 3, E)
    torch.testing.assert_close(similarities(patches, text).flatten(0, 1), similarities(image, text))


@pytest.mark.parametrize("log_scale", [0.0, math.log(1 / 0.07), 3.0])
def test_clip_loss_and_its_gradients_follow_the_paper(log_scale):
    arguments = leaves(*embeddings(), log_scale)
    twins = leaves(*embeddings(), log_scale)
    same_value_and_gradients(clip_loss(*arguments), clip_by_loop(*twins), arguments, twins)


def test_clip_loss_starts_at_the_papers_temperature():
    image, text = embeddings()
    expected = clip_by_loop(image, text, torch.tensor(math.log(1 / 0.07)))
    torch.testing.assert_close(clip_loss(image, text).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("log_scale", "bias"), [(math.log(10), -10.0), (0.5, 0.3)])
def test_siglip_loss_and_its_gradients_follow_the_paper(log_scale, bias):
    arguments = leaves(*embeddings(), log_scale, bias)
    twins = leaves(*embeddings(), log_scale, bias)
    labels = 2 * torch.eye(PICTURES) - 1
    same_value_and_gradients(
        siglip_loss(*arguments), siglip_by_loop(*twins, labels), arguments, twins
    )


def test_siglip_loss_takes_several_positives_and_more_sentences_than_pictures():
    labels = torch.tensor([[1, 1, -1, -1, 1], [-1, -1, -1, -1, -1], [-1, 1, 1, -1, -1]]).float()
    arguments = leaves(*embeddings(3, 5), 1.0, -0.5)
    twins = leaves(*embeddings(3, 5), 1.0, -0.5)
    found = siglip_loss(*arguments, labels)
    same_value_and_gradients(found, siglip_by_loop(*twins, labels), arguments, twins)


def test_siglip_loss_starts_at_the_papers_scale_and_bias():
    image, text = embeddings()
    start = torch.tensor(math.log(10.0)), torch.tensor(-10.0)
    expected = siglip_by_loop(image, text, *start, 2 * torch.eye(PICTURES) - 1)
    torch.testing.assert_close(siglip_loss(image, text).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_losses_do_not_care_for_length_but_for_pairs(loss):
    image, text = embeddings()
    torch.testing.assert_close(loss(7 * image, text / 5), loss(image, text))
    assert (loss(image, text.roll(1, 0)) - loss(image, text)).abs() > 1e-2


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_huge_scales_do_not_overflow(loss):
    image, text = (x.requires_grad_() for x in embeddings())
    value = loss(image, text, 8.0)  # a factor of 2981
    value.backward()
    assert value.isfinite() and image.grad.isfinite().all() and text.grad.isfinite().all()


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_unequal_numbers_without_labels_are_counted_out(loss):
    with pytest.raises(ValueError, match="found 3 pictures and 5 sentences"):
        loss(*embeddings(3, 5))


def make_contrastive() -> Contrastive:
    torch.manual_seed(0)
    vision = VisionTower(VisionConfig(8, 12, 1, 2, image_size=8, patch_size=4))
    model = Contrastive(vision, TextTower(30, width=E, heads=2, layers=1, max_length=5), -1.0)
    with torch.no_grad():
        model.patch_bias.fill_(-0.5)
        for p in model.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.7 * p[0].numel() ** -0.5)
    return model


def contrastive_batch():
    """6 pictures, 6 sentences, 4 patches a picture, 3 names; the masks end at different places."""
    random = torch.Generator().manual_seed(1)

    def sentences(number):
        ids = torch.randint(0, 30, (number, 5), generator=random)
        length = torch.randint(2, 6, (number, 1), generator=random)
        return ids, (torch.arange(5) < length).long()

    def labels(*shape):
        return (torch.rand(shape, generator=random) < 0.4).float() * 2 - 1

    pixels = torch.rand(6, 3, 8, 8, generator=random) * 2 - 1
    return pixels, sentences(6), labels(6, 6), sentences(3), labels(6, 4, 3)


def test_contrastive_is_the_loss_of_pictures_plus_the_loss_of_patches():
    model = make_contrastive()
    pixels, sentences, picture_labels, names, patch_labels = contrastive_batch()
    with torch.no_grad():
        features = model.vision_tower(pixels)
        whole = siglip_by_loop(
            model.image_projection(features.mean(dim=1)), model.text_tower(*sentences),
            model.log_scale, model.bias, picture_labels,
        )  # fmt: skip
        parts = siglip_by_loop(
            model.patch_projection(features.reshape(24, 8)), model.text_tower(*names),
            model.log_scale, model.patch_bias, patch_labels.reshape(24, 3),
        )  # fmt: skip
        found = model(pixels, sentences, picture_labels, names, patch_labels)
        torch.testing.assert_close(found.double(), whole + parts, rtol=0, atol=1e-5)
        embedded = model.embed_pictures(pixels)
        torch.testing.assert_close(embedded, model.image_projection(features.mean(dim=1)))


def test_a_sentence_is_the_mean_over_its_real_tokens():
    tower = make_contrastive().text_tower
    ids, mask = contrastive_batch()[1]
    kept = {}
    with (
        torch.no_grad(),
        watch({"all": tower.final_layer_norm}.items(), lambda n, _, out: kept.update({n: out})),
    ):
        found = tower(ids, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        torch.testing.assert_close(found[i], kept["all"][i, :length].mean(0), rtol=0, atol=1e-6)
    assert len(set(mask.sum(1).tolist())) > 1


# --- several processes ---------------------------------------------------------------------------
# One spawn serves all these tests: three processes form a ring, then two of them another one with
# DistributedDataParallel on top.


def ring_part(rank: int, ranks: int, own_labels: bool, transposed: bool = False) -> dict:
    """This rank's two pictures and three (or two) sentences: the loss and all gradients.

    transposed: with the axes of the sentences, and of the gradient that comes back to them, in the
    other order in memory.
    """
    per_rank = 3 if own_labels else 2
    image, text = embeddings(2 * ranks, per_rank * ranks, seed=2)
    labels = ring_labels(ranks)[2 * rank : 2 * rank + 2] if own_labels else None
    arguments = leaves(
        image[2 * rank : 2 * rank + 2], text[per_rank * rank : per_rank * (rank + 1)], 1.0, -0.5
    )
    given = list(arguments)
    if transposed:
        given[1] = arguments[1].T.contiguous().T
        assert not given[1].is_contiguous()
    loss = siglip_loss_ring(*given, labels)
    return {"loss": loss.detach(), "gradients": torch.autograd.grad(loss, arguments)}


def passed_on(rank: int) -> torch.Tensor:
    """The gradient of a tensor that was passed on, when it comes back in the other order."""
    sent = torch.arange(6.0).reshape(2, 3).requires_grad_()
    factor = torch.arange(6.0).reshape(3, 2) + 10 * rank
    (_PassOn.apply(sent).T * factor).sum().backward()
    return sent.grad


def refusals(rank: int, ranks: int) -> list[str]:
    """What is said about wrong numbers of labels and of pictures; nothing is sent before."""
    said = []
    for pictures, labels in ((2, torch.ones(2, 5)), (4, None)):
        image, text = embeddings(pictures, 3)
        if rank == 0:  # the others have sent nothing that waits for this rank
            with pytest.raises(ValueError) as caught:
                siglip_loss_ring(image, text, 1.0, -0.5, labels)
            said.append(str(caught.value))
    dist.barrier()
    return said


def ring_labels(ranks: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(3)
    return (torch.rand(2 * ranks, 3 * ranks, generator=random) < 0.4).float() * 2 - 1


def parallel_part(rank: int, ranks: int) -> dict:
    """A training step's gradients, as DistributedDataParallel averages them."""
    model = make_contrastive()
    pixels, sentences, picture_labels, names, patch_labels = contrastive_batch()
    own = slice(6 // ranks * rank, 6 // ranks * (rank + 1))
    share = tuple(part[own] for part in sentences)
    wrapped = nn.parallel.DistributedDataParallel(model)
    loss = wrapped(pixels[own], share, picture_labels[own], names, patch_labels[own])
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
    }


def work(rank: int, ports: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    result = {}
    for ranks, port in zip((3, 2), ports, strict=True):
        if rank >= ranks:
            break
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
        )
        result[ranks] = {
            "pairs": ring_part(rank, ranks, own_labels=False),
            "labels": ring_part(rank, ranks, own_labels=True),
            "transposed": ring_part(rank, ranks, own_labels=True, transposed=True),
            "passed on": passed_on(rank),
            "refusals": refusals(rank, ranks),
            "parallel": parallel_part(rank, ranks),
        }
        dist.destroy_process_group()
    torch.save(result, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict]:
    """What each of three processes found."""
    folder = tmp_path_factory.mktemp("ring")
    sockets = [socket.socket() for _ in (3, 2)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    torch.multiprocessing.spawn(work, (ports, str(folder)), nprocs=3)
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["pairs", "labels", "transposed"])
def test_the_ring_equals_one_process_in_loss_and_gradients(together, ranks, kind):
    found = [together[rank][ranks][kind] for rank in range(ranks)]
    per_rank = 2 if kind == "pairs" else 3
    labels = ring_labels(ranks) if kind != "pairs" else 2 * torch.eye(2 * ranks) - 1
    whole = leaves(*embeddings(2 * ranks, per_rank * ranks, seed=2), 1.0, -0.5)
    expected = siglip_by_loop(*whole, labels)
    mean = torch.stack([part["loss"] for part in found]).mean()
    torch.testing.assert_close(mean.double(), expected, rtol=0, atol=1e-5)

    image, text, log_scale, bias = torch.autograd.grad(expected, whole)
    parts = list(zip(*(part["gradients"] for part in found), strict=True))
    # The mean over the ranks is the loss, so each rank's own gradient is `ranks` times its share.
    for mine, other in ((torch.cat(parts[0]), image), (torch.cat(parts[1]), text)):
        torch.testing.assert_close(mine / ranks, other, rtol=1e-4, atol=1e-6)
    for mine, other in ((parts[2], log_scale), (parts[3], bias)):
        torch.testing.assert_close(torch.stack(mine).mean(), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_gradient_comes_back_from_the_rank_that_got_the_tensor(together, ranks):
    for rank in range(ranks):
        taken_by = (rank + 1) % ranks
        expected = (torch.arange(6.0).reshape(3, 2) + 10 * taken_by).T
        assert torch.equal(together[rank][ranks]["passed on"], expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ring_refuses_wrong_numbers_before_it_sends(together, ranks):
    labels, pairs = together[0][ranks]["refusals"]
    assert f"{ranks} x 3 sentences, found (2, 5)" in labels
    assert "found 4 pictures and 3 sentences" in pairs


@pytest.mark.parametrize("ranks", [2, 3])
def test_training_on_several_processes_follows_the_gradient_of_one(together, ranks):
    model = make_contrastive()
    loss = model(*contrastive_batch())
    loss.backward()
    found = [together[rank][ranks]["parallel"] for rank in range(ranks)]
    mean = torch.stack([part["loss"] for part in found]).mean()
    torch.testing.assert_close(mean, loss.detach(), rtol=0, atol=1e-5)
    for name, p in model.named_parameters():
        for part in found:
            torch.testing.assert_close(
                part["gradients"][name], p.grad, rtol=1e-4, atol=1e-6, msg=name
            )
        # (Keys have no gradient through their bias: a softmax ignores a constant.)
        assert p.grad.abs().max() > 1e-4 or "k_proj.bias" in name


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_the_exercises_loss_in_chunks_is_the_loss(size):
    arguments, twins = (leaves(*embeddings(5, 5), 1.0, -0.5) for _ in range(2))
    found, expected = siglip_loss_in_chunks(*arguments, size), siglip_loss(*twins)
    same_value_and_gradients(found, expected.double(), arguments, twins)


def test_a_whole_table_in_the_exercise_is_noticed():
    def whole(image, text, log_scale, bias, size):
        labels = 2 * torch.eye(len(image)) - 1
        chunks = zip(text.split(size), labels.split(size, dim=1), strict=True)
        return sum(siglip_loss(image, *chunk, log_scale, bias) for chunk in chunks)

    outcome = examine(exercise("siglip_loss_in_chunks"), whole)
    assert outcome.status == REFUSED
    assert "a tensor of the shape (14, 14), by torch's eye" in outcome.message
