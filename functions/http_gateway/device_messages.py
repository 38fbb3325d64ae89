"""Messages of devices as the gateway stores them: topic, envelope, token, id. Pure."""

import hashlib
import itertools
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from functions.domain.topics import BadTopic, Topic, parse_topic
from functions.http_gateway.paths import decode_segments
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request

_PREFIX = ("ingest", "v1")
_STARTED_AS = secrets.token_hex(12)
_numbers = itertools.count()
_MAX_PATHS_KEPT = 16_384
_MAX_TOKEN_LENGTH = 512


def make_envelope(topic: Topic, payload: bytes, username: str = "") -> bytes:
    """The message to store. `payload` is JSON and is copied unchanged, so quarantine keeps it."""
    fields = {
        "topic": topic.text,
        "tenant_id": topic.tenant_id,
        "device_id": topic.device_id,
        "msg_type": topic.msg_type,
        "username": username,
        "ts": datetime.now(UTC),
    }
    return orjson.dumps(fields)[:-1] + b',"payload":' + payload + b"}"


@lru_cache(_MAX_PATHS_KEPT)
def read_topic(raw_path: bytes) -> Topic:
    """The topic of a path to which a device posts.

    Raises:
        ProblemError: 400 for a path that is none.
    """
    topic = _parse(raw_path)
    if isinstance(topic, Topic) and topic.is_downlink:
        topic = BadTopic("this message type is sent to devices, not by devices")
    if isinstance(topic, BadTopic):
        raise ProblemError(400, "BAD_TOPIC_FORMAT", f"Not a device's path: {topic.reason}.")
    return topic


def read_device_path(raw_path: bytes) -> Topic:
    """As `read_topic`, for a path from which a device reads.

    Raises:
        ProblemError: 400 for a path that is none.
    """
    topic = _parse(raw_path)
    if isinstance(topic, BadTopic):
        raise ProblemError(400, "BAD_TOPIC_FORMAT", f"Not a device's path: {topic.reason}.")
    return topic


def _parse(raw_path: bytes) -> Topic | BadTopic:
    segments = decode_segments(raw_path)
    if any("/" in segment for segment in segments):
        return BadTopic("an id holds an encoded slash")
    return parse_topic("/".join(segments[len(_PREFIX) :]))


def header_token(request: Request) -> str | None:
    """The token in `X-Provision-Token`; None without one.

    Raises:
        ProblemError: 400 for one that is too long.
    """
    token = request.headers.get("x-provision-token")
    if token is not None and len(token) > _MAX_TOKEN_LENGTH:
        raise ProblemError(
            400, "INVALID_TOKEN", f"A token may have at most {_MAX_TOKEN_LENGTH} characters."
        )
    return token


def with_token(body: bytes, fields: Mapping[str, object], token: object) -> bytes:
    """The JSON object with the token as its first field; unchanged without a token."""
    if token is None:
        return body
    opened = body[body.index(b"{") + 1 :]
    comma = b"," if fields else b""
    return b'{"provision_token":' + orjson.dumps(token) + comma + opened


def message_id(topic: Topic, key: str | None, payload: bytes) -> str:
    """The id by which JetStream drops a repeat.

    The id holds the digest of what is stored, with the token: otherwise a device that used one key
    for two measurements, for example after it lost its counter, or that corrected its token, would
    get 202 for a message that JetStream dropped.
    """
    if key is None:
        return f"http/{_STARTED_AS}/{next(_numbers)}"
    return f"http/{topic.text}/{hashlib.sha256(payload).hexdigest()[:32]}/{key}"
