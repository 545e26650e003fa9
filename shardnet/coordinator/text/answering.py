"""From an answer's tokens to what a client is shown of it: text, reasoning, calls. Pure.

Stop strings end the content; they do not reach into reasoning or into the arguments of a call, and not across a control token that stands in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shardnet.coordinator.text.calls.answer import AnswerParser
from shardnet.coordinator.text.calls.events import CallDone, Content, Event
from shardnet.coordinator.text.stream import StopStrings, TextStream


class AnswerStream(Protocol):
    """Takes tokens, and gives what is certain of them."""

    @property
    def stopped(self) -> bool:
        """True once the answer is to end here."""
        ...

    @property
    def stop_met(self) -> str:
        """The stop string that ended it; empty where none did."""
        ...

    @property
    def n_calls(self) -> int:
        """Calls that are whole."""
        ...

    def push(self, token: int) -> list[Event]:
        """Returns: what is certain now; often nothing."""
        ...

    def flush(self) -> list[Event]:
        """The answer is over. Returns: what was held back."""
        ...


class PlainStream:
    """An answer that is text and nothing else. Arguments: as `TextStream`."""

    n_calls = 0

    def __init__(self, piece: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._text = TextStream(piece, stops)

    @property
    def stopped(self) -> bool:
        """True once a stop string was met."""
        return self._text.stopped

    @property
    def stop_met(self) -> str:
        """See `AnswerStream`."""
        return self._text.stop_met

    def push(self, token: int) -> list[Event]:
        """See `AnswerStream`."""
        return _content(self._text.push(token))

    def flush(self) -> list[Event]:
        """See `AnswerStream`."""
        return _content(self._text.flush())


class ChatStream:
    """An answer to a chat.

    Args:
        piece: token -> its bytes; control tokens give none.
        control_text: token -> how a control token is written; empty for others.
        parser: of this answer.
        stops: the content ends before the first of these, see `StopStrings`.
        one_call: the answer ends with its first call.
    """

    def __init__(
        self,
        piece: Callable[[int], bytes],
        control_text: Callable[[int], str],
        parser: AnswerParser,
        stops: Sequence[str] = (),
        *,
        one_call: bool = False,
    ) -> None:
        self._text = TextStream(piece)
        self._control_text = control_text
        self._parser = parser
        self._stops = StopStrings(stops)
        self._one_call = one_call

    @property
    def stopped(self) -> bool:
        """True once a stop string was met, or the one call is there."""
        return self._stops.met or (self._one_call and self.n_calls > 0)

    @property
    def stop_met(self) -> str:
        """See `AnswerStream`."""
        return self._stops.which

    @property
    def n_calls(self) -> int:
        """Calls that are whole."""
        return self._parser.calls_done

    def push(self, token: int) -> list[Event]:
        """See `AnswerStream`."""
        if self.stopped:
            return []
        mark = self._control_text(token)
        if not mark:
            text = self._text.push(token)
            return self._let_through(self._parser.push(text)) if text else []
        text = self._text.flush()
        events = self._parser.push(text) if text else []
        return self._let_through([*events, *self._parser.push(mark, control=True)])

    def flush(self) -> list[Event]:
        """See `AnswerStream`."""
        if self.stopped:
            return []
        text = self._text.flush()
        events = self._parser.push(text) if text else []
        return [*self._let_through([*events, *self._parser.end()]), *_content(self._stops.flush())]

    def _let_through(self, events: list[Event]) -> list[Event]:
        made: list[Event] = []
        for event in events:
            if self._stops.met:
                break
            if isinstance(event, Content):
                made += _content(self._stops.push(event.text))
            else:
                made += [*_content(self._stops.flush()), event]
            if self._one_call and isinstance(event, CallDone):
                break
        return made


def _content(text: str) -> list[Event]:
    return [Content(text)] if text else []
