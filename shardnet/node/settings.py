"""Everything a node's user may set. `configs/node.toml` shows every key with its default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from shardnet.dht.settings import DhtSettings
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.log import LogFormat, LogLevel
from shardnet.messages import ShardOptions
from shardnet.metrics.settings import MetricsSettings
from shardnet.node.weights.settings import NodeTorrentSettings
from shardnet.settings import Section, as_fault
from shardnet.swarm.addresses import parse_address, parse_host_port
from shardnet.swarm.whereabouts import advertised_address


class NodeSection(Section):
    """The daemon itself: who it is, where it listens, what it holds."""

    name: str | None = Field(default=None, description="this node's name; not set: the first free of node, node-2, ...")
    coordinator: str | None = Field(
        default=None,
        description="HOST:PORT of the coordinator; not set: the one last seen on this machine, else 127.0.0.1:7700",
    )
    listen: str = Field(
        default="127.0.0.1:0", description="HOST:PORT for links of other nodes; port 0 takes any free one"
    )
    advertise: str | None = Field(
        default=None,
        description="HOST:PORT at which other nodes reach `listen`, behind port forwarding; not set: where it listens",
    )
    join_token_file: Path | None = Field(
        default=None,
        description="file with a join token, by which a home without a certificate joins at its first start; not read afterwards",
    )
    models_cache: Path = Field(default=Path("models_cache"), description="folder of the models' shards")
    shards: tuple[str, ...] = Field(
        default=(),
        max_length=10_000,
        description='shards this node is bound to, each "MODEL:ID" or "ID"; empty: whatever the coordinator gives it',
    )
    preload: Literal["assigned", "all"] = Field(
        default="assigned",
        description='what is taken into memory before joining: the assigned shards, or "all" that are found',
    )
    preload_n_ctx: int = Field(
        default=ShardOptions().n_ctx, ge=8, le=1 << 20, description="context of a preloaded shard, tokens per sequence"
    )
    preload_n_seq: int = Field(
        default=ShardOptions().n_seq, ge=1, le=256, description="sequences at a time of a preloaded shard"
    )
    preload_n_batch: int = Field(
        default=ShardOptions().n_batch, ge=1, le=8192, description="most tokens in one batch of a preloaded shard"
    )
    heartbeat_interval_s: float = Field(
        default=1.0, ge=0.01, le=60, description="seconds between two heartbeats to the coordinator"
    )
    dial_timeout_s: float = Field(
        default=3.0, gt=0, le=3600, description="seconds that another node may take to answer a dial"
    )
    join_timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="seconds that the coordinator may take to answer"
    )
    redial_after_s: float = Field(
        default=5.0,
        gt=0,
        le=86_400,
        description="seconds that a node which could not be dialled is reached through the coordinator",
    )
    drain_timeout_s: float = Field(
        default=10.0, ge=0, le=86_400, description="seconds that running tasks may take when the node is asked to stop"
    )
    max_tasks: int = Field(
        default=1024, ge=1, le=1_000_000, description="tasks here at the same time; more are refused as busy"
    )

    @field_validator("shards")
    @classmethod
    def _shards_name_a_shard(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        from shardnet.node.shards.assignment import parse_binding

        with as_fault():
            for text in texts:
                parse_binding(text)
        return texts

    @field_validator("name")
    @classmethod
    def _can_be_a_name(cls, name: str | None) -> str | None:
        from shardnet.swarm.identity import checked_name

        with as_fault():
            return None if name is None else checked_name(name)

    @field_validator("listen")
    @classmethod
    def _listens_at_an_address(cls, text: str) -> str:
        with as_fault():
            parse_host_port(text)
        return text

    @field_validator("coordinator")
    @classmethod
    def _can_be_dialled(cls, text: str | None) -> str | None:
        with as_fault():
            if text is not None:
                parse_address(text)
        return text

    @field_validator("advertise")
    @classmethod
    def _others_can_dial_it(cls, text: str | None) -> str | None:
        with as_fault():
            if text is not None:
                advertised_address(text)
        return text

    @property
    def preload_options(self) -> ShardOptions:
        """Returns: how shards are loaded before the coordinator has a say."""
        return ShardOptions(n_ctx=self.preload_n_ctx, n_seq=self.preload_n_seq, n_batch=self.preload_n_batch)


class NodeModelsSettings(Section):
    """Which models it runs."""

    require_proof: bool = Field(
        default=False, description="keep out models whose shards were not proved to give the unsplit model's numbers"
    )


class NodeDhtSettings(DhtSettings):
    """How this node meets others."""

    enabled: bool = Field(default=True, description="take part in the DHT; false: only the coordinator tells of others")
    listen_host: str = Field(default="", description="IP address of the UDP socket; empty: the host of node.listen")


class LogSection(Section):
    """What is written to stderr."""

    format: LogFormat = Field(
        default="auto",
        description='"auto": sentences, with the date where they go into a file; "pretty": always as on a terminal; "json": one object a line',
    )
    level: LogLevel = Field(default="info", description="debug, info, warning or error")


class NodeSettings(Section):
    """A node's whole settings."""

    node: NodeSection = Field(default=NodeSection(), description="the daemon")
    models: NodeModelsSettings = Field(default=NodeModelsSettings(), description="what it runs")
    inference: InferenceSettings = Field(default=InferenceSettings(), description="the engine")
    torrent: NodeTorrentSettings = Field(default=NodeTorrentSettings(), description="transfers")
    dht: NodeDhtSettings = Field(default=NodeDhtSettings(), description="meeting others")
    metrics: MetricsSettings = Field(default=MetricsSettings(), description="figures for Prometheus")
    log: LogSection = Field(default=LogSection(), description="logging")

    @property
    def named_peers(self) -> tuple[str, ...]:
        """Returns: HOST:PORT of the daemons that the user named, the coordinator first."""
        coordinator = self.node.coordinator
        return (*((coordinator,) if coordinator else ()), *self.dht.bootstrap)
