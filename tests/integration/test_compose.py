"""compose/: its files, and a nats-server that runs by them, agree with manifests and host."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from runtime.broker.connection import Broker
from runtime.broker.streams import ensure
from runtime.cli.manifests import shipped_manifests
from runtime.embedded.credentials import HOST_USER, SYSTEM_USER
from runtime.embedded.nats_config import MQTT_USER
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.command import ROOT, Done, runtime
from tests.support.documentation import free_port, serving
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer, nats_program, remove
from tools.compose_conf import compose_conf

FOLDER = ROOT / "compose"
CONF = FOLDER / "nats" / "nats.conf"
SCRIPT = FOLDER / "nats" / "init-streams.sh"
COMPOSE = yaml.safe_load((FOLDER / "docker-compose.yml").read_text("utf-8"))
SERVICES: Mapping[str, Any] = COMPOSE["services"]
ENVIRONMENT = placeholders(HostSettings())


def variables() -> dict[str, str]:
    """The secrets that tools.compose_env makes."""
    made = subprocess.run(
        [sys.executable, "-m", "tools.compose_env"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in made.stdout.splitlines())


class ComposeServer(NatsServer):
    """A nats-server by compose/nats/nats.conf, but for its ports and its folder."""

    def __init__(self, directory: Path, secrets: Mapping[str, str]) -> None:
        self._secrets = dict(secrets)
        self.password = secrets["NATS_HOST_PASSWORD"]
        self.mqtt_password = secrets["MQTT_ADMIN_PASSWORD"]
        super().__init__(directory)

    def secrets(self) -> dict[str, str]:
        return self._secrets

    def configuration(self) -> str:
        text = CONF.read_text("utf-8")
        for found, ours in (
            ("listen: 0.0.0.0:4222", 'listen: "127.0.0.1:-1"'),
            ("http_port: 8222", 'http: "127.0.0.1:-1"'),
            ("port: 1883", 'listen: "127.0.0.1:-1"'),
            ("/data/jetstream", f'"{self.directory}/jetstream"'),
        ):
            assert found in text
            text = text.replace(found, ours)
        return f'{text}\nports_file_dir: "{self.directory}/ports"\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeServer]:
    directory = tmp_path_factory.mktemp("compose") / "nats"
    made = ComposeServer(directory, variables())
    yield made
    made.stop()
    remove(directory)


@pytest.fixture
def environment(server: ComposeServer) -> dict[str, str]:
    """What docker-compose.yml gives the host, with the test's addresses."""
    secrets = server.secrets()
    environment = {}
    for name, given in SERVICES["ingest"]["environment"].items():
        value = re.sub(
            r"\$\{(\w+):[?-][^}]*\}", lambda found: secrets.get(found[1], ""), str(given)
        )
        environment[name] = value.replace("iot-nats:4222", f"127.0.0.1:{server.port}")
    return environment


async def host(environment: Mapping[str, str], *command: str) -> Done:
    """Run a command with the manifests and the environment of the service `ingest`."""
    done = await runtime(
        environment["NATS_URL"],
        *command,
        *SERVICES["ingest"]["command"][1:],
        folder=ROOT,
        **{name: value for name, value in environment.items() if name != "NATS_URL"},
    )
    assert done.code == 0, done.err
    return done


@pytest.fixture
def init_streams(server: ComposeServer) -> Callable[[], str]:
    """Runs init-streams.sh as the container does, with the official command line."""
    given = SERVICES["nats-init"]["environment"]
    url = given["NATS_URL"].replace("iot-nats:4222", f"127.0.0.1:{server.port}")

    def run() -> str:
        done = subprocess.run(
            ["sh", SCRIPT],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **given,
                "PATH": f"{ROOT / '.tools'}:{os.environ['PATH']}",
                "HOME": str(server.directory),
                "NATS_URL": url,
            },
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    return run


def test_the_servers_configuration_has_the_users_and_subjects_of_the_embedded_one() -> None:
    assert CONF.read_text("utf-8") == compose_conf(), "run `make reference`"


def test_ports_are_the_hosts_own_and_closed_to_other_machines() -> None:
    defaults = HostSettings.model_fields
    wanted = {
        defaults["nats_port"].default,
        defaults["monitor_port"].default,
        defaults["mqtt_port"].default,
    }
    published = [port.split(":") for port in SERVICES["nats"]["ports"]]

    assert {int(inside) for _, _, inside in published} == wanted
    assert {address for address, _, _ in published} == {"127.0.0.1"}
    assert all(outside == inside for _, outside, inside in published)
    assert SERVICES["ingest"]["ports"] == ["127.0.0.1:8080:8080"]
    listeners = re.findall(
        r"^(?:listen: 0\.0\.0\.0:|http_port: |  port: )(\d+)$",
        CONF.read_text("utf-8"),
        re.MULTILINE,
    )
    assert set(map(int, listeners)) == wanted


def test_every_variable_is_made_and_passed_on() -> None:
    needed = set(re.findall(r"\$\{(\w+):\?", (FOLDER / "docker-compose.yml").read_text("utf-8")))
    read_by_server = set(re.findall(r": \$([A-Z_]+)", CONF.read_text("utf-8")))

    assert needed == variables().keys()
    assert read_by_server == SERVICES["nats"]["environment"].keys()
    url = SERVICES["ingest"]["environment"]["NATS_URL"]
    system = SERVICES["ingest"]["environment"]["NATS_SYSTEM_URL"]
    assert url.startswith(f"nats://{HOST_USER}:$")
    assert system.startswith(f"nats://{SYSTEM_USER}:$")


def test_secrets_differ_from_run_to_run_and_are_not_for_git_or_the_image() -> None:
    first, second = variables(), variables()
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()

    assert not set(first.values()) & set(second.values())
    assert "compose/.env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"


def test_the_image_of_nats_is_the_version_that_is_tested() -> None:
    told = subprocess.run([nats_program(), "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"v(\d+\.\d+)", told.stdout)

    assert version is not None
    assert SERVICES["nats"]["image"] == f"nats:{version[1]}-alpine"


def test_files_that_the_image_copies_exist_and_are_in_its_context() -> None:
    text = (FOLDER / "Dockerfile").read_text("utf-8")
    copies = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    copied = [name for names in copies for name in names.split()]
    context = (ROOT / ".dockerignore").read_text("utf-8")
    taken = re.findall(r"^!(.+)$", context, re.MULTILINE)

    assert sorted(copied) == sorted(taken)
    assert all((ROOT / name).exists() for name in copied)
    for volume in ("./nats/nats.conf", "./nats/init-streams.sh"):
        assert (FOLDER / volume).is_file()


@pytest.mark.nats_cli
async def test_the_script_makes_what_the_manifests_declare_and_never_changes_it(
    environment: dict[str, str], init_streams: Callable[[], str]
) -> None:
    said = await asyncio.to_thread(init_streams)

    # The host adds what the script does not make, and finds nothing to change.
    plan = await host(environment, "plan", "--json")
    missing = {change["object"] for change in plan.documents}
    assert {change["kind"] for change in plan.documents} <= {"create"}
    declared = read(shipped_manifests(["backbone"]), ENVIRONMENT)
    made = set(re.findall(r"^Stream (\w+) ready$", said, re.MULTILINE))
    assert made == declared.streams.keys()
    assert not missing & {f"stream {name}" for name in made}
    consumers = re.findall(r"^Consumer (\S+) ready$", said, re.MULTILINE)
    assert consumers == ["ingest-workers", "ingest-shadow", "ingest-commands", "route-delivery"]
    assert not {name.rpartition("/")[2] for name in missing} & set(consumers)

    # As the container does at every start.
    await host(environment, "apply")
    await asyncio.to_thread(init_streams)
    plan = await host(environment, "plan", "--json")
    assert plan.documents == []


@pytest.mark.nats_cli
async def test_a_server_that_the_documents_own_script_has_set_up_keeps_its_messages(
    nats_server: NatsServer, broker: Broker
) -> None:
    page = (ROOT / "tools" / "seeds" / "documents" / "2-streams-in-compose.md").read_text("utf-8")
    [script] = re.findall(r"^```bash\n(#!.*?)^```$", page, re.DOTALL | re.MULTILINE)
    await asyncio.to_thread(
        subprocess.run,
        ["sh", "-c", script],
        check=True,
        capture_output=True,
        timeout=60,
        env={
            "PATH": f"{ROOT / '.tools'}:{os.environ['PATH']}",
            "HOME": str(nats_server.directory),
            "NATS_URL": nats_server.anonymous_url,
        },
    )
    streams = ("TELEMETRY", "SHADOW", "COMMANDS")
    for stream in streams:
        await broker.publish(f"{stream.lower()}.test", b"{}")

    changes = await ensure(broker, read(shipped_manifests(["backbone"]), ENVIRONMENT))

    kept = [(await broker.api(f"STREAM.INFO.{name}"))["state"]["messages"] for name in streams]
    assert kept == [1, 1, 1]
    assert "consumer TELEMETRY/ingest-workers" in {
        change.object for change in changes if change.kind == "update"
    }
    assert "stream ROUTES" in {change.object for change in changes if change.kind == "create"}


def test_the_server_is_healthy_where_the_files_ask(server: ComposeServer) -> None:
    path = SERVICES["nats"]["healthcheck"]["test"][-1].partition("8222")[2]

    assert httpx.get(server.monitor_url + path, timeout=10).status_code == 200


async def test_users_are_let_in_as_the_files_say(server: ComposeServer) -> None:
    broker = await Broker.connect(server.url, name="test")
    await broker.close()
    answers = []
    for password in (server.mqtt_password, "wrong"):
        with MqttSession(server.mqtt_port, MQTT_USER, password) as session:
            answers.append(session.connected)
    assert answers == ["Success", "Not authorized"]


async def test_the_host_lets_devices_in_with_their_own_token(
    server: ComposeServer, environment: dict[str, str], server_directory: Path
) -> None:
    # With a PostgreSQL of its own, as DATABASE_URL is empty.
    environment |= {
        "RUNTIME_DATA_DIR": str(server_directory / "data"),
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(free_port()),
    }
    token = "a-token-of-the-device"
    device = {"tenant_id": "acme", "device_id": "dev1", "site_id": "s1", "provision_token": token}
    answers = []
    with serving(ROOT, *SERVICES["ingest"]["command"][1:], environment=environment):
        broker = await Broker.connect(server.url, name="test")
        for subject, payload in (
            ("management.tenants.create", {"tenant_id": "acme"}),
            ("management.devices.register", device),
        ):
            await broker.request(subject, json.dumps(payload).encode(), timeout_s=20)
        await broker.close()
        for password in (token, "wrong"):
            with MqttSession(
                server.mqtt_port, "acme/dev1", password, client_id="acme/dev1"
            ) as mqtt:
                answers.append(mqtt.connected)

    assert answers == ["Success", "Not authorized"]
