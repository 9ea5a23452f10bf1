"""A page in headless Chromium, spoken to over DevTools' own pipe: evaluate, click, console errors, screenshots."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.required import unavailable

ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio")
TROUBLE = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")


class Page:
    """An open tab. `trouble`: what was thrown or written to the console."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = os.fdopen(reading, "rb", buffering=0), os.fdopen(writing, "wb", buffering=0)
        self._rest, self._last, self._session = b"", 0, None
        self._events: list[dict] = []
        self.trouble: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Go there and wait until it has loaded."""
        self.resize(width, height)
        found = self._call("Page.navigate", url=address)
        while "loaderId" in found and not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        self._events.clear()

    def resize(self, width: int, height: int) -> None:
        """Of the window, in CSS pixels; a narrow one is a phone's."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """What is to be seen, or the whole page."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    def _call(self, method: str, **parameters: Any) -> dict:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writing.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            chunk = self._reading.read(2**20)
            assert chunk, "chromium has ended"
            self._rest += chunk
        first, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(first)
        if "method" in message:
            self._events.append(message)
            if message["method"] in TROUBLE:
                self.trouble.append(json.dumps(message["params"]))
        return message


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser of its own, without network; the test is skipped, or fails if required, where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        unavailable("chromium", "needs Debian's chromium")
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    ours = [to_write, from_read]
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (to_read, from_write)]
    os.close(to_read)
    os.close(from_write)

    def place() -> None:  # DevTools reads from 3 and writes to 4
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        arguments = [
            *ARGUMENTS,
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        process = subprocess.Popen(
            [str(program), *arguments],
            preexec_fn=place,
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        try:
            yield Page(ours[1], ours[0])
        finally:
            process.terminate()
            process.wait(20)
