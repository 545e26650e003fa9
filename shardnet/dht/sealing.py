"""Datagrams sealed with the swarm's key: ChaCha20-Poly1305, a time stamp against old ones, a nonce memory against repeats.

Whoever lacks the key learns sizes and times, and gets not one byte back. Nonces are random: with 2^32 datagrams under one key two
equal ones are a 1 in 2^33 chance. Two keys may be live while a swarm changes from one to the next: the first seals, all open.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shardnet.errors import LocalProtocolError, RemoteProtocolError

MAX_DATAGRAM_BYTES = 1400
"""What passes every usual path (Ethernet, PPPoE, VPN tunnels) without being cut into fragments."""
KEY_BYTES = 32
_MAGIC = b"\x53\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_STAMP = struct.Struct(">Q")
OVERHEAD_BYTES = len(_MAGIC) + _NONCE_BYTES + _STAMP.size + _TAG_BYTES
MAX_PAYLOAD_BYTES = MAX_DATAGRAM_BYTES - OVERHEAD_BYTES
_REMEMBERED_NONCES = 200_000


class Sealer:
    """Seals and opens. Pure but for the clock and the random source it is given."""

    def __init__(
        self,
        keys: Sequence[bytes],
        *,
        clock: Callable[[], float],
        max_skew_s: float = 30,
        random_bytes: Callable[[int], bytes] = os.urandom,
        remembered: int = _REMEMBERED_NONCES,
    ) -> None:
        """`keys`: 32 bytes each; the first one seals.

        Raises: LocalProtocolError if there is none, or one has another length.
        """
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise LocalProtocolError(f"the DHT needs a swarm key of {KEY_BYTES} bytes")
        self._ciphers = [ChaCha20Poly1305(_derive(key)) for key in keys]
        self._clock = clock
        self._max_skew_s = max_skew_s
        self._random_bytes = random_bytes
        self._remembered = remembered
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def seal(self, payload: bytes) -> bytes:
        """Returns: the datagram. Raises: LocalProtocolError if it would be longer than `MAX_DATAGRAM_BYTES`."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise LocalProtocolError(f"a DHT message of {len(payload)} bytes does not fit {MAX_PAYLOAD_BYTES}")
        nonce = self._random_bytes(_NONCE_BYTES)
        stamp = _STAMP.pack(max(0, int(self._clock() * 1000)))
        return _MAGIC + nonce + self._ciphers[0].encrypt(nonce, stamp + payload, _MAGIC)

    def open(self, datagram: bytes) -> bytes:
        """Returns: the payload.

        Raises: RemoteProtocolError; `facts["reason"]` is `oversized`, `unsealed`, `skewed` or `replayed`.
        """
        if len(datagram) > MAX_DATAGRAM_BYTES:
            raise RemoteProtocolError(f"{len(datagram)} bytes, over {MAX_DATAGRAM_BYTES}", reason="oversized")
        if len(datagram) < OVERHEAD_BYTES or datagram[: len(_MAGIC)] != _MAGIC:
            raise RemoteProtocolError("it is not sealed with this swarm's key", reason="unsealed")
        nonce = datagram[len(_MAGIC) : len(_MAGIC) + _NONCE_BYTES]
        plain = self._decrypt(nonce, datagram[len(_MAGIC) + _NONCE_BYTES :])
        now = self._clock()
        skew_s = _STAMP.unpack_from(plain)[0] / 1000 - now
        if abs(skew_s) > self._max_skew_s:
            raise RemoteProtocolError(
                f"its clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} ours; set both clocks right",
                reason="skewed",
            )
        self._remember(nonce, now)
        return plain[_STAMP.size :]

    def _decrypt(self, nonce: bytes, ciphertext: bytes) -> bytes:
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, ciphertext, _MAGIC)
            except InvalidTag:
                continue
        raise RemoteProtocolError("it is not sealed with this swarm's key", reason="unsealed")

    def _remember(self, nonce: bytes, now: float) -> None:
        """A stamp is good from `-skew` to `+skew` around our clock, so a nonce must be known for twice that long."""
        while self._seen:
            oldest, seen_at = next(iter(self._seen.items()))
            if abs(now - seen_at) <= 2 * self._max_skew_s and len(self._seen) < self._remembered:
                break
            del self._seen[oldest]
        if nonce in self._seen:
            raise RemoteProtocolError("it was received before", reason="replayed")
        self._seen[nonce] = now


def _derive(key: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"shardnet dht datagram").derive(key)
