from __future__ import annotations

from pathlib import Path
from typing import cast

from shardnet.dht.directory import Directory
from shardnet.dht.records import CoordinatorRecord
from shardnet.messages import Address
from shardnet.node.links.finding import CoordinatorFinder
from shardnet.swarm.home import Home

GIVEN, NOW, OTHERS = [Address(host=f"10.0.0.{number}", port=7700) for number in (1, 2, 3)]
OURS, OTHER = "a" * 40, "b" * 40


class FakeDirectory:
    """Names two coordinators of the swarm."""

    async def lookup_coordinators(self) -> list[CoordinatorRecord]:
        told = ((OTHER, OTHERS), (OURS, NOW))
        return [CoordinatorRecord(node_id, (at.host, at.port), 0, 0) for node_id, at in told]


def finder(tmp_path: Path) -> CoordinatorFinder:
    found = CoordinatorFinder(Home(tmp_path), GIVEN, ())
    found.directory = cast(Directory, FakeDirectory())
    return found


async def test_a_coordinator_that_was_met_is_followed_to_where_it_says_it_is_and_no_other_one(tmp_path: Path) -> None:
    one = finder(tmp_path)
    assert await one.find() == GIVEN
    one.joined(OURS, None)
    assert [await one.find() for _ in range(4)] == [GIVEN, NOW, GIVEN, NOW]


async def test_the_address_that_was_given_is_the_only_one_until_a_coordinator_was_met_there(tmp_path: Path) -> None:
    one = finder(tmp_path)
    assert [await one.find() for _ in range(4)] == [GIVEN] * 4


async def test_dialling_elsewhere_does_not_change_where_the_coordinator_counts_to_be(tmp_path: Path) -> None:
    one = finder(tmp_path)
    await one.find()
    one.joined(OURS, None)
    await one.find()
    assert await one.find() == NOW
    assert one.host == GIVEN.host
    one.joined(OURS, None)
    assert one.host == NOW.host
