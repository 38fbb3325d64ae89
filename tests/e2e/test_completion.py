"""Completion: the real bash with the printed script, and what zsh and fish would ask."""

import asyncio
import os
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from runtime import Context
from runtime.broker.connection import Broker
from tests.support.command import ROOT, RUNTIME, runtime
from tests.support.documentation import free_port
from tests.support.host import fresh, running_host
from tests.support.servers import NatsServer

COMPLETE = """
eval "$({runtime} completion bash)"
COMP_WORDS=({words}); COMP_CWORD={at}
_runtime_completion {runtime}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


async def _complete(url: str, *words: str, folder: Path = ROOT) -> tuple[list[str], str]:
    bash = shutil.which("bash")
    assert bash is not None
    script = COMPLETE.format(
        runtime=RUNTIME, words=" ".join(f"'{word}'" for word in words), at=len(words) - 1
    )
    process = await asyncio.create_subprocess_exec(
        bash, "--norc", "-c", script,
        cwd=folder, env={"PATH": os.environ["PATH"], "NATS_URL": url}, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return out.decode().split(), err.decode()


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
        both = await _complete(nats_server.url, "runtime", "dlq", "ls", "--function", name)
        one = await _complete(nats_server.url, "runtime", "pause", f"{name}_a")
        log = await _complete(nats_server.url, "runtime", "logs", f"{name}_b")

    assert both == ([f"{name}_a", f"{name}_b"], "")
    assert one == ([f"{name}_a"], "")
    assert log == ([f"{name}_b"], "")


async def test_without_nats_bash_completes_commands_and_the_functions_of_the_folder_in_silence(
    tmp_path: Path,
) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "app.yaml").write_text(
        "streams: {S: {subjects: [s]}}\n"
        "functions: {work: {handler: 'no.module:here', consumer: {stream: S}}}\n"
    )

    assert await _complete(url, "runtime", "pl", folder=tmp_path) == (["plan"], "")
    assert await _complete(url, "runtime", "invoke", "w", folder=tmp_path) == (["work"], "")
    assert await _complete(url, "runtime", "pause", "w", folder=tmp_path) == ([], "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
async def test_zsh_and_fish_get_scripts_that_ask_in_the_same_way(shell: str) -> None:
    script = await runtime("", "completion", shell)

    assert script.code == 0
    assert f"_RUNTIME_COMPLETE={shell}_complete" in script.out

    answer = await runtime(
        "",
        COMP_WORDS="runtime resu",
        COMP_CWORD="1" if shell == "zsh" else "resu",
        _RUNTIME_COMPLETE=f"{shell}_complete",
    )

    assert answer.code == 0
    assert "resume" in answer.out
