"""What allows a node less memory than its machine has, as the coordinator and `shardnet plan` tell it."""

from __future__ import annotations

from shardnet.cli.plan import offers_in
from shardnet.cli.status import lines
from shardnet.coordinator.api.views import node_json
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.node_view import NodeView
from shardnet.messages import DeviceInfo
from tests.support.coordinator_world import hello, make_manifest

GROUP = "300.0 MB by memory.max of cgroup /x"


def node(*, limit: str, user_bytes: int = 0) -> NodeView:
    cpu = DeviceInfo(name="CPU", kind="cpu", total_bytes=300_000_000, free_bytes=200_000_000, limit=limit)
    greeting = hello(1, memory=user_bytes)
    capabilities = greeting.capabilities.model_copy(update={"devices": (cpu,)})
    return NodeView.of(greeting.model_copy(update={"capabilities": capabilities}), 0.0)


def test_the_machine_s_limit_is_told() -> None:
    assert node(limit=GROUP).limit == GROUP
    assert node(limit="").limit == ""


def test_the_user_s_own_limit_is_told_where_it_is_smaller() -> None:
    assert node(limit=GROUP, user_bytes=200_000_000).limit == "200.0 MB by inference.memory_limit_bytes"
    assert node(limit=GROUP, user_bytes=400_000_000).limit == GROUP


def test_until_the_first_heartbeat_no_more_is_free_than_the_device_has() -> None:
    assert node(limit=GROUP, user_bytes=400_000_000).memory_free_bytes == 200_000_000
    assert node(limit=GROUP, user_bytes=100_000_000).memory_free_bytes == 100_000_000


def test_status_and_plan_say_it() -> None:
    cluster = Cluster()
    told = node_json(cluster, node(limit=GROUP), 0.0)
    assert told["devices"][0]["limit"] == GROUP
    (offer,), _ = offers_in({"nodes": [told], "links": []}, make_manifest())
    assert offer.limit == GROUP
    requests = dict.fromkeys(
        (
            "running",
            "queued",
            "finished",
            "failed",
            "prompt_tokens",
            "prefix_tokens_reused",
            "prefix_hits",
            "sequences_kept",
        ),
        0,
    )
    about = {"node_id": "a" * 40, "swarm_id": "b" * 40, "uptime_s": 1, "addresses": {"nodes": "-", "api": "-"}}
    shown = lines({"coordinator": about, "requests": requests, "models": [], "nodes": [told]})
    assert f"  its memory: {GROUP}" in shown
