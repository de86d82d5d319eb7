"""Fill a folder with the wheels that `python course.py setup --offline FOLDER` installs.

    python course.py wheelhouse FOLDER                                  as for this computer
    python course.py wheelhouse FOLDER --system windows --python 3.13   for another kind

A wheel is made for a system and a version of Python: a room with several kinds needs a call for
each, into the same folder. What is there already is not downloaded again, also after a Ctrl-C.
"""

import argparse
import platform
import re
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import course  # noqa: E402

# What pip calls the systems that torch is made for; wheels for an older one run on a newer.
SYSTEMS = {
    "windows": ["win_amd64"],
    "macos": ["macosx_14_0_arm64"],
    "linux": [
        *(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)),
        *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
    ],
}
ONLY = {"pywinpty": "windows"}  # no wheel for other systems, where nothing asks for it


def pip_download(folder: Path, *arguments) -> None:
    """pip download; ends the program with pip's exit code if it fails."""
    command = ["download", "--disable-pip-version-check", "--only-binary", ":all:", "-d", folder]
    pip = [sys.executable, "-I", "-m", "pip", *command, "--find-links", folder]
    if code := course.run(*pip, *arguments, env=course.PIP_ENVIRONMENT):
        print("\nNot all wheels are there yet: see above. The same command goes on from here.")
        sys.exit(code)


def for_this_computer(folder: Path) -> None:
    """What pip itself finds to be needed here, at the versions of constraints.txt."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = about["project"]
    wanted = [*about["build-system"]["requires"], *project["dependencies"]]
    for extra in sorted(course.OFFLINE):
        wanted += project["optional-dependencies"][extra]
    pip = [sys.executable, "-I", "-m", "pip", "download", "--disable-pip-version-check"]
    if course.take_cpu_torch([*pip, "-d", folder]) == course.INTERRUPTED:
        sys.exit(course.INTERRUPTED)
    pip_download(folder, "-c", "constraints.txt", *wanted)


def for_another(folder: Path, system: str, version: str) -> None:
    """Every package of constraints.txt.

    pip could not tell which of them are needed: it would ask so of the system that it runs on.
    """
    pins = re.findall(r"^[\w-]+==\S+", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    kind = [f"--platform={name}" for name in SYSTEMS[system]] + [f"--python-version={version}"]
    torch = f"torch=={course.pinned('torch')}"
    # Elsewhere than on Linux the usual torch has no parts for NVIDIA cards.
    index = ["--index-url", course.CPU_INDEX] if system == "linux" else []
    pip_download(folder, "--no-deps", *kind, *index, torch)
    pins = [pin for pin in pins if ONLY.get(pin.split("==")[0], system) == system and pin != torch]
    pip_download(folder, "--no-deps", *kind, *pins)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="course.py wheelhouse",
        description="Fill a folder with what `course.py setup --offline FOLDER` installs.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--system", choices=SYSTEMS, help="fill it for this one, a 64-bit one (default: this one)"
    )
    here = ".".join(platform.python_version_tuple()[:2])
    parser.add_argument("--python", default=here, help=f"such as 3.13 (default: {here})")
    given = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", given.python):
        parser.error(f"--python must be a version such as 3.13, found {given.python!r}")
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        if not zipfile.is_zipfile(wheel):  # its download was cut
            wheel.unlink()
    if given.system is None and given.python == here:
        for_this_computer(folder)
        kind = f"Python {here} on {course.sysconfig.get_platform()}"
    else:
        own = {"Windows": "windows", "Darwin": "macos", "Linux": "linux"}[platform.system()]
        for_another(folder, given.system or own, given.python)
        kind = f"Python {given.python} on {given.system or own}"
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(
        f"\n{folder} now holds all for {kind} ({len(wheels)} wheels, {size:.0f} MB): copy it and"
        " the course to each computer, and run there: python course.py setup --offline FOLDER"
    )


if __name__ == "__main__":
    main()
