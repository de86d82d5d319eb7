"""Lesson 15: boxes to tokens and back."""

import pytest
from PIL import Image

from minipali import locations
from minipali.locations import box_tokens, detect, draw_boxes, overlap, read_boxes


def test_corners_are_exact_and_vertical_comes_first():
    assert box_tokens((0.0, 0.25, 1.0, 0.5)) == "<loc0000><loc0256><loc1023><loc0512>"
    assert box_tokens((-0.2, 0.0, 1.2, 1.0)) == "<loc0000><loc0000><loc1023><loc1023>"


def test_the_golden_answer_of_the_published_model_is_read():
    # transformers' own test of paligemma-3b-pt-224 on shoe.png
    [(name, box)] = read_boxes("<loc0051><loc0309><loc0708><loc0646> shoe")
    assert name == "shoe"
    assert box == pytest.approx((51 / 1023, 309 / 1023, 708 / 1023, 646 / 1023))


def test_several_boxes_are_read_and_nonsense_is_passed_over():
    first, second = "<loc0001><loc0002><loc0003><loc0004>", "<loc0005><loc0006><loc0007><loc0008>"
    assert [name for name, _ in read_boxes(f"{first} red car ; {second} dog")] == ["red car", "dog"]
    assert read_boxes("<loc0001><loc0002><loc0003> dog") == []
    assert read_boxes("<loc0001><loc0002><loc0003><loc1024> dog") == []
    assert read_boxes("a dog") == []


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.123, 0.456, 0.789, 0.99)])
def test_there_and_back_is_off_by_half_a_step_at_most(box):
    [(_, back)] = read_boxes(box_tokens(box) + " x")
    assert back == pytest.approx(box, abs=0.5 / 1023)


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (0, 1, 2, 3)) == pytest.approx(2 / 6)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert overlap((1, 1, 0, 0), (0, 0, 1, 1)) == 0  # a box turned inside out


def test_detect_answers_in_pixels_of_the_given_picture(monkeypatch):
    answer = "<loc0000><loc0512><loc1023><loc1023> dog"
    monkeypatch.setattr(locations, "generate", lambda *given: answer)
    [(name, box)] = detect(None, None, Image.new("RGB", (400, 100)), "dog")
    assert name == "dog"
    assert box == pytest.approx((0, 400 * 512 / 1023, 100, 400))


def test_drawing_leaves_the_picture_and_survives_any_box():
    picture = Image.new("RGB", (60, 40), "green")
    wild = [
        ("a", (5, 5, 30, 50)),
        ("b", (30, 50, 5, 5)),
        ("c", (0, 0, 1, 1)),
        ("d", (0, 0, 99, 99)),
    ]
    drawn = draw_boxes(picture, wild)
    assert drawn.size == picture.size
    assert picture.getcolors() == [(2400, (0, 128, 0))]
    assert len(drawn.getcolors()) > 2
