"""The admin server: `/healthz`, `/readyz` and `/metrics` over HTTP."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from pathlib import Path

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.errors import ConfigError, Problem
from runtime.observe.aggregate import merged_metrics, probe_name, readiness_of
from runtime.observe.health import LoopWatch, Probe, Readiness

MAX_LAG_S = 5.0
"""A loop that lags more than this is reported as unhealthy."""
STOP_GRACE_S = 2
_FRESH = {"Cache-Control": "no-store"}


class AdminServer:
    """HTTP server for the probes of an orchestrator and for Prometheus.

    `/healthz`: 200 while the loop's lag is below `MAX_LAG_S` and the process needs no restart.
    `/readyz`: 200 when every probe passes, else 503; the body names each probe with a code.
    `/metrics`: Prometheus' text format.

    Requests whose `Host` is neither the address nor `localhost` get 400.

    Args:
        host: address to listen on.
        port: 0 lets the system choose; attribute `port` has the chosen one.
        probes: probes by name, such as `nats`, `postgres`, `functions`; may change.
        registry: the metrics that `/metrics` shows.
        watch: measures the event loop's lag.
        is_alive: False when the process must be started again.
        socket_path: a worker's Unix socket for its supervisor, to listen on instead of the address.
        workers: for a supervisor, the `socket_path` of each worker by label. Each worker's
            readiness is a further probe, and its metrics are merged with `registry`. May change.
        forgiven: names of probes whose failure leaves the host ready; may change.
    """

    def __init__(
        self,
        host: str,
        port: int,
        probes: Mapping[str, Probe],
        registry: CollectorRegistry,
        *,
        watch: LoopWatch,
        is_alive: Callable[[], bool] = lambda: True,
        socket_path: Path | None = None,
        workers: Mapping[str, Path] | None = None,
        forgiven: Collection[str] = (),
    ) -> None:
        self._host = host
        self._port = port
        self._registry = registry
        self._watch = watch
        self._is_alive = is_alive
        self._socket_path = socket_path
        self._workers = workers or {}
        self._readiness = Readiness(_AllProbes(probes, self._workers), forgiven=forgiven)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._port

    async def start(self) -> None:
        """Listen, then serve.

        Raises:
            ConfigError: the port is taken or the address cannot be used.
        """
        listener = self._listen()
        application = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ],
            middleware=self._middleware(),
        )
        self._server = _Server(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=STOP_GRACE_S,
            )
        )
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[listener]), name="admin server"
        )
        ready = asyncio.create_task(self._server.is_serving.wait())
        await asyncio.wait({self._serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            listener.close()
            await self._serving

    async def stop(self) -> None:
        """Stop listening, finish the answers in progress, close."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._serving = None
            if self._socket_path is not None:
                self._socket_path.unlink(missing_ok=True)

    def _middleware(self) -> list[Middleware]:
        """Refuse requests of a web page whose name resolves to loopback (DNS rebinding)."""
        if self._socket_path is not None:
            return []
        names = [self._host, "localhost", "*.localhost"]
        return [Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)]

    def _listen(self) -> socket.socket:
        if self._socket_path is not None:
            return _listen_unix(self._socket_path)
        listener = _listen_tcp(self._host, self._port)
        self._port = listener.getsockname()[1]
        return listener

    async def _healthz(self, _request: Request) -> Response:
        lag_s = self._watch.lag_s
        healthy = lag_s < MAX_LAG_S and self._is_alive()
        return JSONResponse(
            {"healthy": healthy, "loop_lag_s": round(lag_s, 3)},
            status_code=200 if healthy else 503,
            headers=_FRESH,
        )

    async def _readyz(self, _request: Request) -> Response:
        checks = await self._readiness.checks()
        ready = all(check.ok or not check.counts for check in checks.values())
        found = {name: {"ok": check.ok, "detail": check.detail} for name, check in checks.items()}
        return JSONResponse(
            {"ready": ready, "checks": found},
            status_code=200 if ready else 503,
            headers=_FRESH,
        )

    async def _metrics(self, _request: Request) -> Response:
        if self._workers:
            body = await merged_metrics(self._registry, self._workers)
        else:
            body = generate_latest(self._registry)
        return Response(body, headers={**_FRESH, "Content-Type": CONTENT_TYPE_LATEST})


class _AllProbes(Mapping[str, Probe]):
    """A process's own probes and those of its workers, as they are now."""

    def __init__(self, own: Mapping[str, Probe], workers: Mapping[str, Path]) -> None:
        self._own = own
        self._workers = workers

    def __getitem__(self, name: str) -> Probe:
        if name in self._own:
            return self._own[name]
        paths = {probe_name(worker): path for worker, path in self._workers.items()}
        return readiness_of(paths[name])

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from map(probe_name, self._workers)

    def __len__(self) -> int:
        return len(self._own) + len(self._workers)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which sets an event when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_serving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_serving.set()


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as failure:
        raise ConfigError([_unusable(host, port, failure)]) from failure
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listen at once: with SO_REUSEADDR a second socket may bind the port until one listens.
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        raise ConfigError([_unusable(host, port, failure)]) from failure
    return listener


def _unusable(host: str, port: int, failure: OSError) -> Problem:
    variable = "RUNTIME_ADMIN_PORT"
    if failure.errno == errno.EADDRINUSE:
        return Problem(variable, "", f"port {port} is taken", f"free it or set {variable}")
    if failure.errno == errno.EACCES:
        wrong = f"port {port} may not be opened by this user"
        return Problem(variable, "", wrong, f"set {variable} to one above 1023")
    reason = failure.strerror or type(failure).__name__
    return Problem(variable, "", f"cannot listen on {host}:{port} ({reason})", "choose another")


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
    except OSError as failure:
        listener.close()
        problem = Problem(
            "RUNTIME_DATA_DIR",
            "",
            f"cannot listen on {path} ({failure.strerror or failure})",
            "choose a directory with a shorter path that this user may write to",
        )
        raise ConfigError([problem]) from failure
    return listener
