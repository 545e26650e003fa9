"""The options of every TCP connection in shardnet. For daemons and their engines alike."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple


class Patience(NamedTuple):
    """How long an end that says nothing is believed to be there. Seconds; the operating system's own values for None.

    Attributes:
        idle_s: of silence before the kernel asks; `interval_s` between questions.
        questions: without an answer before the connection is over.
        unacknowledged_s: that sent bytes may stay so; Linux only.
    """

    idle_s: int
    interval_s: int
    questions: int | None = None
    unacknowledged_s: int | None = None


def tune(sock: socket.socket, patience: Patience) -> None:
    """No waiting to fill packets, and a machine that vanished without a word is noticed by the kernel. Raises: OSError."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, patience.idle_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, patience.interval_s)
        if patience.questions is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, patience.questions)
    if sys.platform == "linux" and patience.unacknowledged_s is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * patience.unacknowledged_s)


def unacknowledged(sock: socket.socket) -> int:
    """Returns: sent bytes that the other end has not acknowledged yet; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    try:
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(count)


class Acknowledged(NamedTuple):
    """How far the other end has got. `n_bytes`: acknowledged since the connection began; `waits`: whether anything sent is not."""

    n_bytes: int
    waits: bool


_UNACKED = struct.Struct("24xI92xQ")
"""`tcpi_unacked` (segments under way) and `tcpi_bytes_acked` in `struct tcp_info`. Source: linux/tcp.h, since Linux 4.1."""


def acknowledged(sock: socket.socket) -> Acknowledged | None:
    """Returns: how far the other end has got; None where the system does not tell. An end that only does not read makes nothing wait."""
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size)
        segments, n_bytes = _UNACKED.unpack(info)
    except (OSError, struct.error):
        return None
    return Acknowledged(n_bytes, segments > 0)
