"""The environment's part: which variables are settings, what their texts mean, and which of them nobody reads.

`SHARDNET_<SECTION>__<KEY>`, as pydantic-settings and others name nested fields, in capitals. Coordinator and nodes may share an environment, so
what is a setting of another daemon is left alone. Source of what Kubernetes sets: its documentation, "Accessing the Service".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from shardnet.errors import SettingsError
from shardnet.faults import no_json
from shardnet.settings.section import BETWEEN, PREFIX, Section, keys_of, kinds_of, section_of, sections_of, variable_of

OF_COMMANDS = {
    "SHARDNET_HOME": "the folder of swarm keys and identities",
    "SHARDNET_API": "where commands find the coordinator's API",
    "SHARDNET_HTTP_TOKEN": "what a web server that gives models wants to hear",
    "SHARDNET_EXIT_WITH_PARENT": "the process whose end ends this one",
}
"""Variables that are no settings."""

_OF_KUBERNETES = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
"""What a pod is told of each Service: one that is named shardnet-node gives SHARDNET_NODE_PORT."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting that the environment says."""

    path: str
    value: Any
    name: str


def variables(
    kind: type[Section], environ: Mapping[str, str], others: Iterable[type[Section]] = ()
) -> Iterator[Variable | SettingsError]:
    """Yields: each key that the environment sets, sections before single keys; an error for each variable that cannot be used.

    Args:
        others: the settings of other daemons, whose variables are left alone.
    """
    known = {variable_of(path): path for path in (*sections_of(kind), *keys_of(kind))}
    foreign = {path for other in others for path in (*sections_of(other), *keys_of(other))} - set(known.values())
    of_others = {variable_of(path) for path in foreign}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in of_others:
            continue
        text = environ[name]
        if name in OF_COMMANDS and not (name in known and text.lstrip().startswith("{")):
            continue
        if name in known:
            try:
                value = _from_text(text, _annotation_at(kind, known[name]), name)
            except SettingsError as error:
                yield error
                continue
            yield from (one for one in _leaves(kind, known[name], value, name) if one.path not in foreign)
        elif BETWEEN in name:
            yield SettingsError(
                f"the variable {name[:200]} is not known{_nearest_variable(name, (*known, *of_others))}"
            )


def unread(environ: Mapping[str, str], kinds: Iterable[type[Section]]) -> list[str]:
    """Returns: a sentence for each variable that looks like ours and that nothing reads; those with `__` are errors of `variables`."""
    known = {variable_of(path) for kind in kinds for path in (*sections_of(kind), *keys_of(kind))} | set(OF_COMMANDS)
    return [
        f"nothing reads the variable {name}{_nearest_variable(name, known)}"
        for name in sorted(environ)
        if name.upper().startswith(PREFIX)
        and name not in known
        and not (name.startswith(PREFIX) and BETWEEN in name)
        and not _OF_KUBERNETES.fullmatch(name)
    ]


def nearest(name: str, among: Mapping[str, str]) -> str:
    """Returns: what was meant, to be put behind a sentence; nothing where nothing is like it.

    Args:
        among: what could have been written -> how it is shown. Capitals, and one _ for two or for a point, make no difference.
    """
    plain = {_plain(one): shown for one, shown in among.items()}
    found = get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return f": did you mean {plain[found[0]]}?" if found else ""


def _nearest_variable(name: str, among: Iterable[str]) -> str:
    return nearest(name[len(PREFIX) :], {one.removeprefix(PREFIX): one for one in among})


def _plain(name: str) -> str:
    return re.sub("[._-]+", "_", name).lower()


def _annotation_at(kind: type[Section], path: str) -> Any:
    """Returns: the type of what stands at a place that there is."""
    found: Any = kind
    for key in path.split("."):
        found = found.model_fields[key].annotation
    return found


def _leaves(kind: type[Section], path: str, value: Any, name: str) -> Iterator[Variable]:
    """Yields: the single keys of a section that stands in one variable, so that what it does not name stays as it was."""
    if not (isinstance(value, dict) and section_of(_annotation_at(kind, path))):
        yield Variable(path, value, name)
        return
    fields = _annotation_at(kind, path).model_fields
    for key, inner in value.items():
        if key in fields:
            yield from _leaves(kind, f"{path}.{key}", inner, name)
        else:
            yield Variable(f"{path}.{key}", inner, name)


def _from_text(text: str, annotation: Any, name: str) -> Any:
    """Returns: a variable's value as TOML would hold it. Raises: SettingsError if it must be JSON and is none."""
    is_section, is_list = section_of(annotation) is not None, bool({tuple, list} & set(kinds_of(annotation)))
    if not (is_section or is_list):
        return text
    if is_list and not text.lstrip().startswith("["):
        return [entry.strip() for entry in text.split(",") if entry.strip()]
    try:
        return json.loads(text)
    except RecursionError as error:
        raise SettingsError(f"the variable {name} is nested too deeply") from error
    except ValueError as error:
        example = '["a", "b"] or a,b' if is_list else '{"key": "value"}'
        raise SettingsError(f"the variable {name} is not JSON ({no_json(str(error))}); write {example}") from error
