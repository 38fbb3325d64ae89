"""Reads stored configurations of destinations, each once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from functions.domain.destination_secrets import Stored, unseal
from functions.domain.secret_box import SecretBox

D = TypeVar("D", bound=BaseModel)

_MAX_KEPT = 10_000
_MAX_KEPT_BYTES = 32_000_000
_SHOWN_FIELDS = 5
_SHOWN_CHARACTERS = 64
# A shorter one may equal a word or a number: to hide it would make a text unreadable.
_SHORTEST_SECRET = 4


@dataclass(frozen=True, slots=True)
class EndpointKey:
    """What bounds and health belong to: routes of a tenant with the same key share them.

    Attributes:
        name: the endpoint among those of a tenant, such as a URL.
        origin: what endpoints of several tenants share, such as a host and port: failures to
            connect count for it. Empty for nothing.
    """

    name: str
    origin: str = ""

    def digest(self, destination_type: str) -> str:
        """What names the endpoint in the database, since the name may hold a secret."""
        return _digest(destination_type, self.name)


@dataclass(frozen=True, slots=True)
class ReadDestination(Generic[D]):
    """A destination, as `send` gets it, its endpoint, and all spellings of its secrets."""

    value: D
    endpoint: EndpointKey
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unusable:
    """A configuration that cannot be used.

    Attributes:
        reason: one sentence for a person; names fields, and no value.
    """

    reason: str


class DestinationReader(Generic[D]):
    """Reads configurations by the model of their type, and keeps the results.

    Args:
        model: the type's `Destination`.
        endpoint: the key of a destination's endpoint; raises ValueError if the destination cannot
            be used. None for the configuration itself.
        box: opens the secrets.
    """

    def __init__(
        self, model: type[D], endpoint: Callable[[D], EndpointKey] | None, box: SecretBox
    ) -> None:
        self._model = model
        self._endpoint = endpoint
        self._box = box
        # By route too: secrets that were copied from another route do not open.
        self._kept: dict[tuple[UUID, Stored], ReadDestination[D] | Unusable] = {}
        self._kept_bytes = 0

    def read(self, stored: Stored, route_id: UUID) -> ReadDestination[D] | Unusable:
        """The destination of a route's configuration.

        Raises:
            Unreadable: no key opens its secrets.
        """
        found = self._kept.get((route_id, stored))
        if found is None:
            found = self._read(unseal(stored, self._box, route_id))
            if len(self._kept) >= _MAX_KEPT or self._kept_bytes >= _MAX_KEPT_BYTES:
                self._kept.clear()
                self._kept_bytes = 0
            self._kept[route_id, stored] = found
            self._kept_bytes += len(stored.shown) + len(stored.secrets or b"")
        return found

    def _read(self, config: str) -> ReadDestination[D] | Unusable:
        try:
            value = self._model.model_validate_json(config)
            endpoint = self._endpoint(value) if self._endpoint else _key_of(config)
        except ValidationError as misfit:
            return Unusable(f"the route's destination_config does not fit: {_fields_of(misfit)}")
        except Exception:  # noqa: BLE001 - a type's own code; its text may hold a secret
            return Unusable("the route's destination_config cannot be used")
        return ReadDestination(value, endpoint, spellings_of(value))


def secrets_of(value: object) -> Iterator[str]:
    """The secrets in a destination, in clear."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, SecretBytes):
        yield value.get_secret_value().decode(errors="replace")
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from secrets_of(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from secrets_of(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from secrets_of(item)


def spellings_of(destination: object) -> tuple[str, ...]:
    """The secrets as they are, as in a URL and as in quotes; the longest first, as parts of others.

    Of a URL, what stands behind the host is a secret by itself: endpoints name it in errors.
    """
    plain = {each for each in secrets_of(destination) if len(each) >= _SHORTEST_SECRET}
    targets = {"/" + each.split("://", 1)[1].partition("/")[2] for each in plain if "://" in each}
    quoted = {quote(each, safe="") for each in plain} | {quote(each) for each in plain}
    # As in the text of an exception, and as an endpoint that answers in JSON repeats it.
    escaped = {form(each)[1:-1] for each in plain for form in (repr, json.dumps, _json)}
    targets = {each for each in targets if len(each) > _SHORTEST_SECRET}
    spellings = plain | quoted | escaped | targets
    return tuple(sorted(spellings, key=len, reverse=True))


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@lru_cache(maxsize=_MAX_KEPT)
def _digest(destination_type: str, name: str) -> str:
    text = f"{destination_type}\0{name}".encode(errors="replace")
    return hashlib.sha256(text).hexdigest()[:32]


def _key_of(config: str) -> EndpointKey:
    """A digest, since the configuration holds secrets and keys are logged."""
    return EndpointKey(hashlib.sha256(config.encode(errors="replace")).hexdigest())


def _fields_of(misfit: ValidationError) -> str:
    errors = misfit.errors(include_url=False, include_input=False, include_context=False)
    names = [".".join(str(part) for part in error["loc"]) or "all of it" for error in errors]
    shown = [name[:_SHOWN_CHARACTERS] for name in names[:_SHOWN_FIELDS]]
    return ", ".join(dict.fromkeys(shown))


__all__ = ["DestinationReader", "EndpointKey", "ReadDestination", "Unusable", "spellings_of"]
