"""What the model of a destination says to the management API, as annotations of its JSON schema.

A field of type `SecretStr` is hidden, encrypted and kept apart: pydantic writes `writeOnly`. These
annotations say the rest, so that the API needs to know no type of destination:

    secret: Annotated[SecretStr, Generated("webhook-secret", rotates_to="previous_secrets")]
    previous_secrets: Annotated[tuple[Previous, ...], StoredOnly()] = ()
    url: Annotated[str, Format("http-url")]

A model's `json_schema_extra={CHECKED_AS: "one-authorization"}` names a rule for all of it. Formats,
rules and generators are functions of this package; a schema only names them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import GetJsonSchemaHandler, SecretStr
from pydantic_core import CoreSchema

from functions.domain.nats_credentials import parse_credentials, read_seed
from functions.domain.signing_keys import make_signing_key, public_key_of
from functions.domain.target_auth import check_one_authorization
from functions.domain.target_tls import check_authorities, check_client_certificate
from functions.domain.webhooks import check_header_name, check_header_value, check_secret, check_url
from functions.domain.webhooks import make_secret as make_webhook_secret

GENERATED = "x-generated"
GENERATED_IF = "x-generated-if"
ROTATES_TO = "x-rotates-to"
PUBLIC_KEY = "x-public-key"
CHECKED_AS = "x-checked-as"

GENERATORS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {"webhook-secret": make_webhook_secret, "signing-key": make_signing_key}
)
PUBLIC_KEYS: Mapping[str, Callable[[str], str]] = MappingProxyType({"signing-key": public_key_of})


def _of_secret(check: Callable[[SecretStr], SecretStr]) -> Callable[[str], object]:
    return lambda text: check(SecretStr(text))


# Each raises ValueError with one sentence that repeats nothing of the value.
FORMATS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "http-url": check_url,
        "http-header-name": check_header_name,
        "http-header-value": _of_secret(check_header_value),
        "webhook-secret": _of_secret(check_secret),
        "client-certificate": _of_secret(check_client_certificate),
        "authorities": check_authorities,
        "nats-seed": read_seed,
        "nats-credentials": parse_credentials,
    }
)

# Each checks a whole configuration, which fits its schema, likewise.
CHECKS: Mapping[str, Callable[[Mapping[str, Any]], object]] = MappingProxyType(
    {
        "one-authorization": lambda config: check_one_authorization(
            config.get("headers", ()), config.get("auth")
        )
    }
)


class _Annotation:
    """Adds keywords to a field's JSON schema."""

    @property
    def keywords(self) -> dict[str, Any]:
        raise NotImplementedError

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(core), **self.keywords}


@dataclass(frozen=True, slots=True)
class Generated(_Annotation):
    """The API makes the field's value when a route is created without one, and keeps it.

    Attributes:
        generator: one of `GENERATORS`.
        only_if: a field of type bool; without it being true no value is made.
        rotates_to: a list of older values and the times until which they are used:
            `rotate-secret` moves the value there.
        public_key: a field that gets the public key of the value.
    """

    generator: str
    only_if: str | None = None
    rotates_to: str | None = None
    public_key: str | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of the schema."""
        found = {
            GENERATED: self.generator,
            GENERATED_IF: self.only_if,
            ROTATES_TO: self.rotates_to,
            PUBLIC_KEY: self.public_key,
        }
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class StoredOnly(_Annotation):
    """The API writes the field, and a caller does not."""

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of the schema."""
        return {"readOnly": True}


@dataclass(frozen=True, slots=True)
class Format(_Annotation):
    """The API checks the field's text by a rule of this package.

    Attributes:
        name: one of `FORMATS`.
    """

    name: str

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of the schema."""
        return {"format": self.name}


__all__ = [
    "CHECKED_AS",
    "CHECKS",
    "FORMATS",
    "GENERATED",
    "GENERATED_IF",
    "GENERATORS",
    "PUBLIC_KEY",
    "PUBLIC_KEYS",
    "ROTATES_TO",
    "Format",
    "Generated",
    "StoredOnly",
]
