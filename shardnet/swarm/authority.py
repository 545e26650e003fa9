"""The swarm's certificate authority: keys, certificates and requests, as data. No files, no sockets.

Keys are ECDSA P-256, which TLS 1.3 and libtorrent's SSL torrents both take. A certificate names its node by `CN` and its swarm by `O`; its only
alternative name is `*`, because libtorrent compares that with the torrent's name. Nobody trusts those names: a node id is computed from the key.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shardnet.errors import RemoteProtocolError, SettingsError

AUTHORITY_DAYS = 3652
NODE_DAYS = 365
RENEW_BEFORE_DAYS = 30
BACKDATED = timedelta(hours=2)
"""Clocks of home machines are an hour off after a wrong time zone; a fresh certificate must work there too."""
ID_HEX_CHARS = 40
ENROLMENT_UNIT: Final = "enrolment"
"""`OU` of the enrolment service. Members get certificates without `OU`, so a member cannot pose as that service and collect secrets."""

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def new_key() -> PrivateKey:
    """Returns: a fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def id_of(key: PublicKey) -> str:
    """Returns: the first 160 bits of SHA-256 of the key's SubjectPublicKeyInfo (DER), hex: a node's or a swarm's id."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()[:ID_HEX_CHARS]


def node_id_of_certificate(der: bytes) -> str:
    """Returns: the node id of the key in a DER certificate.

    Raises: RemoteProtocolError if it is no certificate of a P-256 key.
    """
    try:
        return id_of(p256(x509.load_der_x509_certificate(der).public_key()))
    except ValueError as error:
        raise RemoteProtocolError("the peer's certificate cannot be read") from error


def p256(key: object) -> PublicKey:
    """Returns: `key`, if it is a P-256 key.

    Raises: RemoteProtocolError if not.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RemoteProtocolError("the key is not an ECDSA P-256 key")
    return key


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Returns: SHA-256 of the certificate (DER), 32 bytes: what a join token pins."""
    return certificate.fingerprint(hashes.SHA256())


def _name(common: str, swarm_id: str, unit: str | None = None) -> x509.Name:
    parts = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, swarm_id),
        x509.NameAttribute(NameOID.COMMON_NAME, common),
    ]
    if unit is not None:
        parts.insert(1, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name(parts)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def new_authority(key: PrivateKey, *, now: datetime | None = None) -> x509.Certificate:
    """Returns: the self-signed certificate of a new swarm. It may sign nodes, and no further authorities."""
    now = now or datetime.now(UTC)
    public = key.public_key()
    swarm_id = id_of(public)
    name = _name("shardnet swarm", swarm_id)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def issue(
    ca_key: PrivateKey,
    ca: x509.Certificate,
    public: PublicKey,
    *,
    unit: str | None = None,
    days: float = NODE_DAYS,
    now: datetime | None = None,
) -> x509.Certificate:
    """Returns: a certificate for `public`, good for both ends of a TLS link, valid for `days` from `now`."""
    now = now or datetime.now(UTC)
    ca_public = p256(ca.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_name(id_of(public), id_of(ca_public), unit))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("*")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_public), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """True if `ca`'s key signed `certificate` (dates are not looked at)."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_enrolment_service(certificate: x509.Certificate) -> bool:
    """True if the certificate is that of the swarm's enrolment service."""
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return [unit.value for unit in units] == [ENROLMENT_UNIT]


def new_request(key: PrivateKey) -> str:
    """Returns: a certificate request (PEM). It proves possession of the key; names in it are not looked at."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return to_pem(request).decode()


def key_of_request(pem: str) -> PublicKey:
    """Returns: the key that a certificate request proves to possess.

    Raises: RemoteProtocolError if it is malformed, of another kind of key, or its signature is wrong.
    """
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        public = p256(request.public_key())
        valid = request.is_signature_valid
    except ValueError as error:
        raise RemoteProtocolError("the certificate request is malformed") from error
    if not valid:
        raise RemoteProtocolError("the certificate request is not signed by its own key")
    return public


def to_pem(data: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Returns: PEM."""
    return data.public_bytes(serialization.Encoding.PEM)


def key_to_pem(key: PrivateKey) -> bytes:
    """Returns: the key as unencrypted PKCS#8 PEM: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def parse_certificate(pem: bytes, *, source: str) -> x509.Certificate:
    """Returns: the certificate.

    Raises: SettingsError naming `source`.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise SettingsError(f"{source} is not a certificate") from error


def parse_key(pem: bytes, *, source: str) -> PrivateKey:
    """Returns: the P-256 key.

    Raises: SettingsError naming `source`.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{source} is not a private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{source} is not an ECDSA key")
    return key
