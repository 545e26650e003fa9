"""`shardnet chat` itself: what is typed becomes a request or a command, what comes is shown."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from shardnet.chat.commands import Command, help_lines, option, parse, said
from shardnet.chat.conversation import Conversation, Reply, from_json, tools_from_json
from shardnet.chat.terminal import Lines, Screen
from shardnet.coordinator.api.client import ApiClient
from shardnet.errors import ShardnetError, UsageError
from shardnet.files import text_of, unwritable, write_whole
from shardnet.library.waiting import Bar, once_loaded
from shardnet.log import counted

PATH = "/v1/chat/completions"


class Talk:
    """One sitting. Args: status_lines: words for what `/status` of the API gives."""

    def __init__(
        self,
        client: ApiClient,
        conversation: Conversation,
        screen: Screen,
        bar: Bar,
        status_lines: Callable[[dict[str, Any]], list[str]],
    ) -> None:
        self.conversation = conversation
        self._client = client
        self._screen = screen
        self._bar = bar
        self._status_lines = status_lines
        self._thoughts = ""
        self._prefill = ""

    def ask(self, text: str, *, tells: bool = True) -> Reply:
        """Say something, and show the answer. Ctrl-C breaks it off.

        Args: tells: also length, speed, and who answered.

        Raises: the coordinator's own error, with nothing said.
        """
        self.conversation.say(text)
        try:
            return self._answer(tells=tells)
        except BaseException:
            self.conversation.take_back()
            raise

    def run(self, lines: Lines, first: str | None = None) -> None:
        """Read and answer until the end of input or `/quit`."""
        self._say_who()
        while True:
            try:
                line = first if first is not None else lines.read("> ", self._prefill)
            except KeyboardInterrupt:
                self._prefill = ""
                self._screen.say("\nCtrl-D or /quit leaves.")
                continue
            except EOFError:
                self._screen.say("")
                return
            first, self._prefill = None, ""
            try:
                command = parse(line)
                if command is None:
                    if line.strip():
                        self._converse(said(line), lines)
                elif command.name == "quit":
                    return
                else:
                    self._obey(command, lines)
            except ShardnetError as error:
                self._screen.complain(str(error))
            except KeyboardInterrupt:
                self._screen.say("")

    def _say_who(self) -> None:
        served = [one["id"] for one in self._client.get("/v1/models")["data"]]
        chosen = self.conversation.model or ", ".join(served) or "no model yet"
        self._screen.say(f"{chosen} at {self._client.url}. /help lists the commands, Ctrl-D leaves.")

    def _converse(self, text: str, lines: Lines) -> None:
        try:
            reply = self.ask(text)
        except BaseException:
            self._prefill = text  # so that it need not be typed again
            raise
        while reply.calls and not reply.broken_off:
            self._give_results(reply, lines)
            reply = self._answer()

    def _give_results(self, reply: Reply, lines: Lines) -> None:
        for call in reply.calls:
            try:
                result = lines.read(f"result of {call['function']['name']}: ")
            except (EOFError, KeyboardInterrupt):
                self.conversation.take_back()
                raise UsageError("the calls have no result: what you said last is taken back, with the calls") from None
            self.conversation.give_result(call, result)

    def _answer(self, *, tells: bool = True) -> Reply:
        reply = once_loaded(self._stream, self._bar)
        self.conversation.messages.append(reply.message())
        self._thoughts = reply.reasoning or self._thoughts
        if tells:
            self._screen.say(reply.facts())
        return reply

    def _stream(self, begins: Callable[[], None]) -> Reply:
        reply, began_s = Reply(), time.perf_counter()
        with closing(self._client.stream(PATH, self.conversation.body())) as events:
            event = next(events, None)  # errors that come at once are told without an empty answer before them
            begins()
            try:
                with self._screen.answering(reply) as show:
                    while event is not None:
                        reply.take(event, time.perf_counter() - began_s)
                        show()
                        event = next(events, None)
            except KeyboardInterrupt:
                reply.broken_off = True
        return reply

    # -- commands ------------------------------------------------------------------------------------------------------------

    def _obey(self, command: Command, lines: Lines) -> None:
        match command.name:
            case "help":
                self._show(help_lines(shutil.get_terminal_size().columns))
            case "thoughts":
                self._screen.say(self._thoughts or "the model told no thoughts")
            case "retry":
                self._converse(self._taken_back(), lines)
            case "edit":
                self._prefill = self._taken_back()
            case "undo":
                self._screen.say(f"taken back: {self._taken_back()}")
            case "new":
                self.conversation.messages.clear()
            case "status":
                self._show(self._status_lines(self._client.get("/status")))
            case "save":
                self._save(Path(command.argument).expanduser())
            case "load":
                self._load(Path(command.argument).expanduser())
            case _:
                self._change(command)

    def _change(self, command: Command) -> None:
        talk, wanted = self.conversation, command.argument
        match command.name:
            case "model" if wanted:
                talk.model = self._client.get(f"/v1/models/{wanted}")["id"]
            case "model":
                cards = [one["shardnet"] for one in self._client.get("/v1/models")["data"]]
                self._show([f"{one['model']}{'' if one['ready'] else ': ' + one['reason']}" for one in cards])
            case "system" if wanted:
                talk.system = None if wanted == "-" else wanted
            case "system":
                self._screen.say(talk.system or "there is no system message")
            case "tools" if wanted:
                talk.tools = [] if wanted == "-" else read_tools(Path(wanted).expanduser(), "/tools")
            case "tools":
                self._show([one["function"]["name"] for one in talk.tools] or ["there are no tools"])
            case "set" if wanted:
                name, value = option(wanted)
                talk.options.pop(name, None)
                if value is not None:
                    talk.options[name] = value
            case "set":
                self._show(
                    [f"{name} {json.dumps(value)}" for name, value in talk.options.items()] or ["nothing is set"]
                )

    def _taken_back(self) -> str:
        text = self.conversation.take_back()
        if text is None:
            raise UsageError("nothing was said yet")
        return text

    def _save(self, path: Path) -> None:
        text = self.conversation.as_markdown() if path.suffix == ".md" else self.conversation.as_json()
        try:
            write_whole(path, text.encode())
        except OSError as error:
            raise unwritable(path, error) from None
        self._screen.say(f"saved: {path}")

    def _load(self, path: Path) -> None:
        model = self.conversation.model
        self.conversation = from_json(text_of(path, "/load"), str(path))
        self.conversation.model = model
        self._screen.say(f"{counted(len(self.conversation.messages), 'message')} loaded")

    def _show(self, lines: list[str]) -> None:
        self._screen.say("\n".join(lines))


def read_tools(path: str | Path, flag: str) -> list[dict[str, Any]]:
    """Returns: the tools in a JSON file. Raises: UsageError for one that cannot be read, or holds no tools."""
    return tools_from_json(text_of(path, flag), str(path))
