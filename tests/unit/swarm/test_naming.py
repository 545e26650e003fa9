"""A member is called as its machine is, and no two living ones alike."""

from __future__ import annotations

import re
import socket

import pytest

from shardnet.swarm.naming import MOST_CHARS, legal_name, machine_name, names_taken, unique_name
from shardnet.swarm.records import NAME_PATTERN, Member, Revocation


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("kitchen", "kitchen"),
        ("Anna's MacBook", "Anna-s-MacBook"),
        ("-werk_1-", "werk_1"),
        ("рабочий", "node"),
        ("localhost", "node"),
        ("", "node"),
        ("x" * 80, "x" * MOST_CHARS),
    ],
)
def test_a_host_name_becomes_a_legal_name(host: str, name: str) -> None:
    assert legal_name(host) == name
    assert re.match(NAME_PATTERN, name)


def test_a_machine_goes_by_its_host_name_without_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "attic.home.example")
    assert machine_name() == "attic"


def test_a_name_that_is_taken_gets_the_first_free_number() -> None:
    assert unique_name("box", {"other"}) == "box"
    assert unique_name("box", {"box", "box-2"}) == "box-3"
    longest = "y" * MOST_CHARS
    assert unique_name(longest, {longest}) == "y" * (MOST_CHARS - 2) + "-2"


def test_members_that_expired_or_were_thrown_out_hold_no_name() -> None:
    ids = [f"{number:040x}" for number in range(4)]
    ends = (100.0, 1.0, 100.0, 100.0)
    members = {
        one: Member(name=f"m{at}", joined_at_s=0, how="invited", expires_at_s=ends[at]) for at, one in enumerate(ids)
    }
    revoked = {ids[2]: Revocation(revoked_at_s=5)}
    assert names_taken(members, revoked, 50.0, but=ids[3]) == {"m0"}
