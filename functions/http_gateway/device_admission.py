"""Lets only senders pass that prove to be the device of their path."""

from functions.domain.device_certificates import DeviceCertificate
from functions.domain.device_proof import MadeClaim, Standing, make_claim
from functions.domain.topics import Topic
from functions.http_gateway.attempts import FailedAttempts
from functions.http_gateway.client_addresses import ClientAddresses
from functions.http_gateway.client_certificates import ClientCertificates
from functions.http_gateway.device_proofs import DeviceProofs
from functions.http_gateway.door_rates import DoorRates
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from runtime import Context

_CHALLENGE = {"WWW-Authenticate": 'ProvisionToken realm="devices"'}
_AWAY_S = 5


class DeviceAdmission:
    """Checks a request's token before anything is stored, and limits the wrong ones.

    Attributes:
        rates: what a device that has proved itself may send.
    """

    def __init__(
        self, ctx: Context, proofs: DeviceProofs, addresses: ClientAddresses, rates: DoorRates
    ) -> None:
        self._certificates = ClientCertificates(ctx.settings.client_certificate_header, addresses)
        self._proofs = proofs
        self._addresses = addresses
        self._attempts = FailedAttempts(ctx.log, "device")
        self.rates = rates

    async def require(self, request: Request, topic: Topic, token: object) -> str:
        """Require the token of the topic's device, or its certificate without a token.

        Returns the name that the certificate proves, tenant/device; empty with a token.

        Raises:
            ProblemError: 401 without a token; 403 when it is not the device's, or the device is
                revoked; 429 after too many wrong tokens; 503 when the registry is away.
        """
        device = (topic.tenant_id, topic.device_id)
        source = self._addresses.source(request.scope)
        certificate = self._certificates.read(request) if token is None else None
        if certificate is None and (not isinstance(token, str) or not token):
            refusal = ProblemError(
                401, "TOKEN_MISSING", "Send the device's provision token.", headers=_CHALLENGE
            )
            raise self._attempts.fail(source, device, refusal)
        if certificate is None:
            claim = make_claim(*device, str(token))
        elif device == (certificate.tenant_id, certificate.device_id):
            claim = MadeClaim(*device, "", certificate.fingerprint)
        else:
            raise self._attempts.fail(source, device, _not_of_device(certificate))
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
            raise self._attempts.fail(source, device, _not_of_device(certificate))
        if standing is Standing.REVOKED:
            raise ProblemError(403, "DEVICE_REVOKED", "The device is revoked.")
        self._attempts.succeed(source, claim)
        return "" if certificate is None else "/".join(device)


def _not_of_device(certificate: DeviceCertificate | None) -> ProblemError:
    if certificate is None:
        return ProblemError(403, "TOKEN_INVALID", "This is not the token of such a device.")
    return ProblemError(
        403, "CERTIFICATE_INVALID", "This is no active certificate of such a device."
    )
