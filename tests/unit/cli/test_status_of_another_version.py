"""A coordinator that was started before shardnet was brought up to date is told as that."""

from __future__ import annotations

import pytest

from shardnet.cli.status import in_words
from shardnet.errors import ProtocolError


def test_a_coordinator_of_another_version_is_named_and_no_traceback_is_shown() -> None:
    with pytest.raises(
        ProtocolError, match=r"another version of shardnet than this command: it does not tell '\w+'; start it again"
    ):
        in_words({})


BEFORE = {"prompt_tokens": 90, "prefix_tokens_reused": 40, "prefix_hits": 1, "prefix_copies": 1, "prefix_waits": 2}


def prompts(**more: float) -> str:
    """Returns: the line that tells of prompts, of a coordinator that nobody has joined."""
    about = {"node_id": "ab" * 20, "swarm_id": "cd" * 20, "uptime_s": 5, "refused": [], "models_cache": "m"}
    counts = dict.fromkeys(("running", "queued", "finished", "failed", "sequences_kept"), 0) | BEFORE | more
    told = {"coordinator": about | {"addresses": {"nodes": "n", "api": "a"}}, "requests": counts}
    [found] = [
        one for one in in_words(told | {"models": [], "kept_out": [], "nodes": []}).splitlines() if "Prompts" in one
    ]
    return found


def test_a_coordinator_that_does_not_tell_how_long_requests_waited_is_shown_without_that() -> None:
    assert prompts() == (
        "Prompts: 90 tokens, 40 of them in KV already, for 1 request (1 by a copy of another's beginning; 2 waited for one); "
        "0 finished sequences kept"
    )


def test_what_was_waited_and_who_waits_and_what_was_freed_or_lost_is_told_where_there_is_some() -> None:
    more = {"prefix_waited_s": 3.24, "waiting": 1, "prefix_evicted": 4, "prefix_refused": 2}
    assert "2 waited for one, 3.2 s on average, of whom 1 still waits);" in prompts(**more)
    assert prompts(**more).endswith("0 finished sequences kept, 4 freed for room, 2 not found by a stage")
    assert "2 waited for one, of whom 2 still wait);" in prompts(prefix_waited_s=0.0, waiting=2)
