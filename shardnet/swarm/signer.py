"""An identity's key as the DHT wants it: public bytes and signatures, never the key itself."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shardnet.swarm.identity import Identity


class IdentitySigner:
    """Signs as one member of the swarm. (`shardnet.dht.records.Signer`, without knowing of it.)"""

    def __init__(self, identity: Identity) -> None:
        self._key = identity.private_key
        self._node_id = identity.node_id
        self._public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def node_id(self) -> str:
        """Returns: the first 40 hex digits of SHA-256 of `public_key_bytes`."""
        return self._node_id

    @property
    def public_key_bytes(self) -> bytes:
        """Returns: SubjectPublicKeyInfo, DER, of the ECDSA P-256 key."""
        return self._public

    def sign(self, data: bytes) -> bytes:
        """Returns: a DER ECDSA signature over SHA-256 of `data`."""
        return self._key.sign(data, ec.ECDSA(hashes.SHA256()))
