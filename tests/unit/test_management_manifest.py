"""The host can run the shipped manifests of the management API, shadows and commands."""

import pytest

from runtime import manifest
from runtime.loader import load
from runtime.manifest import Manifest
from tests.support.documentation import ROOT, in_code, read_table


@pytest.fixture(scope="module")
def shipped() -> Manifest:
    return read("management", "shadow", "commands")


def read(*names: str) -> Manifest:
    return manifest.read([ROOT / "manifests" / f"{name}.yaml" for name in names], {})


def test_every_function_loads(shipped: Manifest) -> None:
    for name, spec in shipped.functions.items():
        assert load(name, spec).name == name


def test_every_endpoint_asks_for_the_admin_key_and_says_what_it_takes_and_gives(
    shipped: Manifest,
) -> None:
    endpoints = {name: spec for name, spec in shipped.functions.items() if spec.endpoint}
    # The gateway asks the one, for a device that has proved itself; doors report to the other.
    for name in ("poll_commands", "mark_commands_sent"):
        inner = endpoints.pop(name).endpoint
        assert inner is not None
        assert inner.http is None
    claimed = endpoints.pop("claim_device").endpoint
    assert claimed is not None
    assert claimed.http is not None
    # A device that has nothing but its claim code asks it.
    assert (claimed.http.auth, claimed.http.path) == ("bearer", "/provision/v1/claim")
    assert endpoints
    for name, spec in endpoints.items():
        assert spec.endpoint is not None
        assert spec.endpoint.http is not None, name
        assert spec.endpoint.http.auth == "admin", name
        assert spec.endpoint.http.path.startswith("/api/v1/"), name
        function = load(name, spec)
        assert function.request_schema, name
        assert function.response_schema, name


def test_a_tenants_programs_read_and_import_its_telemetry_with_its_key() -> None:
    functions = read("telemetry").functions
    for name in ("query_telemetry_buckets", "import_telemetry"):
        endpoint = functions[name].endpoint
        assert endpoint is not None
        assert endpoint.http is not None
        assert endpoint.http.auth == "tenant"
        assert "{tenant_id}" in endpoint.http.path


def test_no_path_parameter_is_unknown_to_its_request(shipped: Manifest) -> None:
    for name, spec in shipped.functions.items():
        if spec.endpoint is None or spec.endpoint.http is None:
            continue
        schema = load(name, spec).request_schema or {}
        parts = spec.endpoint.http.path.split("/")
        parameters = {part[1:-1] for part in parts if part.startswith("{")}
        assert parameters <= schema["properties"].keys(), name


def test_the_documentation_lists_every_operation() -> None:
    declared = {
        (f"{bound.http.method} {bound.http.path}", bound.subject, str(bound.http.status))
        for spec in read(
            "management", "shadow", "commands", "presence", "telemetry"
        ).functions.values()
        if (bound := spec.endpoint) and bound.http and bound.http.path.startswith("/api/v1/")
    }
    documented = set()
    for operation, subject, status, _ in read_table(ROOT / "docs/management-api.md", "Operations"):
        method, path = in_code(operation)[0].split()
        documented.add((f"{method} /api/v1{path}", in_code(subject)[0], status))
    assert documented == declared


@pytest.mark.parametrize("name", ["shadow", "commands"])
def test_tenants_take_turns_and_devices_have_a_rate(shipped: Manifest, name: str) -> None:
    spec = shipped.functions[name]
    # The second part of `shadow.{tenant}` and `commands.{tenant}`, in both forms.
    assert spec.fair_by is not None
    assert spec.fair_by.token == 2
    assert load(name, spec).settings.rate_per_s < 100
