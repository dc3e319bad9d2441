"""A real ComfyUI with this pack, for the tests marked `host`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from PIL import Image, ImageDraw
from websocket import WebSocket

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-MoSs"


def checkout() -> Path | None:
    """ComfyUI's folder: COMFYUI_PATH, or ~/comfy/ComfyUI; None where there is none."""
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    return path if (path / "main.py").is_file() else None


def interpreter(comfyui: Path) -> str:
    """The Python that runs ComfyUI: COMFYUI_PYTHON, the environment in or beside the checkout, or this one.
    """
    folders = (comfyui / "venv", comfyui / ".venv", comfyui.parent / "venv")
    found = [str(folder / "bin" / "python") for folder in folders if (folder / "bin" / "python").exists()]
    return os.environ.get("COMFYUI_PYTHON") or next(iter(found), sys.executable)


def front_end() -> Path | None:
    """The front-end's `static` folder in MOSS_FRONT_END; None = the host's own.

    Raises:
        FileNotFoundError: there is none in that folder.
    """
    path = os.environ.get("MOSS_FRONT_END")
    if path and not (Path(path) / "index.html").is_file():
        raise FileNotFoundError(f"MOSS_FRONT_END is {path}, which is no front-end: it has no index.html")
    return Path(path) if path else None


def write_painted(path: Path) -> None:
    """A picture whose right half was painted in the host's mask editor, which makes it transparent."""
    alpha = Image.new("L", (256, 256), 255)
    alpha.paste(0, (128, 0, 256, 256))
    picture = Image.new("RGBA", (256, 256), (234, 234, 234, 255))
    ImageDraw.Draw(picture).ellipse((58, 58, 198, 198), (48, 106, 232, 255))
    picture.putalpha(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Host:
    """ComfyUI, on the CPU unless told otherwise, in folders of its own; a context manager that starts and
    stops it.

    Attributes:
        url: its address, without a slash at the end.
        base: its folder, with custom_nodes, models, input, output, temp and user.
    """

    def __init__(
        self, *arguments: str, comfyui: Path | None = None, packs: Mapping[str, str] = MappingProxyType({}),
        seconds: float = 180,
        memory: str = "--cpu",
    ) -> None:
        """
        Args:
            arguments: more of main.py's, such as "--cache-none".
            comfyui: the checkout; without it that of `checkout()`.
            packs: further custom nodes, the source of each by its name.
            seconds: that it may take to start.
            memory: how it treats a GPU's memory, such as "--lowvram"; "--cpu" = no GPU.

        Raises:
            FileNotFoundError: there is no checkout.
        """
        self._comfyui = comfyui or checkout()
        if self._comfyui is None:
            raise FileNotFoundError("no ComfyUI checkout; set COMFYUI_PATH to one")
        self._packs, self._seconds = packs, seconds
        shown = front_end()
        page = ("--front-end-root", str(shown)) if shown else ()
        self._arguments = (memory, *page, *arguments)
        self.client = uuid.uuid4().hex

    def __enter__(self) -> Host:
        self._folder = tempfile.TemporaryDirectory(prefix="comfyui-")
        self.base = Path(self._folder.name)
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir()
        (self.base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
        for name, source in self._packs.items():
            (self.base / "custom_nodes" / f"{name}.py").write_text(source)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            interpreter(self._comfyui), "main.py", "--listen", "127.0.0.1", "--port", str(port),
            "--disable-auto-launch", "--disable-api-nodes", "--base-directory", str(self.base),
            "--database-url", "sqlite:///:memory:", *self._arguments,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        self._output = (self.base / "log.txt").open("w")
        self._process = subprocess.Popen(
            command, cwd=self._comfyui, env=environment, stdout=self._output, stderr=subprocess.STDOUT
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._folder.cleanup()

    def _wait(self) -> None:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI did not start:\n{self.log[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise TimeoutError(f"ComfyUI did not answer within {self._seconds:.0f} s:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return (self.base / "log.txt").read_text(errors="replace")

    def get(self, path: str) -> Any:
        """The answer at a path: parsed JSON, or bytes."""
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, data: Any) -> Any:
        """The answer to JSON sent to a path; an HTTP error has the host's explanation in its message."""
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, json.dumps(data).encode(), headers))

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body, kind = answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            error.msg = f"{error.msg}: {error.read().decode(errors='replace')}"
            raise
        return json.loads(body) if kind == "application/json" and body else body

    @property
    def memory(self) -> int:
        """Bytes of memory that the process holds; Linux only."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def run(
        self, prompt: dict[str, Any], seconds: float = 120,
        on_event: Callable[[str | int, Any], None] | None = None, **extra: Any,
    ) -> dict[str, Any]:
        """Run a graph to its end.

        Args:
            prompt: in the API's format.
            seconds: that it may take between two events.
            on_event: called with every event as it comes.
            extra: more fields of the request, such as extra_data.

        Returns:
            The history's entry ("outputs", "status", ...) and "events": (type, data) in order; of binary
            events the number of the type and the bytes.

        Raises:
            urllib.error.HTTPError: the host refuses the graph.
        """
        query = urllib.parse.urlencode({"clientId": self.client})
        with WebSocket(f"ws{self.url[4:]}/ws?{query}", seconds) as stream:
            stream.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            sent = self.post("/prompt", {"prompt": prompt, "client_id": self.client, **extra})
            events = _events(stream, sent["prompt_id"], on_event)
        return {**self.get(f"/history/{sent['prompt_id']}")[sent["prompt_id"]], "events": events}


def _events(
    stream: WebSocket, prompt_id: str, on_event: Callable[[str | int, Any], None] | None
) -> list[tuple[str | int, Any]]:
    """All events until the host says that nothing of this graph runs any more."""
    events: list[tuple[str | int, Any]] = []
    while True:
        message = stream.receive()
        if isinstance(message, bytes):
            kind, data = int.from_bytes(message[:4], "big"), message[4:]
        else:
            kind, data = (json.loads(message)[name] for name in ("type", "data"))
        events.append((kind, data))
        if on_event:
            on_event(kind, data)
        if kind == "executing" and data["node"] is None and data["prompt_id"] == prompt_id:
            return events
