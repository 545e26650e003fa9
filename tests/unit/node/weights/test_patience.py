"""How long a download may stand still before it is given up."""

from __future__ import annotations

from dataclasses import replace

from shardnet.node.weights.fetching import Patience
from shardnet.torrent.progress import TorrentStats
from tests.support.torrent_stats import STATS

TOTAL = 1000


def stats(done: int, *, is_checking: bool = False) -> TorrentStats:
    return replace(STATS, bytes_done=done, bytes_total=TOTAL, is_checking=is_checking)


def test_what_comes_renews_it_and_what_does_not_come_ends_it() -> None:
    patience = Patience(30)
    patience.observe(stats(0), 0.0)
    patience.observe(stats(10), 20.0)
    patience.observe(stats(10), 40.0)
    assert not patience.is_over(49.0)
    assert patience.is_over(50.0)
    assert patience.bytes_done == 10


def test_hashing_before_during_and_behind_a_download_takes_as_long_as_it_takes() -> None:
    patience = Patience(30)
    assert not patience.is_over(1e6), "nothing is known of it yet"
    for at_s in (100.0, 125.0, 150.0):
        patience.observe(stats(0, is_checking=True), at_s)
    assert not patience.is_over(175.0)
    patience.observe(stats(TOTAL), 170.0)
    assert not patience.is_over(1e6), "all is here: it is flushed and hashed"


def test_bytes_that_were_found_bad_are_waited_for_anew() -> None:
    patience = Patience(30)
    patience.observe(stats(TOTAL), 0.0)
    patience.observe(stats(900), 500.0)
    assert not patience.is_over(529.0)
    assert patience.is_over(530.0)
