"""Changes of stored shadows, inside of the caller's transaction, with what they send."""

from collections.abc import Callable

from functions.shadow import store
from functions.shadow.answers import Answer, Cause, answer_to_delete, answers_to_update, snapshot
from functions.shadow.shadow import Shadow, ShadowKey, Update
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
    before = snapshot(shadow)
    stamp_ns = shadow.update(update, lambda: stamp(shadow))
    await store.save(connection, shadow)
    return answers_to_update(update, stamp_ns, before, shadow, cause)


async def delete_shadow(
    connection: Connection,
    key: ShadowKey,
    version: int | None,
    stamp: Stamp,
    cause: Cause,
) -> tuple[Shadow | None, Answer]:
    """Delete a shadow: what was written into it before. None when there is no such shadow.

    Its version goes on, so that an earlier update that arrives late changes nothing.

    Raises:
        ChangeRefused: `VERSION_CONFLICT`; nothing was stored.
    """
    shadow = await store.lock(connection, key)
    if shadow is None or shadow.deleted:
        return None, answer_to_delete(None, cause)
    shadow.delete(version, lambda: stamp(shadow))
    await store.save(connection, shadow)
    return shadow, answer_to_delete(shadow, cause)
