"""Encrypts the secrets of provider accounts with the first key, after the keys were rotated."""

from pathlib import Path

from functions.domain.named_sql import read_queries
from functions.domain.secret_box import SecretBox, SecretsSettings, Unreadable
from functions.messages.account_configs import owner_of
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("accounts.sql"))
_AT_A_TIME = 500

# The name under which the host looks for a function's settings.
Settings = SecretsSettings


async def seal_accounts(ctx: Context) -> None:
    """Encrypt what an older key encrypts with the first key."""
    box = SecretBox.of(ctx.settings.secrets_keys)
    if not box.can_seal:
        return
    after, sealed, unreadable = "", 0, 0
    while True:
        rows = await ctx.postgres.fetch(_QUERIES["old_secrets"], after, box.current, _AT_A_TIME)
        for row in rows:
            owner = owner_of(row["name"])
            try:
                new = box.seal(box.open(row["secrets"], owner), owner)
            except Unreadable:
                unreadable += 1
                continue
            await ctx.postgres.execute(
                _QUERIES["replace_secrets"], row["name"], row["secrets"], new
            )
            sealed += 1
        if len(rows) < _AT_A_TIME:
            break
        after = rows[-1]["name"]
    if sealed:
        ctx.log.info("Secrets of provider accounts were encrypted anew", accounts=sealed)
    if unreadable:
        ctx.log.error("No key opens the secrets of accounts", accounts=unreadable)
