"""Validates endpoints' HTTP metadata, and finds the route of a request.

Any client that may answer `$SRV.INFO` can write anything into its answer, so every part is checked.
The subject must not be one of NATS's own, and the path must not shadow the gateway's own paths.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from functions.http_gateway.route_trust import RouteTrust

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
RESERVED = ("ingest", "bridge", "docs", "openapi.json", "healthz")

Auth = Literal["admin", "bearer", "tenant", "none"]

_AUTHS: Mapping[str, Auth] = {
    "admin": "admin",
    "bearer": "bearer",
    "tenant": "tenant",
    "none": "none",
}
_SEGMENT = re.compile(r"[A-Za-z0-9_\-.~]{1,128}")
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")
_SUBJECT = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_MAX_PATH_LENGTH = 255
_MAX_SCHEMA_LENGTH = 262_144
_MAX_SCHEMA_DEPTH = 64


class BadRouteError(ValueError):
    """An endpoint's metadata is not a valid route; the text says why, for the operator's log."""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One exposed endpoint.

    Attributes:
        segments: the path's segments; `{name}` is a parameter.
        auth: `admin` needs the admin key; `tenant` a key of a tenant, or the admin key; `bearer` a
            token, which the endpoint checks.
        status: HTTP status of a successful answer.
        request_schema: JSON Schema of the payload; None when the endpoint gives none.
        response_schema: JSON Schema of the reply; None when the endpoint gives none.
        is_signed: whether a host has signed it; False when only settings allow its subject.
    """

    method: str
    segments: tuple[str, ...]
    subject: str
    function: str
    description: str
    auth: Auth
    status: int
    request_schema: Mapping[str, Any] | None
    response_schema: Mapping[str, Any] | None
    is_signed: bool = True

    @property
    def path(self) -> str:
        """The path as in the manifest, such as `/devices/{id}`."""
        return "/" + "/".join(self.segments)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the path's parameters, in order."""
        return tuple(segment[1:-1] for segment in self.segments if segment.startswith("{"))

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """Equal for two routes that match the same requests."""
        return self.method, tuple("{}" if s.startswith("{") else s for s in self.segments)


@dataclass(frozen=True, slots=True)
class Match:
    """A route and the path's parameters."""

    route: HttpRoute
    parameters: Mapping[str, str]


def parse_route(endpoint: Mapping[str, Any], trust: RouteTrust) -> HttpRoute | None:
    """The route in the metadata of an INFO answer's endpoint; None without `http.path`.

    Raises:
        BadRouteError: the metadata is not usable, or not trusted.
    """
    metadata = endpoint.get("metadata")
    if not isinstance(metadata, Mapping) or "http.path" not in metadata:
        return None
    method = _text(metadata, "http.method")
    if method not in METHODS:
        raise BadRouteError(f"http.method is not one of {', '.join(METHODS)}")
    subject = endpoint.get("subject")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise BadRouteError("the subject is not one that the gateway may send to")
    auth = _text(metadata, "http.auth", "admin")
    if auth not in _AUTHS:
        raise BadRouteError(f"http.auth is not one of {', '.join(_AUTHS)}")
    status = _text(metadata, "http.status", "200")
    if not re.fullmatch(r"2\d\d", status, re.ASCII):
        raise BadRouteError("http.status is not in 200 to 299")
    segments = _parse_path(_text(metadata, "http.path"))
    is_signed = trust.is_signed(subject, metadata)
    if not is_signed and (refused := trust.refuse_unsigned(subject, segments)):
        raise BadRouteError(refused)
    return HttpRoute(
        method=method,
        segments=segments,
        subject=subject,
        function=_text(metadata, "function", "") or str(endpoint.get("name", ""))[:64],
        description=_text(metadata, "description", "")[:1024],
        auth=_AUTHS[auth],
        status=int(status),
        request_schema=_schema(metadata, "schema.request"),
        response_schema=_schema(metadata, "schema.response"),
        is_signed=is_signed,
    )


class RouteTable:
    """Finds the route of a request by method and path.

    Attributes:
        revision: +1 with every change, so that a result made from the table can be cached.
    """

    def __init__(self) -> None:
        self._routes: dict[tuple[str, tuple[str, ...]], HttpRoute] = {}
        self._by_length: dict[int, list[HttpRoute]] = {}
        self.revision = 0

    def __len__(self) -> int:
        return len(self._routes)

    def __iter__(self) -> Iterator[HttpRoute]:
        return iter(sorted(self._routes.values(), key=lambda r: (r.path, METHODS.index(r.method))))

    def replace(self, routes: Iterable[HttpRoute]) -> None:
        """Replace all routes of the table."""
        found = {route.key: route for route in routes}
        if found == self._routes:
            return
        self._routes = found
        self._by_length = {}
        for route in found.values():
            self._by_length.setdefault(len(route.segments), []).append(route)
        for same_length in self._by_length.values():
            # A literal segment sorts before a parameter: /devices/count, /devices/{id}.
            same_length.sort(key=lambda route: [s.startswith("{") for s in route.segments])
        self.revision += 1

    def find(self, method: str, segments: tuple[str, ...]) -> Match | None:
        """The route for a path's decoded segments; HEAD finds the route of GET."""
        wanted = "GET" if method == "HEAD" else method
        for route in self._by_length.get(len(segments), ()):
            if route.method == wanted and (parameters := _match(route, segments)) is not None:
                return Match(route, parameters)
        return None

    def methods(self, segments: tuple[str, ...]) -> list[str]:
        """The methods that the path allows, in the order of `METHODS`; empty for no route."""
        found = {
            route.method
            for route in self._by_length.get(len(segments), ())
            if _match(route, segments) is not None
        }
        return [method for method in METHODS if method in found]


def _match(route: HttpRoute, segments: tuple[str, ...]) -> dict[str, str] | None:
    parameters: dict[str, str] = {}
    for pattern, segment in zip(route.segments, segments, strict=True):
        if pattern.startswith("{"):
            if not segment:
                return None
            parameters[pattern[1:-1]] = segment
        elif pattern != segment:
            return None
    return parameters


def _parse_path(path: str) -> tuple[str, ...]:
    if not path.startswith("/") or len(path) > _MAX_PATH_LENGTH:
        raise BadRouteError(f"http.path must start with / and have at most {_MAX_PATH_LENGTH}")
    segments = tuple(path[1:].split("/"))
    for segment in segments:
        if not _PARAMETER.fullmatch(segment) and not _SEGMENT.fullmatch(segment):
            raise BadRouteError("a segment of http.path is neither plain text nor one {parameter}")
        if segment in {".", ".."}:
            raise BadRouteError("http.path holds a relative segment")
    parameters = [segment for segment in segments if segment.startswith("{")]
    if len(set(parameters)) != len(parameters):
        raise BadRouteError("http.path names a parameter twice")
    if segments[0] in RESERVED or segments[0].startswith("{"):
        raise BadRouteError("http.path would shadow the gateway's own paths")
    return segments


def _text(metadata: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise BadRouteError(f"{key} is missing or not a text")
    return value


def _schema(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    text = _text(metadata, key, "")
    if not text:
        return None
    if len(text) > _MAX_SCHEMA_LENGTH:
        raise BadRouteError(f"{key} is longer than {_MAX_SCHEMA_LENGTH}")
    try:
        schema = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRouteError(f"{key} is not JSON") from None
    if not isinstance(schema, dict) or _is_deeper(schema, _MAX_SCHEMA_DEPTH):
        raise BadRouteError(f"{key} is not an object at most {_MAX_SCHEMA_DEPTH} levels deep")
    return schema


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)
