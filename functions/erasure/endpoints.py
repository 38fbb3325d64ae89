"""Endpoints for the erasure of a tenant: request it, and see how far it is."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))


class ErasureQuery(BaseModel):
    """A request about the erasure of one tenant."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId


class EraseTenant(ErasureQuery):
    """A request to erase a tenant. `confirm` must be the tenant's id once more."""

    confirm: str = ""


class Erasure(BaseModel):
    """An erasure, and what it has deleted so far.

    Attributes:
        status: `running`, or `done` when nothing of the tenant is left.
        tenant_deleted_at: when the tenant itself was deleted; a last look follows.
        deleted_rows: numbers of rows by table, without those that go with a row they belong to.
        deleted_messages: numbers of messages by stream; after a crash some may be missing here.
        failure: what the last step failed with; it is made again.
    """

    tenant_id: str
    status: Literal["running", "done"]
    requested_at: datetime
    tenant_deleted_at: datetime | None
    finished_at: datetime | None
    deleted_rows: dict[str, int]
    deleted_messages: dict[str, int]
    failure: str | None


async def erase_tenant(event: Event[EraseTenant], ctx: Context) -> Erasure:
    """Close the tenant, and delete everything of it from now on; there is no way back.

    A repeat of the request answers how far the erasure is.

    Raises:
        Reject: `NOT_CONFIRMED` (422), `TENANT_NOT_FOUND` (404).
    """
    tenant_id = event.data.tenant_id
    if event.data.confirm != tenant_id:
        text = "Erasing deletes everything of the tenant; `confirm` must be its id."
        raise Reject("NOT_CONFIRMED", text, status=422)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        status = await connection.fetchval(_QUERIES["lock_tenant"], tenant_id)
        if status is not None and status != "ERASING":
            await connection.execute(_QUERIES["request"], tenant_id)
            await connection.execute(_QUERIES["close_tenant"], tenant_id)
            ctx.log.warning("A tenant is being erased", tenant_id=tenant_id)
        row = await connection.fetchrow(_QUERIES["find"], tenant_id)
    if row is None or (status is None and row["status"] == "done"):
        raise Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404)
    return _erasure(row)


async def get_tenant_erasure(event: Event[ErasureQuery], ctx: Context) -> Erasure:
    """The last erasure of a tenant with this id."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.tenant_id)
    if row is None:
        text = "No tenant with this id was erased."
        raise Reject("ERASURE_NOT_FOUND", text, status=404)
    return _erasure(row)


def _erasure(row: Any) -> Erasure:  # noqa: ANN401 - a row, whose columns the model checks
    counts = {name: orjson.loads(row[name]) for name in ("deleted_rows", "deleted_messages")}
    return Erasure.model_validate({**row, **counts})


__all__ = ["EraseTenant", "Erasure", "ErasureQuery", "erase_tenant", "get_tenant_erasure"]
