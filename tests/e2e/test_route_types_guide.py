"""docs/guides/route-types.md, followed as written while its host runs."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.documentation import (
    ROOT,
    RUNTIME,
    Served,
    free_port,
    is_shown,
    read_blocks,
    read_commands,
    serving,
)
from tests.support.servers import remove, wait_until

PAGE = ROOT / "docs" / "guides" / "route-types.md"
READING = {"site_id": "s1", "provision_token": "0f3c9a7e51d24b86"}
# A device may send twenty messages at once.
DURING_RELOADS = 16


class Chat(ThreadingHTTPServer):
    """The chat service: keeps what it is posted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ChatRequest)
        self.posts: list[tuple[str, str, dict[str, Any]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/messages"

    def temperatures(self) -> set[int]:
        """The readings that arrived, from either form of the message."""
        found = set()
        for _, _, body in self.posts:
            metrics = body["payload"]["metrics"] if "payload" in body else body["text"]
            text = metrics if isinstance(metrics, str) else json.dumps(metrics)
            found.add(json.loads(text.partition(": ")[2] if text[0] != "{" else text)["temp"])
        return found


class ChatRequest(BaseHTTPRequestHandler):
    """Answers 200."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Chat)
        self.server.posts.append((self.path, self.headers["authorization"], json.loads(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class Site:
    """The folder of the page, its host and its gateway."""

    folder: Path
    environment: dict[str, str]
    answers: list[Any] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The gateway's answer."""
        key = (self.folder / ".runtime" / "admin.key").read_text(encoding="utf-8").strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.environment['GATEWAY_PORT']}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def run(self, line: str) -> str:
        """What a command of the page prints."""
        words = shlex.split(line)
        if words[0] == "runtime":
            words[0] = str(RUNTIME)
        done = subprocess.run(
            words,
            cwd=self.folder,
            env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **self.environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def requests_of(page: Path) -> list[list[tuple[str, str, Any]]]:
    """The requests of each `http` block."""
    blocks = [block.text for block in read_blocks(page) if block.language == "http"]
    found = []
    for text in blocks:
        requests = []
        for part in text.strip().split("\n\n"):
            line, _, body = part.partition("\n")
            method, path = line.split()
            requests.append((method, path, json.loads(body) if body else None))
        found.append(requests)
    return found


@pytest.fixture
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="runtime-test-route-type-"))
    # When the test runs as root, PostgreSQL runs as another user, which must traverse the folder.
    folder.chmod(0o711)
    names = ("RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT", "GATEWAY_PORT")
    yield Site(folder, {name: str(free_port()) for name in names})
    remove(folder)


def test_a_new_type_delivers_what_waited_and_no_job_is_lost_over_reloads(site: Site) -> None:
    (project, _), (cd, _), (serve, _), (new, told) = read_commands(PAGE)
    first, attempts, last = requests_of(PAGE)
    chat = Chat()
    *given, program, _, manifests, with_, backbone, reload = shlex.split(serve)
    assert (program, with_, reload) == ("runtime", "--with", "--reload")
    settings = dict(each.split("=", 1) for each in given) | {"CHAT_URL": chat.url}
    site.run(project)
    site.folder /= cd.removeprefix("cd ")

    with serving(
        site.folder, manifests, with_, backbone, reload, environment=site.environment | settings
    ) as served:
        wait_for_gateway(site)
        for method, path, body in first:
            site.ask(method, path, body)
        wait_until(lambda: site.ask("GET", "/api/v1/delivery-books")["waiting"] == 1, "a job")
        assert chat.posts == []

        assert is_shown(told, site.run(new))
        wait_until(lambda: chat.posts, "the job that waited")
        assert chat.posts[0][:2] == ("/messages?channel=alerts", "Bearer the-secret-of-the-chat")
        [[(_, path, _)]] = [attempts]
        wait_until(lambda: site.ask("GET", path)["items"], "the attempt in the log")
        assert [each["outcome"] for each in site.ask("GET", path)["items"]] == ["delivered"]

        reload_while_readings_come(site, served)
        for method, path, body in last:
            site.ask(method, path, body)
        expected = {21, 22, *range(100, 100 + DURING_RELOADS)}
        wait_until(lambda: chat.temperatures() == expected, f"{expected}", 60)
        books = site.ask("GET", "/api/v1/delivery-books")
        # Not the last one: jobs are delivered side by side, and one of before may be slower.
        assert 'd1: {"temp": 22}' in [body.get("text") for _, _, body in chat.posts]
    assert books["dead"] == books["refused"] == 0, books
    chat.shutdown()
    chat.server_close()


def wait_for_gateway(site: Site) -> None:
    """Until the gateway has found the endpoints of the management API."""

    def answers() -> bool:
        try:
            site.ask("GET", "/api/v1/tenants")
        except (urllib.error.URLError, OSError):
            return False
        return True

    wait_until(answers, "the management API", 60)


def reload_while_readings_come(site: Site, served: Served) -> None:
    """Save a version that cannot be loaded, take the function away, and save the page's own."""
    module, manifest = site.folder / "functions/chat.py", site.folder / "manifests/chat.yaml"
    [written] = [block.text for block in read_blocks(PAGE) if block.name == "functions/chat.py"]
    entry = manifest.read_text(encoding="utf-8")
    numbers = iter(range(DURING_RELOADS))

    def read() -> None:
        for _ in range(DURING_RELOADS // 4):
            body = READING | {"metrics": {"temp": 100 + next(numbers)}}
            site.ask("POST", "/ingest/v1/tenant/acme/device/d1/telemetry", body)

    module.write_text("deliver = no_such_name\n", encoding="utf-8")
    read()
    served.wait_for("Not reloaded, the last good version runs on")
    manifest.unlink()
    read()
    served.wait_for("Stopped", function="deliver_chat")
    read()
    module.write_text(written, encoding="utf-8")
    manifest.write_text(entry, encoding="utf-8")
    read()
