"""`runtime check` in a user's folder with the same names as the shipped packages."""

from pathlib import Path

import pytest

from tests.support.command import runtime

HELLO = (
    "from runtime import Context, Event\n"
    "async def greet(event: Event[bytes], ctx: Context) -> bytes:\n"
    "    return event.data\n"
)
NOWHERE = "nats://127.0.0.1:9"
BESIDE = pytest.mark.parametrize(
    "shipped", ["gateway", pytest.param("backbone", marks=pytest.mark.long)]
)


def write_project(
    folder: Path, files: dict[str, str], handler: str = "functions.hello:greet"
) -> None:
    manifest = (
        f"functions:\n  greet:\n    handler: {handler}\n    endpoint: {{subject: hello.greet}}\n"
    )
    for name, text in {"my.yaml": manifest, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"functions/hello.py": HELLO}, "functions.hello:greet"),
        ({"functions/hello/__init__.py": HELLO}, "functions.hello:greet"),
        ({"functions/hello.py": HELLO, "functions/__init__.py": ""}, "functions.hello:greet"),
        ({"functions.py": HELLO}, "functions:greet"),
        ({"functions/__init__.py": HELLO}, "functions:greet"),
    ],
    ids=["module", "package", "regular package", "one module", "in the package itself"],
)
@BESIDE
async def test_functions_of_ones_own_stand_beside_the_shipped_ones(
    tmp_path: Path, files: dict[str, str], handler: str, shipped: str
) -> None:
    write_project(tmp_path, files, handler)

    done = await runtime(NOWHERE, "check", "my.yaml", "--with", shipped, folder=tmp_path)

    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(" functions: OK\n")


async def test_a_name_that_hides_a_shipped_module_is_refused_while_shipped_functions_run(
    tmp_path: Path,
) -> None:
    write_project(tmp_path, {"functions/hello.py": HELLO, "functions/domain/__init__.py": ""})

    alone = await runtime(NOWHERE, "check", "my.yaml", folder=tmp_path)
    beside = await runtime(NOWHERE, "check", "my.yaml", "--with", "gateway", folder=tmp_path)

    assert (alone.code, alone.err) == (0, "")
    assert beside.code == 2
    assert beside.err == (
        "functions/domain: hides the shipped functions.domain, which shipped functions need; "
        "give it another name\n1 problem\n"
    )


async def test_a_function_of_ones_own_is_not_taken_for_the_shipped_one_of_its_name(
    tmp_path: Path,
) -> None:
    files = {"functions/http_gateway.py": HELLO}
    write_project(tmp_path, files, "functions.http_gateway:greet")

    alone = await runtime(NOWHERE, "check", "my.yaml", folder=tmp_path)
    beside = await runtime(NOWHERE, "check", "my.yaml", "--with", "gateway", folder=tmp_path)

    assert (alone.code, alone.err) == (0, "")
    assert beside.code == 2
    assert beside.err.startswith("functions/http_gateway: hides the shipped functions.http_gateway")
    assert beside.err.endswith("\n1 problem\n")


@pytest.mark.parametrize("file", ["runtime.py", "runtime/__init__.py"])
async def test_a_module_called_runtime_is_refused_before_anything_starts(
    tmp_path: Path, file: str
) -> None:
    write_project(tmp_path, {"hello.py": HELLO, file: ""}, "hello:greet")

    for command in ("check", "serve"):
        done = await runtime("", command, "my.yaml", folder=tmp_path)

        shown = file.removesuffix("__init__.py")
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"{shown}: has the name of the package that serves functions, so one would hide the "
            "other; give it another name, such as my_functions\n1 problem\n"
        )
    assert not (tmp_path / ".runtime").exists()


async def test_a_folder_called_runtime_that_is_no_package_is_in_nobodys_way(tmp_path: Path) -> None:
    write_project(tmp_path, {"hello.py": HELLO, "runtime/notes.txt": ""}, "hello:greet")

    done = await runtime(NOWHERE, "check", "my.yaml", folder=tmp_path)

    assert (done.code, done.err) == (0, "")


async def test_a_handler_in_a_folder_called_runtime_is_refused_by_the_folders_name(
    tmp_path: Path,
) -> None:
    write_project(tmp_path, {"runtime/jobs.py": HELLO}, "runtime.jobs:greet")

    done = await runtime(NOWHERE, "check", "my.yaml", folder=tmp_path)

    assert done.code == 2
    assert done.err.startswith("runtime/: has the name of the package that serves functions")


@BESIDE
@pytest.mark.parametrize("broken", ["def (", "1 / 0", "import nowhere", "raise SystemExit"])
async def test_a_functions_package_that_cannot_be_imported_is_one_problem_with_its_line(
    tmp_path: Path, broken: str, shipped: str
) -> None:
    files = {"functions/hello.py": HELLO, "functions/__init__.py": f"\n{broken}\n"}
    write_project(tmp_path, files)

    done = await runtime(NOWHERE, "check", "my.yaml", "--with", shipped, folder=tmp_path)

    assert done.code == 2
    first, count = done.err.splitlines()
    assert first.startswith("functions: importing functions failed at functions/__init__.py:2: ")
    assert first.endswith("; correct the module")
    assert count == "1 problem"


@BESIDE
@pytest.mark.parametrize("broken", ["def (", "1 / 0", "import nowhere"])
async def test_a_broken_module_of_ones_own_is_named_with_its_line_and_harms_no_shipped_one(
    tmp_path: Path, broken: str, shipped: str
) -> None:
    write_project(tmp_path, {"functions/hello.py": f"\n{broken}\n"})

    done = await runtime(NOWHERE, "check", "my.yaml", "--with", shipped, folder=tmp_path)

    assert done.code == 2
    first, count = done.err.splitlines()
    assert "importing functions.hello failed at functions/hello.py:2: " in first
    assert first.startswith("my.yaml:3: functions.greet.handler: ")
    assert count == "1 problem"


async def test_a_mistyped_module_of_ones_own_is_told_beside_the_shipped_names(
    tmp_path: Path,
) -> None:
    write_project(tmp_path, {"functions/hello.py": HELLO}, "functions.helo:greet")

    done = await runtime(NOWHERE, "check", "my.yaml", folder=tmp_path)

    assert done.err == (
        "my.yaml:3: functions.greet.handler: there is no module functions.helo; "
        "did you mean hello?\n1 problem\n"
    )


async def test_a_command_without_any_manifest_says_what_to_name(tmp_path: Path) -> None:
    for command in ("serve", "check", "plan", "apply"):
        done = await runtime(NOWHERE, command, folder=tmp_path)

        assert done.code == 2
        assert done.err.endswith(
            "Error: Name a manifest, a folder of manifests, or --with a shipped one.\n"
        )
