"""Whether it is this machine's own user who asks: then they could make a join token by `shardnet swarm invite` as well.

A connection over loopback alone says only that somebody on this machine asks, and a machine may have several users. Linux tells, for each TCP
connection, whose it is (`/proc/net/tcp`); where it cannot be told, the answer is no.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path

HostPort = tuple[str, int]
TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}


def is_own_user(client: HostPort, server: HostPort) -> bool:
    """True if the other end of a loopback connection is a process of the user who runs this one. Reads a file of the kernel's."""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    if not address.is_loopback:
        return False
    try:
        table = TABLES[address.version].read_text(encoding="ascii")
    except OSError:
        return False
    return uid_in(table, client, server) == os.getuid()


def uid_in(table: str, local: HostPort, remote: HostPort) -> int | None:
    """Returns: the user whose connection goes from `local` to `remote`; None if there is none in the table.

    Source: Linux, Documentation/networking/proc_net_tcp.rst.
    """
    wanted = (_spelled(local), _spelled(remote))
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and (fields[1], fields[2]) == wanted:
            return int(fields[7])
    return None


def _spelled(where: HostPort) -> str:
    """Returns: `0100007F:1F90` of 127.0.0.1:8080: words of the address in the machine's own byte order."""
    packed = ipaddress.ip_address(where[0]).packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return f"{b''.join(words).hex().upper()}:{where[1]:04X}"
