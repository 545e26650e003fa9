"""What the demo gives its first node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardnet.demo.run import _give_shards


@pytest.mark.parametrize("has_links", [True, False])
def test_a_demo_that_is_kept_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    source, target = tmp_path / "model", tmp_path / "node-0" / "shards" / "model"
    source.mkdir()
    for name in ("shard-0.gguf", "manifest.json"):
        (source / name).write_text(name)
    (source / "folder.d").mkdir()

    def refuse(*_paths: object) -> None:
        raise PermissionError("no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        _give_shards(source, target)
        assert {one.name: one.read_text() for one in target.iterdir()} == {
            name: name for name in ("shard-0.gguf", "manifest.json")
        }
