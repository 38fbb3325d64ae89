"""What answers of Twilio's API mean for a text message."""

from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest

from functions.messages.provider import Outcome
from functions.messages.sms import SmsSettings
from functions.messages.twilio import judge

NOW = datetime(2026, 11, 28, 22, 0, tzinfo=UTC)
MESSAGE = {"sid": "SM1", "status": "queued"}


def body(document: Any) -> bytes:
    return document if isinstance(document, bytes) else orjson.dumps(document)


@pytest.mark.parametrize(
    ("status", "document", "outcome", "code"),
    [
        (201, MESSAGE, "sent", ""),
        (201, MESSAGE | {"status": "accepted"}, "sent", ""),
        (201, MESSAGE | {"status": "delivered"}, "delivered", ""),
        (201, MESSAGE | {"status": "failed", "error_code": 30007}, "refused", "TWILIO_30007"),
        (201, {"status": "queued"}, "unknown", "ANSWER_UNREADABLE"),
        (200, b"<html>", "unknown", "ANSWER_UNREADABLE"),
        (302, b"", "failed", "HTTP_302"),
        (400, {"code": 21211}, "refused", "TWILIO_21211"),
        (400, {"code": 21610}, "refused", "TWILIO_21610"),
        (400, {"code": "21610"}, "failed", "HTTP_400"),
        (400, b"", "failed", "HTTP_400"),
        (400, {"code": 21611}, "busy", "TWILIO_21611"),
        (401, {"code": 20003}, "busy", "TWILIO_20003"),
        (403, b"", "busy", "HTTP_403"),
        (404, {"code": 20404}, "busy", "TWILIO_20404"),
        (429, {"code": 20429}, "busy", "TWILIO_20429"),
        (500, {"code": 20500}, "failed", "TWILIO_20500"),
        (502, b"", "unknown", "HTTP_502"),
        (503, b"", "failed", "HTTP_503"),
        (504, b"", "unknown", "HTTP_504"),
    ],
)
def test_an_answer_is_final_only_if_it_is_about_the_message(
    status: int, document: Any, outcome: Outcome, code: str
) -> None:
    found = judge(status, httpx.Headers(), body(document), now=NOW)
    assert (found.outcome, found.code, found.status_code) == (outcome, code, status)


@pytest.mark.parametrize(
    ("status", "header", "wait_s"),
    [
        (429, "7", 7.0),
        (429, "Sat, 28 Nov 2026 22:00:09 GMT", 9.0),
        (429, "86400", 3600.0),
        (429, "soon", None),
        (503, "3", 3.0),
        (401, None, 60.0),
        (401, "300", 300.0),
    ],
)
def test_the_wait_is_what_the_provider_asks_for(
    status: int, header: str | None, wait_s: float | None
) -> None:
    headers = httpx.Headers({} if header is None else {"Retry-After": header})
    assert judge(status, headers, b"", now=NOW).retry_after_s == wait_s


def test_a_reason_holds_nothing_that_the_provider_wrote() -> None:
    told = {"code": 21211, "message": "The 'To' number +436641234567 is not valid"}
    assert "+43" not in judge(400, httpx.Headers(), body(told), now=NOW).reason


@pytest.mark.parametrize(
    "url", ["ftp://a.example", "https://u:p@a.example", "a.example", "https://a?b"]
)
def test_a_base_url_that_is_none_is_an_error_of_the_manifest(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        SmsSettings(base_url=url)
