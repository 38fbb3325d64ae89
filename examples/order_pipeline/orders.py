"""Takes orders through their steps, one step after the other."""

from typing import Literal

from pydantic import BaseModel, Field

from runtime import Context, Event, Reject

FOLLOWS = {"paid": "placed", "shipped": "paid"}


class Step(BaseModel):
    """One step of an order."""

    order: str = Field(min_length=1, max_length=64)
    step: Literal["placed", "paid", "shipped"]


async def take(event: Event[Step], ctx: Context) -> None:
    """Applies a step to its order and tells who waits for it."""
    order, step = event.data.order, event.data.step
    async with ctx.postgres.acquire() as connection, connection.transaction():
        state = await connection.fetchrow(
            "SELECT step, sequence FROM orders WHERE id = $1 FOR UPDATE", order
        )
        # The same message again: its row is there, and only the news may be missing.
        if state is None or state["sequence"] != event.sequence:
            if not is_next(state["step"] if state else None, step):
                raise Reject("STEP_OUT_OF_TURN", f"{step} does not follow the order's last step")
            await connection.execute(
                "INSERT INTO orders (id, step, sequence) VALUES ($1, $2, $3)"
                " ON CONFLICT (id) DO UPDATE SET step = $2, sequence = $3",
                order, step, event.sequence,
            )  # fmt: skip
    await ctx.publish(f"news.{step}", order.encode())


def is_next(last: str | None, step: str) -> bool:
    """Whether a step follows the last one of its order; None for an order without steps."""
    return FOLLOWS.get(step) == last
