"""What every section of settings inherits, and the list of the keys that a tree of sections has."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from shardnet.errors import ShardnetError

PREFIX = "SHARDNET_"
BETWEEN = "__"
"""Between the section and the key of a variable's name, as pydantic-settings and others have it."""
MOST_BYTES = 1 << 62
"""For settings in bytes: more than any machine has, and within 64 bits wherever it goes."""


class Section(BaseModel):
    """One frozen group of settings. Units live in the names; every field has a description; a secret has `repr=False`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take `true` for 1, and a path with a NUL, with which nothing can be opened. An empty text sets nothing where that may be."""
        kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation)
        if type(None) in kinds and isinstance(value, str) and not value.strip():
            return None
        if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
            raise ValueError(f"must be a {'whole ' if float not in kinds else ''}number")
        if any(_has_control_characters(one) for one in (value if isinstance(value, list | tuple) else (value,))):
            raise ValueError("must not have control characters")
        return value


@contextmanager
def as_fault() -> Iterator[None]:
    """For a section's validators: an error of ours that is raised within is one of the value. Raises: ValueError."""
    try:
        yield
    except ShardnetError as error:
        raise ValueError(f"cannot be used: {error}") from error


def _has_control_characters(value: object) -> bool:
    return isinstance(value, str | Path) and any(ord(char) < 32 or ord(char) == 127 for char in str(value))


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its place, `section.key`, and its field."""

    path: str
    field: FieldInfo

    @property
    def default(self) -> Any:
        """Returns: the value that it has if nobody says anything."""
        return self.field.get_default(call_default_factory=False)

    @property
    def is_secret(self) -> bool:
        """True if nothing may show its value."""
        return not self.field.repr

    @property
    def variable(self) -> str:
        """Returns: the name of the environment variable that sets it."""
        return variable_of(self.path)


def variable_of(path: str) -> str:
    """Returns: the name of the environment variable that sets what stands at `section.key`, or a whole section."""
    return PREFIX + path.replace(".", BETWEEN).upper()


def keys_of(kind: type[Section], prefix: str = "") -> dict[str, Key]:
    """Returns: every key of a tree of sections by its place, in the order in which they are defined; sections themselves are none."""
    found: dict[str, Key] = {}
    for name, field in kind.model_fields.items():
        inner = section_of(field.annotation)
        found |= keys_of(inner, f"{prefix}{name}.") if inner else {prefix + name: Key(prefix + name, field)}
    return found


def value_at(settings: Section, path: str) -> Any:
    """Returns: what stands at `section.key`."""
    found: Any = settings
    for name in path.split("."):
        found = getattr(found, name)
    return found


def sections_of(kind: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Returns: every section of a tree by its place."""
    found: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        if inner := section_of(field.annotation):
            found |= {prefix + name: field} | sections_of(inner, f"{prefix}{name}.")
    return found


def section_of(annotation: Any) -> type[Section] | None:
    """Returns: the section that a field holds; None for a value."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Returns: what a field may hold: `(int, NoneType)` of `int | None`; `(tuple,)` of `tuple[str, ...]`."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for one in get_args(annotation) for kind in kinds_of(one))
    return (get_origin(annotation) or annotation,)
