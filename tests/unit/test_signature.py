"""Compares signatures with Standard Webhooks' test vector and library."""

import base64
import math
import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks import Webhook, WebhookVerificationError
from svix.webhooks import Webhook as SvixWebhook

from functions.domain.signing_keys import (
    PUBLIC_PREFIX,
    make_signing_key,
    public_key_of,
    read_signing_key,
)
from functions.outbound.signature import Signer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + "b2xk" * 8


def sign(body: bytes, *secrets: str) -> dict[str, str]:
    keys = [(secret, math.inf) for secret in secrets or [SECRET]]
    return Signer(keys).sign("job-1", int(time.time()), body)


def test_the_reference_vector_is_reproduced() -> None:
    # Source: standard-webhooks, libraries/python/tests/test_webhooks.py, test_sign_function.
    headers = Signer([(SECRET, math.inf)]).sign(
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


def test_the_library_of_svix_verifies_what_was_signed_while_a_key_is_rotated() -> None:
    private = make_signing_key()
    keys = [(SECRET, math.inf), (OLD_SECRET, time.time() + 60)]
    # Receivers ignore signatures of versions that they do not know, such as v1a.
    headers = Signer(keys, private).sign("job-1", int(time.time()), b'{"a": 1}')
    for secret in (SECRET, OLD_SECRET):
        SvixWebhook(secret).verify(b'{"a": 1}', headers)
        assert Webhook(secret).verify(b'{"a": 1}', headers) == {"a": 1}
    for secret, body in ((SECRET, b'{"a": 2}'), ("whsec_" + "bm9u" * 8, b'{"a": 1}')):
        with pytest.raises(WebhookVerificationError):
            SvixWebhook(secret).verify(body, headers)


def test_a_key_that_was_replaced_signs_until_its_time_and_not_longer() -> None:
    now_s = int(time.time())
    headers = Signer([(SECRET, math.inf), (OLD_SECRET, now_s)]).sign("job-1", now_s, b"{}")
    SvixWebhook(SECRET).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        SvixWebhook(OLD_SECRET).verify(b"{}", headers)


def test_a_changed_body_is_not_verified() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify('{"a":1}', sign(b"{}"))


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a", "whsec_ä"])
def test_an_unusable_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="signing secret") as refused:
        Signer([(secret, math.inf)])
    assert not secret or secret not in str(refused.value)
    assert not secret or secret not in str(refused.value.__cause__)


def test_a_message_id_with_a_dot_is_refused() -> None:
    with pytest.raises(ValueError, match="dot"):
        Signer([(SECRET, math.inf)]).sign("a.b", 0, b"{}")


def test_a_replaced_key_signs_until_its_time() -> None:
    signer = Signer([(SECRET, math.inf), (OLD_SECRET, 100.0)])
    before, after = (signer.sign("job-1", at_s, b"{}")["webhook-signature"] for at_s in (99, 100))
    assert [len(signatures.split(" ")) for signatures in (before, after)] == [2, 1]


def test_a_receiver_with_the_public_key_verifies_the_asymmetric_signature() -> None:
    key = make_signing_key()
    headers = Signer([(SECRET, math.inf)], key).sign("job-1", 1614265330, b"{}")
    symmetric, asymmetric = headers["webhook-signature"].split(" ")
    assert symmetric.startswith("v1,")
    version, _, signature = asymmetric.partition(",")
    assert version == "v1a"
    raw = base64.b64decode(public_key_of(key).removeprefix(PUBLIC_PREFIX))
    public = Ed25519PublicKey.from_public_bytes(raw)
    public.verify(base64.b64decode(signature), b"job-1.1614265330.{}")
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(signature), b"job-1.1614265330.{a}")


def test_a_receiver_that_knows_only_secrets_ignores_the_asymmetric_signature() -> None:
    headers = Signer([(SECRET, math.inf)], make_signing_key()).sign("a", int(time.time()), b"{}")
    assert Webhook(SECRET).verify("{}", headers) == {}


@pytest.mark.parametrize("text", ["", "whsk_", "whsk_c2VjcmV0", "c2VjcmV0", "whsec_c2VjcmV0"])
def test_an_unusable_signing_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="signing key") as refused:
        read_signing_key(text)
    assert "c2VjcmV0" not in str(refused.value)
