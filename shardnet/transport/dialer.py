"""Dialling a member: TLS, the pin, Hello, and only the Welcome counts.

Under TLS 1.3 a client whose certificate is refused first sees an established link and then its end: so the end of the link before a
Welcome is explained too.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

from shardnet.errors import Busy, PeerLost, PeerRefused, ShardnetError, UnreachableError
from shardnet.ids import NodeId, short
from shardnet.messages import Address, Hello
from shardnet.swarm.identity import Identity
from shardnet.swarm.tls import HANDSHAKE_TIMEOUT_S, SHUTDOWN_TIMEOUT_S, alert_reason, check_not_revoked, client_context
from shardnet.transport.connection import Connection
from shardnet.transport.greeting import checked_welcome
from shardnet.transport.limits import GREETING_TIMEOUT_S
from shardnet.transport.link import Link

DIAL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0
"""For a TCP connection to one address. The kernel asks after 1, 3 and 7 seconds: to begin anew finds a network that is back sooner."""


async def dial(
    identity: Identity,
    address: Address,
    hello: Hello,
    *,
    expect: NodeId | None = None,
    timeout_s: float = DIAL_TIMEOUT_S,
) -> Connection:
    """Connect to a member and be welcomed by it.

    Args:
        expect: the node that must answer; None takes any member of the swarm.
        timeout_s: for everything together.

    Raises: UnreachableError if nobody answers in time or the other end is busy; PeerRefused if the other end is of another swarm, another node than
        expected, revoked, of another protocol version, or does not let this node in. The sentence names the address and what to do.
    """
    context = await asyncio.to_thread(client_context, identity)
    loop = asyncio.get_running_loop()
    link: Link | None = None
    try:
        async with asyncio.timeout(timeout_s):
            _, link = await loop.create_connection(
                Link,
                sock=await connect(address),
                ssl=context,
                server_hostname="",  # nothing about the swarm goes over the wire in clear
                ssl_handshake_timeout=min(HANDSHAKE_TIMEOUT_S, timeout_s),
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
            return await _greet(identity, link, address, hello, expect)
    except (OSError, TimeoutError) as error:
        if link is not None:
            await link.discard()
        raise _explained(identity, address, error) from error
    except ShardnetError:
        if link is not None:
            await link.discard()
        raise
    except BaseException:
        if link is not None:
            link.abort()
        raise


async def connect(address: Address) -> socket.socket:
    """Returns: a connected TCP socket. A name is looked up anew each time; of several addresses each gets its chance.

    Raises: OSError for the last one; TimeoutError if it did not answer within `CONNECT_TIMEOUT_S`.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "no host can have this name") from None
    trouble: OSError = OSError(errno.EADDRNOTAVAIL, "it has no address")
    for family, kind, number, _, where in found:
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, where)
        except OSError as error:  # TimeoutError is one
            sock.close()
            trouble = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise trouble


async def _greet(identity: Identity, link: Link, address: Address, hello: Hello, expect: NodeId | None) -> Connection:
    if link.error is not None:
        raise PeerRefused(f"{address}: {link.error}")
    if expect is not None and link.peer_id != expect:
        raise PeerRefused(
            f"node {short(link.peer_id)} answers at {address}, where node {short(expect)} was expected: "
            "the address is out of date, or something in between answers in its place"
        )
    try:
        check_not_revoked(identity, link.peer_id)
        link.opens_at_welcome = True
        link.send(hello)
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            frame = await link.first_frame()
        welcome = checked_welcome(frame.message, link.peer_id)
    except PeerRefused as error:
        last_word = link.refusal.error if link.refusal else None
        if last_word is not None and last_word.code == Busy.code:
            raise UnreachableError(f"the daemon at {address} is busy: {last_word.message}") from error
        if last_word is not None:
            raise PeerRefused(
                f"the daemon at {address} refused this node: {last_word.message}", **last_word.facts
            ) from error
        raise PeerRefused(
            f"the daemon at {address} and this node do not work together: {error}", **error.facts
        ) from error
    except PeerLost as error:
        raise PeerRefused(
            f"the daemon at {address} ended the connection without a welcome: "
            f"{alert_reason(link.broken_by) or 'most likely it does not take this machine for a member of its swarm'}. "
            f"This machine is in swarm {short(identity.swarm.swarm_id)}; to join another, run `shardnet join TOKEN`"
        ) from error
    except TimeoutError as error:
        raise UnreachableError(
            f"the daemon at {address} took the connection and did not answer within {GREETING_TIMEOUT_S:g} s"
        ) from error
    link.greeted()
    return Connection(link, identity, welcome)


def _explained(identity: Identity, address: Address, error: BaseException) -> UnreachableError:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
            return PeerRefused(
                f"the certificate of the daemon at {address} has expired: compare the clocks, then renew it"
            )
        return PeerRefused(
            f"the daemon at {address} belongs to another swarm than this machine ({short(identity.swarm.swarm_id)}): "
            "run `shardnet join TOKEN --replace` here with a token from its owner, or correct the address"
        )
    if isinstance(error, ssl.SSLError):
        why = alert_reason(error) or "it does not speak shardnet's TLS 1.3"
        return PeerRefused(f"no link with {address}: {why}; is that the address of a shardnet daemon?")
    if isinstance(error, TimeoutError):
        return UnreachableError(
            f"nothing answered at {address} in time: is that machine up, and does its firewall let the port through?"
        )
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        return UnreachableError(f"{address} ended the connection during the TLS handshake: is it a shardnet daemon?")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return UnreachableError(
        f"nothing listens at {address} ({reason.lower()}): is the daemon running there, and is the address right?"
    )
