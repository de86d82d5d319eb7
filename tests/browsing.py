"""A browser for the tests: a headless Chromium, driven by its own protocol.

It takes one websocket, which jupyterlab brings the package for: the tests need no driver and no
download beside the system's Chromium.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

# All servers are on this computer: no proxy.
HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def wait_for(found, process=None, log=None, seconds=120):
    """What `found` returns, once it is something."""
    until = time.monotonic() + seconds
    while not (answer := found()):
        told = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log else ""
        assert process is None or process.poll() is None, told
        assert time.monotonic() < until, f"waited {seconds} s in vain\n{told}"
        time.sleep(0.1)
    return answer


class Browser:
    """One page of a headless Chromium, and every address that it asked for."""

    def __init__(self, port: int):
        import websocket

        with HERE.open(f"http://127.0.0.1:{port}/json/list") as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self.socket = websocket.create_connection(
            page["webSocketDebuggerUrl"],
            socket=socket.create_connection(("127.0.0.1", port), 120),  # else it takes a proxy
            suppress_origin=True,
        )
        self.sent, self.requests = 0, []
        self.call("Network.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters):
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return message["result"]

    def run(self, script: str):
        """The value of a JavaScript expression; promises are waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")


@contextlib.contextmanager
def chromium(folder: Path):
    """A Browser that keeps its profile in `folder`. Raises FileNotFoundError where none starts."""
    if CHROMIUM is None:
        raise FileNotFoundError("no Chromium here: it is the system's package `chromium`")
    options = [
        "--headless=new",
        "--no-sandbox",  # Chromium has none for root; it opens our own page alone
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-port=0",
        "--window-size=1300,1000",
        f"--user-data-dir={folder}",
        # No network: whatever is not on this computer is not found.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
        "--no-proxy-server",
        "about:blank",
    ]
    log = folder / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen([CHROMIUM, *options], stdout=output, stderr=output)
    try:
        port_file = folder / "DevToolsActivePort"
        try:
            wait_for(lambda: port_file.exists() and "\n" in port_file.read_text(), process, log, 30)
        except AssertionError as error:  # such as a stand-in that only says how to install one
            raise FileNotFoundError(f"{CHROMIUM} does not start: {error}") from error
        page = Browser(int(port_file.read_text().split()[0]))
        yield page
        page.socket.close()
    finally:
        process.terminate()
        process.wait(30)


def visit(browser: Browser, file: Path) -> None:
    """Open the live model's page, and wait for its first answer."""
    browser.call("Page.navigate", url=file.as_uri())
    wait_for(lambda: browser.run("document.readyState") == "complete")
    browser.run("minipali.ready")
    wait_for(lambda: browser.run("""document.getElementById("answer").ariaBusy === "false" """))


@pytest.fixture
def browser(tmp_path):
    pytest.importorskip("websocket")
    with contextlib.ExitStack() as stack:
        try:
            page = stack.enter_context(chromium(tmp_path))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield page
