"""docs/destinations.md names every field of every type, and shows configurations that work."""

import importlib
import json
import re

import pytest

from functions.domain.destination_schemas import DestinationSchema
from functions.management.destinations import complete
from tests.support.documentation import ROOT, in_code, read_table

PAGE = ROOT / "docs" / "destinations.md"
TYPES = ("slack", "mqtt_republish", "nats_republish", "postgresql", "email")


@pytest.mark.parametrize("name", TYPES)
def test_the_table_of_a_type_names_all_its_fields(name: str) -> None:
    model = importlib.import_module(f"functions.route_delivery.{name}").Destination
    rows = read_table(PAGE, name)
    assert {field for row in rows for field in in_code(row[0])} == model.model_fields.keys()


@pytest.mark.parametrize("name", TYPES)
def test_management_accepts_the_configuration_that_the_page_shows(name: str) -> None:
    model = importlib.import_module(f"functions.route_delivery.{name}").Destination
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {name}\n")[2]
    shown = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert shown is not None
    complete(name, DestinationSchema(model.model_json_schema()), json.loads(shown[1]))
