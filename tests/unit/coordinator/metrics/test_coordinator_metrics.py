"""`/metrics` of a coordinator: what it counts, in which forms, and who may read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from prometheus_client import generate_latest

from shardnet.coordinator.api.http_counts import HttpCounts
from shardnet.coordinator.metrics.reading import CoordinatorFigures
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.settings import ModelsSettings, PlacementSettings, SequenceSettings
from shardnet.coordinator.placement.standing import Standing
from shardnet.swarm.api_keys import make_key
from shardnet.swarm.home import Home
from tests.support.coordinator_world import MODEL_ID
from tests.support.exposition import OPENMETRICS, check_metrics, families, samples, value
from tests.support.requests_world import result
from tests.support.sharing_requests import SYSTEM, Swarm, own

MakeWorld = Callable[..., Any]


async def test_the_figures_say_what_a_client_saw(make_world: MakeWorld) -> None:
    async with make_world() as world, world.node("a", 0), world.node("b", 1, 2):
        await world.ready()
        before = samples((await world.client.get("/metrics")).text)
        answers = [(await world.chat(max_tokens=count)).json() for count in (3, 5)]
        after = samples((await world.client.get("/metrics")).text)

        def grew(name: str, **labels: str) -> float:
            return value(after, name, labels) - value(before, name, labels)

        assert grew("shardnet_generation_tokens_total", model="tiny") == 8
        prompts = sum(one["usage"]["prompt_tokens"] for one in answers)
        assert grew("shardnet_prompt_tokens_total", model="tiny") == prompts
        assert grew("shardnet_time_to_first_token_seconds_count", model="tiny") == 2
        assert grew("shardnet_inter_token_latency_seconds_count", model="tiny") == 6
        assert grew("shardnet_answer_duration_seconds_count", model="tiny") == 2
        assert grew("shardnet_answers_total", model="tiny", outcome="length") == 2
        assert value(after, "shardnet_http_requests_total", {"path": "/v1/chat/completions", "status": "200"}) == 2
        first, between, took = (
            grew(f"shardnet_{name}_seconds_sum", model="tiny")
            for name in ("time_to_first_token", "inter_token_latency", "answer_duration")
        )
        assert 0 < first + between <= took
        steps = value(after, "shardnet_stage_compute_seconds_count", {"stage": "0", "node": "a"})
        assert steps == value(after, "shardnet_stage_queue_seconds_count", {"stage": "1", "node": "b"}) >= 8
        assert value(after, "shardnet_nodes", {"state": "up"}) == 2
        assert value(after, "shardnet_model_layers", {"model": "tiny"}) == 6
        assert value(after, "shardnet_model_layers_missing", {"model": "tiny"}) == 0
        assert value(after, "shardnet_model_pipelines", {"model": "tiny"}) == 1
        assert value(after, "shardnet_certificate_expiry_timestamp_seconds", {"certificate": "own"}) > 1.7e9
        assert value(after, "shardnet_requests_running", {"model": "tiny"}) == 0


async def test_shared_beginnings_are_counted_while_they_are_waited_for_and_when_they_are_there() -> None:
    swarm = Swarm()
    standing = Standing(Cluster(), ModelsSettings(), PlacementSettings(), SequenceSettings())
    figures = CoordinatorFigures(standing, swarm.requests, HttpCounts(), lambda: (0, 0), swarm.world.now_s)

    def told(name: str) -> float:
        text = generate_latest(cast(Any, SimpleNamespace(collect=figures.read))).decode()
        return value(samples(text), f"shardnet_prefix_cache_{name}")

    for number in range(3):
        await swarm.ask([*SYSTEM, *own(number)])
    swarm.world.at_s = 2.0
    assert (told("waiting"), told("wait_seconds_count"), told("copies_total")) == (2, 0, 0)
    swarm.finish()
    assert (told("waiting"), told("wait_seconds_count"), told("wait_seconds_sum")) == (0, 2, 4)
    assert (told("hits_total"), told("copies_total"), told("reused_tokens_total")) == (2, 2, 128)
    assert (told("sequences"), told("refused_total"), told("evicted_total")) == (3, 0, 0)


async def test_the_longest_gap_of_each_answer_is_told_once_it_is_over_and_none_of_an_answer_of_one_token() -> None:
    swarm = Swarm()
    longest = swarm.requests.figures.of(MODEL_ID).longest
    running = await swarm.ask([1, 2, 3])
    [step] = swarm.take()
    for at_s, token, ahead in ((1.0, 50, 1), (4.5, 51, 0)):
        swarm.world.at_s = at_s
        swarm.requests.on_result(step.route[-1].node_id, result(step, token, ahead=ahead, at=3 + token - 50))
    assert (running.longest_gap_s, longest.count) == (3.5, 0)
    running.take()
    (await swarm.ask([1, 2, 3])).close()
    assert (longest.count, longest.total) == (1, 3.5)


def held(status: dict[str, Any]) -> list[str]:
    return [one["state"] for row in status["models"][0]["layers"] for one in row["holders"]]


async def test_missing_layers_and_failures_are_counted(make_world: MakeWorld) -> None:
    async with make_world() as world, world.node("a", 0):
        await world.until(lambda status: held(status) == ["ready"])
        assert (await world.chat()).status_code == 503
        assert (await world.client.get("/made-up-path")).status_code == 404
        found = samples((await world.client.get("/metrics")).text)
        assert value(found, "shardnet_model_layers_missing", {"model": "tiny"}) == 4
        assert value(found, "shardnet_model_pipelines", {"model": "tiny"}) == 0
        assert value(found, "shardnet_http_requests_total", {"path": "/v1/chat/completions", "status": "503"}) == 1
        assert value(found, "shardnet_http_requests_total", {"path": "other", "status": "404"}) == 1
        assert not any("made-up" in str(key) for key in found)


async def test_both_forms_are_well_formed_and_promtool_has_nothing_to_say(make_world: MakeWorld) -> None:
    async with make_world() as world, world.node("a", 0), world.node("b", 1, 2):
        await world.ready()
        await world.chat()
        plain = await world.client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=")
        open_metrics = await world.client.get("/metrics", headers=OPENMETRICS)
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        names = [
            {family.name for family in families(one.text, one.headers["content-type"])} for one in (plain, open_metrics)
        ]
        assert {name.removesuffix("_total") for name in names[0]} == names[1]
        check_metrics(plain.text)


async def test_a_key_for_metrics_opens_metrics_and_nothing_else(make_world: MakeWorld, home: Path) -> None:
    scraper = make_key(Home(), "prometheus", metrics_only=True)
    user = make_key(Home(), "user")
    async with make_world() as world:
        statuses = {
            name: [
                (await world.client.get(path, headers={"Authorization": f"Bearer {key}"})).status_code
                for path in ("/metrics", "/status", "/v1/models")
            ]
            for name, key in (("scraper", scraper), ("user", user), ("nobody", "sk-wrong"))
        }
    assert statuses == {"scraper": [200, 403, 403], "user": [200, 200, 200], "nobody": [401, 401, 401]}


async def test_without_keys_metrics_are_fenced_like_everything_else(make_world: MakeWorld) -> None:
    async with make_world() as world:
        assert (await world.client.get("/metrics")).status_code == 200
        assert (await world.client.get("/metrics", headers={"Host": "evil.example"})).status_code == 403


async def test_a_port_of_its_own_gives_metrics_without_a_key_and_nothing_else(
    make_world: MakeWorld, unused_tcp_port: int
) -> None:
    where = f"127.0.0.1:{unused_tcp_port}"
    async with (
        make_world(api={"key": "s3cret"}, metrics={"listen": where, "allowed_hosts": ["scraped.example"]}) as world,
        httpx.AsyncClient(base_url=f"http://{where}", trust_env=False) as scraper,
    ):
        assert (await world.client.get("/metrics")).status_code == 401
        told = await scraper.get("/metrics")
        assert value(samples(told.text), "shardnet_build_info", {"role": "coordinator"}) == 1
        assert [(await scraper.get(path)).status_code for path in ("/status", "/v1/models")] == [404, 404]
        assert (await scraper.post("/metrics")).status_code == 405
        answered = {
            host: (await scraper.get("/metrics", headers={"Host": host})).status_code
            for host in (
                "scraped.example:1",
                "10.1.2.3",
                "[::1]:9",
                "localhost",
                "evil.example",
                "127.0.0.1.evil.example",
            )
        }
        assert [host for host, status in answered.items() if status == 403] == [
            "evil.example",
            "127.0.0.1.evil.example",
        ]


async def test_a_port_that_is_taken_is_told_with_its_setting(make_world: MakeWorld) -> None:
    from shardnet.errors import SettingsError

    async with make_world() as first:
        with pytest.raises(SettingsError, match=r"metrics\.listen: .*in use"):
            async with make_world(metrics={"listen": str(first.addresses["api"])}):
                pass
