import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings

ROOT = Path(__file__).parents[2]
RUNTIME = Path(sys.executable).parent / "runtime"


def run(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [RUNTIME, *arguments],
        cwd=folder,
        env={**kept, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def write_shop(folder: Path) -> None:
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").write_text("")
    (folder / "shop" / "orders.py").write_text(
        "from pydantic import BaseModel\n"
        "from runtime import Context, Event\n"
        "class Order(BaseModel):\n"
        "    number: int\n"
        "async def place(event: Event[Order], ctx: Context) -> None: ...\n"
    )
    (folder / "shop.yaml").write_text(
        "streams:\n"
        "  ORDERS: {subjects: ['orders.>'], max_age: 7d, max_bytes: 1GB}\n"
        "functions:\n"
        "  place_order:\n"
        "    handler: shop.orders:place\n"
        "    consumer: {stream: ORDERS, durable: order-workers}\n"
    )


def test_check_prints_what_would_run(tmp_path: Path) -> None:
    write_shop(tmp_path)

    done = run("check", "shop.yaml", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["ORDERS", "orders.>", "limits,", "7d,", "1GB", "order-workers"] in lines
    [function] = [line for line in lines if line[:1] == ["place_order"]]
    assert function[1:4] == ["event", "ORDERS/order-workers", "shop.orders:place"]
    assert done.stdout.endswith("1 stream, 1 function: OK\n")


def test_check_names_functions_that_others_need_and_that_are_not_there(tmp_path: Path) -> None:
    write_shop(tmp_path)
    with (tmp_path / "shop.yaml").open("a") as manifest:
        manifest.write("    needs: [hand_over_jobs, pack_order, place_order]\n")

    done = run("check", "shop.yaml", folder=tmp_path)
    as_json = run("check", "shop.yaml", "--json", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "hand_over_jobs is in none of these manifests. Add --with routes, or run it on another"
        " host.\n  Needed by place_order\n\n"
        "pack_order is in none of these manifests. Add its manifest, or run it on another host.\n"
        "  Needed by place_order\n\n"
        "1 stream, 1 function: OK\n"
    )
    lines = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert lines[2:] == [
        {"missing": name, "needed_by": ["place_order"]} for name in ("hand_over_jobs", "pack_order")
    ]


def test_check_prints_how_each_kind_of_function_is_called(tmp_path: Path) -> None:
    (tmp_path / "kinds.py").write_text(
        "from runtime import Context, Event\n"
        "async def ask(event: Event[bytes], ctx: Context) -> bytes: ...\n"
        "def tick(ctx: Context) -> None: ...\n"
        "async def serve(ctx: Context) -> None: ...\n"
    )
    (tmp_path / "kinds.yaml").write_text(
        "streams:\n"
        "  S: {subjects: ['a.[b]']}\n"
        "functions:\n"
        "  asked: {handler: 'kinds:ask', endpoint: {subject: kinds.ask}}\n"
        "  beats: {handler: 'kinds:tick', schedule: {every: 90s}}\n"
        "  noons: {handler: 'kinds:tick', schedule: {cron: '0 12 * * *', timezone: Asia/Tokyo}}\n"
        "  lives: {handler: 'kinds:serve', service: true}\n"
    )

    done = run("check", "kinds.yaml", folder=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert lines["S"][0] == "a.[b]"
    assert lines["asked"][:2] == ["event", "kinds.ask"]
    assert lines["beats"][:4] == ["schedule,", "thread", "every", "1m30s"]
    assert lines["noons"][:8] == ["schedule,", "thread", "0", "12", "*", "*", "*", "Asia/Tokyo"]
    assert lines["lives"][:4] == ["service", "its", "own", "lifetime"]


def test_check_describes_what_would_run_for_a_script(tmp_path: Path) -> None:
    write_shop(tmp_path)

    done = run("check", "shop.yaml", "--json", folder=tmp_path)
    chosen = run("check", "shop.yaml", "--json", "--kind", "endpoint", folder=tmp_path)

    stream, function = (json.loads(line) for line in done.stdout.splitlines())
    assert stream == {
        "stream": "ORDERS",
        "subjects": ["orders.>"],
        "retention": "limits",
        "max_age_s": 604_800.0,
        "max_bytes": 1_000_000_000,
        "consumers": ["order-workers"],
    }
    assert function == {
        "function": "place_order",
        "kind": "consumer",
        "service": "",
        "shape": "event",
        "in_thread": False,
        "bound_to": "ORDERS/order-workers",
        "handler": "shop.orders:place",
        "code_version": function["code_version"],
        "description": "",
        "resolved": function["resolved"],
    }
    assert (chosen.returncode, chosen.stdout) == (0, "")


def test_check_prints_all_problems_of_files_and_functions_and_exits_with_2(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (tmp_path / "more.yaml").write_text(
        "streams:\n"
        "  ORDERS: {subjects: [x]}\n"
        "functions:\n"
        "  cancel:\n"
        "    handler: shop.orders:cancel\n"
        "    consumer: {stream: ORDERS}\n"
        "  lose: {handler: a:b, timeout: 5}\n"
    )

    done = run("check", "shop.yaml", "more.yaml", folder=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "more.yaml:2: streams.ORDERS: the name is taken, first by shop.yaml:2; rename one of them"
        " or remove it",
        "more.yaml:7: functions.lose.timeout: 5 is not a duration; write it like 250ms, 30s, 5m,"
        " 1h30m or 7d",
        "more.yaml:7: functions.lose: no binding found; write exactly one of consumer, endpoint,"
        " schedule, service",
        "more.yaml:5: functions.cancel.handler: module shop.orders has no cancel; known are place",
        "4 problems",
    ]


def test_check_shows_no_secret(tmp_path: Path) -> None:
    write_shop(tmp_path)
    with (tmp_path / "shop.yaml").open("a") as manifest:
        manifest.write("    settings: {token: {from_env: TOKEN}}\n")
    with (tmp_path / "shop" / "orders.py").open("a") as module:
        module.write("class Settings(BaseModel):\n    token: int\n")

    done = run("check", "shop.yaml", folder=tmp_path, TOKEN="hidden-value")

    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "shop.yaml:7: functions.place_order.settings.token: the value is not a whole number; write"
        " a whole number"
    )
    assert "hidden-value" not in done.stdout + done.stderr


def test_every_shipped_manifest_passes_the_check() -> None:
    done = run("check", "manifests", folder=ROOT)

    assert done.stderr == ""
    assert done.stdout.rstrip().endswith("OK")


def test_a_variable_of_the_host_that_is_empty_counts_as_unset() -> None:
    # As a compose file passes on what nobody set: `ADMIN_KEY: ${ADMIN_KEY:-}`.
    done = run("check", "manifests", folder=ROOT, **dict.fromkeys(placeholders(HostSettings()), ""))

    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = run("--version", folder=tmp_path)

    assert done.stdout == "runtime, version 0.1.0\n"


def test_check_needs_a_manifest(tmp_path: Path) -> None:
    done = run("check", folder=tmp_path)

    assert done.returncode == 2
    assert "Name a manifest" in done.stderr


def test_resolved_shows_every_value_and_where_it_comes_from(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (tmp_path / "shop" / "orders.py").write_text(
        "from pydantic import BaseModel, SecretStr\n"
        "from runtime import Context, Event\n"
        "class Settings(BaseModel):\n"
        "    key: SecretStr\n"
        "    currency: str\n"
        "async def place(event: Event[bytes], ctx: Context) -> None:\n"
        '    """Books an order."""\n'
    )
    (tmp_path / "shop.yaml").write_text(
        "defaults:\n"
        "  consumer: {stream: ORDERS}\n"
        "  settings: {key: {from_env: KEY}, currency: '${CURRENCY}'}\n"
        "streams: {ORDERS: {subjects: ['orders.>'], max_bytes: 1GiB}}\n"
        "functions:\n"
        "  place:\n"
        "    handler: shop.orders:place\n"
        "    rate: {limit: 90/m}\n"
        "    triggers:\n"
        "      new: {consumer: {filter_subjects: [orders.new]}, retry: {schedule: [5s, 1h30m]}}\n"
    )

    done = run("check", "shop.yaml", "--resolved", folder=tmp_path, KEY="secret", CURRENCY="EUR")

    assert (done.returncode, done.stderr) == (0, "")
    assert "secret" not in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for expected in (
        "max_bytes: 1GiB",
        "place_new:",
        "handler: shop.orders:place # shop.yaml:7",
        "stream: ORDERS # shop.yaml:2",
        "filter_subjects: [orders.new]",
        "ack_wait: 30s # default",
        "schedule: [5s, 1h30m]",
        "limit: 90/m # shop.yaml:8",
        "key: '**********' # shop.yaml:3",
        "currency: EUR # shop.yaml:3",
        "description: Books an order # the docstring",
    ):
        assert expected in lines
    assert not [
        line for line in lines if line.startswith(("batch", "postgres_connections", "http_client"))
    ]
    written = yaml.safe_load(done.stdout)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(written))
    assert run("check", "again.yaml", folder=tmp_path).returncode == 0
