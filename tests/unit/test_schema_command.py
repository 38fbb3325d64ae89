"""`runtime schema`: of a manifest, and of what a function takes and gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from runtime.cli import main
from runtime.cli.failure import ExitCode

MANIFEST = """
streams:
  JOBS: {subjects: [jobs]}
functions:
  ask: {handler: "functions.shadow.endpoints:get_shadow", endpoint: {subject: ask}}
  raw: {handler: "tests.support.workload:on_event", consumer: {stream: JOBS}}
  partitions:
    handler: functions.ingest.partitions:make_partitions
    schedule: {every: 1h}
    uses: [postgres]
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.yaml").write_text(MANIFEST)


def _schema(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["schema", *arguments])
    assert done.exit_code == ExitCode.DONE, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_without_a_name_it_is_that_of_a_manifest() -> None:
    assert _schema()["title"] == "Runtime manifest"


def test_with_a_name_it_is_that_of_the_event_or_of_the_reply() -> None:
    event = _schema("ask", "-m", "app.yaml")

    assert {"tenant_id", "device_id"} <= event["properties"].keys()
    assert _schema("ask", "-m", "app.yaml", "--of", "event") == event
    assert _schema("ask", "-m", "app.yaml", "--of", "reply") != event


def test_the_settings_of_a_module_have_a_schema_too() -> None:
    settings = _schema("partitions", "-m", "app.yaml", "--of", "settings")

    assert settings["type"] == "object"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["raw", "-m", "app.yaml"], "function raw: it takes no event, or raw bytes"),
        (["raw", "-m", "app.yaml", "--of", "settings"], "its module has no Settings"),
        (["nope", "-m", "app.yaml"], "function nope: no manifest in app.yaml has it"),
        (["--of", "reply"], "--of needs the NAME of a function."),
        (["ask"], "manifests: no such file or folder"),
    ],
)
def test_what_has_no_schema_exits_with_2_and_one_sentence(
    arguments: list[str], complaint: str
) -> None:
    done = CliRunner().invoke(main, ["schema", *arguments])

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert complaint in done.stderr
