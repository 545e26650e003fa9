"""structlog set-up: facts for programs, sentences for people.

Code logs a fixed snake_case fact and keys with units: `log.info("shard_loaded_before_join", shard_id=0, path=...)`. On a terminal the milestones
that people watch for become the tagged sentences of `MILESTONES`, and so they do in a file, with the date before them; where JSON is asked for
every fact is one object a line. Prompts, tensors, tokens and keys
are never logged; `_redact` is the last fence.
"""

from __future__ import annotations

import contextlib
import logging
import string
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["auto", "pretty", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

MILESTONES: dict[str, tuple[str, str]] = {
    "shard_loaded_before_join": ("SHARD", "✓✓✓ SHARD {shard_id} LOADED BEFORE JOINING NETWORK ✓✓✓"),
    "shard_path": ("SHARD", "  Path: {path}"),
    "shard_available": ("SHARD", "  Shard will be available for inference immediately"),
    "shard_not_found_locally": ("SHARD", "⚠️  ASSIGNED SHARD {shard_id} NOT FOUND LOCALLY ⚠️"),
    "shard_will_download": (
        "SHARD",
        "  Node will join the network and download shard when LOAD_SHARD command is received.",
    ),
    "shard_there_is_none": ("SHARD", "⚠️  {reason}"),
    "shard_found": ("SHARD", "Found shard {shard_id} of {model} (layers {layers}, {size})"),
    "shard_refused": ("SHARD", "⚠️  {path} refused: {reason}"),
    "shard_loading": (
        "SHARD",
        "Loading shard {shard_id}: {percent:.0f} % ({done} of {total}, {rate}); the engine has {memory} and keeps {cores:.1f} processors busy",
    ),
    "shard_in_memory": ("SHARD", "✓ Shard {shard_id} is in memory: {size} in {seconds:.2f} s ({rate})"),
    "shard_memory_mode": ("SHARD", "Shard {shard_id} is {mode}: {why}"),
    "shard_unloaded": ("SHARD", "Unloaded shard {shard_id} of {model}"),
    "shards_scanned": ("SHARD", "{shards:shard} of {models:model} in {path} ({seconds:.2f} s)"),
    "no_shards_here": (
        "SHARD",
        "No shard lies in {path}: --models-cache FOLDER (node.models_cache) names another folder; what this node has to run it fetches",
    ),
    "load_shard_received": ("LOAD_SHARD", "Shard {shard_id} of {model} requested"),
    "load_shard_already_loaded": ("LOAD_SHARD", "✓ Shard {shard_id} already loaded"),
    "load_shard_local": ("LOAD_SHARD", "✓ Loaded shard {shard_id} from local directory"),
    "load_shard_torrent": ("LOAD_SHARD", "✓ Loaded shard {shard_id} from: torrent"),
    "load_shard_failed": ("LOAD_SHARD", "✗ Shard {shard_id}: {reason}"),
    "inference_loaded_shard": ("INFERENCE", "Loaded shard {shard_id} from: {path}"),
    "variable_unread": ("SETTINGS", "⚠️  {reason}"),
    "engine_started": ("INFERENCE", "Engine process {pid} started ({devices})"),
    "engine_crashed": ("INFERENCE", "⚠️  Engine process died ({reason}); starting it again with its {shards:shard}"),
    "engine_restored": ("INFERENCE", "✓ Engine is back with {shards:shard}"),
    "task_failed": ("TASK", "✗ {task}: {reason}"),
    "request_finished": (
        "TASK",
        "{request_id}: {prompt_tokens} prompt + {completion_tokens:token} in {seconds:.2f} s, {tokens_per_s:.1f} tokens/s",
    ),
    "request_failed": ("TASK", "{request_id} ✗ {reason}"),
    "node_joined": ("NODE", "✓ Joined coordinator {coordinator} as {name} ({node_id})"),
    "node_waits": (
        "NODE",
        "No shard is held here: the coordinator gives this node one in a moment, or keeps it as a spare if others hold every layer; "
        "`shardnet status` shows which. What is cut on this machine from now on is found when the node starts again",
    ),
    "node_not_joined": ("NODE", "No coordinator yet: {reason}; trying again"),
    "node_disconnected": ("NODE", "⚠️  Coordinator lost ({reason}); trying again"),
    "node_reached_at": ("NODE", "Others reach this node at {now}"),
    "node_moved": ("NODE", "Others reach this node at {now} now, no longer at {before}"),
    "node_not_dialable": (
        "NODE",
        "⚠️  Others cannot dial this node, and reach it through the coordinator only: {reason}",
    ),
    "node_shares_nothing": ("NODE", "⚠️  Nothing is announced and no shard is given: {reason}"),
    "link_unreachable": ("COORDINATOR", "⚠️  {source} cannot dial {target}, steps go through here: {reason}"),
    "node_listening": ("NODE", "Listening on {address}"),
    "node_draining": ("NODE", "Draining: {tasks:task} to finish; Ctrl-C once more ends it at once"),
    "node_stopped": ("NODE", "Stopped"),
    "coordinator_listening": ("COORDINATOR", "Nodes join at {address}"),
    "api_listening": ("COORDINATOR", "OpenAI API at http://{address}/v1"),
    "next_machine": (
        "COORDINATOR",
        "The next machine: `shardnet swarm invite --address THIS-MACHINE:{enrol_port}` here prints a token; "
        "there `shardnet join TOKEN`, then `shardnet node --listen 0.0.0.0:7710`",
    ),
    "next_node": (
        "COORDINATOR",
        "On this machine: `shardnet node`. Other machines cannot reach {address}: for them start with --listen 0.0.0.0:7700 --enrol 0.0.0.0:7701",
    ),
    "page_listening": ("COORDINATOR", "Web page at http://{address}/"),
    "no_models_here": (
        "COORDINATOR",
        "No model lies in {path}: `shardnet split MODEL` puts one there, --models-cache FOLDER (models.cache) names another; nodes bring theirs",
    ),
    "peer_joined": ("COORDINATOR", "✓ {name} ({node_id}) joined with {shards:shard}"),
    "node_leaving": ("COORDINATOR", "{node} is leaving: {reason}"),
    "tokenizer_fetched": ("COORDINATOR", "✓ Tokenizer of {model} is here"),
    "peer_left": ("COORDINATOR", "{name} ({node_id}) has left in order, as it announced"),
    "peer_lost": (
        "COORDINATOR",
        "⚠️  {name} ({node_id}) is lost, it did not say good-bye: {reason}. Its layers are given to others where there is room",
    ),
    "peer_refused": ("COORDINATOR", "✗ Peer {peer} refused: {reason}"),
    "link_refused": ("LINK", "✗ Peer {peer} refused: {reason}"),
    "link_evicted": ("LINK", "✗ Link to {node_id} at {peer} cut: {reason}"),
    "enrolment_refused": ("SWARM", "✗ {peer} not enrolled: {reason}"),
    "swarm_created": ("SWARM", "✓ New swarm {swarm_id} in {home}"),
    "enrolment_listening": ("COORDINATOR", "Machines with a join token are taken in at {address}"),
    "api_open_to_everybody": ("COORDINATOR", "⚠️  Anybody who reaches {address} can use the API: {advice}"),
    "coordinator_draining": ("COORDINATOR", "Stopping: {requests:request} to finish"),
    "load_progress": ("COORDINATOR", "Shard {shard_id} of {model} on {node}: {stage} {percent:.0f} %"),
    "load_finished": ("COORDINATOR", "✓ Shard {shard_id} of {model} is in the memory of {node} (from {source})"),
    "load_failed": ("COORDINATOR", "⚠️  Shard {shard_id} of {model} on {node}: {reason}"),
    "placement_note": ("COORDINATOR", "{note}"),
    "request_rerouted": ("TASK", "{request_id} goes on along another route of {stages:stage}"),
    "request_cancelled": ("TASK", "{request_id} cancelled after {completion_tokens:token}"),
    "step_failed": ("TASK", "⚠️  {request_id}: a step failed on {node}: {reason}"),
    "pipeline_ready": ("COORDINATOR", "✓ {model} is ready: {stages}"),
    "pipeline_loading": ("COORDINATOR", "{model} is on its way: {reason}"),
    "pipeline_incomplete": ("COORDINATOR", "⚠️  {model} is not complete: {reason}"),
    "member_enrolled": ("COORDINATOR", "✓ {name} ({node_id}) enrolled by invitation"),
    "dht_announced": ("DHT", "✓✓✓ ANNOUNCED SHARD {shard_id} TO DHT ✓✓✓"),
    "dht_withdrawn": ("DHT", "Withdrew shard {shard_id} from DHT"),
    "dht_coordinator_withdrawn": ("DHT", "Withdrew this coordinator from DHT"),
    "dht_manifest_withdrawn": ("DHT", "Withdrew manifest {model_id} from DHT"),
    "dht_coordinator_announced": ("DHT", "✓ Announced this coordinator to DHT"),
    "dht_manifest_announced": ("DHT", "✓ Announced manifest {model_id} to DHT"),
    "dht_listening": ("DHT", "Listening on {address} (UDP)"),
    "dht_joined": ("DHT", "✓ Joined with {peers:peer}"),
    "dht_left_in_haste": (
        "DHT",
        "Left without withdrawing {announcements:announcement}: they end by themselves within minutes",
    ),
    "dht_alone": ("DHT", "No member that is known here answers on the DHT; they are asked again now and then"),
    "dht_rejected": ("DHT", "Left out a {what} from {source}: {reason}; {meaning}"),
    "torrent_progress": ("TORRENT", "shard {shard_id} {percent:.0f} % {rate}, {peers:peer}{left}"),
    "torrent_finished": ("TORRENT", "✓ Shard {shard_id} downloaded and verified ({size} in {seconds:.1f} s)"),
    "torrent_seeding": ("TORRENT", "Seeding shard {shard_id} ({size})"),
    "open_seed_listening": (
        "TORRENT",
        "⚠️  Anybody who has the torrents and reaches {host} port {port} (TCP) can take these shards",
    ),
    "torrent_peer_banned": ("TORRENT", "⚠️  Banned {peer}: it sent bad pieces"),
    "shard_evicted": ("SHARD", "Deleted {path} to make room: it is on {holders:other node} still"),
    "exchange_ended": ("TORRENT", "{sent_bytes:byte} given, {taken_bytes:byte} taken"),
    "shard_has_no_holder_yet": ("TORRENT", "Nobody gives shard {shard_id} of {model} yet: {reason}"),
    "shard_comes_by_relay": ("TORRENT", "⚠️  Shard {shard_id} of {model} comes through the coordinator: {reason}"),
    "shard_file_gone": ("SHARD", "⚠️  {path} is gone: {advice}"),
    "shard_rotten": ("SHARD", "⚠️  {path} is damaged: {advice}"),
    "shard_unreadable": ("SHARD", "⚠️  {path} cannot be read: {advice}"),
    "torrent_stalled": ("TORRENT", "⚠️  Shard {shard_id}: no progress for {seconds:.0f} s ({reason})"),
}
"""Fact -> (tag, sentence)."""

SECRET_KEYS = frozenset(
    {
        "prompt",
        "messages",
        "text",
        "tokens",
        "token",
        "key",
        "secret",
        "api_key",
        "private_key",
        "tensor",
        "hidden",
        "logits",
    }
)

Event = MutableMapping[str, Any]


class _Lines(structlog.PrintLogger):
    """Writes lines, as long as somebody takes them: a terminal that is gone or a disk that is full ends no daemon."""

    def msg(self, message: str) -> None:
        """Write one line."""
        with contextlib.suppress(OSError, ValueError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure(*, level: LogLevel = "info", form: LogFormat = "auto", stream: TextIO | None = None) -> None:
    """Set up logging for this process. `auto` and `pretty` write sentences; into anything but a terminal `auto` writes the date too."""
    stream = stream or sys.stderr
    pretty = form != "json"
    clock = "%Y-%m-%d %H:%M:%S" if form == "auto" and not stream.isatty() else "%H:%M:%S"
    threshold = getattr(logging, level.upper())
    renderer = _sentence if pretty else structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt=clock if pretty else "iso", utc=not pretty),
            structlog.processors.format_exc_info,
            _redact,
            _tell_watchers,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(
        level=max(threshold, logging.WARNING), stream=stream, format="%(levelname)s %(name)s: %(message)s", force=True
    )


def _redact(_logger: Any, _method: str, event: Event) -> Event:
    for key in SECRET_KEYS & event.keys():
        event[key] = "<redacted>"
    return event


Watcher = Callable[[Mapping[str, Any]], None]
"""Called with each fact that is logged, secrets taken out; whoever wants to keep it copies it."""
_watchers: list[Watcher] = []


def watch(watcher: Watcher) -> Callable[[], None]:
    """Have every fact that is logged from now on told to `watcher` as well, in the thread that logs it. Returns: what ends that."""
    _watchers.append(watcher)
    return lambda: _watchers.remove(watcher)


def _tell_watchers(_logger: Any, _method: str, event: Event) -> Event:
    for watcher in tuple(_watchers):
        watcher(event)
    return event


CONTEXT_KEYS = frozenset({"node_id", "role", "peer_id", "command_id", "level", "timestamp", "event", "exception"})
MARKS = {"warning": "⚠️  ", "error": "✗ ", "critical": "✗ "}


def _sentence(_logger: Any, _method: str, event: Event) -> str:
    """Returns: `12:00:01 [SHARD] ✓✓✓ SHARD 0 LOADED BEFORE JOINING NETWORK ✓✓✓`."""
    return f"{event.get('timestamp', '')} {sentence(event)}"


def sentence(event: Mapping[str, Any]) -> str:
    """Returns: a fact as people read it, without the time: `[SHARD] ✓✓✓ SHARD 0 LOADED BEFORE JOINING NETWORK ✓✓✓`."""
    name, level = str(event.get("event", "")), str(event.get("level", "info"))
    if name in MILESTONES:
        tag, words = MILESTONES[name]
        try:
            text = f"[{tag}] {_COUNTING.vformat(words, (), event)}"
        except (KeyError, ValueError, IndexError):
            text = f"[{tag}] {name} {_pairs(event)}"
    else:
        text = f"{MARKS.get(level, '')}{name.replace('_', ' ')}  {_pairs(event)}".rstrip()
    if "exception" in event:
        text += "\n" + str(event["exception"])
    return text


class _Counting(string.Formatter):
    """Fills in a sentence. A noun in place of a format, `{shards:shard}`, writes the number with it."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Returns: `3 shards` of 3 and `shard`."""
        if len(format_spec) > 1 and format_spec.replace(" ", "").isalpha():
            return counted(value, format_spec)
        return super().format_field(value, format_spec)


_COUNTING = _Counting()


def _pairs(event: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in event.items() if key not in CONTEXT_KEYS)


def get(name: str) -> Any:
    """Returns: a structlog logger bound to `part=name`."""
    return structlog.get_logger(part=name)


def counted(number: float, noun: str) -> str:
    """Returns: `1 peer`, `2 peers`: every sentence that counts something is written with this."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_bytes(count: float) -> str:
    """Returns: `98.4 MB`: decimal units, as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
