"""What is wrong with a value that somebody wrote, in our own words: for settings, requests, manifests and keys alike.

Knows what pydantic found. Refuses to know where the value came from.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

_MEMBER = re.compile(r"str|int|float|bool|constrained-\w+|(list|dict|tuple|literal)\[.*\]|function-\w+(\(.*\)|\[.*\])")
"""What pydantic adds to a value's place for each kind that it may have."""

_KINDS = (
    (("int", "int_from_float"), "a whole number"),
    (("float", "finite_number"), "a number"),
    (("bool",), "true or false"),
    (("string", "bytes", "url"), "a text"),
    (("list", "tuple", "set", "frozen_set", "iterable"), "a list"),
    (("dict", "model", "mapping", "dataclass", "model_attributes", "dataclass_exact"), "an object with keys"),
    (("none_required",), "null"),
)
"""pydantic's names of errors without their ends -> what was wanted."""
_ENDS = ("_type", "_parsing", "_parsing_size", "_attributes_type")
_LIMITS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_pattern_mismatch": "has characters that are not taken here",
    "string_unicode": "is not valid UTF-8",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "missing": "is missing",
    "extra_forbidden": "is not known",
}
_PLACE = re.compile(r"line (\d+),? column (\d+)")
_NO_JSON = (
    (r"EOF", "it ends too early"),
    (r"Unterminated", "a text in it does not end"),
    (r"trailing comma", "a comma stands in front of a closing bracket"),
    (r"trailing characters|Extra data", "more follows behind its end"),
    (r"recursion", "it is nested too deeply"),
    (r"surrogate|unicode|hex|uXXXX", "a text in it has half a surrogate pair, or bytes that are not UTF-8"),
    (r"escape", "a text in it has an escape that JSON does not know"),
    (r"ontrol character", "a line break or another control character stands in a text"),
    (r"number", "a number in it is not written as JSON writes it"),
    (r"key must be|property name", "a name in double quotes is missing"),
    (r"expected `:`|Expecting ':'", "a colon is missing"),
    (r"expected `,`|Expecting ','", "a comma or a closing bracket is missing"),
    (r"", "a value is missing, or is none that JSON has"),
)
"""What pydantic's parser or Python's own says -> our words."""


def no_json(told: str) -> str:
    """Returns: why a text is not JSON, and where. Args: told: what pydantic's parser or Python's own says of it."""
    words = next(words for pattern, words in _NO_JSON if re.search(pattern, told))
    place = _PLACE.search(told)
    return f"{words} (line {place[1]}, column {place[2]})" if place else words


def in_words(fault: Any) -> str:
    """Returns: what is wrong with the value of one of `ValidationError.errors()`, to be put behind its name."""
    if (kind := _kind(fault)) is not None:
        return f"must be {kind}"
    name, facts = str(fault["type"]), fault.get("ctx", {})
    if name == "json_invalid":
        return f"is not JSON: {no_json(str(facts.get('error', '')))}"
    if facts.get("min_length") == 1:
        return "must not be empty"
    if name in _LIMITS:
        return _LIMITS[name].format_map({key: _plain(value) for key, value in facts.items()})
    if name in ("value_error", "assertion_error"):
        return str(facts.get("error", "is not usable"))
    return "is not usable"


def first_fault(error: ValidationError) -> tuple[str, str]:
    """Returns: the place of the fault (`section.key`; empty for the whole), and what is wrong there.

    Of a value that may be of several kinds the kind that fitted best is the one that was meant.
    """
    by_place = _by_place(error)
    place = max(by_place, key=lambda one: (any(_kind(fault) is None for fault in by_place[one]), len(one)))
    return ".".join(place), _told(by_place[place])


def all_faults(error: ValidationError) -> list[tuple[str, str, Any]]:
    """Returns: of each fault the place, what is wrong there, and what stood there. A value that may be of several kinds is one fault."""
    return [(".".join(place), _told(found), found[0]["input"]) for place, found in _by_place(error).items()]


def _by_place(error: ValidationError) -> dict[tuple[str, ...], list[Any]]:
    found: dict[tuple[str, ...], list[Any]] = {}
    for fault in error.errors(include_url=False):
        place = tuple(str(part) for part in fault["loc"] if not _MEMBER.fullmatch(str(part)))
        found.setdefault(place, []).append(fault)
    return found


def _told(found: list[Any]) -> str:
    """Returns: what is wrong with one value, by all that pydantic says of it."""
    kinds = [_kind(fault) or _among(fault) for fault in found]
    fitting = next((fault for fault in found if _kind(fault) is None and (len(found) == 1 or not _among(fault))), None)
    if fitting is not None:
        return in_words(fitting)
    return "must be " + " or ".join(dict.fromkeys(str(kind) for kind in kinds))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def sentence(error: ValidationError) -> str:
    """Returns: `first_fault` as one text, of none of the input, which may be binary and long."""
    where, what = first_fault(error)
    return f"{where} {what}" if where else f"it {what}"


def _among(fault: Any) -> str | None:
    """Returns: the values that were wanted, where there are only some; else None."""
    return str(fault["ctx"]["expected"]) if fault["type"] in ("literal_error", "enum") else None


def _kind(fault: Any) -> str | None:
    """Returns: what kind of value was wanted, where it was of another kind; else None."""
    name = str(fault["type"])
    for end in _ENDS:
        name = name.removesuffix(end)
    return next((words for names, words in _KINDS if name in names), None)
