"""Who is let in and who is put out, as decisions on plain data."""

from __future__ import annotations

import pytest

from shardnet.errors import PeerRefused, UsageError
from shardnet.swarm.records import Invite, Member, find_member, open_invites, secret_hash, spend, with_invite

A, B = "a" * 40, "ab" + "c" * 38
SECRET = b"s" * 16
NOW_S = 1_800_000_000.0


def member(name: str) -> Member:
    return Member(name=name, joined_at_s=NOW_S, how="local", expires_at_s=NOW_S + 1)


INVITES = with_invite({}, SECRET, Invite(created_at_s=NOW_S, expires_at_s=NOW_S + 60))
MEMBERS = {A: member("node"), B: member("node"), "d" * 40: member("dead")}


def test_only_the_hash_of_a_secret_is_kept() -> None:
    assert list(INVITES) == [secret_hash(SECRET)]


def test_an_invitation_is_used_once() -> None:
    used = spend(INVITES, SECRET, A, NOW_S)
    assert open_invites(INVITES, NOW_S)
    assert not open_invites(used, NOW_S)
    with pytest.raises(
        PeerRefused, match=r"already used at 2027-01-15 08:00:00 UTC by node aaaaaaaaaaaa.*ask the swarm's owner"
    ):
        spend(used, SECRET, B, NOW_S + 1)


def test_the_machine_whose_answer_was_lost_may_ask_again() -> None:
    used = spend(INVITES, SECRET, A, NOW_S)
    assert spend(used, SECRET, A, NOW_S + 1) == used


def test_expired_used_and_unknown_are_told_apart() -> None:
    with pytest.raises(PeerRefused, match="expired at"):
        spend(INVITES, SECRET, A, NOW_S + 60)
    with pytest.raises(PeerRefused, match="never made this join token"):
        spend(INVITES, b"x" * 16, A, NOW_S)


def test_spent_invitations_are_forgotten_after_a_month() -> None:
    later = NOW_S + 40 * 86_400
    assert len(with_invite(INVITES, b"y" * 16, Invite(created_at_s=later, expires_at_s=later + 1))) == 1


@pytest.mark.parametrize(("who", "found"), [(A, A), ("aaaa", A), ("ABCC", B), ("dead", "d" * 40), ("f" * 40, "f" * 40)])
def test_a_member_is_found_by_id_beginning_or_name(who: str, found: str) -> None:
    assert find_member(MEMBERS, who) == found


def test_an_ambiguous_name_lists_whom_it_could_mean() -> None:
    with pytest.raises(UsageError, match=f"several nodes: {A} .node., {B} .node."):
        find_member(MEMBERS, "node")


@pytest.mark.parametrize("who", ["nobody", "aaa", ""])
def test_an_unknown_member_lists_those_that_are_known(who: str) -> None:
    with pytest.raises(UsageError, match=r"no node .* known are: aaaaaaaaaaaa \(node\)"):
        find_member(MEMBERS, who)
