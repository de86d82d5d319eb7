"""The pictures and questions: true, repeatable, and the held-out artists stay out."""

import re

import numpy as np
import pytest
import torch

from minipali import scenes
from minipali.locations import overlap, read_boxes
from minipali.recipe import training_scenes


def made(number: int, artists=scenes.TRAINING_ARTISTS, **options):
    rng = np.random.default_rng(5)
    return [scenes.compose(rng, artists, **options) for _ in range(number)]


def test_held_out_artists_are_no_training_artists():
    trained = {s for sets in scenes.TRAINING_ARTISTS.values() for s in sets}
    held = {
        s for a in (scenes.VALIDATION_ARTIST, scenes.TEST_ARTIST) for s in a.values() for s in s
    }
    assert held and not trained & held
    assert not any("fluent" in s for s in held)  # one artist in three styles: all on one side


def test_training_scenes_use_no_held_out_drawing(monkeypatch):
    used = set()
    drawn = scenes._drawn.__wrapped__

    def recording(drawing_set, *look):
        used.add(drawing_set)
        return drawn(drawing_set, *look)

    monkeypatch.setattr(scenes, "_drawn", recording)
    training_scenes(np.random.default_rng(0), 150, 1.0, 0.9)
    assert used == {s for sets in scenes.TRAINING_ARTISTS.values() for s in sets}


def test_every_object_is_drawn_by_both_held_out_artists_and_several_in_training():
    for name in scenes.OBJECTS:
        assert ("twemoji", name) in scenes.sprites()
        assert ("fxemoji", name) in scenes.sprites()
        assert len(scenes.drawings_of(name, scenes.TRAINING_ARTISTS)) >= 5


def test_the_same_seed_gives_the_same_picture_and_another_seed_another():
    one, same = (made(3)[2] for _ in range(2))
    assert np.array_equal(one.pixels, same.pixels) and one.things == same.things
    other = scenes.compose(np.random.default_rng(6), scenes.TRAINING_ARTISTS)
    assert not np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_boxes_are_where_the_objects_are(strength):
    """Without objects the same scene is plain, so whatever differs must lie inside the boxes."""
    for scene in made(40, count=2, strength=0.0):
        inside = np.zeros(scene.pixels.shape[:2], bool)
        for thing in scene.things:
            y0, x0, y1, x1 = (round(place * scenes.SIDE) for place in thing.box)
            assert (y0 % scenes.GRID, x0 % scenes.GRID, y1 % scenes.GRID) == (0, 0, 0)
            inside[y0:y1, x0:x1] = True
        colour = np.array(scenes.BACKGROUNDS[scene.background])
        far = np.abs(scene.pixels.astype(int) - colour).max(axis=-1) > 90
        assert not (far & ~inside).any()
    for scene in made(20, count=3, strength=strength):
        boxes = [thing.box for thing in scene.things]
        assert all(overlap(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(0 <= place <= 1 for box in boxes for place in box)


def test_a_larger_scale_is_the_same_scene_with_more_pixels():
    small, large = (
        scenes.compose(np.random.default_rng(3), scenes.TEST_ARTIST, names=["dog"], scale=scale)
        for scale in (1, 4)
    )
    assert large.pixels.shape == (288, 288, 3)
    assert small.things == large.things


def test_a_painted_object_has_one_colour_and_all_else_is_the_same_scene():
    def made(colour):
        rng = np.random.default_rng(3)
        return scenes.compose(rng, scenes.TRAINING_ARTISTS, names=["tree"], colour=colour)

    drawn, blue, red = made(None), made("blue"), made("red")
    assert drawn.things == blue.things and drawn.background == blue.background
    y0, x0, y1, x1 = (round(72 * edge) for edge in blue.things[0].box)
    outside = np.ones((72, 72), bool)
    outside[y0:y1, x0:x1] = False
    assert (drawn.pixels == blue.pixels)[outside].all()
    painted = (blue.pixels != red.pixels).all(axis=2)  # no transparent pixel
    for picture, channel in ((blue, 2), (red, 0)):
        assert (picture.pixels[painted].argmax(axis=1) == channel).mean() > 0.9
    assert (drawn.pixels[painted].argmax(axis=1) == 1).mean() > 0.5  # a tree is green


def test_answers_are_true_of_the_scene():
    rng = np.random.default_rng(0)
    asked = {task: 0 for task in scenes.TASKS}
    for scene in made(300):
        names = [thing.name for thing in scene.things]
        for task in scenes.TASKS:
            question = scenes.ask(rng, scene, task)
            if question is None:
                continue
            asked[task] += 1
            prompt, answer = question.prompt, question.answer
            if task == "naming":
                assert [answer] == names
            elif task == "background":
                assert answer == scene.background
            elif task == "counting":
                assert int(answer) == len(names)
            elif task == "counting NAME":
                word = re.fullmatch(r"answer en how many (\w+) are there\?", prompt)[1]
                assert int(answer) == sum(word in (n, n + "s", n + "es") for n in names)
            elif task == "yes/no":
                word = re.fullmatch(r"answer en is there an? (\w+)\?", prompt)[1]
                assert answer == ("yes" if word in names else "no")
            elif task == "places":
                place = re.search(r"(left|right|top|bottom)\?$", prompt)[1]
                axis, sign = {"left": (1, 1), "right": (1, -1), "top": (0, 1), "bottom": (0, -1)}[
                    place
                ]
                first = min(scene.things, key=lambda t: sign * t.centre[axis])
                assert answer == first.name
            elif task == "detection":
                name = prompt.removeprefix("detect ")
                true = [t.box for t in scene.things if t.name == name]
                told = read_boxes(answer)
                assert len(told) == len(true)
                assert all(word == name for word, _ in told)
                assert all(overlap(a, b) > 0.99 for a, (_, b) in zip(true, told, strict=True))
            else:
                for name in names:
                    assert name in answer
                assert answer.endswith(f" on a {scene.background} background")
    assert min(asked.values()) > 60


def test_captions_read_well():
    def scene(*names):
        things = tuple(
            scenes.Thing(name, (0.1, i / 4, 0.3, i / 4 + 0.2)) for i, name in enumerate(names)
        )
        return scenes.Scene(np.zeros((1, 1, 3), np.uint8), "red", things)

    assert scenes.caption(scene("apple")) == "an apple on a red background"
    assert scenes.caption(scene("cat", "dog")) == "a cat and a dog on a red background"
    assert scenes.caption(scene("cactus", "cactus")) == "two cactuses on a red background"
    assert (
        scenes.caption(scene("cat", "umbrella", "dog"))
        == "a cat, an umbrella and a dog on a red background"
    )


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="naming"):
        scenes.ask(np.random.default_rng(0), made(1)[0], "singing")


def test_example_pictures_are_there():
    pictures = scenes.examples()
    assert len(pictures) >= 6
    assert all(picture.size == (288, 288) for picture in pictures.values())


def test_patch_cover_is_the_part_of_each_patch_in_the_box():
    # 3 x 3 patches; the box is rows 0 to 1.5 and columns 1.5 to 2.
    cover = scenes.patch_cover((0.0, 0.5, 0.5, 2 / 3), 3).reshape(3, 3)
    expected = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(cover, expected)
    for scene in made(5):
        for thing in scene.things:
            y0, x0, y1, x1 = thing.box
            area = scenes.patch_cover(thing.box, 6).mean().item()
            assert area == pytest.approx((y1 - y0) * (x1 - x0), abs=1e-5)
