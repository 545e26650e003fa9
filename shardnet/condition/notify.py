"""What a service manager is told: that the daemon is up, how it is, that it stops, and again and again that its event loop still turns.

The manager names a Unix socket in the environment and takes datagrams of `NAME=value` lines there; without one nothing is sent. Knows nothing of
daemons. Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Self

from shardnet.log import get

SOCKET, WATCHDOG_US, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"

log = get("condition")


def datagram(words: dict[str, str]) -> bytes:
    """Returns: one message, a line for each word; what would begin another line is a space."""
    return "\n".join(f"{name}={' '.join(value.splitlines())}" for name, value in words.items()).encode()


def socket_address(text: str) -> str | None:
    """Returns: the socket as the kernel names it: a path, or an abstract name (`@` stands for its zero byte); None for another kind of socket."""
    if text.startswith("/"):
        return text
    return f"\0{text[1:]}" if text.startswith("@") and len(text) > 1 else None


class Notifier:
    """Sends to the service manager, or nothing to nobody.

    Args:
        address: as `socket_address` gives it.
        watchdog_s: seconds without a word after which the manager ends the daemon; None if it does not.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s
        self._has_failed = False

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] | None = None) -> Self:
        """Returns: the one that this process's environment asks for. Takes the variables out: they are not for our children."""
        environ = os.environ if environ is None else environ
        text, period, pid = (environ.pop(name, "") for name in (SOCKET, WATCHDOG_US, WATCHDOG_PID))
        address = socket_address(text)
        if text and address is None:
            log.warning("notify_socket_unknown", address=text)
        is_meant = address is not None and pid in ("", str(os.getpid()))
        microseconds = int(period) if is_meant and period.isascii() and period.isdecimal() else 0
        return cls(address, microseconds / 1e6 or None)

    def send(self, **words: str) -> None:
        """Tell it; never waits. A manager that does not listen is told to the log once."""
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(datagram(words), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("notify_failed", reason=error.strerror or str(error))
