"""Signed leases: the 139 bytes by which a node says, for a while, where it can be reached for one key.

A record carries the announcer's public key as a compressed point; the node id is the hash of that key, so a record cannot speak for anybody else.
The signature covers the DHT key too, so it cannot be moved to another one. Pure: time arrives as an argument; no sockets.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from shardnet.dht.addresses import is_loopback, pack_host, unpack_host
from shardnet.errors import LocalProtocolError, RemoteProtocolError

KEY_BYTES = 20
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 33
_FORMAT = 1
_WITHDRAWN = 0x80
_BODY = struct.Struct(
    ">BB33sQI16sHHQ"
)  # format, kind, public key, sequence, expiry, address, port, torrent port, memory
RECORD_BYTES = _BODY.size + SIGNATURE_BYTES
"""139: small enough that a full page of them beside the contacts fits one datagram that no router cuts in two."""

_RECORD_DOMAIN = b"shardnet dht record\n"
_MAX_TIME_S = (1 << 32) - 1
_MAX_MEMORY = (1 << 64) - 1


class Signer(Protocol):
    """Whoever holds the node's private key. Signing takes some 20 µs, so it may be called on the event loop."""

    @property
    def node_id(self) -> str:
        """The first 40 hex digits of SHA-256 of `public_key_bytes`."""
        ...

    @property
    def public_key_bytes(self) -> bytes:
        """SubjectPublicKeyInfo, DER, of an ECDSA P-256 key."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Returns: a DER ECDSA signature over SHA-256 of `data`."""
        ...


class Kind(IntEnum):
    """What a record promises."""

    PROVIDER = 1
    COORDINATOR = 2
    MANIFEST = 3


_KINDS = frozenset(map(int, Kind))


@dataclass(frozen=True, slots=True)
class Record:
    """One lease as it travels. `raw` is what was signed, with the signature behind it."""

    kind: Kind
    is_withdrawn: bool
    node_id: str
    sequence: int
    expires_at: int
    host: str
    port: int
    torrent_port: int
    memory_free_bytes: int
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """A node that holds one shard, by its own signed word: a hint, which TLS then proves.

    `address`: where it serves; `torrent_port`: 0 when it does not seed; `expires_at`: unix seconds.
    """

    node_id: str
    address: tuple[str, int]
    torrent_port: int
    memory_free_bytes: int
    model_id: str
    shard_id: int
    expires_at: int
    sequence: int


@dataclass(frozen=True, slots=True)
class CoordinatorRecord:
    """A coordinator of this swarm. `address`: where nodes join; `expires_at`: unix seconds."""

    node_id: str
    address: tuple[str, int]
    expires_at: int
    sequence: int


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A holder of one model's manifest. `address`: where it serves; `expires_at`: unix seconds."""

    node_id: str
    address: tuple[str, int]
    model_id: str
    expires_at: int
    sequence: int


def provider_key(model_id: str, shard_id: int) -> bytes:
    """Returns: the 20-byte DHT key of everybody who holds one shard."""
    return _key(b"shard", bytes.fromhex(model_id), shard_id.to_bytes(4, "big"))


def download_key(model_id: str, shard_id: int) -> bytes:
    """Returns: the 20-byte DHT key of everybody who is fetching one shard, and has a part of it to give."""
    return _key(b"download", bytes.fromhex(model_id), shard_id.to_bytes(4, "big"))


def manifest_key(model_id: str) -> bytes:
    """Returns: the 20-byte DHT key of everybody who holds the model's manifest."""
    return _key(b"manifest", bytes.fromhex(model_id))


def coordinator_key() -> bytes:
    """Returns: the 20-byte DHT key of the swarm's coordinators. One for all swarms: the seal keeps swarms apart."""
    return _key(b"coordinators")


def _key(*parts: bytes) -> bytes:
    return hashlib.sha256(b"shardnet dht key\n" + b"\n".join(parts)).digest()[:KEY_BYTES]


def node_id_of(public_key: bytes) -> str:
    """Returns: the node id of a compressed P-256 point. Raises: RemoteProtocolError (reason `public_key`)."""
    return _public_key(public_key)[1]


def announcer_of(raw: bytes) -> str:
    """Returns: the node id that an unverified raw record names. Raises: RemoteProtocolError (reason `public_key`)."""
    return node_id_of(raw[2 : 2 + PUBLIC_KEY_BYTES])


@lru_cache(maxsize=2048)
def _public_key(compressed: bytes) -> tuple[ec.EllipticCurvePublicKey, str]:
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), compressed)
    except ValueError as error:
        raise RemoteProtocolError("the public key is no point of P-256", reason="public_key") from error
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public, hashlib.sha256(spki).hexdigest()[:40]


@lru_cache(maxsize=64)
def compressed_public_key(spki: bytes) -> bytes:
    """Returns: the 33-byte point of a SubjectPublicKeyInfo. Raises: LocalProtocolError if it is not ECDSA P-256."""
    try:
        public = serialization.load_der_public_key(spki)
    except ValueError as error:
        raise LocalProtocolError("the node's public key is not DER; make the identity anew") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise LocalProtocolError("the DHT needs an ECDSA P-256 identity; make the identity anew")
    return public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def sign_raw(signer: Signer, data: bytes) -> bytes:
    """Returns: 64 bytes, r and s, instead of DER's varying length."""
    r, s = utils.decode_dss_signature(signer.sign(data))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def verify_raw(public_key: bytes, signature: bytes, data: bytes) -> str:
    """Returns: the node id that signed `data`.

    Raises: RemoteProtocolError with reason `public_key` or `signature`.
    """
    public, node_id = _public_key(public_key)
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        public.verify(der, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise RemoteProtocolError("the signature is not that of the node it speaks for", reason="signature") from error
    return node_id


def sign_record(
    signer: Signer,
    key: bytes,
    kind: Kind,
    *,
    address: tuple[str, int],
    sequence: int,
    expires_at: float,
    torrent_port: int = 0,
    memory_free_bytes: int = 0,
    withdrawn: bool = False,
) -> Record:
    """Make the signer's own record for `key`.

    Args:
        address: IP address and port (1 to 65535).
        sequence: of two records of one node under one key the higher one counts.
        expires_at: unix seconds, rounded up.

    Raises: LocalProtocolError if a value does not fit.
    """
    expires = int(-(-expires_at // 1))
    try:
        body = _BODY.pack(
            _FORMAT,
            kind | (_WITHDRAWN if withdrawn else 0),
            compressed_public_key(signer.public_key_bytes),
            sequence,
            expires,
            pack_host(address[0]),
            address[1],
            torrent_port,
            min(memory_free_bytes, _MAX_MEMORY),
        )
    except (ValueError, struct.error) as error:
        raise LocalProtocolError(f"cannot announce {address[0]}:{address[1]}: {error}") from error
    raw = body + sign_raw(signer, _RECORD_DOMAIN + key + body)
    try:
        return _parse(raw)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"cannot announce {address[0]}:{address[1]}: {error}") from error


def _parse(raw: bytes) -> Record:
    if len(raw) != RECORD_BYTES:
        raise RemoteProtocolError(f"a record has {RECORD_BYTES} bytes, not {len(raw)}", reason="size")
    form, kind, public_key, sequence, expires_at, packed, port, torrent_port, memory = _BODY.unpack_from(raw)
    if form != _FORMAT or (kind & ~_WITHDRAWN) not in _KINDS:
        raise RemoteProtocolError(f"record format {form}, kind {kind} is unknown here", reason="kind")
    if port == 0:
        raise RemoteProtocolError("a record without a port leads nowhere", reason="address")
    return Record(
        kind=Kind(kind & ~_WITHDRAWN),
        is_withdrawn=bool(kind & _WITHDRAWN),
        node_id=node_id_of(public_key),
        sequence=sequence,
        expires_at=expires_at,
        host=unpack_host(packed),
        port=port,
        torrent_port=torrent_port,
        memory_free_bytes=memory,
        raw=raw,
    )


class RecordVerifier:
    """Says whether a record may be stored or believed. Remembers what it has verified: holders repeat one another.

    Invariant: `_verified` holds only records whose signature was checked under that very key.
    """

    def __init__(
        self,
        *,
        max_ttl_s: float,
        max_skew_s: float,
        allow_loopback: bool,
        revoked: Callable[[], frozenset[str]] = frozenset,
        remembered: int = 8192,
    ) -> None:
        """`allow_loopback`: whether 127.0.0.1 means the same machine to everybody here (it does if we listen there).

        `revoked`: node ids that are no members any more, as of now.
        """
        self.revoked = revoked
        self._max_ttl_s = max_ttl_s
        self._max_skew_s = max_skew_s
        self._allow_loopback = allow_loopback
        self._remembered = remembered
        self._verified: OrderedDict[tuple[bytes, bytes], Record] = OrderedDict()

    def verify(self, key: bytes, raw: bytes, now: float) -> Record:
        """Read a record that came for `key` at `now` (unix seconds). The cheap checks come first.

        Raises: RemoteProtocolError; `facts["reason"]` is one of `size`, `kind`, `address`, `public_key`, `expired`, `ttl`, `signature`, `revoked`.
        """
        known = self._verified.get((key, raw))
        record = known or _parse(raw)
        if record.expires_at <= now:
            raise RemoteProtocolError(f"the record expired {now - record.expires_at:.0f} s ago", reason="expired")
        if record.expires_at > now + self._max_ttl_s + self._max_skew_s:
            raise RemoteProtocolError(
                f"the record claims {record.expires_at - now:.0f} s to live, over the limit of {self._max_ttl_s:.0f} s",
                reason="ttl",
            )
        if not self._allow_loopback and is_loopback(record.host):
            raise RemoteProtocolError(f"{record.host} is this machine, not a peer", reason="address")
        if record.node_id in self.revoked():
            raise RemoteProtocolError("the node that announces it was revoked by the swarm's owner", reason="revoked")
        if known is not None:
            self._verified.move_to_end((key, raw))
            return known
        body, signature = raw[: _BODY.size], raw[_BODY.size :]
        verify_raw(body[2 : 2 + PUBLIC_KEY_BYTES], signature, _RECORD_DOMAIN + key + body)
        self._verified[key, raw] = record
        if len(self._verified) > self._remembered:
            self._verified.popitem(last=False)
        return record
