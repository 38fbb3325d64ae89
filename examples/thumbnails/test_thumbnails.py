import io

import pytest
from PIL import Image

from runtime.testing import TestHost

pytestmark = pytest.mark.asyncio


async def test_a_picture_becomes_a_small_one_in_its_proportions() -> None:
    picture = io.BytesIO()
    Image.new("RGB", (300, 600), "navy").save(picture, "PNG")
    async with TestHost("manifest.yaml") as host:
        await host.publish("pictures.cat", picture.getvalue())
        await host.settled()

        [small] = host.assert_published("thumbnails.cat")
        assert Image.open(io.BytesIO(small.data)).size == (64, 128)


async def test_bytes_that_are_no_picture_are_given_up_at_once() -> None:
    async with TestHost("manifest.yaml") as host:
        await host.publish("pictures.dog", b"woof")
        await host.settled()

        host.assert_rejected("NO_PICTURE", count=1)
