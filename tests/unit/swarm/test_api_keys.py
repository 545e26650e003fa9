"""Keys of the HTTP API: told once, kept as hashes, known by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shardnet.cli import app
from shardnet.errors import SettingsError, UsageError
from shardnet.swarm.api_keys import KeyRing, list_keys, make_key, remove_key
from shardnet.swarm.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("SHARDNET_HOME", str(tmp_path / "home"))
    return Home()


def test_a_key_is_kept_as_a_hash_that_only_its_owner_may_read(home: Home) -> None:
    key = make_key(home, "alice")
    assert key not in home.api_keys.read_text()
    assert home.api_keys.stat().st_mode & 0o777 == 0o600
    ring = KeyRing()
    ring.set_named(list_keys(home))
    assert (ring.name_of(key), ring.name_of(key + "x"), ring.name_of("")) == ("alice", None, None)


def test_each_name_is_given_once_and_each_key_is_another(home: Home) -> None:
    assert make_key(home, "a") != make_key(home, "b")
    with pytest.raises(UsageError, match="a key named a already"):
        make_key(home, "a")
    for wrong in ("", "a b", "../x", "é"):
        with pytest.raises(UsageError, match="no name for a key"):
            make_key(home, wrong)


def test_without_any_key_none_is_asked_for_and_after_the_last_one_nobody_comes_in(home: Home) -> None:
    ring = KeyRing()
    ring.set_named(list_keys(home))
    assert not ring.is_asked_for
    make_key(home, "a")
    assert remove_key(home, "a") == 0
    ring.set_named(list_keys(home))
    assert ring.is_asked_for
    with pytest.raises(UsageError, match="no key named 'a'; there are: none"):
        remove_key(home, "a")


def test_the_settings_key_is_one_more() -> None:
    ring = KeyRing("s3cret")
    assert (ring.is_asked_for, ring.name_of("s3cret"), ring.name_of("other")) == (True, "api.key", None)


def test_a_damaged_file_is_said_and_lets_nobody_in(home: Home) -> None:
    make_key(home, "a")
    home.api_keys.write_text("{")
    with pytest.raises(SettingsError, match="is damaged"):
        list_keys(home)


def test_the_commands_say_what_they_did(home: Home) -> None:
    run = CliRunner().invoke
    assert "No key was made" in run(app, ["key", "list"]).stdout
    made = json.loads(run(app, ["key", "add", "laptop", "--json"]).stdout)
    assert KeyRing().name_of(made["key"]) is None
    assert made["name"] in run(app, ["key", "list"]).stdout
    assert json.loads(run(app, ["key", "list", "--json"]).stdout)["keys"][0]["name"] == "laptop"
    removed = run(app, ["key", "remove", "laptop"])
    assert "Removed laptop" in removed.stdout
    assert "No key is left" in removed.stderr
