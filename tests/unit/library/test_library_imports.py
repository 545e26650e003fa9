"""What `import shardnet` brings, and what it costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import shardnet

COUNT = "import sys; before = set(sys.modules); import shardnet; print(sorted(set(sys.modules) - before))"


def test_importing_shardnet_imports_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, timeout=60)
    assert ast.literal_eval(done.stdout) == ["shardnet"]


@pytest.mark.parametrize("name", sorted(set(shardnet.__all__) - {"__version__"}))
def test_what_is_exported_is_there_documented_and_says_what_it_is(name: str) -> None:
    found = getattr(shardnet, name)
    assert found.__name__ == name
    assert found.__doc__
    assert name in (Path(__file__).parents[3] / "docs" / "python-api.md").read_text(encoding="utf-8")


def test_the_names_for_type_checkers_are_those_that_are_loaded() -> None:
    tree = ast.parse(Path(shardnet.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    loaded = {name: getattr(shardnet, name) for name in set(shardnet.__all__) - {"__version__"}}
    assert typed == {name: found.__module__ for name, found in loaded.items()}
    assert set(shardnet.__all__) <= set(dir(shardnet))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="SwarmClinet"):
        _ = shardnet.SwarmClinet  # type: ignore[attr-defined]


def test_a_client_does_not_load_llama_cpp() -> None:
    found = "[name for name in sys.modules if name.startswith(('llama', 'gguf'))]"
    code = f"import sys, json; from shardnet import SwarmClient; print(json.dumps({found}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
