"""Completion: the real bash with the printed script, and what zsh and fish would ask."""

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from runtime import Context
from runtime.broker.connection import Broker
from runtime.cli import main
from tests.support.command import ROOT, RUNTIME, runtime
from tests.support.documentation import free_port
from tests.support.host import fresh, running_host
from tests.support.servers import NatsServer

COMPLETE = """
COMP_WORDS=({words}); COMP_CWORD={at}; COMPREPLY=()
_runtime_completion {runtime}
echo "${{COMPREPLY[@]}}"
"""


async def _complete(url: str, *lines: str, folder: Path = ROOT) -> list[list[str]]:
    """What one bash offers for the last word of each line; it must say nothing else."""
    bash = shutil.which("bash")
    assert bash is not None
    script = f'eval "$({RUNTIME} completion bash)"\n'
    for line in lines:
        at = len(line.split()) - 1
        script += COMPLETE.format(runtime=RUNTIME, words=line, at=at)
    process = await asyncio.create_subprocess_exec(
        bash, "--norc", "-c", script,
        cwd=folder, env={"PATH": os.environ["PATH"], "NATS_URL": url}, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert err == b""
    return [line.split() for line in out.decode().splitlines()]


async def test_bash_completes_the_names_of_functions_that_the_server_knows(
    nats_server: NatsServer, broker: Broker
) -> None:
    name = fresh("complete")

    async def act(ctx: Context, *_: Any) -> None: ...

    stream = name.upper()
    functions = {
        f"{name}_a": {"handler": "on_event", "consumer": {"stream": stream}},
        f"{name}_b": {"handler": "on_request", "endpoint": {"subject": f"{name}.ask"}},
    }
    does = dict.fromkeys(functions, act)
    streams = {stream: {"subjects": [stream], "storage": "memory"}}
    async with running_host(nats_server.url, functions, does, streams=streams):
        offered = await _complete(
            nats_server.url, f"runtime dlq ls --function {name}", f"runtime logs {name}_b"
        )

    assert offered == [[f"{name}_a", f"{name}_b"], [f"{name}_b"]]


async def test_without_nats_bash_completes_commands_and_the_functions_of_the_folder_in_silence(
    tmp_path: Path,
) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "app.yaml").write_text(
        "streams: {S: {subjects: [s]}}\n"
        "functions: {work: {handler: 'no.module:here', consumer: {stream: S}}}\n"
    )

    offered = await _complete(
        url, "runtime pl", "runtime invoke w", "runtime pause w", folder=tmp_path
    )

    assert offered == [["plan"], ["work"], []]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
async def test_zsh_and_fish_get_scripts_that_ask_in_the_same_way(shell: str) -> None:
    script = CliRunner().invoke(main, ["completion", shell])

    assert script.exit_code == 0
    assert f"_RUNTIME_COMPLETE={shell}_complete" in script.stdout

    answer = await runtime(
        "",
        COMP_WORDS="runtime resu",
        COMP_CWORD="1" if shell == "zsh" else "resu",
        _RUNTIME_COMPLETE=f"{shell}_complete",
    )

    assert answer.code == 0
    assert "resume" in answer.out


def test_the_help_has_each_shell_on_a_line_of_its_own() -> None:
    lines = CliRunner().invoke(main, ["completion", "--help"]).output.splitlines()

    assert '  bash, in ~/.bashrc:  eval "$(runtime completion bash)"' in lines
