"""Pictures as a command line names them: files, folders, `-` (standard input), https addresses."""

import http.client
import io
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from PIL import Image

from minipali import __version__
from minipali.tokens import PictureError, open_picture, read_picture

STANDARD_INPUT = "-"

# What counts as a picture in a folder. HEIC cannot be read, and whoever has such photos hears so.
SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm"}
SUFFIXES |= {".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}

# Of a download and of standard input. A picture of more bytes hardly has few enough pixels.
MAX_BYTES = 50_000_000
MAX_SECONDS = 30  # for a whole download: the name, all redirections, the last byte


def find(given: list[str]) -> tuple[list[str], list[str]]:
    """(sources, notes): one source a picture, folders replaced by their pictures in order of name.

    notes: what was passed over in the folders, for a person to read. Nothing is opened yet. Raises
    PictureError for what cannot be a picture, so that a slip of the pen ends the command at once.
    """
    if given.count(STANDARD_INPUT) > 1:
        raise PictureError("- (standard input) must be named once: it holds one picture")
    sources, notes = [], []
    for one in given:
        if one != STANDARD_INPUT and os.path.isdir(one):
            found, others = _in_folder(one)
            sources += found
            if others:
                rest = f" and {len(others) - 4} more" if len(others) > 4 else ""
                notes.append(f"passed over in {one}: {', '.join(others[:4])}{rest}")
            continue
        if is_link(one):
            _check_link(one)
        elif one != STANDARD_INPUT and not os.path.exists(one):
            open_picture(one)  # says what is wrong with the path
        sources.append(one)
    return sources, notes


def open_source(source: str) -> Image.Image:
    """The picture of one source, upright and in RGB. Raises PictureError, see `open_picture`."""
    if source == STANDARD_INPUT:
        return read_picture(_standard_input(), title(source))
    if is_link(source):
        return read_picture(download(source), source)
    return open_picture(source)


def title(source: str) -> str:
    """What a person calls a source: the name of its file, without the folders before it."""
    if source == STANDARD_INPUT:
        return "standard input"
    path = unquote(urlsplit(source).path) if is_link(source) else source
    return Path(path).name or source


def is_link(source: str) -> bool:
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def _in_folder(folder: str) -> tuple[list[str], list[str]]:
    """(pictures, names of everything else). Hidden files, which systems leave behind, are none."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    pictures, others = [], []
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            others.append(f"{name}{os.sep}")
        elif Path(name).suffix.lower() in SUFFIXES:
            pictures.append(path)
        else:
            others.append(name)
    if not pictures:
        raise PictureError(
            f"{folder} must be a picture or a folder of pictures (.png, .jpg, ...), found a folder"
            " with none; folders in it are not searched"
        )
    return pictures, others


def _standard_input() -> io.BytesIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise PictureError(
            "- reads a picture from standard input, found a keyboard: send it a file with <, or"
            " name the file instead"
        )
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PictureError(f"standard input must hold at most {MAX_BYTES:,} bytes, found more")
    return io.BytesIO(content)


# --- https ---------------------------------------------------------------------------------------


def _check_link(link: str) -> None:
    if not link.lower().startswith("https://"):
        raise PictureError(f"{link} must begin with https://: download it first if you trust it")
    try:
        host = urlsplit(link).netloc
    except ValueError as error:
        raise PictureError(f"{link} must be an https address: {error}") from error
    if "@" in host:
        raise PictureError("an https address must hold no name or password: download it first")


def download(link: str) -> io.BytesIO:
    """The bytes at an https address, at most MAX_BYTES in at most MAX_SECONDS.

    Redirections are followed as long as they stay with https. What is sent is the address and the
    name of this program. Raises PictureError, and says what to do.
    """
    done = []

    def work():
        try:
            done.append(_fetch(link))
        except Exception as error:  # is raised below, in the thread that waits
            done.append(error)

    # A thread, because nothing else ends a search for a name, or a server that sends one byte a
    # second. One that is left behind ends with the program.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    if not done:
        raise PictureError(f"{link} did not come within {MAX_SECONDS} s: download it first")
    [result] = done
    if isinstance(result, PictureError):
        raise result
    if isinstance(result, urllib.error.HTTPError):
        result.close()
        answer = f"{result.code} {' '.join(str(result.reason).split())}"
        raise PictureError(f"{link} cannot be had: the server answers {answer}")
    if isinstance(result, (OSError, http.client.HTTPException, ValueError)):
        why = getattr(result, "reason", result)  # what URLError wraps
        raise PictureError(f"{link} cannot be had: {why}") from result
    if isinstance(result, Exception):
        raise result
    return io.BytesIO(result)


def _fetch(link: str) -> bytes:
    parts = urlsplit(link)
    reserved = "/%:@!$&'()*+,;=~?"
    path, query = quote(parts.path, safe=reserved), quote(parts.query, safe=reserved)
    request = urllib.request.Request(
        parts._replace(path=path, query=query, fragment="").geturl(),
        # Some servers refuse programs that do not say who they are.
        headers={"User-Agent": f"minipali/{__version__}", "Accept": "image/*"},
    )
    opener = urllib.request.build_opener(_OnlyToHttps)
    with opener.open(request, timeout=MAX_SECONDS) as response:
        announced = response.length or 0
        content = b"" if announced > MAX_BYTES else response.read(MAX_BYTES + 1)
        if max(announced, len(content)) > MAX_BYTES:
            raise PictureError(f"{link} must have at most {MAX_BYTES:,} bytes, found more")
        return content


class _OnlyToHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, new):
        try:
            _check_link(new)
        except PictureError:
            response.close()
            raise
        return super().redirect_request(request, response, code, message, headers, new)
