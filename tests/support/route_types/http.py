"""Counterparts of the types that speak HTTP."""

import json
from types import TracebackType
from typing import Any, ClassVar, Self

from tests.support.receiver import Answer, Receiver
from tests.support.route_types.counterpart import Arrived, Counterpart, Scene


class HttpCounterpart(Counterpart):
    """A local HTTP server."""

    path: ClassVar[str]

    async def __aenter__(self) -> Self:
        self.receiver = await Receiver().__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.receiver.__aexit__(kind, error, traceback)

    def config(self) -> dict[str, Any]:
        return {"url": f"http://localhost:{self.receiver.port}{self.path}"}

    def at(self, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"url": f"http://localhost:{port}{self.path}"}, {}

    async def failed(self) -> Scene:
        self.receiver.answers[:] = [Answer(500, body=b"oops")]
        return Scene("HTTP_500")

    async def later(self) -> Scene:
        self.receiver.answers[:] = [Answer(429, headers={"Retry-After": "7"})]
        return Scene("HTTP_429", waits_s=7.0)


class WebhookCounterpart(HttpCounterpart):
    """Any receiver of webhooks."""

    type_name = "webhook"
    module = "functions.route_delivery.webhook"
    path = "/hook/T0KEN"
    secrets = ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "s3cret-header")
    wrong = (
        {"url": "ftp://example.org/"},
        {"url": "https://user:pass@example.org/"},
        {"secret": "whsec_short"},
        {"headers": {"host": "internal"}},
        {"headers": {"x": "a\r\nb: c"}},
    )

    def config(self) -> dict[str, Any]:
        return {
            **super().config(),
            "secret": f"whsec_{self.secrets[0]}",
            "headers": {"authorization": self.secrets[1]},
        }

    async def arrived(self, count: int) -> list[Arrived]:
        return [
            Arrived(each.headers["webhook-id"], each.body.decode())
            for each in await self.receiver.received(count)
        ]

    async def refused(self) -> Scene:
        self.receiver.answers[:] = [Answer(410)]
        return Scene("ENDPOINT_GONE")


class SlackCounterpart(HttpCounterpart):
    """Answers as Slack does."""

    type_name = "slack"
    module = "functions.route_delivery.slack"
    path = "/services/T1/B1/T0KEN"
    secrets = ("T0KEN",)
    # Slack's API has no id for a message of an incoming webhook.
    has_identity = False
    wrong = (
        {"url": "hooks.slack.com/services"},
        {"url": "https://hooks.slack.com/a b"},
        {"text": "{payload.__class__()}"},
        {"text": ""},
        {"channel": "#unknown-field"},
    )

    async def arrived(self, count: int) -> list[Arrived]:
        return [
            Arrived("", json.loads(each.body)["text"])
            for each in await self.receiver.received(count)
        ]

    async def refused(self) -> Scene:
        self.receiver.answers[:] = [Answer(404, body=b"no_service")]
        return Scene("ENDPOINT_GONE")
