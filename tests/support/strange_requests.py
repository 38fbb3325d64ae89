"""Makes requests out of an OpenAPI document: most fit their schemas, at the edges of these."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

_TEXTS = (
    *("", "test", "dev1", "a", "x" * 64, "é", "a\x00b", "..", "*", "1", "1h", "temp", "count,mean"),
    *("2026-11-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
    *("payload.metrics.temp > 20", "tenant/test/#", "https://example.org/h", "webhook"),
)
_NUMBERS = (0, 1, -1, 2, 100, 1.5, 1e20, 2**31, 2**63 - 1, 2**64)
_ANYTHING: tuple[Any, ...] = (None, True, *_NUMBERS, *_TEXTS, [], {}, [1, [2]], {"a": {"b": None}})
_METHODS = ("get", "post", "put", "patch", "delete")
_DEEPEST = 6


class StrangeRequest(NamedTuple):
    """A request; `body` is JSON, or None."""

    method: str
    path: str
    body: bytes | None


class StrangeRequests:
    """Requests for the operations of a document, the same for the same seed.

    Args:
        document: an OpenAPI document.
        seed: of all choices.
        tenant_id: the tenant of most requests.
    """

    def __init__(self, document: Mapping[str, Any], seed: int, tenant_id: str) -> None:
        self._schemas = document["components"]["schemas"]
        self._choice = random.Random(seed)  # noqa: S311 - no secret
        self._tenant_id = tenant_id
        self._known: dict[str, list[Any]] = defaultdict(list)
        self._operations = [
            (method.upper(), path, item[method])
            for path, item in sorted(document["paths"].items())
            for method in _METHODS
            if method in item and path.startswith("/api/")
        ]

    def make(self, count: int) -> Iterator[StrangeRequest]:
        """So many requests. What `learn` was told before the next one can be part of it."""
        for _ in range(count):
            yield self._request(*self._choice.choice(self._operations))

    def learn(self, answer: object) -> None:
        """Use the ids and cursors of an answer in later requests."""
        if isinstance(answer, dict):
            for name, value in answer.items():
                if value and (name.endswith("_id") or name in {"next_cursor", "name"}):
                    self._known[name.removeprefix("next_")] = [
                        *self._known[name.removeprefix("next_")][-20:],
                        value,
                    ]
                self.learn(value)
        elif isinstance(answer, list):
            for each in answer:
                self.learn(each)

    def _request(self, method: str, path: str, operation: Mapping[str, Any]) -> StrangeRequest:
        query: dict[str, str] = {}
        for parameter in operation.get("parameters", ()):
            name = parameter["name"]
            value = self._value(name, parameter["schema"])
            text = value if isinstance(value, str) else json.dumps(value)
            if parameter["in"] == "path":
                path = path.replace(f"{{{name}}}", quote(text, safe="") or "x")
            elif parameter["in"] == "query" and self._choice.random() < 0.6:
                query[name] = text
        if query:
            path += f"?{urlencode(query)}"
        body = None
        if (wanted := operation.get("requestBody")) is not None:
            schema = wanted["content"]["application/json"]["schema"]
            body = json.dumps(self._fitting(schema, 0)).encode()
        return StrangeRequest(method, path, body)

    def _value(self, name: str, schema: Mapping[str, Any], depth: int = 0) -> Any:
        if name == "tenant_id" and self._choice.random() < 0.9:
            return self._tenant_id
        if self._known[name] and self._choice.random() < 0.7:
            return self._choice.choice(self._known[name])
        return self._fitting(schema, depth)

    def _fitting(self, schema: Mapping[str, Any], depth: int) -> Any:
        pick = self._choice.choice
        while "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        several = schema.get("anyOf") or schema.get("oneOf")
        known = schema.get("enum") or [schema[name] for name in ("const",) if name in schema]
        if depth > _DEEPEST or self._choice.random() < 0.02:
            return pick(_ANYTHING)
        if several:
            return self._fitting(pick(several), depth + 1)
        return pick(known) if known else self._of_type(schema, depth)

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            items = schema.get("items", {})
            return [self._fitting(items, depth + 1) for _ in range(self._choice.choice((0, 1, 2)))]
        limits = [schema[name] for name in ("minimum", "maximum") if name in schema]
        values: dict[object, tuple[Any, ...]] = {
            "integer": (*limits, *limits, *_NUMBERS),
            "number": (*limits, *limits, *_NUMBERS),
            "string": _TEXTS,
            "boolean": (True, False),
            "null": (None,),
        }
        return self._choice.choice(values.get(kind, _ANYTHING))

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self._value(name, field, depth + 1)
            for name, field in schema.get("properties", {}).items()
            if self._choice.random() < (0.97 if name in required else 0.4)
        }


__all__ = ["StrangeRequest", "StrangeRequests"]
