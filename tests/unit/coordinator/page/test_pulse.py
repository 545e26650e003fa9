"""Counters become charts."""

from __future__ import annotations

from typing import Any

from shardnet.coordinator.page.pulse import KEPT, Answer, Pulse, Reading, answers_json, loads_json, nodes_json


def answer(tokens: int, *, batch: float | None = None, waits: bool = False) -> Answer:
    return Answer("r", "tiny", tokens, 1, waits, ("a",), batch)


def test_tokens_a_second_are_those_of_answers_in_progress_and_of_answers_that_ended() -> None:
    pulse = Pulse()
    pulse.take(Reading(0.0, 100, 0, 0.0, 0, (answer(5), answer(5))))
    sample = pulse.take(Reading(2.0, 108, 0, 0.0, 0, (answer(12),)))  # one ended, with 8
    assert sample["tokens_per_s"] == 5.0
    assert pulse.take(Reading(3.0, 108, 0, 0.0, 0, ()))["tokens_per_s"] == 0.0  # never below nothing


def test_the_first_reading_says_no_rate() -> None:
    assert Pulse().take(Reading(0.0, 10**6, 9, 9.0, 0))["tokens_per_s"] == 0.0


def test_the_time_to_the_first_token_is_that_of_answers_that_began_meanwhile() -> None:
    pulse = Pulse()
    pulse.take(Reading(0.0, 0, 10, 50.0, 0))
    assert pulse.take(Reading(1.0, 0, 12, 50.5, 0))["first_token_s"] == 0.25
    assert pulse.take(Reading(2.0, 0, 12, 50.5, 0))["first_token_s"] is None


def test_rows_in_a_batch_are_the_mean_over_answers_that_have_some() -> None:
    pulse = Pulse()
    assert pulse.take(Reading(0.0, 0, 0, 0.0, 0, (answer(0),)))["batch_tokens"] is None
    assert (
        pulse.take(Reading(1.0, 0, 0, 0.0, 0, (answer(0), answer(4, batch=2), answer(4, batch=4))))["batch_tokens"] == 3
    )


def test_five_minutes_are_kept_and_no_more() -> None:
    pulse = Pulse()
    for second in range(KEPT + 50):
        pulse.take(Reading(float(second), 0, 0, 0.0, 0, busy={"a": 0.5}))
    assert len(pulse.samples) == KEPT
    assert (pulse.samples[0]["at_s"], pulse.last) == (50.0, pulse.samples[-1])
    assert pulse.samples[-1]["busy"] == {"a": 0.5}


def load(**more: Any) -> list[dict[str, Any]]:
    one = {
        "model": "tiny",
        "shard_id": 1,
        "stage": "fetch",
        "done_bytes": 250,
        "total_bytes": 1000,
        "bytes_per_s": 50.0,
        "peers": 2,
    }
    return loads_json([{"node_id": "a", "name": "node-a", "loading": [one | more]}])


def test_a_download_says_what_is_left_of_it_where_that_can_be_known() -> None:
    assert load()[0]["left_s"] == 15.0
    assert load(bytes_per_s=0.0)[0]["left_s"] is None
    assert load(total_bytes=0, done_bytes=0)[0]["left_s"] is None
    assert load(done_bytes=1200)[0]["left_s"] == 0.0


def test_memory_is_told_as_coarse_as_it_is_shown() -> None:
    node = {"node_id": "a", "heartbeat_age_s": 0.3, "load": 0.12345, "sequences": 2}
    free = [nodes_json([node | {"memory_free_bytes": count}])[0]["memory_free_bytes"] for count in (12_345_678, 12, 0)]
    assert free == [12_300_000, 12, 0]


def test_an_answer_that_waits_for_lost_layers_says_so() -> None:
    (one,) = answers_json(Reading(0.0, 0, 0, 0.0, 0, (answer(3, waits=True),)))
    assert one == {"request_id": "r", "model": "tiny", "tokens": 3, "attempts": 1, "waits": True, "nodes": ["a"]}
