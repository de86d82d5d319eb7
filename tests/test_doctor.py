"""The command `minipali doctor`: what it sees, and that it starts where other things are broken."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import minipali
from minipali import cli, doctor, published, weights


@pytest.mark.parametrize(
    ("name", "error"),
    [("torch", "OSError('lib: cannot open shared object')"), ("numpy", "SystemError('broken')")],
)
def test_doctor_starts_where_a_package_is_broken(tmp_path, name, error):
    (tmp_path / f"{name}.py").write_text(f"raise {error}\n", encoding="utf-8")
    paths = [str(tmp_path), str(Path(minipali.__file__).parents[1])]
    told = subprocess.run(
        [sys.executable, "-m", "minipali", "doctor"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.stderr == "" and told.returncode == 1
    assert re.search(rf"^WRONG {name} \S+ cannot be imported \(", told.stdout, re.MULTILINE)
    assert told.stdout.endswith("wrong; see above.\n")  # it looked to the end


def test_doctor_counts_what_is_wrong(monkeypatch, capsys):
    parts = ("packages", "small_model", "drawings", "kernel", "language_models", "room_for_3b")
    for name in (*parts, "hub_token"):
        monkeypatch.setattr(doctor, name, lambda name=name: [(doctor.OK, name)])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nAll is well.\n")
    monkeypatch.setattr(doctor, "hub_token", lambda: [(doctor.NOTE, "no token")])
    assert cli.main(["doctor"]) == 0
    monkeypatch.setattr(doctor, "kernel", lambda: [(doctor.WRONG, "no kernel")])
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
    assert kinds(doctor.packages()) == dict.fromkeys(names, doctor.OK)


@pytest.mark.parametrize(
    ("name", "version", "kind"),
    [
        ("numpy", None, doctor.WRONG),
        ("numpy", "1.26.4", doctor.WRONG),
        ("numpy", "3.0.0", doctor.WRONG),
        ("numpy", "2.5.0+cpu", doctor.OK),
        ("pytest-xdist", None, doctor.NOTE),
        ("pytest-xdist", "2.0", doctor.WRONG),
        ("huggingface_hub", None, doctor.NOTE),
    ],
)
def test_doctor_sees_missing_and_unfit_packages(installed, name, version, kind):
    installed[name] = version
    seen = {text.split()[0]: (found, text) for found, text in doctor.packages()}
    assert seen[name][0] == kind
    if kind != doctor.OK:
        assert f'-m pip install "{name}' in seen[name][1]
    assert [n for n, (found, _) in seen.items() if found != doctor.OK and n != name] == []


def test_doctor_sees_a_damaged_package(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)  # its import fails from now on
    assert kinds(doctor.packages())["einops"] == doctor.WRONG


def test_doctor_sees_an_old_python(installed, monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.4")
    assert kinds(doctor.packages())["Python"] == doctor.WRONG


def test_doctor_sees_the_small_model(monkeypatch):
    ((kind, text),) = doctor.small_model()
    assert kind == doctor.OK
    assert "2,509,024 weights" in text

    def load(source):
        raise RuntimeError("torn")

    monkeypatch.setattr(weights, "load", load)
    ((kind, text),) = doctor.small_model()
    assert (kind, "torn" in text) == (doctor.WRONG, True)


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
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    ((kind, _),) = doctor.drawings()
    assert kind == (doctor.OK if damage == "none" else doctor.WRONG)


def test_doctor_sees_the_kernel(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    for specs, kind in (
        ({"python3": "somewhere"}, doctor.OK),
        ({"julia": "somewhere"}, doctor.WRONG),
    ):
        monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self, s=specs: s)
        assert [found for found, _ in doctor.kernel()] == [kind]


def test_doctor_says_which_published_models_are_here_and_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIPALI_WEIGHTS", str(tmp_path))
    ((kind, text),) = doctor.language_models()
    assert kind == doctor.NOTE and "there" not in text and "\n" not in text
    for name in published.PUBLISHED:
        assert f"python course.py weights {name}," in text
    model = published.PUBLISHED["smollm2"]
    (tmp_path / "smollm2").mkdir()
    with open(tmp_path / "smollm2" / model.file, "wb") as file:
        file.truncate(model.bytes - 1)  # cut off
        assert next(doctor.language_models())[0] == doctor.NOTE
        file.truncate(model.bytes)
    ((kind, text),) = doctor.language_models()
    assert kind == doctor.OK and "SmolLM2-135M-Instruct is there" in text
    assert "weights smollm2" not in text and "weights gemma3" in text and str(tmp_path) in text


@pytest.mark.parametrize(("gigabytes", "kind"), [(1, doctor.NOTE), (1000, doctor.OK)])
def test_doctor_measures_the_room_for_3b(monkeypatch, tmp_path, gigabytes, kind):
    from types import SimpleNamespace

    import psutil

    memory = SimpleNamespace(available=gigabytes * 10**9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    disk = SimpleNamespace(free=gigabytes * 10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: disk)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    findings = list(doctor.room_for_3b())
    assert [found for found, _ in findings] == [kind, kind]
    # 2,923,466,480 weights, as the published index says: 5.8 GB in bfloat16, 11.7 in float32
    assert "5.8 GB of memory" in findings[0][1] and "11.7 GB" in findings[1][1]


def test_doctor_never_shows_the_token(monkeypatch):
    import huggingface_hub

    for token, kind in (("hf_secret", doctor.OK), (None, doctor.NOTE)):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda t=token: t)
        ((found, text),) = doctor.hub_token()
        assert found == kind and "secret" not in text
