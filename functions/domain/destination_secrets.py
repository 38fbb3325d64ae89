"""A route's configuration in two parts: what everybody may see, and its secrets, encrypted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from functions.domain.destination_schemas import HIDDEN, DestinationSchema
from functions.domain.json_pointers import pointer_of, with_values
from functions.domain.secret_box import SecretBox


@dataclass(frozen=True, slots=True)
class Stored:
    """A configuration as it is stored.

    Attributes:
        shown: the configuration as JSON, with `***` in the place of each secret.
        secrets: the secrets by their JSON pointers, encrypted; None when there are none, or when
            `shown` is of a time in which secrets were stored in clear.
    """

    shown: str
    secrets: bytes | None


def owner_of(route_id: object) -> str:
    """What a route's secrets belong to."""
    return f"route/{route_id}"


def find_secrets(schema: DestinationSchema | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The secrets of a configuration by their pointers; without a schema every value is one."""
    if schema is not None:
        return schema.find_secrets(config)
    return {pointer_of([key]): value for key, value in config.items() if value != HIDDEN}


def hide(schema: DestinationSchema | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with `***` in the place of each secret."""
    shown: dict[str, Any] = with_values(config, dict.fromkeys(find_secrets(schema, config), HIDDEN))
    return shown


def seal(
    schema: DestinationSchema | None, config: Mapping[str, Any], box: SecretBox, route_id: object
) -> Stored:
    """The two parts of a configuration.

    Raises:
        Unreadable: it has secrets, and there is no key.
    """
    secrets = find_secrets(schema, config)
    if not secrets:
        return Stored(orjson.dumps(config).decode(), None)
    shown = with_values(config, dict.fromkeys(secrets, HIDDEN))
    sealed = box.seal(orjson.dumps(secrets), owner_of(route_id))
    return Stored(orjson.dumps(shown).decode(), sealed)


def unseal(stored: Stored, box: SecretBox, route_id: object) -> str:
    """The whole configuration, as JSON.

    Raises:
        Unreadable: no key opens the secrets.
    """
    if stored.secrets is None:
        return stored.shown
    secrets = orjson.loads(box.open(stored.secrets, owner_of(route_id)))
    return orjson.dumps(with_values(orjson.loads(stored.shown), secrets)).decode()


__all__ = ["Stored", "find_secrets", "hide", "owner_of", "seal", "unseal"]
