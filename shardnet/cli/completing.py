"""What the shell offers behind an option or an argument: words, models, shards, members. And the scripts that make shells ask.

A person waits for it at every Tab, so it is quick, and silent about everything that is not there: the coordinator has a fifth of a second, and
nothing heavy is imported (a few files and one address are read with the standard library alone). Nothing that it offers is checked here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

PATIENCE_S = 0.2
MOST_BYTES = 4 << 20
MOST_MODELS = 200
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
Offer = tuple[str, str]
"""What is offered, and what it is."""


def words(*offered: str) -> Callable[[str], list[str]]:
    """Returns: a completion by fixed words."""
    return lambda incomplete: [word for word in offered if word.startswith(incomplete)]


def models(context: typer.Context, incomplete: str) -> list[Offer]:
    """Returns: names of the models that the coordinator serves; without one, of those in the models cache."""
    served = _ask("/v1/models", context).get("data", [])
    found = [
        (str(one["id"]), str(one.get("owned_by", "served"))) for one in served if isinstance(one, dict) and "id" in one
    ]
    found = found or [(str(one.get("name", "")), "in the models cache") for one in _manifests(context)]
    return sorted({offer for offer in found if offer[0].startswith(incomplete)})


def shards(context: typer.Context, incomplete: str) -> list[Offer]:
    """Returns: numbers of the shards of the models in this node's cache. (A model's name before one would end at its colon in many a shell.)"""
    found: dict[str, list[str]] = {}
    for manifest in _manifests(context):
        for shard in manifest.get("content", {}).get("shards", []):
            layers = shard.get("layers", {})
            what = f"{manifest.get('name')}, layers {layers.get('first')} to {layers.get('end')}"
            found.setdefault(str(shard.get("shard_id")), []).append(what)
    return [(number, "; ".join(what)) for number, what in found.items() if number.startswith(incomplete)]


def members(incomplete: str) -> list[Offer]:
    """Returns: names of the swarm's members, where this machine is its owner's."""
    found = _json_of(_home() / "swarm" / "members.json")
    return [
        (str(one["name"]), node_id[:12])
        for node_id, one in found.items()
        if isinstance(one, dict) and str(one.get("name", "")).startswith(incomplete)
    ]


def keys(incomplete: str) -> list[str]:
    """Returns: names of the keys of the HTTP API."""
    return [name for name in _json_of(_home() / "swarm" / "api_keys.json") if name.startswith(incomplete)]


def show_script(shell: str | None) -> None:
    """Print what makes a shell complete shardnet, and end. Raises: UsageError for another shell."""
    if shell is None:
        return
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    typer.echo(get_completion_script(prog_name="shardnet", complete_var="_SHARDNET_COMPLETE", shell=_known(shell)))
    raise typer.Exit


def install_script(shell: str | None) -> None:
    """Put that where the shell of this user finds it, and end. Raises: UsageError for another shell, or a home folder that cannot be written."""
    if shell is None:
        return
    from typer.completion import install  # type: ignore[attr-defined]

    from shardnet.errors import UsageError

    try:
        _, path = install(shell=_known(shell), prog_name="shardnet", complete_var="_SHARDNET_COMPLETE")
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"cannot install completion: {error}; put what `shardnet --show-completion {shell}` prints where your shell reads it"
        ) from error
    typer.echo(f"{shell} completes shardnet from its next start on ({path})")
    raise typer.Exit


def with_a_shell(args: list[str]) -> list[str]:
    """Returns: the command line, in which an option that asks for a shell and names none has the one from which we were called.

    Raises: UsageError if that cannot be found out, as without a terminal.
    """
    if not args or args[0] not in ("--show-completion", "--install-completion") or len(args) > 1:
        return args
    from shellingham import ShellDetectionFailure, detect_shell  # type: ignore[import-untyped]  # typer needs it too

    try:
        return [args[0], detect_shell()[0]]
    except ShellDetectionFailure:
        from shardnet.errors import UsageError

        raise UsageError(f"say which shell: `shardnet {args[0]} {'|'.join(SHELLS[:3])}`") from None


def _known(shell: str) -> str:
    from shardnet.errors import UsageError

    if shell not in SHELLS:
        raise UsageError(f"{shell!r} is no shell that completion is there for: write one of {', '.join(SHELLS)}")
    return shell


def _ask(path: str, context: typer.Context) -> dict[str, Any]:
    """Returns: the JSON of the coordinator's API; nothing if it does not answer at once."""
    from http.client import HTTPConnection, HTTPException
    from urllib.parse import urlsplit

    url = context.params.get("api") or os.environ.get("SHARDNET_API") or _written_address()
    key = os.environ.get("SHARDNET_API__KEY")
    with suppress(OSError, ValueError, HTTPException):
        where = urlsplit(url if "://" in url else f"http://{url}")
        if where.scheme != "http" or where.hostname is None:
            return {}
        connection = HTTPConnection(where.hostname, where.port or 80, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            answer = connection.getresponse()
            found = json.loads(answer.read(MOST_BYTES)) if answer.status == 200 else {}
        finally:
            connection.close()
        return found if isinstance(found, dict) else {}
    return {}


def _written_address() -> str:
    api = _json_of(_home() / "swarm" / "coordinator.json").get("api")
    return (
        f"http://{api['host']}:{api['port']}"
        if isinstance(api, dict) and ":" not in str(api.get("host", ":"))
        else "http://127.0.0.1:8080"
    )


def _manifests(context: typer.Context) -> Iterator[dict[str, Any]]:
    cache = Path(context.params.get("models_cache") or "models_cache")
    found = [*cache.glob("*/manifest.json"), *cache.glob("shards/*/manifest.json")]
    return (manifest for path in found[:MOST_MODELS] if (manifest := _json_of(path)))


def _home() -> Path:
    return Path(os.environ.get("SHARDNET_HOME") or os.path.expanduser("~/.shardnet"))  # noqa: PTH111  (which raises nothing)


def _json_of(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        if path.stat().st_size <= MOST_BYTES:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
    return {}
