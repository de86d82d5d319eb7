"""Set up the course and run it. Needs nothing but Python: `python course.py` says what it can do.

The first command makes the folder .venv and installs everything into it. Later ones see by the
stamp in that folder that nothing has changed, and start at once, without a network.
"""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HELP = """\
python course.py VERB

  ask      the small model answers a question about a picture
           [--image FILE] [--prompt TEXT] [--model FOLDER]; --help lists what it can be asked
  lab      open the course in JupyterLab
  test     check everything: style, generated notebooks, tests, and every notebook run through
           [arguments for pytest, such as tests/test_rope.py or -k rope: then pytest alone runs]
  progress draw which pieces of the model you have written, from the exercises as they are saved
  build    make the notebooks from their sources; --check only compares
  doctor   look at the installation, and say what to do about what is wrong
  setup    only set up

Each verb first sets up what it needs in the folder .venv, which takes a few minutes once.
To start afresh, delete that folder."""

MINIMUM = (3, 11)  # as requires-python in pyproject.toml

ROOT = Path(os.path.abspath(__file__)).parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "course-stamp.json"

# The lessons' models are small. More threads bring them hardly anything, and take many times as
# long while another program keeps a processor busy. A cell may still call torch.set_num_threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120"]
PARALLEL = ["-n", "2", "--dist", "loadfile"]
# What pytest runs one after the other: title, folders, options, environment. In the solutions
# every check must say "correct"; in the exercises, where nothing is solved yet, none can.
PARTS = [
    ("tests", ["tests"], [], {}),
    ("lessons and exercises", ["notebooks", "exercises"], NBVAL, {}),
    ("solutions", ["solutions"], NBVAL, {"MINIPALI_STRICT": "1"}),
]
INTERRUPTED = 130
STOPPED = "\nInterrupted. The same command goes on from here."
NOTHING_SELECTED = 5  # pytest's exit code


def run(*command, cwd=ROOT, **variables):
    """Run a command to its end and return its exit code; 130 if Ctrl-C ended it."""
    environment = {**os.environ, **variables}
    interrupted = False
    with subprocess.Popen([str(part) for part in command], cwd=cwd, env=environment) as process:
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


def venv_version():
    """The Python version of .venv, such as "3.11"; None if it does not work or lacks pip."""
    question = (
        "import importlib.util, sys\n"
        "if importlib.util.find_spec('pip'): print('%d.%d' % sys.version_info[:2])"
    )
    try:
        answer = subprocess.run(
            [str(PYTHON), "-I", "-c", question], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def make_venv():
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
    code = run(sys.executable, "-m", "venv", *options, VENV)
    if code == INTERRUPTED:
        print(STOPPED, file=sys.stderr)
        sys.exit(code)
    if code or venv_version() is None:
        print(
            f"course.py: could not make {VENV}; the message is above.\n"
            "May this folder be written to, and is there space on the disk?",
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
        return stamp["fingerprint"], set(stamp["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", set()


def write_stamp(wanted, extras):
    stamp = {"fingerprint": wanted, "extras": sorted(extras)}
    STAMP.write_text(json.dumps(stamp) + "\n", encoding="utf-8")


def set_up(extras):
    """Make .venv hold the package with these extras. Does nothing if it does already."""
    version = venv_version()
    if version is None or tuple(map(int, version.split("."))) < MINIMUM:
        make_venv()
        version = venv_version()
    wanted = fingerprint(version)
    found, installed = read_stamp()
    if found == wanted and extras <= installed:
        return
    extras = extras | installed
    STAMP.unlink(missing_ok=True)  # so that an interrupted install does not count
    print(f"Setting up {VENV} with Python {version}. This takes a few minutes, once.")
    if sys.platform == "linux" and platform.machine() == "x86_64" and not installed:
        print("The usual torch for Linux brings several GB for GPUs; see 'CPU build' in README.md.")
    sys.stdout.flush()
    what = f".[{','.join(sorted(extras))}]"
    options = ["--disable-pip-version-check", "-c", "constraints.txt", "-e", what]
    code = run(PYTHON, "-m", "pip", "install", *options)
    if code == INTERRUPTED:
        print(STOPPED, file=sys.stderr)
    elif code:
        print(
            "\ncourse.py: pip could not install the packages; its messages are above.\n"
            "- No network? Connect, and run the same command again. Downloads are kept.\n"
            "- A proxy or a package index of your own? pip uses this machine's settings:"
            " python -m pip config list\n"
            f"- 'No matching distribution'? Perhaps a package is not made for Python {version} on"
            f" this system ({platform.system()} {platform.machine()}).\n  Delete .venv and run"
            " course.py with another Python; it is tested with 3.11 and 3.13.\n"
            "- No space left? torch alone needs 1 GB, on Linux with its GPU parts several.",
            file=sys.stderr,
        )
    if code:
        sys.exit(code)
    write_stamp(wanted, extras)


# --- verbs ---------------------------------------------------------------------------------------


def ask(arguments):
    # In the caller's folder, so that a relative --image is found.
    return run(PYTHON, "-m", "minipali", "ask", *arguments, cwd=None)


def doctor(arguments):
    return run(PYTHON, "-m", "minipali", "doctor", *arguments, cwd=None)


def lab(arguments):
    opened = arguments or ["notebooks/00_ask.ipynb"]
    return run(PYTHON, "-m", "jupyterlab", *opened, **ONE_THREAD)


def progress(arguments):
    return run(PYTHON, "-m", "minipali.progress", *arguments)


def build(arguments):
    return run(PYTHON, "tools/build_notebooks.py", *arguments, **ONE_THREAD)


def setup(arguments):
    print(f"The course is set up in {VENV}.\nNext: python course.py ask")
    return 0


def pytest_steps(arguments):
    """(title, command, environment) of each run of pytest.

    Without a path among the arguments all folders are run, else only what is named.
    """
    paths = [a for a in arguments if (ROOT / a.split("::")[0]).exists()]
    options = [a for a in arguments if a not in paths]
    steps = []
    for title, folders, fixed, variables in PARTS:
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
            ("style", ["-m", "ruff", "check"], {}),
            ("format", ["-m", "ruff", "format", "--check"], {}),
            ("generated notebooks", ["tools/build_notebooks.py", "--check"], {}),
            *steps,
        ]
    outcomes, first = [], 0
    for title, command, variables in steps:
        print(f"\n--- {title}", flush=True)
        code = run(PYTHON, *command, **variables)
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
    "doctor": (doctor, {"course"}),
    "setup": (setup, {"course"}),
}


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
    set_up(extras)
    return function(arguments[1:])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
