"""Authenticated links between daemons: TLS 1.3 below, framed messages above, and nothing counts as connected before both sides have greeted."""

from shardnet.transport.connection import Connection
from shardnet.transport.dialer import dial
from shardnet.transport.listener import HelloHandler, Listener, listen

__all__ = ["Connection", "HelloHandler", "Listener", "dial", "listen"]
