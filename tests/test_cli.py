"""The command `minipali`, with a tiny random model in place of a trained one."""

import errno
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise, tiny_config
from PIL import Image

import minipali
from minipali import asking, cli, masks, verbs
from minipali.asking import generate
from minipali.paligemma import PaliGemma
from minipali.scenes import OBJECTS, TASKS, TRAINING_ARTISTS, ask, compose, plural


@pytest.fixture
def small(processor, monkeypatch):
    """What the command loads instead of the small model: (model, processor)."""
    model = PaliGemma(tiny_config()).eval()
    randomise(model)
    monkeypatch.setattr(verbs, "load_model", lambda *how: (model, processor))
    return model, processor


@pytest.fixture
def no_model(monkeypatch):
    """For what must be refused before a model, which may be large, is loaded."""

    def load_model(*how):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(verbs, "load_model", load_model)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "dog.png"
    Image.effect_noise((40, 30), 90).convert("RGB").save(path)
    return path


def opened(path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def refused(capsys, *arguments) -> str:
    """Run the command, which must fail with one line on stderr; return that line."""
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minipali: error: ") and error.count("\n") == 1
    return error


# --- ask and caption -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        (["ask"], cli.QUESTION),
        (["ask", "--prompt", "is this a dog?"], "is this a dog?"),  # as it was typed
        (["caption"], "caption en"),
    ],
)
def test_answers_about_a_picture(small, picture, capsys, arguments, prompt):
    assert cli.main([*arguments, "--image", str(picture)]) == 0
    answer = generate(*small, opened(picture), prompt)
    assert answer.strip()
    told = capsys.readouterr()
    assert told.out == (
        f"picture   dog.png, 40 x 30 pixels\nquestion  {prompt}\nanswer    {answer}\n"
    )
    note = "note      the small model has not learned this prompt; see minipali ask --help\n"
    assert told.err == (note if "is this" in prompt else "")


def test_the_package_has_a_picture_to_ask_about(small, capsys):
    assert cli.main(["ask"]) == 0
    first = sorted(path.name for path in (verbs.ASSETS / "pictures").glob("*.png"))[0]
    assert capsys.readouterr().out.startswith(f"picture   {first}, ")


def test_without_pictures(no_model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(verbs, "ASSETS", tmp_path)
    assert "no picture in" in refused(capsys, "ask")


def test_the_model_is_the_one_named(picture, monkeypatch, capsys):
    asked = []

    def load_model(*how):
        asked.append(how)
        raise ValueError("first line\n  second line")

    monkeypatch.setattr(verbs, "load_model", load_model)
    told = refused(capsys, "ask", "--image", picture, "--model", "owner/name")
    assert told == "minipali: error: first line second line\n"
    refused(capsys, "detect", "dog", "--image", picture, "--device", "mps")
    how = ["--dtype", "float16", "--int8"]
    refused(capsys, "caption", picture, "--model", "owner/name@bfloat16", *how)
    refused(capsys, "ask", picture, "--adapter", "learned")
    assert asked == [
        ("owner/name", "auto", None, None, None),
        ("small", "mps", None, None, None),
        ("owner/name@bfloat16", "auto", "float16", 8, None),
        ("small", "auto", None, None, Path("learned")),
    ]


@pytest.mark.parametrize(
    ("name", "present", "chosen"),
    [
        ("auto", ("cuda", "mps"), "cuda"),
        ("auto", ("mps",), "mps"),
        ("auto", (), "cpu"),
        ("cpu", ("cuda",), "cpu"),
        ("cuda", ("cuda",), "cuda"),
        ("mps", ("mps",), "mps"),
        ("cuda", ("mps",), None),
        ("mps", (), None),
    ],
)
def test_the_device_is_one_that_is_there(monkeypatch, name, present, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    if chosen:
        assert verbs.choose_device(name) == chosen
    else:
        with pytest.raises(ValueError, match=f"--device {name} must be .* use --device cpu"):
            verbs.choose_device(name)


def test_the_model_goes_to_the_chosen_device(monkeypatch):
    from minipali import weights

    class Model:
        def parameters(self):
            return iter(())

    given = []
    monkeypatch.setattr(verbs, "choose_device", {"auto": "cuda"}.get)
    monkeypatch.setattr(
        weights, "load", lambda source, *how: given.append((source, how)) or (Model(), None)
    )
    verbs.load_model("small", "auto", "float16")
    assert given == [("small", ("float16", "cuda"))]


def test_a_device_whose_memory_is_full(picture, monkeypatch, capsys):
    def load_model(*how):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB.\n  much more")

    monkeypatch.setattr(verbs, "load_model", load_model)
    assert "memory of the device: try --device cpu" in refused(capsys, "ask", "--image", picture)


def test_a_console_that_cannot_write_a_letter(small, picture, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp437"))
    prompt = "answer en was sieht man da, mögen \N{DOG FACE}?"
    assert cli.main(["ask", "--image", str(picture), "--prompt", prompt]) == 0
    sys.stdout.flush()
    assert "question  answer en was sieht man da, mögen ??" in written.getvalue().decode("cp437")


def test_help_names_the_prompts_that_the_small_model_learns(capsys):
    """Neither more nor fewer kinds of question than minipali.scenes asks."""
    names = sorted([*OBJECTS, *map(plural, OBJECTS)], key=len, reverse=True)

    def kind(prompt: str) -> str:
        prompt = re.sub(rf"(a |an )?\b({'|'.join(names)})\b", "NAME", prompt)
        prompt = re.sub(r"on the (left|right)", "SIDE", prompt)
        return re.sub(r"at the (top|bottom)", "SIDE", prompt)

    rng = np.random.default_rng(0)
    asked = set()
    for _ in range(60):
        scene = compose(rng, TRAINING_ARTISTS)
        asked |= {kind(q.prompt) for task in TASKS if (q := ask(rng, scene, task))}
    told = {kind(line.split("  (")[0].strip()) for line in cli.PROMPTS.splitlines()}
    assert told == asked
    assert verbs.NAMES.split() == list(OBJECTS)
    for verb, text in (("ask", cli.PROMPTS), ("ask", verbs.NAMES), ("detect", verbs.NAMES)):
        with pytest.raises(SystemExit) as end:
            cli.main([verb, "--help"])
        assert end.value.code == 0
        assert text in capsys.readouterr().out


def test_a_note_where_the_small_model_has_not_learned_a_prompt():
    rng = np.random.default_rng(1)
    for _ in range(60):
        scene = compose(rng, TRAINING_ARTISTS)
        for task in TASKS:
            if question := ask(rng, scene, task):
                assert verbs.LEARNED.fullmatch(question.prompt)
    for prompt in ("detect zebra", "answer en how many zebras are there?", "caption de", "detect"):
        assert not verbs.LEARNED.fullmatch(prompt)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"minipali {minipali.__version__}\n"


# --- how an answer is drawn ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("--max-tokens 2", {"max_new_tokens": 2}),
        ("--temperature 1 --seed 3", {"temperature": 1.0, "seed": 3}),
        ("--temperature 2 --top-k 5 --seed 3", {"temperature": 2.0, "top_k": 5, "seed": 3}),
        ("--temperature 2 --top-p .4 --seed 3", {"temperature": 2.0, "top_p": 0.4, "seed": 3}),
    ],
)
@pytest.mark.parametrize("verb", ["ask", "caption"])
def test_the_options_of_drawing_reach_the_model(small, picture, capsys, verb, arguments, options):
    prompt = cli.QUESTION if verb == "ask" else "caption en"
    answer = generate(*small, picture, prompt, **options)
    assert answer != generate(*small, picture, prompt)
    assert cli.main([verb, str(picture), *arguments.split()]) == 0
    assert capsys.readouterr().out.endswith(f"answer    {answer}\n")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_become_what_is_asked_for(dtype):
    model, _ = verbs.load_model("small", "cpu", dtype)
    assert model.language_model.norm.weight.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits_make_the_language_model_smaller_and_answer_as_before(capsys, bits):
    model, _ = verbs.load_model("small", "cpu", bits=bits)
    assert model.language_model.embed_tokens.weight.dtype == torch.int8
    own = model.language_model.layers[0].mlp.up_proj
    assert own.weight.nbytes == own.weight.shape[0] * 128 * bits // 8
    assert cli.main(["caption", f"--int{bits}"]) == 0
    assert capsys.readouterr().out.endswith("a ball and a cat on a purple background\n")


# --- several pictures ----------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder with two pictures, and what may lie beside them."""
    folder = tmp_path / "photos"
    (folder / "older").mkdir(parents=True)
    for name, size in (("b.png", (40, 30)), ("a.JPG", (20, 50))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / name)
    (folder / "notes.txt").write_text("hello", encoding="utf-8")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def test_a_folder_is_answered_in_one_line_each(small, photos, capsys):
    assert cli.main(["ask", str(photos), "--prompt", "caption en"]) == 0
    told = capsys.readouterr()
    answers = {name: generate(*small, photos / name, "caption en") for name in ("a.JPG", "b.png")}
    want = "".join(
        f"{photos / name}: {' '.join(answer.splitlines())}\n" for name, answer in answers.items()
    )
    assert told.out == want
    assert told.err == f"note      passed over in {photos}: notes.txt, older{os.sep}\n"


def test_pictures_may_stand_anywhere_and_keep_their_order(small, photos, picture, capsys):
    one, two = str(photos / "b.png"), str(photos / "a.JPG")
    for arguments in (
        [one, two, str(picture), "--prompt", "caption en"],
        ["--prompt", "caption en", one, two, str(picture)],
        [one, "--prompt", "caption en", two, "--device", "cpu", str(picture)],
        [one, "--image", two, "--prompt", "caption en", "--image", str(picture)],
    ):
        assert cli.main(["ask", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(": ")[0] for line in lines] == [one, two, str(picture)]


def test_json_is_one_object_for_each_picture(small, photos, picture, capsys):
    assert cli.main(["ask", "--json", str(picture), str(photos), "--prompt", "a"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sizes = {picture: (40, 30), photos / "a.JPG": (20, 50), photos / "b.png": (40, 30)}
    assert told == [
        {
            "picture": str(file),
            "width": width,
            "height": height,
            "prompt": "a",
            "answer": generate(*small, file, "a"),
        }
        for file, (width, height) in sizes.items()
    ]
    assert cli.main(["caption", "--json", str(picture)]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "caption en"


def test_one_bad_picture_does_not_stop_the_others(small, photos, capsys):
    (photos / "ab.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert cli.main(["ask", str(photos)]) == 2
    told = capsys.readouterr()
    assert [Path(line.split(": ")[0]).name for line in told.out.splitlines()] == ["a.JPG", "b.png"]
    assert re.search("^minipali: error: .*ab.heic must .* HEIC photo", told.err, re.MULTILINE)
    assert cli.main(["ask", "--json", str(photos)]) == 2
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(one) == ["error", "picture"] for one in told] == [False, True, False]
    assert told[1]["picture"] == str(photos / "ab.heic") and "HEIC" in told[1]["error"]


def test_a_path_that_is_not_there_ends_the_command_before_any_work(no_model, photos, capsys):
    assert "no picture at" in refused(capsys, "ask", photos / "b.png", photos / "c.png")


def test_a_picture_from_standard_input(small, picture, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(picture.read_bytes())))
    assert cli.main(["caption", "-"]) == 0
    answer = generate(*small, picture, "caption en")
    told = capsys.readouterr().out
    assert told.startswith("picture   standard input, 40 x 30 pixels\n")
    assert told.endswith(f"answer    {answer}\n")


# --- detect --------------------------------------------------------------------------------------


@pytest.fixture
def found(small, monkeypatch):
    """The boxes that the model finds: one dog. (Reading real answers is tested elsewhere.)"""
    boxes = [("dog", (5.0, 10.0, 25.0, 32.0))]
    monkeypatch.setattr(asking, "detect", lambda model, processor, image, name: boxes)
    return boxes


def test_detect_draws_the_boxes(found, picture, tmp_path, capsys):
    before = picture.read_bytes()
    output = tmp_path / "out.png"
    assert cli.main(["detect", "dog", "--image", str(picture), "--output", str(output)]) == 0
    drawn, original = opened(output), opened(picture)
    assert drawn.size == original.size
    assert output.read_bytes().startswith(b"\x89PNG")
    changed = (np.asarray(drawn) != np.asarray(original)).any(axis=2)
    assert changed[5:26, 10:33].any()
    assert not changed[:, :8].any() and not changed[:3].any()
    assert picture.read_bytes() == before
    told = capsys.readouterr().out.splitlines()
    assert told[1:] == ["found     dog: x 10 to 32, y 5 to 25", f"written   {output}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.png", "out.png"]
    if os.name == "posix":  # as any new file
        (tmp_path / "new").touch()
        assert output.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_detect_writes_through_a_link(found, picture, tmp_path):
    (tmp_path / "real.png").write_bytes(b"earlier")
    try:
        (tmp_path / "link.png").symlink_to("real.png")
    except OSError:
        pytest.skip("this system gives no right to make links")
    arguments = ["--image", str(picture), "--output", str(tmp_path / "link.png")]
    assert cli.main(["detect", "dog", *arguments]) == 0
    assert (tmp_path / "link.png").is_symlink() and opened(tmp_path / "real.png").size == (40, 30)


def test_detect_replaces_an_earlier_result(found, picture, tmp_path):
    output = tmp_path / "out.png"
    output.write_bytes(b"earlier")
    assert cli.main(["detect", "dog", "--image", str(picture), "--output", str(output)]) == 0
    assert opened(output).size == (40, 30)


def test_detect_finds_nothing(found, picture, tmp_path, capsys):
    found.clear()
    output = tmp_path / "out.png"
    assert cli.main(["detect", "owl", "--image", str(picture), "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert "nothing that the model calls 'owl'; no picture was written" in told.out
    assert "note      the small model has not learned this prompt; see minipali detect" in told.err
    assert not output.exists()


def test_what_the_library_warns_about_is_a_note(small, picture, monkeypatch, capsys):
    def detect(model, processor, image, name):
        warnings.warn("the answer was cut off", stacklevel=2)
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 9, "PIL.x")
        return []

    monkeypatch.setattr(asking, "detect", detect)
    assert cli.main(["detect", "dog", "--image", str(picture)]) == 0
    told = capsys.readouterr()
    assert told.err == "note      the answer was cut off\n" and "note" not in told.out


def test_detect_writes_boxes_png_here(found, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["detect", "dog", "--image", "dog.png"]) == 0
    assert opened(tmp_path / "boxes.png").size == (40, 30)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("dog.png", "must not be the picture itself"),
        ("folder/../dog.png", "must not be the picture itself"),
        ("out.jpg", r"must end in \.png"),
        ("boxes", r"must end in \.png"),
        ("nowhere/out.png", "nowhere does not"),
        ("folder/taken.png", "is a folder"),
    ],
)
def test_detect_refuses_an_output_at_once(no_model, picture, tmp_path, capsys, output, says):
    (tmp_path / "folder" / "taken.png").mkdir(parents=True)
    before = picture.read_bytes()
    told = refused(capsys, "detect", "dog", "--image", picture, "--output", tmp_path / output)
    assert re.search(says, told)
    assert picture.read_bytes() == before


def test_detect_in_several_pictures_writes_into_a_folder(found, photos, tmp_path, capsys):
    assert cli.main(["detect", "dog", str(photos)]) == 0
    line = "dog: x 10 to 32, y 5 to 25"
    want = [f"{photos / name}: {line}" for name in ("a.JPG", "b.png")]
    assert capsys.readouterr().out.splitlines() == want
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]  # nothing unasked
    assert cli.main(["detect", "dog", str(photos), "--output", str(tmp_path / "out")]) == 0
    assert opened(tmp_path / "out" / "a.png").size == (20, 50)
    assert opened(tmp_path / "out" / "b.png").size == (40, 30)


def test_detect_as_json(found, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["detect", "dog", "--json", str(picture)]) == 0
    told = json.loads(capsys.readouterr().out)
    dog = {"name": "dog", "x0": 10.0, "y0": 5.0, "x1": 32.0, "y1": 25.0}
    assert (told["prompt"], told["objects"]) == ("detect dog", [dog])
    assert "output" not in told and not (tmp_path / "boxes.png").exists()
    assert cli.main(["detect", "dog", "--json", str(picture), "--output", "out.png"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == "out.png"
    assert opened(tmp_path / "out.png").size == (40, 30)
    found.clear()
    assert cli.main(["detect", "dog", "--json", str(picture)]) == 0
    assert json.loads(capsys.readouterr().out)["objects"] == []


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("out.png", "must be a folder where there are several"),
        ("notes", "must be a folder where there are several"),
        ("nowhere/out", "make it first"),
        ("photos", r"must not be the picture itself \(.*b\.png\)"),
    ],
)
def test_an_output_for_several_pictures_is_refused_at_once(
    no_model, photos, tmp_path, capsys, output, says
):
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    before = (photos / "b.png").read_bytes()
    assert re.search(says, refused(capsys, "detect", "dog", photos, "--output", tmp_path / output))
    assert (photos / "b.png").read_bytes() == before


def test_two_pictures_of_one_name_are_not_written_over_each_other(
    no_model, photos, picture, tmp_path, capsys
):
    picture = picture.rename(tmp_path / "b.png")
    told = refused(capsys, "detect", "dog", photos, picture, "--output", tmp_path / "out")
    assert "would both be written to" in told


@pytest.mark.parametrize("step", ["write", "replace"])
def test_an_error_while_writing_leaves_the_old_picture(
    found, picture, tmp_path, monkeypatch, capsys, step
):
    output = tmp_path / "out.png"
    output.write_bytes(b"earlier")

    def write_bytes(self, content):
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    def replace(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(source), str(target))

    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(Path, "write_bytes", write_bytes)
        else:
            patched.setattr(os, "replace", replace)
        told = refused(capsys, "detect", "dog", "--image", picture, "--output", output)
    assert "out.png was not written: " in told
    assert ("No space left" if step == "write" else "Permission denied") in told
    assert output.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.png", "out.png"]


# --- segment -------------------------------------------------------------------------------------


def test_segment_draws_the_masks(small, picture, tmp_path, monkeypatch, capsys):
    mask = np.zeros((30, 40), bool)
    mask[8:20, 15:30] = True
    found = [("dog", (5.0, 10.0, 25.0, 32.0), mask)]
    codec = object()
    monkeypatch.setattr(masks, "load_codec", lambda file: codec)

    def segment(model, processor, given, image, name):
        assert (given, name) == (codec, "dog")
        return found

    monkeypatch.setattr(asking, "segment", segment)
    (tmp_path / "codec.npz").touch()
    output = tmp_path / "out.png"
    arguments = ["segment", "dog", str(picture), "--codec", str(tmp_path / "codec.npz")]
    assert cli.main([*arguments, "--output", str(output)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1:] == ["found     dog: x 10 to 32, y 5 to 25, 180 pixels", f"written   {output}"]
    drawn, original = np.asarray(opened(output)).astype(int), np.asarray(opened(picture))
    assert (drawn[12, 28] - original[12, 28] // 2)[0] > 50  # red lies over the object
    assert (drawn[28, 36] == original[28, 36]).all()  # and not beside it
    assert cli.main([*arguments, "--json"]) == 0
    [dog] = json.loads(capsys.readouterr().out)["objects"]
    assert dog["pixels"] == 180 and dog["x1"] == 32.0


def test_segment_without_the_weights_of_the_codec(no_model, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, "segment", "dog", picture)
    assert "--codec must be the file" in told and "found none at vae-oid.npz" in told
    (tmp_path / "vae-oid.npz").write_bytes(b"no archive")
    assert "must be a whole npz file" in refused(capsys, "segment", "dog", picture)


# --- who reads the output ------------------------------------------------------------------------


def test_a_reader_that_has_seen_enough(picture):
    process = subprocess.Popen(
        [sys.executable, "-m", "minipali", "ask", "--image", str(picture)],
        env=os.environ | {"PYTHONPATH": str(Path(minipali.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(100) == 1


def test_on_windows_a_reader_that_has_gone_is_an_invalid_argument(small, picture, monkeypatch):
    with open(os.devnull, "wb") as nowhere:

        class Gone(io.StringIO):
            def write(self, text):
                raise OSError(errno.EINVAL, "Invalid argument")

            def fileno(self):
                return nowhere.fileno()

        monkeypatch.setattr(sys, "stdout", Gone())
        with monkeypatch.context() as patched:
            patched.setattr(sys, "platform", "win32")
            assert cli.main(["ask", "--image", str(picture)]) == 1
    assert not cli.nobody_reads(OSError(errno.EINVAL, "Invalid argument", "a file.png"))
    assert not cli.nobody_reads(ValueError("no"))


# --- errors --------------------------------------------------------------------------------------


def test_no_such_picture(no_model, tmp_path, capsys):
    assert "no picture at" in refused(capsys, "ask", "--image", tmp_path / "none.png")


@pytest.mark.parametrize("way", [[], ["--image"]], ids=["named", "--image"])
def test_what_people_try_as_a_picture_gets_advice(no_model, tmp_path, capsys, way):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (tmp_path / "empty").mkdir()
    for given, advice in (
        ("http://example.org/a.png", "http://example.org/a.png must begin with https"),
        (tmp_path / "empty", "found a folder with none"),
        (tmp_path / "a.pdf", "found a PDF: save the page as PNG"),
        (tmp_path / "a.heic", "found a HEIC photo: save it as JPEG"),
        ("x" * 5000, "no picture at"),
    ):
        told = refused(capsys, "ask", *way, given)
        assert re.search(advice, told) and len(told) < 400


@pytest.mark.parametrize("option", ["--prompt", "--model", "--device"])
def test_an_option_given_twice_is_not_silently_replaced(no_model, picture, capsys, option):
    value = "cpu" if option == "--device" else str(picture)
    with pytest.raises(SystemExit) as end:
        cli.main(["ask", option, value, option, value])
    assert end.value.code == 2
    assert f"{option} must be given once" in capsys.readouterr().err


def test_not_a_picture(no_model, tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    assert "text.png must be a whole picture" in refused(
        capsys, "caption", "--image", tmp_path / "text.png"
    )


def test_not_a_model(picture, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    told = refused(capsys, "ask", "--image", picture, "--model", tmp_path / "empty")
    assert "empty" in told


def test_an_unexpected_error_keeps_its_traceback(picture, monkeypatch):
    def load_model(*how):
        raise KeyError("a bug")

    monkeypatch.setattr(verbs, "load_model", load_model)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["ask", "--image", str(picture)])


def test_ctrl_c(picture, monkeypatch):
    def load_model(*how):
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "load_model", load_model)
    assert cli.main(["ask", "--image", str(picture)]) == 130


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["describe"], "invalid choice: 'describe'"),
        (["detect"], "required: NAME"),
        (["ask", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["ask", "--dtype", "int4"], "--dtype: invalid choice: 'int4'"),
        (["ask", "--temprature", "1"], "unrecognized: --temprature"),
        (["detect", "cat", "a.png", "--top-k", "3"], "unrecognized: --top-k"),
        (["doctor", "a.png"], "unrecognized: a.png"),
        (["caption", "--prompt", "a"], "unrecognized: --prompt"),
        (["ask", "--max-tokens", "0"], "--max-tokens: must be a whole number, .* found '0'"),
        (["ask", "--max-tokens", "1.5"], "--max-tokens: must be a whole number, .* found '1.5'"),
        (["ask", "--temperature", "-1"], "--temperature: must be a number, .* found '-1'"),
        (["ask", "--temperature", "nan"], "--temperature: must be a number, .* found 'nan'"),
        (["ask", "--temperature", "warm"], "--temperature: must be a number, .* found 'warm'"),
        (["caption", "--top-k", "0"], "--top-k: must be a whole number, .* found '0'"),
        (["caption", "--top-p", "1.1"], "--top-p: must be a number above 0 .* found '1.1'"),
        (["caption", "--seed", "-3"], "--seed: must be a whole number from 0 .* found '-3'"),
    ],
)
def test_misspelt_commands_and_bad_values_are_told_in_one_sentence(capsys, arguments, says):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr()
    assert re.fullmatch(rf"minipali: error: .*{says}.*; see minipali.* --help\n", told.err)
    assert told.out == ""


@pytest.mark.parametrize("option", [["--top-k", "3"], ["--top-p", "0.5"]])
def test_what_to_draw_from_needs_a_temperature(no_model, picture, capsys, option):
    assert "give --temperature above 0" in refused(capsys, "ask", picture, *option)


def test_an_answer_longer_than_the_model_allows(small, picture, capsys):
    told = refused(capsys, "ask", picture, "--max-tokens", 10**6)
    assert "lower --max-tokens" in told


def test_a_picture_where_the_name_belongs(no_model, picture, capsys):
    with pytest.raises(SystemExit):
        cli.main(["detect", str(picture)])
    assert f"found a file: minipali detect cat {picture}" in capsys.readouterr().err


def test_no_command_at_all_shows_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0
    assert "usage: minipali" in capsys.readouterr().out
