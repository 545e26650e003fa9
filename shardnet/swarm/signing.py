"""The swarm owner's signature on manifests: nodes run only what the owner signed, or what their user added by hand."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from shardnet.manifest import Manifest
from shardnet.swarm import authority
from shardnet.swarm.home import Home
from shardnet.swarm.identity import SwarmIdentity, open_swarm


def sign(manifest: Manifest, swarm: SwarmIdentity) -> Manifest:
    """Returns: the manifest with the owner's signature: ECDSA P-256 over SHA-256 of `signed_bytes`, the same each time.

    Raises: SettingsError where this machine does not own the swarm.
    """
    key = swarm.ca_key()
    try:
        signature = key.sign(manifest.signed_bytes, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm:  # OpenSSL before 3.2: as good a signature, but another one each time
        signature = key.sign(manifest.signed_bytes, ec.ECDSA(hashes.SHA256()))
    return manifest.model_copy(update={"signature": base64.b64encode(signature).decode()})


def sign_if_owner(manifest: Manifest, home: Path | None = None) -> Manifest:
    """Returns: the signed manifest; unchanged where this machine belongs to no swarm or does not own its own.

    Raises: SettingsError if the key file is damaged or others can read it.
    """
    here = Home(home)
    return sign(manifest, open_swarm(here)) if here.is_owner else manifest


def signature_is_valid(manifest: Manifest, ca_certificate: bytes | x509.Certificate) -> bool:
    """True if the owner of the swarm with this certificate (PEM, or parsed) signed the manifest.

    Raises: SettingsError if the bytes are no certificate.
    """
    if manifest.signature is None:
        return False
    if isinstance(ca_certificate, bytes):
        ca_certificate = authority.parse_certificate(ca_certificate, source="the swarm's certificate")
    key = ca_certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        signature = base64.b64decode(manifest.signature, validate=True)
        key.verify(signature, manifest.signed_bytes, ec.ECDSA(hashes.SHA256()))
    except (binascii.Error, InvalidSignature, ValueError):
        return False
    return True
