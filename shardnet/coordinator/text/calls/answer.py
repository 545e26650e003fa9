"""One answer, taken apart as it comes: reasoning, content, calls. Pure.

What cannot be a call is content, from its mark on; nothing that the model wrote is lost but white space around marks, and control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shardnet.coordinator.text.calls import harmony
from shardnet.coordinator.text.calls.events import CallBegun, Content, Event, Reasoning
from shardnet.coordinator.text.calls.shown import Shown
from shardnet.coordinator.text.calls.sink import Calls, openai_id
from shardnet.coordinator.text.calls.source import Broken, Source, Steps


class CallFormat(Protocol):
    """How a model writes calls. One class for each family.

    Attributes:
        marks: what opens calls, each with what closes them.
    """

    @property
    def marks(self) -> Mapping[str, str]: ...

    def read(self, source: Source, calls: Calls, opened: str) -> Steps[None]:
        """Take calls; `opened` was taken already. Raises: Broken."""
        ...


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model marks its reasoning: pairs of what opens and what closes it."""

    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How a model writes its answers.

    Attributes:
        name: for people.
        calls: how it writes calls.
        writes_calls: the template does too.
        shows_tools: the template shows tools; else they have to be told.
        harmony: answers are messages with channels, whatever stands in the rest.
        make_id: of calls whose id the model does not write.
        wraps: marks that part answers and are never shown (gemma's channel names, final-answer marks).
        opened: what the prompt ends with, where the answer's own first characters are meant to stand behind it (Functionary 3.2).
        text_begins: what stands between that, or reasoning, and a text; before calls it does not.
    """

    name: str
    calls: CallFormat | None = None
    thinking: Thinking = field(default_factory=Thinking)
    harmony: bool = False
    make_id: Callable[[], str] = openai_id
    wraps: tuple[str, ...] = ()
    opened: str = ""
    text_begins: str = ""
    writes_calls: bool = True
    shows_tools: bool = True

    def thinks_already(self, prompt: str) -> bool:
        """Returns: whether the prompt ends within reasoning that it opened itself."""
        end = prompt.rstrip()
        if self.harmony:
            return end.endswith("<|channel|>analysis<|message|>")
        return any(end.endswith(opened.rstrip()) for opened, _ in self.thinking.pairs)


class AnswerParser:
    """Takes one answer apart.

    Args:
        format: of the model.
        tools: functions that were offered, each with the schema of its arguments; None leaves calls in the content.
        thinks: the prompt ended within reasoning.
    """

    def __init__(
        self, format: AnswerFormat, tools: Mapping[str, Mapping[str, Any]] | None = None, *, thinks: bool = False
    ) -> None:
        self._format = format
        self._events: list[Event] = []
        self._source = Source()
        self._shown = Shown(self._tell)
        self._calls = Calls(self._source, tools or {}, format.make_id, self._tell)
        self._reader = self._answer(thinks, with_calls=tools is not None)
        self._is_over = False
        self._source.push(format.opened)

    @property
    def calls_done(self) -> int:
        """Calls that are whole."""
        return self._calls.done

    def push(self, text: str, *, control: bool = False) -> list[Event]:
        """More of the answer. Returns: what is certain now."""
        self._source.push(text, control=control)
        return self._go_on()

    def end(self) -> list[Event]:
        """The answer is over. Returns: what was held back."""
        self._source.ended = True
        events = self._go_on()
        self._shown.end()
        return [*events, *self._taken()]

    def _tell(self, event: Event) -> None:
        if isinstance(event, CallBegun):
            self._shown.part()
        self._events.append(event)

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _go_on(self) -> list[Event]:
        if not self._is_over:
            self._is_over = next(self._reader, True) is True
        return self._taken()

    # -- the answer ------------------------------------------------------------------------------------------------------------

    def _answer(self, thinks: bool, *, with_calls: bool) -> Steps[None]:
        if self._format.harmony:
            yield from harmony.read_answer(
                self._source, self._calls, self._shown, with_calls=with_calls, in_reasoning=thinks
            )
            return
        source, shown, calls = self._source, self._shown, self._format.calls if with_calls else None
        if thinks:
            yield from self._reasoning(tuple(close for _, close in self._format.thinking.pairs))
        yield from self._beginning(calls)
        while not (source.is_empty and source.ended):
            opens = (*(calls.marks if calls is not None else ()), *(one for one, _ in self._format.thinking.pairs))
            mark = yield from shown.until(source, Content, (*opens, *self._format.wraps))
            if mark is None:
                return
            if calls is not None and mark in calls.marks:
                yield from self._try_calls(calls, mark)
            elif source.is_control() and mark in self._format.wraps:
                self._drop(mark)
            elif source.is_control():
                yield from self._think(mark)
            else:
                shown.tell(source, Content, len(mark))

    def _beginning(self, calls: CallFormat | None) -> Steps[None]:
        """What only counts before anything else was said: reasoning marks that are plain text, calls with no mark."""
        source = self._source
        opens = tuple(one for one, _ in self._format.thinking.pairs)
        bare: Mapping[str, str] = getattr(calls, "bare", {})
        while True:
            yield from source.space()
            mark = yield from source.looking_at(*opens, *bare, *self._format.wraps)
            source.go_back()
            if mark is None or (mark in bare and calls is None):
                return
            yield from source.space()
            if mark in self._format.wraps:
                self._drop(mark)
            elif mark in opens:
                yield from self._think(mark)
            else:
                source.go_back()
                assert calls is not None
                yield from self._try_calls(calls, mark)
                return

    def _drop(self, mark: str) -> None:
        self._source.take(len(mark))
        self._source.commit()
        self._shown.part()

    def _think(self, mark: str) -> Steps[None]:
        self._drop(mark)
        yield from self._reasoning(tuple(close for opened, close in self._format.thinking.pairs if opened == mark))

    def _reasoning(self, closes: tuple[str, ...]) -> Steps[None]:
        found = yield from self._shown.until(self._source, Reasoning, closes)
        if found is not None:
            self._drop(found)

    def _try_calls(self, calls: CallFormat, mark: str) -> Steps[None]:
        """Calls, or else content: then what stands behind the mark is looked at once more."""
        source, done = self._source, self._calls.done
        try:
            yield from source.space()
            if mark in calls.marks or mark.strip() != "{":
                yield from source.expect(mark)
            yield from calls.read(source, self._calls, mark)
            source.commit()
        except Broken:
            if self._calls.is_open:
                self._calls.broken()
                return
            source.go_back()
            if self._calls.done == done:
                yield from source.space()
                space = source.taken
                source.commit()
                self._shown.say(Content, space)
                self._shown.tell(source, Content, len(mark))
