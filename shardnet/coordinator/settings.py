"""What the coordinator can be told. Every key stands in `configs/coordinator.toml` with its default; a test keeps the two in step."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from shardnet.coordinator.requests.prefixes import Prefixes
from shardnet.coordinator.requests.speculation import ModelSpeculation
from shardnet.dht.settings import DhtSettings
from shardnet.log import LogFormat, LogLevel
from shardnet.messages import ShardOptions
from shardnet.settings import Section


class ListenSettings(Section):
    """Where the coordinator listens. Beyond loopback only where it is told so."""

    nodes: str = Field(default="127.0.0.1:7700", description="HOST:PORT for TLS links of nodes; port 0: any free one")
    enrol: str = Field(
        default="127.0.0.1:7701", description='HOST:PORT that takes in machines with a join token; "": nowhere'
    )
    api: str = Field(default="127.0.0.1:8080", description="HOST:PORT of the HTTP API (plain HTTP)")


class ModelsSettings(Section):
    """Which models are served."""

    cache: Path = Field(
        default=Path("models_cache"),
        strict=False,
        description="folder whose manifests the coordinator serves; tokenizers that it fetches are kept there too",
    )
    serve: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="names or ids of the models to serve; empty: every known name, of each the newest proved model",
    )


class PlacementSettings(Section):
    """Where shards go."""

    stages: int = Field(default=0, ge=0, le=256, description="force pipelines of so many stages; 0: the quickest")
    replicas: int = Field(default=1, ge=1, le=256, description="whole pipelines to keep loaded for each model")
    copies: int = Field(
        default=1,
        ge=1,
        le=256,
        description="nodes that shall have each shard's file, in memory or not: idle ones fetch the rarest",
    )
    headroom_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of each node's free memory that is left alone"
    )
    debounce_s: float = Field(default=0.2, ge=0, le=60, description="seconds to wait for more nodes before planning")
    dead_after_s: float = Field(
        default=5.0, gt=0, le=600, description="seconds without a heartbeat until a node counts as dead"
    )
    load_deadline_s: float = Field(
        default=3600.0, gt=0, le=86_400, description="seconds a node may take to fetch and load one shard"
    )
    measure_links: bool = Field(default=True, description="measure the links between nodes when they join")


class SequenceSettings(Section):
    """The context and KV cache that every shard is loaded with."""

    n_ctx: int = Field(default=4096, ge=8, le=1 << 20, description="most tokens of context of each sequence")
    n_seq: int = Field(default=4, ge=1, le=256, description="sequences with KV at the same time in each pipeline")
    n_batch: int = Field(default=512, ge=1, le=8192, description="most tokens in one batch")
    prompt_chunk: int = Field(
        default=0,
        ge=0,
        le=8192,
        description="tokens of a prompt that go through the stages at a time; 0: chosen by what was measured",
    )

    def to_options(self, n_ctx_train: int) -> ShardOptions:
        """Returns: load options of a model, its context no longer than it was trained for."""
        n_ctx = min(self.n_ctx, max(8, n_ctx_train))
        return ShardOptions(n_ctx=n_ctx, n_seq=self.n_seq, n_batch=min(self.n_batch, n_ctx))


class RequestSettings(Section):
    """How requests are treated."""

    max_queued: int = Field(
        default=64, ge=0, le=100_000, description="requests that may wait for a free sequence; more are answered 503"
    )
    queue_timeout_s: float = Field(
        default=60.0, gt=0, le=86_400, description="seconds a request may wait for a sequence"
    )
    step_deadline_s: float = Field(
        default=120.0, gt=0, le=86_400, description="seconds one step may take through the whole pipeline"
    )
    recovery_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="seconds a request waits for its lost stages to come back elsewhere"
    )
    template_timeout_s: float = Field(
        default=2.0, gt=0, le=60, description="seconds a model's chat template may run for one request"
    )
    max_body_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30, description="largest HTTP request body")


class SpeculationSettings(Section):
    """Proposing tokens that stood in the prompt or the answer before, while it is not yet known whether they are right."""

    enabled: bool = Field(
        default=True, description="propose tokens where that pays; a request can turn it off for itself"
    )
    max_draft: int = Field(default=15, ge=1, le=64, description="most proposed tokens under way")
    min_ngram: int = Field(
        default=2, ge=1, le=16, description="shortest run of tokens that must have stood there before"
    )
    max_ngram: int = Field(default=8, ge=1, le=16, description="longest run of tokens that is looked up, and first")
    max_streams: int = Field(
        default=1, ge=1, le=256, description="propose only while a model has so many requests in progress or fewer"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.max_ngram < self.min_ngram:
            raise ValueError("max_ngram is smaller than min_ngram")
        return self

    def to_model(self) -> ModelSpeculation:
        """Returns: the state that requests of one model share."""
        return ModelSpeculation(self.max_draft, self.min_ngram, self.max_ngram, self.max_streams)


class PrefixSettings(Section):
    """Finished sequences that stay in KV until room is needed."""

    enabled: bool = Field(default=True, description="start a prompt that begins like an earlier one from its KV")
    min_tokens: int = Field(
        default=16, ge=1, le=1 << 20, description="shortest common beginning that is worth it, tokens"
    )

    def to_prefixes(self) -> Prefixes | None:
        """Returns: an empty cache; None if there shall be none."""
        return Prefixes(self.min_tokens) if self.enabled else None


class ApiSettings(Section):
    """Who may use the HTTP API."""

    key: str = Field(
        default="", max_length=512, repr=False, description='clients must send it as "Authorization: Bearer"; "": none'
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=("localhost", "127.0.0.1", "::1"),
        strict=False,
        description='Host headers that are answered, against pages that rebind DNS names; ["*"]: all',
    )


class CoordinatorDhtSettings(DhtSettings):
    """Where nodes meet."""

    enabled: bool = Field(default=True, description="take part in the DHT, as the place where nodes begin")
    listen_host: str = Field(default="", description="IP address of the UDP socket; empty: the host of listen.nodes")
    listen_port: int = Field(default=7702, ge=0, le=65535, description="UDP port; 0: any free one")


class LogSettings(Section):
    """What is written to standard error."""

    level: LogLevel = Field(default="info", description="debug, info, warning or error")
    format: LogFormat = Field(default="auto", description="auto: sentences on a terminal, JSON elsewhere; pretty; json")


class CoordinatorSettings(Section):
    """All of `configs/coordinator.toml`."""

    name: str = Field(default="", max_length=63, description='which identity of the home folder to use; "": a free one')
    drain_timeout_s: float = Field(
        default=5.0, ge=0, le=3600, description="seconds that running requests may take to finish at a stop"
    )
    listen: ListenSettings = Field(default=ListenSettings(), description="where it listens")
    models: ModelsSettings = Field(default=ModelsSettings(), description="what it serves")
    placement: PlacementSettings = Field(default=PlacementSettings(), description="where shards go")
    sequences: SequenceSettings = Field(default=SequenceSettings(), description="context and KV cache")
    requests: RequestSettings = Field(default=RequestSettings(), description="queue, deadlines, limits")
    speculation: SpeculationSettings = Field(default=SpeculationSettings(), description="proposing tokens")
    prefixes: PrefixSettings = Field(default=PrefixSettings(), description="keeping finished sequences")
    api: ApiSettings = Field(default=ApiSettings(), description="access to the HTTP API")
    dht: CoordinatorDhtSettings = Field(default=CoordinatorDhtSettings(), description="where nodes meet")
    log: LogSettings = Field(default=LogSettings(), description="log output")
