"""Versions of the project's modules beside each other, and what each version meets at run time."""

import importlib.resources
import importlib.util
import linecache
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.projects import ReloadedProject, collect, forget_modules_of, handler, write


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReloadedProject]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = ReloadedProject()
    yield made
    made.project.close()
    forget_modules_of(tmp_path)


def test_only_the_function_whose_module_changed_is_loaded_again(loaded: ReloadedProject) -> None:
    write("shop.py", handler("return 1"))
    write("mail.py", handler("return 1"))
    loaded.load(shop="shop:handle", mail="mail:handle")
    before = loaded.functions

    write("shop.py", handler("return 2"))
    loaded.reload()

    assert loaded.call("shop", None, None) == 2
    assert loaded.functions["mail"] is before["mail"]
    assert loaded.functions["shop"].code_version != before["shop"].code_version
    assert before["shop"].handler(None, None) == 1


def test_a_file_that_was_saved_without_a_change_is_no_change(loaded: ReloadedProject) -> None:
    path = write("shop.py", handler())
    loaded.load(shop="shop:handle")
    before = loaded.functions["shop"]

    path.write_bytes(path.read_bytes())
    loaded.reload()

    assert loaded.functions["shop"] is before


def test_two_functions_of_one_module_are_both_loaded_again(loaded: ReloadedProject) -> None:
    write("shop.py", handler("return 1") + "other = handle\n")
    loaded.load(one="shop:handle", two="shop:other")

    write("shop.py", handler("return 2") + "other = handle\n")
    loaded.reload()

    assert (loaded.call("one", None, None), loaded.call("two", None, None)) == (2, 2)


def test_a_late_import_of_the_old_version_gets_the_old_module(loaded: ReloadedProject) -> None:
    write("prices.py", "TAX = 19\n")
    write("shop.py", handler("import prices; return prices.TAX"))
    loaded.load(shop="shop:handle")
    old = loaded.functions["shop"].handler

    write("prices.py", "TAX = 21\n")
    loaded.reload()

    assert old(None, None) == 19
    assert loaded.call("shop", None, None) == 21


def test_an_object_of_the_old_version_can_be_pickled_while_the_new_one_runs(
    loaded: ReloadedProject,
) -> None:
    source = handler(
        "order = Order(1); again = pickle.loads(pickle.dumps(order)); return type(again) is Order",
        before="""
            import pickle
            from dataclasses import dataclass
            @dataclass
            class Order:
                number: int
        """,
    )
    write("shop.py", source)
    loaded.load(shop="shop:handle")
    old = loaded.functions["shop"].handler

    write("shop.py", source + "\n# changed\n")
    loaded.reload()

    assert old(None, None)
    assert loaded.call("shop", None, None)


def test_forward_references_and_hints_are_those_of_the_version_that_asks(
    loaded: ReloadedProject,
) -> None:
    source = handler(
        "return typing.get_type_hints(Cart)['order'] is Order and"
        " Cart.model_validate({'order': {'number': 1}}).order.__class__ is Order",
        before="""
            from __future__ import annotations
            import typing
            from pydantic import BaseModel
            class Cart(BaseModel):
                order: Order
            class Order(BaseModel):
                number: int
        """,
    )
    future = "from __future__ import annotations\n"
    write("shop.py", future + source.replace(future, ""))
    loaded.load(shop="shop:handle")
    old = loaded.functions["shop"].handler

    write("shop.py", future + source.replace(future, "") + "# changed\n")
    loaded.reload()

    assert old(None, None)
    assert loaded.call("shop", None, None)


def test_a_traceback_and_inspect_show_the_lines_of_their_own_version(
    loaded: ReloadedProject,
) -> None:
    before = "import inspect\nclass Order:\n    text = '{}'\n"
    body = "return inspect.getsource(handle), inspect.getsource(Order), 1 / 0 if ctx else 0"
    write("shop.py", handler(body, before=before.format("old")))
    loaded.load(shop="shop:handle")
    old = loaded.functions["shop"].handler

    new = "\n\n" + handler(body.replace("1 / 0", "2 / 0"), before=before.format("new"))
    write("shop.py", new)
    loaded.reload()
    write("shop.py", "broken(")

    for version, text, other in (
        (old, "old", "1 / 0"),
        (loaded.functions["shop"].handler, "new", "2 / 0"),
    ):
        function, order, _ = version(None, None)
        assert other in function
        assert f"text = '{text}'" in order
        with pytest.raises(ZeroDivisionError) as raised:
            version(None, 1)
        lines = traceback.extract_tb(raised.value.__traceback__)
        assert other in (lines[-1].line or "")
        assert Path(lines[-1].filename) == Path("shop.py").absolute()


def test_a_module_that_is_not_loaded_is_found_where_it_is(loaded: ReloadedProject) -> None:
    write("pack/__init__.py", "")
    write("pack/versions/0001.py", "")
    write("shop.py", handler(before="import pack"))
    loaded.load(shop="shop:handle")

    spec = importlib.util.find_spec("pack.versions")

    assert spec is not None
    assert list(spec.submodule_search_locations or ()) == [str(Path("pack/versions").absolute())]
    assert importlib.resources.files("pack").joinpath("__init__.py").is_file()


def test_an_old_version_is_collected_when_nothing_refers_to_it(loaded: ReloadedProject) -> None:
    source = handler(
        "return Order",
        before="from pydantic import BaseModel\nclass Order(BaseModel):\n    n: int\n",
    )
    source = source.replace("Event[bytes]", "Event[Order]")
    write("shop.py", source)
    loaded.load(shop="shop:handle")
    old = weakref.ref(loaded.functions["shop"].handler)
    order = weakref.ref(loaded.call("shop", None, None))

    write("shop.py", source + "# changed\n")
    loaded.reload()
    collect()

    assert (old(), order()) == (None, None)


def test_five_hundred_reloads_keep_only_the_newest_version_and_grow_less_than_5_mb(
    loaded: ReloadedProject,
) -> None:
    ballast = "TEXT = " + repr("x" * 10_000) + "\n"  # A module of an ordinary size.
    model = "class Order(BaseModel):\n    number: int\n"
    before = f"from pydantic import BaseModel\n{model}{ballast}"
    write("shop.py", handler("return 0", before=before))
    loaded.load(shop="shop:handle")
    seen: weakref.WeakSet[object] = weakref.WeakSet()

    def reload(number: int) -> None:
        write("shop.py", handler(f"return {number}", before=before))
        loaded.reload()
        seen.add(loaded.functions["shop"].handler)

    for number in range(20):
        reload(number)
    collect()
    lines, bytes_before = len(linecache.cache), psutil.Process().memory_info().rss
    for number in range(20, 520):
        reload(number)
        if number % 50 == 0:
            collect()
    collect()

    assert loaded.call("shop", None, None) == 519
    assert len(seen) == 1
    assert len(linecache.cache) <= lines + 2
    assert psutil.Process().memory_info().rss - bytes_before < 5_000_000
