"""What can be said of the models that are served, and of where and how their shards are loaded."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from shardnet.messages import ShardOptions
from shardnet.settings import MOST_BYTES, Section


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
    require_proof: bool = Field(
        default=False, description="keep out models whose shards were not proved to give the unsplit model's numbers"
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
    relay_bytes_per_s: int = Field(
        default=16 << 20,
        ge=0,
        le=MOST_BYTES,
        description="weights that go through the coordinator where nodes cannot dial each other, bytes per second; 0: none do",
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
