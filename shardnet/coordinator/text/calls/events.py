"""What is found in an answer, in the order in which it is found. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for whoever asked."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call whose name is known; its arguments follow.

    Attributes:
        index: of the call in the answer, from 0.
    """

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallDone:
    """The call is whole: its arguments are a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The call that was begun is none after all.

    Attributes:
        text: all of it as the model wrote it, which is content now.
    """

    index: int
    text: str


Event = Content | Reasoning | CallBegun | CallArguments | CallDone | CallBroken
