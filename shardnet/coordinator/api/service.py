"""What the HTTP API asks of the coordinator, and how a request's words become a request in progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.api.schemas import ChatRequest, CommonRequest, CompletionRequest
from shardnet.coordinator.placement.catalogue import resolve
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec, answer_limit
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.requests.settings import RequestSettings
from shardnet.coordinator.text.stream import TextStream
from shardnet.coordinator.text.words import Words
from shardnet.manifest import Manifest
from shardnet.messages import ShardOptions


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
        describe_stage: node, layers and bytes sent on, for the answer's statistics.
    """

    requests: Requests
    settings: RequestSettings
    epoch: int
    manifests: Callable[[], list[Manifest]]
    options: Callable[[Manifest], ShardOptions]
    words: Callable[[Manifest], Awaitable[Words]]
    status: Callable[[], dict[str, Any]]
    health: Callable[[], dict[str, Any]]
    describe_stage: Callable[[Route, int], dict[str, Any]]

    async def complete(self, request: CompletionRequest) -> Answering:
        """Begin a plain completion.

        Raises: UsageError, ContextExceeded for what the client can mend; PlacementError, NoRoomError, Busy if it cannot be run now.
        """
        request.check_supported()
        manifest = self._ready_model(request)
        words = await self.words(manifest)
        prompt = await words.prompt_tokens(request.single_prompt())
        return await self._begin(request, manifest, words, prompt)

    async def chat(self, request: ChatRequest) -> Answering:
        """Begin a chat turn with the model's own template. Raises: as `complete`."""
        request.check_supported()
        manifest = self._ready_model(request)
        words = await self.words(manifest)
        messages = [message.for_template() for message in request.messages]
        prompt = await words.chat_tokens(messages, request.chat_template_kwargs, self.settings.template_timeout_s)
        return await self._begin(request, manifest, words, prompt)

    def _ready_model(self, request: CommonRequest) -> Manifest:
        manifest = resolve(self.manifests(), request.model)
        self.requests.check_ready(manifest.model_id)  # before the work of tokenizing
        return manifest

    async def _begin(self, request: CommonRequest, manifest: Manifest, words: Words, prompt: list[int]) -> Answering:
        n_ctx = self.options(manifest).n_ctx
        sampling = request.sampling()
        words.check_tokens(sampling.logit_bias, "logit_bias")
        spec = GenerationSpec(
            model_id=manifest.model_id,
            prompt=prompt,
            sampling=sampling,
            max_tokens=answer_limit(len(prompt), n_ctx, request.most_tokens()),
            is_end=words.vocabulary.is_end,
            ignore_eos=bool(request.ignore_eos),
            step_deadline_s=self.settings.step_deadline_s,
            recovery_timeout_s=self.settings.recovery_timeout_s,
            epoch=self.epoch,
            speculate=request.speculation is not False,
        )
        running = await self.requests.open(spec, TextStream(words.vocabulary.piece, request.stops()))
        return Answering(running, manifest, words, prompt)
