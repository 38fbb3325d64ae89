"""Encrypts the secrets of routes that are in clear, or encrypted with an older key."""

from pathlib import Path
from uuid import UUID

import asyncpg
import orjson

from functions.domain.destination_schemas import DestinationSchema
from functions.domain.destination_secrets import Stored, owner_of, seal
from functions.domain.named_sql import read_queries
from functions.domain.secret_box import SecretBox, SecretsSettings, Unreadable
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("sealing.sql"))
_AT_A_TIME = 500

# The name under which the host looks for a function's settings.
Settings = SecretsSettings


async def seal_destinations(ctx: Context) -> None:
    """Encrypt what is in clear, and what an older key encrypts, with the first key."""
    box = SecretBox.of(ctx.settings.secrets_keys)
    if not box.can_seal:
        return
    rows = await ctx.postgres.fetch(_QUERIES["schemas"])
    schemas = {row["name"]: DestinationSchema(orjson.loads(row["schema"])) for row in rows}
    after: UUID | None = None
    sealed = unreadable = 0
    while True:
        page = await ctx.postgres.fetch(_QUERIES["old"], after, box.current, _AT_A_TIME)
        for row in page:
            try:
                sealed += await _seal(ctx, row, box, schemas.get(row["destination_type"]))
            except Unreadable:
                unreadable += 1
        if len(page) < _AT_A_TIME:
            break
        after = page[-1]["id"]
    if sealed:
        ctx.log.info("Secrets of routes were encrypted with the first key", routes=sealed)
    if unreadable:
        ctx.log.error("No key opens the secrets of routes; correct SECRETS_KEYS", routes=unreadable)


async def _seal(
    ctx: Context, row: asyncpg.Record, box: SecretBox, schema: DestinationSchema | None
) -> int:
    """How many rows have changed: none if somebody else has changed it, or it has no secrets."""
    old = Stored(row["destination_config"], row["destination_secrets"])
    if old.secrets is not None:
        # Which parts are secrets was decided when they were encrypted.
        owner = owner_of(row["id"])
        new = Stored(old.shown, box.seal(box.open(old.secrets, owner), owner))
    elif schema is not None:
        config = schema.with_public_keys(orjson.loads(old.shown))
        new = seal(schema, config, box, row["id"])
    else:
        return 0  # Which parts are secrets is not known before a deliverer announces the type.
    if new.secrets is None:
        return 0
    parts = (row["id"], new.shown, new.secrets, old.shown, old.secrets)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        replaced = await connection.fetch(_QUERIES["replace"], *parts)
        for [endpoint] in replaced:
            await connection.execute(_QUERIES["link_endpoint"], row["id"], endpoint)
    return len(replaced)
