from textwrap import dedent

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


def test_a_source_that_is_no_python_imports_nothing() -> None:
    assert imported_names(b"import x\nbroken(", "") == ()
    assert imported_names(b"import x\n\0", "") == ()
