"""The results of endpoints' answers, and the validation of route configurations."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from functions.domain.retry_after import parse_retry_after
from functions.outbound.endpoint import (
    WebhookDestination,
    health_of,
    judge,
)
from functions.outbound.transport.connection import Answer

NOW = datetime(2026, 8, 1, 12, 0, 0, tzinfo=UTC)


def answer(status: int, **headers: str) -> Answer:
    return Answer(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, b"excerpt"
    )


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    receipt = judge(answer(status), now=NOW, retry_after_cap_s=60)
    assert (receipt.outcome, receipt.status_code, receipt.code) == ("delivered", status, "")


@pytest.mark.parametrize("status", [300, 301, 302, 307, 400, 401, 404, 422, 429, 500, 503, 599])
def test_every_other_status_is_tried_again(status: int) -> None:
    receipt = judge(answer(status), now=NOW, retry_after_cap_s=60)
    assert (receipt.outcome, receipt.code) == ("failed", f"HTTP_{status}")
    assert receipt.retry_after_s is None
    assert not receipt.disables_route


def test_410_refuses_the_job_and_disables_the_route() -> None:
    receipt = judge(answer(410, retry_after="5"), now=NOW, retry_after_cap_s=60)
    assert (receipt.outcome, receipt.code) == ("refused", "ENDPOINT_GONE")
    assert receipt.disables_route


def test_retry_after_is_honoured_up_to_the_cap() -> None:
    for wanted, expected in (("7", 7.0), ("999999", 60.0)):
        receipt = judge(answer(503, retry_after=wanted), now=NOW, retry_after_cap_s=60)
        assert receipt.retry_after_s == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("99999999999999999999", 9999999999.0),
        ("Sat, 01 Aug 2026 12:01:30 GMT", 90.0),
        ("Sat, 01 Aug 2026 11:00:00 GMT", 0.0),
        ("Saturday, 01-Aug-26 12:00:10 GMT", 10.0),
        ("Sat Aug  1 12:00:20 2026", 20.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text: str, seconds: float) -> None:
    assert parse_retry_after(text, now=NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "soon",
        "-5",
        "1.5",
        "²",
        "Sat, 99 Aug 2026 12:01:30 GMT",
        "Sat, 01 Aug 2026 12:01:30 +9999999999999999999",
        "1 Aug 99999999999999999999 12:01:30 GMT",
        "\x00",
        "1e9",
    ],
)
def test_a_retry_after_that_cannot_be_read_is_ignored(text: str | None) -> None:
    assert parse_retry_after(text, now=NOW) is None


@pytest.mark.parametrize(
    ("status", "health"),
    [
        (200, "answered"),
        (404, "answered"),
        (429, "throttled"),
        (502, "throttled"),
        (504, "throttled"),
        (500, "failed"),
        (503, "failed"),
    ],
)
def test_an_answer_says_whether_its_endpoint_works(status: int, health: str) -> None:
    assert health_of(status) == health


def destination(**fields: Any) -> WebhookDestination:
    config: dict[str, Any] = {"url": "https://example.com/hook", "secret": "whsec_c2VjcmV0"}
    return WebhookDestination.model_validate(config | fields)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "http://example.com:8080/a?b=c#d",
        "http://[2001:db8::1]:80/",
        "https://bücher.example/",
    ],
)
def test_http_and_https_urls_are_usable(url: str) -> None:
    assert destination(url=url).target.host


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "http://",
        "http:///path",
        "https://user@example.com/",
        "https://user:hunter2@example.com/",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://[fe80::1%25eth0]/",
        "http://exa mple.com/",
        "http://example.com/\r\nx: y",
    ],
)
def test_any_other_url_is_not_usable_and_is_not_repeated(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        destination(url=url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "other"},
        {"content-length": "1"},
        {"Webhook-Signature": "v1,x"},
        {"a b": "c"},
        {"a": "b\r\nc: d"},
        {"a": "ü"},
        {"": "x"},
        {f"h{n}": "x" for n in range(21)},
    ],
)
def test_headers_that_would_change_the_request_are_not_usable(headers: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        destination(headers=headers)


def test_a_destination_shows_no_secret() -> None:
    text = repr(destination(url="https://example.com/T0KEN", headers={"authorization": "Bearer x"}))
    assert "c2VjcmV0" not in text
    assert "T0KEN" not in text
    assert "Bearer" not in text
