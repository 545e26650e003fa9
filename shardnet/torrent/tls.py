"""Certificates of an SSL torrent: what the session is given, and the constant that libtorrent insists on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """One member's certificate within a swarm. All PEM; the key is ECDSA P-256 or RSA, and the certificate's SAN must hold `*`."""

    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes = field(repr=False)


FFDHE2048_PEM = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
"""The public group ffdhe2048 of RFC 7919: libtorrent takes no certificate without a group, although TLS 1.3 with P-256 keys never uses it."""
