"""A headless Chromium spoken to over a pipe (DevTools protocol): opens a file, clicks, types, looks, and records what went wrong."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--disable-extensions --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
)


class Chromium:
    """One page. `with Chromium(folder) as page: page.open(file)`; problems and requests are lists that should stay as expected."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False):
        assert PROGRAM, "these tests need Debian's chromium: make test-browser installs it"
        read_commands, self.out = os.pipe()
        self.back, write_answers = os.pipe()
        command = [PROGRAM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", "about:blank"]

        def pipes() -> None:
            os.dup2(os.dup(read_commands), 3)
            os.dup2(os.dup(write_answers), 4)

        with open(folder / "chromium.log", "wb") as log:
            self.process = subprocess.Popen(command, preexec_fn=pipes, pass_fds=(3, 4), stdout=log, stderr=log, start_new_session=True)
        os.close(read_commands)
        os.close(write_answers)
        self.buffer, self.last, self.session = b"", 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        targets = self.ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.size(width, height)
        self.theme(dark)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.out)
        os.close(self.back)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.last += 1
        number = self.last
        message = {"id": number, "method": method, "params": parameters}
        os.write(self.out, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.back, 1 << 20)
            assert part, "chromium went away"
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        event = json.loads(message)
        self._note(event)
        return event

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        if event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(each.get("value", each.get("description"))) for each in parameters["args"]))
        if event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])

    def open(self, path: Path) -> None:
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.run("new Promise((done) => (document.readyState === 'complete' ? done() : addEventListener('load', done)))")
        self.settle()

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, script: str, frames: int = 200) -> Any:
        """Value of an expression as soon as it is true; the last one if it never is."""
        value = self.run(script)
        while not value and frames:
            self.settle()
            value, frames = self.run(script), frames - 1
        return value

    def settle(self) -> None:
        """Wait for two frames and a moment."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))")

    def show(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()

    def middle(self, element: str) -> tuple[float, float]:
        """Center of an element given as a JavaScript expression, after scrolling to it."""
        self.run(f"({element}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()
        box = self.run(f"(() => {{ const b = ({element}).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        return box[0], box[1]

    def mouse(self, x: float, y: float, click: bool = False) -> None:
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def click(self, selector: str) -> None:
        self.mouse(*self.middle(f"document.querySelector({json.dumps(selector)})"), click=True)

    def size(self, width: int, height: int) -> None:
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.run("new Promise((done) => setTimeout(done, 250))")  # plotly waits for 100 ms without another change
        self.settle()

    def theme(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=[*features, {"name": "prefers-reduced-motion", "value": "reduce"}])
        self.settle()

    def press(self, name: str, code: int) -> None:
        """A key, without waiting for what it does."""
        text = {"text": "\r" if name == "Enter" else name} if name in ("Enter", " ") else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=name, code="Space" if name == " " else name, windowsVirtualKeyCode=code, **more
            )

    def key(self, name: str, code: int) -> None:
        self.press(name, code)
        self.settle()

    def picture(self, path: Path, whole: bool = False) -> Path:
        """Screenshot, of the window or of the whole page."""
        area = {}
        if whole:
            size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
            area = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}, "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png", **area)["data"]))
        return path
