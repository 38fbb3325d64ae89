import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from runtime.cli.check import check
from runtime.cli.schema import schema
from runtime.manifest import read
from runtime.manifest.entries import ManifestFile
from runtime.manifest.model import (
    BatchSpec,
    ConsumerBindingSpec,
    ConsumerDefaults,
    EndpointBindingSpec,
    EndpointDefaults,
    FunctionDefaults,
    FunctionSpec,
    HttpDefaults,
    HttpSpec,
    Manifest,
    RateSpec,
    RetrySpec,
    ScheduleBindingSpec,
    ScheduleDefaults,
    StreamSpec,
)
from runtime.manifest.schema import draw_manifest_schema
from tests.support.documentation import in_code, read_blocks
from tools.manifest_reference import fill

REFERENCE = Path(__file__).parents[2] / "docs" / "manifest.md"
ENVIRONMENT = {"BANK_TOKEN": "token"}


def example() -> str:
    found = re.search(r"```yaml\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_reference_s_example_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(example())

    manifest = read([tmp_path], ENVIRONMENT)

    assert manifest.streams["ORDERS"].max_bytes == 512_000_000
    assert manifest.functions["count_orders"].retry.max_attempts == 5


def test_the_reference_s_example_uses_every_key() -> None:
    models: list[type[BaseModel]] = [
        BatchSpec,
        ConsumerBindingSpec,
        EndpointBindingSpec,
        FunctionSpec,
        HttpSpec,
        Manifest,
        RateSpec,
        RetrySpec,
        ScheduleBindingSpec,
        StreamSpec,
    ]
    written = set(re.findall(r"([a-z_]+):", example()))

    assert {key for model in models for key in model.model_fields} <= written


def test_the_reference_explains_every_key() -> None:
    explained = set(re.findall(r"`([a-z_]+)`", REFERENCE.read_text(encoding="utf-8")))
    models: list[type[BaseModel]] = [
        BatchSpec,
        ConsumerBindingSpec,
        EndpointBindingSpec,
        FunctionSpec,
        HttpSpec,
        Manifest,
        RateSpec,
        RetrySpec,
        StreamSpec,
    ]

    missing = {key for model in models for key in model.model_fields} - explained

    assert missing <= {"schedule"}


def test_the_schema_knows_every_key_and_lets_numbers_come_from_the_environment() -> None:
    result = CliRunner().invoke(schema)
    drawn: dict[str, Any] = json.loads(result.output)

    assert result.exit_code == 0
    assert drawn["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert drawn["additionalProperties"] is False
    function = drawn["$defs"]["FunctionSpec"]
    assert function["properties"].keys() == FunctionSpec.model_fields.keys()
    assert function["required"] == ["handler"]
    assert {"type": "string", "pattern": r"\$\{[^}]+\}"} in function["properties"]["concurrency"][
        "anyOf"
    ]


def test_the_schema_says_what_each_key_means() -> None:
    drawn = draw_manifest_schema()

    texts = {
        f"{name}.{field}": part.get("description")
        for name, model in {**drawn["$defs"], "file": drawn}.items()
        for field, part in model["properties"].items()
    }
    assert not [place for place, text in texts.items() if not text]
    assert texts["ConsumerBindingSpec.ack_wait"] == (
        "Time without a sign of life after which JetStream delivers a message again."
    )


def test_the_schema_takes_defaults_triggers_and_what_the_defaults_complete() -> None:
    drawn = draw_manifest_schema()

    assert drawn["properties"].keys() == ManifestFile.model_fields.keys()
    assert drawn["$defs"]["FunctionDefaults"].get("required") is None
    assert drawn["$defs"]["TriggeredFunctionSpec"]["required"] == ["handler", "triggers"]
    assert drawn["$defs"]["ConsumerBindingSpec"]["required"] == []


def test_the_tables_of_the_reference_are_those_of_the_models() -> None:
    page = REFERENCE.read_text("utf-8")

    assert fill(page) == page, "docs/manifest.md is not up to date: run `make reference`"


def test_the_reference_lists_what_defaults_do_not_take() -> None:
    page = " ".join(REFERENCE.read_text("utf-8").split())
    [told] = [text for text in page.split(". ") if "takes the keys of a function" in text]
    left_out = {
        "": FunctionSpec.model_fields.keys() - FunctionDefaults.model_fields.keys() | {"triggers"},
        "consumer": ConsumerBindingSpec.model_fields.keys() - ConsumerDefaults.model_fields.keys(),
        "endpoint": EndpointBindingSpec.model_fields.keys() - EndpointDefaults.model_fields.keys(),
        "endpoint.http": HttpSpec.model_fields.keys() - HttpDefaults.model_fields.keys(),
        "schedule": ScheduleBindingSpec.model_fields.keys() - ScheduleDefaults.model_fields.keys(),
    }

    parts = {"": told.split(": ")[0], **dict(zip(left_out, told.split("below"), strict=True))}
    for place, keys in left_out.items():
        shown = set(in_code(parts[place].split("except")[-1].split("but")[-1]))
        assert keys <= shown, place


def test_the_reference_shows_what_resolved_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = read_blocks(REFERENCE)
    [manifest] = [block.text for block in blocks if block.text.startswith("defaults:")]
    [shown] = [block.text for block in blocks if block.language == "text"]
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "prices.py").write_text(
        "from runtime import Context, Event\n"
        "async def get_price(event: Event[bytes], ctx: Context) -> int: ...\n"
        "set_price = get_price\n"
        "async def learn_prices(event: Event[bytes], ctx: Context) -> None:\n"
        '    """Learns the prices of a supplier."""\n'
    )
    (tmp_path / "shop.yaml").write_text(manifest)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    done = CliRunner().invoke(check, ["shop.yaml", "--resolved", "--function", "learn_prices"])
    for module in ("shop", "shop.prices"):
        del sys.modules[module]

    assert done.output == shown


def test_the_references_triggers_are_functions(tmp_path: Path) -> None:
    [text] = [block.text for block in read_blocks(REFERENCE) if "    triggers:\n" in block.text]
    (tmp_path / "m.yaml").write_text(text)

    assert read([tmp_path], {}).functions.keys() == {"count_orders_placed", "count_orders_asked"}
