"""`shardnet generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from shardnet.cli import completing
from shardnet.cli.options import Api


def generate(
    prompt: Annotated[str, typer.Argument(help='What to ask; "-" reads it from standard input.')],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name or id; not needed where only one is served.", autocompletion=completing.models
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message before the prompt.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Length of the answer at most; without it, until the context is full."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="X", help="0 picks the most likely token each time.")
    ] = 0.7,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="X", help="Draw from the most likely tokens that together have this probability."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Draw from the N most likely tokens; 0: from all.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="X", help="Leave out tokens less likely than this share of the most likely one."
        ),
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="Above 1: tokens that were there lately become less likely."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="A JSON schema that the answer fits: a file, or the schema itself."),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="REGEX", help="A regular expression that the whole answer matches.")
    ] = None,
    grammar: Annotated[
        str | None, typer.Option(metavar="FILE", help="A GBNF or Lark file that the answer follows.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write what each stage did and when, for ui.perfetto.dev: docs/metrics.md."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
    api: Api = None,
) -> None:
    """Ask the model, and print the answer token by token. Ctrl-C ends it, and frees its place on every node.

    While the model is being loaded it waits, and shows how far that is. Where the API wants a key, it is read from $SHARDNET_API__KEY.

    \b
    shardnet generate "Why is the sky blue?" --max-tokens 100
    git diff | shardnet generate - --system "Write a commit message"
    """
    import json
    import sys

    from shardnet.cli.progress import byte_bar
    from shardnet.cli.reading import check_text, json_of, standard_input
    from shardnet.errors import UsageError
    from shardnet.files import text_of, unwritable, write_whole
    from shardnet.library.answers import Answer, Options
    from shardnet.library.swarm_client import SwarmClient
    from shardnet.library.waiting import once_loaded

    text = standard_input() if prompt == "-" else prompt
    for given, what in (
        (text, "the prompt"),
        (system, "--system"),
        (regex, "--regex"),
        *((one, "--stop") for one in stop or ()),
    ):
        check_text(given, what)
    if raw and system is not None:
        raise UsageError("--system belongs to the chat template, which --raw leaves out")
    options: Options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "stop": stop or None,
        "json_schema": None if json_schema is None else json_of(json_schema, "--json-schema"),
        "regex": regex,
        "grammar": None if grammar is None else text_of(grammar, "--grammar"),
    }
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})

    with SwarmClient(api, model=model, traced=trace is not None) as client:

        def ask(begins: Callable[[], None]) -> Answer:
            def write(piece: str) -> None:
                begins()
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()

            if raw:
                return client.complete(text, on_text=write, **options)
            return client.chat(messages, on_text=write, **options)

        answer = once_loaded(ask, byte_bar)
        if trace is not None:
            try:
                write_whole(trace, json.dumps(client.trace()).encode())
            except OSError as error:
                raise unwritable(trace, error) from error
    if not as_json:
        typer.echo()
        return
    n_prompt, n_answer = len(answer.prompt_token_ids), len(answer.token_ids)
    facts = {
        "model": answer.model,
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_answer,
            "total_tokens": n_prompt + n_answer,
        },
        "stages": answer.stages,
        "finish_reason": answer.finish_reason,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "first_token_s": round(answer.first_token_s, 4) or None,
        "tokens_per_s": round(answer.tokens_per_s, 2) or None,
    }
    typer.echo(json.dumps(facts, ensure_ascii=False))
