"""Slack's answers, and what a message may do."""

from datetime import UTC, datetime

import pytest

from functions.outbound.receipt import Outcome
from functions.outbound.transport.connection import Answer
from functions.route_delivery.slack import Destination, endpoint_of, escape, judge

NOW = datetime(2026, 8, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "body", "result", "health", "disables"),
    [
        (200, b"ok", ("delivered", ""), "answered", False),
        (404, b"no_service", ("refused", "ENDPOINT_GONE"), "answered", True),
        (404, b"no_team\n", ("refused", "ENDPOINT_GONE"), "answered", True),
        (410, b"channel_is_archived", ("refused", "ENDPOINT_GONE"), "answered", True),
        (404, b"channel_not_found", ("failed", "HTTP_404"), "answered", False),
        (404, b"<html>not Slack</html>", ("failed", "HTTP_404"), "answered", False),
        (403, b"action_prohibited", ("failed", "HTTP_403"), "answered", False),
        (400, b"invalid_payload", ("refused", "MESSAGE_NOT_ACCEPTED"), "answered", False),
        (400, b"no_text", ("refused", "MESSAGE_NOT_ACCEPTED"), "answered", False),
        (302, b"", ("failed", "HTTP_302"), "answered", False),
        (429, b"", ("failed", "HTTP_429"), "throttled", False),
        (500, b"rollup_error", ("failed", "HTTP_500"), "failed", False),
    ],
)
def test_each_answer_has_its_result(
    status: int, body: bytes, result: tuple[Outcome, str], health: str, disables: bool
) -> None:
    receipt = judge(Answer(status, {}, body), now=NOW, retry_after_cap_s=3600)
    assert (receipt.outcome, receipt.code) == result
    assert (receipt.health_of_endpoint, receipt.disables_route) == (health, disables)
    assert receipt.excerpt == body.decode()


@pytest.mark.parametrize(("given", "wait_s"), [("30", 30.0), ("99999", 3600.0), ("soon", None)])
def test_retry_after_is_honoured_up_to_its_cap(given: str, wait_s: float | None) -> None:
    answer = Answer(429, {"retry-after": given}, b"")
    assert judge(answer, now=NOW, retry_after_cap_s=3600).retry_after_s == wait_s


def test_a_device_can_mention_nobody() -> None:
    assert escape("<!channel> & <@U1|x>") == "&lt;!channel&gt; &amp; &lt;@U1|x&gt;"


def test_the_endpoint_shows_the_host_and_not_the_token() -> None:
    first, second = (
        Destination.model_validate({"url": f"https://hooks.slack.com/services/T/B/{token}"})
        for token in ("s3cret", "other")
    )
    key = endpoint_of(first)
    assert key.origin == "https://hooks.slack.com"
    assert "s3cret" not in key.name
    assert key != endpoint_of(second)
