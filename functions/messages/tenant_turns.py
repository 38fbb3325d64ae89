"""Keeps tenants' rates: the token buckets stand in PostgreSQL, so that they hold across hosts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from functions.domain.batching import Batcher
from functions.domain.named_sql import read_queries
from functions.messages.contents import Kind
from functions.messages.tenant_rate import RateLimit, RateState, decide

if TYPE_CHECKING:
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("policies.sql"))


@dataclass(frozen=True, slots=True)
class Turn:
    """A message that asks whether it may be sent."""

    tenant_id: str
    message_id: str
    limit: RateLimit
    is_high: bool


class TenantTurns:
    """Decides of many messages at once, each with its tenant's bucket locked.

    A token that was taken by a message whose host dies is lost: the rate is never exceeded.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", kind: Kind) -> None:
        self._pool = pool
        self._kind = kind
        self._turns = Batcher(
            self._take_all,
            key=lambda turn: (turn.tenant_id, turn.message_id),
            is_fault_of_data=lambda failure: isinstance(failure, asyncpg.DataError),
        )

    async def take(self, turn: Turn) -> float:
        """Seconds until the message shall come again; 0 if it may be sent now."""
        return await self._turns.add(turn)

    async def close(self) -> None:
        """Wait for what was begun."""
        await self._turns.close()

    async def _take_all(self, turns: Sequence[Turn]) -> list[float]:
        async with self._pool.acquire() as connection, connection.transaction():
            states, now_s = await self._lock(connection, {turn.tenant_id for turn in turns})
            found = await connection.fetch(
                _QUERIES["find_turns"], *_columns([(t.tenant_id, t.message_id) for t in turns], 2)
            )
            known = {(row["tenant_id"], row["message_id"]): row["come_back_at_s"] for row in found}
            waits_s: list[float] = []
            later: list[tuple[str, str, float]] = []
            ended: list[tuple[str, str]] = []
            for turn in turns:
                key = turn.tenant_id, turn.message_id
                come_back_at_s = known.get(key)
                decision = decide(
                    turn.limit,
                    states[turn.tenant_id],
                    now_s,
                    is_high=turn.is_high,
                    come_back_at_s=come_back_at_s,
                )
                states[turn.tenant_id] = decision.state
                waits_s.append(decision.wait_s)
                if decision.wait_s:
                    later.append((*key, now_s + decision.wait_s))
                elif come_back_at_s is not None:
                    ended.append(key)
            await self._write(connection, states, later, ended)
        return waits_s

    async def _lock(
        self,
        connection: "Connection",
        tenants: set[str],
    ) -> tuple[dict[str, RateState], float]:
        rows: list[Any] = []
        # A bucket that another host makes at this moment is seen by neither part of the statement.
        while len(rows) < len(tenants):
            rows = await connection.fetch(_QUERIES["lock_buckets"], sorted(tenants), self._kind)
        states = {
            row["tenant_id"]: RateState(row["due_at_s"], row["high_until_s"], row["others_until_s"])
            for row in rows
        }
        return states, max(row["now_s"] for row in rows)

    async def _write(
        self,
        connection: "Connection",
        states: dict[str, RateState],
        later: Sequence[tuple[str, str, float]],
        ended: Sequence[tuple[str, str]],
    ) -> None:
        buckets = [
            (tenant_id, state.due_at_s, state.high_until_s, state.others_until_s)
            for tenant_id, state in states.items()
        ]
        tenants, *times = _columns(buckets, 4)
        await connection.execute(_QUERIES["write_buckets"], tenants, self._kind, *times)
        if later:
            await connection.execute(_QUERIES["write_turns"], *_columns(later, 3))
        if ended:
            await connection.execute(_QUERIES["end_turns"], *_columns(ended, 2))


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return (
        [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
    )


__all__ = ["TenantTurns", "Turn"]
