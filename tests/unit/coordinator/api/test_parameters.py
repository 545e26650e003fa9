"""docs/parameters.md is true: each row is asked of a coordinator, each known field has a row, and what is honoured has a test that shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from shardnet.coordinator.api.foreign_fields import FOREIGN
from shardnet.coordinator.api.openapi.operations import OPERATIONS
from tests.support.parameter_table import COLUMNS, OUTCOMES, Row, rows
from tests.support.random_models import tiny_llama
from tests.support.scripted_swarm import World, scripted_manifest, scripted_swarm

ROWS = rows()
ASKED = {path: one.asks for (_, path), one in OPERATIONS.items() if one.asks is not None}
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PAGES = {
    "/v1/responses": "responses.md",
    "/v1/responses/input_tokens": "responses.md",
    "/v1/messages": "messages.md",
    "/v1/messages/count_tokens": "messages.md",
}
"""APIs of other shapes, which are honoured through chats: they have pages too."""
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHATS: {"messages": HI, "max_tokens": 2},
    COMPLETIONS: {"prompt": "hi", "max_tokens": 2},
}
"""What a row's field is added to; elsewhere the example of the document."""


def fields_of(asked: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in asked.model_fields.items()}


# -- the table ---------------------------------------------------------------------------------------------------------------


def test_every_field_that_the_server_knows_has_a_row_and_no_row_is_of_another_endpoint() -> None:
    told = {(row.endpoint, row.field) for row in ROWS}
    known = {(path, field) for path, asked in ASKED.items() for field in fields_of(asked)}
    assert known <= told, f"docs/parameters.md lacks {sorted(known - told)}"
    assert {row.endpoint for row in ROWS} <= set(ASKED)
    assert {row.outcome for row in ROWS} == set(OUTCOMES)
    foreign = {(path, name) for path in BODIES for name in FOREIGN}
    assert foreign <= {(row.endpoint, row.field) for row in ROWS if row.outcome == "refused"}


@pytest.mark.parametrize("path", PAGES)
def test_every_field_of_another_apis_shape_is_on_its_page(path: str) -> None:
    page = (Path(__file__).parents[4] / "docs" / PAGES[path]).read_text(encoding="utf-8")
    said = set(re.findall(r"`(\w+)", page))
    assert fields_of(ASKED[path]) <= said, f"docs/{PAGES[path]} lacks {sorted(fields_of(ASKED[path]) - said)}"


def test_what_is_honoured_is_known_and_what_is_ignored_altogether_is_not() -> None:
    for row in ROWS:
        if row.outcome == "honoured":
            assert row.field in fields_of(ASKED[row.endpoint]), row
        if all(one.outcome == "ignored" for one in ROWS if (one.endpoint, one.field) == (row.endpoint, row.field)):
            assert row.field not in fields_of(ASKED[row.endpoint]) | FOREIGN.keys(), row


def _tests() -> dict[str, str]:
    """Returns: the source of each test, by `file::name`."""
    found = {}
    for path in Path(__file__).parents[3].rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                found[f"{path.stem}::{node.name}"] = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
    return found


def test_what_is_honoured_is_shown_by_a_test_that_there_is_and_that_names_it() -> None:
    tests = _tests()
    for row in ROWS:
        assert bool(row.test) == (row.outcome == "honoured") or row.endpoint in COLUMNS.values(), row
        if row.outcome == "honoured":
            assert row.test in tests, row.test
            of_all = row.test.endswith("test_every_row_is_what_the_coordinator_does")
            assert of_all or row.field in tests[row.test] or row.field in SAMPLED or row.field in TOLD, row


# -- what the coordinator does -----------------------------------------------------------------------------------------------


async def _fault(world: World, row: Row) -> str | None:
    """Returns: how the coordinator's answer differs from what the row says."""
    base = BODIES.get(row.endpoint) or dict(OPERATIONS["POST", row.endpoint].example)
    value = {row.field: row.value}
    answer = await world.client.post(row.endpoint, json=value | base | row.more | value)
    status = 400 if row.outcome == "refused" else 200
    if answer.status_code != status:
        return f"{row}: {answer.status_code} {answer.text[:200]}"
    if status == 200:
        return None
    error = answer.json()["error"]
    named = str(error.get("param") or error["message"].partition(":")[0]).split(".")[
        0
    ]  # Anthropic's shape has no param
    if named not in {row.field, *row.more} or named not in error["message"]:
        return f"{row}: the error does not name it: {error}"
    return None


async def test_every_row_is_what_the_coordinator_does(make_world: Callable[..., Any]) -> None:
    short = {"n_ctx": 448, "n_batch": 64}
    async with make_world(sequences=short, prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2) as node:
        node.next_token = lambda _task, _tokens: 72
        await world.ready()
        faults = [await _fault(world, row) for row in ROWS]
    found = [fault for fault in faults if fault is not None]
    assert not found, "\n".join(found)


# -- what the fields do ------------------------------------------------------------------------------------------------------

SAMPLED: dict[str, tuple[Any, str, Any]] = {
    "seed": (7, "seed", 7),
    "temperature": (0.5, "temperature", 0.5),
    "top_p": (0.5, "top_p", 0.5),
    "top_k": (5, "top_k", 5),
    "min_p": (0.25, "min_p", 0.25),
    "presence_penalty": (0.5, "presence_penalty", 0.5),
    "frequency_penalty": (-0.5, "frequency_penalty", -0.5),
    "repeat_penalty": (1.5, "repeat_penalty", 1.5),
    "repeat_last_n": (8, "penalty_last_n", 8),
    "logit_bias": ({"50": -100}, "logit_bias", {50: -100.0}),
}
"""Field -> value, and what the nodes get, which `test_every_way_of_sampling_agrees_with_the_reference` holds to the rest."""


async def test_every_way_of_sampling_reaches_the_nodes_from_both_endpoints(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        for path, base in BODIES.items():
            for field, (value, name, expected) in SAMPLED.items():
                node.tasks.clear()
                assert (await world.client.post(path, json=base | {field: value})).status_code == 200
                sampling = next(task.sampling for task in node.tasks if task.sampling is not None)
                assert getattr(sampling, name) == expected, (path, field)


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% for t in tools or [] %}T {{ t | tojson }}\n{% endfor %}{% for d in documents or [] %}D {{ d.text }}\n{% endfor %}"
    "E {{ reasoning_effort }} N {{ note }}\n{% if add_generation_prompt %}[assistant]{% endif %}"
)
TOLD: dict[str, tuple[Any, str]] = {
    "tools": ([{"type": "function", "function": {"name": "look_up"}}], "look_up"),
    "documents": ([{"text": "a document"}], "D a document"),
    "reasoning_effort": ("high", "E high"),
    "chat_template_kwargs": ({"note": "noted"}, "N noted"),
    "add_generation_prompt": (True, "[assistant]"),
}
"""Field -> value, and what the template makes of it."""


@pytest.fixture(scope="module")
def telling_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("telling") / "tokenizer.gguf"
    return tiny_llama(path, n_layers=1, extra={"tokenizer.chat_template": TEMPLATE})


async def test_what_a_template_is_told_is_in_the_prompt_and_is_counted(
    telling_tokenizer: Path, home: Path, tmp_path: Path, words: Sequence[int]
) -> None:
    manifest = scripted_manifest(telling_tokenizer)
    goes_on = {"messages": [*HI, {"role": "assistant", "content": "I"}], "continue_final_message": True}
    called = {"tools": TOLD["tools"][0], "tool_choice": "none"}
    asked: list[dict[str, Any]] = [{}, {name: value for name, (value, _) in TOLD.items()}, goes_on, called]
    asked += [{name: value} for name, (value, _) in TOLD.items()]
    async with (
        scripted_swarm(tmp_path / "cache", manifest, words, telling_tokenizer) as world,
        world.node("a", 0, 1, 2),
    ):
        await world.ready()
        for more in asked:
            chat = await world.client.post(
                CHATS, json={"messages": HI, "max_tokens": 1, "return_token_ids": True} | more
            )
            counted = await world.client.post("/tokenize", json={"messages": HI} | more)
            assert chat.status_code == 200, chat.text
            assert counted.json()["tokens"] == chat.json()["prompt_token_ids"], more
            text = (await world.client.post("/detokenize", json={"tokens": counted.json()["tokens"]})).json()["content"]
            for name, (_, expected) in TOLD.items():
                is_said = name in more and more.get("tool_choice") != "none"
                assert (expected in text) == is_said or name == "add_generation_prompt", (more, text)
        quiet = await world.client.post("/tokenize", json={"messages": HI, "add_generation_prompt": False})
        assert quiet.json()["count"] < (await world.client.post("/tokenize", json={"messages": HI})).json()["count"]
