"""Webhook receiver: accepts deliveries and verifies their signatures."""

import queue
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

_LOOK_EVERY_S = 0.5


class Receiver:
    """A context manager that listens on a loopback port; 0 for a free one."""

    def __init__(self, secret: str, port: int) -> None:
        self._webhook = Webhook(secret)
        self._deliveries: queue.Queue[tuple[str, Any]] = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(receiver.take(dict(self.headers), body))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing: the demonstration shows the deliveries at its end."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        """The URL for deliveries."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def __enter__(self) -> "Receiver":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Store a delivery if its signature is valid; return the status to answer."""
        try:
            event = self._webhook.verify(body, headers)
        except WebhookVerificationError:
            return 401
        names = {name.lower(): value for name, value in headers.items()}
        self._deliveries.put((names["webhook-id"], event))
        return 204

    def collect(
        self, run: int, count: int, timeout_s: float, is_refused: Callable[[], bool]
    ) -> dict[str, Any]:
        """The verified events of a run by webhook id.

        Waits for `count` of them, until deliveries are refused, or until the timeout.
        """
        found: dict[str, Any] = {}
        until = time.monotonic() + timeout_s
        while len(found) < count and (left := until - time.monotonic()) > 0:
            try:
                webhook_id, event = self._deliveries.get(timeout=min(left, _LOOK_EVERY_S))
            except queue.Empty:
                if is_refused():
                    break
                continue
            if event["data"]["payload"].get("metrics", {}).get("run") == run:
                found[webhook_id] = event
        return found
