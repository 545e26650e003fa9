"""What the first message must say. Pure checks, the same on both sides."""

from __future__ import annotations

from shardnet.errors import PeerRefused
from shardnet.ids import short
from shardnet.messages import PROTOCOL_VERSION, AnyMessage, Hello, Welcome


def checked_hello(message: AnyMessage, peer_id: str) -> Hello:
    """Returns: the peer's Hello.

    Raises: PeerRefused if it is another message, another version, or names another node than the certificate.
    """
    if not isinstance(message, Hello):
        raise PeerRefused(f"the first message must be HELLO, not {message.type}")
    _check(message, peer_id)
    return message


def checked_welcome(message: AnyMessage, peer_id: str) -> Welcome:
    """Returns: the peer's Welcome.

    Raises: PeerRefused, as `checked_hello`.
    """
    if not isinstance(message, Welcome):
        raise PeerRefused(f"the answer to HELLO must be WELCOME, not {message.type}")
    _check(message, peer_id)
    return message


def _check(message: Hello | Welcome, peer_id: str) -> None:
    if message.protocol != PROTOCOL_VERSION:
        older = "that end" if message.protocol < PROTOCOL_VERSION else "this end"
        raise PeerRefused(
            f"the dialling and the listening end speak protocol versions {message.protocol} and {PROTOCOL_VERSION}: update {older}"
            if isinstance(message, Hello)
            else f"it speaks protocol version {message.protocol} and this end {PROTOCOL_VERSION}: update {older}"
        )
    if message.node_id != peer_id:
        raise PeerRefused(
            f"its greeting names node {short(message.node_id)}, but its certificate is that of node {short(peer_id)}"
        )
