"""Values that a command refuses are told in words for people, whatever version of typer says so."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.cli.wording import ALSO, FLAGS, MEANT
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


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        ("coordinator --port 8080", ["--api (HTTP API)", "--listen (TLS links of nodes)"]),
        ("coordinator --host=0.0.0.0", ["--api (HTTP API)"]),
        ("node --model smollm2", ["--models-cache (", "--shard (Bind this node to a shard"]),
        ("generate hi -n 10", ["--max-tokens (Length of the answer at most"]),
        ("generate hi -m smollm2", ["--model (Name or id"]),
        ("split m.gguf -n 3", ["--shards ("]),
    ],
)
def test_a_flag_that_other_tools_have_is_answered_with_those_of_the_command(arguments: str, ours: list[str]) -> None:
    """`coordinator --port` was answered with --dht-port, `node --model` with --help."""
    with pytest.raises(UsageError, match="` has no -") as refused:
        CliRunner().invoke(app, arguments.split(), catch_exceptions=False)
    assert [one for one in ours if one not in str(refused.value)] == []


def test_a_flag_that_nobody_has_is_answered_as_before() -> None:
    result = CliRunner().invoke(app, ["generate", "hi", "--nonsense"])
    assert result.exit_code == 2
    assert "No such option: --nonsense" in result.stderr


def test_every_flag_that_is_named_instead_of_another_is_one_of_a_command() -> None:
    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    there = {flag for command in commands for param in command.params for flag in param.opts}
    assert {flag for meant in FLAGS.values() for flag in meant} <= there


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
