"""Imports run downhill only (docs/architecture.md). This walks the package's source and keeps it true."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shardnet

ROOT = Path(shardnet.__file__).parent

GROUND = {
    "ids",
    "errors",
    "files",
    "shards",
    "manifest",
    "steps",
    "messages",
    "wire",
    "settings",
    "log",
    "lifecycle",
    "mutual_tls",
    "tcp",
}
MAY_IMPORT: dict[str, set[str]] = {
    "ids": set(),
    "errors": set(),
    "files": {"errors"},
    "shards": {"errors"},
    "manifest": {"errors", "ids", "shards"},
    "steps": {"shards"},
    "messages": {"errors", "ids", "shards", "manifest", "steps", "wire"},
    "wire": {"errors", "shards"},
    "settings": {"errors"},
    "log": set(),
    "mutual_tls": set(),
    "tcp": set(),
    "lifecycle": {"errors", "log"},
    "inference": GROUND,
    "dht": GROUND - {"messages", "wire"},
    "torrent": GROUND - {"messages", "wire"},
    "swarm": GROUND,
    "transport": GROUND | {"swarm"},
    "node": GROUND | {"inference", "dht", "torrent", "swarm", "transport"},
    "coordinator": GROUND | {"inference", "dht", "torrent", "swarm", "transport"},
}
"""Room -> the rooms it may import. The command line and the demo may import everything."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "shardnet" else {node.module}
            )
    return {name for name in found if name.split(".")[0] == "shardnet"}


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_downhill(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = MAY_IMPORT.get(room)
    if allowed is None:
        return
    wrong = {name for name in imported_modules(file) if room_of(name) not in allowed | {room, "", "__version__"}}
    assert not wrong, f"{room} may not import {sorted(wrong)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_unsafe_is_called(file: Path) -> None:
    """Table C12: no pickle, marshal, eval, exec or shell anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "marshal", "shelve", "dill"}, file
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in {"eval", "exec"}, file
            assert not any(key.arg == "shell" for key in node.keywords), file
