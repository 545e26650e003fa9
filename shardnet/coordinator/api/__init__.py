"""HTTP: what clients and people see of the coordinator.

Knows OpenAI's shapes, status codes and how the swarm's state looks as JSON. Refuses to know how a request is driven. Begin with `endpoints`, then
`service` (from words to a request in progress), `schemas` and `wording`. The APIs that agents speak are chats in other words: `turns` and
`translation`, then `responses` and `anthropic`.
"""
