"""Forwards HTTP requests to NATS endpoints, and returns their replies."""

import hashlib
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl

import orjson
from starlette.responses import Response

from functions.http_gateway.bodies import (
    BodyReader,
    media_type_of,
    read_object,
    require_identity,
    require_json,
)
from functions.http_gateway.caller_admission import CallerAdmission
from functions.http_gateway.discovery import RouteDiscovery
from functions.http_gateway.endpoint_places import EndpointPlaces
from functions.http_gateway.file_bodies import FORMATS, file_fields, takes_files
from functions.http_gateway.idempotency import idempotency_key
from functions.http_gateway.paths import decode_segments
from functions.http_gateway.problems import ProblemError, code_of, tell_methods, title
from functions.http_gateway.requests import Request
from functions.http_gateway.routes import HttpRoute, Match, RouteTable
from functions.http_gateway.settings import GatewaySettings
from functions.http_gateway.storing import explain_refusal, trace_headers
from runtime import Context, Reply, RequestFailed, Unavailable, Unsendable

_JSON, _BYTES = "application/json", "application/octet-stream"
_SHARE = 4
_MAX_QUERY_FIELDS = 100
_MAX_TEXT_LENGTH = 1024
_ERRORS = range(400, 600)
_LONGEST_RETRY_AFTER_S = 86_400


class Forwarder:
    """Answers a request for any path but the gateway's own with the reply of its endpoint."""

    def __init__(
        self,
        ctx: Context,
        table: RouteTable,
        discovery: RouteDiscovery,
        bodies: BodyReader,
        callers: CallerAdmission,
    ) -> None:
        self._bodies = bodies
        self._ctx = ctx
        self._settings: GatewaySettings = ctx.settings
        self._callers = callers
        self._tokens = callers.tokens
        self._table = table
        self._discovery = discovery
        self._places = EndpointPlaces(max(1, self._settings.max_concurrent // _SHARE))

    async def __call__(self, request: Request) -> Response:
        """Forward the request to the endpoint of its path."""
        segments = decode_segments(request.scope["raw_path"])
        match = await self._discovery.find(request.method, segments)
        if match is None:
            return self._without_route(request, segments)
        route = match.route
        tenant_id = await self._callers.require(request, route)
        token = self._tokens.require(request) if route.auth == "bearer" else None
        fields = await self._fields(request, match)
        if tenant_id is not None:
            fields = _of_tenant(fields, tenant_id)
        payload = orjson.dumps(fields)
        caller = tenant_id or ""
        if token is not None:
            # The endpoint refuses a wrong token at once, so only who has one uses up its places.
            caller = match.parameters.get("tenant_id") or hashlib.sha256(token).hexdigest()
        async with self._places.take(
            route.subject,
            caller,
            takes_turns=tenant_id is not None,
            wait_s=self._settings.request_timeout_s,
        ):
            return await self._ask(route, payload, request, token)

    def _without_route(self, request: Request, segments: tuple[str, ...]) -> Response:
        methods = self._table.methods(segments)
        if not methods:
            raise ProblemError(404, "NOT_FOUND", "Nothing is served at this path.")
        return tell_methods(request.method, [*methods, *(["HEAD"] if "GET" in methods else [])])

    async def _fields(self, request: Request, match: Match) -> dict[str, object]:
        query = _read_query(request.scope["query_string"])
        body = await self._bodies.read(request, limit_bytes=self._settings.max_body_bytes)
        fields: Mapping[str, object] = {}
        media_type = media_type_of(request)
        if media_type in FORMATS and takes_files(match.route.request_schema):
            require_identity(request)
            fields = file_fields(media_type, body)
        elif body:
            require_json(request)
            fields = read_object(body, code="INVALID_BODY")
        return {**fields, **query, **match.parameters}

    async def _ask(
        self, route: HttpRoute, payload: bytes, request: Request, token: bytes | None
    ) -> Response:
        headers = trace_headers(request) | _idempotency(request)
        if token is not None:
            headers["Authorization"] = f"Bearer {token.decode()}"
        try:
            reply = await self._ctx.request(
                route.subject,
                payload,
                timeout_s=self._settings.request_timeout_s,
                headers=headers,
            )
        except RequestFailed as failed:
            refusal = explain_failure(failed)
            if token is not None:
                refusal = self._tokens.refused(request, refusal)
            raise refusal from failed
        except Unavailable as away:
            raise explain_absence(away) from away
        except Unsendable as unsendable:
            raise explain_refusal(unsendable) from unsendable
        if token is not None:
            self._tokens.accepted(request, token)
        if not reply.data:
            empty = HTTPStatus.NO_CONTENT if route.status == HTTPStatus.OK else route.status
            return Response(status_code=empty)
        return Response(reply.data, route.status, media_type=_media_type(route, reply))


def _media_type(route: HttpRoute, reply: Reply) -> str:
    """JSON by the route's schema or the reply's own header; no other type, as browsers run some.

    The schema `{}`, of the annotation `Any`, says nothing about the type.
    """
    says_json = reply.headers.get("Content-Type") == _JSON
    return _JSON if says_json or route.response_schema else _BYTES


def explain_failure(failed: RequestFailed) -> ProblemError:
    """The problem details for an endpoint's error.

    A body in the runtime's own form is meant for callers. Without such a body the description of a
    5xx may be an exception's text, which callers must not see.
    """
    status = failed.code if failed.code in _ERRORS else 502
    told = _read_details(failed.body)
    code = told.get("code") or code_of(status)
    detail = told.get("detail")
    if not detail:
        shown = status < HTTPStatus.INTERNAL_SERVER_ERROR and failed.description
        detail = failed.description if shown else f"The endpoint answered: {title(status)}."
    return ProblemError(
        status,
        code[:_MAX_TEXT_LENGTH],
        detail[:_MAX_TEXT_LENGTH],
        headers=_retry_after(failed),
        event_id=told.get("event_id", "")[:128] or None,
    )


def _retry_after(failed: RequestFailed) -> dict[str, str]:
    if failed.retry_after_s is None:
        return {}
    return {"Retry-After": str(min(failed.retry_after_s, _LONGEST_RETRY_AFTER_S))}


def explain_absence(away: Unavailable) -> ProblemError:
    """The problem details for a request without a reply."""
    if away.reason == "timeout":
        return ProblemError(504, "ENDPOINT_TIMEOUT", "The endpoint did not answer in time.")
    return ProblemError(503, "ENDPOINT_UNAVAILABLE", "No host serves this endpoint at present.")


def _of_tenant(fields: dict[str, object], tenant_id: str) -> dict[str, object]:
    """The fields, with the tenant that the key says; nobody may name another.

    Raises:
        ProblemError: 403, because the request names another tenant.
    """
    if fields.get("tenant_id", tenant_id) != tenant_id:
        raise ProblemError(403, "FORBIDDEN", "The key is another tenant's.")
    return {**fields, "tenant_id": tenant_id}


def _idempotency(request: Request) -> dict[str, str]:
    key = idempotency_key(request)
    return {} if key is None else {"Idempotency-Key": key}


def _read_query(query: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_QUERY_FIELDS,
        )
    except UnicodeDecodeError:
        raise ProblemError(400, "MALFORMED_QUERY", "The query is not UTF-8.") from None
    except ValueError:
        raise ProblemError(
            400, "MALFORMED_QUERY", f"A query may have at most {_MAX_QUERY_FIELDS} fields."
        ) from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ProblemError(400, "MALFORMED_QUERY", "The query names a parameter twice.")
    return fields


def _read_details(body: bytes) -> dict[str, str]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(document, dict) or not isinstance(document.get("code"), str):
        return {}
    return {name: value for name, value in document.items() if isinstance(value, str)}
