"""What a coordinator's /status says of its swarm, in findings."""

from __future__ import annotations

import socket
from typing import Any

from shardnet import __version__
from shardnet.doctor.findings import Finding
from shardnet.doctor.swarm import SwarmFacts, coordinator_clock_s, look_at_swarm, swarm_findings
from shardnet.messages import Address

ID = {name: f"{index:040x}" for index, name in enumerate(("a", "b", "c"), start=1)}


def node(name: str, **more: Any) -> dict[str, Any]:
    """One node of /status, as far as it is looked at."""
    fields = {
        "held": [],
        "node_id": ID[name],
        "name": name,
        "reach": [],
        "bound_to_nothing": [],
        "failed": [],
        "refused": [],
        "not_served": [],
    }
    return fields | {"software": software(), "clock_ahead_s": 0.0} | more


def software(**more: str) -> dict[str, str]:
    return {"shardnet": __version__, "llama": "0.3.36", "arithmetic": "AVX AVX2"} | more


def link(a: str, b: str) -> dict[str, str]:
    return {"source": ID[a], "target": ID[b]}


def status(*nodes: dict[str, Any], links: tuple[dict[str, str], ...] = (), **more: Any) -> dict[str, Any]:
    about = {
        "version": __version__, "refused": [], "swarm_id": "s" * 40, "clock_s": 1000.0, "dht_contacts": len(nodes),
        "addresses": {"dht": "127.0.0.1:7702"},
    }  # fmt: skip
    about |= more.pop("coordinator", {})
    return {"coordinator": about, "nodes": list(nodes), "links": list(links), "models": [], "kept_out": []} | more


def found(told: dict[str, Any] | None, **more: Any) -> dict[tuple[str, str], list[Finding]]:
    """Returns: (check, level) -> findings."""
    sorted_out: dict[tuple[str, str], list[Finding]] = {}
    for one in swarm_findings(SwarmFacts("http://x", told, **more)):
        sorted_out.setdefault((one.check, one.level), []).append(one)
    return sorted_out


def model(**more: Any) -> dict[str, Any]:
    return {"model": "m", "model_id": "ab" * 32, "ready": True, "reason": None, "pipelines": []} | more


def test_a_swarm_that_is_well_is_told_in_one_line_a_check() -> None:
    well = status(node("a"), node("b"), links=(link("a", "b"),), models=[model()])
    assert {level for _, level in found(well)} == {"ok"}


def test_no_coordinator_is_a_note_where_none_is_expected_and_else_a_warning() -> None:
    assert ("coordinator", "note") in found(None, trouble="none")
    assert ("coordinator", "warning") in found(None, trouble="none", is_expected=True)
    assert ("coordinator", "warning") in found(None, trouble="none", running={ID["a"]: "a"})


def test_a_coordinator_whose_api_is_elsewhere_is_told_apart_from_one_that_cannot_be_reached() -> None:
    reached = found(None, trouble="none", door="10.0.0.1:7700", running={ID["a"]: "a"})[("coordinator", "note")]
    assert reached[0].what.startswith("it is reached at 10.0.0.1:7700, where nodes join")
    lost = {"trouble": "none", "door": "10.0.0.1:7700", "door_trouble": "connection refused"}
    assert found(None, **lost)[("coordinator", "warning")][0].what.endswith("10.0.0.1:7700: connection refused")
    assert ("coordinator", "fault") in found(None, **lost, running={ID["a"]: "a"})


def test_the_door_is_tried_and_what_comes_of_it_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        open_one = look_at_swarm("http://127.0.0.1:1", is_expected=False, door=here(port), running={})
    shut = look_at_swarm("http://127.0.0.1:1", is_expected=False, door=here(port), running={})
    assert (open_one.door_trouble, shut.door_trouble) == ("", "connection refused")
    assert "no coordinator answers at http://127.0.0.1:1" in shut.trouble


def here(port: int) -> Address:
    return Address(host="127.0.0.1", port=port)


def test_a_node_that_runs_here_and_is_not_known_there_is_a_fault() -> None:
    (one,) = found(status(node("a")), running={ID["a"]: "a", ID["b"]: "node-2"})[("nodes", "fault")]
    assert one.what.startswith("node-2 (")
    assert "the coordinator does not have it" in one.what


def test_what_is_wrong_with_a_node_is_told_by_its_name() -> None:
    held = {"shard_id": 1, "model": "m", "file_trouble": "its file is gone: it works on"}
    bad = node(
        "a",
        held=[held],
        reach=["b cannot dial it at 1.2.3.4:5: open that port"],
        failed=[{"shard_id": 3, "reason": "too large"}],
        refused=["x.gguf is damaged"],
        bound_to_nothing=["it is bound to shard 9"],
    )
    told = [one.what for one in found(status(bad))[("nodes", "warning")]]
    assert told == [
        "a: shard 1 of m: its file is gone: it works on",
        "a: b cannot dial it at 1.2.3.4:5: open that port",
        "a: it is bound to shard 9",
        "a: shard 3 failed: too large",
        "a, in its models cache: x.gguf is damaged",
    ]


def test_nodes_without_a_link_of_their_own_are_named_in_pairs() -> None:
    (one,) = found(status(node("a"), node("b"), node("c"), links=(link("a", "b"), link("c", "b"))))[("links", "note")]
    assert one.what.startswith("not measured: a and c.")


def test_a_model_that_is_not_ready_not_served_or_takes_a_detour_is_told_with_the_reason() -> None:
    stage = {"node": "b", "relayed": True}
    reason = {"model": "old", "model_id": "cd" * 32, "reason": "nobody signed its manifest: split it"}
    told = status(
        node("a", not_served=[reason]),
        node("b", not_served=[reason]),
        links=(link("a", "b"),),
        models=[model(ready=False, reason="layers are missing"), model(pipelines=[[stage]])],
        kept_out=[{"reason": "model x was not proved"}],
    )
    warned = [one.what for one in found(told)[("models", "warning")]]
    assert warned[0].endswith("layers are missing")
    assert "what goes to b takes the way through the coordinator" in warned[1]
    assert "which a, b has, is not served: nobody signed" in warned[2]
    assert found(told)[("models", "note")][0].what == "kept out: model x was not proved"


def test_members_with_other_software_are_told_with_what_it_means() -> None:
    mixed = status(
        node("a", software=software(llama="0.3.40", arithmetic="AVX")),
        node("b"),
        node("c", software=None),
        coordinator={"version": "0.0.9"},
    )
    told = found(mixed)
    assert "it runs shardnet 0.0.9" in told[("coordinator", "warning")][0].what
    assert told[("versions", "warning")][0].what == "llama.cpp differs between nodes: 0.3.36: b; 0.3.40: a"
    assert [one.what.split(":")[0] for one in told[("versions", "note")]] == [
        "llama.cpp's instruction sets differs between nodes",
        "c run an older shardnet, which does not tell its version",
    ]


def test_a_nodes_clock_that_is_far_off_is_told() -> None:
    (one,) = found(status(node("a", clock_ahead_s=-95.0)))[("versions", "warning")]
    assert one.what == "the clock of a was 95 s behind the coordinator's when it joined"
    assert coordinator_clock_s(SwarmFacts("x", status())) == 1000.0
    assert coordinator_clock_s(SwarmFacts("x")) is None


def test_a_dht_that_hears_nobody_is_a_warning() -> None:
    assert ("DHT", "warning") in found(status(node("a"), coordinator={"dht_contacts": 0}))
    assert ("DHT", "note") in found(status(coordinator={"addresses": {"dht": None}}))
