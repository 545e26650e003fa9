"""All checks, side by side, each within its time: one that hangs on a disk or a name server holds up none of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from shardnet.coordinator.api.client import find_api
from shardnet.doctor import cache, engine, machine, membership, network, ports, software, swarm
from shardnet.doctor.findings import Finding, few
from shardnet.doctor.subject import Subject
from shardnet.errors import DeadlineExceeded, ShardnetError
from shardnet.swarm import authority
from shardnet.swarm.addresses import is_loopback, parse_address, parse_host_port, read_coordinator_addresses
from shardnet.swarm.home import Home, read_private, running
from shardnet.swarm.whereabouts import advertised_address

LIMIT_S = 4.0
"""For every check; they begin together."""
LONGER_S = {"llama.cpp": 16.0}
"""For loading a library of 100 MB and the drivers of GPUs, on a busy machine."""

AGAIN = "Run it again when this machine has less to do; if that does not help, what it asks hangs"

Check = Callable[[Subject], list[Finding]]


def examine(subject: Subject, limit_s: float = LIMIT_S) -> list[Finding]:
    """Returns: what all checks found, in their order. Each may take `limit_s`, or what `LONGER_S` says."""
    results: dict[str, list[Finding]] = {}
    threads = {}
    for name, check in CHECKS.items():
        # A daemon thread: one that never comes back does not keep the process.
        thread = threading.Thread(target=_carry_out, args=(name, check, subject, results), daemon=True)
        thread.start()
        threads[name] = thread
    began_s = time.monotonic()
    found = []
    for name, thread in threads.items():
        most_s = max(limit_s, LONGER_S.get(name, 0.0))
        thread.join(max(0.0, began_s + most_s - time.monotonic()))
        late = Finding(name, "warning", f"it could not be looked at within {most_s:g} s", AGAIN)
        found += few(results.get(name, [late]))
    return found


def _carry_out(name: str, check: Check, subject: Subject, results: dict[str, list[Finding]]) -> None:
    try:
        results[name] = check(subject)
    except DeadlineExceeded as error:
        results[name] = [Finding(name, "warning", str(error), AGAIN)]
    except ShardnetError as error:
        results[name] = [Finding(name, "fault", str(error))]
    except OSError as error:
        results[name] = [Finding(name, "fault", f"it could not be looked at: {error}")]
    except Exception as error:  # whatever it is, the other checks are told, and no traceback in place of them
        results[name] = [
            Finding(
                name,
                "warning",
                f"it could not be looked at: {type(error).__name__}: {error}",
                "That is a fault of shardnet: please report it",
            )
        ]


# -- the checks ----------------------------------------------------------------------------------------------------------


def _home(subject: Subject) -> list[Finding]:
    return membership.home_findings(membership.look_at_home(subject.home))


def _certificates(subject: Subject) -> list[Finding]:
    found = membership.look_at_certificates(subject.home)
    return membership.certificate_findings(found, time.time(), is_owner=subject.home.is_owner)


def _swarm_and_clock(subject: Subject) -> list[Finding]:
    known, given = read_coordinator_addresses(subject.home), subject.node.node.coordinator
    door = parse_address(given, what="node.coordinator") if given else known.nodes
    facts = swarm.look_at_swarm(
        find_api(subject.api),
        is_expected=subject.api is not None or known.api is not None,
        door=door,
        running=_running_nodes(subject.home),
    )
    clock = membership.look_at_clock(subject.home, swarm.coordinator_clock_s(facts), subject.node.dht.max_clock_skew_s)
    if facts.here_s:
        clock = membership.ClockFacts(facts.here_s, clock.written_s, clock.coordinator_s, clock.dht_skew_s)
    return [*membership.clock_findings(clock), *swarm.swarm_findings(facts)]


def _running_nodes(home: Home) -> dict[str, str]:
    """Returns: node id -> name of the nodes that run with identities of this home; coordinators are none."""
    found = {}
    for name in running(home):
        folder = home.nodes / name
        if not (folder / home.coordinator.name).exists():
            with suppress(ShardnetError):  # the check of the home tells of it
                key = authority.parse_key(read_private(folder / "key.pem"), source=str(folder))
                found[authority.id_of(key.public_key())] = name
    return found


def _ports(subject: Subject) -> list[Finding]:
    known = read_coordinator_addresses(subject.home)
    used = {one.port for one in (known.nodes, known.enrol, known.api, known.dht) if one is not None}
    has_run = ports.has_run_a_coordinator(subject.home)
    wanted = [
        *(
            replace(one, is_certain=subject.of_coordinator or (has_run and one.address[1] in used))
            for one in ports.coordinator_ports(subject.coordinator)
        ),
        *(replace(one, is_certain=subject.of_node) for one in ports.node_ports(subject.node)),
    ]
    return ports.port_findings(ports.look_at_ports(wanted, subject.home))


def _address(subject: Subject) -> list[Finding]:
    node = subject.node.node
    known = (
        parse_address(node.coordinator, what="node.coordinator")
        if node.coordinator
        else read_coordinator_addresses(subject.home).nodes
    )
    advertised = advertised_address(node.advertise) if node.advertise else None
    listen = parse_host_port(node.listen, what="node.listen")
    daemons = [network.look_at_address("a node", listen, advertised, known.host if known else None, "node.advertise")]
    if subject.of_coordinator or ports.has_run_a_coordinator(subject.home):
        where = subject.coordinator.listen
        named = advertised_address(where.advertise, "listen.advertise") if where.advertise else None
        listen = parse_host_port(where.nodes, what="listen.nodes")
        daemons.append(network.look_at_address("the coordinator", listen, named, None, "listen.advertise"))
    return network.address_findings(daemons)


def _families(subject: Subject) -> list[Finding]:
    listens = [parse_host_port(subject.node.node.listen)[0]]
    if subject.of_coordinator:
        listens.append(parse_host_port(subject.coordinator.listen.nodes)[0])
    return network.family_findings(network.look_at_families(tuple(listens)))


def _proxies(subject: Subject) -> list[Finding]:
    host = find_api(subject.api).partition("://")[2].partition("/")[0].rpartition(":")[0] or "127.0.0.1"
    if not is_loopback(host.strip("[]")):
        return [Finding("proxies", "ok", "the API is on another machine")]
    return network.proxy_findings(network.look_at_proxies(), host)


def _disk(subject: Subject) -> list[Finding]:
    keep = subject.node.torrent.keep_free_bytes
    return [one for path in subject.caches for one in cache.disk_findings(cache.look_at_disk(path, keep))]


def _cache(subject: Subject) -> list[Finding]:
    return [one for path in subject.caches for one in cache.cache_findings(cache.look_at_cache(path, subject.home))]


CHECKS: dict[str, Check] = {
    "home": _home,
    "certificates": _certificates,
    "ports": _ports,
    "address": _address,
    "families": _families,
    "proxies": _proxies,
    "memory": lambda subject: machine.look_at_memory(subject.node),
    "threads": lambda subject: machine.look_at_threads(subject.node),
    "open files": lambda subject: machine.look_at_files(subject.node),
    "temporary folder": lambda _subject: machine.temp_findings(machine.look_at_temp()),
    "disk": _disk,
    "models cache": _cache,
    "llama.cpp": lambda _subject: engine.engine_findings(engine.look_at_engine()),
    "packages": lambda _subject: software.look_at_packages(),
    "swarm": _swarm_and_clock,
}
"""In the order in which they are told."""
