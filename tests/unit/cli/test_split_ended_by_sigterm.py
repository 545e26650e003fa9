"""A split that is told to end leaves nothing half-written, whoever tells it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.inference.gguf.writer import write_gguf
from shardnet.inference.splitting import cutting
from shardnet.lifecycle import TERMINATED
from tests.support.random_models import tiny_llama


def test_sigterm_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, write = tiny_llama(tmp_path / "m.gguf", n_layers=2), write_gguf

    def be_ended(*arguments: Any, **more: Any) -> Any:
        written = write(*arguments, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return written

    monkeypatch.setattr(cutting, "write_gguf", be_ended)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ended = CliRunner().invoke(app, ["split", str(model), "--out", str(tmp_path / "out"), "--no-verify"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.exit_code == TERMINATED == 143
    assert not list((tmp_path / "out" / "shards").iterdir())
