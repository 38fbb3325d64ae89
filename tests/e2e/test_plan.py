import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime import Context, Event, Reject
from runtime.broker.connection import Broker
from runtime.broker.streams import ensure
from runtime.errors import ConfigError
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.command import ROOT, Done, runtime
from tests.support.host import GRACE_S, Journal, eventually, fresh, make_manifest, wait_for_letters
from tests.support.servers import NatsServer
from tests.support.workload import behaviours

JOBS = {"subjects": ["jobs.>"], "max_age": "7d", "max_bytes": "10MB"}
WORK = {"handler": "shop.work:work", "consumer": {"stream": "JOBS", "durable": "workers"}}


@pytest.fixture(autouse=True)
async def _empty_server(broker: Broker) -> None:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")


class Shop:
    """A manifest in a folder, and commands with it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.write()

    def write(
        self, stream: dict[str, Any] | None = None, work: dict[str, Any] | None = None
    ) -> None:
        manifest = {
            "streams": {"JOBS": JOBS | (stream or {})},
            "functions": {"work": WORK | (work or {})},
        }
        (self.folder / "shop.yaml").write_text(yaml.safe_dump(manifest))

    @property
    def place(self) -> str:
        """The address as commands print it."""
        return f"nats://{self.url.partition('@')[2]}"

    async def run(self, command: str, *options: str, url: str = "") -> Done:
        return await runtime(url or self.url, command, "shop.yaml", *options, folder=self.folder)


@pytest.fixture
def shop(tmp_path: Path, nats_server: NatsServer) -> Shop:
    return Shop(tmp_path, nats_server.url)


async def test_what_is_missing_is_planned_applied_and_then_no_change_any_more(
    shop: Shop, broker: Broker
) -> None:
    planned = await shop.run("plan")
    again = await shop.run("plan")
    before = (await broker.api("STREAM.NAMES")).get("streams")
    applied = await shop.run("apply")
    after = await shop.run("plan")

    assert (planned.code, planned.err) == (0, "")
    assert planned.out.splitlines() == [
        "create  stream ADVISORIES            subjects"
        " $JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>, retention workqueue, max_age 30d",
        "create  stream DEAD_LETTERS          subjects dead_letters.>, retention limits,"
        " max_age 30d, max_bytes 1GB",
        "create  stream JOBS                  subjects jobs.>, retention limits, max_age 7d,"
        " max_bytes 10MB",
        "create  stream MAILBOX               subjects mailbox.>, retention workqueue",
        "create  consumer ADVISORIES/sweeper  ack_wait 30s, max_ack_pending 1000",
        "create  consumer JOBS/workers        ack_wait 30s, max_ack_pending 20000, max_deliver 5",
        "create  consumer MAILBOX/work        filter_subjects mailbox.ready.work, ack_wait 30s,"
        " max_ack_pending 20000, max_deliver 5",
        "7 to create",
    ]
    assert again.out == planned.out
    assert before is None
    assert (applied.code, applied.err) == (0, "")
    made = f"7 changes made on {shop.place}\n"
    assert applied.out == planned.out.removesuffix("7 to create\n") + made
    assert (after.code, after.out) == (0, "No changes: the server is as the manifests say.\n")


async def test_what_can_change_in_place_is_shown_from_and_to(shop: Shop, broker: Broker) -> None:
    await shop.run("apply")
    shop.write(
        {"max_bytes": "1GiB", "max_age": "1d2h3m4.5s", "subjects": ["jobs.>", "work.>"]},
        {"retry": {"attempts": 9}},
    )

    planned = await shop.run("plan")
    applied = await shop.run("apply")

    assert planned.code == 0
    assert planned.out.splitlines() == [
        "update  stream JOBS            max_age: 7d -> 1d2h3m4.5s",
        "update  stream JOBS            max_bytes: 10MB -> 1GiB",
        "update  stream JOBS            subjects: jobs.> -> jobs.> work.>",
        "update  consumer JOBS/workers  max_deliver: 5 -> 9",
        "update  consumer MAILBOX/work  max_deliver: 5 -> 9",
        "5 to update in place",
    ]
    assert applied.out.endswith(f"\n5 changes made on {shop.place}\n")
    assert (await broker.api("STREAM.INFO.JOBS"))["config"]["max_bytes"] == 2**30


async def test_what_jetstream_cannot_change_is_named_with_the_way_out_and_nothing_is_touched(
    shop: Shop, broker: Broker
) -> None:
    await shop.run("apply")
    shop.write({"storage": "memory", "max_bytes": "20MB"})

    planned = await shop.run("plan")
    applied = await shop.run("apply", "--allow-loss")

    assert planned.code == 2
    assert planned.out.splitlines() == [
        "update     stream JOBS  max_bytes: 10MB -> 20MB",
        "immutable  stream JOBS  storage: file -> memory",
        "    way out: write what the server has, or back the stream up and create it anew:"
        " nats stream backup JOBS DIRECTORY, then nats stream rm JOBS",
        "1 to update in place, 1 that JetStream cannot change in place",
    ]
    assert applied.code == 2
    assert applied.err.startswith(
        "shop.yaml:11: streams.JOBS.storage: is 'file' on the server and 'memory'"
    )
    config = (await broker.api("STREAM.INFO.JOBS"))["config"]
    assert (config["storage"], config["max_bytes"]) == ("file", 10_000_000)


async def test_replicas_without_a_cluster_are_one_problem_that_names_their_line(
    shop: Shop,
) -> None:
    shop.write({"replicas": 3})

    applied = await shop.run("apply")

    line = (shop.folder / "shop.yaml").read_text().splitlines().index("    replicas: 3") + 1
    assert applied.code == 2
    assert applied.err.splitlines() == [
        f"shop.yaml:{line}: streams.JOBS.replicas: replicas > 1 not supported in non-clustered"
        " mode; set replicas to 1, or connect to a cluster",
        "1 problem",
    ]


async def test_what_the_server_refuses_of_a_consumer_names_the_line_of_its_function(
    shop: Shop, broker: Broker
) -> None:
    await shop.run("apply")
    stream = (await broker.api("STREAM.INFO.JOBS"))["config"]
    await broker.api("STREAM.UPDATE.JOBS", {**stream, "max_consumers": 1})
    await broker.api("CONSUMER.DELETE.JOBS.workers")
    await broker.api(
        "CONSUMER.CREATE.JOBS.other",
        {"stream_name": "JOBS", "config": {"durable_name": "other", "ack_policy": "explicit"}},
    )

    applied = await shop.run("apply")

    assert applied.code == 2
    assert applied.err.splitlines() == [
        "shop.yaml:3: functions.work.consumer: maximum consumers limit reached; change the manifest"
        " or the server's limits",
        "1 problem",
    ]


async def test_what_would_lose_messages_is_refused_unless_it_is_allowed(
    shop: Shop, broker: Broker
) -> None:
    await shop.run("apply")
    for number in range(5):
        await broker.publish("jobs.a", str(number).encode())
    shop.write({"max_msgs": 2})

    planned = await shop.run("plan")
    refused = await shop.run("apply")
    kept = (await broker.api("STREAM.INFO.JOBS"))["state"]["messages"]
    allowed = await shop.run("apply", "--allow-loss")
    left = (await broker.api("STREAM.INFO.JOBS"))["state"]["messages"]

    assert planned.code == 2
    assert planned.out.splitlines() == [
        "destructive  stream JOBS  max_msgs: no limit -> 2",
        "    way out: write what the server has, or, if those messages may go:"
        " runtime apply MANIFESTS --allow-loss",
        "1 that would lose messages",
    ]
    assert (refused.code, kept) == (2, 5)
    assert "which would drop messages or no longer store them" in refused.err
    assert (allowed.code, left) == (0, 2)


async def test_a_script_reads_the_plan_as_json(shop: Shop) -> None:
    await shop.run("apply")
    shop.write({"storage": "memory"})

    [change] = (await shop.run("plan", "--json")).documents

    assert change.pop("way_out").startswith("write what the server has")
    assert change == {
        "kind": "immutable",
        "object": "stream JOBS",
        "field": "storage",
        "found": "file",
        "wanted": "memory",
    }


async def test_a_mistake_in_a_manifest_exits_with_2_before_the_server_is_asked(shop: Shop) -> None:
    shop.write({"max_bites": 1})

    for command in ("plan", "apply"):
        done = await shop.run(command, url="nats://127.0.0.1:1")
        assert done.code == 2
        assert "streams.JOBS.max_bites: no such key" in done.err


async def test_what_the_manifests_do_not_name_is_left_alone(shop: Shop, broker: Broker) -> None:
    theirs = {"name": "THEIRS", "subjects": ["theirs"], "max_msgs": 7}
    await broker.api("STREAM.CREATE.THEIRS", theirs)

    await shop.run("apply")

    assert (await broker.api("STREAM.INFO.THEIRS"))["config"]["max_msgs"] == 7
    assert (await shop.run("plan")).code == 0


async def test_serving_by_binding_alone_names_everything_that_is_missing(
    shop: Shop, broker: Broker
) -> None:
    (shop.folder / "shop").mkdir()
    (shop.folder / "shop" / "__init__.py").touch()
    (shop.folder / "shop" / "work.py").write_text(
        "from runtime import Context, Event\n"
        "async def work(event: Event[bytes], ctx: Context) -> None: ...\n"
    )

    done = await runtime(
        shop.url,
        *("serve", "shop.yaml", "--bind-only"),
        folder=shop.folder,
        DATABASE_URL="postgresql://127.0.0.1:1/none",
        RUNTIME_ADMIN_PORT="0",
        RUNTIME_LOG_FORMAT="json",
    )

    assert done.code == 2
    complaints = [line for line in done.err.splitlines() if not line.startswith("{")]
    assert complaints[-1] == "7 problems"
    assert (
        "consumer JOBS/workers: is missing, and only binding is allowed; have it made by"
        " `runtime apply MANIFESTS`, or serve without --bind-only"
    ) in complaints
    assert (await broker.api("STREAM.NAMES")).get("streams") is None


class LockedServer(NatsServer):
    """A server whose user has only the permissions that docs/operations.md lists for binding."""

    def configuration(self) -> str:
        page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
        _, _, below = page.partition("`--bind-only` is for servers")
        allowed = re.findall(r"`([^`\s]+\.>|\$JS\.API\.INFO)`", below.partition("\n## ")[0])
        assert len(allowed) == 11
        user = (
            '{ user: "binder", password: "bind", allowed_connection_types: ["STANDARD"]'
            f", permissions: {{ publish: {{ allow: {json.dumps(allowed)} }} }} }}"
        )
        text = super().configuration().replace("  users: [\n", f"  users: [\n    {user}\n", 1)
        return text.replace("auth_users: [", 'auth_users: ["binder", ', 1)

    @property
    def binder_url(self) -> str:
        return f"nats://binder:bind@127.0.0.1:{self.port}"


async def test_a_host_that_may_only_bind_works_on_a_locked_down_server(
    server_directory: Path,
) -> None:
    server = LockedServer(server_directory / "nats")
    administrator = await Broker.connect(server.url, name="administrator")
    name, calls = fresh("work"), Journal()

    async def work(ctx: Context, event: Event[bytes]) -> None:
        calls.add(event.raw)
        if event.raw == b"bad":
            raise Reject("BAD")

    behaviours[name] = work
    spec = {"handler": "on_event", "consumer": {"stream": "JOBS", "ack_wait": "40s"}}
    older = make_manifest(
        {name: spec | {"consumer": {"stream": "JOBS"}}}, {"JOBS": {"subjects": ["jobs.>"]}}
    )
    newer = make_manifest({name: spec}, {"JOBS": {"subjects": ["jobs.>"]}})

    def host() -> Host:
        addresses = Addresses(server.binder_url, None)
        options = HostOptions(bind_only=True)
        return Host(newer, load_all(newer), addresses, Metrics("0.0.0"), options)

    try:
        with pytest.raises(ConfigError, match="is missing, and only binding is allowed"):
            await host().start()
        await ensure(administrator, older)
        bound = host()
        await bound.start()
        await administrator.publish("jobs.a", b"one")
        await administrator.publish("jobs.a", b"bad")
        [letter] = await wait_for_letters(administrator, name)

        await administrator.api(f"CONSUMER.DELETE.JOBS.{name}")
        await administrator.publish("jobs.a", b"two")

        async def stuck() -> bool:
            return await bound.probes.check_functions() is not None

        await eventually(stuck, "a host that is not ready")
        await ensure(administrator, older)
        await calls.wait(5)
        config = (await administrator.api(f"CONSUMER.INFO.JOBS.{name}"))["config"]
        await bound.drain(GRACE_S)
    finally:
        await administrator.close()
        server.stop()

    assert letter.code == "BAD"
    assert calls.entries == [b"one", b"bad", b"one", b"bad", b"two"]
    assert config["ack_wait"] == 30_000_000_000


async def test_a_change_of_the_defaults_is_planned_for_each_function_that_has_it(
    shop: Shop, broker: Broker
) -> None:
    await shop.run("apply")
    text = (shop.folder / "shop.yaml").read_text()
    (shop.folder / "shop.yaml").write_text(f"{text}defaults: {{consumer: {{ack_wait: 45s}}}}\n")

    planned = await shop.run("plan")

    assert planned.code == 0
    assert [line.split(maxsplit=3) for line in planned.out.splitlines()[:2]] == [
        ["update", "consumer", "JOBS/workers", "ack_wait: 30s -> 45s"],
        ["update", "consumer", "MAILBOX/work", "ack_wait: 30s -> 45s"],
    ]
