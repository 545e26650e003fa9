"""The coordinator daemon over real TLS and HTTP, with scripted nodes: what clients get, and what happens when nodes fail."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardnet.coordinator.daemon import Coordinator
from shardnet.coordinator.settings import CoordinatorSettings
from shardnet.coordinator.structure.grammars import schema_grammar
from shardnet.errors import EngineCrashed, PeerRefused, SettingsError, UsageError
from shardnet.inference.splitting.manifest_file import save_manifest
from shardnet.manifest import Manifest
from shardnet.messages import PROTOCOL_VERSION, ExecuteTask, Hello, ManifestOffer
from shardnet.swarm.addresses import read_coordinator_addresses
from shardnet.swarm.api_keys import make_key, remove_key
from shardnet.swarm.home import Home
from shardnet.swarm.signing import sign_if_owner
from shardnet.transport import Connection, dial
from tests.support.coordinator_world import make_manifest
from tests.support.scripted_swarm import CALLING, TEXT, WEATHER, events_of, says

# -- answers ---------------------------------------------------------------------------------------------------------------------


async def test_three_stages_answer_a_chat_relayed_by_the_coordinator(make_world: Callable[..., Any]) -> None:
    async with (
        make_world(prefixes={"enabled": False}) as world,
        world.node("a", 0) as a,
        world.node("b", 1) as b,
        world.node("c", 2) as c,
    ):
        await world.ready()
        answer = (await world.chat(return_token_ids=True)).json()
        choice = answer["choices"][0]
        assert TEXT.startswith(choice["message"]["content"])
        assert choice["token_ids"] == list(world.words[:20])
        assert choice["finish_reason"] == "length"
        assert answer["usage"] == {
            "prompt_tokens": len(answer["prompt_token_ids"]),
            "completion_tokens": 20,
            "total_tokens": len(answer["prompt_token_ids"]) + 20,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert [stage["node"] for stage in answer["shardnet"]["stages"]] == ["a", "b", "c"]
        assert [stage["layers"] for stage in answer["shardnet"]["stages"]] == ["[0, 2)", "[2, 4)", "[4, 6)"]
        assert answer["shardnet"]["stages"][0]["compute_us"] == 100
        await world.until(lambda _: not (a.live_sequences | b.live_sequences | c.live_sequences))


async def test_a_stream_gives_the_same_text_and_ends_with_usage(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        whole = (await world.chat()).json()["choices"][0]["message"]["content"]
        events = events_of(await world.chat(stream=True, stream_options={"include_usage": True}))
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]) == whole
        assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "length"
        assert events[-1]["usage"]["completion_tokens"] == 20


async def test_a_stop_string_ends_the_answer_and_does_not_leak(make_world: Callable[..., Any]) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2) as a:
        await world.ready()
        for stream in (False, True):
            response = await world.chat(stop=["brown"], max_tokens=100, stream=stream)
            text = (
                "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(response))
                if stream
                else response.json()["choices"][0]["message"]["content"]
            )
            assert text == "The quick "
        await world.until(lambda _: not a.live_sequences)


async def test_completions_take_text_or_tokens(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        for prompt in ("hello", [72, 73], ["hello"], [[72, 73]]):
            answer = (await world.client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4})).json()
            assert TEXT.startswith(answer["choices"][0]["text"])
        bad = await world.client.post("/v1/completions", json={"prompt": [99_999], "max_tokens": 4})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "prompt")


async def test_a_model_is_listed_and_found_by_name_id_and_default(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        [card] = (await world.client.get("/v1/models")).json()["data"]
        assert (card["id"], card["shardnet"]["ready"]) == ("tiny", True)
        for name in ("tiny", world.manifest.model_id, world.manifest.model_id[:12]):
            assert (await world.client.get(f"/v1/models/{name}")).json() == card
        unknown = await world.client.get("/v1/models/nope")
        assert (unknown.status_code, "known are: tiny" in unknown.text) == (404, True)
        pieces = await world.client.post(
            "/tokenize", json={"content": "hi", "with_pieces": True, "return_token_strs": True}
        )
        tokens, texts = pieces.json()["tokens"], pieces.json()["token_strs"]
        assert [one["piece"] for one in tokens] == texts
        asked = {"tokens": [one["id"] for one in tokens]}
        assert (await world.client.post("/detokenize", json=asked)).json()["content"] == "".join(texts) == "hi"
        for model in (None, "tiny", world.manifest.model_id, world.manifest.model_id[:12]):
            assert (await world.chat(model=model, max_tokens=1)).status_code == 200
        missing = await world.chat(model="nope")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"
        assert "tiny" in missing.json()["error"]["message"]


async def test_a_name_of_two_models_is_listed_once_and_answers(
    make_world: Callable[..., Any], tmp_path: Path, tokenizer: Path, manifest: Manifest
) -> None:
    folder = tmp_path / "cache" / "shards" / "twin"
    twin = make_manifest((0, 3, 6), tokenizer=manifest.content.tokenizer, n_vocab=manifest.content.n_vocab)
    save_manifest(folder, twin)
    shutil.copy(tokenizer, folder / "tokenizer.gguf")
    newer = manifest.model_copy(update={"made_s": 1})
    save_manifest(tmp_path / "cache" / "shards" / "newer", newer)
    shutil.copy(tokenizer, tmp_path / "cache" / "shards" / "newer" / "tokenizer.gguf")
    async with make_world(in_cache=False) as world, world.node("a", 0, 1, 2):
        await world.ready()
        [card] = (await world.client.get("/v1/models")).json()["data"]
        assert (card["id"], card["shardnet"]["model_id"]) == ("tiny", newer.model_id)
        assert (await world.chat(model="tiny", max_tokens=1)).status_code == 200
        other = await world.chat(model=twin.model_id, max_tokens=1)
        assert (other.status_code, "models.serve" in other.text) == (503, True)
        asked = await world.client.get(f"/v1/models/{twin.model_id}")
        assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
        assert "tiny means the newer or proved model" in asked.json()["error"]["message"]


async def test_a_prompt_longer_than_the_context_names_both_numbers_in_words_that_clients_know(
    make_world: Callable[..., Any],
) -> None:
    async with make_world(sequences={"n_ctx": 64, "n_batch": 16}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        response = await world.client.post("/v1/completions", json={"prompt": [72] * 70})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "prompt is too long" in error["message"]  # what litellm and langchain look for
        assert "70 tokens" in error["message"]
        assert "64 tokens" in error["message"]
        full = (await world.client.post("/v1/completions", json={"prompt": [72] * 60})).json()
        assert full["choices"][0]["finish_reason"] == "length"
        assert full["usage"]["completion_tokens"] == 4


# -- readiness -------------------------------------------------------------------------------------------------------------------


async def test_missing_layers_are_named_until_a_node_brings_them(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1):
        status = await world.until(lambda one: one["models"][0]["missing_layers"] == ["[4, 6)"])
        assert status["models"][0]["layers"][-1]["holders"] == []
        refused = await world.chat()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "layers [4, 6) (shard 2)" in refused.json()["error"]["message"]
        assert (await world.client.get("/healthz")).status_code == 503
        async with world.node("b", 2):
            await world.ready()
            assert (await world.client.get("/healthz")).status_code == 200
            assert (await world.chat()).status_code == 200
        await world.until(lambda one: not one["models"][0]["ready"])
        assert (await world.chat()).status_code == 503


async def test_shards_on_disk_are_loaded_with_one_set_of_options(make_world: Callable[..., Any]) -> None:
    async with (
        make_world(sequences={"n_ctx": 128, "n_seq": 3, "n_batch": 32}) as world,
        world.node("a", 0, 1, 2, loaded=False) as node,
    ):
        await world.ready()
        assert sorted(load.shard_id for load in node.loads) == [0, 1, 2]
        assert {load.options for load in node.loads} == {node.loads[0].options}
        assert (node.loads[0].options.n_ctx, node.loads[0].options.n_seq) == (128, 3)
        assert node.loads[0].manifest is not None
        assert node.loads[0].manifest.signature is not None


async def test_a_silent_node_is_cut_off(make_world: Callable[..., Any]) -> None:
    async with (
        make_world(placement={"debounce_s": 0.02, "dead_after_s": 1.5}) as world,
        world.node("a", 0, 1, 2) as node,
    ):
        await world.ready()
        assert node._beating is not None
        node._beating.cancel()
        await world.until(lambda one: not one["nodes"])


async def test_the_tokenizer_is_fetched_from_a_node_and_kept(make_world: Callable[..., Any], tmp_path: Path) -> None:
    async with make_world(in_cache=False) as world, world.node("a", 0, 1, 2) as node:
        assert (await world.health())["models"] == []
        node.connection.send(ManifestOffer(manifest=world.manifest))  # nobody signed it
        node.connection.send(ManifestOffer(manifest=sign_if_owner(world.manifest)))
        await world.ready()
        assert (await world.chat()).status_code == 200
        [kept] = (tmp_path / "cache" / "tokenizers").iterdir()
        assert kept.read_bytes() == world.tokenizer.read_bytes()


@pytest.mark.parametrize(
    ("signature", "reason"),
    [(None, "nobody signed its manifest"), ("ab" * 40, "its manifest is signed by another swarm's owner")],
    ids=["unsigned", "another swarm's"],
)
async def test_an_offer_that_this_swarms_owner_did_not_sign_is_not_served_and_the_status_says_why(
    make_world: Callable[..., Any], signature: str | None, reason: str
) -> None:
    async with make_world(in_cache=False) as world, world.node("a", 0, 1, 2) as node:
        node.connection.send(ManifestOffer(manifest=world.manifest.model_copy(update={"signature": signature})))
        status = await world.until(lambda one: bool(one["nodes"]) and reason in str(one["nodes"][0]["not_served"]))
        (told,) = status["nodes"][0]["not_served"]
        assert (told["model"], told["model_id"]) == ("tiny", world.manifest.model_id)
        assert (await world.health())["models"] == []


async def test_the_status_says_which_files_of_the_coordinators_own_cache_are_refused(
    make_world: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "shards" / "linked"
    folder.mkdir(parents=True)
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    async with make_world(in_cache=False) as world:
        (reason,) = (await world.client.get("/status")).json()["coordinator"]["refused"]
        assert "manifest.json is a link" in reason


# -- failures --------------------------------------------------------------------------------------------------------------------


async def test_a_node_lost_in_the_middle_costs_a_pause_and_not_the_answer(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1) as a, world.node("b", 2) as b:
        await world.ready()
        entered = asyncio.Event()

        def stop_at_ten(task: ExecuteTask) -> bool:
            if task.sampling is not None and task.position >= task.sampling.prompt_tokens + 10:
                entered.set()
                return False
            return True

        b.on_task = stop_at_ten
        asking = asyncio.create_task(world.chat(stream=True, return_token_ids=True, max_tokens=30))
        await entered.wait()
        await b.leave()
        async with world.node("spare", 2):
            events = events_of(await asking)
        tokens = [token for event in events for token in event["choices"][0].get("token_ids", [])]
        assert tokens == list(world.words[:30])
        assert len({task.sequence_id for task in a.tasks}) == 2


async def test_without_a_spare_the_stream_ends_with_the_reason(make_world: Callable[..., Any]) -> None:
    async with (
        make_world(requests={"recovery_timeout_s": 0.5}) as world,
        world.node("a", 0, 1),
        world.node("b", 2) as b,
    ):
        await world.ready()
        entered = asyncio.Event()

        def stop(task: ExecuteTask) -> bool:
            entered.set()
            return task.position == 0

        b.on_task = stop
        asking = asyncio.create_task(world.chat())
        await entered.wait()
        await b.leave()
        response = await asking
        assert response.status_code == 503
        assert "was lost" in response.json()["error"]["message"]


async def test_an_engine_crash_is_repeated_once_and_not_seen_by_the_client(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        crashes = iter([EngineCrashed("the engine process ended")])

        def crash_once(task: ExecuteTask) -> bool:
            if task.position > 20 and (error := next(crashes, None)):
                raise error
            return True

        node.on_task = crash_once
        answer = (await world.chat(return_token_ids=True)).json()
        assert answer["choices"][0]["token_ids"] == list(world.words[:20])
        assert (await world.until(lambda one: one["requests"]["finished"] == 1))["requests"]["retried"] == 1


async def test_an_error_of_the_engine_reaches_the_client_with_its_status(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()

        def refuse(_task: ExecuteTask) -> bool:
            raise UsageError("the engine does not take it")

        node.on_task = refuse
        for stream in (False, True):
            response = await world.chat(stream=stream)
            assert (response.status_code, response.json()["error"]["message"]) == (400, "the engine does not take it")


async def test_a_structure_that_cannot_be_honoured_is_400_by_name_before_any_prefill(
    make_world: Callable[..., Any],
) -> None:
    not_null = {"type": "json_schema", "json_schema": {"schema": {"not": {"type": "null"}}}}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"grammar": "rood ::= [a-z]"}, "a rule named root"),
        ({"grammar": "%llguidance {}\nstart: nothing"}, "nothing"),
        ({"regex": "(a"}, "unclosed group"),
        ({"response_format": not_null}, "'not'"),
        ({"json_schema": {"patternProperties": {"a": {}, "b": {"type": "null"}}}}, "/a/ and /b/"),
        ({"structured_outputs": {"json": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}}, "oneOf"),
    ]
    async with make_world() as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        for asked, named in refused:
            for stream in (False, True):
                response = await world.chat(**asked, stream=stream)
                error = response.json()["error"]
                assert (response.status_code, error["param"]) == (400, next(iter(asked)))
                assert named in error["message"]
        assert not node.tasks
        response = await world.chat(json_schema={"type": "object"}, grammar="", response_format={"type": "text"})
        assert response.status_code == 200
        assert {task.sampling.grammar for task in node.tasks if task.sampling} == {
            schema_grammar({"type": "object"}, "json_schema")
        }


async def test_a_vanished_client_frees_every_stage(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1) as a, world.node("b", 2) as b:
        await world.ready()
        entered = asyncio.Event()

        def stall(task: ExecuteTask) -> bool:
            if task.n_tokens == 1:
                entered.set()
                return False
            return True

        b.on_task = stall
        for stream in (False, True):
            entered.clear()
            asking = asyncio.create_task(world.chat(stream=stream))
            await entered.wait()
            assert a.live_sequences
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await world.until(lambda one: one["requests"]["running"] == 0)
            await world.until(lambda _: not (a.live_sequences | b.live_sequences))
        assert (await world.until(lambda _: True))["requests"]["cancelled"] == 2


async def test_a_half_closed_client_gets_its_answer_streamed_and_whole(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        api = world.addresses["api"]
        for stream in (False, True):
            body = json.dumps({"prompt": "hi", "max_tokens": 5, "temperature": 0, "stream": stream}).encode()
            head = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            reader, writer = await asyncio.open_connection(api.host, api.port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + body)
            writer.write_eof()
            received = await reader.read()
            writer.close()
            assert b'"finish_reason":"length"' in received
            assert received.count(b"[DONE]") == stream
        assert (await world.until(lambda one: one["requests"]["finished"] == 2))["requests"]["cancelled"] == 0


async def test_requests_queue_when_all_sequences_are_in_use_and_are_refused_past_the_bound(
    make_world: Callable[..., Any],
) -> None:
    limits = {"sequences": {"n_seq": 1}, "requests": {"max_queued": 1}}
    async with make_world(**limits) as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        gate, entered = asyncio.Event(), asyncio.Event()
        kept: list[ExecuteTask] = []

        def hold_first(task: ExecuteTask) -> bool:
            if not gate.is_set():
                kept.append(task)
                entered.set()
                return False
            return True

        node.on_task = hold_first
        first = asyncio.create_task(world.chat(max_tokens=3))
        await entered.wait()
        second = asyncio.create_task(world.chat(max_tokens=3))
        await world.until(lambda one: one["requests"]["queued"] == 1)
        third = await world.chat()
        assert (third.status_code, third.headers["retry-after"]) == (503, "2")
        gate.set()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await second).status_code == 200


async def test_several_requests_are_in_flight_at_once(make_world: Callable[..., Any]) -> None:
    async with make_world(sequences={"n_seq": 8}) as world, world.node("a", 0, 1) as a, world.node("b", 2):
        await world.ready()
        answers = await asyncio.gather(*(world.chat(return_token_ids=True) for _ in range(8)))
        assert all(one.json()["choices"][0]["token_ids"] == list(world.words[:20]) for one in answers)
        assert len({task.sequence_id for task in a.tasks}) == 8


async def test_several_answers_to_several_prompts_are_told_apart_by_their_index(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        asked = {
            "model": "tiny",
            "prompt": [[5, 6], [7, 8, 9]],
            "n": 2,
            "max_tokens": 6,
            "echo": True,
            "temperature": 0,
        }
        told = (await world.client.post("/v1/completions", json=asked | {"return_token_ids": True})).json()
        assert [one["index"] for one in told["choices"]] == [0, 1, 2, 3]
        assert all(one["token_ids"] == list(world.words[:6]) for one in told["choices"])
        assert [one["prompt_token_ids"] for one in told["choices"]] == [[5, 6], [5, 6], [7, 8, 9], [7, 8, 9]]
        assert told["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": 24,
            "total_tokens": 29,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

        streamed = asked | {"stream": True, "stream_options": {"include_usage": True}}
        events = events_of(await world.client.post("/v1/completions", json=streamed))
        assert events[-1]["usage"] == told["usage"]
        texts, ends = ["", "", "", ""], []
        for event in events[:-1]:
            (choice,) = event["choices"]
            texts[choice["index"]] += choice["text"]
            ends += [choice["index"]] if choice["finish_reason"] else []
        assert sorted(ends) == [0, 1, 2, 3]
        assert texts == [one["text"] for one in told["choices"]]
        assert len({event["id"] for event in events}) == 1

        chats = (await world.chat(n=3, max_tokens=4)).json()
        assert [one["message"]["role"] for one in chats["choices"]] == ["assistant"] * 3
        assert (await world.client.get("/status")).json()["requests"]["running"] == 0


async def test_the_answers_of_one_request_are_bounded(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        assert (await world.chat(n=129)).status_code == 400
        many = await world.client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 65, "n": 2})
        assert many.status_code == 400
        assert "more than 128" in many.json()["error"]["message"]
        assert (await world.client.post("/v1/completions", json={"model": "tiny", "prompt": []})).status_code == 400


async def test_texts_become_tokens_and_tokens_texts(make_world: Callable[..., Any]) -> None:
    async with make_world() as world:
        post = world.client.post
        text = "hello world"
        told = (await post("/tokenize", json={"model": "tiny", "prompt": text, "add_special_tokens": False})).json()
        assert told["count"] == len(told["tokens"]) > 0
        pieces = {"content": text, "add_special": False, "with_pieces": True, "return_token_strs": True}
        named = (await post("/tokenize", json=pieces)).json()
        assert [one["id"] for one in named["tokens"]] == told["tokens"]
        assert "".join(named["token_strs"]).strip() == text
        assert (await post("/detokenize", json={"tokens": told["tokens"]})).json()["content"].strip() == text
        chat = (await post("/tokenize", json={"messages": [{"role": "user", "content": text}]})).json()
        assert chat["count"] > told["count"]
        for path, wrong in (
            ("/tokenize", {}),
            ("/tokenize", {"prompt": "a", "content": "a"}),
            ("/detokenize", {"tokens": [1 << 30]}),
            ("/detokenize", {"tokens": [-1]}),
        ):
            refused = await post(path, json=wrong)
            assert refused.status_code == 400, (path, wrong)
            assert refused.json()["error"]["param"] in ("prompt", "tokens", "tokens.0")


# -- limits, life ----------------------------------------------------------------------------------------------------------------


async def test_a_key_is_asked_for_where_there_is_one(make_world: Callable[..., Any]) -> None:
    async with make_world(api={"key": "s3cret"}) as world:
        assert (await world.client.get("/healthz")).status_code == 503
        assert (await world.client.get("/v1/models")).status_code == 401
        assert (await world.client.get("/v1/models", headers={"Authorization": "Bearer no"})).status_code == 401
        assert (await world.client.get("/v1/models", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_keys_are_made_and_taken_away_while_the_coordinator_runs(
    make_world: Callable[..., Any], home: Path
) -> None:
    async with make_world() as world:

        async def until(status: int, key: str) -> None:
            asked = {"Authorization": f"Bearer {key}"}
            async with asyncio.timeout(10):
                while (await world.client.get("/v1/models", headers=asked)).status_code != status:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        await until(200, "none")
        alice, bob = make_key(Home(), "alice"), make_key(Home(), "bob")
        await until(401, "none")
        await until(200, alice)
        await until(200, bob)
        remove_key(Home(), "alice")
        await until(401, alice)
        await until(200, bob)
        remove_key(Home(), "bob")
        await until(401, bob)
        Home().api_keys.unlink()
        assert (await world.client.get("/v1/models")).status_code == 401


async def test_load_balancers_ask_for_health_with_any_host_and_no_key(make_world: Callable[..., Any]) -> None:
    async with make_world(api={"key": "s3cret"}) as world:
        for host in ("10.1.2.3:8080", "shardnet.example", "x"):
            assert (await world.client.get("/healthz", headers={"Host": host})).status_code == 503
            assert (await world.client.get("/status", headers={"Host": host})).status_code == 403
        api = world.addresses["api"]
        assert api is not None
        reader, writer = await asyncio.open_connection(api.host, api.port)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 503 " in await reader.readline()
        writer.close()


async def test_a_slash_at_the_end_head_and_options_are_answered_and_nothing_redirects(
    make_world: Callable[..., Any],
) -> None:
    async with make_world() as world:
        plain = await world.client.get("/v1/models")
        slashed = await world.client.get("/v1/models/", headers={"Host": "localhost"})
        assert (slashed.status_code, slashed.json()) == (plain.status_code, plain.json())
        head = await world.client.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")
        options = await world.client.options("/v1/chat/completions", headers={"Origin": "https://chat.example"})
        assert (options.status_code, options.headers["allow"]) == (204, "POST, OPTIONS")
        assert "access-control-allow-origin" not in options.headers
        assert (await world.client.get("/v1/chat/completions/")).headers["allow"]
        assert (
            await world.client.get("//v1//", follow_redirects=False)
        ).status_code == 200  # httpx asks for //: the web page
        assert (await world.client.get("/v1/none//", follow_redirects=False)).status_code == 404


async def test_pages_of_listed_origins_may_ask_and_read_the_errors_too(make_world: Callable[..., Any]) -> None:
    async with make_world(api={"allowed_origins": ["https://chat.example"], "key": "s3cret"}) as world:
        asked = {
            "Origin": "https://chat.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        }
        preflight = await world.client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        strange = await world.client.options(
            "/v1/chat/completions", headers=asked | {"Origin": "https://other.example"}
        )
        assert "access-control-allow-origin" not in strange.headers
        refused = await world.client.get("/v1/models", headers={"Origin": "https://chat.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://chat.example"


async def test_an_answer_goes_on_where_the_last_message_ends(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the an", "tool_calls": None}]
        more: dict[str, Any] = {"messages": messages, "return_token_ids": True, "max_tokens": 1}
        begun, new = await world.chat(**more, continue_final_message=True), await world.chat(**more)
        ids, whole = begun.json()["prompt_token_ids"], new.json()["prompt_token_ids"]
        assert ids == whole[: len(ids)]
        assert len(ids) < len(whole)
        refused = await world.chat(continue_final_message=True)
        assert refused.status_code == 400
        assert "continue_final_message" in refused.json()["error"]["message"]


async def test_a_message_that_the_template_leaves_out_is_refused(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2):
        await world.ready()
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        called = {"role": "assistant", "content": None, "tool_calls": [call]}
        refused = await world.chat(messages=[{"role": "user", "content": "hi"}, called])
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("messages[1]: the chat template of tiny leaves")


async def test_hostile_bodies_are_refused_in_openais_shape(make_world: Callable[..., Any]) -> None:
    async with make_world(requests={"max_body_bytes": 2048}) as world:
        post, path = world.client.post, "/v1/chat/completions"
        as_json = {"Content-Type": "application/json"}
        for response, status in (
            (await post(path, content=b"{", headers=as_json), 400),
            (await post(path, content=b"[" * 2000, headers=as_json), 400),
            (await post(path, content=b"x" * 4000, headers=as_json), 413),
            (await post(path, content=b'{"messages":[]}', headers={"Content-Type": "text/plain"}), 400),
            (await post(path, json={"messages": []}), 400),
            (await post(path, json={"messages": [{"role": "user", "content": "x"}], "temperature": -1}), 400),
            (await post(path, json={"messages": [{"role": "user", "content": "x"}], "tools": [{}]}), 400),
            (await world.client.get("/v1/models", headers={"Host": "evil.example"}), 403),
            (await world.client.get("/nothing"), 404),
            (await world.client.get(path), 405),
        ):
            assert response.status_code == status, response.text
            assert response.json()["error"]["message"]


async def test_a_port_in_use_is_said_with_the_flag_that_changes_it(make_world: Callable[..., Any], home: Path) -> None:
    async with make_world() as world:
        taken = world.addresses["nodes"]
        listen = {"nodes": str(taken), "api": "127.0.0.1:0", "enrol": ""}
        other = Coordinator(CoordinatorSettings.model_validate({"listen": listen}), Home())
        with pytest.raises(
            SettingsError, match=rf"port {taken.port} on 127.0.0.1 is in use; choose another with --listen"
        ):
            await other.run()


async def test_addresses_are_left_for_nodes_and_commands_and_the_epoch_grows(make_world: Callable[..., Any]) -> None:
    epochs = []
    for _ in range(2):
        async with make_world() as world:
            found = read_coordinator_addresses(Home())
            assert (found.nodes, found.api, found.enrol) == tuple(
                world.addresses[one] for one in ("nodes", "api", "enrol")
            )
            epochs.append((await world.until(lambda _: True))["coordinator"]["epoch"])
    assert epochs == [1, 2]


async def test_a_stop_lets_a_running_request_finish(make_world: Callable[..., Any]) -> None:
    async with make_world(drain_timeout_s=5) as world, world.node("a", 0, 1, 2) as node:
        await world.ready()
        entered = asyncio.Event()

        def tell(_task: ExecuteTask) -> bool:
            entered.set()
            return True

        node.on_task = tell
        asking = asyncio.create_task(world.chat(max_tokens=50))
        await entered.wait()
        world.coordinator.stop()
        assert (await asking).status_code == 200


async def test_a_node_of_a_copied_home_is_refused_while_the_first_lives(make_world: Callable[..., Any]) -> None:
    async with make_world() as world, world.node("a", 0, 1, 2) as first:
        first.run_id = "1" * 16
        await first.leave()
        await first.join()
        await world.ready()

        async def join(run_id: str) -> Connection:
            hello = Hello(protocol=PROTOCOL_VERSION, node_id=first.node_id, name="a", role="node", run_id=run_id)
            return await dial(first.identity, world.addresses["nodes"], hello)

        with pytest.raises(PeerRefused, match=r"a node with the same key runs already: a\b.*nodes/a.*shardnet join"):
            await join("2" * 16)
        assert first.connection.is_open
        assert (await world.chat()).status_code == 200, "the first is not disturbed"
        again = await join("1" * 16)  # the same process, by another connection
        await again.close()
        await world.until(lambda status: not status["nodes"])
        await (await join("2" * 16)).close()


# -- tools and reasoning ---------------------------------------------------------------------------------------------------------


async def test_calls_are_apart_from_content_whole_and_streamed(make_world: Callable[..., Any]) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        n_tokens = says(world, CALLING)
        more = {"tools": [WEATHER], "max_tokens": 400, "return_token_ids": True}
        choice = (await world.chat(**more)).json()["choices"][0]
        message = choice["message"]
        assert (message["content"], choice["finish_reason"]) == ("I look.", "tool_calls")
        assert [one["function"] for one in message["tool_calls"]] == [
            {"name": "weather", "arguments": '{"city": "Rom"}'},
            {"name": "weather", "arguments": "{}"},
        ]
        assert len({one["id"] for one in message["tool_calls"]}) == 2
        assert choice["token_ids"] == list(world.words[:n_tokens])

        events = events_of(await world.chat(**more, stream=True))
        choices = [event["choices"][0] for event in events]
        deltas = [one["delta"] for one in choices]
        assert "".join(one.get("content", "") for one in deltas) == "I look."
        calls = [one for delta in deltas for one in delta.get("tool_calls", ())]
        assert [(one["index"], one["function"]["name"]) for one in calls if "id" in one] == [
            (0, "weather"),
            (1, "weather"),
        ]
        assert "".join(one["function"]["arguments"] for one in calls if one["index"] == 0) == '{"city": "Rom"}'
        assert sum(one["index"] == 0 for one in calls) > 3
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert [token for one in choices for token in one.get("token_ids", ())] == list(world.words[:n_tokens])


async def test_one_call_alone_ends_the_answer(make_world: Callable[..., Any]) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        n_tokens = says(world, CALLING)
        answer = (await world.chat(tools=[WEATHER], parallel_tool_calls=False, max_tokens=400)).json()
        choice = answer["choices"][0]
        assert len(choice["message"]["tool_calls"]) == 1
        assert choice["finish_reason"] == "tool_calls"
        assert answer["usage"]["completion_tokens"] < n_tokens - 20


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": {"type": "function", "function": {"name": "b"}}},
    ],
)
async def test_a_function_that_only_engines_can_refuse_keeps_nobody_from_the_others(
    make_world: Callable[..., Any], more: dict[str, Any]
) -> None:
    options = [{"type": "string"}, {"type": "string", "format": "uuid"}]
    schema = {"type": "object", "properties": {"id": {"oneOf": options}}, "required": ["id"]}
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        for strict in (False, True):
            function = {"name": "b", "parameters": schema, "strict": strict}
            answer = await world.chat(
                tools=[WEATHER, {"type": "function", "function": function}], max_tokens=400, **more
            )
            if strict:
                assert answer.status_code == 400
                assert "function b" in answer.json()["error"]["message"]
            else:
                assert answer.status_code == 200, answer.text


async def test_without_tools_or_with_none_a_call_is_a_text(make_world: Callable[..., Any]) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            choice = (await world.chat(max_tokens=400, **more)).json()["choices"][0]
            assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": CALLING}, "stop")


async def test_a_call_that_breaks_off_is_content(make_world: Callable[..., Any]) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        text = CALLING[CALLING.index("<") : CALLING.index("Rom")]
        says(world, text)
        choice = (await world.chat(tools=[WEATHER], max_tokens=400)).json()["choices"][0]
        assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": text}, "stop")


async def test_a_conversation_with_calls_goes_on(make_world: Callable[..., Any]) -> None:
    async with make_world(prefixes={"enabled": False}) as world, world.node("a", 0, 1, 2):
        await world.ready()
        says(world, CALLING)
        message = (await world.chat(tools=[WEATHER], max_tokens=400)).json()["choices"][0]["message"]
        results = [{"role": "tool", "tool_call_id": one["id"], "content": "7 C"} for one in message["tool_calls"]]
        says(world, "It is 7 C.")
        messages = [{"role": "user", "content": "hi"}, message, *results]
        for more in ({}, {"tool_choice": "none"}):
            choice = (await world.chat(messages=messages, tools=[WEATHER], **more)).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("It is 7 C.", "stop")
