"""A device's shadow over HTTP: `GET …/tenant/{tenant_id}/device/{device_id}/shadow`."""

import hashlib

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions.domain.shadows import SUBJECT
from functions.domain.topics import Topic
from functions.http_gateway.bodies import BodyReader
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.device_messages import header_token, read_topic
from functions.http_gateway.door_rates import DoorRates
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from runtime import Context, RequestFailed, Unavailable, Unsendable

_QUESTION = b"/get"
_ANSWER_WITHIN_S = 5.0


class DeviceShadow:
    """Answers a device that proves itself with its shadow, as the management API shows it.

    The answer has an `ETag`; a device that sends it back as `If-None-Match` gets 304 while the
    shadow is the same.
    """

    def __init__(self, ctx: Context, bodies: BodyReader, admission: DeviceAdmission | None) -> None:
        self._ctx = ctx
        self._bodies = bodies
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one question."""
        request = Request(scope, receive)
        # As the device asks by MQTT: the path is that topic without its last level.
        topic = read_topic(scope["raw_path"] + _QUESTION)
        if scope["query_string"]:
            raise ProblemError(400, "MALFORMED_QUERY", "A shadow has no query.")
        rates = await self._require(request, topic)
        await self._bodies.read(request, limit_bytes=0)
        document = await self._ask(topic)
        rates.charge_shadow(topic, len(document))
        tag = f'"{hashlib.sha256(document).hexdigest()[:32]}"'
        if _is_known(request.headers.get("if-none-match", ""), tag):
            response = Response(status_code=304, headers={"ETag": tag})
        else:
            response = Response(document, media_type="application/json", headers={"ETag": tag})
        await response(scope, receive, send)

    async def _require(self, request: Request, topic: Topic) -> DoorRates:
        if self._admission is None:
            # Nobody else would check who reads it.
            raise ProblemError(403, "FORBIDDEN", "This gateway does not check tokens of devices.")
        await self._admission.require(request, topic, header_token(request))
        self._admission.rates.take(topic)
        self._admission.rates.require_shadow(topic)
        return self._admission.rates

    async def _ask(self, topic: Topic) -> bytes:
        levels = topic.msg_type.split("/")
        question = {
            "tenant_id": topic.tenant_id,
            "device_id": topic.device_id,
            "name": levels[2] if levels[1] == "name" else "",
        }
        try:
            reply = await self._ctx.request(
                SUBJECT, orjson.dumps(question), timeout_s=_ANSWER_WITHIN_S
            )
        except RequestFailed as failed:
            if failed.code == 404:  # noqa: PLR2004 - HTTP's
                raise ProblemError(
                    404, "SHADOW_NOT_FOUND", "The device has no such shadow."
                ) from failed
            raise _unavailable() from failed
        except (Unavailable, Unsendable) as failed:
            raise _unavailable() from failed
        return reply.data


def _is_known(header: str, tag: str) -> bool:
    """Whether `If-None-Match` names the tag, by weak comparison. Source: RFC 9110, 13.1.2."""
    return any(each.strip().removeprefix("W/") in {tag, "*"} for each in header.split(","))


def _unavailable() -> ProblemError:
    return ProblemError(
        503, "SHADOW_UNAVAILABLE", "The shadow cannot be read at present; ask again."
    )


__all__ = ["DeviceShadow"]
