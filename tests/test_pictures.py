"""Pictures as the command line names them. The https server is on this computer."""

import gc
import io
import re
import shutil
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from minipali import pictures
from minipali.pictures import find, open_source, title
from minipali.tokens import PictureError


def png(size=(40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


# --- files and folders ---------------------------------------------------------------------------


def test_a_folder_is_its_pictures_in_order_of_name(tmp_path):
    for name in ("b.png", "a.JPEG", "c.txt", ".hidden.png", "d.heic", "e.pdf"):
        (tmp_path / name).touch()
    for name in ("f", "g.png", "h", "i"):
        (tmp_path / name).mkdir()
    sources, [note] = find([str(tmp_path)])
    assert sources == [str(tmp_path / name) for name in ("a.JPEG", "b.png", "d.heic")]
    assert re.search(r"passed over in .*: c\.txt, e\.pdf, f.?, g\.png.? and 2 more$", note)


def test_files_are_taken_as_they_are_named_whatever_their_names_end_in(tmp_path):
    for name in ("b", "a.dat"):
        (tmp_path / name).write_bytes(png())
    given = [str(tmp_path / "b"), str(tmp_path / "a.dat"), str(tmp_path / "b")]
    assert find(given) == (given, [])
    assert open_source(given[1]).size == (40, 30)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["-", "-"], "must be named once"),
        (["none.png"], r"no picture at none\.png"),
        (["http://localhost/a.png"], "must begin with https"),
        (["https://me:secret@localhost/a.png"], "must hold no name or password"),
    ],
)
def test_what_cannot_be_a_picture_is_refused_before_any_work(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PictureError, match=says) as refused:
        find(given)
    assert "secret" not in str(refused.value)


def test_titles():
    assert title("photos/a.png") == "a.png"
    assert title("-") == "standard input"
    assert title("https://localhost:8/x/my%20dog.png?size=9#top") == "my dog.png"
    assert title("https://localhost") == "https://localhost"


# --- standard input ------------------------------------------------------------------------------


def read_from(monkeypatch, content: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return open_source("-")


def test_standard_input(monkeypatch):
    assert read_from(monkeypatch, png()).size == (40, 30)
    with pytest.raises(PictureError, match="standard input must be a picture, found a PDF"):
        read_from(monkeypatch, b"%PDF-1.7\n")
    with pytest.raises(PictureError, match="standard input must be a whole picture file"):
        read_from(monkeypatch, b"")
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    with pytest.raises(PictureError, match="at most 100 bytes, found more"):
        read_from(monkeypatch, png())


def test_nobody_is_left_waiting_at_a_keyboard(monkeypatch):
    class Keyboard:
        def isatty(self):
            return True

    for stdin in (Keyboard(), None):  # None: a program without a console
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(PictureError, match="found a keyboard"):
            open_source("-")


# --- https ---------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers with a path's own behaviour."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.log.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path in ("/a.png", "/my%20dog.png"):
            self.reply(200, png())
        elif path == "/long.png":
            self.reply(200, b"", {"Content-Length": "50000001"})
        elif path == "/endless.png":
            self.reply(200, b"x" * 3000)  # without a length
        elif path == "/page":
            self.reply(200, b"\n<!DOCTYPE html><html><body><img src=a.png></body></html>")
        elif path == "/moved.png":
            self.reply(302, b"", {"Location": "/a.png"})
        elif path == "/down.png":
            self.reply(302, b"", {"Location": f"http://localhost:{self.server.server_port}/a.png"})
        elif path == "/file.png":
            self.reply(302, b"", {"Location": "file:///etc/hostname"})
        elif path == "/round.png":
            self.reply(302, b"", {"Location": "/round.png"})
        elif path == "/slow.png":
            self.reply(200, b"", {"Content-Length": "1000"})
            while not self.server.ended.wait(0.05):  # a byte now and then: no time-out of a socket
                self.wfile.write(b"x")
                self.wfile.flush()
        elif path == "/cut.png":
            self.reply(200, png()[:500], {"Content-Length": "9000"})
        else:
            self.reply(404, b"")

    def reply(self, status, content, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):  # a client that has gone, or trusts us not
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost and its key, in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here, to make a certificate for the local server")
    folder = tmp_path_factory.mktemp("certificate")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"openssl makes no certificate: {made.stderr[-200:]}")
    return folder


@pytest.fixture
def server(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.log, server.ended = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.address = f"https://localhost:{server.server_port}"
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_picture_from_an_https_address(server):
    link = f"{server.address}/a.png?size=big#top"
    assert find([link]) == ([link], [])
    assert server.log == []
    assert open_source(link).size == (40, 30)
    [(path, headers)] = server.log
    assert path == "/a.png?size=big"
    assert headers["User-Agent"].startswith("minipali/")
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}


def test_an_address_as_a_person_writes_it(server):
    assert open_source(f"{server.address}/my dog.png").size == (40, 30)
    assert open_source(f"{server.address}/my%20dog.png").size == (40, 30)
    assert open_source(f"{server.address.upper().replace('LOCALHOST', 'localhost')}/a.png")


def test_a_redirection_is_followed_within_https_alone(server):
    assert open_source(f"{server.address}/moved.png").size == (40, 30)
    server.log.clear()
    for path, says in (("down.png", "must begin with https"), ("file.png", "'file:.* not allowed")):
        with pytest.raises(PictureError, match=says):
            open_source(f"{server.address}/{path}")
    assert [path for path, _ in server.log] == ["/down.png", "/file.png"]
    with pytest.raises(PictureError, match=r"round\.png cannot be had: the server answers 302"):
        open_source(f"{server.address}/round.png")
    gc.collect()  # no socket was left open: pytest would make an error of it


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none.png", "cannot be had: the server answers 404 Not Found"),
        ("long.png", "must have at most 50,000,000 bytes, found more"),
        ("page", "must be a picture, found a web page: save the picture itself first"),
        ("cut.png", "must be a whole picture file"),
    ],
)
def test_what_is_no_picture_there_is_named(server, path, says):
    with pytest.raises(PictureError, match=says) as refused:
        open_source(f"{server.address}/{path}")
    assert str(refused.value).startswith(f"{server.address}/{path} ")
    assert "\n" not in str(refused.value)


def test_a_download_without_a_length_is_limited_too(server, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 2000)
    with pytest.raises(PictureError, match="must have at most 2,000 bytes, found more"):
        open_source(f"{server.address}/endless.png")


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_SECONDS", 0.5)
    with pytest.raises(PictureError, match=r"slow\.png did not come within 0\.5 s"):
        open_source(f"{server.address}/slow.png")
    assert not server.ended.is_set()


def test_a_server_whose_name_cannot_be_proved_is_not_trusted(server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", ssl.get_default_verify_paths().openssl_cafile)
    with pytest.raises(PictureError, match="cannot be had: .*certificate"):
        open_source(f"{server.address}/a.png")
    assert server.log == []


def test_nobody_there(server):
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(PictureError, match=f"https://localhost:{port}/a.png cannot be had"):
        open_source(f"https://localhost:{port}/a.png")


@pytest.mark.parametrize("link", ["https://", "https:///a.png", "https://[::1/a.png"])
def test_an_address_that_is_none(link):
    with pytest.raises(PictureError):
        find([link])
        open_source(link)
