"""What a user calls: answers as text and as a stream, boxes, masks, options, threads."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fresh_model, make_theirs
from PIL import Image
from test_masks import Halves, text

import minipali
from minipali import generation, load
from minipali.asking import LONGEST, detect, generate, segment, stream
from minipali.locations import box_tokens
from minipali.scenes import examples

MODEL = [f"minipali.{name}" for name in ("generation", "paligemma", "gemma", "vision", "attention")]


def greedy(theirs, batch) -> list[list[int]]:
    """transformers' 8 tokens, without the image token and the rows that fill up the table."""
    out = theirs.generate(
        **batch, max_new_tokens=8, do_sample=False, eos_token_id=None,
        suppress_tokens=list(range(1792, 1856)),
    )  # fmt: skip
    return out[:, batch["input_ids"].shape[1] :].tolist()


def picture(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), "uint8")
    return Image.fromarray(values)


def test_generate_is_processor_then_tokens_then_decode(model, processor):
    pictures, prompts = [picture(0), picture(1)], ["a dog", "answer en what is on the left?"]
    ids = greedy(make_theirs(), processor(pictures, prompts))
    expected = [processor.decode(row) for row in ids]
    assert generate(model, processor, pictures, prompts, 8) == expected
    assert generate(model, processor, picture(0), "a dog", 8) == expected[0]  # one in, one out
    assert all(expected)


@pytest.fixture
def says(monkeypatch):
    """Make the model say given token ids: one list for each row."""

    def script(*rows):
        steps = iter(torch.tensor(rows).T)
        monkeypatch.setattr(generation, "choose", lambda *arguments: next(steps))

    return script


SPOKEN = {
    "plain": "a dog and a cat",
    "emoji": "a 😀👨‍👩‍👧 dog",
    "emoji at the end": "dog 😀",
    "right to left": "שלום",
    "locations": "<loc0001><loc0500><loc0003><loc0004> dog ; <loc0009> cat",
    "a true replacement character": "a\ufffdb",
    "a replacement character at the end": "a\ufffd",
    "nothing": "",
    "spaces": "  a  ",
}


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("ended", [True, False])
def test_streamed_pieces_join_to_the_answer_and_hold_whole_characters(
    model, processor, says, name, ended
):
    text = SPOKEN[name]
    ids = processor.encode(text) + [1] * (ended or not text)
    says(ids)
    assert generate(model, processor, picture(), "a", len(ids)) == text
    says(ids)
    pieces = list(stream(model, processor, picture(), "a", len(ids)))
    assert "".join(pieces) == text
    assert all(pieces)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_answer_cut_in_the_middle_of_an_emoji_still_streams_what_generate_says(
    model, processor, says
):
    ids = processor.encode("a 😀")[:-1]
    says(ids)
    expected = generate(model, processor, picture(), "a", len(ids))
    says(ids)
    assert "".join(stream(model, processor, picture(), "a", len(ids))) == expected
    assert expected.startswith("a ") and "\ufffd" in expected


def test_pieces_come_as_soon_as_they_are_known(model, processor, says):
    says(processor.encode("a dog 😀") + [1])
    pieces = stream(model, processor, picture(), "a")
    assert next(pieces) == "a"
    assert next(pieces) == " dog"


def test_stream_equals_generate_with_the_real_model_and_a_seed(model, processor):
    options = {"max_new_tokens": 20, "temperature": 1.5, "top_k": 200, "seed": 3}
    expected = generate(model, processor, picture(), "a dog", **options)
    assert "".join(stream(model, processor, picture(), "a dog", **options)) == expected


def test_stream_takes_one_prompt(model, processor):
    with pytest.raises(ValueError, match="one prompt"):
        list(stream(model, processor, [picture()], ["a"]))


def test_the_words_of_a_finished_row_end_at_eos(model, processor, says):
    dog, cat = processor.encode("a dog"), processor.encode("a cat")
    assert len(dog) == len(cat) == 2
    says([*dog, 1, 99, 99], [*cat, 99, 99, 1])
    found = generate(model, processor, [picture()] * 2, ["a", "b"])
    assert found[0] == "a dog" and found[1] == processor.decode([*cat, 99, 99])


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, found 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, at least 1, found 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, .* found True"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number, .* found None"),
        ({"max_new_tokens": 10**30}, "at most 128 tokens together"),
        ({"temperature": -0.1}, r"temperature must be a number, 0 \(greedy\) or above, found -0.1"),
        ({"temperature": "1"}, "temperature must be a number, .* found '1'"),
        ({"temperature": None}, "temperature must be a number, .* found None"),
        ({"temperature": True}, "temperature must be a number, .* found True"),
        ({"temperature": np.ones(99)}, "temperature must be a number, .* found ndarray"),
        ({"temperature": float("nan")}, "temperature must be a number, .* found nan"),
        ({"temperature": float("inf")}, "temperature must be a number, .* found inf"),
        ({"temperature": 10**400}, "temperature must be a number, .* found int"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be a whole number, at least 1, .* found 0"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k must be a whole number, .* found 2.5"),
        ({"temperature": 1.0, "top_k": True}, "top_k must be a whole number, .* found True"),
        ({"temperature": 1.0, "top_k": "5"}, "top_k must be a whole number, .* found '5'"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be a number above 0 and .* found 0.0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p must be a number above 0 and .* found 1.1"),
        ({"temperature": 1.0, "top_p": "0.9"}, "top_p must be a number above 0 .* found '0.9'"),
        ({"temperature": 1.0, "top_p": float("nan")}, "top_p must be a number .* found nan"),
        ({"seed": 2**64}, r"seed must be a whole number from 0 to 2\*\*64 - 1, found 184467"),
        ({"seed": 1.5}, "seed must be a whole number .* found 1.5"),
        ({"seed": "1"}, "seed must be a whole number .* found '1'"),
        ({"seed": True}, "seed must be a whole number .* found True"),
        ({"top_k": 5}, "set temperature above 0"),
        ({"top_p": 0.5}, "set temperature above 0"),
    ],
)
def test_options_of_a_wrong_kind_or_out_of_range_are_named(model, processor, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, processor, picture(), "a", **options)
    with pytest.raises(ValueError, match=message):
        list(stream(model, processor, picture(), "a", **options))


def test_numbers_of_numpy_and_whole_temperatures_do(model, processor):
    plain = {"max_new_tokens": 5, "temperature": 2.0, "top_k": 40, "top_p": 0.5, "seed": 7}
    other = {
        "max_new_tokens": np.int64(5),
        "temperature": 2,
        "top_k": np.uint8(40),
        "top_p": np.float32(0.5),
        "seed": np.int64(7),
    }
    told = generate(model, processor, picture(), "a", **plain)
    assert told and generate(model, processor, picture(), "a", **other) == told
    for seed in (0, 2**64 - 1, -1):
        generate(model, processor, picture(), "a", 2, temperature=1.0, seed=seed)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-300},
        {"temperature": 5e-324},  # the smallest number there is
        {"temperature": 1e-9, "top_k": 10**30, "top_p": 1},
        {"temperature": 1.0, "top_p": 5e-324},
        {"temperature": 50.0, "top_p": 1e-50},
        {"temperature": 1e300, "top_k": 1},
    ],
)
def test_the_smallest_temperatures_and_nuclei_are_greedy(model, processor, options):
    told = generate(model, processor, [picture(0), picture(1)], ["a", "a dog"], 12)
    found = generate(model, processor, [picture(0), picture(1)], ["a", "a dog"], 12, **options)
    assert found == told and all(told)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_k": 5}])
def test_a_model_whose_numbers_are_none_is_no_silent_empty_answer(processor, value, options):
    model = fresh_model()
    with torch.no_grad():
        model.language_model.norm.weight[3] = value
    with pytest.raises(ValueError, match="logits must be numbers, found NaN or infinity"):
        generate(model, processor, picture(), "a", **options)
    with pytest.raises(ValueError, match="logits must be numbers, found NaN or infinity"):
        next(stream(model, processor, picture(), "a", **options))


# --- places --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return load("small")


def rows_of_boxes(number: int) -> list:
    return [(0.001 * i, 0.002 * i, 0.5 + 0.001 * i, 0.5 + 0.002 * i) for i in range(number)]


def test_detect_answers_in_pixels_of_the_given_picture(small, says):
    _, processor = small
    wide = Image.new("RGB", (400, 100))
    for given in (wide, np.asarray(wide)):
        says(processor.encode("<loc0000><loc0512><loc1023><loc1023> dog") + [1])
        [(name, box)] = detect(*small, given, "dog")
        assert name == "dog"
        assert box == pytest.approx((0, 400 * 512 / 1023, 100, 400))


def test_detect_asks_with_the_name_and_returns_nothing_for_no_place(small, says, monkeypatch):
    model, processor = small
    asked = []
    monkeypatch.setattr(type(processor), "__call__", recorder(type(processor).__call__, asked))
    says([1])
    assert detect(model, processor, picture(), "red car") == []
    assert asked == ["detect red car"]


def recorder(call, asked):
    def run(self, images, prompts):
        asked.append(prompts)
        return call(self, images, prompts)

    return run


def test_twenty_boxes_are_twenty_boxes(small, says):
    _, processor = small
    boxes = rows_of_boxes(20)
    says(processor.encode(" ; ".join(f"{box_tokens(box)} cat" for box in boxes)) + [1])
    found = detect(*small, Image.new("RGB", (1023, 1023)), "cat")
    assert [name for name, _ in found] == ["cat"] * 20
    for (_, mine), box in zip(found, boxes, strict=True):
        assert mine == pytest.approx([1023 * edge for edge in box], abs=0.51)


def test_ten_masks_are_ten_masks(small, says):
    _, processor = small
    answer = " ; ".join(text(box, [64] * 16, "cat") for box in rows_of_boxes(10))
    says(processor.encode(answer) + [1])
    found = segment(*small, Halves(), Image.new("RGB", (200, 100)), "cat")
    assert [name for name, _, _ in found] == ["cat"] * 10
    assert all(mask.shape == (100, 200) and mask.any() for _, _, mask in found)


def test_segment_asks_and_reads_in_pixels_of_the_given_picture(small, says):
    _, processor = small
    says(processor.encode(text((0.0, 0.5, 1.0, 1.0), [64] * 16, "dog")) + [1])
    [(_, box, mask)] = segment(*small, Halves(), Image.new("RGB", (40, 10)), "dog")
    assert mask.shape == (10, 40) and mask[:, 20:].all() and not mask[:, :19].any()


def test_an_answer_without_an_end_is_cut_with_a_warning(small, says):
    """The model says the same box again and again, up to its last position."""
    model, processor = small
    again = processor.encode(box_tokens((0.1, 0.2, 0.3, 0.4)) + " cat ; ")
    length = processor(picture(), "detect cat")["input_ids"].shape[1]
    room = model.config.text.max_position_embeddings - length
    assert room < LONGEST
    says((again * room)[:room])
    with pytest.warns(UserWarning, match=f"cut off after {room} tokens; .* more objects") as told:
        found = detect(*small, picture(), "cat")
    assert told[0].filename == __file__
    assert len(found) in (room // len(again), room // len(again) + 1)
    with pytest.raises(ValueError, match="shorten the prompt"):  # not even one token fits
        detect(*small, picture(), "cat " * 600)


# --- rooms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("minipali", ["torch", "numpy", "PIL", "matplotlib"]),
        ("minipali.cli", ["torch", "numpy", "PIL", "matplotlib"]),
        ("minipali.doctor", ["torch", "numpy", "PIL", "matplotlib"]),
        ("minipali.scenes", ["matplotlib", *MODEL]),
        ("minipali.locations", ["matplotlib", *MODEL]),
        ("minipali.masks", ["matplotlib", *MODEL]),
        ("minipali.asking", ["matplotlib", "minipali.swap", "minipali.checks"]),
    ],
)
def test_an_import_loads_no_more_than_it_says(imported, absent):
    code = f"import sys, {imported}\nprint(*sorted(set({absent}) & set(sys.modules)))"
    folder = str(Path(minipali.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": folder}
    run = [sys.executable, "-c", code]
    told = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=100)
    assert (told.stdout.strip(), told.stderr) == ("", "")


# --- threads -------------------------------------------------------------------------------------


def settings() -> list:
    """What a library call must leave as it is."""
    return [
        torch.get_num_threads(),
        torch.backends.mkldnn.enabled,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.initial_seed(),
        list(warnings.filters),
    ]


@pytest.fixture
def two_threads():
    """One thread for each operation is what a library might set, so it would not be noticed."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_four_threads_ask_one_model_and_change_nothing_for_anybody(small, two_threads, tmp_path):
    shown = examples()["dog_and_car_test_artist"]
    shown.save(tmp_path / "shown.png")
    given = [shown, shown.rotate(180), np.asarray(shown), tmp_path / "shown.png"]
    prompts = ["caption en", "detect dog", "detect car", "answer en what is on the left?"]
    alone = [generate(*small, *asked, 12) for asked in zip(given, prompts, strict=True)]
    assert len(set(alone)) == 4
    before, start = settings(), threading.Barrier(4)
    told, within = [[] for _ in range(4)], []

    def work(i: int):
        start.wait()
        for _ in range(6):
            told[i].append(generate(*small, given[i], prompts[i], 12))
            within.append(settings())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [[answer] * 6 for answer in alone]
    assert within == [before] * 24
    later = []
    last = threading.Thread(target=lambda: later.append(settings()))
    last.start()
    last.join()
    assert settings() == before and later == [before]
