"""The command `minipali`, with a tiny random model in place of a trained one."""

import io
import re
import sys
import zipfile
from importlib import metadata

import numpy as np
import pytest
from conftest import randomise, tiny_config
from PIL import Image

from minipali import cli, locations
from minipali.asking import generate
from minipali.paligemma import PaliGemma
from minipali.scenes import OBJECTS, TASKS, TRAINING_ARTISTS, ask, compose, plural


@pytest.fixture
def small(processor, monkeypatch):
    """What the command loads instead of the small model: (model, processor)."""
    model = PaliGemma(tiny_config()).eval()
    randomise(model)
    monkeypatch.setattr(cli, "load_model", lambda source: (model, processor))
    return model, processor


@pytest.fixture
def no_model(monkeypatch):
    """For what must be refused before a model, which may be large, is loaded."""

    def load_model(source):
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

    def load_model(source):
        asked.append(source)
        raise ValueError("first line\n  second line")

    monkeypatch.setattr(cli, "load_model", load_model)
    told = refused(capsys, "ask", "--image", picture, "--model", "owner/name")
    assert told == "minipali: error: first line second line\n"
    refused(capsys, "ask", "--image", picture)
    assert asked == ["owner/name", "small"]


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
    with pytest.raises(SystemExit) as end:
        cli.main(["ask", "--help"])
    assert end.value.code == 0
    assert cli.PROMPTS in capsys.readouterr().out


# --- detect --------------------------------------------------------------------------------------


@pytest.fixture
def found(small, monkeypatch):
    """The boxes that the model finds: one dog. (Reading real answers is tested elsewhere.)"""
    boxes = [("dog", (5.0, 10.0, 25.0, 32.0))]
    monkeypatch.setattr(locations, "detect", lambda model, processor, image, name: boxes)
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


def test_detect_replaces_an_earlier_result(found, picture, tmp_path):
    output = tmp_path / "out.png"
    output.write_bytes(b"earlier")
    assert cli.main(["detect", "dog", "--image", str(picture), "--output", str(output)]) == 0
    assert opened(output).size == (40, 30)


def test_detect_finds_nothing(found, picture, tmp_path, capsys):
    found.clear()
    output = tmp_path / "out.png"
    assert cli.main(["detect", "owl", "--image", str(picture), "--output", str(output)]) == 0
    assert "nothing that the model calls 'owl'" in capsys.readouterr().out
    assert not output.exists()


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


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, OSError])
def test_detect_cannot_write(found, picture, tmp_path, monkeypatch, capsys, error):
    def save(self, path):
        raise error(13, "the disk says no", str(path))

    monkeypatch.setattr(Image.Image, "save", save)
    output = tmp_path / "out.png"
    told = refused(capsys, "detect", "dog", "--image", picture, "--output", output)
    assert "the disk says no" in told and "out.png" in told


# --- errors --------------------------------------------------------------------------------------


def test_no_such_picture(no_model, tmp_path, capsys):
    assert "no picture at" in refused(capsys, "ask", "--image", tmp_path / "none.png")


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
    def load_model(source):
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "load_model", load_model)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["ask", "--image", str(picture)])


def test_ctrl_c(picture, monkeypatch):
    def load_model(source):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", load_model)
    assert cli.main(["ask", "--image", str(picture)]) == 130


@pytest.mark.parametrize("arguments", [["describe"], ["detect"], ["ask", "--temperature", "1"]])
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


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_counts_what_is_wrong(monkeypatch, capsys):
    for name in ("packages", "small_model", "drawings", "kernel", "room_for_3b", "hub_token"):
        monkeypatch.setattr(cli, name, lambda name=name: [(cli.OK, name)])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nAll is well.\n")
    monkeypatch.setattr(cli, "hub_token", lambda: [(cli.NOTE, "no token")])
    assert cli.main(["doctor"]) == 0
    monkeypatch.setattr(cli, "kernel", lambda: [(cli.WRONG, "no kernel")])
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "WRONG no kernel" in told and "note  no token" in told
    assert told[-1] == "1 wrong; see above."


@pytest.fixture
def installed(monkeypatch):
    """What doctor takes for the installed versions: a change, or None for not installed."""
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda name: [
            "numpy<3,>=2",
            "einops<1,>=0.8",
            "tqdm<5,>=4.66; python_version < '3'",
            "pytest-xdist<4,>=3.6; extra == 'course'",
            "huggingface_hub<3,>=1; extra == 'hub'",
            "nowhere>=1; extra == 'dev'",
        ],
    )
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    versions = {"numpy": "2.4.6", "einops": "0.8.2"}
    versions |= {"pytest-xdist": "3.8.0", "huggingface_hub": "2.4.0"}

    def version(name):
        if versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


def kinds(findings) -> dict[str, str]:
    """Finding by its first word."""
    return {text.split()[0]: kind for kind, text in findings}


def test_doctor_sees_packages(installed):
    names = ["Python", "numpy", "einops", "pytest-xdist", "huggingface_hub"]
    assert kinds(cli.packages()) == dict.fromkeys(names, cli.OK)


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("numpy", None, cli.WRONG),
        ("numpy", "1.26.4", cli.WRONG),
        ("numpy", "3.0.0", cli.WRONG),
        ("numpy", "2.5.0+cpu", cli.OK),
        ("pytest-xdist", None, cli.NOTE),
        ("pytest-xdist", "2.0", cli.WRONG),
        ("huggingface_hub", None, cli.NOTE),
    ],
)
def test_doctor_sees_missing_and_unfit_packages(installed, name, version, kind):
    installed[name] = version
    seen = {text.split()[0]: (found, text) for found, text in cli.packages()}
    assert seen[name][0] == kind
    if kind != cli.OK:
        assert f'-m pip install "{name}' in seen[name][1]
    assert [n for n, (found, _) in seen.items() if found != cli.OK and n != name] == []


def test_doctor_sees_a_damaged_package(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)  # its import fails from now on
    assert kinds(cli.packages())["einops"] == cli.WRONG


def test_doctor_sees_an_old_python(installed, monkeypatch):
    monkeypatch.setattr(cli.platform, "python_version", lambda: "3.10.4")
    assert kinds(cli.packages())["Python"] == cli.WRONG


def test_doctor_sees_the_small_model(small, monkeypatch):
    ((kind, text),) = cli.small_model()
    assert kind == cli.OK
    assert f"{sum(p.numel() for p in small[0].parameters()):,} weights" in text

    def load_model(source):
        raise RuntimeError("torn")

    monkeypatch.setattr(cli, "load_model", load_model)
    ((kind, text),) = cli.small_model()
    assert (kind, "torn" in text) == (cli.WRONG, True)


@pytest.mark.parametrize("damage", ["none", "missing", "cut", "changed"])
def test_doctor_sees_the_drawings(monkeypatch, tmp_path, damage):
    archive = tmp_path / "sprites.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("noto/cat.png", b"A" * 200)
    content = archive.read_bytes()
    if damage == "missing":
        archive.unlink()
    elif damage == "cut":
        archive.write_bytes(content[:150])
    elif damage == "changed":
        archive.write_bytes(content.replace(b"AAAA", b"AAAB", 1))
    monkeypatch.setattr(cli, "ASSETS", tmp_path)
    ((kind, _),) = cli.drawings()
    assert kind == (cli.OK if damage == "none" else cli.WRONG)


def test_doctor_sees_the_kernel(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    for specs, kind in (({"python3": "somewhere"}, cli.OK), ({"julia": "somewhere"}, cli.WRONG)):
        monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self, s=specs: s)
        assert [found for found, _ in cli.kernel()] == [kind]


@pytest.mark.parametrize(("gigabytes", "kind"), [(1, cli.NOTE), (1000, cli.OK)])
def test_doctor_measures_the_room_for_3b(monkeypatch, tmp_path, gigabytes, kind):
    from types import SimpleNamespace

    import psutil

    memory = SimpleNamespace(available=gigabytes * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    disk = SimpleNamespace(free=gigabytes * 10**9)
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda folder: disk)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    findings = list(cli.room_for_3b())
    assert [found for found, _ in findings] == [kind, kind]
    # 2,923,466,480 weights, as the published index says: 5.8 GB in bfloat16, 11.7 in float32
    assert "5.8 GB of memory" in findings[0][1] and "11.7 GB" in findings[1][1]


def test_doctor_never_shows_the_token(monkeypatch):
    import huggingface_hub

    for token, kind in (("hf_secret", cli.OK), (None, cli.NOTE)):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda t=token: t)
        ((found, text),) = cli.hub_token()
        assert found == kind and "secret" not in text
