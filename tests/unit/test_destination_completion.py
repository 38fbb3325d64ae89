"""What the management API adds to a configuration, keeps, rotates and refuses."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from functions.domain.destination_schemas import HIDDEN, DestinationSchema
from functions.management.destinations import complete, rotate, secret_to_show
from functions.outbound.endpoint import WebhookDestination
from runtime import Reject

WEBHOOK = DestinationSchema(WebhookDestination.model_json_schema())
URL = {"url": "https://example.org/in"}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = datetime(2026, 11, 28, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Mail(BaseModel):
    host: str
    password: SecretStr
    others: list[SecretStr] = []


MAIL = DestinationSchema(Mail.model_json_schema())


def webhook(given: dict[str, Any], **old: Any) -> dict[str, Any]:
    return complete("webhook", WEBHOOK, given, old=old)


def refusal_of(given: dict[str, Any], schema: DestinationSchema | None, **old: Any) -> str:
    with pytest.raises(Reject) as refused:
        complete("mail", schema, given, old=old)
    assert (refused.value.code, refused.value.status) == ("DESTINATION_INVALID", 422)
    return refused.value.reason


def test_a_secret_is_generated_unless_it_is_given_or_was_there_before() -> None:
    made = webhook(URL)
    assert made["secret"].startswith("whsec_")
    assert webhook(URL)["secret"] != made["secret"]
    assert webhook(URL | {"secret": SECRET})["secret"] == SECRET
    assert webhook(URL, **made)["secret"] == made["secret"]
    assert secret_to_show(WEBHOOK, made) == made["secret"]


def test_a_signing_key_is_made_when_it_is_asked_for_and_kept_from_then_on() -> None:
    assert "signing_key" not in webhook(URL)
    assert "signing_key" not in webhook(URL | {"ed25519": False})
    made = webhook(URL | {"ed25519": True})
    assert made["public_key"].startswith("whpk_")
    kept = webhook(URL, **made)
    assert (kept["signing_key"], kept["public_key"]) == (made["signing_key"], made["public_key"])


def test_older_secrets_are_kept_until_the_caller_gives_a_new_one() -> None:
    rotated = rotate(WEBHOOK, webhook(URL), now=NOW, overlap=HOUR)
    assert webhook(URL, **rotated)["previous_secrets"] == rotated["previous_secrets"]
    same = webhook(URL | {"secret": HIDDEN}, **rotated)
    assert same["previous_secrets"] == rotated["previous_secrets"]
    assert "previous_secrets" not in webhook(URL | {"secret": SECRET}, **rotated)


def test_three_stars_stand_for_the_secret_that_is_there() -> None:
    old = {"host": "a", "password": "hush", "others": ["x", "y"]}
    given = {"host": "b", "password": HIDDEN, "others": [HIDDEN, "z"]}
    assert complete("mail", MAIL, given, old=old) == {
        "host": "b",
        "password": "hush",
        "others": ["x", "z"],
    }


@pytest.mark.parametrize(
    "given",
    [
        {"host": "b", "password": HIDDEN},
        {"host": "b", "password": "p", "others": [HIDDEN]},
    ],
)
def test_three_stars_for_a_secret_that_is_not_there_are_refused(given: dict[str, Any]) -> None:
    assert "the route does not have" in refusal_of(given, MAIL)


def test_a_secret_that_is_not_generated_has_to_be_given_again() -> None:
    told = refusal_of({"host": "b"}, MAIL, host="a", password="hush")
    assert told == "destination_config of a mail: password is missing"


def test_what_the_api_writes_cannot_be_given() -> None:
    for name in ("previous_secrets", "signing_key", "public_key"):
        assert f"there is no {name}" in refusal_of({**URL, name: "x"}, WEBHOOK)


def test_a_type_that_is_not_known_takes_what_it_is_given() -> None:
    assert complete("pigeon", None, {"coop": 7}) == {"coop": 7}
    assert secret_to_show(None, {"secret": "x"}) is None


def test_a_rotation_without_overlap_drops_all_older_secrets() -> None:
    once = rotate(WEBHOOK, webhook(URL), now=NOW, overlap=HOUR)
    twice = rotate(WEBHOOK, once, now=NOW, overlap=HOUR)
    assert len(twice["previous_secrets"]) == 2
    assert rotate(WEBHOOK, twice, now=NOW, overlap=timedelta())["previous_secrets"] == []
    later = rotate(WEBHOOK, twice, now=NOW + 2 * HOUR, overlap=HOUR)
    assert len(later["previous_secrets"]) == 1


@pytest.mark.parametrize("schema", [MAIL, None])
def test_a_type_without_a_generated_secret_has_no_rotation(
    schema: DestinationSchema | None,
) -> None:
    with pytest.raises(Reject) as refused:
        rotate(schema, {"host": "a"}, now=NOW, overlap=HOUR)
    assert (refused.value.code, refused.value.status) == ("NO_ROTATION", 409)
