"""Creates and compares the streams and consumers that a process's functions pull from."""

from collections.abc import Callable, Mapping, Sequence

from runtime.broker.connection import Broker
from runtime.broker.drift import Change, without_memory
from runtime.broker.leases import with_leases
from runtime.broker.pull_source import PullSource
from runtime.broker.stream_configs import (
    FUNCTION_METADATA,
    MAILBOX,
    SCHEDULES,
    Wanted,
    tick_consumer,
)
from runtime.broker.streams import ensure, wanted_objects
from runtime.broker.streams import inspect as inspect_streams
from runtime.broker.ticks import TICK_ACK_WAIT_S, tick_subject, with_ticks
from runtime.drift_watch import DriftWatch
from runtime.errors import ConfigError, Unavailable
from runtime.host_options import HostOptions
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.manifest.model import ConsumerSpec
from runtime.message import Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.host")


def with_own_streams(manifest: Manifest) -> Manifest:
    """The manifest with the streams of leases and ticks that its functions need."""
    return with_leases(with_ticks(manifest))


class FunctionStreams:
    """The streams and consumers that the functions of a process need.

    Args:
        manifest: with the streams of leases and ticks.
        functions: the functions of this process, by name.
        options: whether streams and consumers may be created.
        broker: the connection.
        drift: watches the wanted streams and consumers.
        restore: converts a copy from the mailbox to the original message.
    """

    def __init__(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        options: HostOptions,
        *,
        broker: Broker,
        drift: DriftWatch,
        restore: Callable[[Message], Message],
    ) -> None:
        self._manifest = manifest
        self._functions = dict(functions)
        self._options = options
        self._broker = broker
        self._drift = drift
        self._restore = restore

    def agrees_with(self, manifest: Manifest) -> bool:
        """Whether a manifest asks for the same streams and consumers as the one before."""
        wanted = [wanted_objects(self._broker, each) for each in (self._manifest, manifest)]
        return wanted[0] == wanted[1]

    async def follow(self, manifest: Manifest) -> None:
        """Create and update the streams and consumers of another manifest; nothing is deleted.

        Raises:
            ConfigError: JetStream cannot make a change, or would drop messages by it; nothing was
                changed.
            Unavailable: JetStream does not answer.
        """
        before, self._manifest = self._manifest, manifest
        try:
            await self.prepare()
        except BaseException:
            self._manifest = before
            raise

    def serve(self, functions: Mapping[str, Function]) -> None:
        """Watch the drift of the consumers of these functions from now on."""
        self._functions = dict(functions)
        self._drift.watch_only(self._watched_here())

    async def prepare(self) -> None:
        """Create and update the manifest's streams and consumers, or only log the differences.

        Raises:
            ConfigError: the manifest or the environment must be changed.
            Unavailable: JetStream does not answer.
        """
        known = []
        if self._options.bind_only:
            known = await inspect_streams(self._broker, self._manifest)
            for change in known:
                log.warning("JetStream differs from the manifest", change=str(change))
        else:
            changes = await ensure(self._broker, self._manifest)
            # Not logged: a restarted server has only lost its memory streams.
            _log_changes(without_memory(changes))
        self._drift.watch(self._watched_here(), known)

    def _watched_here(self) -> list[Wanted]:
        """The streams and consumers whose drift this process reports.

        With several processes, one process reports the shared ones, and the process of an isolated
        function reports the function's own.
        """
        if not self._options.services:
            return []
        owners = [
            (each, (each.config.get("metadata") or {}).get(FUNCTION_METADATA))
            for each in wanted_objects(self._broker, self._manifest)
        ]
        return [
            each
            for each, owner in owners
            if owner in self._functions
            or (self._options.sweeps and owner not in self._manifest.functions)
        ]

    def sources_of(self, function: Function) -> list[PullSource]:
        """The consumers that a function pulls from: its stream's, then its mailbox's."""
        spec, name = function.spec, function.name
        if spec.consumer:
            stream, durable = spec.consumer.stream, spec.consumer.durable_of(name)
            subjects = spec.consumer.filter_subjects or self._manifest.streams[stream].subjects
            ack_wait_s = mailbox_ack_wait_s = spec.consumer.ack_wait
        elif spec.schedule:
            stream, durable = SCHEDULES, tick_consumer(name)
            subjects, ack_wait_s = (tick_subject(name),), TICK_ACK_WAIT_S
            mailbox_ack_wait_s = ConsumerSpec().ack_wait
        else:
            return []
        return [
            PullSource(stream, durable, subjects, ack_wait_s, self._recreate),
            PullSource(
                MAILBOX,
                name,
                (f"mailbox.ready.{name}",),
                mailbox_ack_wait_s,
                self._recreate,
                self._restore,
            ),
        ]

    async def _recreate(self) -> None:
        """Create a deleted consumer again.

        Raises:
            Unavailable: this process may not, so a person must create it.
        """
        try:
            if self._options.bind_only:
                await inspect_streams(self._broker, self._manifest)
            else:
                _log_changes(await ensure(self._broker, self._manifest))
        except ConfigError as refusal:
            raise Unavailable("JetStream", str(refusal)) from refusal


def _log_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        log.debug("JetStream changed", change=str(change))
    if changes:
        log.info("JetStream was changed to agree with the manifest", changes=len(changes))


__all__ = ["FunctionStreams", "with_own_streams"]
