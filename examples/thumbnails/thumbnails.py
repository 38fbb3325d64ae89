"""Makes small pictures of large ones."""

import io

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field

from runtime import Context, Event, Reject


class Settings(BaseModel):
    """How large a thumbnail is."""

    pixels: int = Field(default=128, ge=16, le=1024)


async def shrink(event: Event[bytes], ctx: Context) -> None:
    """Makes a thumbnail of a picture."""
    # This blocks the event loop. In a process of its own nobody waits for it.
    small = make_thumbnail(event.data, ctx.settings.pixels)
    name = event.subject.partition(".")[2]
    await ctx.publish(f"thumbnails.{name}", small)


def make_thumbnail(picture: bytes, pixels: int) -> bytes:
    """A JPEG of at most `pixels` by `pixels`, in the picture's proportions.

    Raises:
        Reject: the bytes are no picture, or one of more than 89 million pixels.
    """
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.thumbnail((pixels, pixels))
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG")
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise Reject("NO_PICTURE", "the payload is no picture that can be opened") from error
    return small.getvalue()
