"""What the MQTT bridge decides: message ids, who has which session, and its settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from functions.mqtt_bridge.packet_ids import RENEW_AFTER, Delivery, PacketIds
from functions.mqtt_bridge.places import Plan, Seen, plan
from functions.mqtt_bridge.settings import BridgeSettings

TOPIC = "tenant/t1/device/d1/telemetry"


def first(identifier: int, packet_id: int = 1) -> Delivery:
    return Delivery(packet_id, False, [identifier])


def again(identifier: int, packet_id: int = 1) -> Delivery:
    return Delivery(packet_id, True, [identifier])


def test_a_message_that_comes_again_has_its_id_after_a_reconnect() -> None:
    ids = PacketIds("bridge-1")
    identifier = ids.issue_identifier()
    known = ids.id_of(first(identifier), TOPIC, b"{}")
    ids.issue_identifier()
    assert ids.id_of(again(identifier), TOPIC, b"{}") == known


def test_a_message_that_comes_again_has_its_id_in_the_process_after_a_crash() -> None:
    killed = PacketIds("bridge-1")
    identifier = killed.issue_identifier()
    known = killed.id_of(first(identifier, 7), TOPIC, b"{}")
    successor = PacketIds("bridge-1")
    successor.issue_identifier()
    assert successor.id_of(again(identifier, 7), TOPIC, b"{}") == known


def test_a_message_whose_puback_was_lost_has_its_id() -> None:
    ids = PacketIds("bridge-1")
    identifier = ids.issue_identifier()
    known = ids.id_of(first(identifier), TOPIC, b"{}")
    ids.settle(1)
    assert ids.id_of(again(identifier), TOPIC, b"{}") == known


def test_a_message_that_was_queued_for_a_dead_process_has_a_new_id() -> None:
    # The dead process may have had another one of this packet id a minute ago.
    killed = PacketIds("bridge-1")
    identifier = killed.issue_identifier()
    successor = PacketIds("bridge-1")
    made = {each.id_of(first(identifier), TOPIC, b"{}") for each in (killed, successor)}
    assert len(made) == 2


def test_a_broker_without_subscription_identifiers_gives_each_delivery_a_new_id() -> None:
    ids = PacketIds("bridge-1")
    made = {ids.id_of(Delivery(1, False, ()), TOPIC, b"{}") for _ in range(3)}
    assert len(made) == 3


def test_other_sessions_topics_and_payloads_have_other_ids() -> None:
    made = {
        PacketIds(session).id_of(again(5), topic, payload)
        for session in ("bridge-1", "bridge-2")
        for topic, payload in ((TOPIC, b"{}"), (TOPIC, b"{ }"), (f"{TOPIC}{{", b"}"))
    }
    assert len(made) == 6


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=60))
def test_no_two_messages_share_an_id_however_a_broker_numbers_them(
    numbered: list[tuple[int, bool]],
) -> None:
    """Each first delivery is another message, with the same content."""
    ids = PacketIds("bridge-1")
    identifier = ids.issue_identifier()
    made: list[str] = []
    for packet_id, is_acknowledged in numbered:
        made.append(ids.id_of(first(identifier, packet_id), TOPIC, b"{}"))
        if is_acknowledged:
            ids.settle(packet_id)
        if ids.must_renew:
            identifier = ids.issue_identifier()
    assert len(set(made)) == len(made)


def test_an_identifier_is_renewed_before_packet_ids_repeat_under_it() -> None:
    ids = PacketIds("bridge-1")
    identifier = ids.issue_identifier()
    for number in range(1, RENEW_AFTER):
        ids.id_of(first(identifier, number), TOPIC, b"{}")
        ids.settle(number)
    assert not ids.must_renew
    ids.id_of(first(identifier, RENEW_AFTER), TOPIC, b"{}")
    assert ids.must_renew
    renewed = ids.issue_identifier()
    assert renewed != identifier
    assert not ids.must_renew
    # What is on its way under the old one keeps an id of its own.
    late = ids.id_of(first(identifier, RENEW_AFTER + 1), TOPIC, b"{}")
    assert f"/{identifier}/{RENEW_AFTER + 1}/" in late


def test_a_new_session_of_the_broker_begins_anew() -> None:
    ids = PacketIds("bridge-1")
    identifier = ids.issue_identifier()
    known = ids.id_of(first(identifier), TOPIC, b"{}")
    ids.forget_session()
    assert ids.id_of(first(ids.issue_identifier()), TOPIC, b"{}") != known


@pytest.mark.parametrize(
    ("sessions", "held", "hosts", "taken", "expected"),
    [
        (1, [], 1, [], Plan(claim=1)),
        (1, [], 2, [1], Plan()),
        (2, [1], 1, [1], Plan(claim=2)),
        (2, [1], 2, [1], Plan()),
        (2, [1, 2], 1, [1, 2], Plan()),
        # Another host has come.
        (2, [1, 2], 2, [1, 2], Plan(release=2)),
        (3, [1, 2], 2, [1, 2, 3], Plan()),
        (4, [1, 2, 3], 2, [1, 2, 3, 4], Plan(release=3)),
        # It has died.
        (4, [1, 2], 1, [1, 2, 4], Plan(claim=3)),
        # A host that does not see itself yet.
        (1, [], 0, [], Plan(claim=1)),
        (2, [], 3, [1, 2], Plan()),
    ],
)
def test_hosts_share_the_sessions(
    sessions: int, held: list[int], hosts: int, taken: list[int], expected: Plan
) -> None:
    assert plan(sessions, held, Seen(hosts, frozenset(taken))) == expected


@given(st.integers(1, 16), st.integers(1, 6))
def test_in_the_end_every_session_has_a_host_and_no_host_too_many(
    sessions: int, hosts: int
) -> None:
    held: list[set[int]] = [set() for _ in range(hosts)]
    held[0] = set(range(1, sessions + 1))  # The first host was alone before.
    for _ in range(sessions * 2):
        for mine in held:
            step = plan(sessions, mine, Seen(hosts, frozenset[int]().union(*held)))
            if step.claim is not None:
                mine.add(step.claim)
            mine.discard(step.release or 0)
    assert sorted(place for mine in held for place in mine) == list(range(1, sessions + 1))
    assert max(map(len, held)) <= -(-sessions // hosts)


def test_an_address_has_a_port_and_says_whether_it_is_encrypted() -> None:
    plain, encrypted = BridgeSettings(url="mqtt://broker"), BridgeSettings(url="mqtts://[::1]:99")
    assert (plain.broker_host, plain.broker_port, plain.tls) == ("broker", 1883, False)
    assert (encrypted.broker_host, encrypted.broker_port, encrypted.tls) == ("::1", 99, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "broker:1883"},
        {"url": "http://broker"},
        {"url": "mqtt://user:pw@broker"},
        {"url": "mqtt://broker/path"},
        {"url": "mqtt://broker:70000"},
        {"url": "mqtt://"},
        {"topics": ""},
        {"topics": "a/#/b"},
        {"topics": "a/b#"},
        {"topics": "a+/b"},
        {"topics": "$share/g/a"},
        {"topics": ",".join(["a"] * 17)},
        {"group": "a/b"},
        {"group": ""},
        {"client_id": "a b"},
        {"password": "pw"},
        {"authorities": "ca.pem"},
        {"sessions": 0},
        {"receive_maximum": 0},
        {"receive_maximum": 20_000},
        {"host": "broker"},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        BridgeSettings.model_validate(wrong)
    assert "pw" not in str(refused.value)


def test_variables_that_are_empty_count_as_unset() -> None:
    found = BridgeSettings.model_validate(
        {"authorities": "", "client_certificate": "", "username": "", "topics": "a/+, b/#"}
    )
    assert (found.authorities, found.client_certificate) == (None, None)
    assert found.topics == ("a/+", "b/#")
