"""SQL scripts that create the embedded PostgreSQL's roles, passwords and ownership."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

SUPERUSER = "runtime"
FUNCTIONS = "functions"
DATABASE = "runtime"

_SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Passwords:
    """Passwords by role: `functions` for functions and migrations, `superuser` for operators."""

    functions: str
    superuser: str


def roles_script(passwords: Passwords, *, is_new: bool) -> str:
    """Script for database `postgres` in single-user mode: roles and, if new, the database."""
    create = f"CREATE DATABASE {DATABASE};\n\n" if is_new else ""
    settings = (
        f"SET embedded.functions_password = {_literal(passwords.functions)};\n\n"
        f"SET embedded.superuser_password = {_literal(passwords.superuser)};\n\n"
    )
    return create + settings + _read("postgres_roles.sql")


def ownership_script() -> str:
    """Script for database `runtime` in single-user mode: ownership by the functions' role."""
    return _read("postgres_ownership.sql")


def fingerprint(passwords: Passwords) -> str:
    """A hash that changes whenever the scripts must be run again on existing data."""
    parts = (roles_script(passwords, is_new=False), ownership_script())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(name: str) -> str:
    return (_SCRIPTS / name).read_text(encoding="utf-8") + "\n"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
