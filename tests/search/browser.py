"""A real browser for tests: Chromium without a window, asked over a pipe by its DevTools protocol.

Nothing but the program is needed: no driver, no package.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
#: The protocol goes by the descriptors 3 and 4.
_START = (
    "import fcntl, os, sys; ends = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]; "
    "[os.dup2(end, n) for n, end in enumerate(ends, 3)]; os.execv(sys.argv[3], sys.argv[3:])"
)


def program() -> str | None:
    """Where Chromium is, or None. Its pipe is one of POSIX."""
    if os.name != "posix":
        return None
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. `events` are all that it has told since the page was opened. Use it as a context."""

    def __init__(self, path: str, profile: Path, patience: float = 60.0) -> None:
        self.patience, self.events, self._numbers = patience, list[dict[str, Any]](), itertools.count(1)
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        command = [sys.executable, "-S", "-E", "-c", _START, str(read), str(write), path, *_FLAGS]
        self.log = profile / "log"
        profile.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--user-data-dir={profile / 'data'}", "about:blank"],
                pass_fds=(read, write), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(read)
        os.close(write)
        self._rest = b""
        try:
            (tab,) = (t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
            attached = self._ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
            self._session: str | None = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, and all processes that it has started."""
        for end in (self._out, self._in):
            os.close(end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)  # it ends when its pipe does
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    # ---- the protocol -------------------------------------------------------------------------------------

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the tab answers. Raises RuntimeError where it is an error."""
        return self._ask(method, self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {
            "id": number,
            "method": method,
            "params": parameters,
            **({"sessionId": session} if session else {}),
        }
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        until = time.monotonic() + self.patience
        while (answer := self._read(until)).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def _read(self, until: float) -> dict[str, Any]:
        """The next message; those that are no answers are kept as events."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError(
                    f"the browser does not answer: {self.log.read_text(errors='replace')[-2000:]}"
                )
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        if "id" not in found:
            self.events.append(found)
        return found

    # ---- pages --------------------------------------------------------------------------------------------

    def open(self, url: str, width: int, height: int = 900, dark: bool = False) -> None:
        """Loads a page anew, on a screen of this size."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=url)
        until = time.monotonic() + self.patience
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self._read(until)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, on the page. Raises RuntimeError where it throws."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """What was asked for over the network or from files, the page itself first."""
        return [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Everything on the console, and scripts that failed."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in kinds]

    def picture(self, path: Path, part: Sequence[float] | None = None) -> None:
        """Writes the whole page, or a part of it (x, y, width, height), as PNG."""
        x, y, width, height = part or (0, 0, *self.run("[innerWidth, document.documentElement.scrollHeight]"))
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))
