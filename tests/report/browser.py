"""A headless Chromium that a test talks to over a pipe, by the DevTools protocol: no driver, no socket of our own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE_SECONDS = 60.0


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome: `$SKILLGRAFT_CHROMIUM`, else the first on the path."""
    return os.environ.get("SKILLGRAFT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page in one browser. `events` collects what the page did: console, exceptions, requests, violations."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Send one command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": self._session} if self._session else {}))
        remaining = memoryview(text.encode() + b"\0")
        while remaining:
            remaining = remaining[os.write(self._write, remaining) :]
        while True:
            answer = self._next()
            if answer.get("id") != self._number:
                self.events.append(answer)
            elif "error" in answer:
                raise AssertionError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def open(self, page: Path, width: int = 1280, height: int = 900, **features: str) -> None:
        """Load a file at a size, with media features such as prefers_color_scheme="dark", and wait for it."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.events.clear()
        assert "errorText" not in self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Return what a reader of the console would see: errors, warnings, exceptions."""
        self.run("0")
        said = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                said.append(str(parameters["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled":
                said.append(str(parameters["args"]))
            elif event.get("method") == "Log.entryAdded":
                said.append(str(parameters["entry"]["text"]))
        return said

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, the page itself among them."""
        self.run("0")
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise AssertionError("the browser says nothing any more")
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise AssertionError("the browser went away")
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)


@contextlib.contextmanager
def browser(chromium: str, folder: Path) -> Iterator[Browser]:
    """Start Chromium with a profile of its own in `folder`, without a network, and end it afterwards."""
    theirs, ours = os.pipe()
    mine, yours = os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--disable-dev-shm-usage", "--proxy-server=127.0.0.1:9", f"--user-data-dir={folder}"]
    # the protocol is fixed to descriptors 3 and 4, which the shell moves ours to
    shell = f'exec "$0" "$@" 3<&{theirs} 4>&{yours}'
    started = subprocess.Popen(
        ["/bin/bash", "-c", shell, chromium, *options, "about:blank"],
        pass_fds=(theirs, yours),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(yours)
    try:
        yield Browser(ours, mine)
    finally:
        started.terminate()
        started.wait(10)
        os.close(ours)
        os.close(mine)
