"""Enrolment, the service's side: runs beside the coordinator on the machine that owns the swarm. The exchange is told in `enrol_lines`."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
import time
from types import TracebackType
from typing import Self, cast

from shardnet.errors import PeerRefused, RemoteProtocolError, ShardnetError
from shardnet.ids import short
from shardnet.log import get
from shardnet.messages import Address, ErrorInfo
from shardnet.mutual_tls import modern
from shardnet.swarm import authority
from shardnet.swarm.acceptor import TlsAcceptor
from shardnet.swarm.addresses import HostPort, open_listening_sockets, read_coordinator_addresses
from shardnet.swarm.enrol_lines import (
    MAX_LINE_BYTES,
    Admission,
    Answer,
    Authority,
    Request,
    close_line,
    read_line,
    write_line,
)
from shardnet.swarm.home import Home, read_records, write_records
from shardnet.swarm.identity import Identity, SwarmIdentity, add_member
from shardnet.swarm.naming import names_taken, unique_name
from shardnet.swarm.records import INVITES, MEMBERS, REVOCATIONS, spend

MAX_AT_ONCE = 32

log = get("swarm")


class _Lines(asyncio.StreamReaderProtocol):
    """A stream whose reader can be had."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        self.transport: asyncio.Transport
        super().__init__(self.reader)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        self.transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)


class EnrolmentServer:
    """An asynchronous context manager; `address` is the real one."""

    def __init__(self, home: Home, identity: Identity, address: HostPort) -> None:
        self._home = home
        self._swarm = identity.swarm
        self._wanted = address
        self._acceptor: TlsAcceptor[_Lines]

    @property
    def address(self) -> Address:
        """Where newcomers connect."""
        return self._acceptor.address

    async def __aenter__(self) -> Self:
        """Raises: SettingsError if this home does not own the swarm or the port is taken; UnreachableError for a host that is not here."""
        context = await asyncio.to_thread(_service_context, self._swarm)
        listening = open_listening_sockets(self._wanted)
        self._acceptor = TlsAcceptor(
            listening,
            context,
            _Lines,
            self._serve,
            max_handshakes=MAX_AT_ONCE,
            max_connections=2 * MAX_AT_ONCE,
        )
        self._acceptor.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._acceptor.close()

    async def _serve(self, protocol: _Lines, peer: str) -> None:
        writer = asyncio.StreamWriter(protocol.transport, protocol, protocol.reader, asyncio.get_running_loop())
        try:
            await write_line(writer, Authority(certificate=self._swarm.ca_pem.decode()))
            request = await read_line(protocol.reader, Request)
            try:
                answer = Answer(admission=await asyncio.to_thread(admit, self._swarm, request))
            except ShardnetError as error:
                log.warning("enrolment_refused", peer=peer, name=request.name, reason=str(error))
                answer = Answer(refused=ErrorInfo.of(error))
            await write_line(writer, answer)
        except (ShardnetError, OSError, TimeoutError) as error:
            log.warning("enrolment_refused", peer=peer, reason=str(error) or "it did not finish in time")
        finally:
            await close_line(writer)
            self._acceptor.link_closed()


def admit(swarm: SwarmIdentity, request: Request, *, now_s: float | None = None) -> Admission:
    """Spend the invitation, then issue. Reads and writes files under the home's lock: of two who hold the same token, one is let in.

    Raises: PeerRefused for an unknown, expired or used token and for a revoked key; RemoteProtocolError for a bad request.
    """
    now_s = time.time() if now_s is None else now_s
    home = swarm.home
    public = authority.key_of_request(request.request)
    node_id = authority.id_of(public)
    try:
        secret = base64.b64decode(request.secret, validate=True)
    except ValueError:
        raise RemoteProtocolError("the join token's secret is malformed") from None
    with home.locked():
        if node_id in read_records(home.revoked, REVOCATIONS, {}):
            raise PeerRefused(
                f"the key of node {short(node_id)} was revoked: join with another --name, which makes a new key"
            )
        invites = spend(read_records(home.invites, INVITES, {}), secret, node_id, now_s)
        # On disk before the certificate exists: whatever happens next, nobody else can use the token.
        write_records(home.invites, INVITES, invites)
        certificate = authority.issue(swarm.ca_key(), swarm.ca, public)
        members, revoked = read_records(home.members, MEMBERS, {}), read_records(home.revoked, REVOCATIONS, {})
        name = unique_name(request.name, names_taken(members, revoked, now_s, but=node_id))
        add_member(home, node_id, name, "invited", certificate)
    log.info("member_enrolled", name=name, node_id=short(node_id))
    nodes = read_coordinator_addresses(home).nodes
    return Admission(
        certificate=authority.to_pem(certificate).decode(),
        swarm_key=base64.b64encode(swarm.swarm_key).decode(),
        nodes_port=nodes.port if nodes else None,
        name=name if name != request.name else None,
    )


def _service_context(swarm: SwarmIdentity) -> ssl.SSLContext:
    key = authority.new_key()
    certificate = authority.issue(swarm.ca_key(), swarm.ca, key.public_key(), unit=authority.ENROLMENT_UNIT)
    context = modern(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    # ssl reads keys from files only; this one is its owner's alone, and gone at once.
    with tempfile.NamedTemporaryFile(dir=swarm.home.swarm, prefix=".enrol-") as file:
        file.write(authority.key_to_pem(key) + authority.to_pem(certificate))
        file.flush()
        context.load_cert_chain(file.name)
    return context
