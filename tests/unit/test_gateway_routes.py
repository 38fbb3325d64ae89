"""Endpoints' metadata becomes a route only if it is valid."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from functions.http_gateway import routes
from functions.http_gateway.route_trust import RouteTrust
from functions.http_gateway.routes import BadRouteError, HttpRoute, RouteTable
from runtime.registration import SIGNATURE, sign_registration

KEY = "the key that hosts and gateway share"
UNSIGNED = RouteTrust(None, [">"])


def parse_route(endpoint: dict[str, Any], trust: RouteTrust = UNSIGNED) -> HttpRoute | None:
    return routes.parse_route(endpoint, trust)


def trust(*unsigned_subjects: str) -> RouteTrust:
    return RouteTrust(SecretStr(KEY), unsigned_subjects)


def signed(shown: dict[str, Any], key: str = KEY, **later: str) -> dict[str, Any]:
    signature = sign_registration(key, shown["subject"], shown["metadata"])
    changed = {name.replace("__", "."): value for name, value in later.items()}
    return {**shown, "metadata": {**shown["metadata"], SIGNATURE: signature, **changed}}


def endpoint(**metadata: Any) -> dict[str, Any]:
    texts = {"http.method": "GET", "http.path": "/devices/{device_id}", "function": "get_device"}
    texts |= {key.replace("__", "."): value for key, value in metadata.items()}
    return {
        "name": "get_device",
        "subject": "devices.get",
        "queue_group": "q",
        "metadata": {key: value for key, value in texts.items() if value is not None},
    }


def route(method: str, path: str, subject: str = "a.b") -> HttpRoute:
    declared = {"http.method": method, "http.path": path}
    parsed = parse_route({"name": "f", "subject": subject, "metadata": declared})
    assert parsed is not None
    return parsed


def test_an_endpoint_without_a_path_asks_for_no_route() -> None:
    assert parse_route(endpoint(http__path=None)) is None
    assert parse_route({"name": "x", "subject": "y"}) is None
    assert parse_route({"name": "x", "subject": "y", "metadata": None}) is None


def test_a_sound_endpoint_becomes_a_route() -> None:
    schema = {"type": "object"}
    found = parse_route(
        endpoint(http__auth="none", http__status="201", schema__request=json.dumps(schema))
    )
    assert found is not None
    assert found.path == "/devices/{device_id}"
    assert found.parameters == ("device_id",)
    assert (found.auth, found.status, found.subject) == ("none", 201, "devices.get")
    assert found.request_schema == schema
    assert found.response_schema is None


def test_a_route_needs_the_admin_key_by_default() -> None:
    found = parse_route(endpoint())
    assert found is not None
    assert found.auth == "admin"


@pytest.mark.parametrize(
    "metadata",
    [
        {"http__method": None},
        {"http__method": "TRACE"},
        {"http__method": 7},
        {"http__path": "devices"},
        {"http__path": "/"},
        {"http__path": "/devices//x"},
        {"http__path": "/devices/../admin"},
        {"http__path": "/devices/{a}.json"},
        {"http__path": "/devices/{a}/{a}"},
        {"http__path": "/devices/%2e"},
        {"http__path": "/devices/<script>"},
        {"http__path": "/{anything}"},
        {"http__path": "/" + "x" * 300},
        {"http__path": "/ingest/v1/tenant"},
        {"http__path": "/bridge/v1/mqtt"},
        {"http__path": "/docs"},
        {"http__path": "/openapi.json"},
        {"http__path": "/healthz"},
        {"http__path": 4},
        {"http__auth": "nobody"},
        {"http__auth": 1},
        {"http__status": "500"},
        {"http__status": "2000"},
        {"http__status": "٢٠٠"},
        {"http__status": 200},
        {"schema__request": "no JSON"},
        {"schema__request": "[1]"},
        {"schema__request": '{"a":' * 100 + "1" + "}" * 100},
        {"schema__response": '"' + "x" * 300_000 + '"'},
    ],
)
def test_metadata_that_cannot_be_used_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(BadRouteError):
        parse_route(endpoint(**metadata))


@pytest.mark.parametrize(
    "subject",
    ["$JS.API.STREAM.DELETE.TELEMETRY", "$SYS.REQ.SERVER.PING", "a.*", "a.>", "", "a b", "a..b", 7],
)
def test_a_subject_that_nobody_outside_may_reach_is_refused(subject: Any) -> None:
    with pytest.raises(BadRouteError):
        parse_route({**endpoint(), "subject": subject})


def test_a_literal_segment_goes_before_a_parameter() -> None:
    table = RouteTable()
    table.replace([route("GET", "/devices/{id}", "by.id"), route("GET", "/devices/count", "count")])
    counted = table.find("GET", ("devices", "count"))
    single = table.find("GET", ("devices", "d1"))
    assert counted is not None
    assert counted.route.subject == "count"
    assert single is not None
    assert (single.route.subject, single.parameters) == ("by.id", {"id": "d1"})


def test_head_takes_the_route_of_get() -> None:
    table = RouteTable()
    table.replace([route("GET", "/devices")])
    assert table.find("HEAD", ("devices",)) is not None
    assert table.find("POST", ("devices",)) is None


def test_a_path_says_which_methods_it_takes() -> None:
    table = RouteTable()
    table.replace([route("DELETE", "/devices/{id}"), route("GET", "/devices/{id}")])
    assert table.methods(("devices", "d1")) == ["GET", "DELETE"]
    assert table.methods(("devices",)) == []


def test_an_empty_segment_fits_no_parameter() -> None:
    table = RouteTable()
    table.replace([route("GET", "/devices/{id}")])
    assert table.find("GET", ("devices", "")) is None


def test_the_revision_grows_only_with_a_change() -> None:
    table = RouteTable()
    table.replace([route("GET", "/a")])
    first = table.revision
    table.replace([route("GET", "/a")])
    assert table.revision == first
    table.replace([])
    assert table.revision > first
    assert len(table) == 0


def test_what_a_host_has_signed_is_served() -> None:
    found = parse_route(signed(endpoint(http__path="/api/v1/tenants")), trust())
    assert found is not None
    assert found.is_signed


@pytest.mark.parametrize(
    "shown",
    [
        endpoint(),
        signed(endpoint(), key="another key"),
        signed(endpoint(), http__auth="none"),
        signed(endpoint(), http__method="DELETE"),
        signed(endpoint(), http__path="/elsewhere"),
        signed(endpoint(), schema__request="{}"),
        signed(endpoint()) | {"subject": "rogue.get"},
        endpoint(http__signature=""),
        endpoint(http__signature="\u00fc"),
        endpoint(http__signature=7),
    ],
)
@pytest.mark.parametrize("trusted", [trust(), trust("billing.>"), RouteTrust(None, [])])
def test_what_no_host_has_signed_is_not_served(shown: dict[str, Any], trusted: RouteTrust) -> None:
    with pytest.raises(BadRouteError, match="RUNTIME_REGISTRATION_KEY"):
        parse_route(shown, trusted)


@pytest.mark.parametrize(
    ("allowed", "subject", "is_served"),
    [
        ("devices.get", "devices.get", True),
        ("devices.>", "devices.get", True),
        (">", "devices.get", True),
        ("devices", "devices.get", False),
        ("device.>", "devices.get", False),
        ("devices.get.>", "devices.get", False),
        (">", "management.devices.get", False),
        ("management.>", "management.devices.get", False),
    ],
)
def test_a_subject_that_the_settings_name_needs_no_signature(
    allowed: str, subject: str, is_served: bool
) -> None:
    shown = endpoint() | {"subject": subject}
    if is_served:
        found = parse_route(shown, trust(allowed))
        assert found is not None
        assert not found.is_signed
    else:
        with pytest.raises(BadRouteError):
            parse_route(shown, trust(allowed))


def test_the_management_api_is_never_served_unsigned() -> None:
    with pytest.raises(BadRouteError, match="reserved"):
        parse_route(endpoint(http__path="/api/v1/tenants", http__auth="none"), trust(">"))
