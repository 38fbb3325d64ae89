"""Whatever a device sends about its shadows has an end: answered, or kept with a reason."""

import json
import random
from dataclasses import replace
from typing import Any

from functions.domain.downlinks import Downlink, read_downlink
from functions.domain.topics import SHADOW_REQUESTS
from functions.shadow.device_requests import ShadowSettings, answer_device
from runtime import Message
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller, stored
from tests.support.ingest import TOKEN, register

MESSAGES = 300
KEYS = ["a", "b", "desired", "reported", "", "~/", "k" * 129, "\u2028"]
LEAVES = [None, True, 2**63 - 1, -(2**63), 1e20, -0.0, "", "\x00", "\ud800", "é" * 70, "x" * 9000]
FORMS = ["", "name.n.", "name.m:1.", "name.bad~.", "name.x.y."]
LASTS = [*sorted(SHADOW_REQUESTS), "delta", "other"]


def make_value(chance: random.Random, depth: int = 0) -> Any:
    if depth > 9 or chance.random() < 0.4:
        return chance.choice(LEAVES)
    if chance.random() < 0.2:
        return [make_value(chance, depth + 1) for _ in range(chance.randrange(3))]
    keys = chance.sample(KEYS, chance.randrange(4))
    return {key: make_value(chance, depth + 1) for key in keys}


def make_message(chance: random.Random, sequence: int) -> Message:
    content: dict[str, Any] = {"provision_token": TOKEN}
    content |= {
        key: make_value(chance)
        for key, share in {
            "state": 0.3,
            "reported": 0.3,
            "version": 0.1,
            "clientToken": 0.2,
        }.items()
        if chance.random() < share
    }
    if chance.random() < 0.4:
        patch = {key: make_value(chance) for key in chance.sample(KEYS[:2], 1)}
        content = {**content, "state": {chance.choice(KEYS[2:4]): patch}}
    subject = f"shadow.test.dev1.{chance.choice(FORMS)}{chance.choice(LASTS)}"
    return stored(subject, json.dumps(content).encode(), sequence, stream="SHADOW")


async def test_every_message_is_accounted_for(postgres_dsn: str) -> None:
    chance = random.Random(10)  # noqa: S311 - the same messages in every run
    pool = await open_pool(postgres_dsn, max_size=2)
    await register(pool)
    api = Caller(pool, settings=ShadowSettings(burst=10_000, rate_per_s=1000))
    deliveries = 0
    for sequence in range(1, MESSAGES + 1):
        message = make_message(chance, sequence)
        repeated = [replace(message, attempt=2)] if chance.random() < 0.2 else []
        for delivery in [message, *repeated]:
            await api.deliver(answer_device, delivery)
            deliveries += 1
    counts = await pool.fetchrow(
        "SELECT sum(received), sum(written), sum(quarantined), sum(refused), sum(duplicate)"
        " FROM message_count_changes"
    )
    assert counts is not None
    received, *ends = counts
    assert received == sum(ends) == deliveries
    # All kinds of ends were met.
    assert all(ends[place] for place in (0, 1, 3))
    kept = await pool.fetchval("SELECT count(*) FROM quarantine_events")
    assert kept == ends[1]
    sent = await pool.fetch("SELECT subject, body FROM delivery_outbox")
    assert sent
    for row in sent:
        downlink = read_downlink(Message(row["subject"], row["body"]))
        assert isinstance(downlink, Downlink)
        assert downlink.topic.device_id == "dev1"
        assert isinstance(json.loads(downlink.body), dict)
    await pool.close()
