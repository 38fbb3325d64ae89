"""What the management API says of a route's authentication to its endpoint, and what it hides."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from functions.domain.destination_schemas import DestinationSchema
from functions.management.destinations import complete
from functions.outbound.endpoint import WebhookDestination
from runtime import Reject
from tests.support.certificates import HOUR, self_signed

SCHEMA = DestinationSchema(WebhookDestination.model_json_schema())
URL = "https://example.org/in"
OAUTH2 = {
    "type": "oauth2",
    "token_url": "https://login.example.org/token",
    "client_id": "client",
    "client_secret": "geheim",
}


def configure(**given: Any) -> dict[str, Any]:
    return complete("webhook", SCHEMA, {"url": URL, **given})


def test_every_secret_of_an_authentication_is_hidden(tmp_path: Path) -> None:
    pem = self_signed("client", tmp_path).read_text()
    basic = configure(auth={"type": "basic", "username": "u", "password": "geheim"})
    oauth2 = configure(auth=OAUTH2, client_certificate=pem)
    assert {"/auth/password", "/secret"} == SCHEMA.find_secrets(basic).keys()
    assert {
        "/auth/client_secret",
        "/client_certificate",
        "/secret",
    } == SCHEMA.find_secrets(oauth2).keys()
    for config in (basic, oauth2):
        assert "geheim" not in repr(WebhookDestination.model_validate(config))


@pytest.mark.parametrize(
    "given",
    [
        {"auth": {"type": "digest", "username": "u", "password": "geheim"}},
        {"auth": {"type": "basic", "username": "u:v", "password": "geheim"}},
        {"auth": {"type": "basic", "username": "u"}},
        {"auth": {**OAUTH2, "token_url": "ftp://login.example.org/geheim"}},
        {"auth": {**OAUTH2, "client_id": ""}},
        {"auth": {**OAUTH2, "client_secret": "geheim\r\nx: y"}},
        {"auth": {"type": "basic", "username": "u", "password": "geheim\n"}},
        {"auth": {**OAUTH2, "client_authentication": "jwt"}},
        {"auth": {**OAUTH2, "grant": "password"}},
        {"auth": OAUTH2, "headers": {"authorization": "Bearer geheim"}},
    ],
)
def test_an_authentication_that_cannot_work_is_refused_when_the_route_is_saved(
    given: dict[str, Any],
) -> None:
    with pytest.raises(Reject) as refused:
        configure(**given)
    assert (refused.value.code, refused.value.status) == ("DESTINATION_INVALID", 422)
    assert "geheim" not in refused.value.reason


def test_a_broken_client_certificate_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    good, other = (self_signed(name, tmp_path).read_text() for name in ("good", "other"))
    old = self_signed("old", tmp_path, begins=-2 * HOUR, ends=timedelta(seconds=-1)).read_text()
    begin = "-----BEGIN CERTIFICATE-----"
    certificate, foreign_key = begin + good.split(begin)[1], other.split(begin)[0]
    for pem, told in (
        (certificate, "there is no private key beside the certificate"),
        (certificate + foreign_key, "the private key does not belong to the first certificate"),
        (old, "a certificate ended on"),
        ("geheim", "this is not a certificate in PEM"),
    ):
        with pytest.raises(Reject, match=f"client_certificate: {told}") as refused:
            configure(client_certificate=pem)
        assert "geheim" not in refused.value.reason
    with pytest.raises(Reject, match="authorities: a certificate ended on"):
        configure(authorities=old)
    assert configure(client_certificate=good, authorities=certificate)["authorities"]
