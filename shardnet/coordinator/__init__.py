"""The coordinator: registry of nodes, placement, routes, requests, HTTP API.

`daemon` composes the wings, of which each may take from those after it: `api`, `requests`, `nodes`, `placement`, `text`. Begin with `daemon`, then
`frames` (what nodes say, and to whom it matters).
"""
