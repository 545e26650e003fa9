"""The coordinator's links to its nodes, its errands there, and the ports where it is found.

Knows connections, commands under way, loads, link measurements, the DHT. Refuses to know requests and HTTP. Begin with `peers`, then `loads` and
`doors`.
"""
