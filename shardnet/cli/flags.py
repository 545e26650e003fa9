"""Which setting each flag of a daemon says. `shardnet config show node -- FLAGS` reads them as `shardnet node FLAGS` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NODE = {
    "coordinator": "node.coordinator",
    "bootstrap": "dht.bootstrap",
    "listen": "node.listen",
    "name": "node.name",
    "join_token_file": "node.join_token_file",
    "models_cache": "node.models_cache",
    "shard": "node.shards",
    "memory_limit": "inference.memory_limit_bytes",
    "memory_mode": "inference.memory_mode",
    "threads": "inference.threads",
    "n_gpu_layers": "inference.n_gpu_layers",
    "metrics_listen": "metrics.listen",
    "log_format": "log.format",
    "log_level": "log.level",
}
SEED = {
    "folder": "node.models_cache",
    "coordinator": "node.coordinator",
    "bootstrap": "dht.bootstrap",
    "listen": "node.listen",
    "upload_limit": "torrent.upload_limit_bytes_per_s",
    "log_format": "log.format",
    "log_level": "log.level",
}
FETCH = {
    "out": "node.models_cache",
    "coordinator": "node.coordinator",
    "bootstrap": "dht.bootstrap",
    "listen": "node.listen",
    "log_format": "log.format",
    "log_level": "log.level",
}
COORDINATOR = {
    "listen": "listen.nodes",
    "api": "listen.api",
    "enrol": "listen.enrol",
    "dht_port": "dht.listen_port",
    "models_cache": "models.cache",
    "stages": "placement.stages",
    "replicas": "placement.replicas",
    "copies": "placement.copies",
    "n_ctx": "sequences.n_ctx",
    "n_seq": "sequences.n_seq",
    "n_batch": "sequences.n_batch",
    "metrics_listen": "metrics.listen",
    "log_format": "log.format",
    "log_level": "log.level",
}
"""A flag's parameter -> the setting's place."""
SIZES = frozenset({"memory_limit", "upload_limit"})


def settings_of(params: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """Returns: `{"section.key": value}` of the flags that were given. Raises: UsageError for a size that is none."""
    from shardnet.inference.splitting.cuts import parse_size

    found = {}
    for flag, key in table.items():
        value = params.get(flag)
        if value is None or value == () or value == []:
            continue
        found[key] = parse_size(value) if flag in SIZES else tuple(value) if isinstance(value, list) else value
    return found


def names_of(table: Mapping[str, str]) -> dict[str, str]:
    """Returns: `{"section.key": "--flag"}`."""
    return {key: f"--{flag.replace('_', '-')}" for flag, key in table.items()}
