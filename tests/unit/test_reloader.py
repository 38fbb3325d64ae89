# ruff: noqa: ASYNC240 - the small files of a test
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.loader import LoadFailure, Project
from runtime.manifest import read
from runtime.reloading import reloader as reloading
from runtime.reloading.reloader import MANIFESTS, Reloader
from tests.support.applied import AppliedVersions
from tests.support.projects import forget_modules_of, handler, write

ENTRY = "  {name}: {{handler: '{handler}', endpoint: {{subject: {name}}}}}\n"


def write_manifest(file: str = "manifests/app.yaml", /, **handlers: str) -> None:
    entries = [ENTRY.format(name=name, handler=each) for name, each in handlers.items()]
    write(file, "functions:\n" + "".join(entries))


class Running:
    """A project in the current folder, its reloader, and what that has applied."""

    def __init__(self) -> None:
        paths = [Path("manifests")]
        manifest = read(paths, {})
        self.project = Project(from_source=True)
        self.host = AppliedVersions()
        self.host.functions = self.project.load(manifest)
        self.reloader = Reloader(
            self.project, lambda: read(paths, {}), self.host, manifest, paths=paths
        )

    def call(self, name: str) -> object:
        return self.host.functions[name].handler(None, None)


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write("shop.py", handler("return 1"))
    write("mail.py", handler("return 1"))
    write_manifest(shop="shop:handle", mail="mail:handle")
    made = Running()
    yield made
    await made.reloader.stop()
    made.project.close()
    forget_modules_of(tmp_path)


async def test_a_reload_without_a_change_applies_nothing(running: Running) -> None:
    assert await running.reloader.reload() == []
    assert running.host.calls == 0


@pytest.mark.parametrize(
    ("source", "wrong", "line"),
    [
        ("def handle(:\n    pass\n", "SyntaxError: invalid syntax", 1),
        ("import absent_module\n", "ModuleNotFoundError: No module named 'absent_module'", 1),
        ("X = 1\n\nY = X / 0\n", "ZeroDivisionError: division by zero", 3),
        (
            "from runtime import Context, Event\n\ndef handle(event: Event[bytes]) -> None: ...\n",
            "the handler takes (event: runtime.message.Event[bytes]) -> None",
            3,
        ),
        ("raise SystemExit(1)\n", "SystemExit: 1", 1),
        ("\0", "SyntaxError: source code string cannot contain null bytes", 1),
    ],
    ids=["syntax", "import", "exception", "signature", "exit", "zero_byte"],
)
async def test_a_broken_module_keeps_the_last_good_version_and_names_the_line(
    running: Running, source: str, wrong: str, line: int
) -> None:
    write("shop.py", source)
    await running.reloader.reload()

    failure = running.host.errors["shop"]
    assert (running.call("shop"), failure.where) == (1, f"shop.py:{line}")
    assert failure.wrong == wrong
    shown = source.splitlines()[line - 1].replace("\0", "�")
    assert f"> {line} │ {shown}" in failure.excerpt

    write("shop.py", handler("return 2"))
    await running.reloader.reload()

    assert (running.call("shop"), running.host.errors) == (2, {})


async def test_a_broken_function_does_not_hold_back_another_one(running: Running) -> None:
    write("shop.py", "broken(")
    write("mail.py", handler("return 2"))

    await running.reloader.reload()

    assert (running.call("shop"), running.call("mail")) == (1, 2)
    assert running.host.errors.keys() == {"shop"}


async def test_a_mistake_that_is_undone_is_no_mistake_any_more(running: Running) -> None:
    good = Path("shop.py").read_text()
    version = running.host.functions["shop"].code_version
    write("shop.py", "broken(")
    await running.reloader.reload()

    write("shop.py", good)
    await running.reloader.reload()

    assert running.host.errors == {}
    assert running.host.functions["shop"].code_version == version


async def test_a_file_that_is_still_being_written_is_not_reported(running: Running) -> None:
    write("shop.py", "def handle(event, c")

    async def mended() -> bool:
        return False

    assert await running.reloader.reload(is_settled=mended) == []
    write("shop.py", handler("return 2"))
    await running.reloader.reload(is_settled=mended)

    assert (running.call("shop"), running.host.errors) == (2, {})
    assert running.host.calls == 1


async def test_steady_writes_do_not_hide_a_mistake(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "UNSETTLED_S", 0.0)
    write("shop.py", "broken(")

    async def never() -> bool:
        return False

    await running.reloader.reload(is_settled=never)
    await running.reloader.reload(is_settled=never)

    assert running.host.errors.keys() == {"shop"}


async def test_functions_of_new_removed_and_renamed_manifests_come_and_go(
    running: Running,
) -> None:
    write_manifest("manifests/more.yaml", extra="shop:handle")
    await running.reloader.reload()
    assert running.host.functions.keys() == {"shop", "mail", "extra"}

    Path("manifests/more.yaml").rename("manifests/other.yaml")
    assert await running.reloader.reload() == []

    Path("manifests/other.yaml").unlink()
    await running.reloader.reload()
    assert running.project.functions.keys() == {"shop", "mail"}


@pytest.mark.parametrize(
    ("file", "text", "name", "wrong"),
    [
        ("manifests/app.yaml", "functions: [", MANIFESTS, "not YAML"),
        ("manifests/two.yaml", "functions:\n" + ENTRY.format(name="shop", handler="shop:handle"),
         "shop", "the name is taken, first by manifests/app.yaml:2"),
        ("manifests/two.yaml", "functions:\n  shop: {timeout: -1}\n", "shop", "the name is taken"),
        ("manifests/two.yaml", "streem: {}\n", MANIFESTS, "no such key"),
    ],
)  # fmt: skip
async def test_a_wrong_manifest_keeps_the_last_good_one(
    running: Running, file: str, text: str, name: str, wrong: str
) -> None:
    before = Path("manifests/app.yaml").read_text()
    write(file, text)
    await running.reloader.reload()

    failure = running.host.errors[name]
    assert failure.where.startswith(f"{file}:")
    assert wrong in failure.wrong
    assert running.call("shop") == 1

    Path(file).unlink()
    write("manifests/app.yaml", before)
    await running.reloader.reload()
    assert running.host.errors == {}


async def test_code_is_reloaded_while_a_manifest_is_wrong(running: Running) -> None:
    write("manifests/two.yaml", "functions: [")
    await running.reloader.reload()

    write("shop.py", handler("return 2"))
    await running.reloader.reload()

    assert running.call("shop") == 2
    assert running.host.errors.keys() == {MANIFESTS}


async def test_a_folder_of_manifests_that_is_gone_keeps_the_last_good_ones(
    running: Running,
) -> None:
    Path("manifests/app.yaml").unlink()
    Path("manifests").rmdir()
    await running.reloader.reload()

    assert running.call("shop") == 1
    assert "no such file or folder" in running.host.errors[MANIFESTS].wrong


async def test_a_module_that_is_deleted_keeps_the_last_good_version(running: Running) -> None:
    Path("shop.py").unlink()
    await running.reloader.reload()

    assert running.call("shop") == 1
    assert running.host.errors["shop"].wrong.endswith("there is no module shop")


async def test_a_version_that_cannot_start_is_tried_again_when_it_is_saved_or_when_asked(
    running: Running,
) -> None:
    running.host.refuses["shop"] = LoadFailure("shop.py:3", "its start failed", "correct it")
    write("shop.py", handler("return 2"))
    await running.reloader.reload()
    calls = running.host.calls
    assert (running.call("shop"), running.project.functions["shop"].handler(None, None)) == (1, 1)

    write("mail.py", handler("return 2"))
    await running.reloader.reload()
    assert (running.host.calls, running.host.errors["shop"].wrong) == (
        calls + 1,
        "its start failed",
    )

    assert await running.reloader.reload() == []
    await running.reloader.reload(touched=frozenset({Path("mail.py").absolute()}))
    assert running.call("shop") == 1
    assert await running.reloader.reload(touched=frozenset({Path("shop.py").absolute()}))

    running.host.refuses.clear()
    await running.reloader.reload(retry=True)
    assert (running.call("shop"), running.host.errors) == (2, {})


async def test_an_import_that_hangs_is_given_up_and_named(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "LOAD_LIMIT_S", 0.3)
    write("shop.py", "import threading\n\nthreading.Event().wait()\n")
    await running.reloader.reload()

    failure = running.host.errors["shop"]
    assert failure.where == "shop.py:3"
    assert failure.wrong == "the import takes longer than 0.3 s"
    assert running.call("shop") == 1

    write("mail.py", handler("return 2"))
    await running.reloader.reload()
    assert (running.call("mail"), running.host.errors["shop"]) == (2, failure)


async def test_reloads_that_wait_for_another_one_are_one(running: Running) -> None:
    write("shop.py", handler("return 2"))
    done = await asyncio.gather(*(running.reloader.reload() for _ in range(5)))

    assert running.call("shop") == 2
    assert [len(changes) for changes in done].count(1) == 1
    assert running.host.calls == 1
