import contextvars
import errno
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from runtime.observe import logs
from runtime.observe.logs import LogFormat, configure_logs, get_logger, running_function
from runtime.observe.redaction import is_secret_name, scrub


@pytest.fixture(autouse=True)
def restored_configuration() -> Iterator[None]:
    former = structlog.get_config()
    processors = list(former["processors"])
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.configure(**former)
    former["processors"][:] = processors
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_a_sentence_with_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "json")
    get_logger("runtime.test").info("Ready", functions=3, started=True)
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "Ready",
        "level": "info",
        "logger": "runtime.test",
        "functions": 3,
        "started": True,
    }


def test_auto_means_json_where_nobody_reads_along(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "auto")
    get_logger("runtime.test").info("Ready")
    assert lines(capsys)[0]["event"] == "Ready"


def test_a_terminal_that_is_gone_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    configure_logs("INFO", "json")
    monkeypatch.setattr(sys, "stderr", Gone())
    get_logger("runtime.test").info("Ready")


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "text")
    get_logger("runtime.test").info("Ready", functions=3, admin_key="hunter2")
    line = capsys.readouterr().err
    assert "Ready" in line
    assert "functions=3" in line
    assert "hunter2" not in line


def test_standard_loggers_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "json")
    logging.getLogger("nats.client").warning("lost %s", "nats://me:hunter2@there:4222")
    [line] = lines(capsys)
    assert line["logger"] == "nats.client"
    assert line["level"] == "warning"
    assert line["event"] == "lost nats://***@there:4222"


def test_libraries_that_speak_per_request_are_quiet_at_info(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("INFO", "json")
    for name in ("uvicorn.access", "uvicorn.error", "httpx"):
        logging.getLogger(name).info("GET /healthz")
    logging.getLogger("asyncpg.pool").warning("Failed to restore the pool connection floor")
    assert lines(capsys) == []


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("WARNING", "json")
    get_logger("runtime.test").info("Ready")
    logging.getLogger("nats").info("ready")
    assert lines(capsys) == []


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "text")
    configure_logs("INFO", "json")
    logging.getLogger("nats").warning("lost")
    get_logger("runtime.test").warning("Lost")
    assert [line["event"] for line in lines(capsys)] == ["lost", "Lost"]


def test_a_logger_made_before_configuring_obeys_it(capsys: pytest.CaptureFixture[str]) -> None:
    early = get_logger("runtime.early")
    configure_logs("INFO", "json")
    early.info("Ready")
    assert lines(capsys)[0]["logger"] == "runtime.early"


@pytest.mark.parametrize(
    "name",
    [
        *("password", "db_password", "token", "authToken", "dsn", "DATABASE_DSN", "admin_key"),
        *("apiKey", "Authorization", "set-cookie", "client.secret", "PASSWORD2", "nkey"),
    ],
)
def test_names_of_secrets_are_recognised(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["stream", "monkey", "keyword", "tokenizer", "sequence", "error"])
def test_other_names_are_left_alone(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hunter2@there/db",
        "cannot reach nats://hunter2@a:4222,nats://hunter2@b:4222 now",
        "postgres://me:hun@ter2hunter2@there/db",
        "host=there password=hunter2 dbname=x",
        "{'password': 'hunter2'}",
        '{"provision_token": "hunter2"}',
        "api-key=hunter2&x=1",
        "Authorization: Bearer hunter2",
        "sent Bearer hunter2hunter2",
        "password='hunter2 hunter2'",
    ],
)
def test_credentials_inside_a_text_are_blotted_out(text: str) -> None:
    assert "hunter2" not in scrub(text)


def test_an_ordinary_text_stays_as_it_is() -> None:
    text = "GET https://example.org/a?b=c took 3 s: ok (user@example.org)"
    assert scrub(text) == text


def test_no_field_lets_a_secret_or_a_payload_out(capsys: pytest.CaptureFixture[str]) -> None:
    class Dsn:
        def __str__(self) -> str:
            return "postgres://me:hunter2@there/db"

    configure_logs("INFO", "json")
    get_logger("runtime.test").info(
        "Tried",
        password=b"hunter2",
        payload=b"hunter2",
        nested={"token": "hunter2", "list": [{"url": "nats://hunter2@a"}], 7: 1},
        wrapped=SecretStr("hunter2"),
        target=Dsn(),
        error=ValueError("password=hunter2"),
        path=Path("/tmp/a"),  # noqa: S108 - nothing is written there
    )
    written = capsys.readouterr().err
    assert "hunter2" not in written
    line = json.loads(written)
    assert line["payload"] == "<7 bytes>"
    assert line["target"] == "postgres://***@there/db"
    assert line["nested"]["7"] == 1


def test_a_traceback_holds_no_local_variables_and_no_credentials(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        local = "swordfish"
        address = f"nats://me:hunter{len(local)}@there"
        raise ValueError(address)

    formats: tuple[LogFormat, ...] = ("json", "text")
    for log_format in formats:
        configure_logs("INFO", log_format)
        try:
            fail()
        except ValueError:
            get_logger(f"runtime.{log_format}").exception("Failed")
            logging.getLogger("nats").exception("failed")
        written = capsys.readouterr().err
        assert written.count("ValueError: nats://***@there") == 2
        assert "hunter9" not in written
        assert "swordfish" not in written


def test_a_long_value_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("INFO", "json")
    get_logger("runtime.test").info("Got", reason="x" * 100_000)
    [line] = lines(capsys)
    assert len(line["reason"]) < logs.MAX_VALUE_CHARACTERS + 50
    assert line["reason"].endswith("(100000 characters)")


def test_a_value_that_json_cannot_hold_does_not_lose_the_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("INFO", "json")
    get_logger("runtime.test").info("Got", big=2**80, odd="\ud800")
    assert lines(capsys)[0]["big"] == 2**80


def test_warnings_are_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logs("INFO", "json")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert lines(capsys)[0]["logger"] == "py.warnings"


def test_a_line_of_a_library_names_the_function_whose_code_logs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("INFO", "json")

    def call() -> None:
        running_function.set("ingest")
        logging.getLogger("library").info("within")
        get_logger("other").info("of another", function="deliver")

    contextvars.copy_context().run(call)
    logging.getLogger("library").info("outside")

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("function") for line in lines] == ["ingest", "deliver", None]
