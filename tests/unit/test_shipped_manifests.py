"""The shipped manifests, alone and with `--with`, and the manifests in the documents."""

from pathlib import Path

import pytest

from functions.domain.secret_box import SecretsSettings
from runtime.cli.manifests import GROUPS, SHIPPED, shipped_manifests, shipped_names
from runtime.loader import load_all
from runtime.manifest import read
from runtime.manifest.needs import find_missing
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.documentation import ROOT, in_code, read_blocks, read_table

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
)
ENVIRONMENT = {
    "MAIL_PASSWORD": "password",
    **placeholders(HostSettings()),
    "BANK_TOKEN": "token",
    "SUPPLIER_KEY": "key",
    "CARRIER_URL": "http://127.0.0.1:9",
}


@pytest.mark.parametrize("name", shipped_names())
def test_what_with_names_loads_by_itself(name: str) -> None:
    manifest = read(shipped_manifests([name]), ENVIRONMENT)

    assert len(load_all(manifest)) == len(manifest.functions)
    assert manifest.functions or manifest.streams


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["backbone"], []),
        (["commands", "routes", "shadow", "presence"], []),
        (["commands"], ["hand_over_jobs"]),
        (["telemetry"], ["hand_over_jobs"]),
        (["unmapped"], ["hand_over_jobs"]),
        (["routes", "shadow"], ["send_downlinks"]),
        (["presence"], ["hand_over_jobs", "route_device_events"]),
    ],
    ids=str,
)
def test_what_queues_messages_needs_what_publishes_them(
    names: list[str], missing: list[str]
) -> None:
    manifest = read(shipped_manifests(names), ENVIRONMENT)
    assert list(find_missing(manifest)) == missing


def test_a_group_names_shipped_manifests_and_none_twice() -> None:
    for members in GROUPS.values():
        assert len(set(members)) == len(members)
        assert all((SHIPPED / f"{member}.yaml").is_file() for member in members)


def test_a_manifest_that_is_named_twice_is_read_once() -> None:
    paths = shipped_manifests(["gateway", "backbone", "gateway"])

    assert len(paths) == len(set(paths)) == len(GROUPS["backbone"])


def test_the_shipped_manifests_are_those_of_the_repository() -> None:
    assert SHIPPED.resolve() == ROOT / "manifests"


def test_the_table_of_shipped_manifests_is_what_with_takes() -> None:
    rows = read_table(ROOT / "docs" / "installing.md", "Shipped manifests")

    assert [in_code(row[0])[0] for row in rows] == shipped_names()
    for row in rows:
        if (name := in_code(row[0])[0]) in GROUPS:
            assert tuple(in_code(row[1])) == GROUPS[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_manifest_that_a_document_shows_can_be_read(page: Path, tmp_path: Path) -> None:
    for block in read_blocks(page):
        if block.language != "yaml":
            continue
        file = tmp_path / "shown.yaml"
        file.write_text(block.text)
        manifest = read([file], ENVIRONMENT)
        shipped = [
            name
            for name, spec in manifest.functions.items()
            if spec.handler.startswith("functions.") and not block.name
        ]
        kept = {name: manifest.functions[name] for name in shipped}
        load_all(manifest.model_copy(update={"functions": kept, "migrations": {}}))


def test_whatever_reads_or_writes_the_secrets_of_destinations_gets_their_keys() -> None:
    manifest = read(sorted(SHIPPED.glob("*.yaml")), {**ENVIRONMENT, "SECRETS_KEYS": "k" * 32})
    functions = load_all(manifest).values()
    concerned = [each for each in functions if isinstance(each.settings, SecretsSettings)]
    assert len(concerned) > len(shipped_names()) / 2
    for function in concerned:
        if function.spec.handler.rpartition(":")[2] not in {
            "get_route",
            "list_routes",
            "delete_route",
        }:
            assert function.settings.secrets_keys, function.name
