"""The one address that a daemon tells others, by where it listens, what its user says, and where its coordinator is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shardnet.messages import Address
from shardnet.swarm import whereabouts
from shardnet.swarm.whereabouts import Place, Whereabouts, reach_of

LAN, LAN6, FAR = "198.51.100.7", "2001:db8::7", "203.0.113.1"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one address of each family."""

    def own_address(toward: str | None = None, *, ipv6: bool = True) -> str | None:
        if toward is not None and ":" in toward:
            return LAN6 if ipv6 else None
        return LAN

    monkeypatch.setattr(whereabouts, "own_address", own_address)
    monkeypatch.setattr(whereabouts, "is_ours", lambda where: where[0] in (LAN, LAN6, "127.0.0.1", "::1"))


def at(host: str, port: int = 7710) -> Address:
    return Address(host=host, port=port)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (Place(at("0.0.0.0")), at(LAN)),
        (Place(at("0.0.0.0"), coordinator="127.0.0.1"), at(LAN)),
        (Place(at("0.0.0.0"), coordinator=FAR), at(LAN)),
        (Place(at("::"), coordinator="2001:db8::1"), at(LAN6)),
        (Place(at("::"), coordinator=FAR), at(LAN)),
        (Place(at("0.0.0.0"), coordinator="2001:db8::1"), at(LAN)),
        (Place(at(LAN), coordinator=FAR), at(LAN)),
        (Place(at("127.0.0.1"), coordinator="127.0.0.1"), at("127.0.0.1")),
        (Place(at("127.0.0.1")), at("127.0.0.1")),
        (Place(at("10.0.0.5"), at("gate.example", 99), (FAR,)), at(FAR, 99)),
        (Place(at("0.0.0.0"), at("gate.example", 99), ("2001:db8::9", FAR)), at(FAR, 99)),
        (Place(at("::"), at("gate.example", 99), ("2001:db8::9", FAR)), at("2001:db8::9", 99)),
        (Place(at("127.0.0.1"), at("127.0.0.1", 99), ("127.0.0.1",)), at("127.0.0.1", 99)),
    ],
)
def test_one_ip_address_is_told_to_everybody(place: Place, told: Address) -> None:
    reach = reach_of(place)
    assert (reach.listen, reach.trouble) == (told, "")


def test_a_machines_own_name_that_only_it_takes_for_loopback_is_told_as_others_know_it() -> None:
    place = Place(at("0.0.0.0"), at("this-host"), ("127.0.1.1",), FAR)
    assert reach_of(place).listen == at(LAN)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(at("127.0.0.1"), coordinator=FAR), "only its own machine can dial: start it with --listen"),
        (Place(at("198.51.100.99"), coordinator=FAR), "does not have that address any more"),
        (Place(at("0.0.0.0"), at("nowhere.example")), "node.advertise names nowhere.example"),
    ],
)
def test_what_nobody_can_dial_is_told_with_what_to_do(place: Place, words: str) -> None:
    reach = reach_of(place)
    assert reach.listen is None
    assert words in reach.trouble


def test_a_machine_without_a_network_reaches_its_own_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "own_address", lambda *_args, **_more: None)
    assert reach_of(Place(at("0.0.0.0"), coordinator="127.0.0.1")).listen == at("127.0.0.1")
    assert "no address" in reach_of(Place(at("0.0.0.0"), coordinator=FAR)).trouble


def looking(names: dict[str, list[str]]) -> Callable[[str], list[str]]:
    return lambda host: names.get(host, [])


async def test_a_name_that_gets_another_address_moves_the_daemon_and_a_silent_name_server_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, moves = {"gate.example": [FAR]}, []
    monkeypatch.setattr(whereabouts, "addresses_of", looking(names))
    monkeypatch.setattr(whereabouts, "RESOLVE_S", 0.0)
    follower = Whereabouts(at("gate.example"), lambda: None, lambda: moves.append(follower.address))
    await follower.settle(at("0.0.0.0"))
    assert (follower.address, moves) == (at(FAR), [])
    names["gate.example"] = []
    await follower.look()
    assert (follower.address, moves) == (at(FAR), [])
    names["gate.example"] = ["203.0.113.2"]
    await follower.look()
    assert moves == [at("203.0.113.2")]


async def test_a_machine_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, moved = [LAN], asyncio.Event()
    monkeypatch.setattr(whereabouts, "own_address", lambda *_args, **_more: hosts[0])
    monkeypatch.setattr(whereabouts, "LOOK_S", 0.01)
    follower = Whereabouts(None, lambda: None, moved.set)
    await follower.settle(at("0.0.0.0"))
    following = asyncio.create_task(follower.follow())
    hosts[0] = "198.51.100.8"
    async with asyncio.timeout(5):
        await moved.wait()
    following.cancel()
    assert follower.address == at("198.51.100.8")
