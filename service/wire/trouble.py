"""What went wrong in a TLS handshake, said by the setting that cures it."""

from __future__ import annotations

import ssl

from tierstore.ringbuf.errors import ConfigError, PeerLost, TierstoreError

from .address import Address
from .security import Security

# Alerts by which a daemon refuses our certificate.
NO_CERTIFICATE = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"}
BAD_CERTIFICATE = {
    "TLSV1_ALERT_UNKNOWN_CA": "it is not signed by the daemon's tls_ca",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the daemon calls it bad",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the daemon does not accept it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not for clients",
    "TLSV1_ALERT_DECRYPT_ERROR": "its signature is wrong",
}
NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "HTTP_REQUEST",
    "UNEXPECTED_MESSAGE",
}
EXPIRED, NOT_YET_VALID, WRONG_HOST, WRONG_ADDRESS = 10, 9, 62, 64  # X509_V_ERR_*


def tls_trouble(error: OSError, address: Address, security: Security) -> TierstoreError:
    """An error of a client's handshake as one that says what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, address, security)
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    if reason in NOT_TLS:
        allowed = f"None: the daemon at {address} does not speak TLS; or set tls_cert and tls_key there"
        return ConfigError("tls_ca" if security.tls_ca else "tls_cert", security.tls_ca or security.tls_cert, allowed)
    if reason in NO_CERTIFICATE:
        allowed = f"a certificate, with tls_key: the daemon at {address} wants one from its clients (tls_client_auth)"
        return ConfigError("tls_cert", security.tls_cert, allowed)
    if reason in BAD_CERTIFICATE:
        allowed = f"a certificate that the daemon at {address} accepts: {BAD_CERTIFICATE[reason]}"
        return ConfigError("tls_cert", security.tls_cert, allowed)
    if isinstance(error, TimeoutError):
        return PeerLost(f"{address} did not finish the TLS handshake in time; does it speak TLS, or is it overloaded?")
    what = reason or error.strerror or error
    return PeerLost(
        f"{address} ended the connection in the TLS handshake ({what}); it may serve too many already, or not speak TLS: "
        "look at its log"
    )


def _unverified(error: ssl.SSLCertVerificationError, address: Address, security: Security) -> ConfigError:
    name = address.name or address.host
    if error.verify_code in (WRONG_HOST, WRONG_ADDRESS):
        allowed = (
            f"nodes by names that their certificates are for: that of {address} is not for {name!r} "
            f"({error.verify_message})"
        )
        return ConfigError("nodes", str(address), allowed)
    if error.verify_code in (EXPIRED, NOT_YET_VALID):
        allowed = f"a certificate that is valid now: that of the daemon at {address} is not ({error.verify_message})"
        return ConfigError("tls_cert", f"of {address}", allowed)
    allowed = (
        f"the PEM file of the authority that signed the certificate of {address} ({error.verify_message}); "
        "or give that daemon a certificate of this authority"
    )
    return ConfigError("tls_ca", security.tls_ca, allowed)
