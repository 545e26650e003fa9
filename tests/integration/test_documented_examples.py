"""Every example in docs/python-api.md and README.md runs as it stands, beside a real swarm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardnet.local.processes import LocalSwarm
from tests.support.random_models import tiny_llama
from tests.support.two_nodes import tiny_halves
from tests.support.whole_checkpoints import write_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(150)]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples_of(document: str) -> list[str]:
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("swarm")
    halves = tiny_halves(folder)
    with LocalSwarm(folder / "swarm") as swarm:
        halves.serve(swarm)
        yield swarm.api


@pytest.mark.parametrize("document", ["docs/python-api.md", "README.md"])
def test_the_examples_of_a_document_run_one_after_the_other(
    document: str,
    api: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_llama(tmp_path / "model.gguf")
    write_model(tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDNET_API", api)
    examples = examples_of(document)
    assert examples
    names: dict[str, Any] = {"__name__": "an_example"}
    for number, example in enumerate(examples):
        exec(compile(example, f"{document}, example {number}", "exec"), names)
        assert capsys.readouterr().out.strip()
