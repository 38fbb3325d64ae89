"""A function that does nothing, on our host and on FastStream."""

from pathlib import Path

from benchmarks.consumption import Pace, publish_all, watch
from benchmarks.servers import Servers, running
from benchmarks.table import Comparison
from runtime.broker.streams import ensure
from runtime.manifest import Manifest, read

STREAM, SUBJECT, DURABLE = "NOTHING", "nothing", "nothing"
PAYLOAD_BYTES = 128
BARS = {"single": 4.0, "batch": 2.0}
_MANIFEST = """
streams:
  {stream}: {{subjects: [{subject}]}}
functions:
  nothing:
    handler: benchmarks.nothing:{shape}
    consumer: {{stream: {stream}, durable: {durable}, ack_wait: 60s}}
    {batch}
"""


async def measure(servers: Servers, messages: int, rounds: int) -> list[Comparison]:
    """Measure single events, then batches; each round runs our host, then the peer."""
    await ensure(servers.broker, _manifest(servers, "single"))
    await publish_all(servers.broker, [(SUBJECT, _payload(n)) for n in range(messages)])
    found = []
    for shape, bar in BARS.items():
        paces: dict[str, list[Pace]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for side, measured in paces.items():
                measured.append(await _round(servers, side, shape, messages))
        peer = f"FastStream, PullSub(500{', batch=True' if shape == 'batch' else ''})"
        found.append(Comparison(f"nothing, {shape}", peer, paces["ours"], paces["theirs"], bar))
    return found


async def _round(servers: Servers, side: str, shape: str, messages: int) -> Pace:
    await servers.broker.api(f"CONSUMER.DELETE.{STREAM}.{DURABLE}")
    await ensure(servers.broker, _manifest(servers, shape))
    if side == "ours":
        command = ["-m", "runtime", "serve", str(_path(servers, shape))]
    else:
        command = ["-m", "benchmarks.faststream_nothing", STREAM, SUBJECT, DURABLE, shape]
    async with running(servers, command) as process:
        pace = await watch(servers.broker, STREAM, DURABLE, messages, process)
    print(f"  {shape} {side}: {pace.per_s:,.0f}/s", flush=True)
    return pace


def _path(servers: Servers, shape: str) -> Path:
    return servers.directory / f"nothing_{shape}.yaml"


def _manifest(servers: Servers, shape: str) -> Manifest:
    # The batch size of the peer.
    batch = "batch: {size: 500}" if shape == "batch" else ""
    text = _MANIFEST.format(
        stream=STREAM, subject=SUBJECT, durable=DURABLE, shape=shape, batch=batch
    )
    _path(servers, shape).write_text(text, encoding="utf-8")
    return read([_path(servers, shape)], servers.environment)


def _payload(number: int) -> bytes:
    return (b'{"number":%d,"pad":"' % number).ljust(PAYLOAD_BYTES - 2, b"x") + b'"}'
