"""Publishes the jobs that wait in the outbox, each at least once, and knows which were repeated.

Under a lock, so that one host at a time publishes: take rows, note in `delivery_handovers` that
their publishing begins, publish, and remove the confirmed rows together with the note. A note that
is found when the lock is taken was left by a host that died, or by an outage: its rows may be in
the stream already. They are published again with the same message id, which the stream drops within
its duplicate window, and with a header by which the deliverer finds out later repeats.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from functions.domain.named_sql import read_queries
from functions.domain.outbox import REPEATED_HEADER
from runtime import Context, PubAck, Publication, PublishFailed, Unsendable

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("outbox.sql"))
_MAX_QUEUES = 100
_MAX_BYTES = 8_000_000
_ROUND_S = 5.0
"""After that no more rows of a round are published: its transaction may be idle for 30 s."""
_SAY_EVERY_S = 60.0
_ORDERED_DOTS = 3
TOO_LARGE = "JOB_TOO_LARGE"


class Row(NamedTuple):
    """A row of the outbox."""

    outbox_id: int
    queue: str
    subject: str
    msg_id: str
    body: bytes | None

    @property
    def order(self) -> str | None:
        """What the row is in order with: a route's key, which is the subject's fourth token."""
        return self.subject if self.subject.count(".") >= _ORDERED_DOTS else None


@dataclass(slots=True)
class Round:
    """What became of the rows that one round published.

    Attributes:
        confirmed: the stream has them.
        unsendable: no server takes them.
        unsure: no answer; the stream may have them.
        refused: the stream has said that it does not have them.
        reason: the first failure's.
    """

    confirmed: list[Row] = field(default_factory=list)
    unsendable: list[Row] = field(default_factory=list)
    unsure: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    reason: str = ""

    @classmethod
    def of(
        cls, rows: Sequence[Row], answers: Sequence[PubAck | BaseException], *, is_first: bool
    ) -> "Round":
        """Sort the rows by their answers.

        Args:
            rows: the rows.
            answers: the confirmation or failure of each.
            is_first: whether this was the first try: the stream may have stored an earlier one.

        Raises:
            BaseException: an answer that is no failure to publish.
        """
        done = cls()
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, PubAck):
                done.confirmed.append(row)
            elif isinstance(answer, Unsendable):
                done.unsendable.append(row)
            elif isinstance(answer, PublishFailed):
                done.reason = done.reason or answer.reason
                (done.refused if answer.is_refused and is_first else done.unsure).append(row)
            else:
                raise answer
        return done

    @property
    def failed(self) -> list[Row]:
        """The rows that have to be published again."""
        return self.unsure + self.refused

    def add(self, other: "Round") -> None:
        """Add the rows of another round to this one."""
        self.confirmed += other.confirmed
        self.unsendable += other.unsendable
        self.unsure += other.unsure
        self.refused += other.refused
        self.reason = self.reason or other.reason


class HandOver:
    """Moves rows of the outbox into their streams.

    Args:
        ctx: of the service.
        rows: the most rows of one round.
        wait_s: how long a deliverer lets a repeated job wait for its other copy.

    Attributes:
        is_stuck: none of the last round's rows was taken.
    """

    def __init__(self, ctx: Context, *, rows: int, wait_s: float) -> None:
        self._ctx = ctx
        self._rows = rows
        self._repeated = f"{wait_s:g}"
        self._after = ""
        self.is_stuck = False
        self._trouble = _Trouble(ctx.log)

    async def move(self) -> bool:
        """Publish one round of rows; whether to go on at once.

        False when nothing is left, another host is at it, or the stream takes none.
        """
        pool = self._ctx.postgres
        async with pool.acquire() as connection, connection.transaction():
            if not await connection.fetchval(_QUERIES["lock"]):
                return False
            await connection.execute(_QUERIES["limit_idle_time"])
            rows = await self._take(connection)
            left = await connection.fetch(_QUERIES["find_doubtful"])
            doubtful = {number for one in left for number in range(one["first"], one["beyond"])}
            if not rows:
                if left:
                    await connection.execute(_QUERIES["end"])
                return False
            # On another connection: it must be known even if this transaction is lost.
            await pool.execute(_QUERIES["begin"], [row.outbox_id for row in rows])
            done = await self._publish(rows, doubtful)
            await _finish(connection, done, doubtful)
        self._after = rows[-1].queue
        self.is_stuck = bool(done.failed) and not done.confirmed
        await self._trouble.report(done, pool)
        return not self.is_stuck

    async def _take(self, connection: "Connection") -> list[Row]:
        # While nothing is taken, few rows find out when that changes.
        rows = min(_MAX_QUEUES, self._rows) if self.is_stuck else self._rows
        limits = min(_MAX_QUEUES, rows), rows, _MAX_BYTES
        found = await connection.fetch(_QUERIES["take"], self._after, *limits)
        if not found and self._after:
            found = await connection.fetch(_QUERIES["take"], "", *limits)
        return [Row(*one) for one in found]

    async def _publish(self, rows: Sequence[Row], doubtful: set[int]) -> Round:
        """Publish the rows; of those that are in order, one only when the one before is stored.

        Rows in one order take a confirmation each, so a stream that confirms slowly could hold the
        lock for as long as nobody waits. What is not published within `_ROUND_S` waits for another
        round.
        """
        now_s = asyncio.get_running_loop().time
        ends_s = now_s() + _ROUND_S
        # A job that is delivered has no content any more: its stream had it.
        done = Round([row for row in rows if row.body is None])
        left = sorted(row for row in rows if row.body is not None)
        held_up: set[str | None] = set()
        while left:
            wave, later, seen = [], [], set[str]()
            for row in left:
                if (order := row.order) is not None:
                    if order in seen:
                        later.append(row)
                        continue
                    seen.add(order)
                wave.append(row)
            part = await self._publish_wave(wave, doubtful)
            done.add(part)
            held_up.update(row.order for row in part.failed)
            left = [row for row in later if row.order not in held_up]
            if now_s() >= ends_s:
                break
        return done

    async def _publish_wave(self, rows: Sequence[Row], doubtful: set[int]) -> Round:
        publications = [self._publication(row, doubtful) for row in rows]
        try:
            await self._ctx.publish_many(publications)
        except PublishFailed as failure:
            # Of a single message, the failure is its own outcome.
            return Round.of(rows, failure.outcomes or (failure,), is_first=True)
        except Unsendable:
            # Again, one by one, to learn which it is; what is stored already is a duplicate.
            tries = [
                self._ctx.publish(one.subject, one.data, msg_id=one.msg_id, headers=one.headers)
                for one in publications
            ]
            answers = await asyncio.gather(*tries, return_exceptions=True)
            return Round.of(rows, answers, is_first=False)
        return Round(list(rows))

    def _publication(self, row: Row, doubtful: set[int]) -> Publication:
        headers = {REPEATED_HEADER: self._repeated} if row.outbox_id in doubtful else {}
        return Publication(row.subject, row.body or b"", row.msg_id, headers)


async def _finish(connection: "Connection", done: Round, doubtful: set[int]) -> None:
    gone = [*done.confirmed, *done.unsendable]
    await connection.execute(
        _QUERIES["remove"], [row.queue for row in gone], [row.outbox_id for row in gone]
    )
    if done.unsendable:
        await connection.execute(
            _QUERIES["refuse"],
            [row.queue for row in done.unsendable],
            [row.msg_id for row in done.unsendable],
            TOO_LARGE,
        )
    await connection.execute(_QUERIES["end"])
    still = (doubtful | {row.outbox_id for row in done.unsure}) - {row.outbox_id for row in gone}
    if still:
        await connection.execute(_QUERIES["begin"], sorted(still))


async def fold_counts(pool: "Pool") -> None:
    """Add the changes of the counts up, unless another host does."""
    await pool.execute(_QUERIES["fold"])


class _Trouble:
    """Says when rows begin to wait, once a minute while they do, and when they go on."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._said_s: float | None = None

    async def report(self, done: Round, pool: "Pool") -> None:
        """Report a round."""
        if not done.failed:
            if self._said_s is not None:
                self._said_s = None
                self._log.info("Jobs are handed over again")
            return
        now_s = asyncio.get_running_loop().time()
        if self._said_s is None or now_s - self._said_s >= _SAY_EVERY_S:
            self._said_s = now_s
            count = await pool.fetchrow(_QUERIES["count_waiting"])
            assert count is not None  # noqa: S101 - an aggregate has one row
            self._log.warning(
                "Jobs wait, because their stream does not take them; none is lost",
                reason=done.reason,
                waiting=count["waiting"],
                oldest_s=round(count["oldest_s"]),
            )


__all__ = ["TOO_LARGE", "HandOver", "Round", "Row", "fold_counts"]
