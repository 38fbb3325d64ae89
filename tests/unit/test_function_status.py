from dataclasses import replace

from runtime.deployments.function_status import LONGEST_ERROR, FunctionStatus
from runtime.loader import Function, load_all
from tests.support.host import make_manifest


def load() -> Function:
    spec = {"handler": "on_request", "endpoint": {"subject": "ask.it"}}
    return load_all(make_manifest({"ask": spec}))["ask"]


def test_a_version_is_shown_with_the_time_since_when_it_runs() -> None:
    status = FunctionStatus(load())

    found = status.as_metadata()

    assert found["function"] == "ask"
    assert found["handler"] == "tests.support.workload:on_request"
    assert found["version_since"].endswith("Z")
    assert "reloaded_at" not in found
    assert '"number"' in status.schemas()["schema.request"]


def test_a_failed_reload_shows_its_error_on_one_line_and_keeps_the_version() -> None:
    status = FunctionStatus(load())
    before = status.as_metadata()

    status.failed("shop.py:3: invalid syntax\n> 3 │ def (\x1b[31m" + "x" * 2000)
    found = status.as_metadata()

    assert found["code_version"] == before["code_version"]
    assert found["version_since"] == before["version_since"]
    assert found["reload_error"].startswith("shop.py:3: invalid syntax > 3 │ def (")
    assert "\x1b" not in found["reload_error"]
    assert len(found["reload_error"]) <= LONGEST_ERROR


def test_a_later_version_removes_the_error_and_shows_its_own_schemas() -> None:
    status = FunctionStatus(load())
    status.failed("broken")

    status.swapped(replace(status.function, code_version="abc", request_schema=None))
    found = status.as_metadata()

    assert found["code_version"] == "abc"
    assert "reload_error" not in found
    assert found["reloaded_at"] >= found["version_since"][:19]
    assert "schema.request" not in status.schemas()


def test_a_reload_that_finds_the_same_version_leaves_its_time() -> None:
    status = FunctionStatus(load())
    before = status.as_metadata()

    status.swapped(status.function)

    assert status.as_metadata()["version_since"] == before["version_since"]
