"""JSON schemas (draft 2020-12) as the engine enforces them: a client's schema is read keyword by keyword, and written anew with what is
enforced alone.

A keyword is enforced, an annotation (`ANNOTATIONS`, which the standard or OpenAPI defines as one), or refused by name and place. Every
`$ref` becomes one to `$defs`, so that nothing depends on where a part stood. What can be said in the words that the engine knows is put into
them: a `oneOf` whose options exclude one another is an `anyOf`, `propertyNames` with a list of names are properties.

Pure: no native code runs here. What only the engine can judge (patterns that overlap, parts that contradict each other) it says when the
grammar is checked, also before any prompt is computed.

Sources: JSON Schema Core and Validation, draft 2020-12; llguidance's docs/json_schema.md for what is enforced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardnet.coordinator.structure.dates import DATES
from shardnet.coordinator.structure.disjoint import all_disjoint
from shardnet.coordinator.structure.finite import without_end
from shardnet.coordinator.structure.patterns import read_pattern
from shardnet.coordinator.structure.pointers import escaped, find, pointer_of
from shardnet.coordinator.structure.values import ALL_TYPES, Schema, unspeakable, values_of
from shardnet.errors import UsageError

MAX_DEPTH = 64
"""Schemas within schemas: native parsers work by recursion."""
MAX_PARTS = 5000
"""Schemas in a schema."""
MAX_COUNT = 4096
"""Largest minItems and the like."""
MAX_LENGTH = 65_536
"""Largest minLength and maxLength."""
MAX_BOUND = 1 << 53
"""Bounds beyond it are not exact in a double, which is what the engine computes with."""
MAX_INTEGER = 10**15 - 1
"""Of an integer without bounds: models that write digits without end would never finish."""
FIXES_VALUE = frozenset(["const", "enum", "$ref", "allOf", "anyOf", "oneOf", "multipleOf"])
MAX_VALUES = 4096
"""Values of an enum."""
LONGEST_POINTER = 300
"""Characters of a place in an error; its middle is left out beyond."""

# fmt: off
ANNOTATIONS = frozenset([
    "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default", "example", "examples",
    "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml",
])
# fmt: on
"""They ask for nothing and are left out. `$defs` and `$anchor` count where a `$ref` names them."""
FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
IN_PLACE = frozenset(["$ref", "allOf", "anyOf", "oneOf"])
"""Keywords whose schemas see the same value, so that `unevaluated...` would have to look into them."""
HINTS = {
    "nullable": 'write {"anyOf": [..., {"type": "null"}]}',
    "dependencies": "write anyOf with one option for each case",
    "if": "write anyOf with one option for each case",
    "not": "say what is wanted instead",
}


def read_schema(schema: Any, where: str) -> Schema:
    """Returns: the same schema in the words that are enforced.

    Args: where: what to call it in errors, as `response_format`.
    Raises: UsageError naming the keyword that cannot be honoured, and where it stands.
    """
    return _Reader(schema, where).read()


class _Reader:
    def __init__(self, root: Any, where: str) -> None:
        self._root, self._where = root, where
        self._names: dict[str, str] = {}  # pointer -> name in the new $defs
        self._pending: list[str] = []
        self._choices: list[Schema] = []  # schemas with a oneOf
        self._parts = 0

    def read(self) -> Schema:
        made = self._schema(self._root, "", 0)
        defs: dict[str, Schema | bool] = {}
        while self._pending:
            pointer = self._pending.pop()
            defs[self._names[pointer]] = self._schema(self._find(pointer), pointer, 0)
        for choice in self._choices:
            _make_any_of(choice, defs)
        if made is True:
            return {}
        if made is False:
            raise self._error("", "no document fits it")
        if without_end(made, defs):
            raise self._error(
                "", "only endless documents fit it: some $ref leads back to itself by required parts alone"
            )
        return {**made, "$defs": defs} if defs else made

    def _error(self, pointer: str, what: str) -> UsageError:
        if len(pointer) > LONGEST_POINTER:
            pointer = f"{pointer[: LONGEST_POINTER // 2]}[...]{pointer[-LONGEST_POINTER // 2 :]}"
        return UsageError(f"{self._where}: {what}{f' (at {pointer})' if pointer else ''}", param=self._where)

    def _find(self, pointer: str) -> Any:
        try:
            return find(self._root, pointer)
        except LookupError:
            raise self._error(pointer, "a $ref names this place, and nothing is there") from None

    def _schema(self, given: Any, at: str, depth: int) -> Schema | bool:
        self._parts += 1
        if isinstance(given, bool):
            return given
        if not isinstance(given, dict):
            raise self._error(at, "a schema is an object, true or false")
        if depth > MAX_DEPTH or self._parts > MAX_PARTS:
            raise self._error(
                at, f"the schema is too large: {MAX_DEPTH} within one another and {MAX_PARTS} in all are taken"
            )
        made: Schema = {}
        for keyword, value in given.items():
            if keyword in ANNOTATIONS or keyword.startswith("x-"):
                if keyword == "$id" and at:
                    raise self._error(f"{at}/$id", "a schema within a schema cannot have an $id here")
                continue
            reader = _READERS.get(keyword)
            if reader is None:
                hint = HINTS.get(keyword, "leave it out, or say it in other words")
                raise self._error(
                    f"{at}/{escaped(keyword)}", f"the keyword {keyword[:40]!r} cannot be enforced; {hint}"
                )
            reader(self, made, value, f"{at}/{escaped(keyword)}", depth)
        self._read_together(made, given, at, depth)
        return made

    # -- keywords that stand alone -------------------------------------------------------------------------------------------

    def _type(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        names = [value] if isinstance(value, str) else value
        are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not are_texts or not names or not ALL_TYPES.issuperset(names):
            raise self._error(at, f"type is one of {', '.join(sorted(ALL_TYPES))}, or a list of them")
        made["type"] = value

    def _value(self, value: Any, at: str) -> Any:
        bad = unspeakable(value)
        if bad is not None:
            raise self._error(at, f"{bad} cannot be written in an answer")
        return value

    def _const(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        made["const"] = self._value(value, at)

    def _enum(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        if not isinstance(value, list) or not 0 < len(value) <= MAX_VALUES:
            raise self._error(at, f"enum is a list of 1 to {MAX_VALUES} values")
        made["enum"] = self._value(value, at)

    def _count(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        keyword = at.rpartition("/")[2]
        most = MAX_LENGTH if keyword.endswith("Length") else MAX_COUNT
        is_whole = isinstance(value, float) and value.is_integer()
        is_whole |= isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not 0 <= value <= most:
            raise self._error(at, f"{keyword} is a whole number from 0 to {most} here")
        made[keyword] = int(value)

    def _bound(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        keyword = at.rpartition("/")[2]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_BOUND:
            raise self._error(at, f"{keyword} is a number from -2^53 to 2^53 here")
        if keyword == "multipleOf" and value <= 0:
            raise self._error(at, "multipleOf is above 0")
        made[keyword] = value

    def _pattern(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        if not isinstance(value, str):
            raise self._error(at, "pattern is a regular expression in a text")
        made["pattern"] = read_pattern(value, f"{self._where} at {at}", self._where)

    def _format(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        if not isinstance(value, str) or value not in FORMATS:
            raise self._error(
                at, f"the format {str(value)[:40]!r} cannot be enforced; these are: {', '.join(sorted(FORMATS))}"
            )
        made["format"] = value

    def _required(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._error(at, "required is a list of names")
        made["required"] = self._value(value, at)

    def _unique_items(self, _made: Schema, value: Any, at: str, _depth: int) -> None:
        if value is not False:
            raise self._error(at, "uniqueItems cannot be enforced; leave it out")

    # -- keywords that hold schemas ------------------------------------------------------------------------------------------

    def _ref(self, made: Schema, value: Any, at: str, _depth: int) -> None:
        pointer = pointer_of(self._root, value) if isinstance(value, str) else None
        if pointer is None:
            raise self._error(
                at, f"a $ref leads to a place in the same schema, as '#/$defs/NAME'; {str(value)[:60]!r} does not"
            )
        if pointer not in self._names:
            self._names[pointer] = f"{len(self._names)}"
            self._pending.append(pointer)
        made["$ref"] = f"#/$defs/{self._names[pointer]}"

    def _one(self, made: Schema, value: Any, at: str, depth: int) -> None:
        made[at.rpartition("/")[2]] = self._schema(value, at, depth + 1)

    def _several(self, made: Schema, value: Any, at: str, depth: int) -> None:
        keyword = at.rpartition("/")[2]
        if not isinstance(value, list) or not value:
            raise self._error(at, f"{keyword} is a list of schemas, not empty")
        made[keyword] = [self._schema(one, f"{at}/{index}", depth + 1) for index, one in enumerate(value)]

    def _one_of(self, made: Schema, value: Any, at: str, depth: int) -> None:
        self._several(made, value, at, depth)
        self._choices.append(made)

    def _items(self, made: Schema, value: Any, at: str, depth: int) -> None:
        if isinstance(value, list):  # before draft 2020-12; `additionalItems` is then the rest
            made["prefixItems"] = [self._schema(one, f"{at}/{index}", depth + 1) for index, one in enumerate(value)]
        else:
            self._one(made, value, at, depth)

    def _named(self, made: Schema, value: Any, at: str, depth: int) -> None:
        keyword = at.rpartition("/")[2]
        if not isinstance(value, dict):
            raise self._error(at, f"{keyword} is an object of schemas")
        self._value(list(value), at)
        named = {name: self._schema(one, f"{at}/{escaped(name)}", depth + 1) for name, one in value.items()}
        if keyword == "patternProperties":
            place = f"{self._where} at {at}"
            named = {read_pattern(name, place, self._where): one for name, one in named.items()}
        made[keyword] = named

    def _later(self, _made: Schema, _value: Any, _at: str, _depth: int) -> None:
        """Read together with its neighbours."""

    # -- keywords that depend on their neighbours ----------------------------------------------------------------------------

    def _read_together(self, made: Schema, given: Schema, at: str, depth: int) -> None:
        if "additionalItems" in given and isinstance(given.get("items"), list):
            made["items"] = self._schema(given["additionalItems"], f"{at}/additionalItems", depth + 1)
        for keyword, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if keyword not in given or given[keyword] is True:
                continue
            if IN_PLACE & given.keys():
                raise self._error(
                    f"{at}/{keyword}", f"{keyword} cannot be enforced beside {', '.join(sorted(IN_PLACE))}"
                )
            made.setdefault(plain, self._schema(given[keyword], f"{at}/{keyword}", depth + 1))
        if (exact := DATES.get(made.get("format", ""))) is not None:
            del made["format"]
            if "pattern" in made:
                made["allOf"] = [*made.get("allOf", ()), {"pattern": exact}]
            else:
                made["pattern"] = exact
        if made.get("type") in ("integer", ["integer", "null"]) and not FIXES_VALUE & made.keys():
            _bound_digits(made)
        if "propertyNames" in given and given["propertyNames"] is not True:
            self._property_names(made, given["propertyNames"], f"{at}/propertyNames", depth)
        least = made.get("minProperties", 0)
        if least <= len(set(made.get("required", ()))):
            made.pop("minProperties", None)
        elif least > 1 and (made.get("additionalProperties") is not False or made.get("patternProperties")):
            # A name that the schema does not list may come twice, and counts once when the answer is read.
            raise self._error(
                f"{at}/minProperties", "minProperties above 1 cannot be enforced; list the names in required"
            )

    def _property_names(self, made: Schema, given: Any, at: str, depth: int) -> None:
        names = self._schema(given, at, depth + 1)
        if isinstance(names, dict) and "$ref" in names and len(names) == 1:
            pointer = next(one for one, name in self._names.items() if names["$ref"].endswith(f"/{name}"))
            names = self._schema(self._find(pointer), at, depth + 1)
        listed = values_of(names) if isinstance(names, dict) and set(names) <= {"const", "enum", "type"} else None
        if listed is None or made.get("patternProperties"):
            raise self._error(at, "propertyNames can be enforced as an enum of names alone")
        rest = made.get("additionalProperties", True)
        properties = {name: one for name, one in made.get("properties", {}).items() if name in listed}
        properties |= {name: rest for name in listed if isinstance(name, str) and name not in properties}
        made["properties"], made["additionalProperties"] = properties, False


def _bound_digits(integer: Schema) -> None:
    bounds = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    if all(abs(integer[one]) < MAX_INTEGER for one in bounds if one in integer):
        if not integer.keys() & {"minimum", "exclusiveMinimum"}:
            integer["minimum"] = -MAX_INTEGER
        if not integer.keys() & {"maximum", "exclusiveMaximum"}:
            integer["maximum"] = MAX_INTEGER


def _make_any_of(choice: Schema, defs: dict[str, Schema | bool]) -> None:
    options = choice["oneOf"]
    if all_disjoint(options, defs):
        del choice["oneOf"]
        if "anyOf" in choice:
            choice["allOf"] = [*choice.get("allOf", ()), {"anyOf": options}]
        else:
            choice["anyOf"] = options


_Keyword = Callable[[_Reader, Schema, Any, str, int], None]
_READERS: dict[str, _Keyword] = {
    "type": _Reader._type,
    "const": _Reader._const,
    "enum": _Reader._enum,
    "pattern": _Reader._pattern,
    "format": _Reader._format,
    "required": _Reader._required,
    "uniqueItems": _Reader._unique_items,
    "$ref": _Reader._ref,
    "items": _Reader._items,
    "additionalProperties": _Reader._one,
    "oneOf": _Reader._one_of,
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _Reader._count
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _Reader._bound),
    **dict.fromkeys(("anyOf", "allOf", "prefixItems"), _Reader._several),
    **dict.fromkeys(("properties", "patternProperties"), _Reader._named),
    **dict.fromkeys(("additionalItems", "unevaluatedProperties", "unevaluatedItems", "propertyNames"), _Reader._later),
}
"""Keyword -> how it is read. What is not here, and no annotation, is refused."""
