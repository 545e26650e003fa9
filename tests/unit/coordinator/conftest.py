"""A coordinator with scripted nodes, for all tests of the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from shardnet.manifest import Manifest
from tests.support.random_models import tiny_llama
from tests.support.scripted_swarm import World, scripted_manifest, scripted_swarm, scripted_words


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary with a chat template."""
    return tiny_llama(tmp_path_factory.mktemp("tokenizer") / "tokenizer.gguf", n_layers=1)


@pytest.fixture(scope="session")
def words(tokenizer: Path) -> Sequence[int]:
    """The tokens that the scripted model says."""
    return scripted_words(tokenizer)


@pytest.fixture(scope="session")
def manifest(tokenizer: Path) -> Manifest:
    """The scripted model, called `tiny`."""
    return scripted_manifest(tokenizer)


@pytest.fixture
def make_world(
    home: Path, tmp_path: Path, manifest: Manifest, words: Sequence[int], tokenizer: Path
) -> Callable[..., Any]:
    """`(**settings)` -> a running coordinator, which `async with` ends."""

    def make(**sections: Any) -> AbstractAsyncContextManager[World]:
        return scripted_swarm(tmp_path / "cache", manifest, words, tokenizer, **sections)

    return make
