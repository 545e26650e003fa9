"""Of several models with one name one is kept in memory, and whoever asks for another is told why it is not."""

from __future__ import annotations

import time

from structlog.testing import capture_logs

from shardnet.coordinator.api.views import swarm_json
from shardnet.coordinator.placement.cluster import Cluster
from shardnet.coordinator.placement.events import LoadSent, ManifestKnown, ManifestRefused, NodeDrains, NodeJoined
from shardnet.coordinator.placement.node_view import MAX_UNSERVED
from shardnet.coordinator.placement.settings import ModelsSettings, PlacementSettings, SequenceSettings
from shardnet.coordinator.placement.standing import Standing
from shardnet.log import human_bytes
from shardnet.manifest import Manifest, NoProof, ParityCertificate
from tests.support.coordinator_status import status_lines
from tests.support.coordinator_world import held, hello, make_manifest, node_id, ready_cluster

OLD = make_manifest((0, 3, 6), name="m").model_copy(update={"made_s": 1})
NEW = make_manifest((0, 2, 4, 6), name="m").model_copy(update={"made_s": 2})


def standing(*serve: str, ready: Manifest = NEW, on_disk: bool = False) -> Standing:
    """Node 1 has `ready` in memory, and node 2, if need be, both on its disk."""
    cluster = ready_cluster(ready, {1: range(ready.n_shards)})
    for manifest in (OLD, NEW):
        cluster.handle(ManifestKnown(manifest))
    if on_disk:
        files = [held(one, shard, loaded=False) for one in (OLD, NEW) for shard in range(one.n_shards)]
        cluster.handle(NodeJoined(0.0, hello(2, files)))
    return Standing(cluster, ModelsSettings(serve=serve), PlacementSettings(), SequenceSettings())


def test_only_the_newest_of_a_name_is_kept_in_memory_and_both_may_be_asked_for() -> None:
    for serve in ((), ("m",), ("m", NEW.model_id)):
        assert standing(*serve).served() == [NEW]
        assert standing(*serve).answering() == [NEW, OLD]


def test_an_id_in_the_settings_keeps_that_model_beside_the_newest_or_instead_of_it() -> None:
    assert standing("m", OLD.model_id).served() == [NEW, OLD]
    assert standing(OLD.model_id).served() == standing(OLD.model_id).answering() == [OLD]


def test_only_what_the_name_means_is_ordered_from_nodes() -> None:
    here = standing(ready=OLD, on_disk=True)
    orders = {order.model_id for order, _ in here.think_over()}
    assert orders == {NEW.model_id}


def test_what_holds_the_memory_that_a_newer_model_needs_is_named() -> None:
    here = standing(ready=OLD, on_disk=True)
    for node in here.cluster.nodes.values():
        node.memory_free_bytes = 0
    assert here.think_over() == []
    reason = str(here.not_ready(NEW.model_id))
    assert f"holds {human_bytes(3_000_000)} of m ({OLD.model_id[:12]}), which is not to be in memory any more" in reason
    assert "start that node again" in reason


def test_a_model_left_out_for_a_newer_one_says_so_and_answers_while_it_is_still_in_memory() -> None:
    assert standing(ready=OLD).routes(OLD.model_id)
    why = str(standing().not_ready(OLD.model_id))
    assert NEW.model_id[:12] in why
    assert "models.serve" in why


def test_the_log_and_the_status_tell_once_which_model_a_name_means() -> None:
    here = standing()
    with capture_logs() as logs:
        here.tell()
        here.tell()
    told = [entry["note"] for entry in logs if entry["event"] == "name_of_several_models"]
    assert len(told) == 1
    assert told[0].startswith(f"m means model {NEW.model_id[:12]}")
    (model,) = swarm_json(here, 0.0)["models"]
    assert model["notes"] == told


def test_require_proof_keeps_out_what_was_not_proved_and_says_so_where_one_looks() -> None:
    proof = ParityCertificate(
        llama_cpp="1", prompt_tokens=1, decode_tokens=1, boundaries=(), max_abs_logit_diff=0, tokens_equal=True
    )
    proved = make_manifest((0, 6), name="proved").model_copy(update={"certificate": proof})
    cut = make_manifest((0, 3, 6), name="cut").model_copy(update={"certificate": NoProof(reason="it was cut in parts")})
    cluster = ready_cluster(cut, {1: range(cut.n_shards)})
    cluster.handle(ManifestKnown(proved))
    open_door = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    assert [one["proved"] for one in swarm_json(open_door, 0.0)["models"]] == [False, True]
    assert swarm_json(open_door, 0.0)["models"][0]["unproved_reason"] == "it was cut in parts"
    assert open_door.routes(cut.model_id)
    here = Standing(cluster, ModelsSettings(require_proof=True), PlacementSettings(), SequenceSettings())
    assert here.served() == [proved]
    assert not here.routes(cut.model_id), "also where a node has it in memory"
    assert cut in here.answering(), "so that whoever asks for it is told why not"
    reason = str(here.not_ready(cut.model_id))
    assert "models.require_proof: it was cut in parts; prove it with `shardnet verify" in reason
    assert swarm_json(here, 0.0)["kept_out"] == [{"model": "cut", "model_id": cut.model_id, "reason": reason}]
    with capture_logs() as logs:
        here.tell()
        here.tell()
    assert [entry["model"] for entry in logs if entry["event"] == "model_kept_out"] == ["cut"]


def test_a_model_of_a_node_that_is_not_served_stands_below_the_node_with_the_reason() -> None:
    cluster = Cluster()
    cluster.handle(NodeJoined(0.0, hello(1, [held(OLD, 0, loaded=False), held(NEW, 0, loaded=False)])))
    cluster.handle(ManifestRefused(node_id(1), NEW, "nobody signed its manifest"))
    told = "\n".join(status_lines(Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())))
    assert f"model m ({NEW.model_id[:12]}) is not served: nobody signed its manifest" in told
    assert (
        f"model {OLD.model_id[:12]} ({OLD.model_id[:12]}) is not served: the node has shards of it and no manifest.json"
        in told
    )
    assert "No model is served: the reasons stand below" in told


def test_a_model_that_is_signed_later_is_no_longer_told_as_refused() -> None:
    cluster = ready_cluster(NEW, {})
    cluster.handle(NodeJoined(0.0, hello(1, [held(NEW, 0, loaded=False)])))
    cluster.handle(ManifestRefused(node_id(1), NEW, "nobody signed its manifest"))
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    assert here.unserved(cluster.nodes[node_id(1)]) == []


def test_a_model_that_the_settings_leave_out_says_so_where_its_shards_are() -> None:
    here = standing("another", on_disk=True)
    reasons = [one["reason"] for one in swarm_json(here, 0.0)["nodes"][1]["not_served"]]
    assert reasons == ["the coordinator's models.serve names others"] * 2


def test_whoever_asks_for_a_model_that_is_not_served_is_told_why() -> None:
    assert "m means the newer or proved model" in str(standing().why_not_served(OLD.model_id))
    left_out = standing("another", on_disk=True)
    for wanted in ("m", NEW.model_id, NEW.model_id[:12]):
        why = str(left_out.why_not_served(wanted))
        assert why.startswith("model m (")
        assert "which node node-1 has" in why
        assert "models.serve names others" in why
    assert left_out.why_not_served("nobody's") is None
    assert left_out.why_not_served(NEW.model_id[:5]) is None


def test_files_that_a_node_refused_stand_below_it() -> None:
    cluster = Cluster()
    refused = ("/cache/shards/m/shard-0.gguf is a link",)
    cluster.handle(NodeJoined(0.0, hello(1).model_copy(update={"refused": refused})))
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    assert "  refused: /cache/shards/m/shard-0.gguf is a link" in status_lines(here)


def test_streamed_shards_are_told_where_one_looks_since_their_numbers_are_others() -> None:
    cluster = ready_cluster(NEW, {1: range(2)})
    streamed = held(NEW, 2).model_copy(update={"memory_mode": "streamed"})
    cluster.handle(NodeJoined(0.0, hello(2, [streamed])))
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    told = status_lines(here)
    label = cluster.nodes[node_id(2)].label
    assert any(line.startswith(f"  note: streamed: shard 2 on {label}; ") for line in told)
    assert "  shard 2 of m: streamed: what does not fit is read from its file for each token" in told
    assert not any("shard 1 of m: streamed" in line for line in told)


def test_a_node_that_offers_without_end_takes_no_room_without_end() -> None:
    cluster = Cluster()
    cluster.handle(NodeJoined(0.0, hello(1)))
    for number in range(MAX_UNSERVED + 10):
        manifest = make_manifest((0, 2), n_vocab=300 + number)
        cluster.handle(ManifestRefused(node_id(1), manifest, "nobody signed its manifest"))
    assert len(cluster.nodes[node_id(1)].unserved) == MAX_UNSERVED


def test_a_node_that_is_not_needed_is_called_a_spare_while_all_is_well() -> None:
    """It looked like one that waits for something: `0 loaded of 0 held`."""
    cluster = ready_cluster(NEW, {1: range(NEW.n_shards)})
    cluster.handle(NodeJoined(0.0, hello(2)))
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    (line,) = [line for line in status_lines(here) if line.startswith("node-2")]
    assert line.endswith("spare: every layer is held by others; it takes over when a node goes")
    assert not here.spare(cluster.nodes[node_id(1)])
    cluster.handle(NodeJoined(0.0, hello(3, assigned=((NEW.model_id, 7),))))
    assert not here.spare(cluster.nodes[node_id(3)])  # bound to a shard that is not there, it takes over nothing
    cluster.handle(NodeDrains(1.0, node_id(1)))
    assert not here.spare(cluster.nodes[node_id(2)])  # now it is needed


def test_the_strip_does_not_count_layers_of_a_node_that_leaves() -> None:
    cluster = ready_cluster(NEW, {1: (0, 1), 2: (2,)})
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    assert "  [██████]" in status_lines(here)
    cluster.handle(NodeDrains(1.0, node_id(2)))
    told = status_lines(here)
    assert "  [████--]" in told
    assert any("node-2 (leaving)" in line for line in told)


def test_a_node_that_has_just_come_with_an_unknown_model_is_about_to_say_what_it_is() -> None:
    cluster, now_s = Cluster(), time.monotonic()
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    assert not here.awaits_manifest()
    cluster.handle(NodeJoined(now_s, hello(1, [held(NEW, 0)])))
    assert here.awaits_manifest()
    cluster.handle(ManifestRefused(node_id(1), NEW, "nobody signed it"))
    assert not here.awaits_manifest()
    cluster.handle(NodeJoined(now_s - 60, hello(2, [held(OLD, 0)])))
    assert not here.awaits_manifest()  # it had its time


def test_nothing_is_logged_as_missing_before_the_plan_that_may_mend_it() -> None:
    cluster = Cluster()
    cluster.handle(ManifestKnown(NEW))
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    here.plan_is_due = True
    with capture_logs() as logs:
        here.tell()
        assert logs == []
        here.plan_is_due = False
        here.tell()
    assert [line["event"] for line in logs] == ["pipeline_incomplete"]


def test_a_model_on_its_way_is_logged_once_and_without_alarm() -> None:
    """Three nodes that came one by one wrote six warnings, all of them of loads that went well."""
    cluster = ready_cluster(NEW, {1: (0,)})
    here = Standing(cluster, ModelsSettings(), PlacementSettings(), SequenceSettings())
    with capture_logs() as logs:
        for shard in (1, 2):
            cluster.handle(LoadSent(0.0, node_id(1), (NEW.model_id, shard), 10))
            here.tell()
    assert [(line["event"], line["log_level"]) for line in logs] == [("pipeline_loading", "info")]


def test_where_no_model_is_known_the_status_says_where_was_looked_and_how_to_name_another_folder() -> None:
    """The cache is relative to the folder that one is in: split in one and served from another found nothing, and said no more."""
    here = Standing(Cluster(), ModelsSettings(), PlacementSettings(), SequenceSettings())
    (told,) = [line for line in status_lines(here) if line.startswith("No model is known")]
    assert "/srv/models" in told
    assert "--models-cache FOLDER" in told
