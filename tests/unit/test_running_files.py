"""Dockerfile, compose.yaml, units and manifests name flags, variables, ports and folders of shardnet's own: they are there, and belong together."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from shardnet.cli import app
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.node.settings import NodeSettings
from shardnet.settings import Section

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
UNITS = sorted((ROOT / "configs/systemd").glob("*.service"))
MANIFESTS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs/kubernetes").glob("*"))}
FILES = [
    ROOT / "Dockerfile",
    ROOT / "compose.yaml",
    ROOT / "docs/running.md",
    *UNITS,
    *(ROOT / "configs/kubernetes").glob("*"),
]
NO_SETTINGS = {"SHARDNET_HOME", "SHARDNET_API", "SHARDNET_FLAGS"}
"""Variables of the commands, and one of the units' own."""
COMMANDS: Any = typer.main.get_command(app)


def known_variables(kind: type[Section], prefix: str = "SHARDNET_") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_variables(field.annotation, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper()


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(MANIFESTS[name]) if one is not None]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in MANIFESTS:
        for document in documents(name):
            if "template" in document["spec"]:
                yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command line of shardnet that a file holds, with where it stands."""
    yield (
        "health check of the image",
        re.findall(r'"([^"]+)"', DOCKERFILE.split("HEALTHCHECK", 1)[1].split("\n")[0])[1:],
    )
    for name, service in COMPOSE["services"].items():
        if "entrypoint" in service:
            for line in service["command"][0].splitlines():
                if line.strip().startswith("shardnet "):
                    yield name, shlex.split(line.split(">")[0])[1:]
        else:
            yield name, service["command"]
            yield f"health check of {name}", service["healthcheck"]["test"][2:]
    for name, pod in pods():
        for container in pod["containers"]:
            yield f"{name}: {container['name']}", container["args"]
            for probe in "startupProbe", "livenessProbe", "readinessProbe":
                if "exec" in container.get(probe, {}):
                    yield f"{probe} of {name}", container[probe]["exec"]["command"][1:]
    for unit in UNITS:
        line = re.search(r"^ExecStart=\S+/shardnet (.*) \$SHARDNET_FLAGS$", unit.read_text(encoding="utf-8"), re.M)
        assert line is not None, f"{unit.name} starts no shardnet"
        yield unit.name, line[1].split()


@pytest.mark.parametrize(
    ("where", "words"), list(command_lines()), ids=lambda given: given if isinstance(given, str) else ""
)
def test_every_command_line_is_one_of_shardnets(where: str, words: list[str]) -> None:
    command, words = COMMANDS, list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command is not COMMANDS, f"{where}: {words[0]!r} is no command"
    options = {option for parameter in command.params for option in parameter.opts}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options, f"{where}: {given - options} are no flags of {command.name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_variable_is_a_setting(file: Path) -> None:
    known = NO_SETTINGS | set(known_variables(NodeSettings)) | set(known_variables(CoordinatorSettings))
    assert set(re.findall(r"SHARDNET_[A-Z_]*[A-Z]", file.read_text(encoding="utf-8"))) <= known


def test_each_daemon_is_given_variables_that_it_knows() -> None:
    kinds: dict[str, type[Section]] = {"coordinator": CoordinatorSettings, "node": NodeSettings}
    given = {name: service.get("environment", {}) for name, service in COMPOSE["services"].items() if name != "prepare"}
    given |= {
        container["name"]: [one["name"] for one in container.get("env", []) if one["name"].startswith("SHARDNET_")]
        for _, pod in pods()
        for container in pod["containers"]
    }
    for name, variables in given.items():
        kind = kinds["coordinator" if name == "coordinator" else "node"]
        assert set(variables) <= set(known_variables(kind)), name


def test_whatever_is_mounted_is_a_folder_of_the_image_that_its_group_may_write_to() -> None:
    made = set(re.search(r"mkdir -p (/home\S+(?: \S+)*) \\", DOCKERFILE)[1].split())  # type: ignore[index]
    mounted = {mount.split(":")[1] for one in COMPOSE["services"].values() for mount in one["volumes"]}
    mounted |= {mount["mountPath"] for _, pod in pods() for one in pod["containers"] for mount in one["volumeMounts"]}
    parents = {str(parent) for path in made for parent in Path(path).parents}
    # Not in the image: what is only read, and the folder for temporary files, which is always there.
    assert mounted - {"/models", "/tmp"} <= made | parents
    assert set(re.findall(r'"(/[^"]+)"', DOCKERFILE.split("VOLUME", 1)[1].split("\n")[0])) <= made


def test_no_node_has_the_authoritys_key() -> None:
    for name, service in COMPOSE["services"].items():
        has_it = any(mount.startswith("owner:") for mount in service["volumes"])
        assert has_it == (name in ("coordinator", "prepare")), name
    nodes = next(pod for name, pod in pods() if name == "shardnet-node")
    assert not any("persistentVolumeClaim" in volume for volume in nodes["volumes"])


def test_the_api_is_published_to_this_machine_alone_and_has_a_key_in_a_cluster() -> None:
    published = [port for one in COMPOSE["services"].values() for port in one.get("ports", [])]
    assert published, "nobody could use it"
    assert all(port.startswith("127.0.0.1:") for port in published)
    coordinator = next(pod for name, pod in pods() if name == "shardnet-coordinator")["containers"][0]
    assert any(one["name"] == "SHARDNET_API__KEY" and "secretKeyRef" in one["valueFrom"] for one in coordinator["env"])


def test_ports_that_are_listened_at_are_those_that_are_named() -> None:
    listened = {int(word.rpartition(":")[2]) for _, words in command_lines() for word in words if "0.0.0.0:" in word}
    listened |= {int(CoordinatorSettings().dht.listen_port)}
    exposed = {int(port) for port in re.findall(r"\d+", re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.M)[1])}  # type: ignore[index]
    contained = {
        port["containerPort"] for _, pod in pods() for one in pod["containers"] for port in one.get("ports", [])
    }
    assert contained <= listened
    assert exposed <= listened
    for name in MANIFESTS:
        for document in documents(name):
            if document["kind"] == "Service":
                assert {port["port"] for port in document["spec"]["ports"]} <= contained


def test_what_runs_is_no_root_and_may_write_nowhere_else() -> None:
    user = re.search(r"^USER (\d+):0$", DOCKERFILE, re.M)
    assert user is not None
    for name, pod in pods():
        about = pod["securityContext"]
        assert (about["runAsNonRoot"], about["runAsUser"], about["runAsGroup"]) == (True, int(user[1]), 0), name
        assert about["fsGroupChangePolicy"] == "OnRootMismatch", "keys would be readable by others at the second start"
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    assert all(one["read_only"] and one["cap_drop"] == ["ALL"] for one in COMPOSE["services"].values())


def test_whoever_stops_a_daemon_waits_until_it_has_drained() -> None:
    longest_s = max(NodeSettings().node.drain_timeout_s, CoordinatorSettings().drain_timeout_s)
    given = [one["stop_grace_period"] for one in COMPOSE["services"].values() if "stop_grace_period" in one]
    given += [f"{pod['terminationGracePeriodSeconds']}s" for _, pod in pods()]
    given += [f"{re.search(r'^TimeoutStopSec=(.*)$', unit.read_text(), re.M)[1]}s" for unit in UNITS]  # type: ignore[index]
    assert len(given) == 8
    assert all(int(text.removesuffix("s")) > longest_s for text in given)


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """The units as they would be installed on this machine."""
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/shardnet/bin/shardnet", sys.executable)
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    return [str(tmp_path / unit.name) for unit in UNITS]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(units: list[str]) -> None:
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_units_stay_as_closed_as_they_are(units: list[str]) -> None:
    subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", *units],
        capture_output=True,
        timeout=60,
        check=True,
    )
