"""Values that a command refuses are told in words for people, whatever version of typer says so."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.cli.wording import ALSO, MEANT
from shardnet.errors import UsageError


@pytest.mark.parametrize(
    ("arguments", "flag", "words"),
    [
        ("split m.gguf --shards 0", "--shards", ("must be at least 1", "is not in the range x>=1")),
        ("split m.gguf --shards many", "--shards", ("must be a whole number", "is not a valid int")),
        ("verify folder --tokens 9000", "--tokens", ("must be at most 2000", "is not in the range 1<=x<=2000")),
        ("generate hi --temperature warm", "--temperature", ("must be a number", "is not a valid float")),
    ],
)
def test_a_refused_value_names_the_flag_and_what_it_must_be(arguments: str, flag: str, words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 2
    told = result.stderr.splitlines()[-1]
    assert flag in told
    assert any(one in told for one in words)
    assert "Input should" not in result.output


def test_every_command_is_there_and_says_in_a_line_what_it_does() -> None:
    told = CliRunner().invoke(app, ["--help"]).stdout.partition("Commands:")[2].splitlines()[1:]
    lines = dict(line.split(maxsplit=1) for line in told if line.strip())
    assert set(lines) == {
        "inspect", "split", "verify", "devices", "node", "coordinator", "fetch", "seed", "torrent", "generate", "chat", "status",
        "plan",
        "join", "demo", "bench", "swarm", "key", "config", "doctor", "logs", "health",
    }  # fmt: skip


@pytest.mark.parametrize("group", [[], ["swarm"], ["key"], ["config"]])
def test_no_summary_is_cut_off_in_eighty_columns(group: list[str]) -> None:
    """`bytes, KV...` stood there, and `run it on the...`."""
    told = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "80"}).stdout
    listed = told.partition("Commands:")[2].splitlines()
    assert len(listed) > 2
    assert [line for line in listed if "..." in line] == []


@pytest.mark.parametrize(
    ("word", "ours"), [("serve", "coordinator"), ("RUN", "chat"), ("ls", "status"), ("quantize", "split")]
)
def test_a_word_that_other_tools_have_is_answered_with_ours(word: str, ours: str) -> None:
    with pytest.raises(UsageError, match=f"there is no `shardnet {word}`.*`shardnet {ours}"):
        CliRunner().invoke(app, [word], catch_exceptions=False)


def test_no_word_of_other_tools_hides_a_command_and_all_that_is_named_is_there() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert not commands & (MEANT.keys() | ALSO.keys())
    assert set(ALSO.values()) <= MEANT.keys()
    named = set(re.findall(r"`shardnet (\w+)", " ".join(MEANT.values())))
    assert named <= commands | {"COMMAND"}


def test_a_missing_argument_is_told_with_what_it_is_for() -> None:
    result = CliRunner().invoke(app, ["generate"])
    assert result.exit_code == 2
    assert "Missing argument 'prompt'. What to ask" in result.stderr
