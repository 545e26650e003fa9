"""A coordinator in this process, with a page, whose nodes say what a test wants them to: real HTTP, TLS and chat template, no engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from shardnet import log
from shardnet.coordinator.daemon import Coordinator
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.coordinator.text.vocabulary import Vocabulary
from shardnet.inference.splitting.manifest_file import save_manifest
from shardnet.manifest import FileContent, Manifest
from shardnet.messages import Address, ExecuteTask
from shardnet.swarm.home import Home
from tests.support.coordinator_world import held, make_manifest
from tests.support.fake_node import FakeNode
from tests.support.random_models import CHAT_TEMPLATE, tiny_llama

THINKING_TEMPLATE = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message['content'] or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}",
)
"""Of a model that thinks and calls, in the shape of the hermes format."""


@dataclass
class PageWorld:
    """A running coordinator and what its model says."""

    coordinator: Coordinator
    addresses: dict[str, Address | None]
    manifest: Manifest
    tokenizer: Path
    words: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.addresses['api']}"

    def says(self, text: str) -> None:
        """The model says this from now on, and ends."""
        vocabulary = Vocabulary(self.tokenizer)
        self.words = [
            *vocabulary.tokenize(text, add_special=False, parse_special=False),
            *[vocabulary.eos] * 64,
        ]
        vocabulary.close()

    def node(self, name: str, *shard_ids: int) -> FakeNode:
        """A node that has these shards in memory."""

        def next_token(task: ExecuteTask, tokens: Sequence[int]) -> int:
            assert task.sampling is not None
            return self.words[len(tokens) - task.sampling.prompt_tokens]

        address = self.addresses["nodes"]
        assert address is not None
        node = FakeNode(name, address, [held(self.manifest, shard) for shard in shard_ids], next_token)
        node.tokenizer = self.tokenizer
        return node

    async def ready(self) -> None:
        """Wait until the model can be asked."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client, asyncio.timeout(15):
            while (await client.get("/healthz")).status_code != httpx.codes.OK:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def page_world(folder: Path, template: str = THINKING_TEMPLATE, **sections: Any) -> AsyncIterator[PageWorld]:
    """Start one; its model is called `tiny` and has three shards of two layers."""
    tokenizer = tiny_llama(folder / "tokenizer.gguf", n_layers=1, extra={"tokenizer.chat_template": template})
    data = tokenizer.read_bytes()
    file = FileContent(file="tokenizer.gguf", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest = make_manifest(tokenizer=file, n_ctx_train=2048)
    cache = folder / "cache"
    save_manifest(cache / "shards" / "tiny", manifest)
    shutil.copy(tokenizer, cache / "shards" / "tiny" / "tokenizer.gguf")
    defaults: dict[str, Any] = {
        "listen": {"nodes": "127.0.0.1:0", "api": "127.0.0.1:0", "enrol": "127.0.0.1:0"},
        "dht": {"listen_port": 0, "leave_timeout_s": 0.1},
        "models": {"cache": cache},
        "placement": {"debounce_s": 0.02, "dead_after_s": 15},
        "prefixes": {"enabled": False},
        "speculation": {"enabled": False},
        "drain_timeout_s": 0.5,
    }
    log.configure(form="json", stream=io.StringIO())  # as the command does, so that there are lines to show
    coordinator = Coordinator(CoordinatorSettings.model_validate(defaults | sections), Home())
    running = asyncio.create_task(coordinator.run())
    try:
        addresses = await asyncio.wait_for(coordinator.started(), 15)
        yield PageWorld(coordinator, addresses, manifest, tokenizer)
    finally:
        coordinator.stop()
        await running
