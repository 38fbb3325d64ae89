"""The OpenAPI document describes the requests and answers of the routes."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field

from functions.http_gateway.named_schemas import SCHEMAS_OF
from functions.http_gateway.openapi import draw_openapi
from functions.http_gateway.route_trust import RouteTrust
from functions.http_gateway.routes import HttpRoute, parse_route


class Place(BaseModel):
    site: str


class Device(BaseModel):
    tenant_id: str
    device_id: str
    place: Place
    children: list["Device"] = []


def make(method: str, path: str, **metadata: str) -> HttpRoute:
    declared = {
        "http.method": method,
        "http.path": path,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    announced = {"name": "save", "subject": "devices.save", "metadata": declared}
    found = parse_route(announced, RouteTrust(None, [">"]))
    assert found is not None
    return found


def schema_of(model: type[BaseModel]) -> str:
    return json.dumps(model.model_json_schema())


def references(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(references, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*map(references, value.values()))


def test_definitions_stand_among_the_components_and_every_reference_finds_one() -> None:
    drawn = draw_openapi(
        [
            make("POST", "/devices", schema__request=schema_of(Device)),
            make("GET", "/devices/{device_id}", schema__response=schema_of(Device)),
        ]
    )
    assert "$defs" not in json.dumps(drawn)
    names = {f"#/components/schemas/{name}" for name in drawn["components"]["schemas"]}
    assert references(drawn) <= names
    assert "#/components/schemas/Place" in references(drawn)


def test_two_definitions_of_one_name_are_kept_apart() -> None:
    one = {"$defs": {"Item": {"type": "string"}}, "$ref": "#/$defs/Item"}
    other = {"$defs": {"Item": {"type": "integer"}}, "$ref": "#/$defs/Item"}
    drawn = draw_openapi(
        [
            make("GET", "/one", schema__response=json.dumps(one), function="one"),
            make("GET", "/other", schema__response=json.dumps(other), function="other"),
        ]
    )

    def answer(path: str) -> Any:
        content = drawn["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
        return drawn["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]

    assert answer("/one") == {"type": "string"}
    assert answer("/other") == {"type": "integer"}


def test_path_parameters_leave_the_body() -> None:
    schema = {
        "type": "object",
        "properties": {"device_id": {"type": "string", "maxLength": 9}, "site": {"type": "string"}},
        "required": ["device_id", "site"],
    }
    drawn = draw_openapi([make("PUT", "/devices/{device_id}", schema__request=json.dumps(schema))])
    operation = drawn["paths"]["/devices/{device_id}"]["put"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"] == {"site": {"type": "string"}}
    assert body["required"] == ["site"]
    assert operation["parameters"] == [
        {
            "name": "device_id",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "maxLength": 9},
        }
    ]


def test_further_fields_of_get_are_query_parameters() -> None:
    schema = {
        "type": "object",
        "properties": {"device_id": {"type": "string"}, "limit": {"type": "integer"}},
        "required": ["device_id"],
    }
    drawn = draw_openapi([make("GET", "/devices/{device_id}", schema__request=json.dumps(schema))])
    operation = drawn["paths"]["/devices/{device_id}"]["get"]
    assert "requestBody" not in operation
    assert [(p["name"], p["in"], p["required"]) for p in operation["parameters"]] == [
        ("device_id", "path", True),
        ("limit", "query", False),
    ]


def test_only_routes_with_the_admin_key_ask_for_it() -> None:
    drawn = draw_openapi(
        [make("GET", "/closed"), make("GET", "/open", http__auth="none", http__status="204")]
    )
    assert drawn["paths"]["/closed"]["get"]["security"] == [{"adminKey": []}]
    assert "security" not in drawn["paths"]["/open"]["get"]
    assert "204" in drawn["paths"]["/open"]["get"]["responses"]


def test_device_ingest_is_described_too() -> None:
    paths = draw_openapi([])["paths"]
    base = "/ingest/v1/tenant/{tenant_id}/device/{device_id}"
    ends = {"{msg_type}", "{msg_type}/batch", "commands", "commands/ack"}
    for shadow in ("shadow", "shadow/name/{name}"):
        ends |= {shadow, *(f"{shadow}/{last}" for last in ("reported", "update", "delete"))}
    assert set(paths) == {f"{base}/{end}" for end in ends}
    assert "202" in paths[f"{base}/commands/ack"]["post"]["responses"]


def test_an_invalid_schema_makes_a_document_without_failing() -> None:
    nonsense = {"properties": 7, "required": "x", "$defs": [1], "$ref": 3, "anyOf": {"a": None}}
    drawn = draw_openapi(
        [
            make("POST", "/x", schema__request=json.dumps(nonsense)),
            make("GET", "/x", schema__request=json.dumps(nonsense)),
        ]
    )
    assert set(drawn["paths"]["/x"]) == {"get", "post"}


class Wanted(BaseModel):
    name: str
    form: Annotated[dict[str, Any], Field(json_schema_extra={SCHEMAS_OF: "forms.list"})]


def test_a_field_with_one_of_several_forms_shows_all_of_them() -> None:
    forms = {"forms.list": {"device": Device.model_json_schema(), "place": {"type": "object"}}}
    drawn = draw_openapi([make("POST", "/x", schema__request=schema_of(Wanted))], forms)
    body = drawn["paths"]["/x"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["form"]["anyOf"] == [
        {"$ref": "#/components/schemas/config.device"},
        {"$ref": "#/components/schemas/config.place"},
    ]
    device = drawn["components"]["schemas"]["config.device"]
    assert device == {"$ref": "#/components/schemas/Device"}
    names = {f"#/components/schemas/{name}" for name in drawn["components"]["schemas"]}
    assert references(drawn) <= names


def test_a_field_whose_forms_are_not_known_stays_as_it_is() -> None:
    drawn = draw_openapi([make("POST", "/x", schema__request=schema_of(Wanted))])
    body = drawn["paths"]["/x"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "anyOf" not in body["properties"]["form"]
