"""OpenAI's Responses API, as a chat in other words: nothing is stored, so a conversation comes whole with each request.

Knows items, and the events of a streamed response. Refuses to know how a chat is answered. Begin with `request`, then `items` (what a
client sends) and `wording` (what it gets).

Source: OpenAI's API reference (Responses, streaming events); the types of the openai package 3.57.
"""
