"""A real coordinator over TLS and HTTP, with nodes that say what a script says. `make_world` of `tests/unit/coordinator` starts one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from shardnet.coordinator.daemon import Coordinator
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.inference.splitting.manifest_file import save_manifest
from shardnet.manifest import FileContent, Manifest
from shardnet.messages import Address, ExecuteTask
from shardnet.swarm.home import Home
from tests.support.coordinator_world import held, make_manifest
from tests.support.fake_node import FakeNode

TEXT = "The quick brown fox jumps over the lazy dog. " * 4
"""What the scripted model says, whatever it is asked."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLING = "I look." + "".join(
    f'\n<tool_call>\n{{"name": "weather", "arguments": {arguments}}}\n</tool_call>'
    for arguments in ('{"city": "Rom"}', "{}")
)
"""Two calls of it."""


def scripted_words(tokenizer: Path) -> Sequence[int]:
    """Returns: the tokens of `TEXT`."""
    vocabulary = Vocabulary(tokenizer)
    tokens = vocabulary.tokenize(TEXT, add_special=False, parse_special=False)
    vocabulary.close()
    return tokens


def scripted_manifest(tokenizer: Path) -> Manifest:
    """Returns: the manifest of a model of three shards, which has this tokenizer."""
    data = tokenizer.read_bytes()
    file = FileContent(file="tokenizer.gguf", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return make_manifest(tokenizer=file, n_ctx_train=2048)


@dataclass
class World:
    """A running coordinator."""

    coordinator: Coordinator
    addresses: dict[str, Address | None]
    client: httpx.AsyncClient
    manifest: Manifest
    words: Sequence[int]
    tokenizer: Path

    def node(self, name: str, *shard_ids: int, loaded: bool = True) -> FakeNode:
        """A node that holds these shards, and joins as it is entered."""

        def next_token(task: ExecuteTask, tokens: Sequence[int]) -> int:
            assert task.sampling is not None
            return self.words[len(tokens) - task.sampling.prompt_tokens]

        address = self.addresses["nodes"]
        assert address is not None
        node = FakeNode(name, address, [held(self.manifest, shard, loaded=loaded) for shard in shard_ids], next_token)
        node.tokenizer = self.tokenizer
        return node

    async def health(self) -> dict[str, Any]:
        """Returns: what `/healthz` says."""
        found: dict[str, Any] = (await self.client.get("/healthz")).json()
        return found

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status is like this."""
        async with asyncio.timeout(15):
            while True:
                status: dict[str, Any] = (await self.client.get("/status")).json()
                if condition(status):
                    return status
                await asyncio.sleep(0.02)

    async def ready(self) -> None:
        """Wait until every model can be asked."""
        await self.until(lambda status: bool(status["models"]) and all(one["ready"] for one in status["models"]))

    async def chat(self, **more: Any) -> httpx.Response:
        """Returns: the answer to a short chat."""
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 20,
            "temperature": 0,
        } | more
        return await self.client.post("/v1/chat/completions", json=body)


def says(world: World, text: str) -> int:
    """The scripted model says this and ends. Returns: how many tokens that is; steps may be asked for beyond."""
    vocabulary = Vocabulary(world.tokenizer)
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=False)
    world.words = [*tokens, *[vocabulary.eos] * 64]
    vocabulary.close()
    return len(tokens) + 1


@asynccontextmanager
async def scripted_swarm(
    cache: Path, manifest: Manifest, words: Sequence[int], tokenizer: Path, *, in_cache: bool = True, **sections: Any
) -> AsyncIterator[World]:
    """A coordinator of the settings `sections`, in the home of the environment. Args: in_cache: it has the model's manifest and tokenizer itself."""
    if in_cache:
        folder = cache / "shards" / "tiny"
        save_manifest(folder, manifest)
        shutil.copy(tokenizer, folder / "tokenizer.gguf")
    defaults: dict[str, Any] = {
        "listen": {"nodes": "127.0.0.1:0", "api": "127.0.0.1:0", "enrol": "127.0.0.1:0"},
        "dht": {"listen_port": 0},
        "models": {"cache": cache},
        "placement": {"debounce_s": 0.02, "dead_after_s": 15},
        "drain_timeout_s": 0.5,
    }
    merged = defaults | {
        name: defaults.get(name, {}) | given if isinstance(given, dict) else given for name, given in sections.items()
    }
    coordinator = Coordinator(CoordinatorSettings.model_validate(merged), Home())
    running = asyncio.create_task(coordinator.run())
    started = asyncio.create_task(coordinator.started())
    await asyncio.wait({running, started}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        started.cancel()
        running.result()
    addresses = started.result()
    try:
        async with httpx.AsyncClient(base_url=f"http://{addresses['api']}", timeout=20, trust_env=False) as client:
            yield World(coordinator, addresses, client, manifest, words, tokenizer)
    finally:
        coordinator.stop()
        await running


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Returns: the events of a stream that ended well."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
