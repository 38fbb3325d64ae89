"""A host with worker processes: their supervisor, its admin server and its reloads."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from runtime.deployments.function_change import FunctionChange
from runtime.loader import Project
from runtime.manifest import Manifest, read
from runtime.observe.admin import AdminServer
from runtime.observe.health import LoopWatch
from runtime.observe.metrics import Metrics
from runtime.process.announcements import Announcements
from runtime.process.serve_options import ServeOptions
from runtime.process.start_screen import LOOPBACK
from runtime.process.stop_signals import StopRequested, StopSignals
from runtime.process.supervisor_logs import SupervisorLogs
from runtime.process.worker_reloads import WorkerReloads
from runtime.process.workers import WorkerSupervisor, divide
from runtime.reloading.reload_loop import ReloadLoop
from runtime.reloading.reload_requests import ReloadRequests
from runtime.reloading.reloader import Reloader
from runtime.reloading.watched_places import WatchedPlaces


class SupervisedHost:
    """Supervises the worker processes that run the functions of a manifest.

    Args:
        options: the options of `runtime serve`.
        manifest: what the workers serve.
        environment: environment of the workers; contains the servers' addresses.
        project: has loaded the functions of the manifest.
    """

    def __init__(
        self,
        options: ServeOptions,
        manifest: Manifest,
        environment: Mapping[str, str],
        project: Project,
    ) -> None:
        self._options = options
        isolated = {name: spec.isolate for name, spec in manifest.functions.items()}
        self._supervisor = WorkerSupervisor(
            _command(options), environment, divide(isolated, options.workers)
        )
        self._reloads = WorkerReloads(self._supervisor, options.workers, manifest)
        reading = partial(read, options.paths, environment)
        self._reloader = Reloader(project, reading, self._reloads, manifest, paths=options.paths)
        self._watching = ReloadLoop(self._on_change, self._places, polls=options.reload_polls)
        self._requests = ReloadRequests(self._reload)
        self._logs = SupervisorLogs(environment["NATS_URL"])

    async def run(self, signals: StopSignals, announce: Announcements) -> None:
        """Serve until a signal, or until a worker cannot run with its configuration.

        Raises:
            ConfigError: names the worker, which has logged what is wrong; or the port is taken.
        """
        supervisor = self._supervisor
        metrics = Metrics(version("nats-function-runtime"), restarts=supervisor.restarts)
        watch = LoopWatch(metrics)
        admin = AdminServer(
            LOOPBACK,
            self._options.settings.admin_port,
            {"workers": supervisor.check, "reload": self._reloads.check},
            metrics.registry,
            watch=watch,
            workers=supervisor.socket_paths,
            forgiven=supervisor.forgiven,
        )
        try:
            await admin.start()
            watch.start()
            self._logs.start()
            await supervisor.start()
            announce.started(admin_port=admin.port, workers=len(supervisor.socket_paths))
            await self._supervise(signals, announce, admin.port)
        finally:
            await supervisor.stop()
            await self._reloader.stop()
            await self._logs.stop()
            watch.stop()
            await admin.stop()
        announce.stopped()

    async def _supervise(
        self, signals: StopSignals, announce: Announcements, admin_port: int
    ) -> None:
        try:
            await signals.unless_stopped(self._supervisor.wait_until_ready())
            announce.ready(admin_port=admin_port)
            signals.on_reload(self._requests.hang_up)
            if self._options.reload:
                self._watching.start()
            await signals.unless_stopped(self._supervisor.wait_for_failure())
        except StopRequested:
            announce.draining()
        finally:
            await self._watching.stop()
            await self._requests.stop()
            await self._supervisor.drain(self._options.settings.grace_s, signals.at_once)

    def _places(self) -> WatchedPlaces:
        """Where a reload reads, and what a `start` has read, which only the workers know."""
        places = self._reloader.places()
        return replace(places, files=places.files | self._supervisor.data_files())

    async def _on_change(
        self,
        *,
        touched: frozenset[Path] = frozenset(),
        is_settled: Callable[[], Awaitable[bool]] | None = None,
    ) -> list[FunctionChange]:
        changes = await self._reloader.reload(touched=touched, is_settled=is_settled)
        # Nothing is touched the first time, for what has changed before the watch began.
        if not changes and (not touched or touched & self._supervisor.data_files()):
            return await self._reloads.tell()
        return changes

    async def _reload(self) -> list[FunctionChange]:
        # A worker may have more to do than the supervisor sees, such as a `start` that failed.
        return await self._reloader.reload(retry=True) or await self._reloads.tell()


def _command(options: ServeOptions) -> list[str]:
    """The command of a worker."""
    # So that a crash in a C library shows its stack on standard error. Without `-P`, `-m`
    # puts the current folder first on the module path, and a `json.py` there breaks Python.
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", "runtime", "serve"]
    command += [str(path) for path in options.paths]
    if options.bind_only:
        command.append("--bind-only")
    if options.reload:
        command.append("--reload")
    return command


__all__ = ["SupervisedHost"]
