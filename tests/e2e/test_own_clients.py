"""`runtime psql` and `runtime nats-context` beside a host, as in docs/operations.md."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import ROOT, Done, runtime
from tests.support.documentation import free_port, read_blocks, serving

_MANIFEST = """
functions:
  count:
    handler: count:count
    endpoint: {subject: count}
    uses: [postgres]
"""
_MODULE = """
from runtime import Context, Event


async def count(event: Event[bytes], ctx: Context) -> bytes:
    return b"1"
"""


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of a host, and the environment for commands in it."""

    path: Path
    environment: dict[str, str]

    async def runtime(self, *arguments: str, stdin: str = "", **more: str) -> Done:
        return await runtime(
            "", *arguments, folder=self.path, stdin=stdin, **self.environment, **more
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    path = tmp_path_factory.mktemp("own")
    (path / "count.yaml").write_text(_MANIFEST)
    (path / "count.py").write_text(_MODULE)
    ports = ("RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT", "RUNTIME_ADMIN_PORT")
    environment = {name: str(free_port()) for name in ports}
    with serving(path, "count.yaml", environment=environment):
        yield Folder(path, {**environment, "XDG_CONFIG_HOME": str(path / "config")})


async def test_psql_opens_the_database_of_the_functions_by_itself(folder: Folder) -> None:
    done = await folder.runtime("psql", "-At", "-c", "SELECT current_user, current_database()")
    assert (done.code, done.out) == (0, "functions|runtime\n"), done.err
    done = await folder.runtime("psql", "-At", stdin="SELECT 6 * 7;\n")
    assert (done.code, done.out) == (0, "42\n")


async def test_psql_is_an_administrator_when_asked_to_be(folder: Folder) -> None:
    statement = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    done = await folder.runtime("psql", "--superuser", "-At", "-c", statement)
    assert (done.code, done.out) == (0, "t\n"), done.err


async def test_psql_prints_an_address_for_other_clients(folder: Folder) -> None:
    address = (await folder.runtime("psql", "--print-address")).out.strip()
    assert address.startswith("postgresql://functions:")
    done = await folder.runtime("psql", "-At", "-c", "SELECT 1", DATABASE_URL=address)
    assert (done.code, done.out) == (0, "1\n"), done.err


async def test_psql_without_a_running_server_says_what_to_start(tmp_path: Path) -> None:
    done = await runtime("", "psql", folder=tmp_path)
    assert done.code == 2
    assert "there is no password of an embedded PostgreSQL" in done.err


@pytest.mark.parametrize(
    ("more", "is_started"),
    [("", False), ("    settings: {address: '${DATABASE_URL}'}\n", True)],
    ids=["nothing uses it", "a setting holds its address"],
)
async def test_postgresql_is_started_only_when_something_uses_it(
    tmp_path: Path, more: str, is_started: bool
) -> None:
    manifest = _MANIFEST.replace("    uses: [postgres]\n", more)
    module = _MODULE
    if more:
        module += "\n\nclass Settings(BaseModel):\n    address: str\n"
        module = "from pydantic import BaseModel\n" + module
    (tmp_path / "count.yaml").write_text(manifest)
    (tmp_path / "count.py").write_text(module)
    ports = ("RUNTIME_NATS_PORT", "RUNTIME_MONITOR_PORT", "RUNTIME_MQTT_PORT")
    with serving(tmp_path, "count.yaml", environment={name: str(free_port()) for name in ports}):
        assert (tmp_path / ".runtime" / "postgres").exists() == is_started


@pytest.mark.nats_cli
async def test_the_page_on_the_official_command_line_works_as_written(
    folder: Folder, nats_cli: Callable[..., str]
) -> None:
    blocks = read_blocks(ROOT / "docs" / "operations.md")
    [block] = [block.text for block in blocks if "$ runtime nats-context" in block.text]
    first, *others = [line.removeprefix("$ ") for line in block.splitlines() if line[:2] == "$ "]
    done = await folder.runtime(*first.split()[1:])
    assert done.code == 0, done.err
    assert others
    for line in others:
        program, *arguments = line.split()
        assert program == "nats"
        home = folder.environment["XDG_CONFIG_HOME"]
        await asyncio.to_thread(nats_cli, "", *arguments, XDG_CONFIG_HOME=home)
