"""The peer of device ingest: a hand-written Starlette route that publishes and answers 202.

Run as `python -m benchmarks.bare_gateway PORT`, with NATS_URL. uvicorn takes its fastest parser and
loop. The route checks neither token nor content nor repeats: one publish with its confirmation.
"""

import os
import sys

import nats
import orjson
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def main(port: int) -> None:
    """Serve until the process ends."""
    client = await nats.connect(os.environ["NATS_URL"])
    stream = client.jetstream()

    async def accept(request: Request) -> Response:
        subject = f"telemetry.{request.path_params['tenant_id']}"
        ack = await stream.publish(subject, await request.body())
        answer = orjson.dumps({"stream": ack.stream, "sequence": ack.seq})
        return Response(answer, 202, media_type="application/json")

    path = "/ingest/v1/tenant/{tenant_id}/device/{device_id}/{msg_type}"
    application = Starlette(routes=[Route(path, accept, methods=["POST"])])
    config = uvicorn.Config(
        application, port=port, http="httptools", log_level="error", access_log=False
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
