import json

import pytest
from homelab import MAX_BYTES, Happening, Reading, is_name, read_line, split_subject
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("sensors.temperature.room1", ("temperature", "room1")),
        ("sensors.temperature.house.room1", ("temperature", "house.room1")),
        ("iot.sensors.temp.device001", ("temp", "device001")),
        ("iot.temp.device001", ("temp", "device001")),
        ("sensors.tempé.Küche", ("tempé", "Küche")),
        ("sensors.temperature", None),
        ("iot.sensors.temp", None),
        ("iot.sensors", None),
        ("other.temperature.room1", None),
        ("sensors.temperature.room\x01", None),
        ("sensors.temperature.\udcff", None),
        ("sensors.temperature." + "x" * 300, None),
    ],
)
def test_a_subject_names_kind_and_place(subject: str, expected: tuple[str, str] | None) -> None:
    assert split_subject(subject) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"value": 22.5, "unit": "C", "timestamp": "2025-07-15T10:30:00Z"}',
        '{"value": 45, "unit": "%"}',
        '{"detected": true, "timestamp": 1752575400}',
        '{"device_id": "device001", "sensor": "temperature", "value": 23.4, "location": "hall"}',
        '{"value": 1, "unit": "", "more": {"a": [1, 2]}}',
    ],
)
def test_a_reading_has_a_number_or_says_whether(text: str) -> None:
    Reading.model_validate_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "22.5",
        "[22.5]",
        "{}",
        '{"value": null}',
        '{"value": "22.5"}',
        '{"value": true}',
        '{"detected": 1}',
        '{"value": NaN}',
        '{"value": 1e999}',
        '{"value": 1, "unit": "\\u0000"}',
        '{"value": 1, "unit": "\\ud800"}',
        '{"value": 1, "unit": "%s"}' % ("x" * 65),
        '{"value": 1, "timestamp": "yesterday"}',
        '{"value": 1, "timestamp": "2025-07-15T10:30:00"}',
        '{"value": 1, "timestamp": "0001-01-01T00:00:00+14:00"}',
        '{"value": 1, "timestamp": 1e300}',
        '{"value": 1, "more": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_what_is_no_reading_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Reading.model_validate_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"by": "key", "times": [1, 2.5, null, true], "deep": {"a": {"b": "ü"}}}',
        '{"text": "\\\\u0000"}',
        '{"number": 123456789012345678901234567890}',
    ],
)
def test_an_event_stays_the_same_value(text: str) -> None:
    assert json.loads(Happening.model_validate_json(text).model_dump_json()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "[]",
        '{"a": "\\u0000"}',
        '{"\\u0000": 1}',
        '{"a": ["b", {"c": "\\u0000"}]}',
        '{"a": 1e999}',
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        b'{"a": "\xff"}',
    ],
)
def test_an_event_that_cannot_be_stored_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValidationError):
        Happening.model_validate_json(text)


def test_a_line_is_text_of_a_bounded_length() -> None:
    assert read_line(b"") == ""
    assert read_line("GET /ü 200\n".encode()) == "GET /ü 200\n"
    assert read_line(b"x" * MAX_BYTES) is not None
    assert read_line(b"x" * (MAX_BYTES + 1)) is None
    assert read_line(b"\xff\xfe") is None
    assert read_line(b"a\x00b") is None


def test_a_name_is_printable() -> None:
    assert is_name("logs.web")
    assert not is_name("logs.\udcff")
    assert not is_name("logs." + "x" * 300)
