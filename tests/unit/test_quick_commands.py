import subprocess
import sys

CLIENTS = {"nats", "asyncpg", "aiohttp", "httpx", "uvicorn", "alembic"}
SCRIPT = """
import sys
from importlib import import_module
for name in ("new", "check", "schema", "completion"):
    import_module(f"runtime.cli.{name}")
print(*sys.modules)
"""


def test_commands_that_need_no_server_import_no_client_of_one() -> None:
    """They would take twice as long."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )

    assert CLIENTS.isdisjoint(done.stdout.split())
