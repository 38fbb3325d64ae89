"""Reading stored configurations, and keeping their secrets out of exceptions."""

import json
import reprlib
import time
import traceback
from typing import Annotated
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from functions.domain.destination_secrets import Stored, owner_of
from functions.domain.secret_box import SecretBox, Unreadable
from functions.outbound.receipt import Receipt
from functions.route_delivery.destinations import (
    DestinationReader,
    EndpointKey,
    ReadDestination,
    Unusable,
    spellings_of,
)
from functions.route_delivery.faults_of_send import (
    SendFailed,
    receipt_without_secrets,
    without_secrets,
)

BOX = SecretBox(["k" * 32])
ROUTE = uuid4()
SECRET = "s3cr/et value"


class Destination(BaseModel):
    model_config = ConfigDict(extra="forbid")

    host: str
    token: SecretStr
    headers: dict[str, SecretStr] = {}

    @field_validator("host")
    @classmethod
    def _has_no_blank(cls, host: str) -> str:
        if " " in host:
            raise ValueError(f"{host} has a blank")
        return host


def config(host: str = "a", token: str = SECRET) -> str:
    return json.dumps({"host": host, "token": token})


def read(text: str) -> ReadDestination[Destination] | Unusable:
    return DestinationReader(Destination, None, BOX).read(Stored(text, None), ROUTE)


def test_one_configuration_is_read_once() -> None:
    reader = DestinationReader(Destination, lambda read: EndpointKey(read.host), BOX)
    first = reader.read(Stored(config(), None), ROUTE)
    assert isinstance(first, ReadDestination)
    assert first.endpoint == EndpointKey("a")
    assert reader.read(Stored(config(), None), ROUTE) is first
    assert reader.read(Stored(config("b"), None), ROUTE) is not first


def test_secrets_are_opened_with_the_key_and_for_their_own_route_alone() -> None:
    shown = json.dumps({"host": "a", "token": "***"})
    secrets = BOX.seal(json.dumps({"/token": SECRET}).encode(), owner_of(ROUTE))
    reader = DestinationReader(Destination, None, BOX)
    found = reader.read(Stored(shown, secrets), ROUTE)
    assert isinstance(found, ReadDestination)
    assert found.value.token.get_secret_value() == SECRET
    with pytest.raises(Unreadable):
        reader.read(Stored(shown, secrets), uuid4())
    for box, route in ((SecretBox([]), ROUTE), (BOX, uuid4())):
        with pytest.raises(Unreadable):
            DestinationReader(Destination, None, box).read(Stored(shown, secrets), route)


def test_without_a_rule_each_configuration_is_an_endpoint_and_its_key_shows_no_secret() -> None:
    one, other = read(config(token="a" * 9)), read(config(token="b" * 9))
    assert isinstance(one, ReadDestination)
    assert isinstance(other, ReadDestination)
    assert one.endpoint != other.endpoint
    assert one.endpoint.origin == ""
    assert "aaa" not in one.endpoint.name


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("{}", "host, token"),
        (config(host="SECRET HOST"), "host"),
        ('{"host": "a", "token": "t", "' + "k" * 200 + '": 1}', "k" * 64),
        ("[]", "all of it"),
        ("{", "all of it"),
    ],
)
def test_an_unusable_configuration_is_explained_by_fields_and_no_value(
    text: str, fields: str
) -> None:
    unusable = read(text)
    assert unusable == Unusable(f"the route's destination_config does not fit: {fields}")


def test_a_rule_for_endpoints_that_fails_makes_the_configuration_unusable() -> None:
    def refuse(destination: Destination) -> EndpointKey:
        raise ValueError(destination.token.get_secret_value())

    unusable = DestinationReader(Destination, refuse, BOX).read(Stored(config(), None), ROUTE)
    assert unusable == Unusable("the route's destination_config cannot be used")


def test_the_configurations_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.route_delivery.destinations._MAX_KEPT_BYTES", 10_000)
    reader = DestinationReader(Destination, None, BOX)
    for number in range(1000):
        reader.read(Stored(config(str(number) + "x" * 1000), None), ROUTE)
    assert reader._kept_bytes < 12_000
    assert len(reader._kept) < 12


def _failed(text: str) -> Exception:
    failure = ConnectionError("no connection")
    failure.__cause__ = ValueError(text)
    return failure


def test_an_exception_without_a_secret_is_passed_on_as_it_is() -> None:
    failure = _failed("plain")
    destination = Destination(host="a", token=SecretStr(SECRET))
    assert without_secrets(failure, spellings_of(destination)) is failure


@pytest.mark.parametrize("spelled", [SECRET, "s3cr%2Fet%20value", "s3cr/et%20value"])
def test_an_exception_with_a_secret_in_it_or_in_its_cause_is_replaced(spelled: str) -> None:
    destination = Destination(host="a", token=SecretStr("t"), headers={"x": SecretStr(SECRET)})
    for failure in (_failed(f"GET /{spelled}"), ConnectionError(f"to {spelled}")):
        safe = without_secrets(failure, spellings_of(destination))
        shown = "".join(traceback.format_exception(safe))
        assert isinstance(safe, SendFailed)
        assert str(safe).startswith("ConnectionError: ")
        assert spelled not in shown
        assert safe.__traceback__ is failure.__traceback__


@pytest.mark.parametrize(
    ("secret", "said", "shown"),
    [
        ("Token s3cret", "x-key: Token s3cret", "x-key: ***"),
        ("https://hooks.test/services/T0/B0/x", "Cannot POST /services/T0/B0/x", "Cannot POST ***"),
        (
            "s3cret-pass",
            "authorization: Basic dXNlcjpzM2NyZXQtcGFzcw==",
            "authorization: Basic ***",
        ),
        ("s3cret-pass", "Basic authentication failed", "Basic authentication failed"),
        ("https://hooks.test/", "no / here", "no / here"),
    ],
)
def test_an_answer_that_repeats_a_secret_of_its_request_is_shown_without_it(
    secret: str, said: str, shown: str
) -> None:
    secrets = spellings_of(Destination(host="a", token=SecretStr(secret)))
    receipt = receipt_without_secrets(Receipt("failed", "X", said, excerpt=said), secrets)
    assert (receipt.reason, receipt.excerpt) == (shown, shown)


class _Token(BaseModel):
    token: Annotated[str, Field(max_length=3)]


def _shown(failure: Exception, secret: str) -> str:
    destination = Destination(host="a", token=SecretStr(secret))
    safe = without_secrets(failure, spellings_of(destination))
    return "".join(traceback.format_exception(safe))


def test_what_a_library_shortens_or_quotes_shows_no_part_of_a_secret() -> None:
    secret = "".join(f"{number:03}-s3cret/" for number in range(20))
    with pytest.raises(ValidationError) as invalid:
        _Token(token=secret)
    assert f"'{secret[:8]}" in str(invalid.value)
    for failure in (invalid.value, ValueError(f"cannot use {reprlib.repr(secret)} here")):
        shown = _shown(failure, secret)
        assert secret[:8] not in shown
        assert secret[-8:] not in shown
    assert "cannot use '***...***' here" in shown
    pem = "-----BEGIN KEY-----\nMIIEvQIBADANBg'kqhkiG\n-----END KEY-----"
    for text in (repr(pem), json.dumps({"key": pem}), f"of {pem}"):
        assert "MIIEvQ" not in _shown(ValueError(text), pem)


def test_an_answer_that_is_cut_within_a_secret_shows_no_part_of_it() -> None:
    secret = "the-s3cret-of-this-route"
    secrets = spellings_of(Destination(host="a", token=SecretStr(secret)))
    for length in range(8, len(secret)):
        said = f"x-key: {secret[:length]}"
        receipt = receipt_without_secrets(Receipt("failed", "X", "", excerpt=said), secrets)
        assert receipt.excerpt == "x-key: ***"
    plain = "x-key: the-s3cret-of-another-route"
    receipt = receipt_without_secrets(Receipt("failed", "X", "", excerpt=plain), secrets)
    assert receipt.excerpt == plain


def test_many_secrets_in_a_long_answer_cost_little() -> None:
    secrets = spellings_of(
        Destination(
            host="a",
            token=SecretStr("a" * 4000),
            headers={str(number): SecretStr("ab" * 2000) for number in range(20)},
        )
    )
    said = "..." * 3000 + "ab" * 3500
    began_s = time.process_time()
    receipt_without_secrets(Receipt("failed", "X", "", excerpt=said), secrets)
    without_secrets(ValueError(said), secrets)
    assert time.process_time() - began_s < 1.0
