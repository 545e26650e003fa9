"""What a node's user may say about its engine. Composed into `node.settings`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from shardnet.inference.engine.device_map import MODES, Wish, caps_of, check_map
from shardnet.settings import MOST_BYTES, Section


class InferenceSettings(Section):
    """The engine process: threads, devices, memory."""

    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads for arithmetic; 0: as many as serve best now, within this engine's share of the cores that it may use",
    )
    n_gpu_layers: Annotated[int, Field(ge=-1, le=1 << 20)] | Literal["auto"] = Field(
        default="auto",
        description='layers of each shard to keep on GPUs, the head counted as one; "auto": as many as fit, -1: all',
    )
    device_map: str = Field(
        default="auto",
        max_length=1000,
        description='which device gets which layers: "auto": as few GPUs as will do; "balanced": each GPU by its free memory; "round-robin": GPUs in '
        'turn; or layers in order, as in "CPU=4,CUDA0=10,CUDA1=10"',
    )
    device_memory_bytes: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description='most memory of single GPUs, each "NAME=BYTES"; empty: what is free, less some headroom',
    )
    experts: Literal["auto", "ram", "gpu"] = Field(
        default="auto",
        description='experts of a mixture: "ram": in main memory, the rest of each layer on a GPU; "gpu": with their layer; "auto": in main memory '
        "as far as not everything fits on GPUs",
    )
    gpu_memory_bytes: int | None = Field(
        default=None,
        ge=0,
        le=MOST_BYTES,
        description="most memory of all GPUs together; not set: what is free, less some headroom",
    )
    memory_limit_bytes: int = Field(
        default=0,
        ge=0,
        le=MOST_BYTES,
        description="most memory for all shards together; 0: what this process can have of the machine's, within its control groups "
        "and resource limits",
    )
    memory_mode: Literal["resident", "streamed", "auto"] = Field(
        default="resident",
        description='"resident": a shard is in memory as a whole, or refused; "streamed": what does not fit is read from its file for each token; '
        '"auto": resident where it fits, else streamed. Streamed weights are computed with by other kernels, with other last digits',
    )
    use_mmap: bool = Field(
        default=True,
        description="map weights from the file, so that they can be shared and dropped, rather than copy them",
    )
    huge_pages: bool = Field(
        default=True,
        description="keep weights, KV cache and buffers in huge pages where the system gives them: weights are copied out of the mapped file then, "
        "if they and the file fit into memory together",
    )
    start_timeout_s: float = Field(
        default=60.0, gt=0, le=86_400, description="seconds the engine process may take to start"
    )
    stop_timeout_s: float = Field(
        default=5.0, gt=0, le=86_400, description="seconds the engine process may take to end by itself"
    )

    @field_validator("device_map")
    @classmethod
    def _is_map(cls, text: str) -> str:
        if text not in MODES:
            check_map(text)
        return text

    @field_validator("device_memory_bytes")
    @classmethod
    def _are_caps(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        caps_of(texts)
        return texts

    @model_validator(mode="after")
    def _streams_from_mapped_files(self) -> Self:
        if self.memory_mode != "resident" and not self.use_mmap:
            raise ValueError(
                f'memory_mode "{self.memory_mode}" reads weights from mapped files: leave use_mmap true, or use memory_mode "resident"'
            )
        return self

    @property
    def wish(self) -> Wish:
        """Returns: where layers are to go."""
        return Wish(
            self.device_map, self.n_gpu_layers, caps_of(self.device_memory_bytes), self.gpu_memory_bytes, self.experts
        )
