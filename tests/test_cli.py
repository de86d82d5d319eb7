"""The command `minipali`, with a tiny random model in place of a trained one."""

import errno
import io
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
from minipali import asking, cli
from minipali.asking import generate
from minipali.paligemma import PaliGemma
from minipali.scenes import OBJECTS, TASKS, TRAINING_ARTISTS, ask, compose, plural


@pytest.fixture
def small(processor, monkeypatch):
    """What the command loads instead of the small model: (model, processor)."""
    model = PaliGemma(tiny_config()).eval()
    randomise(model)
    monkeypatch.setattr(cli, "load_model", lambda source, device: (model, processor))
    return model, processor


@pytest.fixture
def no_model(monkeypatch):
    """For what must be refused before a model, which may be large, is loaded."""

    def load_model(source, device):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cli, "load_model", load_model)


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
    note = ""
    if "is this" in prompt:
        note = "note      the small model has not learned this prompt; see minipali ask --help\n"
    told = capsys.readouterr()
    assert told.out == (
        f"picture   dog.png, 40 x 30 pixels\nquestion  {prompt}\n{note}answer    {answer}\n"
    )
    assert told.err == ""


def test_the_package_has_a_picture_to_ask_about(small, capsys):
    assert cli.main(["ask"]) == 0
    first = sorted(path.name for path in (cli.ASSETS / "pictures").glob("*.png"))[0]
    assert capsys.readouterr().out.startswith(f"picture   {first}, ")


def test_without_pictures(no_model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "ASSETS", tmp_path)
    assert "name one with --image" in refused(capsys, "ask")


def test_the_model_is_the_one_named(picture, monkeypatch, capsys):
    asked = []

    def load_model(source, device):
        asked.append((source, device))
        raise ValueError("first line\n  second line")

    monkeypatch.setattr(cli, "load_model", load_model)
    told = refused(capsys, "ask", "--image", picture, "--model", "owner/name")
    assert told == "minipali: error: first line second line\n"
    refused(capsys, "detect", "dog", "--image", picture, "--device", "mps")
    assert asked == [("owner/name", "auto"), ("small", "mps")]


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
        assert cli.choose_device(name) == chosen
    else:
        with pytest.raises(ValueError, match=f"--device {name} must be .* use --device cpu"):
            cli.choose_device(name)


def test_the_model_goes_to_the_chosen_device(monkeypatch):
    from minipali import weights

    class Model:
        def parameters(self):
            return iter(())

    given = []
    monkeypatch.setattr(cli, "choose_device", {"auto": "cuda"}.get)
    monkeypatch.setattr(
        weights, "load", lambda source, device: given.append((source, device)) or (Model(), None)
    )
    cli.load_model("small", "auto")
    assert given == [("small", "cuda")]


def test_a_device_whose_memory_is_full(picture, monkeypatch, capsys):
    def load_model(source, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB.\n  much more")

    monkeypatch.setattr(cli, "load_model", load_model)
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
    assert cli.NAMES.split() == list(OBJECTS)
    for verb, text in (("ask", cli.PROMPTS), ("ask", cli.NAMES), ("detect", cli.NAMES)):
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
                assert cli.LEARNED.fullmatch(question.prompt)
    for prompt in ("detect zebra", "answer en how many zebras are there?", "caption de", "detect"):
        assert not cli.LEARNED.fullmatch(prompt)


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"minipali {minipali.__version__}\n"


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
    told = capsys.readouterr().out
    assert "nothing that the model calls 'owl'" in told
    assert "note      the small model has not learned this name; see minipali detect" in told
    assert not output.exists()


def test_what_the_library_warns_about_is_a_note(small, picture, monkeypatch, capsys):
    def detect(model, processor, image, name):
        warnings.warn("the answer was cut off", stacklevel=2)
        warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 9, "PIL.x")
        return []

    monkeypatch.setattr(asking, "detect", detect)
    assert cli.main(["detect", "dog", "--image", str(picture)]) == 0
    told = capsys.readouterr()
    assert told.out.count("note      ") == 1 and "note      the answer was cut off\n" in told.out
    assert told.err == ""


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


def test_what_people_try_as_a_picture_gets_advice(no_model, tmp_path, capsys):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    for given, advice in (
        ("https://example.org/a.png", "https://example.org/a.png is a link, .* download"),
        (tmp_path, "found a folder: name a file in it"),
        (tmp_path / "a.pdf", "found a PDF: save the page as PNG"),
        (tmp_path / "a.heic", "found a HEIC photo: save it as JPEG"),
        ("x" * 5000, "no picture at"),
    ):
        told = refused(capsys, "ask", "--image", given)
        assert re.search(advice, told) and len(told) < 400


@pytest.mark.parametrize("option", ["--image", "--prompt", "--model", "--device"])
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
    def load_model(source, device):
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "load_model", load_model)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["ask", "--image", str(picture)])


def test_ctrl_c(picture, monkeypatch):
    def load_model(source, device):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", load_model)
    assert cli.main(["ask", "--image", str(picture)]) == 130


@pytest.mark.parametrize(
    "arguments",
    [["describe"], ["detect"], ["ask", "--temperature", "1"], ["ask", "--device", "tpu"]],
)
def test_misspelt_commands(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: minipali" in capsys.readouterr().err


def test_no_command_at_all_shows_the_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 0
    assert "usage: minipali" in capsys.readouterr().out
