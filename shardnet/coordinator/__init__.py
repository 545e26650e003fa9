"""The coordinator: registry of nodes, placement, routes, requests, HTTP API.

Decisions are pure (`cluster`, `placement`, `planning`, `pipeline`); `daemon` acts on them.
"""
