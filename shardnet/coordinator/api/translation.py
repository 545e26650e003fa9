"""From the words of another API to a chat, and its errors back into that API's words. Pure.

A request of another API is a chat that is written in another way: what the chat would refuse is refused with the names and places that the
client wrote.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shardnet.coordinator.api.foreign_fields import check_foreign
from shardnet.coordinator.api.schemas import ChatRequest, usage_error
from shardnet.errors import UsageError
from shardnet.faults import first_fault

PASSED = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n"),
    *("ignore_eos", "speculation", "documents", "chat_template_kwargs"),
    *("json_schema", "regex", "grammar", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_grammar", "guided_choice"),
)
"""Fields of a chat that mean the same in every API."""
_PLACE = re.compile(r"[A-Za-z_]+(?:\.\w+|\[\d+\])*")
_MESSAGE = re.compile(r"messages(?:\.|\[)(\d+)\]?(.*)")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client wrote a message of the chat, and where in it the message's content."""

    of_message: str
    of_content: str


@dataclass(frozen=True, slots=True)
class Places:
    """What things of a chat are called in the API that the client uses.

    Attributes:
        messages: of each, where the client wrote it.
        names: beginnings of a field's name in chats -> in that API; the longest that fits is taken.
        parts: texts within a field's name -> what stands there in that API.
    """

    messages: Sequence[Place]
    names: Mapping[str, str]
    parts: Mapping[str, str]

    def renamed(self, error: UsageError) -> UsageError:
        """Returns: the error in the client's words."""
        place, colon, rest = str(error).partition(":")
        message = f"{self._name(place)}{colon}{rest}" if _PLACE.fullmatch(place) else str(error)
        facts = error.facts
        if isinstance(param := facts.get("param"), str):
            facts = facts | {"param": self._name(param)}
        return UsageError(message, **facts)

    def _name(self, place: str) -> str:
        if (found := _MESSAGE.fullmatch(place)) and int(found[1]) < len(self.messages):
            known, rest = self.messages[int(found[1])], found[2]
            if rest.startswith(".content"):
                return known.of_content + rest.removeprefix(".content")
            return known.of_message + rest
        begins = max((one for one in self.names if re.match(rf"{one}\b", place)), key=len, default=None)
        if begins is not None:
            place = self.names[begins] + place[len(begins) :]
        for part, theirs in self.parts.items():
            place = place.replace(part, theirs)
        return place


@dataclass(frozen=True, slots=True)
class Translated:
    """A chat, and what its parts are called by the client."""

    chat: ChatRequest
    places: Places

    @contextmanager
    def in_client_words(self) -> Iterator[None]:
        """Within, what is refused is refused in the client's words."""
        try:
            yield
        except UsageError as error:
            raise self.places.renamed(error) from None


def as_chat(body: Mapping[str, Any], places: Places) -> Translated:
    """Returns: the chat of this body; keys that are None are left out. Raises: UsageError in the client's words."""
    try:
        chat = ChatRequest.model_validate({key: value for key, value in body.items() if value is not None})
    except ValidationError as error:
        raise places.renamed(usage_error(error)) from None
    return Translated(chat, places)


def read(kind: type[M], value: Any, where: str) -> M:
    """Returns: a part of a request. Raises: UsageError naming the place."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        within, what = first_fault(error)
        place = f"{where}.{within}" if within else where
        raise UsageError(f"{place}: {what}", param=place) from None


def passed(given: Mapping[str, Any], refused: Mapping[str, str], ignored: Collection[str] = ()) -> dict[str, Any]:
    """Look over the fields that are not this API's own.

    Args:
        refused: names of the API that cannot be honoured -> why, and what to do.
        ignored: names of the API that mean something else in chats, and nothing here.

    Returns: those that mean the same in chats.
    Raises: UsageError for one that is asked for and cannot be honoured, by the rule of chats.
    """
    for name, why in refused.items():
        if given.get(name):
            raise UsageError(f"{name}: {why}", param=name)
    unknown = {name: value for name, value in given.items() if name not in PASSED and name not in ignored}
    check_foreign(unknown, {"/v1/chat/completions": ChatRequest.model_fields})
    return {name: given[name] for name in PASSED if name in given}
