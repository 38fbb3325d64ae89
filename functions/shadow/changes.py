"""Changes of stored shadows, inside of the caller's transaction, with what they send."""

from collections.abc import Callable

from functions.shadow import store
from functions.shadow.answers import Answer, Cause, answer_to_delete, answers_to_update, snapshot
from functions.shadow.shadow import Shadow, Update
from functions.shadow.store import Connection

Stamp = Callable[[Shadow], int]
"""Returns the stamp of a change of the shadow; see `functions.shadow.document`."""


async def update_shadow(
    connection: Connection,
    shadow: Shadow,
    update: Update,
    stamp: Stamp,
    cause: Cause,
) -> list[Answer]:
    """Merge an update into a locked shadow, and store it.

    Raises:
        ChangeRefused: the update is not valid; nothing was stored.
    """
    shadow.require_version(update.version)
    before = snapshot(shadow)
    stamp_ns = shadow.update(update, lambda: stamp(shadow))
    await store.save(connection, shadow)
    return answers_to_update(update, stamp_ns, before, shadow, cause)


async def delete_shadow(
    connection: Connection,
    shadow: Shadow | None,
    version: int | None,
    stamp: Stamp,
    cause: Cause,
) -> Answer:
    """Delete a locked shadow: what was written into it before.

    Its version goes on, so that an earlier update that arrives late changes nothing.

    Raises:
        ChangeRefused: `VERSION_CONFLICT`; nothing was stored.
    """
    if shadow is None or shadow.deleted:
        return answer_to_delete(None, cause)
    shadow.delete(version, lambda: stamp(shadow))
    await store.save(connection, shadow)
    return answer_to_delete(shadow, cause)
