"""Applies what is heard of devices to their rows, and writes each change of status as an event."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from functions.domain.device_activity import OFFLINE_CHANNEL
from functions.domain.device_events import add_events
from functions.domain.named_sql import read_queries
from functions.presence.announcing import Transition, ended_texts, event_of
from functions.presence.decision import Decision, Known, decide
from functions.presence.sessions import EndedSession, Session

if TYPE_CHECKING:
    Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

QUERIES = read_queries(Path(__file__).with_name("queries.sql"))

Device = tuple[str, str]


@dataclass(slots=True)
class Changes:
    """What was heard of some devices, in no order.

    Attributes:
        opened, ended: their sessions.
        seen: when devices were seen.
        sessionless: when those were seen that sent something outside of a session.
        due: devices to decide about without any news.
    """

    opened: list[Session] = field(default_factory=list)
    ended: list[EndedSession] = field(default_factory=list)
    seen: dict[Device, datetime] = field(default_factory=dict)
    sessionless: dict[Device, datetime] = field(default_factory=dict)
    due: list[Device] = field(default_factory=list)

    def split(self, count: int) -> list["Changes"]:
        """The sessions in so many parts at most, each device's in one; each process has its own.

        So several hosts, which hear the same, seldom wait for each other.
        """
        parts = [Changes() for _ in range(count)]
        for session in self.opened:
            parts[hash((session.tenant_id, session.device_id)) % count].opened.append(session)
        for ended in self.ended:
            device = (ended.session.tenant_id, ended.session.device_id)
            parts[hash(device) % count].ended.append(ended)
        return [part for part in parts if part.opened or part.ended]

    def devices(self) -> list[Device]:
        """The devices, in the order in which their rows are locked."""
        found = {(one.tenant_id, one.device_id) for one in self.opened}
        found.update((one.session.tenant_id, one.session.device_id) for one in self.ended)
        return sorted(found.union(self.seen, self.due))


@dataclass(slots=True)
class _Heard:
    """What a batch says of one device."""

    seen_at: datetime | None = None
    ended_at: datetime | None = None
    is_lost: bool = False

    def see(self, at: datetime) -> None:
        self.seen_at = max(at, self.seen_at or at)

    def end(self, ended: EndedSession) -> None:
        if self.ended_at is None or ended.ended_at > self.ended_at:
            self.ended_at, self.is_lost = ended.ended_at, ended.is_lost
        if not ended.is_lost:
            self.see(ended.ended_at)


Apply = Callable[[Changes], Awaitable[None]]


def ended_sessions(
    rows: Sequence[Any], at: datetime, *, is_lost: bool = False
) -> list[EndedSession]:
    """The ends of open sessions, as rows of the database, that nobody told of."""
    return [
        EndedSession(
            Session(
                row["server_id"],
                row["connection_id"],
                row["tenant_id"],
                row["device_id"],
                row["started_at"],
                row["started_at"],
            ),
            at,
            is_lost,
        )
        for row in rows
    ]


async def settle(
    connection: "Connection",
    changes: Changes,
    *,
    timeout_s: int,
    horizon: datetime,
    now: datetime | None = None,
) -> list[Transition]:
    """Apply changes in the caller's transaction, and decide about their devices.

    The same changes once more change nothing, so every host may apply all of them.

    Args:
        connection: in a transaction.
        changes: of at most some thousand devices; devices that are not registered are left out.
        timeout_s: after which silence a device without a session is offline.
        horizon: up to when all messages of devices are known; later silence proves nothing.
        now: what is heard of a later time was heard now, as the clock of a server is ahead; None
            for the horizon.

    Returns:
        The changes of status, whose events the transaction holds.
    """
    devices = changes.devices()
    if not devices:
        return []
    rows = await _lock(connection, devices)
    concerned = await _apply_sessions(connection, changes)
    concerned.update(changes.seen, changes.due)
    if not concerned:
        # Another host has applied all of it.
        return []
    saved, transitions = await _decide_all(
        connection,
        [row for row in rows if (row["tenant_id"], row["device_id"]) in concerned],
        changes,
        timeout_s=timeout_s,
        horizon=horizon,
        now=now or horizon,
    )
    if saved:
        await connection.execute(QUERIES["save"], *_columns(saved))
    if transitions:
        await add_events(connection, map(event_of, transitions))
        if texts := ended_texts(transitions):
            await connection.execute(QUERIES["tell_ended"], OFFLINE_CHANNEL, texts)
    return transitions


async def _decide_all(
    connection: "Connection",
    rows: Sequence[asyncpg.Record],
    changes: Changes,
    *,
    timeout_s: int,
    horizon: datetime,
    now: datetime,
) -> tuple[list[tuple[object, ...]], list[Transition]]:
    """The rows to save, and the changes of status."""
    keys = [(row["tenant_id"], row["device_id"]) for row in rows]
    found = await connection.fetch(QUERIES["find_open"], *_columns(keys)) if keys else []
    open_since = {(row["tenant_id"], row["device_id"]): row["open_since"] for row in found}
    heard = _heard(changes, await _newest_rows(connection, rows, changes.due))
    saved: list[tuple[object, ...]] = []
    transitions = []
    for device, row in zip(keys, rows, strict=True):
        said = heard.get(device, _Heard())
        known = Known(
            status=row["status"],
            changed_at=row["changed_at"],
            last_seen_at=_later(row["last_seen_at"], said.seen_at, now),
            sessionless_at=_later(row["sessionless_at"], changes.sessionless.get(device), now),
            open_since=_later(None, open_since.get(device), now),
            session_ended_at=_later(row["session_ended_at"], said.ended_at, now),
            is_lost=said.is_lost,
            own_timeout_s=row["presence_timeout_s"],
            timeout_s=timeout_s,
        )
        decision = decide(known, horizon)
        if decision is None or not _is_news(row, known, decision):
            continue
        saved.append(_saved(row, known, decision))
        if decision.status != row["status"]:
            number = row["transitions"] + 1
            status, reason, at, _ = decision
            seen_at = known.last_seen_at
            transitions.append(Transition(*device, number, status, reason, at, seen_at))
    return saved, transitions


async def _lock(connection: "Connection", devices: Sequence[Device]) -> list[asyncpg.Record]:
    """The rows of those of the devices that are registered, locked in the order of their keys."""
    keys = _columns(devices)
    rows: list[asyncpg.Record] = await connection.fetch(QUERIES["lock"], *keys)
    if len(rows) == len(devices):
        return rows
    await connection.execute(QUERIES["add_devices"], *keys)
    added: list[asyncpg.Record] = await connection.fetch(QUERIES["lock"], *keys)
    return added


def _is_news(row: asyncpg.Record, known: Known, decision: Decision) -> bool:
    return bool(
        decision.status != row["status"]
        or decision.check_at != row["check_at"]
        or known.last_seen_at != row["last_seen_at"]
        or known.session_ended_at != row["session_ended_at"]
        or known.sessionless_at != row["sessionless_at"]
    )


def _saved(row: asyncpg.Record, known: Known, decision: Decision) -> tuple[object, ...]:
    is_change = decision.status != row["status"]
    return (
        *(row["tenant_id"], row["device_id"], decision.status),
        decision.reason if is_change else None,
        decision.at if is_change else row["changed_at"],
        row["transitions"] + is_change,
        *(known.last_seen_at, known.session_ended_at, decision.check_at, known.sessionless_at),
    )


async def _apply_sessions(connection: "Connection", changes: Changes) -> set[Device]:
    """The devices for whose sessions that was news."""
    found: list[asyncpg.Record] = []
    if changes.opened:
        columns = _columns(changes.opened)
        found += await connection.fetch(QUERIES["open_sessions"], *columns[:5])
        listed = [each for each in changes.opened if each.known_at > each.started_at]
        if listed:
            servers, ids, *_, known_at = _columns(listed)
            found += await connection.fetch(QUERIES["reopen_sessions"], servers, ids, known_at)
    if changes.ended:
        # Once for each, as one statement may not change a row twice.
        ended = {each.session[:2]: (*each.session[:5], _closed_at(each)) for each in changes.ended}
        found += await connection.fetch(QUERIES["end_sessions"], *_columns(list(ended.values())))
    return {(row["tenant_id"], row["device_id"]) for row in found}


def _closed_at(ended: EndedSession) -> datetime:
    """When a session ended, by its server's clock, to which that server's next listing is compared.

    Of a server that is silent nobody knows that clock, and any listing is later than the session.
    """
    return ended.session.started_at if ended.is_lost else ended.ended_at


async def _newest_rows(
    connection: "Connection", rows: Iterable[asyncpg.Record], due: Iterable[Device]
) -> dict[Device, datetime]:
    """When the devices that are due have sent telemetry since they were seen."""
    wanted = set(due)
    asked = [
        (row["tenant_id"], row["device_id"], row["last_seen_at"])
        for row in rows
        if row["last_seen_at"] and (row["tenant_id"], row["device_id"]) in wanted
    ]
    if not asked:
        return {}
    found = await connection.fetch(QUERIES["find_newest"], *_columns(asked))
    return {(row["tenant_id"], row["device_id"]): row["time"] for row in found}


def _heard(changes: Changes, newest: Mapping[Device, datetime]) -> dict[Device, _Heard]:
    heard: dict[Device, _Heard] = {}
    for source in (changes.seen, newest):
        for device, at in source.items():
            heard.setdefault(device, _Heard()).see(at)
    for session in changes.opened:
        one = heard.setdefault((session.tenant_id, session.device_id), _Heard())
        one.see(session.started_at)
    for ended in changes.ended:
        device = (ended.session.tenant_id, ended.session.device_id)
        heard.setdefault(device, _Heard()).end(ended)
    return heard


def _later(known: datetime | None, heard: datetime | None, now: datetime) -> datetime | None:
    """The later time; what was heard is never of the future."""
    if heard is None:
        return known
    heard = min(heard, now)
    return heard if known is None else max(known, heard)


def _columns(rows: Sequence[tuple[object, ...]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]


__all__ = ["QUERIES", "Apply", "Changes", "Device", "ended_sessions", "settle"]
