"""Answers of a given structure: what a client asks for (a JSON schema, a regular expression, GBNF, Lark) as a grammar that a stage's engine
follows. Every part of what was asked is enforced, or refused by name before a prompt is computed.

Refuses to know requests, nodes and HTTP. Begin with `grammars`.
"""
