"""`shardnet config show | check`: what a daemon's settings come to, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shardnet.cli.options import AsJson

if TYPE_CHECKING:
    from shardnet.configuration.daemons import Daemon
    from shardnet.configuration.showing import Row

DaemonName = Literal["node", "coordinator"]

config = typer.Typer(help="Show and check what a daemon's settings come to.", no_args_is_help=True)


@config.command()
def show(
    daemon: Annotated[
        DaemonName | None,
        typer.Argument(help="Whose settings. Nothing said: the daemon whose keys FILE has; without a file, both."),
    ] = None,
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAGS", help="Flags, as that daemon takes them.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Settings file. Nothing said: none.")
    ] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not at its default.")] = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="A settings file of all defaults, with comments; nothing else is read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print every setting, and where it was said.

    Print every setting as a daemon that starts now takes it, where it was said, and what it comes to.

    The order is: default < file < environment (SHARDNET_SECTION__KEY) < flags. Secrets are hidden. What is printed is a settings file itself.

    \b
    shardnet config show node --config node.toml -- --listen 0.0.0.0:7710
    shardnet config show coordinator --changed
    shardnet config show node --defaults > node.toml
    """
    import json

    from shardnet.configuration.daemons import DAEMONS
    from shardnet.configuration.showing import as_toml, defaults_as_toml
    from shardnet.errors import UsageError

    if flags and daemon is None:
        raise UsageError("say whose flags these are: `shardnet config show node -- FLAGS`")
    names = _daemons(daemon, file)
    if defaults:
        if as_json or len(names) > 1:
            raise UsageError("--defaults prints a settings file of one daemon: `shardnet config show node --defaults`")
        typer.echo(defaults_as_toml(DAEMONS[names[0]], names[0]))
        return
    found = {name: [row for row in _rows(name, file, flags or ()) if row.is_changed or not changed] for name in names}
    if as_json:
        typer.echo(json.dumps({name: [row.facts() for row in rows] for name, rows in found.items()}))
        return
    for name, rows in found.items():
        typer.echo(f"# `shardnet {name}`{'' if rows else ': every setting has its default'}")
        if rows:
            typer.echo(as_toml(rows))
        if name != names[-1]:
            typer.echo()


@config.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Settings file. Nothing said: the environment alone.")
    ] = None,
    daemon: Annotated[
        DaemonName | None,
        typer.Option(
            "--for", help="Whose settings. Nothing said: the daemon whose keys FILE has; without a file, both."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say all that is wrong with settings.

    Say everything that is wrong with a settings file, and with the environment, at once.

    Errors (exit code 2) keep the daemon from starting: unknown keys, wrong types, values out of range. Warnings (exit code 0) are legal, and do
    not work together or on this machine: an address that it does not have, a folder that cannot be written, a name that nobody resolves.
    """
    import json

    from shardnet.configuration.checking import check_daemon
    from shardnet.errors import SettingsError, printable
    from shardnet.log import counted

    found = {name: check_daemon(name, file) for name in _daemons(daemon, file)}
    what = str(file) if file is not None else "the environment"
    if as_json:
        typer.echo(
            json.dumps(
                {
                    name: [
                        {
                            "severity": one.severity,
                            "key": one.key or None,
                            "where": one.where or None,
                            "sentence": one.sentence,
                        }
                        for one in findings
                    ]
                    for name, findings in found.items()
                }
            )
        )
    else:
        for line in dict.fromkeys(printable(str(one)) for findings in found.values() for one in findings):
            typer.echo(line)
    errors = {one.sentence for findings in found.values() for one in findings if one.severity == "error"}
    if errors:
        raise SettingsError(f"{what} has {counted(len(errors), 'error')}: no {' and no '.join(found)} starts with it")
    if not as_json:
        typer.echo(f"✓ {what}: a {' and a '.join(found)} can start with it")


def _daemons(daemon: DaemonName | None, file: Path | None) -> list[Daemon]:
    """Returns: whose settings are meant: of a file that does not say so and cannot be read, a node's."""
    from shardnet.configuration.daemons import DAEMONS, daemon_of
    from shardnet.errors import SettingsError
    from shardnet.settings.toml_file import read_toml

    if daemon is not None:
        return [daemon]
    if file is None:
        return list(DAEMONS)
    try:
        return [daemon_of(read_toml(file).values)]
    except SettingsError:
        return ["node"]


def _rows(name: Daemon, file: Path | None, flags: Sequence[str]) -> list[Row]:
    """Returns: every setting of a daemon that is started by this file and these flags. Raises: SettingsError, UsageError as it would."""
    from typer.main import get_command

    from shardnet.cli import app
    from shardnet.cli.flags import COORDINATOR, NODE, names_of, settings_of
    from shardnet.configuration.computed import comes_to
    from shardnet.configuration.daemons import read_daemon
    from shardnet.configuration.showing import rows_of
    from shardnet.settings import whole

    table = NODE if name == "node" else COORDINATOR
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    params = command.make_context(f"shardnet {name}", list(flags)).params
    reading = read_daemon(
        name, file=file or params["config"], flags=settings_of(params, table), flag_names=names_of(table)
    )
    settings = whole(reading)
    return rows_of(settings, reading.origins, comes_to(settings))
