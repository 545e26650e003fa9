"""Anthropic's Messages API, as a chat in other words.

Knows content blocks, the events of a streamed message, and how errors look there. Refuses to know how a chat is answered. Begin with `request`,
then `content` (what a client sends) and `wording` (what it gets).

Source: Anthropic's API reference (Messages, streaming, errors); the types of the anthropic package 2.14.
"""
