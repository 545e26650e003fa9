"""`shardnet inspect --on`: how a model's layers would lie over described GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.errors import UsageError
from tests.support.random_models import tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", tied=False)


def test_described_gpus_are_told_what_they_would_take(tiny: Path) -> None:
    run = CliRunner().invoke(app, ["inspect", str(tiny), "--on", "CUDA0=8GB", "--on", "CUDA1=4GB"])
    assert run.exit_code == 0
    assert "Devices        CUDA0: layers [0, " in run.stdout
    run = CliRunner().invoke(app, ["inspect", str(tiny), "--on", "CUDA0=1MB", "--json"])
    told = json.loads(run.stdout)["placing"]
    assert set(told["devices"]) == {"CPU"}
    assert told["bytes_on"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "CUDA0"], "neither here nor GPU=SIZE"),
        (["--on", "CPU=1GB"], "neither here nor GPU=SIZE"),
        (["--on", "CUDA0=much"], "is no size"),
        (["--on", "CUDA0=1GB", "--map", "fast"], "--map: 'fast' is neither auto"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(tiny: Path, arguments: list[str], words: str) -> None:
    error = CliRunner().invoke(app, ["inspect", str(tiny), *arguments]).exception
    assert isinstance(error, UsageError)
    assert words in str(error)
