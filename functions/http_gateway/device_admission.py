"""Lets only senders pass that prove to be the device of their path."""

from starlette.requests import Request

from functions.domain.device_proof import Standing, make_claim
from functions.domain.topics import Topic
from functions.http_gateway.attempts import FailedAttempts
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.device_proofs import DeviceProofs
from functions.http_gateway.problems import ProblemError
from runtime import Context

_CHALLENGE = {"WWW-Authenticate": 'ProvisionToken realm="devices"'}
_AWAY_S = 5


class DeviceAdmission:
    """Checks a request's token before anything is stored, and limits the wrong ones."""

    def __init__(self, ctx: Context, proofs: DeviceProofs, addresses: ClientAddresses) -> None:
        self._proofs = proofs
        self._addresses = addresses
        self._attempts = FailedAttempts(ctx.log, "device")

    async def require(self, request: Request, topic: Topic, token: object) -> None:
        """Require the token of the topic's device.

        Raises:
            ProblemError: 401 without a token; 403 when it is not the device's, or the device is
                revoked; 429 after too many wrong tokens; 503 when the registry is away.
        """
        device = (topic.tenant_id, topic.device_id)
        source = self._addresses.source(request.scope)
        if not isinstance(token, str) or not token:
            refusal = ProblemError(
                401, "TOKEN_MISSING", "Send the device's provision token.", headers=_CHALLENGE
            )
            raise self._attempts.fail(source, device, refusal)
        claim = make_claim(*device, token)
        self._attempts.require_room(source, device, claim)
        standing = await self._proofs.find(claim)
        if standing is None:
            raise ProblemError(
                503,
                "REGISTRY_UNAVAILABLE",
                "The token cannot be checked at present; send the message again.",
                headers={"Retry-After": str(_AWAY_S)},
            )
        if standing is Standing.UNPROVEN:
            refusal = ProblemError(403, "TOKEN_INVALID", "This is not the token of such a device.")
            raise self._attempts.fail(source, device, refusal)
        if standing is Standing.REVOKED:
            raise ProblemError(403, "DEVICE_REVOKED", "The device is revoked.")
        self._attempts.succeed(source, claim)
