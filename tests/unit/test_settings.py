"""Settings: defaults < TOML < environment < flags, and an error that names the culprit."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from shardnet.errors import SettingsError
from shardnet.settings import Section, default_home, load_settings


class Net(Section):
    listen: str = Field(default="127.0.0.1:0", description="address")
    timeout_s: float = Field(default=5.0, gt=0, description="seconds")


class Api(Section):
    key: str = Field(default="", max_length=8, repr=False, description="secret")
    hosts: tuple[str, ...] = Field(default=(), strict=False, description="names")


class Daemon(Section):
    api: Api = Field(default=Api(), description="clients")
    net: Net = Field(default=Net(), description="network")
    name: str = Field(default="", description="name")


def load(
    tmp_path: Path, toml: str = "", flags: dict[str, object] | None = None, environ: dict[str, str] | None = None
) -> Daemon:
    file = tmp_path / "x.toml"
    file.write_text(toml)
    return load_settings(Daemon, file=file, flags=flags, environ=environ or {})


def test_defaults_need_no_file() -> None:
    assert load_settings(Daemon, file=None, environ={}) == Daemon()


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    toml, environ = "[net]\ntimeout_s = 1\nlisten = 'a:1'", {"SHARDNET_NET__TIMEOUT_S": "2"}
    assert load(tmp_path, toml).net.timeout_s == 1
    assert load(tmp_path, toml, environ=environ).net.timeout_s == 2
    both = load(tmp_path, toml, flags={"net.timeout_s": 3.0, "name": None}, environ=environ)
    assert both.net.timeout_s == 3
    assert both.net.listen == "a:1"


def test_other_programs_variables_are_left_alone(tmp_path: Path) -> None:
    assert load(tmp_path, environ={"SHARDNET_API": "http://x", "SHARDNET_HOME": "/x", "PATH": "/bin"}) == Daemon()


@pytest.mark.parametrize("text", ["a,b", " a , b ,", '["a", "b"]'])
def test_a_list_in_the_environment_is_written_as_json_or_with_commas(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, environ={"SHARDNET_API__HOSTS": text}).api.hosts == ("a", "b")


def test_a_section_in_the_environment_is_written_as_json(tmp_path: Path) -> None:
    given = {"SHARDNET_NET": '{"timeout_s": 2}', "SHARDNET_API": '{"hosts": ["a"]}', "SHARDNET_NET__LISTEN": "b:1"}
    found = load(tmp_path, environ=given)
    assert (found.net.timeout_s, found.net.listen, found.api.hosts) == (2, "b:1", ("a",))


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SHARDNET_API__HOSTS": "[a"}, 'SHARDNET_API__HOSTS is not JSON .*write \\["a", "b"\\] or a,b'),
        ({"SHARDNET_NET": "fast"}, "SHARDNET_NET is not JSON"),
        (
            {"SHARDNET_NET__TIMEOUT_S": "soon"},
            r"'net.timeout_s' in SHARDNET_NET__TIMEOUT_S must be a number \(got 'soon'\)",
        ),
        ({"SHARDNET_NET__TIMEOUT_S": "0"}, r"must be above 0 \(got '0'\)"),
        ({"SHARDNET_NET__WAIT": "1"}, "the variable SHARDNET_NET__WAIT is not known$"),
        ({"SHARDNET_API__KEY": "very-secret"}, "'api.key' in SHARDNET_API__KEY must have at most 8 characters$"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(tmp_path: Path, environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load(tmp_path, environ=environ)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[net]\ntimeout_s = -1", "net.timeout_s"),
        ("[net]\ntimeout = 1", "net.timeout"),
        ("nonsense = = 1", "is not TOML"),
        ("surprise = 1", "surprise"),
    ],
)
def test_a_bad_value_is_named_with_its_file(tmp_path: Path, toml: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, toml)
    assert words in str(caught.value)
    assert "x.toml" in str(caught.value)


def test_a_missing_file_is_an_error_not_a_default(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings(Daemon, file=tmp_path / "none.toml", environ={})


def test_the_home_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHARDNET_HOME", str(tmp_path))
    assert default_home() == tmp_path


def test_a_user_without_a_home_folder_is_told_to_set_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SHARDNET_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321)  # in no list of users
    with pytest.raises(SettingsError, match=r"user 54321 has no home folder.*set SHARDNET_HOME"):
        default_home()
    monkeypatch.setenv("SHARDNET_HOME", str(tmp_path))
    assert default_home() == tmp_path


def test_a_tilde_in_the_home_folder_that_nobody_can_follow_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDNET_HOME", "~nobody-of-that-name/home")
    with pytest.raises(SettingsError, match="set SHARDNET_HOME"):
        default_home()
