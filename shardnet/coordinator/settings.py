"""What the coordinator can be told: each wing's own section, composed. Every key stands in `configs/coordinator.toml` with its default."""

from __future__ import annotations

from pydantic import Field

from shardnet.coordinator.api.settings import ApiSettings
from shardnet.coordinator.nodes.settings import CoordinatorDhtSettings, ListenSettings
from shardnet.coordinator.placement.settings import ModelsSettings, PlacementSettings, SequenceSettings
from shardnet.coordinator.requests.settings import PrefixSettings, RequestSettings, SpeculationSettings
from shardnet.log import LogFormat, LogLevel
from shardnet.metrics.settings import MetricsSettings
from shardnet.settings import Section


class LogSettings(Section):
    """What is written to standard error."""

    level: LogLevel = Field(default="info", description="debug, info, warning or error")
    format: LogFormat = Field(
        default="auto",
        description="auto: sentences, with the date where they go into a file; pretty: always as on a terminal; json: one object a line",
    )


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
    metrics: MetricsSettings = Field(default=MetricsSettings(), description="figures for Prometheus")
    log: LogSettings = Field(default=LogSettings(), description="log output")
