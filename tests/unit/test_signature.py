"""Compares signatures with Standard Webhooks' test vector and library."""

import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from functions.route_delivery.signature import Signer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8


def sign(body: bytes, *secrets: str) -> dict[str, str]:
    return Signer(secrets or [SECRET]).sign("job-1", int(time.time()), body)


def test_the_reference_vector_is_reproduced() -> None:
    # Source: standard-webhooks, libraries/python/tests/test_webhooks.py, test_sign_function.
    headers = Signer([SECRET]).sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_"), "whsec_c2VjcmV0cw"])
def test_a_receiver_can_verify_what_was_signed(secret: str) -> None:
    body = '{"name":"Zürich","fraction":"½"}'
    headers = sign(body.encode(), secret)
    assert Webhook(secret).verify(body, headers) == {"name": "Zürich", "fraction": "½"}


def test_a_receiver_with_either_key_verifies_while_a_key_is_rotated() -> None:
    headers = sign(b"{}", SECRET, OLD_SECRET)
    assert Webhook(SECRET).verify("{}", headers) == {}
    assert Webhook(OLD_SECRET).verify("{}", headers) == {}


def test_a_changed_body_is_not_verified() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify('{"a":1}', sign(b"{}"))


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a", "whsec_ä"])
def test_an_unusable_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="signing secret") as refused:
        Signer([secret])
    assert not secret or secret not in str(refused.value)
    assert not secret or secret not in str(refused.value.__cause__)


def test_a_message_id_with_a_dot_is_refused() -> None:
    with pytest.raises(ValueError, match="dot"):
        Signer([SECRET]).sign("a.b", 0, b"{}")
