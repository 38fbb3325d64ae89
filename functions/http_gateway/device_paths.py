"""The paths of devices in the gateway's OpenAPI document."""

from typing import Any

COMPONENTS = "#/components/schemas/"
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}

PROBLEM_ANSWER = {
    "description": "Problem details",
    "content": {"application/problem+json": {"schema": {"$ref": f"{COMPONENTS}Problem"}}},
}


def parameter(name: str, place: str, schema: object, *, required: bool) -> dict[str, Any]:
    """A parameter of an operation; `place` is `path`, `query` or `header`."""
    return {"name": name, "in": place, "required": required, "schema": schema}


def device_paths() -> dict[str, Any]:
    """What devices send and ask for."""
    ids = [
        parameter(
            "tenant_id", "path", {**_TEXT, "pattern": "^[A-Za-z0-9_-]{1,64}$"}, required=True
        ),
        parameter(
            "device_id", "path", {**_TEXT, "pattern": "^[A-Za-z0-9_.:-]{1,128}$"}, required=True
        ),
    ]
    base = "/ingest/v1/tenant/{tenant_id}/device/{device_id}"
    msg_type = parameter(
        "msg_type", "path", {**_TEXT, "pattern": "^[a-z0-9_]{1,32}$"}, required=True
    )
    name = parameter("name", "path", {**_TEXT, "pattern": "^[A-Za-z0-9_:-]{1,64}$"}, required=True)
    return {
        f"{base}/{{msg_type}}": {
            "post": _ingest_operation("post_message", "Send a message", [*ids, msg_type])
        },
        f"{base}/{{msg_type}}/batch": {
            "post": _batch_operation("post_messages", "Send messages", [*ids, msg_type])
        },
        f"{base}/commands": {"get": _poll_operation(ids)},
        **_shadow_paths(f"{base}/shadow", ids, ""),
        **_shadow_paths(f"{base}/shadow/name/{{name}}", [*ids, name], "named_"),
        f"{base}/commands/ack": {
            "post": _ingest_operation("post_ack", "Acknowledge a command", ids)
        },
    }


def _shadow_paths(base: str, parameters: list[dict[str, Any]], which: str) -> dict[str, Any]:
    sent = {
        "reported": "Report the state",
        "update": "Update a shadow",
        "delete": "Delete a shadow",
    }
    return {
        base: {"get": _shadow_operation(f"get_own_{which}shadow", parameters)},
        **{
            f"{base}/{last}": {
                "post": _ingest_operation(f"post_{which}{last}", summary, parameters)
            }
            for last, summary in sent.items()
        },
    }


def _shadow_operation(name: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "operationId": name,
        "tags": ["devices"],
        "summary": "Get a shadow",
        "parameters": [
            *parameters,
            parameter("X-Provision-Token", "header", _TEXT, required=False),
            parameter("If-None-Match", "header", _TEXT, required=False),
        ],
        "responses": {
            "200": {
                "description": "The shadow",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            "304": {"description": "The shadow is the one with this tag"},
            "default": PROBLEM_ANSWER,
        },
    }


def _poll_operation(ids: list[dict[str, Any]]) -> dict[str, Any]:
    answer = {
        "type": "object",
        "properties": {"commands": {"type": "array", "items": {"type": "object"}}},
    }
    ttd = {"type": "integer", "minimum": 0, "maximum": 60}
    return {
        "operationId": "poll_commands",
        "tags": ["devices"],
        "summary": "Get open commands",
        "description": "Waits for `ttd` seconds when there is none.",
        "parameters": [
            *ids,
            parameter("X-Provision-Token", "header", _TEXT, required=True),
            parameter("ttd", "query", ttd, required=False),
            parameter("known", "query", _TEXT, required=False),
        ],
        "responses": {
            "200": {"description": "Open", "content": {"application/json": {"schema": answer}}},
            "204": {"description": "None"},
            "default": PROBLEM_ANSWER,
        },
    }


def _batch_operation(name: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    operation = _ingest_operation(name, summary, parameters)
    item = {"type": "object", "properties": {"index": _COUNT, "status": _COUNT, "code": _TEXT}}
    answer = {
        "type": "object",
        "properties": {
            "accepted": _COUNT,
            "refused": _COUNT,
            "items": {"type": "array", "items": item},
        },
    }
    content = {"application/json": {"schema": answer}}
    return {
        **operation,
        "description": "Answers for each message by itself.",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        },
        "responses": {
            "202": {"description": "All are stored", "content": content},
            "207": {"description": "Some are not stored", "content": content},
            "default": PROBLEM_ANSWER,
        },
    }


def _ingest_operation(name: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    headers = [
        parameter("X-Provision-Token", "header", _TEXT, required=False),
        parameter("Idempotency-Key", "header", _TEXT, required=False),
    ]
    stored = {"schema": {"$ref": f"{COMPONENTS}Stored"}}
    return {
        "operationId": name,
        "tags": ["devices"],
        "summary": summary,
        "description": "Answered when the message is stored. Function `ingest` checks it later and "
        "quarantines a message that it refuses.",
        "parameters": [*parameters, *headers],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        "responses": {
            "202": {"description": "Stored", "content": {"application/json": stored}},
            "default": PROBLEM_ANSWER,
        },
    }
