"""Start and stop of a host: embedded servers, migrations, functions, signals."""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from pydantic import SecretStr

from runtime.broker.stream_configs import SCHEDULES_SINCE, wanted_by_runtime
from runtime.deployments.function_change import FunctionChange
from runtime.embedded.servers import EmbeddedServers
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import Project
from runtime.manifest import Manifest, read
from runtime.manifest.needs import find_missing
from runtime.observe.admin import AdminServer
from runtime.observe.health import LoopWatch
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics
from runtime.observe.redaction import hide, passwords_in
from runtime.probes import FORGIVEN
from runtime.process import collector
from runtime.process.announcements import Announcements
from runtime.process.listeners import check_ports
from runtime.process.placeholders import DATABASE_PLACEHOLDER, with_placeholders
from runtime.process.serve_options import ServeOptions
from runtime.process.start_screen import LOOPBACK, screen_of
from runtime.process.stop_signals import StopRequested, StopSignals
from runtime.process.supervised_host import SupervisedHost
from runtime.process.worker_channel import SupervisorLink
from runtime.process.workers import WorkerPlace
from runtime.reloading.reload_loop import ReloadLoop
from runtime.reloading.reload_requests import ReloadRequests
from runtime.reloading.reloader import Reloader
from runtime.resource.postgres import migrate
from runtime.resource.session_check import check_session
from runtime.settings import REGISTRATION_KEY

log = get_logger("runtime")


async def serve(options: ServeOptions) -> None:
    """Run the host until a signal stops it.

    Raises:
        ConfigError: a person must change something first; nothing was subscribed.
        Unavailable: NATS or PostgreSQL does not answer.
    """
    began_s = time.monotonic()
    signals = StopSignals()
    signals.install()
    announce = Announcements(options.settings, began_s=began_s)
    # Mistakes show before the first server starts; placeholders stand for what the servers add.
    planned = read(options.paths, with_placeholders(options.settings, options.environment))
    project = Project(from_source=options.reload)
    check_ports(options.settings, planned, project.load(planned))
    embedded = EmbeddedServers(options.settings)
    try:
        made = await signals.unless_stopped(_start_embedded(embedded, planned))
        environment = {**options.environment, **made}
        environment["GATEWAY_PORT"] = str(options.settings.gateway_port)
        # Without a key of their own, the processes of this host trust each other alone.
        if not environment.get(REGISTRATION_KEY):
            environment[REGISTRATION_KEY] = secrets.token_urlsafe(32)
        options = _with_registration_key(options, environment[REGISTRATION_KEY])
        manifest = read(options.paths, environment)
        addresses = _addresses(manifest, environment)
        if manifest.migrations and addresses.database_url:
            packages = list(manifest.migrations.values())
            # Through a pooler in transaction mode a migration's lock would never be released.
            await signals.unless_stopped(check_session(addresses.database_url))
            await signals.unless_stopped(migrate(addresses.database_url, packages))
        announce.screen = screen_of(
            manifest, options.settings, options.paths, options.workers, embedded
        )
        isolated = {name: spec.isolate for name, spec in manifest.functions.items()}
        if options.workers == 1 and not any(isolated.values()):
            reading = partial(_read_for_one_process, options.paths, environment)
            await _run_host(
                *(options, manifest, reading, project, addresses),
                signals=signals,
                announce=announce,
            )
        else:
            project.load(manifest)
            host = SupervisedHost(options, manifest, environment, project)
            await host.run(signals, announce)
    except StopRequested:
        announce.stopped_early()
    finally:
        announce.end()
        await embedded.stop()


def _with_registration_key(options: ServeOptions, key: str) -> ServeOptions:
    settings = options.settings.model_copy(update={"registration_key": SecretStr(key)})
    return replace(options, settings=settings)


async def serve_as_worker(options: ServeOptions, place: WorkerPlace) -> None:
    """As `serve`, in a worker process: the supervisor has started servers and migrated the schema.

    The worker also drains when the supervisor ends, which closes the worker's standard input.
    """
    began_s = time.monotonic()
    signals = StopSignals(has_terminal=False)
    signals.install()
    link = SupervisorLink(signals.drain, options.settings.grace_s)
    manifest = read(options.paths, options.environment)
    addresses = _addresses(manifest, options.environment)
    announce = Announcements(options.settings, began_s=began_s, worker=place.worker.name)
    reading = partial(read, options.paths, options.environment)
    try:
        await _run_host(
            options,
            manifest,
            reading,
            Project(from_source=options.reload),
            addresses,
            signals=signals,
            announce=announce,
            place=place,
            link=link,
        )
    except StopRequested:
        announce.stopped_early()


async def _start_embedded(embedded: EmbeddedServers, planned: Manifest) -> dict[str, str]:
    limits = {
        wanted.stream: wanted.config["max_bytes"]
        for wanted in wanted_by_runtime(SCHEDULES_SINCE, planned.streams)
        if not wanted.consumer
    }
    limits |= {name: spec.max_bytes or 0 for name, spec in planned.streams.items()}
    return await embedded.start(postgres=_uses_postgres(planned), stream_limits=limits)


def _uses_postgres(planned: Manifest) -> bool:
    """Whether a function or a migration uses PostgreSQL, or a setting contains its address."""
    return (
        bool(planned.migrations)
        or any("postgres" in spec.uses for spec in planned.functions.values())
        or DATABASE_PLACEHOLDER in planned.model_dump_json()
    )


def _addresses(manifest: Manifest, environment: Mapping[str, str]) -> Addresses:
    nats_url, database_url = environment.get("NATS_URL"), environment.get("DATABASE_URL")
    system_url = environment.get("NATS_SYSTEM_URL")
    hide(password for url in (nats_url, database_url, system_url) for password in passwords_in(url))
    problems = []
    if not nats_url:
        problems.append(Problem("NATS_URL", "", "is not set", "set it to the server's address"))
    needs = sorted(name for name, spec in manifest.functions.items() if "postgres" in spec.uses)
    if (needs or manifest.migrations) and not database_url:
        wrong = f"is not set, and needed by {', '.join(needs) or 'the migrations'}"
        problems.append(Problem("DATABASE_URL", "", wrong, "set it to the server's address"))
    if problems or not nats_url:
        raise ConfigError(problems)
    return Addresses(nats_url, database_url, system_url)


async def _run_host(
    options: ServeOptions,
    manifest: Manifest,
    reading: Callable[[], Manifest],
    project: Project,
    addresses: Addresses,
    *,
    signals: StopSignals,
    announce: Announcements,
    place: WorkerPlace | None = None,
    link: SupervisorLink | None = None,
) -> None:
    part = partial(_reduced, place=place)
    functions = project.load(part(manifest))
    metrics = Metrics(version("nats-function-runtime"))
    key = options.settings.registration_key
    host_options = HostOptions(
        services=place is None or place.worker.services,
        bind_only=options.bind_only,
        sweeps=place is None or place.worker.function is None,
        careful_ack_waits=place.worker.peers if place and place.succeeds_crash else 0,
        peers=place.worker.peers if place else 1,
        worker=place.worker.name if place else "",
        postgres_connections=options.settings.postgres_connections,
        rebind_grace_s=options.settings.grace_s,
        registration_key=key.get_secret_value() if key else None,
        before_endpoints=link.wait_for_callers if link else None,
    )
    host = Host(manifest, functions, addresses, metrics, host_options)

    def block_limit_s() -> float | None:
        isolated = place.worker.function if place else None
        # Before that only `start` hooks run, which have a time limit of their own.
        return host.blocks.block_limit_s(isolated) if isolated and host.has_begun else None

    watch = LoopWatch(
        metrics,
        running=host.blocks.running,
        keep_alive=host.blocks.keep_alive,
        limit_s=block_limit_s,
    )
    admin = AdminServer(
        LOOPBACK,
        options.settings.admin_port,
        host.probes.by_name(),
        metrics.registry,
        watch=watch,
        is_alive=host.probes.is_alive,
        forgiven=FORGIVEN,
        socket_path=place.socket_path if place else None,
    )
    reloader = Reloader(project, reading, host, manifest, paths=options.paths, part=part)
    reloads = ReloadLoop(reloader.reload, reloader.places, polls=options.reload_polls)
    requests = ReloadRequests(partial(reloader.reload, retry=True))
    await admin.start()
    watch.start()
    try:
        await signals.unless_stopped(host.start())
        if not host.has_failed:
            announce.ready(admin_port=admin.port, functions=len(functions))
            if host_options.services:
                _tell_missing(manifest)
        collector.freeze()
        signals.on_reload(requests.hang_up)
        if link is not None:
            _follow_supervisor(link, requests, project)
        elif options.reload:
            reloads.start()
        await _until_stopped(host, signals, options.settings.grace_s, announce)
    finally:
        await reloads.stop()
        await requests.stop()
        await reloader.stop()
        watch.stop()
        await admin.stop()
    announce.stopped()


def _tell_missing(manifest: Manifest) -> None:
    for name, needed_by in find_missing(manifest).items():
        log.warning(
            "A function that others need is in no manifest here; another host must run it",
            function=name,
            needed_by=needed_by,
        )


def _follow_supervisor(link: SupervisorLink, requests: ReloadRequests, project: Project) -> None:
    """Reload when the supervisor asks, and tell it which data files this worker has read."""

    def report(number: int, changes: list[FunctionChange]) -> None:
        link.tell_data_files(project.data_files())
        link.report(number, changes)

    link.tell_data_files(project.data_files())
    link.on_reload(lambda number: requests.ask(partial(report, number)))


async def _until_stopped(
    host: Host, signals: StopSignals, grace_s: float, announce: Announcements
) -> None:
    """Serve until a signal, or until the host fails for good."""
    stop = asyncio.create_task(signals.drain.wait())
    failed = asyncio.create_task(host.wait_for_failure())
    try:
        await asyncio.wait({stop, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done() and isinstance(failed.exception(), Unavailable):
            grace_s = 0.0  # Without a connection, finished messages cannot be settled.
        announce.draining(host.held())
        drain = asyncio.create_task(host.drain(grace_s))
        at_once = asyncio.create_task(signals.at_once.wait())
        await asyncio.wait({drain, at_once}, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        if not drain.done():
            log.warning("Stopping at once; unfinished messages go back to their stream")
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
            await host.stop()
        else:
            await drain
        if failed.done():
            await failed
    finally:
        for task in (stop, failed):
            task.cancel()
        await asyncio.gather(stop, failed, return_exceptions=True)


def _reduced(manifest: Manifest, place: WorkerPlace | None) -> Manifest:
    """The manifest with only the functions of one worker process."""
    if place is None:
        return manifest
    functions = {
        name: spec
        for name, spec in manifest.functions.items()
        if (name == place.worker.function if place.worker.function else not spec.isolate)
    }
    return manifest.model_copy(update={"functions": functions})


def _read_for_one_process(paths: Sequence[Path], environment: Mapping[str, str]) -> Manifest:
    """Read the manifest of a host that has no worker processes.

    Raises:
        ConfigError: the manifest is wrong, or a function asks for a process of its own.
    """
    manifest = read(paths, environment)
    problems = [
        Problem(
            manifest.positions.where("functions", name, "isolate"),
            f"functions.{name}.isolate",
            "a process of its own needs a supervisor, which this host was started without",
            "start the host again",
        )
        for name, spec in manifest.functions.items()
        if spec.isolate
    ]
    if problems:
        raise ConfigError(problems)
    return manifest


__all__ = ["ServeOptions", "WorkerPlace", "serve", "serve_as_worker"]
