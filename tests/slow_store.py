"""An object store as networks make it: each request is delayed and counted, and may fail, hang or break off.

It stands between the client and a real S3-compatible server, and knows nothing of S3 but that its requests are HTTP.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAIL, CUT, HANG = "fail", "cut", "hang"
"""Answer 500; send half of the body and hang up; take the request and never answer."""

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


class SlowStore:
    """`requests` holds method and path of all that came; `fault` says what to do to a request, by method, path and number."""

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.delay = delay
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str, int], str | None] = lambda method, path, number: None
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self, port))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def count(self, *methods: str, of: str = "") -> int:
        return sum(method in methods and of in path for method, path in list(self.requests))

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that gave up is what tests are about."""


def _handler(store: SlowStore, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        behind: http.client.HTTPConnection | None = None

        def log_message(self, *_: Any) -> None:
            pass

        def forward(self) -> None:
            number = len(store.requests)
            store.requests.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            what = store.fault(self.command, self.path, number)
            if what == HANG:
                store.over.wait(60)
                self.close_connection = True
                return
            time.sleep(store.delay)
            if what == FAIL:
                self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>made up</Message></Error>")
                return
            self._answer(*self._ask(body), cut=what == CUT)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            given = {
                name: value for name, value in self.headers.items() if name.lower() not in ("expect", "connection")
            }
            for attempt in (0, 1):  # the server may have closed an idle connection
                if self.behind is None:
                    self.behind = http.client.HTTPConnection("127.0.0.1", port)
                try:
                    self.behind.request(self.command, self.path, body, given)
                    answer = self.behind.getresponse()
                    found = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
                    length = answer.getheader("Content-Length")
                    if self.command == "HEAD" and length:
                        found["Content-Length"] = length
                    return answer.status, found, answer.read()
                except (http.client.HTTPException, OSError):
                    self.behind = None
                    if attempt:
                        raise
            raise AssertionError

        def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    return Handler
