"""Warns when a stream or consumer on the server no longer agrees with the manifest.

A consumer that a function pulls from is compared whenever the lag watch reads its information,
every 5 s. All other declared objects are read every 30 s. JetStream publishes an advisory when a
stream is changed, but none when a consumer is changed (observed with nats-server 2.15), so the
watch polls.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.broker.drift import Change, drift
from runtime.broker.field_text import show_value
from runtime.broker.stream_configs import FUNCTION_METADATA, Wanted
from runtime.broker.streams import find_drift
from runtime.errors import Unavailable
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.drift")

EVERY_S = 30.0
SHOWN_CHANGES = 5
"""The most differences that a function's metadata names."""


class DriftWatch:
    """Compares JetStream with the manifest, and warns once for each field that differs.

    Args:
        broker: the connection.
        metrics: counts the fields that differ.
    """

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics
        self._wanted: dict[str, Wanted] = {}
        self._changes: dict[str, list[Change]] = {}
        self._by_lag: set[str] = set()
        self._task = SupervisedTask(self._compare_periodically, "drift watch")

    def watch(self, wanted: Iterable[Wanted], known: Iterable[Change] = ()) -> None:
        """Add streams and consumers to compare.

        Args:
            wanted: their configurations in the manifest.
            known: differences that were logged before.
        """
        told = list(known)
        for each in wanted:
            changes = [change for change in told if change.object == each.name]
            self._wanted[each.name] = each
            self._changes[each.name] = changes
            self._metrics.drifted_fields[each.name] = len(changes)

    def watch_only(self, wanted: Iterable[Wanted]) -> None:
        """Compare these streams and consumers and no others; what is known of them is kept."""
        kept = {each.name: each for each in wanted}
        for name in self._wanted.keys() - kept.keys():
            del self._wanted[name], self._changes[name]
            self._metrics.drifted_fields.pop(name, None)
            self._by_lag.discard(name)
        self.watch(each for name, each in kept.items() if name not in self._wanted)
        self._wanted |= kept

    def start(self) -> None:
        """Start polling."""
        self._task.start()

    async def stop(self) -> None:
        """Stop polling."""
        await self._task.stop()

    def compare_consumer(self, stream: str, durable: str, config: Mapping[str, Any]) -> None:
        """Compare a consumer with a configuration that another task has read anyway."""
        name = f"consumer {stream}/{durable}"
        if name in self._wanted:
            self._by_lag.add(name)
            self._record(name, drift(self._wanted[name], config))

    def of_function(self, function: str) -> list[Change]:
        """The differences in a function's consumers and in the stream that it consumes."""
        consumers = [
            each
            for each in self._wanted.values()
            if (each.config.get("metadata") or {}).get(FUNCTION_METADATA) == function
        ]
        names = dict.fromkeys(
            name for each in consumers for name in (each.name, f"stream {each.stream}")
        )
        return [change for name in names for change in self._changes.get(name, ())]

    async def _compare_periodically(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            for name, wanted in list(self._wanted.items()):
                if name in self._by_lag:
                    continue
                try:
                    changes = await find_drift(self._broker, wanted)
                    if self._wanted.get(name) is wanted:  # Else a reload has changed it meanwhile.
                        self._record(name, changes)
                except (Unavailable, ApiError):
                    # Unknown: the last differences stay until JetStream answers again.
                    break

    def _record(self, name: str, changes: Sequence[Change]) -> None:
        before = {change.field: change for change in self._changes[name]}
        after = {change.field: change for change in changes}
        for field, change in after.items():
            if field not in before or before[field].found != change.found:
                _warn(change)
        for field in before.keys() - after.keys():
            log.info("JetStream agrees with the manifest again", object=name, field=field)
        self._changes[name] = list(changes)
        self._metrics.drifted_fields[name] = len(changes)


def describe_drift(changes: Sequence[Change]) -> str:
    """One line for a person, such as a function's metadata; empty when nothing differs."""
    shown = [_describe(change) for change in changes[:SHOWN_CHANGES]]
    more = len(changes) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def _describe(change: Change) -> str:
    if not change.field:
        return f"{change.object} is missing"
    found, wanted = (show_value(change.field, each) for each in (change.found, change.wanted))
    return f"{change.object}: {change.field} is {found}, the manifest says {wanted}"


def _warn(change: Change) -> None:
    if not change.field:
        log.warning("JetStream no longer agrees with the manifest", missing=change.object)
        return
    log.warning(
        "JetStream no longer agrees with the manifest",
        object=change.object,
        field=change.field,
        manifest=show_value(change.field, change.wanted),
        server=show_value(change.field, change.found),
    )


__all__ = ["DriftWatch", "describe_drift"]
