"""The peer of accepted messages: a hand-written server that inserts, publishes and answers 202.

Run as `python -m benchmarks.bare_messages PORT`, with NATS_URL and DATABASE_URL. It checks neither
key nor content nor repeats: the INSERT and one publish with its confirmation, and nothing else.
"""

import asyncio
import os
import secrets
import sys

import asyncpg
import nats
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_INSERT = (
    "INSERT INTO messages (tenant_id, message_id, kind, fingerprint, content)"
    " VALUES ('bench', $1, 'sms', sha256($2::bytea), $3::text::jsonb)"
)


async def main(port: int) -> None:
    """Serve until the process ends."""
    client = await nats.connect(os.environ["NATS_URL"])
    stream = client.jetstream()
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=6, max_size=6) as pool:

        async def accept(request: Request) -> Response:
            body = await request.body()
            message_id = secrets.token_hex(16)
            await pool.execute(_INSERT, message_id, body, body.decode())
            await stream.publish("sms.send", body, headers={"Nats-Msg-Id": message_id})
            return Response(orjson.dumps({"message_id": message_id, "status": "queued"}), 202)

        application = Starlette(routes=[Route("/v1/messages/sms", accept, methods=["POST"])])
        config = uvicorn.Config(application, port=port, log_level="error", access_log=False)
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
