"""The fields by which clients ask for a structure, of OpenAI and of other servers, and the one grammar that they mean.

Source: OpenAI's API reference (`response_format`); the docs of llama-server (`grammar`, `json_schema`), vLLM (`structured_outputs`) and
SGLang (`regex`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from shardnet.coordinator.structure.grammars import HEAD, checked_length, regex_grammar, schema_grammar
from shardnet.errors import UsageError
from shardnet.messages import MAX_GRAMMAR

ANY_OBJECT = {"type": "object"}
FORMS = ("text", "json_object", "json_schema")
FIELDS = ("json_schema", "regex", "grammar", "structured_outputs", "response_format")
OLD_NAMES = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "grammar",
    "guided_choice": "structured_outputs",
}


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class JsonSchemaFormat(_Fields):
    """`response_format.json_schema`. Whatever `strict` says, the whole schema is enforced."""

    name: str | None = Field(default=None, max_length=256)
    schema_: Any = Field(default=None, alias="schema")


class ResponseFormat(_Fields):
    """Shape of the answer. `schema` beside `json_object` is as good as `json_schema`."""

    type: str | None = Field(default=None, max_length=64)
    json_schema: JsonSchemaFormat | None = None
    schema_: Any = Field(default=None, alias="schema")


class StructuredOutputs(_Fields):
    """vLLM's field."""

    json_: Any = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(default=None, max_length=4096)
    grammar: str | None = None
    json_object: bool | None = None


class StructureFields(_Fields):
    """What completions and chats share."""

    response_format: ResponseFormat | None = None
    json_schema: Any = None
    regex: str | None = None
    grammar: str | None = Field(default=None, max_length=MAX_GRAMMAR)
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_grammar: Any = None
    guided_choice: Any = None

    def check_supported(self) -> None:
        """Raises: UsageError naming a field that cannot be honoured."""
        for name, now in OLD_NAMES.items():
            if getattr(self, name) is not None:
                raise UsageError(f"{name}: is called {now} here", param=name)

    @property
    def structure_field(self) -> str:
        """Returns: the field that asks for a structure, for errors."""
        return next((name for name in FIELDS if getattr(self, name) is not None), "grammar")

    def structure(self) -> str | None:
        """Returns: the grammar that the answer has to follow; None for a free text.

        Raises: UsageError for more than one wish, or one that cannot be honoured, naming what in it.
        """
        wishes = list(self._wishes())
        if len(wishes) > 1:
            field = wishes[-1][0]
            raise UsageError(f"{field}: an answer has one structure, and {wishes[0][0]} asks for another", param=field)
        return wishes[0][1] if wishes else None

    def _wishes(self) -> Iterator[tuple[str, str]]:
        """Returns: each field that asks for something, and its grammar."""
        if self.response_format is not None:
            schema = _schema_of(self.response_format)
            if schema is not None:
                yield "response_format", schema_grammar(schema, "response_format")
        if self.json_schema is not None:
            yield "json_schema", schema_grammar(self.json_schema, "json_schema")
        if self.regex is not None:
            yield "regex", regex_grammar(self.regex, "regex")
        if self.grammar:
            yield "grammar", self.grammar
        if self.structured_outputs is not None:
            yield from (("structured_outputs", one) for one in _structured(self.structured_outputs))


def _schema_of(given: ResponseFormat) -> Any:
    """Returns: the schema that a `response_format` asks for; None for a text."""
    match given.type:
        case None | "text":
            return None
        case "json_object":
            return ANY_OBJECT if given.schema_ is None else given.schema_
        case "json_schema":
            schema = given.json_schema.schema_ if given.json_schema is not None else given.schema_
            if schema is None:
                raise UsageError("response_format: json_schema.schema is missing", param="response_format")
            return schema
        case other:
            raise UsageError(
                f"response_format: {other!r} is not supported; the types are {', '.join(FORMS)}",
                param="response_format",
            )


def _structured(given: StructuredOutputs) -> Iterator[str]:
    where = "structured_outputs"
    if given.json_ is not None:
        schema = given.json_
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError:
                raise UsageError(f"{where}: json is neither a schema nor a text that holds one", param=where) from None
        yield schema_grammar(schema, where)
    if given.json_object:
        yield schema_grammar(ANY_OBJECT, where)
    if given.regex is not None:
        yield regex_grammar(given.regex, where)
    if given.choice is not None:
        if not all(given.choice) or not given.choice:
            raise UsageError(f"{where}: choice is a list of texts, none of them empty", param=where)
        yield checked_length(f"{HEAD}start: {' | '.join(json.dumps(one) for one in given.choice)}\n", where)
    if given.grammar:
        yield checked_length(given.grammar, where)
