"""`shardnet node`'s settings: the file that shows them, and what is said about wrong ones."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.errors import ShardnetError, UsageError
from shardnet.messages import Address
from shardnet.node.settings import NodeSettings
from shardnet.settings import Section, load_settings
from shardnet.swarm.whereabouts import advertised_address


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command sets logging up for a stderr that ends with it."""
    yield
    structlog.reset_defaults()


FILE = Path(__file__).parents[3] / "configs" / "node.toml"


def leaves(kind: type[Section]) -> dict[str, Any]:
    return {
        f"{section}.{key}": field.get_default()
        for section, outer in kind.model_fields.items()
        for key, field in type(outer.get_default()).model_fields.items()
    }


def test_the_settings_file_is_the_defaults() -> None:
    assert load_settings(NodeSettings, file=FILE, environ={}) == NodeSettings()


def test_the_settings_file_shows_every_key_with_a_comment() -> None:
    text = FILE.read_text(encoding="utf-8")
    section, shown, commented = "", set(), ""
    for line in text.splitlines():
        if match := re.match(r"^\[(\w+)\]$", line):
            section = match[1]
        elif match := re.match(r"^(# )?(\w+) = ", line):
            assert commented.startswith("# "), f"{section}.{match[2]} has no comment"
            shown.add(f"{section}.{match[2]}")
        commented = line
    assert shown == set(leaves(NodeSettings))
    values = {f"{s}.{k}": v for s, keys in tomllib.loads(text).items() for k, v in keys.items()}
    without = {key for key, value in leaves(NodeSettings).items() if value is None}
    assert set(leaves(NodeSettings)) - set(values) == without


def test_the_environment_sets_what_no_flag_does() -> None:
    environ = {"SHARDNET_NODE__LISTEN": "0.0.0.0:7710", "SHARDNET_INFERENCE__THREADS": "3"}
    settings = load_settings(NodeSettings, file=FILE, environ=environ, flags={"inference.threads": 2})
    assert (settings.node.listen, settings.inference.threads) == ("0.0.0.0:7710", 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--coordinator", "127.0.0.1"], "--coordinator"),
        (["--shard", "x:y"], "names no shard"),
        (["--memory-limit", "much"], "is no size"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
        (["--log-level", "loud"], "log.level"),
        (["--n-gpu-layers", "some"], "--n-gpu-layers"),
        (["--name", "../x"], "cannot be a node's name"),
    ],
)
def test_a_wrong_flag_is_named_in_one_sentence_and_ends_with_code_2(
    home: Path, arguments: list[str], words: str
) -> None:
    error = CliRunner().invoke(app, ["node", *arguments]).exception
    assert isinstance(error, ShardnetError)
    assert error.exit_code == 2
    assert words in str(error)


@pytest.mark.parametrize("text", ["0.0.0.0:7710", "[::]:7710", "somewhere", "somewhere:0", ":7710", "somewhere:99999"])
def test_what_nobody_can_dial_is_not_advertised(text: str) -> None:
    with pytest.raises(UsageError, match=r"node\.advertise"):
        advertised_address(text)


def test_a_host_behind_port_forwarding_and_a_relay_on_this_machine_can_be_advertised() -> None:
    assert advertised_address("gate.example:7710") == Address(host="gate.example", port=7710)
    assert advertised_address("127.0.0.1:7710") == Address(host="127.0.0.1", port=7710)
