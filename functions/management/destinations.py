"""Reads and completes the configuration of a route's destination, by the schema of its type.

`functions.domain.destination_annotations` says what a schema may ask of this module: values that
are generated, kept, rotated, or shown as a public key.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from functions.domain.destination_annotations import (
    GENERATED,
    GENERATED_IF,
    GENERATORS,
    ROTATES_TO,
)
from functions.domain.destination_schemas import HIDDEN, DestinationSchema
from runtime import Reject

_MAX_PREVIOUS = 10
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def complete(
    destination_type: str,
    schema: DestinationSchema | None,
    given: dict[str, Any],
    *,
    old: Mapping[str, Any] = _NOTHING,
) -> dict[str, Any]:
    """The whole configuration, secrets in clear.

    Args:
        destination_type: the type's name.
        schema: the type's; None if it is not known.
        given: the caller's configuration. `***` stands for the secret that is in its place.
        old: the configuration before, whose generated values are kept unless `given` has others.

    Raises:
        Reject: `DESTINATION_INVALID`; the text names fields and rules but no value.
    """
    try:
        config: dict[str, Any] = _revealed(given, old)
        problems = schema.find_problems(config) if schema else []
    except (LookupError, TypeError):
        problems = [f"{HIDDEN} stands for a secret that the route does not have"]
    except RecursionError:
        problems = ["the configuration is nested too deeply"]
    if problems:
        told = "; ".join(problems)
        text = f"destination_config of a {destination_type}: {told}"
        raise Reject("DESTINATION_INVALID", text, status=422)
    if schema is None:
        return config
    _keep(schema, config, old)
    for name, field in schema.properties.items():
        condition = field.get(GENERATED_IF)
        is_wanted = GENERATED in field and (condition is None or config.get(condition))
        if is_wanted and name not in config:
            config[name] = GENERATORS[field[GENERATED]]()
    return schema.with_public_keys(config)


def _keep(schema: DestinationSchema, config: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Keep what the API has written, but no older values of a secret that the caller replaces."""
    for name, field in schema.properties.items():
        if name in config or old.get(name) is None:
            continue
        newest = _replaced_by(schema, name)
        is_void = newest is not None and config.get(newest, old.get(newest)) != old.get(newest)
        if (GENERATED in field or field.get("readOnly")) and not is_void:
            config[name] = old[name]


def rotate(
    schema: DestinationSchema | None, config: dict[str, Any], *, now: datetime, overlap: timedelta
) -> dict[str, Any]:
    """The configuration with a new secret; the old one is used too until `overlap` has passed.

    Without an overlap no older secret is used any more.

    Raises:
        Reject: `NO_ROTATION`, the type has no secret that is rotated; `TOO_MANY_SECRETS`, that many
            are still used.
    """
    name = _rotating(schema)
    if schema is None or name is None:
        raise Reject("NO_ROTATION", "Routes of this type have no generated secret.", status=409)
    field = schema.properties[name]
    place = field[ROTATES_TO]
    previous = [
        one
        for one in config.get(place, [])
        if overlap and datetime.fromisoformat(one["until"]) > now
    ]
    if overlap and name in config:
        previous.insert(0, {"secret": config[name], "until": (now + overlap).isoformat()})
    if len(previous) > _MAX_PREVIOUS:
        raise Reject(
            "TOO_MANY_SECRETS",
            f"{_MAX_PREVIOUS} older secrets of this route still sign; wait, or rotate with"
            " an overlap of 0.",
            status=409,
        )
    return config | {name: GENERATORS[field[GENERATED]](), place: previous}


def secret_to_show(schema: DestinationSchema | None, config: Mapping[str, Any]) -> str | None:
    """The generated secret that the caller has to know; None if the type has none."""
    name = _rotating(schema)
    return config.get(name) if name else None


def _rotating(schema: DestinationSchema | None) -> str | None:
    if schema is None:
        return None
    fields = schema.properties.items()
    return next((name for name, field in fields if ROTATES_TO in field), None)


def _replaced_by(schema: DestinationSchema, name: str) -> str | None:
    """The field whose older values are in `name`; None if there is none."""
    fields = schema.properties.items()
    return next((other for other, field in fields if field.get(ROTATES_TO) == name), None)


def _revealed(given: Any, old: Any) -> Any:  # noqa: ANN401 - JSON
    """The caller's value, with the old one in the place of each `***`."""
    if given == HIDDEN:
        if not isinstance(old, str):
            raise LookupError(HIDDEN)
        return old
    if isinstance(given, dict):
        before = old if isinstance(old, Mapping) else _NOTHING
        return {key: _revealed(value, before.get(key)) for key, value in given.items()}
    if isinstance(given, list):
        items = old if isinstance(old, list) else []
        return [
            _revealed(value, items[at] if at < len(items) else None)
            for at, value in enumerate(given)
        ]
    return given


__all__ = ["complete", "rotate", "secret_to_show"]
