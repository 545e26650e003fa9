"""What clients may ask for: the OpenAI shapes, every number with a range. Fields that we do not know are ignored, as clients send many;
fields that we know, or other servers honour (`foreign_fields`), and that cannot be honoured here, are refused by name."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from shardnet.coordinator.api.foreign_fields import check_foreign
from shardnet.coordinator.api.structure_fields import StructureFields
from shardnet.coordinator.api.token_ids import TokenIds
from shardnet.coordinator.api.tools import ToolsAsked, tools_asked
from shardnet.coordinator.requests.reading import PromptReading
from shardnet.coordinator.structure.grammars import HEAD
from shardnet.errors import UsageError
from shardnet.faults import first_fault
from shardnet.messages import Sampling
from shardnet.steps import MAX_TOKEN_ID

MAX_ANSWERS = 128
MAX_STOPS = 16
MAX_DIGITS = 20
StopText = Annotated[str, Field(max_length=256)]


def _some(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("must be at least 1")
    return tokens


AnswerTokens = Annotated[int, Field(ge=-1, le=1 << 24), AfterValidator(_some)]
"""-1, as null: until the context is full."""


class Lenient(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class StreamOptions(Lenient):
    """How a stream ends."""

    include_usage: bool | None = None


class CommonRequest(StructureFields, Lenient):
    """What completions and chats share. What they do not know is kept, to be looked over by `check_foreign`."""

    model_config = ConfigDict(extra="allow")

    model: str | None = Field(default=None, max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: AnswerTokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_TOKEN_ID)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: float | None = Field(default=None, ge=-10, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-10, le=10)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=1 << 24)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    n: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    speculation: bool | None = None

    def stops(self) -> tuple[str, ...]:
        """Returns: the stop strings."""
        given = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(text for text in given if text)

    def most_tokens(self) -> int | None:
        """Returns: how long the answer may be; None until the context is full."""
        return None if self.max_tokens == -1 else self.max_tokens

    def top_logprobs_wanted(self) -> int | None:
        """Returns: how many log-probabilities to return for each token; None for none at all."""
        return None

    def reading(self) -> PromptReading | None:
        """Returns: what is wanted of the prompt's own tokens."""
        return None

    def sampling(self) -> Sampling:
        """Returns: the same in our own words; takes some milliseconds where a large schema is asked for.

        Raises: UsageError for a logit_bias key that is no token id, and as `structure`.
        """
        seed = secrets.randbits(63) if self.seed is None or self.seed == -1 else self.seed & ((1 << 63) - 1)
        return Sampling(
            temperature=1.0 if self.temperature is None else float(self.temperature),
            top_k=1 if self.top_p == 0 else max(0, self.top_k or 0),
            top_p=float(self.top_p or 1.0),
            min_p=float(self.min_p or 0.0),
            repeat_penalty=1.0 if self.repeat_penalty is None else float(self.repeat_penalty),
            presence_penalty=float(self.presence_penalty or 0.0),
            frequency_penalty=float(self.frequency_penalty or 0.0),
            penalty_last_n=64 if self.repeat_last_n is None else self.repeat_last_n,
            logit_bias=_token_bias(self.logit_bias or {}),
            seed=seed,
            grammar=self.structure(),
            top_logprobs=self.top_logprobs_wanted(),
        )


def of_one_kind(given: Any) -> Any:
    """Returns: a text, tokens, or a list of either, as it came. Raises: ValueError for a list of different kinds."""
    if isinstance(given, list) and len({type(one) for one in given}) > 1:
        raise ValueError("must be a text, token ids, or a list of either, and of one kind")
    return given


def _token_bias(given: dict[str, float]) -> dict[int, float]:
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= MAX_DIGITS and int(key) <= MAX_TOKEN_ID):
            raise UsageError(f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias")
        bias[int(key)] = float(value)
    return bias


class CompletionRequest(CommonRequest):
    """`POST /v1/completions`."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[TokenIds], Field(fail_fast=True)]
        | None
    ) = None
    max_tokens: Annotated[int, Field(ge=-1, le=1 << 24)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    echo: bool | None = None
    suffix: str | None = Field(default=None, max_length=1 << 20)
    best_of: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)

    def top_logprobs_wanted(self) -> int | None:
        """Returns: as `logprobs` says."""
        return self.logprobs

    def reading(self) -> PromptReading | None:
        """Returns: their log-probabilities, where the prompt is echoed with them."""
        return PromptReading("logprobs", self.logprobs or 0) if self.scores_prompt else None

    @property
    def scores_prompt(self) -> bool:
        """True if the prompt's own tokens are wanted with their log-probabilities."""
        return bool(self.echo) and self.logprobs is not None

    @field_validator("prompt", mode="before")
    @classmethod
    def _of_one_kind(cls, given: Any) -> Any:
        return of_one_kind(given)

    @field_validator("logprobs", mode="before")
    @classmethod
    def _false_is_none(cls, given: Any) -> Any:
        return None if given is False else given

    def check_supported(self) -> None:
        """Raises: UsageError naming a field that cannot be honoured."""
        super().check_supported()
        check_foreign(self.model_extra or {}, {"/v1/chat/completions": ChatRequest.model_fields})
        if self.max_tokens == 0 and not self.echo:
            raise UsageError("max_tokens: 0 needs echo, or there would be nothing to answer", param="max_tokens")
        if self.scores_prompt and self.suffix:
            raise UsageError(
                "suffix: the prompt's own logprobs (echo with logprobs) are those of a text without a gap; leave one out",
                param="suffix",
            )
        n_prompts, n = len(self.prompts()), self.n or 1
        if n_prompts * n > MAX_ANSWERS:  # before the work of tokenizing them
            raise UsageError(f"n: {n_prompts} prompts with {n} answers each are more than {MAX_ANSWERS}", param="n")
        if self.best_of not in (None, self.n or 1):
            raise UsageError("best_of: every answer that is made is returned here; ask for n answers", param="best_of")

    def prompts(self) -> list[str | list[int]]:
        """Returns: each prompt, as text or tokens."""
        given = self.prompt
        if given is None or isinstance(given, str):
            return [given or ""]
        if given and isinstance(given[0], int):
            return [given]
        return cast("list[str | list[int]]", given)


class ContentPart(Lenient):
    """A part of a message's content."""

    type: str = Field(max_length=64)
    text: str | None = None


class ChatMessage(BaseModel):
    """One message. Further keys go to the template as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_ -]*$")
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None

    def check_supported(self, where: str) -> None:
        """Raises: UsageError for a part that is no text."""
        for at, part in enumerate(self.content if isinstance(self.content, list) else ()):
            if part.type not in ("text", "input_text", "output_text"):
                raise UsageError(
                    f"{where}.{at}: a part of type {part.type!r} cannot be taken: models here read texts only",
                    param=where,
                )
            if part.text is None:
                raise UsageError(f"{where}.{at}: a part of type {part.type!r} needs its text", param=where)

    @property
    def is_of_tools(self) -> bool:
        """True for calls, and for what tools answered."""
        return self.role in ("tool", "function") or bool((self.model_extra or {}).get("tool_calls"))

    def for_template(self) -> dict[str, Any]:
        """Returns: what templates expect: the content as one text, none where it is null."""
        message = {"role": self.role, **(self.model_extra or {})}
        if self.content is None:
            return message
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text or "" for part in content)
        return message | {"content": text}


class ChatRequest(CommonRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000, fail_fast=True)
    max_completion_tokens: AnswerTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Any] | None = Field(default=None, max_length=1024)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = Field(default=None, max_length=1024)
    function_call: Any = None
    documents: list[dict[str, Any]] | None = Field(default=None, max_length=1024, fail_fast=True)
    reasoning_effort: str | None = Field(default=None, max_length=64)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, max_length=64)
    modalities: list[str] | None = Field(default=None, max_length=16)
    audio: dict[str, Any] | None = None

    def tools_asked(self) -> ToolsAsked | None:
        """Returns: what is asked of tools; None where there are none. Raises: UsageError."""
        return tools_asked(self.tools, self.tool_choice, self.parallel_tool_calls)

    def template_variables(self) -> dict[str, Any]:
        """Returns: further names for the chat template."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return effort | (self.chat_template_kwargs or {})

    def most_tokens(self) -> int | None:
        """Returns: how long the answer may be; None until the context is full."""
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return None if most == -1 else most

    def top_logprobs_wanted(self) -> int | None:
        """Returns: as `logprobs` and `top_logprobs` say."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check_supported(self) -> None:
        """Raises: UsageError naming a field that cannot be honoured."""
        super().check_supported()
        check_foreign(self.model_extra or {}, {"/v1/completions": CompletionRequest.model_fields})
        for at, message in enumerate(self.messages):
            message.check_supported(f"messages.{at}.content")
        for field, is_asked in (("audio", self.audio), ("modalities", set(self.modalities or ()) - {"text"})):
            if is_asked:
                raise UsageError(f"{field}: only texts are answered here", param=field)
        asked = self.tools_asked()
        if (
            asked is not None
            and asked.choice == "auto"
            and asked.is_enforced
            and not (self.structure() or HEAD).startswith(HEAD)
        ):
            raise UsageError(
                f"{self.structure_field}: GBNF and functions that are strict exclude each other; give a JSON schema, or Lark's syntax",
                param=self.structure_field,
            )
        for field in ("functions", "function_call"):
            if getattr(self, field):
                raise UsageError(f"{field}: the old form is not taken: use tools and tool_choice", param=field)
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise UsageError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        reserved = {"messages", "add_generation_prompt"} & set(self.chat_template_kwargs or {})
        if reserved:
            raise UsageError(f"chat_template_kwargs: {sorted(reserved)} cannot be set", param="chat_template_kwargs")


CHAT_FIELDS = (
    *("tools", "tool_choice", "documents", "reasoning_effort"),
    *("continue_final_message", "add_generation_prompt", "chat_template_kwargs"),
)
"""What a chat's prompt is made of, beside its messages."""


class TokenizeRequest(Lenient):
    """`POST /tokenize`: llama.cpp's `content`, vLLM's `prompt`, or a chat: its messages and all that its prompt is made of."""

    model: str | None = Field(default=None, max_length=256)
    content: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=10_000, fail_fast=True)
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    tools: list[Any] | None = Field(default=None, max_length=1024)
    tool_choice: Any = None
    documents: list[dict[str, Any]] | None = Field(default=None, max_length=1024, fail_fast=True)
    reasoning_effort: str | None = Field(default=None, max_length=64)
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, max_length=64)
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    def check_supported(self) -> None:
        """Raises: UsageError if not one thing is given, or what belongs to a chat beside a text."""
        if sum(one is not None for one in (self.content, self.prompt, self.messages)) != 1:
            raise UsageError("give one of prompt, content and messages", param="prompt")
        if self.messages is None and (name := next((one for one in CHAT_FIELDS if getattr(self, one)), None)):
            raise UsageError(f"{name}: belongs to messages, and there are none", param=name)

    def chat(self) -> ChatRequest | None:
        """Returns: the chat whose prompt is meant; None for a text. Raises: UsageError naming a field that cannot be honoured."""
        if self.messages is None:
            return None
        given = {name: getattr(self, name) for name in ("messages", *CHAT_FIELDS)}
        chat = ChatRequest.model_validate(given)
        chat.check_supported()
        return chat

    def text(self) -> str:
        """Returns: the text, where no messages are given."""
        return self.content or self.prompt or ""

    def adds_special(self) -> bool:
        """Returns: whether the vocabulary's own beginning and end are put around the text, as in /v1/completions."""
        return self.add_special is not False and self.add_special_tokens is not False


class DetokenizeRequest(Lenient):
    """`POST /detokenize`."""

    model: str | None = Field(default=None, max_length=256)
    tokens: TokenIds = Field(max_length=1 << 20)


def usage_error(error: ValidationError) -> UsageError:
    """Returns: what is wrong with a request's body, as one sentence."""
    where, what = first_fault(error)
    return UsageError(f"{where}: {what}" if where else f"the body {what}", param=where or None)
