"""Publishes notices to tenants."""

from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from runtime import Context, Publication

_QUERIES = read_queries(Path(__file__).with_name("notices.sql"))
_AT_A_TIME = 500


class NoticeSettings(BaseModel):
    """Settings of the publication of notices.

    Attributes:
        keep_days: how long the API shows a notice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30


# The name under which the host looks for a function's settings.
Settings = NoticeSettings


async def publish_notices(ctx: Context) -> None:
    """Store the notices that are not in the stream yet, and forget old ones.

    A crash between the two statements stores a notice twice, under the same `notice_id`.
    """
    published = _AT_A_TIME
    while published == _AT_A_TIME:
        rows = await ctx.postgres.fetch(_QUERIES["unpublished"], _AT_A_TIME)
        if not rows:
            break
        await ctx.publish_many([_publication(row) for row in rows])
        await ctx.postgres.execute(_QUERIES["mark"], [row["notice_id"] for row in rows])
        published = len(rows)
    await ctx.postgres.execute(_QUERIES["forget_old"], ctx.settings.keep_days, _AT_A_TIME)


def _publication(row: Any) -> Publication:  # noqa: ANN401 - a row
    notice_id = str(row["notice_id"])
    body = {
        "notice_id": notice_id,
        "tenant_id": row["tenant_id"],
        "kind": row["kind"],
        "is_routed": row["is_routed"],
        "data": orjson.loads(row["data"]) | {"created_at": row["created_at"]},
    }
    subject = f"notices.{row['tenant_id']}.{row['kind']}"
    return Publication(subject, orjson.dumps(body), msg_id=notice_id)
