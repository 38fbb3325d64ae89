"""The known ways in which reloading goes wrong elsewhere, each with its test.

The numbers are those of the table in the project's notes on developing; the tests are here unless a
file is named.

 1  isinstance between versions: `test_classes_of_one_version_know_each_other`
 2  stale validators, a class by two paths: `test_validators_of_a_changed_model…`,
    `test_a_module_that_is_imported_by_two_paths…`
 3  enum identity: `test_members_of_an_enum_are_the_same_in_all_functions`
 4  stale bytecode: `test_bytecode_is_never_read`
 5  atomic renames: integration/test_file_watch.py
 6  a ConfigMap's link: `test_a_config_map_that_swaps_its_link…`; integration/test_file_watch.py
 7  folders that come and go: test_reloader.py, integration/test_file_watch.py
 8  polling, and what it costs: integration/test_file_watch.py
 9  .venv and unreadable folders: integration/test_file_watch.py
10  steady writes: integration/test_file_watch.py, test_reloader.py
11  a new import before its module: `test_a_name_that_is_new_in_a_helper…`
12  dependents: `test_whoever_needs_a_changed_module…`
13  data files: `test_data_that_a_module_read…`, `test_data_that_a_start_read…`
14  dataclasses, running coroutines: `test_a_running_coroutine_keeps_its_code…`
15  background tasks: integration/test_function_versions.py
16  old modules never collected: test_module_versions.py
17  global registries: `test_metrics_of_a_module…`, `test_a_registry_in_an_unchanged_module…`
18  the first message after a reload: e2e/test_reload.py
19  success while stale code runs: `test_the_reported_version_is_that_of_the_code_that_runs`
20  works once, a file executed twice: `test_a_module_that_is_imported_by_two_paths…`
21  reload by accident: e2e/test_reload.py
22  half-saved files, bursts: test_reloader.py
"""

import asyncio
import importlib.util
import os
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from runtime.errors import ConfigError
from runtime.loader.file_reads import START, recorded
from tests.support.projects import ReloadedProject, forget_modules_of, handler, write


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReloadedProject]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = ReloadedProject()
    yield made
    made.project.close()
    forget_modules_of(tmp_path)


ORDER = """
from pydantic import BaseModel, field_validator
class Order(BaseModel):
    number: int
    @field_validator("number")
    @classmethod
    def check(cls, number):
        if number > {most}:
            raise ValueError("too many")
        return number
"""


def test_classes_of_one_version_know_each_other(loaded: ReloadedProject) -> None:
    write("orders.py", "class Order: ...\nclass Refused(Exception): ...\n")
    write("shop.py", handler("return Order(), Refused", before="from orders import Order, Refused"))
    write("mail.py", handler("return isinstance(event, orders.Order)", before="import orders"))
    loaded.load(shop="shop:handle", mail="mail:handle")
    old_order, old_refused = loaded.call("shop", None, None)
    assert loaded.call("mail", old_order, None)

    write("orders.py", "class Order:\n    new = 1\nclass Refused(Exception): ...\n")
    loaded.reload()

    order, refused = loaded.call("shop", None, None)
    assert loaded.call("mail", order, None)
    # An object of the old version is no object of the new class: hand_over must make a new one.
    assert not loaded.call("mail", old_order, None)
    assert not issubclass(refused, old_refused)


def test_validators_of_a_changed_model_are_those_of_every_model_around_it(
    loaded: ReloadedProject,
) -> None:
    write("orders.py", ORDER.format(most=10))
    write("carts.py", """
        from orders import Order
        from pydantic import BaseModel
        class Cart(BaseModel):
            order: Order
    """)  # fmt: skip
    write("shop.py", handler("return Cart.model_validate({'order': {'number': 50}})",
                             before="from carts import Cart"))  # fmt: skip
    loaded.load(shop="shop:handle")
    with pytest.raises(ValueError, match="too many"):
        loaded.call("shop", None, None)

    write("orders.py", ORDER.format(most=100))
    loaded.reload()

    assert loaded.call("shop", None, None).order.number == 50


def test_a_module_that_is_imported_by_two_paths_is_executed_once_for_each_reload(
    loaded: ReloadedProject,
) -> None:
    counted = (
        "import sys\nsys.test_executed = getattr(sys, 'test_executed', 0) + 1\nclass Order: ...\n"
    )
    write("shop/__init__.py", "from . import orders\n")
    write("shop/orders.py", counted)
    body = "return shop.orders.Order is Order is again.Order is late()"
    before = """
        import importlib
        import shop.orders
        import shop.orders as again
        from .orders import Order
        def late():
            from shop import orders
            assert importlib.import_module("shop.orders").Order is orders.Order
            return orders.Order
    """
    write("shop/work.py", handler(body, before=before))
    try:
        loaded.load(shop="shop.work:handle")
        for number in range(2, 5):
            write("shop/orders.py", counted + f"# {number}\n")
            loaded.reload()
            assert loaded.call("shop", None, None)
            assert sys.test_executed == number  # type: ignore[attr-defined]
    finally:
        del sys.test_executed  # type: ignore[attr-defined]


def test_members_of_an_enum_are_the_same_in_all_functions(loaded: ReloadedProject) -> None:
    write("states.py", "import enum\nclass State(enum.Enum):\n    OPEN = 1\n")
    write("shop.py", handler("return State.OPEN", before="from states import State"))
    write("mail.py", handler("return event is State.OPEN", before="from states import State"))
    loaded.load(shop="shop:handle", mail="mail:handle")

    write("shop.py", handler("return State.OPEN", before="from states import State") + "# new\n")
    loaded.reload()
    assert loaded.call("mail", loaded.call("shop", None, None), None)

    write("states.py", "import enum\nclass State(enum.Enum):\n    OPEN = 2\n")
    loaded.reload()
    assert loaded.call("mail", loaded.call("shop", None, None), None)


def test_bytecode_is_never_read(loaded: ReloadedProject) -> None:
    source = write("shop.py", handler("return 1"))
    py_compile.compile(str(source), doraise=True)
    times = (source.stat().st_atime_ns, source.stat().st_mtime_ns)
    write("shop.py", handler("return 2"))
    os.utime(source, ns=times)  # Of the same size and time as the bytecode says.
    assert Path(importlib.util.cache_from_source(str(source))).exists()
    loaded.load(shop="shop:handle")
    assert loaded.call("shop", None, None) == 2

    write("shop.py", handler("return 3"))
    os.utime(source, ns=times)
    loaded.reload()
    assert loaded.call("shop", None, None) == 3


def test_a_config_map_that_swaps_its_link_is_a_change_though_no_time_changes(
    loaded: ReloadedProject,
) -> None:
    for number in (1, 2):
        os.utime(write(f"..{number}/shop.py", handler(f"return {number}")), (1, 1))
    Path("..data").symlink_to("..1")
    Path("shop.py").symlink_to("..data/shop.py")
    loaded.load(shop="shop:handle")
    assert loaded.call("shop", None, None) == 1

    Path("..tmp").symlink_to("..2")
    Path("..tmp").replace("..data")
    loaded.reload()

    assert loaded.call("shop", None, None) == 2


def test_a_name_that_is_new_in_a_helper_can_be_imported_in_the_same_change(
    loaded: ReloadedProject,
) -> None:
    write("a_helper.py", "OLD = 1\n")
    write("z_helper.py", "OLD = 1\n")
    write("shop.py", handler())
    loaded.load(shop="shop:handle")

    write("z_helper.py", "NEW = 2\n")
    write("a_helper.py", "from z_helper import NEW\n")
    write("shop.py", handler("return NEW", before="from a_helper import NEW"))
    loaded.reload()

    assert loaded.call("shop", None, None) == 2


@pytest.mark.parametrize(
    ("imports", "value"),
    [
        ("from between import helper", "helper.TAX"),
        ("import pack.helper as h", "h.TAX"),
        ("import pack.helper", "pack.helper.TAX"),
        ("from pack import helper", "helper.TAX"),
        ("from pack.helper import *", "TAX"),
        ("def inner():\n    def deeper():\n        import pack.helper as h\n        return h.TAX\n"
         "    return deeper()", "inner()"),
        ("import typing\nif typing.TYPE_CHECKING:\n    import pack.helper\n",
         "__import__('pack.helper', fromlist=['TAX']).TAX"),
        ("import spaces.inner.helper as h", "h.TAX"),
        ("from importlib import import_module\nimport pack.helper",
         "import_module('pack.helper').TAX"),
    ],
)  # fmt: skip
def test_whoever_needs_a_changed_module_is_loaded_again(
    loaded: ReloadedProject, imports: str, value: str
) -> None:
    write("pack/__init__.py", "")
    write("between.py", "from pack import helper\n")
    for file in ("pack/helper.py", "spaces/inner/helper.py"):
        write(file, "TAX = 19\n")
    write("shop.py", handler(f"return {value}", before=imports))
    loaded.load(shop="shop:handle")
    old = loaded.functions["shop"]
    assert loaded.call("shop", None, None) == 19

    for file in ("pack/helper.py", "spaces/inner/helper.py"):
        write(file, "TAX = 21\n")
    loaded.reload()

    assert loaded.call("shop", None, None) == 21
    assert old.handler(None, None) == 19
    assert old.code_version != loaded.functions["shop"].code_version


@pytest.mark.parametrize("when", ["when_it_is_imported", "when_it_is_called"])
def test_a_module_that_is_imported_by_a_computed_name_is_a_source_of_its_importer(
    loaded: ReloadedProject, when: str
) -> None:
    write("plugins/eu.py", "TAX = 19\n")
    write("registry.py", """
        import importlib
        def plugin(name):
            return importlib.import_module(f"plugins.{name}")
    """)  # fmt: skip
    before = "import registry\n" + (
        "registry.plugin('eu')" if when == "when_it_is_imported" else ""
    )
    write("shop.py", handler("return registry.plugin('eu').TAX", before=before))
    loaded.load(shop="shop:handle")
    versions = []
    for tax in (19, 21, 23):
        write("plugins/eu.py", f"TAX = {tax}\n")
        loaded.reload()
        assert loaded.call("shop", None, None) == tax
        versions.append(loaded.functions["shop"].code_version)

    assert len(set(versions)) == 3


def test_modules_that_import_each_other_are_loaded_again_together(loaded: ReloadedProject) -> None:
    write("left.py", "import right\ndef name():\n    return 'left'\n")
    write("right.py", "import left\ndef both():\n    return left.name() + 'right'\n")
    write("shop.py", handler("return right.both()", before="import right"))
    loaded.load(shop="shop:handle")

    write("left.py", "import right\ndef name():\n    return 'new'\n")
    loaded.reload()

    assert loaded.call("shop", None, None) == "newright"


def test_a_cycle_that_cannot_be_imported_is_named(loaded: ReloadedProject) -> None:
    write("left.py", "X = 1\n")
    write("right.py", "from left import X\n")
    write("shop.py", handler("return right.X", before="import right"))
    loaded.load(shop="shop:handle")

    write("left.py", "from right import X\n")
    loaded.reload()

    failure = loaded.errors["shop"]
    assert failure.wrong.startswith(
        "ImportError: cannot import name 'X' from partially initialized"
    )
    assert failure.where in {"left.py:1", "right.py:1"}
    assert loaded.call("shop", None, None) == 1


def test_a_module_that_becomes_a_package_is_the_package(loaded: ReloadedProject) -> None:
    write("prices.py", "TAX = 19\n")
    write("shop.py", handler("return prices.TAX", before="import prices"))
    loaded.load(shop="shop:handle")

    Path("prices.py").unlink()
    write("prices/__init__.py", "from prices.tax import TAX\n")
    write("prices/tax.py", "TAX = 21\n")
    loaded.reload()

    assert loaded.call("shop", None, None) == 21


def test_a_helper_that_is_deleted_is_missed_at_the_line_that_imports_it(
    loaded: ReloadedProject,
) -> None:
    write("prices.py", "TAX = 19\n")
    write("shop.py", handler("return prices.TAX", before="import prices"))
    loaded.load(shop="shop:handle")

    Path("prices.py").unlink()
    loaded.reload()

    assert loaded.errors["shop"].where == "shop.py:2"
    assert loaded.errors["shop"].wrong == "ModuleNotFoundError: No module named 'prices'"
    assert loaded.call("shop", None, None) == 19


@pytest.mark.parametrize("by_helper", [False, True], ids=["itself", "by_a_helper_that_keeps_it"])
def test_data_that_a_module_read_when_it_was_imported_is_a_source(
    loaded: ReloadedProject, by_helper: bool
) -> None:
    write("prices.csv", "19")
    write("files.py", """
        from functools import cache
        from pathlib import Path
        @cache
        def read(name):
            return Path(name).read_text()
    """)  # fmt: skip
    direct = "import pathlib\nTAX = pathlib.Path('prices.csv').read_text()"
    before = "import files\nTAX = files.read('prices.csv')" if by_helper else direct
    write("shop.py", handler("return TAX", before=before))
    loaded.load(shop="shop:handle")
    version = loaded.functions["shop"].code_version

    write("prices.csv", "21")
    loaded.reload()

    assert loaded.call("shop", None, None) == "21"
    assert loaded.functions["shop"].code_version != version


def test_data_that_is_read_by_a_shared_helper_is_a_source_of_its_reader_alone(
    loaded: ReloadedProject,
) -> None:
    write(
        "files.py", "import pathlib\ndef read(name):\n    return pathlib.Path(name).read_text()\n"
    )
    for name in ("shop", "mail"):
        write(f"{name}.csv", "19")
        source = handler("return TAX", before=f"import files\nTAX = files.read('{name}.csv')")
        write(f"{name}.py", source)
    loaded.load(shop="shop:handle", mail="mail:handle")
    before = loaded.functions["mail"]

    write("shop.csv", "21")
    loaded.reload()

    assert loaded.call("shop", None, None) == "21"
    assert loaded.functions["mail"] is before


async def test_data_that_a_start_read_is_a_source(loaded: ReloadedProject) -> None:
    write("prices.csv", "19")
    write("shop.py", handler("return TAX['now']", before="""
        import asyncio
        from pathlib import Path
        TAX = {}
        def read():
            return Path("prices.csv").read_text()
        async def start(ctx):
            TAX["now"] = await asyncio.to_thread(read)
    """))  # fmt: skip
    loaded.load(shop="shop:handle")

    async def begin() -> None:
        start = loaded.functions["shop"].start
        assert start is not None
        with recorded(START):
            await start(None)

    await begin()
    assert loaded.project.data_files() == {Path("prices.csv").absolute()}  # noqa: ASYNC240

    versions = {loaded.functions["shop"].code_version}
    for value in ("21", "23"):
        write("prices.csv", value)
        loaded.reload()
        await begin()
        assert loaded.call("shop", None, None) == value
        versions.add(loaded.functions["shop"].code_version)
    assert len(versions) == 3


def test_what_a_handler_reads_later_is_no_source(loaded: ReloadedProject) -> None:
    write("prices.csv", "19")
    write("shop.py", handler("import pathlib; return pathlib.Path('prices.csv').read_text()"))
    loaded.load(shop="shop:handle")
    loaded.call("shop", None, None)

    assert loaded.project.data_files() == set()


async def test_a_running_coroutine_keeps_its_code_and_its_helpers(loaded: ReloadedProject) -> None:
    write("prices.py", "TAX = 19\n")
    before = """
        import asyncio
        from dataclasses import dataclass, replace
        import prices
        @dataclass(frozen=True)
        class Order:
            number: int
        async def work(go):
            order = Order(1)
            await go.wait()
            import prices as later
            assert isinstance(replace(order, number=2), Order)
            return prices.TAX, later.TAX, replace(order, number=2) == Order(2)
    """
    write("shop.py", handler("return work(event)", before=before))
    loaded.load(shop="shop:handle")
    go = asyncio.Event()
    running = asyncio.ensure_future(loaded.call("shop", go, None))
    await asyncio.sleep(0)

    write("prices.py", "TAX = 21\n")
    write("shop.py", handler("return work(event)", before=before) + "# new\n")
    loaded.reload()
    go.set()

    assert await running == (19, 19, True)
    assert await loaded.call("shop", go, None) == (21, 21, True)


def test_metrics_of_a_module_are_registered_again_and_those_of_others_stay(
    loaded: ReloadedProject,
) -> None:
    before = "from prometheus_client import Counter\nORDERS = Counter('test_{0}', 'all')"
    write("orders.py", before.format("orders"))
    write(
        "shop.py",
        handler("ORDERS.inc()", before="from orders import ORDERS\n" + before.format("shop")),
    )
    loaded.load(shop="shop:handle")
    loaded.call("shop", None, None)

    for broken in (False, True, False):
        source = handler(
            "ORDERS.inc()", before="from orders import ORDERS\n" + before.format("shop")
        )
        write("shop.py", source + ("1 / 0\n" if broken else f"# {broken}\n"))
        loaded.reload()
        assert loaded.errors.keys() == ({"shop"} if broken else set())
        loaded.call("shop", None, None)

    assert REGISTRY.get_sample_value("test_shop_total") == 1
    assert REGISTRY.get_sample_value("test_orders_total") == 0
    for name in ("test_shop", "test_orders"):
        REGISTRY.unregister(REGISTRY._names_to_collectors[name])


def test_a_registry_in_an_unchanged_module_is_filled_again(loaded: ReloadedProject) -> None:
    write("tables.py", """
        TABLES = {}
        def table(cls):
            if cls.__name__ in TABLES:
                raise ValueError(f"table {cls.__name__} is already defined")
            TABLES[cls.__name__] = cls
            return cls
    """)  # fmt: skip
    source = handler("return TABLES['Order'] is Order", before="""
        from tables import TABLES, table
        @table
        class Order: ...
    """)  # fmt: skip
    write("shop.py", source)
    loaded.load(shop="shop:handle")

    write("shop.py", source + "# new\n")
    loaded.reload()

    assert loaded.errors == {}
    assert loaded.call("shop", None, None)


def test_the_reported_version_is_that_of_the_code_that_runs(loaded: ReloadedProject) -> None:
    write("prices.py", "TAX = 1\n")
    write("shop.py", handler("return prices.TAX", before="import prices"))
    loaded.load(shop="shop:handle")
    versions = {loaded.functions["shop"].code_version: 1}

    for number in range(2, 6):
        write("prices.py", "broken(" if number == 4 else f"TAX = {number}\n")
        loaded.reload()
        function = loaded.functions["shop"]
        expected = 3 if number == 4 else number
        assert function.handler(None, None) == expected
        assert versions.setdefault(function.code_version, expected) == expected

    fresh = ReloadedProject(from_source=False)
    fresh.load(shop="shop:handle")
    assert fresh.functions["shop"].code_version == loaded.functions["shop"].code_version


def test_a_thread_that_a_module_starts_when_it_is_imported_is_warned_of(
    loaded: ReloadedProject, capsys: pytest.CaptureFixture[str]
) -> None:
    write("shop.py", handler())
    loaded.load(shop="shop:handle")

    write("shop.py", handler() + "import threading\nthreading.Thread(target=print).start()\n")
    loaded.reload()

    said = "".join(capsys.readouterr())
    assert "A module started a thread while it was imported" in said
    assert "shop.py:6" in said


def test_a_plainly_imported_project_is_reloaded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write("prices.py", "TAX = 19\n")
    write("shop.py", handler("import prices; return prices.TAX"))
    loaded = ReloadedProject(from_source=False)
    loaded.load(shop="shop:handle")
    old = loaded.functions["shop"]
    try:
        assert loaded.reload().functions == {"shop": old}
        write("prices.py", "TAX = 21\n")
        loaded.reload()

        assert (old.handler(None, None), loaded.call("shop", None, None)) == (19, 21)
    finally:
        loaded.project.close()
        forget_modules_of(tmp_path)


def test_a_project_that_is_wrong_from_the_beginning_lists_all_problems(
    loaded: ReloadedProject,
) -> None:
    write("shop.py", "broken(")
    write("mail.py", "1 / 0\n")

    with pytest.raises(ConfigError) as raised:
        loaded.load(shop="shop:handle", mail="mail:handle")

    assert [problem.wrong.partition(":")[0] for problem in raised.value.problems] == [
        "importing shop failed at shop.py",
        "importing mail failed at mail.py",
    ]
