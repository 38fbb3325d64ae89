"""Supervisor of worker processes: starts, restarts with backoff, drains and stops them."""

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.deployments.function_change import FunctionChange
from runtime.errors import ConfigError, Problem
from runtime.observe.aggregate import probe_name, readiness_of
from runtime.observe.logs import get_logger
from runtime.process.worker_channel import WorkerLink

log = get_logger("runtime.workers")

RESTART_FIRST_S = 0.5
RESTART_CAP_S = 30.0
STEADY_S = 30.0
"""After this long without a crash the waits start small again."""
READY_POLL_S = 0.1
CONFIG_ERROR_CODE = 78
"""Exit code of a worker that cannot run with its configuration: EX_CONFIG of sysexits.h. Not 2,
with which a function may end its process."""
DRAIN_MARGIN_S = 30.0
"""How long a worker may run after its grace period, for `stop` hooks and its last flush."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The part of the functions that one worker process runs.

    Attributes:
        name: unique; the label of its metrics.
        function: the isolated function that the worker runs; None for all that are not isolated.
        services: whether service functions run in the worker.
        peers: number of processes on this host, this one included, that run the same functions.
    """

    name: str
    function: str | None = None
    services: bool = True
    peers: int = 1


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """The place of a worker process under its supervisor.

    Attributes:
        worker: the functions that it runs.
        socket_path: Unix socket on which it serves readiness and metrics to the supervisor.
        succeeds_crash: whether the process before it ended unexpectedly.
    """

    worker: WorkerSpec
    socket_path: Path
    succeeds_crash: bool = False

    def encode(self) -> str:
        """Encode the place as a command-line argument."""
        worker = {name: getattr(self.worker, name) for name in WorkerSpec.__slots__}
        socket_path = str(self.socket_path)
        return json.dumps(
            {"worker": worker, "socket": socket_path, "succeeds_crash": self.succeeds_crash}
        )

    @classmethod
    def decode(cls, text: str) -> "WorkerPlace":
        """Decode the text of `encode`."""
        place = json.loads(text)
        return cls(WorkerSpec(**place["worker"]), Path(place["socket"]), place["succeeds_crash"])


def divide(functions: Mapping[str, bool], count: int) -> list[WorkerSpec]:
    """Divide the functions into worker processes.

    There is a process for functions that are not isolated even when all are isolated: the host's
    own work, such as sweeping, must not run in processes that may crash or hang.

    Args:
        functions: by name, whether the function is isolated.
        count: number of processes for the functions that are not isolated.
    """
    return [
        *(WorkerSpec(str(n), services=n == 1, peers=count) for n in range(1, count + 1)),
        *(WorkerSpec(f"isolated-{name}", name) for name, isolated in functions.items() if isolated),
    ]


class WorkerSupervisor:
    """Starts worker processes, restarts them with backoff, drains and stops them.

    A worker's standard input is a socket of the supervisor: when the supervisor dies, by whatever
    cause, the socket closes and the worker drains by itself.

    Args:
        command: the worker's command, to which its place is appended.
        environment: environment of the workers; contains the servers' addresses.
        workers: the worker processes to run.

    Attributes:
        restarts: how often each worker was restarted.
        socket_paths: by worker, the Unix socket on which it serves readiness and metrics.
        forgiven: probes whose failure leaves the host ready: that of the last reload, and those of
            workers of an isolated function that were ready once.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        workers: Sequence[WorkerSpec],
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._workers: dict[str, WorkerSpec] = {}
        self.restarts: dict[str, int] = {}
        self.forgiven: set[str] = {"reload"}
        # In a temporary directory: a Unix socket's path may have 107 bytes, a data directory's can
        # be longer.
        self._directory = Path(tempfile.mkdtemp(prefix="runtime-workers-"))
        self.socket_paths: dict[str, Path] = {}
        self._sockets = 0
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._links: dict[str, WorkerLink] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._ending = asyncio.Event()
        self._reloads = 0
        self._reloaded = asyncio.Event()
        for worker in workers:
            self._add(worker)

    async def start(self) -> None:
        """Start every worker."""
        for worker in self._workers.values():
            self._start(worker, must_start=True)

    async def reload(self) -> dict[str, list[FunctionChange]]:
        """Let every worker reload what is on disk; return the changes by worker.

        A worker that waits for its restart is started now.
        """
        self._reloads += 1
        number, links = self._reloads, dict(self._links)
        self._wake()
        reports = await asyncio.gather(*(link.reload(number) for link in links.values()))
        return dict(zip(links, reports, strict=True))

    def data_files(self) -> frozenset[Path]:
        """The data files that the modules of any worker read while imported or started."""
        return frozenset().union(*(link.data_files for link in self._links.values()))

    async def follow(self, workers: Sequence[WorkerSpec]) -> list[WorkerSpec]:
        """Start the workers that are new, and drain those that are gone; return the new ones."""
        wanted = {worker.name: worker for worker in workers}
        gone = [name for name in self._workers if name not in wanted]
        for name in gone:
            del self._workers[name], self.socket_paths[name]
            if (process := self._processes.get(name)) is not None and process.returncode is None:
                process.terminate()
        self._wake()
        added = [worker for name, worker in wanted.items() if name not in self._workers]
        for worker in added:
            if (before := self._keepers.get(worker.name)) is not None:
                await asyncio.wait({before})  # Its process drains.
            self._add(worker)
            self.forgiven.add(probe_name(worker.name))
            self._start(worker, must_start=False)
        return added

    async def wait_until_one_is_ready(self, name: str) -> None:
        """Return when a worker is ready, or another reload has ended it."""
        probe = readiness_of(self.socket_paths[name])
        while name in self._workers and await probe() is not None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(READY_POLL_S)

    async def check(self) -> str | None:
        """Probe: every worker runs, except those of an isolated function."""
        missing = [
            name
            for name, worker in self._workers.items()
            if worker.function is None
            and (name not in self._processes or self._processes[name].returncode is not None)
        ]
        return f"NOT_RUNNING {' '.join(missing)}" if missing else None

    async def wait_until_ready(self) -> None:
        """Return when every worker is ready.

        Raises:
            ConfigError: a worker cannot run with its configuration.
        """
        probes = [readiness_of(path) for path in self.socket_paths.values()]
        while True:
            for keeper in self._keepers.values():
                if keeper.done():
                    await keeper
            answers = await asyncio.gather(*(probe() for probe in probes), return_exceptions=True)
            for worker, answer in zip(self._workers.values(), answers, strict=True):
                if worker.function and answer is None:
                    self.forgiven.add(probe_name(worker.name))
            if all(answer is None for answer in answers):
                return
            await asyncio.sleep(READY_POLL_S)

    async def wait_for_failure(self) -> None:
        """Wait until a worker cannot run with its configuration, and raise that.

        Raises:
            ConfigError: names the worker; the worker itself has logged what is wrong.
        """
        while True:
            woken = asyncio.create_task(self._reloaded.wait())
            keepers = [each for each in self._keepers.values() if not each.done()]
            try:
                await asyncio.wait({woken, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                woken.cancel()
            for keeper in self._keepers.values():
                if keeper.done():
                    await keeper

    async def drain(self, grace_s: float, at_once: asyncio.Event) -> None:
        """Drain all workers; return when they have ended, or at once when `at_once` is set.

        In every worker the endpoints end after their callers have ended in all workers.
        """
        self._ending.set()
        self._wake()
        self._signal(signal.SIGTERM)
        releasing = asyncio.create_task(self._release_endpoints())
        ended = asyncio.create_task(self._wait_for_all())
        ended_at_once = asyncio.create_task(at_once.wait())
        await asyncio.wait(
            {ended, ended_at_once},
            timeout=grace_s + DRAIN_MARGIN_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in (releasing, ended, ended_at_once):
            task.cancel()
        await asyncio.gather(releasing, ended, ended_at_once, return_exceptions=True)

    async def stop(self) -> None:
        """Kill the workers that still run."""
        self._ending.set()
        self._wake()
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        self._signal(signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self._processes.values()))
        await asyncio.gather(*(link.close() for link in self._links.values()))
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)
        self._directory.rmdir()

    def _add(self, worker: WorkerSpec) -> None:
        self._workers[worker.name] = worker
        self.restarts.setdefault(worker.name, 0)
        self._sockets += 1
        number = self._sockets
        self.socket_paths[worker.name] = self._directory / f"{number}.sock"

    def _start(self, worker: WorkerSpec, *, must_start: bool) -> None:
        """Keep a worker's process running.

        Args:
            worker: the worker.
            must_start: whether the supervisor ends when the process cannot run as it is configured.
        """
        keeping = self._keep(worker, must_start=must_start)
        self._keepers[worker.name] = asyncio.create_task(keeping, name=f"worker {worker.name}")

    async def _keep(self, worker: WorkerSpec, *, must_start: bool) -> None:
        pause_s = RESTART_FIRST_S
        crashed = False
        while not self._is_over(worker):
            began_s = time.monotonic()
            code = await self._run(WorkerPlace(worker, self.socket_paths[worker.name], crashed))
            if self._is_over(worker):
                return
            if code == CONFIG_ERROR_CODE and must_start and not crashed:
                wrong, remedy = "cannot run as it is configured", "see what it said above"
                raise ConfigError([Problem(f"worker {worker.name}", "", wrong, remedy)])
            crashed = True
            if time.monotonic() - began_s > STEADY_S:
                pause_s = RESTART_FIRST_S
            log.error(
                "A worker ended, it is started again",
                worker=worker.name,
                ended_by=_name_end(code),
                pause_s=pause_s,
            )
            await self._pause(pause_s)
            pause_s = min(RESTART_CAP_S, pause_s * 2)
            self.restarts[worker.name] += 1

    def _is_over(self, worker: WorkerSpec) -> bool:
        return self._ending.is_set() or self._workers.get(worker.name) is not worker

    def _wake(self) -> None:
        """End the pauses before restarts: another reload may have mended what ended a worker."""
        reloaded, self._reloaded = self._reloaded, asyncio.Event()
        reloaded.set()

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._reloaded.wait()
        except TimeoutError:
            return

    async def _run(self, place: WorkerPlace) -> int:
        """Run a worker's process until it ends; return its exit code."""
        name = place.worker.name
        link = self._links[name] = WorkerLink(self._ending.is_set)
        try:
            process = self._processes[name] = await asyncio.create_subprocess_exec(
                *self._command,
                "--worker-place",
                place.encode(),
                stdin=link.standard_input.fileno(),
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
            if self._ending.is_set():
                # A drain that began meanwhile has signalled only the processes that existed.
                process.terminate()
            await link.open()
            return await process.wait()
        except OSError as failure:
            # The machine may be out of memory or processes for a while.
            log.error("A worker cannot be started", worker=name, reason=str(failure))  # noqa: TRY400
            return os.EX_OSERR
        finally:
            await link.close()

    async def _release_endpoints(self) -> None:
        """Let endpoints end in all workers when no worker has callers left."""
        links = list(self._links.values())
        await asyncio.gather(*(link.callers_ended.wait() for link in links))
        for link in links:
            link.let_endpoints_end()

    async def _wait_for_all(self) -> None:
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(number)


def _name_end(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
