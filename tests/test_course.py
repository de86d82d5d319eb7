"""The set-up: course.py, and the four files that must name the same packages."""

import ast
import contextlib
import http.server
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
import types
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOW = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")

# What conda-forge calls a package differently.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """course.py in a folder of its own, so that nothing it does reaches the repository."""
    for name in ("course.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "solutions").mkdir()
    spec = importlib.util.spec_from_file_location("course_under_test", tmp_path / "course.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("JUPYTERHUB_USER", raising=False)  # these tests may run on a hub
    return module


@pytest.fixture
def installs(course, monkeypatch):
    """A .venv that works, and a pip that only notes what it is asked for: the list of calls."""
    calls = []

    def run(*command, **options):
        calls.append([str(part) for part in command])
        return 0

    course.VENV.mkdir()
    monkeypatch.setattr(course, "venv_version", lambda: "3.11")
    monkeypatch.setattr(course, "install_cpu_torch", lambda held: 0)
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
    """Not only the direct dependencies: all that pip would take for this Python and system.

    What a package of an extra that is not installed here needs, nobody can tell.
    """
    from importlib import metadata

    extras = tuple(EXTRAS)
    pinned, waiting, seen = pins(), [("minipali", extras)], set()
    try:
        metadata.requires("minipali")
    except metadata.PackageNotFoundError:
        pytest.skip("minipali is not installed here")
    while waiting:
        name, wanted_extras = waiting.pop()
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for text in requirements:
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


def test_devcontainer_and_binder_name_what_is_there(course):
    """What GitHub Codespaces and Binder read; neither can be run here."""
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    container = json.loads(text)
    python = container["image"].rpartition(":")[2]
    (runtime,) = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").splitlines()
    assert runtime == f"python-{python}" and f'"{python}"' in WORKFLOW
    program, verb = container["updateContentCommand"].removeprefix("python ").split()
    assert (ROOT / program).exists() and verb in course.VERBS
    for name in ("postBuild", "start"):
        lines = (ROOT / "binder" / name).read_text(encoding="utf-8").splitlines()
        assert lines[0] == "#!/bin/bash"
        assert lines[-1] == 'exec "$@"' or "set -e" in lines
    install = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
    assert course.CPU_INDEX in install and '-c constraints.txt -e ".[course]"' in install
    assert container["containerEnv"] == course.ONE_THREAD
    assert "export OMP_NUM_THREADS=1" in (ROOT / "binder" / "start").read_text(encoding="utf-8")


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


def test_unknown_verb(course):
    answer = bare("tset")
    assert answer.returncode == 2
    verbs = ", ".join(course.VERBS)
    assert verbs.startswith("ask, lab, test, ")
    assert answer.stderr == f"course.py: no verb 'tset'; there are: {verbs}\n"


def test_python_too_old(course, monkeypatch):
    monkeypatch.setattr(course.sys, "version_info", (3, 10, 2))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        course.main(["ask"])
    assert not course.VENV.exists()


def test_an_old_python_can_read_as_far_as_that(course):
    ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 7))


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
    assert installs[0][1:5] == ["-I", "-m", "pip", "install"]
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


def failing(calls, code=7, works=True):
    """A pip that fails, and a .venv whose packages can or cannot be imported."""

    def run(*command, **options):
        calls.append([str(part) for part in command])
        return code if "pip" in command else int(not works)

    return run


def change(course):
    with open(course.ROOT / "constraints.txt", "a", encoding="utf-8") as file:
        file.write("# changed\n")


def test_a_failed_install_ends_with_advice(course, installs, monkeypatch, capsys):
    course.set_up({"course"})
    monkeypatch.setattr(course, "run", failing(installs))
    with pytest.raises(SystemExit) as end:
        course.set_up({"course", "dev"})  # what was never installed cannot do
    assert end.value.code == 7
    assert "No network?" in capsys.readouterr().err
    course.set_up({"course"})  # is untouched by it
    assert len(installs) == 2


def test_without_a_network_an_older_install_goes_on(course, installs, monkeypatch, capsys):
    course.set_up({"course", "dev"})
    change(course)
    monkeypatch.setattr(course, "run", failing(installs))
    course.set_up({"course"})
    told = capsys.readouterr().err
    assert "is used as it is" in told and "No network?" not in told
    monkeypatch.setattr(course, "run", lambda *command, **options: installs.append(command) or 0)
    course.set_up({"course"})  # with a network again
    assert installs[-1][-1] == ".[course,dev]"
    assert course.is_set_up({"course", "dev"})


def test_an_older_install_that_does_not_work_does_not_go_on(course, installs, monkeypatch):
    course.set_up({"course"})
    change(course)
    monkeypatch.setattr(course, "run", failing(installs, works=False))
    with pytest.raises(SystemExit):
        course.set_up({"course"})


@pytest.mark.parametrize("ending", [KeyboardInterrupt, None])
def test_an_install_that_ends_midway_is_done_again(course, installs, monkeypatch, ending):
    """Killed (simulated: an exception that nobody catches) or ended by Ctrl-C."""
    course.set_up({"course"})
    old = (course.ROOT / "constraints.txt").read_bytes()
    change(course)

    def run(*command, **options):
        if ending:
            raise ending
        return course.INTERRUPTED

    with monkeypatch.context() as patch:
        patch.setattr(course, "run", run)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            course.set_up({"course"})
    # Also if the change is taken back: .venv may hold some of the new packages by now.
    (course.ROOT / "constraints.txt").write_bytes(old)
    course.set_up({"course"})
    assert [call[-1] for call in installs] == [".[course]"] * 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"fingerprint": "x"}',
        '{"fingerprint": "x", "extras": [[1]]}',
        "\xff",
        "[" * 99999,
    ],
)
def test_a_damaged_stamp_counts_as_none(course, installs, content):
    course.STAMP.write_text(content, encoding="latin-1")
    course.set_up({"course"})
    assert course.is_set_up({"course"}) and len(installs) == 1


@pytest.mark.parametrize("extras", ['[1, "course"]', '"course"', '["../x", "dev,x"]'])
def test_odd_extras_are_not_installed(course, installs, extras):
    course.STAMP.write_text(f'{{"fingerprint": "x", "extras": {extras}}}', encoding="utf-8")
    course.set_up({"course"})
    assert installs[0][-1] == ".[course]"


def test_a_folder_in_the_stamps_place_is_replaced(course, installs):
    (course.STAMP / "full").mkdir(parents=True)
    course.set_up({"course"})
    assert course.is_set_up({"course"})


def refuse(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_where_nothing_can_be_written(course, installs, monkeypatch, capsys):
    """A folder without write permission, or a full disk: what is there is used, or one sentence."""
    course.set_up({"course"})
    monkeypatch.setattr(course.os, "replace", refuse)
    course.set_up({"course"})  # nothing to do
    with pytest.raises(SystemExit):
        course.set_up({"course", "dev"})
    assert "No space left" in capsys.readouterr().err
    change(course)
    course.set_up({"course"})
    assert "is used as it is" in capsys.readouterr().err
    monkeypatch.setattr(course, "is_set_up", refuse)
    with pytest.raises(SystemExit, match="No space left on device"):
        course.main(["setup"])


def test_a_link_to_the_checkout_is_the_same_checkout(course, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    try:
        link.symlink_to(course.ROOT, target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    spec = importlib.util.spec_from_file_location("linked", link / "course.py")
    linked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(linked)
    assert linked.VENV == course.VENV
    assert linked.fingerprint("3.11") == course.fingerprint("3.11")


HOLDER = """
import importlib.util, subprocess, sys, time
spec = importlib.util.spec_from_file_location("course", sys.argv[1])
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)
with course.lock() as held:
    print("held", flush=True)
    command = "import sys; print('child', flush=True); sys.stdin.read()"
    course.run(sys.executable, "-c", command, **held)
"""


def test_two_set_ups_wait_for_one_another_and_not_for_the_dead(course, monkeypatch, capsys):
    """Also for the pip that a killed course.py leaves behind, where the system can share locks."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, course.ROOT / "course.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [other.stdout.readline() for _ in range(2)] == ["held\n", "child\n"]
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 1:
            other.kill()  # its command still runs
            other.wait()
        if len(waits) == 3 or sys.platform == "win32":
            other.stdin.close()  # now that ends too
        assert len(waits) < 1000
        threading.Event().wait(0.01)

    monkeypatch.setattr(course.time, "sleep", sleep)
    with course.lock():
        assert len(waits) >= (1 if sys.platform == "win32" else 3)
    other.stdout.close()
    assert capsys.readouterr().out.count("Waiting") == 1
    with course.lock():
        pass


def test_where_there_are_no_locks_set_up_goes_on(course, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with course.lock():
        pass


def test_settings_that_install_elsewhere_are_not_heard(course):
    """pip itself is asked which of its options it would take from the environment."""
    names = """USER TARGET PREFIX ROOT DRY_RUN NO_DEPS REQUIRE_HASHES IGNORE_INSTALLED PYTHON
    PLATFORM PYTHON_VERSION IMPLEMENTATION ABI REQUIREMENT EDITABLE GROUP NO_BUILD_ISOLATION"""
    hostile = {f"PIP_{name}": "1" for name in names.split()}
    code = (
        "from pip._internal.commands import create_command\n"
        "options, _ = create_command('install').parse_args(['torch'])\n"
        "names = ['use_user_site', 'target_dir', 'prefix_path', 'root_path', 'dry_run',"
        " 'ignore_dependencies', 'require_hashes', 'ignore_installed', 'python', 'platforms',"
        " 'python_version', 'implementation', 'abis', 'requirements', 'editables']\n"
        "assert not any(getattr(options, n, None) for n in names), options\n"
        "assert options.build_isolation, options"
    )
    command = [sys.executable, "-I", "-c", code]
    assert subprocess.run(command, env={**os.environ, **hostile}, capture_output=True).returncode
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hostile.items():
            patch.setenv(name, value)
        assert course.run(*command, env=course.PIP_ENVIRONMENT) == 0


# --- systems without torch -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "machine", "macos", "told"),
    [
        ("win-arm64", "ARM64", "", "Windows on ARM.*\n.*WSL"),
        ("macosx-11.0-x86_64", "x86_64", "15.1", "(?s)Intel processor.*Apple processor.*Intel Mac"),
        ("macosx-10.9-universal2", "x86_64", "13.6", "Intel processor"),
        ("macosx-11.0-arm64", "arm64", "13.6.1", "needs macOS 14 or newer; this is 13.6.1"),
        ("macosx-11.0-arm64", "arm64", "14.0", None),
        ("macosx-10.9-universal2", "arm64", "26.0", None),
        ("win-amd64", "AMD64", "", None),
        ("linux-x86_64", "x86_64", "", None),
        ("linux-aarch64", "aarch64", "", None),
    ],
)
def test_systems_for_which_there_is_no_torch(course, monkeypatch, build, machine, macos, told):
    monkeypatch.setattr(course.sysconfig, "get_platform", lambda: build)
    monkeypatch.setattr(course.platform, "machine", lambda: machine)
    monkeypatch.setattr(course.platform, "mac_ver", lambda: (macos, ("", "", ""), machine))
    if told is None:
        course.check_system()
        return
    with pytest.raises(SystemExit, match=told) as end:
        course.main(["setup"])
    assert f"torch {pins()['torch']}" in str(end.value)
    assert not course.VENV.exists()


@pytest.mark.parametrize(
    ("length", "long_paths", "fits"), [(67, 0, True), (68, 0, False), (68, 1, True)]
)
def test_long_paths_on_windows(course, monkeypatch, length, long_paths, fits):
    """torch's longest path has 167 characters, and Windows takes 259."""

    winreg = types.SimpleNamespace(
        HKEY_LOCAL_MACHINE=0,
        OpenKey=lambda *place: contextlib.nullcontext(),
        QueryValueEx=lambda key, name: (long_paths, 4),
    )
    monkeypatch.setitem(sys.modules, "winreg", winreg)
    monkeypatch.setattr(course, "pinned", lambda name: "2")
    monkeypatch.setattr(course.sysconfig, "get_platform", lambda: "win-amd64")
    monkeypatch.setattr(course.platform, "mac_ver", lambda: ("", ("", "", ""), ""))
    monkeypatch.setattr(course, "ROOT", "C:" + "x" * (length - 2))
    monkeypatch.setattr(course, "os", types.SimpleNamespace(name="nt"))
    if fits:
        course.check_system()
    else:
        with pytest.raises(SystemExit, match="may have 67, and has 68"):
            course.check_system()


# --- torch without the parts for NVIDIA cards ----------------------------------------------------


@pytest.fixture
def cpu(course, monkeypatch, tmp_path_factory):
    """course.py on Linux with an Intel processor and no card, with a real pip in a real .venv."""
    if os.name == "nt":
        pytest.skip("for Linux alone")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(course.sysconfig, "get_platform", lambda: "linux-x86_64")
    monkeypatch.setattr(course, "has_nvidia_driver", lambda: False)
    venv.create(course.VENV, with_pip=False, symlinks=True)
    # This Python's pip, lent to the new .venv.
    import pip

    (site,) = course.VENV.glob("lib/python*/site-packages")
    (site / "pip").symlink_to(Path(pip.__file__).parent)
    return course


def wheel(folder: Path, name: str, version: str, tag="py3-none-any", needs="", **modules) -> None:
    """A wheel of a package with nothing in it but its version, and the modules that are given."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n",
        **{f"{name}/{module}.py": text for module, text in modules.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as file:
        for path, text in files.items():
            file.writestr(path, text)


@pytest.fixture
def index(tmp_path_factory):
    """(address, requests) of a package index with a small `torch`, in three versions."""
    folder = tmp_path_factory.mktemp("index")
    for number, version in enumerate(("2.0.0+cpu", f"{pins()['torch']}+cpu", "99.0+cpu")):
        wheel(folder / str(number), "torch", version, needs="a-package-of-the-index")
    links = [
        f'<a href="/{path.relative_to(folder)}">{path.name}</a>' for path in folder.glob("*/*")
    ]
    (folder / "torch").mkdir()
    (folder / "torch" / "index.html").write_text("".join(links), encoding="utf-8")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_request(self, *told):
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def torch_in(course) -> list[str]:
    return sorted(path.name for path in course.VENV.glob("lib/python*/site-packages/*torch*"))


def test_the_cpu_build_is_taken_where_it_is(cpu, index, monkeypatch):
    address, requests = index
    monkeypatch.setattr(cpu, "CPU_INDEX", address)
    assert cpu.install_cpu_torch({}) == 0
    assert torch_in(cpu) == ["torch", f"torch-{pins()['torch']}+cpu.dist-info"]
    assert requests[0] == "/torch/" and len(requests) == 2  # and no dependency of it
    assert cpu.install_cpu_torch({}) == 0  # it is there
    assert len(requests) == 2


def test_without_that_index_set_up_goes_on(cpu, monkeypatch, capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setattr(cpu, "CPU_INDEX", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert cpu.install_cpu_torch({}) == 0
    assert torch_in(cpu) == []
    out, err = capfd.readouterr()
    assert err == "" and len(out.splitlines()) <= 2
    assert out.splitlines()[-1] == "The usual torch for Linux brings several GB for NVIDIA cards."


@pytest.mark.parametrize("why", ["INDEX_URL", "FIND_LINKS", "NO_INDEX", "a file", "a card", "arm"])
def test_that_index_is_left_alone_where(cpu, index, monkeypatch, tmp_path, why):
    address, requests = index
    monkeypatch.setattr(cpu, "CPU_INDEX", address)
    if why == "a file":
        (tmp_path / "pip.conf").write_text("[install]\nextra-index-url = http://x\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    elif why == "a card":
        monkeypatch.setattr(cpu, "has_nvidia_driver", lambda: True)
    elif why == "arm":
        monkeypatch.setattr(cpu.sysconfig, "get_platform", lambda: "linux-aarch64")
    else:
        monkeypatch.setenv(f"PIP_{why}", "1")
    assert cpu.install_cpu_torch({}) == 0
    assert (requests, torch_in(cpu)) == ([], [])


def test_ctrl_c_during_that_download_ends_set_up(cpu, monkeypatch):
    monkeypatch.setattr(cpu, "run", lambda *command, **options: cpu.INTERRUPTED)
    assert cpu.install({"course"}, {}) == cpu.INTERRUPTED


# --- without a network ---------------------------------------------------------------------------

# A build backend in a stand-in for setuptools.
BACKEND = """
import zipfile
def get_requires_for_build_editable(settings=None):
    return []
def build_editable(folder, settings=None, metadata=None):
    name = "minipali-1-py3-none-any.whl"
    about = "Metadata-Version: 2.1\\nName: minipali\\nVersion: 1\\nRequires-Dist: tiny>=1,<2\\n"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        for extra in ("course", "dev"):
            about += f"Provides-Extra: {extra}\\n"
        wheel.writestr("minipali-1.dist-info/METADATA", about)
        wheel.writestr("minipali-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("minipali-1.dist-info/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "minipali"
dependencies = ["tiny>=1,<2"]
optional-dependencies = { course = [], dev = [], slides = [] }
"""


@pytest.fixture
def room(cpu, monkeypatch, tmp_path_factory):
    """(course.py of a small project, a folder of its wheels) where every index is out of reach."""
    (cpu.ROOT / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (cpu.ROOT / "constraints.txt").write_text("setuptools==80\ntiny==1.5\ntorch==2\n", "utf-8")
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS"):
        monkeypatch.setenv(f"PIP_{name}", "http://127.0.0.1:9")  # nobody listens there
    wheels = tmp_path_factory.mktemp("room") / "the wheels é"
    wheel(wheels, "setuptools", "80", build_meta=BACKEND)
    wheel(wheels, "tiny", "1.5")
    return cpu, wheels


def test_set_up_from_a_folder_of_wheels(room, capfd, monkeypatch):
    course, wheels = room
    monkeypatch.chdir(wheels.parent)
    assert course.main(["setup", "--offline", wheels.name]) == 0
    assert course.is_set_up({"course", "dev"}), "nothing can be added later"
    (site,) = course.VENV.glob("lib/python*/site-packages")
    found = {path.name for path in site.glob("*.dist-info")}
    assert {"tiny-1.5.dist-info", "minipali-1.dist-info"} <= found
    assert "Next: python course.py ask" in capfd.readouterr().out
    assert course.main(["setup"]) == 0  # and later nothing is asked for


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"tag": "cp36-cp36m-win_amd64"}, r"has tiny-1\.5-cp36-cp36m-win_amd64\.whl"),
        ({"version": "1.4"}, r"has tiny-1\.4-py3-none-any\.whl"),
    ],
)
def test_a_wheel_that_is_missing_or_for_another_system_is_named(room, capfd, there, told):
    course, wheels = room
    next(wheels.glob("tiny*")).unlink()
    wheel(wheels, "tiny", **{"version": "1.5", **there})
    with pytest.raises(SystemExit):
        course.main(["setup", "--offline", str(wheels)])
    complaint = capfd.readouterr().err.strip()
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    told = rf"course.py: .* a wheel of tiny 1\.5 for Python {python} on linux-x86_64, and {told}: "
    assert re.match(told, complaint) and complaint.count("\n") == 0, complaint
    assert course.read_stamp() == ("", set())


def test_setuptools_must_be_among_the_wheels(room, capfd):
    course, wheels = room
    next(wheels.glob("setuptools*")).unlink()
    with pytest.raises(SystemExit):
        course.main(["setup", "--offline", str(wheels)])
    complaint = capfd.readouterr().err
    assert "must hold a wheel of setuptools 80" in complaint and "and has none: " in complaint


def test_a_damaged_wheel_is_told(room, capfd):
    course, wheels = room
    path = next(wheels.glob("tiny*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SystemExit):
        course.main(["setup", "--offline", str(wheels)])
    complaint = capfd.readouterr().err.strip()
    assert complaint.startswith("course.py: could not install from") and "tiny" in complaint
    assert complaint.count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--offline"], "setup takes nothing, or --offline FOLDER"),
        (["--offlin", "x"], "setup takes nothing, or --offline FOLDER"),
        (["--offline", "none here"], r"none here must be a folder with wheels"),
    ],
)
def test_set_up_takes_no_other_arguments(course, arguments, told):
    with pytest.raises(SystemExit, match=told):
        course.main(["setup", *arguments])
    assert not course.VENV.exists()


@pytest.fixture
def wheelhouse(course, monkeypatch, tmp_path):
    """tools/fill_wheelhouse.py with that course.py: a function that runs it."""
    monkeypatch.setitem(sys.modules, "course", course)
    spec = importlib.util.spec_from_file_location("f", ROOT / "tools" / "fill_wheelhouse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def fill(*arguments):
        monkeypatch.setattr(sys, "argv", ["wheelhouse", *map(str, arguments)])
        module.main()

    return fill


@pytest.fixture
def index_of_wheels(tmp_path_factory, monkeypatch):
    """What stands in for the usual index: wheels of several kinds."""
    folder = tmp_path_factory.mktemp("index of wheels")
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for python in (here, "cp399"):
        for system in ("linux_x86_64", "win_amd64", "macosx_11_0_arm64"):
            wheel(folder, "torch", "2", f"{python}-{python}-{system}", needs="tiny")
    wheel(folder, "tiny", "1.5", needs="only_windows; sys_platform == 'win32'")
    wheel(folder, "tiny", "1.6")
    wheel(folder, "only_windows", "1")
    wheel(folder, "pywinpty", "1", f"{here}-{here}-win_amd64")
    wheel(folder, "setuptools", "80")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (folder / "pip.conf").write_text(
        f"[global]\nno-index = true\nfind-links = {folder.as_uri()}\n", encoding="utf-8"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(folder / "pip.conf"))
    return folder


def small(course):
    (course.ROOT / "pyproject.toml").write_text(
        PYPROJECT.replace('["tiny', '["torch<3", "tiny'), encoding="utf-8"
    )
    pins = "only-windows==1\npywinpty==1\nsetuptools==80\ntiny==1.5\ntorch==2\n"
    (course.ROOT / "constraints.txt").write_text(pins, encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in for torch is made for Linux")
def test_a_wheelhouse_holds_what_this_computer_needs(course, wheelhouse, index_of_wheels, capfd):
    small(course)
    folder = course.ROOT / "the wheels"
    wheelhouse(folder)
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    expected = {
        "setuptools-80-py3-none-any.whl",
        "tiny-1.5-py3-none-any.whl",
        f"torch-2-{here}-{here}-linux_x86_64.whl",
    }
    assert {path.name for path in folder.iterdir()} == expected
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"{folder} now holds all for Python")
    assert last.endswith("run there: python course.py setup --offline FOLDER")
    # Once more, after a download that was cut: what is whole is not taken again.
    times = {path: path.stat().st_mtime_ns for path in folder.glob("t*")}
    (folder / "setuptools-80-py3-none-any.whl").write_bytes(b"PK half")
    wheelhouse(folder)
    assert zipfile.is_zipfile(folder / "setuptools-80-py3-none-any.whl")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("t*")} == times


def test_a_wheelhouse_for_another_system(course, wheelhouse, index_of_wheels):
    """All that is pinned: which of it is needed there, pip here would decide by this system."""
    small(course)
    folder = course.ROOT / "wheels"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wheelhouse(folder, "--system", "windows", "--python", python)
    here = f"cp{python.replace('.', '')}"
    assert {path.name for path in folder.iterdir()} == {
        "only_windows-1-py3-none-any.whl",
        f"pywinpty-1-{here}-{here}-win_amd64.whl",
        "setuptools-80-py3-none-any.whl",
        "tiny-1.5-py3-none-any.whl",
        f"torch-2-{here}-{here}-win_amd64.whl",
    }


def test_a_wheelhouse_with_a_gap_says_that_it_goes_on(course, wheelhouse, index_of_wheels, capfd):
    small(course)
    for path in index_of_wheels.glob("tiny*"):
        path.unlink()
    with pytest.raises(SystemExit) as end:
        wheelhouse(course.ROOT / "wheels", "--system", "macos")
    assert end.value.code not in (0, None)
    assert "The same command goes on from here" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        wheelhouse(course.ROOT / "wheels", "--python", "three")
    assert "--python must be a version such as 3.13" in capfd.readouterr().err


# --- a Python that has the course already: conda, a hub -------------------------------------------


@pytest.fixture
def installed(course, monkeypatch, tmp_path_factory):
    """A Python in which the course is installed from its folder, as pip notes it."""
    site = tmp_path_factory.mktemp("site")
    info = site / "minipali-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: minipali\nVersion: 1\n", "utf-8")
    place = info / "direct_url.json"
    place.write_text(json.dumps({"url": course.ROOT.as_uri(), "dir_info": {"editable": True}}))
    monkeypatch.syspath_prepend(str(site))
    return place


@pytest.fixture
def commands(course, monkeypatch):
    ran = []
    monkeypatch.setattr(course, "run", lambda *command, **options: ran.append(command) or 0)
    return ran


def test_a_python_that_has_the_course_is_used_as_it_is(course, installed, commands, capsys):
    assert course.main(["ask", "--help"]) == 0
    assert commands == [(Path(sys.executable), "-m", "minipali", "ask", "--help")]
    assert not course.VENV.exists()
    assert course.main(["setup"]) == 0
    assert f"is set up in {sys.prefix}" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["another folder", "an index", "no folder", "its own leavings"])
def test_a_python_that_has_another_course_is_not(course, installed, monkeypatch, why, tmp_path):
    if why == "its own leavings":  # what setuptools leaves in the folder that it installs
        installed.unlink()
        monkeypatch.syspath_prepend(str(course.ROOT))
        (course.ROOT / "minipali.egg-info").mkdir()
        (course.ROOT / "minipali.egg-info" / "PKG-INFO").write_text("Name: minipali\n", "utf-8")
    elif why == "an index":
        installed.unlink()
    else:
        other = ROOT if why == "another folder" else tmp_path / "gone"
        installed.write_text(json.dumps({"url": other.as_uri()}), encoding="utf-8")
    assert not course.is_at_hand({"course"})


def test_on_a_hub_the_course_comes_with_the_image(course, installed, monkeypatch):
    """It is installed from a folder of the image, and each person works in a copy."""
    installed.write_text(json.dumps({"url": ROOT.as_uri()}), encoding="utf-8")
    assert not course.is_at_hand({"course"})
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    assert course.is_at_hand({"course"})


def test_what_that_python_lacks_is_named(course, installed, commands):
    text = (course.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = text.replace('"einops', '"new-and-unknown>=1,<2",\n    "einops')
    (course.ROOT / "pyproject.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="but not new-and-unknown:\n.* -m pip install -c"):
        course.main(["ask"])
    assert not commands and not course.VENV.exists()


def test_inside_its_own_venv_the_stamp_decides(course, installed, monkeypatch):
    assert course.is_at_hand({"course"})
    monkeypatch.setattr(sys, "prefix", str(course.VENV))
    assert not course.is_at_hand({"course"})


def test_on_a_hub_it_is_told_that_its_notebooks_do_not_see_the_venv(
    course, installs, monkeypatch, capsys
):
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    course.set_up({"course"})
    assert "does not see .venv" in capsys.readouterr().out


# --- update --------------------------------------------------------------------------------------


def test_after_an_update_the_new_course_is_set_up(course, commands):
    assert course.main(["update", "new.zip"]) == 0
    tool = course.ROOT / "tools" / "update_course.py"
    assert commands == [(sys.executable, tool, "new.zip")]  # without set-up: nothing to renew
    course.VENV.mkdir()
    commands.clear()
    course.main(["update"])
    assert commands == [
        (sys.executable, tool),
        (sys.executable, course.ROOT / "course.py", "setup"),
    ]


# --- a broken .venv ------------------------------------------------------------------------------


def test_a_broken_venv_is_made_again(course, monkeypatch, capsys):
    calls = []
    course.VENV.mkdir()
    monkeypatch.setattr(course, "venv_version", lambda: "3.11" if calls else None)
    monkeypatch.setattr(course, "install_cpu_torch", lambda held: 0)
    monkeypatch.setattr(course, "run", lambda *c, **v: calls.append([str(p) for p in c]) or 0)
    course.set_up({"course"})
    assert calls[0][1:] == ["-m", "venv", "--clear", str(course.VENV)]
    assert calls[1][1:5] == ["-I", "-m", "pip", "install"]
    assert "made afresh" in capsys.readouterr().out


def test_a_folder_without_python_is_no_venv(course):
    assert course.venv_version() is None
    (course.VENV / "bin").mkdir(parents=True)
    assert course.venv_version() is None


# --- running things ------------------------------------------------------------------------------


def test_exit_codes_are_those_of_the_command(course):
    assert course.run(sys.executable, "-c", "raise SystemExit(5)") == 5
    code = "import os; raise SystemExit(os.environ.get('MINIPALI_STRICT') != 'yes')"
    assert course.run(sys.executable, "-c", code, env={"MINIPALI_STRICT": "yes"}) == 0
    assert course.run(sys.executable, "-c", code, env={"MINIPALI_STRICT": None}) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal to send")
@pytest.mark.parametrize(("ending", "expected"), [("raise SystemExit(1)", 130), ("", 0)])
def test_ctrl_c_is_left_to_the_command(course, ending, expected):
    """JupyterLab asks back after Ctrl-C: it must not lose its terminal to us meanwhile."""
    code = f"import os, signal; os.kill(os.getppid(), signal.SIGINT)\n{ending}"
    # In the background, Ctrl-C may be ignored from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert course.run(sys.executable, "-c", code) == expected
    finally:
        signal.signal(signal.SIGINT, before)


def test_solutions_alone_are_strict(course):
    steps = {title: (command, variables) for title, command, variables in course.pytest_steps([])}
    assert list(steps) == ["tests", "lessons and exercises", "solutions"]
    assert [t for t, (_, variables) in steps.items() if "MINIPALI_STRICT" in variables] == [
        "solutions"
    ]
    folders = [a for command, _ in steps.values() for a in command if (ROOT / a).is_dir()]
    assert folders == ["tests", "notebooks", "exercises", "solutions"]
    assert all(v["OMP_NUM_THREADS"] == "1" for _, v in steps.values())
    # A notebook's figures are shown by matplotlib's own backend for notebooks.
    assert [t for t, (_, variables) in steps.items() if "MPLBACKEND" in variables] == ["tests"]
    for title in ("lessons and exercises", "solutions"):
        assert {"--nbval-lax", "--nbval-current-env", "loadfile"} <= set(steps[title][0])


def test_in_a_students_copy_there_are_no_solutions_to_run(course):
    (course.ROOT / "solutions").rmdir()
    assert [step[0] for step in course.pytest_steps([])] == ["tests", "lessons and exercises"]


@pytest.mark.parametrize("verb", ["lab", "build"])
def test_notebooks_get_one_thread(course, monkeypatch, verb):
    """With more, cells take many times as long while another program runs."""
    seen = []
    monkeypatch.setattr(course, "run", lambda *command, **options: seen.append(options) or 0)
    assert course.VERBS[verb][0]([]) == 0
    assert seen[0]["env"]["OMP_NUM_THREADS"] == "1"


def test_lab_opens_what_is_named_and_passes_the_rest_on(course, monkeypatch, tmp_path_factory):
    (course.ROOT / "notebooks").mkdir()
    (course.ROOT / "notebooks" / "07 é.ipynb").touch()

    def opened(*arguments):
        options = course.lab_options(arguments)
        assert options[0] == f"--ServerApp.root_dir={course.ROOT}"
        return options[1].removeprefix("--LabApp.default_url="), options[2:]

    monkeypatch.setattr(course.os, "geteuid", lambda: 1000, raising=False)
    assert opened() == ("/lab/tree/notebooks/00_ask.ipynb", [])
    lesson = "/lab/tree/notebooks/07%20%C3%A9.ipynb"
    assert opened("notebooks/07 é.ipynb", "--port", "9") == (lesson, ["--port", "9"])
    assert opened("07 é.ipynb") == (lesson, [])
    (course.ROOT / "notebooks" / "09_gqa.ipynb").touch()
    assert opened("09") == ("/lab/tree/notebooks/09_gqa.ipynb", [])
    monkeypatch.chdir(course.ROOT / "notebooks")
    assert opened("--no-browser", "07 é.ipynb") == (lesson, ["--no-browser"])
    assert opened("notebooks/07 é.ipynb") == (lesson, [])  # as the README writes it
    assert opened("../notebooks")[0] == "/lab/tree/notebooks"
    # JupyterLab itself says that there is no such file.
    assert opened("08.ipynb") == ("/lab/tree/notebooks/00_ask.ipynb", ["08.ipynb"])
    with pytest.raises(SystemExit, match="does not lie in"):
        opened(str(tmp_path_factory.mktemp("elsewhere")))
    monkeypatch.setattr(course.os, "geteuid", lambda: 0, raising=False)  # as in a container
    assert opened()[1] == ["--allow-root"]


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
