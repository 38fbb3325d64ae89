"""Which host has which session: leases in a stream, so that a dead host's session finds another.

A broker keeps messages for a session whose host is gone, and gives them to nobody else. So the
sessions have names that belong to no host, and each is with the host that holds its place: one
record in stream `MQTT_BRIDGE`, written on the condition that there is none, renewed while the host
lives, and removed by the stream's `max_age` when it does not. Two hosts that believe to hold one
place do no harm: the broker ends the older connection of a session.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

import orjson

from runtime import Context, NoAnswer, PublishFailed, Unavailable

STREAM = "MQTT_BRIDGE"
_PLACES = "mqtt_bridge.places."
_HOSTS = "mqtt_bridge.hosts."
_SAFE_SHARE = 0.7
"""The share of a record's life after which a host that could not renew it gives the place up."""
_RENEW_SHARE = 0.2
_NS = 1_000_000_000


class Seen(NamedTuple):
    """What the stream says.

    Attributes:
        hosts: hosts that live, this one included.
        taken: places with a record.
    """

    hosts: int
    taken: frozenset[int]


class Plan(NamedTuple):
    """What a host does next: claims one place, gives one up, or neither."""

    claim: int | None = None
    release: int | None = None


def plan(sessions: int, held: Collection[int], seen: Seen) -> Plan:
    """Share `sessions` places evenly: no host holds more than its share rounded up."""
    share = -(-sessions // max(1, seen.hosts))
    if len(held) > share:
        return Plan(release=max(held))
    free = [place for place in range(1, sessions + 1) if place not in seen.taken]
    if free and len(held) < share:
        # Hosts that start together begin at different ones.
        return Plan(claim=secrets.choice(free))
    return Plan()


class Places:
    """The places of this process.

    Renewing may run beside all else: what is done with one place is done one after the other.

    Args:
        ctx: of the function.
        life_s: how long a record is to live; where the stream keeps it for less, that counts.

    Attributes:
        stream_life_s: how long the stream keeps a record, 0 for ever; None until `look` has asked.
    """

    def __init__(self, ctx: Context, life_s: float) -> None:
        self.stream_life_s: float | None = None
        self._ctx = ctx
        self._life_s = life_s
        self._me = secrets.token_hex(8)
        self._host_sequence = 0
        self._records: dict[int, tuple[int, float]] = {}
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def renew_every_s(self) -> float:
        """How often to call `renew`."""
        return self._kept_s * _RENEW_SHARE

    @property
    def _kept_s(self) -> float:
        return min(self._life_s, self.stream_life_s or self._life_s)

    @property
    def held(self) -> frozenset[int]:
        """The places whose records this process has written lately enough."""
        now_s = asyncio.get_running_loop().time()
        return frozenset(
            place
            for place, (_, written_s) in self._records.items()
            if now_s - written_s < self._kept_s * _SAFE_SHARE
        )

    async def renew(self) -> None:
        """Renew the records of this host and of its places; forget a place that was lost.

        Raises:
            Unavailable: JetStream does not answer.
        """
        self._host_sequence = await self._write(f"{_HOSTS}{self._me}", None)
        await asyncio.gather(*map(self._renew, list(self._records)))

    async def look(self) -> Seen:
        """What the stream has now, this host included.

        Raises:
            Unavailable: JetStream does not answer.
        """
        if not self._host_sequence:
            await self.renew()
        question = orjson.dumps({"subjects_filter": "mqtt_bridge.>"})
        reply = await self._ctx.request(f"$JS.API.STREAM.INFO.{STREAM}", question)
        document = orjson.loads(reply.data)
        if "error" in document:
            raise NoAnswer(f"stream {STREAM}", str(document["error"].get("description")))
        self.stream_life_s = document["config"]["max_age"] / _NS
        subjects = document["state"].get("subjects") or {}
        hosts = sum(subject.startswith(_HOSTS) for subject in subjects)
        taken = (subject.removeprefix(_PLACES) for subject in subjects)
        return Seen(hosts, frozenset(int(place) for place in taken if place.isdecimal()))

    async def claim(self, place: int) -> bool:
        """Take a place that is free; False when another host was faster.

        Raises:
            Unavailable: JetStream does not answer.
        """
        async with self._locks[place]:
            return await self._hold(place, 0)

    async def release(self, place: int) -> None:
        """Give a place up at once; without an answer its record ends by itself."""
        async with self._locks[place]:
            sequence, _ = self._records.pop(place, (0, 0.0))
            if sequence:
                await self._delete(sequence)

    async def leave(self) -> None:
        """Give everything up, so that the other hosts' shares grow at once."""
        for place in list(self._records):
            await self.release(place)
        if self._host_sequence:
            await self._delete(self._host_sequence)

    async def _renew(self, place: int) -> None:
        async with self._locks[place]:
            sequence, _ = self._records.get(place, (0, 0.0))
            if sequence:
                await self._hold(place, sequence)

    async def _hold(self, place: int, last_sequence: int) -> bool:
        began_s = asyncio.get_running_loop().time()
        try:
            sequence = await self._write(f"{_PLACES}{place}", last_sequence)
        except PublishFailed as failure:
            if not failure.is_refused:
                raise
            self._records.pop(place, None)
            return False
        self._records[place] = (sequence, began_s)
        return True

    async def _write(self, subject: str, last_sequence: int | None) -> int:
        expected = (
            {}
            if last_sequence is None
            else {"Nats-Expected-Last-Subject-Sequence": str(last_sequence)}
        )
        ack = await self._ctx.publish(
            subject, self._me.encode(), msg_id=secrets.token_hex(12), headers=expected
        )
        return ack.sequence

    async def _delete(self, sequence: int) -> None:
        try:
            await self._ctx.request(
                f"$JS.API.STREAM.MSG.DELETE.{STREAM}",
                orjson.dumps({"seq": sequence, "no_erase": True}),
            )
        except Unavailable:
            return


__all__ = ["STREAM", "Places", "Plan", "Seen", "plan"]
