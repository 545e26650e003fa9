"""Names, addresses, both families and proxies: would others find this machine, and do its own programs find the API?"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from shardnet.doctor.findings import Finding
from shardnet.hosts import addresses_of, is_ours, own_address
from shardnet.messages import Address
from shardnet.swarm.addresses import HostPort, is_loopback
from shardnet.swarm.whereabouts import Place, reach_of


@dataclass(frozen=True, slots=True)
class AddressFacts:
    """Where others would reach a daemon of this machine.

    Attributes:
        what: the daemon, in words.
        tells: the address that it would tell; "" if none. `trouble`: as it would say it itself.
        advertised: the name that its settings give, and where; None: they give none.
        is_here: `tells` is an address of this machine.
        is_private: nobody else is to reach it.
    """

    what: str
    tells: str
    trouble: str = ""
    advertised: str | None = None
    is_here: bool = True
    is_private: bool = False


def address_findings(daemons: list[AddressFacts]) -> list[Finding]:
    """Decide about addresses."""
    return [_about(facts) for facts in daemons]


def _about(facts: AddressFacts) -> Finding:
    if facts.trouble:
        return Finding("address", "warning", f"{facts.what}: {facts.trouble}")
    if facts.advertised and not facts.is_here:
        return Finding(
            "address",
            "note",
            f"{facts.what} tells others {facts.tells} ({facts.advertised}), which is no address of this machine",
            "That is right behind port forwarding; else correct it",
        )
    if facts.is_private:
        return Finding("address", "ok", f"{facts.what} is reached from this machine alone, at {facts.tells}")
    return Finding("address", "ok", f"{facts.what} tells others {facts.tells}")


def look_at_address(
    what: str, listen: HostPort, advertised: Address | None, coordinator: str | None, setting: str
) -> AddressFacts:
    """Gather, as the daemon does when it begins. Blocks for as long as a name server takes."""
    resolved = tuple(addresses_of(advertised.host)) if advertised is not None else ()
    hosts = addresses_of(listen[0])
    if not hosts:
        return AddressFacts(
            what, "", f"it is to listen at {listen[0]}, a name that nothing here can resolve: correct {setting}"
        )
    if coordinator is not None:
        coordinator = next(iter(addresses_of(coordinator)), None)
    listening = Address(host=hosts[0], port=listen[1] or 1)  # any port: only the host is looked at
    reach = reach_of(Place(listening, advertised, resolved, coordinator, setting))
    told = reach.listen
    port = f":{told.port}" if told is not None and (advertised is not None or listen[1]) else ""
    return AddressFacts(
        what,
        f"{told.host}{port}" if told is not None else "",
        reach.trouble.replace(f"{listening}", f"{listen[0]}") if not listen[1] else reach.trouble,
        f"{setting} = {advertised}" if advertised is not None else None,
        is_here=told is None or is_ours((told.host,)),
        is_private=told is not None and is_loopback(told.host),
    )


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """What this machine has of both families of IP addresses.

    Attributes:
        has_ipv6: a socket can be made at `::1`.
        own_ipv4, own_ipv6: the address by which it would reach far places; None: it would not.
        listens: what its settings name.
    """

    has_ipv6: bool
    own_ipv4: str | None = None
    own_ipv6: str | None = None
    listens: tuple[str, ...] = ()


def family_findings(facts: FamilyFacts) -> list[Finding]:
    """Decide about IPv4 and IPv6."""
    named = [one for one in facts.listens if ":" in one]
    if named and not facts.has_ipv6:
        return [
            Finding(
                "families",
                "fault",
                f"a daemon is to listen at [{named[0]}], and IPv6 is off on this machine",
                "Listen at 0.0.0.0, or turn IPv6 on",
            )
        ]
    own = [one for one in (facts.own_ipv4, facts.own_ipv6) if one]
    if not own:
        return [Finding("families", "note", "this machine has no way to any other: only daemons on it can meet")]
    if not facts.has_ipv6:
        return [Finding("families", "ok", f"IPv4 only ({own[0]}): `[::]` cannot be listened at, 0.0.0.0 can")]
    return [Finding("families", "ok", f"this machine reaches others from {' and '.join(own)}")]


def look_at_families(listens: tuple[str, ...]) -> FamilyFacts:
    """Gather. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
        has_ipv6 = True
    except OSError:
        has_ipv6 = False
    far = own_address()
    own_ipv4 = far if far and ":" not in far else None
    own_ipv6 = own_address("2001:db8::1") if has_ipv6 else None
    return FamilyFacts(has_ipv6, own_ipv4, own_ipv6, listens)


def proxy_findings(environ: Mapping[str, str], api_host: str) -> list[Finding]:
    """Decide about proxies that programs on this machine would use for the API. shardnet's own commands use none for it."""
    proxies = {scheme: url for scheme, url in _proxies(environ).items() if scheme in ("http", "all") and url}
    if not proxies:
        return [Finding("proxies", "ok", "no proxy stands between programs here and the API")]
    names = ",".join(dict.fromkeys((api_host, "localhost", "127.0.0.1")))
    if proxy_bypass_environment(api_host, _proxies(environ)):
        return [Finding("proxies", "ok", f"a proxy is set, and not for {api_host}")]
    return [
        Finding(
            "proxies",
            "warning",
            f"a proxy is set for HTTP, and NO_PROXY does not name {api_host}: curl and OpenAI clients here would ask the proxy for the API",
            f"Run `export NO_PROXY={names}` where they run",
        )
    ]


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """As `urllib.request.getproxies_environment`, of a given environment: lower case counts first."""
    found: dict[str, str] = {}
    for lower in (False, True):
        for name, value in environ.items():
            if name.lower().endswith("_proxy") and (name == name.lower()) == lower:
                found[name.lower().removesuffix("_proxy")] = value
    return found


def look_at_proxies() -> Mapping[str, str]:
    """Gather."""
    return dict(os.environ)
