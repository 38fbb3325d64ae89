"""The roles of the embedded PostgreSQL, and what gives them their passwords and possessions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

SUPERUSER = "runtime"
FUNCTIONS = "functions"
DATABASE = "runtime"

_SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Passwords:
    """By role: `functions` for functions and migrations, `superuser` for an administrator."""

    functions: str
    superuser: str


def roles_script(passwords: Passwords, *, is_new: bool) -> str:
    """For database `postgres` in single-user mode: the database, if it `is_new`, and the roles."""
    create = f"CREATE DATABASE {DATABASE};\n\n" if is_new else ""
    settings = (
        f"SET embedded.functions_password = {_literal(passwords.functions)};\n\n"
        f"SET embedded.superuser_password = {_literal(passwords.superuser)};\n\n"
    )
    return create + settings + _read("postgres_roles.sql")


def ownership_script() -> str:
    """For database `runtime` in single-user mode: what is in it belongs to the functions' role."""
    return _read("postgres_ownership.sql")


def fingerprint(passwords: Passwords) -> str:
    """Changes whenever the scripts have to be run again on existing data."""
    parts = (roles_script(passwords, is_new=False), ownership_script())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(name: str) -> str:
    return (_SCRIPTS / name).read_text(encoding="utf-8") + "\n"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
