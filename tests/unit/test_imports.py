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
    "faults",
    "files",
    "children",
    "scratch",
    "shards",
    "manifest",
    "steps",
    "token_arrays",
    "messages",
    "wire",
    "settings",
    "log",
    "lifecycle",
    "limits",
    "mutual_tls",
    "hosts",
    "tcp",
    "standard_streams",
    "web_hosts",
    "packages",
    "journal",
}
MAY_IMPORT: dict[str, set[str]] = {
    "ids": set(),
    "errors": set(),
    "faults": set(),
    "files": {"errors"},
    "children": set(),
    "scratch": {"errors", "files"},
    "shards": {"errors"},
    "manifest": {"errors", "faults", "ids", "shards"},
    "steps": {"shards"},
    "token_arrays": set(),
    "messages": {"errors", "ids", "shards", "manifest", "steps", "wire"},
    "wire": {"errors", "faults", "shards"},
    "settings": {"errors", "faults"},
    "log": set(),
    "mutual_tls": set(),
    "hosts": set(),
    "tcp": set(),
    "standard_streams": set(),
    "web_hosts": set(),
    "condition": GROUND | {"swarm"},
    "packages": set(),
    "journal": {"errors", "log", "messages"},
    "lifecycle": {"errors", "log"},
    "limits": {"errors", "log"},
    "inference": GROUND,
    "dht": GROUND - {"messages", "wire"},
    "torrent": GROUND - {"messages", "wire"},
    "swarm": GROUND,
    "transport": GROUND | {"swarm"},
    "http_server": GROUND | {"swarm"},
    "metrics": GROUND | {"dht", "http_server", "swarm"},
    "node": GROUND | {"condition", "inference", "dht", "torrent", "swarm", "transport", "metrics"},
    "coordinator": GROUND
    | {"condition", "inference", "dht", "torrent", "swarm", "transport", "http_server", "metrics"},
    "preparing": GROUND | {"inference", "node", "swarm"},
    "local": GROUND | {"swarm"},
    "library": GROUND | {"inference", "swarm", "coordinator", "preparing"},
    "chat": GROUND | {"coordinator", "library"},
    "bench": GROUND | {"inference", "dht", "torrent", "swarm", "transport", "node", "coordinator", "local"},
    "configuration": GROUND | {"inference", "swarm", "node", "coordinator"},
    "doctor": GROUND | {"inference", "swarm", "node", "coordinator", "configuration"},
    "demo": GROUND | {"inference", "local", "preparing", "bench", "library"},
}
"""Room -> the rooms it may import. The command line may import everything."""

WINGS: dict[str, dict[str, set[str]]] = {
    "inference": {
        "gguf": set(),
        "checkpoints": {"gguf"},
        "conversion": {"checkpoints", "gguf"},
        "llama": {"gguf"},
        "quantising": {"gguf"},
        "remote": {"gguf"},
        "splitting": {"gguf"},
        "proof": {"gguf", "llama", "splitting", "engine"},
        "engine": {"gguf"},
        "worker": {"engine", "gguf", "llama"},
    },
    "coordinator": {
        "text": set(),
        "structure": set(),
        "placement": {"text"},
        "nodes": {"placement", "text"},
        "requests": {"nodes", "placement", "text"},
        "api": {"requests", "nodes", "placement", "structure", "text"},
        "page": {"api", "requests", "nodes", "placement", "text"},
        "logs": {"page", "api", "nodes", "placement"},
        "metrics": {"api", "requests", "placement"},
    },
    "node": {
        "tasks": set(),
        "links": set(),
        "shards": {"tasks"},
        "weights": {"shards", "links"},
    },
}
"""Room -> wing -> the wings of the same room that it may import. What composes them stands beside them, and no wing may import that."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported_modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = (ROOT.parent / node.module.replace(".", "/")).is_dir()
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
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


def wrong_arrows(room: str, wing: str, modules: set[str]) -> set[str]:
    """Returns: imports that a file of a wing may not have: of a wing above it, or of what composes the wings."""
    allowed = WINGS[room][wing] | {wing}
    return {
        name for name in modules if room_of(name) == room and name.split(".")[2:3] and name.split(".")[2] not in allowed
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_between_wings_run_downhill(file: Path) -> None:
    room, *rest = file.relative_to(ROOT).parts
    if room not in WINGS or len(rest) < 2:
        return
    wrong = wrong_arrows(room, rest[0], imported_modules(file))
    assert not wrong, f"{room}/{rest[0]} may not import {sorted(wrong)}"


def test_an_arrow_that_runs_upward_is_seen() -> None:
    upward = {"shardnet.coordinator.api.views", "shardnet.coordinator.settings"}
    fine = {"shardnet.coordinator.placement.law", "shardnet.coordinator.text.template", "shardnet.errors"}
    assert wrong_arrows("coordinator", "placement", upward | fine) == upward


def test_every_wing_says_what_it_knows_what_it_refuses_to_know_and_where_to_begin() -> None:
    for room, wings in WINGS.items():
        assert {path.parent.name for path in (ROOT / room).glob("*/__init__.py")} == set(wings)
        for wing in wings:
            said = ast.get_docstring(ast.parse((ROOT / room / wing / "__init__.py").read_text(encoding="utf-8"))) or ""
            for word in ("Know", "Refuse", "Begin"):
                assert word.lower() in said.lower(), (room, wing, word)


STARTS_A_PROCESS = {"Popen", "run", "call", "check_call", "check_output"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_unsafe_is_called(file: Path) -> None:
    """No pickle, marshal, eval, exec or shell anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "marshal", "shelve", "dill"}, file
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in {"eval", "exec"}, file
            starts = isinstance(node.func, ast.Attribute) and node.func.attr in STARTS_A_PROCESS
            assert not (starts and any(key.arg == "shell" for key in node.keywords)), file
