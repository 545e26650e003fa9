"""`ShardRunner`: a split model run on this machine, without a swarm. Knows words and modes; `chain` knows shards and processes."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from typing import Literal, Self, Unpack, get_args

import structlog
from pydantic import ValidationError

from shardnet.coordinator.api.chats import prepare
from shardnet.coordinator.api.messages import text_of
from shardnet.coordinator.api.schemas import ChatRequest, CompletionRequest, usage_error
from shardnet.coordinator.placement.settings import SequenceSettings
from shardnet.coordinator.requests.generation_spec import answer_limit
from shardnet.coordinator.requests.settings import RequestSettings
from shardnet.coordinator.text.words import open_words
from shardnet.errors import UsageError
from shardnet.inference.engine.settings import InferenceSettings
from shardnet.library.answers import Answer, Messages, OnText, Options, Piece, Prompt, body_of, is_prompt, tell_all
from shardnet.library.chain import Chain
from shardnet.library.devices import CPU, assign_shards, detect_devices
from shardnet.library.loop_thread import LoopThread
from shardnet.library.models import AnyPath, open_split
from shardnet.log import configure

Mode = Literal["simple", "memory-efficient", "distributed"]


class ShardRunner:
    """A split model, ready to answer. A context manager; several threads may use one.

    The arithmetic runs in processes of its own, which end with `close`, and with this process in any case. Its tokens are those of
    `shardnet generate` over a swarm and of the unsplit model in llama.cpp. It works in scripts, notebooks and beside a running event loop, which it
    does not use and which a call holds up: `await asyncio.to_thread(runner.chat, ...)` does not.

    Attributes:
        manifest: of the model.
        mode: as given.
        assignment: shard -> device in distributed mode; empty else.
    """

    def __init__(
        self,
        model: AnyPath,
        *,
        mode: Mode = "simple",
        devices: Sequence[str] | None = None,
        n_ctx: int = 4096,
        n_seq: int = 1,
        n_batch: int = 512,
        threads: int = 0,
        memory_limit_bytes: int = 0,
    ) -> None:
        """Check the files' hashes, start the processes and load the shards.

        Args:
            model: folder of a split model (`split_model(...).folder`), or its `manifest.json`.
            mode: "simple": all shards stay loaded, in one process. "memory-efficient": one shard is loaded at a time, so that a model larger than
                memory runs, at the speed of the disk: every token reads every shard. "distributed": each device has some of the shards, in a process
                of its own; other machines are asked through `SwarmClient`.
            devices: in distributed mode, as `detect_devices` names them; all GPUs if None, the processor if there is none.
            n_ctx: tokens of context of each sequence, no more than the model was trained for.
            n_seq: answers at the same time; more wait.
            n_batch: tokens of a prompt that are computed at once.
            threads: CPU threads; 0: this process's share of the physical cores.
            memory_limit_bytes: most memory for all shards together; 0: what the machine has free.

        Raises: UsageError, ManifestError, RefusedError (damaged files), ParityError (the shards are known to give other numbers), NoRoomError,
            EngineError.
        """
        if mode not in get_args(Mode):
            raise UsageError(f"there is no mode {mode!r}: there are {', '.join(get_args(Mode))}")
        if devices is not None and mode != "distributed":
            raise UsageError(f"devices belong to the mode distributed, not to {mode}")
        try:
            sizes = SequenceSettings(n_ctx=n_ctx, n_seq=n_seq, n_batch=n_batch)
            settings = InferenceSettings(threads=threads, memory_limit_bytes=memory_limit_bytes)
        except ValidationError as error:
            raise usage_error(error) from None
        if not structlog.is_configured():
            configure(level="warning")
        examined = open_split(model)
        self.manifest = examined.manifest
        self.mode: Mode = mode
        self.assignment: dict[int, str] = {}
        if mode == "distributed":
            if devices is None:
                devices = [device for device in detect_devices() if device != CPU] or [CPU]
            self.assignment = assign_shards(self.manifest.n_shards, devices, neighbours_together=True)
        self._words = open_words(self.manifest.name, examined.folder / self.manifest.content.tokenizer.file)
        options = sizes.to_options(self.manifest.content.n_ctx_train)
        self._thread = LoopThread("shard-runner")
        self._chain = Chain(examined.folder, self.manifest, options, one_at_a_time=mode == "memory-efficient")
        self._end = weakref.finalize(self, _close, self._thread, self._chain)
        try:
            self._thread.run(self._chain.open(settings, self.assignment or None, os.environ))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and free all memory. Harmless when repeated. Answers under way must have ended."""
        self._end()
        self._words.vocabulary.close()

    def chat(self, messages: Messages, *, on_text: OnText | None = None, **options: Unpack[Options]) -> Answer:
        """Answer a conversation, worded by the model's own chat template. Returns: the whole answer. Raises: as `stream`."""
        return self._whole(messages, on_text, options)

    def complete(self, prompt: Prompt, *, on_text: OnText | None = None, **options: Unpack[Options]) -> Answer:
        """Continue a text as it is. Returns: the whole answer. Raises: as `stream`."""
        return self._whole(prompt, on_text, options)

    def stream(self, asked: Prompt | Messages, **options: Unpack[Options]) -> Generator[Piece, None, None]:
        """Yield the answer to a conversation, or what follows a prompt, token by token. Closed early, it computes no further.

        Raises: UsageError for options, messages or a prompt that cannot be taken; ContextExceeded; EngineError, EngineCrashed (the next request finds
            a new process); NoRoomError.
        """
        return self._pieces(asked, options, Answer())

    def _whole(self, asked: Prompt | Messages, on_text: OnText | None, options: Options) -> Answer:
        answer = Answer()
        tell_all(self._pieces(asked, options, answer), on_text)
        return answer

    def _pieces(self, asked: Prompt | Messages, options: Options, answer: Answer) -> Generator[Piece, None, None]:
        if not self._end.alive:
            raise UsageError("the runner was closed: make another")
        for piece in self._thread.iterate(self._generate(asked, body_of(options), answer)):
            yield answer.add(piece)

    async def _generate(
        self, asked: Prompt | Messages, body: dict[str, object], answer: Answer
    ) -> AsyncGenerator[Piece, None]:
        request = _parse(asked, body)
        sampling = request.sampling()
        prepared = await prepare(request, self._words, sampling.grammar, RequestSettings().template_timeout_s)
        prompt = prepared.prompts[0] if prepared.prompts else []
        limit = answer_limit(len(prompt), self._chain.options.n_ctx, request.most_tokens())
        if prepared.grammar is not None:
            sampling = sampling.model_copy(update={"grammar": prepared.grammar})
        self._words.check_tokens(sampling.logit_bias, "logit_bias")
        answer.model, answer.prompt_token_ids = self.manifest.name, list(prompt)
        stream = prepared.stream()
        async with aclosing(self._chain.generate(prompt, sampling)) as tokens:
            n_tokens = 0
            async for token in tokens:
                n_tokens += 1
                shown = stream.push(token)
                if stream.stopped or (token in prepared.ends and not request.ignore_eos):
                    yield Piece(text_of([*shown, *stream.flush()]), (token,), "stop")
                    return
                if n_tokens == limit:
                    yield Piece(text_of([*shown, *stream.flush()]), (token,), "length")
                    return
                yield Piece(text_of(shown), (token,))


def _parse(asked: Prompt | Messages, body: dict[str, object]) -> ChatRequest | CompletionRequest:
    """Returns: what the HTTP API would make of it. Raises: UsageError."""
    request: ChatRequest | CompletionRequest
    try:
        if is_prompt(asked):
            request = CompletionRequest.model_validate(
                body | {"prompt": asked if isinstance(asked, str) else list(asked)}
            )
        else:
            request = ChatRequest.model_validate(body | {"messages": list(asked)})
    except ValidationError as error:
        raise usage_error(error) from None
    request.check_supported()
    if isinstance(request, ChatRequest) and request.tools:
        raise UsageError("tools: a runner gives text alone; a swarm's API calls tools", param="tools")
    return request


def _close(thread: LoopThread, chain: Chain) -> None:
    try:
        thread.run(chain.close())
    finally:
        thread.close()
