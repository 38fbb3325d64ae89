from textwrap import dedent

import pytest

from runtime.loader.imports import imported_names

EVERYWHERE = """
    "import none1"
    import top.module, other as renamed
    from . import beside
    from .. import above as outer
    from ..sibling import *
    def function(default=lambda: 0):
        import in_function
        async def inner():
            import in_inner
            async with x: import in_async_with
            async for y in x: import in_async_for
            else: from_else = 1; import in_for_else
    class Class:
        from in_class import name
    if TYPE_CHECKING: import in_if
    elif x: import in_elif
    else: import in_else
    while x: import in_while
    else: import in_while_else
    with x: import in_with
    try: import in_try
    except ValueError: import in_except
    else: import in_try_else
    finally: import in_finally
    try: pass
    except* ValueError: import in_except_group
    match x:
        case [1, *rest] if rest: import in_case
        case _: import in_default_case
"""


def test_imports_are_found_in_statements_of_every_kind() -> None:
    names = imported_names(dedent(EVERYWHERE).encode(), "pack.sub")

    assert sorted(names) == sorted(
        [
            *("top.module", "other", "pack.sub", "pack.sub.beside", "pack", "pack.above"),
            *("pack.sibling", "in_function", "in_inner", "in_async_with", "in_async_for"),
            *("in_for_else", "in_class", "in_class.name", "in_if", "in_elif", "in_else"),
            *("in_while", "in_while_else", "in_with", "in_try", "in_except", "in_try_else"),
            *("in_finally", "in_except_group", "in_case", "in_default_case"),
        ]
    )


BY_LINES = """
import top.module, other as renamed  # with a comment
from . import beside
from .. import above as outer
from ..sibling import *
from many import (
    first,
    second as last,
)
if TYPE_CHECKING:
    from in_if import (one)
def function():
\timport in_function
"""


def test_imports_with_lines_of_their_own_are_found_without_the_rest_of_the_source() -> None:
    names = [
        *("top.module", "other", "pack.sub", "pack.sub.beside", "pack", "pack.above"),
        *("pack.sibling", "many", "many.first", "many.second", "in_if", "in_if.one", "in_function"),
    ]

    assert sorted(imported_names(BY_LINES.encode(), "pack.sub")) == sorted(names)
    with_lines_of_windows = BY_LINES.replace("\n", "\r\n").encode()
    assert sorted(imported_names(with_lines_of_windows, "pack.sub")) == sorted(names)
    assert sorted(imported_names(f"{BY_LINES}'import'".encode(), "pack.sub")) == sorted(names)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import a; import b", {"a", "b"}),
        ("import a, \\\n  b", {"a", "b"}),
        ("from a import (  # why\n  b,\n)", {"a", "a.b"}),
        ("x = 1; import a", {"a"}),
        ("from.a import b", {"pack.a", "pack.a.b"}),
        ("from a import(b)", {"a", "a.b"}),
        ("import größe", {"größe"}),
        ('"""\nimport the rest\n"""\nimport a', {"a"}),
        ("# import a\nimport b", {"b"}),
        ("important = 1\nimport a", {"a"}),
    ],
)
def test_other_imports_are_found_too(source: str, names: set[str]) -> None:
    assert set(imported_names(source.encode(), "pack")) == names


def test_of_a_source_that_is_no_python_only_lines_count() -> None:
    assert imported_names(b"import x\nbroken(", "") == ("x",)
    assert imported_names(b"if x: import x\nbroken(", "") == ()
    assert imported_names(b"if x: import x\n\0", "") == ()
