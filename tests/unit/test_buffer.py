"""Wake-ups of the workers that wait for the buffer."""

import asyncio

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.message import Message


async def test_another_worker_is_woken_when_the_one_that_was_is_cancelled() -> None:
    buffer = PrefetchBuffer(at_least=4, at_most=4, max_bytes=1000)
    first, second = (asyncio.create_task(buffer.wait()) for _ in range(2))
    await asyncio.sleep(0)
    buffer.add(Message("subject", b""), Places())
    first.cancel()

    await asyncio.wait_for(second, 60)
    assert first.cancelled()
