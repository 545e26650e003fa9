"""Join tokens say what is wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardnet.errors import PeerRefused, UsageError
from shardnet.messages import Address
from shardnet.swarm.tokens import PREFIX, JoinToken, parse_token

TOKEN = JoinToken(
    address=Address(host="192.168.1.10", port=7071),
    ca_sha256=b"\xca" * 32,
    secret=b"\x5e" * 16,
    expires_at_s=1_800_000_000,
)


@pytest.mark.parametrize("host", ["192.168.1.10", "::1", "coordinator.example.org", "a" * 253])
def test_a_token_reads_back_as_it_was_made(host: str) -> None:
    token = JoinToken(Address(host=host, port=1), b"\x01" * 32, b"\x02" * 16, 4_000_000_000)
    assert parse_token(str(token)) == token


@pytest.mark.parametrize("paste", ["  {}\n", "'{}'", '"{}"', "`{}`"])
def test_the_way_people_paste_does_not_matter(paste: str) -> None:
    text = str(TOKEN)
    assert parse_token(paste.format(text)) == TOKEN
    assert parse_token(paste.format(text.lower())) == TOKEN
    assert parse_token(paste.format(text[:40] + "\n  " + text[40:])) == TOKEN


def test_a_token_of_something_else_is_told_apart_from_a_typo() -> None:
    with pytest.raises(UsageError, match=r"not a join token.*begins with SHARD1-"):
        parse_token("hf_abcdef")


@given(st.data())
def test_any_single_typo_is_noticed(data: st.DataObject) -> None:
    text = str(TOKEN)
    at = data.draw(st.integers(len(PREFIX), len(text) - 2))  # the last digit holds padding bits too
    wrong = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").filter(lambda digit: digit != text[at]))
    with pytest.raises(UsageError, match="mistyped or cut off"):
        parse_token(text[:at] + wrong + text[at + 1 :])


@pytest.mark.parametrize("keep", [0, 1, 8, 50, -1, -8])
def test_a_token_cut_off_says_so(keep: int) -> None:
    with pytest.raises(UsageError, match="mistyped or cut off"):
        parse_token(PREFIX + str(TOKEN).removeprefix(PREFIX)[:keep])


@given(st.text(max_size=200))
def test_no_text_at_all_can_do_more_than_be_refused(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(UsageError):
            parse_token(candidate)


def test_an_expired_token_says_when_it_expired_and_what_to_do() -> None:
    TOKEN.check_fresh(1_799_999_999)
    with pytest.raises(PeerRefused, match=r"expired at 2027-01-15 08:00:00 UTC.*`shardnet swarm invite`"):
        TOKEN.check_fresh(1_800_000_000)


def test_the_secret_is_not_shown_by_accident() -> None:
    assert "5e" * 4 not in repr(TOKEN)
    assert "secret" not in repr(TOKEN)
