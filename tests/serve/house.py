"""A real uvicorn over loopback in a thread of the test's process, and what tests need to talk to it."""

from __future__ import annotations

import contextvars
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import httpx

from forethought.serve import Bridge, Limits, ServedModel, ServerConfig, create_application, make_server


class House:
    """A server and the way in; `limits` are fields of Limits, other settings those of ServerConfig."""

    def __init__(
        self,
        open_model: Callable[[], ServedModel],
        *,
        key: str | None = None,
        limits: dict[str, Any] | None = None,
        max_restarts: int = 5,
        **settings: Any,
    ) -> None:
        self.config = ServerConfig(port=0, seed=1, limits=Limits(**({"grace": 1.0} | (limits or {}))), **settings)
        self.key = key
        self.bridge = Bridge(open_model, step_seconds=self.config.limits.step, max_restarts=max_restarts)
        self.application: Any = None
        self.port = 0

    def __enter__(self) -> House:
        self.bridge.open()
        self.application = create_application(self.bridge, self.config, key=self.key)
        self.server = make_server(self.application, self.config)
        listening = threading.Event()

        def announce(port: int) -> None:
            self.port = port
            listening.set()

        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self.server.run_announced, announce), daemon=True)
        self._thread.start()
        assert listening.wait(20)
        self.until(lambda: self.server.started)
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self.server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def engine(self) -> Any:
        return self.bridge.model.engine

    @property
    def service(self) -> Any:
        return self.application.state.service

    def complete(self, prompt: Any = "the cat", **fields: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": "table", "prompt": prompt, **fields})

    def chat(self, text: str = "the cat", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.http.post("/v1/chat/completions", json={"model": "table", "messages": messages, **fields})

    def metric(self, name: str, /, **labels: str) -> float:
        """The value of a metric, 0 where it has none yet."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.http.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            found, _, rest = head.partition("{")
            if found == name and wanted <= set(rest.rstrip("}").split(",")):
                return float(value)
        return 0.0

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """A raw connection."""
        made = socket.socket()
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(20)
        made.connect(("127.0.0.1", self.port))
        return made

    def post(self, path: str, body: Any, *, headers: str = "") -> bytes:
        """The bytes of a request."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(content)}\r\n\r\n"
        ).encode() + content

    def is_idle(self) -> bool:
        """Whether nothing of any request is left anywhere."""
        return not (self.service.gate.num_open or self.bridge.num_open or self.engine.has_work)

    def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> float:
        """Wait for something and return how long it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, "it did not happen"
            time.sleep(0.002)
        return time.monotonic() - began


def events(response: httpx.Response) -> list[Any]:
    """The JSON of a stream's events, read byte for byte: one data line each, a blank line behind it, [DONE] last."""
    content = response.read()
    assert content.endswith(b"\n\n")
    assert b"\r" not in content
    parts = content[:-2].split(b"\n\n")
    assert all(part.startswith(b"data: ") and b"\n" not in part for part in parts), parts
    assert parts[-1] == b"data: [DONE]"
    return [json.loads(part[6:]) for part in parts[:-1]]


def drained(connection: socket.socket) -> bytes:
    """Everything until the other side hangs up."""
    return b"".join(_parts(connection))


def _parts(connection: socket.socket) -> Iterator[bytes]:
    try:
        while part := connection.recv(1 << 16):
            yield part
    except (ConnectionError, TimeoutError):
        return
