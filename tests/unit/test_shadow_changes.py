"""Compares a shadow's changes with a plain model, for generated requests of AWS IoT's kinds."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.domain.downlinks import Downlink, downlink_stream_subject, read_downlink
from functions.domain.topics import SHADOW_ANSWERS, SHADOW_REQUESTS, BadTopic, shadow_kind
from functions.domain.values import same_json
from functions.shadow.answers import (
    MAX_BODY_BYTES,
    Cause,
    answer_to_delete,
    answer_to_get,
    answers_to_update,
    as_downlinks,
    encode,
    rejection,
    snapshot,
    stamped,
)
from functions.shadow.document import MAX_SECTION_BYTES, delta
from functions.shadow.shadow import ChangeRefused, Shadow, ShadowKey, Update
from runtime import Message
from tests.unit.test_shadow_document import PATCHES, plain_merge

KEY = ShadowKey("t", "d.1")
NAMED = ShadowKey("t", "d.1", "config")
CAUSE = Cause("SHADOW-1-2", 1_790_000_000, "mine")
SECTIONS = st.one_of(
    st.none(), st.dictionaries(st.sampled_from(["a", "b", "c"]), PATCHES, max_size=3)
)
# `version` is relative to the shadow's: 0 is right, everything else a conflict.
UPDATES = st.tuples(
    st.just("update"),
    st.dictionaries(st.sampled_from(["desired", "reported"]), SECTIONS, min_size=1),
    st.sampled_from([None, None, 0, -1, 1]),
)
DELETIONS = st.tuples(st.just("delete"), st.none(), st.sampled_from([None, 0, 1]))
HISTORIES = st.lists(st.one_of(UPDATES, UPDATES, UPDATES, DELETIONS), max_size=8)


@dataclass
class Model:
    """The rules in their plainest form."""

    version: int = 0
    exists: bool = False
    desired: dict[str, Any] = field(default_factory=dict)
    reported: dict[str, Any] = field(default_factory=dict)


def apply(shadow: Shadow, request: Any, sequence: int) -> str | None:
    """Make one change, as a message of that place; the code of its refusal."""
    verb, state, offset = request
    version = None if offset is None else max(0, shadow.version + offset)

    def stamp() -> int:
        return shadow.stamp_message(sequence, sequence * 1_000_000_000)

    try:
        if verb == "delete":
            shadow.delete(version, stamp)
        else:
            shadow.update(Update(state, version), stamp)
    except ChangeRefused as refused:
        return refused.code
    return None


def run(history: list[Any]) -> tuple[Shadow, Model]:
    shadow, model = Shadow(KEY), Model()
    for sequence, request in enumerate(history, start=1):
        verb, state, offset = request
        conflicts = bool(offset) and max(0, shadow.version + offset) != shadow.version
        before = snapshot(shadow)
        assert apply(shadow, request, sequence) == ("VERSION_CONFLICT" if conflicts else None)
        if conflicts:
            assert snapshot(shadow) == before
            continue
        model.version += 1
        model.exists = verb == "update"
        for section in ("desired", "reported"):
            patch = None if verb == "delete" else state.get(section, {})
            setattr(model, section, plain_merge(getattr(model, section), patch))
    return shadow, model


@given(HISTORIES)
def test_a_history_of_requests_leaves_what_the_plain_rules_say(history: list[Any]) -> None:
    shadow, model = run(history)
    assert shadow.version == model.version
    assert shadow.deleted is not model.exists
    assert same_json(shadow.desired.state(), model.desired)
    assert same_json(shadow.reported.state(), model.reported)
    assert same_json(shadow.delta(), delta(model.desired, model.reported))


@given(HISTORIES, st.integers(0, 7))
def test_a_late_request_changes_no_newer_value_and_brings_no_shadow_back(
    history: list[Any], place: int
) -> None:
    """One request comes after all others; only what nothing newer has written is different."""
    sent = [each for each in history if each[2] is None]
    if not sent:
        return
    in_order, _ = run(sent)
    late = place % len(sent)
    shuffled = Shadow(KEY)
    for number in [*(n for n in range(len(sent)) if n != late), late]:
        assert apply(shuffled, sent[number], number + 1) is None
    assert shuffled.version == in_order.version
    assert same_json(shuffled.desired.state(), in_order.desired.state())
    assert same_json(shuffled.reported.state(), in_order.reported.state())
    assert shuffled.deleted is in_order.deleted


@dataclass
class Change:
    """A change at a time, and when it is handled: a call of the API at once, a message later."""

    at_ns: int
    handled_ns: int
    is_call: bool
    request: Any


@st.composite
def timed_histories(draw: st.DrawFn) -> list[Change]:
    """Changes at different times, of which messages are handled in any order, calls at once."""
    requests = draw(st.lists(st.one_of(UPDATES, DELETIONS), min_size=1, max_size=7))
    changes = []
    for number, (verb, state, _) in enumerate(requests, start=1):
        is_call, at_ns = draw(st.booleans()), number * 1_000
        late_ns = 0 if is_call else draw(st.integers(0, 8)) * 1_000 + 1
        changes.append(Change(at_ns, at_ns + late_ns, is_call, (verb, state, None)))
    return changes


def make(shadow: Shadow, change: Change) -> None:
    verb, state, _ = change.request

    def stamp() -> int:
        if change.is_call:
            shadow.read_at_ns = change.at_ns
            return shadow.stamp_call()
        return shadow.stamp_message(change.at_ns, change.at_ns)

    if verb == "delete":
        shadow.delete(None, stamp)
    else:
        shadow.update(Update(state), stamp)


@given(timed_histories())
def test_messages_that_are_handled_late_and_calls_give_the_document_of_their_times(
    changes: list[Change],
) -> None:
    on_time, late = Shadow(KEY), Shadow(KEY)
    for change in changes:
        make(on_time, change)
    for change in sorted(changes, key=lambda each: each.handled_ns):
        make(late, change)
    assert same_json(late.desired.state(), on_time.desired.state())
    assert same_json(late.reported.state(), on_time.reported.state())
    assert (late.version, late.deleted) == (on_time.version, on_time.deleted)
    assert late.desired.metadata() == on_time.desired.metadata()


def test_after_the_servers_clock_was_put_back_messages_take_effect() -> None:
    shadow = Shadow(KEY)
    shadow.update(Update({"desired": {"a": 1}}), lambda: shadow.stamp_message(5, 5_000))
    shadow.read_at_ns = 6_000
    shadow.update(Update({"desired": {"a": 2}}), shadow.stamp_call)
    for sequence, stored_at_ns in ((6, 1_000), (7, 1_500)):
        update = Update({"desired": {"a": sequence}})
        shadow.update(update, partial(shadow.stamp_message, sequence, stored_at_ns))
        assert shadow.desired.state() == {"a": sequence}


@given(HISTORIES)
def test_what_a_device_does_with_each_delta_leaves_none(history: list[Any]) -> None:
    shadow, _ = run(history)
    obeyed = Update({"reported": shadow.delta()})
    shadow.update(obeyed, shadow.stamp_call)
    assert shadow.delta() == {}


@given(HISTORIES, SECTIONS)
def test_the_answers_to_an_update_fit_together(history: list[Any], patch: Any) -> None:
    shadow, _ = run(history)
    before, update = snapshot(shadow), Update({"reported": patch}, client_token="mine")
    at_ns = shadow.update(update, shadow.stamp_call)
    answers = dict(answers_to_update(update, at_ns, before, shadow, CAUSE))
    documents = answers["update/documents"]
    assert documents["previous"] == before
    assert documents["current"] == snapshot(shadow)
    assert documents["current"]["version"] == before["version"] + 1
    assert answers["update/accepted"]["state"] == {"reported": patch}
    assert ("delta" in answers) == bool(shadow.delta())
    for body in answers.values():
        assert (body["timestamp"], body["clientToken"]) == (1_790_000_000, "mine")
    shown = answer_to_get(shadow, CAUSE)
    assert shown.last == "get/accepted"
    assert shown.body["state"].get("delta", {}) == shadow.delta()
    assert shown.body["metadata"] == documents["current"]["metadata"]


def test_the_answers_are_in_the_form_of_aws_iot() -> None:
    shadow = Shadow(KEY)
    update = Update({"desired": {"fan": {"on": True}, "old": None}}, client_token="mine")
    at_ns = shadow.update(update, lambda: shadow.stamp_message(1, 5_000_000_000))
    time = {"fan": {"on": {"timestamp": 5}}}
    common = {"timestamp": 1_790_000_000, "clientToken": "mine"}
    answers = dict(answers_to_update(update, at_ns, snapshot(Shadow(KEY)), shadow, CAUSE))
    assert answers == {
        "update/accepted": {
            "state": {"desired": {"fan": {"on": True}, "old": None}},
            "metadata": {"desired": time},
            "version": 1,
            **common,
        },
        "update/documents": {
            "previous": {"state": {}, "metadata": {}, "version": 0},
            "current": {
                "state": {"desired": {"fan": {"on": True}}},
                "metadata": {"desired": time},
                "version": 1,
            },
            **common,
        },
        "delta": {"state": {"fan": {"on": True}}, "metadata": time, "version": 1, **common},
    }
    assert answer_to_get(shadow, CAUSE) == (
        "get/accepted",
        {
            "state": {"desired": {"fan": {"on": True}}, "delta": {"fan": {"on": True}}},
            "metadata": {"desired": time},
            "version": 1,
            **common,
        },
    )
    assert answer_to_delete(shadow, CAUSE) == ("delete/accepted", {"version": 1, **common})
    missing = {"code": 404, "message": "the device has no such shadow", **common}
    assert answer_to_get(None, CAUSE) == ("get/rejected", missing)
    assert answer_to_delete(None, CAUSE) == ("delete/rejected", missing)
    conflict = ChangeRefused("VERSION_CONFLICT", "the shadow has another version")
    assert rejection("update", conflict, Cause("x", 7)) == (
        "update/rejected",
        {"code": 409, "message": "the shadow has another version", "timestamp": 7},
    )


@pytest.mark.parametrize("key", [KEY, NAMED])
def test_every_answer_is_a_message_to_the_device_of_its_own(key: ShadowKey) -> None:
    shadow = Shadow(key)
    update = Update({"desired": {"a": 1}})
    at_ns = shadow.update(update, shadow.stamp_call)
    answers = answers_to_update(update, at_ns, snapshot(Shadow(key)), shadow, CAUSE)
    sent = as_downlinks(key, answers, CAUSE)
    below = "shadow/name/config/" if key.name else "shadow/"
    assert [(each.kind, each.key) for each in sent] == [
        (f"{below}update/accepted", "SHADOW-1-2"),
        (f"{below}update/documents", ""),
        (f"{below}delta", ""),
    ]
    assert len({each.msg_id for each in sent}) == 3
    assert orjson.loads(sent[2].body)["state"] == {"a": 1}


@given(
    st.sampled_from(["", "config", "n:1", "update"]),
    st.sampled_from(sorted(SHADOW_ANSWERS)),
    st.sampled_from(["", "SHADOW-1-2", "api-0f"]),
)
def test_a_door_reads_the_topic_whatever_the_key(name: str, last: str, key: str) -> None:
    kind = shadow_kind(name, last)
    subject = downlink_stream_subject("t", "d.1", kind, key)
    found = read_downlink(Message(subject, b"body"))
    assert isinstance(found, Downlink)
    assert (found.topic, found.body) == (("t", "d.1", kind), b"body")


@pytest.mark.parametrize("kind", [*sorted(SHADOW_REQUESTS), "other", "name.n", "update.x.y", ""])
def test_a_door_passes_on_nothing_else_about_shadows(kind: str) -> None:
    found = read_downlink(Message(f"downlinks.t.d.shadow.{kind}", b"body"))
    assert isinstance(found, BadTopic)


def test_an_answer_that_a_stream_would_refuse_goes_without_metadata() -> None:
    shadow = Shadow(KEY)
    many = {f"{number:x}": 0 for number in range(4000)}
    assert len(orjson.dumps(many)) < MAX_SECTION_BYTES
    for state in ({"desired": many}, {"reported": dict.fromkeys(many, 1)}):
        update, before = Update(state), snapshot(shadow)
        at_ns = shadow.update(update, shadow.stamp_call)
    answers = dict(answers_to_update(update, at_ns, before, shadow, CAUSE))
    assert len(orjson.dumps(answers["update/documents"])) > MAX_BODY_BYTES
    for body in [*answers.values(), answer_to_get(shadow, CAUSE).body]:
        assert len(encode(body)) <= MAX_BODY_BYTES
    told = orjson.loads(encode(answers["update/documents"]))
    assert told["current"] == {
        "state": {"desired": many, "reported": dict.fromkeys(many, 1)},
        "version": 2,
    }


def test_a_section_has_a_bound() -> None:
    shadow = Shadow(KEY)
    large = Update({"reported": {"a": "x" * MAX_SECTION_BYTES}})
    with pytest.raises(ChangeRefused, match="SHADOW_TOO_LARGE"):
        shadow.update(large, shadow.stamp_call)


def test_values_that_an_update_deletes_have_no_time() -> None:
    state = {"reported": {"a": None, "b": {"c": None}, "d": [1], "e": {"f": 0}}, "desired": None}
    assert stamped(state, 7) == {"reported": {"d": {"timestamp": 7}, "e": {"f": {"timestamp": 7}}}}
