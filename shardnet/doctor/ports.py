"""Ports: can a daemon listen where its settings say, and who has the port where it cannot?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psutil

from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.doctor.findings import Finding, Level
from shardnet.errors import ShardnetError
from shardnet.hosts import addresses_of, take_both_families
from shardnet.node.settings import NodeSettings
from shardnet.swarm.addresses import HostPort, open_listening_sockets, parse_host_port, str_of
from shardnet.swarm.home import Home, running

Transport = Literal["TCP", "UDP"]


@dataclass(frozen=True, slots=True)
class PortWanted:
    """A port that a daemon of this machine would listen at.

    Attributes:
        what: what it is for, in words.
        change: what chooses another one.
        address: with port 0 any free one does.
        is_certain: this machine's user asked for it, or has run such a daemon here; else it is the default of a daemon that may never run here.
    """

    what: str
    change: str
    address: HostPort
    transport: Transport = "TCP"
    is_certain: bool = False


@dataclass(frozen=True, slots=True)
class PortFacts:
    """What came of trying.

    Attributes:
        trouble: why nobody can listen there; "" if one can.
        is_taken: another socket has it.
        holder: which program that is, as far as this user may know; `is_ours`: a daemon of this home.
    """

    wanted: PortWanted
    trouble: str = ""
    is_taken: bool = False
    holder: str = ""
    is_ours: bool = False


def port_findings(ports: list[PortFacts]) -> list[Finding]:
    """Decide about ports."""
    found = [_about(facts) for facts in ports if facts.trouble]
    free = [str(facts.wanted.address[1]) for facts in ports if not facts.trouble and facts.wanted.address[1]]
    if free or not ports:
        found.append(Finding("ports", "ok", f"free: {', '.join(free)}" if free else "any free ones will do"))
    return found


def _about(facts: PortFacts) -> Finding:
    wanted = facts.wanted
    where = f"{wanted.transport} port {wanted.address[1]} for {wanted.what}"
    if facts.is_ours:
        return Finding("ports", "ok", f"{where}: a daemon of this home listens there ({facts.holder})")
    level: Level = "fault" if wanted.is_certain else "note"
    another = f"choose another with {wanted.change}"
    if facts.is_taken:
        who = facts.holder or "a program of another user, which only root may name"
        lead = "Stop it, or" if wanted.is_certain else "To run that daemon here, stop it, or"
        return Finding("ports", level, f"{where} is taken by {who}", f"{lead} {another}")
    return Finding(
        "ports",
        level,
        f"nobody can listen at {wanted.transport} {str_of(wanted.address)} for {wanted.what}: {facts.trouble}",
        another.capitalize(),
    )


def node_ports(settings: NodeSettings) -> list[PortWanted]:
    """Returns: what a node with these settings listens at. Raises: UsageError for an address that is none."""
    listen = parse_host_port(settings.node.listen, what="node.listen")
    wanted = [PortWanted("links of other nodes", "node.listen (--listen)", listen)]
    if settings.torrent.enabled:
        host = settings.torrent.listen_host or listen[0]
        wanted.append(PortWanted("transfers of shards", "torrent.listen_port", (host, settings.torrent.listen_port)))
    if settings.dht.enabled:
        host = settings.dht.listen_host or listen[0]
        wanted.append(PortWanted("a node's DHT", "dht.listen_port", (host, settings.dht.listen_port), "UDP"))
    return wanted


def coordinator_ports(settings: CoordinatorSettings) -> list[PortWanted]:
    """Returns: what a coordinator with these settings listens at. Raises: UsageError for an address that is none."""
    listen = settings.listen
    nodes = parse_host_port(listen.nodes, what="listen.nodes")
    wanted = [
        PortWanted("a coordinator's links to nodes", "listen.nodes (--listen)", nodes),
        PortWanted("the HTTP API", "listen.api (--api)", parse_host_port(listen.api, what="listen.api")),
    ]
    if listen.enrol:
        enrol = parse_host_port(listen.enrol, what="listen.enrol")
        wanted.append(PortWanted("machines with a join token", "listen.enrol (--enrol)", enrol))
    if settings.dht.enabled:
        where = (settings.dht.listen_host or nodes[0], settings.dht.listen_port)
        wanted.append(PortWanted("the coordinator's DHT", "dht.listen_port (--dht-port)", where, "UDP"))
    return wanted


def look_at_ports(wanted: list[PortWanted], home: Home) -> list[PortFacts]:
    """Gather: listen at each for an instant. Nobody is answered there."""
    ours = frozenset(running(home).values())
    return [_try(one, ours) for one in wanted]


def _try(wanted: PortWanted, ours: frozenset[int]) -> PortFacts:
    trouble, code = _trouble(_listen_tcp if wanted.transport == "TCP" else _bind_udp, wanted.address)
    if code != errno.EADDRINUSE:
        return PortFacts(wanted, trouble)
    pid, holder = _holder(wanted.address[1], wanted.transport)
    return PortFacts(wanted, trouble, is_taken=True, holder=holder, is_ours=pid in ours)


def _trouble(attempt: Callable[[HostPort], None], address: HostPort) -> tuple[str, int | None]:
    try:
        attempt(address)
    except ShardnetError as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            return (cause.strerror or str(cause)).lower(), cause.errno
        return str(error), None
    except OSError as error:
        return (error.strerror or str(error)).lower(), error.errno
    return "", None


def _listen_tcp(address: HostPort) -> None:
    for one in open_listening_sockets(address):
        one.close()


def _bind_udp(address: HostPort) -> None:
    host = next(iter(addresses_of(address[0])), address[0])
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
        if ":" in host:
            take_both_families(one, host)
        one.bind((host, address[1]))


def _holder(port: int, transport: Transport) -> tuple[int | None, str]:
    """Returns: the process that has a port, and its name; (None, "") where this user may not know."""
    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections(transport.lower()):
            listens = transport == "UDP" or one.status == psutil.CONN_LISTEN
            if one.laddr and one.laddr.port == port and listens and one.pid is not None:
                return one.pid, f"{psutil.Process(one.pid).name()}, process {one.pid}"
    return None, ""


def has_run_a_coordinator(home: Home) -> bool:
    """True if a coordinator has had an identity of this home."""
    return (home.nodes / "coordinator").is_dir() or any(home.nodes.glob(f"*/{home.coordinator.name}"))
