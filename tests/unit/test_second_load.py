"""A host loads its functions before its servers start, and again with the servers' addresses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import ConfigError
from runtime.loader import Function, Project
from tests.support.projects import forget_modules_of
from tests.unit.manifests import read_text

MODULE = """
from pydantic import BaseModel, SecretStr
from runtime import Context, Event

class Order(BaseModel):
    number: int

class Settings(BaseModel):
    url: str
    limit: int = 1

async def handle(event: Event[Order], ctx: Context) -> int: return 1
"""
MANIFEST = """
functions:
  f:
    handler: second_load:handle
    endpoint: {subject: f}
    settings: {url: '${URL}', limit: '${LIMIT:-1}'}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("second_load.py").write_text(MODULE)
    yield
    forget_modules_of(tmp_path)


def load(project: Project, text: str = MANIFEST, **environment: str) -> Function:
    return project.load(read_text(text, {"URL": "planned", **environment}))["f"]


def test_a_second_load_reads_the_settings_and_keeps_what_was_imported() -> None:
    project = Project()
    planned = load(project)
    Path("second_load.py").write_text("broken(")

    function = load(project, URL="real")

    assert (planned.settings.url, function.settings.url) == ("planned", "real")
    assert function.spec.settings["url"] == "real"
    assert function.decode is planned.decode
    assert function.code_version == planned.code_version != ""
    assert project.functions == {"f": function}


def test_an_entry_that_differs_in_more_than_its_settings_is_loaded_whole() -> None:
    project = Project()
    asked = load(project)
    changed = "streams: {S: {subjects: [s]}}" + MANIFEST.replace(
        "endpoint: {subject: f}", "consumer: {stream: S}"
    )

    function = load(project, changed, URL="real")

    assert asked.response_schema == {"type": "integer"}
    assert function.response_schema is None
    assert function.settings.url == "real"


def test_settings_that_are_wrong_with_the_real_addresses_are_told_with_their_place() -> None:
    project = Project()
    load(project)

    with pytest.raises(ConfigError) as caught:
        load(project, LIMIT="many")

    [problem] = caught.value.problems
    assert (problem.where, problem.field) == ("m.yaml:6", "functions.f.settings.limit")
