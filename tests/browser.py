"""A browser for the tests of a page, driven over Chromium's DevTools protocol."""

import base64
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect


class Browser:
    """A headless Chromium, driven over its DevTools protocol."""

    def __init__(self, folder: Path) -> None:
        flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --remote-debugging-port=0"
        command = ["chromium", *flags.split(), f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            self._socket: ClientConnection = connect(self._page(folder), max_size=None, proxy=None)
        except BaseException:
            self._process.kill()
            raise
        self._number = 0
        self.complaints: list[Any] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _page(self, folder: Path) -> str:
        """Where the one open page listens. Chromium writes its port into its profile when it does."""
        told = folder / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text().count("\n")):
            assert self._process.poll() is None, f"chromium ended with exit code {self._process.returncode}"
            assert time.monotonic() < deadline, "chromium does not listen"
            time.sleep(0.05)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20) as answer:
            pages = [one for one in json.load(answer) if one["type"] == "page"]
        return str(pages[0]["webSocketDebuggerUrl"])

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and wait for its result; what the page complains about meanwhile is kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(timeout=30))
            kind, about = said.get("method"), said.get("params", {})
            spoken = kind == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning")
            if spoken or kind in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"):
                self.complaints.append(about)
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + 30
        while not self.value(expression):
            assert time.monotonic() < deadline, (expression, self.complaints)
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """One key, down and up."""
        code = f"Digit{key}" if key.isdigit() else ""
        text = {"text": key} if len(key) == 1 else {}
        virtual = {"windowsVirtualKeyCode": 9} if key == "Tab" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code or key, **text, **virtual)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code or key, **virtual)

    def picture(self, path: Path) -> None:
        """What is on the screen, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
