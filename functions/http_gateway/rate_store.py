"""Where gateways tell each other what was taken of their rates: an endpoint with a database."""

import orjson

from functions.domain.rate_sharing import SUBJECT, Shared, Uses
from runtime import Context

_TIMEOUT_S = 2.0


class RateStore:
    """Asks endpoint `share_rates`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def share(self, uses: Uses) -> Shared:
        """Tell what this gateway took; what all took of the same keys.

        Raises:
            RequestFailed, Unavailable, Unsendable: nobody answers, or with an error.
            ValueError: the answer is none.
        """
        asked = orjson.dumps(uses.model_dump())
        reply = await self._ctx.request(SUBJECT, asked, timeout_s=_TIMEOUT_S)
        return Shared.model_validate_json(reply.data)
