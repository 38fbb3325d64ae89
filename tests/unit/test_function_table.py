from typing import Any

from runtime.cli.function_table import notes_on, show_state
from runtime.cli.function_views import FunctionView
from runtime.cli.instances import Instance


def instance(pid: int, version: str = "aaaa", **more: Any) -> Instance:
    fields = {"function": "ingest", "kind": "consumer", "id": "x", "host": "web", "pid": str(pid)}
    return Instance.model_validate({**fields, "code_version": version, **more})


def view(*processes: Instance, function: str = "ingest") -> FunctionView:
    return FunctionView(function, kind="consumer", processes=processes)


def test_functions_of_one_version_need_no_note() -> None:
    alike = view(instance(1), instance(2))

    assert list(notes_on([alike])) == []
    assert str(show_state(alike)) == "running"


def test_differing_versions_are_marked_with_the_processes_of_each() -> None:
    mixed = view(instance(1), instance(2, "bbbb", worker="2"), *(instance(n) for n in range(3, 7)))

    [note] = notes_on([mixed])

    assert str(show_state(mixed)) == "2 versions"
    assert note == (
        "ingest: 2 versions: aaaa on web (pid 1), web (pid 3), web (pid 4) and 2 more; "
        "bbbb on web (pid 2, worker 2)"
    )


def test_a_failed_reload_is_told_once_for_all_its_functions() -> None:
    error = "shop.py:3: invalid \x1b[31msyntax"
    broken = [
        view(instance(1, reload_error=error), instance(2, reload_error=error), function=f"f{n}")
        for n in range(5)
    ]

    [note] = notes_on(broken)

    assert str(show_state(broken[0])) == "reload failed"
    assert note == (
        "f0, f1, f2 and 2 more: the last reload failed on web (pid 1), web (pid 2): "
        "shop.py:3: invalid \\x1b[31msyntax"
    )


def test_many_functions_of_several_versions_have_few_notes() -> None:
    mixed = [view(instance(1), instance(2, "bbbb"), function=f"f{n}") for n in range(8)]

    notes = list(notes_on(mixed))

    assert len(notes) == 6
    assert notes[-1] == "and 3 functions of several versions; see --json"
