"""Templates of destinations: what they find, what they refuse, and their bounds."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from functions.route_delivery.job import Job
from functions.route_delivery.templates import FieldPath, TemplateText, look_up, render

TEMPLATES: TypeAdapter[str] = TypeAdapter(TemplateText)
PATHS: TypeAdapter[str] = TypeAdapter(FieldPath)


def job_with(payload: Any) -> Job:
    return Job(
        job_id="T-1-1-r",
        route_id="r",
        tenant_id="acme",
        device_id="d1",
        topic="tenant/acme/device/d1/telemetry",
        msg_type="telemetry",
        payload=payload,
        stored_at=datetime(2026, 8, 1, 12, tzinfo=UTC),
    )


JOB = job_with(
    {"metrics": {"temp": 21.5, "room temp": 3, "a.b": True}, "list": [1, "two"], "none": None}
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{device_id}: {payload.metrics.temp} °C", "d1: 21.5 °C"),
        ("{tenant_id}/{msg_type} {topic}", "acme/telemetry tenant/acme/device/d1/telemetry"),
        ("{stored_at} {job_id}", "2026-08-01T12:00:00Z T-1-1-r"),
        ('{payload.metrics."room temp"} {payload.metrics."a.b"}', "3 true"),
        ("{payload.list.1} {payload.list.0} {payload.list}", 'two 1 [1, "two"]'),
        ("[{payload.list.9}{payload.none}{payload.metrics.temp.x}{payload.absent.x}]", "[]"),
        ("{{device_id}} {{{device_id}}}", "{device_id} {d1}"),
        ("plain", "plain"),
    ],
)
def test_paths_in_braces_are_replaced_by_the_jobs_values(template: str, text: str) -> None:
    assert render(TEMPLATES.validate_python(template), JOB) == text


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{",
        "}",
        "{}",
        "{0}",
        "{secret}",
        "{device_id.__class__}",
        "{device_id!r}",
        "{device_id:>99999999}",
        "{payload[metrics]}",
        "{payload.}",
        "{payload..a}",
        "{payload" + ".a" * 17 + "}",
        "x" * 4001,
    ],
)
def test_anything_else_in_braces_is_refused_by_the_schema(template: str) -> None:
    with pytest.raises(ValidationError):
        TEMPLATES.validate_python(template)


@pytest.mark.parametrize(
    "path", ["", "payload.", "route_id", "payload.a b", "device_id.x", " topic"]
)
def test_a_path_that_is_none_is_refused_by_the_schema(path: str) -> None:
    with pytest.raises(ValidationError):
        PATHS.validate_python(path)


def test_the_provision_token_of_a_device_is_not_found() -> None:
    told = job_with({"provision_token": "s3cret", "temp": 1})
    assert "s3cret" not in render("{payload} {payload.provision_token}", told)


def test_values_and_the_text_are_bounded() -> None:
    long = job_with({"a": "x" * 100_000, "deep": [[["y" * 50_000]]]})
    assert len(render("{payload.a}", long)) == 1000
    assert len(render("{payload.deep}", long)) == 1000
    assert len(render("{payload.a}" * 300, long, max_characters=5000)) == 5000


def test_only_values_are_escaped() -> None:
    said = render(
        "<{payload}>", job_with("<!channel>"), escape=lambda text: text.replace("<", "&lt;")
    )
    assert said == "<&lt;!channel>>"


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert render("{payload}", job_with("a\ud800b")) == "a?b"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_no_payload_makes_a_template_fail(payload: Any) -> None:
    job = job_with(payload)
    render('{payload}{payload.a.b}{payload.0}{payload."x y".1}', job).encode()
    look_up("payload.a", job)


def test_the_check_takes_linear_time() -> None:
    began_s = time.monotonic()
    for hostile in ("{" * 3999, "{payload" + ".a" * 1990, '{payload."' * 400, "{{" * 1999 + "{"):
        with pytest.raises(ValidationError):
            TEMPLATES.validate_python(hostile)
    assert time.monotonic() - began_s < 1.0
