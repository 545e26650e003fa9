"""`shardnet config`: what it shows is what a daemon takes, and it says all that is wrong at once."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.configuration.daemons import DAEMONS, Daemon, daemon_of, read_daemon
from shardnet.errors import SettingsError, ShardnetError, UsageError
from shardnet.settings import keys_of, load_settings, value_at, whole

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Nobody's keys and coordinators but those of the test."""


def run(*arguments: str, environ: dict[str, str] | None = None) -> str:
    result = CliRunner().invoke(app, ["config", *arguments], env=environ, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def shown(daemon: Daemon, *arguments: str, environ: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    rows = json.loads(run("show", daemon, "--json", *arguments, environ=environ))[daemon]
    return {row["key"]: row for row in rows}


def findings(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, list[str]]:
    """Returns: the exit code and each line, in which a long path is FILE."""
    result = CliRunner().invoke(app, ["config", "check", *arguments], env=environ)
    code = result.exception.exit_code if isinstance(result.exception, ShardnetError) else result.exit_code
    text = result.stdout
    for argument in arguments:
        text = text.replace(argument, "FILE") if argument.endswith(".toml") else text
    return code, text.splitlines()


@pytest.mark.parametrize("daemon", DAEMONS)
def test_what_is_shown_is_a_settings_file_that_gives_what_the_daemon_takes(tmp_path: Path, daemon: Daemon) -> None:
    file, again = tmp_path / "c.toml", tmp_path / "again.toml"
    file.write_text("[dht]\nbootstrap = ['a:1', \"b\\\"ö:2\"]\nalpha = 5\n[log]\nlevel = 'debug'\n")
    environ = {"SHARDNET_DHT__ALPHA": "7", "SHARDNET_DHT__KSIZE": "3"}
    flags = {"node": {"node.listen": "[::1]:7"}, "coordinator": {"listen.nodes": "[::1]:7"}}[daemon]
    again.write_text(run("show", daemon, "--config", str(file), "--", "--listen", "[::1]:7", environ=environ))
    taken = whole(read_daemon(daemon, file=file, environ=environ, flags=flags))
    assert load_settings(DAEMONS[daemon], file=again, environ={}) == taken
    assert taken.dht.alpha == 7


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_key_is_shown_with_its_value_and_its_default(daemon: Daemon) -> None:
    rows, defaults = shown(daemon), DAEMONS[daemon]()
    assert list(rows) == list(keys_of(DAEMONS[daemon]))
    for key, row in rows.items():
        value = value_at(defaults, key)
        assert row["value"] == row["default"] == json.loads(json.dumps(value, default=str))
        assert (row["source"], row["where"]) == ("default", None)


def test_each_value_says_where_it_was_said(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '# first\n\n[node]\nlisten = "a:1"\n"models_cache" = "x"\n[inference]\ndevice_memory_bytes = [\n "A=1", # [\n "B=2"]\nthreads = 3\n'
    )
    environ = {"SHARDNET_INFERENCE": '{"use_mmap": false}', "SHARDNET_TORRENT__MAX_UPLOADS": "4"}
    rows = shown(
        "node", "--config", str(file), "--changed", "--", "--log-level", "debug", "--shard", "1", environ=environ
    )
    assert {key: (row["source"], row["where"]) for key, row in rows.items()} == {
        "node.listen": ("file", f"{file}:4"),
        "node.models_cache": ("file", f"{file}:5"),
        "node.shards": ("command line", "--shard"),
        "inference.threads": ("file", f"{file}:10"),
        "inference.device_memory_bytes": ("file", f"{file}:7"),
        "inference.use_mmap": ("environment", "SHARDNET_INFERENCE"),
        "torrent.max_uploads": ("environment", "SHARDNET_TORRENT__MAX_UPLOADS"),
        "log.level": ("command line", "--log-level"),
    }


def test_the_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[inference]\nthreads = 1\n[log]\nlevel = 'error'\n[dht]\nalpha = 2\n")
    environ = {"SHARDNET_INFERENCE__THREADS": "2", "SHARDNET_LOG__LEVEL": "warning"}
    rows = shown("node", "--config", str(file), "--", "--threads", "3", environ=environ)
    found = {key: rows[key]["value"] for key in ("inference.threads", "log.level", "dht.alpha")}
    assert found == {"inference.threads": 3, "log.level": "warning", "dht.alpha": 2}


def test_a_secret_is_told_to_nobody(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[api]\nkey = 'sesame-1'\n")
    for arguments in (("show", "coordinator"), ("show", "coordinator", "--json"), ("show", "--changed")):
        told = run(*arguments, "--config", str(file))
        assert "sesame" not in told
        assert "(hidden)" in told
    file.write_text(f"[api]\nkey = 'sesame{'x' * 600}'\n")
    assert "sesame" not in "".join(findings(str(file))[1])


def test_what_auto_and_nothing_come_to_is_said(tmp_path: Path) -> None:
    rows = shown("node", "--", "--listen", "0.0.0.0:7710", "--models-cache", str(tmp_path))
    assert rows["inference.threads"]["comes_to"].split()[0].isdecimal()
    assert "free" in rows["inference.memory_limit_bytes"]["comes_to"]
    assert rows["dht.announce_interval_s"]["comes_to"] == "40"
    assert rows["torrent.listen_host"]["comes_to"] == "0.0.0.0, every address of this machine"
    assert rows["node.coordinator"]["comes_to"] == "127.0.0.1:7700"
    assert rows["node.models_cache"]["comes_to"] is None


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_printed_defaults_are_a_file_of_all_keys_that_changes_nothing(tmp_path: Path, daemon: Daemon) -> None:
    file = tmp_path / "d.toml"
    file.write_text(run("show", daemon, "--defaults", environ={"SHARDNET_LOG__LEVEL": "debug"}))
    assert load_settings(DAEMONS[daemon], file=file, environ={}) == DAEMONS[daemon]()
    there = tomllib.loads(file.read_text())
    for path, key in keys_of(DAEMONS[daemon]).items():
        section, _, name = path.rpartition(".")
        table = there[section] if section else there
        assert name in table or f"# {name} =" in file.read_text(), path
        assert str(key.field.description).split()[0] in file.read_text()


def test_all_errors_of_a_file_are_said_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "many.toml"
    file.write_text(
        "colour = 1\nlisten = 'a:1'\n[inference]\nthreads = true\nuse_mmap = 'perhaps'\nthread = 1\n[dht]\nrecord_ttl_s = 700\n"
        "[torrent]\nlisten_port = 70000\n[placement]\nstages = 3\n[node]\nlisten = 'here'\nadvertise = '0.0.0.0:1'\n[log]\nlevel = 'loud'\n"
    )
    code, lines = findings(str(file), environ={"SHARDNET_NODE__SHARDS": "x"})
    assert code == 2
    assert lines == [
        "error: setting 'node.shards' in SHARDNET_NODE__SHARDS cannot be used: 'x' names no shard: write MODEL:ID, as in SmolLM2:0, or ID alone",
        "error: setting 'colour' in FILE:1 is not known",
        "error: setting 'listen' in FILE:2 is not known: did you mean node.listen or metrics.listen?",
        "error: setting 'inference.threads' in FILE:4 must be a whole number (got true)",
        "error: setting 'inference.use_mmap' in FILE:5 must be true or false (got 'perhaps')",
        "error: setting 'inference.thread' in FILE:6 is not known: did you mean inference.threads?",
        "error: setting 'dht' in FILE:8 record_ttl_s 700 is over max_record_ttl_s 600",
        "error: setting 'torrent.listen_port' in FILE:10 must be at most 65535 (got 70000)",
        "error: setting 'placement' in FILE:11 is not known here: it is a setting of another daemon",
        "error: setting 'node.listen' in FILE:14 cannot be used: address 'here' is not HOST:PORT, as in 192.168.1.10:7070 or [::1]:7070",
        "error: setting 'node.advertise' in FILE:15 cannot be used: node.advertise '0.0.0.0:1' cannot be dialled: "
        "name the address that other nodes are to use",
        "error: setting 'log.level' in FILE:17 must be one of 'debug', 'info', 'warning' or 'error' (got 'loud')",
    ]


@pytest.mark.parametrize("name", ["node", "coordinator"])
def test_the_files_that_we_give_have_no_errors_and_are_known_by_their_keys(name: Daemon) -> None:
    file = ROOT / "configs" / f"{name}.toml"
    code, lines = findings(str(file))
    assert (code, lines[-1]) == (0, f"✓ FILE: a {name} can start with it")
    assert daemon_of(tomllib.loads(file.read_text(encoding="utf-8"))) == name


def test_what_is_legal_and_cannot_work_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    file = tmp_path / "w.toml"
    file.write_text(
        f"[node]\nlisten = '192.0.2.7:80'\nadvertise = 'nowhere.invalid:1'\nmodels_cache = '{tmp_path}/f/x'\n[torrent]\nlisten_host = '192.0.2.8'\n"
        "keep_free_bytes = 4000000000000000000\n[inference]\nthreads = 1024\nmemory_limit_bytes = 4000000000000000000\n[dht]\nenabled = false\n"
        "bootstrap = ['127.0.0.1:7702']\n"
    )
    code, lines = findings(str(file), environ={"SHARDNET_NODE_LISTEN": "x"})
    assert code == 0
    for words in (
        "nothing reads the variable SHARDNET_NODE_LISTEN: did you mean SHARDNET_NODE__LISTEN?",
        "node.listen in FILE:2 names 192.0.2.7, which is no address of this machine",
        "node.advertise in FILE:3 names nowhere.invalid, which nothing here can resolve",
        f"node.models_cache in FILE:4 is {tmp_path}/f/x, and {tmp_path}/f is no folder",
        "torrent.listen_host in FILE:6 names 192.0.2.8",
        "torrent.keep_free_bytes in FILE:7",
        "inference.threads in FILE:9 is 1024",
        "inference.memory_limit_bytes in FILE:10",
        "dht.bootstrap in FILE:13 is not asked while dht.enabled is false",
        "dht.enabled in FILE:12 is false and node.coordinator is not set",
    ):
        assert any(line.startswith("warning: ") and words in line for line in lines), (words, lines)


def test_ports_and_keys_of_a_coordinator_that_do_not_fit_are_warnings(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text(
        "[listen]\nnodes = '0.0.0.0:7700'\napi = '0.0.0.0:7700'\n[sequences]\nn_ctx = 64\nprompt_chunk = 600\n[api]\nkey = ''\n"
    )
    _, lines = findings(str(file))
    told = " ".join(lines)
    assert "listen.api in FILE:3 is the same as listen.nodes, 0.0.0.0:7700" in told
    assert "listen.api in FILE:3 is open to everybody who reaches this machine" in told
    assert "api.allowed_hosts has only this machine's own names" in told
    assert "sequences.prompt_chunk in FILE:6 is above sequences.n_batch, 512" in told
    file.write_text("[api]\nkey = 'sesame'\nallowed_hosts = ['*']\n[listen]\napi = '0.0.0.0:8080'\n")
    file.chmod(0o644)
    _, lines = findings(str(file))
    assert [line for line in lines if "SHARDNET_API__KEY" in line and "chmod 600" in line]
    assert not any("open to everybody" in line or "allowed_hosts" in line for line in lines)
    file.chmod(0o600)
    assert findings(str(file)) == (0, ["✓ FILE: a coordinator can start with it"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[node]\nlisten = 0.0.0.0:7710\n", "FILE:2, column 13 is not TOML: something follows the value on its line; a text stands in quotes"),
        (b"[node]\nname='a'\nname='b'\n", "FILE:3, column 9 is not TOML: a key or a section stands here for the second time"),
        (b"[node]\n[log]\n[node]\n", "FILE:3, column 6 is not TOML: this section was there before"),
        (b"[node\n", "the ] behind the name of a section is missing"),
        (b"[node]\nlisten 'x'\n", "FILE:2, column 8 is not TOML: a = is missing behind the key"),
        (b"[node]\nname = 'x\n", "a text, or a list, does not end"),
        (b"[node]\nname = '\xff'\n", "FILE:2 is not UTF-8 (byte 0xff)"),
        ("[node]\n".encode("utf-16"), "FILE:1 is not UTF-8 (byte 0xff)"),
        (b"a = " + b"[" * 5000, "FILE is nested too deeply"),
        (b"[node]\nmax_tasks = " + b"9" * 5000, "FILE holds a number that is too long"),
        (b"#" * (1 << 20) + b"\n\n", "FILE is larger than 1 MiB"),
        (b'[node]\nmodels_cache = "a\\u0000b"\n', "FILE:2 must not have control characters"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_told_in_one_sentence_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    code, lines = findings(str(file))
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]


def test_what_windows_editors_write_is_read(tmp_path: Path) -> None:
    file = tmp_path / "bom.toml"
    file.write_bytes(b"\xef\xbb\xbf[node]\r\nname = 'a'\r\n\r\n[log]\r\nlevel = 'debug'\r\n")
    rows = shown("node", "--config", str(file), "--changed")
    assert {key: row["where"] for key, row in rows.items()} == {"node.name": f"{file}:2", "log.level": f"{file}:5"}


def test_the_findings_are_there_for_programs_too(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[node]\nmax_tasks = 0\n")
    result = CliRunner().invoke(app, ["config", "check", str(file), "--json"])
    assert isinstance(result.exception, SettingsError)
    (found,) = json.loads(result.stdout)["node"]
    assert (found["severity"], found["key"], found["where"]) == ("error", "node.max_tasks", f"{file}:2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "--defaults"], "of one daemon"),
        (["show", "node", "--config", "/nowhere.toml"], "cannot read settings file /nowhere.toml"),
        (["show", "node", "--", "--memory-limit", "much"], "is no size"),
        (["show", "node", "--", "--memory-mode", "much"], "in --memory-mode must be one of"),
        (["check", "/nowhere.toml"], "/nowhere.toml has 1 error"),
    ],
)
def test_wrong_use_is_one_sentence_and_code_2(arguments: list[str], words: str) -> None:
    with pytest.raises((UsageError, SettingsError), match=words):
        CliRunner().invoke(app, ["config", *arguments], catch_exceptions=False)


def test_a_flag_that_the_daemon_does_not_have_is_refused_as_the_daemon_does() -> None:
    result = CliRunner().invoke(app, ["config", "show", "node", "--", "--colour", "red"])
    assert result.exit_code == 2
    assert "No such option: --colour" in result.stderr
