"""Traces on demand: who gets one, what is in it, and that nothing is recorded for anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shardnet.coordinator.api.trace_events import trace_json
from shardnet.coordinator.requests.recording import MOST_STEPS, Recording
from shardnet.messages import ExecuteTask
from shardnet.steps import StageTiming, TaskResult, row_tensors
from tests.support.coordinator_world import route
from tests.support.exposition import samples, value
from tests.support.trace_file import check_nested, check_stages, named, processes, spans

MakeWorld = Callable[..., Any]
ROUTE = route(1, 2)


def task(command: int, position: int, rows: int = 1) -> ExecuteTask:
    return ExecuteTask(
        command_id=f"{command:016x}",
        deadline_s=1,
        epoch=0,
        model_id=ROUTE.model_id,
        sequence_id="0" * 16,
        position=position,
        n_tokens=rows,
        route=ROUTE.stages,
        stage=0,
        samples=True,
        tensors=row_tensors(rows, 0),
    )


def answer(command: int, position: int, *us: float, ahead: int = 0, tokens: tuple[int, ...] = (7,)) -> TaskResult:
    timings = tuple(StageTiming(one / 4, one / 2, one / 4) for one in us)
    return TaskResult(f"{command:016x}", "0" * 16, position, tokens, ahead=ahead, timings=timings)


def described(_route: object, index: int) -> dict[str, Any]:
    return {"node": f"node-{index}", "layers": f"[{index}, {index + 1})"}


def written(recording: Recording, now_s: float = 100.0) -> dict[str, Any]:
    return trace_json([recording], now_s, described, at_unix_s=1e9)


def recorded() -> Recording:
    made = Recording("t", 10.0, prompt_tokens=6)
    made.begins("r", 10.1, 10.2)
    made.began_try(ROUTE, 0, 10.2)
    return made


def test_steps_of_a_run_follow_one_another_and_hold_their_stages() -> None:
    made = recorded()
    made.sent(task(1, 0, 6), 10.2)
    made.answered(answer(1, 6, 30_000, 40_000, ahead=2), 10.3)
    made.answered(answer(1, 7, 10_000, 20_000, ahead=1), 10.35)
    made.answered(answer(1, 8, 10_000, 20_000), 10.4)
    made.ended("length", 10.4)
    told = written(made)
    check_nested(spans(told))
    check_stages(told, 2)
    found = spans(told)
    assert [one.name for one in found if "answered" in one.args] == ["prompt 0 to 5", "decode 6", "decode 7"]
    wire = sum(one.end_us - one.begin_us for one in named(found, "on the wire"))
    compute = sum(one.end_us - one.begin_us for one in named(found, "compute"))
    assert wire == pytest.approx(200_000 - 130_000, abs=1)
    assert compute == pytest.approx(65_000, abs=1)
    (whole,) = named(found, "request")
    assert whole.begin_us == 0
    assert whole.end_us == pytest.approx(400_000)
    assert whole.args["tokens"] == 3
    assert [one.name for one in named(found, "decode")[:1]] == ["decode"]


def test_prompt_chunks_that_are_under_way_together_stand_in_tracks_of_their_own() -> None:
    made = recorded()
    for number in range(3):
        made.sent(task(number, 2 * number, 2), 10.2)
    for number in range(3):
        made.answered(answer(number, 2 * number, 20_000, 20_000, tokens=()), 10.25 + number / 100)
    told = written(made)
    check_nested(spans(told))
    check_stages(told, 2)
    assert len({one.track for one in named(spans(told), "prompt ")}) == 3


def test_stages_that_took_longer_than_the_step_by_our_clock_are_fitted_into_it_with_their_true_times_beside() -> None:
    made = recorded()
    made.sent(task(1, 6), 10.2)
    made.answered(answer(1, 7, 60_000, 60_000), 10.3)
    told = written(made)
    check_nested(spans(told))
    check_stages(told, 2)
    assert [one.args["us"] for one in named(spans(told), "compute")] == [30_000, 30_000]


def test_a_lost_step_ends_with_its_try_and_what_follows_is_recovery() -> None:
    made = recorded()
    made.sent(task(1, 0, 6), 10.2)
    made.set_back("PEER_LOST", 10.5)
    made.set_back("PEER_LOST", 10.6)
    made.began_try(route(1, 3), 0, 11.0)
    made.sent(task(2, 0, 6), 11.0)
    made.answered(answer(1, 6, 1, 1), 11.1)  # of the try that is over
    made.answered(answer(2, 6, 10_000, 10_000), 11.2)
    made.ended("stop", 11.3)
    told = written(made)
    check_nested(spans(told))
    check_stages(told, 2)
    (recovery,) = named(spans(told), "recovery")
    assert recovery.args["reason"] == "PEER_LOST"
    assert recovery.begin_us == pytest.approx(500_000)
    assert recovery.end_us == pytest.approx(1_000_000)
    assert [one.args["error"] for one in named(spans(told), "try")] == ["PEER_LOST", ""]


def test_what_was_waited_for_anothers_beginning_is_a_phase_until_its_own_begins_or_its_pipeline_goes() -> None:
    recording = recorded()
    recording.waits_for_another(11.0)
    recording.set_back("UNREACHABLE", 12.0)
    recording.waits_for_another(13.0)
    recording.waits_for_another(14.0)  # for the one who goes on in the first one's place
    recording.began_try(ROUTE, 64, 15.0)
    recording.waits_for_another(16.0)
    recording.ended("cancelled", 17.5)
    name = "wait for another's beginning"
    found = [one for one in written(recording)["traceEvents"] if one["name"] == name]
    first_us = found[0]["ts"]
    assert [(one["ts"] - first_us, one["dur"]) for one in found] == [
        (0.0, 1e6),
        (2e6, 1e6),
        (3e6, 1e6),
        (5e6, 1.5e6),
    ]


def test_a_long_answer_is_recorded_up_to_a_bound() -> None:
    made = recorded()
    made.sent(task(1, 6), 10.2)
    for number in range(MOST_STEPS + 10):
        made.answered(answer(1, 7 + number, 1, 1, ahead=100_000), 10.3 + number / 1000)
    assert (len(made.steps), made.steps_left_out) == (MOST_STEPS, 11)
    assert made.tokens == MOST_STEPS + 10


async def test_a_header_asks_for_a_trace_and_its_answer_says_where_it_is(make_world: MakeWorld) -> None:
    async with make_world() as world, world.node("a", 0), world.node("b", 1, 2):
        await world.ready()
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 5,
            "stream": True,
            "n": 2,
        }
        told = await world.client.post("/v1/chat/completions", json=body, headers={"X-Shardnet-Trace": "1"})
        trace = (await world.client.get(f"/traces/{told.headers['x-shardnet-trace']}")).json()
        check_nested(spans(trace))
        assert sum(name.startswith("request") for name in processes(trace).values()) == 2
        assert {name for name in processes(trace).values() if name.startswith("stage 0")} == {
            "stage 0: a, layers [0, 2)"
        }
        for whole in named(spans(trace), "request"):
            assert (whole.args["tokens"], whole.args["outcome"]) == (5, "length")


async def test_a_sampled_traceparent_asks_too_and_its_id_is_the_traces(make_world: MakeWorld) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        for flags, kept in (("00", False), ("01", True)):
            headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-{flags}"}
            body = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
            told = await world.client.post("/v1/completions", json=body, headers=headers)
            assert told.headers.get("x-shardnet-trace") == (trace_id if kept else None)
            assert (await world.client.get(f"/traces/{trace_id}")).status_code == (200 if kept else 404)


async def test_a_node_lost_in_the_middle_is_seen_in_the_trace_and_in_the_figures(make_world: MakeWorld) -> None:
    async with make_world() as world, world.node("a", 0, 1), world.node("b", 2) as b:
        await world.ready()
        entered = asyncio.Event()

        def stop_at_ten(task: ExecuteTask) -> bool:
            if task.sampling is not None and task.position >= task.sampling.prompt_tokens + 10:
                entered.set()
                return False
            return True

        b.on_task = stop_at_ten
        body = {"prompt": "hi", "max_tokens": 20, "temperature": 0}
        asking = asyncio.create_task(world.client.post("/v1/completions", json=body, headers={"X-Shardnet-Trace": "1"}))
        await entered.wait()
        await b.leave()
        async with world.node("spare", 2):
            told = await asking
            trace = (await world.client.get(f"/traces/{told.headers['x-shardnet-trace']}")).json()
            found = samples((await world.client.get("/metrics")).text)
        check_nested(spans(trace))
        check_stages(trace, 2)
        assert len(named(spans(trace), "try")) == 2
        (recovery,) = named(spans(trace), "recovery")
        (lost,) = [one for one in spans(trace) if one.args.get("answered") is False]
        assert lost.end_us <= recovery.begin_us + 0.01
        assert {"stage 1: b, layers [4, 6)", "stage 1: spare, layers [4, 6)"} & set(processes(trace).values())
        assert value(found, "shardnet_recoveries_total") == 1
        assert value(found, "shardnet_generation_tokens_total") == 20


async def test_only_the_last_traces_are_kept_and_they_want_a_key_where_the_api_does(make_world: MakeWorld) -> None:
    async with make_world(requests={"traces": 2}, api={"key": "s3cret"}) as world, world.node("a", 0, 1, 2):
        world.client.headers["Authorization"] = "Bearer s3cret"
        await world.ready()
        ids = []
        for wanted in ("1", "0", "1", "1"):
            body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
            told = await world.client.post("/v1/completions", json=body, headers={"X-Shardnet-Trace": wanted})
            ids.append(told.headers.get("x-shardnet-trace", "none"))
        statuses = [(await world.client.get(f"/traces/{one}")).status_code for one in ids]
        assert statuses == [404, 404, 200, 200]
        del world.client.headers["Authorization"]
        assert (await world.client.get(f"/traces/{ids[-1]}")).status_code == 401
