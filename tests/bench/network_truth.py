"""What happens when the network changes under a swarm: machines as network namespaces, and for each fault the seconds until all is well again.

python -m tests.bench.network_truth [SCENARIO ...] [--list] [--verbose]

Needs root, ip(8), and nft(8) for the address translation. Prints a Markdown table: the fault, seconds from it (or from its end, where it has one)
until the swarm answers over direct links as before, and what `status` and the logs said. Every answer is compared with the one before the fault.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shardnet.cli.status import lines as status_lines
from shardnet.local.processes import LocalSwarm
from tests.support.namespaces import Lan, Machine, lan
from tests.support.random_models import tiny_llama
from tests.support.two_nodes import Halves, complete, halve, tiny_halves

PROMPT = "hello"
LONG = 1500
LIMIT_S = 120.0
RATE = 2 << 20
"""Bytes a second that who fetches takes."""
SHARD_BYTES = 16_000_000
"""Of a half of the bigger model, about."""
TOLD = {
    "node_moved",
    "node_not_dialable",
    "node_disconnected",
    "node_not_joined",
    "node_joined",
    "node_shares_nothing",
    "peer_lost",
    "peer_joined",
    "link_evicted",
    "link_unreachable",
    "link_refused",
    "shard_comes_by_relay",
}


@dataclass
class World:
    """A coordinator on this machine and nodes on others, a half of a model on each of two."""

    net: Lan
    folder: Path
    halves: Halves
    swarm: LocalSwarm
    verbose: bool
    machines: list[Machine] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    since: int = 0

    def hear(self, name: str, line: str) -> None:
        """Keep what a daemon logged of the network."""
        try:
            fact = json.loads(line)
        except ValueError:
            return
        if self.verbose:
            print(f"    {time.monotonic():9.2f} {name}: {line[:300]}", flush=True)
        if fact.get("event") in TOLD:
            self.told.append(f"{name}: {fact['event']} {fact.get('reason', '') or fact.get('now', '')}".strip())

    def start(
        self,
        listen: str = "0.0.0.0:0",
        *,
        host: str = "",
        ipv6: bool = False,
        dht: bool = True,
        copies: int = 1,
        coordinator: str = "",
    ) -> None:
        """Coordinator, two nodes on two machines, and wait until all is well."""
        here = host or self.net.host
        shown = f"[{here}]" if ":" in here else here
        self.halves.start_coordinator(self.swarm, "--listen", coordinator or f"{shown}:0", "--copies", str(copies))
        for index in range(2):
            machine = self.net.add(index + 2, ipv6=ipv6)
            self.machines.append(machine)
            self.start_node(index, machine, listen, shown, dht=dht)
        self.wait(self.is_well, "the swarm")

    def start_node(self, index: int, machine: Machine, listen: str, host: str, *, dht: bool = True) -> None:
        """Start `node-INDEX` there."""
        self.halves.start_node(
            self.swarm,
            index,
            *("--coordinator", f"{host}:{self.swarm.listen_port}", "--listen", listen),
            env={"SHARDNET_DHT__ENABLED": str(dht).lower()},
            prefix=machine.prefix,
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.swarm.get("/status")
        return found

    def is_well(self) -> bool:
        """True if every node is known where it is, the model is served, and every stage is dialled."""
        found = self.status()
        there = {node["name"]: (node["address"] or "").rpartition(":")[0].strip("[]") for node in found["nodes"]}
        stages = [stage for model in found["models"] for pipeline in model["pipelines"] for stage in pipeline]
        return (
            all(there.get(f"node-{index}") == machine.address for index, machine in enumerate(self.machines[:2]))
            and bool(found["models"])
            and found["models"][0]["ready"]
            and not any(stage["relayed"] for stage in stages)
        )

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = LIMIT_S) -> float:
        """Returns: seconds until `condition` held."""
        began_s = time.monotonic()
        self.swarm.wait_for(condition, timeout_s, what)
        return time.monotonic() - began_s

    def answer(self, max_tokens: int = 16) -> list[int]:
        """Returns: the tokens of an answer."""
        found: list[int] = complete(self.swarm, PROMPT, max_tokens=max_tokens)["choices"][0]["token_ids"]
        return found

    def well_again(self, before: list[int]) -> float:
        """Returns: seconds until all is well, with the answer that was given before the fault."""
        began_s = time.monotonic()
        self.wait(self.is_well, "all to be well again")
        assert self.answer() == before, "another answer than before"
        return time.monotonic() - began_s

    def warnings(self) -> str:
        """Returns: what `status` says of how nodes are reached."""
        found = [f"{node['name']}: {one}" for node in self.status()["nodes"] for one in node["reach"]]
        return "; ".join(found) or "nothing"


Scenario = Callable[[World], list[tuple[str, str]]]
"""Returns rows: what was done, and what came."""
SCENARIOS: dict[str, Scenario] = {}


def scenario(run: Scenario) -> Scenario:
    """Make a function a scenario of its name."""
    SCENARIOS[run.__name__.replace("_", "-")] = run
    return run


@scenario
def moved_idle(world: World) -> list[tuple[str, str]]:
    """A node's only address changes while nothing is asked."""
    world.start()
    before = world.answer()
    world.machines[1].move(f"{world.net.subnet}.30")
    return [("address changed, idle", f"{world.well_again(before):.1f} s")]


@scenario
def moved_in_an_answer(world: World) -> list[tuple[str, str]]:
    """The same of either stage in the middle of an answer."""
    world.start()
    rows = []
    whole = world.answer(LONG)
    alone_s = _timed(lambda: world.answer(LONG))
    for index, place in ((1, "last"), (0, "first")):
        mover = threading.Timer(alone_s / 3, world.machines[index].move, [f"{world.net.subnet}.{40 + index}"])
        mover.start()
        took_s = _timed(lambda: _same(world.answer(LONG), whole))
        mover.join()
        rows.append(
            (
                f"address of the {place} stage changed, in an answer",
                f"the same answer, {took_s - alone_s:.1f} s later than its {alone_s:.1f} s",
            )
        )
    return rows


@scenario
def moved_in_a_fetch(world: World) -> list[tuple[str, str]]:
    """The holder's address changes in the middle of a download, then the fetcher's."""
    world.halves = _bigger(world.folder)
    rows = []
    world.start(copies=9)
    for number, who in enumerate(("holder", "fetcher")):
        fetcher = world.net.add(10 + number)
        name, done = f"node-{10 + number}", _Loading(world)
        _start_empty(world, name, fetcher)
        done.wait_for(name, partial(_beyond, 1 << 20))
        mover = world.machines[1] if who == "holder" else fetcher
        left_bytes = SHARD_BYTES - done.bytes_of(name)
        mover.move(f"{world.net.subnet}.{50 + number}")
        took_s = world.wait(partial(_holds, world, name), "the shard", 120)
        late_s = took_s - left_bytes / RATE
        rows.append((f"address of the {who} changed, in a fetch", f"whole {late_s:.1f} s later than at its rate"))
    return rows


@scenario
def coordinator_moved(world: World) -> list[tuple[str, str]]:
    """The coordinator's only address changes while nothing is asked, then in the middle of an answer. Nodes were told the first one."""
    world.start(coordinator="0.0.0.0:0")
    rows = []
    before = world.answer()
    began_s = time.monotonic()
    world.net.move_host(70)
    world.wait(lambda: not world.is_well(), "the links to be lost")
    world.well_again(before)
    rows.append(("address of the coordinator changed, idle", f"{time.monotonic() - began_s:.1f} s"))
    whole = world.answer(LONG)
    alone_s = _timed(lambda: world.answer(LONG))
    mover = threading.Timer(alone_s / 3, world.net.move_host, [71])
    mover.start()
    took_s = _timed(lambda: _same(world.answer(LONG), whole))
    mover.join()
    rows.append(("in an answer", f"the same answer, {took_s - alone_s:.1f} s later than its {alone_s:.1f} s"))
    return rows


def _down(seconds: float) -> Scenario:
    def down(world: World) -> list[tuple[str, str]]:
        world.start()
        before = world.answer()
        world.machines[1].cut()
        time.sleep(seconds)
        said = world.warnings()
        world.machines[1].mend()
        return [(f"network down for {seconds:g} s", f"{world.well_again(before):.1f} s (status meanwhile: {said})")]

    return down


for _seconds in (3, 40, 150):
    SCENARIOS[f"down-{_seconds}"] = _down(_seconds)


@scenario
def down_in_an_answer(world: World) -> list[tuple[str, str]]:
    """Ten seconds without a network in the middle of an answer."""
    world.start()
    whole = world.answer(LONG)
    alone_s = _timed(lambda: world.answer(LONG))
    cut = threading.Timer(alone_s / 3, world.machines[1].cut)
    mend = threading.Timer(alone_s / 3 + 10, world.machines[1].mend)
    cut.start()
    mend.start()
    took_s = _timed(lambda: _same(world.answer(LONG), whole))
    mend.join()
    return [("network down for 10 s, in an answer", f"the same answer, {took_s - alone_s:.1f} s later")]


@scenario
def translated(world: World) -> list[tuple[str, str]]:
    """A holder behind destination NAT, which advertises the router's address, with the DHT on."""
    rows = []
    world.halves = _bigger(world.folder)
    world.start(copies=9)
    router = world.net.add(20)
    inner = _behind(world, router)
    _start_whole(world, "node-20", inner, advertise=f"{router.address}:7710")
    world.wait(lambda: _has(world, "node-20"), "the node behind the router")
    for process in ("node-0", "node-1"):
        world.swarm.processes.pop(process).kill()
    fetcher = world.net.add(21)
    _start_empty(world, "node-21", fetcher)
    seconds = world.wait(lambda: _holds(world, "node-21"), "the shard from behind the router", 60)
    node = next(node for node in world.status()["nodes"] if node["name"] == "node-20")
    rows.append(
        (
            "holder behind DNAT, `advertise`, DHT on",
            f"shard fetched directly {seconds:.1f} s after the fetcher's start; known at {node['address']}; status: {world.warnings()}",
        )
    )
    return rows


@scenario
def named(world: World) -> list[tuple[str, str]]:
    """A host name as `advertise`, which then means another address."""
    world.start()
    before = world.answer()
    machine = world.net.add(22)
    etc = Path("/etc/netns") / machine.name
    etc.mkdir(parents=True)
    try:
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} node.example\n")
        world.swarm.processes.pop("node-1").kill()
        world.wait(lambda: not _has(world, "node-1"), "the first one to be gone")
        world.machines[1] = machine
        own = world.folder / "node-1"
        arguments = ("--coordinator", f"{world.net.host}:{world.swarm.listen_port}", "--listen", "0.0.0.0:7711")
        world.swarm.start_node(
            "node-1",
            own,
            *("--shard", "tiny:1", "--threads", "1", *arguments),
            env={"SHARDNET_NODE__ADVERTISE": "node.example:7711"},
            prefix=machine.prefix,
        )
        rows = [
            ("host name as `advertise`", f"well {world.well_again(before):.1f} s after its start, known by its address")
        ]
        machine.move(f"{world.net.subnet}.60")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} node.example\n")
        rows.append(("the name means another address", f"{world.well_again(before):.1f} s (looked up every 10 s)"))
    finally:
        shutil.rmtree(etc)
    return rows


@scenario
def ipv6_only(world: World) -> list[tuple[str, str]]:
    """No IPv4 but loopback on any machine of the swarm."""
    began_s = time.monotonic()
    world.start("[::]:0", host=world.net.host6, ipv6=True)
    return [("IPv6 only", f"well {time.monotonic() - began_s:.1f} s after the start; status: {world.warnings()}")]


@scenario
def both_families(world: World) -> list[tuple[str, str]]:
    """`[::]` at the coordinator and a node; one node has IPv4 only, the other IPv6 only."""
    world.halves.start_coordinator(world.swarm, "--listen", "[::]:0")
    for index, (ipv6, host) in enumerate(((False, world.net.host), (True, f"[{world.net.host6}]"))):
        machine = world.net.add(index + 2, ipv6=ipv6)
        world.machines.append(machine)
        world.start_node(index, machine, "[::]:0", host)
    world.swarm.wait_ready(60)
    world.wait(lambda: bool(world.answer()), "an answer")
    time.sleep(8)  # the links are measured
    return [("`[::]` with an IPv4 and an IPv6 node", f"served; status: {world.warnings()}")]


@scenario
def copied(world: World) -> list[tuple[str, str]]:
    """A second node from a copy of the first one's home."""
    world.start()
    before = world.answer()
    home = world.folder / "copied-home"
    shutil.copytree(world.swarm.home, home, ignore=shutil.ignore_patterns("*.sock"))
    machine = world.net.add(23)
    own = world.folder / "node-1-copy"
    shutil.copytree(world.folder / "node-1", own)
    copy = world.swarm.start_node(
        "node-1",
        own,
        *("--coordinator", f"{world.net.host}:{world.swarm.listen_port}", "--listen", "0.0.0.0:0"),
        env={"SHARDNET_HOME": str(home)},
        prefix=machine.prefix,
    )
    time.sleep(20)
    said = [json.loads(line) for line in copy.tail if line.startswith("{")]
    events = [fact["event"] for fact in said]
    reason = next((fact["reason"] for fact in said if fact["event"] == "node_not_joined"), "nothing")
    assert "torrent_seeding" not in events, "the copy seeds"
    assert "dht_announced" not in events, "the copy announces"
    assert world.answer() == before
    return [("copied identity", f"refused, seeds and announces nothing; it says: {reason}")]


@scenario
def one_way(world: World) -> list[tuple[str, str]]:
    """Nobody can dial the only holder, which can dial the others: nothing but the torrent goes through the coordinator."""
    world.halves = _bigger(world.folder)
    world.start(copies=9)
    router = world.net.add(26)
    _start_whole(world, "node-26", _behind(world, router, forward=False))
    world.wait(partial(_has, world, "node-26"), "the node behind the router")
    for process in ("node-0", "node-1"):
        world.swarm.processes.pop(process).kill()
    _start_empty(world, "node-27", world.net.add(27))
    seconds = world.wait(partial(_holds, world, "node-27"), "the shard from the holder that dials", 90)
    time.sleep(8)  # the links are measured
    through = world.status()["requests"]["relayed_weight_bytes"]
    came = f"shard there {seconds:.1f} s after the fetcher's start, {through} bytes of it through the coordinator; status: {world.warnings()}"
    return [("holder can dial, and not be dialled", came)]


@scenario
def undialable(world: World) -> list[tuple[str, str]]:
    """Nobody can dial the only holder: its weights and its steps go through the coordinator."""
    world.halves = _bigger(world.folder)
    world.start(copies=9)
    router = world.net.add(24)
    inner = _behind(world, router, forward=False)
    _start_whole(world, "node-24", inner)
    world.wait(lambda: _has(world, "node-24"), "the node behind the router")
    for process in ("node-0", "node-1"):
        world.swarm.processes.pop(process).kill()
    router2 = world.net.add(25)
    inner2 = _behind(world, router2, forward=False)
    _start_empty(world, "node-25", inner2)
    seconds = world.wait(lambda: _holds(world, "node-25"), "the shard through the coordinator", 90)
    time.sleep(8)  # the links are measured
    return [
        (
            "neither node can be dialled",
            f"shard there {seconds:.1f} s after the fetcher's start; status: {world.warnings()}",
        )
    ]


# -- parts ------------------------------------------------------------------------------------------------------------------


class _Loading:
    """How far a node is with what it fetches."""

    def __init__(self, world: World) -> None:
        self._world = world

    def bytes_of(self, name: str) -> int:
        return self._seen(name) or 0

    def _seen(self, name: str) -> int | None:
        if _holds(self._world, name):
            return None
        for node in self._world.status()["nodes"]:
            if node["name"] == name and node["loading"]:
                found: int = node["loading"][0]["done_bytes"]
                return found
        return 0

    def wait_for(self, name: str, is_far: Callable[[int], bool]) -> None:
        def far() -> bool:
            seen = self._seen(name)
            return seen is None or is_far(seen)

        self._world.wait(far, "bytes of a shard")


def _beyond(least: int, seen: int) -> bool:
    return seen > least


def _holds(world: World, name: str) -> bool:
    return any(
        node["name"] == name and any(one["loaded"] or one["progress"] in (None, 1.0) for one in node["held"])
        for node in world.status()["nodes"]
    )


def _has(world: World, name: str) -> bool:
    return any(node["name"] == name for node in world.status()["nodes"])


def _bigger(folder: Path) -> Halves:
    """About 30 MB, so that a transfer takes a while."""
    return halve(tiny_llama(folder / "big.gguf", n_embd=512, n_heads=8, n_kv_heads=8), "tiny", folder / "big-cache")


def _start_empty(world: World, name: str, machine: Machine) -> None:
    """A node that wants shard 1 and has nothing."""
    world.swarm.start_node(
        name,
        world.folder / name,
        *("--coordinator", f"{world.net.host}:{world.swarm.listen_port}", "--listen", "0.0.0.0:0"),
        *("--shard", "tiny:1", "--threads", "1"),
        env={"SHARDNET_TORRENT__DOWNLOAD_LIMIT_BYTES_PER_S": str(RATE)},
        prefix=machine.prefix,
    )


def _start_whole(world: World, name: str, machine: Machine, advertise: str = "") -> None:
    """A node that has shard 1 and is bound to it."""
    own = world.folder / name
    shutil.copytree(world.folder / "node-1", own)
    env = {"SHARDNET_TORRENT__LISTEN_PORT": "6881"} | ({"SHARDNET_NODE__ADVERTISE": advertise} if advertise else {})
    world.swarm.start_node(
        name,
        own,
        *("--coordinator", f"{world.net.host}:{world.swarm.listen_port}", "--listen", "0.0.0.0:7710"),
        *("--shard", "tiny:1", "--threads", "1"),
        env=env,
        prefix=machine.prefix,
    )


def _behind(world: World, router: Machine, *, forward: bool = True) -> Machine:
    """A machine in a network of its own behind a router, which lets it out, and lets in what comes to its ports 7710 and 6881."""
    number = router.address.rpartition(".")[2]
    inner = world.net.add_behind(router, f"192.168.{number}")
    chains = ["chain leaving { type nat hook postrouting priority 100; oifname eth0 masquerade; }"]
    if forward:
        to = f"iifname eth0 tcp dport {{ 7710, 6881 }} dnat to {inner.address};"
        chains.append(f"chain entering {{ type nat hook prerouting priority -100; {to} }}")
    router.nft("\n".join(["table ip nat {", *chains, "}\n"]))
    return inner


def _timed(work: Callable[[], object]) -> float:
    began_s = time.monotonic()
    work()
    return time.monotonic() - began_s


def _same(found: list[int], wanted: list[int]) -> None:
    assert found == wanted, "another answer than before"


@contextmanager
def world_for(verbose: bool) -> Iterator[World]:
    """A fresh network, a fresh home."""
    with tempfile.TemporaryDirectory() as name, lan() as net:
        folder = Path(name)
        heard: list[World] = []
        with LocalSwarm(folder, lambda who, line: heard[0].hear(who, line), log_format="json") as swarm:
            heard.append(World(net, folder, tiny_halves(folder), swarm, verbose))
            yield heard[0]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="all, if none is named")
    parser.add_argument("--list", action="store_true", help="name them")
    parser.add_argument("--verbose", action="store_true", help="every log line")
    arguments = parser.parse_args()
    if arguments.list:
        print(*SCENARIOS, sep="\n")
        return
    print("| fault | until all was well | logged |\n|---|---|---|", flush=True)
    for name in arguments.scenarios or SCENARIOS:
        with world_for(arguments.verbose) as world:
            try:
                rows = SCENARIOS[name](world)
            except Exception as error:  # one that fails is a row too, and the others follow
                rows = [(name, f"**{type(error).__name__}: {error}**")]
                if arguments.verbose:
                    print(*status_lines(world.status()), sep="\n")
            said = "; ".join(dict.fromkeys(world.told))
            for what, came in rows:
                print(f"| {what} | {came} | {said[:600]} |", flush=True)


if __name__ == "__main__":
    main()
