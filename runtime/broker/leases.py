"""Leases: which host does what only one host may do at a time.

The stream `LEASES` keeps one record for each lease, on `leases.{name}`. A record is written on the
condition that the one before it is still the last, so that of several hosts one succeeds, whatever
the others know or believe.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from runtime.broker import stored
from runtime.broker.connection import Broker, Subscription
from runtime.errors import PublishFailed, Unsendable
from runtime.manifest.model import Manifest, StreamSpec
from runtime.message import Message

LEASES = "LEASES"


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the stream says of a lease.

    Attributes:
        sequence: the record's, which the next one must name; 0 where there is none yet.
        holder: who holds it; empty when nobody does.
        state: what the holder has left for its successor.
    """

    sequence: int
    holder: str = ""
    state: dict[str, Any] | None = None


def with_leases(manifest: Manifest) -> Manifest:
    """The manifest with the stream of leases, if a function needs one."""
    if not any(spec.ordered_by for spec in manifest.functions.values()):
        return manifest
    replicas = max((spec.replicas for spec in manifest.streams.values()), default=1)
    stream = StreamSpec(
        subjects=("leases.>",),
        max_msgs_per_subject=1,
        description="which host works on an ordered function",
    )
    if replicas > 1:
        stream = stream.model_copy(update={"replicas": replicas})
    return manifest.model_copy(update={"streams": {**manifest.streams, LEASES: stream}})


class LeaseBook:
    """Reads and writes the records of one lease."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self._subject = f"leases.{name}"

    async def read(self) -> LeaseRecord:
        """The last record.

        Raises:
            Unavailable: JetStream does not answer.
        """
        found = await stored.last(self._broker, LEASES, self._subject)
        return _parse(found) if found is not None else LeaseRecord(0)

    async def write(self, holder: str, state: dict[str, Any], after: int) -> int | None:
        """Write a record that follows the one with sequence `after`; its sequence.

        None when another one has followed that already.

        Raises:
            PublishFailed, Unavailable: it is not known whether it was written.
        """
        payload = json.dumps({"holder": holder, "state": state}).encode()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        try:
            ack = await self._broker.publish(self._subject, payload, headers=headers)
        except Unsendable as refusal:
            raise PublishFailed(self._subject, refusal.reason) from refusal
        except PublishFailed:
            found = await self.read()
            if found.sequence == after:
                raise
            # What was lost may be the confirmation, of this record or of one before.
            return found.sequence if holder and found.holder == holder else None
        return ack.sequence

    async def watch(self, callback: Callable[[Message], Awaitable[None] | None]) -> Subscription:
        """Have `callback` called when somebody writes a record.

        Raises:
            Unavailable: the connection is closed.
        """
        return await self._broker.subscribe(self._subject, callback)


def _parse(found: Message) -> LeaseRecord:
    content = json.loads(found.data)
    return LeaseRecord(found.sequence, content["holder"], content["state"])
