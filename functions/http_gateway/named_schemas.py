"""Schemas of a part of a request that are known only while the system runs.

A field whose schema says `x-schemas-of: SUBJECT` has one of several forms, which the endpoint of
that subject lists: `{"items": [{"name": …, "config_schema": …}]}`.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from functions.http_gateway.routes import HttpRoute
from runtime import Context, RequestFailed, Unavailable

SCHEMAS_OF = "x-schemas-of"
KEPT_S = 15.0
_WAIT_S = 2.0
_MOST_SCHEMAS = 100
_MOST_DEPTH = 8

Schemas = Mapping[str, Mapping[str, Mapping[str, Any]]]
NO_SCHEMAS: Schemas = MappingProxyType({})


class NamedSchemas:
    """Asks for the schemas, at most every `KEPT_S` seconds; keeps the last ones on a failure."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._found: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._asked_at_s = float("-inf")

    async def read(self, routes: Iterable[HttpRoute]) -> Schemas:
        """The schemas by their names, for each subject that a request's schema names."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_at_s < KEPT_S:
            return self._found
        self._asked_at_s = now_s
        known = list(routes)
        # Only what is served over HTTP is asked: a schema is text of another process.
        served = {route.subject for route in known}
        wanted = {subject for route in known for subject in _named(route.request_schema, 0)}
        for subject in wanted & served:
            await self._ask(subject)
        return self._found

    async def _ask(self, subject: str) -> None:
        try:
            reply = await self._ctx.request(subject, b"{}", timeout_s=_WAIT_S)
            items = orjson.loads(reply.data)["items"][:_MOST_SCHEMAS]
            self._found[subject] = {
                str(item["name"]): dict(item["config_schema"]) for item in items
            }
        except (Unavailable, RequestFailed, ValueError, LookupError, TypeError) as failure:
            error = type(failure).__name__
            self._ctx.log.debug("Schemas were not found.", subject=subject, error=error)


def _named(schema: Any, depth: int) -> Iterator[str]:  # noqa: ANN401 - JSON
    """The subjects that a schema names."""
    if isinstance(schema, list):
        for item in schema:
            yield from _named(item, depth)
    elif isinstance(schema, dict) and depth < _MOST_DEPTH:
        if isinstance(schema.get(SCHEMAS_OF), str):
            yield schema[SCHEMAS_OF]
        for item in schema.values():
            yield from _named(item, depth + 1)


__all__ = ["NO_SCHEMAS", "SCHEMAS_OF", "NamedSchemas", "Schemas"]
