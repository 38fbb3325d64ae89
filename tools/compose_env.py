"""Prints the secrets of compose/docker-compose.yml, for the file .env beside it."""

import os
import secrets
import sys

from runtime import AccountKey


def main() -> None:
    """Print one line for each variable."""
    # nats-server reads the values as configuration: a word that begins with a letter is a text.
    key = AccountKey(os.urandom(32))
    values = {
        "NATS_HOST_PASSWORD": "h" + secrets.token_hex(24),
        "MQTT_ADMIN_PASSWORD": "m" + secrets.token_hex(24),
        "NATS_AUTH_ISSUER": key.seed,
        "NATS_AUTH_ISSUER_PUBLIC": key.public,
    }
    sys.stdout.writelines(f"{name}={value}\n" for name, value in values.items())


if __name__ == "__main__":
    main()
