"""What devices ask of shadows, as far as the payload says it."""

from typing import Any

import pytest

from functions.domain.envelope import Envelope
from functions.domain.topics import SHADOW_REQUESTS, Topic, shadow_kind
from functions.shadow.requests import read_request, read_target
from functions.shadow.shadow import ChangeRefused, Update


def message(payload: dict[str, Any], kind: str = "shadow/update") -> Envelope:
    return Envelope(Topic("t", "d.1", kind), "", payload, 0, None, "t", None)


@pytest.mark.parametrize("name", ["", "config", "a:b_c-D"])
@pytest.mark.parametrize("request_kind", sorted(SHADOW_REQUESTS))
def test_the_topic_says_which_shadow_and_what(name: str, request_kind: str) -> None:
    target = read_target(message({"clientToken": "x"}, shadow_kind(name, request_kind)))
    assert target.key == ("t", "d.1", name)
    assert target.verb == ("update" if request_kind == "reported" else request_kind)
    assert target.client_token == "x"


@pytest.mark.parametrize("kind", ["shadow/reported", "shadow/update", "shadow/name/n/update"])
def test_an_update_has_two_forms(kind: str) -> None:
    short = read_request(message({"reported": {"a": 1}, "provision_token": "tok"}, kind))
    assert short.update == Update({"reported": {"a": 1}})
    full = {"state": {"reported": None, "desired": {"a": 1}}, "version": 3, "clientToken": "c"}
    assert read_request(message(full, kind)).update == Update(
        {"reported": None, "desired": {"a": 1}}, 3, "c"
    )


@pytest.mark.parametrize("kind", ["shadow/get", "shadow/name/n/delete"])
def test_a_question_or_deletion_needs_nothing(kind: str) -> None:
    request = read_request(message({}, kind))
    assert (request.update, request.version) == (None, None)
    assert read_request(message({"version": 4}, kind)).version == 4


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"reported": 5},
        {"reported": []},
        {"reported": {}, "state": {}},
        {"state": {}},
        {"state": []},
        {"state": {"other": {}}},
        {"state": {"desired": {}, "delta": {}}},
        {"state": {"desired": [1]}},
        {"reported": {"a": [None]}},
        {"reported": {"": 1}},
        {"reported": {"a": 1}, "version": -1},
        {"reported": {"a": 1}, "version": 1.0},
        {"reported": {"a": 1}, "version": True},
        {"reported": {"a": 1}, "version": "1"},
        {"reported": {"a": 1}, "clientToken": 5},
        {"reported": {"a": 1}, "clientToken": "x" * 65},
        {"reported": {"a": 1}, "clientToken": "é" * 33},
    ],
)
def test_what_is_no_update_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ChangeRefused) as refused:
        read_request(message(payload))
    assert refused.value.code == "SHADOW_INVALID"


def test_a_client_token_that_is_none_is_not_repeated() -> None:
    assert read_target(message({"clientToken": ["x"]})).client_token is None
    assert read_target(message({"clientToken": "x" * 65})).client_token is None
