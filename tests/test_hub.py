"""The hub, against a stand-in on this computer: nothing here leaves it.

The stand-in speaks as much of the hub's protocol as huggingface_hub needs: what a revision holds,
and the files, with ranges, so that a download can be resumed.
"""

import builtins
import json
import re
import shutil
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import randomise, tiny_config

from minipali import load, save
from minipali.hub import HubError, download
from minipali.paligemma import PaliGemma
from minipali.tokens import Processor

hf = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
utils = pytest.importorskip("huggingface_hub.utils")
SHA = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parent.parent
REPO = "painter/pali"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, stand_in = self.path.partition("?")[0], self.server
        stand_in.log.append((self.command, path, self.headers.get("Range")))
        if path == f"/api/models/{REPO}" or path.startswith(f"/api/models/{REPO}/revision/"):
            revision = path.partition("/revision/")[2] or "main"
            if stand_in.no_repo:
                return self.reply(stand_in.no_repo, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", "bfloat16", SHA):
                return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            files = [{"rfilename": n, "size": s} for n, s in stand_in.sizes().items()]
            return self.json({"id": REPO, "sha": SHA, "siblings": files})
        if path.startswith(f"/api/models/{REPO}/tree/"):
            sizes = stand_in.sizes().items()
            tree = [{"type": "file", "path": n, "size": s, "oid": f"o{n}"} for n, s in sizes]
            return self.json(tree)
        if path.startswith(f"/{REPO}/resolve/{SHA}/"):
            return self.file(path.rpartition("/")[2])
        self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    def file(self, name):
        stand_in = self.server
        if stand_in.gated:
            return self.reply(stand_in.gated, b"", {"X-Error-Code": "GatedRepo"})
        content = (stand_in.folder / name).read_bytes()
        headers = {"X-Repo-Commit": SHA, "ETag": f'"o{name}"', "Accept-Ranges": "bytes"}
        status = 200
        if self.command == "GET" and (wanted := self.headers.get("Range")):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            first, last = int(first), int(last or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        cut = None
        if self.command == "GET" and name == "model.safetensors" and stand_in.cuts:
            cut = stand_in.cuts.pop(0)
        self.reply(status, content, headers, cut)

    def json(self, content):
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status, content, headers, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut] if cut else content)
            self.close_connection = True


class StandIn(ThreadingHTTPServer):
    folder: Path
    gated = no_repo = None

    def sizes(self):
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    def got(self, name):
        return [wanted for command, path, wanted in self.log if command == "GET" and name in path]


@pytest.fixture(scope="module")
def model():
    model = PaliGemma(tiny_config()).eval()
    randomise(model, seed=5)
    return model


@pytest.fixture
def stand_in(model, small_folder, tmp_path, monkeypatch):
    """A hub with one repository, an empty cache, and a client that knows of both."""
    server = StandIn(("127.0.0.1", 0), Handler)
    server.log, server.cuts, server.folder = [], [], tmp_path / "repo"
    save(model, Processor(small_folder / "tokenizer.model", model.config), server.folder)
    (server.folder / "pytorch_model.bin").write_bytes(b"never downloaded")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    connect(monkeypatch, server.server_address[1])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def connect(monkeypatch, port):
    endpoint = f"http://127.0.0.1:{port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("ENDPOINT", endpoint),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_DISABLE_TELEMETRY", True),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", True),
        ("HF_HUB_ETAG_TIMEOUT", 2),
        ("HF_HUB_DOWNLOAD_TIMEOUT", 2),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    utils.disable_progress_bars()
    hf.close_session()


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_a_model_is_downloaded_and_loaded(stand_in, model):
    loaded, processor = load(REPO)
    assert same(loaded, model) and processor.config == model.config
    assert not stand_in.got("pytorch_model.bin")
    assert len(stand_in.got("resolve")) == 8
    stand_in.log.clear()
    load(REPO)
    assert not stand_in.got("resolve"), "the second time, all is in the cache"


def test_a_revision(stand_in, model):
    assert same(load(f"{REPO}@bfloat16")[0], model)
    assert any("/revision/bfloat16" in path for _, path, _ in stand_in.log)


def test_without_a_network_the_cache_is_used(stand_in, model, monkeypatch):
    load(REPO)
    stand_in.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hf.close_session()
    assert same(load(REPO)[0], model)
    assert not stand_in.log
    connect(monkeypatch, closed_port())
    assert same(load(REPO)[0], model)


def closed_port():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return server.server_address[1]


def test_no_network_and_nothing_cached(stand_in, monkeypatch):
    connect(monkeypatch, closed_port())
    with pytest.raises(HubError, match="not wholly, in the cache .* check the network, then retry"):
        load(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hf.close_session()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids to download it: unset that"):
        load(REPO)


@pytest.fixture
def impatient(monkeypatch):
    """The client waits a second before each retry, and writes pieces of 10 MB."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)


def test_a_broken_connection_is_taken_up_again(stand_in, model, impatient):
    stand_in.cuts = [20_000]
    assert same(load(REPO)[0], model)
    assert stand_in.got("model.safetensors") == [None, "bytes=20000-"]


def test_after_an_interruption_only_what_is_missing_is_downloaded(stand_in, model, impatient):
    stand_in.cuts = [500] * 50
    with pytest.raises(HubError, match=r"was interrupted \(.*: retry, the files that are whole"):
        load(REPO)
    stand_in.cuts = []
    stand_in.log.clear()
    assert same(load(REPO)[0], model)
    assert [path.rpartition("/")[2] for _, path, _ in stand_in.log if "resolve" in path] == [
        "model.safetensors",
        "model.safetensors",  # its size, then its content
    ]


def test_offline_after_an_interruption(stand_in, monkeypatch, impatient):
    stand_in.cuts = [500] * 50
    with pytest.raises(HubError, match="interrupted"):
        load(REPO)
    connect(monkeypatch, closed_port())
    with pytest.raises(HubError, match="is not, or not wholly, in the cache"):
        load(REPO)


def test_no_token(stand_in):
    stand_in.gated = 401
    with pytest.raises(HubError, match="with a token, and none .* run `hf auth login`") as caught:
        load(REPO)
    assert f"accept the licence on {constants.ENDPOINT}/{REPO}," in str(caught.value)


def test_licence_not_accepted(stand_in):
    stand_in.gated = 403
    with pytest.raises(HubError, match="after its licence has been accepted") as caught:
        load(REPO)
    assert f"open {constants.ENDPOINT}/{REPO}, accept the licence, then" in str(caught.value)


def test_gated_but_cached(stand_in, model):
    load(REPO)
    stand_in.gated = 401
    assert same(load(REPO)[0], model)


@pytest.mark.parametrize("status", [401, 404])  # the hub says 401 to those who are not logged in
def test_no_such_repository(status, stand_in):
    stand_in.no_repo = status
    with pytest.raises(HubError, match=f"'{REPO}' must be a folder or a model on .* spelling"):
        load(REPO)


def test_an_impossible_name(stand_in):
    with pytest.raises(HubError, match="'a--b/c..d' must be a folder or a model on"):
        load("a--b/c..d")


def test_no_such_revision(stand_in):
    with pytest.raises(HubError, match=f"{REPO} must have the revision 'float8', but has not"):
        load(f"{REPO}@float8")


def test_only_pickles(stand_in):
    (stand_in.folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match=r"must hold model\*.safetensors, found .*pytorch_model.bin"):
        load(REPO)
    assert not stand_in.got("resolve")


def test_too_little_disk(stand_in, monkeypatch):
    size = sum(size for name, size in stand_in.sizes().items() if name != "pytorch_model.bin")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(HubError, match=r"must have \d+kB on the disk of .* set HF_HOME"):
        load(REPO)
    assert not stand_in.got("resolve")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size))
    load(REPO)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    load(REPO)  # all is there already


def test_the_disk_fills_up(stand_in, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "snapshot_download", full)
    with pytest.raises(HubError, match="the disk of .* is full: free some"):
        download(REPO)


def test_without_huggingface_hub(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [wanted] = project["optional-dependencies"]["hub"]
    with pytest.raises(HubError, match=re.escape(f'run `python -m pip install "{wanted}"`')):
        load(REPO)


def test_nothing_else_was_contacted(stand_in):
    """Every request reaches this computer: the client's address is replaced whole."""
    load(REPO)
    assert "huggingface.co" not in hf.hf_hub_url(REPO, "config.json")
    assert constants.ENDPOINT.startswith("http://127.0.0.1:")
