"""Reads what a device asks of a shadow. Pure."""

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from functions.domain.envelope import Envelope
from functions.shadow.document import InvalidDocument, check_patch
from functions.shadow.shadow import ChangeRefused, ShadowKey, Update

Verb = Literal["update", "get", "delete"]

_VERBS: dict[str, Verb] = {
    "reported": "update",
    "update": "update",
    "get": "get",
    "delete": "delete",
}
_MAX_CLIENT_TOKEN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Target:
    """Which shadow a device's message is about, and what it asks.

    Attributes:
        client_token: the device's own name for the request; None without a usable one.
    """

    key: ShadowKey
    verb: Verb
    client_token: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """What a message asks.

    Attributes:
        update: for the verb `update`.
        version: for the verb `delete`: the version that the shadow must have; None for any.
    """

    update: Update | None = None
    version: int | None = None


def read_target(envelope: Envelope) -> Target:
    """The shadow in a message's topic, `shadow/…` or `shadow/name/{name}/…`."""
    levels = envelope.msg_type.split("/")
    name = "" if len(levels) == 2 else levels[2]  # noqa: PLR2004 - the form without a name
    token = envelope.payload.get("clientToken")
    key = ShadowKey(envelope.tenant_id, envelope.device_id, name)
    return Target(key, _VERBS[levels[-1]], token if _is_client_token(token) else None)


def read_request(envelope: Envelope) -> Request:
    """What a message asks of its shadow.

    An update has two forms: `{"reported": {…}}`, and AWS IoT's `{"state": {"reported": {…},
    "desired": …}}`. Each request may have `version` and `clientToken`; a question has no version.

    Raises:
        ChangeRefused: `SHADOW_INVALID`.
    """
    target, payload = read_target(envelope), envelope.payload
    version = payload.get("version")
    if payload.get("clientToken") is not None and target.client_token is None:
        raise ChangeRefused("SHADOW_INVALID", "`clientToken` may be a text of up to 64 bytes")
    if version is not None and (type(version) is not int or version < 0):
        raise ChangeRefused("SHADOW_INVALID", "`version` is not a whole number of at least 0")
    if target.verb == "update":
        return Request(update=Update(_read_state(payload), version, target.client_token))
    return Request(version=version)


def _read_state(payload: dict[str, Any]) -> dict[str, Any]:
    if ("state" in payload) == ("reported" in payload):
        raise ChangeRefused("SHADOW_INVALID", "expected either `reported` or `state`")
    state = payload.get("state", {"reported": payload.get("reported")})
    if not isinstance(state, dict) or not state or state.keys() - {"desired", "reported"}:
        raise ChangeRefused("SHADOW_INVALID", "`state` may hold `reported` and `desired` only")
    try:
        for patch in state.values():
            check_patch(patch)
    except InvalidDocument as invalid:
        raise ChangeRefused("SHADOW_INVALID", str(invalid)) from None
    return state


def _is_client_token(token: Any) -> bool:  # noqa: ANN401 - as it came
    return isinstance(token, str) and len(orjson.dumps(token)) - 2 <= _MAX_CLIENT_TOKEN_BYTES
