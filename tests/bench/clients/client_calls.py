"""What the scripts of the Python clients share: where the swarm is, what is asked, when a call is well-formed, and the JSON line of each result.

Runs in the clients' own environment: knows nothing of shardnet.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import jsonschema
from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]
T = TypeVar("T")
BASE, MODEL = os.environ["SHARDNET_CLIENTS_BASE"], os.environ["SHARDNET_CLIENTS_MODEL"]
"""The API's address with `/v1`, and the model's name."""
MOST = 300
"""Tokens of an answer: more than any of these needs."""
AT_ONCE = 4

WEATHER: Json = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
PRODUCT: Json = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Json] = {"weather": WEATHER, "multiply": PRODUCT}
ABOUT = {"weather": "The weather of a city now", "multiply": "Multiply two whole numbers"}


def tools(*, strict: bool = False) -> list[Json]:
    """Returns: the two functions that are offered."""
    flag = {"strict": True} if strict else {}
    return [
        {"type": "function", "function": {"name": name, "description": ABOUT[name], "parameters": schema} | flag}
        for name, schema in SCHEMAS.items()
    ]


CITIES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito", "Dakar", "Delhi", "Seoul", "São Paulo")
TOOL_PROMPTS = (
    *(f"What is the weather in {city} in celsius? Use the tools." for city in CITIES),
    *(f"How much is {11 + number} times {23 + 7 * number}? Use the tools." for number in range(9)),
    "What is the weather in Bern in celsius, and how much is 6 times 7? Use the tools for both.",
)


def fault_of_call(name: str, arguments: str, names: Iterable[str] = tuple(SCHEMAS)) -> str:
    """Returns: what is wrong with a call; empty if it is well-formed."""
    if name not in names:
        return f"calls {name!r}"
    try:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{name}({arguments[:200]}): {str(error).splitlines()[0]}"
    return ""


class Address(BaseModel):
    street: str = Field(max_length=30)
    number: int = Field(ge=1, le=9999)


class Person(BaseModel):
    """Nested, optional, one of some words, within bounds, by a pattern, a mapping."""

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=150)
    kind: Literal["child", "adult", "elder"]
    code: str = Field(pattern=r"^[A-Z]{2}-[0-9]{3}$")
    home: Address
    work: Address | None
    marks: dict[str, int] = Field(max_length=3)
    tags: list[str] = Field(max_length=3)


class Tree(BaseModel):
    """Refers to itself."""

    value: int = Field(ge=0, le=99)
    left: Tree | None
    right: Tree | None


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["dog"]
    barks: bool


class Pet(BaseModel):
    """One of two."""

    name: str = Field(max_length=20)
    animal: Cat | Dog
    weight: float | None = None


PEOPLE = ("Ada", "Bruno", "Chiara", "Dmitri", "Esra", "Fatou", "Goran", "Hana", "Ines", "Jiří")
PARSED: tuple[tuple[type[BaseModel], str], ...] = (
    *((Person, f"{name} is {31 + at} years old and lives at 7 Long Street.") for at, name in enumerate(PEOPLE[:8])),
    *(
        (Tree, f"A tree with the value {at} at its root and two leaves, 1 and 2, whose left and right are null.")
        for at in range(6)
    ),
    *((Pet, f"{name} is a {'cat' if at % 2 else 'dog'}.") for at, name in enumerate(PEOPLE[:6])),
)
SOME_TOOL_PROMPTS, SOME_PARSED = TOOL_PROMPTS[::4], PARSED[::4]
"""Of what is asked twenty times in another way too."""


class Fault(Exception):
    """What came is not what was promised."""


def expect(holds: object, what: object = "") -> None:
    """Raises: Fault with what came in its place."""
    if not holds:
        raise Fault(str(what)[:600])


def tally(ask: Callable[..., str | int], cases: Iterable[Any]) -> str:
    """Ask with each case, some at once.

    Args:
        ask: says what is wrong, empty for nothing; or how many calls came.
    Returns: how many of how many are well-formed, and of those with how many calls.
    Raises: Fault.
    """
    calls: Counter[int] = Counter()

    def one(case: Any) -> str:
        try:
            seen = ask(case)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if isinstance(seen, str):
            return seen
        calls[seen] += 1
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(one, cases))
    wrong = [one for one in seen if one]
    text = f"{len(seen) - len(wrong)} of {len(seen)}"
    text += "".join(f", {times} with {n} calls" for n, times in sorted(calls.items()))
    expect(not wrong, f"{text}: {wrong}")
    return text


def run(client: str, calls: Iterable[Callable[[], Any]]) -> int:
    """Make each call, whose docstring names it, and print what was seen as a JSON line. Returns: 1 if anything is not as promised."""
    only = (sys.argv[1] if len(sys.argv) > 1 else "").split("|")
    faults = 0
    for call in calls:
        name = " ".join((call.__doc__ or call.__name__).split()).rstrip(".")
        if not any(one in name for one in only):
            continue
        begun = time.monotonic()
        try:
            seen = call()
            seen, is_well = str(asyncio.run(seen) if inspect.iscoroutine(seen) else seen), True
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            seen, is_well = f"{type(error).__name__}: {error} (line {where.lineno})"[:900], False
        faults += not is_well
        line = {"client": client, "call": name, "well": is_well, "seen": seen[:900]}
        print(json.dumps(line | {"s": round(time.monotonic() - begun, 1)}, ensure_ascii=False), flush=True)
    return int(faults > 0)
