"""What pydantic finds is said in our own words, whatever the kind of value."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shardnet.faults import first_fault, no_json, sentence


class Inner(BaseModel):
    n: int = Field(default=1, gt=0, lt=10)


class Sample(BaseModel):
    model_config = ConfigDict(extra="forbid")

    whole: int = Field(default=1, ge=0, le=9)
    share: float = 0.5
    flag: bool = False
    name: str = Field(default="ab", min_length=1, max_length=3, pattern="^[a-z]+$")
    names: list[Annotated[str, Field(max_length=3)]] = Field(default=["a"], min_length=1, max_length=2)
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()
    either: str | list[Inner] = ""
    size: Annotated[int, Field(ge=1)] | Literal[-1] = 1
    even: int = 2
    needed: int

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even, and {value} is odd")
        return value


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ({"whole": -1}, "whole", "must be at least 0"),
        ({"whole": 10}, "whole", "must be at most 9"),
        ({"whole": "x"}, "whole", "must be a whole number"),
        ({"whole": 1.5}, "whole", "must be a whole number"),
        ({"whole": None}, "whole", "must be a whole number"),
        ({"share": "x"}, "share", "must be a number"),
        ({"flag": "x"}, "flag", "must be true or false"),
        ({"flag": []}, "flag", "must be true or false"),
        ({"name": 1}, "name", "must be a text"),
        ({"name": ""}, "name", "must not be empty"),
        ({"name": "abcd"}, "name", "must have at most 3 characters"),
        ({"name": "A"}, "name", "has characters that are not taken here"),
        ({"names": []}, "names", "must not be empty"),
        ({"names": ["a", "b", "c"]}, "names", "must have at most 2 entries"),
        ({"names": "a"}, "names", "must be a list"),
        ({"names": ["abcd"]}, "names.0", "must have at most 3 characters"),
        ({"kind": "c"}, "kind", "must be one of 'a' or 'b'"),
        ({"inner": 1}, "inner", "must be an object with keys"),
        ({"inner": {"n": 0}}, "inner.n", "must be above 0"),
        ({"inner": {"n": 10}}, "inner.n", "must be below 10"),
        ({"either": 1}, "either", "must be a text or a list"),
        ({"either": [{"n": 0}]}, "either.0.n", "must be above 0"),
        ({"size": "x"}, "size", "must be a whole number or -1"),
        ({"size": 0}, "size", "must be at least 1"),
        ({"even": 3}, "even", "must be even, and 3 is odd"),
        ({"stranger": 1}, "stranger", "is not known"),
    ],
)
def test_each_fault_has_its_place_and_our_words(given: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate({"needed": 1} | given)
    assert first_fault(caught.value) == (where, what)


def test_what_is_missing_and_what_is_no_json_is_said() -> None:
    with pytest.raises(ValidationError) as missing:
        Sample.model_validate({})
    assert sentence(missing.value) == "needed is missing"
    with pytest.raises(ValidationError) as damaged:
        Sample.model_validate_json("{")
    assert sentence(damaged.value).startswith("it is not JSON: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "too early|a value"),
        ("{", "too early|a name in double quotes"),
        ('{"a" 1}', "a colon is missing"),
        ('{"a": 1 "b": 2}', "a comma or a closing bracket is missing"),
        ("[1 2]", "a comma or a closing bracket is missing"),
        ('{"a": 1,}', "a comma stands in front of a closing bracket|a name in double quotes"),
        ("{'a': 1}", "a name in double quotes is missing"),
        ('{"a": "\n"}', "a line break or another control character"),
        ('{"a": "\\x"}', "an escape that JSON does not know"),
        ('{"a": "\\u12"}', "half a surrogate pair|an escape"),
        ('{"a": "b', "too early|a text in it does not end"),
        ("{} {}", "more follows behind its end"),
        ("{} x", "more follows behind its end"),
        ("yes", "a value is missing, or is none that JSON has"),
        ("[01]", "a number in it|a comma or"),
    ],
)
def test_two_parsers_are_told_in_our_words_and_with_the_place(text: str, words: str) -> None:
    with pytest.raises(ValidationError) as damaged:
        Sample.model_validate_json(text)
    with pytest.raises(ValueError) as invalid:
        json.loads(text)
    ours = rf".*({words}).* \(line \d+, column \d+\)"
    assert re.fullmatch(f"it is not JSON: {ours}", sentence(damaged.value)), sentence(damaged.value)
    assert re.fullmatch(ours, no_json(str(invalid.value))), no_json(str(invalid.value))
