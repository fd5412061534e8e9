"""Headless Chromium, driven through its DevTools protocol over a pipe: no port, no package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


class Tab:
    """One tab."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = os.fdopen(commands, "wb", buffering=0), os.fdopen(answers, "rb")
        self._number, self._session = 0, ""
        self.errors: list[str] = []
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._do(f"{domain}.enable")

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Go to ``url`` in a window of this size."""
        self._do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._do("Emulation.setEmulatedMedia", features=[scheme])
        self._do("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What the expression ``script`` is in the page; of a promise, once it is kept."""
        answer = self._do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until the expression ``condition`` holds in the page, half a minute at most."""
        self.value(
            f"""new Promise((kept, broken) => {{ const began = performance.now(); (function look() {{
            if ({condition}) kept(); else if (performance.now() - began > 30000) broken({json.dumps(condition)});
            else setTimeout(look, 20); }})(); }})"""
        )

    def type(self, text: str) -> None:
        """Put ``text`` where the cursor is."""
        self._do("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press the key named ``key``, whose number is ``code``."""
        for kind in ("keyDown", "keyUp"):
            self._do("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def picture(self, path: Path) -> None:
        """Write what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self._do("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._do("Browser.close")

    def _do(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]  # type: ignore[no-any-return]
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        """The next message, which ends with a zero byte."""
        parts = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium ended"
            parts += byte
        return json.loads(parts)  # type: ignore[no-any-return]

    def _note(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(event["params"]["entry"]["text"])


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser with an empty profile in the folder ``profile``."""
    commands_read, commands_write = os.pipe()
    answers_read, answers_write = os.pipe()
    numbered = "import os, sys; os.dup2({0}, 103); os.dup2({1}, 104); os.dup2(103, 3); os.dup2(104, 4); "
    numbered += "os.execv(sys.argv[1], sys.argv[1:])"  # the browser reads at 3 and writes at 4
    program = numbered.format(commands_read, answers_write)
    command = [
        sys.executable,
        "-c",
        program,
        str(BINARY),
        *FLAGS,
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        command, pass_fds=(commands_read, answers_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(commands_read)
    os.close(answers_write)
    try:
        tab = Tab(commands_write, answers_read)
        yield tab
        tab.close()
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
