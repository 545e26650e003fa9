"""What typer says of a word that is no command and of a value that is missing or cannot be used, in our own words."""

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
    "token": "invite", "check": "diagnose", "debug": "diagnose", "tail": "log", "journal": "log",
}  # fmt: skip


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
