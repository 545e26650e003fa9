"""`shardnet generate`."""

from __future__ import annotations

from typing import Annotated

import typer


def generate(
    prompt: Annotated[str, typer.Argument(help='What to ask; "-" reads it from standard input.')],
    model: Annotated[str | None, typer.Option(help="Name or id; not needed where only one is served.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the answer at most; without it, until the context is full.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 picks the most likely token each time.")] = 0.7,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    repeat_penalty: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    grammar: Annotated[typer.FileText | None, typer.Option(help="A GBNF file that the answer must follow.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
    api: Annotated[
        str | None, typer.Option(metavar="URL", help="The coordinator's API. [default: $SHARDNET_API]")
    ] = None,
) -> None:
    """Ask the model, and print the answer token by token. Ctrl-C ends it, and frees its place on every node."""
    import json
    import sys
    import time

    from shardnet.coordinator.api.client import ApiClient, find_api
    from shardnet.errors import UsageError

    text = sys.stdin.read() if prompt == "-" else prompt
    if raw and system is not None:
        raise UsageError("--system belongs to the chat template, which --raw leaves out")
    body: dict[str, object] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "stop": stop or None,
        "grammar": grammar.read() if grammar else None,
    }
    body = {key: value for key, value in body.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    path = "/v1/completions" if raw else "/v1/chat/completions"
    body |= {"prompt": text} if raw else {"messages": messages}
    body |= {"stream_options": {"include_usage": True}}
    if as_json:
        body["return_token_ids"] = True

    answer: list[str] = []
    token_ids: list[int] = []
    facts: dict[str, object] = {}
    began_s = time.perf_counter()
    first_s = last_s = 0.0
    with ApiClient(find_api(api)) as client:
        for event in client.stream(path, body):
            facts["model"] = event.get("model")
            if event.get("usage"):
                facts["usage"] = event["usage"]
            if event.get("shardnet"):
                facts["stages"] = event["shardnet"]["stages"]
            for choice in event.get("choices", []):
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                facts["finish_reason"] = choice.get("finish_reason") or facts.get("finish_reason")
                if choice.get("token_ids"):
                    token_ids += choice["token_ids"]
                if piece or choice.get("token_ids"):
                    last_s = time.perf_counter()
                    first_s = first_s or last_s
                answer.append(piece)
                if piece and not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
    if not as_json:
        typer.echo()
        return
    decode_s = last_s - first_s
    facts |= {
        "text": "".join(answer),
        "token_ids": token_ids,
        "first_token_s": round(first_s - began_s, 4) if first_s else None,
        "tokens_per_s": round((len(token_ids) - 1) / decode_s, 2) if decode_s and len(token_ids) > 1 else None,
    }
    typer.echo(json.dumps(facts, ensure_ascii=False))
