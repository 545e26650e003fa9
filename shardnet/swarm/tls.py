"""TLS 1.3 in both directions of trust: the contexts of a member, who the other end is, and what a failed handshake means in plain words."""

from __future__ import annotations

import ssl
from weakref import WeakKeyDictionary

from shardnet.errors import PeerRefused, RemoteProtocolError
from shardnet.mutual_tls import mutual_context
from shardnet.swarm.authority import node_id_of_certificate
from shardnet.swarm.identity import Identity

HANDSHAKE_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 2.0

_SERVER: WeakKeyDictionary[Identity, ssl.SSLContext] = WeakKeyDictionary()
_CLIENT: WeakKeyDictionary[Identity, ssl.SSLContext] = WeakKeyDictionary()


def server_context(identity: Identity) -> ssl.SSLContext:
    """Returns: the accepting side: only members of the swarm get through the handshake. Made once per identity; reads two files then."""
    if identity not in _SERVER:
        _SERVER[identity] = _mutual(identity, is_server=True)
    return _SERVER[identity]


def client_context(identity: Identity) -> ssl.SSLContext:
    """Returns: the dialling side, which shows its certificate and accepts members of the swarm only. Made once per identity."""
    if identity not in _CLIENT:
        _CLIENT[identity] = _mutual(identity, is_server=False)
    return _CLIENT[identity]


def _mutual(identity: Identity, *, is_server: bool) -> ssl.SSLContext:
    identity.key_pem()  # refuses a key file that others can read
    return mutual_context(
        is_server=is_server,
        authority=identity.swarm.ca_pem.decode(),
        certificate=identity.certificate_path,
        key=identity.key_path,
    )


def peer_node_id(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> str:
    """Returns: the node id of the other end's public key, which the handshake proved it holds.

    Raises: RemoteProtocolError if there is no certificate.
    """
    der = ssl_object.getpeercert(binary_form=True)
    if der is None:
        raise RemoteProtocolError("the peer showed no certificate")
    return node_id_of_certificate(der)


def check_not_revoked(identity: Identity, node_id: str) -> None:
    """Raises: PeerRefused if the swarm's owner revoked that node."""
    if node_id in identity.revoked:
        raise PeerRefused(
            f"node {node_id} was revoked by the swarm's owner: to take part again it needs a new identity and a new join token"
        )


def refusal_reason(error: BaseException) -> str:
    """Returns: why *we* did not let a peer through the handshake, for one log line."""
    text = f"{getattr(error, 'reason', None) or ''} {error}"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return "its certificate has expired"
        if error.verify_code == 9:  # X509_V_ERR_CERT_NOT_YET_VALID
            return "its certificate is not valid yet: compare the clocks of the two machines"
        return f"its certificate is not of this swarm ({error.verify_message})"
    for mark, sentence in _OUR_REASONS:
        if mark in text:
            return sentence
    if isinstance(error, TimeoutError) or "taking longer" in text:
        return f"no TLS handshake within {HANDSHAKE_TIMEOUT_S:g} s"
    if isinstance(error, ssl.SSLError):
        return f"its TLS handshake failed ({error.reason or error})"
    return "it went away during the TLS handshake"


_OUR_REASONS = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "it has no certificate of this swarm"),
    ("UNSUPPORTED_PROTOCOL", "it speaks TLS 1.2 or older, and only TLS 1.3 is spoken here"),
    ("NO_PROTOCOLS_AVAILABLE", "it speaks TLS 1.2 or older, and only TLS 1.3 is spoken here"),
    ("HTTP_REQUEST", "it speaks plain HTTP; this port takes TLS links of nodes only"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
    ("UNKNOWN_CA", "it refused our certificate as one of another swarm"),
    ("BAD_CERTIFICATE", "it refused our certificate"),
)


def alert_reason(error: BaseException | None) -> str:
    """Returns: why *the other end* ended a handshake, as far as its TLS alert tells; empty if it does not."""
    text = f"{getattr(error, 'reason', None) or ''} {error}".upper().replace(" ", "_")
    for mark, sentence in _ALERTS:
        if mark in text:
            return sentence
    return ""


_ALERTS = (
    ("ALERT_UNKNOWN_CA", "it takes this machine's certificate for one of another swarm"),
    ("ALERT_CERTIFICATE_REQUIRED", "it wants a certificate, and this machine showed none"),
    ("ALERT_CERTIFICATE_EXPIRED", "it says that this machine's certificate has expired; compare the clocks"),
    ("ALERT_BAD_CERTIFICATE", "it refused this machine's certificate"),
    ("ALERT_PROTOCOL_VERSION", "the two ends speak different versions of TLS; shardnet speaks TLS 1.3 only"),
)
