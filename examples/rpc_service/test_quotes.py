import json

import pytest

from runtime import RequestFailed
from runtime.testing import TestHost

pytestmark = pytest.mark.asyncio


async def test_a_quote_is_the_price_of_the_pieces_in_the_currency() -> None:
    async with TestHost("manifest.yaml") as host:
        reply = await host.request("quotes.get", {"article": "tea", "pieces": 3, "currency": "CHF"})

        assert json.loads(reply.data)["total"] == 9.97


async def test_an_unknown_article_is_not_found() -> None:
    async with TestHost("manifest.yaml") as host:
        with pytest.raises(RequestFailed) as refused:
            await host.request("quotes.get", {"article": "milk"})

        assert refused.value.code == 404
