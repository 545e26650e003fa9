"""What the HTTP API asks of the coordinator, and how a request's words become a request in progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from shardnet.coordinator.api.schemas import ChatRequest, CommonRequest, CompletionRequest
from shardnet.coordinator.placement.catalogue import resolve
from shardnet.coordinator.placement.planning import Route
from shardnet.coordinator.requests.driver import Requests
from shardnet.coordinator.requests.generation_spec import GenerationSpec
from shardnet.coordinator.requests.running import Running
from shardnet.coordinator.requests.settings import RequestSettings
from shardnet.coordinator.text.stream import TextStream
from shardnet.coordinator.text.words import Words
from shardnet.errors import ContextExceeded, UsageError
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
        why_not_served: of a model by name or id, where the swarm has it and it is not served.
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
    why_not_served: Callable[[str], str | None]
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
        prompt = await words.chat_tokens(
            [message.for_template() for message in request.messages],
            request.template_variables(),
            self.settings.template_timeout_s,
            documents=request.documents,
            continues=bool(request.continue_final_message),
            begins_answer=request.add_generation_prompt is not False,
        )
        return await self._begin(request, manifest, words, prompt)

    def _ready_model(self, request: CommonRequest) -> Manifest:
        try:
            manifest = resolve(self.manifests(), request.model)
        except UsageError as error:
            reason = self.why_not_served(request.model) if request.model else None
            if reason is None:
                raise
            raise UsageError(reason, **error.facts) from None
        self.requests.check_ready(manifest.model_id)  # before the work of tokenizing
        return manifest

    async def _begin(self, request: CommonRequest, manifest: Manifest, words: Words, prompt: list[int]) -> Answering:
        n_ctx = self.options(manifest).n_ctx
        if not prompt:
            raise UsageError("the prompt is empty: give at least one token", param="prompt")
        if len(prompt) >= n_ctx:
            raise ContextExceeded(
                f"the prompt has {len(prompt)} tokens, and the context of {n_ctx} tokens has to hold it and the answer: "
                "shorten the prompt, or start the coordinator with a larger sequences.n_ctx",
                prompt_tokens=len(prompt),
                n_ctx=n_ctx,
            )
        sampling = request.sampling()
        n_vocab = words.vocabulary.n_vocab
        if bad := next((token for token in sampling.logit_bias if token >= n_vocab), None):
            raise UsageError(f"logit_bias: token {bad} is outside the vocabulary of {n_vocab}", param="logit_bias")
        spec = GenerationSpec(
            model_id=manifest.model_id,
            prompt=prompt,
            sampling=sampling,
            max_tokens=min(request.most_tokens() or n_ctx, n_ctx - len(prompt)),
            is_end=words.vocabulary.is_end,
            ignore_eos=bool(request.ignore_eos),
            step_deadline_s=self.settings.step_deadline_s,
            recovery_timeout_s=self.settings.recovery_timeout_s,
            epoch=self.epoch,
            speculate=request.speculation is not False,
        )
        running = await self.requests.open(spec, TextStream(words.vocabulary.piece, request.stops()))
        return Answering(running, manifest, words, prompt)
