"""Reports and answers of devices that have a certificate and no token."""

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from functions.commands.acks import apply_ack
from functions.domain.admission import CertificatePolicy
from functions.shadow.device_requests import answer_device
from runtime import Context, Event, Message
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, stored
from tests.support.ingest import register

Handler = Callable[[Event[bytes], Context], Awaitable[None]]
SENDERS: dict[str, tuple[Handler, str, dict[str, Any]]] = {
    "SHADOW": (answer_device, "shadow/reported", {"reported": {"fan": 1}}),
    "COMMANDS": (apply_ack, "commands/ack", {"command_id": "c1", "status": "succeeded"}),
}


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=2)
    await register(pool)
    await pool.execute(
        "INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, not_before,"
        " not_after) VALUES ('test', 'dev1', repeat('a', 64), '2020-01-01Z', '2100-01-01Z')"
    )
    await pool.execute(
        "INSERT INTO device_commands"
        " (command_id, tenant_id, device_id, name, expires_at, timeout_s)"
        " VALUES ('c1', 'test', 'dev1', 'reboot', '2100-01-01Z', 60)"
    )
    yield Caller(pool)
    await pool.close()


def enveloped(stream: str, username: str, **fields: Any) -> Message:
    _, kind, payload = SENDERS[stream]
    content = {
        "topic": f"tenant/test/device/dev1/{kind}",
        "username": username,
        "payload": {**payload, **fields},
    }
    data = json.dumps(content).encode()
    return stored(f"{stream.lower()}.test", data, 1, stream=stream)


async def judge(
    api: Caller, message: Message, policy: CertificatePolicy, **settings: Any
) -> str | None:
    """The reason of the refusal; None when the message took effect."""
    handler = SENDERS[message.stream][0]
    api.settings = sys.modules[handler.__module__].Settings(certificates=policy, **settings)
    await api.deliver(handler, message)
    reported = await api.pool.fetchval("SELECT count(*) FROM device_shadows WHERE version = 1")
    answered = await api.pool.fetchval("SELECT count(*) FROM device_command_acks")
    reason: str | None = await api.pool.fetchval("SELECT reason FROM quarantine_events")
    assert (reported + answered == 0) == (reason is not None)
    return reason


PROOFS: list[tuple[CertificatePolicy, str, str | None, str | None]] = [
    ("off", "test/dev1", None, "TOKEN_MISSING"),
    ("optional", "test/dev1", None, None),
    ("optional", "test/dev1", "guess", "TOKEN_INVALID"),
    ("optional", "test/dev1", "tok", None),
    ("optional", "", "tok", None),
    ("optional", "", None, "TOKEN_MISSING"),
    ("optional", "test/dev2", None, "TOKEN_MISSING"),
    ("optional", "test/dev2", "tok", "AUTH_FAILED"),
    ("required", "test/dev1", None, None),
    ("required", "", "tok", "AUTH_FAILED"),
]


@pytest.mark.parametrize("stream", SENDERS)
@pytest.mark.parametrize("proof", PROOFS, ids=str)
async def test_a_certificate_proves_as_the_policy_says(
    api: Caller, stream: str, proof: tuple[CertificatePolicy, str, str | None, str | None]
) -> None:
    policy, username, token, reason = proof
    fields = {} if token is None else {"provision_token": token}
    assert await judge(api, enveloped(stream, username, **fields), policy) == reason


ENDINGS = {
    "revoked": "status = 'REVOKED'",
    "over": "not_after = '2021-01-01Z'",
    "to come": "not_before = '2099-01-01Z'",
}


@pytest.mark.parametrize("stream", SENDERS)
@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_certificate_that_does_not_count_proves_nothing(
    api: Caller, stream: str, ending: str
) -> None:
    await api.pool.execute(f"UPDATE device_certificates SET {ENDINGS[ending]}")  # noqa: S608 - a constant
    assert await judge(api, enveloped(stream, "test/dev1"), "optional") == "AUTH_FAILED"


@pytest.mark.parametrize("stream", SENDERS)
async def test_where_only_devices_can_publish_the_subject_is_the_proof(
    api: Caller, stream: str
) -> None:
    _, kind, payload = SENDERS[stream]
    subject = f"{stream.lower()}.test.dev1.{kind.rpartition('/')[2]}"
    message = stored(subject, json.dumps(payload).encode(), 1, stream=stream)
    assert await judge(api, message, "off", require_token=False) is None
