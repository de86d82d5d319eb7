"""The set-up: course.py, and the four files that must name the same packages."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

# What conda-forge calls a package differently.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


@pytest.fixture
def course(tmp_path):
    """course.py in a folder of its own, so that nothing it does reaches the repository."""
    for name in ("course.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    spec = importlib.util.spec_from_file_location("course_under_test", tmp_path / "course.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installs(course, monkeypatch):
    """A .venv that works, and a pip that only notes what it is asked for: the list of calls."""
    calls = []

    def run(*command, **variables):
        calls.append([str(part) for part in command])
        return 0

    course.VENV.mkdir()
    monkeypatch.setattr(course, "venv_version", lambda: "3.11")
    monkeypatch.setattr(course, "run", run)
    return calls


def ranges(requirements) -> dict[str, SpecifierSet]:
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


# --- the files agree -----------------------------------------------------------------------------


def test_environment_names_the_same_packages_in_the_same_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (nested,) = [entry for entry in environment["dependencies"] if not isinstance(entry, str)]
    assert nested == {"pip": ["-e .[course]"]}
    conda = {CONDA_NAMES.get(name, name): range_ for name, range_ in ranges(plain).items()}
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert conda.pop("pip") == SpecifierSet()
    assert conda == ranges(PROJECT["dependencies"] + EXTRAS["course"])


def test_every_package_is_pinned_inside_its_range():
    pinned = pins()
    everything = PROJECT["dependencies"] + [text for extra in EXTRAS.values() for text in extra]
    for name, allowed in ranges(everything).items():
        assert len(allowed) == 2 and ">=" in str(allowed) and "<" in str(allowed), name
        assert allowed.contains(pinned[name]), f"{name} {pinned[name]} is not {allowed}"


def test_extras_that_share_a_package_share_its_range():
    found = {}
    for extra in EXTRAS.values():
        for name, allowed in ranges(extra).items():
            assert found.setdefault(name, allowed) == allowed, name


def test_constraints_fit_every_system():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = [line.split("==")[0] for line in lines]
    # One exact version and nothing else: no address, file, build suffix, or editable install.
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert names == sorted(set(names))
    assert [n for n in names if n.startswith(("nvidia", "cuda", "triton", "minipali"))] == []


def test_constraints_hold_what_the_packages_themselves_need():
    """Not only the direct dependencies: all that pip would take for this Python and system."""
    from importlib import metadata

    extras = tuple(EXTRAS)
    pinned, waiting, seen = pins(), [("minipali", extras)], set()
    try:
        metadata.requires("minipali")
    except metadata.PackageNotFoundError:
        pytest.skip("minipali is not installed here")
    while waiting:
        name, wanted_extras = waiting.pop()
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            key = canonicalize_name(needed.name)
            asked = [
                extra
                for extra in ("", *wanted_extras)
                if needed.marker is None or needed.marker.evaluate({"extra": extra})
            ]
            if not asked or key.startswith(("nvidia", "cuda", "triton")):
                continue
            assert key in pinned, f"{name} needs {key}, which constraints.txt does not pin"
            assert needed.specifier.contains(pinned[key], prereleases=True), f"{name}: {text}"
            if (key, tuple(needed.extras)) not in seen:
                seen.add((key, tuple(needed.extras)))
                waiting.append((key, tuple(needed.extras)))
    assert len(seen) > 50


def test_one_minimum_python(course):
    minimum = ".".join(map(str, course.MINIMUM))
    assert PROJECT["requires-python"] == f">={minimum}"


# --- course.py on a bare Python ------------------------------------------------------------------


def bare(*arguments, cwd=ROOT):
    """course.py by a Python without site-packages, in another process."""
    command = [sys.executable, "-I", "-S", str(ROOT / "course.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("arguments", [[], ["help"], ["-h"], ["--help"]])
def test_help_names_every_verb(course, arguments, tmp_path):
    answer = bare(*arguments, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    told = re.findall(r"^  (\w+) ", answer.stdout, re.MULTILINE)
    assert sorted(told) == sorted(course.VERBS)


def test_unknown_verb():
    answer = bare("tset")
    assert answer.returncode == 2
    assert answer.stderr == (
        "course.py: no verb 'tset'; there are: ask, lab, test, progress, build, doctor, setup\n"
    )


def test_python_too_old(course, monkeypatch):
    monkeypatch.setattr(course.sys, "version_info", (3, 10, 2))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        course.main(["ask"])
    assert not course.VENV.exists()


def test_no_venv_module(course, monkeypatch):
    monkeypatch.setattr(course, "venv_version", lambda: None)
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"apt install python3\.\d+-venv"):
        course.main(["ask"])


def test_the_repository_may_lie_anywhere(tmp_path):
    folder = tmp_path / "a folder with späces and 漢字"
    folder.mkdir()
    (folder / "course.py").write_bytes((ROOT / "course.py").read_bytes())
    command = [sys.executable, "-I", "-S", str(folder / "course.py"), "tset"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert answer.returncode == 2 and b"no verb" in answer.stderr


# --- when is something installed? ----------------------------------------------------------------


def test_an_install_is_done_once(course, installs):
    course.set_up({"course"})
    assert len(installs) == 1
    assert installs[0][1:4] == ["-m", "pip", "install"]
    assert installs[0][-4:] == ["-c", "constraints.txt", "-e", ".[course]"]
    course.set_up({"course"})
    assert len(installs) == 1


def test_a_new_extra_is_added_and_kept(course, installs):
    course.set_up({"course"})
    course.set_up({"course", "dev"})
    course.set_up({"course"})
    assert [call[-1] for call in installs] == [".[course]", ".[course,dev]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_is_installed_again(course, installs, name):
    course.set_up({"course", "dev"})
    with open(course.ROOT / name, "a", encoding="utf-8") as file:
        file.write("# changed\n")
    course.set_up({"course"})
    assert [call[-1] for call in installs] == [".[course,dev]"] * 2


def test_another_python_or_folder_is_installed_again(course, monkeypatch, tmp_path):
    here = course.fingerprint("3.11")
    assert course.fingerprint("3.12") != here
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (moved / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(course, "ROOT", moved)
    assert course.fingerprint("3.11") != here


def test_a_failed_install_leaves_no_stamp(course, installs, monkeypatch, capsys):
    course.set_up({"course"})
    monkeypatch.setattr(course, "run", lambda *command, **variables: 7)
    with pytest.raises(SystemExit) as end:
        course.set_up({"course", "dev"})
    assert end.value.code == 7
    assert "No network?" in capsys.readouterr().err
    assert not course.STAMP.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fingerprint": "x"}', "\xff"])
def test_a_damaged_stamp_counts_as_none(course, installs, content):
    course.STAMP.write_text(content, encoding="latin-1")
    course.set_up({"course"})
    assert len(installs) == 1


def test_a_broken_venv_is_made_again(course, monkeypatch, capsys):
    calls, versions = [], [None, "3.11", "3.11"]
    course.VENV.mkdir()
    monkeypatch.setattr(course, "venv_version", lambda: versions.pop(0))
    monkeypatch.setattr(course, "run", lambda *c, **v: calls.append([str(p) for p in c]) or 0)
    course.set_up({"course"})
    assert calls[0][1:] == ["-m", "venv", "--clear", str(course.VENV)]
    assert calls[1][1:4] == ["-m", "pip", "install"]
    assert "made afresh" in capsys.readouterr().out


def test_a_folder_without_python_is_no_venv(course):
    assert course.venv_version() is None
    (course.VENV / "bin").mkdir(parents=True)
    assert course.venv_version() is None


# --- running things ------------------------------------------------------------------------------


def test_exit_codes_are_those_of_the_command(course):
    assert course.run(sys.executable, "-c", "raise SystemExit(5)") == 5
    code = "import os; raise SystemExit(os.environ['MINIPALI_STRICT'] != 'yes')"
    assert course.run(sys.executable, "-c", code, MINIPALI_STRICT="yes") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
@pytest.mark.parametrize(("ending", "expected"), [("raise SystemExit(1)", 130), ("", 0)])
def test_ctrl_c_is_left_to_the_command(course, ending, expected):
    """JupyterLab asks back after Ctrl-C: it must not lose its terminal to us meanwhile."""
    code = f"import os, signal; os.kill(os.getppid(), signal.SIGINT)\n{ending}"
    assert course.run(sys.executable, "-c", code) == expected


def test_solutions_alone_are_strict(course):
    steps = {title: (command, variables) for title, command, variables in course.pytest_steps([])}
    assert list(steps) == ["tests", "lessons and exercises", "solutions"]
    assert [t for t, (_, variables) in steps.items() if "MINIPALI_STRICT" in variables] == [
        "solutions"
    ]
    folders = [a for command, _ in steps.values() for a in command if (ROOT / a).is_dir()]
    assert folders == ["tests", "notebooks", "exercises", "solutions"]
    assert all(v["OMP_NUM_THREADS"] == "1" for _, v in steps.values())
    for title in ("lessons and exercises", "solutions"):
        assert {"--nbval-lax", "--nbval-current-env", "loadfile"} <= set(steps[title][0])


@pytest.mark.parametrize("verb", ["lab", "build"])
def test_notebooks_get_one_thread(course, monkeypatch, verb):
    """With more, cells take many times as long while another program runs."""
    seen = []
    monkeypatch.setattr(course, "run", lambda *command, **variables: seen.append(variables) or 0)
    assert course.VERBS[verb][0]([]) == 0
    assert seen == [{"OMP_NUM_THREADS": "1"}]


def test_named_files_run_alone(course):
    (course.ROOT / "tests").mkdir()
    (course.ROOT / "tests" / "test_x.py").touch()
    (step,) = course.pytest_steps(["tests/test_x.py::test_y", "-k", "rope"])
    assert step[1] == ["-m", "pytest", "-k", "rope", "tests/test_x.py::test_y"]


@pytest.fixture
def codes(course, monkeypatch):
    """Exit codes that the steps of `test` end with, by a word of the command; 0 if not named."""
    wanted, ran = {}, []

    def run(*command, **variables):
        ran.append(command)
        return next((code for word, code in wanted.items() if word in command), 0)

    monkeypatch.setattr(course, "run", run)
    return wanted, ran


def test_all_steps_run_and_the_first_failure_counts(course, codes, capsys):
    wanted, ran = codes
    wanted.update({"--check": 3, "solutions": 1})
    assert course.test([]) == 3
    assert len(ran) == 6
    told = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in told] == ["ok", "FAILED", "FAILED", "ok", "ok", "FAILED"]


def test_nothing_collected_is_a_failure_unless_something_was_asked_for(course, codes):
    wanted, _ = codes
    wanted["exercises"] = 5
    assert course.test([]) == 5
    assert course.test(["-k", "test_course"]) == 0


def test_ctrl_c_ends_the_whole_test(course, codes):
    wanted, ran = codes
    wanted["check"] = course.INTERRUPTED
    assert course.test([]) == 130
    assert len(ran) == 1
