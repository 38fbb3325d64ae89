"""A device's commands over HTTP: `GET …/tenant/{tenant_id}/device/{device_id}/commands`."""

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions.domain.topics import Topic
from functions.http_gateway.bodies import BodyReader
from functions.http_gateway.command_polls import CommandPolls, Poll, read_poll
from functions.http_gateway.device_admission import DeviceAdmission
from functions.http_gateway.device_messages import header_token, read_device_path
from functions.http_gateway.json_answers import send_json
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request

_OK = 200


class DeviceCommands:
    """Answers with the open commands of a device that proves itself, or 204 without any."""

    def __init__(
        self, bodies: BodyReader, admission: DeviceAdmission | None, polls: CommandPolls
    ) -> None:
        self._bodies = bodies
        self._admission = admission
        self._polls = polls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one poll."""
        request = Request(scope, receive)
        topic = read_device_path(scope["raw_path"])
        poll = read_poll(request) or Poll(0, [])
        await self._require(request, topic)
        await self._bodies.read(request, limit_bytes=0)
        commands = await self._polls.find(request, topic, poll)
        if commands:
            await send_json(send, _OK, orjson.dumps({"commands": commands}))
        else:
            await Response(status_code=204)(scope, receive, send)

    async def _require(self, request: Request, topic: Topic) -> None:
        if self._admission is None:
            # Nobody else would check who reads them.
            raise ProblemError(403, "FORBIDDEN", "This gateway does not check tokens of devices.")
        await self._admission.require(request, topic, header_token(request))
        self._admission.rates.take(topic)


__all__ = ["DeviceCommands"]
