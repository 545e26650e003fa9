"""What a node's user may say about its engine. Composed into `node.settings`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shardnet.settings import Section


class InferenceSettings(Section):
    """The engine process: threads, devices, memory."""

    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads for arithmetic; 0: this engine's share of the physical cores, or of what affinity and CPU quota allow",
    )
    n_gpu_layers: int | Literal["auto"] = Field(
        default="auto", description='layers of each shard to keep on the GPU; "auto": as many as fit, -1: all'
    )
    gpu_memory_bytes: int | None = Field(
        default=None, ge=0, description="most GPU memory to use; not set: what is free, less some headroom"
    )
    memory_limit_bytes: int = Field(
        default=0,
        ge=0,
        description="most memory for all shards together; 0: what this process can have of the machine's, within its control groups "
        "and resource limits",
    )
    use_mmap: bool = Field(
        default=True,
        description="map weights from the file, so that they can be shared and dropped, rather than copy them",
    )
    start_timeout_s: float = Field(default=60.0, gt=0, description="seconds the engine process may take to start")
    stop_timeout_s: float = Field(default=5.0, gt=0, description="seconds the engine process may take to end by itself")
