"""A browser for the tests of a page, driven over Chromium's DevTools protocol."""

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
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = next(line for line in self._process.stderr if "DevTools listening on" in line)
        port = line.split("://")[1].split("/")[0]
        pages = [
            one for one in json.load(urllib.request.urlopen(f"http://{port}/json", timeout=20)) if one["type"] == "page"
        ]
        self._socket: ClientConnection = connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None)
        self._number = 0
        self.complaints: list[Any] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

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

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
