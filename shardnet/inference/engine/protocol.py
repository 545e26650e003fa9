"""What the daemon and its engine process say to each other, framed by `shardnet.wire` over a socket pair.

The engine is one process with llama.cpp and nothing else. It takes all waiting `Step`s, merges what can be merged into llama.cpp batches, and answers
each with one `StepDone` or `Failed`, in order for each sequence; a step that may go `ahead` with one for each step of its run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from shardnet.ids import CommandId, ModelId, NodeId, SequenceId
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.inference.engine.steps import Step, StepDone
from shardnet.messages import DeviceInfo, ErrorInfo, MemoryMode, Message, ShardIndex, ShardOptions, StreamedWeights
from shardnet.steps import MAX_STEP_TOKENS
from shardnet.wire import Codec

ROWS = "shardnet-rows/1"
"""Names, by ALPN, the connections from engine to engine."""


class Membership(Message):
    """Who the engine's node is, for links of the engine's own (`row_links`)."""

    certificate: str = Field(max_length=4096, description="path of the node's certificate")
    key: str = Field(max_length=4096, description="path of its private key")
    authority: str = Field(max_length=65536, description="certificate of the swarm's authority, PEM")


class EngineSettings(Message):
    """First message to a new engine: what it may use. Answered by `Ready`."""

    type: Literal["SETTINGS"] = "SETTINGS"
    inference: InferenceSettings
    membership: Membership | None = Field(default=None, description="None: no links to other engines")


class Ready(Message):
    """The engine runs."""

    type: Literal["READY"] = "READY"
    pid: int
    devices: tuple[DeviceInfo, ...] = Field(strict=False)
    arithmetic: str = Field(default="", max_length=400, description="instruction sets that llama.cpp was built with")


class Load(Message):
    """Take one shard into memory. Answered by `Loading`*, then `Loaded` or `Failed`. Repeating it with the same options is harmless."""

    type: Literal["LOAD"] = "LOAD"
    command_id: CommandId
    model_id: ModelId
    shard_id: ShardIndex
    path: str = Field(max_length=4096)
    options: ShardOptions


class Loading(Message):
    """Progress of a `Load`."""

    type: Literal["LOADING"] = "LOADING"
    command_id: CommandId
    done_bytes: int = Field(ge=0)
    total_bytes: int = Field(ge=0, description="weights")
    bytes_per_s: float = Field(default=0, ge=0)
    memory_bytes: int = Field(default=0, ge=0, description="resident in the whole engine")
    cpu_cores: float = Field(default=0, ge=0, description="processors that the whole engine keeps busy")


class Loaded(Message):
    """The shard is in memory."""

    type: Literal["LOADED"] = "LOADED"
    command_id: CommandId
    memory_bytes: int = Field(ge=0, description="weights, KV cache and compute buffers, all devices")
    memory_mode: MemoryMode = "resident"
    repacked: bool = True
    why: str = Field(default="", max_length=500, description="what led to this mode, for people")


class Unload(Message):
    """Free one shard. Answered by `Unloaded` or `Failed`; harmless when it is not loaded."""

    type: Literal["UNLOAD"] = "UNLOAD"
    command_id: CommandId
    model_id: ModelId
    shard_id: ShardIndex
    keep_sequences: bool = Field(
        default=False,
        description="keep its sequences' KV in main memory, until it is loaded again with the same options",
    )


class Unloaded(Message):
    """Answer to `Unload`."""

    type: Literal["UNLOADED"] = "UNLOADED"
    command_id: CommandId


class Forget(Message):
    """Drop a sequence on every shard. No answer."""

    type: Literal["FORGET"] = "FORGET"
    sequence_id: SequenceId


class Halt(Message):
    """End the run of a command after the step under way; its sequence stays. No answer of its own, and none of its rows has one any more."""

    type: Literal["HALT"] = "HALT"
    command_id: CommandId


class DialRows(Message):
    """Connect to another node's engine. Answered by `RowsMet` or `RowsLost`."""

    type: Literal["DIAL_ROWS"] = "DIAL_ROWS"
    link_id: int = Field(ge=0)
    host: str = Field(max_length=255)
    port: int = Field(ge=1, le=65535)


class RowsMet(Message):
    """The other end of a row link has proved that it holds the key of this certificate, which is of the swarm; nothing goes over it yet."""

    type: Literal["ROWS_MET"] = "ROWS_MET"
    link_id: int
    certificate: str = Field(description="DER, hex")


class TakeRows(Message):
    """The other end of a row link is this node, and may be handed rows, or hand us some, whichever of the two dialled: rows go one way."""

    type: Literal["TAKE_ROWS"] = "TAKE_ROWS"
    link_id: int
    node_id: NodeId


class CutRows(Message):
    """End a row link. Answered by `RowsLost`, unless it has ended already."""

    type: Literal["CUT_ROWS"] = "CUT_ROWS"
    link_id: int


class RowsLost(Message):
    """A row link has ended, or was never made. What was handed over it and is not known to have arrived has `Failed` already."""

    type: Literal["ROWS_LOST"] = "ROWS_LOST"
    link_id: int
    reason: str = Field(max_length=500)


class Query(Message):
    """Ask for devices and memory. Answered by `Report`."""

    type: Literal["QUERY"] = "QUERY"
    command_id: CommandId


class BatchTime(Message):
    """What batches of rows of runs, in neighbouring slots, kept the engine busy for."""

    chain: tuple[ModelId, ShardIndex, ShardIndex] = Field(strict=False, description="model, first shard, end shard")
    rows: int = Field(ge=1, le=MAX_STEP_TOKENS)
    us: float = Field(ge=0, description="mean of recent batches: taking the rows in, llama.cpp, sampling, handing on")
    beside_us: float = Field(
        ge=0, description="of that, what is spent because rows come from other nodes and go to them"
    )


class StreamedShard(Message):
    """A streamed shard as it is now."""

    model_id: ModelId
    shard_id: ShardIndex
    memory_bytes: int = Field(ge=0, description="as `Loaded` has it")
    weights: StreamedWeights


class Report(Message):
    """Answer to `Query`."""

    type: Literal["REPORT"] = "REPORT"
    command_id: CommandId
    devices: tuple[DeviceInfo, ...] = Field(strict=False)
    sequences: int = Field(ge=0)
    busy_s: float = Field(ge=0, description="seconds inside llama.cpp since the engine started")
    batches: tuple[BatchTime, ...] = Field(default=(), strict=False)
    streamed: tuple[StreamedShard, ...] = Field(default=(), strict=False)


class Failed(Message):
    """The command did not succeed; everything else goes on."""

    type: Literal["FAILED"] = "FAILED"
    command_id: CommandId
    error: ErrorInfo


_ToEngineJson = EngineSettings | Load | Unload | Forget | Halt | DialRows | TakeRows | CutRows | Query
_FromEngineJson = Ready | Loading | Loaded | Unloaded | Report | RowsMet | RowsLost | Failed
ToEngine = _ToEngineJson | Step
FromEngine = _FromEngineJson | StepDone
TO_ENGINE: Codec[ToEngine] = Codec(TypeAdapter(Annotated[_ToEngineJson, Field(discriminator="type")]), {1: Step})
FROM_ENGINE: Codec[FromEngine] = Codec(
    TypeAdapter(Annotated[_FromEngineJson, Field(discriminator="type")]), {1: StepDone}
)
