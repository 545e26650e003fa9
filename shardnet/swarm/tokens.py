"""Join tokens: what one line of text must carry so that a new machine finds the swarm, knows it is the right one, and is let in once.

    SHARD1- base32( version u8 | expiry u64 | CA SHA-256 (32) | secret (16) | port u16 | host (utf-8) | checksum (4) )

Base32: one double click selects it, and upper and lower case are the same. The checksum tells a typo from a wrong token. Pure: no clock, no files.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct
from dataclasses import dataclass, field

from shardnet.errors import PeerRefused, UsageError
from shardnet.messages import Address
from shardnet.swarm.records import expired_sentence

PREFIX = "SHARD1-"
VERSION = 1
SECRET_BYTES = 16
CHECKSUM_BYTES = 4
FIXED = struct.Struct(">BQ32s16sH")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """The facts inside a token. `str(token)` is what is handed over."""

    address: Address
    ca_sha256: bytes
    secret: bytes = field(repr=False)
    expires_at_s: int

    def __str__(self) -> str:
        body = FIXED.pack(VERSION, self.expires_at_s, self.ca_sha256, self.secret, self.address.port)
        body += self.address.host.encode()
        text = base64.b32encode(body + _checksum(body)).decode().rstrip("=")
        return PREFIX + text

    def check_fresh(self, now_s: float) -> None:
        """Raises: PeerRefused if the token expired before `now_s` (Unix time)."""
        if self.expires_at_s <= now_s:
            raise PeerRefused(expired_sentence(self.expires_at_s))


def new_secret() -> bytes:
    """Returns: 128 random bits."""
    return secrets.token_bytes(SECRET_BYTES)


def parse_token(text: str) -> JoinToken:
    """Read a token as people paste it: blanks, line breaks, quotes and case do not matter.

    Raises: UsageError saying whether it is no token at all, was mistyped or cut off, or comes from a newer shardnet.
    """
    compact = "".join(text.split()).strip("'\"`").upper()
    if not compact.startswith(PREFIX):
        raise UsageError(
            f"this is not a join token: one begins with {PREFIX} and is printed by `shardnet swarm invite`"
        )
    digits = compact.removeprefix(PREFIX)
    try:
        data = base64.b32decode(digits + "=" * (-len(digits) % 8))
    except ValueError:
        raise UsageError(_MISTYPED) from None
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if len(body) <= FIXED.size or checksum != _checksum(body):
        raise UsageError(_MISTYPED)
    version, expires_at_s, ca_sha256, secret, port = FIXED.unpack_from(body)
    if version != VERSION:
        raise UsageError("this join token was made by a newer shardnet: update this one")
    try:
        address = Address(host=body[FIXED.size :].decode(), port=port)
    except ValueError:
        raise UsageError("this join token names no usable address: ask for a new one") from None
    return JoinToken(address=address, ca_sha256=ca_sha256, secret=secret, expires_at_s=expires_at_s)


_MISTYPED = "this join token was mistyped or cut off (its checksum does not match): copy it again, whole"


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"shardnet join token" + body).digest()[:CHECKSUM_BYTES]
