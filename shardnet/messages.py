"""Every message that travels between daemons, and the one union that tells them apart.

Rules: a command has an id, a deadline and exactly one final answer, and is harmless when repeated. Tensors travel beside the header, described by
`tensors`. Headers are JSON but for the two messages of `steps`, which travel with every token. Unknown fields are refused.

Who may send what: a *node* dials its coordinator, says `Hello` and then only answers commands, sends
heartbeats and reports; nodes dial each other to forward `ExecuteTask`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from shardnet.errors import Fact, ShardnetError, error_from_wire
from shardnet.ids import CommandId, ModelId, NodeId, SequenceId
from shardnet.manifest import Manifest
from shardnet.shards import Frozen, TensorSpec
from shardnet.steps import MAX_POSITION, MAX_STAGES, MAX_STEP_TOKENS, MAX_TOKEN_ID, NextStep, StageTiming, TaskResult
from shardnet.wire import Codec

PROTOCOL_VERSION = 1
MAX_REFUSED, MAX_REFUSED_CHARS = 16, 600
"""Sentences about useless files in one `Hello`, and characters in each."""

DeadlineSeconds = Annotated[float, Field(gt=0, le=86_400, description="seconds, counted from receipt")]
ShardIndex = Annotated[int, Field(ge=0, lt=10_000)]
Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]


class Message(Frozen):
    """Base of everything on the wire."""

    tensors: tuple[TensorSpec, ...] = Field(default=(), max_length=4, strict=False)

    @property
    def payload_sizes(self) -> tuple[int, ...]:
        """Returns: bytes of each tensor."""
        return tuple([spec.nbytes for spec in self.tensors])


class Address(Frozen):
    """Where a daemon listens for TLS connections."""

    host: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9.:_-]+$")
    port: int = Field(ge=1, le=65_535)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ErrorInfo(Frozen):
    """An error of `shardnet.errors`, on the wire."""

    code: str = Field(max_length=40)
    message: str = Field(max_length=4000)
    facts: dict[str, Fact] = Field(default_factory=dict, max_length=16)

    @classmethod
    def of(cls, error: ShardnetError) -> ErrorInfo:
        """Returns: the error as data."""
        return cls(code=error.code, message=error.message[:4000], facts=error.facts)

    def to_error(self) -> ShardnetError:
        """Returns: the data as an error of the same class."""
        return error_from_wire(self.code, self.message, self.facts)


class DeviceInfo(Frozen):
    """One place where layers can run. Bytes are the engine's view at the time of asking."""

    name: str = Field(max_length=64, description="CPU, CUDA0, ...")
    description: str = Field(default="", max_length=200)
    kind: Literal["cpu", "gpu"]
    total_bytes: int = Field(ge=0)
    free_bytes: int = Field(ge=0)
    limit: str = Field(
        default="",
        max_length=200,
        exclude_if=lambda value: not value,
        description="what allows this process less than the machine has: `300.0 MB by memory.max of cgroup /x`",
    )


MAX_TROUBLE_CHARS = 600


class Reach(Frozen):
    """Where other daemons reach one, and what is wrong with that."""

    listen: Address | None = Field(default=None, description="an IP address; None: nobody can dial it")
    trouble: str = Field(default="", max_length=MAX_TROUBLE_CHARS, description="a sentence for people; empty: nothing")


MemoryMode = Literal["resident", "streamed"]
"""How a loaded shard's weights are held: all of them in memory, or partly read from their file for each token."""


class StreamedWeights(Frozen):
    """What streaming a loaded shard costs. All shards that a node streams share its memory, so that this changes when others come and go."""

    weights_bytes: int = Field(ge=0, description="weights that each pass needs")
    stays_bytes: int = Field(ge=0, description="of these, what stays in memory; the rest is read for each pass")
    budget_bytes: int = Field(ge=0, description="memory for these weights: what stays, and what passes through")
    least_bytes: int = Field(ge=0, description="the smallest budget that would do")
    bytes_per_s: float = Field(default=0, ge=0, description="of reading, as measured; 0: nothing was read yet")
    passing_bytes: int | None = Field(
        default=None,
        ge=0,
        exclude_if=lambda value: value is None,
        description="of a mixture of experts: what passes read of late, as measured; only experts that are chosen are read",
    )

    @property
    def read_bytes(self) -> int:
        """Returns: bytes that each pass reads from the file."""
        return self.weights_bytes - self.stays_bytes if self.passing_bytes is None else self.passing_bytes


class HeldShard(Frozen):
    """One shard that a node has, and how ready it is."""

    model_id: ModelId
    shard_id: ShardIndex
    loaded: bool = Field(description="its tensors are in the engine's memory")
    memory_bytes: int = Field(default=0, ge=0, description="weights, KV cache and compute buffers, when loaded")
    memory_mode: MemoryMode = Field(
        default="resident",
        exclude_if=lambda value: value == "resident",
        description="streamed: not all weights stay, and other kernels compute with them",
    )
    repacked: bool = Field(
        default=True,
        exclude_if=lambda value: value,
        description="loaded as `ShardOptions.repack` has it; numbers of the two kinds differ in their last digits, and no pipeline mixes them",
    )
    streamed: StreamedWeights | None = Field(
        default=None, exclude_if=lambda value: value is None, description="of a streamed shard, once its engine told it"
    )
    step_us: float | None = Field(default=None, ge=0, description="usual time of one decode step through this shard")
    rows_us: tuple[tuple[Annotated[int, Field(ge=2, le=MAX_STEP_TOKENS)], Annotated[float, Field(ge=0)]], ...] = Field(
        default=(),
        max_length=32,
        strict=False,
        exclude_if=lambda value: not value,
        description="(rows, usual time) of larger batches through this shard, rows ascending",
    )
    progress: float | None = Field(default=None, ge=0, le=1, description="share present, while it is fetched or loaded")
    detail: str = Field(default="", max_length=200, description="what is going on, for people")


class Software(Frozen):
    """What a node runs. Answers are equal to the bit among nodes of which `llama` and `arithmetic` are equal."""

    shardnet: str = Field(max_length=40, description="version")
    llama: str = Field(max_length=40, description="version of llama-cpp-python")
    arithmetic: str = Field(default="", max_length=400, description="instruction sets that llama.cpp was built with")
    clock_s: float = Field(ge=0, description="Unix time when this was said")


class Capabilities(Frozen):
    """What a node can do, as it tells its coordinator."""

    shard_loaded: bool = Field(default=False, description="at least one shard was in memory before the node joined")
    devices: tuple[DeviceInfo, ...] = Field(default=(), max_length=64, strict=False)
    memory_limit_bytes: int = Field(
        default=0, ge=0, description="what the node may use for shards; 0 means all that is free"
    )
    assigned: tuple[tuple[ModelId, ShardIndex], ...] = Field(
        default=(), max_length=10_000, strict=False, description="shards its user bound it to: it is given no others"
    )
    accepts_any: bool = Field(default=True, description="False: only `assigned` shards")
    bound: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(),
        max_length=1000,
        strict=False,
        description="`MODEL:ID` or `ID`, as its user wrote it: `assigned`, also for models that the node does not know yet",
    )
    torrent_port: int = Field(default=0, ge=0, le=65_535)
    memory_mode: Literal["resident", "streamed", "auto"] = Field(
        default="resident",
        exclude_if=lambda value: value == "resident",
        description="streamed, auto: it may be given shards that do not fit into its memory",
    )
    copies: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="it knows `ExecuteTask.copy_from`, which older nodes do not",
    )
    software: Software | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="who says this also knows `TellLog`; None: an older node, which is not asked",
    )


# -- greetings ------------------------------------------------------------------------------------------------------------------------


class Hello(Message):
    """First message of a dialling daemon. Answered by `Welcome` or by an error and the end of the connection."""

    type: Literal["HELLO"] = "HELLO"
    protocol: int = Field(ge=1, le=1000)
    node_id: NodeId
    name: str = Field(default="", max_length=64)
    role: Literal["node", "coordinator", "client"]
    run_id: CommandId | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="drawn at each start: two at once with one node_id are two processes with one key, as where a home was copied",
    )
    listen: Address | None = Field(default=None, description="where others may dial this daemon")
    trouble: str = Field(
        default="",
        max_length=MAX_TROUBLE_CHARS,
        exclude_if=lambda value: not value,
        description="why nobody can dial it, or not everybody; a sentence for people",
    )
    capabilities: Capabilities = Capabilities()
    held: tuple[HeldShard, ...] = Field(default=(), max_length=20_000, strict=False)
    refused: tuple[Annotated[str, Field(min_length=1, max_length=MAX_REFUSED_CHARS)], ...] = Field(
        default=(),
        max_length=MAX_REFUSED,
        strict=False,
        exclude_if=lambda value: not value,
        description="files and folders of the models cache that are of no use, and why: a sentence each, for people",
    )


class Welcome(Message):
    """Answer to `Hello`."""

    type: Literal["WELCOME"] = "WELCOME"
    protocol: int = Field(ge=1, le=1000)
    node_id: NodeId
    epoch: int = Field(default=0, ge=0, description="grows with each start of the coordinator; older tasks are refused")
    revoked: tuple[NodeId, ...] = Field(default=(), max_length=100_000, strict=False)
    dht: Address | None = Field(
        default=None, description="the coordinator's DHT (UDP): where to begin; host 0.0.0.0: the one that was dialled"
    )


COPIED = "copied_identity"
"""Fact `reason` of a refusal: another process with the same key is connected."""


class Refusal(Message):
    """Final word to a peer that is not let in."""

    type: Literal["REFUSAL"] = "REFUSAL"
    error: ErrorInfo


class Revoked(Message):
    """Coordinator to node: these members are no longer members. Replaces earlier lists. No answer."""

    type: Literal["REVOKED"] = "REVOKED"
    node_ids: tuple[NodeId, ...] = Field(max_length=100_000, strict=False)


# -- node -> coordinator ---------------------------------------------------------------------------------------------------------------


class Heartbeat(Message):
    """Node to coordinator, every second: it lives, and this is its state. No answer."""

    type: Literal["HEARTBEAT"] = "HEARTBEAT"
    memory_free_bytes: int = Field(ge=0)
    load: float = Field(ge=0, description="share of the last interval the engine was busy, 0 to 1")
    devices: tuple[DeviceInfo, ...] = Field(default=(), max_length=64, strict=False)
    held: tuple[HeldShard, ...] = Field(default=(), max_length=20_000, strict=False)
    sequences: int = Field(default=0, ge=0, description="sequences with KV in this node's engine")
    handover_us: float | None = Field(
        default=None,
        ge=0,
        exclude_if=lambda value: value is None,
        description="median time that a step costs a stage beside its computing: taking it in, and handing it on",
    )
    draining: bool = False
    reach: Reach | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="where it is dialled now, once that is no longer what its `Hello` said",
    )


class ManifestOffer(Message):
    """Node to coordinator: a manifest that the node holds shards of. No answer; unknown ones join the catalogue."""

    type: Literal["MANIFEST_OFFER"] = "MANIFEST_OFFER"
    manifest: Manifest


class Leaving(Message):
    """Node to coordinator: it drains and goes. Running tasks are finished. No answer."""

    type: Literal["LEAVING"] = "LEAVING"
    reason: str = Field(default="", max_length=200)


# -- commands and their answers ----------------------------------------------------------------------------------------------------------


class ShardOptions(Frozen):
    """How a shard is to be loaded. All shards of one pipeline are given the same."""

    n_ctx: int = Field(default=4096, ge=8, le=1 << 20, description="tokens of context of each sequence")
    n_seq: int = Field(default=4, ge=1, le=256, description="sequences with KV at the same time")
    n_batch: int = Field(default=512, ge=1, le=8192, description="most tokens in one llama.cpp batch: the prompt chunk")
    repack: bool | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="whether llama.cpp lays weights out anew for its quicker kernels, whose numbers differ from those of weights as they lie in "
        "the file, and which a streamed shard cannot have; None: as the node likes",
    )


class ShardSource(Frozen):
    """A holder that the coordinator knows of: a hint, proved by TLS and by the manifest's hashes."""

    node_id: NodeId
    address: Address
    torrent_port: int = Field(default=0, ge=0, le=65_535)


class LoadShard(Message):
    """Ask a node to hold a shard ready. Answered by `LoadProgress`*, then `ShardReady` or `CommandFailed`; asking twice is harmless."""

    type: Literal["LOAD_SHARD"] = "LOAD_SHARD"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    model_id: ModelId
    shard_id: ShardIndex
    options: ShardOptions = ShardOptions()
    manifest: Manifest | None = Field(default=None, description="signed; for a node that may not know the model")
    sources: tuple[ShardSource, ...] = Field(default=(), max_length=64, strict=False)
    keep_only: bool = Field(default=False, description="have the file, do not take it into memory")


class LoadProgress(Message):
    """On the way to `ShardReady`."""

    type: Literal["LOAD_PROGRESS"] = "LOAD_PROGRESS"
    command_id: CommandId
    stage: Literal["fetch", "verify", "load"]
    done_bytes: int = Field(ge=0)
    total_bytes: int = Field(ge=0)
    bytes_per_s: float = Field(default=0, ge=0)
    peers: int = Field(default=0, ge=0)
    memory_bytes: int = Field(
        default=0, ge=0, exclude_if=lambda value: not value, description="`load`: resident in the whole engine"
    )
    cpu_cores: float = Field(
        default=0,
        ge=0,
        exclude_if=lambda value: not value,
        description="`load`: processors that the whole engine keeps busy",
    )


class ShardReady(Message):
    """The shard is in memory (or on disk, for `keep_only`)."""

    type: Literal["SHARD_READY"] = "SHARD_READY"
    command_id: CommandId
    held: HeldShard
    source: Literal["memory", "local", "torrent"] = Field(
        description="already loaded, read from the local directory, or fetched"
    )


class UnloadShard(Message):
    """Free a shard's memory; the file stays. Answered by `Done` or `CommandFailed`; harmless when it is not loaded."""

    type: Literal["UNLOAD_SHARD"] = "UNLOAD_SHARD"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    model_id: ModelId
    shard_id: ShardIndex


class FreeSequence(Message):
    """Drop a sequence's KV and state. No answer; harmless when it is not there."""

    type: Literal["FREE_SEQUENCE"] = "FREE_SEQUENCE"
    sequence_id: SequenceId


class CancelTask(Message):
    """A task's answer is no longer wanted. No answer of its own; the task may still answer."""

    type: Literal["CANCEL_TASK"] = "CANCEL_TASK"
    command_id: CommandId


class Done(Message):
    """Final answer of a command with nothing to tell."""

    type: Literal["DONE"] = "DONE"
    command_id: CommandId


class CommandFailed(Message):
    """Final answer of a command that did not succeed."""

    type: Literal["COMMAND_FAILED"] = "COMMAND_FAILED"
    command_id: CommandId
    error: ErrorInfo


MAX_GRAMMAR = 65_536
"""Characters: it travels with the steps of an answer."""
LARK = "%llguidance"
"""How a grammar in Lark's syntax (llguidance's dialect) begins, as in llama.cpp; every other grammar is GBNF."""


class Sampling(Frozen):
    """How the last stage picks tokens. Randomness is a function of (seed, position) alone, so a rebuilt sequence goes on with the same tokens.

    The order is llama.cpp's: logit bias, grammar, penalties, top-k, top-p, min-p, temperature, draw.
    """

    temperature: float = Field(default=0.0, ge=0, le=100, description="0 picks the most likely token")
    top_k: int = Field(default=0, ge=0, le=MAX_TOKEN_ID, description="0: off")
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, gt=0, le=10)
    presence_penalty: float = Field(default=0.0, ge=-10, le=10)
    frequency_penalty: float = Field(default=0.0, ge=-10, le=10)
    penalty_last_n: int = Field(
        default=64, ge=-1, le=MAX_POSITION, description="tokens the penalties look back; -1: all"
    )
    logit_bias: dict[int, float] = Field(default_factory=dict, max_length=1024)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    grammar: str | None = Field(default=None, max_length=MAX_GRAMMAR, description="GBNF, or Lark behind `LARK`")
    prompt_tokens: int = Field(
        default=0, ge=0, le=MAX_POSITION, description="length of the prompt: the grammar begins after it"
    )
    top_logprobs: int | None = Field(
        default=None, ge=0, le=20, description="log-probabilities of the picked and the most likely tokens"
    )


class Reading(Frozen):
    """What the last stage tells of a prompt's rows, beside filling KV. A function of the step alone, so a repeated step tells the same.

    `first`, `last`, `sum`: of the rows' final hidden states (behind the final norm) the first, the last, or the sum; such a step samples nothing.
    `logprobs`: of each row the log-probability of the token that follows it in the prompt, and the `top` most likely ones.
    """

    kind: Literal["first", "last", "sum", "logprobs"]
    top: int = Field(default=0, ge=0, le=20)
    next_token: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOKEN_ID,
        description="what follows the step's last row; None: nothing is told of that row",
    )


class StageRef(Frozen):
    """One stop of a route: the contiguous shards `[first_shard, end_shard)` on one node."""

    node_id: NodeId
    address: Address | None = Field(description="None: reached through the coordinator only")
    first_shard: ShardIndex
    end_shard: int = Field(ge=1, le=10_000)


class ExecuteTask(Message):
    """One step of one sequence through the stage `route[stage]`, which forwards it to the next.

    Tensors: `tokens` int32 (n_tokens,), always; `hidden` float32 (n_tokens, n_embd), for every stage but the first.
    A stage first drops KV at and after `position`, then runs. The last stage answers `TaskResult` to the coordinator; whichever stage fails
    answers `CommandFailed`. Repeating a step gives the same answer.

    With `ahead`, a run: the last stage sends the token that it sampled to the first stage as the next step, and its result to the coordinator
    beside that, until `ahead` further steps are done, the sequence is freed, or the command is cancelled. A stage may end a run sooner: the
    result that says `ahead` 0 is the last.
    """

    type: Literal["EXECUTE_TASK"] = "EXECUTE_TASK"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    epoch: int = Field(ge=0)
    model_id: ModelId
    sequence_id: SequenceId
    position: Position
    n_tokens: int = Field(ge=1, le=MAX_STEP_TOKENS)
    route: tuple[StageRef, ...] = Field(min_length=1, max_length=MAX_STAGES, strict=False)
    stage: int = Field(ge=0, lt=MAX_STAGES)
    options: ShardOptions = ShardOptions()
    samples: bool = Field(
        default=False, description="a token is sampled behind the last row; else the step only fills KV"
    )
    sampling: Sampling | None = None
    return_logits: bool = Field(
        default=False, description="also return the logits that the token is sampled from, for parity checks"
    )
    reading: Reading | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the last stage tells this of the rows, in a `RowsRead` before the `TaskResult`",
    )
    copy_from: SequenceId | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="where a stage has fewer than `position` tokens of the sequence, it first copies so many from this one, which has them or more",
    )
    ahead: int = Field(
        default=0,
        ge=0,
        le=MAX_POSITION,
        description="the last stage may go on with the token it sampled, so many times, unasked (`NextStep`)",
    )
    ahead_deadline_s: DeadlineSeconds = Field(default=120.0, description="of each further step")
    timings: tuple[StageTiming, ...] = Field(default=(), max_length=MAX_STAGES, strict=False)


class RowsRead(Message):
    """Last stage to coordinator: what `ExecuteTask.reading` asked of a step's rows, right before the step's `TaskResult`. No answer.

    Tensors: `pooled` float32 (1, n_embd); or `tokens` int32 and `logprobs` float32, both (rows, 1 + top): for each row the token that follows it,
    then the most likely ones, -1 in the place of those that the vocabulary does not have.
    """

    type: Literal["ROWS_READ"] = "ROWS_READ"
    command_id: CommandId
    sequence_id: SequenceId
    position: Position


# -- measuring and asking ------------------------------------------------------------------------------------------------------------------


ALIVE = "f" * 16
"""The command id of pings by which a link asks whether anybody is there: the other end's link answers them, before any daemon sees them."""


class Ping(Message):
    """Answered by `Pong` at once; may carry one tensor named `padding` to measure bandwidth."""

    type: Literal["PING"] = "PING"
    command_id: CommandId


class Pong(Message):
    """Answer to `Ping`."""

    type: Literal["PONG"] = "PONG"
    command_id: CommandId


class MeasureLink(Message):
    """Coordinator to node: measure the link to another node. Answered by `LinkMeasured` or `CommandFailed`."""

    type: Literal["MEASURE_LINK"] = "MEASURE_LINK"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    peer: ShardSource


class LinkMeasured(Message):
    """Answer to `MeasureLink`."""

    type: Literal["LINK_MEASURED"] = "LINK_MEASURED"
    command_id: CommandId
    round_trip_s: float = Field(ge=0)
    bytes_per_s: float = Field(ge=0)


class GetManifest(Message):
    """Ask any holder for a manifest. Answered by `ManifestIs` or `CommandFailed`."""

    type: Literal["GET_MANIFEST"] = "GET_MANIFEST"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    model: str = Field(min_length=1, max_length=128, description="model id, or a name the coordinator publishes")


class ManifestIs(Message):
    """Answer to `GetManifest`. It proves itself: `model_id` is the hash of its content."""

    type: Literal["MANIFEST_IS"] = "MANIFEST_IS"
    command_id: CommandId
    manifest: Manifest


MAX_FILE_PIECE = 1 << 20


class GetFile(Message):
    """Ask a holder for a piece of a model's file: the tokenizer, a shard's torrent. Answered by `FileIs` or `CommandFailed`.

    Asked of the coordinator, a torrent, and of a shard itself, is passed on to a node that has it and back: the way for nodes that nobody can dial.
    A holder gives pieces of a shard to its coordinator alone; others take them by the torrent.
    """

    type: Literal["GET_FILE"] = "GET_FILE"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    model_id: ModelId
    kind: Literal["tokenizer", "torrent", "shard"]
    shard_id: ShardIndex = Field(default=0, description="for `torrent` and `shard`")
    offset: int = Field(
        default=0, ge=0, description="bytes from the start; files come in pieces of at most MAX_FILE_PIECE"
    )
    most_bytes: int = Field(
        default=MAX_FILE_PIECE,
        ge=1,
        le=MAX_FILE_PIECE,
        exclude_if=lambda value: value == MAX_FILE_PIECE,
        description="the piece may be that long",
    )
    asker: ShardSource | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="for `torrent`, from the coordinator: who wants the shard, and where its transfers can be dialled",
    )


class FileIs(Message):
    """Answer to `GetFile`: `total_bytes`, and one piece as the tensor `data`, int32 padded with zeros to a multiple of four bytes."""

    type: Literal["FILE_IS"] = "FILE_IS"
    command_id: CommandId
    total_bytes: int = Field(ge=0)
    piece_bytes: int = Field(ge=0)


MAX_LOG_LINES, MAX_LOG_CHARS = 800, 1100
"""In one `LogTold`: four bytes a character are less than `MAX_HEADER_BYTES`."""
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class TellLog(Message):
    """Coordinator to node: the newest lines of your log behind `after`. Answered by `LogTold` or `CommandFailed`.

    Asked of nodes that say what they run (`Capabilities.software`): an older one would end the connection over it.
    """

    type: Literal["TELL_LOG"] = "TELL_LOG"
    command_id: CommandId
    deadline_s: DeadlineSeconds
    after: int = Field(
        default=0,
        ge=0,
        description="a line's number; one that is not reached yet: the node began anew, tell from the start",
    )
    most_lines: int = Field(default=MAX_LOG_LINES, ge=0, le=MAX_LOG_LINES, description="of these the newest")
    level: Literal["debug", "info", "warning", "error", "critical"] = Field(default="debug", description="and above")
    max_age_s: float | None = Field(default=None, ge=0, description="by the node's own clock")


class LogLine(Frozen):
    """A line of a log, as people read it. It never holds prompts, answers or keys (`shardnet.log`)."""

    number: int = Field(ge=1, description="grows by one with each line since the node's start")
    at_s: float = Field(ge=0, description="Unix time, by the node's clock")
    level: str = Field(max_length=20)
    text: str = Field(max_length=MAX_LOG_CHARS)


class LogTold(Message):
    """Answer to `TellLog`."""

    type: Literal["LOG_TOLD"] = "LOG_TOLD"
    command_id: CommandId
    lines: tuple[LogLine, ...] = Field(default=(), max_length=MAX_LOG_LINES, strict=False)
    left_out: int = Field(
        default=0,
        ge=0,
        description="lines behind `after` that are older than these and were asked for, or are not kept any more",
    )
    newest: int = Field(ge=0, description="the number of the last line there is: `after` of the next question")
    clock_s: float = Field(ge=0, description="Unix time at the node now")


JsonMessage = (
    Hello
    | Welcome
    | Refusal
    | Revoked
    | Heartbeat
    | ManifestOffer
    | Leaving
    | LoadShard
    | LoadProgress
    | ShardReady
    | UnloadShard
    | ExecuteTask
    | RowsRead
    | FreeSequence
    | CancelTask
    | Done
    | CommandFailed
    | Ping
    | Pong
    | MeasureLink
    | LinkMeasured
    | GetManifest
    | ManifestIs
    | GetFile
    | FileIs
    | TellLog
    | LogTold
)
AnyMessage = JsonMessage | NextStep | TaskResult
MESSAGES: Codec[AnyMessage] = Codec(
    TypeAdapter(Annotated[JsonMessage, Field(discriminator="type")]), {1: NextStep, 2: TaskResult}
)
