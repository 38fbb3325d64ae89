"""The JetStream API in memory: the requests that hosts and the test kit make."""

import base64
import json
from collections.abc import Callable
from typing import Any

from runtime.subjects import is_name, overlaps
from runtime.testing.server.consumer import Consumer, Outbox
from runtime.testing.server.errors import (
    NotModelled,
    Refused,
    missing_consumer,
    missing_message,
    missing_stream,
)
from runtime.testing.server.store import Stored
from runtime.testing.server.stream import Stream
from runtime.testing.server.times import WallClock

PREFIX = "$JS.API."
_PAGE = 256

Answer = dict[str, Any]
Request = dict[str, Any]


class JetStreamApi:
    """Answers API requests, and holds the streams.

    Args:
        clock: the server's.
        outbox: sends for consumers.
        post: publishes a message of the server itself.
    """

    def __init__(
        self, clock: WallClock, outbox: Outbox, post: Callable[[str, bytes, bytes], None]
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self._clock = clock
        self._outbox = outbox
        self._post = post
        self._verbs: dict[str, Callable[[list[str], Request], Answer]] = {
            "INFO": self._info,
            "STREAM.CREATE": self._create_stream,
            "STREAM.UPDATE": self._update_stream,
            "STREAM.INFO": self._stream_info,
            "STREAM.DELETE": self._delete_stream,
            "STREAM.PURGE": self._purge,
            "STREAM.NAMES": self._stream_names,
            "STREAM.LIST": self._stream_list,
            "STREAM.MSG.GET": self._get,
            "STREAM.MSG.DELETE": self._delete_message,
            "CONSUMER.CREATE": self._create_consumer,
            "CONSUMER.INFO": self._consumer_info,
            "CONSUMER.DELETE": self._delete_consumer,
            "CONSUMER.PAUSE": self._pause,
            "CONSUMER.NAMES": self._consumer_names,
            "CONSUMER.LIST": self._consumer_list,
        }

    def answer(self, subject: str, data: bytes) -> Answer:
        """Answer a request; errors are answers too.

        Raises:
            NotModelled: the server in memory cannot answer it.
        """
        try:
            verb, names = self._split(subject.removeprefix(PREFIX))
            return self._verbs[verb](names, json.loads(data) if data else {})
        except NotModelled:
            raise
        except Refused as refusal:
            return {"type": "io.nats.jetstream.api.v1.response", "error": refusal.error}

    def pull(self, subject: str, reply: str, data: bytes) -> None:
        """Take a pull request: `$JS.API.CONSUMER.MSG.NEXT.STREAM.CONSUMER`."""
        stream, name = subject.removeprefix(f"{PREFIX}CONSUMER.MSG.NEXT.").split(".", 1)
        found = self.streams.get(stream)
        consumer = found.consumers.get(name) if found else None
        if consumer is None:
            self._outbox.status(reply, b"NATS/1.0 503\r\n\r\n")
            return
        body = json.loads(data) if data.startswith(b"{") else {"batch": int(data or b"1")}
        consumer.pull(reply, body)

    def acknowledge(self, subject: str, data: bytes) -> None:
        """Take an acknowledgement: `$JS.ACK.STREAM.CONSUMER.…`."""
        _, _, stream, name, *tokens = subject.split(".")
        found = self.streams.get(stream)
        consumer = found.consumers.get(name) if found else None
        if consumer is not None:
            consumer.settle(tokens, data)

    def _split(self, request: str) -> tuple[str, list[str]]:
        tokens = request.split(".")
        for length in (3, 2, 1):
            verb = ".".join(tokens[:length])
            if verb in self._verbs:
                return verb, tokens[length:]
        raise NotModelled(f"the API {'.'.join(tokens[:3])}")

    def _stream(self, names: list[str]) -> Stream:
        found = self.streams.get(names[0])
        if found is None:
            raise missing_stream()
        return found

    def _consumer(self, names: list[str]) -> Consumer:
        found = self._stream(names).consumers.get(names[1])
        if found is None:
            raise missing_consumer()
        return found

    def _info(self, _names: list[str], _request: Request) -> Answer:
        consumers = sum(len(stream.consumers) for stream in self.streams.values())
        return {
            "type": "io.nats.jetstream.api.v1.account_info_response",
            "streams": len(self.streams),
            "consumers": consumers,
            "limits": {"max_streams": -1, "max_consumers": -1, "max_storage": -1, "max_memory": -1},
        }

    def _create_stream(self, names: list[str], request: Request) -> Answer:
        name = names[0]
        if not is_name(name) or request.get("name") != name:
            raise Refused(400, 10056, "stream name in subject does not match request")
        existing = self.streams.get(name)
        made = Stream(request, self._clock, self._post)
        if existing is not None:
            if made.config != existing.config:
                raise Refused(
                    400, 10058, "stream name already in use with a different configuration"
                )
            return self._show(existing)
        self._check_subjects(made)
        self.streams[name] = made
        return {**self._show(made), "did_create": True}

    def _update_stream(self, names: list[str], request: Request) -> Answer:
        stream = self._stream(names)
        self._check_subjects(Stream(request, self._clock, self._post))
        stream.update(request)
        return self._show(stream)

    def _check_subjects(self, wanted: Stream) -> None:
        for other in self.streams.values():
            if other.name == wanted.name:
                continue
            if any(overlaps(ours, theirs) for ours in wanted.subjects for theirs in other.subjects):
                raise Refused(400, 10065, "subjects overlap with an existing stream")

    def _stream_info(self, names: list[str], request: Request) -> Answer:
        return self._show(self._stream(names), request.get("subjects_filter", ""))

    def _show(self, stream: Stream, pattern: str = "") -> Answer:
        state = stream.state(pattern)
        return {
            "type": "io.nats.jetstream.api.v1.stream_info_response",
            "config": dict(stream.config),
            "created": self._clock.text(stream.created_ns),
            "state": state,
            "ts": self._clock.text(),
            **({"total": len(state["subjects"]), "offset": 0, "limit": 100_000} if pattern else {}),
        }

    def _delete_stream(self, names: list[str], _request: Request) -> Answer:
        self._stream(names).close()
        del self.streams[names[0]]
        return {"type": "io.nats.jetstream.api.v1.stream_delete_response", "success": True}

    def _purge(self, names: list[str], request: Request) -> Answer:
        purged = self._stream(names).purge(request)
        kind = "io.nats.jetstream.api.v1.stream_purge_response"
        return {"type": kind, "success": True, "purged": purged}

    def _stream_names(self, _names: list[str], request: Request) -> Answer:
        subject = request.get("subject", "")
        found = [
            each.name
            for each in self.streams.values()
            if not subject or any(overlaps(subject, ours) for ours in each.subjects)
        ]
        return _page("stream_names", "streams", found, request)

    def _stream_list(self, _names: list[str], request: Request) -> Answer:
        found = [self._show(each) for each in self.streams.values()]
        return _page("stream_list", "streams", found, request)

    def _get(self, names: list[str], request: Request) -> Answer:
        message = find(self._stream(names), request)
        shown = {
            "subject": message.subject,
            "seq": message.sequence,
            "data": base64.b64encode(message.data).decode(),
            "time": self._clock.text(message.stored_at_ns),
        }
        if message.block:
            shown["hdrs"] = base64.b64encode(message.block).decode()
        return {"type": "io.nats.jetstream.api.v1.stream_msg_get_response", "message": shown}

    def _delete_message(self, names: list[str], request: Request) -> Answer:
        if not self._stream(names).store.remove(request.get("seq", 0)):
            raise Refused(400, 10057, f"message not found: no message {request.get('seq')}")
        return {"type": "io.nats.jetstream.api.v1.stream_msg_delete_response", "success": True}

    def _create_consumer(self, names: list[str], request: Request) -> Answer:
        if len(names) == 1:
            raise NotModelled("a consumer without a name")
        stream, name = self._stream(names), names[1]
        config = request.get("config") or {}
        if (config.get("durable_name") or config.get("name")) != name:
            raise Refused(
                400, 10017, "consumer name in subject does not match durable name in request"
            )
        existing = stream.consumers.get(name)
        if existing is None:
            if request.get("action") == "update":
                raise Refused(400, 10149, "consumer does not exist")
            made = Consumer(stream, config, self._outbox, self._end_consumer)
            self._check_consumer(stream, made)
            stream.consumers[name] = made
            return made.document()
        if request.get("action") == "create" and _differs(existing, config):
            raise Refused(400, 10148, "consumer already exists")
        existing.update(config)
        return existing.document()

    def _check_consumer(self, stream: Stream, made: Consumer) -> None:
        for pattern in made.patterns:
            if not any(overlaps(pattern, subject) for subject in stream.subjects):
                raise Refused(
                    400,
                    10093,
                    "consumer filter subject is not a valid subset of the interest subjects",
                )
        if stream.config["retention"] != "workqueue":
            return
        if made.config["deliver_policy"] != "all":
            raise Refused(400, 10101, "consumer must be deliver all on workqueue stream")
        for other in stream.consumers.values():
            if not made.patterns or not other.patterns:
                raise Refused(
                    400, 10099, "multiple non-filtered consumers not allowed on workqueue stream"
                )
            if any(overlaps(ours, theirs) for ours in made.patterns for theirs in other.patterns):
                raise Refused(400, 10100, "filtered consumer not unique on workqueue stream")

    def _end_consumer(self, consumer: Consumer) -> None:
        for stream in self.streams.values():
            if stream.consumers.get(consumer.name) is consumer:
                del stream.consumers[consumer.name]
        consumer.close()

    def _consumer_info(self, names: list[str], _request: Request) -> Answer:
        return self._consumer(names).document()

    def _delete_consumer(self, names: list[str], _request: Request) -> Answer:
        self._end_consumer(self._consumer(names))
        return {"type": "io.nats.jetstream.api.v1.consumer_delete_response", "success": True}

    def _pause(self, names: list[str], request: Request) -> Answer:
        consumer = self._consumer(names)
        consumer.pause(request.get("pause_until", ""))
        found = consumer.document()
        return {
            "type": "io.nats.jetstream.api.v1.consumer_pause_response",
            "paused": consumer.is_paused,
            "pause_until": request.get("pause_until", ""),
            "pause_remaining": found.get("pause_remaining", 0),
        }

    def _consumer_names(self, names: list[str], request: Request) -> Answer:
        return _page("consumer_names", "consumers", list(self._stream(names).consumers), request)

    def _consumer_list(self, names: list[str], request: Request) -> Answer:
        found = [each.document() for each in self._stream(names).consumers.values()]
        return _page("consumer_list", "consumers", found, request)


def find(stream: Stream, request: Request) -> Stored:
    """The message that a get request asks for.

    Raises:
        Refused: there is none.
    """
    known = {"seq", "last_by_subj", "next_by_subj"}
    for name in request.keys() - known:
        raise NotModelled(f"the field {name} of a get request")
    if pattern := request.get("last_by_subj"):
        found = stream.store.last_on(pattern)
    elif pattern := request.get("next_by_subj"):
        found = stream.store.next_on((pattern,), max(1, request.get("seq", 1)))
    else:
        found = stream.store.get(request.get("seq", 0))
    if found is None:
        raise missing_message()
    return found


def _differs(existing: Consumer, config: Request) -> bool:
    return any(existing.config.get(field) != value for field, value in config.items() if value)


def _page(kind: str, field: str, found: list[Any], request: Request) -> Answer:
    offset = request.get("offset", 0)
    return {
        "type": f"io.nats.jetstream.api.v1.{kind}_response",
        "total": len(found),
        "offset": offset,
        "limit": _PAGE,
        field: found[offset : offset + _PAGE],
    }


__all__ = ["PREFIX", "JetStreamApi", "find"]
