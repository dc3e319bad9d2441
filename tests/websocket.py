"""A websocket client of a page, with the standard library only: enough to read a host's events in order (RFC
6455).
"""

from __future__ import annotations

import base64
import os
import socket
import struct
from types import TracebackType
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class WebSocket:
    """An open connection; a context manager."""

    def __init__(self, url: str, timeout: float = 60) -> None:
        """
        Args:
            url: "ws://host:port/path".
            timeout: seconds that a read may take.

        Raises:
            ConnectionError: the server does not speak websocket there.
        """
        parts = urlsplit(url)
        path = parts.path + ("?" + parts.query if parts.query else "")
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
                 f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "")
        self._socket.sendall("\r\n".join(lines).encode())
        status = self._file.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"no websocket at {url}: {status.decode().strip()}")
        while self._file.readline().strip():
            pass

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._socket.close()

    def send(self, text: str) -> None:
        self._send(TEXT, text.encode())

    def receive(self) -> str | bytes:
        """The next message, text or binary.

        Raises:
            ConnectionError: the server closed the connection.
            TimeoutError: nothing came in time.
        """
        whole, first = b"", 0
        while True:
            final, code, data = self._frame()
            if code == CLOSE:
                raise ConnectionError("the server closed the websocket")
            if code == PING:
                self._send(PONG, data)
            if code >= CLOSE:
                continue
            first, whole = first or code, whole + data
            if final:
                return whole.decode() if first == TEXT else whole

    def _frame(self) -> tuple[bool, int, bytes]:
        head, length = self._read(2)
        if length == 126:
            (length,) = struct.unpack(">H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._read(8))
        return head >= 128, head & 15, self._read(length)

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ConnectionError("the server closed the websocket")
        return data

    def _send(self, code: int, data: bytes) -> None:
        size = (
            bytes([128 | len(data)]) if len(data) < 126 else bytes([128 | 126]) + struct.pack(">H", len(data))
        )
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
        self._socket.sendall(bytes([128 | code]) + size + mask + masked)
