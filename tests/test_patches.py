"""Lesson 01: pictures to patch vectors."""

import pytest
import torch
from conftest import make_pair
from torch import nn

from minipali.checks import engine
from minipali.checks.lessons import exercises
from minipali.checks.patches import stretch_positions
from minipali.patches import PatchEmbedding, affine_map, patchify


def test_patches_come_in_reading_order_and_channel_row_column_order():
    b, c, y, x, p = 2, 3, 4, 6, 2  # not square: a swap of height and width shows
    pixels = torch.arange(b * c * y * x, dtype=torch.float32).reshape(b, c, y, x)
    expected = torch.empty(b, (y // p) * (x // p), c * p * p)
    for picture in range(b):
        place = 0
        for row in range(0, y, p):
            for column in range(0, x, p):
                values = [
                    pixels[picture, channel, row + dy, column + dx]
                    for channel in range(c)
                    for dy in range(p)
                    for dx in range(p)
                ]
                expected[picture, place] = torch.stack(values)
                place += 1
    torch.testing.assert_close(patchify(pixels, p), expected, rtol=0, atol=0)


def test_a_picture_that_is_not_whole_patches_is_refused():
    with pytest.raises(Exception, match="divi"):
        patchify(torch.zeros(1, 3, 5, 4), 2)


def test_embedding_is_one_affine_map_per_patch_plus_its_place():
    torch.manual_seed(0)
    embedding = PatchEmbedding(image_size=6, patch_size=2, channels=3, width=5)
    pixels = torch.randn(2, 3, 6, 6)
    weight, bias = affine_map(embedding)
    assert weight.shape == (5, 12) and bias.shape == (5,)
    out = embedding(pixels)
    convolution = embedding.patch_embedding
    for place, (row, column) in enumerate((r, c) for r in (0, 2, 4) for c in (0, 2, 4)):
        patch = pixels[:, :, row : row + 2, column : column + 2].reshape(2, 12)
        expected = patch @ convolution.weight.reshape(5, 12).T + convolution.bias
        expected = expected + embedding.position_embedding.weight[place]
        torch.testing.assert_close(out[:, place], expected, rtol=0, atol=1e-6)
        own = patch @ weight.T + bias + embedding.position_embedding.weight[place]
        torch.testing.assert_close(out[:, place], own, rtol=0, atol=1e-6)


def test_affine_map_of_a_convolution_without_bias_adds_nothing():
    embedding = PatchEmbedding(image_size=4, patch_size=2, channels=1, width=3)
    embedding.patch_embedding = nn.Conv2d(1, 3, 2, stride=2, bias=False)
    weight, bias = affine_map(embedding)
    patch = torch.randn(7, 4)
    torch.testing.assert_close(patch @ weight.T + bias, patch @ weight.T)


def test_embeddings_equal_transformers():
    ours, theirs = make_pair()
    pixels = torch.rand(2, 3, 12, 12) * 2 - 1
    with torch.no_grad():
        expected = theirs.model.vision_tower.embeddings(pixels)
        found = ours.vision_tower.embeddings(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 3, 12, 8), (2, 1, 12, 12), (3, 12, 12)])
def test_a_picture_of_another_size_is_refused_with_both_sizes(shape):
    embedding = PatchEmbedding(image_size=12, patch_size=4, channels=3, width=5)
    with pytest.raises(ValueError, match=r"\(batch, 3, 12, 12\).*found .*resize"):
        embedding(torch.zeros(shape))


def test_float_pixels_enter_a_bfloat16_tower():
    embedding = PatchEmbedding(image_size=4, patch_size=2, channels=3, width=5).bfloat16()
    assert embedding(torch.rand(1, 3, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize(("old", "new"), [((2, 3), (4, 5)), ((5, 4), (2, 3)), ((1, 2), (1, 4))])
def test_the_exercises_stretched_table_is_torchs_stretched_picture(old, new):
    table = torch.randn(old[0] * old[1], 6, generator=torch.Generator().manual_seed(0))
    picture = table.reshape(*old, 6).permute(2, 0, 1)[None]
    expected = nn.functional.interpolate(picture, new, mode="bilinear")[0].permute(1, 2, 0)
    found = stretch_positions(table, old, new)
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=0, atol=1e-6)


def test_the_exercises_two_results_by_hand_are_right():
    def in_a_row(values, new):
        table = torch.tensor([[float(v)] for v in values])
        return stretch_positions(table, (1, len(values)), (1, new)).flatten().tolist()

    assert in_a_row((0, 4), 4) == [0, 1, 3, 4]
    assert in_a_row((0, 6), 3) == [0, 3, 6]


CRASHES = [(one, crash) for one in exercises().values() for crash in one.crashes]


@pytest.mark.parametrize(
    ("one", "crash"), CRASHES, ids=[f"{one.name}-{crash.name}" for one, crash in CRASHES]
)
def test_each_known_crash_is_named(one, crash, monkeypatch):
    monkeypatch.setattr(engine, "_finished_modules", lambda exercise: set())
    outcome = engine.examine(one, lambda *given: crash.wrong(*given))
    if outcome.status != engine.WRONG:  # known by what it gave before it raised
        assert outcome.status == engine.CRASHED
        assert outcome.message.startswith(crash.says)


def test_an_error_of_another_kind_gets_no_known_name():
    def other(pixels, p):
        return pixels.reshape(7)

    outcome = engine.examine(exercises()["patchify"], other)
    assert outcome.message.startswith("Case 1 of 3")
