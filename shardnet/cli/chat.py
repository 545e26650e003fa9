"""`shardnet chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardnet.cli import completing
from shardnet.cli.options import Api


def chat(
    message: Annotated[str | None, typer.Argument(help="What to say first; without it the prompt waits.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Name or id; not needed where only one is served.", autocompletion=completing.models),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    tools: Annotated[
        Path | None, typer.Option(help="A JSON file with tools; what comes of a call is asked of you.")
    ] = None,
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save FILE.json kept.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Show answers as they are, not as Markdown.")] = False,
    api: Api = None,
) -> None:
    """Talk with a model of the swarm in the terminal. /help in it lists its commands.

    Without a terminal the whole input is one message, and the answer's text is all that is printed:
    git diff | shardnet chat --system "Write a commit message"
    """
    import sys

    from shardnet.chat.conversation import Conversation, from_json
    from shardnet.chat.talking import Talk, read_tools
    from shardnet.chat.terminal import Lines, Screen
    from shardnet.cli.progress import byte_bar
    from shardnet.cli.reading import standard_input
    from shardnet.cli.status import lines as status_lines
    from shardnet.coordinator.api.client import ApiClient, find_api
    from shardnet.errors import UsageError
    from shardnet.files import text_of
    from shardnet.settings import default_home

    conversation = from_json(text_of(load, "--load"), str(load)) if load is not None else Conversation()
    conversation.model = model
    if system is not None:
        conversation.system = system
    if tools is not None:
        conversation.tools = read_tools(tools, "--tools")
    is_talk = sys.stdin.isatty()
    if conversation.tools and not is_talk:
        raise UsageError("tools need a terminal: what comes of a call is asked of you there")
    with ApiClient(find_api(api)) as client:
        talk = Talk(client, conversation, Screen(is_plain=plain or not is_talk), byte_bar, status_lines)
        if is_talk:
            with Lines(default_home() / "chat_history") as lines:
                talk.run(lines, message)
            return
        asked = "\n\n".join(part for part in (message, standard_input().strip()) if part)
        if not asked:
            raise UsageError('there is nothing to say: echo "hello" | shardnet chat')
        reply = talk.ask(asked, tells=False)
        if reply.broken_off:
            raise KeyboardInterrupt
