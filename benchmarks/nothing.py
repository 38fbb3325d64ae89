"""Functions that do nothing, for our host: what is left is the host's own cost."""

from runtime import Batch, Context, Event


async def single(event: Event[bytes], ctx: Context) -> None:
    """Take one message."""


async def batch(batch: Batch[bytes], ctx: Context) -> None:
    """Take a batch."""
