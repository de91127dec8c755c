"""A small endpoint that speaks OpenAI's chat protocol on this machine, and misbehaves on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the endpoint sends back.

    Attributes:
        text: content of a completion; None stands for no content.
        status: HTTP status; but for 200, `text` is the error's message.
        headers: further ones.
        raw: the whole body, in place of a completion.
        delay: seconds before anything is sent.
        hang_up: close the connection without a word.
    """

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    delay: float = 0.0
    hang_up: bool = False

    @property
    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": self.text}}]}).encode()


class Server:
    """What was asked of an endpoint, and where it is.

    Attributes:
        url: of the API.
        asked: bodies of all requests, in order; `headers` and `paths` beside them.
        busiest: most requests under way at the same time.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.busiest = self._busy = 0
        self.lock = threading.Lock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self.lock:
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        yield
        with self.lock:
            self._busy -= 1


@contextmanager
def serving(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    """Serve while the context lasts.

    Args:
        reply: (body of a request, how many requests equal to it came before) -> what to send back.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                before = server.asked.count(body)
                server.asked.append(body)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.paths.append(self.path)
            with server.busy():
                said = reply(body, before)
                time.sleep(said.delay)
            if said.hang_up:
                self.close_connection = True
                return
            with suppress(ConnectionError):  # who asked may have lost patience
                self.send_response(said.status)
                for name, value in {"content-length": str(len(said.body)), **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def question(body: dict[str, Any]) -> str:
    """Return the words of the last message of a request."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")
