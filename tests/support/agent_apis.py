"""What tests of the APIs that agents speak share: a model that reasons, and server-sent events with names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from shardnet.manifest import Manifest
from tests.support.random_models import CHAT_TEMPLATE, tiny_llama
from tests.support.scripted_swarm import scripted_manifest, scripted_words

REASONS = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message['content'] }}",
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary, with a chat template that knows reasoning."""
    path = tmp_path_factory.mktemp("reasons") / "tokenizer.gguf"
    return tiny_llama(path, n_layers=1, extra={"tokenizer.chat_template": REASONS})


@pytest.fixture(scope="session")
def words(tokenizer: Path) -> Sequence[int]:
    """The tokens that the scripted model says."""
    return scripted_words(tokenizer)


@pytest.fixture(scope="session")
def manifest(tokenizer: Path) -> Manifest:
    """The scripted model with this tokenizer: what another tokenizer was made into is not taken for it."""
    return scripted_manifest(tokenizer)


def named_events(response: httpx.Response) -> list[dict[str, Any]]:
    """Returns: the events of a stream, each of which has the name of its type."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Returns: the types of events in their order, those that follow their like left out."""
    return [name for name, _ in groupby(one["type"] for one in events)]
