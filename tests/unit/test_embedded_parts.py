"""Parts of the embedded servers that need no running server."""

import os
import pwd
from pathlib import Path

import pytest

from runtime.embedded.data_lock import DataLock
from runtime.embedded.identity import find_closed
from runtime.embedded.nats_config import NatsPasswords, NatsPorts, render
from runtime.embedded.ports import WantedPort, check_free
from runtime.embedded.postgres_cluster import PostgresCluster
from runtime.embedded.postgres_roles import Passwords
from runtime.embedded.postgres_socket import make_socket_directory, remove_socket_directory
from runtime.embedded.private_files import open_log, write_private
from runtime.embedded.secrets import keep_secret
from runtime.errors import ConfigError

_STRANGER = pwd.struct_passwd(("stranger", "x", 4_000_001, 4_000_001, "", "/", "/bin/sh"))


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = keep_secret(tmp_path / "key")
    assert keep_secret(tmp_path / "key") == first
    assert len(first) == 43
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_empty_secret_is_refused_rather_than_used(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ConfigError, match=r"key: it is empty; delete it"):
        keep_secret(tmp_path / "key")


def test_the_first_folder_that_a_user_cannot_pass_is_found(server_directory: Path) -> None:
    open_folder, closed = server_directory / "open", server_directory / "open" / "closed"
    (closed / "within").mkdir(parents=True)
    open_folder.chmod(0o711)
    closed.chmod(0o700)
    assert find_closed(open_folder, _STRANGER) is None
    assert find_closed(closed / "within", _STRANGER) == closed
    owner = pwd.struct_passwd(("me", "x", os.geteuid(), os.getegid(), "", "/", "/bin/sh"))
    assert find_closed(closed / "within", owner) is None


def test_the_lock_goes_from_one_holder_to_the_next(tmp_path: Path) -> None:
    first, second = DataLock(tmp_path), DataLock(tmp_path)
    first.acquire()
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_path_with_quotes_stays_one_string_of_the_configuration() -> None:
    text = render(Path('/data/of "me" \\ you'), NatsPorts(), max_file=1)
    assert 'store_dir: "/data/of \\"me\\" \\\\ you"' in text


def test_a_password_of_digits_stays_text() -> None:
    passwords = NatsPasswords(host="456", mqtt="123")
    assert passwords.environment() == {
        "MQTT_ADMIN_PASSWORD": '"123"',
        "NATS_HOST_PASSWORD": '"456"',
    }


def test_port_zero_is_free_for_any_number_of_listeners() -> None:
    check_free([WantedPort(0, "one", "ONE"), WantedPort(0, "two", "TWO")])


def test_the_address_of_the_database_keeps_every_character_of_its_parts(tmp_path: Path) -> None:
    programs, socket = Path("/programs"), Path("/a folder/50%")
    passwords = Passwords(functions="p@ss/w?rd", superuser="another")
    cluster = PostgresCluster(tmp_path, passwords, programs, None, socket)
    assert cluster.dsn() == (
        "postgresql://functions:p%40ss%2Fw%3Frd@/runtime?host=%2Fa%20folder%2F50%25"
    )


@pytest.fixture
def deep_directory(tmp_path: Path) -> Path:
    """A folder whose path is too long for a socket."""
    directory = tmp_path / ("d" * 60) / ("d" * 60)
    (directory / "data").mkdir(parents=True)
    return directory


def test_a_socket_whose_path_is_too_long_gets_a_folder_of_its_own_each_time(
    deep_directory: Path,
) -> None:
    first = make_socket_directory(deep_directory, deep_directory / "data")
    second = make_socket_directory(deep_directory, deep_directory / "data")
    assert first != second
    for folder in (first, second):
        assert folder.stat().st_mode & 0o777 == 0o700
        remove_socket_directory(folder, deep_directory)
        assert not folder.exists()


def test_the_folder_that_a_killed_server_left_is_used_again(deep_directory: Path) -> None:
    first = make_socket_directory(deep_directory, deep_directory / "data")
    write_pid_file(deep_directory, first)
    assert make_socket_directory(deep_directory, deep_directory / "data") == first
    first.rmdir()


@pytest.mark.parametrize("kind", ["link", "open folder", "elsewhere", "gone"])
def test_a_folder_that_another_user_may_have_made_is_not_used_for_the_socket(
    deep_directory: Path, tmp_path: Path, kind: str
) -> None:
    left = tmp_path / ("elsewhere" if kind == "elsewhere" else "runtime-postgres-left")
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    if kind == "link":
        left.symlink_to(target)
    elif kind != "gone":
        left.mkdir(mode=0o755 if kind == "open folder" else 0o700)
    write_pid_file(deep_directory, left)
    found = make_socket_directory(deep_directory, deep_directory / "data")
    assert found not in (left, target)
    found.rmdir()


def write_pid_file(directory: Path, socket_directory: Path) -> None:
    lines = ["1", str(directory / "data"), "0", "5432", str(socket_directory), "", "0 0", "ready"]
    (directory / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n")


def test_a_link_in_the_place_of_a_private_file_is_replaced_and_never_followed(
    tmp_path: Path,
) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    write_private(tmp_path / "file", "secret")
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "secret"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        open_log(tmp_path / "log")


def test_a_fatal_line_is_found_among_other_lines() -> None:
    written = (
        "2026-01-01 LOG:  starting\n"
        "2026-01-01 FATAL:  data directory has wrong ownership\n"
        "2026-01-01 HINT:  The server must be started by the user that owns it.\n"
    )
    assert PostgresCluster.find_complaint(written).startswith("data directory has wrong ownership")
