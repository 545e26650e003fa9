"""What `--help` says is true: every option is told, defaults are those of the settings, and every flag of a daemon reaches its setting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.cli.flags import COORDINATOR, FETCH, NODE, SEED
from shardnet.configuration.daemons import DAEMONS
from shardnet.settings import keys_of

TABLES: dict[str, tuple[dict[str, str], str]] = {
    "node": (NODE, "node"),
    "seed": (SEED, "node"),
    "fetch": (FETCH, "node"),
    "coordinator": (COORDINATOR, "coordinator"),
}


def commands(group: Any = None, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    root: Any = group or get_command(app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


def options_of(name: str) -> dict[str, Any]:
    return {option.name: option for option in get_command(app).commands[name].params}  # type: ignore[attr-defined]


def test_every_option_and_every_argument_of_every_command_is_told() -> None:
    for names, command in commands():
        silent = [one.name for one in command.params if not getattr(one, "help", None)]
        assert not silent, (names, silent)


@pytest.mark.parametrize("command", TABLES)
def test_every_flag_of_a_daemon_reaches_a_setting_that_there_is(command: str) -> None:
    table, daemon = TABLES[command]
    options = options_of(command)
    of_the_command = {"config", "is_open", "model", "stay", "json_output"}
    assert set(options) - of_the_command == set(table)
    assert set(table.values()) <= set(keys_of(DAEMONS[daemon]))  # type: ignore[index]
    for name in table:
        if name != "folder":
            assert f"--{name.replace('_', '-')}" in options[name].opts


@pytest.mark.parametrize("command", TABLES)
def test_the_defaults_that_are_told_are_those_of_the_settings(command: str) -> None:
    table, daemon = TABLES[command]
    checked = 0
    for name, option in options_of(command).items():
        told = re.search(r"\[default: ([^ \]]+)\]", option.help)
        if told is None or name not in table or (command, name) == ("fetch", "log_level"):
            continue
        default = keys_of(DAEMONS[daemon])[table[name]].default  # type: ignore[index]
        assert told[1] == str(default), (command, name)
        checked += 1
    assert checked >= 2


def test_examples_keep_their_lines_at_eighty_columns() -> None:
    for name in ("node", "coordinator", "generate"):
        told = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).stdout
        examples = [line for line in told.splitlines() if line.startswith(f"  shardnet {name}")]
        assert examples, name
        assert all(len(line) <= 80 for line in told.splitlines()), name
