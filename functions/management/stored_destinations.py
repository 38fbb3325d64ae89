"""Reads and writes the destinations of routes: the shown part, and the encrypted secrets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import asyncpg
import orjson
from pydantic import Field

from functions.domain.destination_schemas import DestinationSchema
from functions.domain.destination_secrets import Stored, hide, seal, unseal
from functions.domain.secret_box import SecretBox, SecretsSettings, Unreadable
from functions.management.destination_types import KnownType, Reader, find_types
from runtime import Context, Reject

if TYPE_CHECKING:
    Row = asyncpg.Record

AcceptedTypes = Literal["announced", "delivered", "any"]
NOT_DELIVERED = (
    "No deliverer of this type runs at present. The route's jobs wait in the stream until one does."
)


class RouteSettings(SecretsSettings):
    """Settings of the endpoints for routes.

    Attributes:
        accept_types: the types of destinations that a route may have. `announced`: a deliverer has
            announced it, now or before. `delivered`: one runs at present. `any`: every type; the
            configuration of one that is not announced is not checked, and all of it is a secret.
        max_routes: the most routes of a tenant.
    """

    accept_types: AcceptedTypes = "announced"
    max_routes: Annotated[int, Field(ge=0, le=10_000)] = 100


@dataclass(frozen=True, slots=True)
class StoredDestinations:
    """The destinations of some rows, and what is needed to read them.

    Attributes:
        types: the known ones, by name.
    """

    types: Mapping[str, KnownType]
    box: SecretBox

    @classmethod
    async def of(
        cls,
        reader: Reader,
        ctx: Context,
        *names: str,
    ) -> "StoredDestinations":
        """For routes of these types."""
        settings = ctx.settings if isinstance(ctx.settings, RouteSettings) else RouteSettings()
        types = await find_types(reader, names) if names else {}
        return cls(types, SecretBox.of(settings.secrets_keys))

    def schema(self, destination_type: str) -> DestinationSchema | None:
        """The type's schema; None if the type is not known."""
        known = self.types.get(destination_type)
        return known.schema if known else None

    def warning(self, destination_type: str) -> str | None:
        """A sentence for who creates a route; None when its jobs are delivered."""
        known = self.types.get(destination_type)
        return None if known and known.is_delivered else NOT_DELIVERED

    def read(self, row: "Row") -> dict[str, Any]:
        """The configuration with its secrets in clear.

        Raises:
            Reject: `SECRETS_UNREADABLE`.
        """
        stored = Stored(row["destination_config"], row["destination_secrets"])
        try:
            config: dict[str, Any] = orjson.loads(unseal(stored, self.box, row["id"]))
        except Unreadable as fault:
            text = f"The route's secrets cannot be decrypted: {fault}."
            raise Reject("SECRETS_UNREADABLE", text, status=503) from None
        return config

    def show(self, row: "Row") -> dict[str, Any]:
        """The configuration, with `***` in the place of each secret; needs no key."""
        config: dict[str, Any] = orjson.loads(row["destination_config"])
        known = self.types.get(row["destination_type"])
        if known is None:
            return config if row["destination_secrets"] else hide(None, config)
        return hide(known.schema, known.schema.with_public_keys(config))

    def write(self, destination_type: str, config: Mapping[str, Any], route_id: UUID) -> Stored:
        """The two parts of a configuration.

        Raises:
            Reject: `SECRETS_KEY_MISSING`; it has secrets, and there is no key.
        """
        try:
            return seal(self.schema(destination_type), config, self.box, route_id)
        except Unreadable:
            text = (
                "This installation has no key with which secrets are encrypted; set SECRETS_KEYS."
            )
            raise Reject("SECRETS_KEY_MISSING", text, status=503) from None


def check_type(types: Mapping[str, KnownType], name: str, accepted: AcceptedTypes) -> None:
    """Refuse a type that a new route may not have.

    Raises:
        Reject: `DESTINATION_TYPE_UNKNOWN` or `DESTINATION_TYPE_NOT_DELIVERED`.
    """
    known = types.get(name)
    if known is None and accepted != "any":
        text = "No deliverer has announced this type; see the list of destination types."
        raise Reject("DESTINATION_TYPE_UNKNOWN", text, status=422)
    if accepted == "delivered" and not (known and known.is_delivered):
        text = "No deliverer of this type runs at present."
        raise Reject("DESTINATION_TYPE_NOT_DELIVERED", text, status=422)


__all__ = ["AcceptedTypes", "RouteSettings", "StoredDestinations", "check_type"]
