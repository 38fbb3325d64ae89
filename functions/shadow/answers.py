"""What the platform sends about a shadow: the bodies of the answers, the delta and the documents.

Source: AWS IoT developer guide, "Device Shadow service documents"; the topics are those of AWS
below `tenant/{tenant_id}/device/{device_id}/shadow`, except `delta`, which AWS calls
`update/delta`. All pure.
"""

from typing import Any, NamedTuple

import orjson

from functions.domain.downlinks import NewDownlink
from functions.domain.topics import shadow_kind
from functions.shadow.document import pick
from functions.shadow.section import NS_PER_S, Json
from functions.shadow.shadow import ChangeRefused, Shadow, ShadowKey, Update

MAX_BODY_BYTES = 200_000
"""A larger body goes without its metadata; the values alone always have less."""

# Of these the newest of a shadow counts, so no door needs an older one.
_OF_THE_MOMENT = frozenset({"delta", "update/documents", "get/accepted"})
_CODES = {
    "SHADOW_INVALID": 400,
    "SHADOW_NOT_FOUND": 404,
    "VERSION_CONFLICT": 409,
    "TOO_MANY_SHADOWS": 409,
    "SHADOW_TOO_LARGE": 413,
    "RATE_LIMITED": 429,
}


class Answer(NamedTuple):
    """A message about a shadow.

    Attributes:
        last: one of `topics.SHADOW_ANSWERS`.
        body: its fields.
    """

    last: str
    body: Json


class Cause(NamedTuple):
    """What an answer answers.

    Attributes:
        origin: names the request for ever: letters, digits, `_` and `-`.
        at_s: when it came, in seconds since 1970.
        client_token: the sender's own name for the request; None without one.
    """

    origin: str
    at_s: int
    client_token: str | None = None


def snapshot(shadow: Shadow) -> Json:
    """State, metadata and version, as the documents and the answer to `get` show them.

    A section without a value is left out.
    """
    sections = {"desired": shadow.desired, "reported": shadow.reported}
    filled = {name: section for name, section in sections.items() if section.state()}
    return {
        "state": {name: section.state() for name, section in filled.items()},
        "metadata": {name: section.metadata() for name, section in filled.items()},
        "version": shadow.version,
    }


def answers_to_update(
    update: Update, stamp_ns: int, before: Json, shadow: Shadow, cause: Cause
) -> list[Answer]:
    """What an accepted update sends: `accepted`, `documents`, and the delta if there is one.

    Args:
        update: the update, whose own values `accepted` repeats.
        stamp_ns: the update's stamp.
        before: the `snapshot` from before it.
        shadow: the shadow with the update.
        cause: the request.
    """
    accepted = {
        "state": update.state,
        "metadata": stamped(update.state, stamp_ns // NS_PER_S),
        "version": shadow.version,
    }
    documents = {"previous": before, "current": snapshot(shadow)}
    answers = [
        Answer("update/accepted", _signed(accepted, cause)),
        Answer("update/documents", _signed(documents, cause)),
    ]
    if difference := shadow.delta():
        delta = {
            "state": difference,
            "metadata": pick(shadow.desired.metadata(), difference),
            "version": shadow.version,
        }
        answers.append(Answer("delta", _signed(delta, cause)))
    return answers


def answer_to_get(shadow: Shadow | None, cause: Cause) -> Answer:
    """The document with its delta, or 404."""
    if shadow is None or shadow.deleted:
        return _not_found("get", cause)
    document = snapshot(shadow)
    if difference := shadow.delta():
        document["state"]["delta"] = difference
    return Answer("get/accepted", _signed(document, cause))


def answer_to_delete(shadow: Shadow | None, cause: Cause) -> Answer:
    """The version of the deleted shadow; 404 with None."""
    if shadow is None:
        return _not_found("delete", cause)
    return Answer("delete/accepted", _signed({"version": shadow.version}, cause))


def rejection(request: str, refused: ChangeRefused, cause: Cause) -> Answer:
    """The answer to a request that is refused: an HTTP status, and a sentence.

    Args:
        request: `update`, `get` or `delete`.
        refused: why.
        cause: the request.
    """
    body = {"code": _CODES[refused.code], "message": refused.reason}
    return Answer(f"{request}/rejected", _signed(body, cause))


def stamped(state: Json, at_s: int) -> Json:
    """The shape of an update's values with their time; what it deletes is left out."""
    shape: Json = {}
    for key, value in state.items():
        if isinstance(value, dict):
            if below := stamped(value, at_s):
                shape[key] = below
        elif value is not None:
            shape[key] = {"timestamp": at_s}
    return shape


def as_downlinks(key: ShadowKey, answers: list[Answer], cause: Cause) -> list[NewDownlink]:
    """The messages for the device."""
    return [
        NewDownlink(
            key.tenant_id,
            key.device_id,
            shadow_kind(key.name, answer.last),
            encode(answer.body),
            f"shadow-{cause.origin}-{answer.last.replace('/', '-')}",
            "" if answer.last in _OF_THE_MOMENT else cause.origin,
        )
        for answer in answers
    ]


def encode(body: Json) -> bytes:
    """The body as JSON. Thousands of short values have more metadata than a stream takes."""
    data = orjson.dumps(body)
    return data if len(data) <= MAX_BODY_BYTES else orjson.dumps(_without_metadata(body))


def _without_metadata(body: Json) -> Json:
    return {
        key: _without_metadata(value) if key in {"previous", "current"} else value
        for key, value in body.items()
        if key != "metadata"
    }


def _not_found(request: str, cause: Cause) -> Answer:
    missing = ChangeRefused("SHADOW_NOT_FOUND", "the device has no such shadow")
    return rejection(request, missing, cause)


def _signed(body: dict[str, Any], cause: Cause) -> Json:
    token = {} if cause.client_token is None else {"clientToken": cause.client_token}
    return {**body, "timestamp": cause.at_s, **token}
