"""What the HTTP API answers, as schemas for the document. The answers themselves are made in `wording`, `views` and `endpoints`; a test holds the two
together. What stands here with a default is not always there."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "tool_calls"]


class Shape(BaseModel):
    """Base of all of them. Further fields may come with later versions."""

    model_config = ConfigDict(frozen=True)


class Fault(Shape):
    """What went wrong."""

    message: str = Field(description="one sentence: what is wrong, and what to do")
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="the field of the request that is wrong, with dots between the keys")
    code: str | None = Field(description="for programs, as OpenAI names it where OpenAI has such an error")
    shardnet_code: str = Field(description="for programs: shardnet's own name of the kind of error")
    loading: dict[str, Any] | None = Field(
        default=None, description="of a model that is being loaded: how far that is, in bytes"
    )


class Error(Shape):
    """Every error has this shape, also as the last event of a stream."""

    error: Fault


class MessageFault(Shape):
    """What went wrong, as Anthropic's clients read it."""

    type: str = Field(description="the kind of error, as Anthropic names it")
    message: str = Field(description="one sentence: what is wrong, and what to do")
    details: dict[str, str] | None = Field(default=None, description="`error_code`, a finer name, for some errors")


class MessageError(Shape):
    """Every error at `/v1/messages` has this shape, also as the last event of a stream."""

    type: Literal["error"]
    error: MessageFault


class ResponseTokens(Shape):
    """How many tokens the prompt has."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class MessageTokens(Shape):
    """How many tokens the prompt has."""

    input_tokens: int


class PromptTokens(Shape):
    """What there is to say of a prompt's tokens."""

    cached_tokens: int = Field(
        description="not run, since their KV was there: of an earlier request, or of one that computed them already"
    )


class Usage(Shape):
    """Tokens counted, the end-of-text token among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Stage(Shape):
    """One stage of the pipeline, and its median microseconds per token."""

    node: str
    node_id: str
    first_shard: int
    end_shard: int
    layers: str = Field(description="half-open: [first, end)")
    repacked: bool = Field(
        description="weights are laid out anew for quicker kernels; all stages of a pipeline are of one kind"
    )
    relayed: bool = Field(description="its input comes through the coordinator")
    bytes_on: int = Field(description="sent on to the next stage, per token")
    queue_us: float
    compute_us: float
    engine_us: float
    batch_tokens: float


class Speculation(Shape):
    """Tokens that were foretold, and how many of them were right."""

    proposed: int
    accepted: int


class Statistics(Shape):
    """How the swarm worked at an answer."""

    stages: list[Stage]
    attempts: int = Field(description="how often it began: more than once where a node was lost in the middle")
    speculation: Speculation | None = None


class Traced(Shape):
    """What `return_token_ids` adds: to the whole, or to each choice where there are several."""

    prompt_token_ids: list[int] | None = None
    shardnet: Statistics | None = None


class Choice(Traced):
    """One of the answers."""

    index: int
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None


class Answer(Traced):
    """What stands around the answers."""

    id: str
    created: int = Field(description="seconds since 1970")
    model: str
    system_fingerprint: str = Field(description="names the model's bytes")


class TokenLogprob(Shape):
    """One token that could have come."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """The token that came, beside those that could have."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    """An entry for each token."""

    content: list[ChosenLogprob]


class CompletionLogprobs(Shape):
    """An entry in each list for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Choice):
    """One text."""

    text: str
    logprobs: CompletionLogprobs | None


class Completion(Answer):
    """The whole answer."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionEvent(Answer):
    """One event of a stream: what came since the last one. The usage comes in an event of its own, without choices."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(Shape):
    """One text as a vector of length one."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or little-endian float32 in base64")


class EmbeddingsUsage(Shape):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class HowPooled(Shape):
    """How a text's hidden states became one vector, and who said so."""

    pooling: Literal["mean", "cls", "last"]
    pooling_said_by: Literal["request", "model", "default"]


class Embeddings(Shape):
    """An embedding for each input, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    shardnet: HowPooled


class CalledFunction(Shape):
    """A function and its arguments, which are JSON in a text."""

    name: str
    arguments: str


class ToolCall(Shape):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class FunctionDelta(Shape):
    """What came of a call: its name first, then its arguments bit by bit."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Shape):
    """What came of the call with this index."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class AnswerMessage(Shape):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Delta(Shape):
    """What came since the last event."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChoice(Choice):
    """One answer."""

    message: AnswerMessage
    logprobs: ChatLogprobs | None


class Chat(Answer):
    """The whole answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatEventChoice(Choice):
    """What came of one answer."""

    delta: Delta
    logprobs: ChatLogprobs | None


class ChatEvent(Answer):
    """One event of a stream: what came since the last one. The usage comes in an event of its own, without choices."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatEventChoice]
    usage: Usage | None = None


class Piece(Shape):
    """A token and its text."""

    id: int
    piece: str


class Tokens(Shape):
    """A text as tokens."""

    tokens: list[int] | list[Piece] = Field(description="with `with_pieces` each with its text")
    count: int
    token_strs: list[str] | None = Field(default=None, description="with `return_token_strs`")


class Text(Shape):
    """Tokens as a text, by both of its names."""

    content: str
    prompt: str


class ModelHealth(Shape):
    """Whether a model can be asked now."""

    model: str
    model_id: str
    ready: bool
    missing_layers: list[str]
    reason: str | None = Field(description="why it cannot be asked")
    proved: bool = Field(description="its shards give the unsplit model's numbers")
    unproved_reason: str | None


class Health(Shape):
    """The swarm in short."""

    ready: bool = Field(description="some model can be asked")
    status: Literal["ok", "not ready"]
    nodes: int
    models: list[ModelHealth]


class Model(Shape):
    """A model that is known."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    shardnet: ModelHealth


class Models(Shape):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class Status(Shape):
    """Everything that `shardnet status` shows."""

    coordinator: dict[str, Any] = Field(description="who it is, where it listens, what it refused")
    nodes: list[dict[str, Any]] = Field(description="each with what it holds, loads and was refused")
    models: list[dict[str, Any]] = Field(description="each with its layers, who holds them, and its pipelines")
    kept_out: list[dict[str, Any]] = Field(description="models that are not served, and why")
    links: list[dict[str, Any]] = Field(description="what was measured between nodes")
    requests: dict[str, int] = Field(description="in progress, and counters since the start")
