"""What typer says of a word that is no command, of a flag that is none, and of a value that is missing or cannot be used, in our own words."""

from __future__ import annotations

from typing import Any

import typer
from typer.completion import get_completion_inspect_parameters
from typer.core import TyperGroup

from shardnet.cli.completing import with_a_shell
from shardnet.errors import UsageError

MEANT = {
    "serve": "`shardnet coordinator` serves the API; `shardnet node`, on each machine, runs the layers",
    "run": "`shardnet chat` talks with a served model, `shardnet generate PROMPT` asks once; `shardnet demo` shows all of it",
    "pull": "`shardnet split` takes a file, a checkpoint or an http(s) address; `shardnet fetch MODEL` takes a model from the swarm",
    "list": "`shardnet status` shows models, layers and nodes; `shardnet swarm list` the members",
    "stop": "Ctrl-C or SIGTERM ends a daemon in order",
    "convert": "`shardnet split` takes checkpoints as they are; --quantize makes their weights smaller",
    "benchmark": "`shardnet bench`",
    "invite": "`shardnet swarm invite` prints a join token for the next machine",
    "diagnose": "`shardnet doctor` looks at this machine and its swarm, and says what to do",
    "log": "`shardnet logs` shows the lines of all machines",
    "init": "nothing has to be set up for one machine: `shardnet coordinator` makes a swarm when it first starts; `shardnet swarm init` too",
    "rm": "a model is a folder in models_cache/shards: remove that one while no daemon runs it",
    "web": "`shardnet coordinator` serves a web page, at http://127.0.0.1:8080/ if nothing else is said",
    "help": "`shardnet --help`, or `shardnet COMMAND --help`",
    "version": "`shardnet --version`",
}
"""What people try, and what does it here."""
ALSO = {
    "server": "serve", "start": "serve", "up": "serve", "master": "serve", "api": "serve", "worker": "serve", "rpc-server": "serve",
    "ask": "run", "infer": "run", "prompt": "run", "complete": "run", "cli": "run",
    "download": "pull", "get": "pull", "add": "pull", "import": "pull",
    "ls": "list", "ps": "list", "models": "list", "nodes": "list", "peers": "list", "info": "list", "show": "list", "top": "list",
    "kill": "stop", "down": "stop", "quit": "stop", "quantize": "convert", "quantise": "convert", "shard": "convert",
    "remove": "rm", "delete": "rm", "setup": "init", "ui": "web", "webui": "web", "gui": "web", "dashboard": "web", "open": "web",
    "token": "invite", "check": "diagnose", "debug": "diagnose", "tail": "log", "journal": "log",
}  # fmt: skip

_ADDRESSES = ("--api", "--listen", "--coordinator")
_MODELS = ("--model", "--models-cache", "--shard")
FLAGS = {
    "--port": _ADDRESSES, "--host": _ADDRESSES, "--bind": _ADDRESSES, "--address": _ADDRESSES, "--url": _ADDRESSES, "--server": _ADDRESSES,
    "--model": _MODELS, "-m": _MODELS, "--model-path": _MODELS, "--models": _MODELS,
    "-n": ("--max-tokens", "--shards"), "--num-predict": ("--max-tokens",), "--n-predict": ("--max-tokens",),
    "--gpu": ("--n-gpu-layers",), "--gpus": ("--n-gpu-layers",), "--gpu-layers": ("--n-gpu-layers",), "--ngl": ("--n-gpu-layers",),
    "-c": ("--n-ctx", "--config"), "--ctx-size": ("--n-ctx",), "--context": ("--n-ctx",), "-t": ("--threads",), "--parallel": ("--n-seq",),
    "-o": ("--out",), "--output": ("--out",), "--parts": ("--shards",),
}  # fmt: skip
"""Flags that other tools have, and what may be meant; those that a command has are named, in the words of its help."""


class InOurWords(TyperGroup):
    """Commands whose refused values are told as those of a settings file are. Typer's newer versions pass on pydantic's sentences.

    What other tools call a command is answered with what ours is called, and a missing argument with what it is for.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line, or answer a shell that completes one. Raises: as typer does."""
        get_completion_inspect_parameters()  # makes typer's shells known, which it does for its own options only
        return super().main(*arguments, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Returns: as typer does. Raises: UsageError for a shell that cannot be found out."""
        return super().parse_args(ctx, args if ctx.resilient_parsing else with_a_shell(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns: as typer does. Raises: UsageError for a word that other tools have."""
        word = args[0].lower() if args else ""
        word = ALSO.get(word, word)
        if word in MEANT and self.name == "shardnet":
            raise UsageError(f"there is no `shardnet {args[0]}`: {MEANT[word]}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises: as typer does."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            from shardnet.faults import first_fault

            if isinstance(error.__cause__, ValidationError):
                error.message = first_fault(error.__cause__)[1]
            elif not error.message and (told := getattr(error.param, "help", None)):
                error.message = told
            raise
        except typer.TyperException as error:
            if told := _flags_meant(error):
                raise UsageError(told) from None
            raise


def _flags_meant(error: typer.TyperException) -> str:
    """Returns: which flags of the command may be meant by one that it lacks; "" for any other error, or where none is known."""
    context, wanted = getattr(error, "ctx", None), getattr(error, "option_name", "")
    if context is None or not hasattr(error, "possibilities"):
        return ""
    there = {flag: one for one in context.command.params for flag in one.opts if getattr(one, "help", None)}
    meant = [
        f"{flag} ({there[flag].help.split('. ')[0].rstrip('.')})" for flag in FLAGS.get(wanted, ()) if flag in there
    ]
    return f"`{context.command_path}` has no {wanted}: it has {', '.join(meant)}" if meant else ""
