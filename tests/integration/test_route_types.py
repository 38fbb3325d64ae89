"""The suite that every route type passes; a type in a manifest without a counterpart fails it."""

import asyncio
import contextlib
import importlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog
from pydantic import BaseModel

from functions.domain.destination_schemas import DestinationSchema
from functions.management.destinations import complete
from runtime import Reject, Retry
from runtime.cli.manifests import SHIPPED
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.certificates import self_signed
from tests.support.route_types.counterpart import Counterpart, SilentListener
from tests.support.route_types.function import PAYLOAD, RouteTypeFunction, started
from tests.support.route_types.http import SlackCounterpart, WebhookCounterpart
from tests.support.route_types.mail import MailCounterpart
from tests.support.route_types.mqtt import MqttCounterpart
from tests.support.route_types.nats import NatsCounterpart, TenantNatsServer
from tests.support.route_types.postgres import PostgresCounterpart
from tests.support.servers import NatsServer, PostgresServer, remove, run_apart

COUNTERPARTS: dict[str, type[Counterpart]] = {
    each.type_name: each
    for each in (
        MailCounterpart,
        MqttCounterpart,
        NatsCounterpart,
        PostgresCounterpart,
        SlackCounterpart,
        WebhookCounterpart,
    )
}
LOOPBACK = {"allowed_networks": "127.0.0.0/8, ::1/128"}
Started: TypeAlias = Callable[..., Any]


def test_every_type_of_the_shipped_manifests_passes_this_suite() -> None:
    manifest = read(sorted(SHIPPED.glob("*.yaml")), placeholders(HostSettings()))
    subjects = [
        subject
        for function in manifest.functions.values()
        if function.consumer is not None and function.consumer.stream == "ROUTES"
        for subject in function.consumer.filter_subjects
    ]
    types = {subject.split(".")[2] for subject in subjects if subject.count(".") > 1}
    # A polled route has no destination that could fail; see test_polling.py.
    assert types - {"poll"} == COUNTERPARTS.keys()


@pytest.fixture(scope="module")
def their_nats() -> Iterator[TenantNatsServer]:
    """A nats-server of a tenant."""
    directory = Path(tempfile.mkdtemp(prefix="runtime-test-theirs-"))
    server = TenantNatsServer(directory)
    yield server
    server.stop()
    remove(directory)


@pytest.fixture(scope="module")
def dsn(postgres_server: PostgresServer, template_database: str) -> Iterator[str]:
    """One database for all of this file: each test has a tenant of its own."""
    run_apart(lambda: postgres_server.make_database("route_types", template=template_database))
    yield postgres_server.dsn("route_types")
    run_apart(lambda: postgres_server.administer("DROP DATABASE route_types WITH (FORCE)"))


@pytest.fixture(params=sorted(COUNTERPARTS))
async def counterpart(
    request: pytest.FixtureRequest,
    nats_server: NatsServer,
    their_nats: TenantNatsServer,
    postgres_server: PostgresServer,
    dsn: str,
) -> AsyncIterator[Counterpart]:
    made: dict[str, Callable[[], Counterpart]] = {
        "mqtt_republish": lambda: MqttCounterpart(nats_server),
        "nats_republish": lambda: NatsCounterpart(their_nats),
        "postgresql": lambda: PostgresCounterpart(postgres_server, "route_types"),
    }
    name = request.param
    async with made.get(name, COUNTERPARTS[name])() as receiver:
        yield receiver


@contextlib.asynccontextmanager
async def function_for(
    counterpart: Counterpart, dsn: str, **settings: Any
) -> AsyncIterator[RouteTypeFunction]:
    """The type's function, with this machine's addresses allowed."""
    base: dict[str, Any] = {"timeout_s": 5.0, **counterpart.settings}
    if counterpart.network:
        base |= LOOPBACK
    if isinstance(counterpart, MailCounterpart):
        base |= counterpart.server_settings()
    async with started(counterpart.type_name, counterpart.module, base | settings, dsn) as function:
        yield function


async def route_to(function: RouteTypeFunction, counterpart: Counterpart, **more: Any) -> str:
    return await function.add_route(counterpart.config() | more)


def outcomes(attempts: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(each["outcome"], each["error_code"]) for each in attempts]


async def test_a_job_arrives_and_its_attempt_is_logged(counterpart: Counterpart, dsn: str) -> None:
    async with function_for(counterpart, dsn) as function:
        route_id = await route_to(function, counterpart)
        await function.deliver(route_id)
        await function.deliver(route_id)
        [arrived] = await counterpart.arrived(1)
        [attempt] = await function.attempts()
    assert "21.5" in arrived.text
    assert PAYLOAD["provision_token"] not in arrived.text
    assert (attempt["outcome"], attempt["error_code"]) == ("delivered", None)
    assert (attempt["destination_type"], attempt["route_id"]) == (counterpart.type_name, route_id)


async def test_a_job_that_is_sent_twice_has_the_same_identity(
    counterpart: Counterpart, dsn: str
) -> None:
    async with function_for(counterpart, dsn) as function:
        route_id = await route_to(function, counterpart)
        await function.deliver(route_id)
        await function.forget()
        await function.deliver(route_id)
        arrived = await counterpart.arrived(1)
    assert len({each.identity for each in arrived}) == 1
    assert bool(arrived[0].identity) == counterpart.has_identity


async def test_a_refusal_is_final(counterpart: Counterpart, dsn: str) -> None:
    scene = await counterpart.refused()
    async with function_for(counterpart, dsn, **scene.settings) as function:
        route_id = await route_to(function, counterpart, **scene.config)
        with pytest.raises(Reject) as refused:
            await function.deliver(route_id, payload=scene.payload)
        assert refused.value.code == scene.code
        assert outcomes(await function.attempts()) == [("refused", scene.code)]


async def test_a_failure_is_tried_again_and_tells_no_secret(
    counterpart: Counterpart, dsn: str
) -> None:
    scene = await counterpart.failed()
    async with function_for(counterpart, dsn, **scene.settings) as function:
        route_id = await route_to(function, counterpart, **scene.config)
        with structlog.testing.capture_logs() as logged, pytest.raises(Retry) as later:
            await function.deliver(route_id, payload=scene.payload)
        attempts = await function.attempts()
    assert (later.value.reason.split(":")[0], later.value.counts) == (scene.code, True)
    assert outcomes(attempts) == [("failed", scene.code)]
    told = f"{logged} {later.value!r} {later.value.__cause__!r} {attempts}"
    assert not [secret for secret in counterpart.secrets if secret in told]


async def test_a_request_for_fewer_messages_is_honoured(counterpart: Counterpart, dsn: str) -> None:
    scene = await counterpart.later()
    if scene is None:
        # The protocol has no such answer; the pace of the endpoint alone holds messages back.
        assert counterpart.type_name in {"nats_republish", "postgresql"}
        return
    async with function_for(counterpart, dsn, **scene.settings) as function:
        route_id = await route_to(function, counterpart, **scene.config)
        if scene.settings:
            await function.deliver(route_id, job_id="T-0-1-r")  # The last one that the rate allows.
        with pytest.raises(Retry, match=scene.code) as later:
            await function.deliver(route_id)
        assert scene.waits_s in (later.value.at_least_s, later.value.delay_s)


async def test_a_destination_that_is_away_fails_and_gets_the_job_when_it_is_back(
    counterpart: Counterpart, dsn: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        config, settings = counterpart.at(taken.getsockname()[1])
        async with function_for(counterpart, dsn, **settings) as function:
            route_id = await route_to(function, counterpart, **config)
            with pytest.raises(Retry, match="CONNECTION_FAILED"):
                await function.deliver(route_id)
            assert outcomes(await function.attempts()) == [("failed", "CONNECTION_FAILED")]
            if not config:
                return  # The operator's own server comes back at the same place.
            await function.pool.execute(
                "UPDATE message_routes SET destination_config = $2::text::jsonb WHERE id = $1",
                route_id,
                json.dumps(counterpart.config()),
            )
            await function.deliver(route_id, attempt=2)
            [arrived] = await counterpart.arrived(1)
            assert "21.5" in arrived.text


TLS_TYPES = {"mqtt_republish", "nats_republish", "postgresql"}


async def test_tls_that_one_tenant_asks_for_pauses_no_other_tenant(
    counterpart: Counterpart, dsn: str
) -> None:
    if counterpart.type_name not in TLS_TYPES:
        # Of a URL, TLS is a part; the operator chooses that of the mail server.
        assert "tls" not in model_of(type(counterpart)).model_fields
        return
    async with function_for(counterpart, dsn) as function:
        eager = await route_to(function, counterpart, tls=True)
        for number in range(function.scope.settings.breaker_calls):
            # A broker ends the connection at the first byte that it does not understand.
            with pytest.raises(Retry, match=r"TLS_FAILED|CONNECTION_FAILED"):
                await function.deliver(eager, job_id=f"T-{number}-1-r")
        with pytest.raises(Retry, match="ENDPOINT_PAUSED"):
            await function.deliver(eager)
        function.tenant_id = await function.add_tenant()
        await function.deliver(await route_to(function, counterpart))
        await counterpart.arrived(1)


@pytest.mark.parametrize("type_name", sorted(TLS_TYPES))
def test_certificates_of_one_tenant_are_no_sign_for_the_endpoints_of_another(
    type_name: str, tmp_path: Path
) -> None:
    module = importlib.import_module(COUNTERPARTS[type_name].module)
    usual = {**BASES[type_name], "tls": True}
    own = {**usual, "authorities": self_signed("a", tmp_path).read_text()}
    keys = [module.endpoint_of(module.Destination.model_validate(one)) for one in (usual, own)]
    assert keys[0].name == keys[1].name
    assert keys[0].origin != keys[1].origin


async def test_a_silent_destination_ends_the_attempt_in_time(
    counterpart: Counterpart, dsn: str
) -> None:
    async with SilentListener() as silent:
        config, settings = counterpart.at(silent.port)
        async with function_for(counterpart, dsn, **settings | {"timeout_s": 0.2}) as function:
            route_id = await route_to(function, counterpart, **config)
            with pytest.raises(Retry, match="TIMEOUT"):
                await function.deliver(route_id)
        assert silent.connections == 1


async def test_a_cancelled_attempt_ends_at_once_and_leaves_no_connection(
    counterpart: Counterpart, dsn: str
) -> None:
    async with SilentListener() as silent:
        config, settings = counterpart.at(silent.port)
        async with function_for(counterpart, dsn, **settings | {"timeout_s": 60.0}) as function:
            route_id = await route_to(function, counterpart, **config)
            delivery = asyncio.create_task(function.deliver(route_id))
            await silent.connected()
            delivery.cancel()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(2):
                    await delivery
            assert await function.attempts() == []
        await silent.left()


HOSTILE = (
    'quote\' "double" \\ ; DROP TABLE x; -- $1 {device_id} {{}} %s',
    "line\r\nBcc: victim@example.org\r\n\r\nbody",
    "<!channel> <@U1> # + > * \u2028\x07\x00 \U0001f600",
)


async def test_hostile_text_arrives_as_text_or_is_refused(
    counterpart: Counterpart, dsn: str
) -> None:
    async with function_for(counterpart, dsn) as function:
        route_id = await route_to(function, counterpart)
        for number, text in enumerate(HOSTILE):
            with contextlib.suppress(Reject):
                await function.deliver(
                    route_id, job_id=f"T-{number}-1-r", payload={"note": text, "": [text]}
                )
        with contextlib.suppress(Reject):
            await function.deliver(route_id, job_id="T-9-1-r", payload=float("nan"))
        attempts = await function.attempts()
        refusals = {each["error_code"] for each in attempts if each["outcome"] != "delivered"}
        delivered = [each for each in attempts if each["outcome"] == "delivered"]
        arrived = await counterpart.arrived(len(delivered))
    assert len(arrived) == len(delivered) >= 2
    assert refusals <= {"PAYLOAD_NOT_JSON", "ROW_NOT_ACCEPTED"}
    # In a message of Slack, `<!channel>` would call everybody.
    assert counterpart.type_name != "slack" or "<!" not in "".join(each.text for each in arrived)


async def test_an_address_of_this_machine_is_refused_unless_it_is_allowed(
    counterpart: Counterpart, dsn: str
) -> None:
    if not counterpart.network:
        config, settings = {"to": ["a@elsewhere.test"]}, {"allowed_domains": "example.org"}
    else:
        config, settings = {}, {"allowed_networks": "10.0.0.0/8"}
    async with function_for(counterpart, dsn, **settings) as function:
        route_id = await route_to(function, counterpart, **config)
        with pytest.raises(Reject) as refused:
            await function.deliver(route_id)
        assert refused.value.code == "DESTINATION_NOT_ALLOWED"
        assert outcomes(await function.attempts()) == [("refused", "DESTINATION_NOT_ALLOWED")]
    assert await counterpart.arrived(0) == []


@pytest.mark.parametrize("type_name", sorted(COUNTERPARTS))
def test_management_refuses_a_wrong_configuration(type_name: str) -> None:
    counterpart = COUNTERPARTS[type_name]
    schema = DestinationSchema(model_of(counterpart).model_json_schema())
    for wrong in counterpart.wrong:
        with pytest.raises(Reject) as refused:
            complete(type_name, schema, BASES[type_name] | wrong)
        assert refused.value.code == "DESTINATION_INVALID"


def model_of(counterpart: type[Counterpart]) -> type[BaseModel]:
    module = importlib.import_module(counterpart.module)
    is_webhook = counterpart is WebhookCounterpart
    model: type[BaseModel] = module.WebhookDestination if is_webhook else module.Destination
    return model


BASES: dict[str, dict[str, Any]] = {
    "webhook": {"url": "https://example.org/"},
    "slack": {"url": "https://hooks.slack.com/services/T/B/x"},
    "mqtt_republish": {"host": "broker.example.org"},
    "nats_republish": {"host": "nats.example.org"},
    "postgresql": {
        "host": "db.example.org",
        "database": "d",
        "user": "u",
        "password": "p",
        "table": "t",
        "columns": {"temp": "payload.temp"},
    },
    "email": {"to": ["a@example.org"]},
}


@pytest.mark.parametrize("type_name", sorted(COUNTERPARTS))
def test_what_management_accepts_can_be_delivered_to(type_name: str) -> None:
    model = model_of(COUNTERPARTS[type_name])
    config = complete(type_name, DestinationSchema(model.model_json_schema()), BASES[type_name])
    model.model_validate(config)
