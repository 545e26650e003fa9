"""What the HTTP API asks of the coordinator, and how a request's words become a request in progress."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardnet.coordinator.api.chats import chat_prompt_of, prepare
from shardnet.coordinator.api.embeddings import Embedder, EmbeddingsRequest, pooling_of, token_inputs, worded
from shardnet.coordinator.api.schemas import (
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from shardnet.coordinator.placement.arriving import Arriving
from shardnet.coordinator.placement.catalogue import resolve
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec, answer_limit
from shardnet.coordinator.requests.reading import PromptReading
from shardnet.coordinator.requests.recording import TRACED
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.requests.settings import RequestSettings
from shardnet.coordinator.structure.grammars import schema_grammar
from shardnet.coordinator.text.answering import AnswerStream
from shardnet.coordinator.text.words import Words
from shardnet.errors import PlacementError, UsageError
from shardnet.manifest import Manifest
from shardnet.messages import Sampling, ShardOptions

MAX_SEED = (1 << 63) - 1
MAX_LOGPROBS = 1 << 20
"""Of prompts, in one answer: some 30 MB of JSON."""


@dataclass(frozen=True, slots=True)
class Answering:
    """A request in progress with what is needed to word its answer."""

    running: Running
    manifest: Manifest
    words: Words
    prompt: list[int]


@dataclass(slots=True)
class Service:
    """The coordinator as its HTTP API sees it.

    Attributes:
        manifests: models that may be asked for, ready or not.
        status: everything that `shardnet status` shows.
        health: short, for load balancers: `ready` and the models.
        why_not_served: of a model by name or id, where the swarm has it and it is not served.
        awaits_manifest: a node that has just joined is about to say which model it has.
        describe_stage: node, layers and bytes sent on, for the answer's statistics.
        check_grammar: raises UsageError for one that engines would not take; given it, the vocabulary's file, and the field that it came in.
    """

    requests: Requests
    settings: RequestSettings
    epoch: int
    manifests: Callable[[], list[Manifest]]
    options: Callable[[Manifest], ShardOptions]
    words: Callable[[Manifest], Awaitable[Words]]
    status: Callable[[], dict[str, Any]]
    health: Callable[[], dict[str, Any]]
    why_not_served: Callable[[str], str | None]
    awaits_manifest: Callable[[], bool]
    describe_stage: Callable[[Route, int], dict[str, Any]]
    check_grammar: Callable[[str, Path, str], Awaitable[None]]

    def named(self, wanted: str | None) -> Manifest:
        """Returns: the model that a client means, ready or not.

        Raises: UsageError, as `resolve`, or with why it is not served; PlacementError if it may become known in a moment.
        """
        try:
            return resolve(self.manifests(), wanted)
        except UsageError as error:
            reason = self.why_not_served(wanted) if wanted else None
            if reason is None and self.awaits_manifest():
                told = f"{error}; a node has just joined, and says in a moment which model it has: ask again then"
                raise PlacementError(told, retry_after_s=1, **Arriving(0, 0, 0.0).facts()) from None
            if reason is None:
                raise
            raise UsageError(reason, **error.facts) from None

    def _ready_model(self, request: CommonRequest) -> Manifest:
        manifest = self.named(request.model)
        self.requests.check_ready(manifest.model_id)  # before the work of tokenizing
        return manifest

    async def answer(self, request: ChatRequest | CompletionRequest) -> list[Answering]:
        """Begin `n` answers to a chat, or to each prompt of a completion, in the order of the prompts: the first now, the others as there are places.

        Raises: UsageError, ContextExceeded for what the client can mend; PlacementError, NoRoomError, Busy if the first cannot be run now.
        """
        arrived_at_s = self.requests.now_s()
        request.check_supported()
        manifest = self._ready_model(request)
        words = await self.words(manifest)
        sampling = await self._sampling(request, words)
        prepared = await prepare(request, words, sampling.grammar, self.settings.template_timeout_s)
        if prepared.grammar is not None:
            field = "tools" if isinstance(request, ChatRequest) and request.tools else request.structure_field
            try:
                await self.check_grammar(prepared.grammar, words.vocabulary.path, field)
            except UsageError:
                loose = await self._not_taken(request, words)
                if not loose:
                    raise
                timeout_s = self.settings.template_timeout_s
                prepared = await prepare(request, words, sampling.grammar, timeout_s, loose=loose)
                await self.check_grammar(prepared.grammar or "", words.vocabulary.path, field)
            sampling = sampling.model_copy(update={"grammar": prepared.grammar})
        prompts = prepared.prompts
        n_ctx, n = self.options(manifest).n_ctx, request.n or 1
        limits = [answer_limit(len(prompt), n_ctx, request.most_tokens()) for prompt in prompts or [[]]]
        reading = request.reading()
        if reading is not None:
            _check_size(sum(map(len, prompts)) * n * (1 + reading.top))
        traced = TRACED.get()
        parts: list[tuple[GenerationSpec, AnswerStream]] = []
        for index in range(len(prompts) * n):
            prompt = prompts[index // n]
            spec = GenerationSpec(
                model_id=manifest.model_id,
                prompt=prompt,
                sampling=sampling.model_copy(update={"seed": (sampling.seed + index % n) & MAX_SEED}),
                max_tokens=limits[index // n],
                is_end=prepared.ends.__contains__,
                ignore_eos=bool(request.ignore_eos),
                step_deadline_s=self.settings.step_deadline_s,
                recovery_timeout_s=self.settings.recovery_timeout_s,
                epoch=self.epoch,
                speculate=request.speculation is not False,
                reading=reading,
                arrived_at_s=arrived_at_s,
                recording=None if traced is None else traced.recording(len(prompt)),
            )
            parts.append((spec, prepared.stream()))
        first = await self.requests.open(*parts[0])
        ones = [first, *self.requests.open_behind(parts[1:])]
        return [Answering(one, manifest, words, prompts[index // n]) for index, one in enumerate(ones)]

    async def _not_taken(self, request: ChatRequest | CompletionRequest, words: Words) -> set[str]:
        """Returns: functions whose schemas engines do not take, and which need not be enforced. Raises: UsageError for one that must be."""
        asked, found = request.tools_asked() if isinstance(request, ChatRequest) else None, set[str]()
        for one in asked.functions if asked is not None else ():
            where = f"tools: function {one.name}"
            try:
                grammar = await asyncio.to_thread(schema_grammar, one.schema, where)
            except UsageError:
                continue  # that is known before any engine is asked
            try:
                await self.check_grammar(grammar, words.vocabulary.path, where)
            except UsageError as error:
                if one.strict:
                    raise UsageError(str(error), param="tools") from None
                found.add(one.name)
        return found

    async def _sampling(self, request: CommonRequest, words: Words) -> Sampling:
        """Returns: how the answer is sampled, all of it looked over before any work on the prompt. Raises: UsageError."""
        sampling = await asyncio.to_thread(request.sampling)
        words.check_tokens(sampling.logit_bias, "logit_bias")
        if sampling.grammar is not None:
            await self.check_grammar(sampling.grammar, words.vocabulary.path, request.structure_field)
        return sampling

    async def embed(self, request: EmbeddingsRequest) -> bytes:
        """Returns: the embeddings of texts, worded.

        Raises: UsageError, ContextExceeded for what the client can mend; PlacementError, NoRoomError, Busy if it cannot be run now.
        """
        request.inputs()
        manifest = self.named(request.model)
        self.requests.check_ready(manifest.model_id)
        words = await self.words(manifest)
        width, pooled = request.width(manifest.content.n_embd), pooling_of(request.pooling, words.vocabulary.pooling)
        prompts = await token_inputs(request, words, self.options(manifest).n_ctx)

        def spec(prompt: list[int]) -> GenerationSpec:
            return GenerationSpec(
                model_id=manifest.model_id,
                prompt=prompt,
                sampling=Sampling(),
                max_tokens=0,
                is_end=words.vocabulary.is_end,
                step_deadline_s=self.settings.step_deadline_s,
                recovery_timeout_s=self.settings.recovery_timeout_s,
                epoch=self.epoch,
                reading=PromptReading(pooled.kind),
            )

        vectors = await Embedder(self.requests, spec, width).embed(prompts)
        return await worded(vectors, request, manifest, pooled, sum(map(len, prompts)))

    async def tokenize(self, request: TokenizeRequest) -> tuple[list[int], Words]:
        """Returns: the tokens of a text, or of a chat as its template words it. Raises: UsageError."""
        request.check_supported()
        words = await self.words(self.named(request.model))
        if (chat := request.chat()) is not None:
            return (await chat_prompt_of(chat, words, self.settings.template_timeout_s)).tokens, words
        return await words.prompt_tokens(request.text(), add_special=request.adds_special()), words

    async def count(self, request: ChatRequest) -> int:
        """Returns: how many tokens the prompt of a chat has. Raises: UsageError for what cannot be answered, DeadlineExceeded."""
        request.check_supported()
        await asyncio.to_thread(request.structure)
        words = await self.words(self.named(request.model))
        return len((await chat_prompt_of(request, words, self.settings.template_timeout_s)).tokens)

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """Returns: the text of tokens, control tokens included. Raises: UsageError for one outside the vocabulary."""
        words = await self.words(self.named(request.model))
        await asyncio.to_thread(words.check_tokens, request.tokens, "tokens")
        return await asyncio.to_thread(words.vocabulary.text, request.tokens)


def _check_size(n_logprobs: int) -> None:
    """Raises: UsageError if an answer would have too many numbers about its prompts."""
    if n_logprobs > MAX_LOGPROBS:
        raise UsageError(
            f"logprobs: {n_logprobs} log-probabilities of prompts are more than {MAX_LOGPROBS}: send fewer prompts at a time, or ask for fewer "
            "beside each token",
            param="logprobs",
        )
