"""Compares signatures with Standard Webhooks' test vector and library."""

from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from functions.route_delivery.signature import sign

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_reference_vector_is_reproduced() -> None:
    # Source: standard-webhooks, libraries/python/tests/test_webhooks.py, test_sign_function.
    headers = sign(
        SECRET,
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        sent_at=datetime.fromtimestamp(1614265330, UTC),
        body='{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_"), "whsec_c2VjcmV0cw"])
def test_a_receiver_can_verify_what_was_signed(secret: str) -> None:
    body = '{"name":"Zürich","fraction":"½"}'
    headers = sign(secret, message_id="job-1", sent_at=datetime.now(UTC), body=body)
    assert Webhook(secret).verify(body, headers) == {"name": "Zürich", "fraction": "½"}


def test_a_changed_body_is_not_verified() -> None:
    headers = sign(SECRET, message_id="job-1", sent_at=datetime.now(UTC), body="{}")
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify('{"a":1}', headers)


def test_fractions_of_a_second_do_not_break_the_signature() -> None:
    sent_at = datetime.now(UTC).replace(microsecond=999_999)
    headers = sign(SECRET, message_id="job-1", sent_at=sent_at, body="{}")
    assert Webhook(SECRET).verify("{}", headers) == {}


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a", "whsec_ä"])
def test_an_unusable_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="signing secret") as refused:
        sign(secret, message_id="job-1", sent_at=datetime.now(UTC), body="{}")
    assert refused.value.__suppress_context__
    assert not secret or secret not in str(refused.value)


def test_a_message_id_with_a_dot_is_refused() -> None:
    with pytest.raises(ValueError, match="dot"):
        sign(SECRET, message_id="a.b", sent_at=datetime.now(UTC), body="{}")
