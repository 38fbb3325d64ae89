"""Starts and stops the embedded servers, for each address that the environment lacks."""

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pydantic import SecretStr

from runtime.embedded.credentials import (
    NATS_PASSWORD_FILE,
    POSTGRES_PASSWORD_FILE,
    POSTGRES_SUPERUSER_PASSWORD_FILE,
    SECRETS_KEY_FILE,
)
from runtime.embedded.data_lock import DataLock
from runtime.embedded.nats_config import NatsPasswords
from runtime.embedded.nats_server import EmbeddedNats
from runtime.embedded.ports import check_free
from runtime.embedded.postgres import EmbeddedPostgres
from runtime.embedded.postgres_roles import Passwords
from runtime.embedded.secrets import keep_secret
from runtime.errors import ConfigError, Problem
from runtime.nkeys import AccountKey
from runtime.settings import REGISTRATION_KEY, SECRETS_KEYS, HostSettings

NO_LIMITS: Mapping[str, int] = MappingProxyType({})


class EmbeddedServers:
    """The embedded servers of one host: NATS without `NATS_URL`, PostgreSQL without `DATABASE_URL`.

    With both given there is nothing to do, and the data directory is not touched.
    """

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._directory = settings.data_dir.resolve()
        self._lock = DataLock(self._directory)
        self.nats: EmbeddedNats | None = None
        self.postgres: EmbeddedPostgres | None = None

    async def start(
        self, *, postgres: bool = True, stream_limits: Mapping[str, int] = NO_LIMITS
    ) -> dict[str, str]:
        """Start the servers; return, when all are ready, the variables that manifests may refer to.

        They are `NATS_URL`, `NATS_SYSTEM_URL`, `NATS_AUTH_ISSUER`, `DATABASE_URL`,
        `MQTT_ADMIN_PASSWORD`, `ADMIN_KEY`, `SECRETS_KEYS` and `RUNTIME_REGISTRATION_KEY`, each if
        it was given or generated. The values are secrets.

        Args:
            postgres: whether a database is needed.
            stream_limits: limits of the streams that will be created, in bytes; 0 and less for
                none.

        Raises:
            ConfigError: a port is taken, another host has the data directory, or a server cannot
                start; nothing is left running.
        """
        settings = self._settings
        environment = {
            "NATS_URL": _reveal(settings.nats_url),
            "NATS_SYSTEM_URL": _reveal(settings.nats_system_url),
            "NATS_AUTH_ISSUER": _reveal(settings.nats_auth_issuer),
            "DATABASE_URL": _reveal(settings.database_url),
            "MQTT_ADMIN_PASSWORD": _reveal(settings.mqtt_admin_password),
            "ADMIN_KEY": _reveal(settings.admin_key),
            SECRETS_KEYS: _reveal(settings.secrets_keys),
            REGISTRATION_KEY: _reveal(settings.registration_key),
        }
        postgres = postgres and not environment["DATABASE_URL"]
        if postgres or not environment["NATS_URL"]:
            try:
                environment |= await self._start_missing(
                    environment, stream_limits, postgres=postgres
                )
            except BaseException:
                await self.stop()
                raise
        return {name: value for name, value in environment.items() if value}

    async def stop(self) -> None:
        """Stop the running servers, and release the data directory."""
        running = [server for server in (self.nats, self.postgres) if server]
        await asyncio.gather(*(server.stop() for server in running))
        self._lock.release()

    async def _start_missing(
        self, given: dict[str, str], stream_limits: Mapping[str, int], *, postgres: bool
    ) -> dict[str, str]:
        try:
            _make(self._directory)
            self._lock.acquire()
        except OSError as failure:
            raise ConfigError([_unusable(self._directory, failure)]) from failure
        made = {
            "ADMIN_KEY": given["ADMIN_KEY"] or keep_secret(self._directory / "admin.key"),
            SECRETS_KEYS: given[SECRETS_KEYS] or keep_secret(self._directory / SECRETS_KEY_FILE),
            REGISTRATION_KEY: given[REGISTRATION_KEY]
            or keep_secret(self._directory / "registration.key"),
        }
        starting = []
        if not given["NATS_URL"]:
            passwords = NatsPasswords(
                host=keep_secret(self._directory / NATS_PASSWORD_FILE),
                mqtt=given["MQTT_ADMIN_PASSWORD"] or keep_secret(self._directory / "mqtt.password"),
            )
            made["MQTT_ADMIN_PASSWORD"] = passwords.mqtt
            issuer = self._find_issuer(given["NATS_AUTH_ISSUER"])
            made["NATS_AUTH_ISSUER"] = issuer.seed
            self.nats = EmbeddedNats(
                *(self._directory / "nats", self._settings, passwords, stream_limits),
                issuer.public,
            )
            # Its ports are checked after an earlier host's server, which uses them, has ended.
            await self.nats.supervisor.end_orphans()
            check_free(self.nats.wanted_ports)
            starting.append(self.nats.start())
        if postgres:
            roles = Passwords(
                functions=keep_secret(self._directory / POSTGRES_PASSWORD_FILE),
                superuser=keep_secret(self._directory / POSTGRES_SUPERUSER_PASSWORD_FILE),
            )
            self.postgres = EmbeddedPostgres(self._directory / "postgres", roles)
            starting.append(self.postgres.start())
        _raise_together(await asyncio.gather(*starting, return_exceptions=True))
        if self.nats:
            made["NATS_URL"] = self.nats.url
            made["NATS_SYSTEM_URL"] = self.nats.system_url
        if self.postgres:
            made["DATABASE_URL"] = self.postgres.dsn
        return made

    def _find_issuer(self, seed: str) -> AccountKey:
        if seed:
            return AccountKey.from_seed(seed)
        # The text stands for 32 random bytes, as many as a key has.
        secret = keep_secret(self._directory / "auth-issuer.key")
        return AccountKey(hashlib.sha256(secret.encode()).digest())


def _unusable(directory: Path, failure: OSError) -> Problem:
    why = os.strerror(failure.errno) if failure.errno else type(failure).__name__
    return Problem(
        str(directory),
        "",
        f"the data directory cannot be used ({why})",
        "give this user the right to write there, or set another RUNTIME_DATA_DIR",
    )


def _reveal(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


def _make(directory: Path) -> None:
    """Create the data directory, which a root host's PostgreSQL must enter as another user."""
    if not directory.exists():
        directory.mkdir(parents=True, mode=0o711 if os.geteuid() == 0 else 0o700)


def _raise_together(results: Sequence[BaseException | None]) -> None:
    """Raise the failures; all mistakes of a person in one error."""
    failures = [result for result in results if result is not None]
    mistakes = [failure for failure in failures if isinstance(failure, ConfigError)]
    others = [failure for failure in failures if not isinstance(failure, ConfigError)]
    if others:
        raise others[0]
    if mistakes:
        raise ConfigError([problem for mistake in mistakes for problem in mistake.problems])
