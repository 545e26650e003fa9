"""What allows a node less memory than its machine has, and loads on their way, as the coordinator and `shardnet plan` tell it."""

from __future__ import annotations

from shardnet.cli.plan import offers_in
from shardnet.coordinator.api.views import swarm_json
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import ManifestKnown
from shardnet.coordinator.placement.node_view import Load, NodeView
from shardnet.coordinator.placement.settings import ModelsSettings, PlacementSettings, SequenceSettings
from shardnet.coordinator.placement.standing import Standing
from shardnet.messages import DeviceInfo, LoadProgress
from tests.support.coordinator_status import status_lines
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
    one = node(limit=GROUP)
    cluster.nodes[one.node_id] = one
    standing = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    told = swarm_json(standing, 0.0)
    assert told["nodes"][0]["devices"][0]["limit"] == GROUP
    (offer,), _ = offers_in(told, make_manifest())
    assert offer.limit == GROUP
    assert f"  its memory: {GROUP}" in status_lines(standing)


def test_a_node_s_line_fits_a_terminal_of_80_columns() -> None:
    cluster = Cluster()
    one = node(limit="")
    cluster.nodes[one.node_id] = one
    told = status_lines(Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings()))
    (row,) = [line for line in told if line.endswith(" loaded")]
    assert len(row) < 80


def test_status_says_which_shard_a_node_is_bound_to_that_there_is_not() -> None:
    cluster = Cluster()
    standing = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    greeting = hello(1)
    bound = greeting.capabilities.model_copy(update={"bound": ("0", "9", "other:9"), "accepts_any": False})
    cluster.nodes[greeting.node_id] = NodeView.of(greeting.model_copy(update={"capabilities": bound}), 0.0)
    assert not any("bound to" in line for line in status_lines(standing)), "no model is known yet that could have it"
    manifest = make_manifest()
    cluster.handle(ManifestKnown(manifest))
    told = [line for line in status_lines(standing) if "bound to" in line]
    assert told == [
        f"  it is bound to shard 9, which no known model has (tiny has {manifest.n_shards}, 0 to {manifest.n_shards - 1}): "
        "start it with another --shard, or none"
    ]


def test_status_says_how_far_a_load_is_and_what_the_engine_uses_meanwhile() -> None:
    manifest = make_manifest()
    cluster = Cluster()
    cluster.handle(ManifestKnown(manifest))
    one = node(limit="")
    cluster.nodes[one.node_id] = one
    progress = LoadProgress(
        command_id="c" * 16,
        stage="load",
        done_bytes=40_000_000,
        total_bytes=100_000_000,
        bytes_per_s=2e8,
        memory_bytes=150_000_000,
        cpu_cores=1.25,
    )
    one.loads[manifest.model_id, 1] = Load(0.0, 100_000_000, progress=progress)
    shown = status_lines(Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings()))
    assert (
        "  load shard 1 of tiny: 40 % of 100.0 MB, 200.0 MB/s; the engine has 150.0 MB and keeps 1.2 processors busy"
    ) in shown
