import json

import pytest

from runtime.testing import TestHost

pytestmark = pytest.mark.asyncio
ENVIRONMENT = {"SIGNING_KEY": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}


async def test_an_event_becomes_one_job_for_each_subscriber() -> None:
    async with TestHost("manifest.yaml", only=["fan_out"], environment=ENVIRONMENT) as host:
        await host.publish("events.user", {"kind": "user.created", "text": "Ada"})
        await host.settled()

        jobs = [json.loads(sent.data) for sent in host.published("jobs.*")]
        assert [job["subscriber"] for job in jobs] == ["billing", "search"]
        assert [job["id"] for job in jobs] == ["EVENTS-1-billing", "EVENTS-1-search"]


async def test_a_job_for_somebody_who_has_left_is_given_up_at_once() -> None:
    async with TestHost("manifest.yaml", only=["deliver"], environment=ENVIRONMENT) as host:
        await host.publish("jobs.old", {"id": "1", "subscriber": "old", "body": "{}"})
        await host.settled()

        host.assert_rejected("NO_SUCH_SUBSCRIBER", count=1)
