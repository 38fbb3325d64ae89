"""The OpenAPI 3.1 document of the gateway's current routes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from functions.http_gateway.device_paths import COMPONENTS, PROBLEM_ANSWER, device_paths, parameter
from functions.http_gateway.file_bodies import takes_files
from functions.http_gateway.named_schemas import NO_SCHEMAS, SCHEMAS_OF, Schemas
from functions.http_gateway.problems import title
from functions.http_gateway.routes import HttpRoute

_DEFS = "#/$defs/"
_NAME = re.compile(r"[^A-Za-z0-9._-]")
_QUERY_METHODS = {"GET", "DELETE"}
_TEXT = {"type": "string"}
_FILES = {kind: {"schema": _TEXT} for kind in ("text/csv", "application/x-ndjson")}

_Forms = Mapping[str, list[dict[str, str]]]
_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "admin": [{"adminKey": []}],
    "tenant": [{"tenantKey": []}, {"adminKey": []}],
    "bearer": [{"bearerToken": []}],
    "none": [],
}

_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details",
    "required": ["type", "title", "status", "detail", "code", "event_id", "instance"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": {"type": "string", "description": "reason code, stable"},
        "event_id": {"type": "string", "description": "identifies the failure in the logs"},
        "instance": _TEXT,
    },
}
_STORED = {
    "type": "object",
    "required": ["stream", "sequence", "duplicate"],
    "properties": {
        "stream": _TEXT,
        "sequence": {"type": "integer"},
        "duplicate": {"type": "boolean"},
    },
}


def draw_openapi(routes: Iterable[HttpRoute], schemas: Schemas = NO_SCHEMAS) -> dict[str, Any]:
    """The document: the paths of device ingest first, then every discovered route.

    Args:
        routes: the discovered ones.
        schemas: the forms of fields that have one of several.
    """
    components = _Components()
    forms = {subject: components.add(named) for subject, named in schemas.items()}
    paths = device_paths()
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, components, forms
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "HTTP gateway",
            "version": "1",
            "description": "Device ingest, and every function that is exposed over HTTP.",
        },
        "paths": paths,
        "components": {
            "schemas": components.schemas,
            "securitySchemes": {
                "adminKey": {"type": "http", "scheme": "bearer"},
                "bearerToken": {"type": "http", "scheme": "bearer"},
                "tenantKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of the tenant, which then needs no tenant_id.",
                },
            },
        },
    }


class _Components:
    """Schemas that several operations share, each under a name of its own."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {"Problem": _PROBLEM, "Stored": _STORED}

    def hoist(self, schema: Mapping[str, Any], owner: str) -> dict[str, Any]:
        """The schema, with its `$defs` moved to the components and its references changed."""
        definitions = schema.get("$defs")
        if not isinstance(definitions, dict):
            definitions = {}
        names = {
            name: self._name(name, definition, owner) for name, definition in definitions.items()
        }
        for name, definition in definitions.items():
            self.schemas[names[name]] = _rename(definition, names)
        rest = {key: value for key, value in schema.items() if key != "$defs"}
        renamed: dict[str, Any] = _rename(rest, names)
        return renamed

    def add(self, named: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
        """References to schemas, which become components under their names."""
        found = []
        for name, schema in named.items():
            hoisted = self.hoist(schema, name)
            component = self._name(f"config.{name}", hoisted, "schema")
            self.schemas[component] = hoisted
            found.append({"$ref": COMPONENTS + component})
        return found

    def _name(self, name: str, definition: object, owner: str) -> str:
        plain = _NAME.sub("_", name)
        for candidate in (plain, f"{plain}.{_NAME.sub('_', owner)}"):
            taken = self.schemas.get(candidate)
            if taken is None or taken == _rename(definition, {}):
                return candidate
        return f"{plain}.{_NAME.sub('_', owner)}.{len(self.schemas)}"


def _rename(value: object, names: Mapping[str, str]) -> Any:  # noqa: ANN401 - as deep as the schema
    if isinstance(value, list):
        return [_rename(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _rename(item, names) for key, item in value.items()}
    target = renamed.get("$ref")
    if isinstance(target, str) and target.startswith(_DEFS):
        name = target.removeprefix(_DEFS)
        renamed["$ref"] = COMPONENTS + names.get(name, _NAME.sub("_", name))
    return renamed


def _with_forms(schema: Any, forms: _Forms) -> Any:  # noqa: ANN401 - as deep as the schema
    """The schema, with the forms of each field that has one of several."""
    if isinstance(schema, list):
        return [_with_forms(item, forms) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if found := forms.get(str(schema.get(SCHEMAS_OF))):
        return {**schema, "anyOf": found}
    return {key: _with_forms(item, forms) for key, item in schema.items()}


def _operation(route: HttpRoute, components: _Components, forms: _Forms) -> dict[str, Any]:
    hoisted = components.hoist(route.request_schema or {}, f"{route.function}.request")
    schema: dict[str, Any] = _with_forms(hoisted, forms)
    properties = schema.get("properties")
    fields: dict[str, Any] = dict(properties) if isinstance(properties, dict) else {}
    # The key of a tenant says whose request it is; only the admin has to.
    known = {*route.parameters, *(["tenant_id"] if route.auth == "tenant" else [])}
    required = [name for name in _texts(schema.get("required")) if name not in known]
    parameters = [
        parameter(name, "path", fields.pop(name, _TEXT), required=True) for name in route.parameters
    ]
    operation: dict[str, Any] = {
        "operationId": f"{route.function}.{route.method.lower()}",
        "tags": [route.subject.partition(".")[0]],
        "summary": route.function.replace("_", " "),
        "responses": {
            str(route.status): _answer(route, components),
            "default": PROBLEM_ANSWER,
        },
    }
    if route.description:
        operation["description"] = route.description
    if security := _SECURITY[route.auth]:
        operation["security"] = security
    if route.method in _QUERY_METHODS:
        parameters += [
            parameter(name, "query", field, required=name in required)
            for name, field in fields.items()
        ]
    elif route.request_schema is not None:
        body = _without_path(schema, fields, required)
        operation["requestBody"] = {
            "required": bool(required) or "properties" not in body,
            "content": {
                "application/json": {"schema": body},
                **(_FILES if takes_files(route.request_schema) else {}),
            },
        }
    if route.auth == "tenant" and route.method == "POST":
        parameters.append(parameter("Idempotency-Key", "header", _TEXT, required=False))
    if parameters:
        operation["parameters"] = parameters
    return operation


def _without_path(
    schema: dict[str, Any], fields: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    if "properties" not in schema:
        return schema
    body = {**schema, "properties": fields, "required": required}
    if not required:
        del body["required"]
    return body


def _answer(route: HttpRoute, components: _Components) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": title(route.status)}
    if route.response_schema is not None:
        schema = components.hoist(route.response_schema, f"{route.function}.response")
        answer["content"] = {"application/json": {"schema": schema}}
    return answer


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
