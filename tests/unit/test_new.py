"""`runtime new`: what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from runtime.cli import main
from runtime.cli.failure import ExitCode
from runtime.manifest import read

RUFF = Path(sys.executable).parent / "ruff"
KINDS = ("consumer", "batch", "endpoint", "schedule", "service", "route")
ROUTES = Path(__file__).parents[2] / "manifests" / "routes.yaml"
LONGEST = "a" + "_long" * 7 + "_name"
RULES = Path(__file__).parents[2] / "pyproject.toml"
FIRST_PARTY = "lint.isort.known-first-party=['functions','runtime']"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _new(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments])


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_is_a_module_a_manifest_and_a_test(kind: str, folder: Path) -> None:
    done = _new(kind, "orders")

    assert done.exit_code == ExitCode.DONE, done.output
    assert _files(folder) == [
        "functions/orders.py",
        "manifests/orders.yaml",
        "tests/test_orders.py",
    ]
    assert done.stdout.splitlines()[:4] == [
        "made functions/orders.py",
        "made manifests/orders.yaml",
        "made tests/test_orders.py",
        "Next:",
    ]
    paths = [folder / "manifests", *([ROUTES] if kind == "route" else [])]
    entry = "deliver_orders" if kind == "route" else "orders"
    assert entry in read(paths, {"DATABASE_URL": "postgresql://x/y"}).functions


def test_what_is_made_has_the_form_that_the_projects_own_rules_ask_for(folder: Path) -> None:
    for kind in KINDS:
        longest = 32 if kind == "route" else 40
        for name in (f"a_{kind}", f"{LONGEST}_{kind}"[-longest:].strip("_")):
            assert _new(kind, name).exit_code == ExitCode.DONE
    _new("consumer", "one_more", "--stream", f"A_{'CONSUMER'}", "--subject", "a_consumer.x.*")

    for command in (["format", "--check"], ["check", "--config", FIRST_PARTY]):
        done = subprocess.run(
            [RUFF, *command, "--config", RULES, "--no-cache", "."],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_name_that_no_route_type_may_have_is_refused_and_nothing_is_written(
    folder: Path,
) -> None:
    done = _new("route", "a" * 33)

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert "a route type's name has 32 characters at most; choose a shorter name" in done.stderr
    assert _files(folder) == []
    assert _new("route", "a" * 32).exit_code == ExitCode.DONE


def test_a_project_is_a_folder_with_one_function_and_all_it_needs(folder: Path) -> None:
    done = _new("project", "shop", "--json")

    assert done.exit_code == ExitCode.DONE, done.output
    document = json.loads(done.stdout)
    assert sorted(document["files"]) == [f"shop/{name}" for name in _files(folder / "shop")]
    assert document["next"] == ["cd shop", "make test", "make dev"]
    assert _files(folder / "shop") == [
        ".gitignore",
        "Makefile",
        "README.md",
        "functions/greet.py",
        "manifests/greet.yaml",
        "pyproject.toml",
        "tests/test_greet.py",
    ]


def test_a_consumer_can_take_a_subject_of_a_stream_that_a_manifest_has(folder: Path) -> None:
    _new("batch", "orders")

    assert (
        _new("consumer", "bills", "--stream", "ORDERS", "--subject", "orders.*.paid").exit_code == 0
    )

    manifest = read([folder / "manifests"], {})
    bound = manifest.functions["bills"].consumer
    assert bound is not None
    assert (bound.stream, bound.filter_subjects) == ("ORDERS", ("orders.*.paid",))
    assert manifest.streams.keys() == {"ORDERS"}
    assert '["manifests/bills.yaml", "manifests/orders.yaml"]' in Path(
        "tests/test_bills.py"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "'': a function's name has lower-case letters"),
        ("../evil", "write evil"),
        ("/etc/passwd", "write etc_passwd"),
        ("a/b", "write a_b"),
        ("sendMail", "'sendMail': a function's name has lower-case letters, digits and _, begins"),
        ("send-mail", "write send_mail"),
        ("2fast", "write fast"),
        ("naïve", "'na\\xefve': a function's name has"),
        ("a\nb", "'a\\nb': a function's name has"),
        ("a" * 41, "has 40 characters at most"),
        ("class", "'class': this is a keyword of Python; write class_it or another name"),
        ("match", "this is a keyword of Python"),
        ("list", "'list': this is a name of Python's own"),
        ("on", "'on': YAML does not read this word as a name"),
        ("start", "'start': this is the name of a hook, which the host calls"),
        ("event", "the new module uses this name for something else"),
        ("http_gateway", "functions.http_gateway is one of the shipped modules; choose another"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_and_nothing_is_written(
    name: str, complaint: str, folder: Path
) -> None:
    done = _new("consumer", "--", name)

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert complaint in done.stderr
    assert done.stderr.endswith("1 problem\n")
    assert _files(folder) == []


@pytest.mark.parametrize("name", ["../shop", "Shop", "runtime", "", "a b", ".", "-"])
def test_a_projects_name_is_checked_too(name: str, folder: Path) -> None:
    done = _new("project", "--", name)

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "file", ["functions/orders.py", "manifests/orders.yaml", "tests/test_orders.py"]
)
def test_no_file_is_overwritten_and_none_is_written_beside_it(file: str, folder: Path) -> None:
    path = folder / file
    path.parent.mkdir()
    path.write_text("# mine\n")

    done = _new("consumer", "orders")

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert f"{file}: it exists already; choose another name, or move it away" in done.stderr
    assert _files(folder) == [file]
    assert path.read_text() == "# mine\n"


def test_a_link_that_leads_nowhere_is_not_written_through(folder: Path) -> None:
    (folder / "functions").mkdir()
    (folder / "functions" / "orders.py").symlink_to(folder / "elsewhere.py")

    assert _new("consumer", "orders").exit_code == ExitCode.REFUSED
    assert not (folder / "elsewhere.py").exists()


def test_when_a_file_cannot_be_written_none_is_left_behind(folder: Path) -> None:
    (folder / "tests").write_text("not a folder")

    done = _new("consumer", "orders")

    assert done.exit_code == ExitCode.REFUSED
    assert "tests/test_orders.py: it cannot be written" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["tests"]


def test_a_name_of_a_manifest_is_taken_even_when_the_manifest_has_mistakes(folder: Path) -> None:
    (folder / "manifests").mkdir()
    (folder / "manifests" / "app.yaml").write_text("functions:\n  orders:\n    handler: 7\n")

    done = _new("endpoint", "orders")

    assert done.exit_code == ExitCode.REFUSED
    assert done.stderr.startswith("manifests/app.yaml:2: there is a function orders already")
    assert _new("endpoint", "bills").exit_code == ExitCode.DONE


def test_a_conflict_with_a_manifest_is_shown_with_the_line_in_the_new_file(folder: Path) -> None:
    _new("consumer", "orders")

    done = _new("consumer", "bills", "--subject", "orders.*")

    assert done.exit_code == ExitCode.REFUSED
    assert done.stderr.startswith(
        "manifests/bills.yaml:4: streams.BILLS.subjects[0]: orders.* overlaps"
    )
    assert "functions/bills.py" not in _files(folder)


def test_a_module_that_would_hide_the_folder_is_named(folder: Path) -> None:
    (folder / "functions.py").write_text("")

    done = _new("consumer", "orders")

    assert done.exit_code == ExitCode.REFUSED
    assert "functions.py: it hides the folder functions/" in done.stderr


def test_a_folder_with_files_is_no_place_for_a_project_and_an_empty_one_is(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "notes").write_text("")
    (folder / "empty").mkdir()

    refused = _new("project", "full")

    assert refused.exit_code == ExitCode.REFUSED
    assert refused.stderr.startswith("full: it exists already; choose another name")
    assert _files(folder) == ["full/notes"]
    assert _new("project", "empty").exit_code == ExitCode.DONE


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("schedule a --every 5", "'5' is not a duration"),
        ("schedule a --every 1m --cron x", "--every and --cron exclude each other."),
        ("schedule a --cron 99", "does not have the five fields of cron"),
        ("consumer a --stream ../x", "'../x' cannot be a stream's name"),
        ('endpoint a --subject a"b', "is not a subject of words, *, and > at the end"),
        ("endpoint a --subject ${HOME}", "is not a subject of words, *, and > at the end"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    line: str, complaint: str, folder: Path
) -> None:
    done = _new(*line.split())

    assert (done.exit_code, done.stdout) == (ExitCode.REFUSED, "")
    assert complaint in done.stderr
    assert _files(folder) == []
