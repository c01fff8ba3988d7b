# SPDX-License-Identifier: GPL-2.0-or-later
"""A real headless browser, driven through its DevTools protocol.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"],
    *["--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*"],
]
LIMIT = 120.0


@functools.cache
def find() -> str | None:
    """The path of a browser that starts, or None. Ubuntu's may only print that it is a snap."""
    for program in filter(None, map(shutil.which, NAMES)):
        version = [program, "--no-sandbox", "--version"]
        if subprocess.run(version, capture_output=True, check=False).returncode == 0:
            return program
    return None


class Tab:
    """One page. `complaints` collects its errors, and its requests to the network."""

    def __init__(self, address: str) -> None:
        import websocket

        self._socket = websocket.create_connection(address, timeout=LIMIT)
        self._number = 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result; handle the events before it."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._hear(message)

    def _hear(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.complaints.append(json.dumps(parameters["args"]))
        elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:")):
                self.complaints.append(f"asks the network for {url}")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression. A promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, path: str) -> None:
        """Open a file, and wait until it is read to its end and its data-state is set."""
        self.call("Page.navigate", url=f"file://{path}")
        self.wait_for(
            "document.readyState === 'complete' && document.documentElement.dataset.state"
        )

    def wait_for(self, script: str) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            value = self.evaluate(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; {self.complaints}")

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        """Type text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self) -> bytes:
        """A screenshot of the page, as PNG."""
        import base64

        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def prefer(self, theme: str) -> None:
        """Set the theme that the viewer prefers: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def close(self) -> None:
        self._socket.close()


def _first_page(port: str) -> str:
    """The address of the browser's first page. It appears some time after the start."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with opener.open(f"http://{port}/json/list", timeout=LIMIT) as answer:
            for page in json.load(answer):
                if page["type"] == "page":
                    return str(page["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("the browser opens no page")


@contextlib.contextmanager
def browse(width: int = 1440, height: int = 1300) -> Iterator[Tab]:
    """A browser with one empty page. It ends with the `with` block."""
    program = find()
    assert program
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [*OPTIONS, f"--window-size={width},{height}", f"--user-data-dir={profile}"]
        environment = os.environ | {"HOME": profile}
        browser = subprocess.Popen(
            [program, *options, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Debian's is a script: kill its group
        )
        try:
            assert browser.stderr
            port = None
            for line in browser.stderr:
                found = re.search(r"DevTools listening on ws://([^/]+)/", line)
                if found:
                    port = found[1]
                    break
            assert port, "the browser did not start"
            tab = Tab(_first_page(port))
            yield tab
            tab.close()
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.communicate()
