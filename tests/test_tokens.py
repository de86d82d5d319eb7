"""Lesson 06: ids, masks and pixels equal those of transformers' PaliGemmaProcessor."""

import io
import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image, ImageOps

from minipali import load, tokens
from minipali.checks import exercise
from minipali.checks.engine import CORRECT, examine
from minipali.config import preset
from minipali.paligemma import merge
from minipali.tokens import (
    IGNORE,
    PictureError,
    Processor,
    open_picture,
    pad_rows,
    prompt_ids,
    to_pixels,
)

SIDE = 72  # of the small model


@pytest.fixture(scope="module")
def ours(small_folder):
    return Processor(small_folder / "tokenizer.model", preset("small"))


@pytest.fixture(scope="module")
def theirs(small_folder):
    transformers = pytest.importorskip("transformers")
    from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    pictures = SiglipImageProcessorPil.from_pretrained(small_folder)
    return PaliGemmaProcessor(pictures, transformers.GemmaTokenizer.from_pretrained(small_folder))


def their_ids(theirs, text: str) -> list[int]:
    return theirs.tokenizer(text, add_special_tokens=False)["input_ids"]


# --- text ----------------------------------------------------------------------------------------

NASTY = {
    "empty": "",
    "one space": " ",
    "spaces around and twice": "  a  dog ",
    "newlines": "a\n\nb\r\nc\t",
    "emoji of four bytes": "a 😀 b",
    "emoji joined by zero-width joiners": "👨‍👩‍👧",
    "combining accent": "e\u0301 é",
    "compatibility characters": "ﬁ Ａ ①",
    "right to left": "שלום عليكم \u200f",
    "zero width": "a\u200bb\ufeff",
    "other spaces": "a\u00a0b\u3000c",
    "NUL": "a\x00b",
    "highest code point": "\U0010ffff",
    "the replacement character": "a\ufffdb",
    "looks like a byte token": "<0x41><0x0A>",
    "broken brackets": "<<loc0001>> <bos <image",
    "location too large": "a<loc9999>b <loc1024>",
    "location too short or long": "<loc001> <loc00001>",
    "segment too large": "<seg128> <seg999>",
    "location in other digits": "<loc٠٠١٢> <loc0０１２>",
    "locations": "<loc0000><loc0012><loc1023><loc1009> dog ; <loc0001>",
    "segments": "<seg000><seg127><seg119> cat",
    "long": "answer en what is on the left? " * 20,
}


@pytest.mark.parametrize("name", NASTY)
def test_ids_of_nasty_texts_equal_transformers_and_decode_to_the_same_text(ours, theirs, name):
    text = NASTY[name]
    ids = ours.encode(text)
    assert ids == their_ids(theirs, text)
    assert ours.decode(ids) == text
    assert theirs.tokenizer.decode(ids, skip_special_tokens=True) == text


def random_text(number: int) -> str:
    """Words of the vocabulary and stray ASCII, or code points of every length in UTF-8."""
    chance = random.Random(number)
    length = chance.randint(1, 20)
    if number % 2:
        words = [
            "dog",
            "cat",
            "answer",
            "en",
            "what",
            "is",
            "the",
            "red",
            "apple",
            "<loc0001>",
            "<seg001>",
            "<loc9999>",
        ]
        pick = [*words, " ", "\n", chr(chance.randint(32, 126))]
        return "".join(chance.choice(pick) for _ in range(length))
    ranges = ((1, 127), (128, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    return "".join(chr(chance.randint(*chance.choice(ranges))) for _ in range(length))


def test_ids_of_random_unicode_equal_transformers_and_decode_to_the_same_text(ours, theirs):
    for text in map(random_text, range(1000)):
        ids = ours.encode(text)
        assert ids == their_ids(theirs, text), ascii(text)
        assert ours.decode(ids) == text.replace("▁", " "), ascii(text)


def test_every_location_and_segment_is_one_token_with_its_own_id(ours, theirs):
    names = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    expected = theirs.tokenizer.convert_tokens_to_ids(names)
    assert [ours.encode(name) for name in names] == [[i] for i in expected]
    assert [ours.token(i) for i in expected] == names
    assert expected == list(range(1792 - 1152, 1792))


def test_tokens_are_named_as_transformers_names_them(ours, theirs):
    ids = [*range(640), 640, 1791, 1792]
    assert [ours.token(i) for i in ids] == theirs.tokenizer.convert_ids_to_tokens(ids)
    assert ours.token(1800) == "<unused1800>"
    assert ours.token(-1) == "<unused-1>"


def test_the_word_boundary_mark_reads_as_a_space_in_both(ours, theirs):
    ids = ours.encode("a▁b")
    assert ids == their_ids(theirs, "a▁b")
    assert ours.decode(ids) == theirs.tokenizer.decode(ids) == "a b"


@pytest.mark.parametrize("text", ["<bos>a", "a<eos>", "<pad>", "a<unk>b", "<image>a"])
def test_special_tokens_written_out_are_special_and_leave_no_trace(ours, theirs, text):
    ids = ours.encode(text)
    assert ids == their_ids(theirs, text)
    expected = text
    for special in ("<bos>", "<eos>", "<pad>", "<unk>", "<image>"):
        expected = expected.replace(special, "")
    assert ours.decode(ids) == expected == theirs.tokenizer.decode(ids, skip_special_tokens=True)


def test_decode_takes_tensors_and_keeps_spaces_between_locations_and_words(ours):
    text = "<loc0001><loc0002> dog ; <loc0003> cat<seg001>"
    assert ours.decode(torch.tensor(ours.encode(text))) == text


def test_decode_shows_ids_that_mean_nothing_instead_of_crashing(ours):
    assert ours.decode([1800]) == "<unused1800>"
    assert ours.decode([]) == ""


def test_half_an_emoji_is_not_text(ours):
    with pytest.raises(ValueError, match="surrogate"):
        ours.encode("a\ud83d")


# --- rows ----------------------------------------------------------------------------------------

PROMPTS = ["detect dog", "", "answer en what is on the left?", "a 😀 <loc0012> <loc9999>\n"]
SUFFIXES = ["<loc0001><loc0002><loc0003><loc0004> dog", "a cat", "", "<seg001> שלום"]


def noise(mode: str = "RGB", size=(9, 7), seed: int = 0) -> Image.Image:
    """A picture of random values in any of Pillow's modes."""
    rng = np.random.default_rng(seed)
    width, height = size
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 600, (height, width)).astype("uint16"))
    if mode == "I":
        return Image.fromarray(rng.integers(-50, 600, (height, width)).astype("int32"))
    if mode == "F":
        return Image.fromarray((rng.random((height, width)) * 400 - 50).astype("float32"))
    if mode == "LAB":
        return Image.frombytes(mode, size, rng.integers(0, 256, width * height * 3, "uint8"))
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4)).astype("uint8"))
    with_alpha = ("RGBA", "LA", "PA", "RGBa")
    picture = rgba.convert(mode) if mode in with_alpha else rgba.convert("RGB").convert(mode)
    assert picture.mode == mode
    return picture


def both(ours, theirs, prompts, suffixes, side):
    pictures = [noise(seed=i) for i in range(len(prompts))]
    with warnings.catch_warnings(action="ignore"):  # it makes numpy remark on itself
        expected = theirs(
            images=pictures,
            text=["<image>" + prompt for prompt in prompts],
            suffix=suffixes,
            return_tensors="pt",
            padding="longest",
            padding_side=side,
        )
    return ours(pictures, prompts, suffixes, padding_side=side), expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_training_batch_equals_transformers(ours, theirs, side):
    found, expected = both(ours, theirs, PROMPTS, SUFFIXES, side)
    assert set(found) == set(expected)
    for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
        assert torch.equal(found[name], expected[name]), name
        assert found[name].dtype == torch.long
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_questions_equals_transformers(ours, theirs, side):
    found, expected = both(ours, theirs, PROMPTS, None, side)
    assert set(found) == set(expected) - {"labels"}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(found[name], expected[name]), name


def test_one_question_may_come_without_lists(ours):
    one, many = ours(noise(), "detect dog", "yes"), ours([noise()], ["detect dog"], ["yes"])
    assert set(one) == set(many)
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_padding_is_on_the_left_by_default(ours):
    batch = ours([noise(), noise()], ["a", "a dog and a cat"])
    assert batch["input_ids"][0, 0] == 0 and batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_an_empty_prompt_is_image_tokens_bos_newline(ours):
    ids = ours(noise(), "")["input_ids"]
    assert ids.tolist() == [[1792] * 36 + [2, 5]]
    assert ours.token(5) == "\n"


def test_a_row_is_image_tokens_bos_prompt_newline():
    def encode(text):
        return [ord(character) for character in text]

    assert prompt_ids(" a", encode, 900, 3, 2) == [900, 900, 900, 2, 32, 97, 10]
    assert prompt_ids("", encode, 7, 1, 4) == [7, 4, 10]


def test_the_mask_follows_the_lengths_even_where_the_filler_is_a_token():
    rows = [[7, 1, 7], [5]]
    ids, mask = pad_rows(rows, 7, "left")
    assert ids.tolist() == [[7, 1, 7], [7, 7, 5]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad_rows(rows, 7, "right")
    assert ids.tolist() == [[7, 1, 7], [5, 7, 7]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.long
    assert rows == [[7, 1, 7], [5]]


def test_packed_rows_are_read_as_each_alone():
    """The exercise's reference, inside the trained model."""
    model, processor = load("small")
    prompts = ["caption en", "answer en what is on the left?", "detect dog"]
    rows = [processor.prompt_ids(prompt) for prompt in prompts]
    picture = noise(size=(72, 72))
    ids, positions, owners = exercise("pack_rows").reference(rows, 90, 0)
    assert ids.shape == (2, 90)  # 40 + 40, and 46
    order = [0, 2, 1]  # in which the rows lie, so the pictures' places too
    same = (owners[:, :, None] == owners[:, None, :])[:, None]
    with torch.inference_mode():
        features = model.image_features(processor.pixel_values([picture] * 3))[order]
        is_image = ids == model.config.image_token_id
        x = merge(model.language_model.embed(ids), features.flatten(0, 1), is_image)
        logits = model.language_model.logits(model.language_model(x, positions, same))
        for number, prompt in enumerate(prompts):
            alone = model(**processor(picture, prompt))[0]
            found = logits[owners == number]
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-3)


def test_labels_are_the_suffix_and_eos_alone(ours):
    batch = ours([noise(), noise()], ["a dog", "a"], ["a cat", ""])
    for ids, labels, kinds in zip(
        batch["input_ids"], batch["labels"], batch["token_type_ids"], strict=True
    ):
        assert torch.equal(labels != IGNORE, kinds == 1)
        assert torch.equal(labels[kinds == 1], ids[kinds == 1])
    assert batch["labels"][0][-3:].tolist() == [*ours.encode("a cat"), 1]
    assert batch["labels"][1].tolist()[-1] == 1 and (batch["labels"][1] != IGNORE).sum() == 1


@pytest.mark.parametrize(
    ("pictures", "prompts", "suffixes", "message"),
    [
        (2, 1, None, "found 2 pictures, 1 prompts"),
        (1, 2, None, "found 1 pictures, 2 prompts"),
        (2, 2, 1, "found 2 pictures, 2 prompts, 1 suffixes"),
        (2, 2, 0, "found 2 pictures, 2 prompts, 0 suffixes"),
        (0, 0, None, "found 0 pictures, 0 prompts"),
    ],
)
def test_unequal_numbers_are_counted_out(ours, pictures, prompts, suffixes, message):
    suffixes = suffixes if suffixes is None else ["b"] * suffixes
    with pytest.raises(ValueError, match=message):
        ours([noise()] * pictures, ["a"] * prompts, suffixes)


def test_image_tokens_in_a_prompt_or_suffix_are_refused(ours):
    with pytest.raises(ValueError, match="a prompt must not contain '<image>'"):
        ours(noise(), "a <image> b")
    with pytest.raises(ValueError, match="a suffix must not contain '<image>'"):
        ours(noise(), "a", "<image>")


def test_a_prompt_that_is_not_text_is_refused(ours):
    with pytest.raises(ValueError, match="a prompt must be text, found int"):
        ours(noise(), [3])
    with pytest.raises(ValueError, match="a suffix must be text, found NoneType"):
        ours([noise()], ["a"], [None])


def test_the_longest_row_fits_and_one_token_more_is_refused(processor):
    limit, fixed = 128, 9 + 2  # image tokens, bos and newline
    words = processor.encode("a a")  # "a", then " a" for each further one
    assert len(words) == 2
    fitting = "a" + " a" * (limit - fixed - 1)
    assert processor(noise(), fitting)["input_ids"].shape == (1, limit)
    with pytest.raises(ValueError, match="at most 128 tokens, found 129, of which 9 stand"):
        processor(noise(), fitting + " a")
    with pytest.raises(ValueError, match="at most 128 tokens, found 129"):
        processor(noise(), fitting, "")  # the eos of the empty suffix


def test_an_unknown_padding_side_is_refused(ours):
    with pytest.raises(ValueError, match="'left' or 'right', found 'top'"):
        ours(noise(), "a", padding_side="top")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    for content in (None, b"", b"not a model"):
        path = tmp_path / "tokenizer.model"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokenizer\.model must be a SentencePiece model"):
            Processor(path, tiny_config())


def test_an_image_token_without_room_for_locations_is_refused(small_folder):
    with pytest.raises(ValueError, match="1024 locations and 128 segments.* found 1000"):
        Processor(small_folder / "tokenizer.model", tiny_config(image_token_id=1000))


# --- pixels --------------------------------------------------------------------------------------


def their_pixels(theirs, picture) -> torch.Tensor:
    return theirs.image_processor(picture, return_tensors="pt")["pixel_values"][0].float()


MODES = [
    "RGB",
    "RGBA",
    "L",
    "LA",
    "P",
    "PA",
    "1",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "RGBX",
    "RGBa",
    "I;16",
    "I",
    "F",
]
SIZES = [(9, 7), (200, 150), (1, 1), (9, 1), (1, 9), (3, 5), (4, 3), (700, 2), (72, 72)]


@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_every_kind_of_picture_equal_transformers(theirs, mode):
    for size in SIZES:
        picture = noise(mode, size)
        before = picture.tobytes()
        found = to_pixels(picture, SIDE)
        assert found.shape == (3, SIDE, SIDE) and found.dtype == torch.float32
        torch.testing.assert_close(found, their_pixels(theirs, picture), rtol=0, atol=1e-6)
        assert picture.tobytes() == before and picture.mode == mode


def test_pixels_go_from_minus_one_to_one(theirs):
    for value, expected in ((0, -1.0), (255, 1.0), (51, -0.6)):
        found = to_pixels(Image.new("RGB", (5, 4), (value,) * 3), SIDE)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-6)


def test_channels_rows_and_columns_are_not_mixed_up():
    picture = Image.new("RGB", (SIDE, SIDE))
    picture.putpixel((5, 2), (255, 0, 0))  # x = 5, y = 2
    assert (to_pixels(picture, SIDE) > 0).nonzero().tolist() == [[0, 2, 5]]


def test_what_is_transparent_becomes_white():
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        assert (to_pixels(Image.new(mode, (5, 4), colour), SIDE) == 1).all()
    half = to_pixels(Image.new("RGBA", (5, 4), (0, 0, 0, 127)), SIDE)
    torch.testing.assert_close(half, torch.full_like(half, 128 / 255 * 2 - 1), rtol=0, atol=1e-6)


def saved(picture: Image.Image, path, **options):
    picture.save(path, **options)
    return path


def transparent_files(folder):
    """Files whose transparency is a key colour or a palette entry, not a channel."""
    p = noise("P")
    yield saved(p, folder / "p_bytes.png", transparency=bytes(range(256)))
    yield saved(p, folder / "p_one.png", transparency=3)
    yield saved(p, folder / "p.gif", transparency=3)
    grey, colour = noise("L"), noise("RGB")
    yield saved(grey, folder / "l.png", transparency=grey.getpixel((0, 0)))
    yield saved(colour, folder / "rgb.png", transparency=colour.getpixel((0, 0)))
    yield saved(noise("RGBA"), folder / "rgba.png")
    yield saved(noise("LA"), folder / "la.png")
    yield saved(noise("RGBA"), folder / "rgba.webp", lossless=True)


def test_a_transparent_file_is_white_there_by_its_path_and_as_a_picture(ours, theirs, tmp_path):
    transparent = 0
    for path in transparent_files(tmp_path):
        with Image.open(path) as picture:
            expected = their_pixels(theirs, picture)  # transformers lays a picture over white
            as_picture = ours(picture, "a")["pixel_values"][0]
        as_path = ours(path, "a")["pixel_values"][0]
        torch.testing.assert_close(as_picture, expected, rtol=0, atol=1e-6, msg=path.name)
        assert torch.equal(as_path, as_picture), path.name
        transparent += not torch.equal(as_path, path_pixels(theirs, path))
    assert transparent >= 3  # its `load_image` shows what is hidden behind the alpha channel


def path_pixels(theirs, path) -> torch.Tensor:
    from transformers.image_utils import load_image

    with warnings.catch_warnings(action="ignore"):  # Pillow remarks on palettes
        return their_pixels(theirs, load_image(str(path)))


def with_exif(path, orientation: int, **tags) -> Image.Image:
    """A file of 40 x 24 pixels with a camera's note, and the picture as it lies in the file."""
    picture, exif = noise(size=(40, 24)), Image.Exif()
    exif[0x0112] = orientation
    saved(picture, path, exif=exif, **tags)
    with Image.open(path) as file:
        return file.convert("RGB")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_taken_with_a_turned_camera_is_upright_as_in_transformers(
    ours, theirs, tmp_path, kind, orientation
):
    with_exif(tmp_path / f"turned.{kind}", orientation)
    path = tmp_path / f"turned.{kind}"
    found = ours(path, "a")["pixel_values"][0]
    torch.testing.assert_close(found, path_pixels(theirs, path), rtol=0, atol=1e-6)
    upright = open_picture(path)
    assert upright.size == ((40, 24) if orientation < 5 else (24, 40))
    assert torch.equal(ours(upright, "a")["pixel_values"][0], found)  # not turned twice


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_turned_picture_object_is_taken_as_it_lies_and_a_warning_says_so(
    ours, theirs, tmp_path, kind, orientation
):
    with_exif(tmp_path / f"turned.{kind}", orientation)
    with Image.open(tmp_path / f"turned.{kind}") as picture:
        for one in (picture, picture.convert("RGB")):  # which keeps the note
            if orientation == 1:
                found = ours(one, "a")
            else:
                with pytest.warns(UserWarning, match="is taken as it lies: give its path") as told:
                    found = ours(one, "a")
                assert told[0].filename == __file__  # the line that gave the picture
            expected = their_pixels(theirs, one)
            torch.testing.assert_close(found["pixel_values"][0], expected, rtol=0, atol=1e-6)
        ours(ImageOps.exif_transpose(picture), "a")  # as the warning advises


def exif_block(tags: list[bytes]) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08" + len(tags).to_bytes(2, "big") + b"".join(tags)


TURN = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6, as a short
MALFORMED = {
    "garbage": (b"garbage", False),
    "garbage after the mark": (b"Exif\0\0garbage", False),
    "nothing": (b"Exif\0\0", False),
    "cut before its tags": (exif_block([TURN])[:15], False),
    "cut within the tag": (exif_block([TURN])[:-6], False),
    "a text outside the file, before": (
        exif_block([struct.pack(">HHII", 0x010F, 2, 90, 9999), TURN]), True,
    ),
    "a text outside the file, after": (
        exif_block([TURN, struct.pack(">HHII", 0x0131, 2, 90, 9999)]), True,
    ),
    "a kind that does not exist": (
        exif_block([TURN, struct.pack(">HHII", 0x0131, 99, 1, 0)]), True,
    ),
    "a fraction that is a text": (
        exif_block([TURN, struct.pack(">HHI", 0x011A, 2, 3) + b"abc\0"]), True,
    ),
    "cut after the tag": (exif_block([TURN, TURN, TURN])[:-20], True),
    "an orientation that does not exist": (
        exif_block([struct.pack(">HHIHH", 0x0112, 3, 1, 77, 0)]), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", MALFORMED)
def test_an_odd_note_of_a_camera_never_refuses_a_whole_picture(tmp_path, kind, name):
    block, turned = MALFORMED[name]
    path = tmp_path / "photo"
    noise(size=(40, 24)).save(path, kind, exif=block)
    found = open_picture(path)
    with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
        expected = file.convert("RGB")
    if turned:
        expected = expected.transpose(Image.Transpose.ROTATE_270)  # clockwise by a quarter
    assert found.size == expected.size and found.tobytes() == expected.tobytes()


def test_random_notes_of_a_camera_never_refuse_a_whole_picture(tmp_path):
    rng, whole = np.random.default_rng(0), Image.Exif()
    whole.update({0x010F: "maker", 0x0112: 6, 0x011A: 72.0, 0x0131: "program"})
    sizes = set()
    for _ in range(200):
        block = bytearray(whole.tobytes())
        for place in rng.integers(0, len(block), 4):
            block[place] = rng.integers(256)
        saved(noise(size=(40, 24)), tmp_path / "photo.jpg", exif=bytes(block))
        sizes.add(open_picture(tmp_path / "photo.jpg").size)
    assert sizes == {(40, 24), (24, 40)}


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.jpg"), ("L", "a.jpg"), ("CMYK", "a.jpg"), ("RGB", "a.bmp"), ("1", "a.png"),
        ("CMYK", "a.tif"), ("P", "a.gif"), ("RGB", "a.webp"),
        ("RGB", "straße 犬.png"),
    ],
)  # fmt: skip
def test_files_of_many_formats_equal_transformers(ours, theirs, tmp_path, mode, name):
    path = saved(noise(mode, (40, 24)), tmp_path / name)
    expected = path_pixels(theirs, path)
    for form in (path, str(path)):
        found = ours(form, "a")["pixel_values"][0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert open_picture(path).mode == "RGB"


STEPS = np.arange(0, 65536, 257).astype("uint16").reshape(16, 16)  # what 0 to 255 are in 16 bits


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_a_file_of_16_bits_keeps_its_256_levels(tmp_path, name):
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 16 16 65535\n" + STEPS.astype(">u2").tobytes())
    else:
        saved(Image.fromarray(STEPS), tmp_path / name)
    found = np.asarray(open_picture(tmp_path / name))
    assert (found == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_file_of_32_bits_is_refused(tmp_path, mode):
    with pytest.raises(PictureError, match=r"a\.tif must have 8 or 16 bits a colour, found 32"):
        open_picture(saved(noise(mode), tmp_path / "a.tif"))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_a_picture_object_of_many_bits_is_cut_off_as_in_transformers_with_a_warning(
    ours, theirs, mode
):
    with pytest.warns(UserWarning, match=f"mode {mode} is read as if 0 were black and 255 white"):
        found = ours(noise(mode), "a")["pixel_values"][0]
    torch.testing.assert_close(found, their_pixels(theirs, noise(mode)), rtol=0, atol=1e-6)


def test_arrays_of_bytes_equal_transformers_wherever_the_colours_are(ours, theirs):
    values = np.asarray(noise(size=(40, 24)))  # (y, x, 3)
    turned = np.moveaxis(values, 2, 0)  # (3, y, x)
    expected = ours(Image.fromarray(values), "a")["pixel_values"]
    for given in (values, turned, torch.tensor(values), torch.tensor(turned)):
        assert torch.equal(ours(given, "a")["pixel_values"], expected)
        torch.testing.assert_close(their_pixels(theirs, given), expected[0], rtol=0, atol=1e-6)
    assert torch.equal(ours([values, turned], ["a", "a"])["pixel_values"][1], expected[0])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (np.random.default_rng(0).random((300, 200, 3)), r"ndarray of float64, \(300, 200, 3\)"),
        (torch.rand(3, 30, 20), r"Tensor of float32, \(3, 30, 20\)"),
        (np.zeros((30, 20), "uint8"), r"ndarray of uint8, \(30, 20\)"),
        (np.zeros((3, 20, 3), "uint8"), r"ndarray of uint8, \(3, 20, 3\)"),  # either way
        (np.zeros((30, 20, 3), "int64"), r"ndarray of int64, \(30, 20, 3\)"),
        (None, "NoneType"),
        (3.5, "float"),
        (3, "int"),
        (b"\x89PNG", "bytes"),
        (io.BytesIO(b"\x89PNG"), "BytesIO"),
        ({"path": "a.png"}, "dict"),
    ],
)
def test_what_is_no_picture_is_named_in_one_short_line(ours, given, found):
    for way in (lambda given: ours(given, "a"), lambda given: ours([given], ["a"])):
        with pytest.raises(PictureError, match=f"{found}: .*Image.fromarray") as refused:
            way(given)
        assert len(str(refused.value)) < 200 and "\n" not in str(refused.value)


def test_an_animation_shows_its_first_frame(ours, theirs, tmp_path):
    frames = [noise(seed=i) for i in range(3)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = ours(path, "a")["pixel_values"][0]
    torch.testing.assert_close(found, path_pixels(theirs, path), rtol=0, atol=1e-6)


# --- what is no picture --------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + parts


def encoded(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    noise(size=(60, 50)).save(stream, kind, **options)
    return stream.getvalue()


def test_a_missing_file_is_named(ours, tmp_path):
    missing = (tmp_path / "none.png", tmp_path / "none" / "none.png")
    for path in (*missing, "a\0none.png", "x" * 5000 + "none.png"):
        with pytest.raises(PictureError, match=r"no picture at .*none\.png: check the path"):
            ours(path, "a")
        with pytest.raises(PictureError) as refused:
            open_picture(path)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a whole picture file"),
        (b"just some text", "must be a whole picture file"),
        (encoded("PNG")[:-2000], "must be a whole picture file"),
        (encoded("PNG")[:20], "must be a whole picture file"),
        (encoded("JPEG")[:-500], "must be a whole picture file"),
        (encoded("WEBP")[:-500], "must be a whole picture file"),
        (png_claiming(100_000, 100_000), "must "),
        (png_claiming(15_000, 10_000), "must have from 1 to 100,000,000 pixels, found 15000"),
        (png_claiming(0, 10), "must "),
        (b"%PDF-1.7\n%", "must be a picture, found a PDF: save the page as PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "must .* found a HEIC photo: save it as JPEG"),
        (b'<?xml version="1.0"?>\n<svg width="9">', "must .* found an SVG drawing: save it as PNG"),
    ],
    ids=[
        "empty", "text", "cut png", "png header alone", "cut jpeg", "cut webp", "bomb",
        "above our limit", "no width", "pdf", "heic", "svg",
    ],
)  # fmt: skip
def test_a_file_that_is_no_whole_picture_is_named(tmp_path, content, message):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=rf"file\.png {message}"):
        open_picture(path)


@pytest.mark.parametrize("path", ["", 3.5, 0, None, np.zeros((4, 4))])
def test_what_is_no_path_is_a_picture_error_too(path):
    with pytest.raises(PictureError):
        open_picture(path)


@pytest.mark.parametrize("link", ["https://example.org/a.png", "http://example.org/a.png"])
def test_a_link_is_refused_with_advice(ours, link):
    for given in (link, Path(link)):
        with pytest.raises(PictureError, match="is a link, and .* download the picture first"):
            ours(given, "a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_is_refused_before_it_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # to open it waits until somebody writes
    for path in (tmp_path / "pipe.png", os.devnull):
        with pytest.raises(PictureError, match="found a pipe or a device"):
            open_picture(path)


def test_a_folder_and_an_unreadable_file_are_named(tmp_path, monkeypatch):
    with pytest.raises(PictureError, match="found a folder: name a file in it"):
        open_picture(tmp_path)
    path = saved(noise(), tmp_path / "locked.png")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PictureError, match=r"locked\.png must be .*Permission denied"):
        open_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_damaged_file_is_a_picture_or_a_picture_error_never_another_crash(tmp_path, kind):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded(kind), dtype="uint8")
    refused = 0
    for _ in range(60):
        damaged = whole.copy()
        places = rng.integers(0, min(len(damaged), 400), 8)  # the headers are where it hurts
        damaged[places] = rng.integers(0, 256, 8)
        path = tmp_path / "damaged"
        path.write_bytes(damaged.tobytes())
        try:
            assert open_picture(path).mode == "RGB"
        except PictureError:
            refused += 1
    assert refused > 0


def test_a_picture_object_of_a_damaged_file_is_a_picture_error(ours):
    for way in (lambda picture: to_pixels(picture, SIDE), lambda picture: ours(picture, "a")):
        cut = io.BytesIO(encoded("PNG")[:-2000])
        with Image.open(cut) as picture, pytest.raises(PictureError):
            way(picture)
    with pytest.raises(PictureError, match="must have all its pixels"):
        ours(picture, "a")  # closed


def test_picture_objects_without_pixels_with_too_many_or_of_an_odd_kind_are_refused(monkeypatch):
    with pytest.raises(PictureError, match="from 1 to 100,000,000 pixels, found 0 x 5"):
        to_pixels(Image.new("RGB", (0, 5)), SIDE)
    with pytest.raises(PictureError, match="a La picture must be convertible to RGB"):
        to_pixels(noise("LA").convert("La"), SIDE)
    monkeypatch.setattr(tokens, "MAX_PIXELS", 62)
    with pytest.raises(PictureError, match="from 1 to 62 pixels, found 9 x 7"):
        to_pixels(noise(), SIDE)


def test_picture_errors_are_value_errors():
    assert issubclass(PictureError, ValueError)


# --- the exercise's checks -----------------------------------------------------------------------


def test_a_newline_may_be_encoded_with_the_prompt_or_by_itself():
    def apart(prompt, encode, image_token, num_patches, bos):
        return [image_token] * num_patches + [bos] + encode(prompt) + encode("\n")

    assert examine(exercise("prompt_ids"), apart).status == CORRECT


@pytest.mark.parametrize(("wrong", "said"), [
    (lambda square: square[..., :2], "axis 0 (c) must be 3, found 2"),
    (lambda square: square[..., ::-1].copy(), "Red and blue are exchanged"),
    (lambda square: square // 2 * 2, "Case 1 of 7"),
])  # fmt: skip
def test_pixels_that_are_wrong_in_other_ways_are_rejected_too(wrong, said):
    def attempt(picture, side):
        white = Image.new("RGBA", picture.size, "white")
        rgb = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        square = np.array(rgb.resize((side, side), Image.Resampling.BICUBIC))
        return torch.from_numpy(wrong(square)).permute(2, 0, 1) / 255 * 2 - 1

    assert said in examine(exercise("to_pixels"), attempt).message
