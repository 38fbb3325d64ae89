"""Notices to tenants: what happened to their routes, jobs and endpoints.

A notice is a row of the transaction that made it. The function `publish_notices` stores it in the
stream NOTICES on `notices.{tenant_id}.{kind}`, and routes whose topic filter begins with
`tenant/{tenant_id}/notices/` get it. Write no secret into one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor

_QUERIES = read_queries(Path(__file__).with_name("notices.sql"))
TOPIC_LEVEL = "notices"


@dataclass(frozen=True, slots=True)
class Notice:
    """One notice.

    Attributes:
        tenant_id: whom it is for.
        kind: lower case, digits and underscores, at most 32: `endpoint_disabled`.
        key: what makes it the same notice; the second one with a key is only counted.
        data: what happened, for a person and for a program; at most some kilobytes.
        is_routed: False for a notice about the delivery of notices, which would beget others.
        count: how often it happened.
    """

    tenant_id: str
    kind: str
    key: str
    data: Mapping[str, Any]
    is_routed: bool = True
    count: int = 1


async def add_notice(executor: Executor, notice: Notice) -> None:
    """Write a notice, in the caller's transaction if `executor` is a connection in one."""
    await executor.fetch(
        _QUERIES["add"],
        notice.tenant_id,
        notice.kind,
        notice.key,
        orjson.dumps(notice.data).decode(),
        notice.is_routed,
        notice.count,
    )


def notice_topic(tenant_id: str, kind: str) -> str:
    """The topic that routes match."""
    return f"tenant/{tenant_id}/{TOPIC_LEVEL}/{kind}"


def is_notice_topic(topic: str) -> bool:
    """Whether a topic, or a topic filter, is of notices."""
    return topic.split("/", 3)[2:3] == [TOPIC_LEVEL]


__all__ = ["TOPIC_LEVEL", "Notice", "add_notice", "is_notice_topic", "notice_topic"]
