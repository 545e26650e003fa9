"""Every key of every daemon can be set by the environment, in every form that the documentation names; what cannot be used is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt

from shardnet.configuration.daemons import DAEMONS, Daemon, read_daemon
from shardnet.errors import SettingsError
from shardnet.settings import Key, keys_of, value_at, whole
from shardnet.settings.environment import OF_COMMANDS
from shardnet.settings.section import kinds_of, section_of

ROOT = Path(__file__).parents[2]
TEXTS: dict[str, Any] = {
    "node.name": "left-2",
    "node.coordinator": "10.0.0.1:7700",
    "node.listen": "[::1]:7710",
    "node.advertise": "gate.example:7710",
    "node.shards": ["SmolLM2:0", "3"],
    "inference.n_gpu_layers": 7,
    "inference.device_map": "CPU=4,CUDA0=10",
    "inference.device_memory_bytes": ["CUDA0=8000", "CUDA1=1"],
    "listen.nodes": "0.0.0.0:1",
    "listen.advertise": "gate.example:7700",
    "listen.enrol": "localhost:0",
    "listen.api": "[::]:80",
    "api.allowed_origins": ["https://a.example", "http://b.example:8080"],
    "dht.bootstrap": ["a.example:7702", "[::1]:1"],
    "dht.record_ttl_s": 200.5,
}
"""Legal values where the type does not say what is legal."""


def another(key: Key) -> Any:
    """Returns: a legal value that is not the default."""
    if key.path in TEXTS:
        return TEXTS[key.path]
    kinds, default = kinds_of(key.field.annotation), key.default
    if bool in kinds:
        return not default
    if Literal in kinds or get_origin(key.field.annotation) is Literal:
        return next(one for one in get_args(key.field.annotation) if one != default)
    if int in kinds or float in kinds:
        step = 1 if int in kinds else 0.5
        return next(one for one in ((default or 0) + step, (default or 0) - step, step) if is_within(key, one))
    return ["one", "two"] if tuple in kinds else "other"


def is_within(key: Key, number: float) -> bool:
    bounds = key.field.metadata
    return not any(
        (isinstance(one, Ge) and number < one.ge)  # type: ignore[operator]
        or (isinstance(one, Gt) and number <= one.gt)  # type: ignore[operator]
        or (isinstance(one, Le) and number > one.le)  # type: ignore[operator]
        or (isinstance(one, Lt) and number >= one.lt)  # type: ignore[operator]
        for one in bounds
    )


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else str(value)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def read(daemon: Daemon, environ: dict[str, str]) -> Any:
    return whole(read_daemon(daemon, environ=environ))


@pytest.mark.parametrize("daemon", DAEMONS)
def test_each_key_is_set_by_its_variable_and_by_its_section_as_json(daemon: Daemon) -> None:
    for path, key in keys_of(DAEMONS[daemon]).items():
        value = another(key)
        by_name = read(daemon, {key.variable: text_of(value)})
        assert plain(value_at(by_name, path)) == value != plain(key.default), path
        section, _, name = path.rpartition(".")
        if section:
            assert read(daemon, {f"SHARDNET_{section.upper()}": json.dumps({name: value})}) == by_name, path
        if isinstance(value, list):
            assert read(daemon, {key.variable: json.dumps(value)}) == by_name, path


@pytest.mark.parametrize("daemon", DAEMONS)
def test_an_empty_variable_means_an_empty_text_an_empty_list_or_not_set_and_is_no_number(daemon: Daemon) -> None:
    for path, key in keys_of(DAEMONS[daemon]).items():
        kinds = kinds_of(key.field.annotation)
        must_not = {"node.listen", "listen.nodes", "listen.api", "inference.device_map"}
        if (type(None) in kinds or str in kinds or tuple in kinds) and path not in must_not:
            assert value_at(read(daemon, {key.variable: ""}), path) in (None, "", ()), path
        elif kinds != (type(Path()),) and Path not in kinds:
            with pytest.raises(SettingsError, match=key.variable):
                read(daemon, {key.variable: ""})


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("text", ["nonsense!", "-7", "1e999", "nan", "[1", "{", "\udcff", "9" * 5000, "[" * 20_000])
def test_whatever_a_variable_holds_it_is_taken_or_named_in_one_sentence(daemon: Daemon, text: str) -> None:
    for key in keys_of(DAEMONS[daemon]).values():
        try:
            read(daemon, {key.variable: text})
        except SettingsError as error:
            assert key.variable in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 600  # noqa: PT017


@pytest.mark.parametrize("daemon", DAEMONS)
def test_no_variable_of_one_daemon_or_command_stops_another(daemon: Daemon) -> None:
    environ = dict.fromkeys(OF_COMMANDS, "x") | {"SHARDNET_API": "http://10.0.0.1:8080"}
    for other, kind in DAEMONS.items():
        if other != daemon:
            environ |= {
                key.variable: text_of(another(key))
                for path, key in keys_of(kind).items()
                if path not in keys_of(DAEMONS[daemon])
            }
            environ |= (
                {"SHARDNET_LISTEN": '{"api": "127.0.0.1:1"}'}
                if daemon == "node"
                else {"SHARDNET_NODE": '{"name": "a"}'}
            )
    reading = read_daemon(daemon, environ=environ | {"SHARDNET_MODELS": '{"require_proof": true, "cache": "x"}'})
    assert reading.faults == ()
    assert reading.unread == ()
    assert whole(reading).models.require_proof is True


def test_a_section_says_its_keys_and_leaves_the_others_as_the_file_has_them(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[api]\npage = false\nallowed_hosts = ['a']\n")
    environ = {"SHARDNET_API": '{"allowed_hosts": ["b"]}', "SHARDNET_API__KEY": "k"}
    api = whole(read_daemon("coordinator", file=file, environ=environ)).api
    assert (api.page, api.allowed_hosts, api.key) == (False, ("b",), "k")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SHARDNET_NODE__LISTN", "the variable SHARDNET_NODE__LISTN is not known: did you mean SHARDNET_NODE__LISTEN?"),
        ("SHARDNET_NOD__LISTEN", "did you mean SHARDNET_NODE__LISTEN?"),
        ("SHARDNET_node__listen", "did you mean SHARDNET_NODE__LISTEN?"),
        ("SHARDNET_NODE__LISTEN__PORT", "the variable SHARDNET_NODE__LISTEN__PORT is not known"),
        ("SHARDNET_ZEBRA__STRIPES", "the variable SHARDNET_ZEBRA__STRIPES is not known"),
    ],
)
def test_a_misspelt_setting_is_an_error_with_the_nearest_that_there_is(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        read("node", {name: "1"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "SHARDNET_NODE_LISTEN",
            "nothing reads the variable SHARDNET_NODE_LISTEN: did you mean SHARDNET_NODE__LISTEN?",
        ),
        ("SHARDNET_HOMES", "did you mean SHARDNET_HOME?"),
        ("shardnet_api__key", "did you mean SHARDNET_API__KEY?"),
        ("SHARDNET_ZEBRA", "nothing reads the variable SHARDNET_ZEBRA"),
    ],
)
def test_a_variable_that_may_be_somebody_elses_is_a_warning(name: str, words: str) -> None:
    (told,) = read_daemon("node", environ={name: "1"}).unread
    assert told.endswith(words)


def test_what_kubernetes_says_of_services_with_our_name_is_no_mistake() -> None:
    service = "SHARDNET_COORDINATOR_PORT_7700_TCP"
    names = [service, *(f"{service}_{part}" for part in ("PROTO", "PORT", "ADDR"))]
    names += [
        "SHARDNET_NODE_SERVICE_HOST",
        "SHARDNET_NODE_SERVICE_PORT",
        "SHARDNET_API_SERVICE_PORT_HTTP",
        "SHARDNET_PORT",
    ]
    reading = read_daemon("coordinator", environ=dict.fromkeys(names, "tcp://10.0.0.1:7700"))
    assert (reading.faults, reading.unread) == ((), ())


def test_every_variable_that_the_package_reads_is_known() -> None:
    known = set(OF_COMMANDS) | {key.variable for kind in DAEMONS.values() for key in keys_of(kind).values()}
    sections = {
        f"SHARDNET_{name.upper()}"
        for kind in DAEMONS.values()
        for name, field in kind.model_fields.items()
        if section_of(field.annotation)
    }
    read_there = {
        name
        for file in (ROOT / "shardnet").rglob("*.py")
        for name in re.findall(r"[\"'](SHARDNET_[A-Z_]*[A-Z])[\"']", file.read_text(encoding="utf-8"))
    }
    assert read_there <= known | sections


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_number_has_bounds_and_neither_infinity_nor_true_is_one(daemon: Daemon) -> None:
    for path, key in keys_of(DAEMONS[daemon]).items():
        kinds = kinds_of(key.field.annotation)
        if bool in kinds or not ({int, float} & set(kinds)):
            continue
        for text in ("1" + "0" * 30, "inf", "-inf", "nan", "true"):
            with pytest.raises(SettingsError, match=key.variable):
                read(daemon, {key.variable: text})
        section, _, name = path.rpartition(".")
        environ = {f"SHARDNET_{section.upper()}": json.dumps({name: True})}
        if section:
            with pytest.raises(SettingsError, match="number"):
                read(daemon, environ)
