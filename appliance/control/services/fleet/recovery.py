"""Whether a request for recovery comes from whoever holds the key of a machine's certificate.

Rule kept here: nothing is read but the request. So the gate asks before it records anything, and
what strangers make up is counted, not kept.

The attacks: certificates of others, which are no secret, sent with made-up signatures to fill the
audit log; a signature that is used again for another request. Called by `identify`, behind the
limit for strangers because signatures cost time, and by the enrolment service.
"""

from __future__ import annotations

from appliance.api.agent.v1.enrolment_service_pb2 import RecoverCertificateRequest
from appliance.control.auth.challenges import Challenges
from appliance.control.services.fleet.certificates import Certificates
from appliance.core.errors import InvalidInput
from appliance.core.identity import Principal
from appliance.crypto import possession
from appliance.crypto.reading import MAX_PEM


class Recovery:
    """Judges proofs of a key.

    Args:
        challenges: those that machines sign.
        certificates: whose a certificate is.
        cluster: id of this appliance.
    """

    def __init__(self, challenges: Challenges, certificates: Certificates, cluster: str) -> None:
        self._challenges = challenges
        self._certificates = certificates
        self._cluster = cluster

    def owner_of(self, request: RecoverCertificateRequest) -> Principal:
        """The machine whose certificate is shown, by whoever holds its key.

        Whether that machine may have another one is not asked here.

        Raises:
            InvalidInput: certificate or request are too large.
            Unauthenticated: the challenge is none, the certificate is not one of a node or a
                gateway of this appliance, or its key did not sign.
        """
        if max(len(request.certificate), len(request.certificate_request)) > MAX_PEM:
            raise InvalidInput(f"a certificate and a request have at most {MAX_PEM} characters")
        self._challenges.check(request.challenge)
        shown = request.certificate.encode()
        machine = self._certificates.owner_of(shown)
        possession.check(
            shown,
            self._cluster,
            request.challenge,
            request.certificate_request.encode(),
            request.signature,
        )
        return machine
