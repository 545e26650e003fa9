"""`shardnet status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardnet.cli.options import Api, AsJson

if TYPE_CHECKING:
    from shardnet.coordinator.api.client import ApiClient

WIDTH = 64
"""Characters of the strip that shows a model's layers, at most."""


def status(
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.2, max=3600, help="How often --watch looks.")] = 1.0,
    api: Api = None,
) -> None:
    """Show nodes, layers and who holds them, loads in progress."""
    import json

    from shardnet.coordinator.api.client import ApiClient, find_api

    with ApiClient(find_api(api)) as client:
        if watch:
            _watch(client, every, as_json=as_json)
            return
        found = client.get("/status")
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(in_words(found))


def in_words(found: dict[str, Any]) -> str:
    """Returns: the status, a line each. Raises: ProtocolError if the coordinator runs a version that does not say all that is shown."""
    from shardnet.errors import ProtocolError

    try:
        return "\n".join(lines(found))
    except KeyError as error:
        raise ProtocolError(
            f"the coordinator runs another version of shardnet than this command: it does not tell {error}; "
            "start it again with this one, or see all that it tells by `shardnet status --json`"
        ) from None


def _watch(client: ApiClient, every_s: float, *, as_json: bool) -> None:
    """Show the status until Ctrl-C; a coordinator that is gone is waited for. Without a terminal each look is printed below the last."""
    import json
    import sys
    import time

    from rich.live import Live
    from rich.text import Text

    from shardnet.errors import UnreachableError

    def look() -> str:
        try:
            found = client.get("/status")
        except UnreachableError as error:
            return json.dumps({"error": str(error)}) if as_json else f"{error}; trying again"
        return json.dumps(found) if as_json else in_words(found)

    try:
        if as_json or not sys.stdout.isatty():
            while True:
                typer.echo(look() if as_json else f"{time.strftime('%H:%M:%S')}\n{look()}\n")
                sys.stdout.flush()
                time.sleep(every_s)
        with Live(Text(look()), screen=True, auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                time.sleep(every_s)
                live.update(
                    Text(f"{time.strftime('%H:%M:%S')}, every {every_s:g} s, Ctrl-C ends\n\n{look()}"), refresh=True
                )
    except KeyboardInterrupt:
        return  # the way it is meant to end


def lines(found: dict[str, Any]) -> list[str]:
    """Returns: the status as people read it."""

    about, requests = found["coordinator"], found["requests"]
    shown = [
        f"Coordinator {about['node_id'][:12]} of swarm {about['swarm_id'][:12]}, up {_duration(about['uptime_s'])}, "
        f"nodes join at {about['addresses']['nodes']}, API at http://{about['addresses']['api']}/v1",
        f"Requests: {requests['running']} running, {requests['queued']} waiting, {requests['finished']} finished, {requests['failed']} failed",
        _prompts(requests),
    ]
    for model in found["models"]:
        shown += ["", *_model_lines(model)]
    for one in found["kept_out"]:
        shown += ["", f"KEPT OUT: {one['reason']}"]
    if not found["models"] and any(node["not_served"] for node in found["nodes"]):
        shown += ["", "No model is served: the reasons stand below the nodes that have some."]
    elif not found["models"] and not found["kept_out"]:
        shown += [
            "",
            f"No model is known: none lies in {about['models_cache']} on the coordinator's machine, and no node brings one. "
            "Put one there with `shardnet split`, or start coordinator or node with --models-cache FOLDER.",
        ]
    shown += ["", *_node_lines(found["nodes"])]
    shown += [f"The coordinator's models cache: {reason}" for reason in about["refused"]]
    return shown


def _prompts(requests: dict[str, Any]) -> str:
    """What was read of prompts, and what was not since it was there. Coordinators of before do not tell all of it."""
    from shardnet.log import counted

    waits, waited_s = requests["prefix_waits"], requests.get("prefix_waited_s", 0.0)
    over = waits - requests.get("waiting", 0)
    waited = f"{waits} waited for one" + (f", {waited_s / over:.1f} s on average" if over > 0 and waited_s else "")
    if requests.get("waiting"):
        waited += f", of whom {requests['waiting']} still {'waits' if requests['waiting'] == 1 else 'wait'}"
    kept = f"{counted(requests['sequences_kept'], 'finished sequence')} kept"
    for key, how in (("prefix_evicted", "freed for room"), ("prefix_refused", "not found by a stage")):
        kept += f", {requests[key]} {how}" if requests.get(key) else ""
    return (
        f"Prompts: {counted(requests['prompt_tokens'], 'token')}, {requests['prefix_tokens_reused']} of them in KV already, "
        f"for {counted(requests['prefix_hits'], 'request')} ({requests['prefix_copies']} by a copy of another's beginning; {waited}); {kept}"
    )


def _model_lines(model: dict[str, Any]) -> list[str]:
    from shardnet.log import counted, human_bytes

    state = "ready" if model["ready"] else "NOT READY"
    shown = [
        f"Model {model['model']} ({model['model_id'][:12]}): {state}. {model['architecture']}, {model['quantisation']}, "
        f"{counted(model['n_layers'], 'layer')} in {counted(model['n_shards'], 'shard')}, {human_bytes(model['total_bytes'])}"
    ]
    for row in model["layers"]:
        shards = f"shard {row['first_shard']}"
        if row["end_shard"] - row["first_shard"] > 1:
            shards = f"shards {row['first_shard']}-{row['end_shard'] - 1}"
        holders = ", ".join(_holder(one) for one in row["holders"]) or "nobody"
        shown.append(f"  layers {row['first']:>3} to {row['end'] - 1:<3}  {shards:<14}  {holders}")
    shown.append(f"  [{strip(model['layers'], model['n_layers'])}]")
    for pipeline in model["pipelines"]:
        shown.append("  pipeline: " + " -> ".join(map(_stage, pipeline)))
    if not model["proved"]:
        shown.append(f"  NOT PROVED: {model['unproved_reason']}")
    if model["reason"]:
        shown.append(f"  {model['reason']}")
    shown += [f"  note: {note}" for note in model["notes"]]
    return shown


def _stage(stage: dict[str, Any]) -> str:
    return f"{stage['node']} {stage['layers']}" + (" (through the coordinator)" if stage["relayed"] else "")


def strip(rows: list[dict[str, Any]], n_layers: int) -> str:
    """Returns: a model's layers from first to last: █ in memory, ▒ on its way, - on a disk alone or leaving, a gap where nobody has them."""
    marks = [" "] * n_layers
    for row in rows:
        states = {one["state"] for one in row["holders"]}
        mark = (
            "█" if states & {"ready", "loaded"} else "▒" if states - {"on disk", "leaving"} else "-" if states else " "
        )
        marks[row["first"] : row["end"]] = [mark] * (row["end"] - row["first"])
    if n_layers <= WIDTH:
        return "".join(marks)
    # Of several layers in one character the one that is worst off is shown: a gap is not to be overlooked.
    parts = [marks[n_layers * at // WIDTH : n_layers * (at + 1) // WIDTH] for at in range(WIDTH)]
    return "".join(min(part, key=" -▒█".index) for part in parts)


def _holder(one: dict[str, Any]) -> str:
    progress = f" {100 * one['progress']:.0f} %" if one["progress"] is not None else ""
    return f"{one['node']} ({one['state']}{progress})"


def _node_lines(nodes: list[dict[str, Any]]) -> list[str]:
    from shardnet.log import human_bytes

    if not nodes:
        return ["No node is connected: start one with `shardnet node`."]
    shown = [f"{'NODE':<20} {'ID':<12} {'STATE':<8} {'FREE':>9} {'BUSY':>5} {'SEQ':>4}  SHARDS"]
    for node in nodes:
        loaded = sum(1 for shard in node["held"] if shard["loaded"])
        shards = f"{loaded} of {len(node['held'])} loaded"
        if node["loading"]:
            shards += f", {len(node['loading'])} on the way"
        if node["spare"]:
            shards = node["spare"]
        shown.append(
            f"{node['name'][:20]:<20} {node['node_id'][:12]:<12} {node['state']:<8} {human_bytes(node['memory_free_bytes']):>9} "
            f"{100 * node['load']:>4.0f}% {node['sequences']:>4}  {shards}"
        )
        if node["memory_limit"]:
            shown.append(f"  its memory: {node['memory_limit']}")
        shown += [
            f"  shard {one['shard_id']} of {one['model']}: {one['streamed_sentence']}"
            for one in node["held"]
            if one["loaded"] and one["memory_mode"] == "streamed"
        ]
        shown += [
            f"  ⚠️  shard {one['shard_id']} of {one['model']}: {one['file_trouble']}"
            for one in node["held"]
            if one["file_trouble"]
        ]
        shown += [f"  ⚠️  {sentence}" for sentence in node["reach"]]
        for load in node["loading"]:
            shown.append(f"  {_load_line(load)}")
        shown += [f"  {sentence}" for sentence in node["bound_to_nothing"]]
        shown += [f"  shard {one['shard_id']} failed: {one['reason']}" for one in node["failed"]]
        shown += [
            f"  model {one['model']} ({one['model_id'][:12]}) is not served: {one['reason']}"
            for one in node["not_served"]
        ]
        shown += [f"  refused: {reason}" for reason in node["refused"]]
    return shown


def _load_line(load: dict[str, Any]) -> str:
    from shardnet.log import counted, human_bytes

    share = 100 * load["done_bytes"] / load["total_bytes"] if load["total_bytes"] else 0
    text = f"{load['stage']} shard {load['shard_id']} of {load['model']}: {share:.0f} %"
    if load["total_bytes"]:
        text += f" of {human_bytes(load['total_bytes'])}"
    if load["bytes_per_s"]:
        text += f", {human_bytes(load['bytes_per_s'])}/s"
    if load["peers"]:
        text += f", {counted(load['peers'], 'peer')}"
    if load["memory_bytes"]:
        text += (
            f"; the engine has {human_bytes(load['memory_bytes'])} and keeps {load['cpu_cores']:.1f} processors busy"
        )
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
